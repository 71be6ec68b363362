"""story: Functions, files and errors of the submission's own have names that are elements, newlines and codes."""

import json
from pathlib import Path
from typing import Any

SAYS = r"onerror"
POINTS = 0.0
NAME = "02-self-attention"
SOURCE = """
def causal_mask(n):
    kind = type("<img src=x onerror=alert(1)>\\n[red]9/9", (Exception,), {"__module__": "</p><script>"})
    exec(compile("raise kind('onerror')", "<script>alert(1)</script>", "exec"), {"kind": kind})
"""


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"] == "causal_mask":
            cell["source"] = SOURCE
    path.write_text(json.dumps(notebook))
