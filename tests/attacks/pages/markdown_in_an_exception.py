"""story: Raises errors that are Markdown and reStructuredText, for pages that make headings and links of them."""

import json
from pathlib import Path
from typing import Any

SAYS = r"javascript:"
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = (
    "`` `</code> # 9 of 9 points\n\n[click](javascript:alert(1)) ![x](https://example.org/track.png)\n\n"
    "<b>9 of 9</b> $$\\href{javascript:alert(1)}{x}$$\n\n```{raw} html\n<script>alert(1)</script>\n```\n"
)


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention_scores"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
    path.write_text(json.dumps(notebook))
