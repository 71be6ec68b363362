"""story: Prints scripts of every kind: elements, handlers, addresses, templates, what hides in SVG and MathML."""

import json
from pathlib import Path
from typing import Any

SAYS = r"<script>"
POINTS = 0.0
NAME = "02-self-attention"
SHOWN = """</pre></section></main><script>document.title = 'pwned'</script>
<img src=x onerror="document.title='pwned'">
<svg onload="document.title='pwned'"><script href="data:,alert(1)"/></svg><math><mtext></form><form><mglyph><style>
</math>
<a href="javascript:document.title='pwned'">9 of 9</a><body onload=alert(1)><details open ontoggle=alert(1)><!-->
<script>
<noscript><p title="</noscript><img src=x onerror=alert(1)>"><template><script>alert(1)</script></template>{{ 7 * 7 }}
{% include 'page.html' %}${alert(1)}<base href="//example.org"><meta http-equiv="refresh" content="0;//example.org">"""


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
    path.write_text(json.dumps(notebook))
