"""Batches of whole sessions of like lengths, made here or ahead of time by other processes.

Batch: token numbers (rows, n + 1) int64 and the loss's weights (rows, n) float32, 0 where a shorter row was filled up.
A pool's content depends on its number, the seed and the stage alone.
"""
import collections
import concurrent.futures
import multiprocessing

import numpy as np

import sessions

material = None  # of this process


def load(source, vocab, value_weight):
    global material
    sessions.set_weights(value_weight)
    material = sessions.Material(source, vocab)


def draw(kinds, context, tokens, r):
    """Sessions of `tokens` together. kinds: [(share, kind of session, shortest, longest)], lengths spread evenly in their logarithm."""
    shares, made, total = np.array([k[0] for k in kinds]), [], 0
    while total < tokens:
        _, kind, low, high = kinds[r.choice(len(kinds), p=shares / shares.sum())]
        length = int(np.exp(r.uniform(np.log(low), np.log(high))))
        ids, weights = sessions.session(material, int(r.integers(1 << 62)), length, kind)
        made.append((ids[: context + 1], weights[: context + 1]))
        total += len(ids)
    return made


def stack(rows, width):
    ids, weights = np.zeros((len(rows), width + 1), np.int64), np.zeros((len(rows), width), np.float32)
    for i, (a, w) in enumerate(rows):
        ids[i, : len(a)], weights[i, : len(a) - 1] = a, w[1:]
    return ids, weights


def make_pool(preset, stage, seed):
    """Batches of at most preset["micro"] tokens each, preset["pool"] together, in random order."""
    r = np.random.default_rng(seed)
    unit, rows, batches = preset["round"], [], []
    width = lambda s: -(-(len(s[0]) - 1) // unit) * unit
    for s in sorted(draw(stage["kinds"], preset["shape"].context, preset["pool"], r), key=lambda s: len(s[0])):
        if rows and (len(rows) + 1) * width(s) > preset["micro"]:
            batches.append(stack(rows, width(rows[-1])))
            rows = []
        rows.append(s)
    batches.append(stack(rows, width(rows[-1])))
    r.shuffle(batches)
    return batches


class Feed:
    def __init__(self, preset, source, workers, seed, first):
        """source: arguments of load(); workers: processes, 0 for none; first: number of the first pool."""
        self.preset, self.workers, self.seed, self.next = preset, workers, seed, first
        self.ready, self.waiting = [], collections.deque()
        if workers:
            spawn = multiprocessing.get_context("spawn")
            self.processes = concurrent.futures.ProcessPoolExecutor(workers, spawn, load, source)
        else:
            load(*source)

    def batch(self, stage):
        if not self.ready and not self.workers:
            self.ready = make_pool(self.preset, stage, [self.seed, self.next])
            self.next += 1
        elif not self.ready:
            while len(self.waiting) < 2 * self.workers:
                self.waiting.append(self.processes.submit(make_pool, self.preset, stage, [self.seed, self.next]))
                self.next += 1
            self.ready = self.waiting.popleft().result()
        return self.ready.pop()

    def close(self):
        if self.workers:
            self.processes.shutdown(cancel_futures=True)
