#!/usr/bin/env python3
"""llms-bench speed on a small random model: what its JSON says must hold together, and both sides must have run on the
processors that were asked for. The peer is a script that prints what llama-bench would.

Usage: test_bench_speed.py BUILD-DIRECTORY [unittest arguments]
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

TOP = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else os.path.join(TOP, "build")
BENCH = os.path.join(BUILD, "llms-bench")
PEER = """#!{python}
import json, os, sys
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
with open({log!r}, "a") as log:
    print(options["-t"], len(os.sched_getaffinity(0)), options["-d"], file=log)
sizes = lambda name: [int(n) for n in options[name].split(",") if int(n)]
print(json.dumps([dict(n_prompt=n, n_gen=0, avg_ts=10.0 + n) for n in sizes("-p")] +
                 [dict(n_prompt=0, n_gen=n, avg_ts=5.0 + n) for n in sizes("-n")]))
"""


class Speed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="llms-speed-")
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.models = []
        for kind in ("Q8_0", "Q4_K_M"):
            cls.models.append(os.path.join(cls.directory, kind + ".gguf"))
            subprocess.run([BENCH, "model", "--shape", "tiny-llama", "--type", kind, "--out", cls.models[-1]], check=True,
                           stdout=subprocess.DEVNULL)
        cls.log = os.path.join(cls.directory, "peer.log")
        cls.peer = os.path.join(cls.directory, "peer")
        with open(cls.peer, "w", encoding="ascii") as script:
            script.write(PEER.format(python=sys.executable, log=cls.log))
        os.chmod(cls.peer, 0o755)

    def bench(self, *options, models=None):
        return subprocess.run([BENCH, "speed", "--model", ",".join(models or self.models[:1]), *options], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=200)

    def measure(self, *options, models=None):
        done = self.bench("--json", *options, models=models)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def assert_spread(self, figures):
        self.assertGreater(figures["min"], 0)
        self.assertLessEqual(figures["min"], figures["median"])
        self.assertLessEqual(figures["median"], figures["max"])

    def test_density(self):
        run = self.measure("--prompt", "8", "--generate", "4", "--depth", "32", "--runs", "2", "--density")["runs"][1]
        self.assert_spread(run["density"]["tokens_per_s"])
        self.assertAlmostEqual(run["density"]["ratio"], run["density"]["tokens_per_s"]["median"] / run["tokens_per_s"]["median"],
                               delta=0.001)

    def test_matrix(self):
        said = self.measure("--prompt", "8", "--generate", "4", "--depth", "0,32", "--threads", "1,2", "--runs", "2",
                            "--busy", "1", "--peer", self.peer, models=self.models)
        cases = [(run["model"], run["threads"], run["depth"], run["kind"]) for run in said["runs"]]
        self.assertEqual(cases, [(model, threads, depth, kind) for model in self.models for threads in (1, 2)
                                 for depth in (0, 32) for kind in ("prompt", "generate")])
        for run in said["runs"]:
            self.assert_spread(run["tokens_per_s"])
            self.assertGreater(run["memory_gb_s"], 0.1)
            peer = 18 if run["kind"] == "prompt" else 9
            self.assertEqual(run["peer_tokens_per_s"], peer)
            self.assertAlmostEqual(run["peer_ratio"], run["tokens_per_s"]["median"] / peer, delta=0.01)
            self.assertEqual(run["busy"]["processes"], 1)
            self.assert_spread(run["busy"]["tokens_per_s"])
            self.assertEqual(run["busy"]["peer_share"], 1)
            self.assertEqual("bound_tokens_per_s" in run, run["kind"] == "prompt")  # the weights fit caches
        with open(self.log, encoding="ascii") as log:
            ran = [tuple(map(int, line.split())) for line in log]
        self.assertEqual(len(ran), 2 * 2 * 2 * 2 * 2)  # models, threads, depths, runs, undisturbed and not
        processors = len(os.sched_getaffinity(0))
        for threads, kept, depth in ran:
            self.assertEqual(kept, min(threads, processors))
            self.assertIn(depth, (0, 32))

    def test_cold(self):
        said = self.measure("--prompt", "0", "--generate", "0", "--cold", "--runs", "2", "--threads", "1")
        self.assertEqual(said["runs"], [])
        start, = said["cold"]
        self.assertEqual((start["model"], start["threads"]), (self.models[0], 1))
        self.assertEqual(start["file_bytes"], os.path.getsize(self.models[0]))
        self.assert_spread(start["first_token_ms"])
        self.assert_spread(start["cached_first_token_ms"])
        self.assertGreater(start["bound_ms"], 0)

    def test_text(self):
        done = self.bench("--prompt", "4", "--generate", "2", "--depth", "0", "--runs", "1", "--cold")
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("prompt 4", "generate 2", "bound", "cold start"):
            self.assertIn(word, done.stdout)

    def test_misuse(self):
        for options, said in ((["--prompt", "0", "--generate", "0"], "nothing to measure"),
                              (["--kv-level", "9"], "--kv-level"), (["--runs", "0"], "--runs"),
                              (["--busy", "65"], "--busy")):
            done = self.bench(*options)
            self.assertEqual(done.returncode, 2, done.stdout)
            self.assertIn(said, done.stderr)
        done = self.bench("--depth", "4000", "--generate", "1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("context", done.stderr)
        self.assertEqual(self.bench(models=[os.path.join(self.directory, "none.gguf")]).returncode, 1)


if __name__ == "__main__":
    unittest.main()
