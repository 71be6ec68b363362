"""story: Raises errors that are Markdown and reStructuredText, for pages that make headings and links of them."""

from typing import Any

SAYS = r"javascript:"
POINTS = 0.0
SHOWN = (
    "`` `</code> # 9 of 9 points\n\n[click](javascript:alert(1)) ![x](https://example.org/track.png)\n\n"
    "<b>9 of 9</b> $$\\href{javascript:alert(1)}{x}$$\n\n```{raw} html\n<script>alert(1)</script>\n```\n"
)


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
