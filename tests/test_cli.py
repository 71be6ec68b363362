"""The command line: what it teaches, prints and returns."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from nbgrader.api import Gradebook
from rich.console import Console

from autograder import assignment as assignments
from autograder import cli, grading
from autograder import gradebook as gradebooks
from autograder.report import Outcome
from autograder.results import Move, Results
from autograder.sandbox import jail, selftest

if TYPE_CHECKING:
    from conftest import Command, Graded

ROOT = Path(__file__).resolve().parents[1]
CLASS = ROOT / "examples" / "class"
NAME = "02-self-attention"
COMMANDS = ("grade", "show", "why", "feedback", "verify", "doctor")


def notebook_of(student: str) -> Path:
    return CLASS / student / NAME / f"{NAME}.ipynb"


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_teaches_each_command_and_the_exit_codes(arguments: list[str], command: Command) -> None:
    ran = command(*arguments)
    assert ran.code == (0 if arguments else 2)
    said = ran.out + ran.err
    assert all(f"autograder {name} " in said for name in COMMANDS)
    for code in (
        "Exit codes: 0 all is graded",
        " 1 some file could not be graded",
        " 2 the command or its input is",
        " 130 ",
    ):
        assert code in said


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str, command: Command) -> None:
    ran = command(name, "--help")
    assert ran.code == 0
    assert "Usage:" in ran.out
    assert ran.err == ""


def test_an_unknown_command_is_an_error_in_a_sentence(command: Command) -> None:
    ran = command("grdae")
    assert ran.code == 2
    assert "No such command 'grdae'" in ran.err


def test_show_prints_the_table_that_grade_printed(graded: Graded, command: Command) -> None:
    ran = command("show", "--results", graded.results)
    assert (ran.code, ran.out, ran.err) == (0, graded.ran.out, "")


def test_the_table_fits_its_width_and_keeps_every_mark(graded: Graded) -> None:
    lines = graded.ran.out.splitlines()
    assert lines[0].strip() == NAME
    assert max(map(len, lines)) <= 180
    assert {"causal_mask", "attention", "split_heads", "merge_heads", "MultiHeadAttention", "total"} <= set(
        lines[1].split()
    )
    assert lines[2].split() == ["student", "/3", "/7", "/2", "/2", "/6", "/20", "why"]


def test_a_narrow_terminal_still_shows_every_name_and_mark_whole(
    graded: Graded, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "out", Console(highlight=False, width=80))
    lines = command("show", "--results", graded.results).out.splitlines()
    assert max(map(len, lines)) <= 80
    for student, report in graded.reports.items():
        (row,) = [line for line in lines if line.startswith(student)]
        marks = [f"{exercise.points:g}" for exercise in report.exercises]
        assert row.split()[1 : len(marks) + 2] == [*marks, f"{report.points:g}"]


def test_a_mark_that_is_missing_leaves_its_own_column_empty(graded: Graded, capsys: pytest.CaptureFixture[str]) -> None:
    whole = graded.reports["student-01"]
    cli.print_marks([msgspec.structs.replace(whole, exercises=whole.exercises[1:]), whole])
    _, _, _, first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1:7] == ["–", "7", "2", "2", "6", "17"]
    assert second.split()[1:7] == ["3", "7", "2", "2", "6", "20"]


def test_show_of_a_student_says_every_claim_and_what_went_wrong(graded: Graded, command: Command) -> None:
    ran = command("show", "student-03", "--results", graded.results)
    assert ran.code == 0
    assert ran.out.startswith("student-03 · 02-self-attention · 18.5 of 20 points")
    tests = [test for exercise in graded.reports["student-03"].exercises for test in exercise.tests]
    assert ran.out.count("✓") == sum(test.passed for test in tests)
    assert ran.out.count("✗") == sum(not test.passed for test in tests)
    assert "✗ a position sees itself: In causal_mask(5) a position may not attend to itself." in ran.out
    assert "Row i leaves out column i: a position must see itself too." in ran.out


def test_show_says_how_cells_failed_and_what_was_noticed(graded: Graded, command: Command) -> None:
    syntax = command("show", "student-08", "--results", graded.results).out
    assert "! cell split_heads: SyntaxError: '(' was never closed (line 4)" in syntax
    twice = command("show", "student-12", "--results", graded.results).out
    assert "! The cell of attention is there 2 times: all ran, the last one counts." in twice


def test_show_never_shows_a_line_of_a_hidden_test(graded: Graded, command: Command) -> None:
    source = (ROOT / "autograder" / "tests" / "test_02_self_attention.py").read_text(encoding="utf-8")
    code = {line.strip() for line in source.splitlines() if len(line.strip()) > 20 and '"""' not in line}
    for student in graded.reports:
        printed = command("show", student, "--results", graded.results).out
        assert not [line for line in code if line in printed]


def test_show_of_an_unknown_student_names_those_there_are(graded: Graded, command: Command) -> None:
    ran = command("show", "nobody", "--results", graded.results)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("No results for 'nobody'. There are results for: student-01, student-02")


@pytest.mark.parametrize("name", ["show", "feedback", "why"])
def test_without_results_the_next_step_is_named_and_no_file_is_left(
    name: str, command: Command, tmp_path: Path
) -> None:
    ran = command(name, *(["ada"] if name == "why" else []), "--results", tmp_path / "results.sqlite")
    assert (ran.code, ran.out) == (2, "")
    assert "run `autograder grade PATH` first" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_feedback_writes_a_page_for_each_and_says_where(graded: Graded, command: Command, tmp_path: Path) -> None:
    ran = command("feedback", "--results", graded.results, "--output", tmp_path)
    assert ran.code == 0
    pages = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")}
    own = {
        f"feedback/{student}/{report.assignment}/{report.assignment}.html" for student, report in graded.reports.items()
    }
    assert pages == {*own, "report/02-self-attention/class-report.html"}
    assert "class-report.html" in ran.out
    for path in tmp_path.rglob("*.html"):
        assert "<script" not in path.read_text(encoding="utf-8").lower()


def test_feedback_that_cannot_be_written_is_a_sentence(graded: Graded, command: Command) -> None:
    ran = command("feedback", "--results", graded.results, "--output", "/proc/feedback")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("This could not be read or written: ")
    assert len(ran.sentences) == 1


# -- watching -------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(graded: Graded, tmp_path: Path) -> Path:
    """The sample class's results, to be changed."""
    return Path(shutil.copy(graded.results, tmp_path / "results.sqlite"))


def test_json_gives_a_line_for_each_report_and_a_summary(results: Path, graded: Graded, command: Command) -> None:
    ran = command("grade", CLASS, "--results", results, "--json")
    assert ran.code == 0
    *lines, last = [json.loads(line) for line in ran.out.splitlines()]
    assert {line["student"]: line["points"] for line in lines} == {
        student: report.points for student, report in graded.reports.items()
    }
    assert {(line["max_points"], line["known"]) for line in lines} == {(20, True)}
    assert lines[2]["exercises"][0]["tests"][3]["claim"] == "a position sees itself"
    summary = last["summary"]
    assert summary.pop("seconds") > 0
    assert summary.pop("try_again")["timed out"] == ["student-09"]
    assert summary == {
        "found": 14,
        "graded": 0,
        "known": 14,
        "verdicts": {},
        "ungraded": [],
        "not_found": [],
        "moved": 0,
        "gradebook": False,
        "exit_code": 0,
    }


def test_the_documents_describe_each_key_of_the_json(results: Path, command: Command, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "grading.md").read_text(encoding="utf-8")
    ran = command("grade", notebook_of("student-01"), "--results", results, "--json")
    report, last = map(json.loads, ran.out.splitlines())
    keys = {
        *report,
        *report["exercises"][0],
        *report["exercises"][0]["tests"][0],
        *report["cells"][0],
        *last["summary"],
    }
    keys |= {*Move.__struct_fields__, "difference"}
    assert not [key for key in keys if f"`{key}`" not in text]


def test_json_says_which_file_was_not_graded_and_why(results: Path, command: Command, tmp_path: Path) -> None:
    broken = tmp_path / "ada.ipynb"
    broken.write_text("{")
    ran = command("grade", broken, notebook_of("student-01"), tmp_path / "none", "--results", results, "--json")
    assert ran.code == 1
    summary = json.loads(ran.out.splitlines()[-1])["summary"]
    assert (summary["exit_code"], summary["found"], summary["known"]) == (1, 2, 1)
    [ungraded] = summary["ungraded"]
    assert (ungraded["student"], ungraded["file"]) == ("ada", str(broken))
    assert "ada.ipynb" in ungraded["reason"]
    assert summary["not_found"] == [f"{tmp_path / 'none'} does not exist."]


def test_verbose_gives_a_line_for_each_student_as_it_is_graded(results: Path, graded: Graded, command: Command) -> None:
    ran = command("grade", CLASS, "--results", results, "-v")
    assert "student-09  17/20  known  causal_mask: timed out" in ran.sentences
    assert len([line for line in ran.sentences if line.startswith("student-")]) == len(graded.reports)


def test_a_second_run_says_what_it_skipped_and_why(results: Path, command: Command) -> None:
    ran = command("grade", notebook_of("student-09"), notebook_of("student-01"), "--results", results)
    assert ran.sentences == [
        "Of those known from before, 1 timed out (student-09): `--again` tries once more.",
    ]
    assert "s, 2 of them known from before (the same file, today's tests); 0 could not be graded." in ran.err


def test_a_terminal_shows_a_bar_with_the_pace_and_json_stays_clean(
    graded: Graded, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grade_class(found: object, stored: object, workers: int, assignment: str, tell: Any, **_: object) -> Any:
        for n, report in enumerate(graded.reports.values()):
            tell(report, fresh=n > 0)
        return [], []

    terminal = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")  # on a dumb one there is no bar
    monkeypatch.setattr(cli, "err", Console(file=terminal, force_terminal=True, width=80, soft_wrap=True))
    monkeypatch.setattr(grading, "grade_class", grade_class)
    ran = command("grade", CLASS, "--results", tmp_path / "results.sqlite", "--json")
    assert all(isinstance(json.loads(line), dict) for line in ran.out.splitlines())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"grading ━+ 14/14 [0-9.]+ submissions/s, 0:00:00 left", shown)
    assert all(len(line) <= 80 for line in re.split("[\r\n]", shown) if line.startswith("grading"))


# -- regrading ------------------------------------------------------------------------------------------------------


def test_one_submission_is_graded_again_with_everything_kept(results: Path, command: Command) -> None:
    path = notebook_of("student-03")
    ran = command("grade", path, "--results", results, "--again", "--workers", 1)
    assert (ran.code, ran.sentences) == (0, [])
    with Results(results) as stored:
        verdicts = stored.history("student-03", NAME, "causal_mask")
        assert [verdict.attempt for verdict in verdicts] == [1, 2]
        first, second = [stored.ran(verdict.run) for verdict in verdicts]
        assert first == second
        assert verdicts[0].result == verdicts[1].result
        assert [verdict.attempt for verdict in stored.history("student-04", NAME, "causal_mask")] == [1]


def judged_differently(results: Path, *students: str) -> None:
    """One more attempt at these students' causal_mask, which now gets nothing."""
    with Results(results) as stored:
        for student in students:
            report = stored.report(student, NAME)
            assert report is not None
            result = report.exercises[0]
            lost = tuple(msgspec.structs.replace(test, outcome=Outcome.FAILED) for test in result.tests)
            changed = msgspec.structs.replace(report, exercises=(msgspec.structs.replace(result, tests=lost),))
            stored.add(changed, assignments.load(NAME), again=True)


@pytest.fixture
def told(results: Path, command: Command) -> Path:
    """Results whose marks were told, and then judged differently for two."""
    assert command("grade", CLASS, "--results", results).code == 0
    judged_differently(results, "student-01", "student-03")
    return results


def test_a_run_lists_every_mark_that_moved_once(told: Path, command: Command) -> None:
    ran = command("grade", CLASS, "--results", told)
    start = ran.out.index("Marks that moved: 2\n")
    assert [line.split() for line in ran.out[start:].splitlines()[1:]] == [
        ["student", "exercise", "before", "after", "by", "why"],
        ["student-01", "causal_mask", "3", "0", "-3", "graded", "again"],
        ["student-03", "causal_mask", "1.5", "0", "-1.5", "graded", "again"],
    ]
    assert "Marks that moved" not in command("grade", CLASS, "--results", told).out


def test_json_lists_the_moves(told: Path, command: Command) -> None:
    *_, move, last = map(json.loads, command("grade", CLASS, "--results", told, "--json").out.splitlines())
    assert move["moved"] == {
        "student": "student-03",
        "assignment": NAME,
        "exercise": "causal_mask",
        "before": 1.5,
        "after": 0.0,
        "difference": -1.5,
        "why": "graded again",
        "by_hand": False,
    }
    assert last["summary"]["moved"] == 2


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nbgrader course with the work of three of the class, and we are in it."""
    root = tmp_path / "course"
    root.mkdir()
    shutil.copy(ROOT / "nbgrader_config.py", root)
    shutil.copytree(ROOT / "notebooks" / NAME, root / "notebooks" / NAME)
    for student in ("student-01", "student-03", "student-04"):
        shutil.copytree(CLASS / student, root / "submitted" / student)
    monkeypatch.chdir(root)
    return root


def marks(course: Path) -> dict[str, tuple[float | None, float | None]]:
    """What nbgrader's gradebook says about causal_mask: the tests' mark, and the mark that counts."""
    found = {}
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        for student in ("student-01", "student-03", "student-04"):
            grade = gradebook.find_grade("check-causal_mask", NAME, NAME, student)
            found[student] = (grade.auto_score, grade.score)
    return found


@pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")
def test_marks_move_in_the_gradebook_after_they_were_listed_and_a_persons_stands(
    results: Path, course: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("grade", "submitted", "--results", results, "--gradebook", "auto")
    first = command(*arguments)
    assert "The gradebook is up to date (15 new marks, 0 moved)." in first.sentences
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        gradebook.find_grade("check-causal_mask", NAME, NAME, "student-03").manual_score = 2.5
        gradebook.db.commit()
    before = {"student-01": (3.0, 3.0), "student-03": (1.5, 2.5), "student-04": (3.0, 3.0)}
    judged_differently(results, "student-01", "student-03")

    preview = command(*arguments, "--preview")
    assert marks(course) == before
    listed = preview.out[preview.out.index("Marks that moved: 1; of a person, so kept: 1\n") :]
    assert [line.split()[:5] for line in listed.splitlines()[2:]] == [
        ["student-01", "causal_mask", "3", "0", "-3"],
        ["student-03", "causal_mask", "2.5", "2.5", "+0"],
    ]
    assert "a person's mark stands (what the tests say: 1.5 → 0, graded again)" in listed
    assert any("Without --preview the same command does it." in line for line in preview.sentences)

    said_before: list[str] = []
    sync = gradebooks.sync
    monkeypatch.setattr(
        gradebooks,
        "sync",
        lambda *a, **k: (said_before.append(sys.stdout.getvalue()), sync(*a, **k))[1],  # type: ignore[attr-defined]
    )
    written = command(*arguments)
    assert listed in written.out
    assert listed in said_before[0], "the marks were written before they were listed"
    assert marks(course) == {"student-01": (0.0, 0.0), "student-03": (0.0, 2.5), "student-04": (3.0, 3.0)}

    database = (course / "gradebook.db").read_bytes()
    again = command(*arguments)
    assert "Marks that moved" not in again.out
    assert "The gradebook is up to date (0 new marks, 0 moved)." in again.sentences
    assert (course / "gradebook.db").read_bytes() == database


@pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")
def test_when_writing_fails_the_moves_are_listed_again_with_their_reason(
    told: Path, course: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object, **__: object) -> None:
        raise gradebooks.GradebookError("The gradebook is locked.")

    arguments = ("grade", "submitted", "--results", told, "--gradebook", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(gradebooks, "sync", locked)
        ran = command(*arguments)
    assert (ran.code, ran.sentences) == (2, ["The gradebook is locked."])
    assert "Marks that moved: 2\n" in command(*arguments).out


def test_a_preview_needs_a_gradebook_and_makes_none(results: Path, course: Path, command: Command) -> None:
    ran = command("grade", "submitted", "--results", results, "--preview")
    assert (ran.code, ran.out) == (2, "")
    assert "name the gradebook too" in ran.err
    ran = command("grade", "submitted", "--results", results, "--gradebook", "auto", "--preview")
    assert ran.code == 0
    assert "Nothing was written to the gradebook (15 new marks, 0 moved)" in ran.err
    assert {path.name for path in course.iterdir()} == {"nbgrader_config.py", "notebooks", "submitted"}


def test_a_wrong_gradebook_is_told_before_anything_is_graded(
    results: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading, "grade_class", lambda *_: pytest.fail("it was graded first"))
    ran = command("grade", CLASS, "--results", results, "--gradebook", "gradebook.db")
    assert (ran.code, ran.out) == (2, "")
    assert "'gradebook.db' is not the address of a database" in ran.err


def test_a_changed_hidden_test_regrades_only_its_own_exercise(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # of everything that grading needs, so that a hidden test can be edited
    for folder in ("autograder", "ichimon", "solutions"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    tests = copy / "autograder" / "tests" / "test_02_self_attention.py"
    text = tests.read_text(encoding="utf-8")
    edited = text.replace(
        '@pytest.mark.exercise("causal_mask", weight=2)', '@pytest.mark.exercise("causal_mask", weight=4)'
    )
    assert text != edited
    tests.write_text(edited, encoding="utf-8")
    arguments = ["grade", notebook_of("student-03"), notebook_of("student-04"), "--results", results, "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "autograder", *map(str, arguments)], cwd=copy, capture_output=True, text=True, check=True
    )
    *reports, move, last = map(json.loads, ran.stdout.splitlines())
    assert last["summary"]["verdicts"] == {"causal_mask": 2}
    assert (last["summary"]["graded"], last["summary"]["moved"]) == (2, 1)
    assert {key: move["moved"][key] for key in ("student", "before", "after", "why")} == {
        "student": "student-03",
        "before": 1.5,
        "after": 1.12,
        "why": "other tests",
    }
    assert [(report["student"], report["points"]) for report in reports] == [
        ("student-03", 18.12),
        ("student-04", 19.58),
    ]
    assert "Only causal_mask had to be graded: the verdicts on the other exercises were known." in ran.stderr


# -- the whole story ------------------------------------------------------------------------------------------------


def test_why_tells_the_whole_story_of_a_mark(results: Path, command: Command) -> None:
    ran = command("why", "student-03", "causal_mask", "--results", results)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"student-03 · {NAME} · causal_mask: 1.5/3 points\n")
    sha = hashlib.sha256(notebook_of("student-03").read_bytes()).hexdigest()
    for part in (
        f"  {notebook_of('student-03')}\n    sha256 {sha}",
        "It is still there, unchanged.",
        f": today's\n  Environment {assignments.environment_sha()[:12]} (Python {platform.python_version()}, torch ",
        "  · causal_mask\n      def causal_mask(n: int)",
        "          for j in range(i):  # everything before i",
        "  · attention, for another exercise\n",
        "  ✓ a position never sees the future (weight 1)\n",
        "  ✗ a position sees itself (weight 1): failed\n      In causal_mask(5) a position may not attend to itself.\n",
        "It answers as a known mistake does: Row i leaves out column i: a position",
        "  3 of 5 tests pass; they weigh 3 of 6.\n  3 points × 3 / 6 = 1.5\n",
        ": 1.5 points (the first), which counts",
    ):
        assert part in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80 or str(notebook_of("student-03")) in ran.out


def test_why_needs_no_file_and_tells_of_earlier_ones_and_verdicts(told: Path, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "student-01.ipynb"
    shutil.copy(notebook_of("student-03"), file)
    assert command("grade", file, "--results", told, "--workers", 1).code == 0
    file.unlink()
    out = command("why", "student-01", "causal_mask", "--results", told).out
    assert "It is not there any more." in out
    assert "for j in range(i):  # everything before i" in out
    assert "The very same file was handed in by student-03." in out
    assert "It is still there, unchanged." in out[out.index("Earlier, student-01") :]
    assert "Earlier, student-01 had handed in another one:" in out
    verdicts = out[out.index("Every verdict on this exercise so far") :].replace("\n    ", " ").splitlines()[1:]
    assert [re.sub("^.*: (?=[0-9.]+ points)| for file [0-9a-f]{8}", "", line) for line in verdicts] == [
        "3 points (the first)",
        "1.5 points (another file: -1.5)",
        "0 points (another file: -1.5)",
        "0 points (another file: the same mark), which counts",
    ]


def test_why_shows_what_was_printed_what_failed_and_what_was_noticed(results: Path, command: Command) -> None:
    cheat = command("why", "student-14", "causal_mask", "--results", results).out
    assert "which the student added" in cheat
    assert "It printed:" in cheat
    assert "\x1b" not in cheat
    syntax = command("why", "student-08", "split_heads", "--results", results).out
    assert "It failed: SyntaxError: '(' was never closed (line 4" in syntax
    assert "def split_heads" in syntax
    twice = command("why", "student-12", "attention", "--results", results).out
    assert "- The cell of attention is there 2 times: all ran, the last one counts." in twice
    assert "· attention (2)" in twice


def test_why_without_an_exercise_lists_them(results: Path, command: Command) -> None:
    ran = command("why", "student-08", "--results", results)
    assert ran.code == 0
    assert f"  {NAME} · causal_mask: 3/3\n" in ran.out
    assert f"  {NAME} · split_heads: 0/2  raised an error: SyntaxError" in ran.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nobody"], "No results for 'nobody'. There are results for: student-01, student-02"),
        (["student-01", "nothing"], "student-01 has no verdict on 'nothing'. There is one on: causal_mask, attention"),
    ],
)
def test_why_of_what_there_is_not_is_a_sentence(
    results: Path, command: Command, arguments: list[str], sentence: str
) -> None:
    ran = command("why", *arguments, "--results", results)
    assert (ran.code, ran.out) == (2, "")
    assert sentence in ran.err


def test_why_asks_which_assignment_is_meant(results: Path, command: Command) -> None:
    with sqlite3.connect(results) as db:
        for table, columns in (
            ("submissions", "student, {}, sha, path, seen_at, seen_at"),
            ("verdicts", "NULL, sha, {}, exercise, tests_sha, environment_sha, attempt, run, result, graded_at"),
        ):
            db.execute(f"INSERT INTO {table} SELECT {columns.format(repr('99-renamed'))} FROM {table}")
    db.close()
    ran = command("why", "student-01", "causal_mask", "--results", results)
    assert (ran.code, ran.out) == (2, "")
    assert f"add --assignment {NAME} or --assignment 99-renamed." in ran.err
    ran = command("why", "student-01", "causal_mask", "--results", results, "--assignment", "99-renamed")
    assert ran.out.startswith("student-01 · 99-renamed · causal_mask: 3/3 points")
    assert "they have changed since, or are gone" in ran.out


def test_why_shows_hidden_tests_only_when_asked_and_only_those_that_judged(
    results: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("why", "student-03", "causal_mask", "--results", results)
    assert "def test_" not in command(*arguments).out
    shown = command(*arguments, "--tests").out
    assert shown.count("def test_") == 5
    assert 'pytest.mark.exercise("causal_mask")' in shown
    assert 'exercise("attention")' not in shown
    loaded = assignments.load(NAME)
    monkeypatch.setitem(loaded.__dict__, "tests_sha", {**loaded.tests_sha, "causal_mask": "edited"})
    edited = command(*arguments, "--tests").out
    assert "def test_" not in edited
    assert "They have changed since this verdict, so today's would explain nothing." in edited


@pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")
def test_why_says_what_the_gradebook_holds(results: Path, course: Path, command: Command) -> None:
    command("grade", "submitted", "--results", results, "--gradebook", "auto")
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        gradebook.find_grade("check-causal_mask", NAME, NAME, "student-03").manual_score = 2.5
        gradebook.db.commit()
    told = command("why", "student-03", "causal_mask", "--results", results, "--gradebook", "auto").out
    assert told.endswith("  The tests' mark there: 1.5\n  A person gave 2.5, and that is what counts.\n")


# -- where the work is done -----------------------------------------------------------------------------------------


def test_a_cluster_gets_what_was_asked_and_its_refusal_is_a_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograder import cluster

    def graded(tasks: object, scheduler: str, limits: object) -> Any:
        raise cluster.ClusterError(f"No Dask scheduler answers at {scheduler}.")

    monkeypatch.setattr(cluster, "graded", graded)
    ran = command("grade", notebook_of("student-01"), "--scheduler", "tcp://a:1", "--results", tmp_path / "r.sqlite")
    assert (ran.code, ran.out) == (2, "")
    assert ran.sentences == ["No Dask scheduler answers at tcp://a:1."]


def test_what_only_some_commands_need_is_not_imported_by_the_others(results: Path) -> None:
    script = (
        "import sys; from autograder import cli\n"
        "sys.argv[1:] = ['why', 'student-03', 'causal_mask', '--results', sys.argv[1]]\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'distributed', 'nbgrader', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(results)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"


# -- the rest -------------------------------------------------------------------------------------------------------


def test_one_notebook_and_a_flat_folder_work_like_nbgraders_layout(
    graded: Graded, command: Command, tmp_path: Path
) -> None:
    results = shutil.copy(graded.results, tmp_path / "results.sqlite")
    flat = tmp_path / "flat"
    flat.mkdir()
    for student in ("student-01", "student-05"):  # the second has lost every id that says which assignment it is
        shutil.copy(notebook_of(student), flat / f"{student}.ipynb")
    for path in (notebook_of("student-01"), CLASS / "student-01", flat):
        ran = command("grade", path, "--results", results)
        assert ran.code == 0
        assert [line.split()[6] for line in ran.out.splitlines() if line.startswith("student-01")] == ["20"]


def test_a_folder_named_from_inside_itself_still_knows_its_student(
    graded: Graded, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shutil.copy(graded.results, tmp_path / "results.sqlite")
    monkeypatch.chdir(notebook_of("student-01").parent)
    for path in (".", f"../{NAME}", f"{NAME}.ipynb"):
        assert command("grade", path, "--results", results).out.splitlines()[3].startswith("student-01 ")


def test_control_c_ends_with_what_is_kept(
    results: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grade_class = grading.grade_class

    def interrupted(found: Any, *arguments: Any, **options: Any) -> None:
        grade_class(found[:2], *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(grading, "grade_class", interrupted)
    ran = command("grade", CLASS, "--results", results)
    assert ran.code == 130
    assert ran.sentences == [
        "2 of 14 are graded.",
        "Stopped. What was graded is kept; run the same command again for the rest.",
    ]
    assert ran.out == ""


def test_doctor_says_in_words_which_layers_hold(command: Command) -> None:
    ran = command("doctor")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("bubblewrap: /")
    assert ran.out.count("✓") >= 8
    assert "✗" not in ran.out
    assert ran.out.endswith("All layers hold: submissions can be graded here.\n")


def test_doctor_and_grade_refuse_where_bubblewrap_is_missing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> str:
        raise jail.JailError("The grader needs bubblewrap (bwrap) to lock submissions in.")

    monkeypatch.setattr(jail, "bubblewrap", nothing)
    monkeypatch.setattr(grading, "_here", {})
    for arguments in (["doctor"], ["grade", notebook_of("student-01"), "--results", tmp_path / "results.sqlite"]):
        ran = command(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert ran.sentences == ["The grader needs bubblewrap (bwrap) to lock submissions in."]


def test_doctor_ends_with_1_where_a_layer_is_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = selftest.Check("no socket can be opened", False, "one was opened")
    monkeypatch.setattr(selftest, "self_test", lambda jail: [hole])
    monkeypatch.setattr(jail, "Jail", contextlib.nullcontext)
    ran = command("doctor")
    assert ran.code == 1
    assert "✗ no socket can be opened: one was opened" in ran.out
    assert "nothing is graded here" in ran.err


# The import mode keeps the folder of hidden tests, with a conftest of its own, off this process's sys.path.
QUIETLY = ("-p", "no:cacheprovider", "-q", "--import-mode=importlib")


def test_plain_pytest_runs_the_hidden_tests_on_a_notebook(capfd: pytest.CaptureFixture[str]) -> None:
    tests = ROOT / "autograder" / "tests" / "test_02_self_attention.py"
    chosen = ["-k", "causal_mask or a_position_sees or a_position_never"]
    ended = pytest.main([str(tests), "--submission", str(notebook_of("student-03")), *chosen, *QUIETLY])
    printed = capfd.readouterr().out
    assert ended == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 3 passed" in printed
    assert "In causal_mask(5) a position may not attend to itself." in printed


def test_plain_pytest_refuses_an_unreadable_notebook_in_a_sentence(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tests = ROOT / "autograder" / "tests" / "test_02_self_attention.py"
    (tmp_path / "broken.ipynb").write_text("{")
    ended = pytest.main([str(tests), "--submission", str(tmp_path / "broken.ipynb"), "-x", *QUIETLY])
    assert ended != pytest.ExitCode.OK
    assert "broken.ipynb is damaged" in capfd.readouterr().out
