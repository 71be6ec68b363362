"""story: A tar whose members climb out of the folder, by their name and by a longer name in an extended header."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

SAYS = r"leads out of the archive"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    data = json.dumps(notebook).encode()
    with tarfile.open(folder / f"{student}.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for climb in ("..", "x/../..", f"../../../../{folder.name}", str(folder), "x/" * 99 + "../" * 100):
            member = tarfile.TarInfo(f"{climb}/a-neighbour/{NAME}/{NAME}.ipynb")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
