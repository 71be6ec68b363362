"""story: One cell of 19 MB, each line of which could be a notebook command."""

from typing import Any

SAYS = r"at most 1,000 and 200,000 are graded"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "x",
        "metadata": {},
        "outputs": [],
        "source": "%\n" * 6_400_000,
    }
    notebook["cells"].append(cell)
