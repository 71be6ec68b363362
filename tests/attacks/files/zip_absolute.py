"""story: A zip whose members have absolute names, drives and backslashes, to be written where they say."""

import json
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"leads out of the archive"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    target = folder / "z-neighbour" / NAME / f"{NAME}.ipynb"
    with zipfile.ZipFile(folder / f"{student}.zip", "w") as archive:
        for name in (str(target), f"/{target}", f"C:{target}", f"eve\\..\\z-neighbour\\{NAME}\\{NAME}.ipynb"):
            archive.writestr(name, json.dumps(notebook))
