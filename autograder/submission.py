"""From files to the cells that run. Everything hostile about files ends here: after this there are strings, or a
sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

import ichimon.notebook
from autograder import archives, names
from autograder import assignment as assignments
from autograder.assignment import Assignment
from autograder.report import clean
from ichimon.notebook import Cell, NotebookError

MAX_CELLS = 1000
MAX_DEPTH = 10  # folders in folders
MAX_NOTICES = 20
_CLONES = re.compile(r"(.+?)(?:-submissions|_submissions_[\dT_]+)")
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
        if archives.is_archive(path):
            unpacked, sentences = archives.unpack(path)
            found += [Found(*item) for item in unpacked]
            without += sentences
        elif path.is_dir():
            below, sentences = _below(path)
            without += sentences
            files = [file for file in below if _counts(file, path)]
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


def _below(root: Path) -> tuple[list[Path], list[str]]:
    """The notebooks below a folder, in order, and a sentence for each folder in it that nobody looked into.

    Path.rglob would end in a RecursionError where somebody nests folders deeply enough, and say nothing of links.
    """
    files: list[Path] = []
    sentences: list[str] = []
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                inside = [(folder / entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            sentences.append(f"{clean(str(folder))} cannot be read: {error.strerror}.")
            continue
        for path, is_folder in inside:
            if path.name.endswith(".ipynb"):
                files.append(path)
            elif path.is_symlink() and path.is_dir():
                sentences.append(f"{clean(str(path))} is a symbolic link, not a folder: nothing in it was graded.")
            elif is_folder and len(path.relative_to(root).parts) > MAX_DEPTH:
                sentences.append(f"{clean(str(path))} lies too deep: nothing below {MAX_DEPTH} folders was graded.")
            elif is_folder and not path.name.startswith("."):
                waiting.append(path)
    return sorted(files), sorted(sentences)


def _counts(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    expected = file.with_name(f"{file.parent.name}.ipynb")
    return not hidden and (file == expected or file.parent.name not in assignments.names() or not expected.exists())


def _placed(file: Path, root: Path) -> Found:
    """Whose notebook it is, by its place: nbgrader's layout if a folder is an assignment's name, else the first folder,
    else the file's name. The outermost folder decides, for those inside it are the student's to make."""
    folders = file.relative_to(root).parts[:-1]
    outer = Path(os.path.abspath(root)).parts
    known = assignments.names()
    if cloned_by := login(*outer[-1:], *folders):
        return Found(cloned_by, "", file)
    for place, name in enumerate(folders):
        if name in known:
            return Found((*outer, *folders)[len(outer) + place - 1], name if place + 1 == len(folders) else "", file)
    if not folders and outer[-1] in known:
        return Found(outer[-2], outer[-1], file)
    return Found(folders[0] if folders else file.stem, "", file)


def login(*folders: str) -> str:
    """Whose repository it is, where it lies among others as `gh classroom clone student-repos` and `gh teacher
    download` put them: in hello-submissions/hello-octocat or hello_submissions_2026…/hello-octocat. Else "".

    Only the two outermost folders are looked at: those inside a repository are the student's to make.
    """
    for outer, repository in pairwise(folders[:3]):
        cloned = _CLONES.fullmatch(outer)
        if cloned and repository.startswith(f"{cloned[1]}-"):
            return repository.removeprefix(f"{cloned[1]}-")
    return ""


def assignment_of(found: Found) -> str:
    """The assignment a file answers: its place says, else its metadata, else its cells' ids, else its name.

    Raises NotebookError for an unreadable file, UnknownAssignment when nothing tells.
    """
    known = assignments.names()
    if found.assignment:  # whatever the file says or holds
        return found.assignment
    data = content(found.path)
    stated = ichimon.notebook.assignment(found.path, data)
    if stated in known:
        return stated
    cells = ichimon.notebook.cells(found.path, data)
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
        if wrong := names.trouble(student):
            raise NotebookError(wrong)
        data = content(found.path)
    except (OSError, NotebookError) as error:
        text = (
            str(error)
            if isinstance(error, NotebookError)
            else f"{clean(found.path.name)} cannot be read: {error.strerror}."
        )
        return Submission(student, assignment.name, "", (), (text,), unreadable=True)
    sha = hashlib.sha256(data).hexdigest()
    try:
        cells, notices = _cells(ichimon.notebook.cells(found.path, data), assignment)
    except NotebookError as error:
        return Submission(student, assignment.name, sha, (), (clean(str(error)),), unreadable=True)
    return Submission(student, assignment.name, sha, tuple(cells), tuple(notices))


def from_sources(name: str, assignment: Assignment, sources: Sequence[tuple[str, str]]) -> Submission:
    """A submission made of (exercise, source) pairs: references, mistakes, mutants."""
    cells = tuple((exercise or f"cell {i}", exercise, source) for i, (exercise, source) in enumerate(sources, start=1))
    sha = hashlib.sha256(repr(cells).encode()).hexdigest()
    return Submission(name, assignment.name, sha, cells)


def content(path: Path) -> bytes:
    """A file's bytes, read once: what is hashed is what runs, whoever changes the file meanwhile.

    Links could point at anything the grader may read, pipes never end, devices do worse.
    """
    name = clean(path.name)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():  # the first also if it was one only when it was opened
            raise NotebookError(f"{name} is a symbolic link, not a notebook: hand in the file itself.") from error
        if error.errno == errno.ENXIO:  # a socket
            raise NotebookError(
                f"{name} is not an ordinary file: hand in the .ipynb file that Jupyter saves."
            ) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise NotebookError(f"{name} is not an ordinary file: hand in the .ipynb file that Jupyter saves.")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(ichimon.notebook.MAX_BYTES + 1)
    finally:
        os.close(handle)
    if len(data) > ichimon.notebook.MAX_BYTES:
        raise NotebookError(
            f"{name} is larger than {ichimon.notebook.MAX_BYTES >> 20} MB: "
            "clear the outputs of all its cells, save it and hand it in again."
        )
    return data


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


def _cells(submitted: Sequence[Cell], assignment: Assignment) -> tuple[list[tuple[str, str, str]], list[str]]:
    """What runs, and what the student should know. Roles come from our source, looked up by id; the file's own flags
    count for nothing."""
    ours = {cell.id: cell for cell in assignment.cells if cell.kind == "code"}
    by_source = _locked(assignment)
    code = [cell.source for cell in submitted if cell.kind == "code" and cell.source.strip()]
    if len(code) > MAX_CELLS or sum(map(len, code)) > MAX_SOURCE:  # before anything is done to each of them
        raise NotebookError(
            f"The notebook holds {len(code):,} code cells with {sum(map(len, code)):,} characters; "
            f"at most {MAX_CELLS:,} and {MAX_SOURCE:,} are graded."
        )
    answers = _answers(submitted, assignment)
    cells: list[tuple[str, str, str]] = []
    notices: list[str] = []
    commands: list[str] = []
    seen: dict[str, int] = {}
    for position, cell in enumerate(submitted, start=1):
        known = ours.get(cell.id) or by_source.get(cell.source.strip())
        ours_alone = cell.role == "bootstrap" or (known is not None and known.role != "solution")
        if cell.kind != "code" or not cell.source.strip() or ours_alone:
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
        commands += [f"A notebook command in {name} was left out: {clean(magic, 60)}" for magic in magics]
        cells.append((name, exercise, source))
    more = len(commands) - MAX_NOTICES
    notices += [*commands[:MAX_NOTICES], f"{more:,} more notebook commands were left out."] if more > 0 else commands
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
    return cells, notices
