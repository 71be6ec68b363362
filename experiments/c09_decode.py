"""What does a step cost over a long cache, with 8, 2 and 1 heads of keys and values, and with a latent?

A layer of 8 heads of queries writes one token behind a filled cache, for several texts side by side: the projections
of the new token, its keys and values or its latent written into room made in advance, scores, shares, blend, output.
The grouped ways fold the queries of a group into one product, so that nothing is copied. One way copies instead: 2
heads repeated to 8 by the reference's repeat_kv before every step. The latent is used in two ways: expanded into keys
and values at every step, as the formula is written, and absorbed, where the up-projections are applied to the query and
to the blend (arXiv:2405.04434, section 2.1.2). That both say what the reference says is measured too.

The latent's sizes stand to a head's as DeepSeek-V2's do: four heads wide, and a rotary key half as wide as a head.
Which texts and weights are drawn depends on the seed. Ratios of CPU time on one thread, the ways taking turns.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main
from ichimon.notebook import load

Step = Callable[[], Tensor]


def grouped(
    parts: Any, config: Config, length: int, n_kv_heads: int, x: Tensor, copied: bool = False
) -> tuple[Step, int]:
    """One step behind `length − 1` random positions, and the bytes of the cache."""
    heads, d_head, batch = config["n_heads"], config["d_head"], len(x)
    layer = parts.GroupedQueryAttention(config["d_model"], heads, n_kv_heads, d_head)
    k, v = (torch.randn(batch, n_kv_heads, length, d_head) for _ in "kv")

    def step() -> Tensor:
        k[:, :, -1] = layer.k_proj(x).view(batch, n_kv_heads, d_head)
        v[:, :, -1] = layer.v_proj(x).view(batch, n_kv_heads, d_head)
        keys, values = (parts.repeat_kv(y, layer.n_rep) for y in (k, v)) if copied else (k, v)
        q = layer.q_proj(x).view(batch, keys.shape[1], -1, d_head)
        shares = (q @ keys.mT * d_head**-0.5).softmax(-1)
        return layer.o_proj((shares @ values).flatten(1))

    return step, k.nbytes + v.nbytes


def latent(parts: Any, config: Config, length: int, x: Tensor) -> tuple[Step, Step, int, float]:
    """A step with the latent expanded, one with it absorbed, the bytes kept, and the largest error of the two."""
    heads, d_head, batch = config["n_heads"], config["d_head"], len(x)
    rank, nope, rope, d_v = 4 * d_head, d_head, d_head // 2, d_head
    sizes = {"q_rank": config["q_rank"], "kv_rank": rank, "d_nope": nope, "d_rope": rope, "d_v": d_v}
    layer = parts.LatentAttention(config["d_model"], heads, **sizes)
    kept = torch.randn(batch, length, rank + rope)
    past, here = kept[:, :-1].clone(), torch.tensor([length - 1])
    w_k, w_v = layer.kv_up.weight.view(heads, nope + d_v, rank).split([nope, d_v], 1)

    def query() -> tuple[Tensor, Tensor]:
        new, key = layer.kv_down(x).split([rank, rope], -1)
        kept[:, -1] = torch.cat([layer.kv_norm(new), parts.rotate(key[:, None], here)[:, 0]], -1)
        q = layer.q_up(layer.q_norm(layer.q_down(x))).view(batch, heads, 1, nope + rope)
        return q[..., :nope], parts.rotate(q[..., nope:], here)

    def expanded() -> Tensor:
        plain, turned = query()
        k, v = layer.kv_up(kept[..., :rank]).view(batch, length, heads, -1).transpose(1, 2).split([nope, d_v], -1)
        scores = plain @ k.mT + turned @ kept[:, None, :, rank:].mT
        return layer.o_proj(((scores * (nope + rope) ** -0.5).softmax(-1) @ v).flatten(1))

    def absorbed() -> Tensor:
        plain, turned = query()
        q = torch.cat([torch.einsum("bhnd,hdr->bhr", plain, w_k), turned[:, :, 0]], -1)
        shares = (q @ kept.mT * (nope + rope) ** -0.5).softmax(-1)
        return layer.o_proj(torch.einsum("bhr,hdr->bhd", shares @ kept[..., :rank], w_v).flatten(1))

    reference = layer(x[:, None], None, past)[0][:, 0]
    gap = max((step() - reference).abs().max().item() for step in (expanded, absorbed))
    return expanded, absorbed, kept.nbytes, gap / reference.std().item()


@torch.no_grad()
def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/09-grouped-queries.py")
    ways = ("8 heads", "2 heads", "1 head", "2 heads, copied", "latent, expanded", "latent, absorbed")
    times: dict[int, dict[str, list[float]]] = {n: {way: [] for way in ways} for n in config["lengths"]}
    held: dict[str, int] = {}
    gaps = []
    for seed in seeds:
        worst = 0.0
        for length in config["lengths"]:
            torch.manual_seed(seed)
            x = torch.randn(config["batch"], config["d_model"])
            eight, held["8 heads"] = grouped(parts, config, length, 8, x)
            two, held["2 heads"] = grouped(parts, config, length, 2, x)
            one, held["1 head"] = grouped(parts, config, length, 1, x)
            copied, _ = grouped(parts, config, length, 2, x, copied=True)
            expanded, absorbed, held["latent"], gap = latent(parts, config, length, x)
            worst = max(worst, gap)
            steps = dict(zip(ways, (eight, two, one, copied, expanded, absorbed), strict=True))
            for way, seconds in interleaved(steps, repeats=config["repeats"]).items():
                times[length][way].append(median(seconds))
        gaps.append(worst)
    return {
        "lengths": config["lengths"],
        "batch": config["batch"],
        "n_heads": config["n_heads"],
        "d_head": config["d_head"],
        "relative_time": {
            way: [
                estimate([a / b for a, b in zip(times[n][way], times[n]["8 heads"], strict=True)])
                for n in config["lengths"]
            ]
            for way in ways
        },
        "expanded_over_absorbed": [
            estimate([a / b for a, b in zip(times[n]["latent, expanded"], times[n]["latent, absorbed"], strict=True)])
            for n in config["lengths"]
        ],
        "bytes": held,
        "relative_bytes": {way: size / held["8 heads"] for way, size in held.items()},
        "largest_relative_difference": estimate(gaps),
    }


def verdict(found: Results) -> Verdict:
    last = {way: rows[-1] for way, rows in found["relative_time"].items()}
    exact = max(found["largest_relative_difference"]["values"]) < 1e-3
    shared = last["2 heads"]["high"] < 2 / 3 and last["1 head"]["high"] < 0.5 and last["2 heads, copied"]["low"] > 1
    made = last["latent, expanded"]["low"] > 5 and last["latent, absorbed"]["high"] < 1.5
    if exact and shared and made and found["relative_bytes"]["latent"] < 1 / 3:
        return "strong"
    direction = last["2 heads"]["mean"] < 0.8 and last["2 heads, copied"]["mean"] > 1
    return "weak" if exact and direction and found["expanded_over_absorbed"][-1]["mean"] > 2 else "null"


EXPERIMENT = Experiment(
    name="c09_decode",
    claim=(
        "At 8,192 tokens and 4 texts side by side, a step of a layer with 2 heads of keys and values takes less than "
        "two thirds of the time of one with 8, and with 1 head less than half. Copying 2 heads to 8 at every step "
        "takes longer than having 8. A latent keeps less than a third of the bytes; expanded at every step it takes "
        "more than 5 times as long as 8 heads, absorbed less than 1.5 times as long."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 512,
        "n_heads": 8,
        "d_head": 64,
        "q_rank": 384,
        "batch": 4,
        "lengths": [1024, 8192],
        "repeats": 5,
    },
    reduced={"lengths": [4096], "batch": 2, "repeats": 3},
)

if __name__ == "__main__":
    main(EXPERIMENT)
