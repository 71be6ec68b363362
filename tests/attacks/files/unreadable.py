"""story: A notebook that nobody may read; root may, and finds the starter in it."""

import json
from pathlib import Path
from typing import Any

SAYS = r"cannot be read|not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook))
    path.chmod(0)
