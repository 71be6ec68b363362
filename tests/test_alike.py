"""Which submissions the class report calls alike: copies in disguise, and nobody who worked alone."""

from __future__ import annotations

import re

import pytest

from autograder import alike, variants
from autograder import assignment as assignments
from autograder.alike import pairs
from autograder.report import CellRun, Report
from ichimon import notebook

NAME = "02-self-attention"
CLASS = assignments.COURSE / "examples/class"


def report(student: str, sources: dict[str, str], name: str = NAME) -> Report:
    cells = tuple(CellRun(exercise, exercise, source=source) for exercise, source in sources.items())
    return Report(student=student, assignment=name, sha=student, exercises=(), cells=cells)


def handed_in(student: str) -> dict[str, str]:
    cells = notebook.cells(CLASS / student / NAME / f"{NAME}.ipynb")
    return {cell.exercise: cell.source for cell in cells if cell.role == "solution"}


@pytest.fixture(scope="module")
def own_way() -> dict[str, str]:
    """The answers of a student who writes like nobody else."""
    return handed_in("student-02")


def disguised(source: str) -> str:
    """Other names, other comments, another layout."""
    source = re.sub(r"#.*", "", source)
    source = re.sub(r"\b(scores|weights|q|k|v|x|out|heads|rows)\b", r"my_\1", source)
    return source.replace("\n\n", "\n") + "\n# all mine\n"


def test_a_copy_in_disguise_is_found(own_way: dict[str, str]) -> None:
    copy = {name: disguised(source) for name, source in own_way.items()}
    (pair,) = pairs([report("ada", own_way), report("bob", copy), report("carl", handed_in("student-01"))])
    assert (pair.one, pair.other) == ("ada", "bob")
    assert pair.share > 0.8
    assert set(pair.exercises) <= set(own_way)


def test_who_works_alone_is_not_named(own_way: dict[str, str]) -> None:
    others = [handed_in(student) for student in ("student-01", "student-07", "student-10")]
    assert pairs([report("ada", own_way), *(report(f"s{i}", other) for i, other in enumerate(others))]) == []


def test_what_many_write_is_no_sign() -> None:
    """The reference and every listed right answer: two who come to the same one need not have met."""
    assignment = assignments.load(NAME)
    first = {variant.exercise: variant.source for variant in reversed(variants.alternatives(NAME))}
    assert pairs([report("ada", assignment.reference), report("bob", assignment.reference)]) == []
    assert pairs([report("ada", first), report("bob", first)]) == []


def test_what_a_crowd_shares_is_no_sign(own_way: dict[str, str]) -> None:
    """An answer that a tutor showed to all names nobody."""
    assert pairs([report(f"s{i}", own_way) for i in range(alike.CROWD + 1)]) == []
    assert pairs([report(f"s{i}", own_way) for i in range(2)]) != []


@pytest.mark.parametrize("source", ["", "raise NotImplementedError", "def (", "\x00", "x" * 100_000])
def test_what_is_hardly_code_is_not_compared(source: str) -> None:
    assert pairs([report("ada", {"attention": source}), report("bob", {"attention": source})]) == []


def test_an_assignment_that_is_gone_can_still_be_compared(own_way: dict[str, str]) -> None:
    (pair,) = pairs([report("ada", own_way, "90-gone"), report("bob", own_way, "90-gone")])
    assert pair.share == 1
