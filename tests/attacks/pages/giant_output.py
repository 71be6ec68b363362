"""story: Prints a hundred thousand lines that break no words, and one line without an end."""

from typing import Any

SAYS = r"cut after|printed more"
POINTS = 0.0
SHOWN = "<b>" * 30_000 + "x" * 40_000 + "<br>\n" * 4_000


def change(notebook: dict[str, Any]) -> None:
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
