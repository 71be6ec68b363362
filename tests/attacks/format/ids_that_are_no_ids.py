"""story: Ids that are numbers, lists, longer than any database field, paths, and text for a database."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    odd = (7, None, [1], "x" * 10**5, "../../x", "'; DROP TABLE verdicts; --", "<script>", "\ud800")
    for i in range(200):
        cell = {"cell_type": "code", "id": odd[i % len(odd)], "metadata": {"nbgrader": {"grade_id": odd[-1 - i % 8]}}}
        notebook["cells"].append({**cell, "execution_count": None, "outputs": [], "source": "x = 1"})
