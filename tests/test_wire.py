"""What crosses the wire: plain data arrives as it was sent, and nothing a worker sends can be more than data."""

from __future__ import annotations

import socket
import struct
from collections import OrderedDict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.sandbox import wire


def opaque(obj: Any) -> wire.Value:
    raise TypeError(type(obj).__name__)


def there_and_back(obj: Any) -> Any:
    reply = wire.read_reply(wire.frame(wire.Answer(1, wire.encode(obj, opaque)))[4:])
    return wire.decode(reply.value, opaque)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(plain)
def test_plain_data_arrives_as_it_was_sent(obj: Any) -> None:
    assert there_and_back(obj) == obj
    assert type(there_and_back(obj)) is type(obj)


@pytest.mark.parametrize("dtype", wire.DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 4)])
def test_tensors_of_every_dtype_and_shape_arrive(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = torch.randint(0, 2, shape).to(dtype)
    got = there_and_back(sent)
    assert got.dtype == dtype
    assert got.shape == sent.shape
    assert got.reshape(-1).view(torch.uint8).tolist() == sent.reshape(-1).view(torch.uint8).tolist()


def test_layout_does_not_matter_and_conjugates_are_resolved() -> None:
    x = torch.randn(3, 4, dtype=torch.complex64)
    assert torch.equal(there_and_back(x.T), x.T)
    assert torch.equal(there_and_back(x.conj()), x.conj().resolve_conj())
    assert torch.equal(there_and_back(x.real.expand(2, 3, 4)), x.real.expand(2, 3, 4))


def test_arrays_named_tuples_and_state_dicts_arrive_as_plain_ones() -> None:
    assert np.array_equal(there_and_back(np.arange(6.0).reshape(2, 3)), np.arange(6.0).reshape(2, 3))
    assert there_and_back(np.float32(2)) == 2.0
    assert list(there_and_back(OrderedDict(a=1))) == ["a"]
    assert there_and_back(torch.randn(3, 2).shape) == (3, 2)
    assert torch.equal(there_and_back(torch.tensor([3, 1]).sort())[0], torch.tensor([1, 3]))


class LyingInt(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class LyingTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        return True


@pytest.mark.parametrize(
    "lie", [LyingInt(3), torch.zeros(2).as_subclass(LyingTensor), type("Lie", (str,), {})("x"), object(), print]
)
def test_what_could_lie_about_itself_does_not_cross(lie: Any) -> None:
    with pytest.raises(TypeError):
        wire.encode([lie], opaque)


@pytest.mark.parametrize(
    "value",
    [
        wire.TensorData("float32", (2,), b"1234"),
        wire.TensorData("float32", (-1,), b""),
        wire.TensorData("float32", (2**50, 0), b""),
        wire.TensorData("float32", (0, *[2**30] * 7), b""),
        wire.Sequence("set", [wire.Special("int", hex(2**61 - 1 << 40))]),
        wire.Sequence("set", list(range(20_000))),
        wire.Sequence("list", [wire.Sequence("list", [None] * 60_000)] * 2),
        wire.TensorData("float32", (1,) * 40, b"1234"),
        wire.TensorData("object", (1,), b"12345678"),
        wire.ArrayData("O", (1,), b"12345678"),
        wire.ArrayData("", (1,), b"1"),
        wire.Special("int", "0x" + "f" * 10**5),
        wire.Special("int", "no number"),
        wire.Special("device", "cuda:0"),
        wire.Special("dtype", "nothing"),
        wire.Sequence("set", [wire.Sequence("list", [])]),
        wire.Mapping([(wire.Sequence("list", []), None)]),
    ],
)
def test_impossible_values_are_refused(value: wire.Value) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(value, opaque)


def test_a_boolean_is_true_or_false_whatever_its_byte() -> None:
    assert wire.decode(wire.TensorData("bool", (3,), b"\x00\x02\xff"), opaque).tolist() == [False, True, True]


def test_deep_nesting_is_refused_on_both_sides() -> None:
    deep: Any = []
    value: wire.Value = None
    for _ in range(200):
        deep, value = [deep], wire.Sequence("list", [value])
    with pytest.raises(wire.WireError, match="nested deeper"):
        wire.encode(deep, opaque)
    with pytest.raises(wire.WireError, match="nested deeper"):
        wire.decode(value, opaque)


@settings(max_examples=1000)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_a_wire_error(body: bytes) -> None:
    try:
        reply = wire.read_reply(body)
    except wire.WireError:
        return
    assert isinstance(reply, wire.Ran | wire.Answer | wire.Raised | wire.CallbackCall | wire.Exited)


@settings(max_examples=1000)
@given(st.data())
def test_a_damaged_reply_is_a_value_or_a_wire_error(data: st.DataObject) -> None:
    body = bytearray(wire.frame(wire.Answer(1, wire.encode([torch.arange(6.0), {"a": (1, "b")}, 2**80], opaque)))[4:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        reply = wire.read_reply(bytes(body))
        if isinstance(reply, wire.Answer):
            wire.decode(reply.value, lambda reference: None)
    except wire.WireError:
        pass


def test_a_frame_of_brackets_does_not_exhaust_the_stack() -> None:
    with pytest.raises(wire.WireError):
        wire.read_reply(b"\x91" * 100_000 + b"\xc0")


@pytest.fixture
def ends() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield wire.Channel(ours), theirs


def test_frames_arrive_whole_however_they_are_cut(ends: tuple[wire.Channel, socket.socket]) -> None:
    channel, theirs = ends
    data = wire.frame(wire.Answer(1, "x" * 50)) + wire.frame(wire.Answer(2, "y"))
    for byte in data:
        theirs.sendall(bytes([byte]))
    assert [wire.read_reply(channel.receive()).n for _ in range(2)] == [1, 2]


def test_a_frame_larger_than_the_limit_is_refused_before_it_is_read(ends: tuple[wire.Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(struct.pack("<I", wire.MAX_FRAME + 1))
    with pytest.raises(wire.WireError, match="larger"):
        channel.receive()


def test_a_closed_channel_is_an_end_and_not_a_frame(ends: tuple[wire.Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(b"\x10\x00\x00\x00abc")
    theirs.close()
    with pytest.raises(EOFError):
        channel.receive()


def test_every_message_survives_the_trip() -> None:
    handle = wire.Handle(1, "Linear")
    for request in (
        wire.Prepare(1, ["a.b"]),
        wire.Run(2, "c", "x = 1"),
        wire.Begin(3, 0, "f", "x"),
        wire.Call(4, "f", [1], [("k", None)], True, "m"),
        wire.Call(5, handle, [], [], False),
        wire.Get(6, handle, "weight"),
        wire.Fetch(7, handle),
        wire.Keep(8, 1),
        wire.Backward(9, 1, [None]),
        wire.Grads(10, handle),
        wire.CallbackResult(1),
    ):
        assert wire.read_request(wire.frame(request)[4:]) == request
    with pytest.raises(msgspec.MsgspecError):
        wire.read_request(b"\xc0")
