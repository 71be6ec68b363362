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
#     assignment: 00-warm-up
# ---

# %% [markdown]
# # 00 · Warm-up: tensors, gradients, one training step
#
# **One question: how does a machine get better at a guess?**
#
# It guesses, it is told how wrong it was, and it moves each of its numbers a little in the direction that would have
# made the guess better. That is all of training, for a network of three numbers and for one of a trillion.
#
# You will build each of these moves in five parts, without PyTorch's ready-made ones, and at the end train two models
# that consist of nothing but your five functions. The page of the book that goes with this notebook is
# `book/00-warm-up`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `softmax` | ●●○ | 20 | 4 |
# | `cross_entropy` | ●●○ | 15 | 4 |
# | `linear_backward` | ●●○ | 20 | 4 |
# | `adamw_step` | ●●○ | 20 | 4 |
# | `train_step` | ●●● | 30 | 6 |
#
# ## Conventions
#
# They are said once, here, and kept in every chapter.
#
# - **A tensor** is a block of numbers: a row of them has one dimension, a table two. Its *shape* says how many there
#   are along each, and its *dtype* how each number is stored.
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "n classes"]` is a table of floats with `n` rows and
#   `classes` columns. Dots, as in `"... d_in"`, stand for any number of dimensions before the last, also none.
# - **A gradient** has the shape of what it is the gradient of: one slope for each number.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
#
# While your work is marked, what these parts are about cannot be borrowed: `softmax`, `log_softmax`, `cross_entropy`
# and `scaled_dot_product_attention` of PyTorch, `torch.optim.Adam` and `AdamW`, and automatic differentiation
# (`.backward()`, `torch.autograd.grad`, `torch.func`) raise an error. Everything else is yours: `exp`, `amax`,
# `logsumexp`, `@`.

# %% role="set-up"
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# %% [markdown]
# ## 1 · `softmax` ●●○
#
# A model that chooses among some answers gives each a *score*, or *logit*: any number, the higher the better. Softmax
# turns scores into shares, none negative, that add up to 1:
#
# $$\mathrm{softmax}(x)_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# `softmax(x, dim=-1)` takes a tensor of floats of any shape and returns one of the same shape. The shares add up to 1
# along the dimension `dim`, whatever that is.
#
# - float32, float64 or bfloat16; at least one entry along `dim`. There is no NaN and no $+\infty$ in `x`.
# - Scores may be as large as ±10⁴, all at once or beside one another, and the shares are still right.
# - A score of $-\infty$ means "not a candidate": its share is exactly 0. Where every score along `dim` is $-\infty$,
#   every share is 0.
# - Gradients flow through it, and none of them is ever NaN.
# - The trap: $e^{100}$ is too large for a float32. Which number may you subtract from all scores of one softmax without
#   changing any share?


# %% exercise="softmax" section="From scores to a guess"
def softmax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Shares that add up to 1 along `dim`; zeros where every score along it is −inf."""
    ### BEGIN SOLUTION
    largest = x.amax(dim, keepdim=True)
    largest = largest.masked_fill(largest == -math.inf, 0)  # −inf − (−inf) is NaN
    exponentials = torch.exp(x - largest)
    total = exponentials.sum(dim, keepdim=True)
    return exponentials / total.masked_fill(total == 0, 1)
    ### END SOLUTION


# %% check="softmax" points=4
x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -math.inf, -math.inf]])
shares = softmax(x)
assert isinstance(shares, torch.Tensor), f"softmax should return a tensor, not {type(shares).__name__}."
assert shares.shape == (2, 4), f"The shares of 2 rows of 4 scores should be (2, 4), not {tuple(shares.shape)}."
assert torch.allclose(shares[0], torch.full((4,), 0.25), atol=1e-6), (
    f"Four equal scores should share equally, and they get {[round(s, 3) for s in shares[0].tolist()]}."
)
assert torch.allclose(shares[1], torch.tensor([0.75, 0.25, 0, 0]), atol=1e-6), (
    "Scores of ln 3 and 0, and two that are −∞, should get the shares 0.75, 0.25, 0 and 0, "
    f"not {[round(s, 3) for s in shares[1].tolist()]}."
)
columns = softmax(torch.tensor([[0.0, 5.0], [0.0, 5.0]]), dim=0)
assert torch.allclose(columns, torch.full((2, 2), 0.5), atol=1e-6), (
    "With dim=0 each column adds up to 1, so two equal scores in a column should get one half each."
)
print("The visible checks of softmax pass.")

# %% see="softmax"
# The same four scores, moved and stretched. What changes the shares, and what does not?
try:
    import matplotlib.pyplot as plt

    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    variants = {
        "the scores": scores,
        "all 100 higher": scores + 100,
        "all three times": 3 * scores,
        "a third": scores / 3,
    }
    shares = [softmax(values) for values in variants.values()]
    fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), sharey=True, facecolor="white")
    for ax, name, values, row in zip(axes, variants, variants.values(), shares, strict=True):
        ax.bar([f"{value:.3g}" for value in values.tolist()], row, color="#0072B2")
        ax.set(title=name, xlabel="score", ylim=(0, 1))
    axes[0].set(ylabel="share")
    fig.suptitle("Only the differences between scores count")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish softmax first, then run this cell again.")

# %% [markdown]
# ## 2 · `cross_entropy` ●●○
#
# How wrong is a guess? If the model gave the right answer the share $p$, the **cross-entropy** is $-\ln p$: nothing for
# certainty, 0.69 for a coin toss, and more and more the smaller $p$ is. Over a batch it is the mean:
#
# $$L = -\frac{1}{n} \sum_{r=1}^{n} \ln \mathrm{softmax}(x_r)_{y_r}$$
#
# | argument | shape | |
# |---|---|---|
# | `logits` | `(n, classes)` | float32, float64 or bfloat16: scores, not shares |
# | `targets` | `(n,)` | int64: the number of the right class in each row, from 0 |
# | result | `()` | a single number, a tensor of the dtype of `logits`, in nats (natural logarithm) |
#
# - $n$ and the number of classes are at least 1.
# - Scores may be as large as ±10⁴: the loss is finite, and right, even where the share of the right class is so small
#   that a float32 cannot hold it.
# - A class with a score of $-\infty$ is no candidate; it is never the right one, and the loss stays finite.
# - Gradients flow through it, and none of them is NaN.
# - The trap: first the share, then its logarithm is one step too many. $\ln \frac{e^{x_i}}{\sum_j e^{x_j}}$ can be
#   written without dividing anything.


# %% exercise="cross_entropy" section="How wrong was it?"
def cross_entropy(logits: Float[Tensor, "n classes"], targets: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """The mean over the rows of −ln of the share that softmax gives to the right class, in nats."""
    ### BEGIN SOLUTION
    right = logits.gather(1, targets[:, None])[:, 0]
    return (logits.logsumexp(1) - right).mean()
    ### END SOLUTION


# %% check="cross_entropy" points=4
logits = torch.zeros(2, 4)
loss = cross_entropy(logits, torch.tensor([1, 3]))
assert isinstance(loss, torch.Tensor), f"cross_entropy should return a tensor, not {type(loss).__name__}."
assert loss.shape == (), f"The loss of a batch should be a single number, not of shape {tuple(loss.shape)}."
assert math.isclose(loss.item(), math.log(4), rel_tol=1e-5), (
    f"With four equal scores each class has a quarter, so the loss should be ln 4, not {loss.item():.3f}."
)
loss = cross_entropy(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
assert math.isclose(loss.item(), (math.log(4 / 3) + math.log(2)) / 2, rel_tol=1e-5), (
    "Where the right answers have the shares 3/4 and 1/2, the loss should be the mean of ln 4/3 and ln 2, "
    f"not {loss.item():.3f}."
)
print("The visible checks of cross_entropy pass.")

# %% see="cross_entropy"
# One score rises, the three others stay at 0. Where is the slope of the loss steep, and where does it vanish?
try:
    import matplotlib.pyplot as plt

    score = torch.linspace(-10, 10, 201)
    rows = torch.stack([score, *torch.zeros(3, 201)], 1)
    losses = [cross_entropy(row[None], torch.tensor([0])).item() for row in rows]
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(score, losses, color="#0072B2")
    ax.set(xlabel="score of the right class (the others have 0)", ylabel="loss (nats)")
    ax.set_title("Being surely wrong costs most")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish cross_entropy first, then run this cell again.")

# %% [markdown]
# ## 3 · `linear_backward` ●●○
#
# A linear layer computes $y = x W^\top + b$: every number of $y$ is a sum of all numbers of $x$, each times a weight.
# Suppose somebody tells you how the loss changes with each number of $y$: that is `grad_output`. How does it then
# change with each number of $x$, of $W$ and of $b$? That is the chain rule, and applied to layer after layer from the
# loss back to the input it is called **backpropagation**.
#
# `linear_backward(grad_output, x, weight)` returns the three gradients `(grad_x, grad_weight, grad_bias)`.
#
# | argument | shape | |
# |---|---|---|
# | `grad_output` | `(..., d_out)` | the gradient of the loss with respect to $y$ |
# | `x` | `(..., d_in)` | what the layer was given; the dots are the same as above |
# | `weight` | `(d_out, d_in)` | stored as `nn.Linear` stores it |
# | `grad_x` | `(..., d_in)` | |
# | `grad_weight` | `(d_out, d_in)` | |
# | `grad_bias` | `(d_out,)` | |
#
# - The dots stand for any number of dimensions, also none: one vector, a batch of them, a batch of sequences of them.
# - Everything has one dtype, and so have the results.
# - The same weights were used for every row of $x$, so each row has its say in their gradient: gradients **add up**.
# - The trap: shapes narrow the choice of a product down, but where $d_\text{in} = d_\text{out}$ a transposed gradient
#   fits as well. Write down $y_{ro} = \sum_i x_{ri} W_{oi} + b_o$ and differentiate one entry.


# %% exercise="linear_backward" section="Back through a layer"
def linear_backward(
    grad_output: Float[Tensor, "... d_out"], x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"]
) -> tuple[Float[Tensor, "... d_in"], Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"]]:
    """The gradients of x, weight and bias in y = x @ weight.T + bias, from that of y."""
    ### BEGIN SOLUTION
    d_out, d_in = weight.shape
    grad_rows, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return grad_output @ weight, grad_rows.T @ rows, grad_rows.sum(0)
    ### END SOLUTION


# %% check="linear_backward" points=4
weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # d_out 2, d_in 3
found = linear_backward(torch.tensor([[1.0, 0.0]]), torch.tensor([[7.0, 8.0, 9.0]]), weight)
assert isinstance(found, tuple | list), "linear_backward should return three gradients: of x, weight, bias."
assert len(found) == 3, "linear_backward should return three gradients: of x, weight, bias."
for name, grad, shape in zip(("grad_x", "grad_weight", "grad_bias"), found, ((1, 3), (2, 3), (2,)), strict=True):
    assert isinstance(grad, torch.Tensor), f"{name} should be a tensor, not {type(grad).__name__}."
    assert grad.shape == shape, f"{name} should have the shape {shape} here, not {tuple(grad.shape)}."
grad_x, grad_weight, grad_bias = found
assert grad_x.tolist() == [[1, 2, 3]], (
    "If only the first output matters, x matters by the first row of the weights: grad_x should be that row, "
    f"not {grad_x.tolist()}."
)
assert grad_weight.tolist() == [[7, 8, 9], [0, 0, 0]], (
    "If only the first output matters, only the first row of the weights does, each weight by its input: grad_weight "
    f"should be x and a row of zeros, not {grad_weight.tolist()}."
)
assert grad_bias.tolist() == [1, 0], (
    f"The bias goes straight into y: grad_bias should be [1, 0], not {grad_bias.tolist()}."
)
print("The visible checks of linear_backward pass.")

# %% see="linear_backward"
# Does it tell the truth? Nudge each weight by a little, see how much the loss moves, and compare: 40 weights, 40 dots.
try:
    import matplotlib.pyplot as plt

    generator = torch.Generator().manual_seed(0)
    x, weight, wanted = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 8), (5, 8), (6, 5))
    )

    def distance(weight: Tensor) -> Tensor:
        """Half the squared distance of the outputs from what is wanted. Its gradient by y is y − wanted."""
        return ((x @ weight.T - wanted) ** 2).sum() / 2

    _, grad_weight, _ = linear_backward(x @ weight.T - wanted, x, weight)
    nudge, measured = 1e-6, torch.zeros(5, 8, dtype=torch.float64)
    for o in range(5):
        for i in range(8):
            moved = weight.clone()
            moved[o, i] += nudge
            measured[o, i] = (distance(moved) - distance(weight)) / nudge
    fig, ax = plt.subplots(figsize=(4, 4), facecolor="white")
    ax.axline((0, 0), slope=1, color="#999999", linewidth=1)
    ax.plot(measured.flatten(), grad_weight.flatten(), "o", color="#0072B2")
    ax.set(xlabel="slope measured by nudging", ylabel="your gradient", title="Every dot belongs on the line")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish linear_backward first, then run this cell again.")

# %% [markdown]
# ## 4 · `adamw_step` ●●○
#
# The gradient says which way is up, so a step goes the other way. How far? Gradients of different weights differ by
# orders of magnitude. **AdamW** therefore keeps two running means for each weight: $m$ of its gradients and $v$ of
# their squares. $m / \sqrt{v}$ is of about size one, for every weight. It is what language models are trained with.
#
# With the gradient $g$ of step number $t = 1, 2, 3, \dots$, both means starting from zero:
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g^2$$
#
# $$\hat m = \frac{m_t}{1 - \beta_1^t} \qquad \hat v = \frac{v_t}{1 - \beta_2^t}$$
#
# $$\theta_t = \theta_{t-1} - \eta\, \lambda\, \theta_{t-1} - \eta\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$
#
# The hats undo the start from zero: after one step $m$ holds only a tenth of a gradient. The term with $\lambda$ is the
# *weight decay*: every weight shrinks by a fixed share of itself. It stands outside the fraction and never enters $m$
# or $v$: that is the W in AdamW.
#
# | argument | |
# |---|---|
# | `parameter`, `gradient` | $\theta_{t-1}$ and $g$: tensors of one shape (any) and one dtype |
# | `m`, `v` | $m_{t-1}$ and $v_{t-1}$: tensors of the same shape and dtype |
# | `step` | the number $t$ of this step, an `int` from 1 |
# | `lr`, `betas`, `eps`, `weight_decay` | $\eta$, $(\beta_1, \beta_2)$, $\varepsilon$, $\lambda$, by keyword |
# | result | `(parameter, m, v)`: $\theta_t$, $m_t$, $v_t$ (without hats), new tensors of the same dtype |
#
# - A weight whose gradient has always been 0 does not become NaN.
# - The trap: `parameter -= …` and `m.mul_(…)` change what belongs to the caller.


# %% exercise="adamw_step" section="The step: AdamW"
def adamw_step(
    parameter: Float[Tensor, "..."],
    gradient: Float[Tensor, "..."],
    m: Float[Tensor, "..."],
    v: Float[Tensor, "..."],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The new parameter, m and v after step number `step`, which counts from 1.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, with the decay times lr, as libraries have it.
    """
    ### BEGIN SOLUTION
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    parameter = parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps)
    return parameter, m, v
    ### END SOLUTION


# %% check="adamw_step" points=4
start, slope = torch.tensor([1.0, 2.0]), torch.tensor([100.0, -0.01])
settings = {"lr": 0.1, "betas": (0.9, 0.8), "eps": 1e-8, "weight_decay": 0.0}
found = adamw_step(start, slope, torch.zeros(2), torch.zeros(2), 1, **settings)
assert isinstance(found, tuple | list), "adamw_step should return three tensors: parameter, m and v."
assert len(found) == 3, "adamw_step should return three tensors: parameter, m and v."
parameter, m, v = found
assert torch.allclose(m, 0.1 * slope), f"After the first step m should be a tenth of the gradient, not {m.tolist()}."
assert torch.allclose(v, 0.2 * slope**2), f"Here v should be a fifth of the squared gradient, not {v.tolist()}."
assert torch.allclose(parameter, torch.tensor([0.9, 2.1]), atol=1e-4), (
    "The first step moves every weight by lr, against its gradient, whatever the gradient's size: 1.0 and 2.0 should "
    f"become 0.9 and 2.1, not {[round(p, 4) for p in parameter.tolist()]}."
)
settings["weight_decay"] = 0.5
parameter, _, _ = adamw_step(start, slope, torch.zeros(2), torch.zeros(2), 1, **settings)
assert torch.allclose(parameter, torch.tensor([0.85, 2.0]), atol=1e-4), (
    "With a weight_decay of 0.5 and this lr, each weight should also lose 5 % of what it was: 1.0 and 2.0 should "
    f"become 0.85 and 2.0, not {[round(p, 4) for p in parameter.tolist()]}."
)
assert start.tolist() == [1, 2], "adamw_step changed the parameter that it was given; it should return a new one."
print("The visible checks of adamw_step pass.")

# %% see="adamw_step"
# A valley forty times as steep across as along. Both walkers take 60 steps. If plain descent went faster, it would fly
# out of the valley: try it.
try:
    import matplotlib.pyplot as plt

    steepness = torch.tensor([1.0, 40.0])
    start = torch.tensor([-4.0, 1.5])
    plain, adamw = [start], [start]
    m = v = torch.zeros(2)
    for step in range(1, 61):
        plain.append(plain[-1] - 0.045 * steepness * plain[-1])
        walker, m, v = adamw_step(
            adamw[-1], steepness * adamw[-1], m, v, step, lr=0.2, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.0
        )
        adamw.append(walker)
    a, b = torch.meshgrid(torch.linspace(-4.5, 1.5, 80), torch.linspace(-2, 2, 80), indexing="xy")
    fig, ax = plt.subplots(figsize=(7, 3.4), facecolor="white")
    ax.contour(a, b, (a**2 + 40 * b**2) / 2, levels=12, colors="#CCCCCC", linewidths=0.8)
    for path, name, color, style in (
        (plain, "plain descent", "#D55E00", "s--"),
        (adamw, "your AdamW", "#0072B2", "o-"),
    ):
        ax.plot(*torch.stack(path).T, style, color=color, markersize=3, linewidth=1, label=name)
    ax.plot(0, 0, "k*", markersize=12)
    ax.set(xlabel="first weight", ylabel="second weight", title="AdamW takes steps of one size in both directions")
    ax.legend(loc="upper right")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish adamw_step first, then run this cell again.")

# %% [markdown]
# ## 5 · `train_step` ●●●
#
# Now everything together: one training step of a network with two layers. Forwards it computes
#
# $$h = x W_1^\top + b_1 \qquad a = \max(h, 0) \qquad \text{logits} = a W_2^\top + b_2$$
#
# and the cross-entropy of the logits. Backwards, from the loss to the first layer, it needs the gradient of each part.
# The last two layers have one that is famous for its simplicity: the gradient of the mean cross-entropy with respect
# to the logits is *(share − 1 for the right class, share − 0 for the others) / n*. ReLU, the $\max(h, 0)$, passes the
# gradient on where $h > 0$ and stops it elsewhere, also where $h = 0$. Then each of the four parameters takes its
# AdamW step.
#
# | argument | |
# |---|---|
# | `parameters` | a dict of four tensors, with the keys below |
# | `"hidden.weight"`, `"hidden.bias"` | $W_1$, `(d_hidden, d_in)`, and $b_1$, `(d_hidden,)` |
# | `"out.weight"`, `"out.bias"` | $W_2$, `(classes, d_hidden)`, and $b_2$, `(classes,)` |
# | `m`, `v` | dicts with the same four keys: the running means of each parameter |
# | `x` | `(n, d_in)`, floats of the parameters' dtype |
# | `targets` | `(n,)`, int64 |
# | `step` | the number of this step, from 1 |
# | `lr`, `betas`, `eps`, `weight_decay` | as in `adamw_step` |
# | result | `(loss, parameters, m, v)`: the loss *before* the step, a tensor; three new dicts with the same four keys |
#
# - Weight decay is for the two weights. The biases get none, as is usual.
# - The dicts may have their keys in any order. Nothing that comes in is changed.
# - The trap: all gradients belong to the parameters as they were at the start of the step.
#
# Call your `softmax`, `cross_entropy`, `linear_backward` and `adamw_step` by their names. When this part is marked,
# right ones stand in for them, so that a mistake above costs nothing here.


# %% exercise="train_step" section="All of it, once, by hand"
def train_step(
    parameters: dict[str, Tensor],
    m: dict[str, Tensor],
    v: dict[str, Tensor],
    x: Float[Tensor, "n d_in"],
    targets: Int[Tensor, "n"],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One step of training on one batch: the loss before it, and the parameters, m and v after it."""
    ### BEGIN SOLUTION
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)

    right = F.one_hot(targets, logits.shape[1])
    grad_logits = (softmax(logits) - right) / len(targets)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])

    new_parameters, new_m, new_v = {}, {}, {}
    for name, grad in grads.items():
        decay = weight_decay if name.endswith("weight") else 0.0
        new_parameters[name], new_m[name], new_v[name] = adamw_step(
            parameters[name], grad, m[name], v[name], step, lr=lr, betas=betas, eps=eps, weight_decay=decay
        )
    return loss, new_parameters, new_m, new_v
    ### END SOLUTION


# %% check="train_step" points=6
NAMES = {"hidden.weight": (5, 3), "hidden.bias": (5,), "out.weight": (4, 5), "out.bias": (4,)}
generator = torch.Generator().manual_seed(0)
parameters = {name: torch.randn(shape, generator=generator) for name, shape in NAMES.items()}
parameters["out.weight"] = torch.zeros(4, 5)
parameters["out.bias"] = torch.zeros(4)
zeros = {name: torch.zeros(shape) for name, shape in NAMES.items()}
x, targets = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 3, 0, 0])
settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
found = train_step(parameters, zeros, zeros, x, targets, 1, **settings)
assert isinstance(found, tuple | list), "train_step should return four things: loss, parameters, m and v."
assert len(found) == 4, "train_step should return four things: loss, parameters, m and v."
loss, new, m, v = found
assert isinstance(loss, torch.Tensor), f"The loss should be a tensor, not {type(loss).__name__}."
for name, state in (("parameters", new), ("m", m), ("v", v)):
    assert isinstance(state, dict), f"{name} should be a dict, not {type(state).__name__}."
    assert set(state) == set(NAMES), f"{name} should have the keys {sorted(NAMES)}, not {sorted(state)}."
assert math.isclose(float(loss), math.log(4), rel_tol=1e-5), (
    "If the last layer is all zeros, every class has a quarter before the step: the loss should be ln 4, "
    f"not {float(loss):.3f}."
)
assert torch.allclose(new["out.bias"], torch.tensor([0.01, -0.01, -0.01, -0.01]), atol=1e-5), (
    "Class 0 is right three times in six and was given a quarter: its bias should rise by lr, and the others, right "
    f"once in six, should fall by lr. They became {[round(b, 4) for b in new['out.bias'].tolist()]}."
)
closed = parameters | {"hidden.bias": torch.full((5,), -100.0), "out.weight": torch.arange(20.0).reshape(4, 5)}
loss = train_step(closed, zeros, zeros, x, targets, 1, **settings)[0]
assert math.isclose(float(loss), math.log(4), rel_tol=1e-5), (
    "With a bias of -100 no hidden number is above 0, so the ReLU lets nothing through, whatever the last layer is: "
    f"the loss should be ln 4, not {float(loss):.3f}."
)
for step in range(1, 101):
    loss, parameters, m, v = train_step(
        parameters, m if step > 1 else zeros, v if step > 1 else zeros, x, targets, step, **settings
    )
assert float(loss) < 1, (
    f"A hundred steps on the same six examples should bring the loss below 1, and it is {float(loss):.2f}."
)
assert not torch.equal(parameters["hidden.weight"], new["hidden.weight"]), (
    "In a hundred steps the first layer should have learnt, too, and its weights are still those of the beginning."
)
print("The visible checks of train_step pass.")

# %% stand_in="cross_entropy"
import torch  # noqa: E402


def softmax(x, dim=-1, pytorchs=torch.softmax):
    return pytorchs(x, dim).masked_fill((x == -torch.inf).all(dim, keepdim=True), 0)


# %% stand_in="train_step"
import torch  # noqa: E402


def softmax(x, dim=-1, pytorchs=torch.softmax):
    return pytorchs(x, dim).masked_fill((x == -torch.inf).all(dim, keepdim=True), 0)


def cross_entropy(logits, targets, pytorchs=torch._C._nn.cross_entropy_loss):
    return pytorchs(logits, targets, None, 1)  # no weights; 1: the mean


def linear_backward(grad_output, x, weight):
    grad_weight = torch.einsum("...o,...i->oi", grad_output, x)
    return torch.einsum("...o,oi->...i", grad_output, weight), grad_weight, torch.einsum("...o->o", grad_output)


def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m, v = torch.lerp(gradient, m, betas[0]), torch.lerp(gradient.square(), v, betas[1])
    size = torch.sqrt(v / (1 - betas[1] ** step)) + eps
    return torch.addcdiv(parameter * (1 - lr * weight_decay), m, size, value=-lr / (1 - betas[0] ** step)), m, v


# %% [markdown]
# ## What it is good for
#
# Two small models, made of nothing but your five functions. The first sees points in the plane, on three arms of a
# spiral, and learns which arm each belongs to. A straight line cannot part them. The hidden layer can: each of its
# numbers is one bend, and training decides where.
#
# The weights begin random, of a standard deviation of $\sqrt{2/n}$ for $n$ inputs: chapter 00 of the book shows what
# happens with others. Before you run it: how low can the loss get, and where does it start?


# %% see="train_step"
def new_network(d_in: int, d_hidden: int, classes: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden.weight": torch.randn(d_hidden, d_in, generator=generator) * math.sqrt(2 / d_in),
        "hidden.bias": torch.zeros(d_hidden),
        "out.weight": torch.randn(classes, d_hidden, generator=generator) * math.sqrt(2 / d_hidden),
        "out.bias": torch.zeros(classes),
    }


def predict(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The logits of the trained network."""
    active = (x @ parameters["hidden.weight"].T + parameters["hidden.bias"]).clamp(min=0)
    return active @ parameters["out.weight"].T + parameters["out.bias"]


try:
    import os

    import matplotlib.pyplot as plt

    steps = 60 if os.environ.get("ICHIMON_FAST") == "1" else 1000
    generator = torch.Generator().manual_seed(1)
    arm = torch.arange(3).repeat_interleave(100)
    radius = torch.linspace(0.1, 1, 100).repeat(3)
    angle = 4.5 * radius + arm * 2 * math.pi / 3 + 0.15 * torch.randn(300, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    network, losses = new_network(2, 48, 3), []
    m, v = ({name: torch.zeros_like(p) for name, p in network.items()} for _ in range(2))
    for step in range(1, steps + 1):
        loss, network, m, v = train_step(
            network, m, v, points, arm, step, lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01
        )
        losses.append(loss.item())

    a, b = torch.meshgrid(torch.linspace(-1.2, 1.2, 150), torch.linspace(-1.2, 1.2, 150), indexing="xy")
    areas = predict(network, torch.stack([a.flatten(), b.flatten()], 1)).argmax(1).reshape(150, 150)
    right = (predict(network, points).argmax(1) == arm).float().mean().item()
    fig, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(9, 3.6), facecolor="white")
    left_ax.plot(losses, color="#0072B2")
    left_ax.axhline(math.log(3), color="#999999", linestyle="--")
    left_ax.text(0.98 * steps, math.log(3) * 0.98, "guessing: ln 3", ha="right", va="top", color="#666666")
    left_ax.set(xlabel="step", ylabel="loss (nats)", title="The loss falls", ylim=(0, None))
    right_ax.contourf(a, b, areas, levels=[-0.5, 0.5, 1.5, 2.5], colors=["#BFDCEC", "#F6DFB8", "#BFE3D7"])
    for number, (color, marker) in enumerate(zip(("#0072B2", "#D55E00", "#009E73"), "os^", strict=True)):
        right_ax.plot(*points[arm == number].T, marker, color=color, markersize=3)
    right_ax.set(title=f"{right:.0%} of the points are on their own colour", xticks=[], yticks=[], aspect="equal")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish all five parts first, then run this cell again.")

# %% [markdown]
# The second is a language model, if a very small one: from three letters it guesses the fourth. It reads the
# documentation that every Python carries. Afterwards it writes: it guesses a letter, takes it as given, guesses the
# next. Real ones differ in what lies between the input and the logits, which is what the rest of this course is about.
# The loss, the gradients and the step are these.

# %% see="train_step"
try:
    import os
    import re
    from pydoc_data.topics import topics

    steps = 40 if os.environ.get("ICHIMON_FAST") == "1" else 2000
    letters = "abcdefghijklmnopqrstuvwxyz "
    text = re.sub("[^a-z]+", " ", " ".join(topics.values()).lower())
    ids = torch.tensor([letters.index(letter) for letter in text])

    def encode(context: Tensor) -> Tensor:
        """Three letters [n, 3] as 81 numbers [n, 81], all 0 but three."""
        return F.one_hot(context, len(letters)).flatten(1).float()

    generator = torch.Generator().manual_seed(0)
    network, losses = new_network(81, 128, 27), []
    m, v = ({name: torch.zeros_like(p) for name, p in network.items()} for _ in range(2))
    for step in range(1, steps + 1):
        at = torch.randint(len(ids) - 3, (256,), generator=generator)
        x = encode(torch.stack([ids[at], ids[at + 1], ids[at + 2]], 1))
        loss, network, m, v = train_step(
            network, m, v, x, ids[at + 3], step, lr=0.005, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01
        )
        losses.append(loss.item())

    written = [letters.index(letter) for letter in "the"]
    for _ in range(200):
        shares = softmax(predict(network, encode(torch.tensor([written[-3:]]))))[0]
        written.append(int(torch.multinomial(shares, 1, generator=generator)))
    last = losses[-100:]
    print(
        f"The loss fell from {losses[0]:.2f} to {sum(last) / len(last):.2f} nats a letter; "
        f"guessing costs {math.log(27):.2f}."
    )
    print("".join(letters[i] for i in written))
except NotImplementedError:
    print("Finish all five parts first, then run this cell again.")

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they try other shapes and dimensions, very large and very
# small numbers, other dtypes, gradients, many steps in a row, and the laws that hold whatever the numbers are. Each
# exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 00-warm-up.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
