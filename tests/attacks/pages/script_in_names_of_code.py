"""story: Functions, files and errors of the submission's own have names that are elements, newlines and codes."""

from typing import Any

SAYS = r"onerror"
POINTS = 0.0
SOURCE = """
def causal_mask(n):
    kind = type("<img src=x onerror=alert(1)>\\n[red]9/9", (Exception,), {"__module__": "</p><script>"})
    exec(compile("raise kind('onerror')", "<script>alert(1)</script>", "exec"), {"kind": kind})
"""


def change(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        if cell["id"] == "causal_mask":
            cell["source"] = SOURCE
