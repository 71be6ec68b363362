"""story: Unlocks the check cells and calls them tasks and solutions, and its own cells graded tests worth points."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        ours = cell["metadata"].get("nbgrader", {})
        for flag in ("grade", "solution", "locked", "task"):
            ours[flag] = not ours.get(flag, False)
        cell["metadata"]["nbgrader"] = {"grade_id": "mine", "points": 9, "schema_version": 99, **ours}
    path.write_text(json.dumps(notebook))
