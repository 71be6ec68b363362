"""Why not plain gradient descent? A small Transformer trained by SGD with momentum and by AdamW.

The two take the same number of steps on the same batches, from the same start, with the same warm-up and decay of the
learning rate, and no weight decay. The size of the learning rate is that of a grid which is best on validation text for
a seed of its own; losses are on test text. They are split by how frequent the token to be guessed is in the training
text: the most frequent that make up half of it, the rarest that make up a tenth, and those between. Kunstner et al.
(2024, arXiv:2402.19449) hold that SGD is slow on the rare ones, because what belongs to them has small gradients.

Beside the losses: the size of the gradients before the first step, as a root mean square for each parameter tensor, and
how far apart the largest and the smallest are. SGD's steps are as far apart as that, AdamW's first step is not.

A pilot with a model that sees only the token before, without any Transformer, gave both the same loss: there, the best
learning rate made SGD as good as AdamW. So the claim is about the Transformer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.decoder import Decoder
from ichimon import corpus
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load
from ichimon.train import next_token, windows

GROUPS = ("frequent", "middle", "rare")


def groups(ids: Tensor) -> Tensor:
    """For each token of the vocabulary the number of its group."""
    counts = ids.bincount(minlength=corpus.VOCABULARY)
    order = counts.argsort(descending=True)
    before = (counts[order].cumsum(0) - counts[order]) / counts.sum()  # the share of the text that is more frequent
    found = torch.empty_like(order)
    found[order] = (before >= 0.5).long() + (before >= 0.9).long()
    return found


def new(seed: int, config: Config) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(corpus.VOCABULARY, d_model=config["d_model"])


def train(optimiser: str, lr: float, seed: int, ids: Tensor, config: Config) -> Decoder:
    adamw_step = load(ROOT / "solutions/00-warm-up.py").adamw_step
    model = new(seed, config)
    parameters = list(model.parameters())
    means = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    batches = windows(ids, batch=config["batch"], length=config["length"], seed=seed)
    for step in range(1, config["steps"] + 1):
        grads = torch.autograd.grad(next_token(model, batches(step)), parameters)
        rate = lr * min(step / config["warmup"], 1 - (step - 1) / config["steps"])
        with torch.no_grad():
            for i, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
                if optimiser == "adamw":
                    settings: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
                    moved, *means[i] = adamw_step(p, grad, *means[i], step, **settings)
                else:
                    means[i] = (0.9 * means[i][0] + grad, means[i][1])
                    moved = p - rate * means[i][0]
                p.copy_(moved)
    return model


@torch.no_grad()
def losses(model: nn.Module, ids: Tensor, group: Tensor, config: Config) -> dict[str, float]:
    """The mean loss over a text, in all and for each group of tokens to be guessed."""
    length = config["length"]
    text = ids[: (len(ids) - 1) // length * length + 1][: config["test_windows"] * length + 1]
    inputs, targets = text[:-1].view(-1, length), text[1:].view(-1, length)
    each = torch.cat(
        [
            cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
            for x, y in zip(inputs.split(32), targets.split(32), strict=True)
        ]
    )
    by_group = {name: each[group[text[1:]] == number].mean().item() for number, name in enumerate(GROUPS)}
    return {"all": each.mean().item(), **by_group}


def gradient_sizes(seed: int, ids: Tensor, config: Config) -> list[float]:
    """The root mean square of the gradient of each parameter tensor of a new model, on one batch."""
    model = new(seed, config)
    batch = windows(ids, batch=config["batch"], length=config["length"], seed=seed)(0)
    grads = torch.autograd.grad(next_token(model, batch), list(model.parameters()))
    return sorted(grad.square().mean().sqrt().item() for grad in grads if grad.any())


def run(config: Config, seeds: Sequence[int]) -> Results:
    text = {split: torch.as_tensor(corpus.tokens(corpus.PROSE, split)) for split in ("train", "validation", "test")}
    group = groups(text["train"])
    found: Results = {"loss": {}, "learning_rate": {}}
    found["tokens"] = {name: int((group == number).sum()) for number, name in enumerate(GROUPS)}
    sizes = [gradient_sizes(seed, text["train"], config) for seed in seeds]
    found["gradient_largest_over_smallest"] = estimate([row[-1] / row[0] for row in sizes])
    tested: dict[str, list[dict[str, float]]] = {}
    trials: list[dict[str, Any]] = []
    for optimiser, grid in config["learning_rates"].items():
        tried = []
        for lr in grid:
            trained = train(optimiser, lr, config["tuning_seed"], text["train"], config)
            loss = losses(trained, text["validation"], group, config)["all"]
            finite = loss if math.isfinite(loss) else 1e9  # it left the numbers: never the best
            tried.append({"optimiser": optimiser, "learning_rate": lr, "validation": finite})
        trials += tried
        lr = min(tried, key=lambda trial: trial["validation"])["learning_rate"]
        found["learning_rate"][optimiser] = lr
        tested[optimiser] = [
            losses(train(optimiser, lr, seed, text["train"], config), text["test"], group, config) for seed in seeds
        ]
        found["loss"][optimiser] = {
            name: estimate([one[name] for one in tested[optimiser]]) for name in ("all", *GROUPS)
        }
    found["sgd_minus_adamw"] = {
        name: paired([one[name] for one in tested["sgd"]], [one[name] for one in tested["adamw"]])
        for name in ("all", *GROUPS)
    }
    return {**found, "trials": trials}


def verdict(found: Results) -> Verdict:
    gap = found["sgd_minus_adamw"]
    if gap["all"]["low"] > 0.1 and gap["rare"]["low"] > gap["frequent"]["high"]:
        return "strong"
    return "weak" if gap["all"]["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c00_adamw",
    claim=(
        "After the same number of steps, each at its best learning rate, a small Transformer trained by AdamW has a "
        "test loss more than 0.1 nats below that of SGD with momentum, and its lead is larger on the rarest tokens, a "
        "tenth of the text, than on the most frequent, a half of it."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "batch": 8,
        "length": 64,
        "steps": 300,
        "warmup": 20,
        "learning_rates": {"sgd": [0.05, 0.1, 0.2, 0.4, 0.8], "adamw": [0.0015, 0.003, 0.006, 0.012]},
        "tuning_seed": 100,
        "test_windows": 400,
    },
    reduced={
        "d_model": 32,
        "batch": 4,
        "length": 32,
        "steps": 60,
        "learning_rates": {"sgd": [0.3], "adamw": [0.01]},
        "test_windows": 64,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
