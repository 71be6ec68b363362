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
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from nbgrader.preprocessors import AssignLatePenalties, NbGraderPreprocessor, SaveAutoGrades, SaveCells
from nbgrader.utils import is_grade, is_solution, parse_utc
from sqlalchemy import create_engine, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, SAWarning, SQLAlchemyError
from tornado.log import app_log
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from autograder.feedback import comment, number, plain
from autograder.report import LONGEST_OUTPUT, ExerciseResult, Report, clean
from autograder.results import Key, Move
from ichimon.notebook import Cell, NotebookError, cells

log = logging.getLogger(__name__)
# of SQLAlchemy 2 about how nbgrader adds a submission, one screen of them a command; what it adds is right
warnings.filterwarnings("ignore", "Object of type .* not in session", SAWarning, r"nbgrader\.api")

LONGEST_CELL = 20_000  # characters of a submitted cell that nbgrader's pages show; the file in submitted/ keeps all
LONGEST_EXTRA = 200_000  # and of all cells that the student added: Markdown can be written to be slow to read


class GradebookError(NbGraderException):
    """A sentence about what keeps marks out of the gradebook, and what to do."""


# -- the course -----------------------------------------------------------------------------------------------------


def course_config(root: Path) -> Config:
    """The settings of the nbgrader course in a folder."""
    if not (root / "nbgrader_config.py").is_file():
        raise GradebookError(f"{root} is not an nbgrader course: there is no nbgrader_config.py in it.")
    return PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()


def released(assignment: str, course: CourseDirectory) -> NotebookNode:
    """The notebook that was given out: it holds no answer and no hidden test, so feedback made from it shows none."""
    path = Path(course.format_path(course.release_directory, ".", assignment), f"{assignment}.ipynb")
    if not path.is_file():
        raise GradebookError(f"There is no notebook {path}: run `make notebooks`, or check the assignment's name.")
    return nbformat.read(path, as_version=4)


def register(assignment: str, course: CourseDirectory) -> None:
    """Make the assignment's cells and points known to the course's gradebook, unless they are."""
    notebook = released(assignment, course)
    _find_alembic()
    with Gradebook(course.db_url, course.course_id) as gradebook:
        gradebook.update_or_create_assignment(assignment)
        if _registered(assignment, gradebook) == _described(notebook):
            return
    try:
        SaveCells().preprocess(notebook, {"nbgrader": _ids(assignment, "", course)})
    except RuntimeError as error:  # nbgrader's refusal to add or remove cells that students have answered
        raise GradebookError(
            f"The cells of {assignment} are not those that the submissions in the gradebook answered: keep its old "
            f"notebook, or `nbgrader db assignment remove {assignment} --force` and grade again."
        ) from error


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
            _print(cell, plain(results[exercise]))
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
        elif path.suffix != ".ipynb" and path.name != "timestamp.txt":
            path.unlink()


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
        found.auto_comment = comment(result)


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
) -> None:
    """Bring a class's Reports into nbgrader: leave what `nbgrader autograde` would leave in its gradebook and folders.

    `course` is the course's folder, by default this one; `gradebook` is a database URL, by default the course's own.
    `files` says where the file of a (student, assignment) is that does not lie in submitted/<student>/<assignment>/.
    Doing it twice changes nothing.
    """
    directory, config = _directory(gradebook, course)
    known: dict[str, NotebookNode] = {}
    _find_alembic()
    with (
        _alone(Path(directory.root)),
        _sentences(directory.db_url),
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
            _sync_one(report, file, known[assignment], opened, directory, config)


def _directory(gradebook: str, course: Path | None) -> tuple[CourseDirectory, Config]:
    config = course_config(course or Path.cwd())
    if gradebook:
        config.CourseDirectory.db_url = gradebook
    return CourseDirectory(config=config), config


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One grader at a time writes: two that add the same student would stop each other. The lock ends with us."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def _sentences(url: str) -> Iterator[None]:
    """What a database can say, as a GradebookError. nbgrader would print the traceback too."""
    app_log.disabled = True
    try:
        yield
    except ArgumentError:
        raise GradebookError(
            f"{url!r} is not the address of a database: give one such as sqlite:///gradebook.db, or `auto`."
        ) from None
    except (SQLAlchemyError, InvalidEntry, ModuleNotFoundError) as error:
        said = str(error).splitlines()[0]
        raise GradebookError(
            f"The gradebook {make_url(url).render_as_string()} could not be used ({said}). "
            "Mend that and run the same command again; what was graded is kept."
        ) from None
    finally:
        app_log.disabled = False


def _sync_one(
    report: Report, file: Path, release: NotebookNode, gradebook: Gradebook, course: CourseDirectory, config: Config
) -> None:
    timestamp = _timestamp(file.parent / "timestamp.txt")
    gradebook.update_or_create_student(report.student)
    submission = gradebook.update_or_create_submission(
        report.assignment, report.student, timestamp=timestamp and parse_utc(timestamp)
    )
    notebook = submission_notebook(file, release)
    autograded = _autograded(report.student, report.assignment, course)
    SaveReport().save(report, notebook, gradebook, _answers(autograded))
    if submission.total_seconds_late or submission.late_submission_penalty:
        resources = {"nbgrader": _ids(report.assignment, report.student, course)}
        AssignLatePenalties(config=config).preprocess(notebook, resources)
    folder = autograded.parent
    folder.mkdir(parents=True, exist_ok=True)
    _leave_only_notebooks(folder)
    _replace(autograded, nbformat.writes(notebook))
    if timestamp:
        _replace(folder / "timestamp.txt", timestamp)
    else:
        (folder / "timestamp.txt").unlink(missing_ok=True)


def _timestamp(path: Path) -> str | None:
    """When a submission arrived. nbgrader takes it for ungraded unless the gradebook says the same."""
    if not path.is_file():
        return None
    try:
        with path.open() as file:
            text = file.read(100).strip()
        parse_utc(text)
    except (OSError, ValueError, OverflowError) as error:
        log.warning("%s holds no time that nbgrader can read (%s): the submission counts as one without.", path, error)
        return None
    return text


def _replace(path: Path, text: str) -> None:
    """Write a file all at once and leave it read-only, as nbgrader does with its own."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.write_text(text, encoding="utf-8")
    partial.chmod(0o444)
    partial.replace(path)


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
