"""How well do `rank` mixtures of the positions stand in for all of them, in trained attention and in random attention?

Linformer (Wang et al. 2020, arXiv:2006.04768) rests on the observation that attention matrices are nearly of low rank.
We train a small encoder to fill in masked bytes of the documentation that every Python carries, with plain attention,
and take the queries, keys and values of its layers on texts of n bytes. Then E and F of the reference's layer are
fitted to plain attention by gradient descent on training texts, for each layer by itself, its heads sharing them. They
begin as means over stretches of the text. The error is taken on texts that neither the encoder nor the fit has seen.

An answer that ignores the queries, and gives every position the mean of all values, is the yardstick: the error is the
norm of the difference from plain attention, divided by that of this answer. So 1 means that the mixtures are worth
nothing, and 0 that they are exact. *Random* attention has keys, queries and values that are normal numbers, scaled so
that the scores of each head spread as they do in the trained one.

Beside it stands a limit that needs no fit: what the best matrix of that rank, chosen anew for each attention matrix,
misses of it (by its singular values, relative to its norm). And one matrix by pencil and paper: attention of each
position to the one before it. All its singular values are 1, so a rank of k misses √(1 − k/n) of it, whoever chooses.

A trained encoder is one seed. The learning rate is the best of those tried on validation data, on a seed of its own.
In a pilot on the tuning seed errors were relative to the output itself, and layers whose values share a large mean
looked easy; hence the yardstick.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

MASK = 256  # the ids below it are bytes
HIDDEN = 0.15  # the share of tokens to be guessed


class Both(nn.Module):
    """Self-attention in both directions that keeps what it computed last."""

    def __init__(self, d_model: int, n_heads: int, rotate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.n_heads, self.rotate = n_heads, rotate
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        q, k = self.rotate(q), self.rotate(k)
        self.last = q.detach(), k.detach(), v.detach()
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def encoder(config: Config, seed: int) -> Decoder:
    torch.manual_seed(seed)
    sizes = {name: config[name] for name in ("d_model", "n_layers", "n_heads")}
    model = Decoder(MASK + 1, **sizes)
    rotate = load(ROOT / "solutions/03-position.py").rope
    for block in model.blocks:
        block.sublayers[0] = Both(config["d_model"], config["n_heads"], lambda x: rotate(x, torch.arange(x.shape[2])))
        for weight in block.sublayers[0].parameters():
            nn.init.normal_(weight, std=0.02)
    return model


def fill_in(model: nn.Module, batch: Tensor) -> Tensor:
    """The loss of guessing hidden tokens; which are hidden depends on the batch alone."""
    ids = batch[:, :-1]
    generator = torch.Generator().manual_seed(int(ids.sum()))
    hidden = torch.rand(ids.shape, generator=generator) < HIDDEN
    return cross_entropy(model(ids.masked_fill(hidden, MASK))[hidden], ids[hidden])


@cache
def read(split: corpus.Split) -> np.ndarray:
    """The bytes of all texts of a split."""
    return np.frombuffer("".join(text.text for text in corpus.texts(corpus.PROSE, split)).encode(), np.uint8).astype(
        int
    )


def windows(split: corpus.Split, config: Config, batch: int, seed: int) -> train.Batches:
    return train.windows(read(split), batch=batch, length=config["n"], seed=seed)


def trained(config: Config, lr: float, seed: int, steps: int) -> tuple[Decoder, float]:
    """An encoder and its loss on validation data."""
    model = encoder(config, seed)
    settings = train.Settings(steps=steps, lr=lr, warmup=steps // 10, seed=seed, device="cpu", precision="fp32")
    train.fit(model, windows("train", config, config["batch"], seed), settings, loss=fill_in, quiet=True)
    return model, train.evaluate(model, windows("validation", config, 16, 7), 4, fill_in)


@torch.no_grad()
def inside(model: Decoder, split: str, config: Config, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values of each layer on some texts."""
    model(windows(split, config, config["texts"], 1000 + seed)(0)[:, :-1])
    return [block.sublayers[0].last for block in model.blocks]


def like(layer: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Normal numbers whose scores spread as those of this layer do, head by head."""
    q, k, v = (torch.randn(part.shape, generator=generator) for part in layer)
    spread = (layer[0] @ layer[1].mT).std((0, 2, 3), keepdim=True) / (q @ k.mT).std((0, 2, 3), keepdim=True)
    return q * spread, k, v


def pooled(parts: Any, rank: int, n: int) -> nn.Module:
    """A layer of the reference whose E and F begin as means over stretches of the text; at rank n as nothing at all."""
    layer = parts.LinformerAttention(4, 1, n, rank)
    with torch.no_grad():
        for matrix in (layer.e_proj.weight, layer.f_proj.weight):
            matrix.copy_(torch.repeat_interleave(torch.eye(rank), n // rank, 1) * rank / n)
    return layer


def over_mean(found: Tensor, exact: Tensor, v: Tensor) -> Tensor:
    """The error, where that of the mean of all values is 1."""
    return (found - exact).norm() / (v.mean(2, keepdim=True) - exact).norm()


def fitted(
    parts: Any,
    rank: int,
    fit: tuple[Tensor, Tensor, Tensor],
    test: tuple[Tensor, Tensor, Tensor],
    config: Config,
) -> float:
    """The error on test texts of E and F that were fitted to other texts."""
    layer = pooled(parts, rank, config["n"])
    e, f = layer.e_proj.weight, layer.f_proj.weight
    optimiser = torch.optim.Adam([e, f], lr=config["fit_lr"])
    exact = scaled_dot_product_attention(*fit)
    for step in range(config["fit_steps"]):
        part = slice(step % 4, None, 4)  # a quarter of the texts at a time
        q, k, v = (whole[part] for whole in fit)
        error = over_mean(scaled_dot_product_attention(q, e @ k, f @ v), exact[part], v)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    with torch.no_grad():
        q, k, v = test
        found, exact = scaled_dot_product_attention(q, e @ k, f @ v), scaled_dot_product_attention(q, k, v)
        return over_mean(found, exact, v).item()


@torch.no_grad()
def best_possible(layer: tuple[Tensor, Tensor, Tensor], ranks: Sequence[int]) -> list[float]:
    """What the best matrix of each rank misses of the attention matrices, relative to their norm."""
    q, k, _ = (part[:4] for part in layer)
    squares = torch.linalg.svdvals((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)).pow(2)
    return [(squares[..., rank:].sum() / squares.sum()).sqrt().item() for rank in ranks]


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/10-long-context.py")
    ranks, n = config["ranks"], config["n"]
    trials = []
    for lr in config["learning_rates"]:
        _, loss = trained(config, lr, config["tuning_seed"], config["tuning_steps"])
        trials.append({"learning_rate": lr, "loss": loss})
    lr = min(trials, key=lambda trial: trial["loss"])["learning_rate"]
    errors: dict[str, list[list[float]]] = {"trained": [], "random": []}
    limits: dict[str, list[list[float]]] = {"trained": [], "random": []}
    losses, before = [], []
    for seed in seeds:
        model, loss = trained(config, lr, seed, config["steps"])
        losses.append(loss)
        before.append(train.evaluate(encoder(config, seed), windows("validation", config, 16, 7), 4, fill_in))
        fit, test = inside(model, "train", config, seed), inside(model, "test", config, seed)
        generator = torch.Generator().manual_seed(seed)
        pairs = {
            "trained": list(zip(fit, test, strict=True)),
            "random": [(like(a, generator), like(b, generator)) for a, b in zip(fit, test, strict=True)],
        }
        for kind, layers in pairs.items():
            by_rank = [[fitted(parts, rank, a, b, config) for a, b in layers] for rank in ranks]
            errors[kind].append([sum(row) / len(row) for row in by_rank])
            svd = [best_possible(b, ranks) for _, b in layers]
            limits[kind].append([sum(row) / len(row) for row in zip(*svd, strict=True)])
    return {
        "n": n,
        "ranks": ranks,
        "error": {kind: [estimate(v) for v in zip(*rows, strict=True)] for kind, rows in errors.items()},
        "limit": {kind: [estimate(v) for v in zip(*rows, strict=True)] for kind, rows in limits.items()},
        "previous": [(1 - rank / n) ** 0.5 for rank in ranks],
        "trained_minus_random": [
            paired(*pair)
            for pair in zip(zip(*errors["trained"], strict=True), zip(*errors["random"], strict=True), strict=True)
        ],
        "validation_loss": estimate(losses),
        "validation_loss_untrained": estimate(before),
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    means = [row["mean"] for row in found["error"]["trained"]]
    falling = all(later < earlier for earlier, later in zip(means, means[1:], strict=False))
    lower = [row["high"] < 0 for row in found["trained_minus_random"]]
    if falling and all(lower) and found["error"]["trained"][-1]["low"] > 0.25:
        return "strong"
    return "weak" if means[-1] < means[0] and found["trained_minus_random"][-1]["mean"] < 0 else "null"


EXPERIMENT = Experiment(
    name="c10_linformer_error",
    claim=(
        "More mixtures are better, and trained attention is easier to summarise than random attention whose scores "
        "spread as much, at every rank. But half as many mixtures as positions still miss more than a quarter of what "
        "attention adds to the mean of the values."
    ),
    run=run,
    verdict=verdict,
    config={
        "n": 64,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 2,
        "batch": 16,
        "steps": 400,
        "learning_rates": [0.003, 0.01],
        "tuning_seed": 100,
        "tuning_steps": 100,
        "texts": 24,
        "ranks": [2, 4, 8, 16, 32],
        "fit_steps": 80,
        "fit_lr": 0.003,
    },
    reduced={"ranks": [2, 32], "steps": 60, "learning_rates": [0.01], "tuning_steps": 1, "fit_steps": 40},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
