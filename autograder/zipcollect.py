"""nbgrader's `zip_collect` with what it must not do taken out of its hands.

    nbgrader zip_collect 02-self-attention --RosterExtractor.roster=roster.csv

nbgrader's own plugins unpack whatever lies in downloaded/<assignment>/archive, archives in archives too, of any size,
and take a file's name, which a student chose, for whose it is and for where it goes. Ours read archives as
`autograder grade` does, ask the roster, and give nbgrader only files that we wrote. Names are told in files for staff,
never in the log.
"""

from __future__ import annotations

from pathlib import Path

from nbgrader.plugins import ExtractorPlugin, FileNameCollectorPlugin
from traitlets import Bool, Dict, Unicode

from autograder import archives, collect, submission
from autograder import roster as rosters
from autograder.collect import Collected
from autograder.feedback import spreadsheet
from autograder.report import clean
from autograder.roster import RosterError
from autograder.submission import Found
from ichimon.notebook import NotebookError

TABLE = "who-is-it.csv"
LIST = "not-collected.csv"


class RosterExtractor(ExtractorPlugin):
    """Puts each notebook of the assignment that is in the archives into extracted/<student>/<assignment>/."""

    roster = Unicode("roster.csv", help="the file that says who is who, as `autograder collect --roster`").tag(
        config=True
    )
    column = Unicode("", help="the roster's column with the names that students have here").tag(config=True)
    timestamps = Bool(False, help="believe each timestamp.txt: only where no student can have written it").tag(
        config=True
    )

    whole_class = Bool(False, help="an archive holds the class, and what is in it is called after students").tag(
        config=True
    )

    infos = Dict(help="a file in the folder `extracted` -> what nbgrader wants to know about it")

    def extract(self, archive_path: str, extracted_path: str) -> None:
        try:
            self._extract(Path(archive_path), Path(extracted_path))
        except OSError as error:
            self.parent.fail(f"This could not be read or written: {error}")

    def _extract(self, archive: Path, into: Path) -> None:
        step = archive.parent
        assignment = self.parent.coursedir.assignment_id
        try:
            known = rosters.read(Path(self.roster), self.column)
            decided = collect.decisions(step / TABLE, known) if (step / TABLE).exists() else {}
        except RosterError as error:
            self.parent.fail(f"{error} (--RosterExtractor.roster=FILE says which file it is.)")
        result = Collected()
        found = self._found(archive, result)
        collect.deal(found, known, into, result, decided, step / "replaced", self.timestamps, assignment)
        taken = 0
        for student, its in result.new:
            notebook = into / student / its / f"{its}.ipynb"
            trouble = "is a notebook of it: collect that assignment too" if its != assignment else ""
            trouble = trouble or self._in_the_way(notebook, student, assignment)
            if trouble:
                result.troubles.append(f"{clean(student, 40)}, {its}: {trouble}")
                notebook.unlink()
                continue
            taken += 1
            self.infos[str(notebook)] = _info(student, notebook)
        for stamp in into.rglob(archives.TIMESTAMP):
            stamp.unlink()  # nbgrader would take it for a submission
        self._tell(step, taken, result, decided)

    def _found(self, folder: Path, result: Collected) -> list[Found]:
        """The notebooks in a folder and in the archives in it.

        An archive is one student's and called after them, and no name in it makes anything somebody else's.
        """
        found: list[Found] = []
        entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        packed = [path for path in entries if archives.is_archive(path) and not path.is_symlink()]
        for path in packed:
            inside, sentences = archives.unpack(path)
            result.troubles += sentences
            there = [Found(*item) for item in inside]
            found += there if self.whole_class else [Found(_stem(path.name), "", item.path) for item in there]
        if len(packed) < len(entries):
            there, sentences = submission.find([folder])
            found += collect.outermost(there, folder)
            result.troubles += sentences
        return found

    def _in_the_way(self, notebook: Path, student: str, assignment: str) -> str:
        """What of an earlier submission keeps this one out; one that is replaced is kept."""
        course = self.parent.coursedir
        folder = Path(course.format_path(course.submitted_directory, student, assignment))
        there = folder / notebook.name
        if not folder.is_dir() or not any(folder.iterdir()):
            return ""
        if there.is_file() and there.read_bytes() == notebook.read_bytes():
            return "the same notebook was collected before"
        if not self.force:
            return "another notebook was collected before: --force replaces it, and keeps it in _build/replaced"
        try:
            for earlier in folder.glob("*.ipynb"):
                collect.keep(earlier, (student, assignment))
        except (OSError, NotebookError) as error:
            return f"what was collected before cannot be kept ({error}), so it stays"
        return ""

    def _tell(self, step: Path, taken: int, result: Collected, decided: dict[str, str]) -> None:
        self.log.info("%d notebooks can be collected.", taken)
        (step / LIST).unlink(missing_ok=True)
        if result.troubles:
            text = spreadsheet([["why"], *([sentence] for sentence in result.troubles)])
            (step / LIST).write_text(text, encoding="utf-8", newline="")
            self.log.warning("%d files were not collected: %s says why.", len(result.troubles), step / LIST)
        if result.asked:
            collect.ask(result.asked, decided, step / TABLE)
            self.log.warning(
                "Whose %d files are is for you to say: fill in %s, and run the same command again with --force. "
                "If an archive is the whole class, add --RosterExtractor.whole_class=True.",
                len(result.asked),
                step / TABLE,
            )


class RosterCollector(FileNameCollectorPlugin):
    """Whose a file is that RosterExtractor wrote; others are nobody's."""

    def collect(self, submitted_file: str) -> dict[str, str] | None:
        known: dict[str, dict[str, str]] = getattr(self.parent.extractor_plugin_inst, "infos", {})
        return known.get(str(Path(submitted_file)))


def _info(student: str, notebook: Path) -> dict[str, str]:
    stamp = notebook.with_name(archives.TIMESTAMP)
    time = {"timestamp": stamp.read_text(encoding="utf-8").strip()} if stamp.is_file() else {}
    return {"student_id": student, "file_id": notebook.name, **time}


def _stem(name: str) -> str:
    ending = max((end for end in archives.ENDINGS if name.casefold().endswith(end)), key=len)
    return name[: -len(ending)]
