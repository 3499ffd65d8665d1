#!/usr/bin/env python3
"""kill -9 in the middle of replies: what a client was told is kept, byte for byte, and no context is damaged.

Several apps talk to one daemon without pause: calls (streamed or not, some slide, some are broken off), forks,
new and deleted contexts. At a random moment, right after some client was told of a turn, or while a chunk file is
being written, the daemon is killed. Then, from a copy of its files, the journal's integrity is checked with SQLite itself; the daemon is
started again, every acknowledged turn, context and deletion is compared, chunk files are whole or absent, and a
context answers as a fork of it does. The next round goes on from there.

Run by meson test, or: LLMSD=build/llmsd tests/crash/test_crash.py [--kills N] [--seed N]"""
import argparse
import http.client
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "api"))
from daemon import Daemon, find_model  # noqa: E402

APPS = ("mail", "notes", "maps")
MOST_CONTEXTS = 6  # of an app
# a budget of little more than one full context, so that each call pushes others out; level 16, so that what comes
# back is exact
OPTIONS = ("--kv-budget", "1700K", "--kv-levels", "16", "--context-length", "512", "--contexts-per-app", "0")
GONE = (OSError, http.client.HTTPException, ValueError)  # what a killed daemon looks like


class Context:
    """What a client knows of one of its contexts. `pending`: the prompt and the text so far of a call of which
    it was not told how it ended."""

    def __init__(self, app, path):
        self.app, self.path = app, path
        self.turns = []
        self.pending = None
        self.deleted = None  # "told" or "asked"


class Client(threading.Thread):
    """One app at work until the daemon goes away. What it is told goes into its contexts before anything
    else."""

    def __init__(self, daemon, app, contexts, seed, told):
        super().__init__()
        self.daemon_, self.app, self.contexts, self.told = daemon, app, contexts, told
        self.random = random.Random(seed)
        self.failure = None

    def run(self):
        try:
            while True:
                self.act()
        except GONE:
            pass
        except BaseException as failure:  # pylint: disable=broad-except
            self.failure = failure

    def live(self):
        return [c for c in self.contexts if c.app == self.app and not c.deleted]

    def act(self):
        live = self.live()
        if not live or (len(live) < MOST_CONTEXTS and self.random.random() < 0.1):
            self.new()
            return
        context = self.random.choice(live)
        action = self.random.random()
        if action < 0.05 and len(live) > 2:
            context.deleted = "asked"
            assert self.daemon_.delete(context.path, app=self.app).status == 200
            context.deleted = "told"
        elif action < 0.12 and len(live) < MOST_CONTEXTS:
            self.fork(context)
        elif action < 0.2:
            self.break_off(context)
        else:
            self.call(context)

    def new(self):
        fields = {}
        if self.random.random() < 0.7:
            fields["system_prompt"] = "You help with %s." % self.app
        self.contexts.append(Context(self.app, self.daemon_.context(self.app, **fields)))

    def fork(self, context):
        answer = self.daemon_.post(context.path + "/fork", {}, app=self.app)
        assert answer.status == 201, answer.text
        copy = Context(self.app, "/v1/contexts/" + answer.json["id"])
        copy.turns = list(context.turns)
        self.contexts.append(copy)

    def request(self):
        words = ["table", "Friday", "weather", "\u20ac 42", "note", "code", "\U0001f600", "music", "bank"]
        prompt = "%s %d: %s?" % (self.random.choice(words), self.random.randrange(1000),
                                 " ".join(self.random.choice(words) for _ in range(self.random.randrange(1, 40))))
        return prompt, {"temperature": 1.5, "seed": self.random.randrange(1 << 30),
                        "max_tokens": self.random.choice((1, 8, 40, 150))}

    def call(self, context):
        prompt, fields = self.request()
        if self.random.random() < 0.3:
            context.pending = (prompt, "")
            answer = self.daemon_.call(context.path, prompt, app=self.app, **fields)
            assert answer.status == 200, answer.text
            self.acknowledged(context, prompt, answer.json)
            return
        context.pending = (prompt, "")
        stream = self.daemon_.stream(context.path, prompt, app=self.app, **fields)
        text, last = "", None
        for event in stream.events():
            if event == "[DONE]":
                break
            last = json.loads(event)
            if last["object"] == "call.piece":
                text += last["text"]
                context.pending = (prompt, text)
            elif last["object"] == "call":
                assert last["reply"] == text, (last["reply"], text)
                self.acknowledged(context, prompt, last)
        stream.close()
        if context.pending:  # the stream ended and nobody said how: killed
            raise OSError("gone")

    def acknowledged(self, context, prompt, call):
        assert call["turn"] == len(context.turns), (call, len(context.turns))
        context.turns.append((prompt, call["reply"]))
        context.pending = None
        self.told.set()

    def break_off(self, context):
        """A client that goes away after the first piece. Its turn may have been journalled before the daemon
        noticed, so this is done on a fork that is deleted afterwards."""
        answer = self.daemon_.post(context.path + "/fork", {}, app=self.app)
        assert answer.status == 201, answer.text
        copy = Context(self.app, "/v1/contexts/" + answer.json["id"])
        copy.deleted = "asked"
        self.contexts.append(copy)
        stream = self.daemon_.stream(copy.path, "Tell me all.", app=self.app, max_tokens=200, temperature=1.5)
        next(stream.events(), None)
        stream.close()
        assert self.daemon_.delete(copy.path, app=self.app).status == 200
        copy.deleted = "told"


def check_files(daemon):
    """The journal as the crash left it, read from a copy so that the daemon recovers its own."""
    copy = tempfile.mkdtemp(prefix="llms-crash-")
    try:
        for name in os.listdir(daemon.state):
            if name.startswith("journal.db"):
                shutil.copy(os.path.join(daemon.state, name), copy)
        db = sqlite3.connect(os.path.join(copy, "journal.db"))
        found = db.execute("PRAGMA integrity_check").fetchall()
        assert found == [("ok",)], found
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        wrong = db.execute("SELECT id FROM contexts WHERE turn_count != (SELECT count(*) FROM turns WHERE context = number)"
                           " OR turn_count != (SELECT coalesce(max(ordinal) + 1, 0) FROM turns WHERE context = number)")
        assert wrong.fetchall() == []
        db.close()
    finally:
        shutil.rmtree(copy)


def chunk_files(daemon):
    found = []
    for path, _, names in os.walk(os.path.join(daemon.state, "chunks")):
        found += [os.path.join(path, name) for name in names if ".kv" in name]
    return found


def check_chunks(daemon, contexts):
    """After a restart: nothing unfinished is left, what was published was whole, and it belongs to a context that
    is: of those the clients know, or made right before the crash and never told of (a fork has files at once)."""
    assert "damaged chunk file" not in daemon.log() and "does not match its checksum" not in daemon.log()
    ids = {c["id"] for app in APPS for c in daemon.get("/v1/contexts", app=app).json["data"]}
    assert not ids & {c.path.rsplit("/", 1)[1] for c in contexts if c.deleted == "told"}
    for path in chunk_files(daemon):
        assert path.endswith(".kv"), path
        assert os.path.basename(os.path.dirname(path)) in ids, path


def check_context(daemon, context):
    """Compares what the daemon has with what was told; takes over what was done and not told. True if that was
    a whole turn."""
    shown = daemon.get(context.path, app=context.app)
    if context.deleted:
        assert shown.status == 404 or context.deleted == "asked", context.path
        if shown.status != 404:
            assert daemon.delete(context.path, app=context.app).status == 200
        context.deleted = "told"
        return False
    assert shown.status == 200, (context.path, shown.text)
    answer = daemon.get(context.path + "/turns", app=context.app)
    assert answer.status == 200, answer.text
    turns = [(t["prompt"], t["reply"]) for t in answer.json["data"]]
    assert [t["turn"] for t in answer.json["data"]] == list(range(len(turns)))
    assert shown.json["turns"] == len(turns) and shown.json["tokens"] <= 512
    assert turns[:len(context.turns)] == context.turns, "an acknowledged turn of %s is lost" % context.path
    more = turns[len(context.turns):]
    if more:
        assert len(more) == 1 and context.pending, more
        prompt, text = context.pending
        assert more[0][0] == prompt and more[0][1].startswith(text), (more, context.pending)
    context.turns, context.pending = turns, None
    return bool(more)


def check_answers(daemon, context):
    """It goes on: its KV rebuilt from the journal answers as that of a fork does, which shares it or not."""
    answer = daemon.post(context.path + "/fork", {}, app=context.app)
    assert answer.status == 201, answer.text
    copy = "/v1/contexts/" + answer.json["id"]
    fields = {"temperature": 0, "max_tokens": 12}
    first = daemon.call(copy, "What did I say?", app=context.app, **fields)
    second = daemon.call(context.path, "What did I say?", app=context.app, **fields)
    assert first.status == second.status == 200, (first.text, second.text)
    assert first.json["reply"] == second.json["reply"], (first.text, second.text)
    context.turns.append(("What did I say?", second.json["reply"]))
    assert daemon.delete(copy, app=context.app).status == 200


def talk_and_kill(daemon, contexts, dice):
    """True if the kill met at least one call that was going on."""
    told = threading.Event()
    clients = [Client(daemon, app, contexts, dice.random(), told) for app in APPS]
    for client in clients:
        client.start()
    if dice.random() < 0.3:  # right after an acknowledgement
        for _ in range(dice.randrange(1, 8)):
            told.clear()
            told.wait(5)
    elif dice.random() < 0.5:
        time.sleep(dice.uniform(0.02, 0.6))
    else:  # a swap-out has begun and not ended
        end = time.monotonic() + 2
        while time.monotonic() < end and not any(p.endswith(".tmp") for p in chunk_files(daemon)):
            pass
    daemon.process.kill()
    daemon.process.wait()
    for client in clients:
        client.join()
    for client in clients:
        if client.failure:
            raise client.failure
    return any(c.pending for c in contexts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=int(os.environ.get("LLMS_KILLS", "200")))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    find_model()
    dice = random.Random(options.seed)
    contexts, met, unsaid, unfinished, start = [], 0, 0, 0, time.monotonic()
    daemon = Daemon(*OPTIONS)
    directory = daemon.directory
    try:
        for kill in range(options.kills):
            met += talk_and_kill(daemon, contexts, dice)
            check_files(daemon)
            unfinished += any(path.endswith(".tmp") for path in chunk_files(daemon))
            daemon = Daemon(*OPTIONS, directory=directory)
            check_chunks(daemon, contexts)
            for context in contexts:
                unsaid += check_context(daemon, context)
            contexts = [c for c in contexts if not c.deleted]
            if contexts:
                check_answers(daemon, dice.choice(contexts))
            told = sum(len(c.turns) for c in contexts)
            print("kill %d: %d contexts, %d turns" % (kill + 1, len(contexts), told), flush=True)
        assert met > options.kills // 3, "only %d of %d kills met a call" % (met, options.kills)
        assert unfinished > options.kills // 20, "only %d kills met a swap-out" % unfinished
        assert daemon.stop()[0] == 0
        print("%d kills, %d in the middle of calls, %d of swap-outs, %d turns were done and not told, %.0f s"
              % (options.kills, met, unfinished, unsaid, time.monotonic() - start))
    except BaseException:
        print("the daemon's log:\n" + daemon.log()[-4000:], file=sys.stderr)
        raise
    finally:
        daemon.remove()


if __name__ == "__main__":
    main()
