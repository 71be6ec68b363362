"""The pages that are made of all chapters, so that they change when a chapter does.

    ```{corrections}        the claims that people get wrong, each with its correction and its sources
    ```{notation}           the tables of symbols of all chapters as one
    ```{terms}              book/glossary.yml: each term in English and Japanese, and where it is explained
    ```{measured}           every experiment: its claim, its verdict, how it was run, who reads it
    ```{not-as-claimed}     those whose claim did not hold as it was worded
    ```{machines}           on what they ran
    ```{published-figures}  every figure of others that a page cites
    ```{question-map}       the chapters in the order in which they build on each other, and the questions they answer
    {count}`claims`         how many there are: see `Book.counts`

What is written here is MyST, so that roles in a chapter's sentences work, and all of it is translated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from ichimon_book import FromChapters, Result, read_json
from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

FENCE = re.compile(r"(`{3,}|~{3,})")
HEADING = re.compile(r"(#+)\s+(.+)")
CITED = re.compile(r"\{cite:\w+\}`([^`]+)`")
MATHS = re.compile(r"\$([^$]+)\$")
READ = r"\{{result\}}`{0}:|^```\{{experiment\}} {0}$|results\(\"{0}\"\)"
STYLED = {f"book/{name}" for name in ("index", "corrections", "glossary", "notation", "measured", "references")}
OTHERS = "Chapters of this course"  # those that an instructor added: they are not in chapters.yml


@dataclass(frozen=True)
class Section:
    """A heading of a page, and the text from there to the next heading."""

    page: str
    level: int
    title: str
    text: str

    @property
    def paragraph(self) -> str:
        """The first paragraph."""
        return self.text.strip().partition("\n\n")[0]

    @property
    def cited(self) -> list[str]:
        """The works that it cites, each once."""
        keys = (key.strip() for found in CITED.findall(self.text) for key in found.split(","))
        return list(dict.fromkeys(keys))

    @property
    def place(self) -> str:
        return f"{self.page}.md#{default_slugify(re.sub('[`*]', '', self.title))}"


def sections(page: str, source: str) -> list[Section]:
    """The sections of a page. What stands in a fence is code, where a line that begins with # is no heading."""
    found: list[tuple[int, str, list[str]]] = []
    fence = ""
    for line in source.splitlines():
        if mark := FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif line.strip() == fence:
                fence = ""
        heading = None if fence else HEADING.match(line)
        if heading:
            found.append((len(heading[1]), heading[2].strip(), []))
        elif found:
            found[-1][2].append(line)
    return [Section(page, level, title, "\n".join(lines)) for level, title, lines in found]


@dataclass(frozen=True)
class Page:
    """A chapter as it was written."""

    name: str
    title: str
    source: str

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def link(self) -> str:
        return f"[{self.number}]({self.name}.md)"

    @cached_property
    def sections(self) -> list[Section]:
        return sections(self.name, self.source)

    def within(self, title: str) -> Iterator[Section]:
        """The sections under a heading of the second level."""
        inside = False
        for section in self.sections:
            if section.level <= 2:
                inside = section.title == title
            elif inside:
                yield section

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Symbol, what it is, shape: the rows of its tables that begin with `symbol`."""
        inside = False
        for line in self.source.splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if not line.startswith("|"):
                inside = False
            elif cells[:2] == ["symbol", "what it is"]:
                inside = True
            elif inside and not set(cells[0]) <= set("-: "):
                yield cells[0], cells[1], cells[2] if len(cells) > 2 else ""


@dataclass(frozen=True)
class Book:
    """What the chapters and the results say, as files."""

    root: Path
    parts: dict[str, list[Page]]

    @property
    def pages(self) -> list[Page]:
        return [page for part in self.parts.values() for page in part]

    @cached_property
    def experiments(self) -> list[dict[str, Any]]:
        files = sorted((self.root / "experiments/results").glob("*.json"))
        return [read_json(self.root, str(file.relative_to(self.root))) for file in files]

    @cached_property
    def published(self) -> dict[str, dict[str, Any]]:
        figures: dict[str, dict[str, Any]] = read_json(self.root, "experiments/published.json")
        return figures

    @cached_property
    def terms(self) -> list[dict[str, Any]]:
        terms: list[dict[str, Any]] = yaml.safe_load((self.root / "book/glossary.yml").read_text(encoding="utf-8"))
        return terms

    def claims(self, page: Page) -> list[Section]:
        return list(page.within("What people get wrong"))

    def readers(self, pattern: str) -> list[Page]:
        return [page for page in self.pages if re.search(pattern, page.source, re.MULTILINE)]

    @cached_property
    def counts(self) -> dict[str, float]:
        verdicts = Counter(record["verdict"] for record in self.experiments)
        return {
            "chapters": len(self.pages),
            "claims": sum(len(self.claims(page)) for page in self.pages),
            "terms": len(self.terms),
            "works": len(re.findall(r"^@", (self.root / "book/references.bib").read_text(encoding="utf-8"), re.M)),
            "published": len(self.published),
            "experiments": len(self.experiments),
            "runs": sum(len(record["seeds"]) for record in self.experiments),
            "cpu_hours": sum(record["cpu_seconds"] for record in self.experiments) / 3600,
            **{verdict: verdicts[verdict] for verdict in ("strong", "weak", "null")},
        }


def read_book(root: Path, found: set[str]) -> Book:
    """The chapters that are built, by part; `found` are the names of documents."""
    listed = yaml.safe_load((root / "book/chapters.yml").read_text(encoding="utf-8"))["parts"]
    parts = {part["title"]: [chapter["page"] for chapter in part["chapters"]] for part in listed}
    known = {page for names in parts.values() for page in names}
    own = sorted(name[5:] for name in found if re.fullmatch(r"book/\d\d-[^/]+", name) and name[5:] not in known)
    read: dict[str, list[Page]] = {}
    for part, names in [*parts.items(), (OTHERS, own)]:
        built = [name for name in names if f"book/{name}" in found]
        sources = {name: (root / f"book/{name}.md").read_text(encoding="utf-8") for name in built}
        read[part] = [Page(name, next((s.title for s in sections(name, t)), name), t) for name, t in sources.items()]
    return Book(root, {part: pages for part, pages in read.items() if pages})


def the_book(env: BuildEnvironment) -> Book:
    """The book as its files stand; the page that asks is made again when one of them changes."""
    if "ichimon_pages" in env.temp_data:  # it lasts as long as one page is read
        read: Book = env.temp_data["ichimon_pages"]
        return read
    root = Path(env.srcdir)
    book = env.temp_data["ichimon_pages"] = read_book(root, set(env.found_docs))
    more = ("book/chapters.yml", "book/glossary.yml", "book/references.bib", "experiments/published.json")
    for file in (*more, *(f"book/{page.name}.md" for page in book.pages)):
        env.note_dependency(str(root / file))
    env.note_dependency(__file__)
    return book


class Count(Result):
    """How many there are of something."""

    kind = "counted"

    def read(self) -> tuple[str, str]:
        key, _, spec = self.text.partition("|")
        return format(the_book(self.env).counts[key.strip()], spec.strip() or "g"), "Counted when the book was built"


def corrections(book: Book) -> list[str]:
    """Each claim, the first paragraph of what the chapter says to it, and what the chapter cites there."""
    written = []
    for part, pages in book.parts.items():
        written += [f"## {part}", ""]
        for page in filter(book.claims, pages):
            written += [f"### {page.number} · {page.title}", ""]
            for claim in book.claims(page):
                sources = f"\nSources: {{cite:p}}`{','.join(claim.cited)}`\n" if claim.cited else ""
                written += [f"::::{{container}} wrong\n[{claim.title}]({claim.place})\n"]
                written += [f"{claim.paragraph}\n{sources}::::\n"]
    return written


def notation(book: Book) -> list[str]:
    """Every symbol. One that stands for two things has a row for each, with the chapters where it holds."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for page in book.pages:
        for symbol, what, shape in page.rows():
            for name in dict.fromkeys(initial(part) for part in symbols(symbol)):
                rows.setdefault((name, symbol, what, shape), []).append(page.link)
    table = ["| symbol | what it is | shape | chapter |", "|---|---|---|---|"]
    for (_, symbol, what, shape), chapters in sorted(rows.items(), key=lambda row: in_order(row[0])):
        table.append(f"| {symbol} | {what} | {shape} | {', '.join(chapters)} |")
    return [":::{container} notation", *table, ":::"]


def symbols(cell: str) -> list[str]:
    """The symbols of a table's cell, as TeX: `$Q, K$` and `$Q$, $K$` are two."""
    parts = [part.strip() for maths in MATHS.findall(cell) for part in re.split(r",(?![^{]*\})", maths)]
    return [part for part in parts if part not in ("", r"\dots")]


def initial(symbol: str) -> str:
    r"""The letter that a symbol is looked up by: `W` for `W_\text{up}`, `alpha` for `\alpha`, `T` for `\mathcal{T}`."""
    plain = re.sub(r"\\(mathcal|text|operatorname|hat|bar)\{?", "", symbol)
    found = re.search(r"\\?([A-Za-z]+)", plain)
    return (found[1] if plain.startswith("\\") else found[1][0]) if found else plain


def in_order(row: tuple[str, str, str, str]) -> tuple[bool, str, bool, bool, str]:
    """Latin letters first, a small one before its capital; then the Greek ones, by name."""
    name, symbol, *_ = row
    return len(name) > 1, name.lower(), name.isupper(), initial(symbols(symbol)[0]) != name, symbol


def terms(book: Book) -> list[str]:
    """The glossary, a heading a letter."""
    written: list[str] = []
    pages = {page.name: page for page in book.pages}
    letter = ""
    letters: list[str] = []
    for term in sorted(book.terms, key=lambda term: re.sub(r"[^a-z0-9]", "", term["term"].lower())):
        first = term["term"][0].upper()
        if first != letter:
            written += ["```", ""] if letter else []
            written += [f"## {first}", "", "```{glossary}"]
            letter = first
            letters.append(f"[{letter}](#{letter.lower()})")
        japanese = term.get("ja", [])
        names = [term["term"], *term.get("also", []), *([japanese] if isinstance(japanese, str) else japanese)]
        reading = f"*{term['yomi']}.* " if "yomi" in term else ""
        page, _, section = term["at"].partition("#")
        where = f" [{pages[page].number}]({page}.md#{section})" if page in pages else ""
        written += [*names, f"  {reading}{term['is']}{where}", ""]
    return [":::{container} letters", *letters, ":::", "", *written, "```"]


def measured(book: Book) -> list[str]:
    """Every experiment, by chapter, each with an anchor `experiment-NAME`."""
    written = []
    homes = [(record, belongs_to(record, book)) for record in book.experiments]
    for page in [*book.pages, None]:
        records = [record for record, home in homes if home is page]
        if records:
            written += [f"## {page.number} · {page.title}" if page else "## Of no chapter", ""]
        for record in records:
            written += card(record, book)
    return written


def card(record: dict[str, Any], book: Book) -> list[str]:
    name, where = record["name"], record["environment"]
    readers = book.readers(READ.format(re.escape(name)))
    used = ", ".join(page.link for page in readers) or "no chapter"
    how = f"{len(record['seeds'])} seeds · {record['cpu_seconds']:.0f} CPU seconds · commit {where['commit'][:7]}"
    return [
        f":::{{container}} experiment verdict-{record['verdict']}",
        f":name: experiment-{name.replace('_', '-')}",
        f"**{name}** · verdict: **{record['verdict']}**",
        "",
        record["claim"],
        "",
        f"{how} · `experiments/{name}.py` · read by {used}",
        ":::",
        "",
    ]


def belongs_to(record: dict[str, Any], book: Book) -> Page | None:
    """The chapter whose number its name has, else the first that reads it."""
    numbered = re.match(r"c(\d\d)_", record["name"])
    readers = book.readers(READ.format(re.escape(record["name"])))
    own = [page for page in book.pages if numbered and page.number == numbered[1]]
    return next(iter(own or readers), None)


def machines(book: Book) -> list[str]:
    """On what the experiments ran, as each result noted it."""
    processor, others = ("device", "architecture", "instructions"), ("system", "python", "torch", "threads")
    ran: Counter[tuple[str, ...]] = Counter()
    for record in book.experiments:
        noted = {key: str(value) for key, value in record["environment"].items()}
        first = ", ".join(noted[key] for key in processor if key in noted)
        ran[(first, *(noted.get(key, "not used") for key in others))] += 1
    table = ["| experiments | processor | system | Python | PyTorch | threads |", "|---|---|---|---|---|---|"]
    return [*table, *(f"| {n} | {' | '.join(values)} |" for values, n in ran.most_common())]


def not_as_claimed(book: Book) -> list[str]:
    """The experiments whose claim did not hold as it was worded."""
    written = []
    for verdict in ("null", "weak"):
        for record in book.experiments:
            if record["verdict"] == verdict:
                anchor = f"experiment-{record['name'].replace('_', '-')}"
                written.append(f"- **{verdict}** · [{record['name']}](#{anchor}): {record['claim']}")
    return written


def published_figures(book: Book) -> list[str]:
    """The figures of others, by source."""
    table = ["| figure | of what | source | chapter |", "|---|---|---|---|"]
    families = {page: re.findall(r"published\(f\"(\w+)\{", page.source) for page in book.pages}  # f"gpt2_{name}"
    for key, figure in sorted(book.published.items(), key=lambda item: (item[1]["source"], item[0])):
        value = f"{figure['value']:,}" if isinstance(figure["value"], int) else figure["value"]
        readers = book.readers(rf"\{{published\}}`{key}\b|published\(\"{key}\"")
        used = ", ".join(p.link for p in book.pages if p in readers or key.startswith(tuple(families[p])))
        of_what = f"{figure['unit']} (`{key}`)"
        table.append(f"| {value} | {of_what} | {{cite:t}}`{figure['source']}`, {figure['where']} | {used} |")
    return table


class QuestionMap(FromChapters):
    """The chapters from top to bottom, each below all that it builds on: a list.

    The lines between them are drawn where there is room, and for the eye alone. A screen reader, and a phone, get what
    a chapter builds on as words.
    """

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir) / "book/chapters.yml"
        self.env.note_dependency(str(file))
        self.env.note_dependency(__file__)
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        chapters = {int(c["page"][:2]): c for part in data["parts"] for c in part["chapters"]}
        part = {int(c["page"][:2]): n for n, part in enumerate(data["parts"]) for c in part["chapters"]}
        needs = {number: set(chapter["needs"]) for number, chapter in chapters.items()}
        places = placed(needs)
        stations = nodes.bullet_list(classes=["stations"])
        for number, chapter in chapters.items():
            row, column = places[number]
            asked = [n for n, q in enumerate(data["questions"], start=1) if number in q["chapters"]]
            text = [" · ".join([f"**{chapter['page'][:2]}**", *(f"Q{n}" for n in asked)])]
            text += [self.link(chapter, chapter["title"])]
            before = " · ".join(self.link(chapters[n], chapters[n]["title"]) for n in chapter["needs"])
            words = self.parse_text_to_nodes(f"Builds on {before}") if before else []
            station = nodes.list_item(classes=["station", f"row-{row}", f"column-{column}", f"part-{part[number]}"])
            station += self.parse_text_to_nodes("\n\n".join(text))
            station += nodes.container("", *words, classes=["needs"])
            stations += station
        return [nodes.container("", lines_between(direct(needs), places), stations, classes=["question-map"])]


WRITERS = {
    "corrections": corrections,
    "notation": notation,
    "terms": terms,
    "measured": measured,
    "not-as-claimed": not_as_claimed,
    "machines": machines,
    "published-figures": published_figures,
}
FROM_ALL = re.compile(rf"^```\{{({'|'.join(WRITERS)})\}}\n```$", re.MULTILINE)


def write_from_all(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put what is made of all chapters in its place. As text, and before it is parsed: it may hold headings."""
    if docname.startswith("book/") and FROM_ALL.search(source[0]):
        book = the_book(app.env)
        source[0] = FROM_ALL.sub(lambda found: "\n".join(WRITERS[found[1]](book)), source[0])


Places = dict[int, tuple[int, int]]
COLUMNS = 10  # half the width of a chapter each


def direct(needs: dict[int, set[int]]) -> dict[int, set[int]]:
    """What a chapter needs, without what another one that it needs has needed already."""
    above: dict[int, set[int]] = {}
    for number in sorted(needs):
        above[number] = needs[number].union(*(above[n] for n in needs[number]))
    return {number: {n for n in all_ if not any(n in above[m] for m in all_)} for number, all_ in needs.items()}


def placed(needs: dict[int, set[int]]) -> Places:
    """Row and column of each chapter: a row below the last that it needs, as near as can be to the middle of those."""
    rows: dict[int, int] = {}
    for number in sorted(needs):
        rows[number] = max((rows[n] + 1 for n in needs[number]), default=0)
    places: Places = {}
    for row in range(max(rows.values()) + 1):
        here = [number for number in rows if rows[number] == row]
        here.sort(key=lambda n: (middle(needs[n], places), n))
        first = (COLUMNS - 2 * len(here)) // 2
        places |= {number: (row, first + 2 * place) for place, number in enumerate(here)}
    return places


def middle(needed: set[int], places: Places) -> float:
    columns = [places[n][1] for n in needed]
    return sum(columns) / len(columns) if columns else 0


def lines_between(needs: dict[int, set[int]], places: Places) -> nodes.raw:
    """Curves from each chapter to those that build on it, in a drawing of ten columns by as many rows."""
    curves = []
    for number, needed in needs.items():
        row, column = places[number]
        for n in sorted(needed):
            top, left = places[n]
            x0, y0, x1, y1 = left * 10 + 10, top * 100 + 80, column * 10 + 10, row * 100 + 20
            curves.append(f"M{x0} {y0}C{x0} {y0 + 40} {x1} {y1 - 40} {x1} {y1}")
    height = 100 * (max(row for row, _ in places.values()) + 1)
    drawing = f'<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
    return nodes.raw("", f'{drawing}<path d="{"".join(curves)}"/></svg>', format="html")


def add_style(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """The style sheet of these pages, on these pages."""
    if pagename in STYLED:
        app.add_css_file("pages.css")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("count", Count())
    app.add_directive("question-map", QuestionMap)
    app.connect("source-read", write_from_all)
    app.connect("html-page-context", add_style)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
