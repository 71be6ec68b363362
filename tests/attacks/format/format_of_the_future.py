"""story: A format that does not exist yet, and one that is the number 4 in other types."""

from typing import Any

SAYS = r"is in notebook format 5"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    notebook |= {"nbformat": 5}
