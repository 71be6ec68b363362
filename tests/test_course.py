"""An instructor's own course: what is left out or counts otherwise, an own chapter; and what does not fit is said."""

from __future__ import annotations

import functools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autograder import assignment as assignments
from autograder.authoring import new_chapter, release, verify
from autograder.authoring.build import build
from autograder.authoring.new_chapter import NewChapterError
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
    # A memory of its own: what other modules of tests have loaded stays the same object.
    monkeypatch.setattr(assignments, "load", functools.cache(assignments.load.__wrapped__))
    return tmp_path


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
        ('source = "https://example.org/ichimon"', "cannot be understood"),
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


# -- what is left out ------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_not_released_and_stays_secret(root: Path, tmp_path: Path) -> None:
    (root / "course.toml").write_text(CHANGED)
    for name in (FIRST, SECOND):
        shutil.copytree(ROOT / "notebooks" / name, root / "notebooks" / name)
    for name in ("ichimon", "autograder/authoring/student_README.md", "LICENSE", "LICENSE-text", "requirements.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, root / name)
    (root / "_build/html").mkdir(parents=True)
    stage = tmp_path / "stage"
    stage.mkdir()
    release._stage(stage, root)
    assert [path.stem for path in sorted(stage.glob("notebooks/*/*.ipynb"))] == [SECOND]
    assert any(FIRST in secret.name for secret in release.secrets(root)), (
        "what is not taught now may be taught next year"
    )


def test_what_is_left_out_is_no_stray(root: Path) -> None:
    (root / "course.toml").write_text(CHANGED)
    assert [problem for problem in verify.strays() if FIRST in problem] == []
    shutil.copytree(ROOT / "notebooks" / FIRST, root / "notebooks/77-gone")
    (root / "notebooks/77-gone" / f"{FIRST}.ipynb").rename(root / "notebooks/77-gone/77-gone.ipynb")
    (root / "book").mkdir()
    (root / "book/77-gone.md").touch()
    said = list(verify.strays())
    assert "notebooks/77-gone/77-gone.ipynb belongs to no file in solutions/: delete it." in said
    assert "book/77-gone.md is not in _toc.yml, so no reader finds it." in said


def test_the_pages_of_what_is_left_out_say_so() -> None:
    extension = runpy.run_path(str(ROOT / "book/_ext/ichimon_book.py"))
    app = SimpleNamespace(config=SimpleNamespace(ichimon_left_out=[SECOND]))
    for docname, file in {f"book/{SECOND}": ".md", f"notebooks/{SECOND}/{SECOND}": ".ipynb"}.items():
        source = [(ROOT / f"{docname}{file}").read_text(encoding="utf-8")]
        before = source[0]
        extension["say_what_is_left_out"](app, docname, source)
        text, plain = source[0], before
        if file == ".ipynb":
            text, plain = ("".join("".join(c["source"]) for c in json.loads(t)["cells"]) for t in (text, plain))
        assert text.count(extension["LEFT_OUT"]) == 1
        assert text.index("# ") < text.index(extension["LEFT_OUT"]) < 2000, "below the title"
        assert len(text) < len(plain) + 300
    for other in (f"book/{FIRST}", "book/index"):
        source = ["# A title"]
        extension["say_what_is_left_out"](app, other, source)
        assert source == ["# A title"]


def test_the_list_of_chapters_says_what_is_left_out() -> None:
    extension = runpy.run_path(str(ROOT / "book/_ext/ichimon_book.py"))
    page = SimpleNamespace(config=SimpleNamespace(ichimon_left_out=[SECOND]))
    assert extension["Chapters"].notebook(page, {"page": SECOND}) == "not in this course"


# -- an exercise that disagrees with the table, and a chapter of one's own -------------------------------------------


def test_a_table_that_tells_other_points_is_named(root: Path) -> None:
    source = root / f"solutions/{SECOND}.py"
    text = source.read_text()
    source.write_text(text.replace("| `causal_mask` | ●○○ | 5 | 3 |", "| `causal_mask` | ●○○ | 5 | 4 |"))
    (told,) = verify._table_problems(assignments.load(SECOND))
    assert told == f"causal_mask counts 3 points, and the table of {SECOND} says 4."
    assignments.load.cache_clear()
    source.write_text(text.replace("# | `causal_mask` | ●○○ | 5 | 3 |\n", ""))
    (told,) = verify._table_problems(assignments.load(SECOND))
    assert told == f"causal_mask is missing from the table at the beginning of {SECOND}."


OWN = "91-pooling"
ANOTHER = {  # a second exercise, which uses the first, as docs/course.md says
    f"solutions/{OWN}.py": '''
# %% exercise="gap"
def gap(x: Tensor, mask: Tensor) -> Tensor:
    """How far the mean of the rows in the mask is from that of the others."""
    ### BEGIN SOLUTION
    return mean_pool(x, mask) - mean_pool(x, ~mask)
    ### END SOLUTION

# %% check="gap" points=1
assert gap(torch.tensor([[1.0], [3.0]]), torch.tensor([True, False])).tolist() == [-2], "1 is 2 below 3."

# %% stand_in="gap"
import torch

def mean_pool(x, mask):
    return torch.stack([row for row, kept in zip(x, mask) if kept] or [0 * x[0]]).mean(0)
''',
    f"autograder/tests/test_{OWN.replace('-', '_')}.py": '''

@pytest.mark.exercise("gap")
def test_the_gap_is_between_the_two_means(student):
    """The mean of the others is taken from the mean of those in the mask."""
    x, mask = normal(6, 2, seed=3), torch.arange(6) < 4
    assert_close(student.gap(x, mask), x[:4].mean(0) - x[4:].mean(0))
''',
    f"autograder/mistakes/{OWN}.py": "".join(
        f"""
# %% gap: {title}
# caught by: test_the_gap_is_between_the_two_means
# says: {title.capitalize()}.
def gap(x, mask):
    return {code}
"""
        for title, code in {
            "the wrong way round": "mean_pool(x, ~mask) - mean_pool(x, mask)",
            "only one mean": "mean_pool(x, mask)",
            "from the mean of all": "mean_pool(x, mask) - x.mean(0)",
        }.items()
    ),
    f"autograder/alternatives/{OWN}.py": """
# %% gap: by hand
def gap(x, mask):
    return x[mask].mean(0) - x[~mask].mean(0)
""",
}
# What a student hands in: a known mistake in the first exercise, and the second one right, which uses it.
STEPS = """
import json, sys
from pathlib import Path
from autograder.authoring import build, verify
from autograder import cli
name = sys.argv[1]
assert [path.stem for path in build.build(only=[name])] == [name]
found = verify.verify(name, workers=1, most=8)
assert found.problems == (), found.problems
assert [row.exercise for row in found.rows] == ["mean_pool", "gap"]
document = json.loads(Path(f"notebooks/{name}/{name}.ipynb").read_text())
answers = {"mean_pool": "def mean_pool(x, mask):\\n    return x.mean(0)",
           "gap": "def gap(x, mask):\\n    return mean_pool(x, mask) - mean_pool(x, ~mask)"}
for cell in document["cells"]:
    cell["source"] = answers.get(cell["id"], cell["source"])
Path("ada.ipynb").write_text(json.dumps(document))
sys.argv = ["autograder", "grade", "ada.ipynb", "--results", "results.sqlite", "--workers", "1", "--json"]
cli.main()
"""


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A copy of the course with nothing in it but what `make new-chapter` writes, and one exercise more."""
    ignored = shutil.ignore_patterns("__pycache__", "test_[0-9]*", "[0-9][0-9]-*", "trained")
    for name in ("autograder", "ichimon"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("nbgrader_config.py", "requirements.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    written = new_chapter.write(OWN, tmp_path)
    assert set(written) == {*ANOTHER, f"book/{OWN}.md"}
    for file, more in ANOTHER.items():
        text = (tmp_path / file).read_text(encoding="utf-8") + "\n" + more
        row = "# | `mean_pool` | ●○○ | 10 | 2 |\n"
        (tmp_path / file).write_text(text.replace(row, row + "# | `gap` | ●○○ | 5 | 1 |\n"), encoding="utf-8")
    return tmp_path


def test_a_chapter_of_ones_own_is_built_verified_and_graded(ours: Path) -> None:
    """In a process of its own, because the copy has its own `autograder`."""
    environment = {**os.environ, "PYTHONPATH": str(ours)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, OWN], cwd=ours, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[0])
    assert [result["exercise"] for result in report["exercises"]] == ["mean_pool", "gap"]
    pool, gap = report["exercises"]
    assert "All rows are averaged: leave out those where the mask is False." in {
        test["mistake"] for test in pool["tests"]
    }
    assert {test["outcome"] for test in gap["tests"]} == {"passed"}, "the stand-in keeps the mistake to its exercise"
    assert report["points"] == 1
    assert report["seconds"].keys() == {"", "mean_pool", "gap"}


@pytest.mark.parametrize("name", ["pooling", "9-pooling", "91-Pooling", "91-", "91-../x", "-"])
def test_what_is_no_name_of_a_chapter_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(NewChapterError, match="is no name for a chapter"):
        new_chapter.write(name, tmp_path)


def test_a_new_chapter_is_written_over_nothing(ours: Path) -> None:
    before = {path: path.read_bytes() for path in ours.rglob("*") if path.is_file()}
    for name in (OWN, "91-another-one"):
        with pytest.raises(NewChapterError, match="Take another number"):
            new_chapter.write(name, ours)
    assert {path: path.read_bytes() for path in ours.rglob("*") if path.is_file()} == before


def test_a_part_of_ones_own_in_the_contents_survives_our_next_version(tmp_path: Path) -> None:
    """As git merges it: ours changes a part above, theirs adds one at the end."""
    before = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    own = "  - caption: Ours\n    chapters:\n      - file: book/90-mean-pooling\n"
    versions = {
        "theirs": before.rstrip("\n") + "\n" + own,
        "base": before,
        "ours": before.replace("title: 02 · Self-attention", "title: 02 · Attention").replace(
            "      - file: docs/cluster\n", ""
        ),
    }
    for name, text in versions.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["git", "merge-file", "-p", *versions],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, "a conflict"
    assert done.stdout.endswith(own)
    assert "title: 02 · Attention" in done.stdout
