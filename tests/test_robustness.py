"""Whatever is killed, full, read-only, damaged or shared: a run completes, each mark is there once, nothing is left.

The grader runs as its users run it, as a process of its own. What is killed is found through /proc; whatever loses its
parent becomes a child of this process, so that nothing can hide.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from conftest import NIGHTLY

from autograder.results import Results

if TYPE_CHECKING:
    from conftest import Command

ROOT = Path(__file__).resolve().parents[1]
NAME = "02-self-attention"
SPECIAL = ("student-09", "student-14")  # a loop, which takes long; a cheat, who sees another process each time
STUDENTS = sorted(path.name for path in (ROOT / "examples/class").glob("student-*") if path.name not in SPECIAL)
PR_SET_CHILD_SUBREAPER = 36
AUTOGRADER = '"$PYTHON" -m autograder'
PATIENCE = 120.0  # seconds, for a run on a busy machine

nightly = pytest.mark.skipif(not NIGHTLY, reason="takes a minute: only in make nightly")


# -- a course, and the grader as a process ----------------------------------------------------------------------------


@dataclass
class Course:
    """A folder that is an nbgrader course, with a class that handed in."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.sqlite"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def leftovers(self) -> list[Path]:
        """What lies in the temporary folder, but for the file with which Python tries out whether it may write."""
        tried = [file for file in self.temporary.iterdir() if file.is_file() and file.read_bytes() in (b"", b"blat")]
        return sorted(set(self.temporary.iterdir()) - set(tried))

    def start(self, *more: object, workers: int = 2) -> subprocess.Popen[str]:
        """`autograder grade` on the class."""
        return self.shell(f'exec {AUTOGRADER} "$@"', "grade", *self.grading, "--workers", workers, *more)

    @property
    def grading(self) -> list[str]:
        return ["submitted", "--results", str(self.results)]

    def shell(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        """A script in the course's folder, in which $PYTHON is ours."""
        environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "PYTHON": sys.executable}
        return subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *map(str, arguments)],
            cwd=self.root,
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def gradebook(self) -> list[str]:
        return ["--gradebook", f"sqlite:///{self.root}/gradebook.db"]

    def reports(self) -> dict[str, Any]:
        with Results(self.results) as stored:
            timeless = [msgspec.structs.replace(report, seconds={}) for report in stored.reports()]
            return {report.student: msgspec.to_builtins(report) for report in timeless}

    def marks(self) -> list[tuple[Any, ...]]:
        """Every mark of the gradebook: whose, which cell's, how much, and what is said about it."""
        with contextlib.closing(sqlite3.connect(self.root / "gradebook.db")) as db:
            return db.execute(MARKS).fetchall()

    def times_graded(self) -> Counter[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self.results)) as db:
            return Counter(db.execute("SELECT sha, exercise FROM verdicts").fetchall())


MARKS = """
SELECT submitted_assignment.student_id, base_cell.name, grade.auto_score, grade.manual_score, grade.needs_manual_grade,
       comment.auto_comment
FROM grade JOIN base_cell ON base_cell.id = grade.cell_id
JOIN submitted_notebook ON submitted_notebook.id = grade.notebook_id
JOIN submitted_assignment ON submitted_assignment.id = submitted_notebook.assignment_id
LEFT JOIN base_cell AS answer ON answer.name = substr(base_cell.name, 7) AND answer.notebook_id = base_cell.notebook_id
LEFT JOIN comment ON comment.notebook_id = grade.notebook_id AND comment.cell_id = answer.id
ORDER BY 1, 2
"""


@dataclass
class Undisturbed:
    """What a run that nobody disturbs leaves behind."""

    course: Course
    reports: dict[str, Any]
    marks: list[tuple[Any, ...]]
    seconds: float


@pytest.fixture(scope="module")
def empty_course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """With a gradebook: nbgrader takes two seconds to make one."""
    from nbgrader.coursedir import CourseDirectory

    from autograder.gradebook import course_config, register

    course = Course(tmp_path_factory.mktemp("course"))
    course.temporary.mkdir()
    shutil.copy(ROOT / "nbgrader_config.py", course.root)
    shutil.copytree(ROOT / "notebooks" / NAME, course.root / "notebooks" / NAME)
    for student in STUDENTS:
        shutil.copytree(ROOT / "examples/class" / student, course.root / "submitted" / student)
    register(NAME, CourseDirectory(config=course_config(course.root)))
    return course


@pytest.fixture(scope="module")
def undisturbed(empty_course: Course, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    course = Course(shutil.copytree(empty_course.root, tmp_path_factory.mktemp("undisturbed") / "course"))
    started = time.monotonic()
    run = course.start(*course.gradebook)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said
    return Undisturbed(course, course.reports(), course.marks(), time.monotonic() - started)


@pytest.fixture
def course(empty_course: Course, tmp_path: Path) -> Course:
    return Course(shutil.copytree(empty_course.root, tmp_path / "course"))


@pytest.fixture
def graded_course(undisturbed: Undisturbed, tmp_path: Path) -> Course:
    return Course(shutil.copytree(undisturbed.course.root, tmp_path / "course"))


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two reports, or two classes of them, are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one!r:.200} instead of {other!r:.200}"]


def assert_complete(course: Course, run: subprocess.Popen[str], undisturbed: Undisturbed) -> None:
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, said
    assert differences(course.reports(), undisturbed.reports) == []
    assert set(course.times_graded().values()) == {1}, "something was graded twice"


# -- processes ------------------------------------------------------------------------------------------------------


def theirs(processes: set[int]) -> set[int]:
    """What these started since, as the browser of other tests does when it likes."""
    return {pid for process in processes for pid in below(process)}


@pytest.fixture(autouse=True)
def orphans_come_to_us(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing that a test started is there when it ends, not even what lost its parent."""
    if "command" in request.fixturenames:  # the grader in this process, which keeps its jail
        yield
        return
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(below(os.getpid()))
    yield
    deadline = time.monotonic() + 10
    while (left := set(below(os.getpid())) - before - theirs(before)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    told = {pid: command_line(pid)[:6] for pid in left}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not told, "processes are left over"


def parents() -> dict[int, int]:
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
    return found


def below(pid: int) -> list[int]:
    of = parents()
    found = [pid]
    for parent in found:
        found += [child for child, its in of.items() if its == parent]
    return found[1:]


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "cmdline").read_text().split("\0")
    return []


def find(role: str, grader: int) -> list[int]:
    """The processes of a run that play a role: "grader" processes, "worker"s of submissions, or "zygote"s, among which
    we count all that stands between the two."""
    of = parents()
    running = {pid: command_line(pid) for pid in below(grader)}
    if role == "grader":
        return [pid for pid, line in running.items() if any("spawn_main" in word for word in line)]
    jail = {pid for pid, line in running.items() if "/sandbox/zygote.py" in line}
    forks = {pid for pid in jail if running[pid][4] == "/sandbox/zygote.py"}
    workers = {pid for pid in forks if of.get(pid) in forks and of.get(of[pid]) in forks}
    return list(workers if role == "worker" else jail - workers)


def kill_one(role: str, run: subprocess.Popen[str], chance: random.Random) -> bool:
    """Kill one process of that role at a random moment of its life; False if the run ended first."""
    delay = chance.uniform(0, 0.1 if role == "worker" else 1)
    while run.poll() is None:
        candidates = find(role, run.pid)
        if candidates:
            victim = chance.choice(candidates)
            time.sleep(delay)
            if victim in find(role, run.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    return True
        time.sleep(0.005)
    return False


# -- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10 if NIGHTLY else 1))
def test_a_grader_that_is_killed_again_and_again_loses_nothing_and_leaves_nothing(
    seed: int, course: Course, undisturbed: Undisturbed
) -> None:
    chance = random.Random(seed)
    for role in ("anybody", "grader", "zygote", "worker"):
        run = course.start(*(course.gradebook if role == "anybody" else ()))
        while role != "anybody" and run.poll() is None and not find(role, run.pid):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, undisturbed.seconds if role == "anybody" else 0.5))
        run.kill()
        run.communicate(timeout=PATIENCE)
    assert_complete(course, course.start(*course.gradebook), undisturbed)
    assert course.marks() == undisturbed.marks
    assert course.leftovers() == []


@pytest.mark.parametrize("seed", range(20 if NIGHTLY else 1))
def test_a_killed_zygote_worker_and_grader_process_cost_nobody_a_mark_in_the_same_run(
    seed: int, course: Course, undisturbed: Undisturbed
) -> None:
    chance = random.Random(seed)
    roles = ["zygote", "worker", "grader"]
    chance.shuffle(roles)
    while roles:  # should a run end before all are killed, the next one has the rest
        course.results.unlink(missing_ok=True)
        run = course.start()
        while roles and kill_one(roles[-1], run, chance):
            roles.pop()
        assert_complete(course, run, undisturbed)
    assert course.leftovers() == []


ENDINGS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=nightly), pytest.param(signal.SIGHUP, marks=nightly)]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
def test_a_grader_that_is_told_to_end_leaves_nothing(ending: signal.Signals, course: Course) -> None:
    run = course.start()
    while not find("worker", run.pid):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(ending)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode != 0
    assert "Traceback" not in said
    assert course.leftovers() == []


# -- files ----------------------------------------------------------------------------------------------------------

# How to make the folder "disk" small or read-only, and how to end that. An ordinary user cannot mount anything.
ROOT_USER = os.geteuid() == 0
PRIVATE = "unshare --mount sh -e -c" if ROOT_USER else "sh -e -c"
FILL = "mount -t tmpfs -o size={0}k none disk" if ROOT_USER else "ulimit -S -f {0}"
EMPTY = "mount -o remount,size=64m none disk" if ROOT_USER else "ulimit -S -f unlimited"
LOCK = "mount --bind disk disk && mount -o remount,bind,ro disk" if ROOT_USER else "chmod 0500 disk disk/*"
UNLOCK = "mount -o remount,bind,rw disk" if ROOT_USER else "chmod 0700 disk disk/*"
SAY = 'echo "code $?"'


def said_by(course: Course, *steps: str) -> str:
    """What a script prints that runs where `disk` is its own."""
    (course.root / "disk").mkdir(exist_ok=True)
    run = course.shell(f'{PRIVATE} "$1"', "; ".join(steps))
    said, _ = run.communicate(timeout=3 * PATIENCE)
    assert "Traceback" not in said, said
    assert course.leftovers() == []
    return said


FEW = STUDENTS[:4]


def grade_on_disk() -> str:
    files = " ".join(f"submitted/{student}" for student in FEW)
    return f"{AUTOGRADER} grade {files} --results disk/results.sqlite --workers 1 || {SAY}"


@pytest.mark.parametrize("size", [8, 40, 100, 150, 200, 250] if NIGHTLY else [120])
def test_a_full_disk_is_a_sentence_and_the_next_run_completes(
    size: int, course: Course, undisturbed: Undisturbed
) -> None:
    steps = (FILL.format(size), grade_on_disk(), EMPTY, grade_on_disk(), "cp disk/* .")
    said = said_by(course, *steps)
    assert said.count("code ") == 1, said
    assert "code 2" in said
    assert "disk/results.sqlite cannot be" in said
    assert differences(course.reports(), {student: undisturbed.reports[student] for student in FEW}) == []


@nightly
def test_a_full_disk_while_pages_or_marks_are_written_is_a_sentence_and_the_next_run_completes(
    graded_course: Course, undisturbed: Undisturbed
) -> None:
    book = f"{AUTOGRADER} grade {' '.join(graded_course.grading)} --gradebook sqlite:///disk/gradebook.db || {SAY}"
    pages = f"{AUTOGRADER} feedback --results {graded_course.results} --output"
    on_disk = f"{pages} disk/pages || {SAY}"
    steps = (f"{pages} pages", FILL.format(60), book, on_disk, EMPTY, on_disk, book, "cp disk/gradebook.db .")
    said = said_by(graded_course, *steps, "diff -r disk/pages pages")
    assert said.count("code 2") == 2, said
    assert said.count("code ") == 2, said
    reasons = ("No space left on device", "disk is full", "File too large", "disk I/O error")
    assert sum(said.count(reason) for reason in reasons) >= 2, said
    assert graded_course.marks() == undisturbed.marks


def test_a_read_only_results_file_is_a_sentence_and_the_next_run_completes(
    graded_course: Course, undisturbed: Undisturbed
) -> None:
    (graded_course.root / "disk").mkdir()
    graded_course.results.rename(graded_course.root / "disk" / "results.sqlite")
    said = said_by(graded_course, LOCK, grade_on_disk(), UNLOCK, grade_on_disk(), "cp disk/* .")
    assert said.count("code ") == 1, said
    assert "code 2" in said
    assert "disk/results.sqlite cannot be" in said
    assert differences(graded_course.reports(), undisturbed.reports) == []


@nightly
@pytest.mark.skipif(not ROOT_USER, reason="only root can mount something over /tmp")
@pytest.mark.skipif(str(ROOT).startswith("/tmp/"), reason="the course itself lies in /tmp")
def test_a_full_tmp_disturbs_nothing(course: Course, undisturbed: Undisturbed) -> None:
    fill = "mount -t tmpfs -o size=4k,nr_inodes=2 none /tmp && : >/tmp/x; unset TMPDIR"
    move = f"mkdir -p /run/ichimon-course && mount --bind {course.root} /run/ichimon-course && cd /run/ichimon-course"
    grade = f"{AUTOGRADER} grade submitted --results results.sqlite --workers 2 || {SAY}"
    said = said_by(course, move, fill, grade)
    Path("/run/ichimon-course").rmdir()
    assert "code" not in said, said
    assert differences(course.reports(), undisturbed.reports) == []


@nightly
def test_few_file_handles_are_enough_or_a_sentence(course: Course, undisturbed: Undisturbed) -> None:
    grade = f"{AUTOGRADER} grade {' '.join(course.grading)} --workers 2 || {SAY}"
    said = said_by(course, "ulimit -S -n 14", grade, "ulimit -S -n 30", grade)
    assert differences(course.reports(), undisturbed.reports) == [], said


CLOSED = ["2>&-", ">/dev/full", "| true", "--json | true", "-v 2>&1 >&- | true"]


@pytest.mark.parametrize("closed", [">&-", *(pytest.param(closed, marks=nightly) for closed in CLOSED)])
def test_if_nobody_can_hear_what_is_said_nothing_is_lost(closed: str, course: Course, undisturbed: Undisturbed) -> None:
    shutil.copy(undisturbed.course.results, course.results)
    command = f"{AUTOGRADER} {shlex.join(['grade', *course.grading, *course.gradebook])}"
    said = said_by(course, f"{command} {closed} || true", f"{command} || {SAY}")
    assert "code" not in said, said
    assert differences(course.reports(), undisturbed.reports) == []
    assert course.marks() == undisturbed.marks


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": lambda data, chance: data[: chance.randrange(len(data))],
    "a page of zeros": lambda data, chance: overwritten(data, chance, bytes(4096)),
    "a page of noise": lambda data, chance: overwritten(data, chance, chance.randbytes(4096)),
    "two pages swapped": lambda data, chance: overwritten(data, chance, data[4096:8192]),
    "a wrong header": lambda data, chance: chance.randbytes(chance.randrange(1, 100)).ljust(100, b"\0") + data[100:],
    "something appended": lambda data, chance: data + chance.randbytes(5000),
}


def overwritten(data: bytes, chance: random.Random, page: bytes) -> bytes:
    at = 4096 * chance.randrange(len(data) // 4096)
    return data[:at] + page + data[at + len(page) :]


@pytest.mark.parametrize("seed", range(20 if NIGHTLY else 2))
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_results_file_is_told_in_a_sentence_or_mended(
    damage: str, seed: int, graded_course: Course, undisturbed: Undisturbed, command: Command
) -> None:
    path = graded_course.results
    path.write_bytes(DAMAGE[damage](path.read_bytes(), random.Random(seed)))
    ran = command("grade", graded_course.root / "submitted", "--results", path, "--workers", 1)
    assert "Traceback" not in ran.err
    if ran.code == 0:
        assert differences(graded_course.reports(), undisturbed.reports) == []
    else:
        assert ran.code == 2
        assert len(ran.sentences) == 1, ran.err
        assert str(path) in ran.err


@pytest.mark.parametrize("seed", range(20 if NIGHTLY else 1))
def test_a_journal_that_was_cut_off_costs_only_what_it_held(
    seed: int, graded_course: Course, undisturbed: Undisturbed, command: Command
) -> None:
    """What a power cut leaves: a database, and beside it the last writes as far as they reached the disk."""
    chance = random.Random(seed)
    submitted = graded_course.root / "submitted"
    path = graded_course.root / "cut.sqlite"
    with Results(path), contextlib.closing(sqlite3.connect(path)) as reader:
        reader.execute("SELECT * FROM verdicts").fetchall()  # as long as somebody reads, the journal stays
        graded_course.results.rename(graded_course.root / "old.sqlite")
        ran = command("grade", *sorted(submitted.iterdir())[:3], "--results", path, "--workers", 1)
        assert ran.code == 0
        shutil.copy(path, graded_course.results)
        journal = Path(f"{path}-wal").read_bytes()
    assert len(journal) > 4096
    Path(f"{graded_course.results}-wal").write_bytes(journal[: chance.randrange(len(journal))])
    ran = command("grade", submitted, "--results", graded_course.results, "--workers", 1)
    assert ran.code == 0, ran.err
    assert differences(graded_course.reports(), undisturbed.reports) == []


# -- others at the same time, and time itself -----------------------------------------------------------------------


@pytest.mark.parametrize("graders", [2, pytest.param(4, marks=nightly)])
def test_graders_on_one_results_file_and_gradebook_grade_nothing_twice(
    graders: int, course: Course, undisturbed: Undisturbed
) -> None:
    runs = [course.start(*course.gradebook, workers=1) for _ in range(graders)]
    for run in runs:
        assert_complete(course, run, undisturbed)
    assert course.marks() == undisturbed.marks


def test_a_new_results_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    for attempt in range(100 if NIGHTLY else 10):
        path, moment = tmp_path / f"{attempt}.sqlite", time.monotonic() + 0.05
        children = [open_in_a_child(path, moment) for _ in range(6)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6


def open_in_a_child(path: Path, moment: float) -> int:
    child = os.fork()
    if child:
        return child
    try:
        while time.monotonic() < moment:
            pass
        Results(path).reports()
        os._exit(0)
    finally:
        os._exit(1)


def test_the_latest_file_counts_even_if_the_clock_went_back(
    course: Course, undisturbed: Undisturbed, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour between two submissions, but the wrong way round: the second one is still the second."""
    path = course.root / "submitted" / STUDENTS[0] / NAME / f"{NAME}.ipynb"
    first, second = path.read_bytes(), path.read_bytes().replace(b"tril", b"triu")
    now = time.time()
    totals = []
    for data, clock in ((first, now), (second, now - 3600), (first, now - 7200)):
        path.write_bytes(data)
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        assert command("grade", path, "--results", course.results, "--workers", 1).code == 0
        totals.append(points(course.reports()[STUDENTS[0]]))
    assert totals[0] == totals[2] > totals[1]


def points(report: dict[str, Any]) -> int:
    return sum(test["outcome"] == "passed" for exercise in report["exercises"] for test in exercise["tests"])
