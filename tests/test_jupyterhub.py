"""JupyterHub on this machine as examples/jupyterhub sets it up, with real accounts: a term in small, and its thieves."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from conftest import CHROMIUM, CLASS, NIGHTLY
from nbgrader.api import Gradebook
from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / "_build" / "jupyterhub"  # by `make hub`
NAME = "02-self-attention"
PASSWORD = "a long sentence for a test"
PARTS = ("autograder", "ichimon", "solutions", "notebooks", "nbgrader_config.py", "pyproject.toml", "examples/class")
PROXY = next(
    (
        found
        for found in (
            shutil.which("configurable-http-proxy", path=f"{INSTALLED}/node_modules/.bin:{os.environ['PATH']}"),
        )
        if found
    ),
    "",
)
HUB = importlib.util.find_spec("jupyterhub") or (INSTALLED / "python" / "jupyterhub").is_dir()
pytestmark = [
    pytest.mark.skipif(not NIGHTLY, reason="JupyterHub with real accounts takes two minutes: make nightly"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make accounts, and be JupyterHub for them"),
    pytest.mark.skipif(not (PROXY and HUB), reason="JupyterHub or its proxy is not installed: make hub"),
    pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning"),  # nbgrader's own
]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def reachable_interpreter(command: list[str]) -> list[str]:
    """The command, in a private mount namespace where other accounts reach our interpreter if its home is root's."""
    closed = next((p for p in reversed(Path(sys.base_prefix).parents) if not p.stat().st_mode & 0o001), None)
    if closed is None:
        return command
    script = """
    kept=$(mktemp -d) && mount --bind "$1" "$kept" && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" \
        && mount --bind "$kept" "$1" && umount "$kept" && rmdir "$kept" && shift 2 && exec "$@"
    """
    return ["unshare", "--mount", "sh", "-euc", script, "sh", sys.base_prefix, str(closed), *command]


@dataclass
class Person:
    """Somebody with an account, and what they do in their browser."""

    hub: str
    name: str
    session: requests.Session = field(default_factory=requests.Session)

    def log_in(self) -> None:
        page = self.session.get(f"{self.hub}/hub/login")
        form = {"username": self.name, "password": PASSWORD, "_xsrf": self.session.cookies["_xsrf"]}
        done = self.session.post(page.url, data=form, allow_redirects=False)
        assert done.status_code == 302, (done.status_code, done.text[-2000:])
        headers = {"X-XSRFToken": self.session.cookies["_xsrf"], "Referer": f"{self.hub}/hub/token"}
        made = self.session.post(f"{self.hub}/hub/api/users/{self.name}/tokens", json={}, headers=headers)
        assert made.status_code == 201, made.text
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"token {made.json()['token']}"

    def ask(self, path: str, method: str = "GET", **form: object) -> requests.Response:
        return self.session.request(method, f"{self.hub}{path}", json=form or None, timeout=200)

    def start(self) -> None:
        assert self.ask(f"/hub/api/users/{self.name}/server", "POST").status_code in (201, 202)
        for _ in range(120):
            if self.ask(f"/hub/api/users/{self.name}").json()["servers"].get("", {}).get("ready"):
                return
            time.sleep(0.5)
        raise AssertionError(f"the server of {self.name} did not start")

    def exchange(self, action: str) -> dict:
        """A button of nbgrader's list of assignments, and what the list shows then."""
        done = self.ask(f"/user/{self.name}/assignments/{action}", "POST", course_id="ichimon", assignment_id=NAME)
        assert done.status_code == 200, done.text
        assert done.json()["success"], done.json()
        return done.json()["value"]

    def formgrader(self, path: str, method: str = "POST") -> dict:
        """A button of the formgrader."""
        done = self.ask(f"/services/ichimon/formgrader/api/{path}", method)
        assert done.status_code == 200, done.text
        return done.json()

    def put(self, source: Path) -> None:
        """Save a notebook in the student's own server."""
        content = json.loads(source.read_text(encoding="utf-8"))
        where = f"/user/{self.name}/api/contents/{NAME}/{NAME}.ipynb"
        saved = self.ask(where, "PUT", type="notebook", format="json", content=content)
        assert saved.status_code == 200, saved.text

    def type(self, *command: str) -> subprocess.CompletedProcess[str]:
        """What the person says in a terminal of the machine."""
        return subprocess.run(
            command, user=self.name, group=pwd.getpwnam(self.name).pw_gid, extra_groups=[], cwd="/",
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A machine with JupyterHub: its folders and its people."""

    folder: Path
    hub: str
    grader: str
    ada: Person
    bob: Person
    teacher: Person

    @property
    def course(self) -> Path:
        return self.folder / "course"

    @property
    def exchange(self) -> Path:
        return self.folder / "exchange"


def set_up(folder: Path, names: dict[str, str], ports: list[int]) -> None:
    """What docs/staff.md says, in folders of our own."""
    course, exchange, hub = (folder / part for part in ("course", "exchange", "hub"))
    for part in PARTS:
        (course / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, course / part)
    shutil.copytree(ROOT / "_build/nbgrader/source" / NAME, course / "_build/nbgrader/source" / NAME)
    (course / "submitted").mkdir()
    (course / "course.toml").write_text(f'exchange = "{exchange}"\n')
    (course / ".venv").symlink_to(sys.prefix)
    subprocess.run(["chown", "-Rh", f"{names['grader']}:", course], check=True)
    course.chmod(0o700)
    exchange.mkdir()
    exchange.chmod(0o1777)
    shutil.copytree(ROOT / "examples/jupyterhub", hub)
    changes = {
        hub / "jupyterhub_config.py": {
            '"/srv/ichimon"': repr(str(course)),
            '"ichimon-grader"': repr(names["grader"]),
            '"ichimon-staff"': repr(names["staff"]),
            '"ichimon-students"': repr(names["students"]),
            "127.0.0.1:8000": f"127.0.0.1:{ports[0]}",
            "127.0.0.1:9999": f"127.0.0.1:{ports[1]}",
        },
        hub / "student/nbgrader_config.py": {"/srv/nbgrader/exchange": str(exchange)},
    }
    for path, replaced in changes.items():
        text = path.read_text(encoding="utf-8")
        for old, new in replaced.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    with (hub / "jupyterhub_config.py").open("a") as config:
        config.write(f"\nc.ConfigurableHTTPProxy.command = [{PROXY!r}]\nc.JupyterHub.hub_port = {ports[2]}\n")
        config.write(f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{ports[3]}'\n")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    tag = os.urandom(3).hex()
    groups = {name: f"ich-{name}-{tag}" for name in ("staff", "students")}
    people = {name: f"ich-{name}-{tag}" for name in ("grader", "ada", "bob", "teacher")}
    belongs = {"ada": "students", "bob": "students", "teacher": "staff"}
    folder = Path(tempfile.mkdtemp(prefix="ichimon-hub-"))
    folder.chmod(0o755)
    running = None
    try:
        for group in groups.values():
            subprocess.run(["groupadd", group], check=True)
        for who, name in people.items():
            also = ["-G", groups[belongs[who]]] if who in belongs else []
            subprocess.run(["useradd", "-m", "-K", "HOME_MODE=0755", "-s", "/bin/bash", *also, name], check=True)
            if also:
                subprocess.run(["chpasswd"], input=f"{name}:{PASSWORD}", text=True, check=True)
        ports = [free_port() for _ in range(4)]
        set_up(folder, groups | people, ports)
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        if not importlib.util.find_spec("jupyterhub"):
            environment["PYTHONPATH"] = str(INSTALLED / "python")
        with (folder / "hub.log").open("w") as log:
            running = subprocess.Popen(
                reachable_interpreter([sys.executable, "-m", "jupyterhub", "-f", str(folder / "hub/jupyterhub_config.py")]),
                cwd=folder / "hub", env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        hub = f"http://127.0.0.1:{ports[0]}"
        wait_for(f"{hub}/hub/health", running, folder / "hub.log")
        persons = {name: Person(hub, people[name]) for name in belongs}
        for person in persons.values():
            person.log_in()
        yield Machine(folder, hub, people["grader"], **persons)
        print((folder / "hub.log").read_text())  # which pytest shows of a test that failed
    finally:
        if running:
            running.terminate()
            running.wait(timeout=60)
        for name in people.values():
            subprocess.run(["pkill", "-KILL", "-u", name], check=False)  # accounts of ours alone
            subprocess.run(["userdel", "-rf", name], check=False, stderr=subprocess.DEVNULL)
        for group in groups.values():
            subprocess.run(["groupdel", group], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_term_in_small(machine: Machine) -> None:
    """Release, fetch, submit, collect, grade in the sandbox, return: each by the page that its person has."""
    ada, teacher = machine.ada, machine.teacher
    ada.start()
    assert teacher.formgrader(f"assignment/{NAME}/release")["success"]
    listed = ada.exchange("fetch")
    assert [(entry["assignment_id"], entry["status"]) for entry in listed] == [(NAME, "fetched")]
    ada.put(CLASS / "student-03" / NAME / f"{NAME}.ipynb")
    ada.exchange("submit")
    assert teacher.formgrader(f"assignment/{NAME}/collect")["success"]
    graded = teacher.formgrader(f"submission/{NAME}/{ada.name}/autograde")
    assert graded["success"], graded
    [row] = teacher.formgrader(f"submissions/{NAME}", "GET")
    assert (row["student"], row["score"]) == (ada.name, 18.5)
    assert teacher.formgrader(f"assignment/{NAME}/generate_feedback")["success"]
    assert teacher.formgrader(f"assignment/{NAME}/release_feedback")["success"]
    ada.exchange("fetch_feedback")
    [page] = Path(pwd.getpwnam(ada.name).pw_dir).rglob(f"{NAME}.html")
    assert "Row i leaves out column i" in page.read_text(encoding="utf-8")
