"""story: Integers of four thousand digits, where a count or a version is expected."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    huge = 10**4000
    notebook["nbformat_minor"] = notebook["metadata"]["orig_nbformat"] = huge
    for cell in notebook["cells"]:
        cell["execution_count"] = cell["metadata"]["collapsed"] = huge
