"""nbgrader with our sandbox behind it: marks arrive whatever a student did to the notebook, no secret comes back."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from jupyter_core.application import NoStart
from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell
from nbgrader.api import Grade, Gradebook
from nbgrader.apps import NbGraderAPI, NbGraderApp
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import ClearSolutions, ComputeChecksums, LockCells
from nbgrader.server_extensions.formgrader.formgrader import FormgradeExtension

from autograder.course import CourseError
from autograder.gradebook import (
    GradebookError,
    Held,
    compared,
    course_config,
    held,
    register,
    released,
    safe_markdown,
    submission_notebook,
    sync,
)
from autograder.report import CellRun, ExerciseResult, Outcome, Report, TestResult
from autograder.results import Move
from ichimon.notebook import NotebookError, cells

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")  # nbgrader's own

ROOT = Path(__file__).resolve().parents[1]
NAME = "07-tiny"
SCRIPT = "<script>alert('mine')</script>"


# -- a tiny course --------------------------------------------------------------------------------------------------


def nbgrader_cell(make: Callable[..., NotebookNode], source: str, grade_id: str, **flags: Any) -> NotebookNode:
    metadata = {"grade": False, "solution": False, "locked": False, "task": False, "schema_version": 3, **flags}
    return make(source, id=grade_id, metadata={"nbgrader": {"grade_id": grade_id, **metadata}})


def source_notebook() -> NotebookNode:
    cells = [
        new_markdown_cell("# Tiny\n\nWhere $a < b$, `x` is `<b>`.", id="intro"),
        nbgrader_cell(new_code_cell, "import math", "set-up", locked=True),
    ]
    for name, points in (("double", 2), ("halve", 3)):
        answer = f"def {name}(x):\n    ### BEGIN SOLUTION\n    return 'the answer'\n    ### END SOLUTION"
        cells += [
            nbgrader_cell(new_code_cell, answer, name, solution=True),
            nbgrader_cell(new_code_cell, f"assert {name}(2)", f"check-{name}", grade=True, locked=True, points=points),
        ]
    cells.append(nbgrader_cell(new_markdown_cell, "Why?", "why", grade=True, solution=True, points=4))
    return new_notebook(cells=cells, metadata={"ichimon": {"assignment": NAME}})


@pytest.fixture(scope="module")
def release() -> NotebookNode:
    notebook = source_notebook()
    for preprocessor in (LockCells(), ClearSolutions(), ComputeChecksums()):
        notebook, _ = preprocessor.preprocess(notebook, {"language": "python"})
    return notebook


@pytest.fixture(scope="module")
def empty_course(release: NotebookNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course whose gradebook exists: nbgrader takes two seconds to make one."""
    root = tmp_path_factory.mktemp("course")
    shutil.copy(ROOT / "nbgrader_config.py", root)
    (root / "submitted").mkdir()
    folder = root / "notebooks" / NAME
    folder.mkdir(parents=True)
    nbformat.write(release, folder / f"{NAME}.ipynb")
    register(NAME, directory(root))
    return root


@pytest.fixture
def course(empty_course: Path, tmp_path: Path) -> Path:
    return shutil.copytree(empty_course, tmp_path / "course")


def directory(root: Path) -> CourseDirectory:
    return CourseDirectory(config=course_config(root))


def hand_in(course: Path, student: str, notebook: NotebookNode | str, timestamp: str = "") -> Path:
    folder = course / "submitted" / student / NAME
    folder.mkdir(parents=True)
    path = folder / f"{NAME}.ipynb"
    path.write_text(notebook if isinstance(notebook, str) else nbformat.writes(notebook))
    if timestamp:
        (folder / "timestamp.txt").write_text(timestamp)
    return path


def answered(release: NotebookNode) -> NotebookNode:
    notebook = nbformat.from_dict(json.loads(nbformat.writes(release)))
    for cell in notebook.cells:
        if cell.id in ("double", "halve"):
            cell.source = f"def {cell.id}(x):\n    return x"
    return notebook


def named(notebook: NotebookNode, grade_id: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == grade_id)


# -- what the grader would say --------------------------------------------------------------------------------------


def hidden(claim: str, outcome: Outcome = Outcome.PASSED, message: str = "", mistake: str = "") -> TestResult:
    return TestResult(f"test_{claim}", claim, f"Hint of {claim}.", 1.0, outcome, message, mistake)


def report(student: str, *, message: str = "The largest difference is 0.5.", **changes: Any) -> Report:
    """`double` gets everything, `halve` one third."""
    halve = (
        hidden("halves"),
        hidden("keeps the dtype", Outcome.FAILED, message),
        hidden("keeps the sign", Outcome.FAILED, message, mistake="It doubles instead."),
    )
    exercises = (ExerciseResult("double", 2.0, (hidden("doubles"),)), ExerciseResult("halve", 3.0, halve))
    values: dict[str, Any] = {"student": student, "assignment": NAME, "sha": "0", "exercises": exercises}
    return Report(**{**values, **changes})


def nothing(student: str, notice: str) -> Report:
    tests = (hidden("doubles", Outcome.UNFINISHED),)
    halve = (hidden("halves", Outcome.UNFINISHED),)
    exercises = (ExerciseResult("double", 2.0, tests), ExerciseResult("halve", 3.0, halve))
    return Report(student, NAME, "0", exercises, notices=(notice,))


@pytest.fixture
def grader(monkeypatch: pytest.MonkeyPatch) -> dict[str, Report]:
    """In the place of the sandbox: the Report that each student is to get."""
    reports: dict[str, Report] = {}

    def grade_one(path: Path, student: str, assignment: str) -> Report:
        assert path.parent.parts[-3:] == ("submitted", student, assignment)
        cells(path)
        return reports[student]

    grading = ModuleType("autograder.grading")
    grading.grade_one = grade_one  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autograder.grading", grading)
    return reports


def nbgrader(course: Path, *arguments: str) -> int:
    """Run nbgrader's command line in this process; give its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(course)
        app = NbGraderApp.instance()
        try:
            app.initialize([*arguments, "--quiet"])
            app.start()
        except NoStart:  # how a Jupyter command with a subcommand ends well
            return 0
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            NbGraderApp.clear_instance()
            if app.subapp:
                type(app.subapp).clear_instance()
    raise AssertionError("nbgrader ran no command")


@pytest.fixture
def gradebook(course: Path) -> Iterator[Gradebook]:
    with Gradebook(directory(course).db_url) as opened:
        yield opened


def marks(course: Path, student: str) -> dict[str, tuple[float | None, bool]]:
    with Gradebook(directory(course).db_url) as opened:
        grades = opened.find_submission_notebook(NAME, NAME, student).grades
        return {grade.name: (grade.auto_score, grade.needs_manual_grade) for grade in grades}


def comments(course: Path, student: str) -> dict[str, str | None]:
    with Gradebook(directory(course).db_url) as opened:
        return {c.name: c.auto_comment for c in opened.find_submission_notebook(NAME, NAME, student).comments}


def autograded(course: Path, student: str) -> NotebookNode:
    return nbformat.read(course / "autograded" / student / NAME / f"{NAME}.ipynb", as_version=4)


def printed(cell: NotebookNode) -> str:
    assert all(output.output_type == "stream" and output.name == "stdout" for output in cell.outputs)
    return "".join(output.text for output in cell.outputs)


HALF = {"check-double": (2.0, False), "check-halve": (1.0, False), "why": (0.0, False)}
ZERO = {"check-double": (0.0, False), "check-halve": (0.0, False), "why": (0.0, False)}


# -- marks ----------------------------------------------------------------------------------------------------------


def test_partial_credit_arrives_with_words(course: Path, release: NotebookNode, grader: dict[str, Report]) -> None:
    hand_in(course, "ada", answered(release))
    grader["ada"] = report("ada", cells=(CellRun("double", "double", output="hello\n"),))
    assert nbgrader(course, "autograde", NAME) == 0
    assert marks(course, "ada") == HALF
    notebook = autograded(course, "ada")
    assert printed(named(notebook, "double")) == "hello\n"
    told = printed(named(notebook, "check-halve"))
    for words in ("1 of 3 points", "✓ halves: passed", "✗ keeps the dtype: failed", "It doubles instead."):
        assert words in told
        assert words in (comments(course, "ada")["halve"] or "")


def test_sync_leaves_what_nbgrader_leaves(course: Path, release: NotebookNode, grader: dict[str, Report]) -> None:
    ours = shutil.copytree(course, course.with_name("ours"))
    grader |= {"ada": report("ada"), "bob": nothing("bob", "This is another notebook.")}
    for root in (course, ours):
        hand_in(root, "ada", answered(release), "2026-11-22 10:00:00 UTC")
        hand_in(root, "bob", new_notebook(cells=[new_code_cell("print('another')", id="other")]))
        hand_in(root, "cy", "{not json")
    assert nbgrader(course, "autograde", NAME) == 0
    with pytest.raises(NotebookError) as unreadable:
        cells(course / "submitted" / "cy" / NAME / f"{NAME}.ipynb")
    grader["cy"] = report("cy", sha="", exercises=(), notices=(str(unreadable.value),))
    sync(grader.values(), course=ours)
    for student in grader:
        assert marks(course, student) == marks(ours, student)
        assert comments(course, student) == comments(ours, student)
        assert autograded(course, student) == autograded(ours, student)
    assert marks(ours, "bob") == ZERO
    assert nbgrader(ours, "generate_feedback", NAME) == 0
    assert "This is another notebook." in (ours / "feedback" / "bob" / NAME / f"{NAME}.html").read_text()


def test_nbgrader_takes_a_synced_submission_for_autograded(course: Path, release: NotebookNode) -> None:
    hand_in(course, "ada", answered(release), "2026-11-22 10:00:00 JST")
    hand_in(course, "bob", answered(release))
    sync([report("ada"), report("bob")], course=course)
    api = NbGraderAPI(CourseDirectory(config=course_config(course)), config=course_config(course))
    assert api.get_autograded_students(NAME) == {"ada", "bob"}
    assert (course / "autograded" / "ada" / NAME / "timestamp.txt").read_text() == "2026-11-22 10:00:00 JST"


@pytest.mark.parametrize("text", ["yesterday", "10h" + "9" * 30, "9" * 60, "0000-00-00"])
def test_a_time_that_nobody_can_read_counts_as_none(course: Path, release: NotebookNode, text: str) -> None:
    hand_in(course, "ada", answered(release), text)
    sync([report("ada")], course=course)
    assert marks(course, "ada") == HALF
    assert not (course / "autograded" / "ada" / NAME / "timestamp.txt").exists()


def test_syncing_twice_changes_nothing(course: Path, release: NotebookNode) -> None:
    hand_in(course, "ada", answered(release))
    sync([report("ada")], course=course)
    before = marks(course, "ada"), comments(course, "ada"), autograded(course, "ada")
    sync([report("ada")], course=course)
    assert before == (marks(course, "ada"), comments(course, "ada"), autograded(course, "ada"))


def test_a_file_that_lies_elsewhere_is_synced(course: Path, release: NotebookNode, tmp_path: Path) -> None:
    file = tmp_path / "homework of ada.ipynb"
    nbformat.write(answered(release), file)
    sync([report("ada")], course=course, files={("ada", NAME): file})
    assert marks(course, "ada") == HALF
    assert "return x" in named(autograded(course, "ada"), "double").source


@pytest.mark.parametrize("by", ["nbgrader", "sync"])
def test_a_persons_mark_is_kept(course: Path, release: NotebookNode, grader: dict[str, Report], by: str) -> None:
    def grade() -> None:
        if by == "sync":
            sync(grader.values(), course=course)
        else:
            assert nbgrader(course, "autograde", NAME, "--force") == 0

    def halve(opened: Gradebook) -> Grade:
        return opened.find_grade("check-halve", NAME, NAME, "ada")

    hand_in(course, "ada", answered(release))
    grader["ada"] = report("ada")
    grade()
    with Gradebook(directory(course).db_url) as opened:
        halve(opened).manual_score = 2.5
        opened.db.commit()
    grade()
    assert marks(course, "ada")["check-halve"] == (1.0, False)
    grader["ada"] = nothing("ada", "")
    grade()
    with Gradebook(directory(course).db_url) as opened:
        assert (halve(opened).manual_score, halve(opened).score) == (2.5, 2.5)
        assert halve(opened).needs_manual_grade  # what the person judged has changed


def test_a_written_answer_waits_for_a_person(course: Path, release: NotebookNode) -> None:
    notebook = answered(release)
    named(notebook, "why").source = "Because."
    hand_in(course, "ada", notebook)
    sync([report("ada")], course=course)
    assert marks(course, "ada")["why"] == (None, True)


@pytest.mark.parametrize("by", ["nbgrader", "sync"])
def test_whoever_marked_a_written_answer_looks_again_only_if_it_changed(
    course: Path, release: NotebookNode, grader: dict[str, Report], by: str
) -> None:
    def grade(answer: str) -> None:
        notebook = answered(release)
        named(notebook, "why").source = answer
        nbformat.write(notebook, path)
        if by == "sync":
            sync(grader.values(), course=course)
        else:
            assert nbgrader(course, "autograde", NAME, "--force") == 0

    path = hand_in(course, "ada", "")
    grader["ada"] = report("ada")
    grade("Because.")
    with Gradebook(directory(course).db_url) as opened:
        why = opened.find_grade("why", NAME, NAME, "ada")
        why.manual_score, why.needs_manual_grade = 3.0, False
        opened.db.commit()
    grade("Because.")
    assert marks(course, "ada")["why"] == (None, False)
    grade("Because of something else.")
    assert marks(course, "ada")["why"] == (None, True)
    grade("Because of something else.")
    assert marks(course, "ada")["why"] == (None, True)  # nobody has looked yet


def test_an_exercise_without_hidden_tests_waits_for_a_person(course: Path, release: NotebookNode) -> None:
    hand_in(course, "ada", answered(release))
    sync([report("ada", exercises=report("ada").exercises[:1])], course=course)
    assert marks(course, "ada")["check-halve"] == (None, True)


def test_a_report_for_other_points_is_refused(course: Path, release: NotebookNode) -> None:
    hand_in(course, "ada", answered(release))
    exercises = (ExerciseResult("double", 20.0, (hidden("doubles"),)),)
    with pytest.raises(GradebookError, match=r"20 points .* carries 2: run `make notebooks`"):
        sync([report("ada", exercises=exercises)], course=course)


def test_late_work_loses_what_the_plugin_says(course: Path, release: NotebookNode, gradebook: Gradebook) -> None:
    with (course / "nbgrader_config.py").open("a") as config:
        config.write("\nimport sys; sys.path.insert(0, str(root))")
        config.write("\nc.AssignLatePenalties.plugin_class = 'late.Point'\n")
    (course / "late.py").write_text(
        "from nbgrader.plugins import LateSubmissionPlugin\n"
        "class Point(LateSubmissionPlugin):\n"
        "    def late_submission_penalty(self, student_id, score, total_seconds_late): return 1\n"
    )
    gradebook.update_or_create_assignment(NAME, duedate="2026-11-01 00:00:00 UTC")
    hand_in(course, "ada", answered(release), "2026-11-22 10:00:00 UTC")
    sync([report("ada")], course=course)
    assert gradebook.find_submission(NAME, "ada").late_submission_penalty == 1


RULES = """
[late]
per_day = 10
at_most = 50
grace = "10 minutes"
[late.due]
"07-tiny" = 2026-11-20T00:00:00Z
[late.extra_time]
cy = "2 days"
"""


def test_both_ways_of_grading_charge_the_same(course: Path, release: NotebookNode, grader: dict[str, Report]) -> None:
    """Of 9 points: two days begun, too late by far, within extra time, within the grace, and without a time."""
    (course / "solutions").mkdir()
    (course / "solutions" / f"{NAME}.py").touch()
    (course / "course.toml").write_text(RULES)
    ours = shutil.copytree(course, course.with_name("ours"))
    came = {"ada": "2026-11-21 00:00:01 UTC", "bob": "2026-12-24 10:00:00 UTC", "cy": "2026-11-21 23:59:00 UTC"}
    came |= {"dee": "2026-11-20 00:09:00 UTC", "eli": ""}
    for student, stamp in came.items():
        grader[student] = report(student)
        for root in (course, ours):
            hand_in(root, student, answered(release), stamp)
    assert nbgrader(course, "autograde", NAME) == 0
    assert sync(grader.values(), course=ours) == []
    expected = {"ada": 1.8, "bob": 3.0, "cy": 0.0, "dee": 0.0, "eli": 0.0}  # bob has 3 points, and half of 9 are more
    for root in (course, ours):
        assert charged(root) == expected
    with Gradebook(directory(ours).db_url) as opened:
        assert opened.find_assignment(NAME).duedate == datetime(2026, 11, 20)
        assert opened.find_submission(NAME, "cy").extension == timedelta(days=2), "nbgrader shows the same"
    (ours / "course.toml").write_text(RULES.replace("cy = ", "dee = "))
    told = sync(grader.values(), course=ours)
    assert charged(ours) == {**expected, "cy": 1.8}, "the extra time is another's now"
    (ours / "course.toml").write_text(RULES.replace("cy = ", "zoe = "))
    assert "course.toml gives extra time to zoe, of whom there is nothing so far." in sync(grader.values(), course=ours)
    assert told == []
    (ours / "course.toml").unlink()
    sync(grader.values(), course=ours)
    assert set(charged(ours).values()) == {0.0}, "without settings nothing is lost"


def charged(course: Path) -> dict[str, float]:
    with Gradebook(directory(course).db_url) as opened:
        return {each.student_id: each.late_submission_penalty for each in opened.assignment_submissions(NAME)}


def test_who_is_late_is_in_no_log_of_ours(
    course: Path, release: NotebookNode, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (course / "solutions").mkdir()
    (course / "solutions" / f"{NAME}.py").touch()
    (course / "course.toml").write_text(RULES)
    hand_in(course, "ada", answered(release), "2026-11-22 10:00:00 UTC")
    hand_in(course, "bob", answered(release), "yesterday")
    (told,) = [line for line in sync([report("ada"), report("bob")], course=course) if "bob" in line]
    assert "holds no time that nbgrader can read" in told
    assert charged(course) == {"ada": 2.7, "bob": 0.0}
    assert caplog.text == ""
    assert "ada" not in "".join(capfd.readouterr())


def test_what_course_toml_gets_wrong_is_a_sentence(course: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (course / "course.toml").write_text("[late]\nper_day = 1000\n")
    with pytest.raises(CourseError, match=r"course\.toml cannot be understood"):
        sync([], course=course)
    hand_in(course, "ada", "{}")
    assert nbgrader(course, "autograde", NAME) != 0
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_marked_answer_waits_for_nobody_until_it_changes(
    course: Path, release: NotebookNode, gradebook: Gradebook
) -> None:
    notebook = answered(release)
    named(notebook, "why").source = "Because."
    path = hand_in(course, "ada", notebook)
    sync([report("ada")], course=course)
    grade = gradebook.find_grade("why", NAME, NAME, "ada")
    assert grade.needs_manual_grade
    grade.manual_score, grade.needs_manual_grade = 3.0, False  # what formgrader does
    gradebook.db.commit()
    sync([report("ada")], course=course)
    gradebook.db.refresh(grade)
    assert (grade.score, grade.needs_manual_grade) == (3.0, False)
    named(notebook, "why").source = "Because of something else."
    path.write_text(nbformat.writes(notebook))
    sync([report("ada")], course=course)
    gradebook.db.refresh(grade)
    assert (grade.score, grade.needs_manual_grade) == (3.0, True), "this answer nobody has read"


# -- what it holds, and what would move -----------------------------------------------------------------------------


def give(course: Path, student: str, mark: float) -> None:
    """A person sets a mark for `halve`."""
    with Gradebook(directory(course).db_url) as opened:
        opened.find_grade("check-halve", NAME, NAME, student).manual_score = mark
        opened.db.commit()


def test_looking_into_a_gradebook_that_is_not_there_makes_none(course: Path) -> None:
    (course / "gradebook.db").unlink()
    before = sorted(course.rglob("*"))
    assert held(course=course) == {}
    assert sorted(course.rglob("*")) == before


def test_what_the_tests_gave_and_what_a_person_gave_are_told_apart(course: Path, release: NotebookNode) -> None:
    for student in ("ada", "bob"):
        hand_in(course, student, answered(release))
    sync([report("ada"), report("bob")], course=course)
    give(course, "bob", 2.5)
    assert held(course=course) == {
        ("ada", NAME, "double"): Held(2.0, None),
        ("ada", NAME, "halve"): Held(1.0, None),
        ("bob", NAME, "double"): Held(2.0, None),
        ("bob", NAME, "halve"): Held(1.0, 2.5),
    }


HALVE = ("ada", NAME, "halve")  # the report says 1
AGAIN = Move(*HALVE, 3.0, 1.0, "graded again")
STANDS = "a person's mark stands (what the tests say: {})"


@pytest.mark.parametrize(
    ("holds", "moved", "told"),
    [
        (None, [], []),
        (None, [AGAIN], [AGAIN]),
        (Held(None, None), [], []),
        (Held(1.0, None), [], []),
        (Held(1.0, None), [AGAIN], [AGAIN]),
        (Held(3.0, None), [AGAIN], [AGAIN]),
        (Held(2.0, None), [AGAIN], [Move(*HALVE, 2.0, 1.0, "graded again")]),
        (Held(2.0, None), [], [Move(*HALVE, 2.0, 1.0, "not in the gradebook yet")]),
        (Held(1.0, 2.5), [], []),
        (Held(None, 2.5), [], []),
        (Held(3.0, 2.5), [AGAIN], [Move(*HALVE, 2.5, 2.5, STANDS.format("3 → 1, graded again"), by_hand=True)]),
        (Held(3.0, 2.5), [], [Move(*HALVE, 2.5, 2.5, STANDS.format("3 → 1, not in the gradebook yet"), by_hand=True)]),
    ],
)
def test_marks_are_compared_with_what_the_gradebook_holds(
    holds: Held | None, moved: list[Move], told: list[Move]
) -> None:
    there = {("ada", NAME, "double"): Held(2.0, None), ("bob", NAME, "halve"): Held(0.0, None)}
    assert compared([report("ada")], moved, there | ({HALVE: holds} if holds else {})) == told


def test_the_zeros_of_a_file_that_is_no_notebook_are_told_before_they_are_written(
    course: Path, release: NotebookNode
) -> None:
    hand_in(course, "ada", answered(release))
    sync([report("ada")], course=course)
    unreadable = report("ada", exercises=(), notices=("a.ipynb is not a notebook.",))
    told = compared([unreadable], [], held(course=course))
    assert [(move.exercise, move.before, move.after) for move in told] == [("double", 2.0, 0.0), ("halve", 1.0, 0.0)]
    sync([unreadable], course=course)
    assert compared([unreadable], [], held(course=course)) == []


def test_after_syncing_nothing_moves_but_a_persons_mark_stands(course: Path, release: NotebookNode) -> None:
    for student in ("ada", "bob"):
        hand_in(course, student, answered(release))
    sync([report("ada"), report("bob")], course=course)
    give(course, "bob", 2.5)
    reports = [nothing("ada", ""), nothing("bob", "")]
    told = {(move.student, move.exercise): move.after for move in compared(reports, [], held(course=course))}
    assert told == {("ada", "double"): 0.0, ("ada", "halve"): 0.0, ("bob", "double"): 0.0, ("bob", "halve"): 2.5}
    sync(reports, course=course)
    assert compared(reports, [], held(course=course)) == []
    assert held(course=course)["bob", NAME, "halve"] == Held(0.0, 2.5)


@pytest.mark.parametrize("act", [held, lambda url, course: sync([report("ada")], url, course)], ids=["held", "sync"])
@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("gradebook.db", "'gradebook.db' is not the address of a database: give one such as sqlite:///gradebook.db"),
        ("nothing://host/x", "'nothing://host/x' is not the address of a database: give one such as"),
        ("sqlite:///{course}/notebooks/text.db", "could not be used ((sqlite3.DatabaseError) file is not a database)."),
        ("sqlite:///{course}/locked.db", "could not be used ((sqlite3.OperationalError) database is locked)."),
    ],
    ids=["no address", "unknown kind", "not a database", "locked"],
)
def test_a_gradebook_that_cannot_be_used_is_a_sentence(
    course: Path, capfd: pytest.CaptureFixture[str], act: Callable[..., object], address: str, sentence: str
) -> None:
    (course / "notebooks" / "text.db").write_text("These are no marks. " * 100)
    locked = sqlite3.connect(course / "locked.db", isolation_level=None)
    locked.execute("CREATE TABLE grade (x)")
    locked.execute("BEGIN EXCLUSIVE")
    with pytest.raises(GradebookError) as refused:
        act(address.format(course=course) + ("?timeout=0.1" if "locked" in address else ""), course)
    locked.close()
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_is_missing_is_told_before_anything_is_graded(course: Path) -> None:
    with pytest.raises(GradebookError, match=r"There is no folder .*/none for a gradebook: make it first\."):
        held(f"sqlite:///{course}/none/gradebook.db", course)


def test_one_grader_at_a_time_writes_marks(course: Path, release: NotebookNode) -> None:
    hand_in(course, "ada", answered(release))
    other = os.open(course, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    ours = threading.Thread(target=sync, args=([report("ada")],), kwargs={"course": course})
    ours.start()
    ours.join(0.5)
    assert ours.is_alive()
    assert held(course=course) == {}
    os.close(other)
    ours.join()
    assert marks(course, "ada") == HALF


# -- what students do to notebooks ----------------------------------------------------------------------------------


def without(cell_id: str) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        notebook.cells = [cell for cell in notebook.cells if cell.id != cell_id]

    return change


def twice(notebook: NotebookNode) -> None:
    for name in ("double", "check-double"):
        copy = nbformat.from_dict(json.loads(json.dumps(named(notebook, name))))
        copy.id = f"{name}-again"
        notebook.cells.append(copy)


def edited_metadata(notebook: NotebookNode) -> None:
    named(notebook, "check-double").metadata.nbgrader.update(points=1000, locked=False, schema_version=99)
    named(notebook, "check-halve").metadata.nbgrader.update(grade=False, solution=True, points="NaN")
    named(notebook, "double").metadata.nbgrader.update(grade=True, points=50, grade_id=["a", {}])
    notebook.metadata.kernelspec = {"name": SCRIPT}


def edited_check(notebook: NotebookNode) -> None:
    check = named(notebook, "check-double")
    check.source = "pass"
    check.outputs = [new_output("execute_result", data={"text/plain": "1000.0"}, execution_count=1)]


def as_text(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.cell_type = "markdown"
        cell.pop("outputs", None)
        cell.pop("execution_count", None)


def outdated(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if "nbgrader" in cell.metadata:
            cell.metadata.nbgrader = {"grade_id": cell.metadata.nbgrader.grade_id, "schema_version": 1}


def nonsense(notebook: NotebookNode) -> None:
    for cell in notebook.cells[:2]:
        cell.metadata = {"nbgrader": "yes", "ichimon": [], "tags": {}}
        cell["extra"] = {"a": 1}
    notebook.cells[2].attachments = {"x": 3}


def same_ids(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.id = "double"


@pytest.mark.parametrize(
    "change",
    [
        without("check-halve"),
        without("double"),
        without("set-up"),
        twice,
        edited_metadata,
        edited_check,
        as_text,
        outdated,
        nonsense,
        same_ids,
    ],
    ids=lambda change: change.__qualname__.partition(".")[0],
)
def test_no_edit_stops_or_changes_a_mark(
    course: Path, release: NotebookNode, grader: dict[str, Report], change: Callable[[NotebookNode], None]
) -> None:
    notebook = answered(release)
    change(notebook)
    hand_in(course, "ada", json.dumps(notebook))
    grader["ada"] = report("ada")
    assert nbgrader(course, "autograde", NAME) == 0
    assert {name: mark for name, mark in marks(course, "ada").items() if name != "why"} == {
        name: mark for name, mark in HALF.items() if name != "why"
    }
    shown = autograded(course, "ada")
    for ours in release.cells:
        if grade_id := ours.metadata.get("nbgrader", {}).get("grade_id"):
            there = named(shown, grade_id)
            assert there.metadata.nbgrader == ours.metadata.nbgrader
            if ours.metadata.nbgrader.locked:
                assert there.source == ours.source
    with Gradebook(directory(course).db_url) as opened:
        assert opened.find_submission(NAME, "ada").max_score == 9


def test_the_last_of_two_cells_keeps_the_name(course: Path, release: NotebookNode) -> None:
    notebook = answered(release)
    again = nbformat.from_dict(json.loads(json.dumps(named(notebook, "double"))))
    again.update(id="again", source="def double(x): return 'last'")
    notebook.cells.append(again)
    runs = (CellRun("double", "double", output="first"), CellRun("double (2)", "double", output="last"))
    hand_in(course, "ada", notebook)
    sync([report("ada", cells=runs)], course=course)
    shown = autograded(course, "ada")
    assert (named(shown, "double").source, printed(named(shown, "double"))) == (again.source, "last")
    assert [printed(c) for c in shown.cells if c.source == "def double(x):\n    return x"] == ["first"]


def test_a_missing_cell_comes_back_where_it_was(release: NotebookNode, tmp_path: Path) -> None:
    notebook = answered(release)
    without("check-double")(notebook)
    without("set-up")(notebook)
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook, path)
    back = submission_notebook(path, release)
    names = [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in back.cells]
    assert names == ["set-up", "", "double", "check-double", "halve", "check-halve", "why"]
    nbformat.validate(back)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{not json",
        "[]",
        '{"nbformat": 4}',
        "\x00\x01",
        "[" * 100_000,
        '{"nbformat": 4, "cells": [1], "metadata": 3}',
    ],
    ids=["empty", "cut off", "list", "no cells", "binary", "deep", "odd cells"],
)
def test_an_unreadable_file_gets_zero_and_a_sentence_and_others_their_marks(
    course: Path, release: NotebookNode, grader: dict[str, Report], content: str
) -> None:
    hand_in(course, "ada", content)
    hand_in(course, "bob", answered(release))
    grader["bob"] = report("bob")
    assert nbgrader(course, "autograde", NAME) == 0
    assert marks(course, "ada") == ZERO
    assert marks(course, "bob") == HALF
    assert f"{NAME}.ipynb " in printed(autograded(course, "ada").cells[0])


def test_one_submission_that_cannot_be_graded_stops_no_other(
    course: Path, release: NotebookNode, grader: dict[str, Report]
) -> None:
    hand_in(course, "ada", answered(release))
    hand_in(course, "bob", answered(release))
    grader["bob"] = report("bob")  # the fake grader raises KeyError for ada
    assert nbgrader(course, "autograde", NAME) == 1
    assert marks(course, "bob") == HALF


def test_a_name_that_cannot_be_printed_is_still_a_students(
    course: Path, release: NotebookNode, grader: dict[str, Report]
) -> None:
    hand_in(course, "a\u202eda b", answered(release))
    grader["a\u202eda b"] = report("ada b")
    assert nbgrader(course, "autograde", NAME) == 0
    assert marks(course, "a\u202eda b") == HALF


def test_other_files_of_a_student_go_no_further(course: Path, release: NotebookNode, grader: dict[str, Report]) -> None:
    (course / "secret.txt").write_text("the hidden tests")
    folder = hand_in(course, "ada", answered(release), "2026-11-22 10:00:00 UTC").parent
    (folder / "mine.txt").symlink_to(course / "secret.txt")
    (folder / "deep").mkdir()
    (folder / "deep" / f"{NAME}.html").write_text(SCRIPT)
    grader["ada"] = report("ada")
    assert nbgrader(course, "autograde", NAME) == 0
    assert nbgrader(course, "generate_feedback", NAME) == 0
    for step, kind in (("autograded", "ipynb"), ("feedback", "html")):
        there = {path.name for path in (course / step / "ada" / NAME).rglob("*")}
        assert there == {f"{NAME}.{kind}", "timestamp.txt"}


# -- the gradebook knows the assignment -----------------------------------------------------------------------------


def test_registering_is_idempotent_and_follows_the_release(
    course: Path, release: NotebookNode, gradebook: Gradebook
) -> None:
    register(NAME, directory(course))
    register(NAME, directory(course))
    assert gradebook.find_assignment(NAME).max_score == 9
    changed = nbformat.from_dict(json.loads(nbformat.writes(release)))
    named(changed, "check-halve").metadata.nbgrader.points = 5
    nbformat.write(changed, course / "notebooks" / NAME / f"{NAME}.ipynb")
    register(NAME, directory(course))
    gradebook.db.expire_all()
    assert gradebook.find_assignment(NAME).max_score == 11


def test_cells_that_students_answered_cannot_vanish(course: Path, release: NotebookNode) -> None:
    hand_in(course, "ada", answered(release))
    sync([report("ada")], course=course)
    changed = nbformat.from_dict(json.loads(nbformat.writes(release)))
    without("check-halve")(changed)
    nbformat.write(changed, course / "notebooks" / NAME / f"{NAME}.ipynb")
    with pytest.raises(GradebookError, match="db assignment remove"):
        register(NAME, directory(course))


def test_an_unknown_assignment_is_a_sentence(course: Path) -> None:
    with pytest.raises(GradebookError, match=r"There is no notebook .*08-none.ipynb: run `make notebooks`"):
        released("08-none", directory(course))
    assert nbgrader(course, "autograde", "08-none") == 1


def test_a_folder_that_is_no_course_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(GradebookError, match="is not an nbgrader course"):
        sync([], course=tmp_path)


def test_a_name_with_a_folder_in_it_is_refused(course: Path) -> None:
    with pytest.raises(GradebookError, match="cannot be a student in nbgrader"):
        sync([report("../bob")], course=course)


@pytest.mark.parametrize("own", [True, False])
def test_the_class_is_the_sample_until_there_is_one(tmp_path: Path, own: bool) -> None:
    shutil.copy(ROOT / "nbgrader_config.py", tmp_path)
    if own:
        (tmp_path / "submitted").mkdir()
    there = directory(tmp_path)
    assert there.submitted_directory == ("submitted" if own else "examples/class")
    assert there.autograded_directory == ("autograded" if own else "_build/class/autograded")
    assert there.db_url == f"sqlite:///{tmp_path}/{'' if own else '_build/class/'}gradebook.db"


def test_the_sample_class_in_its_nested_folders_is_graded(
    course: Path, release: NotebookNode, grader: dict[str, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_in(course, "ada", answered(release))
    (course / "examples").mkdir()
    (course / "submitted").rename(course / "examples" / "class")
    grading: Any = sys.modules["autograder.grading"]
    monkeypatch.setattr(grading, "grade_one", lambda path, student, assignment: report(student))
    assert nbgrader(course, "autograde", NAME) == 0
    assert nbgrader(course, "generate_feedback", NAME) == 0
    assert marks(course, "ada") == HALF
    assert (course / "_build" / "class" / "feedback" / "ada" / NAME / f"{NAME}.html").is_file()


# -- what a browser sees --------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags, attributes and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "formaction")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)


HOSTILE = [
    SCRIPT,
    "<img src=x onerror=alert('mine')>",
    "[x](javascript:alert('mine'))",
    "<a href=' javascript:alert(1)' onclick=alert('mine')>x</a>",
    "<svg/onload=alert('mine')><style>*{display:none}</style></svg>",
    "![x](https://example.org/track.png)",
    "![x](attachment:none.png)",
    "<iframe srcdoc='<script>mine</script>'></iframe><form action=//example.org><input></form>",
    '```"><script>mine</script>\n<script>mine</script>\n```',
    "```mermaid\n</pre><script>mine</script>\n```",
    "$$</script><script>mine</script>$$ $\\href{javascript:mine}{x}$",
    "[" * 5000 + "](" * 5000,
    ">" * 5000,
]


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_runs_and_loads_nothing(source: str) -> None:
    page = Page(safe_markdown(source))
    assert not {"script", "img", "svg", "style", "iframe", "form", "input"} & set(page.tags)
    assert not page.handlers
    assert not [link for link in page.links if not link.startswith(("https://", "http://", "mailto:"))]


def test_markdown_keeps_what_prompts_need() -> None:
    html = safe_markdown("# Title\n\nWhere $a < b$, **so** `<b>`:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- one\n")
    for part in ("<h1>Title</h1>", "$a &lt; b$", "<strong>so", "<code>&lt;b&gt;</code>", "<td>1</td>", "<li>one"):
        assert part in html


@pytest.fixture
def hostile_feedback(course: Path, release: NotebookNode, grader: dict[str, Report]) -> str:
    notebook = answered(release)
    named(notebook, "why").source = "\n\n".join(HOSTILE[:-2])
    named(notebook, "double").outputs = [new_output("display_data", data={"text/html": SCRIPT})]
    notebook.cells += [new_markdown_cell(text) for text in HOSTILE]
    notebook.cells += [new_raw_cell(SCRIPT), new_raw_cell(SCRIPT, metadata={"raw_mimetype": "text/html"})]
    notebook.cells.append(new_code_cell(f"print({SCRIPT!r})", metadata={"tags": [SCRIPT]}))
    notebook.metadata.title = SCRIPT
    hand_in(course, "ada", notebook)
    runs = (CellRun("double", "double", error=SCRIPT, output=f"{SCRIPT}\x1b[31m\x07"),)
    grader["ada"] = report("ada", message=SCRIPT, cells=runs, notices=(SCRIPT,))
    assert nbgrader(course, "autograde", NAME) == 0
    assert nbgrader(course, "generate_feedback", NAME) == 0
    return (course / "feedback" / "ada" / NAME / f"{NAME}.html").read_text()


def test_feedback_of_nbgrader_holds_no_script_of_a_student(hostile_feedback: str) -> None:
    page = Page(hostile_feedback)
    assert not [script for script in page.scripts if "mine" in script]
    assert "alert('mine')" not in "".join(page.handlers)
    assert not {"iframe", "form", "svg", "img"} & set(page.tags)
    assert not [link for link in page.links if "javascript" in link or "example.org/track" in link]
    assert "&lt;script&gt;alert(" in hostile_feedback  # it is there to be read


def test_feedback_of_nbgrader_shows_no_answer(hostile_feedback: str) -> None:
    assert "the answer" not in hostile_feedback
    assert "test_halves" not in hostile_feedback


def test_formgrader_shows_no_script_of_a_student(
    course: Path, hostile_feedback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(course)
    formgrader = FormgradeExtension()
    formgrader.initialize([])
    try:
        config = course_config(course)
        config.merge(formgrader.build_extra_config())
        shown = {"last_name": None, "first_name": None, "student": "ada", "base_url": "", "index": 0, "total": 1}
        resources = {**shown, "notebook_id": NAME, "assignment_id": NAME, "submission_id": "1", "notebook_path": ""}
        path = course / "autograded" / "ada" / NAME / f"{NAME}.ipynb"
        html, _ = HTMLExporter(config=config).from_filename(str(path), resources=resources)
    finally:
        FormgradeExtension.clear_instance()
    assert "Grade cell" in html or "nbgrader_cell" in html
    assert "&lt;script&gt;alert(" in html
    assert not [script for script in Page(html).scripts if "mine" in script]
    assert not [handler for handler in Page(html).handlers if "mine" in handler]
