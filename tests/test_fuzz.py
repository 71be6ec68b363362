"""Notebooks and frames with anything wrong in them: always a named outcome or one sentence, in bounded time and memory.

A run in `make test` is the same each time; `make nightly` explores ten times as many, new ones each night.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from conftest import NIGHTLY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autograder import assignment as assignments
from autograder import submission as submissions
from autograder.assignment import UnknownAssignment
from autograder.grading import Graders, Task, student_of
from autograder.report import Outcome, Report
from autograder.sandbox import wire
from autograder.sandbox.jail import Jail, Limits, WorkerLost
from autograder.student import Remote, StudentError
from autograder.submission import Submission
from ichimon.notebook import NotebookError

ROOT = Path(__file__).resolve().parents[1]
NAME = "02-self-attention"
NOTEBOOKS = [path.read_bytes() for path in sorted((ROOT / "examples" / "class").glob(f"*/*/{NAME}.ipynb"))]
LIMITS = Limits(cpu_seconds=1, wall_seconds=10, total_seconds=30, memory=300 << 20)
BOUND = 15.0  # seconds of computing for one file or frame on a busy machine; all but a few take a thousandth of it


def examples(count: int) -> Callable[[Any], Any]:
    """That many in `make nightly`, a tenth of them in `make test`."""
    return settings(
        max_examples=count if NIGHTLY else count // 10,
        derandomize=not NIGHTLY,
        print_blob=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# -- notebooks ------------------------------------------------------------------------------------------------------

Draw = Callable[[st.SearchStrategy[Any]], Any]
BYTES = [b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b"{", b"]", b",", b"\\ud800", b"\\", b"\r\n", b"NaN", b"1e999"]
REPLACED = [  # once each, somewhere in the text
    (b'"cells"', b'"cells": [], "cells"'),
    (b'"cells"', b'"worksheets"'),
    (b'"nbformat": 4', b'"nbformat": 4.0'),
    (b'"nbformat": 4', b'"nbformat": 3'),
    (b'"source"', b'"source": "pass", "source"'),
    (b'"id"', b'"id": "attention", "id"'),
    (b'"cell_type": "code"', b'"cell_type": "markdown"'),
    (b'"outputs": []', b'"outputs": [{"output_type": "stream", "name": "stdout", "text": ["<script>"]}]'),
    (b"def ", b"async def "),
    (b"return", b"yield"),
    (b"self", "ｓｅｌｆ".encode()),
    (b"\n", b"\r\n"),
]
ODD: list[Any] = [
    *(None, True, 0, -1, 4, 4.5, 1e308, float("nan"), float("inf"), 10**400, [], [[]], ["a", 1], {}),
    *("", "x" * 70_000, "\ud800", "\x00", "../../x", "\x1b[2J", "attention", "check-attention", "set-up"),
    {"grade_id": "attention", "solution": True, "grade": True},
    {"nbgrader": {"grade_id": "causal_mask", "solution": True, "points": 1e9}},
    {"ichimon": {"assignment": "99-other"}},
]
LINES = [
    *("!ls \x1b[31m\u202e", "?", "%matplotlib inline", "%%bash", "    indented = 1", "\tif True:", '"""', "(", "\\"),
    *("\x00", "\x0c", "\ufeff", "é = 1", "# \udfff", "0" * 5000 + "1", "-" * 5000 + "1", "(" * 300, "x" + ".x" * 3000),
    *("yield 1", "return 1", "await x", "from __future__ import annotations", "del torch", "while True: pass"),
    *("raise KeyboardInterrupt", "raise SystemExit(3)", "import os; os._exit(1)", "import gc; gc.freeze()"),
    "raise ValueError('\\x1b[31m' + 'x' * 10**5)",
    "raise type('\\ud800', (Exception,), {})",
    "print('y' * 10**6)",
    "x = [0] * 10**9",
    "torch.set_default_dtype(torch.float64)",
    "torch.Tensor.__add__ = None",
    "import sys; sys.modules['torch'] = None",
    "import builtins; builtins.len = lambda x: 0",
    "causal_mask = 3",
    "merge_heads = split_heads",
    "attention.__module__ = 7",
    "class attention: pass",
    "def causal_mask(n): raise",
    "def causal_mask(n): raise StopIteration",
    "def causal_mask(n): return (n, [n, {n: n}])",
    "def causal_mask(n): return torch.ones(10**5, 10**5)",
    "def attention(*a, **k): return attention",
    "def attention(*a): return torch.empty(0)",
    "def attention(q, k, v, mask=None): return q.sum() * float('nan')",
    "def split_heads(x, h): return x.to_sparse()",
    "def merge_heads(x): return x.requires_grad_()",
    "MultiHeadAttention = type('MultiHeadAttention', (), {'__init__': lambda s, *a, **k: None})",
]


def somewhere(draw: Draw, size: int) -> int:
    return draw(st.integers(0, max(0, size - 1)))


def change_bytes(draw: Draw, data: bytes) -> bytes:
    at, length = somewhere(draw, len(data)), draw(st.sampled_from([0, 1, 1, 3, 50, 5000]))
    match draw(st.sampled_from(["put", "cut", "repeat", "end", "replace", "splice", "encode"])):
        case "put":
            return data[:at] + draw(st.sampled_from(BYTES) | st.binary(max_size=8)) + data[at + length :]
        case "cut":
            return data[:at] + data[at + length :]
        case "repeat":
            return data[:at] + data[at : at + length] * 3 + data[at + length :]
        case "end":
            return data[:at]
        case "splice":
            other = draw(st.sampled_from(NOTEBOOKS))
            return data[:at] + other[somewhere(draw, len(other)) :]
        case "encode":
            return data.decode(errors="replace").encode(
                draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "cp037"])), "replace"
            )
    old, new = draw(st.sampled_from(REPLACED))
    at = data.find(old, at)
    return data if at < 0 else data[:at] + new + data[at + len(old) :]


def change_json(draw: Draw, data: bytes) -> bytes:
    """Walk down from the top, and change what is found there."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    node: Any = document
    while isinstance(node, dict | list) and node:
        key = draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 4)):
            node = node[key]
            continue
        match draw(st.sampled_from(["odd", "wrap", "remove", "rename", "again"])):
            case "wrap":
                node[key] = [node[key]]
            case "remove":
                del node[key]
            case "rename" if isinstance(node, dict):
                node[draw(st.sampled_from(["", "id", "cells", "source", "metadata", "cell_type"]))] = node.pop(key)
            case "again" if isinstance(node, list):
                node *= draw(st.sampled_from([2, 30]))
            case _:
                node[key] = draw(st.sampled_from(ODD))
        break
    return json.dumps(document).encode(errors="surrogatepass")


def change_cells(draw: Draw, data: bytes) -> bytes:
    """What people, editors and merges do to cells; lines of code that should not be there."""
    try:
        document = json.loads(data)
        cells = document["cells"]
        one, other = cells[somewhere(draw, len(cells))], cells[somewhere(draw, len(cells))]
        source = one["source"] if isinstance(one["source"], str) else "".join(one["source"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return data
    lines = source.split("\n")
    at = somewhere(draw, len(lines))
    ways = ["drop", "delete", "again", "swap", "kind", "id", "split", "merge", "new"]
    match draw(st.just("line") | st.sampled_from(ways)):
        case "line":
            added = draw(st.lists(st.sampled_from(LINES), min_size=1, max_size=3))
            one["source"] = "\n".join([*lines[:at], *added, *lines[at:]])
        case "drop":
            one["source"] = "\n".join([*lines[:at], *lines[at + 1 :]])
        case "delete":
            cells.remove(one)
        case "again":
            cells.append(one)
        case "swap":
            one["source"], other["source"] = other["source"], one["source"]
        case "kind":
            one["cell_type"] = draw(st.sampled_from(["code", "markdown", "raw"]))
        case "id":
            one["id"], one["metadata"] = other.get("id"), other.get("metadata")
        case "split":
            one["source"] = "\n".join(lines[:at])
            cells.insert(
                somewhere(draw, len(cells)), {"cell_type": "code", "metadata": {}, "source": "\n".join(lines[at:])}
            )
        case "merge":
            one["source"] = (
                f"{source}\n{''.join(other['source'])}" if isinstance(other.get("source"), list | str) else ""
            )
        case "new":
            cells.insert(
                somewhere(draw, len(cells)),
                {"cell_type": "code", "id": "x", "metadata": {}, "source": draw(st.sampled_from(LINES))},
            )
    return json.dumps(document).encode(errors="surrogatepass")


@st.composite
def notebooks(draw: Draw, *changes: Callable[[Draw, bytes], bytes]) -> bytes:
    data: bytes = draw(st.sampled_from(NOTEBOOKS))
    for change in draw(st.lists(st.sampled_from(changes), min_size=1, max_size=4)):
        data = change(draw, data)
    return data


def is_line(text: str) -> bool:
    return bool(text) and text.isprintable() and len(text) < 600 and "Traceback" not in text


def is_sentence(text: str) -> bool:
    return is_line(text) and text[-1] in ".)"


def handed_in(folder: Path, data: bytes) -> Submission | str:
    """What the grader makes of a file with these bytes: a submission, or the sentence that says why there is none."""
    path = folder / "student" / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    [found], without = submissions.find([folder])
    assert without == []
    try:
        name = submissions.assignment_of(found)
    except (NotebookError, UnknownAssignment) as error:
        return str(error)
    file = submissions.read(found, assignments.load(name))
    if file.unreadable:
        assert file.cells == ()
        return file.notices[0]
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@examples(2000)
@given(notebooks(change_bytes, change_json, change_cells))
def test_any_notebook_is_a_submission_or_a_sentence(folder: Path, data: bytes) -> None:
    started = time.process_time()
    file = handed_in(folder, data)
    assert time.process_time() - started < BOUND
    if isinstance(file, str):
        assert is_sentence(file), file
        return
    assert file.student == "student"
    assert all(is_line(notice) for notice in file.notices), file.notices
    assert msgspec.json.decode(msgspec.json.encode(file), type=Submission) == file, "it would not reach another process"


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    started = Graders(LIMITS)
    yield started
    started.close()


@examples(400)
@given(notebooks(change_cells, change_cells, change_json))
def test_any_submission_gets_a_report_in_which_every_outcome_has_a_name(
    folder: Path, graders: Graders, data: bytes
) -> None:
    file = handed_in(folder, data)
    if isinstance(file, str):
        return
    assignment = assignments.load(file.assignment)
    report = graders.run(Task(file, tuple(assignment.points)))
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report, "it would not reach the results"
    assert [exercise.exercise for exercise in report.exercises] == list(assignment.points)
    for exercise in report.exercises:
        assert 0 <= exercise.points <= exercise.max_points
        assert [test for test in exercise.tests if test.outcome is Outcome.CRASHED] == []
        assert all(test.passed or test.message or not file.cells for test in exercise.tests)
    assert [cell.cell for cell in report.cells] == [name for name, _, _ in file.cells]


# -- frames ---------------------------------------------------------------------------------------------------------


def refuse(obj: Any) -> wire.Value:
    raise TypeError(type(obj).__name__)


def body(message: wire.Reply) -> bytes:
    return wire.frame(message)[4:]


OBJECTS = [
    *(None, True, -7, 2**70, 1.5, float("nan"), "text", b"bytes", ..., slice(1, None), frozenset("ab"), [1, (2, {3})]),
    *({"a": [None]}, np.arange(4), torch.float64, torch.device("cpu"), torch.zeros(2, 0, 3), torch.ones(2, 2) > 0),
]
TENSOR = wire.encode(torch.arange(6.0).reshape(2, 3).requires_grad_(), refuse)
VALUES = [TENSOR, wire.Handle(1, "Linear"), wire.Callback(1), *(wire.encode(obj, refuse) for obj in OBJECTS)]
REPLIES = [
    *(body(wire.Answer(1, value, graph)) for value in VALUES for graph in (0, 1)),
    body(wire.Ran(1, "", "printed")),
    body(wire.Ran(1, "ValueError: no (line 1 of cell x)", "")),
    body(wire.Raised(1, ["ValueError", "Exception", "BaseException"], "no", "line 1 of cell f")),
    body(wire.CallbackCall(1, [True, TENSOR])),
    body(wire.Exited(9)),
]
replies = st.sampled_from(REPLIES) | st.sampled_from(REPLIES[2 * len(VALUES) :])  # as often one that is no answer
MESSAGES = ["answer", "ran", "raised", "callback-call", "exited", "run"]
TAGS = [
    *MESSAGES,
    "tensor",
    "array",
    "sequence",
    "mapping",
    "special",
    "handle",
    "slice",
    "float32",
    "list",
    "set",
    "int",
]
KEYS = ["type", "n", "value", "graph", "error", "output", "types", "message", "where", "id", "args", "signal"]
texts = st.sampled_from([*TAGS, "0x" + "f" * 2000, "\x1b[2J"]) | st.text(max_size=5)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)
SIZES = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4, 0xD9: 1, 0xDB: 4, 0xC6: 4, 0xC9: 5}  # the bytes that say how long
HEADS = [
    bytes([kind]) + count for kind, size in SIZES.items() for count in (b"\xff" * size, b"\x7f".rjust(size, b"\x00"))
]


def change_message(draw: Draw, data: bytes) -> bytes:
    """Walk down into a reply, and change what is found there: what arrives is well-formed, and may still be a lie."""
    message = node = msgspec.msgpack.decode(data)
    if not isinstance(message, dict):
        return data
    while True:
        keys = [*node, *("value", "args") * 4] if isinstance(node, dict) else range(len(node))
        key = draw(st.sampled_from([key for key in keys if not isinstance(node, dict) or key in node]))
        if not isinstance(node[key], dict | list) or not node[key] or not draw(st.integers(0, 5)):
            break
        node = node[key]
    match node[key]:
        case bool() | None:
            new: Any = draw(plain)
        case int() | float():
            new = draw(st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**50, 2**63 - 1]) | plain)
        case str():
            new = draw(texts | plain)
        case bytes() as old:
            new = draw(st.sampled_from([b"", old[1:], old * 2]) | st.binary(min_size=len(old), max_size=len(old)))
        case list() as old:
            new = draw(st.sampled_from([[], old * 2, [old], [*old, old], old[::-1]]) | plain)
        case _:
            new = draw(plain)
    node[key] = new
    return msgspec.msgpack.encode(message)


@st.composite
def bodies(draw: Draw) -> bytes:
    kind = draw(st.sampled_from(["changed", "changed", "changed", "damaged", "made up", "random"]))
    if kind == "made up":
        named = {"type": draw(st.sampled_from(MESSAGES)), "n": 1}
        return msgspec.msgpack.encode({**named, **draw(st.dictionaries(st.sampled_from(KEYS), plain, max_size=5))})
    if kind == "random":
        return draw(st.binary(max_size=100)) + draw(st.sampled_from([b"", b"\x91" * 5000, b"\x81\xc0" * 5000]))
    data: bytes = draw(replies)
    pieces = st.sampled_from([*HEADS, *REPLIES]) | plain.map(msgspec.msgpack.encode) | st.binary(min_size=1, max_size=2)
    for _ in range(draw(st.integers(1, 3))):
        if kind == "changed":
            data = change_message(draw, data)
        else:
            at, piece = somewhere(draw, len(data)), draw(pieces)
            data = data[:at] + piece + data[at + draw(st.sampled_from([0, 1, len(piece), 10_000])) :]
    return data


@st.composite
def streams(draw: Draw) -> bytes:
    """Some frames, with a length that may be a lie, cut off somewhere."""
    data = b""
    for frame in draw(st.lists(bodies(), min_size=1, max_size=3)):
        lie = draw(st.sampled_from([False] * 6 + [True]))
        lies = st.sampled_from([0, len(frame) + 1, wire.MAX_FRAME, 2**32 - 1])
        data += struct.pack("<I", draw(lies) if lie else len(frame)) + frame
    return data[: draw(st.just(len(data)) | st.integers(0, len(data)))]


def assert_plain(value: Any) -> None:
    """Only these types can come from a worker, and a tensor is one that can be looked at."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            assert_plain(item)
    elif type(value) in (torch.Tensor, np.ndarray):
        assert value.nbytes <= wire.MAX_FRAME
        assert math.prod(value.shape) == len(value.reshape(-1))
    else:
        assert value is None or value is ... or type(value) in LEAVES


LEAVES = (bool, int, float, str, bytes, slice, torch.dtype, torch.device, wire.Handle, wire.Callback, Remote)


def values_of(reply: wire.Reply) -> list[wire.Value]:
    return [reply.value] if isinstance(reply, wire.Answer) else getattr(reply, "args", [])


def heard(stream: bytes) -> list[wire.Reply]:
    """What the grader makes of the bytes that a worker sends before it is gone."""
    ours, theirs = socket.socketpair()
    replies: list[wire.Reply] = []
    with ours, theirs:
        theirs.setblocking(False)
        theirs.sendall(stream)
        theirs.close()
        channel = wire.Channel(ours)
        while True:
            try:
                replies.append(wire.read_reply(channel.receive()))
            except (EOFError, wire.WireError):
                return replies


@examples(10_000)
@given(streams())
def test_any_frame_is_plain_data_or_a_wire_error(stream: bytes) -> None:
    started = time.process_time()
    for value in (value for reply in heard(stream) for value in values_of(reply)):
        try:
            assert_plain(wire.decode(value, lambda reference: reference))
        except wire.WireError as error:
            assert is_sentence(f"{error}.")  # noqa: PT017
    assert time.process_time() - started < BOUND


FULL = wire.MAX_FRAME - 200
EMPTY = b"\x93\xa8sequence\xa4list\x90"


def long(message: wire.Reply, old: bytes, new: Callable[[], bytes]) -> Callable[[], bytes]:
    """A frame as large as may cross, most of it in one place; made when it is needed."""
    assert body(message).count(old) == 1
    return lambda: body(message).replace(old, new())


def many(item: bytes) -> Callable[[], bytes]:
    count = FULL // len(item)
    return lambda: b"\xdd" + struct.pack(">I", count) + item * count


NOTHING = wire.CallbackCall(1, [wire.Special("ellipsis", "none")])
NONE = body(NOTHING)[body(NOTHING).index(b"\x91\x93") :]
ONE = wire.Answer(1, wire.Sequence("list", ["one"]))
LARGEST = {
    "a callback with 33 million arguments": long(NOTHING, NONE, many(b"\xc0")),
    "a callback with 2 million lists": long(NOTHING, NONE, many(EMPTY)),
    "an error of 33 million types": long(wire.Raised(1, ["one"], "", ""), b"\x91\xa3one", many(b"\xa0")),
    "a tensor of 33 million dimensions": long(
        wire.Answer(1, wire.TensorData("float32", (7,), b"")), b"\x91\x07", many(b"\x01")
    ),
    "a list of 2 million lists": long(ONE, b"\x91\xa3one", many(EMPTY)),
    "90,000 lists of 20 lists": long(
        ONE,
        b"\x91\xa3one",
        lambda: b"\xdd" + struct.pack(">I", 90_000) + (EMPTY[:-1] + b"\xdc\x00\x14" + EMPTY * 20) * 90_000,
    ),
    "2 million lists in each other": long(ONE, b"\xa3one", lambda: (EMPTY[:-1] + b"\x91") * (FULL // 17) + b"\xc0"),
    "a tensor": lambda: body(wire.Answer(1, wire.encode(torch.zeros(FULL // 4), refuse))),
}


@pytest.mark.parametrize("frame", LARGEST)
def test_the_largest_frames_cost_little_time_and_memory(frame: str) -> None:
    data = LARGEST[frame]()
    assert 0.8 * wire.MAX_FRAME < len(data) <= wire.MAX_FRAME
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before, started = _peak(), time.process_time()
    with contextlib.suppress(wire.WireError):
        for value in values_of(wire.read_reply(data)):
            wire.decode(value, lambda reference: reference)
    assert time.process_time() - started < BOUND
    assert _peak() - before < 8 * wire.MAX_FRAME


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


# -- a worker that forges -------------------------------------------------------------------------------------------

FORGER = """
import itertools, sys
answer, forged = sys.modules["worker"].Worker.reply, itertools.cycle(FORGED)
def forge(self, reply):
    if type(reply).__name__ == "Ran":
        answer(self, reply)
    else:
        self.channel.sock.sendall(next(forged).replace(bytes([0xA1, 0x6E, 1]), bytes([0xA1, 0x6E, reply.n])))
sys.modules["worker"].Worker.reply = forge
"""


@pytest.fixture(scope="module")
def jail() -> Iterator[Jail]:
    with Jail(msgspec.structs.replace(LIMITS, wall_seconds=1)) as started:  # some frames have no end
        yield started


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


@examples(500)
@given(st.lists(replies.map(framed) | bodies().map(framed) | streams(), min_size=1, max_size=5), st.booleans())
def test_a_worker_that_forges_frames_is_lost_or_answers_with_plain_data(
    jail: Jail, forged: list[bytes], there: bool
) -> None:
    """It answers every call of a test with the next of `forged`, under the number that the grader waits for."""
    forged = [framed(body(wire.Answer(1, True)))] * there + forged  # the test first asks whether the name is there
    file = Submission("forger", NAME, "", (("x", "attention", f"FORGED = {forged!r}\n{FORGER}"),))
    student = student_of(file, assignments.load(NAME), jail, random)
    started = time.monotonic()
    for _ in range(3):
        with contextlib.suppress(StudentError, WorkerLost):
            student._begin("attention")
            answer = student.attention(torch.ones(2, 3, requires_grad=True), torch.nn.functional.relu)
            if isinstance(answer, torch.Tensor) and answer.requires_grad:
                answer.sum().backward()
            module = student.put(answer)
            if isinstance(module, Remote):
                assert_plain(module.get())
                student.grads(module)
                module(torch.ones(2, 3))
    student._close()
    assert time.monotonic() - started < 60


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    "forged",
    [
        [],
        [ONES, ONES],
        [torch.ones(3, 3)],
        [torch.ones(())],
        [ONES.to(torch.int64)],
        [ONES.to(torch.complex64)],
        [[ONES]],
        {"a": ONES},
        "gradient",
    ],
    ids=range(9),
)
def test_forged_gradients_are_the_end_of_the_worker_and_no_fault_of_the_test(jail: Jail, forged: Any) -> None:
    answers = (wire.Answer(1, True), wire.Answer(1, TENSOR, 1), wire.Answer(1, wire.encode(forged, refuse)))
    frames = [framed(body(answer)) for answer in answers]
    file = Submission("forger", NAME, "", (("x", "attention", f"FORGED = {frames!r}\n{FORGER}"),))
    student = student_of(file, assignments.load(NAME), jail, random)
    student._begin("attention")
    answer = student.attention(ONES.clone().requires_grad_())
    with pytest.raises(WorkerLost, match="the gradients that came back"):
        answer.sum().backward()
    student._close()


@pytest.mark.parametrize("forged", [7, [ONES], {"weight": [1]}, {1: ONES}], ids=range(4))
def test_forged_gradients_of_parameters_are_the_end_of_the_worker(jail: Jail, forged: Any) -> None:
    answers = (
        wire.Answer(1, True),
        wire.Answer(1, wire.Handle(1, "Linear")),
        wire.Answer(1, wire.encode(forged, refuse)),
    )
    frames = [framed(body(answer)) for answer in answers]
    file = Submission("forger", NAME, "", (("x", "attention", f"FORGED = {frames!r}\n{FORGER}"),))
    student = student_of(file, assignments.load(NAME), jail, random)
    student._begin("attention")
    module = student.attention()
    with pytest.raises(WorkerLost, match="the gradients that came back"):
        student.grads(module)
    student._close()
