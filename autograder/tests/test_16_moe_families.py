"""Hidden tests of chapter 16. Whole models are those of autograder/families.py, proven to be transformers' in
tests/test_families.py; the layers, the counts and Switch are proven in tests/test_moe_families_parity.py.

On this side every expert runs on every token, groups are lists, and texts are routed token by token.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder import families
from autograder.student import Remote, Student, StudentError, assert_close, tensor
from autograder.testing import first_difference, gradients, normal

# -- what is expected -------------------------------------------------------------------------------------------------

RULES = (
    ("mixtral", True),
    ("qwen3_moe", True),
    ("qwen3_moe", False),
    ("gpt_oss", True),
    ("switch", True),
    ("llama4_text", True),
)


def weights_of(logits: Tensor, top_k: int, family: str, renormalise: bool = True) -> tuple[Tensor, Tensor]:
    """Weights in float32 and numbers of the chosen experts, as each family's own code has them."""
    logits = logits.float()
    everything = functional.softmax(logits, -1)
    if family == "llama4_text":
        values, experts = torch.topk(logits, top_k, -1)
        return values.sigmoid(), experts
    if family == "gpt_oss":
        values, experts = torch.topk(logits, top_k, -1)
        return functional.softmax(values, -1), experts
    weights, experts = torch.topk(everything, top_k, -1)
    if family == "mixtral" or (family == "qwen3_moe" and renormalise):
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts


def shares_in_groups(
    logits: Tensor,
    correction: Tensor,
    top_k: int,
    n_groups: int,
    top_groups: int,
    scale: float,
    renormalise: bool = True,
) -> Tensor:
    """The weight of every expert for every token, 0 for those that are not chosen."""
    scores = logits.float().sigmoid()
    chosen = []
    for row in (scores.detach() + correction.detach()).tolist():
        size = len(row) // n_groups
        worth = {g: sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(n_groups)}
        kept = sorted(worth, key=lambda g: worth[g], reverse=True)[:top_groups]
        left = [e for e in range(len(row)) if e // size in kept]
        chosen.append(sorted(left, key=lambda e: row[e], reverse=True)[:top_k])
    mask = torch.zeros_like(scores).scatter(1, torch.tensor(chosen), 1.0)
    weights = scores * mask
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = functional.linear(x, gate_up).chunk(2, -1)
    return functional.linear(functional.silu(gate) * up, down)


def mixture(x: Tensor, w: Mapping[str, Tensor], c: Mapping[str, Any]) -> Tensor:
    """The layer for x [batch, n, d_model] with the weights `w` of a state dict and the fields `c` of a MoEConfig."""
    tokens, family = x.flatten(0, 1), c["family"]
    logits = functional.linear(tokens, w["router.weight"], w.get("router.bias"))
    if family == "deepseek_v3":
        groups = (c["top_k"], c["n_groups"], c["top_groups"], c["scale"], c.get("renormalise", True))
        share = shares_in_groups(logits, w["correction"], *groups)
    else:
        weights, experts = weights_of(logits, c["top_k"], family, c.get("renormalise", True))
        share = torch.zeros_like(logits, dtype=torch.float32).scatter(1, experts, weights)
    share = share.to(x.dtype)
    out = torch.zeros_like(tokens)
    for e in range(c["n_experts"]):
        if family == "gpt_oss":
            gate, up = functional.linear(tokens, w["gate_up"][e], w["gate_up_bias"][e]).chunk(2, -1)
            gate, up = gate.clamp(max=c.get("limit", 7.0)), up.clamp(-c.get("limit", 7.0), c.get("limit", 7.0))
            hidden = gate * torch.sigmoid(c.get("alpha", 1.702) * gate) * (up + 1)
            out = out + share[:, e, None] * functional.linear(hidden, w["down"][e], w["down_bias"][e])
        elif family == "llama4_text":
            out = out + swiglu(share[:, e, None] * tokens, w["gate_up"][e], w["down"][e])
        else:
            out = out + share[:, e, None] * swiglu(tokens, w["gate_up"][e], w["down"][e])
    if c.get("d_shared"):
        both = torch.cat((w["shared.gate_proj.weight"], w["shared.up_proj.weight"]))
        out = out + swiglu(tokens, both, w["shared.down_proj.weight"])
    return out.view_as(x)


def switch(x: Tensor, w: Mapping[str, Tensor], capacity: int) -> Tensor:
    """A layer of the Switch Transformer, one text after the other and token by token."""
    out = torch.zeros_like(x)
    rows = []
    for text in x:
        used = [0] * len(w["up"])
        for token in text:
            probabilities = functional.softmax(w["router.weight"] @ token, -1)
            e = int(probabilities.argmax())
            used[e] += 1
            hidden = functional.relu(w["up"][e] @ token)
            rows.append(probabilities[e] * (w["down"][e] @ hidden) if used[e] <= capacity else 0 * token)
    return torch.stack(rows).view_as(out)


# -- route ------------------------------------------------------------------------------------------------------------

SIZES = ((5, 8, 2), (1, 4, 1), (7, 5, 3), (33, 64, 8), (3, 4, 4), (4, 1, 1))


def routed(out: Any, *sizes: int) -> tuple[Tensor, Tensor]:
    """A routing of these sizes (tokens, experts, top_k), each token's experts different and existing ones."""
    tokens, n_experts, top_k = sizes
    assert isinstance(out, tuple | list), f"A {type(out).__name__} came back, and it should be weights and experts."
    assert len(out) == 2, f"{len(out)} things came back, and it should be two: weights and experts."
    weights = tensor(out[0], shape=(tokens, top_k), name="weights")
    experts = tensor(out[1], shape=(tokens, top_k), dtype=torch.int64, name="experts")
    assert weights.is_floating_point(), f"The weights are {weights.dtype}: are the two results swapped?"
    assert ((experts >= 0) & (experts < n_experts)).all(), "Some number in experts is that of no expert."
    assert experts.sort(-1).values.diff(dim=-1).ne(0).all(), "A token gets the same expert twice."
    return weights, experts


def route(student: Student, logits: Tensor, top_k: int, *args: Any) -> tuple[Tensor, Tensor]:
    return routed(student.route(logits, top_k, *args), *logits.shape, top_k)


def check_weights(student: Student, family: str, *renormalise: bool) -> None:
    for seed, (tokens, n_experts, top_k) in enumerate(SIZES):
        logits = 2 * normal(tokens, n_experts, seed=seed)
        weights, _ = route(student, logits, top_k, family, *renormalise)
        expected = weights_of(logits, top_k, family, *renormalise)[0]
        claim = f"{family}, {tokens} tokens, {n_experts} experts, top_k {top_k}"
        assert_close(weights, expected, claim=claim, name="weights")


@pytest.mark.exercise("route")
def test_the_largest_logits_decide_in_every_family(student: Student) -> None:
    """experts holds the numbers of the top_k largest logits of each token, the largest first, whatever the family."""
    for seed, (tokens, n_experts, top_k) in enumerate(SIZES):
        logits = 2 * normal(tokens, n_experts, seed=seed)
        for family, renormalise in RULES:
            _, experts = route(student, logits, top_k, family, renormalise)
            assert_close(experts, logits.topk(top_k).indices, claim=family, name="experts")


@pytest.mark.exercise("route", weight=1.5)
def test_mixtrals_weights_share_one_among_the_chosen(student: Student) -> None:
    """Mixtral: the softmax over all experts, divided by the sum of the chosen ones."""
    check_weights(student, "mixtral")


@pytest.mark.exercise("route", weight=1.5)
def test_gpt_oss_takes_the_softmax_of_the_chosen_logits(student: Student) -> None:
    """gpt-oss: the softmax runs over the chosen logits, after the choice."""
    check_weights(student, "gpt_oss")


@pytest.mark.exercise("route", weight=1.5)
def test_qwen_renormalises_if_it_is_told(student: Student) -> None:
    """qwen3_moe with renormalise=True, which is also the default, is as Mixtral."""
    check_weights(student, "qwen3_moe", True)
    check_weights(student, "qwen3_moe")


@pytest.mark.exercise("route", weight=1.5)
def test_qwen_leaves_probabilities_as_they_are_if_it_is_told(student: Student) -> None:
    """qwen3_moe with renormalise=False weighs by the probability among all experts."""
    check_weights(student, "qwen3_moe", False)


@pytest.mark.exercise("route", weight=1.5)
def test_switch_weighs_by_the_probability_among_all(student: Student) -> None:
    """Switch: the probability in the softmax over all experts, as it is; with top_k = 1 too."""
    check_weights(student, "switch")


@pytest.mark.exercise("route", weight=1.5)
def test_llama_4_weighs_by_a_sigmoid(student: Student) -> None:
    """Llama 4: the sigmoid of the expert's own logit; the other experts' logits do not matter."""
    check_weights(student, "llama4_text")


@pytest.mark.exercise("route")
def test_renormalise_is_for_qwen_alone(student: Student) -> None:
    """The other families do what the table says, whatever renormalise is."""
    logits = 2 * normal(6, 5, seed=7)
    for family in ("mixtral", "gpt_oss", "switch", "llama4_text"):
        for renormalise in (True, False):
            weights, _ = route(student, logits, 3, family, renormalise)
            assert_close(weights, weights_of(logits, 3, family)[0], claim=f"{family}, {renormalise}", name="weights")


@pytest.mark.exercise("route")
def test_extreme_logits_give_finite_weights(student: Student) -> None:
    """Logits of ±10⁴ give weights between 0 and 1, never NaN or infinity."""
    logits = torch.tensor([[1e4, -1e4, 0.0, 9999.0], [-1e4, -1e4 + 1, -1e4 - 2, -1e4 - 1], [300.0, 200.0, 100.0, 0.0]])
    for family, renormalise in RULES:
        for top_k in (1, 2, 3):
            weights, experts = route(student, logits, top_k, family, renormalise)
            expected = weights_of(logits, top_k, family, renormalise)[0]
            assert_close(weights, expected, claim=f"{family}, logits up to 10⁴", name="weights")
            if family == "llama4_text":  # where the sigmoids of several are 1, or 0
                assert_close(experts, logits.topk(top_k).indices, claim=f"{family}, logits up to 10⁴", name="experts")


@pytest.mark.exercise("route")
def test_the_arithmetic_is_done_in_float32(student: Student) -> None:
    """bfloat16 logits are turned to float32 first; the weights come back as bfloat16."""
    logits = (torch.stack([torch.randperm(16) for _ in range(64)]) / 4 - 2 + normal(64, 1, seed=4)).bfloat16()
    for family, renormalise in RULES:
        weights, experts = route(student, logits, 4, family, renormalise)
        expected = weights_of(logits, 4, family, renormalise)[0].bfloat16()
        assert_close(logits.gather(1, experts), logits.topk(4).values, name="the chosen bfloat16 logits")
        assert_close(weights, expected, atol=0, rtol=1e-6, claim=f"{family}, bfloat16", name="weights")


@pytest.mark.exercise("route")
def test_the_router_of_every_family_learns(student: Student) -> None:
    """The gradient of the logits goes through softmax or sigmoid, also with a single expert a token."""
    for family, renormalise in RULES:
        for top_k in (1, 2, 4):
            logits, upstream = normal(5, 6, seed=6).requires_grad_(), normal(5, top_k, seed=7)
            expected = weights_of(logits, top_k, family, renormalise)[0]
            wanted = gradients(expected, upstream, logits=logits)["logits"]
            weights, _ = route(student, logits, top_k, family, renormalise)
            found = gradients(weights, upstream, logits=logits)["logits"]
            assert_close(found, wanted, claim=f"{family}, top_k {top_k}", name="the gradient of the logits")


@pytest.mark.exercise("route", weight=0.5)
def test_an_unknown_family_is_a_value_error(student: Student) -> None:
    """A name that is none of the five raises ValueError; the five do not."""
    logits = normal(3, 4, seed=8)
    for family, renormalise in RULES:
        weights, _ = route(student, logits, 2, family, renormalise)
        assert_close(weights, weights_of(logits, 2, family, renormalise)[0], claim=family, name="weights")
    for family in ("deepseek_v3", "Mixtral", "llama4", "qwen2_moe", ""):
        try:
            student.route(logits, 2, family)
        except ValueError:
            continue
        raise AssertionError(f"route took {family!r} for a family that it knows.")


@pytest.mark.exercise("route", weight=0.5)
def test_ties_and_neighbours_change_nothing(student: Student) -> None:
    """Equal logits give different experts with equal weights; a token alone is routed as in company; logits stay."""
    level = torch.full((3, 8), 0.7)
    for family, renormalise in RULES:
        weights, _ = route(student, level, 2, family, renormalise)
        assert_close(weights, weights_of(level, 2, family, renormalise)[0], claim=f"{family}, a tie", name="weights")
        logits = 2 * normal(7, 6, seed=3)
        kept = student.put(logits)
        weights, experts = routed(student.route(kept, 2, family, renormalise), 7, 6, 2)
        assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="the logits")
        alone, chosen = route(student, logits[3:4], 2, family, renormalise)
        assert_close(chosen, experts[3:4], claim=f"{family}, one token alone", name="experts")
        assert_close(alone, weights[3:4], claim=f"{family}, one token alone", name="weights")
        assert_close(alone, weights_of(logits[3:4], 2, family, renormalise)[0], claim=family, name="weights")


# -- route_in_groups --------------------------------------------------------------------------------------------------

GROUPS = (
    (5, 8, 2, 4, 2),
    (33, 64, 8, 8, 4),
    (7, 12, 3, 3, 1),
    (4, 6, 4, 3, 2),
    (1, 16, 2, 2, 1),
    (6, 8, 5, 1, 1),
    (9, 8, 1, 4, 4),
)


def in_groups(student: Student, logits: Tensor, *args: Any) -> Tensor:
    """The student's weight for every expert and token: the order of the experts is theirs."""
    weights, experts = routed(student.route_in_groups(logits, *args), *logits.shape, args[1])
    return torch.zeros(logits.shape, dtype=weights.dtype).scatter(1, experts, weights)


def check_groups(student: Student, spread: float, *rest: Any, shift: float = 0.0, scale: float = 2.5) -> None:
    for seed, (tokens, n_experts, top_k, n_groups, top_groups) in enumerate(GROUPS):
        logits = 2 * normal(tokens, n_experts, seed=seed)
        correction = spread * normal(n_experts, seed=seed + 50) + shift
        args = (correction, top_k, n_groups, top_groups, scale, *rest)
        claim = f"{n_experts} experts, {n_groups} groups, {top_groups} stay, top_k {top_k}"
        found = in_groups(student, logits, *args)
        assert_close(found, shares_in_groups(logits, *args), claim=claim, name="the weight of every expert")


@pytest.mark.exercise("route_in_groups", weight=2)
def test_experts_come_from_the_best_groups(student: Student) -> None:
    """With no correction: the best groups stay, and the best experts in them are chosen."""
    check_groups(student, 0.0)


@pytest.mark.exercise("route_in_groups", weight=1.5)
def test_a_group_is_worth_its_two_best(student: Student) -> None:
    """Not its best expert alone, nor its mean, nor the sum of all its experts."""
    logits = torch.tensor([[4.0, -6, -6, -6, 2, 2, -6, -6, 1, 1, 1, 1]])  # a star; a pair; four that are middling
    expected = shares_in_groups(logits, torch.zeros(12), 2, 3, 1, 1.0)
    assert_close(in_groups(student, logits, torch.zeros(12), 2, 3, 1, 1.0), expected, name="the weight of every expert")
    logits = torch.tensor([[0.0, 0, 0, 0, 2, -9, -9, -9, 1, 1, -9, -9]])
    expected = shares_in_groups(logits, torch.zeros(12), 3, 3, 2, 1.0)
    assert_close(in_groups(student, logits, torch.zeros(12), 3, 3, 2, 1.0), expected, name="the weight of every expert")


@pytest.mark.exercise("route_in_groups", weight=1.5)
def test_the_correction_chooses_and_does_not_weigh(student: Student) -> None:
    """Groups and experts are chosen by corrected scores; the weights are scores without the correction."""
    check_groups(student, 0.5)


@pytest.mark.exercise("route_in_groups", weight=1.5)
def test_negative_corrections_leave_the_choice_to_the_best_groups(student: Student) -> None:
    """However low corrected scores are, an expert of a group that is out is never chosen."""
    check_groups(student, 0.3, shift=-3.0)
    check_groups(student, 2.0, shift=-10.0)
    check_groups(student, 0.3, shift=5.0)


@pytest.mark.exercise("route_in_groups")
def test_weights_are_renormalised_only_if_told(student: Student) -> None:
    """With renormalise=False a weight is scale times the score; without a sixth argument it is renormalised."""
    check_groups(student, 0.3, False)
    check_groups(student, 0.3, True)


@pytest.mark.exercise("route_in_groups")
def test_the_scale_multiplies_every_weight(student: Student) -> None:
    """A scale of 1 gives weights that sum to 1, a scale of 0.7 such that sum to 0.7; renormalised or not."""
    for scale in (1.0, 0.7, 4.0):
        check_groups(student, 0.3, scale=scale)
        check_groups(student, 0.3, False, scale=scale)


@pytest.mark.exercise("route_in_groups", weight=0.5)
def test_scores_of_zero_give_weights_of_zero(student: Student) -> None:
    """Logits of −10⁴ have scores of 0; dividing by their sum plus 10⁻²⁰ gives 0, not NaN. Large ones are finite."""
    tiny = 2 * normal(2, 8, seed=2) - 25  # scores far below any other epsilon
    logits = torch.cat((torch.full((2, 8), -1e4), torch.full((1, 8), 1e4), 2 * normal(2, 8, seed=1), tiny))
    args = (torch.linspace(-1, 1, 8), 3, 4, 2, 2.5)
    found = in_groups(student, logits, *args)
    assert_close(found, shares_in_groups(logits, *args), claim="far from zero", name="the weight of every expert")


@pytest.mark.exercise("route_in_groups")
def test_the_gradient_goes_through_the_scores(student: Student) -> None:
    """The gradient of the logits goes through sigmoid and division."""
    for renormalise in (True, False):
        logits, correction = normal(5, 8, seed=2).requires_grad_(), 0.5 * normal(8, seed=3)
        args, upstream = (correction, 3, 4, 2, 2.5, renormalise), normal(5, 8, seed=4)
        wanted = gradients(shares_in_groups(logits, *args), upstream, logits=logits)["logits"]
        found = gradients(in_groups(student, logits, *args), upstream, logits=logits)["logits"]
        assert_close(found, wanted, claim=f"renormalise={renormalise}", name="the gradient of the logits")


@pytest.mark.exercise("route_in_groups")
def test_groups_are_chosen_in_float32(student: Student) -> None:
    """bfloat16 logits are turned to float32 before the sigmoid; the weights come back as bfloat16."""
    logits = (torch.stack([torch.randperm(16) for _ in range(64)]) / 4 - 2).bfloat16()
    correction = 0.01 * normal(16, seed=5)
    for renormalise in (True, False):
        args = (correction, 4, 4, 2, 2.5, renormalise)
        found = in_groups(student, logits, *args)
        expected = shares_in_groups(logits, *args).bfloat16()
        assert_close(found, expected, atol=0, rtol=1e-6, claim="bfloat16 logits", name="the weight of every expert")


@pytest.mark.exercise("route_in_groups", weight=0.5)
def test_if_all_groups_stay_it_is_an_ordinary_choice(student: Student) -> None:
    """With top_groups = n_groups the groups do not matter: the best corrected scores of all are chosen."""
    logits, correction = 2 * normal(6, 12, seed=6), 0.3 * normal(12, seed=7)
    scores = logits.sigmoid()
    chosen = (scores + correction).topk(4).indices
    expected = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    for n_groups in (1, 2, 3, 6):
        found = in_groups(student, logits, correction, 4, n_groups, n_groups, 1.0, False)
        assert_close(found, expected, claim=f"{n_groups} of {n_groups} groups", name="the weight of every expert")


@pytest.mark.exercise("route_in_groups", weight=0.5)
def test_logits_and_corrections_are_left_as_they_were(student: Student) -> None:
    """Both belong to the caller; and a token alone is routed as in company."""
    logits, correction = 2 * normal(5, 8, seed=8), normal(8, seed=9)
    kept, own = student.put(logits), student.put(correction)
    args = (2, 4, 2, 2.5)
    weights, experts = routed(student.route_in_groups(kept, own, *args), 5, 8, 2)
    found = torch.zeros(5, 8).scatter(1, experts, weights)
    assert_close(found, shares_in_groups(logits, correction, *args), name="the weight of every expert")
    assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="the logits")
    assert_close(own.get(), correction, atol=0, rtol=0, claim="after the call", name="the correction")
    alone = in_groups(student, logits[2:3], correction, *args)
    assert_close(alone, found[2:3], claim="one token alone", name="the weight of every expert")


# -- unpack_experts ---------------------------------------------------------------------------------------------------

PLAIN = ("mixtral", "qwen3_moe", "deepseek_v3")


def packed(family: str, e: int, h: int, d: int, *, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A layer's experts as transformers keeps them, and as the course does; packed number by number."""
    gate, up, down = normal(e, h, d, seed=seed), normal(e, h, d, seed=seed + 1), normal(e, d, h, seed=seed + 2)
    ours = {"gate_up": torch.cat((gate, up), 1), "down": down}
    if family in PLAIN:
        return {"gate_up_proj": ours["gate_up"].clone(), "down_proj": down.clone()}, ours
    if family == "llama4_text":
        return {"gate_up_proj": ours["gate_up"].mT.contiguous(), "down_proj": down.mT.contiguous()}, ours
    bias, theirs = normal(e, 2, h, seed=seed + 3), torch.empty(e, d, 2 * h)
    for row in range(h):
        theirs[:, :, 2 * row], theirs[:, :, 2 * row + 1] = gate[:, row], up[:, row]
    ours |= {"gate_up_bias": bias.flatten(1), "down_bias": normal(e, d, seed=seed + 4)}
    return {
        "gate_up_proj": theirs,
        "gate_up_proj_bias": bias.mT.flatten(1),
        "down_proj": down.mT.contiguous(),
        "down_proj_bias": ours["down_bias"].clone(),
    }, ours


def unpacked(student: Student, tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    found = student.unpack_experts(tensors, family)
    assert isinstance(found, dict), f"unpack_experts gives a {type(found).__name__}, and it should give a dict."
    return found


def check_layout(student: Student, family: str, *sizes: tuple[int, int, int]) -> None:
    for seed, (e, h, d) in enumerate(sizes):
        theirs, ours = packed(family, e, h, d, seed=10 * seed)
        found = unpacked(student, theirs, family)
        for name in ("gate_up", "down"):
            assert_close(found.get(name), ours[name], atol=0, rtol=0, claim=f"{family}, E {e}, h {h}, d {d}", name=name)


@pytest.mark.exercise("unpack_experts")
def test_plain_layouts_are_ours_already(student: Student) -> None:
    """Mixtral, Qwen3-MoE and DeepSeek-V3 store gate rows first, each slice as nn.Linear does."""
    for family in PLAIN:
        check_layout(student, family, (4, 5, 7), (3, 4, 4), (2, 3, 6))


@pytest.mark.exercise("unpack_experts", weight=1.5)
def test_llama_4_is_turned_round(student: Student) -> None:
    """Llama 4 stores [expert, in, out]: gate columns first, and both matrices the other way round."""
    check_layout(student, "llama4_text", (4, 5, 7), (2, 6, 9))


@pytest.mark.exercise("unpack_experts", weight=2)
def test_gpt_oss_takes_turns(student: Student) -> None:
    """gpt-oss stores [expert, in, out] and the columns gate, up, gate, up, …"""
    check_layout(student, "gpt_oss", (4, 5, 7), (2, 6, 9))


@pytest.mark.exercise("unpack_experts")
def test_square_matrices_are_turned_too(student: Student) -> None:
    """Where d equals h or 2h, shapes do not tell what to do: the family does."""
    for family in ("llama4_text", "gpt_oss", "mixtral"):
        check_layout(student, family, (3, 6, 6), (2, 4, 8), (1, 2, 2))


@pytest.mark.exercise("unpack_experts")
def test_biases_are_sorted_like_their_rows(student: Student) -> None:
    """gate_up_bias belongs to the rows of gate_up: the gate's entries first. down_bias is as it is."""
    for seed, (e, h, d) in enumerate(((4, 5, 7), (2, 4, 4), (3, 1, 2))):
        theirs, ours = packed("gpt_oss", e, h, d, seed=100 + 10 * seed)
        found = unpacked(student, theirs, "gpt_oss")
        for name in ("gate_up_bias", "down_bias"):
            assert_close(found.get(name), ours[name], atol=0, rtol=0, claim=f"E {e}, h {h}, d {d}", name=name)


@pytest.mark.exercise("unpack_experts", weight=0.5)
def test_the_names_are_those_of_the_course(student: Student) -> None:
    """gate_up and down, for gpt-oss also the two biases; no others, and every tensor right."""
    for family in (*PLAIN, "llama4_text", "gpt_oss"):
        theirs, ours = packed(family, 3, 4, 5, seed=7)
        found = unpacked(student, theirs, family)
        assert set(found) == set(ours), f"{family}: the names are {sorted(map(str, found))}."
        for name, value in ours.items():
            assert_close(found[name], value, atol=0, rtol=0, claim=family, name=name)


@pytest.mark.exercise("unpack_experts", weight=0.5)
def test_unpacking_keeps_dtypes_and_leaves_the_file_alone(student: Student) -> None:
    """bfloat16 stays bfloat16, and the packed tensors are as they were."""
    for family in ("gpt_oss", "llama4_text"):
        theirs, ours = ({k: v.bfloat16() for k, v in each.items()} for each in packed(family, 2, 3, 4, seed=8))
        kept = student.put(theirs)
        found = student.unpack_experts(kept, family)
        assert isinstance(found, dict), f"unpack_experts gives a {type(found).__name__}, and it should give a dict."
        for name, value in ours.items():
            assert_close(found.get(name), value, atol=0, rtol=0, claim=f"{family}, bfloat16", name=name)
        after = kept.get()
        assert isinstance(after, dict), "The dict of packed tensors was changed."
        for name, value in theirs.items():
            assert_close(after.get(name), value, atol=0, rtol=0, claim="after the call", name=name)


# -- MoELayer ---------------------------------------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "mixtral": {"d_model": 6, "d_hidden": 5, "n_experts": 4, "top_k": 2},
    "qwen3_moe": {"d_model": 6, "d_hidden": 3, "n_experts": 7, "top_k": 3, "renormalise": False},
    "gpt_oss": {"d_model": 5, "d_hidden": 5, "n_experts": 4, "top_k": 2},
    "deepseek_v3": {
        "d_model": 7, "d_hidden": 4, "n_experts": 12, "top_k": 3, "n_groups": 4, "top_groups": 2, "scale": 2.5,
        "d_shared": 6,
    },
    "llama4_text": {"d_model": 6, "d_hidden": 4, "n_experts": 5, "top_k": 1, "d_shared": 4},
}  # fmt: skip


def shapes_of(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a layer's state dict."""
    n, d, h = c["n_experts"], c["d_model"], c["d_hidden"]
    found: dict[str, tuple[int, ...]] = {"router.weight": (n, d), "gate_up": (n, 2 * h, d), "down": (n, d, h)}
    if c["family"] == "gpt_oss":
        found |= {"router.bias": (n,), "gate_up_bias": (n, 2 * h), "down_bias": (n, d)}
    if c["family"] == "deepseek_v3":
        found |= {"correction": (n,)}
    if s := c.get("d_shared"):
        found |= {"shared.gate_proj.weight": (s, d), "shared.up_proj.weight": (s, d), "shared.down_proj.weight": (d, s)}
    return found


def random_layer(
    family: str, *, seed: int, std: float = 0.6, **changed: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    c = {"family": family, **LAYERS[family], **changed}
    return c, {name: std * normal(*shape, seed=seed + at) for at, (name, shape) in enumerate(shapes_of(c).items())}


def state_of(layer: Remote) -> dict[str, Tensor]:
    found = layer.state_dict()
    assert isinstance(found, dict), f"state_dict() gives a {type(found).__name__}."
    return found


def loaded(student: Student, c: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Remote:
    """The student's layer with these weights, after a look at its names."""
    layer = student.MoELayer(student.MoEConfig(**c))
    assert isinstance(layer, Remote), "MoELayer(config) should be an nn.Module."
    names, wanted = set(state_of(layer)), set(weights)
    assert names == wanted, (
        f"{c['family']}: the state dict "
        + " and ".join(
            f"{verb} {', '.join(sorted(map(str, those)))}"
            for verb, those in (("lacks", wanted - names), ("should not hold", names - wanted))
            if those
        )
        + "."
    )
    try:
        layer.load_state_dict(dict(weights))
    except StudentError as error:
        raise AssertionError(f"{c['family']}: weights of the right shapes cannot be loaded: {error}") from None
    return layer


def check_layer(student: Student, family: str, *, size: float = 1.0, **changed: Any) -> None:
    for seed, (batch, n) in enumerate(((2, 5), (1, 1), (3, 4))):
        c, weights = random_layer(family, seed=20 * seed, **changed)
        x = size * normal(batch, n, c["d_model"], seed=seed + 90)
        expected = mixture(x, weights, c)
        assert_close(loaded(student, c, weights)(x), expected, claim=f"{family}, x {tuple(x.shape)}")


def check_models(student: Student, family: str) -> None:
    """Whole models: the logits, and where they are wrong the first sub-layer that differs."""
    loaded(student, *random_layer(family, seed=0))  # its names, before the decoder has dozens of them
    for seed, config in enumerate(families.TINY[family]):
        state = families.random_state(config, seed + 1)
        ids = torch.randint(config["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(seed))
        trace: dict[str, Tensor] = {}
        expected = families.logits(config, state, ids, trace=trace)
        model = student.Decoder(config)
        try:
            model.load_state_dict(families.course_state(config, state))
        except StudentError as error:
            raise AssertionError(f"{family}: the weights of a whole model cannot be loaded: {error}") from None
        with torch.no_grad():
            found = tensor(model(ids), shape=expected.shape, dtype=expected.dtype, name="the logits")
            if not torch.allclose(found, expected, 1e-4, 1e-4):
                where = first_difference(model, trace, partial(model, ids), atol=1e-4)
                assert_close(found, expected, claim=f"A whole {family}. {where} In the end", name="the logits")


@pytest.mark.exercise("MoELayer", weight=2)
def test_a_whole_mixtral_gives_its_logits(student: Student) -> None:
    """Router, experts and weights of every layer are Mixtral's: the logits are those of transformers."""
    check_models(student, "mixtral")


@pytest.mark.exercise("MoELayer", weight=2)
def test_a_whole_qwen3_moe_gives_its_logits(student: Student) -> None:
    """Renormalised in one model and not in the other, as config.renormalise says, with a dense layer between."""
    check_models(student, "qwen3_moe")


@pytest.mark.exercise("MoELayer", weight=2)
def test_a_whole_gpt_oss_gives_its_logits(student: Student) -> None:
    """Router with bias, experts with biases, clamped, and up + 1."""
    check_models(student, "gpt_oss")


@pytest.mark.exercise("MoELayer", weight=2)
def test_a_whole_deepseek_v3_gives_its_logits(student: Student) -> None:
    """Groups, correction, scale, and a shared expert that is added as it is."""
    check_models(student, "deepseek_v3")


@pytest.mark.exercise("MoELayer", weight=2)
def test_a_whole_llama_4_gives_its_logits(student: Student) -> None:
    """The weight multiplies the expert's input, and the shared expert is added as it is."""
    check_models(student, "llama4_text")


@pytest.mark.exercise("MoELayer")
def test_gpt_oss_clamps_at_the_limit(student: Student) -> None:
    """The gate is clamped from above only, up from both sides, before anything else is done with them."""
    check_layer(student, "gpt_oss", size=20.0, std=0.9)
    check_layer(student, "gpt_oss", size=3.0, limit=0.8)


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_gpt_oss_takes_limit_and_alpha_from_its_config(student: Student) -> None:
    """limit and alpha stand in the config; 7 and 1.702 are only their usual values."""
    check_layer(student, "gpt_oss", size=2.0, limit=1.5, alpha=0.6)


@pytest.mark.exercise("MoELayer")
def test_llama_4_scales_what_goes_in(student: Student) -> None:
    """silu is no straight line: half the input does not give half the output. With one expert a token and with two."""
    check_layer(student, "llama4_text", size=3.0)
    check_layer(student, "llama4_text", top_k=2)


@pytest.mark.exercise("MoELayer")
def test_deepseek_follows_every_field_of_its_config(student: Student) -> None:
    """Other groups, scales, and weights that are not renormalised."""
    check_layer(student, "deepseek_v3", n_groups=3, top_groups=1, scale=0.8)
    check_layer(student, "deepseek_v3", renormalise=False, n_groups=2, top_groups=2)


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_a_shared_expert_is_there_if_it_has_a_width(student: Student) -> None:
    """d_shared = 0 means none; otherwise it is added once for each token, and no router weighs it."""
    check_layer(student, "deepseek_v3", d_shared=0)
    check_layer(student, "llama4_text", d_shared=0)
    check_layer(student, "deepseek_v3", d_shared=3)
    check_layer(student, "mixtral", d_shared=3)


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_the_correction_is_a_buffer(student: Student) -> None:
    """It is stored with the model and begins at zero, and it is no parameter; the layer is right with another one."""
    c, weights = random_layer("deepseek_v3", seed=3)
    layer = student.MoELayer(student.MoEConfig(**c))
    state = state_of(layer)
    assert_close(state.get("correction"), torch.zeros(c["n_experts"]), name="correction of a new layer")
    layer.load_state_dict(weights)
    x = normal(2, 3, c["d_model"], seed=4)
    out = layer(x)
    assert_close(out, mixture(x, weights, c))
    tensor(out).sum().backward()
    grads = student.grads(layer)
    assert "correction" not in grads, "correction is a parameter, so an optimiser would change it: make it a buffer."


@pytest.mark.exercise("MoELayer")
def test_the_layer_of_every_family_learns(student: Student) -> None:
    """Gradients reach the input, the router, the chosen experts and the shared one, and they are right."""
    for family in LAYERS:
        c, weights = random_layer(family, seed=5)
        x, upstream = normal(2, 4, c["d_model"], seed=6).requires_grad_(), normal(2, 4, c["d_model"], seed=7)
        leaves = {name: value.clone().requires_grad_(name != "correction") for name, value in weights.items()}
        learning = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        wanted = dict(
            zip(
                ["x", *learning],
                torch.autograd.grad(mixture(x, leaves, c), [x, *learning.values()], upstream),
                strict=True,
            )
        )
        layer = loaded(student, c, weights)
        out = tensor(layer(x), shape=x.shape)
        assert_close(gradients(out, upstream, x=x)["x"], wanted["x"], claim=family, name="the gradient of x")
        grads = student.grads(layer)
        for name in learning:
            assert_close(grads.get(name), wanted[name], claim=family, name=f"the gradient of {name}")


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_the_layer_works_in_bfloat16_and_leaves_x_alone(student: Student) -> None:
    """A bfloat16 layer gives bfloat16, in every family; x is as it was."""
    for family in LAYERS:
        c, weights = random_layer(family, seed=8)
        if family == "deepseek_v3":
            weights["correction"] = 4 * torch.arange(c["n_experts"]).float()  # nothing nearly tied
        else:
            weights["router.weight"] = 3 * weights["router.weight"]
        half = {name: value.bfloat16() if name != "correction" else value for name, value in weights.items()}
        layer, x = loaded(student, c, weights), normal(1, 3, c["d_model"], seed=9, dtype=torch.bfloat16)
        layer.to(torch.bfloat16)
        kept = student.put(x)
        expected = mixture(x.float(), {name: value.float() for name, value in half.items()}, c).bfloat16()
        assert_close(layer(kept), expected, atol=0.15, rtol=0.05, claim=f"{family}, bfloat16")
        assert_close(kept.get(), x, atol=0, rtol=0, claim=f"{family}, after the call", name="x")


# -- count_parameters -------------------------------------------------------------------------------------------------

PLENTY: dict[str, Any] = {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4}
GPT_OSS = {
    **PLENTY, "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 2880, "num_experts_per_tok": 4,
    "sliding_window": 128, "attention_bias": True, "swiglu_limit": 7.0, "rope_scaling": None,
}  # fmt: skip
QWEN3 = {
    **PLENTY, "model_type": "qwen3_moe", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 4,
    "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip
LLAMA4 = {
    **PLENTY, "model_type": "llama4_text", "vocab_size": 202048, "hidden_size": 5120, "num_hidden_layers": 48,
    "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192,
    "intermediate_size_mlp": 16384, "num_experts_per_tok": 1, "no_rope_layers": [1, 1, 1, 0] * 12,
    "attention_chunk_size": 8192, "use_qk_norm": True, "attn_temperature_tuning": True, "attn_scale": 0.1,
    "floor_scale": 8192,
}  # fmt: skip
MIXTRAL = {
    **PLENTY,
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Mixtral 8x7B": {
        **MIXTRAL, "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 14336,
    },
    "Mixtral 8x22B": {
        **MIXTRAL, "vocab_size": 32768, "hidden_size": 6144, "num_hidden_layers": 56, "num_attention_heads": 48,
        "intermediate_size": 16384,
    },
    "Qwen3-30B-A3B": {
        **QWEN3, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "intermediate_size": 6144,
        "moe_intermediate_size": 768,
    },
    "Qwen3-235B-A22B": {
        **QWEN3, "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
    },
    "gpt-oss-20b": {**GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32},
    "gpt-oss-120b": {**GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128},
    "DeepSeek-V3": {
        **PLENTY, "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    },
    "Llama 4 Scout": {**LLAMA4, "num_local_experts": 16, "interleave_moe_layer_step": 1},
    "Llama 4 Maverick": {**LLAMA4, "num_local_experts": 128, "interleave_moe_layer_step": 2},
}  # fmt: skip


def counted(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(total, active, without the input embedding), from the shapes of transformers' model."""
    total = active = 0
    for name, shape in families.shapes(config).items():
        size = math.prod(shape)
        if name.endswith("e_score_correction_bias"):
            continue
        total += size
        active += size // shape[0] * config["num_experts_per_tok"] if ".experts." in name else size
    table = config["vocab_size"] * config["hidden_size"]
    return total, active, active - (0 if config["tie_word_embeddings"] else table)


def counts_of(student: Student, config: Mapping[str, Any], claim: str) -> tuple[int, int, int]:
    found = student.count_parameters(dict(config))
    assert isinstance(found, tuple | list), (
        f"{claim}: count_parameters gives a {type(found).__name__}, not three numbers."
    )
    assert len(found) == 3, f"{claim}: count_parameters gives {len(found)} numbers, and it should give three."
    assert all(type(each) is int for each in found), f"{claim}: the three numbers should be ints."
    return found[0], found[1], found[2]


def check_counts(
    student: Student, configs: Mapping[str, Mapping[str, Any]], which: tuple[int, ...] = (0, 1, 2)
) -> None:
    names = ("total", "active", "without_embedding")
    for claim, config in configs.items():
        found, right = counts_of(student, config, claim), counted(config)
        for at in which:
            off = found[at] - right[at]
            way = "large" if off > 0 else "small"
            assert not off, (
                f"{claim}: {names[at]} is too {way}, by about {abs(off) / right[at]:.1g} of what it should be."
            )


def variants(family: str) -> dict[str, dict[str, Any]]:
    """Small models of a family, with everything that its table of keys names set otherwise."""
    every: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 4},
        "gpt_oss": {"num_hidden_layers": 5, "num_local_experts": 7, "num_key_value_heads": 2},
        "qwen3_moe": {"num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [0, 3]},
        "deepseek_v3": {"num_hidden_layers": 5, "first_k_dense_replace": 2, "n_shared_experts": 3, "vocab_size": 41},
        "llama4_text": {"num_hidden_layers": 7, "interleave_moe_layer_step": 3, "no_rope_layers": [1] * 7},
    }
    found: dict[str, dict[str, Any]] = {
        f"a small {family}, number {at}": config for at, config in enumerate(families.TINY[family])
    }
    found[f"another {family}"] = {**families.TINY[family][0], **every[family]}
    return found


@pytest.mark.exercise("count_parameters")
def test_mixtral_is_counted(student: Student) -> None:
    """Every layer has experts of intermediate_size; head_dim may be missing."""
    check_counts(student, variants("mixtral"))


@pytest.mark.exercise("count_parameters")
def test_qwen3_moe_is_counted(student: Student) -> None:
    """Layers in mlp_only_layers, and those that decoder_sparse_step passes over, are dense; q and k have norms."""
    check_counts(student, variants("qwen3_moe"))


@pytest.mark.exercise("count_parameters")
def test_gpt_oss_is_counted(student: Student) -> None:
    """Biases in attention, router and experts, and one sink a head."""
    check_counts(student, variants("gpt_oss"))


@pytest.mark.exercise("count_parameters")
def test_deepseek_v3_is_counted(student: Student) -> None:
    """Latent attention with and without q_lora_rank, dense layers first, shared experts; the correction is a buffer."""
    check_counts(student, variants("deepseek_v3"))


@pytest.mark.exercise("count_parameters")
def test_llama_4_is_counted(student: Student) -> None:
    """Every interleave_moe_layer_step-th layer has experts and a shared one; the others are dense and wider."""
    check_counts(student, variants("llama4_text"))


@pytest.mark.exercise("count_parameters")
def test_a_tied_table_counts_once_and_stays_active(student: Student) -> None:
    """Tied, one table is embedding and head: total holds it once, and as the head it multiplies every token."""
    tied = {
        f"a tied {name}": {**configs[0], "tie_word_embeddings": True}
        for name, configs in families.TINY.items()
        if name in LAYERS
    }
    check_counts(student, tied)


@pytest.mark.exercise("count_parameters", weight=1.5)
def test_the_published_models_have_their_totals(student: Student) -> None:
    """Nine published models, to the last parameter."""
    check_counts(student, PUBLISHED, which=(0,))


@pytest.mark.exercise("count_parameters", weight=1.5)
def test_the_published_models_have_their_active_counts(student: Student) -> None:
    """With the input embedding and without it."""
    check_counts(student, PUBLISHED, which=(1, 2))


# -- Mended -----------------------------------------------------------------------------------------------------------


def switch_weights(d: int, h: int, e: int, *, seed: int) -> dict[str, Tensor]:
    return {
        "router.weight": normal(e, d, seed=seed),
        "up": 0.6 * normal(e, h, d, seed=seed + 1),
        "down": 0.6 * normal(e, d, h, seed=seed + 2),
    }


def mended(student: Student, weights: Mapping[str, Tensor], capacity: int) -> Remote:
    e, h, d = weights["up"].shape
    layer = student.Mended(d, h, e, capacity)
    assert isinstance(layer, Remote), "Mended(…) should be an nn.Module."
    state = state_of(layer)
    found = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    wanted = {name: tuple(value.shape) for name, value in weights.items()}
    assert found == wanted, f"The state dict should hold {wanted}, and it holds {found}."
    layer.load_state_dict(dict(weights))
    return layer


def check_switch(student: Student, *sizes: tuple[int, int, int, int]) -> None:
    for seed, (batch, n, e, capacity) in enumerate(sizes):
        weights, x = switch_weights(6, 5, e, seed=10 * seed), normal(batch, n, 6, seed=seed + 3)
        claim = f"{batch} texts of {n} tokens, {e} experts with {capacity} places"
        assert_close(mended(student, weights, capacity)(x), switch(x, weights, capacity), claim=claim)


@pytest.mark.exercise("Mended", weight=3)
def test_several_texts_give_what_switch_gives(student: Student) -> None:
    """With more than one text and few places it gives what transformers' layer gives with the same weights."""
    check_switch(student, (5, 4, 2, 1), (2, 9, 3, 2), (3, 12, 4, 3), (2, 17, 3, 6))


@pytest.mark.exercise("Mended")
def test_what_was_healthy_still_is(student: Student) -> None:
    """One text, or room for all: the first `capacity` tokens are taken, in their order, and the rest get zeros."""
    check_switch(student, (1, 9, 3, 2), (1, 14, 2, 3), (4, 6, 3, 64), (1, 1, 3, 1))
    check_switch(student, (2, 9, 3, 2))


@pytest.mark.exercise("Mended")
def test_a_text_does_not_depend_on_its_company(student: Student) -> None:
    """A text gets the same result alone, in a batch, and at another place of the batch."""
    weights, x = switch_weights(6, 5, 3, seed=40), normal(4, 8, 6, seed=41)
    layer = mended(student, weights, 2)
    together = tensor(layer(x), shape=x.shape).detach()
    for i in range(4):
        alone = tensor(layer(x[i : i + 1]), shape=(1, 8, 6)).detach()
        assert_close(together[i : i + 1], alone, claim=f"text {i}, in company and alone")
    turned = tensor(layer(x.flip(0)), shape=x.shape).detach()
    assert_close(turned, together.flip(0), claim="the texts in the other order")
    assert_close(together, switch(x, weights, 2))


@pytest.mark.exercise("Mended", weight=0.5)
def test_the_mended_layer_learns(student: Student) -> None:
    """Gradients reach x, the experts, and through the weight the router."""
    weights, x = switch_weights(6, 5, 3, seed=50), normal(2, 7, 6, seed=51).requires_grad_()
    upstream = normal(2, 7, 6, seed=52)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    wanted = dict(
        zip(["x", *leaves], torch.autograd.grad(switch(x, leaves, 2), [x, *leaves.values()], upstream), strict=True)
    )
    layer = mended(student, weights, 2)
    found = gradients(tensor(layer(x), shape=x.shape), upstream, x=x)["x"]
    assert_close(found, wanted["x"], name="the gradient of x")
    grads = student.grads(layer)
    for name in leaves:
        assert_close(grads.get(name), wanted[name], name=f"the gradient of {name}")
