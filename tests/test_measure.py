import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ichimon.measure import Config, Experiment, Results, estimate, interleaved, paired, published, results, save


def noisy_mean(config: Config, seeds: Sequence[int]) -> Results:
    return {"mean": estimate([config["centre"] + seed / 10 for seed in seeds])}


def experiment(**changes: Any) -> Experiment:
    parts: dict[str, Any] = {
        "name": "noisy_mean",
        "claim": "The mean is positive.",
        "run": noisy_mean,
        "verdict": lambda found: "strong" if found["mean"]["low"] > 0 else "null",
        "config": {"centre": 5.0, "steps": 100},
        "reduced": {"steps": 1},
    }
    return Experiment(**(parts | changes))


def test_the_interval_is_students_t() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3
    assert found["high"] - found["mean"] == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert found["mean"] - found["low"] == pytest.approx(found["high"] - found["mean"])
    assert found["values"] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_one_value_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        estimate([1.0])


def test_pairing_removes_what_two_runs_share() -> None:
    assert paired([1.0, 11.0, 21.0], [0.0, 10.0, 20.0])["sd"] == 0


def test_a_full_run_uses_every_seed_and_a_reduced_one_three() -> None:
    full, reduced = experiment().measure(), experiment().measure(reduced=True)
    assert full["seeds"] == [0, 1, 2, 3, 4]
    assert full["config"] == {"centre": 5.0, "steps": 100}
    assert reduced["seeds"] == [0, 1, 2]
    assert reduced["config"] == {"centre": 5.0, "steps": 1}
    assert full["verdict"] == "strong"
    assert full["cpu_seconds"] >= 0
    assert {"commit", "uncommitted", "device", "python"} <= set(full["environment"])


def test_runs_that_were_kept_cost_what_they_took() -> None:
    kept = dataclasses.replace(
        experiment(), run=lambda config, seeds: {"e": estimate([1, 2]), "cpu_seconds_of_runs": 3600}
    )
    kept = dataclasses.replace(kept, verdict=lambda found: "weak")
    assert kept.measure()["cpu_seconds"] == 3600


def test_an_override_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="overrides \\['stesp'\\]"):
        experiment(reduced={"stesp": 1}).measure()


def test_two_seeds_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least three"):
        experiment(seeds=(0, 1)).measure()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_failed_measurement_is_not_kept(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        experiment(run=lambda config, seeds: {"loss": value}, verdict=lambda found: "null").measure()


def test_a_result_that_is_not_plain_data_is_refused() -> None:
    with pytest.raises(TypeError, match="set is not"):
        experiment(run=lambda config, seeds: {"loss": {1}}, verdict=lambda found: "null").measure()


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    record = experiment().measure()
    path = save(record, tmp_path)
    assert results("noisy_mean", tmp_path) == record
    first = path.read_bytes()
    save(record, tmp_path)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["noisy_mean.json"], "no draft is left behind"


def test_the_file_is_readable(tmp_path: Path) -> None:
    record = experiment(claim="1/√d を掛ける").measure()
    lines = save(record, tmp_path).read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 170
    assert any("1/√d を掛ける" in line for line in lines)
    assert len(lines) < 40


def test_a_failed_save_leaves_the_old_result(tmp_path: Path) -> None:
    save(experiment().measure(), tmp_path)
    before = results("noisy_mean", tmp_path)
    with pytest.raises(TypeError):
        save({"name": "noisy_mean", "results": object()}, tmp_path)
    assert results("noisy_mean", tmp_path) == before


def test_a_missing_result_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run `python experiments/absent\.py` first"):
        results("absent", tmp_path)


def test_a_missing_published_figure_names_what_there_is() -> None:
    with pytest.raises(KeyError, match=r"published\.json has no 'absent'"):
        published("absent")


def test_functions_take_turns() -> None:
    calls: list[str] = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=5)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 6, "one round that does not count, then five"
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 1, "nobody always follows the same one"
    assert [len(times[name]) for name in "abc"] == [5, 5, 5]


def test_reading_results_imports_no_torch() -> None:
    code = "import sys, ichimon.measure; print(json.dumps(sorted(sys.modules)))".replace("json", "__import__('json')")
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert not {"torch", "scipy", "numpy"} & set(loaded)
