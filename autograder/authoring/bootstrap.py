"""The first cell of a released notebook: on Colab, or with a bare kernel, it installs what the notebook imports.

Where all is there it does nothing. The grader never runs it: `autograder.submission` leaves it out.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ichimon import notebook

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements.txt"
CALLED = {"sklearn": "scikit-learn"}  # what pip calls it, where Python has another name
# Colab and JupyterLab fold the code away, the book leaves it out.
METADATA = {
    "cellView": "form",
    "deletable": False,
    "editable": False,
    "ichimon": {"id": "bootstrap"},
    "jupyter": {"source_hidden": True},
    "tags": ["remove-cell"],
}

_CELL = """\
def _bootstrap(packages):
    import importlib
    import importlib.metadata
    import importlib.util
    import os
    import subprocess
    import sys

    if os.environ.get("NBGRADER_VALIDATING") and importlib.util.find_spec("ichimon"):
        from ichimon.validate import in_words

        in_words()  # so that nbgrader's validate shows sentences
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if "ichimon" in missing and not packages["ichimon"]:
        missing.remove("ichimon")
        print(
            "The course's own package, ichimon, is not here. All exercises and their checks go without it; cells that"
            " train on the course's text need it. In the folder of the course: pip install -r requirements.txt"
        )
    if not missing:
        return
    kept = []  # above all torch: what is there stays as it is
    for name in set(packages) - {*missing, "ichimon"}:
        project = packages[name].partition("==")[0]
        try:
            kept.append(f"{project}=={importlib.metadata.version(project)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    print(f"Installing {', '.join(missing)} ...")
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1", *sorted(kept)]
    said = []
    for group in ([name for name in missing if name != "ichimon"], [name for name in missing if name == "ichimon"]):
        if group:
            command = [sys.executable, "-m", "pip", "install", *options, *(packages[name] for name in group)]
            done = subprocess.run(command, capture_output=True, text=True)
            said += [line for line in done.stderr.splitlines() if line.strip()]
    importlib.invalidate_caches()
    if missing := [name for name in missing if importlib.util.find_spec(name) is None]:
        reason = next((line for line in said if line.startswith("ERROR")), (said or ["nothing"])[-1])
        print(
            f"Not installed: {', '.join(missing)}. Is there a network? Cells that import them wait for it; run this"
            f" cell again then. What pip said: {reason[:300]}"
        )


_bootstrap(
    PACKAGES
)
del _bootstrap"""


def source(cells: Iterable[str], package: str) -> str:
    """The cell for a notebook of these code cells. `package` is what pip installs ichimon from, or ""."""
    pins = _pins()
    imported = sorted({name for cell in cells for name in _needed(cell)}, key=lambda name: (name != "torch", name))
    packages = {name: pins[CALLED.get(name, name)] for name in imported if CALLED.get(name, name) in pins}
    if "ichimon" in imported:
        packages["ichimon"] = package
    listed = json.dumps(packages, indent=4, ensure_ascii=False).replace("\n", "\n    ")
    return f"{notebook.BOOTSTRAP}\n{_CELL.replace('PACKAGES', listed)}"


@functools.cache
def _pins() -> dict[str, str]:
    """project -> project==version, as requirements.txt has it."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    found = [match for line in lines if (match := re.match(r"([A-Za-z0-9._-]+)==[^\s;]+", line))]
    return {match[1]: match[0] for match in found}


def _needed(cell: str) -> Iterator[str]:
    """The packages that a cell imports, and those that the modules of ichimon import for it."""
    waiting, seen = list(_imports(cell)), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        package, _, module = name.partition(".")
        yield package
        if package == "ichimon":
            for file in {module.partition(".")[0] or "__init__", "__init__"}:
                path = ROOT / "ichimon" / f"{file}.py"
                waiting += _imports(path.read_text(encoding="utf-8")) if path.exists() else ()


@functools.cache
def _imports(text: str) -> tuple[str, ...]:
    """The modules that are imported anywhere in the text, without Python's own: `torch.nn`, `ichimon.corpus`."""
    found: list[str] = []
    for node in ast.walk(ast.parse(notebook.blank_magics(text)[0])):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(name for name in found if name.partition(".")[0] not in sys.stdlib_module_names | {"__main__"})
