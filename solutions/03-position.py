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
#     assignment: 03-position
# ---

# %% [markdown]
# # 03 · Position
#
# **One question: how does a model know the order of words?**
#
# 犬が人を噛んだ (*inu ga hito o kanda*): the dog bit the man. Swap two words, 人が犬を噛んだ, and it is news. The
# words are the same, and attention by itself sees no difference: it is a weighted mean, and a mean does not care for
# order. What matters is who stands right before が. So the model needs to be told where each word stands.
#
# You will build the four ways in which that was done, in the order in which they were found: a fixed pattern of waves,
# a learned table, a rotation, and a plain penalty on distance. Then you will stretch a model past the length it was
# trained for. The page of the book that goes with this notebook is `book/03-position`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `sinusoidal` | ●●○ | 15 | 3 |
# | `LearnedPositions` | ●○○ | 10 | 3 |
# | `rope` | ●●● | 35 | 7 |
# | `half_split_order` | ●●○ | 10 | 2 |
# | `alibi_bias` | ●●○ | 20 | 4 |
# | `stretch_rope` | ●●● | 30 | 6 |
#
# ## Conventions
#
# - **Positions and channels are counted from 0.** The first token stands at position 0.
# - **Angles are in radians**, and are computed in float32, also where the data are bfloat16. A bfloat16 knows only
#   every 16th number between 2,048 and 4,096: a position in it has lost its way.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "... n d_head"]` is a tensor of floats whose last
#   two dimensions are `n` and `d_head`, with any number of dimensions before them.

# %% role="set-up"
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `sinusoidal` ●●○
#
# The first Transformer adds to each embedding a vector that only depends on its position. It has no parameters: it is a
# clock with many hands. The fastest turns once in about six tokens, the slowest hardly moves in a whole book.
#
# `sinusoidal(n, d_model, base)` returns the vectors of the positions 0 to `n − 1`, a float32 tensor of shape
# `(n, d_model)`. Channels come in pairs, a sine and then its cosine: for position $p$ and pair
# $i = 0, 1, \dots, d_\text{model}/2 - 1$
#
# $$\text{channel } 2i: \ \sin\!\left(\frac{p}{\text{base}^{\,2i/d_\text{model}}}\right)
# \qquad \text{channel } 2i + 1: \ \cos\!\left(\frac{p}{\text{base}^{\,2i/d_\text{model}}}\right)$$
#
# - `n` is at least 1, and may be many thousands.
# - `d_model` is even. For an odd one raise a `ValueError` whose sentence names it.
# - The trap: the exponent is $2i/d_\text{model}$, where $i$ counts pairs, not channels.


# %% exercise="sinusoidal" section="Add a wave"
def sinusoidal(n: int, d_model: int, base: float = 10000.0) -> Float[Tensor, "n d_model"]:
    """Sines in the even channels, cosines in the odd ones, one row for each position from 0.

    Raises ValueError if d_model is odd.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    ### BEGIN SOLUTION
    if d_model % 2:
        raise ValueError(f"d_model ({d_model}) must be even: every frequency takes a sine and a cosine")
    angles = torch.arange(n)[:, None] * base ** (-torch.arange(0, d_model, 2) / d_model)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
    ### END SOLUTION


# %% check="sinusoidal" points=3
table = sinusoidal(5, 6)
assert isinstance(table, torch.Tensor), f"sinusoidal should return a tensor, not {type(table).__name__}."
assert table.shape == (5, 6), f"5 positions of 6 channels make the shape (5, 6), not {tuple(table.shape)}."
assert table.dtype == torch.float32, f"The table should be float32, not {table.dtype}."
assert torch.allclose(table[0], torch.tensor([0.0, 1, 0, 1, 0, 1])), (
    f"At position 0 every sine is 0 and every cosine is 1, in turn; yours are {table[0].tolist()}."
)
assert torch.allclose(table[3, :2], torch.tensor([math.sin(3), math.cos(3)]), atol=1e-5), (
    "Pair 0 turns by one radian a token: at position 3 its channels should be sin 3 and cos 3."
)
try:
    sinusoidal(5, 7)
    message = ""
except ValueError as error:
    message = str(error)
assert "7" in message, "7 channels are no pairs: sinusoidal(5, 7) should raise a ValueError that names the 7."
print("The visible checks of sinusoidal pass.")

# %% see="sinusoidal"
# Each row is a position. The left channels turn fast, the right ones hardly at all. Try another base.
try:
    import matplotlib.pyplot as plt

    table = sinusoidal(64, 64)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), facecolor="white")
    axes[0].imshow(table, cmap="cividis", aspect="auto")
    axes[0].set(xlabel="channel", ylabel="position", title="the table")
    axes[1].imshow(table @ table.T, cmap="cividis", aspect="auto")
    axes[1].set(xlabel="position", ylabel="position", title="dot product of two positions")
    fig.suptitle("How alike two positions are depends only on how far apart they are")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish sinusoidal first, then run this cell again.")

# %% [markdown]
# ## 2 · `LearnedPositions` ●○○
#
# BERT and GPT-2 do without the waves: they keep a table with one row for each position, and learn it like everything
# else. It is simple and it works, up to the last row of the table. What is the row after that?
#
# `LearnedPositions(n_max, d_model)` is an `nn.Module` whose state dict has exactly one entry, `weight`, of shape
# `(n_max, d_model)`, which is trained. How you initialise it is up to you.
#
# It takes `x` of shape `(batch, n, d_model)` and an `offset`, and returns `x` plus the rows `offset` to
# `offset + n − 1` of the table: the offset is the position of the first token. A model that writes one token at a time
# needs it.
#
# - If the last position is not in the table, that is, if `offset + n > n_max`, it raises a `ValueError` whose sentence
#   names both numbers, `offset + n` and `n_max`. The last row itself may be used.
# - `offset` is at least 0.
# - The result has the dtype of `x`, also where `x` is bfloat16 and the table float32.
# - The trap: a table that helps itself past its end, by starting again or by repeating its last row, raises no error
#   and gives wrong answers.


# %% exercise="LearnedPositions" section="Or learn a table"
class LearnedPositions(nn.Module):
    """A learned vector for each position, added to x.

    Raises ValueError, on use, past the end of the table.
    """

    def __init__(self, n_max: int, d_model: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.weight = nn.Parameter(0.02 * torch.randn(n_max, d_model))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"], offset: int = 0) -> Float[Tensor, "batch n d_model"]:
        """x plus the rows from `offset` on."""
        ### BEGIN SOLUTION
        end = offset + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"{end} positions were asked for, and the table has {len(self.weight)}")
        return x + self.weight[offset:end].to(x.dtype)
        ### END SOLUTION


# %% check="LearnedPositions" points=3
layer = LearnedPositions(8, 4)
assert isinstance(layer, nn.Module), "LearnedPositions should be an nn.Module."
assert set(layer.state_dict()) == {"weight"}, (
    f"The state dict should hold exactly weight, and it holds {sorted(layer.state_dict())}."
)
assert layer.weight.shape == (8, 4), f"8 positions of 4 channels make (8, 4), not {tuple(layer.weight.shape)}."
layer.load_state_dict({"weight": torch.arange(8.0)[:, None].expand(8, 4)})  # row p holds p
out = layer(torch.ones(2, 3, 4))
assert out.shape == (2, 3, 4), f"The output should have the shape of x, (2, 3, 4), not {tuple(out.shape)}."
assert out[1, :, 0].tolist() == [1, 2, 3], (
    "With ones for x, and a table whose row p holds p, the output at the first 3 positions should be 1, 2 and 3, not "
    f"{out[1, :, 0].tolist()}."
)
try:
    layer(torch.zeros(1, 9, 4))
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("8", "9")), (
    "9 tokens are too many for 8 rows: the layer should raise a ValueError that names both numbers."
)
print("The visible checks of LearnedPositions pass.")

# %% see="LearnedPositions"
# The waves know from the start that 7 is near 8. A learned table has to find out: before training, nothing is near.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    learned = LearnedPositions(48, 64)(torch.zeros(1, 48, 64))[0].detach()
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), facecolor="white")
    for ax, rows, title in zip(axes, (sinusoidal(48, 64), learned), ("sinusoidal", "learned, untrained"), strict=True):
        unit = F.normalize(rows, dim=-1)
        ax.imshow(unit @ unit.T, cmap="cividis", vmin=-1, vmax=1)
        ax.set(title=title, xlabel="position", ylabel="position")
    fig.suptitle("Likeness of positions: given in the waves, to be learned in a table")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish sinusoidal and LearnedPositions first, then run this cell again.")

# %% [markdown]
# ## 3 · `rope` ●●●
#
# Adding a position to a word mixes what it says with where it stands. *Rotary position embedding* leaves the embedding
# alone. It takes each query and each key two channels at a time, as a point in the plane, and turns that point by an
# angle that grows with the position:
#
# $$\begin{pmatrix} a' \\ b' \end{pmatrix} =
# \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix}
# \begin{pmatrix} a \\ b \end{pmatrix}
# \qquad \varphi = p \cdot \theta^{-2i/d_\text{head}}$$
#
# Here $p$ is the position, and $i = 0, 1, \dots, d_\text{head}/2 - 1$ counts the pairs. Turn two vectors by the same
# angle, and their dot product stays. So after this the score of a query and a key depends on their distance alone.
#
# Which two channels are a pair? Both answers are in use, and a model trained with one cannot run with the other:
#
# - `interleaved=False`, **half-split** (LLaMA, Qwen, GPT-NeoX): pair $i$ is $a$ = channel $i$, $b$ = channel
#   $i + d_\text{head}/2$;
# - `interleaved=True` (the paper, GPT-J): pair $i$ is $a$ = channel $2i$, $b$ = channel $2i + 1$.
#
# Either way $a'$ and $b'$ go back to where $a$ and $b$ were.
#
# | argument | shape | |
# |---|---|---|
# | `x` | `(..., n, d_head)` | queries or keys; float32, float64 or bfloat16; `d_head` is even |
# | `positions` | `(n,)` | the position of each token, the same for everything before `n` |
# | | or `(batch, n)` | a row for each entry of `x`'s *first* dimension, shared by what is between, such as heads |
# | result | as `x` | same dtype as `x` |
#
# - `positions` are int64, in any order, with gaps or repetitions, up to many thousands. They may also be float32 and
#   lie *between* tokens, such as 2.5: you will see what for.
# - Angles, sines and cosines are computed in float32 at least, also for bfloat16 data.
# - The trap: in a batch of 2 with 2 heads, positions of shape `(2, n)` belong to the sequences, not to the heads.


# %% exercise="rope" section="Or turn"
def rope(
    x: Float[Tensor, "... n d_head"],
    positions: Real[Tensor, "*batch n"],
    theta: float = 10000.0,
    interleaved: bool = False,
) -> Float[Tensor, "... n d_head"]:
    """Turn pair i of the channels by the angle position · theta^(−2i/d_head).

    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2.
    """
    ### BEGIN SOLUTION
    half = x.shape[-1] // 2
    angles = positions[..., None] * theta ** (-torch.arange(half) / half)
    if positions.dim() == 2:  # make room for what stands between batch and n, such as heads
        angles = angles.reshape(len(x), *[1] * (x.dim() - 3), -1, half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    turned = [a * cos - b * sin, a * sin + b * cos]
    out = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return out.to(x.dtype)
    ### END SOLUTION


# %% check="rope" points=7
x = torch.randn(2, 3, 5, 8)
out = rope(x, torch.arange(5))
assert isinstance(out, torch.Tensor), f"rope should return a tensor, not {type(out).__name__}."
assert out.shape == x.shape, f"The result should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
assert torch.allclose(out[:, :, 0], x[:, :, 0], atol=1e-5), "At position 0 nothing should be turned."
assert torch.allclose(out.norm(dim=-1), x.norm(dim=-1), atol=1e-5), "A rotation should change no vector's length."
for interleaved in (False, True):
    out = rope(torch.tensor([[1.0, 0]]), torch.tensor([1]), interleaved=interleaved)
    assert torch.allclose(out, torch.tensor([[math.cos(1), math.sin(1)]]), atol=1e-5), (
        f"With two channels, (1, 0) at position 1 should become (cos 1, sin 1) = (0.54, 0.84), "
        f"not ({out[0, 0]:.2f}, {out[0, 1]:.2f}); interleaved={interleaved}."
    )
    out = rope(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([1]), interleaved=interleaved)
    reached = out[0].abs().argmax().item()
    assert reached == (1 if interleaved else 2), (
        f"With four channels, (1, 0, 0, 0) at position 1 should turn towards the other channel of pair 0, and most "
        f"of yours is in channel {reached}; interleaved={interleaved}."
    )
out = rope(torch.ones(1, 1, 4), torch.tensor([[3]]), interleaved=True)
assert out.shape == (1, 1, 4), f"Positions of shape (batch, n) should not change the shape: {tuple(out.shape)}."
print("The visible checks of rope pass.")

# %% see="rope"
# One query and one key, at many distances. Both are moved along together by 0, 100 and 1,000 positions: three curves,
# of which you see one. Add sinusoidal rows to q and k instead of turning them, and they part.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(3)
    q, k = torch.randn(1, 32), torch.randn(1, 32)
    distance = torch.arange(0, 40)
    fig, ax = plt.subplots(figsize=(7, 3), facecolor="white")
    for shift, style in ((0, "-"), (100, "--"), (1000, ":")):
        turned_k = rope(k, torch.tensor([shift]))
        turned_q = rope(q.expand(40, 32), distance + shift)
        ax.plot(distance, turned_q @ turned_k[0], style, linewidth=3, label=f"key at position {shift}")
    ax.set(
        xlabel="distance from key to query (tokens)",
        ylabel="score q·k",
        title="The score knows only the distance",
        ylim=(-5, 4),
    )
    ax.legend(loc="upper center", ncols=3, fontsize=8)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish rope first, then run this cell again.")

# %% [markdown]
# ## 4 · `half_split_order` ●●○
#
# A model was trained with interleaved pairs, and your code turns half-split ones. Nothing has to be trained again: put
# its channels into another order, once, when the weights are loaded. This is what happened to LLaMA on its way into
# the transformers library.
#
# `half_split_order(d_head)` returns that order: an int64 tensor of shape `(d_head,)` that holds every channel once,
# such that for every `x` and all positions
#
# `rope(x[..., order], positions)` equals `rope(x, positions, interleaved=True)[..., order]`
#
# - `d_head` is even and at least 2.
# - There is only one such order. The trap: the order that leads back is another one.


# %% exercise="half_split_order" section="Two layouts"
def half_split_order(d_head: int) -> Int[Tensor, " d_head"]:
    """The order in which the channels of an interleaved head become those of a half-split one."""
    ### BEGIN SOLUTION
    return torch.cat([torch.arange(0, d_head, 2), torch.arange(1, d_head, 2)])
    ### END SOLUTION


# %% check="half_split_order" points=2
order = half_split_order(8)
assert isinstance(order, torch.Tensor), f"half_split_order should return a tensor, not {type(order).__name__}."
assert order.dtype == torch.int64, f"The order should be int64, so that it can index, not {order.dtype}."
assert sorted(order.tolist()) == list(range(8)), (
    f"Every channel from 0 to 7 should be there exactly once: {order.tolist()}."
)
assert order[0] == 0, "Channel 0 is the first of its pair in both layouts, so it should stay where it is."
assert torch.equal(order[:4] // 2, order[4:] // 2), (
    "Channels 2i and 2i + 1 are a pair, and the partners in a half-split head stand half a head apart, of 8 channels 4 "
    f"places. In your order they do not: {order.tolist()}."
)
print("The visible checks of half_split_order pass.")

# %% see="half_split_order"
# Colour is the pair, the number is the channel. Reordered, the members of a pair stand half a head apart.
try:
    import matplotlib.pyplot as plt

    channel = torch.arange(12)
    fig, axes = plt.subplots(2, 1, figsize=(7, 2.4), facecolor="white")
    for ax, shown, title in zip(axes, (channel, half_split_order(12)), ("interleaved", "half-split"), strict=True):
        ax.imshow((shown // 2)[None], cmap="Pastel1", vmin=0, vmax=8, aspect="auto")
        for place, name in enumerate(shown.tolist()):
            ax.text(place, 0, str(name), ha="center", va="center")
        ax.set(title=title, xticks=[], yticks=[])
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish half_split_order first, then run this cell again.")

# %% [markdown]
# ## 5 · `alibi_bias` ●●○
#
# The plainest idea came last. *Attention with linear biases* (ALiBi) changes neither embeddings nor queries nor keys.
# It lowers each score by the distance it has to bridge, times a slope; each head has its own, so that some heads see
# far and others only their neighbours.
#
# `alibi_bias(n_heads, n)` returns what is added to the scores: a float32 tensor of shape `(n_heads, n, n)`. For head
# $h$, query $i$ and key $j$
#
# $$\text{bias}_{hij} = -m_h \,(i - j) \ \text{ for } j \le i \qquad \text{bias}_{hij} = 0 \ \text{ for } j > i$$
#
# The future gets 0: hiding it is the work of the causal mask, not of the bias. The slopes $m_h$:
#
# - If `n_heads` is a power of two, they are the geometric sequence $2^{-8/n_\text{heads}}, 2^{-16/n_\text{heads}},
#   \dots, 2^{-8}$: with 8 heads $\tfrac12, \tfrac14, \dots, \tfrac1{256}$.
# - Otherwise let $P$ be the largest power of two below `n_heads`. The first $P$ heads have the slopes of $P$ heads. The
#   rest take theirs from the slopes of $2P$ heads: of those the first, the third, the fifth, and so on, as many as
#   are needed. BLOOM, with 112 heads, does it this way.
#
# - `n_heads` and `n` are at least 1.
# - The trap: what is far should lose. A bias of the wrong sign makes a model that only sees the beginning.


# %% exercise="alibi_bias" section="ALiBi"
def alibi_bias(n_heads: int, n: int) -> Float[Tensor, "n_heads n n"]:
    """What ALiBi adds to the scores: −slope · (i − j) for the past, 0 for the future.

    Source: Press et al. 2022 (arXiv 2108.12409), section 3, and its code for other numbers of heads.
    """
    ### BEGIN SOLUTION
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2 ** (-4 * h / power) for h in range(1, 2 * (n_heads - power), 2)]
    position = torch.arange(n)
    distance = (position[:, None] - position).clamp(min=0)
    return -torch.tensor(slopes)[:, None, None] * distance
    ### END SOLUTION


# %% check="alibi_bias" points=4
bias = alibi_bias(8, 5)
assert isinstance(bias, torch.Tensor), f"alibi_bias should return a tensor, not {type(bias).__name__}."
assert bias.shape == (8, 5, 5), f"8 heads and 5 positions make the shape (8, 5, 5), not {tuple(bias.shape)}."
assert bias.dtype == torch.float32, f"The bias should be float32, not {bias.dtype}."
assert bias[0, 2, 2] == 0, "A query is at no distance from its own position: the diagonal should be 0."
assert bias[0, 2, 1] == -0.5, f"Head 0 of 8 has the slope 1/2: one token back costs 1/2, not {-bias[0, 2, 1]:.3g}."
assert alibi_bias(6, 2).shape == (6, 2, 2), "6 heads need 6 slopes, although 6 is no power of two."
print("The visible checks of alibi_bias pass.")

# %% see="alibi_bias"
# What the bias leaves of equal scores. Head 0 sees a handful of tokens; head 7 sees nearly everything.
try:
    import matplotlib.pyplot as plt

    n = 200
    bias = alibi_bias(8, n)[:, -1]  # of the last query
    fig, ax = plt.subplots(figsize=(7, 3), facecolor="white")
    for head, style in ((0, "-"), (3, "--"), (5, "-."), (7, ":")):
        ax.plot(range(n - 1, -1, -1), bias[head].softmax(-1), style, label=f"head {head}")
    ax.set(xlabel="distance (tokens)", ylabel="weight", title="ALiBi: what is far counts less", ylim=(0, 0.06))
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish alibi_bias first, then run this cell again.")

# %% [markdown]
# ## 6 · `stretch_rope` ●●● (the challenge)
#
# A model was trained with RoPE on texts of `n_train` tokens, and shall read texts that are `factor` times as long. At
# the new positions its slow pairs stand at angles that it has never met. The cure is to turn more slowly.
#
# `stretch_rope(d_head, factor, ...)` returns a tuple of two: the frequencies of the pairs, float32 of shape
# `(d_head / 2,)`, which take the place of $f_i = \theta^{-2i/d_\text{head}}$, and the *attention factor*, a Python
# float with which both the sines and the cosines are multiplied.
#
# **`method="linear"`**, position interpolation: every frequency is divided by `factor`, as if the positions were closer
# together. The attention factor is 1.
#
# **`method="yarn"`**: a pair that turns many times within the training length is left alone, because the model has seen
# all its angles. A pair that does not even turn once is divided by `factor`. In between it is a mixture. A pair's place
# is measured by how often it turns; the pair that turns $\beta$ times within `n_train` tokens would have the number
#
# $$c(\beta) = \frac{d_\text{head} \, \ln\!\big(n_\text{train} / (2\pi\beta)\big)}{2 \ln \theta}$$
#
# 1. $\text{low} = c(\beta_\text{fast})$ and $\text{high} = c(\beta_\text{slow})$. With `truncate=True` low is rounded
#    down and high is rounded up, to whole numbers.
# 2. Then low is at least 0, and high at most $d_\text{head} - 1$. If the two are now equal, 0.001 is added to high.
# 3. $r_i = \dfrac{i - \text{low}}{\text{high} - \text{low}}$, but not below 0 and not above 1. (The
#    paper's formula is linear in the number of turns. This is its authors' code, which everybody uses.)
# 4. The frequency is $(1 - r_i)\, f_i + r_i\, f_i / \text{factor}$. The attention factor is
#    $0.1 \ln(\text{factor}) + 1$.
#
# The defaults are gpt-oss's, except for `theta`, which is 150,000 there, and `factor`, which is 32.
#
# - `factor` is at least 1, `d_head` is even, and after step 2 high is never below low.
# - Any other `method` raises a `ValueError` whose sentence names it.
# - The trap: which end of the pairs is the fast one?


# %% exercise="stretch_rope" section="Longer than trained"
def stretch_rope(
    d_head: int,
    factor: float,
    method: str = "linear",
    theta: float = 10000.0,
    n_train: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = False,
) -> tuple[Float[Tensor, " pairs"], float]:
    """Frequencies and attention factor of a RoPE that reaches `factor` times as far. method: "linear" or "yarn".

    Sources: Chen et al. 2023 (arXiv 2306.15595); Peng et al. 2023 (arXiv 2309.00071), section 3.
    """
    ### BEGIN SOLUTION
    pair = torch.arange(d_head // 2)
    frequency = theta ** (-2 * pair / d_head)
    if method == "linear":
        return frequency / factor, 1.0
    if method != "yarn":
        raise ValueError(f"method is {method!r}, and must be 'linear' or 'yarn'")
    low, high = (
        d_head * math.log(n_train / (2 * math.pi * beta)) / (2 * math.log(theta)) for beta in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    ramp = ((pair - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / factor * ramp, 0.1 * math.log(factor) + 1
    ### END SOLUTION


# %% check="stretch_rope" points=6
answer = stretch_rope(8, 4.0)
assert isinstance(answer, tuple), f"stretch_rope should return a tuple, not a {type(answer).__name__}."
assert len(answer) == 2, f"It should return frequencies and attention factor, and not {len(answer)} things."
frequencies, attention_factor = answer
assert frequencies.shape == (4,), f"8 channels are 4 pairs, so there are 4 frequencies, not {tuple(frequencies.shape)}."
assert isinstance(attention_factor, float), (
    f"The attention factor should be a Python float, and yours is of the type {type(attention_factor).__name__}."
)
assert attention_factor == 1, f"Position interpolation leaves the attention factor at 1; yours is {attention_factor}."
assert abs(frequencies[0] - 0.25) < 1e-6, f"Pair 0 turns by 1 a token; with factor 4 by 0.25, not {frequencies[0]:.3g}."
frequencies, attention_factor = stretch_rope(64, 32.0, method="yarn", theta=150000.0)
assert abs(frequencies[0] - 1) < 1e-6, f"YaRN should leave the fastest pair alone; yours turns by {frequencies[0]:.3g}."
assert abs(attention_factor - 1.3466) < 1e-4, (
    f"Of gpt-oss, with factor 32, the attention factor is 1.3466; yours is {attention_factor:.4f}."
)
try:
    stretch_rope(8, 4.0, method="spline")
    message = ""
except ValueError as error:
    message = str(error)
assert "spline" in message, "stretch_rope(8, 4.0, method='spline') should raise a ValueError that names 'spline'."
print("The visible checks of stretch_rope pass.")

# %% see="stretch_rope"
# How many tokens each pair takes for one turn, in gpt-oss. Where do the fast pairs end?
try:
    import matplotlib.pyplot as plt

    pairs = range(32)
    fig, ax = plt.subplots(figsize=(7, 3.4), facecolor="white")
    for label, style, (frequencies, _) in (
        ("as trained", "-", stretch_rope(64, 1.0, theta=150000.0)),
        ("interpolation", "--", stretch_rope(64, 32.0, theta=150000.0)),
        ("YaRN", "o", stretch_rope(64, 32.0, method="yarn", theta=150000.0)),
    ):
        ax.plot(pairs, 2 * math.pi / frequencies, style, label=label)
    ax.axhline(4096, color="grey", linewidth=1)
    ax.text(0, 4700, "trained length", color="grey")
    ax.set(yscale="log", xlabel="pair", ylabel="tokens for one turn", title="YaRN slows down only what is slow")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish stretch_rope first, then run this cell again.")

# %% [markdown]
# ## Train short, test long
#
# Now put them to work. A small language model reads 48 characters at a time while it trains, on the documentation that
# every Python carries. Then it has to guess the *same* characters again with more and more text in front of them, up to
# eight times as much as it has ever seen.
#
# More text is more information. So the loss should fall, or at least not rise. Before you run it: for which of the
# four will it rise the most?


# %% see="stretch_rope"
class Reader(nn.Module):
    """A Transformer of two blocks. `rotate` turns queries and keys, `bias` is added to the scores, `add` to x."""

    def __init__(self, vocabulary, d_model=64, n_heads=4, rotate=None, bias=None, add=None):
        super().__init__()
        self.n_heads, self.rotate, self.bias, self.add = n_heads, rotate, bias, add
        self.tokens = nn.Embedding(vocabulary, d_model)
        nn.init.normal_(self.tokens.weight, std=0.05)
        self.qkv = nn.ModuleList([nn.Linear(d_model, 3 * d_model) for _ in range(2)])
        self.out = nn.ModuleList([nn.Linear(d_model, d_model) for _ in range(2)])
        self.wide = nn.ModuleList([nn.Linear(d_model, 4 * d_model) for _ in range(2)])
        self.back = nn.ModuleList([nn.Linear(4 * d_model, d_model) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(d_model) for _ in range(5)])

    def forward(self, ids):
        n, x = ids.shape[1], self.tokens(ids)
        if self.add:
            x = x * x.shape[-1] ** 0.5 + self.add(n)
        scores = torch.full((n, n), -math.inf).triu(1)
        if self.bias:
            scores = scores + self.bias(n)
        for i in range(2):
            parts = self.qkv[i](self.norms[2 * i](x)).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
            if self.rotate:
                q, k = self.rotate(q), self.rotate(k)
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=scores.expand(1, self.n_heads, n, n))
            x = x + self.out[i](heads.transpose(1, 2).flatten(-2))
            x = x + self.back[i](F.gelu(self.wide[i](self.norms[2 * i + 1](x))))
        return self.norms[4](x) @ self.tokens.weight.T


model = None
try:
    import os

    import matplotlib.pyplot as plt

    from ichimon import corpus, train

    fast = os.environ.get("ICHIMON_FAST") == "1"
    kinds = {
        "sinusoidal": {"add": lambda n: sinusoidal(n, 64)},
        "RoPE": {"rotate": lambda x: rope(x, torch.arange(x.shape[-2]))},
        "ALiBi": {"bias": lambda n: alibi_bias(4, n)},
        "nothing": {},
    }
    sinusoidal(1, 2), rope(torch.ones(1, 2), torch.arange(1)), alibi_bias(1, 1)  # all three are needed
    vocabulary = 257  # every byte, and what ends a text
    some = train.windows(corpus.tokens(vocabulary=vocabulary), batch=16, length=48)
    others = corpus.tokens(split="validation", vocabulary=vocabulary)
    texts = train.windows(others, batch=16 if fast else 64, length=384, seed=1)(0)
    lengths = (48, 96) if fast else (48, 72, 96, 192, 384)

    @torch.no_grad()
    def guess(model, n):
        """The loss on the last 16 characters of each text, with n characters to read."""
        logits = model(texts[:, -n - 1 : -1])[:, -16:]
        return F.cross_entropy(logits.flatten(0, 1), texts[:, -16:].flatten()).item()

    fig, ax = plt.subplots(figsize=(7, 3.6), facecolor="white")
    for (name, parts), style in zip(kinds.items(), ("s-", "o-", "^-", "x:"), strict=True):
        torch.manual_seed(0)
        model = Reader(vocabulary, **parts)
        train.fit(model, some, train.Settings(steps=10 if fast else 300, lr=3e-3, device="cpu"), quiet=True)
        ax.plot(lengths, [guess(model, n) for n in lengths], style, label=name)
        if name == "RoPE":
            roped = model
    ax.axvline(48, color="grey", linewidth=1)
    ax.set(
        xscale="log", xlabel="characters to read", ylabel="loss (nats a character)", title="Trained on 48 characters"
    )
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish sinusoidal, rope and alibi_bias first, then run this cell again.")

# %% [markdown]
# RoPE has no table that could end, and still it fails: at the new distances its pairs stand as they never stood in
# training. Stretch it, without any further training. Positions between the tokens are what interpolation needs.

# %% see="stretch_rope"
try:
    if model is None:
        raise NotImplementedError
    stretch_rope(16, 2.0, method="yarn")

    def yarn(factor):
        """RoPE with other frequencies: the rotation of before, written for half-split pairs."""
        frequencies, attention_factor = stretch_rope(16, factor, method="yarn", n_train=48)

        def rotate(x):
            angles = torch.arange(x.shape[-2])[:, None] * frequencies
            a, b = x.chunk(2, -1)
            turned = torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)
            return attention_factor * turned

        return rotate

    losses = {"as trained": [], "interpolation": [], "YaRN": []}
    for n in lengths:
        ways = {
            "as trained": lambda x: rope(x, torch.arange(x.shape[-2])),
            "interpolation": lambda x, n=n: rope(x, torch.arange(x.shape[-2]) * 48 / n),
            "YaRN": yarn(n / 48),
        }
        for name, way in ways.items():
            roped.rotate = way
            losses[name].append(guess(roped, n))
    fig, ax = plt.subplots(figsize=(7, 3.4), facecolor="white")
    for (name, curve), style in zip(losses.items(), ("o-", "s--", "^-"), strict=True):
        ax.plot(lengths, curve, style, label=name)
    ax.set(
        xscale="log",
        xlabel="characters to read",
        ylabel="loss (nats a character)",
        title="The same RoPE model, stretched",
    )
    ax.set_xticks(lengths, lengths)
    ax.minorticks_off()
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish stretch_rope, and run the cell above first; then run this cell again.")

# %% [markdown]
# One run on one small model is an anecdote. The page of the book has several seeds and tuned learning rates.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: other sizes and bases, positions in the thousands and out
# of order, one row of positions for each sequence, both layouts of pairs, numbers of heads that are no power of two,
# other dtypes, gradients, and the laws that hold whatever the numbers are. Each exercise is marked by itself, and every
# test that passes counts.
#
# Before you hand in, run `python -m ichimon check 03-position.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
