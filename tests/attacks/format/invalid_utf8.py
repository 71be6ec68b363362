"""story: Bytes that are no text in UTF-8, in the middle of a string."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is not text in UTF-8"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook["metadata"]["x"] = "HERE"
    path.write_bytes(json.dumps(notebook).encode().replace(b"HERE", b"\xff\xfe\xc0\xaf\xed\xa0\x80"))
