"""story: A hard link to the reference solutions, which looks like any ordinary file of the student's own."""

import os
from pathlib import Path
from typing import Any

SAYS = r"is damaged"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    os.link(folder.parent / "solutions" / f"{NAME}.py", path)
