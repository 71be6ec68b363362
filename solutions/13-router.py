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
#     assignment: 13-router
# ---

# %% [markdown]
# # 13 · The router and the experts
#
# **One question: how can a model have eight feed-forward layers and pay for two?**
#
# Until now every word went through every number of the model. In a *Mixture of Experts* the feed-forward layer is there
# several times over, each copy with weights of its own. They are called experts. A small matrix, the router, looks at
# each word and sends it to a few of them. The model grows, and the arithmetic for one word does not.
#
# You will build it in four parts: the choice, the layer as it is explained, the layer as it is made fast, and the
# count of what it holds and what it uses. The page of the book that goes with this notebook is `book/13-router`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `route` | ●●○ | 15 | 5 |
# | `MoELayer` | ●●● | 30 | 8 |
# | `grouped_experts` | ●●● | 30 | 7 |
# | `count_parameters` | ●●○ | 15 | 4 |
#
# ## Conventions
#
# - **A token** is one position of one text. Experts are chosen for each token by itself.
# - **A routing** is two tensors of shape `(tokens, top_k)`: `experts` (int64) holds the numbers of the experts that a
#   token uses, counted from 0, and `weights` how much each of them counts. The largest weight stands first.
# - **An expert** is the SwiGLU of chapter 04, without biases. All experts of a layer are kept in two tensors, as in
#   transformers' Mixtral: `gate_up` of shape `(n_experts, 2 * d_hidden, d_model)`, where the first `d_hidden` rows of
#   each expert are its gate and the others its up, and `down` of shape `(n_experts, d_model, d_hidden)`. Each slice is
#   stored as `nn.Linear` stores its weight.
# - **What comes in goes out**: the result has the dtype of the input (float32 or bfloat16), and an input is never
#   changed in place.

# %% role="set-up"
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `route` ●●○
#
# The router gives each token one number for each expert, a logit. A softmax turns them into probabilities
# $p_1, \dots, p_{n_\text{experts}}$, and the token uses the `top_k` experts with the largest.
#
# How much does each of them count? Here the field has two conventions, and a model has to be run with the one that it
# was trained with:
#
# | convention | weights of the chosen experts | with $p$ = 0.70, 0.20, 0.06, 0.04 and `top_k=2` | who |
# |---|---|---|---|
# | renormalised | $p_i$ divided by the sum of the chosen $p$ | 0.78 and 0.22 | Mixtral |
# | as they are | $p_i$ | 0.70 and 0.20 | Switch, OLMoE |
#
# `route(logits, top_k, renormalise=True)` returns `weights` and `experts`, a tuple of two tensors.
#
# | argument | shape | |
# |---|---|---|
# | `logits` | `(tokens, n_experts)` | float32 or bfloat16; `tokens` may be 1 |
# | `top_k` | | from 1 to `n_experts` |
# | `weights` | `(tokens, top_k)` | dtype of `logits`; the largest first |
# | `experts` | `(tokens, top_k)` | int64; the expert that each weight belongs to |
#
# - The softmax runs over **all** experts and is computed in float32, whatever the dtype of the logits.
# - Between experts with equal probability any choice is right, as long as a token gets `top_k` different ones.
# - Logits may be as large as ±10⁴.
# - Gradients flow from the weights to the logits: it is how a router learns.
# - The trap: a routing is made for each token by itself. What the other tokens chose does not matter.


# %% exercise="route" section="Who decides"
def route(
    logits: Float[Tensor, "tokens n_experts"], top_k: int, renormalise: bool = True
) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
    """The weights and the numbers of each token's top_k experts, largest first.

    Source: Jiang et al. 2024 (arXiv 2401.04088), section 2.1; as they are: Fedus et al. 2021 (arXiv 2101.03961).
    """
    ### BEGIN SOLUTION
    probabilities = logits.softmax(-1, dtype=torch.float32)
    weights, experts = probabilities.topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts
    ### END SOLUTION


# %% check="route" points=5
logits = torch.tensor([[0.06, 0.7, 0.04, 0.2], [0.1, 0.2, 0.3, 0.4]]).log()  # so that the softmax gives these numbers
out = route(logits, 2)
assert isinstance(out, tuple), f"route should return a tuple, weights and experts, not {type(out).__name__}."
assert len(out) == 2, f"route should return two tensors, weights and experts, not {len(out)}."
weights, experts = out
assert weights.shape == experts.shape == (2, 2), (
    f"2 tokens with 2 experts each should give (2, 2) twice, not {tuple(weights.shape)} and {tuple(experts.shape)}."
)
assert experts.dtype == torch.int64, f"The numbers of the experts should be int64, not {experts.dtype}."
assert experts.tolist() == [[1, 3], [3, 2]], (
    f"The two largest of 0.06, 0.7, 0.04, 0.2 are numbers 1 and 3, those of 0.1, 0.2, 0.3, 0.4 are 3 and 2; "
    f"yours are {experts.tolist()}."
)
assert torch.allclose(weights.sum(-1), torch.ones(2), atol=1e-5), (
    f"Renormalised weights should sum to 1, and yours sum to {weights.sum(-1).tolist()}."
)
weights, _ = route(logits, 2, renormalise=False)
assert torch.allclose(weights[0], torch.tensor([0.7, 0.2]), atol=1e-5), (
    f"As they are, the first token's weights should be 0.7 and 0.2, not {[round(w, 3) for w in weights[0].tolist()]}."
)
print("The visible checks of route pass.")

# %% see="route"
# Two articles, two conventions: one gives a word 0.7 of one expert and 0.3 of another, the other 0.85 and 0.07. Both
# can come out of one router. Move a logit, and see which bars change.
try:
    import matplotlib.pyplot as plt

    logits = torch.tensor([[2.0, -1.0, 1.15, -0.5]])
    panels = {"all probabilities": torch.zeros(4), "as they are": torch.zeros(4), "renormalised": torch.zeros(4)}
    panels["all probabilities"] = logits.softmax(-1)[0]
    for title, renormalise in (("as they are", False), ("renormalised", True)):
        weights, experts = route(logits, 2, renormalise)
        panels[title][experts[0]] = weights[0]
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, facecolor="white")
    for ax, (title, heights), color in zip(axes, panels.items(), ("#999999", "#E69F00", "#0072B2"), strict=True):
        bars = ax.bar(range(4), heights, color=color)
        ax.bar_label(bars, [f"{height:.2f}" for height in heights.tolist()], fontsize=9)
        ax.set(title=title, xlabel="expert", xticks=range(4), ylim=(0, 1))
    axes[0].set(ylabel="weight")
    fig.suptitle("The same two experts, weighed in two ways")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish route first, then run this cell again.")

# %% [markdown]
# ## 2 · `MoELayer` ●●●
#
# The layer that takes the place of a feed-forward layer. For each token $x$ with its chosen experts $e$ and weights
# $w$:
#
# $$\mathrm{MoE}(x) = \sum_{j=1}^{\text{top\_k}} w_j \; E_{e_j}(x), \qquad
# E_e(x) = W^{\text{down}}_e \left(\mathrm{silu}(W^{\text{gate}}_e x) \odot W^{\text{up}}_e x\right)$$
#
# `MoELayer(d_model, d_hidden, n_experts, top_k, renormalise=True)` is an `nn.Module`. `d_hidden` is the width of
# **one** expert. Its state dict has exactly three entries:
#
# | entry | shape | |
# |---|---|---|
# | `router.weight` | `(n_experts, d_model)` | of `self.router`, an `nn.Linear` without bias |
# | `gate_up` | `(n_experts, 2 * d_hidden, d_model)` | gate first, then up |
# | `down` | `(n_experts, d_model, d_hidden)` | |
#
# - It takes `x` of shape `(batch, n, d_model)` and returns the same shape. How you initialise the weights is up to you.
# - `forward` calls `self.router` once, with all tokens: later chapters listen there.
# - **An expert computes its own tokens and no others.** That is what makes the layer cheap. The tests give an expert
#   weights that are NaN: a token that did not choose it must not notice.
# - An expert that nobody chose changes nothing, and its weights get a gradient of zero or none.
# - There is no dropout, no residual, no noise: training and evaluation give the same result.
# - A clear loop is what is wanted here. Speed comes in part 3.
# - The trap: two experts add to the same token. What the second one writes must not wipe out the first.
#
# Call your `route` by its name. When this part is marked, a right one stands in for it.


# %% exercise="MoELayer" section="How much does each expert count?"
class MoELayer(nn.Module):
    """A feed-forward layer of n_experts SwiGLU experts, of which each token uses top_k.

    Source: Jiang et al. 2024 (arXiv 2401.04088), section 2.1; Shazeer et al. 2017 (arXiv 1701.06538).
    """

    def __init__(self, d_model: int, d_hidden: int, n_experts: int, top_k: int, renormalise: bool = True) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(0.02 * torch.randn(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """What the chosen experts make of each token, weighed and added up."""
        ### BEGIN SOLUTION
        tokens = x.flatten(0, 1)
        weights, experts = route(self.router(tokens), self.top_k, self.renormalise)
        out = torch.zeros_like(tokens)
        for e, (gate_up, down) in enumerate(zip(self.gate_up.unbind(), self.down.unbind(), strict=True)):
            token, place = torch.where(experts == e)
            gate, up = (tokens[token] @ gate_up.T).chunk(2, -1)
            y = (F.silu(gate) * up) @ down.T
            out = out.index_add(0, token, weights[token, place, None] * y)
        return out.view_as(x)
        ### END SOLUTION


# %% check="MoELayer" points=8
layer = MoELayer(4, 6, n_experts=3, top_k=2)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {"router.weight": (3, 4), "gate_up": (3, 12, 4), "down": (3, 4, 6)}
assert shapes == wanted, f"The state dict of MoELayer(4, 6, 3, 2) should hold {wanted}, and it holds {shapes}."
x = torch.randn(2, 5, 4)
assert layer(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(layer(x).shape)}."
)
one = MoELayer(4, 6, n_experts=1, top_k=1)
one.load_state_dict({name: torch.randn_like(value) / 2 for name, value in one.state_dict().items()})
gate, up = (x @ one.gate_up[0].T).chunk(2, -1)
assert torch.allclose(one(x), (F.silu(gate) * up) @ one.down[0].T, atol=1e-5), (
    "With a single expert the layer should be that expert: down(silu(gate x) · up x)."
)
alike = MoELayer(4, 6, n_experts=3, top_k=2)
alike.load_state_dict(
    {
        "router.weight": torch.randn(3, 4),
        "gate_up": one.gate_up.detach().expand(3, 12, 4),
        "down": one.down.detach().expand(3, 4, 6),
    }
)
assert torch.allclose(alike(x), one(x), atol=1e-5), (
    "If all experts are alike, and the weights of each token sum to 1, it should not matter who is chosen."
)
layer = MoELayer(4, 6, n_experts=2, top_k=1)
layer.load_state_dict(
    {
        "router.weight": torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0]]),  # expert 0 where channel 0 is positive
        "gate_up": one.gate_up.detach().expand(2, 12, 4),
        "down": torch.cat([one.down, -one.down]).detach(),
    }
)
x = torch.cat([x, -x], 1)
assert torch.allclose(layer(x), one(x) * x[..., :1].sign(), atol=1e-5), (
    "Expert 1 gives the negative of expert 0, and top_k is 1: each token should get what its own choice gives, whole."
)
print("The visible checks of MoELayer pass.")

# %% stand_in="MoELayer"
import torch  # noqa: E402


def route(logits, top_k, renormalise=True):
    experts = logits.detach().float().argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    scores = logits.float()
    if renormalise:
        return scores.gather(1, experts).softmax(-1).to(logits.dtype), experts
    return (scores - scores.logsumexp(-1, keepdim=True)).gather(1, experts).exp().to(logits.dtype), experts


# %% see="MoELayer"
# Each dot is a token with two numbers, its colour the expert that weighs most. Before any training the router already
# cuts the plane into pieces with straight edges: why straight, and why do they all meet in one point?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(3)
    layer, tokens = MoELayer(2, 4, n_experts=5, top_k=1), 4 * torch.rand(1, 3000, 2) - 2
    kept = []
    layer.router.register_forward_hook(lambda module, inputs, logits: kept.append(logits.detach()))
    layer(tokens)
    first = kept[0].reshape(3000, 5).argmax(-1)
    fig, ax = plt.subplots(figsize=(4.2, 4), facecolor="white")
    for e, color in enumerate(("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#555555")):
        mine = tokens[0, first == e]
        ax.plot(mine[:, 0], mine[:, 1], ".", color=color, markersize=3, label=f"expert {e}: {len(mine) / 30:.0f}%")
    ax.set(xlabel="first number", ylabel="second number", title="A router cuts space into cones", aspect="equal")
    ax.legend(fontsize=8, loc="upper left", markerscale=4)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish route and MoELayer first, then run this cell again.")

# %% [markdown]
# ## 3 · `grouped_experts` ●●●
#
# The loop searches all tokens once for every expert. With 8 experts that is bearable, with 64 it is not. What real
# layers do is **sort**: bring the tokens of expert 0 together, then those of expert 1, and so on. Each expert then
# works on one block of neighbouring rows, and at the end every result goes back to its token.
#
# `grouped_experts(x, weights, experts, gate_up, down)` computes what the loop in `MoELayer` computes, for a routing
# that is given:
#
# | argument | shape | |
# |---|---|---|
# | `x` | `(tokens, d_model)` | |
# | `weights` | `(tokens, top_k)` | dtype of `x`; any numbers, they need not sum to 1 |
# | `experts` | `(tokens, top_k)` | int64; the `top_k` experts of a token are different ones |
# | `gate_up` | `(n_experts, 2 * d_hidden, d_model)` | gate first, then up |
# | `down` | `(n_experts, d_model, d_hidden)` | |
# | result | `(tokens, d_model)` | dtype of `x` |
#
# - Each of the `tokens * top_k` choices is one row: it has a token, an expert and a weight. Sort them by expert.
# - An expert may get no token at all, the last one too; one expert may get them all.
# - **An expert computes its own tokens and no others**, as before.
# - Gradients reach `x`, `weights`, `gate_up` and `down`.
# - `d_model` and `d_hidden` are multiples of 8, so that you may use `F.grouped_mm(rows, matrices, offs=ends)` if you
#   like: it multiplies blocks of rows with a matrix each, where block $g$ ends before row `ends[g]` (int32). A loop
#   over blocks does as well.
# - The trap: after sorting, row $r$ no longer belongs to token $r$. Keep the way back.
#
# Three things decide how fast it becomes. `W[e]` for every $e$ makes a gradient as large as all of `W` each time, and
# `W.unbind()` makes one for all. `x[i]` and `x.index_select(0, i)` give the same rows, and the second one's gradient is
# cheaper. And a block whose memory is used again for the next costs less than fresh memory for all rows at once. The
# tests look at the result; the cell below looks at the clock.


# %% exercise="grouped_experts" section="Six ways to write one layer"
def grouped_experts(
    x: Float[Tensor, "tokens d_model"],
    weights: Float[Tensor, "tokens top_k"],
    experts: Int[Tensor, "tokens top_k"],
    gate_up: Float[Tensor, "n_experts two_d_hidden d_model"],
    down: Float[Tensor, "n_experts d_model d_hidden"],
) -> Float[Tensor, "tokens d_model"]:
    """The weighted sum of each token's experts, computed block by block of tokens sorted by expert.

    Source: Gale et al. 2022 (arXiv 2211.15841), section 2.
    """
    ### BEGIN SOLUTION
    order = experts.flatten().argsort()
    sizes = experts.flatten().bincount(minlength=len(down)).tolist()
    token = order // experts.shape[1]
    rows = x.index_select(0, token)
    shares = weights.flatten().index_select(0, order)[:, None]
    parts = (part.split(sizes) for part in (token, rows, shares))
    out = torch.zeros_like(x)
    for to, mine, share, up_e, down_e in zip(*parts, gate_up.unbind(), down.unbind(), strict=True):
        gate, up = (mine @ up_e.T).chunk(2, -1)
        out.index_add_(0, to, (F.silu(gate) * up * share) @ down_e.T)  # w·down(h) = down(w·h)
    return out
    ### END SOLUTION


# %% check="grouped_experts" points=7
x, gate_up, down = torch.randn(3, 8), torch.randn(4, 16, 8) / 3, torch.randn(4, 8, 8) / 3


def expert(e: int, x: Tensor) -> Tensor:
    gate, up = (gate_up[e] @ x).chunk(2)
    return down[e] @ (F.silu(gate) * up)


experts, weights = torch.tensor([[2, 0], [0, 1], [2, 0]]), torch.tensor([[0.75, 0.25], [1.5, 0.5], [0.9, 0.3]])
out = grouped_experts(x, weights, experts, gate_up, down)
assert isinstance(out, torch.Tensor), f"grouped_experts should return a tensor, not {type(out).__name__}."
assert out.shape == x.shape, f"The result should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
for t, (ours, (first, second), (w, v)) in enumerate(zip(out, experts.tolist(), weights.tolist(), strict=True)):
    wanted = w * expert(first, x[t]) + v * expert(second, x[t])
    assert torch.allclose(ours, wanted, atol=1e-5), (
        f"Token {t} chose the experts {first} and {second}: its result should be {w:g} of the one plus {v:g} of the "
        f"other, and it is off by {(ours - wanted).abs().max():.2g}."
    )
print("The visible checks of grouped_experts pass.")

# %% see="grouped_experts"
# A step of training, forward and backward, for more and more tokens: your loop, your sorted version, and a dense layer
# that computes as much for each token. Which of the three is the slowest at 16 tokens?
try:
    import os
    import time

    import matplotlib.pyplot as plt

    def seconds(step, repeats):
        step()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return sorted(times)[repeats // 2]

    fast = os.environ.get("ICHIMON_FAST") == "1"
    torch.manual_seed(0)
    layer = MoELayer(64, 32, n_experts=64, top_k=8)
    wide, narrow = nn.Linear(64, 2 * 8 * 32, bias=False), nn.Linear(8 * 32, 64, bias=False)

    def by_loop(x):
        return layer(x[None]).square().sum().backward()

    def by_sorting(x):
        routing = route(layer.router(x), 8)
        return grouped_experts(x, *routing, layer.gate_up, layer.down).square().sum().backward()

    def dense(x):
        gate, up = wide(x).chunk(2, -1)
        return narrow(F.silu(gate) * up).square().sum().backward()

    sizes = (16, 256) if fast else (4, 16, 64, 256, 1024, 4096)
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    for step, label, color, style in (
        (by_loop, "the loop", "#D55E00", "o--"),
        (by_sorting, "sorted", "#0072B2", "o-"),
        (dense, "dense", "#555555", "o:"),
    ):
        inputs = [torch.randn(n, 64) for n in sizes]
        times = [seconds(lambda x=x, step=step: step(x), 2 if fast else 7) for x in inputs]
        ax.plot(sizes, [1000 * t for t in times], style, color=color, label=label)
    ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds a step")
    ax.set_title("64 experts, 8 for each token")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish the first three parts, then run this cell again.")

# %% [markdown]
# ## 4 · `count_parameters` ●●○
#
# "A model of 47 billion parameters, 13 billion active." Two numbers, and each needs a definition.
#
# - **Total**: every number that the model stores. It decides how much memory is needed.
# - **Active**: every number that is used for *one* token. Of each layer's experts it counts `top_k`; everything else
#   counts in full: attention, norms, embeddings, routers, and experts that every token uses (*shared* ones).
# - One doubt is left. Of the input embedding a token reads a single row. Mixtral's 13 billion count the whole table,
#   gpt-oss's 3.6 billion leave the table out. So the definition has to say, and `embedding` says it.
#
# `count_parameters(shapes, top_k, embedding=True)` counts from the shapes of a checkpoint, without loading it, and
# returns `(total, active)`.
#
# | argument | |
# |---|---|
# | `shapes` | the shape of each tensor by its name, such as `{"layers.0.mlp.experts.down": (8, 4096, 14336)}` |
# | `top_k` | how many experts of a layer a token uses |
# | `embedding` | if `False`, the input embedding does not count as active; `total` stays as it is |
#
# - A tensor belongs to the routed experts if one of the parts of its name between the dots is exactly `experts`. Its
#   first dimension is then the number of experts, at least `top_k`, which may differ from layer to layer.
# - A tensor is the input embedding if one of these parts is exactly `embed_tokens`.
# - Everything else is used by every token. A shape may be `()`: that is one number.
# - Both results are `int`, exact for any size. A model without experts has as many active as total.
# - The trap: names that look alike. `shared_experts` are used by every token.


# %% exercise="count_parameters" section="What it costs"
def count_parameters(shapes: Mapping[str, Sequence[int]], top_k: int, embedding: bool = True) -> tuple[int, int]:
    """How many numbers a model stores, and how many it uses for one token.

    Source: Jiang et al. 2024 (arXiv 2401.04088), section 2.1; without the embedding: OpenAI 2025 (arXiv 2508.10925).
    """
    ### BEGIN SOLUTION
    total = active = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        total += math.prod(shape)
        if "experts" in parts:
            active += top_k * math.prod(shape[1:])
        elif embedding or "embed_tokens" not in parts:
            active += math.prod(shape)
    return total, active
    ### END SOLUTION


# %% check="count_parameters" points=4
article = {"router.weight": (10_000,), "experts.weight": (4, 1_000_000)}  # four experts of a million, a router of 10k
counts = count_parameters(article, top_k=2)
assert isinstance(counts, tuple), f"count_parameters should return a tuple, not {type(counts).__name__}."
assert len(counts) == 2, f"count_parameters should return two numbers, total and active, not {len(counts)}."
assert all(type(count) is int for count in counts), f"Both numbers should be ints, not {counts}."
assert counts == (4_010_000, 2_010_000), (
    f"Four experts of a million and a router of ten thousand store 4,010,000 numbers, and two experts and the router "
    f"use 2,010,000; yours says {counts[0]:,} and {counts[1]:,}."
)
assert count_parameters({"embed_tokens.weight": (7, 3), "norm.weight": (3,)}, 1, embedding=False) == (24, 3), (
    "Without the embedding, a table of 7 · 3 and a norm of 3 store 24 numbers, and 3 are active."
)
print("The visible checks of count_parameters pass.")

# %% see="count_parameters"
# "8x7B" sounds like 56 billion. What does your function say? Only the feed-forward layers are there eight times.
try:
    d_model, d_hidden, vocabulary = 4096, 14336, 32000
    shapes = {"embed_tokens.weight": (vocabulary, d_model), "norm.weight": (d_model,), "head": (vocabulary, d_model)}
    for i in range(32):
        shapes |= {
            f"layers.{i}.norms": (2, d_model),
            f"layers.{i}.q_and_o": (2, d_model, d_model),
            f"layers.{i}.k_and_v": (2, 1024, d_model),
            f"layers.{i}.router": (8, d_model),
            f"layers.{i}.experts.gate_up": (8, 2 * d_hidden, d_model),
            f"layers.{i}.experts.down": (8, d_model, d_hidden),
        }
    counts = {top_k: count_parameters(shapes, top_k) for top_k in range(1, 9)}
    print("experts a token uses          total         active   share")
    for top_k, (total, active) in counts.items():
        print(f"{top_k:>20} {total:>14,} {active:>14,} {active / total:>7.1%}" + "   <- Mixtral" * (top_k == 2))
except NotImplementedError:
    print("Finish count_parameters first, then run this cell again.")

# %% [markdown]
# ## The experts at work
#
# Below, a small language model learns real text, the reference of Python, with your `MoELayer` as its feed-forward
# layer: 8 experts, 2 for each token. Then it shows a sentence, each piece in the colour of the expert that weighs most.
#
# Popular articles say that one expert knows animals, another one cooking. Before you run it, write down what you expect
# to share a colour: pieces about the same subject? Pieces that look alike? And will all experts be used?

# %% see="MoELayer"
try:
    import os

    import matplotlib.pyplot as plt

    from ichimon import corpus, train

    class Small(nn.Module):
        """Embedding, one causal attention, one MoE layer, each in a residual; logits for the next token."""

        def __init__(self, vocabulary: int, d_model: int = 64) -> None:
            super().__init__()
            self.tokens, self.qkv = nn.Embedding(vocabulary, d_model), nn.Linear(d_model, 3 * d_model, bias=False)
            self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in range(3))
            self.experts = MoELayer(d_model, 64, n_experts=8, top_k=2)
            nn.init.normal_(self.tokens.weight, std=0.05)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids)
            q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.experts(self.norms[1](x))
            return self.norms[2](x) @ self.tokens.weight.T

    fast = os.environ.get("ICHIMON_FAST") == "1"
    torch.manual_seed(0)
    bpe, ids = corpus.tokenizer(), corpus.tokens()
    model = Small(bpe.get_vocab_size())
    settings = train.Settings(steps=10 if fast else 600, lr=3e-3, warmup=5, device="cpu")
    history = train.fit(model, train.windows(ids, batch=16, length=64), settings, quiet=True)
    kept = []
    model.experts.router.register_forward_hook(
        lambda module, inputs, logits: kept.append(logits.detach().flatten(0, -2))
    )
    sentence = "The list of names is sorted, and if the first one is not found, a ValueError is raised. "
    pieces = bpe.encode(sentence).ids
    model(torch.tensor([pieces]))
    model(torch.tensor(ids[:4096].astype("int64")).view(-1, 64))
    first = kept[0].argmax(-1).tolist()
    share = kept[1].topk(2).indices.flatten().bincount(minlength=8) / kept[1].shape[0]
    colors = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999", "#F0E442")
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8.5, 3.6), height_ratios=(1.6, 1), facecolor="white")
    across, down_ = 0.0, 0
    for piece, e in zip(pieces, first, strict=True):
        text = bpe.decode([piece]).replace(" ", "·")
        if across + len(text) > 64:
            across, down_ = 0.0, down_ + 1
        box = {"facecolor": colors[e], "alpha": 0.45, "pad": 1.5, "lw": 0}
        top.text(across, -down_, text, family="monospace", fontsize=10, bbox=box)
        across += len(text) + 0.6
    top.set(xlim=(0, 66), ylim=(-down_ - 0.5, 1), title="Each piece in the colour of its first expert")
    top.axis("off")
    bars = bottom.bar(range(8), share, color=colors)
    bottom.axhline(2 / 8, color="#555555", linestyle="--")
    bottom.set(xlabel="expert", ylabel="share of tokens", xticks=range(8))
    bottom.set_title("How many tokens use it (dashed: if all were equal)")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish route and MoELayer first, then run this cell again.")
except ImportError as error:
    print(f"This cell needs the course's own package: {error}")

# %% [markdown]
# In our run small words, points and commas share one colour, and pieces of nouns and names another: form, not subject.
# And nothing made the router use its experts evenly: two of them get most of the tokens. How to balance them is
# chapter 14, and what they specialise in is measured in chapter 15.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they compare with transformers' Mixtral block in outputs
# and in all gradients, with both conventions, with one to four experts a token, with ties, with an expert that nobody
# chose and with a single one, in bfloat16, and with weights that are NaN where nobody should look. Each exercise is
# marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 13-router.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
