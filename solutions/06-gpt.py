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
#     assignment: 06-gpt
# ---

# %% [markdown]
# # 06 · A GPT, trained
#
# **One question: what comes out when all the parts are put together and trained?**
#
# Tokens, attention, positions, feed-forward, norms: you have met them one by one. None of them can write a line. Put
# together in the right order they are GPT-2, the model that made people look up in 2019, and after two minutes of
# training on an ordinary computer they begin to write lines that could stand in Python's own documentation.
#
# You will build it in four parts and train it at the end. A fifth takes the weights of somebody else's GPT-2. In the
# last you are the doctor: a block is ill, it trains as if it were not, and you find out what is wrong. The page of the
# book that goes with this notebook is `book/06-gpt`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `Block` | ●●○ | 25 | 5 |
# | `GPT` | ●●○ | 25 | 5 |
# | `from_gpt2` | ●●○ | 20 | 4 |
# | `learning_rate` | ●○○ | 10 | 2 |
# | `accumulate` | ●●● | 20 | 4 |
# | `Mended` | ●●○ | 20 | 3 |
# | in your own words | ●○○ | 10 | 2 |
#
# ## Conventions
#
# - **Shapes** are written as jaxtyping writes them. Token ids are integers of shape `(batch, n)`, and what runs through
#   the model has the shape `(batch, n, d_model)`.
# - **State dicts** have the names that a part states, and nothing else: no mask, no second copy of a matrix. Weights
#   are stored as `nn.Linear` and `nn.LayerNorm` store them.
# - **What comes in goes out**: the result has the dtype of the weights, and an input is never changed in place.
# - **There is no dropout** anywhere: training and evaluation give the same result.
#
# You built attention in chapter 02. In this notebook `F.scaled_dot_product_attention` may do that work.
# `nn.MultiheadAttention`, `F.multi_head_attention_forward` and the `nn.Transformer…` layers raise an error while your
# work is marked.

# %% role="set-up"
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `Block` ●●○
#
# A GPT is one block, stacked. In it a position first looks at the others (attention), then thinks by itself
# (feed-forward). Both only *add* to what is there: the sum that runs from the bottom of the model to its top is the
# residual stream. Each of the two reads a normalised copy of the stream. The stream itself is never normalised:
#
# $$h = x + \mathrm{attention}(\mathrm{norm}_1(x)) \qquad y = h + \mathrm{mlp}(\mathrm{norm}_2(h))$$
#
# `Block(d_model, n_heads)` takes `x` of shape `(batch, n, d_model)` and returns the same shape. It is the block of
# GPT-2:
#
# - **Norms** are LayerNorm with gain and bias and `eps` = 1e-5.
# - **Attention** is causal by itself: position `i` sees the positions up to `i`, itself included. It has `n_heads`
#   heads of `d_model / n_heads` channels: head 0 takes the first channels of q, k and v, head 1 the next ones, and so
#   on, and the results lie side by side in the same order. Its four projections have biases.
# - **The feed-forward part** goes from `d_model` to `4 · d_model` channels and back, with biases, and with GELU in its
#   *tanh* form between: `F.gelu(x, approximate="tanh")`.
# - If `d_model` is not divisible by `n_heads`, creating the block raises a `ValueError` whose sentence names both
#   numbers.
#
# The state dict has exactly these entries, a `weight` and a `bias` each:
#
# `norm1` · `attention.q_proj` · `attention.k_proj` · `attention.v_proj` · `attention.o_proj` · `norm2` ·
# `mlp.up_proj` · `mlp.down_proj`
#
# How you initialise them is up to you. The three classes below are a proposal; only `Block` is marked, and the names in
# its state dict. The trap: much of what can be wrong here trains all the same, only a little worse.


# %% exercise="Block" section="A stream with blocks on it"
class Attention(nn.Module):
    """Causal multi-head self-attention with biases: q_proj, k_proj, v_proj, o_proj."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be divisible by n_heads ({n_heads}): heads share it equally")
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each position attends to itself and to those before it."""
        ### BEGIN SOLUTION
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for proj in projections)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(heads.transpose(1, 2).reshape(x.shape))
        ### END SOLUTION


class MLP(nn.Module):
    """d_model channels to 4 · d_model and back, with GELU between: up_proj, down_proj."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each position by itself."""
        ### BEGIN SOLUTION
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))
        ### END SOLUTION


class Block(nn.Module):
    """The block of GPT-2: attention and feed-forward, each added to the stream, each with a norm before it.

    Raises ValueError if d_model is not divisible by n_heads.
    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """What comes in, plus what the two sub-layers make of it."""
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


# %% check="Block" points=5
block = Block(8, 2)
layers = ["norm1", *(f"attention.{letter}_proj" for letter in "qkvo"), "norm2", "mlp.up_proj", "mlp.down_proj"]
names = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
assert set(block.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(block.state_dict())}."
)
x = torch.randn(2, 5, 8)
assert block(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(block(x).shape)}."
)
changed = x.clone()
changed[:, 3] += torch.randn(8)
moved = (block(changed) - block(x)).abs().amax((0, 2)) > 1e-6
assert not moved[:3].any(), "Position 3 changed, and a position before it noticed: the block should not look ahead."
assert moved[3:].all(), "Position 3 changed, and it or a position after it did not notice."
state = block.state_dict()
block.load_state_dict(
    state | {name: torch.zeros_like(state[name]) for name in names if "o_proj" in name or "down" in name}
)
assert torch.allclose(block(x), x, atol=1e-6), (
    "Where o_proj and down_proj are zero, attention and feed-forward add nothing: the block should return x itself."
)
print("The visible checks of Block pass.")

# %% see="Block"
# Eight blocks on top of each other, just created: how large is the stream, and how much does each part add to it?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    x = torch.randn(1, 32, 64)
    stream, added = [], []
    with torch.no_grad():
        for _ in range(8):
            block = Block(64, 4)
            y = block(x)
            stream.append(x.norm(dim=-1).mean())
            added.append((y - x).norm(dim=-1).mean())
            x = y
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(range(8), stream, "o-", color="#0072B2", label="the stream")
    ax.plot(range(8), added, "s--", color="#D55E00", label="what the block adds")
    ax.set(
        xlabel="block", ylabel="length of the vector", ylim=(0, None), title="A block adds a little to a large stream"
    )
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish Block first, then run this cell again.")

# %% [markdown]
# ## 2 · `GPT` ●●○
#
# Around the blocks there is surprisingly little: a table with a vector for each token, a table with a vector for each
# position, and a last norm. To read the next token off, the vector at each position is compared with every token's
# vector: one dot product for each, and these are the logits. It is the *same* table as at the bottom (the weights are
# tied), so no second one is stored.
#
# $$x_0 = E[\mathrm{ids}] + P[0 \ldots n-1] \qquad x_{l+1} = \mathrm{block}_l(x_l) \qquad
# \mathrm{logits} = \mathrm{norm}(x_L)\, E^\top$$
#
# `GPT(vocabulary, n_context, d_model, n_layers, n_heads)` takes ids of shape `(batch, n)` and returns logits of shape
# `(batch, n, vocabulary)`, not probabilities. The state dict has exactly these entries:
#
# | name | shape |
# |---|---|
# | `tokens.weight` | `(vocabulary, d_model)` |
# | `positions.weight` | `(n_context, d_model)` |
# | `blocks.0.…`, `blocks.1.…`, … | those of `Block` |
# | `norm.weight`, `norm.bias` | `(d_model,)`; `eps` = 1e-5 |
#
# - The first token stands at position 0.
# - `n` may be anything from 1 to `n_context`. For a longer text `forward` raises a `ValueError` whose sentence names
#   both numbers.
# - **Initialisation.** A new model's matrices, both tables included, are normal with mean 0 and a standard deviation of
#   0.02. Those that write into the stream (`attention.o_proj.weight` and `mlp.down_proj.weight` of each block) get
#   0.02 / √(2 · n_layers), so that the stream does not grow with the depth. All biases are 0, the gains of the norms 1.
# - The trap: a model without positions, or without its last norm, trains too.
#
# Call `Block(d_model, n_heads)` by its name. When this part is marked, a right one stands in for yours.


# %% exercise="GPT" section="One table, used twice"
class GPT(nn.Module):
    """GPT-2: token ids to the logits of the token that follows, at every position.

    Raises ValueError for a text longer than n_context.
    Source: Radford et al. 2019, section 2.3; tied weights: Press and Wolf 2017 (arXiv 1608.05859).
    """

    def __init__(self, vocabulary: int, n_context: int, d_model: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        ### END SOLUTION

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
        """At each position the logits of the token that comes after it."""
        ### BEGIN SOLUTION
        n, n_context = ids.shape[1], len(self.positions.weight)
        if n > n_context:
            raise ValueError(f"The text has {n} tokens, and this model has positions for {n_context}: shorten it")
        x = self.tokens(ids) + self.positions.weight[:n]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T
        ### END SOLUTION


# %% check="GPT" points=5
model = GPT(vocabulary=50, n_context=16, d_model=8, n_layers=2, n_heads=2)
outside = {name for name in model.state_dict() if not name.startswith("blocks.")}
assert outside == {"tokens.weight", "positions.weight", "norm.weight", "norm.bias"}, (
    f"Beside the blocks the state dict should hold tokens, positions and norm, and it holds {sorted(outside)}."
)
numbers = sorted({name.split(".")[1] for name in model.state_dict() if name.startswith("blocks.")})
assert numbers == ["0", "1"], f"With two layers the state dict should hold blocks.0 and blocks.1, not blocks {numbers}."
ids = torch.randint(50, (3, 7))
assert model(ids).shape == (3, 7, 50), (
    f"Ids of shape (3, 7) should give logits of shape (3, 7, 50), not {tuple(model(ids).shape)}."
)
loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).item()
assert abs(loss - math.log(50)) < 0.3, (
    f"A new model knows nothing: its loss should be near ln 50 = {math.log(50):.2f}, and it is {loss:.2f}."
)
try:
    model(torch.zeros(1, 17, dtype=torch.long))
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("17", "16")), (
    "17 tokens do not fit into 16 positions: forward should raise a ValueError that names both numbers."
)
print("The visible checks of GPT pass.")

# %% stand_in="GPT"
import torch  # noqa: E402
from torch import nn  # noqa: E402


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        linear = torch.nn.Linear
        self.attention = nn.ModuleDict({f"{letter}_proj": linear(d_model, d_model) for letter in "qkvo"})
        self.mlp = nn.ModuleDict({"up_proj": linear(d_model, 4 * d_model), "down_proj": linear(4 * d_model, d_model)})

    def forward(self, x, attend=torch.nn.functional.scaled_dot_product_attention, gelu=torch.nn.functional.gelu):
        parts, y = self.attention, self.norm1(x)
        q, k, v = (torch.stack(parts[f"{p}_proj"](y).chunk(self.n_heads, -1), 1) for p in "qkv")
        x = x + parts["o_proj"](torch.cat(attend(q, k, v, is_causal=True).unbind(1), -1))
        hidden = gelu(self.mlp["up_proj"](self.norm2(x)), approximate="tanh")
        return x + self.mlp["down_proj"](hidden)


# %% see="GPT"
# The smallest GPT-2, without a single byte for its weights: where are its parameters? Transformers counts 124,439,808.
try:
    import matplotlib.pyplot as plt

    with torch.device("meta"):  # shapes only
        model = GPT(vocabulary=50_257, n_context=1024, d_model=768, n_layers=12, n_heads=12)
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = next((p for p in ("tokens", "positions", "attention", "mlp") if p in name), "norms")
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    fig, ax = plt.subplots(figsize=(6, 2.6), facecolor="white")
    ax.barh(list(sizes), [size / 1e6 for size in sizes.values()], color="#0072B2")
    ax.invert_yaxis()
    ax.set(xlabel="million parameters", title=f"Your GPT-2 has {sum(sizes.values()):,} parameters")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish Block and GPT first, then run this cell again.")

# %% [markdown]
# ## 3 · `from_gpt2` ●●○
#
# Your model is GPT-2, so GPT-2's weights must fit. They come as a state dict with other names and, in part, another
# layout. `from_gpt2(state)` takes the state dict of transformers' `GPT2LMHeadModel` and returns one for your `GPT`: a
# plain dict, every tensor with the values and the dtype it had.
#
# | in transformers | shape of the weight | in yours |
# |---|---|---|
# | `transformer.wte.weight` | `(vocabulary, d_model)` | `tokens.weight` |
# | `transformer.wpe.weight` | `(n_context, d_model)` | `positions.weight` |
# | `transformer.h.0.ln_1` | `(d_model,)` | `blocks.0.norm1` |
# | `transformer.h.0.attn.c_attn` | `(d_model, 3 · d_model)` | q, then k, then v, side by side |
# | `transformer.h.0.attn.c_proj` | `(d_model, d_model)` | `blocks.0.attention.o_proj` |
# | `transformer.h.0.ln_2` | `(d_model,)` | `blocks.0.norm2` |
# | `transformer.h.0.mlp.c_fc` | `(d_model, 4 · d_model)` | `blocks.0.mlp.up_proj` |
# | `transformer.h.0.mlp.c_proj` | `(4 · d_model, d_model)` | `blocks.0.mlp.down_proj` |
# | `transformer.ln_f` | `(d_model,)` | `norm` |
# | `lm_head.weight` | `(vocabulary, d_model)` | the same matrix as `wte`: not needed, and not in every file |
#
# Where no `.weight` is written there is a `.weight` and a `.bias`; a bias has as many entries as its layer has outputs.
#
# - Layers whose names begin with `c_` are of a class called `Conv1D`. It computes `x @ weight + bias`.
# - There may be any number of blocks; GPT-2 small has 12.
# - Files of older versions also hold `transformer.h.0.attn.bias` and `transformer.h.0.attn.masked_bias`. These are
#   masks, not parameters: leave them out.
# - The state dict that came in is not changed.
# - The trap: a square matrix fits the wrong way round, too.


# %% exercise="from_gpt2" section="The mathematics"
def from_gpt2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' GPT2LMHeadModel as one of GPT: renamed, cut and transposed."""

    ### BEGIN SOLUTION
    def layer(theirs: str, ours: str) -> None:
        for part in ("weight", "bias"):
            value = state[f"transformer.{theirs}.{part}"]
            found[f"{ours}.{part}"] = value.T if value.dim() == 2 else value

    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    layer("ln_f", "norm")
    for i in {name.split(".")[2] for name in state if name.startswith("transformer.h.")}:
        layer(f"h.{i}.ln_1", f"blocks.{i}.norm1")
        layer(f"h.{i}.ln_2", f"blocks.{i}.norm2")
        layer(f"h.{i}.attn.c_proj", f"blocks.{i}.attention.o_proj")
        layer(f"h.{i}.mlp.c_fc", f"blocks.{i}.mlp.up_proj")
        layer(f"h.{i}.mlp.c_proj", f"blocks.{i}.mlp.down_proj")
        layer(f"h.{i}.attn.c_attn", "fused")
        for part in ("weight", "bias"):
            thirds = found.pop(f"fused.{part}").chunk(3)
            for third, letter in enumerate("qkv"):
                found[f"blocks.{i}.attention.{letter}_proj.{part}"] = thirds[third]
    return found
    ### END SOLUTION


# %% check="from_gpt2" points=4
shapes = {
    "transformer.wte.weight": (10, 4),
    "transformer.wpe.weight": (6, 4),
    "transformer.h.0.ln_1.weight": (4,),
    "transformer.h.0.ln_1.bias": (4,),
    "transformer.h.0.attn.c_attn.weight": (4, 12),
    "transformer.h.0.attn.c_attn.bias": (12,),
    "transformer.h.0.attn.c_proj.weight": (4, 4),
    "transformer.h.0.attn.c_proj.bias": (4,),
    "transformer.h.0.ln_2.weight": (4,),
    "transformer.h.0.ln_2.bias": (4,),
    "transformer.h.0.mlp.c_fc.weight": (4, 16),
    "transformer.h.0.mlp.c_fc.bias": (16,),
    "transformer.h.0.mlp.c_proj.weight": (16, 4),
    "transformer.h.0.mlp.c_proj.bias": (4,),
    "transformer.ln_f.weight": (4,),
    "transformer.ln_f.bias": (4,),
    "lm_head.weight": (10, 4),
}
found = from_gpt2({name: torch.randn(shape) for name, shape in shapes.items()})
assert isinstance(found, dict), f"from_gpt2 should return a dict, not {type(found).__name__}."
inside = [f"attention.{letter}_proj" for letter in "qkvo"] + ["norm1", "norm2", "mlp.up_proj", "mlp.down_proj"]
names = {f"{layer}.{part}" for layer in ["norm", *(f"blocks.0.{one}" for one in inside)] for part in ("weight", "bias")}
names |= {"tokens.weight", "positions.weight"}
assert set(found) == names, f"Too many names: {sorted(set(found) - names)}; missing: {sorted(names - set(found))}."
assert found["blocks.0.attention.q_proj.weight"].shape == (4, 4), "q_proj.weight should be (d_model, d_model)."
assert found["blocks.0.mlp.up_proj.weight"].shape == (16, 4), (
    f"nn.Linear(4, 16) stores a weight of shape (16, 4), not {tuple(found['blocks.0.mlp.up_proj.weight'].shape)}."
)
print("The visible checks of from_gpt2 pass.")

# %% see="from_gpt2"
# A GPT-2 of transformers with random weights, and yours with the same: do they say the same?
try:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 4}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    for parameter in theirs.parameters():  # gains and biases too: at 1 and 0 they would hide mistakes
        torch.nn.init.normal_(parameter, std=0.4)
    model = GPT(vocabulary=60, n_context=24, d_model=16, n_layers=3, n_heads=4)
    model.load_state_dict(from_gpt2(theirs.state_dict()))
    ids = torch.randint(60, (2, 24))
    with torch.no_grad():
        mine, expected = model(ids), theirs(ids).logits
    print(
        f"The logits are of size {expected.std():.1f}. "
        f"Yours differ from those of transformers by {(mine - expected).abs().max():.1g}."
    )
except NotImplementedError:
    print("Finish Block, GPT and from_gpt2 first, then run this cell again.")
except ImportError:
    print("This cell compares with transformers, which is not installed here; nothing else needs it.")
except RuntimeError as error:
    print(f"The weights do not fit into your GPT yet: {error}")

# %% [markdown]
# With a network and half a gigabyte to spare you can do the same with the real one:
#
# ```python
# from transformers import AutoTokenizer, GPT2LMHeadModel
#
# model = GPT(vocabulary=50_257, n_context=1024, d_model=768, n_layers=12, n_heads=12)
# model.load_state_dict(from_gpt2(GPT2LMHeadModel.from_pretrained("openai-community/gpt2").state_dict()))
# ```
#
# ## 4 · `learning_rate` ●○○
#
# How far a training step goes is the learning rate. In the first steps it must be small, because the optimiser's
# averages are still made of almost nothing; towards the end it must be small again, to settle. In between it should be
# as large as it can be. Nearly every GPT was trained on this curve: a straight line up, half a cosine down.
#
# `learning_rate(step, *, peak, warmup, steps, final)` returns the rate of one step, a float. Steps count from 0.
#
# - **Warm-up**: on the steps 0 … `warmup` − 1 it climbs in equal strides. The same stride leads from 0 to the rate of
#   step 0, and from step `warmup` − 1 to `peak` at step `warmup`. So no step has the rate 0.
# - **Cosine**: from `peak` at step `warmup` it falls along half a cosine to `final`, which it has at step `steps`.
#   Halfway between these two steps it is halfway between these two rates.
# - From step `steps` on it stays `final`.
# - `warmup` may be 0: then step 0 has `peak`. `warmup` is always less than `steps`. `final` is a rate, not a fraction
#   of `peak`, and may be 0.
# - The trap: with a first step of rate 0, one batch is wasted; with a cosine that ends elsewhere, the end is noisy.


# %% exercise="learning_rate" section="How large a step?"
def learning_rate(step: int, *, peak: float, warmup: int, steps: int, final: float) -> float:
    """The rate of one step: linear warm-up to `peak`, then half a cosine down to `final`.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """
    ### BEGIN SOLUTION
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / (steps - warmup), 1)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
    ### END SOLUTION


# %% check="learning_rate" points=2
rate = learning_rate(5, peak=1.0, warmup=5, steps=105, final=0.1)
assert isinstance(rate, float), f"learning_rate should return a float, not {type(rate).__name__}."
assert math.isclose(rate, 1.0), f"At step `warmup` the rate should be `peak` = 1, not {rate:.3g}."
rate = learning_rate(0, peak=1.0, warmup=9, steps=100, final=0.1)
assert rate > 0, "At step 0 the rate should be above 0: a step of rate 0 changes nothing."
rate = learning_rate(105, peak=1.0, warmup=5, steps=105, final=0.1)
assert math.isclose(rate, 0.1), f"At step `steps` the rate should be `final` = 0.1, not {rate:.3g}."
print("The visible checks of learning_rate pass.")

# %% see="learning_rate"
try:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for warmup, colour, line in ((0, "#0072B2", "-"), (20, "#D55E00", "--"), (100, "#009E73", ":")):
        rates = [learning_rate(step, peak=1e-3, warmup=warmup, steps=300, final=1e-4) for step in range(340)]
        ax.plot(rates, line, color=colour, label=f"warm-up of {warmup} steps")
    ax.set(xlabel="step", ylabel="learning rate", ylim=(0, None), title="Up in a straight line, down along a cosine")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish learning_rate first, then run this cell again.")

# %% [markdown]
# ## 5 · `accumulate` ●●●
#
# Large models learn best from large batches, which do not fit into memory. So a batch is cut into micro-batches: the
# gradients of one after the other are added up, and only then the weights are changed. Done right, the gradient is that
# of the whole batch. It was done slightly wrong for years, in libraries that everybody used.
#
# `accumulate(model, batches)` takes a list of micro-batches, each a pair `(ids, targets)` of integers of the same shape
# `(batch, n)`. `model(ids)` gives logits of shape `(batch, n, vocabulary)`. A target of −100 does not count (padding,
# for instance); all others do, at least one in the list. Micro-batches may differ in `batch`, in `n` and in how many
# targets count.
#
# - **The loss** is the mean cross-entropy over all targets that count in the whole list: every token weighs the same,
#   whichever micro-batch it is in. `accumulate` returns it as a float.
# - **The gradients** of this loss are *added* to the `.grad` of the model's parameters, as `backward()` adds them.
#   `accumulate` neither sets gradients to zero nor changes a weight.
# - **Memory**: the model is called once for each micro-batch, in order, and the backward pass of one is over before the
#   model is called for the next. Otherwise nothing is saved.
# - A micro-batch in which no target counts adds nothing, and above all no NaN.
# - The trap: a mean of means is the mean only where all parts are equally large.


# %% exercise="accumulate" section="The gradient of a large batch is the mean of its pieces' gradients"
def accumulate(model: nn.Module, batches: Sequence[tuple[Int[Tensor, "batch n"], Int[Tensor, "batch n"]]]) -> float:
    """Add to the gradients those of the mean loss over all targets of all micro-batches; return that loss."""
    ### BEGIN SOLUTION
    counted = sum((targets != -100).sum() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / counted
        loss.backward()
        mean += loss.item()
    return mean
    ### END SOLUTION


# %% check="accumulate" points=4
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
ids, targets = torch.randint(10, (4, 6)), torch.randint(10, (4, 6))
loss = accumulate(model, [(ids[:2], targets[:2]), (ids[2:], targets[2:])])
assert isinstance(loss, float), f"accumulate should return a float, not {type(loss).__name__}."
whole = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
assert math.isclose(loss, whole.item(), rel_tol=1e-4), (
    f"Two equal micro-batches should give the loss of both together, {whole.item():.4f}, not {loss:.4f}."
)
found = model[1].weight.grad
assert found is not None, "After accumulate the model's parameters should have gradients: was backward() called?"
expected = torch.autograd.grad(whole, model[1].weight)[0]
assert torch.allclose(found, expected, atol=1e-6), (
    "Two equal micro-batches should give the gradient of both together. "
    f"Yours is {(found.norm() / expected.norm()).item():.3g} times as long."
)
print("The visible checks of accumulate pass.")

# %% stand_in="accumulate"
import torch  # noqa: E402


class Watched(torch.nn.Module):
    """What the tests of accumulate train: it tells when it is called, and when a gradient comes back.

    `noted` is for naming mistakes; what the tests judge is told to them.
    """

    def __init__(self, vocabulary, d_model, told=None):
        super().__init__()
        self.told, self.noted = told, []
        self.tokens = torch.nn.Embedding(vocabulary, d_model)
        self.read = torch.nn.Linear(d_model, vocabulary)

    def forward(self, ids):
        logits = self.read(torch.tanh(self.tokens(ids)))
        if self.told is not None:
            self.tell("forward", list(ids.shape))
            if logits.requires_grad:
                logits.register_hook(lambda grad: self.tell("backward", list(grad.shape[:2])))
        return logits

    def tell(self, what, shape):
        self.noted.append(what)
        self.told(what, shape)


class Slices(list):
    """Micro-batches as a student makes them: ids and targets are slices of one tensor of texts."""

    def __init__(self, texts):
        super().__init__((text[:, :-1], text[:, 1:]) for text in texts)


# %% see="accumulate"
# One batch of 4 texts of different length, whole and in 4 pieces. The mean of means gives short texts too much weight.
try:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50))
    texts = [torch.randint(50, (1, n + 1)) for n in (2, 5, 20, 60)]

    def gradient(losses: list[Tensor]) -> Tensor:
        return torch.autograd.grad(sum(losses), model[1].weight)[0]

    def loss_of(text: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten(), reduction=reduction)

    whole = gradient([loss_of(text, "sum") / (2 + 5 + 20 + 60) for text in texts])
    means = gradient([loss_of(text, "mean") / len(texts) for text in texts])
    accumulate(model, [(text[:, :-1], text[:, 1:]) for text in texts])
    for label, found in (("yours", model[1].weight.grad), ("a mean of means", means)):
        angle = math.degrees(math.acos(min(1, F.cosine_similarity(found.flatten(), whole.flatten(), 0).item())))
        print(f"{label:>15}: {found.norm() / whole.norm():.2f} times as long as it should be, {angle:.0f}° off course")
except NotImplementedError:
    print("Finish accumulate first, then run this cell again.")

# %% [markdown]
# ## 6 · `Mended` ●●○, a bug clinic
#
# A colleague has rewritten PyTorch's Transformer layer to understand it. It is a block of the *first* GPT, where the
# norm comes after the sum. Its state dict has the names of `nn.TransformerEncoderLayer`. It trains without a murmur,
# and the loss falls as it should. But with PyTorch's weights it does not give PyTorch's output.
#
# It has one fault. Here is the patient.


# %% see="accumulate"
class SelfAttention(nn.Module):
    """Causal multi-head self-attention; q, k and v come from one fused projection."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (d_head, self.n_heads)).movedim(-1, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, -1).flatten(-2))


class Patient(nn.Module):
    """A block of GPT-1, with the names of nn.TransformerEncoderLayer."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% [markdown]
# Do not read it yet. Measure first. `ichimon.diff` runs two models on the same input, notes what every sub-layer gives,
# and names the first where they part. Put your questions into the cell below: what you change between two examinations
# tells you more than the code.


# %% see="accumulate"
def examine(d_model: int, n_heads: int) -> str:
    """Where the patient and PyTorch's layer part, with the same random weights."""
    from functools import partial

    from ichimon.diff import diff

    class Healthy(nn.TransformerEncoderLayer):
        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return super().forward(x, src_mask=mask, is_causal=True)

    torch.manual_seed(0)
    activation = partial(F.gelu, approximate="tanh")
    healthy = Healthy(d_model, n_heads, 4 * d_model, dropout=0.0, activation=activation, batch_first=True)
    for parameter in healthy.parameters():
        nn.init.normal_(parameter, std=0.5)
    patient = Patient(d_model, n_heads)
    patient.load_state_dict(healthy.state_dict())
    found = diff(patient, healthy, torch.randn(2, 5, d_model))
    return "They agree everywhere." if found is None else str(found)


try:
    for n_heads in (4, 2, 1):
        print(f"{n_heads} × {8 // n_heads} channels: {examine(8, n_heads)}")
except ImportError as error:
    print(f"The examination needs the course's package ichimon: {error}.")

# %% [markdown]
# Now you know where, and when. Read those lines, and mend them.
#
# `Mended(d_model, n_heads)` is the patient in health: it takes `x` of shape `(batch, n, d_model)`, is causal, and gives
# what `nn.TransformerEncoderLayer` gives with the same weights, `norm_first=False`, GELU in its tanh form, no dropout
# and a causal mask. The state dict keeps the patient's names and shapes.
#
# - `d_model` is divisible by `n_heads` here; you need not check it.
# - Copy what you need from the patient into this cell: the cells above are not there when your work is marked. If you
#   change a helper class, keep its name or give it another one, as you like; only `Mended` is marked.
# - The trap: the fault is one idea, and an idea can stand in more than one line.


# %% exercise="Mended" section="It trains, so it is right"
class Mended(nn.Module):
    """A block of GPT-1, in health: with the same weights it gives what nn.TransformerEncoderLayer gives."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.n_heads = n_heads
        fused = nn.Linear(d_model, 3 * d_model)
        self.self_attn = nn.Module()
        self.self_attn.in_proj_weight, self.self_attn.in_proj_bias = fused.weight, fused.bias
        self.self_attn.out_proj = nn.Linear(d_model, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Attention and feed-forward, each added to what came in, and a norm after each sum."""
        ### BEGIN SOLUTION
        fused = F.linear(x, self.self_attn.in_proj_weight, self.self_attn.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in fused.chunk(3, -1))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.norm1(x + self.self_attn.out_proj(heads.transpose(1, 2).reshape(x.shape)))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))
        ### END SOLUTION


# %% check="Mended" points=3
block = Mended(8, 2)
names = {
    f"{layer}.{part}"
    for layer in ("linear1", "linear2", "norm1", "norm2", "self_attn.out_proj")
    for part in ("weight", "bias")
}
names |= {"self_attn.in_proj_weight", "self_attn.in_proj_bias"}
assert set(block.state_dict()) == names, (
    f"The state dict should hold {sorted(names)}, and it holds {sorted(block.state_dict())}."
)
x = torch.randn(2, 5, 8)
assert block(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(block(x).shape)}."
)
changed = x.clone()
changed[:, 3] += torch.randn(8)
moved = (block(changed) - block(x)).abs().amax((0, 2)) > 1e-6
assert not moved[:3].any(), "Position 3 changed, and a position before it noticed: the block should not look ahead."
print("The visible checks of Mended pass. They would pass for the patient, too.")

# %% [markdown]
# ## Train it
#
# All parts are here: your `GPT`, and a text. The text is prose that came with your Python: the reference of the
# language and the docstrings of the standard library, about 1.5 million characters, cut into sub-words. `ichimon.train`
# is the loop: it draws windows of the text, takes AdamW steps on a curve like yours, and looks at texts that the model
# does not learn from.
#
# Before you run it: a new model's loss is ln 1024 ≈ 6.9 nats a token. How low will it be in two minutes? And will it
# write words, sentences, sense?

# %% see="GPT"
model = None
try:
    import os

    from ichimon import corpus, train

    fast = os.environ.get("ICHIMON_FAST") == "1"
    length = 32 if fast else 128
    torch.manual_seed(0)
    model = GPT(corpus.VOCABULARY, length, d_model=32 if fast else 128, n_layers=1 if fast else 4, n_heads=4)
    settings = train.Settings(steps=30 if fast else 2400, lr=3e-3, warmup=10 if fast else 240)  # on a GPU, if any
    history = train.fit(
        model,
        train.windows(corpus.tokens(split="train"), batch=4, length=length),
        settings,
        validation=train.windows(corpus.tokens(split="validation"), batch=16, length=length),
        quiet=fast,
    )
    model.cpu()  # where the cells below have their tokens
    print(f"Loss at the end: {history.validation[-1][1]:.2f} nats a token, on texts that it has never seen.")
except NotImplementedError:
    model = None
    print("Finish Block and GPT first, then run this cell again.")
except ImportError as error:
    model = None
    print(f"Training needs the course's package ichimon: {error}.")

# %% [markdown]
# Now let it write. It is given the beginning of a sentence, gives a probability for every token, one is drawn, it is
# put behind the others, and so on. At a lower temperature it plays safe, at a higher one it takes risks. Chapter 07
# makes this fast.

# %% see="GPT"
if model is None:
    print("Train the model in the cell above first, then run this cell again.")
else:
    bpe = corpus.tokenizer()
    for temperature in (0.5, 0.8):
        torch.manual_seed(1)
        ids = torch.tensor([bpe.encode("Return a list of").ids])
        with torch.no_grad():
            for _ in range(20 if fast else 80):
                logits = model(ids[:, -length:])[:, -1]
                ids = torch.cat([ids, torch.multinomial((logits / temperature).softmax(-1), 1)], 1)
        print(f"--- temperature {temperature}\n{bpe.decode(ids[0].tolist())}\n")

# %% [markdown]
# ## Made of your own parts
#
# The block above was written for this chapter. But you have its parts: attention from chapter 02, the feed-forward
# layer from 04, norms and residuals from 05. `ichimon.mine` fetches them from your own notebooks, if they lie beside
# this one, and says which one is still missing.

# %% see="GPT"
try:
    import os

    import ichimon
    from ichimon import corpus, train

    looking, thinking, adding = map(ichimon.mine, ("02-self-attention", "04-feed-forward", "05-normalisation"))
    fast = os.environ.get("ICHIMON_FAST") == "1"

    class Mine(nn.Module):
        """A GPT without a line of this chapter in it."""

        def __init__(self, d_model: int, n_heads: int, n_layers: int, n_context: int) -> None:
            super().__init__()
            self.tokens = nn.Embedding(corpus.VOCABULARY, d_model)
            self.positions = nn.Parameter(0.02 * torch.randn(n_context, d_model))
            nn.init.normal_(self.tokens.weight, std=0.02)
            self.attention = nn.ModuleList(looking.MultiHeadAttention(d_model, n_heads) for _ in range(n_layers))
            self.blocks = nn.ModuleList(
                adding.PreNormBlock(d_model, lambda x, look=look: look(x, looking.causal_mask(x.shape[1])), mlp)
                for look, mlp in zip(self.attention, (thinking.MLP(d_model) for _ in range(n_layers)), strict=True)
            )
            self.norm = adding.LayerNorm(d_model)

        def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
            x = self.tokens(ids) + self.positions[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T

    torch.manual_seed(0)
    own = Mine(64, 4, 2, 64)
    history = train.fit(
        own,
        train.windows(corpus.tokens(), batch=8, length=64),
        train.Settings(steps=20 if fast else 600, lr=3e-3, warmup=10 if fast else 60, device="cpu"),
        quiet=fast,
    )
    first, last = sum(history.losses[:10]) / 10, sum(history.losses[-10:]) / 10
    print(f"Your own parts, put together, went from {first:.2f} to {last:.2f} nats a token.")
except ichimon.NotYet as missing:
    print(missing)
except NotImplementedError:
    print("One of the parts of chapters 02, 04 and 05 uses another that is still to be written.")
except ImportError as error:
    print(f"This needs the course's package ichimon: {error}.")

# %% [markdown]
# Nothing in what the model wrote was put there by hand: no grammar, no word, not even what a space is. It is one
# number, the loss, made smaller some thousand times. And nothing in it is true, or meant to be. It continues.
#
# ## In your own words (2 points)
#
# A friend has read that *all the words of a text vote on the next one*. Explain in four to six sentences, without a
# formula, what a GPT does instead: which vector predicts, how the other words get their say, and what happens at every
# position while it is trained that is not needed while it writes. A person reads this, and no test.

# %% [markdown] question="explain" points=2
# Two points for all three; one for two of them.
#
# - One vector predicts: that of the last position, after the last block and norm, compared with every token's vector.
#   The others are not counted, averaged or asked.
# - What the earlier words have to say came into that vector on the way, through attention, block by block. What
#   attention did not bring, the prediction does not know.
# - In training every position predicts the token after itself, all at once, and each gives a loss; the causal mask
#   makes that an honest exercise. While writing only the last prediction is new, so only that one is used.

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they draw all weights anew, gains and biases too, compare
# with GPT-2 and with PyTorch's layer, look at gradients, at other dtypes, at very small inputs, and at the laws that
# hold whatever the numbers are. Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 06-gpt.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
