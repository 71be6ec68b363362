"""story: Prints what a terminal obeys: to clear it, to write a mark further up, to set a title, to make a link."""

from typing import Any

SAYS = r"9/9"
POINTS = 0.0
SHOWN = (
    "\x1b[2J\x1b[1;1Ha-neighbour 9/9\x1b[8m\x1b]0;9/9\x07\x1b]8;;https://example.org\x1b\\9/9\x1b]8;;\x1b\\"
    "\x9b2J\x9b31m\x90q\x9c\x1bP+q544e\x1b\\\x07\x08\x08\x08\r9/9\x1b[6n\x1b]52;c;Y2FsYw==\x07"
)


def change(notebook: dict[str, Any]) -> None:
    cell = {"cell_type": "code", "execution_count": None, "id": "x", "metadata": {}, "outputs": []}
    notebook["cells"].append({**cell, "source": f"print({SHOWN!r})"})
