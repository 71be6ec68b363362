"""story: Every cell is there five times, so that one of them may be the one that counts."""

from typing import Any

SAYS = r"is there 5 times"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    notebook["cells"] = notebook["cells"] * 5
