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
#     assignment: 21-looking-inside
# ---

# %% [markdown]
# # 21 · Looking inside
#
# **One question: how do you know why a model said what it said?**
#
# You can look at its numbers: what it would say after each layer, where its heads looked. That makes pictures, and
# pictures are easy to believe. Or you can take a part away and see what breaks. That is an experiment, and it can prove
# you wrong. You will build both, use the second to judge the first, and then two instruments for a model's outputs: a
# test for bias with an honest interval, and an alarm of which you know how often it is right.
#
# The page of the book that goes with this notebook is `book/21-looking-inside`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `logit_lens` | ●●○ | 20 | 4 |
# | `attention_rollout` | ●○○ | 15 | 4 |
# | `mean_ablate` | ●●● | 30 | 7 |
# | `template_bias` | ●●○ | 20 | 5 |
# | `monitor` | ●●○ | 15 | 3 |
# | `explain`, in words | | 15 | 2 |
#
# ## The patient
#
# The set-up cell holds `LanguageModel`, a small LLaMA (chapter 11) without grouped heads. Its parts have the names that
# they have in transformers' LLaMA, Mistral and Qwen, so what you write here also works on those:
#
# | part | what it is |
# |---|---|
# | `model(ids).logits` | ids `(batch, n)` to logits `(batch, n, vocabulary)` |
# | `model.model.embed_tokens` | the table of tokens |
# | `model.model.layers` | the layers: each takes the residual stream `(batch, n, d_model)` and returns the next one |
# | `model.model.layers[i].self_attn` | attention; `head_dim` is the width of one of its heads |
# | `model.model.layers[i].self_attn.o_proj` | its input `(batch, n, n_heads * head_dim)` holds the heads side by side |
# | `model.model.norm` | the norm after the last layer |
# | `model.lm_head` | the read-out: it makes logits of what the norm returns |
#
# ## Hooks
#
# A hook is a function that PyTorch calls when a module runs. `handle = module.register_forward_pre_hook(hook)` calls
# `hook(module, args)` before it runs, where `args` is the tuple of its inputs. If the hook returns a tuple, the module
# runs with that. `register_forward_hook` does the same afterwards, with `hook(module, args, output)`.
# `handle.remove()` takes the hook away. One that stays behind goes on acting in every later run; `hooks_on(model)` of
# the set-up cell counts them.

# %% role="set-up"
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def rotated(x: Float[Tensor, "... n head_dim"]) -> Float[Tensor, "... n head_dim"]:
    """Queries or keys turned by their positions (chapter 03)."""
    n, width = x.shape[-2:]
    angle = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.head_dim = d_model // n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in "qkvo")

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(d_model, d_hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_hidden: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(d_model, eps=1e-6) for _ in range(2))
        self.self_attn, self.mlp = Attention(d_model, n_heads), FeedForward(d_model, d_hidden)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    def __init__(self, vocabulary: int, d_model: int, n_heads: int, n_layers: int, d_hidden: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, d_model)
        self.layers = nn.ModuleList([Layer(d_model, n_heads, d_hidden) for _ in range(n_layers)])
        self.norm = nn.RMSNorm(d_model, eps=1e-6)

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n d_model"]:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LanguageModel(nn.Module):
    """Token ids [batch, n] to an object whose `logits` are [batch, n, vocabulary]."""

    def __init__(self, vocabulary: int, d_model: int = 64, n_heads: int = 4, n_layers: int = 2, d_hidden: int = 0):
        super().__init__()
        self.model = Stack(vocabulary, d_model, n_heads, n_layers, d_hidden or 2 * d_model)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, ids: Int[Tensor, "batch n"]) -> SimpleNamespace:
        return SimpleNamespace(logits=self.lm_head(self.model(ids)))


def hooks_on(model: nn.Module) -> int:
    """How many forward hooks there are on all parts of a model."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def t_quantile(p: float, df: int) -> float:
    """The number below which a Student-t variable with df degrees of freedom stays with probability p, at least 1/2.

    Source: Abramowitz and Stegun 1964, formulas 26.7.3 and 26.7.4, and bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        term, total = math.cos(angle) ** (df % 2), 0.0
        for k in range(df % 2, df - 1, 2):
            total += term
            term *= (k + 1) / (k + 2) * math.cos(angle) ** 2
        inside = math.sin(angle) * total
        if df % 2:
            inside = 2 / math.pi * (angle + inside)
        low, high = (low, angle) if inside > 2 * p - 1 else (angle, high)
    return math.sqrt(df) * math.tan(low)


# %% [markdown]
# ## 1 · `logit_lens` ●●○
#
# Every layer adds to the residual stream, and only at the end does the model turn it into logits. But the stream has
# the same width everywhere. So one can stop after any layer, put what is there through the last norm and the read-out,
# and ask: *what would you say now?* That is the logit lens (nostalgebraist, 2020).
#
# `logit_lens(model, ids)` takes a model as described above and ids of shape `(batch, n)`. It returns a tensor of shape
# `(n_layers + 1, batch, n, vocabulary)`:
#
# - entry 0 is read off the embeddings, before any layer;
# - entry `i` is read off the stream after `i` layers;
# - so the last entry is `model(ids).logits`.
# - Every entry goes through `model.model.norm`, then through `model.lm_head`.
# - The model is left as it was: the same weights, each part in the same training mode, no hook left behind, and none
#   gone that others had put there. The result needs no gradient: its `requires_grad` is `False`.
# - Two traps. A stream that skips the norm is far too small or too large, and differently in each layer. And in
#   transformers `output_hidden_states=True` gives these very streams, but the last of them *after* the norm: who puts
#   all of them through the norm applies it twice.


# %% exercise="logit_lens" section="Looking: the logit lens"
def logit_lens(model: nn.Module, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "n_layers_plus_1 batch n vocabulary"]:
    """What the model would say before its first layer and after each of them.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    ### BEGIN SOLUTION
    streams = []
    listening = [*model.model.layers, model.model.norm]
    hooks = [part.register_forward_pre_hook(lambda part, args: streams.append(args[0])) for part in listening]
    with torch.no_grad():
        model(ids)
        for hook in hooks:
            hook.remove()
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams])
    ### END SOLUTION


# %% check="logit_lens" points=4
torch.manual_seed(0)
model, ids = LanguageModel(11, d_model=8, n_heads=2, n_layers=3), torch.randint(11, (2, 5))
seen = logit_lens(model, ids)
assert isinstance(seen, torch.Tensor), f"logit_lens should return a tensor, not {type(seen).__name__}."
assert seen.shape == (4, 2, 5, 11), (
    f"3 layers, 2 texts of 5 tokens and a vocabulary of 11 should give (4, 2, 5, 11), not {tuple(seen.shape)}."
)
assert torch.allclose(seen[-1], model(ids).logits, atol=1e-5), "The last entry should be what the model says itself."
assert hooks_on(model) == 0, f"After logit_lens {hooks_on(model)} hooks are still there: remove them."
print("The visible checks of logit_lens pass.")

# %% see="logit_lens"
# The model that ships with the course has read Python's documentation and code. What would it say after each layer?
# Each column is a token that it reads, each row a layer; the ink is the probability of the guess. Try another text.
try:
    import matplotlib.pyplot as plt

    from ichimon import moe

    shipped, bpe = moe.load_trained("dense")
    text = "Return True if the object is an instance of a class"
    ids = torch.tensor([bpe.encode(text).ids])
    chances = logit_lens(shipped, ids)[:, 0].softmax(-1)
    best, guesses = chances.max(-1)
    fig, ax = plt.subplots(figsize=(9, 3.2), facecolor="white")
    ax.imshow(best, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, column in [(row, column) for row in range(len(best)) for column in range(best.shape[1])]:
        guess = bpe.decode([int(guesses[row, column])]).replace("\n", "↵").replace("\t", "→").replace("$", r"\$")
        ax.text(column, row, guess, ha="center", va="center", fontsize=8)
    ax.set_xticks(range(ids.shape[1]), [bpe.decode([i]) for i in ids[0].tolist()], rotation=45)
    ax.set_yticks(range(len(best)), ["embeddings", *[f"after layer {i}" for i in range(len(best) - 1)]])
    ax.set(title="The guess of the next token takes shape layer by layer")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish logit_lens first, then run this cell again.")
except ImportError as error:
    print(f"The shipped model needs the course's package ichimon: {error}.")

# %% [markdown]
# The first row knows nothing but the token itself. Does it guess the same token again, or the one that follows most
# often? The lens assumes that an early layer writes in the same code that the last norm and the read-out expect.
# Nothing in training asks for that, and the lens is often brittle (Belrose et al. 2023, arXiv 2303.08112).
#
# ## 2 · `attention_rollout` ●○○
#
# An attention map says how much each position takes from each other *in one layer*. But in the second layer what lies
# at position 3 is no longer token 3: it is already a mixture. Attention rollout follows the mixing down to the tokens.
#
# In each layer the heads are averaged. What a position keeps of itself goes round attention, through the residual
# connection; rollout counts it as much as all that attention brings: the identity is added to the map, and every row is
# divided by its sum. Then the maps are multiplied: what position $i$ has after layer $l$ is a mixture of what the
# positions had after layer $l - 1$.
#
# `attention_rollout(weights)` takes the attention weights of all layers, the first layer first, in a tensor of shape
# `(n_layers, batch, n_heads, n, n)`: row $i$, column $j$ is how much position $i$ takes from position $j$. It returns
# a tensor of shape `(batch, n, n)`: row $i$, column $j$ is how much of token $j$ is in position $i$ after the last
# layer.
#
# - Average the heads, add the identity, divide each row by its sum, multiply: in this order.
# - The rows of `weights` are never negative. Mostly they sum to 1, but a row that may attend to nothing is all zeros,
#   and after pruning a row may sum to less than 1. Every row of the result sums to 1.
# - The result has the dtype of `weights` (float32, float64 or bfloat16), which is not changed.
# - The trap: matrices do not commute. Which map is nearest to the tokens?


# %% exercise="attention_rollout" section="Looking: attention, rolled out"
def attention_rollout(weights: Float[Tensor, "n_layers batch n_heads n n"]) -> Float[Tensor, "batch n n"]:
    """How much of each token is in each position after the last layer, if attention only mixed.

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928), section 3.
    """
    ### BEGIN SOLUTION
    maps = weights.mean(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout
    ### END SOLUTION


# %% check="attention_rollout" points=4
previous = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])  # each position takes all from the one before it
one = attention_rollout(previous.view(1, 1, 1, 3, 3))
assert isinstance(one, torch.Tensor), f"attention_rollout should return a tensor, not {type(one).__name__}."
assert one.shape == (1, 3, 3), f"1 text of 3 tokens should give (1, 3, 3), not {tuple(one.shape)}."
assert torch.allclose(one[0, 2], torch.tensor([0, 0.5, 0.5])), (
    f"After one layer, position 2 should be half token 1 and half itself, not {one[0, 2].tolist()}."
)
two = attention_rollout(previous.expand(2, 1, 4, 3, 3))
assert two.shape == (1, 3, 3), f"2 layers and 4 heads should still give (1, 3, 3), not {tuple(two.shape)}."
assert two[0, 2, 0] > 0, "After two layers something of token 0 should have reached position 2, through position 1."
print("The visible checks of attention_rollout pass.")

# %% see="attention_rollout"
# The map of the last layer, and what the rollout makes of all layers. Where do they tell different stories?
try:
    import matplotlib.pyplot as plt

    from ichimon import moe

    shipped, bpe = moe.load_trained("dense")
    shipped.set_attn_implementation("eager")  # the fused one keeps no weights
    ids = bpe.encode("Return True if the object is an instance of a class").ids
    with torch.no_grad():
        weights = torch.stack(shipped(torch.tensor([ids]), output_attentions=True).attentions)
    panels = {"last layer, mean of its heads": weights[-1, 0].mean(0), "rollout": attention_rollout(weights)[0]}
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.4), facecolor="white")
    for ax, (title, shown) in zip(axes, panels.items(), strict=True):
        ax.imshow(shown, cmap="cividis", vmin=0, vmax=0.6)
        ax.set_xticks(range(len(ids)), [bpe.decode([i]) for i in ids], rotation=90)
        ax.set_yticks(range(len(ids)), [bpe.decode([i]) for i in ids])
        ax.set(title=title, xlabel="token", ylabel="position")
    fig.suptitle("Rolled out, more of every position is itself")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish attention_rollout first, then run this cell again.")
except ImportError as error:
    print(f"The shipped model needs the course's package ichimon: {error}.")

# %% [markdown]
# ## 3 · `mean_ablate` ●●●
#
# Now the experiment. Take what a head brings, put something meaningless in its place, and see what the model says. If
# nothing changes, the head did not matter *here*, however clear its map looked.
#
# What is meaningless? Zeros would be something that the later layers have never met. So the head's output is replaced
# by its **mean over other text**: it goes on saying what it always says, and nothing about this text.
#
# `mean_ablate(model, ids, heads, reference)` returns the logits, of shape `(batch, n, vocabulary)`, that the model
# gives on `ids` while heads are ablated.
#
# | argument | shape | |
# |---|---|---|
# | `ids` | `(batch, n)` | the text in question |
# | `heads` | pairs `(layer, head)` | both counted from 0; may be empty |
# | `reference` | `(texts, m)` | the text over which the mean is taken; any number of texts, any length |
#
# - Several heads, also of one layer, are ablated **together**. With no head the result is `model(ids).logits`.
# - A head's output is its `head_dim` columns of the input of its layer's `o_proj`: the first `head_dim` columns are
#   head 0, and so on.
# - The mean is taken **over all positions of all texts of `reference`**, in the model as it is, with nothing ablated:
#   one vector of `head_dim` numbers a head. It replaces the head's output at every position of `ids`.
# - A layer or a head that the model does not have, such as a negative one, raises a `ValueError` that names the pair.
#   Slices would not complain: they would ablate nothing.
# - The model is left as it was, also after a `ValueError`: the same weights, each part in the same training mode, no
#   hook left behind, and none gone that others had put there. The result's `requires_grad` is `False`.
# - The trap: a mean over `ids` themselves still tells the model about `ids`.


# %% exercise="mean_ablate" section="Testing: ablation"
def mean_ablate(
    model: nn.Module, ids: Int[Tensor, "batch n"], heads: Sequence[tuple[int, int]], reference: Int[Tensor, "texts m"]
) -> Float[Tensor, "batch n vocabulary"]:
    """The model's logits on ids while the output of each of these heads is its mean over reference.

    Raises ValueError for a head that the model does not have.
    Source: Wang et al. 2022 (arXiv 2211.00593), section 2.
    """
    ### BEGIN SOLUTION
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    width = model.model.layers[0].self_attn.head_dim
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[layer].in_features // width):
            raise ValueError(f"The model has no head {head} in layer {layer}: both are counted from 0.")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])
    ### END SOLUTION


# %% check="mean_ablate" points=7
torch.manual_seed(0)
model, ids, reference = LanguageModel(11, 8, 2, 3), torch.randint(11, (2, 5)), torch.randint(11, (4, 7))
said = model(ids).logits.detach()
without = mean_ablate(model, ids, [(1, 0)], reference)
assert isinstance(without, torch.Tensor), f"mean_ablate should return a tensor, not {type(without).__name__}."
assert without.shape == said.shape, f"The logits should have the shape {tuple(said.shape)}, not {tuple(without.shape)}."
assert not torch.allclose(without, said, atol=1e-6), "Without head 0 of layer 1 the model should say something else."
assert torch.equal(model(ids).logits, said), "After mean_ablate the model should say what it said before."
assert hooks_on(model) == 0, f"After mean_ablate {hooks_on(model)} hooks are still there: remove them."
assert torch.allclose(mean_ablate(model, ids, [], reference), said, atol=1e-5), "With no head ablated nothing changes."
assert not torch.allclose(without, mean_ablate(model, ids, [(1, 0)], reference[:1]), atol=1e-6), (
    "The mean is taken over reference: another reference should give other logits."
)
for layer in model.model.layers:
    layer.self_attn.o_proj.weight.data[:, 4:] = 0  # nobody reads head 1 any more
said = model(ids).logits.detach()
assert torch.allclose(mean_ablate(model, ids, [(1, 1)], reference), said, atol=1e-5), (
    "Nobody reads head 1 now, so ablating it, and it alone, should change nothing."
)
alone, back = (mean_ablate(model, text, [(i, 0) for i in range(3)], reference) for text in (ids, ids.flip(1)))
assert torch.allclose(alone, back.flip(1), atol=1e-5), (
    "With head 0 of every layer ablated too, no position hears of another: a text read backwards should give the same "
    "logits backwards."
)
try:
    mean_ablate(model, ids, [(1, 2)], reference)
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("1", "2")), (
    "This model has 2 heads a layer: asking for head 2 of layer 1 should raise a ValueError that names the pair."
)
print("The visible checks of mean_ablate pass.")

# %% [markdown]
# Something real to use it on. Here is a text of random tokens, written twice. Nobody can guess its first half. The
# second half is easy for whoever sees that it is a copy: find the last time that the present token occurred, and say
# what came after it. Heads that do this are called *induction heads* (Olsson et al. 2022, arXiv 2209.11895). The cell
# below trains a model on such texts alone, looks for the head that attends to "what came after it", and then asks
# `mean_ablate` whether that head is the one that matters. It takes under a minute.
#
# Before you run it: the model has two layers of four heads. How many of the eight will be needed?

# %% see="mean_ablate"
copier = None


def copies(batch: int, half: int, vocabulary: int = 64) -> Tensor:
    """Texts of random tokens, each written twice."""
    return torch.randint(vocabulary, (batch, half)).repeat(1, 2)


def second_half_loss(logits: Tensor, ids: Tensor) -> float:
    half = ids.shape[1] // 2
    return F.cross_entropy(logits[:, half:-1].flatten(0, 1), ids[:, half + 1 :].flatten()).item()


def looks(model: nn.Module, layer: int, ids: Tensor, back: int) -> list[float]:
    """For each head of a layer, how much of the second half's attention goes `back` places to the left."""
    half, kept = ids.shape[1] // 2, []
    attention = model.model.layers[layer].self_attn
    hook = attention.register_forward_pre_hook(lambda part, args: kept.append(args[0]))
    with torch.no_grad():
        model(ids)
        hook.remove()
        q, k = (
            rotated(proj(kept[0]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2))
            for proj in (attention.q_proj, attention.k_proj)
        )
        scores = q @ k.mT / attention.head_dim**0.5
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
        return scores.softmax(-1).diagonal(-back, -2, -1)[..., half - back :].mean((0, 2)).tolist()


try:
    import os

    fast = os.environ.get("ICHIMON_FAST") == "1"
    mean_ablate(LanguageModel(64), copies(1, 2), [], copies(1, 2))  # says at once if it is still to be written
    torch.manual_seed(0)
    copier = LanguageModel(64)
    steps = 30 if fast else 600
    optimizer = torch.optim.AdamW(copier.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * min(step / 60, 1.05 - step / steps, 1)
        ids = copies(32, int(torch.randint(10, 21, ())))
        loss = F.cross_entropy(copier(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.manual_seed(1)
    ids, reference = copies(64, 16), torch.randint(64, (64, 32))

    def lost(heads):
        return second_half_loss(mean_ablate(copier, ids, heads, reference), ids)

    print(f"loss in the second half: {lost([]):.2f} nats; who guesses has {math.log(64):.2f}")
    print("layer, head: attention to what came after the same token, to the token before; loss without this head")
    copiers, lookers = [], []
    for layer in (0, 1):
        shares = zip(looks(copier, layer, ids, 15), looks(copier, layer, ids, 1), strict=True)
        for head, (after, before) in enumerate(shares):
            print(f"       {layer}, {head}: {after:5.0%} {before:5.0%}   {lost([(layer, head)]):.2f}")
            copiers += [(layer, head)] if layer == 1 and after > 0.3 else []
            lookers += [(layer, head)] if layer == 0 and before > 0.3 else []
    print(f"without all {len(copiers)} heads of layer 1 that copy: {lost(copiers):.2f}")
    print(f"without all {len(lookers)} heads of layer 0 that look at the token before: {lost(lookers):.2f}")
except NotImplementedError:
    print("Finish mean_ablate first, then run this cell again.")

# %% [markdown]
# Two things are worth a second look. The work is shared: take one copier out and the model still copies, only worse;
# take all of them out and it guesses. And the heads of the first layer never look at what came after. They tell each
# token who stood before it, and only so can the second layer find it. The map of the last layer alone would not have
# shown you either.
#
# ## 4 · `template_bias` ●●○
#
# Does a model expect a nurse to be a "she" and an engineer to be a "he"? Ask it in pairs that differ in nothing but
# that one word, and look at how the answer changes. Such pairs are called *counterfactual*.
#
# `template_bias(score, templates, words, confidence=0.95)` returns three floats: the mean difference and the two ends
# of its confidence interval, `(mean, low, high)`.
#
# | argument | |
# |---|---|
# | `score` | a function from a text to a number, such as the log-probability that a model gives it |
# | `templates` | texts with a gap, `{}`, such as `"The {} said that"` |
# | `words` | pairs to fill the gap with, such as `("engineer", "nurse")` |
#
# - For one template and one pair the difference is `score` of the template filled with the **first** word minus
#   `score` of it filled with the **second**.
# - A template may have several gaps, and all of them get the same word. Nothing else in it is special: other braces
#   stay as they are.
# - The interval is Student's, for **paired** differences: mean ± $t \cdot s / \sqrt n$, where $s$ is the standard
#   deviation with $n - 1$ in its denominator and $t$ the quantile with $n - 1$ degrees of freedom that leaves
#   $(1 - \text{confidence}) / 2$ above it. The set-up cell has `t_quantile`.
# - **$n$ is the number of templates**, not of templates times pairs. Twenty pairs in one sentence are not twenty
#   witnesses: they share the sentence. So first average over the pairs of each template.
# - Fewer than two templates have no spread: raise a `ValueError` whose sentence says how many there were.
# - The trap: the two scores of a pair share nearly everything, the length of the sentence above all. Their difference
#   must be taken before any spread is.


# %% exercise="template_bias" section="Testing what comes out: pairs"
def template_bias(
    score: Callable[[str], float],
    templates: Sequence[str],
    words: Sequence[tuple[str, str]],
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """The mean difference between the first words and the second, and its confidence interval over templates.

    Raises ValueError for fewer than two templates.
    """
    ### BEGIN SOLUTION
    n = len(templates)
    if n < 2:
        raise ValueError(f"An interval needs at least two templates, and there are {n}.")
    differences = []
    for template in templates:
        pairs = [
            score(template.replace("{}", first)) - score(template.replace("{}", second)) for first, second in words
        ]
        differences.append(statistics.fmean(pairs))
    mean = statistics.fmean(differences)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half
    ### END SOLUTION


# %% check="template_bias" points=5
likes = {"a cat": 4.0, "a dog": 1.0, "my cat": 5.0, "my dog": 6.0, "the cat": 2.0, "the dog": 1.0}
found = template_bias(likes.__getitem__, ["a {}", "my {}", "the {}"], [("cat", "dog")])
assert isinstance(found, tuple), f"template_bias should return a tuple of three numbers, not {found!r}."
assert len(found) == 3, f"template_bias should return three numbers, not {len(found)}."
mean, low, high = found
assert math.isclose(mean, 1.0), f"The differences are 3, −1 and 1, so their mean should be 1, not {mean}."
assert low < mean < high, f"The interval should lie around the mean, not from {low} to {high}."
assert math.isclose(mean - low, high - mean, rel_tol=1e-6), "The interval should reach as far down as up."
try:
    template_bias(likes.__getitem__, ["a {}"], [("cat", "dog")])
    message = ""
except ValueError as error:
    message = str(error)
assert "1" in message, (
    "One template has no spread: template_bias should raise a ValueError that says how many there were."
)
print("The visible checks of template_bias pass.")

# %% see="template_bias"
# The model of the course has read Python's documentation. Does it take "list" rather than "tuple" for the thing that
# changes? Score: how much likelier it finds " is changed" than " is returned" after the text.
try:
    from ichimon import moe

    shipped, bpe = moe.load_trained("dense")

    def log_probability(text: str, after: str) -> float:
        """Of `after`, given `text`."""
        start, ids = len(bpe.encode(text).ids), bpe.encode(text + after).ids
        with torch.no_grad():
            logs = shipped(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids)))

    def prefers(text: str) -> float:
        return log_probability(text, " is changed") - log_probability(text, " is returned")

    frames = ["The {}", "A {}", "This {}", "If the {}", "the new {}", "When a {}", "An empty {}", "that the {}"]
    for pair in (("list", "tuple"), ("dictionary", "string"), ("list", "dictionary")):
        mean, low, high = template_bias(prefers, frames, [pair])
        print(f"{pair[0]:>10} minus {pair[1]:10} {mean:+.2f} nats, from {low:+.2f} to {high:+.2f}")
except NotImplementedError:
    print("Finish template_bias first, then run this cell again.")
except ImportError as error:
    print(f"The shipped model needs the course's package ichimon: {error}.")

# %% [markdown]
# An interval that contains 0 says: with these templates we cannot tell. It does not say that there is no bias. And a
# bias in templates that you wrote is a bias in *those* sentences; what people do with the model is another matter.
#
# ## 5 · `monitor` ●●○
#
# Last, an alarm. Something gives every output of a model a score: the higher, the more suspicious. Outputs at or above
# a threshold are **flagged**, and somebody looks at them. **Precision** is the share of the flagged that are really
# bad: too low, and soon nobody looks any more. **Recall** is the share of the bad that are flagged.
#
# `monitor(scores, bad, wanted)` chooses the threshold on outputs for which the truth is known, and returns
# `(threshold, precision, recall)`, three floats.
#
# | argument | shape | |
# |---|---|---|
# | `scores` | `(n,)` | float; several outputs may have the same score |
# | `bad` | `(n,)` | boolean: `True` where the output is really bad |
# | `wanted` | | the lowest precision that is acceptable, from 0 to 1 |
#
# - An output is flagged if its score is **at least** the threshold.
# - The threshold is one of the scores. Of those whose precision is at least `wanted`, it is the one with the largest
#   recall; if several reach that recall, the one with the largest precision.
# - If no score reaches the wanted precision, nothing is flagged: return `(math.inf, 1.0, 0.0)`. Of nothing, nothing is
#   wrong.
# - If nothing in `bad` is `True`, there is nothing to recall: raise a `ValueError` whose sentence says so.
# - The trap: precision goes up *and down* as the threshold falls. The first threshold that misses the wanted precision
#   need not be the end.


# %% exercise="monitor" section="The mathematics"
def monitor(scores: Float[Tensor, "n"], bad: Bool[Tensor, "n"], wanted: float) -> tuple[float, float, float]:
    """The threshold with the largest recall at a precision of at least `wanted`, and its precision and recall.

    Raises ValueError where nothing is bad.
    """
    ### BEGIN SOLUTION
    if not bad.any():
        raise ValueError("None of these outputs is bad, so there is nothing to recall: add some that are.")
    best = (math.inf, 1.0, 0.0)
    for threshold in scores.unique().tolist():
        flagged = bad[scores >= threshold]
        hits = flagged.sum().item()
        precision, recall = hits / len(flagged), hits / bad.sum().item()
        if precision >= wanted and (recall, precision) > (best[2], best[1]):
            best = (threshold, precision, recall)
    return best
    ### END SOLUTION


# %% check="monitor" points=3
scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
found = monitor(scores, torch.tensor([True, True, False, False]), 0.9)
assert isinstance(found, tuple), f"monitor should return a tuple of three numbers, not {found!r}."
assert len(found) == 3, f"monitor should return three numbers, not {len(found)}."
assert [round(x, 4) for x in found] == [0.8, 1.0, 1.0], (
    f"At 0.8 both bad outputs are flagged and no other: (0.8, 1.0, 1.0), not {found}."
)
threshold, precision, recall = monitor(scores, torch.tensor([True, False, False, True]), 0.5)
assert recall == 1, "With a wanted precision of one half, everything may be flagged here: the recall should be 1."
try:
    monitor(scores, torch.zeros(4, dtype=torch.bool), 0.5)
    message = ""
except ValueError as error:
    message = str(error)
assert message, "Where nothing is bad, monitor should raise a ValueError that says so."
print("The visible checks of monitor pass.")

# %% see="monitor"
# An alarm for wrong guesses of the shipped model. The score is its own doubt: one minus the probability of its guess.
# The threshold is chosen on half of the places and then meets the other half, which it has not seen. Does it keep its
# word?
try:
    from ichimon import corpus, moe

    shipped, bpe = moe.load_trained("dense")
    text = "\n".join(text.text for text in corpus.texts(corpus.PROSE, "test"))
    ids = torch.tensor(bpe.encode(text[:40_000]).ids)[: 64 * 65].view(64, 65)
    with torch.no_grad():
        chances, guesses = shipped(ids[:, :-1]).logits.softmax(-1).max(-1)
    doubt, wrong = 1 - chances, guesses != ids[:, 1:]
    chosen = {wanted: monitor(doubt[:32].flatten(), wrong[:32].flatten(), wanted) for wanted in (0.7, 0.8, 0.9, 0.95)}
    print(f"{wrong.float().mean():.0%} of the guesses are wrong. Wanted: precision of the alarm; promised → found")
    for wanted, (threshold, precision, recall) in chosen.items():
        flagged, truth = doubt[32:] >= threshold, wrong[32:]
        found = [(flagged & truth).sum().item() / max(1, part.sum().item()) for part in (flagged, truth)]
        print(f"{wanted:4.0%}: precision {precision:.0%} → {found[0]:.0%}, recall {recall:.0%} → {found[1]:.0%}")
except NotImplementedError:
    print("Finish monitor first, then run this cell again.")
except ImportError as error:
    print(f"The shipped model needs the course's package ichimon: {error}.")

# %% [markdown]
# A threshold is chosen on the past. The numbers for the first half are the best of many that were tried, so on average
# the other half keeps a little less. And if the text changes, so does the promise.
#
# ## In your own words (2 points)
#
# A colleague shows you an attention map of the model that sorts your customers' letters. "Look, it put 70 % of its
# attention on the word *urgent*. That is why it chose the first pile. We can print this map beside each decision as its
# explanation." Write four to six sentences, without a formula: what the map does show, what it does not show and why,
# and the experiment that you would run before the map is printed, with what it is compared to. A person reads this, and
# no test.

# %% [markdown] question="explain" points=2
# Two points for all three; one for two of them.
#
# - The map shows how one head, or a mean of heads, in one layer weighed the values at the positions. It is computed by
#   the model and is really used there.
# - It does not show how much a word changed the decision: the values may be small or cancel, other heads, layers,
#   feed-forward parts and the residual connection carry information too, and in a later layer a position is a mixture
#   of words and no longer the word that stands there. Different maps may go with the same decision.
# - So intervene: replace or remove the word, or ablate the head by its mean, over many letters, and measure how the
#   decision changes; compare with other words and other heads and with a simple rule such as a random word or the
#   nearest one, with an interval. Only if the words with much attention are those whose removal changes the decision
#   does the map deserve its place.

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they give the model other weights, listen for hooks that
# stayed, compare with computations that were written without yours, and know by theory how rows, intervals and
# thresholds must behave. Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 21-looking-inside.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
