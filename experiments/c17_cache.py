"""How often is the expert that a token asks for already in the cache?

Two kinds of requests go through the ExpertCache of chapter 17's notebook. The first is drawn: independent requests for
64 experts, the i-th favourite as likely as 1/i to the power of the skew. What an LRU cache does with such requests is
known: Che's approximation (Che, Tung and Wang 2002) gives the hit rate from the probabilities alone.

The second is real: the routing of a small decoder with 16 experts a layer and top-2, trained on English with and
without the balancing loss, reading test text token by token, with a cache for each layer. Its requests are not
independent, so we also let the same tokens come in a shuffled order: what is left then is skew, what is lost is the
neighbourhood.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from experiments import moe
from experiments.c17_add_expert import Growing, fit, text
from ichimon import corpus
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired


def hit_rate(requests: Sequence[int], capacity: int, warm: int = 0) -> float:
    """The part of the requests after the first `warm` ones that find their expert."""
    cache = moe.reference("17-moe-at-scale").ExpertCache(lambda expert: None, capacity)
    for expert in requests[:warm]:
        cache.fetch(expert)
    before = cache.hits
    for expert in requests[warm:]:
        cache.fetch(expert)
    return (cache.hits - before) / (len(requests) - warm)


def che(probabilities: np.ndarray, capacity: int) -> float:
    """Che's approximation: an expert is there if it was asked for within the last t requests; t fills the cache."""
    if capacity >= len(probabilities):
        return 1.0
    low, high = 0.0, 1e9
    for _ in range(200):
        t = (low + high) / 2
        filled = (1 - np.exp(-probabilities * t)).sum()
        low, high = (t, high) if filled < capacity else (low, t)
    return float((probabilities * (1 - np.exp(-probabilities * low))).sum())


def drawn_by(p: np.ndarray, n: int, seed: int) -> list[int]:
    return [int(expert) for expert in np.random.default_rng(seed).choice(len(p), size=n, p=p)]


def drawn(config: Config, seeds: Sequence[int]) -> list[Results]:
    found = []
    for skew in config["skews"]:
        p = np.arange(1.0, config["n_drawn"] + 1) ** -skew
        p /= p.sum()
        streams = [drawn_by(p, config["requests"], seed) for seed in seeds]
        found.append(
            {
                "skew": skew,
                "lru": [
                    estimate([hit_rate(stream, capacity, len(stream) // 4) for stream in streams])
                    for capacity in config["capacities"]
                ],
                "che": [che(p, capacity) for capacity in config["capacities"]],
                "favourites": [float(p[:capacity].sum()) for capacity in config["capacities"]],
            }
        )
    return found


def traces(config: Config, seed: int, balance: float) -> list[Tensor]:
    """For each layer of a trained model the experts [tokens, top_k] of a stretch of test text."""
    torch.manual_seed(seed)
    model = moe.decoder(
        corpus.VOCABULARY,
        lambda: Growing(config["d_model"], config["d_hidden"], n_experts=config["n_experts"], top_k=config["top_k"]),
        length=config["length"],
        d_model=config["d_model"],
        n_layers=config["n_layers"],
    )
    fit(
        model,
        config,
        "english",
        steps=config["steps"],
        lr=config["lr"],
        seed=seed,
        decay=0.1,
        balance=balance,
    )
    n = config["trace"] // config["length"]
    ids = torch.as_tensor(text("english", "test", 60_000))[: n * config["length"]].view(n, -1)
    return list(moe.routes(model, ids).flatten(1, 2))


def run(config: Config, seeds: Sequence[int]) -> Results:
    kinds = {"unbalanced": 0.0, "balanced": config["balance"]}
    rates: dict[str, dict[str, list[list[float]]]] = {kind: {"text": [], "shuffled": []} for kind in kinds}
    skews: dict[str, list[float]] = {kind: [] for kind in kinds}
    again: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in seeds:
        order = torch.randperm(
            config["trace"] // config["length"] * config["length"], generator=torch.Generator().manual_seed(seed)
        )
        for kind, balance in kinds.items():
            layers = traces(config, seed, balance)
            for name, changed in (("text", layers), ("shuffled", [layer[order] for layer in layers])):
                rates[kind][name].append(
                    [
                        float(np.mean([hit_rate(layer.flatten().tolist(), capacity) for layer in changed]))
                        for capacity in range(1, config["n_experts"] + 1)
                    ]
                )
            counts = [torch.bincount(layer.flatten(), minlength=config["n_experts"]).float() for layer in layers]
            skews[kind].append(float(np.mean([(c.max() / c.mean()).item() for c in counts])))
            again[kind].append(
                float(
                    np.mean(
                        [(layer[1:, :, None] == layer[:-1, None]).any(-1).float().mean().item() for layer in layers]
                    )
                )
            )
    columns = range(config["n_experts"])
    quarter = config["n_experts"] // 4 - 1
    return {
        "capacities": config["capacities"],
        "drawn": drawn(config, seeds),
        "trained": {
            kind: {
                **{name: [estimate([row[c] for row in rows]) for c in columns] for name, rows in rates[kind].items()},
                "text_minus_shuffled": [
                    paired([row[c] for row in rates[kind]["text"]], [row[c] for row in rates[kind]["shuffled"]])
                    for c in columns
                ],
                "busiest_over_mean": estimate(skews[kind]),
                "asked_again_at_the_next_token": estimate(again[kind]),
            }
            for kind in kinds
        },
        "quarter": {
            "unbalanced": estimate([row[quarter] for row in rates["unbalanced"]["text"]]),
            "balanced": estimate([row[quarter] for row in rates["balanced"]["text"]]),
            "unbalanced_minus_balanced": paired(
                [row[quarter] for row in rates["unbalanced"]["text"]],
                [row[quarter] for row in rates["balanced"]["text"]],
            ),
            "uniform": (quarter + 1) / config["n_experts"],
            "text_minus_shuffled": paired(
                [row[quarter] for row in rates["balanced"]["text"]],
                [row[quarter] for row in rates["balanced"]["shuffled"]],
            ),
        },
    }


def verdict(found: Results) -> Verdict:
    apart = max(
        abs(lru["mean"] - che) for row in found["drawn"] for lru, che in zip(row["lru"], row["che"], strict=True)
    )
    eight = [row["lru"][1]["mean"] for row in found["drawn"]]  # 8 of 64, from no skew to the largest
    rises = eight[0] < 0.15 and eight[-1] > 0.75 and eight == sorted(eight)
    skewed = found["quarter"]["unbalanced_minus_balanced"]
    near = found["quarter"]["text_minus_shuffled"]
    if apart <= 0.02 and rises and skewed["low"] > 0 and near["mean"] < 0.1:
        return "strong"
    return "weak" if rises and skewed["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c17_cache",
    claim=(
        "An LRU cache lives on skew: with room for 8 of 64 experts its hit rate rises from below 0.15 for a router "
        "that likes all alike to above 0.75 at a skew of 2, and Che's approximation gives it within 0.02. So "
        "balancing, which parallel experts need, costs the cache: with room for a quarter of the experts, a model that "
        "was trained without the balancing loss finds more than one that was trained with it. The neighbourhood of "
        "tokens in the text adds less than 0.1."
    ),
    run=run,
    verdict=verdict,
    config={
        "n_drawn": 64,
        "requests": 12_000,
        "skews": [0.0, 0.5, 1.0, 1.5, 2.0],
        "capacities": [4, 8, 16, 32, 48],
        "d_model": 64,
        "d_hidden": 32,
        "n_layers": 2,
        "n_experts": 16,
        "top_k": 2,
        "length": 64,
        "batch": 8,
        "steps": 300,
        "lr": 4e-3,
        "balance": 0.02,
        "train_tokens": 200_000,
        "trace": 2048,
    },
    reduced={
        "requests": 3000,
        "steps": 40,
        "trace": 512,
        "d_model": 32,
        "d_hidden": 16,
        "n_layers": 1,
        "n_experts": 8,
        "train_tokens": 20_000,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
