"""story: Turns the checks into text and its answers into cells of kinds that do not exist."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is neither code nor text"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"].startswith("check-"):
            cell["cell_type"] = "markdown"
        elif cell["cell_type"] == "code":
            cell["cell_type"] = "heading"
    path.write_text(json.dumps(notebook))
