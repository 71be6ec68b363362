"""story: Cells whose text is a number, null, an object or a list of numbers."""

import json
from pathlib import Path
from typing import Any

SAYS = r"has no readable text"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    odd: list[Any] = [7, None, {}, [1, 2], True, [["x"]]]
    for i, cell in enumerate(notebook["cells"][1:]):
        cell["source"] = odd[i % len(odd)]
    path.write_text(json.dumps(notebook))
