"""Wrong answers that we know (mistakes/) and right ones written differently (alternatives/): one percent file a
chapter.

# %% causal_mask: the diagonal is left out
# caught by: test_a_position_sees_itself_and_the_past
# says: Row i leaves out column i: a position must see itself too.
def causal_mask(n): ...
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Variant:
    """One answer: the exercise it belongs to, what is special about it, and, for a mistake, who catches it and what
    is said."""

    exercise: str
    title: str
    source: str
    caught_by: tuple[str, ...] = ()
    says: str = ""


@functools.cache
def mistakes(assignment: str) -> tuple[Variant, ...]:
    return read(FOLDER / "mistakes" / f"{assignment}.py")


@functools.cache
def alternatives(assignment: str) -> tuple[Variant, ...]:
    return read(FOLDER / "alternatives" / f"{assignment}.py")


def read(path: Path) -> tuple[Variant, ...]:
    """The answers in a file. Raises ValueError with file and title for a cell that is not as above."""
    found = []
    for block in re.split(r"^# %% ", path.read_text(), flags=re.MULTILINE)[1:]:
        header, _, source = block.partition("\n")
        exercise, colon, title = header.partition(": ")
        if not colon or not title.strip():
            raise ValueError(
                f"{path.name}: a cell begins with `# %% exercise: what is special`, not with `# %% {header}`."
            )
        caught = re.search(r"^# caught by: (.+)$", source, re.MULTILINE)
        says = re.search(r"^# says: (.+)$", source, re.MULTILINE)
        found.append(
            Variant(
                exercise.strip(),
                title.strip(),
                source.strip() + "\n",
                tuple(name.strip() for name in caught[1].split(",")) if caught else (),
                says[1].strip() if says else "",
            )
        )
    return tuple(found)
