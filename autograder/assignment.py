"""What an assignment is: its source in solutions/ and its hidden tests, as far as grading needs them."""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autograder.course import Course
from ichimon.notebook import Cell

COURSE = Path(__file__).resolve().parents[1]
SOLUTIONS = COURSE / "solutions"
TESTS = COURSE / "autograder" / "tests"
# Where submissions come from, and what becomes of marks: a change there regrades nothing.
DECIDES_NO_MARK = {"alike", "archives", "cli", "cluster", "collect", "exchange", "exports", "feedback", "formgrader"}
DECIDES_NO_MARK |= {"gradebook", "hosted", "late", "names", "results", "roster", "story", "translation", "zipcollect"}


class UnknownAssignment(LookupError):
    """No such assignment: the text lists those that there are."""


@dataclass(frozen=True)
class Assignment:
    """One chapter's source, cell by cell. `points` keeps the exercises in the notebook's order."""

    name: str
    cells: tuple[Cell, ...]
    points: Mapping[str, float]
    stand_ins: Mapping[str, str]  # exercise -> source of what its tests put in the place of other exercises

    @property
    def set_up(self) -> str:
        return next(cell.source for cell in self.cells if cell.role == "set-up")

    @property
    def reference(self) -> dict[str, str]:
        """exercise -> the reference solution's source."""
        return {cell.exercise: cell.source for cell in self.cells if cell.role == "solution"}

    @property
    def checks(self) -> dict[str, str]:
        """exercise -> its visible check's source."""
        return {cell.exercise: cell.source for cell in self.cells if cell.role == "check"}

    @property
    def tests(self) -> Path:
        return TESTS / f"test_{self.name.replace('-', '_')}.py"

    @functools.cached_property
    def tests_sha(self) -> dict[str, str]:
        """For each exercise, a hash of all that decides its mark here: its tests, what they share, set-up,
        stand-ins, points.

        A change to one exercise's tests leaves the others' hash as it was, so that a regrade touches only what changed.
        """
        own: dict[str, list[str]] = {exercise: [] for exercise in self.points}
        shared = [self.set_up, (TESTS / "conftest.py").read_text()]
        text = self.tests.read_text()
        for node in ast.parse(text).body:
            source = ast.unparse(node)
            exercise = _exercise_of(node)
            own.get(exercise, shared).append(source)
        return {
            exercise: _sha(*shared, *sources, self.stand_ins.get(exercise, ""), str(self.points[exercise]))
            for exercise, sources in own.items()
        }


def _exercise_of(node: ast.stmt) -> str:
    """The exercise that a test function's decorator names, "" for anything else in the file."""
    for decorator in getattr(node, "decorator_list", []):
        match decorator:
            case ast.Call(func=ast.Attribute(attr="exercise"), args=[ast.Constant(value=str(name)), *_]):
                return name
    return ""


def _sha(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@functools.cache
def environment_sha() -> str:
    """A hash of what every mark depends on besides the tests: the grader's own code, ichimon, Python and torch."""
    from importlib.metadata import version

    grader = [path for path in COURSE.glob("autograder/*.py") if path.stem not in DECIDES_NO_MARK]
    ours = sorted([*grader, *COURSE.glob("autograder/sandbox/*.py"), *COURSE.glob("ichimon/*.py")])
    return _sha(platform.python_version(), version("torch"), *[path.read_bytes() for path in ours])


def names() -> list[str]:
    """All assignments that can be graded: a source and hidden tests exist, and course.toml leaves them in."""
    found = [path.stem for path in Course(SOLUTIONS.parent).sources]
    return [name for name in found if (TESTS / f"test_{name.replace('-', '_')}.py").exists()]


@functools.cache
def load(name: str) -> Assignment:
    """The assignment of that name. Raises UnknownAssignment with a sentence."""
    if name not in names():
        raise UnknownAssignment(f"There is no assignment {name!r}. There is: {', '.join(names()) or 'none yet'}.")
    cells = tuple(Course(SOLUTIONS.parent).cells(SOLUTIONS / f"{name}.py"))
    points = {cell.exercise: cell.points for cell in cells if cell.role == "check"}
    stand_ins = {cell.exercise: cell.source for cell in cells if cell.role == "stand-in"}
    return Assignment(name, cells, points, stand_ins)
