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
#     assignment: 15-training-moe
# ---

# %% [markdown]
# # 15 · Training a small MoE
#
# **One question: what do parameters buy you that mostly rest?**
#
# A Mixture of Experts has more numbers than it uses for any one token. Whether that pays is not a matter of taste:
# train it beside a dense model, count the work, and compare. To do that honestly you need four tools. A run must
# survive a power cut without becoming another run. A claim such as "the experts have divided the work" needs a number,
# and the number that chance would give. "Faster" needs a definition. And what you cannot afford to train, you have to
# predict.
#
# You will build these tools, and then train a small MoE with your own hands and look into its router. The page of the
# book that goes with this notebook is `book/15-training-moe`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `save_state` | ●●○ | 15 | 4 |
# | `load_state` | ●●○ | 20 | 4 |
# | `mutual_information` | ●●○ | 20 | 4 |
# | `shuffled_null` | ●○○ | 10 | 2 |
# | `speedup_factor` | ●●○ | 20 | 3 |
# | `fit_scaling_law` | ●●● | 35 | 5 |
# | in your own words | ●○○ | 10 | 2 |
#
# ## Conventions
#
# - **Shapes** are written as jaxtyping writes them: `Int[Tensor, "n"]` is a tensor of `n` integers.
# - **Information is in nats**: logarithms are natural ones. A nat is 1.44 bits.
# - **A number is a Python `float` or `int`**, not a tensor that holds one.
# - **What comes in stays as it was**, unless the part says that it is to be changed.

# %% role="set-up"
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int
from torch import Tensor, nn

# %% [markdown]
# ## 1 · `save_state` ●●○
#
# Training takes hours, and machines are switched off. A **checkpoint** (チェックポイント) is all that a run needs to
# go on *as if nothing had happened*: not about as well, but with exactly the losses that it would have had.
# The weights are the part that everybody thinks of. AdamW also remembers two moments for each weight, the
# schedule remembers where it is, and every random number that is still to come depends on the state of the
# generator that will draw it.
#
# `save_state(model, optimiser, schedule, generators, step)` returns a dict with exactly these entries:
#
# | entry | what it holds |
# |---|---|
# | `"model"` | the model's state dict, buffers too |
# | `"optimiser"` | the optimiser's state dict |
# | `"schedule"` | the schedule's state dict |
# | `"generators"` | for each name in `generators` the state of that generator, as `get_state()` gives it |
# | `"torch"` | the state of PyTorch's own generator on the CPU, from which dropout draws |
# | `"step"` | `step`, an `int` |
#
# - `generators` maps names to `torch.Generator`s: the batches may be drawn from one, the noise from another. It may be
#   empty.
# - **Plain data**: dicts, lists, tuples, tensors, numbers, strings, booleans and `None`. So
#   `torch.load(…, weights_only=True)` reads the file, and opening a stranger's checkpoint runs none of their code. You
#   may rely on the three state dicts being plain.
# - **A photograph**: the run goes on after the call, and the state must not go on with it.
# - The call changes nothing: a run that saves has the same losses as one that does not.
# - The trap: a state dict is a view. The tensors in it *are* those of the model and of the optimiser.


# %% exercise="save_state" section="What a stopped run needs"
def save_state(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generators: Mapping[str, torch.Generator],
    step: int,
) -> dict[str, Any]:
    """All that a run needs to go on as if it had never stopped, as plain data that nothing changes afterwards."""
    ### BEGIN SOLUTION
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "step": step,
    }
    return copy.deepcopy(state)
    ### END SOLUTION


# %% check="save_state" points=4
model = nn.Linear(3, 2)
optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
model(torch.ones(4, 3)).sum().backward()
optimiser.step()
state = save_state(model, optimiser, schedule, {"data": torch.Generator()}, 1)
assert isinstance(state, dict), f"save_state should return a dict, not {type(state).__name__}."
entries = {"model", "optimiser", "schedule", "generators", "torch", "step"}
assert set(state) == entries, f"The state should have the entries {sorted(entries)}, and it has {sorted(state)}."
assert state["step"] == 1, f"The step that was given is 1, and the state says {state['step']}."
assert torch.equal(state["model"]["weight"], model.weight), "The state should hold the model's weights."
before = state["model"]["weight"].clone()
optimiser.step()
assert torch.equal(state["model"]["weight"], before), (
    "After one more step of the optimiser the weights in the state have changed: they should be a copy."
)
print("The visible checks of save_state pass.")

# %% stand_in="save_state, load_state"
import torch  # noqa: E402
from torch import nn  # noqa: E402


class Run:
    """A small model in training: dropout and a buffer, an optimiser that remembers, a schedule, two generators."""

    def __init__(self, seed, width=5, momentum=False):
        torch.manual_seed(seed)
        layers = [nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 3)]
        self.model = nn.Sequential(*layers)
        if momentum:
            self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
            self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, 3, gamma=0.5)
        else:
            self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=0.1)
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, 12)
        self.generators = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("data", "noise"), 1)}
        self.kept = None

    def parts(self):
        return self.model, self.optimiser, self.schedule, self.generators

    def train(self, steps):
        losses = []
        for _ in range(steps):
            x = torch.randn(8, 4, generator=self.generators["data"])
            noise = 0.1 * torch.randn(8, 4, generator=self.generators["noise"])
            self.optimiser.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x + noise), x[:, :3].argmax(-1))
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            losses.append(loss.item())
        return losses

    def keep(self, step):
        """Save with the student's own function, and keep the state here."""
        import __main__

        self.kept = __main__.save_state(*self.parts(), step)

    def receive(self, state):
        """Keep a state here and load it with the student's own function, as often as it is asked to."""
        import __main__

        self.kept = state if self.kept is None else self.kept
        return __main__.load_state(self.kept, *self.parts())


# %% [markdown]
# ## 2 · `load_state` ●●○
#
# The way back. A new process has made a new model, a new optimiser and so on, of the same kinds and sizes but with
# other numbers in them, and perhaps trained them for a while.
#
# `load_state(state, model, optimiser, schedule, generators)` puts a state that `save_state` made into them, in place,
# sets PyTorch's own generator, and returns the step at which the run stood, an `int`. From then on the run has the
# losses that it would have had.
#
# - **The state stays as it was**, also while the run goes on, so that the same state can be loaded twice. The trap:
#   that is not so by itself. `Optimizer.load_state_dict` keeps the very tensors that you give it.
# - **What does not fit is refused.** If the names of the model's state dict or their shapes are not those of the
#   checkpoint, `load_state` raises a `ValueError` whose sentence holds the name of one entry that does not fit, such as
#   `0.weight`. The same if the names in `generators` are not those of the checkpoint.
# - **All or nothing**: if a state is refused, nothing has been changed: model, optimiser, schedule and generators are
#   as before.


# %% exercise="load_state" section="What a stopped run needs"
def load_state(
    state: Mapping[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generators: Mapping[str, torch.Generator],
) -> int:
    """Put what save_state made into a run and return its step.

    Raises ValueError, and changes nothing, if names or shapes of the model or names of the generators do not fit.
    """
    ### BEGIN SOLUTION
    state = copy.deepcopy(state)
    ours = {name: value.shape for name, value in model.state_dict().items()}
    theirs = {name: value.shape for name, value in state["model"].items()}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ValueError(f"{name} is {theirs.get(name)} in the checkpoint and {ours.get(name)} in the model")
    for name in generators.keys() ^ state["generators"].keys():
        raise ValueError(f"There is a generator {name!r} in the checkpoint or in the run, but not in both")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, generator in generators.items():
        generator.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]
    ### END SOLUTION


# %% check="load_state" points=4
model = nn.Linear(3, 2)
optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
data = torch.Generator().manual_seed(1)
saved = {
    "model": copy.deepcopy(model.state_dict()),
    "optimiser": copy.deepcopy(optimiser.state_dict()),
    "schedule": copy.deepcopy(schedule.state_dict()),
    "generators": {"data": data.get_state()},
    "torch": torch.get_rng_state(),
    "step": 7,
}
drawn = torch.rand(2, generator=data)
weight = model.weight.detach().clone()
nn.init.zeros_(model.weight)
step = load_state(saved, model, optimiser, schedule, {"data": data})
assert step == 7, f"The state says that it was made at step 7, and load_state returned {step}."
assert torch.equal(model.weight, weight), "The model's weights should be those of the state again."
assert torch.equal(torch.rand(2, generator=data), drawn), (
    "The generator was set back, so it should draw the same two numbers as before."
)
try:
    load_state(saved, nn.Linear(3, 5), optimiser, schedule, {"data": data})
    message = None
except ValueError as error:
    message = str(error)
assert message is not None, (
    "A checkpoint of a layer of 2 does not fit a layer of 5: load_state should raise a ValueError."
)
assert "weight" in message or "bias" in message, f"The sentence should name what does not fit, and it is: {message}"
print("The visible checks of load_state pass.")

# %% see="load_state"
# One run without a stop, and three that were stopped after 30 of 60 steps. Which of them goes on where it was?
try:
    import matplotlib.pyplot as plt

    def new(seed: int) -> tuple[Any, ...]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 8))
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.03, betas=(0.95, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 60)
        return model, optimiser, schedule, {"data": torch.Generator().manual_seed(seed)}

    def go_on(parts: tuple[Any, ...], steps: int) -> list[float]:
        model, optimiser, schedule, generators = parts
        losses = []
        for _ in range(steps):
            x = torch.randn(64, 8, generator=generators["data"])
            loss = F.mse_loss(model(x), x.sort(-1).values)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    first = new(0)
    losses = go_on(first, 30)
    state = save_state(*first, 30)
    losses += go_on(first, 30)
    whole = new(1)
    load_state(state, *whole)
    weights_only = new(1)
    weights_only[0].load_state_dict(state["model"])

    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    ax.plot(losses, color="#0072B2", linewidth=5, alpha=0.35, label="never stopped")
    ax.plot(range(30, 60), go_on(whole, 30), color="#0072B2", label="load_state")
    ax.plot(range(30, 60), go_on(weights_only, 30), "--", color="#D55E00", label="only the weights loaded")
    ax.set(
        xlabel="step", ylabel="loss", yscale="log", title="With the whole state the run goes on as if nothing had been"
    )
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish save_state and load_state first, then run this cell again.")

# %% [markdown]
# ## 3 · `mutual_information` ●●○
#
# "The experts specialise." In what? Write down for many tokens which expert each went to, and beside it something else
# about the token: the token itself, its class, the kind of text that it stands in. If knowing the one helps to guess
# the other, they share **information** (相互情報量). How much they share is a number, and it is zero if and only if the
# two are independent:
#
# $$I(X; Y) = \sum_{x, y} p(x, y)\, \ln \frac{p(x, y)}{p(x)\, p(y)}$$
#
# where a pair that never occurs adds nothing. The **plug-in** estimate takes for $p$ the shares that were counted: of
# $n$ tokens, in how many was it $x$, in how many $y$, in how many both?
#
# `mutual_information(x, y)` takes two rows of `n` labels, `x[i]` and `y[i]` of the same token, and returns the plug-in
# estimate in nats, a `float`.
#
# - Labels are any int64: negative ones, huge ones, ones with gaps. They are names, not sizes. So a table with as many
#   rows as the largest label is not an answer.
# - `n` is at least 1. If the two rows are not equally long, raise a `ValueError` that names both lengths.
# - Right to 1e-9, also for a hundred thousand tokens: count and sum in float64.
# - The trap: a logarithm of the wrong base, or a joint table in which the pairs that never occur give NaN.


# %% exercise="mutual_information" section="Information"
def mutual_information(x: Int[Tensor, "n"], y: Int[Tensor, "n"]) -> float:
    """The plug-in estimate of I(X; Y) in nats, from n pairs of labels.

    Raises ValueError if x and y are not equally long. Source: Cover and Thomas, Elements of Information Theory, 2.3.
    """
    ### BEGIN SOLUTION
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} labels and y has {len(y)}: each token needs one of both")
    _, i, count_x = x.unique(return_inverse=True, return_counts=True)
    _, j, count_y = y.unique(return_inverse=True, return_counts=True)
    pairs, count = torch.stack([i, j]).unique(dim=1, return_counts=True)
    p, p_x, p_y = (c.double() / len(x) for c in (count, count_x, count_y))
    return (p * (p / (p_x[pairs[0]] * p_y[pairs[1]])).log()).sum().item()
    ### END SOLUTION


# %% check="mutual_information" points=4
found = mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
assert isinstance(found, float), f"mutual_information should return a float, not {type(found).__name__}."
assert abs(found) < 1e-6, f"All four pairs are equally frequent: the rows share 0 nats, not {found:.4f}."
found = mutual_information(torch.tensor([5, 5, -3, -3]), torch.tensor([10**12, 10**12, 7, 7]))
assert abs(found - math.log(2)) < 1e-6, (
    f"Two equally frequent labels, always in the same pairs, share ln 2 = {math.log(2):.4f} nats, not {found:.4f}."
)
print("The visible checks of mutual_information pass.")

# %% [markdown]
# ## 4 · `shuffled_null` ●○○
#
# Toss two coins 20 times. The counts are hardly ever exactly those of independence, so the plug-in estimate is above
# zero although the coins know nothing of each other. The more labels and the fewer tokens, the worse: it is *biased*.
# Before you believe a number, ask how large it would be if there were nothing. **Shuffle** one of the two rows: every
# label keeps its frequency, and all that they had to do with each other is gone.
#
# `shuffled_null(x, y, n_shuffles, seed)` returns a float64 tensor of shape `(n_shuffles,)`: the mutual information of
# `x` and a random permutation of `y` (or the other way round), a new permutation each time.
#
# - The same seed gives the same numbers, another seed others.
# - PyTorch's own generator is left as it was. The trap: `torch.manual_seed` in here would reset the random numbers of
#   the run that you are looking at.
# - Call `mutual_information(x, y)` by its name. When this part is marked, a right one stands in for yours.


# %% exercise="shuffled_null" section="Information"
def shuffled_null(
    x: Int[Tensor, "n"], y: Int[Tensor, "n"], n_shuffles: int, seed: int
) -> Float64[Tensor, "n_shuffles"]:
    """What mutual_information gives where there is nothing: x against y in a random order, n_shuffles times."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(y), generator=generator) for _ in range(n_shuffles))
    return torch.tensor([mutual_information(x, y[order]) for order in orders], dtype=torch.float64)
    ### END SOLUTION


# %% check="shuffled_null" points=2
x = torch.arange(40) % 4
null = shuffled_null(x, x, 5, seed=0)
assert isinstance(null, torch.Tensor), f"shuffled_null should return a tensor, not {type(null).__name__}."
assert null.shape == (5,), f"Five shuffles should give the shape (5,), not {tuple(null.shape)}."
assert null.dtype == torch.float64, f"The values should be float64, not {null.dtype}."
assert (null < mutual_information(x, x) / 2).all(), "A row shares far more with itself than with its shuffled copy."
print("The visible checks of shuffled_null pass.")

# %% stand_in="shuffled_null"
import math  # noqa: E402
from collections import Counter  # noqa: E402

import torch  # noqa: E402


def mutual_information(x, y):
    x, y = x.tolist(), y.tolist()
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} labels and y has {len(y)}")
    n, left, right = len(x), Counter(x), Counter(y)
    return sum(c / n * math.log(c * n / (left[a] * right[b])) for (a, b), c in Counter(zip(x, y, strict=True)).items())


def random_state():
    """The state of PyTorch's own generator."""
    return torch.get_rng_state()


# %% see="shuffled_null"
# Eight experts and tokens that know nothing of each other: the estimate is far from zero until there are many tokens.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    sizes = [100, 300, 1000, 3000, 10_000]
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    for kinds, color in ((2, "#0072B2"), (20, "#D55E00"), (200, "#009E73")):
        found, null = [], []
        for n in sizes:
            expert, token = torch.randint(8, (n,)), torch.randint(kinds, (n,))
            found.append(mutual_information(expert, token))
            null.append(shuffled_null(expert, token, 20, seed=1).mean())
        ax.plot(sizes, found, "o-", color=color, label=f"8 experts, {kinds} kinds")
        ax.plot(sizes, null, "k:", linewidth=1)
    ax.set(
        xscale="log",
        xlabel="tokens",
        ylabel="estimate (nats)",
        title="Nothing to find, and still above zero (dotted: null)",
    )
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish mutual_information and shuffled_null first, then run this cell again.")

# %% [markdown]
# ## 5 · `speedup_factor` ●●○
#
# "The MoE trains seven times faster" can only mean: it reaches *a certain loss* for a seventh of the cost. Which loss,
# and cost in what? Here the cost is floating-point operations, and the target is yours to choose. Try several: the
# answer depends on it.
#
# Each run is a curve of points, in the order of training: after `flops[i]` operations the loss was `loss[i]`.
#
# `speedup_factor(flops_a, loss_a, flops_b, loss_b, target)` returns the cost of `a` divided by that of `b`, a `float`:
# how many times less `b` needs to reach the target than `a`. The cost of a curve is:
#
# - A point **reaches** the target where its loss is at most the target. Take the first point that does. What the loss
#   does later, up again for instance, does not matter.
# - If it is the curve's first point, the cost is its FLOPs.
# - Otherwise the loss passed the target between that point and the one before. Take the cost on the straight line
#   between the two points, where **the FLOPs are logarithmic** and the loss is not: half way down in loss is the
#   geometric mean of the two costs.
# - If no point reaches the target, the cost is infinite. So a target that only `b` reaches gives `inf`, and one that
#   only `a` reaches gives 0. If neither does, raise a `ValueError` that names the target.
#
# The four rows are float64; a curve has at least one point, its FLOPs are above 0 and grow. The curves may have
# different lengths and different points. The trap: losses are noisy, so a curve is not sorted, and a search that
# assumes that it is finds another point.


# %% exercise="speedup_factor" section="What does faster mean?"
def speedup_factor(
    flops_a: Float64[Tensor, "points_a"],
    loss_a: Float64[Tensor, "points_a"],
    flops_b: Float64[Tensor, "points_b"],
    loss_b: Float64[Tensor, "points_b"],
    target: float,
) -> float:
    """The FLOPs that a takes to reach the target loss, divided by those of b; log-linear between points.

    Raises ValueError if neither reaches it.
    """

    ### BEGIN SOLUTION
    def cost(flops: Tensor, loss: Tensor) -> float:
        """The FLOPs at which the loss first is at most the target."""
        reached = (loss <= target).nonzero()
        if not len(reached):
            return math.inf
        i = reached[0].item()
        if i == 0:
            return flops[0].item()
        share = (loss[i - 1] - target) / (loss[i - 1] - loss[i])
        return (flops[i - 1] * (flops[i] / flops[i - 1]) ** share).item()

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == math.inf:
        raise ValueError(f"Neither curve reaches a loss of {target}")
    return a / b
    ### END SOLUTION


# %% check="speedup_factor" points=3
def curve(*points: tuple[float, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(points, dtype=torch.float64).unbind(-1)


found = speedup_factor(*curve((1e6, 5), (4e6, 3)), *curve((1e6, 4), (2e6, 3)), 3)
assert isinstance(found, float), f"speedup_factor should return a float, not {type(found).__name__}."
assert math.isclose(found, 2), f"a reaches 3 after 4e6 operations and b after 2e6: the factor is 2, not {found:.4g}."
found = speedup_factor(*curve((1e6, 5), (4e6, 3)), *curve((1e6, 4)), 4)
assert math.isclose(found, 2), (
    f"a passes 4 half way down between 1e6 and 4e6, at 2e6; b is there after 1e6: the factor is 2, not {found:.4g}."
)
found = speedup_factor(*curve((1e6, 5), (4e6, 3)), *curve((1e6, 4), (2e6, 2)), 2.5)
assert found == math.inf, f"Only b reaches 2.5, so the factor is infinite, not {found:.4g}."
print("The visible checks of speedup_factor pass.")

# %% see="speedup_factor"
# Two made-up runs, the second with a steeper curve. "How much faster is it?" has no single answer.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    flops = torch.logspace(9, 12, 40, dtype=torch.float64)
    slow = 2.0 + 4 * (flops / 1e9) ** -0.20 + 0.02 * torch.randn(40)
    fast = 2.0 + 4 * (flops / 1e9) ** -0.28 + 0.02 * torch.randn(40)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), facecolor="white")
    left.plot(flops, slow, "--", color="#0072B2", label="a")
    left.plot(flops, fast, color="#D55E00", label="b")
    left.set(xscale="log", xlabel="FLOPs", ylabel="loss", title="Two runs")
    left.legend()
    targets = torch.linspace(3.2, 5, 30).tolist()
    right.plot(targets, [speedup_factor(flops, slow, flops, fast, target) for target in targets], color="#009E73")
    right.set(
        xlabel="target loss", ylabel="FLOPs of a / FLOPs of b", title="The lower the target, the larger the factor"
    )
    right.invert_xaxis()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish speedup_factor first, then run this cell again.")

# %% [markdown]
# ## 6 · `fit_scaling_law` ●●●
#
# What would a model ten times as large reach? Train small ones, see the law, and extend it. The law that is most used
# has one term for the model, one for the data, and one for what no model can know:
#
# $$\hat L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# $N$ is the number of parameters, $D$ the number of tokens that it was trained on, and $E$ the loss that is left when
# both are infinite.
#
# `fit_scaling_law(n, d, loss)` takes three rows of float64, one entry a run, and returns the five floats
# `(E, A, B, alpha, beta)` that make the **relative errors** smallest in the sense of least squares:
#
# $$\sum_i \left(\frac{\hat L(n_i, d_i)}{\mathrm{loss}_i} - 1\right)^2$$
#
# - There are at least 9 runs, with at least 3 different `n` and 3 different `d`. `alpha` and `beta` lie between 0.05
#   and 1.5, and you may rely on the best law having positive E, A and B.
# - How you find the minimum is up to you; PyTorch and NumPy are there. Your sum of squares may be at most 1 % above the
#   smallest possible one. You have five seconds a fit, and the reference needs less than a tenth of one.
# - What is judged is what the law *says*, for the runs and for a larger one that was held out. The five numbers
#   themselves are hardly ever well determined: one a little larger, another a little smaller, and the curve is the
#   same.
# - The trap: the sum has long, curved valleys. Gradient descent on all five numbers, from one starting point, stops
#   half way. Look closely at the formula: in three of the five numbers it is *linear*.


# %% exercise="fit_scaling_law" section="A law"
def fit_scaling_law(
    n: Float64[Tensor, "runs"], d: Float64[Tensor, "runs"], loss: Float64[Tensor, "runs"]
) -> tuple[float, float, float, float, float]:
    """(E, A, B, alpha, beta) of E + A/n^alpha + B/d^beta with the smallest sum of squared relative errors.

    Source of the law: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3, which fits it by another loss.
    """
    ### BEGIN SOLUTION
    best, side = torch.full((2,), 0.775, dtype=torch.float64), torch.linspace(-0.725, 0.725, 21, dtype=torch.float64)
    for zoom in range(16):
        grid = best + 0.4**zoom * torch.cartesian_prod(side, side)
        small, few = n ** -grid[:, :1], d ** -grid[:, 1:]
        columns = torch.stack([torch.ones_like(small), small, few], -1) / loss[:, None]
        linear = torch.linalg.lstsq(columns, torch.ones(441, len(n), 1, dtype=torch.float64)).solution
        i = (columns @ linear - 1).square().sum((1, 2)).argmin()
        best = grid[i]
    return (*linear[i, :, 0].tolist(), *best.tolist())
    ### END SOLUTION


# %% check="fit_scaling_law" points=5
n, d = torch.cartesian_prod(torch.tensor([1e5, 1e6, 1e7]), torch.tensor([1e7, 1e8, 1e9])).double().unbind(-1)
loss = 1.7 + 60 / n**0.3 + 900 / d**0.4
law = fit_scaling_law(n, d, loss)
assert isinstance(law, tuple), f"fit_scaling_law should return a tuple, not {type(law).__name__}."
assert len(law) == 5, f"The law has five numbers, (E, A, B, alpha, beta), and there are {len(law)}."
assert all(isinstance(number, float) for number in law), "The five numbers should be floats."
e, a, b, alpha, beta = law
error = ((e + a / n**alpha + b / d**beta) / loss - 1).abs().max().item()
assert error < 1e-3, f"These nine runs follow a law exactly, and yours is off by up to {error:.2%}."
print("The visible checks of fit_scaling_law pass.")

# %% see="fit_scaling_law"
# The course's own runs: dense models of three sizes, each trained for three lengths, and a larger one that the law does
# not see. How far off is it there?
try:
    import matplotlib.pyplot as plt

    from ichimon.measure import results

    runs = results("c15_scaling")["results"]["runs"]
    seen = [run for run in runs if not run["held_out"]]
    n, d, loss = (torch.tensor([run[key] for run in seen], dtype=torch.float64) for key in ("n", "d", "loss"))
    e, a, b, alpha, beta = fit_scaling_law(n, d, loss)
    print(f"L(N, D) = {e:.2f} + {a:.3g}/N^{alpha:.2f} + {b:.3g}/D^{beta:.2f}, from {len(seen)} runs")
    fig, ax = plt.subplots(figsize=(5, 4.2), facecolor="white")
    for run in runs:
        said = e + a / run["n"] ** alpha + b / run["d"] ** beta
        held_out = run["held_out"]
        ax.plot(said, run["loss"], "s" if held_out else "o", color="#D55E00" if held_out else "#0072B2")
        if held_out:
            print(f"held out: {run['n']:.3g} parameters, {run['d']:.3g} tokens: said {said:.3f}, was {run['loss']:.3f}")
    ends = [loss.min() * 0.98, loss.max()]
    ax.plot(ends, ends, "k--", linewidth=1)
    ax.set(xlabel="loss that the law says", ylabel="loss that was measured", title="Squares were held out")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish fit_scaling_law first, then run this cell again.")
except (ImportError, FileNotFoundError, KeyError):
    print("The course's runs lie in experiments/results of its repository, and this notebook does not find them.")

# %% [markdown]
# ## Train it
#
# Now a whole one: a small Mixtral, made of the classes of the transformers library, with 16 experts a layer of which
# each token uses 4, on the prose and the code that came with your Python. `ichimon.moe` builds it, and `ichimon.train`
# is the loop. It takes two or three minutes on an ordinary computer. In a terminal `python -m ichimon.train moe` does
# the same; with `--preset gpu` the model is larger and trained in bfloat16 on a GPU, and with `--preset multi-gpu`,
# under
# `torchrun`, on several.
#
# Set `parts = "mine"` to put your own `MoELayer` of chapter 13 and your own balancing loss of chapter 14 into it.
#
# Before you run it: at balance each expert has a sixteenth of the tokens, 6 %. Will it stay so? And what will an
# expert's tokens have in common: the token, its place, the kind of text?

# %% see="speedup_factor"
sparse = None
try:
    import os

    from ichimon import corpus, moe

    parts = "transformers"
    fast = os.environ.get("ICHIMON_FAST") == "1"
    sparse = moe.run("fast" if fast else "cpu", parts=parts, quiet=fast)
    print(
        f"{sparse.flops:.2g} FLOPs, loss {sparse.history.validation[-1][1]:.2f} nats a token on text that it never saw"
    )
    step, shares = sparse.shares[-1]
    for layer, row in enumerate(shares):
        print(f"before step {step}, layer {layer}: " + " ".join(f"{share:3.0%}" for share in row))
except ImportError as error:
    print(f"Training needs the course's package ichimon: {error}.")

# %% [markdown]
# And the dense model that does the same work for each token: one feed-forward part as wide as 4 experts. It has a
# quarter of the MoE's feed-forward parameters. Which of the two is ahead when both have done the same work, and by how
# much?

# %% see="speedup_factor"
if sparse is None:
    print("Train the MoE in the cell above first, then run this cell again.")
else:
    dense = moe.run("fast" if fast else "cpu", kind="dense", quiet=fast)

    def points(run: Any) -> tuple[Tensor, Tensor]:
        steps, losses = torch.tensor(run.history.validation, dtype=torch.float64).unbind(-1)
        return run.flops * steps / len(run.history.losses), losses

    try:
        target = max(points(sparse)[1].min(), points(dense)[1].min()).item()
        factor = speedup_factor(*points(dense), *points(sparse), target)
        print(f"Both get down to {target:.2f} nats. The dense model takes {factor:.2f} times the FLOPs of the MoE.")
        print(f"A second of training: {dense.flops / dense.history.seconds:.2g} FLOPs dense, ", end="")
        print(f"{sparse.flops / sparse.history.seconds:.2g} as an MoE.")
    except NotImplementedError:
        print("Finish speedup_factor first, then run this cell again.")

# %% [markdown]
# The shares say how much each expert works, and nothing about what it works on. Your two functions do. Beside each
# token's first expert we write down the token, its place in the window, and whether the text is prose or code. Then the
# same with what the domain adds *when the token is already known*, because some tokens occur in code only:
#
# $$I(\text{expert}; \text{domain} \mid \text{token}) = I(\text{expert}; (\text{token}, \text{domain})) -
# I(\text{expert}; \text{token})$$

# %% see="mutual_information"
if sparse is None:
    print("Train the MoE in the cell above first, then run this cell again.")
else:
    try:
        n, length = (40, 32) if fast else (400, 64)
        bpe = corpus.tokenizer(corpus.VOCABULARY, corpus.PROSE + corpus.CODE)
        rows = []
        for kinds in (corpus.PROSE, corpus.CODE):
            text = "\n".join(text.text for text in corpus.texts(kinds, "test"))[: 8 * n * length]
            rows.append(torch.tensor(bpe.encode(text).ids[: n // 2 * length]).view(-1, length))
        token = torch.cat(rows).flatten()
        domain = (torch.arange(n) >= n // 2).long().repeat_interleave(length)
        place = torch.arange(length).repeat(n)
        both = token + corpus.VOCABULARY * domain
        print("nats that the first expert shares with … (what chance alone gives)")
        for layer, expert in enumerate(moe.experts_of(sparse.model, token.view(-1, length))[..., 0].cpu()):
            told = [
                f"{name} {mutual_information(expert, y):.3f} ({shuffled_null(expert, y, 3, 0).mean():.3f})"
                for name, y in (("token", token), ("place", place), ("domain", domain))
            ]
            given = mutual_information(expert, both) - mutual_information(expert, token)
            print(f"layer {layer}: {', '.join(told)}; domain given token {given:.3f}")
    except NotImplementedError:
        print("Finish mutual_information and shuffled_null first, then run this cell again.")

# %% [markdown]
# The last number has a null of its own, and it is not zero: pairs of token and domain are many, and each costs bias. To
# find it, shuffle the domain *among the places of the same token*. The page of the book does it.
#
# ## In your own words (2 points)
#
# Somebody plans a new product: "We take a trained MoE, add one expert for law, one for medicine, and send questions
# about law to the first." Write four to six sentences, without a formula: what an expert is and is not, who decides
# where a token goes and when that was learnt, and what would have to happen before the two new experts are of any use.
# A person reads this, and no test.

# %% [markdown] question="explain" points=2
# Two points for all three; one for two of them.
#
# - An expert is a feed-forward part of one layer. It gets hidden vectors of single tokens, gives hidden vectors back,
#   and does not read questions or give answers. What experts have divided among themselves in training is mostly kinds
#   of tokens, and only partly kinds of text.
# - The router decides, for each token and in each layer anew. It has been trained together with the experts that were
#   there, so it sends nothing sensible to one that was not, and nobody can tell it what law is.
# - So router and experts have to be trained further, on text of the new kind as well as the old, with the experts kept
#   in balance; otherwise the new ones are not used, or what the model knew is damaged.

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they stop runs with dropout, momentum and a schedule and
# compare every loss that follows, look for tensors that are shared, count information against PyTorch's own
# distributions, and hold runs back from your law. Each exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 15-training-moe.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
