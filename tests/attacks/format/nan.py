"""story: NaN and infinity, which are no JSON, where numbers are expected."""

import json
from pathlib import Path
from typing import Any

SAYS = r"holds data that no notebook has"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook["metadata"]["ichimon"]["exercises"] = {"causal_mask": float("nan"), "attention": float("inf")}
    path.write_text(json.dumps(notebook))
