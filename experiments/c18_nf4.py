"""What do four bits cost: in the weights, and in the loss of a trained model?

Numbers are cut into blocks of 64, each is divided by its largest magnitude, and every quotient is replaced by the
nearest of a few values: the sixteen of NF4, or fifteen evenly spaced ones, which is what four-bit integers that are
the same on both sides of zero can hold. The error is the norm of the difference over the norm of the numbers, for

- normal: draws from a normal distribution, for which NF4 was made;
- trained: the linear layers of the small model that ships with the course, layer by layer;
- outliers: normal draws in which one number of each block is 20 times as large as usual.

Then the model runs with its layers rounded, without training, and we note by how much its loss on test text rises. One
seed is one set of draws and of windows of text. `double`: the block's scales in eight bits, too. `one block`: a single
scale for each matrix.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from experiments.moe import reference
from ichimon import corpus, train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main
from ichimon.moe import load_trained

Rounding = Callable[[Tensor], Tensor]


def nf4(x: Tensor) -> Tensor:
    lora = reference("18-lora")
    return lora.nf4_dequantize(*lora.nf4_quantize(x), x.shape)


def nf4_double(x: Tensor) -> Tensor:
    lora = reference("18-lora")
    packed, absmax = lora.nf4_quantize(x)
    return lora.nf4_dequantize(packed, lora.double_dequantize(*lora.double_quantize(absmax)), x.shape)


def nf4_one_block(x: Tensor) -> Tensor:
    lora = reference("18-lora")
    size = x.numel() + x.numel() % 2
    return lora.nf4_dequantize(*lora.nf4_quantize(x, size), x.shape, size)


def even(x: Tensor) -> Tensor:
    """Fifteen evenly spaced values, in blocks of 64."""
    blocks = x.reshape(-1, 64)
    step = blocks.abs().amax(-1, keepdim=True) / 7
    return ((blocks / step).round() * step).view_as(x)


ROUNDINGS: dict[str, Rounding] = {"nf4": nf4, "double": nf4_double, "even": even, "one block": nf4_one_block}


def error(x: Tensor, rounding: Rounding) -> float:
    return ((rounding(x) - x).norm() / x.norm()).item()


def layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks; the read-out is the embedding."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}


@torch.no_grad()
def rounded(model: nn.Module, rounding: Rounding) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in layers(model).values():
        layer.weight.copy_(rounding(layer.weight))
    return model


@torch.no_grad()
def run(config: Config, seeds: Sequence[int]) -> Results:
    model, bpe = load_trained("dense")
    written = corpus.texts(corpus.PROSE + corpus.CODE, "test")
    ids = torch.tensor([i for text in written for i in [*bpe.encode(text.text[:4000]).ids, 0]])
    models = {name: rounded(model, rounding) for name, rounding in ROUNDINGS.items()}
    errors: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in ROUNDINGS} for kind in ("normal", "outliers")
    }
    losses: dict[str, list[float]] = {name: [] for name in ("full", *ROUNDINGS)}
    for seed in seeds:
        torch.manual_seed(seed)
        x = torch.randn(config["blocks"], 64)
        large = x.clone()
        large[:, 0] *= 20
        for name, rounding in ROUNDINGS.items():
            errors["normal"][name].append(error(x, rounding))
            errors["outliers"][name].append(error(large, rounding))
        windows = train.windows(ids, batch=16, length=128, seed=seed)
        for name, each in {"full": model, **models}.items():
            losses[name].append(train.evaluate(each, windows, config["evaluate_batches"]))
    small = {
        name: [a / b for a, b in zip(values["nf4"], values["even"], strict=True)] for name, values in errors.items()
    }
    by_layer = {
        name: {kind: error(layer.weight, rounding) for kind, rounding in ROUNDINGS.items()}
        for name, layer in layers(model).items()
    }
    return {
        "error": {kind: {name: estimate(v) for name, v in rows.items()} for kind, rows in errors.items()},
        "nf4_over_even": {kind: estimate(values) for kind, values in small.items()},
        "by_layer": by_layer,
        "nf4_over_even_by_layer": [row["nf4"] / row["even"] for row in by_layer.values()],
        "trained_error": {kind: sum(row[kind] for row in by_layer.values()) / len(by_layer) for kind in ROUNDINGS},
        "loss": {name: estimate(values) for name, values in losses.items()},
        "loss_cost": {
            name: estimate([a - b for a, b in zip(losses[name], losses["full"], strict=True)]) for name in ROUNDINGS
        },
        "even_minus_nf4": estimate([a - b for a, b in zip(losses["even"], losses["nf4"], strict=True)]),
        "double_minus_nf4": estimate([a - b for a, b in zip(losses["double"], losses["nf4"], strict=True)]),
        "bits": {"nf4": 4 + 32 / 64, "double": 4 + 8 / 64 + 32 / (64 * 256)},
    }


def verdict(found: Results) -> Verdict:
    better = found["nf4_over_even"]["normal"]["high"] < 1 and max(found["nf4_over_even_by_layer"]) < 1
    cost = found["loss_cost"]["nf4"]
    if better and cost["low"] > 0 and cost["high"] < 0.05 and found["even_minus_nf4"]["low"] > 0:
        return "strong"
    return "weak" if better else "null"


EXPERIMENT = Experiment(
    name="c18_nf4",
    claim=(
        "NF4 rounds normal draws, and every trained layer, with a smaller error than evenly spaced values do. In the "
        "loss of a small trained model that error is visible and small: rounding all its layers costs more than zero "
        "and less than 0.05 nats (95 % interval), and evenly spaced values cost more than NF4."
    ),
    run=run,
    verdict=verdict,
    config={"blocks": 2000, "evaluate_batches": 4},
    reduced={"blocks": 200, "evaluate_batches": 1},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
