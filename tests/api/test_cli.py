#!/usr/bin/env python3
"""The llms command, libllms and the first program, end to end against a real daemon on the default model.

Usage: test_cli.py BUILD-DIRECTORY [unittest arguments]
"""
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

TOP = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else os.path.join(TOP, "build")
MODEL = os.path.join(TOP, "models", "pocket-q8_0.gguf")
LLMS = os.path.join(BUILD, "llms")
NOTE, QUESTION, ANSWER = "Remember that my locker code is 4711.", "What is my locker code?", "4711"


class Daemon:
    """A daemon of our own, in a directory of its own."""

    def __init__(self, *options):
        self.directory = tempfile.mkdtemp(prefix="llms-cli-")
        self.socket = os.path.join(self.directory, "s")
        self.address = "unix:" + self.socket
        self.options = options
        self.process = None
        self.start()

    def start(self):
        self.log = open(os.path.join(self.directory, "log"), "ab")
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "llmsd"), "--model", MODEL, "--listen", self.address, "--state-dir",
             os.path.join(self.directory, "state"), "--threads", "2", *self.options],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError("llmsd did not start: " + self.log_text())
            done = run("status", address=self.address)
            if done.returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError("llmsd is not ready after 30 s: " + self.log_text())

    def log_text(self):
        with open(os.path.join(self.directory, "log"), encoding="utf-8", errors="replace") as text:
            return text.read()

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            if number != signal.SIGKILL:  # which a frozen one hears too, without running on for a moment
                self.send(signal.SIGCONT)
            self.send(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def environment(address=None, **more):
    values = {k: v for k, v in os.environ.items() if not k.startswith(("LLMS_", "XDG_RUNTIME"))}
    values["XDG_RUNTIME_DIR"] = "/nonexistent"
    if address:
        values["LLMS_ADDRESS"] = address
    values.update(more)
    return values


def run(*arguments, address=None, text=None, app=None, **more):
    command = [LLMS] + (["--app", app] if app else []) + list(arguments)
    return subprocess.run(command, input=text, stdin=subprocess.DEVNULL if text is None else None,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                          env=environment(address, **more), timeout=120, check=False)


class Usage(unittest.TestCase):
    """No daemon is needed to be told off."""

    def test_bad_usage_is_one_line_and_status_2(self):
        for arguments in ([], ["sing"], ["call"], ["call", "x"], ["call", "x", "y", "z"], ["ls", "x"], ["rm"],
                          ["--sing"], ["ls", "--stats"], ["new", "--turns"], ["call", "x", "y", "--max-tokens", "0"],
                          ["call", "x", "y", "--max-tokens", "-1"], ["call", "x", "y", "--temperature", "hot"],
                          ["call", "x", "y", "--top-p", "1.5"], ["call", "x", "y", "--top-k", "1e3"],
                          ["call", "x", "y", "--seed"], ["call", "x", "y", "--when-full", "burst"], ["ls", "--json=1"],
                          ["call", "x", "y", "--stop", ""], ["--app", "a b", "ls"], ["--address", "http://x", "ls"],
                          ["--address", "tcp:127.0.0.1", "ls"]):
            done = run(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(done.stdout, "", arguments)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertRegex(done.stderr, r"^(llms|usage: llms)\b")

    def test_help_and_version(self):
        done = run("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for command in ("chat", "call", "new", "ls", "show", "rm", "fork", "prepare", "status", "models", "tokenize",
                        "detokenize"):
            self.assertRegex(done.stdout, rf"\n  {command} ")
            self.assertRegex(run(command, "--help").stdout, rf"^usage: llms {command}\b")
        self.assertNotIn("--max-tokens", run("ls", "--help").stdout)
        self.assertRegex(run("-V").stdout, r"^llms \d+\.\d+\.\d+\n$")

    def test_the_manual_names_every_option(self):
        with open(os.path.join(TOP, "man", "llms.1"), encoding="utf-8") as page:
            manual = page.read().replace("\\-", "-")
        with open(os.path.join(TOP, "completions", "llms.bash"), encoding="utf-8") as script:
            completion = script.read()
        options = set(re.findall(r"--[a-z-]+", run("--help").stdout))
        for command in ("chat", "call", "new", "show", "fork", "tokenize"):
            options |= set(re.findall(r"^  (--[a-z-]+)", run(command, "--help").stdout, re.M))
        self.assertGreater(len(options), 18)
        for option in options:
            self.assertIn(option, manual)
            self.assertIn(option, completion)

    def test_no_daemon(self):
        for arguments, address in ((["ls"], None), (["ls"], "unix:/nonexistent/s"), (["ls"], "tcp:127.0.0.1:1"),
                                   (["--json", "status"], "unix:/nonexistent/s")):
            done = run(*arguments, address=address)
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertEqual(done.stderr.count("\n"), 1)
            self.assertIn("llmsd --model", done.stderr)

    def test_something_else_listens(self):
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(directory + "/s")
            listener.listen(1)
            process = subprocess.Popen([LLMS, "ls"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, env=environment(f"unix:{directory}/s"))
            peer, _ = listener.accept()
            peer.recv(4096)
            peer.sendall(b"220 mail.example ESMTP\r\n")
            peer.close()
            _, error = process.communicate(timeout=30)
            self.assertEqual(process.returncode, 1)
            self.assertEqual(error.count(b"\n"), 1)


class Library(unittest.TestCase):
    """What an app links."""

    def functions(self):
        with open(os.path.join(TOP, "include", "llms.h"), encoding="utf-8") as header:
            return set(re.findall(r"LLMS_API [^;(]*?\b(llms_\w+)\(", header.read()))

    def test_only_the_interface_is_exported(self):
        self.assertGreater(len(self.functions()), 9)
        for name, option in (("libllms.so", "-D"), ("libllms.a", "-g")):
            listed = subprocess.run(["nm", option, "--defined-only", "-P", os.path.join(BUILD, "src", "client", name)],
                                    check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
            names = {line.split()[0] for line in listed.split("\n") if len(line.split()) > 2}
            names = {n for n in names if not re.match(r"_init|_fini|__(a|ub|t)san|__odr_asan|_edata|_end|__bss", n)}
            self.assertEqual(names, self.functions(), name)

    def test_the_header_is_cxx_too(self):
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if not compiler:
            self.skipTest("no C++ compiler")
        source = ('#include "llms.h"\nint main() { struct llms_call_options o = LLMS_CALL_DEFAULTS;'
                  " return o.top_k + llms_bind(0, 0, 0); }\n")
        done = subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c++",
                               "-I", os.path.join(TOP, "include"), "-"], input=source, encoding="utf-8",
                              stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)


class WithDaemon(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()

    @classmethod
    def tearDownClass(cls):
        cls.daemon.remove()

    def llms(self, *arguments, **more):
        return run(*arguments, address=self.daemon.address, **more)

    def out(self, *arguments, **more):
        done = self.llms(*arguments, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def json(self, *arguments, **more):
        return json.loads(self.out("--json", *arguments, **more))

    def new(self, *arguments, **more):
        identity = self.out("new", *arguments, **more).strip()
        self.assertRegex(identity, r"^[A-Za-z0-9_-]{4,31}$")
        return identity

    def waits(self, what, condition):
        for _ in range(400):
            if condition():
                return
            time.sleep(0.05)
        self.fail(f"{what}: not within 20 s")


class Budget(WithDaemon):
    def test_budget(self):
        before = self.json("status")["kv"]
        self.addCleanup(self.out, "budget", str(before["budget_bytes"]))
        self.assertRegex(self.out("budget", "40M"), r"^KV +[\d.]+ MiB of 40\.0 MiB resident, [\d.]+ MiB stored\n"
                         r"policy +llms, evicts by cost; written at 8 bits, lowered to 8/4/3/2 \(ratio 0\.5\)\n$")
        self.assertEqual(self.json("budget", "1.5G")["budget_bytes"], 3 << 29)
        self.assertIn("of 1536.0 MiB resident", self.out("status"))
        for wrong in ("lots", "", "-1"):
            self.assertEqual(self.llms("budget", "--", wrong).returncode, 2)
        done = self.llms("budget", "100")
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1))
        self.assertEqual(self.json("status")["kv"]["budget_bytes"], 3 << 29)


class Contexts(WithDaemon):
    def test_a_context_from_its_making_to_its_end(self):
        identity = self.new("--name", "Ünïcode ☕", "--system", "Keep notes.")
        listed = self.out("ls").split("\n")
        self.assertRegex(listed[0], r"^ID +NAME +TURNS +TOKENS +CHUNKS +STORED +16/8/4/3/2 +MEMORY +USED$")
        row = [line for line in listed if line.startswith(identity)]
        self.assertEqual(len(row), 1)
        self.assertIn("Ünïcode ☕", row[0])
        shown = self.json("show", identity)
        self.assertEqual((shown["id"], shown["name"], shown["system_prompt"], shown["app"], shown["turns"]),
                         (identity, "Ünïcode ☕", "Keep notes.", "cli", 0))
        reply = self.out("call", identity, NOTE, "--temperature", "0")
        self.assertTrue(reply.endswith("\n") and reply.strip())
        self.assertIn(ANSWER, self.out("call", identity, QUESTION, "--temperature", "0"))
        turns = self.json("show", identity, "--turns")["data"]
        self.assertEqual([turn["prompt"] for turn in turns], [NOTE, QUESTION])
        self.assertEqual(turns[0]["reply"], reply.rstrip("\n"))
        self.assertIn(f"> {QUESTION}\n", self.out("show", identity, "--turns"))
        self.assertRegex(self.out("show", identity), r"\nturns +2\b")
        copy = self.new_fork(identity)
        self.assertIn(ANSWER, self.out("call", copy, QUESTION, "--temperature", "0"))
        self.assertEqual(self.json("show", identity)["turns"], 2)
        self.assertEqual(self.json("show", copy)["turns"], 3)
        self.out("rm", identity, copy)
        done = self.llms("show", identity)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1))

    def new_fork(self, identity):
        copy = self.out("fork", identity, "--name", "copy").strip()
        self.assertNotEqual(copy, identity)
        self.assertEqual(self.json("show", copy)["name"], "copy")
        return copy

    def test_the_start_of_an_id_will_do(self):
        ids = [self.new(app="prefix") for _ in range(2)]
        length = next(n for n in range(1, 32) if ids[0][:n] != ids[1][:n])
        self.assertEqual(self.json("show", ids[1][:length], app="prefix")["id"], ids[1])
        self.assertEqual(self.json("show", ids[1][:length].split("_")[-1], app="prefix")["id"], ids[1])
        if length > 1:
            done = self.llms("show", ids[0][:length - 1], app="prefix")
            self.assertEqual(done.returncode, 1)
            self.assertIn("2 contexts start with", done.stderr)
        for none in ("", "nothing-like-it", "../status", ids[0] + "x"):
            done = self.llms("call", none, "x", app="prefix")
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), none)

    def test_a_long_name_is_cut_between_characters(self):
        self.new("--name", "a" + 40 * "ä", app="names")
        self.assertRegex(self.out("ls", app="names"), r"  a" + 14 * "ä" + r"\.\.\.  ")

    def test_an_app_sees_only_its_own(self):
        identity = self.new(app="mine")
        self.assertEqual([c["id"] for c in self.json("ls", app="mine")["data"]], [identity])
        self.assertEqual(self.json("ls", app="theirs")["data"], [])
        for command in (["show", identity], ["call", identity, "x"], ["rm", identity], ["fork", identity]):
            self.assertEqual(self.llms(*command, app="theirs").returncode, 1)
        self.assertEqual(self.json("show", identity, app="mine")["turns"], 0)

    def test_prepare(self):
        identity = self.new()
        self.out("call", identity, NOTE)
        self.assertRegex(self.out("prepare", identity), r"^ready after [\d.]+ ms; chunks: \d+ resident, \d+ loaded, ")
        self.assertIn("switch_ms", self.json("prepare", identity)["timings"])

    def test_conversations_outlive_the_daemon(self):
        identity = self.new(app="lasting")
        self.out("call", identity, NOTE, "--temperature", "0", app="lasting")
        self.daemon.stop()
        done = self.llms("ls", app="lasting")
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))
        self.daemon.start()
        self.assertIn(ANSWER, self.out("call", identity, QUESTION, "--temperature", "0", app="lasting"))
        self.assertEqual(self.json("show", identity, app="lasting")["turns"], 2)


class Calls(WithDaemon):
    def test_json_is_the_daemons_document(self):
        identity = self.new()
        call = self.json("call", identity, NOTE, "--temperature", "0", "--seed", "5")
        self.assertEqual((call["object"], call["context"], call["seed"]), ("call", identity, 5))
        again = self.json("call", identity, QUESTION)
        self.assertEqual(again["turn"], call["turn"] + 1)
        self.assertEqual(again["reply"], self.json("show", identity, "--turns")["data"][1]["reply"])
        self.assertGreater(call["usage"]["completion_tokens"], 0)
        for key in ("queue_ms", "switch_ms", "ttft_ms", "total_ms", "chunks_recomputed"):
            self.assertGreaterEqual(call["timings"][key], 0)

    def test_options_reach_the_daemon(self):
        identity = self.new()
        call = self.json("call", identity, NOTE, "--max-tokens", "2", "--temperature", "0")
        self.assertEqual((call["finish"], call["usage"]["completion_tokens"]), ("length", 2))
        greedy = ["--temperature", "0"]
        self.assertEqual(self.json("call", self.new(), NOTE, *greedy)["reply"],
                         self.out("call", self.new(), NOTE, *greedy).rstrip("\n"))
        whole = self.json("call", self.new(), NOTE, *greedy)["reply"]
        stop = whole.split()[1]
        cut = self.json("call", self.new(), NOTE, "--stop", stop, *greedy)
        self.assertEqual((cut["finish"], cut["reply"]), ("stop", whole[:whole.index(stop)]))
        lively = ["--temperature", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--max-tokens", "30"]
        replies = [self.out("call", self.new(), NOTE, "--seed", seed, *lively) for seed in ("1", "1", "2", "3")]
        self.assertEqual(replies[0], replies[1])
        self.assertGreater(len(set(replies)), 1)

    def test_a_prompt_from_standard_input(self):
        identity = self.new()
        self.out("call", identity, "-", text=NOTE)
        self.assertEqual(self.json("show", identity, "--turns")["data"][0]["prompt"], NOTE)
        done = self.llms("call", identity, "-", text="a\0b")
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))

    def test_stats_go_to_standard_error(self):
        done = self.llms("call", self.new(), NOTE, "--stats")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr, r"^\[\d+ prompt \+ \d+ reply tokens \(\w+\), context \d+; waited [\d.]+ ms, switch "
                                      r"[\d.]+ ms, first token [\d.]+ ms, [\d.]+ tokens/s; chunks: \d+ resident, "
                                      r"\d+ loaded, \d+ recomputed\]\n$")

    def test_a_prompt_that_does_not_fit(self):
        identity = self.new()
        for form in ([], ["--json"]):
            done = self.llms(*form, "call", identity, "-", text="word " * 5000)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done.stderr)
        self.assertEqual(self.json("show", identity)["turns"], 0)

    def test_bad_text(self):
        done = subprocess.run([LLMS, "call", self.new(), b"\xff\xfe"], env=environment(self.daemon.address),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count(b"\n")), (1, b"", 1))
        self.assertIn(b"UTF-8", done.stderr)

    def test_nobody_reads(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([LLMS, "call", self.new(), NOTE], stdout=full, stdin=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, env=environment(self.daemon.address), check=False)
        self.assertEqual((done.returncode, done.stderr.count(b"\n")), (1, 1), done.stderr)

    def start_call(self, identity):
        return subprocess.Popen([LLMS, "call", identity, NOTE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=environment(self.daemon.address))

    def test_an_interrupted_call_is_cancelled(self):
        identity = self.new()
        # Many at once, so that some still wait when the signal comes.
        calls = [self.start_call(identity) for _ in range(8)]
        for call in calls:
            call.send_signal(signal.SIGINT)
        ended = [call.wait(30) for call in calls]
        for call in calls:
            call.communicate()
        self.waits("calls end", lambda: not self.json("show", identity)["busy"])
        turns = self.json("show", identity)["turns"]
        self.assertGreaterEqual(turns, ended.count(0))
        self.out("call", identity, NOTE)
        self.assertEqual(self.json("show", identity)["turns"], turns + 1)

    def test_a_daemon_killed_in_the_middle(self):
        identity = self.new()
        with Frozen(self.daemon):
            call = self.start_call(identity)
            time.sleep(0.3)
            self.assertIsNone(call.poll())
            self.daemon.stop(signal.SIGKILL)
            output, error = call.communicate(timeout=30)
        self.assertEqual((call.returncode, output, error.count(b"\n")), (1, b"", 1), error)
        self.daemon.start()
        self.assertEqual(self.json("show", identity)["turns"], 0)
        self.out("call", identity, NOTE)


class Frozen:
    """A daemon that does not answer for a while."""

    def __init__(self, daemon):
        self.daemon = daemon

    def __enter__(self):
        self.daemon.send(signal.SIGSTOP)

    def __exit__(self, *_):
        if self.daemon.process.poll() is None:
            self.daemon.send(signal.SIGCONT)


class Terminal:
    """llms on a terminal of its own."""

    def __init__(self, address, *arguments):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(LLMS, [LLMS, *arguments], environment(address, TERM="dumb"))

    def expect(self, pattern, seconds=20):
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} within {seconds} s in {self.seen!r}")
            try:
                self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError as error:
                raise AssertionError(f"ended without {pattern!r}: {self.seen!r}") from error
        seen, self.seen = self.seen, ""
        return seen

    def type(self, text):
        os.write(self.fd, text.encode())

    def finish(self):
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


class Chat(WithDaemon):
    def test_on_a_terminal(self):
        terminal = Terminal(self.daemon.address, "chat", "--temperature", "0", "--system", "Keep notes.")
        identity = re.search(r"\[context (\S+);", terminal.expect(r"\r\n> $")).group(1)
        terminal.type(NOTE + "\n")
        terminal.expect(r"\r\n> $")
        terminal.type("/stats\n")
        terminal.expect(r"shown\]\r\n> $")
        terminal.type(QUESTION + "\n")
        self.assertRegex(terminal.expect(r"recomputed\]\r\n> $"), ANSWER)
        terminal.type("/turns\n")
        self.assertIn(NOTE, terminal.expect(r"\r\n> $"))
        terminal.type("/show\n")
        self.assertRegex(terminal.expect(r"memory .*\r\n> $"), r"turns +2")
        terminal.type("/nonsense\n")
        self.assertIn("no such command", terminal.expect(r"\r\n> $"))
        terminal.type("half a li\x03")
        terminal.expect(r"Ctrl-D leaves\)\r\n> $")
        terminal.type("\x04")
        self.assertIn(f"llms chat --ctx {identity}", terminal.expect(r"to go on: [^\]]*\]"))
        self.assertEqual(terminal.finish(), 0)
        self.assertEqual(self.json("show", identity)["turns"], 2)

    def test_an_interrupt_cancels_the_reply_and_not_the_chat(self):
        identity = self.new()
        terminal = Terminal(self.daemon.address, "chat", "--ctx", identity)
        terminal.expect(r"> $")
        with Frozen(self.daemon):
            terminal.type("Never to be answered\n")
            terminal.expect(r"answered\r\n")
            time.sleep(0.3)
            terminal.type("\x03")
            terminal.expect(r"cancelled.*\]\r\n> $", 5)
        self.waits("the call ends", lambda: not self.json("show", identity)["busy"])
        terminal.type(NOTE + "\n")
        terminal.expect(r"\r\n> $")
        terminal.type("/quit\n")
        terminal.expect(r"to go on")
        self.assertEqual(terminal.finish(), 0)
        self.assertEqual([turn["prompt"] for turn in self.json("show", identity, "--turns")["data"]], [NOTE])

    def test_a_chat_without_a_word_leaves_nothing(self):
        terminal = Terminal(self.daemon.address, "chat", "--app", "silent")
        terminal.expect(r"\r\n> $")
        terminal.type("\x04")
        self.assertEqual(terminal.finish(), 0)
        self.assertEqual(self.json("ls", app="silent")["data"], [])

    def test_on_a_pipe(self):
        done = self.llms("chat", "--temperature", "0", text=f"{NOTE}\n\n{QUESTION}\n", app="piped")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(ANSWER, done.stdout)
        self.assertEqual(len(done.stdout.strip().split("\n")), 2)
        self.assertNotIn("> ", done.stdout)
        context = self.json("ls", app="piped")["data"][0]
        self.assertIn(f"llms --app piped chat --ctx {context['id']}", done.stderr)
        self.assertEqual(context["turns"], 2)
        done = self.llms("chat", "--ctx", context["id"], text="word " * 5000 + "\n" + NOTE + "\n", app="piped")
        self.assertEqual((done.returncode, done.stdout), (1, ""))

    def test_options_that_do_not_go_together(self):
        for arguments in (["chat", "--json"], ["chat", "--ctx", "x", "--system", "y"]):
            done = self.llms(*arguments)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1))


class Rest(WithDaemon):
    def test_status(self):
        status = self.json("status")
        self.assertEqual(status["model"]["architecture"], "llama")
        text = self.out("status")
        for label in ("daemon", "model", "compute", "KV", "contexts", "calls", "tokens"):
            self.assertRegex(text, rf"(?m)^{label} +\S")
        self.assertIn(status["model"]["name"], text)

    def test_models(self):
        models = self.json("models")
        self.assertEqual(models["object"], "list")
        self.assertEqual(self.out("models").split(), [model["id"] for model in models["data"]])

    def test_tokens_there_and_back(self):
        for text in ("Hello, world!", "größer ☕ 中文", " two  spaces\nand a line", "<|im_start|>user"):
            ids = self.out("tokenize", text).split()
            self.assertEqual([str(i) for i in self.json("tokenize", "-", text=text)["tokens"]], ids)
            self.assertEqual(self.out("detokenize", *ids), text + "\n")
            self.assertEqual(self.json("detokenize", "-", text=json.dumps([int(i) for i in ids]))["text"], text)
        self.assertLess(len(self.out("tokenize", "--special", "<|im_start|>user").split()),
                        len(self.out("tokenize", "<|im_start|>user").split()))
        self.assertEqual(self.llms("detokenize", "12x").returncode, 2)
        self.assertEqual(self.llms("detokenize", "999999999").returncode, 1)

    def test_the_first_program(self):
        hello = os.path.join(BUILD, "tests", "hello")

        def say(*arguments):
            return subprocess.run([hello, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, encoding="utf-8", env=environment(self.daemon.address),
                                  check=False)

        first = say(NOTE)
        self.assertEqual(first.returncode, 0, first.stderr)
        identity = re.search(r"\[context (\S+) usable after [\d.]+ ms", first.stdout).group(1)
        self.assertEqual(say(QUESTION, identity).returncode, 0)
        self.assertEqual(self.json("show", identity, app="hello")["turns"], 2)
        self.assertEqual(say(QUESTION, "nothing").returncode, 1)

    def test_tcp_needs_the_token(self):
        daemon = Daemon("--listen", "tcp:127.0.0.1:0")
        try:
            port = re.search(r"tcp:127\.0\.0\.1:(\d+)", daemon.log_text()).group(1)
            with open(os.path.join(daemon.directory, "state", "token"), encoding="utf-8") as token:
                secret = token.read().strip()
            address = f"tcp:127.0.0.1:{port}"
            self.assertEqual(run("ls", address=address).returncode, 1)
            self.assertEqual(run("ls", address=address, LLMS_TOKEN="wrong").returncode, 1)
            done = run("status", address=address, LLMS_TOKEN=secret)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(run("ls", address=address, LLMS_TOKEN=secret, http_proxy="http://127.0.0.1:1").returncode,
                             0)
        finally:
            daemon.remove()


if __name__ == "__main__":
    unittest.main()
