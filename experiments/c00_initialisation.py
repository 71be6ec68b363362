"""How large should weights be at the start? Signal and gradient through a deep stack of linear layers and ReLUs.

Weights are drawn with a standard deviation of gain/√n, where n is the number of inputs of a layer. ReLU sets half of
the numbers to 0 and so halves the mean square; a layer thus multiplies the root mean square by gain/√2, forwards and
backwards, and only a gain of √2 keeps both (He et al. 2015, arXiv:1502.01852, section 2.2; their width need not be
equal, ours is). Measured: the root mean square after each layer, that of the gradient before each layer, and the
factor a layer, a fit over all layers.

Then, does it matter? A narrower stack learns scikit-learn's digits from each of the gains, with plain gradient descent
and with AdamW, which divides the size of the gradient out; the learning rate of each is the best of a grid on a seed
and validation data of its own, accuracy is on test data.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

GAINS = {"half": 0.5, "one": 1.0, "root_2": math.sqrt(2), "two": 2.0}


def sizes(depth: int, width: int, gain: float, seed: int) -> tuple[list[float], list[float]]:
    """The root mean square of the signal after 0, 1, … layers, and of the gradient at the same places."""
    torch.manual_seed(seed)
    x = torch.randn(64, width, requires_grad=True)
    places = [x]
    for _ in range(depth):
        places.append((places[-1] @ (torch.randn(width, width) * gain / math.sqrt(width)).T).relu())
    grads = torch.autograd.grad(places[-1], places, torch.randn(64, width))
    signal, gradient = ([part.square().mean().sqrt().item() for part in parts] for parts in (places, grads))
    return signal, gradient


def slope(values: Sequence[float]) -> float:
    """The factor from one place to the next: a straight line through the logarithms, by least squares."""
    logs = torch.tensor(values, dtype=torch.float64).log()
    steps = torch.arange(len(logs), dtype=torch.float64) - (len(logs) - 1) / 2
    return math.exp(float((steps * logs).sum() / steps.square().sum()))


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """1,000 images to train on, then 297 for validation and 500 for the test; in an order drawn once."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.data, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    x = (x - x[:1000].mean()) / x[:1000].std()
    cuts = {"train": slice(1000), "validation": slice(1000, 1297), "test": slice(1297, None)}
    return {split: (x[part], y[part]) for split, part in cuts.items()}


def accuracies(optimiser: str, gain: float, lr: float, seed: int, config: Config) -> dict[str, float]:
    """Train a stack and return its accuracy on validation and test data; that of a guess if it left the numbers."""
    adamw_step = load(ROOT / "solutions/00-warm-up.py").adamw_step
    torch.manual_seed(seed)
    widths = [64] + [config["narrow"]] * (config["deep"] - 1) + [10]
    weights = [torch.randn(o, i) * gain / math.sqrt(i) for i, o in pairwise(widths)]
    parameters = [w.requires_grad_() for w in weights] + [torch.zeros(o, requires_grad=True) for o in widths[1:]]
    means = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    def logits(x: Tensor) -> Tensor:
        for i in range(config["deep"]):
            x = x @ parameters[i].T + parameters[config["deep"] + i]
            x = x.relu() if i + 1 < config["deep"] else x
        return x

    data = digits()
    x, y = data["train"]
    for step in range(1, config["steps"] + 1):
        rows = torch.randint(len(y), (config["batch"],))
        grads = torch.autograd.grad(cross_entropy(logits(x[rows]), y[rows]), parameters)
        for i, (p, grad) in enumerate(zip(parameters, grads, strict=True)):
            old = p.detach()
            if optimiser == "adamw":
                settings: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
                new, *means[i] = adamw_step(old, grad, *means[i], step, **settings)
            else:
                new = old - lr * grad
            parameters[i] = new.requires_grad_()
    with torch.no_grad():
        return {
            split: (logits(data[split][0]).argmax(1) == data[split][1]).float().mean().item()
            for split in ("validation", "test")
        }


def run(config: Config, seeds: Sequence[int]) -> Results:
    found: Results = {"gains": GAINS, "layers": list(range(config["depth"] + 1))}
    for name, gain in GAINS.items():
        both = [sizes(config["depth"], config["width"], gain, seed) for seed in seeds]
        for i, what in enumerate(("signal", "gradient")):
            by_layer = zip(*(pair[i] for pair in both), strict=True)
            found.setdefault(what, {})[name] = [estimate(values) for values in by_layer]
            factors = [slope(pair[i] if what == "signal" else pair[i][::-1]) for pair in both]
            found.setdefault(f"{what}_factor", {})[name] = estimate(factors)
        found.setdefault("expected_factor", {})[name] = gain / math.sqrt(2)
    trials: list[dict[str, Any]] = []
    found |= {"accuracy": {"sgd": {}, "adamw": {}}, "learning_rate": {"sgd": {}, "adamw": {}}}
    for optimiser, grid in config["learning_rates"].items():
        for name, gain in GAINS.items():
            tried = []
            for lr in grid:
                accuracy = accuracies(optimiser, gain, lr, config["tuning_seed"], config)["validation"]
                tried.append({"optimiser": optimiser, "gain": name, "learning_rate": lr, "accuracy": accuracy})
            trials += tried
            lr = max(tried, key=lambda trial: trial["accuracy"])["learning_rate"]
            found["learning_rate"][optimiser][name] = lr
            by_seed = [accuracies(optimiser, gain, lr, seed, config)["test"] for seed in seeds]
            found["accuracy"][optimiser][name] = estimate(by_seed)
    return {**found, "trials": trials}


def verdict(found: Results) -> Verdict:
    off = [
        abs(found[f"{what}_factor"][name]["mean"] / expected - 1)
        for what in ("signal", "gradient")
        for name, expected in found["expected_factor"].items()
    ]
    leads, bests = [], []
    for by_gain in found["accuracy"].values():
        others = max(by_gain[name]["high"] for name in GAINS if name != "root_2")
        leads.append(by_gain["root_2"]["mean"] > 0.8 and others < by_gain["root_2"]["low"])
        bests.append(max(by_gain, key=lambda name: by_gain[name]["mean"]) == "root_2")
    if max(off) <= 0.03 and all(leads):
        return "strong"
    return "weak" if max(off) <= 0.1 and all(bests) else "null"


EXPERIMENT = Experiment(
    name="c00_initialisation",
    claim=(
        "Through 40 layers with ReLU, each layer multiplies signal and gradient by gain/√2, within 3 %: both vanish "
        "below a gain of √2 and explode above it. From a gain of √2 a stack of 20 layers learns the digits with more "
        "than 80 % right, by plain gradient descent and by AdamW, each at the best of its learning rates; from 0.5, 1 "
        "and 2 both learn them less well."
    ),
    run=run,
    verdict=verdict,
    config={
        "depth": 40,
        "width": 256,
        "deep": 20,
        "narrow": 64,
        "batch": 64,
        "steps": 200,
        "learning_rates": {
            "sgd": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
            "adamw": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03],
        },
        "tuning_seed": 100,
    },
    reduced={
        "width": 128,
        "steps": 60,
        "deep": 10,
        "narrow": 32,
        "learning_rates": {"sgd": [0.03], "adamw": [0.001]},
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
