"""The book: it builds without a warning, reads without a network, and works for everybody who opens it from a folder.

Those that need a browser use the system's Chromium and are skipped where there is none.
"""

import re
import runpy
import subprocess
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
ATTENTION = "book/02-self-attention.html"


@pytest.fixture(scope="session")
def site() -> Path:
    """The book as `make book` builds it, with -W -n; nothing is built if it is up to date."""
    build = subprocess.run(["make", "-s", "book"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert build.returncode == 0, f"The book does not build without warnings:\n{(build.stdout + build.stderr)[-6000:]}"
    return ROOT / "_build/html"


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, BeautifulSoup]:
    """Every page that a reader can open, parsed; `index.html` only leads to `book/index.html`."""
    files = [file for file in site.rglob("*.html") if not file.is_relative_to(site / "_static")]
    named = {file.relative_to(site).as_posix(): file for file in files}
    return {
        name: BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        for name, file in named.items()
        if name != "index.html"
    }


def opened(browser: Browser, site: Path, name: str, *, width: int = 1280, **context: object) -> Page:
    page = browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()  # type: ignore[arg-type]
    page.goto((site / name).as_uri())
    return page


def test_every_chapter_in_the_table_of_contents_is_in_the_list_of_chapters() -> None:
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = yaml.safe_load((ROOT / "book/chapters.yml").read_text(encoding="utf-8"))
    chapters = [chapter["page"] for part in listed["parts"] for chapter in part["chapters"]]
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    shown = [Path(file).name for file in files if file.startswith("book/") and not Path(file).name.startswith("9")]
    assert shown == [page for page in chapters if (ROOT / f"book/{page}.md").exists()]
    assert [page[:2] for page in chapters] == [f"{number:02}" for number in range(len(chapters))]
    assert {n for question in listed["questions"] for n in question["chapters"]} <= set(range(len(chapters)))


def test_a_number_is_found_by_its_path_and_an_estimate_shows_its_interval() -> None:
    extension = runpy.run_path(str(ROOT / "book/_ext/ichimon_book.py"))
    estimate = {"mean": 0.75, "low": 0.7, "high": 0.8, "values": [0.74, 0.76]}
    assert extension["pick"]({"accuracy": {"gru": [None, estimate]}}, "accuracy.gru.-1.mean") == 0.75
    assert extension["written"](0.75, ".0%") == "75%"
    assert extension["written"](estimate, ".2f") == "0.75 (0.70 to 0.80)"


def test_nothing_is_loaded_from_another_host(pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        loaded = [tag.get("src") or tag.get("href") for tag in page.select("[src], link[href]:not([rel=canonical])")]
        assert not [url for url in loaded if urlparse(url).netloc], name
        assert "unpkg.com" not in str(page), name


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        for link in page.select("a[href]"):
            url, anchor = urldefrag(link["href"])
            if urlparse(url).scheme:
                continue
            target = (site / name).parent / unquote(url) if url else site / name
            assert target.exists(), f"{name} links to {link['href']}"
            if anchor and target.suffix == ".html":
                there = pages[target.resolve().relative_to(site).as_posix()]
                assert there.find(id=unquote(anchor)), f"{name} links to {link['href']}"


def test_every_picture_is_described(pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        bare = [image for image in page.select("article img") if len(image.get("alt", "")) < 10]
        assert not bare, f"{name}: {bare}"


def test_headings_go_down_one_step_at_a_time(pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        levels = [int(heading.name[1]) for heading in page.select("article :is(h1, h2, h3, h4, h5, h6)")]
        assert levels.count(1) == (name != "search.html"), f"{name}: {levels}"
        assert all(after <= before + 1 for before, after in pairwise(levels)), f"{name}: {levels}"


def test_every_number_tells_where_it_comes_from(pages: dict[str, BeautifulSoup]) -> None:
    numbers = pages[ATTENTION].select("abbr.result")
    assert len(numbers) > 10
    assert all(re.match(r"(Measured|Published): \w", number["title"]) for number in numbers)


def test_a_question_of_a_quiz_has_one_right_answer_and_explains_all(pages: dict[str, BeautifulSoup]) -> None:
    for name in (name for name in pages if re.match(r"book/\d\d-", name)):
        questions = pages[name].select(".quiz-question")
        assert 3 <= len(questions) <= 5, name
        for question in questions:
            assert len(question.select("details.quiz-right")) == 1
            assert all(len(option.select_one(".sd-card-body").text) > 40 for option in question.select("details"))


def test_the_site_is_small(site: Path) -> None:
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 30e6
    assert (site / "_static/ichimon.js").stat().st_size < 10_000


def test_pages_open_from_a_folder_with_their_formulas_and_without_a_request(
    browser: Browser, site: Path, pages: dict[str, BeautifulSoup]
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    for name, source in pages.items():
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
        page.goto((site / name).as_uri())
        formulas = len(source.select(".math"))
        if formulas:
            page.wait_for_function("window.MathJax?.startup?.promise && MathJax.startup.promise.then(() => true)")
        assert page.locator("mjx-container").count() == formulas, name
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0, name
        text = page.locator("body").inner_text()
        assert "\\begin{" not in text, name
        assert "$$" not in text, name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than a phone"
        assert not faults, f"{name}: {faults}"
        page.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_quiz_is_answered_with_the_keyboard(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION)
    question = page.locator(".quiz-question").first
    right = question.locator("details.quiz-right")
    right.locator("summary").focus()
    page.keyboard.press("Enter")
    assert right.get_by_text("Yes.").is_visible()
    assert not question.get_by_text("Not quite.").first.is_visible()


def test_answers_and_the_still_figure_are_there_without_scripts(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION, java_script_enabled=False)
    page.locator("details.quiz-wrong summary").first.click()
    assert page.get_by_text("Not quite.").first.is_visible()
    assert page.locator("img.query-static").is_visible()
    assert not page.locator(".query-figure").is_visible()


def test_the_query_moves_with_the_arrow_keys_and_shares_stay_shares(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION)
    handle = page.locator(".query-figure [role=slider]")
    handle.focus()
    before = handle.get_attribute("aria-valuetext")
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    after = handle.get_attribute("aria-valuetext")
    assert before != after
    assert after is not None
    assert abs(sum(int(share) for share in re.findall(r"(\d+)%", after)) - 100) <= 3


def test_a_query_and_a_key_that_move_together_keep_their_score(browser: Browser, site: Path) -> None:
    page = opened(browser, site, "book/03-position.html")
    together, alone = page.locator(".turn-figure input").all()
    score, tip = page.locator(".turn-figure [aria-live]"), page.locator(".turn-figure circle").first
    before, place = score.text_content(), tip.get_attribute("cx")
    together.focus()
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    assert tip.get_attribute("cx") != place, "nothing moved"
    assert score.text_content() == before
    alone.focus()
    page.keyboard.press("ArrowRight")
    assert score.text_content() != before


def test_print_is_light_and_unfolds_every_answer(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION, color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.sd-dropdown:not([open])").count() == 0
    assert page.locator("html[data-theme=light]").count() == 1
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.sd-dropdown[open]").count() == 0
    assert page.locator("html[data-theme=dark]").count() == 1
