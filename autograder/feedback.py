"""What people read about graded work: a page for a student, a report on a class, and the text that goes to nbgrader.

Everything in a Report may have been chosen by a student: names of files, messages, what was printed. Every string is
cleaned before it is printed and escaped by Jinja, and no page holds a script.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from autograder import assignment as assignments
from autograder.alike import pairs
from autograder.course import Course
from autograder.report import LONGEST_OUTPUT, ExerciseResult, Outcome, Report, TestResult, clean
from ichimon.notebook import NotebookError

if TYPE_CHECKING:
    import pandas as pd


def number(points: float) -> str:
    """Points as people write them: 3, 2.5, 1.67."""
    return f"{points:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Claim:
    """The hidden tests that make the same claim (the cases of a parametrised test), as one line."""

    text: str
    hint: str
    passed: int
    cases: int
    lost: TestResult | None  # the first that did not pass: its outcome, message and mistake stand for all

    @property
    def verdict(self) -> str:
        if self.lost is None:
            return "passed"
        some = f", {self.passed} of {self.cases} cases pass" if self.passed else ""
        return f"{self.lost.outcome.value}{some}"


@dataclass(frozen=True)
class Section:
    """One exercise as a student reads it. What all failing tests have in common is said once."""

    result: ExerciseResult
    claims: tuple[Claim, ...]
    mistakes: tuple[str, ...]  # the known mistakes that were recognised
    shared: str  # the message that all lost claims share, "" if each has its own

    @property
    def advice(self) -> str:
        """One sentence for somebody who wants the missing points, "" where none are missing."""
        lost = [claim for claim in self.claims if claim.lost]
        if not lost:
            return "" if self.claims else "Nothing of it was tested."
        if self.mistakes:
            return self.mistakes[0]
        outcomes = {claim.lost.outcome for claim in lost if claim.lost}
        if outcomes == {Outcome.UNFINISHED}:
            return "It is not written yet."
        if outcomes == {Outcome.RAISED}:
            return "Your code stops with an error: its message stands below."
        if len(outcomes) == 1 and Outcome.FAILED not in outcomes:
            return f"It ended like this: {outcomes.pop().value}."
        return f"This does not hold yet: {lost[0].text}."


def section(result: ExerciseResult) -> Section:
    by_claim: dict[str, list[TestResult]] = {}
    for test in result.tests:
        by_claim.setdefault(test.claim, []).append(test)
    claims = tuple(
        Claim(
            text=text,
            hint=tests[0].hint,
            passed=sum(test.passed for test in tests),
            cases=len(tests),
            lost=next((test for test in tests if not test.passed), None),
        )
        for text, tests in by_claim.items()
    )
    lost = [claim.lost for claim in claims if claim.lost]
    messages = {test.message for test in lost}
    return Section(
        result=result,
        claims=claims,
        mistakes=tuple(dict.fromkeys(test.mistake for test in result.tests if test.mistake)),
        shared=messages.pop() if len(lost) > 1 and len(messages) == 1 else "",
    )


def plain(result: ExerciseResult) -> str:
    """One exercise as text for nbgrader's pages, which print it as it is and break no line."""
    return "".join(_wrapped(line) for line in _told(result, clean).splitlines(keepends=True))


def _wrapped(line: str) -> str:
    if len(line) <= 90:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, 90, subsequent_indent=indent) + "\n"


def comment(result: ExerciseResult) -> str:
    """The same as Markdown: what the student's code had a say in stands in backticks, so that it stays text."""

    def quote(message: str) -> str:
        return f"`{' '.join(clean(message).replace('`', chr(39)).split())}`"

    return _told(result, quote)


def _told(result: ExerciseResult, quote: Callable[[str], str]) -> str:
    # each further line of a message has a bar, so that none of them passes for one of ours
    told = section(result)
    lines = [f"{number(result.points)} of {number(result.max_points)} points", ""]
    lines += [f"- What seems to have happened: {mistake}" for mistake in told.mistakes]
    lines += ["- " + quote(told.shared).replace("\n", "\n  | ")] if told.shared else []
    lines += [] if told.claims else ["- Nothing of it was tested."]
    for claim in told.claims:
        lines.append(f"- {'✓' if claim.lost is None else '✗'} {claim.text}: {claim.verdict}")
        if claim.lost:
            own = claim.lost.message and not told.shared
            lines += [f"    - {claim.hint}"] if claim.hint else []
            lines += ["    - " + quote(claim.lost.message).replace("\n", "\n      | ")] if own else []
    return "\n".join(lines) + "\n"


def page(report: Report, folder: Path | None = None) -> str:
    """A student's feedback: one HTML file that needs no other. `folder` is where it will lie, if it will.

    Each exercise leads to the section of the book that explains it: at the address in course.toml, else in the built
    book if both lie below _build. Without either the section's name must do.
    """
    sections = [section(result) for result in report.exercises]
    return _template("feedback.html").render(
        report=report, sections=sections, reading=_reading(report.assignment, folder)
    )


_course = functools.cache(Course)  # so that course.toml is not read again for each student


def _reading(assignment: str, folder: Path | None) -> dict[str, tuple[str, str]]:
    """exercise -> the heading in the book that explains it, and its address or ""."""
    try:
        cells = assignments.load(assignment).cells
        course = _course(assignments.COURSE)
        book = course.settings.book.rstrip("/")
    except (assignments.UnknownAssignment, NotebookError):
        return {}
    build = assignments.COURSE / "_build"
    if not book and folder is not None and folder.resolve().is_relative_to(build) and (build / "html/book").is_dir():
        book = quote(Path(os.path.relpath(build / "html", folder.resolve())).as_posix())
    return {
        cell.exercise: (cell.section, f"{book}/{course.page(assignment, cell.section)}" if book else "")
        for cell in cells
        if cell.section
    }


def class_report(reports: Iterable[Report]) -> str:
    """A class's marks on one assignment: one HTML file that needs no other."""
    graded = sorted(reports, key=lambda report: report.student)
    assignments = sorted({report.assignment for report in graded})
    if len(assignments) > 1:
        raise ValueError(
            f"A class report is about one assignment, these are results of {', '.join(assignments)}: ask for each."
        )
    return _template("class_report.html").render(
        assignment=(assignments or [""])[0], reports=graded, **(_arithmetic(graded) if graded else {})
    )


def _arithmetic(reports: list[Report]) -> dict[str, Any]:
    """The tables of the class report. A submission without a test's result (an unreadable file) has not passed it."""
    import pandas as pd  # half a second, which a student's page need not wait for

    best = max(reports, key=lambda report: len(report.exercises))
    max_points = {result.exercise: result.max_points for result in best.exercises}
    marks = pd.DataFrame(
        [{result.exercise: result.points for result in report.exercises} for report in reports],
        columns=list(max_points),
        dtype=float,
    ).fillna(0.0)
    totals = marks.sum(axis=1)
    percent = 100 * totals / max(sum(max_points.values()), 1e-9)
    tests = pd.DataFrame(
        [
            (report.student, result.exercise, test.claim, test.passed, test.outcome.value, test.mistake)
            for report in reports
            for result in report.exercises
            for test in result.tests
        ],
        columns=["student", "exercise", "claim", "passed", "outcome", "mistake"],
    )
    tenths = (percent // 10).clip(0, 9).astype(int).value_counts()
    claimed = tests.groupby(["student", "exercise", "claim"], sort=False)["passed"].all()
    claims = claimed.unstack("student", fill_value=False).T.reindex(
        [report.student for report in reports], fill_value=False
    )
    mistakes = tests[tests.mistake != ""].groupby(["exercise", "mistake"])["student"].nunique()
    outcomes = tests.groupby("outcome")["student"].agg(["size", "nunique"])
    return {
        "max_points": max_points,
        "rows": list(zip(reports, marks.to_numpy().tolist(), totals, strict=True)),
        "quartiles": percent.quantile([0.25, 0.5, 0.75]).tolist(),
        "mean": percent.mean(),
        "distribution": [
            (f"{10 * tenth}–{10 * tenth + (10 if tenth == 9 else 9)} %", int(tenths.get(tenth, 0)))
            for tenth in range(10)
        ],
        "exercises": [
            (name, marks[name].mean(), points, int((marks[name] >= points).sum()), int((marks[name] == 0).sum()))
            for name, points in max_points.items()
        ],
        "claims": [(*name, int(passed.sum()), _tells_apart(claims, passed)) for name, passed in claims.items()],
        "alike": pairs(reports),
        "mistakes": [
            (exercise, mistake, int(count))
            for (exercise, mistake), count in mistakes.sort_values(ascending=False, kind="stable").items()
        ],
        "outcomes": [(o.value, *outcomes.loc[o.value].tolist()) for o in Outcome if o.value in outcomes.index],
    }


def _tells_apart(claims: pd.DataFrame, passed: pd.Series) -> float | None:
    """How many percentage points more of the other claims hold for those who pass this one; None if all or none do."""
    if passed.all() or not passed.any() or claims.shape[1] < 2:
        return None
    others = 100 * (claims.sum(axis=1) - passed) / (claims.shape[1] - 1)
    return float(others[passed].mean() - others[~passed].mean())


def tables(reports: list[Report]) -> dict[str, str]:
    """The class report's numbers as CSV by file name, for a spreadsheet: marks, and each claim student by student."""
    reports = sorted(reports, key=lambda report: report.student)
    sums = _arithmetic(reports)
    names = list(sums["max_points"])
    marks = [
        ["student", *names, "total"],
        ["points possible", *sums["max_points"].values(), sum(sums["max_points"].values())],
    ]
    marks += [[report.student, *points, total] for report, points, total in sums["rows"]]
    claims = [["student", "exercise", "claim", "weight", "outcome", "mistake"]] + [
        [report.student, result.exercise, test.claim, test.weight, test.outcome.value, test.mistake]
        for report in reports
        for result in report.exercises
        for test in result.tests
    ]
    return {"marks.csv": _csv(marks), "claims.csv": _csv(claims)}


def _csv(rows: Iterable[Iterable[object]]) -> str:
    """No cell begins like a formula: a spreadsheet would calculate what a student wrote."""
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        cells = (clean(cell) if isinstance(cell, str) else cell for cell in row)
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell for cell in cells])
    return text.getvalue()


def write(reports: Collection[Report], folder: Path) -> dict[str, list[Path]]:
    """Write every student's page, the tables as CSV and, last, the class report, into a folder for each assignment."""
    written: dict[str, list[Path]] = {}
    for report in reports:
        pages = written.setdefault(report.assignment, [])
        pages.append(folder / report.assignment / f"{_file_name(report.student)}.html")
        pages[-1].parent.mkdir(parents=True, exist_ok=True)
        pages[-1].write_text(page(report, pages[-1].parent), encoding="utf-8")
    for assignment, pages in written.items():
        graded = [report for report in reports if report.assignment == assignment]
        for name, text in tables(graded).items():
            (folder / assignment / name).write_text(text, encoding="utf-8")
        pages.append(folder / assignment / "class-report.html")
        pages[-1].write_text(class_report(graded), encoding="utf-8")
    return written


def _file_name(student: str) -> str:
    """A student's name as the name of a file: as it is where it is harmless, else with a hash that keeps it apart."""
    harmless = re.sub(r"[^\w.@+-]", "_", student)[:80].lstrip(".")
    if harmless == student and harmless != "class-report":
        return harmless
    return f"{harmless}-{hashlib.sha256(student.encode(errors='replace')).hexdigest()[:8]}"


def _printable(value: object) -> object:
    """What Jinja prints of a value: escaping comes after this."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value, LONGEST_OUTPUT)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clean": clean, "number": number}
    return environment.get_template(name)
