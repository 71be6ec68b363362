"""story: The notebook backwards: checks come before exercises, exercises before what they need."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    notebook["cells"].reverse()
