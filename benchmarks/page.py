"""README.md and what the benchmark prints: every number in them comes from a record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HEAD = """# What a mark costs

Made from `results/*.json` by `page.py`; every number below is one of theirs. To measure again, on a quiet machine:

```
python benchmarks/grading.py --save             # against nbgrader and otter: {comparison}
python benchmarks/grading.py --scale --save     # thousands against a hundred: {scale}
```

Times depend on the machine, so take the ratios. The first run installs otter into `_build/benchmark/otter`, if a
package index can be reached; without it, everything else is measured.
"""
RECORDS = "grading", "grading_scale"  # in the page's order
KINDS = "cpu", "wall"
TITLES = {
    "ours": "ours, every hidden test",
    "otter": "otter, visible checks",
    "stock_without_figures": "nbgrader, visible checks",
    "stock": "nbgrader, the notebook as handed in",
}
GOALS = {
    "stock_to_ours_cpu": "CPU time, nbgrader to ours",
    "stock_to_ours_wall": "wall time, nbgrader to ours",
    "stock_to_two_workers_wall": "wall time, nbgrader to ours with two workers",
    "cpu_seconds_a_submission": "CPU seconds a submission",
    "private_mb_a_worker": "MB that only a worker has, the largest",
    "seconds_to_the_first_mark": "seconds from the command to the first mark",
    "time_many_to_few": "time a submission, large class to small",
    "memory_many_to_few": "memory of all trusted processes, large class to small",
}
NEXT = {
    "calls": "This is the submission's own computing, and the way there and back for each call. A test that asks one "
    "function several things could send them in one request, so that fewer messages cross.",
    "the tests themselves, oracles": "The right answers are computed anew for each submission, although the seeds are "
    "fixed: what a test expects could be computed once and kept as long as the grader runs.",
    "encode and decode": "A test's inputs are the same for each submission, because its seeds are: their bytes could "
    "be kept, as the right answers could.",
    "start a worker": "The next worker could be forked while this one computes, on another core.",
    "files and results": "Several submissions could share one transaction of the results file.",
    "cells": "The set-up cell is the same for all: the zygote could have run it before it forks.",
    "name mistakes": "Only answers of tests that failed are compared; a hash would do where now all numbers are.",
    "end the worker": "Killing a worker could be left to the zygote, so that nobody waits.",
    "fork, wait, clear up": "The kernel copies and frees page tables: fewer mapped libraries, or huge pages, make them "
    "smaller.",
}


def save(results: Path, page: Path = HERE / "README.md") -> Path:
    """Write the page from the records in `results`; those that are not there yet are left out."""
    paths = [results / f"{name}.json" for name in RECORDS]
    page.write_text(readme([json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]))
    return page


def readme(records: Sequence[Mapping[str, Any]]) -> str:
    took = {record["name"]: f"{record['minutes']:.0f} minutes" for record in records}
    head = HEAD.format(comparison=took.get("grading", "minutes"), scale=took.get("grading_scale", "minutes"))
    return "\n".join([head, *map(text, records)])


def text(record: Mapping[str, Any]) -> str:
    """One record as Markdown."""
    return (_comparison if record["name"] == "grading" else _scale)(record)


def _comparison(record: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = []
    for side, title in TITLES.items():
        if side in record["missing"]:
            rows.append((title, "", "", "", ""))
            continue
        ratios = record["ratios"].get(side, {})
        measured = (f"{record[side][key]:.3f}" if (key := f"{kind}_seconds") in record[side] else "" for kind in KINDS)
        rows.append((title, *measured, *(f"{ratios[kind]:.0f}×" if ratios else "" for kind in KINDS)))
    by_two = record["two_workers"]
    rows.insert(1, ("ours, two workers", "", f"{by_two['warm']['wall_seconds']:.3f}", "", ""))
    cold = ", ".join(
        f"{side.removesuffix('_wall_seconds').replace('stock', 'nbgrader')} {min(values):.1f}–{max(values):.1f} s"
        for side, values in record["cold"].items()
    )
    parts = record["profile"]
    missing = "".join(f"\nNot measured: {side}. {why}\n" for side, why in record["missing"].items())
    started = by_two["with_start_up"]
    return f"""## Against nbgrader and otter

A mark for one of {record["notebooks"]} different notebooks, median of {record["rounds"]} rounds.

{_table(("", "CPU s", "wall s", "CPU, times ours", "wall, times ours"), rows)}
{missing}
{_goals(record)}

The first table holds no start-up. With it, two workers take {started["wall_seconds"]:.3f} s a submission for all of
them, {started["ratio_wall"]:.0f}× less than nbgrader without its own. A process with a single submission,
from start to exit: {cold}.

## Where our time goes

Milliseconds a submission. No part counts the parts inside it.

{_table(("part", "times", "wall", "CPU grader", "CPU jail"), [_part(row) for row in parts])}

{next_factor(parts)}

## How it is measured

{_method(record)}
- **left out**: {"; ".join(f"{student} {why}" for student, why in record["left_out"].items())}.
"""


def _part(row: Mapping[str, Any]) -> Sequence[str]:
    return row["part"], *(f"{row[key]:.1f}" for key in ("times", "wall_ms", "grader_cpu_ms", "jail_cpu_ms"))


def next_factor(parts: Sequence[Mapping[str, Any]]) -> str:
    """Which parts hold half of the time, and what would make them shorter."""
    total = sum(row["wall_ms"] for row in parts)
    before = accumulate((row["wall_ms"] for row in parts), initial=0.0)
    half = [row for row, sooner in zip(parts, before, strict=False) if sooner < total / 2]
    shares = [f"*{row['part']}* ({row['wall_ms']:.0f} ms)" for row in half]
    reasons = [f"- *{row['part']}*: {NEXT[row['part']]}" for row in half]
    where = f"must come from what takes half of these {total:.0f} ms: {' and '.join(shares)}."
    return "\n".join([f"**The next factor of two** {where}\n", *reasons])


def _scale(record: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{record[size]:,} more",
            f"{record['seconds_a_submission'][size]:.3f}",
            f"{record['seconds_after_the_last'][size]:.1f}",
            f"{record['peak_mb'][size]:.0f}",
        )
        for size in ("few", "many")
    ]
    again = record["again"]
    workers = record["environment"]["workers"]
    return f"""## {record["many"]:,} against {record["few"]:,}

`autograder grade --workers {workers}` on a first {record["first"]} submissions, which start everything up, and on more.

{_table(("", "wall s a submission", "s after the last", "peak MB"), rows)}

{_goals(record)}

Asked again, with every verdict known, the command takes {again["wall_seconds"]:.1f} s for {again["submissions"]:,}.

{_method(record)}
"""


def _goals(record: Mapping[str, Any]) -> str:
    rows = []
    for name, goal in record["goals"].items():
        limit = f"at least {goal['at_least']:g}" if "at_least" in goal else f"at most {goal['at_most']:g}"
        rows.append((GOALS[name], f"{goal['measured']:.2f}", limit, "met" if goal["met"] else "**missed**"))
    return _table(("goal", "measured", "limit", ""), rows)


def _method(record: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{name.replace('_', ' ')}**: {how}" for name, how in record["method"].items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
