"""story: Prints marks that turn round what stands beside them: direction marks, isolates, letters that nobody sees."""

from typing import Any

SAYS = r"9 of 9|9 fo 9"
POINTS = 0.0
SHOWN = (
    "\u202estniop 9 fo 9\u202c \u20679 of 9\u2069 \u200b\u200d\u2060\ufeff9\U000e0041 of 9"
    + "\u0301" * 2000
    + "\ud83d \ud800 9 of 9"
)


def change(notebook: dict[str, Any]) -> None:
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
