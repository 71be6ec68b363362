"""story: Says of its own check cells and exercises that they are worth millions, less than nothing, or no number."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    points = (1e6, -1, "1e400", "9", [9], True, 10**30)
    for i, cell in enumerate(notebook["cells"]):
        if "nbgrader" in cell["metadata"]:
            cell["metadata"]["nbgrader"]["points"] = points[i % len(points)]
    notebook["metadata"]["ichimon"]["exercises"] = {"causal_mask": 1e6, "mine": 1e6, "__class__": 1e6, "": 1}
    path.write_text(json.dumps(notebook).replace('"1e400"', "1e400"))
