"""story: Cells whose text is a number, null, an object or a list of numbers."""

from typing import Any

SAYS = r"has no readable text"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    odd: list[Any] = [7, None, {}, [1, 2], True, [["x"]]]
    for i, cell in enumerate(notebook["cells"][1:]):
        cell["source"] = odd[i % len(odd)]
