#!/usr/bin/env python3
"""llmsd as a program: options, configuration, starting, stopping, what survives, full disks, systemd.
Run by meson test, or: LLMSD=build/llmsd tests/api/test_lifecycle.py"""
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import unittest

from daemon import LLMSD, PATIENCE_S, ROOT, Daemon, UnixConnection, find_model, run_once

LONG = {"temperature": 10, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 21}
GREEDY = {"temperature": 0, "max_tokens": 24}
SYSTEMD = os.environ.get("LLMS_SYSTEMD", "1") != "0"  # built with libsystemd


class Slowed:
    """Lets a process run a twentieth of the time only, so that a reply lasts however fast the machine is."""

    def __init__(self, process):
        self.process, self.over = process, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while self.process.poll() is None and not self.over.is_set():
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(0.095)
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Case(unittest.TestCase):
    longMessage = True

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="llmsd-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def daemon(self, *options, **more):
        daemon = Daemon(*options, **more)
        self.addCleanup(daemon.remove)
        return daemon

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def assert_stops(self, daemon, seconds=6):
        status, took = daemon.stop()
        self.assertEqual(status, 0, daemon.log())
        self.assertLess(took, seconds)
        self.assertFalse(os.path.exists(daemon.socket), "the socket is still there")
        self.assertNotIn("Sanitizer", daemon.log())

    def assert_fails(self, status, words, *options, **more):
        """llmsd ends with this status; its last line says all the words, and there is one line of failure."""
        code, out, lines = run_once(*options, **more)
        self.assertEqual((code, out), (status, ""), lines)
        failures = [line for line in lines if not re.match(r"[0-9:.]+ +info ", line)]
        self.assertEqual(len(failures), 1, lines)
        for word in words:
            self.assertIn(word, failures[0])


class Options(Case):
    def test_help_and_version(self):
        code, out, lines = run_once("--help")
        self.assertEqual((code, lines), (0, []))
        for name in ("model", "listen", "state-dir", "kv-budget", "kv-levels", "context-length", "contexts-per-app",
                     "threads", "queue-limit", "config", "log-level", "version", "help"):
            self.assertIn("--" + name, out)
        code, out, lines = run_once("--version")
        self.assertEqual((code, lines), (0, []))
        self.assertRegex(out, r"^llmsd \d+\.\d+\.\d+\n$")

    def test_bad_usage(self):
        for options in (["extra"], ["--nonsense"], ["--model"], ["--model", ""], ["--kv-budget", "lots"],
                        ["--kv-budget=-1"], ["--kv-budget", "1K"], ["--kv-levels", "4"], ["--kv-levels", "12"],
                        ["--kv-levels", "8,2,4"], ["--kv-levels", "8,5"], ["--kv-levels", "8,4,"],
                        ["--threads", "-1"], ["--threads", "1025"], ["--context-length", "1.5"],
                        ["--contexts-per-app", "x"], ["--queue-limit", "0"], ["--log-level", "loud"],
                        ["--listen", "/tmp/x"], ["--listen", "unix:"], ["--listen", "unix:" + "x" * 108],
                        ["--listen", "tcp:0.0.0.0:80"], ["--listen", "tcp:192.168.1.1:80"],
                        ["--listen", "tcp:example.org:80"], ["--listen", "tcp:127.0.0.1"],
                        ["--listen", "tcp:127.0.0.1:70000"], ["--listen", "tcp:[::]:80"], ["--version=1"], ["-x"]):
            self.assert_fails(2, [options[0].split("=")[0]], *options)

    def test_config(self):
        good = self.write("good.conf", "# a comment\n\n  kv-budget = 8M  # more\nkv-levels=8\n"
                          "listen = tcp:127.0.0.1:0\ncontext-length = 128\n")
        daemon = self.daemon("--config", good, "--kv-budget=16M")
        status = daemon.get("/v1/status").json
        self.assertEqual(status["kv"]["budget_bytes"], 16 << 20, "the command line does not win")
        self.assertEqual(status["kv"]["level"], 8)
        self.assertEqual(status["model"]["context_length"], 128)
        self.assertNotIn("tcp:", daemon.log(), "the command line's listeners do not replace the file's")
        self.assert_stops(daemon)
        for text, line, word in (("threads 4", 1, "NAME = VALUE"), ("\n\nthreads = many\n", 3, "threads"),
                                 ("nonsense = 1", 1, "nonsense"), ("config = x", 1, "config"),
                                 ("help = 1", 1, "help"), ("kv-ratio = 9", 1, "kv-ratio"),
                                 ("# x\nlisten = tcp:1.2.3.4:5", 2, "listen")):
            bad = self.write("bad.conf", text)
            self.assert_fails(2, ["%s:%d:" % (bad, line), word], "--config", bad)
        self.assert_fails(1, ["/no/such", "No such file"], "--config", "/no/such/file")

    def test_bad_models(self):
        self.assert_fails(1, ["/no/such/model"], "--model", "/no/such/model", "--state-dir", self.path("s"),
                          "--listen", "unix:" + self.path("x"))
        self.assert_fails(1, ["paper", "3 bits"], "--model", find_model(), "--policy", "paper", "--kv-levels",
                          "8,4,3", "--state-dir", self.path("s"), "--listen", "unix:" + self.path("x"))
        with open(find_model(), "rb") as file:
            whole = file.read()
        for name, data in (("empty", b""), ("noise", b"no model at all" * 100), ("head", whole[:100000])):
            with open(self.path(name), "wb") as file:
                file.write(data)
            self.assert_fails(1, [name], "--model", self.path(name), "--state-dir", self.path("s"), "--listen",
                              "unix:" + self.path("x"))
        self.assertFalse(os.path.exists(self.path("x")), "a failed start leaves its socket")

    def test_defaults(self):
        """Without options: the socket and the state where XDG says (or systemd), the model of LLMS_MODEL."""
        runtime = self.path("runtime")
        environment = {"XDG_RUNTIME_DIR": self.path("run"), "XDG_STATE_HOME": self.path("state"),
                       "RUNTIME_DIRECTORY": runtime, "LLMS_MODEL": find_model()}
        environment.pop("RUNTIME_DIRECTORY" if os.geteuid() else "XDG_RUNTIME_DIR")
        path = os.path.join(self.path("run/llms") if os.geteuid() else runtime, "llmsd.sock")
        env = {k: v for k, v in os.environ.items() if k not in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY")}
        process = subprocess.Popen([LLMSD, "--log-level", "error"], env=dict(env, **environment))
        try:
            end = time.monotonic() + PATIENCE_S
            while not os.path.exists(path) and time.monotonic() < end and process.poll() is None:
                time.sleep(0.02)
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600 if os.geteuid() else 0o666)
            while not os.path.exists(self.path("state/llms/journal.db")) and time.monotonic() < end:
                time.sleep(0.02)
            self.assertTrue(os.path.exists(self.path("state/llms/journal.db")))
        finally:
            process.terminate()
            self.assertEqual(process.wait(PATIENCE_S), 0)


class StartAndStop(Case):
    def test_two_daemons(self):
        one = self.daemon()
        self.assert_fails(1, [one.state], "--model", find_model(), "--state-dir", one.state, "--listen",
                          "unix:" + self.path("x"))
        self.assert_fails(1, [one.socket, "another daemon"], "--model", find_model(), "--state-dir",
                          self.path("state"), "--listen", "unix:" + one.socket)
        self.write("file", "mine")
        self.assert_fails(1, [self.path("file"), "not a socket"], "--model", find_model(), "--state-dir",
                          self.path("state"), "--listen", "unix:" + self.path("file"))
        self.assertEqual(one.get("/health").status, 200)
        self.assert_stops(one)

    def test_taken_port(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            self.assert_fails(1, ["in use"], "--model", find_model(), "--state-dir", self.path("state"), "--listen",
                              "tcp:127.0.0.1:%d" % taken.getsockname()[1])

    def test_restart(self):
        """Every conversation goes on where it was, as if the daemon had never stopped."""
        exact = ("--kv-levels", "16")
        one = self.daemon(*exact)
        context = one.context(name="kept", system_prompt="Be kind.")
        one.call(context, "My dog is called Rex.", **GREEDY)
        fork = "/v1/contexts/" + one.post(context + "/fork").json["id"]
        without_stop = one.call(fork, "Tell me about my dog.", **GREEDY).json
        turns = one.get(context + "/turns").json
        shown = one.get(context).json
        self.assert_stops(one)
        two = self.daemon(*exact, directory=one.directory)
        self.assertEqual(two.get(context + "/turns").json, turns)
        after = two.get(context).json
        self.assertGreater(after["chunks"]["stored"], 0)
        self.assertEqual(after["chunks"]["resident"], 0)
        for key in ("id", "name", "system_prompt", "created_ms", "used_ms", "turns", "tokens"):
            self.assertEqual(after[key], shown[key], key)
        reply = two.call(context, "Tell me about my dog.", **GREEDY).json
        self.assertEqual(reply["turn"], 1)
        self.assertEqual(reply["reply"], without_stop["reply"])
        self.assertGreater(reply["timings"]["chunks_loaded"] + reply["timings"]["chunks_recomputed"], 0)
        self.assert_stops(two)

    def test_restart_by_policy(self):
        """What the policy says of flash holds: read back, or computed again."""
        for options, counted, zero in ((("--policy", "no-pipeline"), "chunks_loaded", "chunks_recomputed"),
                                       (("--policy", "lmk"), "chunks_recomputed", "chunks_loaded")):
            one = self.daemon(*options)
            context = one.context(system_prompt="Be kind. " * 20)
            one.call(context, "My dog is called Rex.", **GREEDY)
            self.assert_stops(one)
            two = self.daemon(*options, directory=one.directory)
            self.assertEqual(two.get("/v1/status").json["kv"]["policy"], options[1])
            timings = two.post(context + "/prepare").json["timings"]
            self.assertGreaterEqual(timings["stall_ms"], 0)
            self.assertGreater(timings[counted], 0)
            self.assertEqual(timings[zero], 0)
            self.assert_stops(two)

    def test_killed(self):
        """After kill -9 in a reply: what was acknowledged is there, the dead socket is replaced."""
        one = self.daemon()
        context = one.context()
        acknowledged = one.call(context, max_tokens=8).json["reply"]
        stream = one.stream(context, **LONG)
        next(stream.events())
        one.stop(signal.SIGKILL)
        stream.close()
        self.assertTrue(os.path.exists(one.socket))
        two = self.daemon(directory=one.directory)
        turns = two.get(context + "/turns").json["data"]
        self.assertEqual([t["reply"] for t in turns], [acknowledged])
        self.assertEqual(two.call(context, max_tokens=8).json["turn"], 1)
        self.assert_stops(two)

    def test_term_idle(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            daemon = self.daemon()
            daemon.process.send_signal(signal.SIGHUP)
            connection = daemon.connect()  # an idle connection does not hold it up
            daemon.get("/health", connection=connection)
            status, took = daemon.stop(number)
            self.assertEqual(status, 0)
            self.assertLess(took, 4)
            connection.close()

    def test_term_in_reply(self):
        """Streams get an end, calls an answer, unread streams are cut, and the exit is 0 within seconds."""
        daemon = self.daemon()
        contexts = [daemon.context() for _ in range(4)]
        with Slowed(daemon.process):  # else the replies could be over before the signal comes
            streams = [daemon.stream(c, "Tell me everything.", **LONG) for c in contexts[:3]]
            waiting = daemon.connect()
            waiting.request("POST", contexts[3] + "/calls", json.dumps(dict(prompt="Hello.", **LONG)))
            while not daemon.get(contexts[3]).json["busy"]:  # a connection nobody took yet would just be closed
                self.assertIsNone(daemon.process.poll())
            start = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            for stream in streams[:2]:
                _, last, done = stream.finish()
                self.assertTrue(done, "no [DONE]")
                self.assertIn(last["error"]["code"], ("cancelled", "shutting_down"))
            answer = waiting.getresponse()
            self.assertIn(answer.status, (409, 503))
            self.assertIn(json.loads(answer.read())["error"]["code"], ("cancelled", "shutting_down"))
            waiting.close()
            status, _ = daemon.stop(None)
            took = time.monotonic() - start
        self.assertEqual(status, 0, daemon.log())
        self.assertGreater(took, 2.5, "the running call got no grace")
        self.assertLess(took, 7)
        streams[2].close()
        again = self.daemon(directory=daemon.directory)
        self.assertEqual([again.get(c).json["turns"] for c in contexts], [0] * 4)

    def test_term_lets_finish(self):
        """The running call may end within the grace, and is kept."""
        daemon = self.daemon()
        context = daemon.context()
        stream = daemon.stream(context, max_tokens=256, **LONG)
        daemon.process.send_signal(signal.SIGTERM)
        _, last, done = stream.finish()
        self.assertTrue(done)
        self.assertEqual(last.get("object"), "call", last)
        self.assertEqual(daemon.stop(None)[0], 0)
        again = self.daemon(directory=daemon.directory)
        self.assertEqual(again.get(context + "/turns").json["data"][0]["reply"], last["reply"])

    def test_second_signal(self):
        daemon = self.daemon()
        stream = daemon.stream(daemon.context(), **LONG)
        with Slowed(daemon.process):
            daemon.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + PATIENCE_S
            while os.path.exists(daemon.socket) and time.monotonic() < end:
                time.sleep(0.005)  # until it has begun to stop
            status, took = daemon.stop()
        self.assertEqual(status, -signal.SIGTERM)
        self.assertLess(took, 2)
        stream.close()

    def test_limits(self):
        daemon = self.daemon("--queue-limit", "1", "--contexts-per-app", "0")
        contexts = [daemon.context() for _ in range(6)]
        with Slowed(daemon.process):  # else the first could be over before the last comes
            streams = [daemon.stream(c, "Go on.", **LONG) for c in contexts]
        refused = [s for s in streams if hasattr(s, "status")]
        self.assertTrue(refused, "nothing was refused")
        for answer in refused:
            self.assertEqual((answer.status, answer.code), (503, "queue_full"))
            self.assertEqual(answer.headers["Retry-After"], "1")
        for stream in streams:
            if not hasattr(stream, "status"):
                stream.close()
        daemon.wait_idle()
        self.assertEqual(daemon.call(contexts[0], max_tokens=4).status, 200)
        self.assert_stops(daemon)

    def test_full_context(self):
        daemon = self.daemon("--context-length", "96")
        context = daemon.context(system_prompt="Short.")
        dropped = 0
        for number in range(6):
            answer = daemon.call(context, "Message %d: I like green apples." % number, max_tokens=12)
            self.assertEqual(answer.status, 200, answer.text)
            self.assertLessEqual(answer.json["usage"]["context_tokens"], 96)
            dropped += answer.json["usage"]["turns_dropped"]
        self.assertGreater(dropped, 0)
        self.assertEqual(daemon.get(context).json["window_turn"], dropped)
        for _ in range(8):
            answer = daemon.call(context, "More about apples, please.", max_tokens=12, when_full="refuse")
            if answer.status != 200:
                break
        self.assertEqual((answer.status, answer.code), (400, "context_length_exceeded"))
        turns = daemon.get(context).json["turns"]
        answer = daemon.call(context, "word " * 400)
        self.assertEqual((answer.status, answer.code), (400, "context_length_exceeded"))
        streamed = daemon.stream(context, "word " * 400)
        self.assertEqual((streamed.status, streamed.code), (400, "context_length_exceeded"))
        self.assertEqual(daemon.get(context).json["turns"], turns)
        answer = daemon.post("/v1/contexts", {"system_prompt": "word " * 400})
        self.assertEqual((answer.status, answer.code), (400, "context_length_exceeded"))
        self.assert_stops(daemon)


class Storage(Case):
    def mount(self, options):
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.directory],
                                               stderr=subprocess.DEVNULL, check=False).returncode:
            self.skipTest("cannot mount a tmpfs here")
        self.addCleanup(subprocess.run, ["umount", "-l", self.directory], check=False)

    def test_full(self):
        """A full disk fails what would have to be stored, and nothing else."""
        self.mount("size=4m")
        daemon = self.daemon("--contexts-per-app", "0", state=self.path("state"))
        context = daemon.context(name="before")
        self.assertEqual(daemon.call(context, max_tokens=8).status, 200)
        with open(self.path("filler"), "wb", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        answers = []
        for _ in range(200):
            answers.append(daemon.post("/v1/contexts", {"system_prompt": "x " * 800}))
            if answers[-1].status != 201:
                break
        self.assertEqual((answers[-1].status, answers[-1].code), (507, "insufficient_storage"))
        turns = daemon.get(context).json["turns"]
        answer = daemon.call(context, "x " * 100, max_tokens=8)
        self.assertIn(answer.status, (200, 507))
        self.assertEqual(daemon.get(context).json["turns"], turns + (answer.status == 200))
        self.assertEqual(daemon.get("/health").status, 200)
        os.unlink(self.path("filler"))
        self.assertEqual(daemon.call(context, max_tokens=8).status, 200)
        self.assertEqual(daemon.stop()[0], 0)

    def test_read_only(self):
        self.mount("size=4m")
        os.mkdir(self.path("state"))
        subprocess.run(["mount", "-o", "remount,ro", self.directory], check=True)
        self.assert_fails(1, [self.path("state")], "--model", find_model(), "--state-dir", self.path("state"),
                          "--listen", "unix:/tmp/llmsd-ro-%d" % os.getpid())

    def test_no_permission(self):
        if os.geteuid() == 0:
            become = {"user": 65534, "group": 65534, "extra_groups": []}
            os.chmod(self.directory, 0o755)
            os.mkdir(self.path("state"), 0o755)
        else:
            become = {}
            os.mkdir(self.path("state"), 0o555)
        try:
            code, _, _ = run_once("--version", **become)
        except (OSError, subprocess.SubprocessError):
            self.skipTest("another user cannot run llmsd here")
        model = self.path("model.gguf")
        shutil.copy(find_model(), model)
        os.chmod(model, 0o644)
        self.assert_fails(1, [self.path("state")], "--model", model, "--state-dir", self.path("state"), "--listen",
                          "unix:/tmp/llmsd-np-%d/s" % os.getpid(), **become)
        shutil.rmtree("/tmp/llmsd-np-%d" % os.getpid(), ignore_errors=True)

    def test_damaged_token(self):
        os.mkdir(self.path("state"))
        self.write("state/token", "not a token\n")
        self.assert_fails(1, ["token"], "--model", find_model(), "--state-dir", self.path("state"), "--listen",
                          "tcp:127.0.0.1:0")


@unittest.skipUnless(SYSTEMD, "built without libsystemd")
class Systemd(Case):
    def start_with(self, sockets, notify=None):
        """Starts llmsd as systemd would: listening sockets from descriptor 3 on, LISTEN_PID its own."""
        environment = {"LISTEN_FDS": str(len(sockets))}
        if notify:
            environment["NOTIFY_SOCKET"] = notify
        numbers = [s.fileno() for s in sockets]

        def place():
            for i, number in enumerate(numbers):
                os.dup2(number, 200 + i)
            for i in range(len(numbers)):
                os.dup2(200 + i, 3 + i)
                os.close(200 + i)

        daemon = Daemon.__new__(Daemon)
        daemon.directory, daemon.state = self.directory, self.path("state")
        daemon.log_path, daemon.socket = self.path("log"), self.path("s")
        script = 'export LISTEN_PID=$$; exec "$@"'  # the process that llmsd becomes
        with open(daemon.log_path, "a") as log:
            daemon.process = subprocess.Popen(
                ["sh", "-c", script, "sh", LLMSD, "--model", find_model(), "--state-dir", daemon.state],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ, **environment),
                preexec_fn=place, close_fds=False)
        self.addCleanup(daemon.remove)
        return daemon

    def test_activation(self):
        with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
            unix.bind(self.path("s"))
            unix.listen()
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            early = UnixConnection(self.path("s"))  # a caller from before the daemon is there
            early.request("GET", "/health")
            first = UnixConnection(self.path("s"))  # waits for the model
            first.request("GET", "/v1/contexts")
            daemon = self.start_with([unix, tcp])
            self.assertEqual(first.getresponse().status, 200)
            first.close()
            response = early.getresponse()
            body = json.loads(response.read())
            self.assertIn((response.status, body["status"]), ((200, "ok"), (503, "loading")))
            early.close()
            daemon.wait_ready()
            self.assertEqual(daemon.get("/v1/contexts").status, 200)
            self.assertEqual(daemon.tcp_address()[1], tcp.getsockname()[1])
            self.assertTrue(os.path.exists(os.path.join(daemon.state, "token")))
            self.assertEqual(daemon.stop()[0], 0, daemon.log())
            self.assertTrue(os.path.exists(self.path("s")), "systemd's socket was removed")

    def test_foreign_sockets(self):
        with socket.socket() as everywhere, socket.socket(socket.AF_UNIX) as idle:
            everywhere.bind(("0.0.0.0", 0))
            everywhere.listen()
            for bad, word in ((everywhere, "loopback"), (idle, "listening")):
                daemon = self.start_with([bad])
                self.assertEqual(daemon.process.wait(PATIENCE_S), 1)
                self.assertIn(word, daemon.log())

    def test_notify(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket(socket.AF_UNIX) as unix:
            manager.bind(self.path("notify"))
            manager.settimeout(PATIENCE_S)
            unix.bind(self.path("s"))
            unix.listen()
            daemon = self.start_with([unix], self.path("notify"))
            said = []
            while not said or "READY=1" not in said[-1].split("\n"):
                said.append(manager.recv(4096).decode())
            self.assertTrue(said[0].startswith("STATUS=Loading "), said)
            self.assertEqual(daemon.get("/health").status, 200, "READY before it is")
            daemon.process.send_signal(signal.SIGTERM)
            self.assertIn("STOPPING=1", manager.recv(4096).decode().split("\n"))
            self.assertEqual(daemon.stop(None)[0], 0)

    def test_notify_failure(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(self.path("notify"))
            manager.settimeout(PATIENCE_S)
            run_once("--model", "/no/such/model", "--state-dir", self.path("state"), "--listen",
                     "unix:" + self.path("s"), environment={"NOTIFY_SOCKET": self.path("notify")})
            manager.recv(4096)
            last = manager.recv(4096).decode()
            self.assertIn("/no/such/model", last)
            self.assertIn("ERRNO=2", last.split("\n"))

    def test_units(self):
        analyze = shutil.which("systemd-analyze")
        if not analyze:
            self.skipTest("no systemd-analyze")
        with open(os.path.join(ROOT, "data", "systemd", "llmsd.service.in")) as file:
            service = file.read()
        bindir = self.path("bin")
        os.mkdir(bindir)
        shutil.copy(LLMSD, bindir)
        service = service.replace("@bindir@", bindir)
        self.assertNotIn("@bindir", service)
        self.write("llmsd.service", service)
        shutil.copy(os.path.join(ROOT, "data", "systemd", "llmsd.socket"), self.directory)
        done = subprocess.run([analyze, "verify", "--man=no", self.path("llmsd.service"), self.path("llmsd.socket")],
                              capture_output=True, text=True, check=False,
                              env=dict(os.environ, SYSTEMD_UNIT_PATH=self.directory + ":"))
        complaints = [line for line in done.stderr.splitlines() if "llmsd" in line]
        self.assertEqual((done.returncode, complaints), (0, []), done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
