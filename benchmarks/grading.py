"""What does a mark cost? Our warm grader against stock nbgrader on the same chapter-02 notebooks, in turn.

    python benchmarks/grading.py                 a table
    python benchmarks/grading.py --json --save   JSON, also kept in benchmarks/results/grading.json

Times depend on the machine and on what else it does, so every notebook is graded by all of them one after the other,
and what counts is the ratio. `METHOD` below says what is measured and how; it is part of the JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self
from unittest import mock

for _library in ("OMP", "OPENBLAS", "MKL"):  # before torch is imported; the kernels inherit it
    os.environ[f"{_library}_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import nbformat  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from autograder import assignment as assignments  # noqa: E402
from autograder import grading  # noqa: E402
from autograder.authoring.build import source_notebook  # noqa: E402
from autograder.grading import Grader, grade_class  # noqa: E402
from autograder.report import Report  # noqa: E402
from autograder.results import Results  # noqa: E402
from autograder.sandbox import wire  # noqa: E402
from autograder.sandbox.jail import Jail, Worker  # noqa: E402
from autograder.student import Student  # noqa: E402
from autograder.submission import Found  # noqa: E402
from ichimon import measure  # noqa: E402

NAME = "02-self-attention"
HERE = Path(__file__).resolve().parent
CLASS = assignments.COURSE / "examples" / "class"
LEFT_OUT = {
    "student-05": "has lost nbgrader's metadata, so stock nbgrader finds nothing to mark",
    "student-09": "never ends",
    "student-13": "is another notebook",
    "student-14": "tries to cheat",
}
CPU_GOAL, MEMORY_GOAL, START_GOAL = 0.25, 10.0, 15.0  # seconds a submission, MB a worker, seconds on two quiet cores

METHOD = {
    "turns": "Each notebook is graded by ours, by stock nbgrader, and by stock nbgrader on a copy without its figures; "
    "then comes the next one. A round is all notebooks; a ratio is that of a round's sums, and the median over rounds "
    "is given. One submission at a time, one thread (OMP_NUM_THREADS=1) on all sides: ours can grade as many at once "
    "as there are cores (--workers), which is not used here.",
    "ours": "grade_class with a results file that knows nothing: read the file, run its cells in a fresh jailed "
    "worker, run all hidden tests, name mistakes, store the verdicts. Warm: a jail and its tests are there, known "
    "mistakes have been learnt.",
    "stock": "nbgrader's Autograde converter in this process, so without nbgrader's start-up, in a course without our "
    "configuration and plugins: a Jupyter kernel runs every cell of the notebook, the visible checks among them. It "
    "runs no hidden tests; ours runs all of them. The only change: each copy's kernel is python3.",
    "stock_without_figures": "The same without the cells that plot and train for the reader's eye, which ours does "
    "not run and stock does: only set-up, answers and visible checks are left. The fairer comparison of the two.",
    "cpu_ours": "This process (all threads, user and system), the zygote and bubblewrap (their clocks before and "
    "after), the worker and the process that waits for it: the POSIX clock of each process, which is utime + stime of "
    "/proc/PID/stat without its rounding to 10 ms, read until it is gone, so fork, namespaces and the kernel's "
    "clearing up are counted. What reading costs is taken off.",
    "cpu_stock": "getrusage of this process and of its children that ended (the kernel).",
    "memory": "Private_Clean + Private_Dirty of the worker in /proc/PID/smaps_rollup just before it is killed.",
    "marks": "What both give: ours for all hidden tests, stock nbgrader for the visible checks of the same notebook. "
    "They show that neither side was timed while it failed.",
    "cold": "Whole processes with one submission, from start to exit: `autograder grade` (imports, jail, self-test, "
    "collecting) and `nbgrader autograde`. Wall time.",
    "profile": "Extra rounds with a stopwatch around each part, each part without those inside it; a submission's mean "
    "in milliseconds. The grader waits while a worker works, so wall time holds both.",
}


@dataclass
class Cost:
    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def so_far() -> Cost:
    """Of this process, all its threads; not of children."""
    return Cost(time.perf_counter(), time.process_time())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (the clock that clock_getcpuclockid(3) names). OSError once it is
    gone."""
    return time.clock_gettime(~pid << 3 | 2)


def until_gone(pids: Sequence[int]) -> float:
    """CPU seconds of dying processes together, last read just before they are gone."""
    used = dict.fromkeys(pids, 0.0)
    left = list(pids)
    while left:
        for pid in list(left):
            try:
                used[pid] = cpu_seconds(pid)
            except OSError:
                left.remove(pid)
        time.sleep(0.0002)
    return sum(used.values())


def private_mb(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024


# -- ours -----------------------------------------------------------------------------------------------------------


class Ours:
    """The warm grader, and what it and everything in the jail cost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private: list[float] = []
        self.jailed = 0.0  # CPU seconds of workers that ended, and of those that waited for them
        self._own = Cost()  # what looking costs
        self._n = 0

    def __enter__(self) -> Self:
        self._patch = mock.patch.object(Worker, "kill", self._kill_and_look(Worker.kill))
        self._patch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.stop()
        grading.here().close()

    @contextlib.contextmanager
    def empty_results(self) -> Iterator[Results]:
        self._n += 1
        with Results(self.folder / f"results-{self._n}.sqlite") as results:
            yield results

    def grade(self, found: Found, results: Results) -> tuple[Report, Cost, float]:
        """The report, what it cost, and how much of that CPU time was spent in the jail."""
        keepers = self._keepers()
        own, jailed = self._own, self.jailed + sum(map(cpu_seconds, keepers))
        before = so_far()
        reports, ungraded = grade_class([found], results, assignment=NAME)
        spent = so_far() - before - (self._own - own)
        if not reports:
            raise RuntimeError(f"{found.student} was not graded: {ungraded[0].reason}")
        in_jail = self.jailed + sum(map(cpu_seconds, keepers)) - jailed
        return reports[0], Cost(spent.wall, spent.cpu + in_jail), in_jail

    def _keepers(self) -> list[int]:
        """The zygote and bubblewrap: the jail's processes between two submissions."""
        jail = grading.here()._jail
        if jail is None:
            return []
        top = psutil.Process(jail._process.pid)
        return [top.pid, *(child.pid for child in top.children(recursive=True))]

    def _kill_and_look(self, kill: Callable[[Worker], None]) -> Callable[[Worker], None]:
        @functools.wraps(kill)
        def watched(worker: Worker) -> None:
            before = so_far()
            pids = [worker.pid, psutil.Process(worker.pid).ppid()] if worker.alive else []
            self.private += [private_mb(pid) for pid in pids[:1]]
            looked = so_far() - before
            kill(worker)
            before = so_far()
            self.jailed += until_gone(pids)
            self._own += looked + (so_far() - before)

        return watched


# -- stock nbgrader -------------------------------------------------------------------------------------------------


class Stock:
    """A course as nbgrader makes it, with none of our configuration."""

    def __init__(self, root: Path, source: str, submissions: Mapping[str, nbformat.NotebookNode]) -> None:
        from nbgrader.converters import GenerateAssignment

        self.root = root
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic
        notebook = f"{NAME}/{NAME}.ipynb"
        for path, text in {
            f"source/{notebook}": source,
            **{f"submitted/{student}/{notebook}": nbformat.writes(node) for student, node in submissions.items()},
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        self._run(GenerateAssignment, create_assignment=True)

    def grade(self, student: str) -> Cost:
        """What grading it costs, the kernel's CPU time included. RuntimeError if nbgrader refuses it."""
        from nbgrader.converters import Autograde

        def spent() -> Cost:
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            return Cost(time.perf_counter(), sum(who.ru_utime + who.ru_stime for who in used))

        before = spent()
        self._run(Autograde, student, create_student=True)
        return spent() - before

    def mark(self, student: str) -> float:
        from nbgrader.api import Gradebook

        with Gradebook(f"sqlite:///{self.root / 'gradebook.db'}") as gradebook:
            return float(gradebook.find_submission(NAME, student).score)

    def _run(self, converter: Callable[..., Any], student: str = "*", **options: bool) -> None:
        from nbgrader.coursedir import CourseDirectory
        from nbgrader.utils import capture_log

        course = CourseDirectory(root=str(self.root), assignment_id=NAME, student_id=student)
        with silent():
            outcome = capture_log(converter(coursedir=course, force=True, **options))
        if not outcome["success"]:
            log = outcome.get("log", outcome["error"]).strip().splitlines()
            raise RuntimeError(next((line for line in reversed(log) if "Error" in line), log[-1])[:300])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what a kernel and nbgrader's libraries print; nbgrader's own log is kept by capture_log."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def without_figures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    cells = [cell for cell in notebook.cells if "see" not in cell.metadata.get("ichimon", {})]
    return nbformat.from_dict({**notebook, "cells": cells})


def with_python3(text: str) -> nbformat.NotebookNode:
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


# -- where our time goes --------------------------------------------------------------------------------------------


@dataclass
class Part:
    calls: int = 0
    wall: float = 0.0
    grader_cpu: float = 0.0
    jail_cpu: float = 0.0


@dataclass
class Profile:
    """Stopwatches around the parts of grading. While an inner part runs, the outer one stands still."""

    parts: dict[str, Part] = field(default_factory=dict)
    _open: list[Cost] = field(default_factory=list)  # what inner parts took, for each part that is open

    def part(self, name: str) -> Part:
        return self.parts.setdefault(name, Part())

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        self._open.append(Cost())
        before = so_far()
        try:
            yield
        finally:
            spent = so_far() - before
            inner, part = self._open.pop(), self.part(name)
            part.calls += 1
            part.wall += spent.wall - inner.wall
            part.grader_cpu += spent.cpu - inner.cpu
            if self._open:
                self._open[-1] += spent

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return function(*args, **kwargs)

        return measured

    def watch_requests(self, ask: Callable[[Worker, Any], Any]) -> Callable[[Worker, Any], Any]:
        names: dict[type, str] = {wire.Prepare: "start a worker", wire.Run: "cells", wire.Begin: "begin a test"}

        @functools.wraps(ask)
        def measured(worker: Worker, request: Any) -> Any:
            name = names.get(type(request), "calls")
            before = 0.0 if name == "start a worker" else cpu_seconds(worker.pid)
            with self.measure(name):
                reply = ask(worker, request)
            self.part(name).jail_cpu += cpu_seconds(worker.pid) - before
            return reply

        return measured

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, attribute, name in (
                (Jail, "worker", "start a worker"),
                (Student, "_encode", "encode and decode"),
                (Student, "_value", "encode and decode"),
                (Student, "_close", "end the worker"),
                (Grader, "_judge", "pytest's set-up and teardown"),
                (pytest.Function, "runtest", "the tests themselves, oracles"),
                (Grader, "_mistake", "name mistakes"),
            ):
                watched = self.watch(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, watched))
            stack.enter_context(mock.patch.object(Worker, "ask", self.watch_requests(Worker.ask)))
            yield

    def table(self, submissions: int) -> list[dict[str, Any]]:
        """Each part's mean for one submission, the longest first."""
        rows = sorted(self.parts.items(), key=lambda item: -item[1].wall)
        return [
            {
                "part": name,
                "times": part.calls / submissions,
                "wall_ms": 1000 * part.wall / submissions,
                "grader_cpu_ms": 1000 * part.grader_cpu / submissions,
                "jail_cpu_ms": 1000 * part.jail_cpu / submissions,
            }
            for name, part in rows
        ]


def profile(ours: Ours, chosen: Sequence[Found], rounds: int) -> list[dict[str, Any]]:
    seen = Profile()
    for _ in range(rounds):
        with ours.empty_results() as results, seen.running():
            for found in chosen:
                asked = sum(part.jail_cpu for part in seen.parts.values())
                own = ours._own
                with seen.measure("files and results"):
                    _, _, in_jail = ours.grade(found, results)
                looking = ours._own - own
                seen.part("end the worker").wall -= looking.wall
                seen.part("end the worker").grader_cpu -= looking.cpu
                answered = sum(part.jail_cpu for part in seen.parts.values()) - asked
                seen.part("fork, wait, clear up").jail_cpu += in_jail - answered
    return seen.table(rounds * len(chosen))


# -- together -------------------------------------------------------------------------------------------------------


def cold(command: Sequence[str], folder: Path) -> float:
    """Wall seconds of a whole process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-400:]}")
    return time.perf_counter() - started


def summary(rounds: Sequence[Mapping[str, Sequence[Cost]]]) -> dict[str, Any]:
    """For each side, seconds a submission in each round and their median; and the ratios to ours.

    rounds: for each round, side -> the cost of each submission, in the same order on every side.
    """
    each = {
        side: {
            "cpu": [statistics.fmean(cost.cpu for cost in turn[side]) for turn in rounds],
            "wall": [statistics.fmean(cost.wall for cost in turn[side]) for turn in rounds],
        }
        for side in rounds[0]
    }

    def ratio(side: str, kind: str) -> float:
        return statistics.median(theirs / own for theirs, own in zip(each[side][kind], each["ours"][kind], strict=True))

    return {
        "ratio_cpu": ratio("stock", "cpu"),
        "ratio_wall": ratio("stock", "wall"),
        "ratio_cpu_without_figures": ratio("stock_without_figures", "cpu"),
        "ratio_wall_without_figures": ratio("stock_without_figures", "wall"),
        **{
            side: {
                "cpu_seconds": statistics.median(kinds["cpu"]),
                "wall_seconds": statistics.median(kinds["wall"]),
                "cpu_seconds_by_round": kinds["cpu"],
                "wall_seconds_by_round": kinds["wall"],
            }
            for side, kinds in each.items()
        },
    }


def goal(measured: float, at_most: float) -> dict[str, Any]:
    return {"measured": measured, "at_most": at_most, "met": measured <= at_most}


def handed_in(folder: Path, source: str) -> dict[str, Path]:
    """The reference as a submission, and the sample class without those that cannot be compared."""
    reference = folder / "reference.ipynb"
    reference.write_text(source, encoding="utf-8")
    sample = {path.parents[1].name: path for path in sorted(CLASS.glob(f"*/{NAME}/{NAME}.ipynb"))}
    return {"reference": reference, **{name: path for name, path in sample.items() if name not in LEFT_OUT}}


def benchmark(submissions: int, rounds: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    load = os.getloadavg()
    source = source_notebook(assignments.SOLUTIONS / f"{NAME}.py")
    files = handed_in(folder, source)
    whole = {name: with_python3(path.read_text(encoding="utf-8")) for name, path in files.items()}
    sides = {
        "stock": Stock(folder / "stock", source, whole),
        "stock_without_figures": Stock(
            folder / "without", source, {name: without_figures(notebook) for name, notebook in whole.items()}
        ),
    }
    left_out = dict(LEFT_OUT)
    marks: dict[str, dict[str, float]] = {}
    with Ours(folder) as ours:
        with ours.empty_results() as results:
            for name, path in files.items():
                if len(marks) == submissions:
                    break
                say(f"warm-up: {name}")
                report, _, _ = ours.grade(Found(name, NAME, path), results)
                try:
                    sides["stock_without_figures"].grade(name)
                except RuntimeError as error:
                    left_out[name] = f"is refused by stock nbgrader: {error}"
                else:
                    marks[name] = {"ours": report.points, "stock": sides["stock_without_figures"].mark(name)}
        names = [list(marks)[i % len(marks)] for i in range(submissions)]
        chosen = [Found(name, NAME, files[name]) for name in names]
        ours.private.clear()

        costs: list[dict[str, list[Cost]]] = []
        in_jail: list[float] = []
        for turn in range(rounds):
            costs.append({"ours": [], **{side: [] for side in sides}})
            say(f"round {turn + 1} of {rounds}")
            for found in chosen:
                with ours.empty_results() as results:
                    _, cost, jailed = ours.grade(found, results)
                costs[-1]["ours"].append(cost)
                in_jail.append(jailed)
                for side, stock in sides.items():
                    costs[-1][side].append(stock.grade(found.student))
        private = list(ours.private)
        say("profile")
        parts = profile(ours, chosen, rounds)
    say("cold starts")
    begun: dict[str, list[float]] = {"ours": [], "stock": []}
    for turn in range(rounds):
        fresh = str(folder / f"cold-{turn}.sqlite")
        begun["ours"].append(cold(["autograder", "grade", str(files[names[0]]), "--results", fresh], folder))
        stock_command = ["nbgrader", "autograde", NAME, "--student", names[0], "--force"]
        begun["stock"].append(cold(stock_command, folder / "stock"))
    measured = summary(costs)
    start = statistics.median(begun["ours"])
    return {
        "name": "grading",
        "submissions": submissions,
        "rounds": rounds,
        **measured,
        "ours_by_process": {
            "grader_cpu_seconds": measured["ours"]["cpu_seconds"] - statistics.median(in_jail),
            "jail_cpu_seconds": statistics.median(in_jail),
        },
        "cold": {f"{side}_wall_seconds": values for side, values in begun.items()},
        "private_mb": {"median": statistics.median(private), "largest": max(private)},
        "goals": {
            "cpu_seconds_a_submission": goal(measured["ours"]["cpu_seconds"], CPU_GOAL),
            "private_mb_a_worker": goal(max(private), MEMORY_GOAL),
            "seconds_to_the_first_mark": goal(start, START_GOAL),
        },
        "profile": parts,
        "marks": marks,
        "left_out": left_out,
        "method": METHOD,
        "environment": {
            **measure.environment("autograder", "benchmarks/grading.py", "ichimon", "solutions"),
            "cores": len(os.sched_getaffinity(0)),
            "load_average_before": list(load),
            "load_average_after": list(os.getloadavg()),
            "root": os.geteuid() == 0,
            **{package: version(package) for package in ("nbgrader", "nbclient", "ipykernel", "pytest", "msgspec")},
        },
    }


def show(record: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(title=f"A mark for one of {record['submissions']} notebooks, median of {record['rounds']} rounds")
    for column in ("", "CPU s", "wall s", "CPU ratio", "wall ratio"):
        table.add_column(column, justify="right" if column else "left")
    for side, title, suffix in (
        ("ours", "ours, all hidden tests", None),
        ("stock_without_figures", "stock nbgrader, answers and visible checks", "_without_figures"),
        ("stock", "stock nbgrader, as handed in", ""),
    ):
        seconds = (f"{record[side][f'{kind}_seconds']:.3f}" for kind in ("cpu", "wall"))
        ratios = ("", "") if suffix is None else (f"{record[f'ratio_{kind}{suffix}']:.0f}×" for kind in ("cpu", "wall"))
        table.add_row(title, *seconds, *ratios)
    console.print(table)
    goals = Table(title="Goals")
    for column in ("", "measured", "at most", ""):
        goals.add_column(column)
    for name, entry in record["goals"].items():
        verdict = "met" if entry["met"] else "[red]missed[/red]"
        goals.add_row(name.replace("_", " "), f"{entry['measured']:.2f}", f"{entry['at_most']:g}", verdict)
    console.print(goals)
    parts = Table(title="Where ours goes, milliseconds a submission")
    for column in ("part", "times", "wall", "CPU grader", "CPU jail"):
        parts.add_column(column, justify="left" if column == "part" else "right")
    for row in record["profile"]:
        parts.add_row(row["part"], *(f"{row[key]:.1f}" for key in list(row)[1:]))
    console.print(parts)
    surroundings = record["environment"]
    load = surroundings["load_average_before"][0]
    console.print(f"{surroundings['cores']} cores, load average {load:.1f} before: take the ratios.")


def main(
    submissions: Annotated[int, typer.Option(min=1, help="Notebooks a round.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are over these.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    save: Annotated[bool, typer.Option(help="Keep the result in benchmarks/results/grading.json.")] = False,
) -> None:
    """Grade the same notebooks with ours and with stock nbgrader, in turn, and compare CPU and wall time."""
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # nbgrader's own log
    with tempfile.TemporaryDirectory(prefix="ichimon-benchmark-") as folder:
        record = benchmark(submissions, rounds, Path(folder).resolve(), functools.partial(typer.echo, err=True))
    if save:
        typer.echo(f"Written: {measure.save(record, HERE / 'results')}", err=True)
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        show(record)


if __name__ == "__main__":
    typer.run(main)
