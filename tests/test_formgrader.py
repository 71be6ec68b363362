"""What `make instructor` starts, in a browser: from logging in to a page of feedback, and nothing of a student's runs.

`ICHIMON_SCREENSHOTS=docs/images pytest tests/test_formgrader.py` makes the pictures of docs/formgrader.md anew.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from nbgrader.api import Gradebook
from PIL import Image
from playwright.sync_api import Browser, FrameLocator, Locator, Page, Request
from test_gradebook import HOSTILE
from test_submissions import handed_in

from autograder import formgrader
from autograder.authoring.build import source_notebook
from autograder.gradebook import GradebookError

if TYPE_CHECKING:
    from conftest import Command

ROOT = Path(__file__).resolve().parents[1]
NAME = "06-gpt"  # it has a question that a person marks
MINE = "mine=1"  # what a student's script would leave in a page
ODD = f'<img src=x onerror={MINE}>";{MINE};<!--'  # a folder's name that runs as HTML, and in a script's string
ANSWER = (
    "Every word has a vote, and at the end the votes are *counted*."  # the picture of it tells nobody the right one
)
PICTURES = os.environ.get("ICHIMON_SCREENSHOTS", "")

# -- the server -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def hand_in(course: Path, student: str, notebook: dict[str, Any]) -> None:
    folder = course / "submitted" / student / NAME
    folder.mkdir(parents=True)
    (folder / f"{NAME}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def written(notebook: dict[str, Any], cell_id: str, source: str) -> dict[str, Any]:
    next(cell for cell in notebook["cells"] if cell["id"] == cell_id)["source"] = source
    return notebook


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the course with one chapter, in which two students handed in; verdicts are kept in it too."""
    root = tmp_path_factory.mktemp("term")
    for folder in ("autograder", "ichimon"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (f"solutions/{NAME}.py", f"notebooks/{NAME}/{NAME}.ipynb", "nbgrader_config.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    source = root / f"_build/nbgrader/source/{NAME}/{NAME}.ipynb"  # as `make notebooks` leaves it
    source.parent.mkdir(parents=True)
    source.write_text(source_notebook(ROOT / f"solutions/{NAME}.py"), encoding="utf-8")
    hand_in(root, "student-01", written(handed_in(NAME, "middling"), "explain", ANSWER))
    hostile = written(handed_in(NAME, "good"), "Mended", "while True:\n    pass")
    shown = [*(text for text in HOSTILE[:-2] if "attachment" not in text), "[my own page](https://example.org/mine)"]
    written(hostile, "explain", "\n\n".join(shown).replace("alert('mine')", MINE))
    hand_in(root, "student-02", hostile)
    (root / "submitted" / "student-02" / "nbgrader_config.py").write_text(f"open({str(root / 'ran')!r}, 'w')")
    return root


@pytest.fixture(scope="module")
def first_on_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server looks for programs first."""
    return tmp_path_factory.mktemp("bin")


@pytest.fixture(scope="module")
def environment(course: Path, first_on_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where nothing of this machine's own Jupyter is read."""
    jupyter = tmp_path_factory.mktemp("jupyter")
    here = {f"JUPYTER_{name}_DIR": str(jupyter / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    lab = {f"JUPYTERLAB_{name}_DIR": str(jupyter / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    path = {"PATH": f"{first_on_path}:{os.environ['PATH']}", "PYTHONPATH": str(course)}
    kept = {name: value for name, value in os.environ.items() if name != "JUPYTER_TOKEN"}
    return {**kept, **here, **lab, **path}


@dataclass
class Server:
    """What the command printed, and where its pages are."""

    printed: str
    address: str
    token: str
    asked: list[str] = field(default_factory=list)  # requests to anybody else

    def saw(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:", "file:")):
            self.asked.append(request.url)


@pytest.fixture(scope="module")
def server(course: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The last line of the target's recipe, run in the copy."""
    port = free_port()
    recipe = subprocess.run(
        ["make", "-n", "instructor", f"PORT={port}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with errors.open("w") as stderr:
        running = subprocess.Popen(
            recipe.stdout.splitlines()[-1].split(), cwd=course, env=environment, stdout=subprocess.PIPE, stderr=stderr
        )
    assert running.stdout is not None
    try:
        printed = ""
        while "Ctrl-C" not in printed:
            line = running.stdout.readline().decode()
            assert line, errors.read_text()
            printed += line
        found = re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=(\w+)", printed)
        assert found, printed
        yield Server(printed, found[1], found[2])
    finally:
        running.terminate()
        running.wait(20)
    assert "Traceback" not in errors.read_text()


# -- the browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(browser: Browser, server: Server) -> Iterator[Page]:
    """JupyterLab, logged in with the token on its login page."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, device_scale_factor=1.5 if PICTURES else 1)
    context.on("request", server.saw)
    context.route(lambda url: not url.startswith(server.address), lambda route: route.abort())
    page = context.new_page()
    page.goto(f"{server.address}/lab")
    assert "/login" in page.url
    page.locator("#password_input").fill(server.token)
    page.locator("#login_submit").click()
    page.locator(".lm-MenuBar-itemLabel", has_text="Nbgrader").wait_for(timeout=60_000)
    page.get_by_role("button", name="No", exact=True).click()  # JupyterLab asks whether to ask for news
    yield page
    context.close()


@pytest.fixture(scope="module")
def pages(lab: Page) -> FrameLocator:
    """nbgrader's pages, opened from JupyterLab's menu."""
    lab.locator(".lm-MenuBar-itemLabel", has_text="Nbgrader").click()
    picture(lab, "menu", 240)
    lab.locator(".lm-Menu-itemLabel", has_text=re.compile("^Formgrader$")).click()
    lab.keyboard.press("Control+b")  # all the width, without the list of files
    return lab.frame_locator("#formgrader-iframe iframe")


def picture(page: Page, name: str, height: int = 720) -> None:
    """A small PNG for the documents, if they are asked for."""
    if not PICTURES:
        return
    page.wait_for_timeout(700)  # what fades in is there
    path = ROOT / PICTURES / f"formgrader-{name}.png"
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1280, "height": height})
    with Image.open(path) as shot:
        shot.convert("RGB").quantize(64).save(path, optimize=True)


def row(pages: FrameLocator, student: str) -> Locator:
    return pages.locator("#main-table tr").filter(has=pages.get_by_text(student, exact=True))


def click(pages: FrameLocator, student: str, button: str) -> str:
    """Click a button in a student's row, and give what the dialog says in the end."""
    row(pages, student).locator(f".{button} a").click()
    dialog = pages.locator("#success-modal, #error-modal")
    dialog.wait_for(timeout=90_000)
    return dialog.inner_text()


def close(pages: FrameLocator) -> None:
    pages.locator(".modal-footer button").click()
    pages.locator(".modal").wait_for(state="detached")


def go(lab: Page, server: Server, path: str) -> None:
    """Show another of nbgrader's pages inside JupyterLab."""
    frame = lab.locator("#formgrader-iframe iframe").element_handle().content_frame()
    assert frame is not None
    frame.goto(f"{server.address}/formgrader/{path}")


def loaded(lab: Page) -> None:
    """Wait until the grading view has fetched marks and comments: before, it saves none."""
    view = "document.querySelector('#formgrader-iframe iframe').contentWindow.formgrader"
    lab.wait_for_function(f"() => {view}?.grades?.loaded && {view}?.comments?.loaded")


def marks(course: Path, student: str) -> dict[str, tuple[float | None, float | None]]:
    """What the tests gave and what a person gave, in the gradebook."""
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        grades = gradebook.find_submission_notebook(NAME, NAME, student).grades
        return {grade.name: (grade.auto_score, grade.manual_score) for grade in grades}


# -- a term, in its order -------------------------------------------------------------------------------------------


def test_without_a_sandbox_the_button_says_so_and_grades_nothing(
    course: Path, first_on_path: Path, lab: Page, pages: FrameLocator
) -> None:
    broken = first_on_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    pages.locator(".num-submissions a").wait_for()
    picture(lab, "assignments", 600)
    pages.locator(".num-submissions a").click()
    said = click(pages, "student-01", "autograde")
    assert "The jail could not be built" in said
    assert "Traceback" not in said
    assert 'File "' not in said
    assert not (course / "autograded" / "student-01" / NAME).exists()
    close(pages)
    broken.unlink()
    assert "needs autograding" in row(pages, "student-01").inner_text()


def test_the_button_grades_and_the_score_appears(course: Path, lab: Page, pages: FrameLocator) -> None:
    said = click(pages, "student-01", "autograde")
    picture(lab, "autograded")
    assert "Successfully autograded '06-gpt' for student 'student-01'." in said
    close(pages)
    expected = json.loads((ROOT / "tests/submissions" / NAME / "marks.json").read_text(encoding="utf-8"))["middling"]
    assert f"{sum(expected.values()):g} / 25" in row(pages, "student-01").inner_text()
    assert "needs manual grading" in row(pages, "student-01").inner_text()
    given = {name.removeprefix("check-"): auto for name, (auto, _) in marks(course, "student-01").items()}
    assert given == pytest.approx({**expected, "explain": None})


def test_other_pages_answer_while_a_cell_loops(lab: Page, server: Server, pages: FrameLocator) -> None:
    row(pages, "student-02").locator(".autograde a").click()
    for _ in range(3):
        assert lab.request.get(f"{server.address}/formgrader/api/assignments").ok
    answered = time.monotonic()
    pages.locator("#success-modal").wait_for(timeout=90_000)
    assert time.monotonic() - answered > 2, "the others waited for the loop, which ends after five seconds of computing"
    close(pages)
    assert "20 / 25" in row(pages, "student-02").inner_text()  # without the loop and the answer in words


def test_a_mark_and_a_comment_by_hand_are_kept(course: Path, lab: Page, pages: FrameLocator) -> None:
    pages.get_by_role("link", name="Manual Grading").click()
    pages.locator("#main-table a", has_text=NAME).click()
    pages.locator(".breadcrumb .active", has_text=NAME).wait_for()  # the list of its notebooks, of which there is one
    pages.locator("#main-table a", has_text=NAME).click()
    pages.get_by_text("Submission #1").wait_for()
    pages.get_by_role("button", name="Show All Names").click()
    picture(lab, "manual", 480)
    pages.get_by_role("link", name="student-01").click()
    mark, comment = pages.locator("#explain"), pages.locator("#explain-comment")
    loaded(lab)
    assert "the votes are counted" in pages.locator("body").inner_text()
    mark.fill("0.5")
    mark.press("Tab")
    comment.fill("Counted by whom? Follow one vector from the embedding to the logits.")
    comment.press("Tab")
    pages.locator(".comment-saved:visible").wait_for()
    mark.scroll_into_view_if_needed()
    picture(lab, "mark")
    assert marks(course, "student-01")["explain"] == (None, 0.5)
    mark.evaluate("() => { formgrader = undefined; location.reload(); }")
    loaded(lab)
    assert mark.input_value() == "0.5"
    assert pages.locator("#explain-comment").input_value().startswith("Counted by whom?")


def test_a_mark_by_hand_stands_when_the_button_grades_again(
    course: Path, server: Server, lab: Page, pages: FrameLocator
) -> None:
    go(lab, server, f"manage_submissions/{NAME}")
    before = marks(course, "student-01")
    assert "Successfully" in click(pages, "student-01", "autograde")
    close(pages)
    assert marks(course, "student-01") == before
    assert "graded" in row(pages, "student-01").locator(".status").inner_text()


def test_feedback_has_marks_and_words_and_no_secret(
    course: Path, browser: Browser, server: Server, lab: Page, pages: FrameLocator
) -> None:
    go(lab, server, f"manage_submissions/{NAME}")
    assert "Successfully generated feedback" in click(pages, "student-01", "generate-feedback")
    close(pages)
    page = browser.new_page(viewport={"width": 1280, "height": 720}, device_scale_factor=1.5 if PICTURES else 1)
    page.goto((course / "feedback" / "student-01" / NAME / f"{NAME}.html").as_uri(), wait_until="domcontentloaded")
    text = page.locator("body").inner_text()
    page.locator("a[name=explain]").first.scroll_into_view_if_needed()
    picture(page, "feedback")
    html = page.content()
    page.close()
    assert "Score: 10.32 / 25" in text
    assert "Counted by whom?" in text
    assert "3.27 of 5 points" in text
    hidden = (ROOT / "autograder/tests/test_06_gpt.py").read_text(encoding="utf-8")
    names = re.findall(r"def (test_\w+)", hidden)
    assert len(names) > 10
    assert not [name for name in names if name in html]
    solution = (ROOT / f"solutions/{NAME}.py").read_text(encoding="utf-8")
    expected = re.findall(r"(?m)^# - (.{40,})$", solution.partition('question="explain"')[2])
    assert expected
    assert not [line for line in expected if line in html]


# -- what a student can choose --------------------------------------------------------------------------------------


def ran(page: Page) -> bool:
    return bool(page.evaluate("() => 'mine' in window"))


def submission(course: Path, student: str) -> str:
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        return str(gradebook.find_submission_notebook(NAME, NAME, student).id)


@pytest.fixture
def tab(lab: Page) -> Iterator[Page]:
    page = lab.context.new_page()
    yield page
    page.close()


def test_nothing_in_a_notebook_runs_or_loads(course: Path, server: Server, tab: Page) -> None:
    tab.goto(f"{server.address}/formgrader/submissions/{submission(course, 'student-02')}/", wait_until="load")
    tab.wait_for_timeout(200)
    assert not ran(tab)
    answer = tab.locator(".nbgrader_cell", has=tab.locator("#explain"))
    assert "<script>" in answer.inner_text()
    assert [url for url in server.asked if "cdnjs.cloudflare.com" not in url] == []  # MathJax, by nbconvert's template


def test_no_page_of_a_students_takes_the_formgraders_place(
    course: Path, server: Server, lab: Page, pages: FrameLocator
) -> None:
    """JupyterLab runs the commands that the page in that frame sends, whoever's page it is."""
    go(lab, server, f"submissions/{submission(course, 'student-02')}/")
    link = pages.get_by_role("link", name="my own page")
    link.click()
    lab.wait_for_timeout(300)
    assert pages.locator("#explain").count() == 1
    assert not [url for url in server.asked if "example.org" in url]
    assert link.get_attribute("target") == "_blank"


def test_a_name_is_text_on_every_page(course: Path, server: Server, lab: Page, tab: Page, pages: FrameLocator) -> None:
    hand_in(course, ODD, {})
    go(lab, server, f"manage_submissions/{NAME}")
    assert "Successfully" in click(pages, ODD, "autograde")
    close(pages)
    where = [
        f"submissions/{submission(course, ODD)}/",
        f"manage_students/{quote(ODD)}",
        f"manage_students/{quote(ODD)}/{NAME}",
        f"manage_submissions/{NAME}",
        f"gradebook/{quote(ODD)}",
    ]
    for path in where:
        tab.goto(f"{server.address}/formgrader/{path}", wait_until="load")
        tab.wait_for_timeout(200)  # an image that cannot be loaded says so a moment later
        assert not ran(tab), path
        tab.get_by_text(ODD).first.wait_for(state="attached")


def test_a_folders_configuration_is_never_run(course: Path, server: Server, lab: Page) -> None:
    answer = lab.request.get(f"{server.address}/formgrader?path=submitted/student-02")
    assert answer.ok
    assert "Manage Assignments" in answer.text()
    assert not (course / "ran").exists()


def test_without_the_token_there_is_nothing(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    for path in ("lab", "formgrader", "formgrader/manage_assignments", f"formgrader/manage_submissions/{NAME}"):
        page = context.new_page()
        page.goto(f"{server.address}/{path}")
        assert "/login" in page.url
    assert "/login" in context.request.get(f"{server.address}/formgrader/api/assignments").url
    context.close()


# -- before it starts -----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_a_sentence(server: Server, command: Command) -> None:
    port = server.address.rpartition(":")[2]
    refused = command("instructor", "--port", port)
    assert refused.code == 2
    assert refused.err.startswith(f"Port {port} cannot be used (Address already in use)")


def test_what_is_missing_is_said_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "nbgrader_config.py", tmp_path)
    (tmp_path / "submitted").mkdir()
    monkeypatch.setattr(formgrader, "bubblewrap", missing)
    sources, nobody, sandbox = formgrader.prepare(free_port(), tmp_path)
    assert "run `make notebooks`" in sources
    assert nobody.startswith("Nobody has handed in anything yet: submitted/<student>/")
    assert sandbox == "The buttons that grade will not work on this machine. There is no bwrap."
    with pytest.raises(GradebookError, match="is not an nbgrader course"):
        formgrader.prepare(free_port(), tmp_path / "submitted")


def test_a_gradebook_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    shutil.copy(ROOT / "nbgrader_config.py", tmp_path)
    for folder in ("notebooks", "_build/nbgrader/source"):
        shutil.copytree(ROOT / "notebooks" / NAME, tmp_path / folder / NAME)
    (tmp_path / "submitted").mkdir()
    (tmp_path / "gradebook.db").write_text("These are no marks. " * 100)
    with pytest.raises(GradebookError, match="file is not a database"):
        formgrader.prepare(free_port(), tmp_path)


def missing() -> str:
    raise formgrader.JailError("There is no bwrap.")


@pytest.mark.parametrize(
    ("error", "said"),
    [("autograder.sandbox.jail.JailError: It has [a hole].", "It has [a hole]."), ("KeyError: 'x'", "KeyError: 'x'")],
)
def test_a_traceback_in_the_log_becomes_its_last_line(error: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("a server's")
    log.addFilter(formgrader._in_words)
    log.error('Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\n' + error)
    log.error("Please see the the above traceback for details on the specific errors.")
    log.error("There was an error processing assignment: %s", "a%sb")
    assert caplog.messages == [said, "There was an error processing assignment: a%sb"]
