"""A notebook on paper: one HTML file that needs no network and no other file, and prints well on A4 and Letter.

What a notebook holds may be anybody's: its HTML is shown as text, nothing of it runs, and nothing is loaded.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ichimon import notebook
from ichimon.notebook import Cell

MAX_OUTPUT = 4_000  # characters of one output: about a page and a half
WHOLE = 45  # lines of code that are kept together on a page
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
@page {{ margin: 18mm 17mm 20mm; @bottom-right {{ content: counter(page); font: 9pt sans-serif; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 11pt/1.45 Georgia, "Noto Serif", serif; color: #000; background: #fff; max-width: 46rem; margin: 0 auto;
  padding: 0 1rem; overflow-wrap: break-word; }}
h1, h2, h3 {{ font-family: system-ui, sans-serif; line-height: 1.25; break-after: avoid; }}
h1 {{ font-size: 1.5em; }} h2 {{ font-size: 1.2em; margin-top: 2em; }} h3 {{ font-size: 1em; }}
p, li {{ orphans: 3; widows: 3; }}
code, pre {{ font: 0.82em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.6em 0; padding: 0.4em 0 0.4em 0.8em;
  orphans: 4; widows: 4; border-left: 1px solid #999; }}
pre.whole, figure, tr, math[display="block"] {{ break-inside: avoid; }}
pre.out {{ border-left-style: dotted; }}
.label {{ font: 0.75em system-ui, sans-serif; color: #444; margin: 1em 0 -0.4em; break-after: avoid; }}
table {{ border-collapse: collapse; margin: 0.8em 0; font-size: 0.92em; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.2em 0.8em 0.2em 0; border-bottom: 1px solid #bbb; }}
math[display="block"] {{ margin: 0.8em 0; overflow-x: auto; overflow-y: hidden; }}
figure {{ margin: 0.8em 0; }} img {{ max-width: 100%; max-height: 22cm; }}
a {{ color: inherit; }}
{highlight}
@media print {{ body {{ max-width: none; padding: 0; font-size: 10.5pt; }}
  math[display="block"] {{ overflow: visible; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def page(path: Path) -> str:
    """The notebook as a page. NotebookError says what is wrong with the file."""
    from pygments.formatters import HtmlFormatter

    cells = notebook.cells(path)
    raw = json.loads(path.read_text(encoding="utf-8-sig"))["cells"] if path.suffix.lower() == ".ipynb" else []
    body: list[str] = []
    for i, cell in enumerate(cells):
        if cell.role not in ("bootstrap", "stand-in"):
            body += _cell(cell, raw[i] if raw else {})
    title = next((line.lstrip("# ") for cell in cells for line in cell.source.split("\n") if line.strip()), path.stem)
    highlight = HtmlFormatter(style="bw").get_style_defs("pre")
    light = re.sub(r"border: 1px solid #F00|background: #[0-9a-fA-F]+", "", highlight)
    return _PAGE.format(title=html.escape(title), highlight=light, body="\n".join(body))


def _cell(cell: Cell, raw: Mapping[str, Any]) -> Iterator[str]:
    if cell.kind == "markdown":
        yield markdown(cell.source, _attachments(raw))
        return
    if cell.kind == "raw":
        yield f"<pre>{html.escape(cell.source)}</pre>"
        return
    if cell.role != "see":  # how a figure is drawn is not part of the assignment; the figure is
        yield f'<p class="label">{html.escape(_label(cell))}</p>' if _label(cell) else ""
        yield _code(cell.source)
    outputs = raw.get("outputs")
    for output in outputs if isinstance(outputs, list) else []:
        yield from _output(output) if isinstance(output, dict) else ()


def _label(cell: Cell) -> str:
    if cell.role == "check":
        points = f", {cell.points:g} point{'s' * (cell.points != 1)}" if cell.points else ""
        return f"The visible checks of {cell.exercise}{points}"
    return {"set-up": "Set-up", "solution": f"Your answer: {cell.exercise}"}.get(cell.role, "")


def _code(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    coloured = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n")
    return f'<pre class="{"whole" if source.count(chr(10)) < WHOLE else ""}">{coloured}</pre>'


def _output(output: Mapping[str, Any]) -> Iterator[str]:
    data = output.get("data")
    data = data if isinstance(data, dict) else {}
    picture = next((kind for kind in PICTURES if kind in data), None)
    if picture and (encoded := _base64(data[picture])):
        told = html.escape(_text(data.get("text/plain"))[:200], quote=True)
        yield f'<figure><img src="data:{picture};base64,{encoded}" alt="{told or "a figure"}"></figure>'
        return
    if output.get("output_type") == "error":
        text = f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}"
    else:
        text = _text(output.get("text")) or _text(data.get("text/plain"))
    text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f]", "", text)
    if text.strip():
        more = f"\n… and {len(text) - MAX_OUTPUT:,} more characters" if len(text) > MAX_OUTPUT else ""
        yield f'<pre class="out">{html.escape(text[:MAX_OUTPUT].rstrip() + more)}</pre>'


def _text(value: object) -> str:
    """nbformat keeps texts as one string or as a list of lines; anything else is none."""
    lines = value if isinstance(value, list) else [value]
    return "".join(line for line in lines if isinstance(line, str)).encode(errors="replace").decode()


def _base64(value: object) -> str:
    try:
        return base64.b64encode(base64.b64decode(_text(value))).decode()
    except (binascii.Error, ValueError):
        return ""


def _attachments(raw: Mapping[str, Any]) -> dict[str, str]:
    """name -> a data: address, for pictures that were pasted into a text cell."""
    found = raw.get("attachments")
    return {
        f"attachment:{name}": f"data:{kind};base64,{encoded}"
        for name, kinds in (found.items() if isinstance(found, dict) else ())
        if isinstance(kinds, dict)
        for kind in PICTURES
        if kind in kinds and (encoded := _base64(kinds[kind]))
    }


def markdown(source: str, pictures: Mapping[str, str]) -> str:
    """Markdown as HTML: formulas become MathML, HTML in it stays text, and a picture from elsewhere is its words."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return formula(body, block=False)

        def block_math(self, body: str) -> str:
            return formula(body, block=True)

        def latex_environment(self, name: str, body: str) -> str:
            return formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

        def block_code(self, code: str, info: str | None = None) -> str:
            return f"<pre>{html.escape(code.rstrip())}</pre>"

        def image(self, text: str, url: str, title: str | None = None) -> str:
            shown = pictures.get(url, "")
            alt = html.escape(text, quote=True)
            return f'<img src="{shown}" alt="{alt}">' if shown else f"[{alt or 'a picture'}]"

    try:
        renderer = Renderer(escape=True, allow_harmful_protocols=False, exclude_anchor_links=True)
        return str(MarkdownWithMath(renderer=renderer).render(source.encode(errors="replace").decode()))
    except Exception:  # brackets a thousand deep: any text must be shown somehow
        return f"<pre>{html.escape(source)}</pre>"


_LOOKS = {"columnalign", "columnspacing", "display", "fence", "form", "height", "largeop", "linethickness", "lspace"}
_LOOKS |= {
    "mathvariant",
    "maxsize",
    "minsize",
    "movablelimits",
    "rowspacing",
    "rspace",
    "separator",
    "stretchy",
    "width",
}
_SIZED = re.compile(r"\\[Bb]ig+[lrm]?\\([lr](?:ceil|floor))")  # which the library knows in their own size only


def formula(tex: str, *, block: bool) -> str:
    """TeX as MathML, which browsers draw without a script; as code where that cannot be done."""
    from latex2mathml.converter import convert

    tex = _SIZED.sub(r"\\\1", html.unescape(tex).strip())
    try:
        drawn = ElementTree.fromstring(convert(tex, display="block" if block else "inline"))
    except Exception:  # the library raises whatever comes
        return f"<code>{html.escape(tex)}</code>"
    for element in drawn.iter():
        element.attrib = {name: value for name, value in element.attrib.items() if name in _LOOKS}  # href is not
        element.text = (element.text or "").replace("\\_", "_")
    return ElementTree.tostring(drawn, encoding="unicode").replace("ns0:", "").replace("xmlns:ns0", "xmlns")
