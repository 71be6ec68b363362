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
#     assignment: 08-three-shapes
# ---

# %% [markdown]
# # 08 · Three shapes of Transformer
#
# **One question: encoder, decoder, or both?**
#
# A GPT only looks back. BERT looks both ways, and cannot write. The first Transformer was neither: it had an *encoder*
# that reads and a *decoder* that writes, and between them an attention that this course has not built yet.
#
# You will build that attention, the two layers that T5 and BERT are made of, T5's way of saying how far away a word
# is, and the two puzzles on which BERT and T5 were trained. At the end your layers take the weights of a T5 and of a
# BERT and give the same numbers. The page of the book that goes with this notebook is `book/08-three-shapes`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `CrossAttention` | ●●○ | 25 | 5 |
# | `EncoderLayer` | ●●○ | 20 | 4 |
# | `DecoderLayer` | ●●○ | 15 | 4 |
# | `relative_position_bucket` | ●●● | 20 | 4 |
# | `mask_tokens` | ●●○ | 15 | 3 |
# | `corrupt_spans` | ●●○ | 15 | 4 |
#
# ## Conventions
#
# - **A mask is boolean, and `True` means "may attend".** A query that may attend to nothing takes zeros home from its
#   heads. Never NaN.
# - **Memory** is what the encoder hands to the decoder: one vector for each token of the source,
#   `(batch, n_memory, d_model)`.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
#
# ## Two families
#
# T5 and BERT are built from the same parts and differ in five choices. Chapters 04 and 05 are about those; here they
# are given, as `STYLES["t5"]` and `STYLES["bert"]`. So is the feed-forward layer.
#
# | field of a `Style` | `"t5"` | `"bert"` |
# |---|---|---|
# | `norm(d_model)` makes a norm | RMSNorm, eps 1e-6 | LayerNorm, eps 1e-12 |
# | `pre_norm` | `True`: before each sub-layer | `False`: after each sum |
# | `bias`: do linear maps have one? | `False` | `True` |
# | `scale`: what multiplies q·k | `1.0` | `None`, which stands for $1/\sqrt{d_\text{head}}$ |
# | `activation()` of the feed-forward | ReLU | GELU, with erf |

# %% role="set-up"
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Style:
    """In what T5's and BERT's layers differ."""

    norm: Callable[[int], nn.Module]
    pre_norm: bool
    bias: bool
    scale: float | None
    activation: Callable[[], nn.Module]


STYLES = {
    "t5": Style(partial(nn.RMSNorm, eps=1e-6), pre_norm=True, bias=False, scale=1.0, activation=nn.ReLU),
    "bert": Style(partial(nn.LayerNorm, eps=1e-12), pre_norm=False, bias=True, scale=None, activation=nn.GELU),
}


class FeedForward(nn.Module):
    """Up, activation, down: what chapter 04 calls an MLP."""

    def __init__(self, d_model: int, d_hidden: int, style: Style) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden, bias=style.bias)
        self.activation = style.activation()
        self.down = nn.Linear(d_hidden, d_model, bias=style.bias)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        return self.down(self.activation(self.up(x)))


# %% [markdown]
# ## 1 · `CrossAttention` ●●○
#
# Two texts meet here: one asks and the other answers. In translation, the word that is about to be written asks the
# source sentence what it should say.
#
# `CrossAttention(d_model, n_heads, bias=False, scale=None)` is an `nn.Module`. Called as
# `layer(x, memory, mask=None, position_bias=None)` it takes **queries from `x`**, the decoder's vectors, and **keys and
# values from `memory`**, the encoder's output. Then it is the attention of chapter 02:
#
# $$\mathrm{softmax}(\text{scale} \cdot QK^\top + \text{position bias})\, V$$
#
# in each head, and `o_proj` on the heads side by side. Head 0 has the first `d_head = d_model / n_heads` channels.
#
# | argument | shape | |
# |---|---|---|
# | `x` | `(batch, n, d_model)` | |
# | `memory` | `(batch, n_memory, d_model)` | the lengths may differ |
# | `mask` | broadcasts to `(batch, n_heads, n, n_memory)` | `None`: all may be seen |
# | `position_bias` | broadcasts to `(batch, n_heads, n, n_memory)` | added to the scores; `None`: nothing is added |
# | result | `(batch, n, d_model)` | |
#
# - The mask of a padded source has the shape `(batch, 1, 1, n_memory)`: `True` where there is a token.
# - The state dict holds `q_proj.weight`, `k_proj.weight`, `v_proj.weight` and `o_proj.weight`, as `nn.Linear` stores
#   them, each `(d_model, d_model)`, and nothing else. With `bias=True` also `q_proj.bias` and so on for all four.
# - `scale` multiplies the products of queries and keys, and not the position bias. `None` stands for
#   $1/\sqrt{d_\text{head}}$. T5 uses `1.0`: it has no root to divide by.
# - A query that may attend to nothing gets zeros from its heads, so that without biases its output is zeros.
# - You may rely on `d_model` being divisible by `n_heads`. There is no dropout.
# - The trap: nothing here is causal. A sentence that is written from left to right may look at *all* of its source.
#
# `F.scaled_dot_product_attention`, which you built in chapter 02, may be used. `nn.MultiheadAttention`,
# `F.multi_head_attention_forward` and PyTorch's Transformer layers raise an error while your work is marked.


# %% exercise="CrossAttention" section="Cross-attention: one text asks another"
class CrossAttention(nn.Module):
    """Queries from x, keys and values from memory. With memory = x it is self-attention.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.
    """

    def __init__(self, d_model: int, n_heads: int, bias: bool = False, scale: float | None = None) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads = n_heads
        self.scale = (d_model // n_heads) ** -0.5 if scale is None else scale
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch n d_model"],
        memory: Float[Tensor, "batch n_memory d_model"],
        mask: Bool[Tensor, "... n n_memory"] | None = None,
        position_bias: Float[Tensor, "... n n_memory"] | None = None,
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position of x takes what it needs from those positions of memory that the mask allows it."""
        ### BEGIN SOLUTION
        heads = (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in heads)
        scores = q @ k.mT * self.scale
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)  # the softmax of a row of −inf is NaN
        return self.o_proj((weights @ v).transpose(1, 2).flatten(-2))
        ### END SOLUTION


# %% check="CrossAttention" points=5
layer = CrossAttention(8, 2)
names = {f"{letter}_proj.weight" for letter in "qkvo"}
assert set(layer.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(layer.state_dict())}."
)
x, memory = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
assert layer(x, memory).shape == (1, 3, 8), (
    f"3 queries and 5 places of memory should give (1, 3, 8), not {tuple(layer(x, memory).shape)}."
)
layer = CrossAttention(8, 1)
layer.load_state_dict({name: torch.eye(8) for name in names})  # four projections that change nothing
expected = F.scaled_dot_product_attention(x, memory, memory)
assert torch.allclose(layer(x, memory), expected, atol=1e-5), (
    "With one head and projections that change nothing, the layer should be attention of x to memory."
)
two_heads = CrossAttention(16, 2)
two_heads.load_state_dict({name: torch.eye(16) for name in names})
out = two_heads(torch.cat([x, x], -1), torch.cat([memory, memory], -1))  # both heads get the same
assert torch.allclose(out, torch.cat([expected, expected], -1), atol=1e-5), (
    "With two heads that both get x and memory, each should give what one head gave, and the two stand side by side."
)
only_the_second = torch.tensor([False, True, False, False, False])[None, None, None]
assert torch.allclose(layer(x, memory, only_the_second), memory[:, 1:2].expand(1, 3, 8), atol=1e-5), (
    "Where only the second place of memory may be seen, every output should be its value."
)
print("The visible checks of CrossAttention pass.")

# %% see="CrossAttention"
# Memory holds five words, x asks with three of them: queries find their own word. Try other words, or a mask.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    source, asked = ["the", "cat", "sat", "on", "mats"], ["mats", "cat", "the"]
    vectors = 4 * F.normalize(torch.randn(5, 16), dim=-1)
    layer = CrossAttention(16, 1)
    layer.load_state_dict({f"{letter}_proj.weight": torch.eye(16) for letter in "qkvo"})
    taken = layer(vectors[[source.index(word) for word in asked]][None], vectors[None])[0].detach()
    shares = torch.linalg.lstsq(vectors.T, taken.T).solution.T  # the weights that make this blend
    fig, ax = plt.subplots(figsize=(4.6, 2.8), facecolor="white")
    ax.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    ax.set_xticks(range(5), source)
    ax.set_yticks(range(3), asked)
    ax.set(xlabel="memory: answers", ylabel="x: asks", title="One text looks into another")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish CrossAttention first, then run this cell again.")

# %% [markdown]
# ## 2 · `EncoderLayer` ●●○
#
# The layer that reads. It has two sub-layers: self-attention, then feed-forward. Self-attention is your
# `CrossAttention` with `memory` and `x` being the same text.
#
# Each sub-layer has a residual connection around it and a norm of its own, and there are two places to put the norm:
#
# | | each sub-layer |
# |---|---|
# | with `pre_norm` | $x \leftarrow x + \mathrm{sublayer}(\mathrm{norm}(x))$ |
# | without | $x \leftarrow \mathrm{norm}(x + \mathrm{sublayer}(x))$ |
#
# `EncoderLayer(d_model, n_heads, d_hidden, style="t5")` takes its five choices from `STYLES[style]` and is called as
# `layer(x, mask=None, position_bias=None)`. Its attributes, which name what is in the state dict:
#
# | attribute | what it is |
# |---|---|
# | `self_attention` | a `CrossAttention` |
# | `self_attention_norm` | the norm of that sub-layer |
# | `feed_forward` | a `FeedForward` |
# | `feed_forward_norm` | the norm of that sub-layer |
#
# - `mask` and `position_bias` are for the attention. `mask=None` hides nothing: an encoder looks both ways.
# - The trap: with `pre_norm`, queries, keys and values all come from the *normed* vectors, while the residual carries
#   the bare ones.
#
# When this part is marked, PyTorch's attention stands in for your `CrossAttention`.


# %% exercise="EncoderLayer" section="The mathematics"
class EncoderLayer(nn.Module):
    """Self-attention in both directions, then feed-forward.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1; T5's and BERT's choices in STYLES.
    """

    def __init__(self, d_model: int, n_heads: int, d_hidden: int, style: str = "t5") -> None:
        super().__init__()
        chosen = STYLES[style]
        ### BEGIN SOLUTION
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch n d_model"],
        mask: Bool[Tensor, "... n n"] | None = None,
        position_bias: Float[Tensor, "... n n"] | None = None,
    ) -> Float[Tensor, "batch n d_model"]:
        ### BEGIN SOLUTION
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, mask, position_bias)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))
        ### END SOLUTION


# %% check="EncoderLayer" points=4
layer = EncoderLayer(8, 2, 16)
parts = {name.split(".")[0] for name in layer.state_dict()}
expected_parts = {"self_attention", "self_attention_norm", "feed_forward", "feed_forward_norm"}
assert parts == expected_parts, f"The layer should hold {sorted(expected_parts)}, and it holds {sorted(parts)}."
x = torch.randn(2, 5, 8)
assert layer(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(layer(x).shape)}."
)
changed = x.clone()
changed[:, 4] += 1
assert not torch.allclose(layer(changed)[:, 0], layer(x)[:, 0]), (
    "The last position changed, and the first output did not notice: an encoder looks both ways."
)
layer.load_state_dict({name: torch.zeros_like(value) for name, value in layer.state_dict().items()})
assert torch.equal(layer(x), x), (
    "In T5's style, sub-layers that give zeros should leave x as it was: the residual carries it past them."
)
layer = EncoderLayer(8, 2, 16, "bert")
assert torch.allclose(layer(x).mean(-1), torch.zeros(2, 5), atol=1e-5), (
    "In BERT's style the last thing that happens is a LayerNorm, so in a new layer every output should have mean 0."
)
print("The visible checks of EncoderLayer pass.")

# %% see="EncoderLayer"
# How large are the vectors after each of 12 layers? Pre-norm lets them grow, post-norm sets them back each time.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    fig, ax = plt.subplots(figsize=(5.6, 3), facecolor="white")
    for (style, color), line in zip({"t5": "#0072B2", "bert": "#D55E00"}.items(), ("-", "--"), strict=True):
        with torch.no_grad():
            x = torch.randn(4, 16, 64)
            sizes = [x.norm(dim=-1).mean().item()]
            for _ in range(12):
                x = EncoderLayer(64, 4, 256, style)(x)
                sizes.append(x.norm(dim=-1).mean().item())
        ax.plot(sizes, line, color=color, label=style)
    ax.set(xlabel="layers passed", ylabel="length of a vector", ylim=(0, None))
    ax.set_title("Pre-norm lets the stream grow, post-norm sets it back")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish CrossAttention and EncoderLayer first, then run this cell again.")

# %% [markdown]
# ## 3 · `DecoderLayer` ●●○
#
# The layer that writes with a source before its eyes. It has **three** sub-layers, in this order:
#
# 1. self-attention of `x` to itself, and it is **causal**: position `i` may attend to the positions 0 to `i`;
# 2. cross-attention of `x` to `memory`;
# 3. feed-forward.
#
# `DecoderLayer(d_model, n_heads, d_hidden, style="t5")` is called as
# `layer(x, memory, memory_mask=None, position_bias=None)`. Residuals and norms are as in the encoder, one norm for each
# sub-layer. Attributes: `self_attention` and `cross_attention`, each a `CrossAttention`, `feed_forward`, a
# `FeedForward`, and `self_attention_norm`, `cross_attention_norm`, `feed_forward_norm`.
#
# - The layer makes its causal mask by itself.
# - `memory_mask` broadcasts to `(batch, n_heads, n, n_memory)` and is for the cross-attention.
# - `position_bias` broadcasts to `(batch, n_heads, n, n)` and is for the self-attention. T5 has none between texts.
# - `memory` comes from the encoder ready for use: no norm of the decoder touches it.
# - The trap: three sub-layers with nearly the same names. Keep apart who asks, who answers, and who may see what.
#
# When this part is marked, PyTorch's attention stands in for your `CrossAttention`.


# %% exercise="DecoderLayer" section="The decoder's layer"
class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, feed-forward.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1 and figure 1.
    """

    def __init__(self, d_model: int, n_heads: int, d_hidden: int, style: str = "t5") -> None:
        super().__init__()
        chosen = STYLES[style]
        ### BEGIN SOLUTION
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch n d_model"],
        memory: Float[Tensor, "batch n_memory d_model"],
        memory_mask: Bool[Tensor, "... n n_memory"] | None = None,
        position_bias: Float[Tensor, "... n n"] | None = None,
    ) -> Float[Tensor, "batch n d_model"]:
        ### BEGIN SOLUTION
        n = x.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        return self.feed_forward_norm(x + self.feed_forward(x))
        ### END SOLUTION


# %% check="DecoderLayer" points=4
layer = DecoderLayer(8, 2, 16)
parts = {name.split(".")[0] for name in layer.state_dict()}
sublayers = ("self_attention", "cross_attention", "feed_forward")
expected_parts = {*sublayers, *(f"{name}_norm" for name in sublayers)}
assert parts == expected_parts, f"The layer should hold {sorted(expected_parts)}, and it holds {sorted(parts)}."
x, memory = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
out = layer(x, memory)
assert out.shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
changed = x.clone()
changed[:, 2] += 1
assert torch.allclose(layer(changed, memory)[:, :2], out[:, :2], atol=1e-6), (
    "Position 2 changed, and a position before it noticed: the self-attention should be causal."
)
changed = memory.clone()
changed[:, 5] += 1
assert not torch.allclose(layer(x, changed)[:, 0], out[:, 0]), (
    "The last place of memory changed, and the first output did not notice: every position may see all of memory."
)
print("The visible checks of DecoderLayer pass.")

# %% see="DecoderLayer"
# One token changes: who notices? Bright means that the output in that row moved. Two texts, two different pictures.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    layer, x, memory = DecoderLayer(32, 4, 64), torch.randn(1, 6, 32), torch.randn(1, 8, 32)
    with torch.no_grad():
        before = layer(x, memory)
        own, source = x.repeat(6, 1, 1), memory.repeat(8, 1, 1)
        own[torch.arange(6), torch.arange(6)] = torch.randn(6, 32)  # in copy j, token j is another one
        source[torch.arange(8), torch.arange(8)] = torch.randn(8, 32)
        noticed = [
            (layer(own, memory.expand(6, -1, -1)) - before).norm(dim=-1).T,
            (layer(x.expand(8, -1, -1), source) - before).norm(dim=-1).T,
        ]
    fig, axes = plt.subplots(1, 2, figsize=(7, 3), facecolor="white")
    for ax, moved, text in zip(axes, noticed, ("its own text", "the source"), strict=True):
        ax.imshow(moved / moved.max(), cmap="cividis", vmin=0, vmax=0.6)
        ax.set(title=f"a change in {text}", xlabel="token that changed", ylabel="position that notices")
    fig.suptitle("A decoder sees its own past, and all of its source")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish CrossAttention and DecoderLayer first, then run this cell again.")

# %% [markdown]
# ## 4 · `relative_position_bucket` ●●●
#
# T5 has no vectors for positions. Each head learns a number for "one to the left", another for "two to the right", and
# so on, and adds it to the scores: the position bias. Far away, one step more or less hardly matters, so that distances
# share numbers there: they fall into **buckets**, narrow when near and wide when far.
#
# `relative_position_bucket(distance, bidirectional, n_buckets, max_distance)` takes an integer tensor of any shape and
# returns one of the same shape, int64. A `distance` is *the key's position minus the query's*: negative means that the
# key stands in the past.
#
# - **`bidirectional=False`** (a decoder). With $s$ the number of steps back, 0 for the present and for the future,
#   the first half of the buckets is exact: $s < m$, where $m$ is half of `n_buckets`, rounded down, goes to bucket $s$.
#   From there on buckets grow with the logarithm and reach `max_distance` together with the last bucket:
#
#   $$m + \left\lfloor \frac{\ln(s / m)}{\ln(\text{max\_distance} / m)} \cdot (\text{n\_buckets} - m) \right\rfloor$$
#
#   All that would come out higher than the last bucket goes there.
# - **`bidirectional=True`** (an encoder). The past and the future get half of the buckets each, rounded down, and each
#   half is divided as above, with the absolute distance for $s$. The past has the first half, and 0 belongs to it; the
#   future has the second.
# - You may rely on `n_buckets` being at least 4 and `max_distance` larger than half of it.
# - Where the logarithm falls exactly on the border of two buckets, rounding may go either way; no test looks there.
# - The trap: in a decoder the future has no buckets, and in an encoder it has the second half, not the first.


# %% exercise="relative_position_bucket" section="How far away is that word?"
def relative_position_bucket(
    distance: Int[Tensor, "..."], bidirectional: bool, n_buckets: int = 32, max_distance: int = 128
) -> Int[Tensor, "..."]:
    """T5's bucket for each distance (key's position minus query's): exact when near, logarithmic when far.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 2.1, and its code.
    """
    ### BEGIN SOLUTION
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        offset = 0
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    growth = (steps.clamp(min=1) / exact).log() / math.log(max_distance / exact)  # where it is exact, it is not used
    far = exact + (growth * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))
    ### END SOLUTION


# %% check="relative_position_bucket" points=4
distance = torch.tensor([0, -1, -2, -7, 1, 5])
found = relative_position_bucket(distance, bidirectional=False, n_buckets=32, max_distance=128)
assert isinstance(found, torch.Tensor), f"The result should be a tensor, not {type(found).__name__}."
assert found.dtype == torch.int64, f"Buckets are int64, not {found.dtype}."
assert found.tolist()[:4] == [0, 1, 2, 7], f"0, 1, 2 and 7 steps back should be in those buckets, not {found[:4]}."
assert found.tolist()[4:] == [0, 0], "A decoder never sees the future: its distances should all be in bucket 0."
far = relative_position_bucket(torch.tensor([-127, -1000]), bidirectional=False, n_buckets=32, max_distance=128)
assert far.tolist() == [31, 31], f"What is far away should be in the last of 32 buckets, not in {far.tolist()}."
both = relative_position_bucket(torch.tensor([-3, 3]), bidirectional=True, n_buckets=32, max_distance=128)
assert both.tolist() == [3, 19], f"3 back and 3 ahead should be in buckets 3 and 19 of 32, not in {both.tolist()}."
print("The visible checks of relative_position_bucket pass.")

# %% see="relative_position_bucket"
# Every step is a bucket. Near the query each distance has its own; far away a bucket holds dozens.
try:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 1, figsize=(6, 4.6), sharex=True, facecolor="white")
    distance = torch.arange(-150, 151)
    for ax, bidirectional in zip(axes, (False, True), strict=True):
        ax.step(distance, relative_position_bucket(distance, bidirectional, 32, 128), where="mid", color="#0072B2")
        ax.set(title="encoder: both directions" if bidirectional else "decoder: the past only", ylabel="bucket")
    axes[1].set(xlabel="key's position minus query's (tokens)")
    fig.suptitle("Narrow buckets near the query, wide ones far away")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish relative_position_bucket first, then run this cell again.")

# %% [markdown]
# ## 5 · `mask_tokens` ●●○
#
# BERT cannot be trained to guess the next token: it can see it. So tokens are *hidden*, and it guesses those. Of the
# tokens that are chosen, 15 %, most become `[MASK]`; some become a random token and some stay as they are, so that the
# model can never be sure that what it sees is right.
#
# `mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15)` returns `(inputs, labels)`. All
# chance comes from outside, so that your result is exact:
#
# | argument | shape | |
# |---|---|---|
# | `ids` | `(batch, n)`, int64 | the tokens |
# | `random` | `(batch, n)`, floats in [0, 1) | a token is **chosen** where it is below `p` |
# | `random_kind` | `(batch, n)`, floats in [0, 1) | decides what becomes of a chosen token |
# | `random_ids` | `(batch, n)`, int64 | random tokens, one drawn for every place |
# | `special_ids` | a list of at least one id | such as `[CLS]`, `[SEP]` and padding: never chosen |
#
# - Of the chosen tokens, those whose `random_kind` is below 0.8 become `mask_id`. From 0.8 and below 0.9 they become
#   the token that `random_ids` has at their place. From 0.9 on they stay as they are.
# - `labels` holds the original token where one was **chosen**, also where it stays as it is, and −100 elsewhere:
#   `F.cross_entropy` leaves −100 out.
# - Both results are `(batch, n)` and int64.
# - The trap: 80 % of the *chosen* tokens, not of all.


# %% exercise="mask_tokens" section="How to teach each of them"
def mask_tokens(
    ids: Int[Tensor, "batch n"],
    random: Float[Tensor, "batch n"],
    random_kind: Float[Tensor, "batch n"],
    random_ids: Int[Tensor, "batch n"],
    mask_id: int,
    special_ids: Sequence[int],
    p: float = 0.15,
) -> tuple[Int[Tensor, "batch n"], Int[Tensor, "batch n"]]:
    """BERT's puzzle: what the model sees, and what it should say (−100: nothing).

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """
    ### BEGIN SOLUTION
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    labels = ids.masked_fill(~chosen, -100)
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    return inputs.masked_fill(chosen & (random_kind < 0.8), mask_id), labels
    ### END SOLUTION


# %% check="mask_tokens" points=3
ids = torch.tensor([[1, 11, 12, 13, 14, 2]])  # 1 and 2 are special
random = torch.tensor([[0.01, 0.01, 0.01, 0.01, 0.9, 0.9]])
random_kind = torch.tensor([[0.5, 0.5, 0.85, 0.95, 0.5, 0.5]])
inputs, labels = mask_tokens(ids, random, random_kind, torch.full((1, 6), 99), 3, [1, 2])
assert inputs.shape == labels.shape == ids.shape, "Inputs and labels should have the shape of the ids."
assert inputs[0, 1] == 3, "Token 11 is chosen (0.01) and its kind is 0.5: it should become the mask, 3."
assert inputs[0, 4] == 14, "Token 14 is not chosen (0.9), so it should stay."
assert inputs[0, 0] == 1, "Token 1 is special, so it should never be chosen."
assert labels[0, 1] == 11, "Token 11 was hidden, so its label should be 11."
assert labels[0, 4] == -100, "Token 14 was not chosen: there is nothing to guess, so its label should be −100."
print("The visible checks of mask_tokens pass.")

# %% see="mask_tokens"
# One sentence, masked five times. What did BERT's puzzle do to each word? Run the cell again for others.
try:
    sentence = ["[CLS]", "every", "word", "looks", "at", "the", "words", "around", "it", "[SEP]"]
    words = ["[MASK]", *dict.fromkeys(sentence), "banana", "bridge", "seven", "quickly", "blue"]
    ids = torch.tensor([[words.index(word) for word in sentence]] * 5)
    shape, special = ids.shape, [words.index("[CLS]"), words.index("[SEP]")]
    drawn = torch.randint(len(words) - 5, len(words), shape)
    inputs, labels = mask_tokens(ids, torch.rand(shape), torch.rand(shape), drawn, 0, special)
    for seen, asked in zip(inputs.tolist(), labels.tolist(), strict=True):
        shown = [words[i] if j == -100 else f"<{words[i]}: {words[j]}?>" for i, j in zip(seen, asked, strict=True)]
        print(" ".join(shown))
except NotImplementedError:
    print("Finish mask_tokens first, then run this cell again.")

# %% [markdown]
# ## 6 · `corrupt_spans` ●●○
#
# An encoder–decoder can answer with a text of its own. So T5 hides whole *spans*. Each is replaced by one token, a
# **sentinel**, and the decoder writes what was hidden, sentinel by sentinel. The paper's own example:
#
# | | |
# |---|---|
# | text | Thank you *for inviting* me to your party *last* week |
# | input | Thank you `<X>` me to your party `<Y>` week |
# | target | `<X>` for inviting `<Y>` last `<Z>` |
#
# `corrupt_spans(ids, spans, sentinels)` returns `(input, target)`, two lists of ints.
#
# | argument | |
# |---|---|
# | `ids` | a list of ints |
# | `spans` | a list of pairs `(start, end)`: the tokens `ids[start:end]` are hidden |
# | `sentinels` | a list of ints: the first hidden span takes the first, the next one the second, and so on |
#
# - Spans come in order, none is empty and none overlaps another. There may be none at all.
# - In the target each sentinel stands *before* the tokens that it hid, and one more sentinel, the next that is unused,
#   ends it: the model's sign that it is done. So it does even if nothing was hidden.
# - Spans that touch, such as `(2, 4)` and `(4, 5)`, are one span and take one sentinel, as in T5.
# - If there are not enough sentinels, a `ValueError` names in its sentence how many are needed and how many there are.
# - The trap: the last sentinel of the target, which hides nothing.


# %% exercise="corrupt_spans" section="How to teach each of them"
def corrupt_spans(
    ids: list[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """T5's puzzle: the text with each span replaced by a sentinel, and the spans that the sentinels stand for.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 3.1.4 and figure 2.
    """
    ### BEGIN SOLUTION
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(sentinels) < len(joined) + 1:
        raise ValueError(f"{len(joined) + 1} sentinels are needed, one a span and one at the end, not {len(sentinels)}")
    kept: list[int] = []
    target: list[int] = []
    position = 0
    for (start, end), sentinel in zip(joined, sentinels, strict=False):
        kept += [*ids[position:start], sentinel]
        target += [sentinel, *ids[start:end]]
        position = end
    return [*kept, *ids[position:]], [*target, sentinels[len(joined)]]
    ### END SOLUTION


# %% check="corrupt_spans" points=4
words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
result = corrupt_spans(list(range(10)), [(2, 4), (8, 9)], [99, 42, 77])
assert isinstance(result, tuple), "The result should be a pair: the input and the target."
assert len(result) == 2, f"The result should be a pair, the input and the target, and it has {len(result)} parts."
kept, target = result
assert kept == [0, 1, 99, 4, 5, 6, 7, 42, 9], f"The input should be the text with 99 and 42 for the spans, not {kept}."
assert target[:3] == [99, 2, 3], f"The target should begin with 99 and the tokens that it hides, not with {target[:3]}."
assert target[-1] == 77, f"The target should end with the next sentinel, 77, and not with {target[-1]}."
print("The visible checks of corrupt_spans pass.")

# %% see="corrupt_spans"
# The same sentence with other spans. Which puzzle is hardest for you?
try:
    names = ["<X>", "<Y>", "<Z>", "<W>"]
    for spans in ([(2, 4), (8, 9)], [(0, 1), (4, 8)], [(9, 10)], [(0, 10)]):
        kept, target = corrupt_spans(list(range(10)), spans, [10, 11, 12, 13])
        print("input: ", " ".join([*words, *names][i] for i in kept))
        print("target:", " ".join([*words, *names][i] for i in target), end="\n\n")
except NotImplementedError:
    print("Finish corrupt_spans first, then run this cell again.")

# %% stand_in="EncoderLayer, DecoderLayer"
import torch  # noqa: E402


class CrossAttention(torch.nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        for letter in "qkvo":
            self.add_module(f"{letter}_proj", torch.nn.Linear(d_model, d_model, bias=bias))

    def forward(
        self, x, memory, mask=None, position_bias=None, pytorchs=torch.nn.functional.scaled_dot_product_attention
    ):
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"a mask is boolean, not {mask.dtype}")
        parts = (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        q, k, v = (torch.stack(part.chunk(self.n_heads, -1), 1) for part in parts)
        allowed = torch.ones((), dtype=torch.bool) if mask is None else mask
        bias = torch.zeros((), dtype=q.dtype) if position_bias is None else position_bias
        shape = (*q.shape[:-1], k.shape[-2])
        bias = torch.where(allowed, bias, -torch.inf).expand(shape)
        heads = pytorchs(q, k, v, attn_mask=bias, scale=self.scale)
        heads = heads.masked_fill(~allowed.expand(shape).any(-1, keepdim=True), 0)
        return self.o_proj(torch.cat(heads.unbind(1), -1))


# %% [markdown]
# ## Your own T5
#
# Here are all parts together: token vectors, encoder layers, a norm; decoder layers that look into its output, a norm;
# and the token vectors once more, to read a prediction off. The relative position bias is one table for the encoder and
# one for the decoder, and all layers share it.
#
# Is it really T5? The next cell builds one with Hugging Face's transformers, gives every weight a random value, copies
# the weights *by name* into your layers, and compares the predictions. (Without transformers it says so. No weights are
# downloaded.)


# %% see="DecoderLayer"
class EncoderDecoder(nn.Module):
    """T5 (version 1.0) from your layers: source and target ids to logits."""

    def __init__(self, vocabulary: int, d_model: int, n_heads: int, d_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.encoder = nn.ModuleList(EncoderLayer(d_model, n_heads, d_hidden) for _ in range(n_layers))
        self.decoder = nn.ModuleList(DecoderLayer(d_model, n_heads, d_hidden) for _ in range(n_layers))
        self.encoder_norm, self.decoder_norm = nn.RMSNorm(d_model, eps=1e-6), nn.RMSNorm(d_model, eps=1e-6)
        self.encoder_bias, self.decoder_bias = nn.Embedding(32, n_heads), nn.Embedding(32, n_heads)

    def bias(self, table: nn.Embedding, n: int, bidirectional: bool) -> Tensor:
        position = torch.arange(n)
        distance = position[None, :] - position[:, None]  # the key's position minus the query's
        return table(relative_position_bucket(distance, bidirectional, 32, 128)).permute(2, 0, 1)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        memory, bias = self.tokens(source), self.bias(self.encoder_bias, source.shape[1], True)
        mask = None if source_mask is None else source_mask[:, None, None]
        for layer in self.encoder:
            memory = layer(memory, mask, bias)
        memory = self.encoder_norm(memory)
        x, bias = self.tokens(target), self.bias(self.decoder_bias, target.shape[1], False)
        for layer in self.decoder:
            x = layer(x, memory, mask, bias)
        x = self.decoder_norm(x)
        return x * x.shape[-1] ** -0.5 @ self.tokens.weight.T  # T5 scales where it shares the token vectors


RENAMED = {
    "shared.": "tokens.",
    ".final_layer_norm": "_norm",
    ".block.0.layer.0.SelfAttention.relative_attention_bias": "_bias",
    ".block": "",
    "layer.0.SelfAttention": "self_attention",
    "layer.0.layer_norm": "self_attention_norm",
    "layer.1.EncDecAttention": "cross_attention",
    "layer.1.DenseReluDense": "feed_forward",
    "layer.2.DenseReluDense": "feed_forward",
    "layer.2.layer_norm": "feed_forward_norm",
    **{f".{letter}.weight": f".{letter}_proj.weight" for letter in "qkvo"},
    ".wi.": ".up.",
    ".wo.": ".down.",
}


def ours(name: str) -> str:
    """Our name for a weight of transformers' T5, where sub-layers have numbers."""
    for theirs, mine in RENAMED.items():
        name = name.replace(theirs, mine)
    second = "feed_forward_norm" if name.startswith("encoder") else "cross_attention_norm"
    return name.replace("layer.1.layer_norm", second)


try:
    model = EncoderDecoder(50, 32, 4, 64, 2)
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 50, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 64, "num_layers": 2}
    theirs = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(std=0.6)
    shared = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")  # one table, four names
    model.load_state_dict({ours(name): value for name, value in theirs.state_dict().items() if name not in shared})
    source, target = torch.randint(50, (3, 40)), torch.randint(50, (3, 12))
    source_mask = torch.arange(40) < torch.tensor([[40], [33], [7]])  # three sentences of different lengths
    with torch.no_grad():
        yours = model(source, target, source_mask)
        logits = theirs(input_ids=source, attention_mask=source_mask.long(), decoder_input_ids=target).logits
    off = (yours - logits).abs().max().item()
    print(f"The two predictions differ by at most {off:.1g}, on logits up to {logits.abs().max():.1f}.")
    print("Your layers are a T5." if off < 1e-4 else "They should agree to 1e-4: some layer is not T5's yet.")
except NotImplementedError:
    print("Finish all parts but the last two first, then run this cell again.")
except ImportError:
    print("This cell compares with Hugging Face's transformers, which is not installed here.")

# %% [markdown]
# ## Teach it to translate
#
# A small language: *the red cat sees a small dog* becomes *cat-wa akai, dog-o chiisai, see*. Adjectives move behind
# their nouns, the verb moves to the end, articles vanish. Your encoder–decoder learns it from examples, and writes one
# word at a time, as a translator does.
#
# Before you run it: the twin below has the same decoder, but its memory is all zeros. How often will it be right?


# %% see="DecoderLayer"
NOUNS, VERBS, ADJECTIVES, START, STOP = range(0, 10), range(10, 16), range(16, 24), 24, 25


def draw(batch: int) -> tuple[Tensor, Tensor]:
    """Sources [adjective noun verb adjective noun], and their translations between START and STOP."""
    first, second = torch.randint(16, 24, (2, batch))
    noun, other = torch.randint(0, 10, (2, batch))
    verb = torch.randint(10, 16, (batch,))
    source = torch.stack([first, noun, verb, second, other], 1)
    start, stop = torch.full((batch,), START), torch.full((batch,), STOP)
    target = torch.stack([start, 26 + noun, 26 + first, 26 + other, 26 + second, 26 + verb, stop], 1)
    return source, target


@torch.no_grad()
def translate(model: nn.Module, source: Tensor, blind: bool) -> Tensor:
    """Write six words, each the likeliest after those before it."""
    written = torch.full((len(source), 1), START)
    for _ in range(6):
        logits = predict(model, source, written, blind)
        written = torch.cat([written, logits[:, -1:].argmax(-1)], 1)
    return written


def predict(model: nn.Module, source: Tensor, target: Tensor, blind: bool) -> Tensor:
    nothing = torch.zeros(source.shape, dtype=torch.bool)
    return model(source, target, nothing if blind else None)


try:
    import os

    import matplotlib.pyplot as plt

    steps = 30 if os.environ.get("ICHIMON_FAST") == "1" else 400
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for label, blind, style in (("may look at the source", False, "-"), ("may not", True, "--")):
        torch.manual_seed(0)
        model, right = EncoderDecoder(50, 64, 4, 128, 1), []
        with torch.no_grad():
            for table in (model.tokens, model.encoder_bias, model.decoder_bias):
                table.weight.mul_(0.2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(steps + 1):
            source, target = draw(64)
            logits = predict(model, source, target[:, :-1], blind)
            loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0:
                source, target = draw(200)
                right.append((translate(model, source, blind) == target).all(1).float().mean().item())
        ax.plot(range(0, steps + 1, 20), right, style, label=label, color="#D55E00" if blind else "#0072B2")
        written = translate(model, draw(200)[0], blind)[:, 1:6] - 26
        kinds = torch.tensor([min(NOUNS), min(ADJECTIVES), min(NOUNS), min(ADJECTIVES), min(VERBS)])
        ends = torch.tensor([max(NOUNS), max(ADJECTIVES), max(NOUNS), max(ADJECTIVES), max(VERBS)])
        grammatical = ((written >= kinds) & (written <= ends)).all(1).float().mean()
        print(
            f"{label}: {len(written.unique(dim=0))} different sentences for 200 sources, {grammatical:.0%} grammatical"
        )
    ax.set(xlabel="training step", ylabel="sentences all right", ylim=(-0.03, 1.03))
    ax.set_title("Without its source a decoder cannot translate")
    ax.legend(loc="center right")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close("all")
    print("Finish all parts but the last two first, then run this cell again.")

# %% [markdown]
# Look at the twin's sentences: it has learnt the grammar, and writes the same thing whatever the source says. That is a
# decoder without a source: a language model.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they give every weight a random value and compare with
# T5's and BERT's arithmetic, they try padded batches, odd lengths, other dtypes and gradients, and the laws that hold
# whatever the numbers are. Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 08-three-shapes.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
