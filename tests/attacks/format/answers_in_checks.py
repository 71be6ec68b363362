"""story: Writes its answers into the set-up and check cells, which it expects to run after ours."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    cheat = "def causal_mask(n):\n    import torch\n    return torch.ones(n, n).tril().bool()\n"
    for cell in notebook["cells"]:
        if cell["id"] == "set-up" or cell["id"].startswith("check-"):
            cell["source"] = cheat
    path.write_text(json.dumps(notebook))
