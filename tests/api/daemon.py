"""Starting llmsd for a test and talking to it. Python 3's standard library only."""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LLMSD = os.environ.get("LLMSD", os.path.join(ROOT, "build", "llmsd"))
SHARED = os.environ.get("LLMS_SHARED", os.path.join(ROOT, "..", "shared"))
PATIENCE_S = 60  # for what must happen; a sanitizer build on a busy machine is slow


def find_model():
    for path in (os.path.join(ROOT, "models"), os.path.join(SHARED, "model")):
        if os.path.exists(os.path.join(path, "pocket-q8_0.gguf")):
            return os.path.join(path, "pocket-q8_0.gguf")
    print("no pocket-q8_0.gguf: skipped")
    sys.exit(77)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout=PATIENCE_S):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def code(self):
        """The error's code, or None."""
        return self.json.get("error", {}).get("code")


class Stream:
    """A streamed reply: events() yields what comes after `data: `."""

    def __init__(self, connection, response):
        self.connection, self.response = connection, response
        self.comments = 0

    def events(self):
        for line in self.response:
            line = line.decode().rstrip("\n")
            if line.startswith("data: "):
                yield line[6:]
            elif line.startswith(":"):
                self.comments += 1
            elif line:
                raise AssertionError("not an event: %r" % line)

    def finish(self):
        """All pieces' text, the last object, and whether [DONE] came after it."""
        events = list(self.events())
        self.connection.close()
        done = bool(events) and events[-1] == "[DONE]"
        objects = [json.loads(e) for e in events if e != "[DONE]"]
        pieces = "".join(o["text"] for o in objects[:-1])
        return pieces, objects[-1] if objects else None, done

    def close(self):
        """Goes away in the middle. The response holds the socket's file too."""
        self.response.close()
        self.connection.close()


class Daemon:
    """One llmsd in a directory of its own. `directory`: an older one's, to start again on its state."""

    def __init__(self, *options, directory=None, listen=True, wait=True, environment=None, state=None, **popen):
        self.directory = directory or tempfile.mkdtemp(prefix="llmsd-")
        self.state = state or os.path.join(self.directory, "state")
        self.socket = os.path.join(self.directory, "s")
        self.log_path = os.path.join(self.directory, "log")
        command = [LLMSD, "--model", find_model(), "--state-dir", self.state, "--log-level", "debug"]
        if listen:
            command += ["--listen", "unix:" + self.socket]
        env = {k: v for k, v in os.environ.items() if k not in ("LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET")}
        env.update(environment or {})
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(command + list(options), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=env, **popen)
        if wait:
            self.wait_ready()

    def log(self):
        with open(self.log_path) as log:
            return log.read()

    def wait_ready(self):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError("llmsd ended with %d:\n%s" % (self.process.returncode, self.log()))
            try:
                if self.get("/health").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("llmsd does not get ready:\n" + self.log())

    def connect(self, timeout=PATIENCE_S):
        return UnixConnection(self.socket, timeout)

    def request(self, method, path, body=None, app=None, headers=None, connection=None):
        """body: an object to send as JSON, or text or bytes to send as they are."""
        own = connection or self.connect()
        headers = dict(headers or {})
        if app:
            headers["X-LLMS-App"] = app
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        try:
            own.request(method, path, body, headers)
            return Answer(own.getresponse())
        finally:
            if not connection:
                own.close()

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.request("POST", path, body, **more)

    def delete(self, path, **more):
        return self.request("DELETE", path, **more)

    def context(self, app=None, **fields):
        """A new context's path."""
        answer = self.post("/v1/contexts", fields, app=app)
        assert answer.status == 201, answer.text
        return "/v1/contexts/" + answer.json["id"]

    def call(self, context, prompt="Hello.", app=None, **fields):
        return self.post(context + "/calls", dict(prompt=prompt, **fields), app=app)

    def stream(self, context, prompt="Hello.", app=None, **fields):
        """A Stream where the status is 200, else an Answer."""
        connection = self.connect()
        headers = {"X-LLMS-App": app} if app else {}
        connection.request("POST", context + "/calls", json.dumps(dict(prompt=prompt, stream=True, **fields)),
                           headers)
        response = connection.getresponse()
        if response.status != 200:
            answer = Answer(response)
            connection.close()
            return answer
        stream = Stream(connection, response)
        stream.headers = response.headers
        return stream

    def calls(self):
        return self.get("/v1/status").json["calls"]

    def wait_idle(self):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            calls = self.calls()
            if calls["running"] == 0 and calls["waiting"] == 0:
                return calls
            time.sleep(0.02)
        raise AssertionError("still busy: %s" % calls)

    def tcp_address(self):
        """Host and port of the first TCP listener, from the log."""
        for line in self.log().splitlines():
            if "listening on tcp:" in line:
                host, port = line.split("tcp:")[1].split(",")[0].rsplit(":", 1)
                return host.strip("[]"), int(port)
        raise AssertionError("no TCP listener in the log:\n" + self.log())

    def stop(self, signal_number=signal.SIGTERM):
        """The exit status, and the seconds it took. signal_number None: it was told already."""
        start = time.monotonic()
        if self.process.poll() is None and signal_number is not None:
            self.process.send_signal(signal_number)
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("llmsd does not stop:\n" + self.log()) from None
        return status, time.monotonic() - start

    def remove(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def run_once(*options, environment=None, timeout=PATIENCE_S, **popen):
    """Runs llmsd to its end: exit status, standard output, lines of standard error."""
    env = dict(os.environ)
    env.update(environment or {})
    done = subprocess.run([LLMSD] + list(options), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout, env=env, check=False, **popen)
    return done.returncode, done.stdout, done.stderr.splitlines()
