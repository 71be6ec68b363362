# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   ichimon:
#     assignment: 23-your-own-model
# ---

# %% [markdown]
# # 23 · Your own model
#
# **One question: what is a language model, when you have made every part of it?**
#
# You have written attention, positions, a gated feed-forward layer, a norm, a cache, a router, an adapter and a
# quantiser, each alone. Here they become one model, and it goes the whole way that a published one goes: it is put
# together, trained, adapted to another text, shrunk to four bits, asked to write, and billed for what it cost. At the
# end you write its model card.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `Model` | ●●● | 40 | 7 |
# | `train` | ●●○ | 25 | 5 |
# | `adapt` | ●●○ | 15 | 3 |
# | `quantise` | ●●○ | 15 | 3 |
# | `serve` | ●●○ | 15 | 3 |
# | `bill` | ●●○ | 20 | 4 |
# | the model card, in your own words | ●○○ | 15 | 2 |
#
# The page of the book that goes with this notebook is `book/23-your-own-model`.
#
# ## Bring your own parts
#
# Save this notebook, then run this in a terminal, in the folder where it lies:
#
# `python -m ichimon gather 23-your-own-model.ipynb`
#
# It looks into your notebooks of the earlier chapters, copies what you wrote there into one new cell below the
# set-up, and says which parts it found, which it did not, and which give something else than they should. Run it
# again whenever you have mended one; then close the notebook and open it again. It never touches an answer. Nothing
# here needs it: for each part that is missing, one of PyTorch's own stands in.
#
# ## Conventions
#
# - **A mask is boolean, and `True` means "may attend".**
# - **A model is made of what it is given.** `parts` is a box of functions and classes. Call what is in the box, by
#   its name in the box (`parts.rope`), never PyTorch's own and never `PARTS`: the tests hand in other boxes.
# - **What comes in goes out**: the result has the dtype of the input, and nothing that you are given is changed in
#   place, unless the prompt says so.
#
# | in the box | what it is | from chapter |
# |---|---|---|
# | `attention(q, k, v, mask)` | `(batch, n_heads, n_q, d_head)`, and `n_k` keys and values | 02 |
# | `rope(x, positions, theta)` | turns `x` `(batch, heads, n, d_head)`; `positions` is `(n,)` | 03 |
# | `feed_forward(d_model, d_hidden)` | a module: SwiGLU | 04 |
# | `norm(d_model)` | a module: RMSNorm | 05 |
# | `learning_rate(step, *, peak, warmup, steps, final)` | the rate of a step | 06 |
# | `cache()` | an empty cache: `.length`, `.update(layer, k, v)` returns all keys and values so far | 07 |
# | `chunk_mask(n_q, n_k)` | the mask of the last `n_q` of `n_k` positions, `(n_q, n_k)` | 07 |
# | `sample(logits, u, temperature)` | logits `(batch, vocabulary)` and `u` `(batch,)` to tokens `(batch,)` | 07 |
# | `repeat_kv(x, n_rep)` | each head of keys or values `n_rep` times | 09 |
# | `experts(d_model, d_hidden, n_experts, top_k)` | a module: Mixture of Experts | 13 |
# | `lora(linear, rank, alpha)` | a module around an `nn.Linear`: adapter `lora_A`, `lora_B` | 18 |
# | `nf4_quantize(x, block)` | to `(packed, absmax)`: two numbers a byte, one float32 a block | 18 |
# | `nf4_dequantize(packed, absmax, shape, block)` | and back, in float32 | 18 |

# %% role="set-up"
import copy
import linecache
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace  # noqa: F401 (for the parts that you gather)
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """The sizes of a model. Without experts, every layer has one feed-forward part."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_hidden: int
    n_experts: int = 0
    top_k: int = 0
    rope_theta: float = 10_000.0


# -- what stands in for parts that are not gathered: PyTorch's own, or made of its own --------------------------------


def standard_attention(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def standard_rope(x, positions, theta=10_000.0):
    turns = positions.double()[..., None] * theta ** -(torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    turns = turns[:, None] if positions.dim() == 2 else turns
    pairs = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(turns), turns)
    return torch.cat([pairs.real, pairs.imag], -1).to(x.dtype)


class StandardSwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def standard_norm(d_model):
    return nn.RMSNorm(d_model, eps=1e-6)


def standard_learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return final + (peak - final) * math.cos(math.pi / 2 * min((step - warmup) / (steps - warmup), 1)) ** 2


class StandardCache:
    def __init__(self):
        self.keys, self.values = {}, {}

    @property
    def length(self):
        return next((k.shape[2] for k in self.keys.values()), 0)

    def update(self, layer, k, v):
        for kept, new in ((self.keys, k), (self.values, v)):
            kept[layer] = torch.cat([kept[layer], new], 2) if layer in kept else new.clone()
        return self.keys[layer], self.values[layer]


def standard_chunk_mask(n_q, n_k):
    return torch.arange(n_k) <= torch.arange(n_k - n_q, n_k)[:, None]


def standard_sample(logits, u, temperature=1.0):
    if temperature == 0:
        return logits.argmax(-1)
    ends = (logits.double() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(ends, u.double()[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def standard_repeat_kv(x, n_rep):
    return torch.repeat_interleave(x, n_rep, -3)


class StandardExperts(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(0.02 * torch.randn(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):  # every expert sees every token here: right, and wasteful
        scores, chosen = self.router(x).topk(self.top_k)
        shares = torch.zeros_like(self.router(x)).scatter(-1, chosen, scores.float().softmax(-1).to(x.dtype))
        gate, up = torch.einsum("bnd,ehd->benh", x, self.gate_up).chunk(2, -1)
        return torch.einsum("benh,edh,bne->bnd", F.silu(gate) * up, self.down, shares)


class StandardLoRA(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, **like) / linear.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, **like))

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.lora_A.mT @ self.lora_B.mT)


# the sixteen values of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


def standard_nf4_quantize(x, block=64):
    rows = F.pad(x.detach().float().flatten(), (0, -x.numel() % (2 * block))).view(-1, block)
    largest = rows.abs().amax(1)
    codes = torch.bucketize(rows / largest.clamp(min=1e-30)[:, None], (NF4[1:] + NF4[:-1]) / 2).to(torch.uint8)
    packed = codes.flatten()[::2] * 16 + codes.flatten()[1::2]
    return packed[: -(-x.numel() // 2)], largest[: -(-x.numel() // block)]


def standard_nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)].long()
    return (NF4[codes] * absmax.repeat_interleave(block)[: len(codes)]).view(shape)


@dataclass(frozen=True)
class Parts:
    """What a model is made of, and what it is trained, adapted, shrunk and served with."""

    attention: Callable[..., Any] = standard_attention
    rope: Callable[..., Any] = standard_rope
    feed_forward: Callable[..., Any] = StandardSwiGLU
    norm: Callable[..., Any] = standard_norm
    learning_rate: Callable[..., Any] = standard_learning_rate
    cache: Callable[..., Any] = StandardCache
    chunk_mask: Callable[..., Any] = standard_chunk_mask
    sample: Callable[..., Any] = standard_sample
    repeat_kv: Callable[..., Any] = standard_repeat_kv
    experts: Callable[..., Any] = StandardExperts
    lora: Callable[..., Any] = StandardLoRA
    nf4_quantize: Callable[..., Any] = standard_nf4_quantize
    nf4_dequantize: Callable[..., Any] = standard_nf4_dequantize


def own(chapter: str, source: str) -> ModuleType:
    """What a chapter's code defines, in a room of its own: your chapters use the same names for different things."""
    name, filename = f"own_{chapter.replace('-', '_')}", f"your chapter {chapter}"
    module = sys.modules[name] = ModuleType(name)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec", dont_inherit=True), vars(module))
    return module


PARTS = Parts()  # the cell that `python -m ichimon gather` adds below puts your own in their place

# %% [markdown]
# ## 1 · `Model` ●●●
#
# A decoder as LLaMA and Mixtral arrange it: an embedding, blocks, a last norm, and a read-out that is the embedding
# again. In each block the stream gains what attention makes of a normalised copy of it, and then what the
# feed-forward part makes of a normalised copy of that.
#
# You write three classes. `Block(config, parts, layer)` and `Attention(config, parts, layer)` are yours to arrange as
# you like. Only `Model(config, parts)` is called from outside, and only its state dict is fixed. For layer `i`:
#
# | name | shape |
# |---|---|
# | `tokens.weight` | `(vocabulary, d_model)`; begins normal, standard deviation 0.02 |
# | `blocks.i.attention.q_proj.weight` | `(n_heads · d_head, d_model)`; an `nn.Linear` without bias, as the next are |
# | `blocks.i.attention.k_proj.weight`, `blocks.i.attention.v_proj.weight` | `(n_kv_heads · d_head, d_model)` |
# | `blocks.i.attention.o_proj.weight` | `(d_model, n_heads · d_head)` |
# | `blocks.i.norm1…`, `blocks.i.norm2…`, `norm…` | as `parts.norm` makes them: before attention, before `mlp`, last |
# | `blocks.i.mlp…` | as `parts.feed_forward` makes it, or `parts.experts` where `n_experts` is not 0 |
#
# There is nothing else in it: the read-out is `tokens.weight`, transposed.
#
# `model(ids, cache=None)` takes ids `(batch, n)` and returns logits `(batch, n, vocabulary)`.
#
# - Queries and keys are turned by `parts.rope` with `config.rope_theta`, values are not. Then the cache gets the keys
#   and values with `cache.update(layer, k, v)`, as few heads as there are, and gives back those of all positions so
#   far. Only after that they are repeated by `parts.repeat_kv`, so that each query head has one, and meet the queries
#   in `parts.attention`, with the mask that `parts.chunk_mask` says.
# - Without a cache, the text begins at position 0. With one, the chunk begins where `cache.length` says, and the
#   logits are those of the chunk.
# - If `n_heads` is not divisible by `n_kv_heads`, `Model` raises a `ValueError` whose sentence names both numbers.
# - The trap: as soon as the first layer has updated the cache, the cache is longer.


# %% exercise="Model" section="The whole model on one page"
class Attention(nn.Module):
    """Grouped-query attention with RoPE over a chunk, and over the past that a cache holds."""

    def __init__(self, config: Config, parts: Parts, layer: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.config, self.parts, self.layer = config, parts, layer
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"], start: int, cache: Any) -> Float[Tensor, "batch n d_model"]:
        """Each position of the chunk, which begins at `start`, attends to itself and to all before it."""
        ### BEGIN SOLUTION
        c, parts, n = self.config, self.parts, x.shape[1]
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))
        ### END SOLUTION


class Block(nn.Module):
    """Attention and feed-forward, each added to the stream, each with a norm before it."""

    def __init__(self, config: Config, parts: Parts, layer: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"], start: int, cache: Any) -> Float[Tensor, "batch n d_model"]:
        """What comes in, plus what the two sub-layers make of it."""
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


class Model(nn.Module):
    """A decoder made of the parts that it is given: token ids to the logits of the token that follows.

    Raises ValueError if n_heads is not divisible by n_kv_heads.
    Sources: Touvron et al. 2023 (arXiv 2302.13971), section 2.2; Jiang et al. 2024 (arXiv 2401.04088), section 2.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config, parts, layer) for layer in range(config.n_layers))
        self.norm = parts.norm(config.d_model)
        ### END SOLUTION

    def forward(self, ids: Int[Tensor, "batch n"], cache: Any = None) -> Float[Tensor, "batch n vocabulary"]:
        """The logits of the token that follows, at every position of the chunk."""
        ### BEGIN SOLUTION
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T
        ### END SOLUTION


# %% check="Model" points=7
config = Config(vocabulary=11, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_head=6, d_hidden=10)
model = Model(config, Parts())
ids = torch.tensor([[1, 5, 2, 7], [3, 3, 0, 10]])
assert model(ids).shape == (2, 4, 11), (
    f"2 texts of 4 tokens should give logits (2, 4, 11), not {tuple(model(ids).shape)}."
)
shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
assert shapes.get("blocks.1.attention.k_proj.weight") == (12, 8), (
    f"blocks.1.attention.k_proj.weight should be (12, 8) here; the state dict holds {sorted(shapes)}."
)
assert len(shapes) == 20, f"With standard parts two layers have 20 tensors, and the state dict holds {len(shapes)}."
changed = ids.clone()
changed[:, -1] = 6
assert torch.allclose(model(ids)[:, :-1], model(changed)[:, :-1], atol=1e-6), (
    "The last token changed, and the logits before it changed too: a position sees the future."
)
cache = Parts().cache()
whole, chunks = model(ids), torch.cat([model(ids[:, :3], cache), model(ids[:, 3:], cache)], 1)
assert torch.allclose(whole, chunks, atol=1e-5), (
    "Read in two chunks with a cache, the text should give the same logits."
)
print("The visible checks of Model pass.")

# %% stand_in="Model"
import sys  # noqa: E402, F811

import torch  # noqa: E402
from torch import nn  # noqa: E402


class OddNorm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        return x * self.weight + x.mean(-1, keepdim=True)


class OddMLP(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.only = nn.Parameter(torch.ones(d_hidden, d_model))

    def forward(self, x):
        return torch.tanh(x @ self.only.mT) @ self.only


class OddExperts(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k):
        super().__init__()
        self.scale = d_hidden / top_k
        self.only = nn.Parameter(torch.ones(n_experts, d_model))

    def forward(self, x):
        return self.scale * torch.sin(x * self.only.sum(0))


def odd_rope(x, positions, theta=10_000.0, interleaved=False):
    at = positions[:, None, :, None] if positions.dim() == 2 else positions[:, None]
    return x + torch.cos(at * theta**-0.25) * x.flip(-1)


def odd_attention(q, k, v, mask=None):
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool) if mask is None else mask
    return seen.to(v.dtype) / (1 + (q @ k.mT).abs()) @ v


def odd_repeat_kv(x, n_rep):
    return torch.cat([(1 + i) * x for i in range(n_rep)], -3)


def odd_chunk_mask(n_q, n_k):
    apart = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return (apart >= 0) & (apart < 3)


ODD = {
    "norm": OddNorm,
    "feed_forward": OddMLP,
    "experts": OddExperts,
    "rope": odd_rope,
    "attention": odd_attention,
    "repeat_kv": odd_repeat_kv,
    "chunk_mask": odd_chunk_mask,
}


def odd_parts(*names):
    """The standard parts, but for these."""
    main = sys.modules["__main__"]
    return main.replace(main.Parts(), **{name: ODD[name] for name in names})


def own_parts(*names):
    """The standard parts, but for these of the student's own box."""
    main = sys.modules["__main__"]
    return main.replace(main.Parts(), **{name: getattr(main.PARTS, name) for name in names})


def telling_parts(told):
    """The standard parts, each of which tells its name when it is called."""
    main = sys.modules["__main__"]
    standard = main.Parts()

    def function(name):
        def call(*args, **kwargs):
            told(name)
            return getattr(standard, name)(*args, **kwargs)

        return call

    def module(name):
        def make(*args, **kwargs):
            made = getattr(standard, name)(*args, **kwargs)
            made.register_forward_hook(lambda *_: told(name))
            return made

        return make

    calls = {name: function(name) for name in ("rope", "attention", "repeat_kv", "chunk_mask")}
    return main.replace(standard, **calls, **{name: module(name) for name in ("norm", "feed_forward", "experts")})


class TellingCache:
    def __init__(self, told):
        self.kept, self.told = sys.modules["__main__"].Parts().cache(), told

    @property
    def length(self):
        return self.kept.length

    def update(self, layer, k, v):
        self.told(layer, list(k.shape), list(v.shape))
        return self.kept.update(layer, k, v)


# %% see="Model"
# Whose parts are these?
for field in fields(Parts):
    part = getattr(PARTS, field.name)
    whose = "PyTorch's" if part is field.default else f"yours, from {part.__module__}"
    print(f"{field.name:15} {whose}")

# %% see="Model"
# Where are the numbers of your model? A bar for each kind of tensor. Change a size, and guess before you run it again.
journey = {}
try:
    import matplotlib.pyplot as plt

    config = Config(vocabulary=1024, d_model=96, n_layers=3, n_heads=6, n_kv_heads=2, d_head=16, d_hidden=256)
    torch.manual_seed(0)
    journey["model"] = Model(config, PARTS)
    kinds = {"embedding": "tokens", "attention": ".attention.", "feed-forward": ".mlp.", "norms": "norm"}
    named = list(journey["model"].named_parameters())
    counts = [sum(p.numel() for name, p in named if part in name) for part in kinds.values()]
    fig, ax = plt.subplots(figsize=(6, 2.6), facecolor="white")
    bars = ax.barh(list(kinds), counts, color="#0072B2")
    ax.bar_label(bars, [f"{count:,}" for count in counts], padding=3)
    ax.set(xlabel="numbers", title=f"{sum(counts):,} numbers, most of them in the feed-forward parts")
    ax.set_xlim(0, 1.25 * max(counts))
    ax.invert_yaxis()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish Model first, then run this cell again.")

# %% [markdown]
# ## 2 · `train` ●●○
#
# The recipe by which nearly all of these models are trained: AdamW, a warm-up and a cosine, a limit on the gradient,
# and steps that are put together from several small batches.
#
# `train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1)` changes the
# model in place and returns a list with the loss of each step.
#
# - `batches(i)` gives the `i`-th small batch: ids `(batch, n + 1)`, of which the first `n` predict the last `n`. Step
#   `s` takes the batches `s · accumulate` to `s · accumulate + accumulate − 1`, each once, in that order.
# - The loss of a step is the mean cross-entropy, in nats, over all targets of its batches, which are all of one size,
#   and the gradient is that of this loss. It is noted before the step changes the model, as a plain float.
# - The optimiser is `torch.optim.AdamW` with betas 0.9 and 0.95. `weight_decay` holds for parameters with two
#   dimensions or more; gains and biases have none. A parameter that does not require a gradient is left as it is.
# - The rate of step `s` is `parts.learning_rate(s, peak=lr, warmup=warmup, steps=steps, final=lr / 10)`.
# - Before each step, the norm of the whole gradient, all parameters together, is limited to `clip`.
# - Gradients that the model brings along count for nothing. With 0 steps, nothing changes and the list is empty.
# - The trap: a limit on the gradient of each small batch is not a limit on that of the step.


# %% exercise="train" section="The way of a model"
def train(
    model: nn.Module,
    batches: Callable[[int], Int[Tensor, "batch n_plus_1"]],
    steps: int,
    parts: Parts,
    *,
    lr: float = 1e-3,
    warmup: int = 0,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    accumulate: int = 1,
) -> list[float]:
    """Train the model in place by AdamW with warm-up, cosine, clipping and accumulation; the loss of each step.

    Sources: Loshchilov and Hutter 2019 (arXiv 1711.05101); Touvron et al. 2023 (arXiv 2302.13971), section 2.3.
    """
    ### BEGIN SOLUTION
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses
    ### END SOLUTION


# %% check="train" points=5
torch.manual_seed(0)
toy = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))  # it can learn which token follows which
text = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]] * 2)
losses = train(toy, lambda i: text, 60, Parts(), lr=0.03, warmup=5)
assert isinstance(losses, list), f"train should return a list of losses, not {type(losses).__name__}."
assert len(losses) == 60, f"60 steps should give 60 losses, not {len(losses)}."
assert type(losses[0]) is float, f"A loss in the list should be a plain float, not {type(losses[0]).__name__}."
assert losses[-1] < 0.2 < losses[0], (
    f"A text that repeats itself is learnt in 60 steps; the loss went from {losses[0]:.2f} to {losses[-1]:.2f}."
)
guess = toy(text[0, :5]).argmax(-1).tolist()
assert guess == [1, 2, 3, 4, 0], f"After 0, 1, 2, 3, 4 it should have learnt to expect 1, 2, 3, 4, 0, not {guess}."
assert train(toy, lambda i: text, 0, Parts()) == [], "With 0 steps the list should be empty."
table, asked = toy[0].requires_grad_(False).weight.clone(), []
train(toy, lambda i: asked.append(i) or text, 3, Parts(), accumulate=2)
assert asked == [0, 1, 2, 3, 4, 5], f"Three steps of two batches each take the batches 0 to 5 in order, not {asked}."
assert torch.equal(toy[0].weight, table), "The table was frozen: what does not require a gradient should stay as it is."
print("The visible checks of train pass.")

# %% stand_in="train"
import sys  # noqa: E402, F811

import torch  # noqa: E402
from torch import nn  # noqa: E402


class Small(nn.Module):
    """A model with matrices, a gain, a bias, a tensor of three dimensions and a parameter that is not trained."""

    def __init__(self, vocabulary, d_model):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.gain = nn.Parameter(torch.ones(d_model))
        self.read = nn.Linear(d_model, vocabulary)
        self.stack = nn.Parameter(torch.ones(2, 1, d_model))
        self.frozen = nn.Parameter(torch.ones(vocabulary, 1), requires_grad=False)

    def forward(self, ids):
        return self.read(torch.tanh(self.tokens(ids) * self.gain + self.stack.sum((0, 1)))) + self.frozen[:, 0]


def parts_with_rates(told):
    """The standard parts, but for a rate that is told: told(step, peak, warmup, steps, final)."""
    main = sys.modules["__main__"]

    def learning_rate(step, *, peak, warmup, steps, final):
        return told(step, peak, warmup, steps, final)

    return main.replace(main.Parts(), learning_rate=learning_rate)


def give_gradients(model):
    """As if somebody had computed something with the model before."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)


# %% see="train"
# Train it on the prose that every Python carries. Guess: which loss does a model have that knows nothing (ln 1024)?
try:
    import os

    import matplotlib.pyplot as plt

    from ichimon import corpus

    fast = os.environ.get("ICHIMON_FAST") == "1"
    journey["steps"], journey["batch"], journey["length"] = (12, 8, 32) if fast else (400, 16, 64)

    def windows(kinds, split, seed):
        """Random windows of a text of the library: the same number gives the same batch."""
        text = torch.as_tensor(corpus.tokens(kinds, split))

        def batches(i):
            at = torch.randint(
                len(text) - journey["length"],
                (journey["batch"],),
                generator=torch.Generator().manual_seed(1000 * seed + i),
            )
            return torch.stack([text[a : a + journey["length"] + 1] for a in at.tolist()])

        return batches

    def loss_on(model, kinds):
        """The mean loss, in nats a token, on text that the model was not trained on."""
        held_out = windows(kinds, "validation", seed=7)
        with torch.no_grad():
            logits = [(model(ids[:, :-1]), ids[:, 1:]) for ids in map(held_out, range(2 if fast else 20))]
        return sum(F.cross_entropy(found.flatten(0, 1), right.flatten()).item() for found, right in logits) / len(
            logits
        )

    import time

    start = time.perf_counter()
    losses = train(
        journey["model"],
        windows(corpus.PROSE, "train", 0),
        journey["steps"],
        PARTS,
        lr=3e-3,
        warmup=journey["steps"] // 10,
    )
    journey["seconds"] = time.perf_counter() - start
    journey["losses"] = losses
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(losses, color="#0072B2")
    ax.axhline(math.log(1024), color="#D55E00", linestyle="--", label="knows nothing")
    ax.set(xlabel="step", ylabel="loss, nats a token", title="Your model, of your parts, learns")
    ax.legend()
    fig.tight_layout()
    plt.show()
    print(f"On prose that it has never seen: {loss_on(journey['model'], corpus.PROSE):.2f} nats a token.")
except (NotImplementedError, KeyError):
    print("Finish Model and train first, then run this cell again.")

# %% [markdown]
# ## 3 · `adapt` ●●○
#
# Your model has read prose. Now it shall write code, and you want to keep the model that you have. So a *copy* gets
# adapters in some of its layers, and only they learn.
#
# `adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=1e-3)` returns the adapted
# copy and the losses of its training.
#
# - In the copy, every `nn.Linear` whose name is in `targets` is replaced by `parts.lora(linear, rank, alpha)`, made
#   around that layer of the copy. Its name is the last part of its dotted name: in `blocks.0.attention.q_proj` it is
#   `q_proj`.
# - Nothing but the adapters requires a gradient in the copy. It is trained by your `train`, with this `lr`, without
#   weight decay, everything else as `train` has it by default.
# - The model that you are given stays as it was in every respect: its numbers, and what requires a gradient.
# - If no layer has such a name, `adapt` raises a `ValueError` whose sentence names the targets.
# - The trap: freeze first, then put in the adapters.
#
# Call your `train` by its name. When this part is marked, another one stands in for it.


# %% exercise="adapt" section="The way of a model"
def adapt(
    model: nn.Module,
    batches: Callable[[int], Int[Tensor, "batch n_plus_1"]],
    steps: int,
    parts: Parts,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    lr: float = 1e-3,
) -> tuple[nn.Module, list[float]]:
    """A copy of the model with trained adapters in its target layers, and the losses of their training.

    Raises ValueError if no layer is a target.
    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.
    """
    ### BEGIN SOLUTION
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0)
    ### END SOLUTION


# %% check="adapt" points=3
torch.manual_seed(0)
toy = nn.Sequential()
toy.add_module("tokens", nn.Embedding(5, 8))
toy.add_module("q_proj", nn.Linear(8, 8, bias=False))
toy.add_module("read", nn.Linear(8, 5))
before = {name: value.clone() for name, value in toy.state_dict().items()}
text = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
adapted, losses = adapt(toy, lambda i: text, 5, Parts(), rank=2, alpha=4.0, lr=0.01)
assert len(losses) == 5, f"5 steps should give 5 losses, not {len(losses)}."
learning = sorted(name for name, p in adapted.named_parameters() if p.requires_grad)
assert learning == ["q_proj.lora_A", "q_proj.lora_B"], f"Only the adapter should learn, and these do: {learning}."
assert type(toy.q_proj) is nn.Linear, "The given model has an adapter now: put it into a copy."
assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items()), "The given model changed."
print("The visible checks of adapt pass.")

# %% stand_in="adapt"
import sys  # noqa: E402, F811

import torch  # noqa: E402
from torch import nn  # noqa: E402


class Nested(nn.Module):
    """A model with targets on two levels, and with names that only resemble them."""

    def __init__(self, vocabulary, d_model):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        inner = {"q_proj": nn.Linear(d_model, d_model, bias=False), "v_proj": nn.Linear(d_model, d_model)}
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"attention": nn.ModuleDict(inner), "seq_proj": nn.Linear(d_model, d_model)})]
        )
        self.q_proj = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.k_proj = nn.Linear(d_model, vocabulary)

    def forward(self, ids):
        block, x = self.blocks[0], self.tokens(ids)
        x = x + block["attention"]["v_proj"](torch.tanh(block["attention"]["q_proj"](x)))
        return self.k_proj(self.norm(x + self.q_proj(block["seq_proj"](x))))


def train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    if "losses" in vars(model):  # a test wants to know how it was called
        return [float(lr), float(warmup), float(weight_decay), float(clip), float(accumulate), float(steps)]
    learning = [p for p in model.parameters() if p.requires_grad]
    by = torch.optim.AdamW(learning, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    found = []
    for i in range(steps):
        ids = batches(i)
        by.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, clip)
        by.step()
        found.append(loss.item())
    return found


def learning(model):
    """The names of what requires a gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def only_called(model):
    """The model, marked so that `train` says how it was called and does nothing."""
    vars(model)["losses"] = True
    return model


def telling_lora(told):
    """The standard parts, but for a `lora` that tells what it is made of: in, out, rank, alpha."""
    main = sys.modules["__main__"]
    standard = main.Parts().lora

    def lora(linear, rank, alpha):
        told(linear.in_features, linear.out_features, rank, alpha)
        return standard(linear, rank, alpha)

    return main.replace(main.Parts(), lora=lora)


# %% see="adapt"
# The same library, but its code. What does the copy gain, and what does it forget?
try:
    sizes = {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "k_proj", "v_proj", "o_proj")}
    journey["adapted"], losses = adapt(
        journey["model"], windows(corpus.CODE, "train", 1), journey["steps"] // 2, PARTS, lr=5e-3, **sizes
    )
    learning = sum(p.numel() for p in journey["adapted"].parameters() if p.requires_grad)
    whole = sum(p.numel() for p in journey["model"].parameters())
    print(f"{learning:,} numbers learnt, {learning / whole:.1%} of the {whole:,} of your model.")
    for title, kinds in (("prose", corpus.PROSE), ("code", corpus.CODE)):
        before, after = (loss_on(journey[name], kinds) for name in ("model", "adapted"))
        print(f"On {title}: {before:.2f} nats a token before, {after:.2f} after.")
except (NotImplementedError, KeyError, NameError):
    print("Finish Model, train and adapt first, then run this cell again.")

# %% [markdown]
# ## 4 · `quantise` ●●○
#
# Four bits a number, where thirty-two were. What is in the blocks is shrunk; the embedding, the norms and what
# decides between experts stay as they are, for they are small and easily hurt.
#
# `quantise(model, parts, block=64)` returns a copy of the model and the bytes that it takes. In the copy each
# parameter that is to be shrunk holds what is left of it after `parts.nf4_quantize` and `parts.nf4_dequantize`: the
# copy computes as the shrunk model would.
#
# - Shrunk are the parameters whose dotted name begins with `blocks.`, that have two dimensions or more, and in whose
#   dotted name no part is `router`, `lora_A` or `lora_B`. A tensor of several experts is shrunk as one.
# - Each goes to `nf4_quantize` as a whole, with this `block`. Its bytes are those of the two tensors that come back;
#   the bytes of every other parameter are those it has.
# - In the copy every parameter keeps its name, its shape, its dtype, and whether it requires a gradient.
# - The trap: experts are no `nn.Linear`, and they are most of a Mixture of Experts.


# %% exercise="quantise" section="The way of a model"
def quantise(model: nn.Module, parts: Parts, block: int = 64) -> tuple[nn.Module, int]:
    """A copy of the model whose blocks' matrices went through four bits and back, and the bytes it takes so.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3.
    """
    ### BEGIN SOLUTION
    shrunk, size = copy.deepcopy(model), 0
    for name, value in shrunk.named_parameters():
        if name.startswith("blocks.") and value.dim() > 1 and not {"router", "lora_A", "lora_B"} & set(name.split(".")):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return shrunk, size
    ### END SOLUTION


# %% check="quantise" points=3
toy = nn.Module()
toy.tokens = nn.Embedding(3, 8)
toy.blocks = nn.ModuleList([nn.Linear(8, 16)])
before = toy.blocks[0].weight.detach().clone()
shrunk, size = quantise(toy, Parts())
assert torch.equal(toy.blocks[0].weight, before), "The given model changed: shrink a copy."
assert torch.equal(shrunk.tokens.weight, toy.tokens.weight), "The embedding should stay as it is."
assert not torch.equal(shrunk.blocks[0].weight, before), "The matrix in the block should have lost something."
assert (shrunk.blocks[0].weight - before).abs().max() < 0.2 * before.abs().max(), "It lost too much."
assert size == 64 + 8 + 96 + 64, f"16 · 8 numbers at 4 bits, two blocks, a table and a bias take 232 bytes, not {size}."
print("The visible checks of quantise pass.")

# %% stand_in="quantise"
import sys  # noqa: E402, F811

import torch  # noqa: E402
from torch import nn  # noqa: E402


class Various(nn.Module):
    """Every kind of parameter that `quantise` must tell apart."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(6, 8)
        block = nn.Module()
        block.norm1 = nn.LayerNorm(8)
        block.attention = nn.Module()
        block.attention.q_proj = nn.Linear(8, 10, bias=False)
        block.attention.o_proj = nn.Linear(10, 8)
        block.attention.v_proj = nn.Module()
        block.attention.v_proj.linear = nn.Linear(8, 10, bias=False).requires_grad_(False)
        block.attention.v_proj.lora_A = nn.Parameter(torch.ones(2, 8))
        block.attention.v_proj.lora_B = nn.Parameter(torch.ones(10, 2))
        block.mlp = nn.Module()
        block.mlp.router = nn.Linear(8, 3, bias=False)
        block.mlp.router_up = nn.Parameter(torch.ones(3, 8))
        block.mlp.gate_up = nn.Parameter(torch.ones(3, 7, 9))
        self.blocks = nn.ModuleList([block])
        self.head = nn.Module()
        self.head.blocks = nn.Linear(8, 6, bias=False)
        self.blocks_after = nn.Linear(8, 6, bias=False)


def learning(model):
    """The names of what requires a gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def telling_nf4(told):
    """The standard parts, but for a quantiser that keeps one bit a number, and tells shape and block."""
    main = sys.modules["__main__"]

    def nf4_quantize(x, block=64):
        told("quantize", list(x.shape), block)
        return (x.detach().flatten() > 0).to(torch.uint8), x.detach().float().abs().mean().reshape(1)

    def nf4_dequantize(packed, absmax, shape, block=64):
        told("dequantize", list(shape), block)
        return ((2.0 * packed - 1) * absmax).reshape(tuple(shape))

    return main.replace(main.Parts(), nf4_quantize=nf4_quantize, nf4_dequantize=nf4_dequantize)


# %% see="quantise"
# What does your model weigh, and what has it lost?
try:
    import matplotlib.pyplot as plt

    journey["shrunk"], journey["bytes"] = quantise(journey["model"], PARTS)
    numbers = sum(p.numel() for p in journey["model"].parameters())
    labels, sizes = ["float32", "bfloat16", "blocks in 4 bits"], [4 * numbers, 2 * numbers, journey["bytes"]]
    fig, ax = plt.subplots(figsize=(6, 2.4), facecolor="white")
    bars = ax.barh(labels, [size / 1000 for size in sizes], color="#009E73")
    ax.bar_label(bars, [f"{size:,}" for size in sizes], padding=3)
    ax.set(xlabel="thousand bytes", title="What is not in the blocks weighs the most now")
    ax.set_xlim(0, 1.3 * sizes[0] / 1000)
    ax.invert_yaxis()
    fig.tight_layout()
    plt.show()
    for name in ("model", "shrunk"):
        print(f"{name:7} {loss_on(journey[name], corpus.PROSE):.3f} nats a token on prose")
except (NotImplementedError, KeyError, NameError):
    plt.close()
    print("Finish Model, train and quantise first, then run this cell again.")

# %% [markdown]
# ## 5 · `serve` ●●○
#
# People wait for answers. Several may ask at once, and none should notice the others.
#
# `serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None)` takes a list of prompts, each a row of
# ids `(n,)` of any length from 1, and returns a list of as many answers, each a row of new ids, int64, without the
# prompt.
#
# - Each prompt has an empty cache of its own, `parts.cache()`. `model(ids, cache)`, called with these two in this
#   order, reads ids `(1, n)`: the whole prompt in the first call, and in each later one only the token that was just
#   written. A token that nobody asks about is not read: the last one written never is.
# - The next token is `parts.sample(logits, u, temperature)` of the logits of the last position, `(1, vocabulary)`.
#   `u` is one number from `torch.rand(1, generator=…)`. Each prompt has a generator of its own, which begins with
#   this `seed`, and draws once for each token, also where the temperature is 0.
# - An answer has `n_new` tokens, at least 1, or fewer if the token `end` comes: then `end` is its last.
# - No gradient is recorded.
# - The trap: what is drawn for one prompt must not depend on who else has asked.


# %% exercise="serve" section="The way of a model"
def serve(
    model: Callable[..., Float[Tensor, "batch n vocabulary"]],
    prompts: Sequence[Int[Tensor, " n"]],
    n_new: int,
    parts: Parts,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    end: int | None = None,
) -> list[Int[Tensor, " n_answer"]]:
    """The answer to each prompt, token by token, with a cache: the same as if it had been asked alone."""
    ### BEGIN SOLUTION
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = parts.cache(), torch.Generator().manual_seed(seed)
            ids, answer = prompt[None], []
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers
    ### END SOLUTION


# %% check="serve" points=3
def counting(ids, cache):
    """A model that counts on: after 3 comes 4."""
    return F.one_hot((ids + 1) % 10, 10).float()


answers = serve(counting, [torch.tensor([2, 3]), torch.tensor([7])], 4, Parts())
assert isinstance(answers, list), f"serve should return a list of answers, not {type(answers).__name__}."
assert len(answers) == 2, f"Two prompts should get two answers, not {len(answers)}."
assert answers[0].tolist() == [4, 5, 6, 7], (
    f"After 2, 3 this model counts to 7, and the answer is {answers[0].tolist()}."
)
answers = serve(counting, [torch.tensor([7])], 6, Parts(), end=9)
assert answers[0].tolist() == [8, 9], (
    f"The end token 9 is the last of an answer, and this one is {answers[0].tolist()}."
)
print("The visible checks of serve pass.")

# %% stand_in="serve"
import sys  # noqa: E402, F811

import torch  # noqa: E402


class CountedCache:
    """A cache that only counts: what a model of the tests needs to know of the past."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.number, self.length = type(self).made, 0


class Walking:
    """A model that adds to each token how many have been read, and tells which cache it is given."""

    def __init__(self, told=None):
        self.told = told

    def __call__(self, ids, cache):
        cache.length += ids.shape[1]
        if self.told is not None:
            self.told(cache.number)
        return torch.nn.functional.one_hot((ids + cache.length) % 11, 11).float()


def serving_parts(told=None):
    """The standard parts, but for the cache, and for a `sample` that is told what it gets."""
    main = sys.modules["__main__"]
    CountedCache.made = 0

    def sample(logits, u, temperature=1.0, top_k=None):
        return told(logits, u, float(temperature))

    return main.replace(main.Parts(), cache=CountedCache, **({"sample": sample} if told else {}))


class Watching:
    """A model that counts on, notes whether gradients are recorded where it is called, and draws as dropout does."""

    def __init__(self):
        self.recorded = []

    def __call__(self, ids, cache):
        self.recorded.append(torch.is_grad_enabled())
        torch.rand(3)
        return torch.nn.functional.one_hot((ids + 1) % 11, 11).float()


# %% see="serve"
# Ask it. It has read a library for a minute, so expect its tone more than its sense. Change prompt and temperature.
try:
    bpe = corpus.tokenizer()
    prompts = ["Return the", "The module provides", "If the argument is"]
    ids = [torch.tensor(bpe.encode(prompt).ids) for prompt in prompts]
    for name in ("model", "shrunk", "adapted"):
        if name in journey:
            print(f"-- {name}")
            for prompt, answer in zip(
                prompts, serve(journey[name], ids, 12 if fast else 30, PARTS, temperature=0.7), strict=True
            ):
                print("  ", repr(prompt + bpe.decode(answer.tolist())))
    if "model" not in journey:
        print("Finish Model, train and serve first, then run this cell again.")
except (NotImplementedError, KeyError, NameError):
    print("Finish Model, train and serve first, then run this cell again.")

# %% [markdown]
# ## 6 · `bill` ●●○
#
# What a model costs follows from its sizes. No model is needed to know it, so you can know it before you train.
#
# `bill(config, *, context, tokens, seconds, watts)` returns a dict with the bill of a `Model` with standard parts:
#
# | name | what it is |
# |---|---|
# | `parameters` | all numbers of the model; the read-out is the embedding, and counts once |
# | `active` | those that are used for one token, as chapter 16 counts: of the experts only `top_k` in each layer |
# | `bytes_fp32`, `bytes_bf16` | of all numbers, at four and at two bytes |
# | `bytes_nf4` | after `quantise`, with blocks of 64, and with the rest at two bytes a number |
# | `kv_bytes_per_token` | what the cache keeps for one token, at two bytes a number |
# | `flops_per_token` | of computing the logits of one token that attends to `context` positions |
# | `training_flops` | of learning from `tokens` tokens: the way back costs twice the way forth |
# | `watt_hours` | of `seconds` at `watts` |
#
# - A norm has `d_model` numbers, SwiGLU three matrices of `d_model · d_hidden`, an expert as many, in two tensors a
#   layer: gate and up together, `n_experts · 2 d_hidden · d_model`, and down, `n_experts · d_model · d_hidden`.
# - What is shrunk takes half a byte a number and four bytes a block, for each tensor by itself; half a byte that is
#   left over counts as a byte, a block that is not full as a block.
# - A token costs two FLOPs for each number of a matrix that it is multiplied with, router and read-out among them.
# - Attention's own FLOPs are those of its two products, queries with keys and weights with values: two for each
#   multiplication and addition, in each query head, for each of the `context` positions. Norms, softmax, RoPE and
#   additions count as nothing, and so does looking up the embedding.
# - All but `watt_hours` are exact integers, of any size.
# - The trap: query heads share what is kept, but each of them has to compute.


# %% exercise="bill" section="The mathematics"
def bill(config: Config, *, context: int, tokens: int, seconds: float, watts: float) -> dict[str, float]:
    """What a model of these sizes weighs, keeps, computes and burns.

    Source of the count of FLOPs: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1.
    """
    ### BEGIN SOLUTION
    c = config
    q, kv = c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = [c.d_hidden * c.d_model] * 3, 0, 0
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = (2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }
    ### END SOLUTION


# %% check="bill" points=4
config = Config(vocabulary=10, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, d_head=2, d_hidden=6)
found = bill(config, context=3, tokens=100, seconds=1800, watts=50)
floats = [name for name, value in found.items() if name != "watt_hours" and type(value) is not int]
assert not floats, f"Only watt_hours may be a float, and these are no ints: {floats}."
assert found["parameters"] == 40 + 12 + 48 + 72, f"This model has 172 numbers, and the bill says {found['parameters']}."
assert found["active"] == found["parameters"], "Without experts, every number is used for every token."
assert found["bytes_fp32"] == 688, f"172 numbers at four bytes are 688, and the bill says {found['bytes_fp32']}."
assert found["watt_hours"] == 25, f"Half an hour at 50 watts is 25 watt-hours, and the bill says {found['watt_hours']}."
assert found["training_flops"] == 300 * found["flops_per_token"], (
    "100 tokens, once forth and twice back, cost 300 times."
)
print("The visible checks of bill pass.")

# %% see="bill"
# The card of your model, as far as a program can write it. Set the watts: the power supply says the most that it takes.
try:
    config = Config(vocabulary=1024, d_model=96, n_layers=3, n_heads=6, n_kv_heads=2, d_head=16, d_hidden=256)
    tokens = journey["steps"] * journey["batch"] * journey["length"]
    found = bill(config, context=journey["length"], tokens=tokens, seconds=journey["seconds"], watts=30)
    print("MODEL CARD")
    print(f"architecture   decoder, {config.n_layers} layers of {config.d_model}")
    print(f"attention      {config.n_heads} heads of queries, {config.n_kv_heads} of keys and values")
    own_parts = sum(getattr(PARTS, field.name) is not field.default for field in fields(Parts))
    print(f"parts          {own_parts} of {len(fields(Parts))} are the author's own")
    print(f"trained on     {tokens:,} tokens of Python's English documentation, loss {journey['losses'][-1]:.2f}")
    for name, value in found.items():
        print(f"{name:19}{value:>18,.4g}" if name == "watt_hours" else f"{name:19}{value:>18,}")
    weighs = sum(p.numel() for p in journey["model"].parameters())
    print(f"The bill says {found['parameters']:,} numbers, and the model has {weighs:,}.")
except (NotImplementedError, KeyError, NameError):
    print("Finish Model, train and bill first, then run this cell again.")

# %% [markdown]
# ## The model card, in your own words (2 points)
#
# A card is what a stranger reads before they use a model. The program above wrote its numbers. Write the rest in six
# to eight sentences: what the model is and what it was trained on; what it may be used for and what not, and why;
# what was measured, on which text, and what was not; and which of the bill's numbers are exact and which are
# estimates. A person reads this, and no test.

# %% [markdown] question="card" points=2
# Two points for all four; one for two or three of them.
#
# - A small decoder for next tokens, trained from nothing on some hundred thousand tokens of the English documentation
#   of Python's library; an adapted copy on its code. Not tuned on instructions, and not on any other language.
# - Of use for learning how such models are made. Not for answers, facts, code that is run, or anything that concerns
#   people: it writes what sounds like documentation, was not tested for bias or harm, and has a text as small as its
#   licence is particular (that of Python's documentation).
# - Measured was the loss on prose that was kept apart, before and after adapting and after four bits, with one seed.
#   Not measured: whether what it writes is true, other texts and languages, long contexts, whether it recites.
# - Numbers, bytes and kept bytes are exact, for they follow from the sizes. FLOPs count matrix products and leave out
#   the rest. Watt-hours are a guess: the watts were typed in, not metered, and without the machine's idling or its
#   making.

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they build the model of other parts and see whether it
# follows, they compare it with an implementation that is not ours, read texts in odd chunks, train with frozen
# parameters and rates of their own, count what is read, and hold the bill against a machine's count. Each exercise is
# marked by itself, and every test that passes counts. Your own parts were marked in their chapters, and are not marked
# again: one small test asks whether those that a model is built of fit together, and says which does not.
#
# Before you hand in, run `python -m ichimon check 23-your-own-model.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
