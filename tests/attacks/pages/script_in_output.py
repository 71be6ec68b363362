"""story: Prints scripts of every kind: elements, handlers, addresses, templates, what hides in SVG and MathML."""

from typing import Any

SAYS = r"<script>"
POINTS = 0.0
SHOWN = """</pre></section></main><script>document.title = 'pwned'</script>
<img src=x onerror="document.title='pwned'">
<svg onload="document.title='pwned'"><script href="data:,alert(1)"/></svg><math><mtext></form><form><mglyph><style>
</math>
<a href="javascript:document.title='pwned'">9 of 9</a><body onload=alert(1)><details open ontoggle=alert(1)><!-->
<script>
<noscript><p title="</noscript><img src=x onerror=alert(1)>"><template><script>alert(1)</script></template>{{ 7 * 7 }}
{% include 'page.html' %}${alert(1)}<base href="//example.org"><meta http-equiv="refresh" content="0;//example.org">"""


def change(notebook: dict[str, Any]) -> None:
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
