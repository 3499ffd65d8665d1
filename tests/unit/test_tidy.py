#!/usr/bin/env python3
"""The tree's own rules, read from its sources: which way includes go, how long a file may be, and what may not be
left lying about. Prints a line for every breach."""
import os
import re
import sys
import unittest

TOP = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
LONGEST_FILE = 800

# What a room may include beside itself (docs/ARCHITECTURE.md). client and cli see the public header too.
BASE = {"base"}
OS = BASE | {"os"}
ENGINE = OS | {"model", "kernels", "kv", "store"}
ROOMS = {
    "base": set(),
    "os": BASE,
    "model": OS,
    "kernels": OS,
    "kv": OS,
    "store": OS,
    "engine": ENGINE,
    "service": ENGINE | {"engine"},
    "api": ENGINE | {"engine", "service"},
    "daemon": ENGINE | {"engine", "service", "api"},
    "client": BASE,
    "cli": BASE,
}
PUBLIC_HEADER_ROOMS = {"client", "cli"}
OPEN_MARKS = re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
SOURCE_ENDS = (".c", ".h", ".py", ".sh", ".build", ".md")


def sources(*folders, ends=SOURCE_ENDS):
    for folder in folders:
        for at, folders_below, names in os.walk(os.path.join(TOP, folder)):
            folders_below[:] = sorted(n for n in folders_below if n != "__pycache__" and not n.startswith("."))
            for name in sorted(names):
                if name.endswith(ends):
                    yield os.path.relpath(os.path.join(at, name), TOP)


def lines(path):
    with open(os.path.join(TOP, path), encoding="utf-8") as text:
        return text.read().split("\n")


def breaches_of_includes(path, text_lines):
    """Yields (line number, header) for each include of `path` that does not go down."""
    room = path.split("/")[1]
    for number, line in enumerate(text_lines, 1):
        found = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
        if not found:
            continue
        header = found.group(1)
        target = header.split("/")[0]
        if header == "llms.h":
            allowed = room in PUBLIC_HEADER_ROOMS
        elif target == room:
            allowed = "/" in header  # from the room's name on, so that one header has one spelling
        else:
            allowed = target in ROOMS[room]
        if not allowed:
            yield number, header


class Tidy(unittest.TestCase):
    def test_the_include_rule_itself(self):
        """The rule is worth nothing if it cannot find a breach."""
        text = ['#include "base/array.h"', '#include "service/service.h"', '#include "llms.h"', "#include <stdio.h>"]
        self.assertEqual(
            list(breaches_of_includes("src/kv/pool.c", text)), [(2, "service/service.h"), (3, "llms.h")]
        )
        self.assertEqual(list(breaches_of_includes("src/cli/main.c", text)), [(2, "service/service.h")])
        self.assertEqual(list(breaches_of_includes("src/kv/a.c", ['#include "pool.h"', '#include "kv/pool.h"'])),
                         [(1, "pool.h")])

    def test_every_room_is_known(self):
        rooms = {path.split("/")[1] for path in sources("src")}
        self.assertEqual(rooms - set(ROOMS), set())
        self.assertTrue({"base", "os", "client", "cli"} <= rooms)

    def test_includes_go_down(self):
        found = []
        for path in sources("src", ends=(".c", ".h")):
            found += [f"{path}:{number}: includes {header}" for number, header in
                      breaches_of_includes(path, lines(path))]
        self.assertEqual(found, [])

    def test_no_source_includes_a_c_file(self):
        found = [f"{path}:{number}" for path in sources("src", "bench", "tests", ends=(".c", ".h"))
                 for number, line in enumerate(lines(path), 1) if re.match(r'\s*#\s*include\s*["<][^">]*\.c[">]', line)]
        self.assertEqual(found, [])

    def test_no_file_is_too_long(self):
        long = [f"{path}: {len(lines(path)) - 1} lines" for path in
                sources("src", "include", "bench", "tests", "examples", ends=(".c", ".h", ".py"))
                if len(lines(path)) - 1 > LONGEST_FILE]
        self.assertEqual(long, [])

    def test_no_open_marks(self):
        places = list(sources("src", "include", "bench", "tests", "examples", "docs", "man", "tools"))
        places += [name for name in ("README.md", "Makefile", "meson.build") if os.path.exists(os.path.join(TOP, name))]
        found = [f"{path}:{number}: {line.strip()}" for path in places
                 for number, line in enumerate(lines(path), 1) if OPEN_MARKS.search(line)]
        self.assertEqual(found, [])

    def test_headers_guard_themselves(self):
        found = []
        for path in sources("src", "bench", ends=(".h",)):
            parts = path.split("/")
            room, name = parts[-2], re.sub(r"\W", "_", parts[-1])
            guards = {f"#ifndef LLMS_{room}_{name}".upper()}
            if name.startswith(room):
                guards.add(f"#ifndef LLMS_{name}".upper())
            if not guards & {line.upper() for line in lines(path)}:
                found.append(f"{path}: lacks {' or '.join(sorted(guards))}")
        self.assertEqual(found, [])

    def test_public_headers_say_what_they_are(self):
        found = [path for path in sources("src", "include", "bench", ends=(".h",))
                 if not lines(path)[0].startswith("/* ")]
        self.assertEqual(found, [])


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main(verbosity=1)
