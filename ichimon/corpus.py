"""Real text with no download: what every Python install carries, as prose and as code, and a tokeniser trained on it.

    from ichimon import corpus
    train = corpus.texts(corpus.PROSE, "train")
    bpe = corpus.tokenizer()
    ids = corpus.tokens(corpus.PROSE, "train")

Three kinds of text: the topics of the language reference, the docstrings of the standard library, and its code. A text
belongs to the training, validation or test split by a hash of its path, so a new Python changes texts, but moves none.
What takes time is kept in a folder of its own (`ICHIMON_CACHE` says another), checked when it is read, and made again
when it is damaged or when the texts have changed. Several processes may ask at once: one works, the others wait.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import keyword
import os
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["topics", "docstrings", "code"]
Split = Literal["train", "validation", "test"]

PROSE: tuple[Kind, ...] = ("topics", "docstrings")
CODE: tuple[Kind, ...] = ("code",)
END = "<|end|>"  # closes every text; its id is 0
VOCABULARY = 1024

# Left out: what a distribution may leave out, tables of character sets, and code that only repeats what others say.
_NOT_READ = {"__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "lib-dynload"}
_NOT_READ |= {"pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo"}

CLASSES = ("space", "comment", "string", "number", "operator", "keyword", "name")


class CorpusError(Exception):
    """Why a text cannot be had, and what to do, in one sentence."""


class Text(NamedTuple):
    """One text: a topic, the docstrings of a module, or the code of a module."""

    path: str
    kind: Kind
    text: str


def split_of(path: str) -> Split:
    """Where a path belongs: eight in ten to training, one to validation, one to the test."""
    tenth = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 10
    return "validation" if tenth == 8 else "test" if tenth == 9 else "train"


def texts(kinds: Sequence[Kind] = PROSE, split: Split | None = None) -> list[Text]:
    """The texts of these kinds in one split (in all, by default), in the order of their paths.

    Code and docstrings of one module are in the same split.
    """
    return [text for text in _all() if text.kind in kinds and split in (None, split_of(text.path))]


def tokenizer(vocabulary: int = VOCABULARY, kinds: Sequence[Kind] = PROSE) -> Tokenizer:
    """A byte-level BPE with `vocabulary` entries, trained on the training split; it can encode and decode any text."""
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(_kept(f"bpe-{'-'.join(kinds)}-{vocabulary}", lambda: _trained(vocabulary, kinds)))


def tokens(kinds: Sequence[Kind] = PROSE, split: Split = "train", vocabulary: int = VOCABULARY) -> np.ndarray:
    """The ids of a split, one text after the other, each closed by `END`: int64, shape [tokens].

    The tokeniser is `tokenizer(vocabulary, kinds)`.
    """
    data = _kept(f"ids-{'-'.join(kinds)}-{split}-{vocabulary}", lambda: _encoded(kinds, split, vocabulary))
    return np.frombuffer(data, dtype=np.uint16).astype(np.int64)


def token_classes(bpe: Tokenizer, code: str) -> tuple[list[int], list[str]]:
    """The ids of a piece of Python code, and for each what Python's own tokeniser calls its first visible character.

    One of `CLASSES`; "space" where a token has no visible character. Raises CorpusError for code that is not Python.
    """
    encoding = bpe.encode(code)
    kinds = _characters(code)
    found = []
    for start, end in encoding.offsets:
        visible = next((i for i in range(start, end) if not code[i].isspace()), None)
        found.append("space" if visible is None else kinds[visible])
    return encoding.ids, found


DOWNLOADS = {
    "tiny-shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "enwik8": (
        "http://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    ),
}


def download(name: str) -> str:
    """An optional text from the network, by its name in `DOWNLOADS`, checked by its SHA-256; kept after the first time.

    Nothing in the course needs one. Raises CorpusError without a network, or if what came is not what was asked for.
    """
    import pooch

    if name not in DOWNLOADS:
        raise CorpusError(f"There is no download {name!r}; there is {', '.join(DOWNLOADS)}.")
    url, sha256 = DOWNLOADS[name]
    unzip = pooch.Unzip(members=[name]) if url.endswith(".zip") else None
    try:
        found = pooch.retrieve(url, f"sha256:{sha256}", path=folder() / name, processor=unzip, progressbar=True)
    except Exception as error:  # of requests, urllib3 or the disk, or a wrong checksum: all of them mean the same here
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(
            f"{name} could not be fetched from {url} ({type(error).__name__}: {reason}). It is optional: "
            "corpus.texts() needs no network."
        ) from error
    return Path(found[0] if isinstance(found, list) else found).read_text(encoding="utf-8")


def downloaded_tokenizer(name: str, vocabulary: int = 8192) -> Tokenizer:
    """A byte-level BPE trained on the first ten million characters of a text of `DOWNLOADS`."""
    from tokenizers import Tokenizer

    _fits(vocabulary)
    data = _kept(
        f"bpe-{name}-{vocabulary}",
        lambda: _bpe(vocabulary, [download(name)[:10_000_000]]).to_str().encode(),
        repr(DOWNLOADS.get(name)) + version("tokenizers"),
    )
    return Tokenizer.from_buffer(data)


def downloaded_tokens(name: str, split: Split = "train", vocabulary: int = 8192) -> np.ndarray:
    """The ids of a split of a text of `DOWNLOADS`: int64, shape [tokens].

    The first nine tenths of its characters are for training, one twentieth each for validation and test; the tokeniser
    is `downloaded_tokenizer`. Raises CorpusError without a network.
    """

    def encoded() -> bytes:
        text, bpe = download(name), downloaded_tokenizer(name, vocabulary)
        ends = [0, len(text) * 18 // 20, len(text) * 19 // 20, len(text)]
        i = ("train", "validation", "test").index(split)
        pieces = [text[start : min(start + 100_000, ends[i + 1])] for start in range(ends[i], ends[i + 1], 100_000)]
        rows = [np.array(bpe.encode(piece).ids, dtype=np.uint16) for piece in pieces]
        return np.concatenate(rows).tobytes()

    _fits(vocabulary)
    depends_on = repr(DOWNLOADS.get(name)) + version("tokenizers")
    return np.frombuffer(_kept(f"ids-{name}-{split}-{vocabulary}", encoded, depends_on), np.uint16).astype(np.int64)


def folder() -> Path:
    """Where corpora and tokenisers are kept."""
    import platformdirs

    return Path(os.environ.get("ICHIMON_CACHE") or platformdirs.user_cache_dir("ichimon"))


# -- reading what Python carries --------------------------------------------------------------------------------------


@cache
def _all() -> tuple[Text, ...]:
    """Every text there is. Kept, because parsing the standard library takes seconds."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [
        path for path in sorted(library.rglob("*.py")) if not _NOT_READ.intersection(path.relative_to(library).parts)
    ]
    sizes = [(path.relative_to(library).as_posix(), path.stat().st_size) for path in modules]
    data = _kept("texts", lambda: _read(library, modules), depends_on=repr([sys.version, sizes]))
    return tuple(Text(*row) for row in json.loads(data))


def _read(library: Path, modules: Sequence[Path]) -> bytes:
    from pydoc_data.topics import topics

    found = [Text(f"topics/{name}", "topics", text.strip() + "\n") for name, text in topics.items()]
    for path in _progress(modules, "reading the standard library"):
        name = path.relative_to(library).as_posix()
        try:
            code = path.read_text(encoding="utf-8")
            docstrings = list(_docstrings(ast.parse(code)))
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue  # a template, or a file of another age
        if code.strip():
            found.append(Text(name, "code", code))
        if docstrings:
            found.append(Text(name, "docstrings", "\n\n".join(docstrings) + "\n"))
    return json.dumps(sorted(found)).encode()


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _characters(code: str) -> list[str]:
    """The class of each character of a piece of code."""
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    kinds = ["space"] * len(code)
    names = {tokenize.COMMENT: "comment", tokenize.STRING: "string", tokenize.NUMBER: "number", tokenize.OP: "operator"}
    strings = {
        getattr(tokenize, name)
        for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
        if hasattr(tokenize, name)
    }
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            kind = names.get(token.type) or ("string" if token.type in strings else None)
            if token.type == tokenize.NAME:
                kind = "keyword" if keyword.iskeyword(token.string) else "name"
            if kind:
                start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
                kinds[start:end] = [kind] * (end - start)
    except (tokenize.TokenError, SyntaxError, IndexError) as error:
        raise CorpusError(f"This is not Python code: {error}.") from None
    return kinds


# -- the tokeniser ----------------------------------------------------------------------------------------------------


def _trained(vocabulary: int, kinds: Sequence[Kind]) -> bytes:
    read = _progress(texts(kinds, "train"), f"training a tokeniser of {vocabulary}")
    return _bpe(vocabulary, (text.text for text in read)).to_str().encode()


def _bpe(vocabulary: int, read: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(read, trainer)
    return bpe


def _fits(vocabulary: int) -> None:
    if vocabulary > 2**16:
        raise CorpusError(f"A vocabulary of {vocabulary} does not fit into 16 bits: 65,536 is the largest.")


def _encoded(kinds: Sequence[Kind], split: Split, vocabulary: int) -> bytes:
    _fits(vocabulary)
    bpe = tokenizer(vocabulary, kinds)
    found = texts(kinds, split)
    ids = [[*bpe.encode(text.text).ids, 0] for text in _progress(found, f"encoding {split} texts")]
    return np.concatenate([np.array(row, dtype=np.uint16) for row in ids]).tobytes()


# -- what is kept -----------------------------------------------------------------------------------------------------


@cache
def _texts_sha() -> str:
    return hashlib.sha256(repr(_all()).encode()).hexdigest()


def _kept(name: str, make: Callable[[], bytes], depends_on: str | None = None) -> bytes:
    """What `make` gives, from the cache where it is whole. The first 32 bytes of a file are the SHA-256 of the rest.

    A file's name holds a hash of all that it depends on, so nothing in it is ever out of date.
    """
    if depends_on is None:
        depends_on = _texts_sha() + version("tokenizers")
    key = hashlib.sha256(depends_on.encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    path = folder() / f"{name}-{key}"
    if (data := _whole(path)) is not None:
        return data
    with _alone(path):
        if (data := _whole(path)) is not None:  # somebody else made it while we waited
            return data
        data = make()
        with suppress(OSError):  # a folder that cannot be written costs time and nothing else
            draft = path.with_name(f"{path.name}.{os.getpid()}")
            draft.write_bytes(hashlib.sha256(data).digest() + data)
            draft.replace(path)
        return data


def _whole(path: Path) -> bytes | None:
    """The contents of a kept file, or None if there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes a file. Where no lock can be made, each makes its own."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _progress(items: Iterable[Text] | Iterable[Path], what: str) -> Iterator[Any]:
    """A bar where somebody may be looking, nothing in a log."""
    from tqdm.auto import tqdm

    return iter(tqdm(items, what, disable=None, leave=False))
