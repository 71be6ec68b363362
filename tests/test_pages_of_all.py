"""The pages that are made of all chapters hold all of it: every claim, symbol, term, experiment, figure and work."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pybtex.database
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book").glob("[0-9][0-9]-*.md"))
JAPANESE = "[\u3040-\u30ff\u3400-\u9fff]"
Pages = dict[str, BeautifulSoup]


@cache
def extension() -> ModuleType:
    sys.path.insert(0, str(ROOT / "book/_ext"))
    import ichimon_pages

    return ichimon_pages


@cache
def glossary() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "book/glossary.yml").read_text(encoding="utf-8"))


def japanese(term: dict[str, Any]) -> list[str]:
    found = term.get("ja", [])
    return [found] if isinstance(found, str) else found


def words(page: BeautifulSoup) -> str:
    return re.sub(r"\s+", " ", page.select_one("article").get_text(" ")).lower()


def test_every_claim_that_people_get_wrong_is_listed_with_its_correction_and_leads_to_its_place(pages: Pages) -> None:
    listed = {a["href"]: a.text for a in pages["book/corrections.html"].select(".wrong > p:first-child a")}
    claims = {}
    for file in CHAPTERS:
        for section in pages[f"book/{file.stem}.html"].select("#what-people-get-wrong > section"):
            title = "".join(
                part.text
                for part in section.h3.contents
                if "headerlink" not in (getattr(part, "attrs", {}).get("class", []))
            )
            claims[f"{file.stem}.html#{section['id']}"] = title
    assert listed == claims
    assert len(claims) > 100
    assert str(len(claims)) in words(pages["book/corrections.html"])[:200]
    for claim in pages["book/corrections.html"].select(".wrong"):
        correction = claim.select("p")[1]
        assert len(correction.text) > 40, claim.text
        assert not re.search(r"\{\w+\}`|\$\$", claim.text)


def test_a_correction_is_the_first_paragraph_and_its_sources_are_those_of_the_section() -> None:
    text = "It is not\n{cite:t}`b,a`.\n\nSee {cite:p}`a` and {cite:p}`c`.\n\n```python\n# no heading\n```"
    source = f'# T\n\n## What people get wrong\n\n### "A `mask` is a mask"\n\n{text}\n\n## References\n'
    page = extension().Page("02-x", "T", source)
    (claim,) = page.within("What people get wrong")
    assert claim.paragraph == "It is not\n{cite:t}`b,a`."
    assert claim.cited == ["b", "a", "c"]
    assert claim.place == "02-x.md#a-mask-is-a-mask"


def test_every_row_of_a_chapters_table_of_symbols_is_in_the_notation(pages: Pages) -> None:
    listed = Counter()
    for row in pages["book/notation.html"].select(".notation tbody tr"):
        symbol, what, _, chapters = row.select("td")
        for chapter in chapters.select("a"):
            listed[chapter.text, symbol.text, what.text] += 1
    rows = set()
    for file in CHAPTERS:
        for table in pages[f"book/{file.stem}.html"].select("table"):
            heads = [head.text for head in table.select("thead th")]
            if heads[:2] == ["symbol", "what it is"]:
                rows |= {
                    (file.stem[:2], *(cell.text for cell in row.select("td")[:2])) for row in table.select("tbody tr")
                }
    assert set(listed) == rows
    assert len({chapter for chapter, *_ in rows}) >= 20


@pytest.mark.parametrize(
    ("symbol", "letter"),
    [(r"W_\text{up}", "W"), (r"\mathcal{T}", "T"), (r"\alpha", "alpha"), (r"d_\text{in}", "d"), ("x^{(l)}_i", "x")],
)
def test_a_symbol_is_looked_up_by_its_letter(symbol: str, letter: str) -> None:
    assert extension().initial(symbol) == letter


def test_a_term_is_explained_where_the_glossary_says(pages: Pages) -> None:
    assert len(glossary()) >= 120
    shown = pages["book/glossary.html"]
    listed = {dt.text.removesuffix("#").strip() for dt in shown.select("dl.glossary dt")}
    texts = {name: words(page) for name, page in pages.items() if re.match(r"book/\d\d-", name)}
    for term in glossary():
        page, _, section = term["at"].partition("#")
        assert section, f"{term['term']} names no section"
        names = [re.sub(r" of an? .*", "", name) for name in [term["term"], *term.get("also", [])]]
        text = texts[f"book/{page}.html"]
        assert any(name.lower().rstrip("s") in text for name in names), f"{page} does not speak of {names}"
        assert {term["term"], *term.get("also", []), *japanese(term)} <= listed, term["term"]
        assert term["is"].endswith("."), term["term"]
    links = shown.select("dl.glossary dd a[href*='.html#']")
    assert len(links) == len(glossary())


def test_no_name_stands_twice_in_the_glossary() -> None:
    names = [name for term in glossary() for name in [term["term"], *term.get("also", []), *japanese(term)]]
    assert [name for name, n in Counter(names).items() if n > 1] == []


def test_the_japanese_in_a_chapters_brackets_is_that_of_the_glossary() -> None:
    known = {name for term in glossary() for name in japanese(term)}
    named = {}
    for file in CHAPTERS:
        text = " ".join(file.read_text(encoding="utf-8").split())
        for english, inside in re.findall(rf"\*\*([^*]+)\*\*[^()*.]{{0,30}} ?\(([^()]*{JAPANESE}[^()]*)\)", text):
            for found in re.findall(rf"[\w・]*{JAPANESE}[\w・]*", inside):
                named[file.stem, english, found] = found.removesuffix("する")
    assert {where: found for where, found in named.items() if found not in known} == {}
    assert len(named) > 100


def test_the_search_finds_a_term_by_its_japanese_name(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    data = json.loads(index[index.index("{") : index.rindex("}") + 1])
    here = data["docnames"].index("book/glossary")
    for term in glossary():
        for word in re.findall(r"\w+", " ".join(japanese(term)).lower()):
            found = data["terms"].get(word, [])
            assert here in (found if isinstance(found, list) else [found]), word


def test_every_result_and_every_published_figure_is_on_the_page_of_measurements(pages: Pages) -> None:
    page = pages["book/measured.html"]
    results = sorted((ROOT / "experiments/results").glob("*.json"))
    for file in results:
        record = json.loads(file.read_text(encoding="utf-8"))
        card = page.find(id=f"experiment-{record['name'].replace('_', '-')}")
        assert card, record["name"]
        text = " ".join(card.text.split())
        assert " ".join(record["claim"].split())[:60].replace("'", "’") in text
        for part in (
            f"verdict: {record['verdict']}",
            f"{len(record['seeds'])} seeds",
            record["environment"]["commit"][:7],
        ):
            assert part in text, (record["name"], part)
        assert card.select("a[href*='.html']"), f"no chapter reads {record['name']}"
    assert len(page.select(".experiment")) == len(results)
    published = json.loads((ROOT / "experiments/published.json").read_text(encoding="utf-8"))
    assert len(page.select("#published-figures tbody tr")) == len(published)


def test_every_work_has_a_link_and_no_two_are_the_same(pages: Pages) -> None:
    forms = {"doi": r"10\.\d{4,9}/\S+", "eprint": r"\d{4}\.\d{4,5}", "url": r"https://\S+"}
    entries = pybtex.database.parse_file(str(ROOT / "book/references.bib")).entries
    seen: Counter[str] = Counter()
    for key, entry in entries.items():
        links = {kind: entry.fields[kind] for kind in forms if kind in entry.fields}
        assert links, f"{key} has no doi, eprint or url"
        assert all(re.fullmatch(forms[kind], link) for kind, link in links.items()), (key, links)
        assert ("eprint" in links) == (entry.fields.get("archiveprefix") == "arXiv"), key
        seen.update([*links.values(), re.sub(r"\W", "", entry.fields["title"]).lower()])
    assert [same for same, n in seen.items() if n > 1] == []
    items = pages["book/references.html"].select("ul.simple > li")
    assert len(items) == len(entries)
    assert all(item.select("a.external") for item in items)


def test_the_map_on_the_index_has_every_chapter_question_and_need(pages: Pages) -> None:
    data = yaml.safe_load((ROOT / "book/chapters.yml").read_text(encoding="utf-8"))
    stations = {s.strong.text: s for s in pages["book/index.html"].select(".question-map .station")}
    chapters = {chapter["page"][:2]: chapter for part in data["parts"] for chapter in part["chapters"]}
    assert stations.keys() == chapters.keys()
    for number, chapter in chapters.items():
        links = [a["href"] for a in stations[number].select("a")]
        assert links == [f"{chapter['page']}.html", *(f"{chapters[f'{n:02}']['page']}.html" for n in chapter["needs"])]
        asked = [f"Q{n}" for n, q in enumerate(data["questions"], start=1) if int(number) in q["chapters"]]
        assert re.findall(r"Q\d+", stations[number].text) == asked


def test_a_chapter_stands_below_what_it_needs_and_no_two_stand_in_one_place() -> None:
    data = yaml.safe_load((ROOT / "book/chapters.yml").read_text(encoding="utf-8"))
    needs = {int(c["page"][:2]): set(c["needs"]) for part in data["parts"] for c in part["chapters"]}
    places = extension().placed(needs)
    assert all(places[n][0] < places[number][0] for number, needed in needs.items() for n in needed)
    assert len(set(places.values())) == len(needs)
    assert all(0 <= column <= 8 and row <= 11 for row, column in places.values()), "the style sheet has rows 0–11"
    assert extension().direct({0: set(), 1: {0}, 2: {0, 1}}) == {0: set(), 1: {0}, 2: {1}}


def test_a_chapter_of_ones_own_is_in_the_pages_of_all(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    for name in ("chapters.yml", "02-self-attention.md"):
        (tmp_path / "book" / name).write_bytes((ROOT / "book" / name).read_bytes())
    own = '# Mine?\n\n## What people get wrong\n\n### "It is"\n\nIt is not.\n'
    (tmp_path / "book/90-mine.md").write_text(own, encoding="utf-8")
    book = extension().read_book(tmp_path, {"book/02-self-attention", "book/90-mine", "book/index"})
    assert [page.name for page in book.pages] == ["02-self-attention", "90-mine"]
    assert "It is not." in "\n".join(extension().corrections(book))
