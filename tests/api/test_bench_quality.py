#!/usr/bin/env python3
"""llms-bench quality on the default model and a short conversation: what its JSON says must hold together.

Usage: test_bench_quality.py BUILD-DIRECTORY [unittest arguments]
"""
import csv
import json
import math
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
PATIENCE_S = 200
NOTE = {"role": "user", "content": "Please note: my boss's name is Quinn."}
SAVED = {"role": "assistant", "content": "Okay, I saved your boss's name."}
QUERY = {"kind": "note", "question": "What is my boss's name?", "answer": "Quinn",
         "reply": "Your boss's name is Quinn.", "distance_tokens": 40}
CHAT = ("I want to find a restaurant in San Jose.", "What kind of food do you like?", "Some Mexican food.",
        "How about La Victoria Taqueria in San Jose?", "Yes, please book a table for two at 7 pm.",
        "Your table is booked. Can I do anything else for you?")


def conversation(number, turns):
    """The note, then `turns` turns of talk."""
    talk = [NOTE, SAVED]
    for i in range(turns):
        talk.append({"role": "user", "content": CHAT[2 * i % len(CHAT)]})
        talk.append({"role": "assistant", "content": CHAT[2 * i % len(CHAT) + 1]})
    return {"id": f"c{number}", "turns": [{"role": "system", "content": "Help."}] + talk,
            "queries": [QUERY, dict(QUERY, kind="fact", answer="not in any reply", distance_tokens=1500)]}


class Quality(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="llms-quality-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.data = os.path.join(self.directory, "data.jsonl")
        self.write(conversation(i, 5 + 2 * i) for i in range(2))

    def write(self, cases):
        with open(self.data, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(case) + "\n" for case in cases)

    def run_bench(self, *options, model=MODEL):
        return subprocess.run([BENCH, "quality", "--model", model, "--data", self.data, *options], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)

    def measure(self, *options):
        done = self.run_bench("--json", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "")
        found = json.loads(done.stdout)
        return found, {setting["name"]: setting for setting in found["settings"]}

    def test_settings_and_their_figures(self):
        lines = os.path.join(self.directory, "lines.csv")
        names = ["16", "8", "uniform-4", "uniform-2", "paper@0.5", "llms@0.5", "llms@0.3", "8x3", "llms@0.3x3"]
        found, settings = self.measure("--settings", ",".join(names), "--csv", lines)
        self.assertEqual(list(settings), names)
        self.assertTrue(found["complete"])
        for setting in settings.values():
            self.assertEqual((setting["cases"], setting["queries"]), (2, 4))
            self.assertTrue(1 < setting["perplexity"] < 1000)
            self.assertEqual(setting["by_kind"]["fact"], {"found": 0, "queries": 2, "recall": 0})
            self.assertEqual([band["queries"] for band in setting["by_distance"]], [2, 0, 0, 2])
            self.assertAlmostEqual(setting["recall"], setting["by_kind"]["note"]["found"] / 4)
        self.assertEqual(settings["16"]["by_kind"]["note"]["found"], 2)  # so near that it is found
        bits = {name: setting["bits_per_value"] for name, setting in settings.items()}
        self.assertEqual((bits["16"], bits["8"]), (16, 8.25))  # a scale of 16 bits for 64 values
        self.assertTrue(4.25 < bits["uniform-4"] < 5.5)        # the last chunk is not full and stays at 8
        self.assertTrue(2.25 < bits["uniform-2"] < bits["llms@0.3"] < bits["llms@0.5"] < bits["8"])
        nearly = settings["8"]["perplexity_change_percent"]["mean"]
        self.assertTrue(abs(nearly) < 1 and nearly != 0)
        replies = {name: abs(settings[name]["reply_perplexity_change_percent"]["mean"]) for name in ("8", "uniform-2")}
        self.assertGreater(replies["uniform-2"], replies["8"])
        self.assertEqual(settings["16"]["perplexity_change_percent"], {"mean": 0, "error": 0})
        self.assertAlmostEqual(
            settings["uniform-2"]["perplexity_change_percent"]["mean"],
            100 * (settings["uniform-2"]["perplexity"] / settings["16"]["perplexity"] - 1), places=3)
        # Where nothing is lowered, what is computed again is what it was.
        for key in ("perplexity", "reply_perplexity", "recall", "bits_per_value"):
            self.assertEqual(settings["8x3"][key], settings["8"][key])
        self.assertNotEqual(settings["llms@0.3x3"]["perplexity"], settings["llms@0.3"]["perplexity"])
        with open(lines, encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        self.assertEqual(len(rows), 2 * len(names))
        for name, setting in settings.items():
            mine = [row for row in rows if row["setting"] == name]
            total = sum(float(row["log_probability"]) for row in mine) / sum(int(row["tokens"]) for row in mine)
            self.assertAlmostEqual(math.exp(-total), setting["perplexity"], places=4)

    def test_the_same_on_any_number_of_threads(self):
        one = self.measure("--settings", "16,llms@0.4", "--threads", "1", "--cases", "1")[0]["settings"]
        two = self.measure("--settings", "16,llms@0.4", "--threads", "2", "--cases", "1")[0]["settings"]
        self.assertEqual(one, two)
        self.assertEqual(one[0]["cases"], 1)

    def test_a_table_without_json(self):
        done = self.run_bench("--settings", "16,uniform-4", "--cases", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([line.split()[0] for line in done.stdout.splitlines()[-2:]], ["16", "uniform-4"])

    def test_interrupted_it_tells_what_it_has(self):
        self.write(conversation(i, 20) for i in range(400))
        bench = subprocess.Popen([BENCH, "quality", "--model", MODEL, "--data", self.data, "--cases", "400", "--json",
                                  "--settings", "8"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(3)
        bench.send_signal(signal.SIGINT)
        out, error = bench.communicate(timeout=PATIENCE_S)
        self.assertEqual(bench.returncode, 1)
        self.assertRegex(error, r"^llms-bench quality: interrupted: \d+ of 400 conversations were run\n$")
        if out:  # nothing, where not even one was done
            found = json.loads(out)
            self.assertFalse(found["complete"])
            self.assertTrue(0 < found["settings"][0]["cases"] < 400)

    def test_refusals(self):
        for options, words in (
            (["--settings", "uniform-5"], "'uniform-5' is no setting"),
            (["--settings", "16@0.5"], "'16@0.5' is no setting"),
            (["--settings", "llms@1.5"], "'llms@1.5' is no setting"),
            (["--settings", "llmsx0"], "'llmsx0' is no setting"),
            (["--settings", ","], "none is given"),
            (["--cases", "0"], "--cases: '0'"),
        ):
            done = self.run_bench(*options)
            self.assertEqual(done.returncode, 2, options)
            self.assertIn(words, done.stderr)
        lines = (
            ("{", "line 1 is no conversation"),
            (json.dumps(dict(conversation(0, 1), turns=[NOTE])), "line 1 is no conversation"),
            (json.dumps(dict(conversation(0, 1), turns=[SAVED, NOTE])), "line 1 is no conversation"),
            (json.dumps(dict(conversation(0, 1), queries=[{"kind": "note"}])), "line 1 is no conversation"),
            (json.dumps(conversation(0, 200)), "longer than the model's context"),
            ("", "no conversation"),
        )
        for line, words in lines:
            with open(self.data, "w", encoding="utf-8") as out:
                out.write(line)
            done = self.run_bench()
            self.assertEqual((done.returncode, done.stdout), (1, ""), line[:40])
            self.assertIn(words, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)
        os.remove(self.data)
        self.assertIn("No such file", self.run_bench().stderr)


if __name__ == "__main__":
    unittest.main()
