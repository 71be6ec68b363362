"""story: A tar whose notebooks are hard and symbolic links to a neighbour's, and a file behind a linked folder."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

SAYS = r"is a hard link"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    target = folder / "a-neighbour" / NAME / f"{NAME}.ipynb"
    with tarfile.open(folder / f"{student}.tar", "w") as archive:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            member = tarfile.TarInfo(f"{student}/{NAME}/{NAME}.ipynb")
            member.type, member.linkname = kind, str(target)
            archive.addfile(member)
        away = tarfile.TarInfo("away")
        away.type, away.linkname = tarfile.SYMTYPE, str(target.parent)
        archive.addfile(away)
        data = json.dumps(notebook).encode()
        through = tarfile.TarInfo(f"away/{NAME}.ipynb.partial")
        through.size = len(data)
        archive.addfile(through, io.BytesIO(data))
