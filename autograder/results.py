"""The grader's memory: SQLite, append-only. Every verdict is kept with all it depends on, and none is ever changed.

The key of a verdict is the submitted file's bytes, the exercise, that exercise's tests and the environment. Asking
again finds it; a changed test changes the key of its own exercise alone. Whoever grades once more what is known adds
an attempt under the same key, and the latest counts.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from autograder import assignment as assignments
from autograder.assignment import COURSE, Assignment, UnknownAssignment, environment_sha
from autograder.report import CellRun, ExerciseResult, Report
from autograder.submission import Submission

DEFAULT = COURSE / "_build" / "results.sqlite"
APPLICATION_ID = 0x49434831  # "ICH1", written into the file so that no other database is mistaken for ours
VERSION = 1  # of the tables; version 0 kept one attempt and one run
TABLES = """
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, notices TEXT NOT NULL, cells TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (
    id INTEGER PRIMARY KEY, sha TEXT NOT NULL, assignment TEXT NOT NULL, exercise TEXT NOT NULL,
    tests_sha TEXT NOT NULL, environment_sha TEXT NOT NULL, attempt INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs, result TEXT NOT NULL, graded_at REAL NOT NULL,
    UNIQUE (sha, assignment, exercise, tests_sha, environment_sha, attempt)
);
CREATE TABLE IF NOT EXISTS submissions (
    student TEXT NOT NULL, assignment TEXT NOT NULL, sha TEXT NOT NULL, path TEXT NOT NULL,
    first_seen_at REAL NOT NULL, seen_at REAL NOT NULL, PRIMARY KEY (student, assignment, sha)
);
CREATE TABLE IF NOT EXISTS times (
    run INTEGER NOT NULL REFERENCES runs, exercise TEXT NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (run, exercise)
);
CREATE TABLE IF NOT EXISTS environments (sha TEXT PRIMARY KEY, says TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS announced (
    student TEXT NOT NULL, assignment TEXT NOT NULL, exercise TEXT NOT NULL,
    verdict INTEGER NOT NULL REFERENCES verdicts, PRIMARY KEY (student, assignment, exercise)
)
"""
OLD_TABLES = ("verdicts", "runs", "submissions")
# Verdicts without a run are what a kill left behind in version 0: run 0 is theirs, about which nothing is known. The
# marks that stood count as announced, so that the first regrade with this version says what it moves.
FROM_VERSION_0 = """
INSERT INTO runs SELECT rowid, notices, cells FROM old_runs;
INSERT INTO runs SELECT 0, '[]', '[]' WHERE EXISTS (
    SELECT 1 FROM old_verdicts LEFT JOIN old_runs AS run USING (sha, assignment, environment_sha) WHERE run.sha IS NULL
);
INSERT INTO verdicts SELECT row_number() OVER (ORDER BY graded_at, old.rowid), sha, assignment, exercise, tests_sha,
    environment_sha, 1, coalesce(run.rowid, 0), result, graded_at
    FROM old_verdicts AS old LEFT JOIN old_runs AS run USING (sha, assignment, environment_sha);
INSERT INTO submissions SELECT student, assignment, sha, path, seen_at, seen_at FROM old_submissions
    ORDER BY seen_at, rowid;
INSERT INTO announced SELECT student, assignment, exercise, max(verdicts.id) FROM (
    SELECT student, assignment, sha, row_number() OVER (
        PARTITION BY student, assignment ORDER BY rowid DESC
    ) AS age FROM submissions
) JOIN verdicts USING (sha, assignment) WHERE age = 1 GROUP BY student, assignment, exercise
"""

Key = tuple[str, str, str]  # student, assignment, exercise
_T = TypeVar("_T")


# What SQLite raises, and Python where a damaged file makes SQLite's own words unreadable.
_TROUBLE = (sqlite3.DatabaseError, UnicodeDecodeError)


class ResultsError(Exception):
    """The results file cannot be used: a sentence."""


@dataclass(frozen=True)
class File:
    """One file that a student handed in, and when the grader met it first and last."""

    sha: str
    path: Path
    first_seen_at: float
    seen_at: float


@dataclass(frozen=True)
class Verdict:
    """One attempt at one exercise of one file, and all that it depends on."""

    id: int  # they grow with time
    sha: str
    tests_sha: str
    environment_sha: str
    attempt: int  # from 1, under the same file, tests and environment
    run: int
    graded_at: float
    result: ExerciseResult

    def why_not(self, earlier: Verdict) -> str:
        """What is different from an earlier verdict on the same student and exercise."""
        different = {
            "another file": self.sha != earlier.sha,
            "other tests": self.tests_sha != earlier.tests_sha,
            "another environment": self.environment_sha != earlier.environment_sha,
        }
        return ", ".join(what for what, is_so in different.items() if is_so) or "graded again"


class Move(msgspec.Struct, frozen=True):
    """A mark that is not what it was."""

    student: str
    assignment: str
    exercise: str
    before: float
    after: float
    why: str
    by_hand: bool = False  # a person set it, and it stands: only what the tests say has moved


class Results:
    """The verdicts in one file. Use as a context manager. Several graders may use one file at the same time."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or DEFAULT
        self.added: Counter[str] = Counter()  # exercise -> verdicts that were stored through this object
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        except _TROUBLE as error:
            text = str(error)
            if "not a database" in text:
                raise ResultsError(f"{self.path} is not a results file. Give another --results.") from None
            raise ResultsError(f"{self.path} cannot be used for results ({text}). Give another --results.") from None
        except OSError as error:
            raise ResultsError(
                f"{self.path} cannot be used for results ({error.strerror}). Give another --results."
            ) from None

    def missing(self, sha: str, assignment: Assignment) -> list[str]:
        """The exercises of a submission that have no verdict by today's tests in today's environment."""
        attempts = self._attempts(sha, assignment.name)
        return [
            exercise for exercise, tests_sha in assignment.tests_sha.items() if (exercise, tests_sha) not in attempts
        ]

    def saw(self, file: Submission, path: Path) -> None:
        """Note that a student handed this file in. Handing an older file in again makes it the latest."""
        place, now = os.fsencode(os.path.abspath(path)).decode(errors="replace"), time.time()
        whose = (file.student, file.assignment, file.sha)
        with self._writing():
            self._db.execute(  # a new row, the last: clocks can go back
                "INSERT OR REPLACE INTO submissions VALUES (?, ?, ?, ?, coalesce("
                "(SELECT first_seen_at FROM submissions WHERE student = ? AND assignment = ? AND sha = ?), ?), ?)",
                (*whose, place, *whose, now, now),
            )

    def add(self, report: Report, assignment: Assignment, again: bool = False) -> None:
        """Store all that a report says, or nothing. A verdict that is there already stays; with `again` the new one
        is kept beside it, and counts."""
        environment = environment_sha()
        now = time.time()
        with self._writing():
            attempts = self._attempts(report.sha, report.assignment)
            fresh = [
                (result, tests_sha, attempts.get((result.exercise, tests_sha), 0) + 1)
                for result in report.exercises
                for tests_sha in [assignment.tests_sha[result.exercise]]
                if again or (result.exercise, tests_sha) not in attempts
            ]
            if not fresh:  # another grader was faster
                return
            run = self._db.execute(
                "INSERT INTO runs (notices, cells) VALUES (?, ?)", (_json(report.notices), _json(report.cells))
            ).lastrowid
            self._db.executemany(
                "INSERT INTO times VALUES (?, ?, ?)", [(run, *spent) for spent in report.seconds.items()]
            )
            self._db.execute("INSERT OR IGNORE INTO environments VALUES (?, ?)", (environment, _environment()))
            self._db.executemany(
                "INSERT INTO verdicts VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (report.sha, report.assignment, r.exercise, tests_sha, environment, attempt, run, _json(r), now)
                    for r, tests_sha, attempt in fresh
                ],
            )
        self.added.update(result.exercise for result, *_ in fresh)

    def report(self, student: str, assignment: str) -> Report | None:
        """The latest submission of a student with the verdicts that count, None if it has none."""
        standing = self.standing(student, assignment)
        if not standing:
            return None
        took = {run: self.took(run) for run in {verdict.run for verdict in standing.values()}}
        last = max(took)
        notices, cells = self.ran(last)
        runs = {"": last, **{name: verdict.run for name, verdict in standing.items()}}
        seconds = {name: took[run][name] for name, run in runs.items() if name in took[run]}
        sha = next(iter(standing.values())).sha
        return Report(student, assignment, sha, tuple(v.result for v in standing.values()), notices, cells, seconds)

    def reports(self, assignment: str = "", student: str = "") -> list[Report]:
        """The latest report of every student, or of one, for one assignment or for all."""
        rows = self._rows(
            "SELECT DISTINCT student, assignment FROM submissions "
            "WHERE ? IN ('', assignment) AND ? IN ('', student) ORDER BY assignment, student",
            (assignment, student),
        )
        found = [self.report(student, name) for student, name in rows]
        return [report for report in found if report]

    def students(self, assignment: str = "") -> list[str]:
        """Whose work was ever graded."""
        rows = self._rows(
            "SELECT DISTINCT student FROM submissions JOIN verdicts USING (sha, assignment) "
            "WHERE ? IN ('', assignment) ORDER BY student",
            (assignment,),
        )
        return [student for (student,) in rows]

    # -- the story of a mark ----------------------------------------------------------------------------------------

    def files(self, student: str, assignment: str) -> list[File]:
        """What a student handed in, the latest first."""
        rows = self._rows(
            "SELECT sha, path, first_seen_at, seen_at FROM submissions WHERE student = ? AND assignment = ? "
            "ORDER BY rowid DESC",
            (student, assignment),
        )
        return [File(sha, Path(path), first, last) for sha, path, first, last in rows]

    def same_file(self, sha: str, assignment: str) -> list[str]:
        """The students who handed in these very bytes."""
        rows = self._rows(
            "SELECT student FROM submissions WHERE sha = ? AND assignment = ? ORDER BY student", (sha, assignment)
        )
        return [student for (student,) in rows]

    def history(self, student: str, assignment: str, exercise: str) -> list[Verdict]:
        """Every verdict on an exercise in any file of a student, the earliest first."""
        rows = self._rows(
            "SELECT id FROM verdicts JOIN submissions USING (sha, assignment) "
            "WHERE student = ? AND assignment = ? AND exercise = ? ORDER BY id",
            (student, assignment, exercise),
        )
        return [self._verdict(verdict) for (verdict,) in rows]

    def standing(self, student: str, assignment: str) -> dict[str, Verdict]:
        """The verdicts that count, in the order of the assignment's exercises: those on the latest file, the latest by
        today's tests in today's environment, or else the latest."""
        return {exercise: self._verdict(verdict) for exercise, verdict in self._standing(student, assignment).items()}

    def ran(self, run: int) -> tuple[tuple[str, ...], tuple[CellRun, ...]]:
        """The notices of a run, and its cells: their code, what they printed, how they failed."""
        notices, cells = self._row("SELECT notices, cells FROM runs WHERE id = ?", run)
        return self._decoded(notices, tuple[str, ...]), self._decoded(cells, tuple[CellRun, ...])

    def took(self, run: int) -> dict[str, float]:
        """Exercise -> the seconds that its tests took in a run, and "" -> the cells; nothing for runs of old."""
        return dict(self._rows("SELECT exercise, seconds FROM times WHERE run = ?", (run,))) if self._timed else {}

    def environment(self, sha: str) -> str:
        """An environment in words, "" if they were not kept."""
        return next((says for (says,) in self._rows("SELECT says FROM environments WHERE sha = ?", (sha,))), "")

    # -- marks that move --------------------------------------------------------------------------------------------

    def marks(self, whose: Iterable[tuple[str, str]]) -> dict[Key, int]:
        """The verdicts that count now, for pairs of a student and an assignment."""
        return {
            (student, assignment, exercise): verdict
            for student, assignment in whose
            for exercise, verdict in self._standing(student, assignment).items()
        }

    def moved(self, marks: Mapping[Key, int]) -> list[Move]:
        """Which of these marks are not what they were when they were last announced, by how much, and why.

        A run that was stopped has announced nothing, so the next one says what both of them moved.
        """
        rows = self._rows("SELECT student, assignment, exercise, verdict FROM announced")
        announced = {(student, assignment, exercise): verdict for student, assignment, exercise, verdict in rows}
        moves = []
        for key, verdict in marks.items():
            earlier = announced.get(key) or self._previous(key, verdict)
            if earlier is None or earlier == verdict:
                continue
            before, after = self._verdict(earlier), self._verdict(verdict)
            if before.result.points != after.result.points:
                moves.append(Move(*key, before.result.points, after.result.points, after.why_not(before)))
        return moves

    def announce(self, marks: Mapping[Key, int]) -> None:
        """Note that a person has been told of these marks."""
        with self._writing():
            self._db.executemany(
                "INSERT OR REPLACE INTO announced VALUES (?, ?, ?, ?)",
                [(*key, verdict) for key, verdict in marks.items()],
            )

    # -- the file ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        """See that the tables are there. A file that has them is not written to, so that others can read it."""
        self._db.execute("BEGIN")  # or another grader could build between these three looks
        application, found, there = self._pragma("application_id"), self._pragma("user_version"), self._tables()
        self._db.execute("COMMIT")
        if application != APPLICATION_ID and there:
            raise ResultsError(
                f"{self.path} is a database of something else, not grading results. Give another --results."
            )
        if found > VERSION:
            raise ResultsError(f"{self.path} was written by a newer version of the grader. Update this one.")
        missing = TABLES.count("CREATE TABLE") - len(there)
        untimed = missing == 1 and "times" not in there  # of an earlier version; who may only read it still can
        if found < VERSION or (missing and not (untimed and not os.access(self.path, os.W_OK))):
            self._keep_a_log()
            self._build()
            untimed = False
        self._timed = not untimed
        # With a write-ahead log this never damages the file, and a process that is killed loses nothing that it
        # committed: the kernel has it. Only a power cut can lose the last verdicts, and they are graded again.
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _keep_a_log(self) -> None:
        """So that writers and readers do not wait for each other. Where two make the same file, SQLite waits for
        everything but this."""
        until = time.monotonic() + 60
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.05)

    def _build(self) -> None:
        """Make the tables, or bring an older version's into today's shape, all at once."""
        with self._writing():
            steps = TABLES.split(";")
            if self._pragma("user_version") < VERSION and "verdicts" in self._tables():
                rename = [f"ALTER TABLE {table} RENAME TO old_{table}" for table in OLD_TABLES]
                drop = [f"DROP TABLE old_{table}" for table in OLD_TABLES]
                steps = [*rename, *steps, *FROM_VERSION_0.split(";"), *drop]
            for step in steps:
                self._db.execute(step)
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _tables(self) -> list[str]:
        return [name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]

    def _pragma(self, name: str) -> int:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all that is written in this block is kept, or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, _TROUBLE):
                raise ResultsError(f"{self.path} cannot be written ({error}). Nothing graded so far is lost.") from None
            raise

    def _attempts(self, sha: str, assignment: str) -> dict[tuple[str, str], int]:
        """(exercise, its tests) -> how often it was graded in today's environment."""
        rows = self._rows(
            "SELECT exercise, tests_sha, max(attempt) FROM verdicts "
            "WHERE sha = ? AND assignment = ? AND environment_sha = ? GROUP BY exercise, tests_sha",
            (sha, assignment, environment_sha()),
        )
        return {(exercise, tests_sha): attempt for exercise, tests_sha, attempt in rows}

    def _standing(self, student: str, assignment: str) -> dict[str, int]:
        """exercise -> the verdict that counts."""
        rows = self._rows(
            "SELECT id, exercise, tests_sha, environment_sha FROM verdicts WHERE assignment = ? AND sha = ("
            "SELECT sha FROM submissions WHERE student = ? AND assignment = ? "
            "ORDER BY rowid DESC LIMIT 1) ORDER BY id",
            (assignment, student, assignment),
        )
        try:
            today = assignments.load(assignment).tests_sha
        except UnknownAssignment:  # of another course, or renamed
            today = {exercise: "" for _, exercise, *_ in rows}
        keys = {(exercise, tests_sha, environment_sha()) for exercise, tests_sha in today.items()}
        counts = {row[1]: row[0] for row in sorted(rows, key=lambda row: row[1:] in keys)}
        return {exercise: counts[exercise] for exercise in today if exercise in counts}

    def _previous(self, key: Key, verdict: int) -> int | None:
        """The verdict before this one on the same student's exercise."""
        rows = self._rows(
            "SELECT id FROM verdicts JOIN submissions USING (sha, assignment) "
            "WHERE student = ? AND assignment = ? AND exercise = ? AND id < ? ORDER BY id DESC LIMIT 1",
            (*key, verdict),
        )
        return rows[0][0] if rows else None

    def _verdict(self, verdict: int) -> Verdict:
        sha, tests_sha, environment, attempt, run, graded_at, result = self._row(
            "SELECT sha, tests_sha, environment_sha, attempt, run, graded_at, result FROM verdicts WHERE id = ?",
            verdict,
        )
        decoded = self._decoded(result, ExerciseResult)
        return Verdict(verdict, sha, tests_sha, environment, attempt, run, graded_at, decoded)

    def _row(self, query: str, number: int) -> tuple[Any, ...]:
        """What another row says is there."""
        rows = self._rows(query, (number,))
        if not rows:
            raise self._damaged("a row is missing")
        return rows[0]

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            rows = self._db.execute(query, values).fetchall()
        except _TROUBLE as error:
            raise self._damaged(error) from None
        if any(None in row for row in rows):  # no column of ours may be empty
            raise self._damaged("a value is missing")
        return rows

    def _damaged(self, why: object) -> ResultsError:
        return ResultsError(
            f"{self.path} cannot be read ({why}). Move it away and grade again, or give another --results."
        )

    def _decoded(self, text: str, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, TypeError):
            raise ResultsError(
                f"{self.path} holds results that this version cannot read. Give another --results."
            ) from None


def _environment() -> str:
    return f"Python {platform.python_version()}, torch {version('torch')}"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
