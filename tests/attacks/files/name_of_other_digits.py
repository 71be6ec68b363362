"""story: Hands in as student-10 and as student-lO, which is letters and not digits."""

import json
from pathlib import Path
from typing import Any

SAYS = r"could be taken for"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for name in (f"{student}-10", f"{student}-lO"):
        path = folder / name / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
