# ruff: noqa: F401, F811 (the fixtures of test_gradebook are named twice: where they come from, and where they are used)
"""nbgrader's exchange: out, in and back, and what students can do to it on a machine that they share."""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.coursedir import CourseDirectory
from nbgrader.exchange import ExchangeError
from nbgrader.utils import get_username, parse_utc
from test_gradebook import (
    NAME,
    answered,
    autograded,
    course,
    directory,
    empty_course,
    grader,
    named,
    nbgrader,
    release,
    report,
)

from autograder.authoring import release as releases
from autograder.course import CourseError
from autograder.exchange import Collect, ReleaseAssignment, ReleaseFeedback
from autograder.gradebook import SECRET, course_config, sync
from autograder.report import Report

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")  # nbgrader's own
ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "examples" / "jupyterhub" / "student" / "nbgrader_config.py"
ME = get_username()
OTHER = next(name for name in ("daemon", "bin") if name != ME)  # an account that is on every machine
KEY = "0123456789abcdef" * 8
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders that belong to others")


@pytest.fixture(scope="module", autouse=True)
def search_once() -> object:
    """Reading every secret of the course takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases, "Search", functools.cache(releases.Search))
        yield


@pytest.fixture
def exchange(course: Path, tmp_path: Path) -> Path:
    """The exchange of a course that has not released anything."""
    root = tmp_path / "exchange"
    (course / "course.toml").write_text(f'exchange = "{root}"\n')
    return root


@pytest.fixture
def home(exchange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student's folder, with what examples/jupyterhub tells nbgrader there."""
    folder = tmp_path / "home"
    folder.mkdir()
    text = STUDENT.read_text(encoding="utf-8")
    assert text.count("/srv/nbgrader/exchange") == 1
    (folder / "nbgrader_config.py").write_text(text.replace("/srv/nbgrader/exchange", str(exchange)))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / ".local"))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


# -- out, in and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["nbgrader", "sync"])
def test_an_assignment_goes_out_and_comes_back_and_so_does_its_feedback(
    course: Path, exchange: Path, home: Path, release: NotebookNode, grader: dict[str, Report], by: str
) -> None:
    if by == "sync":  # as docs/staff.md has it; else release_assignment makes the folders
        (exchange / "ichimon").mkdir(parents=True)
        exchange.chmod(0o1777)
        (exchange / "ichimon").chmod(0o755)
    before = os.umask(0o077)  # a careful instructor's
    assert nbgrader(course, "release_assignment", NAME) == 0
    os.umask(before)
    assert files(exchange) == [f"ichimon/outbound/{NAME}/{NAME}.ipynb"]
    given = exchange / "ichimon" / "outbound" / NAME / f"{NAME}.ipynb"
    assert given.read_bytes() == (course / "notebooks" / NAME / f"{NAME}.ipynb").read_bytes()
    assert [mode(exchange / part) for part in ("", "ichimon", "ichimon/inbound", "ichimon/outbound")] == [
        *("0o1777", "0o755", "0o3733", "0o755")
    ]
    assert (mode(given), mode(given.parent)) == ("0o644", "0o755")

    assert nbgrader(home, "fetch_assignment", NAME) == 0
    nbformat.write(answered(release), home / NAME / f"{NAME}.ipynb")
    (home / NAME / "notes.txt").write_text("not for the grader")
    assert nbgrader(home, "submit", NAME) == 0
    assert nbgrader(course, "collect", NAME) == 0
    folder = course / "submitted" / ME / NAME
    assert files(folder) == [f"{NAME}.ipynb", SECRET, "timestamp.txt"]
    [submitted] = (exchange / "ichimon" / "inbound").iterdir()
    assert parse_utc((folder / "timestamp.txt").read_text()) == parse_utc((submitted / "timestamp.txt").read_text())

    grader[ME] = report(ME)
    if by == "sync":
        sync([report(ME)], course=course)
    else:
        assert nbgrader(course, "autograde", NAME) == 0
    before = os.umask(0o077)
    assert nbgrader(course, "generate_feedback", NAME) == 0
    assert nbgrader(course, "release_feedback", NAME) == 0
    os.umask(before)
    feedback = exchange / "ichimon" / "feedback"
    [page] = feedback.iterdir()
    assert re.fullmatch(r"[0-9a-f]{32}\.html", page.name)
    assert (mode(feedback), mode(page)) == ("0o711", "0o644")
    assert nbgrader(home, "fetch_feedback", NAME) == 0
    [fetched] = (home / NAME / "feedback").rglob("*.html")
    assert fetched.read_bytes() == (course / "feedback" / ME / NAME / f"{NAME}.html").read_bytes()
    assert nbgrader(course, "release_feedback", NAME) == 0  # again, over what is there
    assert [path.name for path in feedback.iterdir()] == [page.name]


def test_a_second_submission_is_taken_when_asked_for_and_the_first_is_kept(
    course: Path, exchange: Path, home: Path, release: NotebookNode
) -> None:
    assert nbgrader(course, "release_assignment", NAME) == 0
    assert nbgrader(home, "fetch_assignment", NAME) == 0
    collected = course / "submitted" / ME / NAME / f"{NAME}.ipynb"
    texts = []
    for answer in ("first", "second"):
        notebook = answered(release)
        named(notebook, "double").source = answer
        nbformat.write(notebook, home / NAME / f"{NAME}.ipynb")
        texts.append((home / NAME / f"{NAME}.ipynb").read_bytes())
        assert nbgrader(home, "submit", NAME) == 0
        assert nbgrader(course, "collect", NAME) == 0
        assert collected.read_bytes() == texts[0]
    assert nbgrader(course, "collect", NAME, "--update") == 0
    assert collected.read_bytes() == texts[1]
    [kept] = (course / "_build" / "replaced" / ME / NAME).rglob("*.ipynb")
    assert kept.read_bytes() == texts[0]
    assert nbgrader(course, "collect", NAME, "--update") == 0
    assert len(list((course / "_build" / "replaced").rglob("*.ipynb"))) == 1


# -- what is not released -------------------------------------------------------------------------------------------


def ran(notebook: NotebookNode) -> None:
    named(notebook, "double").outputs = [nbformat.v4.new_output("stream", text="4")]


def solved(notebook: NotebookNode) -> None:
    secret = next(s for s in releases.secrets() if s.name.startswith("the solution of attention (02"))
    named(notebook, "double").source = secret.source


@pytest.mark.parametrize(("change", "told"), [(ran, "outputs in double"), (solved, "holds the solution of attention")])
def test_a_notebook_with_answers_is_not_released(
    course: Path, exchange: Path, release: NotebookNode, change: Callable[[NotebookNode], None], told: str
) -> None:
    notebook = nbformat.reads(nbformat.writes(release), as_version=4)
    change(notebook)
    nbformat.write(notebook, course / "notebooks" / NAME / f"{NAME}.ipynb")
    with pytest.raises(ExchangeError, match=told):
        act(ReleaseAssignment, course)
    assert files(exchange) == []


@pytest.mark.parametrize("name", ["marks.csv", "solution.ipynb"])
def test_nothing_but_the_notebook_is_released(course: Path, exchange: Path, name: str) -> None:
    (course / "notebooks" / NAME / name).write_text("{}")
    with pytest.raises(ExchangeError, match=f"holds {name}, which is not the notebook that students get"):
        act(ReleaseAssignment, course)
    assert files(exchange) == []


# -- what is not believed -------------------------------------------------------------------------------------------


def act(what: type, course: Path, **options: object) -> None:
    """A step of the exchange on the assignment, whose words go to caplog."""
    config = course_config(course)
    config.CourseDirectory.assignment_id = NAME
    step = what(coursedir=CourseDirectory(config=config), config=config, log=logging.getLogger("exchange"))
    for name, value in options.items():
        setattr(step, name, value)
    step.start()


def time_name(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f UTC}"


NOW = functools.partial(datetime.now, UTC)


def put(course: Path, student: str, text: str = "{}", *, told: str = "", owner: str = "", key: str = KEY) -> Path:
    """A submission as its owner could put it into the exchange, without nbgrader."""
    inbox = Path(course_config(course).Exchange.root, "ichimon", "inbound")
    inbox.mkdir(parents=True, exist_ok=True)
    folder = inbox / f"{student}+{NAME}+{told or time_name(NOW())}+{os.urandom(4).hex()}"
    folder.mkdir()
    (folder / f"{NAME}.ipynb").write_text(text)
    (folder / SECRET).write_text(key)
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, owner or ME)
    return folder


def collected(course: Path) -> dict[str, str]:
    return {path.parts[-3]: path.read_text() for path in (course / "submitted").rglob("*.ipynb")}


def noted(course: Path, step: str = "collect") -> list[list[str]]:
    """What staff are told about single submissions."""
    with (course / "_build" / "exchange" / f"{NAME}-{step}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def a_link(folder: Path, course: Path) -> None:
    (folder / f"{NAME}.ipynb").unlink()
    (folder / f"{NAME}.ipynb").symlink_to(course / "answer.ipynb")


def a_folder_that_is_a_link(folder: Path, course: Path) -> None:
    folder.rename(course / "elsewhere")
    folder.symlink_to(course / "elsewhere")


def a_pipe(folder: Path, course: Path) -> None:
    (folder / f"{NAME}.ipynb").unlink()
    os.mkfifo(folder / f"{NAME}.ipynb")


def a_folder_for_a_notebook(folder: Path, course: Path) -> None:
    (folder / f"{NAME}.ipynb").unlink()
    (folder / f"{NAME}.ipynb").mkdir()


def too_large(folder: Path, course: Path) -> None:
    os.truncate(folder / f"{NAME}.ipynb", 21 << 20)


def too_many(folder: Path, course: Path) -> None:
    for number in range(1001):
        (folder / f"{number}.ipynb").touch()


def nothing_in_it(folder: Path, course: Path) -> None:
    (folder / f"{NAME}.ipynb").unlink()


def no_time(folder: Path, course: Path) -> None:
    folder.rename(folder.with_name(f"{ME}+{NAME}+yesterday+x"))


def a_time_that_breaks_the_reader_of_times(folder: Path, course: Path) -> None:
    folder.rename(folder.with_name(f"{ME}+{NAME}+10h{'9' * 30}+x"))


def a_name_that_leads_out(folder: Path, course: Path) -> None:
    folder.rename(folder.with_name(f"..+{NAME}+{time_name(NOW())}+x"))


def of_another_account(folder: Path, course: Path) -> None:
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, OTHER)


def a_notebook_of_another_account(folder: Path, course: Path) -> None:
    shutil.chown(folder / f"{NAME}.ipynb", OTHER)


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (a_link, "holds a notebook that cannot be read, or is none (Too many levels of symbolic links)"),
        (a_folder_that_is_a_link, "is no folder"),
        (a_pipe, "holds a notebook that is no file"),
        (a_folder_for_a_notebook, "holds a notebook that cannot be read, or is none (Is a directory)"),
        (too_large, "holds a notebook of more than 20 MB"),
        (too_many, "holds more than 1,000 files"),
        (nothing_in_it, f"holds no {NAME}.ipynb"),
        (no_time, "holds no time in its name"),
        (a_time_that_breaks_the_reader_of_times, "holds no time in its name"),
        (a_name_that_leads_out, "names no student"),
        pytest.param(of_another_account, f"says that it is {ME}'s, and belongs to {OTHER}", marks=AS_ROOT),
        pytest.param(a_notebook_of_another_account, f"holds a notebook that belongs to {OTHER}", marks=AS_ROOT),
    ],
)
def test_what_is_not_a_students_own_plain_notebook_is_left_alone_and_stops_nobody(
    course: Path,
    exchange: Path,
    caplog: pytest.LogCaptureFixture,
    attack: Callable[[Path, Path], None],
    sentence: str,
) -> None:
    (course / "answer.ipynb").write_text("the reference solution")
    attack(put(course, ME), course)
    others = {}
    if os.geteuid() == 0:
        put(course, "games", '{"honest": true}', owner="games")
        others = {"games": '{"honest": true}'}
    act(Collect, course)
    assert collected(course) == others
    [[_, told]] = noted(course)
    assert sentence in told
    assert told.endswith("It was left alone.")
    assert "There is something to look at (1)" in caplog.text
    assert not re.search(rf"(?<![\w-]){ME}(?![\w-])", caplog.text)
    assert not list(course.glob(f"{NAME}*"))


@AS_ROOT
def test_work_in_a_borrowed_name_does_not_come_before_the_owners(course: Path, exchange: Path) -> None:
    put(course, OTHER, "honest", owner=OTHER)
    put(course, OTHER, "forged", told=time_name(NOW() + timedelta(days=365)))
    act(Collect, course, update=True)
    assert collected(course) == {OTHER: "honest"}


def test_a_time_that_the_files_do_not_confirm_does_not_count(
    course: Path, exchange: Path, caplog: pytest.LogCaptureFixture
) -> None:
    due = NOW() - timedelta(hours=1)
    with directory_gradebook(course) as gradebook:
        gradebook.update_or_create_assignment(NAME, duedate=due)
    put(course, ME, "early, it says", told=time_name(due - timedelta(days=1)))
    act(Collect, course, before_duedate=True)
    arrived = parse_utc((course / "submitted" / ME / NAME / "timestamp.txt").read_text())
    assert abs((arrived - NOW().replace(tzinfo=None)).total_seconds()) < 60
    assert [what for _, what in noted(course) if "was last changed at" in what]
    assert not re.search(rf"(?<![\w-]){ME}(?![\w-])", caplog.text)
    put(course, ME, "from next year", told=time_name(NOW() + timedelta(days=365)))
    act(Collect, course, update=True)
    put(course, ME, "the last")
    act(Collect, course, update=True)
    assert collected(course) == {ME: "the last"}


def test_an_exchange_from_a_backup_is_believed_when_asked_for(course: Path, exchange: Path) -> None:
    told = NOW() - timedelta(days=3)
    put(course, ME, told=time_name(told))
    act(Collect, course, tolerance=0)
    assert parse_utc((course / "submitted" / ME / NAME / "timestamp.txt").read_text()) == told.replace(tzinfo=None)


def test_a_notebook_under_another_name_is_taken_if_it_is_the_only_one(course: Path, exchange: Path) -> None:
    folder = put(course, ME, "mine")
    (folder / f"{NAME}.ipynb").rename(folder / "homework.ipynb")
    act(Collect, course)
    assert collected(course) == {ME: "mine"}
    assert (course / "submitted" / ME / NAME / f"{NAME}.ipynb").is_file()


@pytest.mark.parametrize("key", ["", "../../outbound/x", KEY.upper(), KEY + "0"])
def test_feedback_goes_only_where_a_real_secret_leads(
    course: Path, exchange: Path, release: NotebookNode, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """The other page is released all the same; nbgrader stops the class at a submission without a secret."""
    put(course, ME, nbformat.writes(answered(release)), key=key)
    act(Collect, course)
    for student, given in ((ME, None), ("student-02", KEY)):
        folder = course / "submitted" / student / NAME
        if given:
            shutil.copytree(course / "submitted" / ME / NAME, folder)
            (folder / SECRET).write_text(given)
    sync([report(ME), report("student-02")], course=course)
    assert nbgrader(course, "generate_feedback", NAME) == 0
    act(ReleaseFeedback, course)
    assert len(files(exchange / "ichimon" / "feedback")) == 1
    [[student, what]] = noted(course, "release-feedback")
    assert (student, "no feedback was released" in what) == (ME, True)
    assert not re.search(rf"(?<![\w-]){ME}(?![\w-])", caplog.text)


def test_a_gradebook_that_is_gone_is_a_sentence(course: Path, exchange: Path) -> None:
    (course / "course.toml").write_text(f'exchange = "{exchange}"\ngradebook = "postgresql://staff:word@127.0.0.1:1/x"')
    put(course, ME)
    with pytest.raises(ExchangeError, match=r"The gradebook postgresql://staff:\*\*\*@127.0.0.1:1/x could not be used"):
        act(Collect, course)
    assert collected(course) == {}


@pytest.mark.parametrize("text", ["course_id = 3", "gradebok = 'x'", "exchange = ["])
def test_a_course_file_that_is_wrong_ends_nbgrader(
    course: Path, release: NotebookNode, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    """It would go on without our configuration otherwise, and run what students wrote in a kernel, with no sandbox."""
    (course / "course.toml").write_text(text)
    folder = course / "submitted" / ME / NAME
    folder.mkdir(parents=True)
    nbformat.write(answered(release), folder / f"{NAME}.ipynb")
    assert nbgrader(course, "autograde", NAME) == 2
    assert capfd.readouterr().err.startswith("course.toml cannot be understood: ")
    assert not (course / "autograded").exists()
    with pytest.raises(CourseError, match="cannot be understood"):
        course_config(course)


# -- examples/jupyterhub, without a Hub -----------------------------------------------------------------------------


def test_the_page_installs_what_the_files_pin() -> None:
    page = (ROOT / "docs" / "staff.md").read_text(encoding="utf-8")
    needs = (STUDENT.parents[1] / "requirements.txt").read_text(encoding="utf-8")
    for name, pins in (
        ("nbgrader==", (ROOT / "requirements.txt").read_text(encoding="utf-8")),
        ("configurable-http-proxy@", needs),
    ):
        pinned = re.search(rf"{name}[\d.]*\d", pins)
        assert pinned
        assert set(re.findall(rf"{name}[\d.]*\d", page)) == {pinned[0]}


def test_what_students_do_not_get_is_called_what_nbgrader_calls_it() -> None:
    labels = json.loads((STUDENT.parent / "labconfig" / "page_config.json").read_text())["disabledExtensions"]
    folder = Path(sys.prefix, "share", "jupyter", "labextensions", "@jupyter", "nbgrader", "static")
    there = {
        found for path in folder.glob("*.js") for found in re.findall(r"@jupyter/nbgrader:[a-z-]+", path.read_text())
    }
    assert set(labels) < there
    pages = json.loads((STUDENT.parent / "jupyter_server_config.json").read_text())["ServerApp"]["jpserver_extensions"]
    [installed] = Path(sys.prefix, "etc", "jupyter", "jupyter_server_config.d").glob("nbgrader*.json")
    assert set(pages) == set(json.loads(installed.read_text())["ServerApp"]["jpserver_extensions"])


def directory_gradebook(course: Path) -> Gradebook:
    return Gradebook(directory(course).db_url, "ichimon")
