"""story: The notebook in UTF-16, which Python's JSON would read and whoever looks for words in the bytes would not."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is not text in UTF-8"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook), encoding="utf-16")
