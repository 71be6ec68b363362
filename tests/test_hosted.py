"""What platforms are given, and how it grades there: Gradescope's container, GitHub's runner, cloned repositories.

as_gradescope.py makes the container. All submissions of these tests are graded in one, the first of them by the very
scripts of the zip.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import NIGHTLY, Command
from test_attacks import ATTACKS, CODE, THROUGH, answer

from autograder.authoring import package

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAME = "02-self-attention"
PYTHON = ["/autograder/venv/bin/python", "-P", "-s"]
SECRET = "CANARY-of-the-platform"
ROOTS_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a container like Gradescope's")

DRIVER = f"""
import json
from pathlib import Path
from autograder import assignment, hosted
from autograder.grading import Graders
from autograder.sandbox.container import Container
from autograder.sandbox.jail import JailError, Limits
from autograder.sandbox.selftest import require, self_test

place = Path("/autograder")
hidden = [place / name for name in ("source", "submission", "results", "cases", "submission_metadata.json")]
limits = Limits(cpu_seconds=1, wall_seconds=3, total_seconds=8, lost_workers=2, memory=600 << 20, threads=16)
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
for folder in ("/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/autograder", "/etc", os.path.dirname(os.getcwd())):
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
    script = "/autograder/run_autograder; export PYTHONPATH=source OMP_NUM_THREADS=1; exec " + " ".join(PYTHON)
    container = [sys.executable, str(HERE / "as_gradescope.py"), str(place), sys.prefix]
    done = subprocess.run(
        [*container, "/bin/bash", "-c", f"{script} driver.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=1200 if NIGHTLY else 200,
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


# These look for namespaces of their own, or count on what only bubblewrap shows; what they want to do is tried above.
OTHER_WALLS = {"read-proc", "read-parents_memory", "persist-file_for_the_next", "interfere-kill_parent"}


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


def test_without_root_the_container_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograder.sandbox.container import Container
    from autograder.sandbox.jail import JailError

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(JailError, match="Only root"):
        Container()
