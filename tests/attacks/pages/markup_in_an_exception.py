"""story: Raises errors in the markup of our own table: colours, links, and a backslash at the end."""

import json
from pathlib import Path
from typing import Any

SAYS = r"\[link="
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = (
    "[bold green]✓ 9/9[/bold green] [link=https://example.org]marks[/link] [/] [/red] :skull: [@click=app.bell]x[/] \\"
)


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention_scores"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
    path.write_text(json.dumps(notebook))
