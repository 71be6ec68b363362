"""story: A zip with two members of one name: who checks the first and unpacks the last is deceived."""

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

SAYS = r"is in it more than once"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    with zipfile.ZipFile(folder / f"{student}.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the second
        archive.writestr(f"{student}/{NAME}/{NAME}.ipynb", json.dumps(notebook))
        archive.writestr(f"{student}/{NAME}/{NAME}.ipynb", json.dumps({**notebook, "metadata": {}}))
