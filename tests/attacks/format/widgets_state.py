"""story: Three megabytes of saved widgets, some of which are scripts, in the notebook's metadata."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    widget = {"model_module": "@jupyter-widgets/controls", "model_name": "HTMLModel"}
    state = {f"{i}": {**widget, "state": {"value": "<script>alert(1)</script>" * 10}} for i in range(9000)}
    view = {"state": state, "version_major": 2, "version_minor": 0}
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": view}
    path.write_text(json.dumps(notebook))
