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
#     assignment: 12-gpt-line
# ---

# %% [markdown]
# # 12 · The GPT line, BLOOM, GPT-OSS
#
# **One question: which GPT is open, and what is inside it?**
#
# GPT-2, GPT-J, GPT-NeoX, Pythia, BLOOM, OpenLLaMA, OLMo, gpt-oss: their weights can be downloaded by anybody. They have
# a name or a spirit in common, and people say that they are one architecture. You will build all of them as *one*
# class, and then you will know exactly in which lines they differ, because you will have written them.
#
# You begin with the way weights are packed, go on with attention, the block and the whole decoder, and then change
# sides. A detective reads the names and shapes of an unknown checkpoint and says which model it is, and what cannot be
# known. In the last part a colleague's GPT-NeoX is ill. The page of the book that goes with this notebook is
# `book/12-gpt-line`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `split_qkv` | ●○○ | 15 | 3 |
# | `Attention` | ●●● | 40 | 6 |
# | `Block` | ●●○ | 25 | 5 |
# | `Decoder` | ●●○ | 20 | 4 |
# | `detective` | ●●○ | 25 | 4 |
# | `Mended` | ●●○ | 20 | 3 |
# | in your own words | ●○○ | 10 | 2 |
#
# ## Conventions
#
# - **Shapes** are written as jaxtyping writes them. What runs through a model has the shape `(batch, n, d_model)`.
# - **Masks** are boolean, and True means "may attend". `mask` of shape `(batch, n)` is True for the tokens of a text
#   and False for padding, which stands on the left. Where text and padding meet, a position does not count the
#   padding: the first token of a text stands at position 0.
# - **State dicts** have the names that a part states, and nothing else. Weights are stored as `nn.Linear`,
#   `nn.LayerNorm` and `nn.RMSNorm` store them. How you initialise them is up to you.
# - **What comes in goes out**: the result has the dtype of the weights, and an input is never changed in place. There
#   is no dropout.
#
# You built these parts in chapters 02 to 06. All that PyTorch has may be used.
#
# ## The configuration
#
# One class for all families means one list of what can differ. It is in the set-up cell. The defaults are LLaMA's, and
# `FAMILIES` says what each family sets otherwise, its sizes aside. Two things that chapter
# 03 was about are given as methods: `config.frequencies()` and `config.slopes()`.

# %% role="set-up"
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder is made of. The defaults are LLaMA's."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int  # of the queries
    n_kv_heads: int  # of the keys and values
    d_head: int
    d_hidden: int  # of the feed-forward part
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k, before they turn
    windows: tuple[int | None, ...] = ()  # one a layer, () for none at all
    tied: bool = False  # the read-out is the table of tokens
    positions: str = "rope"  # or "learned", or "alibi"
    n_context: int = 2048  # rows of the table of learned positions
    d_rotary: int | None = None  # RoPE turns the first d_rotary channels of a head; None: all
    interleaved: bool = False  # RoPE turns channels 2i and 2i + 1 together, and not i and i + d_rotary / 2
    yarn: tuple[float, float, float, int] | None = None  # factor, fast, slow, and the length before stretching
    sinks: bool = False  # one learned score a head that takes part in the softmax, and no value
    clip_qkv: float | None = None  # q, k and v are cut off here, above and below
    o_bias: bool = False
    norm: str = "rms"  # or "layer", or "plain": LayerNorm without gain and bias
    tokens_norm: bool = False  # a norm right after the table of tokens
    residual: str = "sequential"  # or "parallel", or "shared": parallel with one norm for both
    mlp: str = "swiglu"  # or "gelu", "gelu_tanh", "clamped"
    mlp_bias: bool = False
    head_bias: bool = False

    def frequencies(self) -> tuple[Float[Tensor, "d_rotary/2"], float]:
        """The angle by which RoPE turns each pair of channels from one position to the next, and YaRN's factor.

        Cosine and sine are both multiplied by the factor; without YaRN it is 1.
        """
        d, log = self.d_rotary or self.d_head, math.log(self.rope_theta)
        angles = torch.exp(torch.arange(0, d, 2) * (-log / d))
        if self.yarn is None:
            return angles, 1.0
        stretch, fast, slow, n_before = self.yarn
        ends = [d / 2 / log * math.log(n_before / (2 * math.pi * turns)) for turns in (fast, slow)]
        first, last = max(ends[0], 0), min(ends[1], d - 1)
        stretched = ((torch.arange(d // 2) - first) / (last - first)).clamp(0, 1)
        return angles * (1 - stretched + stretched / stretch), 1 + math.log(stretch) / 10

    def slopes(self) -> Float[Tensor, "n_heads"]:
        """ALiBi's slope of each head."""
        power = 1 << self.n_heads.bit_length() - 1
        exponents = [8 * i / power for i in range(1, power + 1)]
        exponents += [4 * i / power for i in range(1, 2 * (self.n_heads - power), 2)]
        return torch.tensor([2.0**-exponent for exponent in exponents])


_biases = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
_layer = {"norm": "layer", "norm_eps": 1e-5}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT-2": {**_biases, **_layer, "positions": "learned", "mlp": "gelu_tanh", "tied": True},
    "GPT-J": {
        **_layer,
        "mlp_bias": True,
        "head_bias": True,
        "interleaved": True,
        "residual": "shared",
        "mlp": "gelu_tanh",
    },
    "Pythia": {**_biases, **_layer, "residual": "parallel", "mlp": "gelu"},  # GPT-NeoX, with the exact GELU
    "BLOOM": {**_biases, **_layer, "positions": "alibi", "tokens_norm": True, "mlp": "gelu_tanh", "tied": True},
    "OpenLLaMA": {},
    "OLMo": {"norm": "plain", "norm_eps": 1e-5},
    "gpt-oss": {
        **_biases,
        "norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "yarn": (32.0, 32.0, 1.0, 4096),
        "sinks": True,
        "mlp": "clamped",
    },
}


# %% [markdown]
# ## 1 · `split_qkv` ●○○
#
# Many checkpoints hold the three projections of attention as one matrix: one product is faster than three. *How* they
# lie in it, no shape tells, and every wrong way gives a model that runs and talks nonsense.
#
# `split_qkv(fused, n_heads, layout)` takes the fused weight or the fused bias and returns a tuple of three tensors, q,
# k and v, each as `nn.Linear` stores it: a weight of shape `(d_model, d_model)`, one row an output, with head 0 in the
# first rows; a bias of shape `(d_model,)`.
#
# | `layout` | weight | bias | the order of its outputs |
# |---|---|---|---|
# | `"gpt2"` | `(d_model, 3 · d_model)` | `(3 · d_model,)` | all of q, all of k, all of v |
# | `"per_head"` | `(3 · d_model, d_model)` | `(3 · d_model,)` | q, k, v of head 0; q, k, v of head 1; … |
#
# - GPT-2's layer is a `Conv1D`: it computes `x @ weight + bias`. GPT-NeoX and BLOOM (`"per_head"`) have an `nn.Linear`.
# - The heads share the channels equally: a head has `d_model / n_heads`.
# - The values and the dtype stay, and `fused` is not changed.
# - Another `layout` raises a `ValueError` whose sentence names it.
# - The trap: both layouts can be read as the other, without an error.


# %% exercise="split_qkv" section="Three matrices in one"
def split_qkv(fused: Float[Tensor, "..."], n_heads: int, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """The q, k and v parts of a fused weight or bias, as nn.Linear stores them.

    Raises ValueError for a layout that is neither "gpt2" nor "per_head".
    """
    ### BEGIN SOLUTION
    if layout == "gpt2":
        rows = fused.T if fused.dim() == 2 else fused
        return rows.chunk(3)
    if layout == "per_head":
        heads = fused.unflatten(0, (n_heads, 3, -1))
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))
    raise ValueError(f"There is no layout {layout!r}: it is gpt2 or per_head")
    ### END SOLUTION


# %% check="split_qkv" points=3
fused = torch.randn(12, 4)
parts = split_qkv(fused, 2, "per_head")
assert isinstance(parts, tuple), f"split_qkv should return a tuple of three tensors, not a {type(parts).__name__}."
assert len(parts) == 3, f"split_qkv should return three tensors, not {len(parts)}."
assert all(part.shape == (4, 4) for part in parts), (
    f"Each part should have the shape (4, 4), and they have {[tuple(part.shape) for part in parts]}."
)
assert torch.equal(parts[0][:2], fused[:2]), "Layout per_head: the first two rows of q, head 0, are the first two rows."
x, fused = torch.randn(5, 4), torch.randn(4, 12)
parts = split_qkv(fused, 2, "gpt2")
assert torch.allclose(torch.cat([F.linear(x, part) for part in parts], -1), x @ fused, atol=1e-5), (
    "Layout gpt2: the three parts, as nn.Linear uses them and side by side, should give what Conv1D gives."
)
for layout in ("gpt2", "per_head"):
    shapes = [tuple(part.shape) for part in split_qkv(torch.randn(12), 2, layout)]
    assert shapes == [(4,)] * 3, f"Layout {layout}: a bias of 12 should give three parts of shape (4,), not {shapes}."
print("The visible checks of split_qkv pass.")

# %% see="split_qkv"
# The rows of one fused matrix, three heads of four channels: what is where? The same file, read in two ways.
try:
    import matplotlib.pyplot as plt

    rows = torch.arange(36.0)
    fig, axes = plt.subplots(2, 1, figsize=(7, 2.6), facecolor="white")
    for ax, layout in zip(axes, ("gpt2", "per_head"), strict=True):
        owner = torch.zeros(36)
        for number, part in enumerate(split_qkv(rows, 3, layout)):
            owner[part.long()] = number + 0.2 * (torch.arange(12) // 4)
        ax.imshow(owner[None], cmap="viridis", aspect="auto")
        ax.set(yticks=[], ylabel=layout)
    axes[0].set(title="q dark, k green, v yellow; a shade for each head", xticks=[])
    axes[1].set(xlabel="row of the fused matrix")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish split_qkv first, then run this cell again.")

# %% [markdown]
# ## 2 · `Attention` ●●●
#
# One attention for all families. `Attention(config, layer)` is that of layer `layer`, counted from 0. It is called with
# `x` of shape `(batch, n, d_model)`, with `positions` of shape `(batch, n)`, integers, and with `mask` of shape
# `(batch, n)`, and gives what `x` has. In this order:
#
# 1. **Projections** `q_proj`, `k_proj`, `v_proj`: `n_heads` or `n_kv_heads` heads of `d_head` channels, head 0 first,
#    with biases where `qkv_bias` is set. Where `clip_qkv` is a number c, q, k and v are cut off at −c and c.
# 2. **QK norm**, where `qk_norm` is set: `q_norm` and `k_norm` are `nn.RMSNorm` over `d_head` channels, eps `norm_eps`.
# 3. **RoPE**, where `positions` is `"rope"`: the first `d_rotary` channels of each head of q and k are turned by their
#    position, a pair of channels $(a, b)$ by the angle position × frequency to $(a \cos - b \sin,\; b \cos + a \sin)$;
#    the other channels stay. `config.frequencies()` gives the frequencies of the pairs, and a factor for both cosine
#    and sine. Pair `i` is made of the channels `2i` and `2i + 1` if `interleaved` is set, else of `i` and `i +
#    d_rotary / 2`. The angles are computed in float32.
# 4. **Scores** are q · k / √d_head. Query head `i` reads key head `i // (n_heads // n_kv_heads)`. Where `positions` is
#    `"alibi"`, head `h` loses `config.slopes()[h]` for each token between the two: nothing for the token itself, one
#    slope for the one before it.
# 5. **Who sees whom**: a token sees itself and those before it that are no padding. Where the layer has a window W, a
#    token sees W tokens at most: itself and the W − 1 before it.
# 6. **Sinks**, where `sinks` is set: a parameter `sinks` of shape `(n_heads,)` holds one more score for each head. It
#    takes part in the softmax, and then its share is dropped, so that the other shares no longer add up to one.
# 7. **Output**: the heads side by side through `o_proj`, back to `d_model`, with a bias where `o_bias` is set.
#
# The state dict has exactly the entries named here, those that the configuration asks for. What comes out at a padded
# place nobody reads; it must be finite, and so must all gradients. The trap: almost every mistake that is possible here
# gives a model that trains.


# %% exercise="Attention" section="One decoder, a dozen switches"
class Attention(nn.Module):
    """Self-attention as GPT-2, GPT-J, GPT-NeoX, BLOOM, LLaMA, OLMo and gpt-oss have it, by configuration."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.config, self.window = config, config.windows[layer] if config.windows else None
        width, kv_width = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.d_model, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)
        if config.sinks:
            self.sinks = nn.Parameter(torch.zeros(config.n_heads))
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], positions: Int[Tensor, "batch n"], mask: Bool[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n d_model"]:
        """Each token looks at those that it may see."""
        ### BEGIN SOLUTION
        config, n = self.config, x.shape[1]
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if config.clip_qkv is not None:
            q, k, v = (part.clamp(-config.clip_qkv, config.clip_qkv) for part in (q, k, v))
        q, k, v = (part.unflatten(-1, (-1, config.d_head)).transpose(1, 2) for part in (q, k, v))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if config.positions == "rope":
            q, k = self.turned(q, positions), self.turned(k, positions)
        k, v = (part.repeat_interleave(config.n_heads // config.n_kv_heads, 1) for part in (k, v))
        scores = q @ k.mT / math.sqrt(config.d_head)
        back = torch.arange(n)[:, None] - torch.arange(n)
        if config.positions == "alibi":
            scores = scores - (config.slopes()[:, None, None] * back).to(scores)
        seen = (back >= 0) & mask[:, None, None, :]
        if self.window is not None:
            seen = seen & (back < self.window)
        seen = seen | (back == 0)  # padding sees itself: a row of nothing would be NaN
        scores = scores.masked_fill(~seen, -math.inf)
        if config.sinks:
            sinks = self.sinks[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sinks], -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).flatten(-2))
        ### END SOLUTION

    def turned(
        self, x: Float[Tensor, "batch heads n d_head"], positions: Int[Tensor, "batch n"]
    ) -> Float[Tensor, "batch heads n d_head"]:
        """RoPE; a proposal: q or k, the first channels of each head turned by their position."""
        ### BEGIN SOLUTION
        speed, factor = self.config.frequencies()
        angle = positions[:, None, :, None] * speed
        cos, sin = (factor * angle.cos()).to(x), (factor * angle.sin()).to(x)
        turning, still = x.tensor_split([2 * len(speed)], -1)
        if self.config.interleaved:
            a, b = turning[..., ::2], turning[..., 1::2]
            return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), still], -1)
        a, b = turning.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, still], -1)
        ### END SOLUTION


# %% check="Attention" points=6
sizes = {"vocabulary": 20, "d_model": 12, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_hidden": 16}
attention = Attention(DecoderConfig(**sizes, **FAMILIES["gpt-oss"], windows=(3, None)), 0)
names = {f"{letter}_proj.{part}" for letter in "qkvo" for part in ("weight", "bias")} | {"sinks"}
assert set(attention.state_dict()) == names, (
    f"For gpt-oss the state dict should hold {sorted(names)}, and it holds {sorted(attention.state_dict())}."
)
x, positions, mask = torch.randn(2, 6, 12), torch.arange(6).expand(2, 6), torch.ones(2, 6, dtype=torch.bool)
y = attention(x, positions, mask)
assert y.shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(y.shape)}."
changed = x.clone()
changed[:, 1] += torch.randn(12)
moved = (attention(changed, positions, mask) - y).abs().amax((0, 2)) > 1e-6
assert not moved[0], "Token 1 changed, and token 0 noticed: attention should not look ahead."
assert moved[1:4].all(), "With a window of 3, tokens 1, 2 and 3 should notice that token 1 changed."
assert not moved[4:].any(), (
    "With a window of 3, token 4 sees tokens 2, 3 and 4 only, and it noticed a change of token 1."
)
attention = Attention(DecoderConfig(**sizes, **FAMILIES["OpenLLaMA"]), 0)
found, later = attention(x, positions, mask), attention(x, positions + 7, mask)
assert torch.allclose(found, later, atol=1e-5), "RoPE: where all positions are 7 larger, nothing should change."
attention = Attention(DecoderConfig(20, 2, 1, n_heads=1, n_kv_heads=1, d_head=4, d_hidden=8), 0)
attention.load_state_dict({f"{p}_proj.weight": torch.eye(2, 4) if p == "o" else torch.eye(4, 2) for p in "qkvo"})
found = attention(torch.eye(2)[None], torch.arange(2)[None], mask[:1, :2])[0, 1, 0].item()
assert abs(found - 0.3775) < 1e-3, (
    "q, k and v are (1, 0, 0, 0) for token 0 and (0, 1, 0, 0) for token 1, and these two channels are no pair. Token 1 "
    f"should score 0 with token 0 and 1 / √4 with itself: its share of token 0 should be 0.3775, not {found:.4f}."
)
print("The visible checks of Attention pass.")

# %% see="Attention"
# One text, five families: which share of its attention does the last token give to each of the others? With all queries
# at zero, content says nothing, and what is left comes from the architecture.
try:
    import matplotlib.pyplot as plt

    n, layouts = 24, {}
    for name, extra in {"GPT-2": {}, "BLOOM": {}, "gpt-oss": {"windows": (8,)}}.items():
        config = DecoderConfig(9, n, 1, 1, 1, n, 4, **FAMILIES[name] | extra)
        attention = Attention(config, 0)
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.zero_()
            attention.v_proj.weight.copy_(torch.eye(n))
            attention.o_proj.weight.copy_(torch.eye(n))
            layouts[name] = attention(torch.eye(n)[None], torch.arange(n)[None], torch.ones(1, n, dtype=torch.bool))[
                0, -1
            ]
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for (name, share), style in zip(layouts.items(), ("o-", "s--", "^:"), strict=True):
        ax.plot(share, style, label=f"{name}: {share.sum():.0%} in all")
    ax.set(
        xlabel="token", ylabel="share of the last token's attention", title="What each family prefers before it learns"
    )
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish Attention first, then run this cell again.")

# %% [markdown]
# ## 3 · `Block` ●●○
#
# A block is attention and a feed-forward part, each added to the residual stream. The families differ in where the
# norms stand, in what they are, and in what the feed-forward part does. `Block(config, layer)` is called with `(x,
# positions, mask)` as `Attention` is, and gives what `x` has. With $A$ for attention and $M$ for the feed-forward
# part:
#
# | `residual` | the block |
# |---|---|
# | `"sequential"` | $h = x + A(\mathrm{norm}_1(x))$, then $h + M(\mathrm{norm}_2(h))$ |
# | `"parallel"` | $x + A(\mathrm{norm}_1(x)) + M(\mathrm{norm}_2(x))$ |
# | `"shared"` | $x + A(\mathrm{norm}_1(x)) + M(\mathrm{norm}_1(x))$, and there is no `norm2` |
#
# | `norm` | what it is, always with eps `norm_eps` |
# |---|---|
# | `"rms"` | RMSNorm with a gain |
# | `"layer"` | LayerNorm with gain and bias |
# | `"plain"` | LayerNorm that has no parameters |
#
# | `mlp` | the feed-forward part |
# |---|---|
# | `"gelu"`, `"gelu_tanh"` | `down_proj(gelu(up_proj(x)))`, with the exact GELU or with its tanh form |
# | `"swiglu"` | `down_proj(silu(gate_proj(x)) · up_proj(x))` |
# | `"clamped"` | `down_proj(g · sigmoid(1.702 g) · (u + 1))` |
#
# In the last, gpt-oss's, `g` is `gate_proj(x)`, cut off above at 7, and `u` is `up_proj(x)`, cut off at −7 and at 7.
#
# All of them go from `d_model` to `d_hidden` channels and back, with biases where `mlp_bias` is set. The state dict has
# the entries of `norm1`, of `attention`, of `norm2`, and of `mlp.gate_proj`, `mlp.up_proj` and `mlp.down_proj`: those
# that the configuration asks for, and no others.
#
# Call `Attention(config, layer)` by its name: when this part is marked, a right one stands in for yours. `norm_of` and
# `MLP` are a proposal.


# %% exercise="Block" section="The mathematics, with shapes"
def norm_of(config: DecoderConfig) -> nn.Module:
    """The norm of this family, over d_model channels."""
    ### BEGIN SOLUTION
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, config.norm_eps, elementwise_affine=config.norm == "layer")
    ### END SOLUTION


class MLP(nn.Module):
    """The feed-forward part of this family: each position by itself."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.kind = config.mlp
        if self.kind in ("swiglu", "clamped"):
            self.gate_proj = nn.Linear(config.d_model, config.d_hidden, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.d_model, config.d_hidden, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.d_hidden, config.d_model, bias=config.mlp_bias)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """From d_model to d_hidden channels and back."""
        ### BEGIN SOLUTION
        hidden = self.up_proj(x)
        if self.kind == "gelu":
            hidden = F.gelu(hidden)
        elif self.kind == "gelu_tanh":
            hidden = F.gelu(hidden, approximate="tanh")
        elif self.kind == "swiglu":
            hidden = F.silu(self.gate_proj(x)) * hidden
        else:
            gate = self.gate_proj(x).clamp(max=7)
            hidden = gate * (1.702 * gate).sigmoid() * (hidden.clamp(-7, 7) + 1)
        return self.down_proj(hidden)
        ### END SOLUTION


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, in the order and with the norms of this family."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.residual = config.residual
        self.norm1 = norm_of(config)
        self.attention = Attention(config, layer)
        if self.residual != "shared":
            self.norm2 = norm_of(config)
        self.mlp = MLP(config)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], positions: Int[Tensor, "batch n"], mask: Bool[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n d_model"]:
        """What comes in, plus what the two parts make of it."""
        ### BEGIN SOLUTION
        normed = self.norm1(x)
        h = x + self.attention(normed, positions, mask)
        if self.residual == "sequential":
            return h + self.mlp(self.norm2(h))
        return h + self.mlp(normed if self.residual == "shared" else self.norm2(x))
        ### END SOLUTION


# %% check="Block" points=5
sizes = {"vocabulary": 20, "d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_head": 4, "d_hidden": 12}
x, positions, mask = torch.randn(2, 5, 8), torch.arange(5).expand(2, 5), torch.ones(2, 5, dtype=torch.bool)
for family, wanted in {"GPT-J": {"norm1", "attention", "mlp"}, "OLMo": {"attention", "mlp"}}.items():
    block = Block(DecoderConfig(**sizes, **FAMILIES[family]), 0)
    held = {name.split(".")[0] for name in block.state_dict()}
    assert held == wanted, f"{family}: the state dict should hold entries of {sorted(wanted)}, not of {sorted(held)}."
    assert block(x, positions, mask).shape == x.shape, f"{family}: the output should have the shape of x."
block = Block(DecoderConfig(**sizes, **FAMILIES["Pythia"]), 0)
state = block.state_dict()
silent = {name: torch.zeros_like(value) for name, value in state.items() if "o_proj" in name or "down" in name}
block.load_state_dict(state | silent)
assert torch.allclose(block(x, positions, mask), x, atol=1e-6), (
    "Where o_proj and down_proj are zero, both parts add nothing: the block should return x itself."
)
print("The visible checks of Block pass.")

# %% stand_in="Block"
import torch  # noqa: E402
from torch import nn  # noqa: E402


class Attention(nn.Module):
    """Enough of it for the tests of Block: windows, but no RoPE, no sinks, one key a query head."""

    def __init__(self, config, layer):
        super().__init__()
        self.width, heads = config.d_head, config.n_heads * config.d_head
        self.window = (*config.windows, *[None] * config.n_layers)[layer] or 10**6
        for letter in "qkv":
            self.add_module(f"{letter}_proj", torch.nn.Linear(config.d_model, heads, bias=config.qkv_bias))
        self.o_proj = torch.nn.Linear(heads, config.d_model, bias=config.o_bias)

    def forward(self, x, positions, mask):
        q, k, v = (torch.stack(self.get_submodule(f"{p}_proj")(x).split(self.width, -1), 1) for p in "qkv")
        far = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        allowed = torch.logical_or((far >= 0) & (far < self.window) & mask[:, None, None, :], far == 0)
        heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.o_proj(torch.cat(heads.unbind(1), -1))


# %% see="Block"
# The three shapes of a block, just created, twelve of them on top of each other: what does a block do to the stream?
try:
    import matplotlib.pyplot as plt

    sizes = {
        "vocabulary": 9,
        "d_model": 64,
        "n_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 4,
        "d_head": 16,
        "d_hidden": 256,
    }
    positions, mask = torch.arange(16)[None], torch.ones(1, 16, dtype=torch.bool)
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for residual, style in {"sequential": "o-", "parallel": "s--", "shared": "^:"}.items():
        torch.manual_seed(0)
        x, lengths = torch.randn(1, 16, 64), []
        with torch.no_grad():
            for _ in range(12):
                x = Block(DecoderConfig(**sizes, norm="layer", mlp="gelu", residual=residual), 0)(x, positions, mask)
                lengths.append(x.norm(dim=-1).mean().item())
        ax.plot(lengths, style, label=residual)
    ax.set(xlabel="block", ylabel="length of the stream", title="Parallel or in sequence: the stream hardly minds")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish Attention and Block first, then run this cell again.")

# %% [markdown]
# ## 4 · `Decoder` ●●○
#
# `Decoder(config)` takes `ids` of shape `(batch, n)` and, if there is padding, `mask` of shape `(batch, n)`, and
# returns logits of shape `(batch, n, vocabulary)`. Without a mask all tokens are text.
#
# | name in the state dict | what it is |
# |---|---|
# | `tokens.weight` | the table of tokens, `(vocabulary, d_model)` |
# | `positions.weight` | where `positions` is `"learned"`: a table of `n_context` rows, added to the tokens |
# | `tokens_norm.…` | where `tokens_norm` is set: a norm of this family's kind, before the first block |
# | `blocks.0.…`, `blocks.1.…`, … | the blocks, block `i` for layer `i` |
# | `norm.…` | a last norm, of this family's kind, after the last block |
# | `head.weight` | the read-out, `(vocabulary, d_model)`; not where `tied` is set: `tokens.weight` does its work then |
# | `head.bias` | where `head_bias` is set, `(vocabulary,)` |
#
# - The first token of each text stands at position 0, also where padding comes before it. Padding is given position 0.
# - The blocks get `(x, positions, mask)`, the mask as a tensor also where none was given.
# - The trap: a model whose padding counts gives the right logits to every text that has none.
#
# Call `Block(config, layer)` and `norm_of(config)` by their names: when this part is marked, right ones stand in for
# yours.


# %% exercise="Decoder" section="How do we know?"
class Decoder(nn.Module):
    """Token ids to the logits of the token that follows, at every position, in any of the families."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.positions = nn.Embedding(config.n_context, config.d_model) if config.positions == "learned" else None
        self.tokens_norm = norm_of(config) if config.tokens_norm else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = norm_of(config)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocabulary, bias=config.head_bias)
        ### END SOLUTION

    def forward(
        self, ids: Int[Tensor, "batch n"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch n vocabulary"]:
        """At each position the logits of the token that comes after it."""
        ### BEGIN SOLUTION
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.tokens_norm is not None:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return F.linear(x, self.tokens.weight) if self.head is None else self.head(x)
        ### END SOLUTION


# %% check="Decoder" points=4
sizes = {"vocabulary": 20, "d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_head": 4, "d_hidden": 12}
outside = {
    "GPT-2": {"tokens", "positions", "blocks", "norm"},
    "BLOOM": {"tokens", "tokens_norm", "blocks", "norm"},
    "GPT-J": {"tokens", "blocks", "norm", "head"},
}
ids = torch.randint(20, (3, 7))
for family, wanted in outside.items():
    model = Decoder(DecoderConfig(**sizes, **FAMILIES[family]))
    held = {name.split(".")[0] for name in model.state_dict()}
    assert held == wanted, f"{family}: the state dict should hold entries of {sorted(wanted)}, not of {sorted(held)}."
    assert model(ids).shape == (3, 7, 20), f"{family}: logits should be (3, 7, 20), not {tuple(model(ids).shape)}."
model = Decoder(DecoderConfig(**sizes, **FAMILIES["GPT-2"]))
padded = torch.cat([torch.zeros(3, 2, dtype=torch.long), ids], 1)
mask = torch.arange(9).expand(3, 9) >= 2
assert torch.allclose(model(padded, mask)[:, 2:], model(ids), atol=1e-5), (
    "With two tokens of padding on the left, the logits of the text should be what they are without."
)
model = Decoder(DecoderConfig(2, 2, 0, 2, 2, 4, 12, **FAMILIES["GPT-2"], n_context=2))
state = {"tokens.weight": torch.tensor([[3.0, 1], [1, 0]]), "positions.weight": torch.tensor([[0, 2.5], [0, 0]])}
model.load_state_dict({**state, "norm.weight": torch.ones(2), "norm.bias": torch.zeros(2)})
logits = model(torch.tensor([[0]])).flatten()
assert torch.allclose(logits, torch.tensor([-2.0, -1]), atol=1e-2), (
    "GPT-2 without a block: token 0 is (3, 1), position 0 adds (0, 2.5), and the last norm makes about (−1, 1) of the "
    f"sum. With the rows (3, 1) and (1, 0) these are logits of −2 and −1, not {[round(z, 3) for z in logits.tolist()]}."
)
print("The visible checks of Decoder pass.")

# %% stand_in="Decoder"
import math  # noqa: E402, F811

import torch  # noqa: E402
from torch import nn  # noqa: E402


def norm_of(config):  # noqa: F811
    kinds = {"rms": torch.nn.RMSNorm, "layer": torch.nn.LayerNorm}
    if config.norm in kinds:
        return kinds[config.norm](config.d_model, eps=config.norm_eps)
    return torch.nn.LayerNorm(config.d_model, eps=config.norm_eps, elementwise_affine=False)


class Block(nn.Module):
    """A block of every family but those with QK norm, all in one."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.window = config, (*config.windows, *[None] * config.n_layers)[layer] or 10**6
        heads, linear = config.n_heads * config.d_head, torch.nn.Linear
        kv = config.n_kv_heads * config.d_head
        rows = {"q": heads, "k": kv, "v": kv}
        attention = {f"{p}_proj": linear(config.d_model, rows[p], config.qkv_bias) for p in rows}
        self.attention = nn.ModuleDict(attention | {"o_proj": linear(heads, config.d_model, config.o_bias)})
        if config.sinks:
            self.attention.register_parameter("sinks", nn.Parameter(torch.zeros(config.n_heads)))
        wide = ["up_proj"] if "gelu" in config.mlp else ["up_proj", "gate_proj"]
        mlp = {name: linear(config.d_model, config.d_hidden, config.mlp_bias) for name in wide}
        self.mlp = nn.ModuleDict(mlp | {"down_proj": linear(config.d_hidden, config.d_model, config.mlp_bias)})
        self.norm1 = norm_of(config)
        if config.residual != "shared":
            self.norm2 = norm_of(config)

    def rotate(self, x, positions):
        speed, factor = self.config.frequencies()
        wheel = torch.polar(torch.full((), factor), positions[:, None, :, None] * speed)
        pairs = x[..., : 2 * len(speed)]
        order = (-1, 2) if self.config.interleaved else (2, -1)
        pairs = pairs.unflatten(-1, order)
        pairs = pairs if self.config.interleaved else pairs.mT
        spun = torch.view_as_real(torch.view_as_complex(pairs.float().contiguous()) * wheel).to(x)
        spun = (spun if self.config.interleaved else spun.mT).flatten(-2)
        return torch.cat([spun, x[..., 2 * len(speed) :]], -1)

    def attend(self, x, positions, mask):
        c, parts = self.config, self.attention
        limit = math.inf if c.clip_qkv is None else c.clip_qkv
        q, k, v = (parts[f"{p}_proj"](x).clamp(-limit, limit) for p in "qkv")
        q, k, v = (torch.stack(part.split(c.d_head, -1), 1) for part in (q, k, v))
        if c.positions == "rope":
            q, k = self.rotate(q, positions), self.rotate(k, positions)
        far = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        hidden = (far < 0) | (far >= self.window) | ~mask[:, None, None]
        bias = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden & (far != 0), -math.inf)
        if c.positions == "alibi":
            bias = bias - (c.slopes()[:, None, None] * far).to(x)
        attend = torch.nn.functional.scaled_dot_product_attention
        if c.sinks:  # as one more key that is orthogonal to all, with a score of its own and a value of zero
            sinks = parts.sinks[:, None, None].expand(len(x), -1, x.shape[1], 1)
            bias = torch.cat([bias.expand(-1, c.n_heads, -1, -1), sinks], -1)
            k, v = (torch.cat([part, torch.zeros_like(part[:, :, :1])], 2) for part in (k, v))
        heads = attend(q, k, v, attn_mask=bias, enable_gqa=True)
        return parts["o_proj"](torch.cat(heads.unbind(1), -1))

    def think(self, x):
        kind, up = self.config.mlp, self.mlp["up_proj"](x)
        if "gelu" in kind:
            up = torch.nn.functional.gelu(up, approximate="tanh" if kind == "gelu_tanh" else "none")
        else:
            gate = self.mlp["gate_proj"](x)
            alpha, limit, one = (1.702, 7.0, 1) if kind == "clamped" else (1, math.inf, 0)
            gate = gate.clamp(max=limit)
            up = gate * torch.sigmoid(alpha * gate) * (up.clamp(-limit, limit) + one)
        return self.mlp["down_proj"](up)

    def forward(self, x, positions, mask):
        kind, first = self.config.residual, self.norm1(x)
        looked = self.attend(first, positions, mask)
        second = first if kind == "shared" else self.norm2(x if kind == "parallel" else x + looked)
        return x + looked + self.think(second)


# %% see="Decoder"
# Your decoder against transformers, where it is installed: every family, with random weights, in the layout of its own
# checkpoints. The names are translated here; the numbers are yours.
try:
    import transformers

    transformers.logging.set_verbosity_error()

    def renamed(theirs: Mapping[str, Tensor], table: list[list[str]], layout: str, n_heads: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, value in theirs.items():
            for old, new in table:
                name = name.replace(old, new)
            place, _, part = name.rpartition(".")
            if place.endswith("fused"):
                for letter, piece in zip("qkv", split_qkv(value, n_heads, layout), strict=True):
                    found[f"{place.removesuffix('fused')}{letter}_proj.{part}"] = piece
            else:
                turned_round = layout == "gpt2" and place.endswith("_proj") and value.dim() == 2
                found[name] = value.T if turned_round else value
        return found

    ours = (
        "transformer.h.=blocks. gpt_neox.layers.=blocks. transformer.= gpt_neox.= c_attn=fused query_key_value=fused "
    )
    ours += "self_attention.=attention. attn.=attention. attention.dense=attention.o_proj "
    ours += "attention.c_proj=attention.o_proj mlp.c_proj=mlp.down_proj c_fc=up_proj dense_h_to_4h=up_proj "
    ours += "dense_4h_to_h=down_proj ln_1=norm1 ln_2=norm2 ln_f=norm final_layer_norm=norm input_layernorm=norm1 "
    ours += "post_attention_layernorm=norm2 word_embeddings_layernorm=tokens_norm word_embeddings=tokens "
    ours += "embed_in=tokens wte=tokens wpe=positions lm_head=head"
    table = [pair.split("=") for pair in ours.split()]
    same = {"vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    same |= {"bos_token_id": 0, "eos_token_id": 0}
    turning = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    their_configs = {
        "GPT-2": transformers.GPT2Config(**same, n_positions=24),
        "Pythia": transformers.GPTNeoXConfig(**same, intermediate_size=192, rope_parameters=turning),
        "BLOOM": transformers.BloomConfig(**same),
    }
    for family, their_config in their_configs.items():
        torch.manual_seed(0)
        theirs = transformers.AutoModelForCausalLM.from_config(their_config).eval()
        for parameter in theirs.parameters():  # gains and biases too: at 1 and 0 they would hide mistakes
            nn.init.normal_(parameter, std=0.4)
        extra = {"d_rotary": 4} if family == "Pythia" else {"n_context": 24} if family == "GPT-2" else {}
        config = DecoderConfig(60, 48, 2, 3, 3, 16, 192, **FAMILIES[family] | extra)
        mine = Decoder(config)
        state = renamed(theirs.state_dict(), table, "gpt2" if family == "GPT-2" else "per_head", 3)
        mine.load_state_dict({name: value for name, value in state.items() if not (config.tied and "head." in name)})
        ids = torch.randint(60, (2, 20))
        with torch.no_grad():
            expected, found = theirs(ids).logits, mine(ids)
        print(
            f"{family:>9}: logits of size {expected.std():.1f}; yours differ by {(found - expected).abs().max():.1g}."
        )
except NotImplementedError:
    print("Finish split_qkv, Attention, Block and Decoder first, then run this cell again.")
except ImportError:
    print("This cell compares with transformers, which is not installed here; nothing else needs it.")
except RuntimeError as error:
    print(f"The weights do not fit into your decoder yet: {error}")

# %% [markdown]
# ## 5 · `detective` ●●○
#
# You are sent a file of weights without a configuration. Its header tells the names and shapes of the tensors, and
# nothing else. How much can be known?
#
# `detective(shapes)` takes a dict from names to shapes and returns a dict with exactly these entries. **What names and
# shapes cannot tell is None.**
#
# | entry | what it is |
# |---|---|
# | `family` | `"gpt2"`, `"gptj"`, `"gpt_neox"`, `"bloom"`, `"llama"`, `"qwen2"`, `"qwen3"`, `"olmo"` or `"gpt_oss"` |
# | `n_layers`, `d_model` | integers |
# | `n_context` | how many tokens it can read at most, where that is stored |
# | `n_heads`, `d_head` | query heads, and channels of a head |
# | `group` | query heads that share a key head, an integer; 1 where each has its own |
# | `kv_bytes` | bytes that one token takes in the KV cache of all layers, 16 bits a number, until a window drops it |
#
# How the families' files look. Every block has the same entries, and there may be others, which do not matter here.
#
# | family | table of tokens | in block 0 |
# |---|---|---|
# | `gpt2` | `transformer.wte.weight` | `transformer.h.0.attn.c_attn.weight`, `(d_model, 3 · d_model)` |
# | `gptj` | `transformer.wte.weight` | `transformer.h.0.attn.q_proj.weight` |
# | `gpt_neox` | `gpt_neox.embed_in.weight` | `gpt_neox.layers.0.attention.query_key_value.weight` |
# | `bloom` | `transformer.word_embeddings.weight` | `transformer.h.0.self_attention.query_key_value.weight` |
# | the others | `model.embed_tokens.weight` | `model.layers.0.self_attn.q_proj.weight`, `k_proj`, `v_proj` |
#
# - `gpt2` also has `transformer.wpe.weight`, a row for each position.
# - `llama` has `model.layers.0.input_layernorm.weight`. Mistral's and OpenLLaMA's files look the same.
# - `qwen2` is as `llama`, and has `self_attn.q_proj.bias`, but no `self_attn.o_proj.bias`.
# - `qwen3` is as `llama`, and has `self_attn.q_norm.weight`: a number for each channel of a head.
# - `olmo` is as `llama`, but its norms have no parameters.
# - `gpt_oss` is as `llama`, has biases everywhere, and `self_attn.sinks`: a number for each query head.
#
# - Some files leave out the first word, `transformer`, `gpt_neox` or `model`: `h.0.attn.c_attn.weight`, `wte.weight`.
# - The first four families never share keys.
# - Layers are counted, not read off a single name: a file may list them in any order.
# - A file of none of these families has no entry of a block in the table: all eight answers are None.
# - The trap: heads are cut out of a matrix when the model runs. What does the matrix know of it?


# %% exercise="detective" section="From the file I can see how many heads it has"
def detective(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str | int | None]:
    """What a checkpoint is, from the names and shapes of its tensors alone; None for what they cannot tell."""

    ### BEGIN SOLUTION
    def shape_of(*ends: str) -> tuple[int, ...] | None:
        return next((shape for name, shape in shapes.items() if f".{name}".endswith(ends)), None)

    answer = dict.fromkeys("family n_layers d_model n_context n_heads d_head group kv_bytes".split())  # noqa: SIM905
    marks = {
        ".attn.c_attn.weight": "gpt2",
        ".attn.q_proj.weight": "gptj",
        ".attention.query_key_value.weight": "gpt_neox",
        ".self_attention.query_key_value.weight": "bloom",
        ".self_attn.sinks": "gpt_oss",
        ".self_attn.q_norm.weight": "qwen3",
        ".self_attn.q_proj.bias": "qwen2",
        ".self_attn.q_proj.weight": "llama" if shape_of(".input_layernorm.weight") else "olmo",
    }
    family = next((family for mark, family in marks.items() if shape_of(mark)), None)
    if family is None:
        return answer
    tables = "wte embed_in word_embeddings embed_tokens".split()  # noqa: SIM905
    d_model = shape_of(*(f".{table}.weight" for table in tables))[1]
    q_rows, kv_rows = ((shape_of(f".self_attn.{letter}_proj.weight") or (d_model,))[0] for letter in "qk")
    n_layers = len(set(re.findall(r"\b(?:h|layers)\.(\d+)\.", " ".join(shapes))))
    answer |= {"family": family, "n_layers": n_layers, "d_model": d_model, "group": q_rows // kv_rows}
    answer["kv_bytes"] = 2 * 2 * n_layers * kv_rows
    if family == "gpt2":
        answer["n_context"] = shape_of(".wpe.weight")[0]
    if family == "gpt_oss":
        answer["n_heads"] = shape_of(".self_attn.sinks")[0]
        answer["d_head"] = q_rows // answer["n_heads"]
    if family == "qwen3":
        answer["d_head"] = shape_of(".self_attn.q_norm.weight")[0]
        answer["n_heads"] = q_rows // answer["d_head"]
    return answer
    ### END SOLUTION


# %% check="detective" points=4
case = {f"transformer.h.{i}.attn.c_attn.weight": (768, 2304) for i in range(12)}
case |= {"transformer.wte.weight": (50257, 768), "transformer.wpe.weight": (1024, 768)}
found = detective(case)
wanted = {"family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"}
assert isinstance(found, dict), f"detective should return a dict, not a {type(found).__name__}."
assert set(found) == wanted, f"The dict should hold {sorted(wanted)}, and it holds {sorted(found)}."
assert found["family"] == "gpt2", f"This is a gpt2, not {found['family']!r}."
assert found["n_context"] == 1024, (
    f"The table of positions has 1024 rows, so it cannot read more; not {found['n_context']}."
)
assert detective({"encoder.weight": (3, 3)}) == dict.fromkeys(wanted), "Of an unknown model all entries should be None."
print("The visible checks of detective pass.")

# %% see="detective"
# Cases from the archive. What is it, what does a token cost, and what does the file keep to itself?
try:

    def llama_like(n: int, d: int, q: int, kv: int, *more: tuple[str, int]) -> dict[str, tuple[int, ...]]:
        case: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32_000, d)}
        for i in range(n):
            block = f"model.layers.{i}."
            case |= {f"{block}self_attn.{p}_proj.weight": (rows, d) for p, rows in (("q", q), ("k", kv), ("v", kv))}
            case |= {f"{block}input_layernorm.weight": (d,)} | {f"{block}{name}": (size,) for name, size in more}
        return case

    cases = {
        "A": llama_like(32, 4096, 4096, 4096),
        "B": llama_like(32, 4096, 4096, 1024),
        "C": llama_like(24, 2880, 4096, 512, ("self_attn.sinks", 64)),
        "D": llama_like(36, 4096, 4096, 1024, ("self_attn.q_norm.weight", 128)),
    }
    for name, case in cases.items():
        found = detective(case)
        unknown = ", ".join(key for key, value in found.items() if value is None)
        print(
            f"Case {name}: {found['family']}, {found['kv_bytes'] / 1024:.0f} KiB a token. It does not tell: {unknown}."
        )
except NotImplementedError:
    print("Finish detective first, then run this cell again.")

# %% [markdown]
# ## 6 · `Mended` ●●○, a bug clinic
#
# A colleague has rewritten GPT-NeoX, the model behind Pythia, to understand it. The names are those of transformers, so
# weights go in as they are. It trains, it writes, the loss is a little high. Nobody would look twice.
#
# It has one fault. Here is the patient.


# %% see="detective"
class Layer(nn.Module):
    """A layer of GPT-NeoX: attention and feed-forward side by side, each with a norm of its own."""

    def __init__(self, d_model: int, n_heads: int, rotary: float) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.d_rotary = int(self.d_head * rotary)
        self.input_layernorm = nn.LayerNorm(d_model)
        self.post_attention_layernorm = nn.LayerNorm(d_model)
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(d_model, 3 * d_model), "dense": nn.Linear(d_model, d_model)}
        )
        self.mlp = nn.ModuleDict(
            {"dense_h_to_4h": nn.Linear(d_model, 4 * d_model), "dense_4h_to_h": nn.Linear(4 * d_model, d_model)}
        )

    def turn(self, x: Float[Tensor, "batch n_heads n d_head"]) -> Float[Tensor, "batch n_heads n d_head"]:
        frequency = 10_000 ** (-torch.arange(0, self.d_rotary, 2) / self.d_head)
        angle = torch.arange(x.shape[2])[:, None] * frequency
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        a, b, rest = x.split([self.d_rotary // 2, self.d_rotary // 2, self.d_head - self.d_rotary], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        fused = self.attention["query_key_value"](self.input_layernorm(x))
        q, k, v = fused.unflatten(-1, (self.n_heads, 3, self.d_head)).permute(3, 0, 2, 1, 4)
        heads = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        looked = self.attention["dense"](heads.transpose(1, 2).flatten(-2))
        hidden = F.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x)))
        return x + looked + self.mlp["dense_4h_to_h"](hidden)


class Patient(nn.Module):
    """GPT-NeoX with transformers' names; `rotary` is the share of a head's channels that RoPE turns."""

    def __init__(self, vocabulary: int, d_model: int, n_layers: int, n_heads: int, rotary: float) -> None:
        super().__init__()
        self.gpt_neox = nn.Module()
        self.gpt_neox.embed_in = nn.Embedding(vocabulary, d_model)
        self.gpt_neox.layers = nn.ModuleList(Layer(d_model, n_heads, rotary) for _ in range(n_layers))
        self.gpt_neox.final_layer_norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
        x = self.gpt_neox.embed_in(ids)
        for layer in self.gpt_neox.layers:
            x = layer(x)
        return self.lm_head(self.gpt_neox.final_layer_norm(x))


# %% [markdown]
# Do not read it yet. Measure first. The cell below runs the patient beside the GPT-NeoX of transformers, with the same
# random weights, notes what every sub-layer gives, and names the first where they part. What you change between two
# examinations tells you more than the code: the share of channels that turn, the length of the text, the layer.


# %% see="detective"
def examine(rotary: float, n: int, d_head: int = 16) -> str:
    """Where the patient and transformers' GPT-NeoX part, with the same random weights."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from ichimon.diff import diff

    torch.manual_seed(0)
    turning = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": rotary}
    sizes = {"vocab_size": 30, "hidden_size": 2 * d_head, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTNeoXConfig(
        **sizes, intermediate_size=8 * d_head, rope_parameters=turning, bos_token_id=0, eos_token_id=0
    )
    healthy = GPTNeoXForCausalLM(config).eval()
    for parameter in healthy.parameters():
        nn.init.normal_(parameter, std=0.4)
    patient = Patient(30, 2 * d_head, 2, 2, rotary)
    patient.load_state_dict(healthy.state_dict())
    found = diff(patient, healthy, torch.randint(30, (2, n)))
    return "They agree everywhere." if found is None else str(found)


try:
    for rotary, n in ((1.0, 12), (0.5, 12), (0.25, 12), (0.25, 1)):
        print(f"{rotary:.0%} of the channels turn, {n} tokens: {examine(rotary, n)}")
except ImportError as error:
    print(f"The examination needs transformers and the course's package ichimon: {error}.")

# %% [markdown]
# Now you know where, and when. Read those lines, and mend them.
#
# `Mended(vocabulary, d_model, n_layers, n_heads, rotary)` is the patient in health: `ids` of shape `(batch, n)` to
# logits of shape `(batch, n, vocabulary)`, as transformers' `GPTNeoXForCausalLM` gives them with the same weights, its
# RoPE with θ = 10,000 and on the share `rotary` of each head's channels, the exact GELU, eps 1e-5, no dropout. The
# state dict keeps the patient's names and shapes.
#
# - `d_model / n_heads · rotary` is an even number; you need not check it.
# - Copy what you need from the patient into this cell: the cells above are not there when your work is marked. Only
#   `Mended` is marked.


# %% exercise="Mended" section="What does one wrong ingredient change?"
class Mended(nn.Module):
    """GPT-NeoX in health, with transformers' names."""

    def __init__(self, vocabulary: int, d_model: int, n_layers: int, n_heads: int, rotary: float) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads, self.rotary = n_heads, rotary
        self.gpt_neox = nn.ModuleDict({"embed_in": nn.Embedding(vocabulary, d_model), "layers": nn.ModuleList()})
        for _ in range(n_layers):
            attention = {"query_key_value": nn.Linear(d_model, 3 * d_model), "dense": nn.Linear(d_model, d_model)}
            hidden = {
                "dense_h_to_4h": nn.Linear(d_model, 4 * d_model),
                "dense_4h_to_h": nn.Linear(4 * d_model, d_model),
            }
            layer = {"attention": nn.ModuleDict(attention), "mlp": nn.ModuleDict(hidden)}
            layer |= {name: nn.LayerNorm(d_model) for name in ("input_layernorm", "post_attention_layernorm")}
            self.gpt_neox["layers"].append(nn.ModuleDict(layer))
        self.gpt_neox["final_layer_norm"] = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)
        ### END SOLUTION

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
        """At each position the logits of the token that comes after it."""
        ### BEGIN SOLUTION
        x = self.gpt_neox["embed_in"](ids)
        for layer in self.gpt_neox["layers"]:
            fused = layer["attention"]["query_key_value"](layer["input_layernorm"](x))
            q, k, v = fused.unflatten(-1, (self.n_heads, 3, -1)).permute(3, 0, 2, 1, 4)
            heads = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
            hidden = F.gelu(layer["mlp"]["dense_h_to_4h"](layer["post_attention_layernorm"](x)))
            looked = layer["attention"]["dense"](heads.transpose(1, 2).flatten(-2))
            x = x + looked + layer["mlp"]["dense_4h_to_h"](hidden)
        return self.lm_head(self.gpt_neox["final_layer_norm"](x))
        ### END SOLUTION

    def turned(self, x: Float[Tensor, "batch n_heads n d_head"]) -> Float[Tensor, "batch n_heads n d_head"]:
        """RoPE; a proposal: q or k, the first channels of each head turned by their position."""
        ### BEGIN SOLUTION
        d = int(x.shape[-1] * self.rotary)
        angle = torch.arange(x.shape[2])[:, None] * 10_000.0 ** (-torch.arange(0, d, 2) / d)
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        a, b, rest = x.tensor_split([d // 2, d], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
        ### END SOLUTION


# %% check="Mended" points=3
model = Mended(30, 16, 2, 2, 0.5)
block = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
block += ["input_layernorm", "post_attention_layernorm"]
layers = [f"gpt_neox.layers.{i}.{name}" for i in range(2) for name in block] + ["gpt_neox.final_layer_norm"]
names = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
names |= {"gpt_neox.embed_in.weight", "lm_head.weight"}
assert set(model.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(model.state_dict())}."
)
ids = torch.randint(30, (2, 9))
logits = model(ids)
assert logits.shape == (2, 9, 30), f"The logits should have the shape (2, 9, 30), not {tuple(logits.shape)}."
other = torch.cat([ids[:, :5], (ids[:, 5:] + 1) % 30], 1)
assert torch.allclose(model(other)[:, :5], logits[:, :5], atol=1e-5), (
    "Token 5 changed, and one before it noticed: the model should not look ahead."
)
print("The visible checks of Mended pass. They would pass for the patient, too.")

# %% [markdown]
# ## One class, seven families
#
# The last thing to see is what you have: how many numbers each of the published models holds, counted with your own
# decoder, without a single byte for their weights. Transformers counts the same, to the last one. gpt-oss stands here
# as you built it, with one dense layer where it has 32 experts; chapter 16 gives it the rest.

# %% see="Decoder"
try:
    published = {
        "GPT-2": (50_257, 768, 12, 12, 12, 64, 3072),
        "GPT-J": (50_400, 4096, 28, 16, 16, 256, 16_384),
        "Pythia": (50_432, 4096, 32, 32, 32, 128, 16_384),
        "BLOOM": (250_880, 14_336, 70, 112, 112, 128, 57_344),
        "OpenLLaMA": (32_000, 4096, 32, 32, 32, 128, 11_008),
        "OLMo": (50_304, 4096, 32, 32, 32, 128, 11_008),
        "gpt-oss": (201_088, 2880, 24, 64, 8, 64, 2880),
    }
    for family, sizes in published.items():
        extra = {"n_context": 1024} if family == "GPT-2" else {}
        with torch.device("meta"):
            model = Decoder(DecoderConfig(*sizes, **FAMILIES[family] | extra))
        print(f"{family:>9}: {sum(parameter.numel() for parameter in model.parameters()):>15,} parameters")
except NotImplementedError:
    print("Finish Attention, Block and Decoder first, then run this cell again.")

# %% [markdown]
# Seven names, and one list of switches: where the position comes from, where the norms stand, what the feed-forward
# part multiplies, how the keys are shared. Nothing in it is a matter of "GPT or not". What the files cannot show at
# all is how they were made: the text they learnt from, in which order, and what one is allowed to do with them. The
# page of the book says it, family by family.
#
# ## In your own words (2 points)
#
# A colleague writes: "We take gpt-oss. It is open source, so we can train it again from the beginning on the same text
# with our own added. And it is a GPT, so its parts are those of GPT-2." Write four to six sentences: what was published
# with these weights and what was not, what follows for the plan, and three things in which its architecture differs
# from GPT-2's. A person reads this, and no test.

# %% [markdown] question="explain" points=2
# Two points for all three; one for two of them.
#
# - The weights are published, with a licence that allows commercial use, and code to run them. The text that they were
#   trained on is not, nor is the program that trained them: open weights, not open source in the full sense.
# - So nobody outside can train it again from the beginning on the same text. What can be done is to train the published
#   weights further on text of one's own.
# - Of these, any three: RoPE stretched by YaRN in the place of a learned table; RMSNorm for LayerNorm; a clamped gate
#   for GELU; eight query heads that share a key head; windows in every other layer; sinks; experts; a read-out that is
#   not tied.

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they draw all weights anew, gains, biases and sinks too,
# put your parts into whole models of every family, with and without padding, and name the first sub-layer that
# differs. They look at gradients, at other dtypes, and at the laws that hold whatever the numbers are. Each exercise
# is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 12-gpt-line.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
