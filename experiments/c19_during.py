"""Is it better to take away while a model trains than afterwards?

The dense model that ships with the course is trained on for a few hundred steps, on the text that it knows. As it is,
and then pruned to nine tenths zeros or rounded to 2 bits (three values: −s, 0, s). With weights that go step by step,
by the schedule of Zhu and Gupta (2017, arXiv:1710.01878): in the first two thirds of the steps the sparsity follows a
cubic. With weights that all go before the first step and stay away, which is the older way of pruning and retraining
(Han et al. 2015, arXiv:1506.02626). And with weights rounded to 2 bits in every forward pass, with a straight-through
gradient (quantisation-aware training).

Only the matrices of the layers are touched, not the embedding; magnitudes are compared over all of them; a row has a
scale. The learning rate is chosen for each way on validation text and a seed of its own, what is reported is the loss
on test text. A seed decides the text that is trained on, and all ways share it.

A first version trained small decoders from nothing for 300 steps (seeds 0 to 2). It ended weak: every difference
pointed the way of the claim, but the models had hardly learnt anything that pruning could take away, and seeds
differed by more than ways did. So this one starts from a model that has learnt, and is judged with fresh seeds.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from experiments.c19_after import TEXT, linears
from ichimon import corpus, moe, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

WAYS = ("plain", "gradual", "at_once", "rounded")


class Rounded(nn.Linear):
    """A linear layer whose weight is rounded to `bits` in every forward pass, with a scale for each row."""

    bits = 2
    fake_quantize: Any = None

    def forward(self, input: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax(1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        return linear(input, type(self).fake_quantize(self.weight, scale, self.bits), self.bias)


def prune_schedule(step: int, start: int, end: int, final: float) -> float:
    """The cubic of Zhu and Gupta: 0 until `start`, `final` from `end` on."""
    u = min(max((step - start) / (end - start), 0.0), 1.0)
    return final * (1 - (1 - u) ** 3)


class Pruner:
    """Keeps what was pruned at zero before each step, and prunes more when it is due."""

    def __init__(self, reference: Any, way: str, steps: int, final: float, every: int) -> None:
        self.reference, self.way, self.steps, self.final, self.every = reference, way, steps, final, every
        self.step = 0
        self.masks: list[Tensor] = []

    def due(self) -> float | None:
        """The sparsity to go to before this step, if it changes there."""
        if self.way == "at_once":
            return self.final if self.step == 0 else None
        end = 2 * self.steps // 3
        on_time = self.step < end and self.step % self.every == 0
        return prune_schedule(self.step, 0, end, self.final) if on_time or self.step == end else None

    @torch.no_grad()
    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        if model.training:
            self.apply(model)
            if (sparsity := self.due()) is not None:
                self.masks = self.reference.magnitude_mask(
                    [layer.weight for layer in linears(model).values()], sparsity
                )
                self.apply(model)
            self.step += 1
        with torch.enable_grad():
            return train.next_token(model, batch)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        for layer, mask in zip(linears(model).values(), self.masks, strict=False):
            layer.weight.mul_(mask)


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/19-shrinking.py")
    texts = {split: corpus.tokens(TEXT, split) for split in ("train", "validation", "test")}
    steps, length = config["steps"], config["length"]
    Rounded.fake_quantize = staticmethod(reference.fake_quantize)

    def trained(way: str, seed: int, lr: float) -> nn.Module:
        model, _ = moe.load_trained("dense")
        if way == "rounded":
            for layer in linears(model).values():
                layer.__class__ = Rounded  # the same parameters, another forward pass
        settings = train.Settings(steps=steps, lr=lr, warmup=config["warmup"], seed=seed, device="cpu")
        batches = train.windows(texts["train"], batch=config["batch"], length=length, seed=seed)
        if way in ("gradual", "at_once"):
            pruner = Pruner(reference, way, steps, config["sparsity"], config["every"])
            train.fit(model, batches, settings, quiet=True, loss=pruner.loss)
            pruner.apply(model)
        else:
            train.fit(model, batches, settings, quiet=True)
        return model

    def loss(model: nn.Module, split: str) -> float:
        return train.evaluate(model, train.windows(texts[split], batch=32, length=length), config["evaluate_batches"])

    trials, best = [], {}
    for way in WAYS:
        tried = []
        for lr in config["learning_rates"]:
            value = loss(trained(way, config["tuning_seed"], lr), "validation")
            tried.append({"way": way, "learning_rate": lr, "loss": value})
        best[way] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        trials += tried

    losses: dict[str, list[float]] = {name: [] for name in (*WAYS, "pruned_after", "rounded_after")}
    zeros: dict[str, list[float]] = {"gradual": [], "at_once": []}
    for seed in seeds:
        models = {way: trained(way, seed, best[way]) for way in WAYS}
        after = {name: copy.deepcopy(models["plain"]) for name in ("pruned_after", "rounded_after")}
        pruned = list(linears(after["pruned_after"]).values())
        masks = reference.magnitude_mask([layer.weight for layer in pruned], config["sparsity"])
        with torch.no_grad():
            for layer, mask in zip(pruned, masks, strict=True):
                layer.weight.mul_(mask)
        for layer in linears(after["rounded_after"]).values():
            layer.__class__ = Rounded
        for name, model in (models | after).items():
            losses[name].append(loss(model, "test"))
        for way, shares in zeros.items():
            weights = torch.cat([layer.weight.flatten() for layer in linears(models[way]).values()])
            shares.append((weights == 0).float().mean().item())
    return {
        "loss": {name: estimate(values) for name, values in losses.items()},
        "added": {name: paired(values, losses["plain"]) for name, values in losses.items() if name != "plain"},
        "gradual_minus_after": paired(losses["gradual"], losses["pruned_after"]),
        "gradual_minus_at_once": paired(losses["gradual"], losses["at_once"]),
        "rounded_minus_after": paired(losses["rounded"], losses["rounded_after"]),
        "zeros": {way: estimate(shares) for way, shares in zeros.items()},
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    gains = (found["gradual_minus_after"], found["rounded_minus_after"])
    close = all(found["added"][name]["high"] < 0.75 for name in ("gradual", "rounded"))
    if all(gain["high"] < -0.5 for gain in gains) and close:
        return "strong"
    return "weak" if all(gain["mean"] < 0 for gain in gains) else "null"


EXPERIMENT = Experiment(
    name="c19_during",
    claim=(
        "After equally many further steps, a model that is pruned to nine tenths zeros while it trains has a test loss "
        "lower by more than 0.5 nats than one that is pruned afterwards, and so has one that trains with 2 bits than "
        "one that is rounded to 2 bits afterwards. Both stay within 0.75 nats of the model that keeps everything. All "
        "95 % intervals lie on that side."
    ),
    run=run,
    verdict=verdict,
    config={
        "length": 64,
        "batch": 8,
        "steps": 300,
        "warmup": 20,
        "sparsity": 0.9,
        "every": 10,
        "learning_rates": [0.0005, 0.0015, 0.0045],
        "tuning_seed": 100,
        "evaluate_batches": 12,
    },
    reduced={"steps": 16, "warmup": 2, "every": 2, "learning_rates": [0.0015], "evaluate_batches": 1, "length": 32},
    seeds=(3, 4, 5),
)

if __name__ == "__main__":
    main(EXPERIMENT)
