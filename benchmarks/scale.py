"""Does a class of thousands cost more a submission, or more memory, than a hundred? And what does asking again cost?"""

from __future__ import annotations

import contextlib
import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import handed_in
import psutil
from stopwatch import at_most, private_mb, surroundings

WORKERS = 2
SAMPLE = 0.5  # seconds between two looks at the memory
GOAL = 1.2  # of what a hundred submissions take

METHOD = {
    "command": f"`autograder grade FOLDER --workers {WORKERS} -v --results NEW`, a whole process each time. No two of "
    "the files have the same bytes: they are the comparison's notebooks over and over, each with a comment of its own.",
    "time": "The first submissions start everything: imports, jails, what is learnt of known mistakes. From the line "
    "that tells of the last of them to the line that tells of the last of all, divided by how many are between: so "
    "start-up is in neither number, nor what comes after grading (the table), which is given beside them.",
    "repeats": "The small class is graded again and again, half of the times after the large one; medians are given.",
    "memory": "Private_Clean + Private_Dirty of /proc/PID/smaps_rollup, of all trusted processes together: the command "
    f"and those it grades in, not the jails. The largest of the samples, one every {SAMPLE:g} s.",
    "again": "The same command with the same results file: it finds every verdict, and grades nothing.",
}
TOLD = re.compile(rb"student-\d+ .*?  (graded|known)\b")  # what -v says of each


@dataclass
class Run:
    submissions: int
    graded: int  # and not known from before
    start_seconds: float  # until the first ones were told of
    last_seconds: float  # until the last one was
    wall_seconds: float  # of the whole process
    peak_mb: float


def scale(
    notebooks: int,
    few: int,
    many: int,
    repeats: int,
    folder: Path,
    say: Callable[[str], None],
    workers: int = WORKERS,
) -> dict[str, Any]:
    """Grade `few` and `many` submissions, made of some different `notebooks`, after as many as start everything."""
    first = workers * notebooks  # so that each process has seen most of them
    load = os.getloadavg()
    runs: list[Run] = []
    for count in (first + few, first + many):
        handed_in.copies(count, folder / str(count), notebooks)
    for repeat in range(repeats):
        say(f"{first + few:,} submissions, {repeat + 1} of {repeats}")
        runs.append(grade(folder / str(first + few), first, folder / f"few-{repeat}.sqlite", workers))
        if repeat == (repeats - 1) // 2:
            say(f"{first + many:,} submissions")
            runs.append(grade(folder / str(first + many), first, folder / "many.sqlite", workers))
    say("the same again, with every verdict known")
    again = grade(folder / str(first + many), first, folder / "many.sqlite", workers)
    for run, expected in [*((run, run.submissions) for run in runs), (again, 0)]:
        if run.graded != expected:
            raise RuntimeError(f"{run.graded} of {run.submissions} submissions were graded, not {expected}")
    return {
        "name": "grading_scale",
        **summary(runs, again, first, few, many),
        "method": METHOD,
        "environment": {**surroundings(load), "workers": workers},
    }


def summary(runs: Sequence[Run], again: Run, first: int, few: int, many: int) -> dict[str, Any]:
    def median(more: int, of: Callable[[Run], float]) -> float:
        return statistics.median(of(run) for run in runs if run.submissions == first + more)

    each = {more: median(more, lambda run: run.last_seconds - run.start_seconds) / more for more in (few, many)}
    end = {more: median(more, lambda run: run.wall_seconds - run.last_seconds) for more in (few, many)}
    memory = {more: median(more, lambda run: run.peak_mb) for more in (few, many)}
    return {
        "first": first,
        "few": few,
        "many": many,
        "seconds_a_submission": {"few": each[few], "many": each[many]},
        "seconds_after_the_last": {"few": end[few], "many": end[many]},
        "peak_mb": {"few": memory[few], "many": memory[many]},
        "goals": {
            "time_many_to_few": at_most(each[many] / each[few], GOAL),
            "memory_many_to_few": at_most(memory[many] / memory[few], GOAL),
        },
        "runs": [asdict(run) for run in runs],
        "again": asdict(again),
    }


def grade(submitted: Path, first: int, results: Path, workers: int) -> Run:
    """One whole process. RuntimeError if it fails."""
    command = ["grade", str(submitted), "--workers", str(workers), "-v", "--results", str(results)]
    began = looked = time.perf_counter()
    peak = 0.0
    said = b""
    told: list[tuple[bytes, float]] = []  # graded or known, and when we heard
    with subprocess.Popen(
        [sys.executable, "-m", "autograder", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        while True:
            if select.select([process.stderr], [], [], SAMPLE)[0]:
                some = os.read(process.stderr.fileno(), 1 << 16)
                if not some:
                    break
                *lines, said = (said + some).split(b"\n")
                now = time.perf_counter() - began
                told += [(match[1], now) for match in map(TOLD.match, lines) if match]
            if time.perf_counter() - looked > SAMPLE:
                looked = time.perf_counter()
                with contextlib.suppress(OSError, psutil.Error):  # one of them ended while it was looked at
                    peak = max(peak, sum(map(private_mb, trusted(psutil.Process(process.pid)))))
    wall = time.perf_counter() - began
    if process.returncode or len(told) < first:
        raise RuntimeError(f"grading {submitted} ended with {process.returncode}, and told of {len(told)} submissions")
    graded = sum(how == b"graded" for how, _ in told)
    return Run(len(told), graded, told[first - 1][1], told[-1][1], wall, peak)


def trusted(top: psutil.Process) -> Iterator[int]:
    """The process and those it grades in, without what it starts inside a jail."""
    yield top.pid
    for child in top.children():
        if not any(word.endswith("/zygote.py") for word in child.cmdline()):
            yield from trusted(child)
