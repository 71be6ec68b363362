"""story: Gives the ids of exercises to cells that do nothing, and its checks' ids to cells that pass."""

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
        own = cell["metadata"].get("nbgrader", {})
        name = own.get("grade_id", cell["id"])
        if name.startswith("check-"):
            cell["id"] = own["grade_id"] = name.removeprefix("check-")
            cell["source"] = "pass"
        elif cell["cell_type"] == "code":
            cell["id"] = own["grade_id"] = f"check-{name}"
            cell["source"] = "assert True"
    path.write_text(json.dumps(notebook))
