"""story: A format that does not exist yet, and one that is the number 4 in other types."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is in notebook format 5"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook |= {"nbformat": 5}
    path.write_text(json.dumps(notebook))
