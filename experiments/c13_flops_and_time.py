"""An MoE layer computes less. How much of that does the clock show?

One layer of 8 experts, 2 for each token, forward only, beside two dense SwiGLUs: one with as many parameters as all
eight experts together (so 4 times the arithmetic), one with as many as a token uses. FLOPs are counted, router
included; times are CPU times on one thread, all taking turns, and only ratios are kept. The layer is computed by the
notebook's loop and by its sorted version. Each seed draws weights, router and tokens anew. Experts that were touched
are counted: their weights have to be fetched from memory, however few tokens they serve.

With evenly spread choices, n tokens touch 8·(1 − (1 − 2/8)ⁿ) experts on average: all but one tenth of an expert at 16.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main
from ichimon.notebook import load


class Dense(nn.Module):
    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2 * d_hidden, d_model) / d_model**0.5)
        self.down = nn.Parameter(torch.randn(d_model, d_hidden) / d_hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = linear(x, self.gate_up).chunk(2, -1)
        return linear(silu(gate) * up, self.down)


@torch.no_grad()
def run(config: Config, seeds: Sequence[int]) -> Results:
    chapter = load(ROOT / "solutions/13-router.py")
    d_model, d_hidden, n_experts, top_k = (config[name] for name in ("d_model", "d_hidden", "n_experts", "top_k"))
    sizes = config["tokens"]
    names = ("loop", "sorted", "dense_active")
    faster: dict[str, list[list[float]]] = {name: [[] for _ in sizes] for name in names}
    touched: list[list[int]] = [[] for _ in sizes]
    for seed in seeds:
        torch.manual_seed(seed)
        layer = chapter.MoELayer(d_model, d_hidden, n_experts, top_k)
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
        whole, active = Dense(d_model, n_experts * d_hidden), Dense(d_model, top_k * d_hidden)

        def by_sorting(x: Tensor, layer: Any = layer) -> Tensor:
            tokens = x.flatten(0, 1)
            weights, experts = chapter.route(layer.router(tokens), top_k)
            return chapter.grouped_experts(tokens, weights, experts, layer.gate_up, layer.down)

        for i, n in enumerate(sizes):
            x = torch.randn(n, 1, d_model)  # n texts that each wait for their next token
            calls: dict[str, Callable[[], Tensor]] = {
                "dense_total": partial(whole, x),
                "dense_active": partial(active, x),
                "loop": partial(layer, x),
                "sorted": partial(by_sorting, x),
            }
            times = interleaved(calls, repeats=max(5, config["repeats"] // max(1, n // 16)))
            for name in names:
                faster[name][i].append(median(times["dense_total"]) / median(times[name]))
            touched[i].append(len(chapter.route(layer.router(x.flatten(0, 1)), top_k)[1].unique()))
    expert, router = 6 * d_model * d_hidden, 2 * d_model * n_experts  # FLOPs a token
    return {
        "tokens": sizes,
        "flops_saved": n_experts * expert / (top_k * expert + router),
        "megabytes": 4 * n_experts * 3 * d_model * d_hidden / 1e6,
        "faster": {name: [estimate(values) for values in rows] for name, rows in faster.items()},
        "experts_touched": [estimate(values) for values in touched],
        "experts_expected": [n_experts * (1 - (1 - top_k / n_experts) ** n) for n in sizes],
    }


def verdict(found: Results) -> Verdict:
    at = {n: i for i, n in enumerate(found["tokens"])}
    ours, saved = found["faster"]["sorted"], found["flops_saved"]
    many = ours[-1]
    if ours[at[16]]["high"] < saved / 2 and many["low"] > 0.75 * saved and ours[at[1]]["low"] > ours[at[16]]["high"]:
        return "strong"
    return "weak" if ours[at[16]]["mean"] < saved / 2 < many["mean"] else "null"


EXPERIMENT = Experiment(
    name="c13_flops_and_time",
    claim=(
        "A layer of 8 experts, 2 for each token, computes 4 times less than a dense layer with as many parameters, at "
        "every number of tokens. The clock agrees within a quarter at 512 tokens. At 16 tokens nearly every expert is "
        "touched, and less than half of the saving is left; at 1 token, where 2 experts are fetched, more of it is."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 512,
        "d_hidden": 1792,
        "n_experts": 8,
        "top_k": 2,
        "tokens": [1, 2, 4, 16, 64, 512],
        "repeats": 15,
    },
    reduced={"tokens": [1, 16, 512], "repeats": 5},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
