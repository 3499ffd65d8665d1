#!/usr/bin/env python3
"""llms-bench regimes and chunks: what their JSON says must hold together.

Usage: test_bench_regimes.py BUILD-DIRECTORY [unittest arguments]
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
MODEL = os.path.join(TOP, "models", "pocket-q8_0.gguf")
PATIENCE_S = 200


def run_bench(*options):
    return subprocess.run([BENCH, *options], text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)


class Regimes(unittest.TestCase):
    def measure(self, *options):
        done = run_bench("regimes", "--model", MODEL, "--tokens", "512", "--threads", "2", "--json", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def check(self, point, tokens, token_bytes):
        load, recompute, best = point["load_ms"], point["recompute_ms"], point["best_ms"]
        self.assertLessEqual(best, min(load, recompute) * 1.011)  # the planner promises 1 %
        self.assertGreaterEqual(best, min(load, recompute) / 2.3)  # two hands are not three
        self.assertTrue(0 <= point["recomputed_share"] <= 1)
        bytes_ms = tokens * token_bytes / point["storage_mb_s"] / 1e3
        self.assertGreaterEqual(load, bytes_ms * 0.999)
        if point["recomputed_share"] == 0:
            self.assertAlmostEqual(best, load, delta=load * 0.001)
        if point["recomputed_share"] == 1:
            self.assertAlmostEqual(best, recompute, delta=recompute * 0.001)

    def test_map(self):
        answer = self.measure("--storage", "1,1000", "--recompute", "100,100000")
        self.assertEqual(len(answer["map"]), 25 * 25)
        self.assertEqual(len(answer["machine"]), 25)
        self.assertGreater(answer["machine_tokens_per_s"], 0)
        for point in answer["map"] + answer["machine"]:
            self.check(point, 512, answer["bytes_per_token"])
        for low, high in zip(answer["machine"], answer["machine"][1:]):
            self.assertLess(low["storage_mb_s"], high["storage_mb_s"])
            self.assertGreater(low["load_ms"], high["load_ms"])
            self.assertAlmostEqual(low["recompute_ms"], high["recompute_ms"])
        # a slow disk and a fast processor recompute, the other way round they read
        corner = [p["recomputed_share"] for p in answer["map"]]
        self.assertEqual((corner[24], corner[-25]), (0, 1))
        # and between them both are better than either
        gains = [min(p["load_ms"], p["recompute_ms"]) / p["best_ms"] for p in answer["map"]]
        self.assertGreater(max(gains), 1.5)

    def test_levels(self):
        bits = {level: self.measure("--level", str(level), "--storage", "10,20", "--recompute", "10,20")["bytes_per_token"]
                for level in (16, 8, 4, 3, 2)}
        self.assertTrue(bits[16] > 1.8 * bits[8] > 3 * bits[4] > 5 * bits[2], bits)
        self.assertTrue(bits[4] > bits[3] > bits[2], bits)

    def test_wrong_use(self):
        for options, words in ((["--level", "5"], "--level"), (["--storage", "5"], "--storage"),
                               (["--recompute", "5,4"], "--recompute")):
            done = run_bench("regimes", "--model", MODEL, *options)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(words, done.stderr)
        done = run_bench("regimes", "--model", __file__)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))


class Chunks(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="llms-chunks-")
        self.addCleanup(shutil.rmtree, self.directory)

    def test_sizes(self):
        done = run_bench("chunks", "--model", MODEL, "--state-dir", self.directory, "--ms", "20", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.listdir(self.directory), [])
        answer = json.loads(done.stdout)
        rows = answer["rows"]
        self.assertEqual([row["chunk_tokens"] for row in rows], [4, 8, 16, 32, 64, 128])
        for row in rows:
            self.assertEqual(row["slice_bytes"], row["chunk_tokens"] * answer["layer_bytes_per_token"])
            self.assertTrue(0 < row["useful_mb_s"] < row["read_mb_s"])  # whole pages
            pages = (row["slice_bytes"] + 4096) / row["slice_bytes"]
            self.assertLess(row["read_mb_s"] / row["useful_mb_s"], pages + 1)
            self.assertGreaterEqual(row["excess"], 0.99)
            expected = row["loaded_tokens"] * answer["layers"] * answer["layer_bytes_per_token"] / row["useful_mb_s"] / 1e3
            self.assertAlmostEqual(row["read_ms"] / expected, 1, delta=0.001)
        for small, large in zip(rows, rows[1:]):
            self.assertLess(small["written_tokens"], large["written_tokens"])
        self.assertLess(rows[0]["excess"], rows[-1]["excess"])

    def test_all_fits(self):
        done = run_bench("chunks", "--model", MODEL, "--state-dir", self.directory, "--ms", "1", "--sizes", "16",
                         "--budget-contexts", "9", "--json")
        row = json.loads(done.stdout)["rows"][0]
        self.assertEqual((row["loaded_tokens"], row["read_ms"]), (0, 0))
        self.assertGreater(row["written_tokens"], 0)

    def test_wrong_use(self):
        for options, words in ((["--sizes", "0"], "--sizes"), (["--level", "5"], "--level"),
                               (["--budget-contexts", "0.5"], "--budget-contexts")):
            done = run_bench("chunks", "--model", MODEL, *options)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn(words, done.stderr)


if __name__ == "__main__":
    if not os.path.exists(MODEL):
        print("no pocket-q8_0.gguf: skipped")
        sys.exit(77)
    unittest.main(verbosity=2)
