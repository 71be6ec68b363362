"""What an instructor changes about the course, in `course.toml` at its root. Without that file nothing is changed.

leave_out = ["10-long-context", "20-beyond-text"]   # not handed out, not graded; the pages can still be read
course_id = "ichimon"                               # what nbgrader's exchange calls the course
exchange = "/srv/nbgrader/exchange"                 # where that is, if not where nbgrader looks
gradebook = "postgresql:///ichimon"                 # instead of gradebook.db: docs/staff.md

language = "ja"                                     # what of notebooks and feedback is translated in locale/ja

book = "https://example.org/ichimon"                # where the built book can be read: notebooks, feedback lead there
students = "https://github.com/example/students"    # what `make release` made, public; perhaps with /tree/BRANCH
source = "https://github.com/example/ichimon"       # where the book's own sources are public: its pages link to them

[points."02-self-attention"]                        # instead of what the notebook's author thought
causal_mask = 2
attention = 8

`autograder/late.py` shows the table [late].
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from autograder import translation
from autograder.late import Late
from ichimon import notebook
from ichimon.notebook import Cell, NotebookError

FILE = "course.toml"
_URL = re.compile(r"https://[\w.:-]+(/[\w.~%+-]+)*/?")
_REPOSITORY = re.compile(r"https://([\w.:-]+)/([\w.~/-]+?)(?:\.git)?(?:/(?:-/)?tree/([\w.-]+))?/?")


class CourseError(NotebookError):
    """What in course.toml does not fit the course, in a sentence."""


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    leave_out: frozenset[str] = frozenset()
    language: str = ""
    points: Mapping[str, Mapping[str, float]] = {}
    course_id: Annotated[str, msgspec.Meta(pattern=r"\A\w[\w.-]*\Z")] = "ichimon"
    exchange: str = ""
    gradebook: str = ""
    late: Late = Late()
    book: str = ""
    students: str = ""
    source: Annotated[str, msgspec.Meta(pattern=r"\A(https://github\.com/[\w.-]+/[\w.-]+)?\Z")] = ""


@dataclass(frozen=True)
class Course:
    """The assignments below `root/solutions`, as course.toml wants them."""

    root: Path

    @functools.cached_property
    def settings(self) -> _Settings:
        path = self.root / FILE
        try:
            given = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Settings)
        except FileNotFoundError:
            return _Settings()
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise CourseError(f"{FILE} cannot be understood: {error}.") from error
        language = given.language
        if language not in ("", translation.SOURCE_LANGUAGE) and not (
            re.fullmatch(r"[A-Za-z_]+", language) and (self.root / translation.FOLDER / language).is_dir()
        ):
            raise CourseError(
                f"{FILE}: there is no folder {translation.FOLDER}/{language}; `autograder translate` makes one."
            )
        for key, url in (("book", given.book), ("students", given.students)):
            if url and not _URL.fullmatch(url):
                raise CourseError(f"{FILE}: {key} is no address that begins with https:// ({url[:80]!r}).")
        if given.students and not _REPOSITORY.fullmatch(given.students):
            raise CourseError(f"{FILE}: students is the address of a repository, perhaps with /tree/BRANCH at its end.")
        there = {source.stem for source in (self.root / "solutions").glob("*.py")}
        if unknown := sorted((given.leave_out | set(given.points) | given.late.chapters()) - there):
            raise CourseError(f"{FILE} names {unknown[0]}; the chapters are {', '.join(sorted(there))}.")
        for chapter, points in given.points.items():
            exercises = notebook.exercises(self.root / "solutions" / f"{chapter}.py")
            if missing := sorted(set(points) - set(exercises)):
                raise CourseError(f"{FILE}: {chapter} has no exercise {missing[0]}; it has {', '.join(exercises)}.")
            if wrong := next((name for name, value in points.items() if not 0 <= value <= 1000), None):
                raise CourseError(f"{FILE}: {points[wrong]:g} points for {wrong} are not between 0 and 1,000.")
        if trouble := given.late.trouble():
            raise CourseError(f"{FILE}, [late]: {trouble}.")
        return given

    @property
    def sources(self) -> list[Path]:
        """The chapters that are taught, in order."""
        return [
            source
            for source in sorted((self.root / "solutions").glob("*.py"))
            if source.stem not in self.settings.leave_out
        ]

    def page(self, name: str, section: str = "") -> str:
        """A chapter's page, or a section of it, below the address of the book."""
        from docutils.nodes import make_id  # as Sphinx names a heading

        return f"book/{name}.html" + (f"#{make_id(section)}" if section else "")

    @property
    def package(self) -> str:
        """What pip installs `ichimon` from, "" where nobody has said where students find it."""
        if not (match := _REPOSITORY.fullmatch(self.settings.students)):
            return ""
        host, path, ref = match.groups()
        if host == "github.com":  # an archive needs no git
            return f"ichimon @ https://{host}/{path}/archive/{ref or 'main'}.zip"
        return f"ichimon @ git+https://{host}/{path}" + (f"@{ref}" if ref else "")

    def colab(self, name: str) -> str:
        """A chapter's notebook in Google Colab, "" where the students' repository is not a public one on GitHub."""
        match = _REPOSITORY.fullmatch(self.settings.students)
        if not match or match[1] != "github.com":
            return ""
        place = f"{match[2]}/blob/{match[3] or 'main'}/notebooks/{name}/{name}.ipynb"
        return f"https://colab.research.google.com/github/{place}"

    def points(self, name: str) -> Mapping[str, float]:
        """exercise -> its points, where course.toml changes them."""
        return self.settings.points.get(name, {})

    def words(self, chapter: str = "") -> translation.Words:
        """What students read, in the language of this course."""
        return translation.words(self.root, self.settings.language, chapter)

    def cells(self, source: Path) -> list[Cell]:
        """A source's cells in this course's language, with the points that its exercises have here, also in the
        prompts' table."""
        changed = {exercise: float(points) for exercise, points in self.points(source.stem).items()}
        cells = translation.cells(notebook.cells(source), self.words(source.stem))
        for exercise, points in changed.items():
            row = re.compile(rf"^(\| *`{exercise}`.*\| *)[\d.]+( *\|)$", re.MULTILINE)
            told = [row.subn(rf"\g<1>{points:g}\2", cell.source) for cell in cells]
            if not any(count for _, count in told):
                raise CourseError(f"{source.name} has no table with the points of {exercise}: it would tell others.")
            cells = [replace(cell, source=text) for cell, (text, _) in zip(cells, told, strict=True)]
        return [
            replace(cell, points=changed[cell.exercise]) if cell.role == "check" and cell.exercise in changed else cell
            for cell in cells
        ]
