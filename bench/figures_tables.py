"""The tables of docs/MEASURED.md, from the CSV files. A table stands between two lines,
    <!-- figures:NAME -->
    <!-- figures:end -->
and is replaced; text around it is a person's."""
import re

from figures_plot import STORAGE_NAMES, gain, load, under_bound, unique
from figures_results import number


def figure(value, digits=3):
    if value is None:
        return ""
    if value >= 10 ** digits:
        return "{:,.0f}".format(value)
    text = "%.*g" % (digits, value)
    return text if "e" not in text else "%.4f" % value


def cell(row, column="switch_ms_mean"):
    """A number, or why there is none."""
    if row is None:
        return ""
    value = number(row, column)
    if value is not None:
        return figure(value)
    return "cannot" if "budget" in row.get("error", "") else "fails" if row.get("error") else ""


def table(head, lines):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(out + ["| " + " | ".join(line) + " |" for line in lines])


def one(rows, **key):
    found = [r for r in rows if all(r[k] == v for k, v in key.items())]
    return found[0] if found else None


def where(results):
    """What the numbers are of."""
    facts = dict(line[2:].split(": ", 1) for line in results.head_read if ": " in line)
    state = "" if results.complete else "; **incomplete: the run was interrupted**"
    return "%s; commit %s, seed %s, model %s%s." % (facts.get("machine", "?"), facts.get("commit", "?"), facts.get("seed", "?"),
                                                  facts.get("model", "?"), state)


def table_9(results):
    rows = load(results, "fig9").rows
    out = []
    for pattern in unique(rows, "pattern"):
        own = [r for r in rows if r["pattern"] == pattern]
        counts = unique(own, "contexts")
        lines = [[policy] + [cell(one(own, policy=policy, contexts=c)) for c in counts] for policy in unique(own, "policy")]
        lines.append(["of llms: waiting for the last call's settling"] +
                     [cell(one(own, policy="llms", contexts=c), "queue_ms_mean") for c in counts])
        out.append(table([pattern + ", contexts:"] + counts, lines))
    ratios = []
    for policy in [p for p in unique(rows, "policy") if p != "llms"]:
        times = []
        for row in [r for r in rows if r["policy"] == policy]:
            ours = one(rows, policy="llms", pattern=row["pattern"], contexts=row["contexts"])
            if number(row, "switch_ms_mean") and ours and number(ours, "switch_ms_mean"):
                times.append(number(row, "switch_ms_mean") / number(ours, "switch_ms_mean"))
        if times:
            times.sort()
            ratios.append([policy] + [figure(t) for t in (times[len(times) // 2], times[0], times[-1])])
    return "\n\n".join(out + [table(["times the latency of llms", "median", "least", "most"], ratios)])


def table_storage(results):
    rows = load(results, "storage").rows
    lines = []
    for policy in unique(rows, "policy"):
        own = [one(rows, policy=policy, storage=s) for s in unique(rows, "storage")]
        lines.append([policy] + ["%s (p95 %s)" % (cell(r), cell(r, "switch_ms_p95")) if r and number(r, "switch_ms_mean")
                                 is not None else cell(r) for r in own] + [cell(r, "ttft_ms_median") for r in own])
    names = [STORAGE_NAMES.get(s, s) for s in unique(rows, "storage")]
    return table(["mean switching latency, ms"] + names + ["1st token, " + n for n in names], lines)


def table_10(results):
    rows = load(results, "fig10").rows
    lines = []
    budgets = unique(rows, "budget_contexts")
    for policy in unique(rows, "policy"):
        line = [policy]
        for bound in (10, 25):
            for budget in budgets:
                own = [r for r in rows if r["policy"] == policy and r["budget_contexts"] == budget]
                most, open_end = under_bound(own, bound)
                failed = own and number(own[0], "switch_ms_mean") is None
                line.append(cell(own[0]) if failed else "fewer than 2" if most is None else
                            "%s%.1f" % ("over " if open_end else "", most))
        lines.append(line)
    return table([""] + ["%d ms, budget %s" % (bound, b) for bound in (10, 25) for b in budgets], lines)


def table_11(results):
    rows = load(results, "fig11").rows
    lengths = unique(rows, "context_length")
    return table(["tokens:"] + lengths, [[p] + [cell(one(rows, policy=p, context_length=n)) for n in lengths]
                                         for p in unique(rows, "policy")])


def spread(rows, column):
    values = sorted(v for v in (number(r, column) for r in rows) if v is not None)
    if not values:
        return cell(rows[0], column) if rows else ""
    return "%s (%s .. %s)" % (figure(values[len(values) // 2]), figure(values[0]), figure(values[-1]))


def table_13(results):
    rows = load(results, "fig13").rows
    storages = unique(rows, "storage")
    return table(["mean switching latency, ms"] + [STORAGE_NAMES.get(s, s) for s in storages], [
        [p] + [spread([r for r in rows if r["policy"] == p and r["storage"] == s], "switch_ms_mean") for s in storages]
        for p in unique(rows, "policy")])


def table_14(results):
    rows = load(results, "fig14").rows
    lines = []
    for row in rows:
        if row.get("error"):
            lines.append([row["shape"], row["error"]] + [""] * 5)
            continue
        excess = (number(row, "excess") - 1) * 100
        lines.append([row["shape"], row["chunk_tokens"], "%.1f KB" % (number(row, "slice_bytes") / 1e3),
                      figure(number(row, "useful_mb_s")), "%.1f %%" % excess, figure(number(row, "written_tokens")),
                      figure(number(row, "read_ms"))])
    return table(["shape", "tokens a chunk", "slice", "useful MB/s (measured)", "read in excess (modelled)",
                  "tokens written a call (modelled)", "reading a switch, ms (both)"], lines)


def table_15(results):
    rows = load(results, "fig15").rows
    rate = "generate_tokens_per_s_median"
    still = [r for r in rows if r["pause_ms"] == "0"]
    lines = []
    for policy in unique([r for r in still if r["budget_contexts"] == "100"], "policy"):
        own = [[r for r in still if r["policy"] == policy and r["budget_contexts"] == b] for b in ("100", "2.5")]
        lines.append([policy] + [spread(o, rate) for o in own])
    first = table(["generation, tokens/s", "all in memory", "budget 2.5"], lines)
    moving = [r for r in rows if r["budget_contexts"] == "2.5" and r["repeat"] == "0"]
    pauses = unique(moving, "pause_ms")
    lines = [[p] + ["%s; %s; %s" % tuple(cell(one(moving, policy=p, pause_ms=n), c) for c in (
        "switch_ms_mean", "ttft_ms_median", rate)) for n in pauses] for p in unique(moving, "policy")]
    second = table(["switch ms; 1st token ms; tokens/s"] + ["pause %s ms" % p for p in pauses], lines)
    return first + "\n\n" + second


def predicted(planned, row):
    """The planner's best share and gain at the measured point's rates, from the nearest points of the map."""
    own = [r for r in planned if r["model"] == row["model"] and r["point"].startswith("map-")]

    def distance(r):
        return (abs(float(r["storage_mb_s"]) / number(row, "storage_mb_s") - 1) +
                abs(float(r["recompute_tokens_per_s"]) / number(row, "recompute_tokens_per_s") - 1))
    return min(own, key=distance) if own else None


def table_regimes(results):
    planned, measured = load(results, "regimes-map").rows, load(results, "regimes-measured").rows
    lines = []
    for row in measured:
        if number(row, "best_ms") is None:
            lines.append([row["model"], row["storage"], row["error"]] + [""] * 6)
            continue
        near = predicted(planned, row)
        lines.append([row["model"], figure(number(row, "storage_mb_s")), figure(number(row, "recompute_tokens_per_s")),
                      figure(number(row, "load_ms")), figure(number(row, "recompute_ms")), figure(number(row, "best_ms")),
                      "%.0f %%" % (100 * number(row, "recomputed_share")), "%.2f" % gain(row),
                      "%.2f" % gain(near) if near else ""])
    return table(["model", "storage, MB/s", "recompute, tokens/s", "read all, ms", "recompute all", "as planned",
                  "recomputed", "gain over the better", "the map's gain near there"], lines)


def table_peer(results):
    rows = load(results, "peer").rows
    return table(["to the first token, ms", "mean", "median", "p95", "prompt tokens computed", "saving after each call"],
                 [[r["who"], cell(r, "ttft_ms_mean") or r["error"], cell(r, "ttft_ms_median"), cell(r, "ttft_ms_p95"),
                   cell(r, "computed_tokens_mean"), cell(r, "save_ms_median")] for r in rows])


TABLES = {"fig9": table_9, "storage": table_storage, "fig10": table_10, "fig11": table_11, "fig13": table_13, "fig14": table_14,
          "fig15": table_15, "regimes": table_regimes, "peer": table_peer}


def refresh(results, path):
    """Puts the tables there are results for into the document."""
    with open(path, encoding="utf-8") as text:
        old = text.read()

    def replace(found):
        name = found.group(1)
        file = load(results, {"regimes": "regimes-measured"}.get(name, name)) if name in TABLES else None
        if not file or not file.rows:
            return found.group(0)
        return "<!-- figures:%s -->\n%s\n\n%s\n<!-- figures:end -->" % (name, TABLES[name](results), where(file))

    new = re.sub(r"<!-- figures:([a-z0-9]+) -->\n.*?<!-- figures:end -->", replace, old, flags=re.S)
    if new != old:
        with open(path, "w", encoding="utf-8") as out:
            out.write(new)
