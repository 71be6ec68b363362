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
#     assignment: 07-kv-cache
# ---

# %% [markdown]
# # 07 · Generation and the KV cache
#
# **One question: why does a model not read everything again for each new word?**
#
# A language model writes one token at a time, and each new token may depend on all before it. Done naively, the
# hundredth token costs a hundred tokens' work. But most of that work was done before: the keys and values of the past
# never change. So keep them. That is the KV cache, and every system that serves a language model has one.
#
# You will build it in six parts, and at the end a small model writes with it. The page of the book that goes with this
# notebook is `book/07-kv-cache`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `KVCache` | ●●○ | 20 | 5 |
# | `chunk_mask` | ●○○ | 10 | 3 |
# | `CachedAttention` | ●●● | 25 | 5 |
# | `kv_cache_bytes` | ●○○ | 5 | 2 |
# | `sample` | ●●○ | 20 | 4 |
# | `generate` | ●●● | 30 | 6 |
#
# ## Conventions
#
# They are those of every chapter.
#
# - **A mask is boolean, and `True` means "may attend".**
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "batch n d_model"]`. Keys and values are kept head
#   by head, as `(batch, n_heads, n, d_head)`.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
# - **A chunk** is what a model is given in one call: several tokens of the prompt, or the one new token of a step.

# %% role="set-up"
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `KVCache` ●●○
#
# The cache belongs to one conversation with one model. Each layer of the model gives it the keys and values of the new
# positions, and gets back those of all positions so far, which is what its attention needs.
#
# - `KVCache()` makes an empty cache. It is not told how many layers there are.
# - `update(layer, k, v)` adds `k` and `v` behind what this layer has, and returns `(k, v)` of all positions so far, in
#   the order in which they came.
# - `length` is a property: how many positions the cache holds. Between two chunks all layers hold equally many, and
#   only then is it asked. An empty cache has length 0.
#
# | | shape | |
# |---|---|---|
# | `layer` | | an int from 0 on; layers may come in any order |
# | `k` | `(batch, n_heads, n, d_head)` | `n` is at least 1, and may be another one in each call |
# | `v` | `(batch, n_heads, n, d_v)` | `d_v` may differ from `d_head` |
# | results | `(batch, n_heads, length, …)` | same dtypes as `k` and `v` |
#
# - There is no largest length. Nothing that came in is lost or changed when the cache grows.
# - The tensors that come in belong to the caller. A program that uses the same memory for every step overwrites them
#   right after the call; what the cache holds must not change with them.
# - Two caches are two conversations, and know nothing of each other.
# - Concatenate, collect in lists, or write into room that you made in advance: as you like.


# %% exercise="KVCache" section="What depends on what"
class KVCache:
    """Keys and values of all positions so far, for each layer of one model."""

    def __init__(self) -> None:
        ### BEGIN SOLUTION
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        ### END SOLUTION

    @property
    def length(self) -> int:
        """How many positions it holds."""
        ### BEGIN SOLUTION
        return next((k.shape[2] for k, _ in self.kept.values()), 0)
        ### END SOLUTION

    def update(
        self, layer: int, k: Float[Tensor, "batch n_heads n d_head"], v: Float[Tensor, "batch n_heads n d_v"]
    ) -> tuple[Float[Tensor, "batch n_heads length d_head"], Float[Tensor, "batch n_heads length d_v"]]:
        """Add the keys and values of new positions to those of this layer, and return all of them."""
        ### BEGIN SOLUTION
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        else:
            self.kept[layer] = k.clone(), v.clone()
        return self.kept[layer]
        ### END SOLUTION


# %% check="KVCache" points=5
cache = KVCache()
assert cache.length == 0, f"An empty cache should have length 0, not {cache.length}."
k, v = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3)
kept = cache.update(0, k[:, :, :3], v[:, :, :3])
assert isinstance(kept, tuple), f"update should return a tuple (k, v), not a {type(kept).__name__}."
assert len(kept) == 2, f"update should return a tuple (k, v) of two tensors, not of {len(kept)}."
assert kept[0].shape == (1, 2, 3, 3), (
    f"After 3 positions, k should have shape (1, 2, 3, 3), not {tuple(kept[0].shape)}."
)
kept = cache.update(0, k[:, :, 3:], v[:, :, 3:])
assert kept[0].shape == (1, 2, 4, 3), (
    f"After 3 positions and then 1, update should return all 4, and k has the shape {tuple(kept[0].shape)}."
)
assert torch.equal(kept[0], k), "The keys should come back as they went in, in the same order."
assert torch.equal(kept[1], v), "The values should come back as they went in, in the same order."
assert cache.length == 4, f"After 3 positions and then 1, length should be 4, not {cache.length}."
other = KVCache().length
assert other == 0, f"A second cache is another conversation and should begin empty, and its length is {other}."
print("The visible checks of KVCache pass.")

# %% see="KVCache"
# A prompt of 6 tokens and 6 steps. Without a cache every step computes keys for all positions (each square is one);
# with it, only for those that are new.
try:
    import matplotlib.pyplot as plt

    cache, computed = KVCache(), []
    for n in (6, 1, 1, 1, 1, 1, 1):
        computed.append((cache.length, n))
        cache.update(0, torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1))
    total = cache.length
    new = torch.tensor([[start <= j < start + n for j in range(total)] for start, n in computed])
    seen = torch.tensor([[j < start + n for j in range(total)] for start, n in computed])
    fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, facecolor="white")
    for ax, grid, title in zip(axes, (seen, new), ("read everything again", "keep keys and values"), strict=True):
        ax.imshow(grid, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=f"{title}: {int(grid.sum())}", xlabel="position", xticks=range(0, total, 2))
    axes[0].set(ylabel="step")
    fig.suptitle("Keys that are computed, step by step")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish KVCache first, then run this cell again.")

# %% [markdown]
# ## 2 · `chunk_mask` ●○○
#
# With a cache there are more keys than queries. The queries are the positions of the chunk; the keys are those of the
# past and of the chunk, and the chunk comes last.
#
# `chunk_mask(n_q, n_k)` returns a boolean tensor of shape `(n_q, n_k)`. Entry `[i, j]` is `True` where the `i`-th query
# of the chunk may attend to the `j`-th key of all: to itself and to everything before it, the whole past included.
#
# - If there are fewer keys than queries, it raises a `ValueError` whose sentence names both numbers: a query would have
#   no key of its own.
# - The trap: where is the first query of the chunk? `F.scaled_dot_product_attention(..., is_causal=True)` gives a
#   different answer, and no error.


# %% exercise="chunk_mask" section="Who may see whom"
def chunk_mask(n_q: int, n_k: int) -> Bool[Tensor, "n_q n_k"]:
    """Entry [i, j] is True where query i of a chunk may attend to key j. The chunk is the last n_q of n_k positions.

    Raises ValueError if n_k is less than n_q.
    """
    ### BEGIN SOLUTION
    if n_k < n_q:
        raise ValueError(f"{n_q} queries need at least as many keys, and there are only {n_k}")
    return torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q)
    ### END SOLUTION


# %% check="chunk_mask" points=3
mask = chunk_mask(2, 5)
assert isinstance(mask, torch.Tensor), f"chunk_mask should return a tensor, not a {type(mask).__name__}."
assert mask.shape == (2, 5), (
    f"2 queries and 5 keys should give 2 rows and 5 columns, not the shape {tuple(mask.shape)}."
)
assert mask.dtype == torch.bool, f"The mask should hold booleans, not {mask.dtype}."
assert mask[0, 3], "After 3 positions of the past, the first query is itself at position 3, and may see it."
assert not mask[0, 4], "The first query may not see the second one, which comes after it."
assert chunk_mask(2, 2).tolist() == [[True, False], [True, True]], (
    "The first chunk of a text has no past, so as many keys as queries: the first may see itself, the second both."
)
print("The visible checks of chunk_mask pass.")

# %% see="chunk_mask"
# Three chunks of one text: each row is a query, yellow where it may look. Stacked, they are the mask of the whole.
try:
    import matplotlib.pyplot as plt

    chunks, end = (5, 3, 1), 0
    fig, axes = plt.subplots(3, 1, figsize=(4.5, 4), height_ratios=chunks, facecolor="white")
    for ax, n in zip(axes, chunks, strict=True):
        end += n
        ax.imshow(F.pad(chunk_mask(n, end).float(), (0, 9 - end), value=0.5), cmap="cividis", vmin=0, vmax=1)
        ax.set_ylabel(f"{n} new", rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
    axes[-1].set(xlabel="key (grey: not there yet)")
    fig.suptitle("A chunk sees all of the past, and itself causally")
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish chunk_mask first, then run this cell again.")

# %% [markdown]
# ## 3 · `CachedAttention` ●●●
#
# Now the layer: self-attention that reads one chunk and remembers the past. It is always causal.
#
# `CachedAttention(d_model, n_heads)` is an `nn.Module` whose state dict has exactly four entries, each of shape
# `(d_model, d_model)`, stored as `nn.Linear` stores its weight, and no biases:
#
# `q_proj.weight` · `k_proj.weight` · `v_proj.weight` · `o_proj.weight`
#
# Head 0 has the first `d_head = d_model / n_heads` channels of each projection, head 1 the next, and so on; scores are
# divided by the root of `d_head`. You may rely on `d_model` being divisible by `n_heads`.
#
# `forward(x, cache=None, layer=0)` takes a chunk `x` of shape `(batch, n, d_model)` and returns the same shape.
#
# - With a cache, the keys and values of the chunk go into `cache.update(layer, …)`, once in a call, with shape
#   `(batch, n_heads, n, d_head)`; the chunk then attends to everything that comes back, causally.
# - Without a cache there is no past: plain causal self-attention. A layer keeps nothing from one call to the next.
# - So a text gives the same outputs whether it comes whole, in chunks of any sizes, or token by token.
# - Two layers of a model share one cache, with different numbers `layer`.
#
# `F.scaled_dot_product_attention` is yours to use: you have built it before. Call your `KVCache` and `chunk_mask` by
# their names; when this part is marked, ours stand in for them.


# %% exercise="CachedAttention" section="The mathematics"
class CachedAttention(nn.Module):
    """Causal multi-head self-attention without biases, over a chunk and the past that a cache holds."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], cache: "KVCache | None" = None, layer: int = 0
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position of the chunk attends to the past, to what is before it in the chunk, and to itself."""
        ### BEGIN SOLUTION
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for proj in projections)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(x.shape[1], k.shape[2]))
        return self.o_proj(heads.transpose(1, 2).flatten(2))
        ### END SOLUTION


# %% check="CachedAttention" points=5
layer = CachedAttention(8, 2)
names = {f"{letter}_proj.weight" for letter in "qkvo"}
assert set(layer.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(layer.state_dict())}."
)
x = torch.randn(1, 5, 8)
with torch.no_grad():
    whole = layer(x)
    assert whole.shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(whole.shape)}."
    changed = x.clone()
    changed[:, 4] += 1
    assert torch.allclose(layer(changed)[:, :4], whole[:, :4], atol=1e-6), (
        "After a change at position 4 the outputs before it should be the same: attention is causal."
    )
    cache = KVCache()
    steps = torch.cat([layer(x[:, i : i + 1], cache) for i in range(5)], 1)
assert torch.allclose(steps, whole, atol=1e-5), (
    f"Token by token with a cache, the outputs should be those of the whole text, and differ by up to "
    f"{(steps - whole).abs().max():.2g}."
)
print("The visible checks of CachedAttention pass.")

# %% stand_in="CachedAttention"
import torch  # noqa: E402


class KVCache:
    def __init__(self):
        self.chunks = {}
        self.calls = []

    @property
    def length(self):
        return sum(k.shape[-2] for k, _ in self.chunks.get(min(self.chunks, default=0), []))

    def update(self, layer, k, v):
        if k.dim() != 4 or v.dim() != 4:
            raise ValueError("update takes keys and values of shape (batch, n_heads, n, d_head)")
        self.calls.append((layer, tuple(k.shape), tuple(v.shape)))
        self.chunks.setdefault(layer, []).append((k.clone(), v.clone()))
        return tuple(torch.cat(part, -2) for part in zip(*self.chunks[layer], strict=True))


def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries need at least as many keys, and there are only {n_k}")
    return torch.arange(n_k) <= torch.arange(n_k - n_q, n_k)[:, None]


# %% see="CachedAttention"
# A text of 24 tokens through one layer, in chunks of several sizes: how far are the outputs from those of the whole?
# What remains is rounding: a sum in another order.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    layer, x = CachedAttention(32, 4), torch.randn(1, 24, 32)
    sizes, gaps = (1, 2, 3, 5, 8, 12, 24), []
    with torch.no_grad():
        whole = layer(x)
        for size in sizes:
            cache = KVCache()
            gaps.append((torch.cat([layer(chunk, cache) for chunk in x.split(size, 1)], 1) - whole).abs().max().item())
    fig, ax = plt.subplots(figsize=(6, 2.8), facecolor="white")
    ax.bar(range(len(sizes)), [gap + 1e-9 for gap in gaps], color="#0072B2")
    ax.axhline(whole.abs().mean().item(), color="#D55E00", linestyle="--", label="size of an output")
    ax.set_xticks(range(len(sizes)), sizes)
    ax.set(yscale="log", ylim=(1e-9, 10), xlabel="tokens a chunk", ylabel="largest difference")
    ax.set(title="However the text is cut, the layer says the same")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish the first three parts first, then run this cell again.")

# %% [markdown]
# ## 4 · `kv_cache_bytes` ●○○
#
# Time was saved; memory pays. How much?
#
# `kv_cache_bytes(length, n_layers=…, n_heads=…, d_head=…)` returns, as an int, the bytes that the keys and values of
# `length` positions take in a model.
#
# | argument | |
# |---|---|
# | `length` | positions of each sequence, at least 0 |
# | `n_layers` | layers of the model, each with keys and values of its own |
# | `n_heads` | heads of queries in a layer |
# | `d_head` | numbers in one key, and in one value |
# | `n_kv_heads` | heads of keys and values, where a layer has fewer of them than of queries (see chapter 09) |
# | `batch` | sequences side by side; 1 if nothing is said |
# | `dtype` | what a number is stored as, such as `torch.float32` or `torch.int8`; bfloat16 if nothing is said |
#
# Where `n_kv_heads` is `None`, there are as many heads of keys and values as of queries.


# %% exercise="kv_cache_bytes" section="The bytes of real models"
def kv_cache_bytes(
    length: int,
    *,
    n_layers: int,
    n_heads: int,
    d_head: int,
    n_kv_heads: int | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """The bytes that a model's KV cache takes for a batch of sequences of this length."""
    ### BEGIN SOLUTION
    heads = n_heads if n_kv_heads is None else n_kv_heads
    return 2 * batch * n_layers * heads * length * d_head * dtype.itemsize
    ### END SOLUTION


# %% check="kv_cache_bytes" points=2
size = kv_cache_bytes(1, n_layers=1, n_heads=1, d_head=1)
assert isinstance(size, int), f"kv_cache_bytes should return an int, not a {type(size).__name__}."
assert size == 4, f"One position, layer, head and channel are a key and a value of 2 bytes: 4 bytes, not {size}."
size = kv_cache_bytes(10, n_layers=3, n_heads=2, d_head=5)
assert size == 1200, (
    f"10 positions, 3 layers, 2 heads and 5 channels should take 10 · 3 · 2 · 5 times as much, 1200 bytes, not {size}."
)
print("The visible checks of kv_cache_bytes pass.")

# %% see="kv_cache_bytes"
# How long a text fills 24 GB with its cache alone? Try another model, or another batch.
try:
    models = {
        "GPT-2 small": {"n_layers": 12, "n_heads": 12, "d_head": 64},
        "LLaMA 7B": {"n_layers": 32, "n_heads": 32, "d_head": 128},
        "Llama 3 8B": {"n_layers": 32, "n_heads": 32, "d_head": 128, "n_kv_heads": 8},
        "GPT-3": {"n_layers": 96, "n_heads": 96, "d_head": 128},
    }
    for name, shape in models.items():
        size = kv_cache_bytes(1, **shape)
        print(f"{name:12} {size / 1024:7,.0f} KiB a token, {24e9 / size:9,.0f} tokens in 24 GB")
except NotImplementedError:
    print("Finish kv_cache_bytes first, then run this cell again.")

# %% [markdown]
# ## 5 · `sample` ●●○
#
# The model gives a score to each token of its vocabulary. Which one is written? The likeliest, or one drawn by chance.
#
# `sample(logits, u, temperature=1.0, top_k=None)` returns one id for each row: `logits` has the shape
# `(batch, vocabulary)`, the result is int64 of shape `(batch,)`.
#
# Chance comes from outside, so that the same `u` always gives the same token. `u` is float32 of shape `(batch,)`, each
# entry at least 0 and less than 1. Lay the probabilities of a row end to end in the order of the ids, from 0 to 1: each
# token gets an interval as long as its probability, closed on the left and open on the right. The token in whose
# interval `u` falls is drawn.
#
# - The probabilities are the softmax of `logits / temperature`. A low temperature makes the likely likelier; a high one
#   evens them out.
# - `temperature=0` takes the likeliest token, whatever `u` says; of several that are equal, the one with the lowest id.
# - `top_k=k` first leaves only the `k` tokens of the largest logits, whose probabilities then again sum to 1. You may
#   rely on the `k`-th and the next being different. `k` is at least 1, and may be larger than the vocabulary: then all
#   are left.
# - A logit of −∞ is a token that must not be drawn. At least one in each row is finite.
# - Logits may be as large as ±10⁴, and may be bfloat16. Compute probabilities in float64: with 50,000 of them, sums in
#   a smaller type stop short of 1, and a `u` just below 1 falls off the end.


# %% exercise="sample" section="From scores to a word"
def sample(
    logits: Float[Tensor, "batch vocabulary"],
    u: Float[Tensor, " batch"],
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Int[Tensor, " batch"]:
    """The token of each row in whose interval u falls; at temperature 0, the likeliest."""
    ### BEGIN SOLUTION
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    ends = (logits.double() / temperature).softmax(1).cumsum(1)
    return (ends <= u[:, None]).sum(1)
    ### END SOLUTION


# %% check="sample" points=4
logits = torch.tensor([[math.log(0.2), math.log(0.5), math.log(0.3)]]).expand(4, 3)
u = torch.tensor([0.1, 0.3, 0.6, 0.9])
ids = sample(logits, u)
assert isinstance(ids, torch.Tensor), f"sample should return a tensor, not a {type(ids).__name__}."
assert (tuple(ids.shape), ids.dtype) == ((4,), torch.int64), (
    f"4 rows should give 4 ids of int64, not {ids.dtype} of shape {tuple(ids.shape)}."
)
assert ids.tolist() == [0, 1, 1, 2], (
    f"Probabilities of 0.2, 0.5 and 0.3 and u of 0.1, 0.3, 0.6, 0.9 should give [0, 1, 1, 2], not {ids.tolist()}."
)
assert sample(logits, u, temperature=0).tolist() == [1] * 4, "At temperature 0 the likeliest token is taken."
assert sample(logits, u, top_k=1).tolist() == [1] * 4, "Of the one largest logit only that token can be drawn."
print("The visible checks of sample pass.")

# %% see="sample"
# The same ten logits at three temperatures: 2,000 draws each.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    logits = torch.linspace(3, 0, 10).expand(2000, 10)
    fig, axes = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True, facecolor="white")
    for ax, temperature in zip(axes, (0.3, 1.0, 3.0), strict=True):
        drawn = sample(logits, torch.rand(2000), temperature)
        ax.bar(range(10), torch.bincount(drawn, minlength=10) / 2000, color="#0072B2")
        ax.set(title=f"temperature {temperature}", xlabel="token", xticks=range(10))
    axes[0].set(ylabel="share of the draws")
    fig.suptitle("A low temperature repeats the likeliest, a high one wanders")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish sample first, then run this cell again.")

# %% [markdown]
# ## 6 · `generate` ●●●
#
# All of it together: read the prompt once, then write token by token.
#
# `generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None)` takes
#
# | argument | |
# |---|---|
# | `model` | called as `model(ids, cache)`: see below |
# | `prompt` | int64 `(batch, n)`, `n` at least 1; all prompts of a batch are equally long |
# | `n_new` | how many tokens to write, at least 1 |
# | `cache` | for the model. `generate` hands on the same object in each call and never looks into it |
# | `choose` | called as `choose(logits)`: see below. `None`: the likeliest token is written |
# | `chunk` | the prompt is read in chunks of so many tokens, the last perhaps shorter. `None`: in one |
# | `end` | an id that ends a text. `None`: nothing ends it early |
#
# and returns int64 `(batch, n + m)`: the prompt, and behind it the `m` tokens that were written.
#
# `model(ids, cache)` takes int64 ids `(batch, n)` and returns logits `(batch, n, vocabulary)`, one row for each of the
# `n` positions; what came before, it keeps in the cache. `choose(logits)` takes the logits `(batch, vocabulary)` of the
# last position and returns what is written next, int64 `(batch,)`.
#
# - The prompt is read once, from left to right. Then each step reads exactly one token a row: the one just written. So
#   no token is read twice. The last one is not read at all: nobody asks what comes after it. `choose` is called `m`
#   times.
# - A row has ended when `end` was *written* in it; an `end` in the prompt ends nothing. From then on `end` is written
#   in it, whatever `choose` says, until all rows have ended. Then generation stops, and `m` may be less than `n_new`.
#   Until then the model reads all rows.
# - No gradient is recorded: a graph that goes back through every step would fill the memory.
# - The trap: the text so far is longer at each step, and the chunk is not.


# %% exercise="generate" section="Two phases"
def generate(
    model: Callable[..., Float[Tensor, "batch n vocabulary"]],
    prompt: Int[Tensor, "batch n"],
    n_new: int,
    cache: object,
    *,
    choose: Callable[[Float[Tensor, "batch vocabulary"]], Int[Tensor, " batch"]] | None = None,
    chunk: int | None = None,
    end: int | None = None,
) -> Int[Tensor, "batch n_and_new"]:
    """Read the prompt once, then write up to n_new tokens, one at a time; each is read once, the last one never."""
    ### BEGIN SOLUTION
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], 1):
            logits = model(ids, cache)
        written = [prompt]
        ended = torch.zeros(len(prompt), dtype=torch.bool)
        while True:
            new = logits[:, -1].argmax(1) if choose is None else choose(logits[:, -1])
            if end is not None:
                new = new.masked_fill(ended, end)
                ended = new == end
            written.append(new[:, None])
            if len(written) > n_new or ended.all():
                return torch.cat(written, 1)
            logits = model(new[:, None], cache)
    ### END SOLUTION


# %% check="generate" points=6
read = []


def counting(ids: Tensor, cache: object) -> Tensor:
    """A model that can only count: after i it expects i + 1. It notes what it was given."""
    assert getattr(ids, "ndim", 0) == 2, "The model should be given a tensor of ids of shape (batch, n)."
    read.append(ids.tolist())
    return F.one_hot((ids + 1) % 10, 10).float()


ids = generate(counting, torch.tensor([[3, 4], [7, 8]]), 3, None)
assert isinstance(ids, torch.Tensor), f"generate should return a tensor, not a {type(ids).__name__}."
assert ids.tolist() == [[3, 4, 5, 6, 7], [7, 8, 9, 0, 1]], (
    f"A model that counts should go on from [3, 4] and [7, 8] by counting on, and wrote {ids.tolist()}."
)
assert read[0] == [[3, 4], [7, 8]], f"First the model should read the prompt, and it was given {read[0]}."
assert read[1:] == [[[5], [9]], [[6], [0]]], (
    f"Then it should read one new token a row, and the last not at all; it was given {read[1:]}."
)
print("The visible checks of generate pass.")

# %% stand_in="generate"
import torch  # noqa: E402


class Watching:
    """A model that counts on, and notes whether gradients are recorded where it is called."""

    def __init__(self):
        self.recorded = []

    def __call__(self, ids, cache):
        self.recorded.append(torch.is_grad_enabled())
        return torch.nn.functional.one_hot((ids + 1) % 11, 11).float()


# %% [markdown]
# ## A model that writes
#
# Here are your parts at work: a small decoder whose attention is yours, trained for a moment on the documentation that
# every Python carries. Its positions come from `cache.length`: a chunk of one token after 40 is at position 40, not 0.
#
# Before you run it: how many times as fast is it with the cache, at the end of a text of 240 tokens?


# %% see="generate"
class Writer(nn.Module):
    """A small decoder: your attention, a feed-forward part, learned positions, tied embeddings."""

    def __init__(self, vocabulary: int, d_model: int = 64, n_heads: int = 4, n_layers: int = 2, longest: int = 512):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, d_model), nn.Embedding(longest, d_model)
        self.attention = nn.ModuleList(CachedAttention(d_model, n_heads) for _ in range(n_layers))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(d_model), nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
            )
            for _ in range(n_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(n_layers + 1))
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        past = 0 if cache is None else cache.length
        x = self.tokens(ids) + self.places.weight[past : past + ids.shape[1]]
        for i, (attention, feed_forward) in enumerate(zip(self.attention, self.feed_forward, strict=True)):
            x = x + attention(self.norms[i](x), cache, i)
            x = x + feed_forward(x)
        return self.norms[-1](x) @ self.tokens.weight.T


model = None
try:
    import os

    from ichimon import corpus, train

    chunk_mask(1, 1), KVCache().length  # are they written?
    fast = os.environ.get("ICHIMON_FAST") == "1"
    torch.manual_seed(0)
    bpe, text = corpus.tokenizer(), corpus.tokens(corpus.PROSE, "train")
    writer = Writer(corpus.VOCABULARY, longest=256)
    writer(torch.zeros(1, 2, dtype=torch.long))
    batches = train.windows(text, batch=16, length=64 if fast else 128)
    train.fit(writer, batches, train.Settings(20 if fast else 400, lr=3e-3, warmup=10, device="cpu"), quiet=True)
    prompt = torch.tensor([bpe.encode("The following example shows").ids])
    for name, choose in {
        "greedy": None,
        "temperature 0.8": lambda logits: sample(logits, torch.rand(len(logits)), temperature=0.8),
        "top 20": lambda logits: sample(logits, torch.rand(len(logits)), top_k=20),
    }.items():
        ids = generate(writer, prompt, 60, KVCache(), choose=choose, end=0)
        written = bpe.decode(ids[0].tolist()).replace("\n", "⏎")  # a line break is a token like any other
        print(f"— {name}\n{written}\n")
    model = writer
except NotImplementedError:
    print("Finish all six parts first, then run this cell again.")
except ImportError:
    print("This cell needs the course's own package, ichimon: open the notebook from the course's folder.")

# %% [markdown]
# And the time. Each dot is one step of the same text, once with the cache and once reading everything again.

# %% see="generate"
if model is None:
    print("Run the cell above to its end first, then run this cell again.")
else:
    import time
    from functools import partial

    import matplotlib.pyplot as plt

    def seconds(function: Callable[[], object]) -> float:
        """CPU time of one call."""
        start = time.process_time()
        function()
        return time.process_time() - start

    n = 60 if fast else 240
    text, cache, again, cached = torch.randint(1, 1000, (4, n)), KVCache(), [], []
    with torch.no_grad():
        for end in range(1, n + 1):
            cached.append(seconds(partial(model, text[:, end - 1 : end], cache)))
            again.append(seconds(partial(model, text[:, :end])))
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot([1000 * s for s in again], ".", color="#D55E00", label="read everything again")
    ax.plot([1000 * s for s in cached], ".", color="#0072B2", label="with the cache")
    ax.set(xlabel="tokens so far", ylabel="CPU time of a step (ms)", ylim=(0, None))
    ax.set(title="Without a cache each token costs more than the one before")
    ax.legend()
    fig.tight_layout()
    plt.show()

# %% [markdown]
# The cached step is nearly flat here. It does grow: its attention reads the whole cache. The page measures how much,
# and when that becomes what matters.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: other shapes and dtypes, batches, chunks of every size,
# probabilities at their edges, and a model of ours that counts every token your `generate` gives it. Each exercise is
# marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 07-kv-cache.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
