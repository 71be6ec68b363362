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
#     assignment: 10-long-context
# ---

# %% [markdown]
# # 10 · Long context
#
# **One question: how can a model that looks back only a little read a text that is long?**
#
# In plain attention every token compares itself with all tokens before it. Twice the text is four times the
# comparisons, and a cache that is twice as large. So models have been built whose tokens see less: only the last few,
# or a fixed pattern, or the best few, or a summary of all. Each of these is a different bet on what may be left out.
#
# You will build four of them, and the cache that belongs to the first. At the end, three layers that each see 16
# tokens read a text of a thousand, and you measure how far back they really reach. The page of the book that goes with
# this notebook is `book/10-long-context`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `sliding_window_mask` | ●○○ | 10 | 3 |
# | `RollingKVCache` | ●●● | 35 | 7 |
# | `block_sparse_mask` | ●●○ | 20 | 4 |
# | `topk_attention` | ●●○ | 20 | 4 |
# | `LinformerAttention` | ●●○ | 25 | 5 |
#
# ## Conventions
#
# They are those of every chapter.
#
# - **A mask is boolean, and `True` means "may attend".** A row that may attend to nothing gives zeros.
# - **Positions count from 0**, from the beginning of the text, however it is cut into chunks.
# - **A window $W$ includes the token itself.** The token at position $i$ sees the positions $i - W + 1$ to $i$, and so
#   $W - 1$ of the past. This is how the transformers library reads a model's `sliding_window`.
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "batch n_heads n d_head"]`.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
#
# `F.scaled_dot_product_attention` is yours to use in this chapter: you have built it before.

# %% role="set-up"
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `sliding_window_mask` ●○○
#
# The simplest way to see less: look only at what came last. A sentence ago matters more than a chapter ago, so each
# token keeps a window on the newest part of the past.
#
# `sliding_window_mask(n_q, n_k, window)` returns a boolean tensor of shape `(n_q, n_k)`. As in chapter 07, the queries
# are the **last** `n_q` of the `n_k` positions: the earlier ones are keys of the past that a cache holds. Entry `[i,
# j]` is `True` where the `i`-th query may attend to the `j`-th key, that is, where the key is the query itself or one
# of the `window - 1` positions just before it.
#
# | argument | |
# |---|---|
# | `n_q` | how many queries, at least 1 |
# | `n_k` | how many keys; less than `n_q` is a `ValueError` whose sentence names both numbers |
# | `window` | $W$, the token itself included; less than 1 is a `ValueError` whose sentence names it |
#
# - A window that is longer than the text leaves the plain causal mask.
# - The trap: does a window of 1 see one token, or two?


# %% exercise="sliding_window_mask" section="A window"
def sliding_window_mask(n_q: int, n_k: int, window: int) -> Bool[Tensor, "n_q n_k"]:
    """Entry [i, j] is True where query i, one of the last n_q of n_k positions, may attend to key j.

    A window includes the token itself. Raises ValueError if n_k is less than n_q, or the window less than 1.
    Source: Beltagy et al. 2020 (arXiv 2004.05150), section 3.1; Jiang et al. 2023 (arXiv 2310.06825), section 2.
    """
    ### BEGIN SOLUTION
    if n_k < n_q:
        raise ValueError(f"{n_q} queries need at least as many keys, and there are only {n_k}")
    if window < 1:
        raise ValueError(f"a window includes the token itself, so it is at least 1, not {window}")
    back = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return (back >= 0) & (back < window)
    ### END SOLUTION


# %% check="sliding_window_mask" points=3
mask = sliding_window_mask(4, 4, 2)
assert isinstance(mask, torch.Tensor), f"sliding_window_mask should return a tensor, not a {type(mask).__name__}."
assert mask.shape == (4, 4), (
    f"4 queries and 4 keys should give 4 rows and 4 columns, not the shape {tuple(mask.shape)}."
)
assert mask.dtype == torch.bool, f"The mask should hold booleans, not {mask.dtype}."
assert mask[3, 2], "With a window of 2, position 3 sees itself and position 2: mask[3, 2] should be True."
assert not mask[3, 0], "With a window of 2, position 3 does not see as far back as position 0."
mask = sliding_window_mask(1, 6, 3)
assert mask.shape == (1, 6), f"1 query and 6 keys should give the shape (1, 6), not {tuple(mask.shape)}."
assert mask[0, 5], "The only query is the last of the 6 positions, so it sees the last key: itself."
print("The visible checks of sliding_window_mask pass.")

# %% see="sliding_window_mask"
# Each row is a token that looks, yellow where it may. The band is as wide as the window, however long the text is.
try:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(8, 3.2), sharey=True, facecolor="white")
    for ax, window in zip(axes, (24, 8, 3), strict=True):
        mask = sliding_window_mask(24, 24, window)
        ax.imshow(mask, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=f"W = {window}: {int(mask.sum())} pairs", xlabel="may be seen", xticks=[], yticks=[])
    axes[0].set(ylabel="looks")
    fig.suptitle("A window leaves a band of the triangle")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish sliding_window_mask first, then run this cell again.")

# %% [markdown]
# ## 2 · `RollingKVCache` ●●●
#
# If nobody looks back further than a window, nobody needs older keys and values: they can be thrown away. So the cache
# needs room for $W$ positions, and never more. Mistral calls it a *rolling buffer*: the position $p$ is written into
# slot $p \bmod W$, over the one that has just left the window.
#
# `RollingKVCache(window)` makes an empty cache; `window` is at least 1. Like chapter 07's it is not told how many
# layers there are, and layers may come in any order.
#
# - `update(layer, k, v)` takes the keys and values of a chunk of new positions, and returns `(k, v)` of all positions
#   that the chunk's queries may see: the last `window - 1` of the past (or fewer, where the text is still short), then
#   the whole chunk, **in the order of their positions**. So `sliding_window_mask(n, k.shape[2], window)` fits what
#   comes back.
# - `length` is a property: how many positions the cache has **seen**, not how many it still holds. The next token has
#   this position, and RoPE needs to know it. Between two chunks all layers have seen equally many, and only then is it
#   asked. An empty cache has length 0.
# - `k` and `v` are dicts that hold the buffers: `cache.k[layer]` has shape `(batch, n_heads, window, d_head)`,
#   `cache.v[layer]` `(batch, n_heads, window, d_v)`. After an update the newest `window` positions are in them,
#   position `p` in slot `p % window`; slots that were never written hold zeros. A layer that never came is in neither.
#
# | | shape | |
# |---|---|---|
# | `layer` | | an int from 0 on |
# | `k` | `(batch, n_heads, n, d_head)` | `n` is at least 1, may differ in each call, may be longer than the window |
# | `v` | `(batch, n_heads, n, d_v)` | `d_v` may differ from `d_head` |
#
# - Keys come with their positions already in them (RoPE turned them): the cache stores them and does not change them.
# - The tensors that come in belong to the caller, who may overwrite them right after the call; what the cache holds
#   must not change with them.
# - The cache serves generation: no gradient needs to flow through it.
# - The trap: the first query of a chunk still needs keys that the end of the same chunk will overwrite.


# %% exercise="RollingKVCache" section="A cache that rolls"
class RollingKVCache:
    """The keys and values of the last `window` positions, for each layer of one model, in buffers of fixed size.

    Source: Jiang et al. 2023 (arXiv 2310.06825), section 2, "Rolling Buffer Cache".
    """

    def __init__(self, window: int) -> None:
        ### BEGIN SOLUTION
        self.window = window
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}
        self.seen: dict[int, int] = {}
        ### END SOLUTION

    @property
    def length(self) -> int:
        """How many positions it has seen."""
        ### BEGIN SOLUTION
        return max(self.seen.values(), default=0)
        ### END SOLUTION

    def update(
        self, layer: int, k: Float[Tensor, "batch n_heads n d_head"], v: Float[Tensor, "batch n_heads n d_v"]
    ) -> tuple[Float[Tensor, "batch n_heads n_k d_head"], Float[Tensor, "batch n_heads n_k d_v"]]:
        """Put a chunk into this layer's buffers; return what its queries may see: the end of the past, and itself."""
        ### BEGIN SOLUTION
        start = self.seen.get(layer, 0)
        end = self.seen[layer] = start + k.shape[2]
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        found = []
        for buffers, chunk in ((self.k, k), (self.v, v)):
            buffer = buffers.setdefault(layer, chunk.new_zeros(*chunk.shape[:2], self.window, chunk.shape[3]))
            found.append(torch.cat([buffer[:, :, past], chunk], 2))
            buffer[:, :, new] = chunk[:, :, -len(new) :]
        return found[0], found[1]
        ### END SOLUTION


# %% check="RollingKVCache" points=7
cache = RollingKVCache(3)
assert cache.length == 0, f"An empty cache should have length 0, not {cache.length}."
k = torch.arange(8.0).reshape(1, 1, 8, 1)  # the key of position p is the number p
found = cache.update(0, k[:, :, :5], -k[:, :, :5])
assert isinstance(found, tuple), f"update should return a tuple (k, v), not a {type(found).__name__}."
assert len(found) == 2, f"update should return a tuple (k, v) of two tensors, not of {len(found)}."
assert found[0].shape == (1, 1, 5, 1), (
    f"A first chunk of 5 sees itself: k should have shape (1, 1, 5, 1), not {tuple(found[0].shape)}."
)
assert cache.length == 5, f"After 5 positions length should be 5, whatever the window is, and not {cache.length}."
slots = cache.k[0].flatten().tolist()
assert slots == [3, 4, 2], (
    f"After positions 0 to 4, slot 0 holds position 3, slot 1 position 4, slot 2 position 2, and not {slots}."
)
found = cache.update(0, k[:, :, 5:6], -k[:, :, 5:6])
assert found[0].flatten().tolist() == [3, 4, 5], (
    f"With a window of 3, position 5 sees 3, 4 and 5, in this order, and not {found[0].flatten().tolist()}."
)
assert found[1].flatten().tolist() == [-3, -4, -5], "The values should come back as the keys do."
print("The visible checks of RollingKVCache pass.")

# %% see="RollingKVCache"
# Which position is in which slot, after each step? Read a column from top to bottom: it moves on once in W steps.
try:
    import matplotlib.pyplot as plt

    window, steps = 6, 15
    cache, held = RollingKVCache(window), torch.full((steps, window), math.nan)
    for p in range(steps):
        cache.update(0, torch.full((1, 1, 1, 1), float(p)), torch.zeros(1, 1, 1, 1))
        n = min(p + 1, window)
        held[p, :n] = cache.k[0].flatten()[:n]
    fig, ax = plt.subplots(figsize=(5, 5), facecolor="white")
    ax.imshow(held, cmap="cividis", aspect="auto")
    for p in range(steps):
        for slot in range(min(p + 1, window)):
            new = slot == p % window
            light = held[p, slot] < steps / 2
            ax.text(
                slot,
                p,
                f"{held[p, slot]:.0f}",
                ha="center",
                va="center",
                color="white" if light else "black",
                weight="bold" if new else "normal",
                size=13 if new else 10,
            )
    ax.set(xlabel="slot", ylabel="step", title="The newest (large) overwrites the oldest")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish RollingKVCache first, then run this cell again.")

# %% [markdown]
# ## 3 · `block_sparse_mask` ●●○
#
# A window forgets what is far. Longformer and BigBird, which read whole documents in both directions, add two things:
# a few **global** positions, which see all and are seen by all, so that two steps lead from anywhere to anywhere; and,
# in BigBird, some **random** links. Hardware likes whole tiles, so the pattern is made of blocks.
#
# `block_sparse_mask(n, block, n_local, n_global, random)` returns a boolean tensor of shape `(n, n)`. Position `i`
# belongs to the block `i // block`; the last block is shorter where `block` does not divide `n`. A position of block
# `a` may attend to **every** position of block `b`, itself included and in both directions, if at least one of these
# holds:
#
# | | |
# |---|---|
# | local | `a` and `b` are at most `n_local` blocks apart: 0 means only the own block |
# | global | `a` or `b` is one of the first `n_global` blocks |
# | random | `b` stands in row `a` of `random` |
#
# - `random` has a row for each block: `Int[Tensor, "n_blocks n_random"]`, int64. Chance comes from outside, so that
#   the same draw always gives the same mask. `n_random` may be 0, and a row may name blocks that are allowed anyway,
#   or name one twice.
# - A random link has one direction: `a` sees `b`, which does not let `b` see `a`.
# - `n_local` and `n_global` are at least 0 and may be larger than the number of blocks.
# - There is nothing causal in it. A model that writes takes `mask & causal_mask(n)`.


# %% exercise="block_sparse_mask" section="Blocks"
def block_sparse_mask(
    n: int, block: int, n_local: int, n_global: int, random: Int[Tensor, "n_blocks n_random"]
) -> Bool[Tensor, "n n"]:
    """Local, global and random blocks: entry [i, j] is True where position i may attend to position j.

    Source: Zaheer et al. 2020 (arXiv 2007.14062), section 2; without random blocks Beltagy et al. 2020 (2004.05150).
    """
    ### BEGIN SOLUTION
    of = torch.arange(n) // block  # the block of each position
    a = torch.arange(len(random))
    allowed = (a[:, None] - a).abs() <= n_local
    allowed |= (a < n_global) | (a[:, None] < n_global)
    allowed |= (random[:, :, None] == a).any(1)
    return allowed[of][:, of]
    ### END SOLUTION


# %% check="block_sparse_mask" points=4
nothing = torch.zeros(4, 0, dtype=torch.int64)  # 4 blocks without random links
mask = block_sparse_mask(8, 2, 0, 0, nothing)
assert isinstance(mask, torch.Tensor), f"block_sparse_mask should return a tensor, not a {type(mask).__name__}."
assert mask.shape == (8, 8), f"8 positions should give 8 rows and 8 columns, not the shape {tuple(mask.shape)}."
assert mask.dtype == torch.bool, f"The mask should hold booleans, not {mask.dtype}."
assert mask[0, 1] & mask[1, 0], "Positions 0 and 1 share a block, so each may attend to the other."
assert not mask[1, 2], "With n_local=0, position 1 (block 0) may not attend to position 2 (block 1)."
mask = block_sparse_mask(8, 2, 0, 1, nothing)
assert mask[7, 0] & mask[0, 7], "Block 0 is global: it sees all positions, and all positions see it."
mask = block_sparse_mask(8, 2, 0, 0, torch.tensor([[3], [1], [2], [3]]))
assert mask[0, 6], "Row 0 of random names block 3, so position 0 may attend to position 6."
print("The visible checks of block_sparse_mask pass.")

# %% see="block_sparse_mask"
# The three ingredients, and BigBird, which has all of them. Try another draw.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    n, block = 96, 8
    draw, none = torch.randint(n // block, (n // block, 2)), torch.zeros(n // block, 0, dtype=torch.int64)
    kinds = {"local": (1, 0, none), "global": (0, 1, none), "random": (0, 0, draw), "BigBird": (1, 1, draw)}
    fig, axes = plt.subplots(1, 4, figsize=(9, 2.8), facecolor="white")
    for ax, (name, arguments) in zip(axes, kinds.items(), strict=True):
        mask = block_sparse_mask(n, block, *arguments)
        ax.imshow(mask, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=f"{name}: {mask.float().mean():.0%}", xticks=[], yticks=[])
    fig.suptitle("What is left of all pairs")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish block_sparse_mask first, then run this cell again.")

# %% [markdown]
# ## 4 · `topk_attention` ●●○
#
# The patterns so far are fixed before a word is read. Could the model rather look at what *matters*? Then each query
# keeps its `top_k` best keys, those with the highest scores, and the softmax runs over these alone.
#
# `topk_attention(q, k, v, top_k, mask=None)` is scaled dot-product attention in which all other keys have weight zero.
#
# | argument | shape | |
# |---|---|---|
# | `q` | `(..., n_q, d_head)` | float32, float64 or bfloat16; `k` and `v` have the same dtype |
# | `k` | `(..., n_k, d_head)` | |
# | `v` | `(..., n_k, d_v)` | `d_v` may differ from `d_head` |
# | `top_k` | | an int, at least 1 |
# | `mask` | broadcasts to `(..., n_q, n_k)` | `True` means "may attend"; `None`: every query may attend to every key |
# | result | `(..., n_q, d_v)` | same dtype as `v` |
#
# - The best keys are chosen among those that the mask **allows**. Where it allows fewer than `top_k`, all of them are
#   taken; where it allows none, the row is zeros.
# - **Ties**: of keys with exactly equal scores, the one with the lower index is better. So never more than `top_k`
#   keys have weight.
# - Each query, head and sequence chooses for itself. Scores are $q \cdot k / \sqrt{d_\text{head}}$, and may be in
#   ±10⁴.
# - Gradients flow to the queries, the chosen keys and their values. Nothing flows through the choice.
#
# Look at your code when you are done: which part of the work did the choice save?


# %% exercise="topk_attention" section="The best keys"
def topk_attention(
    q: Float[Tensor, "... n_q d_head"],
    k: Float[Tensor, "... n_k d_head"],
    v: Float[Tensor, "... n_k d_v"],
    top_k: int,
    mask: Bool[Tensor, "... n_q n_k"] | None = None,
) -> Float[Tensor, "... n_q d_v"]:
    """Attention in which each query attends to its top_k best keys of those that the mask allows.

    Source: Gupta et al. 2021 (arXiv 2106.06899), section 2.
    """
    ### BEGIN SOLUTION
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    if mask is not None:
        chosen &= mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)
    ### END SOLUTION


# %% check="topk_attention" points=4
q, k = torch.tensor([[[2.0]]]), torch.tensor([[[1.0], [3.0], [2.0], [-1.0]]])
v = torch.eye(4)[None]  # with the identity as values, attention returns its weights
weights = topk_attention(q, k, v, 2)
assert isinstance(weights, torch.Tensor), f"topk_attention should return a tensor, not a {type(weights).__name__}."
assert weights.shape == (1, 1, 4), (
    f"1 query and values of width 4 should give the shape (1, 1, 4), not {tuple(weights.shape)}."
)
assert not weights[0, 0, [0, 3]].any(), "Keys 1 and 2 have the best scores: the others get no weight."
assert abs(weights.sum().item() - 1) < 1e-5, (
    f"The weights of the chosen keys should sum to 1, not to {weights.sum():.3g}."
)
assert torch.allclose(topk_attention(q, k, v, 4), F.scaled_dot_product_attention(q, k, v), atol=1e-5), (
    "With top_k as large as the number of keys, it should be plain attention."
)
print("The visible checks of topk_attention pass.")

# %% see="topk_attention"
# How much of the full softmax do the best keys hold? Sharp scores put it in few of them, flat ones do not.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    n, d_head, counts = 256, 32, [1, 2, 4, 8, 16, 32, 64, 128, 256]
    q, k, v = torch.randn(n, d_head), torch.randn(n, d_head), torch.randn(n, 16)
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for sharpness, style in ((0.5, ":"), (1, "--"), (3, "-")):
        full = F.scaled_dot_product_attention(sharpness * q, k, v)
        errors = [(topk_attention(sharpness * q, k, v, m) - full).norm() / full.norm() for m in counts]
        ax.plot(counts, [error.item() for error in errors], style, marker="o", label=f"scores × {sharpness}")
    ax.set(xscale="log", xlabel="keys that are kept, of 256", ylabel="relative error")
    ax.set(title="Few keys suffice where the scores are sharp")
    ax.set_xticks(counts, counts)
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish topk_attention first, then run this cell again.")

# %% [markdown]
# ## 5 · `LinformerAttention` ●●○
#
# The last bet: leave nothing out, but summarise. Linformer mixes the $n$ keys of a text into a fixed number of rows,
# `rank`, by a learned matrix $E$, and the values by another one, $F$. Each query then attends to `rank` mixtures
# instead of $n$ positions:
#
# $$\mathrm{head} = \mathrm{softmax}\!\left(\frac{Q\,(E K)^\top}{\sqrt{d_\text{head}}}\right) (F V)$$
#
# $E$ and $F$ work along the **sequence**: they mix positions, not channels. All heads share them.
#
# `LinformerAttention(d_model, n_heads, n_max, rank)` is an `nn.Module` whose state dict has exactly six entries, and
# no biases:
#
# | | shape | |
# |---|---|---|
# | `q_proj.weight`, `k_proj.weight`, `v_proj.weight`, `o_proj.weight` | `(d_model, d_model)` | as in `nn.Linear` |
# | `e_proj.weight`, `f_proj.weight` | `(rank, n_max)` | row `r`, column `p`: the share of position `p` in mixture `r` |
#
# `forward(x, mask=None)` takes `x` of shape `(batch, n, d_model)` and returns the same shape. Head 0 has the first
# `d_head = d_model / n_heads` channels of each projection, head 1 the next, and so on. You may rely on `d_model` being
# divisible by `n_heads`.
#
# - A text may be shorter than `n_max`: then only the first `n` columns of $E$ and $F$ are used. A longer one is a
#   `ValueError` whose sentence names both numbers.
# - `mask` is `Bool[Tensor, "batch n"]` and says which positions are real, `True`, and which are padding. Padding adds
#   nothing to any mixture: whatever stands there makes no difference to the outputs at real positions. A position
#   keeps its column of $E$ and $F$, wherever padding is. What comes out *at* padding does not matter.
# - The trap: the scores have a column for each mixture, not for each position. So where can a padding mask act?
# - It is not causal, and after this exercise you will see why it cannot easily be.


# %% exercise="LinformerAttention" section="Mixtures"
class LinformerAttention(nn.Module):
    """Multi-head attention over `rank` learned mixtures of the keys and values, for texts of at most n_max positions.

    Raises ValueError for a longer text. Source: Wang et al. 2020 (arXiv 2006.04768), section 4.
    """

    def __init__(self, d_model: int, n_heads: int, n_max: int, rank: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads, self.n_max = n_heads, n_max
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.e_proj = nn.Linear(n_max, rank, bias=False)
        self.f_proj = nn.Linear(n_max, rank, bias=False)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Bool[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position attends to the same mixtures of all positions that are real."""
        ### BEGIN SOLUTION
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"this layer was made for texts of at most {self.n_max} positions, and this one has {n}")
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if mask is not None:
            k, v = k.masked_fill(~mask[..., None], 0), v.masked_fill(~mask[..., None], 0)
        k, v = self.e_proj.weight[:, :n] @ k, self.f_proj.weight[:, :n] @ v
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        ### END SOLUTION


# %% check="LinformerAttention" points=5
layer = LinformerAttention(8, 2, n_max=6, rank=3)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {f"{letter}_proj.weight": (8, 8) for letter in "qkvo"} | {f"{letter}_proj.weight": (3, 6) for letter in "ef"}
assert shapes == wanted, f"The state dict should hold {wanted}, and it holds {shapes}."
x = torch.randn(1, 5, 8)
assert layer(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(layer(x).shape)}."
)
layer = LinformerAttention(8, 1, n_max=6, rank=6)
weights = {name: torch.eye(8 if value.shape[0] == 8 else 6) for name, value in layer.state_dict().items()}
layer.load_state_dict(weights)  # mixtures that are the positions themselves, and projections that change nothing
x = torch.randn(1, 6, 8)
assert torch.allclose(layer(x), F.scaled_dot_product_attention(x, x, x), atol=1e-5), (
    "Where every mixture is one position, the layer should be attention of x with itself."
)
try:
    layer(torch.randn(1, 7, 8))
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("6", "7")), (
    "7 positions do not fit into n_max=6: the layer should raise a ValueError that names both numbers."
)
print("The visible checks of LinformerAttention pass.")

# %% see="LinformerAttention"
# One position changes: who notices? A window lets the news travel only forward, and not far. Linformer tells everyone,
# the past included: each mixture holds every position, so a model that writes would see the word that it should guess.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    n, d_model = 16, 32
    layer = LinformerAttention(d_model, 4, n_max=n, rank=8)
    x = torch.randn(1, n, d_model)
    changed = x.repeat(n, 1, 1)
    changed[torch.arange(n), torch.arange(n)] = torch.randn(n, d_model)  # in copy j, position j is another one
    window = sliding_window_mask(n, n, 5)

    def banded(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=window)

    fig, axes = plt.subplots(1, 2, figsize=(7, 3.6), facecolor="white")
    for ax, see, title in zip(axes, (banded, layer), ("window of 5", "Linformer"), strict=True):
        moved = (see(changed) - see(x)).norm(dim=-1).detach()
        ax.imshow(moved.T > 1e-6, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=title, xlabel="position that changed", ylabel="position that notices")
    fig.suptitle("In Linformer, the past notices what comes later")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LinformerAttention (and sliding_window_mask) first, then run this cell again.")

# %% [markdown]
# ## How far does a small window reach?
#
# Each layer looks back $W - 1$ positions. But what it sees there are vectors into which the layer below has put what
# *it* saw, $W - 1$ further back. So the news travels, one window a layer.
#
# Below are three layers with a window of 16, with random weights. They read a text of a thousand tokens (a hundred in
# a fast run) with your rolling cache, in chunks. First: is it exactly what they say when the whole text is there? Then
# one early token changes, and we look how far its influence gets.
#
# Before you run it: how many positions later is the last token that can notice?


# %% see="RollingKVCache"
class WindowModel(nn.Module):
    """Layers of windowed attention with residuals, and no positions: enough to see what reaches where."""

    def __init__(self, d_model: int, n_heads: int, n_layers: int, window: int) -> None:
        super().__init__()
        self.n_heads, self.window = n_heads, window
        self.qkv = nn.ModuleList(nn.Linear(d_model, 3 * d_model, bias=False) for _ in range(n_layers))

    def forward(self, x: Tensor, cache: RollingKVCache | None = None) -> Tensor:
        n = x.shape[1]
        for i, project in enumerate(self.qkv):
            parts = F.layer_norm(x, x.shape[-1:])
            q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in project(parts).chunk(3, -1))
            if cache is not None:
                k, v = cache.update(i, k, v)
            mask = sliding_window_mask(n, k.shape[2], self.window)
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return x


try:
    import os

    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    fast = os.environ.get("ICHIMON_FAST") == "1"
    n, window, n_layers = 100 if fast else 1000, 16, 3
    model = WindowModel(32, 4, n_layers, window).double()
    x = torch.randn(1, n, 32, dtype=torch.float64)
    with torch.no_grad():
        whole, cache = model(x), RollingKVCache(window)
        sizes = [50, 1, 1, *[40] * n]  # a chunk longer than the window, single tokens, and so on to the end
        chunks, start = [], 0
        for size in sizes:
            if start < n:
                chunks.append(model(x[:, start : start + size], cache))
                start += size
        gap = (torch.cat(chunks, 1) - whole).abs().max().item()
        changed = x.clone()
        changed[:, 10] = torch.randn(32)
        moved = (model(changed) - whole).norm(dim=-1)[0]
    held = sum(part.nbytes for part in (*cache.k.values(), *cache.v.values()))
    print(f"In chunks with a rolling cache, or all at once: the outputs differ by at most {gap:.1g}.")
    print(f"The cache holds {held:,} bytes; one that keeps all {n} positions would hold {held // window * n:,}.")
    last = int(moved.nonzero().max())
    print(f"Position 10 changed. The last position that notices is {last}: {last - 10} later.")
    fig, ax = plt.subplots(figsize=(6.5, 3), facecolor="white")
    away = range(n_layers * window + 5)
    ax.bar(away, moved[10 : 10 + len(away)].tolist(), color="#0072B2")
    for layer in range(1, n_layers + 1):
        ax.axvline(layer * (window - 1) + 0.5, color="#D55E00", linestyle="--")
    ax.set(yscale="log", xlabel="positions later", ylabel="change of the output")
    ax.set(title=f"Three windows of {window}, one behind the other")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish the first two parts first, then run this cell again.")

# %% [markdown]
# The dashed lines stand at $W - 1$, $2(W - 1)$ and $3(W - 1)$. The reach is exact, and so is the cache. But look at
# the scale on the left: what gets as far as the last line is faint. To *reach* something and to be able to *use* it
# are two things, and the page of the book measures both.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they try windows of 1 and windows longer than the text,
# chunks far longer than the window, texts that go round the buffer many times, ties, padding, other dtypes, gradients,
# and the laws that hold whatever the numbers are. Each exercise is marked by itself, and every test that passes
# counts.
#
# Before you hand in, run `python -m ichimon check 10-long-context.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
