"""Who is measured: our warm grader, nbgrader as it comes, otter in an environment of its own."""

from __future__ import annotations

import builtins
import contextlib
import functools
import json
import os
import resource
import subprocess
import symtable
import sys
import sysconfig
import textwrap
import time
import venv
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import nbformat
import psutil
from handed_in import NAME, without_checks
from stopwatch import Cost, cpu_seconds, private_mb, so_far, until_gone, whole_process

from autograder import assignment as assignments
from autograder import grading
from autograder.grading import grade_class
from autograder.report import Report
from autograder.results import Results
from autograder.sandbox.jail import Worker
from autograder.submission import Found

# -- ours -----------------------------------------------------------------------------------------------------------


class Ours:
    """The warm grader, and what it and everything in the jail cost."""

    def __init__(self, folder: Path, submissions: Mapping[str, nbformat.NotebookNode]) -> None:
        self.folder = folder
        self.private: list[float] = []
        self.jailed = 0.0  # CPU seconds of workers that ended
        self.own = Cost()  # what looking costs
        self._n = 0
        self.found = {student: Found(student, NAME, submitted(folder, student)) for student in submissions}
        for student, notebook in submissions.items():
            write(self.found[student].path, nbformat.writes(notebook))

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

    def grade(self, student: str, results: Results) -> tuple[Report, Cost, float]:
        """The report, what it cost, and how much of that CPU time was spent in the jail."""
        keepers = self._keepers()
        own, jailed = self.own, self.jailed + sum(map(cpu_seconds, keepers))
        before = so_far()
        reports, ungraded = grade_class([self.found[student]], results, assignment=NAME)
        spent = so_far() - before - (self.own - own)
        if not reports:
            raise RuntimeError(f"{student} was not graded: {ungraded[0].reason}")
        in_jail = self.jailed + sum(map(cpu_seconds, keepers)) - jailed
        return reports[0], Cost(spent.wall, spent.cpu + in_jail), in_jail

    def cold(self, student: str) -> float:
        """Wall seconds of `autograder grade`."""
        self._n += 1
        results = str(self.folder / f"results-{self._n}.sqlite")
        command = [sys.executable, "-m", "autograder", "grade", str(self.found[student].path), "--results", results]
        return whole_process(command, self.folder)

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
            pids = [worker.pid] if worker.alive else []
            with contextlib.suppress(OSError):  # it may have died of what it computed
                self.private += [private_mb(pid) for pid in pids]
            looked = so_far() - before
            kill(worker)
            before = so_far()
            self.jailed += until_gone(pids)
            self.own += looked + (so_far() - before)

        return watched


# -- nbgrader -------------------------------------------------------------------------------------------------------


class Stock:
    """A course as nbgrader makes it, with none of our configuration."""

    def __init__(self, root: Path, source: str, submissions: Mapping[str, nbformat.NotebookNode]) -> None:
        from nbgrader.converters import GenerateAssignment

        self.root = root
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader calls alembic
        write(root / "source" / NAME / f"{NAME}.ipynb", source)
        for student, notebook in submissions.items():
            write(submitted(root, student), nbformat.writes(notebook))
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

    def cold(self, student: str) -> float:
        """Wall seconds of `nbgrader autograde`."""
        command = [sys.executable, "-m", "nbgrader", "autograde", NAME, "--student", student, "--force"]
        return whole_process(command, self.root)

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


# -- otter ----------------------------------------------------------------------------------------------------------

OTTER = "otter-grader==7.0.0"
ENVIRONMENT = assignments.COURSE / "_build" / "benchmark" / "otter"
WARM = """
import json, resource, sys, time
from otter.api import grade_submission

def spent():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(who.ru_utime + who.ru_stime for who in used)

for line in sys.stdin:
    wall, cpu = spent()
    results = grade_submission(line.strip(), "autograder.zip", quiet=True)
    now, used = spent()
    print(json.dumps([now - wall, used - cpu, results.total]), flush=True)
"""


class OtterMissing(Exception):
    """Why otter is not measured: a sentence."""


class Otter:
    """otter-grader, which grades one notebook after the other in a process of its own."""

    def __init__(self, root: Path, submissions: Mapping[str, nbformat.NotebookNode], install: bool = True) -> None:
        """Raises OtterMissing; without `install`, also where it was not installed before."""
        self.root, self.marks = root, dict[str, float]()
        self.python = environment(install)
        for exercise, test in tests().items():
            write(root / "tests" / f"{exercise}.py", test)
        for student, notebook in submissions.items():
            write(root / f"{student}.ipynb", nbformat.writes(without_checks(notebook)))
        self.command = [str(self.python.with_name("otter"))]
        whole_process([*self.command, "generate", "-t", "tests", "-o", "autograder.zip"], root)

    def __enter__(self) -> Self:
        self._warm = subprocess.Popen(
            [self.python, "-c", WARM],
            cwd=self.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warm.communicate()

    def grade(self, student: str) -> Cost:
        assert self._warm.stdin
        assert self._warm.stdout
        self._warm.stdin.write(f"{student}.ipynb\n")
        self._warm.stdin.flush()
        answer = self._warm.stdout.readline()
        if not answer:
            raise RuntimeError(f"otter ended while it graded {student}")
        wall, cpu, self.marks[student] = json.loads(answer)
        return Cost(wall, cpu)

    def mark(self, student: str) -> float:
        return self.marks[student]

    def cold(self, student: str) -> float:
        """Wall seconds of `otter run`."""
        return whole_process([*self.command, "run", "-a", "autograder.zip", f"{student}.ipynb"], self.root)


def environment(install: bool) -> Path:
    """The Python of otter's own environment, which borrows torch and Jupyter from ours, so that both run the same."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / f"{OTTER}.installed"
    if not done.exists() and not install:
        raise OtterMissing(f"{OTTER} has not been installed into {ENVIRONMENT.relative_to(assignments.COURSE)}.")
    if not done.exists():
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        paths = sysconfig.get_paths(vars={"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)})
        Path(paths["purelib"], "course.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", OTTER]
        said = subprocess.run(pip, capture_output=True, text=True)
        if said.returncode:
            print(said.stderr, file=sys.stderr)
            raise OtterMissing(f"{OTTER} could not be installed: this machine reaches no package index that has it.")
        done.touch()
    return python


def tests() -> dict[str, str]:
    """The chapter's visible checks in otter's format, one file an exercise."""
    checks = (cell for cell in assignments.load(NAME).cells if cell.role == "check")
    return {cell.exercise: otter_test(cell.exercise, cell.points, cell.source) for cell in checks}


def otter_test(exercise: str, points: float, check: str) -> str:
    """A check cell as a test: a function whose parameters otter fills from the notebook by name."""
    return (
        f"from otter.test_files import test_case\n\nOK_FORMAT = False\nname = {exercise!r}\npoints = {points}\n\n\n"
        f"@test_case()\ndef visible_checks({', '.join(uses(check))}):\n{textwrap.indent(check, '    ')}\n"
    )


def uses(code: str) -> list[str]:
    """The names that the code needs from elsewhere."""

    def names(table: symtable.SymbolTable) -> Iterator[str]:
        yield from (symbol.get_name() for symbol in table.get_symbols() if symbol.is_global())
        for inner in table.get_children():
            yield from names(inner)

    body = symtable.symtable(f"def check():\n{textwrap.indent(code, '    ')}", "check", "exec").get_children()[0]
    return sorted(set(names(body)) - set(dir(builtins)))


def submitted(root: Path, student: str) -> Path:
    return root / "submitted" / student / NAME / f"{NAME}.ipynb"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
