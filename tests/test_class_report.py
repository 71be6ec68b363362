"""How long it took and how it ended: measured by the grader, kept beside the verdicts, shown to staff, never a mark."""

from __future__ import annotations

import csv
import os
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser

from autograder import assignment as assignments
from autograder.feedback import class_report, tables
from autograder.report import CellRun, ExerciseResult, Outcome, Report, TestResult
from autograder.results import Results
from autograder.submission import Submission

NAME = "02-self-attention"
ASSIGNMENT = assignments.load(NAME)


def ended(outcome: Outcome, message: str) -> TestResult:
    return TestResult("test_a", "the mask is boolean", "", 1.0, outcome, message)


def report(student: str, *outcomes: Outcome, seconds: dict[str, float] | None = None, **more: object) -> Report:
    """A report in which each exercise of the chapter ended as the worst of these."""
    exercises = tuple(
        ExerciseResult(name, points, tuple(ended(outcome, "it took too much") for outcome in outcomes))
        for name, points in ASSIGNMENT.points.items()
    )
    return Report(student, NAME, student, exercises, seconds=seconds or {}, **more)  # type: ignore[arg-type]


CLASS = [
    report("ada", Outcome.PASSED, Outcome.PASSED, seconds={"": 0.2, "causal_mask": 0.01, "attention": 2.0}),
    report("bob", Outcome.PASSED, Outcome.FAILED, seconds={"": 0.4, "causal_mask": 0.03}),
    report("cleo", Outcome.FAILED, Outcome.TIMED_OUT, seconds={"": 5.0, "causal_mask": 140.0}),
    report("dan", Outcome.CRASHED, notices=("The code of attention names softmax: a person should look.",)),
    report("eve", cells=(CellRun("cell 3", "", "stopped: out of memory: it took more than 1,024 MB of memory."),)),
]


def words(html: str) -> str:
    class Page(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data

        def handle_endtag(self, tag: str) -> None:
            self.text += " "

    page = Page()
    page.feed(html)
    return " ".join(page.text.split())


def test_each_exercise_ends_as_the_worst_of_its_tests() -> None:
    assert [each.exercises[0].ending for each in CLASS[:4]] == [
        Outcome.PASSED,
        Outcome.FAILED,
        Outcome.TIMED_OUT,
        Outcome.CRASHED,
    ]
    assert report("x").exercises[0].ending is None


def test_the_report_tells_how_it_ended_and_how_long_it_took() -> None:
    said = words(class_report(CLASS))
    for part in (
        "Exercise passed failed timed out the test could not judge this answer not tested Median Longest",
        "causal_mask 1 1 1 1 1 30 ms 2.3 min",
        "attention 1 1 1 1 1 2.0 s 2.0 s",
        "split_heads 1 1 1 1 1 – –",
        "all cells 400 ms 5.0 s",
        "took 2.5 min of a worker's time. 3 took the longest: cleo (2.4 min), ada (2.2 s), bob (430 ms).",
        "cleo causal_mask timed out: it took too much",
        "eve cell 3 out of memory: it took more than 1,024 MB of memory.",
        "dan The code of attention names softmax: a person should look.",
        "dan causal_mask: the test could not judge this answer (the mask is boolean)",
        "The fewest pass: the mask is boolean (causal_mask, 1 of 5);",
        "For you: 6 stopped at a limit, 6 to look at, 0 pairs alike.",
    ):
        assert part in said


def test_without_times_the_report_says_nothing_of_them() -> None:
    said = words(class_report([report("ada", Outcome.PASSED)]))
    assert "causal_mask 1 – –" in said
    assert "Slowest" not in said
    assert "No submission ran into a limit" in said


def test_the_table_for_a_spreadsheet_has_a_row_an_exercise_and_one_for_the_cells() -> None:
    rows = list(csv.DictReader(tables(CLASS)["outcomes.csv"].splitlines()))
    assert next(row for row in rows if row["student"] == "cleo") == {
        "student": "cleo",
        "exercise": "causal_mask",
        "outcome": "timed out",
        "points": "0.0",
        "seconds": "140.0",
    }
    assert {row["seconds"] for row in rows if row["exercise"] == "(the cells)"} == {"0.2", "0.4", "5.0"}
    assert len(rows) == 5 * len(CLASS) + 3


def test_time_is_no_part_of_what_two_reports_are_compared_by() -> None:
    slow = msgspec.structs.replace(CLASS[0], seconds={"": 99.0})
    assert slow == CLASS[0]
    assert slow != msgspec.structs.replace(slow, notices=("another",))
    assert msgspec.json.decode(msgspec.json.encode(slow), type=Report).seconds == {"": 99.0}
    old = {key: value for key, value in msgspec.to_builtins(slow).items() if key != "seconds"}
    assert msgspec.convert(old, Report) == slow, "a report of an earlier version can be read"


def keep(results: Results, one: Report, again: bool = False) -> None:
    results.saw(Submission(one.student, NAME, one.sha, ()), Path("a.ipynb"))
    results.add(one, ASSIGNMENT, again=again)


def test_times_are_kept_beside_the_verdicts_that_count(tmp_path: Path) -> None:
    with Results(tmp_path / "results.sqlite") as results:
        keep(results, CLASS[0])
        keep(results, CLASS[0])  # known: nothing is measured again
        stored = results.report("ada", NAME)
        assert stored is not None
        assert stored.seconds == CLASS[0].seconds
        quicker = msgspec.structs.replace(CLASS[0], seconds={"": 0.1, "causal_mask": 0.5})
        keep(results, quicker, again=True)
        again = results.report("ada", NAME)
        assert again is not None
        assert again.seconds == quicker.seconds
        assert results.missing(CLASS[0].sha, ASSIGNMENT) == []


def test_a_file_of_before_is_read_written_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.sqlite"
    with Results(path) as results:
        keep(results, CLASS[0])
        results._db.execute("DROP TABLE times")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Results(path) as results:  # who may only read
        stored = results.report("ada", NAME)
        assert (stored, stored and stored.seconds) == (CLASS[0], {})
    monkeypatch.undo()
    with Results(path) as results:
        assert results.report("ada", NAME) == CLASS[0]
        assert results.missing(CLASS[0].sha, ASSIGNMENT) == [], "nothing is graded again because its time is unknown"
        keep(results, CLASS[1])
        after = results.report("bob", NAME)
        assert after is not None
        assert after.seconds == CLASS[1].seconds


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(scheme: str, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(class_report(CLASS), encoding="utf-8")
    page = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme=scheme).new_page()  # type: ignore[arg-type]
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    targets = page.locator("nav a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert len(targets) > 6
    assert all(page.locator(target).count() == 1 for target in targets)
