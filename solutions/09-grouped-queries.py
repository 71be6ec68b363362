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
#     assignment: 09-grouped-queries
# ---

# %% [markdown]
# # 09 · Sharing keys and values
#
# **One question: why do query heads share keys?**
#
# A model that writes keeps the keys and values of everything it has read. For a long text that is more memory than the
# model itself needs, and each new token has to fetch all of it. So the open models keep less: several heads of queries
# share one head of keys and values, or all of them share one small vector from which keys and values are made.
#
# You will build both, count what they save, and turn a layer that does not share into one that does. The page of the
# book that goes with this notebook is `book/09-grouped-queries`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `repeat_kv` | ●○○ | 10 | 2 |
# | `GroupedQueryAttention` | ●●○ | 25 | 6 |
# | `kv_cache_bytes` | ●○○ | 10 | 3 |
# | `pool_heads` | ●●○ | 15 | 4 |
# | `LatentAttention` | ●●● | 45 | 8 |
#
# ## Conventions
#
# They are those of every chapter.
#
# - **A mask is boolean, and `True` means "may attend".** A row that may attend to nothing gives zeros. `mask=None`
#   hides nothing: the layers of this notebook are not causal by themselves.
# - **Shapes** are written as jaxtyping writes them. Queries are `(batch, n_heads, n, d_head)`; keys and values are
#   `(batch, n_kv_heads, n, d_head)`.
# - **Who reads whom**: with `g = n_heads / n_kv_heads` heads of queries to a group, head `i` of the queries reads head
#   `i // g` of the keys and values. This is how LLaMA, Mistral and Qwen store their weights.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
#
# `F.scaled_dot_product_attention` is yours to use: you have built it before.

# %% role="set-up"
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def rotate(
    x: Float[Tensor, "... n d"], positions: Int[Tensor, " n"], theta: float = 10_000.0
) -> Float[Tensor, "... n d"]:
    """RoPE on interleaved pairs, as in chapter 03: channels 2i and 2i + 1 turn by position · theta^(−2i/d)."""
    turns = torch.outer(positions.double(), theta ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1]).double())
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(turns), turns)).flatten(-2).to(x.dtype)


# %% [markdown]
# ## 1 · `repeat_kv` ●○○
#
# The simplest way to let several heads of queries share one head of keys: copy it, as many times as there are heads in
# its group. Then everything is as before.
#
# `repeat_kv(x, n_rep)` takes keys or values `x` of shape `(..., n_kv_heads, n, d_head)` and returns
# `(..., n_kv_heads · n_rep, n, d_head)`. Head `i` of the result is head `i // n_rep` of `x`.
#
# - Any dtype; any number of dimensions before `n_kv_heads`, also none. `n_rep` is at least 1.
# - The trap: there are two orders in which copies can stand, and both give the right shape. A model whose heads read
#   the wrong keys raises no error; it only talks nonsense.


# %% exercise="repeat_kv" section="Groups"
def repeat_kv(x: Float[Tensor, "... n_kv_heads n d_head"], n_rep: int) -> Float[Tensor, "... n_heads n d_head"]:
    """Each head of keys or values n_rep times, so that head i of the result is head i // n_rep of x."""
    ### BEGIN SOLUTION
    return x.repeat_interleave(n_rep, dim=-3)
    ### END SOLUTION


# %% check="repeat_kv" points=2
x = torch.arange(12.0).reshape(1, 2, 3, 2)
repeated = repeat_kv(x, 3)
assert isinstance(repeated, torch.Tensor), f"repeat_kv should return a tensor, not {type(repeated).__name__}."
assert repeated.shape == (1, 6, 3, 2), (
    f"2 heads, each 3 times, are 6 heads: the shape should be (1, 6, 3, 2), not {tuple(repeated.shape)}."
)
assert torch.equal(repeated[:, 0], x[:, 0]), "Head 0 of the result should be head 0 of x."
assert torch.equal(repeated[:, 5], x[:, 1]), "The last head of the result should be the last head of x."
print("The visible checks of repeat_kv pass.")

# %% see="repeat_kv"
# Eight heads of queries, and the head of keys that each of them reads. Try other numbers that divide 8.
try:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(9, 2.8), width_ratios=(8, 4, 2, 1), facecolor="white")
    for ax, n_kv_heads in zip(axes, (8, 4, 2, 1), strict=True):
        heads = torch.arange(float(n_kv_heads))[:, None, None]
        reads = repeat_kv(heads, 8 // n_kv_heads).flatten().int()
        ax.imshow(reads[:, None] == torch.arange(n_kv_heads), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        ax.set(title=f"{n_kv_heads} to read", xticks=range(n_kv_heads), yticks=range(8))
    axes[0].set(xlabel="head of keys", ylabel="head of queries")
    fig.suptitle("Neighbours share: bright is read")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish repeat_kv first, then run this cell again.")

# %% [markdown]
# ## 2 · `GroupedQueryAttention` ●●○
#
# Now the layer. It is the multi-head attention of chapter 02 with fewer heads of keys and values. With
# `n_kv_heads = n_heads` it *is* multi-head attention (MHA); with `n_kv_heads = 1` it is multi-query attention (MQA);
# everything between is grouped-query attention (GQA).
#
# `GroupedQueryAttention(d_model, n_heads, n_kv_heads, d_head)` is an `nn.Module` without biases. Its state dict has
# exactly four entries, stored as `nn.Linear` stores its weight:
#
# | entry | shape |
# |---|---|
# | `q_proj.weight` | `(n_heads · d_head, d_model)` |
# | `k_proj.weight`, `v_proj.weight` | `(n_kv_heads · d_head, d_model)` |
# | `o_proj.weight` | `(d_model, n_heads · d_head)` |
#
# In each projection the channels of head 0 come first, then those of head 1, and so on. It takes `x` of shape
# `(batch, n, d_model)` and an optional boolean mask that broadcasts to `(batch, n_heads, n, n)`, and returns
# `(batch, n, d_model)`.
#
# - `d_head` is a number of its own: `n_heads · d_head` may be more or less than `d_model`, as in Qwen3 and GPT-OSS.
# - Head `i` of the queries reads head `i // (n_heads // n_kv_heads)` of the keys and values.
# - If `n_heads` is not divisible by `n_kv_heads`, creating the layer raises a `ValueError` whose sentence names both
#   numbers.
# - There are no positions and no dropout in it, and it keeps nothing from one call to the next. How you initialise the
#   weights is up to you.
#
# Call your `repeat_kv` by its name, or do without it. When this part is marked, ours stands in for it.


# %% exercise="GroupedQueryAttention" section="Grouped queries"
class GroupedQueryAttention(nn.Module):
    """Self-attention without biases in which groups of query heads share a head of keys and values.

    Raises ValueError if n_heads is not divisible by n_kv_heads.
    Source: Ainslie et al. 2023 (arXiv 2305.13245), section 2.2.
    """

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_head: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if n_heads % n_kv_heads:
            raise ValueError(f"n_heads ({n_heads}) must be divisible by n_kv_heads ({n_kv_heads}): groups are equal")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Bool[Tensor, "... n n"] | None = None
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position attends to those that the mask allows it."""
        ### BEGIN SOLUTION
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for proj in projections)
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))
        ### END SOLUTION


# %% check="GroupedQueryAttention" points=6
layer = GroupedQueryAttention(8, 4, 2, 6)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
expected_shapes = {
    "q_proj.weight": (24, 8),
    "k_proj.weight": (12, 8),
    "v_proj.weight": (12, 8),
    "o_proj.weight": (8, 24),
}
assert shapes == expected_shapes, f"The state dict should hold {expected_shapes}, and it holds {shapes}."
x = torch.randn(2, 5, 8)
out = layer(x)
assert isinstance(out, torch.Tensor), f"The layer should return a tensor, not {type(out).__name__}."
assert out.shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
first = torch.zeros(5, 5, dtype=torch.bool)
first[:, 0] = True  # every position sees position 0 and nothing else
assert torch.allclose(layer(x, first)[:, 4], layer(x, first)[:, 0], atol=1e-6), (
    "Where all positions may attend to position 0 alone, they should all get the same."
)
assert torch.allclose(layer(x.flip(1)).flip(1), out, atol=1e-5), (
    "There are no positions in this layer: if the text is turned round, the outputs should be the same, turned round."
)
try:
    GroupedQueryAttention(8, 4, 3, 6)
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("4", "3")), (
    "4 heads of queries make no equal groups for 3: this should raise a ValueError that names both numbers."
)
print("The visible checks of GroupedQueryAttention pass.")

# %% stand_in="GroupedQueryAttention"
import torch  # noqa: E402


def repeat_kv(x, n_rep):
    return torch.stack([x] * n_rep, -3).flatten(-4, -3)


# %% see="GroupedQueryAttention"
# What is learnt and what is kept, for a layer of the size of Llama 3 8B's: only keys and values shrink.
try:
    import matplotlib.pyplot as plt

    counts = {}
    for n_kv_heads in (32, 8, 1):
        with torch.device("meta"):  # shapes without numbers: nothing is allocated
            layer = GroupedQueryAttention(4096, 32, n_kv_heads, 128)
        counts[n_kv_heads] = {name[0]: weight.numel() / 1e6 for name, weight in layer.named_parameters()}
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    left = [0.0] * len(counts)
    for part, colour in zip("qokv", ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True):
        widths = [row[part] for row in counts.values()]
        ax.barh([f"{n} of k and v" for n in counts], widths, left=left, color=colour, label=f"{part}_proj")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    ax.set(xlabel="million numbers to learn", title="Sharing makes the layer smaller, too")
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.4, -0.75), frameon=False)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish GroupedQueryAttention first, then run this cell again.")

# %% [markdown]
# ## 3 · `kv_cache_bytes` ●○○
#
# How much is kept? In chapter 07 you were given the sizes. Now read them off the file `config.json` that comes with
# every open model, whose names are those of the library transformers.
#
# `kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16)` returns, as an int, the bytes that the cache of such a
# model takes for `batch` sequences of `length` positions, with each number stored as `dtype`.
#
# | entry of `config` | |
# |---|---|
# | `num_hidden_layers` | layers, each with a cache of its own |
# | `num_attention_heads` | heads of queries in a layer |
# | `num_key_value_heads` | heads of keys and values. Missing or `None`: as many as of queries |
# | `hidden_size` | `d_model` |
# | `head_dim` | `d_head`. Missing or `None`: `hidden_size // num_attention_heads` |
# | `kv_lora_rank` | numbers in a latent (part 5). Missing or `None`: the model keeps keys and values instead |
# | `qk_rope_head_dim` | numbers in the rotary key beside the latent |
#
# - A model with a latent keeps, for each position and layer, one latent and one rotary key, which all heads share, and
#   nothing else. Its file may still say something under `num_key_value_heads` and `head_dim`; that means nothing here.
# - Other entries mean nothing either. Windows, which bound the cache of some models, are chapter 10's.
# - `length` may be 0.


# %% exercise="kv_cache_bytes" section="The bytes of real models"
def kv_cache_bytes(config: dict[str, Any], length: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
    """The bytes that the cache of a published model takes, from its config.json."""
    ### BEGIN SOLUTION
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize
    ### END SOLUTION


# %% check="kv_cache_bytes" points=3
config: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 12}
size = kv_cache_bytes(config, 1)
assert isinstance(size, int), f"kv_cache_bytes should return an int, not a {type(size).__name__}."
assert size == 48, f"4 heads with a key and a value of 3 numbers each, of 2 bytes, take 48 bytes, not {size}."
size = kv_cache_bytes({**config, "num_key_value_heads": 2}, 1)
assert size == 24, f"With 2 heads of keys and values for 4 of queries it should be half, and it is {size}."
size = kv_cache_bytes({**config, "num_hidden_layers": 3}, 1)
assert size == 144, f"With 3 layers instead of 1 it should be three times as much, 144 bytes, and it is {size}."
print("The visible checks of kv_cache_bytes pass.")

# %% see="kv_cache_bytes"
# Sizes from the models' own config.json. How many tokens of text fill 24 GB with their cache alone?
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 2 7B": {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096},
    "Llama 2 70B": {
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "hidden_size": 8192,
    },
    "Llama 3 8B": {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096},
    "Qwen2.5 7B": {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584},
    "DeepSeek-V3": {
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "hidden_size": 7168,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
    },
}
try:
    for name, config in CONFIGS.items():
        size = kv_cache_bytes(config, 1)
        print(f"{name:12} {size / 1024:7,.1f} KiB a token, {24e9 / size:9,.0f} tokens in 24 GB")
except NotImplementedError:
    print("Finish kv_cache_bytes first, then run this cell again.")

# %% [markdown]
# ## 4 · `pool_heads` ●●○
#
# Must a model be trained anew to share? Not from the start. Take one that does not share, put in the place of each
# group of keys (and of values) the *mean* of its heads, and train it a little longer.
#
# `pool_heads(state, n_heads, n_kv_heads)` takes the state dict of a layer, or of a whole model, that has `n_heads`
# heads of keys and values, and returns the state dict of one that has `n_kv_heads`.
#
# - An entry is pooled if the last part but one of its name is `k_proj` or `v_proj`: `k_proj.weight`, and also
#   `blocks.3.attention.v_proj.bias`. Weights have the shape `(n_heads · d_head, …)`, biases `(n_heads · d_head,)`; the
#   result has `(n_kv_heads · d_head, …)` and `(n_kv_heads · d_head,)`.
# - New head `j` is the mean of the heads that its group's queries used to read: `j·g` to `j·g + g − 1`, with
#   `g = n_heads / n_kv_heads`. Within a head, channel stays with channel.
# - All other entries are in the result as they were. The order of the entries does not matter.
# - The caller's dict and its tensors are not changed. Each result has the dtype of what it comes from, and in float64
#   its precision too.
# - If `n_heads` is not divisible by `n_kv_heads`, it raises a `ValueError` whose sentence names both numbers.


# %% exercise="pool_heads" section="A trained model can learn to share"
def pool_heads(state: dict[str, Tensor], n_heads: int, n_kv_heads: int) -> dict[str, Tensor]:
    """The state dict of a model with n_kv_heads heads of keys and values: each the mean of a group of n_heads.

    Raises ValueError if n_heads is not divisible by n_kv_heads.
    Source: Ainslie et al. 2023 (arXiv 2305.13245), section 2.1.
    """
    ### BEGIN SOLUTION
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads} in equal groups")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled
    ### END SOLUTION


# %% check="pool_heads" points=4
state = {"q_proj.weight": torch.randn(8, 3), "k_proj.weight": torch.randn(8, 3), "v_proj.weight": torch.randn(8, 3)}
pooled = pool_heads(state, 4, 2)
assert isinstance(pooled, dict), f"pool_heads should return a dict, not a {type(pooled).__name__}."
assert set(pooled) == set(state), f"The result should have the entries of state, and it has {sorted(pooled)}."
assert pooled["k_proj.weight"].shape == (4, 3), (
    f"4 heads of 2 rows pooled to 2 heads are 4 rows: (4, 3), not {tuple(pooled['k_proj.weight'].shape)}."
)
assert torch.equal(pooled["q_proj.weight"], state["q_proj.weight"]), "The queries should stay as they are."
assert torch.allclose(pooled["v_proj.weight"][0], (state["v_proj.weight"][0] + state["v_proj.weight"][2]) / 2), (
    "Row 0 of the pooled values should be the mean of row 0 of head 0 and row 0 of head 1."
)
print("The visible checks of pool_heads pass.")

# %% [markdown]
# A small model is trained with 8 heads of keys, then changed to 2 and trained a little longer. Three ways to get the 2:
# the mean of each group, the first head of each, or heads drawn at random.
#
# Before you run it: which of the three will do worst, and how long will it need to catch up?

# %% see="pool_heads"
try:
    pool_heads({}, 8, 2)  # before anything is trained for nothing
    import os

    import matplotlib.pyplot as plt

    from ichimon import corpus, train

    class Small(nn.Module):
        """One layer of attention with learned positions, and a feed-forward layer."""

        def __init__(self, n_kv_heads: int, d_model: int = 64, length: int = 64) -> None:
            super().__init__()
            self.tokens = nn.Embedding(corpus.VOCABULARY, d_model)
            self.places = nn.Embedding(length, d_model)
            self.attention = GroupedQueryAttention(d_model, 8, n_kv_heads, 8)
            self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
            self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
            nn.init.normal_(self.tokens.weight, std=0.1)
            nn.init.normal_(self.places.weight, std=0.1)

        def forward(self, ids: Tensor) -> Tensor:
            n = ids.shape[1]
            x = self.tokens(ids) + self.places.weight[:n]
            x = x + self.attention(self.norms[0](x), torch.ones(n, n, dtype=torch.bool).tril())
            x = x + self.mlp(self.norms[1](x))
            return self.norms[2](x) @ self.tokens.weight.T

    fast = os.environ.get("ICHIMON_FAST") == "1"
    steps, looks = (10, 1) if fast else (400, 4)
    texts = {split: corpus.tokens(corpus.PROSE, split) for split in ("train", "validation")}
    batches = train.windows(texts["train"], batch=16, length=64)
    unseen = train.windows(texts["validation"], batch=32, length=64)
    torch.manual_seed(0)
    whole = Small(8)
    train.fit(whole, batches, train.Settings(steps=steps, lr=5e-3, warmup=steps // 10, device="cpu"), quiet=True)
    before = train.evaluate(whole, unseen, looks)
    old = whole.state_dict()
    starts = {"mean": pool_heads(old, 8, 2)}
    firsts = {
        name: value.unflatten(0, (2, 4, -1))[:, 0].flatten(0, 1)
        for name, value in old.items()
        if name[10:] in ("k_proj.weight", "v_proj.weight")
    }
    starts["first head"] = {**old, **firsts}
    starts["random"] = {**old, **{name: value.std() * torch.randn_like(value) for name, value in firsts.items()}}
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    for (way, state), style in zip(starts.items(), ("o-", "s--", "^:"), strict=True):
        model = Small(2)
        model.load_state_dict(state)
        curve = [train.evaluate(model, unseen, looks)]
        for i in range(4):
            more = train.Settings(steps=max(2, steps // 80), lr=1e-3, final_lr=1.0, seed=i + 1, device="cpu")
            train.fit(model, train.windows(texts["train"], batch=16, length=64, seed=i + 1), more, quiet=True)
            curve.append(train.evaluate(model, unseen, looks))
        ax.plot(range(0, 4 * more.steps + 1, more.steps), curve, style, label=way)
    ax.axhline(before, color="grey", label="8 heads, before")
    ax.set(xlabel="further steps", ylabel="loss on unseen text", title="Three ways to share, trained on")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish GroupedQueryAttention and pool_heads first, then run this cell again.")
except ImportError:
    print("This cell needs the package ichimon: run the notebook inside the course's folder.")

# %% [markdown]
# ## 5 · `LatentAttention` ●●●
#
# DeepSeek's *multi-head latent attention* keeps all heads and still keeps less. From each position it keeps one short
# vector, the **latent**, which all heads share; every head makes its own keys and values from it. Positions are the
# difficulty: a key that is turned by its position cannot be made from a latent that serves every query. So each head
# has two kinds of channels: `d_nope` that know no position, and `d_rope` that are rotated. The rotated part of the key
# is made straight from `x`, once for all heads.
#
# `LatentAttention(d_model, n_heads, q_rank=…, kv_rank=…, d_nope=…, d_rope=…, d_v=…, rope_theta=10_000.0)` is an
# `nn.Module` without biases. Its state dict has exactly these entries, stored as `nn.Linear` and `nn.RMSNorm` store
# them (in brackets: DeepSeek's names):
#
# | entry | shape | what it makes |
# |---|---|---|
# | `q_down.weight` (q_a_proj) | `(q_rank, d_model)` | the queries' latent, from `x` |
# | `q_norm.weight` (q_a_layernorm) | `(q_rank,)` | its RMSNorm |
# | `q_up.weight` (q_b_proj) | `(n_heads · (d_nope + d_rope), q_rank)` | the queries, from the normalised latent |
# | `kv_down.weight` (kv_a_proj_with_mqa) | `(kv_rank + d_rope, d_model)` | the latent, then the rotary key, from `x` |
# | `kv_norm.weight` (kv_a_layernorm) | `(kv_rank,)` | the RMSNorm of the latent, and of it alone |
# | `kv_up.weight` (kv_b_proj) | `(n_heads · (d_nope + d_v), kv_rank)` | keys and values, from the normalised latent |
# | `o_proj.weight` | `(d_model, n_heads · d_v)` | the output, from all heads side by side |
#
# Where heads lie side by side, all channels of head 0 come first. Within a head of `q_up`, the `d_nope` channels
# without position come first, then the `d_rope` that are rotated. Within a head of `kv_up`, the `d_nope` channels of
# the key come first, then the `d_v` of the value.
#
# - The key of a head is its own `d_nope` channels and then the rotary key, which is the same for all heads. Both its
#   part and the query's last `d_rope` channels are rotated by their positions: `rotate(x, positions, theta)` from the
#   set-up cell does it, on `x` of shape `(..., n, d_rope)`.
# - Scores are divided by the root of the whole width of a query, `d_nope + d_rope`. `d_v` may be another number.
# - Both norms are `nn.RMSNorm` with an epsilon of 1e-6.
#
# `forward(x, mask=None, kept=None)` takes `x` of shape `(batch, n, d_model)` and returns **two** things: the output, of
# the shape of `x`, and what has to be kept of all positions so far.
#
# - What is kept is one tensor of shape `(batch, length, kv_rank + d_rope)`, of the dtype of `x`: that is all the memory
#   that this layer needs. In which form you keep it there is your affair.
# - `kept=None` starts a text: its positions are 0 to `n − 1`, and `length` is `n`. Otherwise `kept` is what an earlier
#   call returned: `x` goes on behind it, its positions start at the old `length`, and it may attend to the old
#   positions as well. The layer itself keeps nothing between calls, and `kept` is not changed.
# - `mask` is boolean and broadcasts to `(batch, n_heads, n, length)`, with the new `length`.
# - So under causal masks a text gives the same outputs whether it comes whole, in chunks, or token by token.


# %% exercise="LatentAttention" section="Latent attention"
class LatentAttention(nn.Module):
    """DeepSeek's multi-head latent attention, without biases.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        q_rank: int,
        kv_rank: int,
        d_nope: int,
        d_rope: int,
        d_v: int,
        rope_theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads, self.theta = n_heads, rope_theta
        self.kv_rank, self.d_nope, self.d_rope, self.d_v = kv_rank, d_nope, d_rope, d_v
        self.q_down = nn.Linear(d_model, q_rank, bias=False)
        self.q_norm = nn.RMSNorm(q_rank, eps=1e-6)
        self.q_up = nn.Linear(q_rank, n_heads * (d_nope + d_rope), bias=False)
        self.kv_down = nn.Linear(d_model, kv_rank + d_rope, bias=False)
        self.kv_norm = nn.RMSNorm(kv_rank, eps=1e-6)
        self.kv_up = nn.Linear(kv_rank, n_heads * (d_nope + d_v), bias=False)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch n d_model"],
        mask: Bool[Tensor, "... n length"] | None = None,
        kept: Float[Tensor, "batch past kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch n d_model"], Float[Tensor, "batch length kept"]]:
        """The output, and what to keep of all positions so far."""
        ### BEGIN SOLUTION
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, k_rope = self.kv_down(x).split([self.kv_rank, self.d_rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(k_rope, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)

        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split([self.d_nope, self.d_rope], -1)
        latent, k_rope = kept.split([self.kv_rank, self.d_rope], -1)
        k_nope, v = (
            self.kv_up(latent).unflatten(-1, (self.n_heads, -1)).transpose(1, 2).split([self.d_nope, self.d_v], -1)
        )
        q = torch.cat([q_nope, rotate(q_rope, positions, self.theta)], -1)
        k = torch.cat([k_nope, k_rope[:, None].expand(-1, self.n_heads, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept
        ### END SOLUTION


# %% check="LatentAttention" points=8
sizes = {"q_rank": 7, "kv_rank": 5, "d_nope": 3, "d_rope": 2, "d_v": 4}
layer = LatentAttention(8, 2, **sizes)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
expected_shapes = {
    "q_down.weight": (7, 8),
    "q_norm.weight": (7,),
    "q_up.weight": (10, 7),
    "kv_down.weight": (7, 8),
    "kv_norm.weight": (5,),
    "kv_up.weight": (14, 5),
    "o_proj.weight": (8, 8),
}
assert shapes == expected_shapes, f"The state dict should hold {expected_shapes}, and it holds {shapes}."
x = torch.randn(2, 5, 8)
with torch.no_grad():
    answer = layer(x, torch.ones(5, 5, dtype=torch.bool).tril())
    assert isinstance(answer, tuple), f"forward should return a tuple (output, kept), not a {type(answer).__name__}."
    assert len(answer) == 2, f"forward should return a tuple (output, kept), and this one has {len(answer)} parts."
    whole, kept = answer
    assert whole.shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(whole.shape)}."
    assert kept.shape == (2, 5, 7), f"5 positions with 5 + 2 numbers each should be kept, not {tuple(kept.shape)}."
    first, kept = layer(x[:, :4], torch.ones(4, 4, dtype=torch.bool).tril())
    last, kept = layer(x[:, 4:], None, kept)
assert torch.allclose(first, whole[:, :4], atol=1e-5), (
    "Under a causal mask the first four positions should give the same with and without position 4 behind them."
)
assert torch.allclose(last, whole[:, 4:], atol=1e-5), (
    f"Position 4 behind what was kept of four others should give what it gives in the whole text, and differs by up to "
    f"{(last - whole[:, 4:]).abs().max():.2g}."
)
print("The visible checks of LatentAttention pass.")

# %% see="LatentAttention"
# A text of 24 tokens, in chunks of several sizes. What remains of a difference is rounding.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    layer = LatentAttention(64, 8, q_rank=48, kv_rank=32, d_nope=8, d_rope=4, d_v=8)
    x, causal = torch.randn(1, 24, 64), torch.ones(24, 24, dtype=torch.bool).tril()
    gaps = []
    with torch.no_grad():
        whole, kept = layer(x, causal)
        for size in (1, 2, 3, 5, 8, 12, 24):
            outputs, past = [], None
            for start in range(0, 24, size):
                end = min(start + size, 24)
                output, past = layer(x[:, start:end], causal[start:end, :end], past)
                outputs.append(output)
            gaps.append((torch.cat(outputs, 1) - whole).abs().max().item())
    fig, ax = plt.subplots(figsize=(6, 2.8), facecolor="white")
    ax.bar([str(size) for size in (1, 2, 3, 5, 8, 12, 24)], [gap + 1e-9 for gap in gaps], color="#0072B2")
    ax.axhline(whole.abs().mean().item(), color="#D55E00", linestyle="--", label="size of an output")
    ax.set(yscale="log", ylim=(1e-9, 10), xlabel="tokens a chunk", ylabel="largest difference")
    ax.set(title=f"{kept.shape[-1]} numbers a token are enough; MHA would keep {2 * 8 * 8}")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LatentAttention first, then run this cell again.")

# %% [markdown]
# ## The same layer, in DeepSeek's own form
#
# The library transformers has DeepSeek-V3's attention as it was published. Below, a small one is given random weights,
# and yours is given the same. If you see a difference of about a millionth, you have built what runs in DeepSeek-V3.

# %% see="LatentAttention"
try:
    mine = LatentAttention(32, 4, q_rank=24, kv_rank=20, d_nope=6, d_rope=4, d_v=5)
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    torch.manual_seed(0)
    config = DeepseekV3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=24,
        kv_lora_rank=20,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=5,
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(config, 0).eval()
    names = {
        "q_a_proj": "q_down",
        "q_a_layernorm": "q_norm",
        "q_b_proj": "q_up",
        "kv_a_proj_with_mqa": "kv_down",
        "kv_a_layernorm": "kv_norm",
        "kv_b_proj": "kv_up",
        "o_proj": "o_proj",
    }
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
        state = {f"{names[name[:-7]]}.weight": value for name, value in theirs.state_dict().items()}
        mine.load_state_dict(state)
        x, n = torch.randn(2, 50, 32), 50
        position_embeddings = DeepseekV3RotaryEmbedding(config)(x, torch.arange(n)[None])
        future = torch.full((n, n), -math.inf).triu(1)[None, None]
        expected = theirs(x, position_embeddings, future)[0]
        difference = (mine(x, future[0, 0] == 0)[0] - expected).abs().max()
    print(f"The largest difference is {difference:.1e}, where outputs spread by {expected.std():.2f}.")
except NotImplementedError:
    print("Finish LatentAttention first, then run this cell again.")
except ImportError:
    print("This cell needs the package transformers (%pip install transformers); nothing else here does.")

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they try other shapes and group sizes, masks of every
# form, rows that may attend to nothing, other dtypes, gradients, and the laws that hold whatever the numbers are; and
# they hold your latent attention against DeepSeek's. Each exercise is marked by itself, and every test that passes
# counts.
#
# Before you hand in, run `python -m ichimon check 09-grouped-queries.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
