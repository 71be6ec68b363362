"""A gradebook on PostgreSQL: two staff at once, a server that goes away, the way there and back."""

# ruff: noqa: F401, F811 (the fixtures of test_gradebook are named twice: where they come from, and where they are used)
from __future__ import annotations

import functools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from nbformat import NotebookNode
from nbgrader import api
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from nbgrader.plugins import CsvExportPlugin
from sqlalchemy import create_engine, select, text
from test_gradebook import (
    NAME,
    answered,
    course,
    empty_course,
    grader,
    hand_in,
    nbgrader,
    nothing,
    release,
    report,
)

from autograder.gradebook import GradebookError, Held, copy_gradebook, course_config, held, register, sync
from autograder.report import Report

if TYPE_CHECKING:
    from conftest import Command

pytestmark = pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning")  # nbgrader's own
HERE = Path(__file__).parent
BINARIES = [Path(found).parent for found in (shutil.which("initdb"),) if found]
BINARIES += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
SECRET = "s3cret-word"


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server of our own, which asks for a password."""

    folder: Path
    port: int

    def _control(self, *words: str) -> None:
        as_nobody = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        subprocess.run(
            [BINARIES[-1] / "pg_ctl", "-D", self.folder / "data", "-w", "-s", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            **(as_nobody if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
        )

    def create(self) -> None:
        password = self.folder / "password"
        password.write_text(SECRET)
        if os.geteuid() == 0:
            for path in (self.folder, password):
                shutil.chown(path, "nobody")
        self._control("init", "-o", f"-U staff -A scram-sha-256 --pwfile={password} -E UTF8 --locale=C -N")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._control("start", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def url(self, database: str, password: str = SECRET, driver: str = "postgresql") -> str:
        return f"{driver}://staff:{password}@127.0.0.1:{self.port}/{database}"

    def database(self, template: str = "template1") -> str:
        """The address of a new database, which is empty, or a copy of another one."""
        name = f"course_{uuid.uuid4().hex[:8]}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return self.url(name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not BINARIES:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql), so a gradebook on it is not tried")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ichimon-postgres-"))
    running = Server(folder, port)
    try:
        running.create()
        running.start()
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def known_version() -> Iterator[None]:
    """nbgrader starts a process of two seconds for each new gradebook, to ask for a number that does not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "get_alembic_version", functools.cache(api.get_alembic_version))
        yield


@pytest.fixture(scope="module")
def prepared(server: Server, empty_course: Path) -> str:
    """The name of a database that knows the assignment."""
    url = server.database()
    sync([], url, empty_course)
    register(NAME, CourseDirectory(root=str(empty_course), db_url=url, config=course_config(empty_course)))
    return url.rpartition("/")[2]


def students(count: int) -> list[str]:
    return [f"student-{number:02}" for number in range(count)]


def hand_in_all(course: Path, release: NotebookNode, names: list[str]) -> None:
    for name in names:
        hand_in(course, name, answered(release), "2026-11-22 10:00:00 UTC")


def rows(url: str) -> Counter[str]:
    """How often each student has a mark for each cell."""
    engine = create_engine(url)
    query = (
        select(api.SubmittedAssignment.student_id, api.GradeCell.name)
        .join(api.SubmittedNotebook, api.SubmittedNotebook.assignment_id == api.SubmittedAssignment.id)
        .join(api.Grade, api.Grade.notebook_id == api.SubmittedNotebook.id)
        .join(api.GradeCell, api.GradeCell.id == api.Grade.cell_id)
    )
    with engine.connect() as connection:
        found = Counter(f"{student} {cell}" for student, cell in connection.execute(query))
    engine.dispose()
    return found


HALF = {"double": Held(2.0, None), "halve": Held(1.0, None)}


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_marks_and_names_of_every_alphabet_arrive(
    prepared: str,
    server: Server,
    course: Path,
    release: NotebookNode,
    driver: str,
) -> None:
    names = ["ada", "Zoë Ångström", "山田 花子", "o'brien; DROP TABLE grade"]
    hand_in_all(course, release, names)
    url = server.database(prepared).replace("postgresql", driver)
    assert held(url, course) == {}
    sync([report(name, message="≤ 0.5 – 山") for name in names], url, course)
    assert held(url, course) == {(name, NAME, exercise): mark for name in names for exercise, mark in HALF.items()}
    sync([report(name) for name in names], url, course)
    assert set(rows(url).values()) == {1}


STAFF = """
import sys; sys.path.insert(0, {here!r})
from pathlib import Path
from test_gradebook import report
from autograder.gradebook import sync
print("ready", flush=True)
sys.stdin.readline()
sync([report(name) for name in {names!r}], {url!r}, Path({course!r}))
"""


def test_two_staff_who_grade_at_the_same_time_lose_and_double_nothing(
    server: Server,
    course: Path,
    release: NotebookNode,
) -> None:
    """Each in a checkout of their own, so that only the database can keep them apart; it does not even have tables."""
    names, url = students(12), server.database()
    hand_in_all(course, release, names)
    other = shutil.copytree(course, course.with_name("other"))
    orders = [(course, names), (other, names[::-1])]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", STAFF.format(here=str(HERE), names=order, url=url, course=str(folder))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, order in orders
    ]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert held(url, course) == {(name, NAME, exercise): mark for name in names for exercise, mark in HALF.items()}
    assert set(rows(url).values()) == {1}
    assert len(rows(url)) == 3 * len(names)


def test_a_mark_that_one_sets_stands_when_another_grades_again(
    prepared: str,
    server: Server,
    course: Path,
    release: NotebookNode,
) -> None:
    url = server.database(prepared)
    hand_in_all(course, release, ["ada"])
    sync([report("ada")], url, course)
    with Gradebook(url, "ichimon") as formgrader:  # a page that one of the staff left open
        grade = formgrader.find_grade("check-halve", NAME, NAME, "ada")
        sync([nothing("ada", "")], url, course)
        grade.manual_score = 2.5
        formgrader.db.commit()
    sync([report("ada")], url, course)
    assert held(url, course)["ada", NAME, "halve"] == Held(1.0, 2.5)


def test_a_server_that_goes_away_loses_nothing(
    prepared: str,
    server: Server,
    course: Path,
    release: NotebookNode,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names, url = students(6), server.database(prepared)
    hand_in_all(course, release, names)

    def reports() -> Iterator[Report]:
        for position, name in enumerate(names):
            if position == 3:
                server.stop()
            yield report(name)

    try:
        with pytest.raises(GradebookError, match="run the same command again; what was graded is kept") as refused:
            sync(reports(), url, course)
        with pytest.raises(GradebookError, match="Connection refused"):
            held(url, course)
    finally:
        server.start()
    said = capfd.readouterr()
    assert not said.out + said.err
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {student for student, _, _ in held(url, course)} == set(names[:3])
    sync([report(name) for name in names], url, course)
    assert {student for student, _, _ in held(url, course)} == set(names)
    assert set(rows(url).values()) == {1}


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("postgresql://staff:wrong-{secret}@127.0.0.1:{port}/postgres", "password authentication failed"),
        ("postgresql://staff:{secret}@127.0.0.1:{port}/none", 'database "none" does not exist'),
        ("postgresql://staff:{secret}@nowhere.invalid/postgres", "nowhere.invalid"),
        ("postgresql://127.0.0.1:{port}/postgres?user=staff&password=wrong-{secret}", "password authentication failed"),
        ("postgresql://staff:{secret}@127.0.0.1:port/postgres", "is not the address of a database"),
        ("postgresql:/staff:{secret}@127.0.0.1/postgres", "is not the address of a database"),
        ("postgresql+none://staff:{secret}@127.0.0.1/postgres", "is not the address of a database"),
    ],
)
@pytest.mark.parametrize("act", ["held", "sync", "copy"])
def test_what_is_wrong_with_an_address_is_told_without_its_password(
    server: Server,
    course: Path,
    act: str,
    address: str,
    sentence: str,
) -> None:
    url = address.format(secret=SECRET, port=server.port)
    acts: dict[str, Callable[[], object]] = {
        "held": lambda: held(url, course),
        "sync": lambda: sync([report("ada")], url, course),
        "copy": lambda: copy_gradebook(f"sqlite:///{course}/gradebook.db", url),
    }
    with pytest.raises(GradebookError, match=sentence) as refused:
        acts[act]()
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in api.Base.metadata.sorted_tables
        }
    engine.dispose()
    return found


def test_a_gradebook_moves_to_postgresql_and_back(
    server: Server,
    course: Path,
    release: NotebookNode,
    command: Command,
) -> None:
    names = [*students(3), "山田 花子"]
    hand_in_all(course, release, names)
    sqlite, back, url = f"sqlite:///{course}/gradebook.db", f"sqlite:///{course}/back.db", server.database()
    with Gradebook(sqlite) as gradebook:
        gradebook.update_or_create_assignment(NAME, duedate="2026-11-30 00:00:00 UTC")
    sync([report(name) for name in names], course=course)
    with Gradebook(sqlite) as gradebook:
        gradebook.find_grade("check-halve", NAME, NAME, names[0]).manual_score = 2.5
        gradebook.find_comment("double", NAME, NAME, names[0]).manual_comment = "Nice – 山"
        gradebook.grant_extension(NAME, names[1], days=2)
        gradebook.find_assignment(NAME).course_id = "not there"  # which only PostgreSQL minds
        gradebook.db.commit()
        assert gradebook.find_submission(NAME, names[1]).extension == timedelta(days=2)
    assert command("copy-gradebook", sqlite, url).code == 0
    assert command("copy-gradebook", url, back).code == 0
    before, there = contents(sqlite), contents(url)
    assert before.pop("course") != there["course"]
    assert {name: table for name, table in there.items() if name != "course"} == before
    assert contents(back) == there
    assert held(url, course)[names[0], NAME, "halve"] == Held(1.0, 2.5)
    again = command("copy-gradebook", sqlite, url)
    assert again.code == 2
    assert again.err.strip().endswith("holds marks already: copy into an empty database.")
    assert contents(url) == there
    sync([report(name) for name in [*names, "new"]], url, course)  # life goes on
    assert set(rows(url).values()) == {1}


def test_a_copy_is_all_or_nothing(server: Server, course: Path, release: NotebookNode) -> None:
    url, sqlite = server.database(), f"sqlite:///{course}/gradebook.db"
    long = "x" * 200  # PostgreSQL holds names of 128 characters
    hand_in_all(course, release, ["ada", long])
    sync([report("ada"), report(long)], course=course)
    with pytest.raises(GradebookError, match="value too long"):
        copy_gradebook(sqlite, url)
    assert held(url, course) == {}
    with pytest.raises(GradebookError, match="There is no gradebook"):
        copy_gradebook("sqlite:///none.db", url)


def test_nbgrader_itself_works_with_it(
    prepared: str,
    server: Server,
    course: Path,
    release: NotebookNode,
    grader: dict[str, Report],
) -> None:
    """course.toml names the gradebook once, for nbgrader's commands and pages as well as for ours."""
    url = server.database(prepared)
    (course / "course.toml").write_text(f'gradebook = "{url}"\n')
    hand_in_all(course, release, ["ada"])
    grader["ada"] = report("ada")
    assert nbgrader(course, "autograde", NAME) == 0
    with Gradebook(url) as gradebook:
        CsvExportPlugin(to=str(course / "marks.csv")).export(gradebook)
    assert "ada" in (course / "marks.csv").read_text()
    assert held("", course) == {("ada", NAME, exercise): mark for exercise, mark in HALF.items()}
    config = course_config(course)
    pages = NbGraderAPI(CourseDirectory(config=config), config=config)
    assert [(row["student"], row["score"]) for row in pages.get_submissions(NAME)] == [("ada", 3.0)]
    server.stop()
    try:
        assert nbgrader(course, "autograde", NAME, "--force") == 1
    finally:
        server.start()
