"""story: A tar whose notebooks are a pipe that never ends, the disk, and a file with holes of eight exabytes."""

import tarfile
from pathlib import Path
from typing import Any

SAYS = r"is a device.*|is a pipe"
POINTS = 0.0
NAME = "02-self-attention"
KINDS = (tarfile.FIFOTYPE, tarfile.BLKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE)


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    with tarfile.open(folder / f"{student}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for i, kind in enumerate(KINDS):
            member = tarfile.TarInfo(f"{student}-{i}/{NAME}/{NAME}.ipynb")
            member.type, member.devmajor, member.devminor = kind, 1, 5  # /dev/zero
            archive.addfile(member)
