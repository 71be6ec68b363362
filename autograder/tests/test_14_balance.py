"""Hidden tests of chapter 14. Expected values come from plain loops over the published formulas, and from laws.

Where there is a published implementation, tests/test_balance_oracle.py shows that the reference agrees with it.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from autograder.student import Student, assert_close, tensor
from autograder.testing import gradients, normal

SHAPES = ((9, 4, 1), (13, 5, 2), (6, 8, 3), (7, 3, 2))  # tokens, experts, top_k


def pair(found: Any, name: str, shape: tuple[int, ...], second: str) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape, whatever came back."""
    assert isinstance(found, tuple | list), f"{name} should return two tensors, and it returns one thing."
    assert len(found) == 2, f"{name} should return two tensors, and it returns {len(found)}."
    return tensor(found[0], shape=shape, name="weights"), tensor(found[1], shape=shape, name=second)


# -- load_balancing_loss --------------------------------------------------------------------------------------------


def loss(student: Student, logits: Tensor, top_k: int, **per: str) -> Tensor:
    """The loss as a number, whatever its dtype is, which has a test of its own. A constant earns nothing."""
    found = tensor(student.load_balancing_loss(logits, top_k, **per), shape=(), name="the loss")
    n_experts = logits.shape[1]
    crowd = torch.zeros(5, n_experts)
    crowd[:, :top_k] = 30.0
    elsewhere = tensor(student.load_balancing_loss(crowd, top_k, **per), shape=(), name="the loss")
    even = tensor(student.load_balancing_loss(circle(n_experts), top_k, **per), shape=(), name="the loss")
    assert (elsewhere - even).abs() > 1e-3, "The loss is the same for an even routing and for one to a few experts."
    return found.float()


def circle(n_experts: int, scale: float = 2.0) -> Tensor:
    """As many tokens as experts, each preferring the next one: choices and probabilities are even."""
    row = scale * torch.arange(n_experts).flip(0) / n_experts
    return torch.stack([row.roll(i) for i in range(n_experts)])


def shares(logits: Tensor, top_k: int) -> list[float]:
    """The share of the routings that goes to each expert, counted one by one."""
    count = [0] * logits.shape[1]
    for row in logits.tolist():
        for expert in sorted(range(len(row)), key=lambda i: -row[i])[:top_k]:
            count[expert] += 1
    return [c / (len(logits) * top_k) for c in count]


def switch_loss(logits: Tensor, top_k: int) -> Tensor:
    """Equations 4 to 6 of the paper, with f a share of all routings."""
    total = torch.zeros(())
    for expert, f in enumerate(shares(logits, top_k)):
        total = total + f * torch.stack([row.exp()[expert] / row.exp().sum() for row in logits.float()]).mean()
    return logits.shape[1] * total


@pytest.mark.exercise("load_balancing_loss", weight=2)
def test_the_loss_is_the_published_formula(student: Student) -> None:
    """E times the sum over experts of f · P: f is a share of the routings, counted; P the mean probability."""
    for seed, (n, n_experts, top_k) in enumerate(SHAPES):
        logits = normal(n, n_experts, seed=seed)
        claim = f"{n} tokens, {n_experts} experts, top_k {top_k}"
        assert_close(loss(student, logits, top_k), switch_loss(logits, top_k), claim=claim, name="the loss")


@pytest.mark.exercise("load_balancing_loss", weight=2)
def test_the_gradient_flows_through_the_probabilities_only(student: Student) -> None:
    """f is a count and counts as a constant: the gradient is that of E · Σ f · P with f held fixed."""
    for seed, (n, n_experts, top_k) in enumerate(SHAPES):
        logits = normal(n, n_experts, seed=10 + seed).requires_grad_()
        f, p = torch.tensor(shares(logits.detach(), top_k)), logits.detach().softmax(-1)
        expected = n_experts / n * p * (f - (p * f).sum(-1, keepdim=True))  # the derivative of a softmax, by hand
        found = student.load_balancing_loss(logits, top_k)
        grad = gradients(found, torch.ones((), dtype=found.dtype if isinstance(found, Tensor) else None), x=logits)["x"]
        assert_close(grad, expected, atol=1e-5, name="the gradient of the logits")


@pytest.mark.exercise("load_balancing_loss")
def test_per_routing_is_one_at_balance(student: Student) -> None:
    """per="routing" is the default: where everything is even the loss is 1, whatever top_k is."""
    for n_experts, top_k in ((4, 1), (6, 2), (8, 4)):
        for per in ({}, {"per": "routing"}):
            found = loss(student, circle(n_experts), top_k, **per)
            assert_close(found, torch.ones(()), claim=f"{n_experts} experts, top_k {top_k}, all even", name="the loss")


@pytest.mark.exercise("load_balancing_loss")
def test_per_token_is_top_k_at_balance(student: Student) -> None:
    """With per="token" the f of all experts add up to top_k, so the loss of an even routing is top_k."""
    for n_experts, top_k in ((6, 2), (8, 4), (4, 1)):
        default = loss(student, circle(n_experts), top_k)
        found = loss(student, circle(n_experts), top_k, per="token")
        assert_close(found / default, torch.tensor(float(top_k)), name='the loss per="token" over that per="routing"')
        claim = f'{n_experts} experts, top_k {top_k}, per="token", all even'
        assert_close(found, torch.tensor(float(top_k)), claim=claim, name="the loss")
    logits = normal(9, 5, seed=3)
    assert_close(loss(student, logits, 3, per="token"), 3 * switch_loss(logits, 3), claim='per="token", top_k 3')


@pytest.mark.exercise("load_balancing_loss")
def test_where_everything_goes_to_few_the_loss_is_largest(student: Student) -> None:
    """If all tokens go to the same top_k experts with certainty, the loss is E / top_k, and it is never above E."""
    for n_experts, top_k in ((4, 1), (8, 2)):
        logits = torch.zeros(7, n_experts)
        logits[:, 1 : 1 + top_k] = 40.0
        expected = torch.tensor(n_experts / top_k)
        assert_close(loss(student, logits, top_k), expected, claim=f"all to the same {top_k} experts", name="the loss")


@pytest.mark.exercise("load_balancing_loss")
def test_even_choices_give_one_whatever_the_probabilities_are(student: Student) -> None:
    """If every f is 1/E the loss is the sum of all P, which is 1: the probability of experts not chosen counts too."""
    logits = circle(4)
    logits[0] *= 3
    logits[1] *= 0.2
    logits[3] *= 6
    for top_k in (1, 2):
        assert_close(loss(student, logits, top_k), torch.ones(()), claim=f"even choices, top_k {top_k}")


@pytest.mark.exercise("load_balancing_loss")
def test_even_probabilities_give_one_whatever_the_choices_are(student: Student) -> None:
    """If every P is 1/E the loss is the sum of all f, which is 1, also where all tokens choose the same expert."""
    logits = torch.zeros(6, 5) + 1e-5 * torch.tensor([0.0, 3, 1, 2, 0])
    for top_k in (1, 2):
        assert_close(loss(student, logits, top_k), torch.ones(()), atol=1e-3, claim=f"even P, top_k {top_k}")


@pytest.mark.exercise("load_balancing_loss")
def test_neither_the_order_nor_the_number_of_tokens_matters(student: Student) -> None:
    """The loss is a mean: shuffled tokens, shuffled experts and a text read twice give the same number."""
    logits = normal(9, 6, seed=5)
    before = loss(student, logits, 2)
    for changed, claim in (
        (logits.flip(0), "tokens in another order"),
        (logits.flip(1), "experts in another order"),
        (torch.cat([logits, logits]), "every token twice"),
        (logits + 7, "7 added to all logits, which changes no probability"),
    ):
        assert_close(loss(student, changed, 2), before, claim=claim, name="the loss")


@pytest.mark.exercise("load_balancing_loss", weight=0.5)
def test_large_logits_give_a_finite_loss(student: Student) -> None:
    """Logits of ±10,000 overflow an exponential; the softmax and its gradient must not."""
    logits = (1e4 * circle(5, 1.0)).requires_grad_()
    assert_close(loss(student, logits.detach(), 2), torch.ones(()), claim="logits of up to 10,000", name="the loss")
    found = student.load_balancing_loss(logits, 2)
    grad = gradients(found, torch.ones(()), x=logits)["x"]
    assert grad.isfinite().all(), "The gradient has entries that are NaN or infinite."
    certain = 1e4 * normal(9, 5, seed=9)  # each token has a probability of 1, so P is f
    expected = torch.tensor(5 * math.fsum(f * f for f in shares(certain, 1)))
    assert_close(loss(student, certain, 1), expected, claim="logits of up to 10,000 in no order", name="the loss")


@pytest.mark.exercise("load_balancing_loss", weight=0.5)
def test_an_expert_that_nobody_chose_counts_as_zero(student: Student) -> None:
    """With fewer routings than experts, some f are 0, and E is still the number of all experts."""
    logits = normal(2, 11, seed=6)
    logits[:, 8:] -= 5  # the last experts are the ones that nobody chooses
    assert_close(loss(student, logits, 2), switch_loss(logits, 2), claim="2 tokens, 11 experts", name="the loss")


@pytest.mark.exercise("load_balancing_loss")
def test_the_balancing_loss_of_bfloat16_logits_is_float32(student: Student) -> None:
    """bfloat16 has three digits: turn the logits into float32 first, and return the loss in float32."""
    logits = normal(40, 6, seed=7, dtype=torch.bfloat16)
    assert loss(student, logits, 2).isfinite(), "The loss of bfloat16 logits is NaN or infinite."
    found = tensor(student.load_balancing_loss(logits, 2), shape=(), dtype=torch.float32, name="the loss")
    assert_close(found, switch_loss(logits.float(), 2), claim="bfloat16 logits", name="the loss")
    crowd = torch.tensor([[2.0, 0.5, 0.0]] * 5).bfloat16()  # where bfloat16 rounds the probability far
    assert_close(loss(student, crowd, 1), switch_loss(crowd.float(), 1), claim="bfloat16 logits", name="the loss")
    uneven = torch.tensor([[2.0, 0.5, 0.0]] * 250 + [[0.5, 2.0, 0.0]] * 51).bfloat16()  # nor does it hold 250/301
    assert_close(loss(student, uneven, 1), switch_loss(uneven.float(), 1), claim="301 tokens", name="the loss")


@pytest.mark.exercise("load_balancing_loss", weight=0.5)
def test_the_loss_leaves_the_logits_as_they_were(student: Student) -> None:
    """The logits belong to the caller: an operation that ends in _ changes them."""
    logits = normal(5, 4, seed=8)
    kept = student.put(logits)
    assert_close(
        tensor(student.load_balancing_loss(kept, 2), shape=()).float(), switch_loss(logits, 2), name="the loss"
    )
    assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="logits")


# -- router_z_loss --------------------------------------------------------------------------------------------------


def z_loss(logits: Tensor) -> float:
    """The formula, with Python's own logarithm."""
    rows = logits.double().tolist()
    return math.fsum(math.log(math.fsum(math.exp(x) for x in row)) ** 2 for row in rows) / len(rows)


def z(student: Student, logits: Tensor) -> Tensor:
    """The student's z-loss as a number, whatever its dtype is."""
    return tensor(student.router_z_loss(logits), shape=(), name="the loss").float()


@pytest.mark.exercise("router_z_loss", weight=2)
def test_the_z_loss_is_the_mean_squared_log_of_the_denominator(student: Student) -> None:
    """For each token the log of the sum of exponentials, squared; then the mean over tokens."""
    for seed, (n, n_experts) in enumerate(((5, 4), (9, 3), (1, 16))):
        logits = 2 * normal(n, n_experts, seed=seed)
        expected = torch.tensor(z_loss(logits), dtype=torch.float32)
        assert_close(z(student, logits), expected, claim=f"{n} tokens, {n_experts} experts", name="the loss")


@pytest.mark.exercise("router_z_loss")
def test_the_z_loss_sees_a_number_added_to_all_logits(student: Student) -> None:
    """Adding c to all logits changes no probability, but the log of the denominator by c: so the loss must change."""
    for c in (3.0, -6.0):
        logits = torch.full((4, 5), c)
        expected = torch.tensor((c + math.log(5)) ** 2)
        assert_close(z(student, logits), expected, claim=f"all logits {c:g}", name="the loss")


@pytest.mark.exercise("router_z_loss")
def test_the_z_loss_is_a_mean_over_tokens(student: Student) -> None:
    """A text read twice has the same loss, and a token that adds nothing halves it."""
    logits = normal(3, 4, seed=1) + 2
    before = z(student, logits)
    assert before > 0.1, "The loss of logits far from zero is (almost) zero."
    assert_close(z(student, torch.cat([logits, logits])), before, claim="every token twice", name="the loss")
    nothing = torch.full((3, 4), -math.log(4))  # a denominator of 1, and a logarithm of 0
    assert_close(
        z(student, torch.cat([logits, nothing])), before / 2, claim="with tokens that add nothing", name="the loss"
    )


@pytest.mark.exercise("router_z_loss", weight=0.5)
def test_the_z_loss_of_large_logits_is_finite(student: Student) -> None:
    """Logits of ±10,000 overflow an exponential: use a log-sum-exp that takes out the largest first."""
    for value in (1e4, -1e4):
        found = z(student, torch.full((2, 3), value))
        expected = torch.tensor((value + math.log(3)) ** 2)
        assert_close(found, expected, claim=f"logits of {value:g}", name="the loss")
    mixed = torch.tensor([[1e4] * 3, [-1e4] * 3, [2.0] * 3])
    expected = (torch.tensor([1e4, -1e4, 2.0]) + math.log(3)).square().mean()
    assert_close(z(student, mixed), expected, claim="tokens with large and with small logits", name="the loss")


@pytest.mark.exercise("router_z_loss")
def test_the_gradient_of_the_z_loss(student: Student) -> None:
    """Its gradient is 2 · log-sum-exp · softmax / tokens: large logits are pushed towards zero."""
    logits = normal(5, 4, seed=2).requires_grad_()
    p = logits.detach().softmax(-1)
    log_z = torch.tensor([math.log(sum(math.exp(x) for x in row)) for row in logits.tolist()])
    found = student.router_z_loss(logits)
    assert_close(gradients(found, torch.ones(()), x=logits)["x"], 2 / 5 * log_z[:, None] * p, name="the gradient")


@pytest.mark.exercise("router_z_loss", weight=0.5)
def test_the_z_loss_of_bfloat16_logits_is_float32(student: Student) -> None:
    """Turn bfloat16 logits into float32 first: the loss is float32, and exact to float32."""
    logits = 3 * normal(20, 4, seed=3, dtype=torch.bfloat16)
    found = tensor(student.router_z_loss(logits), shape=(), dtype=torch.float32, name="the loss")
    assert_close(found, torch.tensor(z_loss(logits), dtype=torch.float32), claim="bfloat16 logits", name="the loss")


# -- with_capacity --------------------------------------------------------------------------------------------------


def routing(n: int, n_experts: int, top_k: int, seed: int, lean: float = 1.5) -> tuple[Tensor, Tensor]:
    """A routing that leans towards the first experts, its columns in no order."""
    logits = normal(n, n_experts, seed=seed) + lean * torch.arange(n_experts).flip(0) / n_experts
    weights, experts = logits.softmax(-1).topk(top_k)
    return (weights.flip(1), experts.flip(1)) if seed % 2 else (weights, experts)


def serve(weights: Tensor, experts: Tensor, capacity: int, by_weight: bool = False) -> Tensor:
    """Who is kept: a queue of routings, and each expert's places counted down."""
    n, top_k = experts.shape
    queue = [(t, c) for t in range(n) for c in range(top_k)]
    if by_weight:
        queue.sort(key=lambda at: -weights[at].item())
    places: dict[int, int] = {}
    kept = torch.zeros(n, top_k, dtype=torch.bool)
    for at in queue:
        expert = int(experts[at])
        if places.setdefault(expert, capacity) > 0:
            places[expert] -= 1
            kept[at] = True
    return kept


def limited(
    student: Student, weights: Tensor, experts: Tensor, n_experts: int, factor: float, **priority: str
) -> tuple[Tensor, Tensor]:
    """weights and kept, kept as booleans whatever its dtype is, which has a test of its own. Constants earn nothing."""
    found = student.with_capacity(weights, experts, n_experts, factor, **priority)
    left, kept = pair(found, "with_capacity", tuple(experts.shape), "kept")
    crowd = torch.zeros(64, 1, dtype=torch.int64)
    crowd[::16] = 1
    some = student.with_capacity(torch.ones(64, 1), crowd, 2, 1.0, **priority)
    of_many = pair(some, "with_capacity", (64, 1), "kept")[1].bool()
    assert of_many.any(), "Of sixty tokens that want one of two experts, none is kept."
    assert not of_many.all(), "Of sixty tokens that want one of two experts, all are kept, with room for half of 64."
    return left, kept.bool()


CASES = ((12, 8, 3, 0.5), (9, 4, 1, 1.0), (8, 4, 2, 1.0), (7, 4, 2, 0.75))  # tokens, experts, top_k, factor


@pytest.mark.exercise("with_capacity", weight=2)
def test_places_go_to_the_earlier_tokens(student: Student) -> None:
    """priority="position" is the default: each expert takes routings in the order of the tokens until it is full."""
    for seed, (n, n_experts, top_k, factor) in enumerate(CASES):
        weights, experts = routing(n, n_experts, top_k, seed)
        expected = serve(weights, experts, math.ceil(factor * n * top_k / n_experts))
        for priority in ({}, {"priority": "position"}):
            _, kept = limited(student, weights, experts, n_experts, factor, **priority)
            claim = f"{n} tokens, {n_experts} experts, top_k {top_k}, factor {factor}"
            assert_close(kept, expected, claim=claim, name="kept")


@pytest.mark.exercise("with_capacity", weight=2)
def test_places_go_to_the_larger_weights(student: Student) -> None:
    """With priority="weight" each expert keeps the routings with the largest weights of all that want it."""
    for seed, (n, n_experts, top_k, factor) in enumerate(CASES):
        weights, experts = routing(n, n_experts, top_k, 10 + seed)
        expected = serve(weights, experts, math.ceil(factor * n * top_k / n_experts), by_weight=True)
        _, kept = limited(student, weights, experts, n_experts, factor, priority="weight")
        claim = f"{n} tokens, {n_experts} experts, top_k {top_k}, factor {factor}, by weight"
        assert_close(kept, expected, claim=claim, name="kept")
    weights, experts = 0.5 + 1.25e-7 * torch.arange(9.0)[:, None], torch.zeros(9, 1, dtype=torch.int64)
    _, kept = limited(student, weights, experts, 2, 1.0, priority="weight")
    claim = "weights that differ in the seventh digit only"
    assert_close(kept, serve(weights, experts, 5, by_weight=True), claim=claim, name="kept")


@pytest.mark.exercise("with_capacity")
def test_the_capacity_is_rounded_up(student: Student) -> None:
    """⌈factor · tokens · top_k / n_experts⌉: a fraction of a place is a place, and nothing is added to a whole one."""
    for n, n_experts, factor, room in ((5, 4, 1.0, 2), (9, 8, 1.0, 2), (8, 4, 1.0, 2), (3, 8, 0.5, 1), (8, 4, 1.25, 3)):
        weights, experts = torch.rand(n, 1), torch.full((n, 1), n_experts - 1)
        _, kept = limited(student, weights, experts, n_experts, factor)
        claim = f"{n} tokens that all want one of {n_experts} experts, factor {factor}"
        assert int(kept.sum()) == room, f"{claim}: {int(kept.sum())} are kept, which is not the capacity."


@pytest.mark.exercise("with_capacity")
def test_there_is_room_for_every_choice_and_not_only_the_first(student: Student) -> None:
    """The capacity grows with top_k: with a factor of 1 a routing that is spread evenly loses nothing."""
    for n_experts, top_k in ((4, 2), (6, 3)):
        experts = torch.stack([(torch.arange(2 * n_experts) + j) % n_experts for j in range(top_k)], -1)
        weights = torch.rand(2 * n_experts, top_k)
        weights[1] = 0  # a place is a place, whatever the weight
        _, kept = limited(student, weights, experts, n_experts, 1.0)
        assert kept.all(), (
            f"{n_experts} experts, top_k {top_k}, spread evenly, factor 1: {int((~kept).sum())} are dropped."
        )


@pytest.mark.exercise("with_capacity", weight=2)
def test_a_dropped_weight_is_zero_and_the_others_are_unchanged(student: Student) -> None:
    """A dropped routing gets exactly 0; the token's other weights are not divided by a new sum."""
    for seed, priority in enumerate(("position", "weight")):
        weights, experts = routing(12, 4, 2, 20 + seed, lean=4)
        kept = serve(weights, experts, 6, by_weight=priority == "weight")
        left, _ = limited(student, weights, experts, 4, 1.0, priority=priority)
        assert_close(left, weights * kept, atol=1e-6, name="weights", claim=f'priority="{priority}"')


@pytest.mark.exercise("with_capacity")
def test_the_weights_and_kept_say_the_same(student: Student) -> None:
    """kept holds booleans, True exactly where a weight is left."""
    weights, experts = routing(11, 4, 2, 30)
    left, kept = pair(student.with_capacity(weights, experts, 4, 0.5), "with_capacity", (11, 2), "kept")
    tensor(kept, dtype=torch.bool, name="kept")
    assert kept.any(), "Nothing is kept at all."
    assert not kept.all(), "With half of the room that would be needed, nothing is dropped."
    assert_close(kept, left != 0, name="kept")


@pytest.mark.exercise("with_capacity")
def test_by_position_a_later_token_never_matters(student: Student) -> None:
    """Causality: whatever the later tokens want, the earlier ones keep what they had, first and second choices."""
    weights, experts = routing(12, 4, 2, 40, lean=4)
    _, before = limited(student, weights, experts, 4, 0.5)
    for t in (3, 7, 11):
        for wanted in range(4):  # all the later tokens want this expert most, and the next one after it
            other_weights, other_experts = weights.clone(), experts.clone()
            other_weights[t:] = torch.tensor([0.95, 0.05])
            other_experts[t:] = torch.tensor([wanted, (wanted + 1) % 4])
            _, after = limited(student, other_weights, other_experts, 4, 0.5)
            assert_close(after[:t], before[:t], claim=f"other tokens from {t} on", name="kept before them")


@pytest.mark.exercise("with_capacity")
def test_a_second_choice_is_served_although_the_first_was_dropped(student: Student) -> None:
    """Each routing stands in the queue of its own expert, whatever became of the token's other one."""
    experts = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1], [0, 2], [0, 3]])
    for priority in ("position", "weight"):
        weights = torch.tensor([[0.7, 0.3]]).repeat(6, 1)
        _, kept = limited(student, weights, experts, 4, 0.5, priority=priority)
        assert kept[:, 1].all(), f'priority="{priority}": a second choice was dropped although its expert had room.'
        assert int(kept[:, 0].sum()) == 2, f'priority="{priority}": the full expert should keep as many as it has room.'


@pytest.mark.exercise("with_capacity")
def test_equal_weights_are_served_in_the_order_of_the_tokens(student: Student) -> None:
    """With priority="weight", of two equal weights the earlier token comes first: the sort must be stable."""
    n = 40  # short lists come out of an unstable sort in order by luck
    experts = torch.zeros(n, 1, dtype=torch.int64)
    weights = torch.full((n, 1), 0.5)
    weights[[5, 30]] = 0.9
    _, kept = limited(student, weights, experts, 2, 0.5, priority="weight")
    assert_close(kept, serve(weights, experts, 10, by_weight=True), claim="equal weights", name="kept")
    first = (torch.arange(n) % 2)[:, None]  # every other token has expert 1 in its first column
    both, weights = torch.cat([first, 1 - first], 1), torch.full((n, 2), 0.5)
    _, kept = limited(student, weights, both, 2, 0.5, priority="weight")
    assert_close(
        kept, serve(weights, both, 20, by_weight=True), claim="equal weights, two experts a token", name="kept"
    )


@pytest.mark.exercise("with_capacity", weight=0.5)
def test_gradients_reach_the_weights_that_are_kept(student: Student) -> None:
    """A kept weight passes its gradient on unchanged, a dropped one gets none."""
    weights, experts = routing(10, 4, 2, 50)
    weights.requires_grad_()
    upstream = normal(10, 2, seed=51)
    left, _ = pair(student.with_capacity(weights, experts, 4, 0.5), "with_capacity", (10, 2), "kept")
    kept = serve(weights.detach(), experts, 3)
    assert_close(gradients(left, upstream, x=weights)["x"], upstream * kept, name="the gradient of weights")


@pytest.mark.exercise("with_capacity", weight=0.5)
def test_experts_that_nobody_wants_do_no_harm(student: Student) -> None:
    """n_experts may be larger than any number in experts, and with room enough nothing is dropped."""
    weights, experts = routing(6, 3, 2, 60)
    for n_experts, factor in ((16, 0.25), (3, 3.0), (7, 7.0)):
        left, kept = limited(student, weights, experts, n_experts, factor)
        room = math.ceil(factor * 12 / n_experts)
        assert_close(left, weights * serve(weights, experts, room), claim=f"{n_experts} experts, factor {factor}")
        assert_close(kept, serve(weights, experts, room), claim=f"{n_experts} experts, factor {factor}", name="kept")


@pytest.mark.exercise("with_capacity", weight=0.5)
def test_what_goes_in_keeps_its_dtype_and_its_values(student: Student) -> None:
    """bfloat16 weights stay bfloat16, and neither weights nor experts are changed in place."""
    weights, experts = routing(8, 4, 2, 70)
    for dtype in (torch.bfloat16, torch.float64):
        ours = weights.to(dtype)
        kept = {"weights": student.put(ours), "experts": student.put(experts)}
        left, _ = pair(student.with_capacity(*kept.values(), 4, 0.5), "with_capacity", (8, 2), "kept")
        assert_close(left, ours * serve(weights, experts, 2), claim=f"{str(dtype)[6:]} weights", name="weights")
        for name, value in {"weights": ours, "experts": experts}.items():
            assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)
    many, experts = torch.full((600, 1), 0.5).bfloat16(), torch.zeros(600, 1, dtype=torch.int64)
    _, served = limited(student, many, experts, 2, 1.0)
    assert_close(served, serve(many, experts, 300), claim="600 tokens, weights in bfloat16", name="kept")


# -- expert_choice --------------------------------------------------------------------------------------------------


def choice(student: Student, logits: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """weights and tokens, checked so far that a dense picture of them can be made."""
    n, n_experts = logits.shape
    found = pair(student.expert_choice(logits, capacity), "expert_choice", (n_experts, min(capacity, n)), "tokens")
    tensor(found[1], dtype=torch.int64, name="tokens")
    assert bool(((found[1] >= 0) & (found[1] < n)).all()), f"tokens holds a number that is no position of {n} tokens."
    return found


def chosen(tokens: Tensor, n: int) -> Tensor:
    """Who takes whom, [n_experts, tokens], in no order."""
    return torch.zeros(len(tokens), n, dtype=torch.bool).scatter(-1, tokens, True)


def experts_turn(logits: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Expert by expert, with sorted lists."""
    p = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
    rows = [sorted(zip((-column).tolist(), range(len(p)), strict=True))[:capacity] for column in p.T]
    tokens = torch.tensor([[token for _, token in row] for row in rows])
    return p.T.gather(-1, tokens).float(), tokens


@pytest.mark.exercise("expert_choice", weight=2)
def test_each_expert_takes_the_tokens_that_want_it_most(student: Student) -> None:
    """Of every column of probabilities an expert takes the highest: softmax over experts, choice over tokens."""
    for seed, (n, n_experts, capacity) in enumerate(((24, 5, 6), (9, 4, 2), (12, 3, 5), (7, 7, 1))):
        logits = normal(n, n_experts, seed=seed)
        _, tokens = choice(student, logits, capacity)
        expected = chosen(experts_turn(logits, capacity)[1], n)
        claim = f"{n} tokens, {n_experts} experts, capacity {capacity}"
        assert_close(chosen(tokens, n), expected, claim=claim, name="who is taken")


@pytest.mark.exercise("expert_choice", weight=2)
def test_the_weights_are_the_probabilities_of_the_tokens_taken(student: Student) -> None:
    """A weight is the token's softmax over the experts, as it is: not divided by a sum, not a softmax over tokens."""
    for seed, (n, n_experts, capacity) in enumerate(((9, 4, 2), (12, 3, 5))):
        logits = 2 * normal(n, n_experts, seed=10 + seed)
        weights, tokens = choice(student, logits, capacity)
        p = logits.softmax(-1).T
        assert_close(weights, p.gather(-1, tokens), claim=f"{n} tokens, {n_experts} experts", name="weights")
        assert_close(
            weights.sort(-1).values, p.topk(capacity).values.sort(-1).values, claim="whatever the order", name="weights"
        )


@pytest.mark.exercise("expert_choice")
def test_every_expert_takes_the_same_number_of_tokens(student: Student) -> None:
    """Perfect balance: each row holds `capacity` different tokens, also where all tokens prefer one expert."""
    logits = normal(8, 4, seed=20)
    logits[:, 1] += 6
    weights, tokens = choice(student, logits, 3)
    assert (chosen(tokens, 8).sum(-1) == 3).all(), "An expert takes the same token more than once."
    assert weights[1].min() > weights[0].max(), "The weights of the expert that everybody prefers are not the largest."


@pytest.mark.exercise("expert_choice")
def test_the_largest_probability_comes_first(student: Student) -> None:
    """Within a row, tokens and weights go from the largest probability to the smallest."""
    logits = normal(10, 4, seed=30)
    weights, tokens = choice(student, logits, 6)
    expected = experts_turn(logits, 6)
    assert_close(tokens, expected[1], name="tokens")
    assert_close(weights, expected[0], name="weights")


@pytest.mark.exercise("expert_choice")
def test_a_later_token_takes_the_place_of_an_earlier_one(student: Student) -> None:
    """Experts choose among all tokens: whoever wants them more is taken, wherever it stands."""
    logits = torch.tensor([[2.0, 0], [1, 0], [0, 1], [0, 2]])
    _, before = choice(student, logits, 2)
    changed = logits.clone()
    changed[3] = torch.tensor([9.0, 0])  # the last token now wants expert 0, and more than anybody
    _, after = choice(student, changed, 2)
    assert set(before[0].tolist()) == {0, 1}, "Expert 0 does not take the two tokens that want it most."
    assert set(after[0].tolist()) == {0, 3}, "When the last token wants expert 0 most, it does not get its place."


@pytest.mark.exercise("expert_choice", weight=0.5)
def test_an_expert_takes_all_tokens_where_there_are_few(student: Student) -> None:
    """If the capacity is larger than the number of tokens, every expert takes all of them."""
    logits = normal(3, 5, seed=40)
    weights, tokens = choice(student, logits, 4)
    expected = experts_turn(logits, 3)
    assert_close(tokens, expected[1], claim="3 tokens, capacity 4", name="tokens")
    assert_close(weights, expected[0], claim="3 tokens, capacity 4", name="weights")


@pytest.mark.exercise("expert_choice")
def test_the_weights_pass_gradients_to_the_logits(student: Student) -> None:
    """The router learns through the weights: their gradient is that of the softmax over the experts."""
    logits = normal(6, 4, seed=50).requires_grad_()
    weights, tokens = choice(student, logits, 2)
    upstream = normal(4, 2, seed=51)
    expected = gradients(logits.softmax(-1).T.gather(-1, tokens), upstream, x=logits)["x"]
    assert_close(gradients(weights, upstream, x=logits)["x"], expected, name="the gradient of the logits")


@pytest.mark.exercise("expert_choice", weight=0.5)
def test_bfloat16_logits_are_compared_in_float32(student: Student) -> None:
    """In bfloat16 many probabilities become equal: take the softmax in float32, then cast only the weights."""
    order = normal(16, seed=60).argsort()
    near = torch.stack([order * 2.0**-11, torch.zeros(16)], -1).bfloat16()  # probabilities from 0.5 to 0.502
    for logits, capacity in ((near, 4), (normal(30, 4, seed=61, dtype=torch.bfloat16), 8)):
        weights, tokens = choice(student, logits, capacity)
        expected = experts_turn(logits, capacity)
        assert_close(
            chosen(tokens, len(logits)), chosen(expected[1], len(logits)), claim="bfloat16", name="who is taken"
        )
        assert_close(weights, expected[0].bfloat16(), atol=1e-2, claim="bfloat16", name="weights")


@pytest.mark.exercise("expert_choice", weight=0.5)
def test_the_choice_leaves_the_logits_as_they_were(student: Student) -> None:
    """The logits belong to the caller: an operation that ends in _ changes them."""
    logits = normal(6, 4, seed=70)
    kept = student.put(logits)
    _, tokens = pair(student.expert_choice(kept, 2), "expert_choice", (4, 2), "tokens")
    assert_close(tokens, experts_turn(logits, 2)[1], name="tokens")
    assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="logits")


# -- bias_update ----------------------------------------------------------------------------------------------------


def biased(student: Student, logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """weights and experts; each token's experts are different."""
    n, n_experts = logits.shape
    weights, experts = pair(student.route_with_bias(logits, bias, top_k), "route_with_bias", (n, top_k), "experts")
    tensor(experts, dtype=torch.int64, name="experts")
    assert bool(((experts >= 0) & (experts < n_experts)).all()), f"experts holds a number that is none of {n_experts}."
    return weights, experts


def gets(experts: Tensor, n_experts: int) -> Tensor:
    """Who goes where, [tokens, n_experts], in no order."""
    return torch.zeros(len(experts), n_experts, dtype=torch.bool).scatter(-1, experts, True)


def best(scores: Tensor, top_k: int) -> Tensor:
    """The same picture of the highest scores of each row."""
    return scores >= scores.sort(-1, descending=True).values[:, top_k - 1, None]


BIASES = ((40, 5, 2), (7, 8, 3), (12, 4, 1))


@pytest.mark.exercise("bias_update", weight=2)
def test_probability_plus_bias_decides_who_is_chosen(student: Student) -> None:
    """The top_k experts with the highest p + b are chosen; the bias is added to probabilities, not to logits."""
    for seed, (n, n_experts, top_k) in enumerate(BIASES):
        logits, bias = 2 * normal(n, n_experts, seed=seed), 0.3 * normal(n_experts, seed=10 + seed)
        _, experts = biased(student, logits, bias, top_k)
        expected = best(logits.softmax(-1) + bias, top_k)
        assert_close(gets(experts, n_experts), expected, claim=f"{n_experts} experts, top_k {top_k}", name="the choice")


@pytest.mark.exercise("bias_update", weight=2)
def test_the_bias_is_not_in_the_weights(student: Student) -> None:
    """A weight is p divided by the sum of the chosen p: two biases that choose the same give the same weights."""
    for seed, (n, n_experts, top_k) in enumerate(BIASES[:2]):
        logits, bias = 2 * normal(n, n_experts, seed=20 + seed), 0.3 * normal(n_experts, seed=30 + seed)
        weights, experts = biased(student, logits, bias, top_k)
        p = logits.softmax(-1).gather(-1, experts)
        expected = p / p.sum(-1, keepdim=True)
        assert_close(weights, expected, claim=f"{n_experts} experts, top_k {top_k}", name="weights")
        assert (weights.max() - weights.min()) > 0.01, "All weights are the same."
    logits = torch.tensor([[1.0, 0.5, -3], [0.2, 0.9, -2]])
    everywhere = biased(student, logits, torch.tensor([0.9, 0.3, 0]), 2)
    nowhere = biased(student, logits, torch.zeros(3), 2)
    dense = [
        torch.zeros(2, 3).scatter(-1, experts, weights.detach().float()) for weights, experts in (everywhere, nowhere)
    ]
    assert_close(dense[0], dense[1], claim="a bias that changes no choice", name="weights")
    logits = torch.tensor([[0.0, 12, 1, 2]])  # the bias takes two experts that are hardly wanted
    weights, experts = biased(student, logits, torch.tensor([2.0, 0, 2, 0]), 2)
    expected = logits.gather(-1, experts).softmax(-1)
    assert_close(weights, expected, claim="the chosen have small probabilities", name="weights")


@pytest.mark.exercise("bias_update")
def test_without_a_bias_it_is_plain_top_k_routing(student: Student) -> None:
    """A bias of zeros changes nothing: the top-k of the softmax, divided by their sum."""
    logits = normal(9, 6, seed=40)
    weights, experts = biased(student, logits, torch.zeros(6), 2)
    expected = (logits.softmax(-1) * best(logits, 2)) / (logits.softmax(-1) * best(logits, 2)).sum(-1, keepdim=True)
    found = torch.zeros(9, 6).scatter(-1, experts, weights.detach().float())
    assert_close(found, expected, claim="a bias of zeros", name="the weight of each expert")


@pytest.mark.exercise("bias_update")
def test_gradients_reach_the_logits_of_the_router(student: Student) -> None:
    """The router learns through the weights, as it does without a bias."""
    logits, bias = normal(7, 5, seed=50).requires_grad_(), 0.2 * normal(5, seed=51)
    weights, experts = biased(student, logits, bias, 2)
    p = logits.softmax(-1).gather(-1, experts)
    upstream = normal(7, 2, seed=52)
    expected = gradients(p / p.sum(-1, keepdim=True), upstream, x=logits)["x"]
    assert_close(gradients(weights, upstream, x=logits)["x"], expected, name="the gradient of the logits")


@pytest.mark.exercise("bias_update", weight=0.5)
def test_bfloat16_logits_give_bfloat16_weights(student: Student) -> None:
    """The softmax and the choice are made in float32; the weights have the dtype of the logits."""
    far = normal(30, 6, seed=60, dtype=torch.bfloat16)
    near = torch.stack([normal(6, seed=62 + i).argsort() for i in range(5)]).bfloat16() / 2**11  # almost even
    for logits, bias in ((far, 0.02 * normal(6, seed=61)), (near, torch.zeros(6))):
        weights, experts = biased(student, logits, bias, 2)
        tensor(weights, dtype=torch.bfloat16, name="weights")
        assert_close(gets(experts, 6), best(logits.float().softmax(-1) + bias, 2), claim="bfloat16", name="the choice")
        p = logits.float().softmax(-1).gather(-1, experts)
        assert_close(weights, (p / p.sum(-1, keepdim=True)).bfloat16(), atol=1e-2, claim="bfloat16", name="weights")


def moved(student: Student, bias: Tensor, experts: Tensor, rate: float) -> Tensor:
    """The new bias, a tensor of the right shape. Who never moves it earns nothing."""
    found = tensor(student.bias_update(bias, experts, rate), shape=tuple(bias.shape), name="the new bias")
    assert (found != bias).any(), "The bias of an uneven routing does not change."
    return found


@pytest.mark.exercise("bias_update", weight=2)
def test_a_busy_expert_goes_down_and_an_idle_one_up(student: Student) -> None:
    """Above the mean load the bias falls by the rate, below it rises by the rate, however large the difference is."""
    for seed, (n, n_experts, top_k) in enumerate(((11, 4, 2), (9, 5, 1), (20, 7, 3))):
        _, experts = routing(n, n_experts, top_k, 100 + seed)
        bias = 0.1 * normal(n_experts, seed=70 + seed)
        expected = bias.clone()
        for expert in range(n_experts):
            load = sum(row.count(expert) for row in experts.tolist())
            if load * n_experts != n * top_k:
                expected[expert] += 0.02 if load * n_experts < n * top_k else -0.02
        claim = f"{n} tokens, {n_experts} experts, top_k {top_k}"
        assert_close(moved(student, bias, experts, 0.02), expected, atol=1e-6, claim=claim, name="the new bias")


@pytest.mark.exercise("bias_update")
def test_an_expert_with_exactly_the_mean_load_stays(student: Student) -> None:
    """The sign of zero is zero: with the mean load the bias keeps its value."""
    bias = torch.tensor([0.3, -0.1, 0.2, 0.0])
    experts = torch.tensor([[0, 1], [0, 1], [0, 3], [2, 3]])  # loads 3, 2, 1, 2
    found = moved(student, bias, experts, 0.5)
    assert_close(found[[1, 3]], bias[[1, 3]], name="the bias of the experts with the mean load")
    assert_close(found[[0, 2]], torch.tensor([-0.2, 0.7]), name="the bias of the others")
    experts = torch.tensor([0, 0, *range(2, 12)])[:, None]  # ten of twelve have the mean load, 1
    found = moved(student, torch.zeros(12), experts, 0.5)
    assert_close(found[2:], torch.zeros(10), claim="12 experts", name="the bias of the experts with the mean load")


@pytest.mark.exercise("bias_update")
def test_an_expert_that_was_never_chosen_goes_up(student: Student) -> None:
    """A load of 0 is a load too: the experts that nobody chose are counted, also the last ones, and move up."""
    for experts in (torch.tensor([[0], [0], [1]]), torch.tensor([[4], [4], [4]])):
        expected = torch.tensor([-0.1 if i in experts else 0.1 for i in range(6)])
        assert_close(moved(student, torch.zeros(6), experts, 0.1), expected, name="the new bias")


@pytest.mark.exercise("bias_update")
def test_the_rule_brings_a_lopsided_router_into_balance(student: Student) -> None:
    """Applied step after step, choice and update together bring the loads close to each other."""
    logits = normal(64, 4, seed=80) + torch.tensor([2.0, 0, 0, -1])
    bias = torch.zeros(4)
    first = biased(student, logits, bias, 1)[1].flatten().bincount(minlength=4)
    for _ in range(20):
        bias = moved(student, bias, biased(student, logits, bias, 1)[1], 0.04).detach().float()
    last = biased(student, logits, bias, 1)[1].flatten().bincount(minlength=4)
    assert last.max() < first.max() - 10, f"After 20 steps the busiest expert went from {first.max()} to {last.max()}."


@pytest.mark.exercise("bias_update", weight=0.5)
def test_the_old_bias_stays_as_it_was(student: Student) -> None:
    """The new bias is a new tensor; nothing that came in is changed, and a bias changes in no other way."""
    bias, logits = normal(4, seed=90), normal(5, 4, seed=91)
    kept = student.put(bias)
    experts = torch.tensor([[0], [0], [1], [2], [0]])
    new = tensor(student.bias_update(kept, experts, 0.1), shape=(4,), dtype=torch.float32, name="the new bias")
    assert_close((new - bias).abs().max(), torch.tensor(0.1), name="the largest step of the bias")
    pair(student.route_with_bias(logits, kept, 2), "route_with_bias", (5, 2), "experts")
    assert_close(kept.get(), bias, atol=0, rtol=0, claim="after the calls", name="bias")


# -- hash_route -----------------------------------------------------------------------------------------------------


def hashed(student: Student, ids: Tensor, counts: Tensor, n_experts: int) -> Tensor:
    """The experts, [tokens], whatever the weights are, which have a test of their own. Constants earn nothing."""
    _, experts = pair(student.hash_route(ids, counts, n_experts), "hash_route", (len(ids), 1), "experts")
    every = torch.arange(len(counts))
    _, all_of_them = pair(student.hash_route(every, counts, n_experts), "hash_route", (len(counts), 1), "experts")
    assert all_of_them.unique().numel() > 1, "All ids go to the same expert."
    return experts[:, 0].long()


def zipf(vocabulary: int, seed: int) -> Tensor:
    """Counts as text has them, in no order of the ids, some of them equal and some zero."""
    return (
        (300 / torch.arange(1, vocabulary + 1))
        .long()
        .mul(torch.arange(vocabulary) < 0.9 * vocabulary)[normal(vocabulary, seed=seed).argsort()]
    )


def dealt(counts: Tensor, n_experts: int) -> Tensor:
    """Which expert gets each id: a pile for each, the next id to the lowest one."""
    piles, table = [(0, i) for i in range(n_experts)], {}
    for count, token in sorted((-c, t) for t, c in enumerate(counts.tolist())):
        total, expert = min(piles)
        piles[piles.index((total, expert))] = (total - count, expert)
        table[token] = expert
    return torch.tensor([table[t] for t in range(len(counts))])


@pytest.mark.exercise("hash_route", weight=2)
def test_ids_are_dealt_out_commonest_first(student: Student) -> None:
    """From the commonest id to the rarest, each goes to the expert whose ids have the smallest total count so far."""
    for seed, (vocabulary, n_experts) in enumerate(((30, 4), (50, 3), (17, 8))):
        counts = (1 + normal(vocabulary, seed=seed).abs() * 1000).long()  # no two alike
        ids = torch.cat([torch.arange(vocabulary).flip(0), torch.arange(vocabulary // 3)])
        found = hashed(student, ids, counts, n_experts)
        assert_close(
            found, dealt(counts, n_experts)[ids], claim=f"{vocabulary} ids, {n_experts} experts", name="experts"
        )
    counts = torch.tensor([3_000_000_001, 3_000_000_000, 7, 5, 4, 2])  # of a trillion tokens: float32 loses the last
    found = hashed(student, torch.arange(6), counts, 2)
    assert_close(found, dealt(counts, 2), claim="counts of billions", name="experts")


@pytest.mark.exercise("hash_route")
def test_the_expert_depends_on_the_id_alone(student: Student) -> None:
    """The same id goes to the same expert at every place, in every text, and in every call."""
    counts = zipf(40, seed=5)
    ids = (normal(60, seed=6).abs() * 13).long() % 40
    found = hashed(student, ids, counts, 4)
    for other, claim in ((ids.flip(0), "the text backwards"), (ids[20:], "a part of the text"), (ids, "once more")):
        again = hashed(student, other, counts, 4)
        expected = {"the text backwards": found.flip(0), "a part of the text": found[20:]}.get(claim, found)
        assert_close(again, expected, claim=claim, name="experts")


@pytest.mark.exercise("hash_route")
def test_the_training_text_is_shared_out_evenly(student: Student) -> None:
    """Over the training text nobody gets clearly more than an even share, unless one id alone is more than that."""
    counts = zipf(80, seed=7)
    found = hashed(student, torch.arange(80), counts, 5)
    load = torch.zeros(5, dtype=torch.int64).index_add(0, found.clamp(0, 4), counts)
    fair = max(counts.sum().item() / 5, counts.max().item())
    assert load.max() <= 1.05 * fair, (
        f"Over the training text the experts get from {load.min()} to {load.max()} tokens."
    )


@pytest.mark.exercise("hash_route")
def test_equal_counts_go_by_the_smaller_number(student: Student) -> None:
    """Of equally frequent ids the smaller goes first; of experts with the same total the smaller number gets it."""
    for counts in (torch.full((10,), 4), torch.tensor([2, 5, 2, 5, 5, 2, 2, 5]), zipf(60, seed=8)):
        ids = torch.arange(len(counts))
        assert_close(hashed(student, ids, counts, 3), dealt(counts, 3), claim="equal counts", name="experts")


@pytest.mark.exercise("hash_route")
def test_the_counts_are_those_of_the_training_text(student: Student) -> None:
    """The table comes from counts, not from the text that is routed: ids that are rare there may be common here."""
    counts = torch.tensor([90, 50, 40, 30, 20, 10, 0, 0])
    ids = torch.tensor([7, 7, 7, 7, 6, 6, 0])
    assert_close(hashed(student, ids, counts, 3), dealt(counts, 3)[ids], claim="another text", name="experts")


@pytest.mark.exercise("hash_route")
def test_every_hash_weight_is_one(student: Student) -> None:
    """One expert a token: experts is int64 and every weight 1, as float32, both of shape (tokens, 1)."""
    counts = zipf(20, seed=9)
    ids = torch.tensor([3, 19, 4, 4, 0])
    weights, experts = pair(student.hash_route(ids, counts, 4), "hash_route", (5, 1), "experts")
    tensor(experts, dtype=torch.int64, name="experts")
    assert_close(experts[:, 0], dealt(counts, 4)[ids], name="experts")
    assert_close(weights, torch.ones(5, 1), name="weights")


@pytest.mark.exercise("hash_route", weight=0.5)
def test_ids_and_counts_are_left_as_they_were(student: Student) -> None:
    """ids and counts belong to the caller."""
    counts, ids = zipf(20, seed=10), torch.tensor([3, 19, 4, 4, 0])
    kept = {"ids": student.put(ids), "counts": student.put(counts)}
    _, experts = pair(student.hash_route(*kept.values(), 4), "hash_route", (5, 1), "experts")
    assert_close(experts[:, 0].long(), dealt(counts, 4)[ids], name="experts")
    for name, value in {"ids": ids, "counts": counts}.items():
        assert_close(kept[name].get(), value, claim="after the call", name=name)
