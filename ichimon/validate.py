"""Sentences in the place of tracebacks while nbgrader validates a notebook, from a terminal or by JupyterLab's button.

nbgrader shows what a failing cell raised, and cuts each line short. The notebook's first cell calls `in_words`.
"""

from __future__ import annotations

import os
import textwrap
import traceback
from types import TracebackType
from typing import Any

WIDTH = 80  # nbgrader cuts at 87


def in_words() -> None:
    """Let each error of this kernel be one sentence, if nbgrader is validating; else nothing is changed."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is not None and os.environ.get("NBGRADER_VALIDATING"):
        shell.set_custom_exc((Exception,), _told)


def _told(
    shell: Any, kind: type[BaseException], error: BaseException, trace: TracebackType, tb_offset: int | None = None
) -> None:
    shell._showtraceback(kind, error, textwrap.wrap(sentence(error), WIDTH))


def sentence(error: BaseException) -> str:
    """In words, what a visible check found or what the student's code did."""
    try:
        message = " ".join(str(error).split())[:600]
    except Exception:  # a __str__ of the student's own
        message = ""
    name, line = _place(error)
    if isinstance(error, AssertionError):
        return message or "This check does not hold."
    if isinstance(error, NotImplementedError) and name:
        return f"{name} is not written yet: replace line {line} of its cell."
    if isinstance(error, NameError):
        return f"{message[:1].upper()}{message[1:]}: is its cell written, and does it run without an error?"
    said = f"{type(error).__name__}: {message}".removesuffix(": ")
    return f"{name} (line {line} of its cell) raised {said}" if name else f"The check cannot use your answer: {said}"


def _place(error: BaseException) -> tuple[str, int]:
    """The innermost function of the notebook that it passed through, and the line of its cell; "" for a cell itself."""
    place = ("", 0)
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "__main__":
            name = frame.f_code.co_qualname
            place = ("", 0) if name == "<module>" else (name, line)
    return place
