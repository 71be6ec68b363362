"""Hidden tests of chapter 05. Expected values come from PyTorch, laws from theory.

A test looks at one claim: inputs are of size one where eps is not the question, and weights are powers of two where the
order of casts is not. The sub-layers of a block are functions on this side: they note what they are given.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Remote, Student, assert_close, tensor
from autograder.testing import gradients, normal

FUNCTIONS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")
RESERVED = {  # the modules call these, and their names are those of the exercises
    "LayerNorm": (
        *(f"torch.nn.functional.{name}" for name in FUNCTIONS),
        *(f"torch.{name}" for name in FUNCTIONS),
        *(f"torch.ops.aten.{name}" for name in FUNCTIONS),
        "torch.native_layer_norm",
        "torch.native_group_norm",
        "torch.native_batch_norm",
        "torch.ops.aten.native_layer_norm",
        "torch.ops.aten.native_group_norm",
        "torch.ops.aten.native_batch_norm",
    ),
    "RMSNorm": ("torch._fused_rms_norm", "torch.ops.aten._fused_rms_norm"),
}
SHAPES = ((2, 5, 12), (3, 7, 9), (6, 33), (17,), (2, 3, 4, 5), (1, 1, 64))


def created(student: Student, kind: str, *arguments: object, **keywords: object) -> tuple[Remote, dict[str, Tensor]]:
    """A new layer and its state dict."""
    layer = getattr(student, kind)(*arguments, **keywords)
    assert isinstance(layer, Remote), f"{kind}(...) should give a layer."
    state = layer.state_dict()
    assert isinstance(state, dict), f"The layer's state_dict() should be a dict: is {kind} an nn.Module?"
    return layer, {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def loaded(student: Student, kind: str, weights: dict[str, Tensor], *arguments: object, **keywords: object) -> Remote:
    """A layer with these weights. What it has beside them is zeroed: another test sees to that."""
    layer, state = created(student, kind, *arguments, **keywords)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()} | weights)
    return layer


def norm_weights(kind: str, d_model: int, seed: int) -> dict[str, Tensor]:
    """A random weight, of either sign and far from 1, and for LayerNorm a random bias."""
    names = ("weight", "bias") if kind == "LayerNorm" else ("weight",)
    return {name: 2 * normal(d_model, seed=seed + i) for i, name in enumerate(names)}


def layer_norm(x: Tensor, weights: dict[str, Tensor], eps: float = 1e-5) -> Tensor:
    return functional.layer_norm(x, weights["weight"].shape, weights["weight"], weights["bias"], eps)


def rms_norm(x: Tensor, weights: dict[str, Tensor], eps: float = 1e-6) -> Tensor:
    return functional.rms_norm(x, weights["weight"].shape, weights["weight"], eps)


ORACLES: dict[str, Callable[..., Tensor]] = {"LayerNorm": layer_norm, "RMSNorm": rms_norm}


def matches(student: Student, kind: str) -> None:
    for seed, shape in enumerate(SHAPES):
        weights, x = norm_weights(kind, shape[-1], seed=10 * seed), 2 * normal(*shape, seed=seed) + 1
        layer = loaded(student, kind, weights, shape[-1])
        assert_close(layer(x), ORACLES[kind](x, weights), claim=f"x of shape {shape}")


def learns(student: Student, kind: str) -> None:
    """The gradients of x and of all parameters are those of PyTorch's."""
    weights = {name: value.requires_grad_() for name, value in norm_weights(kind, 9, seed=1).items()}
    x, upstream = (2 * normal(3, 5, 9, seed=2) + 1).requires_grad_(), normal(3, 5, 9, seed=3)
    expected = gradients(ORACLES[kind](x, weights), upstream, x=x, **weights)
    layer = loaded(student, kind, {name: value.detach() for name, value in weights.items()}, 9)
    found = {"x": gradients(layer(x), upstream, x=x)["x"], **student.grads(layer)}
    for name, value in expected.items():
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


def keeps_to_itself(student: Student, kind: str) -> None:
    """A position gives the same alone and in company, whatever the others hold."""
    x = normal(3, 4, 6, seed=1)
    layer = loaded(student, kind, norm_weights(kind, 6, seed=2), 6)
    together = tensor(layer(x), shape=x.shape).detach()
    assert together.flatten(0, 1).unique(dim=0).shape[0] == 12, "Different positions give the same."
    assert_close(layer(x[:1]), together[:1], claim="the first text alone")
    assert_close(layer(x[:, 2:3]), together[:, 2:3], claim="one position of each text")
    changed = x.clone()
    changed[1, 3] = 40 + 9 * normal(6, seed=3)
    after = tensor(layer(changed), shape=x.shape).detach()
    assert not torch.allclose(after[1, 3], together[1, 3]), "A position that changed gives what it gave before."
    assert after[1, 3].abs().max() < 30, "A position of large numbers comes out as large: nothing is normalised."
    after[1, 3] = together[1, 3]
    assert_close(after, together, claim="after a change at one position", name="the result at the others")


def changes_nothing(student: Student, kind: str) -> None:
    """Training and evaluation agree, no call changes a later one, and none changes x."""
    x, weights = normal(2, 5, 6, seed=1), norm_weights(kind, 6, seed=2)
    layer, kept = loaded(student, kind, weights, 6), student.put(x)
    layer.train()
    first = tensor(layer(kept), shape=x.shape).detach()
    assert first.std() > 0.1, "The result is the same everywhere."
    assert not torch.equal(first, x), "The result is x itself."
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    tensor(layer(50 + 20 * normal(4, 3, 6, seed=3)), shape=(4, 3, 6))
    assert_close(layer(x), first, claim="after a call with another x")
    layer.eval()
    assert_close(layer(x), first, claim="in evaluation")
    assert set(layer.state_dict()) == set(weights), "After a few calls the state dict holds other names."


# -- LayerNorm ------------------------------------------------------------------------------------------------------


@pytest.mark.exercise("LayerNorm")
def test_a_layer_norm_holds_a_weight_and_a_bias(student: Student) -> None:
    """The state dict holds weight (ones in a new layer) and bias (zeros), both of shape (d_model,), both trained."""
    for d_model in (12, 5):
        layer, state = created(student, "LayerNorm", d_model)
        assert set(state) == {"weight", "bias"}, f"The state dict holds {sorted(state)}."
        assert set(student.grads(layer)) == {"weight", "bias"}, "Not both, weight and bias, are trained."
        for name, value in {"weight": torch.ones(d_model), "bias": torch.zeros(d_model)}.items():
            assert_close(state[name], value, name=f"{name} of a new layer")


@pytest.mark.exercise("LayerNorm", weight=2)
def test_layer_norm_matches_pytorchs(student: Student) -> None:
    """With the same weights the layer gives what F.layer_norm gives, for any number of leading dimensions."""
    matches(student, "LayerNorm")


@pytest.mark.exercise("LayerNorm")
def test_a_new_layer_gives_mean_zero_and_variance_one(student: Student) -> None:
    """At every position the mean is 0 and the mean square 1: the variance is divided by d_model, not by d_model − 1."""
    for d_model in (3, 8):
        x = 20 * normal(2, 5, d_model, seed=d_model) + 7  # so large that eps hardly counts
        out = tensor(created(student, "LayerNorm", d_model)[0](x), shape=x.shape, dtype=torch.float32).detach()
        assert_close(out.mean(-1), torch.zeros(2, 5), atol=1e-3, name="the mean of a position")
        assert_close(out.square().mean(-1), torch.ones(2, 5), atol=1e-3, name="the variance of a position")


@pytest.mark.exercise("LayerNorm", weight=2)
def test_a_position_is_normalised_by_itself(student: Student) -> None:
    """Mean and variance run over the last dimension only: other positions and other texts play no part."""
    keeps_to_itself(student, "LayerNorm")


@pytest.mark.exercise("LayerNorm")
def test_eps_stands_inside_the_root(student: Student) -> None:
    """What is divided by is the root of variance plus eps: it shows where the numbers are small, or eps is large."""
    weights = norm_weights("LayerNorm", 8, seed=1)
    layer = loaded(student, "LayerNorm", weights, 8)
    for size in (1e-3, 3e-3):
        x = size * normal(2, 5, 8, seed=2)
        assert_close(layer(x), layer_norm(x, weights), claim=f"for x of size {size}")
    x = normal(2, 5, 8, seed=3)
    for eps in (0.5, 2.0):
        layer = loaded(student, "LayerNorm", weights, 8, eps=eps)
        assert_close(layer(x), layer_norm(x, weights, eps), claim=f"with eps={eps}")


@pytest.mark.exercise("LayerNorm")
def test_weight_scales_and_bias_shifts_each_channel(student: Student) -> None:
    """Each channel is multiplied by its own weight first, and gets its own bias after that."""
    x = 5 * normal(2, 4, 6, seed=1)
    layer, _ = created(student, "LayerNorm", 6)
    plain = tensor(layer(x), shape=x.shape).detach()
    assert plain.std() > 0.1, "A new layer gives the same everywhere."
    for channel in (0, 4):
        weight, bias = torch.ones(6), torch.zeros(6)
        weight[channel], bias[channel] = -3.0, 10.0
        layer.load_state_dict({"weight": weight, "bias": bias})
        expected = plain.clone()
        expected[..., channel] = 10 - 3 * plain[..., channel]
        assert_close(layer(x), expected, claim=f"with weight −3 and bias 10 in channel {channel}")
    bias = normal(6, seed=2)
    layer.load_state_dict({"weight": torch.zeros(6), "bias": bias})
    assert_close(layer(x), bias.expand(2, 4, 6), claim="with a weight of zeros")


@pytest.mark.exercise("LayerNorm")
def test_shift_and_size_of_a_position_do_not_matter(student: Student) -> None:
    """Adding a number to a whole position, or multiplying it by one above zero, changes nothing."""
    x = 10 * normal(2, 5, 8, seed=1)
    layer = loaded(student, "LayerNorm", norm_weights("LayerNorm", 8, seed=2), 8)
    before = tensor(layer(x), shape=x.shape).detach()
    assert before.std() > 0.1, "The result is the same everywhere."
    assert_close(layer(x + 30), before, atol=1e-3, claim="with 30 added")
    assert_close(layer(8 * x), before, atol=1e-3, claim="multiplied by 8")
    factors = torch.tensor([1.0, 2, 4, 8, 16])[:, None]  # each position has its own
    assert_close(layer(factors * x), before, atol=1e-3, claim="with each position multiplied by another number")


@pytest.mark.exercise("LayerNorm")
def test_a_position_of_equal_numbers_gives_the_bias(student: Student) -> None:
    """Where there is no spread, the result is bias: no NaN from 0/0, forwards or backwards."""
    weights, x = norm_weights("LayerNorm", 8, seed=1), normal(2, 5, 8, seed=2)
    x[0, 1], x[1, 4] = 0.5, 0.0
    x.requires_grad_()
    layer = loaded(student, "LayerNorm", weights, 8)
    out = tensor(layer(x), shape=x.shape)
    flat = torch.stack([out[0, 1], out[1, 4]]).detach()
    assert_close(flat, weights["bias"].expand(2, 8), name="the positions of equal numbers")
    grad = gradients(layer(x), normal(2, 5, 8, seed=3), x=x)["x"]
    wrong = int((~grad.isfinite()).sum())
    assert not wrong, f"{wrong} entries of the gradient of x are NaN or infinite."
    assert grad.any(), "The gradient of x is zero everywhere."


@pytest.mark.exercise("LayerNorm")
def test_numbers_far_from_zero_keep_their_spread(student: Student) -> None:
    """The variance is the mean squared distance from the mean: mean of squares minus squared mean loses its digits."""
    weights = norm_weights("LayerNorm", 16, seed=1)
    layer = loaded(student, "LayerNorm", weights, 16)
    for offset in (1000.0, -4000.0):
        x = offset + normal(2, 5, 16, seed=2)
        expected = layer_norm(x.double(), {name: value.double() for name, value in weights.items()}).float()
        assert_close(layer(x), expected, atol=1e-2, rtol=1e-2, claim=f"for x around {offset:g}")


@pytest.mark.exercise("LayerNorm", weight=2)
def test_layer_norm_lets_gradients_through(student: Student) -> None:
    """Mean and variance depend on x too: the gradients of x, weight and bias are those of F.layer_norm."""
    learns(student, "LayerNorm")


@pytest.mark.exercise("LayerNorm")
def test_layer_norm_keeps_the_dtype(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64."""
    weights, x = norm_weights("LayerNorm", 8, seed=1), normal(2, 5, 8, seed=2)
    expected = layer_norm(x, weights)
    for dtype in (torch.bfloat16, torch.float64):
        layer = loaded(student, "LayerNorm", weights, 8)
        layer.to(dtype)
        atol = 0.15 if dtype == torch.bfloat16 else 1e-4
        assert_close(layer(x.to(dtype)), expected.to(dtype), atol=atol, name=f"the {str(dtype)[6:]} result")


@pytest.mark.exercise("LayerNorm", weight=0.5)
def test_a_call_of_layer_norm_changes_nothing(student: Student) -> None:
    """Training and evaluation agree, there are no running statistics, and x stays as it was (beware of -= and *=)."""
    changes_nothing(student, "LayerNorm")


# -- RMSNorm --------------------------------------------------------------------------------------------------------


def llamas(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """What LlamaRMSNorm of transformers 5.23.0 gives: float32 up to the quotient, a cast, and then the weight."""
    quotient = functional.rms_norm(x.float(), weight.shape, eps=eps)
    return quotient.to(x.dtype) * weight.to(x.dtype)


def same_bits(found: object, expected: Tensor, claim: str) -> None:
    """All but one in a hundred entries are exactly these: correct roundings differ that rarely."""
    found = tensor(found, shape=expected.shape, dtype=expected.dtype)
    share = (found.detach() == expected).float().mean().item()
    assert share >= 0.99, f"{claim}: {1 - share:.0%} of the entries are rounded differently."


@pytest.mark.exercise("RMSNorm")
def test_an_rms_norm_holds_a_weight_only(student: Student) -> None:
    """The state dict holds weight, of shape (d_model,), ones in a new layer, trained; and there is no bias."""
    for d_model in (12, 5):
        layer, state = created(student, "RMSNorm", d_model)
        assert set(state) == {"weight"}, f"The state dict holds {sorted(state)}."
        assert set(student.grads(layer)) == {"weight"}, f"What is trained is {sorted(student.grads(layer))}."
        assert_close(state["weight"], torch.ones(d_model), name="weight of a new layer")


@pytest.mark.exercise("RMSNorm", weight=2)
def test_rms_norm_matches_pytorchs(student: Student) -> None:
    """With the same weight the layer gives what F.rms_norm gives, for any number of leading dimensions."""
    matches(student, "RMSNorm")


@pytest.mark.exercise("RMSNorm")
def test_a_new_layer_gives_mean_square_one(student: Student) -> None:
    """At every position the mean of the squares is 1: the sum of squares is divided by d_model before the root."""
    for d_model in (3, 16):
        x = 20 * normal(2, 5, d_model, seed=d_model) + 7
        out = tensor(created(student, "RMSNorm", d_model)[0](x), shape=x.shape, dtype=torch.float32).detach()
        assert_close(out.square().mean(-1), torch.ones(2, 5), atol=1e-3, name="the mean square of a position")


@pytest.mark.exercise("RMSNorm")
def test_the_mean_stays(student: Student) -> None:
    """All numbers of a position are divided by the same number, and nothing is subtracted from them."""
    layer, _ = created(student, "RMSNorm", 8)
    x = normal(2, 5, 8, seed=1) + 3
    out = tensor(layer(x), shape=x.shape).detach()
    ratio = x / out
    assert_close(ratio, ratio[..., :1].expand_as(ratio), atol=1e-3, rtol=1e-3, name="x divided by the result")
    assert (ratio > 0).all(), "The result has not the signs of x."
    equal = torch.tensor([4.0, -4.0, 0.25])[:, None].expand(3, 8)
    expected = equal.sign()
    assert_close(layer(equal), expected, atol=1e-3, claim="where all numbers of a position are equal")


@pytest.mark.exercise("RMSNorm", weight=2)
def test_a_position_is_divided_by_its_own_rms(student: Student) -> None:
    """The mean square runs over the last dimension only: other positions and other texts play no part."""
    keeps_to_itself(student, "RMSNorm")


@pytest.mark.exercise("RMSNorm")
def test_eps_stands_beside_the_mean_square(student: Student) -> None:
    """What is divided by is the root of the mean square plus eps; zeros give zeros, and finite gradients."""
    weights = norm_weights("RMSNorm", 8, seed=1)
    layer = loaded(student, "RMSNorm", weights, 8)
    for size in (3e-4, 1e-3):
        x = size * normal(2, 5, 8, seed=2)
        assert_close(layer(x), rms_norm(x, weights), claim=f"for x of size {size}")
    x = normal(2, 5, 8, seed=3)
    for eps in (0.5, 2.0):
        again = loaded(student, "RMSNorm", weights, 8, eps=eps)
        assert_close(again(x), rms_norm(x, weights, eps), claim=f"with eps={eps}")
    x[0, 2] = 0
    x.requires_grad_()
    out = tensor(layer(x), shape=x.shape)
    assert_close(out[0, 2].detach(), torch.zeros(8), name="a position of zeros")
    grad = gradients(layer(x), normal(2, 5, 8, seed=4), x=x)["x"]
    assert grad.isfinite().all(), f"{int((~grad.isfinite()).sum())} entries of the gradient of x are not finite."


@pytest.mark.exercise("RMSNorm")
def test_the_weight_multiplies_as_it_is(student: Student) -> None:
    """Each channel is multiplied by its own weight: 0 gives 0, −3 turns the sign, and 1 is not added to it."""
    x = 5 * normal(2, 4, 6, seed=1)
    layer, _ = created(student, "RMSNorm", 6)
    plain = tensor(layer(x), shape=x.shape).detach()
    assert plain.std() > 0.1, "A new layer gives the same everywhere."
    for weight in (torch.tensor([0.0, 1, 1, -3, 1, 1]), torch.tensor([1.0, 1, 1, 1, 0.5, 0])):
        layer.load_state_dict({"weight": weight})
        assert_close(layer(x), plain * weight, claim=f"with the weight {weight.tolist()}")


@pytest.mark.exercise("RMSNorm", weight=2)
def test_half_precision_is_computed_in_float32(student: Student) -> None:
    """bfloat16 and float16 are turned into float32 before the squares, and cast back after the division."""
    weight = 2.0 ** torch.arange(-4, 4).repeat(16)  # multiplying by it rounds nothing
    for dtype, size in ((torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 1000.0)):
        layer = loaded(student, "RMSNorm", {"weight": weight}, 128)
        layer.to(dtype)
        x = (size * normal(3, 5, 128, seed=1)).to(dtype)
        same_bits(layer(x), llamas(x, weight), f"{str(dtype)[6:]}, numbers of size {size:g}")


@pytest.mark.exercise("RMSNorm")
def test_the_cast_comes_before_the_weight(student: Student) -> None:
    """As in LLaMA the quotient is cast to the dtype of x first, and multiplied by weight after that."""
    for seed in (1, 2):
        weight, x = 1 + 0.5 * normal(128, seed=seed), normal(3, 5, 128, seed=10 + seed).bfloat16()
        layer = loaded(student, "RMSNorm", {"weight": weight}, 128)
        layer.bfloat16()
        same_bits(layer(x), llamas(x, weight), "in bfloat16 with a random weight")


@pytest.mark.exercise("RMSNorm", weight=2)
def test_rms_norm_lets_gradients_through(student: Student) -> None:
    """The mean square depends on x too: the gradients of x and weight are those of F.rms_norm."""
    learns(student, "RMSNorm")


@pytest.mark.exercise("RMSNorm", weight=0.5)
def test_rms_norm_keeps_the_dtype(student: Student) -> None:
    """The result has the dtype of x: bfloat16, float16, float32 or float64."""
    weights, x = norm_weights("RMSNorm", 8, seed=1), normal(2, 5, 8, seed=2)
    expected = rms_norm(x, weights)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        layer = loaded(student, "RMSNorm", weights, 8)
        layer.to(dtype)
        atol = 1e-4 if dtype == torch.float64 else 0.1
        assert_close(layer(x.to(dtype)), expected.to(dtype), atol=atol, name=f"the {str(dtype)[6:]} result")


@pytest.mark.exercise("RMSNorm", weight=0.5)
def test_a_call_of_rms_norm_changes_nothing(student: Student) -> None:
    """Training and evaluation agree, there are no running statistics, and x stays as it was (beware of -= and *=)."""
    changes_nothing(student, "RMSNorm")


# -- the blocks -----------------------------------------------------------------------------------------------------

D_MODEL = 6
NORMS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")


class Listening:
    """A sub-layer on this side: it notes what it is given, and in which order the two were called."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str, order: list[str]) -> None:
        self.function, self.name, self.order = function, name, order
        self.inputs: list[Tensor] = []

    def __call__(self, *arguments: object) -> Tensor:
        self.order.append(self.name)
        assert len(arguments) == 1, f"{self.name} is called with {len(arguments)} arguments, and takes one tensor."
        x = tensor(arguments[0], name=f"what {self.name} is given").detach()
        self.inputs.append(x)
        return self.function(x)


def mixes(x: Tensor) -> Tensor:
    """In the place of attention: every position takes something from those before it."""
    return 2 * x.cumsum(-2).roll(1, -1) - 1


def bends(x: Tensor) -> Tensor:
    """In the place of the feed-forward part."""
    return 3 * torch.tanh(x).flip(-1) + 0.5


def nothing(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def block_weights(d_model: int, seed: int) -> dict[str, Tensor]:
    return {name: 2 * normal(d_model, seed=seed + i) for i, name in enumerate(NORMS)}


def always(value: Tensor) -> Callable[[Tensor], Tensor]:
    """A part that gives the same whatever it is given."""
    return lambda _: value


class Heard:
    """A block on this side's sub-layers, called once: its result, and what each sub-layer was given."""

    def __init__(
        self,
        student: Student,
        kind: str,
        x: Tensor,
        attention: Callable[[Tensor], Tensor] = mixes,
        feed_forward: Callable[[Tensor], Tensor] = bends,
    ) -> None:
        self.order: list[str] = []
        self.attention = Listening(attention, "attention", self.order)
        self.feed_forward = Listening(feed_forward, "feed_forward", self.order)
        self.weights = block_weights(x.shape[-1], seed=1)
        layer = loaded(student, kind, self.weights, x.shape[-1], self.attention, self.feed_forward)
        self.out = tensor(layer(x), shape=x.shape, dtype=x.dtype).detach()

    def norm(self, which: int, x: Tensor) -> Tensor:
        return layer_norm(x, {name: self.weights[f"norm{which}.{name}"] for name in ("weight", "bias")})

    def given(self, name: str, like: Tensor) -> Tensor:
        inputs = getattr(self, name).inputs
        assert len(inputs) == 1, f"{name} should be called once, and it was called {len(inputs)} times."
        return tensor(inputs[0], shape=like.shape, dtype=like.dtype, name=f"what {name} is given")


def some_x(seed: int, batch: int = 2, n: int = 5, d_model: int = D_MODEL) -> Tensor:
    return 3 * normal(batch, n, d_model, seed=seed) + 1


def holds_two_norms(student: Student, kind: str) -> None:
    for d_model in (6, 10):
        layer, state = created(student, kind, d_model, nothing, nothing)
        assert set(state) == set(NORMS), f"With functions for sub-layers, the state dict holds {sorted(state)}."
        assert set(student.grads(layer)) == set(NORMS), f"What is trained is {sorted(student.grads(layer))}."
        for name, value in state.items():
            like = torch.ones(d_model) if name.endswith("weight") else torch.zeros(d_model)
            assert_close(value, like, name=f"{name} of a new block")


def holds_its_sublayers(student: Student, kind: str) -> None:
    parts = {"attention": student.Attention(D_MODEL), "feed_forward": student.FeedForward(D_MODEL)}
    layer, state = created(student, kind, D_MODEL, parts["attention"], parts["feed_forward"])
    inside = {f"{part}.{name}" for part, remote in parts.items() for name in remote.state_dict()}
    assert set(state) == {*NORMS, *inside}, f"With modules for sub-layers, the state dict holds {sorted(state)}."
    assert set(student.grads(layer)) == set(state), "Not all of the block's entries are trained."


def calls_each_once(student: Student, kind: str) -> None:
    for seed in (1, 2):
        x = some_x(seed)
        heard = Heard(student, kind, x)
        heard.given("attention", x)
        heard.given("feed_forward", x)
        assert heard.order == ["attention", "feed_forward"], f"The sub-layers are called in the order {heard.order}."


def agrees_with_pytorchs(student: Student, kind: str) -> None:
    """nn.TransformerEncoderLayer is such a block; its own two sub-layers are handed to the student's."""
    for seed, (batch, n, d_model) in enumerate(((2, 5, 6), (3, 7, 4), (1, 1, 8))):
        torch.manual_seed(seed)
        theirs = nn.TransformerEncoderLayer(
            d_model, 2, 3 * d_model, dropout=0.0, batch_first=True, norm_first=kind == "PreNormBlock"
        )
        weights = block_weights(d_model, seed=10 * seed)
        theirs.load_state_dict({**theirs.state_dict(), **weights})
        attend, up, down = theirs.self_attn, theirs.linear1, theirs.linear2

        def attention(x: Tensor, attend: nn.Module = attend) -> Tensor:
            return attend(x, x, x, need_weights=False)[0].detach()

        def feed_forward(x: Tensor, up: nn.Module = up, down: nn.Module = down) -> Tensor:
            return down(torch.relu(up(x))).detach()

        x = some_x(seed, batch, n, d_model)
        layer = loaded(student, kind, weights, d_model, attention, feed_forward)
        assert_close(layer(x), theirs(x).detach(), claim=f"x of shape {tuple(x.shape)}")


def remote_parts(student: Student) -> tuple[dict[str, Remote], dict[str, Tensor]]:
    """The set-up cell's sub-layers in the student's process, with random weights."""
    parts = {"attention": student.Attention(D_MODEL), "feed_forward": student.FeedForward(D_MODEL)}
    weights: dict[str, Tensor] = {}
    for i, (part, remote) in enumerate(parts.items()):
        for j, (name, value) in enumerate(remote.state_dict().items()):
            weights[f"{part}.{name}"] = 0.5 * normal(*value.shape, seed=50 + 10 * i + j)
    return parts, weights


def pytorchs_block(kind: str, x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The block around the set-up cell's sub-layers, from PyTorch's functions."""

    def attention(z: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (z @ w["attention.qkv.weight"].T).chunk(3, -1)
        )
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return heads.transpose(1, 2).flatten(-2) @ w["attention.out.weight"].T

    def feed_forward(z: Tensor) -> Tensor:
        up = functional.linear(z, w["feed_forward.up.weight"], w["feed_forward.up.bias"])
        return functional.linear(functional.gelu(up), w["feed_forward.down.weight"], w["feed_forward.down.bias"])

    def norm(which: int, z: Tensor) -> Tensor:
        return layer_norm(z, {name: w[f"norm{which}.{name}"] for name in ("weight", "bias")})

    if kind == "PreNormBlock":
        h = x + attention(norm(1, x))
        return h + feed_forward(norm(2, h))
    h = norm(1, x + attention(x))
    return norm(2, h + feed_forward(h))


def block_learns(student: Student, kind: str) -> None:
    parts, inside = remote_parts(student)
    weights = {name: value.requires_grad_() for name, value in {**block_weights(D_MODEL, seed=1), **inside}.items()}
    x, upstream = some_x(2).requires_grad_(), normal(2, 5, D_MODEL, seed=3)
    out = pytorchs_block(kind, x, weights)
    names = list(weights)
    expected = torch.autograd.grad(out, [x, *weights.values()], upstream)
    plain = {name: value.detach() for name, value in weights.items()}
    layer = loaded(student, kind, plain, D_MODEL, parts["attention"], parts["feed_forward"])
    found = {"x": gradients(layer(x), upstream, x=x)["x"], **student.grads(layer)}
    for name, value in zip(["x", *names], expected, strict=True):
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=2e-3, rtol=2e-3, name=f"the gradient of {name}")


def block_keeps_dtype(student: Student, kind: str) -> None:
    parts, inside = remote_parts(student)
    weights, x = {**block_weights(D_MODEL, seed=1), **inside}, some_x(2)
    expected = pytorchs_block(kind, x, weights)
    for dtype in (torch.bfloat16, torch.float64):
        layer = loaded(student, kind, weights, D_MODEL, parts["attention"], parts["feed_forward"])
        layer.to(dtype)
        tolerance = 0.3 if dtype == torch.bfloat16 else 1e-3
        assert_close(
            layer(x.to(dtype)), expected.to(dtype), atol=tolerance, rtol=0.1, name=f"the {str(dtype)[6:]} result"
        )
        layer.float()


def block_changes_nothing(student: Student, kind: str) -> None:
    x = some_x(1)
    layer, kept = loaded(student, kind, block_weights(D_MODEL, seed=1), D_MODEL, mixes, bends), student.put(x)
    layer.train()
    first = tensor(layer(kept), shape=x.shape).detach()
    assert first.std() > 0.1, "The result is the same everywhere."
    assert not torch.equal(first, x), "The result is x itself."
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(layer(x), first, claim="called twice")
    layer.eval()
    assert_close(layer(x), first, claim="in evaluation")


# -- PreNormBlock ---------------------------------------------------------------------------------------------------


@pytest.mark.exercise("PreNormBlock")
def test_a_pre_norm_block_holds_two_norms(student: Student) -> None:
    """norm1 and norm2 are LayerNorms with parameters of their own, and functions for sub-layers add no entries."""
    holds_two_norms(student, "PreNormBlock")


@pytest.mark.exercise("PreNormBlock")
def test_a_pre_norm_block_holds_its_sublayers(student: Student) -> None:
    """Where a sub-layer is a module, its entries stand under attention. or feed_forward., and are trained."""
    holds_its_sublayers(student, "PreNormBlock")


@pytest.mark.exercise("PreNormBlock", weight=2)
def test_a_pre_norm_block_matches_pytorchs(student: Student) -> None:
    """With the same sub-layers the block gives what nn.TransformerEncoderLayer gives with norm_first=True."""
    agrees_with_pytorchs(student, "PreNormBlock")


@pytest.mark.exercise("PreNormBlock")
def test_attention_reads_a_normalised_copy(student: Student) -> None:
    """What attention is given is norm1(x), and nothing else."""
    for size in (1, 1e-3):  # with small numbers eps counts
        x = size * some_x(1)
        heard = Heard(student, "PreNormBlock", x)
        claim = f"with a stream {size:g} times as large"
        assert_close(heard.given("attention", x), heard.norm(1, x), claim=claim, name="what attention is given")


@pytest.mark.exercise("PreNormBlock")
def test_feed_forward_reads_the_stream_after_attention_normalised(student: Student) -> None:
    """What the feed-forward part is given is norm2 of the stream to which attention has added."""
    for size in (1, 1e-3):  # with small numbers eps counts
        x, first = size * some_x(1), 5 * size * normal(2, 5, D_MODEL, seed=9)
        heard = Heard(student, "PreNormBlock", x, attention=always(first))
        given, claim = heard.given("feed_forward", x), f"with a stream {size:g} times as large"
        assert_close(given, heard.norm(2, x + first), claim=claim, name="what feed_forward is given")


@pytest.mark.exercise("PreNormBlock")
def test_the_stream_passes_untouched(student: Student) -> None:
    """Where a sub-layer adds zeros, the stream is what it was: whole, not scaled, and not normalised."""
    x = 100 * some_x(1)
    heard = Heard(student, "PreNormBlock", x, attention=nothing, feed_forward=nothing)
    assert heard.order, "Neither sub-layer is called."
    assert_close(heard.out, x, atol=0, rtol=1e-6, claim="both sub-layers add zeros", name="the stream")


@pytest.mark.exercise("PreNormBlock", weight=2)
def test_each_sublayer_adds_to_the_stream(student: Student) -> None:
    """The result is x plus what attention gave plus what the feed-forward part gave, each once and in full."""
    x, first, second = some_x(1), 5 * normal(2, 5, D_MODEL, seed=8), 7 * normal(2, 5, D_MODEL, seed=9)
    one = Heard(student, "PreNormBlock", x, attention=lambda z: first, feed_forward=nothing)
    assert_close(one.out, x + first, claim="where only attention adds")
    two = Heard(student, "PreNormBlock", x, attention=nothing, feed_forward=lambda z: second)
    assert_close(two.out, x + second, claim="where only feed_forward adds")
    both = Heard(student, "PreNormBlock", x, attention=lambda z: first, feed_forward=lambda z: second)
    assert_close(both.out, x + first + second, claim="where both add")


@pytest.mark.exercise("PreNormBlock")
def test_a_pre_norm_block_calls_each_sublayer_once(student: Student) -> None:
    """Attention comes first and the feed-forward part second, one call each."""
    calls_each_once(student, "PreNormBlock")


@pytest.mark.exercise("PreNormBlock", weight=2)
def test_a_pre_norm_block_lets_gradients_through(student: Student) -> None:
    """The gradients of x, of both norms and of both sub-layers are those of the formula."""
    block_learns(student, "PreNormBlock")


@pytest.mark.exercise("PreNormBlock", weight=0.5)
def test_a_pre_norm_block_keeps_the_dtype(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64."""
    block_keeps_dtype(student, "PreNormBlock")


@pytest.mark.exercise("PreNormBlock", weight=0.5)
def test_a_call_of_a_pre_norm_block_changes_nothing(student: Student) -> None:
    """Nothing is random or remembered, and x stays as it was (beware of +=)."""
    block_changes_nothing(student, "PreNormBlock")


# -- PostNormBlock --------------------------------------------------------------------------------------------------


@pytest.mark.exercise("PostNormBlock")
def test_a_post_norm_block_holds_two_norms(student: Student) -> None:
    """norm1 and norm2 are LayerNorms with parameters of their own, and functions for sub-layers add no entries."""
    holds_two_norms(student, "PostNormBlock")


@pytest.mark.exercise("PostNormBlock")
def test_a_post_norm_block_holds_its_sublayers(student: Student) -> None:
    """Where a sub-layer is a module, its entries stand under attention. or feed_forward., and are trained."""
    holds_its_sublayers(student, "PostNormBlock")


@pytest.mark.exercise("PostNormBlock", weight=2)
def test_a_post_norm_block_matches_pytorchs(student: Student) -> None:
    """With the same sub-layers the block gives what nn.TransformerEncoderLayer gives with norm_first=False."""
    agrees_with_pytorchs(student, "PostNormBlock")


@pytest.mark.exercise("PostNormBlock")
def test_attention_reads_the_stream_as_it_is(student: Student) -> None:
    """What attention is given is x itself, not a normalised copy."""
    x = some_x(1)
    heard = Heard(student, "PostNormBlock", x)
    assert_close(heard.given("attention", x), x, name="what attention is given")


@pytest.mark.exercise("PostNormBlock")
def test_feed_forward_reads_the_normalised_sum(student: Student) -> None:
    """What the feed-forward part is given is norm1 of x plus what attention gave."""
    for size in (1, 1e-3):  # with small numbers eps counts
        x, first = size * some_x(1), 5 * size * normal(2, 5, D_MODEL, seed=9)
        heard = Heard(student, "PostNormBlock", x, attention=always(first))
        given, claim = heard.given("feed_forward", x), f"with a stream {size:g} times as large"
        assert_close(given, heard.norm(1, x + first), claim=claim, name="what feed_forward is given")


@pytest.mark.exercise("PostNormBlock")
def test_what_leaves_the_block_is_normalised(student: Student) -> None:
    """The last thing that happens is norm2, on the sum of the stream and what the feed-forward part gave."""
    x, second = some_x(1), 7 * normal(2, 5, D_MODEL, seed=9)
    for attention, feed_forward, added in (
        (nothing, nothing, torch.zeros_like(x)),
        (nothing, lambda z: second, second),
    ):
        heard = Heard(student, "PostNormBlock", x, attention=attention, feed_forward=feed_forward)
        assert heard.order, "Neither sub-layer is called."
        claim = "both sub-layers give zeros" if attention is feed_forward else "attention gives zeros"
        assert_close(heard.out, heard.norm(2, heard.norm(1, x) + added), claim=claim)
    small = 1e-3 * second
    heard = Heard(student, "PostNormBlock", x, attention=nothing, feed_forward=lambda z: small - z)
    assert heard.order, "Neither sub-layer is called."
    claim = "feed_forward takes nearly all of the stream away, so that eps counts"
    assert_close(heard.out, heard.norm(2, small), atol=1e-2, claim=claim)


@pytest.mark.exercise("PostNormBlock")
def test_a_post_norm_block_calls_each_sublayer_once(student: Student) -> None:
    """Attention comes first and the feed-forward part second, one call each."""
    calls_each_once(student, "PostNormBlock")


@pytest.mark.exercise("PostNormBlock", weight=2)
def test_a_post_norm_block_lets_gradients_through(student: Student) -> None:
    """The gradients of x, of both norms and of both sub-layers are those of the formula."""
    block_learns(student, "PostNormBlock")


@pytest.mark.exercise("PostNormBlock", weight=0.5)
def test_a_post_norm_block_keeps_the_dtype(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64."""
    block_keeps_dtype(student, "PostNormBlock")


@pytest.mark.exercise("PostNormBlock", weight=0.5)
def test_a_call_of_a_post_norm_block_changes_nothing(student: Student) -> None:
    """Nothing is random or remembered, and x stays as it was (beware of +=)."""
    block_changes_nothing(student, "PostNormBlock")
