#!/usr/bin/env python3
"""Measures the paper's figures on this machine, draws them, and puts their tables into docs/MEASURED.md.

Each figure is a CSV file in docs/results, one row a point, and an SVG in docs/figures (by gnuplot). The points come
from llms-bench, each command line of which can be run by hand; a figure's table says which. An interrupted run goes on
where it was when it is started again at the same commit (figures_results.py says when exactly).

The default takes the bundled model, small contexts and short traces, a quarter of an hour or so on two cores; --full
takes the 1B shape, contexts of 4,096 tokens and whole traces: many hours.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
import figures_plot  # noqa: E402
import figures_tables  # noqa: E402
from figures_results import Results, commit_of, machine_text, number, run_text  # noqa: E402

TOP = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
POLICIES = ["llms", "paper", "int4", "vllm-sq", "vllm-s", "swapping", "lmk"]
ABLATION = ["llms", "no-lifecycle", "no-compression", "no-pipeline", "paper", "int4"]
STORAGES = [0, 1000, 250, 50]  # as it is, UFS 3.1, eMMC, SD card
PATTERNS = ["random", "markov", "gaussian"]
PEER = os.path.join(TOP, "..", "shared", "tools", "peer-llama-cpp")

TRACE_KEYS = ["model", "pattern", "contexts", "context_length", "budget_contexts", "storage", "pause_ms", "reply", "policy",
              "repeat"]
SPREADS = ["switch_ms", "switch_away_ms", "ttft_ms", "ttft_with_slides_ms", "queue_ms", "generate_tokens_per_s"]
TRACE_VALUES = ["%s_%s" % (name, part) for name in SPREADS for part in ("mean", "median", "p95")] + [
    "switches", "calls", "slides", "mb_read_a_switch", "resident", "loaded", "recomputed", "storage_mb_s", "seconds", "error"]


class Scale:
    """How large everything is."""

    def __init__(self, full):
        self.full = full
        self.length = 4096 if full else 2048
        self.calls = 1000000 if full else 56
        self.counts = [2, 4, 6, 8, 12, 16]
        self.ladder = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
        self.lengths = [512, 1024, 2048, 4096] if full else [256, 512, 1024, 2048]
        self.repeats = 5 if full else 3
        self.pauses = [0, 20, 100, 500] if full else [0, 10, 50, 200]
        self.rate_calls = 200 if full else 32
        self.growth = 0.5 if full else 0.0625


class Stopped(Exception):
    pass


class Driver:
    def __init__(self, options):
        self.options = options
        self.scale = Scale(options.full)
        self.bench = os.path.join(options.build, "llms-bench")
        self.model = options.model or os.path.join(TOP, "models", "pocket-q8_0.gguf")
        self.commit = commit_of(TOP)
        self.peer = options.peer
        self.peer_version = peer_version(options.peer)
        self.done = self.planned = 0.0  # in estimated seconds
        self.spent = 0.0
        self.child = None
        self.told = 0.0

    # ---- progress ----

    def progress(self, text):
        left = self.planned - self.done
        if self.done > 20:
            left *= self.spent / self.done
        line = "%3.0f %%, about %d:%02d left: %s" % (100 * self.done / max(self.planned, 1), left // 60, left % 60, text)
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K" + line)
            sys.stderr.flush()
        elif time.monotonic() - self.told > 20:
            self.told = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def quiet(self):
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")

    # ---- llms-bench ----

    def ask(self, *arguments, environment=None):
        """Runs llms-bench; its JSON, or {"error"}."""
        self.child = subprocess.Popen([self.bench] + [str(a) for a in arguments] + ["--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True, start_new_session=True,
                                      env=dict(os.environ, **(environment or {})))
        try:
            out, errors = self.child.communicate()
        except (KeyboardInterrupt, Stopped):
            self.child.send_signal(signal.SIGINT)
            self.child.communicate()
            raise Stopped from None
        finally:
            status, self.child = self.child.returncode, None
        if status != 0:
            return {"error": (errors.strip().splitlines() or ["status %d" % status])[-1]}
        return json.loads(out)

    def state(self):
        return ["--state-dir", self.options.state_dir]

    # ---- trace points ----

    def results(self, name, keys, values, **settings):
        settings = dict({"machine": machine_text(), "model": os.path.basename(self.model), "commit": self.commit,
                         "seed": self.options.seed, "full": self.scale.full, "peer": self.peer_version}, **settings)
        return Results(self.options.results, name, keys, values, settings)

    def trace_arguments(self, point):
        out = ["trace", "--model", self.model, "--pattern", point["pattern"], "--contexts", point["contexts"],
               "--context-length", point["context_length"], "--budget-contexts", point["budget_contexts"], "--scale",
               self.scale.growth, "--calls", point.get("calls", self.scale.calls), "--seed", self.options.seed,
               "--measure", point.get("measure", "both")] + self.state()
        for option in ("storage", "reply"):
            if point.get(option):
                out += ["--" + option, point[option]]
        if point.get("pause_ms"):
            out += ["--pause", point["pause_ms"]]
        return out

    def trace_point(self, results, point, policies, repeat=0, estimate=2.0):
        """Measures a point under the policies it is missing."""
        key = {"model": os.path.basename(self.model), "pattern": point["pattern"], "contexts": point["contexts"],
               "context_length": point["context_length"], "budget_contexts": point["budget_contexts"],
               "storage": point.get("storage", 0), "pause_ms": point.get("pause_ms", 0), "reply": point.get("reply", 0),
               "repeat": repeat}
        missing = [p for p in policies if not results.find(policy=p, **key)]
        if missing:
            self.progress("%s: %s, %d contexts of %d, budget %s, storage %s" % (
                os.path.basename(results.path), point["pattern"], point["contexts"], point["context_length"],
                point["budget_contexts"], point.get("storage") or "as it is"))
            start = time.monotonic()
            answer = self.ask(*self.trace_arguments(point), "--policy", ",".join(missing))
            for row in trace_rows(answer, missing):
                results.add(**key, **row)
            self.spent += time.monotonic() - start
            self.done += estimate * len(missing)
        return [results.find(policy=p, **key)[0] for p in policies]


def peer_version(peer):
    if not peer or not os.access(peer, os.X_OK):
        return "not installed"
    try:
        done = subprocess.run([peer, "run", "llama-server", "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    words = (done.stdout + done.stderr).splitlines()
    return "llama.cpp, " + words[0] if done.returncode == 0 and words else "not installed"


def trace_rows(answer, policies):
    """A row for each policy of an answer of llms-bench trace."""
    for index, policy in enumerate(policies):
        run = answer["runs"][index] if "runs" in answer else {"error": answer["error"]}
        row = {"policy": policy, "error": run.get("error", "")}
        if "error" not in run:
            switches = max(run["switches"], 1)
            for name in SPREADS:
                for part in ("mean", "median", "p95"):
                    row["%s_%s" % (name, part)] = run[name][part] if run[name]["count"] else ""
            row.update(switches=run["switches"], calls=run["calls"], slides=run["slides"], seconds=run["seconds"],
                       storage_mb_s=answer["storage_mb_s"], mb_read_a_switch=run["bytes_read"] / switches / 1e6,
                       resident=run["chunks"]["resident"] / switches, loaded=run["chunks"]["loaded"] / switches,
                       recomputed=run["chunks"]["recomputed"] / switches)
        yield row


# ---- the figures: each yields (estimated seconds, what to do) ----

ESTIMATE = {"lmk": 5.0, "swapping": 2.6, "vllm-s": 2.2}


def estimate_of(policies, contexts=8):
    return sum(ESTIMATE.get(p, 1.8) for p in policies) * (0.4 + contexts / 13) / len(policies)


def figure_9(driver):
    """Switching latency against the number of contexts."""
    results = driver.results("fig9", TRACE_KEYS, TRACE_VALUES)
    for pattern in PATTERNS:
        for contexts in driver.scale.counts:
            point = {"pattern": pattern, "contexts": contexts, "context_length": driver.scale.length,
                     "budget_contexts": 2.5}
            each = estimate_of(POLICIES, contexts)
            yield results, each * len(POLICIES), lambda p=point, e=each: driver.trace_point(results, p, POLICIES, estimate=e)


def figure_storage(driver):
    """Switching latency against the storage."""
    results = driver.results("storage", TRACE_KEYS, TRACE_VALUES)
    for storage in STORAGES:
        point = {"pattern": "markov", "contexts": 8, "context_length": driver.scale.length, "budget_contexts": 2.5,
                 "storage": storage}
        each = 2.5 + (3 if storage == 50 else 0)
        yield results, each * len(POLICIES), lambda p=point, e=each: driver.trace_point(results, p, POLICIES, estimate=e)


def figure_10(driver):
    """The most contexts under a bound: for each budget, more and more until the mean is over 25 ms."""
    results = driver.results("fig10", TRACE_KEYS, TRACE_VALUES)

    def climb(policy, budget):
        for contexts in driver.scale.ladder:
            point = {"pattern": "markov", "contexts": contexts, "context_length": driver.scale.length,
                     "budget_contexts": budget, "storage": 50, "measure": "switch"}
            row = driver.trace_point(results, point, [policy], estimate=0.5)[0]
            mean = number(row, "switch_ms_mean")
            if mean is None or mean > 25:
                break

    for budget in (1, 2, 3):
        for policy in POLICIES:
            yield results, 11, lambda p=policy, b=budget: climb(p, b)


def figure_11(driver):
    """Switching latency against the length of contexts."""
    results = driver.results("fig11", TRACE_KEYS, TRACE_VALUES)
    longest = max(driver.scale.lengths)
    for length in driver.scale.lengths:
        # two and a half contexts of that length each time, so that as large a part of all is in memory
        point = {"pattern": "markov", "contexts": 8, "context_length": length, "budget_contexts": 2.5}
        each = 0.4 + 2.2 * length / longest
        yield results, each * len(POLICIES), lambda p=point, e=each: driver.trace_point(results, p, POLICIES, estimate=e)


def figure_13(driver):
    """What each part is good for: llms without it."""
    results = driver.results("fig13", TRACE_KEYS, TRACE_VALUES)
    for repeat in range(driver.scale.repeats):
        for storage in (0, 250, 50):  # as it is is about UFS 3.1 where this was written
            point = {"pattern": "markov", "contexts": 8, "context_length": driver.scale.length, "budget_contexts": 1.5,
                     "storage": storage}
            each = 1.6 + (2 if storage == 50 else 0)
            yield results, each * len(ABLATION), lambda p=point, r=repeat, e=each: driver.trace_point(
                results, p, ABLATION, r, estimate=e)


CHUNK_VALUES = ["slice_bytes", "useful_mb_s", "read_mb_s", "loaded_tokens", "written_tokens", "excess", "read_ms"]


def figure_14(driver):
    """The size of a chunk: reads measured, how many of them modelled."""
    results = driver.results("fig14", ["shape", "chunk_tokens"], CHUNK_VALUES + ["error"])
    shapes = [("pocket", []), ("llama-3.2-1b", ["--layers", 16, "--layer-bytes", 1056]),
              ("llama-2-7b", ["--layers", 32, "--layer-bytes", 8320])]

    def measure(shape, options):
        if results.find(shape=shape):
            return
        start = time.monotonic()
        driver.progress("fig14: chunks of %s" % shape)
        answer = driver.ask("chunks", "--model", driver.model, "--seed", driver.options.seed, *options, *driver.state())
        for row in answer.get("rows", [{"error": answer.get("error"), "chunk_tokens": 0}]):
            results.add(shape=shape, **row)
        driver.spent += time.monotonic() - start
        driver.done += 4

    for shape, options in shapes:
        yield results, 4, lambda s=shape, o=options: measure(s, o)


def figure_15(driver):
    """The manager's influence on generation, and that of how often calls come."""
    results = driver.results("fig15", TRACE_KEYS, TRACE_VALUES)
    scale = driver.scale
    base = {"pattern": "markov", "contexts": 8, "context_length": scale.length, "calls": scale.rate_calls, "reply": 48}
    for repeat in range(scale.repeats):
        for budget in (100, 2.5):  # all in memory, nothing ever leaves it: as good as no manager; and the usual
            point = dict(base, budget_contexts=budget)
            yield results, 6, lambda p=point, r=repeat: driver.trace_point(results, p, ["llms", "vllm-sq"], r, estimate=3)
    for pause in scale.pauses:
        point = dict(base, budget_contexts=2.5, pause_ms=pause)
        each = 3 + scale.rate_calls * pause / 1e3
        yield results, each * 3, lambda p=point, e=each: driver.trace_point(
            results, p, ["llms", "no-lifecycle", "vllm-sq"], estimate=e)


POINT_VALUES = ["storage_mb_s", "recompute_tokens_per_s", "load_ms", "recompute_ms", "best_ms", "recomputed_share", "error"]


def figure_regimes(driver):
    """Where reading, recomputing, or both pays: the planner's map, and points of it measured."""
    level = 8
    length = 1024
    planned = driver.results("regimes-map", ["model", "point"], POINT_VALUES)
    measured = driver.results("regimes-measured", ["model", "storage"], POINT_VALUES)
    small = make_model(driver, "smollm2-135m", "Q8_0")

    def map_of(model):
        name = os.path.basename(model)
        if planned.find(model=name):
            return
        start = time.monotonic()
        driver.progress("regimes: the planner's map of %s" % name)
        answer = driver.ask("regimes", "--model", model, "--tokens", length, "--level", level)
        if "error" in answer:
            planned.add(model=name, point="map", error=answer["error"])
        for index, row in enumerate(answer.get("map", [])):
            planned.add(model=name, point="map-%d" % index, **row)
        for index, row in enumerate(answer.get("machine", [])):
            planned.add(model=name, point="machine-%d" % index, **row)
        driver.spent += time.monotonic() - start
        driver.done += 5

    def check(model, storage, calls, estimate):
        name = os.path.basename(model)
        if measured.find(model=name, storage=storage):
            return
        start = time.monotonic()
        driver.progress("regimes: %s at %s MB/s" % (name, storage or "the disk's"))
        limit = ["--storage", storage] if storage else []
        answer = driver.ask("switch", "--model", model, "--contexts", 3, "--tokens", length, "--budget", "4G", "--policy",
                            "no-compression", "--splits", "0,100", "--restore", "--calls", calls, "--pause", 5, *limit,
                            *driver.state(), environment={"LLMS_STRESS": "evict"})  # all leaves memory after each call
        measured.add(model=name, storage=storage, **measured_row(answer))
        driver.spent += time.monotonic() - start
        driver.done += estimate

    models = [(driver.model, [0, 250, 100, 50, 25, 10], 8, 4), (small, [0, 100, 50, 25, 10], 3, 12)]
    if driver.scale.full:
        models.append((make_model(driver, "llama-3.2-1b", "Q4_0"), [0, 50, 10, 5, 2], 5, 300))
    for model, storages, calls, estimate in models:
        yield planned, 5, lambda m=model: map_of(m)
        for storage in storages:
            yield measured, estimate, lambda m=model, s=storage, c=calls, e=estimate: check(m, s, c, e)


def measured_row(answer):
    if "error" in answer:
        return {"error": answer["error"]}
    runs = answer["runs"]
    wrong = [run["error"] for run in runs if "error" in run]
    if wrong:
        return {"error": wrong[0]}
    best, load, recompute = runs

    def chunks(run):
        return (run["restore_chunks"]["loaded"] + run["restore_chunks"]["recomputed"]) / run["restore_ms"]["count"]

    def ms(run):  # contexts grow from run to run: as if each had brought in what the first did
        return run["restore_ms"]["median"] * chunks(best) / chunks(run)

    if not all(chunks(run) for run in runs):
        return {"error": "nothing had to be brought back"}
    return {"storage_mb_s": best["storage_mb_s"], "recompute_tokens_per_s": chunks(best) * 16 / ms(recompute) * 1e3,
            "load_ms": ms(load), "recompute_ms": ms(recompute), "best_ms": ms(best),
            "recomputed_share": best["restore_chunks"]["recomputed"] / best["restore_ms"]["count"] / chunks(best)}


def make_model(driver, shape, kind):
    path = os.path.join(driver.options.state_dir, "%s-%s.gguf" % (shape, kind.lower()))
    if not os.path.exists(path):
        os.makedirs(driver.options.state_dir, exist_ok=True)
        subprocess.run([driver.bench, "model", "--shape", shape, "--type", kind, "--out", path + ".new"], check=True)
        os.replace(path + ".new", path)
    return path


PEER_VALUES = ["ttft_ms_mean", "ttft_ms_median", "ttft_ms_p95", "computed_tokens_mean", "save_ms_median", "error"]


def figure_peer(driver):
    """llama-server with the same trace, the same budget, in the same run."""
    results = driver.results("peer", ["pattern", "contexts", "who"], PEER_VALUES)
    policies = ["llms", "vllm-sq"]

    def measure(pattern):
        if results.find(pattern=pattern):
            return
        start = time.monotonic()
        driver.progress("peer: llama-server, %s" % pattern)
        point = {"pattern": pattern, "contexts": 8, "context_length": driver.scale.length, "budget_contexts": 2.5,
                 "calls": driver.scale.rate_calls, "reply": 1, "measure": "ttft"}
        answer = driver.ask(*driver.trace_arguments(point), "--policy", ",".join(policies), "--peer", driver.peer)
        rows = [(run["policy"], run) for run in answer.get("runs", [])] + [
            ("llama-server, " + peer["mode"], peer) for peer in answer.get("peers", [])]
        for who, run in rows or [("all", answer)]:
            row = {"error": run.get("error", "")}
            ttft = run.get("ttft_with_slides_ms", run.get("ttft_ms"))
            if not row["error"]:
                row.update(ttft_ms_mean=ttft["mean"], ttft_ms_median=ttft["median"], ttft_ms_p95=ttft["p95"],
                           computed_tokens_mean=run["computed_tokens"]["mean"] if "computed_tokens" in run else "",
                           save_ms_median=run["save_ms"]["median"] if "save_ms" in run else "")
            results.add(pattern=pattern, contexts=8, who=who, **row)
        driver.spent += time.monotonic() - start
        driver.done += 40

    for pattern in ("markov",) + (("random",) if driver.scale.full else ()):
        yield results, 40, lambda p=pattern: measure(p)


FIGURES = {"fig9": figure_9, "storage": figure_storage, "fig10": figure_10, "fig11": figure_11, "fig13": figure_13,
           "fig14": figure_14, "fig15": figure_15, "regimes": figure_regimes, "peer": figure_peer}


def measure_all(driver, names):
    work = []
    for name in names:
        work.append((name, list(FIGURES[name](driver))))
    driver.planned = sum(estimate for _, steps in work for _, estimate, _ in steps)
    every = {name: list(dict.fromkeys(results for results, _, _ in steps)) for name, steps in work}
    anew = all(results.same() and results.complete for files in every.values() for results in files)
    for name, steps in work:
        files = every[name]
        kept = sum(results.begin(anew) for results in files)
        if kept:
            driver.quiet()
            print("%s: has %d rows from before" % (name, kept), file=sys.stderr)
        before = driver.done
        for results, _, step in steps:
            if not results.complete:
                step()
        driver.done = before + sum(estimate for _, estimate, _ in steps)
        for results in files:
            results.finish()
    driver.quiet()


def take_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("build", help="the build directory")
    parser.add_argument("--model", help="a GGUF (default: the bundled one; with --full the 1B shape)")
    parser.add_argument("--full", action="store_true", help="the full size: many hours")
    parser.add_argument("--only", metavar="NAME,..", help="of " + ", ".join(FIGURES))
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw from the results there are")
    parser.add_argument("--results", default=os.path.join(TOP, "docs", "results"), help="for CSV (default docs/results)")
    parser.add_argument("--figures", default=os.path.join(TOP, "docs", "figures"), help="for SVG (default docs/figures)")
    parser.add_argument("--measured", default=os.path.join(TOP, "docs", "MEASURED.md"), help="whose tables are refreshed")
    parser.add_argument("--state-dir", help="on a real disk, for KV and models (default: BUILD/bench)")
    parser.add_argument("--peer", default=os.environ.get("LLMS_PEER", PEER), help="a peer-llama-cpp")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.build = os.path.abspath(options.build)
    options.state_dir = os.path.abspath(options.state_dir or os.path.join(options.build, "bench"))
    names = options.only.split(",") if options.only else list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error("there is no figure %s" % unknown[0])
    return options, names


def main():
    options, names = take_options()
    driver = Driver(options)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if not options.draw:
            if options.full and not options.model:
                driver.model = make_model(driver, "llama-3.2-1b", "Q4_0")
            measure_all(driver, names)
    except (KeyboardInterrupt, Stopped):
        driver.quiet()
        print("interrupted; %s has what was measured, and the same command goes on from there" % options.results,
              file=sys.stderr)
        return 1
    if shutil.which("gnuplot"):
        figures_plot.draw_all(options.results, options.figures)
    else:
        print("gnuplot is not installed (gnuplot-nox): no pictures", file=sys.stderr)
    figures_tables.refresh(options.results, options.measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
