"""`python -m ichimon`: the commands for students."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from ichimon.check import Checked, check
from ichimon.notebook import NotebookError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Ichimon: how large language models are built, one question at a time."""


@app.command("check")
def check_command(
    path: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="The notebook you work on, an .ipynb file.")],
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds that a cell may take.")] = 30,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what your cells print.")] = False,
) -> None:
    """Run the visible checks of NOTEBOOK and say how they went, exercise by exercise.

    Your cells run from the top, then each check. A cell that raises, or that never ends, does not stop the others.
    The exit code is 0 if every visible check passes, 1 if one does not, 2 if the file cannot be read.
    """
    _let_the_console_print_anything()
    try:
        checked = check(path, limit)
    except NotebookError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    _show(path.name, checked, verbose)
    raise typer.Exit(0 if checked.passed else 1)


@app.command("gather")
def gather_command(
    path: Annotated[
        Path, typer.Argument(metavar="NOTEBOOK", help="Your notebook of the last chapter, an .ipynb file.")
    ],
) -> None:
    """Copy your own parts, from your notebooks of the earlier chapters, into NOTEBOOK, for your own model.

    They go into one cell below the set-up, which is replaced when you run this again; nothing else is touched. For a
    part that is missing, PyTorch's own stands in. The exit code is 0, or 2 if NOTEBOOK cannot be read or written.
    """
    from ichimon.gather import gather

    _let_the_console_print_anything()
    try:
        parts = gather(path)
    except (NotebookError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    marks = {"yours": ("✓", "green"), "differs": ("!", "yellow"), "missing": ("·", "yellow")}
    column = max(len(part.name) for part in parts) + 2
    wide = max(40, min(100, shutil.get_terminal_size().columns - column - 2))
    for part in parts:
        mark, colour = marks[part.state]
        first, *rest = textwrap.wrap(part.sentence, wide)
        typer.echo(f"{typer.style(mark, fg=colour)} {part.name:<{column}}{first}")
        for line in rest:
            typer.echo(" " * (column + 2) + line)
    own = sum(part.state != "missing" for part in parts)
    typer.echo(f"\n{own} of {len(parts)} parts in {path.name} are your own. If it is open in Jupyter, open it again.")


@app.command("print")
def print_command(
    path: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="A notebook of the course, an .ipynb file.")],
    to: Annotated[Path | None, typer.Option(help="The file to write, by default NOTEBOOK.html.")] = None,
) -> None:
    """Write NOTEBOOK as one HTML file that prints well: open it in a browser and print it from there.

    It needs no network. Your answers and the outputs that were saved are in it, the code that draws figures is not.
    The exit code is 0, or 2 if NOTEBOOK cannot be read or the file cannot be written.
    """
    from ichimon.paper import page

    _let_the_console_print_anything()
    to = to or path.with_suffix(".html")
    try:
        text = page(path)
    except NotebookError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"{to} cannot be written: {error.strerror}.", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{to} is written: open it in a browser, and print it from there.")


def _let_the_console_print_anything() -> None:
    """A Windows console that cannot show ✓ shows ? instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _show(name: str, checked: Checked, verbose: bool) -> None:
    marks = {"passed": ("✓", "green"), "failed": ("✗", "red"), "not written": ("·", "yellow")}
    column = max(len(verdict.exercise) for verdict in checked.verdicts) + 2
    wide = max(40, min(100, shutil.get_terminal_size().columns - column - 2))
    table = [f"{name}: the visible checks", ""]
    for verdict in checked.verdicts:
        mark, colour = marks[verdict.state]
        first, *rest = textwrap.wrap(verdict.sentence, wide) or [""]
        table.append(f"{typer.style(mark, fg=colour)} {verdict.exercise:<{column}}{first}")
        table += [" " * (column + 2) + line for line in rest]
    notes = [textwrap.fill(f"Note: {notice}", column + wide, subsequent_indent="      ") for notice in checked.notices]
    printed = [f"{label} printed:\n{textwrap.indent(text.rstrip(), '    ')}" for label, text in checked.printed.items()]
    passed = sum(verdict.state == "passed" for verdict in checked.verdicts)
    summary = [
        f"{passed} of {len(checked.verdicts)} exercises pass their visible checks.",
        "The hidden tests decide the mark: they try more than these checks show.",
    ]
    blocks = [table, notes, printed if verbose else [], summary]
    typer.echo("\n\n".join("\n".join(block) for block in blocks if block))


if __name__ == "__main__":
    app(prog_name="python -m ichimon")
