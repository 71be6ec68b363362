"""The student bundle: what is in it, that nothing of the answers is, and that a leak of any kind would be found."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from autograder.authoring import release
from autograder.authoring.release import ROOT, AnswersFound, ReleaseError, Search

BOOK = ROOT / "_build/html"
built = pytest.mark.skipif(not (BOOK / "index.html").is_file(), reason="the book is not built: make book")

ANSWER = "out.index_add_(0, to, (F.silu(gate) * up * share) @ down_e.T)"  # of chapter 13's reference
TEST = "test_a_position_sees_itself_and_the_past"


@pytest.fixture(scope="module")
def search() -> Search:
    return Search()


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def repository(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "An instructor")
    git(folder, "config", "user.email", "instructor@example.org")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = repository(tmp_path_factory.mktemp("release") / "students")
    release.release(folder)
    return folder


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course small enough to be released in a moment: one chapter, a book of one page."""
    root = tmp_path / "course"
    for name in ("LICENSE", "LICENSE-text", "requirements.txt", "solutions/02-self-attention.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    (root / "ichimon").mkdir()
    shutil.copyfile(ROOT / "ichimon/parts.py", root / "ichimon/parts.py")
    for name in ("autograder/authoring", "notebooks/02-self-attention"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "autograder/tests").mkdir()
    shutil.copyfile(
        ROOT / "autograder/tests/test_02_self_attention.py", root / "autograder/tests/test_02_self_attention.py"
    )
    (root / "_build/html").mkdir(parents=True)
    (root / "_build/html/index.html").write_text("<h1>One question</h1>")
    return root


@built
def test_the_bundle_has_what_a_student_needs_and_no_answer(bundle: Path, search: Search) -> None:
    for name in ("README.md", "requirements.txt", "pyproject.toml", "LICENSE", "book/index.html", "ichimon/check.py"):
        assert (bundle / name).is_file()
    released = {path.relative_to(ROOT) for path in ROOT.glob("notebooks/*/*.ipynb")}
    assert {path.relative_to(bundle) for path in bundle.glob("notebooks/*/*.ipynb")} == released
    top = {path.name for path in bundle.iterdir()} - {".git", release.MANIFEST}
    assert top == {
        "README.md",
        "requirements.txt",
        "pyproject.toml",
        "LICENSE",
        "LICENSE-text",
        "book",
        "ichimon",
        "notebooks",
    }
    assert release.leaks(bundle, search) == []
    assert release.leaks_of_history(bundle, search) == []


@built
def test_every_answer_would_be_found(search: Search) -> None:
    """Each whole solution, hidden test, mistake or alternative, put into a page, is found."""
    missed = []
    for secret in release.secrets():
        if len(release.tokens(secret.source)) >= 4 * secret.run and not list(search.text("a page", secret.source)):
            missed.append(secret.name)
    assert not missed


def page(text: str) -> bytes:
    return f"<html><body>{text}</body></html>".encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("page.html", page(f"<pre>{ANSWER}</pre>")),
        ("page.html", page(ANSWER.replace(" ", "</span> <span class='p'>").replace("*", "&#42;"))),
        ("page.html", page(f"<!-- {ANSWER} -->")),
        ("notes.md", ANSWER.replace(", ", ",\n      ").encode()),
        ("searchindex.js", json.dumps({"text": f"x\n{ANSWER}\ny"}).encode()),
        ("module.py", ANSWER.replace(" * ", "*").encode()),
        ("n.ipynb", json.dumps({"cells": [{"source": [ANSWER], "metadata": {}}], "metadata": {}}).encode()),
        ("n.ipynb", json.dumps({"cells": [], "metadata": {"answers": ANSWER}}).encode()),
        ("picture.png", b"\x89PNG\xff\xfe" + TEST.encode() + b"\x00"),
        ("notes.txt", f"They failed {TEST}.".encode()),
    ],
)
def test_an_answer_is_found_however_it_is_dressed(search: Search, name: str, data: bytes) -> None:
    assert list(search.file(name, data))


def test_a_text_that_says_nothing_is_free(search: Search) -> None:
    assert not list(
        search.file("page.html", page("A query asks, and a key answers: softmax(q · k / √d) says how loudly."))
    )


def test_metadata_that_nobody_asked_for_and_outputs_are_found(search: Search, tmp_path: Path) -> None:
    cell = {"id": "a", "cell_type": "code", "source": "", "metadata": {"solution": "x"}, "outputs": [{}]}
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}}))
    assert [leak.secret for leak in release.leaks(tmp_path, search)] == [
        "metadata in a that nobody asked for",
        "outputs in a",
    ]


def test_nothing_is_written_if_an_answer_is_in_the_book(course: Path, tmp_path: Path) -> None:
    (course / "_build/html/index.html").write_text(f"<code>{TEST}</code>")
    with pytest.raises(AnswersFound, match=r"book/index\.html holds the name of a hidden test: test_a_position"):
        release.release(tmp_path / "students", course)
    assert not (tmp_path / "students").exists()


def test_what_was_once_committed_is_public(course: Path, tmp_path: Path) -> None:
    folder = repository(tmp_path / "students")
    (folder / "notes.py").write_text((course / "solutions/02-self-attention.py").read_text())
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "By mistake")
    git(folder, "rm", "--quiet", "notes.py")
    git(folder, "commit", "--quiet", "--message", "Taken back")
    with pytest.raises(AnswersFound, match=r"git object \w+ \(notes\.py\) holds the solution of"):
        release.release(folder, course)
    assert not (folder / "notebooks").exists()


def test_the_next_release_takes_back_what_is_gone_and_touches_nothing_else(course: Path, tmp_path: Path) -> None:
    folder = repository(tmp_path / "students")
    (course / "_build/html/old.html").write_text("old")
    release.release(folder, course)
    (folder / "CODEOWNERS").write_text("* @instructor")
    (course / "_build/html/old.html").unlink()
    release.release(folder, course)
    assert not (folder / "book/old.html").exists()
    assert (folder / "CODEOWNERS").exists()
    assert git(folder, "status", "--porcelain") == "?? CODEOWNERS\n"
    assert len(git(folder, "log", "--oneline").splitlines()) == 2
    release.release(folder, course)
    assert len(git(folder, "log", "--oneline").splitlines()) == 2, "nothing changed, so nothing is committed"


def test_a_file_that_is_not_ours_is_never_overwritten(course: Path, tmp_path: Path) -> None:
    folder = tmp_path / "students"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    with pytest.raises(ReleaseError, match=r"already holds README\.md"):
        release.release(folder, course)
    assert [path.name for path in folder.iterdir()] == ["README.md"]


@pytest.mark.parametrize("line", ["../precious", "/etc/hostname"])
def test_a_manifest_leads_nowhere_else(course: Path, tmp_path: Path, line: str) -> None:
    folder = tmp_path / "students"
    folder.mkdir()
    (folder / release.MANIFEST).write_text(line + "\n")
    with pytest.raises(ReleaseError, match="is no file of a bundle"):
        release.release(folder, course)


def test_a_compressed_answer_is_no_file_of_a_bundle() -> None:
    """What is packed could hide an answer, so a bundle has nothing packed but fonts, pictures and weights."""
    packed = {".gz", ".zip", ".bz2", ".xz", ".whl", ".pkl", ".npz"}
    assert not [path for path in (BOOK if BOOK.is_dir() else ROOT / "ichimon").rglob("*") if path.suffix in packed]


def test_students_install_only_what_they_need() -> None:
    pins = release.requirements()
    names = {pin.partition("==")[0] for pin in pins}
    assert {"torch", "numpy", "matplotlib", "safetensors", "jupyterlab"} <= names
    assert not names & {"nbgrader", "pytest", "jupyter-book", "dask", "playwright", "pyseccomp"}
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(pin in pinned for pin in pins)
