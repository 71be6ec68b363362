"""A term from release to export, what arrives on the way, and late work."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from conftest import NIGHTLY

from autograder import roster as rosters
from autograder.assignment import COURSE
from autograder.collect import collect
from autograder.course import Course, CourseError
from autograder.late import Late

NAME = "02-self-attention"
NOTEBOOK = (COURSE / "notebooks" / NAME / f"{NAME}.ipynb").read_bytes()
OTHER = NOTEBOOK.replace(b"\n", b"\n ", 1)
SECRET = (COURSE / "solutions" / f"{NAME}.py").read_bytes()
SINCE = datetime(2026, 10, 12, 21, 59, tzinfo=UTC)


# -- late work ------------------------------------------------------------------------------------------------------


def late(**settings: object) -> Late:
    return msgspec.convert(settings, Late)


@pytest.mark.parametrize(
    ("seconds", "points", "lost"),
    [
        (0, 20, 0),
        (600, 20, 0),  # the grace
        (601, 20, 2),  # the first day has begun
        (86_400, 20, 2),
        (86_401, 20, 4),
        (10 * 86_400, 20, 10),  # no more than half
        (700, 23, 2.3),
        (700, 0.33, 0.03),
    ],
)
def test_each_day_that_has_begun_costs_its_share(seconds: float, points: float, lost: float) -> None:
    rules = late(per_day=10, at_most=50, grace="10 minutes")
    assert rules.penalty(seconds, points) == lost
    assert late().penalty(seconds, points) == 0, "without settings nothing is lost"


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("10 minutes", timedelta(minutes=10)),
        ("1 day 12 hours", timedelta(hours=36)),
        ("1 week, 1 day and 1 hour", timedelta(days=8, hours=1)),
        ("1.5 hours", timedelta(minutes=90)),
    ],
)
def test_extra_time_is_for_all_assignments_or_for_one(text: str, length: timedelta) -> None:
    rules = late(extra_time={"student-07": text, "student-09": {NAME: text}})
    assert rules.trouble() == ""
    assert rules.extra("student-07", NAME) == rules.extra("student-07", "06-gpt") == length
    assert rules.extra("student-09", NAME) == length
    assert rules.extra("student-09", "06-gpt") is None
    assert rules.extra("student-01", NAME) is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "solutions").mkdir()
    shutil.copyfile(COURSE / f"solutions/{NAME}.py", tmp_path / f"solutions/{NAME}.py")
    return tmp_path


def test_a_time_without_a_zone_is_in_the_courses(root: Path) -> None:
    for due in ("2026-10-12T23:59:00", "2026-10-12T21:59:00Z", "2026-10-12 14:59:00-07:00"):
        (root / "course.toml").write_text(f'[late]\nzone = "Europe/Berlin"\n[late.due]\n"{NAME}" = {due}\n')
        assert Course(root).settings.late.until(NAME) == SINCE
    assert late(zone="Europe/Berlin", due={NAME: datetime(2026, 10, 26, 23, 59)}).until(NAME) == datetime(
        2026, 10, 26, 22, 59, tzinfo=UTC
    ), "summer time has ended"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[late]\nper_day = 101", "cannot be understood"),
        ("[late]\nper_day = -1", "cannot be understood"),
        ("[late]\nper_day = nan", "cannot be understood"),
        (f'[late.due]\n"{NAME}" = 0001-01-01T00:00:00', "is due in the year 1"),
        ('[late]\ngrace = "99999999999999999999 weeks"', "no length of time"),
        ("[late]\nper_days = 1", "cannot be understood"),
        ('[late]\nzone = "Berlin"', "there is no time zone 'Berlin'"),
        ('[late]\nzone = "../../etc/passwd"', "there is no time zone"),
        ('[late]\ngrace = "soon"', "'soon' is no length of time"),
        ('[late]\ngrace = "2 years"', "no length of time"),
        ('[late]\ngrace = "53 weeks"', "no length of time"),
        ('[late.extra_time]\nada = "3"', "'3' is no length of time up to a year"),
        (f'[late.extra_time]\nada = {{ "{NAME}" = "three days" }}', "no length of time"),
        ('[late.due]\n"77-nothing" = 2026-10-12T23:59:00', "names 77-nothing"),
        ('[late.extra_time]\nada = { "77-nothing" = "3 days" }', "names 77-nothing"),
        (f'[late.due]\n"{NAME}" = 2026-10-12', "cannot be understood"),
        (f'[late.due]\n"{NAME}" = "Monday"', "cannot be understood"),
    ],
)
def test_what_cannot_be_meant_is_said(root: Path, text: str, sentence: str) -> None:
    (root / "course.toml").write_text(text)
    with pytest.raises(CourseError, match=sentence):
        assert Course(root).settings


# -- what arrives ---------------------------------------------------------------------------------------------------


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    path = tmp_path / "roster.csv"
    path.write_text("student,email\n" + "".join(f"{name},{name}@example.org\n" for name in ("aya", "bo", "cy", "di")))
    return path


@pytest.mark.parametrize("inside", ["bo/02-self-attention", "bo", "02-self-attention", "x/bo/02-self-attention"])
def test_folders_in_a_students_folder_are_theirs(tmp_path: Path, roster: Path, inside: str) -> None:
    own = tmp_path / "class" / "aya" / inside
    own.mkdir(parents=True)
    (own / f"{NAME}.ipynb").write_bytes(NOTEBOOK)
    stranger = tmp_path / "class" / "eve" / inside
    stranger.mkdir(parents=True)
    (stranger / f"{NAME}.ipynb").write_bytes(OTHER)
    done = collect([tmp_path / "class"], rosters.read(roster), tmp_path / "submitted", kept=tmp_path / "kept")
    assert done.new == [("aya", NAME)]
    assert list(done.asked) == ["eve"]


def test_a_link_in_a_folder_brings_nobody_the_solution(tmp_path: Path, roster: Path) -> None:
    own = tmp_path / "class" / "aya" / NAME
    own.mkdir(parents=True)
    (own / f"{NAME}.ipynb").symlink_to(COURSE / "notebooks" / NAME / f"{NAME}.ipynb")
    done = collect([tmp_path / "class"], rosters.read(roster), tmp_path / "submitted", kept=tmp_path / "kept")
    assert not done.new
    assert "is a symbolic link, not a notebook" in done.troubles[0]
    assert not (tmp_path / "submitted").exists()


def test_a_time_stamp_is_believed_only_when_asked_to(tmp_path: Path, roster: Path) -> None:
    archive, known = tmp_path / "class.zip", rosters.read(roster)
    with zipfile.ZipFile(archive, "w") as packed:
        for student, stamp in (("aya", "2026-10-12 10:00:00 UTC"), ("bo", "yesterday; rm -rf /")):
            packed.writestr(f"{student}/{NAME}/{NAME}.ipynb", NOTEBOOK)
            packed.writestr(f"{student}/{NAME}/timestamp.txt", stamp)
    collect([archive], known, tmp_path / "without", kept=tmp_path / "kept")
    assert not list((tmp_path / "without").rglob("timestamp.txt"))
    done = collect([archive], known, tmp_path / "with", kept=tmp_path / "kept", timestamps=True)
    (stamp,) = (tmp_path / "with").rglob("timestamp.txt")
    assert (stamp.parts[-3], stamp.read_text()) == ("aya", "2026-10-12 10:00:00 UTC\n")
    assert "is no time, so its notebook has none" in done.troubles[0]
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(f"aya/{NAME}/{NAME}.ipynb", OTHER)
    assert collect([archive], known, tmp_path / "with", kept=tmp_path / "kept").replaced == [("aya", NAME)]
    assert not stamp.exists(), "it was of the notebook that is replaced"


# -- nbgrader zip_collect -------------------------------------------------------------------------------------------


class Mail:
    """A course to which work came by e-mail: what lies in downloaded/02-self-attention/archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archive = root / "downloaded" / NAME / "archive"
        self.archive.mkdir(parents=True)
        (root / "submitted").mkdir()
        shutil.copy(COURSE / "nbgrader_config.py", root)
        (root / "roster.csv").write_text("student,email\n" + "".join(f"{n},{n}@example.org\n" for n in STUDENTS))

    def zip(self, name: str, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.archive / name, "w", zipfile.ZIP_DEFLATED) as packed:
            for member, data in members.items():
                packed.writestr(member, data)

    def collect(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nbgrader", "zip_collect", NAME, *options]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=100)

    @property
    def submitted(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root / "submitted")): p.read_bytes() for p in self.files("submitted")}

    def files(self, folder: str) -> list[Path]:
        return sorted(path for path in (self.root / folder).rglob("*") if not path.is_dir())

    def told(self, file: str) -> str:
        return (self.root / "downloaded" / NAME / file).read_text(encoding="utf-8")


STUDENTS = [*"abcdefghijklmnop", "victim"]


def path(student: str) -> str:
    return f"{student}/{NAME}/{NAME}.ipynb"


def tape(file: Path, *members: tuple[str, bytes, bytes, str]) -> None:
    with tarfile.open(file, "w:gz") as packed:
        for name, kind, data, to in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, to, len(data)
            packed.addfile(member, io.BytesIO(data))


def test_no_attack_on_zip_collect_harms_anybody(tmp_path: Path) -> None:
    """Each of these is one student's; nbgrader's own plugins unpack, follow, overwrite or stop at most of them."""
    mail = Mail(tmp_path / "course")
    (tmp_path / "secret.ipynb").write_bytes(SECRET)
    (mail.archive / "victim@example.org.ipynb").write_bytes(NOTEBOOK)
    (mail.archive / "a.ipynb").write_bytes(OTHER)
    mail.zip("b.zip", {f"../../../../submitted/{path('victim')}": OTHER, f"../{NAME}.ipynb": OTHER})
    mail.zip("c.zip", {"/tmp/ichimon-zip-collect.ipynb": OTHER, "C:\\x.ipynb": OTHER})
    mail.zip("d.zip", {path("victim"): OTHER})  # a borrowed name: it is d's all the same
    mail.zip("e@example.org.zip", {"victim@example.org.ipynb": OTHER})
    link = zipfile.ZipInfo("f.ipynb")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(mail.archive / "f.zip", "w") as packed:
        packed.writestr(link, str(tmp_path / "secret.ipynb"))
    tape(mail.archive / "g.tar.gz", ("g.ipynb", tarfile.SYMTYPE, b"", str(tmp_path / "secret.ipynb")))
    tape(mail.archive / "h.tar.gz", ("h.ipynb", tarfile.LNKTYPE, b"", str(tmp_path / "secret.ipynb")))
    mail.zip("i.zip", {"i.ipynb": b"0" * (300 << 20)})  # a bomb
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("j.ipynb", NOTEBOOK)
    mail.zip("j.zip", {"j.zip": inner.getvalue()})
    (mail.archive / "k.zip").write_bytes(b"PK\x03\x04 and no more")
    (mail.archive / "l.ipynb").symlink_to(tmp_path / "secret.ipynb")
    (mail.archive / "m").mkdir()
    (mail.archive / "m" / f"{NAME}.ipynb").write_bytes(OTHER)
    (mail.archive / "m" / "victim").mkdir()
    (mail.archive / "m" / "victim" / "timestamp.txt").write_text("2020-01-01 00:00:00 UTC")
    mail.zip("n.zip", {f"{NAME}.ipynb": OTHER, "timestamp.txt": b"2020-01-01 00:00:00 UTC"})
    (mail.archive / "o.ipynb").write_bytes(b"{ not json")  # its owner learns it from the marks
    mail.zip("final.zip", {path("victim"): OTHER, path("a"): NOTEBOOK})  # nobody's, whatever is in it
    (mail.archive / f"..{NAME}.ipynb").write_bytes(OTHER)

    done = mail.collect()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert mail.submitted == {
        path("victim"): NOTEBOOK,
        **{path(student): OTHER for student in "ademn"},
        path("o"): b"{ not json",
    }
    told = mail.told("not-collected.csv")
    for student, why in {
        "b.zip": "leads out of the archive",
        "c.zip": "leads out of the archive",
        "f.zip": "is a symbolic link",
        "g.tar.gz": "is a symbolic link",
        "h.tar.gz": "is a hard link",
        "i.zip": "as in a zip bomb",
        "j.zip": "is an archive inside the archive",
        "k.zip": "is damaged",
        "“l”": "is a symbolic link",
    }.items():
        assert any(student in line and why in line for line in told.splitlines()), (student, told)
    assert "“final” is not in the roster" in mail.told("who-is-it.csv")
    assert not Path("/tmp/ichimon-zip-collect.ipynb").exists()
    assert {each.name for each in tmp_path.iterdir()} == {"course", "secret.ipynb"}
    ours = [line for line in done.stderr.splitlines() if "not-collected" in line or "who-is-it" in line]
    assert len(ours) == 2
    assert not [line for line in ours if "victim" in line or "@" in line], "names are in the files, not in the log"


def test_zip_collect_replaces_nothing_unless_told_to(tmp_path: Path) -> None:
    mail = Mail(tmp_path / "course")
    for student, text in (("a", OTHER), ("b", OTHER), ("c", NOTEBOOK)):
        (mail.archive / f"{student}.ipynb").write_bytes(text)
    for student in "ac":
        there = mail.root / "submitted" / path(student)
        there.parent.mkdir(parents=True)
        there.write_bytes(NOTEBOOK)
    assert mail.collect().returncode == 0, "one earlier submission stops nobody else"
    assert mail.submitted == {path("a"): NOTEBOOK, path("b"): OTHER, path("c"): NOTEBOOK}
    assert "another notebook was collected before" in mail.told("not-collected.csv")
    kept = COURSE / "_build" / "replaced" / "a" / NAME
    before = set(kept.glob("*"))
    done = mail.collect("--force")
    assert mail.submitted == {path("a"): OTHER, path("b"): OTHER, path("c"): NOTEBOOK}, done.stderr
    copies = [each.read_bytes() for each in kept.glob("*")]
    for each in set(kept.glob("*")) - before:
        each.unlink()
    assert NOTEBOOK in copies


def test_an_archive_of_the_class_is_one_when_that_is_said(tmp_path: Path) -> None:
    mail = Mail(tmp_path / "course")
    mail.zip("submissions.zip", {path("a"): NOTEBOOK, "b.ipynb": OTHER, f"c/{NAME}/timestamp.txt": b"x"})
    done = mail.collect("--RosterExtractor.whole_class=True")
    assert mail.submitted == {path("a"): NOTEBOOK, path("b"): OTHER}, done.stderr


def test_without_a_roster_nothing_is_collected(tmp_path: Path) -> None:
    mail = Mail(tmp_path / "course")
    (mail.archive / "a.ipynb").write_bytes(NOTEBOOK)
    done = mail.collect("--RosterExtractor.roster=nothing.csv")
    assert done.returncode == 1
    assert "nothing.csv cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert mail.submitted == {}


# -- a term ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def play() -> Callable[[Path, int], object]:
    """examples/term.py, which is a script and no package; beside it lies what it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(COURSE / "examples"))
        spec = importlib.util.spec_from_file_location("term", COURSE / "examples" / "term.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "term", module)
        spec.loader.exec_module(module)
        yield module.play


def test_a_term_from_release_to_export(play: Callable[[Path, int], object], tmp_path: Path) -> None:
    """Every mark at every step; the script says what it proves. Twenty students have a part of their own."""
    play(tmp_path / "term", 40 if NIGHTLY else 20)
