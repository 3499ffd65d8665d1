#!/usr/bin/env python3
"""llmsd's HTTP interface, on one daemon with the bundled model: routes, streams, errors, callers, many at once.
How it starts and stops is in test_lifecycle.py. Run by meson test, or: LLMSD=build/llmsd tests/api/test_daemon.py"""
import concurrent.futures
import http.client
import json
import os
import socket
import stat
import threading
import time
import unittest

from daemon import PATIENCE_S, Answer, Daemon

STRESSED = "LLMS_STRESS" in os.environ  # everything leaves memory after each call
LONG = {"temperature": 10, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 21}  # noise, which seldom comes to an end
GREEDY = {"temperature": 0, "max_tokens": 24}
NOBODY = "/v1/contexts/ctx_000000000000000000000000"


def setUpModule():
    global d
    d = Daemon("--listen", "tcp:127.0.0.1:0", "--kv-budget", "64M", "--contexts-per-app", "8")


def tearDownModule():
    status, _ = d.stop()
    log = d.log()
    d.remove()
    assert status == 0, "llmsd ended with %d:\n%s" % (status, log)
    assert "Sanitizer" not in log, log


class Case(unittest.TestCase):
    longMessage = True

    def check(self, answer, status, code=None):
        self.assertIsInstance(answer, Answer)
        self.assertEqual(answer.status, status, answer.text)
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        if status >= 400 and code != "loading":
            error = answer.json["error"]
            self.assertEqual(sorted(error), ["code", "message", "type"])
            self.assertNotIn("\n", error["message"])
            self.assertTrue(error["type"].endswith("_error"))
            self.assertEqual(error["code"], code, answer.text)
        return answer.json

    def fresh(self, **fields):
        """A context of an app of this test's own, so that no quota is shared."""
        self.app = self.id().rsplit(".", 1)[1]
        context = d.context(app=self.app, **fields)
        self.addCleanup(d.delete, context, app=self.app)
        return context

    def eventually(self, what, message):
        end = time.monotonic() + PATIENCE_S
        while not what():
            self.assertLess(time.monotonic(), end, message)
            time.sleep(0.02)


class Routes(Case):
    def test_health(self):
        self.assertEqual(self.check(d.get("/health"), 200), {"status": "ok"})

    def test_status(self):
        status = self.check(d.get("/v1/status"), 200)
        self.assertEqual(status["model"]["architecture"], "llama")
        self.assertEqual(status["model"]["type"], "Q8_0")
        for key in ("name", "parameters", "weights_bytes", "context_length"):
            self.assertTrue(status["model"][key], key)
        self.assertEqual(status["kv"]["budget_bytes"], 64 << 20)
        self.assertEqual(status["kv"]["allowed_bytes"], 64 << 20)
        self.assertIs(status["kv"]["pressure"], False)
        self.assertEqual((status["kv"]["policy"], status["kv"]["evict"]), ("llms", "cost"))
        self.assertEqual((status["kv"]["level"], status["kv"]["levels"]), (8, [8, 4, 3, 2]))
        self.assertEqual(status["kv"]["ratio"], 0.5)
        self.assertGreaterEqual(status["kv"]["stored_bytes"], 0)
        self.assertLessEqual(status["kv"]["resident_bytes"], 64 << 20)
        self.assertEqual(status["contexts"]["per_app_limit"], 8)
        self.assertEqual(sorted(status["calls"]), ["cancelled", "failed", "running", "total", "waiting"])
        self.assertEqual(sorted(status["tokens"]), ["prompt", "recomputed", "reply"])
        self.assertGreaterEqual(status["threads"], 1)
        self.assertTrue(status["isa"] and status["version"])
        self.assertGreater(d.get("/v1/status").json["uptime_ms"] + 1, status["uptime_ms"])

    def test_metrics(self):
        context = self.fresh()
        before = self.metrics()
        reply = self.check(d.call(context, app=self.app, **GREEDY), 200)
        after = self.metrics()
        self.assertEqual(after["llms_kv_budget_bytes"], 64 << 20)
        self.assertEqual(after["llms_calls_total"], before["llms_calls_total"] + 1)
        self.assertEqual(after["llms_reply_tokens_total"],
                         before["llms_reply_tokens_total"] + reply["usage"]["completion_tokens"])
        self.assertEqual(after["llms_prompt_tokens_total"],
                         before["llms_prompt_tokens_total"] + reply["usage"]["prompt_tokens"])
        self.assertGreater(after["llms_first_token_seconds_total"], before["llms_first_token_seconds_total"])

        for name in ("llms_chunks_resident_total", "llms_chunks_loaded_total", "llms_chunks_recomputed_total",
                     "llms_kv_stored_bytes", "llms_stall_seconds_total", "llms_switch_seconds_total"):
            self.assertGreaterEqual(after[name], 0)
        self.assertEqual(after["llms_kv_allowed_bytes"], 64 << 20)

    def test_budget(self):
        before = self.check(d.get("/v1/status"), 200)["kv"]
        self.addCleanup(d.post, "/v1/budget", {"kv_budget": 64 << 20})
        for given, meant in ((32 << 20, 32 << 20), ("40M", 40 << 20), ("1.5G", 3 << 29)):
            kv = self.check(d.post("/v1/budget", {"kv_budget": given}), 200)
            self.assertEqual(sorted(kv), sorted(before))
            self.assertEqual((kv["budget_bytes"], kv["allowed_bytes"]), (meant, meant))
            self.assertEqual(d.get("/v1/status").json["kv"]["budget_bytes"], meant)
        for wrong in ({}, {"kv_budget": "lots"}, {"kv_budget": -1}, {"kv_budget": 1.5}, {"kv_budget": True},
                      {"kv_budget": 1 << 25, "x": 1}):
            self.check(d.post("/v1/budget", wrong), 400, "invalid_body")
        self.check(d.post("/v1/budget", {"kv_budget": 100}), 400, "invalid_value")
        self.check(d.get("/v1/budget"), 405, "method_not_allowed")
        self.assertEqual(d.get("/v1/status").json["kv"]["budget_bytes"], 3 << 29)

    @unittest.skipUnless(os.geteuid() == 0, "only root can act as another user")
    def test_budget_of_another_user(self):
        os.chmod(d.directory, 0o711)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                answer = d.post("/v1/budget", {"kv_budget": 32 << 20})
                os.write(writing, json.dumps([answer.status, answer.code]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as told:
            self.assertEqual(json.load(told), [403, "permission_denied"])
        self.assertEqual(d.get("/v1/status").json["kv"]["budget_bytes"], 64 << 20)

    @unittest.skipIf(STRESSED, "nothing stays in memory")
    def test_lowered_budget(self):
        """Within a second what is over it has left memory, and the context answers on."""
        context = self.fresh(system_prompt="Be brief. " * 100)
        self.check(d.call(context, app=self.app, **GREEDY), 200)
        held = d.get(context, app=self.app).json["bytes_resident"]
        self.addCleanup(d.post, "/v1/budget", {"kv_budget": 64 << 20})
        start = time.monotonic()
        self.check(d.post("/v1/budget", {"kv_budget": held // 2}), 200)
        self.eventually(lambda: d.get("/v1/status").json["kv"]["resident_bytes"] <= held // 2, "nothing left memory")
        self.assertLess(time.monotonic() - start, PATIENCE_S / 10)
        self.check(d.post("/v1/budget", {"kv_budget": 64 << 20}), 200)
        self.check(d.call(context, "Again.", app=self.app, **GREEDY), 200)

    def metrics(self):
        answer = d.get("/metrics")
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"))
        values, typed = {}, set()
        for line in answer.text.splitlines():
            words = line.split()
            if words[:2] == ["#", "TYPE"]:
                typed.add(words[2])
                self.assertIn(words[3], ("counter", "gauge"))
            elif words[0] != "#":
                values[words[0]] = float(words[1])
                self.assertIn(words[0].split("{")[0], typed, "a value before its type")
        self.assertTrue(all(name.startswith("llms_") for name in values))
        return values

    def test_models(self):
        models = self.check(d.get("/v1/models"), 200)
        self.assertEqual(models["object"], "list")
        (model,) = models["data"]
        status = d.get("/v1/status").json["model"]
        self.assertEqual(model["id"], status["name"])
        self.assertEqual((model["object"], model["owned_by"]), ("model", "llms"))
        self.assertLess(abs(model["created"] - time.time()), 3600)
        for key in ("architecture", "type", "parameters", "context_length"):
            self.assertEqual(model[key], status[key], key)

    def test_tokens(self):
        for text in ("", "Hello, world!", "caf\u00e9 \u4e2d\u6587 \U0001f680 \n\t  x", "<|im_start|>"):
            ids = self.check(d.post("/v1/tokenize", {"text": text}), 200)["tokens"]
            self.assertTrue(all(isinstance(i, int) for i in ids))
            self.assertEqual(self.check(d.post("/v1/detokenize", {"tokens": ids}), 200)["text"], text)
        plain = d.post("/v1/tokenize", {"text": "<|im_end|>"}).json["tokens"]
        special = d.post("/v1/tokenize", {"text": "<|im_end|>", "special": True}).json["tokens"]
        self.assertGreaterEqual(len(plain), len(special))
        self.check(d.post("/v1/tokenize", {}), 400, "invalid_body")
        self.check(d.post("/v1/detokenize", {"tokens": [1 << 40]}), 400, "invalid_body")
        self.check(d.post("/v1/detokenize", {"tokens": [-1]}), 400, "invalid_body")

    def test_context_life(self):
        context = self.fresh(name="caf\u00e9", system_prompt="Be brief.")
        shown = self.check(d.get(context, app=self.app), 200)
        self.assertEqual(shown["object"], "context")
        self.assertEqual((shown["name"], shown["system_prompt"]), ("caf\u00e9", "Be brief."))
        self.assertEqual(shown["app"], self.app)
        self.assertEqual((shown["turns"], shown["window_turn"], shown["busy"]), (0, 0, False))
        self.assertLess(abs(shown["created_ms"] / 1000 - time.time()), 600)
        reply = self.check(d.call(context, app=self.app, **GREEDY), 200)
        after = self.check(d.get(context, app=self.app), 200)
        self.assertEqual(after["turns"], 1)
        self.assertEqual(after["tokens"], reply["usage"]["context_tokens"])
        if not STRESSED:
            self.assertGreater(after["tokens_resident"], 0)
            self.assertGreater(after["bytes_resident"], 0)
        chunks = after["chunks"]
        self.assertEqual(chunks["resident"], sum(chunks["level%d" % bits] for bits in (16, 8, 4, 3, 2)))
        self.assertEqual(sorted(chunks), ["level16", "level2", "level3", "level4", "level8", "missing", "resident", "stored"])
        self.assertEqual(chunks["resident"] + chunks["stored"] + chunks["missing"], (after["tokens"] + 15) // 16)
        listed = self.check(d.get("/v1/contexts", app=self.app), 200)
        self.assertEqual([c["id"] for c in listed["data"]], [shown["id"]])
        gone = self.check(d.delete(context, app=self.app), 200)
        self.assertEqual(gone, {"id": shown["id"], "object": "context.deleted", "deleted": True})
        self.check(d.get(context, app=self.app), 404, "context_not_found")
        self.check(d.delete(context, app=self.app), 404, "context_not_found")
        self.assertEqual(d.get("/v1/contexts", app=self.app).json["data"], [])

    def test_fork_and_prepare(self):
        context = self.fresh(name="first")
        d.call(context, "My name is Ada.", app=self.app, **GREEDY)
        prepared = self.check(d.post(context + "/prepare", app=self.app), 200)
        self.assertEqual(prepared["object"], "context.prepared")
        self.assertIn("switch_ms", prepared["timings"])
        fork = self.check(d.post(context + "/fork", {"name": "second"}, app=self.app), 201)
        self.assertEqual((fork["name"], fork["turns"]), ("second", 1))
        copy = "/v1/contexts/" + fork["id"]
        self.addCleanup(d.delete, copy, app=self.app)
        one = self.check(d.call(context, "What is my name?", app=self.app, **GREEDY), 200)
        two = self.check(d.call(copy, "What is my name?", app=self.app, **GREEDY), 200)
        self.assertEqual(one["reply"], two["reply"])
        self.assertEqual(d.get(context, app=self.app).json["turns"], 2)
        unnamed = self.check(d.post(context + "/fork", app=self.app), 201)
        self.assertEqual(unnamed["name"], "first")
        d.delete("/v1/contexts/" + unnamed["id"], app=self.app)
        self.check(d.post(context + "/fork", {"system_prompt": "x"}, app=self.app), 400, "invalid_body")
        self.check(d.post(context + "/prepare", {"x": 1}, app=self.app), 400, "invalid_body")
        self.check(d.post(NOBODY + "/fork", app=self.app), 404, "context_not_found")
        self.check(d.post(NOBODY + "/prepare", app=self.app), 404, "context_not_found")

    def test_keep_alive(self):
        connection = d.connect()
        for _ in range(3):
            self.check(d.get("/health", connection=connection), 200)
            self.check(d.get("/nowhere", connection=connection), 404, "route_not_found")
            self.check(d.post("/v1/tokenize", "{", connection=connection), 400, "invalid_body")
        connection.close()


class Calls(Case):
    def test_call(self):
        context = self.fresh()
        reply = self.check(d.call(context, "Say hello.", app=self.app, max_tokens=8), 200)
        self.assertEqual(reply["object"], "call")
        self.assertEqual(reply["context"], context.rsplit("/", 1)[1])
        self.assertEqual(reply["turn"], 0)
        self.assertIn(reply["finish"], ("end", "length"))
        self.assertTrue(0 <= reply["seed"] < 1 << 53)
        usage, timings = reply["usage"], reply["timings"]
        self.assertGreater(usage["prompt_tokens"], 0)
        self.assertTrue(1 <= usage["completion_tokens"] <= 9, usage)
        self.assertGreaterEqual(usage["context_tokens"], usage["prompt_tokens"] + usage["completion_tokens"] - 1)
        self.assertEqual((usage["cached_tokens"], usage["turns_dropped"]), (0, 0))
        for key in ("queue_ms", "switch_ms", "stall_ms", "prompt_ms", "ttft_ms", "generate_ms", "total_ms"):
            self.assertGreaterEqual(timings[key], 0, key)
        self.assertGreaterEqual(timings["total_ms"], timings["ttft_ms"])
        self.assertGreater(timings["prompt_tokens_per_s"], 0)
        for key in ("chunks_resident", "chunks_loaded", "chunks_recomputed", "generate_tokens_per_s"):
            self.assertGreaterEqual(timings[key], 0, key)
        second = self.check(d.call(context, "Again.", app=self.app, max_tokens=8), 200)
        self.assertEqual(second["turn"], 1)
        self.assertGreater(second["usage"]["cached_tokens"], 0)
        turns = self.check(d.get(context + "/turns", app=self.app), 200)["data"]
        self.assertEqual([(t["turn"], t["prompt"], t["reply"]) for t in turns],
                         [(0, "Say hello.", reply["reply"]), (1, "Again.", second["reply"])])
        self.assertTrue(all(t["prompt_tokens"] > 0 and t["reply_tokens"] > 0 for t in turns))

    def test_stream(self):
        context = self.fresh()
        stream = d.stream(context, "Tell me a story.", app=self.app, max_tokens=40)
        self.assertEqual(stream.headers["Content-Type"], "text/event-stream")
        self.assertEqual(stream.headers["Cache-Control"], "no-store")
        pieces, last, done = stream.finish()
        self.assertTrue(done, "no [DONE]")
        self.assertEqual(last["object"], "call")
        self.assertEqual(pieces, last["reply"])
        self.assertEqual(d.get(context + "/turns", app=self.app).json["data"][0]["reply"], pieces)

    def test_same_seed_same_reply(self):
        replies = set()
        for _ in range(2):
            context = self.fresh()
            replies.add(d.call(context, app=self.app, seed=11, temperature=1.5, max_tokens=16).json["reply"])
        self.assertEqual(len(replies), 1)
        context = self.fresh()
        first = d.call(context, app=self.app, max_tokens=16).json
        again = d.call(self.fresh(), app=self.app, max_tokens=16, seed=first["seed"]).json
        self.assertEqual(first["reply"], again["reply"], "the seed a reply names does not give it again")

    def test_stop_and_length(self):
        reply = self.check(d.call(self.fresh(), app=self.app, max_tokens=6, **LONG), 200)
        self.assertEqual(reply["finish"], "length")
        self.assertEqual(reply["usage"]["completion_tokens"], 6)
        whole = d.call(self.fresh(), "Tell me about cats.", app=self.app, **GREEDY).json["reply"]
        self.assertGreater(len(whole), 8)
        stop = whole[5:8]
        reply = self.check(d.call(self.fresh(), "Tell me about cats.", app=self.app, stop=stop, **GREEDY), 200)
        self.assertEqual(reply["finish"], "stop")
        self.assertEqual(reply["reply"], whole[:whole.index(stop)])
        pieces, last, _ = d.stream(self.fresh(), "Tell me about cats.", app=self.app, stop=["\x01none", stop],
                                   **GREEDY).finish()
        self.assertEqual((pieces, last["finish"]), (reply["reply"], "stop"))

    def test_deleted_while_running(self):
        context = self.fresh()
        stream = d.stream(context, app=self.app, **LONG)
        events = stream.events()
        next(events)
        self.check(d.delete(context, app=self.app), 200)
        rest = list(events)
        stream.close()
        self.assertEqual(rest[-1], "[DONE]")
        self.assertEqual(json.loads(rest[-2])["error"]["code"], "cancelled")


class Errors(Case):
    def test_routes(self):
        for method, path in (("GET", "/"), ("GET", "/v1"), ("GET", "/v1/context"), ("GET", "/v1/contexts/"),
                             ("GET", "/v1/contexts//turns"), ("POST", "/v1/contexts/x/y"), ("GET", "/v1/status/"),
                             ("GET", "/v1%2fstatus"), ("GET", "/v1/status%00"), ("GET", "/../etc/passwd"),
                             ("GET", "/" + "x" * 4000)):
            self.check(d.request(method, path), 404, "route_not_found")

    def test_methods(self):
        for method, path, allow in (("POST", "/health", "GET, HEAD"), ("PUT", "/v1/contexts", "POST, GET, HEAD"),
                                    ("GET", "/v1/tokenize", "POST"), ("OPTIONS", "/v1/contexts", "POST, GET, HEAD"),
                                    ("PATCH", NOBODY, "GET, HEAD, DELETE"), ("GET", NOBODY + "/calls", "POST")):
            answer = d.request(method, path)
            self.check(answer, 405, "method_not_allowed")
            self.assertEqual(answer.headers["Allow"], allow)
        answer = d.request("HEAD", "/v1/status")
        self.assertEqual((answer.status, answer.text), (200, ""))
        self.check(d.get("/v1/status?verbose=1"), 400, "unknown_parameter")

    def test_bodies(self):
        context = self.fresh()
        for body in ("{", "[]", "null", "{\"prompt\":\"a\",}", b"{\"prompt\":\"\xff\"}", "{\"prompt\":\"\\u0000\"}",
                     "{\"prompt\":\"a\",\"prompt\":\"b\"}", "[" * 100000, "{\"prompt\":" * 5000, b"\x00", ""):
            self.check(d.post(context + "/calls", body, app=self.app), 400, "invalid_body")
        for field, value in (("promt", "x"), ("max_tokens", -1), ("max_tokens", "5"), ("stream", 1),
                             ("temperature", 11), ("top_k", 0.5), ("top_p", 0), ("min_p", 1), ("seed", -1),
                             ("repeat_penalty", 0), ("repeat_last", "x"), ("stop", ["a"] * 17), ("stop", [""]),
                             ("when_full", "never"), ("prompt", 5), ("prompt", "")):
            fields = {"prompt": "x", field: value}
            answer = d.post(context + "/calls", fields, app=self.app)
            self.check(answer, 400, "invalid_body")
            self.assertIn('"%s"' % field, answer.json["error"]["message"])
        self.check(d.post("/v1/contexts", {"system": "x"}, app=self.app), 400, "invalid_body")
        self.check(d.post("/v1/contexts", {"name": "x" * 257}, app=self.app), 400, "invalid_body")
        self.assertEqual(d.get(context, app=self.app).json["turns"], 0)

    def test_body_size(self):
        padding = " " * ((1 << 20) - 20)
        self.check(d.post("/v1/tokenize", padding + json.dumps({"text": "x"})), 200)
        for size in ((1 << 20) + 1, 3 << 20):
            self.check(d.post("/v1/tokenize", b" " * size), 413, "body_too_large")
        self.check(d.request("POST", "/nowhere", b" " * (3 << 20)), 404, "route_not_found")
        connection = d.connect()  # chunked: no length is known at the start
        connection.request("POST", "/v1/tokenize", iter([b" " * 65536] * 20), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})
        self.check(Answer(connection.getresponse()), 413, "body_too_large")
        connection.close()

    def test_body_size_told_first(self):
        """With Expect: 100-continue the refusal comes before the body is sent."""
        for length in (2 << 20, 1 << 50):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(PATIENCE_S)
                s.connect(d.socket)
                s.sendall(b"POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
                          b"Expect: 100-continue\r\n\r\n" % length)
                self.assertIn(b" 413 ", s.recv(65536).split(b"\r\n")[0])

    def test_apps(self):
        for app in ("a b", "a/b", "x" * 65, "\u00e9".encode("utf-8"), ""):
            self.check(d.get("/v1/contexts", headers={"X-LLMS-App": app}), 400, "invalid_app")
        self.check(d.get("/v1/contexts", app="x" * 64), 200)

    def test_no_http(self):
        for data in (b"", b"\x00\xff" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/contexts HTTP/1.1\r\n",
                     b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
                     b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n{}",
                     b"POST /v1/contexts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                     b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(d.socket)
                try:
                    s.sendall(data)
                except OSError:
                    pass
        self.check(d.get("/health"), 200)

    def test_foreign_contexts(self):
        context = self.fresh()
        for app in (None, "other"):
            self.check(d.get(context, app=app), 404, "context_not_found")
            self.check(d.get(context + "/turns", app=app), 404, "context_not_found")
            self.check(d.call(context, app=app), 404, "context_not_found")
            self.check(d.stream(context, app=app), 404, "context_not_found")
            self.check(d.post(context + "/fork", app=app), 404, "context_not_found")
            self.check(d.post(context + "/prepare", app=app), 404, "context_not_found")
            self.check(d.delete(context, app=app), 404, "context_not_found")
            self.assertNotIn(context[13:], d.get("/v1/contexts", app=app).text)
        self.check(d.get(context, app=self.app), 200)
        for path in (NOBODY, "/v1/contexts/x", "/v1/contexts/" + "x" * 1000, "/v1/contexts/%27;--"):
            self.check(d.get(path), 404, "context_not_found")

    def test_quota(self):
        paths = [d.context(app="quota") for _ in range(8)]
        answer = d.post("/v1/contexts", app="quota")
        self.check(answer, 429, "context_quota_exceeded")
        self.assertEqual(answer.json["error"]["type"], "rate_limit_error")
        self.check(d.post(paths[0] + "/fork", app="quota"), 429, "context_quota_exceeded")
        for path in paths:
            self.check(d.delete(path, app="quota"), 200)
        self.check(d.delete(d.context(app="quota"), app="quota"), 200)


class Tcp(Case):
    def ask(self, path="/v1/status", token=None, host=None, method="GET", body=None):
        address = d.tcp_address()
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or "%s:%d" % address) if host != "" else None
        if token:
            connection.putheader("Authorization", token)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = Answer(connection.getresponse())
        connection.close()
        return answer

    def token(self):
        path = os.path.join(d.state, "token")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with open(path) as file:
            token = file.read().strip()
        self.assertRegex(token, "^[0-9a-f]{64}$")
        return token

    def test_token(self):
        good = self.token()
        self.check(self.ask(token="Bearer " + good), 200)
        self.check(self.ask("/health"), 200)
        for bad in (None, good, "Bearer", "Bearer " + good[:-1], "Bearer " + good + "0", "Bearer " + "0" * 64,
                    "Basic " + good):
            for path in ("/v1/status", "/metrics", "/v1/contexts", "/nowhere"):
                answer = self.ask(path, token=bad)
                self.check(answer, 401, "invalid_token")
                self.assertEqual(answer.headers["WWW-Authenticate"], "Bearer")
                self.assertEqual(answer.json["error"]["type"], "authentication_error")

    def test_budget_by_token(self):
        """Whoever holds the token may change the budget."""
        connection = http.client.HTTPConnection(*d.tcp_address(), timeout=PATIENCE_S)
        answer = d.post("/v1/budget", {"kv_budget": 64 << 20}, connection=connection,
                        headers={"Authorization": "Bearer " + self.token()})
        connection.close()
        self.assertEqual(self.check(answer, 200)["budget_bytes"], 64 << 20)

    def test_host(self):
        token = "Bearer " + self.token()
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8080"):
            self.check(self.ask(token=token, host=host), 200)
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "192.168.0.1"):
            self.check(self.ask(token=token, host=host), 403, "foreign_host")
            self.check(self.ask("/health", host=host), 403, "foreign_host")
        answer = self.ask(token=token)
        self.assertFalse([h for h in answer.headers if h.lower().startswith("access-control")])

    def test_owner(self):
        """The same app name over TCP is another owner than over the Unix socket."""
        token = "Bearer " + self.token()
        mine = d.context()
        self.addCleanup(d.delete, mine)
        self.check(self.ask(mine, token=token), 404, "context_not_found")
        made = self.ask("/v1/contexts", token=token, method="POST", body=b"{}")
        self.check(made, 201)
        path = "/v1/contexts/" + made.json["id"]
        self.check(d.get(path), 404, "context_not_found")
        self.check(self.ask(path, token=token, method="DELETE"), 200)


class Together(Case):
    def test_many_apps(self):
        def talk(number):
            app = "many-%d" % number
            context = d.context(app=app)
            replies = [d.call(context, "Number %d." % n, app=app, max_tokens=8) for n in range(3)]
            turns = d.get(context + "/turns", app=app).json["data"]
            d.delete(context, app=app)
            return [r.status for r in replies], [t["prompt"] for t in turns]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for statuses, prompts in pool.map(talk, range(8)):
                self.assertEqual(statuses, [200] * 3)
                self.assertEqual(prompts, ["Number %d." % n for n in range(3)])

    def test_one_context_at_once(self):
        context = self.fresh()
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda n: d.call(context, "N%d" % n, app=self.app, max_tokens=4), range(6)))
        self.assertEqual([a.status for a in answers], [200] * 6)
        self.assertEqual(sorted(a.json["turn"] for a in answers), list(range(6)))
        turns = d.get(context + "/turns", app=self.app).json["data"]
        by_turn = {a.json["turn"]: a.json["reply"] for a in answers}
        self.assertEqual([t["reply"] for t in turns], [by_turn[n] for n in range(6)])

    def test_fairness(self):
        """An app with many calls waiting does not make another one wait for all of them."""
        greedy, modest = d.context(app="greedy"), d.context(app="modest")
        others = [d.context(app="greedy") for _ in range(5)]
        order, lock = [], threading.Lock()

        def call(app, context):
            self.assertEqual(d.call(context, app=app, max_tokens=48, **LONG).status, 200)
            with lock:
                order.append(app)

        first = d.stream(greedy, app="greedy", max_tokens=64, **LONG)  # occupies the worker
        threads = [threading.Thread(target=call, args=("greedy", c)) for c in others]
        for thread in threads:
            thread.start()
        self.eventually(lambda: d.calls()["waiting"] >= 4 or order, "the calls do not queue")
        late = threading.Thread(target=call, args=("modest", modest))
        late.start()
        first.finish()
        for thread in threads + [late]:
            thread.join()
        self.assertLessEqual(order.index("modest"), 3, order)
        for context in [greedy] + others:
            d.delete(context, app="greedy")
        d.delete(modest, app="modest")

    def test_gone_while_streaming(self):
        context = self.fresh()
        before = d.wait_idle()["cancelled"]
        stream = d.stream(context, app=self.app, **LONG)
        next(stream.events())
        stream.close()
        self.assertEqual(d.wait_idle()["cancelled"], before + 1)
        self.assertEqual(d.get(context, app=self.app).json["turns"], 0)
        self.check(d.call(context, app=self.app, max_tokens=4), 200)

    def test_gone_while_waiting(self):
        context = self.fresh()
        before = d.wait_idle()["cancelled"]
        connection = d.connect()
        connection.request("POST", context + "/calls", json.dumps(dict(prompt="Hello.", **LONG)),
                           {"X-LLMS-App": self.app})
        self.eventually(lambda: d.calls()["running"], "the call does not start")
        connection.close()
        self.assertEqual(d.wait_idle()["cancelled"], before + 1)
        self.assertEqual(d.get(context, app=self.app).json["turns"], 0)

    def test_gone_while_forking(self):
        """A fork waits behind the context's calls; a client that does not wait for it gets none."""
        context = self.fresh()
        cancelled = False
        for _ in range(20):  # the call in front may draw an end token at once
            contexts = len(d.get("/v1/contexts", app=self.app).json["data"])
            stream = d.stream(context, app=self.app, **LONG)
            next(stream.events())
            connection = d.connect()
            connection.request("POST", context + "/fork", "{}", {"X-LLMS-App": self.app})
            self.eventually(lambda: d.calls()["waiting"] or not d.calls()["running"], "the fork does not wait")
            cancelled = d.calls()["waiting"] > 0
            connection.close()
            if cancelled:
                self.eventually(lambda: not d.calls()["waiting"], "the fork is not taken back")
                cancelled = d.calls()["running"] > 0  # it was not its turn
            stream.close()
            d.wait_idle()
            if cancelled:
                self.assertEqual(len(d.get("/v1/contexts", app=self.app).json["data"]), contexts)
                return
        self.fail("no call lasted")

    def test_half_closed(self):
        """A client on a Unix socket that ends its sending side (nc -N) still gets its reply."""
        context = self.fresh()
        for streamed in (b"false", b"true"):
            body = b'{"prompt":"Hello.","max_tokens":32,"stream":%s,"temperature":10}' % streamed
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(PATIENCE_S)
                s.connect(d.socket)
                s.sendall(b"POST %s/calls HTTP/1.0\r\nX-LLMS-App: %s\r\nContent-Length: %d\r\n\r\n%s" %
                          (context.encode(), self.app.encode(), len(body), body))
                s.shutdown(socket.SHUT_WR)
                reply = b""
                while True:
                    data = s.recv(65536)
                    if not data:
                        break
                    reply += data
            self.assertIn(b" 200 ", reply.split(b"\r\n")[0])
            self.assertIn(b'"object":"call"', reply)

    def test_slow_readers(self):
        """Streams nobody reads do not hold up others, nor the worker."""
        contexts = [d.context(app="slow") for _ in range(3)]
        streams = [d.stream(c, app="slow", **LONG) for c in contexts]
        context = self.fresh()
        for _ in range(3):
            self.check(d.call(context, app=self.app, max_tokens=4), 200)
        d.wait_idle()
        for stream in streams:
            pieces, last, done = stream.finish()
            self.assertTrue(done)
            self.assertEqual(last.get("reply"), pieces)
        for context in contexts:
            d.delete(context, app="slow")

    def test_crowd(self):
        """One user may hold half of the 256 connections."""
        crowd = [d.connect() for _ in range(127)]
        try:
            for connection in crowd:
                connection.connect()
            self.eventually(lambda: d.get("/health").status == 200, "half of the connections are too many")
            # Connections of earlier tests may still have counted while the crowd came, and gone since: some of it
            # was then refused and leaves room for as many more.
            extra = []
            while not extra or (answer.status == 200 and len(extra) < 40):
                extra.append(d.connect())
                answer = d.get("/health", connection=extra[-1])
            self.check(answer, 429, "too_many_connections")
            self.assertEqual(answer.headers["Retry-After"], "1")
            for connection in extra:
                connection.close()
        finally:
            for connection in crowd:
                connection.close()
        self.eventually(lambda: d.get("/health").status == 200, "the connections are still counted")


if __name__ == "__main__":
    unittest.main(verbosity=2)
