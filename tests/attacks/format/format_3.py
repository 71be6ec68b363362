"""story: The notebook in format 3, with worksheets, whose cells nobody looks at."""

from typing import Any

SAYS = r"is in notebook format 3"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    sheet = {"cells": [{"cell_type": "code", "language": "python", "input": "x", "outputs": []}], "metadata": {}}
    notebook |= {"nbformat": 3, "nbformat_minor": 0, "worksheets": [sheet]}
