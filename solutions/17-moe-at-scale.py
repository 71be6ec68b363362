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
#     assignment: 17-moe-at-scale
# ---

# %% [markdown]
# # 17 · MoE at scale
#
# **One question: what does it take to run more experts than fit on one machine?**
#
# Experts are cheap to compute and dear to keep: a token uses two of them, and all of them have to be somewhere. Either
# they are spread over several GPUs, and the tokens travel to them. Or they wait in slow memory, and are fetched when
# they are needed. You will build both, two routers that choose in other ways than top-k, and the function that takes
# the advice "just add an expert" at its word.
#
# The page of the book that goes with this notebook is `book/17-moe-at-scale`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `dispatch_plan` | ●●○ | 15 | 4 |
# | `expert_parallel_forward` | ●●● | 35 | 7 |
# | `ExpertCache` | ●●○ | 15 | 4 |
# | `hierarchical_route` | ●●○ | 20 | 4 |
# | `top_p_route` | ●●○ | 15 | 4 |
# | `add_expert` | ●○○ | 5 | 2 |
#
# ## Conventions
#
# - **Routing** is `weights` and `experts`, both `[tokens, top_k]`: with which weight a token goes to which experts. The
#   experts of one token are all different. `tokens` may be 0.
# - **An expert** is a SwiGLU without biases, stored as Mixtral's are: `gate_up` `[n_experts, 2·d_hidden, d_model]` (the
#   gate's rows first) and `down` `[n_experts, d_model, d_hidden]`. `one_expert` in the set-up cell computes one.
# - **A rank** is one process of several, usually with a GPU of its own; the **world** is how many there are. Every rank
#   has its own tokens and its own share of the experts.
# - **What comes in goes out**: a result has the dtype of the input, and an input is never changed in place.
#
# The set-up cell also holds a network: `run_ranks` gives each rank a thread, and an `all_to_all` that moves rows
# between them as `torch.distributed.all_to_all_single` does between GPUs.

# %% role="set-up"
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

AllToAll = Callable[[Tensor, list[int], list[int]], Tensor]
Weights = tuple[Tensor, Tensor]  # of one expert: gate_up and down


def one_expert(
    x: Float[Tensor, "n d_model"], gate_up: Float[Tensor, "twice d_model"], down: Float[Tensor, "d_model d_hidden"]
) -> Float[Tensor, "n d_model"]:
    """What one expert makes of n rows; n may be 0."""
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)


def run_ranks(world: int, work: Callable[[int, AllToAll], Any]) -> list[Any]:
    """Call work(rank, all_to_all) for every rank, each in a thread of its own; return what they returned, in order.

    all_to_all(rows, send, receive): the first send[0] rows go to rank 0, the next send[1] to rank 1, and so on. It
    returns the rows that came, those of rank 0 first; receive[r] of them from rank r. Every rank waits for all others.
    """
    post: dict[int, tuple[Tensor, ...]] = {}
    meeting = threading.Barrier(world, timeout=5)
    results: list[Any] = [None] * world
    problems: list[Exception] = []

    def one(rank: int) -> None:
        def all_to_all(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
            if len(send) != world or sum(send) != len(rows):
                raise ValueError(f"Rank {rank} has {len(rows)} rows and {world} ranks to send to, and send is {send}.")
            post[rank] = rows.split(send)
            meeting.wait()
            came = [post[source][rank] for source in range(world)]
            meeting.wait()
            if [len(part) for part in came] != list(receive):
                raise ValueError(f"Rank {rank} expects {receive} rows, and {[len(part) for part in came]} came.")
            return torch.cat(came)

        try:
            results[rank] = work(rank, all_to_all)
        except Exception as error:
            problems.append(error)
            meeting.abort()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for problem in problems:
        if not isinstance(problem, threading.BrokenBarrierError):
            raise problem
    if problems:
        raise RuntimeError("A rank waited in vain: every rank must take part in every exchange, with no rows too.")
    return results


# %% [markdown]
# ## 1 · `dispatch_plan` ●●○
#
# Before anything travels, a rank packs: what goes to whom? An **assignment** is one token at one of its experts. They
# are numbered row by row through `experts`, so that assignment `a` belongs to token `a // top_k`.
#
# `dispatch_plan(experts, n_experts, world)` takes `experts` of one rank, int64 `(tokens, top_k)`, and returns
# `(order, counts)`:
#
# | result | shape | |
# |---|---|---|
# | `order` | `(tokens · top_k,)` | the numbers of all assignments, by expert: first those of expert 0, then of 1, … |
# | `counts` | `(world, n_experts / world)` | how many assignments each expert gets from this rank |
#
# Both are int64.
#
# - The experts are dealt out in blocks: rank 0 has the first `n_experts / world` of them, rank 1 the next, and so on.
#   Row `r` of `counts` belongs to rank `r`, and column `i` to the `i`-th of its experts.
# - Among the assignments of one expert, the lower number comes first. (Then two runs pack the same parcel.)
# - An expert that nobody chose counts 0, also if it is the last one. `tokens` may be 0.
# - If `n_experts` is not divisible by `world`, the function raises a `ValueError` whose sentence names both numbers.


# %% exercise="dispatch_plan" section="The words travel"
def dispatch_plan(
    experts: Int[Tensor, "tokens top_k"], n_experts: int, world: int
) -> tuple[Int[Tensor, " assignments"], Int[Tensor, "world n_local"]]:
    """The assignments in the order of their experts, and how many go to each expert of each rank.

    Raises ValueError if the ranks cannot share the experts equally.
    """
    ### BEGIN SOLUTION
    if n_experts % world:
        raise ValueError(f"{n_experts} experts cannot be shared equally by {world} ranks")
    chosen = experts.flatten()
    return chosen.argsort(stable=True), chosen.bincount(minlength=n_experts).unflatten(0, (world, -1))
    ### END SOLUTION


# %% check="dispatch_plan" points=4
plan = dispatch_plan(torch.tensor([[3, 0], [1, 3], [0, 3]]), 4, 2)
assert isinstance(plan, tuple), "dispatch_plan should return a tuple of two: order and counts."
order, counts = plan
assert order.tolist() == [1, 4, 2, 0, 3, 5], (
    "Expert 0 is chosen by assignments 1 and 4, expert 1 by 2, expert 3 by 0, 3 and 5; "
    f"so the order should be [1, 4, 2, 0, 3, 5], not {order.tolist()}."
)
assert counts.tolist() == [[2, 1], [0, 3]], (
    "Rank 0 has the experts 0 and 1, which get 2 and 1; rank 1 has the experts 2 and 3, which get 0 and 3. "
    f"The counts say {counts.tolist()}."
)
try:
    dispatch_plan(torch.tensor([[3, 0]]), 6, 4)
    message = ""
except ValueError as error:
    message = str(error)
assert all(number in message for number in ("6", "4")), (
    "4 ranks cannot share 6 experts equally: dispatch_plan should raise a ValueError that names both numbers."
)
print("The visible checks of dispatch_plan pass.")

# %% see="dispatch_plan"
# How many rows each rank sends to each other, if all experts are liked alike, and if a few are liked best.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), facecolor="white")
    for ax, skew, title in zip(axes, (0.0, 1.0), ("all experts alike", "a few favourites"), strict=True):
        popularity = torch.arange(1, 9.0) ** -skew
        sent = []
        for _ in range(4):
            chosen = torch.multinomial(popularity.expand(256, 8), 2)
            sent.append(dispatch_plan(chosen, 8, 4)[1].sum(1))
        table = torch.stack(sent)
        ax.imshow(table, cmap="cividis", vmin=0, vmax=400)
        for i, row in enumerate(table.tolist()):
            for j, n in enumerate(row):
                ax.text(j, i, n, ha="center", va="center", color="white" if n < 200 else "black")
        ax.set(title=title, xlabel="to rank", ylabel="from rank", xticks=range(4), yticks=range(4))
    fig.suptitle("Favourites make one rank wait for a crowd")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish dispatch_plan first, then run this cell again.")

# %% [markdown]
# ## 2 · `expert_parallel_forward` ●●●
#
# One MoE layer, spread over `world` ranks. You write what **one** rank does; all ranks run the same function at the
# same time, each with its own tokens and its own experts.
#
# | argument | shape | |
# |---|---|---|
# | `x` | `(tokens, d_model)` | this rank's own tokens; other ranks may have more, fewer or none |
# | `weights`, `experts` | `(tokens, top_k)` | the routing of these tokens; `weights` has the dtype of `x` |
# | `gate_up`, `down` | `(n_local, …)` | this rank's own experts; every rank has `n_local` of them |
# | `world` | | the number of ranks |
# | `all_to_all` | | the network: `all_to_all(rows, send, receive)`, as in `run_ranks` above |
# | result | `(tokens, d_model)` | for each token the sum of weight times expert, as if all experts were here |
#
# In `experts` the numbers run over all `n_local · world` experts, dealt out in blocks as in `dispatch_plan`. Note that
# a rank need not know which one it is.
#
# **The protocol.** All ranks must speak alike, so it is fixed: three exchanges, in this order, and no other.
#
# 1. `counts`, int64 `(world, n_local)`: each rank gets one row of it. So a rank learns how much will come.
# 2. The tokens, one row for each assignment, in the order of `dispatch_plan`.
# 3. The results, each row in the place of the row that it answers, back to where that came from.
#
# - `send` and `receive` are lists of `world` ints, because `torch.distributed` wants them so.
# - Rows travel as they are, without their weights. The sum is made where the token lives.
# - A token that goes to two experts of one rank travels there twice.
# - A rank without tokens, or whose experts nobody chose, still takes part in all three: the others wait for it.
# - Gradients travel back through `all_to_all`, from a rank without tokens too; do not detach anything. float32, float64
#   and bfloat16 occur.
# - The trap: what arrives is sorted by sender, and within each sender by expert.
#
# Call your `dispatch_plan` by its name. When this part is marked, another one stands in for it, so that a mistake above
# costs nothing here.


# %% exercise="expert_parallel_forward" section="The words travel"
def expert_parallel_forward(
    x: Float[Tensor, "tokens d_model"],
    weights: Float[Tensor, "tokens top_k"],
    experts: Int[Tensor, "tokens top_k"],
    gate_up: Float[Tensor, "n_local twice d_model"],
    down: Float[Tensor, "n_local d_model d_hidden"],
    world: int,
    all_to_all: AllToAll,
) -> Float[Tensor, "tokens d_model"]:
    """One rank's part of an MoE layer whose experts are spread over `world` ranks.

    Source: Lepikhin et al. 2020 (GShard, arXiv 2006.16668), section 3; uneven parcels instead of a fixed capacity.
    """
    ### BEGIN SOLUTION
    n_local = len(gate_up)
    order, counts = dispatch_plan(experts, n_local * world, world)
    token = order // experts.shape[1]
    coming = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x[token], send, receive)
    owner = torch.arange(n_local, device=x.device).repeat(world).repeat_interleave(coming.flatten())
    results = torch.empty_like(rows)
    for i in range(n_local):
        results[owner == i] = one_expert(rows[owner == i], gate_up[i], down[i])
    back = all_to_all(results, receive, send)
    return torch.zeros_like(x).index_add(0, token, back * weights.flatten()[order, None])
    ### END SOLUTION


# %% check="expert_parallel_forward" points=7
torch.manual_seed(0)
x = [torch.randn(n, 4) for n in (3, 2)]  # rank 0 has three tokens, rank 1 has two
experts = [torch.tensor([[0, 3], [2, 1], [3, 2]]), torch.tensor([[3, 1], [0, 1]])]
weights = [torch.tensor([[0.75, 0.25]]).expand(n, 2) for n in (3, 2)]
gate_up, down = torch.randn(4, 12, 4), torch.randn(4, 4, 6)
sent: dict[int, list[tuple[int, ...]]] = {0: [], 1: []}


def one_rank(rank: int, all_to_all: AllToAll) -> Tensor:
    def noted(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        assert type(send) is type(receive) is list, "send and receive should be lists of ints."
        sent[rank].append(tuple(rows.shape))
        return all_to_all(rows, send, receive)

    mine = slice(2 * rank, 2 * rank + 2)
    return expert_parallel_forward(x[rank], weights[rank], experts[rank], gate_up[mine], down[mine], 2, noted)


found = run_ranks(2, one_rank)
for rank in (0, 1):
    n = len(x[rank])
    assert sent[rank] == [(2, 2), (2 * n, 4), (len(found[0]) + len(found[1]), 4)], (
        f"Rank {rank} should send the counts (2, 2), its {2 * n} rows, and the results of the 5 rows that came; "
        f"what it sent had the shapes {sent[rank]}."
    )
    expected = torch.stack(
        [
            sum(
                w * one_expert(x[rank][t : t + 1], gate_up[e], down[e])[0]
                for w, e in zip(weights[rank][t], experts[rank][t].tolist(), strict=True)
            )
            for t in range(n)
        ]
    )
    assert isinstance(found[rank], torch.Tensor), f"Rank {rank} should return a tensor, not {found[rank]!r}."
    assert found[rank].shape == expected.shape, f"Rank {rank} should return {n} rows of 4."
    assert torch.allclose(found[rank], expected, atol=1e-5), (
        f"What rank {rank} returns is not the sum of weight times expert: are the rows that came given to the right "
        "expert, and do the results get back to their own token?"
    )
print("The visible checks of expert_parallel_forward pass.")

# %% stand_in="expert_parallel_forward"
import torch  # noqa: E402


def dispatch_plan(experts, n_experts, world):
    flat = experts.reshape(-1)
    order = torch.sort(flat, stable=True)[1]
    counts = (flat[:, None] == torch.arange(n_experts)).sum(0)
    return order, counts.reshape(world, n_experts // world)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, wire, send, receive):
        ctx.wire, ctx.sizes = wire, (receive, send)
        return wire.there(rows.detach(), send, receive)

    @staticmethod
    def backward(ctx, grad):
        return ctx.wire.back(grad.contiguous(), *ctx.sizes), None, None, None


class Wire:
    """An all_to_all whose other end is elsewhere, and through which gradients pass."""

    def __init__(self, there, back):
        self.there, self.back, self.sent = there, back, []

    def said(self):
        return self.sent

    def __call__(self, rows, send, receive):
        self.sent.append(rows.detach())
        if not rows.is_floating_point():
            return self.there(rows, send, receive)
        return _Exchange.apply(rows, self, send, receive)


# %% see="expert_parallel_forward"
# Four ranks, eight experts, uneven loads: rank 3 has no tokens at all, and nobody chose the experts of rank 2.
try:
    import os

    torch.manual_seed(0)
    d_model, d_hidden, tokens = 16, 32, (200, 50, 7, 0)
    gate_up, down = torch.randn(8, 2 * d_hidden, d_model) / 4, torch.randn(8, d_model, d_hidden) / 4
    x = [torch.randn(n, d_model) for n in tokens]
    liked = torch.tensor([4.0, 2, 2, 1, 0, 0, 1, 1])
    experts = [torch.multinomial(liked.expand(max(n, 1), 8), 2)[:n] for n in tokens]
    weights = [torch.tensor([0.7, 0.3]).expand(n, 2) for n in tokens]
    crossed = torch.zeros(4, 4, dtype=torch.int64)

    def spread(rank: int, all_to_all: AllToAll) -> Tensor:
        def counted(rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
            crossed[rank] += torch.tensor(send) * rows[:1].numel() * rows.element_size()
            return all_to_all(rows, send, receive)

        mine = slice(2 * rank, 2 * rank + 2)
        return expert_parallel_forward(x[rank], weights[rank], experts[rank], gate_up[mine], down[mine], 4, counted)

    together = torch.cat(run_ranks(4, spread))

    def alone(rank: int, all_to_all: AllToAll) -> Tensor:
        everything = (torch.cat(x), torch.cat(weights), torch.cat(experts))
        return expert_parallel_forward(*everything, gate_up, down, 1, all_to_all)

    difference = (together - run_ranks(1, alone)[0]).abs().max().item()
    for rank in range(4):
        away = (crossed[rank].sum() - crossed[rank, rank]).item()
        print(f"rank {rank}: {tokens[rank]:>3} tokens, sent {away:>6,} bytes to others")
    print(f"largest difference to one process that has all experts: {difference:.1e}")
except NotImplementedError:
    print("Finish dispatch_plan and expert_parallel_forward first, then run this cell again.")

# %% [markdown]
# ## 3 · `ExpertCache` ●●○
#
# And if there is only one GPU, too small for all experts? Then most of them wait in the computer's memory or on its
# disk, and a few stay on the GPU: those that were used last. When another one is needed, the one whose last use is
# longest ago makes room for it (**least recently used**, LRU).
#
# `ExpertCache(load, capacity)` has
#
# - `fetch(expert)`: the weights of expert number `expert`, exactly as `load(expert)` gave them. It calls `load` only if
#   the expert is not in the cache.
# - `held()`: the numbers of the experts in the cache, a list, the least recently used first.
# - `hits` and `misses`: ints, how many calls of `fetch` found their expert in the cache, and how many did not.
#
# - At most `capacity` experts are held at any moment, also while `load` runs: make room first, then load. As long as a
#   name stands for an expert's weights, be it a variable in `fetch`, they stay in memory. And no expert makes
#   room before the cache is full.
# - Asking is using: an expert that was just found is the last to go.
# - If `capacity` is below 1, creating the cache raises a `ValueError` whose sentence names the number.
# - `load` takes one int and may return anything.


# %% exercise="ExpertCache" section="The experts travel"
class ExpertCache:
    """Keeps the experts that were used last, and loads the others when they are asked for.

    Raises ValueError if capacity is below 1.
    Source: Eliseev and Mazur 2023 (arXiv 2312.17238), section 3.1.
    """

    def __init__(self, load: Callable[[int], Any], capacity: int) -> None:
        ### BEGIN SOLUTION
        if capacity < 1:
            raise ValueError(f"A cache must have room for one expert at least, and capacity is {capacity}")
        self.load, self.capacity = load, capacity
        self.hits = self.misses = 0
        self.experts: OrderedDict[int, Any] = OrderedDict()
        ### END SOLUTION

    def fetch(self, expert: int) -> Any:
        """The weights of this expert, from the cache or from load."""
        ### BEGIN SOLUTION
        if expert in self.experts:
            self.hits += 1
            self.experts.move_to_end(expert)
        else:
            self.misses += 1
            if len(self.experts) == self.capacity:
                self.experts.popitem(last=False)
            self.experts[expert] = self.load(expert)
        return self.experts[expert]
        ### END SOLUTION

    def held(self) -> list[int]:
        """The experts in the cache, the least recently used first."""
        ### BEGIN SOLUTION
        return list(self.experts)
        ### END SOLUTION


# %% check="ExpertCache" points=4
loaded: list[int] = []


def load(expert: int) -> str:
    loaded.append(expert)
    return f"the weights of expert {expert}"


cache = ExpertCache(load, 2)
found = [cache.fetch(expert) for expert in (3, 1, 3, 3)]
assert found == [f"the weights of expert {expert}" for expert in (3, 1, 3, 3)], f"fetch gave {found}."
assert loaded == [3, 1], f"Asked for 3, 1, 3, 3, the cache should load 3 and 1 once each; it loaded {loaded}."
assert (cache.hits, cache.misses) == (2, 2), (
    f"Two of four calls found their expert: hits and misses should be 2 and 2, not {cache.hits} and {cache.misses}."
)
assert cache.held() == [1, 3], f"Expert 1 was used least recently, so held() should be [1, 3], not {cache.held()}."
cache.fetch(0)
assert cache.held() == [3, 0], f"Expert 1 should make room for expert 0; the cache holds {cache.held()}."
second = ExpertCache(load, 2).held()
assert second == [], f"A second cache should begin empty, whatever the first one holds; here it holds {second}."
print("The visible checks of ExpertCache pass.")

# %% stand_in="ExpertCache"
import weakref  # noqa: E402


class Lent:
    """The weights of an expert, which can be counted as long as anybody holds them."""


class Lender:
    """A load that notes how much of what it gave is still in memory when it is called again."""

    def __init__(self):
        self.given, self.last, self.most, self.same = weakref.WeakSet(), {}, 0, True

    def __call__(self, expert):
        self.most = max(self.most, len(self.given))
        lent = Lent()
        self.given.add(lent)
        self.last[expert] = weakref.ref(lent)
        return lent

    def serve(self, cache, asked):
        for expert in asked:
            self.same &= cache.fetch(expert) is self.last[expert]()

    def noted(self):
        return self.most, self.same


class Watcher:
    """A load that notes what its cache holds while it runs."""

    def __init__(self):
        self.cache, self.seen = None, []

    def watch(self, cache):
        self.cache = cache

    def __call__(self, expert):
        self.seen.append(list(self.cache.held()))
        return expert * 10

    def noted(self):
        return self.seen


# %% see="ExpertCache"
# How often is the expert there? 2,000 requests for 32 experts; the more skewed they are, the more go to favourites.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    capacities = (1, 2, 4, 8, 16, 24, 32)
    fig, ax = plt.subplots(figsize=(6, 3.4), facecolor="white")
    for skew, style, color in ((0.0, "-o", "#0072B2"), (1.0, "--s", "#E69F00"), (2.0, "-.^", "#009E73")):
        asked = torch.multinomial(torch.arange(1, 33.0) ** -skew, 2000, replacement=True).tolist()
        rates = []
        for capacity in capacities:
            cache = ExpertCache(lambda expert: None, capacity)
            for expert in asked:
                cache.fetch(expert)
            rates.append(cache.hits / len(asked))
        ax.plot(capacities, rates, style, color=color, label=f"skew {skew:.0f}")
    ax.set(xlabel="experts that fit (of 32)", ylabel="found in the cache", ylim=(-0.03, 1.03))
    ax.set_title("Where tokens have favourites, a small cache goes far")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish ExpertCache first, then run this cell again.")

# %% [markdown]
# ## 4 · `hierarchical_route` ●●○
#
# A router over thousands of experts is itself a large layer. So choose in two steps, as one chooses a department and
# then a doctor: first the groups, then the experts within each chosen group. It is an old idea: in 1994 a *hierarchical
# mixture of experts* already multiplied the two probabilities.
#
# `hierarchical_route(group_logits, expert_logits, top_groups, top_k)`
#
# | argument | shape | |
# |---|---|---|
# | `group_logits` | `(tokens, n_groups)` | |
# | `expert_logits` | `(tokens, n_groups, group_size)` | for every group the logits of its experts |
# | `top_groups`, `top_k` | | how many groups, and how many experts in **each** of them |
# | `weights` | `(tokens, top_groups · top_k)` | largest first; same dtype as the logits |
# | `experts` | `(tokens, top_groups · top_k)` | int64; expert `j` of group `g` has the number `g · group_size + j` |
#
# - Both steps do the same: a softmax over all (in float32), keep the largest, and divide them by their sum.
# - A weight is the group's share times the expert's share within its group. So the weights of a token sum to 1.
# - The groups are chosen by `group_logits` alone: how good its experts are does not matter to a group that is left out.
# - Gradients reach both kinds of logits. bfloat16 occurs, and logits of some hundreds.


# %% exercise="hierarchical_route" section="Other ways to choose"
def hierarchical_route(
    group_logits: Float[Tensor, "tokens n_groups"],
    expert_logits: Float[Tensor, "tokens n_groups group_size"],
    top_groups: int,
    top_k: int,
) -> tuple[Float[Tensor, "tokens chosen"], Int[Tensor, "tokens chosen"]]:
    """First the groups, then the experts within each of them.

    Source: Jordan and Jacobs 1994; Shazeer et al. 2017 (arXiv 1701.06538), appendix B.
    """
    ### BEGIN SOLUTION
    of_group, group = group_logits.float().softmax(-1).topk(top_groups)
    inside = expert_logits[torch.arange(len(group))[:, None], group]
    of_expert, expert = inside.float().softmax(-1).topk(top_k)
    of_group = of_group / of_group.sum(-1, keepdim=True)
    of_expert = of_expert / of_expert.sum(-1, keepdim=True)
    weights = (of_group[..., None] * of_expert).flatten(1)
    experts = (group[..., None] * expert_logits.shape[-1] + expert).flatten(1)
    weights, order = weights.sort(descending=True)
    return weights.to(group_logits.dtype), experts.gather(1, order)
    ### END SOLUTION


# %% check="hierarchical_route" points=4
group_logits = torch.tensor([[0.6, 0.1, 0.3]]).log()
expert_logits = torch.tensor([[[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.7, 0.2, 0.1]]]).log()
routing = hierarchical_route(group_logits, expert_logits, 2, 1)
assert isinstance(routing, tuple), "hierarchical_route should return a tuple of two: weights and experts."
weights, experts = routing
assert experts.tolist() == [[0, 6]], (
    "Groups 0 and 2 have the largest shares, and expert 0 is the best in each; its number in group 2 is 2 · 3 + 0. "
    f"So the experts should be [0, 6], not {experts.tolist()[0]}."
)
assert torch.allclose(weights, torch.tensor([[2 / 3, 1 / 3]]), atol=1e-5), (
    "0.6 and 0.3, divided by their sum, are 2/3 and 1/3, and one expert a group gets all of its group's share; "
    f"the weights are {[round(w, 3) for w in weights.flatten().tolist()]}."
)
print("The visible checks of hierarchical_route pass.")

# %% see="hierarchical_route"
# 64 experts in 8 groups of 8, four experts a token. A flat router takes the best four of all; how many of them does the
# hierarchical one find, and how many logits does it look at?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    expert_logits = torch.randn(2000, 8, 8)
    group_logits = expert_logits.logsumexp(-1)  # a group's probability is then that of its experts together
    best = expert_logits.flatten(1).topk(4).indices
    shares, read = [], []
    for top_groups, top_k in ((1, 4), (2, 2), (4, 1)):
        _, experts = hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        shares.append((experts[..., None] == best[:, None]).any(-1).float().mean().item())
        read.append(8 + 8 * top_groups)
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    labels = [f"{g} × {k}\n{n} logits" for (g, k), n in zip(((1, 4), (2, 2), (4, 1)), read, strict=True)]
    ax.bar([*labels, "flat\n64 logits"], [*shares, 1], color=["#0072B2"] * 3 + ["#999999"])
    ax.set(ylabel="share of the flat router's choice", xlabel="groups × experts in each")
    ax.set_title("Two steps read fewer logits, and choose differently")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish hierarchical_route first, then run this cell again.")

# %% [markdown]
# ## 5 · `top_p_route` ●●○
#
# Why two experts for every token? A router that is sure needs one, and a router in doubt might ask four. Top-p takes as
# many as it needs: the **smallest** set of experts whose probabilities sum to **at least** `p`.
#
# `top_p_route(logits, p)` takes `logits` of shape `(tokens, n_experts)` and returns `weights` of the same shape and
# dtype: 0 for each expert that is not chosen, and for those that are, their probability divided by the sum of the
# chosen ones.
#
# - The probabilities are a softmax over all experts, in float32.
# - Whose probability crosses `p` still belongs to the set. So there is always at least one, and with `p = 1`
#   (up to rounding) all.
# - Of experts with equal probabilities the lower number is chosen first.
# - Gradients reach the logits. bfloat16 occurs, and logits of some hundreds.
# - If `p` is not above 0, or above 1, the function raises a `ValueError` whose sentence names it.


# %% exercise="top_p_route" section="Other ways to choose"
def top_p_route(logits: Float[Tensor, "tokens n_experts"], p: float) -> Float[Tensor, "tokens n_experts"]:
    """The weights of the smallest set of experts whose probabilities sum to at least p, divided by their sum.

    Raises ValueError unless p is above 0 and at most 1.
    Source: Huang et al. 2024 (arXiv 2403.07652), section 3; the division by the sum is this course's convention.
    """
    ### BEGIN SOLUTION
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, and it is {p}")
    probabilities, experts = logits.float().softmax(-1).sort(dim=-1, stable=True, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    chosen = probabilities.masked_fill(before >= p, 0)
    chosen = chosen / chosen.sum(-1, keepdim=True)
    return torch.zeros_like(chosen).scatter(-1, experts, chosen).to(logits.dtype)
    ### END SOLUTION


# %% check="top_p_route" points=4
logits = torch.tensor([[0.1, 0.6, 0.3], [0.02, 0.03, 0.95]]).log()
weights = top_p_route(logits, 0.7)
assert isinstance(weights, torch.Tensor), f"top_p_route should return a tensor, not {type(weights).__name__}."
assert weights.shape == (2, 3), f"The weights should have the shape of the logits, (2, 3), not {tuple(weights.shape)}."
assert (weights > 0).tolist() == [[False, True, True], [False, False, True]], (
    "0.6 does not reach 0.7, and 0.6 + 0.3 does: two experts. 0.95 does: one expert. "
    f"Chosen were {(weights > 0).sum(-1).tolist()}."
)
assert torch.allclose(weights[0], torch.tensor([0, 2 / 3, 1 / 3]), atol=1e-5), (
    f"0.6 and 0.3 divided by their sum are 2/3 and 1/3; the weights are {[round(w, 3) for w in weights[0].tolist()]}."
)
print("The visible checks of top_p_route pass.")

# %% see="top_p_route"
# The surer the router, the fewer experts. Each curve is a router of another confidence, over 16 experts.
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    logits, levels = torch.randn(2000, 16), [i / 20 for i in range(1, 20)]
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    for scale, style, color in ((0.3, "-", "#0072B2"), (1.0, "--", "#E69F00"), (3.0, "-.", "#009E73")):
        counts = [(top_p_route(scale * logits, p) > 0).sum(-1).float().mean() for p in levels]
        ax.plot(levels, counts, style, color=color, label=f"logits of size {scale:g}")
    ax.axhline(2, color="#999999", linestyle=":", label="top-2")
    ax.set(xlabel="p", ylabel="experts a token (mean)", title="A router in doubt asks more experts")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish top_p_route first, then run this cell again.")

# %% [markdown]
# ## 6 · `add_expert` ●○○
#
# "A new field comes up? Just add an expert, as a hospital hires a doctor." Let us hire one, and keep to the safest way
# there is: the newcomer is a copy of an expert who is there already, and nobody is sent to it until somebody says so.
#
# The layer chooses as DeepSeek-V3's do: the `top_k` experts with the largest *logit + bias*, where the bias serves only
# to choose. The weights are softmax(logits), of those who were chosen, divided by their sum.
#
# `add_expert(router, bias, gate_up, down, parent)` returns a tuple of four new tensors in the same order, each with one
# expert more, at the end:
#
# | argument | shape | the newcomer gets |
# |---|---|---|
# | `router` | `(n_experts, d_model)` | a copy of `parent`'s row |
# | `bias` | `(n_experts,)` | −∞, so that it is never among the chosen |
# | `gate_up` | `(n_experts, 2·d_hidden, d_model)` | a copy of `parent`'s |
# | `down` | `(n_experts, d_model, d_hidden)` | a copy of `parent`'s |
#
# - So the layer computes what it computed before, until the bias is raised.
# - The results are leaves without a history: they will be new parameters. dtypes are kept, and the inputs are left as
#   they were.


# %% exercise="add_expert" section="Just add a doctor?"
def add_expert(
    router: Float[Tensor, "n_experts d_model"],
    bias: Float[Tensor, " n_experts"],
    gate_up: Float[Tensor, "n_experts twice d_model"],
    down: Float[Tensor, "n_experts d_model d_hidden"],
    parent: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same layer with a copy of expert `parent` at the end, whom nobody is sent to yet."""
    ### BEGIN SOLUTION
    grown = [torch.cat([old, old[parent : parent + 1]]).detach() for old in (router, bias, gate_up, down)]
    grown[1][-1] = -torch.inf
    return tuple(grown)
    ### END SOLUTION


# %% check="add_expert" points=2
router, bias, gate_up, down = torch.randn(3, 4), torch.zeros(3), torch.randn(3, 12, 4), torch.randn(3, 4, 6)
grown = add_expert(router, bias, gate_up, down, 1)
assert isinstance(grown, tuple), "add_expert should return a tuple of four tensors."
assert [len(new) for new in grown] == [4] * 4, f"There should be 4 experts now, not {[len(new) for new in grown]}."
assert torch.equal(grown[2][:3], gate_up), "The experts who were there should stay as they were."
assert torch.equal(grown[2][3], gate_up[1]), "The newcomer should be a copy of its parent, expert 1."
assert grown[1].tolist() == [0, 0, 0, -torch.inf], f"Only the newcomer's bias should be −∞: {grown[1].tolist()}."
print("The visible checks of add_expert pass.")

# %% see="add_expert"
# Raise the newcomer's bias from far below: whom does it take its tokens from, and how much does the output change?
try:
    import matplotlib.pyplot as plt

    def layer(x: Tensor, router: Tensor, bias: Tensor, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Top-2 by logit + bias; the output and who was chosen."""
        logits = x @ router.T
        chosen = (logits + bias).topk(2).indices
        weights = logits.softmax(-1).gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        every = torch.stack([one_expert(x, gate_up[i], down[i]) for i in range(len(router))], 1)
        return (weights[..., None] * every.gather(1, chosen[..., None].expand(-1, -1, x.shape[1]))).sum(1), chosen

    torch.manual_seed(0)
    d_model, d_hidden = 16, 32
    parts = (
        torch.randn(6, d_model) / 3,
        torch.zeros(6),
        torch.randn(6, 2 * d_hidden, d_model) / 4,
        torch.randn(6, d_model, d_hidden) / 4,
    )
    x = torch.randn(2000, d_model)
    before, _ = layer(x, *parts)
    grown = add_expert(*parts, 2)
    levels, taken, changed = [-6.0, -4, -3, -2, -1, -0.5, 0], [], []
    for level in levels:
        grown[1][-1] = level
        after, chosen = layer(x, *grown)
        taken.append((chosen == 6).any(-1).float().mean().item())
        changed.append(((after - before).norm() / before.norm()).item())
    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    ax.plot(levels, taken, "-o", color="#0072B2", label="tokens that are sent to the newcomer")
    ax.plot(levels, changed, "--s", color="#D55E00", label="change of the output (relative)")
    ax.set(xlabel="the newcomer's bias", ylim=(-0.03, None), title="Who lets the newcomer in changes the answers")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish add_expert first, then run this cell again.")

# %% [markdown]
# ## Training across ranks
#
# Now train an MoE layer on four ranks. Each rank sees its own quarter of the batch and owns a quarter of the experts;
# no rank ever sees the experts of another. The router is everybody's, so its gradients are averaged, as in
# data-parallel training. The experts' gradients need no averaging: every token that an expert served sent its share
# home.
#
# Before you run it: will the loss of four ranks be that of one process, or only near it?

# %% see="expert_parallel_forward"
try:
    import os

    import matplotlib.pyplot as plt

    def train_spread(world: int, steps: int) -> list[float]:
        """Learn a random function with 8 experts spread over `world` ranks; the loss of each step."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        gate_up, down, router = draw(8, 32, 8) / 3, draw(8, 8, 16) / 4, draw(8, 8) / 3
        x = draw(256, 8)
        target = torch.sin(3 * x) * torch.sign(x[:, :1])
        size, share = 8 // world, 256 // world
        own = [
            [part[size * r : size * (r + 1)].clone().requires_grad_() for part in (gate_up, down)] for r in range(world)
        ]
        router.requires_grad_()
        optimiser = torch.optim.Adam([router, *(part for parts in own for part in parts)], lr=3e-3)
        losses = []

        def part(rank: int, all_to_all: AllToAll) -> Tensor:
            mine = slice(share * rank, share * (rank + 1))
            weights, experts = (x[mine] @ router.T).softmax(-1).topk(2)
            out = expert_parallel_forward(x[mine], weights, experts, *own[rank], world, all_to_all)
            return F.mse_loss(out, target[mine])

        for _ in range(steps):
            loss = torch.stack(run_ranks(world, part)).mean()
            optimiser.zero_grad()
            loss.backward()  # back through every exchange
            optimiser.step()
            losses.append(loss.item())
        return losses

    steps = 30 if os.environ.get("ICHIMON_FAST") == "1" else 300
    curves = {world: train_spread(world, steps) for world in (1, 4)}
    apart = max(abs(a - b) for a, b in zip(curves[1], curves[4], strict=True))
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(curves[1], color="#0072B2", linewidth=5, alpha=0.4, label="one process")
    ax.plot(curves[4], "--", color="#D55E00", label="four ranks")
    ax.set(xlabel="training step", ylabel="loss", title=f"The same training: at most {apart:.0e} apart")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish dispatch_plan and expert_parallel_forward first, then run this cell again.")

# %% [markdown]
# Your function does not know that its ranks are threads. `examples/expert_parallel.py` in the course's folder gives it
# real processes and `torch.distributed`: run `torchrun --nproc-per-node 2 examples/expert_parallel.py`.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they play the network, look at every row that you send,
# answer as honest ranks would, and do so for uneven loads, for ranks that get or send nothing, and for gradients. Each
# exercise is marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 17-moe-at-scale.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
