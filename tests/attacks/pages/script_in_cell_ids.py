"""story: Ids and names of cells that are elements, for pages that call a cell by its id."""

import json
from pathlib import Path
from typing import Any

SAYS = r"is there 2 times|not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for i, cell in enumerate(notebook["cells"]):
        cell["id"] = f"<img src=x onerror=alert({i})>"
        cell["metadata"]["name"] = cell["metadata"]["tags"] = "</h3><script>alert(1)</script>"
    notebook["metadata"]["title"] = notebook["metadata"]["authors"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(notebook))
