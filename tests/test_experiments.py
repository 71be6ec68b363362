"""Every experiment of the book: what is committed is whole and current, and its claim still points the right way."""

import ast
import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ichimon.measure import EXPERIMENTS, ROOT, Experiment, results

SCRIPTS = [*sorted(EXPERIMENTS.glob("c[0-9][0-9]_*.py")), EXPERIMENTS / "moe-against-dense.py"]
NAMES = [script.stem for script in SCRIPTS]
KEPT = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (EXPERIMENTS / "results").glob("*.json")}
STRONG = sorted(name for name, record in KEPT.items() if record["verdict"] == "strong")


@cache
def experiment(name: str) -> Experiment:
    return runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["EXPERIMENT"]


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def estimates(value: Any) -> list[dict[str, Any]]:
    """Every mean with a spread that a result holds."""
    if isinstance(value, dict):
        if {"mean", "low", "high", "values"} <= set(value):
            return [value]
        return [found for item in value.values() for found in estimates(item)]
    return [found for item in value for found in estimates(item)] if isinstance(value, list) else []


def test_there_are_experiments() -> None:
    assert SCRIPTS


def test_every_result_has_its_script() -> None:
    assert set(KEPT) == set(NAMES)


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_script_says_what_it_asks(script: Path) -> None:
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    assert "?" in doc.splitlines()[0], "the first line of the docstring is the question"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_result_is_that_of_the_script(name: str) -> None:
    declared, record = experiment(name), results(name)
    assert declared.name == record["name"] == name
    assert record["claim"] == declared.claim
    assert record["config"] == plain(declared.config), f"run `python experiments/{name}.py` again"
    assert record["seeds"] == list(declared.seeds)
    assert record["verdict"] == declared.verdict(record["results"])


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_result_has_seeds_spread_and_cost(name: str) -> None:
    record = results(name)
    assert len(set(record["seeds"])) >= 3
    found = estimates(record["results"])
    assert found
    assert all(row["n"] == len(row["values"]) == len(record["seeds"]) for row in found)
    assert all(row["low"] <= row["mean"] <= row["high"] for row in found)
    assert record["cpu_seconds"] > 0
    assert record["environment"]["commit"] != "unknown"


@pytest.mark.parametrize("name", STRONG)
def test_a_strong_claim_points_the_same_way_in_a_reduced_run(name: str) -> None:
    record = experiment(name).measure(reduced=True)
    assert record["verdict"] in ("strong", "weak"), record["results"]


def test_every_published_figure_names_a_source_of_the_bibliography() -> None:
    figures = json.loads((EXPERIMENTS / "published.json").read_text(encoding="utf-8"))
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    assert all({"value", "unit", "source", "where", "paper"} == set(figure) for figure in figures.values())
    assert all(f"{{{figure['source']}," in bibliography for figure in figures.values())
