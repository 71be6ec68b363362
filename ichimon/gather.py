"""A student's own parts, copied into the notebook of the last chapter: `python -m ichimon gather`.

From each earlier notebook it takes what a part is made of: the statements that define it, and those that define what
they use, in their order. They stand as text in one cell below the set-up, where each chapter runs in a room of its
own, for the chapters use the same names for different things. So the parts travel with the notebook, to the grader as
well, and can be read where they are used. Nothing else in the notebook is touched.

It runs the parts in this process, to see whether they work: use it on your own notebooks.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ichimon import notebook
from ichimon.notebook import Cell, NotebookError
from ichimon.parts import NotYet, find

if TYPE_CHECKING:
    from torch import Tensor, nn

CAPSTONE = "23-your-own-model"
CELL = "gathered"  # the id of the cell that is written, and by which it is found again
TITLE = "# Your own parts, copied from your notebooks by `python -m ichimon gather`. Mend them there and gather again:"
ORIGIN = {  # the name in the box: the chapter, and what is called so there
    "attention": ("02-self-attention", "attention"),
    "rope": ("03-position", "rope"),
    "feed_forward": ("04-feed-forward", "SwiGLU"),
    "norm": ("05-normalisation", "RMSNorm"),
    "learning_rate": ("06-gpt", "learning_rate"),
    "cache": ("07-kv-cache", "KVCache"),
    "chunk_mask": ("07-kv-cache", "chunk_mask"),
    "sample": ("07-kv-cache", "sample"),
    "repeat_kv": ("09-grouped-queries", "repeat_kv"),
    "experts": ("13-router", "MoELayer"),
    "lora": ("18-lora", "LoRALinear"),
    "nf4_quantize": ("18-lora", "nf4_quantize"),
    "nf4_dequantize": ("18-lora", "nf4_dequantize"),
}


@dataclass(frozen=True)
class Part:
    """What became of one part, in a word and in a sentence."""

    name: str
    state: Literal["yours", "differs", "missing"]
    sentence: str


def gather(path: Path | str) -> list[Part]:
    """Put the parts that can be found into the notebook at `path`, and say of each what became of it.

    Raises NotebookError where `path` is not the notebook of the last chapter.
    """
    path = Path(path)
    set_up = _set_up(path)
    found: list[Part] = []
    sources: dict[str, str] = {}
    kept: dict[str, str] = {}
    for chapter in dict.fromkeys(chapter for chapter, _ in ORIGIN.values()):
        wanted = {field: name for field, (of, name) in ORIGIN.items() if of == chapter}
        try:
            statements = _statements(find(chapter))
        except (NotYet, NotebookError) as error:
            found += [Part(field, "missing", f"{error} PyTorch's own stands in.") for field in wanted]
            continue
        for field, name in wanted.items():
            part = _judge(set_up, field, chapter, name, statements)
            found.append(part)
            if part.state != "missing":
                kept[field] = chapter
        names = [name for field, name in wanted.items() if field in kept]
        if names:
            sources[chapter] = _source(statements, names)
    _write(path, _cell(sources, kept) if kept else "")
    return found


def _judge(set_up: ModuleType, field: str, chapter: str, name: str, statements: Sequence[_Statement]) -> Part:
    """Whether a part is there, runs, and gives what PyTorch's own gives."""
    place = f"{name} of chapter {chapter[:2]}"
    if not any(name in statement.binds for statement in statements):
        return Part(field, "missing", f"{place} is not in your notebook. PyTorch's own stands in.")
    try:
        own = getattr(set_up.own(chapter, _source(statements, [name])), name)
        ours = PROBES[field](own)
    except NotImplementedError:
        return Part(field, "missing", f"{place} is still to be written. PyTorch's own stands in.")
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return Part(field, "missing", f"{place} cannot be used: it raises {what}. PyTorch's own stands in.")
    if not _alike(ours, PROBES[field](getattr(set_up.Parts(), field))):
        return Part(
            field,
            "differs",
            f"{place} gives something else than PyTorch's own. It is gathered, as it is: mend it in its notebook, "
            f"and gather again.",
        )
    return Part(field, "yours", f"{place}")


# -- what a part is made of -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Statement:
    """A statement of a notebook: its text, the names that it binds, and those that it uses."""

    text: str
    binds: frozenset[str]
    uses: frozenset[str]


def _statements(path: Path) -> list[_Statement]:
    """The statements of a notebook's set-up, of its answers, and of the cells that the student added."""
    found = []
    for position, cell in enumerate(notebook.cells(path), start=1):
        if cell.kind != "code" or cell.role not in ("set-up", "solution", "other") or cell.id == CELL:
            continue
        source, _ = notebook.blank_magics(cell.source)
        try:
            body = ast.parse(source).body
        except (SyntaxError, ValueError, RecursionError) as error:
            raise NotebookError(f"{path.name}, {cell.label(position)}, is no Python yet: {error}.") from None
        lines = source.split("\n")
        for node in body:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            names = {part.id: type(part.ctx) for part in ast.walk(node) if isinstance(part, ast.Name)}
            text = "\n".join(lines[first - 1 : node.end_lineno])
            found.append(_Statement(text, frozenset(_bound(node)), frozenset(names)))
    return found


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names of the notebook that a statement binds or changes. One that only shows something binds none."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield (alias.asname or alias.name).split(".")[0]
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            while isinstance(target, ast.Attribute | ast.Subscript):  # KVCache.update = … changes KVCache
                target = target.value
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
    elif isinstance(node, ast.If | ast.Try | ast.With):
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.stmt):
                yield from _bound(part)
            elif isinstance(part, ast.ExceptHandler):
                for inner in part.body:
                    yield from _bound(inner)


def _source(statements: Sequence[_Statement], names: Sequence[str]) -> str:
    """The statements that define these names, and all that those use, in the order of the notebook."""
    known, waiting = set(names), list(names)
    chosen: set[int] = set()
    while waiting:
        name = waiting.pop()
        for i, statement in enumerate(statements):
            if name in statement.binds and i not in chosen:
                chosen.add(i)
                new = (statement.uses | statement.binds) - known
                known |= new
                waiting += new
    first = [statement.text for statement in statements if statement.text.startswith("from __future__")]
    texts = [statements[i].text for i in sorted(chosen)]
    source = "\n".join([*dict.fromkeys(first), *(text for text in texts if text not in first)]) + "\n"
    return re.sub(r"\n(?=(?:@|def |async def |class ))", "\n\n\n", source).replace("\n\n\n\n", "\n\n\n")


# -- whether it works -------------------------------------------------------------------------------------------------


def _normal(*shape: int, seed: int = 0) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _filled(module: nn.Module) -> nn.Module:
    """The module with every parameter drawn anew, the same way for the same names."""
    import torch

    with torch.no_grad():
        for i, (_, value) in enumerate(sorted(module.named_parameters())):
            value.copy_(0.3 * _normal(*value.shape, seed=i) + (value.dim() == 1))
    return module


def _module(module: nn.Module) -> list[Any]:
    return [sorted(name for name, _ in module.named_parameters()), _filled(module)(_normal(2, 3, 6, seed=9))]


def _attention(part: Callable[..., Any]) -> Any:
    import torch

    q, k, v = (_normal(2, 3, n, 4, seed=n) for n in (4, 5, 5))
    return part(q, k, v, torch.ones(4, 5, dtype=torch.bool).tril(1))


def _rope(part: Callable[..., Any]) -> Any:
    import torch

    return part(_normal(2, 3, 5, 8), torch.arange(2, 7), 100.0)


def _cache(part: Callable[..., Any]) -> list[Any]:
    cache, seen = part(), []
    for n in (3, 1):
        for layer in (0, 1):
            seen += cache.update(layer, _normal(2, 2, n, 4, seed=layer), _normal(2, 2, n, 4, seed=5 + layer))
        seen.append(cache.length)
    return seen


def _lora(part: Callable[..., Any]) -> list[Any]:
    import torch

    linear = torch.nn.Linear(6, 5)
    x = _normal(2, 6)
    whole = _filled(linear)(x)
    adapted = part(linear, 2, 3.0)
    at_first = adapted(x) - whole
    learning = sorted(name for name, p in adapted.named_parameters() if p.requires_grad)
    return [learning, at_first, _filled(adapted)(x)]


def _sample(part: Callable[..., Any]) -> list[Any]:
    logits, u = _normal(4, 9), _normal(4, seed=1).sigmoid()
    return [part(logits, u, heat) for heat in (0.0, 0.7, 1.5)]


def _nf4_dequantize(part: Callable[..., Any]) -> Any:
    import torch

    packed = torch.randint(256, (40,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return part(packed, _normal(2).abs(), (8, 10), 64)


def _rates(part: Callable[..., Any]) -> list[Any]:
    return [float(part(step, peak=2.0, warmup=3, steps=9, final=0.2)) for step in range(9)]


PROBES: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "attention": _attention,
    "rope": _rope,
    "feed_forward": lambda part: _module(part(6, 10)),
    "norm": lambda part: _module(part(6)),
    "learning_rate": _rates,
    "cache": _cache,
    "chunk_mask": lambda part: [part(3, 5), part(1, 4), part(2, 2)],
    "sample": _sample,
    "repeat_kv": lambda part: part(_normal(2, 3, 5, 4), 2),
    "experts": lambda part: _module(part(6, 10, 4, 2)),
    "lora": _lora,
    "nf4_quantize": lambda part: list(part(_normal(9, 11), 64)),
    "nf4_dequantize": _nf4_dequantize,
}


def _alike(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same_kind = one.shape == other.shape and one.dtype == other.dtype
        return same_kind and bool(torch.allclose(one.double(), other.double(), 1e-4, 1e-4))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-6
    return type(one) is type(other) and bool(one == other)


# -- the notebook -----------------------------------------------------------------------------------------------------


def _set_up(path: Path) -> ModuleType:
    """What the notebook's set-up cell defines: PyTorch's own parts, and the room that a chapter runs in."""
    cells = notebook.cells(path)
    cell: Cell | None = next((cell for cell in cells if cell.role == "set-up"), None)
    if path.suffix.lower() != ".ipynb" or cell is None or "class Parts" not in cell.source:
        raise NotebookError(
            f"{path.name} is not the notebook of chapter {CAPSTONE}: give that one, or get a fresh copy of it."
        )
    module = sys.modules["ichimon_capstone"] = ModuleType("ichimon_capstone")  # dataclasses look it up
    notebook.run(cell, vars(module), f"{path.name}, set-up")
    unknown = {field.name for field in fields(module.Parts)} ^ set(ORIGIN)
    if unknown:
        raise NotebookError(f"{path.name} is of another version of the course: it has other parts.")
    return module


def _cell(sources: dict[str, str], kept: dict[str, str]) -> str:
    """The cell's text: each chapter in a room of its own, and the box."""
    lines = [
        TITLE,
        "# what you change here is lost.",
    ]
    for chapter, source in sources.items():
        literal = f"r'''\n{source}'''" if "'''" not in source else repr(source)
        lines += ["", f'own_{chapter[:2]} = own("{chapter}", {literal})']
    lines += ["", "PARTS = Parts("]
    lines += [f"    {field}=own_{chapter[:2]}.{ORIGIN[field][1]}," for field, chapter in kept.items()]
    return "\n".join([*lines, ")"])


def _write(path: Path, source: str) -> None:
    """Put the cell below the set-up, in the place of the one that was there; without a source, take that away."""
    document = json.loads(path.read_text(encoding="utf-8-sig"))
    cells = [cell for cell in document["cells"] if not _is_gathered(cell)]
    place = next(i for i, cell in enumerate(cells) if _is_set_up(cell)) + 1
    if source:
        new: dict[str, Any] = {"cell_type": "code", "execution_count": None, "id": CELL, "metadata": {}, "outputs": []}
        cells.insert(place, {**new, "source": source.splitlines(keepends=True)})
    document["cells"] = cells
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def _is_gathered(cell: dict[str, Any]) -> bool:
    """Some editors drop ids: then its first line tells."""
    return cell.get("id") == CELL or "".join(cell.get("source", "")).startswith(TITLE)


def _is_set_up(cell: dict[str, Any]) -> bool:
    metadata = cell.get("metadata", {})
    ids = (cell.get("id"), metadata.get("nbgrader", {}).get("grade_id"), metadata.get("ichimon", {}).get("id"))
    return "set-up" in ids
