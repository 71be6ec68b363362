"""Make the sample class: fourteen submissions to chapter 02, from the released notebook and what stands in answers/.

    python examples/make_class.py

Each file looks as its editor saves it. Nothing is random, so running it again gives the same bytes. The marks that each
submission deserves, and why, stand in class/marks.json.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NAME = "02-self-attention"
HERE = Path(__file__).resolve().parent
RELEASED = HERE.parent / "notebooks" / NAME / f"{NAME}.ipynb"
PIXEL = (  # stands for every figure: real ones differ between versions of matplotlib
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

Notebook = dict[str, Any]
Cell = dict[str, Any]


# -- what students write --------------------------------------------------------------------------------------------


def answers(student: str) -> dict[str, str]:
    """The cells of a student's file in examples/answers: title -> source."""
    written = (HERE / "answers" / f"{student}.py").read_text(encoding="utf-8")
    blocks = re.split(r"^# %% ", written, flags=re.MULTILINE)[1:]
    return {title: source.strip("\n") for title, _, source in (block.partition("\n") for block in blocks)}


def answered(*students: str) -> Notebook:
    """The released notebook with the first student's answers, replaced by those of the next where there are any."""
    notebook: Notebook = json.loads(RELEASED.read_text(encoding="utf-8"))
    for student in students:
        for title, source in answers(student).items():
            if title.isidentifier() and title in exercises(notebook):
                write(find(notebook, title), source)
    return notebook


def exercises(notebook: Notebook) -> list[str]:
    """In the notebook's order."""
    return [cell["id"] for cell in notebook["cells"] if cell["id"] in notebook["metadata"]["ichimon"]["exercises"]]


def find(notebook: Notebook, name: str) -> Cell:
    """The cell of that id in a notebook that no editor has saved yet."""
    found = next((cell for cell in notebook["cells"] if cell["id"] == name), None)
    if found is None:
        sys.exit(f"The released notebook has no cell {name!r}, which the sample class needs: mend examples/.")
    return found


def write(cell: Cell, source: str) -> None:
    cell["source"] = source.splitlines(keepends=True)


def code(source: str, name: str, metadata: dict[str, Any] | None = None) -> Cell:
    """A cell that a student added; JupyterLab names it by a UUID, made from `name` here."""
    cell: Cell = {"cell_type": "code", "execution_count": None, "id": unique(name), "metadata": metadata or {}}
    return {**cell, "outputs": [], "source": source.splitlines(keepends=True)}


def unique(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def insert(notebook: Notebook, cell: Cell, *, after: str) -> None:
    notebook["cells"].insert(notebook["cells"].index(find(notebook, after)) + 1, cell)


def section(notebook: Notebook, exercise: str) -> list[Cell]:
    """An exercise's prompt and all cells up to the next exercise's prompt."""
    cells: list[Cell] = notebook["cells"]
    starts = [cells.index(find(notebook, name)) - 1 for name in exercises(notebook)]
    at = exercises(notebook).index(exercise)
    return cells[starts[at] : (*starts, None)[at + 1]]


# -- what a kernel does ---------------------------------------------------------------------------------------------


def run(notebook: Notebook, *, until: str = "", interrupted: Iterable[str] = ()) -> None:
    """Run the cells from the top as a student would, and keep what they print. A figure is one pixel, and not drawn.

    The cell `until` is the last one that is run. A cell in `interrupted` hung until its owner stopped it.
    """
    import torch

    from ichimon.notebook import blank_magics

    namespace: dict[str, Any] = {}
    unfinished = False
    count = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            count += 1
            source = "".join(cell["source"])
            if cell["id"] in interrupted:
                cell["outputs"] = [error("KeyboardInterrupt", "", source.splitlines()[0], count)]
            elif "see" in cell["metadata"].get("ichimon", {}):
                cell["outputs"] = [text("Finish it first, then run this cell again.\n")] if unfinished else [figure()]
            else:
                printed = io.StringIO()
                cell["outputs"] = []
                try:
                    with contextlib.redirect_stdout(printed):
                        exec(compile(blank_magics(source)[0], f"In[{count}]", "exec", dont_inherit=True), namespace)
                except Exception as problem:
                    unfinished = unfinished or isinstance(problem, NotImplementedError)
                    steps = traceback.extract_tb(problem.__traceback__)
                    line = (problem.lineno if isinstance(problem, SyntaxError) else steps[1].lineno) or 1
                    shown = source.splitlines()[line - 1]
                    cell["outputs"] = [error(type(problem).__name__, str(problem), shown, count, line)]
                if printed.getvalue():
                    cell["outputs"].insert(0, text(printed.getvalue()))
            cell["execution_count"] = count
            if cell["id"] == until:
                return


def text(printed: str) -> Cell:
    return {"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}


def figure() -> Cell:
    data = {"image/png": PIXEL, "text/plain": ["<Figure size 400x400 with 1 Axes>"]}
    return {"data": data, "metadata": {}, "output_type": "display_data"}


def error(name: str, message: str, shown: str, count: int, line: int = 1) -> Cell:
    """An exception as IPython keeps it, colours included, without the context of the line."""
    trace = [
        "\x1b[31m" + "-" * 75 + "\x1b[39m",
        f"\x1b[31m{name}\x1b[39m" + "Traceback (most recent call last)".rjust(75 - len(name)),
        f"\x1b[36mCell\x1b[39m \x1b[32mIn[{count}], line {line}\x1b[39m\n\x1b[32m----> {line}\x1b[39m {shown}\n",
        f"\x1b[31m{name}\x1b[39m: {message}",
    ]
    return {"ename": name, "evalue": message, "output_type": "error", "traceback": trace}


# -- what editors do ------------------------------------------------------------------------------------------------

PYTHON = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


def jupyterlab(
    notebook: Notebook,
    version: str = "3.11.9",
    kernel: str = "python3",
    shown: str = "Python 3 (ipykernel)",
    timing: bool = False,
) -> str:
    """Keeps everything, and fills in the kernel. With `timing` (a setting) it notes when a cell ran."""
    notebook["metadata"]["kernelspec"] = {"display_name": shown, "language": "python", "name": kernel}
    notebook["metadata"]["language_info"] = {**PYTHON, "version": version}
    if timing:
        for cell in notebook["cells"]:
            if cell.get("execution_count"):
                at = f"2026-11-20T19:{cell['execution_count']:02d}"
                names = ("iopub.execute_input", "iopub.status.busy", "iopub.status.idle", "shell.execute_reply")
                cell["metadata"]["execution"] = {name: f"{at}:0{i}.12{i}000Z" for i, name in enumerate(names)}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def vscode(notebook: Notebook, version: str = "3.12.4", shown: str = ".venv (3.12.4)") -> str:
    """Keeps ids and metadata; names the kernel after the environment."""
    notebook["metadata"]["kernelspec"] = {"display_name": shown, "language": "python", "name": "python3"}
    notebook["metadata"]["language_info"] = {**PYTHON, "version": version}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and not cell["execution_count"]:
            cell["metadata"]["vscode"] = {"languageId": "python"}
        if "-" in cell["id"] and len(cell["id"]) == 36:  # a cell that was made in it
            cell["id"] = hashlib.sha256(cell["id"].encode()).hexdigest()[:8]
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def old_vscode(notebook: Notebook) -> str:
    """Writes format 4.2, which has no cell ids, and a hash of the interpreter."""
    saved = json.loads(vscode(notebook, "3.10.7", "Python 3.10.7 ('llm')"))
    for cell in saved["cells"]:
        del cell["id"]
        cell["metadata"].pop("vscode", None)
    interpreter = {"hash": hashlib.sha256(b"llm").hexdigest()}
    saved["metadata"] |= {"orig_nbformat": 4, "vscode": {"interpreter": interpreter}}
    return json.dumps({**saved, "nbformat_minor": 2}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def colab(notebook: Notebook) -> str:
    """Writes format 4.0: the ids are its own and stand in the metadata; the keys are in its own order."""
    cells = []
    for i, cell in enumerate(notebook["cells"]):
        own = hashlib.sha256(f"{NAME} {i}".encode()).hexdigest()[:12]
        metadata = {**cell["metadata"], "id": own}
        if cell.get("outputs"):
            metadata |= {"colab": {"base_uri": "https://localhost:8080/"}, "outputId": unique(own)}
        saved = {"cell_type": cell["cell_type"], "source": cell["source"], "metadata": metadata}
        if cell["cell_type"] == "code":
            saved |= {"execution_count": cell["execution_count"], "outputs": cell["outputs"]}
        cells.append(saved)
    metadata = {
        **notebook["metadata"],
        "colab": {"provenance": [], "toc_visible": True},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python"},
    }
    saved = {"nbformat": 4, "nbformat_minor": 0, "metadata": metadata, "cells": cells}
    return json.dumps(saved, indent=2, ensure_ascii=False)


def copied(notebook: Notebook) -> str:
    """Every cell copied by hand into a new notebook: no metadata of ours is left, and every id is new."""
    cells = []
    for i, cell in enumerate(notebook["cells"]):
        cells.append({**cell, "id": unique(f"copied {i}"), "metadata": {}})
    return jupyterlab({**notebook, "metadata": {}, "cells": cells}, "3.13.0")


# -- the class ------------------------------------------------------------------------------------------------------


def perfect() -> str:
    notebook = answered("student-01")
    run(notebook)
    return jupyterlab(notebook)


def differently() -> str:
    """A helper cell that attention needs, and merge_heads before split_heads."""
    notebook = answered("student-02")
    split, merge = section(notebook, "split_heads"), section(notebook, "merge_heads")
    at = notebook["cells"].index(split[0])
    notebook["cells"][at : at + len(split) + len(merge)] = [*merge, *split]
    insert(notebook, code(answers("student-02")["helper"], "helper"), after="set-up")
    run(notebook)
    return colab(notebook)


def without_diagonal() -> str:
    notebook = answered("student-01", "student-03")
    run(notebook)
    return vscode(notebook)


def large_number() -> str:
    notebook = answered("student-01", "student-04")
    run(notebook)
    return jupyterlab(notebook, "3.12.7", "llm", "Python [conda env:llm]", timing=True)


def straight_view() -> str:
    notebook = answered("student-01", "student-05")
    run(notebook)
    return copied(notebook)


def wrong_root() -> str:
    notebook = answered("student-01", "student-06")
    run(notebook)
    return old_vscode(notebook)


def half_finished() -> str:
    notebook = answered("student-07")
    run(notebook, until="check-split_heads")
    return jupyterlab(notebook)


def syntax_error() -> str:
    """A bracket is missing in one cell."""
    notebook = answered("student-01")
    cell = find(notebook, "split_heads")
    write(cell, "".join(cell["source"]).replace("d_model // n_heads)", "d_model // n_heads", 1))
    run(notebook)
    return colab(notebook)


def endless_loop() -> str:
    notebook = answered("student-01", "student-09")
    run(notebook, interrupted=["see-causal_mask"])
    return jupyterlab(notebook, timing=True)


def empty() -> str:
    """Opened, saved, handed in."""
    return jupyterlab(answered())


def deleted_check() -> str:
    notebook = answered("student-01")
    run(notebook)
    notebook["cells"].remove(find(notebook, "check-attention"))
    return vscode(notebook, "3.11.9", "Python 3")


def duplicated_cell() -> str:
    """The copy keeps nbgrader's name and gets an id of its own. The first attempt is wrong, the second right."""
    notebook = answered("student-01", "student-12")
    second = find(notebook, "attention")
    first = {**copy.deepcopy(second), "id": unique("first attempt")}
    write(first, answers("student-12")["attention: first attempt"])
    notebook["cells"].insert(notebook["cells"].index(second), first)
    run(notebook)
    return jupyterlab(notebook, "3.13.0")


def wrong_file() -> str:
    """Another course's notebook, with nbgrader's metadata of that course."""
    cells: list[Cell] = []
    for title, source in answers("student-13").items():
        if title == "text":
            lines = [line.removeprefix("# ").removeprefix("#") for line in source.splitlines(keepends=True)]
            cells.append({"cell_type": "markdown", "id": "homework-3", "metadata": {}, "source": lines})
            continue
        graded = title.endswith("_test")
        flags = {"grade": graded, "solution": not graded, "locked": graded, **({"points": 2} if graded else {})}
        cells.append(code(source, title, nbgrader(title, **flags) if title.startswith("q") else {}))
    for count, cell in enumerate(cells[1:], start=7):
        cell["execution_count"] = count
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return jupyterlab(notebook, "3.9.18", "conda-root-py", "Python [conda env:root]")


def nbgrader(name: str, **flags: Any) -> dict[str, Any]:
    return {"nbgrader": {"cell_type": "code", "grade_id": name, "schema_version": 3, "task": False, **flags}}


def cheat() -> str:
    """Wrong answers, tricks in five added cells, forged metadata, checks that always pass, and outputs full of HTML."""
    notebook = answered("student-14")
    own = answers("student-14")
    after = "set-up"
    for title in ("look", "send", "forge", "patch"):
        cell = code(own[title], title)
        insert(notebook, cell, after=after)
        after = cell["id"]
    for cell in notebook["cells"]:
        flags = cell["metadata"].get("nbgrader", {})
        if flags.get("grade"):
            said = f"The visible checks of {flags['grade_id'].removeprefix('check-')} pass."
            write(cell, f'print("{said}")')
            cell["outputs"] = [text(f"{said}\n")]
            flags |= {"points": 1000, "locked": False, "checksum": "0" * 32}
        elif flags.get("grade_id") in ("causal_mask", "attention"):
            flags |= {"grade": True, "points": 1000, "auto_score": 1000, "manual_score": 1000}
    bonus = nbgrader("check-bonus", grade=True, solution=False, locked=True, points=50)
    insert(notebook, code("pass", "bonus", bonus), after="check-MultiHeadAttention")
    forged = {"exercises": dict.fromkeys(exercises(notebook), 1000), "points": 20, "role": "instructor"}
    notebook["metadata"]["ichimon"] |= forged
    notebook["metadata"]["celltoolbar"] = "Create Assignment"
    html = "<script>parent.document.querySelectorAll('.score').forEach(e => e.textContent = '20/20')</script>"
    shown = {"data": {"text/html": [html], "text/markdown": ["# 20 / 20 <img src=x onerror=alert(1)>"]}, "metadata": {}}
    find(notebook, "see-causal_mask")["outputs"] = [{**shown, "output_type": "display_data"}]
    return jupyterlab(notebook)


CLASS: dict[str, Callable[[], str]] = {
    "student-01": perfect,
    "student-02": differently,
    "student-03": without_diagonal,
    "student-04": large_number,
    "student-05": straight_view,
    "student-06": wrong_root,
    "student-07": half_finished,
    "student-08": syntax_error,
    "student-09": endless_loop,
    "student-10": empty,
    "student-11": deleted_check,
    "student-12": duplicated_cell,
    "student-13": wrong_file,
    "student-14": cheat,
}


def make(folder: Path) -> list[Path]:
    """Write the class into `folder`, in nbgrader's layout."""
    written = []
    for student, make_one in CLASS.items():
        path = folder / student / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make_one(), encoding="utf-8", newline="\n")
        written.append(path)
    return written


if __name__ == "__main__":
    print(f"{len(make(HERE / 'class'))} submissions in {HERE / 'class'}")
