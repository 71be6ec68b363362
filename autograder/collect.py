"""What was handed in, put where nbgrader looks for it: submitted/<student>/<assignment>/<assignment>.ipynb.

It takes what a platform gives: an archive or a folder, named as Canvas or Moodle name things, or after the students.
Whose a file is the roster says, which assignment it is the notebook says. What nobody can say is written to a table,
for a person to fill in and give back. No work is lost: what is replaced is kept.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from autograder import assignment as assignments
from autograder import submission
from autograder.archives import TIMESTAMP
from autograder.assignment import COURSE, UnknownAssignment
from autograder.report import clean
from autograder.roster import Roster, RosterError, read_sheet
from autograder.submission import Found
from ichimon.notebook import NotebookError

REPLACED = COURSE / "_build" / "replaced"
ASKED = ("found", "student")  # the columns of the table that asks
TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?( ?[A-Za-z][A-Za-z/_]{0,39}| ?[+-]\d\d:?\d\d)?")


@dataclass
class Collected:
    """What became of the files: each is (student, assignment) or a label."""

    new: list[tuple[str, str]] = field(default_factory=list)
    replaced: list[tuple[str, str]] = field(default_factory=list)
    as_before: list[tuple[str, str]] = field(default_factory=list)
    late: list[tuple[str, str]] = field(default_factory=list)  # as Canvas marks them
    asked: dict[str, str] = field(default_factory=dict)  # label -> why nobody can say whose it is
    troubles: list[str] = field(default_factory=list)  # sentences about files and archives


def collect(
    paths: Iterable[Path],
    roster: Roster,
    into: Path,
    decided: Mapping[str, str] | None = None,
    kept: Path = REPLACED,
    timestamps: bool = False,
) -> Collected:
    """Put every notebook below `paths` into its student's folder.

    `decided` says for some labels (a folder's name or a file's stem) whose they are: a person looked, so it goes before
    the roster; "" means that the file is to be left alone. With `timestamps`, a timestamp.txt beside a notebook says
    when it came; without, none is believed, for a student can write one.
    """
    result = Collected()
    found: list[Found] = []
    for path in paths:
        there, troubles = submission.find([path])
        found += outermost(there, path) if path.is_dir() else there
        result.troubles += troubles
    deal(found, roster, into, result, decided or {}, kept, timestamps)
    return result


def outermost(found: Iterable[Found], folder: Path) -> list[Found]:
    """All that is in a student's folder is theirs, whatever folders they made in it: the outermost says whose it is.

    A clone of a student's repository is called after its login too, which is known already.
    """
    tops = ((item, item.path.relative_to(folder).parts) for item in found)
    known, name = assignments.names(), folder.absolute().name
    return [
        replace(item, student=parts[0])
        if len(parts) > 1 and parts[0] not in known and not submission.login(name, *parts[:-1])
        else item
        for item, parts in tops
    ]


def deal(
    found: Iterable[Found],
    roster: Roster,
    into: Path,
    result: Collected,
    decided: Mapping[str, str],
    kept: Path = REPLACED,
    timestamps: bool = False,
    otherwise: str = "",
) -> None:
    """Put files that were found into their students' folders, and say in `result` what became of each.

    `otherwise` is the assignment of files that do not say which they are, be it that nobody can read them.
    """
    works: defaultdict[tuple[str, str], list[Found]] = defaultdict(list)
    for item in found:
        try:
            assignment = submission.assignment_of(item)
        except (NotebookError, UnknownAssignment) as error:
            if not otherwise:
                result.troubles.append(f"“{clean(item.student, 80)}”: {error}")
                continue
            assignment = otherwise
        if item.student in decided:
            student = decided[item.student]
        else:
            student, why = roster.owner(item.student, assignment)
            if why:
                result.asked[item.student] = why
        if student:
            works[student, assignment].append(item)
    for (student, assignment), items in sorted(works.items()):
        notebooks: dict[bytes, Found] = {}
        for item in items:
            try:
                notebooks[submission.content(item.path)] = item
            except (OSError, NotebookError) as error:
                result.troubles.append(f"“{clean(item.student, 80)}”: {error}")
        if len(notebooks) > 1:
            files = " and ".join(f"“{clean(item.student, 60)}”" for item in notebooks.values())
            result.troubles.append(
                f"{clean(student, 40)} has handed in {len(notebooks)} different notebooks for {assignment}, {files}: "
                "take away all but the one that counts."
            )
            continue
        for data, item in notebooks.items():
            time = _time(item.path.with_name(TIMESTAMP), result) if timestamps else ""
            _put(data, time, into / student / assignment / f"{assignment}.ipynb", (student, assignment), result, kept)
            if "_LATE_" in item.student:
                result.late.append((student, assignment))


def decisions(path: Path, roster: Roster) -> dict[str, str]:
    """The table that `ask` wrote, filled in by a person. Raises RosterError."""
    sheet = read_sheet(path)
    if not set(ASKED) <= set(sheet.columns):
        raise RosterError(f"{path} should have the columns found and student.")
    decided = {row["found"]: row["student"].strip() for row in sheet.rows if row["student"].strip()}
    for label, student in decided.items():
        if student == "-":
            decided[label] = ""
        elif student not in roster.students.values():
            raise RosterError(f"{path} gives “{clean(label, 60)}” to {clean(student, 40)}, who is not in the roster.")
    return decided


def ask(asked: Mapping[str, str], decided: Mapping[str, str], path: Path) -> None:
    """Write the table that a person fills in: for each label a student, or - to leave the file alone."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*ASKED, "why"])
        writer.writerows([label, student or "-", ""] for label, student in sorted(decided.items()))
        writer.writerows([label, "", why] for label, why in sorted(asked.items()))


def _time(path: Path, result: Collected) -> str:
    """What a timestamp.txt says, as nbgrader writes it; "" if there is none, or it is no time."""
    if not path.is_file() or path.is_symlink():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(100).strip()
    if TIME.fullmatch(text):
        return text
    result.troubles.append(f"{clean(path.parent.name, 80)}: “{clean(text, 40)}” is no time, so its notebook has none")
    return ""


def keep(target: Path, whose: tuple[str, str], kept: Path = REPLACED) -> None:
    """Keep a notebook that is going to be replaced."""
    data = submission.content(target)
    backup = kept.joinpath(*whose, f"{hashlib.sha256(data).hexdigest()[:16]}.ipynb")
    backup.parent.mkdir(parents=True, exist_ok=True)
    backup.write_bytes(data)


def _put(data: bytes, time: str, target: Path, whose: tuple[str, str], result: Collected, kept: Path) -> None:
    there = target.exists()
    stamp = target.with_name(TIMESTAMP)
    if there and target.read_bytes() == data:
        result.as_before.append(whose)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if there:
            keep(target, whose, kept)
            stamp.unlink(missing_ok=True)  # it is of the notebook that is replaced
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(target)
        (result.replaced if there else result.new).append(whose)
    if time:
        stamp.write_text(f"{time}\n", encoding="utf-8")
