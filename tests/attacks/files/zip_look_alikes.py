"""story: A zip with one folder more, whose name differs from a student's in case only; on some disks they are one."""

import json
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"could be taken for|is in it more than once"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    with zipfile.ZipFile(folder / f"{student}.zip", "w") as archive:
        for name in (student, student.upper()):
            archive.writestr(f"{name}/{NAME}/{NAME}.ipynb", json.dumps(notebook))
