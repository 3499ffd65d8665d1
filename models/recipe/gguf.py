"""GGUF in and out (format: ggml docs/gguf.md): metadata, F32 and F16 tensors of a network of network.py.

Owns the order of rows: GGUF's llama keeps the two members of a rotary pair side by side, network.py half a head apart.
Reads only what write() writes, of this recipe or another: F32 and F16 tensors, and refuses the rest.
"""
import struct

import numpy as np
import torch

from network import Network, Shape

U32, I32, F32, BOOL, STR, ARR = 4, 5, 6, 7, 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
ALIGN = 32
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def text(x):
    b = x.encode("utf-8")
    return struct.pack("<Q", len(b)) + b


def pair(key, value):
    """One metadata entry; the type follows from the value's."""
    if isinstance(value, bool):
        return text(key) + struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", U32, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", F32, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STR) + text(value)
    if isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", ARR, STR, len(value)) + b"".join(map(text, value))
    return text(key) + struct.pack("<IIQ", ARR, I32, len(value)) + np.asarray(value, "<i4").tobytes()


def metadata(name, vocab, shape):
    ids = {t: i for i, t in enumerate(vocab["tokens"])}
    special = [t.startswith("<|") and t.endswith("|>") for t in vocab["tokens"]]
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": 1,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.hidden,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.dimension_count": shape.width // shape.heads,
        "llama.rope.freq_base": float(shape.theta),
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(vocab["tokens"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": vocab["tokens"],
        "tokenizer.ggml.token_type": [3 if s else 1 for s in special],
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in vocab["merges"]],
        "tokenizer.ggml.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def beside(w, heads):
    """Rows of rotary pairs from half a head apart to side by side."""
    return w.view(heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)


def apart(w, heads):
    return w.view(heads, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)


def names(shape):
    """(name here, name in GGUF, heads whose rows are paired or 0) of every tensor, in file order."""
    yield "emb.weight", "token_embd.weight", 0
    yield "norm.weight", "output_norm.weight", 0
    for i in range(shape.layers):
        p, b = f"blocks.{i}.", f"blk.{i}."
        yield p + "n1.weight", b + "attn_norm.weight", 0
        yield p + "q.weight", b + "attn_q.weight", shape.heads
        yield p + "k.weight", b + "attn_k.weight", shape.kv_heads
        yield p + "v.weight", b + "attn_v.weight", 0
        yield p + "o.weight", b + "attn_output.weight", 0
        yield p + "n2.weight", b + "ffn_norm.weight", 0
        for x in ("gate", "up", "down"):
            yield p + x + ".weight", b + f"ffn_{x}.weight", 0


def write(path, state, shape, vocab, name):
    """state: tensors by name (Network.state_dict()), matrices written as F16, vectors as F32."""
    meta = metadata(name, vocab, shape)
    tensors = []
    for here, there, heads in names(shape):
        w = state[here].float().cpu()
        w = beside(w, heads) if heads else w
        tensors.append((there, np.ascontiguousarray(w.numpy(), "<f2" if w.dim() == 2 else "<f4")))
    with open(path, "wb") as f:
        f.write(struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(meta)))
        f.write(b"".join(pair(k, v) for k, v in meta.items()))
        at = 0
        for there, a in tensors:
            kind = 1 if a.dtype == np.dtype("<f2") else 0
            f.write(text(there) + struct.pack("<I", a.ndim) + struct.pack(f"<{a.ndim}Q", *reversed(a.shape)) + struct.pack("<IQ", kind, at))
            at += (a.nbytes + ALIGN - 1) // ALIGN * ALIGN
        for _, a in tensors:
            f.write(b"\0" * (-f.tell() % ALIGN) + a.tobytes())
        f.write(b"\0" * (-f.tell() % ALIGN))


class Reader:
    def __init__(self, path):
        self.bytes, self.at = open(path, "rb").read(), 0
        magic, version, tensors, pairs = self.take("<IIQQ")
        if magic != 0x46554747 or version != 3:
            raise SystemExit(f"{path}: no GGUF of version 3")
        self.meta = {}
        for _ in range(pairs):
            key = self.text()
            self.meta[key] = self.value(self.take("<I")[0])
        infos = []
        for _ in range(tensors):
            name, (n,) = self.text(), self.take("<I")
            shape = self.take(f"<{n}Q")[::-1]
            infos.append((name, shape, *self.take("<IQ")))
        base = (self.at + ALIGN - 1) // ALIGN * ALIGN
        self.tensors = {}
        for name, shape, kind, at in infos:
            if kind > 1:
                raise SystemExit(f"{path}: {name} is neither F32 nor F16")
            a = np.frombuffer(self.bytes, ("<f4", "<f2")[kind], int(np.prod(shape)), base + at)
            self.tensors[name] = torch.from_numpy(a.reshape(shape).astype(np.float32))

    def take(self, form):
        v = struct.unpack_from(form, self.bytes, self.at)
        self.at += struct.calcsize(form)
        return v

    def text(self):
        (n,) = self.take("<Q")
        self.at += n
        return self.bytes[self.at - n : self.at].decode("utf-8", "replace")

    def value(self, kind):
        if kind == STR:
            return self.text()
        if kind == ARR:
            kind, n = self.take("<IQ")
            return [self.value(kind) for _ in range(n)]
        return self.take(SCALARS[kind])[0]


def read(path):
    """(state of a Network, its Shape) from a GGUF of llama's architecture in F16."""
    r = Reader(path)
    m = lambda k: r.meta["llama." + k]
    shape = Shape(
        m("embedding_length"), m("block_count"), m("attention.head_count"), m("attention.head_count_kv"),
        m("feed_forward_length"), len(r.meta["tokenizer.ggml.tokens"]), m("rope.freq_base"), m("context_length"),
    )
    return {here: apart(r.tensors[there], heads) if heads else r.tensors[there] for here, there, heads in names(shape)}, shape


def load(path):
    state, shape = read(path)
    net = Network(shape)
    net.load_state_dict(state)
    return net
