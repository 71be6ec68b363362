"""What crosses between the grader and a worker: length-prefixed msgspec messages that hold plain data only.

Both sides use this file. Nothing in it executes what it reads: a tensor is a dtype, a shape and bytes; an object that
is not plain data stays where it is, and a number (a handle) stands for it. The trusted side checks every size before
it builds anything.
"""

from __future__ import annotations

import math
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

import msgspec
import numpy as np
import torch

MAX_FRAME = 32 << 20  # bytes
MAX_ITEMS = 100_000  # in one list or tuple, and values in one answer
MAX_KEYS = 10_000  # in one dict or set: keys that collide on purpose cost their number squared
MAX_DIMS = 16
MAX_DIM = 1 << 31
MAX_DEPTH = 32
MAX_INT_BITS = 4096  # a longer integer is no plain data: printing it would take for ever

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip
NOT_IN_NUMPY = {torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
KINDS: dict[type, Literal["list", "tuple", "set", "frozenset"]]
KINDS = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
NUMPY_DTYPES = frozenset("?bBhHiIlLqQefdFD")


class WireError(Exception):
    """A frame that is not what the protocol allows. The worker that sent it is not heard again."""


# -- values ---------------------------------------------------------------------------------------------------------


Shape = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_DIMS)]


class TensorData(msgspec.Struct, array_like=True, tag="tensor", frozen=True):
    dtype: str
    shape: Shape
    data: bytes
    requires_grad: bool = False


class ArrayData(msgspec.Struct, array_like=True, tag="array", frozen=True):
    dtype: str  # one of numpy's type characters
    shape: Shape
    data: bytes


class Handle(msgspec.Struct, array_like=True, tag="handle", frozen=True):
    """An object that stays in the worker."""

    id: int
    type_name: str


class Callback(msgspec.Struct, array_like=True, tag="callback", frozen=True):
    """A callable that stays with the grader; calling it in the worker asks the grader."""

    id: int


class Sequence(msgspec.Struct, array_like=True, tag="sequence", frozen=True):
    kind: Literal["list", "tuple", "set", "frozenset"]
    items: Annotated[list[Value], msgspec.Meta(max_length=MAX_ITEMS)]


class Mapping(msgspec.Struct, array_like=True, tag="mapping", frozen=True):
    items: Annotated[list[tuple[Value, Value]], msgspec.Meta(max_length=MAX_KEYS)]


class Bytes(msgspec.Struct, array_like=True, tag="bytes", frozen=True):
    data: bytes


class Special(msgspec.Struct, array_like=True, tag="special", frozen=True):
    kind: Literal["dtype", "device", "int", "ellipsis"]
    text: str = ""


class Slice(msgspec.Struct, array_like=True, tag="slice", frozen=True):
    start: int | None
    stop: int | None
    step: int | None


Value = Union[  # noqa: UP007 (a recursive alias that msgspec resolves by name)
    None, bool, int, float, str, Bytes, TensorData, ArrayData, Handle, Callback, Sequence, Mapping, Special, Slice
]

# -- messages -------------------------------------------------------------------------------------------------------


class Run(msgspec.Struct, tag="run"):
    """Execute one cell in the submission's namespace."""

    n: int
    cell: str
    source: str


class Prepare(msgspec.Struct, tag="prepare"):
    """Before any cell: the functions that from now on raise (dotted names)."""

    n: int
    reserved: list[str]


class Begin(msgspec.Struct, tag="begin"):
    """Start a test of `exercise`: forget handles and graphs, seed every generator, put that exercise's stand-ins in
    place. It goes out with the test's first question and gets no answer of its own."""

    n: int
    seed: int
    exercise: str
    stand_ins: str = ""  # source; not sent before, for it answers other exercises


class Call(msgspec.Struct, tag="call"):
    n: int
    target: Handle | str
    args: list[Value]
    kwargs: list[tuple[str, Value]]
    grad: bool
    method: str = ""  # of the target, "" for the target itself


class Get(msgspec.Struct, tag="get"):
    """An attribute of a handle, or (without a handle) whether the namespace has that name."""

    n: int
    handle: Handle | None
    name: str


class Fetch(msgspec.Struct, tag="fetch"):
    n: int
    handle: Handle


class Keep(msgspec.Struct, tag="keep"):
    n: int
    value: Value


class Backward(msgspec.Struct, tag="backward"):
    n: int
    graph: int
    grads: list[Value]


class Grads(msgspec.Struct, tag="grads"):
    n: int
    handle: Handle


class CallbackResult(msgspec.Struct, tag="callback-result"):
    value: Value
    error: str = ""


Request = Prepare | Run | Begin | Call | Get | Fetch | Keep | Backward | Grads | CallbackResult


class Ran(msgspec.Struct, tag="ran"):
    n: int
    error: str  # "" or a sentence
    output: str


class Answer(msgspec.Struct, tag="answer"):
    n: int
    value: Value
    graph: int = 0  # of the tensors in value that require grad; 0: none does


class Raised(msgspec.Struct, tag="raised"):
    n: int
    types: Annotated[list[str], msgspec.Meta(max_length=100)]  # the exception's class and its bases, nearest first
    message: str
    where: str  # "line 3 of cell causal_mask", "" if unknown


class CallbackCall(msgspec.Struct, tag="callback-call"):
    id: int
    args: Annotated[list[Value], msgspec.Meta(max_length=16)]


class Exited(msgspec.Struct, tag="exited"):
    """The worker's first process ended (sent by its parent in the jail, a hint only)."""

    signal: int


Reply = Ran | Answer | Raised | CallbackCall | Exited

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytearray:
    data = bytearray(4)  # for the body's length
    _encoder.encode_into(message, data, 4)
    size = len(data) - 4
    if size > MAX_FRAME:
        raise WireError(f"a message of {size:,} bytes is larger than the {MAX_FRAME:,} that may cross")
    struct.pack_into("<I", data, 0, size)
    return data


def read_request(body: bytes | bytearray) -> Request:
    return _requests.decode(body)


def read_reply(body: bytes | bytearray) -> Reply:
    try:
        return _replies.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise WireError(f"the worker sent something else than a reply ({type(error).__name__})") from None


class Channel:
    """Frames over a stream socket. Who waits too long is the watchdog's business (jail.py)."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._chunk = bytearray(1 << 16)  # used again and again: a new one each time costs more than to fill it
        self._buffer = bytearray()

    def send(self, message: Request | Reply, first: Request | None = None) -> None:
        """`first` goes out before the message, in one piece with it."""
        data = frame(message)
        self.sock.sendall(frame(first) + data if first else data)

    def receive(self) -> bytes:
        """The next frame's body. Raises EOFError when the other side is gone, WireError for too large a frame."""
        while True:
            if len(self._buffer) >= 4:
                (size,) = struct.unpack_from("<I", self._buffer)
                if size > MAX_FRAME:
                    raise WireError(f"a frame of {size:,} bytes is larger than the {MAX_FRAME:,} that may cross")
                if len(self._buffer) >= 4 + size:
                    body = bytes(memoryview(self._buffer)[4 : 4 + size])
                    del self._buffer[: 4 + size]
                    return body
            received = self.sock.recv_into(self._chunk)
            if not received:
                raise EOFError
            self._buffer += memoryview(self._chunk)[:received]


# -- between Python objects and values ------------------------------------------------------------------------------


def encode(
    obj: Any, opaque: Callable[[Any], Value], tensors: list[torch.Tensor] | None = None, depth: int = 0
) -> Value:
    """`obj` as plain data. What is no plain data goes through `opaque` (a handle, a callback, or an exception).

    Exact types only: a subclass of int, str or Tensor could lie about itself, so it is opaque. Tensors that require
    grad are appended to `tensors` in the order in which they are met.
    """
    kind = type(obj)
    if obj is None or kind in (bool, float, str):
        return obj
    if kind is bytes:
        return Bytes(obj)
    if kind is int:
        if -(2**63) <= obj < 2**63:
            return obj
        if obj.bit_length() > MAX_INT_BITS:
            raise WireError(f"an integer of {obj.bit_length():,} bits does not cross (at most {MAX_INT_BITS:,})")
        return Special("int", hex(obj))
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        if tensors is not None and obj.requires_grad:
            tensors.append(obj)
        return _encode_tensor(obj)
    if depth > MAX_DEPTH:
        raise WireError(f"a value nested deeper than {MAX_DEPTH} levels does not cross")

    def inner(item: Any) -> Value:
        return encode(item, opaque, tensors, depth + 1)

    if kind in KINDS:
        return Sequence(KINDS[kind], [inner(item) for item in obj])
    if kind is torch.Size:
        return Sequence("tuple", list(obj))
    if kind in (dict, OrderedDict):
        return Mapping([(inner(key), inner(item)) for key, item in obj.items()])
    if issubclass(kind, tuple):  # named tuples, torch's return types; whatever else they claim, these are their items
        return Sequence("tuple", [inner(item) for item in tuple.__iter__(obj)])
    if kind is np.ndarray and obj.dtype.char in NUMPY_DTYPES:
        return ArrayData(obj.dtype.char, obj.shape, obj.tobytes())
    if isinstance(obj, np.generic) and obj.dtype.char in NUMPY_DTYPES:
        return encode(obj.item(), opaque, tensors, depth + 1)
    if kind is torch.dtype and obj in DTYPE_NAMES:
        return Special("dtype", DTYPE_NAMES[obj])
    if kind is torch.device:
        return Special("device", str(obj))
    if obj is Ellipsis:
        return Special("ellipsis")
    if kind is slice and all(part is None or type(part) is int for part in (obj.start, obj.stop, obj.step)):
        return Slice(obj.start, obj.stop, obj.step)
    return opaque(obj)


def decode(value: Value, resolve: Callable[[Handle | Callback], Any]) -> Any:
    """The Python object for `value`, with every size checked. Handles and callbacks go through `resolve`."""
    left = MAX_ITEMS

    def inner(value: Value, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise WireError(f"an answer of more than {MAX_ITEMS:,} values does not cross")
        if depth > MAX_DEPTH:
            raise WireError(f"a value nested deeper than {MAX_DEPTH} levels does not cross")
        match value:
            case Sequence(kind, items):
                make: Any = next(make for make, name in KINDS.items() if name == kind)
                decoded = [inner(item, depth + 1) for item in items]
                if make in (set, frozenset):
                    _check_keys(decoded)
                return make(decoded)
            case Mapping(items):
                keys = [inner(key, depth + 1) for key, _ in items]
                _check_keys(keys)
                return dict(zip(keys, [inner(item, depth + 1) for _, item in items], strict=True))
            case Handle() | Callback():
                return resolve(value)
        return _decode_leaf(value)

    return inner(value, 0)


def _check_keys(keys: list[Any]) -> None:
    """Keys whose hashes collide on purpose would cost the square of their number."""
    if len(keys) > MAX_KEYS:
        raise WireError(f"a dict or set of more than {MAX_KEYS:,} items does not cross")
    for key in keys:
        if not (key is None or type(key) in (str, bool, float) or (type(key) is int and -(2**63) <= key < 2**63)):
            raise WireError(f"a dict or set with a {type(key).__name__} as key does not cross")


def _decode_leaf(value: Value) -> Any:
    match value:
        case TensorData():
            return _decode_tensor(value)
        case ArrayData():
            return _decode_array(value)
        case Bytes(data):
            return data
        case Special("dtype", text) if text in DTYPES:
            return DTYPES[text]
        case Special("device", text) if text in ("cpu", "meta"):
            return torch.device(text)
        case Special("int", text) if len(text) <= MAX_INT_BITS // 4 + 3:
            try:
                return int(text, 16)
            except ValueError:
                raise WireError("an integer that is none") from None
        case Special("ellipsis"):
            return Ellipsis
        case Special(kind, text):
            raise WireError(f"a {kind} that does not cross: {text[:40]!r}")
        case Slice(start, stop, step):
            return slice(start, stop, step)
    return value


def _encode_tensor(tensor: torch.Tensor) -> TensorData:
    name = DTYPE_NAMES.get(tensor.dtype)
    if name is None or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise WireError(f"a {tensor.dtype} tensor on {tensor.device} ({tensor.layout}) does not cross")
    if tensor.numel() * tensor.element_size() > MAX_FRAME:
        raise WireError(
            f"a tensor of shape {tuple(tensor.shape)} is larger than the {MAX_FRAME:,} bytes that may cross"
        )
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    if tensor.dtype in NOT_IN_NUMPY:
        plain = plain.contiguous().view(torch.uint8) if plain.dim() else plain.reshape(1).view(torch.uint8)
    return TensorData(name, tuple(tensor.shape), plain.numpy().tobytes(), tensor.requires_grad)


def _checked_size(shape: tuple[int, ...], itemsize: int, data: bytes) -> None:
    if len(shape) > MAX_DIMS or any(not 0 <= dim <= MAX_DIM for dim in shape):
        raise WireError(f"a tensor of {len(shape)} dimensions or an impossible size does not cross")
    if math.prod(shape) * itemsize != len(data):
        raise WireError("a tensor whose bytes do not fit its shape")


def _decode_tensor(value: TensorData) -> torch.Tensor:
    dtype = DTYPES.get(value.dtype)
    if dtype is None:
        raise WireError(f"a tensor of unknown dtype {value.dtype[:40]!r}")
    _checked_size(value.shape, dtype.itemsize, value.data)
    if not value.data:
        try:
            tensor = torch.empty(value.shape, dtype=dtype)
        except RuntimeError:  # its strides would not fit into 64 bits
            raise WireError("a tensor without elements and of an impossible shape") from None
    elif dtype is torch.bool:  # a byte other than 0 and 1 would make a boolean that is neither
        tensor = torch.frombuffer(bytearray(value.data), dtype=torch.uint8).reshape(value.shape) != 0
    else:
        tensor = torch.frombuffer(bytearray(value.data), dtype=dtype).reshape(value.shape)
    differentiable = dtype.is_floating_point or dtype.is_complex
    return tensor.requires_grad_() if value.requires_grad and differentiable else tensor


def _decode_array(value: ArrayData) -> np.ndarray:
    if value.dtype not in NUMPY_DTYPES or len(value.dtype) != 1:
        raise WireError(f"an array of unknown dtype {value.dtype[:40]!r}")
    dtype = np.dtype(value.dtype)
    _checked_size(value.shape, dtype.itemsize, value.data)
    if dtype.char == "?":
        return (np.frombuffer(value.data, np.uint8) != 0).reshape(value.shape)
    return np.frombuffer(bytearray(value.data), dtype).reshape(value.shape)
