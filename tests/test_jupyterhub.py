"""JupyterHub on this machine as examples/jupyterhub sets it up, with real accounts: a small term, and its thieves."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
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
import websocket
from conftest import CLASS, NIGHTLY
from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ROOT / "_build" / "jupyterhub"  # by `make servers`
NAME = "02-self-attention"
PASSWORD = "a long sentence for a test"
PARTS = ("autograder", "ichimon", "solutions", "notebooks", "nbgrader_config.py", "pyproject.toml", "examples/class")
PROXY = shutil.which("configurable-http-proxy", path=f"{INSTALLED}/node_modules/.bin:{os.environ['PATH']}")
HUB = importlib.util.find_spec("jupyterhub") or (INSTALLED / "python" / "jupyterhub").is_dir()
pytestmark = [
    pytest.mark.skipif(not NIGHTLY, reason="JupyterHub with real accounts takes three minutes: make nightly"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make accounts, and be JupyterHub for them"),
    pytest.mark.skipif(not (PROXY and HUB), reason="JupyterHub or its proxy is not installed: make servers"),
    pytest.mark.filterwarnings("ignore:Object of type:sqlalchemy.exc.SAWarning"),  # nbgrader's own
]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def open_to_all(place: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (place, *place.parents))


def reachable_interpreter(command: list[str]) -> list[str]:
    """The command, in a private mount namespace where other accounts reach our interpreter if its home is root's."""
    closed = next((place for place in reversed(Path(sys.base_prefix).parents) if not open_to_all(place)), None)
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

    def try_to_log_in(self, password: str = PASSWORD) -> int:
        page = self.session.get(f"{self.hub}/hub/login")
        form = {"username": self.name, "password": password, "_xsrf": self.session.cookies["_xsrf"]}
        return self.session.post(page.url, data=form, allow_redirects=False).status_code

    def log_in(self) -> None:
        assert self.try_to_log_in() == 302
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
            capture_output=True, text=True, errors="replace", timeout=60,
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

    def collected(self) -> dict[str, str]:
        """Every student's notebook in the course's folder, which root may read."""
        found = (self.course / "submitted").glob(f"*/{NAME}/{NAME}.ipynb")
        return {path.parts[-3]: path.read_text(encoding="utf-8") for path in found}

    def hand_in(self, *students: str) -> None:
        """Work of the sample class, as if it had been collected."""
        for student in students:
            folder = self.course / "submitted" / student
            shutil.copytree(CLASS / student, folder)
            subprocess.run(["chown", "-R", f"{self.grader}:", folder], check=True)

    def release(self) -> None:
        if not (self.exchange / "ichimon" / "outbound" / NAME).is_dir():
            assert self.teacher.formgrader(f"assignment/{NAME}/release")["success"]


def set_up(folder: Path, names: dict[str, str], ports: list[int]) -> None:
    """What docs/staff.md says, in folders of our own."""
    course, exchange, hub = (folder / part for part in ("course", "exchange", "hub"))
    for part in PARTS:
        (course / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, course / part)
    subprocess.run([sys.executable, "-m", "autograder.authoring.build", NAME], cwd=ROOT, check=True)
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
            '"/var/lib/jupyterhub"': repr(str(folder / "state")),
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
    if closed := [place for place in (Path(sys.prefix), ROOT) if not open_to_all(place)]:
        pytest.skip(f"other accounts cannot reach {closed[0]}, where the environment is")
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
        if (INSTALLED / "python").is_dir():
            environment["PYTHONPATH"] = str(INSTALLED / "python")
            environment["PATH"] = f"{INSTALLED}/python/bin:{environment['PATH']}"
        with (folder / "hub.log").open("w") as log:
            running = subprocess.Popen(
                reachable_interpreter([sys.executable, "-m", "jupyterhub", "-f", f"{folder}/hub/jupyterhub_config.py"]),
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
    machine.release()
    assert files_of(machine.exchange / "ichimon" / "outbound") == [f"{NAME}/{NAME}.ipynb"]
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


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_class_is_graded_in_a_terminal_of_the_staffs_server(machine: Machine) -> None:
    """As the account that owns the course, with no right of root's: the jail is built there too."""
    machine.hand_in("student-01", "student-03")
    terminal = machine.teacher.ask("/services/ichimon/api/terminals", "POST").json()["name"]
    address = f"{machine.hub.replace('http', 'ws')}/services/ichimon/terminals/websocket/{terminal}"
    token = f"Authorization: {machine.teacher.session.headers['Authorization']}"
    shell = websocket.create_connection(address, header=[token], timeout=200)
    grade = ".venv/bin/python -m autograder grade submitted/student-0* --gradebook auto"
    command = f"echo I am $(id -un); {grade}; echo ended with $?"
    shell.send(json.dumps(["stdin", f"{command}\r"]))
    said = ""
    while not re.search(r"ended with \d", said):
        kind, *words = json.loads(shell.recv())
        said += "".join(map(str, words)) if kind == "stdout" else ""
    shell.close()
    assert f"I am {machine.grader}" in said, said
    assert "The gradebook is up to date" in said, said
    assert "ended with 0" in said
    marks = {row["student"]: row["score"] for row in machine.teacher.formgrader(f"submissions/{NAME}", "GET")}
    assert (marks["student-01"], marks["student-03"]) == (20, 18.5)


def test_a_page_of_the_formgrader_grades_by_its_button(machine: Machine, browser: Browser) -> None:
    machine.hand_in("student-05")
    page = browser.new_page()
    page.goto(f"{machine.hub}/services/ichimon/")
    page.fill("input[name=username]", machine.teacher.name)
    page.fill("input[name=password]", PASSWORD)
    page.click("#login_submit")
    page.wait_for_url("**/services/ichimon/formgrader**")
    page.goto(f"{machine.hub}/services/ichimon/formgrader/manage_submissions/{NAME}")
    row = page.locator("tr", has=page.get_by_text("student-05"))
    row.locator(".autograde a").click()
    page.get_by_text("Successfully autograded").wait_for(timeout=120_000)
    if place := os.environ.get("ICHIMON_SCREENSHOTS"):
        page.screenshot(path=f"{place}/formgrader.png")
    page.reload()
    assert "17.34" in row.locator(".score").inner_text()
    page.close()


# -- what students may not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "path"),
    [
        ("bob", "/services/ichimon/formgrader"),
        ("bob", "/services/ichimon/formgrader/api/assignments"),
        ("bob", "/services/ichimon/api/contents/solutions"),
        ("bob", "/services/ichimon/api/terminals"),
        ("bob", "/user/{ada}/api/contents"),
        ("bob", "/hub/api/users"),
        ("bob", "/hub/api/services/ichimon"),
        ("teacher", "/user/{ada}/api/contents"),
        ("teacher", "/hub/api/users"),
        ("nobody", "/services/ichimon/api/contents/solutions"),
        ("nobody", "/services/ichimon/formgrader/api/assignments"),
    ],
)
def test_nobody_reaches_what_is_anothers(machine: Machine, who: str, path: str) -> None:
    person = Person(machine.hub, "nobody") if who == "nobody" else getattr(machine, who)
    answer = person.session.get(machine.hub + path.format(ada=machine.ada.name), allow_redirects=False, timeout=60)
    sent_to_log_in = answer.status_code == 302 and "/hub/" in answer.headers["Location"]
    assert answer.status_code in (401, 403, 404) or (who == "nobody" and sent_to_log_in), answer.text[:500]


def test_who_is_in_neither_group_or_has_no_password_does_not_come_in(machine: Machine) -> None:
    """The account that owns the course least of all, even if somebody gave it a password."""
    subprocess.run(["chpasswd"], input=f"{machine.grader}:{PASSWORD}", text=True, check=True)
    assert Person(machine.hub, machine.grader).try_to_log_in() == 403
    assert Person(machine.hub, machine.bob.name).try_to_log_in("guessed") == 403


def test_a_students_server_has_a_students_pages_and_a_private_home(machine: Machine) -> None:
    machine.bob.start()
    own = f"/user/{machine.bob.name}"
    assert machine.bob.ask(f"{own}/assignments?course_id=ichimon").status_code == 200
    for page in ("formgrader/manage_assignments", "formgraders"):
        assert machine.bob.ask(f"{own}/{page}").status_code == 404
    shown = machine.bob.ask(f"{own}/lab").text
    config = re.search(r'id="jupyter-config-data"[^>]*>(.*?)</script>', shown, re.DOTALL)
    assert config
    disabled = {name for name in json.loads(config[1])["disabledExtensions"] if "nbgrader" in name}
    assert disabled == {f"@jupyter/nbgrader:{name}" for name in ("formgrader", "create-assignment", "course-list")}
    assert Path(pwd.getpwnam(machine.bob.name).pw_dir).stat().st_mode & 0o777 == 0o700


def test_a_student_reads_and_moves_nothing_of_anothers(machine: Machine) -> None:
    """Not even one who has learnt what ada's submission is called, which 72 random bits hide."""
    machine.release()
    place, state = machine.exchange / "ichimon", machine.folder / "state"
    assert {"jupyterhub.sqlite", "cookie_secret"} <= set(files_of(state))
    known = place / "inbound" / f"{machine.ada.name}+{NAME}+2026-11-22 10:00:00 UTC+x"
    assert machine.ada.type("mkdir", "-m", "777", str(known)).returncode == 0
    for command in (
        ["ls", place / "inbound"],
        ["ls", machine.course],
        ["cat", machine.course / "solutions" / f"{NAME}.py"],
        ["cat", machine.course / "gradebook.db"],
        ["cat", state / "cookie_secret"],
        ["cat", state / "jupyterhub.sqlite"],
        ["mv", machine.exchange / "ichimon", machine.exchange / "mine"],
        ["rm", "-r", place / "outbound" / NAME],
        ["touch", place / "outbound" / "06-gpt"],
        ["mv", known, place / "inbound" / f"{machine.bob.name}+{NAME}+2026-11-22 10:00:00 UTC+x"],
        ["rmdir", known],
    ):
        tried = machine.bob.type(*map(str, command))
        assert tried.returncode != 0, command
        assert re.search("Permission denied|not permitted", tried.stderr), (command, tried.stderr)
    known.rmdir()


def test_what_thieves_hand_in_is_left_alone_and_said(machine: Machine) -> None:
    machine.release()
    inbox, ada, bob = machine.exchange / "ichimon" / "inbound", machine.ada.name, machine.bob.name
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    answers = f"{machine.course}/_build/nbgrader/source/{NAME}/{NAME}.ipynb"
    before = machine.collected()
    for name, command in (
        (f"{bob}+{NAME}+{now}+link", f"ln -s {answers} {NAME}.ipynb"),
        (f"{ada}+{NAME}+2027-01-01 00:00:00 UTC+name", f"echo forged > {NAME}.ipynb"),
        (f"..+{NAME}+{now}+out", f"echo out > {NAME}.ipynb"),
    ):
        made = machine.bob.type("sh", "-euc", f"mkdir '{inbox}/{name}'; cd '{inbox}/{name}'; {command}")
        assert made.returncode == 0, made.stderr
    done = machine.teacher.formgrader(f"assignment/{NAME}/collect")
    assert done["success"], done
    said = (machine.course / f"_build/exchange/{NAME}-collect.csv").read_text()
    for told in ("symbolic links)", f"says that it is {ada}'s, and belongs to {bob}", "names no student"):
        assert told in said, said
    assert not {ada, bob} & set(re.findall(r"[\w-]+", done["log"]))
    assert machine.collected() == before
