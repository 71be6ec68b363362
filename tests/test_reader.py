"""The gates of the book as a reader meets it: by eye, by ear, by key, on a phone, on paper, at its public address.

Every page is opened once in a browser. What takes minutes is done by night, and says so where it is skipped.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import NIGHTLY, ROOT, opened
from markdown_it import MarkdownIt
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize
from pypdf import PdfReader

from autograder.authoring import pdf

OWN_COURSE = pytest.mark.skipif((ROOT / "course.toml").exists(), reason="it judges the words of the course as it comes")
CHAPTER = re.compile(r"book/\d\d-")
JAPANESE = re.compile(r"[\u3041-\u30ff\u3400-\u9fff]")

# One page of each kind, for what style sheets decide: cover, prose, tables, calculator, notebook, document, search.
KINDS = {
    "book/index.html",
    "book/02-self-attention.html",
    "book/12-gpt-line.html",
    "book/22-choosing.html",
    "notebooks/00-warm-up/00-warm-up.html",
    "docs/term.html",
    "search.html",
}


def chapters(pages: dict[str, BeautifulSoup]) -> dict[str, BeautifulSoup]:
    found = {name: page for name, page in pages.items() if CHAPTER.match(name)}
    assert len(found) > 1
    return found


def paragraphs(page: BeautifulSoup, without: str) -> Iterator[str]:
    """What a page's article says, block by block; "…" stands where something of `without` was."""
    article = copy.copy(page.select_one("article"))
    if article is None:
        return
    for left_out in article.select(f"script, style, .headerlink, {without}"):
        left_out.replace_with(" … ")
    for block in article.select("p, li, dt, dd, td, th, summary, figcaption, h1, h2, h3, h4"):
        if not block.find(["p", "li", "dt", "dd"]):
            yield " ".join(block.get_text().split())


# -- by ear -----------------------------------------------------------------------------------------------------------


def test_japanese_is_read_with_a_japanese_voice(pages: dict[str, BeautifulSoup]) -> None:
    marked = 0
    for name, page in pages.items():
        assert page.html is not None
        if page.html["lang"] == "ja":
            continue
        for text in page.body.find_all(string=JAPANESE) if page.body else []:
            if text.find_parent(["script", "style", "pre", "code"]):
                continue
            assert text.find_parent(lang="ja"), f"{name}: {text.strip()[:60]!r} would be read as English"
            assert len(JAPANESE.findall(text)) * 2 > len(text.strip()), f"{name}: {text!r} is no Japanese"
            marked += 1
    assert marked > 0 or (ROOT / "course.toml").exists()


def test_a_picture_says_what_to_see_and_not_its_title_again(pages: dict[str, BeautifulSoup]) -> None:
    drawn = 0
    for name, page in chapters(pages).items():
        source = (ROOT / name).with_suffix(".md").read_text(encoding="utf-8")
        titles = {title.lower() for title in re.findall(r"figures\.\w+\((?:\d+, )?\"([^\"]+)\"", source)}
        titles |= {" ".join(heading.get_text().split()).lower().rstrip("#") for heading in page.select("h1, h2, h3")}
        for image in page.select("article img"):
            alt = image.get("alt", "")
            if image.get("src", "").endswith("mark.svg"):
                continue
            drawn += 1
            assert len(alt) >= 40, f"{name}: {alt!r}"
            assert alt.lower().rstrip(".") not in titles, f"{name}: {alt!r} is the title"
            assert not re.match(r"(an? )?(image|figure|picture|plot|graph|chart) of", alt.lower()), f"{name}: {alt!r}"
        for drawing in page.select("article svg"):
            spoken = drawing.get("aria-hidden") == "true" or (drawing.get("role") and drawing.get("aria-label"))
            assert spoken or drawing.find("title"), f"{name}: {str(drawing)[:200]}"
    assert drawn > 50 or (ROOT / "course.toml").exists()


# -- by eye -----------------------------------------------------------------------------------------------------------


def test_no_markup_is_left_in_the_text(pages: dict[str, BeautifulSoup]) -> None:
    left = re.compile(
        r"\{(?:cite|result|published|doc|ref|term|numref|experiment|quiz)\b[^}]*\}"
        r"|:::|```|\$\$|\\begin\{|\]\(|<\w+ class="
    )
    for name, page in pages.items():
        for text in paragraphs(page, "pre, code, .math"):
            assert not left.search(text), f"{name}: {text[:200]}"
        assert not page.select(".problematic, .system-message"), name


def test_an_address_is_safe_and_well_formed(pages: dict[str, BeautifulSoup]) -> None:
    seen = 0
    for name, page in pages.items():
        for link in page.select("a[href]"):
            url = urlparse(link["href"])
            if not url.scheme or url.hostname in ("localhost", "127.0.0.1"):
                continue
            seen += 1
            assert url.scheme in ("https", "mailto"), f"{name} links to {link['href']}"
            if url.hostname == "doi.org":
                assert re.fullmatch(r"/10\.\d{4,9}/\S+", unquote(url.path)), f"{name}: {link['href']}"
            if url.hostname == "arxiv.org":
                assert re.match(r"/(abs|pdf)/\d{4}\.\d{4,5}(v\d+)?$", url.path), f"{name}: {link['href']}"
    assert seen > 100


def test_a_chapter_asks_before_it_answers(pages: dict[str, BeautifulSoup]) -> None:
    """The order of a page: think, the folded answer, what explains it, what people get wrong, the quiz, the sources."""
    for name, page in chapters(pages).items():
        sections = [section["id"] for section in page.select("article > section > section")]
        wanted = [
            "think-first",
            "the-short-answer",
            "the-idea",
            "what-people-get-wrong",
            "build-it",
            "check-yourself",
            "references",
        ]
        there = [section for section in sections if section in wanted]
        assert there == wanted, f"{name}: {sections}"
        assert page.select("#think-first .admonition.think"), f"{name} asks for no prediction"
        answer = page.select_one("#the-short-answer > details")
        assert answer is not None, f"{name} does not fold its answer"
        assert "open" not in answer.attrs, f"{name} does not fold its answer"
        assert len(page.select("#check-yourself .quiz-question")) >= 3, name
        assert page.select("#references .citation"), f"{name} names no source"


def test_a_page_and_what_it_shows_is_at_most_a_megabyte(site: Path, pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        shown = {(site / name).parent / unquote(image["src"]) for image in page.select("article img[src]")}
        size = (site / name).stat().st_size + sum(file.stat().st_size for file in shown if file.exists())
        assert size < 1e6, f"{name} and its pictures are {size / 1e6:.2f} MB"
    for script in (ROOT / "book/_static").rglob("*.js"):
        assert script.stat().st_size < 10_000, f"{script.name} has {script.stat().st_size} bytes"


# -- words and numbers ------------------------------------------------------------------------------------------------

# Decimals and percentages that a chapter may type: arithmetic that is done on the page, so that a reader can repeat it,
# and names of things. Everything else is a measurement or a citation, and comes through {result} or {published}.
TYPED = {
    "00": {"0.001", "0.003", "50 %", "0.69", "0.31"},  # one step of descent, by hand
    "07": {"0.8"},  # a temperature, which the reader is asked about
    "11": {"3.1", "2.5"},  # Llama 3.1 and Qwen2.5, spoken of without the name
    "12": {"1.702"},  # a constant of gpt-oss's code, in the formula above it
    "09": {"2.5"},  # Qwen2.5
    "13": {"0.70", "0.20", "0.06", "0.04", "0.90", "0.78", "0.22"}  # two ways to weigh, by hand
    | {"0.7", "0.3", "0.85", "0.07", "0.92"},  # and what two articles write, in quotation marks
    "14": {"1.25"},  # a capacity factor
    "17": {"100 %"},  # "call that 100 %"
    "18": {"1 %"},  # what the cell above computes
    "20": {"0.69"},  # ln 2
    "22": {"1.5"},  # the bound of a claim
}
NUMBER = re.compile(r"(?<![\w.,])\d+(?:\.\d+)+(?![\w.]*\w)|(?<![\w.,])\d+(?:\.\d+)?(?= ?%)(?: ?%)")
NAMED = re.compile(
    r"(sections?|version|Version|Apache|Llama|Qwen\w*|figures?|tables?|Tables?) (\d[\d.]*,? (and|to) )*$"
)
A_THRESHOLD = re.compile(r"\b(claim|claimed|wanted|allowed|should have|yardstick)\b")


@OWN_COURSE
def test_no_measured_number_is_typed(pages: dict[str, BeautifulSoup]) -> None:
    """A heuristic: it looks at decimals and percentages outside of code, formulas, quizzes, tables and claims."""
    typed: dict[str, list[str]] = {}
    for name, page in chapters(pages).items():
        for text in paragraphs(
            page, "pre, code, .math, abbr, .citation, .claim, .quiz-question, .cell_output, .numbers, table"
        ):
            for number in NUMBER.finditer(text):
                around = text[max(0, number.start() - 40) : number.end() + 30]
                known = number[0] in TYPED.get(name[5:7], ()) or NAMED.search(text[: number.start()])
                interval = number[0] == "95 %" and "interval" in text[number.end() : number.end() + 12]
                if not known and not interval and not A_THRESHOLD.search(text):
                    typed.setdefault(name, []).append(f"{number[0]}: … {around} …")
    assert not typed, "use {result} or {published}, or explain the number in TYPED:\n" + json.dumps(
        typed, indent=1, ensure_ascii=False
    )


LISTS = {"book/references.html", "book/measured.html", "book/glossary.html"}  # of names, of files, of transcriptions
QUOTED = {
    "Modeling",
    "initialization",
    "normalization",
    "tokenization",
    "prioritized",
    "unnormalized",
}  # as others write, in quotation marks


@OWN_COURSE
def test_words_are_spelt_as_in_britain(pages: dict[str, BeautifulSoup]) -> None:
    """By the en_GB dictionary of hunspell and tests/words.txt: the field's own words, and names. `-ise`, not `-ize`."""
    if not shutil.which("hunspell"):
        pytest.skip("there is no hunspell; install it and hunspell-en-gb with the system's package manager")
    file = ROOT / "tests/words.txt"
    known = file.read_text(encoding="utf-8").splitlines()
    assert known == sorted(set(known), key=lambda word: (word.lower(), word)), "sort tests/words.txt, each word once"
    where: dict[str, str] = {}
    readme = MarkdownIt().render((ROOT / "README.md").read_text(encoding="utf-8"))
    pages = {**pages, "README.md": BeautifulSoup(f"<article>{readme}</article>", "html.parser")}
    for name, page in pages.items():
        if name in LISTS:
            continue
        texts = [*paragraphs(page, "pre, code, .math, .citation, .numbers, [lang=ja], a.reference[title]")]
        texts += [image.get("alt", "") for image in page.select("article img")]
        words = re.sub(r"\{\w+\}|\S+/\S+", " ", " ".join(texts))  # places for a figure's numbers, addresses
        for word in re.findall(r"(?<!\w)[A-Za-zÀ-ſ]+(?:['’][A-Za-z]+)?(?!\w)", words):
            plain = re.sub(r"['’]s?$", "", word.replace("’", "'").removesuffix("'s"))
            if len(plain) > 2:
                where.setdefault(plain, name)
    said = subprocess.run(
        ["hunspell", "-d", "en_GB", "-i", "utf-8", "-p", file, "-l"],
        input="\n".join(where),
        capture_output=True,
        text=True,
        check=True,
    )
    unknown = set(said.stdout.split())
    american = {word for word in where if re.search(r"[^aeiou]iz(e|ed|es|er|ers|ing|able|ations?)$", word)}
    american -= {*known, *QUOTED, "Size", "Sizes", "size", "sized", "sizes", "sizing", "prize", "prizes"}
    assert len(where) > 2000
    unknown -= QUOTED
    assert [f"{word} ({where[word]})" for word in sorted(unknown | american)] == []


# -- in a browser: by key, on a phone, in the dark --------------------------------------------------------------------

ANSWER_ALL = """() => [...document.querySelectorAll('.quiz-question')].map(question =>
  [...question.querySelectorAll('details')].map(option => {
    const summary = option.querySelector('summary'), body = option.querySelector('.sd-card-body');
    const folded = !body.checkVisibility({contentVisibilityAuto: true});
    summary.click();
    const seen = option.open && body.checkVisibility() && body.getBoundingClientRect().height > 10;
    return [folded && seen, body.innerText.trim()];
  }))"""

# Whatever scrolls is reached by key, as the theme sees to .3 s after the last change of a page's size.
SETTLED = """() => [...document.querySelectorAll('article :is(pre, .cell_output > .output)')].every(box =>
  box.tabIndex === 0 || (box.scrollWidth <= box.clientWidth && box.scrollHeight <= box.clientHeight))"""


def barriers(page: Page, options: dict[str, object]) -> list[str]:
    """What axe finds serious or critical. Of a formula, not its insides: those are MathJax's."""
    quick = {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, context={"exclude": [["mjx-container > *"]]}, options={**quick, **options})
    return [
        f"{fault['id']}: {' '.join(map(str, node['target']))}: {node['html'][:160]}"
        for fault in found.response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"][:3]
    ]


def test_every_page_works_from_a_folder_for_everybody(
    browser: Browser, site: Path, pages: dict[str, BeautifulSoup]
) -> None:
    """Formulas, width, quizzes, and axe. By day colours are judged on a page of each kind, and notebooks not by axe."""
    narrow, wide = ViewportSize(width=390, height=844), ViewportSize(width=1280, height=900)
    paper = ViewportSize(width=658, height=900)  # A4 within its margins
    page = browser.new_context(viewport=narrow, reduced_motion="reduce").new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    wrong: list[str] = []
    for name, source in pages.items():
        page.set_viewport_size(narrow)
        page.goto((site / name).as_uri())
        formulas = len(source.select(".math"))
        if formulas:
            page.wait_for_function("window.MathJax?.startup?.promise && MathJax.startup.promise.then(() => true)")
        assert page.locator("mjx-container").count() == formulas, name
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0, name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than a phone"
        for question in page.evaluate(ANSWER_ALL):
            assert all(seen for seen, _ in question), f"{name}: an explanation is not unfolded: {question}"
            assert sorted(text.split(".")[0] for _, text in question)[-1:] == ["Yes"], f"{name}: {question}"
            assert sum(text.startswith("Yes.") for _, text in question) == 1, f"{name}: {question}"
        page.set_viewport_size(paper)
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than paper"
        page.emulate_media(media="screen")
        if NIGHTLY or name in KINDS or name.startswith("book/"):
            page.set_viewport_size(wide)
            colours = NIGHTLY or name in KINDS
            page.evaluate("document.querySelectorAll('article details').forEach(folded => { folded.open = true })")
            page.wait_for_function(SETTLED)
            wrong += [
                f"{name}: {fault}" for fault in barriers(page, {"rules": {"color-contrast": {"enabled": colours}}})
            ]
            if colours:
                page.evaluate("document.documentElement.dataset.theme = 'dark'")
                wrong += [f"{name}, dark: {fault}" for fault in barriers(page, {"runOnly": ["color-contrast"]})]
    assert not faults
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("how", ["mouse", "key"])
def test_the_folded_answer_opens_by(how: str, browser: Browser, site: Path) -> None:
    page = opened(browser, site, "book/02-self-attention.html")
    answer = page.locator("#the-short-answer details")
    assert not answer.locator("p").first.is_visible()
    if how == "mouse":
        answer.locator("summary").click()
    else:
        answer.locator("summary").focus()
        page.keyboard.press("Space")
    assert answer.locator("p").first.is_visible()


# -- on paper ---------------------------------------------------------------------------------------------------------


def squeezed(text: str) -> str:
    """Without spaces, which a PDF does not hold, without ligatures, and with one apostrophe: a font draws two alike."""
    return "".join(unicodedata.normalize("NFKC", text).replace("\u02bc", "’").split())


def text_of(reader: PdfReader) -> str:
    return squeezed("".join(page.extract_text() for page in reader.pages))


@pytest.mark.parametrize(("paper", "width"), [("A4", 595), ("Letter", 612)])
def test_a_printed_page_is_whole_without_a_script(
    paper: str, width: int, browser: Browser, site: Path, pages: dict[str, BeautifulSoup], tmp_path: Path
) -> None:
    name = "book/02-self-attention.html"
    page = opened(browser, site, name, java_script_enabled=False, color_scheme="dark")
    page.pdf(path=tmp_path / "page.pdf", format=paper)
    reader = PdfReader(tmp_path / "page.pdf")
    text = text_of(reader)
    folded = pages[name].select("article details.sd-dropdown .sd-card-body")
    assert len(folded) > 10
    for body in folded:
        beginning = " ".join(body.get_text(" ", strip=True).split()[:6])
        assert squeezed(beginning) in text, f"{beginning!r} stays folded on paper"
    assert "Search" not in text
    assert "Self-attention" not in reader.pages[0].extract_text().splitlines()[0], "the sidebar is printed"
    assert abs(float(reader.pages[0].mediabox.width) - width) < 1
    for number, sheet in enumerate(reader.pages, start=1):
        assert sheet.extract_text().rstrip().endswith(str(number)) or f"\n{number}\n" in sheet.extract_text(), number


def make_pdf(folder: Path, *pages: str) -> PdfReader:
    """By the command, as `make pdf` does: Playwright lets a process drive one browser at a time."""
    command = [sys.executable, "-m", "autograder.authoring.pdf", "--output", folder / "book.pdf", *pages]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "no Chromium" in made.stderr:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    reader = PdfReader(folder / "book.pdf")
    assert f"{len(reader.pages)} pages" in made.stdout
    return reader


def check_pdf(reader: PdfReader, pages: dict[str, BeautifulSoup], wanted: list[str]) -> None:
    """Its contents tell the right pages, its outline has every chapter, links stay inside, answers are there."""
    contents = "\n".join(sheet.extract_text() for sheet in reader.pages[1:3])
    outline = [entry for entry in reader.outline if not isinstance(entry, list)]
    assert len(outline) == len(wanted) + 1  # and the contents
    for name, entry in zip(wanted, outline[1:], strict=True):
        number = (reader.get_destination_page_number(entry) or 0) + 1
        heading = pages[name].select_one("article h1")
        assert heading is not None
        assert entry.title == " ".join(heading.get_text().removesuffix("#").split())
        assert squeezed(str(entry.title)) in squeezed(reader.pages[number - 1].extract_text()), name
        assert re.search(rf"\b{number}$", contents, re.MULTILINE), f"the contents do not lead to page {number}: {name}"
        assert reader.page_labels[number - 1] == str(number)
    text = text_of(reader)
    for name in wanted:
        for body in pages[name].select("article details.sd-dropdown .sd-card-body p:first-child"):
            beginning = " ".join(body.get_text().split()[:5])
            assert squeezed(beginning) in text, f"{name}: {beginning!r} is missing"
    for sheet in reader.pages:
        for note in sheet.get("/Annots", []):
            uri = note.get_object().get("/A", {}).get("/URI", "https:")
            assert uri.startswith(("https:", "mailto:")), uri


def test_two_chapters_become_one_pdf(pages: dict[str, BeautifulSoup], tmp_path: Path) -> None:
    reader = make_pdf(tmp_path, "book/02-", "book/03-")
    check_pdf(reader, pages, ["book/02-self-attention.html", "book/03-position.html"])
    links = [note.get_object() for sheet in reader.pages for note in sheet.get("/Annots", [])]
    assert sum("/Dest" in link for link in links) > 20, "links within the book lead nowhere"


@pytest.mark.skipif(not NIGHTLY, reason="the whole book is printed by night: it takes a minute")
def test_the_whole_book_becomes_one_pdf(pages: dict[str, BeautifulSoup], tmp_path: Path) -> None:
    wanted = [f"{page}.html" for _, page, _ in pdf.table_of_contents(("book/",))]
    reader = make_pdf(tmp_path)
    check_pdf(reader, pages, wanted)
    assert len(reader.pages) > 200
    assert (tmp_path / "book.pdf").stat().st_size < 25e6


# -- at its address ---------------------------------------------------------------------------------------------------


def small_site(folder: Path, redirects: dict[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Two pages, built with our extension as the book is."""
    (folder / "_static").mkdir(parents=True, exist_ok=True)
    settings = {
        "extensions": ["ichimon_site"],
        "project": "Ichimon",
        "html_static_path": ["_static"],
        "redirects": redirects,
    }
    settings["redirect_html_template_file"] = str(ROOT / "book/redirect.html")
    lines = [
        f"import sys; sys.path.insert(0, {str(ROOT / 'book/_ext')!r})",
        *(f"{key} = {value!r}" for key, value in settings.items()),
    ]
    (folder / "conf.py").write_text("\n".join(lines), encoding="utf-8")
    (folder / "index.rst").write_text(
        "One 一問\n==========\n\nWhat is asked here?\n\n.. toctree::\n\n   two\n", encoding="utf-8"
    )
    (folder / "two.rst").write_text("Two\n===\n\nA second page.\n", encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", str(folder), str(folder / "out")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


def test_only_a_published_book_names_its_address(tmp_path: Path) -> None:
    at_home, public = tmp_path / "home", tmp_path / "public"
    for folder, address in ((at_home, ""), (public, "https://example.org/book")):
        built = small_site(folder, {"old": "two.html"}, ICHIMON_SITE=address)
        assert built.returncode == 0, built.stderr
    page = BeautifulSoup((at_home / "out/two.html").read_text(encoding="utf-8"), "html.parser")
    assert not page.select('link[rel=canonical], meta[property^="og:"]')
    assert not (at_home / "out/sitemap.xml").exists()
    assert {link["href"] for link in page.select('link[rel="apple-touch-icon"]')} == {"_static/apple-touch-icon.png"}

    page = BeautifulSoup((public / "out/two.html").read_text(encoding="utf-8"), "html.parser")
    said = {tag.get("property") or tag.get("name"): tag["content"] for tag in page.select("meta[content]")}
    assert [link["href"] for link in page.select("link[rel=canonical]")] == ["https://example.org/book/two.html"]
    assert said["og:url"] == "https://example.org/book/two.html"
    assert said["og:image"] == "https://example.org/book/_static/card.png"
    assert said["og:image:alt"].startswith("Ichimon: ")
    assert said["description"] == said["og:description"] == "A second page."
    sitemap = re.findall("<loc>(.*?)</loc>", (public / "out/sitemap.xml").read_text(encoding="utf-8"))
    assert sitemap == ["https://example.org/book/index.html", "https://example.org/book/two.html"]
    # built again with one page changed, the sitemap still has all
    (public / "two.rst").write_text("Two\n===\n\nChanged.\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", str(public), str(public / "out")],
        env={**os.environ, "ICHIMON_SITE": "https://example.org/book"},
        check=True,
    )
    assert (public / "out/sitemap.xml").read_text(encoding="utf-8").count("<loc>") == 2

    moved = BeautifulSoup((at_home / "out/old.html").read_text(encoding="utf-8"), "html.parser")
    assert [link["href"] for link in moved.select("a")] == ["two.html"]
    assert "url=two.html" in str(moved.select_one("meta[http-equiv=refresh]"))


@pytest.mark.parametrize(
    "redirects", [{"old": "nowhere.html"}, {"two": "index.html"}], ids=["to nowhere", "from a page"]
)
def test_a_redirect_must_lead_from_no_page_to_a_page(redirects: dict[str, str], tmp_path: Path) -> None:
    built = small_site(tmp_path, redirects)
    assert built.returncode != 0
    assert "redirects:" in built.stderr


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    built = small_site(tmp_path, {}, ICHIMON_SITE="example.org")
    assert built.returncode != 0
    assert "ICHIMON_SITE" in built.stderr


def test_pictures_have_the_sizes_that_they_are_asked_for() -> None:
    sizes = {"card.png": (1200, 630), "icon-32.png": (32, 32), "apple-touch-icon.png": (180, 180)}
    for name, size in sizes.items():
        with Image.open(ROOT / "book/_static" / name) as picture:
            assert picture.size == size, name
            assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 10, f"{name} is empty"
        assert (ROOT / "book/_static" / name).stat().st_size < 100_000


def test_the_course_can_be_cited() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"] == [{"name": "The Ichimon authors"}]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert cited["version"] == version[1]
    assert {"message", "title", "abstract", "license", "type"} <= set(cited)


@pytest.mark.parametrize("file", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda file: file.name)
def test_a_workflow_pins_what_it_runs_and_may_do_little(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert "pull_request_target" not in text, "it would run a stranger's code with our rights"
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        writing = {right for right, value in job.get("permissions", {}).items() if value == "write"}
        assert writing <= {"pages", "id-token"}, name
        assert not writing or "github.event_name == 'push'" in job["if"], f"{name} writes for whoever asks"
        for step in job["steps"]:
            assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + 40 * "0")), step
            assert "${{" not in step.get("run", ""), "what others write must not become a command: use env"
