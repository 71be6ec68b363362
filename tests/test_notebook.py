"""Reading notebooks, running them, and `python -m ichimon check`."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pickle
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ichimon import notebook
from ichimon.__main__ import app
from ichimon.notebook import Cell, NotebookError

SOURCE = '''\
# ---
# jupyter:
#   ichimon: {assignment: 90-tiny}
#   kernelspec: {display_name: Python 3 (ipykernel), language: python, name: python3}
# ---

# %% [markdown]
# Two exercises.

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
# cat the results
print(double(3))

# %% exercise="area"
def area(r: float) -> float:
    """A circle's area."""
    ### BEGIN SOLUTION
    return math.pi * r * double(r) / 2
    ### END SOLUTION

# %% check="area" points=1.5
assert area(1) > 3
assert area(1) < 4

# %% stand_in="area"
def double(x: float) -> float:
    return x + x
'''


def write_source(folder: Path, text: str = SOURCE) -> Path:
    path = folder / "90-tiny.py"
    path.write_text(text, encoding="utf-8")
    return path


def code(source: str | list[str], cell_id: str = "", **nbgrader: Any) -> dict[str, Any]:
    metadata = {"nbgrader": {"grade_id": cell_id, **nbgrader}} if nbgrader else {}
    return {"cell_type": "code", "id": cell_id, "source": source, "metadata": metadata, "outputs": []}


SET_UP = code("import math", "set-up", grade=False, solution=False, locked=True)
DOUBLE = code("def double(x):\n    return 2 * x", "double", grade=False, solution=True)
CHECK_DOUBLE = code("assert double(2) == 4, 'double(2) is 4'", "check-double", grade=True, solution=False, points=3)
AREA = code("def area(r):\n    return math.pi * r * double(r) / 2", "area", grade=False, solution=True)
CHECK_AREA = code("assert area(1) > 3\nassert area(1) < 4", "check-area", grade=True, solution=False, points=1.5)


def write(folder: Path, *cells: dict[str, Any], name: str = "90-tiny.ipynb", **metadata: Any) -> Path:
    path = folder / name
    document = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": list(cells)}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def answered(folder: Path, double: str = DOUBLE["source"], area: str = AREA["source"], *more: dict[str, Any]) -> Path:
    cells = [SET_UP, {**DOUBLE, "source": double}, CHECK_DOUBLE, {**AREA, "source": area}, CHECK_AREA, *more]
    return write(folder, *cells)


# Reading


def test_reading_a_notebook_imports_no_jupyter_and_no_torch() -> None:
    program = (
        "import sys, ichimon.notebook; print(sorted({'jupytext', 'nbformat', 'IPython', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_a_source_gives_cells_with_roles_exercises_and_points(tmp_path: Path) -> None:
    found = notebook.cells(write_source(tmp_path))
    assert [(cell.id, cell.role, cell.exercise, cell.points) for cell in found[1:]] == [
        ("set-up", "set-up", "", 0),
        ("double", "solution", "double", 0),
        ("check-double", "check", "double", 3),
        ("see-double", "see", "double", 0),
        ("area", "solution", "area", 0),
        ("check-area", "check", "area", 1.5),
        ("stand-in-area", "stand-in", "area", 0),
    ]
    assert found[0] == Cell("markdown", "Two exercises.", found[0].id, "other")
    assert notebook.assignment(tmp_path / "90-tiny.py") == "90-tiny"


def test_one_stand_in_may_serve_several_exercises(tmp_path: Path) -> None:
    path = tmp_path / "90-tiny.py"
    path.write_text(SOURCE.replace('stand_in="area"', 'stand_in="double, area"'), encoding="utf-8")
    found = [cell for cell in notebook.cells(path) if cell.role == "stand-in"]
    assert [(cell.exercise, cell.id) for cell in found] == [("double", "stand-in-double"), ("area", "stand-in-area")]
    assert found[0].source == found[1].source


def test_a_comment_that_looks_like_a_shell_command_stays_a_comment(tmp_path: Path) -> None:
    see = next(cell for cell in notebook.cells(write_source(tmp_path)) if cell.role == "see")
    assert see.source.startswith("# cat the results")


def test_equal_texts_get_different_ids_that_do_not_depend_on_other_cells(tmp_path: Path) -> None:
    twice = SOURCE + "\n# %% [markdown]\n# Well done.\n\n# %% [markdown]\n# Well done.\n"
    first = notebook.cells(write_source(tmp_path, twice))
    second = notebook.cells(write_source(tmp_path, twice.replace("Two exercises.", "A new introduction.")))
    assert first[-1].id != first[-2].id
    assert [cell.id for cell in first[1:]] == [cell.id for cell in second[1:]]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('exercise="area"', 'exersise="area"', "'exersise'"),
        ('exercise="area"', "exercise=area", "quote its values"),
        ('exercise="area"', 'The area exercise="area"', "'title'"),
        ('exercise="area"', 'exercise="a b"', "not a name in Python"),
        ('exercise="area"', 'exercise="double"', "double is there twice"),
        ('check="area" points=1.5', 'check="double" points=1', "check-double is there twice"),
        ('check="area" points=1.5', 'check="are" points=1', "no such exercise"),
        ('check="area" points=1.5', 'see="area"', "exercise area has no cell"),
        ('check="area" points=1.5', 'check="area"', "points"),
        ('check="area" points=1.5', 'check="area" points=-1', "points"),
        ('check="area" points=1.5', 'check="area" points="1"', "points"),
        ('see="double"', 'see="double" points=1', "points"),
        ('see="double"', "", "exactly one of"),
        ('see="double"', 'see="double" check="double"', "exactly one of"),
        ('stand_in="area"', 'stand_in="volume"', "not there"),
        ('role="set-up"', 'role="setup"', "'setup'"),
        ('role="set-up"', 'see="double"', "set-up"),
        ("[markdown]", '[markdown] see="double"', "markdown cell has no see"),
        ("[markdown]", '[markdown] question="why"', "a question has points"),
        ("[markdown]", '[markdown] question="a b" points=1', "no name for a question"),
        ('see="double"', 'question="why" points=1', "exactly one of"),
        ("    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION", "    return 2 * x", "no ### BEGIN SOLUTION"),
        ("    return 2 * x\n    ### END SOLUTION", "    return 2 * x", "needs one ### END SOLUTION"),
        ("print(double(3))", "### BEGIN SOLUTION\n1\n### END SOLUTION", "only an exercise's cell"),
        ("assert area(1) > 3", "### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS", "autograder/tests"),
        ("{assignment", "{{assignment", "YAML"),
    ],
)
def test_an_authors_slip_is_a_sentence_that_names_it(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in SOURCE
    with pytest.raises(NotebookError) as raised:
        notebook.cells(write_source(tmp_path, SOURCE.replace(old, new, 1)))
    assert says in str(raised.value)
    assert str(raised.value).startswith("90-tiny.py")


def test_a_cells_source_may_be_a_list_of_lines_and_its_metadata_anything(tmp_path: Path) -> None:
    odd = [{**code(["a = 1\n", "b = 2"], "x"), "metadata": metadata} for metadata in (None, 3, [], {"nbgrader": "?"})]
    found = notebook.cells(write(tmp_path, *odd))
    assert found == [Cell("code", "a = 1\nb = 2", "x", "other")] * 4


@pytest.mark.parametrize("points", [None, True, -1, 1e400, "3", [3], 10**400])
def test_points_that_are_no_number_of_points_are_none(tmp_path: Path, points: Any) -> None:
    path = write(tmp_path, code("assert 1", "check-double", grade=True, solution=False, points=points))
    if isinstance(points, float):  # JSON spells infinity as a number too large
        path.write_text(path.read_text().replace("Infinity", "1e400"))
    assert notebook.cells(path)[0].points == 0


def test_cells_are_known_by_their_ids_where_an_editor_dropped_the_metadata(tmp_path: Path) -> None:
    bare = [{**cell, "metadata": {}} for cell in (SET_UP, DOUBLE, CHECK_DOUBLE)]
    bare += [code("plot()", "see-double-2"), code("helper = 1", "helper")]
    path = write(tmp_path, *bare, ichimon={"assignment": "90-tiny", "exercises": {"double": 3}})
    assert [(cell.role, cell.exercise, cell.points) for cell in notebook.cells(path)] == [
        ("set-up", "", 0),
        ("solution", "double", 0),
        ("check", "double", 3),
        ("see", "double", 0),
        ("other", "", 0),
    ]


def test_a_see_cell_is_known_by_our_metadata_where_an_editor_dropped_the_ids(tmp_path: Path) -> None:
    cell = {**code("plot()", "see-double"), "metadata": {"ichimon": {"see": "double"}}}
    del cell["id"]
    assert notebook.cells(write(tmp_path, cell)) == [Cell("code", "plot()", "see-double", "see", "double")]


def test_the_exercises_of_a_notebook_are_known_also_where_a_check_was_deleted(tmp_path: Path) -> None:
    path = write(tmp_path, SET_UP, DOUBLE, CHECK_DOUBLE, ichimon={"exercises": {"area": 1.5, "double": 3}})
    assert list(notebook.exercises(path).items()) == [("double", 3), ("area", 1.5)]


def test_half_a_surrogate_pair_in_a_cell_can_still_be_encoded(tmp_path: Path) -> None:
    source = notebook.cells(write(tmp_path, code("x = '\ud800'")))[0].source
    assert source.encode() == b"x = '?'"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = answered(tmp_path, double="def double(x):\r\n    return 2 * x")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert notebook.cells(path)[1].source == DOUBLE["source"]


NOTEBOOK = b'{"nbformat": 4, "metadata": {}, "cells": [%s]}'
UNREADABLE = {
    "empty": (b"", "is empty"),
    "cut off": (NOTEBOOK[:30], "broken in line 1"),
    "merged by git": (b"{\n<<<<<<< HEAD\n", "broken in line 2"),
    "binary": (b"PK\x03\x04\xff\xfe\x00\x00", "not text in UTF-8"),
    "invalid UTF-8": (NOTEBOOK % b'"\xe9"', "not text in UTF-8"),
    "deeply nested": (b"[" * 200_000, "no notebook has"),
    "NaN": (NOTEBOOK % b"NaN", "no notebook has"),
    "an endless number": (NOTEBOOK % (b"1" * 5000), "no notebook has"),
    "a list": (b"[]", "not a notebook"),
    "other JSON": (b'{"a": 1}', "not a notebook"),
    "format 3": (b'{"nbformat": 3, "worksheets": []}', "notebook format 3"),
    "format 5": (b'{"nbformat": 5, "cells": []}', "notebook format 5"),
    "format true": (b'{"nbformat": true, "cells": []}', "notebook format"),
    "no cells": (b'{"nbformat": 4}', "has no cells"),
    "cells that are no list": (b'{"nbformat": 4, "cells": {}}', "has no cells"),
    "a cell that is none": (NOTEBOOK % b"1", "cell 1 "),
    "a cell of unknown type": (NOTEBOOK % b'{"cell_type": "heading", "source": ""}', "cell 1 "),
    "a cell type that is a list": (NOTEBOOK % b'{"cell_type": [], "source": ""}', "cell 1 "),
    "a cell without a source": (NOTEBOOK % b'{"cell_type": "code"}', "cell 1 "),
    "a source of numbers": (NOTEBOOK % b'{"cell_type": "code", "source": [1]}', "cell 1 "),
    "too large": (b" " * (notebook.MAX_BYTES + 1), "larger than"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_notebook_is_one_sentence(tmp_path: Path, case: str) -> None:
    content, says = UNREADABLE[case]
    path = tmp_path / "a\nb.ipynb"
    path.write_bytes(content)
    for read in (notebook.cells, notebook.exercises, notebook.load):
        with pytest.raises(NotebookError) as raised:
            read(path)
        sentence = str(raised.value)
        assert says in sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")


@pytest.mark.parametrize("name", ["missing.ipynb", "folder.ipynb", "notes.txt", "nul\0.ipynb", ""])
def test_a_path_that_is_no_notebook_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.ipynb").mkdir()
    with pytest.raises(NotebookError):
        notebook.cells(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, part in inner for deeper in parts(part, (*path, key)))]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_notebook_with_any_part_replaced_gives_cells_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = answered(tmp_path_factory.getbasetemp())
    document = json.loads(path.read_text())
    *way, last = data.draw(st.sampled_from(parts(document)[1:]))
    target = document
    for key in way:
        target = target[key]
    target[last] = data.draw(JSON)
    path.write_text(json.dumps(document))
    with contextlib.suppress(NotebookError):
        for cell in notebook.cells(path):
            assert cell.kind in ("code", "markdown", "raw")
            assert cell.source.encode().decode() == cell.source
            assert 0 <= cell.points < 1e6


# Magics


@pytest.mark.parametrize(
    ("source", "plain", "magics"),
    [
        ("%matplotlib inline\nx = 1", "pass\nx = 1", ["%matplotlib inline"]),
        ("if True:\n    !pip install \\\n      torch\nx = 1", "if True:\n    pass\n\nx = 1", ["!pip install \\"]),
        ("files = !ls\n?len\nlen?", "pass\npass\npass", ["files = !ls", "?len", "len?"]),
        ("!echo it's (\nx = 1\n%time", "pass\nx = 1\npass", ["!echo it's (", "%time"]),
        ("%%time\nx = 1", "\nx = 1", ["%%time"]),
        ("\n%%bash\nls", "\n\n", ["%%bash"]),
        ("x = (7\n% 3)", "x = (7\n% 3)", []),
        ('"""\n%x\n"""', '"""\n%x\n"""', []),
        ("x = 7 \\\n% 3", "x = 7 \\\n% 3", []),
        ("# '''\n%x", "# '''\npass", ["%x"]),
    ],
)
def test_magics_are_blanked_and_every_line_stays_where_it_is(source: str, plain: str, magics: list[str]) -> None:
    assert notebook.blank_magics(source) == (plain, magics)


@pytest.mark.parametrize("module", [inspect, traceback, pytest, st, json.decoder])
def test_plain_python_is_left_as_it_is(module: Any) -> None:
    source = inspect.getsource(module)
    assert notebook.blank_magics(source) == (source, [])


@pytest.mark.parametrize("text", ["%x\n", "'''", "(", " ", "a ", '"""\\', "%%time\n", "x = '''a'", "!\\\n"])
def test_blanking_takes_time_in_proportion_to_the_text(text: str) -> None:
    def seconds(times: int) -> float:
        start = time.process_time()
        notebook.blank_magics(text * times)
        return time.process_time() - start

    assert seconds(80_000) < 1  # a quadratic scan takes minutes


# Running


def test_load_gives_what_the_set_up_and_the_solutions_define(tmp_path: Path) -> None:
    loaded = notebook.load(write_source(tmp_path))
    assert loaded.double(3) == 6
    assert loaded.area(1) == loaded.math.pi


def test_load_runs_a_students_own_cells_but_no_check_and_no_plot(tmp_path: Path) -> None:
    helper = code("%matplotlib inline\nfactor = 2")
    wrong = code("raise RuntimeError", "see-double")
    path = write(tmp_path, helper, {**DOUBLE, "source": "def double(x):\n    return factor * x"}, CHECK_AREA, wrong)
    assert notebook.load(path).double(3) == 6


def test_a_loaded_class_can_be_pickled_and_a_function_shows_its_source(tmp_path: Path) -> None:
    path = write(tmp_path, code("class A:\n    x = 1\n    def f(self):\n        return 1"))
    loaded = notebook.load(path)
    assert pickle.loads(pickle.dumps(loaded.A())).x == 1
    assert inspect.getsource(loaded.A.f) == "    def f(self):\n        return 1\n"


def test_a_cell_that_raises_is_named_in_the_error_and_in_the_traceback(tmp_path: Path) -> None:
    path = answered(tmp_path, area="\n\narea = 1 / 0")
    with pytest.raises(NotebookError, match=r"90-tiny\.ipynb, cell area raised ZeroDivisionError") as raised:
        notebook.load(path)
    assert raised.value.__cause__ is not None
    shown = "".join(traceback.format_exception(raised.value.__cause__))
    assert '"90-tiny.ipynb, cell area", line 3' in shown
    assert "area = 1 / 0" in shown


def test_a_cell_does_not_inherit_our_future_imports(tmp_path: Path) -> None:
    loaded = notebook.load(write(tmp_path, code("def f(x: int): ...")))
    assert loaded.f.__annotations__ == {"x": int}


# python -m ichimon check


def check(path: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", str(path), *options], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def row(output: str, exercise: str) -> str:
    return next(line for line in output.splitlines() if line[2:].startswith(f"{exercise} ")).strip()


def test_right_answers_pass_and_the_hidden_tests_are_mentioned(tmp_path: Path) -> None:
    exit_code, output = check(answered(tmp_path))
    assert exit_code == 0
    assert row(output, "double").startswith("✓")
    assert "2 of 2 exercises pass" in output
    assert "hidden tests decide the mark" in output


@pytest.mark.parametrize(
    ("double", "says"),
    [
        ("def double(x):\n    return 3", "✗ double  double(2) is 4"),
        ("def double(x):\n    raise NotImplementedError", "· double  not written yet"),
        ("", "· double  not written yet: name 'double' is not defined"),
        ("def double(x):\n    return y", "✗ double  your code raised NameError, line 2 of cell double"),
        ("def double(x:\n    return 2", "✗ double  your code raised SyntaxError, line 1 of cell double: '('"),
        ("oops\ndef double(x):\n    return 2 * x", "✗ double  your code raised NameError, line 1 of cell double"),
        ("def double(x, y):\n    return 2", "✗ double  the check could not use your answer: TypeError"),
        ("def double(x):\n    while True: print(x)", "✗ double  still running after 1 s"),
        ("import os\ndef double(x):\n    os._exit(0)", "✗ double  your code ended Python"),
        ("def double(x):\n    raise SystemExit", "✗ double  your code raised SystemExit"),
        ("def double(x):\n    return double(x)", "✗ double  your code raised RecursionError"),
        ("def double(x):\n    assert x > 9, 'small'", "✗ double  your code raised AssertionError"),
        ("def double(x):\n    input()", "✗ double  your code raised EOFError"),
        ("x = 'a\0b'", "✗ double  your code raised SyntaxError"),
    ],
)
def test_a_wrong_answer_is_told_in_words_and_costs_only_its_exercise(tmp_path: Path, double: str, says: str) -> None:
    path = answered(tmp_path, double, "def area(r):\n    return math.pi * r * r")
    exit_code, output = check(path, "--limit", "1")
    assert exit_code == 1
    assert row(output, "double").startswith(says)
    assert row(output, "area").startswith("✓")
    assert "Traceback" not in output


def test_an_assert_without_a_message_is_shown_itself(tmp_path: Path) -> None:
    _, output = check(answered(tmp_path, area="def area(r):\n    return 5"))
    assert "this does not hold: area(1) < 4" in row(output, "area")


def test_an_exercise_that_needs_an_unwritten_one_says_which(tmp_path: Path) -> None:
    _, output = check(answered(tmp_path, double="def double(x):\n    raise NotImplementedError"))
    assert "it uses double, which is not written yet" in row(output, "area")


def test_a_cell_that_hangs_when_it_is_defined_costs_only_its_exercise(tmp_path: Path) -> None:
    _, output = check(answered(tmp_path, area="while True: pass"), "--limit", "1")
    assert row(output, "double").startswith("✓")
    assert "cell area was still running after 1 s" in row(output, "area")


def test_a_set_up_that_fails_is_told_once_and_judges_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, {**SET_UP, "source": "import no_such_package"}, DOUBLE, CHECK_DOUBLE)
    exit_code, output = check(path)
    assert exit_code == 1
    assert row(output, "double") == "✗ double  not checked, because the set-up failed."
    assert output.count("ModuleNotFoundError") == 1


def test_what_is_odd_in_a_notebook_is_noted(tmp_path: Path) -> None:
    text = {**AREA, "cell_type": "markdown"}
    added = code("%timeit x\n1 / 0", "added")
    path = write(tmp_path, {**DOUBLE, "source": "def double(x): ..."}, DOUBLE, text, CHECK_DOUBLE, CHECK_AREA, added)
    exit_code, output = check(path)
    assert exit_code == 1
    assert row(output, "double").startswith("✓")
    assert "The set-up cell is missing" in output
    assert "The cell double is there 2 times" in output
    assert "The cell area is text now" in output
    assert "“%timeit x” in cell 6 is not Python" in output
    assert "ZeroDivisionError, line 2 of cell 6" in output


def test_a_deleted_check_is_told(tmp_path: Path) -> None:
    exit_code, output = check(write(tmp_path, SET_UP, DOUBLE, AREA, CHECK_AREA))
    assert exit_code == 1
    assert "its check cell is missing" in row(output, "double")


def test_prints_stay_out_of_the_table_unless_they_are_asked_for(tmp_path: Path) -> None:
    path = answered(
        tmp_path, "import os\ndef double(x):\n    print('hello')\n    os.system('echo raw')\n    return 2 * x"
    )
    assert "hello" not in check(path)[1]
    assert "cell check-double printed:\n    hello" in check(path, "-v")[1]


def test_relative_paths_in_a_notebook_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("2")
    exit_code, _ = check(answered(tmp_path, "def double(x):\n    return x * int(open('two.txt').read())"))
    assert exit_code == 0


@pytest.mark.parametrize("name", ["missing.ipynb", "broken.ipynb", "other.ipynb"])
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.ipynb").write_text("{")
    write(tmp_path, code("print(1)"), name="other.ipynb")
    exit_code, output = check(tmp_path / name)
    assert exit_code == 2
    assert output.count("\n") == 1
    assert name in output


def test_the_command_works_in_a_console_that_knows_only_ascii(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ichimon", "check", str(answered(tmp_path))]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 exercises pass" in done.stdout
    assert done.stderr == ""
