"""The decoder with experts of `experiments.moe`, balanced by what students build in chapter 14.

from experiments.balanced import Balanced, learn, load_by_layer
model = learn(lambda: Balanced(64, 64, n_experts=8, top_k=2, bias_rate=0.01), config, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from experiments.decoder import Decoder
from experiments.moe import MoE, decoder, layers, reference, tell
from ichimon import corpus, train
from ichimon.measure import Config

CHAPTER = "14-balance"


class Balanced(MoE):
    """A learned router with chapter 14's bias (where `bias_rate` is above 0) and capacity (where it is given one).

    `gate`, where it is set, chooses in the router's place: it takes the logits and returns weights and experts.
    """

    def __init__(self, *args: Any, capacity_factor: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.capacity_factor = capacity_factor
        self.gate: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self.kept: Tensor | None = None

    def choose(
        self, tokens: Float[Tensor, "tokens d_model"]
    ) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
        if self.routing != "learned":
            return super().choose(tokens)
        self.logits = self.router(tokens)
        if self.gate:
            weights, experts = self.gate(self.logits)
        elif self.bias_rate:
            weights, experts = reference(CHAPTER).route_with_bias(self.logits, self.bias, self.top_k)
            if self.training:
                self.bias = reference(CHAPTER).bias_update(self.bias, experts, self.bias_rate)
        else:
            weights, experts = reference("13-router").route(self.logits, self.top_k)
        self.kept = torch.ones_like(experts, dtype=torch.bool)
        if self.capacity_factor:
            weights, self.kept = reference(CHAPTER).with_capacity(
                weights, experts, self.n_experts, self.capacity_factor
            )
        return weights, experts


def balanced(model: nn.Module) -> list[Balanced]:
    return [module for module in model.modules() if isinstance(module, Balanced)]


def objective(balance: float = 0.0, z: float = 0.0) -> train.Loss:
    """The next token's loss and, while training, chapter 14's losses of every layer, each times its coefficient."""

    def of(model: nn.Module, batch: Tensor) -> Tensor:
        tell(model, batch[:, :-1])
        value = train.next_token(model, batch)
        for layer in layers(model) if model.training else []:
            if layer.logits is not None and balance:
                value = value + balance * reference(CHAPTER).load_balancing_loss(layer.logits, layer.top_k)
            if layer.logits is not None and z:
                value = value + z * reference(CHAPTER).router_z_loss(layer.logits)
        return value

    return of


def text(split: corpus.Split, config: Config, *, batch: int, seed: int = 0) -> train.Batches:
    return train.windows(corpus.tokens(corpus.PROSE, split), batch=batch, length=config["length"], seed=seed)


def learn(
    layer: Callable[[], nn.Module],
    config: Config,
    seed: int,
    *,
    lr: float | None = None,
    loss: train.Loss | None = None,
) -> Decoder:
    """A decoder whose feed-forwards `layer` makes, trained."""
    torch.manual_seed(seed)
    model = decoder(
        corpus.VOCABULARY, layer, length=config["length"], d_model=config["d_model"], n_layers=config["n_layers"]
    )
    with torch.no_grad():
        model.tokens.weight.mul_(config["embedding_scale"])  # the runs are short, and all models learn faster so
    refit(model, config, seed, steps=config["steps"], lr=lr or config["learning_rate"], loss=loss)
    return model


def refit(
    model: nn.Module, config: Config, seed: int, *, steps: int, lr: float, loss: train.Loss | None = None
) -> None:
    """Train on the training text what is not frozen."""
    settings = train.Settings(steps=steps, lr=lr, warmup=steps // 10, evaluate_every=steps, seed=seed, device="cpu")
    batches = text("train", config, batch=config["batch"], seed=seed)
    train.fit(model, batches, settings, quiet=True, loss=loss or objective())


def held_out_loss(model: nn.Module, config: Config, split: corpus.Split = "test") -> float:
    return train.evaluate(model, text(split, config, batch=32), config["test_batches"], objective())


@torch.no_grad()
def load_by_layer(model: nn.Module, config: Config) -> list[list[float]]:
    """Each expert's share of the routings of test text, layer by layer, in the order of the experts."""
    model.eval()
    count = [torch.zeros(layer.n_experts) for layer in layers(model)]
    batches = text("test", config, batch=32)
    for step in range(config["test_batches"]):
        ids = batches(step)[:, :-1]
        tell(model, ids)
        model(ids)
        for total, layer in zip(count, layers(model), strict=True):
            assert layer.experts is not None, "every token has passed every layer"
            total += torch.bincount(layer.experts.flatten(), minlength=layer.n_experts)
    return [(total / total.sum()).tolist() for total in count]


def effective(shares: list[float]) -> float:
    """How many experts do the work: e to the power of the entropy of their shares; 1 if one does all."""
    share = torch.tensor(shares, dtype=torch.float64)
    return float(torch.special.entr(share).sum().exp())
