"""The optimiser: Muon for the matrices of the blocks (momentum, made orthogonal by five Newton-Schulz steps; Jordan et al.
2024, scaled as by Liu et al., arXiv 2502.16982), AdamW for the embedding and the norms. Keeps float32 masters of bfloat16
weights."""
import torch

STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(g):
    """The nearest orthogonal matrices to a stack of matrices, nearly."""
    x = g.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.transpose(-2, -1)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(STEPS):
        s = x @ x.transpose(-2, -1)
        x = A * x + (B * s + C * (s @ s)) @ x
    return (x if wide else x.transpose(-2, -1)).float()


class Optimiser:
    def __init__(self, net, device, muon=True, decay=0.1):
        """net: a Network on its device, in bfloat16 after this call."""
        self.net = net
        self.master = {n: p.detach().float().clone() for n, p in net.named_parameters()}
        net.bfloat16()
        self.muon = [n for n in self.master if muon and n.startswith("blocks.") and self.master[n].dim() == 2]
        self.momentum = {n: torch.zeros_like(self.master[n]) for n in self.muon}
        self.decay = decay
        rest = [n for n in self.master if n not in self.momentum]
        groups = [
            {"params": [self.master[n] for n in rest if self.master[n].dim() == 2], "weight_decay": decay},
            {"params": [self.master[n] for n in rest if self.master[n].dim() == 1], "weight_decay": 0.0},
        ]
        try:
            self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")
        except (TypeError, RuntimeError):  # a PyTorch that has no fused one
            self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))

    @torch.no_grad()
    def step(self, rate, scale):
        """One step at `rate` with the gradients times `scale`, clipped to length 1; the gradients are used up."""
        grads = {n: p.grad.float() * scale for n, p in self.net.named_parameters()}
        length = torch.sqrt(sum(g.square().sum() for g in grads.values()))
        clip = torch.clamp(1.0 / (length + 1e-6), max=1.0)
        for n, p in self.net.named_parameters():
            p.grad = None
            if n not in self.momentum:
                self.master[n].grad = grads[n] * clip
        for g in self.adam.param_groups:
            g["lr"] = rate
        self.adam.step()
        shapes = {}
        for n in self.muon:
            self.momentum[n].mul_(0.95).add_(grads[n], alpha=0.05)
            shapes.setdefault(self.master[n].shape, []).append(n)
        for shape, names in shapes.items():
            stack = torch.stack([0.05 * grads[n] + 0.95 * self.momentum[n] for n in names])
            update = orthogonal(stack) * (0.2 * max(shape) ** 0.5)
            for n, u in zip(names, update):
                self.master[n].mul_(1 - rate * self.decay).add_(u, alpha=-rate)
        for n, p in self.net.named_parameters():
            p.copy_(self.master[n])
        return length

    def state(self):
        return {"master": self.master, "momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, state):
        for n, w in state["master"].items():
            self.master[n].copy_(w)
        for n, w in state.get("momentum", {}).items():
            if n in self.momentum:
                self.momentum[n].copy_(w)
        if state.get("adam"):
            self.adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for n, p in self.net.named_parameters():
                p.copy_(self.master[n])
