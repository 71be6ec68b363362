"""story: Says that it is the notebook of another assignment, of which nobody has heard or whose tests are easier."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    notebook["metadata"]["ichimon"] = {"assignment": "00-nothing", "exercises": {"nothing": 100}}
    notebook["metadata"]["celltoolbar"] = "../../autograder/tests/test_00_nothing.py"
