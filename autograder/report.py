"""What grading one submission yields: plain data that is stored, synced to nbgrader and shown to people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

import msgspec

LONGEST = 2_000  # characters of one message
LONGEST_OUTPUT = 10_000  # characters of what one cell printed

_TERMINAL_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control characters, characters that reorder or hide text, and half characters that no file can hold.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def clean(text: str, longest: int = LONGEST) -> str:
    """The text without what a page or a terminal could act on, cut to `longest` characters."""
    cut = text[: 4 * longest]  # what is invisible may be most of it, but not all of a huge output need be read
    cut = _UNPRINTABLE.sub("", _LINE_ENDS.sub("\n", _TERMINAL_CODES.sub("", cut)))
    if len(cut) <= longest and len(text) <= 4 * longest:
        return cut
    return f"{cut[:longest]}…" + (f" (cut after {longest:,} characters)" if longest >= LONGEST else "")


class Outcome(StrEnum):
    """How one hidden test ended. The value is what people read."""

    PASSED = "passed"
    FAILED = "failed"  # an assertion of the test did not hold
    RAISED = "raised an error"  # the student's code raised where the test did not expect it
    UNFINISHED = "not written yet"  # NotImplementedError from the starter, or the name is not defined
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    DIED = "worker died"
    CRASHED = "the test could not judge this answer"  # an exception of the test itself: ours to mend


WORST_FIRST = tuple(reversed(Outcome))
STOPPED = frozenset({Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY, Outcome.DIED})  # by us, at one of the limits


class TestResult(msgspec.Struct, frozen=True):
    """One hidden test on one submission. Nothing here may show an expected value or a line of the test."""

    __test__: ClassVar[bool] = False  # not a test of pytest's, wherever it is imported

    name: str  # the test function's name with its parameters: "test_a_row_sees_the_past[5]"; for staff
    claim: str  # the claim in words: "a row sees the past"
    hint: str  # the test's one-line docstring, written for the student
    weight: float
    outcome: Outcome
    message: str = ""  # shapes, the largest difference, the student's own error: safe to show
    mistake: str = ""  # the known mistake whose answers these are, in a sentence; "" if none matches

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED


class ExerciseResult(msgspec.Struct, frozen=True):
    """All hidden tests of one exercise on one submission."""

    exercise: str
    max_points: float
    tests: tuple[TestResult, ...]

    @property
    def points(self) -> float:
        """Points times the passed share of the weight, to two decimals."""
        total = sum(test.weight for test in self.tests)
        passed = sum(test.weight for test in self.tests if test.passed)
        return round(self.max_points * passed / total, 2) if total else 0.0

    @property
    def ending(self) -> Outcome | None:
        """How the exercise as a whole ended: as the worst of its tests did. None if none of them ran."""
        outcomes = {test.outcome for test in self.tests}
        return next((outcome for outcome in WORST_FIRST if outcome in outcomes), None)

    @property
    def reason(self) -> str:
        """One line for a table of marks: why points are missing, or "" where none are."""
        lost = [test for test in self.tests if not test.passed]
        if not lost:
            return ""
        named = next((test for test in lost if test.mistake), None)
        if named:
            return named.mistake
        first = lost[0]
        if first.outcome is Outcome.FAILED:
            return f"{len(lost)} of {len(self.tests)} tests fail, first: {first.claim}"
        if first.outcome is Outcome.RAISED:
            return " ".join(f"{first.outcome.value}: {first.message}".split())  # a message may have many lines
        return first.outcome.value


class CellRun(msgspec.Struct, frozen=True):
    """What happened when one cell of the submission ran in the jail."""

    cell: str  # the cell's id, or its position ("cell 7") where it has none
    exercise: str  # the exercise it answers, "" for a cell the student added
    error: str = ""  # "" or one sentence: "SyntaxError: '(' was never closed (line 3)"
    output: str = ""  # what it printed, cut at the limit
    source: str = ""  # the code that ran


class Report(msgspec.Struct, frozen=True, eq=False):
    """One submission, graded. Two reports are equal if they say the same, however long it took."""

    student: str
    assignment: str
    sha: str  # of the submitted file's bytes
    exercises: tuple[ExerciseResult, ...]
    notices: tuple[str, ...] = ()  # sentences: a duplicated cell, a blanked magic, the wrong file, ...
    cells: tuple[CellRun, ...] = ()
    seconds: Mapping[str, float] = {}  # exercise -> how long its tests took; "": the cells. What is unknown is absent

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and all(
            getattr(self, field) == getattr(other, field) for field in self.__struct_fields__ if field != "seconds"
        )

    @property
    def points(self) -> float:
        return round(sum(exercise.points for exercise in self.exercises), 2)

    @property
    def max_points(self) -> float:
        return sum(exercise.max_points for exercise in self.exercises)

    @property
    def reason(self) -> str:
        """One line: why the first of the missing points is missing, else what there was to notice."""
        lost = [f"{exercise.exercise}: {exercise.reason}" for exercise in self.exercises if exercise.reason]
        return next(iter((*lost, *self.notices)), "")
