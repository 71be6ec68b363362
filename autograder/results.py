"""The grader's memory: SQLite, append-only. A verdict is stored once under all it depends on, and never changed.

The key of a verdict is the submitted file's bytes, the exercise, that exercise's tests and the environment. Asking
again finds it; a changed test changes the key of its own exercise alone.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from autograder import assignment as assignments
from autograder.assignment import COURSE, Assignment, environment_sha
from autograder.report import CellRun, ExerciseResult, Report
from autograder.submission import Submission

DEFAULT = COURSE / "_build" / "results.sqlite"
APPLICATION_ID = 0x49434831  # "ICH1", written into the file so that no other database is mistaken for ours
SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    sha TEXT, assignment TEXT, exercise TEXT, tests_sha TEXT, environment_sha TEXT, result TEXT NOT NULL, graded_at
    REAL NOT NULL, PRIMARY KEY (sha, assignment, exercise, tests_sha, environment_sha)
);
CREATE TABLE IF NOT EXISTS runs (
    sha TEXT, assignment TEXT, environment_sha TEXT, notices TEXT NOT NULL, cells TEXT NOT NULL,
    PRIMARY KEY (sha, assignment, environment_sha)
);
CREATE TABLE IF NOT EXISTS submissions (
    student TEXT, assignment TEXT, sha TEXT, path TEXT NOT NULL, seen_at REAL NOT NULL,
    PRIMARY KEY (student, assignment, sha)
);
"""


class ResultsError(Exception):
    """The results file cannot be used: a sentence."""


class Results:
    """The verdicts in one file. Use as a context manager. Several graders may use one file at the same time."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or DEFAULT
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application != APPLICATION_ID and tables:
                raise ResultsError(
                    f"{self.path} is a database of something else, not grading results. Give another --results."
                )
            if application != APPLICATION_ID:
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
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
        rows = self._db.execute(
            "SELECT exercise, tests_sha FROM verdicts WHERE sha = ? AND assignment = ? AND environment_sha = ?",
            (sha, assignment.name, environment_sha()),
        ).fetchall()
        return [exercise for exercise, tests_sha in assignment.tests_sha.items() if (exercise, tests_sha) not in rows]

    def saw(self, file: Submission, path: Path) -> None:
        """Note that a student handed this file in. Handing an older file in again makes it the latest."""
        self._write(
            "INSERT INTO submissions VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET path = excluded.path, seen_at = excluded.seen_at",
            [(file.student, file.assignment, file.sha, os.fsencode(path).decode(errors="replace"), time.time())],
        )

    def add(self, report: Report, assignment: Assignment, again: bool = False) -> None:
        """Store a report's verdicts; those that are there already stay as they are."""
        environment = environment_sha()
        self._write(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    report.sha,
                    report.assignment,
                    r.exercise,
                    assignment.tests_sha[r.exercise],
                    environment,
                    _json(r),
                    time.time(),
                )
                for r in report.exercises
            ],
        )
        self._write(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?)",
            [(report.sha, report.assignment, environment, _json(report.notices), _json(report.cells))],
        )

    def report(self, student: str, assignment: str) -> Report | None:
        """The latest submission of a student with its latest verdicts, None if there is none."""
        row = self._db.execute(
            "SELECT sha FROM submissions WHERE student = ? AND assignment = ? "
            "ORDER BY seen_at DESC, rowid DESC LIMIT 1",
            (student, assignment),
        ).fetchone()
        if row is None:
            return None
        (sha,) = row
        verdicts = self._db.execute(
            "SELECT exercise, result FROM verdicts WHERE sha = ? AND assignment = ? ORDER BY graded_at, rowid",
            (sha, assignment),
        ).fetchall()
        run = self._db.execute(
            "SELECT notices, cells FROM runs WHERE sha = ? AND assignment = ? ORDER BY rowid DESC LIMIT 1",
            (sha, assignment),
        ).fetchone()
        if not verdicts or run is None:
            return None
        latest = dict(verdicts)
        known = assignments.load(assignment).points if assignment in assignments.names() else latest
        notices, cells = run
        try:
            return Report(
                student,
                assignment,
                sha,
                tuple(msgspec.json.decode(latest[name], type=ExerciseResult) for name in known if name in latest),
                msgspec.json.decode(notices, type=tuple[str, ...]),
                msgspec.json.decode(cells, type=tuple[CellRun, ...]),
            )
        except msgspec.MsgspecError:
            raise ResultsError(
                f"{self.path} holds results that this version cannot read. Give another --results."
            ) from None

    def reports(self, assignment: str = "") -> list[Report]:
        """The latest report of every student, for one assignment or for all."""
        rows = self._db.execute(
            "SELECT DISTINCT student, assignment FROM submissions WHERE ? IN ('', assignment) "
            "ORDER BY assignment, student",
            (assignment,),
        ).fetchall()
        found = [self.report(student, name) for student, name in rows]
        return [report for report in found if report]

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise ResultsError(f"{self.path} cannot be written ({error}). Nothing graded so far is lost.") from None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
