"""story: Text cells with attachments: a page that runs a script, a pickle, names that are paths, a thousand of them."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
    files = {
        f"../../{i}.html": {"text/html": "<script>alert(1)</script>", "image/png": "no base 64"} for i in range(999)
    }
    for cell in notebook["cells"]:
        cell["attachments"] = {
            **files,
            "x.pkl": {"application/octet-stream": "gASVJAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU"},
        }
