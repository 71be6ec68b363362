"""The mark for what draws no SVG, and the card that is shown when somebody shares a link to the book.

`python -m autograder.authoring.pictures` draws them anew, from book/_static/mark.svg, by Chromium. They are committed:
letters look a little different on each machine, and a book must not change because it was built elsewhere.
"""

from __future__ import annotations

from playwright.sync_api import sync_playwright

from autograder.authoring.pdf import ROOT, chromium

STATIC = ROOT / "book/_static"
CARD = """<style>
  body { margin: 0; font-family: "Iowan Old Style", Palatino, Georgia, "Noto Serif CJK JP", serif; color: #26221e; }
  div.card { box-sizing: border-box; width: 1200px; height: 630px; padding: 0 90px; display: flex; gap: 80px;
    align-items: center; background: #fffdfa; border-bottom: 18px solid #b3361b; }
  img { width: 320px; }
  p { margin: 0; font-size: 112px; font-weight: 600; }
  p + p { margin-top: 18px; text-wrap: balance; line-height: 1.35; font-size: 44px; font-weight: 400; }
</style>
<div class="card"><img src="{mark}">
<div><p>Ichimon</p><p>How large language models are built, one question at a time</p></div></div>"""
ICON = """<style>body { margin: 0; background: {ground}; } img { display: block; width: 100vw; }</style>
<img src="{mark}">"""


def main() -> None:
    mark = (STATIC / "mark.svg").as_uri()
    pictures = {
        "card.png": (CARD, 1200, 630),
        "icon-32.png": (ICON.replace("{ground}", "none"), 32, 32),
        # A phone rounds the corners itself, and fills what is transparent with black.
        "apple-touch-icon.png": (ICON.replace("{ground}", "#b3361b"), 180, 180),
    }
    page_file = STATIC / "picture.html"  # a page made of a string may not show a file
    try:
        with sync_playwright() as playwright:
            browser = chromium(playwright)
            for name, (html, width, height) in pictures.items():
                page = browser.new_page(viewport={"width": width, "height": height})
                page_file.write_text(html.replace("{mark}", mark), encoding="utf-8")
                page.goto(page_file.as_uri())
                page.screenshot(path=STATIC / name, omit_background=True)
                print(f"{STATIC / name}: {width} × {height}, {(STATIC / name).stat().st_size:,} bytes")
            browser.close()
    finally:
        page_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
