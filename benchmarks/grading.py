"""What does a mark cost? Ours against nbgrader as it comes and otter, in turn, on notebooks that all differ.

    python benchmarks/grading.py --save             the comparison: a table, benchmarks/results/grading.json, README.md
    python benchmarks/grading.py --scale --save     5,000 against 100: benchmarks/results/grading_scale.json, README.md

Times depend on the machine and on what else it does, so every notebook is graded by all of them one after the other,
and what counts is the ratio. `METHOD` below says what is measured and how; it is part of the JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

for _library in ("OMP", "OPENBLAS", "MKL"):  # before torch is imported; whatever is started here inherits it
    os.environ[f"{_library}_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import handed_in  # noqa: E402
import page  # noqa: E402
import scale  # noqa: E402
import sides  # noqa: E402
import typer  # noqa: E402
from handed_in import LEFT_OUT  # noqa: E402
from sides import Otter, OtterMissing, Ours, Stock  # noqa: E402
from stopwatch import Cost, Profile, at_least, at_most, surroundings  # noqa: E402

from ichimon import measure  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
CPU_RATIO, WALL_RATIO = 40.0, 30.0  # at least, to nbgrader as it comes
CPU_GOAL, MEMORY_GOAL, START_GOAL = 0.25, 10.0, 15.0  # seconds a submission, MB a worker, seconds on two quiet cores
REFERENCE = "stock"

METHOD = {
    "notebooks": "The reference, the sample class (without those that cannot be compared), answers written differently "
    "and known mistakes: no two have the same code, and nothing that ours learnt of one helps with another.",
    "turns": "Each notebook is graded by ours, by stock nbgrader, by stock nbgrader on a copy without its figures and "
    "by otter; then comes the next one. A round is a share of the notebooks, every notebook is in one round; a ratio "
    "is that of a round's sums, and the median over rounds is given. One submission at a time, and one thread "
    "(OMP_NUM_THREADS=1) on all sides.",
    "ours": "grade_class with a results file that knows nothing: read the file, run its cells in a fresh jailed "
    "worker, run all hidden tests, name mistakes, store the verdicts. Warm: a jail and its tests are there, known "
    "mistakes have been learnt.",
    "two_workers": f"`autograder grade --workers {scale.WORKERS} -v`, a whole process once a round, on the notebooks "
    "and as many more that differ from them by a comment. With start-up: from the command to the line that tells of as "
    "many submissions as there are notebooks; imports, two jails with their self-tests and learning the known mistakes "
    "are in it. Warm: from there to the last line. Both are compared with stock's wall time without nbgrader's "
    "start-up: nbgrader grades one submission after the other, whatever the number of cores. CPU time is not measured.",
    "stock": "nbgrader's Autograde converter in this process, so without nbgrader's start-up, in a course without our "
    "configuration and plugins: a Jupyter kernel runs every cell of the notebook, the visible checks among them. It "
    "runs no hidden tests; ours runs all of them. The only change: each copy's kernel is python3.",
    "stock_without_figures": "The same without the cells that plot and train for the reader's eye, which ours does "
    "not run and stock does: only set-up, answers and visible checks are left. The fairer comparison of the two.",
    "otter": f"{sides.OTTER}: otter.api.grade_submission, one notebook after the other in one process, so without "
    "otter's start-up, on set-up and answers alone; its tests are the visible checks, converted by a script. It runs "
    "in an environment of its own, which borrows torch and Jupyter from ours.",
    "cpu_ours": "This process (all threads, user and system), the zygote and bubblewrap (their clocks before and "
    "after), and the worker: the POSIX clock of each process, which is utime + stime of /proc/PID/stat without its "
    "rounding to 10 ms, read until it is gone, so fork, namespaces and the kernel's clearing up are counted. What "
    "reading costs is taken off.",
    "cpu_others": "getrusage of their process and of its children that ended (the kernel).",
    "memory": "Private_Clean + Private_Dirty of the worker in /proc/PID/smaps_rollup just before it is killed.",
    "marks": "What each gives: ours for all hidden tests, the others for the visible checks of the same answers. They "
    "show that no side was timed while it failed. nbgrader marks the checks that are still in the file, otter its own.",
    "cold": "Whole processes with one submission, from start to exit: `autograder grade` (imports, jail, self-test, "
    "collecting), `nbgrader autograde` and `otter run`. Wall time.",
    "profile": "Extra rounds with a stopwatch around each part, each part without those inside it; a submission's mean "
    "in milliseconds. The grader waits while a worker works, so wall time holds both.",
}


def profile(ours: Ours, students: Sequence[str], passes: int) -> list[dict[str, Any]]:
    seen = Profile()
    for _ in range(passes):
        with ours.empty_results() as results, seen.running():
            for student in students:
                asked = sum(part.jail_cpu for part in seen.parts.values())
                own = ours.own
                with seen.measure("files and results"):
                    _, _, in_jail = ours.grade(student, results)
                looking = ours.own - own
                seen.part("end the worker").wall -= looking.wall
                seen.part("end the worker").grader_cpu -= looking.cpu
                answered = sum(part.jail_cpu for part in seen.parts.values()) - asked
                seen.part("fork, wait, clear up").jail_cpu += in_jail - answered
    return seen.table(passes * len(students))


def summary(rounds: Sequence[Mapping[str, Sequence[Cost]]], classes: Sequence[scale.Run]) -> dict[str, Any]:
    """For each side, seconds a submission in each round and their median; and the ratios to ours.

    rounds: for each round, side -> the cost of each submission, in the same order on every side. classes: for each
    round, two workers on twice as many submissions as were the first.
    """
    each = {
        side: {
            "cpu": [statistics.fmean(cost.cpu for cost in turn[side]) for turn in rounds],
            "wall": [statistics.fmean(cost.wall for cost in turn[side]) for turn in rounds],
        }
        for side in rounds[0]
    }

    def ratio(theirs: Sequence[float], own: Sequence[float]) -> float:
        return statistics.median(a / b for a, b in zip(theirs, own, strict=True))

    by_two = {
        "with_start_up": [2 * run.start_seconds / run.submissions for run in classes],
        "warm": [2 * (run.last_seconds - run.start_seconds) / run.submissions for run in classes],
    }
    return {
        "ratios": {
            side: {kind: ratio(values, each["ours"][kind]) for kind, values in kinds.items()}
            for side, kinds in each.items()
            if side != "ours"
        },
        **{
            side: {
                "cpu_seconds": statistics.median(kinds["cpu"]),
                "wall_seconds": statistics.median(kinds["wall"]),
                "cpu_seconds_by_round": kinds["cpu"],
                "wall_seconds_by_round": kinds["wall"],
            }
            for side, kinds in each.items()
        },
        "two_workers": {
            how: {
                "wall_seconds": statistics.median(values),
                "wall_seconds_by_round": values,
                "ratio_wall": ratio(each[REFERENCE]["wall"], values),
            }
            for how, values in by_two.items()
        },
    }


@contextlib.contextmanager
def opponents(
    folder: Path, whole: Mapping[str, Any], install: bool
) -> Iterator[tuple[dict[str, Stock | Otter], dict[str, str]]]:
    """The sides by name; and why one is missing."""
    lean = {student: handed_in.without_figures(notebook) for student, notebook in whole.items()}
    found: dict[str, Stock | Otter] = {
        REFERENCE: Stock(folder / "stock", handed_in.source(), whole),
        "stock_without_figures": Stock(folder / "without", handed_in.source(), lean),
    }
    with contextlib.ExitStack() as stack:
        try:
            found["otter"] = stack.enter_context(Otter(folder / "otter", lean, install))
        except OtterMissing as missing:
            yield found, {"otter": str(missing)}
        else:
            yield found, {}


def in_turn(
    ours: Ours, others: Mapping[str, Stock | Otter], students: Sequence[str], marks: dict[str, dict[str, float]]
) -> tuple[dict[str, list[Cost]], list[float]]:
    """Each side's cost of each submission, and how much of our CPU time was spent in the jail. Fills in the marks."""
    costs: dict[str, list[Cost]] = {"ours": [], **{side: [] for side in others}}
    in_jail: list[float] = []
    for student in students:
        with ours.empty_results() as results:
            report, cost, jailed = ours.grade(student, results)
        costs["ours"].append(cost)
        in_jail.append(jailed)
        for side, other in others.items():
            costs[side].append(other.grade(student))
        marks[student] = {"ours": report.points, **{side: other.mark(student) for side, other in others.items()}}
    return costs, in_jail


def benchmark(
    notebooks: int, rounds: int, folder: Path, say: Callable[[str], None], install: bool = True
) -> dict[str, Any]:
    load = os.getloadavg()
    whole = {student: handed_in.with_python3(node) for student, node in handed_in.notebooks(notebooks).items()}
    students = list(whole)
    costs: list[dict[str, list[Cost]]] = []
    in_jail: list[float] = []
    marks: dict[str, dict[str, float]] = {}
    classes: list[scale.Run] = []
    begun: dict[str, list[float]] = {}
    handed_in.copies(2 * notebooks, folder / "class", notebooks)
    with Ours(folder / "ours", whole) as ours, opponents(folder, whole, install) as (others, missing):
        say("warm-up")
        with ours.empty_results() as results:
            for student in students:
                ours.grade(student, results)
        for side in others.keys() - {REFERENCE}:  # whose libraries are then loaded too
            others[side].grade(students[0])
        ours.private.clear()
        for turn in range(rounds):
            say(f"round {turn + 1} of {rounds}, one submission at a time")
            cost, jailed = in_turn(ours, others, students[turn::rounds], marks)
            costs.append(cost)
            in_jail += jailed
            say(f"round {turn + 1} of {rounds}, whole processes")
            classes.append(scale.grade(folder / "class", notebooks, folder / f"class-{turn}.sqlite", scale.WORKERS))
            student = students[turn % notebooks]
            begun.setdefault("ours", []).append(ours.cold(student))
            for side in others.keys() - {"stock_without_figures"}:
                begun.setdefault(side, []).append(others[side].cold(student))
        private = list(ours.private)
        say("profile")
        parts = profile(ours, students, passes=2)
    measured = summary(costs, classes)
    to_stock = measured["ratios"][REFERENCE]
    jail = statistics.fmean(in_jail)
    return {
        "name": "grading",
        "notebooks": notebooks,
        "rounds": rounds,
        **measured,
        "missing": missing,
        "ours_by_process": {
            "grader_cpu_seconds": statistics.fmean(cost.cpu for turn in costs for cost in turn["ours"]) - jail,
            "jail_cpu_seconds": jail,
        },
        "cold": {f"{side}_wall_seconds": values for side, values in sorted(begun.items())},
        "private_mb": {"median": statistics.median(private), "largest": max(private)},
        "goals": {
            "stock_to_ours_cpu": at_least(to_stock["cpu"], CPU_RATIO),
            "stock_to_ours_wall": at_least(to_stock["wall"], WALL_RATIO),
            "stock_to_two_workers_wall": at_least(measured["two_workers"]["warm"]["ratio_wall"], WALL_RATIO),
            "cpu_seconds_a_submission": at_most(measured["ours"]["cpu_seconds"], CPU_GOAL),
            "private_mb_a_worker": at_most(max(private), MEMORY_GOAL),
            "seconds_to_the_first_mark": at_most(statistics.median(begun["ours"]), START_GOAL),
        },
        "profile": parts,
        "marks": marks,
        "left_out": LEFT_OUT,
        "method": METHOD,
        "environment": surroundings(load),
    }


def main(
    scaling: Annotated[bool, typer.Option("--scale", help="5,000 submissions against 100 instead.")] = False,
    notebooks: Annotated[int, typer.Option(min=1, help="Notebooks to compare on.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are over these.")] = 5,
    few: Annotated[int, typer.Option(min=1, help="With --scale: the small class.")] = 100,
    many: Annotated[int, typer.Option(min=1, help="With --scale: the large one.")] = 5000,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    save: Annotated[bool, typer.Option(help="Keep the result in benchmarks/results, and renew README.md.")] = False,
) -> None:
    """Grade the same notebooks with ours, nbgrader and otter, in turn, and compare CPU and wall time."""
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # nbgrader's own log
    say = functools.partial(typer.echo, err=True)
    with tempfile.TemporaryDirectory(prefix="ichimon-benchmark-") as name:
        folder = Path(name).resolve()
        started = time.perf_counter()
        if scaling:
            record = scale.scale(notebooks, few, many, 3, folder, say)
        else:
            record = benchmark(notebooks, rounds, folder, say)
    record["minutes"] = (time.perf_counter() - started) / 60
    if save:
        say(f"Written: {measure.save(record, RESULTS)}, {page.save(RESULTS)}")
    print(json.dumps(record, indent=2, ensure_ascii=False) if as_json else page.text(record))


if __name__ == "__main__":
    typer.run(main)
