"""story: The notebook in format 3, with worksheets, whose cells nobody looks at."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is in notebook format 3"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    sheet = {"cells": [{"cell_type": "code", "language": "python", "input": "x", "outputs": []}], "metadata": {}}
    notebook |= {"nbformat": 3, "nbformat_minor": 0, "worksheets": [sheet]}
    path.write_text(json.dumps(notebook))
