"""One assignment for a platform that grades: a zip for Gradescope, repositories for GitHub.

The grader travels with what it needs for one assignment: hidden tests, mistakes, source. No other chapter's answers do.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from autograder import assignment as assignments
from autograder.authoring.release import ROOT, AnswersFound, ReleaseError, Search, leaks, requirements
from autograder.course import Course

# What the grader, its jail and a set-up cell import, and what a chapter withholds; nothing of the book or gradebook.
PACKAGES = (
    *("torch", "numpy", "einops", "jaxtyping", "matplotlib", "safetensors"),
    *("msgspec", "pyseccomp", "pytest", "jinja2", "jupytext"),
)
VISIBILITIES = ("visible", "after_due_date", "after_published", "hidden")
PLATFORMS = Path(__file__).parent / "platforms"  # what runs there, with ASSIGNMENT for the assignment's name
SCRIPTS = ("setup.sh", "run_autograder")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def grader_files(name: str, root: Path = ROOT) -> dict[str, bytes]:
    """Path in the package -> contents: all that `python -m autograder.hosted` needs for one assignment."""
    assignment = assignments.load(name)
    tests = assignment.tests.relative_to(root)
    texts = [tests, Path("autograder/tests/conftest.py")]
    wanted = _imported(root, [Path("autograder/hosted.py"), *texts])
    wanted |= {path.relative_to(root) for path in (root / "autograder/sandbox").glob("*.py")}
    wanted |= {path.relative_to(root) for path in (root / "ichimon").rglob("*") if _belongs(path)}
    wanted |= {Path(f"solutions/{name}.py"), Path(f"autograder/mistakes/{name}.py")}
    beside = (path for path in (root / tests).parent.iterdir() if path.is_file() and path.suffix != ".py")
    wanted |= {path.relative_to(root) for path in beside if path.name in assignment.tests.read_text(encoding="utf-8")}
    files = {str(path): (root / path).read_bytes() for path in sorted(wanted)}
    files["requirements.txt"] = _lines(requirements(root, PACKAGES))
    if points := Course(root).points(name):
        rows = "".join(f"{exercise} = {value!r}\n" for exercise, value in points.items())
        files["course.toml"] = f'[points."{name}"]\n{rows}'.encode()
    return files


def _belongs(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _imported(root: Path, files: Iterable[Path]) -> set[Path]:
    """These files of ours and all that importing them imports: what a function imports later is left out."""
    wanted: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path in wanted:
            continue
        wanted.add(path)
        for module in _modules((root / path).read_text(encoding="utf-8")):
            place = Path(*module.split("."))
            waiting += [file for file in (place.with_suffix(".py"), place / "__init__.py") if (root / file).is_file()]
    return wanted


@functools.cache
def _modules(source: str) -> list[str]:
    """The dotted names, and those of the packages around them, that a file's own statements import."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in named:
            parts = name.split(".")
            found += [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return found


def _written(file: str, name: str) -> str:
    return (PLATFORMS / file).read_text(encoding="utf-8").replace("ASSIGNMENT", name)


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


# -- Gradescope -----------------------------------------------------------------------------------------------------


def gradescope(name: str, to: Path, visibility: str = "visible", root: Path = ROOT) -> list[str]:
    """Write the zip that Gradescope takes as an autograder, and return the names of what is in it."""
    if visibility not in VISIBILITIES:
        raise ReleaseError(f"Gradescope knows no visibility {visibility!r}; it knows {', '.join(VISIBILITIES)}.")
    files = grader_files(name, root)
    scripts = {script: _written(script, name).replace("VISIBILITY", visibility) for script in SCRIPTS}
    files |= {script: text.encode() for script, text in scripts.items()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in sorted(files.items()):
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))  # the same files make the same zip
            entry.external_attr = (0o755 if path in scripts else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(packed.getvalue())
    return sorted(files)


# -- GitHub ---------------------------------------------------------------------------------------------------------


def workflow(name: str, repository: str = "") -> str:
    """.github/workflows/classroom.yml: the visible checks, or, with a private `repository` that holds the grader, the
    hidden tests in their sandbox."""
    text = _written("classroom-hidden.yml" if repository else "classroom.yml", name)
    return text.replace("OWNER/NAME", repository)


def template(name: str, repository: str = "", root: Path = ROOT) -> Mapping[str, bytes]:
    """Path -> contents of the repository that each student gets a copy of."""
    ours = {path.relative_to(root): path for path in (root / "ichimon").rglob("*") if _belongs(path)}
    return {
        **{str(path): file.read_bytes() for path, file in sorted(ours.items())},
        f"{name}.ipynb": (root / f"notebooks/{name}/{name}.ipynb").read_bytes(),
        "requirements.txt": _lines(requirements(root)),
        "README.md": _written("README.md", name).encode(),
        ".gitignore": b"__pycache__/\n.ipynb_checkpoints/\n.venv/\n",
        ".github/workflows/classroom.yml": workflow(name, repository).encode(),
    }


def classroom(name: str, to: Path, repository: str = "", root: Path = ROOT) -> list[Path]:
    """Write `to`/template, what students get, searched for answers first; and `to`/grader if hidden tests are to run.

    Nothing is written into a folder that holds anything but an earlier one's files.
    """
    assignments.load(name)
    if repository and not REPOSITORY.fullmatch(repository):
        raise ReleaseError(f"{repository!r} names no repository on GitHub: write it as OWNER/NAME.")
    made: dict[str, Mapping[str, bytes]] = {"template": template(name, repository, root)}
    if repository:
        made["grader"] = grader_files(name, root)
    for folder, files in made.items():
        there = (path for path in (to / folder).rglob("*") if _belongs(path) and ".git" not in path.parts)
        if odd := sorted(str(path) for path in there if str(path.relative_to(to / folder)) not in files):
            raise ReleaseError(f"{odd[0]} is none of the files to be written: name another folder.")
    with tempfile.TemporaryDirectory() as stage:
        _put(Path(stage), made["template"])
        if found := leaks(Path(stage), Search(root)):
            raise AnswersFound(
                "Nothing was written, because answers are in it:\n  " + "\n  ".join(map(str, found[:20]))
            )
    for folder, files in made.items():
        _put(to / folder, files)
    return [to / folder for folder in made]


def _put(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
