"""What was handed in, put where nbgrader looks for it: submitted/<student>/<assignment>/<assignment>.ipynb.

It takes what a platform gives: an archive or a folder, named as Canvas or Moodle name things, or after the students.
Whose a file is the roster says, which assignment it is the notebook says. What nobody can say is written to a table,
for a person to fill in and give back. No work is lost: what is replaced is kept.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autograder import submission
from autograder.assignment import COURSE, UnknownAssignment
from autograder.report import clean
from autograder.roster import Roster, RosterError, read_sheet
from autograder.submission import Found
from ichimon.notebook import NotebookError

REPLACED = COURSE / "_build" / "replaced"
ASKED = ("found", "student")  # the columns of the table that asks


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
    paths: Iterable[Path], roster: Roster, into: Path, decided: Mapping[str, str] | None = None, kept: Path = REPLACED
) -> Collected:
    """Put every notebook below `paths` into its student's folder.

    `decided` says for some labels (a folder's name or a file's stem) whose they are: a person looked, so it goes before
    the roster; "" means that the file is to be left alone.
    """
    found, troubles = submission.find(paths)
    result = Collected(troubles=troubles)
    works: defaultdict[tuple[str, str], list[Found]] = defaultdict(list)
    for item in found:
        try:
            assignment = submission.assignment_of(item)
        except (NotebookError, UnknownAssignment) as error:
            result.troubles.append(f"“{clean(item.student, 80)}”: {error}")
            continue
        if item.student in (decided or {}):
            student = (decided or {})[item.student]
        else:
            student, why = roster.owner(item.student, assignment)
            if why:
                result.asked[item.student] = why
        if student:
            works[student, assignment].append(item)
    for (student, assignment), items in sorted(works.items()):
        notebooks = {hashlib.sha256(item.path.read_bytes()).hexdigest(): item for item in items}
        if len(notebooks) > 1:
            files = " and ".join(f"“{clean(item.student, 60)}”" for item in notebooks.values())
            result.troubles.append(
                f"{clean(student, 40)} has handed in {len(notebooks)} different notebooks for {assignment}, {files}: "
                "take away all but the one that counts."
            )
            continue
        ((sha, item),) = notebooks.items()
        _put(item.path, sha, into / student / assignment / f"{assignment}.ipynb", (student, assignment), result, kept)
        if "_LATE_" in item.student:
            result.late.append((student, assignment))
    return result


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


def _put(ours: Path, sha: str, target: Path, whose: tuple[str, str], result: Collected, kept: Path) -> None:
    try:
        before = hashlib.sha256(target.read_bytes()).hexdigest()
    except FileNotFoundError:
        before = ""
    if before == sha:
        result.as_before.append(whose)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if before:
        backup = kept.joinpath(*whose, f"{before[:16]}.ipynb")
        backup.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, backup)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(ours, partial)
    partial.replace(target)
    (result.replaced if before else result.new).append(whose)
