"""story: Folders in folders in folders, in which a search that recurses would find no end."""

import json
from pathlib import Path
from typing import Any

SAYS = r"deep"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook))
    path.parent.joinpath(*"x" * 60).mkdir(parents=True)
