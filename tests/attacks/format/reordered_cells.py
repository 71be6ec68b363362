"""story: The notebook backwards: checks come before exercises, exercises before what they need."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook["cells"].reverse()
    path.write_text(json.dumps(notebook))
