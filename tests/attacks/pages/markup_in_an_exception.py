"""story: Raises errors in the markup of our own table: colours, links, and a backslash at the end."""

from typing import Any

SAYS = r"\[link="
POINTS = 0.0
SHOWN = (
    "[bold green]✓ 9/9[/bold green] [link=https://example.org]marks[/link] [/] [/red] :skull: [@click=app.bell]x[/] \\"
)


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
