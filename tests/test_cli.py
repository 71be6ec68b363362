"""The command line: what it teaches, prints and returns."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autograder import grading
from autograder.sandbox import jail, selftest

if TYPE_CHECKING:
    from conftest import Command, Graded

ROOT = Path(__file__).resolve().parents[1]
CLASS = ROOT / "examples" / "class"
NAME = "02-self-attention"
COMMANDS = ("grade", "show", "feedback", "verify", "doctor")


def notebook_of(student: str) -> Path:
    return CLASS / student / NAME / f"{NAME}.ipynb"


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_teaches_each_command_and_the_exit_codes(arguments: list[str], command: Command) -> None:
    ran = command(*arguments)
    assert ran.code == (0 if arguments else 2)
    said = ran.out + ran.err
    assert all(f"autograder {name} " in said for name in COMMANDS)
    assert "Exit codes: 0 all is graded" in said


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


@pytest.mark.parametrize("name", ["show", "feedback"])
def test_without_results_the_next_step_is_named_and_no_file_is_left(
    name: str, command: Command, tmp_path: Path
) -> None:
    ran = command(name, "--results", tmp_path / "results.sqlite")
    assert (ran.code, ran.out) == (2, "")
    assert "run `autograder grade PATH` first" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_feedback_writes_a_page_for_each_and_says_where(graded: Graded, command: Command, tmp_path: Path) -> None:
    ran = command("feedback", "--results", graded.results, "--output", tmp_path)
    assert ran.code == 0
    pages = {path.stem for path in tmp_path.rglob("*.html")}
    assert pages == {*graded.reports, "class-report"}
    assert "class-report.html" in ran.out
    for path in tmp_path.rglob("*.html"):
        assert "<script" not in path.read_text(encoding="utf-8").lower()


def test_feedback_that_cannot_be_written_is_a_sentence(graded: Graded, command: Command) -> None:
    ran = command("feedback", "--results", graded.results, "--output", "/proc/feedback")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("This could not be read or written: ")
    assert len(ran.sentences) == 1


def test_json_gives_a_line_for_each_report(graded: Graded, command: Command, tmp_path: Path) -> None:
    results = shutil.copy(graded.results, tmp_path / "results.sqlite")
    ran = command("grade", CLASS, "--results", results, "--json")
    assert ran.code == 0
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert {line["student"]: line["points"] for line in lines} == {
        student: report.points for student, report in graded.reports.items()
    }
    assert {line["max_points"] for line in lines} == {20}
    assert lines[2]["exercises"][0]["tests"][3]["claim"] == "a position sees itself"


def test_verbose_gives_a_line_for_each_student_as_it_is_graded(
    graded: Graded, command: Command, tmp_path: Path
) -> None:
    results = shutil.copy(graded.results, tmp_path / "results.sqlite")
    ran = command("grade", CLASS, "--results", results, "-v")
    assert "student-09  17/20  causal_mask: timed out" in ran.sentences
    assert len(ran.sentences) == len(graded.reports)


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


def test_control_c_ends_with_what_is_kept(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grading, "grade_class", interrupt)
    ran = command("grade", CLASS, "--results", tmp_path / "results.sqlite")
    assert ran.code == 130
    assert ran.err.strip() == "Stopped. What was graded is kept; run the same command again for the rest."


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


def test_plain_pytest_runs_the_hidden_tests_on_a_notebook(capfd: pytest.CaptureFixture[str]) -> None:
    tests = ROOT / "autograder" / "tests" / "test_02_self_attention.py"
    chosen = ["-k", "causal_mask or a_position_sees or a_position_never", "-p", "no:cacheprovider", "-q"]
    ended = pytest.main([str(tests), "--submission", str(notebook_of("student-03")), *chosen])
    printed = capfd.readouterr().out
    assert ended == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 3 passed" in printed
    assert "In causal_mask(5) a position may not attend to itself." in printed


def test_plain_pytest_refuses_an_unreadable_notebook_in_a_sentence(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tests = ROOT / "autograder" / "tests" / "test_02_self_attention.py"
    (tmp_path / "broken.ipynb").write_text("{")
    ended = pytest.main(
        [str(tests), "--submission", str(tmp_path / "broken.ipynb"), "-p", "no:cacheprovider", "-q", "-x"]
    )
    assert ended != pytest.ExitCode.OK
    assert "broken.ipynb is damaged" in capfd.readouterr().out
