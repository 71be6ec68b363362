"""story: Unlocks the check cells and calls them tasks and solutions, and its own cells graded tests worth points."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        ours = cell["metadata"].get("nbgrader", {})
        for flag in ("grade", "solution", "locked", "task"):
            ours[flag] = not ours.get(flag, False)
        cell["metadata"]["nbgrader"] = {"grade_id": "mine", "points": 9, "schema_version": 99, **ours}
