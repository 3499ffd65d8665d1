"""The pictures: SVG by gnuplot from the CSV files, in the colours of Okabe and Ito, which the colour-blind can tell
apart; lines differ in their marks and dashes too, bars in their filling, so that a print without colour reads."""
import math
import os
import subprocess
import sys

from figures_results import Results, number

#        colour, point type, dash type, fill pattern
STYLE = {
    "llms": ("#0072B2", 7, 1, 3),
    "paper": ("#56B4E9", 6, 4, 1),
    "int4": ("#009E73", 5, 2, 4),
    "vllm-sq": ("#E69F00", 9, 3, 2),
    "vllm-s": ("#D55E00", 8, 5, 6),
    "swapping": ("#CC79A7", 11, 2, 7),
    "lmk": ("#000000", 2, 4, 5),
    "no-lifecycle": ("#D55E00", 8, 5, 6),
    "no-compression": ("#E69F00", 9, 3, 2),
    "no-pipeline": ("#CC79A7", 11, 2, 7),
}
STORAGE_NAMES = {"0": "as it is", "1000": "UFS 3.1", "250": "eMMC", "50": "SD card"}
HEAD = """set terminal svg size %d,%d dynamic font 'sans-serif,13' background 'white' dashlength 0.7
set output '%s'
set encoding utf8
set datafile missing '?'
set grid back linecolor '#c8c8c8' dashtype 1 linewidth 0.7
set border linewidth 1.2
set key top left font ',11' spacing 0.95
"""


def gnuplot(script, path):
    done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True)
    if done.returncode != 0 or not os.path.exists(path):
        print("gnuplot: %s: %s" % (path, done.stderr.strip()), file=sys.stderr)
        return
    with open(path) as text:  # so that the same data give the same bytes
        lines = text.read().splitlines()
    with open(path, "w") as out:
        out.write("\n".join(line.rstrip() for line in lines) + "\n")


def load(directory, name):
    return Results(directory, name, [], [], {}).read()


def unique(rows, column):
    return list(dict.fromkeys(row[column] for row in rows))


def block(name, rows, *columns):
    """Inline data: a line a row, ? where a number is missing."""
    lines = []
    for row in rows:
        values = [number(row, column) for column in columns]
        lines.append(" ".join("?" if value is None else "%.6g" % value for value in values))
    return "$%s << END\n%s\nEND\n" % (name, "\n".join(lines))


def curves(rows, x, y, prefix, scale="linespoints"):
    """Inline data and what to plot: a curve for each policy that has a number."""
    data, plots = "", []
    for policy in unique(rows, "policy"):
        own = [row for row in rows if row["policy"] == policy and number(row, y) is not None]
        if not own:
            continue
        colour, point, dash, _ = STYLE.get(policy, ("#000000", 1, 1, 1))
        name = "%s_%s" % (prefix, policy.replace("-", "_"))
        data += block(name, own, x, y)
        plots.append("$%s using 1:2 with %s linecolor '%s' pointtype %d dashtype %d linewidth 2 pointsize 0.8 title '%s'" % (
            name, scale, colour, point, dash, policy))
    return data, plots


def panels(path, items, width=1050, height=380, setup="", key="top left"):
    """items: (title, data, plots, further settings). Panels side by side; the first has the key."""
    script = HEAD % (width, height, path) + setup
    for _, data, _, _ in items:
        script += data
    script += "set multiplot layout 1,%d\n" % len(items)
    for index, (title, _, plots, more) in enumerate(items):
        script += "set title '%s'\n%s" % (title, more)
        script += ("set key %s\n" % key if index == 0 else "unset key\n") + "plot " + ", \\\n  ".join(plots) + "\n"
    gnuplot(script + "unset multiplot\n", path)


def draw_9(results, path):
    rows = load(results, "fig9").rows
    items = []
    for pattern in unique(rows, "pattern"):
        data, plots = curves([r for r in rows if r["pattern"] == pattern], "contexts", "switch_ms_mean", pattern)
        items.append((pattern, data, plots, "set xlabel 'contexts'\nset ylabel 'mean switching latency, ms'\n"))
    panels(path, items, setup="set logscale y\nset xtics (2,4,6,8,12,16)\nset xrange [1:17]\nset yrange [0.02:2000]\n")


def bars(path, rows, groups, names, y, ylabel, title_of, width=900, height=400, log=True, rows_of_key=3):
    """Clustered bars: a group for each value of the column `groups`, a bar for each policy; the spread of repeats as
    a line."""
    policies, values = unique(rows, "policy"), unique(rows, groups)
    script = HEAD % (width, height, path)
    script += "set ylabel '%s'\nset boxwidth %.3f\nset style fill pattern border -1\n" % (ylabel, 0.8 / len(policies))
    script += "set xrange [-0.6:%.1f]\nset key top left maxrows %d\n" % (len(values) - 0.4, rows_of_key)
    script += "set bmargin 4\n"
    script += "set logscale y\n" if log else "set yrange [0:*]\n"
    script += "set xtics (%s)\n" % ", ".join('"%s" %d' % (title_of(v), i) for i, v in enumerate(values))
    plots, tops = [], []
    for index, policy in enumerate(policies):
        lines = []
        for at, value in enumerate(values):
            own = [number(r, y) for r in rows if r["policy"] == policy and r[groups] == value]
            own = sorted(v for v in own if v is not None)
            if own:
                x = at + (index - (len(policies) - 1) / 2) * 0.8 / len(policies)
                lines.append("%.4f %.6g %.6g %.6g" % (x, own[len(own) // 2], own[0], own[-1]))
                tops.append(own[-1])
        if not lines:
            continue
        colour, _, _, pattern = STYLE.get(policy, ("#000000", 1, 1, 1))
        name = "bars_%d" % index
        script += "$%s << END\n%s\nEND\n" % (name, "\n".join(lines))
        plots.append("$%s using 1:2 with boxes fillstyle pattern %d linecolor '%s' title '%s'" % (
            name, pattern, colour, names.get(policy, policy)))
        plots.append("$%s using 1:3:(0):($4-$3) with vectors nohead linecolor '#000000' linewidth 2 notitle" % name)
    if not plots:
        return
    if log:  # room for the key
        script += "set yrange [*:%.3g]\n" % (max(tops) * 30)
    gnuplot(script + "plot " + ", \\\n  ".join(plots) + "\n", path)


def storage_title(value):
    return STORAGE_NAMES.get(value, value) + ("" if value == "0" else "\\n%s MB/s" % value)


def draw_storage(results, path):
    bars(path, load(results, "storage").rows, "storage", {}, "switch_ms_mean", "mean switching latency, ms", storage_title)


def draw_13(results, path):
    bars(path, load(results, "fig13").rows, "storage", {}, "switch_ms_mean", "mean switching latency, ms", storage_title)


def under_bound(rows, bound):
    """The contexts at which the mean reaches the bound, between measured numbers by a straight line; None: not even two.
    And whether it was never reached."""
    last = None
    for row in sorted(rows, key=lambda r: int(r["contexts"])):
        contexts, mean = int(row["contexts"]), number(row, "switch_ms_mean")
        if mean is None:
            break
        if mean > bound:
            if last is None:
                return None, False
            return last[0] + (contexts - last[0]) * (bound - last[1]) / (mean - last[1]), False
        last = (contexts, mean)
    return (last[0], True) if last else (None, False)


def draw_10(results, path):
    rows = load(results, "fig10").rows
    items = []
    for bound in (10, 25):
        points = []
        for policy in unique(rows, "policy"):
            for budget in unique(rows, "budget_contexts"):
                own = [r for r in rows if r["policy"] == policy and r["budget_contexts"] == budget]
                most, _ = under_bound(own, bound)
                points.append({"policy": policy, "budget": budget, "most": "" if most is None else "%.3g" % most})
        data, plots = curves(points, "budget", "most", "b%d" % bound)
        items.append(("under %d ms on average" % bound, data, plots,
                      "set xlabel 'KV budget, full contexts at 8 bits'\nset ylabel 'contexts served'\n"))
    panels(path, items, 900, 380, "set xtics 1\nset xrange [0.8:3.2]\nset yrange [0:*]\n")


def draw_11(results, path):
    data, plots = curves(load(results, "fig11").rows, "context_length", "switch_ms_mean", "l")
    setup = "set logscale xy 10\nset logscale x 2\nset yrange [0.02:2000]\n"
    panels(path, [("8 contexts, Markov", data, plots,
                   "set xlabel 'tokens a context holds'\nset ylabel 'mean switching latency, ms'\n")], 620, 400, setup)


def draw_14(results, path):
    rows = load(results, "fig14").rows
    colours = [("#0072B2", 7, 1), ("#E69F00", 9, 3), ("#009E73", 5, 2)]
    data, panels_of = "", [[], [], []]
    for index, shape in enumerate(unique(rows, "shape")):
        own = [r for r in rows if r["shape"] == shape and number(r, "read_ms") is not None]
        name = "c%d" % index
        data += block(name, own, "chunk_tokens", "useful_mb_s", "excess", "read_ms")
        best = min((number(r, "read_ms") for r in own), default=1)
        look = "with linespoints linecolor '%s' pointtype %d dashtype %d linewidth 2 title '%s'" % (
            *colours[index % 3], shape)
        panels_of[0].append("$%s using 1:2 %s" % (name, look))
        if index == 0:
            panels_of[1].append("$%s using 1:(($3-1)*100) with linespoints linecolor '#000000' pointtype 7 linewidth 2 title ''" % name)
        panels_of[2].append("$%s using 1:($4/%.6g) %s" % (name, best, look))
    if data:
        axis = "set xlabel 'tokens a chunk'\nset ylabel '%s'\nset yrange [%s]\n"
        panels(path, [("measured: scattered slices", data, panels_of[0], axis % ("useful MB/s", "0:*")),
                      ("modelled: read in excess", "", panels_of[1], axis % ("% more tokens than needed", "0:*")),
                      ("both: reading a switch", "", panels_of[2], axis % ("times the best size", "0.8:*") + "set logscale y\n")], 1050, 380,
               "set logscale x 2\nset xtics (4,8,16,32,64,128)\nset xrange [3.5:150]\n", "bottom right")


def draw_15(results, path):
    rows = load(results, "fig15").rows
    rate = [r for r in rows if r["budget_contexts"] == "2.5" and r["repeat"] == "0"]
    first, first_plots = curves(rate, "pause_ms", "switch_ms_mean", "p")
    second, second_plots = curves(rate, "pause_ms", "generate_tokens_per_s_median", "g")
    axis = "set xlabel 'pause between calls, ms'\nset ylabel '%s'\nset yrange [0:*]\n"
    if first_plots:
        panels(path, [("switches", first, first_plots, axis % "mean switching latency, ms"),
                      ("generation", second, second_plots, axis % "median, tokens/s")], 900, 380)


def decades(low, high):
    return "(%s)" % ", ".join('"%s" %d' % ("{:,}".format(10 ** n), n) for n in range(low, high + 1))


def draw_regimes(results, path):
    """The maps in logarithms, as an image wants even steps."""
    planned, measured = load(results, "regimes-map").rows, load(results, "regimes-measured").rows
    models = [m for m in unique(planned, "model") if any(r["model"] == m and number(r, "best_ms") for r in planned)]
    if not models:
        return
    script = HEAD % (470 * len(models), 430, path)
    # cividis: dark blue to yellow, even in grey
    script += """set palette defined (0 '#00224e', 0.25 '#414d6b', 0.5 '#7c7b78', 0.75 '#bcaf6f', 1 '#fee838')
set cbrange [1:2]
set xlabel 'storage, MB/s'
set ylabel 'recomputing, tokens/s'
set cblabel 'times as fast as the better of the two alone'
unset grid
unset key
set xrange [0:4]
set yrange [1:5]
set xtics %s
set ytics %s
set multiplot layout 1,%d
""" % (decades(0, 4), decades(1, 5), len(models))
    for index, model in enumerate(models):
        own = [r for r in planned if r["model"] == model and r["point"].startswith("map-")]
        gains = ["%.4f %.4f %.4g" % (math.log10(number(r, "storage_mb_s")), math.log10(number(r, "recompute_tokens_per_s")),
                                     gain(r)) for r in own]
        points = ['%.4f %.4f "%.1f"' % (math.log10(number(r, "storage_mb_s")), math.log10(number(r, "recompute_tokens_per_s")),
                                       gain(r)) for r in measured if r["model"] == model and number(r, "best_ms") is not None]
        script += "$map%d << END\n%s\nEND\n" % (index, "\n".join(gains))
        plots = ["$map%d using 1:2:3 with image" % index]
        if points:
            script += "$own%d << END\n%s\nEND\n" % (index, "\n".join(points))
            plots += ["$own%d using 1:2 with points pointtype 7 pointsize 0.9 linecolor 'white'" % index,
                      "$own%d using 1:2 with points pointtype 6 pointsize 0.9 linewidth 1.5 linecolor 'black'" % index,
                      "$own%d using 1:2:3 with labels offset 0,0.9 font ',10' textcolor 'white'" % index]
        script += "set title '%s' noenhanced\nplot %s\n" % (model, ", ".join(plots))
    gnuplot(script + "unset multiplot\n", path)


def gain(row):
    """How many times as fast the plan is as the better of reading all and recomputing all."""
    return min(number(row, "load_ms"), number(row, "recompute_ms")) / number(row, "best_ms")


def draw_peer(results, path):
    rows = [dict(r, policy=r["who"], group=r["pattern"]) for r in load(results, "peer").rows]
    looks = ["llms", "vllm-sq", "lmk", "int4", "swapping"]
    for row, name in zip(unique(rows, "who"), looks):
        STYLE[row] = STYLE[name]
    bars(path, rows, "group", {}, "ttft_ms_mean", "mean time to the first token, ms", lambda v: v, 700,
         rows_of_key=5)


DRAWINGS = {"fig9": draw_9, "storage": draw_storage, "fig10": draw_10, "fig11": draw_11, "fig13": draw_13, "fig14": draw_14,
            "fig15": draw_15, "regimes": draw_regimes, "peer": draw_peer}


def draw_all(results, figures):
    os.makedirs(figures, exist_ok=True)
    for name, draw in DRAWINGS.items():
        first = {"regimes": "regimes-map"}.get(name, name)
        if load(results, first).rows:
            draw(results, os.path.join(figures, name + ".svg"))
