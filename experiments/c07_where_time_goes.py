"""Where does the time of one new token go, and why do servers write many texts at once?

A decoder whose weights are too many for the processor's caches writes one token behind a context of random keys and
values. CPU time is noted part by part, by hooks around the layers: the products with weights (projections and
feed-forward), the read-out over the vocabulary, attention over the cache, the copy that the reference's KVCache makes
when it puts the new position behind the old ones, and the rest (norms, sums, Python). First against the length of the
context, with one text; then against the number of texts side by side, at a short context.

The explanation that is tested: at one token a step each weight is fetched from memory for two operations. With more
texts side by side the same fetch serves all of them (Pope et al. 2022, arXiv:2211.05102, section 2), while each text
brings a cache of its own, which nobody shares (Shazeer 2019, arXiv:1911.02150).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import process_time
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.cached_decoder import CachedDecoder
from experiments.decoder import Block
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

PARTS = ("weights", "read_out", "attention", "copy", "rest")


@contextmanager
def timed(model: CachedDecoder, cache: Any, seconds: dict[str, float]) -> Iterator[None]:
    """Adds up the CPU time of every linear layer, every attention layer and every update of the cache."""
    begun: dict[int, float] = {}

    def before(module: nn.Module, inputs: Any) -> None:
        begun[id(module)] = process_time()

    def after(name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            seconds[name] += process_time() - begun[id(module)]

        return note

    update = cache.update

    def timed_update(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = process_time()
        found = update(layer, k, v)
        seconds["copy"] += process_time() - start
        return found

    handles = []
    for block in blocks(model):
        layer = block.sublayers[0]
        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after("attention layer"))]
        for module in block.modules():
            if isinstance(module, nn.Linear):
                inside = any(module is part for part in layer.modules())
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after("projections" if inside else "feed-forward")))
    cache.update = timed_update
    try:
        yield
    finally:
        del cache.update
        for handle in handles:
            handle.remove()


def step(model: CachedDecoder, cache: Any, ids: Tensor) -> dict[str, float]:
    """The CPU seconds of one new token, part by part."""
    seconds: dict[str, float] = defaultdict(float)
    with timed(model, cache, seconds):
        start = process_time()
        x = hidden(model, ids, cache)
        middle = process_time()
        _ = x @ model.tokens.weight.T
        end = process_time()
    found = {
        "weights": seconds["projections"] + seconds["feed-forward"],
        "read_out": end - middle,
        "attention": seconds["attention layer"] - seconds["projections"] - seconds["copy"],
        "copy": seconds["copy"],
    }
    return {**found, "rest": end - start - sum(found.values()), "whole": end - start}


def blocks(model: CachedDecoder) -> list[Block]:
    return [cast(Block, block) for block in model.blocks]


def hidden(model: CachedDecoder, ids: Tensor, cache: Any) -> Tensor:
    """What the decoder computes before the read-out."""
    x = model.tokens(ids) + model.places.weight[: ids.shape[1]]
    for layer, block in enumerate(blocks(model)):
        x = x + block.sublayers[0](block.norms[0](x), cache, layer)
        x = x + block.sublayers[1](block.norms[1](x))
    return model.norm(x)


def filled(parts: Any, config: Config, batch: int, length: int) -> Any:
    """A cache with a context of random keys and values."""
    cache, d_head = parts.KVCache(), config["d_model"] // config["n_heads"]
    for layer in range(config["n_layers"]):
        k = torch.randn(batch, config["n_heads"], length, d_head)
        cache.update(layer, k, torch.randn_like(k))
    return cache


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(row[name] for row in rounds) for name in rounds[0]}


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/07-kv-cache.py")
    with torch.no_grad():
        return measured(parts, config, seeds)


def measured(parts: Any, config: Config, seeds: Sequence[int]) -> Results:
    settings = [(1, n) for n in config["lengths"]] + [(batch, config["short"]) for batch in config["batches"]]
    costs: dict[tuple[int, int], list[dict[str, float]]] = {setting: [] for setting in settings}
    for seed in seeds:
        torch.manual_seed(seed)
        sizes = {name: config[name] for name in ("d_model", "n_layers", "n_heads")}
        model = CachedDecoder(config["vocabulary"], parts, **sizes, longest=16).eval()
        for setting in dict.fromkeys(settings):
            batch, length = setting
            cache, ids = filled(parts, config, batch, length), torch.randint(config["vocabulary"], (batch, 1))
            step(model, cache, ids)
            costs[setting].append(medians([step(model, cache, ids) for _ in range(config["repeats"])]))
    linear = [m for block in blocks(model) for m in block.modules() if isinstance(m, nn.Linear)]
    weights = 4 * (sum(m.weight.numel() for m in linear) + model.tokens.weight.numel())
    token = {"n_layers": config["n_layers"], "n_heads": config["n_heads"], "dtype": torch.float32}
    token |= {"d_head": config["d_model"] // config["n_heads"]}

    def shares(setting: tuple[int, int]) -> dict[str, Any]:
        rows = costs[setting]
        return {part: estimate([row[part] / sum(row[p] for p in PARTS) for row in rows]) for part in PARTS}

    first, short = (1, config["lengths"][0]), config["short"]
    one = costs[1, short]
    return {
        "lengths": config["lengths"],
        "by_length": [shares((1, n)) for n in config["lengths"]],
        "relative_step": [
            estimate([row["whole"] / base["whole"] for row, base in zip(costs[1, n], costs[first], strict=True)])
            for n in config["lengths"]
        ],
        "cache_share": [
            estimate([(row["attention"] + row["copy"]) / row["whole"] for row in costs[1, n]])
            for n in config["lengths"]
        ],
        "batches": config["batches"],
        "by_batch": [shares((batch, short)) for batch in config["batches"]],
        "time_per_token": {
            name: [
                estimate([row[name] / batch / base[name] for row, base in zip(costs[batch, short], one, strict=True)])
                for batch in config["batches"]
            ]
            for name in ("whole", "weights", "attention")
        },
        "weight_bytes": weights,
        "cache_bytes": [parts.kv_cache_bytes(n, **token) for n in config["lengths"]],
    }


def verdict(found: Results) -> Verdict:
    cache, weights = found["cache_share"], found["time_per_token"]["weights"]
    if cache[0]["high"] < 0.25 and cache[-1]["low"] > 0.5 and weights[-1]["high"] < 0.25:
        return "strong"
    return "weak" if cache[-1]["mean"] > 2 * cache[0]["mean"] and weights[-1]["mean"] < 0.5 else "null"


EXPERIMENT = Experiment(
    name="c07_where_time_goes",
    claim=(
        "Of a step with one text, attention over the cache and the copying of the cache take less than a quarter at "
        "128 tokens of context, and more than half at 8,192. With 32 texts side by side the products with the weights "
        "cost each token less than a quarter of what they cost one text alone."
    ),
    run=run,
    verdict=verdict,
    config={
        "vocabulary": 8192,
        "d_model": 512,
        "n_layers": 4,
        "n_heads": 8,
        "lengths": [128, 512, 2048, 8192],
        "short": 128,
        "batches": [1, 2, 4, 8, 16, 32],
        "repeats": 9,
    },
    reduced={"n_layers": 2, "lengths": [128, 4096], "batches": [1, 16], "repeats": 3},
)

if __name__ == "__main__":
    main(EXPERIMENT)
