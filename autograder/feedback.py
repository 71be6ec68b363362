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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as quoted

import jinja2
from markupsafe import Markup

from autograder import assignment as assignments
from autograder import translation
from autograder.alike import pairs
from autograder.assignment import COURSE
from autograder.course import Course
from autograder.report import LONGEST_OUTPUT, STOPPED, ExerciseResult, Outcome, Report, TestResult, clean
from autograder.translation import Words
from ichimon.notebook import NotebookError

if TYPE_CHECKING:
    import pandas as pd

ENGLISH = Words()
HERE = Path(__file__).parent


def words_for(assignment: str) -> Words:
    """What the students of this course read about an assignment."""
    return _words(COURSE, assignment)


@functools.cache  # course.toml is read once, not for each of thousands of pages
def _words(root: Path, assignment: str) -> Words:
    return Course(root).words(assignment)


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
    verdict: str


@dataclass(frozen=True)
class Section:
    """One exercise as a student reads it. What all failing tests have in common is said once."""

    result: ExerciseResult
    claims: tuple[Claim, ...]
    mistakes: tuple[str, ...]  # the known mistakes that were recognised
    shared: str  # the message that all lost claims share, "" if each has its own
    advice: str  # one sentence for somebody who wants the missing points, "" where none are missing


def _advice(claims: Sequence[Claim], mistakes: Sequence[str], words: Words) -> str:
    lost = [claim for claim in claims if claim.lost]
    if not lost:
        return "" if claims else words("Nothing of it was tested.")
    if mistakes:
        return mistakes[0]
    outcomes = {claim.lost.outcome for claim in lost if claim.lost}
    if outcomes == {Outcome.UNFINISHED}:
        return words("It is not written yet.")
    if outcomes == {Outcome.RAISED}:
        return words("Your code stops with an error: its message stands below.")
    if len(outcomes) == 1 and Outcome.FAILED not in outcomes:
        return words("It ended like this: {outcome}.", outcome=words(outcomes.pop().value))
    return words("This does not hold yet: {claim}.", claim=lost[0].text)


def _verdict(tests: Sequence[TestResult], words: Words) -> str:
    lost, passed = next((test for test in tests if not test.passed), None), sum(test.passed for test in tests)
    outcome = words((lost.outcome if lost else Outcome.PASSED).value)
    if lost and passed:
        return words("{outcome}, {passed} of {cases} cases pass", outcome=outcome, passed=passed, cases=len(tests))
    return outcome


def section(result: ExerciseResult, words: Words = ENGLISH) -> Section:
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
            verdict=_verdict(tests, words),
        )
        for text, tests in by_claim.items()
    )
    lost = [claim.lost for claim in claims if claim.lost]
    messages = {test.message for test in lost}
    mistakes = tuple(dict.fromkeys(test.mistake for test in result.tests if test.mistake))
    return Section(
        result=result,
        claims=claims,
        mistakes=mistakes,
        shared=messages.pop() if len(lost) > 1 and len(messages) == 1 else "",
        advice=_advice(claims, mistakes, words),
    )


def plain(result: ExerciseResult, words: Words = ENGLISH) -> str:
    """One exercise as text for nbgrader's pages, which print it as it is and break no line."""
    return "".join(_wrapped(line) for line in _told(result, clean, words).splitlines(keepends=True))


def _wrapped(line: str) -> str:
    if len(line) <= 90:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, 90, subsequent_indent=indent) + "\n"


def comment(result: ExerciseResult, words: Words = ENGLISH) -> str:
    """The same as Markdown: what the student's code had a say in stands in backticks, so that it stays text."""

    def quote(message: str) -> str:
        return f"`{' '.join(clean(message).replace('`', chr(39)).split())}`"

    return _told(result, quote, words)


def _told(result: ExerciseResult, quote: Callable[[str], str], words: Words) -> str:
    # each further line of a message has a bar, so that none of them passes for one of ours
    told = section(result, words)
    got, most = number(result.points), number(result.max_points)
    lines = [words("{got} of {most} points", got=got, most=most), ""]
    lines += [words("- What seems to have happened: {mistake}", mistake=mistake) for mistake in told.mistakes]
    lines += ["- " + quote(told.shared).replace("\n", "\n  | ")] if told.shared else []
    lines += [] if told.claims else [words("- Nothing of it was tested.")]
    for claim in told.claims:
        lines.append(f"- {'✓' if claim.lost is None else '✗'} {claim.text}: {claim.verdict}")
        if claim.lost:
            own = claim.lost.message and not told.shared
            lines += [f"    - {claim.hint}"] if claim.hint else []
            lines += ["    - " + quote(claim.lost.message).replace("\n", "\n      | ")] if own else []
    return "\n".join(lines) + "\n"


def page(report: Report, folder: Path | None = None) -> str:
    """A student's feedback, in the language of the course: one HTML file that needs no other.

    `folder` is where it will lie, if it will. Each exercise leads to the section of the book that explains it: at the
    address in course.toml, else in the built book if both lie below _build. Without either the section's name must do.
    """
    words = words_for(report.assignment)
    report = words.report(report)
    sections = [section(result, words) for result in report.exercises]
    reading = _reading(report.assignment, folder, words)
    return _template("feedback.html", words).render(report=report, sections=sections, reading=reading)


_course = functools.cache(Course)  # so that course.toml is not read again for each student


def _reading(assignment: str, folder: Path | None, words: Words) -> dict[str, tuple[str, str]]:
    """exercise -> the heading in the book that explains it, and its address or ""."""
    try:
        cells = assignments.load(assignment).cells
        course = _course(assignments.COURSE)
        book = course.settings.book.rstrip("/")
    except (assignments.UnknownAssignment, NotebookError):
        return {}
    build = assignments.COURSE / "_build"
    if not book and folder is not None and folder.resolve().is_relative_to(build) and (build / "html/book").is_dir():
        book = quoted(Path(os.path.relpath(build / "html", folder.resolve())).as_posix())
    return {
        cell.exercise: (words(cell.section), f"{book}/{course.page(assignment, cell.section)}" if book else "")
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
        assignment=(assignments or [""])[0],
        reports=graded,
        alike=pairs(graded),
        cells=CELLS,
        **(_arithmetic(graded) if graded else {}),
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
    endings = pd.DataFrame(_endings(reports), columns=["student", "exercise", "ending", "points", "seconds"])
    ended = endings[endings.exercise != CELLS]
    took = endings.groupby("exercise")["seconds"].agg(["median", "max", "count"])
    sums = endings.groupby("student")["seconds"].sum(min_count=1).dropna().sort_values(ascending=False, kind="stable")
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
        "hardest": _hardest([(*name, int(passed.sum())) for name, passed in claims.items()], len(reports)),
        "mistakes": [
            (exercise, mistake, int(count))
            for (exercise, mistake), count in mistakes.sort_values(ascending=False, kind="stable").items()
        ],
        "outcomes": [(o.value, *outcomes.loc[o.value].tolist()) for o in Outcome if o.value in outcomes.index],
        "ways": [way for way in (*Outcome, NOT_RUN) if way in set(ended.ending)],
        "endings": {name: ended[ended.exercise == name].ending.value_counts().to_dict() for name in max_points},
        "took": {
            name: (took.loc[name, "median"], took.loc[name, "max"])
            for name in (*max_points, CELLS)
            if name in took.index and took.loc[name, "count"]
        },
        "slowest": [(student, float(seconds)) for student, seconds in sums.head(10).items()],
        "seconds": float(sums.sum()),
        "stopped": [row for report in reports for row in _stopped(report)],
        "looks": [row for report in reports for row in _looks(report)],
    }


def _hardest(claims: list[tuple[str, str, int]], students: int) -> list[tuple[str, str, int]]:
    """The claims that the fewest submissions pass, the fewest first."""
    return sorted((claim for claim in claims if claim[2] < students), key=lambda claim: claim[2])[:5]


CELLS = "(the cells)"  # beside the names of exercises: no name in Python looks like it
NOT_RUN = "not tested"


def _endings(reports: Iterable[Report]) -> Iterator[tuple[str, str, str, float, float | None]]:
    """How each exercise of each submission ended, and how long that took, by the clock of the trusted side."""
    for report in reports:
        for result in report.exercises:
            seconds = report.seconds.get(result.exercise)
            yield report.student, result.exercise, result.ending or NOT_RUN, result.points, seconds
        if "" in report.seconds:
            yield report.student, CELLS, "", 0.0, report.seconds[""]


def _stopped(report: Report) -> Iterator[tuple[str, str, str]]:
    """What of a submission ran into a limit: whose, where, and how."""
    for run in report.cells:
        if run.error.startswith("stopped: "):
            yield report.student, run.cell, run.error.removeprefix("stopped: ")
    for result in report.exercises:
        lost = next((test for test in result.tests if test.outcome in STOPPED), None)
        if lost:
            yield report.student, result.exercise, f"{lost.outcome.value}: {lost.message}"


def _looks(report: Report) -> Iterator[tuple[str, str]]:
    """What only a person can decide."""
    yield from ((report.student, notice) for notice in report.notices if notice.endswith("a person should look."))
    for result in report.exercises:
        crashed = [test.claim for test in result.tests if test.outcome is Outcome.CRASHED]
        if crashed:
            yield report.student, f"{result.exercise}: {Outcome.CRASHED.value} ({crashed[0]})"


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
    outcomes = [["student", "exercise", "outcome", "points", "seconds"]]
    outcomes += [
        [
            student,
            exercise,
            ending,
            *(["", seconds] if exercise == CELLS else [points, "" if seconds is None else seconds]),
        ]
        for student, exercise, ending, points, seconds in _endings(reports)
    ]
    sheets: dict[str, list[list[Any]]] = {"marks.csv": marks, "claims.csv": claims, "outcomes.csv": outcomes}
    return {name: spreadsheet(rows) for name, rows in sheets.items()}


def spreadsheet(rows: Iterable[Iterable[object]]) -> str:
    """No cell begins like a formula: a spreadsheet would calculate what a student wrote."""
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        cells = (clean(cell) if isinstance(cell, str) else cell for cell in row)
        writer.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r")) else cell for cell in cells]
        )
    return text.getvalue()


def write(reports: Collection[Report], folder: Path) -> dict[str, list[Path]]:
    """Write every student's page into feedback/, as nbgrader does, and for staff, into a folder without names, the
    tables as CSV and, last, the class report."""
    written: dict[str, list[Path]] = {}
    for report in reports:
        pages = written.setdefault(report.assignment, [])
        own = folder / "feedback" / _folder_name(report.student) / report.assignment
        pages.append(own / f"{report.assignment}.html")
        pages[-1].parent.mkdir(parents=True, exist_ok=True)
        pages[-1].write_text(page(report, pages[-1].parent), encoding="utf-8")
    for assignment, pages in written.items():
        graded = [report for report in reports if report.assignment == assignment]
        for_staff = folder / "report" / assignment
        for_staff.mkdir(parents=True, exist_ok=True)
        for name, text in tables(graded).items():
            (for_staff / name).write_text(text, encoding="utf-8")
        pages.append(for_staff / "class-report.html")
        pages[-1].write_text(class_report(graded), encoding="utf-8")
    return written


def _folder_name(student: str) -> str:
    """A student's name as the name of a folder: as it is where it is harmless, else with a hash that keeps it apart."""
    harmless = re.sub(r"[^\w.@+-]", "_", student)[:80].lstrip(".")
    if harmless == student:
        return harmless
    return f"{harmless}-{hashlib.sha256(student.encode(errors='replace')).hexdigest()[:8]}"


def _printable(value: object) -> object:
    """What Jinja prints of a value: escaping comes after this."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value, LONGEST_OUTPUT)


def _template(name: str, words: Words = ENGLISH) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda file: translation.template((HERE / file).read_text(encoding="utf-8"), words)
        ),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clean": clean, "number": number}
    environment.globals["words"] = words
    return environment.get_template(name)
