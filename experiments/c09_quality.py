"""What quality do shared keys and values cost, at the same width and at equal parameters?

Decoders of two blocks with 8 heads of queries are trained on real prose: with 8 heads of keys and values, with 2, with
1, and with a latent. Sharing also makes a layer smaller. So a wider feed-forward layer makes up for the numbers that
sharing saves, as Touvron et al. 2023 did (arXiv:2307.09288, appendix A.2.1), and a narrower one pays for the latent's.
Parameters are then equal but for a few: a hidden unit costs 129, and there are two layers. One head is also tried with
the feed-forward layer of 8, and so with fewer parameters.

The learning rate is chosen for each on validation text and a seed of its own; what is reported is the loss on test
text. A seed decides the initialisation and the text, which all models of that seed read in the same order.
"""

from collections.abc import Sequence
from typing import Any

import torch

from experiments.grouped_decoder import D_MODEL, N_LAYERS, decoder, parameters
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

KINDS: dict[str, dict[str, Any]] = {
    "8 heads": {"kind": "grouped", "n_kv_heads": 8},
    "2 heads": {"kind": "grouped", "n_kv_heads": 2},
    "1 head": {"kind": "grouped", "n_kv_heads": 1},
    "latent": {"kind": "latent"},
    "1 head, same width": {"kind": "grouped", "n_kv_heads": 1},
}


def made_equal(parts: Any) -> dict[str, dict[str, Any]]:
    """The kinds with the hidden units that bring each as near as possible to the parameters of 8 heads."""
    width = 4 * D_MODEL
    goal = parameters(decoder(parts, **KINDS["8 heads"]))
    found = {}
    for name, sizes in KINDS.items():
        spare = (goal - parameters(decoder(parts, **sizes))) / N_LAYERS
        extra = 0 if "same width" in name else round(spare / (2 * D_MODEL + 1))
        found[name] = {**sizes, "d_hidden": width + extra}
    return found


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/09-grouped-queries.py")
    kinds, length = made_equal(parts), config["length"]
    texts = {split: corpus.tokens(corpus.PROSE, split) for split in ("train", "validation", "test")}

    def loss(name: str, seed: int, lr: float, split: str) -> float:
        torch.manual_seed(seed)
        model = decoder(parts, **kinds[name])
        settings = train.Settings(steps=config["steps"], lr=lr, warmup=config["warmup"], seed=seed, device="cpu")
        batches = train.windows(texts["train"], batch=config["batch"], length=length, seed=seed)
        train.fit(model, batches, settings, quiet=True)
        return train.evaluate(model, train.windows(texts[split], batch=32, length=length), config["evaluate_batches"])

    trials, best = [], {}
    for name in kinds:
        tried = [
            {"kind": name, "learning_rate": lr, "loss": loss(name, config["tuning_seed"], lr, "validation")}
            for lr in config["learning_rates"]
        ]
        best[name] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        trials += tried
    losses = {name: [loss(name, seed, best[name], "test") for seed in seeds] for name in kinds}
    return {
        "loss": {name: estimate(values) for name, values in losses.items()},
        "minus_8_heads": {name: paired(losses[name], losses["8 heads"]) for name in kinds if name != "8 heads"},
        "1_head_minus_2": paired(losses["1 head"], losses["2 heads"]),
        "parameters": {name: parameters(decoder(parts, **sizes)) for name, sizes in kinds.items()},
        "d_hidden": {name: sizes["d_hidden"] for name, sizes in kinds.items()},
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    cost = found["minus_8_heads"]
    if cost["1 head, same width"]["low"] > 0 and all(cost[name]["high"] < 0.05 for name in ("2 heads", "1 head")):
        return "strong"
    return "weak" if cost["1 head, same width"]["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c09_quality",
    claim=(
        "At the same width, a small decoder with 1 head of keys and values reaches a higher test loss than one with 8: "
        "the 95 % interval of the paired difference lies above zero. At equal parameters sharing costs little: for 2 "
        "heads and for 1 the interval lies below 0.05 nats a token."
    ),
    run=run,
    verdict=verdict,
    config={
        "length": 64,
        "batch": 16,
        "steps": 480,
        "warmup": 48,
        "learning_rates": [0.0025, 0.005, 0.01],
        "tuning_seed": 100,
        "evaluate_batches": 12,
    },
    reduced={"steps": 10, "warmup": 2, "batch": 8, "learning_rates": [0.01], "evaluate_batches": 2},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
