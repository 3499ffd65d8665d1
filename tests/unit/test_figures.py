#!/usr/bin/env python3
"""The figures' driver without a measurement: what an interrupted run leaves and what goes on from it, the tables, the
numbers between measured ones, and, where gnuplot is installed, the pictures."""
import os
import shutil
import sys
import tempfile
import unittest

TOP = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(TOP, "bench"))
import figures  # noqa: E402
import figures_plot  # noqa: E402
import figures_tables  # noqa: E402
from figures_results import COMPLETE, Results, number  # noqa: E402


def read(path):
    with open(path) as text:
        return text.read()


class Case(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="llms-figures-")
        self.addCleanup(shutil.rmtree, self.directory)

    def results(self, name="some", commit="abc", **more):
        return Results(self.directory, name, ["a", "b"], ["value", "error"], dict({"commit": commit}, **more))


class Files(Case):
    def test_an_interrupted_run_goes_on(self):
        one = self.results()
        self.assertEqual(one.begin(), 0)
        one.add(a=1, b="x y", value=0.5)
        one.add(a=2, b="x y", error="no\n room, \"here\"")
        two = self.results()
        self.assertEqual(two.begin(), 2)
        self.assertEqual(number(two.find(a=1)[0], "value"), 0.5)
        self.assertEqual(two.find(a=2, b="x y")[0]["error"], 'no room, "here"')
        self.assertEqual(two.find(a=3), [])
        two.add(a=3, b="z", value=1e-9)
        self.assertEqual(len(self.results().read().rows), 3)
        self.assertFalse(self.results().read().complete)

    def test_a_line_cut_in_the_middle_is_measured_again(self):
        one = self.results()
        one.begin()
        one.add(a=1, b="x", value=2)
        with open(one.path, "a") as out:
            out.write("2,y")
        self.assertEqual(self.results().begin(), 1)

    def test_complete_files_stay_until_all_are(self):
        one = self.results()
        one.begin()
        one.add(a=1, b="x", value=2)
        one.finish()
        one.finish()
        self.assertEqual(read(one.path).count(COMPLETE), 1)
        two = self.results()
        self.assertEqual((two.begin(), two.complete), (1, True))
        self.assertEqual((two.begin(anew=True), two.complete), (0, False))

    def test_other_settings_begin_anew(self):
        for change in ({"commit": "def"}, {"machine": "another"}):
            one = self.results()
            one.begin()
            one.add(a=1, b="x", value=2)
            self.assertEqual(self.results(**change).begin(), 0)
        other = Results(self.directory, "some", ["a"], ["value"], {"commit": "abc"})
        self.results().add(a=1, b="x", value=2)
        self.assertEqual(other.begin(), 0)  # columns differ

    def test_a_failed_bench_is_a_row_that_says_so(self):
        rows = list(figures.trace_rows({"error": "llms-bench trace: no"}, ["llms", "lmk"]))
        self.assertEqual([(r["policy"], r["error"]) for r in rows],
                         [("llms", "llms-bench trace: no"), ("lmk", "llms-bench trace: no")])


def climb(*means):
    return [{"policy": "llms", "budget_contexts": "1", "contexts": str(n), "switch_ms_mean": str(mean), "error": ""}
            for n, mean in means]


class Numbers(Case):
    def test_under_a_bound(self):
        rows = climb((2, 1), (4, 5), (8, 25), (12, 50))
        self.assertEqual(figures_plot.under_bound(rows, 25), (8, False))
        self.assertEqual(figures_plot.under_bound(rows, 10), (5, False))  # a quarter of the way from 4 to 8
        self.assertEqual(figures_plot.under_bound(rows, 60), (12, True))  # never reached
        self.assertEqual(figures_plot.under_bound(rows, 0.5), (None, False))
        self.assertEqual(figures_plot.under_bound(climb((2, "")), 10), (None, False))

    def test_figures(self):
        self.assertEqual([figures_tables.figure(v) for v in (0.01234, 1.234, 12.34, 123.4, 1234.5, 1e-7, None)],
                         ["0.0123", "1.23", "12.3", "123", "1,234", "0.0000", ""])

    def test_cells_say_why_there_is_no_number(self):
        self.assertEqual(figures_tables.cell({"switch_ms_mean": "", "error": "the KV budget is too small"}), "cannot")
        self.assertEqual(figures_tables.cell({"switch_ms_mean": "", "error": "other"}), "fails")
        self.assertEqual(figures_tables.cell({"switch_ms_mean": "2.5", "error": ""}), "2.5")


class Documents(Case):
    def measured(self):
        results = Results(self.directory, "fig9", figures.TRACE_KEYS, figures.TRACE_VALUES,
                          {"machine": "M", "commit": "abc", "seed": 1, "model": "pocket"})
        results.begin()
        for pattern in ("random", "markov", "gaussian"):
            for contexts in (2, 4, 8):
                for policy, times in (("llms", 1), ("lmk", 50)):
                    results.add(pattern=pattern, contexts=contexts, policy=policy, switch_ms_mean=contexts * times)
                results.add(pattern=pattern, contexts=contexts, policy="vllm-s", error="the budget is too small")
        return results

    def test_tables_are_put_where_they_belong(self):
        path = os.path.join(self.directory, "doc.md")
        with open(path, "w") as out:
            out.write("# A\n<!-- figures:fig9 -->\nold\n<!-- figures:end -->\nwords\n"
                      "<!-- figures:fig13 -->\nkept\n<!-- figures:end -->\n")
        results = self.measured()
        figures_tables.refresh(self.directory, path)
        text = read(path)
        self.assertIn("incomplete", text)
        results.finish()
        for _ in range(2):  # and again: the same
            figures_tables.refresh(self.directory, path)
        text = read(path)
        self.assertNotIn("incomplete", text)
        self.assertNotIn("old", text)
        self.assertTrue(text.startswith("# A\n<!-- figures:fig9 -->\n") and "\nwords\n" in text and "\nkept\n" in text)
        self.assertIn("| lmk | 100 | 200 | 400 |", text)
        self.assertIn("| vllm-s | cannot | cannot | cannot |", text)
        self.assertIn("| lmk | 50 | 50 | 50 |", text)  # times the latency of llms
        self.assertIn("commit abc, seed 1", text)
        self.assertEqual(text.count("figures:end"), 2)

    def test_pictures(self):
        if not shutil.which("gnuplot"):
            self.skipTest("gnuplot is not installed")
        self.measured()
        pictures = os.path.join(self.directory, "pictures")
        figures_plot.draw_all(self.directory, pictures)
        self.assertEqual(os.listdir(pictures), ["fig9.svg"])
        text = read(os.path.join(pictures, "fig9.svg"))
        for word in ("llms", "lmk", "contexts", "mean switching latency, ms", "gaussian", "rgb(  0, 114, 178)"):
            self.assertTrue(word in text, word)

    def test_every_figure_has_a_picture_and_a_table(self):
        self.assertEqual(set(figures.FIGURES), set(figures_plot.DRAWINGS))
        self.assertEqual(set(figures.FIGURES), set(figures_tables.TABLES))
        for policies in (figures.POLICIES, figures.ABLATION):
            for policy in policies:
                self.assertIn(policy, figures_plot.STYLE)
        looks = [figures_plot.STYLE[p][:2] for p in figures.POLICIES]
        self.assertEqual(len(set(looks)), len(looks))


if __name__ == "__main__":
    unittest.main(verbosity=1)
