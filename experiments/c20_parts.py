"""Which part helps: attention, a convolution, a recurrent network, or two of them together?

Five models with equally many parameters read digits. Four of them see the same eight tokens, the rows of the image,
with learned positions: two layers of attention; of a GRU; of a convolution and attention (the chapter's HybridBlock);
of a GRU and attention. The fifth is a CNN that sees the image itself. Each reads its answer from the mean of what comes
out. Each is trained on 100 digits and on 1000, for equally many steps.

Judged by: the share of right answers on 500 new digits. Widths are chosen so that parameters agree within 10 %; the
arithmetic for one image is in the result, and the CNN's is the largest, because it uses a weight in many places.
Learning rates are chosen for each model and amount of data on validation digits, with a seed of its own.

Equal cost means equal parameters here. The data are small and clean: what holds on them need not hold for photographs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.senses import accuracy, best, digits, fitted, flops, parameters
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

TUNING_SEED = 100


class Rows(nn.Module):
    """Eight rows of an image through some layers, and the mean of them to the classes."""

    def __init__(self, d_model: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(8, d_model), nn.Parameter(0.3 * torch.randn(8, d_model))
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images[:, 0]) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class Whole(nn.Module):
    """The chapter's HybridBlock where nothing is padding."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, torch.ones(x.shape[:2], dtype=torch.bool))


class Recurrent(nn.Module):
    """A pre-norm GRU with a residual."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm, self.gru = nn.LayerNorm(d_model), nn.GRU(d_model, d_model, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gru(self.norm(x))[0]


class Convolutions(nn.Module):
    """Three convolutions of 3 · 3 with a pooling after each of the first two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second, self.third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.gelu(self.first(images)), 2)
        x = functional.max_pool2d(functional.gelu(self.second(x)), 2)
        return self.head(functional.gelu(self.third(x)).mean((-2, -1)))


def makers(reference: Any) -> dict[str, Callable[[int], nn.Module]]:
    """Each kind of model by its width."""

    def attention(d: int) -> nn.Module:
        return Rows(
            d,
            [
                nn.TransformerEncoderLayer(
                    d, 2, 4 * d, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(2)
            ],
        )

    return {
        "attention": attention,
        "gru": lambda d: Rows(d, [Recurrent(d) for _ in range(2)]),
        "conv + attention": lambda d: Rows(d, [Whole(reference.HybridBlock(d, 2, "conv", 3)) for _ in range(2)]),
        "gru + attention": lambda d: Rows(d, [Whole(reference.HybridBlock(d, 2, "gru")) for _ in range(2)]),
        "cnn": Convolutions,
    }


def run(config: Config, seeds: Sequence[int]) -> Results:
    kinds = makers(load(ROOT / "solutions/20-beyond-text.py"))
    data = digits()

    def width(make: Callable[[int], nn.Module]) -> int:
        return min(range(8, 80, 2), key=lambda d: abs(parameters(make(d)) - config["parameters"]))

    widths = {name: width(make) for name, make in kinds.items()}

    def trained(name: str, n: int, lr: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        chosen = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:n]
        part = (data["train"][0][chosen], data["train"][1][chosen])
        return fitted(kinds[name](widths[name]), part, steps=config["steps"], lr=lr, seed=seed, batch=config["batch"])

    trials: dict[str, dict[str, dict[str, float]]] = {}
    right: dict[str, dict[str, list[float]]] = {}
    for name in kinds:
        for n in config["digits"]:
            rates = config["learning_rates"]
            tried = {
                str(lr): accuracy(trained(name, n, lr, TUNING_SEED), data["validation"])
                for lr in (rates if len(rates) > 1 else ())
            }
            trials.setdefault(name, {})[str(n)] = tried
            lr = best(tried, rates[0])
            right.setdefault(name, {})[str(n)] = [accuracy(trained(name, n, lr, seed), data["test"]) for seed in seeds]
    few, many = (str(n) for n in config["digits"])
    lead = [a - b for a, b in zip(right["cnn"][few], right["attention"][few], strict=True)]
    later = [a - b for a, b in zip(right["cnn"][many], right["attention"][many], strict=True)]
    return {
        "digits": config["digits"],
        "accuracy": {name: {n: estimate(values) for n, values in by_n.items()} for name, by_n in right.items()},
        "cnn_minus_attention": {few: estimate(lead), many: estimate(later)},
        "lead_lost": paired(lead, later),
        "beside_attention": {
            name: {n: paired(right[name][n], right["attention"][n]) for n in (few, many)}
            for name in ("gru", "conv + attention", "gru + attention")
        },
        "width": widths,
        "parameters": {name: parameters(make(widths[name])) for name, make in kinds.items()},
        "flops": {name: flops(make(widths[name]), data["test"][0][:1]) for name, make in kinds.items()},
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    few, many = (str(n) for n in found["digits"])
    ahead = found["cnn_minus_attention"][few]["low"] > 0
    shrinks = found["cnn_minus_attention"][many]["mean"] < found["cnn_minus_attention"][few]["mean"] / 2
    mixed = found["beside_attention"]["conv + attention"][few]["low"] > 0
    if ahead and shrinks and mixed:
        return "strong"
    return "weak" if found["cnn_minus_attention"][few]["mean"] > 0 and shrinks else "null"


EXPERIMENT = Experiment(
    name="c20_parts",
    claim=(
        "At equal parameters and with 100 digits to learn from, the CNN reads more new digits than attention alone, "
        "and a convolution before attention helps it; with 1000 digits the CNN's lead is less than half as large."
    ),
    run=run,
    verdict=verdict,
    config={
        "parameters": 20_000,
        "digits": [100, 1000],
        "steps": 200,
        "batch": 32,
        "learning_rates": [0.001, 0.003, 0.01],
    },
    reduced={"parameters": 6_000, "steps": 60, "batch": 16, "learning_rates": [0.01]},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
