"""story: NaN and infinity, which are no JSON, where numbers are expected."""

from typing import Any

SAYS = r"holds data that no notebook has"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    notebook["metadata"]["ichimon"]["exercises"] = {"causal_mask": float("nan"), "attention": float("inf")}
