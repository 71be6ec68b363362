"""The students' side: a notebook opens and runs wherever it is opened, validates in words and prints well; feedback
leads on from what failed to where the book explains it."""

from __future__ import annotations

import ast
import copy
import functools
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from conftest import NIGHTLY
from docutils.nodes import make_id
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from autograder import assignment as assignments
from autograder import feedback, submission
from autograder.authoring import bootstrap, release
from autograder.authoring.build import build
from autograder.course import Course, CourseError
from autograder.report import ExerciseResult, Outcome, Report, TestResult
from autograder.results import Results
from ichimon import notebook, paper, train, validate
from ichimon.__main__ import app

if TYPE_CHECKING:
    from conftest import Command

ROOT = Path(__file__).resolve().parents[1]
NAME = "02-self-attention"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
SOURCES = sorted((ROOT / "solutions").glob("*.py"))
HTML = ROOT / "_build/html/book"
slow = pytest.mark.skipif(not NIGHTLY, reason="it needs a network or takes minutes: make nightly")


def released(name: str = NAME) -> dict[str, Any]:
    return dict(json.loads((ROOT / f"notebooks/{name}/{name}.ipynb").read_text(encoding="utf-8")))


def cell(document: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(next(cell for cell in document["cells"] if cell.get("id") == name))


def first_cell(name: str = NAME) -> str:
    return "".join(cell(released(name), "bootstrap")["source"])


# -- which section of the book explains an exercise ------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_exercise_has_a_section_of_its_page(source: Path) -> None:
    page = (ROOT / f"book/{source.stem}.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    anchors = [make_id(re.sub(r"[*`$]", "", title)) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    for exercise in (cell for cell in notebook.cells(source) if cell.role == "solution"):
        assert exercise.section, f"{exercise.id} has no section"
        assert anchors.count(make_id(exercise.section)) == 1, f"{exercise.id}: {exercise.section}"
        if HTML.is_dir():
            built = (HTML / f"{source.stem}.html").read_text(encoding="utf-8")
            assert f'id="{make_id(exercise.section)}"' in built


@pytest.mark.parametrize("text", ['points=2 section="Or turn"', "section=3"])
def test_a_section_belongs_to_an_exercise_and_is_a_heading(tmp_path: Path, text: str) -> None:
    header = "check" if "points" in text else "exercise"
    (tmp_path / "90-tiny.py").write_text(f'# %% role="set-up"\nimport math\n# %% {header}="f" {text}\nf = 1\n')
    with pytest.raises(notebook.NotebookError, match="section names a heading"):
        notebook.cells(tmp_path / "90-tiny.py")


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course of one chapter."""
    (tmp_path / "solutions").mkdir()
    shutil.copy(ROOT / f"solutions/{NAME}.py", tmp_path / "solutions")
    return tmp_path


def test_a_notebook_leads_to_the_book_and_to_colab_where_course_toml_knows_them(course: Path) -> None:
    before = released()
    (course / "course.toml").write_text(
        'book = "https://example.org/ichimon/"\nstudents = "https://github.com/example/students/tree/v1"\n'
    )
    build(course)
    after = json.loads((course / f"notebooks/{NAME}/{NAME}.ipynb").read_text(encoding="utf-8"))
    assert [cell["id"] for cell in after["cells"]] == [cell["id"] for cell in before["cells"]], "work carries over"
    text = "\n".join("".join(cell["source"]) for cell in after["cells"])
    assert f"[No looking ahead](https://example.org/ichimon/book/{NAME}.html#no-looking-ahead)" in text
    colab = f"https://colab.research.google.com/github/example/students/blob/v1/notebooks/{NAME}/{NAME}.ipynb"
    assert f"[Open this notebook in Colab]({colab})" in "".join(after["cells"][0]["source"])
    old = "\n".join("".join(cell["source"]) for cell in before["cells"])
    assert "*In the book: “No looking ahead”*" in old
    assert "colab.research" not in old
    assert build(course) == []
    (course / "course.toml").write_text('book = "https://example.org/elsewhere"\n')
    assert len(build(course)) == 1, "another address is another notebook"


@pytest.mark.parametrize(
    ("students", "package"),
    [
        ("https://github.com/a/b", "ichimon @ https://github.com/a/b/archive/main.zip"),
        ("https://github.com/a/b.git", "ichimon @ https://github.com/a/b/archive/main.zip"),
        ("https://github.com/a/b/tree/v1.2", "ichimon @ https://github.com/a/b/archive/v1.2.zip"),
        ("https://gitlab.com/g/h/b", "ichimon @ git+https://gitlab.com/g/h/b"),
        ("https://gitlab.com/g/h/b/-/tree/main", "ichimon @ git+https://gitlab.com/g/h/b@main"),
    ],
)
def test_pip_is_told_where_the_students_repository_is(course: Path, students: str, package: str) -> None:
    (course / "course.toml").write_text(f'students = "{students}"')
    assert Course(course).package == package
    assert bool(Course(course).colab(NAME)) == ("github.com" in students)


@pytest.mark.parametrize("key", ["book", "students"])
@pytest.mark.parametrize(
    "url", ["http://example.org", "javascript:alert(1)", 'https://x/\\"); import os', "example.org"]
)
def test_an_address_that_is_none_is_said(course: Path, key: str, url: str) -> None:
    (course / "course.toml").write_text(f'{key} = "{url}"')
    with pytest.raises(CourseError, match=f"{key} is no address that begins with https://"):
        _ = Course(course).settings


# -- the first cell ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_with_a_cell_that_installs_what_it_imports(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.from_dict(document))
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code[:2]] == ["bootstrap", "set-up"]
    metadata = code[0]["metadata"]
    assert (metadata["editable"], metadata["deletable"], "nbgrader" in metadata) == (False, False, False)
    text = "".join(code[0]["source"])
    listed = ast.literal_eval(re.search(r"_bootstrap\(\n(.*)\n\)\ndel", text, re.DOTALL)[1].strip())  # type: ignore[index]
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(f"{requirement} " in pinned or f"{requirement}\n" in pinned for requirement in listed.values())
    imported = re.findall(r"^\s*(?:import|from) (\w+)", "\n".join("".join(c["source"]) for c in code[1:]), re.MULTILINE)
    missing = set(imported) - set(listed) - sys.stdlib_module_names - {"__main__", "IPython", "huggingface_hub"}
    assert not missing, "imported, and not installed"
    assert "%pip" not in "".join("".join(c["source"]) for c in document["cells"] if c["cell_type"] == "markdown")


def test_what_ichimon_itself_imports_is_installed_too() -> None:
    assert "safetensors" not in first_cell("02-self-attention")
    text = bootstrap.source(["from ichimon import corpus"], "ichimon @ https://example.org/x.zip")
    assert '"tokenizers": "tokenizers==' in text
    assert '"ichimon": "ichimon @ https://example.org/x.zip"' in text
    assert "transformers" not in text


def run_first_cell(text: str) -> tuple[str, dict[str, Any]]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(text, "bootstrap", "exec"), namespace)
    return said.getvalue(), namespace


def test_where_all_is_there_the_first_cell_does_nothing_and_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    for path in NOTEBOOKS:
        text = first_cell(path.stem)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            said, namespace = run_first_cell(text)
            best = min(best, time.process_time() - start)
        assert said == ""
        assert set(namespace) <= {"__name__", "__builtins__"}, "it leaves a name behind"
        assert best < 0.05


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A kernel without jaxtyping and ichimon, and a pip that installs nothing: what it was asked for."""
    asked: list[list[str]] = []
    there = importlib.util.find_spec

    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        said = "WARNING: Retrying\nERROR: No matching distribution found for jaxtyping==1\n  a detail"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in ("jaxtyping", "ichimon") else there(n))
    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_it_installs_what_is_missing_and_keeps_the_kernels_torch(without: list[list[str]]) -> None:
    from importlib.metadata import version

    text = first_cell("03-position").replace('"ichimon": ""', '"ichimon": "ichimon @ https://example.org/x.zip"')
    said, _ = run_first_cell(text)
    others, own = without
    assert [word for word in others if word.startswith("jaxtyping==")]
    assert own[-1] == "ichimon @ https://example.org/x.zip"
    for command in without:
        assert [word for word in command if word.startswith("torch")] == [f"torch=={version('torch')}"]
        assert "--upgrade" not in command
    assert said.startswith("Installing jaxtyping, ichimon ...")
    assert "Is there a network?" in said
    assert "What pip said: ERROR: No matching distribution found" in said
    assert "Traceback" not in said


def test_without_an_address_of_the_course_it_says_what_goes_without_ichimon(without: list[list[str]]) -> None:
    said, _ = run_first_cell(first_cell("03-position"))
    assert "All exercises and their checks go without it" in said
    assert len(without) == 1
    assert not [word for word in without[0] if "ichimon" in word]


def test_without_a_network_it_ends_with_a_sentence(tmp_path: Path) -> None:
    """A real pip that reaches nothing."""
    (tmp_path / "cell.py").write_text(
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'jaxtyping' else find(name)\n" + first_cell()
    )
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    text = (tmp_path / "cell.py").read_text().replace("jaxtyping==0", "jaxtyping==90")  # else it is there already
    (tmp_path / "cell.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "cell.py"], cwd=tmp_path, env={**os.environ, **nowhere}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Not installed: jaxtyping. Is there a network?" in done.stdout
    assert "What pip said: ERROR:" in done.stdout


# -- a bundle that pip installs ---------------------------------------------------------------------------------------


@functools.cache
def staged(folder: Path) -> Path:
    """The students' bundle of one chapter, without the search for answers, which has tests of its own."""
    root = folder / "course"
    for name in ("LICENSE", "LICENSE-text", "requirements.txt", f"solutions/{NAME}.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    for name in ("ichimon", "autograder/authoring", f"notebooks/{NAME}"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "_build/html").mkdir(parents=True)
    bundle = folder / "students"
    bundle.mkdir()
    release._stage(bundle, root)
    return bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged(tmp_path_factory.mktemp("bundle"))


def test_pip_installs_ichimon_from_the_bundle_with_its_data(bundle: Path, tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path / "there")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, str(bundle)]
    subprocess.run(pip, check=True, capture_output=True)
    there = tmp_path / "there/ichimon"
    assert {path.name for path in there.glob("*.py")} == {path.name for path in (ROOT / "ichimon").glob("*.py")}
    assert {path.name for path in (there / "trained").iterdir()} == {"dense.safetensors", "moe.safetensors"}
    script = "from ichimon import corpus as c; print(c.__file__, len(c.texts(c.PROSE, 'validation')) > 0)"
    environment = {**os.environ, "PYTHONPATH": str(there.parent)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(there / "corpus.py"), "True"], done.stderr


@slow
def test_in_a_bare_environment_the_first_cell_brings_everything(bundle: Path, tmp_path: Path) -> None:
    """A new environment that has torch and what torch needs, but neither jaxtyping nor ichimon; pip for real."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    python = tmp_path / "bare/bin/python"
    shared = tmp_path / "shared"
    shared.mkdir()
    ours = Path(nbformat.__file__).parents[1]
    for path in ours.iterdir():
        if not re.match(
            r"jaxtyping|wadler|ichimon|__editable__|pip|setuptools|_distutils|distutils|__pycache__", path.name
        ):
            (shared / path.name).symlink_to(path)
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True
    )
    (Path(site.stdout.strip()) / "shared.pth").write_text(f"{shared}\n")
    with zipfile.ZipFile(tmp_path / "ichimon.zip", "w") as archive:
        for path in sorted(bundle.rglob("*")):
            archive.write(path, f"students-main/{path.relative_to(bundle)}")
    address = (tmp_path / "ichimon.zip").as_uri()
    text = first_cell("03-position").replace('"ichimon": ""', f'"ichimon": "ichimon @ {address}"')
    (tmp_path / "cell.py").write_text(
        f"{text}\nimport ichimon.corpus, jaxtyping, torch\nprint(ichimon.__file__, jaxtyping.__file__, torch.__file__)"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "cell.py"], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    installing, files = done.stdout.splitlines()
    assert installing == "Installing jaxtyping, ichimon ..."
    one, two, kept = files.split()
    assert one.startswith(str(tmp_path / "bare"))
    assert two.startswith(str(tmp_path / "bare"))
    assert kept.startswith(str(shared)), "torch was replaced"


# -- what editors save ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def editors() -> ModuleType:
    """examples/make_class.py, which knows how each editor saves."""
    spec = importlib.util.spec_from_file_location("make_class", ROOT / "examples/make_class.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> submission.Submission:
    return submission.read(submission.Found("ada", NAME, path), assignments.load(NAME))


@pytest.fixture(scope="module")
def saved(editors: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One student's work as each program saves it, and from before there was a first cell."""
    folder = tmp_path_factory.mktemp("saved")
    work = editors.answered("student-01", "student-04")
    old = copy.deepcopy(work)
    old["cells"] = [cell for cell in old["cells"] if cell["id"] != "bootstrap"]
    files = {
        "jupyterlab": editors.jupyterlab(copy.deepcopy(work), timing=True),
        "vscode": editors.vscode(copy.deepcopy(work)),
        "old-vscode": editors.old_vscode(copy.deepcopy(work)),
        "colab": editors.colab(copy.deepcopy(work)),
        "copied-by-hand": editors.copied(copy.deepcopy(work)),
        "from-last-term": editors.jupyterlab(old),
    }
    for student, text in files.items():
        (folder / student / NAME).mkdir(parents=True)
        (folder / student / NAME / f"{NAME}.ipynb").write_text(text, encoding="utf-8")
    return folder


def test_whatever_saved_it_a_notebook_gets_the_same_marks(saved: Path, tmp_path: Path, command: Command) -> None:
    command("grade", saved, "--results", tmp_path / "r.sqlite", "--workers", 1)
    with Results(tmp_path / "r.sqlite") as stored:
        marks = {r.student: [(e.exercise, e.points) for e in r.exercises] for r in stored.reports()}
    assert len(marks) == 6
    assert len({str(mark) for mark in marks.values()}) == 1, marks
    assert sum(points for _, points in marks["colab"]) == pytest.approx(19.58)


def test_the_first_cell_never_reaches_the_grader(saved: Path, tmp_path: Path) -> None:
    for path in sorted(saved.rglob("*.ipynb")):
        nbformat.validate(nbformat.read(path, as_version=4))
        found = read(path)
        assert [cell for cell, _, _ in found.cells if cell in assignments.load(NAME).points], path
        assert not [source for _, _, source in found.cells if "_bootstrap" in source], path
        assert not found.notices, path
    document = released()
    cell(document, "bootstrap")["source"] = ["raise SystemExit"]
    document["cells"][1]["source"] = ["raise SystemExit"]
    (tmp_path / "changed.ipynb").write_text(json.dumps(document))
    assert not [source for _, _, source in read(tmp_path / "changed.ipynb").cells if "SystemExit" in source]


def test_an_answer_in_an_exercises_cell_runs_whatever_its_first_line_says(tmp_path: Path) -> None:
    document = released()
    cell(document, "causal_mask")["source"].insert(0, f"{notebook.BOOTSTRAP}\n")
    (tmp_path / "a.ipynb").write_text(json.dumps(document))
    assert "causal_mask" in [exercise for _, exercise, _ in read(tmp_path / "a.ipynb").cells]


# -- nbgrader's validate ----------------------------------------------------------------------------------------------


def test_nbgrader_validate_explains_in_words(tmp_path: Path) -> None:
    """In a kernel of its own, without any configuration: right, wrong, raising, missing and unwritten answers."""
    document = released()
    answers = {
        "causal_mask": "def causal_mask(n):\n    return torch.ones(n, n, dtype=torch.bool).triu()",
        "attention": "def attention(q, k, v, mask=None):\n    return q @ v @ v",
        "split_heads": "def split_heads(x, n_heads):\n    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)",
        "merge_heads": "def merge_heads(x:",
    }
    for name, source in answers.items():
        cell(document, name)["source"][:] = [source]
    (tmp_path / f"{NAME}.ipynb").write_text(json.dumps(document))
    script = f"from nbgrader.validator import Validator\nValidator().validate_and_print({NAME + '.ipynb'!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    said = [" ".join(part.split("===")[0].split()) for part in done.stdout.split("The error was:")[1:]]
    assert said[0] == "Position 3 comes after position 0, so it may look at it: mask[3, 0] should be True."
    assert said[1].startswith("attention (line 2 of its cell) raised RuntimeError: ")
    assert said[2] == "Name 'merge_heads' is not defined: is its cell written, and does it run without an error?"
    assert said[3].startswith("MultiHeadAttention.__init__ is not written yet: replace line")
    assert len(said) == 4
    assert "Traceback" not in done.stdout
    assert "..." not in " ".join(said), "a sentence was cut"


def test_outside_of_validation_errors_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBGRADER_VALIDATING", raising=False)
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: pytest.fail("the kernel was changed"))
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: type("Shell", (), {})())
    validate.in_words()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AssertionError("The mask  is\nnumbers."), "The mask is numbers."),
        (AssertionError(), "This check does not hold."),
        (NameError("name 'f' is not defined"), "Name 'f' is not defined: is its cell written"),
        (TypeError("f() takes 1"), "The check cannot use your answer: TypeError: f() takes 1"),
        (type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})(), "The check cannot use your answer: Odd"),
    ],
)
def test_every_error_is_a_sentence(error: Exception, words: str) -> None:
    assert validate.sentence(error).startswith(words)


# -- on paper ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_a_notebook_is_drawn_without_a_script(path: Path) -> None:
    text = paper.page(path)
    prose = re.sub(r"<pre.*?</pre>|<code>.*?</code>|<style>.*?</style>", "", text, flags=re.DOTALL)
    source = "\n".join(cell.source for cell in notebook.cells(path) if cell.kind == "markdown")
    blocks = len(re.findall(r"\$\$.+?\$\$", source, re.DOTALL))
    assert prose.count('display="block"') == blocks
    assert "$" not in prose
    assert not re.findall(r">[^<]*\\[^<]*<", prose), "TeX is left"
    assert not re.findall(r"<(?:script|iframe|link)|src=\"(?!data:)|\son\w+=", prose)
    assert "_bootstrap" not in text


RUNS = "<script>alert(1)</script>"
PROSE = f"""# <script>document.title='ran'</script>

![x](https://example.org/a.png) ![y](attachment:p.png) [l](javascript:alert(1)) <img src=x onerror=alert(1)>

$\\href{{javascript:alert(1)}}{{x}}$ $</math>{RUNS}$ $$\\undefined{{$$ {"[" * 3000}"""
OUTPUTS = [
    {"output_type": "display_data", "data": {"text/html": RUNS, "text/plain": "</pre><b>"}},
    {"output_type": "display_data", "data": {"image/svg+xml": "<svg onload=alert(1)>", "image/png": ["!", 3]}},
    {"output_type": "stream", "text": "\x1b[31m<b>" + "x" * 99999},
    {"output_type": "error", "ename": 3},
    7,
]
BAD_PICTURES = {"p.png": {"image/png": 'not base64"><script>'}, "q": 3}
HOSTILE = [
    {"cell_type": "markdown", "id": "a", "metadata": {}, "source": PROSE, "attachments": BAD_PICTURES},
    {"cell_type": "code", "id": "b", "metadata": {}, "source": f"</pre>{RUNS}", "outputs": OUTPUTS},
    {"cell_type": "raw", "id": "c", "metadata": {}, "source": "<style>*{display:none}</style>"},
]


def test_a_hostile_notebook_is_text_on_paper(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "h.ipynb").write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": HOSTILE})
    )
    text = paper.page(tmp_path / "h.ipynb")
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", text)  # the page must not need it
    (tmp_path / "h.html").write_text(text, encoding="utf-8")
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    page.goto((tmp_path / "h.html").as_uri())
    assert page.title() != "ran"
    assert page.evaluate("document.querySelectorAll('script, iframe, svg, body style').length") == 0
    acting = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => /^on|^javascript/i"
    assert page.evaluate(f"{acting}.test(a.name) || /^javascript/i.test(a.value)).length") == 0
    assert len(asked) == 1
    assert "more characters" in page.inner_text("body")
    page.close()


@pytest.mark.parametrize("name", ["02-self-attention", "18-lora"])
def test_paper_is_not_cut_on_a4_and_letter(browser: Browser, tmp_path: Path, name: str) -> None:
    (tmp_path / "p.html").write_text(paper.page(ROOT / f"notebooks/{name}/{name}.ipynb"), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "p.html").as_uri())
    page.emulate_media(media="print")
    for sheet, width in (("A4", 665), ("Letter", 687)):  # what is between the margins, in CSS pixels
        page.set_viewport_size({"width": width, "height": 1000})
        wide = (
            "[...document.querySelectorAll('pre, table, math, img')].filter(e => e.scrollWidth > innerWidth + 1).length"
        )
        assert page.evaluate(f"[document.documentElement.scrollWidth <= innerWidth, {wide}]") == [True, 0], sheet
        pages = page.pdf(format=sheet).count(b"/Type /Page\n")
        assert 4 <= pages <= 16
    page.close()


def test_the_command_prints_a_notebook_and_says_what_is_wrong(tmp_path: Path) -> None:
    shutil.copy(ROOT / f"notebooks/{NAME}/{NAME}.ipynb", tmp_path)
    run = functools.partial(CliRunner().invoke, app)
    done = run(["print", str(tmp_path / f"{NAME}.ipynb")])
    assert (done.exit_code, (tmp_path / f"{NAME}.html").read_text(encoding="utf-8")[:15]) == (0, "<!DOCTYPE html>")
    (tmp_path / "broken.ipynb").write_text("{")
    for words, says in (
        ([str(tmp_path / "none.ipynb")], "There is no file none.ipynb here"),
        ([str(tmp_path / "broken.ipynb")], "broken.ipynb is damaged"),
        ([str(tmp_path / f"{NAME}.ipynb"), "--to", str(tmp_path / "no/where.html")], "cannot be written"),
    ):
        done = run(["print", *words])
        assert done.exit_code == 2
        assert says in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)


# -- feedback ---------------------------------------------------------------------------------------------------------

ODD = "</p><script>alert(1)</script><img src=x onerror=alert(2)>" + "wide" * 60


def report() -> Report:
    def test(claim: str, outcome: Outcome, message: str = "", mistake: str = "") -> TestResult:
        return TestResult(f"test_{len(claim)}", claim, f"A hint about {claim}.", 1, outcome, message, mistake)

    passed, failed, raised, unwritten = Outcome.PASSED, Outcome.FAILED, Outcome.RAISED, Outcome.UNFINISHED
    named = test("b is so", failed, "5 of 9 differ.", "The diagonal is missing.")
    exercises = (
        ExerciseResult("causal_mask", 3, (test("a is so", passed), named)),
        ExerciseResult("attention", 7, (test("c is so", failed, ODD), test("d is so", raised, ODD))),
        ExerciseResult("split_heads", 2, (test("e is so", raised, ODD), test("f is so", raised, ODD))),
        ExerciseResult("merge_heads", 2, (test("g is so", unwritten), test("h is so", unwritten))),
        ExerciseResult("MultiHeadAttention", 6, (test("i is so", passed),)),
    )
    return Report(ODD[:70], NAME, "0", exercises, notices=(ODD,))


@pytest.fixture
def beside_the_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course with a built book: the page's file, as `autograder feedback` writes it."""
    (tmp_path / "_build/html/book").mkdir(parents=True)
    (tmp_path / f"_build/html/book/{NAME}.html").write_text('<h1 id="no-looking-ahead">There</h1>')
    monkeypatch.setattr(assignments, "COURSE", tmp_path)
    feedback.write([report()], tmp_path / "_build")
    return next((tmp_path / "_build/feedback").rglob(f"{NAME}.html"))


def test_feedback_begins_with_what_to_do_next(browser: Browser, beside_the_book: Path) -> None:
    page = browser.new_page()
    page.goto(beside_the_book.as_uri())
    listed = [
        " ".join(text.split())
        for text in page.get_by_role("region", name="What to do next").get_by_role("listitem").all_inner_texts()
    ]
    assert listed == [
        "causal_mask, 1.5 points to gain: The diagonal is missing. In the book: No looking ahead",
        "attention, 7 points to gain: This does not hold yet: c is so. In the book: From closeness to shares: softmax",
        "split_heads, 2 points to gain: Your code stops with an error: its message stands below. "
        "In the book: Several heads",
        "merge_heads, 2 points to gain: It is not written yet. In the book: Several heads",
    ]
    page.get_by_role("link", name="No looking ahead").first.click()
    assert page.get_by_role("heading", name="There").is_visible(), "the relative link leads into the built book"
    assert page.url.endswith(f"_build/html/book/{NAME}.html#no-looking-ahead")
    page.close()


def test_where_the_book_is_not_beside_it_feedback_says_the_sections_name(tmp_path: Path) -> None:
    text = feedback.page(report(), tmp_path)
    assert "“No looking ahead”" in text
    assert 'href="http' not in text
    assert ".html#" not in text


def test_feedback_leads_to_the_address_of_course_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "COURSE", tmp_path)
    (tmp_path / "course.toml").write_text('book = "https://example.org/b/"\n')
    (tmp_path / "solutions").symlink_to(ROOT / "solutions")
    assert f'href="https://example.org/b/book/{NAME}.html#no-looking-ahead"' in feedback.page(report())


def test_who_has_everything_is_told_that_nothing_is_left() -> None:
    whole = Report("ada", NAME, "0", report().exercises[-1:])
    assert "Nothing: every claim about every exercise holds." in feedback.page(whole)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_feedback_is_for_a_phone_and_for_a_screen_reader(browser: Browser, beside_the_book: Path, scheme: Any) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="requirements.txt has axe; it is not here"
    )
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(beside_the_book.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('main *')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)"
    assert page.evaluate(f"{wide}.map(e => e.tagName + e.className)") == [], "text is cut at the edge"
    found = axe.Axe().run(page)
    assert found.response["passes"], "it looked at nothing"
    assert not found.response["violations"], found.generate_report()
    headings = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert "test_" not in page.content()
    assert page.evaluate("document.scripts.length") == 0
    context.close()


# -- a GPU ------------------------------------------------------------------------------------------------------------


def test_a_model_that_stays_on_the_cpu_is_trained_there(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The device `meta` stands for a GPU: it knows where a tensor is, and computes nothing."""
    import torch
    from torch import nn

    class Masked(nn.Module):
        def __init__(self, follows: bool) -> None:
            super().__init__()
            self.tokens, self.follows = nn.Embedding(16, 8), follows

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x, n = self.tokens(ids), ids.shape[1]
            mask = torch.ones(n, n, dtype=torch.bool, device=x.device if self.follows else None).tril()
            return (x @ x.mT).masked_fill(~mask, -1e9).softmax(-1) @ x @ self.tokens.weight.T

    def batches(step: int) -> torch.Tensor:
        return torch.zeros(2, 9, dtype=torch.long)

    monkeypatch.setattr(train, "_best_device", lambda: "meta")
    monkeypatch.setattr(nn.Module, "cpu", lambda module: module)  # what is on meta has no numbers to bring back
    chosen = [
        train._where_it_runs(Masked(follows), batches, train.Settings(2, device=device), train.next_token).device
        for follows in (True, False)
        for device in ("auto", "cpu")
    ]
    assert chosen == ["auto", "cpu", "cpu", "cpu"]
    assert "somewhere it makes a tensor without saying device=x.device" in capsys.readouterr().out
    reference = notebook.load(ROOT / "solutions/06-gpt.py").GPT(16, 8, d_model=8, n_layers=1, n_heads=2)
    assert train._runs_on(torch.device("meta"), reference, batches(0), train.next_token)


def test_cells_that_train_take_the_gpu_or_say_that_they_do_not() -> None:
    """Where training may happen on a GPU, the model or what it gave is brought back for the cells below."""
    seen = 0
    for source in SOURCES:
        for one in notebook.cells(source):
            if one.role == "see" and "train.fit(" in one.source:
                seen += 1
                calls = [node for node in ast.walk(ast.parse(one.source)) if isinstance(node, ast.Call)]
                settings = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "train.Settings"]
                assert settings, source.stem
                on_cpu = all("device='cpu'" in setting for setting in settings)
                assert on_cpu or "model.cpu()" in one.source, f"{source.stem}: {one.id}"
    assert seen >= 7


# -- JupyterLab -------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """JupyterLab in a folder with one notebook whose first exercise is written."""
    document = released()
    cell(document, "causal_mask")["source"][:] = [
        "def causal_mask(n):\n    return torch.ones(n, n, dtype=torch.bool).tril()"
    ]
    (tmp_path / f"{NAME}.ipynb").write_text(json.dumps(document))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--no-browser"]
    options += ["--ServerApp.root_dir=.", "--ServerApp.allow_root=True", "--LabApp.news_url="]
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2).read()
                break
            except (OSError, http.client.HTTPException):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/{NAME}.ipynb"
    finally:
        server.terminate()
        server.wait(timeout=30)


@slow
def test_in_jupyterlab_a_notebook_opens_runs_and_speaks(lab: str, browser: Browser, tmp_path: Path) -> None:
    page: Page = browser.new_page()
    page.goto(lab, timeout=60_000)
    page.get_by_text("The causal mask is what forbids it").last.wait_for(timeout=60_000)
    page.screenshot(path=tmp_path / "opened.png")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.get_by_text("The visible checks of causal_mask pass.", exact=True).last.wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Save Notebook", exact=True).click()
    saved = tmp_path / f"{NAME}.ipynb"
    for _ in range(60):
        if "The visible checks of causal_mask pass.\\n" in saved.read_text(encoding="utf-8"):
            break
        page.wait_for_timeout(500)
    printed = "".join(cell(json.loads(saved.read_text(encoding="utf-8")), "check-causal_mask")["outputs"][0]["text"])
    assert printed == "The visible checks of causal_mask pass.\n"
    done = read(saved)
    assert [exercise for _, exercise, _ in done.cells if exercise] == list(assignments.load(NAME).points)
    assert not done.notices
    page.get_by_role("button", name="Validate").click()  # nbgrader's
    dialog = page.get_by_role("dialog").filter(has_text="attention is not written yet: replace line")
    dialog.wait_for(timeout=120_000)
    assert "Traceback" not in dialog.inner_text()
    page.screenshot(path=tmp_path / "validated.png")
    page.close()
