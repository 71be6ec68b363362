"""What the documents show is what happens. `python tests/test_documents.py` writes the README's transcripts anew."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TRANSCRIPT = re.compile(r"<!-- transcript: (.+?) -->\n.*?<!-- end of transcript -->", re.DOTALL)


def transcript(match: re.Match[str]) -> str:
    """The block of a marker, with what its command prints today. What goes to stderr (times, progress) is left out."""
    done = subprocess.run(["bash", "-c", match[1]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    lines = [f"$ {match[1]}", *(line.rstrip() for line in done.stdout.splitlines())]
    return "\n".join([f"<!-- transcript: {match[1]} -->", "```text", *lines, "```", "<!-- end of transcript -->"])


def test_the_transcripts_in_the_readme_are_what_the_commands_print() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(TRANSCRIPT.findall(text)) == 2
    assert TRANSCRIPT.sub(transcript, text) == text, "run python tests/test_documents.py and look at the difference"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_files_and_targets_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    paths = re.findall(r"`((?:autograder|book|docs|examples|experiments|ichimon|solutions|tests)/[\w./-]+)`", text)
    missing = [link for link in links if not (document.parent / link).exists()]
    paths = [path for path in paths if not re.search("NN|/(test_)?9\\d", path)]  # from 90 on they are the reader's own
    missing += [path for path in paths if not (ROOT / path).exists()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    missing += [f"make {name}" for name in re.findall(r"`make ([a-z-]+)`", text) if name not in targets]
    assert not missing


if __name__ == "__main__":
    os.environ["PATH"] = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    README.write_text(TRANSCRIPT.sub(transcript, README.read_text(encoding="utf-8")), encoding="utf-8")
