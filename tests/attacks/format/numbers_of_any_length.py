"""story: An integer of a million digits, which takes minutes to read where nobody forbids it."""

import json
from pathlib import Path
from typing import Any

SAYS = r"holds data that no notebook has"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**notebook, "nbformat_minor": "HERE"}).replace('"HERE"', "9" * 10**6))
