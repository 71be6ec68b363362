"""Our own pages: right numbers, everything hostile shown as text, nothing that runs, loads or gives a test away."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from typing import Any

import pytest

from autograder.feedback import class_report, comment, number, page, plain, section, tables
from autograder.report import LONGEST, CellRun, ExerciseResult, Outcome, Report, TestResult, clean

BIDI = "\u202egnp.exe\u2066\u200f"
HOSTILE = f"</pre></td><script>alert(1)</script><img src=x onerror=alert(2)>{{{{7*7}}}}&\"'{BIDI}\x1b[31m\x00\x07\ud800"


class Page(HTMLParser):
    """What a page holds: its tags with attributes, and its text."""

    VOID = frozenset({"meta", "br", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "th", "p", "li") else ""
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] != "style" else ""

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def hidden(
    claim: str,
    outcome: Outcome = Outcome.PASSED,
    *,
    message: str = "",
    mistake: str = "",
    weight: float = 1,
    name: str = "",
) -> TestResult:
    hint = f"Hint about {claim}."
    return TestResult(name or f"test_{claim.replace(' ', '_')}", claim, hint, weight, outcome, message, mistake)


def mask(*tests: TestResult) -> ExerciseResult:
    return ExerciseResult("causal_mask", 3.0, tests)


def report(student: str = "ada", *exercises: ExerciseResult, **changes: Any) -> Report:
    values: dict[str, Any] = {"student": student, "assignment": "02-self-attention", "sha": "0", "exercises": exercises}
    return Report(**{**values, **changes})


GOOD = mask(hidden("the past is seen"), hidden("the mask is boolean"))
BAD = mask(
    hidden("the past is seen"),
    hidden("the mask is boolean", Outcome.FAILED, message="It is torch.float32.", mistake="The mask holds numbers."),
)
EMPTY = mask(hidden("the past is seen", Outcome.UNFINISHED), hidden("the mask is boolean", Outcome.UNFINISHED))
CASES = mask(*[hidden("any n works", outcome, name=f"test_n[{n}]") for n, outcome in enumerate([*Outcome][:2])])
ODD = ExerciseResult(HOSTILE, 3.0, (hidden(HOSTILE, Outcome.RAISED, message=HOSTILE, mistake=HOSTILE),))


def hostile() -> Report:
    runs = (CellRun(HOSTILE, HOSTILE, error=HOSTILE, output=HOSTILE * 1000),)
    return report(HOSTILE, ODD, assignment=HOSTILE, notices=(HOSTILE,), cells=runs)


# -- text -----------------------------------------------------------------------------------------------------------


def test_cleaned_text_neither_acts_nor_hides() -> None:
    assert clean("\x1b[31mred\x1b[0m\x00 a\tb\r\nc\u2028d") == "red a\tb\nc\nd"
    assert clean(BIDI) == "gnp.exe"
    assert clean("日本語 🧑‍🎓 naïve") == "日本語 🧑‍🎓 naïve"  # a joiner between two signs is part of the sign
    clean(HOSTILE).encode()


@pytest.mark.parametrize("text", ["x" * 10**6, "\u200b" * 10**6, "\x1b[" * 10**6, "x" * (LONGEST + 1)])
def test_long_text_is_cut_and_says_so(text: str) -> None:
    assert len(clean(text)) < LONGEST + 100
    assert "cut after 2,000 characters" in clean(text)


@pytest.mark.parametrize(("points", "shown"), [(3.0, "3"), (2.5, "2.5"), (5 / 3, "1.67"), (0.0, "0"), (100.0, "100")])
def test_points_are_written_as_people_write_them(points: float, shown: str) -> None:
    assert number(points) == shown


def test_cases_of_one_test_are_one_line() -> None:
    (claim,) = section(CASES).claims
    assert (claim.passed, claim.cases, claim.verdict) == (1, 2, "failed, 1 of 2 cases pass")


def test_what_all_failing_tests_share_is_said_once() -> None:
    same = mask(*[hidden(c, Outcome.RAISED, message="NameError: name 'n' is not defined") for c in ("a", "b", "c")])
    for text in (plain(same), comment(same), page(report("ada", same))):
        assert text.count("NameError") == 1


def test_plain_text_breaks_its_own_lines() -> None:
    lines = plain(mask(hidden("a", Outcome.FAILED, message="one word after another " * 20))).splitlines()
    assert max(map(len, lines)) <= 90
    assert sum(line.count("word") for line in lines) == 20


def test_what_a_student_had_a_say_in_stays_text_in_a_comment() -> None:
    said = comment(mask(hidden("a", Outcome.RAISED, message="`<b>x</b>`\n[x](y) __init__")))
    assert "`'<b>x</b>' [x](y) __init__`" in said


# -- a student's page -----------------------------------------------------------------------------------------------


def test_a_page_says_what_holds_what_fails_and_why() -> None:
    words = Page(page(report("ada", BAD, notices=("The cell of x is missing.",)))).words
    for part in (
        "02-self-attention Feedback for ada 1.5 of 3 points",
        "The cell of x is missing.",
        "What seems to have happened: The mask holds numbers.",
        "✓ passed: the past is seen",
        "✗ failed: the mask is boolean Hint about the mask is boolean. It is torch.float32.",
    ):
        assert part in words
    assert "Hint about the past" not in words


def test_a_page_shows_what_cells_printed() -> None:
    runs = (CellRun("cell 3", "", output="a < b"), CellRun("attention", "attention", error="SyntaxError: '(' (line 3)"))
    words = Page(page(report("ada", GOOD, cells=(*runs, CellRun("quiet", "")))))
    assert "cell 3 a < b attention SyntaxError: '(' (line 3)" in words.words
    assert "quiet" not in words.words


def test_an_exercise_that_was_not_tested_says_so() -> None:
    words = Page(page(report("ada", mask()))).words
    assert "causal_mask: 0 of 3 points In the book: “No looking ahead” Nothing of it was tested." in words
    assert "Nothing of it was tested." in plain(mask())


def test_a_page_without_exercises_says_what_is_wrong_with_the_file() -> None:
    words = Page(page(report("ada", notices=("a.ipynb is empty: save the notebook again.",)))).words
    assert "0 of 0 points About your file a.ipynb is empty: save the notebook again." in words


@pytest.mark.parametrize("student", ["ada", HOSTILE])
def test_names_of_tests_and_other_students_stay_with_the_staff(student: str) -> None:
    assert "test_" not in page(report(student, BAD, CASES))


# -- the class ------------------------------------------------------------------------------------------------------

CLASS = [
    report("carl", EMPTY),
    report("ada", GOOD),
    report("bob", BAD),
    report("dora", BAD),
    report("eve", sha="", notices=("eve.ipynb is empty.",)),
]


def test_a_class_report_counts_right() -> None:
    words = Page(class_report(CLASS)).words
    for part in (
        "5 submissions. Mean 40 %, median 50 %, the middle half between 0 % and 50 %.",
        "ada 3 3 bob 1.5 1.5 causal_mask: The mask holds numbers. carl 0 0 causal_mask: not written yet",
        "eve 0 0 eve.ipynb is empty.",
        "0–9 % 2 10–19 % 0 20–29 % 0 30–39 % 0 40–49 % 0 50–59 % 2",
        "90–100 % 1",
        "causal_mask 1.2 of 3 1 2",
        "causal_mask the past is seen 3 of 5 +33 causal_mask the mask is boolean 1 of 5 +50",
        "causal_mask The mask holds numbers. 2",
        "passed 4 3 failed 2 2 not written yet 2 1",
    ):
        assert part in words


def test_a_claim_passes_when_all_its_cases_do() -> None:
    assert "causal_mask any n works 0 of 1" in Page(class_report([report("ada", CASES)])).words


def test_a_claim_that_all_or_none_pass_tells_nobody_apart() -> None:
    words = Page(class_report([report("ada", GOOD), report("bob", GOOD)])).words
    assert "2 of 2 nobody fails" in words
    assert "0 of 1 nobody passes" in Page(class_report([report("ada", CASES)])).words


def test_the_tables_are_for_a_spreadsheet_that_calculates_nothing() -> None:
    found = tables([*CLASS, report("=1+1", GOOD)])
    marks = list(csv.reader(found["marks.csv"].splitlines()))
    assert marks[:2] == [["student", "causal_mask", "total"], ["points possible", "3.0", "3.0"]]
    assert marks[2:4] == [["'=1+1", "3.0", "3.0"], ["ada", "3.0", "3.0"]]
    claims = list(csv.DictReader(found["claims.csv"].splitlines()))
    assert {row["outcome"] for row in claims if row["student"] == "bob"} == {"passed", "failed"}


def test_a_class_report_is_about_one_assignment() -> None:
    with pytest.raises(ValueError, match="about one assignment"):
        class_report([report("ada"), report("bob", assignment="03-rope")])


@pytest.mark.parametrize(
    "reports", [[], [report("eve", notices=("empty",))], [report("ada", GOOD), report("ada", BAD)]]
)
def test_a_class_report_of_hardly_anything_is_still_a_page(reports: list[Report]) -> None:
    assert "submission" in Page(class_report(reports)).words.lower()


# -- whoever writes it ----------------------------------------------------------------------------------------------

PAGES = {
    "page": lambda: page(report("ada", BAD, cells=(CellRun("cell 3", "", output="hello"),))),
    "hostile page": lambda: page(hostile()),
    "class": lambda: class_report(CLASS),
    "hostile class": lambda: class_report([hostile()]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_no_other_and_runs_nothing(name: str) -> None:
    html = PAGES[name]()
    html.encode()
    shown = Page(html)
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "input", "base"}
    for _, attributes in shown.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "style")]
        assert (attributes.get("href") or "#").startswith("#")
    policy = [a["content"] or "" for tag, a in shown.tags if tag == "meta" and "http-equiv" in a]
    assert policy[0].startswith("default-src 'none'")
    assert "url(" not in html


@pytest.mark.parametrize("name", ["hostile page", "hostile class"])
def test_what_is_hostile_is_shown_as_text(name: str) -> None:
    html = PAGES[name]()
    assert "<script>alert(1)</script>" in Page(html).text
    assert "{{7*7}}" in html
    assert not set(html) & set("\u202e\u2066\u200f\x1b\x00\x07\ud800")
    assert len(html) < 60_000


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fit_for_phones_screen_readers_and_print(name: str) -> None:
    html = PAGES[name]()
    shown = Page(html)
    assert ("html", {"lang": "en"}) in shown.tags
    assert [a for tag, a in shown.tags if a.get("name") == "viewport"]
    assert [tag for tag, _ in shown.tags if tag in ("h1", "main")] == ["main", "h1"]
    assert all(a.get("scope") or a.get("aria-hidden") for tag, a in shown.tags if tag == "th")
    assert all(a.get("tabindex") == "0" for tag, a in shown.tags if tag == "pre")
    assert all(a.get("aria-hidden") == "true" for tag, a in shown.tags if tag == "svg")
    ids = [a["id"] for _, a in shown.tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = {
        name for _, a in shown.tags for name in [(a.get("href") or "").removeprefix("#"), a.get("aria-labelledby")]
    }
    assert named - {"", None} <= set(ids)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
