"""story: Writes its answers into the set-up and check cells, which it expects to run after ours."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    cheat = "def causal_mask(n):\n    import torch\n    return torch.ones(n, n).tril().bool()\n"
    for cell in notebook["cells"]:
        if cell["id"] == "set-up" or cell["id"].startswith("check-"):
            cell["source"] = cheat
