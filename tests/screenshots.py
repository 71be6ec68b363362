"""`make screenshots`: ten pages of the book, on a desk and a phone, by day and by night, to look at before a release.

python tests/screenshots.py [FOLDER]   writes 40 pictures and one page, index.html, that shows them beside each other.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from autograder.authoring.pdf import READY, SITE, chromium

PAGES = (
    *("book/index", "book/00-warm-up", "book/02-self-attention", "book/06-gpt", "book/12-gpt-line"),
    *("book/21-looking-inside", "book/22-choosing", "notebooks/02-self-attention/02-self-attention"),
    *("docs/term", "search"),
)
WIDTHS = {"desk": 1280, "phone": 390}
TALLEST = 4000  # the beginning of a page says what it looks like


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE.parent / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        for scheme in ("light", "dark"):
            for kind, width in WIDTHS.items():
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                for name in PAGES:
                    page = context.new_page()
                    page.goto((SITE / f"{name}.html").as_uri())
                    page.wait_for_function(READY)
                    height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
                    page.set_viewport_size({"width": width, "height": height})
                    picture = f"{name.replace('/', '-')}-{kind}-{scheme}.png"
                    page.screenshot(path=folder / picture)
                    shown.append(picture)
                    page.close()
                context.close()
        browser.close()
    pictures = "\n".join(
        f'<a href="{picture}"><img src="{picture}" alt="{picture}" height="600"></a>' for picture in shown
    )
    (folder / "index.html").write_text(f"<!DOCTYPE html><title>Screenshots</title>\n{pictures}\n", encoding="utf-8")
    print(f"{len(shown)} pictures; {folder / 'index.html'} shows them all.")


if __name__ == "__main__":
    main()
