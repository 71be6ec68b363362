"""The course in another language: gettext's .po files in locale/LANGUAGE/LC_MESSAGES, read where words are shown.

`grader.po` has the grader's own sentences, `NN-topic.po` those of a chapter: its prose, the messages of its visible
checks, and what a student may read of its hidden tests and mistakes. Results are stored in the language of the source
and translated when a page is made, so no language moves a mark. What has no translation stays as it is.

A message may hold placeholders, `{name}`. Where a finished sentence has to be translated, it is compared with the
messages around their placeholders.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ichimon.notebook import Cell, NotebookError

if TYPE_CHECKING:
    from autograder.report import Report

FOLDER = "locale"
SOURCE_LANGUAGE = "en"
PLACE = re.compile(r"\{(\w+)\}")


class TranslationError(NotebookError):
    """What is wrong with a translation, in a sentence."""


def catalogue(root: Path, language: str, name: str) -> Path:
    return root / FOLDER / language / "LC_MESSAGES" / f"{name}.po"


@functools.cache
def _read(path: Path, modified: float) -> dict[str, str]:
    from babel.messages.pofile import PoFileError, read_po

    try:
        with path.open("rb") as file:
            found = read_po(file, abort_invalid=True)
    except (PoFileError, UnicodeDecodeError, ValueError) as error:
        raise TranslationError(f"{path.name} in {path.parent.parent.name} is no .po file: {error}.") from None
    return {
        message.id: message.string
        for message in found
        if isinstance(message.id, str) and message.id and isinstance(message.string, str) and message.string
        if not message.fuzzy and Counter(PLACE.findall(message.id)) == Counter(PLACE.findall(message.string))
    }


def translations(path: Path) -> Mapping[str, str]:
    """The messages of a .po file that can be used: translated, not fuzzy, with the placeholders of the source."""
    return _read(path, path.stat().st_mtime) if path.exists() else {}


class Words:
    """What students read, in one language. Without one, every text stays as it is."""

    def __init__(self, language: str = "", known: Mapping[str, str] | None = None) -> None:
        self.language = language or SOURCE_LANGUAGE
        self._known = known or {}
        self._patterns = sorted(
            (
                (PLACE.split(text), translated)
                for text, translated in self._known.items()
                if PLACE.search(text) and "{1}" not in text  # a template's own words are no sentence
            ),
            key=lambda pattern: -sum(map(len, pattern[0][::2])),  # the one that says most is asked first
        )

    @property
    def html_language(self) -> str:
        return self.language.replace("_", "-")

    @property
    def from_right_to_left(self) -> bool:
        if self.language == SOURCE_LANGUAGE:
            return False
        from babel import Locale

        return Locale.parse(self.language).text_direction == "rtl"

    def __call__(self, text: str, **values: object) -> str:
        """A sentence of ours, and then the values in their places."""
        return PLACE.sub(lambda place: str(values.get(place[1], place[0])), self._known.get(text, text))

    def sentence(self, text: str, depth: int = 2) -> str:
        """A finished sentence, whatever stands in its places; "so: that" where only "that" is a sentence we know."""
        if not self._known or not text:
            return text
        found = self._whole(text, depth)
        start = 0
        while found is None and (colon := text.find(": ", start)) >= 0 and start < 300:
            rest = self._whole(text[colon + 2 :], depth)
            found = None if rest is None else f"{self.sentence(text[:colon], 0)}: {rest}"
            start = colon + 2
        return text if found is None else found

    def _whole(self, text: str, depth: int) -> str | None:
        if text in self._known:
            return self._known[text]
        for parts, translated in self._patterns:
            values = _fitted(text, parts[::2])
            if values is not None and (parts[0] or ": " not in values[0]):  # else it would swallow a claim before it
                told = [self.sentence(value, depth - 1) if depth else value for value in values]
                places = dict(zip(reversed(parts[1::2]), reversed(told), strict=True))
                return PLACE.sub(lambda place, places=places: places[place[1]], translated)  # type: ignore[misc]
        return None

    def report(self, report: Report) -> Report:
        """A report as its student reads it; the names of exercises, cells and tests stay."""
        if not self._known:
            return report
        exercises = tuple(
            msgspec.structs.replace(
                result,
                tests=tuple(
                    msgspec.structs.replace(
                        test,
                        claim=self(test.claim),
                        hint=self(test.hint),
                        message=self.sentence(test.message),
                        mistake=self(test.mistake),
                    )
                    for test in result.tests
                ),
            )
            for result in report.exercises
        )
        cells = tuple(msgspec.structs.replace(run, error=self.sentence(run.error)) for run in report.cells)
        notices = tuple(map(self.sentence, report.notices))
        return msgspec.structs.replace(report, exercises=exercises, notices=notices, cells=cells)


def _fitted(text: str, literals: Sequence[str]) -> list[str] | None:
    """What stands between the literals if the text is made of them in their order. It never goes back, so that no
    text, however hostile, takes long."""
    first, *middle, last = literals
    if not (text.startswith(first) and text.endswith(last) and len(text) > len(first) + len(last)):
        return None
    values, position, end = [], len(first), len(text) - len(last)
    for literal in middle:
        found = text.find(literal, position, end) if literal else -1
        if found < 0:
            return None
        values.append(text[position:found])
        position = found + len(literal)
    return [*values, text[position:end]]


def words(root: Path, language: str, chapter: str = "") -> Words:
    """The words of a chapter and of the grader in the course's language."""
    if language in ("", SOURCE_LANGUAGE):
        return Words()
    known = dict(translations(catalogue(root, language, "grader")))
    if re.fullmatch(r"[\w-]+", chapter):
        known |= translations(catalogue(root, language, chapter))
    return Words(language, known)


# -- a page's template ----------------------------------------------------------------------------------------------

_MARKUP = re.compile(r"(\{%.*?%\}|\{#.*?#\}|<style>.*?</style>|<[^<>]*>)", re.DOTALL)
_LABEL = re.compile(r'(?<=aria-label=")[^"]*')
_SHOWN = re.compile(r"\{\{.*?\}\}")
_UNSAFE = re.compile(r"[<>]|\{[{%#]")  # a translation is words: whoever writes one writes no page


def unsafe(translated: str) -> bool:
    """Whether there is more than words in the translation of a template's words."""
    return bool(_UNSAFE.search(translated))


def template(source: str, translate: Callable[[str], str]) -> str:
    """A Jinja template with its own words translated, and with none of those that it is given ({1}, {2}, ...)."""

    def told(text: str) -> str:
        given = _SHOWN.findall(text)
        places = itertools.count(1)
        plain = " ".join(_SHOWN.sub(lambda _: f"{{{next(places)}}}", text).split())
        if not re.search(r"[^\W\d_]{2}", plain):
            return text
        translated = translate(plain)
        if translated == plain or unsafe(translated):
            return text
        return text.replace(text.strip(), PLACE.sub(lambda place: given[int(place[1]) - 1], translated))

    parts = _MARKUP.split(source)
    parts[::2] = map(told, parts[::2])
    parts[1::2] = (_LABEL.sub(lambda label: told(label[0]), part) for part in parts[1::2])
    return "".join(parts)


# -- a notebook's prose ---------------------------------------------------------------------------------------------

_ITEM = re.compile(r"(\s*(?:[-*+]|\d+[.)]) +)(?=\S)")
_HEADING = re.compile(r"(#{1,6} +)")
_NO_WORDS = re.compile(r"`+[^`]*`+|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+", re.DOTALL)


def prose(text: str) -> Iterator[tuple[str, str]]:
    """Markdown as (what stays, a message) pairs that together are the text, but for where its lines break. A message is
    a paragraph, a heading, an item of a list or a table."""
    lines = text.split("\n")
    i = 0
    while i < len(lines):
        start, line = i, lines[i]
        i += 1
        if fence := re.match(r"\s*(```+|~~~+|\$\$)", line):
            closed = fence[1] == "$$" and line.count("$$") > 1
            while not closed and i < len(lines):
                closed = fence[1] in lines[i]
                i += 1
            yield "\n".join(lines[start:i]), ""
        elif not line.strip():
            yield line, ""
        elif line.startswith("|"):
            while i < len(lines) and lines[i].startswith("|"):
                i += 1
            yield "", "\n".join(lines[start:i])
        elif heading := _HEADING.match(line):
            yield heading[1], line[heading.end() :]
        else:
            item = _ITEM.match(line)
            while i < len(lines) and lines[i].strip() and not _begins_anew(lines[i]):
                i += 1
            own = lines[start:i]
            own[0] = own[0][item.end() :] if item else own[0]
            broken = any(each.endswith(("  ", "\\")) for each in own[:-1])
            yield item[1] if item else "", ("\n" if broken else " ").join(map(str.strip if not broken else str, own))


def _begins_anew(line: str) -> bool:
    return bool(_ITEM.match(line) or _HEADING.match(line) or re.match(r"\||\s*(```|~~~|\$\$)", line))


def has_words(text: str) -> bool:
    return bool(re.search(r"[^\W\d_]{2}", _NO_WORDS.sub(" ", text)))


def _told_prose(text: str, known: Words) -> str:
    parts = [(stays, message, known(message)) for stays, message in prose(text)]
    if all(message == told for _, message, told in parts):
        return text  # also its line breaks
    return "\n".join(stays + told for stays, _, told in parts)


# -- messages in code -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A string or f-string in code: its message, and what its placeholders stand for."""

    message: str
    node: ast.expr
    places: Mapping[str, ast.FormattedValue]


def texts(node: ast.AST) -> Iterator[Text]:
    """The strings of an expression that have words in them. A placeholder has the name of what it shows, if that is a
    name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if " " in node.value and has_words(node.value):
            yield Text(node.value, node, {})
    elif isinstance(node, ast.JoinedStr):
        places: dict[str, ast.FormattedValue] = {}
        message = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                name = part.value.id if isinstance(part.value, ast.Name) else "value"
                numbered = (name, *(f"{name}{number}" for number in range(2, 99)))
                name = next(each for each in numbered if each not in places)
                places[name] = part
                message += f"{{{name}}}"
            elif isinstance(part, ast.Constant):
                message += str(part.value)
        if has_words(PLACE.sub(" ", message)):
            yield Text(message, node, places)
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def check_texts(source: str) -> Iterator[Text]:
    """What the visible checks and the cells to see say: the messages of their asserts, and what they print."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and node.msg:
            yield from texts(node.msg)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            for argument in node.args:
                if isinstance(argument, ast.Constant | ast.JoinedStr):
                    yield from texts(argument)


def _told_code(source: str, known: Words) -> str:
    """The same code with those texts translated: nothing that it computes or compares is touched."""
    lines = source.encode().split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    data = source.encode()
    found = sorted(check_texts(source), key=lambda text: (text.node.lineno, text.node.col_offset), reverse=True)
    for text in found:
        node, told = text.node, known(text.message)
        if told == text.message or node.end_lineno is None or node.end_col_offset is None:
            continue
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        data = data[:begin] + _literal(told, text.places).encode() + data[end:]
    return data.decode()


def _literal(told: str, places: Mapping[str, ast.FormattedValue]) -> str:
    if not places:
        return repr(told)
    parts = PLACE.split(told)
    values: list[ast.expr] = [
        places[part] if i % 2 else ast.Constant(part) for i, part in enumerate(parts) if part or i % 2
    ]
    return ast.unparse(ast.JoinedStr(values))


def cells(found: Sequence[Cell], known: Words) -> list[Cell]:
    """A source's cells with what a student reads in them translated; ids and code stay."""
    told = {"markdown": _told_prose, "code": _told_code}
    return [
        replace(cell, source=told[cell.kind](cell.source, known))
        if (cell.kind == "markdown" and cell.role == "other") or cell.role in ("check", "see")
        else cell
        for cell in found
    ]
