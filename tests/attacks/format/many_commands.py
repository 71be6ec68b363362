"""story: Forty thousand notebook commands, about each of which the student could be told."""

from typing import Any

SAYS = r"was left out"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "x",
        "metadata": {},
        "outputs": [],
        "source": "%x\n" * 39_000,
    }
    notebook["cells"].append(cell)
