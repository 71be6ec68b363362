"""course.toml: what an instructor leaves out or counts otherwise, everywhere at once; and what does not fit is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from autograder import assignment as assignments
from autograder.authoring.build import build
from autograder.course import Course, CourseError
from ichimon import notebook

ROOT = assignments.COURSE
FIRST, SECOND = "00-warm-up", "02-self-attention"
CHANGED = f'leave_out = ["{FIRST}"]\n[points."{SECOND}"]\ncausal_mask = 1.5\nattention = 8\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "solutions").mkdir()
    for name in (FIRST, SECOND):
        shutil.copyfile(ROOT / f"solutions/{name}.py", tmp_path / f"solutions/{name}.py")
    monkeypatch.setattr(assignments, "SOLUTIONS", tmp_path / "solutions")
    assignments.load.cache_clear()
    yield tmp_path
    assignments.load.cache_clear()


def test_without_a_file_nothing_is_changed(root: Path) -> None:
    assert assignments.names() == [FIRST, SECOND]
    assert Course(root).cells(root / f"solutions/{SECOND}.py") == notebook.cells(root / f"solutions/{SECOND}.py")


def test_marks_and_notebooks_follow(root: Path) -> None:
    before = assignments.load(SECOND).tests_sha
    assignments.load.cache_clear()
    (root / "course.toml").write_text(CHANGED)
    assert assignments.names() == [SECOND]
    after = assignments.load(SECOND)
    assert dict(after.points) == {**after.points, "causal_mask": 1.5, "attention": 8}
    moved = {exercise for exercise, sha in after.tests_sha.items() if sha != before[exercise]}
    assert moved == {"causal_mask", "attention"}, "only these are graded again"
    (released,) = build(root)
    assert released.stem == SECOND
    assert notebook.exercises(released)["causal_mask"] == 1.5
    text = "".join("".join(cell["source"]) for cell in json.loads(released.read_text())["cells"])
    row = next(line for line in text.splitlines() if line.startswith("| `causal_mask`"))
    assert row.endswith("| 1.5 |"), "the table in the prompt says the same"
    assert build(root) == []
    (root / "course.toml").write_text(CHANGED.replace("1.5", "2"))
    assert build(root) == [released], "a notebook that disagrees is built anew"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("leave_out = 3", "cannot be understood"),
        ("leave_out = [", "cannot be understood"),
        ("left_out = []", "cannot be understood"),
        ('leave_out = ["77-nothing"]', "names 77-nothing; the chapters are 00-warm-up, 02-self-attention"),
        ('course_id = "../another"', "cannot be understood"),
        (f'[points."{SECOND}"]\nsoftmax = 1', "has no exercise softmax; it has causal_mask"),
        (f'[points."{SECOND}"]\ncausal_mask = -1', "are not between 0 and 1,000"),
        (f'[points."{SECOND}"]\ncausal_mask = "two"', "cannot be understood"),
    ],
)
def test_what_does_not_fit_is_said(root: Path, text: str, sentence: str) -> None:
    (root / "course.toml").write_text(text)
    with pytest.raises(CourseError, match=sentence):
        assignments.names()


def test_every_prompts_table_says_the_points_that_count() -> None:
    """So that a change of them finds its row."""
    for source in Course(ROOT).sources:
        text = "\n".join(cell.source for cell in notebook.cells(source) if cell.kind == "markdown")
        for exercise, points in notebook.exercises(source).items():
            rows = [line for line in text.splitlines() if line.startswith(f"| `{exercise}`")]
            assert any(row.endswith(f"| {points:g} |") for row in rows), f"{source.stem}: {exercise}"
