"""Real text from every Python install, and the tokeniser that is trained on it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from ichimon import corpus

CODE = """def area(r):
    # a circle
    return 3.14 * r ** 2 if r else "none"
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it."""
    monkeypatch.setenv("ICHIMON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_there_is_prose_and_code_in_every_split() -> None:
    for kinds, least in ((corpus.PROSE, 1e6), (corpus.CODE, 4e6)):
        sizes = {
            split: sum(len(text.text) for text in corpus.texts(kinds, split))
            for split in ("train", "validation", "test")
        }
        assert sizes["train"] > least
        assert min(sizes["validation"], sizes["test"]) > least / 20
    assert len(corpus.texts(corpus.PROSE)) == sum(
        len(corpus.texts(corpus.PROSE, split)) for split in ("train", "validation", "test")
    )


def test_a_path_decides_the_split_so_code_and_docstrings_of_a_module_never_part() -> None:
    splits: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for text in corpus.texts((*corpus.PROSE, *corpus.CODE), split):
            splits.setdefault(text.path, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    # These stay where they are whatever version of Python there is: results of different machines can be compared.
    assert [corpus.split_of(path) for path in ("json/decoder.py", "asyncio/base_events.py", "topics/with")] == [
        "test",
        "train",
        "train",
    ]


def test_the_tokeniser_gives_any_text_back() -> None:
    bpe = corpus.tokenizer()
    assert bpe.get_vocab_size() == corpus.VOCABULARY
    for text in ("", " two  spaces\n\n\ttabs", "日本語と emoji 🙂", "\x00\x7f", CODE):
        assert bpe.decode(bpe.encode(text).ids) == text
    assert bpe.token_to_id(corpus.END) == 0


def test_a_token_of_prose_is_two_to_three_bytes_whatever_the_version_of_python() -> None:
    for split in ("train", "validation", "test"):
        n_bytes = sum(len(text.text.encode()) for text in corpus.texts(corpus.PROSE, split))
        ids = corpus.tokens(corpus.PROSE, split)
        assert 2.3 < n_bytes / len(ids) < 3
        assert (ids == 0).sum() == len(corpus.texts(corpus.PROSE, split)), "every text is closed once"
        assert ids.dtype == np.int64
        assert ids.max() < corpus.VOCABULARY


def test_tokens_of_code_are_classed_by_pythons_own_tokeniser() -> None:
    bpe = corpus.tokenizer(512, corpus.CODE)
    ids, classes = corpus.token_classes(bpe, CODE)
    assert bpe.decode(ids) == CODE
    assert set(classes) <= set(corpus.CLASSES)
    found = {bpe.decode([token]).strip(): kind for token, kind in zip(ids, classes, strict=True)}
    assert {found["def"], found["return"], found["if"]} == {"keyword"}
    assert found["#"] == "comment"
    assert found["3"] == "number"
    assert found["*"] == "operator"
    assert found['"'] == "string"
    with pytest.raises(corpus.CorpusError, match="not Python code"):
        corpus.token_classes(bpe, "if (")


def test_a_second_time_it_is_read_and_not_made(empty: Path) -> None:
    first = corpus.tokens(corpus.PROSE, "test", 300)
    kept = {path.name: path.stat().st_mtime_ns for path in empty.iterdir() if path.suffix != ".lock"}
    assert np.array_equal(first, corpus.tokens(corpus.PROSE, "test", 300))
    assert {path.name: path.stat().st_mtime_ns for path in empty.iterdir() if path.suffix != ".lock"} == kept


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(empty: Path, damage: str) -> None:
    first = corpus.tokenizer(300).to_str()
    (path,) = (path for path in empty.glob("bpe-*") if path.suffix != ".lock")
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    path.write_bytes({"flip": flipped, "cut": whole[:1000], "empty": b""}[damage])
    assert corpus.tokenizer(300).to_str() == first
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(empty: Path) -> None:
    empty.write_text("a file where the folder should be")
    assert corpus.tokenizer(300).get_vocab_size() == 300


def _make(folder: str, gate: str) -> tuple[str, int]:
    os.environ["ICHIMON_CACHE"] = folder
    made = []
    train = corpus._trained
    corpus._trained = lambda *arguments: made.append(1) or train(*arguments)  # type: ignore[func-returns-value]
    while time.time() < float(gate):  # both begin together
        time.sleep(0.001)
    return hashlib.sha256(corpus.tokenizer(400).to_str().encode()).hexdigest(), len(made)


def test_two_processes_that_ask_at_once_make_it_once(empty: Path) -> None:
    corpus.texts()
    gate = str(time.time() + 3)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        (first, made), (second, also) = pool.starmap(_make, [(str(empty), gate)] * 2)
    assert first == second
    assert made + also == 1


def test_without_a_network_a_download_is_one_honest_sentence(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in corpus.DOWNLOADS:
        with pytest.raises(corpus.CorpusError, match=f"{name} could not be fetched .* It is optional"):
            corpus.download(name)
    with pytest.raises(corpus.CorpusError, match="There is no download 'web'; there is tiny-shakespeare, enwik8"):
        corpus.download("web")


def test_a_download_with_another_checksum_is_refused(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import functools
    import http.server
    import threading

    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "input.txt").write_text("First Citizen: Before we proceed any further, hear me speak.")
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/input.txt"
    sha256 = hashlib.sha256((tmp_path / "web" / "input.txt").read_bytes()).hexdigest()
    try:
        monkeypatch.setitem(corpus.DOWNLOADS, "small", (url, sha256))
        assert corpus.download("small").startswith("First Citizen")
        monkeypatch.setitem(corpus.DOWNLOADS, "changed", (url, "0" * 64))
        with pytest.raises(corpus.CorpusError, match="hash"):
            corpus.download("changed")
    finally:
        server.shutdown()
    assert corpus.download("small").startswith("First Citizen"), "it is kept"


def test_a_downloaded_text_is_cut_in_three_and_read_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ICHIMON_CACHE", str(tmp_path))
    whole = "".join(f"line {i} of a text that came from far away\n" for i in range(3000))
    monkeypatch.setattr(corpus, "download", lambda name: whole)
    bpe = corpus.downloaded_tokenizer("enwik8", 300)
    parts = [corpus.downloaded_tokens("enwik8", split, 300) for split in ("train", "validation", "test")]
    assert "".join(bpe.decode(part.tolist()) for part in parts) == whole
    assert len(parts[0]) == pytest.approx(18 * len(parts[1]), rel=0.05)
    assert len(parts[1]) == pytest.approx(len(parts[2]), rel=0.05)
