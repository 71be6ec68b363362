"""The untrusted side: runs a submission's cells and answers calls. It is forked by the zygote, inside the jail.

Everything here shares a process with the student's code, which may patch any of it. That is allowed for: this side
only ever sends data, and the grader trusts none of it.
"""

from __future__ import annotations

import functools
import importlib
import io
import linecache
import random
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import wire  # type: ignore[import-not-found]  # beside this file, in the jail

OUTPUT_LIMIT = 20_000  # characters a cell may print
MESSAGE_LIMIT = 600  # characters of an exception's text


class PrintedTooMuch(BaseException):
    """Not an Exception, so that a cell's own `except Exception` does not go on printing."""


class Output(io.TextIOBase):
    """Standard output of the student's code, cut at the limit."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        room = OUTPUT_LIMIT - len(self.text)
        self.text += text[:room]
        if len(text) > room:
            raise PrintedTooMuch(f"this cell printed more than {OUTPUT_LIMIT:,} characters")
        return len(text)


class Graph:
    """The tensors of one call through which gradients flow."""

    def __init__(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        self.inputs, self.outputs = inputs, outputs


class Worker:
    def __init__(self, channel: wire.Channel) -> None:
        self.channel = channel
        self.namespace: dict[str, Any] = {}
        self.handles: dict[int, Any] = {}
        self.graphs: dict[int, Graph] = {}
        self.stand_ins: dict[str, dict[str, Any]] = {}
        self.reserved: list[tuple[Any, str, Any, Any]] = []  # where a function was, its name, itself, and what raises
        self.replaced: dict[str, Any] = {}  # the student's own objects while an exercise's stand-ins have their names
        self.unprepared: BaseException | None = None  # why the last Begin failed: the next question is told
        sys.argv = [""]

    def serve(self) -> None:
        while True:
            try:
                request = wire.read_request(self.channel.receive())
            except EOFError:
                return
            if isinstance(request, wire.Begin):
                self.begin(request)
            else:
                self.reply(self.answer(request))

    def reply(self, reply: Any) -> None:
        try:
            data = wire.frame(reply)
        except (wire.WireError, ValueError, OverflowError) as error:  # too large, or text that is no Unicode
            data = wire.frame(raised(reply.n, error))
        self.channel.sock.sendall(data)

    def answer(self, request: Any) -> Any:
        if isinstance(request, wire.Run):
            return self.run(request)
        try:
            match request:
                case wire.Prepare():
                    self.prepare(request)
                    return wire.Answer(request.n, None)
                case _ if self.unprepared:
                    raise self.unprepared
                case wire.Call():
                    return self.call(request)
                case wire.Get(n, None, name):
                    return wire.Answer(n, name in self.namespace)
                case wire.Get(n, handle, name):
                    return wire.Answer(n, self.encode(getattr(self.resolve(handle), name)))
                case wire.Fetch(n, handle):
                    return wire.Answer(n, self.encode(self.resolve(handle), opaque=refuse))
                case wire.Keep(n, value):
                    return wire.Answer(n, self.handle(wire.decode(value, self.resolve)))
                case wire.Backward(n, graph, grads):
                    return wire.Answer(n, self.backward(self.graphs[graph], grads))
                case wire.Grads(n, handle):
                    named = {name: p.grad for name, p in self.resolve(handle).named_parameters()}
                    return wire.Answer(n, self.encode(named))
        except BaseException as error:
            return raised(request.n, error)
        raise TypeError(f"{type(request).__name__} is no request")

    def run(self, request: wire.Run) -> wire.Ran:
        filename = f"<cell {request.cell}>"
        linecache.cache[filename] = (len(request.source), None, request.source.splitlines(keepends=True), filename)
        output = Output()
        stdout, stderr = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = output
        error = ""
        try:
            exec(compile(request.source, filename, "exec", dont_inherit=True), self.namespace)
        except BaseException as problem:
            error = sentence(problem)
        finally:
            sys.stdout, sys.stderr = stdout, stderr
        return wire.Ran(request.n, error, clean(output.text))

    def prepare(self, request: wire.Prepare) -> None:
        """A notebook begins. Of another one before it, nothing is there any more."""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        self.namespace = module.__dict__
        self.stand_ins.clear()
        self.replaced.clear()
        for owner, name, original, _ in self.reserved:
            setattr(owner, name, original)
        self.reserved = [reserve(name) for name in request.reserved]
        defaults()

    def define_stand_ins(self, exercise: str, source: str) -> None:
        """They may hold the originals of what is reserved."""
        for owner, name, original, _ in self.reserved:
            setattr(owner, name, original)
        namespace: dict[str, Any] = {"__name__": "stand_ins"}
        exec(compile(source, "<stand-ins>", "exec", dont_inherit=True), namespace)
        self.stand_ins[exercise] = {
            name: value
            for name, value in namespace.items()
            if getattr(value, "__module__", "") == "stand_ins"  # what they define, not what they import
        }
        for owner, name, _, raising in self.reserved:
            setattr(owner, name, raising)

    def begin(self, request: wire.Begin) -> None:
        try:
            self.start(request)
            self.unprepared = None
        except BaseException as error:  # the student's code may have patched what this uses
            self.unprepared = error

    def start(self, request: wire.Begin) -> None:
        self.handles.clear()
        self.graphs.clear()
        for name, value in self.replaced.items():
            if value is MISSING:
                self.namespace.pop(name, None)
            else:
                self.namespace[name] = value
        self.replaced.clear()
        if request.stand_ins and request.exercise not in self.stand_ins:
            self.define_stand_ins(request.exercise, request.stand_ins)
        for name, value in self.stand_ins.get(request.exercise, {}).items():
            self.replaced[name] = self.namespace.get(name, MISSING)
            self.namespace[name] = value
        defaults()  # what one exercise's code sets must not cost another
        random.seed(request.seed)
        np.random.seed(request.seed)
        torch.default_generator.manual_seed(request.seed)

    def call(self, request: wire.Call) -> wire.Answer:
        inputs: list[torch.Tensor] = []

        def value(item: Any) -> Any:
            return wire.decode(item, self.resolve)

        target = self.namespace[request.target] if isinstance(request.target, str) else self.resolve(request.target)
        if request.method:
            target = getattr(target, request.method)
        args = [value(item) for item in request.args]
        kwargs = {name: value(item) for name, item in request.kwargs}
        for tensor in tensors_in([args, kwargs]):
            if tensor.requires_grad and tensor.is_leaf:
                inputs.append(tensor)
        with torch.set_grad_enabled(request.grad):
            result = target(*args, **kwargs)
        outputs: list[torch.Tensor] = []
        encoded = self.encode(result, tensors=outputs)
        graph = 0
        if outputs and request.grad:
            graph = len(self.graphs) + 1
            self.graphs[graph] = Graph(inputs, outputs)
        return wire.Answer(request.n, encoded, graph)

    def backward(self, graph: Graph, grads: list[Any]) -> Any:
        for tensor in graph.inputs:
            tensor.grad = None
        upstream = [wire.decode(grad, self.resolve) for grad in grads]
        BACKWARD(graph.outputs, upstream, retain_graph=True)
        return self.encode([tensor.grad for tensor in graph.inputs])

    # -- handles and callbacks --

    def encode(self, obj: Any, opaque: Any = None, tensors: list[torch.Tensor] | None = None) -> Any:
        return wire.encode(obj, opaque or self.handle, tensors)

    def handle(self, obj: Any) -> wire.Handle:
        number = len(self.handles) + 1
        self.handles[number] = obj
        return wire.Handle(number, type(obj).__name__[:80])

    def resolve(self, reference: Any) -> Any:
        if isinstance(reference, wire.Handle):
            return self.handles[reference.id]
        return self.callback(reference.id)

    def callback(self, number: int) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            self.channel.send(wire.CallbackCall(number, [self.encode(arg) for arg in args]))
            result = wire.read_request(self.channel.receive())
            if not isinstance(result, wire.CallbackResult):
                raise RuntimeError("the grader did not answer the callback")
            if result.error:
                raise RuntimeError(result.error)
            return computed(wire.decode(result.value, self.resolve))

        return ask


def defaults() -> None:
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)


MISSING = object()
BACKWARD = torch.autograd.backward  # a chapter may reserve it


def tensors_in(obj: Any) -> list[torch.Tensor]:
    if isinstance(obj, torch.Tensor):
        return [obj]
    if isinstance(obj, dict):
        return [tensor for item in obj.values() for tensor in tensors_in(item)]
    if isinstance(obj, list | tuple):
        return [tensor for item in obj for tensor in tensors_in(item)]
    return []


def computed(obj: Any) -> Any:
    """What a function returned is no leaf of autograd's: with gradients on, too, it may be added to in place."""
    if isinstance(obj, torch.Tensor):
        return obj.clone() if obj.requires_grad else obj
    if isinstance(obj, dict):
        return {key: computed(item) for key, item in obj.items()}
    if isinstance(obj, list | tuple):
        return type(obj)(computed(item) for item in obj)
    return obj


def refuse(obj: Any) -> Any:
    raise TypeError(f"a {type(obj).__name__} is no plain data")


def reserve(dotted: str) -> tuple[Any, str, Any, Any]:
    """Replace a library function by one that says that building it is the exercise."""
    path, name = dotted.rsplit(".", 1)
    try:
        owner = functools.reduce(getattr, path.split(".")[1:], sys.modules[path.split(".")[0]])
    except (AttributeError, KeyError):  # nobody has imported it yet, such as torch.nn.utils.prune or safetensors.torch
        owner = importlib.import_module(path)

    def reserved(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{dotted} cannot be called here: what it does is what this chapter asks you to build")

    original = getattr(owner, name)
    setattr(owner, name, reserved)
    return owner, name, original, reserved


def where(error: BaseException) -> str:
    """The deepest line of the student's own code in the traceback: "line 3 of cell causal_mask"."""
    for step in reversed(traceback.extract_tb(error.__traceback__)):
        if step.filename.startswith("<cell "):
            return f"line {step.lineno} of cell {step.filename[6:-1].removeprefix('cell ')}"
    return ""


def clean(message: str) -> str:
    """Lone surrogates cannot be encoded, so they become question marks."""
    return str.encode(message, "utf-8", "replace").decode()


def text(error: BaseException) -> str:
    try:
        message = str(error)
    except BaseException:
        return "an error whose text cannot be read"
    message = clean(message)
    return message if len(message) <= MESSAGE_LIMIT else message[:MESSAGE_LIMIT] + " …"


def sentence(error: BaseException) -> str:
    if isinstance(error, PrintedTooMuch):
        return text(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {clean(str(error.msg))} (line {error.lineno})"
    place = where(error)
    return f"{type(error).__name__}: {text(error)}" + (f" ({place})" if place else "")


def raised(n: int, error: BaseException) -> wire.Raised:
    types_of = [kind.__name__[:80] for kind in type(error).__mro__ if kind is not object]
    return wire.Raised(n, types_of[:20], text(error), where(error))
