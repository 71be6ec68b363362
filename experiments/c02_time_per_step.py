"""What does a training step cost, by a recurrent layer and by self-attention, as the sequence grows?

One GRU layer and one causal self-attention layer with as nearly equal parameters as possible read the same batch. A
step is the forward and the backward pass. The two take turns; only the ratio of their CPU times is kept, and from the
rounds of one seed the ratio of the medians.

All of it runs on one core. A GRU has to take its steps one after another, attention does all positions at once
(Vaswani et al. 2017, arXiv:1706.03762, table 1: n sequential operations against one). On one core there is nothing to
do at once, so this test leaves out the larger part of attention's advantage on a GPU, and what it shows is work.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main
from ichimon.notebook import load


def step(layer: nn.Module, *inputs: Tensor) -> None:
    output = layer(*inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()  # a GRU also returns its last state


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/02-self-attention.py")
    ratios: dict[int, list[float]] = {n: [] for n in config["lengths"]}
    for seed in seeds:
        torch.manual_seed(seed)
        attention = reference.MultiHeadAttention(config["d_model"], config["n_heads"])
        gru = nn.GRU(config["d_model"], config["gru_hidden"], batch_first=True)
        for n in config["lengths"]:
            x = torch.randn(config["batch"], n, config["d_model"], requires_grad=True)
            steps = {"attention": partial(step, attention, x, reference.causal_mask(n)), "gru": partial(step, gru, x)}
            times = interleaved(steps, repeats=config["repeats"])
            ratios[n].append(median(times["gru"]) / median(times["attention"]))
    layers = {"attention": attention, "gru": gru}
    return {
        "lengths": config["lengths"],
        "gru_over_attention": [estimate(by_seed) for by_seed in ratios.values()],
        "parameters": {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items()},
    }


def verdict(found: Results) -> Verdict:
    ratios = found["gru_over_attention"]
    if ratios[0]["low"] > 1 > ratios[-1]["high"]:
        return "strong"
    return "weak" if ratios[0]["mean"] > ratios[-1]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c02_time_per_step",
    claim=(
        "Even on one core, where nothing runs in parallel, a training step of a GRU costs more CPU time than one of "
        "causal self-attention with as many parameters at length 64. Attention's work grows with the square of the "
        "length, so the ratio falls with the length, and at 1024 the GRU is the cheaper one."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "n_heads": 4,
        "gru_hidden": 48,
        "batch": 8,
        "lengths": [64, 128, 256, 512, 1024],
        "repeats": 7,
    },
    reduced={"lengths": [64, 512], "repeats": 3},
)

if __name__ == "__main__":
    main(EXPERIMENT)
