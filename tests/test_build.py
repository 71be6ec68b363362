"""solutions/ → nbgrader's source → notebooks/."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbgrader.api import Gradebook
from nbgrader.validator import Validator

from autograder.authoring.build import ANSWER_STUB, ROOT, STUB, build
from autograder.course import Course
from ichimon import notebook
from ichimon.notebook import NotebookError

NAMES = sorted(path.stem for path in (ROOT / "solutions").glob("*.py"))

SOURCE = '''\
# ---
# jupyter:
#   ichimon: {assignment: 90-tiny}
# ---

# %% [markdown]
# Two exercises. How far is it around?

# %% role="set-up"
import math

# %% exercise="double"
def double(x: float) -> float:
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% check="double" points=3
assert double(2) == 4, "double(2) is 4"

# %% see="double"
print(double(3))

# %% exercise="around"
def around(r: float) -> float:
    """A circle's length."""
    ### BEGIN SOLUTION
    return math.pi * double(r)
    ### END SOLUTION

# %% check="around" points=1.5
assert around(1) > 6, "a circle of radius 1 is longer than 6"

# %% stand_in="around"
def double(x: float) -> float:
    return x + x

# %% [markdown]
# Why is it not a square?

# %% [markdown] question="why" points=2
# Because every point is as far from the middle.
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course of one tiny chapter, built."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "solutions").mkdir()
    (folder / "solutions" / "90-tiny.py").write_text(SOURCE, encoding="utf-8")
    assert build(folder) == [released_path(folder)]
    return folder


@pytest.fixture
def fresh(root: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(root, tmp_path / "course"))


def released_path(root: Path, name: str = "90-tiny") -> Path:
    return root / "notebooks" / name / f"{name}.ipynb"


def released(root: Path) -> dict[str, Any]:
    return json.loads(released_path(root).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_is_what_its_source_builds(tmp_path: Path, name: str) -> None:
    (tmp_path / "solutions").mkdir()
    shutil.copy(ROOT / "solutions" / f"{name}.py", tmp_path / "solutions")
    course = Course(ROOT)
    points = "".join(f"{exercise} = {value}\n" for exercise, value in course.points(name).items())
    (tmp_path / "course.toml").write_text(f'language = "{course.settings.language}"\n[points."{name}"]\n{points}')
    if (ROOT / "locale").is_dir():
        shutil.copytree(ROOT / "locale", tmp_path / "locale")
    build(tmp_path)
    same = released_path(tmp_path, name).read_bytes() == released_path(ROOT, name).read_bytes()
    assert same, f"notebooks/{name} is out of date: run python -m autograder.authoring.build"


def test_every_committed_notebook_has_a_source() -> None:
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*/*.ipynb")) == NAMES


def test_building_again_changes_nothing_and_runs_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(fresh)  # the gradebook of a copy is another one
    monkeypatch.setattr("nbgrader.converters.GenerateAssignment.start", None)
    assert build(fresh) == []


def test_building_from_nothing_gives_the_same_bytes_and_no_diff(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere"
    shutil.copytree(root / "solutions", again / "solutions")
    build(again)
    assert released_path(again).read_bytes() == released_path(root).read_bytes()
    shutil.rmtree(again / "_build")
    assert build(again) == []


def test_a_notebook_that_somebody_edited_or_deleted_is_made_again(fresh: Path) -> None:
    before = released_path(fresh).read_bytes()
    released_path(fresh).write_bytes(before.replace(b"Two exercises", b"Three exercises"))
    assert build(fresh) == [released_path(fresh)]
    released_path(fresh).unlink()
    assert build(fresh) == [released_path(fresh)]
    assert released_path(fresh).read_bytes() == before


def test_a_changed_source_changes_only_the_cells_it_touches(fresh: Path) -> None:
    before = {cell["id"]: cell for cell in released(fresh)["cells"]}
    source = fresh / "solutions" / "90-tiny.py"
    source.write_text(SOURCE.replace("Twice x.", "Two times x."), encoding="utf-8")
    assert build(fresh, only=["90-tiny"]) == [released_path(fresh)]
    after = {cell["id"]: cell for cell in released(fresh)["cells"]}
    assert [cell_id for cell_id in after if after[cell_id] != before[cell_id]] == ["double"]


def test_the_released_notebook_shows_no_solution_no_stand_in_and_no_output(root: Path) -> None:
    text = released_path(root).read_text(encoding="utf-8")
    assert "SOLUTION" not in text
    assert "2 * x" not in text
    assert "x + x" not in text
    assert "as far from the middle" not in text
    code = [cell for cell in released(root)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "".join(next(cell for cell in released(root)["cells"] if cell["id"] == "why")["source"]) == ANSWER_STUB
    stubbed = next(cell for cell in code if cell["id"] == "double")
    assert "".join(stubbed["source"]) == f'def double(x: float) -> float:\n    """Twice x."""\n    {STUB}'


def test_the_released_notebook_is_valid_and_says_which_assignment_it_is(root: Path) -> None:
    nbformat.validate(nbformat.read(released_path(root), as_version=4))
    assert released(root)["metadata"] == {
        "ichimon": {"assignment": "90-tiny", "exercises": {"double": 3, "around": 1.5}},
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook.assignment(released_path(root)) == "90-tiny"


def test_source_and_released_notebook_have_the_same_cells_and_roles(root: Path) -> None:
    def known(path: Path) -> list[tuple[object, ...]]:
        cells = [cell for cell in notebook.cells(path) if cell.role not in ("stand-in", "bootstrap")]
        return [(cell.kind, cell.id, cell.role, cell.exercise, cell.points) for cell in cells]

    source = root / "solutions" / "90-tiny.py"
    assert known(source) == known(released_path(root))
    assert notebook.exercises(source) == notebook.exercises(released_path(root))


def test_only_checks_and_questions_carry_points_and_students_can_edit_only_their_cells(root: Path) -> None:
    marked = [cell["metadata"] for cell in released(root)["cells"] if "nbgrader" in cell["metadata"]]
    facts = {
        metadata["nbgrader"]["grade_id"]: (metadata["nbgrader"].get("points"), metadata.get("editable", True))
        for metadata in marked
    }
    assert facts == {
        "set-up": (None, False),
        "double": (None, True),
        "check-double": (3, False),
        "around": (None, True),
        "check-around": (1.5, False),
        "why": (2, True),
    }
    assert all(metadata["deletable"] is False for metadata in marked)


def test_the_gradebook_knows_the_assignment_and_its_points(root: Path) -> None:
    with Gradebook(f"sqlite:///{root / '_build/nbgrader/gradebook.db'}") as gradebook:
        found = gradebook.find_notebook("90-tiny", "90-tiny")
        assert {cell.name: cell.max_score for cell in found.grade_cells} == {
            "check-double": 3,
            "check-around": 1.5,
            "why": 2,
        }


def test_another_gradebook_is_told_too_and_again_if_it_was_deleted(fresh: Path) -> None:
    gradebook_path = fresh / "class.db"
    db_url = f"sqlite:///{gradebook_path}"
    for _ in range(2):
        assert build(fresh, db_url=db_url) == []
        with Gradebook(db_url) as gradebook:
            assert gradebook.find_assignment("90-tiny").max_score == 6.5
        gradebook_path.unlink()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_cells_that_appear_after_work_was_handed_in_are_refused_by_the_gradebook(fresh: Path) -> None:
    db_url = f"sqlite:///{fresh / 'class.db'}"
    build(fresh, db_url=db_url)
    with Gradebook(db_url) as gradebook:
        gradebook.add_student("student-01")
        gradebook.add_submission("90-tiny", "student-01")
    before = released_path(fresh).read_bytes()
    more = (
        SOURCE
        + '\n# %% exercise="one"\n### BEGIN SOLUTION\none = 1\n### END SOLUTION\n# %% check="one" points=1\none\n'
    )
    (fresh / "solutions" / "90-tiny.py").write_text(more, encoding="utf-8")
    with pytest.raises(NotebookError, match=r"Cannot add or remove cells .* submissions associated with it\.$"):
        build(fresh, db_url=db_url)
    assert released_path(fresh).read_bytes() == before


@pytest.mark.parametrize("solved", [True, False])
def test_stock_nbgrader_validates_the_visible_checks_without_a_plugin(root: Path, tmp_path: Path, solved: bool) -> None:
    path = root / "_build/nbgrader/source/90-tiny/90-tiny.ipynb" if solved else released_path(root)
    shutil.copy(path, tmp_path)
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    results = Validator().validate(str(tmp_path / path.name))
    failed = [failure["source"].partition("(")[0] for failure in results.get("failed", [])]
    assert failed == ([] if solved else ["assert double", "assert around", ANSWER_STUB])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{assignment: 90-tiny}", "{assignment: 91-tiny}", "its assignment is '91-tiny'"),
        ("#   ichimon: {assignment: 90-tiny}", "#   authors: []", "its assignment is None"),
        ("# jupyter:\n#   ichimon", "# ichimon", "its assignment is None"),
        ("points=1.5", "", "points"),
        ("def around(r: float)", "# %% see='around'\ndef around(r: float)", "90-tiny.py"),
    ],
)
def test_a_source_that_cannot_be_built_is_a_sentence_and_leaves_the_notebook(
    fresh: Path, old: str, new: str, says: str
) -> None:
    before = released_path(fresh).read_bytes()
    assert old in SOURCE
    (fresh / "solutions" / "90-tiny.py").write_text(SOURCE.replace(old, new), encoding="utf-8")
    with pytest.raises(NotebookError, match=says) as raised:
        build(fresh)
    assert "\n" not in str(raised.value)
    assert released_path(fresh).read_bytes() == before


def test_an_unknown_chapter_is_a_sentence_that_lists_the_known_ones(root: Path) -> None:
    with pytest.raises(NotebookError, match=r"no solutions/99-nothing\.py; the assignments are: 90-tiny\."):
        build(root, only=["99-nothing"])
