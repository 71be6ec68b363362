"""Every notebook from top to bottom, as its student would run it: the starter, and with the reference's answers."""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import NIGHTLY

from autograder.authoring.verify import starter
from ichimon import notebook

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "solutions").glob("*.py"))
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.Import, ast.ImportFrom)
LONG = ("06", "15")  # they train a whole model


def cpu_seconds(name: str) -> float:
    """What a chapter's notebook may take, with the fast preset or, nightly, without."""
    return 15 if not NIGHTLY else 240 if name[:2] in LONG else 120


class Run:
    """What the cells of a notebook did: the errors by cell, what each printed, and how many figures each showed."""

    def __init__(self, name: str, *, written: bool) -> None:
        import matplotlib as mpl

        with mpl.rc_context(mpl.rcParamsDefault):  # another notebook's style is not this one's
            self._run(name, written)

    def _run(self, name: str, written: bool) -> None:
        self.errors: dict[str, BaseException] = {}
        self.printed: dict[str, str] = {}
        self.figures: dict[str, int] = {}
        self.defines: set[str] = set()  # the cells that only define something, so that there is nothing to see
        module = ModuleType(f"run_of_{name}")
        sys.modules[module.__name__] = module  # where dataclasses look up their annotations
        start = time.process_time()
        for position, cell in enumerate(notebook.cells(ROOT / "solutions" / f"{name}.py"), start=1):
            if cell.kind != "code" or cell.role == "stand-in":
                continue
            label = f"{position} {cell.role} {cell.exercise}".strip()
            source = starter(cell.source) if cell.role == "solution" and not written else cell.source
            if all(isinstance(node, DEFINITIONS) for node in ast.parse(source).body):
                self.defines.add(label)
            said = io.StringIO()
            with contextlib.redirect_stdout(said), _figures() as shown:
                try:
                    notebook.run(
                        notebook.Cell("code", source, cell.id, cell.role), vars(module), f"{name}, cell {label}"
                    )
                except Exception as error:
                    self.errors[label] = error
            self.printed[label], self.figures[label] = said.getvalue(), len(shown)
        self.cpu_seconds = time.process_time() - start
        del sys.modules[module.__name__]


@contextlib.contextmanager
def _figures() -> Iterator[list[int]]:
    """The figures that plt.show() shows meanwhile; they are drawn, and closed as a notebook does."""
    import matplotlib.pyplot as plt

    shown: list[int] = []

    def show(*arguments: object, **keywords: object) -> None:
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
            shown.append(number)
        plt.close("all")

    before, plt.show = plt.show, show
    try:
        yield shown
    finally:
        plt.show = before
        plt.close("all")


@pytest.fixture(scope="module", autouse=True)
def _like_a_student() -> Iterator[None]:
    """Quick where the notebook can be, no window, and no display but print."""
    import matplotlib as mpl

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICHIMON_FAST", "0" if NIGHTLY else "1")
        patch.setattr(builtins, "display", lambda *shown: print(*shown), raising=False)
        patch.chdir(os.fspath(ROOT / "notebooks"))
        patch.setenv("ICHIMON_NOTEBOOKS", os.fspath(ROOT / "_build/nbgrader/source"))  # as if all others were solved
        backend = mpl.get_backend()
        mpl.use("agg")
        yield
        mpl.use(backend)


@pytest.mark.parametrize("name", NAMES)
def test_with_the_references_answers_every_cell_runs_in_time(name: str) -> None:
    run = Run(name, written=True)
    assert not run.errors
    assert run.cpu_seconds < cpu_seconds(name)
    for label, printed in run.printed.items():
        if " check " in label:
            assert "pass" in printed, f"{label} says nothing when it passes"
        if " see " in label and label not in run.defines:
            assert run.figures[label] or printed, f"{label} shows nothing"
            assert "first, then run this cell again" not in printed, label


@pytest.mark.parametrize("name", NAMES)
def test_the_starter_shows_no_traceback_but_those_of_its_checks(name: str) -> None:
    run = Run(name, written=False)
    assert all(" check " in label for label in run.errors), run.errors
    assert all(isinstance(error, NotImplementedError) for error in run.errors.values()), run.errors
    assert sum(" check " in label for label in run.errors) == len(notebook.exercises(ROOT / "solutions" / f"{name}.py"))
    shown = [printed for label, printed in run.printed.items() if " see " in label and label not in run.defines]
    assert all(shown), "a see-it cell that says nothing"
