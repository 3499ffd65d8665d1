#!/usr/bin/env python3
"""Checks of the recipe itself, some seconds: check.py --source SOURCE (the dialogues)."""
import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

import batches
import evaluate
import gguf
import network
import sessions
from optimiser import Optimiser, orthogonal

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = json.load(open(HERE.parent / "vocab.json"))
SMALL = network.Shape(64, 2, 4, 2, 96, 4096, 1e4, 300)


def plain_attention(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    n, m = q.shape[2], k.shape[2]
    score = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    return torch.softmax(score.masked_fill(torch.ones(n, m, dtype=torch.bool).triu(m - n + 1), -1e30), -1) @ v


def check_attention():
    """Blocks against the plain formula, forwards and backwards, whole and after earlier tokens."""
    for n, m in ((300, 300), (5, 140), (1, 9)):
        a = [torch.randn(2, h, t, 16, dtype=torch.float64, requires_grad=True) for h, t in ((4, n), (2, m), (2, m))]
        b = [x.detach().clone().requires_grad_() for x in a]
        one, two, g = network.AttendBlocks.apply(*a), plain_attention(*b), torch.randn(2, 4, n, 16, dtype=torch.float64)
        one.backward(g), two.backward(g)
        assert torch.allclose(one, two) and all(torch.allclose(x.grad, y.grad) for x, y in zip(a, b)), (n, m)


def check_loss():
    """The loss by blocks against PyTorch's, with its gradients."""
    h, emb, y, w = torch.randn(700, 32), torch.randn(50, 32), torch.randint(0, 50, (700,)), torch.rand(700)
    a, b = [x.clone().requires_grad_() for x in (h, emb)], [x.clone().requires_grad_() for x in (h, emb)]
    one, each = network.WeightedLoss.apply(*a, y, w)
    plain = F.cross_entropy(b[0] @ b[1].t(), y, reduction="none")
    (one * 0.5).backward(), ((plain * w).sum() * 0.5).backward()
    assert torch.allclose(each, plain, atol=1e-4)
    assert all(torch.allclose(x.grad, z.grad, atol=1e-3) for x, z in zip(a, b))


def check_gated():
    """silu(gate) * up against PyTorch's, with its gradients."""
    a = [torch.randn(40, 30).requires_grad_() for _ in range(2)]
    b = [x.detach().clone().requires_grad_() for x in a]
    one, plain = network.Gated.apply(*a), F.silu(b[0]) * b[1]
    g = torch.randn_like(plain)
    one.backward(g), plain.backward(g)
    assert torch.allclose(one, plain, atol=1e-5) and all(torch.allclose(x.grad, z.grad, atol=1e-5) for x, z in zip(a, b))


def check_steps():
    """A reply token by token gives what the whole text at once gives."""
    net = network.Network(SMALL)
    x = torch.randint(0, 4096, (1, 200))
    whole = F.linear(net.hidden(x)[0][:, -1], net.emb.weight)
    past = net.step(x[:, :150])[1]
    for i in range(150, 200):
        logits, past = net.step(x[:, i : i + 1], past)
    assert torch.allclose(logits, whole, atol=1e-4)


def check_orthogonal():
    for shape in ((64, 64), (192, 64), (64, 192)):
        s = torch.linalg.svdvals(orthogonal(torch.randn(1, *shape))[0])
        assert 0.5 < s.min() and s.max() < 1.3, (shape, s.min(), s.max())


def check_gguf(folder):
    """Read and written again, a file is the same to the byte."""
    source = HERE.parent / "pocket-f16.gguf"
    state, shape = gguf.read(source)
    gguf.write(f"{folder}/again.gguf", state, shape, VOCAB, "pocket")
    assert open(f"{folder}/again.gguf", "rb").read() == open(source, "rb").read()


def check_sessions(source):
    """Sessions depend on the seed alone, keep to their length, and ask only for what stands above the question."""
    batches.load(source, VOCAB, 4.0)
    m, answers, refusals = batches.material, 0, 0
    for seed in range(60):
        kind, length = ("dense", "mixed", "plain")[seed % 3], 300 + 30 * seed
        s = sessions.converse(m, seed, length, kind)
        ids, weights = sessions.session(m, seed, length, kind)
        assert list(ids) == s.ids and len(ids) == len(weights) <= length + 150
        assert m.tok.decode(ids) == "".join(f"{role}\n{text}\n" for role, text in s.turns)
        for reply, at, spans in s.replies:
            above = "\n".join(text for _, text in s.turns[:at]).lower()
            refused = evaluate.REFUSAL.search(reply) is not None
            answers, refusals = answers + 1, refusals + refused
            for x in spans if not refused and not reply.startswith("We talked about") else ():
                missing = [w for w in x.lower().replace(",", " ").split() if w.strip(".;") not in above and w not in ("yes", "and")]
                assert not missing, (reply, missing)
    assert answers > 1000 and 0.03 < refusals / answers < 0.25, (answers, refusals)


def check_learning(source):
    """A small network learns to copy: some steps of the optimiser lower the loss."""
    stage = {"tokens": 4096, "kinds": [(1, "dense", 100, 250)]}
    feed = batches.Feed({"shape": SMALL, "micro": 4096, "pool": 8192, "round": 16}, (source, VOCAB, 4.0), 0, 1, 0)
    net = network.Network(SMALL)
    optimiser, losses = Optimiser(net, "cpu"), []
    for _ in range(12):
        ids, weights = feed.batch(stage)
        x, w = torch.from_numpy(ids), torch.from_numpy(weights)
        loss, _ = net(x[:, :-1], x[:, 1:].contiguous(), w)
        loss.backward()
        optimiser.step(5e-3, 1 / float(w.sum()))
        losses.append(float(loss) / float(w.sum()))
    assert losses[-1] < losses[0] - 1, losses


def check_command(source, cases, folder):
    """The command trains, is stopped, goes on with sessions from another process, and writes a model that can be asked."""
    command = [sys.executable, str(HERE / "train"), "--preset", "tiny", "--source", source, "--eval", cases, "--work", folder, "--eval-cases", "1"]
    subprocess.run(command + ["--minutes", "0.2", "--stop-after", "0.05"], check=True, stdout=subprocess.DEVNULL)
    assert os.path.exists(f"{folder}/checkpoint.pt") and not os.path.exists(f"{folder}/tiny-f16.gguf")
    subprocess.run(command + ["--minutes", "0.1", "--workers", "1", "--final-cases", "2"], check=True, stdout=subprocess.DEVNULL)
    figures = evaluate.evaluate(gguf.load(f"{folder}/tiny-f16.gguf").bfloat16(), VOCAB, cases, 2)
    written = json.load(open(f"{folder}/figures.json"))["figures"]
    assert abs(figures["perplexity"] / written["perplexity"] - 1) < 0.02, (figures, written)


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--source", required=True)
    a.add_argument("--eval", required=True, help="held-out cases of questions.py")
    a = a.parse_args()
    torch.manual_seed(3)
    with tempfile.TemporaryDirectory() as folder:
        for check, arguments in (
            (check_attention, ()), (check_loss, ()), (check_gated, ()), (check_steps, ()), (check_orthogonal, ()), (check_gguf, (folder,)),
            (check_sessions, (a.source,)), (check_learning, (a.source,)), (check_command, (a.source, a.eval, folder)),
        ):
            check(*arguments)
            print(check.__name__, "ok", flush=True)


if __name__ == "__main__":
    main()
