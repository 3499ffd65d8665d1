"""Results as CSV files: one row a point, with the commit it was measured at; comment lines say the machine.

A file is either being measured or complete ("# complete" is then its last line). A run that was interrupted leaves
what it has; the next one at the same commit, with the same settings, goes on behind it. Files of another commit or
other settings are measured anew, and so are all where all are complete.
"""
import csv
import os
import platform
import subprocess

COMPLETE = "# complete"


def run_text(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit_of(top):
    """The commit, with a + where the tree differs from it (results and pictures apart)."""
    commit = run_text("git", "-C", top, "rev-parse", "--short=12", "HEAD") or "unknown"
    changed = run_text("git", "-C", top, "status", "--porcelain", "--untracked-files=no", "--", ".",
                       ":!docs/results", ":!docs/figures", ":!docs/MEASURED.md")
    return commit + ("+" if changed else "")


def cpu_name():
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def machine_text():
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        memory = 0
    return "%s, %d CPUs, %.0f GiB, %s %s" % (cpu_name(), os.cpu_count() or 1, memory, platform.system(),
                                             platform.release())


class Results:
    """One file. `keys`: the columns that name a point; `settings`: what must be the same to go on with a file."""

    def __init__(self, directory, name, keys, values, settings):
        self.path = os.path.join(directory, name + ".csv")
        self.keys, self.columns = keys, keys + values
        self.head = ["# %s: %s" % item for item in settings.items()]
        self.rows, self.complete, self.head_read = [], False, []

    def read(self):
        """What the file has; nothing where there is none."""
        self.rows, self.complete, self.head_read = [], False, []
        try:
            with open(self.path, newline="") as text:
                lines = text.read().splitlines()
        except OSError:
            return self
        self.complete = COMPLETE in lines
        self.head_read = [line for line in lines if line.startswith("# ") and line != COMPLETE]
        body = [line for line in lines if not line.startswith("#")]
        self.rows = [row for row in csv.DictReader(body) if None not in row.values()]
        return self

    def same(self):
        """Whether the file is of the same settings."""
        self.read()
        return self.head_read == self.head and (not self.rows or list(self.rows[0]) == self.columns)

    def begin(self, anew=False):
        """Goes on with the file if it is of the same settings, else (and if anew) empties it. How many rows stay."""
        if not self.same() or anew:
            self.rows = []
        elif self.complete:
            return len(self.rows)
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "w", newline="") as out:
            out.write("\n".join(self.head) + "\n")
            csv.writer(out, lineterminator="\n").writerow(self.columns)
            writer = csv.DictWriter(out, self.columns, lineterminator="\n")
            writer.writerows(self.rows)
        self.complete = False
        return len(self.rows)

    def find(self, **key):
        """The rows whose columns have these values."""
        wanted = {name: show(value) for name, value in key.items()}
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]

    def add(self, **row):
        shown = {name: show(row.get(name, "")) for name in self.columns}
        self.rows.append(shown)
        with open(self.path, "a", newline="") as out:
            csv.DictWriter(out, self.columns, lineterminator="\n").writerow(shown)

    def finish(self):
        if self.complete:
            return
        with open(self.path, "a") as out:
            out.write(COMPLETE + "\n")
        self.complete = True


def show(value):
    if isinstance(value, float):
        return "%.6g" % value
    return " ".join(str(value).split())


def number(row, column):
    """A row's number; None where it has none (an error stands there)."""
    try:
        return float(row[column])
    except (KeyError, ValueError, TypeError):
        return None
