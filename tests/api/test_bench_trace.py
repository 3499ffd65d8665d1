#!/usr/bin/env python3
"""llms-bench trace on the default model and a real daemon: what its JSON says must hold together.

Usage: test_bench_trace.py BUILD-DIRECTORY [unittest arguments]
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TOP = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else os.path.join(TOP, "build")
BENCH = os.path.join(BUILD, "llms-bench")
MODEL = os.path.join(TOP, "models", "pocket-q8_0.gguf")
CONTEXTS, LENGTH, CALLS, WARMUP = 6, 320, 20, 2
BUDGET = 1400 << 10  # at 16 bits one context of the six and a third, at 8 bits two and a half
PATIENCE_S = 200


class Trace(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="llms-trace-")
        self.addCleanup(shutil.rmtree, self.directory)

    def command(self, *options):
        return [BENCH, "trace", "--model", MODEL, "--contexts", str(CONTEXTS), "--context-length", str(LENGTH),
                "--calls", str(CALLS), "--warmup", str(WARMUP), "--budget", str(BUDGET), "--threads", "2",
                "--state-dir", self.directory, *options]

    def run_bench(self, *options):
        return subprocess.run(self.command(*options), text=True, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=PATIENCE_S)

    def measure(self, *options):
        done = self.run_bench("--json", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.listdir(self.directory), [])
        return json.loads(done.stdout)

    def assert_spread(self, figures):
        for low, high in (("min", "median"), ("median", "p95"), ("p95", "max"), ("min", "mean"), ("mean", "max")):
            self.assertLessEqual(figures[low], figures[high] + 1e-9)
        self.assertGreaterEqual(figures["min"], 0)

    def check_run(self, run, policy):
        self.assertEqual(run["policy"], policy)
        self.assertEqual(run["calls"], CALLS - WARMUP)
        self.assertEqual(run["switches"], run["switch_ms"]["count"])
        self.assertEqual(run["switch_ms"]["count"] + run["ttft_with_slides_ms"]["count"], run["calls"])
        self.assertEqual(run["switches"], run["calls"] // 2)
        self.assertLessEqual(run["ttft_ms"]["count"], run["ttft_with_slides_ms"]["count"])
        for key in ("switch_ms", "switch_away_ms", "ttft_ms", "ttft_with_slides_ms", "queue_ms", "socket_ms"):
            self.assert_spread(run[key])
        self.assertGreater(run["ttft_ms"]["min"], 0)
        self.assertLessEqual(run["kv_resident_bytes"], BUDGET)

    def test_policies(self):
        results = self.measure("--policy", "llms,lmk,vllm-sq", "--pattern", "random")
        self.assertEqual(results["trace"]["pattern"], "random")
        self.assertEqual((results["trace"]["contexts"], results["budget_bytes"]), (CONTEXTS, BUDGET))
        self.assertEqual(len(results["runs"]), 3)
        for run, policy in zip(results["runs"], ("llms", "lmk", "vllm-sq")):
            self.check_run(run, policy)
        llms, lmk, vllm = results["runs"]
        self.assertEqual((lmk["chunks"]["loaded"], lmk["bytes_read"], lmk["stored_bytes"]), (0, 0, 0))
        self.assertGreater(lmk["chunks"]["recomputed"], 0)
        self.assertGreater(vllm["chunks"]["loaded"], 0)
        self.assertGreaterEqual(vllm["bytes_read"], vllm["chunks"]["loaded"] * 1024)
        self.assertLess(llms["bytes_read"], vllm["bytes_read"])
        self.assertGreater(results["storage_mb_s"], 0)

    def test_only_one_kind(self):
        run = self.measure("--measure", "switch", "--repeats", "2", "--kv-ratio", "0.4")["runs"][1]
        self.assertEqual((run["switch_ms"]["count"], run["ttft_with_slides_ms"]["count"]), (CALLS - WARMUP, 0))
        run = self.measure("--measure", "ttft", "--reply", "1", "--pause", "1")["runs"][0]
        self.assertEqual((run["switch_ms"]["count"], run["ttft_with_slides_ms"]["count"]), (0, CALLS - WARMUP))
        self.assertEqual(run["generate_tokens_per_s"]["count"], 0)  # nothing comes after the first token

    def test_slow_storage(self):
        results = self.measure("--policy", "vllm-sq", "--storage", "20", "--measure", "switch")
        self.assertLess(results["storage_mb_s"], 23)
        run = results["runs"][0]
        self.assertGreater(run["bytes_read"], 0)
        # no read is quicker than the storage
        self.assertGreaterEqual(run["switch_ms"]["mean"] * run["switches"], run["bytes_read"] / 20e6 * 1e3 * 0.8)

    def test_saved_trace_is_the_same(self):
        path = os.path.join(self.directory, "..", os.path.basename(self.directory) + ".trace")
        self.addCleanup(os.remove, path)
        made = self.measure("--policy", "lmk", "--pattern", "gaussian", "--seed", "9", "--save", path)
        self.assertEqual(self.run_bench("--dry", "--trace", path).returncode, 0)
        read = self.measure("--policy", "lmk", "--trace", path, "--contexts", "3")
        self.assertEqual(made["trace"], read["trace"])
        for key in ("calls", "slides", "same_context", "chunks"):  # no clock decides what this policy does
            self.assertEqual(made["runs"][0][key], read["runs"][0][key])

    def test_budget_in_contexts(self):
        chunk = 2 * 16 * 64 // 64 * 64  # a floor: a chunk of one layer with one head of 64
        done = self.measure("--budget-contexts", "1.5")
        self.assertGreater(done["budget_bytes"], 1.5 * LENGTH / 16 * chunk)
        self.assertLess(done["budget_bytes"], BUDGET)
        twice = self.measure("--budget-contexts", "3")
        self.assertAlmostEqual(twice["budget_bytes"] / done["budget_bytes"], 2, delta=0.01)

    def test_a_missing_peer_and_a_policy_without_room_say_so(self):
        peer = os.path.join(self.directory, "no-peer")
        results = self.measure("--policy", "swapping,llms", "--budget", "700K", "--peer", peer)
        self.assertIn("budget", results["runs"][0]["error"])
        self.assertGreater(results["runs"][1]["ttft_ms"]["median"], 0)
        self.assertEqual(len(results["peers"]), 3)
        for row in results["peers"]:
            self.assertIn(peer, row["error"])

    def test_table(self):
        done = self.run_bench("--policy", "int4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("int4", done.stdout)

    def test_wrong_use(self):
        bad = os.path.join(self.directory, "bad")
        with open(bad, "w") as out:
            out.write("llms-trace 1\npattern zipf\n")
        for options, status, words in (
                (["--policy", "best"], 2, "no policy 'best'"), (["--pattern", "zipf"], 2, "zipf"),
                (["--scale", "-1"], 2, "--scale"), (["--measure", "all"], 2, "--measure"), (["--budget", "0"], 2, "--budget"),
                (["--trace", bad], 1, "line 2"), (["--trace", bad + "-not"], 1, "No such file"),
                (["--daemon", "/bin/false"], 1, "ended with status 1"), (["--model", bad], 1, bad)):
            done = self.run_bench(*options)
            self.assertEqual((done.returncode, done.stdout), (status, ""), done.stderr)
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(os.listdir(self.directory), ["bad"])

    def test_interrupted(self):
        process = subprocess.Popen(self.command("--pause", "60000"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        end = time.monotonic() + PATIENCE_S
        while not any("journal.db" in names for _, _, names in os.walk(self.directory)):
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 1)
        self.assertIn(b"interrupted", errors)
        self.assertEqual(os.listdir(self.directory), [])


if __name__ == "__main__":
    if not os.path.exists(MODEL):
        print("no pocket-q8_0.gguf: skipped")
        sys.exit(77)
    unittest.main(verbosity=2)
