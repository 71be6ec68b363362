"""How many bytes does a token cost the network when experts are spread over ranks?

The layer of chapter 17's notebook runs on threads, one a rank, and we count what leaves each rank: forward in its
all-to-alls, backward in the gradients that return through them. What stays on its own rank is not counted. Routing is
random: each token draws different experts, all alike or by a Zipf law (expert i as likely as 1/i to the power of the
skew, the order shuffled). One setting is changed at a time.

The arithmetic: a token goes to top_k experts, the part (world − 1)/world of which live elsewhere, and its d_model
numbers travel there and back:

    forward bytes a token = 2 · top_k · (world − 1)/world · d_model · bytes of a number,     backward the same.

The rival is data parallelism, where every rank keeps all experts and sums their gradients. A ring all-reduce (Patarasuk
and Yuan 2009) sends 2 · (world − 1)/world · parameters · bytes from each rank in each step, however few tokens there
are. Setting the two equal gives the tokens a rank and step at which they cost the same: for SwiGLU experts, which have
3 · d_model · d_hidden numbers each, 1.5 · n_experts · d_hidden / top_k. Mixtral's shape is that of Jiang et al. 2024
(arXiv:2401.04088), table 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def count(setting: dict[str, Any], seed: int) -> dict[str, float]:
    """Bytes a token, forward and backward, and how much more than its share the busiest rank receives."""
    chapter = load(ROOT / "solutions/17-moe-at-scale.py")
    world, top_k, n_experts = setting["world"], setting["top_k"], setting["n_experts"]
    tokens, d_model, d_hidden = setting["tokens"], setting["d_model"], setting["d_hidden"]
    dtype, n_local = DTYPES[setting["dtype"]], n_experts // world
    generator = torch.Generator().manual_seed(seed)
    popularity = torch.arange(1.0, n_experts + 1) ** -setting["skew"]
    popularity = popularity[torch.randperm(n_experts, generator=generator)]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x = [normal(tokens, d_model).requires_grad_() for _ in range(world)]
    experts = [torch.multinomial(popularity.expand(tokens, -1), top_k, generator=generator) for _ in range(world)]
    weights = torch.full((tokens, top_k), 1 / top_k, dtype=dtype)
    gate_up = [normal(n_local, 2 * d_hidden, d_model).requires_grad_() for _ in range(world)]
    down = [normal(n_local, d_model, d_hidden).requires_grad_() for _ in range(world)]
    forward, backward, received = torch.zeros(world), torch.zeros(world), torch.zeros(world)

    def returned(rank: int, away: int, grad: Tensor) -> None:
        backward[rank] += away * grad.shape[1] * grad.element_size()

    def work(rank: int, network: Any) -> Tensor:
        def all_to_all(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
            row = rows[0].numel() * rows.element_size() if len(rows) else 0
            forward[rank] += (sum(send) - send[rank]) * row
            came = network(rows, send, receive)
            if came.requires_grad:
                came.register_hook(partial(returned, rank, sum(receive) - receive[rank]))
            if rows.is_floating_point() and not received[rank]:
                received[rank] = sum(receive)
            return came

        return chapter.expert_parallel_forward(
            x[rank], weights, experts[rank], gate_up[rank], down[rank], world, all_to_all
        )

    outputs = chapter.run_ranks(world, work)
    torch.stack([out.float().sum() for out in outputs]).sum().backward()
    return {
        "forward": forward.sum().item() / (world * tokens),
        "backward": backward.sum().item() / (world * tokens),
        "busiest": (received.max() / received.mean()).item(),
    }


def arithmetic(setting: dict[str, Any]) -> float:
    away = (setting["world"] - 1) / setting["world"]
    return 2 * setting["top_k"] * away * setting["d_model"] * DTYPES[setting["dtype"]].itemsize


def run(config: Config, seeds: Sequence[int]) -> Results:
    found: Results = {"sweeps": {}}
    for name, values in config["sweeps"].items():
        rows = []
        for value in values:
            setting = {**config["base"], name: value}
            counted = [count(setting, seed) for seed in seeds]
            expected = arithmetic(setting)
            rows.append(
                {
                    "value": value,
                    "arithmetic": expected,
                    **{key: estimate([one[key] for one in counted]) for key in ("forward", "backward", "busiest")},
                }
            )
        found["sweeps"][name] = rows
    base, mixtral = config["base"], config["mixtral"]
    parameters = 3 * base["n_experts"] * base["d_model"] * base["d_hidden"]
    both_ways = [sum(one[key] for key in ("forward", "backward")) for one in (count(base, seed) for seed in seeds)]
    all_reduce = 2 * (base["world"] - 1) / base["world"] * parameters * DTYPES[base["dtype"]].itemsize
    found["base"] = {
        "both_ways": estimate(both_ways),
        "all_reduce_bytes_a_rank": all_reduce,
        "break_even_tokens": estimate([all_reduce / value for value in both_ways]),
        "break_even_arithmetic": 1.5 * base["n_experts"] * base["d_hidden"] / base["top_k"],
    }
    world = mixtral["world"]
    found["mixtral"] = {
        "bytes_a_token": mixtral["n_layers"] * arithmetic(mixtral),
        "gradient_bytes_a_rank": mixtral["n_layers"]
        * 2
        * (world - 1)
        / world
        * 3
        * mixtral["n_experts"]
        * mixtral["d_model"]
        * mixtral["d_hidden"]
        * DTYPES[mixtral["dtype"]].itemsize,
        "break_even_tokens": 1.5 * mixtral["n_experts"] * mixtral["d_hidden"] / mixtral["top_k"],
    }
    return found


def verdict(found: Results) -> Verdict:
    rows = [row for sweep in found["sweeps"].values() for row in sweep if row["arithmetic"]]
    ways = [row[way]["mean"] / row["arithmetic"] for row in rows for way in ("forward", "backward")]
    worst = max(abs(ratio - 1) for ratio in ways)
    alone = [row["forward"]["mean"] for sweep in found["sweeps"].values() for row in sweep if not row["arithmetic"]]
    busiest = found["sweeps"]["skew"][-1]["busiest"]["low"]
    if worst <= 0.05 and not any(alone) and busiest >= 2:
        return "strong"
    return "weak" if worst <= 0.25 and busiest > 1.25 else "null"


EXPERIMENT = Experiment(
    name="c17_bytes",
    claim=(
        "What the layer sends is what the arithmetic says, within 5 %, forward and backward, for every top_k, world, "
        "d_model and dtype: bytes grow with top_k, d_model and the bytes of a number, hardly with the world. A skewed "
        "router sends no more, also within 5 %, but to fewer: at a skew of 1.5 the busiest of 8 ranks receives at "
        "least twice its share."
    ),
    run=run,
    verdict=verdict,
    config={
        "base": {
            "world": 8,
            "top_k": 2,
            "n_experts": 64,
            "tokens": 256,
            "d_model": 64,
            "d_hidden": 16,
            "dtype": "float32",
            "skew": 0.0,
        },
        "sweeps": {
            "top_k": [1, 2, 4, 8],
            "world": [1, 2, 4, 8, 16],
            "d_model": [32, 64, 128],
            "dtype": ["bfloat16", "float32"],
            "skew": [0.0, 0.5, 1.0, 1.5],
        },
        "mixtral": {
            "world": 8,
            "top_k": 2,
            "n_experts": 8,
            "d_model": 4096,
            "d_hidden": 14336,
            "n_layers": 32,
            "dtype": "bfloat16",
        },
    },
    reduced={"sweeps": {"top_k": [1, 4], "world": [1, 4], "dtype": ["bfloat16"], "skew": [0.0, 1.5]}},
)

if __name__ == "__main__":
    main(EXPERIMENT)
