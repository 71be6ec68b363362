"""story: Gives the ids of exercises to cells that do nothing, and its checks' ids to cells that pass."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        own = cell["metadata"].get("nbgrader", {})
        name = own.get("grade_id", cell["id"])
        if name.startswith("check-"):
            cell["id"] = own["grade_id"] = name.removeprefix("check-")
            cell["source"] = "pass"
        elif cell["cell_type"] == "code":
            cell["id"] = own["grade_id"] = f"check-{name}"
            cell["source"] = "assert True"
