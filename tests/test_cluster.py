"""Grading on a Dask cluster: the marks are those that are given here, whichever workers die, join or differ."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import msgspec
import psutil
import pytest
from conftest import NIGHTLY
from distributed import Client

from autograder import assignment as assignments
from autograder import cluster, grading
from autograder import submission as submissions
from autograder.cluster import ClusterError
from autograder.grading import Task
from autograder.report import Report
from autograder.results import Results
from autograder.sandbox.jail import Limits

if TYPE_CHECKING:
    from conftest import Command, Graded

ROOT = Path(__file__).resolve().parents[1]
CLASS = ROOT / "examples" / "class"
NAME = "02-self-attention"
nightly = pytest.mark.skipif(not NIGHTLY, reason="clusters that break: only in make nightly")


class Machines:
    """A scheduler and workers, each a process of its own as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder: Path, host: str, environment: dict[str, str], protocol: str) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.environment = os.environ | environment
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--protocol", protocol, "--host", host, "--port", 0, "--scheduler-file", self.file
        )
        self.address = wait(lambda: self.file.exists() and json.loads(self.file.read_text())["address"])

    def worker(self, *options: object, environment: dict[str, str] | None = None, before: Sequence[str] = ()) -> int:
        """Start one more, and return its pid once it is there."""
        known = set(self.there())
        options = (self.address, "--local-directory", self.folder, *options)
        self.workers.append(self._start("worker", *options, environment=environment, before=before))
        wait(lambda: set(self.there()) - known)
        return self.workers[-1].pid

    def there(self) -> list[str]:
        return self.ask(lambda dask_scheduler: list(dask_scheduler.workers))

    def ask(self, function: Callable[..., Any]) -> Any:
        with Client(self.address, set_as_default=False) as client:
            return client.run_on_scheduler(function)

    def pids(self) -> dict[str, int]:
        """The address of each worker with its process."""
        with Client(self.address, set_as_default=False) as client:
            return client.run(os.getpid)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a nanny with its worker
            process.wait()

    def _start(
        self,
        what: str,
        *options: object,
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        command = [*before, sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *map(str, options)]
        with (self.folder / f"{what}.log").open("ab") as log:
            env = self.environment | (environment or {})
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)


def wait(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} seconds: {condition}")


@contextlib.contextmanager
def machines(
    folder: Path, host: str = "127.0.0.1", environment: dict[str, str] | None = None, protocol: str = "tcp"
) -> Iterator[Machines]:
    started = Machines(folder, host, environment or {}, protocol)
    try:
        yield started
    finally:
        started.close()


def tasks(copies: int = 1) -> list[Task]:
    """The sample class, as often as it is wanted, each copy with names of its own."""
    assignment = assignments.load(NAME)
    found, _ = submissions.find([CLASS])
    read = [submissions.read(item, assignment) for item in found]
    return [
        Task(msgspec.structs.replace(file, student=f"{file.student}.{copy}"), tuple(assignment.points))
        for copy in range(copies)
        for file in read
        if file.student != "student-09"  # loops for 15 seconds
    ]


def plain(report: Report) -> Any:
    """What must be the same wherever it was graded: the cheat prints what it sees of its own process."""
    builtins = msgspec.to_builtins(report)
    del builtins["seconds"]  # a clock is never the same
    for cell in builtins["cells"] if report.student.startswith("student-14") else ():
        del cell["output"]
    return builtins


# -- two worker processes, one of which is killed -------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with machines(tmp_path_factory.mktemp("dask")) as started:
        started.worker("--no-nanny", "--nthreads", 1)
        started.worker("--no-nanny", "--nthreads", 2)
        yield started


@pytest.fixture(scope="module")
def killed(two: Machines, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sample class on the two workers, the second of which is killed after four reports."""
    told: list[str] = []
    held: list[int] = []
    alive: list[list[int]] = []

    def tell(report: Report, fresh: bool) -> None:
        told.append(report.student)
        if len(told) == 4:
            alive.append(graders_below(two.workers[0].pid))
            os.kill(two.workers[1].pid, signal.SIGKILL)
        held.append(two.ask(lambda dask_scheduler: len(dask_scheduler.tasks)))

    found, _ = submissions.find([CLASS])
    with Results(tmp_path_factory.mktemp("results") / "results.sqlite") as results:
        reports, ungraded = grading.grade_class(found, results, on_report=tell, scheduler=two.address)
        reports = list(reports)
        stored = results.reports()
    return {"told": told, "held": held, "reports": reports, "ungraded": ungraded, "stored": stored, "alive": alive}


def test_two_workers_grade_as_this_machine_does_although_one_is_killed(killed: dict[str, Any], graded: Graded) -> None:
    assert killed["ungraded"] == []
    here = {student: plain(report) for student, report in graded.reports.items()}
    assert {report.student: plain(report) for report in killed["reports"]} == here
    assert {report.student: plain(report) for report in killed["stored"]} == here


def test_nothing_comes_twice(killed: dict[str, Any], graded: Graded) -> None:
    assert sorted(killed["told"]) == sorted(graded.reports)


def test_the_scheduler_holds_a_few_tasks_and_no_result_that_was_received(killed: dict[str, Any]) -> None:
    assert len(killed["held"]) > 2 * cluster.WINDOW >= max(killed["held"])


def test_a_run_leaves_no_process_behind(killed: dict[str, Any], two: Machines) -> None:
    assert len(killed["alive"][0]) == 1
    wait(lambda: not graders_below(two.workers[0].pid))


def graders_below(pid: int) -> list[int]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            if "autograder.cluster" in child.cmdline():
                found.append(child.pid)
    return found


# -- what is found before anything is graded ------------------------------------------------------------------------


def first(address: str) -> Any:
    return next(cluster.graded(tasks()[:1], address))


DIFFERENT = {
    "python": ("3.9.1", "runs Python "),
    "torch": ("1.0", "runs torch "),
    "code": ("another", "runs another version of the grader"),
    "tests": ({NAME: "another"}, f"has other hidden tests of {NAME} than this machine"),
}


@pytest.mark.parametrize("part", DIFFERENT)
def test_a_worker_of_another_version_is_named(two: Machines, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, said = DIFFERENT[part]
    ours = msgspec.structs.replace(cluster.describe([NAME]), **{part: value})
    monkeypatch.setattr(cluster, "describe", lambda names: ours)
    with pytest.raises(ClusterError, match=f"^The Dask worker tcp://127.0.0.1:[0-9]+ {said}.*checkout and environment"):
        first(two.address)


def test_a_dask_worker_that_was_started_before_the_grader_changed_is_named(
    two: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LOADED", "newer")
    with pytest.raises(ClusterError, match=r"another version of the grader.*restart it"):
        first(two.address)


def test_without_a_scheduler_one_sentence_says_so(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    ran = command("grade", CLASS, "--scheduler", "tcp://127.0.0.1:9", "--results", tmp_path / "results.sqlite")
    assert ran.code == 2
    (sentence,) = ran.sentences
    assert sentence.startswith("No Dask scheduler answers at tcp://127.0.0.1:9 (")


@pytest.mark.parametrize("address", ["127.0.0.1", "http://127.0.0.1:80", "tls://127.0.0.1:9", "nobody"])
def test_an_address_that_is_none_gets_the_same_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    with pytest.raises(ClusterError, match=f"^No Dask scheduler answers at {address} "):
        first(address)


def test_without_workers_and_with_one_that_has_no_grader_one_sentence_says_so(tmp_path: Path) -> None:
    with machines(tmp_path) as started:
        with pytest.raises(ClusterError, match=f"^The Dask scheduler at {started.address} has no workers"):
            first(started.address)
        started.worker("--no-nanny", environment=without_grader(tmp_path))
        with pytest.raises(ClusterError, match=r"^The Dask worker tcp://.* cannot load the grader \(.*nothing here"):
            first(started.address)


def test_a_scheduler_that_has_no_grader_is_named(tmp_path: Path) -> None:
    with (
        machines(tmp_path, environment=without_grader(tmp_path)) as started,
        pytest.raises(ClusterError, match=r"^The Dask scheduler at tcp://.* cannot load the grader \(.*nothing here"),
    ):
        first(started.address)


def without_grader(folder: Path) -> dict[str, str]:
    (folder / "other" / "autograder").mkdir(parents=True)
    (folder / "other" / "autograder" / "__init__.py").write_text("raise ModuleNotFoundError('nothing here')")
    return {"PYTHONPATH": str(folder / "other")}


@nightly
def test_a_worker_that_cannot_lock_submissions_in_gets_none(tmp_path: Path) -> None:
    with machines(tmp_path) as started:
        started.worker("--no-nanny", environment=with_bwrap(tmp_path, BROKEN))
        with pytest.raises(ClusterError, match=r"^No worker of .* can lock submissions in.*no user namespaces here"):
            first(started.address)
        started.worker("--no-nanny")
        assert len(reports(started.address)) == len(tasks())


BROKEN = "#!/bin/sh\necho no user namespaces here >&2\nexit 1\n"


def with_bwrap(folder: Path, script: str) -> dict[str, str]:
    """The environment in which this script is bwrap."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "bwrap").write_text(script)
    (folder / "bin" / "bwrap").chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def reports(address: str, tell: Callable[[int], None] = lambda number: None) -> list[Report]:
    """The class graded without a single sentence. `tell` is called after each with the number of those so far."""
    found: list[Report] = []
    for _, outcome in cluster.graded(tasks(), address):
        assert isinstance(outcome, Report), outcome
        found.append(outcome)
        tell(len(found))
    return found


# -- what goes wrong in the middle ----------------------------------------------------------------------------------


@nightly
def test_a_submission_that_kills_every_worker_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\nfrom autograder.cluster import Owner\n"
        "def exchange(self, line, as_it_is=Owner._exchange):\n"
        "    return os._exit(1) if b'student-13' in line else as_it_is(self, line)\n"
        "Owner._exchange = exchange\n"
    )
    with machines(tmp_path, environment={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}) as started:
        for _ in range(2):
            started.worker("--preload", tmp_path / "deadly.py")
        outcomes = {task.submission.student: outcome for task, outcome in cluster.graded(tasks(), started.address)}
    sentences = {student: outcome for student, outcome in outcomes.items() if isinstance(outcome, str)}
    assert list(sentences) == ["student-13.0"]
    assert sentences["student-13.0"].startswith("Each Dask worker that was to grade this file died")
    assert len(outcomes) == len(tasks())


@nightly
def test_a_grader_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with machines(tmp_path) as started:
        worker = started.worker("--no-nanny", "--nthreads", 3)

        def tell(number: int) -> None:
            if number in (3, 6):
                (grader,) = graders_below(worker)
                os.kill(grader, signal.SIGKILL)

        assert len(reports(started.address, tell)) == len(tasks())


@nightly
def test_a_worker_whose_jail_breaks_in_the_middle_gets_no_more(tmp_path: Path) -> None:
    with machines(tmp_path) as started:
        good = f'#!/bin/sh\nexec {shutil.which("bwrap")} "$@"\n'
        worker = started.worker("--no-nanny", environment=with_bwrap(tmp_path, good))
        started.worker("--no-nanny")

        def tell(number: int) -> None:
            if number == 3:
                with_bwrap(tmp_path, BROKEN)
                (grader,) = graders_below(worker)
                os.kill(grader, signal.SIGKILL)

        assert len(reports(started.address, tell)) == len(tasks())


@nightly
def test_when_the_last_worker_is_gone_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 3)
    with machines(tmp_path) as started:
        worker = started.worker("--no-nanny")

        def tell(number: int) -> None:
            if number == 3:
                os.kill(worker, signal.SIGKILL)

        with pytest.raises(ClusterError, match=r"has no worker left that can grade.*run the same command again"):
            reports(started.address, tell)


STOPPED = {
    "the scheduler is gone": (lambda run, started: started.scheduler.kill(), 2, "is gone, or does not answer"),
    "Control-C": (lambda run, started: run.send_signal(signal.SIGINT), 130, "Stopped. What was graded is kept"),
}


@nightly
@pytest.mark.parametrize("how", STOPPED)
def test_what_was_graded_is_kept_and_a_sentence_says_so(tmp_path: Path, how: str) -> None:
    stop, code, sentence = STOPPED[how]
    results = tmp_path / "results.sqlite"
    with machines(tmp_path) as started:
        worker = started.worker("--no-nanny")
        arguments = ["grade", CLASS, "-v", "--scheduler", started.address, "--results", results]
        command = [sys.executable, "-m", "autograder", *map(str, arguments)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            told = [run.stderr.readline() for _ in range(3)]
            stop(run, started)
            told += run.stderr.readlines()
        assert run.returncode == code
        assert sentence in told[-1]
        students = {line.split()[0] for line in told if line.startswith("student-")}
        with Results(results) as stored:
            assert {report.student for report in stored.reports()} >= students
        other = [line for line in told[:-1] if not line.startswith("student-") and " are graded" not in line]
        assert other == []
        wait(lambda: not psutil.pid_exists(worker) or not graders_below(worker))


@nightly
def test_limits_reach_the_graders(tmp_path: Path) -> None:
    (found,), _ = submissions.find([CLASS / "student-09"])
    assignment = assignments.load(NAME)
    loop = Task(submissions.read(found, assignment), ("causal_mask",))
    with machines(tmp_path) as started:
        started.worker("--no-nanny")
        ((_, report),) = cluster.graded([loop], started.address, Limits(cpu_seconds=1, wall_seconds=4))
    assert isinstance(report, Report)
    assert "it was still computing after 1 seconds" in report.exercises[0].tests[0].message


@nightly
def test_memory_stays_flat_over_thousands(tmp_path: Path) -> None:
    empty = submissions.Submission("", NAME, "", (), notices=("x" * 40_000,))
    work = [Task(msgspec.structs.replace(empty, student=str(number)), ()) for number in range(3000)]
    held = []
    with machines(tmp_path) as started:
        started.worker("--no-nanny")
        for number, (_, outcome) in enumerate(cluster.graded(work, started.address)):
            assert isinstance(outcome, Report)
            if number in (1500, 2999):
                pids = (os.getpid(), *started.pids().values(), started.scheduler.pid)
                held.append([psutil.Process(pid).memory_info().rss >> 20 for pid in pids])
    assert all(after < before + 15 for before, after in zip(*held, strict=True)), held  # MB; the texts: 60


@nightly
def test_tls_takes_its_certificates_from_dasks_configuration(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("making a certificate needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ichimon -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    tls = {"ca-file": str(certificate)}
    tls |= {f"{who}.key": str(key) for who in ("scheduler", "worker", "client")}
    tls |= {f"{who}.cert": str(certificate) for who in ("scheduler", "worker", "client")}
    prefix = "DASK_DISTRIBUTED__COMM__TLS__"
    environment = {prefix + name.replace(".", "__").replace("-", "_").upper(): value for name, value in tls.items()}
    here = {f"distributed.comm.tls.{name}": value for name, value in tls.items()}
    with dask.config.set(here), machines(tmp_path, environment=environment, protocol="tls") as started:
        started.worker("--no-nanny")
        assert started.address.startswith("tls://")
        assert isinstance(first(started.address)[1], Report)
        with dask.config.set({"distributed.comm.tls.client.cert": None}), pytest.raises(ClusterError):
            first(started.address)


# -- two hosts ------------------------------------------------------------------------------------------------------


class Host:
    """A network namespace on a bridge of this machine, with a copy of the course of its own where ours is."""

    def __init__(self, number: int, bridge: str, folder: Path) -> None:
        self.name, self.link = f"{bridge}-{number}", f"{bridge}v{number}"
        self.course = folder / self.name
        for part in ("autograder", "ichimon", "solutions"):
            shutil.copytree(ROOT / part, self.course / part)
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.link, "master", bridge, "up")
        ip("-n", self.name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")

    @property
    def inside(self) -> list[str]:
        """What stands before a command that runs on this host. `ip netns exec` brings a mount namespace too."""
        mounts = [f"mount --bind {self.course} {ROOT}"]
        if Path(sys.prefix).is_relative_to(ROOT):
            environment = self.course / Path(sys.prefix).relative_to(ROOT)
            mounts.insert(0, f"mkdir -p {environment} && mount --bind {sys.prefix} {environment}")
            mounts[-1] = mounts[-1].replace("--bind", "--rbind")
        script = " && ".join([*mounts, f"cd {ROOT}", 'exec "$0" "$@"'])
        return ["ip", "netns", "exec", self.name, "sh", "-c", script]

    def close(self) -> None:
        ip("link", "delete", self.link)  # by itself it would stay as long as any process that saw the namespace
        ip("netns", "delete", self.name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


NETWORK = "10.213.7"


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    bridge = f"ichi{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    with contextlib.ExitStack() as stack:
        try:
            ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine gives no bridge: {error.stderr.strip()}")
        stack.callback(ip, "link", "delete", bridge)
        ip("addr", "add", f"{NETWORK}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        hosts = []
        for number in (1, 2):
            hosts.append(Host(number, bridge, tmp_path))
            stack.callback(hosts[-1].close)
        yield hosts[0], hosts[1]


@nightly
def test_two_hosts_one_loses_its_worker_and_one_its_link(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Nothing is lost and nothing counts twice. The killed worker's nanny starts another, which joins and grades."""
    for copy in range(5):
        for file in CLASS.glob(f"*/{NAME}/{NAME}.ipynb"):
            if copy and file.parts[-3] == "student-09":
                continue  # one that loops is enough
            folder = tmp_path / "class" / f"{file.parts[-3]}.{copy}" / NAME
            folder.mkdir(parents=True)
            (folder / file.name).write_bytes(file.read_bytes() + b"\n" * copy)  # or it would be known from before
    told: list[str] = []

    def tell(report: Report, fresh: bool) -> None:
        told.append(report.student)
        if len(told) == 15:
            (pid,) = [pid for address, pid in started.pids().items() if f"//{NETWORK}.2:" in address]
            os.kill(pid, signal.SIGKILL)
        if len(told) == 40:
            ip("link", "set", two_hosts[1].link, "down")

    found, _ = submissions.find([tmp_path / "class"])
    with machines(tmp_path, f"{NETWORK}.1") as started, Results(tmp_path / "results.sqlite") as results:
        for host in two_hosts:
            started.worker(before=host.inside)
        reports, ungraded = grading.grade_class(found, results, on_report=tell, scheduler=started.address)
        reports = list(reports)
    assert ungraded == []
    assert sorted(told) == sorted(item.student for item in found)
    here = {task.submission.student: grading.attempt(task) for task in tasks()}
    for report in reports:
        one = here.get(f"{report.student.split('.')[0]}.0")
        if one is not None:  # the loop is graded too, but not once more here
            assert isinstance(one, Report)
            same = {"student": one.student, "sha": one.sha}
            assert plain(msgspec.structs.replace(report, **same)) == plain(one)
    with contextlib.closing(sqlite3.connect(tmp_path / "results.sqlite")) as stored:
        verdicts = stored.execute("SELECT sha, exercise FROM verdicts").fetchall()
    assert len(verdicts) == len(set(verdicts)) == len(found) * len(assignments.load(NAME).points)


@nightly
def test_a_host_with_other_hidden_tests_is_named(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    other = two_hosts[1].course / "autograder" / "tests" / assignments.load(NAME).tests.name
    other.write_text(other.read_text() + "\nNEWER = True\n")
    with machines(tmp_path, f"{NETWORK}.1") as started:
        for host in two_hosts:
            started.worker(before=host.inside)
        with pytest.raises(ClusterError, match=f"^The Dask worker tcp://{NETWORK}.3:[0-9]+ has other hidden tests"):
            first(started.address)
