"""The sample class: fourteen real submissions, each of which gets exactly the marks that it deserves."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from autograder import grading, variants
from autograder.report import Outcome, Report
from autograder.results import Results

if TYPE_CHECKING:
    from conftest import Command, Graded

ROOT = Path(__file__).resolve().parents[1]
CLASS = ROOT / "examples" / "class"
NAME = "02-self-attention"
DESERVED: dict[str, dict[str, Any]] = json.loads((CLASS / "marks.json").read_text(encoding="utf-8"))["students"]
ALONE = ("student-09", "student-13", "student-14")  # who could disturb the others: the loop, the wrong file, the cheat


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """examples/make_class.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("make_class", ROOT / "examples" / "make_class.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_class_is_what_its_script_makes(maker: ModuleType, tmp_path: Path) -> None:
    for path in maker.make(tmp_path):
        committed = CLASS / path.relative_to(tmp_path)
        same = committed.is_file() and committed.read_bytes() == path.read_bytes()
        assert same, f"{committed.relative_to(ROOT)} is out of date: run python examples/make_class.py"


def test_every_student_of_the_class_has_deserved_marks_with_a_reason_for_each_lost_point() -> None:
    points = {"causal_mask": 3, "attention": 7, "split_heads": 2, "merge_heads": 2, "MultiHeadAttention": 6}
    assert sorted(DESERVED) == sorted(path.name for path in CLASS.iterdir() if path.is_dir())
    for student, deserved in DESERVED.items():
        assert list(deserved["marks"]) == list(points), student
        lost = {exercise for exercise, mark in deserved["marks"].items() if mark < points[exercise]}
        assert set(deserved.get("because", {})) == lost, student


@pytest.mark.parametrize("student", DESERVED)
def test_each_gets_exactly_the_marks_it_deserves(student: str, graded: Graded) -> None:
    exercises = graded.reports[student].exercises
    marks = {exercise.exercise: exercise.points for exercise in exercises}
    told = {test.name: test.message for exercise in exercises for test in exercise.tests if not test.passed}
    assert marks == DESERVED[student]["marks"], f"{DESERVED[student].get('because')}\n{told}"


@pytest.mark.parametrize("student", DESERVED)
def test_no_test_fails_by_a_fault_of_its_own(student: str, graded: Graded) -> None:
    outcomes = {test.outcome for exercise in graded.reports[student].exercises for test in exercise.tests}
    assert Outcome.CRASHED not in outcomes


@pytest.mark.parametrize("student", [name for name, deserved in DESERVED.items() if "mistakes" in deserved])
def test_a_typical_mistake_is_named(student: str, graded: Graded) -> None:
    by_title = {(mistake.exercise, mistake.title): mistake.says for mistake in variants.mistakes(NAME)}
    for exercise, title in DESERVED[student]["mistakes"].items():
        result = next(result for result in graded.reports[student].exercises if result.exercise == exercise)
        named = {test.mistake for test in result.tests if test.mistake}
        assert named == {by_title[exercise, title]}
        assert result.reason in named


@pytest.mark.parametrize("student", [name for name, deserved in DESERVED.items() if "says" in deserved])
def test_what_went_wrong_is_said_in_a_sentence(student: str, graded: Graded) -> None:
    assert DESERVED[student]["says"] in graded.reports[student].reason


def test_a_syntax_error_is_shown_with_its_line(graded: Graded) -> None:
    (failed,) = [cell for cell in graded.reports["student-08"].cells if cell.error]
    assert failed.exercise == "split_heads"
    assert failed.error.startswith("SyntaxError: '(' was never closed (line 4")


def test_the_wrong_file_runs_nothing(graded: Graded) -> None:
    assert graded.reports["student-13"].cells == ()


def test_a_changed_or_missing_check_cell_costs_nothing(graded: Graded) -> None:
    assert graded.reports["student-11"].points == graded.reports["student-11"].max_points
    assert {report.max_points for report in graded.reports.values()} == {20}


def test_the_cheat_found_nothing_and_reached_nobody(graded: Graded) -> None:
    printed = "".join(cell.output for cell in graded.reports["student-14"].cells)
    assert "Operation not permitted" in printed, "its tricks did not even run"
    for sign in ("FOUND", "SENT", "RAN", "\x1b", "\u202e"):
        assert sign not in printed


def test_an_answer_that_calls_what_it_should_build_is_pointed_out_to_a_person(graded: Graded) -> None:
    pointed_out = {
        student
        for student, report in graded.reports.items()
        if any("a person should look" in notice for notice in report.notices)
    }
    assert pointed_out == {"student-14"}


def test_the_loop_costs_only_its_own_exercise(graded: Graded) -> None:
    for exercise in graded.reports["student-09"].exercises:
        outcomes = {test.outcome for test in exercise.tests}
        assert outcomes == {Outcome.TIMED_OUT if exercise.exercise == "causal_mask" else Outcome.PASSED}


def test_the_command_prints_a_row_for_each_and_ends_well(graded: Graded) -> None:
    assert graded.ran.code == 0
    assert graded.ran.sentences == []
    for student, report in graded.reports.items():
        (row,) = [line for line in graded.ran.out.splitlines() if line.startswith(student)]
        marks = [f"{exercise.points:g}" for exercise in report.exercises]
        assert row.split()[1 : len(marks) + 2] == [*marks, f"{report.points:g}"]


def test_grading_again_grades_nothing_anew(
    graded: Graded, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shutil.copy(graded.results, tmp_path / "results.sqlite")
    monkeypatch.setattr(grading, "_graded", lambda tasks, *_: [pytest.fail(f"graded again: {task}") for task in tasks])
    again = command("grade", CLASS, "--results", results)
    assert again.out == graded.ran.out
    assert "14 of them known from before" in again.err
    assert verdicts(results) == verdicts(graded.results)


def test_a_verdict_of_an_exercise_that_is_no_more_counts_for_nothing(graded: Graded, tmp_path: Path) -> None:
    results = Path(shutil.copy(graded.results, tmp_path / "results.sqlite"))
    with sqlite3.connect(results) as db:
        db.execute("UPDATE verdicts SET exercise = 'renamed' WHERE exercise = 'causal_mask'")
    db.close()
    with Results(results) as stored:
        assert {report.max_points for report in stored.reports()} == {17}


def test_neighbours_get_the_same_without_the_loop_the_wrong_file_and_the_cheat(
    graded: Graded, command: Command, tmp_path: Path
) -> None:
    others = [CLASS / student for student in DESERVED if student not in ALONE]
    assert command("grade", *others, "--results", tmp_path / "results.sqlite", "--workers", 1).code == 0
    assert reports(tmp_path / "results.sqlite") == {
        student: plain(report) for student, report in graded.reports.items() if student not in ALONE
    }


def test_two_workers_give_the_same(graded: Graded, command: Command, tmp_path: Path) -> None:
    chosen = (
        "student-01",
        "student-02",
        "student-06",
        "student-13",
        "student-14",
    )  # each worker has to start and learn
    folders = [CLASS / student for student in chosen]
    assert command("grade", *folders, "--results", tmp_path / "results.sqlite", "--workers", 2).code == 0
    assert reports(tmp_path / "results.sqlite") == {student: plain(graded.reports[student]) for student in chosen}


def plain(report: Report) -> Any:
    """A report as plain data. What the cheat saw of its own process may differ from one process to the next."""
    builtins = msgspec.to_builtins(report)
    del builtins["seconds"]  # a clock is never the same
    for cell in builtins["cells"] if report.student == "student-14" else ():
        del cell["output"]
    return builtins


def reports(results: Path) -> dict[str, Any]:
    with Results(results) as stored:
        return {report.student: plain(report) for report in stored.reports()}


def verdicts(results: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(results) as db:
        return db.execute("SELECT * FROM verdicts ORDER BY sha, exercise").fetchall()
