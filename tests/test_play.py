"""The figures to play with: they say what the Python says, and everybody can play with them or do without.

Each page loads the scripts of its own figures. A figure works from a folder, on a phone, with the keyboard and a screen
reader, and holds still for who asks for it. Where no script runs, and on paper, its still picture stands in its place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page

from autograder import families
from experiments.published_configs import CONFIGS, MIXTURES
from ichimon.measure import results
from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "book/_static/figures"
FIGURES = {  # and whether a still picture stands in for it
    "descent": ("book/00-warm-up.html", True),
    "sampling": ("book/01-next-token.html", True),
    "query": ("book/02-self-attention.html", True),
    "turn": ("book/03-position.html", True),
    "kv": ("book/09-grouped-queries.html", True),
    "routing": ("book/14-balance.html", True),
    "snap": ("book/19-shrinking.html", True),
    "heads": ("book/21-looking-inside.html", True),
    "forecast": ("book/21-looking-inside.html", False),
    "choosing": ("book/22-choosing.html", False),
}


def reference(chapter: str) -> ModuleType:
    return load(ROOT / f"solutions/{chapter}.py")


@pytest.fixture(scope="module")
def phone(browser: Browser) -> Iterator[BrowserContext]:
    """Narrow, dark, and without motion; formulas are left out, since they take long and are test_book's."""
    context = browser.new_context(viewport={"width": 360, "height": 800}, color_scheme="dark", reduced_motion="reduce")
    context.set_default_timeout(5_000)
    context.route("**/tex-svg-full.js*", lambda route: route.abort())
    yield context
    context.close()


@pytest.fixture(scope="module")
def paper(browser: Browser) -> Iterator[Page]:
    """Where no script runs."""
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def bare(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page with the scripts and no figure, where what they count can be asked."""
    names = ("play", "calculators", "sampling", "descent", "kv", "snap")
    code = "".join(f"<script>{(SCRIPTS / f'{name}.js').read_text(encoding='utf-8')}</script>" for name in names)
    file = tmp_path_factory.mktemp("bare") / "page.html"
    file.write_text(f'<html lang="en">{code}</html>', encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    yield page
    page.close()


def played(context: BrowserContext, site: Path, name: str) -> Locator:
    page = context.new_page()
    page.goto((site / FIGURES[name][0]).as_uri())
    return page.locator(f".{name}-figure")


def press(slider: Locator, key: str, times: int = 1) -> None:
    slider.focus()
    for _ in range(times):
        slider.page.keyboard.press(key)


# -- all of them ------------------------------------------------------------------------------------------------------


def test_a_page_loads_the_scripts_of_its_own_figures(site: Path) -> None:
    shown = set()
    for file in site.glob("*/*.html"):
        text, name = file.read_text(encoding="utf-8"), file.relative_to(site).as_posix()
        loaded = re.findall(r'<script defer="defer" src="[./]*_static/figures/(\w+)\.js', text)
        figures = re.findall(r'class="play (\w+)-figure ', text)
        shown |= {(figure, name) for figure in figures}
        assert len(loaded) == len(re.findall(r"<script[^>]+figures/", text)), name
        assert bool(re.search(r'<link[^>]+href="[^"]+figures/play\.css', text)) == bool(figures), name
        assert set(loaded) - {"play", "calculators"} == set(figures), name
        assert loaded[:1] == ["play"] * bool(figures), name
    assert shown == {(name, page) for name, (page, _) in FIGURES.items()}


def test_a_script_is_small_and_asks_nobody() -> None:
    for script in SCRIPTS.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert len(text.encode()) < 10_000, script
        assert not re.search(r"fetch\(|XMLHttp|import\(|https?://(?!www\.w3\.org/2000/svg)|Storage", text), script


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_for_everybody(name: str, phone: BrowserContext, paper: Page, site: Path) -> None:
    faults: list[str] = []
    phone.once("weberror", lambda error: faults.append(str(error.error)))
    figure = played(phone, site, name)
    page = figure.page
    still = page.locator(f"img.{name}-still")
    assert figure.is_visible()
    assert not faults
    assert still.count() == FIGURES[name][1]
    assert not still.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    assert not re.search(r"[{}]|undefined|NaN", figure.inner_text())
    found = Axe().run(page, context=f".{name}-figure").response
    assert not found["violations"], [(fault["id"], fault["nodes"][0]["html"]) for fault in found["violations"]]
    assert found["passes"]
    small = figure.locator("button, select, input").evaluate_all(
        "all => all.filter(e => e.checkVisibility() && e.type != 'radio' && e.getBoundingClientRect().height < 24)"
    )
    assert not small, "too small to be hit with a finger"
    page.emulate_media(media="print")
    assert not figure.is_visible()
    assert still.is_visible() == FIGURES[name][1]
    page.close()

    paper.goto((site / FIGURES[name][0]).as_uri())
    assert not paper.locator(f".{name}-figure").is_visible()
    assert paper.locator(f"img.{name}-still").is_visible() == FIGURES[name][1]


# -- one by one -------------------------------------------------------------------------------------------------------


def test_steps_are_those_of_the_notebook_and_arrive_or_leave(phone: BrowserContext, bare: Page, site: Path) -> None:
    adamw_step = reference("00-warm-up").adamw_step
    points, start = [[0.0, 0.1], [1.0, -0.3], [2.0, -0.9], [4.0, -1.2]], [-1.0, 0.7]
    script = """([points, start, rule, rate]) => {
      const { begin, step, loss } = ichimon.descent;
      let state = begin(start);
      const next = () => (state = step(points, state, rule, rate)).at;
      return Array.from({ length: 25 }, () => [...next(), loss(points, state.at)]);
    }"""
    x, y = torch.tensor(points, dtype=torch.float64).T
    for rule, rate in ((0, 0.03), (1, 0.2)):
        at = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        m = v = torch.zeros(2, dtype=torch.float64)
        for t, (b, w, height) in enumerate(bare.evaluate(script, [points, start, rule, rate]), start=1):
            (gradient,) = torch.autograd.grad((at[0] + at[1] * x - y).square().mean(), at)
            moved, m, v = adamw_step(
                at.detach(), gradient, m, v, t, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0
            )
            at = (moved if rule else at.detach() - rate * gradient).requires_grad_()
            assert [b, w] == pytest.approx(at.tolist(), rel=1e-9)
            assert height == pytest.approx((at[0] + at[1] * x - y).square().mean().item(), rel=1e-9)

    figure = played(phone, site, "descent")
    ten, again = figure.get_by_role("button", name="Ten steps"), figure.get_by_role("button", name="Start again")
    slider, said = figure.get_by_role("slider"), figure.get_by_role("status")
    press(slider, "ArrowRight", 3)
    assert "0.105" in figure.locator("label b").inner_text()
    for _ in range(3):
        ten.press("Enter")
    assert "left the map" in said.inner_text()
    again.press("Enter")
    assert "Step 0" in said.inner_text()
    figure.get_by_role("combobox").select_option("AdamW")
    for _ in range(8):
        ten.press("Enter")
    assert "arrived" in said.inner_text()
    figure.page.close()


def test_a_guess_is_bent_as_in_the_notebook(bare: Page) -> None:
    distribution = reference("01-next-token").next_token_distribution
    torch.manual_seed(0)
    logits = torch.randn(6, 40, dtype=torch.float64).mul(3).round(decimals=1)  # with ties
    knobs = [
        (1, None, None),
        (0, None, None),
        (0.3, 5, None),
        (2, None, 0.8),
        (0.7, 3, 0.5),
        (1.5, 100, 1),
        (1, 1, 0.01),
    ]
    script = """([rows, knobs]) => knobs.map(([t, k, p]) => rows.map(
      (row) => ichimon.distribution(row, t, k ?? Infinity, p ?? 1)))"""
    for (t, k, p), found in zip(knobs, bare.evaluate(script, [logits.tolist(), knobs]), strict=True):
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), distribution(logits, t, k, p))


def test_what_is_drawn_is_what_the_knobs_left(phone: BrowserContext, site: Path) -> None:
    figure = played(phone, site, "sampling")
    shown = results("c01_sampling")["results"]
    figure.get_by_label("the text so far").select_option(index=2)
    press(figure.get_by_label("top-k"), "Home")
    press(figure.get_by_label("top-k"), "ArrowRight")  # two
    assert f"2 of {len(shown['vocabulary']):,}" in figure.get_by_role("status").inner_text()
    guess = torch.tensor(shown["shown"][2]["logits"]).softmax(-1)
    rows = figure.locator("tr").all_inner_texts()
    two = guess.topk(2).values
    assert [f"{share:.1%}".replace("%", " %") for share in (two / two.sum()).tolist()] == [
        row.split("\t")[-1] for row in rows[:2]
    ]
    assert all("never" in row for row in rows[2:])
    figure.get_by_role("button").press("Enter")
    drawn = re.findall("“(.+?)”", figure.locator("[aria-live]").inner_text())
    kept = {shown["vocabulary"][int(i)].replace("\n", "↵").replace(" ", "␣") for i in guess.topk(2).indices}
    assert len(drawn) == 12
    assert set(drawn) <= kept
    figure.page.close()


def test_the_query_moves_with_the_arrow_keys_and_shares_stay_shares(phone: BrowserContext, site: Path) -> None:
    handle = played(phone, site, "query").get_by_role("slider")
    before = handle.get_attribute("aria-valuetext")
    press(handle, "ArrowLeft", 15)
    after = handle.get_attribute("aria-valuetext")
    assert after is not None
    assert before != after
    assert abs(sum(int(share) for share in re.findall(r"(\d+)%", after)) - 100) <= 3
    handle.page.close()


def test_a_query_and_a_key_that_move_together_keep_their_score(phone: BrowserContext, site: Path) -> None:
    figure = played(phone, site, "turn")
    together, alone = figure.get_by_role("slider").all()
    score, tip = figure.get_by_role("status"), figure.locator("circle").first
    before, place = score.text_content(), tip.get_attribute("cx")
    press(together, "ArrowRight", 7)
    assert tip.get_attribute("cx") != place, "nothing moved"
    assert score.text_content() == before
    press(alone, "ArrowRight")
    assert score.text_content() != before
    figure.page.close()


def test_a_cache_takes_the_bytes_of_the_notebook(phone: BrowserContext, bare: Page, site: Path) -> None:
    count = reference("09-grouped-queries").kv_cache_bytes
    latent = {"rank": 4, "rope": 0.5}
    cases: list[dict[str, Any]] = [
        {"layers": layers, "heads": heads, "kvHeads": kv, "head": head, "latent": latent}
        for layers, heads, kv, head in ((32, 32, 8, 128), (80, 64, 8, 128), (1, 28, 4, 96), (61, 128, 128, 16))
    ]
    script = """(all) => all.map((sizes) => ichimon.sharing(sizes).map(
      (config) => ichimon.calculators.kvBytes(config, 5000, 3, 8)))"""
    for sizes, found in zip(cases, bare.evaluate(script, cases), strict=True):
        config = {
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "hidden_size": sizes["heads"] * sizes["head"],
        }
        own = [{"num_key_value_heads": n} for n in (sizes["heads"], sizes["kvHeads"], 1)]
        squeezed = {"kv_lora_rank": 4 * sizes["head"], "qk_rope_head_dim": sizes["head"] // 2}
        assert found == [count(config | kind, 5000, 3, torch.int8) for kind in (*own, squeezed)]

    figure = played(phone, site, "kv")
    rows = figure.get_by_role("row")
    for name in ("Llama 3 8B", "Qwen2.5 7B"):
        figure.get_by_label("model").select_option(name)
        assert f"{count(CONFIGS[name], 32768) / 2**30:.3g} GiB" in rows.nth(1).inner_text()
    gqa, heads = rows.nth(1).inner_text(), figure.get_by_label("heads of queries")
    press(heads, "ArrowRight")
    assert rows.nth(1).inner_text() == gqa, "more heads of queries keep no more"
    press(heads, "Home")
    assert figure.get_by_label("model").locator("option:checked").inner_text() == "sizes of your own"
    assert rows.nth(1).inner_text().startswith("GQA, 1")
    figure.page.close()


def test_tokens_go_where_the_trained_routers_sent_them(phone: BrowserContext, site: Path) -> None:
    shown = results("c14_who_goes_where")["results"]["shown"]
    figure = played(phone, site, "routing")
    said, follow = figure.get_by_role("status"), figure.get_by_role("slider")
    sentence, layer = figure.get_by_role("combobox").all()
    for way, keys in (("off", []), ("on", ["Space"])):
        figure.get_by_role("checkbox").focus()
        for key in keys:
            figure.page.keyboard.press(key)
        for s, depth in ((0, 1), (3, 0)):
            sentence.select_option(index=s)
            layer.select_option(index=depth)
            experts = [e for pair in shown["routes"][way][s][depth]["experts"] for e in pair]
            counts = [experts.count(e) for e in range(8)]
            busy, text = counts.index(max(counts)), shown["shares"][way][depth]
            assert f"expert {busy + 1} gets most, {100 * max(counts) / len(experts):.0f} %" in said.inner_text()
            assert f"{counts.count(0)} of the experts get none" in said.inner_text()
            assert f"expert {text.index(max(text)) + 1} gets most, {100 * max(text):.0f} %" in said.inner_text()
            assert figure.locator(".flow").count() == len(experts)
    press(follow, "ArrowRight", 2)
    (a, b), (x, y) = (shown["routes"]["on"][3][0][part][1] for part in ("experts", "weights"))
    assert f"expert {a + 1} ({100 * x:.0f} %) and expert {b + 1} ({100 * y:.0f} %)" in (
        follow.get_attribute("aria-valuetext") or ""
    )
    assert figure.locator(".flow:not(.pale)").count() == 2
    moving = "document.getAnimations().length"
    assert figure.page.evaluate(moving) == 0, "who asks for less motion gets none"
    figure.page.emulate_media(reduced_motion="no-preference")
    layer.select_option(index=1)
    assert figure.page.evaluate(moving) > 0
    figure.page.close()


def test_weights_fall_on_the_marks_of_the_notebook(phone: BrowserContext, bare: Page, site: Path) -> None:
    fake_quantize = reference("19-shrinking").fake_quantize
    torch.manual_seed(0)
    rows = torch.randn(5, 30, dtype=torch.float64) * torch.tensor([[0.1], [1], [2], [0.5], [3]])
    rows[0, :4] = torch.tensor([7, 0.5, 1.5, -2.5])  # with 4 bits halves, which go to the even mark
    script = "([rows, bits, own]) => ichimon.quantised(rows, bits, own)"
    for bits, alone in ((2, False), (4, False), (4, True), (8, True)):
        largest = rows.abs().amax(1, keepdim=True) if alone else rows.abs().max()
        expected = fake_quantize(rows, largest / (2 ** (bits - 1) - 1), bits)
        found = bare.evaluate(script, [rows.tolist(), bits, alone])
        torch.testing.assert_close(torch.tensor(found["snapped"], dtype=torch.float64), expected)
        assert found["error"] == pytest.approx(((rows - expected).norm() / rows.norm()).item())

    figure = played(phone, site, "snap")
    own, loud = figure.get_by_role("checkbox").all()

    def error() -> float:
        found = re.search(r"error is ([\d.]+) %", figure.get_by_role("status").inner_text())
        assert found
        return float(found[1])

    shared = error()
    own.press("Space")
    assert error() < shared
    loud.press("Space")
    spared = error()
    own.press("Space")
    assert error() > 2 * spared, "an outlier spoils only its own row's ruler"
    before = error()
    press(figure.get_by_role("slider"), "ArrowRight", 2)
    assert error() < 0.5 * before
    figure.page.close()


def test_a_head_is_chosen_with_the_keyboard_and_then_its_effect_is_told(phone: BrowserContext, site: Path) -> None:
    game = played(phone, site, "heads")
    choose, onward = game.locator("button").all()
    assert choose.is_disabled()
    press(game.locator("input").first, "Space")
    game.page.keyboard.press("ArrowDown")
    assert game.locator("input").nth(1).is_checked()
    assert game.locator(".value").all_text_contents() == [""] * 12, "an effect is shown before the choice"
    choose.click()
    effects = [float(text) for text in game.locator(".value").all_text_contents()]
    assert game.locator("label.best input").count() == 1
    best = game.locator("label").evaluate_all("all => all.findIndex(e => e.className == 'best')")
    assert max(effects) == effects[best]
    assert game.locator("[aria-live]").text_content()
    before = game.locator(".tokens").text_content()
    onward.click()
    assert game.locator(".tokens").text_content() != before
    assert choose.is_disabled()
    game.page.close()


def test_foreseeing_is_counted_with_the_map_and_without(phone: BrowserContext, site: Path) -> None:
    game = played(phone, site, "forecast")
    said, onward = game.locator("[aria-live]"), game.locator("button.go")
    shades = []
    for _ in range(2):
        assert onward.is_disabled()
        words = game.locator(".tokens button")
        shades.append(len(set(words.evaluate_all("all => all.map(e => e.style.background)"))))
        press(words.first, "Enter")
        assert game.locator(".tokens .best").count() == 1
        assert words.first.is_disabled()
        told = said.text_content() or ""
        onward.click()
    assert shades[0] > 1, "the first round shows the map"
    assert shades[1] == 1, "the second round shows none"
    assert "of 1 rounds" in told
    assert "{" not in told
    game.page.close()


SMALL = {
    f"{kind} {i}": config
    for kind in ("llama", "mistral", "qwen2", "qwen3", "olmo", "gpt2", "gptj", "gpt_neox", "bloom", *MIXTURES)
    for i, config in enumerate(families.TINY[kind])
}
ASKED = """(configs) => configs.map((config) => {
  const c = ichimon.calculators;
  const plant = {peak: 312e12, mfu: 0.4, watts: 400, pue: 1.1, carbon: 0.3, price: 2, context: 700};
  return [...c.parameters(config), c.flopsPerToken(config, 5000), c.kvBytes(config, 9000, 3, 8),
    ...Object.values(c.fits(config, 80 * 2 ** 30, 3000, 2, 4.127, 8)).map(Number),
    ...Object.values(c.decodeRoofline(config, 9, 3000, 3.35e12, 989e12, 8, 16)).map(
      (v) => v === "memory" ? 1 : Number(v) || 0),
    ...Object.values(c.energyAndCost(config, 1e12, plant))];
})"""


def counted(c: Any, config: dict[str, Any]) -> list[float]:
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


def test_the_calculators_count_what_the_notebook_counts_for_every_model(bare: Page) -> None:
    chapter, configs = reference("22-choosing"), {**CONFIGS, **SMALL}
    found = bare.evaluate(ASKED, list(configs.values()))
    for (name, config), theirs in zip(configs.items(), found, strict=True):
        ours = counted(chapter, config)
        assert len(ours) == len(theirs)
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            whole = isinstance(a, int) and a < 2**53  # what a number of the browser holds exactly
            assert a == b if whole else math.isclose(a, b, rel_tol=1e-12), f"{name}, number {place}: {a} and {b}"


def test_the_form_shows_the_numbers_of_the_model_that_is_chosen(phone: BrowserContext, site: Path) -> None:
    chapter, figure = reference("22-choosing"), played(phone, site, "choosing")
    model, own = figure.get_by_role("combobox").first, figure.get_by_label("config.json", exact=True)
    for name in ("Qwen2.5 7B", "DeepSeek-V3"):
        model.select_option(name)
        total, active = chapter.parameters(CONFIGS[name])
        assert f"{total:,}" in figure.locator("table").inner_text()
        assert f"{active:,}" in figure.locator("table").inner_text()
        room = chapter.fits(CONFIGS[name], 80e9, 8192)
        assert figure.get_by_role("row", name="does it fit").inner_text().split("\t")[-1] == (
            f"{'yes' if room['fits'] else 'no'}, {room['batch']}"
        )
    assert not own.is_visible()
    model.select_option("my own config.json")
    assert "no config.json" in figure.get_by_role("status").inner_text()
    own.fill(json.dumps(SMALL["llama 1"]))
    assert "does it fit" in (figure.get_by_role("status").text_content() or "")
    own.fill('{"model_type": "perceptron"}')
    assert "perceptron" in figure.get_by_role("status").inner_text()
    assert figure.locator("tr").count() == 0
    figure.page.close()
