"""story: A hundred thousand cells after the starter's."""

from typing import Any

SAYS = r"100,\d+ code cells"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": [], "source": "1"}
    notebook["cells"] += [cell] * 100_000
