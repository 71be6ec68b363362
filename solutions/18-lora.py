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
#     assignment: 18-lora
# ---

# %% [markdown]
# # 18 · LoRA and QLoRA
#
# **One question: how do you teach a big model on a small machine?**
#
# To train a model you need its weights, a gradient for each of them, and two more numbers for each that Adam keeps.
# *LoRA* leaves the weights as they are and learns a small correction beside them. *QLoRA* also stores the weights that
# nobody changes in four bits each. What is trained then fits into a file of a few megabytes, and what is not trained
# into a quarter of its memory.
#
# You will build both, and at the end teach the small model that ships with the course to answer questions. The page of
# the book that goes with this notebook is `book/18-lora`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `LoRALinear` | ●●○ | 25 | 6 |
# | `inject`, `adapter_state` | ●●○ | 20 | 4 |
# | `sft_loss` | ●●○ | 15 | 3 |
# | `nf4_quantize`, `nf4_dequantize` | ●●● | 30 | 5 |
# | `double_quantize`, `double_dequantize` | ●●○ | 15 | 3 |
# | `QLoRALinear` | ●●○ | 15 | 4 |
#
# ## Conventions
#
# - **A linear layer** is `nn.Linear`: $y = Wx + b$, with `weight` of shape `(out_features, in_features)`.
# - **To freeze** a parameter is to set its `requires_grad` to `False`. An optimiser then leaves it alone.
# - **What comes in goes out**: the result of a layer has the dtype of its input (float32 or bfloat16), and an input is
#   never changed in place. Two things here *are* changed in place, because that is their purpose: `merge` changes a
#   weight, and `inject` changes a model.
# - **Four bits** are a number from 0 to 15. Two of them share a byte (uint8): the first one has the high half.

# %% role="set-up"
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

# The sixteen values of NF4, as bitsandbytes has them (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


def dynamic_map() -> Float[Tensor, "256"]:
    """256 values from −1 to 1, close together near 0: bitsandbytes' eight-bit type (Dettmers 2016, 1511.04561)."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = 10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


DYNAMIC = dynamic_map()

# %% [markdown]
# ## 1 · `LoRALinear` ●●○
#
# What training changes in a weight $W$ is some matrix $\Delta W$ of the same size. LoRA says: let it be a product of
# two thin matrices, $BA$, where $A$ has only $r$ rows and $B$ only $r$ columns. The number $r$ is the *rank*.
#
# $$y = Wx + b + \frac{\alpha}{r}\, B A x$$
#
# $W$ and $b$ are frozen. Only $A$ and $B$ are trained, and at the beginning $B$ is zero, so that the layer starts as
# the layer that it was. The number $\alpha$ says how strongly the correction counts; dividing by $r$ keeps its size
# when you try another rank.
#
# `LoRALinear(linear, rank, alpha)` is an `nn.Module` around a given `nn.Linear`, which may have a bias or not.
#
# | attribute | shape | |
# |---|---|---|
# | `linear` | | the very layer that was given, its parameters frozen |
# | `lora_A` | `(rank, in_features)` | a parameter with random numbers; how you draw them is up to you |
# | `lora_B` | `(out_features, rank)` | a parameter, zeros at first |
# | `merged` | | a bool, `False` at first |
#
# Its state dict therefore holds `lora_A`, `lora_B`, `linear.weight` and, where the layer has a bias, `linear.bias`.
#
# - `forward(x)` takes `x` of shape `(..., in_features)` and returns `(..., out_features)`. No dropout.
# - `merge()` adds $\frac{\alpha}{r}BA$ to `linear.weight` **in place**: it stays the same tensor, in the same memory.
#   From then on `forward` computes with that weight alone, so that it costs no more than before LoRA, and gives the
#   same result within rounding.
# - `unmerge()` takes it off again. `merge()` on a merged layer and `unmerge()` on one that is not change nothing.
# - `lora_A` and `lora_B` have the dtype of the layer's weight. `alpha` may be any positive number, also a float.
# - A `rank` below 1 raises a `ValueError` whose sentence names it.
# - The trap: a merged layer that still adds its correction counts it twice.


# %% exercise="LoRALinear" section="A correction of low rank"
class LoRALinear(nn.Module):
    """A frozen linear layer and a trainable correction of low rank beside it.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        weight = linear.weight
        self.linear, self.scale, self.merged = linear.requires_grad_(False), alpha / rank, False
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.shape[1]).normal_() / math.sqrt(weight.shape[1]))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """The frozen layer's result, corrected."""
        ### BEGIN SOLUTION
        y = self.linear(x)
        return y if self.merged else y + self.scale * (x @ self.lora_A.T @ self.lora_B.T)
        ### END SOLUTION

    def merge(self) -> None:
        """Add the correction to the frozen weight, in place."""
        ### BEGIN SOLUTION
        if not self.merged:
            self.linear.weight.data += self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = True
        ### END SOLUTION

    def unmerge(self) -> None:
        """Take the correction off again, in place."""
        ### BEGIN SOLUTION
        if self.merged:
            self.linear.weight.data -= self.scale * self.lora_B.data @ self.lora_A.data
            self.merged = False
        ### END SOLUTION


# %% check="LoRALinear" points=6
linear = nn.Linear(4, 3)
layer = LoRALinear(linear, rank=2, alpha=8)
assert layer.linear is linear, "layer.linear should be the very layer that was given, not a copy."
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {"lora_A": (2, 4), "lora_B": (3, 2), "linear.weight": (3, 4), "linear.bias": (3,)}
assert shapes == wanted, f"The state dict should hold {wanted}, and it holds {shapes}."
trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
assert trained == {"lora_A", "lora_B"}, f"Only lora_A and lora_B should be trained, and {sorted(trained)} are."
x = torch.randn(5, 4)
assert torch.equal(layer(x), linear(x)), "A new LoRALinear should give exactly what the given layer gives: is B zero?"
with torch.no_grad():
    layer.lora_A.fill_(1)
    layer.lora_B.fill_(1)
after = layer(x)
step = 8 * x.sum(-1, keepdim=True)  # each entry of B A x is 2 · Σx here, and α / r is 4
assert torch.allclose(after, linear(x) + step, atol=1e-4), "The correction should be α / r times B A x."
layer.merge()
assert torch.allclose(layer(x), after, atol=1e-4), "Merging should not change what the layer gives."
print("The visible checks of LoRALinear pass.")

# %% stand_in="LoRALinear"
import torch  # noqa: E402


class GivenLinear(torch.nn.Linear):
    """The layer that hidden tests give; it knows whether its weight is still the tensor that it had."""

    def __init__(self, in_features, out_features, bias=True, dtype=torch.float32):
        super().__init__(in_features, out_features, bias=bias, dtype=dtype)
        self.first = (self.weight, self.weight.data_ptr())

    def same_weight(self):
        return self.weight is self.first[0]

    def same_memory(self):
        return self.weight.data_ptr() == self.first[1]


# %% see="LoRALinear"
# A matrix is to be changed, by a change of rank 4 and by one of full rank. How near does LoRA come, rank by rank?
# Where do you expect the two curves to meet?
try:
    import os

    import matplotlib.pyplot as plt

    fast = os.environ.get("ICHIMON_FAST") == "1"
    torch.manual_seed(0)
    changes = {"a change of rank 4": torch.randn(16, 4) @ torch.randn(4, 16) / 2, "any change": torch.randn(16, 16)}
    ranks = (1, 4, 16) if fast else (1, 2, 3, 4, 6, 8, 12, 16)
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    for (label, change), color, style in zip(changes.items(), ("#0072B2", "#E69F00"), ("o-", "s--"), strict=True):
        missing = []
        for rank in ranks:
            linear = nn.Linear(16, 16, bias=False)
            goal, layer = linear.weight.detach() + change, LoRALinear(linear, rank, alpha=rank)
            optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], lr=0.05)
            for _ in range(20 if fast else 400):
                loss = (layer(torch.eye(16)).T - goal).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            missing.append(loss.item() / change.square().mean().item())
        ax.plot(ranks, missing, style, color=color, label=label)
    ax.set(xlabel="rank of LoRA", ylabel="share of the change not learnt", title="LoRA learns what its rank can hold")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LoRALinear first, then run this cell again.")

# %% [markdown]
# ## 2 · `inject` and `adapter_state` ●●○
#
# A model has many linear layers with names such as `blocks.0.attention.q_proj`. LoRA is put into some of them,
# everything else is frozen, and what has to be saved after training is the adapter alone.
#
# `inject(model, targets, rank, alpha)` changes `model` in place:
#
# - Each `nn.Linear` in it, at any depth, whose dotted name has one of `targets` as its **last part** becomes a
#   `LoRALinear(linear, rank, alpha)` in the same place, around the same layer. `blocks.0.q_proj` has the last part
#   `q_proj`; a target `proj` or `0.q_proj` is not its last part.
# - Only an `nn.Linear` is replaced. An embedding or a norm of that name stays as it is.
# - Every parameter but the new `lora_A` and `lora_B` is frozen, wherever it stands.
# - It returns the dotted names of the replaced layers as a list, in the order in which `model.named_modules()` has
#   them.
# - If no layer is meant, it raises a `ValueError` whose sentence names all the targets, and leaves the model as it was.
# - `model` has no adapters yet, and no layer stands in it twice. `targets` is a list or tuple of strings.
# - The trap: a target may be called `linear`, and there is a `linear` inside of each `LoRALinear`.
#
# `adapter_state(model)` returns the part of `model.state_dict()` that training changed: a dict of the entries whose
# last part is `lora_A` or `lora_B`, with their full names, as detached **copies**. Loaded into another copy of the
# model by `load_state_dict(state, strict=False)` it must give the same outputs.
#
# Call your `LoRALinear` by its name. When this part is marked, a right one stands in for it.


# %% exercise="inject" section="A correction of low rank"
def inject(model: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> list[str]:
    """Put a LoRALinear around each linear layer of these names and freeze the rest.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.2.
    """
    ### BEGIN SOLUTION
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found = [name for name in layers if name.rpartition(".")[2] in targets]
    if not found:
        raise ValueError(f"no linear layer of this model is called {' or '.join(targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(layers[name], rank, alpha))
    return found
    ### END SOLUTION


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all lora_A and lora_B of a model, by their names in its state dict."""
    ### BEGIN SOLUTION
    state = model.state_dict()
    return {name: state[name].clone() for name in state if name.rpartition(".")[2] in ("lora_A", "lora_B")}
    ### END SOLUTION


# %% check="inject" points=4
model = nn.ModuleDict(
    {
        "embed": nn.Embedding(7, 4),
        "blocks": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4), "up": nn.Linear(4, 8)}) for _ in range(2)]),
    }
)
names = inject(model, ["q_proj"], rank=2, alpha=4)
assert names == ["blocks.0.q_proj", "blocks.1.q_proj"], (
    f"The replaced layers are blocks.0.q_proj and blocks.1.q_proj; yours says {names}."
)
assert isinstance(model["blocks"][1]["q_proj"], LoRALinear), "blocks.1.q_proj should be a LoRALinear now."
trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
state = adapter_state(model)
assert isinstance(state, dict), f"adapter_state should return a dict, not {type(state).__name__}."
assert trained == set(state) == {f"blocks.{i}.q_proj.lora_{letter}" for i in (0, 1) for letter in "AB"}, (
    f"What is trained, {sorted(trained)}, and what is saved, {sorted(state)}, should both be lora_A and lora_B of the "
    "two layers."
)
try:
    inject(nn.Sequential(nn.Linear(2, 2)), ["proj", "gate"], 1, 1)
    message = ""
except ValueError as error:
    message = str(error)
assert "proj" in message, "Where no layer has the name, inject should raise a ValueError that names the targets."
assert "gate" in message, "The ValueError should name all the targets, and 'gate' is missing."
print("The visible checks of inject and adapter_state pass.")

# %% stand_in="inject"
import torch  # noqa: E402
from torch import nn  # noqa: E402


class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.rank, self.alpha = linear.requires_grad_(False), rank, alpha
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + (x @ self.lora_A.T @ self.lora_B.T) * (self.alpha / self.rank)


class GivenLayer(nn.Module):
    """What hidden tests inject into: names that look alike, an embedding and a norm among them."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.proj = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.gate, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)
        self.lora_A_scale, self.scale = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = x + self.proj(torch.tanh(self.q_proj(x) * self.scale) * self.k_proj(x))
        return x + self.linear(self.gate(x)) * self.lora_A_scale


class GivenModel(nn.Module):
    """`forward` takes ids [batch, n]; `kinds` says of each module whether LoRA stands in its place."""

    def __init__(self):
        super().__init__()
        self.out_proj, self.embed = nn.Linear(6, 5), nn.ModuleDict({"proj": nn.Embedding(9, 6)})
        self.projector, self.blocks = nn.Linear(6, 6), nn.ModuleList([GivenLayer(), GivenLayer()])
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.before = {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    def forward(self, ids):
        x = self.projector(self.embed["proj"](ids))
        for block in self.blocks:
            x = block(x)
        return self.out_proj(self.head(x))

    def kinds(self):
        """The dotted name of each LoRALinear, with its rank, its alpha, and whether the layer inside is the old one."""
        return {
            name: (module.rank, module.alpha, module.linear is self.before.get(name))
            for name, module in self.named_modules()
            if isinstance(module, LoRALinear)
        }

    def trained(self):
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def draw(self, seed):
        """Every parameter anew, adapters too."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def save_adapter(self):
        """Keep here what the student's own function gives: what crosses to the grader is always a copy."""
        import __main__

        self.saved = __main__.adapter_state(self)

    def saved_adapter(self):
        return self.saved

    def add_to_adapters(self, amount):
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.split(".")[-1] in ("lora_A", "lora_B"):
                    parameter.add_(amount)


# %% see="inject"
# Which layers should get an adapter, and how large should it be? Here is a model of the shape of LLaMA 7B, on the meta
# device: it has shapes, and no numbers that would fill your memory. How many per cent of it do you train?
try:
    with torch.device("meta"):
        shapes = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096)}
        shapes |= {"gate_proj": (4096, 11008), "up_proj": (4096, 11008), "down_proj": (11008, 4096)}

        def large() -> nn.Module:
            block = {name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()}
            rest = {"embed": nn.Embedding(32000, 4096), "head": nn.Linear(4096, 32000, bias=False)}
            blocks = [nn.ModuleDict({name: nn.Linear(*shapes[name], bias=False) for name in block}) for _ in range(32)]
            return nn.ModuleDict({**rest, "blocks": nn.ModuleList(blocks)})

        print("adapters in          rank        trained    share   megabytes (16 bit)")
        for label, targets in (("q and v", ["q_proj", "v_proj"]), ("all of a block", list(shapes))):
            for rank in (4, 64):
                model = large()
                total = sum(p.numel() for p in model.parameters())
                inject(model, targets, rank, alpha=16)
                trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
                print(f"{label:<20} {rank:>4} {trained:>14,} {trained / total:>8.2%} {2 * trained / 1e6:>10.0f}")
except NotImplementedError:
    print("Finish LoRALinear and inject first, then run this cell again.")

# %% [markdown]
# ## 3 · `sft_loss` ●●○
#
# How a chat model is tuned (*supervised fine-tuning*): somebody wrote questions and good answers, and the model learns
# to predict the next token, as ever, but **only the tokens of the answer count**. It need not learn to ask.
#
# `sft_loss(logits, ids, prompt_lengths, lengths)` takes a batch of texts of different lengths, padded at the end:
#
# | argument | shape | |
# |---|---|---|
# | `logits` | `(batch, n, vocabulary)` | float32 or bfloat16; `logits[:, t]` is about the token at `t + 1` |
# | `ids` | `(batch, n)` | int64: prompt, answer, padding; padding is any valid id |
# | `prompt_lengths` | `(batch,)` | int64, at least 1: how many tokens the prompt has |
# | `lengths` | `(batch,)` | int64: how many tokens prompt and answer have together, at most `n` |
# | result | `()` | float32, the mean of the cross-entropy in nats |
#
# - The token at position $t$ counts if `prompt_lengths <= t < lengths` in its row. The first token of the answer
#   counts; it is predicted at the last position of the prompt.
# - The mean is over **all counted tokens of the batch**, so a long answer weighs more than a short one.
# - If nothing counts in the whole batch, the loss is 0 and its gradient is 0, never NaN.
# - It is computed in float32, also from bfloat16 logits. Gradients flow to the logits.
# - The trap: the token that a position *predicts* is what decides whether it counts, not the token that stands there.


# %% exercise="sft_loss" section="What a chat model learns from"
def sft_loss(
    logits: Float[Tensor, "batch n vocabulary"],
    ids: Int[Tensor, "batch n"],
    prompt_lengths: Int[Tensor, " batch"],
    lengths: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the answers' tokens, the prompts and the padding left out.

    Source: Ouyang et al. 2022 (arXiv 2203.02155), section 3.5, for the method.
    """
    ### BEGIN SOLUTION
    position = torch.arange(1, ids.shape[1], device=ids.device)
    counted = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
    total = F.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="sum")
    return total / counted.sum().clamp(min=1)
    ### END SOLUTION


# %% check="sft_loss" points=3
ids = torch.tensor([[5, 6, 1, 2, 3], [7, 0, 0, 0, 0]])  # prompts [5, 6] and [7], answers [1, 2, 3] and [0]
prompt_lengths, lengths = torch.tensor([2, 1]), torch.tensor([5, 2])
loss = sft_loss(torch.zeros(2, 5, 8), ids, prompt_lengths, lengths)
assert isinstance(loss, torch.Tensor), f"sft_loss should return a tensor, not {type(loss).__name__}."
assert loss.shape == (), f"The loss should be a single number, not of shape {tuple(loss.shape)}."
assert torch.allclose(loss, torch.tensor(math.log(8))), (
    f"A model that knows nothing of 8 tokens should have a loss of ln 8, not {loss.item():.3f}."
)
logits = torch.zeros(2, 5, 8)
logits[0, 1, 1] = logits[0, 2, 2] = logits[0, 3, 3] = logits[1, 0, 0] = 50  # sure of each answer, and right
assert sft_loss(logits, ids, prompt_lengths, lengths) < 1e-4, (
    "A model that is sure of every token of the answers, and right, should have a loss of 0, whatever it says about "
    "the prompts and the padding."
)
logits[1, 0, 0] = 0  # now it knows nothing of the second answer, whose only token is the first and the last of it
loss = sft_loss(logits, ids, prompt_lengths, lengths).item()
assert abs(loss - math.log(8) / 4) < 1e-4, (
    f"Of the four tokens that count, three cost nothing and one ln 8, so the mean should be 0.520, not {loss:.3f}."
)
print("The visible checks of sft_loss pass.")

# %% see="sft_loss"
# Which of these positions teach the model something? The gradient knows: bright means that the loss depends on what is
# said at that position.
try:
    import matplotlib.pyplot as plt

    rows = [text.split() for text in ("What is 2 plus 2 ? It is 4 .", "Name a bird . A wren .", "Say hi . Hi !")]
    prompt_lengths, n = torch.tensor([6, 4, 3]), max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    logits = torch.zeros(3, n, 30, requires_grad=True)
    sft_loss(logits, torch.arange(3 * n).view(3, n) % 30, prompt_lengths, lengths).backward()
    fig, ax = plt.subplots(figsize=(8, 2.2), facecolor="white")
    ax.imshow(logits.grad.norm(dim=-1), cmap="cividis", aspect="auto")
    for i, row in enumerate(rows):
        for t in range(n):
            word = row[t] if t < len(row) else "pad"
            said = logits.grad[i, t].any()
            ax.text(t, i, word, ha="center", va="center", color="black" if said else "white")
    ax.set(xticks=range(n), yticks=[], xlabel="position", title="Bright: here the model is told what comes next")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish sft_loss first, then run this cell again.")

# %% [markdown]
# ## 4 · `nf4_quantize` and `nf4_dequantize` ●●●
#
# Sixteen values are all that four bits can tell apart. Where should they lie? The weights of a trained layer look like
# draws from a normal distribution, so NF4 ("four-bit normal float") puts many values near zero and few far out. They
# are in `NF4`, in the set-up cell, in rising order.
#
# A layer has small and large weights, so it is cut into blocks of 64. Each block is divided by its largest magnitude,
# and every quotient is replaced by the number of the value of `NF4` that is nearest.
#
# `nf4_quantize(x, block=64)` returns the pair `(packed, absmax)`:
#
# | | shape | |
# |---|---|---|
# | `x` | any | float32 or bfloat16; it is read row by row, as `x.flatten()` does |
# | `block` | | an even number |
# | `packed` | `(⌈numel / 2⌉,)` | uint8: entry 0 of `x` in the high four bits of byte 0, entry 1 in its low four bits |
# | `absmax` | `(⌈numel / block⌉,)` | float32: the largest magnitude of each block |
#
# - `x` is turned to float32 first. The last block may be short; only its own entries decide its `absmax`.
# - With an odd number of entries the last low half-byte is filled as for the number 0.
# - The borders between neighbouring values are their means, `(NF4[i] + NF4[i + 1]) / 2` in float32. A quotient that
#   lies exactly on a border takes the lower value.
# - A block of zeros becomes the code of 0.0 everywhere, with an `absmax` of 0. Other blocks have an `absmax` of at
#   least 10⁻³⁰.
# - Nothing that is returned has a gradient, also where `x` is a parameter.
#
# `nf4_dequantize(packed, absmax, shape, block=64)` goes back: a float32 tensor of that `shape`, each entry the value of
# its code times its block's `absmax`.
#
# Your bytes must be those of bitsandbytes, the library that made NF4 known: the tests compare with bytes that it made.
# The trap is the order of the halves: pack them the other way round and every pair of weights changes places.


# %% exercise="nf4_quantize" section="Sixteen values"
def nf4_quantize(
    x: Float[Tensor, "..."], block: int = 64
) -> tuple[UInt8[Tensor, " half_numel"], Float[Tensor, " blocks"]]:
    """Four bits for each entry of x, two to a byte, and the largest magnitude of each block.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3.
    """
    ### BEGIN SOLUTION
    flat = x.detach().flatten().float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = blocks.abs().amax(-1)
    quotients = blocks / absmax.clamp(min=1e-38)[:, None]  # 0 / 0 would be NaN
    codes = torch.bucketize(quotients, (NF4[1:] + NF4[:-1]) / 2).flatten().to(torch.uint8)
    codes = codes[: len(flat) + len(flat) % 2]
    return codes[::2] << 4 | codes[1::2], absmax
    ### END SOLUTION


def nf4_dequantize(
    packed: UInt8[Tensor, " half_numel"], absmax: Float[Tensor, " blocks"], shape: Sequence[int], block: int = 64
) -> Float[Tensor, "..."]:
    """The float32 tensor of this shape that the bytes stand for."""
    ### BEGIN SOLUTION
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: math.prod(shape)]
    return (NF4[codes.int()] * absmax.repeat_interleave(block)[: len(codes)]).view(*shape)
    ### END SOLUTION


# %% check="nf4_quantize" points=5
out = nf4_quantize(torch.tensor([0.5, -2.0, 2.0, 0.0]))
assert isinstance(out, tuple), f"nf4_quantize should return a tuple, not {type(out).__name__}."
assert len(out) == 2, f"nf4_quantize should return two tensors, packed and absmax, not {len(out)}."
packed, absmax = out
assert packed.dtype == torch.uint8, f"packed should be uint8, not {packed.dtype}."
assert packed.shape == (2,), f"Four entries should give 2 bytes, not the shape {tuple(packed.shape)}."
assert absmax.tolist() == [2], f"The largest magnitude of the only block is 2, not {absmax.tolist()}."
halves = [half for byte in packed.tolist() for half in divmod(byte, 16)]
assert halves == [10, 0, 15, 7], (
    f"The quotients 0.25, −1, 1 and 0 are nearest to the values number 10, 0, 15 and 7; yours are {halves}."
)
x = torch.tensor([[1.0, -0.25, 0.0], [0.5, -1.0, 0.75]])
back = nf4_dequantize(*nf4_quantize(x), x.shape)
assert isinstance(back, torch.Tensor), f"nf4_dequantize should return a tensor, not {type(back).__name__}."
assert back.shape == (2, 3), f"The result should have the shape that was asked for, (2, 3), not {tuple(back.shape)}."
assert (back - x).abs().max() < 0.16, f"Four bits cost some accuracy, but not {(back - x).abs().max():.2f}."
print("The visible checks of nf4_quantize and nf4_dequantize pass.")

# %% see="nf4_quantize"
# Where do sixteen values belong? Weights in blocks of 64, each block divided by its largest magnitude, and two ways to
# place the values. Which of the two rounds with the smaller error, and by how much?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    x = torch.randn(256, 256)
    blocks = x.view(-1, 64)
    even = blocks.abs().amax(-1, keepdim=True) / 7
    errors = {
        "evenly spaced": (blocks - (blocks / even).round() * even).square().mean(),
        "NF4": (x - nf4_dequantize(*nf4_quantize(x), x.shape)).square().mean(),
    }
    quotients = (blocks / blocks.abs().amax(-1, keepdim=True)).flatten()
    places = {"evenly spaced": torch.arange(-7, 8) / 7, "NF4": NF4}
    fig, axes = plt.subplots(2, 1, figsize=(7, 4), sharex=True, facecolor="white")
    for ax, (name, values) in zip(axes, places.items(), strict=True):
        ax.hist(quotients, bins=120, color="#999999", density=True)
        for value in values.tolist():
            ax.axvline(value, color="#0072B2", linewidth=1.2)
        ax.set(ylabel="density", title=f"{name}: mean squared error {errors[name]:.4f}", ylim=(0, 1.3))
    axes[-1].set(xlabel="weight divided by the largest of its block")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish nf4_quantize and nf4_dequantize first, then run this cell again.")

# %% [markdown]
# ## 5 · `double_quantize` and `double_dequantize` ●●○
#
# Each block of 64 weights keeps one float32, and 32 bits for 64 weights are half a bit for each. QLoRA quantises these
# numbers, too, to eight bits.
#
# They are all positive, so their mean is taken off first. What is left is cut into blocks of 256, each is divided by
# its largest magnitude, and each quotient is replaced by the number of the nearest value of `DYNAMIC`, the 256 values
# in the set-up cell.
#
# `double_quantize(absmax, block=256)` returns the triple `(codes, scales, mean)`:
#
# | | shape | |
# |---|---|---|
# | `absmax` | `(n,)` | float32, at least one |
# | `codes` | `(n,)` | uint8 |
# | `scales` | `(⌈n / block⌉,)` | float32: the largest magnitude of each block, after the mean was taken off |
# | `mean` | `()` | float32: the mean of **all** of `absmax`, not of a block |
#
# - The last block may be short. Here `block` may be odd.
# - Where everything in a block equals the mean, its scale is 0 and its codes are up to you.
# - Between values exactly as near, either code is right.
#
# `double_dequantize(codes, scales, mean, block=256)` goes back, to a float32 tensor of shape `(n,)`.
#
# The trap: the mean is put back **after** the scale, not before.


# %% exercise="double_quantize" section="The mathematics"
def double_quantize(
    absmax: Float[Tensor, " n"], block: int = 256
) -> tuple[UInt8[Tensor, " n"], Float[Tensor, " blocks"], Float[Tensor, ""]]:
    """Eight bits for each number, the largest magnitude of each block, and the mean that was taken off.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3.
    """
    ### BEGIN SOLUTION
    mean = absmax.mean()
    blocks = F.pad(absmax - mean, (0, -len(absmax) % block)).view(-1, block)
    scales = blocks.abs().amax(-1)
    quotients = blocks / scales.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(quotients, (DYNAMIC[1:] + DYNAMIC[:-1]) / 2).flatten()[: len(absmax)]
    return codes.to(torch.uint8), scales, mean
    ### END SOLUTION


def double_dequantize(
    codes: UInt8[Tensor, " n"], scales: Float[Tensor, " blocks"], mean: Float[Tensor, ""], block: int = 256
) -> Float[Tensor, " n"]:
    """The float32 numbers that the codes stand for."""
    ### BEGIN SOLUTION
    return DYNAMIC[codes.int()] * scales.repeat_interleave(block)[: len(codes)] + mean
    ### END SOLUTION


# %% check="double_quantize" points=3
out = double_quantize(torch.tensor([1.0, 2.0, 4.0, 5.0]))
assert isinstance(out, tuple), f"double_quantize should return a tuple, not {type(out).__name__}."
assert len(out) == 3, f"double_quantize should return codes, scales and mean, not {len(out)} things."
codes, scales, mean = out
assert torch.equal(mean, torch.tensor(3.0)), f"The mean of 1, 2, 4 and 5 is 3, not {mean}."
assert torch.equal(scales, torch.tensor([2.0])), (
    f"What is left is −2, −1, 1, 2: the largest magnitude is 2, not {scales}."
)
assert codes.dtype == torch.uint8, f"The codes should be uint8, not {codes.dtype}."
assert codes.tolist()[-1] == 255, f"2 / 2 is 1, the last value of DYNAMIC: its code is 255, not {codes.tolist()[-1]}."
absmax = torch.rand(600) + 2
back = double_dequantize(*double_quantize(absmax))
assert back.shape == (600,), f"600 numbers should come back, not the shape {tuple(back.shape)}."
assert (back - absmax).abs().max() < 0.01, f"Eight bits should be nearer than {(back - absmax).abs().max():.2g}."
print("The visible checks of double_quantize and double_dequantize pass.")

# %% see="double_quantize"
# How many bits does a weight take, all told? And what does each step cost in accuracy?
try:
    torch.manual_seed(0)
    weight = torch.randn(2048, 2048) / 45
    packed, absmax = nf4_quantize(weight)
    codes, scales, mean = double_quantize(absmax)
    found = {
        "bfloat16": (16 * weight.numel(), weight.bfloat16().float()),
        "NF4": (8 * packed.numel() + 32 * absmax.numel(), nf4_dequantize(packed, absmax, weight.shape)),
        "NF4, double": (
            8 * packed.numel() + 8 * codes.numel() + 32 * (scales.numel() + 1),
            nf4_dequantize(packed, double_dequantize(codes, scales, mean), weight.shape),
        ),
    }
    print("              bits a weight   relative error")
    for name, (bits, back) in found.items():
        print(f"{name:<12} {bits / weight.numel():>14.3f} {((back - weight).norm() / weight.norm()):>15.2%}")
except NotImplementedError:
    print("Finish the parts on NF4 and on double quantisation first, then run this cell again.")

# %% [markdown]
# ## 6 · `QLoRALinear` ●●○
#
# Now put the two together: a weight that nobody trains, in four bits, and a correction that is trained, in full
# precision. The weight is never used as it is stored: for each call it is turned back, used, and forgotten.
#
# `QLoRALinear(linear, rank, alpha)` is an `nn.Module` made from an `nn.Linear`, of which it keeps nothing but this:
#
# | entry of the state dict | shape | |
# |---|---|---|
# | `packed`, `absmax` | as `nf4_quantize` gives them | **buffers**: the weight in NF4, in blocks of 64 |
# | `bias` | `(out_features,)` | a buffer, a float32 copy; only where the layer has a bias |
# | `lora_A` | `(rank, in_features)` | a float32 parameter with random numbers |
# | `lora_B` | `(out_features, rank)` | a float32 parameter, zeros at first |
#
# - `forward(x)` gives $\hat W x + b + \frac{\alpha}{r} B A x$, where $\hat W$ is what `nf4_dequantize` makes of the
#   buffers. Everything is computed **in the dtype of `x`**, float32 or bfloat16: $\hat W$, the bias, $A$ and $B$ are
#   turned to it.
# - Only `lora_A` and `lora_B` are parameters. Gradients reach them, and `x`.
# - The given layer is left as it was, and may be deleted: nothing of its weight may stay in memory. What is in the
#   buffers counts, also after `load_state_dict`.
# - A `rank` below 1 raises a `ValueError` whose sentence names it.
# - The trap: a full-size weight that is turned back once and kept is four bits that cost thirty-six.
#
# Call your `nf4_quantize` and `nf4_dequantize` by their names. When this part is marked, right ones stand in for them.


# %% exercise="QLoRALinear" section="Sixteen values"
class QLoRALinear(nn.Module):
    """A linear layer whose weight is kept in NF4, and a trainable correction of low rank beside it.

    Source: Dettmers et al. 2023 (arXiv 2305.14314), equation 5 (without double quantisation).
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if rank < 1:
            raise ValueError(f"the rank is {rank}, and must be at least 1")
        self.shape, self.scale = linear.weight.shape, alpha / rank
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, self.shape[1]) / math.sqrt(self.shape[1]))
        self.lora_B = nn.Parameter(torch.zeros(self.shape[0], rank))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... in_features"]) -> Float[Tensor, "... out_features"]:
        """The four-bit layer's result, corrected, in the dtype of x."""
        ### BEGIN SOLUTION
        weight = nf4_dequantize(self.packed, self.absmax, self.shape).to(x.dtype)
        y = F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
        return y + self.scale * (x @ self.lora_A.T.to(x.dtype) @ self.lora_B.T.to(x.dtype))
        ### END SOLUTION


# %% check="QLoRALinear" points=4
linear = nn.Linear(16, 8)
layer = QLoRALinear(linear, rank=2, alpha=4)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {"packed": (64,), "absmax": (2,), "bias": (8,), "lora_A": (2, 16), "lora_B": (8, 2)}
assert shapes == wanted, f"The state dict should hold {wanted}, and it holds {shapes}."
names = {name for name, _ in layer.named_parameters()}
assert names == {"lora_A", "lora_B"}, f"Only lora_A and lora_B should be parameters, and {sorted(names)} are."
x = torch.randn(3, 16)
weight = nf4_dequantize(*nf4_quantize(linear.weight), linear.weight.shape)
assert torch.allclose(layer(x), F.linear(x, weight, linear.bias), atol=1e-5), (
    "A new QLoRALinear should give what the layer gives with its weight rounded to NF4."
)
assert layer(x.bfloat16()).dtype == torch.bfloat16, "With x in bfloat16 the result should be bfloat16."
print("The visible checks of QLoRALinear pass.")

# %% stand_in="QLoRALinear"
import torch  # noqa: E402

TABLE = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
TABLE += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
TABLE += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


class GivenLinear(torch.nn.Linear):  # noqa: F811
    pass


def largest_floats(module):
    """How many numbers the largest tensor of floats has that hangs on a module, in whatever attribute."""
    seen, todo, largest = set(), [module], 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            largest = max(largest, thing.numel() * thing.is_floating_point())
        elif isinstance(thing, torch.nn.Module):
            todo += vars(thing).values()
        elif isinstance(thing, (dict, list, tuple, set)):
            todo += thing.values() if isinstance(thing, dict) else thing
    return largest


def nf4_quantize(x, block=64, table=TABLE):
    values, flat = torch.tensor(table), x.detach().float().reshape(-1)
    absmax = torch.stack([part.abs().max() for part in flat.split(block)])
    scale = absmax.repeat_interleave(block)[: len(flat)]
    codes = (flat[:, None] / scale[:, None].clamp(min=1e-38) - values).abs().argmin(-1)
    codes = torch.cat([codes, codes.new_full((len(flat) % 2,), 7)])
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64, table=TABLE):
    n = torch.Size(shape).numel()
    codes = torch.stack([packed // 16, packed % 16], 1).reshape(-1)[:n].long()
    return (torch.tensor(table)[codes] * absmax.repeat_interleave(block)[:n]).reshape(tuple(shape))


# %% see="QLoRALinear"
# A layer of 1024 × 1024: what does training it cost in memory? Adam keeps two numbers for each number that is trained,
# and there is a gradient for each, all of them in float32 here. What takes the most room, in each of the three?
try:
    import matplotlib.pyplot as plt

    linear = nn.Linear(1024, 1024, bias=False)
    full = {"weight": 4 * linear.weight.numel(), "adapter": 0, "gradient": 4 * linear.weight.numel()}
    bars = {"full fine-tuning": {**full, "Adam": 2 * full["gradient"]}}
    for name, layer in (("LoRA", LoRALinear(linear, 8, 16)), ("QLoRA", QLoRALinear(linear, 8, 16))):
        state = {key: value.numel() * value.element_size() for key, value in layer.state_dict().items()}
        adapter = state.pop("lora_A") + state.pop("lora_B")
        bars[name] = {"weight": sum(state.values()), "adapter": adapter, "gradient": adapter, "Adam": 2 * adapter}
    fig, ax = plt.subplots(figsize=(7, 2.4), facecolor="white")
    for y, parts in enumerate(bars.values()):
        left = 0.0
        for (part, size), color in zip(parts.items(), ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True):
            ax.barh(y, size / 2**20, left=left, color=color, label=part if y == 0 else None)
            left += size / 2**20
        ax.text(left + 0.1, y, f"{left:.2f} MiB", va="center")
    ax.set(yticks=range(3), yticklabels=list(bars), xlabel="MiB", title="Only what is trained needs gradients and Adam")
    ax.set_xlim(0, 19)
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish LoRALinear and QLoRALinear first, then run this cell again.")

# %% [markdown]
# ## A model that answers
#
# The course ships a small language model. It has read Python's own library, documentation and code, and nothing else,
# so it goes on with a text, and has never seen a question. Below you teach it to answer one kind of question, with your
# `inject` and your `sft_loss`, then save what it learnt.
#
# Before you run it: after training, how large is the file with the adapter beside the model's, and what happens to a
# text that has nothing to do with the questions?

# %% see="inject"
try:
    import os
    import random

    from ichimon import corpus, moe, train

    fast = os.environ.get("ICHIMON_FAST") == "1"
    model, bpe = moe.load_trained("dense")
    text = "".join(text.text for text in corpus.texts(corpus.PROSE, "validation"))
    held_out = train.windows(torch.tensor(bpe.encode(text[:60_000]).ids), batch=8, length=64)
    before = train.evaluate(model, held_out, 2 if fast else 8)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def question(i: int) -> tuple[list[int], list[int]]:
        asked = f"Which letter comes after {letters[i]!r}? "
        return bpe.encode(asked).ids, [*bpe.encode(f"It is {letters[i + 1]!r}.").ids, 0]

    def batches(step: int) -> dict[str, Tensor]:
        drawn = [question(i) for i in random.Random(step).choices(range(25), k=16)]
        n = max(len(prompt) + len(answer) for prompt, answer in drawn)
        rows = [prompt + answer + [0] * (n - len(prompt) - len(answer)) for prompt, answer in drawn]
        lengths = torch.tensor([[len(prompt), len(prompt) + len(answer)] for prompt, answer in drawn])
        return {"ids": torch.tensor(rows), "prompt_lengths": lengths[:, 0], "lengths": lengths[:, 1]}

    def answers(batch: nn.Module, data: dict[str, Tensor]) -> Tensor:
        return sft_loss(batch(data["ids"]).logits, data["ids"], data["prompt_lengths"], data["lengths"])

    @torch.no_grad()
    def reply(i: int) -> str:
        ids, _ = question(i)
        start = len(ids)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0:
                break
        return bpe.decode(ids[start:])

    shown = (2, 12, 20)
    untrained = [reply(i) for i in shown]
    torch.manual_seed(0)
    inject(model, ["q_proj", "v_proj", "up_proj", "down_proj"], rank=8, alpha=16)
    settings = train.Settings(steps=5 if fast else 300, lr=5e-3, warmup=2, weight_decay=0.0, device="cpu")
    train.fit(model, batches, settings, loss=answers, quiet=True)
    for i, said in zip(shown, untrained, strict=True):
        print(f"Which letter comes after {letters[i]!r}?\n   before: {said!r}\n   after:  {reply(i)!r}")
    right = sum(reply(i).startswith(f"It is {letters[i + 1]!r}") for i in range(25))
    after = train.evaluate(model, held_out, 2 if fast else 8)
    adapter, whole = (
        sum(value.numel() for value in state.values()) for state in (adapter_state(model), model.state_dict())
    )
    print(f"{right} of 25 answers are right. The adapter is {adapter / (whole - adapter):.1%} of the model.")
    print(f"On other text the loss was {before:.2f} before and is {after:.2f} now.")
except NotImplementedError:
    print("Finish LoRALinear, inject and sft_loss first, then run this cell again.")
except ImportError as error:
    print(f"This cell needs the course's own package: {error}")

# %% [markdown]
# The model is still there, every number of it: take the adapter away, and it goes on with texts as before. With the
# adapter it got worse at everything that it was not asked. The page measures how much, for full fine-tuning, LoRA and
# QLoRA.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they compare with PyTorch's own arithmetic in outputs and
# gradients, over many shapes, with and without a bias, in bfloat16, merged and unmerged; they put adapters into a model
# whose names look alike; and they compare your bytes with bytes that bitsandbytes made. Each exercise is marked by
# itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 18-lora.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
