"""Hidden tests of chapter 04. Expected values come from PyTorch, fractions and published widths, laws from theory.

A layer is compared with its formula in PyTorch's functions, to which transformers' GPT2MLP and LlamaMLP are equal.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

RESERVED = {
    "gelu": (
        "torch.nn.functional.gelu",
        "torch._C._nn.gelu",
        "torch._C._nn.gelu_",
        "torch.ops.aten.gelu",
        "torch.ops.aten.gelu_",
        "torch.nn.GELU",
        "torch.nn.modules.GELU",
        "torch.nn.modules.activation.GELU",
    ),
    "silu": (
        "torch.nn.functional.silu",
        "torch._C._nn.silu",
        "torch._C._nn.silu_",
        "torch.ops.aten.silu",
        "torch.ops.aten.silu_",
        "torch.nn.SiLU",
        "torch.nn.modules.SiLU",
        "torch.nn.modules.activation.SiLU",
    ),
}

NAMES = ("none", "tanh")


def assert_same(actual: object, expected: Tensor, claim: str = "", name: str = "the result") -> None:
    """Equal as far as float32 can be: the two GELUs differ by up to 5e-4, and 0.0447 for 0.044715 costs 9e-6."""
    assert_close(actual, expected, atol=5e-6, rtol=1e-6, claim=claim, name=name)


def line(end: float = 4.0, n: int = 201) -> Tensor:
    """Numbers on both sides of 0, where activations differ most."""
    return torch.linspace(-end, end, n)


# -- gelu -----------------------------------------------------------------------------------------------------------


@pytest.mark.exercise("gelu", weight=3)
def test_gelu_is_x_times_a_normal_probability(student: Student) -> None:
    """approximate="none", which is the default: x·Φ(x), where Φ is the distribution of a standard normal number."""
    for x in (line(), 2 * normal(3, 5, 7, seed=1)):
        expected = functional.gelu(x)
        assert_same(student.gelu(x), expected, claim="gelu(x)")
        assert_same(student.gelu(x, approximate="none"), expected, claim='with "none"')


@pytest.mark.exercise("gelu", weight=3)
def test_the_tanh_form_is_that_of_gpt2(student: Student) -> None:
    """approximate="tanh": the formula of the prompt, with every constant as it stands there."""
    for x in (line(), 2 * normal(3, 5, 7, seed=1)):
        expected = functional.gelu(x, approximate="tanh")
        assert_same(student.gelu(x, approximate="tanh"), expected, claim='with "tanh"')
        assert_same(student.gelu(x, "tanh"), expected, claim='with "tanh" as second argument')


@pytest.mark.exercise("gelu", weight=2)
def test_the_gradient_is_that_of_the_formula(student: Student) -> None:
    """An error flows back through x·Φ(x) as calculus says: nothing is detached or rebuilt on the way."""
    for name in NAMES:
        x, upstream = line().requires_grad_(), normal(201, seed=2)
        expected = gradients(functional.gelu(x, approximate=name), upstream, x=x)["x"]
        found = gradients(student.gelu(x, approximate=name), upstream, x=x)["x"]
        assert_close(found, expected, atol=3e-5, rtol=1e-5, claim=f'with "{name}"', name="the gradient of x")


@pytest.mark.exercise("gelu")
def test_large_numbers_give_finite_results_and_gradients(student: Student) -> None:
    """Far from 0 gelu is x or 0, with slope 1 or 0, up to ±10,000 and in bfloat16 too."""
    for name in NAMES:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.tensor([-1e4, -500, -30, -0.75, 0.75, 30, 500, 1e4], dtype=dtype, requires_grad=True)
            claim = f'with "{name}" in {str(dtype)[6:]}'
            out = student.gelu(x, approximate=name)
            assert_close(out, functional.gelu(x), atol=2e-2, rtol=1e-2, claim=claim)
            found = gradients(out, torch.ones_like(x), x=x)["x"]
            expected = gradients(functional.gelu(x), torch.ones_like(x), x=x)["x"]
            assert_close(found, expected, atol=5e-2, rtol=1e-2, claim=claim, name="the gradient of x")


@pytest.mark.exercise("gelu")
def test_gelu_keeps_the_dtype(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64, with all of its digits: a constant cut short shows there."""
    for name in NAMES:
        for dtype, atol, rtol in ((torch.bfloat16, 3e-2, 2e-2), (torch.float64, 1e-9, 1e-9)):
            x = line(8, 65).to(dtype)
            expected = functional.gelu(x.double(), approximate=name).to(dtype)
            claim = f'with "{name}" in {str(dtype)[6:]}'
            assert_close(student.gelu(x, approximate=name), expected, atol=atol, rtol=rtol, claim=claim)


@pytest.mark.exercise("gelu", weight=0.5)
def test_gelu_takes_any_shape(student: Student) -> None:
    """Every number is worked on by itself, so x may have any number of dimensions, also none."""
    for shape in ((), (1,), (0, 4), (3, 1), (2, 3, 1, 5)):
        x = normal(*shape, seed=3) - 0.7
        for name in NAMES:
            assert_close(student.gelu(x, approximate=name), functional.gelu(x), atol=1e-2, claim=f"with shape {shape}")


@pytest.mark.exercise("gelu")
def test_another_name_is_an_error(student: Student) -> None:
    """Any approximate but "none" and "tanh" raises a ValueError whose sentence holds the name."""
    x = line(3, 13)
    for name in NAMES:  # these are none
        assert_close(student.gelu(x, approximate=name), functional.gelu(x), atol=5e-2, claim=f'with "{name}"')
    for name in ("sigmoid", "Tanh", "erf"):
        raised: StudentError | None = None
        try:
            student.gelu(x, approximate=name)
        except Unfinished:
            raise
        except StudentError as error:
            raised = error
        what = f'approximate="{name}" raises {raised.types[0] if raised else "nothing"}'
        assert isinstance(raised, ValueError), f"{what}, and it should raise a ValueError."
        assert name in str(raised), f'The sentence does not hold the name "{name}": {raised}'


@pytest.mark.exercise("gelu", weight=0.5)
def test_gelu_leaves_x_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    x = line(2, 17)
    for name in NAMES:
        kept = student.put(x)
        assert_close(student.gelu(kept, approximate=name), functional.gelu(x), atol=5e-2)
        assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- silu -----------------------------------------------------------------------------------------------------------


@pytest.mark.exercise("silu", weight=3)
def test_silu_is_x_times_its_sigmoid(student: Student) -> None:
    """Each number is multiplied by its own sigmoid, 1 / (1 + e^(-x))."""
    for x in (line(6), 2 * normal(3, 5, 7, seed=1)):
        assert_same(student.silu(x), functional.silu(x))


@pytest.mark.exercise("silu")
def test_silu_has_the_slope_of_the_formula(student: Student) -> None:
    """An error flows back through x·σ(x) as calculus says: nothing is detached or rebuilt on the way."""
    x, upstream = line(6).requires_grad_(), normal(201, seed=2)
    expected = gradients(functional.silu(x), upstream, x=x)["x"]
    found = gradients(student.silu(x), upstream, x=x)["x"]
    assert_close(found, expected, atol=3e-5, rtol=1e-5, name="the gradient of x")


@pytest.mark.exercise("silu")
def test_silu_of_large_numbers_is_finite(student: Student) -> None:
    """Far from 0 silu is x or 0, up to ±10,000: no exponential overflows."""
    x = torch.tensor([-1e4, -500, -100, -1, 1, 100, 500, 1e4])
    assert_close(student.silu(x), functional.silu(x), atol=1e-3)


@pytest.mark.exercise("silu", weight=2)
def test_the_gradient_of_large_numbers_is_finite(student: Student) -> None:
    """Far from 0 the slope of silu is 1 or 0, and never NaN: infinity times zero hides in a quotient."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.tensor([-1e4, -500, -100, -1, 1, 100, 500, 1e4], dtype=dtype, requires_grad=True)
        expected = gradients(functional.silu(x), torch.ones_like(x), x=x)["x"]
        found = gradients(student.silu(x), torch.ones_like(x), x=x)["x"]
        assert_close(found, expected, atol=2e-2, claim=f"in {str(dtype)[6:]}", name="the gradient of x")


@pytest.mark.exercise("silu")
def test_silu_keeps_dtype_and_shape(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64; any number of dimensions, also none."""
    for shape in ((), (1,), (2, 3, 1, 5)):
        for dtype in (torch.bfloat16, torch.float64):
            x = (normal(*shape, seed=3) - 1).to(dtype)
            expected = functional.silu(x.double()).to(dtype)
            assert_close(student.silu(x), expected, atol=2e-2, rtol=1e-2, claim=f"with shape {shape}")


@pytest.mark.exercise("silu", weight=0.5)
def test_silu_leaves_x_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    x = line(2, 17)
    kept = student.put(x)
    assert_close(student.silu(kept), functional.silu(x), atol=2e-2)
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- what the two layers share ---------------------------------------------------------------------------------------

Weights = dict[str, Tensor]


def created(student: Student, kind: str, *sizes: int) -> tuple[Remote, Weights]:
    """A new layer and its state dict."""
    layer = getattr(student, kind)(*sizes)
    call = f"{kind}({', '.join(map(str, sizes))})"
    assert isinstance(layer, Remote), f"{call} should give a layer."
    state = layer.state_dict()
    assert isinstance(state, dict), f"The layer's state_dict() should be a dict: is {kind} an nn.Module?"
    return layer, {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def loaded(student: Student, kind: str, weights: Weights) -> Remote:
    """A layer with these weights, in evaluation. What it has beside them is zeroed: other tests see to that."""
    d_hidden, d_model = weights["up.weight"].shape
    layer, state = created(student, kind, d_model, d_hidden)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()} | weights)
    layer.eval()
    return layer


def has_exactly(student: Student, kind: str, d_model: int, d_hidden: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """The state dict holds these entries, all of them are trained, and a new layer is initialised."""
    layer, state = created(student, kind, d_model, d_hidden)
    parameters = student.grads(layer)
    assert set(state) == set(shapes), f"The state dict holds {sorted(state)}."
    assert set(parameters) == set(shapes), f"The parameters that are trained are {sorted(parameters)}."
    for name, value in state.items():
        tensor(value, shape=shapes[name], dtype=torch.float32, name=f"{name} of {kind}({d_model}, {d_hidden})")
        assert value.isfinite().all(), f"{name} is not finite in a new layer: was it never initialised?"


def is_as_wide(student: Student, kind: str, d_model: int, d_hidden: int, *names: str) -> None:
    """A layer that was given no width has these rows, and down has as many columns."""
    _, state = created(student, kind, d_model)
    assert {*names, "down.weight"} <= set(state), f"The state dict of {kind}({d_model}) holds {sorted(state)}."
    for name in names:
        tensor(state[name], shape=(d_hidden, d_model), name=f"{name} of {kind}({d_model})")
    tensor(state["down.weight"], shape=(d_model, d_hidden), name=f"down.weight of {kind}({d_model})")


def is_position_wise(layer: Remote, x: Tensor) -> None:
    """A change at one position is noticed there and nowhere else, and shuffled positions give shuffled outputs."""
    before = tensor(layer(x), shape=x.shape).detach()
    assert not torch.allclose(before, x), "The layer gives x back as it was."
    for j in (0, 3, x.shape[1] - 1):
        changed = x.clone()
        changed[:, j] += 2
        after = tensor(layer(changed), shape=x.shape).detach()
        others = [i for i in range(x.shape[1]) if i != j]
        assert_close(after[:, others], before[:, others], claim=f"after a change at position {j}", name="the others")
        assert (after[:, j] != before[:, j]).any(-1).all(), f"Position {j} does not notice that it changed itself."
    shuffled = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(5))
    assert_close(layer(x[:, shuffled]), before[:, shuffled], claim="with the positions shuffled")


def learns(student: Student, layer: Remote, x: Tensor, formula: Callable[..., Tensor], weights: Weights) -> None:
    """The gradients of x and of all weights are those of the formula; which GELU it has is a matter of other tests."""
    x, upstream = x.clone().requires_grad_(), normal(*x.shape, seed=9)
    own = {name: value.clone().requires_grad_() for name, value in weights.items()}
    named = {"x": x, **{name.replace(".", "_"): value for name, value in own.items()}}
    expected = gradients(formula(x, own), upstream, **named)
    found = {"x": gradients(layer(x), upstream, x=x)["x"], **student.grads(layer)}
    for name in ("x", *weights):
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(
            found[name], expected[name.replace(".", "_")], atol=1e-2, rtol=1e-2, name=f"the gradient of {name}"
        )


def is_not_random(layer: Remote, x: Tensor, expected: Tensor) -> None:
    """Training and evaluation, and two calls, give the same."""
    for mode in (layer.train, layer.eval):
        mode()
        for _ in range(2):
            assert_close(layer(x), expected, atol=0.2, rtol=0.2)
    layer.train()
    training = tensor(layer(x), shape=x.shape).detach()
    layer.eval()
    assert_close(layer(x), training, claim="in evaluation")


# -- MLP ------------------------------------------------------------------------------------------------------------


def mlp_weights(d_model: int, d_hidden: int, seed: int) -> Weights:
    return {
        "up.weight": 1.5 * d_model**-0.5 * normal(d_hidden, d_model, seed=seed),
        "up.bias": normal(d_hidden, seed=seed + 1),
        "down.weight": 1.5 * d_hidden**-0.5 * normal(d_model, d_hidden, seed=seed + 2),
        "down.bias": normal(d_model, seed=seed + 3),
    }


def mlp(x: Tensor, weights: Weights) -> Tensor:
    hidden = functional.gelu(functional.linear(x, weights["up.weight"], weights["up.bias"]), approximate="tanh")
    return functional.linear(hidden, weights["down.weight"], weights["down.bias"])


@pytest.mark.exercise("MLP")
def test_the_mlp_has_two_weights_and_two_biases(student: Student) -> None:
    """The state dict holds up.weight, up.bias, down.weight and down.bias, and all of them are trained."""
    for d, h in ((6, 10), (7, 3)):
        shapes = {"up.weight": (h, d), "up.bias": (h,), "down.weight": (d, h), "down.bias": (d,)}
        has_exactly(student, "MLP", d, h, shapes)


@pytest.mark.exercise("MLP")
def test_without_d_hidden_it_is_four_times_as_wide(student: Student) -> None:
    """MLP(d_model) is 4·d_model wide inside."""
    for d_model in (5, 12):
        is_as_wide(student, "MLP", d_model, 4 * d_model, "up.weight")


@pytest.mark.exercise("MLP", weight=3)
def test_the_mlp_widens_bends_and_narrows(student: Student) -> None:
    """With any weights: down of the activation of up of x, each with its bias, and nothing besides."""
    for seed, (batch, n, d_model, d_hidden) in enumerate(((2, 5, 6, 11), (3, 7, 8, 8), (1, 65, 4, 16), (2, 3, 9, 2))):
        weights, x = mlp_weights(d_model, d_hidden, seed=10 * seed), normal(batch, n, d_model, seed=seed)
        claim = f"d_model {d_model}, d_hidden {d_hidden}, x {tuple(x.shape)}"
        assert_close(loaded(student, "MLP", weights)(x), mlp(x, weights), atol=2e-3, rtol=1e-3, claim=claim)


@pytest.mark.exercise("MLP", weight=2)
def test_the_activation_is_the_tanh_form(student: Student) -> None:
    """GPT-2's GELU is the tanh form, which differs from the exact one in the fourth digit."""
    weights = {"up.weight": torch.eye(8), "up.bias": torch.zeros(8), "down.weight": torch.eye(8)}
    layer, x = loaded(student, "MLP", {**weights, "down.bias": torch.zeros(8)}), line(3, 48).reshape(2, 3, 8)
    assert_same(layer(x), functional.gelu(x, approximate="tanh"), name="what weights of one let through")


@pytest.mark.exercise("MLP")
def test_each_position_of_the_mlp_is_alone(student: Student) -> None:
    """A feed-forward layer looks at no neighbour: a change at one position is noticed there and nowhere else."""
    is_position_wise(loaded(student, "MLP", mlp_weights(6, 12, seed=1)), normal(2, 7, 6, seed=2))


@pytest.mark.exercise("MLP", weight=0.5)
def test_the_mlp_takes_any_leading_dimensions(student: Student) -> None:
    """Only the last dimension is special: before it there may be none, one, two or three."""
    weights = mlp_weights(6, 9, seed=1)
    layer = loaded(student, "MLP", weights)
    for lead in ((), (3,), (2, 3), (2, 1, 3)):
        x = normal(*lead, 6, seed=2)
        assert_close(layer(x), mlp(x, weights), atol=5e-3, claim=f"with x of shape {tuple(x.shape)}")


@pytest.mark.exercise("MLP")
def test_gradients_reach_x_and_all_of_the_mlp(student: Student) -> None:
    """Everything learns: x, both weights and both biases get the gradients of the formula."""
    weights = mlp_weights(6, 11, seed=1)
    learns(student, loaded(student, "MLP", weights), normal(2, 5, 6, seed=2), mlp, weights)


@pytest.mark.exercise("MLP", weight=0.5)
def test_nothing_in_the_mlp_is_random(student: Student) -> None:
    """Without dropout the same x gives the same output, in training and in evaluation."""
    weights, x = mlp_weights(6, 32, seed=1), normal(2, 5, 6, seed=2)
    is_not_random(loaded(student, "MLP", weights), x, mlp(x, weights))


@pytest.mark.exercise("MLP", weight=0.5)
def test_a_bfloat16_mlp_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16."""
    weights, x = mlp_weights(6, 11, seed=1), normal(2, 5, 6, seed=2)
    layer = loaded(student, "MLP", weights)
    layer.bfloat16()
    assert_close(layer(x.bfloat16()), mlp(x, weights).bfloat16(), atol=0.1, rtol=0.05)


@pytest.mark.exercise("MLP", weight=0.5)
def test_the_mlp_leaves_x_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    weights, x = mlp_weights(6, 11, seed=1), normal(2, 5, 6, seed=2)
    layer, kept = loaded(student, "MLP", weights), student.put(x)
    assert_close(layer(kept), mlp(x, weights), atol=5e-3)
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- swiglu_hidden --------------------------------------------------------------------------------------------------


def width(student: Student, d_model: int, multiple_of: int | None = None) -> int:
    """What the student computes, as a number, whatever its type is, which has a test of its own."""
    found = student.swiglu_hidden(d_model) if multiple_of is None else student.swiglu_hidden(d_model, multiple_of)
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    call = f"swiglu_hidden({d_model}{'' if multiple_of is None else f', {multiple_of}'})"
    assert isinstance(found, int | float), f"{call} should be a number."
    assert math.isfinite(found), f"{call} is {found}."
    assert found == int(found), f"{call} is {found}, which is no whole number."
    return int(found)


@pytest.mark.exercise("swiglu_hidden", weight=2)
def test_the_widths_are_those_of_llama(student: Student) -> None:
    """LLaMA's four published widths come out, for a d_model of 4096, 5120, 6656 and 8192."""
    for d_model, published in ((4096, 11008), (5120, 13824), (6656, 17920), (8192, 22016)):
        assert width(student, d_model) == published, f"The width for d_model {d_model} is not that of LLaMA."


@pytest.mark.exercise("swiglu_hidden")
def test_it_is_two_thirds_of_four_times_d_model(student: Student) -> None:
    """Where nothing needs rounding, the width is 8/3 of d_model, so that three matrices cost what two did."""
    for d_model, multiple_of in ((12, 1), (48, 128), (96, 1), (384, 256)):
        found = width(student, d_model, multiple_of)
        gated, plain = 3 * d_model * found, 2 * d_model * 4 * d_model
        assert gated == plain, (
            f"With d_model {d_model} and multiples of {multiple_of} a gated layer {found} wide has "
            f"{'more' if gated > plain else 'fewer'} parameters than a plain one: they should have as many."
        )


@pytest.mark.exercise("swiglu_hidden")
def test_the_fraction_is_dropped_first(student: Student) -> None:
    """Two thirds of 4·d_model lose what stands after the decimal point before anything is rounded up."""
    for d_model, multiple_of in ((2, 5), (4, 1), (2, 1), (5, 1), (100, 1), (7, 9), (34, 10)):
        expected = 8 * d_model // 3
        found = width(student, d_model, multiple_of)
        assert found >= expected, f"swiglu_hidden({d_model}, {multiple_of}) is {found}, which is too small."
        assert found <= expected, f"swiglu_hidden({d_model}, {multiple_of}) is {found}, which is too large."


@pytest.mark.exercise("swiglu_hidden")
def test_a_multiple_already_stays(student: Student) -> None:
    """Rounding up leaves a number as it is that is a multiple already."""
    for d_model, multiple_of in ((96, 256), (768, 256), (768, 2048), (3, 8), (30, 16)):
        found = width(student, d_model, multiple_of)
        assert 3 * found >= 8 * d_model, f"swiglu_hidden({d_model}, {multiple_of}) rounds down."
        assert 3 * found <= 8 * d_model, f"swiglu_hidden({d_model}, {multiple_of}) goes on to the next multiple."


@pytest.mark.exercise("swiglu_hidden", weight=2)
def test_it_rounds_up_to_the_next_multiple(student: Student) -> None:
    """The width is a multiple of multiple_of, not below two thirds of 4·d_model, and as small as that allows."""
    for d_model, multiple_of in ((64, 256), (100, 64), (1000, 96), (5120, 1024), (10, 7), (1, 8), (37, 33)):
        found, call = width(student, d_model, multiple_of), f"swiglu_hidden({d_model}, {multiple_of})"
        exact = int(Fraction(2, 3) * 4 * d_model)
        assert found % multiple_of == 0, f"{call} is {found}, which is no multiple of {multiple_of}."
        assert found >= exact, f"{call} is {found}, which is less than two thirds of {4 * d_model}."
        assert found - exact < multiple_of, f"{call} is {found}, and a smaller multiple would do."


@pytest.mark.exercise("swiglu_hidden", weight=0.5)
def test_the_width_is_an_int(student: Student) -> None:
    """The result is a Python int, not a float or a tensor, and multiple_of can be given by name."""
    for d_model in (64, 100):
        found = student.swiglu_hidden(d_model, multiple_of=32)
        assert type(found) is int, f"swiglu_hidden({d_model}, multiple_of=32) should be an int."
        assert 0 <= 3 * found - 8 * d_model < 3 * 32, f"swiglu_hidden({d_model}, multiple_of=32) is not the width."


# -- SwiGLU ---------------------------------------------------------------------------------------------------------


def swiglu_weights(d_model: int, d_hidden: int, seed: int) -> Weights:
    return {
        "gate.weight": 2 * d_model**-0.5 * normal(d_hidden, d_model, seed=seed),
        "up.weight": 1.5 * d_model**-0.5 * normal(d_hidden, d_model, seed=seed + 1),
        "down.weight": 1.5 * d_hidden**-0.5 * normal(d_model, d_hidden, seed=seed + 2),
    }


def swiglu(x: Tensor, weights: Weights) -> Tensor:
    gate = functional.silu(functional.linear(x, weights["gate.weight"]))
    return functional.linear(gate * functional.linear(x, weights["up.weight"]), weights["down.weight"])


@pytest.mark.exercise("SwiGLU")
def test_the_layer_has_three_weights_and_no_bias(student: Student) -> None:
    """The state dict holds gate.weight, up.weight and down.weight and nothing else, and all of them are trained."""
    for d, h in ((6, 10), (7, 3)):
        has_exactly(student, "SwiGLU", d, h, {"gate.weight": (h, d), "up.weight": (h, d), "down.weight": (d, h)})


@pytest.mark.exercise("SwiGLU")
def test_without_d_hidden_it_is_as_wide_as_swiglu_hidden_says(student: Student) -> None:
    """SwiGLU(d_model) is swiglu_hidden(d_model) wide: 256 for 96, the next multiple for a little more."""
    for d_model, hidden in ((96, 256), (97, 512), (5, 256)):
        is_as_wide(student, "SwiGLU", d_model, hidden, "gate.weight", "up.weight")


@pytest.mark.exercise("SwiGLU", weight=3)
def test_the_layer_is_llamas(student: Student) -> None:
    """With any weights: down of the product of silu(gate x) and up x, and nothing besides."""
    for seed, (batch, n, d_model, d_hidden) in enumerate(((2, 5, 6, 11), (3, 7, 8, 8), (1, 65, 4, 16), (2, 3, 9, 2))):
        weights, x = swiglu_weights(d_model, d_hidden, seed=10 * seed), normal(batch, n, d_model, seed=seed)
        claim = f"d_model {d_model}, d_hidden {d_hidden}, x {tuple(x.shape)}"
        assert_close(loaded(student, "SwiGLU", weights)(x), swiglu(x, weights), claim=claim)


@pytest.mark.exercise("SwiGLU")
def test_the_activation_bends_the_gate(student: Student) -> None:
    """What comes out of gate goes through silu: with up and down held fixed, the output follows silu."""
    x = torch.cat([line(4, 60).reshape(2, 5, 6), torch.ones(2, 5, 1)], -1)  # the last channel is always 1
    gate, up = torch.zeros(6, 7), torch.zeros(6, 7)
    gate[:, :6], up[:, 6] = torch.eye(6), 1.0  # the gate reads x, and up gives 1
    layer = loaded(student, "SwiGLU", {"gate.weight": gate, "up.weight": up, "down.weight": torch.eye(7, 6)})
    out = tensor(layer(x), shape=x.shape).detach()[..., :6]
    assert_close(out, functional.silu(x[..., :6]), name="the output where up is 1")


@pytest.mark.exercise("SwiGLU")
def test_the_output_grows_with_up_in_proportion(student: Student) -> None:
    """What comes out of up is not bent: -3 times its weights give -3 times the output, and no weights give none."""
    weights, x = swiglu_weights(6, 11, seed=1), normal(2, 5, 6, seed=2)
    before = tensor(loaded(student, "SwiGLU", weights)(x), shape=x.shape).detach()
    assert before.any(), "The output is zero everywhere."
    for factor in (-3.0, 0.0):
        scaled = loaded(student, "SwiGLU", {**weights, "up.weight": factor * weights["up.weight"]})
        assert_close(scaled(x), factor * before, claim=f"with {factor:g} times up.weight")


@pytest.mark.exercise("SwiGLU", weight=0.5)
def test_nothing_in_gives_nothing_out(student: Student) -> None:
    """Without biases an x of zeros gives an output of zeros, and another x does not."""
    layer = loaded(student, "SwiGLU", swiglu_weights(6, 11, seed=1))
    assert tensor(layer(normal(2, 5, 6, seed=2)), shape=(2, 5, 6)).any(-1).all(), "Some position gives only zeros."
    assert_close(layer(torch.zeros(2, 5, 6)), torch.zeros(2, 5, 6), name="the output for zeros")


@pytest.mark.exercise("SwiGLU")
def test_each_position_of_the_layer_is_alone(student: Student) -> None:
    """A feed-forward layer looks at no neighbour: a change at one position is noticed there and nowhere else."""
    is_position_wise(loaded(student, "SwiGLU", swiglu_weights(6, 12, seed=1)), normal(2, 7, 6, seed=2))


@pytest.mark.exercise("SwiGLU", weight=0.5)
def test_the_layer_takes_any_leading_dimensions(student: Student) -> None:
    """Only the last dimension is special: before it there may be none, one, two or three."""
    weights = swiglu_weights(6, 9, seed=1)
    layer = loaded(student, "SwiGLU", weights)
    for lead in ((), (3,), (2, 3), (2, 1, 3)):
        x = normal(*lead, 6, seed=2)
        assert_close(layer(x), swiglu(x, weights), claim=f"with x of shape {tuple(x.shape)}")


@pytest.mark.exercise("SwiGLU")
def test_gradients_reach_x_and_all_three_weights(student: Student) -> None:
    """Everything learns: x and the three weights get the gradients of the formula."""
    weights = swiglu_weights(6, 11, seed=1)
    learns(student, loaded(student, "SwiGLU", weights), normal(2, 5, 6, seed=2), swiglu, weights)


@pytest.mark.exercise("SwiGLU", weight=0.5)
def test_nothing_in_the_layer_is_random(student: Student) -> None:
    """Without dropout the same x gives the same output, in training and in evaluation."""
    weights, x = swiglu_weights(6, 32, seed=1), normal(2, 5, 6, seed=2)
    is_not_random(loaded(student, "SwiGLU", weights), x, swiglu(x, weights))


@pytest.mark.exercise("SwiGLU", weight=0.5)
def test_a_bfloat16_layer_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16."""
    weights, x = swiglu_weights(6, 11, seed=1), normal(2, 5, 6, seed=2)
    layer = loaded(student, "SwiGLU", weights)
    layer.bfloat16()
    assert_close(layer(x.bfloat16()), swiglu(x, weights).bfloat16(), atol=0.15, rtol=0.05)


@pytest.mark.exercise("SwiGLU", weight=0.5)
def test_the_layer_leaves_x_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    weights, x = swiglu_weights(6, 11, seed=1), normal(2, 5, 6, seed=2)
    layer, kept = loaded(student, "SwiGLU", weights), student.put(x)
    assert_close(layer(kept), swiglu(x, weights))
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
