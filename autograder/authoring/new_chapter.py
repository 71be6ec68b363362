"""`make new-chapter N=90 TOPIC=mean-pooling`: the files of a chapter, to be changed step by step.

The four files that grading needs are those which docs/course.md shows, under the new name: they pass the gates from the
first minute, so a gate that fails later is about what was changed. The page has each section that a chapter has, with
a line that says what belongs there.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[0-9]{2}(-[a-z0-9]+)+")
SHOWN = re.compile(r"<!-- file: (\S+) -->\n *```python\n(.*?)\n *```", re.DOTALL)
EXAMPLE, TITLE = "90-mean-pooling", "Mean pooling"

PAGE = """\
---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {name: python3, display_name: Python 3, language: python}
---

# Here stands the question that NAME answers?

Say where a reader meets the question, and which half-true answer they bring. Nothing is used before it is explained.

```{map}
You need Python and school mathematics.

One exercise in a notebook: the mean of some rows.
```

```{code-cell} python
:tags: [remove-cell]
from ichimon import figures

figures.crisp()
```

## Think first

:::{admonition} Commit to an answer before you read on
:class: think

Ask for a number or a choice that an experiment below decides.
:::

## The short answer

:::{dropdown} Unfold this when your answer is written down
Three sentences.
:::

## The idea

```{code-cell} python
---
tags: [hide-input]
mystnb:
  image:
    alt: >-
      Say what is to be seen in the figure, for who does not see it. This one has a line from 0 to 1.
---
fig, ax = figures.new("The title says what to see", x="what (unit)", y="what (unit)")
ax.plot([0, 1], [0, 1]);
```

## The mathematics

Shapes, symbols and their table.

## What it costs

Operations, memory, time.

## The experiment

What was claimed before the run, and what came out. Numbers are read from `experiments/results`, never typed.

## What people get wrong

### "The half-true sentence"

The correction, which stands alone, with its primary source from `book/references.bib`.

## Build it

[Open the notebook](../notebooks/NAME/NAME.ipynb)

## Check yourself

Choose an answer to see whether it is right, and why.

```{quiz}
- ask: Three to five questions. Which options are worth offering?
  options:
    - right: What is true.
      because: "Say why, for who was right by chance."
    - wrong: What people believe who have not read the page.
      because: "Say what speaks against it, and where it comes from."
```

## References

% ```{bibliography}
% :filter: docname in docnames
% ```
"""


class NewChapterError(Exception):
    """A sentence for the author."""


def files(name: str) -> dict[str, str]:
    """path -> text of everything that a new chapter `NN-topic` begins with. Raises NewChapterError."""
    if not NAME.fullmatch(name):
        raise NewChapterError(
            f"{name!r} is no name for a chapter. Two digits and a topic in small letters: "
            "make new-chapter N=90 TOPIC=mean-pooling"
        )
    words = name[3:].replace("-", " ").capitalize()
    renamed = {
        EXAMPLE: name,
        EXAMPLE.replace("-", "_"): name.replace("-", "_"),
        f"90 · {TITLE}": f"{name[:2]} · {words}",
    }
    found = {f"book/{EXAMPLE}.md": PAGE.replace("NAME", name)}
    for path, code in SHOWN.findall((ROOT / "docs/course.md").read_text(encoding="utf-8")):
        found[path] = textwrap.dedent(code) + "\n"
    for old, new in renamed.items():
        found = {path.replace(old, new): text.replace(old, new) for path, text in found.items()}
    return found


def write(name: str, root: Path = ROOT) -> list[str]:
    """Write them under `root`, over nothing that is there; return their paths. Raises NewChapterError."""
    new = files(name)
    there = [path.name for path in (root / "solutions").glob(f"{name[:2]}-*.py")]
    there += [path for path in new if (root / path).exists()]
    if there:
        raise NewChapterError(f"There is {there[0]} already. Take another number; your own are from 90 on.")
    for path, text in new.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return list(new)


def main() -> None:
    name = sys.argv[1]
    try:
        written = write(name)
    except NewChapterError as error:
        sys.exit(str(error))
    print(
        "\n".join(["Written:", *(f"  {path}" for path in written)]),
        f"""
They hold a small exercise that works. See it, then put yours in its place:
  make notebooks
  autograder verify {name}
For the page, add to the part of _toc.yml where it belongs:
      - file: book/{name}
        title: {name[:2]} · ...
        sections:
          - file: notebooks/{name}/{name}
            title: The notebook""",
    )


if __name__ == "__main__":
    main()
