"""From files to the cells that run. Everything hostile about files ends here: after this there are strings, or a
sentence."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import ichimon.notebook
from autograder import assignment as assignments
from autograder.assignment import Assignment
from autograder.report import clean
from ichimon.notebook import Cell, NotebookError

MAX_CELLS = 1000
MAX_NAME = 100  # characters of a student's name
MAX_SOURCE = 200_000  # characters of code in one notebook; the longest chapter has a tenth of it


@dataclass(frozen=True)
class Found:
    """A file that was handed in: whose it is, and for which assignment, as far as its place says ("" if it does
    not)."""

    student: str
    assignment: str
    path: Path


class Submission(msgspec.Struct, frozen=True):
    """What of a notebook runs: (cell, exercise or "", source), in the notebook's order, without the set-up cell.

    Plain data: it is all that another process or host needs to grade it.
    """

    student: str
    assignment: str
    sha: str
    cells: tuple[tuple[str, str, str], ...]
    notices: tuple[str, ...] = ()
    unreadable: bool = False


def find(paths: Iterable[Path]) -> tuple[list[Found], list[str]]:
    """The submissions below `paths`, and a sentence for each path without one.

    A path is a notebook, a folder in nbgrader's layout (<student>/<assignment>/*.ipynb) or a flat folder of notebooks.
    Where nbgrader expects one notebook of that name, others in the same folder are scratch paper.
    """
    found: list[Found] = []
    without: list[str] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*.ipynb") if _counts(file, path))
            if not files:
                without.append(
                    f"{clean(str(path))} holds no notebook. "
                    "Expected <student>/<assignment>/<notebook>.ipynb as nbgrader collects them, or *.ipynb files."
                )
            found += [_placed(file, path) for file in files]
        elif path.exists() or path.is_symlink():
            found.append(_placed(path, path.parent))
        else:
            without.append(f"{clean(str(path))} does not exist.")
    return list({os.path.abspath(item.path): item for item in found}.values()), without


def _counts(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    expected = file.with_name(f"{file.parent.name}.ipynb")
    return not hidden and (file == expected or file.parent.name not in assignments.names() or not expected.exists())


def _placed(file: Path, root: Path) -> Found:
    """Whose notebook it is, by its place: nbgrader's layout if the folder is an assignment's name, else the file's
    name."""
    folders = Path(os.path.abspath(file)).parts[:-1]
    if folders and folders[-1] in assignments.names():
        return Found(folders[-2], folders[-1], file)
    inside = file.relative_to(root).parts[:-1]
    student = inside[0] if inside else file.stem
    return Found(student, "", file)


def assignment_of(found: Found) -> str:
    """The assignment a file answers: its place says, else its metadata, else its cells' ids, else its name.

    Raises NotebookError for an unreadable file, UnknownAssignment when nothing tells.
    """
    known = assignments.names()
    if found.assignment:  # whatever the file says or holds
        return found.assignment
    _refuse_odd_files(found.path)
    stated = ichimon.notebook.assignment(found.path)
    if stated in known:
        return stated
    cells = ichimon.notebook.cells(found.path)
    matches = [name for name in known if len(set(_answers(cells, assignments.load(name)).values())) >= 2]
    if len(matches) == 1:
        return matches[0]
    if found.path.stem in known:
        return found.path.stem
    raise assignments.UnknownAssignment(
        f"{clean(found.path.name)}: neither its contents nor its name say which assignment it is ({', '.join(known)})."
    )


def read(found: Found, assignment: Assignment) -> Submission:
    """The submission in a file. What cannot be read becomes a Submission without cells whose notice says why."""
    student = found.student
    try:
        _refuse_odd_names(student)
        _refuse_odd_files(found.path)
        sha = hashlib.sha256(found.path.read_bytes()).hexdigest()
    except (OSError, NotebookError) as error:
        text = (
            str(error)
            if isinstance(error, NotebookError)
            else f"{clean(found.path.name)} cannot be read: {error.strerror}."
        )
        return Submission(student, assignment.name, "", (), (text,), unreadable=True)
    try:
        cells, notices = _cells(found.path, assignment)
    except NotebookError as error:
        return Submission(student, assignment.name, sha, (), (clean(str(error)),), unreadable=True)
    return Submission(student, assignment.name, sha, tuple(cells), tuple(notices))


def from_sources(name: str, assignment: Assignment, sources: Sequence[tuple[str, str]]) -> Submission:
    """A submission made of (exercise, source) pairs: references, mistakes, mutants."""
    cells = tuple((exercise or f"cell {i}", exercise, source) for i, (exercise, source) in enumerate(sources, start=1))
    sha = hashlib.sha256(repr(cells).encode()).hexdigest()
    return Submission(name, assignment.name, sha, cells)


def _refuse_odd_names(student: str) -> None:
    """Two names that look the same would be one student, and one would get the other's marks."""
    if len(student) > MAX_NAME or not all(c.isprintable() or unicodedata.category(c) == "Zs" for c in student):
        shown = " ".join(clean(student, 40).split())
        raise NotebookError(
            f"“{shown}” cannot be a student's name: it is longer than {MAX_NAME} characters or holds some that "
            "cannot be printed. Rename the folder or the file."
        )


def _refuse_odd_files(path: Path) -> None:
    """Links could point at anything the grader may read, pipes never end, devices do worse."""
    name = clean(path.name)
    if path.is_symlink():
        raise NotebookError(f"{name} is a symbolic link, not a notebook: hand in the file itself.")
    if path.exists() and not path.is_file():
        raise NotebookError(f"{name} is not an ordinary file: hand in the .ipynb file that Jupyter saves.")
    if path.exists() and os.path.getsize(path) > ichimon.notebook.MAX_BYTES:
        raise NotebookError(
            f"{name} is larger than {ichimon.notebook.MAX_BYTES >> 20} MB: "
            "clear the outputs of all its cells, save it and hand it in again."
        )


def _locked(assignment: Assignment) -> dict[str, Cell]:
    """The cells that are ours alone, by their source: some editors drop ids."""
    return {cell.source.strip(): cell for cell in assignment.cells if cell.role in ("set-up", "check", "see")}


def _answers(cells: Sequence[Cell], assignment: Assignment) -> dict[int, str]:
    """Position (from 1) -> exercise: by the cell's id, else, where an exercise's id is gone, by the name that the cell
    defines. A single name is no evidence, for other courses have an `attention` too."""
    code = {position: cell for position, cell in enumerate(cells, start=1) if cell.kind == "code"}
    found = {position: cell.id for position, cell in code.items() if cell.id in assignment.points}
    present = {cell.id for cell in cells}
    lost = [exercise for exercise in assignment.points if exercise not in present]
    locked = _locked(assignment)
    for position, cell in code.items():
        if position not in found and cell.source.strip() not in locked:
            defined = [name for name in lost if re.search(rf"^(def|class) {name}\b", cell.source, re.MULTILINE)]
            found |= {position: defined[0]} if defined else {}
    by_id = any(cell.id in assignment.points for cell in code.values())
    return found if by_id or len(set(found.values())) >= 2 else {}


def _cells(path: Path, assignment: Assignment) -> tuple[list[tuple[str, str, str]], list[str]]:
    """What runs, and what the student should know. Roles come from our source, looked up by id; the file's own flags
    count for nothing."""
    ours = {cell.id: cell for cell in assignment.cells if cell.kind == "code"}
    by_source = _locked(assignment)
    submitted = ichimon.notebook.cells(path)
    answers = _answers(submitted, assignment)
    cells: list[tuple[str, str, str]] = []
    notices: list[str] = []
    seen: dict[str, int] = {}
    size = 0
    for position, cell in enumerate(submitted, start=1):
        known = ours.get(cell.id) or by_source.get(cell.source.strip())
        if cell.kind != "code" or not cell.source.strip() or (known and known.role != "solution"):
            if known and known.role == "solution" and cell.kind != "code":
                notices.append(
                    f"The cell of {known.exercise} is a text cell, so its code did not run: make it a code cell again."
                )
            continue
        exercise = answers.get(position, "")
        name = exercise or f"cell {position}"
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{exercise} ({seen[name]})"
        source, magics = ichimon.notebook.blank_magics(cell.source)
        notices += [f"A notebook command in {name} was left out: {clean(magic, 60)}" for magic in magics]
        cells.append((name, exercise, source))
        size += len(source)
    notices += [
        f"The cell of {name} is there {count} times: all ran, the last one counts."
        for name, count in seen.items()
        if count > 1
    ]
    answered = {exercise for _, exercise, _ in cells if exercise}
    if not answered:
        notices.insert(0, f"This is not the notebook of {assignment.name}: none of its exercises is in it.")
        return [], notices
    missing = [name for name in assignment.points if name not in answered]
    notices += [f"The cell of {name} is missing." for name in missing]
    if len(cells) > MAX_CELLS or size > MAX_SOURCE:
        raise NotebookError(
            f"The notebook holds {len(cells):,} code cells with {size:,} characters; "
            f"at most {MAX_CELLS:,} and {MAX_SOURCE:,} are graded."
        )
    return cells, notices
