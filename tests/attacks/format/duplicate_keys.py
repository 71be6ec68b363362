"""story: Every key of the document twice, the first time with other cells than the second time."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    other = {
        "cell_type": "code",
        "id": "causal_mask",
        "metadata": {},
        "outputs": [],
        "source": "def causal_mask(n): ...",
    }
    first, second = json.dumps({**notebook, "nbformat": 3, "cells": [other]}), json.dumps(notebook)
    path.write_text(first[:-1] + "," + second[1:])
