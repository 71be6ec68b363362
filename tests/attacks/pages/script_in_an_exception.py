"""story: Raises errors whose text is a page with scripts, styles and links that lead away."""

from typing import Any

SAYS = r"<script>"
POINTS = 0.0
SHOWN = (
    "</p></li></ul><script>document.title='pwned'</script>"
    "<style>.score { display: none }</style><iframe src=//example.org>"
    "<a href=//example.org/login>log in to see your marks</a><p class=score>9 of 9 points</p>{{ 7 * 7 }}"
)


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"] in ("causal_mask", "attention"):
            cell["source"] = f"def {cell['id']}(*args):\n    raise ValueError({SHOWN!r})\n"
