"""story: The whole folder is a symbolic link to a neighbour's, so that what is there is handed in twice."""

from pathlib import Path
from typing import Any

SAYS = r"is a symbolic link"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.parent.rmdir()
    path.parent.symlink_to(folder / "a-neighbour" / NAME)
