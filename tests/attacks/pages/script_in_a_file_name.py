"""story: A file whose name is an element with a script, and which nobody can read, so that its name is told."""

from pathlib import Path
from typing import Any

SAYS = r"is damaged"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.parent.joinpath("<img src=x onerror=alert(1)>.ipynb").write_text("{")
