"""story: A zip with a symbolic link to the class's folder, and a member that is to be written through it."""

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"is a symbolic link"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    link = zipfile.ZipInfo(student)
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(folder / f"{student}.zip", "w") as archive:
        archive.writestr(link, str(folder / "a-neighbour"))
        archive.writestr(f"{student}/{NAME}/{NAME}.ipynb", json.dumps(notebook))
