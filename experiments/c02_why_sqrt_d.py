"""Why are scores divided by √d?

Queries and keys have independent entries of mean 0 and variance 1, so a score is a sum of d products and has variance d
(Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1, footnote 4). Each query looks at 64 keys of its own. We compare
no scaling, 1/√d and 1/d.

Judged by: the mean largest weight, the mean entropy, and the median size of the gradient that the softmax lets through
to the scores from a random one of variance 1. Means of gradients are kept too, because they tell another story: without
scaling a few queries get a large gradient and most get none. This is attention before training; a trained model can
also learn smaller queries.
"""

import math
from collections.abc import Sequence

import torch

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

SCALES = {"none": lambda d: 1.0, "sqrt_d": lambda d: 1 / math.sqrt(d), "d": lambda d: 1 / d}


def run(config: Config, seeds: Sequence[int]) -> Results:
    attention = load(ROOT / "solutions/02-self-attention.py").attention
    n_keys, n_queries = config["n_keys"], config["n_queries"]
    identity = torch.eye(n_keys).expand(n_queries, -1, -1)  # values for which attention returns its weights

    def measures(d: int, scale: float, seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(n_queries, 1, d, generator=generator, requires_grad=True)
        k = torch.randn(n_queries, n_keys, d, generator=generator)
        upstream = torch.randn(n_queries, 1, n_keys, generator=generator)
        # attention divides by √d itself: multiply by it first, and by the scale under test
        weights = attention(q * math.sqrt(d) * scale, k, identity)
        (to_query,) = torch.autograd.grad((weights * upstream).sum(), q)
        w = weights.detach()
        to_scores = w * (upstream - (w * upstream).sum(-1, keepdim=True))  # the softmax's own derivative
        softmax_gradient, query_gradient = to_scores.norm(dim=-1), to_query.norm(dim=-1)
        return {
            "score_sd": (q.detach() @ k.mT * scale).std().item(),
            "entropy": torch.special.entr(w).sum(-1).mean().item(),
            "largest_weight": w.amax(-1).mean().item(),
            "softmax_gradient": softmax_gradient.median().item(),
            "softmax_gradient_mean": softmax_gradient.mean().item(),
            "starved": (softmax_gradient < config["starved_below"]).float().mean().item(),
            "query_gradient": query_gradient.median().item(),
            "query_gradient_mean": query_gradient.mean().item(),
        }

    found: Results = {"d_head": config["d_head"], "n_keys": n_keys, "uniform_entropy": math.log(n_keys)}
    for name, scale in SCALES.items():
        for d in config["d_head"]:
            by_seed = [measures(d, scale(d), seed) for seed in seeds]
            for measure in by_seed[0]:
                row = found.setdefault(measure, {}).setdefault(name, [])
                row.append(estimate([values[measure] for values in by_seed]))
    return found


def verdict(found: Results) -> Verdict:
    def change(measure: str, scale: str) -> float:
        """By what factor the mean at the smallest d_head differs from that at the largest, at least 1."""
        low, high = sorted((found[measure][scale][0]["mean"], found[measure][scale][-1]["mean"]))
        return high / low

    collapses = found["largest_weight"]["none"][-1]["low"] > 0.9 and change("softmax_gradient", "none") >= 100
    steady = max(change(measure, "sqrt_d") for measure in ("entropy", "largest_weight", "softmax_gradient")) <= 1.5
    blurs = found["entropy"]["d"][-1]["low"] > 0.99 * found["uniform_entropy"]
    if collapses and steady and blurs:
        return "strong"
    return "weak" if change("softmax_gradient", "none") > change("softmax_gradient", "sqrt_d") else "null"


EXPERIMENT = Experiment(
    name="c02_why_sqrt_d",
    claim=(
        "Without scaling, attention collapses as d_head grows from 4 to 1024: the largest of 64 weights passes 0.9 on "
        "average, and the median gradient that the softmax lets through falls at least a hundredfold. With 1/√d the "
        "entropy, the largest weight and that gradient stay within a factor of 1.5. With 1/d the weights become "
        "uniform: at 1024 their entropy is within 1 % of the maximum."
    ),
    run=run,
    verdict=verdict,
    config={"d_head": [4, 16, 64, 256, 1024], "n_keys": 64, "n_queries": 1024, "starved_below": 0.001},
    reduced={"n_queries": 128},
)

if __name__ == "__main__":
    main(EXPERIMENT)
