"""Whatever is handed in or typed: one sentence, an exit code that is not 0, nothing lost, and the rest graded."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autograder.assignment import names
from autograder.results import Results

if TYPE_CHECKING:
    from conftest import Command, Ran

ROOT = Path(__file__).resolve().parents[1]
NAME = "02-self-attention"
GOOD = ROOT / "examples" / "class" / "student-01" / NAME / f"{NAME}.ipynb"
MARKS = json.loads((ROOT / "examples" / "class" / "marks.json").read_text(encoding="utf-8"))["students"]


def notebook(**changes: Any) -> dict[str, Any]:
    return {**json.loads(GOOD.read_text(encoding="utf-8")), **changes}


def cell(**changes: Any) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "x",
        "metadata": {},
        "outputs": [],
        "source": "",
        **changes,
    }


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content, encoding="utf-8")


def saved(content: Any) -> Callable[[Path], object]:
    return text(json.dumps(content))


def sparse(path: Path) -> None:
    """50 MB that take no room on the disk."""
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(50 << 20)


def surrogates() -> Any:
    """A perfect notebook with half a character, which no file can hold, in a string and in a comment."""
    changed = notebook()
    changed["cells"].insert(2, cell(source=["half = '\ud800'  # \udfff\n", "print(half)"]))
    return changed


# name of the student's folder: how the file is made, and what the sentence says
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "json": (text('{"cells": [{"cell_type": "co'), "is damaged (its JSON is broken in line 1)"),
    "nbformat-3": (saved({"nbformat": 3, "worksheets": [], "metadata": {}}), "notebook format 3"),
    "50-mb": (sparse, "is larger than 20 MB"),
    "binary": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), "is not text in UTF-8"),
    "not-utf-8": (lambda path: path.write_bytes(GOOD.read_bytes() + b"\xff"), "is not text in UTF-8"),
    "no-bytes": (text(""), "is empty"),
    "nan": (text(json.dumps(notebook(extra=float("nan")))), "holds data that no notebook has"),
    "nested": (text("[" * 200_000), "holds data that no notebook has"),
    "huge-number": (text('{"nbformat": ' + "9" * 10_000 + "}"), "holds data that no notebook has"),
    "list": (saved([1, 2]), "is JSON but not a notebook"),
    "cells-a-dict": (saved({"nbformat": 4, "cells": {}}), "has no cells"),
    "source-a-number": (
        saved(notebook(cells=[cell(source=7)])),
        "cell 1 of 02-self-attention.ipynb has no readable text",
    ),
    "cell-a-string": (saved(notebook(cells=["x = 1"])), "is neither code nor text"),
    "1001-cells": (saved(notebook(cells=notebook()["cells"] + [cell(source="1")] * 1001)), "at most 1,000 and"),
    "long-code": (
        saved(notebook(cells=[*notebook()["cells"], cell(source="#" * 300_000)])),
        "at most 1,000 and",
    ),
    "symlink": (lambda path: path.symlink_to(GOOD), "is a symbolic link"),
    "broken-symlink": (lambda path: path.symlink_to("/nowhere"), "is a symbolic link"),
    "fifo": (os.mkfifo, "is not an ordinary file"),
    "folder": (os.mkdir, "is not an ordinary file"),
    "\x1b[31m\x07bell": (lambda path: shutil.copy(GOOD, path), "cannot be a student's name"),
    "two\nlines": (lambda path: shutil.copy(GOOD, path), "cannot be a student's name"),
    "good\u200b": (lambda path: shutil.copy(GOOD, path), "cannot be a student's name"),
    "a" * 200: (lambda path: shutil.copy(GOOD, path), "cannot be a student's name"),
    os.fsdecode(b"\xff\xfe"): (lambda path: shutil.copy(GOOD, path), "cannot be a student's name"),
}
FULL = MARKS["student-01"]["marks"]
# what is odd and can be graded: how the file is made, and its marks
ODD: dict[str, tuple[Callable[[Path], object], dict[str, float]]] = {
    "good": (lambda path: shutil.copy(GOOD, path), FULL),
    "<img src=x onerror=alert(1)>": (lambda path: shutil.copy(GOOD, path), FULL),
    "[red]&amp; ½ 山田　太郎": (lambda path: shutil.copy(GOOD, path), FULL),
    "-rf": (lambda path: shutil.copy(GOOD, path), FULL),
    "a" * 100: (lambda path: shutil.copy(GOOD, path), FULL),
    "surrogates": (saved(surrogates()), FULL),
    "no-cells": (saved(notebook(cells=[])), dict.fromkeys(FULL, 0)),
    "no-metadata": (saved(notebook(metadata=None)), FULL),
}


def hand_in(folder: Path, student: str, make: Callable[[Path], object]) -> Path:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    make(path)
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results") / "results.sqlite"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, results: Path, command: Command) -> Ran:
    """All of them graded at once, and a path that does not exist beside them."""
    folder = tmp_path_factory.mktemp("submitted")
    for student, (make, _) in {**BAD, **ODD}.items():
        hand_in(folder, student, make)
    for scratch in ("Untitled.ipynb", f"{NAME}-Copy1.ipynb", f".ipynb_checkpoints/{NAME}-checkpoint.ipynb"):
        path = folder / "good" / NAME / scratch
        path.parent.mkdir(exist_ok=True)
        path.write_text("scratch paper")
    return command("grade", folder, folder / "missing.ipynb", "--results", results, "--workers", 1)


def test_the_command_says_that_not_all_is_graded(ran: Ran) -> None:
    assert ran.code == 1
    assert f"{len(ODD)} submissions in " in ran.err
    assert f"{len(BAD)} could not be graded." in ran.err
    assert len(ran.sentences) == len(BAD) + 1, "one each, and one for the file that does not exist"
    assert "Traceback" not in ran.err + ran.out


@pytest.mark.parametrize("student", BAD)
def test_a_bad_file_costs_one_sentence(student: str, ran: Ran) -> None:
    sentence = BAD[student][1]
    said = [line for line in ran.sentences if sentence in line]
    assert len(said) == sum(other == sentence for _, other in BAD.values())
    if student.isprintable() and len(student) <= 40:
        assert [line for line in said if line.startswith(f"not graded  {student}: ")]


def test_a_missing_file_is_named_beside_the_rest(ran: Ran) -> None:
    assert [line for line in ran.sentences if line.endswith("missing.ipynb does not exist.")]


@pytest.mark.parametrize("student", ODD)
def test_the_rest_of_the_class_gets_its_marks(student: str, ran: Ran, results: Path) -> None:
    with Results(results) as stored:
        report = stored.report(student, NAME)
    assert report is not None
    assert {exercise.exercise: exercise.points for exercise in report.exercises} == ODD[student][1]


def test_nothing_hostile_reaches_the_terminal(ran: Ran) -> None:
    printed = ran.out + ran.err
    assert not [c for c in printed if not c.isprintable() and c not in "\n\u3000"]
    assert "<img src=x onerror=alert(1)>" in printed
    assert "[red]" in printed


def test_nobody_is_graded_twice_or_under_a_name_like_theirs(ran: Ran, results: Path) -> None:
    with Results(results) as stored:
        assert sorted(report.student for report in stored.reports()) == sorted(ODD)


def test_odd_names_have_pages_in_which_they_are_only_text(
    ran: Ran, results: Path, command: Command, tmp_path: Path
) -> None:
    assert command("feedback", "--results", results, "--output", tmp_path / "pages").code == 0
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "pages").rglob("*.html")]
    assert len(pages) == len(ODD) + 1
    assert not [page for page in pages if "<img src=x" in page]
    assert [page for page in pages if "&lt;img src=x" in page]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.ipynb"], "nowhere.ipynb does not exist."),
        (["."], ". holds no notebook. Expected <student>/<assignment>/<notebook>.ipynb"),
        (["x" * 5000], "could not be read"),
        ([GOOD, "--assignment", "99-nothing"], f"There is no assignment '99-nothing'. There is: {', '.join(names())}."),
        ([GOOD, "--results", "noise.sqlite"], "noise.sqlite is not a results file. Give another --results."),
        ([GOOD, "--results", "other.sqlite"], "other.sqlite is a database of something else"),
        ([GOOD, "--results", "."], "cannot be used for results"),
        ([GOOD, "--results", "/proc/results.sqlite"], "/proc/results.sqlite cannot be used for results"),
        ([GOOD, "--results", "/proc/new/results.sqlite"], "/proc/new/results.sqlite cannot be used for results"),
        ([GOOD, "--results", "noise.sqlite/results.sqlite"], "cannot be used for results"),
        ([GOOD, "--results", "/dev/full"], "/dev/full"),
        ([GOOD, "--workers", "0"], "--workers"),
        ([], "Missing argument"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_changes_nothing(
    arguments: list[object], sentence: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("noise.sqlite").write_bytes(random.Random(0).randbytes(4096))
    with sqlite3.connect("other.sqlite") as other:
        other.execute("CREATE TABLE marks (student, points)")
    other.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ran = command("grade", *arguments)
    assert ran.code == 2
    assert sentence in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before} == before


def test_a_notebook_of_no_assignment_we_know_is_told_so(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "penguins.ipynb"
    shutil.copy(ROOT / "examples" / "class" / "student-13" / NAME / f"{NAME}.ipynb", path)
    ran = command("grade", path, "--results", tmp_path / "results.sqlite")
    assert ran.code == 1
    (sentence,) = ran.sentences
    assert f"neither its contents nor its name say which assignment it is ({', '.join(names())})" in sentence


def test_two_files_of_one_student_leave_the_choice_to_a_person(command: Command, tmp_path: Path) -> None:
    for name in ("a.ipynb", "b.ipynb"):
        path = tmp_path / "submitted" / "ada" / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GOOD, path)
    ran = command("grade", tmp_path / "submitted", "--results", tmp_path / "results.sqlite")
    assert ran.code == 1
    assert [
        sentence.endswith("one of 2 files of ada for 02-self-attention: keep one of them.")
        for sentence in ran.sentences
    ] == [
        True,
        True,
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_for_results_is_a_sentence(command: Command, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ran = command("grade", GOOD, "--results", tmp_path / "results.sqlite")
    tmp_path.chmod(0o700)
    assert ran.code == 2
    assert "cannot be used for results" in ran.err


def test_a_folder_whose_name_is_no_text_above_the_class_disturbs_nothing(command: Command, tmp_path: Path) -> None:
    hand_in(tmp_path / os.fsdecode(b"caf\xe9"), "ada", saved(notebook(cells=[])))
    ran = command("grade", tmp_path, "--results", tmp_path / "results.sqlite")
    assert ran.code == 0
    assert "\nada " in ran.out


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE verdicts SET result = '{}'", "holds results that this version cannot read. Give another --results."),
        ("DROP TABLE verdicts", "There are no results in"),
    ],
)
def test_damaged_results_are_told_in_a_sentence(
    damage: str, sentence: str, command: Command, tmp_path: Path, results: Path, ran: Ran
) -> None:
    copy = shutil.copy(results, tmp_path / "results.sqlite")
    with sqlite3.connect(copy) as db:
        db.execute(damage)
    db.close()
    shown = command("show", "--results", copy)
    assert (shown.code, shown.out) == (2, "")
    assert sentence in shown.err


def test_results_that_can_no_longer_be_written_lose_nothing(
    command: Command, tmp_path: Path, results: Path, ran: Ran
) -> None:
    copy = shutil.copy(results, tmp_path / "results.sqlite")
    with sqlite3.connect(copy) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON submissions BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        before = db.execute("SELECT count(*) FROM verdicts").fetchone()
    refused = command("grade", GOOD, "--results", copy)
    assert refused.code == 2
    assert "cannot be written (disk is full). Nothing graded so far is lost." in refused.err
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT count(*) FROM verdicts").fetchone() == before
    db.close()
