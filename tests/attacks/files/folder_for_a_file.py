"""story: A folder that is called like the notebook, with a notebook in it."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is not an ordinary file"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.mkdir()
    (path / "x.txt").write_text(json.dumps(notebook))
