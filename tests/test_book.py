"""The book: it builds without a warning, reads without a network, and works for everybody who opens it from a folder.

Those that need a browser use the system's Chromium and are skipped where there is none.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import opened
from playwright.sync_api import Browser

from autograder.authoring import new_chapter

ROOT = Path(__file__).resolve().parents[1]
ATTENTION = "book/02-self-attention.html"


def test_every_chapter_in_the_table_of_contents_is_in_the_list_of_chapters() -> None:
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = yaml.safe_load((ROOT / "book/chapters.yml").read_text(encoding="utf-8"))
    chapters = [chapter["page"] for part in listed["parts"] for chapter in part["chapters"]]
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    shown = [Path(file).name for file in files if re.match("book/[0-8]", file)]
    assert shown == [page for page in chapters if (ROOT / f"book/{page}.md").exists()]
    assert [page[:2] for page in chapters] == [f"{number:02}" for number in range(len(chapters))]
    assert {n for question in listed["questions"] for n in question["chapters"]} <= set(range(len(chapters)))


def test_a_number_is_found_by_its_path_and_an_estimate_shows_its_interval() -> None:
    extension = runpy.run_path(str(ROOT / "book/_ext/ichimon_book.py"))
    estimate = {"mean": 0.75, "low": 0.7, "high": 0.8, "values": [0.74, 0.76]}
    assert extension["pick"]({"accuracy": {"gru": [None, estimate]}}, "accuracy.gru.-1.mean") == 0.75
    assert extension["written"](0.75, ".0%") == "75%"
    assert extension["written"](estimate, ".2f") == "0.75 (0.70 to 0.80)"
    assert extension["written"](-0.5, "+.1f") == "−0.5"


@pytest.mark.parametrize(
    ("prose", "minutes"),
    [
        ("word " * 1900, 10),
        ("word " * 2100 + "\n```{code-cell} python\n" + "code " * 900 + "\n```\n", 10),
        ("---\n" + "head: er\n" * 900 + "---\n" + "word " * 3000 + "\n$$\nx\n$$\n" * 30, 20),
        ("{result}`a_b: c.d.e | .0%` " * 3000, 15),
    ],
)
def test_reading_time_is_that_of_the_prose_its_figures_and_formulas(prose: str, minutes: int) -> None:
    extension = runpy.run_path(str(ROOT / "book/_ext/ichimon_book.py"))
    assert extension["reading_minutes"](prose) == minutes


def test_nothing_is_loaded_from_another_host(pages: dict[str, BeautifulSoup]) -> None:
    for name, page in pages.items():
        loaded = [tag.get("src") or tag.get("href") for tag in page.select("[src], link[href]:not([rel=canonical])")]
        assert not [url for url in loaded if urlparse(url).netloc], name
        assert "unpkg.com" not in str(page), name


def test_every_link_and_anchor_leads_somewhere(site: Path, pages: dict[str, BeautifulSoup]) -> None:
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    for name, page in pages.items():
        for link in page.find_all("a", href=True):
            url, anchor = urldefrag(link["href"])
            if urlparse(url).scheme:
                continue
            target = (site / name).parent / unquote(url) if url else site / name
            assert target.exists(), f"{name} links to {link['href']}"
            if anchor and target.suffix == ".html":
                there = target.resolve().relative_to(site).as_posix()
                assert unquote(anchor) in anchors[there], f"{name} links to {link['href']}"


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
    assert all(number["tabindex"] == "0" for number in numbers), "reached without a mouse"


def test_every_number_is_in_the_list_at_the_foot_of_its_page(pages: dict[str, BeautifulSoup]) -> None:
    published = json.loads((ROOT / "experiments/published.json").read_text(encoding="utf-8"))
    papers = {(figure["source"], figure["where"]): figure["paper"] for figure in published.values()}
    for name in (name for name in pages if re.match(r"book/(\d\d-|index)", name)):
        foot = pages[name].select("details.numbers")
        assert len(foot) == 1, name
        code = (ROOT / name).with_suffix(".md").read_text(encoding="utf-8")
        measured = set(re.findall(r"results\(\"([\w-]+)\"\)|\{experiment\} ([\w-]+)", code))
        experiments = {"".join(names) for names in measured}
        for number in pages[name].select("abbr.result:not([title^=Counted])"):
            kind, source, where = re.match(r"(\w+): ([\w-]+), (.+)", number["title"]).groups()  # type: ignore[union-attr]
            if kind == "Measured":
                experiments.add(source)
            else:
                assert papers[source, where] in foot[0].text, f"{name}: {number['title']}"
        listed = [item.select_one("strong, a").text for item in foot[0].select("li") if " CPU seconds" in item.text]
        assert sorted(listed) == sorted(experiments), name


def test_every_chapter_says_where_it_stands(pages: dict[str, BeautifulSoup]) -> None:
    listed = yaml.safe_load((ROOT / "book/chapters.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in listed["parts"] for chapter in part["chapters"]]
    for number, chapter in enumerate(chapters):
        name = chapter["page"]
        page = pages[f"book/{name}.html"]
        rows = {term.text: term.find_next_sibling("dd") for term in page.select(".map dt")}
        asked = [str(n) for n, q in enumerate(listed["questions"], start=1) if number in q["chapters"]]
        assert (
            [strong.text for strong in rows["Question"].select("strong")] == asked if asked else "Question" not in rows
        )
        assert 10 <= int(re.findall(r"\d+", rows["Read"].text)[0]) <= 40
        exercises = json.loads((ROOT / f"notebooks/{name}/{name}.ipynb").read_text("utf-8"))["metadata"]["ichimon"][
            "exercises"
        ]
        said = f"{len(exercises)} exercises, {sum(exercises.values()):g} points · about "
        assert said in rows["Build"].text, name
        assert rows["Build"].a["href"].endswith(f"notebooks/{name}/{name}.html")
        needs = [chapters[n]["title"] for n in chapter["needs"]]
        assert [link.text for link in (rows["Needs"].select("a") if needs else ())] == needs
        assert rows["This page"].a["href"].endswith(f"book/{name}.md")
        following = page.select_one(".prev-next-area .right-next")
        assert following is not None
        if number + 1 < len(chapters):
            assert following["href"] == f"{chapters[number + 1]['page']}.html", "no notebook on the way"
        assert [link.text for link in page.select("nav.bd-links ul ul a")] == ["The notebook"], name


def test_a_chapter_of_ones_own_has_a_map_and_pages_lead_to_the_public_sources(tmp_path: Path) -> None:
    """Two pages in a course with `source` and `leave_out`: one of ours, and what `make new-chapter` writes."""
    own, ours = "91-pooling", "02-self-attention"
    number = "{result}`c02_word_sense: seeds.0`\n\n## References\n"
    pages = {
        own: new_chapter.files(own)[f"book/{own}.md"].replace("## References\n", number),
        ours: "# A page\n\n```{map}\nYou need nothing.\n```\n\n" + number,
    }
    for file in ("book/chapters.yml", "experiments/published.json", "experiments/results/c02_word_sense.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    colab = "https://colab.research.google.com/github/example/students/blob/HEAD/notebooks/own.ipynb"
    for name in (own, ours):
        notebook = json.loads((ROOT / f"notebooks/{ours}/{ours}.ipynb").read_text(encoding="utf-8"))
        notebook["cells"][0]["source"] += [f"\n\n[Open this notebook in Colab]({colab})"]
        (tmp_path / f"notebooks/{name}").mkdir(parents=True)
        (tmp_path / f"notebooks/{name}/{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        (tmp_path / f"book/{name}.md").write_text(pages[name], encoding="utf-8")
    (tmp_path / "course.toml").write_text(f'leave_out = ["{ours}"]\nsource = "https://github.com/example/ichimon"\n')
    (tmp_path / "index.md").write_text("# All\n\n```{toctree}\n:glob:\n\nbook/*\nnotebooks/*/*\n```\n")
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book/_ext')!r})\n"
        "extensions = ['myst_nb', 'sphinx_design', 'ichimon_book']\nnb_execution_mode = 'off'\n"
        "myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath']\nexclude_patterns = ['out']\n"
    )
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-n", tmp_path, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "another/place"},
    )
    assert build.returncode == 0, build.stderr
    rows = {}
    for name in (own, ours):
        page = BeautifulSoup((tmp_path / f"out/book/{name}.html").read_text(encoding="utf-8"), "html.parser")
        rows[name] = {term.text: term.find_next_sibling("dd") for term in page.select(".map dt")}
        assert [link["href"] for link in rows[name]["This page"].select("a")] == [
            f"https://github.com/example/ichimon/blob/HEAD/book/{name}.md",
            f"https://github.com/example/ichimon/issues/new?title=book/{name}:%20",
        ]
        (script,) = page.select("details.numbers li a")
        assert re.fullmatch(
            r"https://github.com/example/ichimon/blob/\w{40}/experiments/c02_word_sense.py", script["href"]
        )
    assert rows[own].keys() == {"Read", "Build", "This page"}
    assert "5 exercises, 20 points · about 75 minutes · in Colab" in rows[own]["Build"].text
    assert [link["href"] for link in rows[own]["Build"].select("a")][1:] == [colab]
    assert rows[ours]["Build"].text.strip() == "not in this course"


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
    assert sum(font.stat().st_size for font in (site / "_static/fonts").glob("*.woff2")) < 250_000
    assert "fontawesome" not in (site / ATTENTION).read_text(encoding="utf-8"), "1.5 MB for ten icons"


def test_a_quiz_is_answered_with_the_keyboard(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION)
    question = page.locator(".quiz-question").first
    right = question.locator("details.quiz-right")
    right.locator("summary").focus()
    page.keyboard.press("Enter")
    assert right.get_by_text("Yes.").is_visible()
    assert not question.get_by_text("Not quite.").first.is_visible()


def test_answers_are_there_without_scripts(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION, java_script_enabled=False)
    page.locator("details.quiz-wrong summary").first.click()
    assert page.get_by_text("Not quite.").first.is_visible()


def test_print_is_light_and_unfolds_every_answer(browser: Browser, site: Path) -> None:
    page = opened(browser, site, ATTENTION, color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.sd-dropdown:not([open])").count() == 0
    assert page.locator("html[data-theme=light]").count() == 1
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.sd-dropdown[open]").count() == 0
    assert page.locator("html[data-theme=dark]").count() == 1
