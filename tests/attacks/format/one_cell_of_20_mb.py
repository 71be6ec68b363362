"""story: One cell of 19 MB, each line of which could be a notebook command."""

import json
from pathlib import Path
from typing import Any

SAYS = r"at most 1,000 and 200,000 are graded"
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
        "source": "%\n" * 6_400_000,
    }
    notebook["cells"].append(cell)
    path.write_text(json.dumps(notebook))
