"""story: A zip whose member climbs out of the folder it is unpacked to and overwrites a neighbour's notebook."""

import json
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"leads out of the archive"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    with zipfile.ZipFile(folder / f"{student}.zip", "w") as archive:
        for climb in ("..", "x/../..", "../../..", f"../../../../{folder.name}"):
            archive.writestr(f"{climb}/a-neighbour/{NAME}/{NAME}.ipynb", json.dumps(notebook))
