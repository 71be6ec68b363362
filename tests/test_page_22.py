"""The calculators on the page of chapter 22 say what the Python says, for every published model; their form works."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from autograder import families
from experiments.published_configs import CONFIGS, MIXTURES
from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]
SCRIPT, STYLE = ROOT / "book/_static/choosing.js", ROOT / "book/_static/choosing.css"
SMALL = {
    f"{kind} {i}": config
    for kind in ("llama", "mistral", "qwen2", "qwen3", "olmo", "gpt2", "gptj", "gpt_neox", "bloom", *MIXTURES)
    for i, config in enumerate(families.TINY[kind])
}
ASKED = """(configs) => configs.map((config) => {
  const c = globalThis.ichimonCalculators;
  const plant = {peak: 312e12, mfu: 0.4, watts: 400, pue: 1.1, carbon: 0.3, price: 2, context: 700};
  return [...c.parameters(config), c.flopsPerToken(config, 5000), c.kvBytes(config, 9000, 3, 8),
    ...Object.values(c.fits(config, 80 * 2 ** 30, 3000, 2, 4.127, 8)).map(Number),
    ...Object.values(c.decodeRoofline(config, 9, 3000, 3.35e12, 989e12, 8, 16)).map(
      (v) => v === "memory" ? 1 : Number(v) || 0),
    ...Object.values(c.energyAndCost(config, 1e12, plant))];
})"""
WORDS = {
    name: f"{name}?"
    for name in (
        *("model", "config", "device", "own", "caption", "wrong", "yes", "no", "memory", "compute", "total", "active"),
        *(
            "token",
            "sum",
            "fits",
            "speed",
            "hours",
            "energy",
            "cost",
            "batch",
            "context",
            "weight_bits",
            "kv_bits",
            "tokens",
        ),
        *("mfu", "pue", "carbon", "price"),
    )
}
START = {"batch": 1, "context": 4096, "weight_bits": 16, "kv_bits": 16, "tokens": 1000}
START |= {"mfu": 40, "pue": 1, "carbon": 400, "price": 2}
DEVICES = {"card": {"memory": 80 * 2**30, "bandwidth": 3.35e12, "peak": 989e12, "watts": 700}}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/22-choosing.py")


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Page:
    """A page with nothing but the figure, opened from a folder."""
    data = {"models": CONFIGS, "devices": DEVICES, "words": WORDS, "start": START}
    file = tmp_path / "page.html"
    file.write_text(
        f"<style>{STYLE.read_text(encoding='utf-8')}</style><div class='choosing-figure'>Choose.</div>"
        f"<script type='application/json' id='choosing-data'>{json.dumps(data)}</script>"
        f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        encoding="utf-8",
    )
    found = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    found.goto(file.as_uri())
    return found


def said(c: Any, config: dict[str, Any]) -> list[float]:
    plant = {"peak": 312e12, "mfu": 0.4, "watts": 400, "pue": 1.1, "carbon": 0.3, "price": 2, "context": 700}
    step = c.decode_roofline(config, 9, 3000, 3.35e12, 989e12, 8, 16)
    return [
        *c.parameters(config),
        c.flops_per_token(config, 5000),
        c.kv_bytes(config, 9000, 3, 8),
        *map(float, c.fits(config, 80 * 2**30, 3000, 2, 4.127, 8).values()),
        *(float(value == "memory") if isinstance(value, str) else value for value in step.values()),
        *c.energy_and_cost(config, 10**12, **plant).values(),
    ]


def test_the_page_counts_what_the_python_counts(page: Page, reference: ModuleType) -> None:
    configs = {**CONFIGS, **SMALL}
    found = page.evaluate(ASKED, list(configs.values()))
    for (name, config), theirs in zip(configs.items(), found, strict=True):
        ours = said(reference, config)
        assert len(ours) == len(theirs)
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            whole = isinstance(a, int) and a < 2**53  # what a number of the browser holds exactly
            assert a == b if whole else math.isclose(a, b, rel_tol=1e-12), f"{name}, number {place}: {a} and {b}"


def test_the_form_shows_the_numbers_of_the_model_that_is_chosen(page: Page, reference: ModuleType) -> None:
    figure = page.locator(".choosing-figure")
    assert figure.is_visible()
    for name in ("Qwen2.5 7B", "DeepSeek-V3"):
        figure.get_by_label("model?").select_option(name)
        total, active = reference.parameters(CONFIGS[name])
        assert f"{total:,}" in figure.locator("table").inner_text()
        assert f"{active:,}" in figure.locator("table").inner_text()
        room = reference.fits(CONFIGS[name], DEVICES["card"]["memory"], 4096)
        assert figure.get_by_role("row", name="fits?").inner_text().split("\t")[-1] == (
            f"{'yes?' if room['fits'] else 'no?'}, {room['batch']}"
        )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"


def test_a_config_of_ones_own_is_read_and_a_broken_one_is_named(page: Page) -> None:
    figure = page.locator(".choosing-figure")
    own = figure.get_by_label("config?")
    assert not own.is_visible()
    figure.get_by_label("model?").select_option("own?")
    assert "wrong?" in figure.get_by_role("status").inner_text()
    own.fill(json.dumps(SMALL["llama 1"]))
    assert "fits?" in figure.get_by_role("status").inner_text()
    own.fill('{"model_type": "perceptron"}')
    assert "perceptron" in figure.get_by_role("status").inner_text()
    assert figure.locator("tr").count() == 0


def test_without_the_script_there_is_no_empty_form(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<style>{STYLE.read_text(encoding='utf-8')}</style><div class='choosing-figure'>Choose.</div>")
    found = browser.new_page()
    found.goto(file.as_uri())
    assert not found.locator(".choosing-figure").is_visible()


def test_the_script_is_small() -> None:
    assert SCRIPT.stat().st_size < 10_000
