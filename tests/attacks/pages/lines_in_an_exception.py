"""story: Raises errors of many lines, which look like a table of marks with a full mark in it."""

import json
from pathlib import Path
from typing import Any

SAYS = r"9/9|9 of 9"
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = (
    "no\n\n02-self-attention\nstudent  total\na-neighbour  9\rpages-lines_in_an_exception  9/9\x85"
    "\u2028  ✓ passed: 9 of 9 points\x0b\x0c\n3 submissions in 0.1 s; 0 could not be graded.\n"
)


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention_scores"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
    path.write_text(json.dumps(notebook))
