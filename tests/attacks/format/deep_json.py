"""story: Lists in lists, a hundred thousand deep, where metadata are expected."""

import json
from pathlib import Path
from typing import Any

SAYS = r"holds data that no notebook has"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    text = json.dumps({**notebook, "metadata": {"deep": "HERE"}})
    path.write_text(text.replace('"HERE"', "[" * 10**5 + "]" * 10**5))
