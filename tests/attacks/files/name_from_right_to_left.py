"""story: A name that text direction marks turn round on the screen into a neighbour's."""

import json
from pathlib import Path
from typing import Any

SAYS = r"cannot be printed"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for name in (f"\N{RIGHT-TO-LEFT OVERRIDE}{student}", f"{student}\N{RIGHT-TO-LEFT MARK}"):
        path = folder / name / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
