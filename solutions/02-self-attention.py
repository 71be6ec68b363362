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
#     assignment: 02-self-attention
# ---

# %% [markdown]
# # 02 · Self-attention
#
# **One question: how does a word look at the words around it?**
#
# *Hashi* is a bridge (橋) in one sentence and chopsticks (箸) in the next. Written in kana (はし) it enters a model as
# the same vector both times. Self-attention is how it can leave as two different ones: every position compares itself
# with the others, decides how much each of them matters, and takes the weighted mean of what they offer.
#
# You will build it in five parts, and at the end train a model that can do one thing only because of them. The page of
# the book that goes with this notebook is `book/02-self-attention`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `causal_mask` | ●○○ | 5 | 3 |
# | `attention` | ●●○ | 30 | 7 |
# | `split_heads` | ●●○ | 10 | 2 |
# | `merge_heads` | ●○○ | 5 | 2 |
# | `MultiHeadAttention` | ●●● | 25 | 6 |
#
# ## Conventions
#
# They are said once, here, and kept in every chapter.
#
# - **A mask is boolean, and `True` means "may attend".** `F.scaled_dot_product_attention` reads it the same way.
#   Beware: in `nn.MultiheadAttention` `True` means the opposite, "may not attend".
# - **A row that may attend to nothing gives zeros**, in the output and in the gradients. Never NaN.
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "... n_q d_head"]` is a tensor of floats whose last
#   two dimensions are `n_q` and `d_head`. The dots stand for any number of dimensions before them: batch and heads, or
#   none.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.

# %% role="set-up"
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `causal_mask` ●○○
#
# A language model learns by predicting each token from those before it, at all positions at once. If a position could
# look ahead, it would copy the answer and learn nothing. The causal mask is what forbids it.
#
# `causal_mask(n)` returns a boolean tensor of shape `(n, n)`. Entry `[i, j]` is `True` where position `i` may attend to
# position `j`: to itself and to everything before it.
#
# - `n` is at least 1.
# - The trap: a position that may not even see itself has nothing to look at when it is the first.


# %% exercise="causal_mask" section="No looking ahead"
def causal_mask(n: int) -> Bool[Tensor, "n n"]:
    """Entry [i, j] is True where position i may attend to position j: to itself and to the past.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.
    """
    ### BEGIN SOLUTION
    return torch.ones(n, n, dtype=torch.bool).tril()
    ### END SOLUTION


# %% check="causal_mask" points=3
mask = causal_mask(4)
assert isinstance(mask, torch.Tensor), f"causal_mask should return a tensor, not {type(mask).__name__}."
assert mask.shape == (4, 4), f"causal_mask(4) should have 4 rows and 4 columns, not the shape {tuple(mask.shape)}."
assert mask.dtype == torch.bool, f"The mask should hold booleans, not {mask.dtype}."
assert mask[3, 0], "Position 3 comes after position 0, so it may look at it: mask[3, 0] should be True."
assert not mask[0, 3], "Position 0 comes before position 3, so it may not look at it: mask[0, 3] should be False."
print("The visible checks of causal_mask pass.")

# %% see="causal_mask"
# Each row is a word that looks, each column a word that it may (yellow) or may not (blue) see. Try your own sentence.
try:
    import matplotlib.pyplot as plt

    words = ["the", "cat", "sat", "on", "the", "mat"]
    fig, ax = plt.subplots(figsize=(4, 4), facecolor="white")
    ax.imshow(causal_mask(len(words)), cmap="cividis", vmin=0, vmax=1)
    ax.set_xticks(range(len(words)), words)
    ax.set_yticks(range(len(words)), words)
    ax.set(xlabel="may be seen", ylabel="looks", title="Every word sees itself and the past")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish causal_mask first, then run this cell again.")

# %% [markdown]
# ## 2 · `attention` ●●○
#
# This is the heart of every Transformer. Each query is compared with every key; the comparison decides how much of each
# value goes into the output:
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_\text{head}}}\right) V$$
#
# The softmax runs over the keys, so that the weights of one query sum to 1. With a mask, a weight may be above zero
# only where the mask is `True`, and the weights that are left still sum to 1.
#
# | argument | shape | |
# |---|---|---|
# | `q` | `(..., n_q, d_head)` | float32, float64 or bfloat16; `k` and `v` have the same dtype |
# | `k` | `(..., n_k, d_head)` | `n_k` may differ from `n_q` |
# | `v` | `(..., n_k, d_v)` | `d_v` may differ from `d_head` |
# | `mask` | broadcasts to `(..., n_q, n_k)` | `True` means "may attend"; `None`: every query may attend to every key |
# | result | `(..., n_q, d_v)` | same dtype as `v` |
#
# - A query whose row of the mask holds no `True` gives a row of zeros, and no gradient is NaN because of it.
# - Large scores give finite results, also when one query's are around 10⁴ and its neighbour's around −10⁴.
# - The trap: the mask belongs *before* the softmax. What is removed after it leaves weights that no longer sum to 1.
#
# `F.scaled_dot_product_attention`, `nn.MultiheadAttention` and `F.multi_head_attention_forward` raise an error while
# your work is marked: building them is the exercise.


# %% exercise="attention" section="From closeness to shares: softmax"
def attention(
    q: Float[Tensor, "... n_q d_head"],
    k: Float[Tensor, "... n_k d_head"],
    v: Float[Tensor, "... n_k d_v"],
    mask: Bool[Tensor, "... n_q n_k"] | None = None,
) -> Float[Tensor, "... n_q d_v"]:
    """Scaled dot-product attention. True in the mask means "may attend"; a row without any True gives zeros.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
    """
    ### BEGIN SOLUTION
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)  # the softmax of a row of −inf is NaN
    return weights @ v
    ### END SOLUTION


# %% check="attention" points=7
q, k, v = torch.zeros(1, 3, 4), torch.randn(1, 5, 4), torch.randn(1, 5, 2)
out = attention(q, k, v)
assert isinstance(out, torch.Tensor), f"attention should return a tensor, not {type(out).__name__}."
assert out.shape == (1, 3, 2), f"3 queries and values of width 2 should give (1, 3, 2), not {tuple(out.shape)}."
assert torch.allclose(out, v.mean(-2, keepdim=True).expand(1, 3, 2), atol=1e-5), (
    "A query of zeros scores every key alike, so its output should be the plain mean of the values."
)
q, k = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[math.log(3), 0, 0, 0], [0, 0, 0, 0]])
out = attention(q, k, torch.eye(2))  # with the identity as values the output is the weights
assert torch.allclose(out, torch.tensor([[0.75, 0.25]]), atol=1e-5), (
    f"Scores of ln 3 and 0 should give the weights 0.75 and 0.25, not {[round(w, 3) for w in out.flatten().tolist()]}. "
    "Here q·k is 2 ln 3 and d_head is 4."
)
out = attention(q, k, torch.eye(2), mask=torch.tensor([[False, True]]))
assert torch.allclose(out, torch.tensor([[0.0, 1.0]]), atol=1e-5), (
    "Where only the second key may be seen, the output should be the second value."
)
print("The visible checks of attention pass.")

# %% see="attention"
# A query turns past four keys; with the identity as values, the output shows the weights. Long queries choose, short
# ones blend. Try other lengths, or move a key.
try:
    import matplotlib.pyplot as plt

    degrees = torch.arange(0.0, 361, 2)
    query = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], -1)
    key_degrees = torch.tensor([45.0, 135, 225, 315])
    keys = torch.stack([key_degrees.deg2rad().cos(), key_degrees.deg2rad().sin()], -1)
    fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, facecolor="white")
    for ax, length in zip(axes, (1, 10), strict=True):
        weights = attention(length * query, keys, torch.eye(4))
        styles = zip(("#0072B2", "#E69F00", "#009E73", "#CC79A7"), ("-", "--", "-.", ":"), strict=True)
        for i, (color, style) in enumerate(styles):
            ax.plot(degrees, weights[:, i], style, color=color, label=f"key at {key_degrees[i]:.0f}°")
        ax.set(title=f"query of length {length}", xlabel="direction of the query (°)", xticks=range(0, 361, 90))
    axes[0].set(ylabel="weight", ylim=(-0.03, 1.03))
    axes[0].legend(fontsize=8, loc="upper center", ncols=2)
    fig.suptitle("Attention is a soft look-up: the nearest key weighs most")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish attention first, then run this cell again.")

# %% [markdown]
# ## 3 · `split_heads` ●●○
#
# One attention gives each position one set of weights, so it can look for one kind of thing at a time. Several *heads*
# look for several: each gets its own share of the channels and its own weights.
#
# `split_heads(x, n_heads)` takes `x` of shape `(..., n, d_model)` and returns `(..., n_heads, n, d_head)`, where
# `d_head = d_model / n_heads`.
#
# - Head 0 gets the first `d_head` channels of every position, head 1 the next `d_head`, and so on.
# - You may rely on `d_model` being divisible by `n_heads`.
# - Any dtype; any number of dimensions before `n`, also none.
# - The trap: the right shape is not yet the right layout. After a wrong split every shape fits, the model trains,
#   and a "head" is a patchwork of several positions.


# %% exercise="split_heads" section="Several heads"
def split_heads(x: Shaped[Tensor, "... n d_model"], n_heads: int) -> Shaped[Tensor, "... n_heads n d_head"]:
    """Give each head its own block of d_head = d_model / n_heads neighbouring channels."""
    ### BEGIN SOLUTION
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)
    ### END SOLUTION


# %% check="split_heads" points=2
x = torch.arange(24).reshape(1, 4, 6)  # position t, channel c holds 6t + c
heads = split_heads(x, 2)
assert isinstance(heads, torch.Tensor), f"split_heads should return a tensor, not {type(heads).__name__}."
assert heads.shape == (1, 2, 4, 3), f"2 heads of 4 positions and 3 channels are (1, 2, 4, 3), not {tuple(heads.shape)}."
assert heads[0, 0, 0].tolist() == [0, 1, 2], (
    f"At position 0, head 0 should hold the channels [0, 1, 2], not {heads[0, 0, 0].tolist()}."
)
print("The visible checks of split_heads pass.")

# %% see="split_heads"
# Position 2, channel 5 is written "25"; the colour is the channel.
try:
    import matplotlib.pyplot as plt

    x = 10 * torch.arange(4)[:, None] + torch.arange(6)
    heads = split_heads(x[None], 3)[0]
    fig, axes = plt.subplots(1, 4, figsize=(8, 2.6), width_ratios=(6, 2, 2, 2), facecolor="white")
    for ax, part, title in zip(axes, (x, *heads), ("before", "head 0", "head 1", "head 2"), strict=True):
        ax.imshow(part % 10, cmap="Pastel1", vmin=0, vmax=8)
        for t, row in enumerate(part.tolist()):
            for c, label in enumerate(row):
                ax.text(c, t, f"{label:02d}", ha="center", va="center")
        ax.set(title=title, xticks=[], yticks=[])
    axes[0].set(xlabel="channel", ylabel="position")
    fig.suptitle("Each head takes its channels from every position")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish split_heads first, then run this cell again.")

# %% [markdown]
# ## 4 · `merge_heads` ●○○
#
# The way back. After every head has done its work, their channels are put side by side again.
#
# `merge_heads(x)` takes `x` of shape `(..., n_heads, n, d_head)` and returns `(..., n, n_heads · d_head)`.
#
# - It undoes `split_heads`: at every position the channels of head 0 come first, then those of head 1, and so on.
# - Any dtype; any number of dimensions before `n_heads`, also none.
# - The trap is the same as before, and published code has fallen into it and trained all the same.


# %% exercise="merge_heads" section="Several heads"
def merge_heads(x: Shaped[Tensor, "... n_heads n d_head"]) -> Shaped[Tensor, "... n d_model"]:
    """Put the heads' channels side by side again: the inverse of split_heads."""
    ### BEGIN SOLUTION
    return x.transpose(-3, -2).flatten(-2)
    ### END SOLUTION


# %% check="merge_heads" points=2
x = torch.arange(24).reshape(1, 2, 4, 3)  # head h, position t, channel c holds 12h + 3t + c
merged = merge_heads(x)
assert isinstance(merged, torch.Tensor), f"merge_heads should return a tensor, not {type(merged).__name__}."
assert merged.shape == (1, 4, 6), (
    f"2 heads of 4 positions and 3 channels merge to (1, 4, 6), not {tuple(merged.shape)}."
)
assert merged[0, 0, :3].tolist() == [0, 1, 2], (
    f"Position 0 should begin with head 0's channels [0, 1, 2], not {merged[0, 0, :3].tolist()}."
)
print("The visible checks of merge_heads pass.")

# %% see="merge_heads"
# The colour is the head, the number is head, position and channel: "120" is head 1, position 2, channel 0.
try:
    import matplotlib.pyplot as plt

    x = 100 * torch.arange(3)[:, None, None] + 10 * torch.arange(4)[:, None] + torch.arange(2)
    merged = merge_heads(x[None])[0]
    fig, axes = plt.subplots(1, 4, figsize=(8, 2.6), width_ratios=(2, 2, 2, 6), facecolor="white")
    for ax, part, title in zip(axes, (*x, merged), ("head 0", "head 1", "head 2", "merged"), strict=True):
        ax.imshow(part // 100, cmap="Pastel1", vmin=0, vmax=8)
        for t, row in enumerate(part.tolist()):
            for c, label in enumerate(row):
                ax.text(c, t, f"{label:03d}", ha="center", va="center", fontsize=8)
        ax.set(title=title, xticks=[], yticks=[])
    axes[0].set(xlabel="channel", ylabel="position")
    fig.suptitle("Every position gets one block from each head")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish merge_heads first, then run this cell again.")

# %% [markdown]
# ## 5 · `MultiHeadAttention` ●●●
#
# Now the whole layer. In *self*-attention queries, keys and values all come from the same `x`, each through a learned
# projection of its own. The heads attend side by side, and a last projection mixes what they found.
#
# `MultiHeadAttention(d_model, n_heads)` is an `nn.Module` whose state dict has exactly four entries, each of shape
# `(d_model, d_model)`, and no biases:
#
# `q_proj.weight` · `k_proj.weight` · `v_proj.weight` · `o_proj.weight`
#
# They are stored as `nn.Linear` stores its weight. How you initialise them is up to you.
#
# It takes `x` of shape `(batch, n, d_model)` and an optional mask that broadcasts to `(batch, n_heads, n, n)`, and
# returns `(batch, n, d_model)`. So a mask of shape `(n, n)` serves all, and one that differs between the sequences of a
# batch is `(batch, 1, n, n)`.
#
# - `mask=None` means no mask. The layer is not causal by itself.
# - If `d_model` is not divisible by `n_heads`, creating the layer raises a `ValueError` whose sentence names both
#   numbers.
# - There is no dropout: training and evaluation give the same result.
# - The trap: each head works with `d_head` channels, and that is the *d* whose root divides its scores.
#
# Call your `attention`, `split_heads` and `merge_heads` by their names. When this part is marked, PyTorch's own parts
# stand in for them, so that a mistake above costs nothing here.


# %% exercise="MultiHeadAttention" section="The mathematics"
class MultiHeadAttention(nn.Module):
    """Multi-head self-attention without biases.

    Raises ValueError if d_model is not divisible by n_heads.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads}): heads share it equally")
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Bool[Tensor, "... n n"] | None = None
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position attends to those that the mask allows it."""
        ### BEGIN SOLUTION
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))
        ### END SOLUTION


# %% check="MultiHeadAttention" points=6
layer = MultiHeadAttention(8, 2)
names = {f"{letter}_proj.weight" for letter in "qkvo"}
assert set(layer.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(layer.state_dict())}."
)
for name, weight in layer.state_dict().items():
    assert weight.shape == (8, 8), f"With d_model 8 {name} should have the shape (8, 8), not {tuple(weight.shape)}."
x = torch.randn(1, 4, 8)
assert layer(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(layer(x).shape)}."
)
layer = MultiHeadAttention(8, 1)
layer.load_state_dict({name: torch.eye(8) for name in names})  # four projections that change nothing
assert torch.allclose(layer(x), F.scaled_dot_product_attention(x, x, x), atol=1e-5), (
    "With one head and projections that change nothing, the layer should be attention of x with itself."
)
layer = MultiHeadAttention(16, 2)
layer.load_state_dict({name: torch.eye(16) for name in names})
twice = torch.cat([x, x], -1)  # both heads get the same
assert torch.allclose(layer(twice), F.scaled_dot_product_attention(x, x, twice), atol=1e-5), (
    "With two heads that both get x, each should give what one head gave, and the two stand side by side."
)
try:
    MultiHeadAttention(8, 3)
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("8", "3")), (
    "3 heads cannot share 8 channels: MultiHeadAttention(8, 3) should raise a ValueError that names both numbers."
)
print("The visible checks of MultiHeadAttention pass.")

# %% stand_in="MultiHeadAttention"
import torch  # noqa: E402


def attention(q, k, v, mask=None, pytorchs=torch.nn.functional.scaled_dot_product_attention):
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"attention takes a boolean mask, not {mask.dtype}")
    return pytorchs(q, k, v, attn_mask=mask)


def split_heads(x, n_heads):
    return torch.stack(x.chunk(n_heads, -1), -3)


def merge_heads(x):
    return torch.cat(x.unbind(-3), -1)


# %% see="MultiHeadAttention"
# One position changes: who notices? Bright means that the output in that row moved. Where is the layer blind?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    n, d_model = 8, 32
    layer = MultiHeadAttention(d_model, n_heads=4)
    x = torch.randn(1, n, d_model)
    changed = x.repeat(n, 1, 1)
    changed[torch.arange(n), torch.arange(n)] = torch.randn(n, d_model)  # in copy j, position j is another one
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), facecolor="white")
    for ax, mask, title in zip(axes, (None, causal_mask(n)), ("no mask", "causal mask"), strict=True):
        moved = (layer(changed, mask) - layer(x, mask)).norm(dim=-1).detach()
        ax.imshow(moved.T, cmap="cividis", vmin=0)
        ax.set(title=title, xlabel="position that changed", ylabel="position that notices")
    fig.suptitle("With a causal mask nobody notices a change in the future")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish all five parts first, then run this cell again.")

# %% [markdown]
# ## What attention is for
#
# Read this and answer: *k = 3, f = 1, q = 8, b = 5, f = ?*
#
# You looked for the earlier *f* and took what stood beside it. That is recall, and it needs a look at another position,
# chosen by content. Below, a model learns it that has nothing but your layer between embedding and read-out. Its twin
# may attend only to itself.
#
# Before you run it: what accuracy will the twin reach, with ten digits to choose from?


# %% see="MultiHeadAttention"
class Recall(nn.Module):
    """Embeds (letter, digit) pairs, applies one attention layer, and reads the answer off the last position."""

    def __init__(self, d_model: int = 64, n_heads: int = 2) -> None:
        super().__init__()
        self.letter = nn.Embedding(26, d_model)
        self.digit = nn.Embedding(11, d_model)  # the eleventh digit is the question mark
        self.attention = MultiHeadAttention(d_model, n_heads)
        self.read_out = nn.Linear(d_model, 10)

    def embed(self, letters: Tensor, digits: Tensor) -> Tensor:
        return self.letter(letters) + self.digit(digits)

    def forward(self, letters: Tensor, digits: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.read_out(self.attention(self.embed(letters, digits), mask)[:, -1])


def draw(batch: int, n_pairs: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs with different letters, then one of the letters again with a question mark; and the answer."""
    letters = torch.rand(batch, 26).argsort(-1)[:, :n_pairs]
    digits = torch.randint(10, (batch, n_pairs))
    asked = torch.randint(n_pairs, (batch, 1))
    letter, answer = letters.gather(1, asked), digits.gather(1, asked)[:, 0]
    return torch.cat([letters, letter], 1), torch.cat([digits, torch.full((batch, 1), 10)], 1), answer


def train(mask: Tensor | None, steps: int) -> tuple[Recall, list[float]]:
    """A trained model and its accuracy on 500 fresh examples after every tenth step."""
    torch.manual_seed(0)
    model, accuracy = Recall(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps + 1):
        letters, digits, answer = draw(64)
        loss = F.cross_entropy(model(letters, digits, mask), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                letters, digits, answer = draw(500)
                accuracy.append((model(letters, digits, mask).argmax(-1) == answer).float().mean().item())
    return model, accuracy


model = None
try:
    import os

    import matplotlib.pyplot as plt

    steps = 30 if os.environ.get("ICHIMON_FAST") == "1" else 300
    only_itself = torch.eye(9, dtype=torch.bool)
    model, curve = train(None, steps)
    _, twin = train(only_itself, steps)
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(range(0, steps + 1, 10), curve, color="#0072B2", label="may attend to all")
    ax.plot(range(0, steps + 1, 10), twin, "--", color="#D55E00", label="may attend only to itself")
    ax.set(xlabel="training step", ylabel="accuracy on fresh examples", ylim=(0, 1.03), title="Recall needs attention")
    ax.legend(loc="center right")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish all five parts first, then run this cell again.")

# %% [markdown]
# Where did it look? With the identity as values your `attention` returns its weights. The last row is the question.

# %% see="MultiHeadAttention"
if model is None:
    print("Train the model in the cell above first, then run this cell again.")
else:
    torch.manual_seed(1)
    letters, digits, answer = draw(1)
    with torch.no_grad():
        x = model.embed(letters, digits)
        q, k = (split_heads(proj(x), 2) for proj in (model.attention.q_proj, model.attention.k_proj))
        weights = attention(q, k, torch.eye(9).expand(1, 2, 9, 9))[0]
        said = model(letters, digits).argmax(-1).item()
    pairs = zip(letters[0].tolist(), digits[0].tolist(), strict=True)
    tokens = [f"{chr(97 + letter)}={'?' if digit == 10 else digit}" for letter, digit in pairs]
    fig, axes = plt.subplots(1, 2, figsize=(8, 4), facecolor="white")
    for h, ax in enumerate(axes):
        ax.imshow(weights[h], cmap="cividis", vmin=0, vmax=1)
        ax.set_xticks(range(9), tokens, rotation=90)
        ax.set_yticks(range(9), tokens)
        ax.set(title=f"head {h}", xlabel="is looked at", ylabel="looks")
    fig.suptitle(f"Asked for {tokens[-1]}, the model says {said}; the answer is {answer.item()}")
    fig.tight_layout()
    plt.show()

# %% [markdown]
# The map shows where a head looked. Whether that *explains* an answer is contested (Jain and Wallace 2019, arXiv
# 1902.10186, against Wiegreffe and Pinter 2019, arXiv 1908.04626). Here we built the task so that the place to look is
# known.
#
# The map also shows the price. It has a row and a column for every position, so twice the text is four times the map.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they try other shapes, masks of every form, very large
# scores, rows that may attend to nothing, other dtypes, gradients, and the laws that hold whatever the numbers are.
# Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 02-self-attention.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
