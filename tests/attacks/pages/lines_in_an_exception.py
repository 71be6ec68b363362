"""story: Raises errors of many lines, which look like a table of marks with a full mark in it."""

from typing import Any

SAYS = r"9/9|9 of 9"
POINTS = 0.0
SHOWN = (
    "no\n\n02-self-attention\nstudent  total\na-neighbour  9\rpages-lines_in_an_exception  9/9\x85"
    "\u2028  ✓ passed: 9 of 9 points\x0b\x0c\n3 submissions in 0.1 s; 0 could not be graded.\n"
)


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
