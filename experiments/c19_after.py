"""How much can be taken from a trained model afterwards, and does it matter how?

The dense model that ships with the course is shrunk in many ways and judged by its loss on test text, in nats a token;
nothing is trained again. Only the matrices of its layers are touched: the embedding stays. A seed draws the test text
and the text on which scores are calibrated; all variants of a seed see the same, so their differences are paired.

Pruned: the smallest magnitudes of the whole model (global), the smallest of each row, the smallest Wanda scores of each
row, 2:4 with either, and whole hidden units of the feed-forward layers, chosen by the product of the norms of a
unit's three weight vectors. A share of hidden units is a share of the feed-forward weights only, so it takes fewer
weights than the others at the same share. Quantised: weights rounded to fewer and fewer bits, with a scale for each row
or for each matrix; and the int8 layers of the notebook, which quantise their inputs too.

The claim was written after a pilot by hand on other text (windows of a seed of its own).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ichimon import corpus, moe, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

TEXT = corpus.PROSE + corpus.CODE  # what the model was trained on


def percent(share: float) -> str:
    return str(round(100 * share))


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The matrices of the layers; the read-out is the embedding."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"}


def heard(model: nn.Module, batches: train.Batches, n: int) -> dict[str, Tensor]:
    """What each matrix gets as input on the first n batches, [tokens, n_in]."""
    found: dict[str, list[Tensor]] = {name: [] for name in linears(model)}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs: found[name].append(inputs[0].flatten(0, -2))

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in linears(model).items()]
    train.evaluate(model, batches, n)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def replaced(model: nn.Module, make: Callable[[str, nn.Linear], nn.Module]) -> nn.Module:
    """A copy of the model with another module in place of each matrix."""
    model = copy.deepcopy(model)
    for name, layer in linears(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, make(name, layer))
    return model


@torch.no_grad()
def changed(model: nn.Module, new_weight: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of the model with another weight in each matrix."""
    model = copy.deepcopy(model)
    for name, layer in linears(model).items():
        layer.weight.copy_(new_weight(name, layer.weight))
    return model


def statics(reference: Any, model: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    """The model with static int8 layers, calibrated on these inputs."""

    def calibrated(name: str, linear: nn.Linear) -> Any:
        layer = reference.StaticInt8Linear(linear)
        layer.observe(inputs[name])
        return layer

    return replaced(model, calibrated)


@torch.no_grad()
def without_units(model: nn.Module, share: float) -> nn.Module:
    """A copy without that share of the hidden units of each feed-forward layer: its matrices are smaller."""
    model = copy.deepcopy(model)
    parts: list[Any] = list(model.modules())
    for module in parts:
        if hasattr(module, "down_proj"):
            up, down = (module.gate_proj, module.up_proj), module.down_proj
            score = up[0].weight.norm(dim=1) * up[1].weight.norm(dim=1) * down.weight.norm(dim=0)
            kept = score.topk(round((1 - share) * len(score))).indices.sort().values
            for layer in up:
                layer.weight = nn.Parameter(layer.weight[kept])
            down.weight = nn.Parameter(down.weight[:, kept])
    return model


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/19-shrinking.py")
    model, _ = moe.load_trained("dense")
    texts = {split: corpus.tokens(TEXT, split) for split in ("train", "test")}
    length = config["length"]
    losses: dict[str, dict[str, list[float]]] = {}

    def rows(name: str, weight: Tensor, x: Tensor, share: float) -> Tensor:
        return weight * reference.wanda_mask(weight, x, round((1 - share) * weight.shape[1]), weight.shape[1])

    def rounded(weight: Tensor, bits: int, by_row: bool) -> Tensor:
        largest = weight.abs().amax(1, keepdim=True) if by_row else weight.abs().max()
        return reference.fake_quantize(weight, largest / (2 ** (bits - 1) - 1), bits)

    for seed in seeds:
        test = train.windows(texts["test"], batch=config["batch"], length=length, seed=seed)
        calibration = train.windows(texts["train"], batch=config["batch"], length=length, seed=1000 + seed)
        inputs = heard(model, calibration, config["calibration_batches"])
        alike = {name: torch.ones(1, x.shape[1]) for name, x in inputs.items()}
        shrunk: dict[str, dict[str, nn.Module]] = {"none": {"": model}}
        matrices = [layer.weight for layer in linears(model).values()]
        for share in config["sparsities"]:
            masks = dict(zip(linears(model), reference.magnitude_mask(matrices, share), strict=True))
            for kind, new in (
                ("global", lambda name, weight: weight * masks[name]),  # noqa: B023 (called at once)
                ("row", lambda name, weight: rows(name, weight, alike[name], share)),  # noqa: B023
                ("wanda", lambda name, weight: rows(name, weight, inputs[name], share)),  # noqa: B023
            ):
                shrunk.setdefault(kind, {})[percent(share)] = changed(model, new)
            shrunk.setdefault("units", {})[percent(share)] = without_units(model, share)
        for kind, x in (("row_2_4", alike), ("wanda_2_4", inputs)):
            shrunk[kind] = {
                "50": changed(model, lambda name, weight: weight * reference.wanda_mask(weight, x[name], 2, 4))  # noqa: B023
            }
        for bits in config["bits"]:
            for kind, by_row in (("bits_by_row", True), ("bits_by_matrix", False)):
                shrunk.setdefault(kind, {})[str(bits)] = changed(
                    model,
                    lambda name, weight: rounded(weight, bits, by_row),  # noqa: B023
                )
        shrunk["int8"] = {
            "dynamic": replaced(model, lambda name, layer: reference.DynamicInt8Linear(layer)),
            "static": statics(reference, model, inputs),
        }
        for kind, variants in shrunk.items():
            for at, variant in variants.items():
                values = losses.setdefault(kind, {}).setdefault(at, [])
                values.append(train.evaluate(variant, test, config["evaluate_batches"]))
    base = losses.pop("none")[""]
    return {
        "loss": estimate(base),
        "added": {kind: {at: paired(values, base) for at, values in row.items()} for kind, row in losses.items()},
        "wanda_minus_row": {at: paired(losses["wanda"][at], losses["row"][at]) for at in losses["row"]},
        "two_of_four_minus_wanda": paired(losses["wanda_2_4"]["50"], losses["wanda"]["50"]),
        "units_minus_wanda": paired(losses["units"]["50"], losses["wanda"]["50"]),
        "matrix_minus_row_3_bits": paired(losses["bits_by_matrix"]["3"], losses["bits_by_row"]["3"]),
        "weights_in_matrices": sum(weight.numel() for weight in matrices),
        "weights_in_feed_forward": sum(layer.weight.numel() for name, layer in linears(model).items() if "mlp" in name),
    }


def verdict(found: Results) -> Verdict:
    added = found["added"]
    eight = all(added["int8"][kind]["high"] < 0.01 for kind in ("dynamic", "static"))
    worse = [
        found["two_of_four_minus_wanda"],
        found["units_minus_wanda"],
        found["matrix_minus_row_3_bits"],
        {"low": -found["wanda_minus_row"]["50"]["high"], "mean": -found["wanda_minus_row"]["50"]["mean"]},
    ]
    if eight and all(difference["low"] > 0 for difference in worse):
        return "strong"
    small = all(added["int8"][kind]["mean"] < 0.05 for kind in ("dynamic", "static"))
    return "weak" if small and sum(difference["mean"] > 0 for difference in worse) >= 3 else "null"


EXPERIMENT = Experiment(
    name="c19_after",
    claim=(
        "Nothing is trained again. All matrices in int8, inputs too, cost less than 0.01 nats a token, dynamic and "
        "static. With half of the weights pruned, Wanda's scores cost less than magnitudes in the same rows, 2:4 costs "
        "more than free places in a row, and whole hidden units cost more still than single weights. With 3 bits, one "
        "scale for a matrix costs more than one for each row. All differences are paired, their 95 % intervals on one "
        "side of zero."
    ),
    run=run,
    verdict=verdict,
    config={
        "length": 96,
        "batch": 16,
        "calibration_batches": 2,
        "evaluate_batches": 4,
        "sparsities": [0.1, 0.3, 0.5, 0.7, 0.9],
        "bits": [8, 6, 5, 4, 3, 2],
    },
    reduced={"sparsities": [0.5], "bits": [3], "batch": 8, "evaluate_batches": 2, "calibration_batches": 1},
)

if __name__ == "__main__":
    main(EXPERIMENT)
