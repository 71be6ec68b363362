"""Small wrong changes to a right answer, one at a time: tests that let many of them pass do not deserve trust.

    for mutant in mutants(source_of_a_solution_cell): ...

Only the answer changes, which stands between BEGIN SOLUTION and END SOLUTION where a cell has these marks. Signatures,
annotations, docstrings and the texts of errors stay as they are.
"""

from __future__ import annotations

import ast
import builtins
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

COMPARISONS: Mapping[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: Mapping[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
NEGATED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # whose swap is their negation
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)  # a ∘ b is not b ∘ a
PAIRS = (
    "tril triu|max min|amax amin|argmax argmin|maximum minimum|ones zeros|ones_like zeros_like|sum mean|any all|"
    "sin cos|exp expm1|log log1p|sqrt rsqrt|softmax log_softmax|sigmoid tanh|relu gelu|silu gelu|var std|floor ceil|"
    "cat stack|cumsum cumprod|repeat repeat_interleave|rand randn|logical_and logical_or|bool float|float32 bfloat16"
)
RENAMED = {a: b for pair in PAIRS.split("|") for one, other in [pair.split()] for a, b in ((one, other), (other, one))}
IN_PLACE = {"add", "sub", "mul", "div", "masked_fill", "clamp", "exp", "tril", "triu", "scatter", "index_add"}
SYMMETRIC = {"transpose", "max", "min", "maximum", "minimum", "logical_and", "logical_or"}  # f(a, b) is f(b, a)
COUNTED = {"tril", "triu", "range", "arange"}  # one more or less of their last argument is the classic mistake
MAKERS = {"ones", "zeros", "full", "empty", "arange", "rand", "randn", "range", "len", "super"}  # f(a) has nothing of a
MODULES = {"torch", "F", "nn", "math", "np"}


@dataclass(frozen=True)
class Mutant:
    """A cell with one change. `before` and `after` are the lines that differ, as ast.unparse writes them."""

    line: int  # of the original cell
    before: str
    after: str
    occurrence: int  # 1, unless the same change could be made in an earlier place of the cell
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a cell, in the order of its lines; none is the cell itself, no two are the same."""
    tree = ast.parse(source)
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    kinds, stored = _kinds(tree), _first_lines(tree)
    original, regions = ast.unparse(tree), _regions(source)
    seen, times = {original}, Counter[tuple[str, str]]()
    found = []
    for node, line, put in _places(tree, 0, regions):
        known = [other for other in kinds.get(ast.unparse(node), []) if stored.get(other, 0) < line]
        for new in _changes(node, known, parameters):
            put(new)
            text = ast.unparse(tree)
            put(node)
            if text not in seen:
                seen.add(text)
                lines = _difference(original, text)
                times[lines] += 1
                found.append(Mutant(line, *lines, times[lines], text + "\n"))
    return sorted(found, key=lambda mutant: mutant.line)


def _regions(source: str) -> list[tuple[int, int]]:
    """First and last line of each answer; the whole cell if none is marked."""
    marks = [
        number for number, line in enumerate(source.splitlines(), 1) if re.match(r"\s*### (BEGIN|END) SOLUTION", line)
    ]
    return list(zip(marks[::2], marks[1::2], strict=True)) or [(1, source.count("\n") + 1)]


def _difference(one: str, other: str) -> tuple[str, str]:
    """The lines that differ, between the first and the last that do."""
    a, b = one.splitlines(), other.splitlines()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return "\n".join(line.strip() for line in a), "\n".join(line.strip() for line in b)


def _places(
    node: ast.AST, line: int, regions: list[tuple[int, int]]
) -> Iterator[tuple[Any, int, Callable[[Any], None]]]:
    """Each node that may change, its line, and a function that puts another in its place."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)  # a docstring
            if text or not isinstance(child, ast.AST) or isinstance(child, ast.arguments | ast.JoinedStr):
                continue
            line = getattr(child, "lineno", line)
            if any(first <= line and getattr(child, "end_lineno", line) <= last for first, last in regions):
                put = partial(value.__setitem__, i) if isinstance(value, list) else partial(setattr, node, field)
                yield child, line, put
            if not isinstance(child, ast.Raise):
                yield from _places(child, line, regions)


def _kinds(tree: ast.Module) -> dict[str, list[str]]:
    """For each variable those of the same kind: annotated alike, unpacked together, or results of the same function."""
    types = {node.arg: _type(node) for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation}
    groups: dict[object, list[str]] = {}
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            match node:
                case ast.arg(arg=name) if name in types:
                    groups.setdefault((function, types[name]), []).append(name)
                case ast.Assign(targets=[ast.Attribute() as target], value=ast.Name(id=name)) if name in types:
                    groups.setdefault((None, types[name]), []).append(ast.unparse(target))
                case (
                    ast.Assign(targets=[ast.Tuple(elts=elements)]) | ast.comprehension(target=ast.Tuple(elts=elements))
                ):
                    single = [element for element in elements if not isinstance(element, ast.Starred)]
                    groups.setdefault(node, []).extend(ast.unparse(element) for element in single)
                case ast.Assign(targets=[ast.Name() | ast.Attribute() as target], value=ast.Call(func=maker)):
                    place = function if isinstance(target, ast.Name) else None
                    groups.setdefault((place, ast.unparse(maker).rpartition(".")[2]), []).append(ast.unparse(target))
    kinds: dict[str, list[str]] = {}
    for group in groups.values():
        for name in group:
            kinds.setdefault(name, []).extend(other for other in group if other != name)
    return kinds


def _type(argument: ast.arg) -> str:
    """What an annotation says before its shape: Float of Float[Tensor, "n d"]."""
    return ast.unparse(argument.annotation or argument).partition("[")[0]


def _first_lines(tree: ast.Module) -> dict[str, int]:
    """Where each local variable is assigned for the first time, so that none is used before it is."""
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            lines[node.arg] = 0
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = min(node.lineno, lines.get(node.id, node.lineno))
    return lines


def _changes(node: Any, same_kind: list[str], parameters: set[str]) -> Iterator[ast.AST]:
    """What could stand in a node's place."""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield from (ast.parse(other, mode="eval").body for other in same_kind)
    match node:
        case ast.Constant(value=str(value)) if "->" in value:
            yield from (ast.Constant(pattern) for pattern in _patterns(value))
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(value=float(value)):
            yield from (ast.Constant(value * 10 or 1.0), ast.Constant(0.0))
        case ast.Compare(ops=operators):
            for i, operator in enumerate(operators):
                for other in COMPARISONS[type(operator)]:
                    yield _with(node, ops=[*operators[:i], other(), *operators[i + 1 :]])
        case ast.BinOp(left=left, op=operator, right=right):
            yield _with(node, op=OPERATORS[type(operator)]())
            yield from (left, right)
            if isinstance(operator, ORDERED):
                yield _with(node, left=right, right=left)
        case ast.BoolOp(op=operator, values=values):
            yield _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
            yield from values
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.IfExp(body=body, orelse=orelse):
            yield from (body, orelse)
        case ast.If(test=test):
            if not (isinstance(test, ast.Compare) and isinstance(test.ops[0], NEGATED)):
                yield _with(node, test=ast.UnaryOp(ast.Not(), test))
            yield from (_with(node, test=ast.Constant(value)) for value in (True, False))
        case ast.While(test=test):
            yield _with(node, test=ast.Constant(False))
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            yield from (_with(node, elts=swapped) for swapped in _swaps(elements))
        case ast.Slice():
            yield from (_with(node, **{end: None}) for end in ("lower", "upper", "step") if getattr(node, end))
        case ast.Subscript(value=value, ctx=ast.Load()) if not ast.unparse(value).endswith(".shape"):
            yield value
        case ast.Attribute(value=value, attr="T" | "mT"):
            yield value
        case ast.Attribute(attr="inf"):
            yield ast.Constant(1e9)
        case ast.Attribute(value=value, attr=name) if name in RENAMED:
            if ast.unparse(value) != "math" or hasattr(math, RENAMED[name]):
                yield _with(node, attr=RENAMED[name])
        case ast.Name(id=name, ctx=ast.Load()) if hasattr(builtins, RENAMED.get(name, "")):
            yield _with(node, id=RENAMED[name])
        case ast.Call():
            yield from _changed_calls(node, parameters)
        case ast.AugAssign(target=target, op=operator, value=value):
            yield _with(node, op=OPERATORS[type(operator)]())
            yield ast.copy_location(ast.Assign([target], value), node)
            yield ast.Pass()
        case ast.Assign(targets=[ast.Name(id=name) as target], value=value) if name in parameters:
            if isinstance(value, ast.BinOp) and ast.unparse(value.left) == name:
                yield ast.copy_location(ast.AugAssign(target, value.op, value.right), node)
            yield ast.Pass()
        case ast.Raise(exc=ast.Call() as error):
            yield _with(node, exc=_with(error, func=ast.Name("Exception")))
            yield ast.Pass()
        case (
            ast.Expr(value=ast.Call())
            | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
            | ast.For()
            | ast.Raise()
        ):
            yield ast.Pass()
        case ast.With(body=body):
            yield ast.copy_location(ast.If(ast.Constant(True), body, []), node)
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _changed_calls(call: ast.Call, parameters: set[str]) -> Iterator[ast.AST]:
    function, arguments, keywords = call.func, call.args, call.keywords
    name = ast.unparse(function).rpartition(".")[2]
    receiver = function.value if isinstance(function, ast.Attribute) else None
    method = receiver is not None and ast.unparse(receiver).partition(".")[0] not in MODULES | {"self"}
    if name not in SYMMETRIC:
        yield from (_with(call, args=swapped) for swapped in _swaps(arguments))
    if name in COUNTED:
        yield from (_with(call, args=new) for new in _counted(arguments, 0 if method or name.endswith("range") else 1))
    if len(arguments) > (0 if method else 1):
        yield _with(call, args=arguments[:-1])
    for i in range(len(keywords)):
        yield _with(call, keywords=[*keywords[:i], *keywords[i + 1 :]])
    if method and receiver is not None:
        yield receiver
        if name in IN_PLACE and ast.unparse(receiver) in parameters:
            yield _with(call, func=_with(function, attr=f"{name}_"))
        if name.endswith("_") and not name.startswith("_"):
            yield _with(call, func=_with(function, attr=name[:-1]))
    elif arguments and name not in MAKERS and (name == "Parameter" or not name[0].isupper()):
        yield arguments[0]


def _swaps(items: list[Any]) -> Iterator[list[Any]]:
    """The list with two neighbours swapped, for each two."""
    return ([*items[:i], items[i + 1], items[i], *items[i + 2 :]] for i in range(len(items) - 1))


def _counted(arguments: list[Any], before: int) -> Iterator[list[Any]]:
    """One more and one less of the argument that comes after `before` others; it is 0 where there is none."""
    for operator, number in ((ast.Add, "1"), (ast.Sub, "-1")):
        if len(arguments) <= before:
            yield [*arguments, ast.parse(number, mode="eval").body]
        elif not isinstance(arguments[-1], ast.Constant | ast.UnaryOp):  # numbers change by themselves
            yield [*arguments[:-1], ast.BinOp(arguments[-1], operator(), ast.Constant(1))]


def _patterns(pattern: str) -> Iterator[str]:
    """Patterns of einsum and einops with two axes exchanged: the last two of the result, or those in brackets."""
    into, arrow, out = pattern.rpartition("->")
    named = " " in out.strip()  # einops; einsum of PyTorch has one letter an axis
    axes = re.findall(r"\([^)]*\)|\w+|\.{3}" if named else r"\w|\.{3}", out)
    if len(axes) > 1:
        yield into + arrow + " " * named + (" " * named).join([*axes[:-2], axes[-1], axes[-2]])
    for group in re.finditer(r"\(([^)]+)\)", pattern):
        yield pattern[: group.start(1)] + " ".join(reversed(group[1].split())) + pattern[group.end(1) :]


def _with(node: ast.AST, **changes: Any) -> Any:
    """A copy of a node with some of its fields changed."""
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **changes}), node)
