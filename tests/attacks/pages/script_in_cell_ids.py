"""story: Ids and names of cells that are elements, for pages that call a cell by its id."""

from typing import Any

SAYS = r"is there 2 times|not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    for i, cell in enumerate(notebook["cells"]):
        cell["id"] = f"<img src=x onerror=alert({i})>"
        cell["metadata"]["name"] = cell["metadata"]["tags"] = "</h3><script>alert(1)</script>"
    notebook["metadata"]["title"] = notebook["metadata"]["authors"] = "<script>alert(1)</script>"
