"""story: Text cells of scripts, frames, styles and links, for the pages on which a person reads submissions."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
TEXTS = (
    "<script>alert(1)</script><iframe srcdoc='<script>alert(1)</script>'></iframe><style>* { display: none }</style>",
    "[9 of 9](javascript:alert(1)) ![x](attachment:x.svg) ![x](https://example.org/track.png) <https://example.org>",
    "$$</span><script>alert(1)</script>\\href{javascript:alert(1)}{x}$$ \\begin{x} <img src=x onerror=alert(1)>",
    "<form action=//example.org><input name=password><button formaction=javascript:alert(1)>9 of 9</button></form>",
    "```html\n</code></pre><script>alert(1)</script>\n```\n\n" + "[" * 2000 + "x" + "](y)" * 2000,
)


def change(notebook: dict[str, Any]) -> None:
    for i, text in enumerate(TEXTS):
        cell = {"cell_type": "markdown", "id": f"text-{i}", "metadata": {}, "source": text}
        notebook["cells"].insert(2 * i, {**cell, "attachments": {"x.svg": {"image/svg+xml": "<svg onload=alert(1)>"}}})
        notebook["cells"].append({**cell, "cell_type": "raw", "metadata": {"raw_mimetype": "text/html"}})
