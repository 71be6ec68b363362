"""story: /dev/zero, of which there is no end; who may make no device puts a socket there."""

import os
import socket
import stat
from pathlib import Path
from typing import Any

SAYS = r"is not an ordinary file"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    try:
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5))
    except PermissionError:
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{here}/{path.name}")  # a socket's name may have 107 characters
        os.close(here)
