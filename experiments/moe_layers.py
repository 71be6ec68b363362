"""Six ways to write one MoE layer, and how fast each is beside a dense layer of the same arithmetic.

Forward and backward in float32 on one thread. Each layer includes its router. The dense layer is a plain SwiGLU of
top_k · d_hidden hidden units, so each token is multiplied with as many numbers as in its top_k experts; in all rows
that is seven times d_model, as in Mixtral 8x7B. The number reported is the dense layer's CPU time divided by the MoE
layer's: 1 means that sending tokens to experts costs nothing. All take turns, and medians are compared.

glibc gives large blocks of memory back to the system when they are freed, so the next step's are fresh pages, which the
system must find and clear. `memory_kept` is the same arithmetic without that.
"""

import contextlib
import ctypes
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ichimon.measure import ROOT, interleaved
from ichimon.notebook import load

CHAPTER = load(ROOT / "solutions/13-router.py")
Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One layer and how many tokens pass through it."""

    d_model: int
    d_hidden: int
    n_experts: int
    top_k: int
    tokens: int


ROWS = (Row(256, 896, 8, 2, 4096), Row(256, 224, 64, 8, 4096), Row(512, 1792, 8, 2, 2048))


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def masks(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """For each expert a mask of its tokens, and W[e]."""
    out = torch.zeros_like(x)
    for e in range(len(down)):
        chosen = experts == e
        mine = chosen.any(-1)
        share = (weights * chosen).sum(-1, keepdim=True)
        out[mine] += share[mine] * swiglu(x[mine], gate_up[e], down[e])
    return out


def by_sorting(
    x: Tensor, weights: Tensor, experts: Tensor, gate_ups: Sequence[Tensor], downs: Sequence[Tensor]
) -> Tensor:
    chosen = experts.flatten()
    order = chosen.argsort()
    token = order // experts.shape[1]
    parts = x.index_select(0, token).split(chosen.bincount(minlength=len(downs)).tolist())
    y = torch.cat([swiglu(*each) for each in zip(parts, gate_ups, downs, strict=True)])
    return torch.zeros_like(x).index_add(0, token, y * weights.flatten().index_select(0, order)[:, None])


def sorted_indexed(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sorted tokens, a loop over experts, W[e]: each W[e] makes a gradient as large as all of W."""
    each = range(len(down))
    return by_sorting(x, weights, experts, [gate_up[e] for e in each], [down[e] for e in each])


def sorted_unbound(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same with W.unbind(): one gradient for all."""
    return by_sorting(x, weights, experts, gate_up.unbind(), down.unbind())


def grouped_mm(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sorted tokens and F.grouped_mm, gate and up in one product, the answers gathered, weighted and added."""
    chosen = experts.flatten()
    order = chosen.argsort()
    ends = chosen.bincount(minlength=len(down)).cumsum(0).to(torch.int32)
    rows = x.index_select(0, order // experts.shape[1])
    gate, up = F.grouped_mm(rows, gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    return (y.index_select(0, order.argsort()).view(*experts.shape, -1) * weights[..., None]).sum(1)


WAYS: Mapping[str, Experts] = {
    "masks": masks,
    "sorted_indexed": sorted_indexed,
    "sorted_unbound": sorted_unbound,
    "grouped_mm": grouped_mm,
    "ours": CHAPTER.grouped_experts,
}


def of_transformers(row: Row, router: Tensor, gate_up: Tensor, down: Tensor) -> torch.nn.Module:
    """transformers' Mixtral block with these weights, as a model has it by default."""
    from transformers import MixtralConfig, MixtralModel  # takes seconds

    config = MixtralConfig(
        vocab_size=8, hidden_size=row.d_model, intermediate_size=row.d_hidden, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=row.n_experts, num_experts_per_tok=row.top_k,
    )  # fmt: skip
    block: Any = MixtralModel(config).layers[0].mlp
    block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj = (
        torch.nn.Parameter(value) for value in (router, gate_up, down)
    )
    return block


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """What is freed in this block stays with the process, for its next step.

    Afterwards glibc has the limits that its own, growing ones end at. Source: mallopt(3).
    """
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # as malloc.h numbers them

    def limits(trim: int, blocks: int) -> None:
        for parameter, value in ((trim_threshold, trim), (mmap_max, blocks), (mmap_threshold, 32 << 20)):
            if not mallopt(parameter, value):
                raise RuntimeError(f"The C library does not take {value} for its parameter {parameter}.")

    limits(trim=-1, blocks=0)
    try:
        yield
    finally:
        limits(trim=64 << 20, blocks=65536)


def measure(row: Row, *, skewed: bool, ways: Sequence[str], repeats: int, seed: int = 0) -> dict[str, Any]:
    """Speed of each way as a share of the dense layer's, and the megabytes of fresh pages in a step of each.

    Skewed: expert e is wanted about 1/(e + 1) as often.
    """
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, row.tokens, row.d_model, generator=draw)
    router = torch.randn(row.n_experts, row.d_model, generator=draw) / row.d_model**0.5
    if skewed:  # a channel that is always 1 makes its column of the router a bias
        x[..., 0] = 1
        router[:, 0] = -1.5 * torch.arange(1.0, row.n_experts + 1).log()
    hidden = row.top_k * row.d_hidden
    gate_up = torch.randn(row.n_experts, 2 * row.d_hidden, row.d_model, generator=draw) / row.d_model**0.5
    down = torch.randn(row.n_experts, row.d_model, row.d_hidden, generator=draw) / row.d_hidden**0.5
    gate, up = (torch.randn(hidden, row.d_model, generator=draw) / row.d_model**0.5 for _ in range(2))
    narrow = torch.randn(row.d_model, hidden, generator=draw) / hidden**0.5
    upstream = torch.randn(x.shape, generator=draw)
    leaves = [value.requires_grad_() for value in (x, router, gate_up, down, gate, up, narrow)]
    block = of_transformers(row, router, gate_up, down)

    def routed(way: Experts) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, experts = CHAPTER.route(F.linear(tokens, router), row.top_k)
        return way(tokens, weights, experts, gate_up, down).view_as(x)

    forward: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), narrow),
        "transformers": lambda: block(x),
        **{name: partial(routed, WAYS[name]) for name in WAYS if name in ways},
    }
    with torch.no_grad():
        outputs = {name: function() for name, function in forward.items() if name != "dense"}
        load = torch.bincount(CHAPTER.route(F.linear(x[0], router), row.top_k)[1].flatten(), minlength=row.n_experts)
    for name, output in outputs.items():
        if not torch.allclose(output, outputs["ours"], atol=1e-4):
            raise RuntimeError(f"{name} computes something else than ours, so its time would say nothing.")

    faults: dict[str, list[int]] = defaultdict(list)

    def step(name: str) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for leaf in [*leaves, *block.parameters()]:
            leaf.grad = None
        forward[name]().backward(upstream)
        faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    times = interleaved({name: partial(step, name) for name in forward}, repeats=repeats)
    dense = median(times["dense"])
    return {
        **vars(row),
        "dense_d_hidden": hidden,
        "largest_load": load.max().item() / load.float().mean().item(),
        **{name: dense / median(spent) for name, spent in times.items() if name != "dense"},
        "fresh_megabytes": {name: median(each[1:]) * resource.getpagesize() / 1e6 for name, each in faults.items()},
    }
