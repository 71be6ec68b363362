"""Small decoders that learnt one kind of text and are then taught another, in every way that chapter 18 compares.

    from experiments import adapting
    model = adapting.base(config, seed)
    adapting.adapt(model, "LoRA 4")

Adapters, NF4 and the four-bit layer are the reference of chapter 18; positions are chapter 03's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from experiments import moe
from ichimon import corpus, train

TARGETS = ("qkv", "out", "up", "down")  # every linear layer of a block
HELD_OUT = 20_000  # tokens of the language reference, and of other modules, that nobody trains on
BASE = 250_000  # tokens of docstrings; those after them, in the order of paths, are of other modules

Kind = corpus.Kind | Literal["other"]


class FeedForward(nn.Module):
    """Two linear layers with names."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


def decoder(config: Mapping[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    width = config["d_model"]
    return moe.decoder(
        corpus.VOCABULARY,
        lambda: FeedForward(width),
        length=config["length"],
        d_model=width,
        n_layers=config["n_layers"],
    )


@cache
def text(kind: Kind, split: corpus.Split, tokens: int) -> np.ndarray:
    """The first ids of one kind of text, in the tokeniser of the documentation. "other": docstrings of other modules.

    The test split of the language reference is too small to measure on: the end of its training split stands in.
    """
    if kind == "other":
        ids = _ids("docstrings", "train", 10**9)[BASE:]
        cut = len(ids) - HELD_OUT
        return {"train": ids[: cut - 10_000], "validation": ids[cut - 10_000 : cut], "test": ids[cut:]}[split][:tokens]
    if kind == "topics" and split != "validation":
        ids = _ids("topics", "train", 10**9)
        return (ids[:-HELD_OUT] if split == "train" else ids[-HELD_OUT:])[:tokens]
    return _ids(kind, split, tokens)


def _ids(kind: corpus.Kind, split: corpus.Split, tokens: int) -> np.ndarray:
    bpe, ids = corpus.tokenizer(), []
    for part in corpus.texts((kind,), split):
        ids += [*bpe.encode(part.text[:20_000]).ids, 0]
        if len(ids) >= tokens:
            break
    return np.array(ids[:tokens], dtype=np.int64)


def base(config: Mapping[str, Any], seed: int) -> nn.Module:
    """A decoder that has learnt docstrings."""
    model = decoder(config, seed)
    steps = config["base_steps"]
    ids = text("docstrings", "train", config["base_tokens"])
    settings = train.Settings(
        steps=steps, lr=config["base_lr"], warmup=steps // 10, evaluate_every=steps, seed=seed, device="cpu"
    )
    train.fit(model, train.windows(ids, batch=16, length=config["length"], seed=seed), settings, quiet=True)
    return model


def adapt(model: nn.Module, way: str, seed: int = 0) -> None:
    """Make ready for training.

    way: "full", "layers" (those of the blocks, whole), "LoRA r", "LoRA r + embeddings" or "QLoRA r".
    The correction counts α / r = 2 times, whatever the rank.
    """
    torch.manual_seed(seed)
    lora = moe.reference("18-lora")
    kind, rank = (*way.split(), "0")[:2]
    if kind == "layers":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] in TARGETS)
    elif kind == "LoRA":
        lora.inject(model, TARGETS, int(rank), 2 * int(rank))
        model.get_submodule("tokens").requires_grad_("embeddings" in way)
    elif kind == "QLoRA":
        found = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        model.requires_grad_(False)
        for name in found:
            model.set_submodule(name, lora.QLoRALinear(model.get_submodule(name), int(rank), 2 * int(rank)))


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def bytes_held(model: nn.Module) -> int:
    """What training holds, activations aside: everything stored, and for what is trained a gradient and Adam's two."""
    stored = {
        value.data_ptr(): value.numel() * value.element_size() for value in [*model.parameters(), *model.buffers()]
    }
    return sum(stored.values()) + 3 * 4 * trained(model)


def loss(model: nn.Module, kind: Kind, split: corpus.Split, config: Mapping[str, Any]) -> float:
    """The mean loss on windows of one kind of text that were never trained on, in nats a token."""
    ids = text(kind, split, config["test_tokens"])
    return train.evaluate(
        model, train.windows(ids, batch=32, length=config["length"], seed=99), config["evaluate_batches"]
    )
