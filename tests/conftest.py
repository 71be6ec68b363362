"""What several test files share: the command line in this process, and the sample class graded by it once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, sync_playwright

from autograder import assignment as assignments
from autograder import cli  # before torch: it asks for one thread
from autograder.report import Report
from autograder.results import Results
from autograder.sandbox import jail as jails

ROOT = Path(__file__).resolve().parents[1]
CLASS = ROOT / "examples" / "class"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as in a shell's background, and what we start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
NIGHTLY = bool(os.environ.get("ICHIMON_NIGHTLY"))  # `make nightly` sets it: more examples, and tests that take long

# The others know our marks and words. Where course.toml changes these, only what follows it can judge.
FOLLOWS_THE_COURSE = {"book", "build", "capstone", "course", "mutants"}
FOLLOWS_THE_COURSE |= {"notebooks", "reader", "release", "translate", "verify"}
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if (ROOT / "course.toml").exists() and path.stem.removeprefix("test_") not in FOLLOWS_THE_COURSE
]


def pytest_report_header() -> str:
    if not collect_ignore:
        return ""
    return (
        f"course.toml changes the course: {len(collect_ignore)} files of tests that know it as it comes are left out. "
        f"Those that follow your course run: {', '.join(sorted(FOLLOWS_THE_COURSE))}."
    )


@dataclass(frozen=True)
class Ran:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """The lines of stderr, without the count of what was graded."""
        return [line for line in self.err.splitlines() if line.strip() and " submissions in " not in line]


Command = Callable[..., Ran]


def run(*arguments: object) -> Ran:
    """`autograder ARGUMENTS` in this process, where the grader stays warm. Whatever it raises is a test that fails."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["autograder", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Command:
    return run


@dataclass(frozen=True)
class Graded:
    """The sample class: the file of its results, what the command said, and each student's report."""

    results: Path
    ran: Ran
    reports: dict[str, Report]


def written(chapter: str, **changed: str) -> str:
    """The released notebook with the reference's answers, or with others."""
    document = json.loads((ROOT / f"notebooks/{chapter}/{chapter}.ipynb").read_text(encoding="utf-8"))
    answers = {**assignments.load(chapter).reference, **changed}
    for cell in document["cells"]:
        if cell["id"] in answers:
            cell["source"] = answers[cell["id"]]
    return json.dumps(document)


@pytest.fixture(scope="session")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Graded:
    """The sample class, graded once through the real sandbox by `autograder grade --workers 1`."""
    results = tmp_path_factory.mktemp("class") / "results.sqlite"
    ran = run("grade", CLASS, "--results", results, "--workers", 1)
    with Results(results) as stored:
        return Graded(results, ran, {report.student: report for report in stored.reports()})


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH; install it with the system's package manager")
    arguments = ["--disable-gpu", "--disable-background-networking"]
    if os.geteuid() == 0:  # Chromium's own sandbox does not run as root; the pages are ours
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


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


def run_as_ordinary_user(file: str, timeout: float) -> None:
    """Run a file of tests once more as somebody without rights, if this is root; it must skip what calls this."""
    if os.geteuid() != 0:
        pytest.skip("this already is the run as an ordinary user")
    places = (*jails.SYSTEM_FOLDERS, "/etc", *jails._interpreter(), str(ROOT))
    visible = [path for path in places if os.path.lexists(path)]
    pytest_run = f"cd {ROOT} && HYPOTHESIS_STORAGE_DIRECTORY=/tmp exec {sys.executable} "
    pytest_run += f"-m pytest -q -p no:cacheprovider {file}"
    with tempfile.TemporaryDirectory() as root:
        drop = [sys.executable, "-I", "-S", str(jails.HERE / "drop_root.py"), "65500", root, *visible]
        command = [*drop, "--", "/bin/sh", "-c", pytest_run]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    assert "1 skipped" in done.stdout.splitlines()[-1], "it did not run as an ordinary user"
