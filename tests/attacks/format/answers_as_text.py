"""story: Turns every code cell into a text cell, and so hands in nothing that could fail."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is a text cell"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        cell["cell_type"] = "raw" if cell["id"].startswith("check-") else "markdown"
    path.write_text(json.dumps(notebook))
