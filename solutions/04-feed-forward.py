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
#     assignment: 04-feed-forward
# ---

# %% [markdown]
# # 04 · Feed-forward and activations
#
# **One question: what is the other half of a layer for?**
#
# Attention moves information from one word to another. Then each word is left alone with what it received, and the
# *feed-forward* part works on it: it widens the vector, bends it with an activation function, and narrows it again. No
# word looks at another one here, and yet most of a model's numbers are in this part.
#
# You will build it in five parts, as GPT-2 has it and as LLaMA has it, and at the end teach it facts that nothing else
# in the model could keep. The page of the book that goes with this notebook is `book/04-feed-forward`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `gelu` | ●●○ | 20 | 6 |
# | `silu` | ●○○ | 10 | 3 |
# | `MLP` | ●○○ | 10 | 4 |
# | `swiglu_hidden` | ●○○ | 10 | 3 |
# | `SwiGLU` | ●●○ | 15 | 5 |
#
# ## Conventions
#
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "... d_model"]` is a tensor of floats whose last
#   dimension is `d_model`. The dots stand for any number of dimensions before it, also none.
# - **What comes in goes out**: the result has the dtype of the input (float32, float64 or bfloat16), and float64 keeps
#   its digits. An input is never changed in place.
# - **Reserved.** `F.gelu`, `F.silu`, `nn.GELU` and `nn.SiLU` raise an error while your work is marked, everywhere in
#   the notebook: building them is the exercise. Where a later part needs them, call your own by name.

# %% role="set-up"
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `gelu` ●●○
#
# Between the two matrices of a feed-forward layer stands a bend. Without it, two matrices in a row would be one matrix,
# and the layer could say nothing that a single one could not. ReLU is the simplest bend: it keeps $x$ where it is
# positive and gives 0 elsewhere. GELU rounds the corner. It multiplies $x$ by a share between 0 and 1, which is the
# probability that a standard normal number is below $x$:
#
# $$\mathrm{gelu}(x) = x\,\Phi(x), \qquad \Phi(x) = \frac{1}{\sqrt{2\pi}} \int_{-\infty}^{x} e^{-t^2/2}\,dt$$
#
# PyTorch has no $\Phi$ under that name. It has `torch.erf`, which is $\frac{2}{\sqrt{\pi}} \int_0^x e^{-t^2}\,dt$: look
# at the exponent and at the two limits, and work out how one follows from the other.
#
# When GELU was new, `erf` was slow, so its authors gave an approximation, and GPT-2 was trained with it:
#
# $$\mathrm{gelu}_{\tanh}(x) = \tfrac{1}{2}\,x
# \left(1 + \tanh\!\left(\sqrt{2/\pi}\,\left(x + 0.044715\,x^3\right)\right)\right)$$
#
# `gelu(x, approximate="none")` returns the first for `"none"` and the second for `"tanh"`.
#
# - `x` has any shape; the result has the same. Gradients flow through it.
# - Every `x` from $-10^4$ to $10^4$ gives a finite result and a finite gradient.
# - Any other `approximate` raises a `ValueError` whose sentence holds the name that was given.
# - The trap: the two differ by less than 0.0005, so a slip in a constant looks right on a plot. The tests look closer.


# %% exercise="gelu" section="Three ways to bend"
def gelu(x: Float[Tensor, "..."], approximate: str = "none") -> Float[Tensor, "..."]:
    """x·Φ(x): exact for approximate="none", the approximation that GPT-2 uses for "tanh".

    Raises ValueError for any other name.
    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    ### BEGIN SOLUTION
    if approximate == "none":
        share = (1 + torch.erf(x / math.sqrt(2))) / 2
    elif approximate == "tanh":
        share = (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    else:
        raise ValueError(f'approximate should be "none" or "tanh", not {approximate!r}')
    return x * share
    ### END SOLUTION


# %% check="gelu" points=6
x = torch.tensor([[-8.0, 0.0, 8.0]])
for name in ("none", "tanh"):
    out = gelu(x, approximate=name)
    assert isinstance(out, torch.Tensor), f"gelu should return a tensor, not {type(out).__name__}."
    assert out.shape == x.shape, f"The result should have the shape of x, {tuple(x.shape)}, not {tuple(out.shape)}."
    assert torch.allclose(out, torch.tensor([[0.0, 0.0, 8.0]]), atol=1e-4), (
        f'Far from 0 gelu is as good as ReLU: with "{name}", -8, 0 and 8 should give 0, 0 and 8, not {out.tolist()}.'
    )
x = torch.linspace(-3, 3, 13)
assert torch.allclose(gelu(x) - gelu(-x), x, atol=1e-5), (
    "Φ(x) and Φ(-x) add up to 1, so gelu(x) - gelu(-x) should be x itself."
)
gap = (gelu(x) - gelu(x, approximate="tanh")).abs().max().item()
assert 0 < gap < 0.0005, f'"none" and "tanh" should differ a little, by less than 0.0005, and here by {gap:.2g}.'
try:
    gelu(x, approximate="quick")
    message = ""
except ValueError as error:
    message = str(error)
assert "quick" in message, 'gelu(x, approximate="quick") should raise a ValueError that names "quick".'
print("The visible checks of gelu pass.")

# %% see="gelu"
# Left: ReLU with its corner rounded. Right: how far two approximations are from the exact GELU.
try:
    import matplotlib.pyplot as plt

    x = torch.linspace(-4, 4, 401)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), facecolor="white")
    left.plot(x, x.clamp(min=0), "--", color="#D55E00", label="ReLU")
    left.plot(x, gelu(x), color="#0072B2", label="GELU")
    left.set(xlabel="x", ylabel="activation", title="GELU rounds the corner")
    left.legend()
    right.plot(x, gelu(x, approximate="tanh") - gelu(x), color="#009E73", label="tanh")
    right.plot(x, x * torch.sigmoid(1.702 * x) - gelu(x), ":", color="#CC79A7", label="x·sigmoid(1.702x)")
    right.set(xlabel="x", ylabel="difference from the exact one", title="GPT-2's approximation is a close one")
    right.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish gelu first, then run this cell again.")

# %% [markdown]
# ## 2 · `silu` ●○○
#
# LLaMA, Mistral and Qwen bend with a function that looks almost the same, and has two names, SiLU and Swish:
#
# $$\mathrm{silu}(x) = x\,\sigma(x), \qquad \sigma(x) = \frac{1}{1 + e^{-x}}$$
#
# `silu(x)` returns it.
#
# - `x` has any shape; the result has the same. Gradients flow through it.
# - Every `x` from $-10^4$ to $10^4$ gives a finite result and a finite gradient.
# - The trap: $e^{10000}$ is infinite in a computer. A formula may come out right all the same, and its *gradient* be
#   NaN.


# %% exercise="silu" section="Three ways to bend"
def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x·sigmoid(x), also called Swish.

    Source: Elfwing et al. 2018 (arXiv 1702.03118), section 2; Ramachandran et al. 2017 (arXiv 1710.05941).
    """
    ### BEGIN SOLUTION
    return x * torch.sigmoid(x)
    ### END SOLUTION


# %% check="silu" points=3
x = torch.tensor([-20.0, 0.0, 20.0])
out = silu(x)
assert isinstance(out, torch.Tensor), f"silu should return a tensor, not {type(out).__name__}."
assert torch.allclose(out, torch.tensor([0.0, 0.0, 20.0]), atol=1e-4), (
    f"-20, 0 and 20 should give nearly 0, 0 and 20, not {out.tolist()}."
)
x = torch.linspace(-3, 3, 13)
assert torch.allclose(silu(x) - silu(-x), x, atol=1e-5), (
    "sigmoid(x) and sigmoid(-x) add up to 1, so silu(x) - silu(-x) should be x itself."
)
out = silu(torch.tensor(math.log(3))).item()
assert abs(out - 0.75 * math.log(3)) < 1e-4, (
    f"sigmoid(ln 3) is 3/4, so silu(ln 3) should be 3/4 of ln 3, {0.75 * math.log(3):.4f}, not {out:.4f}."
)
x = torch.tensor([1000.0, -1000.0])
assert silu(x).isfinite().all(), f"silu of 1000 and -1000 should be finite, not {silu(x).tolist()}."
print("The visible checks of silu pass.")

# %% see="silu"
# The slopes decide how an error flows back. Where does ReLU send nothing back, and what do the others do there?
try:
    import matplotlib.pyplot as plt

    x = torch.linspace(-6, 6, 401).requires_grad_()
    curves = {"ReLU": (x.clamp(min=0), "--"), "GELU": (gelu(x), "-"), "SiLU": (silu(x), "-.")}
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), facecolor="white")
    for (label, (y, style)), color in zip(curves.items(), ("#D55E00", "#0072B2", "#009E73"), strict=True):
        (slope,) = torch.autograd.grad(y.sum(), x)
        left.plot(x.detach(), y.detach(), style, color=color, label=label)
        right.plot(x.detach(), slope, style, color=color, label=label)
    left.set(xlabel="x", ylabel="activation", title="Three bends", xlim=(-6, 3), ylim=(-0.5, 3))
    right.set(xlabel="x", ylabel="slope", title="Only ReLU is flat for every negative x")
    right.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish gelu and silu first, then run this cell again.")

# %% [markdown]
# ## 3 · `MLP` ●○○
#
# The feed-forward layer of GPT-2. It widens each vector to `d_hidden` numbers, bends each of them, and narrows the
# result to `d_model` again:
#
# $$\mathrm{MLP}(x) = W_\text{down}\;\mathrm{gelu}_{\tanh}\!\left(W_\text{up}\,x + b_\text{up}\right) + b_\text{down}$$
#
# `MLP(d_model, d_hidden=None)` is an `nn.Module`. Its state dict has exactly four entries, stored as `nn.Linear` stores
# its own:
#
# | entry | shape |
# |---|---|
# | `up.weight` | `(d_hidden, d_model)` |
# | `up.bias` | `(d_hidden,)` |
# | `down.weight` | `(d_model, d_hidden)` |
# | `down.bias` | `(d_model,)` |
#
# - Without `d_hidden` it is `4 * d_model`, as in GPT-2. How you initialise the weights is up to you.
# - It takes `x` of shape `(..., d_model)` and returns the same shape. Every position is worked on by itself.
# - There is no dropout, no residual and no normalisation in it: those stand elsewhere.
# - The trap: there are two GELUs, and GPT-2 was trained with one of them.
#
# Call your `gelu` by its name. When this part is marked, PyTorch's own stands in for it, so that a mistake above costs
# nothing here.


# %% exercise="MLP" section="Widen, bend, narrow"
class MLP(nn.Module):
    """GPT-2's feed-forward layer: up, the tanh form of gelu, down, with biases.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.3;
    the activation is that of Radford et al. 2018, section 4.1.
    """

    def __init__(self, d_model: int, d_hidden: int | None = None) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if d_hidden is None:
            d_hidden = 4 * d_model
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Each position by itself: widened, bent, narrowed."""
        ### BEGIN SOLUTION
        return self.down(gelu(self.up(x), approximate="tanh"))
        ### END SOLUTION


# %% check="MLP" points=4
layer = MLP(4, 6)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {"up.weight": (6, 4), "up.bias": (6,), "down.weight": (4, 6), "down.bias": (4,)}
assert shapes == wanted, f"The state dict of MLP(4, 6) should hold {wanted}, and it holds {shapes}."
hidden = len(MLP(4).state_dict()["up.bias"])
assert hidden == 16, f"Without d_hidden, MLP(4) should be 16 wide inside, not {hidden}."
x = torch.randn(2, 3, 4)
assert layer(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(layer(x).shape)}."
)
layer.load_state_dict({name: torch.zeros(shape) for name, shape in wanted.items()} | {"down.bias": torch.arange(4.0)})
assert torch.equal(layer(x), torch.arange(4.0).expand(2, 3, 4)), (
    "With all weights at zero, only the bias of down should be left in the output."
)
layer, x = MLP(1, 1), torch.linspace(-3, 3, 6).reshape(2, 3, 1)
layer.load_state_dict({name: torch.full_like(value, value.dim() > 1) for name, value in layer.state_dict().items()})
assert torch.allclose(layer(x), gelu(x, approximate="tanh"), atol=1e-5), (
    "With one channel, weights of 1 and biases of 0, each number should come out bent by gelu in its tanh form, and by "
    "nothing else, whatever stands at the other positions."
)
print("The visible checks of MLP pass.")

# %% stand_in="MLP"
import torch  # noqa: E402


def gelu(x, approximate="none", pytorchs=torch.nn.functional.gelu):
    return pytorchs(x, approximate=approximate)


# %% see="MLP"
# One position changes: who notices? In chapter 02 the whole lower triangle lit up. Guess before you run it.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    n, d_model = 8, 32
    layer = MLP(d_model)
    x = torch.randn(1, n, d_model)
    changed = x.repeat(n, 1, 1)
    changed[torch.arange(n), torch.arange(n)] = torch.randn(n, d_model)  # in copy j, position j is another one
    moved = (layer(changed) - layer(x)).norm(dim=-1).detach()
    fig, ax = plt.subplots(figsize=(4, 3.6), facecolor="white")
    ax.imshow(moved.T, cmap="cividis", vmin=0)
    ax.set(xlabel="position that changed", ylabel="position that notices", title="Nobody looks at a neighbour")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish gelu and MLP first, then run this cell again.")

# %% [markdown]
# ## 4 · `swiglu_hidden` ●○○
#
# The next layer has three matrices instead of two. To cost no more than a plain layer that is `4 * d_model` wide, each
# of them has to be smaller: two thirds as wide. And a width should be a round number, because the hardware multiplies
# in blocks.
#
# `swiglu_hidden(d_model, multiple_of=256)` computes it as LLaMA's own code does:
#
# 1. take two thirds of `4 * d_model`;
# 2. drop what stands after the decimal point;
# 3. round **up** to the next multiple of `multiple_of`; a number that is one already stays.
#
# - Both arguments are whole numbers of at least 1. The result is an `int`.
# - LLaMA-7B has `d_model` 4096 and is 11008 wide: with the default your function should say so.
# - The trap: for 4096 several wrong roundings give 11008 too.


# %% exercise="swiglu_hidden" section="How wide?"
def swiglu_hidden(d_model: int, multiple_of: int = 256) -> int:
    """The hidden width at which a gated layer costs what a plain one of 4·d_model does, rounded up.

    Source: Touvron et al. 2023 (arXiv 2302.13971), section 2.2; the rounding is that of LLaMA's model.py.
    """
    ### BEGIN SOLUTION
    exact = 2 * 4 * d_model // 3
    return (exact + multiple_of - 1) // multiple_of * multiple_of
    ### END SOLUTION


# %% check="swiglu_hidden" points=3
width = swiglu_hidden(4096)
assert type(width) is int, f"swiglu_hidden should return an int, not a {type(width).__name__}."
assert width == 11008, f"LLaMA-7B has d_model 4096 and is 11008 wide, and swiglu_hidden(4096) says {width}."
width = swiglu_hidden(6, multiple_of=4)
assert width == 16, f"Two thirds of 24 are 16, a multiple of 4 already: it should stay 16, not become {width}."
print("The visible checks of swiglu_hidden pass.")

# %% see="swiglu_hidden"
# The parameters of a gated layer as a share of those of a plain one. When does the rounding matter?
try:
    widths = {d_model: swiglu_hidden(d_model) for d_model in (64, 256, 768, 1024, 4096, 8192)}
    print("d_model   plain 4d   gated   parameters, gated : plain")
    for d_model, width in widths.items():
        print(f"{d_model:>7}   {4 * d_model:>8}   {width:>5}   {3 * d_model * width / (2 * d_model * 4 * d_model):.3f}")
except NotImplementedError:
    print("Finish swiglu_hidden first, then run this cell again.")

# %% [markdown]
# ## 5 · `SwiGLU` ●●○
#
# The feed-forward layer of LLaMA, Mistral and Qwen. Two matrices widen the vector. What comes out of the first is bent
# and becomes a **gate**; what comes out of the second is multiplied by it, number by number. The third matrix narrows
# the product:
#
# $$\mathrm{SwiGLU}(x) = W_\text{down}\left(\mathrm{silu}(W_\text{gate}\,x) \odot W_\text{up}\,x\right)$$
#
# `SwiGLU(d_model, d_hidden=None)` is an `nn.Module`. Its state dict has exactly three entries and no biases, stored as
# `nn.Linear` stores its weight:
#
# | entry | shape |
# |---|---|
# | `gate.weight` | `(d_hidden, d_model)` |
# | `up.weight` | `(d_hidden, d_model)` |
# | `down.weight` | `(d_model, d_hidden)` |
#
# - Without `d_hidden` it is `swiglu_hidden(d_model)`. How you initialise the weights is up to you.
# - It takes `x` of shape `(..., d_model)` and returns the same shape. Every position is worked on by itself.
# - There is no dropout, no residual and no normalisation in it.
# - The trap: `gate` and `up` have the same shape, so a layer that confuses them loads LLaMA's weights without an error
#   and talks nonsense.
#
# Call your `silu` and your `swiglu_hidden` by name. When this part is marked, right ones stand in for them.


# %% exercise="SwiGLU" section="A gate"
class SwiGLU(nn.Module):
    """LLaMA's feed-forward layer: down(silu(gate x) · up x), without biases.

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6; the names are those of LLaMA's published weights.
    """

    def __init__(self, d_model: int, d_hidden: int | None = None) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        if d_hidden is None:
            d_hidden = swiglu_hidden(d_model)
        self.gate = nn.Linear(d_model, d_hidden, bias=False)
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Each position by itself: widened twice, one half gating the other, narrowed."""
        ### BEGIN SOLUTION
        return self.down(silu(self.gate(x)) * self.up(x))
        ### END SOLUTION


# %% check="SwiGLU" points=5
layer = SwiGLU(4, 6)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {"gate.weight": (6, 4), "up.weight": (6, 4), "down.weight": (4, 6)}
assert shapes == wanted, f"The state dict of SwiGLU(4, 6) should hold {wanted}, and it holds {shapes}."
x = torch.randn(2, 3, 4)
assert layer(x).shape == x.shape, (
    f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(layer(x).shape)}."
)
for name in ("gate", "up"):
    layer = SwiGLU(4, 6)
    layer.load_state_dict({**layer.state_dict(), f"{name}.weight": torch.zeros(6, 4)})
    assert not layer(x).any(), f"With {name}.weight at zero the product is zero, so the output should be zero too."
print("The visible checks of SwiGLU pass.")

# %% stand_in="SwiGLU"
import torch  # noqa: E402


def silu(x, pytorchs=torch._C._nn.silu):
    return pytorchs(x)


def swiglu_hidden(d_model, multiple_of=256):
    return -(-(8 * d_model // 3) // multiple_of) * multiple_of


# %% see="SwiGLU"
# What one hidden unit does. A plain unit bends one number; a gated one multiplies two, and one of them decides.
try:
    import matplotlib.pyplot as plt

    x = torch.linspace(-3, 3, 121)
    product = silu(x)[None, :] * x[:, None]
    fig, ax = plt.subplots(figsize=(4.6, 3.8), facecolor="white")
    image = ax.imshow(product, cmap="RdBu", origin="lower", extent=(-3, 3, -3, 3), vmin=-9, vmax=9)
    ax.set(xlabel="from gate", ylabel="from up", title="On the left the gate is shut")
    fig.colorbar(image, label="silu(gate) · up")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish silu first, then run this cell again.")

# %% [markdown]
# ## What the other half is for
#
# Here is a table without any rule: what each of 24 people ate in each of 12 months, one of ten dishes, drawn at random.
# A model gets a person and a month, as two vectors added up, which is what attention could bring together in one
# place. It has to name the dish.
#
# One model reads the dish straight off the sum. Another has your `MLP` in between, the third your `SwiGLU`, all inside
# a residual as in a Transformer. They are trained on the whole table, and asked about the whole table: this is a test
# of memory.
#
# Before you run it: how much of the table does the first one learn? It has a vector for each person and each month, and
# all the time it wants.


# %% see="SwiGLU"
class Recall(nn.Module):
    """Adds the vectors of a person and a month, applies a feed-forward layer if there is one, names a dish."""

    def __init__(self, feed_forward: nn.Module | None, d_model: int = 32) -> None:
        super().__init__()
        self.person, self.month = nn.Embedding(24, d_model), nn.Embedding(12, d_model)
        self.feed_forward = feed_forward
        self.dish = nn.Linear(d_model, 10)

    def forward(self, person: Tensor, month: Tensor) -> Tensor:
        x = self.person(person) + self.month(month)
        return self.dish(x if self.feed_forward is None else x + self.feed_forward(x))


def memorise(feed_forward: nn.Module | None, table: Tensor, steps: int) -> tuple[Recall, list[float]]:
    """A trained model, and the share of the table that it had right before every tenth step."""
    torch.manual_seed(0)
    model, right = Recall(feed_forward), []
    person, month = torch.meshgrid(torch.arange(24), torch.arange(12), indexing="ij")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps + 1):
        logits = model(person, month)
        if step % 10 == 0:
            right.append((logits.argmax(-1) == table).float().mean().item())
        loss = F.cross_entropy(logits.flatten(0, 1), table.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, right


model = None
try:
    import os

    import matplotlib.pyplot as plt

    torch.manual_seed(1)
    table = torch.randint(10, (24, 12))
    steps = 60 if os.environ.get("ICHIMON_FAST") == "1" else 300
    layers = {"no feed-forward": None, "MLP": MLP(32, 96), "SwiGLU": SwiGLU(32, 64)}
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for (label, layer), color, style in zip(
        layers.items(), ("#D55E00", "#0072B2", "#009E73"), ("--", "-", "-."), strict=True
    ):
        model, right = memorise(layer, table, steps)
        ax.plot(range(0, steps + 1, 10), right, style, color=color, label=label)
    ax.set(xlabel="training step", ylabel="share of the table", ylim=(0, 1.03), title="Feed-forward layers remember")
    ax.legend(loc=(0.66, 0.46))
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish all five parts first, then run this cell again.")

# %% [markdown]
# Adding two vectors can say "she likes soup" and "in May there is soup". It cannot say "but not she, in May": that is a
# fact about the *pair*. A bend, or a product, can.
#
# Where in the layer is a fact? Below, hidden units of the trained SwiGLU are taken out at random, more and more of
# them. Guess the curve first: does nothing happen for a long time, because there are spare copies? Is everything lost
# at once, because each fact needs all units? Or do facts vanish bit by bit?

# %% see="SwiGLU"
if model is None:
    print("Train the models in the cell above first, then run this cell again.")
else:
    torch.manual_seed(2)
    person, month = torch.meshgrid(torch.arange(24), torch.arange(12), indexing="ij")
    down = model.feed_forward.down.weight
    whole, left, known = down.detach().clone(), range(0, 65, 8), []
    with torch.no_grad():
        for keep in left:
            trials = []
            for _ in range(20):
                down.copy_(whole)
                down[:, torch.randperm(64)[keep:]] = 0  # what a unit writes is its column of down
                trials.append((model(person, month).argmax(-1) == table).float().mean())
            known.append(torch.stack(trials).mean().item())
        down.copy_(whole)
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(left, known, "o-", color="#009E73")
    ax.set(xlabel="hidden units that are left, of 64", ylabel="share of the table", ylim=(0, 1.03))
    ax.set_title("What it still knows")
    fig.tight_layout()
    plt.show()

# %% [markdown]
# That a language model keeps what it knows about the world in these layers is what Geva et al. (2021, arXiv 2012.14913)
# found in trained Transformers: each hidden unit answers to certain patterns in the text, and what it writes favours
# certain next words. The page of the book measures it on a Transformer of our own, and finds that attention could learn
# such a table too.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they compare with PyTorch over many shapes and dtypes, to
# five digits where two formulas differ in the fourth, at very large numbers, in gradients, and with all weights drawn
# at random. Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 04-feed-forward.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
