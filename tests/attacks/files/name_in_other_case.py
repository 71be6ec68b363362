"""story: Hands in under two names that differ in case only, as a neighbour's and an impostor's would."""

import json
from pathlib import Path
from typing import Any

SAYS = r"could be taken for"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for name in (student, student.upper()):
        path = folder / name / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
