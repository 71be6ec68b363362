"""What is ours in the book: numbers read from results, quizzes, the table of chapters, and MathJax without a network.

    {result}`c02_word_sense: accuracy.trained.hashi.mean | .0%`   a number of experiments/results/c02_word_sense.json
    {published}`gpt2_small_layers`                                a number of experiments/published.json
    ```{experiment} c02_word_sense                                its claim, its verdict and how it was run
    ```{quiz}                                                     questions in YAML, see `Quiz`
    ```{map}                                                      a chapter's place in the book: see `Map`
    ```{numbers}                                                  where a page's numbers come from; put there by itself
    ```{chapters}  and  ```{questions}                            tables made of book/chapters.yml
    ```{play} routing                                             a figure to play with: see `Play`

Directives write MyST and parse it, so that what they show is translated like any other text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

# The file of mathjax 3.2.2 as its authors publish it; the Python package only carries it.
MATHJAX_PACKAGE, MATHJAX_FILE = "sphinx-mathjax-offline", "tex-svg-full.js"
MATHJAX_SHA256 = "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6"


def read_json(root: str | Path, file: str) -> Any:
    return json.loads((Path(root) / file).read_text(encoding="utf-8"))


def pick(value: Any, path: str) -> Any:
    """Follow a dotted path of keys and positions: `entropy.none.-1.mean`."""
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def written(value: Any, spec: str) -> str:
    """A value as the page shows it. An estimate shows its mean and its 95 % interval."""
    if isinstance(value, dict):
        return f"{written(value['mean'], spec)} ({written(value['low'], spec)} to {written(value['high'], spec)})"
    text = format(value, spec)
    return text if isinstance(value, str) else text.replace("-", "−")


class Number(nodes.abbreviation):
    """A number that tells where it comes from: under the mouse, and when it is reached by Tab or by touch."""


def visit_number(writer: Any, node: Number) -> None:
    writer.body.append(writer.starttag(node, "abbr", "", title=node["explanation"], tabindex=0))


def depart_number(writer: Any, node: Number) -> None:
    writer.body.append("</abbr>")


class Result(SphinxRole):
    """A number of an experiment. It tells where it comes from, see `Number`."""

    kind = "results"

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            text, source = self.read()
        except (OSError, LookupError, TypeError, ValueError) as error:
            message = self.inliner.reporter.error(
                f"There is no number {self.text!r} ({type(error).__name__}: {error}).", line=self.lineno
            )
            return [nodes.problematic(self.rawtext, self.rawtext)], [message]
        key = re.split(r"[:|]", self.text)[0].strip()
        return [Number(self.rawtext, text, explanation=source, classes=["result"], kind=self.kind, key=key)], []

    def read(self) -> tuple[str, str]:
        name, _, rest = self.text.partition(":")
        path, _, spec = rest.partition("|")
        record = read_json(self.env.srcdir, f"experiments/results/{name.strip()}.json")
        source = (
            f"Measured: {record['name']}, {len(record['seeds'])} seeds, commit {record['environment']['commit'][:7]}"
        )
        return written(pick(record | record["results"], path.strip()), spec.strip()), source


class Published(Result):
    """A published figure that we cite. It tells where it stands."""

    kind = "published"

    def read(self) -> tuple[str, str]:
        key, _, spec = self.text.partition("|")
        figure = read_json(self.env.srcdir, "experiments/published.json")[key.strip()]
        return written(figure["value"], spec.strip()), f"Published: {figure['source']}, {figure['where']}"


class Generated(SphinxDirective):
    """A directive that writes MyST."""

    def parse(self, source: str) -> list[nodes.Node]:
        return self.parse_text_to_nodes(source)

    def script(self, record: dict[str, Any]) -> str:
        """The script of a result; a link to it as it was when it ran, where a public repository is known."""
        file, repository = f"experiments/{record['name']}.py", self.config.ichimon_repository
        return f"[`{file}`]({repository}/blob/{record['environment']['commit']}/{file})" if repository else f"`{file}`"


class Experiment(Generated):
    """The card of an experiment: its claim, stated before the run, its verdict, and how it was run."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        try:
            record = read_json(self.env.srcdir, f"experiments/results/{name}.json")
        except OSError as error:
            raise self.error(f"There is no result of {name!r} ({error}); run experiments/{name}.py.") from error
        how = f"{len(record['seeds'])} seeds · {record['cpu_seconds']:.0f} CPU seconds · {self.script(record)}"
        source = [":::{admonition} The claim, written before the run", ":class: claim", "", record["claim"], ""]
        return self.parse("\n".join([*source, f"Verdict: **{record['verdict']}** · {how}", ":::"]))


class Quiz(Generated):
    """Questions in YAML. Every option unfolds to tell whether it is right, and why; it works without a script.

    - ask: Why divide by √d?
      options:
        - {wrong: To save memory., because: "There are as many scores as before; only their size changes."}
        - {right: To keep softmax from saturating., because: "..."}
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        source = []
        for number, question in enumerate(yaml.safe_load("\n".join(self.content)), start=1):
            options = question["options"]
            if sum("right" in option for option in options) != 1 or len(options) < 2:
                raise self.error(f"Question {number} needs two or more options, exactly one of them `right`.")
            source += ["::::{container} quiz-question", f"**{number}.** {question['ask']}", ""]
            for option in options:
                kind, verdict = ("right", "Yes.") if "right" in option else ("wrong", "Not quite.")
                source += [f":::{{dropdown}} {option[kind]}", f":class-container: quiz-{kind}", ""]
                source += [f"**{verdict}** {option['because']}", ":::"]
            source += ["::::", ""]
        return self.parse("\n".join(source))


class FromChapters(Generated):
    """A table made of book/chapters.yml; a chapter is a link as soon as its page exists."""

    def run(self) -> list[nodes.Node]:
        file = Path(self.env.srcdir) / "book/chapters.yml"
        self.env.note_dependency(str(file))
        return self.parse("\n".join(self.table(yaml.safe_load(file.read_text(encoding="utf-8")))))

    def table(self, data: dict[str, Any]) -> list[str]:
        raise NotImplementedError

    def link(self, chapter: dict[str, Any], text: str) -> str:
        exists = f"book/{chapter['page']}" in self.env.found_docs
        return f"[{text}]({chapter['page']}.md)" if exists else text


# How long a page takes: words of prose a minute, and seconds for each figure or listing and each displayed formula.
WORDS_A_MINUTE, SECONDS_A_FIGURE, SECONDS_A_FORMULA = 200, 20, 10


def reading_minutes(page: str) -> int:
    """The minutes that reading the source of a page takes, to the nearest five, and never none."""
    prose = re.sub(r"\A---\n.*?^---$", "", page, flags=re.DOTALL | re.MULTILINE)
    prose, figures = re.subn(r"^```\{code-cell\}.*?^```$", "", prose, flags=re.DOTALL | re.MULTILINE)
    prose, formulas = re.subn(r"^\$\$.*?\$\$", "", prose, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^(:\w[\w-]*:.*|[:`]{3,}.*|\(.+\)=)$", "", prose, flags=re.MULTILINE)  # options, fences, targets
    words = re.sub(r"\{[\w:]+\}`[^`]*`|\$[^$]+\$|\]\([^)]*\)", " x ", prose)  # a role, a formula or a link is one word
    count = len(re.findall(r"\w[\w'’.,-]*", words))
    minutes = count / WORDS_A_MINUTE + (figures * SECONDS_A_FIGURE + formulas * SECONDS_A_FORMULA) / 60
    return max(5, 5 * round(minutes / 5))


class Map(FromChapters):
    """Where a chapter stands: its question, the time it takes, its notebook, what it builds on, what builds on it.

    Its text says what a reader needs and what the notebook holds. A chapter of one's own, which book/chapters.yml does
    not know, shows the rest.
    """

    has_content = True

    def table(self, data: dict[str, Any]) -> list[str]:
        name = self.env.docname.rpartition("/")[2]
        chapters = {c["page"]: c for part in data["parts"] for c in part["chapters"]}
        numbered = {int(page[:2]): c for page, c in chapters.items()}
        number = int(name[:2]) if name in chapters else None
        asked = [(n, q["ask"]) for n, q in enumerate(data["questions"], start=1) if number in q["chapters"]]
        needs = [numbered[n] for n in chapters.get(name, {"needs": []})["needs"]]
        opens = [c for c in chapters.values() if number in c["needs"]]
        page = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
        about = [f"[Source](page:{self.env.docname}{Path(self.env.doc2path(self.env.docname)).suffix})"]
        if repository := self.config.ichimon_repository:
            about.append(f"[Report a mistake]({repository}/issues/new?title={self.env.docname}:%20)")
        rows = [
            ("Question", "\\\n".join(f"**{n}** of {len(data['questions'])} · {ask}" for n, ask in asked)),
            ("Read", f"about {reading_minutes(page)} minutes"),
            ("Build", self.notebook(name)),
            ("Needs", " · ".join(self.link(c, c["title"]) for c in needs)),
            ("Leads to", " · ".join(self.link(c, c["title"]) for c in opens)),
            ("This page", " · ".join(about)),
        ]
        lines = [line for what, said in rows if said for line in (what, f": {said}", "")]
        return ["::::{container} map", *self.content, "", *lines, "::::"]

    def notebook(self, name: str) -> str:
        """The link to a chapter's notebook, what is in it, and where else it opens."""
        if name in self.config.ichimon_left_out:
            return "not in this course"
        file = f"notebooks/{name}/{name}"
        if file not in self.env.found_docs:
            return ""
        source = Path(self.env.srcdir) / f"{file}.ipynb"
        self.env.note_dependency(str(source))
        notebook = json.loads(source.read_text(encoding="utf-8"))
        exercises = notebook["metadata"]["ichimon"]["exercises"]
        text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        rows = dict(reversed(re.findall(r"^\| *`(\w+)`[^|]*\|[^|]*\| *(\d+) *\|", text, flags=re.MULTILINE)))
        said = [f"[the notebook](../{file}.ipynb)", f"{len(exercises)} exercises, {sum(exercises.values()):g} points"]
        if rows.keys() >= exercises.keys():
            said.append(f"about {sum(int(rows[exercise]) for exercise in exercises)} minutes")
        if colab := re.search(r"\((https://colab\.research\.google\.com/\S+)\)", text):
            said.append(f"[in Colab]({colab[1]})")
        return " · ".join(said)


READ_BY_CODE = {  # what the cards and the code of a page's figures read; numbers in its text tell it themselves
    "results": r"\{experiment\} *([\w-]+)|\bresults\(\"([\w-]+)\"\)",
    "published": r"\bpublished\(\"([\w-]+)\"\)",
}


class Numbers(Generated):
    """Where the numbers of a page come from, folded, at its foot: every experiment and every publication it reads."""

    def run(self) -> list[nodes.Node]:
        records = [read_json(self.env.srcdir, f"experiments/results/{name}.json") for name in self.read("results")]
        figures = read_json(self.env.srcdir, "experiments/published.json")
        cited: dict[str, list[str]] = {}
        for figure in (figures[key] for key in self.read("published")):
            places = cited.setdefault(figure["paper"], [])
            if figure["where"] not in places:
                places.append(figure["where"])
        if not records and not cited:
            return []
        source = [":::{dropdown} Where the numbers on this page come from", ":class-container: numbers", ""]
        if records:
            source += ["Measured for this course:", "", *(f"- {self.measured(record)}" for record in records), ""]
        if cited:
            source += ["Published by others:", "", *(f"- {paper}: {'; '.join(at)}" for paper, at in cited.items())]
        return self.parse("\n".join([*source, ":::"]))

    def read(self, kind: str) -> list[str]:
        """The results, or the published figures, that the page reads above this place, each once."""
        page = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
        text = [node["key"] for node in self.state.document.findall(Number) if node["kind"] == kind]
        code = ["".join(groups) for groups in re.findall(READ_BY_CODE[kind], page)]
        return list(dict.fromkeys([*text, *code]))

    def measured(self, record: dict[str, Any]) -> str:
        name, environment = record["name"], record["environment"]
        where = f"[{name}](measured:experiment-{name.replace('_', '-')})"
        title = where if "book/measured" in self.env.found_docs else f"**{name}**"
        seeds, seconds = len(record["seeds"]), record["cpu_seconds"]
        return (
            f"{title}: {record['verdict']}, {seeds} seeds, {seconds:.0f} CPU seconds, commit "
            f"{environment['commit'][:7]}, {self.script(record)}"
        )


def say_where_numbers_come_from(app: Sphinx, docname: str, source: list[str]) -> None:
    """Every page that reads a number says so at its foot: before its references, or at its end."""
    if docname.startswith("book/"):
        text, heading, references = source[0].partition("\n## References\n")
        source[0] = f"{text}\n\n```{{numbers}}\n```\n{heading}{references}"


class Chapters(FromChapters):
    """Every part with its chapters, what each builds, and its notebook's exercises and points."""

    def table(self, data: dict[str, Any]) -> list[str]:
        lines = ["| No. | Chapter | You build | Notebook |", "|---|---|---|---|"]
        for part in data["parts"]:
            lines.append(f"| | **{part['title']}** | | |")
            for chapter in part["chapters"]:
                title = self.link(chapter, chapter["title"])
                lines.append(f"| {chapter['page'][:2]} | {title} | {chapter['builds']} | {self.notebook(chapter)} |")
        return [":::{container} chapters", *lines, ":::"]

    def notebook(self, chapter: dict[str, str]) -> str:
        file = f"notebooks/{chapter['page']}/{chapter['page']}.ipynb"
        if chapter["page"] in self.config.ichimon_left_out:
            return "not in this course"
        if file.removesuffix(".ipynb") not in self.env.found_docs:
            return ""
        self.env.note_dependency(str(Path(self.env.srcdir) / file))
        exercises = read_json(self.env.srcdir, file)["metadata"]["ichimon"]["exercises"]
        return f"[{len(exercises)} parts, {sum(exercises.values()):g} points](../{file})"


class Questions(FromChapters):
    """The fifteen questions, and the chapters that answer each."""

    def table(self, data: dict[str, Any]) -> list[str]:
        chapters = {int(c["page"][:2]): c for part in data["parts"] for c in part["chapters"]}
        lines = ["| No. | Question | Chapter |", "|---|---|---|"]
        for number, question in enumerate(data["questions"], start=1):
            where = ", ".join(self.link(chapters[n], f"{n:02}") for n in question["chapters"])
            lines.append(f"| Q{number} | {question['ask']} | {where} |")
        return [":::{container} questions", *lines, ":::"]


class Play(SphinxDirective):
    """A figure to play with: book/_static/figures/NAME.js draws it, from JSON that the page writes by `figures.data`.

    ```{play} kv calculators
    What a reader may do. It is shown below the figure.

    - The phrases that the script says, in the order in which it expects them; {names} are filled in
    ```

    A page loads the scripts that its figures name, those after the first being what the first needs, and no others.
    Where no script runs nothing is shown, so the page also draws a picture, with the class NAME-still.
    """

    required_arguments = 1
    optional_arguments = 9
    has_content = True

    def run(self) -> list[nodes.Node]:
        name, *needs = self.arguments
        for script in self.arguments:
            if not (Path(self.env.srcdir) / f"book/_static/figures/{script}.js").exists():
                raise self.error(f"There is no figure {script!r}: book/_static/figures/{script}.js does not exist.")
        figure = nodes.container("", *self.parse_content_to_nodes(), classes=["play", f"{name}-figure"])
        figure["scripts"] = [*needs, name]
        return [figure]


def load_figures(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """A page loads the scripts of its own figures, behind what all of them share."""
    figures = doctree.findall(nodes.container) if doctree else []
    scripts = [script for figure in figures for script in figure.get("scripts", [])]
    if scripts:
        app.add_css_file("figures/play.css")
    for script in dict.fromkeys(["play", *scripts] if scripts else []):
        app.add_js_file(f"figures/{script}.js", loading_method="defer")


def forget_stale_outputs(app: Sphinx, config: Any) -> None:
    """Execute pages again when a result or the drawing changed: the cache of executed cells knows only the cells."""
    root = Path(app.srcdir)
    read = [*sorted((root / "experiments").rglob("*.json")), root / "ichimon/figures.py"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in read if file.exists())).hexdigest()
    cache = Path(config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")
    stamp = cache / "results.sha256"
    if stamp.exists() and stamp.read_text() != digest:
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)
    app.add_config_value("ichimon_results", digest, "env")


LEFT_OUT = "This course leaves this chapter out: read on if you like, nothing of it is handed in or marked."


def follow_the_course(app: Sphinx, config: Any) -> None:
    """What course.toml says: what is left out, where the sources are public, and the language of locale/.

    GitHub Actions says where it builds; course.toml has the last word, and `source = ""` is no public repository.
    """
    file = Path(app.srcdir) / "course.toml"
    course = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    app.add_config_value("ichimon_left_out", sorted(course.get("leave_out", [])), "env")
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    repository = course.get("source", f"{server}/{name}" if server and name else "").rstrip("/")
    app.add_config_value("ichimon_repository", repository, "env")
    config.myst_url_schemes = {
        **dict.fromkeys(("http", "https", "mailto")),
        "page": f"{repository}/blob/HEAD/{{{{path}}}}" if repository else "../_sources/{{path}}",
        "measured": "measured.html#{{path}}",  # a place in book/measured, for the pages beside it
    }
    if course.get("language"):
        config.language = course["language"]
        app._init_i18n()  # the theme's own words were looked up before any extension could say a word


def say_what_is_left_out(app: Sphinx, docname: str, source: list[str]) -> None:
    """Below the title of a left-out chapter's page and of its notebook."""
    folder, _, name = docname.rpartition("/")
    if name not in app.config.ichimon_left_out:
        return
    if folder == "book":
        box = f":::{{admonition}} Not in this course\n{LEFT_OUT}\n:::"
        source[0] = re.sub(r"^# .+$", lambda title: f"{title[0]}\n\n{box}", source[0], count=1, flags=re.MULTILINE)
    elif folder == f"notebooks/{name}":
        notebook = json.loads(source[0])
        cell = {
            "cell_type": "markdown",
            "id": "left-out",
            "metadata": {},
            "source": f"**Not in this course.** {LEFT_OUT}",
        }
        notebook["cells"].insert(1, cell)
        source[0] = json.dumps(notebook)


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages, so that a formula is drawn without a network."""
    if error or app.builder.format != "html":
        return
    files = metadata.files(MATHJAX_PACKAGE) or []
    found = [Path(str(file.locate())) for file in files if file.name == MATHJAX_FILE]
    if not found or hashlib.sha256(found[0].read_bytes()).hexdigest() != MATHJAX_SHA256:
        raise ExtensionError(
            f"The package {MATHJAX_PACKAGE} does not hold the {MATHJAX_FILE} we know; install the version that "
            "requirements.txt pins."
        )
    shutil.copyfile(found[0], Path(app.outdir) / "_static" / MATHJAX_FILE)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("result", Result())
    app.add_role("published", Published())
    app.add_directive("experiment", Experiment)
    app.add_directive("quiz", Quiz)
    app.add_node(Number, html=(visit_number, depart_number))
    app.add_directive("map", Map)
    app.add_directive("numbers", Numbers)
    app.add_directive("chapters", Chapters)
    app.add_directive("questions", Questions)
    app.add_directive("play", Play)
    own = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    digest = hashlib.sha256(own).hexdigest()
    app.add_config_value("ichimon_book", digest, "env")  # pages are read again when what they are made by changes
    app.connect("config-inited", follow_the_course)
    app.connect("config-inited", forget_stale_outputs)
    app.connect("source-read", say_what_is_left_out)
    app.connect("source-read", say_where_numbers_come_from)
    app.connect("html-page-context", load_figures)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
