"""story: A tar of a few hundred kB in which a notebook of 19 MB of nothing comes first and 4 GB of nothing after it."""

import gzip
import tarfile
from pathlib import Path
from typing import Any

SAYS = r"zip bomb"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    nothing = gzip.compress(bytes(19 << 20), mtime=0)
    with (folder / f"{student}.tar.gz").open("wb") as file:
        for name, times in ((f"{student}/{NAME}/{NAME}.ipynb", 1), (f"{student}/{NAME}/data.bin", 200)):
            member = tarfile.TarInfo(name)
            member.size = times * (19 << 20)
            file.write(gzip.compress(member.tobuf()) + nothing * times)
