#!/usr/bin/env python3
"""The tokenizer: byte-level BPE with Qwen2's rule for splitting words (every digit is a token of its own).

tokenizer.py --source SOURCE --out vocab.json

trains it anew on sessions made from the dialogues; models/vocab.json is what it wrote.
"""
import argparse
import json
import random
from collections import Counter, defaultdict

import regex

VOCAB = 4096
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PRE = regex.compile(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bytes_to_unicode():
    """The printable character that stands for each byte in GPT-2's vocabularies."""
    known = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in known]
    return {**{b: chr(b) for b in known}, **{b: chr(256 + i) for i, b in enumerate(others)}}


B2U = bytes_to_unicode()
U2B = {c: b for b, c in B2U.items()}


class Tokenizer:
    """Text to token numbers and back; words and whole texts seen before are looked up."""

    def __init__(self, vocab):
        self.tokens = vocab["tokens"]
        self.id = {t: i for i, t in enumerate(self.tokens)}
        self.rank = {tuple(m): i for i, m in enumerate(vocab["merges"])}
        self.words, self.texts, self.heads = {}, {}, {}
        self.end = [self.id["<|im_end|>"]] + self.encode("\n")

    def word(self, w):
        if w in self.words:
            return self.words[w]
        s = [B2U[b] for b in w.encode()]
        while len(s) > 1:
            best = min(range(len(s) - 1), key=lambda i: self.rank.get((s[i], s[i + 1]), 1 << 30))
            if (s[best], s[best + 1]) not in self.rank:
                break
            s[best : best + 2] = [s[best] + s[best + 1]]
        r = self.words[w] = [self.id[x] for x in s]
        return r

    def encode(self, text):
        return [i for w in PRE.findall(text) for i in self.word(w)]

    def encode_once(self, text):
        """encode() for a text that comes again and again."""
        ids = self.texts.get(text)
        if ids is None:
            ids = self.encode(text)
            if len(self.texts) < 400000:
                self.texts[text] = ids
        return ids

    def head(self, role):
        """What comes before a turn's text; `end` comes after it."""
        if role not in self.heads:
            self.heads[role] = [self.id["<|im_start|>"]] + self.encode(role + "\n")
        return self.heads[role]

    def turn(self, role, text):
        return [self.id["<|im_start|>"]] + self.encode(role + "\n" + text) + self.end

    def decode(self, ids):
        text = "".join(self.tokens[i] for i in ids if self.tokens[i] not in SPECIALS)
        return bytes(U2B[c] for c in text).decode("utf-8", "replace")


def train(texts, merges_wanted):
    """The merges of byte pairs, most frequent first; ties by the pair itself."""
    counts = Counter()
    for t in texts:
        for w in PRE.findall(t):
            counts["".join(B2U[b] for b in w.encode())] += 1
    words = [[list(w), c] for w, c in counts.items()]
    pairs, where = Counter(), defaultdict(set)
    for i, (w, c) in enumerate(words):
        for p in zip(w, w[1:]):
            pairs[p] += c
            where[p].add(i)
    merges = []
    while len(merges) < merges_wanted:
        (a, b), c = max(pairs.items(), key=lambda kv: (kv[1], kv[0]))
        if c < 2:
            break
        merges.append((a, b))
        for i in list(where[(a, b)]):
            merge(words[i], i, a, b, pairs, where)
    return merges


def merge(entry, i, a, b, pairs, where):
    """One word with a and b made one, its pairs counted anew."""
    w, c = entry
    for p in zip(w, w[1:]):
        pairs[p] -= c
        if pairs[p] <= 0:
            del pairs[p]
        where[p].discard(i)
    j, n = 0, []
    while j < len(w):
        joined = j + 1 < len(w) and w[j] == a and w[j + 1] == b
        n.append(a + b if joined else w[j])
        j += 2 if joined else 1
    entry[0] = n
    for p in zip(n, n[1:]):
        pairs[p] += c
        where[p].add(i)


def main():
    import dialogues

    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--source", required=True, help="folder with train.jsonl.xz")
    a.add_argument("--out", required=True, help="vocab.json to write")
    a = a.parse_args()
    r, known = random.Random(1), dialogues.load(a.source, "train")
    sample = ["\n" + role + "\n" + t for c in (dialogues.sample(r, known, 60) for _ in range(4000)) for role, t in c]
    merges = train(sample, VOCAB - 256 - len(SPECIALS))
    tokens = [B2U[b] for b in range(256)] + [x + y for x, y in merges] + SPECIALS
    json.dump({"tokens": tokens, "merges": merges}, open(a.out, "w"), ensure_ascii=False)


if __name__ == "__main__":
    main()
