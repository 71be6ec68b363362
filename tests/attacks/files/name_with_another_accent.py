"""story: Hands in under two names that look the same: in one, the accent is a character of its own."""

import json
from pathlib import Path
from typing import Any

SAYS = r"could be taken for"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    for name in (f"{student}-José", f"{student}-Jose\N{COMBINING ACUTE ACCENT}"):
        path = folder / name / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
