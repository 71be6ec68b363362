"""What grading one submission yields: plain data that is stored, synced to nbgrader and shown to people."""

from __future__ import annotations

from enum import StrEnum

import msgspec


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


class TestResult(msgspec.Struct, frozen=True):
    """One hidden test on one submission. Nothing here may show an expected value or a line of the test."""

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
        return first.outcome.value


class CellRun(msgspec.Struct, frozen=True):
    """What happened when one cell of the submission ran in the jail."""

    cell: str  # the cell's id, or its position ("cell 7") where it has none
    exercise: str  # the exercise it answers, "" for a cell the student added
    error: str = ""  # "" or one sentence: "SyntaxError: '(' was never closed (line 3)"
    output: str = ""  # what it printed, cut at the limit


class Report(msgspec.Struct, frozen=True):
    """One submission, graded."""

    student: str
    assignment: str
    sha: str  # of the submitted file's bytes
    exercises: tuple[ExerciseResult, ...]
    notices: tuple[str, ...] = ()  # sentences: a duplicated cell, a blanked magic, the wrong file, ...
    cells: tuple[CellRun, ...] = ()

    @property
    def points(self) -> float:
        return round(sum(exercise.points for exercise in self.exercises), 2)

    @property
    def max_points(self) -> float:
        return sum(exercise.max_points for exercise in self.exercises)

    @property
    def reason(self) -> str:
        """One line: the first notice or the first exercise that lost points says why."""
        lines = [f"{e.exercise}: {e.reason}" for e in self.exercises if e.reason]
        return (self.notices or tuple(lines) or ("",))[0]
