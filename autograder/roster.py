"""Who is who: a roster as a learning platform exports it, and whose a file is that came from there.

The roster is the gradebook that Canvas exports, the grading worksheet that Moodle exports, or any CSV with a column
`student`. A file whose owner it does not know, or knows twice, is given to nobody: a person is asked.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autograder import names
from autograder.report import clean
from ichimon.notebook import MAX_BYTES

Kind = Literal["canvas", "moodle", "plain"]

# Canvas: doejane_LATE_12345_67890_02-self-attention-1.ipynb, where 12345 is who it is from.
_CANVAS = re.compile(r".+?(_LATE)?_(\d+)_\d+_.+")
# Moodle: "Jane Doe_12345_assignsubmission_file_" is a folder, or the beginning of a file's name.
_MOODLE = re.compile(r".+?_(\d+)_assignsubmission_file_?.*")
_PARTICIPANT = re.compile(r"\D*(\d+)")


class RosterError(ValueError):
    """What is wrong with a roster, in a sentence."""


@dataclass(frozen=True)
class Sheet:
    """A CSV as it came: the platform gets it back with marks in it, and nothing else changed."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    kind: Kind

    @property
    def people(self) -> list[Mapping[str, str]]:
        """The rows that are students: Canvas has rows for the points possible and for a test student, too."""
        if self.kind != "canvas":
            return list(self.rows)
        return [row for row in self.rows if row["ID"].strip() and row["Student"].strip() != "Student, Test"]


@dataclass(frozen=True)
class Roster:
    """Students by what they may be called."""

    sheet: Sheet
    students: Mapping[int, str]  # place of the row among the people -> the student's name in the course
    known_as: Mapping[str, frozenset[str]] = field(repr=False)  # what a file may be called after -> students

    def owner(self, label: str, assignment: str = "") -> tuple[str, str]:
        """(student, "") for a folder's name or a file's stem, or ("", why nobody can say), in words."""
        if label.count("_assignsubmission_file") > 1:  # a name that somebody chose in order to be somebody else
            return "", f"“{clean(label, 80)}” can be read in two ways"
        if found := _MOODLE.fullmatch(label):
            return self._one("moodle", f"moodle {found[1]}", label)
        if found := _CANVAS.fullmatch(label):
            return self._one("canvas", f"canvas {found[2]}", label)
        bare = re.sub(rf"[\s_-]*{re.escape(assignment)}$", "", label) if assignment else label
        return self._one(self.sheet.kind, bare, label)

    def _one(self, kind: Kind, key: str, label: str) -> tuple[str, str]:
        shown = f"“{clean(label, 80)}”"
        if kind != self.sheet.kind:
            export = {"canvas": "the gradebook that Canvas exports", "moodle": "Moodle's grading worksheet"}[kind]
            return "", f"{shown} is named as {kind.capitalize()} does: give {export} as the roster"
        owners = sorted(self.known_as.get(names.letters(key), ()))
        if len(owners) == 1:
            return owners[0], ""
        if owners:
            return "", f"{shown} could be {' or '.join(clean(owner, 40) for owner in owners)}"
        return "", f"{shown} is not in the roster"


def read_sheet(path: Path) -> Sheet:
    """A roster's rows. Raises RosterError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RosterError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise RosterError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no roster is.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RosterError(f"{path} is not in UTF-8: save it as “CSV UTF-8”.") from error
    try:
        first, *rest = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(row)]
    except (csv.Error, ValueError) as error:
        raise RosterError(f"{path} is not a table of comma-separated values with a line of headings.") from error
    columns = tuple(column.strip() for column in first)
    if len(set(columns)) < len(columns):
        raise RosterError(f"{path} has two columns of one name.")
    rows = tuple(dict(zip(columns, [*row, *[""] * len(columns)], strict=False)) for row in rest)
    return Sheet(path, columns, rows, _kind(path, columns))


def read(path: Path, student: str = "") -> Roster:
    """A roster; `student` names the column whose entries students are called by in the course.

    By default it is Canvas's SIS Login ID (its ID, where there is none), Moodle's e-mail address (its identifier), and
    otherwise the column `student`.
    """
    sheet = read_sheet(path)
    column = student or _student_column(sheet)
    if column not in sheet.columns:
        raise RosterError(f"{path} has no column {column!r}; it has {', '.join(sheet.columns)}.")
    students: dict[int, str] = {}
    known_as: defaultdict[str, set[str]] = defaultdict(set)
    for place, row in enumerate(sheet.people):
        name = row[column].strip()
        if not name:
            raise RosterError(f"{path}: row {place + 1} of the students has nothing in its column {column!r}.")
        if trouble := names.trouble(name) or _no_folder(name):
            raise RosterError(f"{path}: {trouble}")
        students[place] = name
        for key in _keys(sheet, row):
            known_as[names.letters(key)].add(name)
    if repeated := sorted(name for name in set(students.values()) if list(students.values()).count(name) > 1):
        raise RosterError(f"{path}: {clean(repeated[0], 40)} is there more than once in the column {column!r}.")
    for sentence in names.look_alikes(students.values()).values():
        raise RosterError(f"{path}: {sentence}")
    return Roster(sheet, students, {key: frozenset(owners) for key, owners in known_as.items()})


def _kind(path: Path, columns: Sequence[str]) -> Kind:
    if {"Student", "ID", "Section"} <= set(columns):
        return "canvas"
    if {"Identifier", "Grade"} <= set(columns):
        return "moodle"
    if "student" in columns:
        return "plain"
    raise RosterError(
        f"{path} is no roster: Canvas's gradebook has columns Student, ID and Section, Moodle's grading worksheet has "
        "Identifier and Grade, and any other table needs a column `student`."
    )


def _student_column(sheet: Sheet) -> str:
    preferred = {"canvas": ("SIS Login ID", "ID"), "moodle": ("Email address", "Identifier"), "plain": ("student",)}
    filled = [
        column
        for column in preferred[sheet.kind]
        if column in sheet.columns and all(row[column].strip() for row in sheet.people)
    ]
    return filled[0] if filled else preferred[sheet.kind][-1]


def _no_folder(name: str) -> str:
    """Why a name cannot be a folder's, "" if it can."""
    return f"“{clean(name, 40)}” cannot name a folder." if "/" in name or "\\" in name or name.startswith(".") else ""


def _keys(sheet: Sheet, row: Mapping[str, str]) -> Iterable[str]:
    """What a file may be called after, for one student."""
    if sheet.kind == "canvas":
        yield f"canvas {row['ID'].strip()}"
        told = [row.get(column, "") for column in ("Student", "SIS User ID", "SIS Login ID")]
    elif sheet.kind == "moodle":
        if participant := _PARTICIPANT.fullmatch(row["Identifier"].strip()):
            yield f"moodle {participant[1]}"
        told = [row.get(column, "") for column in ("Full name", "Email address", "ID number", "Username")]
    else:
        told = list(row.values())
    for text in filter(None, (each.strip() for each in told)):
        yield text
        last, comma, given = text.partition(",")
        if comma:
            yield f"{given.strip()} {last.strip()}"
