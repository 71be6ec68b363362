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
#     assignment: 14-balance
# ---

# %% [markdown]
# # 14 · Balancing the experts
#
# **One question: what keeps all experts at work?**
#
# A router that learns sends more tokens to an expert that is already good. That expert then sees more text and becomes
# better still. Left alone, a few experts may do the work of all, and the rest are parameters that nobody uses.
#
# There are five answers, and you will build each of them: a loss that pulls towards balance, a limit on what one
# expert takes, experts that choose their tokens, a bias that nudges the choice, and no router at all. A sixth function
# watches over the size of the router's numbers. The page of the book that goes with this notebook is
# `book/14-balance`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `load_balancing_loss` | ●●○ | 25 | 6 |
# | `router_z_loss` | ●○○ | 10 | 2 |
# | `with_capacity` | ●●● | 30 | 6 |
# | `expert_choice` | ●●○ | 15 | 4 |
# | `bias_update` | ●●○ | 20 | 4 |
# | `hash_route` | ●●○ | 15 | 3 |
#
# ## Conventions
#
# They are those of chapter 13.
#
# - **The router's logits** have the shape `(tokens, n_experts)`: one row a token. A batch of sequences comes with its
#   tokens in one long row, sequence after sequence.
# - **Probabilities** are the softmax of a token's logits over **all** experts, computed in float32 also where the
#   logits are bfloat16.
# - **A token's routing** is two tensors of the shape `(tokens, top_k)`: `weights`, and `experts` of int64. A token goes
#   to `top_k` different experts.
# - **What comes in stays as it was**: an input is never changed in place. Weights have the dtype of what they were made
#   of. The two losses are float32 whatever the logits are, because bfloat16 cannot tell 1.003 from 1.
# - **Gradients** flow back to the logits from both losses and from all weights that are made of them.
# - Logits are float32 or bfloat16, there is at least one token, and no two logits of a token are equal unless a prompt
#   says what happens then.

# %% role="set-up"
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# %% [markdown]
# ## 1 · `load_balancing_loss` ●●○
#
# How uneven is a routing? Take two numbers for each of the $E$ experts:
#
# - $f_i$, the share of the routings that went to expert $i$. It is counted: a token goes there or not.
# - $P_i$, the mean over the tokens of the probability that the router gave to expert $i$.
#
# The balancing loss of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6) is $E$ times the
# dot product of these two vectors. The factor $\alpha$ in front of it is left to the training loop.
#
# $$\mathrm{loss} = E \sum_{i=1}^{E} f_i P_i$$
#
# A count has no gradient. So the gradient flows **through $P$ only**: it pushes down the probability of an expert, and
# the harder, the more tokens that expert got.
#
# Two conventions are in use for a token with `top_k` experts, and they differ by a factor.
#
# - `per="routing"`: $f_i$ is a share of all routings, of which there are `tokens · top_k`. The $f_i$ add up to 1, and
#   the loss is 1 where everything is even.
# - `per="token"`: $f_i$ is the number of routings to expert $i$ divided by the number of *tokens*. The $f_i$ add up to
#   `top_k`, and the loss is `top_k` where everything is even. This is what transformers' Mixtral does.
#
# `load_balancing_loss(logits, top_k, per="routing")` takes logits of shape `(tokens, n_experts)` and returns the loss
# as a float32 tensor without dimensions.
#
# - A token goes to the `top_k` experts with the highest probabilities in float32.
# - $P$ is made of all probabilities, as they are: not only those of the chosen experts, and not divided by their sum.
# - The logits may be as large as ±10⁴. An expert that nobody chose counts with $f_i = 0$.
# - Where two probabilities of a token are equal, any choice will do.
# - The trap: with the wrong $f$ the number is right and the gradient is not, or the other way round.


# %% exercise="load_balancing_loss" section="The balancing loss"
def load_balancing_loss(
    logits: Float[Tensor, "tokens n_experts"], top_k: int, per: Literal["routing", "token"] = "routing"
) -> Float[Tensor, ""]:
    """E times the dot product of how often each expert was chosen with its mean probability.

    At balance it is 1 with per="routing" and top_k with per="token". The gradient flows through the probabilities only.
    Source: Fedus et al. 2021 (arXiv 2101.03961), equations 4 to 6.
    """
    ### BEGIN SOLUTION
    p = logits.float().softmax(-1)
    chosen = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1)  # 1 where this token goes to this expert
    f = chosen.float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()
    ### END SOLUTION


# %% check="load_balancing_loss" points=6
logits = torch.tensor([[5.0, 0], [0, 5]]).requires_grad_()
loss = load_balancing_loss(logits, top_k=1)
assert isinstance(loss, torch.Tensor), f"load_balancing_loss should return a tensor, not {type(loss).__name__}."
assert loss.shape == (), f"The loss should be one number without dimensions, not of shape {tuple(loss.shape)}."
assert abs(loss.item() - 1) < 1e-4, f"Two tokens that share two experts evenly should give 1, not {loss.item():.4g}."
all_to_one = load_balancing_loss(torch.tensor([[50.0, 0, 0, 0]] * 6), top_k=1)
assert abs(all_to_one.item() - 4) < 1e-4, (
    f"With 4 experts, all tokens to the first and with certainty should give 4, not {all_to_one.item():.4g}."
)
logits = torch.zeros(3, 4) + torch.arange(4) / 1e6
both = load_balancing_loss(logits, top_k=2, per="token")
assert abs(both.item() - 2) < 1e-3, (
    f'Where all probabilities are alike, per="token" should give top_k = 2, not {both.item():.4g}.'
)
both = load_balancing_loss(logits, top_k=2, per="routing")
assert abs(both.item() - 1) < 1e-3, (
    f'Where all probabilities are alike, per="routing" should give 1 whatever top_k is, not {both.item():.4g}.'
)
assert loss.requires_grad, "The loss has no gradient, so it would teach the router nothing."
print("The visible checks of load_balancing_loss pass.")

# %% see="load_balancing_loss"
# A router without a model: 512 random tokens, and logits that prefer expert 0. Only your loss trains it. Both sides
# begin alike; the right one also has to follow two tokens in three, as a real model's loss would make it.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    x, start = torch.randn(512, 16), torch.randn(16, 8) / 4
    bias = torch.tensor([2.0] + [0.0] * 7)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, facecolor="white")
    for ax, wanted in zip(axes, (0.0, 1.0), strict=True):
        w, b = start.clone().requires_grad_(), bias.clone().requires_grad_()
        optimizer = torch.optim.Adam([w, b], lr=0.05)
        for step, colour in ((0, "#D55E00"), (100, "#0072B2")):
            for _ in range(step):
                logits = x @ w + b
                pull = F.cross_entropy(logits[:340], torch.zeros(340, dtype=torch.int64))  # "expert 0, please"
                optimizer.zero_grad()
                (load_balancing_loss(logits, top_k=1) + wanted * pull).backward()
                optimizer.step()
            share = F.one_hot((x @ w + b).argmax(-1), 8).float().mean(0)
            at = torch.arange(8) + (0.2 if step else -0.2)
            ax.bar(at, share, width=0.4, color=colour, label=f"after {step} steps")
        ax.axhline(1 / 8, color="black", linestyle="--", linewidth=1)
        ax.set(title="the loss alone" if not wanted else "against another loss", xlabel="expert", xticks=range(8))
    axes[0].set(ylabel="share of the tokens")
    axes[0].legend()
    fig.suptitle("The loss pulls towards balance, and another loss may pull harder")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish load_balancing_loss first, then run this cell again.")

# %% [markdown]
# ## 2 · `router_z_loss` ●○○
#
# This one does not balance anything. It keeps the router's logits **small**: where they are large, a rounding error in
# bfloat16 is large too, and the exponential turns it into another probability. With $x$ the logits of one token, its
# term is the square of the logarithm of the softmax's denominator, and the loss is the mean over the $T$ tokens:
#
# $$\mathrm{loss} = \frac{1}{T} \sum_{t=1}^{T} \Big( \log \sum_{i=1}^{E} e^{x_{ti}} \Big)^2$$
#
# `router_z_loss(logits)` takes logits of shape `(tokens, n_experts)` and returns a float32 tensor without dimensions.
#
# - The logits may be as large as ±10⁴, where $e^x$ overflows, and the loss must stay finite.
# - Everything is computed in float32, also for bfloat16 logits.
# - The trap: the softmax does not change when a number is added to all logits of a token. This loss does.


# %% exercise="router_z_loss" section="The mathematics"
def router_z_loss(logits: Float[Tensor, "tokens n_experts"]) -> Float[Tensor, ""]:
    """The mean over tokens of the squared log of the softmax's denominator.

    Source: Zoph et al. 2022 (arXiv 2202.08906), equation 5.
    """
    ### BEGIN SOLUTION
    return logits.float().logsumexp(-1).square().mean()
    ### END SOLUTION


# %% check="router_z_loss" points=2
loss = router_z_loss(torch.zeros(5, 8))
assert isinstance(loss, torch.Tensor), f"router_z_loss should return a tensor, not {type(loss).__name__}."
assert loss.shape == (), f"The loss should be one number without dimensions, not of shape {tuple(loss.shape)}."
assert abs(loss.item() - math.log(8) ** 2) < 1e-4, (
    f"8 logits of zero have a denominator of 8, so the loss should be (ln 8)², not {loss.item():.4g}."
)
loss = router_z_loss(torch.tensor([[1.0], [3.0]]))
assert abs(loss.item() - 5) < 1e-4, (
    f"With one expert, and logits of 1 and 3, the two terms are 1² and 3²: the loss should be 5, not {loss.item():.4g}."
)
assert router_z_loss(torch.zeros(2, 2, dtype=torch.bfloat16)).dtype == torch.float32, "The loss should be float32."
print("The visible checks of router_z_loss pass.")

# %% see="router_z_loss"
# Two experts with logits s and s − 0.3. The probabilities are the same wherever s is. What bfloat16 makes of them is
# not.
try:
    import matplotlib.pyplot as plt

    s = torch.linspace(0, 100, 400)
    pairs = torch.stack([s, s - 0.3], -1)
    rounded = pairs.bfloat16().float().softmax(-1)[:, 0]
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, facecolor="white")
    top.plot(s, rounded, ".", markersize=3, color="#D55E00", label="logits in bfloat16")
    top.plot(s, pairs.softmax(-1)[:, 0], color="#0072B2", label="in float32")
    top.set(ylabel="probability of the first", title="Large logits in bfloat16 forget which expert was meant")
    top.legend()
    bottom.plot(s, [router_z_loss(pair[None]).item() for pair in pairs], color="#009E73")
    bottom.set(xlabel="the larger logit", ylabel="z-loss")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish router_z_loss first, then run this cell again.")

# %% [markdown]
# ## 3 · `with_capacity` ●●●
#
# A loss asks for balance. A **capacity** sets a limit: an expert takes so many routings and no more. On a machine that
# must set aside memory before it knows the text, this is what makes the shapes fixed.
#
# $$\text{capacity} = \Big\lceil c \cdot \frac{T k}{E} \Big\rceil$$
#
# Here $c$ is the `capacity_factor`, $T$ the number of tokens, $k$ is `top_k` and $E$ is `n_experts`. With a factor of 1
# there is room for all routings, if they are spread evenly. It is **rounded up**.
#
# `with_capacity(weights, experts, n_experts, capacity_factor, priority="position")` takes a routing, that is `weights`
# (floats) and `experts` (int64), both of shape `(tokens, top_k)`, and returns two tensors of that shape: the weights
# that are left, and a boolean `kept`, `True` where the expert has a place for this routing.
#
# **Who gets the places?** Each expert serves its queue until it is full. The `priority` orders the queue:
#
# - `"position"`: the routings of an earlier token come before those of a later one, its second choice too. So nothing
#   depends on a later token.
# - `"weight"`: the larger weight comes first (Riquelme et al. 2021, arXiv 2106.05974, call it batch prioritized
#   routing). Where two are equal, the order is that of `"position"`.
#
# **What becomes of a dropped routing?** Its weight becomes 0, and that is all. It is not sent to another expert, and
# what the token has left is **not** divided by its new sum: it keeps the weights that it had. A token that loses all
# its routings gets zeros from this layer, and only the residual stream carries it on.
#
# - `experts` says for each routing where it goes; the columns need not be sorted by weight.
# - `weights` keep their dtype, and the gradient flows to the weights that are kept and not to the others.
# - An expert may have no routing at all, and `n_experts` may be larger than any number in `experts`.
# - The trap: a place is taken by a *routing*. A token's second choice is served although its first was dropped.


# %% exercise="with_capacity" section="The capacity"
def with_capacity(
    weights: Float[Tensor, "tokens top_k"],
    experts: Int[Tensor, "tokens top_k"],
    n_experts: int,
    capacity_factor: float,
    priority: Literal["position", "weight"] = "position",
) -> tuple[Float[Tensor, "tokens top_k"], Bool[Tensor, "tokens top_k"]]:
    """The weights after each expert has taken what it has room for, and which routings were kept.

    Room is ⌈capacity_factor · tokens · top_k / n_experts⌉. A dropped routing has weight 0; the others are unchanged.
    Source: Lepikhin et al. 2020 (arXiv 2006.16668), section 2.2; Fedus et al. 2021 (arXiv 2101.03961), section 2.2.
    """
    ### BEGIN SOLUTION
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    place = (arrivals.cumsum(0) * arrivals).sum(-1)  # 1 is the first in the queue of its expert
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = place <= capacity
    kept = kept.view_as(experts)
    return weights.masked_fill(~kept, 0), kept
    ### END SOLUTION


# %% check="with_capacity" points=6
weights = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.2]])
experts = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1]])
left = with_capacity(weights, experts, n_experts=4, capacity_factor=1.0)
assert len(left) == 2, "with_capacity should return two tensors: the weights and kept."
left, kept = left
assert kept.dtype == torch.bool, f"kept should hold booleans, not {kept.dtype}."
assert kept.shape == left.shape == (4, 2), "Both results should have the shape of experts, (4, 2)."
assert kept[:, 0].tolist() == [True, True, False, False], (
    "Room for ⌈1 · 4 · 2 / 4⌉ = 2: of the four that want expert 0 the first two should be kept, "
    f"and kept[:, 0] is {kept[:, 0].tolist()}."
)
assert kept[:, 1].all(), "Experts 1, 2 and 3 have room for all who want them, so every second choice should be kept."
assert torch.equal(left[2], torch.tensor([0.0, 0.3])), (
    f"Token 2 lost its first expert and keeps its second weight as it was: {[round(w, 3) for w in left[2].tolist()]}."
)
_, kept = with_capacity(weights, experts, n_experts=4, capacity_factor=1.0, priority="weight")
assert kept[:, 0].tolist() == [False, True, False, True], (
    'With priority="weight" expert 0 should keep the two largest weights, those of tokens 1 and 3, '
    f"and kept[:, 0] is {kept[:, 0].tolist()}."
)
print("The visible checks of with_capacity pass.")

# %% see="with_capacity"
# The same uneven routing at growing capacity. How much is dropped depends on the load; who is dropped, on the priority.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    logits = torch.randn(1024, 8) + torch.tensor([1.5, 0.5, 0, 0, 0, 0, 0, -1])
    weights, experts = logits.softmax(-1).topk(2)
    factors = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), facecolor="white")
    for priority, colour, marker in (("position", "#0072B2", "o"), ("weight", "#D55E00", "s")):
        lost, late = [], []
        for factor in factors:
            left, kept = with_capacity(weights, experts, 8, factor, priority)
            lost.append(1 - (left.sum() / weights.sum()).item())
            late.append((~kept[512:]).float().mean().item() - (~kept[:512]).float().mean().item())
        axes[0].plot(factors, lost, marker=marker, color=colour, label=priority)
        axes[1].plot(factors, late, marker=marker, color=colour, label=priority)
    axes[0].set(xlabel="capacity factor", ylabel="share of the weight lost", title="Weight saves more")
    axes[1].set(xlabel="capacity factor", ylabel="dropped: late − early", title="Position drops the late ones")
    axes[0].legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish with_capacity first, then run this cell again.")

# %% [markdown]
# ## 4 · `expert_choice` ●●○
#
# Turn it round: let every **expert** choose its tokens. Each takes the same number, so the balance is perfect by
# construction, without any loss (Zhou et al. 2022, arXiv 2202.09368). A token may now be chosen by several experts, by
# one, or by none.
#
# `expert_choice(logits, capacity)` takes logits of shape `(tokens, n_experts)` and returns `weights` and `tokens`, both
# of shape `(n_experts, capacity)`. Row $i$ of `tokens` (int64) holds the positions of the tokens that expert $i$ takes,
# the one with the largest probability first; `weights` holds those probabilities, in the dtype of the logits.
#
# - The probabilities are still the softmax over the **experts**, in float32: how much this *token* wants that expert.
#   They are not divided by anything afterwards.
# - Each expert takes the `capacity` tokens that give it the highest probability. If there are fewer tokens than that,
#   it takes all of them, and the results have as many columns as there are tokens.
# - Of one column of logits, no two probabilities are equal.
# - The trap: the choice runs over the tokens, the softmax over the experts. They are not the same axis.


# %% exercise="expert_choice" section="Experts that choose"
def expert_choice(
    logits: Float[Tensor, "tokens n_experts"], capacity: int
) -> tuple[Float[Tensor, "n_experts taken"], Int[Tensor, "n_experts taken"]]:
    """For each expert the probabilities and the positions of the tokens that it takes, largest first.

    Source: Zhou et al. 2022 (arXiv 2202.09368), section 3.2.
    """
    ### BEGIN SOLUTION
    p = logits.float().softmax(-1)
    weights, tokens = p.T.topk(min(capacity, len(p)))
    return weights.to(logits.dtype), tokens
    ### END SOLUTION


# %% check="expert_choice" points=4
logits = torch.tensor([[3.0, 0], [2, 0], [1, 0], [0, 0]])  # expert 0 is wanted by token 0 most, expert 1 by token 3
found = expert_choice(logits, 2)
assert len(found) == 2, "expert_choice should return two tensors: weights and tokens."
weights, tokens = found
assert tokens.shape == (2, 2), (
    f"2 experts that take 2 tokens each should give the shape (2, 2), not {tuple(tokens.shape)}."
)
assert tokens[0].tolist() == [0, 1], f"Expert 0 should take the tokens 0 and 1, not {tokens[0].tolist()}."
assert tokens[1].tolist() == [3, 2], (
    "Expert 1 has equal logits everywhere, but not equal probabilities: "
    f"it should take 3 and 2, not {tokens[1].tolist()}."
)
assert abs(weights[1, 0].item() - 0.5) < 1e-4, (
    f"Token 3 has two equal logits, so it wants each expert with 0.5, not {weights[1, 0].item():.4g}."
)
print("The visible checks of expert_choice pass.")

# %% [markdown]
# **Does it look ahead?** A model that writes must not. There is a test for it that needs no theory: change the last
# token and see whether an earlier one notices. Run it on four ways of routing. Before you do: in which of them will one
# notice?

# %% see="expert_choice"
try:
    import matplotlib.pyplot as plt

    def top_1(logits: Tensor) -> Tensor:
        """Who goes where, [tokens, n_experts]: each token to the expert that it prefers."""
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).bool()

    def limited(priority: Literal["position", "weight"]):
        def who(logits: Tensor) -> Tensor:
            weights, experts = logits.softmax(-1).topk(1)
            _, kept = with_capacity(weights, experts, logits.shape[-1], 1.0, priority)
            return F.one_hot(experts[:, 0], logits.shape[-1]).bool() & kept

        return who

    def chosen_by_experts(logits: Tensor) -> Tensor:
        _, tokens = expert_choice(logits, len(logits) // logits.shape[-1])
        return torch.zeros_like(logits, dtype=torch.bool).T.scatter(-1, tokens, True).T

    ways = {
        "top-1": top_1,
        "capacity,\nby position": limited("position"),
        "capacity,\nby weight": limited("weight"),
        "experts\nchoose": chosen_by_experts,
    }
    torch.manual_seed(0)
    noticed = dict.fromkeys(ways, 0)
    for _ in range(300):
        before = torch.randn(32, 4)
        after = torch.cat([before[:-1], 3 * torch.randn(1, 4)])  # only the last token is another one
        for name, way in ways.items():
            noticed[name] += int((way(before) != way(after))[:-1].any())
    fig, ax = plt.subplots(figsize=(7, 3.2), facecolor="white")
    bars = ax.bar(list(noticed), [n / 300 for n in noticed.values()], color="#D55E00")
    ax.bar_label(bars, [f"{n / 300:.0%}" for n in noticed.values()])
    ax.set(ylim=(0, 1.1), ylabel="texts", title="Where an earlier token noticed that the last one changed")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish with_capacity and expert_choice first, then run this cell again.")

# %% [markdown]
# ## 5 · `bias_update` ●●○
#
# A balancing loss pulls at the router while the language loss pulls elsewhere. DeepSeek-V3 gives each expert a **bias**
# instead, which no gradient touches. It is added to an expert's score when the top-k are *chosen*, and is left out when
# they are *weighed*. After every step a rule moves it (Wang et al. 2024, arXiv 2408.15664).
#
# Write both halves, in one cell.
#
# **`route_with_bias(logits, bias, top_k)`** takes logits of shape `(tokens, n_experts)` and a float32 bias of shape
# `(n_experts,)`, and returns `weights` (in the dtype of the logits) and `experts` (int64), both of shape
# `(tokens, top_k)`.
#
# - A score is the probability of the expert plus its bias. The `top_k` experts with the highest scores are chosen.
# - The weights are the **probabilities** of the chosen, divided by their sum over the `top_k`. No bias is in them.
# - The chosen may stand in any order, as long as each weight stands where its expert does.
# - The probabilities are the softmax in float32, as everywhere in this notebook. (DeepSeek-V3 itself takes the sigmoid
#   of each logit as the score. The idea is the same.)
#
# **`bias_update(bias, experts, rate)`** takes the bias, the `experts` of shape `(tokens, top_k)` that were chosen in a
# step, and a small number `rate`. It returns the new bias, float32, of shape `(n_experts,)`.
#
# - The load of an expert is how often it stands in `experts`. Load and mean load are compared; only the **sign** of the
#   difference counts.
# - An expert with less than the mean load gets `rate` added, one with more gets `rate` taken away, and one with exactly
#   the mean load keeps its bias.
# - An expert that was never chosen has a load of 0, and is moved too. The `bias` that comes in stays as it was.


# %% exercise="bias_update" section="The bias"
def route_with_bias(
    logits: Float[Tensor, "tokens n_experts"], bias: Float[Tensor, "n_experts"], top_k: int
) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
    """Chosen by probability plus bias, weighed by probability alone (divided by the sum of the chosen).

    Source: Wang et al. 2024 (arXiv 2408.15664), section 3; DeepSeek-AI 2024 (arXiv 2412.19437), section 2.1.2.
    """
    ### BEGIN SOLUTION
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts
    ### END SOLUTION


def bias_update(
    bias: Float[Tensor, "n_experts"], experts: Int[Tensor, "tokens top_k"], rate: float
) -> Float[Tensor, "n_experts"]:
    """The bias one step later: up by `rate` for an expert below the mean load, down for one above it.

    Source: Wang et al. 2024 (arXiv 2408.15664), algorithm 1.
    """
    ### BEGIN SOLUTION
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()
    ### END SOLUTION


# %% check="bias_update" points=4
logits = torch.tensor([[2.0, 1, 0], [0, 1, 2]])
weights, experts = route_with_bias(logits, torch.zeros(3), 2)
assert weights.shape == experts.shape == (2, 2), (
    "weights and experts should have the shape (tokens, top_k), here (2, 2)."
)
assert set(experts[0].tolist()) == {0, 1}, f"Without a bias token 0 should go to 0 and 1, not {experts[0].tolist()}."
assert torch.allclose(weights.sum(-1), torch.ones(2), atol=1e-5), "The weights of a token should add up to 1."
_, experts = route_with_bias(logits, torch.tensor([0.0, 0, 5]), 1)
assert experts.tolist() == [[2], [2]], f"With a large bias both tokens should go to expert 2, not {experts.tolist()}."
new = bias_update(torch.zeros(3), torch.tensor([[0], [0], [0], [1], [1], [2]]), 0.1)
assert new.shape == (3,), f"bias_update should return the shape (n_experts,), here (3,), not {tuple(new.shape)}."
assert torch.allclose(new, torch.tensor([-0.1, 0, 0.1])), (
    "Loads of 3, 2 and 1: the first expert should go down by 0.1, the second stay and the third go up, "
    f"not {[round(b, 3) for b in new.tolist()]}."
)
print("The visible checks of bias_update pass.")

# %% see="bias_update"
# A lopsided router, 200 steps of the rule and no gradient anywhere. A larger rate is faster, and never comes to rest.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    lopsided = torch.linspace(1.5, -1.5, 8)
    fig, ax = plt.subplots(figsize=(7, 3.2), facecolor="white")
    for rate, colour, style in ((0.001, "#0072B2", "-"), (0.01, "#D55E00", "--"), (0.1, "#009E73", ":")):
        bias, largest = torch.zeros(8), []
        for _ in range(200):
            _, experts = route_with_bias(torch.randn(512, 8) + lopsided, bias, 2)
            largest.append(torch.bincount(experts.flatten(), minlength=8).max().item() / 128)  # 128 is an even load
            bias = bias_update(bias, experts, rate)
        ax.plot(largest, style, color=colour, label=f"rate {rate}")
    ax.set(xlabel="step", ylabel="largest load (even = 1)", title="The bias brings the load down, with no loss at all")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish bias_update first, then run this cell again.")

# %% [markdown]
# ## 6 · `hash_route` ●●○
#
# Do we need a router? Roller et al. 2021 (arXiv 2106.04426) decide before training, once and for all, which expert gets
# which entry of the vocabulary. A token then goes where its *id* says. There is nothing to learn and nothing to
# collapse.
#
# But ids are not equally frequent: in real text the commonest few make up much of it. So the table is built from the
# counts of a training text, from the commonest id to the rarest: **each goes to the expert whose ids have the smallest
# total count so far.**
#
# `hash_route(ids, counts, n_experts)` takes the `ids` of a text (int64, shape `(tokens,)`) and `counts` (int64, shape
# `(vocabulary,)`): how often each id stands in the *training* text, which may be any other text. It returns `weights`
# and `experts` of shape `(tokens, 1)`; every weight is 1, as float32.
#
# - Where two ids are equally frequent, the smaller id goes first. Where two experts have the same total, the one with
#   the smaller number gets the id.
# - An id that never occurs in the training text has a count of 0, and gets an expert like the others.
# - The expert depends on the id and the counts and on nothing else: not on the place in the text, not on the text
#   around it, not on chance. The same call gives the same answer, here and on any other computer.


# %% exercise="hash_route" section="No router at all"
def hash_route(
    ids: Int[Tensor, "tokens"], counts: Int[Tensor, "vocabulary"], n_experts: int
) -> tuple[Float[Tensor, "tokens 1"], Int[Tensor, "tokens 1"]]:
    """Each token to the expert of its id; ids are dealt out, commonest first, to the expert with the least so far.

    Source: Roller et al. 2021 (arXiv 2106.04426), section 3, balanced assignment.
    """
    ### BEGIN SOLUTION
    table = torch.zeros_like(counts)
    total = [0] * n_experts
    for token in counts.argsort(descending=True, stable=True).tolist():
        table[token] = expert = total.index(min(total))
        total[expert] += int(counts[token])
    return torch.ones(len(ids), 1), table[ids, None]
    ### END SOLUTION


# %% check="hash_route" points=3
found = hash_route(torch.tensor([3, 0, 3, 1]), torch.tensor([5, 9, 3, 6]), 2)
assert len(found) == 2, "hash_route should return two tensors: weights and experts."
weights, experts = found
assert weights.shape == experts.shape == (4, 1), f"4 tokens should give the shape (4, 1), not {tuple(experts.shape)}."
assert (weights == 1).all(), "With one expert a token, every weight should be 1."
assert experts[0] == experts[2], "Positions 0 and 2 hold the same id, so they should go to the same expert."
assert experts[:, 0].tolist() == [1, 1, 1, 0], (
    "Id 1 (9 times) goes to expert 0, id 3 (6 times) to expert 1, id 0 (5 times) to expert 1, which has less so far. "
    f"So the ids 3, 0, 3, 1 should go to 1, 1, 1, 0, not to {experts[:, 0].tolist()}."
)
print("The visible checks of hash_route pass.")

# %% see="hash_route"
# A vocabulary as text has it: the n-th commonest id is n times rarer than the first. How even is each way to deal it
# out?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    counts = (1e5 / torch.arange(1, 1001)).long()[torch.randperm(1000)]
    _, experts = hash_route(torch.arange(1000), counts, 8)
    tables = {
        "at random": torch.randint(8, (1000,)),
        "id modulo 8": torch.arange(1000) % 8,
        "commonest first": experts[:, 0],
    }
    fig, ax = plt.subplots(figsize=(7, 3), facecolor="white")
    colours = ("#D55E00", "#E69F00", "#0072B2")
    for i, (name, table) in enumerate(tables.items()):
        share = torch.zeros(8).index_add(0, table, counts.float()) / counts.sum()
        ax.bar(torch.arange(8) + 0.27 * (i - 1), share, width=0.25, color=colours[i], label=name)
    ax.axhline(1 / 8, color="black", linestyle="--", linewidth=1)
    ax.set(xlabel="expert", ylabel="share of the text", title="Dealt out by count, the shares are nearly equal")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish hash_route first, then run this cell again.")

# %% [markdown]
# ## What balance is for
#
# Below, eight small experts learn a task of eight kinds. The router sees which kind a token is, and each kind wants
# another answer: the experts could share the work, one kind each. The router begins with a strong preference for two of
# them. Four models start alike, and differ in one thing: nothing is done, your loss is added, your bias is used, or
# your hash decides by the kind.
#
# Before you run it: how many of the eight experts will the first model use in the end?


# %% see="hash_route"
def learn(method: str, steps: int, n_experts: int = 8, top_k: int = 2) -> tuple[list[float], Tensor]:
    """The error by step, and each expert's share of the last 50 steps' routings."""
    torch.manual_seed(0)
    centres, answers = 3 * torch.randn(n_experts, 16), torch.randn(n_experts, 16, 4)
    router = (torch.randn(16, n_experts) / 16).requires_grad_()
    preference = torch.tensor([2.0, 2.0] + [0.0] * (n_experts - 2)).requires_grad_()
    experts_are = (torch.randn(n_experts, 16, 4) / 16).requires_grad_()
    optimizer = torch.optim.Adam([router, preference, experts_are], lr=0.01)
    bias, errors, load = torch.zeros(n_experts), [], torch.zeros(n_experts)
    for step in range(steps):
        kind = torch.randint(n_experts, (256,))
        x = centres[kind] + torch.randn(256, 16)
        y = torch.einsum("td,tdc->tc", x, answers[kind])
        logits = x @ router + preference
        if method == "hash":
            weights, experts = hash_route(kind, torch.ones(n_experts, dtype=torch.int64), n_experts)
        else:
            weights, experts = route_with_bias(logits, bias, top_k)
        said = torch.einsum("td,edc->tec", x, experts_are)  # every expert answers: this is a demonstration
        said = (said.take_along_dim(experts[..., None], 1) * weights[..., None]).sum(1)
        error = F.mse_loss(said, y)
        loss = error + (10 * load_balancing_loss(logits, top_k) if method == "loss" else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method == "bias":
            bias = bias_update(bias, experts, 0.01)
        errors.append(error.item())
        if step >= steps - 50:
            load += torch.bincount(experts.flatten(), minlength=n_experts)
    return errors, load / load.sum()


try:
    import os

    import matplotlib.pyplot as plt

    steps = 60 if os.environ.get("ICHIMON_FAST") == "1" else 1000
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), facecolor="white")
    colours = ("#D55E00", "#0072B2", "#009E73", "#E69F00")
    for i, (method, style) in enumerate({"nothing": "-", "loss": "--", "bias": "-.", "hash": ":"}.items()):
        errors, share = learn(method, steps)
        smooth = torch.tensor(errors).unfold(0, 20, 1).mean(-1)
        left.plot(smooth, style, color=colours[i], label=method)
        right.bar(torch.arange(8) + 0.2 * (i - 1.5), share.sort(descending=True).values, width=0.2, color=colours[i])
    left.set(xlabel="step", ylabel="error", yscale="log", title="The error")
    left.legend()
    right.axhline(1 / 8, color="black", linestyle="--", linewidth=1)
    right.set(xlabel="expert, busiest first", ylabel="share of the routings", title="Who did the work")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish load_balancing_loss, bias_update and hash_route first, then run this cell again.")

# %% [markdown]
# The hash wins here because we handed it the answer: the kind *is* the right expert, and it need not be learnt. In a
# language model the id of a token is only a part of what matters. The page measures what a table is worth there.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they try other shapes, several experts a token, logits of
# ±10⁴, bfloat16, experts that nobody chooses, gradients, and the laws that hold whatever the numbers are. Each exercise
# is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 14-balance.ipynb` in a terminal. It runs your cells and the visible
# checks from top to bottom and says in words what it finds.
