"""story: While the class is graded, the file is a notebook now and a link to a neighbour's notebook a moment later."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

SAYS = r"is a symbolic link|not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook))
    threading.Thread(target=change, args=(folder, path), daemon=True).start()


def change(folder: Path, path: Path) -> None:
    """Until the class is graded, which folder.json tells, or four minutes are over."""
    file, link = path.with_suffix(".file"), path.with_suffix(".link")
    until = time.monotonic() + 240
    file.write_bytes(path.read_bytes())
    while time.monotonic() < until and not folder.with_suffix(".json").exists():
        link.symlink_to(folder / "a-neighbour" / NAME / f"{NAME}.ipynb")
        os.replace(link, path)
        time.sleep(0.002)
        link.write_bytes(file.read_bytes())
        os.replace(link, path)
        time.sleep(0.002)
