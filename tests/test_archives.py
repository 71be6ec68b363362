"""A class in one archive: read as a folder would be, whatever program made it, and never written where it says."""

from __future__ import annotations

import io
import json
import lzma
import os
import stat
import struct
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autograder import archives, names
from autograder.results import Results

if TYPE_CHECKING:
    from conftest import Command

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "class"
NAME = "02-self-attention"
NOTEBOOK = (Path(__file__).resolve().parents[1] / "notebooks" / NAME / f"{NAME}.ipynb").read_bytes()
CLASS = {
    f"{student}/{NAME}/{file}": data
    for student in ("ada", "bob", "山田　太郎")
    for file, data in ((f"{NAME}.ipynb", NOTEBOOK + student.encode()), ("timestamp.txt", b"2026-11-22 08:00:00 UTC"))
}


def zipped(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def tar_member(name: str, data: bytes = b"", kind: bytes = b"0", size: int | None = None) -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, len(data) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


Found = dict[str, tuple[str, bytes]]


def unpacked(folder: Path, name: str, data: bytes) -> tuple[Found, list[str]]:
    """What `unpack` makes of it: student -> (assignment, bytes), and the sentences. Nothing may lie elsewhere."""
    archive = folder / "in" / name
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(data)
    found, sentences = archives.unpack(archive, folder / "out")
    assert sorted(path.name for path in folder.iterdir()) in (["in"], ["in", "out"])
    assert all(sentence.startswith(f"{name}: ") and sentence.endswith(".") for sentence in sentences)
    assert all(stat.S_ISREG(path.lstat().st_mode) for _, _, path in found)
    assert len(found) == len({student for student, _, _ in found})
    return {student: (assignment, path.read_bytes()) for student, assignment, path in found}, sentences


WHOLE = {student: (NAME, NOTEBOOK + student.encode()) for student in ("ada", "bob", "山田　太郎")}
MADE: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "class.zip": zipped,
    "stored.zip": lambda members: zipped(members, zipfile.ZIP_STORED),
    "class.tar": tarred,
    "gnu.tar": lambda members: tarred(members, form=tarfile.GNU_FORMAT),
    "old.tar": lambda members: tarred(members, form=tarfile.USTAR_FORMAT),
    "class.tar.gz": lambda members: tarred(members, "w:gz"),
    "CLASS.TGZ": lambda members: tarred(members, "w:gz"),
    "class.tar.bz2": lambda members: tarred(members, "w:bz2"),
    "class.tar.xz": lambda members: tarred(members, "w:xz"),
}


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_archive_holds_the_class(name: str, tmp_path: Path) -> None:
    assert archives.is_archive(Path(__file__)) is False
    assert unpacked(tmp_path, name, MADE[name](CLASS)) == (WHOLE, [])
    assert len(list(tmp_path.glob("out/*/*/timestamp.txt"))) == 3


@pytest.mark.parametrize("name", ["class.zip", "class.tar"])
def test_a_second_time_changes_nothing(name: str, tmp_path: Path) -> None:
    unpacked(tmp_path, name, MADE[name](CLASS))
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    assert unpacked(tmp_path, name, MADE[name](CLASS)) == (WHOLE, [])
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "out").glob("*/*"))


LAYOUTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "flat": (["ada.ipynb", "bob.ipynb"], {"ada": "", "bob": ""}),
    "folders": (["ada/x.ipynb", "bob/y.IPYNB"], {"ada": "", "bob": ""}),
    "a folder as the archive": ([f"class/ada/{NAME}/x.ipynb", "class/bob/x.ipynb"], {"ada": NAME, "bob": ""}),
    "one student": ([f"ada/{NAME}/{NAME}.ipynb"], {"ada": NAME}),
    "scratch paper": ([f"ada/{NAME}/{NAME}.ipynb", f"ada/{NAME}/copy.ipynb", "ada/.x/y.ipynb"], {"ada": NAME}),
    "dots": ([f"./ada/{NAME}/{NAME}.ipynb", "././bob//x.ipynb"], {"ada": NAME, "bob": ""}),
    "a student in a student": ([f"eve/ada/{NAME}/{NAME}.ipynb", "bob/x.ipynb"], {"eve": "", "bob": ""}),
    "of macOS": (["ada/x.ipynb", "__MACOSX/ada/._x.ipynb", ".DS_Store", "ada/data.csv"], {"ada": ""}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_whose_a_member_is_depends_on_the_folder_at_one_depth(
    layout: str, make: Callable[[Mapping[str, bytes]], bytes], tmp_path: Path
) -> None:
    members, expected = LAYOUTS[layout]
    name = "class.zip" if make is zipped else "class.tar"
    found, sentences = unpacked(tmp_path, name, make(dict.fromkeys(members, NOTEBOOK)))
    assert {student: assignment for student, (assignment, _) in found.items()} == expected
    assert sentences == []


def test_a_class_in_an_archive_gets_the_marks_that_it_gets_in_a_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "UNPACKED", tmp_path / "out")
    students = ("student-01", "student-03")
    files = {f"class/{student}/{NAME}/{NAME}.ipynb": SAMPLE / student / NAME / f"{NAME}.ipynb" for student in students}
    archive = tmp_path / "class.zip"
    archive.write_bytes(zipped({name: path.read_bytes() for name, path in files.items()} | {"../x.ipynb": b"{}"}))
    ran = command("grade", archive, "--results", tmp_path / "results.sqlite", "--workers", 1)
    with Results(tmp_path / "results.sqlite") as stored:
        marks = {report.student: report.points for report in stored.reports()}
    expected = json.loads((SAMPLE / "marks.json").read_text(encoding="utf-8"))["students"]
    assert marks == {student: sum(expected[student]["marks"].values()) for student in students}
    assert ran.code == 1
    assert [sentence for sentence in ran.sentences if "leads out of the archive" in sentence]


def test_one_folder_with_another_name_may_be_the_class_and_that_is_said(tmp_path: Path) -> None:
    archive = tmp_path / "downloads.zip"
    archive.write_bytes(zipped({"week 2/ada.ipynb": NOTEBOOK, "week 2/bob.ipynb": NOTEBOOK}))
    found, sentences = archives.unpack(archive, tmp_path / "out")
    assert {student for student, _, _ in found} == {"week 2"}
    assert ["all of it is in one folder, “week 2”" in sentence for sentence in sentences] == [True]


def test_an_archive_without_a_notebook_says_what_belongs_into_it(tmp_path: Path) -> None:
    assert unpacked(tmp_path, "class.zip", zipped({"a.txt": b"x"})) == (
        {},
        ["class.zip: it holds no notebook. Expected <student>/<assignment>/<notebook>.ipynb, or *.ipynb files."],
    )


# -- names ----------------------------------------------------------------------------------------------------------

ODD_NAMES = {
    "../ada/x.ipynb": "leads out of the archive",
    f"eve/../ada/{NAME}/{NAME}.ipynb": "leads out of the archive",
    "/etc/x.ipynb": "leads out of the archive",
    "C:/x.ipynb": "leads out of the archive",
    "c:x.ipynb": "leads out of the archive",
    "eve\\..\\ada\\x.ipynb": "leads out of the archive",
    "//server/share/x.ipynb": "leads out of the archive",
    "eve/\x1b[2Jx.ipynb": "cannot be printed",
    "eve/x\n.ipynb": "cannot be printed",
    "eve/\u202ebpnyi.x.ipynb": "cannot be printed",
    "eve/work.zip": "is an archive inside the archive",
    "eve/work.tar.gz": "is an archive inside the archive",
    f"eve/{'x' * 2000}.ipynb": "has a name of more than 1,000 characters",
    "eve/": "",
    "eve/.hidden.ipynb": "",
}


@pytest.mark.parametrize("odd", ODD_NAMES)
@pytest.mark.parametrize("name", ["class.zip", "class.tar", "gnu.tar"])
def test_an_odd_name_costs_itself_a_sentence(odd: str, name: str, tmp_path: Path) -> None:
    data = MADE[name]({odd: NOTEBOOK, **CLASS})
    found, sentences = unpacked(tmp_path, name, data)
    assert found == WHOLE
    assert [ODD_NAMES[odd] in sentence for sentence in sentences] == ([True] if ODD_NAMES[odd] else [])


@pytest.mark.parametrize(
    "other",
    [
        f"ada/{NAME}/{NAME}.ipynb",
        f"ADA/{NAME}/{NAME}.ipynb",
        f"ada/./{NAME}//{NAME}.ipynb",
        f"ada/{NAME}/{NAME}.IPYNB",
        f"ａｄａ/{NAME}/{NAME}.ipynb",
    ],
)
@pytest.mark.parametrize("name", ["class.zip", "class.tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_with_one_name_neither_is_read(other: str, name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO(MADE[name](CLASS))
    forged = b"{}"
    if name == "class.zip":
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(other, forged)
    else:
        with tarfile.open(fileobj=buffer, mode="a") as tar:
            header = tarfile.TarInfo(other)
            header.size = len(forged)
            tar.addfile(header, io.BytesIO(forged))
    found, sentences = unpacked(tmp_path, name, buffer.getvalue())
    assert found == {student: what for student, what in WHOLE.items() if student != "ada"}
    assert ["is in it more than once" in sentence for sentence in sentences] == [True]
    assert not [path for path in tmp_path.rglob("*.ipynb") if path.read_bytes() == forged]


def test_what_is_said_about_an_archive_has_an_end(tmp_path: Path) -> None:
    members = {f"eve/../{i}.ipynb": NOTEBOOK for i in range(500)} | CLASS
    found, sentences = unpacked(tmp_path, "class.zip", zipped(members))
    assert found == WHOLE
    assert len(sentences) == archives.MAX_SENTENCES + 1
    assert sentences[-1] == "class.zip: 480 more of its members were not read."


# -- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (tarfile.SYMTYPE, "is a symbolic link"),
        (tarfile.LNKTYPE, "is a hard link"),
        (tarfile.FIFOTYPE, "is a pipe"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.BLKTYPE, "is a device"),
        (tarfile.CONTTYPE, "is not an ordinary file"),
        (b"Z", "is not an ordinary file"),
    ],
)
def test_only_ordinary_files_of_a_tar_are_read(kind: bytes, says: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        header = tarfile.TarInfo(f"eve/{NAME}/{NAME}.ipynb")
        header.type, header.linkname = kind, "/etc/passwd"
        archive.addfile(header)
        for name, data in CLASS.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    found, sentences = unpacked(tmp_path, "class.tar", buffer.getvalue())
    assert found == WHOLE
    assert [says in sentence for sentence in sentences] == [True]


def zip_member(**changes: int) -> bytes:
    """The class, and a member of eve's whose entry in the table of contents says something else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eve/x.ipynb", NOTEBOOK)
        for name, data in CLASS.items():
            archive.writestr(name, data)
        for key, value in changes.items():
            setattr(archive.infolist()[0], key, value)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"external_attr": (stat.S_IFLNK | 0o777) << 16}, "is a symbolic link"),
        ({"external_attr": stat.S_IFIFO << 16}, "is a device or a pipe"),
        ({"external_attr": stat.S_IFCHR << 16}, "is a device or a pipe"),
        ({"flag_bits": 1}, "is encrypted"),
        ({"flag_bits": 0x20}, "is damaged"),
        ({"compress_type": zipfile.ZIP_LZMA}, "is packed in a way that is unusual"),
        ({"compress_type": 99}, "is packed in a way that is unusual"),
        ({"compress_size": 1 << 20}, "lies over another member"),
        ({"compress_size": (1 << 63) - 1, "file_size": 1}, "lies over another member"),
        ({"file_size": 21 << 20}, "as in a zip bomb"),
        ({"file_size": 1 << 62}, "as in a zip bomb"),
        ({"file_size": 100}, "is damaged"),
        ({"CRC": 0}, "is damaged"),
    ],
)
def test_only_ordinary_members_of_a_zip_are_read(changes: dict[str, int], says: str, tmp_path: Path) -> None:
    found, sentences = unpacked(tmp_path, "class.zip", zip_member(**changes))
    assert found == WHOLE
    assert [says in sentence for sentence in sentences] == [True]


def test_a_notebook_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    large = os.urandom(1 << 20) * 21
    for name, make in (("class.zip", zipped), ("class.tar.gz", MADE["class.tar.gz"])):
        found, sentences = unpacked(tmp_path, name, make({"eve/x.ipynb": large, **CLASS}))
        assert found == WHOLE
        assert ["is larger than 20 MB" in sentence for sentence in sentences] == [True]


# -- bombs and lies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["class.zip", "class.tar.gz", "class.tar.bz2", "class.tar.xz"])
def test_what_grows_beyond_measure_costs_itself_a_sentence(name: str, tmp_path: Path) -> None:
    bombs = {f"eve/{i}.ipynb": bytes(19 << 20) for i in range(3)}
    started = time.monotonic()
    found, sentences = unpacked(tmp_path, name, MADE[name]({**bombs, **CLASS}))
    assert found == WHOLE
    assert ["as in a zip bomb" in sentence for sentence in sentences] == [True] * 3
    assert time.monotonic() - started < 10


def test_members_that_share_their_bytes_are_not_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for student in "abcd":
            archive.writestr(f"{student}/x.ipynb", NOTEBOOK)
        for info in archive.infolist()[1:]:
            info.header_offset = archive.infolist()[0].header_offset
    found, sentences = unpacked(tmp_path, "class.zip", buffer.getvalue())
    assert found == {}
    assert ["lies over another member" in sentence for sentence in sentences] == [True] * 4


def test_a_tape_that_goes_on_for_ever_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_TAR", 8 << 20)
    ten = bytes(10 << 20)
    endless = b"".join(tar_member(*one) for one in CLASS.items()) + tar_member("eve/huge.bin", ten, size=1 << 50)
    packed = tarred({**CLASS, "eve/huge.bin": ten, "zoe/x.ipynb": NOTEBOOK}, "w:xz")
    for name, data in (("class.tar", endless), ("class.tar.xz", packed)):
        found, sentences = unpacked(tmp_path, name, data)
        assert found == WHOLE
        assert ["is larger than a class can be" in sentence for sentence in sentences] == [True]


def pax(**records: str) -> bytes:
    body = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + len(str(len(line) + 2))
        body += str(length).encode() + line
    return tar_member("././@PaxHeader", body, b"x")


HEADERS: dict[str, tuple[bytes, str]] = {
    "a sparse file": (tar_member("eve/x.ipynb", kind=tarfile.GNUTYPE_SPARSE), "is a sparse file"),
    "a sparse file of pax": (
        pax(**{"GNU.sparse.major": "1"}) + tar_member("eve/x.ipynb", NOTEBOOK),
        "is a sparse file",
    ),
    "a name in pax": (pax(path="../../x.ipynb") + tar_member("eve/x.ipynb", NOTEBOOK), "leads out of the archive"),
    "a long header": (tar_member("x", bytes(1 << 20), b"x") + tar_member("eve/x.ipynb", NOTEBOOK), "extended header"),
    "a length below 0": (tar_member("eve/x.ipynb", size=-512), "a length below 0"),
    "a length below 0 in pax": (pax(size="-512") + tar_member("eve/x.ipynb", NOTEBOOK), "a length below 0"),
    "a length that is none": (pax(size="x") + tar_member("eve/x.ipynb", NOTEBOOK), "is damaged"),
    "a broken record": (tar_member("x", b"999999999 path=x\n", b"x"), "is damaged"),
    "a slow record": (tar_member("x", b"1" * 60000, b"x"), "is damaged"),
    "a header of noise": (b"\xff" * 512, "is damaged"),
    "an early end": (tar_member("eve/x.ipynb", NOTEBOOK)[:1024], "it ends too early"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_lies_stops_at_most_what_follows_it(header: str, tmp_path: Path) -> None:
    data, says = HEADERS[header]
    started = time.monotonic()
    found, sentences = unpacked(tmp_path, "class.tar", b"".join(tar_member(*one) for one in CLASS.items()) + data)
    assert found == WHOLE
    assert any(says in sentence for sentence in sentences), sentences
    assert time.monotonic() - started < 5


ENDS = zipped(CLASS)
NOISE: dict[str, bytes] = {
    "noise.zip": os.urandom(5000),
    "noise.tar": os.urandom(5000),
    "noise.tar.gz": b"\x1f\x8b" + os.urandom(5000),
    "noise.tar.bz2": b"BZh9" + os.urandom(5000),
    "noise.tar.xz": b"\xfd7zXZ\x00" + os.urandom(5000),
    "empty.zip": b"",
    "empty.tar": b"",
    "half.zip": ENDS[: len(ENDS) // 2],
    "table.zip": ENDS[:-22] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 0xFFFFFFF0, 0, 0),
    "zip64.zip": ENDS[:-22]
    + struct.pack("<4sLQL", b"PK\6\7", 0, 1 << 63, 1)
    + ENDS[-22:].replace(b"\0\0", b"\xff\xff"),
    "really-a-zip.tar": ENDS,
    "really-a-tar.zip": tarred(CLASS),
}


@pytest.mark.parametrize("name", NOISE)
def test_what_is_no_archive_is_one_sentence(name: str, tmp_path: Path) -> None:
    found, sentences = unpacked(tmp_path, name, NOISE[name])
    assert found == {}
    assert [sentence.startswith(f"{name}: it is damaged after 0 members (") for sentence in sentences] == [True]


def test_a_table_of_contents_of_any_length_is_not_read(tmp_path: Path) -> None:
    table = bytes((16 << 20) + 100)
    data = table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, len(table), 0, 0)
    found, sentences = unpacked(tmp_path, "class.zip", data)
    assert found == {}
    assert ["a part of it claims 16,777,316 bytes" in sentence for sentence in sentences] == [True]


def test_xz_that_asks_for_gigabytes_of_memory_gets_none(tmp_path: Path) -> None:
    """A dictionary of 4 GiB, which the header may claim in one byte."""
    data = bytearray(lzma.compress(tarred(CLASS), lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]))
    size = (data[12] + 1) * 4
    data[12 + 4] = 40  # the dictionary's size, after "LZMA2, one byte of properties"
    data[12 + size - 4 : 12 + size] = struct.pack("<L", zlib.crc32(bytes(data[12 : 12 + size - 4])))
    before = resident()
    found, sentences = unpacked(tmp_path, "class.tar.xz", bytes(data))
    assert resident() - before < 300 << 20
    assert found == WHOLE or any("is damaged" in sentence for sentence in sentences)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- names of students ----------------------------------------------------------------------------------------------

PAIRS = [
    ("ada", "Ada"),
    ("José", unicodedata.normalize("NFD", "José")),
    ("ada", "ａｄａ"),
    ("student-10", "student-lO"),
    ("Ian", "lan"),
    ("Oca", "Оса"),
    ("ada", "ada."),
    ("山田 太郎", "山田　太郎"),
    ("Вова", "вова"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_names_that_look_the_same_are_told_apart_by_a_person(one: str, other: str) -> None:
    alike = names.look_alikes([one, "bob", other, one])
    assert set(alike) == {one, other}
    assert all("could be taken for" in sentence for sentence in alike.values())


def test_names_of_an_ordinary_class_are_no_look_alikes() -> None:
    ordinary = [f"student-{i:02}" for i in range(100)] + ["Ada L.", "Ada M.", "Bill", "Biil", "Arno", "Amo", "Анна"]
    assert names.look_alikes(ordinary) == {}
    assert [name for name in ordinary if names.trouble(name)] == []


@pytest.mark.parametrize(
    "name", ["ada ", " ada", "", "аda", "ad\u03b1", "ada\u3164", "ada\ufe0f", "ad\u034fa", "\u202eada", "a" * 101]
)
def test_a_name_that_is_made_to_deceive_is_no_students(name: str) -> None:
    assert "cannot be a student's name" in names.trouble(name)
    assert names.trouble("ada") == ""
