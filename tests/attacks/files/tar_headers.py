"""story: A tar with a length below 0, for which Python's own tarfile walks in a circle, after a header of megabytes."""

import tarfile
from pathlib import Path
from typing import Any

SAYS = r"is damaged after \d+ members"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    long, back = tarfile.TarInfo("long"), tarfile.TarInfo(f"{student}/{NAME}/{NAME}.ipynb")
    long.type, long.size = tarfile.XHDTYPE, 4 << 20
    back.size = -512
    (folder / f"{student}.tar").write_bytes(
        long.tobuf(tarfile.GNU_FORMAT) + b"1" * long.size + back.tobuf(tarfile.GNU_FORMAT) * 2
    )
