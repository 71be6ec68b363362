"""story: Metadata, cells and keys that are lists, strings, numbers or missing."""

from typing import Any

SAYS = r"not the notebook of|not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    odd: list[Any] = [[], "x", 7, None, {"nbgrader": []}, {"nbgrader": {"grade_id": {}}}, {"ichimon": "x"}]
    for i, cell in enumerate(notebook["cells"]):
        cell["metadata"] = odd[i % len(odd)]
        cell.pop("outputs", None)
    notebook["metadata"] = ["ichimon"]
