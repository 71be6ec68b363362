"""Hidden tests of chapter 02. Expected values come from PyTorch and einops, laws from theory; none from the reference.

A test looks at one claim: where the claim is about masks or shapes, d_head is 1, so that a wrong scale fails elsewhere.
"""

import math
import re

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

RESERVED = {
    "attention": (
        "torch.nn.functional.scaled_dot_product_attention",
        "torch._C._nn.scaled_dot_product_attention",
        "torch.ops.aten.scaled_dot_product_attention",
        "torch.ops.aten._scaled_dot_product_attention_math",
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "torch._scaled_dot_product_attention_math",
    ),
    "MultiHeadAttention": (
        "torch.nn.MultiheadAttention",
        "torch.nn.functional.multi_head_attention_forward",
        "torch._native_multi_head_attention",
        "torch.nn.modules.MultiheadAttention",
        "torch.nn.modules.activation.MultiheadAttention",
    ),
}


def some_mask(*shape: int, seed: int) -> Tensor:
    """A random mask in which every row may attend to something."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    return mask


# -- causal_mask ----------------------------------------------------------------------------------------------------


def booleans(student: Student, n: int) -> Tensor:
    """The mask as booleans whatever its dtype is, which has a test of its own. A constant earns nothing."""
    mask = tensor(student.causal_mask(n), shape=(n, n), name=f"causal_mask({n})").bool()
    assert n < 3 or (mask.any() and not mask.all()), f"causal_mask({n}) is the same everywhere, so it decides nothing."
    return mask


@pytest.mark.exercise("causal_mask")
def test_the_mask_is_a_square_of_booleans(student: Student) -> None:
    """The result is a tensor of booleans with n rows and n columns, not of numbers."""
    for n in (6, 3, 1):
        mask = tensor(student.causal_mask(n), shape=(n, n), dtype=torch.bool, name=f"causal_mask({n})")
        assert n < 3 or (mask.any() and not mask.all()), (
            f"causal_mask({n}) is the same everywhere, so it decides nothing."
        )


@pytest.mark.exercise("causal_mask")
def test_a_position_never_sees_the_future(student: Student) -> None:
    """Row i may not attend to the columns after i: they are False."""
    for n in (5, 7, 2):
        assert not booleans(student, n).triu(1).any(), f"In causal_mask({n}) a position may attend to a later one."


@pytest.mark.exercise("causal_mask")
def test_a_position_sees_all_of_the_past(student: Student) -> None:
    """Row i may attend to every column before i: they are True."""
    for n in (5, 7, 2):
        past = torch.ones(n, n, dtype=torch.bool).tril(-1)
        assert booleans(student, n)[past].all(), f"In causal_mask({n}) a position may not attend to an earlier one."


@pytest.mark.exercise("causal_mask")
def test_a_position_sees_itself(student: Student) -> None:
    """Row i may attend to column i: the diagonal is True."""
    for n in (5, 7, 1):
        assert booleans(student, n).diagonal().all(), f"In causal_mask({n}) a position may not attend to itself."


@pytest.mark.exercise("causal_mask", weight=2)
def test_every_length_works(student: Student) -> None:
    """Nothing is fixed to one length: n may be 1, odd, or larger than any table."""
    for n in (17, 2, 1, 1025):  # the last one is larger than GPT-2's table
        expected = torch.ones(n, n, dtype=torch.bool).tril()
        assert_close(booleans(student, n), expected, name=f"causal_mask({n})")


# -- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.exercise("attention", weight=3)
def test_each_output_is_a_softmax_mixture_of_the_values(student: Student) -> None:
    """Without a mask: the softmax of q·k/√d_head over the keys weighs the values."""
    for seed, (lead, n_q, n_k, d_head, d_v) in enumerate(
        [((2,), 3, 5, 4, 4), ((2, 3), 7, 4, 9, 5), ((1,), 33, 70, 2, 3), ((1,), 70, 70, 3, 2)]
    ):
        q, k, v = (
            normal(*lead, n_q, d_head, seed=seed),
            normal(*lead, n_k, d_head, seed=10 + seed),
            normal(*lead, n_k, d_v, seed=20),
        )
        expected = functional.scaled_dot_product_attention(q, k, v)
        assert_close(
            student.attention(q, k, v), expected, claim=f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )


@pytest.mark.exercise("attention")
def test_scores_are_divided_by_the_root_of_d_head(student: Student) -> None:
    """Weights are in the ratio of exp(q·k/√d_head), where d_head is the width of one query."""
    for d_head in (9, 36):
        q, k = normal(1, 1, d_head, seed=1), normal(1, 2, d_head, seed=2)
        v = torch.eye(2, 3)[None]  # the first two entries of the output are the weights
        weights = tensor(student.attention(q, k, v), shape=(1, 1, 3), dtype=torch.float32).detach().double()[0, 0, :2]
        assert bool((weights > 0).all()), "Every weight of a softmax is above zero, and here one is not."
        factor = ((weights[0] / weights[1]).log() / (q[0, 0] @ (k[0, 0] - k[0, 1]))).item()
        assert math.isclose(factor * d_head**0.5, 1, rel_tol=1e-3), (
            f"With d_head = {d_head} the weights come out as if q·k had been multiplied by {factor:.3g}."
        )


@pytest.mark.exercise("attention")
def test_the_weights_of_a_row_sum_to_one(student: Student) -> None:
    """If every value is 1, every output is 1: without a mask, and with one, whatever the blocked scores are."""
    q, k, ones = normal(2, 5, 4, seed=1), normal(2, 7, 4, seed=2), torch.ones(2, 7, 3)
    for mask in (None, some_mask(2, 5, 7, seed=3)):
        claim = "without a mask" if mask is None else "with a mask"
        assert_close(student.attention(q, k, ones, mask), torch.ones(2, 5, 3), claim=claim, name="the mean of ones")
    for low, high in ((0.0, 300.0), (-30_000.0, 0.0)):  # what is blocked has by far the highest score
        scores = torch.tensor([[[low], [low - 100], [high]]])
        one, mask = torch.ones(1, 1, 1), torch.tensor([[True, True, False]])
        assert_close(
            student.attention(one, scores, torch.ones(1, 3, 1), mask),
            one,
            claim="where the blocked score is the highest",
            name="the mean of ones",
        )


@pytest.mark.exercise("attention")
def test_a_blocked_position_has_no_influence(student: Student) -> None:
    """Where the mask is False, key and value count for nothing, however low the other scores are."""
    n = 7
    q, k, v = normal(2, n, 4, seed=1), normal(2, n, 4, seed=2), normal(2, n, 3, seed=3)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    before = tensor(student.attention(q, k, v, causal), shape=(2, n, 3)).detach()
    for j in (2, 5):
        k2, v2 = k.clone(), v.clone()
        k2[:, j] += 3
        v2[:, j] -= 50
        after = tensor(student.attention(q, k2, v2, causal), shape=(2, n, 3)).detach()
        assert_close(after[:, :j], before[:, :j], claim=f"after a change at position {j}", name="what came before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), (
            f"Who may see position {j} does not notice that it changed."
        )
    low = student.attention(
        torch.full((1, 1, 1), -600.0),
        torch.tensor([[[49.0], [50], [1]]]),
        torch.eye(3)[None],
        mask=torch.tensor([[True, True, False]]),
    )
    assert tensor(low, shape=(1, 1, 3))[0, 0, 2] == 0, (
        "Where the allowed scores are about −30,000, the blocked position gets weight."
    )


@pytest.mark.exercise("attention", weight=2)
def test_the_mask_decides_who_takes_part(student: Student) -> None:
    """True means "may attend"; the mask may lack dimensions or have them of size 1."""
    b, h, n_q, n_k = 2, 3, 5, 4
    q, k, v = normal(b, h, n_q, 1, seed=1), normal(b, h, n_k, 1, seed=2), normal(b, h, n_k, 3, seed=3)
    shapes = ((n_q, n_k), (b, h, n_q, n_k), (b, 1, n_q, n_k), (h, n_q, n_k), (b, 1, 1, n_k))
    for seed, shape in enumerate(shapes):
        mask = some_mask(*shape, seed=seed)
        expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(b, h, n_q, n_k))
        assert_close(student.attention(q, k, v, mask), expected, claim=f"with a mask of shape {shape}")
    q, k, v, mask = normal(70, 1, seed=4), normal(70, 1, seed=5), normal(70, 2, seed=6), some_mask(70, 70, seed=5)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_close(student.attention(q, k, v, mask), expected, claim="with 70 queries and keys")


@pytest.mark.exercise("attention")
def test_a_row_that_may_attend_to_nothing_gives_zeros(student: Student) -> None:
    """A query whose row of the mask is all False gives zeros: no NaN, and no mean of what it may not see."""
    q, k, v = normal(2, 5, 4, seed=1), normal(2, 6, 4, seed=2), normal(2, 6, 3, seed=3)
    mask = some_mask(2, 5, 6, seed=4)
    mask[0, 2] = mask[1, 0] = mask[1, 4] = False
    empty = ~mask.any(-1)
    out = tensor(student.attention(q, k, v, mask), shape=(2, 5, 3)).detach()
    assert_close(out[empty], torch.zeros(3, 3), name="the empty rows")
    assert out[~empty].isfinite().all(), "A row that may attend to nothing made its neighbours NaN or infinite."
    assert out[~empty].any(-1).all(), "A row that may attend to something gives zeros."
    assert_close(
        student.attention(q, k, v, torch.zeros(5, 6, dtype=torch.bool)),
        torch.zeros(2, 5, 3),
        claim="nothing allowed at all",
    )


@pytest.mark.exercise("attention", weight=2)
def test_gradients_reach_queries_keys_and_values(student: Student) -> None:
    """The gradients of q, k and v are those of the formula: nothing on the way is detached."""
    q, k, v = (normal(2, *shape, seed=1).requires_grad_() for shape in ((5, 4), (6, 4), (6, 3)))
    upstream = normal(2, 5, 3, seed=5)
    for mask in (some_mask(2, 5, 6, seed=4), None):
        expected = gradients(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask), upstream, q=q, k=k, v=v)
        for name, grad in gradients(student.attention(q, k, v, mask), upstream, q=q, k=k, v=v).items():
            claim = "without a mask" if mask is None else "with a mask"
            assert_close(grad, expected[name], claim=claim, name=f"the gradient of {name}")


@pytest.mark.exercise("attention")
def test_gradients_stay_finite_beside_an_empty_row(student: Student) -> None:
    """A row that may attend to nothing sends zeros back, never NaN, and its neighbours still learn."""
    inputs = {"q": normal(1, 4, 3, seed=1), "k": normal(1, 5, 3, seed=2), "v": normal(1, 5, 2, seed=3)}
    for value in inputs.values():
        value.requires_grad_()
    mask = some_mask(4, 5, seed=4)
    mask[2] = False
    found = gradients(student.attention(*inputs.values(), mask), normal(1, 4, 2, seed=5), **inputs)
    for name, grad in found.items():
        assert grad.isfinite().all(), (
            f"The gradient of {name} has {int((~grad.isfinite()).sum())} entries that are NaN or infinite."
        )
        assert grad.any(), f"The gradient of {name} is zero everywhere."
    assert not found["q"][:, 2].any(), "The query that may attend to nothing gets a gradient."


@pytest.mark.exercise("attention")
def test_large_scores_do_not_overflow(student: Student) -> None:
    """Scores of ±10,000 in neighbouring rows still give weights: the exponential must not overflow or vanish."""
    q, k = torch.tensor([[[200.0], [199.96875], [0], [-200]]]), torch.tensor([[[49.0], [50], [50]]])
    expected = (q @ k.mT).double().softmax(-1).float()
    assert_close(student.attention(q, k, torch.eye(3)[None]), expected, name="the weights")


@pytest.mark.exercise("attention")
def test_without_a_mask_every_query_sees_every_key(student: Student) -> None:
    """mask=None hides nothing, and shuffling keys and values together changes nothing."""
    q, k, v = normal(2, 6, 4, seed=1), normal(2, 6, 4, seed=2), normal(2, 6, 3, seed=3)
    shuffled = torch.tensor([3, 5, 0, 1, 4, 2])
    with torch.no_grad():
        before = tensor(student.attention(q, k, v), shape=(2, 6, 3))
        assert_close(
            student.attention(q, k[:, shuffled], v[:, shuffled]), before, claim="with keys and values shuffled"
        )
        for j in (0, 5):
            v2 = v.clone()
            v2[:, j] += 10
            after = tensor(student.attention(q, k, v2), shape=(2, 6, 3))
            assert (after != before).any(-1).all(), (
                f"Some query does not notice that the value at position {j} changed."
            )


@pytest.mark.exercise("attention")
def test_any_number_of_leading_dimensions(student: Student) -> None:
    """Only the last two dimensions are special: before them there may be none, one, two or three."""
    for lead in ((), (3,), (2, 3), (2, 1, 3)):
        q, k, v = normal(*lead, 4, 1, seed=1), normal(*lead, 5, 1, seed=2), normal(*lead, 5, 2, seed=3)
        expected = functional.scaled_dot_product_attention(q, k, v)
        assert_close(student.attention(q, k, v), expected, claim=f"with q of shape {tuple(q.shape)}")


@pytest.mark.exercise("attention")
def test_the_result_has_the_dtype_of_the_input(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64, with a mask and without."""
    for dtype in (torch.bfloat16, torch.float64):
        q, k, v = (normal(2, n, 1, seed=n).to(dtype) for n in (4, 5, 5))
        for mask in (None, some_mask(4, 5, seed=6)):
            expected = functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
            assert_close(
                student.attention(q, k, v, mask),
                expected.to(dtype),
                atol=5e-2 if dtype == torch.bfloat16 else 1e-5,
                name=f"the {str(dtype)[6:]} result",
            )


@pytest.mark.exercise("attention", weight=0.5)
def test_the_inputs_are_left_as_they_were(student: Student) -> None:
    """q, k, v and the mask belong to the caller: an operation that ends in _ changes them."""
    inputs = {
        "q": normal(2, 4, 3, seed=1),
        "k": normal(2, 5, 3, seed=2),
        "v": normal(2, 5, 3, seed=3),
        "mask": some_mask(4, 5, seed=4),
    }
    inputs["mask"][1] = False
    kept = {name: student.put(value) for name, value in inputs.items()}
    tensor(student.attention(*kept.values()), shape=(2, 4, 3))  # doing nothing at all is no merit
    for name, value in inputs.items():
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- split_heads ----------------------------------------------------------------------------------------------------


def same_entries(actual: Tensor, x: Tensor, name: str) -> None:
    """Where each one is has tests of its own; but a shape without the entries earns nothing."""
    kept = torch.equal(actual.detach().flatten().sort().values, x.flatten().sort().values)
    assert kept, f"{name} has the right shape, but its entries are not those of x."


SIZES = ((2, 5, 12, 3), (3, 4, 10, 2), (1, 7, 6, 6), (2, 3, 4, 1))  # batch, n, d_model, n_heads


@pytest.mark.exercise("split_heads")
def test_each_head_has_its_share_of_the_channels(student: Student) -> None:
    """(batch, n, d_model) becomes (batch, n_heads, n, d_head), also for one head and for d_model heads."""
    for batch, n, d_model, n_heads in SIZES:
        x = normal(batch, n, d_model, seed=1)
        shape = (batch, n_heads, n, d_model // n_heads)
        name = f"split_heads of {tuple(x.shape)} into {n_heads}"
        same_entries(tensor(student.split_heads(x, n_heads), shape=shape, name=name), x, name)


@pytest.mark.exercise("split_heads")
def test_a_head_gets_neighbouring_channels(student: Student) -> None:
    """Head 0 gets the first d_head channels, head 1 the next d_head, and so on, in their order."""
    x = torch.arange(12.0).expand(2, 5, 12)
    heads = tensor(student.split_heads(x, 3), shape=(2, 3, 5, 4))
    for head in range(3):
        assert_close(
            heads[:, head],
            x[..., 4 * head : 4 * head + 4],
            claim="where each entry holds its channel",
            name=f"head {head}",
        )


@pytest.mark.exercise("split_heads")
def test_a_position_stays_where_it_was_when_split(student: Student) -> None:
    """Row t of every head comes from position t and from no other."""
    for n in (5, 4):  # 4 is d_head as well
        position = torch.arange(float(n))[:, None]
        heads = student.split_heads(position.expand(2, n, 12), 3)
        assert_close(heads, position.expand(2, 3, n, 4), claim="where each entry holds its position")


@pytest.mark.exercise("split_heads")
def test_sequences_do_not_mix_when_split(student: Student) -> None:
    """What belongs to one sequence of the batch stays with it."""
    x = torch.arange(4.0)[:, None, None].expand(4, 5, 12)
    expected = torch.arange(4.0)[:, None, None, None].expand(4, 3, 5, 4)
    assert_close(student.split_heads(x, 3), expected, claim="where each entry holds its sequence")


@pytest.mark.exercise("split_heads")
def test_split_works_with_any_number_of_leading_dimensions(student: Student) -> None:
    """Before n and d_model there may be no dimension, one or several."""
    for lead in ((), (3,), (2, 3), (2, 1, 3)):
        x = normal(*lead, 5, 12, seed=1)
        expected = rearrange(x, "... n (h d) -> ... h n d", h=3)
        assert_close(student.split_heads(x, 3), expected, claim=f"with x of shape {tuple(x.shape)}")


@pytest.mark.exercise("split_heads")
def test_splitting_keeps_dtype_and_gradient(student: Student) -> None:
    """Nothing is computed here: any dtype passes unchanged, and so does the gradient."""
    for dtype in (torch.int64, torch.bfloat16):
        x = torch.arange(60).reshape(1, 5, 12).to(dtype)
        assert_close(
            student.split_heads(x, 4), rearrange(x, "b n (h d) -> b h n d", h=4), name=f"the {str(dtype)[6:]} result"
        )
    x, upstream = normal(2, 5, 12, seed=1).requires_grad_(), normal(2, 4, 5, 3, seed=2)
    grad = gradients(student.split_heads(x, 4), upstream, x=x)["x"]
    assert_close(grad, rearrange(upstream, "b h n d -> b n (h d)"), name="the gradient of x")


# -- merge_heads ----------------------------------------------------------------------------------------------------


@pytest.mark.exercise("merge_heads")
def test_the_heads_are_side_by_side_again(student: Student) -> None:
    """(batch, n_heads, n, d_head) becomes (batch, n, n_heads · d_head), also for one head, or heads of one channel."""
    for batch, n, d_model, n_heads in SIZES:
        x = normal(batch, n_heads, n, d_model // n_heads, seed=1)
        name = f"merge_heads of {tuple(x.shape)}"
        same_entries(tensor(student.merge_heads(x), shape=(batch, n, d_model), name=name), x, name)


@pytest.mark.exercise("merge_heads")
def test_the_heads_follow_each_other_in_order(student: Student) -> None:
    """At every position the channels of head 0 come first, then those of head 1, and so on."""
    channel = 10 * torch.arange(3.0)[:, None, None] + torch.arange(4.0)  # head 1, channel 2 holds 12
    expected = (10 * torch.arange(3.0)[:, None] + torch.arange(4.0)).flatten().expand(2, 5, 12)
    assert_close(
        student.merge_heads(channel.expand(2, 3, 5, 4)), expected, claim="where each entry holds its head and channel"
    )


@pytest.mark.exercise("merge_heads")
def test_a_position_stays_where_it_was_when_merged(student: Student) -> None:
    """Row t of the result comes from position t of every head and from no other."""
    for n in (5, 4):  # 4 is d_head as well
        position = torch.arange(float(n))[:, None]
        merged = student.merge_heads(position.expand(2, 3, n, 4))
        assert_close(merged, position.expand(2, n, 12), claim="where each entry holds its position")


@pytest.mark.exercise("merge_heads")
def test_sequences_do_not_mix_when_merged(student: Student) -> None:
    """What belongs to one sequence of the batch stays with it."""
    x = torch.arange(4.0)[:, None, None, None].expand(4, 3, 5, 4)
    assert_close(
        student.merge_heads(x),
        torch.arange(4.0)[:, None, None].expand(4, 5, 12),
        claim="where each entry holds its sequence",
    )


@pytest.mark.exercise("merge_heads")
def test_merging_undoes_splitting(student: Student) -> None:
    """What was split comes back as it was, with any number of leading dimensions."""
    for lead in ((), (3,), (2, 3), (2, 1, 3)):
        x = normal(*lead, 5, 12, seed=1)
        heads = rearrange(x, "... n (h d) -> ... h n d", h=3)
        assert_close(student.merge_heads(heads), x, claim=f"with heads of shape {tuple(heads.shape)}")


@pytest.mark.exercise("merge_heads")
def test_merging_keeps_dtype_and_gradient(student: Student) -> None:
    """Nothing is computed here: any dtype passes unchanged, and so does the gradient."""
    for dtype in (torch.int64, torch.bfloat16):
        x = torch.arange(60).reshape(1, 4, 5, 3).to(dtype)
        assert_close(student.merge_heads(x), rearrange(x, "b h n d -> b n (h d)"), name=f"the {str(dtype)[6:]} result")
    x, upstream = normal(2, 4, 5, 3, seed=1).requires_grad_(), normal(2, 5, 12, seed=2)
    grad = gradients(student.merge_heads(x), upstream, x=x)["x"]
    assert_close(grad, rearrange(upstream, "b n (h d) -> b h n d", h=4), name="the gradient of x")


# -- MultiHeadAttention ---------------------------------------------------------------------------------------------

NAMES = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")


def random_weights(d_model: int, seed: int) -> dict[str, Tensor]:
    return {name: 1.5 * d_model**-0.5 * normal(d_model, d_model, seed=seed + i) for i, name in enumerate(NAMES)}


def created(student: Student, d_model: int, n_heads: int) -> tuple[Remote, dict[str, Tensor]]:
    """A new layer and its state dict."""
    layer = student.MultiHeadAttention(d_model, n_heads)
    assert isinstance(layer, Remote), "MultiHeadAttention(d_model, n_heads) should give a layer."
    state = layer.state_dict()
    assert isinstance(state, dict), "The layer's state_dict() should be a dict: is MultiHeadAttention an nn.Module?"
    return layer, {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def loaded(student: Student, n_heads: int, weights: dict[str, Tensor]) -> Remote:
    """A layer with these weights, in evaluation. What it has beside them is zeroed: other tests see to both."""
    layer, state = created(student, len(weights[NAMES[0]]), n_heads)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()} | weights)
    if len(state) > len(weights):  # a weight that has two names was zeroed under the other one
        layer.load_state_dict(weights, strict=False)
    layer.eval()
    return layer


def oracle(n_heads: int, weights: dict[str, Tensor]) -> nn.MultiheadAttention:
    q, k, v, o = (weights[name] for name in NAMES)
    layer = nn.MultiheadAttention(len(o), n_heads, bias=False, batch_first=True)
    layer.load_state_dict({"in_proj_weight": torch.cat([q, k, v]), "out_proj.weight": o})
    return layer


def pytorchs(layer: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's answer. Its True means "may not attend", and its mask has batch and heads in one dimension."""
    if mask is not None:
        mask = ~mask.expand(len(x), layer.num_heads, x.shape[1], x.shape[1]).flatten(0, 1)
    return layer(x, x, x, attn_mask=mask, need_weights=False)[0]


@pytest.mark.exercise("MultiHeadAttention")
def test_the_layer_has_four_square_weights_and_nothing_else(student: Student) -> None:
    """The state dict holds the four projections' weights, each (d_model, d_model), and all of them are trained."""
    for d_model, n_heads in ((12, 3), (10, 5)):
        layer, state = created(student, d_model, n_heads)
        parameters = student.grads(layer)
        assert set(state) == set(NAMES), f"The state dict holds {sorted(state)}."
        assert set(parameters) == set(NAMES), f"The parameters that are trained are {sorted(parameters)}."
        for name, value in state.items():
            tensor(value, shape=(d_model, d_model), dtype=torch.float32, name=name)
            assert value.isfinite().all(), f"{name} is not finite in a new layer: was it never initialised?"


@pytest.mark.exercise("MultiHeadAttention")
def test_heads_must_share_the_channels_equally(student: Student) -> None:
    """If d_model is not divisible by n_heads, creating the layer raises a ValueError that names both numbers."""
    created(student, 12, 3)  # this one is divisible
    for d_model, n_heads in ((10, 4), (6, 12)):
        raised: StudentError | None = None
        try:
            student.MultiHeadAttention(d_model, n_heads)
        except Unfinished:
            raise
        except StudentError as error:
            raised = error
        what = f"MultiHeadAttention({d_model}, {n_heads}) raises {raised.types[0] if raised else 'nothing'}"
        assert isinstance(raised, ValueError), f"{what}, and it should raise a ValueError."
        named = {int(number) for number in re.findall(r"\d+", str(raised))}
        assert {d_model, n_heads} <= named, f"The sentence does not name both numbers: {raised}"


@pytest.mark.exercise("MultiHeadAttention", weight=3)
def test_the_layer_matches_pytorchs(student: Student) -> None:
    """With the same weights and no mask the layer gives what nn.MultiheadAttention gives."""
    sizes = ((2, 5, 12, 3), (3, 7, 10, 5), (1, 130, 6, 1), (2, 3, 4, 4), (2, 1, 4, 2))
    for seed, (batch, n, d_model, n_heads) in enumerate(sizes):
        weights, x = random_weights(d_model, seed=10 * seed), normal(batch, n, d_model, seed=seed)
        expected = pytorchs(oracle(n_heads, weights), x)
        claim = f"d_model {d_model}, {n_heads} heads, x {tuple(x.shape)}"
        assert_close(loaded(student, n_heads, weights)(x), expected, claim=claim)


@pytest.mark.exercise("MultiHeadAttention", weight=2)
def test_the_layer_obeys_its_mask(student: Student) -> None:
    """True means "may attend"; the mask may be one for all, one for each sequence, or one for each head."""
    weights, x = random_weights(12, seed=1), normal(2, 5, 12, seed=2)
    layer, theirs = loaded(student, 3, weights), oracle(3, weights)
    for seed, shape in enumerate(((5, 5), (2, 1, 5, 5), (3, 5, 5), (2, 3, 5, 5))):
        mask = some_mask(*shape, seed=seed)
        assert_close(layer(x, mask=mask), pytorchs(theirs, x, mask), claim=f"with a mask of shape {shape}")


@pytest.mark.exercise("MultiHeadAttention")
def test_a_causal_mask_hides_the_future_and_only_that(student: Student) -> None:
    """Under a causal mask a change at position j is noticed from j on, and by nobody before it."""
    n, x = 7, normal(2, 7, 12, seed=1)
    layer, causal = loaded(student, 3, random_weights(12, seed=2)), torch.ones(7, 7, dtype=torch.bool).tril()
    before = tensor(layer(x, causal), shape=x.shape).detach()
    for j in (1, 4, n - 1):
        changed = x.clone()
        changed[:, j] += 2
        after = tensor(layer(changed, causal), shape=x.shape).detach()
        assert_close(after[:, :j], before[:, :j], claim=f"after a change at position {j}", name="what came before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), (
            f"Who may see position {j} does not notice that it changed."
        )


@pytest.mark.exercise("MultiHeadAttention")
def test_without_a_mask_every_position_sees_every_other(student: Student) -> None:
    """mask=None hides nothing and no position is special: shuffled positions give shuffled outputs."""
    x, shuffled = normal(2, 6, 12, seed=1), torch.tensor([3, 5, 0, 1, 4, 2])
    layer = loaded(student, 3, random_weights(12, seed=2))
    with torch.no_grad():
        before = tensor(layer(x), shape=x.shape)
        assert_close(layer(x[:, shuffled]), before[:, shuffled], claim="with the positions shuffled")
        for j in (0, 5):
            changed = x.clone()
            changed[:, j] += 2
            after = tensor(layer(changed), shape=x.shape)
            assert (after != before).any(-1).all(), f"Some position does not notice that position {j} changed."


@pytest.mark.exercise("MultiHeadAttention", weight=0.5)
def test_sequences_of_a_batch_do_not_meet(student: Student) -> None:
    """A sequence gives the same output alone and in company; only its own positions meet."""
    x = normal(3, 5, 12, seed=1)
    layer = loaded(student, 3, random_weights(12, seed=2))
    together = tensor(layer(x), shape=x.shape).detach()
    for i in range(3):
        assert_close(layer(x[i : i + 1]), together[i : i + 1], claim=f"sequence {i} alone")
    changed = x[:1].clone()
    changed[:, 0] += 2
    after = tensor(layer(changed), shape=changed.shape).detach()
    assert (after != together[:1]).any(-1).all(), "Some position does not notice that its own sequence changed."


@pytest.mark.exercise("MultiHeadAttention", weight=2)
def test_gradients_reach_x_and_all_four_weights(student: Student) -> None:
    """Everything learns: the gradients of x and of the four weights are those of nn.MultiheadAttention."""
    weights, mask, upstream = random_weights(12, seed=1), some_mask(5, 5, seed=4), normal(2, 5, 12, seed=3)
    x = normal(2, 5, 12, seed=2).requires_grad_()
    layer, theirs = loaded(student, 3, weights), oracle(3, weights)
    expected = gradients(pytorchs(theirs, x, mask), upstream, x=x, qkv=theirs.in_proj_weight, o=theirs.out_proj.weight)
    found = {"x": gradients(layer(x, mask), upstream, x=x)["x"], **student.grads(layer)}
    for name, value in zip(("x", *NAMES), (expected["x"], *expected["qkv"].chunk(3), expected["o"]), strict=True):
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("MultiHeadAttention")
def test_a_position_that_may_attend_to_nothing_gives_zeros(student: Student) -> None:
    """A row of the mask without any True gives an output of zeros, never NaN."""
    layer, mask = loaded(student, 3, random_weights(12, seed=1)), some_mask(5, 5, seed=2)
    mask[1] = False
    out = tensor(layer(normal(2, 5, 12, seed=3), mask), shape=(2, 5, 12)).detach()
    assert_close(out[:, 1], torch.zeros(2, 12), name="the output of a position that may attend to nothing")
    others = out[:, [0, 2, 3, 4]]
    assert others.isfinite().all(), "A position that may attend to nothing made others NaN or infinite."
    assert others.any(-1).all(), "A position that may attend to something gives zeros."


@pytest.mark.exercise("MultiHeadAttention", weight=0.5)
def test_a_call_leaves_nothing_behind(student: Student) -> None:
    """What one call was given, such as its mask, changes neither a later call nor the state dict."""
    weights, x = random_weights(12, seed=1), normal(2, 5, 12, seed=2)
    layer, fresh, one, other = loaded(student, 3, weights), loaded(student, 3, weights), *some_mask(2, 5, 5, seed=3)
    names = sorted(layer.state_dict())
    before = tensor(layer(x), shape=x.shape).detach()
    masked = tensor(layer(x, one), shape=x.shape).detach()
    assert (masked != before).any(), "A mask makes no difference."
    kept = sorted(layer.state_dict())
    assert kept == names, f"After a call with a mask the state dict holds {kept}."
    assert_close(layer(x), before, claim="without a mask, after a call with one")
    expected = tensor(fresh(x, other), shape=x.shape).detach()
    assert_close(layer(x, other), expected, claim="after a call with another mask")
    tensor(layer(normal(3, 7, 12, seed=4)), shape=(3, 7, 12))
    assert_close(layer(x), before, claim="after a call with other sizes")


@pytest.mark.exercise("MultiHeadAttention")
def test_training_and_evaluation_agree(student: Student) -> None:
    """Without dropout nothing is random: the same x gives the same output, in training and in evaluation."""
    layer, x = loaded(student, 3, random_weights(12, seed=1)), normal(2, 5, 12, seed=2)
    for mask in (None, some_mask(5, 5, seed=3)):
        layer.train()
        training = tensor(layer(x, mask), shape=x.shape).detach()
        assert_close(layer(x, mask), training, claim="called twice")
        layer.eval()
        assert_close(layer(x, mask), training, claim="in evaluation")


@pytest.mark.exercise("MultiHeadAttention")
def test_a_bfloat16_layer_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16, with a mask and without."""
    weights, x = random_weights(12, seed=1), normal(2, 5, 12, seed=2).bfloat16()
    layer, theirs = loaded(student, 3, weights), oracle(3, weights)
    layer.bfloat16()
    for mask in (None, some_mask(5, 5, seed=3)):
        expected = pytorchs(theirs, x.float(), mask).bfloat16()
        assert_close(
            layer(x, mask), expected, atol=0.15, rtol=0.05, claim="without a mask" if mask is None else "with a mask"
        )


@pytest.mark.exercise("MultiHeadAttention", weight=0.5)
def test_x_and_the_mask_are_left_as_they_were(student: Student) -> None:
    """x and the mask belong to the caller: an operation that ends in _ changes them."""
    x, mask = normal(2, 5, 12, seed=1), some_mask(5, 5, seed=2)
    kept_x, kept_mask = student.put(x), student.put(mask)
    tensor(loaded(student, 3, random_weights(12, seed=3))(kept_x, kept_mask), shape=x.shape)
    assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(kept_mask.get(), mask, claim="after the call", name="the mask")
