"""The trusted view of a submission: what hidden tests are written against.

    def test_rows_sum_to_one(student):
        assert_close(student.attention(q, k, torch.ones(4, 3)), torch.ones(4, 3))

`student.f(x)` runs the student's `f` in the jail and returns a copy of plain data, or a `Remote` that stands for an
object there.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autograder.report import LONGEST_OUTPUT, CellRun, Outcome, clean
from autograder.sandbox import wire
from autograder.sandbox.jail import Jail, Worker, WorkerLost

SEED = 0
METHODS = frozenset(name for name in dir(nn.Module) if callable(getattr(nn.Module, name)) and name[0] != "_")


class StudentError(Exception):
    """The student's code raised. It is also of the built-in type that was raised, so a test can expect a ValueError."""

    types: tuple[str, ...] = ()
    where: str = ""

    @property
    def sentence(self) -> str:
        text = str(self)
        return f"{self.types[0]}: {text}" + (f" ({self.where})" if self.where else "")


class Unfinished(StudentError):
    """The exercise has no answer yet: NotImplementedError from the starter, or its name is not defined."""


OVERWRITTEN = (
    "a tensor that the gradient needs was overwritten in place, by something like `x += …`, `x[…] = …` or `x.add_(…)`"
)


def _student_error(types: Sequence[str], message: str, where: str) -> StudentError:
    """The error to raise here: also of the nearest built-in type that can be made from a message alone."""
    if "needed for gradient computation has been modified by an inplace operation" in message:
        message = OVERWRITTEN  # PyTorch's own names no line of the student's, and advises what cannot be done here
    error: StudentError = Unfinished(message) if types[0] == "NotImplementedError" else StudentError(message)
    for name in types if type(error) is StudentError else ():
        base = getattr(builtins, name, None)
        if base in (StopIteration, StopAsyncIteration):
            break  # these would end a loop of the test's instead of the test
        if isinstance(base, type) and issubclass(base, Exception) and base is not Exception:
            with contextlib.suppress(TypeError):  # UnicodeDecodeError needs five arguments: its base will do
                error = type("StudentError", (StudentError, base), {"__str__": Exception.__str__})(message)
                break
    error.types, error.where = tuple(types), where
    return error


class Remote:
    """An object that lives in the student's process. Attributes and calls go there; `get()` fetches a copy of plain
    data."""

    def __init__(self, student: Student, handle: wire.Handle) -> None:
        self._student, self._handle = student, handle

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in METHODS:  # known to be called: the attribute need not cross first
            return functools.partial(self._student._method, self._handle, name)
        return self._student._get(self._handle, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._student._call(self._handle, args, kwargs)

    def get(self) -> Any:
        """A copy of this object as plain data."""
        return self._student._fetch(self._handle)

    def __repr__(self) -> str:
        return f"<the student's {self._handle.type_name}>"


class Student:
    """One submission in a worker of its own, started when first needed and again when it was lost.

    jail: where workers come from. cells: (id, exercise or "", source) in the order in which they run, the set-up
    cell first.
    stand_ins: exercise -> source of the stand-ins that its tests use. reserved: dotted names of functions to build
    oneself.
    """

    def __init__(
        self, jail: Jail, cells: Sequence[tuple[str, str, str]], stand_ins: Mapping[str, str], reserved: Sequence[str]
    ) -> None:
        self._jail, self._cells = jail, list(cells)
        self._stand_ins, self._reserved = dict(stand_ins), list(reserved)
        self._worker: Worker | None = None
        self._callables: dict[int, Callable[..., Any]] = {}
        self._exercise = ""
        self._seconds = 0.0  # that workers before this one took
        self._workers_lost = 0
        self._disturbed = False  # whether one was lost to somebody outside
        self._lost: dict[str, WorkerLost] = {}  # exercises whose tests lost a worker
        self._transcript: list[Any] = []  # what the code answered in this test: outputs and errors
        self._runs: dict[str, CellRun] = {}
        self._defined: set[str] = set()  # names seen in the worker

    # -- what a hidden test uses (besides the student's own names) --

    def put(self, value: Any) -> Remote:
        """Keep a value in the student's process, so that a test can see whether it was changed there."""
        return self._value(self._ask(wire.Keep(self._number(), self._encode(value))).value)

    def grads(self, module: Remote) -> dict[str, Tensor | None]:
        """The gradients of a module's parameters by name; None where there is none."""
        grads = self._value(self._ask(wire.Grads(self._number(), module._handle)).value)
        self._transcript.append(grads)
        if not isinstance(grads, dict) or not all(
            isinstance(name, str) and (grad is None or isinstance(grad, Tensor)) for name, grad in grads.items()
        ):
            raise WorkerLost(Outcome.DIED, "the gradients that came back are none")
        return grads

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def remote(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        return remote

    # -- what the grader uses --

    def _begin(self, exercise: str) -> None:
        """Before each test: the same seeds on both sides, the exercise's stand-ins, an empty transcript."""
        self._exercise = exercise
        self._transcript = []
        self._callables.clear()
        random.seed(SEED)
        np.random.seed(SEED)
        torch.default_generator.manual_seed(SEED)
        if exercise in self._lost:
            raise self._lost[exercise]
        number = self._number()
        self._running().tell(wire.Begin(number, SEED, exercise, self._stand_ins.get(exercise, "")))

    def _cell_runs(self) -> list[CellRun]:
        """How each cell ran; runs them if nothing has yet."""
        self._running()
        return [self._runs[cell] for cell, _, _ in self._cells if cell in self._runs]

    def _close(self) -> None:
        if self._worker:
            self._worker.kill()
            self._worker = None

    def _taken(self) -> float:
        """The seconds for which this submission's workers have been asked so far, by our own clock."""
        return self._seconds + (self._worker.seconds if self._worker else 0)

    # -- the worker --

    def _running(self) -> Worker:
        """The worker, with all cells run. A cell that loses its worker is left out of the next one."""
        while self._worker is None:
            self._afford()
            worker = self._jail.worker()
            worker.callbacks = self._answer_callback
            try:
                self._run_cells(worker)
                self._worker = worker
            except WorkerLost:
                self._count(worker)
                if all(self._lost_cell(run) for run in self._runs.values()):
                    raise
        return self._worker

    def _run_cells(self, worker: Worker) -> None:
        ready = worker.ask(wire.Prepare(worker.number(), self._reserved))
        if isinstance(ready, wire.Raised):  # before any line of the submission has run: ours to mend
            raise LookupError(f"RESERVED names something that is not there: {ready.message}")
        for cell, exercise, source in self._cells:
            known = self._runs.get(cell)
            if known and self._lost_cell(known):
                continue
            try:
                ran = worker.ask(wire.Run(worker.number(), cell, source))
                if not isinstance(ran, wire.Ran):
                    worker.kill()
                    raise WorkerLost(Outcome.DIED, "the code answered a question that was not asked")
            except WorkerLost as lost:
                self._runs[cell] = CellRun(cell, exercise, f"{_LOST}{lost.outcome}: {lost}.", source=source)
                raise
            self._runs[cell] = CellRun(cell, exercise, clean(ran.error), clean(ran.output, LONGEST_OUTPUT), source)

    def _adopt(self, other: Student) -> None:
        """Go on in the worker of another, which may have left something there: only for answers of our own."""
        worker, other._worker = other._worker, None
        if worker is None:
            return
        self._worker, self._seconds = worker, -worker.seconds
        worker.callbacks = self._answer_callback
        try:
            self._run_cells(worker)
        except WorkerLost:
            self._count(worker)
            self._worker = None

    @staticmethod
    def _lost_cell(run: CellRun) -> bool:
        """Whether this cell cost its worker, so that it is left out of the next one."""
        return run.error.startswith(_LOST)

    def _count(self, worker: Worker) -> None:
        self._seconds += worker.seconds
        self._workers_lost += 1
        self._disturbed |= worker.disturbed

    def _afford(self) -> None:
        """A submission that keeps losing workers ends, and so does one that is slow everywhere."""
        limits = self._jail.limits
        if self._workers_lost > limits.lost_workers:
            raise WorkerLost(Outcome.TIMED_OUT, f"its code had to be stopped {self._workers_lost} times")
        if self._taken() > limits.total_seconds:
            raise WorkerLost(Outcome.TIMED_OUT, f"the whole notebook took more than {limits.total_seconds:g} seconds")

    def _number(self) -> int:
        self._afford()
        return self._running().number()

    def _ask(self, request: Any) -> Any:
        worker = self._running()
        try:
            reply = worker.ask(request)
        except WorkerLost as lost:
            self._count(worker)
            self._worker = None
            self._lost[self._exercise] = lost
            raise
        if isinstance(reply, wire.Raised):
            self._transcript.append(tuple(reply.types[:1]))
            raise _student_error(
                [clean(name, 100) for name in reply.types[:20]] or ["Exception"],
                clean(reply.message),
                clean(reply.where),
            )
        if not isinstance(reply, wire.Answer):
            self._close()
            self._lost[self._exercise] = WorkerLost(Outcome.DIED, "the code answered a question that was not asked")
            raise self._lost[self._exercise]
        return reply

    def _method(self, handle: wire.Handle, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._call(handle, args, kwargs, name)

    def _call(self, target: wire.Handle | str, args: tuple[Any, ...], kwargs: dict[str, Any], method: str = "") -> Any:
        if isinstance(target, str) and target not in self._defined:
            if not self._ask(wire.Get(self._number(), None, target)).value:
                raise self._missing(target)
            self._defined.add(target)
        inputs: list[Tensor] = []
        encoded = [self._encode(arg, inputs) for arg in args]
        named = [(name, self._encode(arg, inputs)) for name, arg in kwargs.items()]
        grad = torch.is_grad_enabled()
        answer = self._ask(wire.Call(self._number(), target, encoded, named, grad, method))
        value = self._value(answer.value)
        self._transcript.append(value)
        if answer.graph and grad:
            outputs = [tensor for tensor in _tensors(value) if tensor.requires_grad]
            trace = _Gradient.apply(
                self, answer.graph, len(inputs), torch.zeros((), requires_grad=True), *inputs, *outputs
            )
            value = _replaced(value, iter(trace))
        return value

    def _missing(self, name: str) -> StudentError:
        """Why the submission has no such name: its cell failed (an error), or nobody wrote it (unfinished)."""
        failed = [run.error for run in self._runs.values() if run.error and run.exercise in (name, self._exercise)]
        if failed:
            kind, text = failed[-1].split(": ", 1) if ": " in failed[-1] else ("Error", failed[-1])
            of = Unfinished if kind == "NotImplementedError" else StudentError
            error = of(f"{text}, so `{name}` is not defined")
        else:
            kind, error = "NameError", Unfinished(f"`{name}` is not defined")
        error.types = (kind,)
        return error

    def _get(self, handle: wire.Handle, name: str) -> Any:
        value = self._value(self._ask(wire.Get(self._number(), handle, name)).value)
        if not isinstance(value, Remote):
            self._transcript.append(value)
        return value

    def _fetch(self, handle: wire.Handle) -> Any:
        value = self._value(self._ask(wire.Fetch(self._number(), handle)).value)
        self._transcript.append(value)
        return value

    def _backward(self, graph: int, grads: Sequence[Tensor]) -> list[Tensor | None]:
        encoded = [self._encode(grad.detach().contiguous()) for grad in grads]
        value = self._value(self._ask(wire.Backward(self._number(), graph, encoded)).value)
        self._transcript.append(value)
        if not isinstance(value, list) or not all(item is None or isinstance(item, Tensor) for item in value):
            raise WorkerLost(Outcome.DIED, "the gradients that came back are none")
        return value

    # -- values --

    def _encode(self, obj: Any, tensors: list[Tensor] | None = None) -> wire.Value:
        def opaque(item: Any) -> wire.Value:
            if isinstance(item, Remote):
                return item._handle
            if callable(item):
                number = len(self._callables) + 1
                self._callables[number] = item
                return wire.Callback(number)
            raise TypeError(f"a hidden test cannot send a {type(item).__name__} to a submission")

        return wire.encode(obj, opaque, tensors)

    def _value(self, value: wire.Value) -> Any:
        def resolve(reference: wire.Handle | wire.Callback) -> Any:
            if isinstance(reference, wire.Handle):
                return Remote(self, reference)
            raise wire.WireError("a callback that is none of ours")

        try:
            return wire.decode(value, resolve)
        except wire.WireError as error:
            self._close()
            self._lost[self._exercise] = WorkerLost(Outcome.DIED, f"the answer could not cross: {error}")
            raise self._lost[self._exercise] from None

    def _answer_callback(self, call: wire.CallbackCall) -> wire.CallbackResult:
        try:
            result = self._callables[call.id](*[self._value(arg) for arg in call.args])
            return wire.CallbackResult(self._encode(result))
        except Exception as error:  # the student called it in a way that the test did not foresee
            return wire.CallbackResult(None, f"{type(error).__name__}: {error}")


_LOST = "stopped: "


class _Gradient(torch.autograd.Function):
    """Carries gradients across: forward returns what the student computed, backward asks the student's graph."""

    @staticmethod
    def forward(
        ctx: Any, student: Student, graph: int, n_inputs: int, anchor: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """`anchor` requires grad, so that the outputs do even when only the student's own parameters need it."""
        ctx.student, ctx.graph, ctx.n_outputs = student, graph, len(tensors) - n_inputs
        ctx.inputs = [(tensor.shape, tensor.dtype) for tensor in tensors[:n_inputs]]
        return tuple(tensor.detach().clone() for tensor in tensors[n_inputs:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.student._backward(ctx.graph, grads)
        if len(inputs) != len(ctx.inputs) or any(
            grad is not None and (grad.shape, grad.dtype) != like for grad, like in zip(inputs, ctx.inputs, strict=True)
        ):
            raise WorkerLost(Outcome.DIED, "the gradients that came back are of another shape or dtype")
        return (None, None, None, None, *inputs, *([None] * ctx.n_outputs))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _replaced(value: Any, new: Iterator[Tensor]) -> Any:
    """`value` with each tensor that requires grad replaced by the next of `new`."""
    if isinstance(value, Tensor):
        return next(new) if value.requires_grad else value
    if isinstance(value, dict):
        return {key: _replaced(item, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, new) for item in value)
    return value


# -- assertions that tell a student what is wrong, and never what is right ------------------------------------------


def tensor(
    actual: Any, *, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None, name: str = "the result"
) -> Tensor:
    """Assert that `actual` is a tensor of that shape and dtype, and return it."""
    assert isinstance(actual, Tensor), f"{name} should be a tensor, but it is {_kind(actual)}."
    if shape is not None:
        assert tuple(actual.shape) == tuple(shape), (
            f"{name} should have shape {tuple(shape)}, but it has shape {tuple(actual.shape)}."
        )
    if dtype is not None:
        assert actual.dtype == dtype, f"{name} should be {_dtype(dtype)}, but it is {_dtype(actual.dtype)}."
    return actual


def assert_close(
    actual: Any, expected: Tensor, *, atol: float = 1e-4, rtol: float = 1e-4, claim: str = "", name: str = "the result"
) -> None:
    """Assert that `actual` is a tensor of the shape, dtype and values of `expected`; the message shows no expected
    value."""
    tensor(actual, shape=expected.shape, dtype=expected.dtype, name=name)
    prefix = f"{claim}: " if claim else ""
    if not expected.dtype.is_floating_point and not expected.dtype.is_complex:
        wrong = int((actual != expected).sum())
        assert not wrong, f"{prefix}{wrong} of {expected.numel()} entries of {name} are wrong."
        return
    a, e = (t.detach().to(torch.complex128 if t.is_complex() else torch.float64) for t in (actual, expected))
    if torch.allclose(a, e, rtol, atol):
        return
    unexpected = torch.isnan(a) | (~torch.isfinite(a) & torch.isfinite(e))  # NaN is never right, nor like another NaN
    assert not bool(unexpected.any()), (
        f"{prefix}{int(unexpected.sum())} of {expected.numel()} entries of {name} "
        f"are {_non_finite(actual[unexpected])}."
    )
    wrong_at = ~torch.isclose(a, e, rtol=rtol, atol=atol)
    difference = torch.where(wrong_at, (a - e).abs(), 0).nan_to_num(0)
    position = (
        tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape)) if difference.dim() else ()
    )
    at = f", the largest at position {position}" if position else ""
    raise AssertionError(
        f"{prefix}{int(wrong_at.sum())} of {expected.numel()} entries of {name} "
        f"are off by up to {difference.max().item():.3g}{at}."
    )


def _kind(value: Any) -> str:
    if value is None:
        return "None (is a `return` missing?)"
    name = value._handle.type_name if isinstance(value, Remote) else type(value).__name__
    article = "an" if name[:1] in "aeioAEIO" else "a"
    return f"{article} {name}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _non_finite(values: Tensor) -> str:
    return "NaN" if bool(values.isnan().any()) else "infinite"


def same_transcript(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two runs of the same test got the same answers all the way, within rounding."""
    return len(one) == len(other) and len(one) > 0 and all(_same(a, b) for a, b in zip(one, other, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Remote) and isinstance(b, Remote):
        return True  # their contents come later in the transcript, if the test looked at them
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return (
            a.shape == b.shape
            and a.dtype == b.dtype
            and torch.allclose(a.detach(), b.detach(), 1e-5, 1e-6, equal_nan=True)
        )
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return a == b or (a != a and b != b) or abs(a - b) <= 1e-6 + 1e-5 * abs(b)
    with contextlib.suppress(Exception):
        return bool(a == b)
    return False
