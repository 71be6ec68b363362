"""story: A name with a space at its end, one that nobody sees inside, and one drawn blank."""

import json
from pathlib import Path
from typing import Any

SAYS = r"begins or ends with a space"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for name in (
        f"{student} ",
        f"{student}\N{HANGUL FILLER}",
        f"{student}\N{COMBINING GRAPHEME JOINER}",
    ):
        path = folder / name / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
