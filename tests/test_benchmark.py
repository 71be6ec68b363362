"""The benchmark: costs are counted whole and once, ratios are medians of rounds, numbers in prose are its own. No time
is judged."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import NIGHTLY

from ichimon import measure

COURSE = Path(__file__).resolve().parents[1]
FOLDER = COURSE / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[SimpleNamespace]:
    """The script's names; its modules are among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**runpy.run_path(str(FOLDER / "grading.py")))


# -- counting -------------------------------------------------------------------------------------------------------


def rounds(benchmark: SimpleNamespace, *cpu: tuple[float, float, float]) -> list[dict[str, list[Any]]]:
    """Rounds of two submissions; the second costs three times the first, and wall time is twice CPU time."""
    sides = ("ours", "stock", "stock_without_figures")
    return [
        {
            side: [benchmark.Cost(2 * seconds, seconds), benchmark.Cost(6 * seconds, 3 * seconds)]
            for side, seconds in zip(sides, turn, strict=True)
        }
        for turn in cpu
    ]


def test_a_ratio_is_the_median_of_the_ratios_within_rounds(benchmark: SimpleNamespace) -> None:
    """The second round ran on a machine ten times slower; its ratio is as good as any."""
    costs = rounds(benchmark, (0.1, 4.0, 1.0), (1.0, 50.0, 20.0), (0.1, 6.0, 3.0))
    found = benchmark.summary(costs, [benchmark.scale.Run(4, 4, 9.0, 10.0, 11.0, 500)] * 3)
    assert found["ratios"]["stock"] == pytest.approx({"cpu": 50, "wall": 50})
    assert found["ratios"]["stock_without_figures"]["cpu"] == pytest.approx(20)
    assert found["ours"]["cpu_seconds_by_round"] == pytest.approx([0.2, 2.0, 0.2])
    assert found["ours"]["wall_seconds"] == pytest.approx(0.4)
    assert found["stock"]["cpu_seconds"] == pytest.approx(12)


def test_the_start_up_of_two_workers_is_told_apart(benchmark: SimpleNamespace) -> None:
    """The first 8 are done after 10 s, 8 more after 14 s: half a second each; stock takes 20 s for one."""
    costs = rounds(benchmark, (0.1, 5.0, 1.0))
    found = benchmark.summary(costs, [benchmark.scale.Run(16, 16, 10.0, 14.0, 15.0, 500)])["two_workers"]
    assert found["warm"]["wall_seconds"] == pytest.approx(0.5)
    assert found["warm"]["ratio_wall"] == pytest.approx(40)
    assert found["with_start_up"]["ratio_wall"] == pytest.approx(16)


def test_a_process_is_counted_until_it_is_gone(benchmark: SimpleNamespace) -> None:
    stopwatch = sys.modules["stopwatch"]
    work = "import time\nwhile time.process_time() < 0.3: pass"
    process = subprocess.Popen([sys.executable, "-c", work])
    time.sleep(0.05)
    assert stopwatch.private_mb(process.pid) > 0
    threading.Thread(target=process.wait).start()
    assert stopwatch.until_gone([process.pid]) >= 0.3
    with pytest.raises(OSError, match="Invalid argument"):
        stopwatch.cpu_seconds(process.pid)


def test_an_inner_part_is_not_counted_twice(benchmark: SimpleNamespace) -> None:
    profile = benchmark.Profile()
    inner = profile.watch("inner", functools.partial(time.sleep, 0.05))
    with profile.measure("outer"):
        inner()
        inner()
        time.sleep(0.01)
    rows = {row["part"]: row for row in profile.table(submissions=2)}
    assert rows["inner"]["times"] == 1
    assert rows["inner"]["wall_ms"] >= 50
    assert 5 <= rows["outer"]["wall_ms"] < 50, "without the two inner parts"


def test_time_and_memory_of_a_large_class_are_compared_without_start_up(benchmark: SimpleNamespace) -> None:
    """100 more take 10 s in the median and 5,000 more 550 s, which is a tenth more for each of them."""
    run = benchmark.scale.Run
    runs = [
        run(180, 180, start, start + grading, start + grading + 1, memory)
        for start, grading, memory in ((5.0, 10.0, 500), (9.0, 30.0, 480), (3.0, 9.0, 520))
    ]
    runs.append(run(5080, 5080, 5.0, 555.0, 570.0, 550))
    found = benchmark.scale.summary(runs, run(5080, 0, 1.0, 9.0, 20.0, 300), 80, 100, 5000)
    assert found["seconds_a_submission"] == pytest.approx({"few": 0.1, "many": 0.11})
    assert found["seconds_after_the_last"] == pytest.approx({"few": 1, "many": 15})
    assert found["goals"]["time_many_to_few"] == {"measured": pytest.approx(1.1), "at_most": 1.2, "met": True}
    assert found["goals"]["memory_many_to_few"]["measured"] == pytest.approx(1.1)
    assert found["again"]["graded"] == 0


# -- what is graded -------------------------------------------------------------------------------------------------


def test_forty_notebooks_have_forty_different_codes(benchmark: SimpleNamespace) -> None:
    """Other comments and another layout are no other code."""
    handed_in = benchmark.handed_in
    found = handed_in.notebooks(40)
    assert len({handed_in.code_sha(notebook) for notebook in found.values()}) == 40
    assert not set(found) & set(handed_in.LEFT_OUT)
    assert {name.partition("-")[0] for name in found} == {"reference", "student", "differently", "mistaken"}
    for notebook in found.values():
        ids = [cell.metadata.nbgrader.grade_id for cell in notebook.cells if "nbgrader" in cell.metadata]
        assert len(ids) == len(set(ids)) > 5, "else nbgrader refuses it"
    again = handed_in.notebooks(40)
    assert found == again, "the same each time"
    handed_in.code_cells(again["reference"])[-1].source += "\n\n\n# a comment"
    assert handed_in.code_sha(again["reference"]) == handed_in.code_sha(found["reference"])
    with pytest.raises(ValueError, match="different notebooks, not 4000"):
        handed_in.notebooks(4000)


def test_copies_differ_in_their_bytes(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    benchmark.handed_in.copies(7, tmp_path, different=3)
    files = sorted(tmp_path.glob("student-*/*/*.ipynb"))
    assert len({file.read_bytes() for file in files}) == len(files) == 7
    cells = [len(json.loads(file.read_text())["cells"]) for file in files]
    assert cells[:3] == cells[3:6]


def test_the_visible_checks_become_tests_of_otter(benchmark: SimpleNamespace) -> None:
    """A function that takes from the notebook what the check uses, and fails where the check does."""
    tests = benchmark.sides.tests()
    assert list(tests) == list(benchmark.sides.assignments.load(benchmark.handed_in.NAME).points)
    check = "limit = 3\nnames = [double(n) for n in range(limit)]\nassert names == expected, f'{names}'\n"
    assert benchmark.sides.uses(check) == ["double", "expected"]
    otter = SimpleNamespace(test_case=lambda: lambda function: function)
    source = benchmark.sides.otter_test("double", 2.0, check)
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "otter", SimpleNamespace(test_files=otter))
        patch.setitem(sys.modules, "otter.test_files", otter)
        exec(source, namespace)
    assert namespace["OK_FORMAT"] is False
    assert namespace["points"] == 2
    namespace["visible_checks"](double=lambda n: 2 * n, expected=[0, 2, 4])
    with pytest.raises(AssertionError, match=r"\[0, 1, 2\]"):
        namespace["visible_checks"](double=lambda n: n, expected=[0, 2, 4])


# -- the sides ------------------------------------------------------------------------------------------------------


def test_our_side_grades_and_counts_the_jail(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    notebooks = benchmark.handed_in.notebooks(1)
    jail_is_new = benchmark.sides.grading.here()._jail is None
    with benchmark.Ours(tmp_path, notebooks) as ours:
        with ours.empty_results() as results:
            ours.grade("reference", results)  # starts the jail
        with ours.empty_results() as results:
            report, cost, in_jail = ours.grade("reference", results)
        parts = {row["part"]: row for row in benchmark.profile(ours, ["reference"], 1)}
    assert report.points == report.max_points
    assert 0 < in_jail < cost.cpu
    assert len(ours.private) == 3 + jail_is_new, "a worker for each time it graded, and one for a new jail's self-test"
    tests = sum(len(exercise.tests) for exercise in report.exercises)
    assert parts["the tests themselves, oracles"]["times"] == tests
    assert parts["calls"]["times"] > tests
    assert parts["cells"]["times"] == len(report.cells) + 1
    assert all(row["jail_cpu_ms"] >= 0 for row in parts.values())


def test_stock_nbgrader_grades_and_its_kernel_is_counted(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    flags = {"schema_version": 3, "task": False}
    check = {"grade_id": "check", "grade": True, "solution": False, "locked": True, "points": 2, **flags}
    busy = "import time\nwhile time.process_time() < 1.5: pass"
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": "a", "source": busy, "metadata": {}},
        {"cell_type": "code", "id": "b", "source": "assert True", "metadata": {"nbgrader": check}},
        {"cell_type": "code", "id": "c", "source": "1 / 0", "metadata": {"ichimon": {"see": "plot"}}},
    ]
    cells = [cell | {"outputs": [], "execution_count": None} for cell in cells]
    text = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    handed_in = benchmark.handed_in
    lean = handed_in.without_figures(handed_in.with_python3(handed_in.nbformat.reads(text, as_version=4)))
    assert [cell.id for cell in lean.cells] == ["a", "b"]
    assert [cell.id for cell in handed_in.without_checks(lean).cells] == ["a"]
    stock = benchmark.Stock(tmp_path, text, {"student": lean})
    cost = stock.grade("student")
    assert cost.cpu >= 1.5
    assert cost.wall >= 1.5
    assert stock.mark("student") == 2
    with pytest.raises(RuntimeError):
        stock.grade("nobody")


def test_without_a_package_index_otters_column_says_why(
    benchmark: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip fails as it does without a network."""
    monkeypatch.setattr(benchmark.sides, "ENVIRONMENT", tmp_path / "otter")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(benchmark.OtterMissing, match="could not be installed"):
        benchmark.Otter(tmp_path, {})


# -- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not NIGHTLY, reason="each side is tried alone; the whole comparison takes a minute: make nightly")
def test_all_sides_grade_the_same_notebooks(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    """The whole comparison, reduced; with otter if it can be installed."""
    record = benchmark.benchmark(3, 1, tmp_path, lambda line: None, install=True)
    sides = {"ours", "stock", "stock_without_figures", "otter"} - set(record["missing"])
    assert record["marks"]["reference"] == dict.fromkeys(sides, 20)
    for marks in record["marks"].values():
        assert len({mark for side, mark in marks.items() if side != "ours"}) == 1, "they run the same visible checks"
    assert set(record["ratios"]) == sides - {"ours"}
    assert set(record["goals"]) <= set(benchmark.page.GOALS)
    text = benchmark.page.text(record)
    assert f"| ours, every hidden test | {record['ours']['cpu_seconds']:.3f} " in text
    assert all(why in text for why in record["missing"].values())


@pytest.mark.skipif(not NIGHTLY, reason="what --scale starts is tried by our side above: make nightly")
def test_a_large_class_is_timed_without_its_start(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    """The whole of --scale, reduced: 4 submissions first, then 2 more and 4 more, and all again."""
    record = benchmark.scale.scale(2, 2, 4, 1, tmp_path, lambda line: None)
    assert [(run["submissions"], run["graded"]) for run in record["runs"]] == [(6, 6), (8, 8)]
    for run in record["runs"]:
        assert 0 < run["start_seconds"] < run["last_seconds"] < run["wall_seconds"]
        assert run["peak_mb"] > 50
    assert (record["again"]["submissions"], record["again"]["graded"]) == (8, 0)
    assert f"{record['seconds_a_submission']['many']:.3f}" in benchmark.page.text(record)


# -- what the page says ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(benchmark: SimpleNamespace) -> list[dict[str, Any]]:
    return [measure.results(name, FOLDER / "results") for name in benchmark.page.RECORDS]


def test_the_page_says_what_was_measured(benchmark: SimpleNamespace, records: list[dict[str, Any]]) -> None:
    """No number on it is typed by hand: it is what the records give."""
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == benchmark.page.readme(records)


def test_what_is_kept_was_measured_in_full_and_meets_every_goal(records: list[dict[str, Any]]) -> None:
    comparison, scale = records
    assert comparison["notebooks"] >= 40
    assert comparison["rounds"] >= 3
    assert (scale["few"], scale["many"]) == (100, 5000)
    assert not {name for record in records for name, goal in record["goals"].items() if not goal["met"]}


def test_the_next_factor_comes_from_the_parts_that_take_half(
    benchmark: SimpleNamespace, records: list[dict[str, Any]]
) -> None:
    parts = [
        {"part": "calls", "wall_ms": 40.0},
        {"part": "the tests themselves, oracles", "wall_ms": 30.0},
        {"part": "cells", "wall_ms": 20.0},
        {"part": "encode and decode", "wall_ms": 10.0},
    ]
    text = benchmark.page.next_factor(parts)
    assert "half of these 100 ms: *calls* (40 ms) and *the tests themselves, oracles* (30 ms)" in text
    assert "*cells*" not in text
    assert all(row["part"] in benchmark.page.NEXT for row in records[0]["profile"])
