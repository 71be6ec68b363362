"""The `student` fixture. The grader sets whose submission it is; plain pytest takes it from --submission:

pytest autograder/tests/test_02_self_attention.py --submission FILE
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autograder import assignment as assignments
from autograder import submission
from autograder.grading import student_of
from autograder.sandbox.jail import Jail
from autograder.student import Student


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--submission", metavar="FILE", help="the notebook to test; without it, the reference solution")


@pytest.fixture(scope="session")
def jail(request: pytest.FixtureRequest) -> Iterator[Jail]:
    with Jail() as started:
        yield started


@pytest.fixture(scope="module")
def submitted(request: pytest.FixtureRequest) -> Iterator[Student]:
    """The submission that plain pytest tests; the grader never asks for it."""
    name = request.path.stem.removeprefix("test_").replace("_", "-")
    assignment = assignments.load(name)
    file = request.config.getoption("--submission")
    if file:
        found = submission.read(submission.Found("submission", name, Path(file)), assignment)
        if found.unreadable:
            raise pytest.UsageError(found.notices[0])
    else:
        found = submission.from_sources("reference", assignment, list(assignment.reference.items()))
    student = student_of(found, assignment, request.getfixturevalue("jail"), request.module)
    yield student
    student._close()


@pytest.fixture
def student(request: pytest.FixtureRequest) -> Student:
    current = request.getfixturevalue("submitted")
    current._begin(request.node.get_closest_marker("exercise").args[0])
    return current
