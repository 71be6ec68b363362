"""What the experiments of chapter 20 look at and listen to, and how they train on it.

Images are scikit-learn's digits, 1797 of 8 · 8 pixels. Sounds are vowels that are made on the spot: a buzz of harmonics
of a random pitch, louder near the formants of one of the five vowels of Japanese, with every formant a little off and
noise on top. Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ichimon import train

RATE = 8000
FORMANTS = {"a": (800, 1250), "i": (300, 2300), "u": (350, 1350), "e": (480, 1950), "o": (480, 850)}  # Hz, roughly

Labelled = tuple[Tensor, Tensor]


@cache
def digits() -> dict[str, Labelled]:
    """Images [n, 1, 8, 8] from −1 to 1 and their digits: 1000 to train, 297 to choose by, 500 to test, never mixed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = zip(("train", "validation", "test"), order.split([1000, 297, 500]), strict=True)
    return {name: (images[part], labels[part]) for name, part in parts}


def vowels(n: int, *, seed: int, samples: int = 1024) -> Labelled:
    """Sounds [n, samples] at 8 kHz and which vowel each is, 0 to 4."""
    generator = torch.Generator().manual_seed(seed)
    name = torch.randint(5, (n,), generator=generator)
    pitch = 90 + 160 * torch.rand(n, 1, generator=generator)
    harmonics = pitch * torch.arange(1, 42)
    formants = torch.tensor(list(FORMANTS.values()))[name] * (1 + 0.08 * torch.randn(n, 2, generator=generator))
    size = torch.stack([1 / (1 + ((harmonics - f) / 90) ** 2) for f in formants.T[..., None]]).sum(0)
    size = torch.where(harmonics < 3800, size, 0)
    turns = harmonics[..., None] * torch.arange(samples) / RATE + torch.rand(n, 41, 1, generator=generator)
    waves = (size[..., None] * torch.sin(2 * math.pi * turns)).sum(1)
    return waves / waves.std(-1, keepdim=True) + 0.3 * torch.randn(n, samples, generator=generator), name


def batches(data: Labelled, *, batch: int, seed: int) -> train.Batches:
    """Random draws from labelled data; the same step gives the same batch."""

    def draw(step: int) -> Labelled:
        rows = torch.randint(len(data[1]), (batch,), generator=torch.Generator().manual_seed(100_003 * seed + step))
        return data[0][rows], data[1][rows]

    return draw


def classify(model: nn.Module, batch: Labelled) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def fitted(model: nn.Module, data: Labelled, *, steps: int, lr: float, seed: int, batch: int = 64) -> nn.Module:
    """The model, trained on labelled data and in evaluation."""
    settings = train.Settings(
        steps=steps, lr=lr, warmup=steps // 10, evaluate_every=steps, seed=seed, device="cpu", weight_decay=0.05
    )
    train.fit(model, batches(data, batch=batch, seed=seed), settings, loss=classify, quiet=True)
    return model.eval()


def accuracy(model: nn.Module, data: Labelled) -> float:
    """The share of right answers."""
    with torch.no_grad():
        return (model(data[0]).argmax(-1) == data[1]).float().mean().item()


def best(tried: Mapping[str, float], otherwise: float) -> float:
    """The learning rate that was right most often, or `otherwise` where none was tried."""
    return float(max(tried, key=tried.__getitem__)) if tried else otherwise


def parameters(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def flops(model: nn.Module, x: Tensor) -> int:
    """Multiplications and additions for x, by PyTorch's counter.

    The counter knows the steps of attention and not its fused kernel, and PyTorch's encoder layer hides all of its own
    in evaluation: so it counts in training, with attention in steps.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.train()(x)
    return counter.get_total_flops()
