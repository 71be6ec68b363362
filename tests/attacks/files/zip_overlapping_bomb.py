"""story: A zip of 100 kB that would unpack to gigabytes: a thousand members are the same compressed 20 MB."""

import json
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"lies over another member"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    text = json.dumps({**notebook, "filler": " " * (19 << 20)})
    with zipfile.ZipFile(folder / f"{student}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{student}/{NAME}/{NAME}.ipynb", text)
        first = archive.infolist()[0]
        for i in range(1000):
            again = zipfile.ZipInfo(f"{student}-{i}/{NAME}/{NAME}.ipynb")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(again, field, getattr(first, field))
            archive.filelist.append(again)
