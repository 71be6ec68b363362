"""story: Integers of four thousand digits, where a count or a version is expected."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    huge = 10**4000
    notebook["nbformat_minor"] = notebook["metadata"]["orig_nbformat"] = huge
    for cell in notebook["cells"]:
        cell["execution_count"] = cell["metadata"]["collapsed"] = huge
    path.write_text(json.dumps(notebook))
