"""Does the router learn if a token has a single expert?

A layer of 8 experts at the start of training, a random gradient at its output, and the norm of the gradient that
reaches the router, for 1, 2, 4 and 8 experts a token and both conventions. Renormalised, the weight of a single expert
is p / p = 1 whatever the router says, so nothing can tell it to say something else.

Each seed draws layer, tokens and gradient anew.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

CONVENTIONS = {"renormalised": True, "as_they_are": False}


def gradient(chapter: Any, config: Config, top_k: int, convention: str, seed: int) -> float:
    """Norm of the gradient of the router's weight."""
    torch.manual_seed(seed)
    d_model = config["d_model"]
    layer = chapter.MoELayer(d_model, config["d_hidden"], 8, top_k, renormalise=CONVENTIONS[convention])
    with torch.no_grad():
        for parameter in (layer.gate_up, layer.down):
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    x, upstream = (torch.randn(config["batch"], config["length"], d_model) for _ in range(2))
    layer(x).backward(upstream)
    return layer.router.weight.grad.norm().item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    chapter = load(ROOT / "solutions/13-router.py")
    return {
        "top_k": config["top_k"],
        "gradient": {
            name: [estimate([gradient(chapter, config, k, name, seed) for seed in seeds]) for k in config["top_k"]]
            for name in CONVENTIONS
        },
    }


def verdict(found: Results) -> Verdict:
    renormalised, as_they_are = (found["gradient"][name] for name in CONVENTIONS)
    dead = renormalised[0]["high"] < 1e-6 * as_they_are[0]["low"]
    if dead and all(row["low"] > 0.1 * as_they_are[0]["mean"] for row in renormalised[1:]):
        return "strong"
    return "weak" if renormalised[0]["mean"] < 0.01 * as_they_are[0]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c13_router_gradient",
    claim=(
        "With one expert a token, renormalised weights give the router no gradient (less than a millionth of what "
        "weights as they are give it); with two experts or more they do."
    ),
    run=run,
    verdict=verdict,
    config={"d_model": 64, "d_hidden": 128, "batch": 4, "length": 64, "top_k": [1, 2, 4, 8]},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
