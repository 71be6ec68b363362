"""story: Turns every code cell into a text cell, and so hands in nothing that could fail."""

from typing import Any

SAYS = r"is a text cell"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        cell["cell_type"] = "raw" if cell["id"].startswith("check-") else "markdown"
