"""The whole book as one PDF, from the built pages: `make pdf`, or `python -m autograder.authoring.pdf`.

All pages are put into one document, so that links between chapters lead to pages of the same PDF. Chromium prints
it twice: the first time tells on which page each chapter begins, for the contents of the second.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import yaml
from bs4 import BeautifulSoup, Tag
from jinja2 import Template
from markupsafe import Markup
from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import NameObject, TextStringObject

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build/html"
NAMES_OF_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
READY = "() => document.fonts.ready.then(() => !window.MathJax || MathJax.startup.promise).then(() => true)"

FILL_IN = "pages => document.querySelectorAll('[data-page]').forEach(e => { e.textContent = pages[e.dataset.page] })"


def table_of_contents(wanted: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(part, page, title) of the pages in _toc.yml whose name begins with one of `wanted`, in order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found = [("", contents["root"], "One question at a time")]
    for part in contents["parts"]:
        for chapter in part["chapters"]:
            for entry in (chapter, *chapter.get("sections", [])):
                found.append((part["caption"], entry["file"], entry.get("title", "")))
    return [entry for entry in found if entry[1].startswith(wanted)]


def identifier(page: str, anchor: str = "") -> str:
    """The name of a page, or of an anchor on it, in the one document."""
    return page.replace("/", "-") + (f"--{anchor}" if anchor else "")


def article(site: Path, page: str, pages: set[str]) -> Tag:
    """What a page says, with its anchors and links as they are called in the one document."""
    file = site / f"{page}.html"
    found = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").select_one("article.bd-article")
    assert found is not None, f"{page} has no article"
    for tag in found.select("script, .headerlink, .query-figure, .turn-figure, .choosing-figure"):
        tag.decompose()
    for tag in found.select("[id]"):
        tag["id"] = identifier(page, str(tag["id"]))
    for tag in found.select("[src]"):
        tag["src"] = (file.parent / unquote(str(tag["src"]))).resolve().as_uri()
    for link in found.select("a[href]"):
        url, anchor = urldefrag(str(link["href"]))
        if urlparse(url).scheme:
            continue
        target = (file.parent / unquote(url)).resolve() if url else file
        there = target.relative_to(site).with_suffix("").as_posix() if target.is_relative_to(site) else ""
        if there in pages:
            link["href"] = "#" + identifier(there, unquote(anchor))
        else:  # a notebook, a file: not in this PDF, and where this one was built is nobody's address
            del link["href"]
    for details in found.select("details"):
        details["open"] = ""
    answers_after_questions(found)
    return found


def answers_after_questions(found: Tag) -> None:
    """A quiz on paper: lettered options, and the answers at its end."""
    soup = BeautifulSoup("", "html.parser")
    questions = found.select(".quiz-question")
    if not questions:
        return
    answers = soup.new_tag("div", attrs={"class": "answers"})
    for number, question in enumerate(questions, start=1):
        options = soup.new_tag("ol", attrs={"type": "A"})
        for letter, details in zip("ABCDEFGH", question.select("details"), strict=False):
            text, body = details.select_one(".sd-summary-text"), details.select_one(".sd-card-body")
            assert text is not None, "an option says nothing"
            assert body is not None, "an option explains nothing"
            text.name = "li"
            options.append(text.extract())
            body.insert(0, soup.new_string(f"{number} {letter}. "))
            answers.append(unwrapped(body))
            details.decompose()
        question.append(options)
    questions[-1].insert_after(answers)


def unwrapped(body: Tag) -> Tag:
    """An explanation as one paragraph that begins with its number and letter."""
    for paragraph in body.select("p"):
        paragraph.unwrap()
    body.name = "p"
    body.attrs = {}
    return body.extract()


DOCUMENT = """<!DOCTYPE html>
<html lang="{{ language }}" data-theme="light">
<head><meta charset="utf-8"><title>Ichimon: how large language models are built, one question at a time</title>
{{ head }}
<style>
{% for entry in entries %}#{{ entry.id }} { page: {{ entry.id }} }
@page {{ entry.id }} { @top-right { content: {{ entry.running_title }} } }
{% endfor %}</style></head>
<body><main class="bd-main"><div class="bd-content"><article class="bd-article">
<section class="cover">
<p><img src="{{ mark }}" alt=""></p>
<p class="title">Ichimon</p>
<p class="subtitle">How large language models are built, one question at a time</p>
<p>The Ichimon authors<br>Text: CC BY 4.0</p>
</section>
<section class="contents chapter"><h1>Contents</h1>
{% for part in entries | groupby("nth_part") %}<p class="part">{{ part.list[0].part }}</p>
<ul>{% for entry in part.list %}
<li><a href="#{{ entry.id }}">{{ entry.title }}</a><span data-page="{{ entry.id }}"></span></li>{% endfor %}
</ul>{% endfor %}
</section>
{% for entry in entries %}<section class="chapter" id="{{ entry.id }}">
{% if entry.part %}<p class="chapter-name">{{ entry.title }}</p>{% endif %}
{{ entry.article }}
</section>
{% endfor %}</article></div></main></body></html>"""


def document(site: Path, contents: list[tuple[str, str, str]]) -> str:
    """The one document. Its head is that of the first page, without what only a screen needs."""
    first = site / f"{contents[0][1]}.html"
    shell = BeautifulSoup(first.read_text(encoding="utf-8"), "html.parser")
    head = [str(script) for script in shell.select("script") if "window.MathJax" in script.text]
    head.append(f'<script src="{(site / "_static/tex-svg-full.js").as_uri()}"></script>')
    for link in shell.select('link[rel="stylesheet"]'):
        style = (first.parent / str(link["href"]).partition("?")[0]).resolve()
        head.append(f'<link rel="stylesheet" href="{style.as_uri()}">')
    parts = list(dict.fromkeys(part for part, _, _ in contents))
    pages = {page for _, page, _ in contents}
    entries = []
    for part, page, named in contents:
        made = article(site, page, pages)
        made.name = "div"
        heading = made.select_one("h1")
        title = named or (heading.get_text() if heading else page)
        entry = {"id": identifier(page), "title": title, "part": part, "nth_part": parts.index(part)}
        running_title = Markup(json.dumps(title, ensure_ascii=False))
        entries.append({**entry, "article": Markup(made), "running_title": running_title})
    language = shell.html["lang"] if shell.html else "en"
    mark = (site / "_static/mark.svg").as_uri()
    made_of = {"language": language, "head": Markup("\n".join(head)), "entries": entries, "mark": mark}
    return Template(DOCUMENT, autoescape=True).render(made_of)


def chromium(playwright: Playwright) -> Browser:
    """The system's Chromium. Its own sandbox does not run as root; what it opens are our own files."""
    executable = next(filter(None, map(shutil.which, NAMES_OF_CHROMIUM)), None)
    if executable is None:
        raise SystemExit("There is no Chromium on the PATH; install it with the system's package manager.")
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else [])]
    return playwright.chromium.launch(executable_path=executable, args=arguments)


def printed(page: Page, target: Path, paper: str) -> PdfReader:
    page.pdf(path=target, format=paper, prefer_css_page_size=False, outline=True, tagged=True, print_background=True)
    return PdfReader(target)


def spell_out(writer: PdfWriter, headings: list[str]) -> None:
    """Where a heading wraps, Chromium's outline joins the words around the break: part them again."""
    known = {heading.replace(" ", ""): heading for heading in headings}

    def mend(reference: Any) -> None:
        while reference is not None:
            entry = reference.get_object()
            title = str(entry["/Title"])
            entry[NameObject("/Title")] = TextStringObject(known.get(title.replace(" ", ""), title))
            mend(entry.get("/First"))
            reference = entry.get("/Next")

    mend(writer.get_outline_root().get("/First"))


def make(site: Path, target: Path, wanted: tuple[str, ...], paper: str) -> int:
    """Write the PDF, and say how many pages it has."""
    entries = table_of_contents(wanted)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = target.with_suffix(".html")
    source.write_text(document(site, entries), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)
        page.goto(source.as_uri())
        page.wait_for_function(READY)
        headings = page.eval_on_selector_all(
            "h1, h2, h3, h4", "all => all.map(h => h.textContent.trim().replace(/\\s+/g, ' '))"
        )
        first = printed(page, target, paper)
        begins = {
            name.lstrip("/"): (first.get_destination_page_number(there) or 0) + 1
            for name, there in first.named_destinations.items()
        }
        page.evaluate(FILL_IN, begins)
        second = printed(page, target, paper)
        browser.close()
    source.unlink()
    writer = PdfWriter(clone_from=second)
    spell_out(writer, headings)
    writer.add_metadata({"/Author": "The Ichimon authors"})
    writer.set_page_label(0, 0, prefix="Cover")
    writer.set_page_label(1, len(second.pages) - 1, style=PageLabelStyle.DECIMAL, start=2)
    writer.write(target)
    return len(second.pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "_build/pdf/ichimon.pdf")
    parser.add_argument("--paper", choices=["A4", "Letter"], default="A4")
    parser.add_argument("begin_with", nargs="*", default=["book/"], help="which pages, by how their names begin")
    arguments = parser.parse_args()
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects otherwise than pypdf, which warns
    started = time.monotonic()
    pages = make(SITE, arguments.output, tuple(arguments.begin_with), arguments.paper)
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {pages} pages, {size:.1f} MB, {time.monotonic() - started:.0f} seconds.")


if __name__ == "__main__":
    main()
