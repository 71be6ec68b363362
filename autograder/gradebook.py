"""nbgrader: its autograde command runs our sandbox, and a class that we graded lands in its gradebook.

`nbgrader_config.py` names the classes of this file. Both ways, `nbgrader autograde` and `sync`, show a submission
through `submission_notebook` and save it through `SaveReport`, so they give the same marks. Nothing that a student
wrote into a notebook's metadata, outputs or locked cells survives: those come from the notebook that was given out.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import glob
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import bleach
import msgspec
import nbformat
from bleach.html5lib_shim import Filter
from nbconvert.exporters import NotebookExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell
from nbgrader import api
from nbgrader.api import Gradebook, InvalidEntry, MissingEntry
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from nbgrader.plugins import LateSubmissionPlugin
from nbgrader.preprocessors import AssignLatePenalties, NbGraderPreprocessor, SaveAutoGrades, SaveCells
from nbgrader.utils import is_grade, is_solution, parse_utc
from sqlalchemy import create_engine, func, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, SAWarning, SQLAlchemyError
from tornado.log import app_log
from traitlets import Instance, default
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from autograder.course import Course, CourseError
from autograder.feedback import comment, number, plain, words_for
from autograder.late import Late
from autograder.report import LONGEST_OUTPUT, ExerciseResult, Report, clean
from autograder.results import Key, Move
from ichimon.notebook import Cell, NotebookError, cells

# seconds: PostgreSQL's library would wait minutes for a host that is gone
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
_quiet = logging.Logger(__name__, logging.ERROR)  # nbgrader says who is late; a student's name is not for our log
# of SQLAlchemy 2 about how nbgrader adds a submission, one screen of them a command; what it adds is right
warnings.filterwarnings("ignore", "Object of type .* not in session", SAWarning, r"nbgrader\.api")

LOCK = int.from_bytes(b"ichimon", "big")  # PostgreSQL's advisory lock of whoever writes marks
LONGEST_CELL = 20_000  # characters of a submitted cell that nbgrader's pages show; the file in submitted/ keeps all
SECRET = "submission_secret.txt"  # of nbgrader's exchange: what it calls the pages that only this student can ask for
LONGEST_EXTRA = 200_000  # and of all cells that the student added: Markdown can be written to be slow to read


class GradebookError(NbGraderException):
    """A sentence about what keeps marks out of the gradebook, and what to do."""


# -- the course -----------------------------------------------------------------------------------------------------


def course_config(root: Path) -> Config:
    """The settings of the nbgrader course in a folder."""
    if not (root / "nbgrader_config.py").is_file():
        raise GradebookError(f"{root} is not an nbgrader course: there is no nbgrader_config.py in it.")
    _ = Course(root).settings  # what is wrong with course.toml is a sentence here, and ends the process there
    return PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()


def released(assignment: str, course: CourseDirectory) -> NotebookNode:
    """The notebook that was given out: it holds no answer and no hidden test, so feedback made from it shows none."""
    path = Path(course.format_path(course.release_directory, ".", assignment), f"{assignment}.ipynb")
    if not path.is_file():
        raise GradebookError(f"There is no notebook {path}: run `make notebooks`, or check the assignment's name.")
    return nbformat.read(path, as_version=4)


def register(assignment: str, course: CourseDirectory) -> None:
    """Make the assignment's cells and points, and when it is due, known to the course's gradebook, unless they are."""
    notebook = released(assignment, course)
    due = late_rules(course).until(assignment)
    _find_alembic()
    with Gradebook(course.db_url, course.course_id) as gradebook:
        gradebook.update_or_create_assignment(assignment, **({"duedate": due} if due else {}))
        if _registered(assignment, gradebook) == _described(notebook):
            return
    try:
        SaveCells().preprocess(notebook, {"nbgrader": _ids(assignment, "", course)})
    except RuntimeError as error:  # nbgrader's refusal to add or remove cells that students have answered
        raise GradebookError(
            f"The cells of {assignment} are not those that the submissions in the gradebook answered: keep its old "
            f"notebook, or `nbgrader db assignment remove {assignment} --force` and grade again."
        ) from error


def due(assignment: str, course: CourseDirectory) -> datetime | None:
    """When an assignment is due, in UTC, if the course's gradebook knows."""
    _find_alembic()
    with _sentences(course.db_url), Gradebook(course.db_url, course.course_id) as gradebook:
        try:
            return gradebook.find_assignment(assignment).duedate
        except MissingEntry:
            return None


def late_rules(course: CourseDirectory) -> Late:
    """What the course's course.toml says about late work."""
    try:
        return Course(Path(course.root)).settings.late
    except CourseError as error:
        raise GradebookError(str(error)) from error


def _ids(assignment: str, student: str, course: CourseDirectory) -> dict[str, str]:
    """How nbgrader's preprocessors are told what they work on."""
    return {"assignment": assignment, "notebook": assignment, "student": student, "db_url": course.db_url}


def _find_alembic() -> None:
    """nbgrader makes a new gradebook with alembic, which it looks for on the PATH only; it is beside our Python."""
    if shutil.which("alembic") is None:
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


Description = dict[str, tuple[str, bool, str, str | None, float | None]]  # type, locked, source, checksum, points


def _described(notebook: NotebookNode) -> Description:
    return {
        name: (cell.cell_type, ours.locked, cell.source, ours.get("checksum"), ours.get("points"))
        for name, cell in _own_cells(notebook).items()
        for ours in [cell.metadata.nbgrader]
    }


def _registered(assignment: str, gradebook: Gradebook) -> Description:
    try:
        notebook = gradebook.find_notebook(assignment, assignment)
    except MissingEntry:
        return {}
    points = {cell.name: cell.max_score for cell in notebook.grade_cells}
    return {
        cell.name: (cell.cell_type, cell.locked, cell.source, cell.checksum, points.get(cell.name))
        for cell in notebook.source_cells
    }


def _own_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """The cells that nbgrader knows by name, in order."""
    return {_name(cell): cell for cell in notebook.cells if _name(cell)}


# -- a submission as nbgrader's pages show it -----------------------------------------------------------------------


def submission_notebook(path: Path, release: NotebookNode) -> NotebookNode:
    """What a student handed in, as a notebook that nbgrader can work with, whatever the file holds.

    Locked cells, metadata and points are the release's. A cell that is there twice keeps its name at its last place
    only. Cells of ours that are missing are put back; an unreadable file is nothing but missing cells (its Report says
    why).
    """
    try:
        submitted = [] if path.is_symlink() else cells(path)
    except NotebookError:
        submitted = []
    ours = _own_cells(release)
    last = {cell.id: position for position, cell in enumerate(submitted, start=1) if cell.id in ours}
    shown: list[NotebookNode] = []
    times: Counter[str] = Counter()
    extra = 0
    for position, cell in enumerate(submitted, start=1):
        times[cell.id] += 1
        own = ours[cell.id] if last.get(cell.id) == position else None
        there = _shown(cell, own)
        there.metadata["ichimon"] = {"names": _names(cell, position, times[cell.id])}
        extra += len(there.source) if own is None else 0
        if own is not None or extra <= LONGEST_EXTRA:
            shown.append(there)
    place = 0
    for name, missing in ours.items():
        if name in last:
            place = 1 + next(i for i, there in enumerate(shown) if _name(there) == name)
        else:
            shown.insert(place, _copied(missing, missing.source))
            place += 1
    for i, there in enumerate(shown):
        there["id"] = _name(there) or f"submitted-{i}"
    return new_notebook(metadata=copy.deepcopy(release.metadata), cells=shown)


def _names(cell: Cell, position: int, time: int) -> list[str]:
    """What a CellRun may call a cell; "causal_mask (2)" is the second of that id."""
    own = [cell.id] if time == 1 else [f"{cell.id} ({time})"]
    return [f"cell {position}", *(own if cell.id else [])]


def _shown(cell: Cell, own: NotebookNode | None) -> NotebookNode:
    source = clean(cell.source, LONGEST_CELL)
    if own is not None:
        return _copied(own, own.source if own.metadata.nbgrader.locked else source)
    if cell.kind == "code":
        return new_code_cell(source)
    if cell.kind == "markdown":
        return new_markdown_cell(source)
    return new_raw_cell(source, metadata={"raw_mimetype": "text/plain"})  # nbconvert takes others for HTML


def _copied(own: NotebookNode, source: str) -> NotebookNode:
    make = new_code_cell if own.cell_type == "code" else new_markdown_cell
    return make(source, metadata={"nbgrader": copy.deepcopy(own.metadata.nbgrader)})


def _name(cell: NotebookNode) -> str:
    """What nbgrader calls a cell, "" for one that it does not know."""
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def show_report(notebook: NotebookNode, report: Report) -> None:
    """Write into the notebook what the grader has to say: as plain text, which no page takes for HTML."""
    words = words_for(report.assignment)
    report = words.report(report)
    waiting = [(cell, cell.metadata.get("ichimon", {}).get("names", [])) for cell in notebook.cells]
    for run in report.cells:
        found = next((i for i, (_, names) in enumerate(waiting) if run.cell in names), None)
        said = "\n".join(clean(text, LONGEST_OUTPUT) for text in (run.output, run.error) if text)
        if found is not None:
            cell, _ = waiting.pop(found)
            _print(cell, said)
    results = {result.exercise: result for result in report.exercises}
    for cell in notebook.cells:
        if (exercise := _checked(cell)) in results:
            _print(cell, plain(results[exercise], words))
    if report.notices:
        about = new_code_cell("# What the autograder noticed", id="notices")
        _print(about, "\n".join(clean(notice) for notice in report.notices))
        notebook.cells.insert(0, about)


def _print(cell: NotebookNode, text: str) -> None:
    if cell.cell_type == "code" and text:
        cell.outputs = [new_output("stream", name="stdout", text=text)]


def _checked(cell: NotebookNode) -> str:
    """The exercise whose marks a cell carries; "" for a cell without marks and one that a person marks."""
    if not is_grade(cell) or is_solution(cell) or cell.cell_type != "code":
        return ""
    return cell.metadata.nbgrader.grade_id.removeprefix("check-")


# -- nbgrader autograde ---------------------------------------------------------------------------------------------


class SubmissionExporter(NotebookExporter):
    """What `nbgrader autograde` reads and writes notebooks with.

    nbgrader's own reading stops at files that are no notebook, and it refuses an assignment that its gradebook does not
    know. No hook of it comes early enough for either, so this does both.
    """

    def __init__(self, config: Config | None = None, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        course = _course(self)
        try:
            with _sentences(course.db_url), _alone(course):
                register(course.assignment_id, course)
        except GradebookError as error:
            self.log.error(str(error))  # nbgrader ends on one of these without a word
            raise
        before = glob.glob(str(_autograded(course.student_id, course.assignment_id, course)))
        self.answers = {path: _answers(Path(path)) for path in before}  # nbgrader deletes them before it grades

    def from_filename(
        self, filename: str, resources: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[NotebookNode, dict[str, Any]]:
        ids = (resources or {})["nbgrader"]
        if Path(filename) == _submitted(ids["student"], ids["assignment"], _course(self)):
            return self.from_notebook_node(new_notebook(), resources, **kwargs)  # Sanitise reads the file
        return super().from_filename(filename, resources, **kwargs)


def _course(exporter: Any) -> CourseDirectory:
    """The course that an exporter of `nbgrader autograde` works in: the converter that made it knows."""
    return exporter.parent.coursedir


def _submitted(student: str, assignment: str, course: CourseDirectory) -> Path:
    return Path(course.format_path(course.submitted_directory, student, assignment), f"{assignment}.ipynb")


def _autograded(student: str, assignment: str, course: CourseDirectory) -> Path:
    return Path(course.format_path(course.autograded_directory, student, assignment), f"{assignment}.ipynb")


def _answers(autograded: Path) -> dict[str, str]:
    """The answers that a person marks, in what nbgrader's pages showed so far; none if there is nothing yet."""
    try:
        cells = json.loads(autograded.read_bytes())["cells"]
    except (OSError, ValueError):
        return {}
    marked = [(cell["metadata"].get("nbgrader", {}), cell) for cell in cells]
    return {
        ours["grade_id"]: "".join(cell["source"]) for ours, cell in marked if ours.get("grade") and ours["solution"]
    }


class Sanitise(NbGraderPreprocessor):
    """First step of `nbgrader autograde`: the submission as a notebook that nothing later can stumble over."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        course, ids = _course(self.parent), resources["nbgrader"]
        _leave_only_notebooks(Path(course.format_path(course.autograded_directory, ids["student"], ids["assignment"])))
        path = _submitted(ids["student"], ids["assignment"], course)
        return submission_notebook(path, released(ids["assignment"], course)), resources


def _leave_only_notebooks(folder: Path) -> None:
    """Nothing else that a student sent is graded, and nbgrader would copy it, through links too, into the feedback."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != ".ipynb" and path.name != "timestamp.txt" and not (path.name == SECRET and secret(folder)):
            path.unlink()


def secret(folder: Path) -> str:
    """The secret of a submission that came through nbgrader's exchange; "" if there is none such as nbgrader makes."""
    try:
        with open(folder / SECRET, opener=no_link, encoding="ascii") as file:
            text = file.read(200)
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch("[0-9a-f]{128}", text) else ""


def no_link(path: str, flags: int, dir_fd: int | None = None) -> int:
    """How a student's file is opened: it may be a link to one of ours, or a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)


class SaveReport(SaveAutoGrades):
    """Second step of `nbgrader autograde`: the sandbox's marks and words, into the notebook and the gradebook."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        from autograder.grading import grade_one  # imports torch

        ids, course = resources["nbgrader"], _course(self.parent)
        path = _submitted(ids["student"], ids["assignment"], course)
        shown = _autograded(ids["student"], ids["assignment"], course)
        try:
            report = grade_one(path, ids["student"], ids["assignment"])
        except NotebookError as error:
            report = Report(ids["student"], ids["assignment"], "", (), notices=(str(error),))
        report = msgspec.structs.replace(report, student=ids["student"])  # a Report's is fit for printing
        with Gradebook(ids["db_url"]) as gradebook:
            self.save(report, nb, gradebook, self.parent.answers.get(str(shown), {}))
        return nb, resources

    def save(
        self, report: Report, notebook: NotebookNode, gradebook: Gradebook, answers: Mapping[str, str] | None = None
    ) -> None:
        """Write a report into the notebook and into the gradebook. `answers` are those that a person may have marked:
        whoever has looked at one need not look again while it is the same."""
        self.gradebook = gradebook
        self._answers = answers or {}
        self.notebook_id, self.assignment_id, self.student_id = report.assignment, report.assignment, report.student
        self._results: dict[str, ExerciseResult] = {result.exercise: result for result in report.exercises}
        show_report(notebook, report)
        for index, cell in enumerate(notebook.cells):
            self.preprocess_cell(cell, {}, index)
        gradebook.db.commit()

    def _add_score(self, cell: NotebookNode, resources: dict[str, Any]) -> None:
        exercise = _checked(cell)
        result = self._results.get(exercise)
        grade_id = cell.metadata.nbgrader.grade_id
        grade = self.gradebook.find_grade(grade_id, self.notebook_id, self.assignment_id, self.student_id)
        if not exercise:
            looked_at = grade.manual_score is not None and not grade.needs_manual_grade
            super()._add_score(cell, resources)
            grade.needs_manual_grade &= not (looked_at and self._answers.get(grade_id) == cell.source)
            return
        before = grade.auto_score
        if result is not None:
            if result.max_points != grade.max_score:
                raise GradebookError(
                    f"{exercise} was graded for {number(result.max_points)} points and its check cell carries "
                    f"{number(grade.max_score)}: run `make notebooks` and grade again."
                )
            grade.auto_score = result.points
        else:
            grade.auto_score = None if self._results else 0.0  # without any result there was nothing to grade
        if grade.auto_score is None:
            grade.needs_manual_grade = True  # no hidden test knows this cell: a person must look
        elif grade.manual_score is None:
            grade.needs_manual_grade = False
        elif grade.auto_score != before:
            grade.needs_manual_grade = True  # a person's mark stands until that person looks at what changed

    def _add_comment(self, cell: NotebookNode, resources: dict[str, Any]) -> None:
        result = self._results.get(cell.metadata.nbgrader.grade_id)
        if result is None:
            super()._add_comment(cell, resources)
            return
        found = self.gradebook.find_comment(result.exercise, self.notebook_id, self.assignment_id, self.student_id)
        words = words_for(self.assignment_id)
        [told] = words.report(Report("", "", "", (result,))).exercises
        found.auto_comment = comment(told, words)


# -- late work ------------------------------------------------------------------------------------------------------


class CoursePenalty(LateSubmissionPlugin):
    """nbgrader's plugin for what course.toml says; where it says nothing, as nbgrader has it."""

    parent: Penalties

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float | None:
        rules, made = late_rules(self.parent.coursedir), self.parent
        if not rules.per_day:
            return super().late_submission_penalty(student_id, score, total_seconds_late)
        notebook = made.gradebook.find_submission_notebook(made.notebook_id, made.assignment_id, student_id)
        return rules.penalty(total_seconds_late, notebook.max_score)


class Penalties(AssignLatePenalties):
    """Last step of `nbgrader autograde`: who has extra time gets it before nbgrader counts the seconds."""

    coursedir = Instance(CourseDirectory)

    @default("coursedir")
    def _its_course(self) -> CourseDirectory:
        return _course(self.parent)

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        ids = resources["nbgrader"]
        with Gradebook(ids["db_url"]) as gradebook:
            extend(gradebook.find_submission(ids["assignment"], ids["student"]), late_rules(self.coursedir), gradebook)
        made: tuple[NotebookNode, dict[str, Any]] = super().preprocess(nb, resources)
        return made


def extend(submission: api.SubmittedAssignment, rules: Late, gradebook: Gradebook) -> None:
    """Extra time as nbgrader keeps it. Where course.toml gives none to anybody, what the gradebook has stands."""
    extra = rules.extra(submission.student_id, submission.name) if submission.assignment.duedate else None
    if rules.extra_time and submission.extension != extra:
        submission.extension = extra
        gradebook.db.commit()


# -- what it holds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What the gradebook holds for an exercise: the tests' mark, and a person's, which counts if there is one."""

    auto: float | None
    manual: float | None


def held(gradebook: str = "", course: Path | None = None) -> dict[Key, Held]:
    """Every mark of an exercise in the gradebook. Looking makes none, and a gradebook that is not there holds none."""
    directory = _directory(gradebook, course)[0]
    with _sentences(directory.db_url):
        url = make_url(directory.db_url)
        file = Path(url.database or "")
        if url.get_backend_name() == "sqlite" and not file.is_file():
            if not file.absolute().parent.is_dir():
                raise GradebookError(f"There is no folder {file.absolute().parent} for a gradebook: make it first.")
            return {}
        engine = create_engine(url)
        if not inspect(engine).has_table("grade"):
            return {}
        query = (
            select(
                api.SubmittedAssignment.student_id,
                api.Assignment.name,
                api.GradeCell.name,
                api.Grade.auto_score,
                api.Grade.manual_score,
            )
            .join(api.Assignment, api.Assignment.id == api.SubmittedAssignment.assignment_id)
            .join(api.SubmittedNotebook, api.SubmittedNotebook.assignment_id == api.SubmittedAssignment.id)
            .join(api.Grade, api.Grade.notebook_id == api.SubmittedNotebook.id)
            .join(api.GradeCell, api.GradeCell.id == api.Grade.cell_id)
            .where(api.GradeCell.name.startswith("check-"))
        )
        with engine.connect() as connection:
            rows = connection.execute(query).all()
        engine.dispose()
    return {
        (student, assignment, cell.removeprefix("check-")): Held(auto, manual)
        for student, assignment, cell, auto, manual in rows
    }


def compared(reports: Iterable[Report], moved: Iterable[Move], holds: Mapping[Key, Held]) -> list[Move]:
    """Which marks `sync` would move, and those that a person set, which it leaves as they are, though what the tests
    say has moved beneath them. `moved` says why, as far as the results know."""
    known = {(move.student, move.assignment, move.exercise): move for move in moved}
    moves: list[Move] = []
    for report in reports:
        marks = {result.exercise: result.points for result in report.exercises}
        if not marks:  # a file that is no notebook gets zeros
            marks = dict.fromkeys((key[2] for key in holds if key[:2] == (report.student, report.assignment)), 0.0)
        for exercise, points in marks.items():
            key = (report.student, report.assignment, exercise)
            mark, move = holds.get(key, Held(None, None)), known.get(key)
            if mark.auto is not None and mark.auto != points:
                why = move.why if move else "not in the gradebook yet" if report.exercises else "no notebook any more"
                move = Move(*key, mark.auto, points, why)
            if move and mark.manual is not None:
                tests = f"{number(move.before)} → {number(move.after)}, {move.why}"
                why = f"a person's mark stands (what the tests say: {tests})"
                move = Move(*key, mark.manual, mark.manual, why, by_hand=True)
            moves += [move] if move else []
    return moves


# -- a whole class at once ------------------------------------------------------------------------------------------


def sync(
    reports: Iterable[Report],
    gradebook: str = "",
    course: Path | None = None,
    files: Mapping[tuple[str, str], Path] | None = None,
) -> list[str]:
    """Bring a class's Reports into nbgrader: leave what `nbgrader autograde` would leave in its gradebook and folders.

    `course` is the course's folder, by default this one; `gradebook` is a database URL, by default the course's own.
    `files` says where the file of a (student, assignment) is that does not lie in submitted/<student>/<assignment>/.
    Doing it twice changes nothing. Returns what staff should know, in sentences.
    """
    directory, config = _directory(gradebook, course)
    rules = late_rules(directory)
    known: dict[str, NotebookNode] = {}
    told: list[str] = []
    _find_alembic()
    with (
        _sentences(directory.db_url),
        _alone(directory),
        Gradebook(directory.db_url, directory.course_id) as opened,
    ):
        for report in reports:
            student, assignment = report.student, report.assignment
            if Path(student).name != student:
                raise GradebookError(f"{clean(student, 80)!r} names no folder, so it cannot be a student in nbgrader.")
            if assignment not in known:
                register(assignment, directory)
                known[assignment] = released(assignment, directory)
            file = (files or {}).get((student, assignment)) or _submitted(student, assignment, directory)
            timestamp = arrival(file.parent / "timestamp.txt")
            if timestamp is None:
                told.append(
                    f"{clean(student, 40)}'s timestamp.txt holds no time that nbgrader can read: it counts as none."
                )
            _sync_one(report, file, timestamp or "", known[assignment], opened, (directory, config, rules))
        there = {student.id for student in opened.students}
        if absent := [clean(student, 40) for student in rules.extra_time if student not in there]:
            told.append(f"course.toml gives extra time to {', '.join(absent)}, of whom there is nothing so far.")
    return told


def _directory(gradebook: str, course: Path | None) -> tuple[CourseDirectory, Config]:
    config = course_config(course or Path.cwd())
    if gradebook:
        config.CourseDirectory.db_url = gradebook
    return CourseDirectory(config=config), config


@contextlib.contextmanager
def _alone(course: CourseDirectory) -> Iterator[None]:
    """One grader at a time writes: two that add the same student would stop each other. The lock ends with us.

    The folder's lock holds on this machine; PostgreSQL's own for graders on others, with checkouts of their own.
    """
    with contextlib.ExitStack() as locks:
        folder = os.open(course.root, os.O_RDONLY)
        locks.callback(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        if make_url(course.db_url).get_backend_name() == "postgresql":
            server = create_engine(course.db_url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None)
            locks.callback(server.dispose)
            locks.enter_context(server.connect()).execute(select(func.pg_advisory_lock(LOCK)))
        yield


@contextlib.contextmanager
def _sentences(url: str) -> Iterator[None]:
    """What a database can say, as a GradebookError. nbgrader would print the traceback too."""
    no_address = GradebookError(
        f"{_address(url)!r} is not the address of a database: give one such as sqlite:///gradebook.db, or `auto`."
    )
    app_log.disabled = True
    try:
        try:
            make_url(url)
        except ValueError:  # a port that is no number
            raise no_address from None
        yield
    except ArgumentError:
        raise no_address from None
    except (SQLAlchemyError, InvalidEntry, ModuleNotFoundError) as error:
        said = re.split(r"\n(?:\[SQL|\(Background|DETAIL)", str(error))[0]  # what follows may name students
        raise GradebookError(
            f"The gradebook {_address(url)} could not be used ({' '.join(said.split())}). "
            "Mend that and run the same command again; what was graded is kept."
        ) from None
    finally:
        app_log.disabled = False


def _address(url: str) -> str:
    """A database's address without the password in it, even if it is not well formed."""
    return re.sub(r":(?!//)[^@].*@|(?<=password=)[^&]*", lambda found: ":***@" * found[0].endswith("@") or "***", url)


def _sync_one(
    report: Report,
    file: Path,
    timestamp: str,
    release: NotebookNode,
    gradebook: Gradebook,
    how: tuple[CourseDirectory, Config, Late],
) -> None:
    course, config, rules = how
    gradebook.update_or_create_student(report.student)
    submission = gradebook.update_or_create_submission(
        report.assignment, report.student, timestamp=parse_utc(timestamp) if timestamp else None
    )
    notebook = submission_notebook(file, release)
    autograded = _autograded(report.student, report.assignment, course)
    SaveReport().save(report, notebook, gradebook, _answers(autograded))
    extend(submission, rules, gradebook)
    if submission.total_seconds_late or submission.late_submission_penalty:
        resources = {"nbgrader": _ids(report.assignment, report.student, course)}
        Penalties(config=config, coursedir=course, log=_quiet).preprocess(notebook, resources)
    folder = autograded.parent
    folder.mkdir(parents=True, exist_ok=True)
    _leave_only_notebooks(folder)
    _replace(autograded, nbformat.writes(notebook))
    for name, content in (("timestamp.txt", timestamp), (SECRET, secret(file.parent))):
        if content:
            _replace(folder / name, content)
        else:
            (folder / name).unlink(missing_ok=True)


def arrival(path: Path) -> str | None:
    """When a submission arrived, "" where nothing says so, None for what is no time.

    nbgrader takes a submission for ungraded unless the gradebook says the same.
    """
    if not path.is_file():
        return ""
    try:
        with path.open() as file:
            text = file.read(100).strip()
        parse_utc(text)
    except (OSError, ValueError, ArithmeticError):
        return None
    return text


def _replace(path: Path, text: str) -> None:
    """Write a file all at once and leave it read-only, as nbgrader does with its own."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o444)
    partial.replace(path)


# -- another database -----------------------------------------------------------------------------------------------


def copy_gradebook(source: str, to: str) -> int:
    """Copy all that one gradebook holds into another that holds nothing; return how many rows. It is all or nothing."""
    _find_alembic()
    tables, course, copied = api.Base.metadata.sorted_tables, api.Course.__table__, 0
    with contextlib.ExitStack() as opened:
        opened.enter_context(_sentences(source))
        url = make_url(source)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise GradebookError(f"There is no gradebook {_address(source)}.")
        engine = create_engine(url)
        opened.callback(engine.dispose)
        if not inspect(engine).has_table("grade"):
            raise GradebookError(f"{_address(source)} holds no gradebook.")
        old = opened.enter_context(engine.connect()).execution_options(yield_per=1000)
        if old.execute(text("SELECT version_num FROM alembic_version")).scalar() != api.get_alembic_version():
            raise GradebookError(f"{_address(source)} is of another nbgrader: `nbgrader db upgrade` first.")
        opened.enter_context(_sentences(to))
        new = opened.enter_context(Gradebook(to, ""))
        with new.engine.begin() as connection:
            if any(connection.execute(select(table).limit(1)).first() for table in tables if table is not course):
                raise GradebookError(f"{_address(to)} holds marks already: copy into an empty database.")
            connection.execute(course.delete())
            for table in tables:
                for rows in old.execute(select(table)).mappings().partitions():
                    connection.execute(table.insert(), [dict(row) for row in rows])
                    copied += len(rows)
                if table is course:  # SQLite does not look whether the course of an assignment is one
                    known = set(connection.execute(select(course.c.id)).scalars())
                    named = set(old.execute(select(api.Assignment.course_id)).scalars())
                    for name in named - known:
                        connection.execute(course.insert(), {"id": name})
    return copied


# -- what a browser may see -----------------------------------------------------------------------------------------

_TAGS = {
    *("a", "abbr", "b", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "hr", "i", "kbd"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p", "pre", "s", "span", "strong", "sub", "summary", "sup", "ul"),
    *("table", "tbody", "td", "th", "thead", "tr"),
}


class _OwnTab(Filter):
    """A link opens a tab of its own, which JupyterLab forbids there: it obeys any page in the formgrader's place."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for token in super().__iter__():
            if token["type"] == "StartTag" and token["name"] == "a":
                token["data"].update({(None, "target"): "_blank", (None, "rel"): "noopener noreferrer"})
            yield token


def safe_markdown(source: str) -> str:
    """Markdown as HTML in which nothing runs or loads: nbgrader's templates trust their Markdown filter."""
    try:
        html = MarkdownWithMath(renderer=IPythonRenderer(escape=False, exclude_anchor_links=True)).render(source)
        attributes = {"a": ["href", "title"], "abbr": ["title"]}
        return bleach.Cleaner(tags=_TAGS, attributes=attributes, filters=[_OwnTab]).clean(html)
    except Exception:  # brackets a thousand deep, a missing attachment: any text must be shown somehow
        return f"<pre>{escape(source)}</pre>"


def escape_names(notebook: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
    """What nbgrader's grading view says about a submission, as text: its template takes a folder's name for HTML."""
    names = ("student", "first_name", "last_name", "notebook_path", "assignment_id", "notebook_id")
    resources.update({name: escape(resources[name]) for name in names if resources.get(name)})
    return notebook, resources
