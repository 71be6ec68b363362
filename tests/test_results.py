"""The grader's memory: every attempt is kept, a report is stored whole or not at all, and marks that move are told."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import NIGHTLY

from autograder import assignment as assignments
from autograder import results as module
from autograder.report import CellRun, ExerciseResult, Outcome, Report, TestResult
from autograder.results import Move, Results, ResultsError
from autograder.submission import Submission

NAME = "02-self-attention"
ASSIGNMENT = assignments.load(NAME)
EXERCISES = list(ASSIGNMENT.points)


def graded(passed: int = 1, sha: str = "1", student: str = "ada", printed: str = "", only: str = "") -> Report:
    """A report in which `passed` of two tests of each exercise pass."""
    outcomes = [Outcome.PASSED] * passed + [Outcome.FAILED] * (2 - passed)
    tests = tuple(TestResult(f"test_{i}", f"claim {i}", "", 1.0, outcome) for i, outcome in enumerate(outcomes))
    exercises = tuple(ExerciseResult(name, 4.0, tests) for name in EXERCISES if only in ("", name))
    return Report(student, NAME, sha, exercises, (f"notice of {sha}",), (CellRun("a", "", output=printed, source="1"),))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Results]:
    # The object that `change` changes, even where another module of tests had all assignments loaded anew.
    load = assignments.load
    monkeypatch.setattr(assignments, "load", lambda name: ASSIGNMENT if name == NAME else load(name))
    with Results(tmp_path / "results.sqlite") as opened:
        yield opened


def keep(results: Results, report: Report, again: bool = False, path: str = "a.ipynb") -> None:
    results.saw(Submission(report.student, NAME, report.sha, ()), Path(path))
    results.add(report, ASSIGNMENT, again=again)


def points(results: Results, student: str = "ada") -> set[float]:
    report = results.report(student, NAME)
    assert report is not None
    return {result.points for result in report.exercises}


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give an exercise other tests, or everything another environment."""

    def changed(what: str) -> None:
        if what == "environment":
            monkeypatch.setattr(module, "environment_sha", lambda: "another")
        else:
            today = {**ASSIGNMENT.tests_sha, what: "other tests"}
            monkeypatch.setitem(ASSIGNMENT.__dict__, "tests_sha", today)

    return changed


# -- every attempt --------------------------------------------------------------------------------------------------


def test_a_verdict_that_is_there_stays(results: Results) -> None:
    keep(results, graded(1, printed="first"))
    keep(results, graded(2, printed="second"))
    assert points(results) == {2.0}
    report = results.report("ada", NAME)
    assert report is not None
    assert report.cells[0].output == "first"
    assert results.added == dict.fromkeys(EXERCISES, 1)


def test_grading_again_keeps_every_attempt_with_its_run_and_the_latest_counts(results: Results) -> None:
    for attempt, passed in enumerate((1, 0, 2), start=1):
        keep(results, graded(passed, printed=f"attempt {attempt}"), again=attempt > 1)
    assert points(results) == {4.0}
    history = results.history("ada", NAME, EXERCISES[0])
    assert [(verdict.attempt, verdict.result.points) for verdict in history] == [(1, 2.0), (2, 0.0), (3, 4.0)]
    assert [results.ran(verdict.run)[1][0].output for verdict in history] == ["attempt 1", "attempt 2", "attempt 3"]


def test_a_changed_test_asks_for_its_own_exercise_alone(results: Results, change: Callable[[str], None]) -> None:
    keep(results, graded())
    assert results.missing("1", ASSIGNMENT) == []
    change(EXERCISES[1])
    assert results.missing("1", ASSIGNMENT) == [EXERCISES[1]]


def test_a_test_that_is_changed_back_gives_its_old_mark_back(results: Results) -> None:
    keep(results, graded(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ASSIGNMENT.__dict__, "tests_sha", {**ASSIGNMENT.tests_sha, EXERCISES[0]: "a slip"})
        keep(results, graded(0, only=EXERCISES[0]))
        assert points(results) == {4.0, 0.0}
    assert results.missing("1", ASSIGNMENT) == []
    assert points(results) == {4.0}


def test_without_a_verdict_of_today_the_latest_counts(results: Results, change: Callable[[str], None]) -> None:
    keep(results, graded(0))
    keep(results, graded(2), again=True)
    change("environment")
    assert points(results) == {4.0}


def test_an_older_file_that_is_handed_in_again_is_the_latest_whatever_the_clock_says(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    for time, sha, passed in [(5, "1", 0), (9, "2", 2), (7, "1", 0)]:
        monkeypatch.setattr(module.time, "time", lambda now=time: float(now))
        keep(results, graded(passed, sha))
    assert points(results) == {0.0}
    first, second = results.files("ada", NAME)
    assert (first.sha, first.first_seen_at, first.seen_at) == ("1", 5.0, 7.0)
    assert (second.sha, second.first_seen_at, second.seen_at) == ("2", 9.0, 9.0)


# -- marks that move ------------------------------------------------------------------------------------------------


def moves(results: Results) -> list[Move]:
    return results.moved(results.marks([("ada", NAME)]))


def announce(results: Results) -> None:
    results.announce(results.marks([("ada", NAME)]))


def test_first_marks_have_not_moved(results: Results) -> None:
    keep(results, graded())
    assert moves(results) == []
    announce(results)
    assert moves(results) == []


@pytest.mark.parametrize(
    ("changes", "report", "why"),
    [
        ([EXERCISES[0]], graded(2), "other tests"),
        (["environment"], graded(2), "another environment"),
        ([], graded(2, sha="2"), "another file"),
        ([], graded(2), "graded again"),
        ([EXERCISES[0], "environment"], graded(2, sha="2"), "another file, other tests, another environment"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_move_says_how_much_and_why(
    results: Results, change: Callable[[str], None], changes: list[str], report: Report, why: str
) -> None:
    keep(results, graded(1))
    announce(results)
    for what in changes:
        change(what)
    keep(results, report, again=True)
    assert Move("ada", NAME, EXERCISES[0], 2.0, 4.0, why) in moves(results)
    announce(results)
    assert moves(results) == []


def test_a_verdict_that_changes_no_mark_is_no_move(results: Results) -> None:
    keep(results, graded(1))
    announce(results)
    keep(results, graded(1, printed="something else"), again=True)
    assert moves(results) == []


def test_only_what_moved_is_told(results: Results) -> None:
    keep(results, graded(1))
    announce(results)
    keep(results, graded(2, only=EXERCISES[2]), again=True)
    assert moves(results) == [Move("ada", NAME, EXERCISES[2], 2.0, 4.0, "graded again")]


def test_what_a_stopped_run_moved_is_told_by_the_next(results: Results, change: Callable[[str], None]) -> None:
    keep(results, graded(0))
    announce(results)
    change(EXERCISES[0])
    keep(results, graded(1, only=EXERCISES[0]))  # and killed here
    change("environment")
    keep(results, graded(2))
    assert moves(results)[0] == Move("ada", NAME, EXERCISES[0], 0.0, 4.0, "other tests, another environment")


def test_a_first_run_that_was_stopped_is_told_from_the_verdict_before(results: Results) -> None:
    keep(results, graded(0))
    keep(results, graded(2), again=True)
    assert {(move.before, move.after) for move in moves(results)} == {(0.0, 4.0)}


# -- whole or not at all --------------------------------------------------------------------------------------------


def in_a_child(act: Callable[[], None]) -> int:
    """Run something in a process of its own, which ends without any of Python's tidying up."""
    child = os.fork()
    if not child:
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_statement_leaves_all_of_a_report_or_nothing(tmp_path: Path, again: bool) -> None:
    start = tmp_path / "start.sqlite"
    with Results(start) as results:
        keep(results, graded(0))
    sha = "1" if again else "2"
    seen: set[tuple[int, int]] = set()
    for statement in range(1, 100):
        path = Path(shutil.copy(start, tmp_path / f"{statement}.sqlite"))

        def killed(path: Path = path, statement: int = statement) -> None:
            with Results(path) as results:
                left = iter(range(statement - 1))
                results._db.set_trace_callback(
                    lambda _: None if next(left, None) is not None else os.kill(os.getpid(), 9)
                )
                results.add(graded(2, sha), ASSIGNMENT, again=again)

        ended = in_a_child(killed)
        with sqlite3.connect(path) as db:
            verdicts = db.execute("SELECT count(*) FROM verdicts WHERE sha = ? AND attempt = ?", (sha, 1 + again))
            runs = db.execute("SELECT count(*) FROM runs")
            seen.add((verdicts.fetchone()[0], runs.fetchone()[0] - 1))
        db.close()
        with Results(path) as results:
            keep(results, graded(2, sha))
            assert results.missing(sha, ASSIGNMENT) == []
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert ended == 0, "it was never finished"
    assert statement > 4, "the kills did not come between the statements"
    assert seen == {(0, 0), (len(EXERCISES), 1)}


def test_what_cannot_be_written_leaves_nothing_and_is_a_sentence(results: Results, tmp_path: Path) -> None:
    keep(results, graded(0))
    results._db.execute("PRAGMA query_only = ON")
    with pytest.raises(ResultsError, match=r"results\.sqlite cannot be written \(.*\)\. Nothing graded so far is lost"):
        results.add(graded(2), ASSIGNMENT, again=True)
    assert points(results) == {0.0}


def at_the_same_time(path: Path) -> list[int]:
    with Results(path) as results:
        for sha in map(str, range(20)):
            keep(results, graded(1, sha, student=sha))
        return [len(results.history(sha, NAME, EXERCISES[0])) for sha in map(str, range(20))]


def test_many_graders_make_and_fill_one_file_and_nothing_is_there_twice(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for n in range(3):
            done = pool.map_async(at_the_same_time, [tmp_path / f"{n}.sqlite"] * 4, chunksize=1)
            assert done.get(timeout=120) == [[1] * 20] * 4


def test_looking_changes_no_byte_of_the_file(results: Results) -> None:
    keep(results, graded())
    results.close()
    before = results.path.read_bytes()
    with Results(results.path) as opened:
        assert opened.reports()
    assert results.path.read_bytes() == before


DAMAGE: dict[str, Callable[[bytearray, random.Random], None]] = {
    "cut off": lambda data, chance: data.__delitem__(slice(chance.randrange(len(data)), None)),
    "a page of noise": lambda data, chance: overwrite(data, chance, chance.randbytes(4096)),
    "a page of zeros": lambda data, chance: overwrite(data, chance, bytes(4096)),
    "single bytes": lambda data, chance: [overwrite(data, chance, chance.randbytes(1)) for _ in range(20)].clear(),
}


def overwrite(data: bytearray, chance: random.Random, new: bytes) -> None:
    at = chance.randrange(len(data) // len(new)) * len(new)
    data[at : at + len(new)] = new


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_sentence_or_gives_the_right_marks(results: Results, damage: str) -> None:
    students = {str(n): n % 3 for n in range(12)}
    for student, passed in students.items():
        keep(results, graded(passed, student, student, printed="x" * 500))
    results.announce(results.marks([(student, NAME) for student in students]))
    results.close()
    whole = results.path.read_bytes()
    right = 0
    times = 200 if NIGHTLY else 20
    for seed in range(times):
        data = bytearray(whole)
        DAMAGE[damage](data, random.Random(seed))
        damaged = results.path.with_name(f"{seed}.sqlite")
        damaged.write_bytes(data)
        with contextlib.suppress(ResultsError), Results(damaged) as opened:
            for student, passed in students.items():
                keep(opened, graded(passed, student, student))
                assert points(opened, student) == {2.0 * passed}
                opened.history(student, NAME, EXERCISES[0])
            opened.moved(opened.marks([(student, NAME) for student in students]))
            right += 1
    assert right < times, "nothing was damaged"


# -- the version before ---------------------------------------------------------------------------------------------

VERSION_0 = """
CREATE TABLE verdicts (
    sha TEXT, assignment TEXT, exercise TEXT, tests_sha TEXT, environment_sha TEXT, result TEXT NOT NULL,
    graded_at REAL NOT NULL, PRIMARY KEY (sha, assignment, exercise, tests_sha, environment_sha)
);
CREATE TABLE runs (
    sha TEXT, assignment TEXT, environment_sha TEXT, notices TEXT NOT NULL, cells TEXT NOT NULL,
    PRIMARY KEY (sha, assignment, environment_sha)
);
CREATE TABLE submissions (
    student TEXT, assignment TEXT, sha TEXT, path TEXT NOT NULL, seen_at REAL NOT NULL,
    PRIMARY KEY (student, assignment, sha)
);
PRAGMA application_id = 0x49434831;
PRAGMA journal_mode = WAL
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of version 0: ada handed in twice and was graded in two environments, a kill left bob without a run."""
    path = tmp_path / "old.sqlite"
    db = sqlite3.connect(path)
    db.executescript(VERSION_0)
    plan = [("1", "then", 0, 10.0), ("1", "now", 1, 20.0), ("2", "now", 2, 30.0), ("3", "now", 1, 40.0)]
    for sha, environment, passed, when in plan:
        report = graded(passed, sha, printed=environment)
        db.executemany(
            "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (sha, NAME, r.exercise, ASSIGNMENT.tests_sha[r.exercise], environment, encoded(r), when)
                for r in report.exercises
            ],
        )
        if sha != "3":
            run = (sha, NAME, environment, encoded(report.notices), encoded(report.cells))
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", run)
    files = [("ada", "2", 5.0), ("ada", "1", 6.0), ("bob", "3", 7.0)]
    db.executemany(f"INSERT INTO submissions VALUES (?, '{NAME}', ?, '/a.ipynb', ?)", files)
    db.commit()
    db.close()
    return path


def encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


KEPT = "SELECT sha, assignment, exercise, tests_sha, environment_sha, result, graded_at FROM verdicts ORDER BY 1, 3, 5"


def test_a_file_of_the_version_before_keeps_every_row(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "environment_sha", lambda: "now")
    verdicts = rows(old, KEPT)
    runs = rows(old, "SELECT notices, cells FROM runs ORDER BY rowid")
    with Results(old) as results:
        ada, bob = results.report("ada", NAME), results.report("bob", NAME)
        history = results.history("ada", NAME, EXERCISES[0])
        outputs = [results.ran(verdict.run)[1][0].output for verdict in history]
        assert results.missing("1", ASSIGNMENT) == results.missing("3", ASSIGNMENT) == []
    assert rows(old, KEPT) == verdicts
    assert rows(old, "SELECT notices, cells FROM runs WHERE id > 0 ORDER BY id") == runs
    assert [(v.sha, v.environment_sha, v.graded_at) for v in history] == [
        ("1", "then", 10.0),
        ("1", "now", 20.0),
        ("2", "now", 30.0),
    ]
    assert outputs == ["then", "now", "now"]
    assert ada is not None
    assert (ada.sha, ada.notices, ada.points) == ("1", ("notice of 1",), 2.0 * len(EXERCISES))
    assert bob is not None
    assert (bob.cells, bob.points) == ((), 2.0 * len(EXERCISES))
    with Results(old) as results:
        assert results.report("ada", NAME) == ada
    assert rows(old, "PRAGMA integrity_check") == [("ok",)]
    assert rows(old, "PRAGMA foreign_key_check") == []


def test_the_first_run_after_the_version_before_says_what_it_moves(old: Path) -> None:
    with Results(old) as results:
        results.add(graded(2, "1"), ASSIGNMENT)
        assert moves(results)[0] == Move("ada", NAME, EXERCISES[0], 2.0, 4.0, "another environment")


def test_a_conversion_that_is_stopped_leaves_the_version_before(old: Path) -> None:
    verdicts = rows(old, KEPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FROM_VERSION_0", module.FROM_VERSION_0 + "; INSERT INTO nowhere VALUES (1)")
        with pytest.raises(ResultsError, match="nowhere"):
            Results(old)
    assert (rows(old, "PRAGMA user_version"), rows(old, KEPT)) == ([(0,)], verdicts)
    with Results(old) as results:
        assert len(results.reports()) == 2


def test_a_file_of_a_newer_version_is_left_alone(results: Results) -> None:
    results._db.execute("PRAGMA user_version = 99")
    with pytest.raises(ResultsError, match="was written by a newer version of the grader"):
        Results(results.path)
