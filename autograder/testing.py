"""What the hidden tests of several chapters need on their own, trusted side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autograder.student import tensor


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
