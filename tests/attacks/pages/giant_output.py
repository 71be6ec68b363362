"""story: Prints a hundred thousand lines that break no words, and one line without an end."""

import json
from pathlib import Path
from typing import Any

SAYS = r"cut after|printed more"
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = "<b>" * 40_000 + "x" * 40_000 + "<br>\n" * 4_000


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
    path.write_text(json.dumps(notebook))
