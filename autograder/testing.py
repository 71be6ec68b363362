"""What the hidden tests of several chapters need on their own, trusted side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from autograder.student import Remote, StudentError, tensor


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for every submission."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randomise(module: nn.Module, *, seed: int, std: float = 0.5) -> dict[str, Tensor]:
    """Draw every parameter and every floating-point buffer anew, gains and biases too, and return the state dict.

    Initial values hide mistakes: a gain of 1 that is never applied, a bias of 0 that is never added.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_floating_point():
                value.copy_(std * torch.randn(value.shape, generator=generator))
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def gradients(output: Tensor, upstream: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """The gradient of each input, or a sentence that none reaches it."""
    tensor(output, shape=upstream.shape, dtype=upstream.dtype)
    assert output.requires_grad, "No gradient flows through the result: something on the way was detached or rebuilt."
    found = torch.autograd.grad(output, list(inputs.values()), upstream, allow_unused=True)
    for name, grad in zip(inputs, found, strict=True):
        assert grad is not None, f"No gradient reaches {name}: something on the way was detached or rebuilt."
    return dict(zip(inputs, found, strict=True))


def first_difference(module: Remote, trace: Mapping[str, Tensor], run: Callable[[], object], atol: float = 1e-3) -> str:
    """Where a student's model first differs from the oracle, in a sentence; "" where nothing that was compared does.

    trace: the right output of each sub-layer by its name, in the order of computing. run: makes the student's model
    compute on the same input. A sub-layer that the model lacks, or that gives no tensor, is passed over.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in trace:
        if name:
            with contextlib.suppress(StudentError):
                part = module.get_submodule(name)
                if isinstance(part, Remote):
                    handles.append(part.register_forward_hook(partial(_note, found, name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    agreed = ""
    for name, right in trace.items():
        if name not in found:
            continue
        output = found[name]
        if output.shape != right.shape or not torch.allclose(output.float(), right.float(), atol, atol):
            before = f"; {agreed} before it agrees" if agreed else ""
            return f"The first sub-layer whose output differs is {name}{before}."
        agreed = name
    return ""


def _note(found: dict[str, Tensor], name: str, module: object, inputs: object, output: object) -> None:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, Tensor) and name not in found:
        found[name] = output.detach()
