"""The student bundle, and the proof that no answer is in it.

The bundle is what students get: the released notebooks, the built book, the `ichimon` package and what installs it.
`leaks` then looks for the answers in every file of it, as somebody would who has the whole bundle and some patience:

- `RUN` consecutive tokens (names, numbers, signs; however they are laid out and coloured) of a solution or of the
  expected answer to a question, `LONG_RUN` of a hidden test, a mistake, a stand-in, an alternative or a sample
  submission, unless a prompt, a starter or a visible check has them too, or `coincidences.toml` says they mean nothing;
- the name of a hidden test anywhere in a file's bytes;
- metadata of a notebook's cell that nbgrader or the course did not put there, and outputs.

Where the bundle is a git repository, every object in it is searched in the same way: what was once committed is public.
"""

from __future__ import annotations

import html
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import tempfile
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from autograder import variants
from autograder.authoring.build import STUB
from autograder.course import Course
from ichimon import notebook

ROOT = Path(__file__).resolve().parents[2]
RUN = 8  # tokens of a solution in a row that are no coincidence
LONG_RUN = 12  # of which there is much more: hidden tests, mistakes, alternatives, much of it everyday Python
TOKEN = re.compile(r"[^\W\d]\w*|\d+(?:\.\d+)?|[^\w\s]")

STUDENTS_PACKAGES = (
    *("torch", "numpy", "einops", "jaxtyping", "transformers", "tokenizers", "accelerate", "peft", "tqdm", "pooch"),
    *("matplotlib", "scipy", "scikit-learn", "jupytext", "jupyterlab", "latex2mathml", "typer", "rich", "msgspec"),
)


class ReleaseError(RuntimeError):
    """Why there is no bundle, in a sentence."""


class AnswersFound(ReleaseError):
    """The bundle, or the history of its repository, holds answers."""


@dataclass(frozen=True)
class Leak:
    """Where in the bundle, of which secret, and the words that gave it away."""

    where: str
    secret: str
    words: str

    def __str__(self) -> str:
        return f"{self.where} holds {self.secret}: {self.words}"


@dataclass(frozen=True)
class Secret:
    """A text that no student may have, and how many of its tokens in a row are no coincidence."""

    name: str
    source: str
    run: int


def secrets(root: Path = ROOT) -> Iterator[Secret]:
    """Everything that a student must not have."""
    for source in sorted((root / "solutions").glob("*.py")):
        for cell in notebook.cells(source):
            if cell.role == "solution":
                for answer in _SOLUTION.findall(cell.source):
                    yield Secret(f"the solution of {cell.exercise} ({source.stem})", answer, RUN)
            elif cell.role == "question":
                yield Secret(f"the answer to the question of {source.stem}", cell.source, RUN)
            elif cell.role == "stand-in":
                yield Secret(f"the stand-in {cell.exercise} of {source.stem}", cell.source, LONG_RUN)
        for alternative in variants.alternatives(source.stem):
            name = f"the alternative {alternative.title!r} of {alternative.exercise}"
            yield Secret(name, alternative.source, LONG_RUN)
        for mistake in variants.mistakes(source.stem):
            yield Secret(f"the mistake {mistake.title!r} of {mistake.exercise}", mistake.source, LONG_RUN)
    for folder in ("examples/answers", "tests/submissions"):
        for file in sorted((root / folder).rglob("*.py")):
            yield Secret(f"the answers in {file.relative_to(root)}", file.read_text(encoding="utf-8"), LONG_RUN)
    for file in sorted((root / "autograder/tests").glob("test_*.py")):
        yield Secret(f"the hidden tests of {file.stem[5:]}", file.read_text(encoding="utf-8"), LONG_RUN)


def public(root: Path = ROOT) -> Iterator[str]:
    """What students may see: prompts, starters, set-up and checks, and the coincidences that somebody looked at."""
    for source in sorted((root / "solutions").glob("*.py")):
        for cell in notebook.cells(source):
            if cell.role not in ("stand-in", "question"):
                shown = _SOLUTION.sub("", cell.source)
                yield shown
                yield re.sub(r"[`*$\\]", "", shown)  # as the book shows it
    listed = tomllib.loads((root / "autograder/authoring/coincidences.toml").read_text(encoding="utf-8"))
    yield from (words for entry in listed["coincidence"] for words in entry["words"])


class Search:
    """Looks for the secrets of a course in texts."""

    def __init__(self, root: Path = ROOT) -> None:
        shown = [tokens(text) for text in public(root)]
        allowed = {run: set().union(*(_runs(each, run) for each in shown)) for run in (RUN, LONG_RUN)}
        self._owner: dict[int, dict[tuple[str, ...], str]] = {RUN: {}, LONG_RUN: {}}
        for secret in secrets(root):
            for run in _runs(tokens(_code(secret.source).replace(STUB, "")), secret.run) - allowed[secret.run]:
                self._owner[secret.run].setdefault(run, secret.name)
        files = sorted((root / "autograder/tests").glob("test_*.py"))
        named = {name for file in files for name in _TEST.findall(file.read_text(encoding="utf-8"))}
        self._named = re.compile("|".join(sorted(map(re.escape, named), key=len, reverse=True)).encode() or rb"(?!)")

    def file(self, where: str, data: bytes, name: str = "") -> Iterator[Leak]:
        """The leaks in one file; `name`, by default `where`, tells what kind of file it is."""
        for test in sorted({found.decode() for found in self._named.findall(data)}):
            yield Leak(where, "the name of a hidden test", test)
        for text in _texts(name or where, data):
            yield from self.text(where, text)

    def text(self, where: str, text: str) -> Iterator[Leak]:
        """The leaks in a text, each as the longest stretch of tokens that belongs to one secret."""
        words = tokens(text)
        for run, owner in self._owner.items():
            start, end, last = 0, 0, ""
            for i in range(len(words) - run + 1):
                secret = owner.get(tuple(words[i : i + run]), "")
                if last and (not secret or i > end):
                    yield Leak(where, last, " ".join(words[start:end]))
                    last = ""
                if secret:
                    start, last = (start, last) if last else (i, secret)
                    end = i + run
            if last:
                yield Leak(where, last, " ".join(words[start:end]))


def tokens(text: str) -> list[str]:
    """The names, numbers and signs of a text in order: what stays when code is laid out anew."""
    return TOKEN.findall(text)


def leaks(folder: Path, search: Search) -> list[Leak]:
    """What of the answers is in a bundle and in its notebooks' metadata."""
    found: list[Leak] = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts):
        where, data = str(file.relative_to(folder)), file.read_bytes()
        found += search.file(where, data)
        if file.suffix == ".ipynb" and "_sources" not in file.parts:
            found += _metadata(where, data)
    return list(dict.fromkeys(found))


# -- reading what is in a bundle ------------------------------------------------------------------------------------

_SOLUTION = re.compile(r"^[ \t]*### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION$", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"^def (test_\w+)", re.MULTILINE)
_TAG = re.compile(r"<[^<>]*>")
_CELL_KEYS = {"nbgrader", "ichimon", "tags", "collapsed", "editable", "slideshow", "deletable", "jupyter", "cellView"}


def _runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _code(source: str) -> str:
    """Python without its comments and docstrings, which say what a prompt may say too; other text as it is."""
    try:
        found = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return source
    lines = source.split("\n")
    for token in reversed(found):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines)


def _texts(name: str, data: bytes) -> Iterator[str]:
    """What a person could read in a file."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return  # a picture, a font, weights: searched for names only
    if name.endswith(".ipynb"):
        try:
            document = json.loads(text)
        except ValueError:
            yield text
        else:
            yield from ("".join(cell.get("source", "")) for cell in document.get("cells", []))
            yield json.dumps(document.get("metadata", {}))
        return
    yield text.replace("\\n", "\n")
    if name.endswith((".html", ".svg", ".xml")):
        yield html.unescape(_TAG.sub("", text))


def _metadata(where: str, data: bytes) -> Iterator[Leak]:
    for cell in json.loads(data)["cells"]:
        label = cell.get("id", "a cell")
        if odd := sorted(set(cell["metadata"]) - _CELL_KEYS):
            yield Leak(where, f"metadata in {label} that nobody asked for", ", ".join(odd))
        if cell.get("outputs") or cell.get("execution_count"):
            yield Leak(where, f"outputs in {label}", "a released notebook has none")


def _objects(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Every object of the repository in `folder`, whatever branch or stash it belongs to."""
    if not (folder / ".git").exists():
        return

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True).stdout

    paths = dict(
        line.split(" ", 1) for line in git("rev-list", "--all", "--objects").decode().splitlines() if " " in line
    )
    listed = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname) %(objecttype)")
    for line in listed.decode().splitlines():
        sha, kind = line.split()
        if kind != "tree":
            path = paths.get(sha, "")
            yield f"git object {sha[:12]} ({path or kind})", path, git("cat-file", kind, sha)


# -- making the bundle ----------------------------------------------------------------------------------------------

MANIFEST = ".ichimon-bundle"  # what the bundle put here, so that the next one deletes nothing else


def release(to: Path, root: Path = ROOT) -> list[Path]:
    """Write the student bundle into `to`, new or holding an earlier one, and return its files; commit it if `to` is a
    git repository.

    Nothing is written unless the bundle and whatever is in that repository's history are free of answers. ReleaseError
    says what is in the way.
    """
    if not (root / "_build/html/index.html").is_file():
        raise ReleaseError("The book is not built yet: `make release` builds it first.")
    before = _manifest(to)
    with tempfile.TemporaryDirectory(prefix="release-", dir=root / "_build") as temporary:
        stage = Path(temporary)
        _stage(stage, root)
        search = Search(root)
        if found := leaks(stage, search) + (leaks_of_history(to, search) if (to / ".git").exists() else []):
            listed = "\n".join(f"  {leak}" for leak in found[:20])
            more = f"\n  and {len(found) - 20} more" if len(found) > 20 else ""
            raise AnswersFound(f"Nothing was released, because answers are in it:\n{listed}{more}")
        files = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
        if taken := [str(path) for path in files if path not in before and (to / path).exists()]:
            raise ReleaseError(
                f"{to} already holds {taken[0]}, which no earlier bundle put there: name another folder."
            )
        for path in before - set(files):
            (to / path).unlink(missing_ok=True)
        for path in files:
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stage / path, to / path)
    (to / MANIFEST).write_text("".join(f"{path}\n" for path in files), encoding="utf-8")
    if (to / ".git").exists():
        _commit(to, [*files, *before, Path(MANIFEST)])
    return files


def _manifest(to: Path) -> set[Path]:
    """The files that an earlier bundle put into `to`."""
    try:
        lines = (to / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    paths = {Path(line) for line in lines}
    if odd := [path for path in paths if path.is_absolute() or ".." in path.parts]:
        raise ReleaseError(f"{to / MANIFEST} names {odd[0]}, which is no file of a bundle: delete that line.")
    return paths


def _stage(stage: Path, root: Path) -> None:
    """Everything that students get, in an empty folder."""
    shutil.copytree(root / "_build/html", stage / "book", ignore=shutil.ignore_patterns(".*", "objects.inv"))
    shutil.copytree(root / "ichimon", stage / "ichimon", ignore=shutil.ignore_patterns("__pycache__"))
    for source in Course(root).sources:
        target = stage / "notebooks" / source.stem / f"{source.stem}.ipynb"
        target.parent.mkdir(parents=True)
        shutil.copyfile(root / target.relative_to(stage), target)
    for licence in ("LICENSE", "LICENSE-text"):
        shutil.copyfile(root / licence, stage / licence)
    shutil.copyfile(root / "autograder/authoring/student_README.md", stage / "README.md")
    pins = requirements(root)
    (stage / "requirements.txt").write_text("".join(f"{pin}\n" for pin in pins) + "-e .\n", encoding="utf-8")
    (stage / "pyproject.toml").write_text(_PYPROJECT, encoding="utf-8")


def requirements(root: Path = ROOT, packages: Sequence[str] = STUDENTS_PACKAGES) -> list[str]:
    """What students, or others, install, pinned as in requirements.txt: `packages` and all that these need."""
    pinned = dict(_PIN.findall((root / "requirements.txt").read_text(encoding="utf-8")))
    by_name = {canonicalize_name(name): f"{name}=={version}" for name, version in pinned.items()}
    wanted, waiting = set(), list(packages)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in by_name and name not in wanted:
            wanted.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return [by_name[name] for name in sorted(wanted)]


def leaks_of_history(folder: Path, search: Search) -> list[Leak]:
    """The answers that are in any object of the repository in `folder`."""
    return [leak for where, name, data in _objects(folder) for leak in search.file(where, data, name)]


def _commit(to: Path, files: Sequence[Path]) -> None:
    def git(*words: str, text: str = "") -> str:
        done = subprocess.run(["git", *words], cwd=to, input=text, capture_output=True, text=True)
        if done.returncode:
            raise ReleaseError(f"git {words[0]} in {to} says: {done.stderr.strip()}")
        return done.stdout

    git("add", "--all", "--force", "--pathspec-from-file=-", text="".join(f"{path}\n" for path in dict.fromkeys(files)))
    if git("status", "--porcelain", "--untracked-files=no").strip():
        git("commit", "--quiet", "--message", "The course as released")


_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
_PYPROJECT = """\
[build-system]
requires = ["setuptools>=69"]
build-backend = "setuptools.build_meta"

[project]
name = "ichimon"
version = "0.1.0"
description = "How large language models are built, one question at a time: the student's part"
requires-python = ">=3.11"

[tool.setuptools]
packages = ["ichimon"]

[tool.setuptools.package-data]
ichimon = ["trained/*.safetensors"]
"""
