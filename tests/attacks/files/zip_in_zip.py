"""story: A zip in a zip in a zip, twenty deep, as in bombs and in zips that hold themselves."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"is an archive inside the archive"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    name, data = f"{NAME}.ipynb", json.dumps(notebook).encode()
    for _ in range(20):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{student}/{NAME}/{name}", data)
        name, data = "again.zip", buffer.getvalue()
    (folder / f"{student}.zip").write_bytes(data)
