"""What is it worth to start from a model that has read something else: with 1, 10 and 100 % of the data, by epoch?

A small decoder is trained on the reference of the Python language, once from random numbers and once from what another
training on docstrings left: transfer learning. The text is there whole (100 %), or only its first tenth or hundredth.
An epoch is one pass over the windows that there are, in a new order each time. After 1, 2, 4, ... epochs the loss on
text that nobody trains on is noted. The learning rate of each start and share comes from validation text, on a seed of
its own, after the last epoch; one rate is found on fewer epochs where there is all of the text.

The smaller shares run for more epochs, since an epoch of one hundredth is a single step.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments import adapting
from ichimon import train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

STARTS = ("scratch", "pretrained")


def passes(ids: Tensor, batch: int, length: int, seed: int) -> train.Batches:
    """Windows that do not overlap, each of them once an epoch, in a new order each time."""
    rows = torch.stack([ids[i : i + length + 1] for i in range(0, len(ids) - length, length)])
    steps = len(rows) // batch

    def draw(step: int) -> Tensor:
        epoch, within = divmod(step, steps)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        return rows[order[within * batch : (within + 1) * batch]]

    return draw


def curve(
    model: nn.Module, share: float, epochs: Sequence[int], lr: float, seed: int, split: Any, config: Config
) -> list[float]:
    """The loss on a split after each of these numbers of epochs; the learning rate stays as it is."""
    model = copy.deepcopy(model)
    length, batch = config["length"], config["batch"]
    windows = round(config["windows"] * share)
    ids = torch.as_tensor(adapting.text("topics", "train", windows * length + 1))
    an_epoch = windows // batch
    seen = train.windows(adapting.text("topics", split, config["test_tokens"]), batch=32, length=length, seed=99)
    settings = train.Settings(
        steps=an_epoch * epochs[-1],
        lr=lr,
        warmup=min(20, an_epoch * epochs[-1] - 1),
        final_lr=1.0,
        evaluate_every=an_epoch,
        evaluate_batches=config["evaluate_batches"],
        seed=seed,
        device="cpu",
    )
    history = train.fit(model, passes(ids, batch, length, seed), settings, validation=seen, quiet=True)
    noted = {steps // an_epoch: value for steps, value in history.validation}
    return [noted[epoch] for epoch in epochs]


def run(config: Config, seeds: Sequence[int]) -> Results:
    shares = config["shares"]

    def starts(seed: int) -> dict[str, nn.Module]:
        return {"scratch": adapting.decoder(config, seed), "pretrained": adapting.base(config, seed)}

    trials: list[dict[str, Any]] = []
    best: dict[str, dict[str, float]] = {start: {} for start in STARTS}
    models = starts(config["tuning_seed"])
    for start in STARTS:
        for share in shares:
            epochs = config["epochs"][share][: config["tuning_epochs"][share]]
            tried = []
            for lr in config["learning_rates"]:
                found = curve(models[start], float(share), epochs, lr, config["tuning_seed"], "validation", config)
                tried.append({"start": start, "share": share, "learning_rate": lr, "loss": min(found)})
            best[start][share] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
            trials += tried
    curves: dict[str, dict[str, list[list[float]]]] = {start: {share: [] for share in shares} for start in STARTS}
    untrained: list[float] = []
    for seed in seeds:
        models = starts(seed)
        untrained.append(adapting.loss(models["pretrained"], "topics", "test", config))
        for start in STARTS:
            for share in shares:
                lr = best[start][share]
                found = curve(models[start], float(share), config["epochs"][share], lr, seed, "test", config)
                curves[start][share].append(found)
    lowest = {start: {share: [min(row) for row in curves[start][share]] for share in shares} for start in STARTS}
    return {
        "epochs": config["epochs"],
        "tokens": {share: round(config["windows"] * float(share)) * config["length"] for share in shares},
        "loss": {
            start: {share: [estimate(at) for at in zip(*rows, strict=True)] for share, rows in by_share.items()}
            for start, by_share in curves.items()
        },
        "pretrained_before": estimate(untrained),
        "head_start": {
            share: [
                paired(scratch, pretrained)
                for scratch, pretrained in zip(
                    zip(*curves["scratch"][share], strict=True),
                    zip(*curves["pretrained"][share], strict=True),
                    strict=True,
                )
            ]
            for share in shares
        },
        "lowest": {start: {share: estimate(v) for share, v in by.items()} for start, by in lowest.items()},
        "lowest_head_start": {share: paired(lowest["scratch"][share], lowest["pretrained"][share]) for share in shares},
        "a_tenth_against_all": paired(lowest["scratch"]["1"], lowest["pretrained"]["0.1"]),
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    ahead = all(at["low"] > 0 for curve in found["head_start"].values() for at in curve)
    lead = found["lowest_head_start"]
    if ahead and lead["0.01"]["low"] > lead["1"]["high"] and found["a_tenth_against_all"]["low"] > 0:
        return "strong"
    return "weak" if ahead and lead["0.01"]["mean"] > lead["1"]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c18_pretrained",
    claim=(
        "Pretraining on other text helps at every share of the data and after every epoch that was looked at (each "
        "95 % interval of the paired difference in test loss lies above zero). It helps more the less data there is: "
        "the gap between the lowest losses is larger at 1 % than at 100 %. And a tenth of the data with pretraining "
        "gives a lower loss than all of it without."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "n_layers": 2,
        "length": 64,
        "base_steps": 250,
        "base_lr": 4e-3,
        "base_tokens": 400_000,
        "windows": 1000,
        "batch": 10,
        "shares": ["0.01", "0.1", "1"],
        "epochs": {"0.01": [1, 2, 4, 8, 16, 32], "0.1": [1, 2, 4, 8, 16, 32], "1": [1, 2, 4]},
        "tuning_epochs": {"0.01": 6, "0.1": 5, "1": 2},
        "learning_rates": [1e-3, 3e-3],
        "tuning_seed": 100,
        "test_tokens": 13_000,
        "evaluate_batches": 3,
    },
    reduced={
        "base_steps": 60,
        "base_tokens": 60_000,
        "windows": 200,
        "batch": 2,
        "d_model": 32,
        "n_layers": 1,
        "length": 32,
        "epochs": {"0.01": [1, 4], "0.1": [1, 4], "1": [1, 2]},
        "tuning_epochs": {"0.01": 1, "0.1": 1, "1": 1},
        "learning_rates": [3e-3],
        "evaluate_batches": 1,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
