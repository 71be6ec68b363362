"""What does one loud channel do to a model whose inputs are quantised, and who notices first?

Large language models have a few channels whose activations are far larger than the rest (Dettmers et al. 2022,
arXiv:2208.07339). The small model that ships with the course has none, so one is planted in front of each of its
layers: the gain of a norm is multiplied by a factor in one channel, drawn at random, and the columns of the matrices
that read this channel are divided by it. In float32 the model computes what it did before.

Then its matrices become the int8 layers of the notebook. Neither a scale for each output nor one for each token helps
against a loud channel: every token has it. Moving the factor back from the inputs into the weights does: that is the
idea of SmoothQuant (Xiao et al. 2023, arXiv:2211.10438), here with the loudness of each channel as calibration text
shows it and half of the way (α = 0.5).

A seed draws the channels, the test text and the calibration text. Reported is the loss that is added, in nats a token.
The claim was written after a pilot by hand with another seed.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.c19_after import TEXT, heard, replaced, statics
from ichimon import corpus, moe, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load


def readers(model: Any) -> list[tuple[nn.Module, dict[str, nn.Linear]]]:
    """Each norm and the matrices that read what it gives, by name."""
    found = []
    for i, layer in enumerate(model.model.layers):
        attention = {f"model.layers.{i}.self_attn.{name}_proj": layer.self_attn for name in "qkv"}
        feed_forward = {f"model.layers.{i}.mlp.{name}_proj": layer.mlp for name in ("gate", "up")}
        for norm, names in ((layer.input_layernorm, attention), (layer.post_attention_layernorm, feed_forward)):
            found.append((norm, {name: getattr(part, name.rpartition(".")[2]) for name, part in names.items()}))
    return found


@torch.no_grad()
def planted(model: nn.Module, factor: float, seed: int) -> nn.Module:
    """A copy in which one channel behind each norm is louder by the factor, and computes the same."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for norm, matrices in readers(model):
        gain: Tensor = norm.get_parameter("weight")
        channel = int(torch.randint(len(gain), (), generator=generator))
        gain[channel] *= factor
        for layer in matrices.values():
            layer.weight[:, channel] /= factor
    return model


@torch.no_grad()
def smoothed(model: nn.Module, inputs: dict[str, Tensor]) -> nn.Module:
    """A copy in which each channel's loudness is shared between inputs and weights: SmoothQuant with α = 0.5."""
    model = copy.deepcopy(model)
    for norm, matrices in readers(model):
        loud = inputs[next(iter(matrices))].abs().amax(0)
        strong = torch.stack([layer.weight.abs().amax(0) for layer in matrices.values()]).amax(0)
        factors = (loud / strong).sqrt().clamp_min(1e-5)
        norm.get_parameter("weight").div_(factors)
        for layer in matrices.values():
            layer.weight.mul_(factors)
    return model


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/19-shrinking.py")
    model, _ = moe.load_trained("dense")
    texts = {split: corpus.tokens(TEXT, split) for split in ("train", "test")}
    kinds = ("float32", "dynamic", "static", "dynamic_smoothed", "static_smoothed")
    added: dict[str, list[list[float]]] = {kind: [[] for _ in config["factors"]] for kind in kinds}
    for seed in seeds:
        test, calibration = (
            train.windows(texts[split], batch=config["batch"], length=config["length"], seed=seed + 1000 * i)
            for i, split in enumerate(("test", "train"))
        )
        base = train.evaluate(model, test, config["evaluate_batches"])
        for i, factor in enumerate(config["factors"]):
            loud = planted(model, factor, seed)
            smooth = smoothed(loud, heard(loud, calibration, config["calibration_batches"]))
            variants = {"float32": loud}
            for end, variant in (("", loud), ("_smoothed", smooth)):
                variants[f"dynamic{end}"] = replaced(variant, lambda name, layer: reference.DynamicInt8Linear(layer))
                inputs = heard(variant, calibration, config["calibration_batches"])
                variants[f"static{end}"] = statics(reference, variant, inputs)
            for kind, variant in variants.items():
                added[kind][i].append(train.evaluate(variant, test, config["evaluate_batches"]) - base)
    at = config["factors"].index(100)
    return {
        "factors": config["factors"],
        "added": {kind: [estimate(values) for values in rows] for kind, rows in added.items()},
        "static_minus_dynamic_at_100": paired(added["static"][at], added["dynamic"][at]),
    }


def verdict(found: Results) -> Verdict:
    added, at = found["added"], found["factors"].index(100)
    same = all(abs(row["mean"]) < 1e-3 for row in added["float32"])
    healed = all(added[kind][at]["high"] < 0.02 for kind in ("dynamic_smoothed", "static_smoothed"))
    hurt = added["dynamic"][at]["low"] > 0.02 and found["static_minus_dynamic_at_100"]["low"] > 0
    if same and healed and hurt:
        return "strong"
    direction = added["static"][at]["mean"] > added["dynamic"][at]["mean"] > added["dynamic_smoothed"][at]["mean"]
    return "weak" if same and direction else "null"


EXPERIMENT = Experiment(
    name="c19_outlier",
    claim=(
        "A channel that is 100 times as loud changes nothing in float32 (less than 0.001 nats). In int8 it costs more "
        "than 0.02 nats with dynamic scales and more than that with static ones. With its loudness moved half of the "
        "way into the weights, both cost less than 0.02."
    ),
    run=run,
    verdict=verdict,
    config={
        "length": 96,
        "batch": 16,
        "calibration_batches": 2,
        "evaluate_batches": 3,
        "factors": [1, 10, 30, 100, 300],
    },
    reduced={"factors": [100], "batch": 4, "evaluate_batches": 1, "calibration_batches": 1},
)

if __name__ == "__main__":
    main(EXPERIMENT)
