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
#     assignment: 05-normalisation
# ---

# %% [markdown]
# # 05 · Normalisation and the residual stream
#
# **One question: why does everything need normalising?**
#
# A Transformer is a stack. Every layer adds something to the same list of numbers, and the next layer has to work with
# what comes out. Add up a few dozen of them, and the numbers can be of any size. A norm brings them back to size one
# before the next layer reads them; a residual connection makes sure that nothing is lost on the way.
#
# You will build both, in four parts, and at the end train a model of 24 layers with them, and one without. The page of
# the book that goes with this notebook is `book/05-normalisation`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `LayerNorm` | ●●○ | 20 | 6 |
# | `RMSNorm` | ●●○ | 20 | 6 |
# | `PreNormBlock` | ●●○ | 15 | 5 |
# | `PostNormBlock` | ●○○ | 5 | 3 |
#
# ## Conventions
#
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "... d_model"]` is a tensor of floats whose last
#   dimension is `d_model`. The dots stand for any number of dimensions before it: batch and positions, or none.
# - **What comes in goes out**: the result has the shape and the dtype of the input, and an input is never changed in
#   place.
# - **Nothing is remembered**: a norm computes the same in training and in evaluation.
# - PyTorch's own normalisation (`layer_norm`, `rms_norm`, `group_norm`, `batch_norm`, `instance_norm`, and the modules
#   that call them) raises an error while your work is marked: building it is the exercise.
#
# The set-up cell holds a small attention and a small feed-forward part, like those of chapters 02 and 04. You will put
# your norms around them.

# %% role="set-up"
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal self-attention: [batch, n, d_model] to the same shape."""

    def __init__(self, d_model: int, n_heads: int = 2) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Each position by itself: four times as wide, GELU, and back."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.down(F.gelu(self.up(x)))


# %% [markdown]
# ## 1 · `LayerNorm` ●●○
#
# Take the `d_model` numbers of one position. Subtract their mean, divide by their standard deviation, and they have
# mean 0 and size one. Then let the model choose, channel by channel, which scale and which offset it wants:
#
# $$y = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} \odot w + b$$
#
# `LayerNorm(d_model, eps=1e-5)` is an `nn.Module`. Its state dict has exactly two entries, both trained:
#
# | name | shape | in a new layer |
# |---|---|---|
# | `weight` | `(d_model,)` | ones |
# | `bias` | `(d_model,)` | zeros |
#
# It takes `x` of shape `(..., d_model)` and returns the same shape and dtype.
#
# - $\mu$ and $\sigma^2$ belong to **one position**: they are taken over its `d_model` numbers and over nothing else.
#   The other positions, and the other texts of the batch, play no part.
# - $\sigma^2$ is the mean of the squared distances from $\mu$. It is divided by `d_model`, not by `d_model` − 1.
# - $\varepsilon$ stands inside the root. It matters where the numbers are small, so tests look there. A position whose
#   numbers are all the same gives `bias`, and its gradients are finite.
# - The variance is right also where the mean is a thousand times as large as the spread, as in 1000 ± 1.
# - float32, float64 and bfloat16 occur, with parameters of the same dtype.


# %% exercise="LayerNorm" section="What a norm does to one word"
class LayerNorm(nn.Module):
    """Normalise each position over its features, then scale and shift every channel.

    Source: Ba, Kiros and Hinton 2016 (arXiv 1607.06450), section 3.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Mean 0 and variance 1 at every position, then weight and bias."""
        ### BEGIN SOLUTION
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias
        ### END SOLUTION


# %% check="LayerNorm" points=6
norm = LayerNorm(4)
assert set(norm.state_dict()) == {"weight", "bias"}, (
    f"The state dict should hold weight and bias, and it holds {sorted(norm.state_dict())}."
)
x = torch.tensor([[[1.0, 2, 3, 6], [10, 20, 30, 60]]])  # one text of two positions
out = norm(x)
assert isinstance(out, torch.Tensor), f"LayerNorm should return a tensor, not {type(out).__name__}."
assert out.shape == x.shape, f"The result should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
assert torch.allclose(out.mean(-1), torch.zeros(1, 2), atol=1e-5), (
    f"A new layer should give every position the mean 0, not {[round(v, 3) for v in out.mean(-1).flatten().tolist()]}."
)
assert torch.allclose(out.square().mean(-1), torch.ones(1, 2), atol=1e-3), (
    "A new layer should give every position the variance 1, "
    f"not {[round(v, 3) for v in out.square().mean(-1).flatten().tolist()]}."
)
with torch.no_grad():
    norm.bias += 5
assert torch.allclose(norm(x).mean(-1), torch.full((1, 2), 5.0), atol=1e-4), (
    "With a bias of 5 in every channel, the mean should be 5."
)
print("The visible checks of LayerNorm pass.")

# %% see="LayerNorm"
# Six positions of very different sizes, before and after. Each dot is one number. Try other sizes.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    x = (
        torch.randn(6, 40) * torch.tensor([0.1, 0.3, 1, 3, 10, 30])[:, None]
        + torch.tensor([0, 1, -2, 5, 0, 40])[:, None]
    )
    after = LayerNorm(40)(x).detach()
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), facecolor="white")
    for ax, values, title in zip(axes, (x, after), ("before", "after"), strict=True):
        for position, row in enumerate(values):
            ax.plot([position] * len(row), row, "o", alpha=0.35, color="#0072B2", markersize=4)
        ax.set(title=title, xlabel="position")
    axes[0].set_ylabel("the numbers of a position")
    fig.suptitle("Every position comes out at the same size, whatever it was")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LayerNorm first, then run this cell again.")

# %% [markdown]
# ## 2 · `RMSNorm` ●●○
#
# Does the mean have to go? LLaMA, Mistral, Qwen, T5 and many others leave it where it is. They only divide by the root
# of the mean square (RMS), and do without an offset:
#
# $$y = \frac{x}{\sqrt{\frac{1}{d_\text{model}} \sum_i x_i^2 + \varepsilon}} \odot w$$
#
# `RMSNorm(d_model, eps=1e-6)` is an `nn.Module`. Its state dict has exactly one entry, `weight`, of shape `(d_model,)`,
# trained, and ones in a new layer. It takes `x` of shape `(..., d_model)` and returns the same shape and dtype.
#
# - The mean square belongs to one position, and $\varepsilon$ stands inside the root. A position of zeros gives zeros,
#   and its gradients are finite.
# - `weight` multiplies as it is. (Gemma stores what is to be added to 1; here a weight of 0 gives 0.)
# - **Half precision.** bfloat16 keeps about three digits, and float16 ends at 65,504, so that the square of 300 is
#   infinite in it. Where `x` is one of the two, turn it into float32 first and do everything up to and including the
#   division in float32.
# - **Then the order that LLaMA has:** cast the quotient back to the dtype of `x`, and multiply by `weight` after that,
#   in the dtype of `x`. This rounds twice. Multiplying in float32 and casting last would round once and give slightly
#   different numbers; a model that was trained with one order should be run with the same.
# - float32 and float64 occur too; float64 may be computed in float32, as LLaMA does, or as it is. Parameters always
#   have the dtype of `x`.


# %% exercise="RMSNorm" section="Does the mean have to go?"
class RMSNorm(nn.Module):
    """Divide each position by the root of its mean square, then scale every channel. Casts as LLaMA does.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Mean square 1 at every position, in float32 where x is narrower, then weight in the dtype of x."""
        ### BEGIN SOLUTION
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        wide = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight
        ### END SOLUTION


# %% check="RMSNorm" points=6
norm = RMSNorm(4)
assert set(norm.state_dict()) == {"weight"}, (
    f"The state dict should hold weight and nothing else, and it holds {sorted(norm.state_dict())}."
)
x = torch.tensor([[[1.0, 2, 3, 6], [10, 20, 30, 60]]])
out = norm(x)
assert isinstance(out, torch.Tensor), f"RMSNorm should return a tensor, not {type(out).__name__}."
assert out.shape == x.shape, f"The result should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
assert torch.allclose(out.square().mean(-1), torch.ones(1, 2), atol=1e-3), (
    "A new layer should give every position the mean square 1, "
    f"not {[round(v, 3) for v in out.square().mean(-1).flatten().tolist()]}."
)
assert torch.allclose(out[0, 0] / x[0, 0], (out[0, 0] / x[0, 0])[0].expand(4)), (
    "All numbers of a position should be divided by the same number, and nothing subtracted from them."
)
assert RMSNorm(4).bfloat16()(x.bfloat16()).dtype == torch.bfloat16, "bfloat16 in should give bfloat16 out."
print("The visible checks of RMSNorm pass.")

# %% see="RMSNorm"
# Three numbers are a point in space. RMSNorm pulls every point onto a sphere; LayerNorm onto a circle of that sphere,
# because the mean has to be zero as well. That is the whole difference.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    points = torch.randn(300, 3) * torch.tensor([1.0, 0.6, 1.4]) + 0.4
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), subplot_kw={"projection": "3d"}, facecolor="white")
    shown = {"before": points, "RMSNorm": RMSNorm(3)(points).detach(), "LayerNorm": LayerNorm(3)(points).detach()}
    for ax, (title, values) in zip(axes, shown.items(), strict=True):
        ax.scatter(*values.T, s=6, color="#0072B2")
        ax.set(title=title, xlim=(-2, 2), ylim=(-2, 2), zlim=(-2, 2))
        ax.set_box_aspect((1, 1, 1))
    fig.suptitle("RMSNorm keeps the direction, LayerNorm also takes the mean away")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LayerNorm and RMSNorm first, then run this cell again.")

# %% [markdown]
# ## 3 · `PreNormBlock` ●●○
#
# A block of a Transformer has two sub-layers, attention and feed-forward. Neither replaces what it was given. Each
# *adds* to it, and what runs from the first block to the last is called the **residual stream**.
#
# Where does the norm go? GPT-2 and nearly all models after it put it before each sub-layer, on the branch: the
# sub-layer reads a normalised copy, and the stream itself passes untouched.
#
# $$h = x + \mathrm{attention}(\mathrm{norm}_1(x)) \qquad y = h + \mathrm{feed\_forward}(\mathrm{norm}_2(h))$$
#
# `PreNormBlock(d_model, attention, feed_forward)` is an `nn.Module` that takes `x` of shape `(batch, n, d_model)` and
# returns the same shape and dtype.
#
# - `attention` and `feed_forward` are callables that take one tensor and return one of the same shape: an `nn.Module`,
#   as in the set-up cell, or a plain function. Each is called once in a forward pass, with the tensor as its only
#   argument.
# - `norm1` and `norm2` are two `LayerNorm`s of width `d_model`, each with parameters of its own.
# - The state dict holds `norm1.weight`, `norm1.bias`, `norm2.weight`, `norm2.bias`. Where a sub-layer is an
#   `nn.Module`, it also holds that one's entries, under `attention.` and `feed_forward.`, and they are trained with the
#   block.
#
# Call your `LayerNorm` by its name. When this part is marked, PyTorch's stands in for it, so that a mistake above costs
# nothing here.


# %% exercise="PreNormBlock" section="Where it stands"
class PreNormBlock(nn.Module):
    """Two sub-layers, each with a residual connection around it and a LayerNorm before it.

    Source: Radford et al. 2019 (GPT-2), section 2.3; Xiong et al. 2020 (arXiv 2002.04745), table 1.
    """

    def __init__(
        self,
        d_model: int,
        attention: Callable[[Tensor], Tensor],
        feed_forward: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = LayerNorm(d_model)
        self.attention = attention
        self.norm2 = LayerNorm(d_model)
        self.feed_forward = feed_forward
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each sub-layer reads a normalised copy of the stream and adds to the stream."""
        ### BEGIN SOLUTION
        h = x + self.attention(self.norm1(x))
        return h + self.feed_forward(self.norm2(h))
        ### END SOLUTION


# %% check="PreNormBlock" points=5
block = PreNormBlock(8, Attention(8), FeedForward(8))
norms = {name for name in block.state_dict() if name.startswith("norm")}
assert norms == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}, (
    f"The block should have norm1 and norm2, each with weight and bias; its norms hold {sorted(norms)}."
)
x = 3 * torch.randn(2, 5, 8)
assert block(x).shape == x.shape, f"The result should have the shape {tuple(x.shape)}, not {tuple(block(x).shape)}."
silent = PreNormBlock(8, torch.zeros_like, torch.zeros_like)
assert torch.equal(silent(x), x), "Where both sub-layers add nothing, the stream should pass through unchanged."
seen = []
listening = PreNormBlock(8, lambda z: seen.append(z) or torch.zeros_like(z), torch.zeros_like)
listening(x)
assert len(seen) == 1, f"Attention should be called once, and it was called {len(seen)} times."
assert torch.allclose(seen[0].square().mean(-1), torch.ones(2, 5), atol=1e-3), (
    "Attention should read a normalised copy of x: at each position the mean square is 1."
)
print("The visible checks of PreNormBlock pass.")

# %% see="PreNormBlock"
# The size of the stream's numbers after each of 24 untrained blocks. Nothing on the stream holds it back.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    x = torch.randn(4, 16, 32)
    sizes = [1.0]
    with torch.no_grad():
        for _ in range(24):
            x = PreNormBlock(32, Attention(32), FeedForward(32))(x)
            sizes.append(x.square().mean().sqrt().item())
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(sizes, "o-", color="#0072B2")
    ax.set(xlabel="blocks", ylabel="size of the stream (RMS)", title="Every block adds, so the stream grows")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LayerNorm and PreNormBlock first, then run this cell again.")

# %% [markdown]
# Because the stream grows, a pre-norm model has one more norm after its last block, before the logits.
#
# ## 4 · `PostNormBlock` ●○○
#
# The first Transformer, GPT-1 and BERT had the norm elsewhere: after the sum, on the stream itself.
#
# $$h = \mathrm{norm}_1(x + \mathrm{attention}(x)) \qquad y = \mathrm{norm}_2(h + \mathrm{feed\_forward}(h))$$
#
# `PostNormBlock(d_model, attention, feed_forward)` takes the same arguments as `PreNormBlock`, and its state dict has
# the same names. Only the place of the norms differs: a sub-layer reads the stream as it is, and what leaves the block
# is normalised.


# %% exercise="PostNormBlock" section="Where it stands"
class PostNormBlock(nn.Module):
    """Two sub-layers, each with a residual connection around it and a LayerNorm after the sum.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1.
    """

    def __init__(
        self,
        d_model: int,
        attention: Callable[[Tensor], Tensor],
        feed_forward: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = LayerNorm(d_model)
        self.attention = attention
        self.norm2 = LayerNorm(d_model)
        self.feed_forward = feed_forward
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each sub-layer adds to the stream, and the sum is normalised."""
        ### BEGIN SOLUTION
        h = self.norm1(x + self.attention(x))
        return self.norm2(h + self.feed_forward(h))
        ### END SOLUTION


# %% check="PostNormBlock" points=3
block = PostNormBlock(8, Attention(8), FeedForward(8))
norms = {name for name in block.state_dict() if name.startswith("norm")}
assert norms == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}, (
    f"The block should have norm1 and norm2, each with weight and bias; its norms hold {sorted(norms)}."
)
x = 3 * torch.randn(2, 5, 8)
out = block(x)
assert out.shape == x.shape, f"The result should have the shape {tuple(x.shape)}, not {tuple(out.shape)}."
assert torch.allclose(out.square().mean(-1), torch.ones(2, 5), atol=1e-2), (
    "What leaves a new block should be normalised: at each position the mean square is 1."
)
print("The visible checks of PostNormBlock pass.")

# %% stand_in="PreNormBlock"
import torch  # noqa: E402


class LayerNorm(torch.nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(d_model))
        self.bias = torch.nn.Parameter(torch.zeros(d_model))

    def forward(self, x, pytorchs=torch.layer_norm):
        return pytorchs(x, self.weight.shape, self.weight, self.bias, self.eps)


# %% stand_in="PostNormBlock"
import torch  # noqa: E402


class LayerNorm(torch.nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(d_model))
        self.bias = torch.nn.Parameter(torch.zeros(d_model))

    def forward(self, x, pytorchs=torch.layer_norm):
        return pytorchs(x, self.weight.shape, self.weight, self.bias, self.eps)


# %% see="PostNormBlock"
# How much of its input does a model carry to the top, before it is trained? The line shows the cosine between the input
# and what comes out: 1 means "the same direction", 0 "nothing in common". Try more blocks.
try:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for kind, colour, label in (
        (PreNormBlock, "#0072B2", "norm before (pre)"),
        (PostNormBlock, "#D55E00", "norm after (post)"),
    ):
        torch.manual_seed(0)
        start = x = torch.randn(4, 16, 32)
        kept = [1.0]
        with torch.no_grad():
            for _ in range(24):
                x = kind(32, Attention(32), FeedForward(32))(x)
                kept.append(F.cosine_similarity(start, x, dim=-1).mean().item())
        ax.plot(kept, "o-", color=colour, label=label)
    ax.set(
        xlabel="blocks",
        ylabel="cosine with the input",
        ylim=(0, 1.03),
        title="The free path of pre-norm carries more of it",
    )
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish the blocks first, then run this cell again.")

# %% [markdown]
# ## What norms are for
#
# Below, a model of 24 blocks learns a simple language of 16 letters, in which the last two letters nearly always decide
# the next one. One model is made of your `PreNormBlock`s, one of your `PostNormBlock`s, and the third has residual
# connections but no norms at all. All train for the same number of steps at the same learning rate, without a warm-up.
#
# Before you run it: which of the three learns, and which do not? (A line that you do not see is above the chart; the
# legend says where it ends.)


# %% see="PostNormBlock"
class Plain(nn.Module):
    """Residual connections and no norms."""

    def __init__(self, d_model: int, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(x)
        return h + self.feed_forward(h)


class Model(nn.Module):
    """Letters to scores for the next letter, through `n_layers` blocks of one kind."""

    def __init__(self, kind: type[nn.Module], n_layers: int, last: nn.Module, d_model: int = 32) -> None:
        super().__init__()
        self.letters, self.positions = nn.Embedding(16, d_model), nn.Embedding(16, d_model)
        self.blocks = nn.Sequential(*(kind(d_model, Attention(d_model), FeedForward(d_model)) for _ in range(n_layers)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.last, self.read_out = last, nn.Linear(d_model, 16)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters) + self.positions(torch.arange(letters.shape[1]))
        return self.read_out(self.last(self.blocks(x)))


def draw(batch: int, length: int = 17) -> Tensor:
    """Texts in a language of 16 letters: the next letter is a fixed function of the last two, or, rarely, any."""
    rule = torch.randint(16, (16, 16), generator=torch.Generator().manual_seed(0))
    text = torch.randint(16, (batch, length))
    for t in range(2, length):
        follows = torch.rand(batch) < 0.95
        text[:, t] = torch.where(follows, rule[text[:, t - 2], text[:, t - 1]], text[:, t])
    return text


def learn(model: nn.Module, steps: int, lr: float) -> list[float]:
    """The loss at every step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        text = draw(16)
        loss = F.cross_entropy(model(text[:, 1:-1]).flatten(0, 1), text[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


try:
    import os

    import matplotlib.pyplot as plt

    fast = os.environ.get("ICHIMON_FAST") == "1"
    n_layers, steps = (6, 20) if fast else (24, 200)
    kinds = {
        "norm before (pre)": (PreNormBlock, LayerNorm(32)),
        "norm after (post)": (PostNormBlock, nn.Identity()),
        "no norms": (Plain, nn.Identity()),
    }
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    for (label, (kind, last)), colour in zip(kinds.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
        torch.manual_seed(0)
        losses = torch.tensor(learn(Model(kind, n_layers, last), steps, lr=3e-3))
        smooth = losses.unfold(0, 10, 1).mean(-1)
        ax.plot(smooth, color=colour, label=f"{label}: ends at {smooth[-1]:.3g}")
    ax.axhline(math.log(16), color="grey", linestyle=":", label="guessing")
    ax.set(xlabel="training step", ylabel="loss (nats)", ylim=(0, 6), title=f"{n_layers} blocks, no warm-up")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish all four parts first, then run this cell again.")

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they try other shapes, very small numbers and numbers far
# from zero, other dtypes, gradients, sub-layers that write down what they were given, and the laws that hold whatever
# the numbers are. Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 05-normalisation.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
