"""nbgrader's exchange on a machine that students share: nothing that a student wrote there is believed.

nbgrader's own classes follow links that lie in a submission (one to the reference solution earns full marks), only warn
of work in another's name, believe the time that a submission gives itself, and stop at the first one they cannot read.
`nbgrader_config.py` names the classes of this file; what students run (fetch, submit, list) stays nbgrader's.
"""

from __future__ import annotations

import functools
import itertools
import os
import pwd
import re
import shutil
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from nbgrader.exchange import default
from nbgrader.utils import check_mode, is_ignored, notebook_hash, parse_utc
from traitlets import Integer

from autograder import names
from autograder.feedback import spreadsheet
from autograder.gradebook import SECRET, GradebookError, arrival, due, no_link, secret
from autograder.report import clean
from ichimon.notebook import MAX_BYTES

MOST = 1000  # files in one submission


class Refused(Exception):
    """Why a submission is left where it is, as the end of a sentence."""


@dataclass(frozen=True)
class Handed:
    """A folder in the exchange's inbox."""

    folder: Path
    student: str
    arrived: datetime  # in UTC, without saying so, as nbgrader has it


class Collect(default.ExchangeCollect):
    """`nbgrader collect`: from each student the last notebook, as a plain file that belongs to that student."""

    tolerance = Integer(
        600,
        help="How many seconds the time that a submission gives itself may lie from when its files last changed, which "
        "counts otherwise. 0 believes every submission: for an exchange that was restored from a backup.",
    ).tag(config=True)

    def init_src(self) -> None:
        if not self.coursedir.course_id:
            self.fail("No course id specified. Re-run with --course flag.")
        inbox = Path(self.root, self.coursedir.course_id, "inbound")
        if not inbox.is_dir():
            self.fail(f"There is no folder {inbox}: release an assignment first, or check the course's id.")
        if not check_mode(inbox, read=True, execute=True):
            self.fail(f"You may not read {inbox}: collect as the account that releases.")
        try:
            ends = due(self.coursedir.assignment_id, self.coursedir)
        except GradebookError as error:
            self.fail(str(error))
        self.notes: list[tuple[str, str]] = []
        submissions: defaultdict[str, list[Handed]] = defaultdict(list)
        for folder in sorted(inbox.iterdir()):
            with self._told(folder):
                if handed := self._handed(folder):
                    submissions[handed.student].append(handed)
        self.chosen: list[Handed] = []
        for several in submissions.values():
            in_time = [handed for handed in several if ends is None or handed.arrived <= ends]
            counts = in_time if self.before_duedate and in_time else several
            self.chosen.append(max(counts, key=lambda handed: handed.arrived))

    @contextmanager
    def _told(self, folder: Path) -> Iterator[None]:
        """What keeps one submission from being collected is said, and stops no other."""
        try:
            yield
        except Refused as why:
            self._note(folder, f"{why} It was left alone.")
        except OSError as error:
            self._note(folder, f"could not be read: {error.strerror}. It was left alone.")

    def _handed(self, folder: Path) -> Handed | None:
        """Whose submission a folder is, by the account that made it; None if it is of another assignment or student."""
        assignment = re.escape(self.coursedir.assignment_id)
        found = re.fullmatch(rf"(.+)\+{assignment}\+([^+]+)(?:\+[\w-]+)?", folder.name, re.ASCII)
        if found is None or not fnmatchcase(found[1], self.coursedir.student_id or "*"):
            return None
        student, there = found[1], folder.lstat()
        if not stat.S_ISDIR(there.st_mode):
            raise Refused("is no folder.")
        if names.trouble(student) or not student.strip("."):
            raise Refused("names no student.")
        if self.check_owner and (owner := _account(there.st_uid)) != student:
            raise Refused(f"says that it is {student}'s, and belongs to {owner}.")
        try:
            told = parse_utc(found[2])
        except (ValueError, ArithmeticError):
            raise Refused("holds no time in its name.") from None
        changed = max(path.lstat().st_ctime for path in (folder, *_notebooks(folder)))
        seen = datetime.fromtimestamp(changed, UTC).replace(tzinfo=None)
        if not self.tolerance or abs((told - seen).total_seconds()) <= self.tolerance:
            return Handed(folder, student, told)
        self._note(folder, f"was last changed at {seen:%F %T} UTC: that time counts.")
        return Handed(folder, student, seen)

    def _note(self, folder: Path, said: str) -> None:
        self.notes.append((clean(folder.name, 120), said))

    def copy_files(self) -> None:
        taken = there = 0
        for handed in self.chosen:
            course, assignment = self.coursedir, self.coursedir.assignment_id
            target = Path(course.format_path(course.submitted_directory, handed.student, assignment))
            with self._told(handed.folder):
                text = arrival(target / "timestamp.txt")
                before = parse_utc(text) if text else None
                newer = before is None or (handed.arrived > before if self.update else handed.arrived != before)
                if target.is_dir() and not ((self.update or self.before_duedate) and newer):
                    there += 1
                    continue
                self._take(handed, target)
                taken += 1
        how = "" if self.update or not there else " (--update takes newer ones)"
        self.log.info("%d submissions are collected, %d were there already%s.", taken, there, how)
        _tell(self, f"{self.coursedir.assignment_id}-collect", ("submission", "what"), self.notes)

    def _take(self, handed: Handed, target: Path) -> None:
        """Copy what counts of a submission, all at once; what it replaces is kept in _build/replaced."""
        files = {f"{self.coursedir.assignment_id}.ipynb": self._notebook(handed.folder)}
        if text := secret(handed.folder):
            files[SECRET] = text.encode()
        files["timestamp.txt"] = f"{handed.arrived.replace(tzinfo=UTC):{self.timestamp_format}}".encode()
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, data in files.items():
            (partial / name).write_bytes(data)
        if target.is_dir():
            kept = Path(self.coursedir.root, "_build", "replaced", handed.student, target.name)
            kept.mkdir(parents=True, exist_ok=True)
            shutil.move(target, kept / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}")
        partial.rename(target)

    def _notebook(self, folder: Path) -> bytes:
        """The bytes of the assignment's notebook, or of the only one there is under another name."""
        there = {path.name for path in _notebooks(folder)}
        wanted = f"{self.coursedir.assignment_id}.ipynb"
        if wanted not in there and len(there) != 1:
            raise Refused(f"holds no {wanted}.")
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            name = wanted if wanted in there else there.pop()
            try:
                stream = open(name, "rb", opener=functools.partial(no_link, dir_fd=opened))  # noqa: SIM115
            except OSError as error:
                raise Refused(f"holds a notebook that cannot be read, or is none ({error.strerror}).") from None
            with stream:
                found = os.fstat(stream.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise Refused("holds a notebook that is no file.")
                if self.check_owner and found.st_uid != os.fstat(opened).st_uid:
                    raise Refused(f"holds a notebook that belongs to {_account(found.st_uid)}.")
                data = stream.read(MAX_BYTES + 1)
        finally:
            os.close(opened)
        if len(data) > MAX_BYTES:
            raise Refused(f"holds a notebook of more than {MAX_BYTES >> 20} MB.")
        return data


def _notebooks(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        there = [entry.name for entry in itertools.islice(entries, MOST + 1)]
    if len(there) > MOST:
        raise Refused(f"holds more than {MOST:,} files.")
    return [folder / name for name in there if name.endswith(".ipynb")]


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the unknown account {uid}"


class ReleaseAssignment(default.ExchangeReleaseAssignment):
    """`nbgrader release_assignment`: one notebook, searched for answers, into an exchange where nobody can move others'
    work away."""

    def ensure_root(self) -> None:
        super().ensure_root()
        self._keep(Path(self.root))

    def init_dest(self) -> None:
        super().init_dest()
        self._keep(Path(self.inbound_path))

    def _keep(self, folder: Path) -> None:
        """In a folder where all may write, the sticky bit lets only the owner of something rename or delete it."""
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            try:
                folder.chmod(stat.S_IMODE(mode) | stat.S_ISVTX)
            except PermissionError:
                self.log.warning("Anybody can rename what is in %s: its owner should say `chmod +t` to it.", folder)

    def copy_files(self) -> None:
        from autograder.authoring.release import Search, leaks

        folder, notebook = Path(self.src_path), f"{self.coursedir.assignment_id}.ipynb"
        there = [p for p in folder.iterdir() if not is_ignored(str(p), self.coursedir.ignore)]
        if odd := sorted(path.name for path in there if path.name != notebook or path.is_symlink()):
            self.fail(f"{folder} holds {odd[0]}, which is not the notebook that students get: take it away.")
        if found := leaks(folder, Search()):
            self.fail(f"{found[0]}. Run `make notebooks` for the notebook as students get it.")
        super().copy_files()


class ReleaseFeedback(default.ExchangeReleaseFeedback):
    """`nbgrader release_feedback`: each page under a name made from its submission's secret."""

    def copy_files(self) -> None:
        course = self.coursedir
        without: list[str] = []
        released = 0
        excluded = set(filter(None, course.student_id_exclude.split(",")))
        pattern = Path(course.format_path(course.feedback_directory, "*", course.assignment_id))
        for folder in sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))):
            student = _student(folder, pattern)
            page = folder / f"{course.assignment_id}.html"
            if student in excluded or not fnmatchcase(student, course.student_id or "*") or not page.is_file():
                continue
            key = secret(folder)
            if not key:
                without.append(student)
                continue
            to = Path(self.dest_path, f"{notebook_hash(secret=key, notebook_id=course.assignment_id)}.html")
            partial = to.with_suffix(".partial")
            shutil.copyfile(page, partial)
            partial.chmod(0o644)
            partial.replace(to)
            released += 1
        self.log.info("The feedback of %d students on %s is released.", released, course.assignment_id)
        why = "no feedback was released: the work did not come through the exchange"
        _tell(self, f"{course.assignment_id}-release-feedback", ("student", "what"), [(name, why) for name in without])


def _tell(step: default.Exchange, name: str, columns: tuple[str, str], notes: Sequence[tuple[str, str]]) -> None:
    """What staff should look at, in a file of theirs: names are for no log."""
    path = Path(step.coursedir.root, "_build", "exchange", f"{name}.csv")
    path.unlink(missing_ok=True)
    if notes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(spreadsheet([columns, *notes]), encoding="utf-8", newline="")
        step.log.warning("There is something to look at (%d): %s.", len(notes), path)


def _student(folder: Path, pattern: Path) -> str:
    return next(part for part, star in zip(folder.parts, pattern.parts, strict=True) if star == "*")
