"""story: A kernel that is a shell script, in another language, whose name leads somewhere else."""

import json
from pathlib import Path
from typing import Any

SAYS = r"not written yet"
POINTS = 0.0
NAME = "02-self-attention"


def hand_in(folder: Path, notebook: dict[str, Any], student: str) -> None:
    path = folder / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    notebook["metadata"]["kernelspec"] = {
        "name": "../../../../tmp/evil",
        "display_name": "<script>alert(1)</script>",
        "language": "bash",
        "argv": ["/bin/sh", "-c", "touch /tmp/evil", "{connection_file}"],
    }
    notebook["metadata"]["language_info"] = {
        "name": "bash",
        "file_extension": "/../.py",
        "nbconvert_exporter": "os.system",
    }
    notebook["metadata"]["jupytext"] = {"text_representation": {"extension": ".sh", "format_name": "../../x"}}
    path.write_text(json.dumps(notebook))
