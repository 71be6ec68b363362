"""What does a window save: the time and the memory of attention against the text's length and against the window?

Four ways to compute causal attention on one head of 64 channels, forward only:

- *causal*: PyTorch's fused kernel with is_causal, which skips what is in the future;
- *causal mask*: the same kernel with the causal mask as a tensor of n × n booleans;
- *window mask*: the same kernel with the reference's sliding_window_mask in its place;
- *rolling*: the reference's RollingKVCache, fed in chunks as long as the window, each with its own small mask. That
  computes at most 2W − 1 pairs for each query: a blocked implementation of the same window.

The window mask and the rolling cache give the same outputs, which is checked. A large mask is made once, before the
clock starts, because the layers of a model share it; its bytes count as memory. Masks stop at `masks_until` tokens.
Time is CPU time on one core, the ways taking turns; only ratios of it are kept. Memory is the most that PyTorch's
allocator had given out at any moment of the call, and the mask. A slope is fitted by least squares to the logarithms,
from `fit_from` on: 1 means twice the length costs twice as much, 2 four times. One sweep over all sizes is one seed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from experiments.c02_quadratic_cost import peak_bytes, slope
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main
from ichimon.notebook import load

MIB = 2**20
KINDS = ("causal", "causal_mask", "window_mask", "rolling")


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def rolling(parts: Any, window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A chunk of `window` queries at a time, over the keys that the rolling cache gives back."""
    cache, out = parts.RollingKVCache(window), []
    for chunk in zip(q.split(window, 2), k.split(window, 2), v.split(window, 2), strict=True):
        near_k, near_v = cache.update(0, *chunk[1:])
        mask = parts.sliding_window_mask(chunk[0].shape[2], near_k.shape[2], window)
        out.append(scaled_dot_product_attention(chunk[0], near_k, near_v, attn_mask=mask))
    return torch.cat(out, 2)


@torch.no_grad()
def sweep(parts: Any, sizes: Sequence[tuple[int, int]], kinds: Sequence[str], config: Config) -> dict[str, Any]:
    """Median CPU seconds and peak bytes of these ways at each (length, window), and how far their outputs differ."""
    found: dict[str, Any] = {"time": {k: [] for k in kinds}, "memory": {k: [] for k in kinds}, "differences": []}
    for n, window in sizes:
        inputs = [torch.randn(1, 1, n, config["d_head"]) for _ in range(3)]
        ways: dict[str, Callable[[], Tensor]] = {
            "causal": partial(causal, *inputs),
            "rolling": partial(rolling, parts, window, *inputs),
        }
        if n <= config["masks_until"]:
            for kind, width in (("causal_mask", n), ("window_mask", window)):
                ways[kind] = partial(masked, parts.sliding_window_mask(n, n, width), *inputs)
        ways = {kind: ways[kind] for kind in kinds if kind in ways}
        times = interleaved(ways, repeats=config["repeats"])
        for kind, call in ways.items():
            found["time"][kind].append(median(times[kind]))
            found["memory"][kind].append(peak_bytes(call) + (n * n if kind.endswith("mask") else 0))
        if "window_mask" in ways:
            found["differences"].append((ways["window_mask"]() - ways["rolling"]()).abs().max().item())
    return found


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/10-long-context.py")
    lengths, windows, window = config["lengths"], config["windows"], config["window"]
    masked_lengths = [n for n in lengths if n <= config["masks_until"]]
    by_length, by_window = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        by_length.append(sweep(parts, [(n, window) for n in lengths], KINDS, config))
        sizes = [(masked_lengths[-1], w) for w in windows]
        by_window.append(sweep(parts, sizes, ("window_mask", "rolling"), config))

    def slopes(kind: str, of: str) -> dict[str, Any]:
        x = [n for n in (masked_lengths if kind.endswith("mask") else lengths) if n >= config["fit_from"]]
        return estimate([slope(x, found[of][kind][-len(x) :]) for found in by_length])

    def times(sweeps: list[Any], kind: str, unit: str) -> list[dict[str, Any]]:
        rows = [found["time"] for found in sweeps]
        return [estimate([row[kind][i] / row[unit][0] for row in rows]) for i in range(len(rows[0][kind]))]

    def mib(sweeps: list[Any], kind: str) -> list[float]:
        return [max(values) / MIB for values in zip(*(found["memory"][kind] for found in sweeps), strict=True)]

    def ratio(one: str, other: str, at: int) -> dict[str, Any]:
        return estimate([found["time"][one][at] / found["time"][other][at] for found in by_length])

    last_mask = len(masked_lengths) - 1
    return {
        "lengths": lengths,
        "masked_lengths": masked_lengths,
        "window": window,
        "windows": windows,
        "slope": {of: {kind: slopes(kind, of) for kind in KINDS} for of in ("time", "memory")},
        "time_by_length": {kind: times(by_length, kind, "causal") for kind in KINDS},
        "time_by_window": {kind: times(by_window, kind, "rolling") for kind in ("window_mask", "rolling")},
        "mib_by_length": {kind: mib(by_length, kind) for kind in KINDS},
        "mib_by_window": {kind: mib(by_window, kind) for kind in ("window_mask", "rolling")},
        "window_mask_over_causal_mask": ratio("window_mask", "causal_mask", last_mask),
        "window_mask_over_causal": ratio("window_mask", "causal", last_mask),
        "causal_over_rolling": ratio("causal", "rolling", -1),
        "largest_difference": max(d for found in (*by_length, *by_window) for d in found["differences"]),
    }


def verdict(found: Results) -> Verdict:
    time, memory = found["slope"]["time"], found["slope"]["memory"]
    same = found["largest_difference"] < 1e-5
    nothing_saved = found["window_mask_over_causal_mask"]["low"] > 0.8
    linear = time["rolling"]["mean"] < 1.25 and memory["rolling"]["mean"] < 1.25
    quadratic = time["window_mask"]["mean"] > 1.75 and memory["window_mask"]["mean"] > 1.75
    if same and nothing_saved and linear and quadratic and found["causal_over_rolling"]["low"] > 1.5:
        return "strong"
    right = time["rolling"]["mean"] < 1.5 < time["window_mask"]["mean"]
    return "weak" if same and right and found["causal_over_rolling"]["mean"] > 1 else "null"


EXPERIMENT = Experiment(
    name="c10_cost",
    claim=(
        "A mask alone saves nothing: with a window mask attention takes at least 0.8 times the time that it takes with "
        "a causal mask, and its time and memory stay quadratic in the length (slopes above 1.75). In chunks over a "
        "rolling cache the same outputs cost time and memory that are linear in it (slopes below 1.25), and at the "
        "longest text causal attention takes more than 1.5 times as long."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_head": 64,
        "lengths": [512, 1024, 2048, 4096, 8192],
        "masks_until": 4096,
        "fit_from": 1024,
        "window": 128,
        "windows": [64, 128, 256, 512, 1024],
        "repeats": 5,
    },
    reduced={"lengths": [512, 1024, 2048, 4096], "masks_until": 2048, "windows": [128, 512], "repeats": 2},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
