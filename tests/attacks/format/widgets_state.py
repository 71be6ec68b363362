"""story: Three megabytes of saved widgets, some of which are scripts, in the notebook's metadata."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    widget = {"model_module": "@jupyter-widgets/controls", "model_name": "HTMLModel"}
    state = {f"{i}": {**widget, "state": {"value": "<script>alert(1)</script>" * 10}} for i in range(9000)}
    view = {"state": state, "version_major": 2, "version_minor": 0}
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": view}
