"""story: A hundred thousand cells after the starter's."""

import json
from pathlib import Path
from typing import Any

SAYS = r"100,\d+ code cells"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": [], "source": "1"}
    notebook["cells"] += [cell] * 100_000
    path.write_text(json.dumps(notebook))
