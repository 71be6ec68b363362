"""A good, a middling and a hostile submission to each chapter get the marks that were decided for them, in both ways.

`tests/submissions/NN-topic/WHO.py` holds the cells that this student changed, each under `# %% ` and the exercise's
name, and under other titles those that they added; `marks.json` the points that each deserves.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import NIGHTLY
from nbgrader.api import Gradebook
from nbgrader.coursedir import CourseDirectory
from test_gradebook import nbgrader

from autograder import assignment as assignments
from autograder.gradebook import course_config, register
from autograder.report import Outcome, Report
from autograder.results import Results

if TYPE_CHECKING:
    from conftest import Command

ROOT = Path(__file__).resolve().parents[1]
SUBMISSIONS = ROOT / "tests" / "submissions"
CHAPTERS = [name for name in assignments.names() if name != "02-self-attention"]  # that one has a whole class
STUDENTS = ("good", "middling", "hostile")
DESERVED: dict[str, dict[str, dict[str, float]]] = {
    path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in SUBMISSIONS.glob("*/marks.json")
}
EACH = pytest.mark.parametrize(("chapter", "student"), [(chapter, who) for chapter in CHAPTERS for who in STUDENTS])

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")  # nbgrader's own


def handed_in(chapter: str, student: str) -> dict[str, Any]:
    """The released notebook with what this student wrote in it."""
    notebook = json.loads((ROOT / f"notebooks/{chapter}/{chapter}.ipynb").read_text(encoding="utf-8"))
    written = (SUBMISSIONS / chapter / f"{student}.py").read_text(encoding="utf-8")
    blocks = re.split(r"^# %% ", written, flags=re.MULTILINE)[1:]
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    first = next(
        i for i, cell in enumerate(notebook["cells"]) if cell["id"] in notebook["metadata"]["ichimon"]["exercises"]
    )
    for title, _, source in (block.partition("\n") for block in blocks):
        lines = source.strip("\n").splitlines(keepends=True)
        if title in notebook["metadata"]["ichimon"]["exercises"]:
            cells[title]["source"] = lines
        else:
            added = {
                "cell_type": "code",
                "execution_count": None,
                "id": f"added-{first}",
                "metadata": {},
                "outputs": [],
            }
            notebook["cells"].insert(first, {**added, "source": lines})
            first += 1
    return notebook


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An nbgrader course of all chapters, in which the three students handed everything in."""
    root = tmp_path_factory.mktemp("course")
    shutil.copy(ROOT / "nbgrader_config.py", root)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for chapter in CHAPTERS:
        for student in STUDENTS:
            folder = root / "submitted" / student / chapter
            folder.mkdir(parents=True)
            text = json.dumps(handed_in(chapter, student))
            (folder / f"{chapter}.ipynb").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def reports(course: Path, command: Command) -> dict[tuple[str, str], Report]:
    one = ("--workers", 1)  # each worker runs the known mistakes of every chapter once
    ran = command("grade", course / "submitted", "--results", course / "results.sqlite", *one)
    assert ran.code == 0, ran.err
    with Results(course / "results.sqlite") as stored:
        return {(report.assignment, report.student): report for report in stored.reports()}


def test_every_chapter_has_its_three_students_and_their_marks() -> None:
    assert sorted(DESERVED) == CHAPTERS
    for chapter, deserved in DESERVED.items():
        points = assignments.load(chapter).points
        assert list(deserved) == list(STUDENTS)
        assert all(list(marks) == list(points) for marks in deserved.values()), chapter
        assert deserved["good"] == points
        sums = {student: sum(deserved[student].values()) / sum(points.values()) for student in STUDENTS}
        assert 0.2 < sums["middling"] < 0.9
        assert sums["hostile"] < 0.1


@EACH
def test_each_gets_exactly_the_marks_it_deserves(
    chapter: str, student: str, reports: dict[tuple[str, str], Report]
) -> None:
    exercises = reports[chapter, student].exercises
    told = {test.name: test.message for exercise in exercises for test in exercise.tests if not test.passed}
    assert {exercise.exercise: exercise.points for exercise in exercises} == DESERVED[chapter][student], told


@EACH
def test_whoever_loses_a_point_is_told_why(chapter: str, student: str, reports: dict[tuple[str, str], Report]) -> None:
    for exercise in reports[chapter, student].exercises:
        assert Outcome.CRASHED not in {test.outcome for test in exercise.tests}
        assert exercise.points == exercise.max_points or exercise.reason


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nbgraders_own_command_gives_the_same_marks(
    chapter: str, course: Path, reports: dict[tuple[str, str], Report]
) -> None:
    if not NIGHTLY and CHAPTERS.index(chapter) % 4:
        pytest.skip("nbgrader's command takes seconds a chapter, and every fourth is enough by day: make nightly")
    directory = CourseDirectory(config=course_config(course))
    register(chapter, directory)
    assert nbgrader(course, "autograde", chapter) == 0
    with Gradebook(directory.db_url) as gradebook:
        for student in STUDENTS:
            grades = gradebook.find_submission_notebook(chapter, chapter, student).grades
            marks = {grade.name.removeprefix("check-"): grade.auto_score for grade in grades}
            assert {name: marks[name] for name in DESERVED[chapter][student]} == pytest.approx(
                DESERVED[chapter][student]
            ), student
