"""The two games of chapter 21's page: they work from a folder and with the keyboard, and the page does without them."""

from pathlib import Path

from playwright.sync_api import Browser
from test_book import opened, site  # noqa: F401 (a fixture)

PAGE = "book/21-looking-inside.html"


def test_a_head_is_chosen_with_the_keyboard_and_then_its_effect_is_told(browser: Browser, site: Path) -> None:  # noqa: F811
    page = opened(browser, site, PAGE, width=390)
    game = page.locator(".heads-figure")
    assert not page.locator("img.heads-static").is_visible()
    choose, onward = game.locator("button").all()
    assert choose.is_disabled()
    game.locator("input").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    assert game.locator("input").nth(1).is_checked()
    assert game.locator(".value").all_text_contents() == [""] * 12, "an effect is shown before the choice"
    choose.click()
    effects = [float(text) for text in game.locator(".value").all_text_contents()]
    best = game.locator("label.best input")
    assert best.count() == 1
    assert (
        max(effects) == effects[game.locator("label").evaluate_all("all => all.findIndex(e => e.className == 'best')")]
    )
    assert game.locator("[aria-live]").text_content()
    before = game.locator(".tokens").text_content()
    onward.click()
    assert game.locator(".tokens").text_content() != before
    assert choose.is_disabled()


def test_foreseeing_is_counted_with_the_map_and_without(browser: Browser, site: Path) -> None:  # noqa: F811
    page = opened(browser, site, PAGE)
    game = page.locator(".forecast-figure")
    said, onward = game.locator("[aria-live]"), game.locator("button.go")
    shades = []
    for _ in range(2):
        assert onward.is_disabled()
        words = game.locator(".tokens button")
        shades.append(len(set(words.evaluate_all("all => all.map(e => e.style.background)"))))
        words.first.focus()
        page.keyboard.press("Enter")
        assert game.locator(".tokens .best").count() == 1
        assert words.first.is_disabled()
        told = said.text_content()
        onward.click()
    assert shades[0] > 1, "the first round shows the map"
    assert shades[1] == 1, "the second round shows none"
    assert told is not None
    assert "of 1 rounds" in told
    assert "{" not in (game.text_content() or "") + told


def test_without_scripts_there_is_the_still_figure(browser: Browser, site: Path) -> None:  # noqa: F811
    page = opened(browser, site, PAGE, java_script_enabled=False)
    assert page.locator("img.heads-static").is_visible()
    assert not page.locator(".heads-figure").is_visible()
    assert not page.locator(".forecast-figure").is_visible()
