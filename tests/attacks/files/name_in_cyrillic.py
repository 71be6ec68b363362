"""story: A name that ends in a Cyrillic letter which looks like a Latin one of a neighbour's name."""

import json
from pathlib import Path
from typing import Any

SAYS = r"mixes two alphabets"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for name in (f"{student}\N{CYRILLIC SMALL LETTER A}",):
        path = folder / name / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
