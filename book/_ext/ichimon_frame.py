"""The frame of every page: a quiet table of contents, and the pages before and after; drawn by book/_templates."""

from __future__ import annotations

import re
from typing import Any

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx

MENDED = {  # what docutils and myst-nb write and a screen reader stumbles over
    'role="doc-biblioentry"': 'role="listitem"',  # a list, as which docutils marks the works, holds list items
    '<summary aria-label="Toggle hidden content">': "<summary>",  # its text is its name
}


def contents(soup: BeautifulSoup) -> tuple[str, str]:
    """The table of contents, made quiet, and the part that the page belongs to, "" for none.

    Numbers of chapters get a column of their own. A notebook shows below the chapter that is open and nowhere else, so
    there is nothing to unfold, and nothing to step over with the keyboard.
    """
    part = ""
    for top in soup("ul", recursive=False):
        top["class"] = ["nav", "bd-sidenav"]
    for item in soup.select("li.toctree-l1"):
        if "current" not in item["class"]:
            for below in item("ul", recursive=False):
                below.decompose()
        elif caption := item.find_previous("p", class_="caption"):
            part = caption.get_text(strip=True)
    for link in soup.select("li.toctree-l1 > a"):
        if numbered := re.match(r"(\d\d) · (.+)", link.get_text(strip=True)):
            link.clear()
            for kind, text in zip(("number", "name"), numbered.groups(), strict=True):
                link.append(span := soup.new_tag("span", attrs={"class": kind}))
                span.string = text
    for link in soup.select("a.current"):
        link["aria-current"] = "page" if link["href"] == "#" else "true"
    return str(soup), part


def neighbour(app: Sphinx, docname: str, step: int) -> str | None:
    """The page before (1) or after (2) in the contents. From page to page a reader passes no notebook."""
    relations: dict[str, list[str | None]] = app.builder.relations  # type: ignore[attr-defined]
    there = relations[docname][step]
    while there and docname.startswith("book/") and there.startswith("notebooks/"):
        there = relations[there][step]
    return there


def frame(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    if "generate_toctree_html" not in context:
        return
    tree = context["generate_toctree_html"]("raw", 0, maxdepth=2, collapse=False, includehidden=True, titles_only=True)
    context["contents"], context["part"] = contents(tree)
    if pagename in app.env.found_docs:
        for side, step in (("prev", 1), ("next", 2)):
            if there := neighbour(app, pagename, step):
                title = app.builder.render_partial(app.env.titles[there])["title"]  # type: ignore[attr-defined]
                context[side] = {"link": app.builder.get_relative_uri(pagename, there), "title": title}
            else:
                context[side] = None
    for wrong, right in MENDED.items() if "body" in context else ():
        context["body"] = context["body"].replace(wrong, right)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", frame, priority=900)  # after the theme's
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
