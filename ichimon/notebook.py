"""Reading notebooks: what students hand in (.ipynb) and what authors write (percent .py), as the same cells.

Nothing of a notebook is trusted: whatever the file holds, reading it gives cells or a NotebookError.
Reading runs no code; `load` and `run` do.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn, TypeGuard

Kind = Literal["code", "markdown", "raw"]
Role = Literal["bootstrap", "set-up", "solution", "check", "see", "stand-in", "question", "other"]

# How a released notebook begins, where some editors drop ids: the cell that installs what is missing. We never run it.
BOOTSTRAP = "# @title Run this first: it installs what is missing, and does nothing where all is there."
MAX_BYTES = 20 * 2**20  # a notebook with every plot of a chapter in it is about 1 MB


class NotebookError(ValueError):
    """What is wrong with a notebook and what to do about it, in one sentence."""


@dataclass(frozen=True)
class Cell:
    """One cell. In an .ipynb its role is what the metadata claim, so a student can change it.

    A solution or check whose `kind` is not "code" was turned into a text cell by its owner.
    """

    kind: Kind
    source: str
    id: str
    role: Role
    exercise: str = ""  # for solution, check, see and stand-in
    points: float = 0  # for check, and for a question that a person marks
    section: str = ""  # of the book's page that explains an exercise; only an author's source says it

    def label(self, position: int) -> str:
        """The cell's name for people: its id, or its place (from 1) for a cell that the student added."""
        return f"cell {self.id}" if self.id and self.role != "other" else f"cell {position}"


def cells(path: Path | str, data: bytes | None = None) -> list[Cell]:
    """The cells of a notebook, .ipynb or percent .py, in order; with `data`, of an .ipynb that holds these bytes.

    A .py source is the author's: an unknown header, a duplicate, an exercise without a check raise NotebookError.
    """
    path = Path(path)
    return _ipynb_cells(path, _document(path, data)) if _is_ipynb(path) else _source_cells(path)


def assignment(path: Path | str, data: bytes | None = None) -> str | None:
    """The assignment that a notebook says it is, or None if it does not say."""
    path = Path(path)
    metadata = _document(path, data)["metadata"] if _is_ipynb(path) else _jupytext(path).metadata
    name = _dict(_dict(metadata).get("ichimon")).get("assignment")
    return name if _is_id(name) else None


def exercises(path: Path | str) -> dict[str, float]:
    """The exercises of a notebook in order and their points, also those whose cells were deleted from an .ipynb."""
    path = Path(path)
    if _is_ipynb(path):
        document = _document(path)
        found, declared = _ipynb_cells(path, document), _declared(document)
    else:
        found, declared = _source_cells(path), {}
    written = {cell.exercise: 0.0 for cell in found if cell.role == "solution"}
    return {**written, **{cell.exercise: cell.points for cell in found if cell.role == "check"}, **declared}


def blank_magics(source: str) -> tuple[str, list[str]]:
    """A cell as plain Python, every line kept in its place, and the magics and shell lines that were blanked.

    One pass over the text, so that no cell, however odd, takes long.
    """
    magics: list[str] = []
    kept: list[str] = []
    position = 0
    if whole := _CELL_MAGIC.match(source):
        magics.append(whole[1])
        if whole[2] not in ("time", "timeit", "capture", "prun"):
            return "\n" * source.count("\n"), magics  # the rest is another language
        kept.append("\n" * whole[0].count("\n"))
        position = whole.end()
    while position < len(source):
        if magic := _MAGIC.match(source, position):
            magics.append(magic[2].partition("\n")[0].rstrip())
            kept.append(f"{magic[1]}pass" + "\n" * magic[2].count("\n"))
            position = magic.end()
        else:
            end = _statement_end(source, position)
            kept.append(source[position:end])
            position = end
    return "".join(kept), magics


def run(cell: Cell, namespace: dict[str, Any], filename: str) -> None:
    """Run a code cell. Tracebacks and `inspect.getsource` find its text under `filename`."""
    source, _ = blank_magics(cell.source)
    linecache.cache[filename] = (len(source), None, [line + "\n" for line in cell.source.split("\n")], filename)
    try:
        code = compile(source, filename, "exec", dont_inherit=True)  # else our __future__ imports leak in
    except ValueError as error:  # what Python 3.11 says, in some of its versions, of code with a null byte
        raise SyntaxError(str(error)) from None
    exec(code, namespace)


def load(path: Path | str) -> ModuleType:
    """Run a notebook's set-up and solution cells, and the cells a student added; return what they define.

    `load("solutions/02-self-attention.py").causal_mask` is the reference, on a student's notebook it is theirs.
    It runs their code in this process: the autograder never calls it.
    """
    path = Path(path)
    digest = hashlib.sha256(str(path.resolve()).encode(errors="replace")).hexdigest()[:8]
    name = f"ichimon_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{digest}"
    module = ModuleType(name, f"The definitions of {path.name}.")
    found = cells(path)
    sys.modules[name] = module  # pickle and dataclasses look a class's module up there
    for position, cell in enumerate(found, start=1):
        if cell.kind != "code" or cell.role not in ("set-up", "solution", "other"):
            continue
        filename = f"{_name(path)}, {cell.label(position)}"
        try:
            run(cell, vars(module), filename)
        except Exception as error:
            del sys.modules[name]
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise NotebookError(f"{filename} raised {what} (the traceback above says where).") from error
    return module


def _is_ipynb(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (".ipynb", ".py"):
        raise NotebookError(f"{_name(path)} is not a notebook: give the .ipynb file that Jupyter saves.")
    return suffix == ".ipynb"


def _name(path: Path) -> str:
    """The file's name, safe to print on one line: a file may be called anything."""
    return "".join(c if c.isprintable() else "?" for c in path.name) or str(path)


def _text(path: Path, data: bytes | None = None) -> str:
    name = _name(path)
    data = _bytes(path) if data is None else data
    if not data.strip():
        raise NotebookError(f"{name} is empty: save the notebook again.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotebookError(
            f"{name} is not text in UTF-8, so it is no notebook: give the .ipynb file that Jupyter saves."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _bytes(path: Path) -> bytes:
    name = _name(path)
    try:
        if path.is_dir():
            raise NotebookError(f"{name} is a folder: give the notebook file in it.")
        if not path.is_file():
            raise NotebookError(f"There is no file {name} here: check its name and its folder.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotebookError(f"{name} cannot be read ({error.strerror}): check the file and its permissions.") from error
    except NotebookError:
        raise
    except ValueError as error:  # a path with a zero byte
        raise NotebookError(f"{name} is not the name of a file: check it.") from error
    if len(data) > MAX_BYTES:
        raise NotebookError(
            f"{name} is larger than {MAX_BYTES // 2**20} MB: clear the outputs of all its cells, save it and try again."
        )
    return data


_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _points(value: object) -> float:
    """A number of points, or 0 for anything that is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return 0.0
    return float(value) if value < 1e6 else 0.0


# Strings and comments are taken whole, so that what is in them neither opens a bracket nor looks like a magic.
# Possessive, so that no text makes it go back.
_TOKEN = re.compile(
    r"""\#[^\n]*+
      | '{3} (?: \\. | [^\\'] | '(?!'') )*+ (?: '{3} | \\?\Z )
      | "{3} (?: \\. | [^\\"] | "(?!"") )*+ (?: "{3} | \\?\Z )
      | ' (?: \\. | [^\\'\n] )*+ '?
      | " (?: \\. | [^\\"\n] )*+ "?
      | \\\n | [()\[\]{}\n]""",
    re.DOTALL | re.VERBOSE,
)
_CELL_MAGIC = re.compile(r"\s*+(%%(\w*+)[^\n]*)")
# "%time", "!ls", "?len", "files = !ls", "len?", each with the lines that a backslash adds
_MAGIC = re.compile(
    r"""([ \t]*+)
    ( (?: [%!?] | [\w., ]++ = [ ]*+ [%!] | [\w.]++ \?{1,2} [ \t]*+ $ ) (?: \\\n | [^\n] )*+ )""",
    re.MULTILINE | re.VERBOSE,
)


def _statement_end(source: str, start: int) -> int:
    """Where the statement that begins at `start` ends: after the line break that is in no bracket or string."""
    depth = 0
    for match in _TOKEN.finditer(source, start):
        token = match[0]
        if token == "\n" and not depth:
            return match.end()
        if token in ("(", "[", "{"):
            depth += 1
        elif token in (")", "]", "}"):
            depth = max(0, depth - 1)
    return len(source)


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _document(path: Path, data: bytes | None = None) -> dict[str, Any]:
    name = _name(path)
    try:
        document = json.loads(_text(path, data), parse_constant=_not_json)
    except NotebookError:
        raise
    except json.JSONDecodeError as error:
        raise NotebookError(
            f"{name} is damaged (its JSON is broken in line {error.lineno}): "
            "take an earlier copy of it, or save it again in Jupyter."
        ) from error
    except (ValueError, RecursionError) as error:  # NaN, a number of 5,000 digits, lists in lists in lists
        raise NotebookError(
            f"{name} holds data that no notebook has: save it again in Jupyter and use that file."
        ) from error
    if not isinstance(document, dict) or "nbformat" not in document:
        raise NotebookError(f"{name} is JSON but not a notebook: give the .ipynb file that Jupyter saves.")
    version = document["nbformat"]
    if version != 4 or isinstance(version, bool | float):
        shown = version if isinstance(version, int) and abs(version) < 100 else "unknown"
        raise NotebookError(
            f"{name} is in notebook format {shown}, and the course reads format 4: "
            "open it in a current JupyterLab, save it and use that file."
        )
    if not isinstance(document.get("cells"), list):
        raise NotebookError(f"{name} has no cells: save it again in Jupyter and use that file.")
    return {**document, "metadata": _dict(document.get("metadata"))}


def _declared(document: Mapping[str, Any]) -> dict[str, float]:
    """The exercises that our own build wrote into the notebook's metadata."""
    listed = _dict(_dict(document["metadata"].get("ichimon")).get("exercises"))
    return {name: _points(points) for name, points in listed.items() if _is_id(name)}


def _ipynb_cells(path: Path, document: Mapping[str, Any]) -> list[Cell]:
    declared = _declared(document)
    found = []
    for position, raw in enumerate(document["cells"], start=1):
        trouble = f"cell {position} of {_name(path)}"
        kind = _dict(raw).get("cell_type")
        if kind not in ("code", "markdown", "raw"):
            raise NotebookError(f"{trouble} is neither code nor text: delete it in Jupyter, save and try again.")
        source = raw.get("source")
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = "".join(source)
        if not isinstance(source, str):
            raise NotebookError(f"{trouble} has no readable text: delete it in Jupyter, save and try again.")
        # JSON can spell half a surrogate pair; nothing after us could encode it
        source = source.replace("\r\n", "\n").replace("\r", "\n").encode(errors="replace").decode()
        found.append(_classified(kind, source, raw, declared))
    return found


def _classified(kind: Kind, source: str, raw: Mapping[str, Any], declared: Mapping[str, float]) -> Cell:
    """What a cell is: nbgrader's metadata say, else ours, else its id (some editors drop metadata, some drop ids)."""
    metadata = _dict(raw.get("metadata"))
    nbgrader, ours = _dict(metadata.get("nbgrader")), _dict(metadata.get("ichimon"))
    see = ours.get("see")
    candidates = (nbgrader.get("grade_id"), ours.get("id"), f"see-{see}" if _is_id(see) else None, raw.get("id"))
    cell_id = next((candidate for candidate in candidates if _is_id(candidate)), "")
    graded, solved = nbgrader.get("grade") is True, nbgrader.get("solution") is True
    prefix, _, rest = cell_id.partition("-")
    exercise = rest.partition("-")[0]  # a second plot of an exercise is called see-name-2
    if cell_id == nbgrader.get("grade_id") and solved and not graded:
        return Cell(kind, source, cell_id, "solution", exercise=cell_id)
    if cell_id == nbgrader.get("grade_id") and graded and not solved:
        checked = cell_id.removeprefix("check-")
        return Cell(kind, source, cell_id, "check", exercise=checked, points=_points(nbgrader.get("points")))
    if cell_id == nbgrader.get("grade_id") and graded and solved and kind == "markdown":
        return Cell(kind, source, cell_id, "question", points=_points(nbgrader.get("points")))
    if cell_id == "set-up":
        return Cell(kind, source, cell_id, "set-up")
    if cell_id == "bootstrap" or (cell_id not in declared and source.startswith(BOOTSTRAP)):
        return Cell(kind, source, cell_id, "bootstrap")
    if prefix == "check" and exercise:
        return Cell(kind, source, cell_id, "check", exercise=exercise, points=declared.get(exercise, 0.0))
    if prefix == "see" and exercise:
        return Cell(kind, source, cell_id, "see", exercise=exercise)
    if cell_id in declared and kind == "code":
        return Cell(kind, source, cell_id, "solution", exercise=cell_id)
    return Cell(kind, source, cell_id, "other")


def _jupytext(path: Path) -> Any:
    text = _text(path)
    # jupytext imports something that would build a grammar for addresses: it takes longer than all the rest, for nobody
    slow = "rfc3987_syntax"
    skipped = slow not in sys.modules
    if skipped:
        sys.modules[slow] = None  # type: ignore[assignment]  # jsonschema goes without
    try:
        import jupytext
    finally:
        if skipped:
            del sys.modules[slow]

    # comments such as "# cat the heads" are comments: jupytext would uncomment them as shell commands
    percent = {"extension": ".py", "format_name": "percent", "comment_magics": False}
    try:
        return jupytext.reads(text, fmt=percent)
    except Exception as error:  # YAML errors and whatever else a broken header causes
        first = str(error).partition("\n")[0]
        raise NotebookError(f"{_name(path)}: jupytext cannot read it ({first}): mend its YAML header.") from error


_ROLES: Mapping[str, Role] = {
    "role": "set-up",
    "exercise": "solution",
    "check": "check",
    "see": "see",
    "stand_in": "stand-in",
    "question": "question",
}
_PREFIX: Mapping[Role, str] = {"solution": "", "check": "check-", "see": "see-", "stand-in": "stand-in-"}
_LAYOUT = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}  # jupytext's own, about the file


def _source_cells(path: Path) -> list[Cell]:
    found: list[Cell] = []
    seen: Counter[tuple[str, str]] = Counter()
    for position, raw in enumerate(_jupytext(path).cells, start=1):
        header = {key: value for key, value in raw.metadata.items() if key not in _LAYOUT}
        source = raw.source.strip("\n")
        begins = source.partition("\n")[0]
        headers = [header]
        if isinstance(several := header.get("stand_in"), str):  # "A, B": the same for both
            headers = [{**header, "stand_in": name} for name in several.split(", ")]
        try:
            found += [_source_cell(raw.cell_type, source, one, seen) for one in headers]
        except NotebookError as error:
            raise NotebookError(f"{_name(path)}, cell {position} (“{begins}”): {error}") from None
    try:
        _check_source(found)
    except NotebookError as error:
        raise NotebookError(f"{_name(path)}: {error}") from None
    return found


def _source_cell(kind: Kind, source: str, header: Mapping[str, Any], seen: Counter[tuple[str, str]]) -> Cell:
    roles = [key for key in header if key in _ROLES]
    if broken := header.get("incorrectly_encoded_metadata"):
        raise NotebookError(f'the header “{broken}” is not key="value": quote its values.')
    if unknown := sorted(set(header) - set(_ROLES) - {"points", "section"}):
        known = ", ".join([*_ROLES, "points"])
        raise NotebookError(f"the header has {unknown[0]!r}; what it may have is {known} and section.")
    if kind == "markdown" and roles == ["question"]:
        return _question(source, header, seen)
    if kind != "code":
        if header:
            raise NotebookError(f"a {kind} cell has no {next(iter(header))}: remove it from the header.")
        digest = hashlib.sha256(f"{seen[kind, source]}\n{source}".encode()).hexdigest()[:12]
        seen[kind, source] += 1
        return Cell(kind, source, digest, "other")
    if len(roles) != 1 or roles == ["question"]:
        raise NotebookError('a code cell\'s header has exactly one of role="set-up", exercise, check, see, stand_in.')
    role, name = _ROLES[roles[0]], header[roles[0]]
    section = header.get("section", "")
    if not isinstance(section, str) or (section and role != "solution"):
        raise NotebookError("section names a heading of the book's page, and belongs to an exercise.")
    if ("points" in header) != (role == "check") or (role == "check" and _points(header["points"]) == 0):
        raise NotebookError("points (a number above 0) belong to a check cell, and every check has them.")
    if role == "set-up":
        if name != "set-up":
            raise NotebookError(f'role={name!r} is unknown: the only role is "set-up".')
        return Cell(kind, source, "set-up", role)
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier():
        raise NotebookError(f"{name!r} is not a name in Python, and an exercise's name must be.")
    cell_id = _PREFIX[role] + name
    seen[role, name] += 1
    if seen[role, name] > 1 and role == "see":
        cell_id += f"-{seen[role, name]}"
    points = _points(header.get("points"))
    return Cell(kind, source, cell_id, role, exercise=name, points=points, section=section)


def _question(source: str, header: Mapping[str, Any], seen: Counter[tuple[str, str]]) -> Cell:
    """A question that is answered in words and marked by a person; its source is the answer that we expect."""
    name, points = header["question"], _points(header.get("points"))
    if not _is_id(name) or seen["question", name]:
        raise NotebookError(f"{name!r} is no name for a question, or there are two of them.")
    if not points:
        raise NotebookError("a question has points, a number above 0.")
    seen["question", name] += 1
    return Cell("markdown", source, name, "question", points=points)


def _check_source(found: list[Cell]) -> None:
    """What must hold for a chapter's source as a whole."""
    code = [cell for cell in found if cell.kind == "code"]
    if [cell.role for cell in code[:1]] != ["set-up"] or sum(cell.role == "set-up" for cell in code) != 1:
        raise NotebookError('the first code cell, and no other, is the set-up: # %% role="set-up".')
    ids = Counter(cell.id for cell in code)
    if twice := [cell_id for cell_id, n in ids.items() if n > 1]:
        raise NotebookError(f"{twice[0]} is there twice: every exercise has one cell of each kind.")
    written: set[str] = set()
    for position, cell in enumerate(found, start=1):
        label = cell.label(position)
        marks = re.findall(r"(BEGIN|END) SOLUTION", cell.source)
        if marks != ["BEGIN", "END"] * (len(marks) // 2):
            raise NotebookError(f"{label}: each ### BEGIN SOLUTION needs one ### END SOLUTION after it.")
        if cell.role == "solution":
            written.add(cell.exercise)
            if not marks:
                raise NotebookError(
                    f"exercise {cell.exercise} has no ### BEGIN SOLUTION: without it its signature would be cut too."
                )
        elif marks:
            raise NotebookError(f"{label} has a ### BEGIN SOLUTION, which only an exercise's cell may have.")
        elif cell.exercise and cell.exercise not in written and cell.role != "stand-in":
            raise NotebookError(f"{cell.id} comes before the exercise {cell.exercise}, or there is no such exercise.")
        if "BEGIN HIDDEN TESTS" in cell.source:
            raise NotebookError(f"{label} has hidden tests: they belong into autograder/tests.")
    checked = {cell.exercise for cell in code if cell.role == "check"}
    for cell in code:
        if cell.role == "solution" and cell.exercise not in checked:
            raise NotebookError(f'exercise {cell.exercise} has no cell # %% check="{cell.exercise}" points=…')
        if cell.role == "stand-in" and cell.exercise not in written:
            raise NotebookError(f"{cell.id} stands in for an exercise that is not there.")
