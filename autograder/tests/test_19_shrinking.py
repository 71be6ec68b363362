"""Hidden tests of chapter 19. Masks are those of torch.nn.utils.prune, roundings those of PyTorch's fake quantisation.

A layer of integers is computed here in float64, from numbers that are rounded but still floats.

A quotient may miss a tie by its last bit, and then two right answers round apart. So where integers are compared, the
numbers keep clear of ties; a test of its own has the ties.
"""

import re
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

_PRUNING = [
    *("global_unstructured", "l1_unstructured", "ln_structured", "L1Unstructured", "LnStructured"),
    *("BasePruningMethod", "CustomFromMask", "custom_from_mask", "random_unstructured", "RandomUnstructured"),
]
_QUANTISING = [
    *("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic"),
    *("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant"),
    *("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "_fake_quantize_learnable_per_tensor_affine"),
    *("_fake_quantize_learnable_per_channel_affine",),
]
_OPERATORS = [
    *("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic"),
    *("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"),
    *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask"),
]
RESERVED = {
    "magnitude_mask": tuple(f"torch.nn.utils.prune.{name}" for name in _PRUNING),
    "fake_quantize": tuple(
        [f"torch.{name}" for name in _QUANTISING] + [f"torch.ops.aten.{name}" for name in _OPERATORS]
    ),
}

# -- what is expected -------------------------------------------------------------------------------------------------


def steps_of(x: Tensor, scale: Tensor) -> Tensor:
    """x in units of its scale, in float64."""
    return x.double() / scale.double()


def clear_of_ties(x: Tensor, scale: Tensor, zero: float = 0.0) -> Tensor:
    """x with every number moved to within 0.4 steps of an integer: no two ways to round can disagree."""
    steps = steps_of(x, scale) - zero
    nearest = steps.round()
    return ((nearest + 0.8 * (steps - nearest) + zero) * scale.double()).to(x.dtype)


def scales_of(x: Tensor, axis: int | None) -> Tensor:
    """The symmetric scale of each slice along `axis`, or of all."""
    if axis is None:
        return x.float().abs().max() / 127
    slices = x.float().movedim(axis, 0).reshape(x.shape[axis], -1)
    shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    return (slices.abs().max(1).values / 127).view(shape)


def some(*shape: int, seed: int, axis: int | None = None) -> Tensor:
    """Random numbers clear of ties for the scales that quantize_int8 should give them along `axis`."""
    x = normal(*shape, seed=seed)
    return clear_of_ties(x, scales_of(x, axis))


def faked(x: Tensor, axis: int | None = None) -> Tensor:
    """x rounded as int8 would have it, by PyTorch's fake quantisation."""
    scale = scales_of(x, axis)
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, torch.tensor(0, dtype=torch.int32), -127, 127)
    zeros = torch.zeros(x.shape[axis], dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, scale.flatten(), zeros, axis % x.dim(), -127, 127)


def raised(student: Student, call: Any) -> StudentError | None:
    """What a call raised, or None."""
    try:
        call()
    except Unfinished:
        raise
    except StudentError as error:
        return error
    return None


# -- magnitude_mask ---------------------------------------------------------------------------------------------------

SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (((5, 7), (3,), (2, 3, 4)), ((11,), (4, 4)), ((6, 1), (1, 9), (3, 3)))


def masks_of(student: Student, weights: list[Tensor], sparsity: float) -> list[Tensor]:
    """The student's masks as booleans whatever their dtype is, which has a test of its own."""
    found = student.magnitude_mask(weights, sparsity)
    assert isinstance(found, list | tuple), f"magnitude_mask should return a list, not a {type(found).__name__}."
    assert len(found) == len(weights), f"{len(weights)} tensors should give as many masks, and {len(found)} came."
    return [
        tensor(mask, shape=weight.shape, name=f"the mask of tensor {i}").bool()
        for i, (mask, weight) in enumerate(zip(found, weights, strict=True))
    ]


def pytorchs(weights: list[Tensor], sparsity: float) -> list[Tensor]:
    """The masks of torch.nn.utils.prune, over all tensors together."""
    modules = []
    for weight in weights:
        module = nn.Module()
        module.weight = nn.Parameter(weight.clone())
        modules.append(module)
    count = round(sparsity * sum(weight.numel() for weight in weights))
    pairs = [(module, "weight") for module in modules]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=count)
    return [module.get_buffer("weight_mask").bool() for module in modules]


def random_weights(seed: int) -> list[Tensor]:
    """Tensors of different sizes of numbers: the smallest are not spread evenly."""
    return [(1 + i) * normal(*shape, seed=10 * seed + i) for i, shape in enumerate(SHAPES[seed % len(SHAPES)])]


@pytest.mark.exercise("magnitude_mask", weight=0.5)
def test_each_tensor_gets_a_boolean_mask_of_its_shape(student: Student) -> None:
    """The result is a list with one boolean tensor for each tensor, of the same shape."""
    for seed in range(3):
        weights = random_weights(seed)
        found = student.magnitude_mask(weights, 0.5)
        assert isinstance(found, list), f"magnitude_mask should return a list, not a {type(found).__name__}."
        assert len(found) == len(weights), f"{len(weights)} tensors should give as many masks, and {len(found)} came."
        for i, (mask, weight) in enumerate(zip(found, weights, strict=True)):
            tensor(mask, shape=weight.shape, dtype=torch.bool, name=f"the mask of tensor {i}")
        together = torch.cat([mask.flatten() for mask in found])
        assert together.any(), "At a sparsity of 0.5 nothing stays."
        assert not together.all(), "At a sparsity of 0.5 everything stays."


@pytest.mark.exercise("magnitude_mask", weight=2)
def test_the_smallest_of_all_tensors_go(student: Student) -> None:
    """The magnitudes of all tensors are compared with each other, as torch.nn.utils.prune.global_unstructured does."""
    for seed, sparsity in enumerate((0.5, 0.3, 0.9, 0.75)):
        weights = random_weights(seed)
        weights[0] = -weights[0].abs()
        for i, (mask, right) in enumerate(
            zip(masks_of(student, weights, sparsity), pytorchs(weights, sparsity), strict=True)
        ):
            assert_close(mask, right, claim=f"sparsity {sparsity}", name=f"the mask of tensor {i}")


@pytest.mark.exercise("magnitude_mask")
def test_one_tensor_is_pruned_within_itself(student: Student) -> None:
    """A sequence may hold a single tensor, of any number of dimensions."""
    for seed, shape in enumerate(((20,), (5, 9), (3, 4, 5))):
        weight = normal(*shape, seed=seed)
        (mask,) = masks_of(student, [weight], 0.6)
        assert_close(mask, pytorchs([weight], 0.6)[0], name="the only mask")


@pytest.mark.exercise("magnitude_mask")
def test_exactly_the_asked_number_goes(student: Student) -> None:
    """round(sparsity * total) weights go, where total is how many there are in all tensors together."""
    for total, sparsity in ((13, 0.1), (10, 0.35), (7, 0.5), (10, 0.25), (9, 0.95), (101, 0.333), (6, 0.75)):
        weights = [normal(total - 4, seed=total), normal(2, 2, seed=total + 1)]
        gone = sum(int((~mask).sum()) for mask in masks_of(student, weights, sparsity))
        assert gone == round(sparsity * total), f"Of {total} weights {gone} go at a sparsity of {sparsity}."


@pytest.mark.exercise("magnitude_mask", weight=2)
def test_ties_do_not_change_the_number(student: Student) -> None:
    """Where many weights have the same magnitude, as after an earlier pruning, still exactly the asked number goes."""
    zeros = normal(8, 10, seed=1) * (torch.rand(8, 10, generator=torch.Generator().manual_seed(2)) < 0.4)
    cases = [([zeros, normal(20, seed=3)], 0.25), ([torch.ones(9), torch.ones(2, 3)], 0.4), ([zeros], 0.3)]
    for weights, sparsity in cases:
        masks = masks_of(student, weights, sparsity)
        keep, magnitude = (torch.cat([part.flatten() for part in parts]) for parts in (masks, weights))
        magnitude = magnitude.abs()
        gone = int((~keep).sum())
        assert gone == round(sparsity * len(keep)), f"With ties {gone} of {len(keep)} go at a sparsity of {sparsity}."
        assert magnitude[~keep].max() <= magnitude[keep].min(), "A weight goes that is larger than one that stays."


@pytest.mark.exercise("magnitude_mask", weight=0.5)
def test_no_sparsity_keeps_all_and_full_sparsity_none(student: Student) -> None:
    """A sparsity of 0 keeps every weight and 1 none; what lies between does neither."""
    weights = random_weights(1)
    assert all(mask.all() for mask in masks_of(student, weights, 0.0)), "At a sparsity of 0 some weights go."
    assert not any(mask.any() for mask in masks_of(student, weights, 1.0)), "At a sparsity of 1 some weights stay."
    kept = sum(int(mask.sum()) for mask in masks_of(student, weights, 0.5))
    assert 0 < kept < sum(weight.numel() for weight in weights), f"At a sparsity of 0.5 {kept} stay."


@pytest.mark.exercise("magnitude_mask", weight=0.5)
def test_any_dtype_can_be_pruned_and_stays_as_it_was(student: Student) -> None:
    """float64 and bfloat16 weights work as well, and the weights themselves are not changed."""
    for dtype in (torch.float64, torch.bfloat16):
        weights = [normal(4, 5, seed=1, dtype=dtype), normal(7, seed=2, dtype=dtype)]
        kept = student.put(weights)
        found = student.magnitude_mask(kept, 0.5)
        assert isinstance(found, list | tuple) and len(found) == 2, "Two tensors should give two masks."  # noqa: PT018
        keep = torch.cat([tensor(mask, name="a mask").flatten().bool() for mask in found])
        magnitude = torch.cat([weight.flatten() for weight in weights]).abs()
        assert keep.shape == magnitude.shape, "The masks should have the shapes of the tensors."
        assert int(keep.sum()) == 13, f"Of 27 weights {int(keep.sum())} stay at a sparsity of 0.5."
        assert magnitude[~keep].max() <= magnitude[keep].min(), "A weight goes that is larger than one that stays."
        for weight, before in zip(kept.get(), weights, strict=True):
            assert_close(weight, before, atol=0, rtol=0, claim="after the call", name="a weight")


# -- wanda_mask -------------------------------------------------------------------------------------------------------


def best(weight: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """The mask by sorting each group of scores, in float64."""
    loudness = x.double().reshape(-1, x.shape[-1]).square().sum(0).sqrt()
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for i, row in enumerate(weight.double().abs() * loudness):
        for start in range(0, len(row), m):
            group = row[start : start + m].tolist()
            for j in sorted(range(m), key=lambda j: -group[j])[:n]:
                mask[i, start + j] = True
    return mask


def kept_by(student: Student, weight: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """The student's mask as booleans; the same everywhere it decides nothing."""
    mask = tensor(student.wanda_mask(weight, x, n, m), shape=weight.shape, name="the mask").bool()
    assert n in (0, m) or (mask.any() and not mask.all()), "The mask is the same everywhere, so it decides nothing."
    return mask


@pytest.mark.exercise("wanda_mask", weight=0.5)
def test_the_mask_has_the_weights_shape_and_is_boolean(student: Student) -> None:
    """The result is one boolean tensor of the weight's shape."""
    for seed, (n_out, n_in, m) in enumerate(((3, 8, 4), (5, 12, 6), (1, 10, 10))):
        mask = student.wanda_mask(normal(n_out, n_in, seed=seed), normal(7, n_in, seed=9), 2, m)
        mask = tensor(mask, shape=(n_out, n_in), dtype=torch.bool, name="the mask")
        assert mask.any(), "Nothing stays."
        assert not mask.all(), "Everything stays."


@pytest.mark.exercise("wanda_mask", weight=2)
def test_the_highest_scores_of_each_group_stay(student: Student) -> None:
    """Of m neighbours in a row the n of highest |weight| · ‖input‖ stay; all but x's last dimension are tokens."""
    for seed, (n_out, n_in, n, m) in enumerate(((6, 16, 2, 4), (5, 12, 1, 3), (7, 15, 3, 5), (3, 24, 5, 8))):
        weight = normal(n_out, n_in, seed=seed)
        x = normal(20, n_in, seed=10 + seed) * (1 + 5 * torch.rand(n_in, generator=torch.Generator().manual_seed(seed)))
        for tokens in (x, x.unflatten(0, (4, 5)), x.view(5, 2, 2, n_in), x[3]):
            mask, claim = kept_by(student, weight, tokens, n, m), f"{n} of {m}, x {tuple(tokens.shape)}"
            assert_close(mask, best(weight, tokens, n, m), claim=claim, name="the mask")


@pytest.mark.exercise("wanda_mask")
def test_a_whole_row_can_be_one_group(student: Student) -> None:
    """With m = n_in a weight competes with its own row, and not with other rows."""
    weight, x = normal(6, 14, seed=1), normal(9, 14, seed=2)
    weight *= torch.tensor([1.0, 100, 0.01, 1, 10, 0.1])[:, None]
    assert_close(kept_by(student, weight, x, 5, 14), best(weight, x, 5, 14), claim="5 of 14", name="the mask")
    rows = [pytorchs([row], 0.5)[0] for row in weight]
    alike = kept_by(student, weight, torch.ones(4, 14), 7, 14)
    assert_close(alike, torch.stack(rows), claim="where all inputs are alike", name="the mask")


@pytest.mark.exercise("wanda_mask")
def test_the_norm_is_the_root_of_the_sum_of_squares(student: Student) -> None:
    """An input's loudness is its Euclidean norm over the tokens: not a sum, a mean, or the largest one."""
    weight = torch.ones(1, 2)
    for name, x, loud in (
        ("a sum of zero against a small constant", [[2.0, 0.5], [-2, 0.5], [2, 0.5], [-2, 0.5]], 0),
        ("one large number against many small ones", [[3.0, 1], [0, 1], [0, 1], [0, 1]], 0),
        ("the largest number against the larger norm", [[3.0, 2], [0, 2], [0, 2], [0, 2]], 1),
    ):
        for order in ([0, 1], [1, 0]):  # so that nobody is right by a tie
            mask = kept_by(student, weight, torch.tensor(x)[:, order], 1, 2)[0]
            assert mask[order.index(loud)], f"{name}: the louder input's weight goes."
            assert int(mask.sum()) == 1, f"Of two weights {int(mask.sum())} stay, and one should."


@pytest.mark.exercise("wanda_mask")
def test_loudness_can_move_between_weight_and_input(student: Student) -> None:
    """Twice the input and half of the weight is the same score; a factor on a row or on all of x changes nothing."""
    weight, x, factors = normal(5, 12, seed=1), normal(9, 12, seed=2), 2.0 ** torch.arange(-6, 6)
    before = kept_by(student, weight, x, 2, 6)
    assert_close(kept_by(student, weight / factors, x * factors, 2, 6), before, claim="moved", name="the mask")
    rows = 2.0 ** torch.arange(-2, 3)[:, None]
    assert_close(kept_by(student, weight * rows, 8 * x, 2, 6), before, claim="with factors", name="the mask")
    assert not torch.equal(kept_by(student, weight, x * factors, 2, 6), before), "Louder inputs make no difference."


@pytest.mark.exercise("wanda_mask")
def test_each_group_keeps_exactly_n(student: Student) -> None:
    """Whatever the scores are, every group keeps n: also where they are equal or zero, and n may be 0 or m."""
    silent = normal(6, 12, seed=1)
    silent[:, ::3] = 0
    for weight in (silent, torch.ones(5, 12), torch.zeros(2, 12), normal(3, 12, seed=2)):
        for n in (1, 3, 0, 4):
            groups = kept_by(student, weight, normal(3, 12, seed=3), n, 4).unflatten(1, (3, 4)).sum(-1)
            assert (groups == n).all(), f"Some group of 4 keeps {int(groups[groups != n][0])} where {n} should stay."


@pytest.mark.exercise("wanda_mask")
def test_groups_must_fill_the_row(student: Student) -> None:
    """If n_in is not divisible by m, a ValueError names both numbers."""
    kept_by(student, normal(2, 10, seed=1), normal(3, 10, seed=2), 2, 5)  # this one is divisible
    for n_in, m in ((10, 4), (7, 3)):
        weight, x = normal(2, n_in, seed=1), normal(3, n_in, seed=2)
        error = raised(student, lambda weight=weight, x=x, m=m: student.wanda_mask(weight, x, 2, m))
        what = f"n_in = {n_in} and m = {m} raise {error.types[0] if error else 'nothing'}"
        assert isinstance(error, ValueError), f"{what}, and it should be a ValueError."
        named = {int(number) for number in re.findall(r"\d+", str(error))}
        assert {n_in, m} <= named, f"The sentence does not name both numbers: {error}"


@pytest.mark.exercise("wanda_mask", weight=0.5)
def test_norms_of_bfloat16_inputs_are_taken_in_float32(student: Student) -> None:
    """A long sum of squares in bfloat16 loses what tells two inputs apart."""
    x = torch.ones(1000, 4, dtype=torch.bfloat16)
    x[0, 0] = 1.5  # louder by a twelfth of a per cent
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        mask = kept_by(student, torch.ones(2, 4), x[:, order], 1, 4)
        assert mask[:, order.index(0)].all(), "Of four inputs the loudest one's weight goes."
        assert int(mask.sum()) == 2, "Of four weights exactly one should stay."


@pytest.mark.exercise("wanda_mask", weight=0.5)
def test_weight_and_x_are_left_as_they_were(student: Student) -> None:
    """Both belong to the caller: the mask says what goes, and takes nothing away itself."""
    weight, x = normal(3, 8, seed=1), normal(5, 8, seed=2)
    kept_weight, kept_x = student.put(weight), student.put(x)
    mask = tensor(student.wanda_mask(kept_weight, kept_x, 2, 4), shape=(3, 8), name="the mask")
    assert_close(mask.bool(), best(weight, x, 2, 4), name="the mask")
    assert_close(kept_weight.get(), weight, atol=0, rtol=0, claim="after the call", name="the weight")
    assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- quantize_int8 ----------------------------------------------------------------------------------------------------


def quantised(student: Student, x: Tensor, *axis: int | None) -> tuple[Tensor, Tensor]:
    """Integers and scale in float64, whatever their dtypes are; those have a test of their own."""
    found = student.quantize_int8(x, *axis)
    assert isinstance(found, tuple | list), "quantize_int8 should return the integers and their scale."
    assert len(found) == 2, f"quantize_int8 should return two things, not {len(found)}."
    q, scale = tensor(found[0], shape=x.shape, name="q"), tensor(found[1], name="scale")
    assert not q.is_floating_point() or bool((q == q.round()).all()), "Not all of q are whole numbers."
    assert q.any() or not x.any(), "All of q are zero, so nothing is left of x."
    along = axis[0] % x.dim() if axis and axis[0] is not None else None
    shape = () if along is None else tuple(size if i == along else 1 for i, size in enumerate(x.shape))
    wanted = 1 if along is None else x.shape[along]
    assert scale.numel() == wanted, (
        f"x {tuple(x.shape)} with axis={axis[0] if axis else None} has {wanted} scale(s), and {scale.numel()} came."
    )
    return q.double(), scale.double().view(shape)


@pytest.mark.exercise("quantize_int8")
def test_integers_are_int8_and_scales_float32(student: Student) -> None:
    """q is int8 and has the shape of x; scale is float32, of shape () or with the dimensions of x."""
    for shape, axis, scales in (
        ((5,), None, ()),
        ((4, 6), None, ()),
        ((4, 6), 0, (4, 1)),
        ((4, 6), -1, (1, 6)),
        ((2, 3, 4), 1, (1, 3, 1)),
        ((7,), 0, (7,)),
    ):
        found = student.quantize_int8(normal(*shape, seed=1), axis)
        assert isinstance(found, tuple), "quantize_int8 should return the integers and their scale as a tuple."
        assert len(found) == 2, f"quantize_int8 should return two things, not {len(found)}."
        q = tensor(found[0], shape=shape, dtype=torch.int8, name=f"q of x {shape} with axis={axis}")
        tensor(found[1], shape=scales, dtype=torch.float32, name=f"the scale of x {shape} with axis={axis}")
        assert len(q.unique()) > 1, "All of q are the same number."


@pytest.mark.exercise("quantize_int8", weight=2)
def test_one_scale_serves_the_whole_tensor(student: Student) -> None:
    """Without an axis q · scale is what PyTorch's fake quantisation gives with the largest magnitude at 127."""
    for seed, shape in enumerate(((9,), (5, 7), (3, 4, 5), (2, 130))):
        x = some(*shape, seed=seed)
        q, scale = quantised(student, x)
        assert_close(q * scale, faked(x).double(), atol=1e-5, rtol=1e-5, claim=f"x {shape}", name="q · scale")
        assert_close(scale, (x.double().abs().max() / 127), atol=0, rtol=1e-5, claim=f"x {shape}", name="the scale")


@pytest.mark.exercise("quantize_int8", weight=2)
def test_each_index_along_the_axis_has_its_own_scale(student: Student) -> None:
    """With an axis the largest magnitude is taken over all other dimensions; the axis may be negative."""
    for seed, (shape, axis) in enumerate(
        (((5, 7), 0), ((5, 7), 1), ((3, 4, 5), 1), ((3, 4, 5), -1), ((6, 2), -2), ((8,), 0))
    ):
        x = some(*shape, seed=seed, axis=axis)
        q, scale = quantised(student, x, axis)
        assert_close(
            q * scale, faked(x, axis).double(), atol=1e-5, rtol=1e-5, claim=f"x {shape}, axis {axis}", name="q · scale"
        )


@pytest.mark.exercise("quantize_int8")
def test_a_factor_on_one_row_changes_only_its_scale(student: Student) -> None:
    """With axis=0 a row that is a million times as large keeps its integers, and all other rows keep theirs."""
    x = some(4, 9, seed=1, axis=0)
    before, scale = quantised(student, x, 0)
    x[2] *= 2.0**20
    after, changed = quantised(student, x, 0)
    assert_close(after, before, claim="with one row much larger", name="q")
    factor = torch.tensor([1, 1, 2.0**20, 1], dtype=torch.float64)[:, None]
    assert_close(changed, (scale * factor), atol=0, rtol=1e-5, name="the scale")
    assert before.abs().amax(1).eq(127).all(), "In some row the largest magnitude does not become 127."


@pytest.mark.exercise("quantize_int8")
def test_halves_go_to_the_even_neighbour(student: Student) -> None:
    """At a scale of 1: 0.5 and −0.5 become 0, 1.5 and 2.5 become 2, −3.5 becomes −4."""
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5, 100.5, -99.5])
    expected = torch.tensor([127, 0, 2, 2, 4, 0, -2, -2, -4, 100, -100], dtype=torch.float64)
    assert_close(quantised(student, x)[0], expected, name="q")


@pytest.mark.exercise("quantize_int8")
def test_the_integers_are_symmetric(student: Student) -> None:
    """−x has the negated integers of x: the largest magnitude is 127 or −127, and −128 is never used."""
    for seed in range(3):
        x = some(6, 9, seed=seed)
        q, _ = quantised(student, x)
        negated, _ = quantised(student, -x)
        assert_close(negated, -q, claim="of −x", name="q")
        assert q.abs().max() == 127, f"The largest magnitude among the integers is {int(q.abs().max())}."
    q, _ = quantised(student, torch.tensor([-3.0, 1.0, 2.0]))
    assert q[0] == -127, f"The largest magnitude is negative, and becomes {int(q[0])}."


@pytest.mark.exercise("quantize_int8")
def test_zeros_have_a_scale_of_one(student: Student) -> None:
    """Where everything that shares a scale is zero, the scale is 1 and the integers are 0, never NaN."""
    x = some(4, 5, seed=1, axis=0)
    x[1] = 0
    q, scale = quantised(student, x, 0)
    assert_close(q * scale, faked(x.where(x != 0, 0), 0).double().where(x.any(1, keepdim=True), 0), name="q · scale")
    assert scale[1] == 1, f"A row of zeros has a scale of {scale[1].item():g}."
    assert not q[1].any(), "A row of zeros has integers that are not 0."
    q, scale = quantised(student, torch.zeros(3, 2))
    assert scale == 1, f"A tensor of zeros has a scale of {scale.item():g}."
    assert not q.any(), "A tensor of zeros has integers that are not 0."


@pytest.mark.exercise("quantize_int8")
def test_very_large_and_very_small_numbers_work(student: Student) -> None:
    """Magnitudes of 10³⁸ or 10⁻³⁰ only change the scale: nothing overflows, and nothing is taken for zero."""
    x = some(5, 6, seed=1)
    q, scale = quantised(student, x)
    for power in (125, -100):
        factor = 2.0**power
        found, changed = quantised(student, x * factor)
        assert_close(found, q, claim=f"x times 2^{power}", name="q")
        assert_close(changed / factor, scale, atol=0, rtol=1e-4, claim=f"x times 2^{power}", name="the scale")


@pytest.mark.exercise("quantize_int8")
def test_no_number_is_off_by_more_than_half_a_step(student: Student) -> None:
    """Whatever the dtype, the arithmetic is that of float32: |x − q · scale| is at most half of the scale."""
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        for axis in (None, 0):
            x = normal(20, 64, seed=3, dtype=dtype)
            q, scale = quantised(student, x, axis)
            off = ((x.double() - q * scale).abs() / scale).max().item()
            assert off <= 0.5001, f"A {str(dtype)[6:]} number is off by {off:.3f} of a step (axis={axis})."
            assert q.abs().max() <= 127, f"An integer is {int(q.abs().max())}, and 127 is the largest."


@pytest.mark.exercise("quantize_int8", weight=0.5)
def test_quantising_leaves_x_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    x = some(4, 6, seed=1)
    kept = student.put(x)
    found = student.quantize_int8(kept, 0)
    assert isinstance(found, tuple | list), "quantize_int8 should return the integers and their scale."
    assert len(found) == 2, f"quantize_int8 should return two things, not {len(found)}."
    q, scale = tensor(found[0], shape=(4, 6), name="q"), tensor(found[1], name="scale")
    assert scale.numel() == 4, f"{scale.numel()} scales came for x (4, 6) with axis=0."
    assert_close(q.double() * scale.double().view(4, 1), faked(x, 0).double(), atol=1e-5, rtol=1e-5, name="q · scale")
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- both layers ------------------------------------------------------------------------------------------------------


def parts(n_in: int, n_out: int, seed: int, *, bias: bool = True) -> tuple[Tensor, Tensor | None]:
    """A weight whose rows differ in size, clear of ties, and a bias."""
    weight = normal(n_out, n_in, seed=seed) * (1 + 3 * torch.rand(n_out, 1, generator=torch.Generator().manual_seed(9)))
    return clear_of_ties(weight, scales_of(weight, 0)), normal(n_out, seed=seed + 1) if bias else None


def created(student: Student, kind: str, weight: Tensor, bias: Tensor | None = None) -> Remote:
    """The student's layer, made from a linear layer of these numbers."""
    layer = getattr(student, kind)(student.linear_with(weight, bias))
    assert isinstance(layer, Remote), f"{kind}(linear) should give a layer."
    return layer


def state_of(layer: Remote) -> dict[str, Tensor]:
    state = layer.state_dict()
    assert isinstance(state, dict), "The layer's state_dict() should be a dict: is it an nn.Module?"
    return {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def check_state(student: Student, kind: str, more: tuple[str, ...] = ()) -> None:
    for bias in (True, False):
        weight, b = parts(10, 6, seed=1, bias=bias)
        layer = created(student, kind, weight, b)
        state, names = state_of(layer), {"weight", "weight_scale", *(["bias"] if bias else []), *more}
        assert set(state) == names, (
            f"Made from a layer {'with' if bias else 'without'} a bias it holds {sorted(state)}."
        )
        tensor(state["weight"], shape=(6, 10), dtype=torch.int8, name="weight")
        tensor(state["weight_scale"], shape=(6, 1), dtype=torch.float32, name="weight_scale")
        if b is not None:
            assert_close(state["bias"], b, name="bias")
        for name in more:
            assert_close(state[name], torch.tensor(0.0), claim="in a new layer", name=name)
        parameters = student.grads(layer)
        assert not parameters, f"The layer has parameters, {sorted(parameters)}, and should have buffers only."
    weight, b = (part.bfloat16() for part in parts(10, 6, seed=1) if part is not None)
    for name, value in state_of(created(student, kind, weight, b)).items():
        wanted = torch.int8 if name == "weight" else torch.float32
        tensor(value, dtype=wanted, name=f"{name}, made from a bfloat16 layer,")


def check_weight(student: Student, kind: str) -> None:
    for seed, (n_in, n_out) in enumerate(((7, 5), (12, 3), (1, 4))):
        weight, bias = parts(n_in, n_out, seed)
        state = state_of(created(student, kind, weight, bias))
        assert {"weight", "weight_scale"} <= set(state), f"The state dict holds {sorted(state)}."
        scale = state["weight_scale"]
        assert scale.numel() == n_out, f"{scale.numel()} scales came for a weight of {n_out} outputs."
        unpacked = tensor(state["weight"], shape=(n_out, n_in), name="weight").double() * scale.double().view(n_out, 1)
        assert_close(unpacked, faked(weight, 0).double(), atol=1e-5, rtol=1e-5, name="weight · weight_scale")


def check_is_a_copy(student: Student, kind: str, calibrate: bool) -> None:
    """The linear layer is unchanged, and a later change of it does not reach the new layer."""
    weight, bias = cast("tuple[Tensor, Tensor]", parts(8, 5, seed=1))
    x = normal(4, 8, seed=3)
    linear = student.linear_with(weight, bias)
    layer = getattr(student, kind)(linear)
    assert isinstance(layer, Remote), f"{kind}(linear) should give a layer."
    if calibrate:
        layer.observe(x.clone().requires_grad_())
    y = tensor(layer(x), shape=(4, 5))
    assert not y.requires_grad, "A gradient leads from the result to the given layer, or to what was observed."
    before = y.detach()
    assert before.std() > 0.1, "The result is the same everywhere."
    state = linear.state_dict()
    assert_close(state["weight"], weight, atol=0, rtol=0, claim="afterwards", name="the given layer's weight")
    assert_close(state["bias"], bias, atol=0, rtol=0, claim="afterwards", name="the given layer's bias")
    linear.load_state_dict({"weight": 2 * weight, "bias": bias + 1})
    assert_close(layer(x), before, atol=0, rtol=0, claim="after the given layer changed")


def cancelling(low: int, high: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and a weight of whole numbers whose products add up to hundreds of millions, and then come back.

    Either is its own quantisation, with a scale of 1. float32 holds whole numbers up to 2²⁴ only.
    """
    draws, half = torch.Generator().manual_seed(seed), 1 << 15
    x = torch.randint((low + high) // 2 + 1, high + 1, (3, half), generator=draws)
    x[:, 0] = high
    weight = torch.randint(64, 128, (2, half), generator=draws)
    weight[:, 0] = 127
    back = weight[:, torch.randperm(half, generator=draws)]
    return x.repeat(1, 2).float(), torch.cat([weight, -back], 1).float()


# -- DynamicInt8Linear ------------------------------------------------------------------------------------------------


def dynamic(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer in float64, on inputs [..., n_in] and a weight that were rounded as int8 would have them."""
    tokens = faked(x.float().reshape(-1, x.shape[-1]), 0).double()
    y = functional.linear(tokens, faked(weight, 0).double(), None if bias is None else bias.double())
    return y.view(*x.shape[:-1], -1)


def tokens_for(*shape: int, seed: int) -> Tensor:
    """Inputs whose tokens differ in size, clear of ties."""
    x = normal(*shape, seed=seed)
    flat = x.view(-1, shape[-1]) * torch.logspace(-1, 1, x.numel() // shape[-1])[:, None]
    return clear_of_ties(flat, scales_of(flat, 0)).view(shape)


@pytest.mark.exercise("DynamicInt8Linear")
def test_the_dynamic_layer_holds_integers_scales_and_the_bias(student: Student) -> None:
    """The state dict is weight (int8), weight_scale (float32) and bias where there is one; nothing is trained."""
    check_state(student, "DynamicInt8Linear")


@pytest.mark.exercise("DynamicInt8Linear")
def test_the_dynamic_layers_weight_has_a_scale_for_each_output(student: Student) -> None:
    """weight · weight_scale is the given weight, quantised row by row."""
    check_weight(student, "DynamicInt8Linear")


@pytest.mark.exercise("DynamicInt8Linear", weight=3)
def test_inputs_are_quantised_token_by_token(student: Student) -> None:
    """The result is that of quantised weights and quantised inputs: each token has its own scale."""
    for seed, (tokens, n_in, n_out) in enumerate(((5, 7, 4), (3, 16, 9), (1, 33, 2), (17, 8, 8))):
        (weight, bias), x = parts(n_in, n_out, seed), tokens_for(tokens, n_in, seed=20 + seed)
        y = tensor(created(student, "DynamicInt8Linear", weight, bias)(x), shape=(tokens, n_out)).double()
        expected = dynamic(x, weight, bias)
        assert_close(y, expected, atol=1e-3, rtol=1e-3, claim=f"{tokens} tokens, {n_in} inputs, {n_out} outputs")


@pytest.mark.exercise("DynamicInt8Linear")
def test_tokens_do_not_share_a_scale(student: Student) -> None:
    """A token gives the same result alone and beside one that is a thousand times as loud."""
    weight, bias = parts(10, 6, seed=1)
    layer, x = created(student, "DynamicInt8Linear", weight, bias), tokens_for(4, 10, seed=2)
    x[3] *= 1024
    together = tensor(layer(x), shape=(4, 6)).detach()
    assert (together[0] - together[1]).abs().max() > 0.01, "Different tokens give the same result."
    expected = dynamic(x[:3], weight, bias)
    assert_close(
        together[:3].double(), expected, atol=1e-3, rtol=1e-3, claim="beside a loud one", name="a token's result"
    )
    for i in range(3):
        assert_close(layer(x[i : i + 1]), together[i : i + 1], atol=1e-5, claim=f"token {i} alone")


@pytest.mark.exercise("DynamicInt8Linear")
def test_a_token_of_zeros_gives_the_bias(student: Student) -> None:
    """Where there is nothing to quantise the sum is zero, and the bias is left, if the layer has one; never NaN."""
    for with_bias in (True, False):
        weight, bias = parts(10, 6, seed=1, bias=with_bias)
        layer, x = created(student, "DynamicInt8Linear", weight, bias), tokens_for(3, 10, seed=2)
        x[1] = 0
        y = tensor(layer(x), shape=(3, 6)).detach()
        expected = torch.zeros(6) if bias is None else bias
        assert_close(y[1], expected, claim="a bias" if with_bias else "no bias", name="the result of a token of zeros")
        assert_close(y[[0, 2]].double(), dynamic(x[[0, 2]], weight, bias), atol=1e-3, rtol=1e-3, claim="the others")


@pytest.mark.exercise("DynamicInt8Linear")
def test_a_dynamic_layer_takes_any_leading_dimensions(student: Student) -> None:
    """Batch and position, more of them, or none at all: the last dimension holds the inputs."""
    weight, bias = parts(8, 5, seed=1)
    layer = created(student, "DynamicInt8Linear", weight, bias)
    for shape in ((2, 3, 8), (8,), (2, 1, 4, 8), (5, 5, 8)):
        x = tokens_for(*shape, seed=len(shape))
        y = tensor(layer(x), shape=(*shape[:-1], 5), name=f"the result for x {shape}").double()
        assert_close(y, dynamic(x, weight, bias), atol=1e-3, rtol=1e-3, claim=f"x {shape}")


@pytest.mark.exercise("DynamicInt8Linear")
def test_sums_do_not_overflow(student: Student) -> None:
    """A thousand products of 127 by 127 fit into int32, and neither into int16 nor into int8."""
    weight, bias = torch.ones(3, 1500), torch.tensor([0.0, 10, -10])
    layer, x = created(student, "DynamicInt8Linear", weight, bias), tokens_for(4, 1500, seed=1).abs()
    x[1] = -x[1]
    y = tensor(layer(x), shape=(4, 3)).double()
    assert_close(y, dynamic(x, weight, bias), atol=1e-2, rtol=1e-5, claim="1500 inputs")


@pytest.mark.exercise("DynamicInt8Linear")
def test_sums_of_products_are_exact(student: Student) -> None:
    """Products are whole numbers and so is their sum, to the last digit, also where large sums cancel."""
    x, weight = cancelling(0, 127, seed=1)
    y = tensor(created(student, "DynamicInt8Linear", weight)(x), shape=(3, 2)).double()
    assert_close(y, (x.long() @ weight.long().T).double(), atol=0.5, rtol=0, claim="65,536 inputs that cancel")


@pytest.mark.exercise("DynamicInt8Linear")
def test_a_dynamic_layer_gives_bfloat16_for_bfloat16(student: Student) -> None:
    """The result has the dtype of x; only at the end it is rounded to it."""
    weight, bias = parts(32, 6, seed=1)
    layer, x = created(student, "DynamicInt8Linear", weight, bias), tokens_for(7, 32, seed=2).bfloat16()
    y = tensor(layer(x), shape=(7, 6), dtype=torch.bfloat16).double()
    assert_close(y, dynamic(x, weight, bias), atol=1e-3, rtol=0.005)
    tensor(layer(x.float()), shape=(7, 6), dtype=torch.float32)


@pytest.mark.exercise("DynamicInt8Linear", weight=0.5)
def test_the_dynamic_layer_is_independent_of_the_given_one(student: Student) -> None:
    """The given layer stays as it was, and what happens to it later does not reach the new one."""
    check_is_a_copy(student, "DynamicInt8Linear", calibrate=False)


@pytest.mark.exercise("DynamicInt8Linear", weight=0.5)
def test_dynamic_calls_leave_x_and_the_layer_as_they_were(student: Student) -> None:
    """A call changes neither its input nor the state dict, and a loaded state dict is all that a layer needs."""
    (weight, bias), x = parts(8, 5, seed=1), tokens_for(3, 8, seed=2)
    layer = created(student, "DynamicInt8Linear", weight, bias)
    state, kept = state_of(layer), student.put(x)
    before = tensor(layer(kept), shape=(3, 5)).detach()
    assert_close(before.double(), dynamic(x, weight, bias), atol=1e-3, rtol=1e-3)
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    after = state_of(layer)
    assert set(after) == set(state), f"After a call the state dict holds {sorted(after)}."
    other = created(student, "DynamicInt8Linear", *parts(8, 5, seed=7))
    other.load_state_dict(state)
    assert_close(other(x), before, atol=1e-6, claim="from a loaded state dict")


# -- StaticInt8Linear -------------------------------------------------------------------------------------------------


def affine(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a range that holds 0."""
    scale = torch.tensor((high - low) / 255, dtype=torch.float32)
    return scale, torch.round(-128 - torch.tensor(low) / scale).to(torch.int32)


def static(x: Tensor, low: float, high: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer in float64, on inputs that PyTorch's fake quantisation rounded on that range."""
    rounded = torch.fake_quantize_per_tensor_affine(x.float(), *affine(low, high), -128, 127).double()
    return functional.linear(rounded, faked(weight, 0).double(), None if bias is None else bias.double())


def ranged(low: float, high: float, *shape: int, seed: int) -> Tensor:
    """Inputs from low to high, both of which occur, the others clear of ties."""
    x = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    x = clear_of_ties(x, affine(min(low, 0), max(high, 0))[0])
    x = x.clamp(low, high)
    x.view(-1)[:2] = torch.tensor([low, high])
    return x


def calibrated(student: Student, weight: Tensor, bias: Tensor | None, *seen: Tensor) -> Remote:
    layer = created(student, "StaticInt8Linear", weight, bias)
    for x in seen:
        layer.observe(x)
    return layer


RANGES = ((-2.0, 3.0), (0.0, 4.0), (-5.0, 0.0), (1.0, 6.0), (-0.1, 9.0), (-7.0, -2.0))


@pytest.mark.exercise("StaticInt8Linear")
def test_the_static_layer_holds_integers_scales_and_a_range(student: Student) -> None:
    """The state dict is weight, weight_scale, bias where there is one, and low and high, both 0; nothing is trained."""
    check_state(student, "StaticInt8Linear", ("low", "high"))


@pytest.mark.exercise("StaticInt8Linear")
def test_the_static_layers_weight_has_a_scale_for_each_output(student: Student) -> None:
    """weight · weight_scale is the given weight, quantised row by row."""
    check_weight(student, "StaticInt8Linear")


@pytest.mark.exercise("StaticInt8Linear")
def test_observing_widens_the_range(student: Student) -> None:
    """low and high hold everything that was observed so far, and 0."""
    layer = created(student, "StaticInt8Linear", *parts(6, 3, seed=1))
    for low, high, expected in (
        (1.0, 2.0, (0.0, 2.0)),
        (-3.0, 1.0, (-3.0, 2.0)),
        (-1.0, 0.5, (-3.0, 2.0)),
        (4.0, 5.0, (-3.0, 5.0)),
        (-6.0, -4.0, (-6.0, 5.0)),
    ):
        layer.observe(ranged(low, high, 2, 4, 6, seed=1))
        state = state_of(layer)
        for name, value in zip(("low", "high"), expected, strict=True):
            assert name in state, f"The state dict holds {sorted(state)}."
            claim = f"after inputs from {low:g} to {high:g}"
            assert_close(state[name].float(), torch.tensor(value), atol=1e-6, claim=claim, name=name)


@pytest.mark.exercise("StaticInt8Linear", weight=3)
def test_inputs_are_quantised_on_the_observed_range(student: Student) -> None:
    """The result is that of quantised weights and of inputs quantised with the scale and zero point of the range."""
    for seed, (low, high) in enumerate(RANGES):
        n_in, n_out = 5 + 3 * seed, 4 + seed
        shape = ((6, n_in), (2, 3, n_in), (n_in,), (2, 1, 3, n_in))[seed % 4]
        (weight, bias), x = parts(n_in, n_out, seed), ranged(low, high, *shape, seed=seed)
        layer, claim = calibrated(student, weight, bias, x), f"x {shape} from {low:g} to {high:g}"
        y = tensor(layer(x), shape=(*shape[:-1], n_out), name=f"the result for {claim}").double()
        assert_close(y, static(x, min(low, 0), max(high, 0), weight, bias), atol=1e-3, rtol=1e-3, claim=claim)


@pytest.mark.exercise("StaticInt8Linear")
def test_what_lies_outside_of_the_range_is_cut_off(student: Student) -> None:
    """Numbers beyond low and high become low and high; they do not wrap around."""
    weight, bias = parts(9, 4, seed=1)
    layer = calibrated(student, weight, bias, ranged(-1.0, 2.0, 3, 9, seed=2))
    x = ranged(-1.0, 2.0, 5, 9, seed=3)
    x[1, 3], x[2, 0], x[3, 5], x[4, 1] = 50.0, -40.0, 3.0, -1.6
    y = tensor(layer(x), shape=(5, 4)).double()
    assert_close(y, static(x, -1.0, 2.0, weight, bias), atol=1e-3, rtol=1e-3, claim="with four inputs out of range")


@pytest.mark.exercise("StaticInt8Linear", weight=2)
def test_the_range_is_that_of_the_calibration_and_not_of_x(student: Student) -> None:
    """A smaller or larger input is quantised on the same range, and a call does not change the range."""
    weight, bias = parts(9, 4, seed=1)
    layer = calibrated(student, weight, bias, ranged(-2.0, 3.0, 3, 9, seed=2), ranged(-1.0, 6.0, 3, 9, seed=3))
    scale, _ = affine(-2.0, 6.0)
    for size in (0.1, 1.0, 3.0):
        x = clear_of_ties(size * normal(5, 9, seed=4), scale)
        y = tensor(layer(x), shape=(5, 4)).double()
        assert_close(y, static(x, -2.0, 6.0, weight, bias), atol=1e-3, rtol=1e-3, claim=f"for inputs of size {size:g}")
    high = state_of(layer).get("high", torch.tensor(6.0))  # where it is none of the state's, another test says so
    assert_close(high.float(), torch.tensor(6.0), claim="after calls with larger inputs", name="high")
    x = clear_of_ties(normal(5, 9, seed=5), scale)
    together = tensor(layer(x), shape=(5, 4)).detach()
    for i in range(5):
        assert_close(layer(x[i : i + 1]), together[i : i + 1], atol=1e-5, claim=f"token {i} alone")


@pytest.mark.exercise("StaticInt8Linear")
def test_a_layer_without_a_range_says_so(student: Student) -> None:
    """Before anything was observed a call raises a RuntimeError, and afterwards it does not."""
    for bias in (True, False):
        weight, b = parts(6, 3, seed=1, bias=bias)
        layer = created(student, "StaticInt8Linear", weight, b)
        x = ranged(-1.0, 1.0, 4, 6, seed=2)
        error = raised(student, lambda layer=layer, x=x: layer(x))
        what = f"A call before anything was observed raises {error.types[0] if error else 'nothing'}"
        assert isinstance(error, RuntimeError), f"{what}, and it should raise a RuntimeError."
        assert str(error).strip(), "The RuntimeError should say what to do."
        layer.observe(x)
        y = tensor(layer(x), shape=(4, 3)).double()
        assert_close(y, static(x, -1.0, 1.0, weight, b), atol=1e-3, rtol=1e-3, claim="after observe(x)")


@pytest.mark.exercise("StaticInt8Linear")
def test_the_calibration_travels_in_the_state_dict(student: Student) -> None:
    """A new layer with another's state dict gives the other's results, without being calibrated itself."""
    weight, bias = parts(7, 4, seed=1)
    x = ranged(-2.0, 5.0, 6, 7, seed=2)
    state = state_of(calibrated(student, weight, bias, x))
    other = created(student, "StaticInt8Linear", *parts(7, 4, seed=8))
    other.load_state_dict(state)
    y = tensor(other(x), shape=(6, 4)).double()
    assert_close(y, static(x, -2.0, 5.0, weight, bias), atol=1e-3, rtol=1e-3, claim="from a loaded state dict")
    again = calibrated(student, *parts(7, 4, seed=8), 9 * x)  # one that had a range of its own before
    again.load_state_dict(state)
    assert_close(again(x), y.float(), atol=1e-4, claim="loaded over an earlier calibration")


@pytest.mark.exercise("StaticInt8Linear")
def test_long_sums_and_their_zero_point_do_not_overflow(student: Student) -> None:
    """Both the product and the zero point's share of it need more than 16 bits."""
    weight, bias, x = torch.ones(2, 1500), torch.tensor([1.0, -1]), ranged(0.0, 4.0, 3, 1500, seed=1)
    y = tensor(calibrated(student, weight, bias, x)(x), shape=(3, 2)).double()
    assert_close(y, static(x, 0.0, 4.0, weight, bias), atol=1e-2, rtol=1e-5, claim="1500 inputs")


@pytest.mark.exercise("StaticInt8Linear")
def test_a_static_layers_sums_are_exact(student: Student) -> None:
    """Products are whole numbers and so is their sum, to the last digit, also where large sums cancel."""
    x, weight = cancelling(0, 255, seed=2)
    y = tensor(calibrated(student, weight, None, x)(x), shape=(3, 2)).double()
    assert_close(y, (x.long() @ weight.long().T).double(), atol=0.5, rtol=0, claim="65,536 inputs that cancel")


@pytest.mark.exercise("StaticInt8Linear")
def test_a_static_layer_gives_bfloat16_for_bfloat16(student: Student) -> None:
    """observe and a call take bfloat16; the range is float32 and the result has the dtype of x."""
    weight, bias = parts(32, 6, seed=1)
    low, high = -2.03125, 3.09375
    x = ranged(low, high, 7, 32, seed=2).bfloat16()
    layer = calibrated(student, weight, bias, x)
    y = tensor(layer(x), shape=(7, 6), dtype=torch.bfloat16).double()
    assert_close(y, static(x, low, high, weight, bias), atol=1e-3, rtol=0.005)
    state = state_of(layer)
    for name in ("low", "high"):
        assert name in state, f"The state dict holds {sorted(state)}."
        tensor(state[name], shape=(), dtype=torch.float32, name=name)


@pytest.mark.exercise("StaticInt8Linear", weight=0.5)
def test_the_static_layer_is_independent_of_the_given_one(student: Student) -> None:
    """The given layer stays as it was, and what happens to it later does not reach the new one."""
    check_is_a_copy(student, "StaticInt8Linear", calibrate=True)


@pytest.mark.exercise("StaticInt8Linear", weight=0.5)
def test_static_calls_leave_x_as_it_was(student: Student) -> None:
    """Neither observe nor a call changes its input, and observe returns nothing."""
    weight, bias = parts(8, 5, seed=1)
    x = ranged(-1.0, 2.0, 3, 8, seed=2)
    kept, layer = student.put(x), created(student, "StaticInt8Linear", weight, bias)
    returned = layer.observe(kept)
    assert returned is None, "observe returns something, and should only widen the range."
    y = tensor(layer(kept), shape=(3, 5)).double()
    assert_close(y, static(x, -1.0, 2.0, weight, bias), atol=1e-3, rtol=1e-3)
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after both", name="x")


# -- fake_quantize ----------------------------------------------------------------------------------------------------


def fake(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """PyTorch's own, with one scale or one for each row."""
    top = 2 ** (bits - 1) - 1
    if scale.numel() == 1:
        zero = torch.tensor(0, dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale.flatten()[0], zero, -top, top)
    zeros = torch.zeros(scale.numel(), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, scale.flatten(), zeros, 0, -top, top)


CASES = (
    ((5, 9), (), 8),
    ((6, 7), (6, 1), 3),
    ((4, 5), (), 2),
    ((8, 3), (8, 1), 4),
    ((9,), (), 5),
    ((3, 20), (3, 1), 6),
)


def case(shape: tuple[int, ...], scales: tuple[int, ...], bits: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of which some are cut off, clear of ties, and their scale."""
    scale = (0.5 + torch.rand(scales, generator=torch.Generator().manual_seed(seed))) / 2 ** (bits - 2)
    return clear_of_ties(normal(*shape, seed=seed), scale), scale


@pytest.mark.exercise("fake_quantize", weight=2)
def test_values_are_rounded_and_cut_off(student: Student) -> None:
    """The result is that of PyTorch's fake quantisation, for one scale and for one a row, from 2 to 8 bits."""
    for seed, (shape, scales, bits) in enumerate(CASES):
        x, scale = case(shape, scales, bits, seed)
        y = tensor(student.fake_quantize(x, scale, bits), shape=shape, dtype=torch.float32)
        assert_close(y, fake(x, scale, bits), atol=1e-5, claim=f"{bits} bits, scale {tuple(scale.shape)}")
    x, scale = case((6, 8), (), 8, seed=1)
    assert_close(student.fake_quantize(x, scale), fake(x, scale, 8), atol=1e-5, claim="without bits, which are then 8")


@pytest.mark.exercise("fake_quantize", weight=3)
def test_the_gradient_passes_where_nothing_was_cut_off(student: Student) -> None:
    """The gradient of x is the one that came in, times 1 where x was rounded and times 0 where it was cut off."""
    for seed, (shape, scales, bits) in enumerate(CASES):
        x, scale = case(shape, scales, bits, seed)
        ours, theirs, upstream = x.clone().requires_grad_(), x.clone().requires_grad_(), normal(*shape, seed=50)
        found = gradients(student.fake_quantize(ours, scale, bits), upstream, x=ours)["x"]
        right = gradients(fake(theirs, scale, bits), upstream, x=theirs)["x"]
        assert_close(found, right, claim=f"{bits} bits, scale {tuple(scale.shape)}", name="the gradient of x")


@pytest.mark.exercise("fake_quantize")
def test_the_edge_is_where_rounding_leaves_the_range(student: Student) -> None:
    """127.3 steps round to 127 and are inside, 127.7 round to 128 and are outside; so on the other side."""
    for bits, top in ((8, 127), (4, 7), (2, 1)):
        x = torch.tensor([top + 0.3, top + 0.7, -top - 0.3, -top - 0.7, top - 0.3, 0.0]).requires_grad_()
        y = student.fake_quantize(x, torch.tensor(1.0), bits)
        grad = gradients(y, torch.ones(6), x=x)["x"]
        assert_close(y.detach(), torch.tensor([top, top, -top, -top, top, 0.0]), claim=f"{bits} bits")
        inside = torch.tensor([1.0, 0, 1, 0, 1, 1])
        assert_close(grad, inside, claim=f"{bits} bits, scale 1", name="the gradient of x")


@pytest.mark.exercise("fake_quantize")
def test_halves_are_rounded_to_even_here_too(student: Student) -> None:
    """As everywhere in this chapter: 0.5 steps become 0, 1.5 and 2.5 become 2."""
    x = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75, -1.25, 1.75])
    expected = torch.tensor([0.0, 1, 1, 0, -1, -1, 2])
    assert_close(student.fake_quantize(x, torch.tensor(0.5), 8), expected, claim="scale 0.5")


@pytest.mark.exercise("fake_quantize", weight=0.5)
def test_no_gradient_reaches_the_scale(student: Student) -> None:
    """The scale is given, not learnt: the gradient of x is all there is."""
    x, scale = case((5, 6), (5, 1), 4, seed=3)
    x.requires_grad_()
    scale.requires_grad_()
    y = tensor(student.fake_quantize(x, scale, 4), shape=(5, 6))
    assert y.requires_grad, "No gradient flows through the result."
    to_x, to_scale = torch.autograd.grad(y, (x, scale), torch.ones(5, 6), allow_unused=True)
    assert to_x is not None, "No gradient reaches x."
    assert to_x.any(), "The gradient of x is zero everywhere."
    assert to_scale is None or not to_scale.any(), "A gradient reaches the scale."


@pytest.mark.exercise("fake_quantize")
def test_the_result_has_the_dtype_of_x(student: Student) -> None:
    """bfloat16 gives bfloat16, rounded with the arithmetic of float32, and its gradient is bfloat16 too."""
    scale = torch.tensor(0.013)
    x = clear_of_ties(normal(8, 9, seed=1), scale).bfloat16()
    upstream = normal(8, 9, seed=2).bfloat16()
    expected = fake(x.float(), scale, 8).bfloat16()
    x.requires_grad_()
    y = student.fake_quantize(x, scale, 8)
    grad = gradients(y, upstream, x=x)["x"]
    assert_close(y, expected, atol=1e-4, rtol=0.004)
    inside = (x.detach().float() / scale).round().abs() <= 127
    assert_close(grad, upstream * inside, atol=1e-6, name="the gradient of x")


@pytest.mark.exercise("fake_quantize", weight=0.5)
def test_x_and_the_scale_are_left_as_they_were(student: Student) -> None:
    """Both belong to the caller: an operation that ends in _ changes them."""
    x, scale = case((4, 5), (4, 1), 4, seed=1)
    kept_x, kept_scale = student.put(x), student.put(scale)
    assert_close(student.fake_quantize(kept_x, kept_scale, 4), fake(x, scale, 4), atol=1e-5)
    assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(kept_scale.get(), scale, atol=0, rtol=0, claim="after the call", name="the scale")
