"""solutions/NN-topic.py → nbgrader's source notebook → notebooks/NN-topic/NN-topic.ipynb, the one that students get.

jupytext reads the source (in `ichimon.notebook`), short cell headers become nbgrader's metadata here, the first
cell and the links to the book are added, and nbgrader's GenerateAssignment cuts the solutions, locks the checks and
writes the gradebook. The same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autograder import course as course_module
from autograder import translation
from autograder.authoring import bootstrap
from autograder.course import Course
from ichimon import notebook
from ichimon.notebook import Cell, NotebookError

ROOT = Path(__file__).resolve().parents[2]

STUB = 'raise NotImplementedError("your code goes here: replace this line")'
ANSWER_STUB = "*Your answer goes here: replace this line. A person reads it.*"

KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def build(root: Path = ROOT, only: Sequence[str] = (), db_url: str | None = None) -> list[Path]:
    """Bring the notebooks under `root` up to date (all, or the assignments in `only`); return those that changed.

    `db_url` is the gradebook that is told about the assignments, by default one under `_build/nbgrader`. What is up to
    date is not built again: the source, this module, the tools' versions and the released bytes are compared by hash.
    NotebookError says what is wrong with a source.
    """
    root = root.resolve()
    db_url = db_url or f"sqlite:///{root / '_build/nbgrader/gradebook.db'}"
    course = Course(root)
    sources = {path.stem: path for path in course.sources}
    if unknown := sorted(set(only) - set(sources)):
        raise NotebookError(f"There is no solutions/{unknown[0]}.py; the assignments are: {', '.join(sources)}.")
    changed = []
    for name in only or sources:
        released = root / "notebooks" / name / f"{name}.ipynb"
        stamp = root / "_build" / "nbgrader" / "stamps" / f"{name}-{_sha(db_url.encode())[:8]}.json"
        inputs = _fingerprint(sources[name], course)
        if _read(stamp) == _stamp(inputs, _read(released)) and _gradebook_knows(name, db_url):
            continue
        content = _generate(sources[name], name, root, db_url)
        if _read(released) != content:
            _write(released, content)
            changed.append(released)
        _write(stamp, _stamp(inputs, content))
    return changed


def main() -> None:
    """Build what is out of date and print a line for each notebook that changed."""
    try:
        if (language := Course(ROOT).settings.language) not in ("", translation.SOURCE_LANGUAGE):
            from autograder.authoring import translate

            print(translate.summary(language), file=sys.stderr)
        changed = build(only=[Path(name).stem for name in sys.argv[1:]])
    except NotebookError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename} cannot be read or written: {error.strerror}.")
    for path in changed:
        print(f"built {path.relative_to(ROOT)}")


def source_notebook(source: Path) -> str:
    """The notebook that nbgrader starts from, as JSON: solutions still in it, stand-ins left out."""
    import nbformat

    name = notebook.assignment(source)
    if name != source.stem:
        raise NotebookError(
            f"{source.name} says that its assignment is {name!r}: its YAML header needs, "
            f"under jupyter, ichimon: {{assignment: {source.stem}}}."
        )
    course = Course(source.parents[1])
    cells = _with_links([cell for cell in course.cells(source) if cell.role != "stand-in"], name, course)
    first = bootstrap.source([cell.source for cell in cells if cell.kind == "code"], course.package)
    set_up = next(i for i, cell in enumerate(cells) if cell.role == "set-up")
    cells.insert(set_up, Cell("code", first, "bootstrap", "bootstrap"))
    points = {cell.exercise: _number(cell.points) for cell in cells if cell.role == "check"}
    new_cell = {
        "code": nbformat.v4.new_code_cell,
        "markdown": nbformat.v4.new_markdown_cell,
        "raw": nbformat.v4.new_raw_cell,
    }
    made = nbformat.v4.new_notebook(
        metadata={**KERNEL, "ichimon": {"assignment": name, "exercises": points}},
        cells=[new_cell[cell.kind](cell.source, id=cell.id, metadata=_metadata(cell)) for cell in cells],
    )
    nbformat.validate(made)
    return str(nbformat.writes(made)) + "\n"


def _with_links(cells: list[Cell], name: str, course: Course) -> list[Cell]:
    """The cells with a line in each prompt that says where the book explains it, and in the first how to open Colab.

    A cell's id is that of its source, whatever the links are: work carries over.
    """
    linked, words = list(cells), course.words(name)
    for i, cell in enumerate(cells):
        prompt = next((j for j in range(i, -1, -1) if cells[j].kind == "markdown"), None)
        if not cell.section or prompt is None:
            continue
        title = words(cell.section)
        where = f"“{title}”"
        if course.settings.book:
            where = f"[{title}]({course.settings.book.rstrip('/')}/{course.page(name, cell.section)})"
        told = words("In the book: {section}", section=where)
        linked[prompt] = replace(cells[prompt], source=f"{cells[prompt].source}\n\n*{told}*")
    if (colab := course.colab(name)) and linked[0].kind == "markdown":
        linked[0] = replace(
            linked[0], source=f"{linked[0].source}\n\n[{words('Open this notebook in Colab')}]({colab})"
        )
    return linked


def _metadata(cell: Cell) -> dict[str, Any]:
    if cell.role == "bootstrap":
        return bootstrap.METADATA
    if cell.role == "see":
        return {"ichimon": {"id": cell.id, "see": cell.exercise}}
    if cell.role == "other":
        return {}
    nbgrader: dict[str, Any] = {
        "grade": cell.role in ("check", "question"),
        "grade_id": cell.id,
        "locked": cell.role not in ("solution", "question"),
        "schema_version": 3,
        "solution": cell.role in ("solution", "question"),
        "task": False,
    }
    if cell.role in ("check", "question"):
        nbgrader["points"] = _number(cell.points)
    return {"nbgrader": nbgrader}


def _generate(source: Path, name: str, root: Path, db_url: str) -> bytes:
    """What nbgrader makes of the source: the notebook without its solutions."""
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.utils import capture_log
    from traitlets.config import Config

    work = root / "_build" / "nbgrader"
    _write(work / "source" / name / f"{name}.ipynb", source_notebook(source).encode())
    course = CourseDirectory(root=str(work), assignment_id=name, db_url=db_url)
    config = Config({"ClearSolutions": {"code_stub": {"python": STUB}, "text_stub": ANSWER_STUB}})
    generator = GenerateAssignment(coursedir=course, config=config, force=True, create_assignment=True)
    with _own_programs_on_path():
        outcome = capture_log(generator)
    if not outcome["success"]:
        errors = re.findall(r"^ *[\w.]*(?:Error|Exception): (.+)", outcome["log"], re.MULTILINE)
        reason = errors[-1] if errors else outcome["log"]
        raise NotebookError(f"nbgrader cannot make {name} from {source.name}: {reason.strip().rstrip('.')}.")
    generated = (work / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    return (generated.rstrip("\n") + "\n").encode()


@contextmanager
def _own_programs_on_path() -> Iterator[None]:
    """nbgrader starts `alembic` by its name, which is found only where the environment was activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _fingerprint(source: Path, course: Course) -> str:
    package = sorted(Path(notebook.__file__).parent.glob("*.py"))  # what it imports decides what is installed
    ours = (source, Path(__file__), Path(bootstrap.__file__), Path(course_module.__file__), bootstrap.REQUIREMENTS)
    parts = [path.read_bytes() for path in (*ours, *package)]
    settings, language = course.settings, course.settings.language
    chosen = (dict(course.points(source.stem)), settings.book, settings.students, language)
    parts += [json.dumps(chosen, sort_keys=True).encode()]
    if language:
        parts += [Path(translation.__file__).read_bytes()]
        parts += [_read(translation.catalogue(course.root, language, name)) or b"" for name in ("grader", source.stem)]
    parts += [version(tool).encode() for tool in ("jupytext", "nbgrader", "nbformat", "nbconvert")]
    return _sha("".join(_sha(part) for part in parts).encode())


def _stamp(inputs: str, released: bytes | None) -> bytes:
    return json.dumps({"inputs": inputs, "released": _sha(released or b"")}).encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _gradebook_knows(name: str, db_url: str) -> bool:
    """Whether an SQLite gradebook still has the assignment (it may have been deleted); others are taken to have it."""
    prefix = "sqlite:///"
    if not db_url.startswith(prefix):
        return True
    path = Path(db_url.removeprefix(prefix).partition("?")[0])
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as gradebook:
            return gradebook.execute("select 1 from assignment where name = ?", [name]).fetchone() is not None
    except sqlite3.Error:
        return False


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _number(points: float) -> float:
    """3 rather than 3.0, as an author wrote it."""
    return int(points) if points.is_integer() else points


if __name__ == "__main__":
    main()
