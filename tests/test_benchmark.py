"""The benchmark's arithmetic: costs are counted whole and once, ratios are medians of rounds. No time is judged."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ichimon import measure

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "grading.py"


@pytest.fixture(scope="module")
def benchmark() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


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
    found = benchmark.summary(rounds(benchmark, (0.1, 4.0, 1.0), (1.0, 50.0, 20.0), (0.1, 6.0, 3.0)))
    assert found["ratio_cpu"] == pytest.approx(50)
    assert found["ratio_wall"] == pytest.approx(50)
    assert found["ratio_cpu_without_figures"] == pytest.approx(20)
    assert found["ours"]["cpu_seconds_by_round"] == pytest.approx([0.2, 2.0, 0.2])
    assert found["ours"]["wall_seconds"] == pytest.approx(0.4)
    assert found["stock"]["cpu_seconds"] == pytest.approx(12)


def test_a_process_is_counted_until_it_is_gone(benchmark: SimpleNamespace) -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass"
    process = subprocess.Popen([sys.executable, "-c", work])
    time.sleep(0.05)
    assert benchmark.private_mb(process.pid) > 0
    threading.Thread(target=process.wait).start()
    assert benchmark.until_gone([process.pid]) >= 0.3
    with pytest.raises(OSError, match="Invalid argument"):
        benchmark.cpu_seconds(process.pid)


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


def test_our_side_grades_and_counts_the_jail(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    source = benchmark.source_notebook(measure.ROOT / "solutions" / f"{benchmark.NAME}.py")
    files = benchmark.handed_in(tmp_path, source)
    assert not set(files) & set(benchmark.LEFT_OUT)
    jail_is_new = benchmark.grading.here()._jail is None
    chosen = [benchmark.Found("reference", benchmark.NAME, files["reference"])]
    with benchmark.Ours(tmp_path) as ours:
        with ours.empty_results() as results:
            ours.grade(chosen[0], results)  # starts the jail
        with ours.empty_results() as results:
            report, cost, in_jail = ours.grade(chosen[0], results)
        parts = {row["part"]: row for row in benchmark.profile(ours, chosen, 1)}
    assert report.points == report.max_points
    assert 0 < in_jail < cost.cpu
    assert len(ours.private) == 3 + jail_is_new, "a worker for each time it graded, and one for a new jail's self-test"
    assert parts["begin a test"]["times"] == sum(len(exercise.tests) for exercise in report.exercises)
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
    notebook = benchmark.with_python3(text)
    lean = benchmark.without_figures(notebook)
    assert [cell.id for cell in lean.cells] == ["a", "b"]
    stock = benchmark.Stock(tmp_path, text, {"student": lean})
    cost = stock.grade("student")
    assert cost.cpu >= 1.5
    assert cost.wall >= 1.5
    assert stock.mark("student") == 2
    with pytest.raises(RuntimeError):
        stock.grade("nobody")
