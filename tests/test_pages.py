"""What the attacks in tests/attacks/pages leave on our pages and in the terminal: text, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser
from test_attacks import Attack

from autograder.feedback import class_report, number
from autograder.report import ExerciseResult, Outcome, Report, TestResult
from autograder.results import Results

if TYPE_CHECKING:
    from conftest import Command

HERE = Path(__file__).resolve().parent
NAME = "02-self-attention"
NAMES = ("<img src=x onerror=document.title=1>", "[red]9 of 9[blue]", "=HYPERLINK(A1)", "'onclick=alert(1)'", "{{7*7}}")
TAGS = {
    *("HTML", "HEAD", "META", "TITLE", "STYLE", "BODY", "MAIN", "SECTION", "H1", "H2", "H3", "P", "UL", "LI", "SPAN"),
    *("STRONG", "BR", "DIV", "PRE", "A", "NAV", "TABLE", "CAPTION", "THEAD", "TBODY", "TR", "TH", "TD", "SVG", "RECT"),
}
WHAT_IS_THERE = """() => ({
  tags: [...new Set([...document.querySelectorAll('*')].map(e => e.tagName.toUpperCase()))],
  styles: document.querySelectorAll('style').length,
  acting: [...document.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => [a.name, a.value]))
    .filter(([name, value]) => /^on|^(src|style|srcdoc|action)$/.test(name) || name == 'href' && value[0] != '#'),
  moved: [...document.querySelectorAll('body *')].filter(e => getComputedStyle(e).position != 'static').length,
  hidden: [...document.querySelectorAll('body *')].filter(e => getComputedStyle(e).visibility != 'visible').length,
  score: [...document.querySelectorAll('.score')].map(e => e.textContent),
  title: document.title,
})"""


@dataclass(frozen=True)
class Shown:
    """What was made of the attacks: pages, in order of `reports` and last the class's, and what the terminal showed."""

    pages: list[Path]
    reports: list[Report]
    terminal: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Shown:
    folder = tmp_path_factory.mktemp("pages")
    starter = json.loads((HERE.parent / "notebooks" / NAME / f"{NAME}.ipynb").read_text())
    for path in sorted((HERE / "attacks" / "pages").glob("*.py")):
        attack = Attack.read(path)
        attack.hand_in(folder / "class", copy.deepcopy(starter), attack.student)
    for student in NAMES:
        path = folder / "class" / student / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**starter, "cells": []}))
    results = ["--results", folder / "results.sqlite"]
    ran = [command("grade", folder / "class", *results, "--workers", 1, "--verbose")]
    with Results(folder / "results.sqlite") as stored:
        reports = stored.reports()
    ran += [command("feedback", *results, "--output", folder / "out"), command("show", *results)]
    ran += [command("show", report.student, *results) for report in reports]
    pages = sorted((folder / "out").rglob("*.html"))
    assert len(pages) == len(reports) + 1
    return Shown(pages, reports, "\n".join(one.out + one.err for one in ran))


@pytest.mark.parametrize("protected", [True, False], ids=["with its policy", "without its policy"])
def test_no_page_runs_loads_or_draws_what_a_student_wrote(
    shown: Shown, browser: Browser, protected: bool, tmp_path: Path
) -> None:
    """The policy of our pages forbids scripts. They must not need it."""
    marks = {f"{number(report.points)} of {number(report.max_points)} points" for report in shown.reports}
    asked: list[str] = []
    said: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    for made in shown.pages:
        html = made.read_text(encoding="utf-8")
        file = made
        if not protected:
            file = tmp_path / "page.html"
            file.write_text(re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", html), encoding="utf-8")
        page.goto(file.as_uri())
        there = page.evaluate(WHAT_IS_THERE)
        assert set(there["tags"]) <= TAGS, made.name
        assert (there["styles"], there["acting"], there["moved"], there["hidden"]) == (1, [], 0, 0), made.name
        assert set(there["score"]) <= marks, made.name
        assert len(there["score"]) == (made.name != "class-report.html")
        assert re.fullmatch(rf"{NAME}: (class report|{'|'.join(marks)})", there["title"]), made.name
        assert asked.pop() == file.as_uri()
        assert asked == []
        assert len(html) < 200_000
    assert said == []
    context.close()


def test_each_page_tells_its_own_marks(shown: Shown) -> None:
    texts = [path.read_text(encoding="utf-8") for path in shown.pages if path.name != "class-report.html"]
    assert sorted(len(re.findall('class="score"', text)) for text in texts) == [1] * len(shown.reports)
    assert {report.points for report in shown.reports} == {0.0}
    assert all('<p class="score">0 of 20 points</p>' in text for text in texts)


def test_accents_that_pile_up_cover_nobody_elses_marks(browser: Browser, tmp_path: Path) -> None:
    """A letter with a thousand accents is drawn across the rows above it, where no one stops it."""

    def row_of_cleo(text: str) -> bytes:
        test = TestResult("test_a", "a claim", "", 1, Outcome.RAISED, text)
        exercises = (ExerciseResult("causal_mask", 3.0, (test,)),)
        reports = [Report(student, NAME, "0", exercises) for student in ("ada", "bob", "dan")]
        reports.append(Report("cleo", NAME, "0", (ExerciseResult("causal_mask", 3.0, ()),)))
        (tmp_path / "class.html").write_text(class_report(reports), encoding="utf-8")
        page = browser.new_page()
        page.goto((tmp_path / "class.html").as_uri())
        drawn = page.get_by_role("row").filter(has_text="cleo").screenshot()
        page.close()
        return drawn

    assert row_of_cleo("a\u0301") == row_of_cleo("a" + "\u0301" * 200)


def test_nothing_in_the_terminal_is_a_code_or_a_line_of_a_students_own(shown: Shown) -> None:
    assert not [c for c in shown.terminal if not c.isprintable() and c not in "\n\u3000"]
    ours = re.compile(r"\s*(a-neighbour|student  total|3 submissions|✓ passed: 9|pages-\S+ +9|\[red\]9/9)")
    assert [line for line in shown.terminal.splitlines() if ours.match(line)] == []
    assert ":skull:" in shown.terminal, "text was replaced by a picture"
    assert "[bold green]✓ 9/9[/bold green]" in shown.terminal, "text was taken for markup"
