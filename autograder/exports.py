"""nbgrader's export plugins for the platforms that marks go back to: the file that the platform gave, with marks in it.

    nbgrader export --exporter=autograder.exports.CanvasExport --CanvasExport.roster=gradebook.csv --to=marks.csv
    nbgrader export --exporter=autograder.exports.MoodleExport --MoodleExport.roster=worksheet.csv \\
        --MoodleExport.assignment=02-self-attention --to=marks.csv
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters.base import NbGraderException
from nbgrader.plugins.export import ExportPlugin
from traitlets import Bool, List, Unicode

from autograder import roster as rosters
from autograder.feedback import number, spreadsheet
from autograder.roster import Kind, Roster, RosterError

CANVAS_READS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")


class ExportError(NbGraderException):
    """Why there is no file, in a sentence."""


class _PlatformExport(ExportPlugin):
    """What both platforms have in common: a roster in, the same rows out."""

    kind: ClassVar[Kind]

    roster = Unicode("", help="the file that the platform exports; it says who is who").tag(config=True)
    column = Unicode("", help="the roster's column with the names that students have here").tag(config=True)

    notes: List[tuple[str, str, str]] = List(help="what staff should look at: (student, assignment, why)")

    def who(self) -> Roster:
        if not self.roster:
            raise ExportError(f"Say which file says who is who: --{type(self).__name__}.roster=FILE.")
        try:
            found = rosters.read(Path(self.roster), self.column)
        except RosterError as error:
            raise ExportError(str(error)) from error
        if found.sheet.kind != self.kind:
            raise ExportError(f"{self.roster} is not a file of {self.kind.capitalize()}'s.")
        return found

    def wanted(self, gradebook: Gradebook) -> list[str]:
        """The assignments to export: those that were asked for, else all that somebody handed in."""
        known = [assignment.name for assignment in gradebook.assignments]
        if unknown := sorted(set(self.assignment) - set(known)):
            raise ExportError(f"The gradebook has no assignment {unknown[0]!r}; it has {', '.join(known)}.")
        return list(self.assignment) or [name for name in known if gradebook.assignment_submissions(name)]

    def marks(self, gradebook: Gradebook, assignment: str, students: Iterable[str]) -> dict[str, str]:
        """student -> mark, after late penalties. Who handed in nothing has none: that is the platform's to judge."""
        found = {}
        for student in students:
            try:
                submission = gradebook.find_submission(assignment, student)
            except MissingEntry:
                continue
            if submission.needs_manual_grade:
                self.notes.append((student, assignment, "a person has yet to mark something in it"))
            found[student] = number(max(0.0, submission.score - (submission.late_submission_penalty or 0.0)))
        return found

    def note_strangers(self, gradebook: Gradebook, students: Iterable[str]) -> None:
        """Nobody's mark is lost without a word."""
        for student in sorted({each.id for each in gradebook.students} - set(students)):
            self.notes.append((student, "", "has marks and is not in the roster"))

    def write(self, columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
        to = Path(self.to or f"{self.kind}-marks.csv")
        partial = to.with_name(f".{to.name}.{os.getpid()}")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(to)
        self.log.info("The marks are in %s.", to)
        beside = to.with_name(f"{to.stem}-look-at.csv")  # and not in the log, which others may read
        beside.unlink(missing_ok=True)
        if self.notes:
            beside.write_text(
                spreadsheet([("student", "assignment", "why"), *self.notes]), encoding="utf-8", newline=""
            )
            self.log.warning("Look at %s before you hand them on (lines: %d).", beside, len(self.notes))


class CanvasExport(_PlatformExport):
    """Canvas's own gradebook file with a column for each assignment.

    A column that Canvas calls `02-self-attention (12345)` is filled in; where there is none, Canvas offers to create
    the assignment. Columns that are not ours are left out: what is not in the file Canvas leaves as it is.
    """

    kind = "canvas"

    def export(self, gradebook: Gradebook) -> None:
        who = self.who()
        sheet = who.sheet
        rows = [dict(row) for row in sheet.rows]
        places = [place for place, row in enumerate(sheet.rows) if any(row is person for person in sheet.people)]
        owners = {place: who.students[i] for i, place in enumerate(places)}
        columns = [column for column in CANVAS_READS if column in sheet.columns]
        for assignment in self.wanted(gradebook):
            named = re.compile(rf"{re.escape(assignment)}( \(\d+\))?")
            column = next((each for each in sheet.columns if named.fullmatch(each)), assignment)
            columns.append(column)
            marks = self.marks(gradebook, assignment, owners.values())
            for place, row in enumerate(rows):
                row[column] = marks.get(owners.get(place, ""), "")
            possible = next((row for row in rows if row["Student"].strip() == "Points Possible"), None)
            if possible is None:
                possible = dict.fromkeys(sheet.columns, "") | {"Student": "    Points Possible"}
                rows.insert(0, possible)
                owners = {place + 1: owner for place, owner in owners.items()}
            possible[column] = number(gradebook.find_assignment(assignment).max_score)
        self.note_strangers(gradebook, owners.values())
        self.write(columns, rows)


class MoodleExport(_PlatformExport):
    """Moodle's own grading worksheet of one assignment with the grades filled in."""

    kind = "moodle"

    scale = Bool(False, help="turn marks into shares of the maximum grade that the worksheet names").tag(config=True)

    def export(self, gradebook: Gradebook) -> None:
        who = self.who()
        sheet = who.sheet
        wanted = self.wanted(gradebook)
        if len(wanted) != 1:
            raise ExportError("Moodle's worksheet is about one assignment: name it with --MoodleExport.assignment.")
        (assignment,) = wanted
        possible = gradebook.find_assignment(assignment).max_score
        marks = self.marks(gradebook, assignment, who.students.values())
        rows = [dict(row) for row in sheet.rows]
        for place, row in enumerate(rows):
            if (mark := marks.get(who.students[place])) is None:
                continue
            most = _grade(row.get("Maximum Grade") or row.get("Maximum grade") or "")
            if most is not None and most != possible and not self.scale:
                raise ExportError(
                    f"{assignment} has {number(possible)} points, and in Moodle the maximum grade is {number(most)}: "
                    "make it the same there, or add --MoodleExport.scale=True."
                )
            share = most / possible if self.scale and most is not None and possible else 1
            row["Grade"] = number(float(mark) * share)
        self.note_strangers(gradebook, who.students.values())
        self.write(sheet.columns, rows)


def _grade(text: str) -> float | None:
    """A number as Moodle writes it, with a point or a comma; None where there is none."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None
