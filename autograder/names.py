"""Whose work it is: names that no student can have, and names that could be taken for somebody else's."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from autograder.report import clean

MAX_NAME = 100  # characters

# What Python calls printable and nobody sees: joiners, fillers, a blank Braille cell, variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# Letters of other alphabets that most fonts draw as these Latin ones (a choice of Unicode's confusables.txt).
_DRAWN_AS = str.maketrans(
    "аеорсухѕіјһԁԛԝӏ" + "АВЕКМНОРСТУХЅІЈԚԜӀ" + "αινορυγ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ" + "օսհո" + "ıɑɡ",
    "aeopcyxsijhdqwl" + "ABEKMHOPCTYXSIJQWl" + "aivopuy" + "ABEZHIKMNOPTYX" + "ouhn" + "iag",
)
_STROKES = str.maketrans("I1|0", "lllO")
_ALPHABETS = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})


def trouble(student: str) -> str:
    """Why this cannot be a student's name, as a sentence; "" if it can."""
    if len(student) > MAX_NAME or not all(c.isprintable() or unicodedata.category(c) == "Zs" for c in student):
        why = f"it is longer than {MAX_NAME} characters or holds some that cannot be printed"
    elif not student or student != student.strip() or _INVISIBLE.search(student):
        why = "it begins or ends with a space, or holds characters that nobody sees"
    elif any(len(_alphabets(word)) > 1 for word in re.findall(r"[^\W\d_]+", student)):
        why = "one of its words mixes two alphabets that look alike"
    else:
        return ""
    shown = " ".join(clean(student, 40).split())
    return f"“{shown}” cannot be a student's name: {why}. Rename the folder or the file."


def look_alikes(students: Iterable[str]) -> dict[str, str]:
    """For each name that could be taken for another one of these, a sentence that names both.

    Upper and lower case, ways to encode an accent, dots at the end, I and l and 1, Latin and Cyrillic letters: nobody
    should get another's mark because a person, a file system or a database takes one name for the other.
    """
    names = sorted(set(students))
    told: dict[str, str] = {}
    for key in (letters, _drawn_letters, _strokes):
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike[key(name)].append(name)
        for group in alike.values():
            for name in group if len(group) > 1 else ():
                other = next(one for one in group if one != name)
                told.setdefault(name, _told(name, other))
    return told


def _told(name: str, other: str) -> str:
    spelled = "" if (name + other).isascii() else f" (in ASCII: {name!a} and {other!a})"
    return (
        f"“{clean(name, 40)}” could be taken for “{clean(other, 40)}”{spelled}, who handed in too: "
        "find out who is who, and rename one of them."
    )


def _alphabets(word: str) -> set[str]:
    return {unicodedata.name(c, "").partition(" ")[0] for c in unicodedata.normalize("NFKC", word)} & _ALPHABETS


def _plain(name: str) -> str:
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).split()).rstrip(". ")


def letters(name: str) -> str:
    """The same for two names that differ in case, in how an accent is encoded, or in what nobody sees."""
    return unicodedata.normalize("NFKC", _plain(name).casefold())


def _drawn_letters(name: str) -> str:
    return _plain(name).translate(_DRAWN_AS).casefold()


def _strokes(name: str) -> str:
    return _plain(name).translate(_DRAWN_AS).translate(_STROKES)
