"""How much faster is a token with a KV cache, and does it change what is written?

A small decoder made of the chapter's own parts takes one step at several lengths: once with a cache that holds the
past, so that it reads one token, and once without, so that it reads the whole text again. Both compute the logits of
the last position only. They take turns; from the rounds of one seed the ratio of the median CPU times is kept.

In the same run the model, with random weights, writes greedily from random prompts in both ways. The tokens are
compared one by one, and so are the logits at every step.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch

from experiments.cached_decoder import CachedDecoder
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main
from ichimon.notebook import load


def new_model(parts: Any, config: Config, seed: int) -> CachedDecoder:
    """With random weights, larger than initial ones and in gains and biases too, so that a mistake could not hide."""
    torch.manual_seed(seed)
    sizes = {name: config[name] for name in ("d_model", "n_layers", "n_heads")}
    model = CachedDecoder(config["vocabulary"], parts, **sizes, longest=2 * max(config["lengths"])).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
        elif name.endswith("bias"):
            parameter.normal_(std=0.02)  # larger ones favour the same token at every step
        else:
            parameter.normal_(mean=1, std=0.1)
    model.tokens.weight.normal_(std=0.05)  # else a token's own embedding outweighs the rest, and it is written again
    return model


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/07-kv-cache.py")
    with torch.no_grad():
        return measured(parts, config, seeds)


def measured(parts: Any, config: Config, seeds: Sequence[int]) -> Results:
    cached: dict[int, list[float]] = {n: [] for n in config["lengths"]}
    again: dict[int, list[float]] = {n: [] for n in config["lengths"]}
    same, apart, size, different = [], [], [], []
    for seed in seeds:
        model = new_model(parts, config, seed)
        for n in config["lengths"]:
            text, cache = torch.randint(config["vocabulary"], (1, n)), parts.KVCache()
            model(text[:, :-1], cache)
            steps = {  # the cache grows by one token a round, which at these lengths is nothing
                "cached": partial(model, text[:, -1:], cache, only_last=True),
                "again": partial(model, text, only_last=True),
            }
            times = interleaved(steps, repeats=config["repeats"])
            cached[n].append(median(times["cached"]))
            again[n].append(median(times["again"]))

        prompt = torch.randint(config["vocabulary"], (config["batch"], config["prompt"]))
        seen: list[torch.Tensor] = []

        def greedy(logits: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(logits)
            return logits.argmax(-1)

        written = parts.generate(model, prompt, config["n_new"], parts.KVCache(), choose=greedy, chunk=config["chunk"])
        text, gaps, sizes = prompt, [], []
        for logits in seen:
            whole = model(text)[:, -1]
            gaps.append((logits - whole).abs().max().item())
            sizes.append(whole.std().item())
            text = torch.cat([text, whole.argmax(-1)[:, None]], 1)
        same.append((written == text)[:, config["prompt"] :].float().mean().item())
        different.append(len(written[:, config["prompt"] :].unique()))
        apart.append(max(gaps))
        size.append(sum(sizes) / len(sizes))
    shortest = [row[0] for row in zip(*cached.values(), strict=True)]
    lengths = config["lengths"]

    def slope(costs: dict[int, list[float]], which: int) -> float:
        far = [n for n in lengths if n >= config["fit_from"]]
        return float(np.polyfit(np.log(far), np.log([costs[n][which] for n in far]), 1)[0])

    return {
        "lengths": lengths,
        "again_over_cached": [estimate([a / c for a, c in zip(again[n], cached[n], strict=True)]) for n in lengths],
        "relative_time": {
            name: [estimate([cost / unit for cost, unit in zip(costs[n], shortest, strict=True)]) for n in lengths]
            for name, costs in (("cached", cached), ("again", again))
        },
        "slope": {
            name: estimate([slope(costs, which) for which in range(len(seeds))])
            for name, costs in (("cached", cached), ("again", again))
        },
        "same_tokens": estimate(same),
        "different_tokens": estimate(different),
        "tokens_compared": config["batch"] * config["n_new"] * len(seeds),
        "largest_difference_of_logits": estimate(apart),
        "spread_of_logits": estimate(size),
    }


def verdict(found: Results) -> Verdict:
    ratios = [ratio["mean"] for ratio in found["again_over_cached"]]
    same = min(found["same_tokens"]["values"]) == 1
    growing = all(a < b for a, b in pairwise(ratios))
    if same and growing and found["again_over_cached"][-1]["low"] >= 10:
        return "strong"
    return "weak" if same and ratios[-1] > 2 * ratios[0] else "null"


EXPERIMENT = Experiment(
    name="c07_tokens_per_second",
    claim=(
        "Every greedy token is the same with and without the cache. At each doubling of the length the cache saves a "
        "larger factor of the CPU time of a step, and at 1,024 tokens at least a factor of 10."
    ),
    run=run,
    verdict=verdict,
    config={
        "vocabulary": 1024,
        "d_model": 128,
        "n_layers": 4,
        "n_heads": 4,
        "lengths": [32, 64, 128, 256, 512, 1024],
        "fit_from": 256,
        "repeats": 15,
        "batch": 4,
        "prompt": 20,
        "chunk": 8,
        "n_new": 60,
    },
    reduced={"d_model": 64, "n_layers": 2, "lengths": [32, 128, 512], "fit_from": 128, "repeats": 5, "n_new": 20},
)

if __name__ == "__main__":
    main(EXPERIMENT)
