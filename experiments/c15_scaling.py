"""Can small runs say how good a larger one will be?

Dense decoders of three widths are trained for three lengths each; the law of chapter 15 is fitted to these nine runs;
and it is asked for a run with more parameters and more text than any of them, which is then made.

Judged by: how far the law is off for the held-out run, as a share of its test loss, beside two simpler guesses: that it
ends where the best of the nine ended, and that the loss falls on along the straight line through the two longest runs
of the widest model (loss against the logarithm of the tokens). Learning rates are chosen for each width on validation
data with a seed of its own. N counts every trained parameter, the embedding too.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from experiments import moe
from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main

KINDS = corpus.PROSE + corpus.CODE


def run(config: Config, seeds: Sequence[int]) -> Results:
    fit = moe.reference("15-training-moe").fit_scaling_law
    length, batch = config["length"], config["batch"]
    ids = {split: torch.tensor(corpus.tokens(KINDS, split)[: config["tokens"]]) for split in ("train", "validation")}
    ids["test"] = torch.tensor(corpus.tokens(KINDS, "test")[: config["tokens"]])

    def trained(d_model: int, steps: int, lr: float, seed: int) -> Decoder:
        torch.manual_seed(seed)
        model = moe.decoder(
            corpus.VOCABULARY,
            lambda: moe.SwiGLU(d_model, 4 * d_model),
            length=length,
            d_model=d_model,
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
        )
        batches = train.windows(ids["train"], batch=batch, length=length, seed=seed)
        settings = train.Settings(steps=steps, lr=lr, warmup=max(1, steps // 20), seed=seed, device="cpu")
        train.fit(model, batches, settings, quiet=True)
        return model

    @torch.no_grad()
    def loss(model: Decoder, split: str) -> float:
        n = (len(ids[split]) - 1) // length
        inputs, targets = (ids[split][i : i + n * length].view(n, length) for i in (0, 1))
        parts = zip(inputs.split(32), targets.split(32), strict=True)
        total = sum(cross_entropy(model(x).mT, y, reduction="sum").item() for x, y in parts)
        return total / (n * length)

    trials = [
        {
            "d_model": d_model,
            "learning_rate": lr,
            "validation": loss(trained(d_model, config["tuning_steps"], lr, config["tuning_seed"]), "validation"),
        }
        for d_model in (*config["widths"], config["held_out"][0])
        for lr in config["learning_rates"]
    ]

    def best(d_model: int) -> float:
        own = [trial for trial in trials if trial["d_model"] == d_model]
        return min(own, key=lambda trial: trial["validation"])["learning_rate"]

    asked = [(d_model, steps, False) for d_model in config["widths"] for steps in config["steps"]]
    rows = []
    for d_model, steps, held_out in [*asked, (*config["held_out"], True)]:
        models = [trained(d_model, steps, best(d_model), seed) for seed in seeds]
        rows.append(
            {
                "n": sum(p.numel() for p in models[0].parameters()),
                "d": steps * batch * length,
                "held_out": held_out,
                "losses": estimate([loss(model, "test") for model in models]),
            }
        )
    *seen, last = rows

    def off(said: float, measured: float) -> float:
        return abs(said / measured - 1)

    errors: dict[str, list[float]] = {"law": [], "best": [], "line": []}
    laws = []
    for i in range(len(seeds)):
        n, d, losses = (
            torch.tensor(column, dtype=torch.float64)
            for column in zip(*[(row["n"], row["d"], row["losses"]["values"][i]) for row in seen], strict=True)
        )
        e, a, b, alpha, beta = fit(n, d, losses)
        laws.append({"E": e, "A": a, "B": b, "alpha": alpha, "beta": beta})
        measured = last["losses"]["values"][i]
        errors["law"].append(off(e + a / last["n"] ** alpha + b / last["d"] ** beta, measured))
        errors["best"].append(off(min(losses).item(), measured))
        (x0, y0), (x1, y1) = ((math.log(d[j]), losses[j].item()) for j in (-2, -1))
        errors["line"].append(off(y1 + (y1 - y0) / (x1 - x0) * (math.log(last["d"]) - x1), measured))
    return {
        "scaling": [{**row, "loss": row["losses"]["mean"]} for row in rows],
        "laws": laws,
        "off": {name: estimate(values) for name, values in errors.items()},
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    off = found["off"]
    if off["law"]["high"] < 0.03 and off["law"]["mean"] < min(off["best"]["mean"], off["line"]["mean"]):
        return "strong"
    return "weak" if off["law"]["mean"] < off["best"]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c15_scaling",
    claim=(
        "The law E + A/N^α + B/D^β, fitted to nine small runs, says the test loss of a run with more parameters and "
        "twice the text to within 3 %, and better than the best of the nine or a straight line through the last two."
    ),
    run=run,
    verdict=verdict,
    config={
        "widths": [16, 24, 32],
        "steps": [300, 600, 1200],
        "held_out": [48, 2400],
        "n_layers": 3,
        "n_heads": 2,
        "length": 128,
        "batch": 8,
        "tokens": None,
        "learning_rates": [0.006, 0.012],
        "tuning_steps": 300,
        "tuning_seed": 100,
    },
    reduced={
        "widths": [8, 12, 16],
        "steps": [20, 40, 80],
        "held_out": [20, 160],
        "n_layers": 1,
        "length": 32,
        "tokens": 40_000,
        "learning_rates": [0.02],
        "tuning_steps": 2,
    },
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
