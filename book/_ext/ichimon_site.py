"""What makes the built book a good guest elsewhere: in a screen reader, at a public address, behind an old link.

Japanese words are marked as Japanese, so that a screen reader does not read them with an English voice.
ICHIMON_SITE=https://example.org/book/   gives each page its canonical address, its card for those who share a link,
                                         and the site a sitemap. Without it no page names any address of its own.
`redirects` in _config.yml leads the old address of a page that moved to its new one (sphinx-reredirects).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlparse
from xml.sax.saxutils import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform

# Kana and CJK ideographs, what stands between them, and letters of the same word (8ビット整数: else no search finds it
# whole). Full-width punctuation alone is no reason to change the voice.
JAPANESE = re.compile(r"(?:[0-9A-Za-z]*[\u3041-\u30ff\u3400-\u9fff][\u3001-\u30ff\u3400-\u9fff\uff01-\uff9f]*)+")
NOT_PROSE = (nodes.FixedTextElement, nodes.math, nodes.raw, nodes.Invisible)


class MarkJapanese(SphinxTransform):
    """`<span lang="ja">` around Japanese in prose, headings and, because they copy headings, in tables of contents."""

    default_priority = 900  # after a page is translated

    def apply(self, **kwargs: Any) -> None:
        if (self.config.language or "").startswith("ja"):
            return
        for text in list(self.document.findall(nodes.Text)):
            if JAPANESE.search(text) and not any(isinstance(node, NOT_PROSE) for node in ancestors(text)):
                text.parent.replace(text, marked(text))


def ancestors(node: nodes.Node) -> list[nodes.Node]:
    above = []
    while node.parent is not None:
        node = node.parent
        above.append(node)
    return above


def marked(text: str) -> list[nodes.Node]:
    """The text in pieces. docutils writes a class `language-ja` as the attribute `lang`."""
    pieces: list[nodes.Node] = []
    done = 0
    for run in JAPANESE.finditer(text):
        if run.start() > done:
            pieces.append(nodes.Text(text[done : run.start()]))
        pieces.append(nodes.inline("", run[0], classes=["language-ja"]))
        done = run.end()
    return [*pieces, nodes.Text(text[done:])] if done < len(text) else pieces


def give_an_address(app: Sphinx, config: Any) -> None:
    """Where the book is published, if it is: from the environment, because only who publishes knows."""
    address = os.environ.get("ICHIMON_SITE", "")
    if not address:
        return
    if urlparse(address).scheme not in ("http", "https"):
        raise ExtensionError(f"ICHIMON_SITE is {address!r}, and should be the address of the book: https://...")
    config.html_baseurl = config.ogp_site_url = address.rstrip("/") + "/"
    config.ogp_image = "_static/card.png"
    config.ogp_image_alt = "Ichimon: how large language models are built, one question at a time"
    config.ogp_social_cards = {"enable": False}  # one card for all pages: drawing others would take fonts


def add_icons(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """For what draws no SVG: older browsers, and the home screen of a phone."""
    there = context["pathto"]
    context["metatags"] = context.get("metatags", "") + (
        f'\n<link rel="icon" type="image/png" sizes="32x32" href="{there("_static/icon-32.png", 1)}">'
        f'\n<link rel="apple-touch-icon" href="{there("_static/apple-touch-icon.png", 1)}">'
    )


def check_redirects(app: Sphinx, env: Any) -> None:
    """A redirect to a page that is not there, or from one that is, would be a fault nobody sees."""
    for old, new in app.config.redirects.items():
        target = urljoin(f"{old}.html", new.partition("#")[0]).removesuffix(".html")
        if old in env.found_docs or target not in env.found_docs:
            raise ExtensionError(f"redirects: {old} -> {new}: the first must be no page of the book, the second one.")


def write_sitemap(app: Sphinx, error: Exception | None) -> None:
    """All pages, also those that this build had no reason to write."""
    if error or app.builder.format != "html" or not app.config.html_baseurl:
        return
    pages = (app.config.html_baseurl + app.builder.get_target_uri(page) for page in sorted(app.env.found_docs))
    lines = [f"<url><loc>{escape(page)}</loc></url>" for page in pages]
    head = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
    (Path(app.outdir) / "sitemap.xml").write_text("\n".join([head, *lines, "</urlset>\n"]), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx_reredirects")
    if os.environ.get("ICHIMON_SITE"):
        app.setup_extension("sphinxext.opengraph")
    app.add_css_file("print.css", media="print", priority=900)  # after the screen's
    app.add_transform(MarkJapanese)
    app.connect("config-inited", give_an_address)
    app.connect("html-page-context", add_icons)
    app.connect("env-check-consistency", check_redirects)
    app.connect("build-finished", write_sitemap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
