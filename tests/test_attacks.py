"""Every submission in tests/attacks against the real grader, in one class with honest neighbours.

An attack is one file that tells its story. Most are percent-format submissions; those in MADE are scripts that make
what is handed in. All are graded in one run, in a copy of the course in which random strings (canaries) stand wherever
an attack might get at: none may come back to a student. As root, the whole file runs once more as an ordinary user.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import nbformat
import pytest
from conftest import run_as_ordinary_user

from autograder import feedback
from autograder.gradebook import show_report, submission_notebook
from autograder.report import Report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAME = "02-self-attention"
CODE = ("read", "forge", "exhaust", "escape", "persist", "interfere")
MADE = ("files", "format", "pages")
NEIGHBOURS = {"a-neighbour": "student-01", "forge-neighbour": "student-03", "z-neighbour": "student-07"}
THROUGH = "GOT THROUGH"  # what an attack prints when it could do what must not be possible
LONGEST = 25.0  # seconds for one submission: the limits in grade.py, a last request, and a busy machine


# -- the attacks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """One file of tests/attacks: its story, what the student must be told, the most it may get, how many hand it in."""

    student: str
    story: str
    says: re.Pattern[str]
    points: float
    copies: int
    hand_in: Callable[[Path, dict[str, Any], str], None]

    @classmethod
    def read(cls, path: Path) -> Self:
        student = f"{path.parent.name}-{path.stem}"
        if path.parent.name in MADE:
            spec = importlib.util.spec_from_file_location(student, path)
            assert spec is not None
            assert spec.loader is not None
            made = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(made)

            def changed(folder: Path, notebook: dict[str, Any], student: str) -> None:
                made.change(notebook)
                write(folder, notebook, student)

            hands_in = getattr(made, "hand_in", changed)  # some change the notebook, others make the file themselves
            return cls(student, made.__doc__ or "", re.compile(made.SAYS), made.POINTS, 1, hands_in)
        head, *cells = re.split(r"^# %% ?", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        told = dict(re.findall(r"^# (story|says|points|neighbours): (.*(?:\n#   .*)*)", head, re.MULTILINE))
        sources = [(title.strip(), source) for title, _, source in (cell.partition("\n") for cell in cells)]

        def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
            answer(notebook, sources)
            notebook["metadata"]["student"] = student  # no two files hold the same bytes
            write(folder, notebook, student)

        points, copies = float(told.get("points", 0)), int(told.get("neighbours", 1))
        return cls(student, told["story"], re.compile(told["says"]), points, copies, hand_in)

    @property
    def students(self) -> list[str]:
        return [self.student, *(f"{self.student}-{i}" for i in range(2, self.copies + 1))]


def answer(notebook: dict[str, Any], sources: list[tuple[str, str]]) -> None:
    """Write cells into a notebook: exercises in the starter's place, others after what stands before them."""
    ids = [cell["id"] for cell in notebook["cells"]]
    place = 1 + ids.index("set-up")
    for number, (title, source) in enumerate(sources):
        if title in ids:
            place = next(i for i, cell in enumerate(notebook["cells"]) if cell["id"] == title)
            notebook["cells"][place]["source"] = source
        else:
            added = {"cell_type": "code", "execution_count": None, "id": f"own-{number}", "metadata": {}, "outputs": []}
            notebook["cells"].insert(place, {**added, "source": source})
        place += 1


def write(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook))


FILES = sorted(path for category in (*CODE, *MADE) for path in (HERE / "attacks" / category).glob("*.py"))
ATTACKS = {attack.student: attack for attack in map(Attack.read, FILES)}


# -- the class ------------------------------------------------------------------------------------------------------


class Graded(msgspec.Struct):
    """What grade.py found out."""

    reports: dict[str, Report]
    paths: dict[str, str]
    ungraded: list[tuple[str, str, str]]  # student, path, reason
    without: list[str]  # a sentence for each path that holds no submission
    seconds: dict[str, float]

    def told(self, attack: Attack) -> Iterator[str]:
        """All that anybody is told about an attack."""
        for student in attack.students:
            report = self.reports.get(student)
            if report:
                yield from (report.reason, *report.notices)
                yield from (text for run in report.cells for text in (run.error, run.output))
                for result in report.exercises:
                    for test in result.tests:
                        yield from (test.outcome.value, test.message, test.mistake)
        mine = attack.student.casefold()
        yield from (reason for who, path, reason in self.ungraded if mine in f"{who} {path} {reason}".casefold())
        yield from (sentence for sentence in self.without if mine in sentence.casefold())


@dataclass(frozen=True)
class Classroom:
    """A copy of the course, the class with and without the attackers, and the canaries: where one is -> the string."""

    course: Path
    graded: Graded
    alone: Graded
    canaries: dict[str, str]


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classroom]:
    course = tmp_path_factory.mktemp("course")
    canaries = plant(course)
    released = json.loads((course / "notebooks" / NAME / f"{NAME}.ipynb").read_text())
    for student, example in NEIGHBOURS.items():
        notebook = json.loads((ROOT / "examples" / "class" / example / NAME / f"{NAME}.ipynb").read_text())
        first = next(cell for cell in notebook["cells"] if cell["id"] == "causal_mask")
        first["source"] = ["secret = '", canaries[student], "'\n", *first["source"]]
        for folder in ("class", "alone"):
            write(course / folder, copy.deepcopy(notebook), student)
    for attack in ATTACKS.values():
        for student in attack.students:
            attack.hand_in(course / "class", copy.deepcopy(released), student)
    yield Classroom(course, graded(course, "class", canaries), graded(course, "alone", canaries), canaries)
    subprocess.run(["rm", "-rf", str(course)], check=True)  # what attackers leave may be too deep for shutil


def plant(course: Path) -> dict[str, str]:
    """Copy what grading needs, with a canary in whatever nobody may read."""
    places = ("hidden tests", "solutions", "mistakes", "gradebook", "results", "instructor", "environment", *NEIGHBOURS)
    canaries = {place: f"CANARY-{secrets.token_hex(8)}" for place in places}
    for name in ("autograder", "ichimon", "solutions", "notebooks"):
        shutil.copytree(ROOT / name, course / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("nbgrader_config.py", "pyproject.toml", "tests/attacks/grade.py"):
        shutil.copy(ROOT / name, course)
    for path, canary, inside in (
        (f"autograder/tests/test_{NAME.replace('-', '_')}.py", "hidden tests", ""),
        ("autograder/tests/conftest.py", "hidden tests", ""),
        (f"solutions/{NAME}.py", "solutions", "    ### BEGIN SOLUTION\n"),
        (f"autograder/mistakes/{NAME}.py", "mistakes", ""),
        (f"autograder/alternatives/{NAME}.py", "mistakes", ""),
    ):
        text, indent = (course / path).read_text(), re.match(r"\s*", inside)
        assert inside in text
        line = f"{indent[0] if indent else ''}secret = '{canaries[canary]}'\n"
        (course / path).write_text(text.replace(inside, inside + line) if inside else f"{text}\n{line}")
    (course / "notes.txt").write_text(canaries["instructor"])
    for name, place in (("gradebook.db", "gradebook"), ("_build/results.sqlite", "results")):
        (course / name).parent.mkdir(exist_ok=True)
        with sqlite3.connect(course / name) as database:
            database.execute("CREATE TABLE secret AS SELECT ? AS canary", (canaries[place],))
    return canaries


def graded(course: Path, folder: str, canaries: dict[str, str]) -> Graded:
    environment = {**os.environ, "PYTHONPATH": str(course), "CANARY": canaries["environment"]}
    command = [sys.executable, "grade.py", folder]
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return msgspec.json.decode((course / f"{folder}.json").read_bytes(), type=Graded)


# -- what must hold -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_an_attack_gains_nothing(classroom: Classroom, attack: Attack) -> None:
    told = list(classroom.graded.told(attack))
    reports = [classroom.graded.reports[student] for student in attack.students if student in classroom.graded.reports]
    assert told, "nobody was told anything about it"
    assert max([report.points for report in reports], default=0) <= attack.points
    assert any(attack.says.search(text) for text in told), "\n".join(dict.fromkeys(filter(None, told)))
    assert not [text for text in told if THROUGH in text], "the attack got through"
    assert not [text for text in told if "The grader failed" in text], "our own code failed"
    assert max([classroom.graded.seconds.get(student, 0) for student in attack.students]) < LONGEST
    for student, report in ((report.student, report) for report in reports):
        for canary in canaries_in(pages(classroom, student, report), classroom, but=student):
            raise AssertionError(f"{student} was shown what stands in: {canary}")


def pages(classroom: Classroom, student: str, report: Report) -> str:
    """Everything that is made for one student: our page, nbgrader's notebook, its comments, and the report itself."""
    release = nbformat.read(classroom.course / "notebooks" / NAME / f"{NAME}.ipynb", as_version=4)
    notebook = submission_notebook(Path(classroom.graded.paths[student]), release)
    show_report(notebook, report)
    comments = "".join(feedback.comment(result) for result in report.exercises)
    return "\n".join([feedback.page(report), nbformat.writes(notebook), comments, msgspec.json.encode(report).decode()])


def canaries_in(text: str, classroom: Classroom, but: str = "") -> list[str]:
    return [place for place, canary in classroom.canaries.items() if place != but and canary in text]


def test_neighbours_are_graded_as_if_they_were_alone(classroom: Classroom) -> None:
    for student in NEIGHBOURS:
        report = classroom.graded.reports[student]
        assert report == classroom.alone.reports[student]
        assert report.points > 0
        assert canaries_in(pages(classroom, student, report), classroom, but=student) == []


def test_only_those_who_handed_something_in_have_a_report(classroom: Classroom) -> None:
    known = {student for attack in ATTACKS.values() for student in attack.students}
    assert set(classroom.graded.reports) <= known | set(NEIGHBOURS)


def test_the_class_report_shows_no_canary(classroom: Classroom) -> None:
    page = feedback.class_report(classroom.graded.reports.values())
    assert all(student in page for student in NEIGHBOURS)
    assert canaries_in(page, classroom) == []


def test_every_attack_tells_its_story() -> None:
    assert len(ATTACKS) >= 70
    assert [attack.student for attack in ATTACKS.values() if len(attack.story.split()) < 8] == []


def test_all_of_this_holds_for_an_ordinary_user() -> None:
    run_as_ordinary_user(__file__, timeout=600)
