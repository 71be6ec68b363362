"""story: Closes the page it is printed on and begins another, in which all points are given."""

from typing import Any

SAYS = r"9 of 9 points"
POINTS = 0.0
SHOWN = """</pre></section></main></body></html><!DOCTYPE html><html><body><main><h1>02-self-attention</h1>
<p class="score">9 of 9 points</p><style>main:first-of-type { display: none } .bad { visibility: hidden }</style>
<iframe srcdoc="<p class=score>9 of 9 points</p>" style="position: fixed; inset: 0; width: 100%"></iframe>
<link rel="stylesheet" href="//example.org/x.css"><object data="//example.org/x"></object>
<p class="score" style="position: absolute; top: 4rem">9 of 9 points</p>
<style>@import url(//example.org/x.css);</style>"""


def change(notebook: dict[str, Any]) -> None:
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
