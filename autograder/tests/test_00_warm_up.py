"""Hidden tests of chapter 00. Expected values come from PyTorch, laws from theory; none from the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Student, assert_close, tensor
from autograder.testing import gradients, normal

# Where a function has several names, all of them; what only calls another one by its name needs none. PyTorch itself
# needs aten._softmax and aten._log_softmax, for vmap.
RESERVED = {
    "softmax": (
        "torch.softmax",
        "torch.Tensor.softmax",
        "torch.special.softmax",
        "torch.nn.functional.softmax",
        "torch._softmax",
        "torch.sparse.softmax",
        "torch.ops.aten.softmax",
        "torch.nn.functional.scaled_dot_product_attention",  # with identities it is a softmax
    ),
    "cross_entropy": (
        "torch.log_softmax",
        "torch.Tensor.log_softmax",
        "torch.special.log_softmax",
        "torch.nn.functional.log_softmax",
        "torch._log_softmax",
        "torch.ops.aten.log_softmax",
        "torch.nn.functional.cross_entropy",
        "torch._C._nn.cross_entropy_loss",
        "torch.ops.aten.cross_entropy_loss",
    ),
    "linear_backward": (
        "torch.autograd.grad",
        "torch.autograd.backward",  # Tensor.backward calls it
        "torch.autograd.forward_ad.make_dual",  # torch.func.jvp and jacfwd call it
    ),
    "adamw_step": (
        "torch.optim.Adam.step",  # that of AdamW too
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.adam.adam",
        "torch.optim.adamw.adamw",
        "torch.optim._functional.adam",
        "torch.optim._functional.adamw",
        "torch._fused_adam_",
        "torch._fused_adamw_",
    ),
}
INF = float("inf")


# -- softmax --------------------------------------------------------------------------------------------------------


@pytest.mark.exercise("softmax", weight=2)
def test_shares_are_exponentials_over_their_sum(student: Student) -> None:
    """Along the last dimension: e to the power of each score, divided by the sum of these."""
    for seed, shape in enumerate(((2, 5), (7,), (3, 1, 4), (2, 3, 4, 5), (1, 130))):
        x = 3 * normal(*shape, seed=seed)
        assert_close(student.softmax(x), torch.softmax(x, -1), atol=1e-6, claim=f"with x of shape {shape}")


@pytest.mark.exercise("softmax")
def test_shares_add_up_to_one_along_dim(student: Student) -> None:
    """`dim` may be any dimension, counted from the front or from the back."""
    for dim in (0, 1, 2, -1, -2, -3):
        x = 2 * normal(3, 4, 5, seed=dim + 3)
        assert_close(student.softmax(x, dim=dim), torch.softmax(x, dim), atol=1e-6, claim=f"with dim={dim}")


@pytest.mark.exercise("softmax")
def test_only_differences_of_scores_count(student: Student) -> None:
    """The same number added to all scores of one softmax changes no share."""
    x = normal(3, 6, seed=1)
    shares = tensor(student.softmax(x), shape=(3, 6)).detach()
    assert (shares[:, 1:] - shares[:, :-1]).abs().max() > 0.01, "Different scores get the same share."
    for moved in (20.0, -30.0, torch.tensor([[5.0], [-7.0], [11.0]])):
        assert_close(student.softmax(x + moved), shares, atol=1e-5, claim="with all scores of a row moved alike")


@pytest.mark.exercise("softmax")
def test_large_scores_of_either_sign_give_shares(student: Student) -> None:
    """Scores around 10,000 in one row and −10,000 in the next: no exponential may overflow, no sum may vanish."""
    rows = torch.tensor([[10_000.0, 9_999, 9_998], [-10_000, -9_999, -9_998], [10_000, 0, -10_000], [0, 0, 0]])
    assert_close(student.softmax(rows), torch.softmax(rows.double(), -1).float(), atol=1e-3, name="the shares")
    columns = rows.mT.contiguous()
    expected = torch.softmax(columns.double(), 0).float()
    assert_close(student.softmax(columns, dim=0), expected, atol=1e-3, claim="with dim=0", name="the shares")


@pytest.mark.exercise("softmax")
def test_minus_infinity_gets_no_share(student: Student) -> None:
    """A score of −∞ has a share of exactly 0, and the others still add up to 1, however low they are."""
    x = normal(4, 5, seed=1)
    x[0, 2] = x[1, :4] = x[3, 0] = -INF
    x[2] = torch.tensor([-10_000.0, -INF, -10_001, -INF, -10_000])
    shares = tensor(student.softmax(x), shape=(4, 5)).detach()
    assert_close(shares, torch.softmax(x, -1), atol=1e-3, claim="with some scores of −∞", name="the shares")
    assert (shares[x == -INF] == 0).all(), "A score of −∞ has a share above 0."


@pytest.mark.exercise("softmax")
def test_nothing_but_minus_infinity_gives_zeros(student: Student) -> None:
    """Where every score along `dim` is −∞ every share is 0: no NaN, no equal shares. The neighbours are not touched."""
    x = normal(3, 4, seed=1)
    x[1] = -INF
    for dim, scores in ((-1, x), (0, x.mT.contiguous())):
        shares = tensor(student.softmax(scores, dim=dim), shape=scores.shape).detach()
        rows = shares if dim == -1 else shares.mT
        assert_close(rows[1], torch.zeros(4), atol=0, claim=f"with dim={dim}", name="what has no candidate")
        assert_close(rows[[0, 2]], torch.softmax(x[[0, 2]], -1), atol=1e-6, claim=f"with dim={dim}", name="the others")


@pytest.mark.exercise("softmax")
def test_gradients_of_shares_are_those_of_the_formula(student: Student) -> None:
    """Nothing on the way is detached or rebuilt, and large scores have gradients too."""
    for seed, (factor, dim) in enumerate(((1.0, -1), (1.0, 1), (3_000.0, -1))):
        x, upstream = (factor * normal(2, 4, 5, seed=seed)).requires_grad_(), normal(2, 4, 5, seed=10)
        expected = gradients(torch.softmax(x, dim), upstream, x=x)["x"]
        found = gradients(student.softmax(x, dim=dim), upstream, x=x)["x"]
        assert_close(found, expected, atol=1e-5, claim=f"scores of size {factor:g}, dim={dim}", name="the gradient")


@pytest.mark.exercise("softmax")
def test_no_gradient_is_nan_where_scores_are_minus_infinity(student: Student) -> None:
    """A score of −∞, and a row of nothing else, sends back zeros; its neighbours still learn."""
    x = normal(4, 5, seed=1)
    x[0, 2] = x[1, :4] = -INF
    x[2] = -INF
    x, upstream = x.requires_grad_(), normal(4, 5, seed=2)
    found = gradients(student.softmax(x), upstream, x=x)["x"]
    assert found.isfinite().all(), f"{int((~found.isfinite()).sum())} entries of the gradient are NaN or infinite."
    rows = x.detach()[[0, 3]].requires_grad_()
    expected = gradients(torch.softmax(rows, -1), upstream[[0, 3]], x=rows)["x"]
    assert_close(found[[0, 3]], expected, atol=1e-5, name="the gradient of rows that have candidates")
    assert not found[2].any(), "A row of nothing but −∞ has a gradient other than 0."


@pytest.mark.exercise("softmax", weight=0.5)
def test_shares_have_the_dtype_of_the_scores(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and float64 as exact as it can be."""
    x = 2 * normal(3, 7, seed=1, dtype=torch.float64)
    assert_close(student.softmax(x), torch.softmax(x, -1), atol=1e-12, rtol=1e-9, name="the float64 result")
    x[1] = -INF
    expected = torch.softmax(x, -1).nan_to_num(0)
    assert_close(student.softmax(x.bfloat16()), expected.bfloat16(), atol=2e-2, name="the bfloat16 result")


@pytest.mark.exercise("softmax", weight=0.5)
def test_the_scores_are_left_as_they_were(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    x = normal(3, 4, seed=1)
    x[1] = -INF
    kept = student.put(x)
    shares = student.softmax(kept)  # roughly right, at least: doing nothing at all is no merit
    assert_close(shares, torch.softmax(x, -1).nan_to_num(0), atol=0.1, name="the shares")
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- cross_entropy --------------------------------------------------------------------------------------------------


def some_targets(n: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.exercise("cross_entropy", weight=2)
def test_the_loss_is_the_mean_of_minus_log_shares(student: Student) -> None:
    """For each row −ln of the share of its right class, and over the rows the mean, as one number."""
    for seed, (n, classes) in enumerate(((4, 4), (6, 3), (2, 9), (33, 50))):
        logits, targets = 2 * normal(n, classes, seed=seed), some_targets(n, classes, seed)
        expected = functional.cross_entropy(logits, targets)
        assert_close(student.cross_entropy(logits, targets), expected, atol=1e-5, claim=f"{n} rows, {classes} classes")


@pytest.mark.exercise("cross_entropy")
def test_one_row_or_one_class_is_enough(student: Student) -> None:
    """With one row the loss is that row's. With a single class nothing can be wrong, and the loss is 0."""
    logits = normal(1, 5, seed=1)
    expected = functional.cross_entropy(logits, torch.tensor([3]))
    assert_close(student.cross_entropy(logits, torch.tensor([3])), expected, atol=1e-5, claim="one row")
    one_class = student.cross_entropy(normal(4, 1, seed=2), torch.zeros(4, dtype=torch.int64))
    assert_close(one_class, torch.tensor(0.0), atol=1e-5, claim="one class")


@pytest.mark.exercise("cross_entropy")
def test_each_row_has_its_own_right_class(student: Student) -> None:
    """Row r looks up the class targets[r]: exchanging two targets exchanges what the rows cost."""
    logits = torch.diag(torch.tensor([4.0, 6, 8]))  # row r speaks for class r
    for targets in ((0, 1, 2), (1, 2, 0), (2, 2, 2), (0, 0, 1)):
        wanted = torch.tensor(targets)
        found = student.cross_entropy(logits, wanted)
        assert_close(found, functional.cross_entropy(logits, wanted), atol=1e-5, claim=f"with targets {targets}")


@pytest.mark.exercise("cross_entropy")
def test_the_loss_does_not_grow_with_the_batch(student: Student) -> None:
    """Every row twice gives the same loss: it is a mean over the rows, not a sum, and not over the classes."""
    logits, targets = normal(5, 4, seed=1), some_targets(5, 4, seed=1)
    once = tensor(student.cross_entropy(logits, targets), shape=()).detach()
    assert once > 0.1, "The loss of random guesses is nearly 0, or below."
    twice = student.cross_entropy(logits.repeat(2, 1), targets.repeat(2))
    assert_close(twice, once, atol=1e-5, claim="with every row twice", name="the loss")
    hopeless = torch.cat([logits, torch.full((5, 3), -500.0)], 1)
    assert_close(
        student.cross_entropy(hopeless, targets), once, atol=1e-5, claim="with three hopeless classes", name="the loss"
    )


@pytest.mark.exercise("cross_entropy")
def test_only_differences_of_logits_cost(student: Student) -> None:
    """Logits need not be shares: the same number added to a row changes nothing, and they may be negative."""
    logits, targets = normal(5, 4, seed=1), some_targets(5, 4, seed=2)
    expected = functional.cross_entropy(logits, targets)
    moved = normal(5, 1, seed=3) * 50
    assert_close(student.cross_entropy(logits + moved, targets), expected, atol=1e-4, claim="with each row moved")
    sure = torch.full((3, 4), -5.0)
    sure[:, 1] = 15.0
    loss = tensor(student.cross_entropy(sure, torch.tensor([1, 1, 1])), shape=()).detach()
    assert loss.abs() < 1e-4, "A guess that is right and certain still costs something: is softmax applied twice?"


@pytest.mark.exercise("cross_entropy")
def test_large_logits_give_a_finite_loss(student: Student) -> None:
    """Logits of ±10,000: a share too small for a float32 still has a logarithm, about −20,000."""
    logits = torch.tensor([[10_000.0, -10_000, 0], [-10_000, -9_990, -9_995], [10_000, 10_000, 9_999]])
    for targets in ((1, 0, 2), (0, 1, 0), (2, 2, 1)):
        wanted = torch.tensor(targets)
        expected = functional.cross_entropy(logits.double(), wanted).float()
        assert_close(student.cross_entropy(logits, wanted), expected, atol=1e-3, claim=f"with targets {targets}")


@pytest.mark.exercise("cross_entropy")
def test_a_class_of_minus_infinity_costs_nothing(student: Student) -> None:
    """A class with −∞ is no candidate: the loss is that of the others alone, and no gradient is NaN."""
    logits, targets = normal(5, 4, seed=1), torch.tensor([0, 2, 2, 0, 2])
    barred = logits.clone()
    barred[:, [1, 3]] = -INF
    barred.requires_grad_()
    others = logits[:, [0, 2]].clone().requires_grad_()
    expected = functional.cross_entropy(others, targets // 2)
    found = student.cross_entropy(barred, targets)
    assert_close(found, expected, atol=1e-5)
    upstream = torch.tensor(1.0)
    grad, theirs = gradients(found, upstream, x=barred)["x"], gradients(expected, upstream, x=others)["x"]
    assert grad.isfinite().all(), f"{int((~grad.isfinite()).sum())} entries of the gradient are NaN or infinite."
    assert_close(grad[:, [0, 2]], theirs, atol=1e-5, name="the gradient of the candidates")
    assert not grad[:, [1, 3]].any(), "A class with −∞ has a gradient other than 0."


@pytest.mark.exercise("cross_entropy", weight=2)
def test_the_gradient_is_share_minus_truth_over_n(student: Student) -> None:
    """Each row's gradient adds up to 0: (share − 1)/n for the right class and share/n for each other."""
    for seed, (factor, n, classes) in enumerate(((1, 6, 4), (2, 3, 9), (2_000, 5, 5))):
        logits, targets = (factor * normal(n, classes, seed=seed)).requires_grad_(), some_targets(n, classes, seed)
        upstream = torch.tensor(3.0)
        expected = gradients(functional.cross_entropy(logits, targets), upstream, x=logits)["x"]
        found = gradients(student.cross_entropy(logits, targets), upstream, x=logits)["x"]
        assert_close(found, expected, atol=1e-5, claim=f"logits of size {factor}, {n} rows", name="the gradient")


@pytest.mark.exercise("cross_entropy", weight=0.5)
def test_the_loss_has_the_dtype_of_the_logits(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and float64 as exact as it can be."""
    logits, targets = 2 * normal(6, 5, seed=1, dtype=torch.float64), some_targets(6, 5, seed=1)
    expected = functional.cross_entropy(logits, targets)
    assert_close(student.cross_entropy(logits, targets), expected, atol=1e-12, rtol=1e-9, name="the float64 loss")
    rough = student.cross_entropy(logits.bfloat16(), targets)
    assert_close(rough, expected.bfloat16(), atol=6e-2, rtol=2e-2, name="the bfloat16 loss")


@pytest.mark.exercise("cross_entropy", weight=0.5)
def test_logits_and_targets_are_left_as_they_were(student: Student) -> None:
    """Both belong to the caller: an operation that ends in _ changes them."""
    logits, targets = normal(4, 3, seed=1), some_targets(4, 3, seed=1)
    kept = student.put(logits), student.put(targets)
    loss = student.cross_entropy(*kept)  # roughly right, at least: doing nothing at all is no merit
    assert_close(loss, functional.cross_entropy(logits, targets), atol=0.2, name="the loss")
    assert_close(kept[0].get(), logits, atol=0, rtol=0, claim="after the call", name="logits")
    assert_close(kept[1].get(), targets, claim="after the call", name="targets")


# -- linear_backward ------------------------------------------------------------------------------------------------

GRADIENTS = ("grad_x", "grad_weight", "grad_bias")


def parts(found: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What an answer returned, by name, if it returned as many things as it should."""
    assert isinstance(found, tuple | list), f"The answer should be {', '.join(names)}, as a tuple."
    assert len(found) == len(names), f"The answer should be {len(names)} things ({', '.join(names)}), not {len(found)}."
    return dict(zip(names, found, strict=True))


def backwards(student: Student, grad_output: Tensor, x: Tensor, weight: Tensor) -> dict[str, Any]:
    return parts(student.linear_backward(grad_output, x, weight), GRADIENTS)


def autograds(grad_output: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The three gradients as PyTorch finds them."""
    inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    inputs.append(torch.zeros(len(weight), dtype=x.dtype, requires_grad=True))
    found = torch.autograd.grad(functional.linear(*inputs), inputs, grad_output)
    return dict(zip(GRADIENTS, found, strict=True))


def layer(*lead: int, d_in: int, d_out: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """grad_output, x and weight."""
    return normal(*lead, d_out, seed=seed), normal(*lead, d_in, seed=seed + 1), normal(d_out, d_in, seed=seed + 2)


SIZES = ((5, 4, 3), (2, 3, 7), (6, 4, 4), (1, 5, 2), (4, 1, 3), (3, 3, 1), (70, 5, 6))  # n, d_in, d_out


@pytest.mark.exercise("linear_backward", weight=1.5)
def test_the_gradient_of_x(student: Student) -> None:
    """Each number of x goes into every output by a weight: its gradient is the sum of theirs, each by that weight."""
    for seed, (n, d_in, d_out) in enumerate(SIZES):
        inputs = layer(n, d_in=d_in, d_out=d_out, seed=10 * seed)
        found = backwards(student, *inputs)["grad_x"]
        claim = f"{n} rows, d_in {d_in}, d_out {d_out}"
        assert_close(found, autograds(*inputs)["grad_x"], claim=claim, name="grad_x")


@pytest.mark.exercise("linear_backward", weight=1.5)
def test_the_gradient_of_the_weight(student: Student) -> None:
    """Weight [o, i] joins input i and output o: over all rows, the gradient of that output times that input."""
    for seed, (n, d_in, d_out) in enumerate(SIZES):
        inputs = layer(n, d_in=d_in, d_out=d_out, seed=10 * seed)
        found = backwards(student, *inputs)["grad_weight"]
        claim = f"{n} rows, d_in {d_in}, d_out {d_out}"
        assert_close(found, autograds(*inputs)["grad_weight"], claim=claim, name="grad_weight")


@pytest.mark.exercise("linear_backward", weight=1.5)
def test_the_gradient_of_the_bias(student: Student) -> None:
    """The bias is added to every row, so the gradients of all rows add up in it."""
    for seed, (n, d_in, d_out) in enumerate(SIZES):
        inputs = layer(n, d_in=d_in, d_out=d_out, seed=10 * seed)
        found = backwards(student, *inputs)["grad_bias"]
        claim = f"{n} rows, d_in {d_in}, d_out {d_out}"
        assert_close(found, autograds(*inputs)["grad_bias"], claim=claim, name="grad_bias")


@pytest.mark.exercise("linear_backward", weight=1.5)
def test_any_number_of_dimensions_before_the_last(student: Student) -> None:
    """x may be one vector, a batch of vectors, or a batch of sequences: all of its rows add up in weight and bias."""
    for seed, lead in enumerate(((), (1,), (2, 5), (2, 1, 3), (3, 2, 2, 2))):
        inputs = layer(*lead, d_in=4, d_out=3, seed=10 * seed)
        found, expected = backwards(student, *inputs), autograds(*inputs)
        for name in GRADIENTS:
            assert_close(found[name], expected[name], claim=f"with x of shape {tuple(inputs[1].shape)}", name=name)


@pytest.mark.exercise("linear_backward")
def test_gradients_are_linear_in_what_comes_back(student: Student) -> None:
    """Twice the gradient of the output is twice every gradient, and none of it gives zeros."""
    grad_output, x, weight = layer(4, d_in=3, d_out=3, seed=1)
    once = {name: tensor(value).detach() for name, value in backwards(student, grad_output, x, weight).items()}
    twice, none = backwards(student, 2 * grad_output, x, weight), backwards(student, 0 * grad_output, x, weight)
    for name, value in once.items():
        assert value.any(), f"{name} is 0 everywhere."
        assert_close(twice[name], 2 * value, claim="with twice the grad_output", name=name)
        assert_close(none[name], 0 * value, claim="with a grad_output of zeros", name=name)


@pytest.mark.exercise("linear_backward", weight=0.5)
def test_gradients_have_the_dtype_of_the_layer(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and float64 as exact as it can be."""
    inputs = [value.double() for value in layer(6, d_in=4, d_out=5, seed=1)]
    expected = autograds(*inputs)
    for name, value in parts(student.linear_backward(*inputs), GRADIENTS).items():
        assert_close(value, expected[name], atol=1e-12, rtol=1e-9, name=f"the float64 {name}")
    rough = parts(student.linear_backward(*(value.bfloat16() for value in inputs)), GRADIENTS)
    for name, value in rough.items():
        assert_close(value, expected[name].bfloat16(), atol=0.15, rtol=0.05, name=f"the bfloat16 {name}")


@pytest.mark.exercise("linear_backward", weight=0.5)
def test_what_the_layer_was_given_is_left_as_it_was(student: Student) -> None:
    """grad_output, x and weight belong to the caller: an operation that ends in _ changes them."""
    inputs = dict(zip(("grad_output", "x", "weight"), layer(3, d_in=4, d_out=4, seed=1), strict=True))
    kept = {name: student.put(value) for name, value in inputs.items()}
    found = parts(student.linear_backward(*kept.values()), GRADIENTS)
    tensor(found["grad_bias"], shape=(4,), name="grad_bias")
    expected = inputs["grad_output"].sum().item()  # doing nothing at all is no merit
    assert abs(found["grad_bias"].sum().item() - expected) < 0.1, "grad_bias does not add up."
    for name, value in inputs.items():
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- adamw_step -----------------------------------------------------------------------------------------------------

STATE = ("the parameter", "m", "v")
USUAL: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def stepped(student: Student, state: tuple[Any, ...], gradient: Tensor, step: int, **changes: Any) -> dict[str, Any]:
    parameter, m, v = state
    found = student.adamw_step(parameter, gradient, m, v, step, **{**USUAL, **changes})
    return parts(found, STATE)


def pytorchs(parameter: Tensor, grads: list[Tensor], **changes: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Parameter, m and v after each step, by torch.optim.AdamW."""
    weight = nn.Parameter(parameter.clone())
    optimiser = torch.optim.AdamW([weight], **{**USUAL, **changes}, foreach=False)
    states = []
    for grad in grads:
        weight.grad = grad.clone()
        optimiser.step()
        state = optimiser.state[weight]
        states.append((weight.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()))
    return states


def fresh(parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return parameter, torch.zeros_like(parameter), torch.zeros_like(parameter)


@pytest.mark.exercise("adamw_step")
def test_m_and_v_are_running_means(student: Student) -> None:
    """m is β₁ of the old mean and 1 − β₁ of the gradient; v is the same with β₂ and the squared gradient; no hats."""
    parameter, grads = normal(3, 4, seed=1), [normal(3, 4, seed=i) for i in (2, 3)]
    first, second = pytorchs(parameter, grads, betas=(0.7, 0.9))
    for step, state, gradient, expected in ((1, fresh(parameter), grads[0], first), (2, first, grads[1], second)):
        found = stepped(student, state, gradient, step, betas=(0.7, 0.9))
        for name, value in zip(STATE[1:], expected[1:], strict=True):
            assert_close(found[name], value, atol=1e-6, claim=f"after step {step}", name=name)


@pytest.mark.exercise("adamw_step", weight=2)
def test_several_steps_match_pytorchs(student: Student) -> None:
    """Ten steps, each from where the one before ended, with gradients of very different sizes."""
    size = torch.tensor([1e-4, 1e-2, 1.0, 100.0])
    parameter, grads = normal(3, 4, seed=1), [size * normal(3, 4, seed=10 + i) for i in range(10)]
    state: tuple[Any, ...] = fresh(parameter)
    for step, (gradient, expected) in enumerate(zip(grads, pytorchs(parameter, grads), strict=True), 1):
        found = stepped(student, state, gradient, step)
        state = tuple(tensor(found[name], shape=(3, 4), name=name).detach() for name in STATE)
        assert_close(state[0], expected[0], atol=1e-5, claim=f"after step {step}", name="the parameter")


@pytest.mark.exercise("adamw_step")
def test_the_first_step_is_as_long_as_lr(student: Student) -> None:
    """With bias correction, counted from 1, the first step of every weight is lr, however large its gradient."""
    gradient = torch.tensor([1e-3, -0.5, 20.0, -3e4])
    for betas in ((0.9, 0.999), (0.5, 0.6)):
        found = stepped(student, fresh(torch.zeros(4)), gradient, 1, lr=0.3, weight_decay=0.0, betas=betas, eps=1e-12)
        assert_close(found["the parameter"], -0.3 * gradient.sign(), claim=f"with betas {betas}", name="the first step")


@pytest.mark.exercise("adamw_step")
def test_bias_correction_fades_with_the_steps(student: Student) -> None:
    """Step number t divides by 1 − β to the power of t: much at step 2, next to nothing at step 1,000."""
    parameter, gradient, m = (normal(5, seed=seed) for seed in (1, 2, 3))
    v = normal(5, seed=4).square()
    for step in (2, 7, 1_000):
        weight = nn.Parameter(parameter.clone())
        optimiser = torch.optim.AdamW([weight], **USUAL, foreach=False)
        optimiser.state[weight] = {"step": torch.tensor(step - 1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        weight.grad = gradient.clone()
        optimiser.step()
        found = stepped(student, (parameter, m, v), gradient, step)["the parameter"]
        assert_close(found, weight.detach(), atol=1e-5, claim=f"at step {step}", name="the parameter")


@pytest.mark.exercise("adamw_step")
def test_decay_shrinks_every_weight_by_the_same_share(student: Student) -> None:
    """Without a gradient a step multiplies each weight by 1 − lr · weight_decay, and m and v stay 0."""
    parameter, nothing = normal(4, seed=1), torch.zeros(4)
    found = stepped(student, fresh(parameter), nothing, 1, lr=0.1, weight_decay=0.4)
    assert_close(found["the parameter"], 0.96 * parameter, atol=1e-6, claim="with a gradient of zeros")
    for name in ("m", "v"):
        assert_close(found[name], nothing, atol=0, claim="with a gradient of zeros", name=name)


@pytest.mark.exercise("adamw_step")
def test_decay_is_decoupled_from_the_gradient(student: Student) -> None:
    """The decay takes from the weight as it was, and what m and v say comes off it as if there were no decay."""
    parameter, gradient = 3 * normal(6, seed=1), normal(6, seed=2)
    ((expected, m, v),) = pytorchs(parameter, [gradient], lr=0.5, weight_decay=0.8)
    found = stepped(student, fresh(parameter), gradient, 1, lr=0.5, weight_decay=0.8)
    for name, value in zip(STATE, (expected, m, v), strict=True):
        assert_close(found[name], value, atol=1e-5, claim="lr 0.5, weight_decay 0.8", name=name)


@pytest.mark.exercise("adamw_step")
def test_eps_is_added_to_the_root(student: Student) -> None:
    """ε comes after the root of the corrected v: √v̂ + ε. With a large ε the place shows."""
    parameter, grads = normal(6, seed=1), [normal(6, seed=2), normal(6, seed=3)]
    state = fresh(parameter)
    for step, (gradient, expected) in enumerate(zip(grads, pytorchs(parameter, grads, eps=0.3), strict=True), 1):
        found = stepped(student, state, gradient, step, eps=0.3)["the parameter"]
        assert_close(found, expected[0], atol=1e-5, claim=f"with ε = 0.3, at step {step}", name="the parameter")
        state = expected


@pytest.mark.exercise("adamw_step", weight=0.5)
def test_a_weight_that_never_had_a_gradient_is_no_nan(student: Student) -> None:
    """0 / (√0 + ε) is 0: without a gradient and without decay a weight stays where it is, beside others that move."""
    parameter, gradient = normal(4, seed=1), torch.tensor([0.0, 1, 0, -1])
    found = stepped(student, fresh(parameter), gradient, 1, weight_decay=0.0)["the parameter"]
    moved = tensor(found, shape=(4,)).detach() - parameter
    assert not moved[[0, 2]].isnan().any(), "A weight without a gradient became NaN."
    assert not moved[[0, 2]].any(), "A weight without a gradient or decay moved."
    assert (moved[[1, 3]] * gradient[[1, 3]] < 0).all(), "A weight with a gradient did not move against it."


@pytest.mark.exercise("adamw_step", weight=0.5)
def test_any_shape_and_dtype_can_step(student: Student) -> None:
    """A single number, a vector, a table or a block; float64 and bfloat16 stay what they are."""
    for shape in ((), (1,), (2, 3), (2, 3, 4)):
        parameter, gradient = normal(*shape, seed=1), normal(*shape, seed=2)
        (expected,) = pytorchs(parameter, [gradient])
        found = stepped(student, fresh(parameter), gradient, 1)
        for name, value in zip(STATE, expected, strict=True):
            assert_close(found[name], value, atol=1e-5, claim=f"of shape {shape}", name=name)
    for dtype, atol in ((torch.float64, 1e-10), (torch.bfloat16, 0.05)):
        parameter, gradient = normal(5, seed=1, dtype=torch.float64), normal(5, seed=2, dtype=torch.float64)
        (expected,) = pytorchs(parameter, [gradient])
        found = stepped(student, fresh(parameter.to(dtype)), gradient.to(dtype), 1)
        for name, value in zip(STATE, expected, strict=True):
            assert_close(found[name], value.to(dtype), atol=atol, rtol=atol, name=f"the {str(dtype)[6:]} {name[-9:]}")


@pytest.mark.exercise("adamw_step", weight=0.5)
def test_a_step_changes_nothing_in_place(student: Student) -> None:
    """parameter, gradient, m and v belong to the caller: what comes back is new."""
    parameter, gradient, m = (normal(4, seed=seed) for seed in (1, 2, 3))
    inputs = {"parameter": parameter, "gradient": gradient, "m": m, "v": normal(4, seed=4).square()}
    kept = {name: student.put(value) for name, value in inputs.items()}
    found = parts(student.adamw_step(*kept.values(), 3, **USUAL), STATE)
    changed = tensor(found["the parameter"], shape=(4,), name="the parameter")
    assert (changed != parameter).all(), "The step did not move the parameter."
    for name, value in inputs.items():
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the step", name=name)


# -- train_step -----------------------------------------------------------------------------------------------------

NAMES = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")
RESULT = ("the loss", "parameters", "m", "v")
Tensors = Mapping[str, Tensor]


def network(d_in: int, d_hidden: int, classes: int, *, seed: int) -> dict[str, Tensor]:
    shapes = ((d_hidden, d_in), (d_hidden,), (classes, d_hidden), (classes,))
    return {name: normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(zip(NAMES, shapes, strict=True))}


def zeros(parameters: Tensors) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in parameters.items()}


def start(parameters: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Before the first step: m and v are zeros."""
    return parameters, zeros(parameters), zeros(parameters)


def loss_of(parameters: Tensors, x: Tensor, targets: Tensor) -> Tensor:
    hidden = functional.linear(x, parameters["hidden.weight"], parameters["hidden.bias"]).relu()
    return functional.cross_entropy(
        functional.linear(hidden, parameters["out.weight"], parameters["out.bias"]), targets
    )


class Oracle:
    """The same network, by autograd and torch.optim.AdamW, whose biases do not decay."""

    def __init__(self, parameters: Tensors, **settings: Any) -> None:
        self.parameters = {name: nn.Parameter(value.clone()) for name, value in parameters.items()}
        chosen = {**USUAL, **settings}
        decays = {name: chosen["weight_decay"] if name.endswith("weight") else 0.0 for name in NAMES}
        groups = [{"params": [self.parameters[name]], "weight_decay": decays[name]} for name in NAMES]
        self.optimiser = torch.optim.AdamW(groups, **chosen, foreach=False)

    def step(self, x: Tensor, targets: Tensor) -> dict[str, Any]:
        loss = loss_of(self.parameters, x, targets)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        states = {name: self.optimiser.state[value] for name, value in self.parameters.items()}
        return {
            "the loss": loss.detach(),
            "parameters": {name: value.detach().clone() for name, value in self.parameters.items()},
            "m": {name: state["exp_avg"].clone() for name, state in states.items()},
            "v": {name: state["exp_avg_sq"].clone() for name, state in states.items()},
        }


def batch(n: int, d_in: int, classes: int, *, seed: int) -> tuple[Tensor, Tensor]:
    return normal(n, d_in, seed=seed), some_targets(n, classes, seed)


def trained(student: Student, state: Sequence[Any], x: Any, targets: Any, step: int, **changes: Any) -> dict[str, Any]:
    """What a step of theirs from (parameters, m, v) returned, by name; each state a dict with the four keys."""
    found = parts(student.train_step(*state, x, targets, step, **{**USUAL, **changes}), RESULT)
    for name in RESULT[1:]:
        assert isinstance(found[name], dict), f"{name} should be a dict with the keys {', '.join(NAMES)}."
        assert set(found[name]) == set(NAMES), f"{name} has the keys {sorted(map(str, found[name]))}."
    return found


def detached(state: Mapping[str, Any], like: Tensors) -> dict[str, Tensor]:
    return {name: tensor(state[name], shape=like[name].shape, name=name).detach() for name in NAMES}


@pytest.mark.exercise("train_step")
def test_the_loss_is_that_before_the_step(student: Student) -> None:
    """The first thing returned is the mean cross-entropy of the batch under the parameters that came in."""
    for seed, (n, d_in, d_hidden, classes) in enumerate(((6, 3, 5, 4), (1, 4, 4, 4), (9, 2, 7, 3))):
        parameters, (x, targets) = network(d_in, d_hidden, classes, seed=seed), batch(n, d_in, classes, seed=seed)
        found = trained(student, start(parameters), x, targets, 1, lr=0.5)
        expected = loss_of(parameters, x, targets)
        assert_close(found["the loss"], expected, claim=f"with {n} examples", name="the loss")


def gradients_in_m(student: Student, names: tuple[str, ...]) -> None:
    """With β₁ = 0 the new m is the gradient itself: compare it with autograd's, for some of the parameters."""
    for seed, (n, d_in, d_hidden, classes) in enumerate(((6, 3, 5, 4), (5, 4, 4, 4), (9, 2, 7, 3))):
        parameters, (x, targets) = network(d_in, d_hidden, classes, seed=seed), batch(n, d_in, classes, seed=seed)
        found = trained(student, start(parameters), x, targets, 1, betas=(0.0, 0.9), lr=0.7)["m"]
        expected = Oracle(parameters, betas=(0.0, 0.9), lr=0.7).step(x, targets)["m"]
        for name in names:
            claim = f"{n} examples, {d_hidden} hidden"
            assert_close(found[name], expected[name], atol=1e-5, claim=claim, name=f"the gradient of {name}")


@pytest.mark.exercise("train_step", weight=1.5)
def test_the_last_layer_gets_its_gradient(student: Student) -> None:
    """The gradient of the logits is (share − truth)/n; by linear_backward it reaches out.weight and out.bias."""
    gradients_in_m(student, ("out.weight", "out.bias"))


@pytest.mark.exercise("train_step", weight=1.5)
def test_the_first_layer_gets_its_gradient(student: Student) -> None:
    """Back through the last layer's weights as they were before the step, and only where the ReLU let something by."""
    gradients_in_m(student, ("hidden.weight", "hidden.bias"))


@pytest.mark.exercise("train_step")
def test_a_hidden_number_of_zero_or_less_stops_the_gradient(student: Student) -> None:
    """ReLU passes the gradient on where its input is above 0; at exactly 0 and below it stops it."""
    parameters, (x, targets) = network(3, 4, 3, seed=1), batch(5, 3, 3, seed=2)
    parameters["hidden.weight"][:2] = 0
    parameters["hidden.bias"][:2] = torch.tensor([0.0, -1.0])  # the first is always 0, the second always below
    found = trained(student, start(parameters), x, targets, 1, betas=(0.0, 0.9))["m"]
    for name in ("hidden.weight", "hidden.bias"):
        grad = tensor(found[name], shape=parameters[name].shape, name=name)
        assert not grad[:2].any(), f"A hidden number that is 0 or below passes a gradient on to {name}."
        assert grad[2:].any(), f"No gradient reaches {name}."
    assert tensor(found["out.weight"], shape=(3, 4))[:, 2:].any(), "No gradient reaches out.weight."


@pytest.mark.exercise("train_step", weight=2)
def test_several_steps_match_autograd_and_pytorchs_adamw(student: Student) -> None:
    """Five steps on five batches, each from where the one before ended: parameters, m and v as PyTorch has them."""
    parameters = network(3, 6, 4, seed=1)
    theirs = Oracle(parameters)
    ours: tuple[Any, ...] = start(parameters)
    for step in range(1, 6):
        x, targets = batch(7, 3, 4, seed=step)
        found, expected = trained(student, ours, x, targets, step), theirs.step(x, targets)
        assert_close(found["the loss"], expected["the loss"], atol=1e-3, claim=f"step {step}", name="the loss")
        ours = tuple(detached(found[name], parameters) for name in RESULT[1:])
        for which, state in zip(RESULT[1:], ours, strict=True):
            for name in NAMES:
                label = name if which == "parameters" else f"{which} of {name}"
                assert_close(state[name], expected[which][name], atol=1e-3, claim=f"after step {step}", name=label)


@pytest.mark.exercise("train_step")
def test_weights_decay_and_biases_do_not(student: Student) -> None:
    """weight_decay shrinks hidden.weight and out.weight; hidden.bias and out.bias are left out of it."""
    parameters, (x, targets) = network(3, 5, 4, seed=1), batch(6, 3, 4, seed=2)
    with_decay = trained(student, start(parameters), x, targets, 1, lr=0.1, weight_decay=0.5)["parameters"]
    without = trained(student, start(parameters), x, targets, 1, lr=0.1, weight_decay=0.0)["parameters"]
    for name in NAMES:
        decayed, plain = (
            tensor(found[name], shape=parameters[name].shape, name=name) for found in (with_decay, without)
        )
        assert (plain != parameters[name]).any(), f"{name} did not move at all."
        share = 0.05 if name.endswith("weight") else 0.0
        assert_close(plain - decayed, share * parameters[name], atol=1e-5, name=f"what the decay takes from {name}")


@pytest.mark.exercise("train_step")
def test_settings_and_the_number_of_the_step_count(student: Student) -> None:
    """lr, betas, eps and step reach every parameter's AdamW step, in the middle of a run too."""
    parameters, (x, targets) = network(3, 5, 4, seed=1), batch(6, 3, 4, seed=2)
    settings = {"lr": 0.2, "betas": (0.6, 0.8), "eps": 0.05, "weight_decay": 0.3}
    theirs = Oracle(parameters, **settings)
    state: tuple[Any, ...] = start(parameters)
    for step in (1, 2):
        expected = theirs.step(x, targets)
        found = trained(student, state, x, targets, step, **settings)["parameters"]
        for name in NAMES:
            assert_close(found[name], expected["parameters"][name], atol=1e-4, claim=f"at step {step}", name=name)
        state = tuple(expected[which] for which in RESULT[1:])


@pytest.mark.exercise("train_step", weight=0.5)
def test_the_order_of_the_keys_does_not_matter(student: Student) -> None:
    """A parameter is known by its name, and so are its m and v."""
    parameters, (x, targets) = network(4, 4, 4, seed=1), batch(6, 4, 4, seed=2)
    m = {name: 0.1 * value for name, value in network(4, 4, 4, seed=10).items()}
    v = {name: value.square() for name, value in network(4, 4, 4, seed=20).items()}
    state = [dict(reversed(parameters.items())), m, {name: v[name] for name in sorted(v)}]
    straight = trained(student, (parameters, m, v), x, targets, 4)
    shuffled = trained(student, state, x, targets, 4)
    for which in RESULT[1:]:
        for name in NAMES:
            value = tensor(straight[which][name], shape=parameters[name].shape, name=f"{which} of {name}")
            assert (value != (parameters, m, v)[RESULT.index(which) - 1][name]).any(), (
                f"{which} of {name} did not change."
            )
            assert_close(
                shuffled[which][name], value, claim="with the keys in another order", name=f"{which} of {name}"
            )


@pytest.mark.exercise("train_step")
def test_training_brings_the_loss_down(student: Student) -> None:
    """Forty steps on the same eight examples: a network with room enough learns them by heart."""
    parameters, (x, targets) = network(3, 8, 3, seed=1), batch(8, 3, 3, seed=2)
    state: tuple[Any, ...] = start(parameters)
    before = loss_of(parameters, x, targets).item()
    for step in range(1, 41):
        found = trained(student, state, x, targets, step, lr=0.1, weight_decay=0.0)
        state = tuple(found[name] for name in RESULT[1:])
    after = loss_of(detached(state[0], parameters), x, targets).item()
    assert after < 0.05 < before, f"After 40 steps on eight examples the loss is {after:.3g}; it was {before:.3g}."


@pytest.mark.exercise("train_step", weight=0.5)
def test_nothing_that_came_in_is_changed(student: Student) -> None:
    """The dicts and their tensors belong to the caller: what comes back is new."""
    parameters, (x, targets) = network(3, 4, 3, seed=1), batch(5, 3, 3, seed=2)
    m, v = zeros(parameters), zeros(parameters)
    kept = [student.put(value) for value in (parameters, m, v, x, targets)]
    found = trained(student, kept[:3], kept[3], kept[4], 1)["parameters"]
    for name in NAMES:
        assert (tensor(found[name], shape=parameters[name].shape, name=name) != parameters[name]).any(), (
            f"{name} did not move at all."
        )
    for which, state, before in zip(("parameters", "m", "v"), kept, (parameters, m, v), strict=False):
        now = state.get()
        assert isinstance(now, dict), f"{which} is no longer a dict."
        assert set(now) == set(NAMES), f"The keys of {which} are now {sorted(map(str, now))}."
        for name in NAMES:
            assert_close(now[name], before[name], atol=0, rtol=0, claim="after the step", name=f"{which} of {name}")
    assert_close(kept[3].get(), x, atol=0, rtol=0, claim="after the step", name="x")
    assert_close(kept[4].get(), targets, claim="after the step", name="targets")
