"""The command line: parses, calls, prints. Run `autograder --help`."""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec.json
import typer
from msgspec import to_builtins

for _library in ("OMP", "OPENBLAS", "MKL"):  # before torch is imported: one thread, or forked workers could hang
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from autograder.report import ExerciseResult, Outcome, Report, clean

if TYPE_CHECKING:  # torch and nbgrader, which only some commands need
    from autograder.gradebook import Held
    from autograder.grading import Ungraded
    from autograder.results import Key, Move, Results
    from autograder.submission import Found

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the layout of the text below is meant
    pretty_exceptions_enable=False,
    help="""Grade Ichimon's notebooks with hidden tests, in a sandbox.

    \b
    autograder grade submitted          a class in nbgrader's layout, a folder of notebooks, or one file
    autograder collect ZIP --roster CSV  what Canvas or Moodle gives, into that layout
    autograder show                     the marks so far;  autograder show STUDENT  every claim of one student
    autograder why STUDENT EXERCISE     the whole story of one mark, for an appeal
    autograder feedback                 a page for each student and a report of the class
    autograder copy-gradebook FROM TO   the gradebook into another database, such as PostgreSQL
    autograder instructor               nbgrader's pages in JupyterLab, with buttons that grade in the sandbox
    autograder verify                   for authors: do the hidden tests deserve trust?
    autograder translate LANGUAGE       for translators: locale/LANGUAGE, brought up to the sources
    autograder release FOLDER           what students get, proved to hold no answer
    autograder package PLATFORM …       one assignment for Gradescope or GitHub
    autograder doctor                   can this machine lock submissions in?

    Exit codes: 0 all is graded · 1 some file could not be graded, or a check failed · 2 the command or its input is
    wrong, or this machine cannot grade · 130 stopped with Ctrl-C: what was graded is kept.
    """,
)
out = Console(emoji=False, highlight=False, soft_wrap=False, width=None if sys.stdout and sys.stdout.isatty() else 180)
err = Console(emoji=False, stderr=True, highlight=False, soft_wrap=True)

ResultsFile = Annotated[
    Path | None, typer.Option("--results", help="Where verdicts are kept (default: _build/results.sqlite).")
]
GradebookUrl = Annotated[
    str,
    typer.Option(
        "--gradebook",
        metavar="URL",
        help="An nbgrader gradebook: the URL of its database, or `auto` for the course's own.",
    ),
]
# How a submission lost points that another attempt might give it.
CHANCES = {
    Outcome.TIMED_OUT: "timed out",
    Outcome.OUT_OF_MEMORY: "ran out of memory",
    Outcome.DIED: "lost a worker",
    Outcome.CRASHED: "met a test that could not judge them",
}


@app.command()
def grade(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A notebook, a folder <student>/<assignment>/*.ipynb, *.ipynb files, or a zip or tar of them.",
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that grade at the same time.")] = os.cpu_count() or 1,
    scheduler: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Grade on this Dask cluster, such as tcp://10.0.0.1:8786, not here.")
    ] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Grade what has a verdict too. Every verdict is kept; the latest counts.")
    ] = False,
    results: ResultsFile = None,
    assignment: Annotated[str, typer.Option(help="For files that do not say which assignment they are.")] = "",
    gradebook: GradebookUrl = "",
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Grade, list the marks that --gradebook would move, and write none into it."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for each student as it is graded.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="JSON instead of tables: a line a report, then the moves, then a summary.")
    ] = False,
) -> None:
    """Grade what has not been graded yet, and print the marks with a reason for each missing point.

    With --gradebook the marks also go to nbgrader, once those that move have been listed. A mark that a person set
    stands. --preview lists and does not write: the grading itself is real and kept, so the same command without it
    writes just what was listed.

    Exit codes: 0 all is graded · 1 some file could not be graded · 2 the command or its input is wrong, or this
    machine or cluster cannot grade · 130 stopped with Ctrl-C: what was graded is kept.
    """
    from autograder import assignment as assignments
    from autograder import grading, submission
    from autograder.results import Results

    started = time.monotonic()
    if preview and not gradebook:
        _refuse("--preview lists what --gradebook would move: name the gradebook too.")
    if assignment:
        assignments.load(assignment)  # an unknown one is told once, not for each file
    if gradebook:
        _held(gradebook)  # a wrong address is told now, not after an hour
    found, without = submission.find(paths)
    for sentence in without:
        err.print(escape(sentence))
    if not found:
        raise typer.Exit(2)
    with Results(results) as stored:
        watch = Watch(len(found), verbose, json)
        try:
            with watch.bar:
                reports, ungraded = grading.grade_class(
                    found, stored, workers, assignment, watch.tell, scheduler=scheduler, again=again
                )
        except KeyboardInterrupt:
            nothing = "; nothing was written to the gradebook" if gradebook else ""
            err.print(f"{watch.known + watch.graded} of {len(found)} are graded{nothing}.")
            raise
        if not json:
            print_marks(reports)
        for item in ungraded:
            err.print(f"[red]not graded[/red]  {escape(_student(item))}: {escape(item.reason)}")
        moved, told = _settle(stored, watch, reports, ungraded, found, gradebook, preview)
        seconds = time.monotonic() - started
        code = 1 if ungraded or without else 0
        if json:
            ended = {"moved": moved, "gradebook": bool(gradebook) and not preview, "exit_code": code}
            summary = watch.summary(ungraded, without, stored.added)
            _print_json({"summary": {**summary, **ended, "seconds": round(seconds, 3)}})
    for sentence in (*watch.skipped(stored.added), *told):
        err.print(escape(sentence))
    known = f", {watch.known} of them known from before (the same file, today's tests)" if watch.known else ""
    err.print(f"{len(reports)} submissions in {seconds:.1f} s{known}; {len(ungraded)} could not be graded.")
    raise typer.Exit(code)


def _settle(
    stored: Results,
    watch: Watch,
    reports: Iterable[Report],
    ungraded: Sequence[Ungraded],
    found: Sequence[Found],
    gradebook: str,
    preview: bool,
) -> tuple[int, list[str]]:
    """List the marks that moved, and only then write into the gradebook. Return how many, and what to say of it."""
    marks = stored.marks(watch.whose)
    moves = stored.moved(marks)
    if not gradebook:
        _print_moves(moves, watch.json)
        stored.announce(marks)
        return len(moves), []

    from autograder import gradebook as gradebooks

    # who handed in something that is no notebook gets 0 and the sentence; what we failed to grade gets nothing
    unreadable = [item for item in ungraded if item.unreadable]
    empty = [Report(item.found.student, item.unreadable, "", (), (item.reason,)) for item in unreadable]
    holds = _held(gradebook)
    moves = gradebooks.compared(itertools.chain(reports, empty), moves, holds)
    _print_moves(moves, watch.json)
    new = sum(key not in holds or holds[key].auto is None for key in marks)
    by_hand = sum(move.by_hand for move in moves)
    told = f"{new} new marks, {len(moves) - by_hand} moved" + (f", {by_hand} of a person kept" if by_hand else "")
    if preview:
        return len(moves), [
            f"Nothing was written to the gradebook ({told}). Without --preview the same command does it."
        ]
    files = {(student, assignment): stored.files(student, assignment)[0].path for student, assignment in watch.whose}
    files |= {(item.found.student, item.unreadable): item.found.path for item in unreadable}
    files |= {(item.student, item.assignment): item.path for item in found}  # as it is, whatever bytes its name holds
    more = gradebooks.sync(itertools.chain(reports, empty), _url(gradebook), files=files)
    stored.announce(marks)
    return len(moves), [*more, f"The gradebook is up to date ({told})."]


@app.command()
def show(
    student: Annotated[str, typer.Argument(help="One student; without it, the table of all.")] = "",
    results: ResultsFile = None,
    assignment: Annotated[str, typer.Option(help="Only this assignment.")] = "",
) -> None:
    """Print the marks so far, or everything about one student's."""
    reports = _reports(results, assignment, student)
    if not student:
        print_marks(reports)
        return
    for report in reports:
        print_report(report)


@app.command()
def why(
    student: Annotated[str, typer.Argument(help="Whose mark.")],
    exercise: Annotated[str, typer.Argument(help="Which one; without it, the list of them.")] = "",
    results: ResultsFile = None,
    assignment: Annotated[str, typer.Option(help="Where several assignments have an exercise of that name.")] = "",
    gradebook: GradebookUrl = "",
    tests: Annotated[bool, typer.Option("--tests", help="Show the source of the hidden tests too.")] = False,
) -> None:
    """Tell the whole story of one mark: the file, what ran, what it printed, what failed, and every earlier verdict.

    For staff: it may name what students must not read. What is kept with the verdict is enough for it, so it works
    when the file is gone.
    """
    from autograder import story
    from autograder.results import Results

    reports = _reports(results, assignment, student)
    chosen = [(r, result) for r in reports for result in r.exercises if not exercise or result.exercise == exercise]
    if not chosen:
        there = ", ".join(result.exercise for report in reports for result in report.exercises)
        _refuse(f"{student} has no verdict on {exercise!r}. There is one on: {there}.")
    if exercise and len(chosen) > 1:
        places = " or ".join(f"--assignment {report.assignment}" for report, _ in chosen)
        _refuse(f"{student} has {exercise} in several assignments: add {places}.")
    if not exercise:
        for report, result in chosen:
            told = (
                f"  {report.assignment} · {result.exercise}: {_of(result.points, result.max_points)}  {result.reason}"
            )
            out.print(escape(story.wrapped(told)))
        out.print(f"`autograder why {escape(student)} EXERCISE` tells the whole story of one.")
        return
    [(report, result)] = chosen
    held = _held(gradebook).get((student, report.assignment, exercise)) if gradebook else None
    title = f"{student} · {report.assignment} · {exercise}: {_of(result.points, result.max_points)} points"
    out.print(f"[bold]{escape(title)}[/bold]")
    with Results(results) as stored:
        for heading, lines in story.tell(stored, student, report.assignment, exercise, held, tests):
            out.print(f"\n[bold]{heading}[/bold]")
            for line in lines:
                out.print(escape(story.wrapped(f"  {line}")))


@app.command()
def collect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="What Canvas or Moodle gives, a zip or tar, or a folder.")
    ],
    roster: Annotated[
        Path,
        typer.Option(
            help="Who is who: Canvas's gradebook, Moodle's grading worksheet, or a CSV with a column `student`."
        ),
    ],
    column: Annotated[str, typer.Option(help="The roster's column with the names that students have here.")] = "",
    into: Annotated[Path, typer.Option(help="The folder in nbgrader's layout.")] = Path("submitted"),
    table: Annotated[
        Path, typer.Option(help="Where you are asked whose a file is, and answer: fill in its column `student`.")
    ] = Path("who-is-it.csv"),
    timestamps: Annotated[
        bool,
        typer.Option("--timestamps", help="Believe each timestamp.txt: only where no student can have written it."),
    ] = False,
) -> None:
    """Put what was handed in into submitted/<student>/<assignment>/, whatever the platform calls it.

    Nobody is guessed. What the roster does not know, or knows twice, goes into a table: fill it in (- for a file that
    is to be left alone), and run the same command again. A notebook that is replaced is kept in _build/replaced.

    Exit codes: 0 all is collected · 1 somebody has to be asked, or some file could not be read · 2 the command or its
    input is wrong.
    """
    from autograder import collect as collection
    from autograder import roster as rosters

    known = rosters.read(roster, column)
    decided = collection.decisions(table, known) if table.exists() else {}
    done = collection.collect(paths, known, into, decided, timestamps=timestamps)
    for trouble in done.troubles:
        err.print(escape(trouble))
    counts = {"new": done.new, "in the place of an earlier one": done.replaced, "as before": done.as_before}
    told = ", ".join(f"{len(works)} {what}" for what, works in counts.items() if works) or "nothing new"
    out.print(f"{into}: {told}." + (f" Canvas marks {len(done.late)} as late." if done.late else ""))
    if done.asked:
        collection.ask(done.asked, decided, table)
        for why in sorted(done.asked.values()):
            err.print(escape(f"{why}."))
        _refuse(f"Whose they are is for you to say: fill in {table}, and run the same command again.", 1)
    if done.troubles:
        raise typer.Exit(1)


@app.command("copy-gradebook")
def copy_gradebook(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A URL, such as sqlite:///gradebook.db.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="A URL, such as postgresql:///ichimon: an empty database.")],
) -> None:
    """Copy a gradebook into another database, all of it or nothing: from SQLite to PostgreSQL, say, or back."""
    from autograder import gradebook as gradebooks

    rows = gradebooks.copy_gradebook(source, to)
    out.print(f"{rows} rows are copied. Name the new gradebook in course.toml: docs/staff.md.")


@app.command()
def feedback(
    results: ResultsFile = None,
    output: Annotated[
        Path, typer.Option(help="The folder for feedback/<student>/<assignment>/ and report/<assignment>/.")
    ] = Path("_build"),
    assignment: Annotated[str, typer.Option(help="Only this assignment.")] = "",
) -> None:
    """Write a page for each student, and for staff a report of the class."""
    from autograder import feedback as pages

    for name, written in pages.write(_reports(results, assignment), output).items():
        pages_of = f"{len(written) - 1} students' pages are in {output / 'feedback'}"
        out.print(f"{name}: {pages_of}, the class report is {written[-1]}", soft_wrap=True)


@app.command()
def instructor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where on 127.0.0.1.")] = 8888,
) -> None:
    """nbgrader's pages in JupyterLab, for the course in this folder: grade with buttons, mark by hand, give feedback.

    Exit codes: 2 the port is taken or the folder is no course · 0 ended with Ctrl-C.
    """
    from autograder import formgrader

    for sentence in formgrader.prepare(port, Path.cwd()):
        err.print(escape(sentence))
    formgrader.start(port, Path.cwd())


@app.command()
def verify(
    chapter: Annotated[str, typer.Argument(help="Such as 02-self-attention; without it, every chapter.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Judge every mutant of every chapter, and afresh.")] = False,
) -> None:
    """The gates: starter 0, reference and alternatives full, each known mistake caught by an assertion, mutants
    caught."""
    from autograder.authoring import verify as gates

    raise typer.Exit(gates.main([chapter] if chapter else None, afresh=every))


@app.command()
def translate(
    language: Annotated[str, typer.Argument(help="A code such as ja, de or pt_BR.")],
    only: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE...]", help="Such as grader or 02-self-attention; without, all.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Change no file.")] = False,
) -> None:
    """Bring the .po files of a language up to the sources, and say how much of each is translated.

    Exit codes: 0 what is translated can be used · 1 a translation lost a formula, a link, a placeholder · 2 the command
    is wrong, or a file is no .po file.
    """
    from autograder.authoring import translate as translations

    changed = [] if check else translations.update(language, only=only or ())
    counts, problems = translations.status(language, only=only or ())
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 1))
    table.add_column(f"locale/{language}", no_wrap=True)
    for name in ("messages", "translated", "out of date", "missing"):
        table.add_column(name, justify="right")
    for each in counts:
        table.add_row(each.name, *(f"{n:,}" for n in (each.messages, each.translated, each.fuzzy, each.missing)))
    out.print(table)
    out.print(f"{len(changed)} files changed.")
    for problem in problems:
        err.print(escape(problem))
    raise typer.Exit(1 if problems else 0)


@app.command()
def release(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A new folder, an earlier bundle, or its repository.")
    ],
) -> None:
    """Write what students get into FOLDER: notebooks, built book, the ichimon package.

    Every file is searched for the answers first, and the history of FOLDER if it is a git repository. If there is one,
    nothing is written. In a repository the bundle is committed; pushing it is left to you.

    Exit codes: 0 it is written · 1 answers were found · 2 FOLDER cannot be used, or the book is not built.
    """
    from autograder.authoring.release import AnswersFound, ReleaseError
    from autograder.authoring.release import release as write

    try:
        files = write(folder)
    except AnswersFound as error:
        _refuse(str(error), 1)
    except ReleaseError as error:
        _refuse(str(error))
    out.print(f"{len(files)} files in {folder}: no answer is in them.")


package = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(package, name="package", help="One assignment for a platform that grades: docs/hosted.md.")
Assignment = Annotated[str, typer.Argument(metavar="ASSIGNMENT", help="Such as 02-self-attention.")]


@package.command()
def gradescope(
    assignment: Assignment,
    to: Annotated[Path | None, typer.Argument(metavar="TO.zip", help="By default _build/gradescope/….zip.")] = None,
    visibility: Annotated[
        str, typer.Option(help="When students see results: visible, after_due_date, after_published or hidden.")
    ] = "visible",
) -> None:
    """Write the autograder zip of ASSIGNMENT for Gradescope. It holds hidden tests: give it to nobody else."""
    from autograder.authoring import package as packages

    path = to or packages.ROOT / "_build" / "gradescope" / f"{assignment}.zip"
    try:
        files = packages.gradescope(assignment, path, visibility)
    except packages.ReleaseError as error:
        _refuse(str(error))
    out.print(f"{path}: {len(files)} files. Upload it under Configure Autograder.")


@package.command()
def classroom(
    assignment: Assignment,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the folders go that you make repositories of.")
    ],
    hidden: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Run the hidden tests too, from this private repository.")
    ] = "",
) -> None:
    """Write a template repository of ASSIGNMENT for GitHub, whose workflow runs the visible checks on each push.

    With --hidden also the private repository that the workflow takes the grader from. That is for practice only: a
    student who changes the workflow can print the key to it. For marks, clone and grade: docs/hosted.md.

    Exit codes: 0 it is written · 1 answers were found in what students get · 2 FOLDER cannot be used.
    """
    from autograder.authoring import package as packages

    try:
        written = packages.classroom(assignment, folder, hidden)
    except packages.AnswersFound as error:
        _refuse(str(error), 1)
    except packages.ReleaseError as error:
        _refuse(str(error))
    out.print(f"{' and '.join(map(str, written))}: no answer is in the template.")


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


class Pace(ProgressColumn):
    """How many submissions are graded in a second, and how long the rest will take at that pace."""

    def render(self, task: Task) -> Text:
        rate = task.fields["graded"] / task.elapsed if task.elapsed else 0.0
        if not rate or task.total is None:
            return Text("starting")
        left = timedelta(seconds=round((task.total - task.completed) / rate))
        return Text(f"{rate:.2f} submissions/s, {left} left")


class Watch:
    """What is said while a class is graded: a bar on a terminal, a line for each student, JSON for machines."""

    def __init__(self, total: int, verbose: bool, json: bool) -> None:
        self.total, self.verbose, self.json = total, verbose, json
        self.known = self.graded = 0
        self._exercises: set[str] = set()  # of the submissions that were graded now
        self.whose: list[tuple[str, str]] = []  # (student, assignment)
        self._unlucky: dict[Outcome, list[str]] = {}  # who is known for something that another attempt could change
        self.bar = Progress(
            TextColumn("grading"),
            BarColumn(None),
            MofNCompleteColumn(),
            Pace(Column(no_wrap=True)),
            console=err,
            disable=not err.is_terminal,
            transient=True,
            expand=True,
            redirect_stdout=False,  # it would send the JSON to stderr
        )
        self._task = self.bar.add_task("grading", total=total, graded=0)

    def tell(self, report: Report, fresh: bool) -> None:
        self.whose.append((report.student, report.assignment))
        if fresh:
            self.graded += 1
            self._exercises |= {result.exercise for result in report.exercises}
        else:
            self.known += 1
            outcomes = {test.outcome for result in report.exercises for test in result.tests}
            for outcome in outcomes.intersection(CHANCES):
                self._unlucky.setdefault(outcome, []).append(report.student)
        self.bar.update(self._task, advance=1, graded=self.graded)
        if self.verbose:
            how = "graded" if fresh else "known"
            told = f"{report.student}  {_of(report.points, report.max_points)}  {how}  {report.reason}"
            err.print(escape(told.rstrip()))
        if self.json:
            more = {"points": report.points, "max_points": report.max_points, "known": not fresh}
            _print_json({**to_builtins(report), **more})

    def skipped(self, added: Mapping[str, int]) -> list[str]:
        """What of the submissions that were graded now was known, and what of the others could be tried again."""
        sentences = []
        if added and not self._exercises.issubset(added):
            some = ", ".join(added)
            sentences.append(f"Only {some} had to be graded: the verdicts on the other exercises were known.")
        chances = [
            f"{len(students)} {CHANCES[outcome]} ({_some(students)})" for outcome, students in self._unlucky.items()
        ]
        if chances:
            sentences.append(f"Of those known from before, {', '.join(chances)}: `--again` tries once more.")
        return sentences

    def summary(
        self, ungraded: Sequence[Ungraded], without: Sequence[str], added: Mapping[str, int]
    ) -> dict[str, object]:
        """The last line of --json; docs/grading.md describes it."""
        return {
            "found": self.total,
            "graded": self.graded,
            "known": self.known,
            "verdicts": added,
            "try_again": {outcome.value: students for outcome, students in self._unlucky.items()},
            "ungraded": [
                {"student": _student(item), "file": clean(str(item.found.path)), "reason": item.reason}
                for item in ungraded
            ],
            "not_found": without,
        }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def print_marks(reports: Iterable[Report]) -> None:
    """One table an assignment: a row a student, the points of each exercise, one line of reason."""
    rows: dict[str, list[tuple[str, dict[str, float], float, str]]] = {}
    most: dict[str, dict[str, float]] = {}  # not every report need have every exercise: one may be new
    for report in reports:  # one at a time: a class of thousands does not fit into memory
        marks = {exercise.exercise: exercise.points for exercise in report.exercises}
        rows.setdefault(report.assignment, []).append((report.student, marks, report.points, report.reason))
        if len(marks) > len(most.setdefault(report.assignment, {})):
            most[report.assignment] = {exercise.exercise: exercise.max_points for exercise in report.exercises}
    for name, chosen in rows.items():
        table = Table(title=name, title_justify="left", header_style="bold", pad_edge=False, box=None, padding=(0, 1))
        table.add_column("student", vertical="bottom", no_wrap=True)
        for exercise, points in most[name].items():
            label = exercise if out.width >= 120 else re.sub("_|(?<=[a-z])(?=[A-Z])", r"\g<0>\n", exercise)
            table.add_column(f"{label}\n/{points:g}", justify="right", vertical="bottom", no_wrap=True)
        total = sum(most[name].values())
        table.add_column(f"total\n/{total:g}", justify="right", vertical="bottom", style="bold", no_wrap=True)
        table.add_column("why")  # the only column that may wrap, so the only one that gives way; its cells do not wrap
        for student, marks, points, reason in chosen:
            cells = [f"{marks[exercise]:g}" if exercise in marks else "–" for exercise in most[name]]
            table.add_row(escape(student), *cells, f"{points:g}", Text(reason, no_wrap=True, overflow="ellipsis"))
        out.print(table)


def _print_moves(moves: Sequence[Move], json: bool) -> None:
    if json:
        for move in moves:
            _print_json({"moved": {**to_builtins(move), "difference": round(move.after - move.before, 2)}})
    elif moves:
        by_hand = sum(move.by_hand for move in moves)
        out.print(
            f"[bold]Marks that moved: {len(moves) - by_hand}[/bold]"
            + f"; of a person, so kept: {by_hand}" * (by_hand > 0)
        )
        table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 1))
        for name in ("student", "exercise"):
            table.add_column(name, no_wrap=True)
        for name in ("before", "after", "by"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("why", overflow="fold")
        for move in moves:
            marks = [f"{move.before:g}", f"{move.after:g}", f"{round(move.after - move.before, 2):+g}"]
            table.add_row(escape(move.student), move.exercise, *marks, escape(move.why))
        out.print(table)


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)  # who reads it may be waiting


def print_report(report: Report) -> None:
    out.print(
        f"[bold]{escape(report.student)}[/bold] · {report.assignment} · "
        f"{report.points:g} of {report.max_points:g} points"
    )
    for notice in report.notices:
        out.print(f"  ! {escape(notice)}", soft_wrap=True)
    for cell in report.cells:
        if cell.error:
            out.print(
                f"  ! cell {escape(cell.cell.removeprefix('cell '))}: {escape(_line(cell.error))}", soft_wrap=True
            )
    for exercise in report.exercises:
        _print_exercise(exercise)


def _print_exercise(exercise: ExerciseResult) -> None:
    out.print(f"\n[bold]{exercise.exercise}[/bold]  {exercise.points:g} of {exercise.max_points:g}")
    for test in exercise.tests:
        mark = "[green]✓[/green]" if test.passed else "[red]✗[/red]"
        out.print(
            f"  {mark} {escape(test.claim)}"
            + ("" if test.passed else f": {escape(_line(test.message) or test.outcome)}"),
            soft_wrap=True,
        )
        if not test.passed:
            out.print(f"    {escape(test.mistake or test.hint)}", soft_wrap=True)


def _line(text: str) -> str:
    """A student's text on one line, so that none of it passes for a line of ours."""
    return " ".join(text.split())


def _reports(results: Path | None, assignment: str, student: str = "") -> list[Report]:
    from autograder.results import DEFAULT, Results

    path = results or DEFAULT
    reports: list[Report] = []
    there: list[str] = []
    if path.exists():  # else looking would leave an empty file
        with Results(path) as stored:
            reports = stored.reports(assignment, student)
            there = [] if reports else stored.students(assignment)
    if there:
        _refuse(f"No results for {student!r}. There are results for: {', '.join(there)}.")
    if not reports:
        _refuse(f"There are no results in {path} yet: run `autograder grade PATH` first.")
    return reports


def _student(item: Ungraded) -> str:
    return " ".join(clean(item.found.student, 40).split())


def _of(points: float, max_points: float) -> str:
    return f"{points:g}/{max_points:g}"


def _url(gradebook: str) -> str:
    return "" if gradebook == "auto" else gradebook


def _held(gradebook: str) -> dict[Key, Held]:
    from autograder import gradebook as gradebooks

    return gradebooks.held(_url(gradebook))


def _refuse(sentence: str, code: int = 2) -> NoReturn:
    err.print(escape(sentence))
    raise typer.Exit(code)


def main() -> None:
    """The command; whatever is wrong with its input becomes one sentence and an exit code."""
    command: Callable[[], None] = app
    for number in range(3):  # one that is closed would be given to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        command()
    except (OSError, sqlite3.Error) as error:
        err.print(f"This could not be read or written: {escape(str(error))}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of control-C
            err.print("Stopped. What was graded is kept; run the same command again for the rest.")
        raise
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        err.print(escape(str(error)))
        sys.exit(2)


def _expected() -> tuple[type[Exception], ...]:
    """The errors that are sentences. A module that is not imported has raised none, and some take long to import."""
    named = {
        "ichimon.notebook": "NotebookError",
        "autograder.assignment": "UnknownAssignment",
        "autograder.results": "ResultsError",
        "autograder.roster": "RosterError",
        "autograder.sandbox.jail": "JailError",
        "autograder.gradebook": "GradebookError",
        "autograder.cluster": "ClusterError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in named.items() if module in sys.modules)
