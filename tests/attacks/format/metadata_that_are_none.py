"""story: Metadata, cells and keys that are lists, strings, numbers or missing."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not the notebook of|not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    odd: list[Any] = [[], "x", 7, None, {"nbgrader": []}, {"nbgrader": {"grade_id": {}}}, {"ichimon": "x"}]
    for i, cell in enumerate(notebook["cells"]):
        cell["metadata"] = odd[i % len(odd)]
        cell.pop("outputs", None)
    notebook["metadata"] = ["ichimon"]
    path.write_text(json.dumps(notebook))
