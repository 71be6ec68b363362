"""The course in another language: what is translated, what must survive it, and that no mark moves."""

from __future__ import annotations

import ast
import functools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from playwright.sync_api import Browser

from autograder import assignment as assignments
from autograder import feedback, submission, translation
from autograder.authoring import build as building
from autograder.authoring import translate
from autograder.authoring.build import build
from autograder.course import Course, CourseError
from autograder.report import CellRun, ExerciseResult, Outcome, Report, TestResult
from autograder.translation import TranslationError, Words, catalogue
from ichimon import notebook

ROOT = assignments.COURSE
NAME = "02-self-attention"
JAPANESE = translation.words(ROOT, "ja", NAME)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course of one chapter, in Japanese."""
    parts = [f"solutions/{NAME}.py", f"autograder/mistakes/{NAME}.py", "autograder/tests/test_02_self_attention.py"]
    parts += ["autograder/feedback.html", "autograder/page.html", "autograder/feedback.py", *translate.SPOKEN]
    parts += [f"locale/ja/LC_MESSAGES/{name}.po" for name in ("grader", NAME)]
    for part in parts:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / part, tmp_path / part)
    (tmp_path / "course.toml").write_text('language = "ja"\n')
    monkeypatch.setattr(assignments, "SOLUTIONS", tmp_path / "solutions")
    monkeypatch.setattr(feedback, "COURSE", tmp_path)
    monkeypatch.setattr(building, "ROOT", tmp_path)
    # A memory of its own: what other modules of tests have loaded stays the same object.
    monkeypatch.setattr(assignments, "load", functools.cache(assignments.load.__wrapped__))
    return tmp_path


def told(
    root: Path, message: str, translated: str | None, name: str = NAME, language: str = "ja", fuzzy: bool = False
) -> None:
    """Change one translation in a .po file."""
    from babel.messages.pofile import write_po

    path = catalogue(root, language, name)
    catalog = translate.read(path, language)
    there = catalog.get(message)
    assert there is not None
    there.string = translated or ""
    if fuzzy:
        there.flags.add("fuzzy")
    with path.open("wb") as file:
        write_po(file, catalog)


# -- what must survive ----------------------------------------------------------------------------------------------


def test_japanese_is_whole_where_it_says_so_and_keeps_what_it_must() -> None:
    counts, problems = translate.status("ja", only=["grader", NAME])
    assert problems == []
    grader, chapter = counts
    assert (chapter.missing, chapter.fuzzy) == (0, 0), "chapter 02 is to be read in Japanese, all of it"
    assert grader.fuzzy == 0
    assert grader.translated > 0.8 * grader.messages


def shouted(name: str) -> Words:
    """A language in which everything is said in guillemets, so that whatever is lost on the way is seen."""

    def loud(message: translate.Message) -> str:
        if message.id.startswith("|"):
            return message.id.replace("| ", "| « ")
        return f"« {message.id} »"

    return Words("fr", {message.id: loud(message) for message in translate.chapter_messages(name)})


@pytest.mark.parametrize("name", [source.stem for source in Course(ROOT).sources])
def test_in_every_chapter_only_words_change(name: str) -> None:
    before = notebook.cells(ROOT / f"solutions/{name}.py")
    after = translation.cells(before, shouted(name))
    assert translation.cells(before, Words()) == before
    assert [(cell.id, cell.role, cell.points) for cell in after] == [(c.id, c.role, c.points) for c in before]
    for one, other in zip(before, after, strict=True):
        if one.kind == "markdown" and one.role == "other":
            assert translate._kept(one.source) == translate._kept(other.source), one.source
            assert one.source.count("\n#") == other.source.count("\n#")
            bare = "".join(other.source.replace("«", "").replace("»", "").split())
            assert bare == "".join(one.source.split())
        elif one.role in ("check", "see"):
            assert _without_strings(one.source) == _without_strings(other.source)
        else:
            assert one == other, "what decides marks, or is the student's to write, is as it was"
    assert sum("«" in cell.source for cell in after) > 10


def _without_strings(source: str) -> str:
    class Blank(ast.NodeTransformer):
        def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
            return ast.Tuple([part for part in node.values if isinstance(part, ast.FormattedValue)])

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Constant("") if isinstance(node.value, str) and " " in node.value else node

    return ast.dump(Blank().visit(ast.parse(source)))


@pytest.mark.parametrize(
    ("kind", "source", "translated", "sentence"),
    [
        ("prose", "Call `f(x)` once.", "一度だけ呼ぶ。", "`f(x)` is in the source and not in the translation"),
        ("prose", "It is $d^2$ long.", "長さは $d^3$ です。", "$d^2$ is in the source and not"),
        ("prose", "See [this](a.md).", "[これ](b.md) を見る。", "the link to a.md is in the source"),
        ("prose", "| a | word |\n|---|---|\n| b | c |", "| あ |\n|---|\n| い |", "a cell of a table"),
        ("prose", "**Never** so.", "**「決して」**そうしない。", "a ** marks nothing"),
        (
            "message",
            "{name} has {value}.",
            "{name} です。",
            "its placeholders are name, and the source has name, value",
        ),
        ("message", "It is long.", "{length} です。", "its placeholders are length, and the source has none"),
        ("page", "Feedback for {1}", "<script>{1}", "words only"),
        ("page", "Feedback for {1}", "{{ report.student|safe }}{1}", "words only"),
    ],
)
def test_a_translation_that_lost_something_is_refused(kind: Any, source: str, translated: str, sentence: str) -> None:
    assert any(sentence in problem for problem in translate.wrong(translate.Message(source, kind, ""), translated))
    assert translate.wrong(translate.Message(source, kind, ""), source) == []


# -- the notebook ---------------------------------------------------------------------------------------------------


def filled(path: Path, to: Path) -> submission.Submission:
    """What runs of a notebook into whose starters the reference was written."""
    loaded = assignments.load(NAME)
    document = json.loads(path.read_text(encoding="utf-8"))
    for cell in document["cells"]:
        if cell["id"] in loaded.reference:
            cell["source"] = loaded.reference[cell["id"]]
    to.write_text(json.dumps(document), encoding="utf-8")
    return submission.read(submission.Found("ada", NAME, to), loaded)


def test_a_notebook_in_japanese_runs_and_is_graded_as_the_other_is(root: Path) -> None:
    before = dict(assignments.load(NAME).tests_sha)
    (built,) = build(root)
    there, here = notebook.cells(ROOT / f"notebooks/{NAME}/{NAME}.ipynb"), notebook.cells(built)
    assert [(cell.id, cell.role, cell.points) for cell in here] == [(cell.id, cell.role, cell.points) for cell in there]
    assert "橋" in here[0].source
    assert "自己注意" in here[0].source
    for role in ("set-up", "solution"):
        assert [c.source for c in here if c.role == role] == [c.source for c in there if c.role == role]
    one = filled(built, root / "one.ipynb")
    other = filled(ROOT / f"notebooks/{NAME}/{NAME}.ipynb", root / "other.ipynb")
    assert one.cells == other.cells, "the same code is graded"
    assert (one.notices, other.notices) == ((), ())
    assert assignments.load(NAME).tests_sha == before, "no language grades anything again"
    assert build(root) == []
    told(root, "Conventions", "きまり")
    assert build(root) == [built], "a changed translation builds the notebook anew"


def test_the_visible_checks_speak_japanese(root: Path) -> None:
    cells = {cell.id: cell for cell in Course(root).cells(root / f"solutions/{NAME}.py")}
    namespace: dict[str, Any] = {}
    notebook.run(cells["set-up"], namespace, "set-up")
    namespace["causal_mask"] = lambda n: namespace["torch"].ones(n, n)
    with pytest.raises(AssertionError, match=r"マスクは真偽値のはずですが、torch\.float32 です。"):
        notebook.run(cells["check-causal_mask"], namespace, "check")


# -- the feedback page ----------------------------------------------------------------------------------------------

LOST = TestResult(
    "test_every_length_works",
    "every length works",
    "Nothing is fixed to one length: n may be 1, odd, or larger than any table.",
    2.0,
    Outcome.FAILED,
    "17 of 289 entries of causal_mask(17) are wrong.",
    "Row i leaves out column i: a position must see itself too.",
)
WON = TestResult("test_a", "a position sees itself", "", 1.0, Outcome.PASSED)
REPORT = Report(
    "passed",  # a name that is also a word of ours
    NAME,
    "0",
    (ExerciseResult("causal_mask", 3.0, (WON, LOST)),),
    ("The cell of merge_heads is missing.",),
    (CellRun("cell 7", "", "stopped: timed out: it was still computing after 5 seconds.", "not written yet <b>"),),
)


def test_a_page_is_in_the_language_of_the_course_and_what_is_stored_is_not(root: Path) -> None:
    before = REPORT
    page = feedback.page(REPORT)
    assert '<html lang="ja">' in page
    for words in (
        "3 点中 1 点",
        "行 i が列 i を除いています。位置は自分自身も見なければなりません。",
        "causal_mask(17) の 289 個の要素のうち 17 個が違います。",
        "merge_heads のセルがありません。",
        "不合格",
        "停止：時間切れ：5 秒たってもまだ計算していました。",
        "セルの動き",
    ):
        assert words in page
    assert "not written yet &lt;b&gt;" in page, "what a cell printed is the student's, whatever it says"
    assert "passed さんへのフィードバック" in page
    assert before == REPORT
    assert JAPANESE.report(REPORT).points == REPORT.points
    (result,) = JAPANESE.report(REPORT).exercises
    assert "不合格" in feedback.comment(result, JAPANESE)


def test_without_a_language_a_page_is_in_english(root: Path, tmp_path: Path) -> None:
    (root / "course.toml").unlink()
    feedback._words.cache_clear()
    assert '<html lang="en">' in feedback.page(REPORT)
    assert "✗</span> failed:" in feedback.page(REPORT)


def test_arabic_goes_from_right_to_left_and_fits_a_phone(root: Path, browser: Browser) -> None:
    feedback._words.cache_clear()
    translate.update("ar", root, only=["grader"])
    told(root, "failed", "لم ينجح", "grader", "ar")
    told(root, "Marks", "العلامات", "grader", "ar")
    (root / "course.toml").write_text('language = "ar"\n')
    (root / "page.html").write_text(feedback.page(REPORT), encoding="utf-8")
    page = browser.new_context(viewport={"width": 360, "height": 800}).new_page()
    page.goto((root / "page.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).direction") == "rtl"
    assert page.evaluate("document.documentElement.lang") == "ar"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.get_by_text("لم ينجح").count() == 1
    assert page.locator("td.n").first.evaluate("e => getComputedStyle(e).textAlign") == "end"


def test_a_finished_sentence_finds_the_message_it_was_made_of() -> None:
    say = JAPANESE.sentence
    assert say("every length works") == "どの長さでも動く"
    assert say("the mean of ones should be a tensor, but it is None (is a `return` missing?).") == (
        "1 の平均 はテンソルのはずですが、None（`return` を忘れていませんか） です。"
    )
    assert say("with a mask: 3 of 9 entries of the result are NaN.") == (
        "マスクつきで: 結果 の 9 個の要素のうち 3 個が NaN です。"
    )
    assert say("ValueError: who knows (line 3 of cell attention)").startswith("ValueError: who knows")


@pytest.mark.parametrize("text", ["a" * 10**6, "3 of " * 10**5, ": " * 10**5, "{name}" * 10**5, " entries of " * 10**5])
def test_no_text_takes_long(text: str) -> None:
    before = time.process_time()
    JAPANESE.sentence(text)
    assert time.process_time() - before < 2


# -- the .po files --------------------------------------------------------------------------------------------------


def test_what_changes_in_the_source_is_out_of_date_and_stays_english_until_somebody_looked(root: Path) -> None:
    assert translate.update("ja", root, only=[NAME]) == [], "what is up to date is not written again"
    source = root / f"solutions/{NAME}.py"
    source.write_text(
        source.read_text().replace("They are said once, here, and kept", "They are told once, here, and kept")
    )
    assert translate.update("ja", root, only=[NAME]) == [catalogue(root, "ja", NAME)]
    ((counts,), problems) = translate.status("ja", root, only=[NAME])
    assert (counts.fuzzy, counts.missing, problems) == (1, 0, [])
    text = "".join(cell.source for cell in Course(root).cells(source))
    assert "They are told once, here, and kept in every chapter." in text
    assert translate.summary("ja", root).startswith("locale/ja: 4")
    assert "1 out of date and" in translate.summary("ja", root)
    source.write_text(source.read_text().replace("They are told once, here, and kept in every chapter.", ""))
    translate.update("ja", root, only=[NAME])
    assert "#~ msgstr" in catalogue(root, "ja", NAME).read_text(encoding="utf-8"), "somebody's work is not thrown away"


def test_a_broken_translation_stops_the_build_and_no_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback._words.cache_clear()
    told(root, "The cell of {name} is missing.", "セルがありません。", "grader")
    assert "The cell of merge_heads is missing." in feedback.page(REPORT)
    with pytest.raises(TranslationError, match="its placeholders are none, and the source has name"):
        translate.summary("ja", root)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"hello"])
def test_a_file_that_is_no_po_file_is_a_sentence(root: Path, content: bytes) -> None:
    catalogue(root, "ja", NAME).write_bytes(content)
    for use in (lambda: Course(root).words(NAME), lambda: translate.update("ja", root, only=[NAME])):
        with pytest.raises(TranslationError, match=r"is no \.po file"):
            use()


@pytest.mark.parametrize("language", ["xx", "../..", "ja/..", "", "klingon"])
def test_a_language_that_is_not_there_is_a_sentence(root: Path, language: str, command: Command) -> None:
    (root / "course.toml").write_text(f'language = "{language}"\n')
    if language:
        with pytest.raises(CourseError, match="there is no folder locale/"):
            assignments.names()
        ran = command("translate", language, "grader", "--check")
        assert (ran.code, len(ran.sentences)) == (2, 1)
        assert "is no language" in ran.err


def test_the_command_says_how_much_is_translated(command: Command) -> None:
    ran = command("translate", "ja", NAME, "--check")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split() == [NAME, "325", "325", "0", "0"]
    assert command("translate", "ja", "99-nothing").err.startswith("There is no catalogue '99-nothing'.")
