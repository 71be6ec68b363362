"""story: Forty thousand notebook commands, about each of which the student could be told."""

import json
from pathlib import Path
from typing import Any

SAYS = r"was left out"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "x",
        "metadata": {},
        "outputs": [],
        "source": "%x\n" * 39_000,
    }
    notebook["cells"].append(cell)
    path.write_text(json.dumps(notebook))
