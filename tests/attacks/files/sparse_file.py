"""story: A notebook of a terabyte that takes no room on the disk."""

from pathlib import Path
from typing import Any

SAYS = r"is larger than 20 MB"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)
