"""story: Turns the checks into text and its answers into cells of kinds that do not exist."""

from typing import Any

SAYS = r"is neither code nor text"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"].startswith("check-"):
            cell["cell_type"] = "markdown"
        elif cell["cell_type"] == "code":
            cell["cell_type"] = "heading"
