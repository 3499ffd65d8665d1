"""The network of `pocket`: llama's architecture, in PyTorch 1.13 on a CPU and in later ones on a GPU alike.

RMSNorm, rotary positions, grouped heads, SwiGLU, output tied to the embedding. Computed in bfloat16. The two members
of a rotary pair lie half a head apart here (one multiplication of whole halves); GGUF keeps them side by side, and
gguf.py reorders the rows on the way in and out.

Shapes: tokens (batch, tokens) int64; weights of the loss (batch, tokens) float32.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

QUERY_BLOCK = 128
LOSS_BLOCK = {"cpu": 512, "cuda": 16384}
EPSILON = 1e-5


class Shape:
    """Sizes of a network; `theta` is the rotary base, `context` the longest sequence."""

    def __init__(self, width=256, layers=6, heads=4, kv_heads=2, hidden=768, vocab=4096, theta=1e4, context=2048):
        self.width, self.layers, self.heads, self.kv_heads = width, layers, heads, kv_heads
        self.hidden, self.vocab, self.theta, self.context = hidden, vocab, theta, context

    def __str__(self):
        return " ".join(f"{k} {v}" for k, v in vars(self).items())


class Rotate(torch.autograd.Function):
    """The pairs (i, i + half) turned by their angle; its derivative turns back."""

    @staticmethod
    def turn(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return Rotate.turn(x, cos, sin)

    @staticmethod
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        return Rotate.turn(g, cos, -sin), None, None


class Rotary:
    def __init__(self, shape):
        dim = shape.width // shape.heads
        angle = torch.arange(shape.context)[:, None] * shape.theta ** (-torch.arange(0, dim, 2) / dim)
        self.tables = {}
        self.table = (angle.cos(), angle.sin())

    def at(self, first, count, like):
        key = (like.device, like.dtype)
        if key not in self.tables:
            self.tables[key] = tuple(t.to(like.device, like.dtype) for t in self.table)
        cos, sin = self.tables[key]
        return cos[first : first + count], sin[first : first + count]


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
        return x * torch.rsqrt(square + EPSILON).to(x.dtype) * self.weight


class AttendBlocks(torch.autograd.Function):
    """Causal attention by blocks of queries, so that only visible keys are touched.

    q (b, heads, n, dim); k, v (b, kv, m, dim), m >= n: the queries are the last n of m tokens. A block's weights are kept
    for the way back, where the gradients of keys and values are added up in place.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        b, heads, n, dim = q.shape
        kv, m = k.shape[1], k.shape[2]
        group = heads // kv
        q = (q * dim**-0.5).reshape(b, kv, group, n, dim)
        k, v = k.reshape(b * kv, m, dim), v.reshape(b * kv, m, dim)
        out, kept = torch.empty_like(q), []
        for i in range(0, n, QUERY_BLOCK):
            e = min(i + QUERY_BLOCK, n)
            seen = m - n + e
            queries = q[:, :, :, i:e].reshape(b * kv, group * (e - i), dim)
            score = torch.bmm(queries, k[:, :seen].transpose(1, 2)).view(b * kv, group, e - i, seen)
            if e - i > 1:
                hidden = torch.ones(e - i, e - i, dtype=torch.bool, device=q.device).triu(1)
                score[..., seen - (e - i) :].masked_fill_(hidden, -1e30)
            weight = F.softmax(score, -1).view(b * kv, group * (e - i), seen)
            out[:, :, :, i:e] = torch.bmm(weight, v[:, :seen]).view(b, kv, group, e - i, dim)
            if ctx.needs_input_grad[0]:
                kept.append(weight)
        ctx.save_for_backward(q, k, v, *kept)
        return out.view(b, heads, n, dim)

    @staticmethod
    def backward(ctx, g):
        q, k, v, *kept = ctx.saved_tensors
        b, kv, group, n, dim = q.shape
        m = k.shape[1]
        g = g.reshape(b, kv, group, n, dim)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for weight, i in zip(kept, range(0, n, QUERY_BLOCK)):
            e = min(i + QUERY_BLOCK, n)
            seen = m - n + e
            rows = lambda x: x[:, :, :, i:e].reshape(b * kv, group * (e - i), dim)
            gi = rows(g)
            dscore = torch._softmax_backward_data(torch.bmm(gi, v[:, :seen].transpose(1, 2)), weight, -1, weight.dtype)
            dq[:, :, :, i:e] = torch.bmm(dscore, k[:, :seen]).view(b, kv, group, e - i, dim)
            dk[:, :seen] += torch.bmm(dscore.transpose(1, 2), rows(q))
            dv[:, :seen] += torch.bmm(weight.transpose(1, 2), gi)
        shape = (b, kv, m, dim)
        return (dq * dim**-0.5).view(b, kv * group, n, dim), dk.view(shape), dv.view(shape)


def attend_fused(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def attend(q, k, v):
    if q.is_cuda and q.shape[2] == k.shape[2] and hasattr(F, "scaled_dot_product_attention"):
        return attend_fused(q, k, v)
    return AttendBlocks.apply(q, k, v)


class Gated(torch.autograd.Function):
    """silu(gate) * up. PyTorch's own silu takes four times as long in bfloat16 as a sigmoid and products."""

    @staticmethod
    def forward(ctx, gate, up):
        s = torch.sigmoid(gate)
        ctx.save_for_backward(gate, up, s)
        return (s * gate).mul_(up)

    @staticmethod
    def backward(ctx, g):
        gate, up, s = ctx.saved_tensors
        silu = s * gate
        # the derivative of silu: s + silu (1 - s)
        return torch.addcmul(silu, silu, s, value=-1).add_(s).mul_(up).mul_(g), silu.mul_(g)


class Block(nn.Module):
    def __init__(self, shape, rotary, dropout):
        super().__init__()
        self.dropout = dropout
        self.shape, self.dim, self.rotary = shape, shape.width // shape.heads, rotary
        kv = shape.kv_heads * self.dim
        self.n1, self.n2 = Norm(shape.width), Norm(shape.width)
        self.q = nn.Linear(shape.width, shape.width, bias=False)
        self.k = nn.Linear(shape.width, kv, bias=False)
        self.v = nn.Linear(shape.width, kv, bias=False)
        self.o = nn.Linear(shape.width, shape.width, bias=False)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def forward(self, x, past=None):
        """x (b, n, width); past: this layer's (k, v) of earlier tokens, for replies. Returns x and (k, v) of all."""
        b, n, width = x.shape
        h = self.n1(x)
        heads = lambda y, count: y.view(b, n, count, self.dim).transpose(1, 2)
        q, k, v = heads(self.q(h), self.shape.heads), heads(self.k(h), self.shape.kv_heads), heads(self.v(h), self.shape.kv_heads)
        cos, sin = self.rotary.at(0 if past is None else past[0].shape[2], n, x)
        q, k = Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        x = x + self.drop(self.o(attend(q, k, v).transpose(1, 2).reshape(b, n, width)))
        h = self.n2(x)
        return x + self.drop(self.down(Gated.apply(self.gate(h), self.up(h)))), (k, v)


class WeightedLoss(torch.autograd.Function):
    """Sum over tokens of weight * cross-entropy through the tied output, and each token's cross-entropy.

    A block of tokens at a time: the logits of a block are made, turned into their gradient and dropped.
    """

    @staticmethod
    def forward(ctx, h, emb, y, w):
        dh, demb = torch.empty_like(h), torch.zeros_like(emb, dtype=torch.float32)
        each, block = torch.empty(h.shape[0], dtype=torch.float32, device=h.device), LOSS_BLOCK[h.device.type]
        for i in range(0, h.shape[0], block):
            s = slice(i, i + block)
            p = F.softmax(F.linear(h[s], emb), -1, dtype=torch.float32)
            right = p.gather(1, y[s, None])
            each[s] = -right.clamp(min=1e-30).log().squeeze(1)
            g = p.scatter_(1, y[s, None], right - 1).to(h.dtype)
            weight = w[s, None].to(h.dtype)
            dh[s] = (g @ emb).mul_(weight)
            demb += g.t() @ (h[s] * weight)
        ctx.save_for_backward(dh, demb)
        return (each * w).sum(), each

    @staticmethod
    def backward(ctx, scale, _):
        dh, demb = ctx.saved_tensors
        return dh * scale.to(dh.dtype), (demb * scale).to(dh.dtype), None, None


class Network(nn.Module):
    def __init__(self, shape, dropout=0.0):
        super().__init__()
        rotary = Rotary(shape)
        self.shape = shape
        self.emb = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape, rotary, dropout) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                into_residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * shape.layers) if into_residual else 1))

    def hidden(self, x, past=None):
        h, kept = self.emb(x), []
        for i, block in enumerate(self.blocks):
            h, kv = block(h, None if past is None else past[i])
            kept.append(kv)
        return self.norm(h), kept

    def forward(self, x, y, w):
        """The weighted sum of losses and every token's loss, shape of y."""
        h = self.hidden(x)[0]
        loss, each = WeightedLoss.apply(h.reshape(-1, h.shape[-1]), self.emb.weight, y.reshape(-1), w.reshape(-1))
        return loss, each.view(y.shape)

    @torch.no_grad()
    def step(self, x, past=None):
        """Logits after the last token of each row, and the keys and values to go on from."""
        h, kept = self.hidden(x, past)
        return F.linear(h[:, -1], self.emb.weight).float(), kept
