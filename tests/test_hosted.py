"""What platforms are given, and how it grades there: Gradescope's container, GitHub's runner, cloned repositories.

as_gradescope.py makes the container. All submissions of these tests are graded in one, the first of them by the very
scripts of the zip.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NIGHTLY, Command
from packaging.utils import canonicalize_name
from test_attacks import ATTACKS, CODE, THROUGH, answer

from autograder import assignment as assignments
from autograder import hosted
from autograder.authoring import package
from autograder.course import Course
from autograder.submission import find

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAME = "02-self-attention"
PYTHON = ["/autograder/venv/bin/python", "-P", "-s"]
SECRET = "CANARY-of-the-platform"
CLOSED = ("transformers", "tokenizers", "peft")  # libraries that hold whole answers
ROOTS_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a container like Gradescope's")

DRIVER = f"""
import json, sys
sys.modules |= dict.fromkeys(json.load(open("/autograder/not_installed.json")))  # to import them is an error now
from pathlib import Path
from autograder import assignment, hosted
from autograder.grading import Graders
from autograder.sandbox.container import Container
from autograder.sandbox.jail import JailError, Limits
from autograder.sandbox.selftest import require, self_test

place = Path("/autograder")
hidden = [place / name for name in ("source", "submission", "results", "cases", "submission_metadata.json")]
limits = Limits(cpu_seconds=1, wall_seconds=12, total_seconds=20, lost_workers=2, memory=600 << 20, threads=16)
graders = Graders(limits, lambda limits: Container(limits, hidden))
told = {{}}
for case in sorted((place / "cases").iterdir()):
    report = hosted.grade(case, assignment.load("{NAME}"), graders)
    printed = [run.output for run in report.cells]
    told[case.name] = hosted.results(report, "visible", 0) | {{"printed": printed, "reason": report.reason}}
told["layers"] = [[check.claim, check.seen] for check in self_test(graders._jail)]
graders.close()
told["left"] = [path.name for path in Path("/dev/shm").iterdir()]
for opened, mode in ((place / "source", 0o755), (Path("/tmp"), 0o1777), (Path("/dev/zero"), 0o666)):
    opened.chmod(mode)
try:
    with Container(limits, hidden) as jail:
        require(jail)
except JailError as error:
    told["refused"] = str(error)
(place / "results" / "told.json").write_text(json.dumps(told))
"""

# What a submission would try that knows where it is.
AT_HOME = f"""
import ctypes, os, shutil, signal, socket
libc, me = ctypes.CDLL(None, use_errno=True), os.getpid()
def tried(name, attempt):
    try:
        got = attempt()
    except (OSError, RuntimeError):
        return
    if got not in (-1, None, []):
        print("{THROUGH}:", name, repr(got)[:200])
def write(path):
    with open(path, "w") as file:
        return file.write("{{}}")
for folder in ("source", "submission", "results", "cases"):
    tried(f"lists {{folder}}", lambda: os.listdir(f"/autograder/{{folder}}"))
    tried(f"opens {{folder}}", lambda: os.chmod(f"/autograder/{{folder}}", 0o777) or "it is open")
for path in ("source/autograder/tests/test_02_self_attention.py", "source/solutions/{NAME}.py", "run_autograder",
             "submission/{NAME}.ipynb", "results/results.json", "submission_metadata.json"):
    tried(f"writes {{path}}", lambda: write(f"/autograder/{{path}}"))
    if path != "run_autograder":
        tried(f"reads {{path}}", lambda: open(f"/autograder/{{path}}").read())
tried("forges", lambda: os.rename("/autograder/results", "/autograder/old") or "it is gone")
tried("replaces the scripts", lambda: write("/autograder/venv/lib/python3.11/site-packages/sitecustomize.py"))
others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me]
for pid in others:
    for number in (0, signal.SIGSTOP, signal.SIGKILL):
        tried(f"signals {{pid}}", lambda: os.kill(pid, number) or "it did")
    for name in ("environ", "mem", "maps", "auxv"):
        tried(f"reads /proc/{{pid}}/{{name}}", lambda: open(f"/proc/{{pid}}/{{name}}", "rb").read(1))
    tried(f"opens /proc/{{pid}}/fd", lambda: os.listdir(f"/proc/{{pid}}/fd"))
    tried(f"finds the secret in the command of {{pid}}",
          lambda: b"{SECRET}" in open(f"/proc/{{pid}}/cmdline", "rb").read() or None)
for folder in ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/dev/mqueue", "/autograder", "/etc", ".."):
    tried(f"writes in {{folder}}", lambda: write(f"{{folder}}/x"))
tried("lists the workers", lambda: os.listdir(".."))
for folder in range(40):
    if str(folder) != os.path.basename(os.getcwd()):
        tried(f"looks into the folder of worker {{folder}}", lambda: os.listdir(f"../{{folder}}") or "empty")
tried("becomes root", lambda: os.setuid(0) or os.getuid())
tried("becomes another worker", lambda: os.setresuid(60101, 60101, 60101) or os.getuid())
tried("forks", os.fork)
tried("has a socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect_ex(("127.0.0.1", 80)))
tried("has a namespace", lambda: libc.unshare(0x10000000))
tried("mounts", lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
tried("makes a device", lambda: os.mknod("zero", 0o20666, os.makedev(1, 5)) or "a device")
tried("is in the environment", lambda: [value for value in os.environ.values() if "{SECRET}" in value])
tried("has another killed when memory runs out", lambda: open("/proc/1/oom_score_adj", "w"))
print("all tried, with", len(others), "others in sight")
"""
LEAVES = """
import os
for depth in range(1200):
    os.mkdir("deeper"); os.chdir("deeper")
with open("left", "wb") as file:
    file.write(bytes(20 << 20))
os._exit(0)
"""


def notebook(folder: Path, cells: dict[str, str] | None = None, student: str = "", name: str = NAME) -> None:
    """A case: what a student of the sample class handed in, or the released notebook, with these cells in it."""
    source = f"examples/class/{student}/{NAME}" if student else f"notebooks/{name}"
    document = json.loads((ROOT / source / f"{name}.ipynb").read_text(encoding="utf-8"))
    answer(document, list((cells or {}).items()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps(document), encoding="utf-8")


def cases(folder: Path) -> None:
    for case, student in (("perfect", "student-01"), ("mistaken", "student-03"), ("looping", "student-09")):
        notebook(folder / case, student=student)
    notebook(folder / "unfinished")
    notebook(folder / "wrong", name="00-warm-up")
    notebook(folder / "two", student="student-01")
    (folder / "two" / f"{NAME}.ipynb").rename(folder / "two" / "a<b>.ipynb")
    notebook(folder / "two" / "old", student="student-03")
    (folder / "two" / "old" / f"{NAME}.ipynb").rename(folder / "two" / "old" / "b.ipynb")
    (folder / "nothing").mkdir()
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / f"{NAME}.ipynb").write_bytes(b"\x89PNG, not a notebook")
    (folder / "a-link").mkdir()
    (folder / "a-link" / f"{NAME}.ipynb").symlink_to(f"/autograder/source/solutions/{NAME}.py")
    markup = 'raise ValueError("<script>alert(1)</script>\\n::error::x\\x1b[31m")'
    notebook(folder / "markup", {"causal_mask": markup})
    notebook(folder / "at-home", {"": AT_HOME})
    notebook(folder / "leaves", {"": LEAVES})
    for name in sorted(ATTACKS) if NIGHTLY else ("forge-results_first", "exhaust-fork_bomb", "interfere-kill_parent"):
        if name.partition("-")[0] in CODE:
            document = json.loads((ROOT / f"notebooks/{NAME}/{NAME}.ipynb").read_text(encoding="utf-8"))
            ATTACKS[name].hand_in(folder / "attack", document, name)
            (folder / "attack" / name / NAME).rename(folder / name)
    shutil.rmtree(folder / "attack")


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    path = tmp_path_factory.mktemp("zip") / "autograder.zip"
    assert command("package", "gradescope", NAME, path).code == 0
    return path


def laid_out(place: Path, zipped: Path) -> None:
    """As Gradescope lays out what it was given, with a submission of student-03."""
    for folder in ("source", "submission", "results"):
        (place / folder).mkdir(parents=True)
    with zipfile.ZipFile(zipped) as archive:
        archive.extractall(place / "source")
    shutil.copy(place / "source" / "run_autograder", place)
    (place / "run_autograder").chmod(0o755)
    shutil.copy(ROOT / "examples/class/student-03" / NAME / f"{NAME}.ipynb", place / "submission")
    person = {"email": "x@example.com", "name": "Somebody's Name"}
    (place / "submission_metadata.json").write_text(json.dumps({"users": [person]}))


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, zipped: Path) -> dict[str, Any]:
    """case -> what was told about it; "results" and "stdout" are what the scripts of the zip wrote and printed."""
    place = tmp_path_factory.mktemp("gradescope") / "autograder"
    laid_out(place, zipped)
    cases(place / "cases")
    (place / "cases").chmod(0o700)
    (place / "driver.py").write_text(DRIVER)
    pins = (place / "source" / "requirements.txt").read_text().split()
    installed = {canonicalize_name(pin.partition("==")[0]) for pin in pins}
    others = {
        top for top, names in packages_distributions().items() if not installed & set(map(canonicalize_name, names))
    }
    (place / "not_installed.json").write_text(
        json.dumps(sorted(others - {"ichimon", "autograder", "experiments", *CLOSED}))
    )
    script = "/autograder/run_autograder; export PYTHONPATH=source OMP_NUM_THREADS=1; exec " + " ".join(PYTHON)
    container = [sys.executable, str(HERE / "as_gradescope.py"), str(place), sys.prefix]
    done = subprocess.run(
        [*container, "/bin/bash", "-c", f"{script} driver.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=1200 if NIGHTLY else 400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    told = json.loads((place / "results" / "told.json").read_text())
    results = json.loads((place / "results" / "results.json").read_text())
    return told | {"results": results, "stdout": done.stdout + done.stderr}


# -- Gradescope -----------------------------------------------------------------------------------------------------


@ROOTS_ONLY
def test_the_scripts_of_the_zip_grade_what_was_handed_in(graded: dict[str, Any]) -> None:
    results = graded["results"]
    assert results["score"] == 18.5
    assert {test["name"]: (test["score"], test["max_score"]) for test in results["tests"]} == {
        "causal_mask": (1.5, 3),
        "attention": (7, 7),
        "split_heads": (2, 2),
        "merge_heads": (2, 2),
        "MultiHeadAttention": (6, 6),
    }
    assert "Row i leaves out column i: a position must see itself too." in results["tests"][0]["output"]
    assert "18.5 of 20 points" in graded["stdout"]
    assert "Somebody" not in json.dumps(graded)


@ROOTS_ONLY
def test_results_have_the_form_that_gradescope_documents(graded: dict[str, Any]) -> None:
    """https://gradescope-autograders.readthedocs.io/en/latest/specs/#output-format"""
    formats = {"text", "simple_format", "html", "md", "ansi"}
    allowed: dict[str, Any] = {"output_format": formats, "test_output_format": formats, "test_name_format": formats}
    allowed |= {key: set(package.VISIBILITIES) for key in ("visibility", "stdout_visibility")}
    types = {"score": (int, float), "execution_time": (int,), "output": (str,), "tests": (list,)}
    results = graded["results"]
    assert set(results) == {*allowed, *types}
    assert [key for key, values in allowed.items() if results[key] not in values] == []
    assert [key for key, kinds in types.items() if not isinstance(results[key], kinds)] == []
    for test in results["tests"]:
        assert set(test) == {"name", "score", "max_score", "status", "output"}
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
    assert results["stdout_visibility"] == "hidden"
    assert round(sum(test["score"] for test in results["tests"]), 2) == results["score"]


SAYS = {
    "perfect": (20, "^$"),
    "mistaken": (18.5, "Row i leaves out column i"),
    "unfinished": (0, "not written yet"),
    "looping": (17, "timed out"),
    "wrong": (0, "No notebook|This is not the notebook of 02-self-attention"),
    "two": (0, r"There are 2 notebooks, a<b>\.ipynb and old/b\.ipynb: hand in one of them, called 02-self-attention"),
    "nothing": (0, r"No notebook was handed in: hand in 02-self-attention\.ipynb\."),
    "unreadable": (0, "is not text in UTF-8, so it is no notebook"),
    "a-link": (0, "is a symbolic link, not a notebook"),
}


@ROOTS_ONLY
@pytest.mark.parametrize("case", SAYS)
def test_each_kind_of_submission_gets_its_points_and_a_sentence(graded: dict[str, Any], case: str) -> None:
    points, says = SAYS[case]
    told = graded[case]
    assert told["score"] == points
    assert sum(test["max_score"] for test in told["tests"]) == 20
    assert re.search(says, told["reason"] or told["output"])
    assert "Traceback" not in json.dumps(told)


@ROOTS_ONLY
def test_a_students_text_stays_text(graded: dict[str, Any]) -> None:
    told = graded["markup"]
    assert "<script>alert(1)</script> ::error::x" in told["output"].replace("\n", " ")
    assert "\x1b" not in json.dumps(told["output"]) + told["output"]
    assert all("\n::" not in test["output"] for test in told["tests"])


# What these print as a success is what the thinner jail gives up, or a number: see docs/security.md.
OTHER_WALLS = {
    "escape-devices": "there is a folder /dev/mqueue, in which it may not write",
    "escape-links": "it may list /var, as everybody",
    "escape-signals": "it is not process 1, so one of the numbers that it signals is its own",
    "read-files": "there is a folder /autograder, which it may not enter",
    "read-proc": "it sees that there are other processes",
}


@ROOTS_ONLY
def test_an_attack_gets_no_mark_and_sees_nothing(graded: dict[str, Any]) -> None:
    tried = {case: told for case, told in graded.items() if case.partition("-")[0] in CODE or case == "at-home"}
    assert len(tried) >= 4
    assert "all tried, with" in "".join(tried["at-home"]["printed"])
    through = {case: text for case, told in tried.items() for text in told["printed"] if THROUGH in text}
    assert {case: text for case, text in through.items() if case not in OTHER_WALLS} == {}
    assert {
        case for case, told in tried.items() if told["score"] > (ATTACKS[case].points if case in ATTACKS else 0)
    } == set()
    assert SECRET not in json.dumps(tried)


@ROOTS_ONLY
def test_nothing_is_left_behind(graded: dict[str, Any]) -> None:
    assert "worker died" in graded["leaves"]["reason"] or graded["leaves"]["score"] == 0
    assert graded["left"] == []


@ROOTS_ONLY
def test_every_layer_holds_and_a_missing_one_stops_the_grading(graded: dict[str, Any]) -> None:
    assert [(claim, seen) for claim, seen in graded["layers"] if seen] == []
    assert len(graded["layers"]) >= 18
    for hole in (
        "/autograder/source/autograder/tests can be seen",
        "/tmp is writable",
        "/autograder/source can be read",
    ):
        assert hole in graded["refused"] or "it worked" in graded["refused"], graded["refused"]
    assert "no memory that counts for nobody: it worked" in graded["refused"]


def test_only_the_platforms_own_command_asks_for_the_thinner_jail() -> None:
    files = [*(ROOT / "autograder").glob("*.py"), *(ROOT / "autograder" / "sandbox").glob("*.py")]
    users = {path.name for path in files if re.search(r"\bContainer\b", path.read_text(encoding="utf-8"))}
    assert users == {"container.py", "selftest.py", "hosted.py"}


def test_without_root_the_container_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograder.sandbox.container import Container
    from autograder.sandbox.jail import JailError

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(JailError, match="Only root"):
        Container()


DEBIAN = """
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
pip=()
if [ -n "${PIP_CERT-}" ]; then  # where pip is set up for a certificate or a folder of wheels, it is so in there
    cp "$PIP_CERT" "$ROOT/pip.crt"
    pip+=(PIP_CERT=/pip.crt)
fi
if [ -n "${PIP_FIND_LINKS-}" ]; then
    mkdir "$ROOT/wheels"
    mount --bind "$PIP_FIND_LINKS" "$ROOT/wheels"
    pip+=(PIP_FIND_LINKS=/wheels TORCH_INDEX=)
fi
in_debian() { chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
in_debian "${pip[@]}" /bin/bash /autograder/source/setup.sh
in_debian PYTHONPATH=/autograder/source /autograder/venv/bin/python /autograder/as_gradescope.py \\
    /autograder /autograder/venv /autograder/run_autograder
"""


@ROOTS_ONLY
@pytest.mark.skipif(not shutil.which("debootstrap"), reason="the package debootstrap is not installed")
@pytest.mark.skipif(not NIGHTLY, reason="building Gradescope's image takes minutes and a network: make nightly")
def test_setup_builds_an_image_from_an_empty_debian(zipped: Path, tmp_path: Path) -> None:
    root = tmp_path / "debian"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], check=True, capture_output=True, timeout=600)
    laid_out(root / "autograder", zipped)
    shutil.copy(HERE / "as_gradescope.py", root / "autograder")
    command = ["unshare", "--mount", "bash", "-euc", DEBIAN]
    environment = {**os.environ, "ROOT": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    results = json.loads((root / "autograder" / "results" / "results.json").read_text())
    assert results["score"] == 18.5, done.stdout[-2000:]
    writable = subprocess.run(
        [
            "find",
            root,
            "-xdev",
            "-perm",
            "-0002",
            "(",
            "-type",
            "d",
            "-o",
            "-type",
            "f",
            ")",
            "-not",
            "-path",
            f"{root}/dev*",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert writable.stdout == ""


# -- what is in the packages ----------------------------------------------------------------------------------------

LIBRARIES = {*package.PACKAGES, "_pytest", "markupsafe"}  # the last two come with those before them
INSIDE = {"wire", "worker"}  # beside the zygote


def test_the_zip_holds_one_assignment(zipped: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    files = set(modes)
    assert [file for file, mode in modes.items() if mode & 0o111] == ["run_autograder", "setup.sh"]
    assert {file for file in files if file.startswith("solutions/")} == {f"solutions/{NAME}.py"}
    assert {file for file in files if "/mistakes/" in file} == {f"autograder/mistakes/{NAME}.py"}
    assert {file for file in files if "/tests/test_" in file} == {"autograder/tests/test_02_self_attention.py"}
    assert not [file for file in files if re.search("families|alternatives|authoring|examples|gradebook", file)]
    package.gradescope(NAME, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == zipped.read_bytes()


def test_what_a_chapter_withholds_is_installed_there() -> None:
    """A name that is reserved is looked up in the worker, before anything of a submission runs."""
    distributions = packages_distributions()
    allowed = {*package.PACKAGES, *CLOSED}
    for name in assignments.names():
        for statement in ast.parse(assignments.load(name).tests.read_text(encoding="utf-8")).body:
            for node in ast.walk(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else ():
                text = node.value if isinstance(node, ast.Constant) else ""
                if isinstance(text, str) and re.fullmatch(r"[a-z]\w*(\.\w+)+", text):
                    top = text.partition(".")[0]
                    assert top in allowed or top not in distributions, (name, text)


@pytest.mark.parametrize("name", assignments.names())
def test_what_is_imported_travels_or_is_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "requirements", lambda root, packages: [])
    files = package.grader_files(name)
    cells = assignments.load(name)
    code = {
        path: data.decode() for path, data in files.items() if path.startswith("autograder/") and path[-3:] == ".py"
    }
    code.pop(f"autograder/mistakes/{name}.py")
    for path, text in {**code, "the set-up cell": cells.set_up}.items():
        for module in package._modules(text):
            top = module.partition(".")[0]
            known = top in sys.stdlib_module_names | LIBRARIES | INSIDE | {"ichimon"}
            place = module.replace(".", "/")
            there = {f"{place}.py", f"{place}/__init__.py"} & set(files)
            assert known or there or (not (ROOT / f"{place}.py").exists() and not (ROOT / place).is_dir()), (
                path,
                module,
            )
            assert known or top in ("autograder", "experiments"), (path, module)


def test_changed_points_travel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Course, "points", lambda course, name: {"causal_mask": 5.0})
    for path, data in package.grader_files(NAME).items():
        if path.startswith(("solutions/", "course.toml")):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
    monkeypatch.undo()
    course = Course(tmp_path)
    assert [cell.points for cell in course.cells(course.sources[0]) if cell.role == "check"][:2] == [5, 7]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("gradescope", "02-attention"), "There is no assignment '02-attention'"),
        (("gradescope", NAME, "x.zip", "--visibility", "never"), "Gradescope knows no visibility 'never'"),
        (("classroom", NAME, "x", "--hidden", "no repository"), "'no repository' names no repository on GitHub"),
        (("classroom", "02-attention", "x"), "There is no assignment '02-attention'"),
    ],
)
def test_what_cannot_be_packaged_is_told(
    command: Command, arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = command("package", *arguments)
    assert (ran.code, len(ran.sentences)) == (2, 1)
    assert sentence in ran.err
    assert list(tmp_path.iterdir()) == []


def test_whatever_goes_wrong_results_say_that_it_is_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    seen = []

    def fails(*_: object) -> None:
        seen.append(json.loads((tmp_path / "results" / "results.json").read_text()))
        raise RuntimeError("secret/path/of/the/grader")

    monkeypatch.setattr(hosted, "grade", fails)
    hosted.gradescope(NAME, "visible", tmp_path)
    told = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (told["score"], told["output"], told["visibility"]) == (0, hosted.NOT_GRADED, "visible")
    assert "secret" in capsys.readouterr().out, "the instructor's page does not say why"
    assert seen[0]["output"] == hosted.STOPPED, "a run that is ended from outside would leave nothing"


# -- GitHub ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """What `autograder package classroom --hidden` writes; it says that no answer is in what students get."""
    folder = tmp_path_factory.mktemp("classroom")
    ran = command("package", "classroom", NAME, folder, "--hidden", "school/grader")
    assert (ran.code, ran.err) == (0, "")
    return folder


def steps(text: str) -> list[dict[str, Any]]:
    """A workflow's steps. YAML 1.1 reads its key `on` as true."""
    read = yaml.safe_load(text)
    assert set(read) == {"name", True, "permissions", "jobs"}
    assert read["permissions"] == {"contents": "read"}
    (job,) = read["jobs"].values()
    assert set(job) == {"runs-on", "timeout-minutes", "steps"}
    return job["steps"]


@pytest.mark.parametrize("repository", ["", "school/grader"])
def test_a_workflow_is_one_that_github_reads(repository: str) -> None:
    text = package.workflow(NAME, repository)
    for step in steps(text):
        assert set(step) <= {"name", "uses", "with", "run", "env", "working-directory"}
        assert ("uses" in step) != ("run" in step)
    pinned = set(re.findall(r"uses: (.+)", text))
    assert pinned <= set(re.findall(r"uses: (.+)", (ROOT / ".github/workflows/book.yml").read_text()))
    assert not re.search("ASSIGNMENT|OWNER|VISIBILITY", text)
    assert ("GRADER_KEY" in text) == bool(repository)


def run_step(text: str, name: str, workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one step of a workflow as GitHub's runner does: its lines, in its folder, in bash."""
    step = next(step for step in steps(text) if step.get("name") == name)
    given = {
        key: str(value).replace("${{ github.workspace }}", str(workspace)) for key, value in step.get("env", {}).items()
    }
    base = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=workspace / step.get("working-directory", ""),
        env={**base, "GITHUB_WORKSPACE": str(workspace), **given, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_visible_checks_run_in_the_template(repositories: Path) -> None:
    done = run_step(package.workflow(NAME), "Check", repositories / "template")
    assert done.returncode == 1
    assert "0 of 5 exercises pass their visible checks." in done.stdout
    files = {str(path.relative_to(repositories / "template")) for path in (repositories / "template").rglob("*")}
    assert {f"{NAME}.ipynb", "ichimon/check.py", "requirements.txt", "README.md"} <= files
    assert not [file for file in files if "autograder" in file or "solutions" in file]


def test_the_hidden_tests_run_from_the_private_repository(repositories: Path, tmp_path: Path) -> None:
    shutil.copytree(repositories / "grader", tmp_path / "grader")
    shutil.copytree(repositories / "template", tmp_path / "work", ignore=shutil.ignore_patterns(".github"))
    (tmp_path / "work" / "ichimon" / "__init__.py").write_text("raise SystemExit('the wrong ichimon')")
    notebook(tmp_path / "work", {"": "raise ValueError('`x`\\n::error::forged')"}, student="student-03")
    text = (repositories / "template" / ".github" / "workflows" / "classroom.yml").read_text()
    done = run_step(text, "Grade", tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
    assert done.returncode == 1, done.stderr
    assert done.stdout == "::notice title=Autograding complete::Points 18.5/20\n"
    summary = (tmp_path / "summary.md").read_text()
    assert "## 18.5 of 20 points" in summary
    assert "Row i leaves out column i: a position must see itself too." in summary
    assert "`cell 4: ValueError: 'x' ::error::forged (line 1 of cell 4)`" in summary


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "mine.txt").write_text("mine")
    with pytest.raises(package.ReleaseError, match=r"mine\.txt is none of the files"):
        package.classroom(NAME, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["template", "mine.txt"]


CLONES = {
    "gh classroom clone": ("self-attention-submissions", "self-attention-octo-cat"),
    "gh teacher download": ("llms-self-attention_submissions_2026_11_02_T_14_30_45", "llms-self-attention-octo-cat"),
}


@pytest.mark.parametrize("clones", CLONES)
def test_a_cloned_repository_belongs_to_the_login_in_its_name(clones: str, tmp_path: Path) -> None:
    outer, repository = CLONES[clones]
    shutil.copytree(ROOT / "examples/class/student-01" / NAME, tmp_path / outer / repository)
    inside = tmp_path / outer / repository / outer / f"{repository}-else"  # theirs to make, and nobody's name
    inside.mkdir(parents=True)
    (tmp_path / outer / repository / ".git").mkdir()
    (tmp_path / outer / repository / ".git" / "hidden.ipynb").write_text("{}")
    for root in (tmp_path / outer, tmp_path):
        found, without = find([root])
        assert [(item.student, item.path.name) for item in found] == [("octo-cat", f"{NAME}.ipynb")]
        assert without == []
    shutil.copy(tmp_path / outer / repository / f"{NAME}.ipynb", inside)
    assert {item.student for item in find([tmp_path / outer])[0]} == {"octo-cat"}
    assert {item.student for item in find([tmp_path])[0]} == {"octo-cat"}


def test_clones_are_collected_by_the_logins_in_a_roster(tmp_path: Path, command: Command) -> None:
    outer, repository = CLONES["gh classroom clone"]
    for login, student in (("octo-cat", "student-01"), ("stranger", "student-03")):
        target = tmp_path / outer / repository.replace("octo-cat", login)
        shutil.copytree(ROOT / "examples/class" / student / NAME, target)
    (tmp_path / "roster.csv").write_text("student,github_username\nada,Octo-Cat\n")
    table = tmp_path / "who.csv"
    into = tmp_path / "submitted"
    ran = command("collect", tmp_path / outer, "--roster", tmp_path / "roster.csv", "--into", into, "--table", table)
    assert ran.code == 1
    assert [str(path.relative_to(into)) for path in into.rglob("*.ipynb")] == [f"ada/{NAME}/{NAME}.ipynb"]
    assert "“stranger” is not in the roster" in ran.err
