"""A student's own components, from their own notebooks: the parts that a later model is made of.

    import ichimon
    attention = ichimon.mine("02-self-attention").MultiHeadAttention

It runs the notebook's code in this process, so use it on your own notebooks. The grader never does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from ichimon.notebook import NotebookError, cells, load

_STUB = re.compile(r"^\s*raise NotImplementedError\b", re.MULTILINE)


class NotYet(Exception):
    """Which component is missing, and where it is to be written, in a sentence."""


class Parts:
    """What a notebook defines: `parts.name`, or NotYet where its cell is still to be written."""

    def __init__(self, chapter: str, path: Path) -> None:
        self._chapter, self._path = chapter, path
        solutions = [cell for cell in cells(path) if cell.role == "solution" and cell.kind == "code"]
        self._exercises = [cell.exercise for cell in solutions]
        self._unfinished = {cell.exercise for cell in solutions if _STUB.search(cell.source)}
        try:
            self._module: ModuleType = load(path)
        except NotebookError as error:
            raise NotYet(f"Your notebook of chapter {chapter} does not run yet: {error}") from error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._unfinished:
            raise NotYet(f"{name} is still to be written: finish it in {self._path}, save the notebook, and come back.")
        if not hasattr(self._module, name):
            raise NotYet(f"{self._path} defines no {name}; its exercises are {', '.join(self._exercises)}.")
        return getattr(self._module, name)

    def __dir__(self) -> list[str]:
        return [name for name in self._exercises if name not in self._unfinished]


def mine(chapter: str) -> Parts:
    """Your own answers to a chapter, such as `mine("02-self-attention").attention`.

    The notebook is looked for where you are and in the folders above: `NN-topic.ipynb`, or `NN-topic/NN-topic.ipynb`,
    there or in `notebooks`. `ICHIMON_NOTEBOOKS` names another folder. Raises NotYet, with a sentence, where there is
    none, where it does not run, and, on use, where a component is unfinished.
    """
    return Parts(chapter, find(chapter))


def find(chapter: str) -> Path:
    """Where the notebook of a chapter lies, as `mine` looks for it. Raises NotYet where there is none."""
    given = os.environ.get("ICHIMON_NOTEBOOKS")
    here = Path.cwd()
    places = [Path(given)] if given else [here, *here.parents]
    tried = [
        folder / file
        for place in places
        for folder in (place, place / "notebooks")
        for file in (f"{chapter}.ipynb", f"{chapter}/{chapter}.ipynb")
    ]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        where = f"in {given}, where ICHIMON_NOTEBOOKS points" if given else f"in {here} or above it"
        raise NotYet(
            f"There is no notebook {chapter}.ipynb {where}. Work through chapter {chapter[:2]} first, "
            "or set ICHIMON_NOTEBOOKS to the folder that holds your notebooks."
        )
    return found
