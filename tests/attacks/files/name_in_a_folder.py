"""story: Makes a folder with a neighbour's name inside the own one, laid out like a submission of that neighbour."""

import json
from pathlib import Path
from typing import Any

SAYS = r"one of 2 files"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for place in (folder / student / NAME, folder / student / NAME / "a-neighbour" / NAME):
        place.mkdir(parents=True)
        (place / f"{NAME}.ipynb").write_text(json.dumps(notebook))
