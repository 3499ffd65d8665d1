#!/usr/bin/env python3
"""llms-bench switch on the default model: what its JSON says must hold together.

Usage: test_bench_switch.py BUILD-DIRECTORY [unittest arguments]
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
CONTEXTS, TOKENS, CALLS, CHUNK = 8, 300, 6, 16
BUDGET = 1400 << 10  # at 16 bits one context of the eight, at 8 bits two; at 4 bits not all of them
PATIENCE_S = 200


def arguments(*options, directory, budget):
    return [BENCH, "switch", "--model", MODEL, "--contexts", str(CONTEXTS), "--tokens", str(TOKENS), "--calls",
            str(CALLS), "--budget", str(budget), "--pause", "5", "--threads", "2", "--state-dir", directory, *options]


class Switch(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="llms-switch-")
        self.addCleanup(shutil.rmtree, self.directory)

    def run_bench(self, *options, budget=BUDGET):
        return subprocess.run(arguments(*options, directory=self.directory, budget=budget), text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)

    def measure(self, *options, budget=BUDGET):
        done = self.run_bench("--json", *options, budget=budget)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def assert_spread(self, figures, count):
        self.assertEqual(figures["count"], count)
        self.assertLessEqual(figures["min"], figures["median"])
        self.assertLessEqual(figures["median"], figures["p95"])
        self.assertLessEqual(figures["p95"], figures["max"])

    def check_run(self, run, policy):
        """What holds for every policy under a budget that not all contexts fit."""
        self.assertEqual(run["policy"], policy)
        self.assertEqual((run["contexts"], run["tokens"], run["budget_bytes"]), (CONTEXTS, TOKENS, BUDGET))
        for key in ("resident_ttft_ms", "switch_ttft_ms"):
            self.assert_spread(run[key], CALLS)
            self.assertGreater(run[key]["min"], 0)
        self.assertGreater(run["storage_mb_s"], 0)
        self.assertGreater(run["compute_tokens_per_s"], 0)
        self.assertLessEqual(run["kv_resident_bytes"], run["budget_bytes"])
        chunks, again = run["chunks"], run["resident_chunks"]
        self.assertGreater(chunks["loaded"] + chunks["recomputed"], 0)
        self.assertEqual((again["loaded"], again["recomputed"]), (0, 0))
        self.assertLessEqual(run["recomputed_tokens"], chunks["recomputed"] * CHUNK)
        self.assertEqual(run["recomputed_tokens"] > 0, chunks["recomputed"] > 0)
        for counts in (chunks, again):  # each call accounts for all chunks of its context
            least, most = CALLS * (TOKENS - 50) // CHUNK, CALLS * (2 * TOKENS // CHUNK)
            self.assertTrue(least <= sum(counts.values()) <= most, counts)

    def test_policies(self):
        runs = self.measure("--policy", "llms,lmk,vllm-sq", "--new", "16", "--restore")["runs"]
        self.assertEqual(len(runs), 3)
        for run, policy in zip(runs, ("llms", "lmk", "vllm-sq")):
            self.check_run(run, policy)
            self.assertEqual(run["delta"], 16)
            self.assert_spread(run["restore_ms"], CALLS)
        llms, lmk, vllm = runs
        self.assertEqual((lmk["chunks"]["loaded"], lmk["bytes_read"]), (0, 0))  # it stores nothing
        self.assertGreater(lmk["recomputed_tokens"], CALLS * (TOKENS - 50))
        self.assertEqual(lmk["switches_without_restore"], 0)  # at 16 bits not even one other fits beside
        self.assertGreater(vllm["chunks"]["loaded"], 0)
        self.assertGreaterEqual(vllm["bytes_read"], vllm["chunks"]["loaded"] * 1024)
        self.assertGreater(vllm["bound_ms"]["max"], 0)
        self.assertLess(llms["bytes_read"], vllm["bytes_read"])  # what is smaller stays, or is read sooner

    def test_splits_and_slow_storage(self):
        runs = self.measure("--policy", "vllm-sq", "--splits", "0,100", "--storage", "20")["runs"]
        self.assertEqual([run["recompute_percent"] for run in runs], [None, 0, 100])
        for run in runs:
            self.check_run(run, "vllm-sq")
            self.assertTrue(run["storage_mb_s"] <= 22 <= run["storage_unlimited_mb_s"], run["storage_mb_s"])
        self.assertGreater(runs[1]["chunks"]["loaded"], 0)
        self.assertEqual((runs[2]["chunks"]["loaded"], runs[2]["bytes_read"]), (0, 0))
        # no read is quicker than the storage
        self.assertGreaterEqual(runs[1]["switch_ttft_ms"]["max"], runs[1]["bound_ms"]["median"] * 0.8)

    def test_all_fits(self):
        run = self.measure("--policy", "llms", budget="64M")
        self.assertEqual((run["chunks"]["loaded"], run["chunks"]["recomputed"], run["bytes_read"]), (0, 0, 0))
        self.assertEqual(run["switches_without_restore"], CALLS)

    def test_a_missing_peer_and_a_policy_without_room_say_so(self):
        peer = os.path.join(self.directory, "no-peer")
        runs = self.measure("--policy", "llms,lmk", "--peer", peer, budget="800K")
        self.assertIn("budget", runs["runs"][1]["error"])
        self.assertGreater(runs["runs"][0]["switch_ttft_ms"]["median"], 0)
        self.assertEqual(len(runs["peers"]), 3)
        for row in runs["peers"]:
            self.assertIn(peer, row["error"])

    def test_table(self):
        done = self.run_bench("--policy", "int4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("int4", done.stdout)
        self.assertEqual(os.listdir(self.directory), [])

    def test_wrong_use(self):
        for options, words in ((["--policy", "best"], "no policy 'best'"), (["--contexts", "1"], "--contexts"),
                               (["--kv-ratio", "2"], "--kv-ratio")):
            done = self.run_bench(*options)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(words, done.stderr)
        done = self.run_bench(budget="0")
        self.assertEqual(done.returncode, 2)
        done = self.run_bench("--tokens", "1000000")
        self.assertEqual(done.returncode, 1)
        self.assertIn("more than the model's", done.stderr)
        self.assertEqual(os.listdir(self.directory), [])

    def test_interrupted(self):
        command = arguments("--pause", "60000", directory=self.directory, budget=BUDGET)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
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
