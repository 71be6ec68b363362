"""The command line: parses, calls, prints. Run `autograder --help`."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

for _library in ("OMP", "OPENBLAS", "MKL"):  # before torch is imported: one thread, or forked workers could hang
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from autograder.report import ExerciseResult, Report, clean

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the layout of the text below is meant
    pretty_exceptions_enable=False,
    help="""Grade Ichimon's notebooks with hidden tests, in a sandbox.

    \b
    autograder grade submitted          a class in nbgrader's layout, a folder of notebooks, or one file
    autograder show                     the marks so far;  autograder show STUDENT  every claim of one student
    autograder feedback                 a page for each student and a report of the class
    autograder verify                   for authors: do the hidden tests deserve trust?
    autograder doctor                   can this machine lock submissions in?

    Exit codes: 0 all is graded · 1 some file could not be graded, or a check failed · 2 the command or its input is
    wrong.
    """,
)
out = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 180)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ResultsFile = Annotated[
    Path | None, typer.Option("--results", help="Where verdicts are kept (default: _build/results.sqlite).")
]


@app.command()
def grade(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="A notebook, a folder <student>/<assignment>/*.ipynb, or *.ipynb files."
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that grade at the same time.")] = os.cpu_count() or 1,
    results: ResultsFile = None,
    assignment: Annotated[str, typer.Option(help="For files that do not say which assignment they are.")] = "",
    gradebook: Annotated[
        str,
        typer.Option(
            help="Also write the marks into this nbgrader gradebook (a database URL, or `auto` for the course's own)."
        ),
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for each student as it is graded.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Reports as JSON lines instead of a table.")] = False,
) -> None:
    """Grade what has not been graded yet, and print the marks with a reason for each missing point."""
    from autograder import assignment as assignments
    from autograder import grading, submission
    from autograder.results import Results

    started = time.monotonic()
    if assignment:
        assignments.load(assignment)  # an unknown one is told once, not for each file
    found, without = submission.find(paths)
    for sentence in without:
        err.print(escape(sentence))
    if not found:
        raise typer.Exit(2)
    with (
        Results(results) as stored,
        Progress(
            TextColumn("grading"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        ) as progress,
    ):
        bar = progress.add_task("grading", total=len(found))
        known = 0

        def tell(report: Report, fresh: bool) -> None:
            nonlocal known
            known += not fresh
            progress.advance(bar)
            if verbose:
                err.print(f"{escape(report.student)}  {report.points:g}/{report.max_points:g}  {escape(report.reason)}")

        reports, ungraded = grading.grade_class(found, stored, workers, assignment, tell)
    if json:
        import msgspec

        for report in reports:
            points = {"points": report.points, "max_points": report.max_points}
            print(msgspec.json.encode({**msgspec.to_builtins(report), **points}).decode())
    else:
        print_marks(reports)
    for item in ungraded:
        student = " ".join(clean(item.found.student, 40).split())
        err.print(f"[red]not graded[/red]  {escape(student)}: {escape(item.reason)}")
    if gradebook:
        from autograder import gradebook as gradebooks

        # who handed in something that is no notebook gets 0 and the sentence; what we failed to grade gets nothing
        empty = [
            Report(item.found.student, item.unreadable, "", (), (item.reason,)) for item in ungraded if item.unreadable
        ]
        files = {item.student: item.path for item in found}
        gradebooks.sync([*reports, *empty], "" if gradebook == "auto" else gradebook, files=files)
    seconds = time.monotonic() - started
    again = f", {known} of them known from before" if known else ""
    err.print(f"{len(reports)} submissions in {seconds:.1f} s{again}; {len(ungraded)} could not be graded.")
    raise typer.Exit(1 if ungraded or without else 0)


@app.command()
def show(
    student: Annotated[str, typer.Argument(help="One student; without it, the table of all.")] = "",
    results: ResultsFile = None,
    assignment: Annotated[str, typer.Option(help="Only this assignment.")] = "",
) -> None:
    """Print the marks so far, or everything about one student's."""
    reports = _reports(results, assignment)
    if not student:
        print_marks(reports)
        return
    chosen = [report for report in reports if report.student == student]
    if not chosen:
        _refuse(
            f"No results for {student!r}. There are results for: {', '.join(report.student for report in reports)}."
        )
    for report in chosen:
        print_report(report)


@app.command()
def feedback(
    results: ResultsFile = None,
    output: Annotated[Path, typer.Option(help="The folder for the pages.")] = Path("_build/feedback"),
    assignment: Annotated[str, typer.Option(help="Only this assignment.")] = "",
) -> None:
    """Write a page for each student and a report of the class."""
    from autograder import feedback as pages

    for name, written in pages.write(_reports(results, assignment), output).items():
        out.print(f"{name}: the class report is {written[-1]}, a student's page is {written[0]}", soft_wrap=True)


@app.command()
def verify(
    chapter: Annotated[str, typer.Argument(help="Such as 02-self-attention; without it, every chapter.")] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Judge every mutant afresh, also those known from before.")
    ] = False,
) -> None:
    """The gates: starter 0, reference and alternatives full, each known mistake caught by an assertion, mutants
    caught."""
    from autograder.authoring import verify as gates

    raise typer.Exit(gates.main([chapter] if chapter else None, afresh=every))


@app.command()
def doctor() -> None:
    """Try every way out of the jail, and say in words which layers hold on this machine."""
    from autograder.sandbox import jail as jails
    from autograder.sandbox.selftest import self_test

    out.print(f"bubblewrap: {jails.bubblewrap()}")
    with jails.Jail() as jail:
        checks = self_test(jail)
    for check in checks:
        out.print(
            f"[green]✓[/green] {check.claim}" if check.holds else f"[red]✗[/red] {check.claim}: {escape(check.seen)}",
            soft_wrap=True,
        )
    if not all(check.holds for check in checks):
        _refuse("The jail has a hole, so nothing is graded here. See docs/security.md.", code=1)
    out.print("All layers hold: submissions can be graded here.")


def print_marks(reports: Sequence[Report]) -> None:
    """One table an assignment: a row a student, the points of each exercise, one line of reason."""
    for name in dict.fromkeys(report.assignment for report in reports):
        chosen = [report for report in reports if report.assignment == name]
        table = Table(title=name, title_justify="left", header_style="bold", pad_edge=False, box=None, padding=(0, 1))
        table.add_column("student", no_wrap=True)
        for exercise in chosen[0].exercises:
            table.add_column(f"{exercise.exercise}\n/{exercise.max_points:g}", justify="right", no_wrap=True)
        table.add_column(f"total\n/{chosen[0].max_points:g}", justify="right", style="bold", no_wrap=True)
        table.add_column("why")  # the only column that may wrap, so the only one that gives way; its cells do not wrap
        for report in chosen:
            marks = [f"{exercise.points:g}" for exercise in report.exercises]
            why = Text(report.reason, no_wrap=True, overflow="ellipsis")
            table.add_row(escape(report.student), *marks, f"{report.points:g}", why)
        out.print(table)


def print_report(report: Report) -> None:
    out.print(
        f"[bold]{escape(report.student)}[/bold] · {report.assignment} · "
        f"{report.points:g} of {report.max_points:g} points"
    )
    for notice in report.notices:
        out.print(f"  ! {escape(notice)}", soft_wrap=True)
    for cell in report.cells:
        if cell.error:
            out.print(f"  ! cell {escape(cell.cell.removeprefix('cell '))}: {escape(cell.error)}", soft_wrap=True)
    for exercise in report.exercises:
        _print_exercise(exercise)


def _print_exercise(exercise: ExerciseResult) -> None:
    out.print(f"\n[bold]{exercise.exercise}[/bold]  {exercise.points:g} of {exercise.max_points:g}")
    for test in exercise.tests:
        mark = "[green]✓[/green]" if test.passed else "[red]✗[/red]"
        out.print(
            f"  {mark} {escape(test.claim)}" + ("" if test.passed else f": {escape(test.message or test.outcome)}"),
            soft_wrap=True,
        )
        if not test.passed:
            out.print(f"    {escape(test.mistake or test.hint)}", soft_wrap=True)


def _reports(results: Path | None, assignment: str) -> list[Report]:
    from autograder.results import DEFAULT, Results

    path = results or DEFAULT
    reports: list[Report] = []
    if path.exists():  # else looking would leave an empty file
        with Results(path) as stored:
            reports = stored.reports(assignment)
    if not reports:
        _refuse(f"There are no results in {path} yet: run `autograder grade PATH` first.")
    return reports


def _refuse(sentence: str, code: int = 2) -> NoReturn:
    err.print(escape(sentence))
    raise typer.Exit(code)


def main() -> None:
    """The command; whatever is wrong with its input becomes one sentence and an exit code."""
    from ichimon.notebook import NotebookError

    expected: tuple[type[Exception], ...] = (NotebookError,)
    command: Callable[[], None] = app
    try:
        from autograder.assignment import UnknownAssignment
        from autograder.results import ResultsError
        from autograder.sandbox.jail import JailError

        expected = (NotebookError, UnknownAssignment, ResultsError, JailError)
        command()
    except expected as error:
        err.print(escape(str(error)))
        sys.exit(2)
    except (OSError, sqlite3.Error) as error:
        err.print(f"This could not be read or written: {escape(str(error))}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of control-C
            err.print("Stopped. What was graded is kept; run the same command again for the rest.")
        raise
