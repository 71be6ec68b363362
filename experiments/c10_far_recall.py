"""Does a model with a small window learn to use what lies beyond it?

That L layers of a window W *can* reach L(W − 1) positions back says nothing of what training makes of it. So here is a
text of random filler with one fact in it, a token that is one of 16, and a question at its end: what was the fact? It
lies 1 to `longest` positions before the question. Nothing else can help, so where the fact is out of reach the
accuracy must be chance, 1 in 16; within the first window one look suffices; in between the fact must be handed on from
layer to layer.

Compared: a decoder whose layers see everything before them, and the same with a window in every layer (the reference's
sliding_window_mask). Both train on the same mixture of distances, for the same number of steps. The learning rate of
each is the best of those tried, by loss on validation data, on a seed of its own. Accuracy is on fresh texts of one
distance. The number of steps comes from a pilot run on the tuning seed's neighbour.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.decoder import Attention, Decoder
from ichimon import train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

FACTS, FILLERS = 16, 8
QUESTION = FACTS + FILLERS


def texts(config: Config, batch: int, generator: torch.Generator, distance: int | None = None) -> Tensor:
    """Filler with one fact and the question at the end, then the fact again as the answer: [batch, length + 1]."""
    length = config["longest"] + 1
    ids = torch.randint(FACTS, QUESTION, (batch, length + 1), generator=generator)
    back = torch.randint(1, length, (batch,), generator=generator)
    back = back if distance is None else torch.full_like(back, distance)
    fact = torch.randint(FACTS, (batch,), generator=generator)
    ids[torch.arange(batch), length - 1 - back] = fact
    ids[:, -2], ids[:, -1] = QUESTION, fact
    return ids


def answer_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return cross_entropy(model(batch[:, :-1])[:, -1], batch[:, -1])


def model_of(parts: Any, kind: str, config: Config, seed: int) -> Decoder:
    torch.manual_seed(seed)
    sizes = {name: config[name] for name in ("d_model", "n_layers", "n_heads")}
    model = Decoder(QUESTION + 1, **sizes)
    for module in model.modules():
        if kind == "window" and isinstance(module, Attention):
            module.bias = partial(window_bias, parts, config["window"])
    return model


def window_bias(parts: Any, window: int, n: int) -> Tensor:
    return torch.zeros(n, n).masked_fill(~parts.sliding_window_mask(n, n, window), -torch.inf)


def trained(parts: Any, kind: str, config: Config, lr: float, seed: int, steps: int) -> tuple[Decoder, float]:
    """A model and its loss on validation data."""
    model = model_of(parts, kind, config, seed)

    def batches(step: int, first: int = 0) -> Tensor:
        return texts(config, config["batch"], torch.Generator().manual_seed(first + 100_000 * seed + step))

    settings = train.Settings(steps=steps, lr=lr, warmup=steps // 10, seed=seed, device="cpu", precision="fp32")
    train.fit(model, batches, settings, loss=answer_loss, quiet=True)
    return model, train.evaluate(model, partial(batches, first=50_000), 8, answer_loss)


@torch.no_grad()
def accuracy(model: Decoder, distance: int, config: Config, seed: int) -> float:
    generator = torch.Generator().manual_seed(9_000_000 + 1000 * seed + distance)
    batch = texts(config, config["n_test"], generator, distance)
    return (model(batch[:, :-1])[:, -1].argmax(-1) == batch[:, -1]).float().mean().item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/10-long-context.py")
    window, n_layers = config["window"], config["n_layers"]
    trials, found = [], {}
    for kind in ("full", "window"):
        tried = []
        for lr in config["learning_rates"]:
            _, loss = trained(parts, kind, config, lr, config["tuning_seed"], config["tuning_steps"])
            tried.append({"model": kind, "learning_rate": lr, "loss": loss})
        trials += tried
        lr = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        rows = []
        for seed in seeds:
            model, _ = trained(parts, kind, config, lr, seed, config["steps"])
            rows.append([accuracy(model, distance, config, seed) for distance in config["distances"]])
        found[kind] = [estimate(values) for values in zip(*rows, strict=True)]
    return {
        "distances": config["distances"],
        "chance": 1 / FACTS,
        "in_one_window": window - 1,
        "reach": n_layers * (window - 1),
        "accuracy": found,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    by = {kind: dict(zip(found["distances"], rows, strict=True)) for kind, rows in found["accuracy"].items()}
    near = [row["mean"] for d, row in by["window"].items() if d <= found["in_one_window"]]
    relayed = [row["mean"] for d, row in by["window"].items() if found["in_one_window"] < d <= found["reach"]]
    beyond = [row["mean"] for d, row in by["window"].items() if d > found["reach"]]
    full = [row["mean"] for row in by["full"].values()]
    at_chance = max(beyond) < found["chance"] + 0.05
    if at_chance and min(near + full) > 0.95 and min(relayed) > 0.9:
        return "strong"
    return "weak" if at_chance and min(near + relayed) > 3 * found["chance"] else "null"


EXPERIMENT = Experiment(
    name="c10_far_recall",
    claim=(
        "A model with a window in every layer learns to hand a fact on: within one window it recalls more than 95 %, "
        "from there to L(W − 1) more than 90 % at every distance, and beyond that it is at chance, 1 in 16. With full "
        "attention recall is above 95 % at every distance."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 2,
        "window": 6,
        "longest": 20,
        "distances": [1, 3, 5, 6, 8, 10, 11, 13, 15, 16, 18, 20],
        "batch": 32,
        "steps": 500,
        "learning_rates": [0.003, 0.01],
        "tuning_seed": 100,
        "tuning_steps": 150,
        "n_test": 512,
    },
    reduced={
        "n_layers": 2,
        "longest": 13,
        "distances": [1, 5, 6, 10, 11, 13],
        "steps": 150,
        "learning_rates": [0.01],
        "tuning_steps": 10,
        "n_test": 256,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
