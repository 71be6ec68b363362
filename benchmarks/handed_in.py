"""What the benchmark grades: different answers to chapter 02, the same ones each time."""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from autograder import assignment as assignments
from autograder import variants
from autograder.authoring.build import source_notebook

NAME = "02-self-attention"
CLASS = assignments.COURSE / "examples" / "class"
LEFT_OUT = {
    "student-05": "has lost nbgrader's metadata, so stock nbgrader finds nothing to mark",
    "student-09": "never ends",
    "student-12": "holds one answer twice, and stock nbgrader refuses that",
    "student-13": "is another notebook",
    "student-14": "tries to cheat",
}
STRIDE = 37  # through the known mistakes, so that few of them already belong to all exercises


@functools.cache
def source() -> str:
    """The notebook with its reference solutions, as nbgrader's source version."""
    return source_notebook(assignments.SOLUTIONS / f"{NAME}.py")


def notebooks(count: int) -> dict[str, nbformat.NotebookNode]:
    """`count` notebooks by student: the reference, the sample class, answers written differently, known mistakes.

    No two have the same code. ValueError if there are not as many.
    """
    kinds = [iter([("reference", _with({}))]), _sample(), _alternatives(), _mistakes()]
    turns = itertools.zip_longest(*kinds)
    found = dict(itertools.islice((item for turn in turns for item in turn if item), count))
    if len(found) < count:
        raise ValueError(f"There are {len(found)} different notebooks, not {count}.")
    twice = [sha for sha, times in Counter(map(code_sha, found.values())).items() if times > 1]
    if twice:
        same = sorted(name for name, notebook in found.items() if code_sha(notebook) in twice)
        raise ValueError(f"These notebooks hold the same code: {', '.join(same)}.")
    return found


def code_sha(notebook: nbformat.NotebookNode) -> str:
    """A hash of what its code cells do: without comments and layout."""
    return hashlib.sha256("\0".join(_plain(cell.source) for cell in code_cells(notebook)).encode()).hexdigest()


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def without_figures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without the cells that plot and train for the reader's eye."""
    return _only(notebook, lambda metadata: "see" not in metadata.get("ichimon", {}))


def without_checks(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without the visible checks."""
    return _only(notebook, lambda metadata: not metadata.get("nbgrader", {}).get("grade"))


def with_python3(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """To be run by the kernel that is there, whatever the student's was called."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.from_dict({**notebook, "metadata": {**notebook.metadata, "kernelspec": kernel}})


def copies(count: int, folder: Path, different: int = 40) -> None:
    """Write `count` submissions in nbgrader's layout: `different` notebooks over and over, each with a comment of its
    own, so that no two files have the same bytes."""
    templates = []
    for notebook in notebooks(min(count, different)).values():
        code_cells(notebook)[-1].source += "\n# copy MARK"
        templates.append(nbformat.writes(notebook))
    for number in range(count):
        student = f"student-{number:05}"
        path = folder / student / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(templates[number % len(templates)].replace("# copy MARK", f"# {student}"), encoding="utf-8")


def _only(notebook: nbformat.NotebookNode, keep: Callable[[nbformat.NotebookNode], bool]) -> nbformat.NotebookNode:
    return nbformat.from_dict({**notebook, "cells": [cell for cell in notebook.cells if keep(cell.metadata)]})


def _plain(code: str) -> str:
    try:
        return ast.unparse(ast.parse(code))
    except SyntaxError:  # a notebook command, or a mistake
        return code


def _with(answers: dict[str, str]) -> nbformat.NotebookNode:
    """The reference notebook with other answers. answers: exercise -> source."""
    notebook = nbformat.reads(source(), as_version=4)
    for cell in notebook.cells:
        cell.source = answers.get(cell.id, cell.source)
    return notebook


def _sample() -> Iterator[tuple[str, nbformat.NotebookNode]]:
    for path in sorted(CLASS.glob(f"*/{NAME}/{NAME}.ipynb")):
        student = path.parents[1].name
        if student not in LEFT_OUT:
            yield student, nbformat.read(path, as_version=4)


def _alternatives() -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """Right answers written differently, one for each exercise."""
    known = variants.alternatives(NAME)
    by_exercise = {name: [item.source for item in known if item.exercise == name] for name in _exercises()}
    for number in range(max(map(len, by_exercise.values()))):
        answers = {name: sources[number % len(sources)] for name, sources in by_exercise.items()}
        yield f"differently-{number + 1:02}", _with(answers)


def _mistakes() -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """One known mistake; the other answers are the reference's."""
    known = variants.mistakes(NAME)
    for number in range(len(known)):
        mistake = known[STRIDE * number % len(known)]
        yield f"mistaken-{number + 1:02}", _with({mistake.exercise: mistake.source})


def _exercises() -> list[str]:
    return list(assignments.load(NAME).points)
