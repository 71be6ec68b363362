"""A class that arrives as one zip or tar: its notebooks, copied byte by byte to names of ours.

Nothing that an archive says about itself is trusted, and no library unpacks it: a member's name decides whose notebook
it is, never where we write. One bad member costs itself a sentence; the others are read.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import io
import itertools
import lzma
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autograder import assignment as assignments
from autograder import names
from autograder.assignment import COURSE
from autograder.report import clean
from ichimon.notebook import MAX_BYTES

UNPACKED = COURSE / "_build" / "handed-in"
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TIMESTAMP = "timestamp.txt"

MAX_ARCHIVE = 4 << 30  # bytes of the archive itself
MAX_UNPACKED = 8 << 30  # bytes of all that is in it
MAX_MEMBERS = 100_000
MAX_RATIO = 200  # a notebook is text and pictures: it shrinks to a tenth, hardly ever to a hundredth
FREE, FREE_TAR = 1 << 20, 1 << 30  # bytes of a member and of a whole tar up to which the ratio does not matter
PIECE = 1 << 20  # bytes read at once
MAX_READ = 16 << 20  # bytes read at once because the archive says so: a zip's table of contents
MAX_HEADER = 1 << 16  # bytes of an extended header in a tar
MAX_TIMESTAMP = 1000  # bytes
MAX_NAME = 1000  # characters
MAX_SENTENCES = 20  # about one archive

LOCAL_HEADER = 30  # bytes before a zip member's name
READ_AHEAD = 1 << 13  # bytes that gzip and its like may have read before
BOMB = f"grows to more than {MAX_RATIO} times its size, as in a zip bomb"
SPARSE = "is a sparse file, which no notebook is"

_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(OSError, ValueError, OverflowError, RuntimeError, MemoryError),
)


@dataclass(frozen=True)
class Member:
    """A file in an archive: what it holds, or why it was not read."""

    name: str  # as the archive spells it; "" for the archive as a whole
    data: bytes | None = None  # None for what does not matter
    trouble: str = ""


class _TooMuchError(Exception):
    """There is more in it than anybody should read."""


class _Careful(io.BufferedReader):
    """A file that is never read whole because something in it says that it should be."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_READ:
            raise ValueError(f"a part of it claims {size:,} bytes")
        return super().read(size)


def is_archive(path: Path) -> bool:
    return path.name.casefold().endswith(ENDINGS) and path.is_file()


def unpack(archive: Path, below: Path | None = None) -> tuple[list[tuple[str, str, Path]], list[str]]:
    """(student, assignment or "", our copy) for each notebook in an archive, and sentences about what was not read.

    It holds <student>/<assignment>/*.ipynb, <student>/*.ipynb or *.ipynb, perhaps inside one folder that is called as
    the archive is. Of two members with one name, neither is read.
    """
    with _Careful(io.FileIO(archive)) as file:
        folder = (below or UNPACKED) / hashlib.file_digest(file, "sha256").hexdigest()[:16]
        copies, sentences = _copied(_members(file, archive.name), folder)
    notebooks = {path: ours for path, ours in copies.items() if path.name != TIMESTAMP}
    if not notebooks and not sentences:
        sentences = ["it holds no notebook. Expected <student>/<assignment>/<notebook>.ipynb, or *.ipynb files"]
    if len(sentences) > MAX_SENTENCES:
        sentences[MAX_SENTENCES:] = [f"{len(sentences) - MAX_SENTENCES:,} more of its members were not read"]
    depth = _depth(notebooks, archive.name)
    if depth is None:
        only = clean(next(iter(notebooks)).parts[0], 40)
        sentences.append(
            f"all of it is in one folder, “{only}”, which counts as one student. "
            "If that folder is the whole class, call the archive as the folder is called"
        )
    found = [(*_whose(path, depth or 0), ours) for path, ours in notebooks.items() if _counts(path, notebooks)]
    return found, [f"{clean(archive.name, 80)}: {sentence}." for sentence in sentences]


def _copied(members: Iterator[Member], folder: Path) -> tuple[dict[PurePosixPath, Path], list[str]]:
    """Our copy of each member that matters, by its path in the archive; what lay in one folder lies in one of ours."""
    copies: dict[PurePosixPath, Path] = {}
    sentences: list[str] = []
    folders: dict[PurePosixPath, Path] = {}
    spellings: Counter[str] = Counter()
    for member in members:
        if member.trouble:
            sentences.append(f"“{clean(member.name, 80)}” {member.trouble}" if member.name else member.trouble)
        if member.data is None:
            continue
        path = PurePosixPath(*_parts(member.name))
        spellings[names.letters(str(path))] += 1
        if spellings[names.letters(str(path))] > 1:
            continue
        ours = folders.setdefault(path.parent, folder / str(len(folders)))  # who it is from is in no file's name
        ours.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = ours / f".partial-{os.getpid()}"
        partial.write_bytes(member.data)
        telling = path.name == TIMESTAMP or path.stem in assignments.names()
        copies[path] = partial.replace(ours / (path.name if telling else f"notebook-{len(copies)}.ipynb"))
    for path in [path for path in copies if spellings[names.letters(str(path))] > 1]:
        copies.pop(path).unlink()
        sentences.append(f"“{clean(str(path), 80)}” is in it more than once, perhaps in other letters: none was read")
    return copies, sentences


# -- whose a member is ----------------------------------------------------------------------------------------------


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _depth(notebooks: Collection[PurePosixPath], archive: str) -> int | None:
    """How many folders there are around the students'; None if the one folder may be the class or a student.

    It is the same for all, and no shape of folders decides it, so that nobody becomes another student by making some.
    """
    tops = {path.parts[0] for path in notebooks}
    if len(tops) != 1 or any(len(path.parts) == 1 for path in notebooks):
        return 0
    if all(path.parts[1] in assignments.names() for path in notebooks):
        return 0
    if archive.casefold().startswith(f"{tops.pop().casefold()}."):
        return 1
    return 0 if len(notebooks) == 1 else None


def _whose(path: PurePosixPath, depth: int) -> tuple[str, str]:
    folders = path.parts[depth:-1]
    stated = folders[1] if len(folders) > 1 else ""
    return folders[0] if folders else path.stem, stated if stated in assignments.names() else ""


def _counts(path: PurePosixPath, notebooks: Collection[PurePosixPath]) -> bool:
    """As in a folder: beside the notebook that nbgrader expects, others are scratch paper."""
    expected = path.with_name(f"{path.parent.name}.ipynb")
    return path == expected or expected not in notebooks or path.parent.name not in assignments.names()


# -- what is in it --------------------------------------------------------------------------------------------------


def _members(file: _Careful, name: str) -> Iterator[Member]:
    """What of an archive matters. Damage ends it with a sentence."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    found = 0
    try:
        if size > MAX_ARCHIVE:
            raise _TooMuchError
        for member in _zip(file) if name.casefold().endswith(".zip") else _tar(file, size):
            found += 1
            if found > MAX_MEMBERS:
                raise _TooMuchError
            yield member
    except _TooMuchError:
        much = f"{MAX_ARCHIVE >> 30} GB, {MAX_MEMBERS:,} members, {MAX_UNPACKED >> 30} GB or {MAX_RATIO} times its size"
        rest = f"is larger than a class can be ({much} unpacked): what comes after {found:,} members was not read"
        yield Member("", trouble=f"it {rest}")
    except _DAMAGE as error:
        why = " ".join(clean(str(error), 80).split()) or type(error).__name__
        yield Member("", trouble=f"it is damaged after {found:,} members ({why}): what comes after them was not read")


def _trouble(name: str, size: int) -> str:
    """Why a member is not read whatever kind of archive it is in, "" if it is. A name must mean one place to all."""
    parts = _parts(name)
    if not parts or not all(c.isprintable() or unicodedata.category(c) == "Zs" for c in name):
        return "has a name that cannot be printed"
    if ".." in parts or name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
        return "has a name that leads out of the archive: .., \\, a drive, or / at its beginning"
    if len(name) > MAX_NAME:
        return f"has a name of more than {MAX_NAME:,} characters"
    if name.casefold().endswith(ENDINGS):
        return "is an archive inside the archive: unpack it, and hand in the notebook itself"
    if _wanted(name) and parts[-1] == TIMESTAMP and size > MAX_TIMESTAMP:
        return f"is larger than {MAX_TIMESTAMP:,} bytes, so it is no time stamp"
    if _wanted(name) and size > MAX_BYTES:
        return f"is larger than {MAX_BYTES >> 20} MB: clear the outputs of all its cells, save it and hand it in again"
    return ""


def _wanted(name: str) -> bool:
    """Whether it could be a notebook or a time stamp. Hidden files are some program's own."""
    parts = _parts(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and (parts[-1] == TIMESTAMP or name.casefold().endswith(".ipynb"))


# -- zip ------------------------------------------------------------------------------------------------------------


def _zip(file: _Careful) -> Iterator[Member]:
    left = MAX_UNPACKED
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        starts = sorted(member.header_offset for member in members)
        following = dict(zip(starts, [*starts[1:], archive.start_dir], strict=True))
        shared = {one for one, other in itertools.pairwise(starts) if one == other}
        for member in members:
            name, start = member.orig_filename, member.header_offset
            data, trouble = None, ""
            if not name.endswith("/"):
                room = 0 if start in shared else following[start] - start
                trouble = _zip_trouble(member, room) or _trouble(name, member.file_size)
                if not trouble and _wanted(name):
                    left -= member.file_size
                    if left < 0:
                        raise _TooMuchError
                    data, trouble = _inflated(archive, member)
            yield Member(name, data, trouble)


def _zip_trouble(member: zipfile.ZipInfo, room: int) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link, not a file"
    if kind not in (0, stat.S_IFREG):
        return "is a device or a pipe, not a file"
    if member.flag_bits & 0x41:
        return "is encrypted: make the archive without a password"
    if member.compress_size + LOCAL_HEADER > room:
        return "lies over another member, as in a zip bomb"
    if member.file_size > max(FREE, MAX_RATIO * member.compress_size):
        return BOMB
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in a way that is unusual for zip: make the archive anew"
    return ""


def _inflated(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[bytes | None, str]:
    """A member's bytes, never more than member.file_size, or what is wrong with it."""
    try:
        with archive.open(member) as opened:
            return b"".join(iter(functools.partial(opened.read, PIECE), b"")), ""
    except _DAMAGE as error:
        return None, f"is damaged ({clean(str(error), 80)})"


# -- tar ------------------------------------------------------------------------------------------------------------

_KINDS = {
    tarfile.REGTYPE: "",
    tarfile.AREGTYPE: "",
    tarfile.DIRTYPE: "",
    tarfile.SYMTYPE: "is a symbolic link, not a file",
    tarfile.LNKTYPE: "is a hard link, not a file",
    tarfile.FIFOTYPE: "is a pipe, not a file",
    tarfile.CHRTYPE: "is a device, not a file",
    tarfile.BLKTYPE: "is a device, not a file",
    tarfile.GNUTYPE_SPARSE: SPARSE,
}
_PACKED: dict[bytes, Callable[[_Careful], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Tape:
    """A tar's bytes in order, whatever it is compressed with, and no more than `most` of them."""

    def __init__(self, file: _Careful, most: int) -> None:
        magic = file.peek(6)
        self._file, self._left = file, most
        self._stream = next((opened(file) for begins, opened in _PACKED.items() if magic.startswith(begins)), file)

    @property
    def packed(self) -> int:
        """How far into the archive, roughly, the tape has been read."""
        return self._file.tell()

    def read(self, count: int) -> bytes:
        self._left -= count
        if self._left < 0:
            raise _TooMuchError
        data = self._stream.read(count)
        if len(data) < count:
            raise EOFError("it ends too early")
        return data

    def data(self, length: int, most: int) -> bytes | None:
        """What follows a header, padding and all; None if it is longer than `most`."""
        if length < 0:
            raise ValueError("a length below 0")
        left = length + -length % tarfile.BLOCKSIZE
        if left > self._left:
            raise _TooMuchError
        pieces: list[bytes] = []
        while left:
            piece = self.read(min(left, PIECE))
            left -= len(piece)
            if length <= most:
                pieces.append(piece)
        return b"".join(pieces)[:length] if length <= most else None


def _tar(file: _Careful, size: int) -> Iterator[Member]:
    """tarfile reads each header and no more. If it walked, it would read an extended header of any length whole, take
    it apart with a slow expression, and go back for ever where a length is below 0."""
    tape = _Tape(file, min(MAX_UNPACKED, max(FREE_TAR, MAX_RATIO * size)))
    said: dict[str, str] = {}  # in extended headers, about the next member
    while any(block := tape.read(tarfile.BLOCKSIZE)):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.type in _EXTENDED:
            said |= _extension(header.type, tape.data(header.size, MAX_HEADER))
            continue
        more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
        while more:
            more = tape.read(tarfile.BLOCKSIZE)[504]
        name, length = said.get("path", header.name), int(said.get("size", header.size))
        trouble = _KINDS.get(header.type, "is not an ordinary file") or said.get("trouble", "")
        if not trouble and not header.isdir():
            trouble = _trouble(name, length)
        wanted = not trouble and not header.isdir() and _wanted(name)
        holds_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        before = tape.packed
        data = tape.data(length if holds_data else 0, length if wanted else -1)
        if data is not None and length > max(FREE, MAX_RATIO * (tape.packed - before + READ_AHEAD)):
            data, trouble = None, BOMB
        yield Member(name, data, trouble)
        said = {}


def _extension(kind: bytes, data: bytes | None) -> dict[str, str]:
    """What an extended header says about the next member: its name, its length, that something is odd about it."""
    if data is None:
        return {"trouble": "has an extended header that is longer than any name"}
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    said: dict[str, str] = {}
    start = 0
    while kind in _PAX and start < len(data):
        digits, _, _ = data[start : start + 20].partition(b" ")
        end = start + int(digits)
        if not start + len(digits) + 1 < end <= len(data):
            raise ValueError("an extended header is broken")
        key, _, value = data[start + len(digits) + 1 : end - 1].decode("utf-8", "surrogateescape").partition("=")
        if key in ("path", "size"):
            said[key] = value
        elif key.startswith("GNU.sparse"):
            said["trouble"] = SPARSE
        start = end
    return said
