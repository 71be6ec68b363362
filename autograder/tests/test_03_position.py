"""Hidden tests of chapter 03. Expected values come from oracles, laws from theory; none from the reference.

The oracles compute in float64, and RoPE as a product of complex numbers. `tests/test_oracles_03_position.py` holds them
against transformers: Llama, GPT-J, BLOOM and gpt-oss.
"""

import math
import re

import pytest
import torch
from einops import rearrange
from torch import Tensor

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal


def refused(student: Student, call: str, *args: object, **kwargs: object) -> str:
    """The sentence of the ValueError that `student.call(...)` should raise."""
    raised: StudentError | None = None
    try:
        getattr(student, call)(*args, **kwargs)
    except Unfinished:
        raise
    except StudentError as error:
        raised = error
    assert raised is not None, f"{call}{args} raises nothing, and it should raise a ValueError."
    assert isinstance(raised, ValueError), f"{call}{args} raises {raised.types[0]}, and it should raise a ValueError."
    return str(raised)


def numbers(sentence: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", sentence)}


# -- the oracles ----------------------------------------------------------------------------------------------------


def frequencies(d: int, base: float) -> Tensor:
    """base^(−2i/d) for each pair i, in float64."""
    return torch.tensor([base ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float64)


def waves(n: int, d_model: int, base: float = 10000.0) -> Tensor:
    """Sinusoidal positions: real and imaginary part of e^(i·angle), swapped."""
    angles = torch.arange(n, dtype=torch.float64)[:, None] * frequencies(d_model, base)
    return torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).flip(-1).flatten(-2).float()


def turned(x: Tensor, positions: Tensor, theta: float = 10000.0, interleaved: bool = False) -> Tensor:
    """RoPE as a product of complex numbers. `positions` [n], or [batch, n] with x [batch, ..., n, d_head]."""
    layout = "... (i two) -> ... i two" if interleaved else "... (two i) -> ... i two"
    points = torch.view_as_complex(rearrange(x.double(), layout, two=2).contiguous())
    angles = positions.double()[..., None] * frequencies(x.shape[-1], theta)
    while positions.dim() == 2 and angles.dim() < points.dim():
        angles = angles[:, None]
    out = torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles))
    left, right = layout.split(" -> ")
    return rearrange(out, f"{right} -> {left}").to(x.dtype)


def slopes(n_heads: int) -> list[float]:
    """ALiBi's slopes, as its authors' own code has them: recursively."""
    if math.log2(n_heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n_heads) - 3)))
        return [start ** (head + 1) for head in range(n_heads)]
    power = 2 ** math.floor(math.log2(n_heads))
    return slopes(power) + slopes(2 * power)[0::2][: n_heads - power]


def yarn(
    d_head: int,
    factor: float,
    theta: float,
    n_train: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = False,
) -> Tensor:
    """YaRN's frequencies, pair by pair."""

    def bound(beta: float) -> float:
        return d_head * math.log(n_train / (beta * 2 * math.pi)) / (2 * math.log(theta))

    low, high = bound(beta_fast), bound(beta_slow)
    low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
    low, high = max(low, 0), min(high, d_head - 1)
    if low == high:
        high += 0.001
    found = []
    for i in range(d_head // 2):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        found.append(theta ** (-2 * i / d_head) * (1 - ramp + ramp / factor))
    return torch.tensor(found)


# -- sinusoidal -----------------------------------------------------------------------------------------------------


def table(student: Student, n: int, d_model: int, base: float = 10000.0) -> Tensor:
    """The student's table, in float32 whatever its dtype is, which has a test of its own. A constant earns nothing."""
    args = (n, d_model) if base == 10000.0 else (n, d_model, base)
    found = tensor(student.sinusoidal(*args), shape=(n, d_model), name=f"sinusoidal({n}, {d_model})").detach().float()
    assert n < 2 or bool((found[1:] != found[:-1]).any(-1).all()), "Two neighbouring positions have the same row."
    return found


@pytest.mark.exercise("sinusoidal", weight=0.5)
def test_the_table_has_a_row_for_each_position(student: Student) -> None:
    """The result is a float32 tensor with n rows and d_model columns, also for one position or one pair."""
    for n, d_model in ((7, 10), (1, 6), (5, 2)):
        name = f"sinusoidal({n}, {d_model})"
        found = tensor(student.sinusoidal(n, d_model), shape=(n, d_model), dtype=torch.float32, name=name)
        assert n == 1 or found.detach().std(0).all(), f"Some channel of {name} is the same at every position."


@pytest.mark.exercise("sinusoidal")
def test_positions_are_counted_from_zero(student: Student) -> None:
    """The first row is position 0: there every sine is 0 and every cosine is 1."""
    for n, d_model in ((3, 8), (9, 6)):
        first = table(student, n, d_model)[0]
        assert_close(first.sort().values, torch.tensor([0.0, 1.0]).repeat_interleave(d_model // 2), name="row 0")


@pytest.mark.exercise("sinusoidal")
def test_sines_and_cosines_alternate(student: Student) -> None:
    """Even channels hold sines, odd ones cosines, each beside the sine of the same frequency."""
    found = table(student, 6, 8)
    assert_close(found[0, 0::2], torch.zeros(4), claim="at position 0", name="the even channels")
    assert_close(found[0, 1::2], torch.ones(4), claim="at position 0", name="the odd channels")
    squares = found[:, 0::2] ** 2 + found[:, 1::2] ** 2
    assert_close(squares, torch.ones(6, 4), name="sin² + cos² of neighbouring channels")


@pytest.mark.exercise("sinusoidal", weight=2)
def test_each_pair_has_its_frequency(student: Student) -> None:
    """Pair i turns by base^(−2i/d_model) radians from one position to the next."""
    for n, d_model in ((12, 2), (9, 6), (20, 64), (33, 10)):
        assert_close(table(student, n, d_model), waves(n, d_model), claim=f"n {n}, d_model {d_model}")


@pytest.mark.exercise("sinusoidal")
def test_the_base_can_be_chosen(student: Student) -> None:
    """The third argument takes the place of 10,000, and is an argument by name as well."""
    for base in (100.0, 500000.0):
        assert_close(table(student, 8, 6, base), waves(8, 6, base), claim=f"with a base of {base:g}")
    assert_close(student.sinusoidal(5, 4, base=50.0), waves(5, 4, 50.0), claim="with base=50.0")


@pytest.mark.exercise("sinusoidal")
def test_there_is_no_last_position(student: Student) -> None:
    """Nothing runs out: rows far out are as precise as float32 allows."""
    n = 6007
    found = table(student, n, 6)
    assert_close(found[4000:], waves(n, 6)[4000:], atol=3e-3, rtol=0, claim="from position 4,000 on")


@pytest.mark.exercise("sinusoidal", weight=0.5)
def test_likeness_depends_on_the_distance_only(student: Student) -> None:
    """The dot product of two rows is a sum of cosines of their distance, wherever the two stand."""
    found = table(student, 40, 12)
    products = found @ found.T
    assert_close(products[7:, 7:], products[:-7, :-7], atol=1e-3, claim="both moved by 7", name="the dot products")
    assert bool((products[0, 1:] < products[0, 0]).all()), "Some position is as like position 0 as itself."


@pytest.mark.exercise("sinusoidal", weight=0.5)
def test_channels_come_in_pairs(student: Student) -> None:
    """An odd d_model raises a ValueError whose sentence names it; an even one does not."""
    table(student, 4, 6)
    for d_model in (7, 13):
        sentence = refused(student, "sinusoidal", 4, d_model)
        assert d_model in numbers(sentence), f"The sentence does not name d_model: {sentence}"


# -- LearnedPositions -----------------------------------------------------------------------------------------------


def created(student: Student, n_max: int, d_model: int) -> Remote:
    layer = student.LearnedPositions(n_max, d_model)
    assert isinstance(layer, Remote), "LearnedPositions(n_max, d_model) should give a layer."
    return layer


def loaded(student: Student, n_max: int, d_model: int, seed: int) -> tuple[Remote, Tensor]:
    """A layer with random rows, and these rows. What it has beside them is left as it is: another test sees to it."""
    layer, weight = created(student, n_max, d_model), normal(n_max, d_model, seed=seed)
    layer.load_state_dict({"weight": weight}, strict=False)
    return layer, weight


@pytest.mark.exercise("LearnedPositions")
def test_the_layer_has_one_trained_table_and_nothing_else(student: Student) -> None:
    """The state dict holds `weight`, of shape (n_max, d_model), which is trained and finite from the start."""
    for n_max, d_model in ((9, 4), (3, 7)):
        layer = created(student, n_max, d_model)
        state = layer.state_dict()
        assert isinstance(state, dict), "The layer's state_dict() should be a dict: is it an nn.Module?"
        assert set(state) == {"weight"}, f"The state dict holds {sorted(map(str, state))}."
        weight = tensor(state["weight"], shape=(n_max, d_model), dtype=torch.float32, name="weight")
        assert weight.isfinite().all(), "weight is not finite in a new layer: was it never initialised?"
        trained = student.grads(layer)
        assert set(trained) == {"weight"}, f"The parameters that are trained are {sorted(trained)}."
        layer.load_state_dict({"weight": torch.ones(n_max, d_model)})
        out = tensor(layer(torch.zeros(1, 2, d_model)), shape=(1, 2, d_model)).detach()
        assert out.any(), "The table is there, but the layer does not use it."


@pytest.mark.exercise("LearnedPositions", weight=2)
def test_each_token_gets_the_row_of_its_position(student: Student) -> None:
    """Token t of every sequence is x plus row t of the table; fewer tokens than rows are fine."""
    for seed, (batch, n, n_max, d_model) in enumerate([(2, 5, 9, 4), (3, 6, 6, 3), (1, 1, 8, 5), (4, 4, 70, 4)]):
        layer, weight = loaded(student, n_max, d_model, seed=seed)
        x = normal(batch, n, d_model, seed=10 + seed)
        assert_close(layer(x), x + weight[:n], claim=f"x {tuple(x.shape)}, a table of {n_max} rows")


@pytest.mark.exercise("LearnedPositions")
def test_an_offset_moves_along_the_table(student: Student) -> None:
    """With an offset the first token gets row `offset`, the next one the row after it; the last row may be used."""
    layer, weight = loaded(student, 9, 4, seed=1)
    for offset, n in ((3, 4), (8, 1), (4, 5)):
        x = normal(2, n, 4, seed=offset)
        assert_close(layer(x, offset), x + weight[offset : offset + n], claim=f"{n} tokens from position {offset}")
    x = normal(2, 2, 4, seed=1)
    assert_close(layer(x, offset=2), x + weight[2:4], claim="with offset=2 by name")


def past_the_end(student: Student, calls: list[tuple[int, int]], n_max: int) -> None:
    layer, weight = loaded(student, n_max, 4, seed=1)
    x = normal(2, n_max, 4, seed=2)
    try:
        fits = layer(x)
    except Unfinished:
        raise
    except StudentError as error:
        raise AssertionError(f"As many tokens as rows should fit, and it raises {error.sentence}") from None
    assert_close(fits, x + weight, claim="exactly as many tokens as rows")
    for n, offset in calls:
        raised: StudentError | None = None
        try:
            layer(normal(1, n, 4, seed=3), offset) if offset else layer(normal(1, n, 4, seed=3))
        except StudentError as error:
            raised = error
        what = (
            f"{n} tokens from position {offset} with {n_max} rows: it raises {raised.types[0] if raised else 'nothing'}"
        )
        assert isinstance(raised, ValueError), f"{what}, and it should raise a ValueError."
        assert {offset + n, n_max} <= numbers(str(raised)), f"The sentence does not name both numbers: {raised}"


@pytest.mark.exercise("LearnedPositions")
def test_too_many_tokens_are_refused(student: Student) -> None:
    """More tokens than rows raise a ValueError that names both numbers: nothing wraps around or is repeated."""
    past_the_end(student, [(10, 0), (23, 0)], 9)


@pytest.mark.exercise("LearnedPositions")
def test_an_offset_past_the_end_is_refused(student: Student) -> None:
    """The offset counts: offset + n may not be larger than n_max, or a ValueError names both."""
    past_the_end(student, [(4, 6), (1, 9), (2, 40)], 9)


@pytest.mark.exercise("LearnedPositions")
def test_only_the_rows_in_use_learn(student: Student) -> None:
    """The gradient of x is that of the sum; a row's is the sum over the sequences, and unused rows get none."""
    for offset in (2, 0):
        layer, _ = loaded(student, 7, 3, seed=1)
        x, upstream = normal(2, 4, 3, seed=2).requires_grad_(), normal(2, 4, 3, seed=3)
        assert_close(gradients(layer(x, offset), upstream, x=x)["x"], upstream, name="the gradient of x")
        grad = student.grads(layer).get("weight")
        assert grad is not None, "No gradient reaches weight."
        expected = torch.zeros(7, 3)
        expected[offset : offset + 4] = upstream.sum(0)
        claim = f"4 tokens from position {offset}"
        assert_close(grad, expected, claim=claim, name="the gradient of weight")


@pytest.mark.exercise("LearnedPositions", weight=0.5)
def test_the_sum_has_the_dtype_of_x(student: Student) -> None:
    """bfloat16 plus a float32 table is bfloat16, and so is a layer turned to bfloat16; float64 stays float64."""
    layer, weight = loaded(student, 9, 4, seed=1)
    for dtype, atol in ((torch.bfloat16, 5e-2), (torch.float64, 1e-4)):
        x = normal(2, 5, 4, seed=2).to(dtype)
        expected = (x.double() + weight[:5].double()).to(dtype)
        assert_close(layer(x), expected, atol=atol, name=f"the {str(dtype)[6:]} result")
    layer.bfloat16()
    x = normal(2, 5, 4, seed=3).bfloat16()
    expected = (x.double() + weight[1:6].double()).bfloat16()
    assert_close(layer(x, 1), expected, atol=5e-2, claim="a bfloat16 layer")


@pytest.mark.exercise("LearnedPositions", weight=0.5)
def test_adding_positions_leaves_x_as_it_was(student: Student) -> None:
    """x belongs to the caller, and the table is only read: an operation such as += changes what it should not."""
    layer, weight = loaded(student, 9, 4, seed=1)
    x = normal(2, 5, 4, seed=2)
    kept = student.put(x)
    with torch.no_grad():
        out = tensor(layer(kept), shape=x.shape)
        assert (out != x).any(), "The layer changes nothing."
        assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
        assert_close(layer(x), out, claim="called twice")
    kept_weight = tensor(layer.state_dict().get("weight"), name="the state dict's weight")
    assert_close(kept_weight, weight, atol=0, rtol=0, claim="after the calls", name="weight")


# -- rope -----------------------------------------------------------------------------------------------------------

LAYOUTS = (False, True)


def layout(interleaved: bool) -> str:
    return "interleaved" if interleaved else "half-split"


@pytest.mark.exercise("rope", weight=2)
def test_half_split_pairs_are_turned(student: Student) -> None:
    """Pair i is the channels i and i + d_head/2, and turns by position · theta^(−2i/d_head)."""
    for seed, shape in enumerate([(2, 3, 7, 8), (1, 2, 5, 6), (2, 33, 64), (3, 4, 2)]):
        x, positions = normal(*shape, seed=seed), torch.arange(shape[-2])
        assert_close(student.rope(x, positions), turned(x, positions), claim=f"x of shape {shape}")


@pytest.mark.exercise("rope", weight=2)
def test_interleaved_pairs_are_turned(student: Student) -> None:
    """With interleaved=True pair i is the channels 2i and 2i + 1, and the result has the same layout."""
    for seed, shape in enumerate([(2, 3, 7, 8), (1, 2, 5, 6), (2, 33, 64), (3, 4, 10)]):
        x, positions = normal(*shape, seed=seed), torch.arange(shape[-2])
        expected = turned(x, positions, interleaved=True)
        assert_close(student.rope(x, positions, interleaved=True), expected, claim=f"x of shape {shape}")


@pytest.mark.exercise("rope")
def test_position_zero_changes_nothing(student: Student) -> None:
    """At position 0 every angle is 0; at any other position something turns."""
    x = normal(2, 5, 8, seed=1)
    for interleaved in LAYOUTS:
        out = tensor(student.rope(x, torch.tensor([0, 3, 0, 9, 0]), interleaved=interleaved), shape=x.shape).detach()
        assert_close(out[:, ::2], x[:, ::2], claim=layout(interleaved), name="what stands at position 0")
        assert bool((out[:, 1::2] != x[:, 1::2]).any(-1).all()), f"{layout(interleaved)}: at position 3 nothing turns."


@pytest.mark.exercise("rope")
def test_the_turn_goes_from_the_first_channel_to_the_second(student: Student) -> None:
    """(1, 0) at position p becomes (cos p, sin p): the other sense would be a rotation by −p."""
    positions = torch.arange(1, 7)
    x = torch.tensor([1.0, 0.0]).expand(6, 2)
    expected = torch.stack([positions.double().cos(), positions.double().sin()], -1).float()
    for interleaved in LAYOUTS:
        assert_close(student.rope(x, positions, interleaved=interleaved), expected, claim=layout(interleaved))


@pytest.mark.exercise("rope")
def test_a_rotation_keeps_lengths(student: Student) -> None:
    """Turning changes no length: that of each vector, and that of each pair, stays."""
    x, positions = normal(2, 9, 12, seed=1), 3 * torch.arange(9) + 1
    for interleaved, pairs in ((False, "... (two i) -> ... i two"), (True, "... (i two) -> ... i two")):
        out = tensor(student.rope(x, positions, interleaved=interleaved), shape=x.shape).detach()
        assert bool((out != x).any(-1).all()), f"{layout(interleaved)}: nothing turns."
        assert_close(out.norm(dim=-1), x.norm(dim=-1), claim=layout(interleaved), name="the lengths of the vectors")
        before, after = (rearrange(value, pairs, two=2).norm(dim=-1) for value in (x, out))
        assert_close(after, before, claim=layout(interleaved), name="the lengths of the pairs")


@pytest.mark.exercise("rope")
def test_scores_depend_on_the_distance_only(student: Student) -> None:
    """Queries and keys moved along together keep their scores; moved apart they do not."""
    q, k, positions = normal(2, 7, 8, seed=1), normal(2, 7, 8, seed=2), torch.arange(7)

    def scores(interleaved: bool, shift_q: int, shift_k: int) -> Tensor:
        both = [
            tensor(student.rope(x, positions + shift, interleaved=interleaved), shape=x.shape).detach()
            for x, shift in ((q, shift_q), (k, shift_k))
        ]
        return both[0] @ both[1].mT

    for interleaved in LAYOUTS:
        before = scores(interleaved, 0, 0)
        assert_close(scores(interleaved, 50, 50), before, atol=2e-3, claim="both moved by 50", name="the scores")
        assert bool(((scores(interleaved, 5, 0) - before).abs() > 1e-3).all()), (
            f"{layout(interleaved)}: some score stays when only the query moves."
        )


@pytest.mark.exercise("rope", weight=0.5)
def test_turning_twice_adds_the_positions(student: Student) -> None:
    """To turn by 5 positions and then by 8 is to turn by 13."""
    x = normal(3, 4, 6, seed=1)
    five, eight = torch.full((4,), 5), torch.full((4,), 8)
    for interleaved in LAYOUTS:
        once = student.rope(x, five + eight, interleaved=interleaved)
        twice = student.rope(student.rope(x, five, interleaved=interleaved), eight, interleaved=interleaved)
        assert_close(twice, tensor(once, shape=x.shape).detach(), atol=1e-3, claim=layout(interleaved))
        assert (tensor(once).detach() != x).any(), f"{layout(interleaved)}: nothing turns."


@pytest.mark.exercise("rope")
def test_theta_sets_the_frequencies(student: Student) -> None:
    """theta takes the place of 10,000, as in models that were made for longer texts."""
    x, positions = normal(2, 6, 8, seed=1), torch.arange(6) + 2
    for theta in (100.0, 500000.0):
        found = [student.rope(x, positions, theta=theta, interleaved=interleaved) for interleaved in LAYOUTS]
        for interleaved, out in zip(LAYOUTS, found, strict=True):
            expected = turned(x, positions, theta, interleaved)
            assert_close(out, expected, claim=f"theta {theta:g}, {layout(interleaved)}")


@pytest.mark.exercise("rope")
def test_positions_come_in_any_order(student: Student) -> None:
    """Each token is turned by its own position: with gaps, backwards, repeated, or the same for all."""
    x = normal(2, 3, 5, 6, seed=1)
    for positions in ([4, 3, 2, 1, 0], [7, 7, 7, 7, 7], [0, 100, 3, 100, 41]):
        where = torch.tensor(positions)
        assert_close(student.rope(x, where), turned(x, where), claim=f"positions {positions}")


@pytest.mark.exercise("rope", weight=2)
def test_each_sequence_may_have_its_own_positions(student: Student) -> None:
    """Positions of shape (batch, n) belong to the first dimension of x, and heads share them."""
    for seed, shape in enumerate([(2, 2, 5, 6), (3, 4, 5, 6), (3, 5, 8), (2, 3, 2, 4, 6), (3, 1, 3, 2)]):
        x = normal(*shape, seed=seed)
        positions = torch.randint(40, (shape[0], shape[-2]), generator=torch.Generator().manual_seed(seed))
        for interleaved in LAYOUTS:
            out = student.rope(x, positions, interleaved=interleaved)
            expected = turned(x, positions, interleaved=interleaved)
            assert_close(out, expected, claim=f"x {shape}, positions {tuple(positions.shape)}, {layout(interleaved)}")


@pytest.mark.exercise("rope", weight=0.5)
def test_any_number_of_dimensions_before_the_tokens(student: Student) -> None:
    """Positions of shape (n,) serve x with no dimension before n, or with one, two or three."""
    for lead in ((), (3,), (2, 3), (2, 1, 3)):
        x, positions = normal(*lead, 5, 4, seed=1), torch.arange(5) + 1
        for interleaved in LAYOUTS:
            expected = turned(x, positions, interleaved=interleaved)
            out = student.rope(x, positions, interleaved=interleaved)
            assert_close(out, expected, claim=f"x of shape {tuple(x.shape)}, {layout(interleaved)}")


@pytest.mark.exercise("rope")
def test_a_position_may_lie_between_two_tokens(student: Student) -> None:
    """Positions may be float32 and broken, as position interpolation needs them: 2.5 is not 2."""
    x = normal(2, 3, 5, 6, seed=1)
    one = torch.tensor([0.0, 0.25, 0.5, 2.5, 7.75])
    for positions in (one, torch.stack([one, one + 0.4])):
        assert_close(student.rope(x, positions), turned(x, positions), claim=f"positions {tuple(positions.shape)}")


@pytest.mark.exercise("rope")
def test_angles_are_precise_far_out_also_for_bfloat16(student: Student) -> None:
    """At positions in the thousands an angle in bfloat16 is meaningless: compute it in float32, and cast at the end."""
    positions = torch.tensor([1001, 2049, 4003, 7001])
    for dtype, atol in ((torch.bfloat16, 6e-2), (torch.float32, 5e-3), (torch.float64, 5e-3)):
        x = normal(2, 4, 6, seed=1).to(dtype)
        for interleaved in LAYOUTS:
            expected = turned(x, positions, interleaved=interleaved)
            out = student.rope(x, positions, interleaved=interleaved)
            assert_close(out, expected, atol=atol, rtol=0, name=f"the {str(dtype)[6:]} result")


@pytest.mark.exercise("rope", weight=0.5)
def test_the_gradient_is_turned_back(student: Student) -> None:
    """Queries and keys learn: what comes back is the gradient turned by the opposite angle."""
    x, upstream = normal(2, 3, 5, 6, seed=1).requires_grad_(), normal(2, 3, 5, 6, seed=2)
    positions = torch.arange(5) + 3
    for interleaved in LAYOUTS:
        grad = gradients(student.rope(x, positions, interleaved=interleaved), upstream, x=x)["x"]
        assert_close(grad, turned(upstream, -positions, interleaved=interleaved), name="the gradient of x")


@pytest.mark.exercise("rope", weight=0.5)
def test_queries_and_positions_are_left_as_they_were(student: Student) -> None:
    """x and positions belong to the caller: writing into x[..., ::2] changes it."""
    for interleaved in LAYOUTS:
        x, positions = normal(2, 5, 6, seed=1), torch.arange(5)
        kept_x, kept_positions = student.put(x), student.put(positions)
        out = tensor(student.rope(kept_x, kept_positions, interleaved=interleaved), shape=x.shape)
        assert out.isfinite().all(), "The result is not finite."
        assert (out.detach() != x).any(), "Nothing turns."
        assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")
        assert_close(kept_positions.get(), positions, claim="after the call", name="positions")


# -- half_split_order -----------------------------------------------------------------------------------------------


def reordering(student: Student, d_head: int) -> Tensor:
    """The student's order as int64, whatever its dtype is, which has a test of its own. It holds each channel once."""
    name = f"half_split_order({d_head})"
    order = tensor(student.half_split_order(d_head), shape=(d_head,), name=name).detach().long()
    assert order.sort().values.tolist() == list(range(d_head)), f"{name} does not hold every channel exactly once."
    assert d_head < 4 or order.tolist() != list(range(d_head)), f"{name} leaves every channel where it is."
    return order


@pytest.mark.exercise("half_split_order")
def test_the_order_is_a_permutation_that_can_index(student: Student) -> None:
    """The result is an int64 tensor that holds each channel from 0 to d_head − 1 exactly once."""
    for d_head in (2, 6, 64):
        tensor(student.half_split_order(d_head), shape=(d_head,), dtype=torch.int64, name=f"half_split_order({d_head})")
        reordering(student, d_head)


@pytest.mark.exercise("half_split_order")
def test_pairs_end_up_half_a_head_apart(student: Student) -> None:
    """What were neighbours, channels 2i and 2i + 1, are channels i and i + d_head/2 after it."""
    for d_head in (6, 10, 16):
        first, second = reordering(student, d_head).chunk(2)
        together = first // 2 == second // 2
        assert together.all(), f"d_head {d_head}: {int((~together).sum())} pairs were torn apart."


@pytest.mark.exercise("half_split_order")
def test_fast_pairs_stay_in_front(student: Student) -> None:
    """Pair i keeps its number, because its number is its frequency, and its first channel stays the first."""
    for d_head in (6, 10, 16):
        first, second = reordering(student, d_head).chunk(2)
        pairs = torch.arange(d_head // 2)
        assert_close(first // 2, pairs, name="the pairs in the first half")
        assert_close(second // 2, pairs, name="the pairs in the second half")
        assert not (first % 2).any(), f"d_head {d_head}: the second channel of some pair stands in the first half."


@pytest.mark.exercise("half_split_order", weight=2)
def test_reordered_channels_turn_half_split_as_they_did_interleaved(student: Student) -> None:
    """rope(x[..., order], positions) equals rope(x, positions, interleaved=True)[..., order]."""
    for d_head in (4, 6, 8, 32):
        x, positions = normal(2, 3, 5, d_head, seed=d_head), torch.arange(5) + 1
        order = reordering(student, d_head)
        expected = turned(x, positions, interleaved=True)[..., order]
        assert_close(turned(x[..., order], positions), expected, claim=f"d_head {d_head}", name="the half-split result")


# -- alibi_bias -----------------------------------------------------------------------------------------------------


def biases(student: Student, n_heads: int, n: int) -> Tensor:
    """The student's bias in float32, whatever its dtype is, which has a test of its own. A constant earns nothing."""
    name = f"alibi_bias({n_heads}, {n})"
    bias = tensor(student.alibi_bias(n_heads, n), shape=(n_heads, n, n), name=name).detach().float()
    assert n == 1 or bool((bias[:, 1:, 0] != bias[:, :-1, 0]).all()), f"{name} does not change with the distance."
    return bias


def of_the_past(bias: Tensor) -> Tensor:
    """The bias with the future and the diagonal replaced by 0."""
    return bias.tril(-1).nan_to_num(0)


def past(n_heads: int, n: int) -> Tensor:
    i = torch.arange(float(n))
    return (-torch.tensor(slopes(n_heads))[:, None, None] * (i[:, None] - i)).tril(-1)


@pytest.mark.exercise("alibi_bias", weight=0.5)
def test_every_head_has_a_square_of_numbers(student: Student) -> None:
    """The result is a float32 tensor of shape (n_heads, n, n), also for one head, one position or many."""
    for n_heads, n in ((4, 7), (1, 3), (3, 1), (2, 150)):
        name = f"alibi_bias({n_heads}, {n})"
        tensor(student.alibi_bias(n_heads, n), shape=(n_heads, n, n), dtype=torch.float32, name=name)
        biases(student, n_heads, n)


@pytest.mark.exercise("alibi_bias", weight=2)
def test_slopes_for_a_power_of_two_heads(student: Student) -> None:
    """The slopes are 2^(−8/n_heads), 2^(−16/n_heads), and so on down to 2^(−8)."""
    for n_heads in (8, 4, 1, 16, 64):
        found = biases(student, n_heads, 3)[:, 2, 1].neg()
        assert_close(found, torch.tensor(slopes(n_heads)), atol=1e-6, claim=f"{n_heads} heads", name="the slopes")


@pytest.mark.exercise("alibi_bias", weight=2)
def test_slopes_for_any_other_number_of_heads(student: Student) -> None:
    """The first heads are those of the power of two below; the rest take every second slope of twice as many."""
    for n_heads in (6, 12, 3, 7, 20, 112):
        found = biases(student, n_heads, 3)[:, 2, 1].neg()
        assert_close(found, torch.tensor(slopes(n_heads)), atol=1e-6, claim=f"{n_heads} heads", name="the slopes")


@pytest.mark.exercise("alibi_bias")
def test_what_is_far_loses(student: Student) -> None:
    """In the past the bias is below 0, and lower the farther back: it is subtracted, not added."""
    bias = biases(student, 4, 9)
    last = bias[:, -1, :-1]  # the last query, from the farthest key to the nearest
    assert bool((last < 0).all()), "Some key in the past gains by its distance."
    assert bool((last[:, 1:] > last[:, :-1]).all()), "Some nearer key loses more than a farther one."


@pytest.mark.exercise("alibi_bias", weight=2)
def test_the_bias_is_linear_in_the_distance(student: Student) -> None:
    """Each token more costs the same, for every query: the bias is −slope · (i − j)."""
    for n_heads, n in ((8, 5), (2, 33), (4, 130), (1, 600)):
        expected = past(n_heads, n)
        assert_close(
            of_the_past(biases(student, n_heads, n)), expected, claim=f"{n_heads} heads, n {n}", name="the past"
        )


@pytest.mark.exercise("alibi_bias")
def test_a_position_is_at_no_distance_from_itself(student: Student) -> None:
    """The diagonal is 0 in every head."""
    for n_heads, n in ((4, 7), (3, 5)):
        bias = biases(student, n_heads, n)
        assert_close(bias.diagonal(dim1=1, dim2=2), torch.zeros(n_heads, n), name="the diagonal")


@pytest.mark.exercise("alibi_bias")
def test_the_future_gets_zero(student: Student) -> None:
    """For j > i the bias is 0: hiding the future is the work of the mask."""
    for n_heads, n in ((4, 7), (3, 12)):
        bias = biases(student, n_heads, n)
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        assert_close(bias[:, later], torch.zeros(n_heads, n * (n - 1) // 2), name="the future")


@pytest.mark.exercise("alibi_bias", weight=0.5)
def test_a_longer_text_keeps_the_bias_of_the_shorter(student: Student) -> None:
    """The bias depends on i − j alone: not on n, and not on where the two stand."""
    long = biases(student, 6, 20)
    assert_close(long[:, :8, :8], biases(student, 6, 8), claim="the first 8 of 20", name="the bias")
    assert_close(long[:, 5:, 5:], long[:, :-5, :-5], claim="moved by 5", name="the bias")


# -- stretch_rope ---------------------------------------------------------------------------------------------------


def stretched(student: Student, d_head: int, factor: float, *args: object, **kwargs: object) -> tuple[Tensor, float]:
    """Frequencies and attention factor. Frequencies that do not fall from pair to pair earn nothing."""
    answer = student.stretch_rope(d_head, factor, *args, **kwargs)
    assert isinstance(answer, tuple | list), (
        f"stretch_rope should return frequencies and attention factor, not a {type(answer).__name__}."
    )
    assert len(answer) == 2, f"stretch_rope should return frequencies and attention factor, not {len(answer)} things."
    found = tensor(answer[0], shape=(d_head // 2,), name="the frequencies").detach()
    assert bool((found[1:] < found[:-1]).all()), "Some pair is as fast as the one before it, or faster."
    scale = answer[1].item() if isinstance(answer[1], Tensor) and answer[1].numel() == 1 else answer[1]
    assert isinstance(scale, int | float), f"The attention factor should be a number, not a {type(scale).__name__}."
    return found, float(scale)


def close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=1e-4)


GPT_OSS = {"theta": 150000.0, "n_train": 4096}


@pytest.mark.exercise("stretch_rope", weight=0.5)
def test_frequencies_are_a_tensor_and_the_factor_is_a_float(student: Student) -> None:
    """The result is a tuple: a float32 tensor with one frequency a pair, and a Python float."""
    for method in ("linear", "yarn"):
        stretched(student, 12, 4.0, method)
        found, scale = student.stretch_rope(12, 4.0, method)
        tensor(found, shape=(6,), dtype=torch.float32, name="the frequencies")
        assert type(scale) is float, f"{method}: the factor should be a Python float, not {type(scale).__name__}."


@pytest.mark.exercise("stretch_rope", weight=2)
def test_interpolation_divides_every_frequency(student: Student) -> None:
    """method="linear", the default: frequency i is theta^(−2i/d_head) divided by the factor."""
    for d_head, factor, theta in ((8, 4.0, 10000.0), (6, 2.5, 500000.0), (64, 32.0, 100.0), (2, 8.0, 10000.0)):
        found, _ = stretched(student, d_head, factor, theta=theta)
        expected = (frequencies(d_head, theta) / factor).float()
        claim = f"d_head {d_head}, factor {factor:g}, theta {theta:g}"
        assert_close(found, expected, atol=0, rtol=1e-4, claim=claim, name="the frequencies")


@pytest.mark.exercise("stretch_rope")
def test_interpolation_is_rope_at_positions_nearer_together(student: Student) -> None:
    """With the frequencies of interpolation, position p turns as position p / factor did in training."""
    d_head, factor = 12, 4.0
    found, scale = stretched(student, d_head, factor, "linear")
    positions = torch.arange(0, 60, 7)
    seen = positions.double()[:, None] / factor * frequencies(d_head, 10000.0)
    assert_close(positions[:, None] * found, seen.float(), name="the angles")
    assert close(scale, 1), f"Interpolation leaves the attention factor at 1, and here it is {scale:g}."


@pytest.mark.exercise("stretch_rope")
def test_a_factor_of_one_changes_nothing(student: Student) -> None:
    """A model that need not reach farther keeps its frequencies, and its attention factor is 1."""
    for method in ("linear", "yarn"):
        found, scale = stretched(student, 16, 1.0, method)
        expected = frequencies(16, 10000.0).float()
        assert_close(found, expected, atol=0, rtol=1e-4, claim=method, name="the frequencies")
        assert close(scale, 1), f"{method}: with a factor of 1 the attention factor is {scale:g}."


@pytest.mark.exercise("stretch_rope")
def test_the_attention_factor_of_yarn(student: Student) -> None:
    """It is 0.1 · ln(factor) + 1: the natural logarithm."""
    for factor in (2.0, 32.0, 100.0):
        _, scale = stretched(student, 16, factor, "yarn")
        assert close(scale, 0.1 * math.log(factor) + 1), f"With a factor of {factor:g} it is {scale:g}."


@pytest.mark.exercise("stretch_rope", weight=3)
def test_the_frequencies_of_yarn(student: Student) -> None:
    """Between low and high the frequency passes linearly from the trained one to the one divided by the factor."""
    for d_head, factor, theta, n_train in (
        (64, 32.0, 150000.0, 4096),  # gpt-oss
        (128, 4.0, 1000000.0, 32768),
        (20, 3.5, 10000.0, 2048),
        (16, 8.0, 10000.0, 48),
    ):
        found, _ = stretched(student, d_head, factor, method="yarn", theta=theta, n_train=n_train)
        claim = f"d_head {d_head}, factor {factor:g}, theta {theta:g}, n_train {n_train}"
        expected = yarn(d_head, factor, theta, n_train)
        assert_close(found, expected, atol=0, rtol=1e-4, claim=claim, name="the frequencies")


@pytest.mark.exercise("stretch_rope")
def test_fast_pairs_are_left_alone_and_slow_ones_divided(student: Student) -> None:
    """What turns beta_fast times or more in the training length stays; what does not turn once is divided."""
    found, _ = stretched(student, 64, 32.0, method="yarn", **GPT_OSS)
    trained = frequencies(64, 150000.0)
    turns = trained * 4096 / (2 * math.pi)
    ratio = (trained / found.double()).float()
    fast, slow = turns >= 32, turns <= 1
    assert_close(ratio[fast], torch.ones(int(fast.sum())), name="the slowing-down of the fast pairs")
    assert_close(ratio[slow], torch.full((int(slow.sum()),), 32.0), rtol=1e-3, name="that of the slow pairs")
    between = ratio[~fast & ~slow]
    assert bool(((between > 1) & (between < 32)).all()), "Some pair between the two is not a mixture."


@pytest.mark.exercise("stretch_rope")
def test_the_bounds_can_be_rounded_outwards(student: Student) -> None:
    """With truncate=True low is rounded down and high is rounded up; by default neither is."""
    for d_head, theta, n_train in ((64, 150000.0, 4096), (20, 10000.0, 2048), (32, 10000.0, 3000)):
        for truncate in (True, False):
            found, _ = stretched(student, d_head, 8.0, "yarn", theta, n_train, truncate=truncate)
            expected = yarn(d_head, 8.0, theta, n_train, truncate=truncate)
            claim = f"d_head {d_head}, truncate={truncate}"
            assert_close(found, expected, atol=0, rtol=1e-4, claim=claim, name="the frequencies")


@pytest.mark.exercise("stretch_rope")
def test_the_betas_set_the_bounds(student: Student) -> None:
    """beta_fast decides where the mixture begins, beta_slow where it ends."""
    for fast, slow in ((16.0, 2.0), (64.0, 0.5), (8.0, 4.0)):
        found, _ = stretched(student, 24, 8.0, "yarn", n_train=2000, beta_fast=fast, beta_slow=slow)
        expected = yarn(24, 8.0, 10000.0, 2000, fast, slow)
        claim = f"beta_fast {fast:g}, beta_slow {slow:g}"
        assert_close(found, expected, atol=0, rtol=1e-4, claim=claim, name="the frequencies")


@pytest.mark.exercise("stretch_rope")
def test_the_bounds_stay_within_the_head(student: Student) -> None:
    """low is at least 0 and high at most d_head − 1, also for a very short or a very long training length."""
    for d_head, theta, n_train in ((16, 10000.0, 20), (12, 10000.0, 150), (16, 10.0, 1257), (24, 12.0, 1500)):
        found, _ = stretched(student, d_head, 4.0, "yarn", theta=theta, n_train=n_train)
        expected = yarn(d_head, 4.0, theta, n_train)
        claim = f"d_head {d_head}, theta {theta:g}, n_train {n_train}"
        assert_close(found, expected, atol=0, rtol=1e-4, claim=claim, name="the frequencies")


@pytest.mark.exercise("stretch_rope", weight=0.5)
def test_equal_bounds_make_a_step(student: Student) -> None:
    """Where low and high are equal, 0.001 is added to high: nothing is divided by 0."""
    found, _ = stretched(student, 16, 8.0, "yarn", n_train=5, truncate=True)  # both bounds are 0
    expected = yarn(16, 8.0, 10000.0, 5, truncate=True)
    assert_close(found, expected, atol=0, rtol=1e-4, claim="both bounds 0", name="the frequencies")
    beta = 2000 / (2 * math.pi) * 10000.0 ** (-2 * 2.9995 / 24)  # both bounds are 2.9995, so pair 3 is in the middle
    found, _ = stretched(student, 24, 8.0, "yarn", n_train=2000, beta_fast=beta, beta_slow=beta)
    expected = yarn(24, 8.0, 10000.0, 2000, beta, beta)
    assert_close(found, expected, atol=0, rtol=1e-2, claim="both bounds 2.9995", name="the frequencies")


@pytest.mark.exercise("stretch_rope", weight=0.5)
def test_other_methods_are_refused(student: Student) -> None:
    """A method that is neither "linear" nor "yarn" raises a ValueError whose sentence names it."""
    stretched(student, 8, 2.0, "linear")
    for method in ("spline", "dynamic", "YaRN"):
        sentence = refused(student, "stretch_rope", 8, 2.0, method=method)
        assert method in sentence, f"The sentence does not name the method: {sentence}"
