"""story: Three hundred notebooks in one student's folders, each of which somebody has to read."""

import json
from pathlib import Path
from typing import Any

SAYS = r"files of"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for i in range(300):
        other = folder / student / f"{i}" / f"{NAME}.ipynb"
        other.parent.mkdir()
        other.write_text(json.dumps(notebook))
