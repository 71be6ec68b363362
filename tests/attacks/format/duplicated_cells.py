"""story: Every cell is there five times, so that one of them may be the one that counts."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is there 5 times"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook["cells"] = notebook["cells"] * 5
    path.write_text(json.dumps(notebook))
