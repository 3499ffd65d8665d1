"""Gradients by several processes of one thread each, for a CPU that others work on.

Threads inside operations wait for each other at every one of them, and a core that is taken away for a while stops both. The
processes share the network's weights in memory; each takes whole batches as it gets free and adds up gradients of its own,
and the caller adds those together.
"""
import multiprocessing
import queue
import signal

import torch
import torch.multiprocessing


def losses(net, batch, device, kinds):
    """(weighted loss, for each weight in kinds the sum and the count of the losses of tokens that have it)."""
    x, w = (torch.from_numpy(a).to(device) for a in batch)
    loss, each = net(x[:, :-1], x[:, 1:].contiguous(), w)
    with torch.no_grad():
        marks = [w == kind for kind in kinds]
        return loss, torch.stack([s for m in marks for s in ((each * m).sum(), m.sum())])


def work(net, grads, kinds, tasks, done, together):
    for s in (signal.SIGTERM, signal.SIGINT):  # the caller's to act on
        signal.signal(s, signal.SIG_IGN)
    torch.set_num_threads(1)
    sums = torch.zeros(2 * len(kinds))
    for p, g in zip(net.parameters(), grads):
        p.grad = g
    while True:
        try:
            batch = tasks.get(timeout=5)
        except queue.Empty:
            if not multiprocessing.parent_process().is_alive():
                return
            continue
        if batch is None:  # the step's end; the next one is another's
            done.put(sums.numpy())
            together.wait()
            sums = torch.zeros(2 * len(kinds))
            continue
        loss, part = losses(net, batch, "cpu", kinds)
        loss.backward()
        sums += part


class Workers:
    def __init__(self, net, count, kinds):
        """net: on the CPU, and its weights never replaced, only written, from here on."""
        self.net = net.share_memory()
        spawn = torch.multiprocessing.get_context("spawn")
        self.tasks, self.done, self.together = spawn.Queue(), spawn.Queue(), spawn.Barrier(count)
        self.grads = [[torch.zeros_like(p).share_memory_() for p in net.parameters()] for _ in range(count)]
        self.processes = [
            spawn.Process(target=work, args=(net, g, kinds, self.tasks, self.done, self.together), daemon=True) for g in self.grads]
        for p in self.processes:
            p.start()

    def begin(self, batches):
        for b in sorted(batches, key=lambda b: -b[1].size):  # the last to be waited for are small
            self.tasks.put(b)
        for _ in self.processes:
            self.tasks.put(None)

    def result(self):
        while True:
            try:
                return torch.from_numpy(self.done.get(timeout=5))
            except queue.Empty:
                if not all(p.is_alive() for p in self.processes):
                    raise SystemExit("a process that makes gradients ended")

    def end(self):
        """Waits for what was begun and leaves its gradients in the network; returns the sums of losses()."""
        sums = sum(self.result() for _ in self.processes)
        for p, *grads in zip(self.net.parameters(), *self.grads):
            p.grad = sum(g.float() for g in grads).to(p.dtype)
            for g in grads:
                g.zero_()
        return sums

    def close(self):
        for p in self.processes:
            p.kill()
            p.join()
