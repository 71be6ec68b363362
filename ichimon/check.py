"""A notebook's visible checks, run for the student who wrote it.

The cells run in a child process, so that an endless loop costs one exercise and not the whole run. This is no sandbox:
students run their own code on their own machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ichimon import notebook
from ichimon.notebook import Cell, NotebookError

START_SECONDS = 120  # the first import of torch from a cold disk may take a minute
MAX_OUTPUT = 20_000


@dataclass(frozen=True)
class Verdict:
    """How the visible checks of one exercise went."""

    exercise: str
    state: Literal["passed", "failed", "not written"]
    sentence: str


@dataclass(frozen=True)
class Checked:
    verdicts: list[Verdict]
    notices: list[str]
    printed: dict[str, str]  # by cell

    @property
    def passed(self) -> bool:
        return all(verdict.state == "passed" for verdict in self.verdicts)


@dataclass(frozen=True)
class _Task:
    cell: Cell
    label: str  # unique in the notebook; tracebacks know the cell by it


@dataclass(frozen=True)
class _Run:
    """How one cell ran. For an error, `place` is the innermost cell of the notebook that it passed through."""

    outcome: Literal["ok", "raised", "still running", "died"]
    output: str = ""
    error: str = ""
    message: str = ""
    place: str = ""
    line: int = 0
    text: str = ""


@dataclass
class _Notebook:
    tasks: list[_Task]
    limit: float
    runs: dict[str, _Run] = field(default_factory=dict)

    def of(self, role: str, exercise: str = "") -> list[_Task]:
        return [task for task in self.tasks if task.cell.role == role and task.cell.exercise == exercise]

    def trouble(self, task: _Task) -> str:
        """What went wrong in a cell, as a sentence without its full stop; "" if nothing did."""
        run = self.runs.get(task.label)
        if run is None or run.outcome == "ok":
            return ""
        if run.outcome == "still running":
            return f"{task.label} was still running after {self.limit:g} s: look for a loop that never ends"
        if run.outcome == "died":
            return f"{task.label} ended Python itself"
        place = f", line {run.line} of {run.place}" if run.place else ""
        return f"your code raised {run.error}{place}: {run.message}".removesuffix(": ")


def check(path: Path, limit: float = 30) -> Checked:
    """Run the set-up cell, the student's cells and then each visible check, each for at most `limit` seconds.

    NotebookError says what is wrong with the file. Nothing that a cell does is an error here.
    """
    found = notebook.cells(path)
    exercises = notebook.exercises(path)
    if not exercises:
        raise NotebookError(f"{path.name} holds no exercise of this course: give one of the course's notebooks.")
    book = _Notebook(_tasks(found), limit)
    _run_all(book, path.resolve().parent)
    notices = list(_notices(found, book))
    if broken := [book.trouble(task) for task in book.of("set-up") if book.trouble(task)]:
        notices.append(f"The set-up failed: {broken[0]}. Mend that first (pip install -r requirements.txt?).")
        verdicts = [Verdict(exercise, "failed", "not checked, because the set-up failed.") for exercise in exercises]
    else:
        verdicts = [_verdict(book, exercise) for exercise in exercises]
        blamed = " ".join(verdict.sentence for verdict in verdicts)
        for task in book.tasks:
            trouble = book.trouble(task)
            if task.cell.role in ("solution", "other") and trouble and trouble not in blamed:
                notices.append(f"{trouble}.")
    printed = {label: run.output for label, run in book.runs.items() if run.output.strip()}
    return Checked(verdicts, notices, printed)


def _tasks(found: Sequence[Cell]) -> list[_Task]:
    """The code cells that run, checks last: the hidden tests, too, run after everything that the student wrote."""
    tasks: list[_Task] = []
    for position, cell in enumerate(found, start=1):
        label = cell.label(position)
        if any(task.label == label for task in tasks):
            label = f"{label} (number {position} in the notebook)"
        if cell.kind == "code" and cell.role in ("set-up", "solution", "other", "check"):
            tasks.append(_Task(cell, label))
    return sorted(tasks, key=lambda task: task.cell.role == "check")


def _notices(found: Sequence[Cell], book: _Notebook) -> Iterator[str]:
    if not book.of("set-up"):
        yield "The set-up cell is missing: download the notebook again, or names like torch will not be known."
    for cell in found:
        if cell.role in ("set-up", "solution", "check") and cell.kind != "code":
            yield f"The cell {cell.id} is text now, so it does not run: turn it back into code."
    copies = Counter(task.cell.exercise for task in book.tasks if task.cell.role == "solution")
    for exercise, number in copies.items():
        if number > 1:
            yield f"The cell {exercise} is there {number} times: all of them run, so the last one counts."
    for task in book.tasks:
        for magic in notebook.blank_magics(task.cell.source)[1]:
            yield f"“{magic[:60]}” in {task.label} is not Python and was ignored."


def _verdict(book: _Notebook, exercise: str) -> Verdict:
    written = book.of("solution", exercise)
    checks = book.of("check", exercise)
    if not checks:
        return Verdict(exercise, "failed", "its check cell is missing: download the notebook again to have it back.")
    for task in checks:
        run = book.runs[task.label]
        if run.outcome == "ok":
            continue
        if run.outcome == "still running":
            sentence = f"still running after {book.limit:g} s: look for a loop that never ends."
        elif run.outcome == "died":
            sentence = "your code ended Python itself: does it call exit, or use up all memory?"
        elif run.error == "NameError" and run.place == task.label:
            troubles = [trouble for cell in written if (trouble := book.trouble(cell))]
            if not troubles:
                return Verdict(exercise, "not written", f"not written yet: {run.message}.")
            sentence = f"{troubles[0]}."
        elif run.error == "NotImplementedError":
            used = {used.cell.exercise for used in book.tasks if used.label == run.place} - {exercise, ""}
            sentence = "".join(f"it uses {name}, which is not written yet." for name in used) or "not written yet."
            return Verdict(exercise, "not written", sentence)
        elif run.place != task.label:
            sentence = f"{book.trouble(task)}."
        elif run.error == "AssertionError":
            sentence = run.message or f"this does not hold: {run.text.removeprefix('assert ')}"
        else:
            sentence = f"the check could not use your answer: {run.error}: {run.message} (in “{run.text}”)."
        return Verdict(exercise, "failed", sentence)
    return Verdict(exercise, "passed", "passed.")


def _run_all(book: _Notebook, folder: Path) -> None:
    """Run every cell, with a fresh process whenever one hangs or dies, which then leaves out that cell."""
    while True:
        lost = {label for label, run in book.runs.items() if run.outcome in ("still running", "died")}
        todo = [
            task
            for task in book.tasks
            if task.label not in lost and (task.cell.role != "check" or task.label not in book.runs)
        ]
        if all(task.label in book.runs for task in book.tasks):
            return
        _run_until_lost(book, todo, folder)


def _run_until_lost(book: _Notebook, todo: list[_Task], folder: Path) -> None:
    # spawn, on every platform: a forked child of a process that once used torch's threads may hang
    context = multiprocessing.get_context("spawn")
    results, worker_end = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(worker_end, todo, str(folder)))
    worker.start()
    worker_end.close()
    try:
        for task in todo:
            starting = task is todo[0] or task.cell.role == "set-up"
            if not results.poll(max(book.limit, START_SECONDS) if starting else book.limit):
                book.runs[task.label] = _Run("still running")
                return
            try:
                book.runs[task.label] = _Run(**json.loads(results.recv_bytes()))
            except (EOFError, OSError):  # Windows says that the connection was reset
                book.runs[task.label] = _Run("died")
                return
    finally:
        worker.kill()
        worker.join()
        results.close()


def _work(results: Connection, todo: list[_Task], folder: str) -> None:
    """The child: run the cells in order and send one message for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.chdir(folder)
    sys.path.insert(0, folder)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what C libraries print must not land in the table
        os.dup2(silence, stream)
    module = sys.modules["__main__"] = ModuleType("__main__")  # as in a notebook
    places = {task.label for task in todo}
    for task in todo:
        output = _Output()
        run: dict[str, Any] = {"outcome": "ok"}
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                notebook.run(task.cell, vars(module), task.label)
            except BaseException as error:  # also SystemExit
                run = {"outcome": "raised", **_described(error, places)}
        results.send_bytes(json.dumps({**run, "output": output.getvalue()}).encode())


class _Output(io.StringIO):
    """What a cell prints, up to a limit, so that an endless loop of prints does not fill the memory."""

    def write(self, text: str) -> int:
        room = MAX_OUTPUT - self.tell()
        super().write(text[: max(0, room)])
        return len(text)


def _described(error: BaseException, places: set[str]) -> dict[str, Any]:
    try:
        message = " ".join(str(error).split())[:300]
    except Exception:  # a __str__ of the student's own
        message = ""
    described = {"error": type(error).__name__, "message": message, "place": "", "line": 0, "text": ""}
    if isinstance(error, SyntaxError) and error.filename in places:
        return {**described, "message": error.msg, "place": error.filename, "line": error.lineno or 0}
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in places:
            described |= {"place": frame.filename, "line": frame.lineno or 0, "text": (frame.line or "")[:200]}
    return described
