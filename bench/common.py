# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: their programs, their figures and tables, runs that alternate."""

import collections
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)


def program(name, sources=(), options=()):
    """A small static program of this folder (of NAME.c, or of the named sources), compiled when it is
    older than they are."""
    sources = [os.path.join(HERE, source) for source in sources or [f"{name}.c"]]
    path = os.path.join(TOP, "build", "bench", name)
    newest = max(os.path.getmtime(source) for source in sources)
    if not os.path.exists(path) or os.path.getmtime(path) < newest:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static",
                        "-o", path, *(source for source in sources if source.endswith(".c")),
                        *options], check=True)
    return path


# --- figures and tables ---


class Figures:
    """The figures of a benchmark: add() them by row and column as they come."""

    def __init__(self):
        self._values = collections.defaultdict(list)

    def add(self, who, what, value):
        self._values[who, what].append(value)

    def values(self, who, what):
        return self._values.get((who, what), [])

    def median(self, who, what):
        values = self.values(who, what)
        return statistics.median(values) if values else None

    def text(self, who, what, digits=1):
        values = self.values(who, what)
        if not values:
            return "-"
        low, high = min(values), max(values)
        return f"{self.median(who, what):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    def rows(self):
        return list(dict.fromkeys(who for who, _ in self._values))


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join(" --- " for _ in head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def ratio(value, base, digits=2):
    return f"{value / base:.{digits}f}" if value and base else "-"


def verdict(good):
    return "met" if good else "**missed**"


def progress(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def alternate(vmms, runs, what):
    """(run, name, value) with every VMM once a run, in an order that changes."""
    names = list(vmms)
    for run in range(runs):
        for name in names[run % len(names):] + names[:run % len(names)]:
            progress(f"{what}: run {run + 1} of {runs}: {name}")
            yield run, name, vmms[name]
