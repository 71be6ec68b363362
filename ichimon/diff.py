"""Two models that should be the same are not: where do they part?

    from ichimon.diff import diff
    print(diff(mine, theirs, tokens, names={"blocks.0.attention": "transformer.h.0.attn"}))

Both run on the same input while every sub-layer's output is noted. The first one, in the order of computing, whose
outputs differ is where to look: everything before it agrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Difference:
    """The first sub-layer where two models part. `agreed` are those before it, in the order of computing."""

    name: str
    other_name: str
    largest: float  # absolute difference of the outputs; inf where shapes differ or one is NaN
    shape: tuple[int, ...]
    other_shape: tuple[int, ...]
    agreed: tuple[str, ...]

    def __str__(self) -> str:
        name = self.name or "the model's own output"
        also = f" ({self.other_name} in the other)" if self.other_name != self.name else ""
        what = f"the outputs differ by up to {self.largest:.2g}"
        if self.shape != self.other_shape:
            what = f"the shapes are {self.shape} and {self.other_shape}"
        before = "it is the first sub-layer that was compared"
        if self.agreed:
            before = f"{len(self.agreed)} before it agree, the last of them {self.agreed[-1]}"
        return f"They part at {name}{also}: {what}; {before}."


def diff(
    a: nn.Module,
    b: nn.Module,
    *inputs: Any,
    names: Mapping[str, str] | None = None,
    atol: float = 1e-4,
    **keywords: Any,
) -> Difference | None:
    """The first sub-layer where `a` and `b` part on this input, or None where all that was compared agrees.

    Sub-layers are compared by name; `names` says which of `b` belongs to which of `a` where they are called otherwise
    ("" is the whole model). Raises ValueError where no name is common, or `names` has one that a model does not have.
    """
    ours, theirs = dict(a.named_modules()), dict(b.named_modules())
    pairs = dict(names) if names is not None else {name: name for name in ours if name in theirs}
    pairs.setdefault("", "")
    for name, other in pairs.items():
        for known, wanted, which in ((ours, name, "first"), (theirs, other, "second")):
            if wanted not in known:
                raise ValueError(f"The {which} model has no sub-layer {wanted!r}.")
    if len(pairs) == 1 and len(ours) > 1:
        raise ValueError("The two models have no sub-layer of the same name: say with `names` which belong together.")
    with torch.no_grad():
        first = _outputs(a, list(pairs), inputs, keywords)
        second = _outputs(b, list(pairs.values()), inputs, keywords)
    agreed: list[str] = []
    for (name, call), output in first.items():
        other = second.get((pairs[name], call))
        if other is None:
            continue  # the other model did not call it
        largest = _largest(output, other)
        if largest > atol:
            return Difference(name, pairs[name], largest, tuple(output.shape), tuple(other.shape), tuple(agreed))
        agreed.append(name)
    return None


def _largest(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    largest = (a.double() - b.double()).abs().max().item()
    return largest if largest == largest else float("inf")


def _outputs(model: nn.Module, names: list[str], inputs: Any, keywords: Any) -> dict[tuple[str, int], Tensor]:
    """The outputs of these sub-layers in the order in which they were finished; a shared one has several."""
    modules = dict(model.named_modules())
    found: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_noted(modules[name], name, found))
        model(*inputs, **keywords)
    return found


@contextmanager
def _noted(module: nn.Module, name: str, found: dict[tuple[str, int], Tensor]) -> Iterator[None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = _tensor(output)
        if tensor is not None:
            call = sum(known == name for known, _ in found)
            found[name, call] = tensor.detach().clone()

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any) -> Tensor | None:
    """The tensor that a sub-layer's output is, or is first in it."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, list | tuple | dict):
        values = output.values() if isinstance(output, dict) else output
        return next((found for value in values if (found := _tensor(value)) is not None), None)
    return None
