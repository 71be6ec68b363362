"""What trains without a warm-up: 24 layers, the norm before each sub-layer or after the sum, over learning rates?

A warm-up raises the learning rate slowly at the start. Vaswani et al. 2017 used one, and Xiong et al. 2020
(arXiv:2002.04745) argue that post-norm needs it and pre-norm does not; their models have 6 layers in the encoder. So
every combination of norm, warm-up, learning rate and depth, 24 layers and 6, trains the same small decoder on the
course's prose, from the initialisation of `c05_gradient_by_depth`, with AdamW, clipped gradients and the same batches.

Judged by: the loss on test text at the end. A run has learnt something if it ends more than `margin` below the unigram
model, which knows how frequent each token is, no more; a loss that is no number counts as the unigram's. The best
learning rate of a combination is chosen by its mean validation loss. Runs are short, so "does not learn" means: not
within these steps. The norms are PyTorch's own, which compute the same as the notebook's in a third of the time.

The learning rates, the length of the runs and the wording of the claim come from pilot runs with another seed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from experiments.c05_gradient_by_depth import xavier
from ichimon import corpus, train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

WARM_UP = {"without": 0.0, "with": 0.3}  # the share of the steps in which the learning rate climbs


def unigram(train_ids: np.ndarray, ids: np.ndarray, vocabulary: int) -> float:
    """The loss of a model that knows only how frequent each token is (with one added to every count)."""
    counts = np.bincount(train_ids, minlength=vocabulary) + 1
    return float(-np.log(counts / counts.sum())[ids].mean())


def run(config: Config, seeds: Sequence[int]) -> Results:
    vocabulary, steps, length = config["vocabulary"], config["steps"], config["length"]
    ids = corpus.tokens(corpus.PROSE, "train", vocabulary)
    validation_ids = corpus.tokens(corpus.PROSE, "validation", vocabulary)
    test_ids = corpus.tokens(corpus.PROSE, "test", vocabulary)
    validation, test = (train.windows(held_out, batch=32, length=length) for held_out in (validation_ids, test_ids))
    floors = unigram(ids, validation_ids, vocabulary), unigram(ids, test_ids, vocabulary)

    def final(n_layers: int, pre_norm: bool, warm_up: float, lr: float, seed: int) -> tuple[float, ...]:
        """The loss on validation and on test text."""
        torch.manual_seed(seed)
        model = xavier(vocabulary, n_layers, config, norm=nn.LayerNorm, pre_norm=pre_norm)
        batches = train.windows(ids, batch=config["batch"], length=length, seed=seed)
        settings = train.Settings(
            steps=steps, lr=lr, warmup=round(warm_up * steps), evaluate_every=steps, seed=seed, device="cpu"
        )
        try:
            train.fit(model, batches, settings, quiet=True)
        except train.TrainingError:  # the loss became infinite or no number
            return floors
        return tuple(train.evaluate(model, text, config["batches"]) for text in (validation, test))

    found: Results = {
        "learning_rates": config["learning_rates"],
        "unigram": floors[1],
        "loss": {},
        "best": {},
        "best_learning_rate": {},
        "learnt": {},
        "trials": [],
    }
    best: dict[str, list[float]] = {}
    for n_layers in config["n_layers"]:
        for norm, pre_norm in {"pre": True, "post": False}.items():
            for warm_up, share in WARM_UP.items():
                name, rows = f"{norm}_{n_layers}_{warm_up}", []
                for lr in config["learning_rates"]:
                    pairs = [final(n_layers, pre_norm, share, lr, seed) for seed in seeds]
                    rows.append((sum(pair[0] for pair in pairs), [pair[1] for pair in pairs], lr))
                    found["trials"].append({"run": name, "learning_rate": lr, "validation_loss": [p[0] for p in pairs]})
                found["loss"][name] = [estimate(losses) for _, losses, _ in rows]
                learnt = [loss < floors[1] - config["margin"] for _, losses, _ in rows for loss in losses]
                found["learnt"][name] = sum(learnt) / len(learnt)
                _, best[name], found["best_learning_rate"][name] = min(rows)
                found["best"][name] = estimate(best[name])
    shallow = min(config["n_layers"])
    found["warm_up_saves"] = {
        norm: paired(best[f"{norm}_{shallow}_without"], best[f"{norm}_{shallow}_with"]) for norm in ("pre", "post")
    }
    return found


def verdict(found: Results) -> Verdict:
    learnt = found["learnt"]
    deep = max(int(name.split("_")[1]) for name in learnt)
    pre_learns = learnt[f"pre_{deep}_without"] == 1
    post_does_not = learnt[f"post_{deep}_without"] == learnt[f"post_{deep}_with"] == 0
    if pre_learns and post_does_not and found["warm_up_saves"]["post"]["low"] > 0:
        return "strong"
    return "weak" if learnt[f"pre_{deep}_without"] > learnt[f"post_{deep}_without"] else "null"


EXPERIMENT = Experiment(
    name="c05_warm_up",
    claim=(
        "With 24 layers and no warm-up, pre-norm learns more than token frequencies at every learning rate from 0.002 "
        "to 0.02, and post-norm at none of them, not even with a warm-up. With 6 layers post-norm learns too, and its "
        "best test loss is lower with a warm-up than without one."
    ),
    run=run,
    verdict=verdict,
    config={
        "n_layers": [24, 6],
        "d_model": 32,
        "vocabulary": 257,
        "batch": 4,
        "length": 32,
        "steps": 150,
        "learning_rates": [0.002, 0.006, 0.02],
        "margin": 0.05,
        "batches": 3,
    },
    reduced={"n_layers": [10, 2], "steps": 32, "learning_rates": [0.02], "margin": 0.0, "batches": 1},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
