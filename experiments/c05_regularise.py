"""Does normalisation prevent over-fitting? Little text, many passes, with norms and without.

It is often said that layer normalisation prevents over-fitting. If it does, then of two models that know the training
text equally well, the one with norms should know other text better. So we compare test losses at equal training loss,
and not after equal numbers of steps: a norm also makes training faster, and that is not what is asked.

Small decoders train on a few thousand tokens until they know them nearly by heart: with LayerNorm, without any norm,
and with nothing but the last norm, the one before the logits (residual connections always left; the initialisation of
`c05_gradient_by_depth`, whose numbers are of size one, so that two layers work without norms too). The control is the
one with LayerNorm and with dropout on its embeddings, a known regulariser. The norms are PyTorch's own, which compute
the same as the notebook's in a third of the time.

Judged by: the test loss where the training loss crosses `levels`, interpolated between evaluations, paired by seed; the
training loss is measured without dropout. The learning rate of each variant is that with the lowest validation loss on
the way, on a seed of its own. Sizes and learning rates come from pilot runs with other seeds; two full
runs ended before any test loss was seen, because a model did not reach the last level in the steps that it had.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.c05_gradient_by_depth import xavier
from ichimon import corpus, train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

Curve = list[tuple[float, float, float]]  # training, validation and test loss at each evaluation


class Learnt(Exception):
    """The training loss is at the lowest level: the run may end."""


class Unnormalised(nn.Identity):
    """In the place of a norm: nothing."""

    def __init__(self, d_model: int) -> None:
        super().__init__()


def at(curve: Curve, level: float) -> float:
    """The test loss where the training loss first falls to `level`."""
    trained = [point[0] for point in curve]
    after = next((i for i, loss in enumerate(trained) if loss <= level), None)
    if not after:
        raise ValueError(
            f"The training loss never crosses {level}: it goes from {trained[0]:.2f} to {min(trained):.2f}."
        )
    return float(np.interp(level, [trained[after], trained[after - 1]], [curve[after][2], curve[after - 1][2]]))


def run(config: Config, seeds: Sequence[int]) -> Results:
    variants: dict[str, Callable[[int], nn.Module]] = {
        "layer_norm": nn.LayerNorm,
        "none": Unnormalised,
        "last_only": Unnormalised,
        "dropout": nn.LayerNorm,
    }
    texts = {
        "train": corpus.tokens(corpus.PROSE, "train"),
        "validation": corpus.tokens(corpus.PROSE, "validation"),
        "test": corpus.tokens(corpus.PROSE, "test"),
    }

    def learn(variant: str, lr: float, seed: int, steps: int) -> Curve:
        start = int(np.random.default_rng(seed).integers(len(texts["train"]) - config["n_tokens"]))
        little = texts["train"][start : start + config["n_tokens"]]  # each seed has a text of its own
        torch.manual_seed(seed)
        model = xavier(corpus.VOCABULARY, config["n_layers"], config, norm=variants[variant], pre_norm=True)
        if variant == "last_only":
            model.norm = nn.LayerNorm(config["d_model"])
        if variant == "dropout":
            model.positions = nn.Sequential(model.positions, nn.Dropout(config["dropout"]))
        drawn = [little, texts["validation"], texts["test"]]
        looks = [train.windows(ids, batch=16, length=config["length"], seed=1) for ids in drawn]
        curve: Curve = []

        def look() -> None:
            known, validation, test = (
                train.evaluate(model, batches, n) for batches, n in zip(looks, (1, 1, 3), strict=True)
            )
            curve.append((known, validation, test))

        def batches(step: int) -> torch.Tensor:
            if step % config["look_every"] == 0:
                look()
                if curve[-1][0] <= min(config["levels"]):
                    raise Learnt
            return own(step)

        own = train.windows(little, batch=config["batch"], length=config["length"], seed=seed)
        settings = train.Settings(
            steps=steps,
            lr=lr,
            warmup=steps // 10,
            weight_decay=0,
            evaluate_every=steps,
            seed=seed,
            device="cpu",
            final_lr=1,
        )
        try:
            train.fit(model, batches, settings, quiet=True)
            look()
        except Learnt:
            model.eval()
        return curve

    trials: list[dict[str, Any]] = []
    curves: dict[str, list[Curve]] = {}
    for variant in variants:
        tried = []
        for lr in config["learning_rates"]:
            curve = learn(variant, lr, config["tuning_seed"], config["tuning_steps"])
            best = min(point[1] for point in curve)
            tried.append({"variant": variant, "learning_rate": lr, "validation_loss": best, "train_loss": curve[-1][0]})
        trials += tried
        lr = min(tried, key=lambda trial: trial["validation_loss"])["learning_rate"]
        curves[variant] = [learn(variant, lr, seed, config["steps"]) for seed in seeds]
    found: Results = {"levels": config["levels"], "test_loss": {}, "over_none": {}, "best_test_loss": {}, "curve": {}}
    for variant, runs in curves.items():
        by_level = [[at(curve, level) for curve in runs] for level in config["levels"]]
        plain = [[at(curve, level) for curve in curves["none"]] for level in config["levels"]]
        found["test_loss"][variant] = [estimate(row) for row in by_level]
        found["over_none"][variant] = [paired(row, other) for row, other in zip(by_level, plain, strict=True)]
        found["best_test_loss"][variant] = estimate([min(point[2] for point in curve) for curve in runs])
        found["curve"][variant] = [[point[0], point[2]] for point in runs[0]]  # of the first seed
    return {**found, "trials": trials}


def verdict(found: Results) -> Verdict:
    gains = found["over_none"]["layer_norm"]
    if all(row["high"] < -0.05 for row in gains):
        return "strong"
    return "weak" if all(row["mean"] < 0 for row in gains) else "null"


EXPERIMENT = Experiment(
    name="c05_regularise",
    claim=(
        "Normalisation prevents over-fitting: at equal training loss, models with LayerNorm have a test loss that is "
        "more than 0.05 nats lower than that of models without norms, at each of three levels."
    ),
    run=run,
    verdict=verdict,
    config={
        "n_tokens": 2048,
        "n_layers": 2,
        "d_model": 64,
        "batch": 8,
        "length": 64,
        "steps": 600,
        "look_every": 8,
        "dropout": 0.5,
        "levels": [5.0, 4.25, 3.5],
        "learning_rates": [0.0007, 0.0014, 0.0028],
        "tuning_seed": 100,
        "tuning_steps": 80,
    },
    reduced={"steps": 60, "learning_rates": [0.005], "tuning_steps": 1, "levels": [6.0], "look_every": 5, "length": 32},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
