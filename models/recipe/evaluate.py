#!/usr/bin/env python3
"""Ask a model what its held-out conversations (questions.py) said: exact recall by kind and distance, refusals, perplexity.

A reply is made greedily after the whole conversation and the question, each question on its own; it is right if it
holds the answer with no letter or digit beside it. Refusals: things never said are asked for; right is to say so.
"""
import argparse
import json
import math
import random
import re
import time

import torch
import torch.nn.functional as F

import gguf
import dialogues as base
from network import Network, Shape
from tokenizer import Tokenizer

EDGES = (250, 500, 1000, 2000, 4096)
REFUSAL = re.compile(r"(have not|haven't|did not|didn't|never) (told|tell|mention|said|say|given|give)", re.I)


class Asker:
    def __init__(self, net, vocab):
        self.net, self.device = net, next(net.parameters()).device
        self.tok = Tokenizer(vocab)

    def tensor(self, ids):
        return torch.tensor([ids], device=self.device)

    @torch.no_grad()
    def read(self, ids):
        """(sum of losses after the first token, keys and values) of a conversation."""
        x = self.tensor(ids)
        h, past = self.net.hidden(x)
        loss = 0.0
        for i in range(0, len(ids) - 1, 512):
            part = h[0, i : min(i + 512, len(ids) - 1)]
            logits = F.linear(part, self.net.emb.weight).float()
            loss += F.cross_entropy(logits, x[0, i + 1 : i + 1 + part.shape[0]], reduction="sum").item()
        return loss, past

    def reply(self, past, question, most=48):
        ids = self.tok.turn("user", question) + [self.tok.id["<|im_start|>"]] + self.tok.encode("assistant\n")
        out = []
        logits, past = self.net.step(self.tensor(ids), past)
        while len(out) < most:
            token = int(logits.argmax())
            if token in (self.tok.id["<|im_end|>"], self.tok.id["<|endoftext|>"]):
                break
            out.append(token)
            logits, past = self.net.step(self.tensor([token]), past)
        return self.tok.decode(out)


def holds(reply, answer):
    return re.search(r"(?<!\w)" + re.escape(answer.lower()) + r"(?!\w)", reply.lower()) is not None


def never_said(case, r):
    """Questions for things, and for a task, that the conversation never had."""
    said = " ".join(t["content"] for t in case["turns"]).lower()
    things = [t for t in base.THINGS if t not in said]
    out = [r.choice(base.ASK).format(t=t) for t in r.sample(things, 2)]
    absent = [d for d in sorted(set(base.DOMAIN_WORDS.values())) if d not in said]
    slots = {"flight": "origin", "hotel": "hotel name", "bus": "departure time", "bank": "amount", "restaurant": "cuisine", "rental car": "pickup city",
        "weather": "city", "alarm": "time", "apartment": "area", "event": "event name", "train": "destination"}
    absent = [d for d in absent if d in slots]
    if absent:
        d = r.choice(absent)
        out.append(r.choice(base.RECALL_Q).format(slot=slots[d], dom=d))
    return out


def evaluate(net, vocab, path, cases, show=0):
    """A dict of figures: recall by kind and distance as [right, asked], refusals, perplexity."""
    asker, r, start = Asker(net, vocab), random.Random(5), time.time()
    counts, loss, tokens, refused, shown = {}, 0.0, 0, [0, 0], 0
    for line in list(open(path))[:cases]:
        case = json.loads(line)
        ids = [asker.tok.id["<|endoftext|>"]]
        for t in case["turns"]:
            ids += asker.tok.turn(t["role"], t["content"])
        each, past = asker.read(ids)
        loss, tokens = loss + each, tokens + len(ids) - 1
        for q in case["queries"]:
            reply = asker.reply(past, q["question"])
            right = holds(reply, q["answer"])
            edge = next(e for e in EDGES if q["distance_tokens"] <= e)
            for key in (q["kind"], f"{q['kind']} to {edge}") + ((q["kind"] + " beyond 1000",) if edge > 1000 else ()):
                c = counts.setdefault(key, [0, 0])
                c[0], c[1] = c[0] + right, c[1] + 1
            if shown < show:
                shown += 1
                print(f"  {'+' if right else '-'} {q['distance_tokens']:5d} {q['question']} | {q['answer']} | {reply}")
        for question in never_said(case, r):
            reply = asker.reply(past, question)
            refused[0], refused[1] = refused[0] + bool(REFUSAL.search(reply)), refused[1] + 1
            if shown < show:
                shown += 1
                print(f"  ? {question} | {reply}")
    return {**dict(sorted(counts.items())), "refused": refused, "perplexity": round(math.exp(loss / tokens), 3), "seconds": round(time.time() - start)}


def line(figures):
    part = lambda v: f"{v[0]}/{v[1]} ({100 * v[0] / max(1, v[1]):.0f} %)" if isinstance(v, list) else str(v)
    return "; ".join(f"{k} {part(v)}" for k, v in figures.items())


def load_checkpoint(path):
    saved = torch.load(path, map_location="cpu")
    net = Network(Shape(**saved["shape"]))
    net.load_state_dict(saved["optimiser"]["master"])
    return net


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("model", help="GGUF in F16, or a checkpoint of train")
    a.add_argument("--vocab", required=True)
    a.add_argument("--eval", required=True, help="cases of questions.py")
    a.add_argument("--cases", type=int, default=120)
    a.add_argument("--show", type=int, default=0, help="replies to print")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--float32", action="store_true", help="compute in float32 (slow on a CPU)")
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = (load_checkpoint if a.model.endswith(".pt") else gguf.load)(a.model).to(device)
    net = net if a.float32 else net.bfloat16()
    for key, value in evaluate(net, json.load(open(a.vocab)), a.eval, a.cases, a.show).items():
        print(line({key: value}))


if __name__ == "__main__":
    main()
