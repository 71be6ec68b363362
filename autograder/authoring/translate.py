"""What there is to translate, and the .po files in locale/LANGUAGE that hold the translations.

They are gettext's, so Poedit, Weblate and whatever else translators use can edit them. `update` brings them up to the
sources: a new message is empty, one that changed a little keeps its translation and is marked fuzzy until somebody has
looked at it, one that is gone is kept at the end as a comment.
"""

from __future__ import annotations

import ast
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from babel import Locale, UnknownLocaleError
from babel.messages.catalog import Catalog
from babel.messages.pofile import PoFileError, read_po, write_po
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from autograder import translation, variants
from autograder.course import Course
from autograder.report import Outcome
from autograder.translation import PLACE, TranslationError, catalogue, texts
from ichimon import notebook

ROOT = Path(__file__).resolve().parents[2]
Kind = Literal["prose", "check", "claim", "hint", "message", "mistake", "page"]

# Where the sentences are written that reach a student: a file and its functions.
SPOKEN = {
    "autograder/submission.py": ("content", "_cells", "read"),
    "autograder/grading.py": ("_borrowed",),
    "autograder/student.py": ("tensor", "_kind", "_non_finite", "_afford", "_missing", "_ask", "grads"),
    "autograder/testing.py": ("gradients", "first_difference"),
    "autograder/sandbox/jail.py": ("_excess", "_ending", "ask", "_reply"),
    "ichimon/notebook.py": ("_is_ipynb", "_text", "_bytes", "_document", "_ipynb_cells"),
}
# Sentences that code puts together.
COMPOSED = (
    "{outcome}, {passed} of {cases} cases pass",
    "stopped: {outcome}: {reason}.",
    "{wrong} of {total} entries of {name} are wrong.",
    "{wrong} of {total} entries of {name} are {what}.",
    "{wrong} of {total} entries of {name} are off by up to {difference}.",
    "{wrong} of {total} entries of {name} are off by up to {difference}, the largest at position {position}.",
    "an error of type {name} should have been raised, but none was.",
    "your code goes here: replace this line (line {line} of cell {cell})",
    "the result",
    "In the book: {section}",
    "Open this notebook in Colab",
)


@dataclass(frozen=True)
class Message:
    """What somebody is to translate, what it is, and in which file it stands."""

    id: str
    kind: Kind
    where: str


@dataclass
class Counts:
    """How much of a catalogue is translated."""

    name: str
    messages: int = 0
    fuzzy: int = 0
    missing: int = 0

    @property
    def translated(self) -> int:
        return self.messages - self.fuzzy - self.missing


# -- what there is --------------------------------------------------------------------------------------------------


def grader_messages(root: Path = ROOT) -> list[Message]:
    """What the grader and its feedback pages say to students."""
    found = [Message(outcome.value, "page", "autograder/report.py") for outcome in Outcome]
    for name in ("autograder/page.html", "autograder/feedback.html"):
        found += [Message(text, "page", name) for text in _of_template((root / name).read_text(encoding="utf-8"))]
    found += [Message(text, "message", "autograder/student.py") for text in COMPOSED]
    for node in ast.walk(ast.parse((root / "autograder/feedback.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "words" and node.args:
            found += [Message(text.message, "page", "autograder/feedback.py") for text in texts(node.args[0])]
    for name, functions in SPOKEN.items():
        for node in ast.walk(ast.parse((root / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                spoken = node.body[1:] if ast.get_docstring(node) else node.body
                found += [Message(t.message, "message", name) for part in spoken for t in texts(part)]
    return _once(found)


def chapter_messages(name: str, root: Path = ROOT) -> list[Message]:
    """What a student reads in a chapter's notebook and in the feedback on it."""
    source, tests = f"solutions/{name}.py", f"autograder/tests/test_{name.replace('-', '_')}.py"
    found = []
    for cell in notebook.cells(root / source):
        if cell.kind == "markdown" and cell.role == "other":
            found += [Message(text, "prose", source) for _, text in translation.prose(cell.source) if text]
        elif cell.role in ("check", "see"):
            found += [Message(text.message, "check", source) for text in translation.check_texts(cell.source)]
    found = [message for message in found if translation.has_words(PLACE.sub(" ", message.id))]
    if (root / tests).exists():
        found += [Message(text, kind, tests) for text, kind in _of_tests((root / tests).read_text(encoding="utf-8"))]
    mistakes = root / "autograder/mistakes" / f"{name}.py"
    if mistakes.exists():
        found += [Message(each.says, "mistake", f"autograder/mistakes/{name}.py") for each in variants.read(mistakes)]
    return _once(found)


def page_messages(name: str, root: Path = ROOT) -> list[Message]:
    """What Sphinx's gettext builder found on a page of the book. The MyST that it finds is prose."""
    with (root / "_build/gettext" / f"{name}.pot").open("rb") as file:
        return [Message(str(message.id), "prose", f"{name}.md") for message in read_po(file) if message.id]


def _of_template(source: str) -> list[str]:
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    translation.template(source, note)
    return found


def _of_tests(source: str) -> Iterator[tuple[str, Kind]]:
    """The claims, hints and messages of a file of hidden tests."""
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " "), "claim"
            yield (ast.get_docstring(node) or "").strip(), "hint"
    for part in ast.walk(tree):
        said: list[ast.expr] = []
        if isinstance(part, ast.Assert) and part.msg:
            said = [part.msg]
        elif isinstance(part, ast.Call):
            said = [keyword.value for keyword in part.keywords if keyword.arg in ("claim", "name")]
            if isinstance(part.func, ast.Name) and part.func.id == "AssertionError":
                said += part.args
        elif isinstance(part, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "claim" for t in part.targets):
            said = [part.value]
        for expression in said:
            yield from ((text.message, "message") for text in texts(expression))


def _once(messages: list[Message]) -> list[Message]:
    first: dict[str, Message] = {}
    for message in messages:
        if message.id.strip():
            first.setdefault(message.id, message)
    return list(first.values())


def everything(root: Path = ROOT, only: Sequence[str] = ()) -> dict[str, list[Message]]:
    """Every catalogue and its messages: the grader's, one for each chapter that is taught, and one for each page of the
    book, if Sphinx has read the book (`make translate`)."""
    chapters = [source.stem for source in Course(root).sources]
    pages = [f"book/{file.stem}" for file in sorted((root / "_build/gettext/book").glob("*.pot"))]
    if unknown := sorted(set(only) - {"grader", *chapters, *pages}):
        raise TranslationError(
            f"There is no catalogue {unknown[0]!r}. There is: {', '.join(['grader', *chapters, *pages])}."
        )
    chosen = [name for name in ("grader", *chapters, *pages) if name in only or not only]
    read = {"grader": lambda _, root: grader_messages(root), **dict.fromkeys(pages, page_messages)}
    return {name: read.get(name, chapter_messages)(name, root) for name in chosen}


# -- the .po files --------------------------------------------------------------------------------------------------


def locale_of(language: str) -> Locale:
    try:
        return Locale.parse(language)
    except (ValueError, UnknownLocaleError):
        raise TranslationError(f"{language!r} is no language: give a code such as ja, de or pt_BR.") from None


def read(path: Path, language: str) -> Catalog:
    try:
        with path.open("rb") as file:
            return read_po(file, locale=locale_of(language), abort_invalid=True)
    except (PoFileError, UnicodeDecodeError) as error:
        raise TranslationError(f"{path.name} of {language} is no .po file: {error}.") from None


def update(language: str, root: Path = ROOT, only: Sequence[str] = ()) -> list[Path]:
    """Bring the .po files of a language up to the sources, or make them; return those that changed."""
    changed = []
    for name, messages in everything(root, only).items():
        path = catalogue(root, language, name)
        template = Catalog(fuzzy=False)
        for message in messages:
            template.add(message.id, locations=[(message.where, 0)], auto_comments=[message.kind])
        if path.exists():
            catalog = read(path, language)
            made, revised = catalog.creation_date, catalog.revision_date
            catalog.update(template, update_header_comment=False)
            catalog.creation_date, catalog.revision_date = made, revised  # else every file changes each time
        else:
            catalog = Catalog(
                locale_of(language),
                header_comment=f"# Ichimon, {name}",
                project=f"Ichimon, {name}",
                version="1",
                msgid_bugs_address="-",
                last_translator="-",
                language_team="-",
                fuzzy=False,
            )
            for each in template:
                if each.id:
                    catalog[each.id] = each
        written = io.BytesIO()
        write_po(written, catalog, width=110, include_lineno=False)
        if not path.exists() or path.read_bytes() != written.getvalue():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(written.getvalue())
            changed.append(path)
    return changed


def status(language: str, root: Path = ROOT, only: Sequence[str] = ()) -> tuple[list[Counts], list[str]]:
    """How much is translated, catalogue by catalogue, and what is wrong with what is."""
    counts, problems = [], []
    for name, messages in everything(root, only).items():
        path = catalogue(root, language, name)
        catalog = read(path, language) if path.exists() else Catalog(locale_of(language))
        told = Counts(name, len(messages))
        for message in messages:
            there = catalog.get(message.id)
            if there is None or not there.string:
                told.missing += 1
            elif there.fuzzy:
                told.fuzzy += 1
            else:
                begins = f"{path.name}, “{' '.join(message.id.split())[:60]}”"
                problems += [f"{begins}: {problem}" for problem in wrong(message, str(there.string))]
        counts.append(told)
    return counts, problems


def summary(language: str, root: Path = ROOT) -> str:
    """One line for whoever builds the course in this language."""
    counts, problems = status(language, root)
    fuzzy, missing = sum(each.fuzzy for each in counts), sum(each.missing for each in counts)
    total = sum(each.messages for each in counts)
    if problems:
        raise TranslationError("\n".join(problems))
    return (
        f"locale/{language}: {total - fuzzy - missing:,} of {total:,} messages are translated; "
        f"{fuzzy:,} out of date and {missing:,} missing ones stay English (`autograder translate {language}`)."
    )


# -- what a translation must keep -----------------------------------------------------------------------------------

_MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, double_inline=True)


def wrong(message: Message, translated: str) -> list[str]:
    """What a translation lost or broke, in sentences."""
    if message.kind == "prose":
        before, after = _kept(message.id), _kept(translated)
        problems = [f"{what} is in the source and not in the translation." for what in (before - after)]
        problems += [f"{what} is in the translation and not in the source." for what in (after - before)]
        if "**" in _text(translated) and "**" not in _text(message.id):
            problems.append("a ** marks nothing: between letters it needs a space or a sign of its own on the outside.")
        return problems
    if message.kind == "page" and translation.unsafe(translated):
        return ["it holds markup, and a translation is words only."]
    places = Counter(PLACE.findall(message.id)), Counter(PLACE.findall(translated))
    if places[0] != places[1]:
        wanted = ", ".join(sorted(places[0])) or "none"
        return [f"its placeholders are {', '.join(sorted(places[1])) or 'none'}, and the source has {wanted}."]
    return []


def _kept(text: str) -> Counter[str]:
    """The code, formulas, links, pictures and tables of Markdown, which no translation changes."""
    found: Counter[str] = Counter()
    for token in _MARKDOWN.parse(text):
        found.update([f"a cell of a table ({token.type})"] if token.type in ("th_open", "td_open") else [])
        for part in token.children or []:
            if part.type == "code_inline":
                found[f"`{part.content}`"] += 1
            elif part.type.startswith("math_inline"):
                formula = " ".join(part.content.split())
                found[f"${formula}$"] += 1
            elif part.type in ("link_open", "image"):
                found[f"the link to {part.attrGet('href') or part.attrGet('src')}"] += 1
    return found


def _text(text: str) -> str:
    """What Markdown leaves as text."""
    children = (part for token in _MARKDOWN.parse(text) for part in token.children or [])
    return " ".join(part.content for part in children if part.type == "text")
