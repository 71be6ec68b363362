"""story: Six million empty objects, which take twenty times as much memory as they take of the file."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    text = json.dumps({**notebook, "metadata": {**notebook["metadata"], "wide": "HERE"}})
    path.write_text(text.replace('"HERE"', "[" + "{}," * 6_000_000 + "{}]"))
