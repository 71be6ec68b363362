"""story: A kernel that is a shell script, in another language, whose name leads somewhere else."""

from typing import Any

SAYS = r"not written yet"
POINTS = 0.0


def change(notebook: dict[str, Any]) -> None:
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
