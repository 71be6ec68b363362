"""story: A zip that claims a member of exabytes, one of nine bytes that has more, and one that is encrypted."""

import json
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"zip bomb"
POINTS = 0.0
NAME = "02-self-attention"
LIES = ({"file_size": 1 << 62}, {"compress_size": 1 << 62, "file_size": 1 << 62}, {"file_size": 9}, {"flag_bits": 1})


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    with zipfile.ZipFile(folder / f"{student}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, lies in enumerate(LIES):
            archive.writestr(f"{student}-{i}/{NAME}/{NAME}.ipynb", json.dumps(notebook))
            for field, value in lies.items():
                setattr(archive.infolist()[i], field, value)
