"""What is ours in the book: numbers read from results, quizzes, the table of chapters, and MathJax without a network.

    {result}`c02_word_sense: accuracy.trained.hashi.mean | .0%`   a number of experiments/results/c02_word_sense.json
    {published}`gpt2_small_layers`                                a number of experiments/published.json
    ```{experiment} c02_word_sense                                its claim, its verdict and how it was run
    ```{quiz}                                                     questions in YAML, see `Quiz`
    ```{chapters}  and  ```{questions}                            tables made of book/chapters.yml

Directives write MyST and parse it, so that what they show is translated like any other text.
"""

from __future__ import annotations

import hashlib
import json
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
        return f"{value['mean']:{spec}} ({value['low']:{spec}} to {value['high']:{spec}})"
    return format(value, spec)


class Result(SphinxRole):
    """A number of an experiment; hovering over it tells where it comes from."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        try:
            text, source = self.read()
        except (OSError, LookupError, TypeError, ValueError) as error:
            message = self.inliner.reporter.error(
                f"There is no number {self.text!r} ({type(error).__name__}: {error}).", line=self.lineno
            )
            return [nodes.problematic(self.rawtext, self.rawtext)], [message]
        return [nodes.abbreviation(self.rawtext, text, explanation=source, classes=["result"])], []

    def read(self) -> tuple[str, str]:
        name, _, rest = self.text.partition(":")
        path, _, spec = rest.partition("|")
        record = read_json(self.env.srcdir, f"experiments/results/{name.strip()}.json")
        source = (
            f"Measured: {record['name']}, {len(record['seeds'])} seeds, commit {record['environment']['commit'][:7]}"
        )
        return written(pick(record | record["results"], path.strip()), spec.strip()), source


class Published(Result):
    """A published figure that we cite; hovering over it tells where it stands."""

    def read(self) -> tuple[str, str]:
        key, _, spec = self.text.partition("|")
        figure = read_json(self.env.srcdir, "experiments/published.json")[key.strip()]
        return written(figure["value"], spec.strip()), f"Published: {figure['source']}, {figure['where']}"


class Generated(SphinxDirective):
    """A directive that writes MyST."""

    def parse(self, source: str) -> list[nodes.Node]:
        return self.parse_text_to_nodes(source)


class Experiment(Generated):
    """The card of an experiment: its claim, stated before the run, its verdict, and how it was run."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        try:
            record = read_json(self.env.srcdir, f"experiments/results/{name}.json")
        except OSError as error:
            raise self.error(f"There is no result of {name!r} ({error}); run experiments/{name}.py.") from error
        how = f"{len(record['seeds'])} seeds · {record['cpu_seconds']:.0f} CPU seconds · `experiments/{name}.py`"
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

    def link(self, chapter: dict[str, str], text: str) -> str:
        exists = f"book/{chapter['page']}" in self.env.found_docs
        return f"[{text}]({chapter['page']}.md)" if exists else text


class Chapters(FromChapters):
    """Every part with its chapters, what each builds, and its notebook's exercises and points."""

    def table(self, data: dict[str, Any]) -> list[str]:
        lines = ["| | Chapter | You build | Notebook |", "|---|---|---|---|"]
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
        lines = ["| | Question | Chapter |", "|---|---|---|"]
        for number, question in enumerate(data["questions"], start=1):
            where = ", ".join(self.link(chapters[n], f"{n:02}") for n in question["chapters"])
            lines.append(f"| Q{number} | {question['ask']} | {where} |")
        return [":::{container} questions", *lines, ":::"]


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
    """What course.toml says: the chapters that are left out, and the language, whose translations are in locale/."""
    file = Path(app.srcdir) / "course.toml"
    course = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    app.add_config_value("ichimon_left_out", sorted(course.get("leave_out", [])), "env")
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
    app.add_directive("chapters", Chapters)
    app.add_directive("questions", Questions)
    app.connect("config-inited", follow_the_course)
    app.connect("config-inited", forget_stale_outputs)
    app.connect("source-read", say_what_is_left_out)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
