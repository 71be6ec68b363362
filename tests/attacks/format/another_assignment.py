"""story: Says that it is the notebook of another assignment, of which nobody has heard or whose tests are easier."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook["metadata"]["ichimon"] = {"assignment": "00-nothing", "exercises": {"nothing": 100}}
    notebook["metadata"]["celltoolbar"] = "../../autograder/tests/test_00_nothing.py"
    path.write_text(json.dumps(notebook))
