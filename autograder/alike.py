"""Which submissions are more alike than an exercise makes them: a hint for a person to look, never a verdict.

Fingerprints are copydetect's: code without its layout, comments and the names in it, hashed piece by piece (Schleimer,
Wilkerson and Aiken 2003). Pieces of the starter, of the set-up, of the reference and of every listed right answer are
left out, because many come to the same answer on their own.
"""

from __future__ import annotations

import functools
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from autograder import assignment as assignments
from autograder import variants
from autograder.report import Report

PIECE = 25  # characters of stripped code, about one line
WINDOW = 6  # of so many neighbouring pieces one is kept
ENOUGH = 20  # with fewer pieces of one's own there is nothing to compare
ALIKE = 0.6  # of the pieces of the shorter answer; people who work alone rarely share a tenth
CROWD = 12  # a piece that more than so many share, and more than a quarter of the class, is how one writes it


@dataclass(frozen=True)
class Pair:
    """Two students, and which share of the shorter one's own code the other has too."""

    one: str
    other: str
    share: float
    exercises: tuple[str, ...]  # where most of it is, the most alike first


def pairs(reports: Iterable[Report]) -> list[Pair]:
    """The pairs that are alike, the most alike first. What did not run, such as a wrong file, is not compared."""
    own = {report.student: _pieces(report) for report in reports}
    spread = Counter(piece for pieces in own.values() for piece in pieces)
    crowd = max(CROWD, len(own) // 4)
    having: defaultdict[int, list[str]] = defaultdict(list)
    for student, pieces in own.items():
        own[student] = {piece: exercise for piece, exercise in pieces.items() if spread[piece] <= crowd}
        if len(own[student]) >= ENOUGH:
            for piece in own[student]:
                having[piece].append(student)
    shared: Counter[tuple[str, str]] = Counter()
    for students in having.values():
        shared.update(combinations(sorted(students), 2))
    found = []
    for (one, other), count in shared.items():
        share = count / min(len(own[one]), len(own[other]))
        if share >= ALIKE:
            where = Counter(own[one][piece] for piece in own[one].keys() & own[other].keys())
            found.append(Pair(one, other, share, tuple(name for name, _ in where.most_common())))
    return sorted(found, key=lambda pair: (-pair.share, pair.one, pair.other))


def _pieces(report: Report) -> dict[int, str]:
    """A submission's own pieces and the exercise each is from."""
    found: dict[int, str] = {}
    for cell in report.cells:
        if cell.exercise:
            own = _fingerprints(cell.source, WINDOW) - _common(report.assignment)
            found |= dict.fromkeys(own, cell.exercise)
    return found


@functools.cache
def _common(name: str) -> frozenset[int]:
    """What anybody's answer to an assignment may hold."""
    try:
        assignment = assignments.load(name)
    except assignments.UnknownAssignment:  # results of a chapter that this course no longer has
        return frozenset()
    known = variants.alternatives(name)
    sources = [assignment.set_up, *assignment.reference.values(), *(each.source for each in known)]
    return frozenset().union(*(_fingerprints(source, 1) for source in sources))


def _fingerprints(source: str, window: int) -> frozenset[int]:
    from copydetect import CodeFingerprint  # a second, with pygments and matplotlib

    return frozenset(CodeFingerprint("answer.py", PIECE, window, fp=io.StringIO(source), language="python").hashes)
