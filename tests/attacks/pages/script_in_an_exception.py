"""story: Raises errors whose text is a page with scripts, styles and links that lead away."""

import json
from pathlib import Path
from typing import Any

SAYS = r"<script>"
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = (
    "</p></li></ul><script>document.title='pwned'</script>"
    "<style>.score { display: none }</style><iframe src=//example.org>"
    "<a href=//example.org/login>log in to see your marks</a><p class=score>9 of 9 points</p>{{ 7 * 7 }}"
)


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention_scores"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
    path.write_text(json.dumps(notebook))
