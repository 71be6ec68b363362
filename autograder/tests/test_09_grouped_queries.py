"""Hidden tests of chapter 09. Expected values come from PyTorch and einops, and for latent attention from DeepSeek's.

DeepSeek's attention is written here in PyTorch's functions, a head at a time, because importing transformers would cost
every grading seconds; tests/test_latent_oracle.py proves it equal to DeepseekV3Attention.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from einops import reduce, repeat
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

RESERVED: dict[str, tuple[str, ...]] = {}


def some_mask(*shape: int, seed: int) -> Tensor:
    """A random mask in which every row may attend to something."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., 0] |= ~mask.any(-1)
    return mask


def causal(n: int, past: int = 0) -> Tensor:
    return torch.ones(n, past + n, dtype=torch.bool).tril(past)


def names_both(make: Callable[[], object], what: str, *numbers: int) -> None:
    """Assert that this raises a ValueError whose sentence names the numbers."""
    raised: StudentError | None = None
    try:
        make()
    except Unfinished:
        raise
    except StudentError as error:
        raised = error
    told = f"{what} raises {raised.types[0] if raised else 'nothing'}"
    assert isinstance(raised, ValueError), f"{told}, and it should raise a ValueError."
    named = {int(number) for number in re.findall(r"\d+", str(raised))}
    assert set(numbers) <= named, f"The sentence of {what} does not name both numbers: {raised}"


# -- repeat_kv ------------------------------------------------------------------------------------------------------


@pytest.mark.exercise("repeat_kv", weight=3)
def test_copies_of_a_head_stand_side_by_side(student: Student) -> None:
    """Head i of the result is head i // n_rep of x: first all copies of head 0, then all of head 1."""
    for seed, (batch, n_kv_heads, n, d_head, n_rep) in enumerate(
        [(2, 3, 5, 4, 2), (1, 2, 3, 1, 5), (3, 5, 1, 2, 3), (2, 4, 7, 3, 4)]
    ):
        x = normal(batch, n_kv_heads, n, d_head, seed=seed)
        expected = repeat(x, "b h n d -> b (h r) n d", r=n_rep)
        claim = f"{n_kv_heads} heads, n_rep {n_rep}"
        assert_close(student.repeat_kv(x, n_rep), expected, atol=0, rtol=0, claim=claim)


@pytest.mark.exercise("repeat_kv")
def test_any_number_of_dimensions_may_stand_before_the_heads(student: Student) -> None:
    """Only the last three dimensions are special: before them there may be none, one, or two."""
    for lead in ((3,), (2, 4), ()):
        x = normal(*lead, 1, 5, 2, seed=1)
        expected = x.expand(*lead, 3, 5, 2)
        assert_close(student.repeat_kv(x, 3), expected, atol=0, rtol=0, claim=f"x of shape {tuple(x.shape)}")


@pytest.mark.exercise("repeat_kv")
def test_copying_keeps_the_dtype_and_adds_up_gradients(student: Student) -> None:
    """Any dtype passes unchanged, to the last digit, and the gradient of a head is the sum of those of its copies."""
    numbers = torch.arange(30).reshape(1, 1, 5, 6)
    for x in (numbers.bfloat16(), numbers.double() / 7, numbers + 2**40):
        name = f"the {str(x.dtype)[6:]} result"
        assert_close(student.repeat_kv(x, 3), x.expand(1, 3, 5, 6), atol=0, rtol=0, name=name)
    x, upstream = normal(2, 1, 5, 3, seed=1).requires_grad_(), normal(2, 4, 5, 3, seed=2)
    found = gradients(student.repeat_kv(x, 4), upstream, x=x)["x"]
    assert_close(found, upstream.sum(1, keepdim=True), name="the gradient of x")


@pytest.mark.exercise("repeat_kv", weight=0.5)
def test_one_copy_is_the_same_and_x_is_left_alone(student: Student) -> None:
    """With n_rep = 1 nothing changes, and whatever n_rep is, x stays what it was."""
    x = normal(2, 3, 4, 5, seed=1)
    kept = student.put(x)
    tensor(student.repeat_kv(kept, 2), shape=(2, 6, 4, 5))
    assert_close(student.repeat_kv(kept, 1), x, atol=0, rtol=0, claim="n_rep 1")
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the calls", name="x")


# -- GroupedQueryAttention ------------------------------------------------------------------------------------------

GROUPED = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
Sizes = tuple[int, int, int, int]  # d_model, n_heads, n_kv_heads, d_head


def grouped_shapes(d_model: int, n_heads: int, n_kv_heads: int, d_head: int) -> dict[str, tuple[int, int]]:
    rows = (n_heads * d_head, n_kv_heads * d_head, n_kv_heads * d_head)
    shapes = [*((row, d_model) for row in rows), (d_model, n_heads * d_head)]
    return dict(zip(GROUPED, shapes, strict=True))


def random_weights(shapes: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Matrices that keep sizes, and gains around 1."""
    found = {}
    for i, (name, shape) in enumerate(shapes.items()):
        drawn = normal(*shape, seed=100 * seed + i)
        found[name] = 1.5 * shape[1] ** -0.5 * drawn if len(shape) == 2 else 1 + 0.5 * drawn
    return found


def state_of(layer: Any, what: str) -> dict[str, Tensor]:
    assert isinstance(layer, Remote), f"{what} should give a layer."
    state = layer.state_dict()
    assert isinstance(state, dict), f"The layer's state_dict() should be a dict: is {what.split('(')[0]} an nn.Module?"
    return {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def load(layer: Any, what: str, weights: dict[str, Tensor]) -> Any:
    """The layer with these weights, in evaluation. What it has beside them is zeroed: another test sees to it."""
    state = state_of(layer, what)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()} | weights)
    if len(state) > len(weights):  # a weight that has two names was zeroed under the other one
        layer.load_state_dict(weights, strict=False)
    layer.eval()
    return layer


def grouped(student: Student, sizes: Sizes, weights: dict[str, Tensor]) -> Any:
    return load(student.GroupedQueryAttention(*sizes), f"GroupedQueryAttention{sizes}", weights)


def pytorchs(weights: dict[str, Tensor], x: Tensor, sizes: Sizes, mask: Tensor | None = None) -> Tensor:
    """Grouped attention with PyTorch's own sharing."""
    _, n_heads, n_kv_heads, d_head = sizes
    q, k, v, o = (weights[name] for name in GROUPED)
    heads = functional.scaled_dot_product_attention(
        (x @ q.T).unflatten(-1, (n_heads, d_head)).transpose(1, 2),
        (x @ k.T).unflatten(-1, (n_kv_heads, d_head)).transpose(1, 2),
        (x @ v.T).unflatten(-1, (n_kv_heads, d_head)).transpose(1, 2),
        attn_mask=None if mask is None else mask.expand(len(x), n_heads, x.shape[1], x.shape[1]),
        enable_gqa=True,
    )
    return heads.transpose(1, 2).flatten(2) @ o.T


SHARED: Sizes = (10, 6, 3, 4)  # the layer of most tests: three groups of two, and wider than d_model


def looks_around(say: Callable[[Tensor], Any], x: Tensor) -> None:
    """Assert that a position takes something from another one: handing x back is no attention."""
    changed = x.clone()
    changed[:, 0] += 2
    before, after = (tensor(say(value), shape=x.shape, name="the output").detach() for value in (x, changed))
    assert (after[:, 1:] != before[:, 1:]).any(), "No position notices that another one changed."


def shared(student: Student, seed: int = 1) -> Any:
    return grouped(student, SHARED, random_weights(grouped_shapes(*SHARED), seed))


@pytest.mark.exercise("GroupedQueryAttention")
def test_keys_and_values_have_fewer_rows_than_queries(student: Student) -> None:
    """The state dict holds four weights of the stated shapes and nothing else, and all of them are trained."""
    for sizes in ((12, 4, 2, 3), (10, 6, 1, 4), (8, 2, 2, 5)):
        layer = student.GroupedQueryAttention(*sizes)
        state = state_of(layer, f"GroupedQueryAttention{sizes}")
        assert set(state) == set(GROUPED), f"The state dict holds {sorted(state)}."
        parameters = student.grads(layer)
        assert set(parameters) == set(GROUPED), f"The parameters that are trained are {sorted(parameters)}."
        for name, shape in grouped_shapes(*sizes).items():
            tensor(state[name], shape=shape, dtype=torch.float32, name=f"{name} of {sizes}")
            assert state[name].isfinite().all(), f"{name} is not finite in a new layer: was it never initialised?"


@pytest.mark.exercise("GroupedQueryAttention")
def test_groups_must_be_equal(student: Student) -> None:
    """If n_heads is not divisible by n_kv_heads, creating the layer raises a ValueError that names both numbers."""
    state_of(student.GroupedQueryAttention(12, 6, 3, 2), "GroupedQueryAttention(12, 6, 3, 2)")  # these are
    for sizes in ((12, 8, 3, 5), (12, 4, 8, 3)):
        what = f"GroupedQueryAttention{sizes}"
        names_both(partial(student.GroupedQueryAttention, *sizes), what, sizes[1], sizes[2])


@pytest.mark.exercise("GroupedQueryAttention", weight=4)
def test_the_layer_matches_pytorchs_sharing(student: Student) -> None:
    """With the same weights and no mask the layer gives what PyTorch's grouped attention gives."""
    for seed, sizes in enumerate([(12, 6, 2, 3), (10, 6, 3, 4), (16, 8, 4, 2), (7, 4, 1, 5), (9, 3, 3, 3)]):
        weights, x = random_weights(grouped_shapes(*sizes), seed), normal(2 + seed % 2, 5 + seed, sizes[0], seed=seed)
        claim = "d_model {}, {} heads, {} of keys and values, d_head {}".format(*sizes)
        assert_close(grouped(student, sizes, weights)(x), pytorchs(weights, x, sizes), claim=claim)


@pytest.mark.exercise("GroupedQueryAttention")
def test_with_as_many_heads_of_keys_as_of_queries_nothing_is_shared(student: Student) -> None:
    """n_kv_heads = n_heads is multi-head attention: what nn.MultiheadAttention gives with the same weights."""
    for d_model, n_heads in ((12, 3), (10, 5)):
        sizes = (d_model, n_heads, n_heads, d_model // n_heads)
        weights, x = random_weights(grouped_shapes(*sizes), seed=n_heads), normal(2, 7, d_model, seed=1)
        theirs = torch.nn.MultiheadAttention(d_model, n_heads, bias=False, batch_first=True)
        packed = torch.cat([weights[name] for name in GROUPED[:3]])
        theirs.load_state_dict({"in_proj_weight": packed, "out_proj.weight": weights["o_proj.weight"]})
        expected = theirs(x, x, x, need_weights=False)[0]
        assert_close(grouped(student, sizes, weights)(x), expected, claim=f"{n_heads} heads of both")


@pytest.mark.exercise("GroupedQueryAttention", weight=2)
def test_neighbouring_query_heads_share(student: Student) -> None:
    """Head i of the queries reads head i // g: a change in one head of the values is noticed by its group alone."""
    n_heads, n_kv_heads, d_head = 6, 3, 2
    sizes = (n_heads * d_head, n_heads, n_kv_heads, d_head)
    weights = random_weights(grouped_shapes(*sizes), seed=1)
    weights["o_proj.weight"] = torch.eye(sizes[0])  # each head's channels come out as they are
    x = normal(2, 5, sizes[0], seed=2)
    before = tensor(grouped(student, sizes, weights)(x), shape=x.shape).detach()
    for j in range(n_kv_heads):
        values = weights["v_proj.weight"].clone()
        values[j * d_head : (j + 1) * d_head] += 1
        after = tensor(grouped(student, sizes, {**weights, "v_proj.weight": values})(x), shape=x.shape).detach()
        moved = (after - before).abs().unflatten(-1, (n_heads, d_head)).amax((0, 1, 3)) > 1e-4
        noticed = moved.nonzero().flatten().tolist()
        own = [i for i in range(n_heads) if i // (n_heads // n_kv_heads) == j]
        assert noticed == own, f"When head {j} of the values changes, the heads of queries that notice are {noticed}."


@pytest.mark.exercise("GroupedQueryAttention", weight=2)
def test_the_shared_layer_obeys_its_mask(student: Student) -> None:
    """True means "may attend"; the mask may be one for all, one for each sequence, or one for each query head."""
    weights, x = random_weights(grouped_shapes(*SHARED), seed=1), normal(2, 5, 10, seed=2)
    layer = grouped(student, SHARED, weights)
    for seed, shape in enumerate(((5, 5), (2, 1, 5, 5), (6, 5, 5), (2, 6, 5, 5))):
        mask = some_mask(*shape, seed=seed)
        expected = pytorchs(weights, x, SHARED, mask)
        assert_close(layer(x, mask=mask), expected, claim=f"with a mask of shape {shape}")


@pytest.mark.exercise("GroupedQueryAttention")
def test_a_causal_mask_hides_the_future_from_all_heads(student: Student) -> None:
    """Under a causal mask a change at position j is noticed from j on, and by nobody before it."""
    x = normal(2, 7, 10, seed=1)
    layer = shared(student)
    before = tensor(layer(x, causal(7)), shape=x.shape).detach()
    for j in (1, 4, 6):
        changed = x.clone()
        changed[:, j] += 2
        after = tensor(layer(changed, causal(7)), shape=x.shape).detach()
        assert_close(after[:, :j], before[:, :j], claim=f"after a change at position {j}", name="what came before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), (
            f"Who may see position {j} does not notice that it changed."
        )


@pytest.mark.exercise("GroupedQueryAttention")
def test_without_a_mask_nothing_is_hidden(student: Student) -> None:
    """mask=None hides nothing and no position is special: shuffled positions give shuffled outputs."""
    x, shuffled = normal(2, 6, 10, seed=1), torch.tensor([3, 5, 0, 1, 4, 2])
    layer = shared(student)
    before = tensor(layer(x), shape=x.shape).detach()
    assert_close(layer(x[:, shuffled]), before[:, shuffled], claim="with the positions shuffled")
    for j in (0, 5):
        changed = x.clone()
        changed[:, j] += 2
        after = tensor(layer(changed), shape=x.shape).detach()
        assert (after != before).any(-1).all(), f"Some position does not notice that position {j} changed."


@pytest.mark.exercise("GroupedQueryAttention", weight=2)
def test_gradients_reach_x_and_the_shared_weights(student: Student) -> None:
    """Everything learns: a shared head's gradient is the sum over the queries that read it."""
    weights, mask, upstream = (
        random_weights(grouped_shapes(*SHARED), 1),
        some_mask(5, 5, seed=4),
        normal(2, 5, 10, seed=3),
    )
    x = normal(2, 5, 10, seed=2).requires_grad_()
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    out = pytorchs(leaves, x, SHARED, mask)
    expected = dict(zip(("x", *leaves), torch.autograd.grad(out, [x, *leaves.values()], upstream), strict=True))
    layer = grouped(student, SHARED, weights)
    found: dict[str, Tensor | None] = {"x": gradients(layer(x, mask), upstream, x=x)["x"], **student.grads(layer)}
    for name, value in expected.items():
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("GroupedQueryAttention")
def test_a_position_that_may_see_nothing_gives_zeros(student: Student) -> None:
    """A row of the mask without any True gives an output of zeros, never NaN, and no gradient is NaN either."""
    layer, mask = shared(student), some_mask(5, 5, seed=2)
    mask[1] = False
    x = normal(2, 5, 10, seed=3).requires_grad_()
    answer = tensor(layer(x, mask), shape=(2, 5, 10))
    out = answer.detach()
    assert_close(out[:, 1], torch.zeros(2, 10), name="the output of a position that may attend to nothing")
    others = out[:, [0, 2, 3, 4]]
    assert others.isfinite().all(), "A position that may attend to nothing made others NaN or infinite."
    assert others.any(-1).all(), "A position that may attend to something gives zeros."
    grad = gradients(answer, normal(2, 5, 10, seed=4), x=x)["x"]
    assert grad.isfinite().all(), "A position that may attend to nothing made the gradient of x NaN or infinite."


@pytest.mark.exercise("GroupedQueryAttention", weight=0.5)
def test_each_sequence_and_each_call_is_for_itself(student: Student) -> None:
    """A sequence gives the same alone and in company, again and again, in training and in evaluation."""
    layer, x = shared(student), normal(3, 5, 10, seed=2)
    names = sorted(layer.state_dict())
    together = tensor(layer(x), shape=x.shape).detach()
    looks_around(layer, x)
    tensor(layer(normal(2, 7, 10, seed=3), causal(7)), shape=(2, 7, 10))
    tensor(layer(x, causal(5)), shape=x.shape)
    for i in range(3):
        assert_close(layer(x[i : i + 1]), together[i : i + 1], claim=f"sequence {i} alone, after calls with masks")
    layer.train()
    assert_close(layer(x), together, claim="in training")
    assert sorted(layer.state_dict()) == names, f"After some calls the state dict holds {sorted(layer.state_dict())}."


@pytest.mark.exercise("GroupedQueryAttention")
def test_a_shared_layer_in_bfloat16_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16, with a mask and without."""
    weights, x = random_weights(grouped_shapes(*SHARED), 1), normal(2, 5, 10, seed=2).bfloat16()
    layer = grouped(student, SHARED, weights)
    layer.bfloat16()
    for mask in (None, some_mask(5, 5, seed=3)):
        expected = pytorchs(weights, x.float(), SHARED, mask).bfloat16()
        claim = "without a mask" if mask is None else "with a mask"
        assert_close(layer(x, mask), expected, atol=0.15, rtol=0.05, claim=claim)


@pytest.mark.exercise("GroupedQueryAttention", weight=0.5)
def test_x_and_its_mask_are_left_as_they_were(student: Student) -> None:
    """x and the mask belong to the caller: an operation that ends in _ changes them."""
    x, mask = normal(2, 5, 10, seed=1), some_mask(5, 5, seed=2)
    mask[1] = False
    kept_x, kept_mask = student.put(x), student.put(mask)
    layer = shared(student)
    looks_around(layer, x)
    tensor(layer(kept_x, kept_mask), shape=x.shape)
    assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(kept_mask.get(), mask, claim="after the call", name="the mask")


# -- kv_cache_bytes -------------------------------------------------------------------------------------------------

# As they stand in the models' own config.json, with entries that mean nothing here.
LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
LLAMA_3_8B = {**LLAMA_2_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256}
QWEN3_30B = {
    "head_dim": 128,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "sliding_window": None,
}
DEEPSEEK_V3: dict[str, Any] = {
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "num_attention_heads": 128,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def size_of(student: Student, config: dict[str, Any], length: int, **more: Any) -> float:
    """The bytes, whatever kind of number they are, which has a test of its own."""
    found = student.kv_cache_bytes(config, length, **more)
    assert type(found) in (int, float), f"kv_cache_bytes should return an int, not a {type(found).__name__}."
    return found


def really(layers: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> int:
    """The bytes of such tensors in each layer, counted by PyTorch. On the meta device they take no memory."""
    return sum(torch.empty(*shape, dtype=dtype, device="meta").nbytes for shape in shapes) * layers


@pytest.mark.exercise("kv_cache_bytes")
def test_without_sharing_every_head_has_a_key_and_a_value(student: Student) -> None:
    """No num_key_value_heads, or None: as many as heads of queries, each of hidden_size // num_attention_heads."""
    for config, length in ((LLAMA_2_7B, 1000), ({**LLAMA_2_7B, "num_key_value_heads": None}, 7)):
        found = size_of(student, config, length)
        right = really(32, (1, 32, length, 128), (1, 32, length, 128))
        assert found == right, f"Llama 2 7B with {length} positions does not take {found} bytes."
    small = {"hidden_size": 16, "num_attention_heads": 3, "num_hidden_layers": 7}
    found = size_of(student, small, 11)
    assert found == really(7, (3, 11, 5), (3, 11, 5)), f"7 layers, 3 heads of 5, 11 positions: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes")
def test_only_heads_of_keys_and_values_are_kept(student: Student) -> None:
    """num_key_value_heads says how many heads are kept; neither a head's width nor a window changes anything."""
    for heads in (8, 1, 32):
        config = {**LLAMA_3_8B, "num_key_value_heads": heads, "max_position_embeddings": 50, "sliding_window": 25}
        found = size_of(student, config, 100)
        right = really(32, (heads, 100, 128), (heads, 100, 128))
        assert found == right, f"With {heads} heads of keys and values beside 32 of queries: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes")
def test_a_head_may_have_a_width_of_its_own(student: Student) -> None:
    """Where there is a head_dim, it counts, and not hidden_size // num_attention_heads; None is no head_dim."""
    found = size_of(student, QWEN3_30B, 10)
    assert found == really(48, (4, 10, 128), (4, 10, 128)), f"Qwen3 30B-A3B with 10 positions: not {found} bytes."
    found = size_of(student, {**LLAMA_3_8B, "head_dim": None}, 10)
    assert found == really(32, (8, 10, 128), (8, 10, 128)), f"Llama 3 8B with head_dim None: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes", weight=2)
def test_a_latent_and_one_rotary_key_serve_all_heads(student: Student) -> None:
    """With a kv_lora_rank, a position keeps kv_lora_rank + qk_rope_head_dim numbers a layer, whatever the heads."""
    lite = {**DEEPSEEK_V3, "q_lora_rank": None}  # queries without a latent, as in DeepSeek-V2-Lite
    for config in (DEEPSEEK_V3, {**DEEPSEEK_V3, "head_dim": 64}, {**DEEPSEEK_V3, "num_hidden_layers": 5}, lite):
        found = size_of(student, config, 10)
        right = really(config["num_hidden_layers"], (10, 512), (10, 64))
        assert found == right, (
            f"DeepSeek-V3 with {config['num_hidden_layers']} layers, 10 positions: not {found} bytes."
        )
    for without in ({"kv_lora_rank": None, "qk_rope_head_dim": None}, {"qk_rope_head_dim": 64}):
        found = size_of(student, {**LLAMA_3_8B, **without}, 10)
        assert found == really(32, (8, 10, 128), (8, 10, 128)), f"Llama 3 8B with {without}: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes")
def test_every_sequence_has_its_cache_and_a_number_its_dtype(student: Student) -> None:
    """Ten sequences take ten times as much; float32 takes four bytes, bfloat16, the default, two, int8 one."""
    for config, shapes in ((LLAMA_3_8B, [(8, 9, 128)] * 2), (DEEPSEEK_V3, [(9, 512), (9, 64)])):
        layers = config["num_hidden_layers"]
        for batch, dtype in ((10, torch.float32), (3, torch.int8), (1, torch.float64)):
            found = size_of(student, config, 9, batch=batch, dtype=dtype)
            right = batch * really(layers, *shapes, dtype=dtype)
            assert found == right, f"{layers} layers, a batch of {batch} in {str(dtype)[6:]}: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes", weight=0.5)
def test_the_bytes_are_an_int_and_the_config_is_left_alone(student: Student) -> None:
    """Bytes are counted in whole numbers, an empty cache takes none, and config stays as it was."""
    for config, right in ((LLAMA_2_7B, 16_384), (DEEPSEEK_V3, 1152)):
        kept = student.put(dict(config))
        found = student.kv_cache_bytes(kept, 5)
        assert type(found) is int, f"kv_cache_bytes should return an int, not a {type(found).__name__}."
        assert found == 5 * right * config["num_hidden_layers"], f"Five positions: not {found} bytes."
        found = size_of(student, config, 100_003)
        assert found == 100_003 * right * config["num_hidden_layers"], f"100,003 positions: not {found} bytes."
        assert kept.get() == config, "kv_cache_bytes changes the config that it is given."
        assert size_of(student, config, 0) == 0, "A cache of length 0 should take 0 bytes."


# -- pool_heads -----------------------------------------------------------------------------------------------------


def pooled(student: Student, state: dict[str, Tensor], n_heads: int, n_kv_heads: int) -> dict[str, Tensor]:
    found = student.pool_heads(state, n_heads, n_kv_heads)
    assert isinstance(found, dict), f"pool_heads should return a dict, not a {type(found).__name__}."
    missing, more = sorted(set(state) - set(found)), sorted(set(found) - set(state))
    assert not missing, f"The result lacks {missing}."
    assert not more, f"The result has entries that state does not have: {more}."
    return found


def mean_of_groups(value: Tensor, n_heads: int, n_kv_heads: int) -> Tensor:
    group = n_heads // n_kv_heads
    if value.dim() == 1:
        return reduce(value, "(j g d) -> (j d)", "mean", j=n_kv_heads, g=group)
    return reduce(value, "(j g d) c -> (j d) c", "mean", j=n_kv_heads, g=group)


@pytest.mark.exercise("pool_heads", weight=3)
def test_a_new_head_is_the_mean_of_its_group(student: Student) -> None:
    """Neighbouring heads are pooled, channel by channel, in the weights of keys and of values alike."""
    for seed, (n_heads, n_kv_heads, d_head, d_model) in enumerate([(6, 3, 2, 5), (8, 2, 3, 7), (4, 1, 5, 3)]):
        state = {name: normal(n_heads * d_head, d_model, seed=seed + i) for i, name in enumerate(GROUPED[1:3])}
        found = pooled(student, state, n_heads, n_kv_heads)
        for name, value in state.items():
            expected = mean_of_groups(value, n_heads, n_kv_heads)
            assert_close(found[name], expected, atol=1e-5, claim=f"{n_heads} heads to {n_kv_heads}", name=name)


@pytest.mark.exercise("pool_heads")
def test_biases_are_pooled_like_weights(student: Student) -> None:
    """A bias of keys or values has its heads one behind the other, too: it is pooled in the same groups."""
    state = {"k_proj.bias": normal(12, seed=1), "v_proj.bias": normal(12, seed=2), "q_proj.bias": normal(12, seed=3)}
    found = pooled(student, state, 6, 2)
    for name in ("k_proj.bias", "v_proj.bias"):
        assert_close(found[name], mean_of_groups(state[name], 6, 2), atol=1e-5, name=name)
    assert_close(found["q_proj.bias"], state["q_proj.bias"], name="q_proj.bias")


@pytest.mark.exercise("pool_heads")
def test_a_whole_model_is_pooled_layer_by_layer(student: Student) -> None:
    """Every layer's k_proj and v_proj are pooled, whatever stands before these names."""
    state = {
        f"{prefix}{letter}_proj.weight": normal(8, 5, seed=10 * i + j)
        for i, prefix in enumerate((*(f"blocks.{n}.attention." for n in range(4)), "model.layers.11.self_attn.", ""))
        for j, letter in enumerate("kv")
    }
    found = pooled(student, state, 4, 1)
    for name, value in state.items():
        assert_close(found[name], mean_of_groups(value, 4, 1), atol=1e-5, name=name)


@pytest.mark.exercise("pool_heads")
def test_everything_else_stays_as_it_was(student: Student) -> None:
    """Queries, the output, norms and all other entries are in the result, unchanged; only names decide."""
    others = (
        "blocks.0.attention.q_proj.weight",
        "blocks.0.attention.o_proj.weight",
        "blocks.0.attention.k_norm.weight",
        "blocks.0.attention.qkv_proj.weight",
        "blocks.0.mlp.up_proj.weight",
        "k_proj_scale",
        "v_proj.other.weight",
        "tokens.weight",
    )
    state = {name: normal(8, 3, seed=i) for i, name in enumerate(others)}
    state["steps"] = torch.tensor(7)
    state["blocks.0.attention.k_proj.weight"] = normal(8, 3, seed=20)
    found = pooled(student, state, 4, 2)
    tensor(found["blocks.0.attention.k_proj.weight"], shape=(4, 3), name="k_proj.weight")
    for name in (*others, "steps"):
        assert_close(found[name], state[name], atol=0, rtol=0, name=name)


@pytest.mark.exercise("pool_heads", weight=2)
def test_where_a_group_agrees_pooling_changes_nothing(student: Student) -> None:
    """If the heads of every group are the same, the pooled layer gives what the layer gave before."""
    d_model, n_heads, n_kv_heads, d_head = 10, 6, 2, 3
    weights = random_weights(grouped_shapes(d_model, n_heads, n_heads, d_head), seed=1)
    for name in GROUPED[1:3]:
        one = weights[name].unflatten(0, (n_kv_heads, -1, d_head))[:, :1]
        weights[name] = one.expand(-1, n_heads // n_kv_heads, -1, -1).flatten(0, 2).contiguous()
    x = normal(2, 5, d_model, seed=2)
    found = pooled(student, weights, n_heads, n_kv_heads)
    for name, shape in grouped_shapes(d_model, n_heads, n_kv_heads, d_head).items():
        tensor(found[name], shape=shape, dtype=torch.float32, name=name)
    before = pytorchs(weights, x, (d_model, n_heads, n_heads, d_head))
    after = pytorchs(found, x, (d_model, n_heads, n_kv_heads, d_head))
    assert_close(after, before, name="the output of the pooled layer")


@pytest.mark.exercise("pool_heads")
def test_pooling_in_two_steps_is_pooling_at_once(student: Student) -> None:
    """From 8 heads to 4 and then to 2 gives what 8 to 2 gives; from 8 to 8 nothing changes."""
    state = {name: normal(24, 5, seed=i) for i, name in enumerate(GROUPED[1:3])}
    at_once = pooled(student, state, 8, 2)
    twice = pooled(student, pooled(student, state, 8, 4), 4, 2)
    same = pooled(student, state, 8, 8)
    for name, value in state.items():
        tensor(at_once[name], shape=(6, 5), name=name)
        assert at_once[name].std() > 0.1, f"{name} is nearly the same everywhere."
        assert_close(twice[name], at_once[name], atol=1e-5, claim="8 to 4 to 2", name=name)
        assert_close(same[name], value, atol=1e-6, claim="8 to 8", name=name)


@pytest.mark.exercise("pool_heads")
def test_pooling_keeps_the_dtype(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64: a checkpoint keeps its precision."""
    for dtype, atol in ((torch.bfloat16, 2e-2), (torch.float64, 1e-12)):
        state = {"k_proj.weight": normal(8, 3, seed=1).to(dtype), "v_proj.weight": normal(8, 3, seed=2).to(dtype)}
        found = pooled(student, state, 4, 1)
        for name, value in state.items():
            expected = mean_of_groups(value.double(), 4, 1).to(dtype)
            assert_close(found[name], expected, atol=atol, rtol=atol, name=f"{name} in {str(dtype)[6:]}")


@pytest.mark.exercise("pool_heads")
def test_pools_must_be_equal(student: Student) -> None:
    """If n_heads is not divisible by n_kv_heads, it raises a ValueError that names both numbers."""
    state = {"k_proj.weight": normal(24, 3, seed=1), "v_proj.weight": normal(24, 3, seed=2)}
    pooled(student, state, 6, 3)  # these are
    for entries, n_heads, n_kv_heads in ((state, 8, 3), (state, 4, 8), (state, 6, 4), ({}, 6, 4)):
        what = f"pool_heads({'state' if entries else '{}'}, {n_heads}, {n_kv_heads})"
        names_both(partial(student.pool_heads, entries, n_heads, n_kv_heads), what, n_heads, n_kv_heads)


@pytest.mark.exercise("pool_heads", weight=0.5)
def test_the_checkpoint_is_left_as_it_was(student: Student) -> None:
    """The caller's dict keeps its entries, and its tensors their numbers and shapes."""
    state = {"k_proj.weight": normal(8, 3, seed=1), "v_proj.bias": normal(8, seed=2), "norm.weight": normal(3, seed=3)}
    kept = student.put(dict(state))
    found = student.pool_heads(kept, 4, 2)
    assert isinstance(found, dict), f"pool_heads should return a dict, not a {type(found).__name__}."
    tensor(found.get("k_proj.weight"), shape=(4, 3), name="k_proj.weight")
    after = kept.get()
    assert set(after) == set(state), f"After the call the caller's dict holds {sorted(after)}."
    for name, value in state.items():
        assert_close(after[name], value, atol=0, rtol=0, claim="after the call", name=f"the caller's {name}")


# -- LatentAttention ------------------------------------------------------------------------------------------------

LATENT = ("q_down", "q_norm", "q_up", "kv_down", "kv_norm", "kv_up", "o_proj")


def sizes_of(
    d_model: int, n_heads: int, q_rank: int, kv_rank: int, d_nope: int, d_rope: int, d_v: int, **more: float
) -> dict[str, Any]:
    named = {"q_rank": q_rank, "kv_rank": kv_rank, "d_nope": d_nope, "d_rope": d_rope, "d_v": d_v}
    return {"d_model": d_model, "n_heads": n_heads, **named, **more}


USUAL = sizes_of(12, 3, 7, 5, 4, 2, 3)


def latent_shapes(size: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    h, nope, rope, v = size["n_heads"], size["d_nope"], size["d_rope"], size["d_v"]
    shapes: list[tuple[int, ...]] = [
        (size["q_rank"], size["d_model"]),
        (size["q_rank"],),
        (h * (nope + rope), size["q_rank"]),
        (size["kv_rank"] + rope, size["d_model"]),
        (size["kv_rank"],),
        (h * (nope + v), size["kv_rank"]),
        (size["d_model"], h * v),
    ]
    return {f"{name}.weight": shape for name, shape in zip(LATENT, shapes, strict=True)}


def latent_layer(student: Student, size: dict[str, Any]) -> Any:
    rest = {name: value for name, value in size.items() if name not in ("d_model", "n_heads")}
    return student.LatentAttention(size["d_model"], size["n_heads"], **rest)


def latent(student: Student, size: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    return load(latent_layer(student, size), "LatentAttention(…)", weights)


def usual(student: Student, seed: int = 1) -> Any:
    return latent(student, USUAL, random_weights(latent_shapes(USUAL), seed))


def turned(x: Tensor, theta: float, start: int = 0) -> Tensor:
    """RoPE as DeepSeek's: pairs are neighbours; the result is laid out in halves, which no dot product notices."""
    half = x.shape[-1] // 2
    positions = torch.arange(start, start + x.shape[-2], dtype=torch.float64)
    angles = positions[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def scaled(x: Tensor, gain: Tensor) -> Tensor:
    """RMSNorm with DeepSeek's epsilon."""
    return gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def deepseek(weights: dict[str, Tensor], size: dict[str, Any], x: Tensor, mask: Tensor | None = None) -> Tensor:
    """DeepSeek's latent attention over a whole text, a head at a time."""
    h, nope, rope, v = size["n_heads"], size["d_nope"], size["d_rope"], size["d_v"]
    theta, n = size.get("rope_theta", 10_000.0), x.shape[1]
    w = {name: weights[f"{name}.weight"] for name in LATENT}
    compressed = x @ w["kv_down"].T
    shared_key = turned(compressed[..., size["kv_rank"] :], theta)
    up = scaled(compressed[..., : size["kv_rank"]], w["kv_norm"]) @ w["kv_up"].T
    queries = scaled(x @ w["q_down"].T, w["q_norm"]) @ w["q_up"].T
    allowed = torch.ones(len(x), h, n, n, dtype=torch.bool) if mask is None else mask.expand(len(x), h, n, n)
    outputs = []
    for i in range(h):
        query = queries[..., i * (nope + rope) : (i + 1) * (nope + rope)]
        key, value = up[..., i * (nope + v) : (i + 1) * (nope + v)].split([nope, v], -1)
        scores = query[..., :nope] @ key.mT + turned(query[..., nope:], theta) @ shared_key.mT
        scores = (scores / math.sqrt(nope + rope)).masked_fill(~allowed[:, i], -math.inf)
        outputs.append(scores.softmax(-1).nan_to_num(0) @ value)
    return torch.cat(outputs, -1) @ w["o_proj"].T


def both(
    answer: Any, batch: int, n: int, length: int, size: dict[str, Any], dtype: Any = None
) -> tuple[Tensor, Tensor]:
    """What forward returns: the output and what is to be kept."""
    kind = "Tensor" if isinstance(answer, Tensor) else type(answer).__name__
    assert isinstance(answer, tuple | list), f"forward should return a tuple (output, kept), not a {kind}."
    assert len(answer) == 2, f"forward should return a tuple (output, kept), and this one has {len(answer)} parts."
    out = tensor(answer[0], shape=(batch, n, size["d_model"]), dtype=dtype, name="the output")
    kept = tensor(answer[1], shape=(batch, length, size["kv_rank"] + size["d_rope"]), dtype=dtype, name="what is kept")
    return out, kept


def output(answer: Any) -> Any:
    """The output, whatever is kept, which has tests of its own."""
    return answer[0] if isinstance(answer, tuple | list) and answer else answer


def in_chunks(layer: Any, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The outputs of a text that comes in chunks, under causal masks."""
    found, past, start = [], None, 0
    for n in sizes:
        out, past = both(layer(x[:, start : start + n], causal(n, start), past), len(x), n, start + n, USUAL)
        found.append(out.detach())
        past = past.detach()
        start += n
    return torch.cat(found, 1)


@pytest.mark.exercise("LatentAttention")
def test_the_latent_layer_has_seven_weights(student: Student) -> None:
    """The state dict holds seven weights of the stated shapes and nothing else, and all of them are trained."""
    for size in (USUAL, sizes_of(10, 2, 9, 4, 3, 6, 5)):
        layer, shapes = latent_layer(student, size), latent_shapes(size)
        state = state_of(layer, "LatentAttention(…)")
        assert set(state) == set(shapes), f"The state dict holds {sorted(state)}."
        parameters = student.grads(layer)
        assert set(parameters) == set(shapes), f"The parameters that are trained are {sorted(parameters)}."
        for name, shape in shapes.items():
            tensor(state[name], shape=shape, dtype=torch.float32, name=name)
            assert state[name].isfinite().all(), f"{name} is not finite in a new layer: was it never initialised?"


@pytest.mark.exercise("LatentAttention", weight=6)
def test_the_layer_is_deepseeks(student: Student) -> None:
    """With the same weights and a causal mask the layer gives what DeepSeek's attention gives."""
    cases = [
        sizes_of(12, 3, 7, 5, 4, 2, 3),
        sizes_of(10, 2, 6, 9, 3, 6, 7),
        sizes_of(9, 5, 11, 4, 2, 4, 2),
        sizes_of(8, 1, 5, 6, 5, 8, 4),
    ]
    for seed, size in enumerate(cases):
        weights = random_weights(latent_shapes(size), seed)
        batch, n = 2 + seed % 2, 9 + 2 * seed
        x = normal(batch, n, size["d_model"], seed=seed)
        claim = ", ".join(f"{name} {value}" for name, value in size.items() if name[0] in "dn")
        found = output(latent(student, size, weights)(x, causal(n)))
        assert_close(found, deepseek(weights, size, x, causal(n)), claim=claim, name="the output")


@pytest.mark.exercise("LatentAttention")
def test_positions_turn_by_rope_theta(student: Student) -> None:
    """rope_theta says how slowly the pairs turn, and far positions are turned far."""
    for theta, n in ((10.0, 70), (500_000.0, 2100)):  # a table of positions ends somewhere
        size = sizes_of(8, 2, 5, 6, 2, 6, 3, rope_theta=theta)
        weights, x = random_weights(latent_shapes(size), seed=1), normal(1, n, 8, seed=2)
        found = output(latent(student, size, weights)(x, causal(n)))
        claim = f"rope_theta {theta:g}, {n} positions"
        assert_close(found, deepseek(weights, size, x, causal(n)), claim=claim, name="the output")


@pytest.mark.exercise("LatentAttention", weight=3)
def test_the_latent_layer_obeys_its_mask(student: Student) -> None:
    """True means "may attend"; None hides nothing; a mask may be one for all, for each sequence, or for each head."""
    weights, x = random_weights(latent_shapes(USUAL), seed=1), normal(2, 5, 12, seed=2)
    layer = latent(student, USUAL, weights)
    assert_close(output(layer(x)), deepseek(weights, USUAL, x), claim="without a mask", name="the output")
    for seed, shape in enumerate(((5, 5), (2, 1, 5, 5), (3, 5, 5), (2, 3, 5, 5))):
        mask = some_mask(*shape, seed=seed)
        found = output(layer(x, mask=mask))
        expected = deepseek(weights, USUAL, x, mask)
        assert_close(found, expected, claim=f"with a mask of shape {shape}", name="the output")


@pytest.mark.exercise("LatentAttention")
def test_a_causal_mask_hides_the_future_from_the_latent_layer(student: Student) -> None:
    """Under a causal mask a change at position j is noticed from j on, and by nobody before it."""
    layer, x = usual(student), normal(2, 7, 12, seed=1)
    before = tensor(output(layer(x, causal(7))), shape=x.shape, name="the output").detach()
    for j in (1, 4, 6):
        changed = x.clone()
        changed[:, j] += 2
        after = tensor(output(layer(changed, causal(7))), shape=x.shape, name="the output").detach()
        assert_close(after[:, :j], before[:, :j], claim=f"after a change at position {j}", name="what came before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), (
            f"Who may see position {j} does not notice that it changed."
        )


@pytest.mark.exercise("LatentAttention")
def test_only_distances_count(student: Student) -> None:
    """Hidden words before a text move all its positions and none of the distances, so its outputs stay the same."""
    layer, x, n = usual(student), normal(2, 6, 12, seed=1), 6
    alone = tensor(output(layer(x, causal(n))), shape=x.shape, name="the output").detach()
    forwards = tensor(output(layer(x)), shape=x.shape, name="the output").detach()
    backwards = tensor(output(layer(x.flip(1))), shape=x.shape, name="the output").detach()
    assert (backwards.flip(1) - forwards).abs().max() > 1e-3, "Without a mask, a text read backwards gives the same."
    for hidden in (3, 11):
        longer = torch.cat([normal(2, hidden, 12, seed=2), x], 1)
        mask = causal(hidden + n)
        mask[hidden:, :hidden] = False
        found = tensor(output(layer(longer, mask)), shape=longer.shape, name="the output").detach()[:, hidden:]
        assert_close(found, alone, atol=3e-4, claim=f"behind {hidden} hidden words", name="the output")


@pytest.mark.exercise("LatentAttention")
def test_the_other_channels_know_no_position(student: Student) -> None:
    """With the queries' rotary channels silenced nothing depends on the order: shuffled in, shuffled out."""
    weights = random_weights(latent_shapes(USUAL), seed=1)
    weights["q_up.weight"] = weights["q_up.weight"].unflatten(0, (3, 6)).clone()
    weights["q_up.weight"][:, 4:] = 0
    weights["q_up.weight"] = weights["q_up.weight"].flatten(0, 1)
    x, shuffled = normal(2, 6, 12, seed=1), torch.tensor([3, 5, 0, 1, 4, 2])
    layer = latent(student, USUAL, weights)
    looks_around(lambda value: output(layer(value)), x)
    before = tensor(output(layer(x)), shape=x.shape, name="the output").detach()
    found = output(layer(x[:, shuffled]))
    assert_close(found, before[:, shuffled], claim="with the positions shuffled", name="the output")


@pytest.mark.exercise("LatentAttention")
def test_a_latent_and_a_rotary_key_are_all_that_is_kept(student: Student) -> None:
    """What is kept has shape (batch, length, kv_rank + d_rope), grows by n with each call, and holds every position."""
    for size in (USUAL, sizes_of(10, 4, 6, 9, 3, 6, 7)):
        layer, x = latent(student, size, random_weights(latent_shapes(size), 2)), normal(2, 9, size["d_model"], seed=1)
        _, past = both(layer(x[:, :5]), 2, 5, 5, size)
        _, more = both(layer(x[:, 5:6], None, past.detach()), 2, 1, 6, size)
        _, most = both(layer(x[:, 6:], None, more.detach()), 2, 3, 9, size)
        assert (most.detach().std(1) > 1e-3).any(), "What is kept is the same at every position."
        before = tensor(output(layer(x[:, 8:], None, most.detach()[:, :8])), shape=(2, 1, size["d_model"])).detach()
        for j in (0, 4, 7):
            forgot = most.detach()[:, :8].clone()
            forgot[:, j] += 1
            after = output(layer(x[:, 8:], None, forgot))
            assert (after.detach() != before).any(), f"What was kept of position {j} has no influence on position 8."


@pytest.mark.exercise("LatentAttention", weight=2)
def test_a_text_in_chunks_gives_what_the_whole_gives(student: Student) -> None:
    """Positions go on where the past ends, and the past is seen: chunks of any sizes and single tokens agree."""
    layer, x = usual(student), normal(2, 9, 12, seed=1)
    whole = tensor(output(layer(x, causal(9))), shape=x.shape, name="the output").detach()
    changed = x.clone()
    changed[:, 0] += 1
    after = tensor(output(layer(changed, causal(9))), shape=x.shape, name="the output").detach()
    assert (after != whole).any(-1).all(), "Some position does not notice that position 0 changed."
    for sizes in ((4, 1, 4), (1,) * 9, (8, 1), (1, 8)):
        claim = "token by token" if set(sizes) == {1} else f"in chunks of {', '.join(map(str, sizes))}"
        assert_close(in_chunks(layer, x, sizes), whole, claim=claim, name="the output")


@pytest.mark.exercise("LatentAttention")
def test_a_mask_covers_the_past_as_well(student: Student) -> None:
    """The mask's columns are the old positions and then the new ones; what is blocked has no influence."""
    weights, x = random_weights(latent_shapes(USUAL), seed=3), normal(2, 8, 12, seed=1)
    layer = latent(student, USUAL, weights)
    for seed, shape in enumerate(((3, 8), (2, 1, 3, 8), (2, 3, 3, 8))):
        mask = some_mask(*shape, seed=seed)
        _, past = both(layer(x[:, :5]), 2, 5, 5, USUAL)
        found = output(layer(x[:, 5:], mask, past.detach()))
        square = functional.pad(mask, (0, 0, 5, 0), value=True)  # the old rows may look everywhere
        expected = deepseek(weights, USUAL, x, square)[:, 5:]
        assert_close(found, expected, claim=f"with a mask of shape {shape}", name="the output")


@pytest.mark.exercise("LatentAttention")
def test_what_is_kept_may_be_used_twice(student: Student) -> None:
    """kept belongs to the caller: two texts may go on from the same past, and a layer remembers none of them."""
    layer, x = usual(student), normal(2, 7, 12, seed=1)
    other = torch.cat([x[:, :4], normal(2, 3, 12, seed=2)], 1)
    _, past = both(layer(x[:, :4], causal(4)), 2, 4, 4, USUAL)
    kept = student.put(past.detach())
    for text in (x, other, x):
        whole = tensor(output(layer(text, causal(7))), shape=x.shape, name="the output").detach()
        found = output(layer(text[:, 4:], causal(3, 4), kept))
        assert_close(found, whole[:, 4:], claim="going on from the same past", name="the output")
    assert_close(kept.get(), past.detach(), atol=0, rtol=0, claim="after the calls", name="what was kept")
    swapped = student.put(past.detach().flip(0))
    found = tensor(output(layer(x[:, 4:], causal(3, 4), swapped)), shape=(2, 3, 12), name="the output").detach()
    assert (found != whole[:, 4:]).any(), "With the past of another text the output is the same."


@pytest.mark.exercise("LatentAttention", weight=2)
def test_gradients_reach_x_and_all_seven_weights(student: Student) -> None:
    """Everything learns: the gradients of x and of the seven weights are DeepSeek's."""
    weights, upstream = random_weights(latent_shapes(USUAL), seed=1), normal(2, 6, 12, seed=3)
    x = normal(2, 6, 12, seed=2).requires_grad_()
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    out = deepseek(leaves, USUAL, x, causal(6))
    expected = dict(zip(("x", *leaves), torch.autograd.grad(out, [x, *leaves.values()], upstream), strict=True))
    layer = latent(student, USUAL, weights)
    found: dict[str, Tensor | None] = {"x": gradients(output(layer(x, causal(6))), upstream, x=x)["x"]}
    found |= student.grads(layer)
    for name, value in expected.items():
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=2e-3, rtol=2e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("LatentAttention")
def test_a_row_without_anything_to_see_gives_zeros(student: Student) -> None:
    """A row of the mask without any True gives an output of zeros, never NaN, and no gradient is NaN either."""
    layer, mask = usual(student), some_mask(5, 5, seed=2)
    mask[1] = False
    x = normal(2, 5, 12, seed=3).requires_grad_()
    answer = tensor(output(layer(x, mask)), shape=(2, 5, 12), name="the output")
    out = answer.detach()
    assert_close(out[:, 1], torch.zeros(2, 12), name="the output of a position that may attend to nothing")
    others = out[:, [0, 2, 3, 4]]
    assert others.isfinite().all(), "A position that may attend to nothing made others NaN or infinite."
    assert others.any(-1).all(), "A position that may attend to something gives zeros."
    grad = gradients(answer, normal(2, 5, 12, seed=4), x=x)["x"]
    assert grad.isfinite().all(), "A position that may attend to nothing made the gradient of x NaN or infinite."


@pytest.mark.exercise("LatentAttention")
def test_the_norms_epsilon_is_a_millionth(student: Student) -> None:
    """Where a latent is about a thousandth in size, 1e-6 under the root of both norms decides how large it becomes."""
    weights, x = random_weights(latent_shapes(USUAL), seed=4), 7e-4 * normal(2, 6, 12, seed=5)
    weights["kv_down.weight"][5:] *= 1000  # the rotary key is not normalised, and would be too small to matter
    found = output(latent(student, USUAL, weights)(x, causal(6)))
    assert_close(found, deepseek(weights, USUAL, x, causal(6)), claim="a small x", name="the output")


@pytest.mark.exercise("LatentAttention")
def test_a_latent_layer_in_bfloat16_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 gives and keeps bfloat16, and goes on from what it kept."""
    weights, x = random_weights(latent_shapes(USUAL), seed=1), normal(2, 6, 12, seed=2).bfloat16()
    layer = latent(student, USUAL, weights)
    layer.bfloat16()
    expected = deepseek(weights, USUAL, x.float(), causal(6))
    _, past = both(layer(x[:, :4], causal(4)), 2, 4, 4, USUAL, torch.bfloat16)
    out, _ = both(layer(x[:, 4:], causal(2, 4), past.detach()), 2, 2, 6, USUAL, torch.bfloat16)
    off = ((out.detach().float() - expected[:, 4:]).abs().mean() / expected.std()).item()
    assert off < 0.06, f"In bfloat16 the output is off by {off:.0%} of its spread."


@pytest.mark.exercise("LatentAttention", weight=0.5)
def test_each_text_and_each_call_is_for_itself(student: Student) -> None:
    """A text gives the same alone and in company, again and again, in training and in evaluation."""
    layer, x = usual(student), normal(3, 5, 12, seed=2)
    names = sorted(layer.state_dict())
    together = tensor(output(layer(x, causal(5))), shape=x.shape, name="the output").detach()
    looks_around(lambda value: output(layer(value)), x)
    tensor(output(layer(normal(2, 7, 12, seed=3))), shape=(2, 7, 12), name="the output")
    for i in range(3):
        found = output(layer(x[i : i + 1], causal(5)))
        assert_close(found, together[i : i + 1], claim=f"text {i} alone", name="the output")
    layer.train()
    assert_close(output(layer(x, causal(5))), together, claim="in training", name="the output")
    assert sorted(layer.state_dict()) == names, f"After some calls the state dict holds {sorted(layer.state_dict())}."


@pytest.mark.exercise("LatentAttention", weight=0.5)
def test_the_layers_inputs_are_left_as_they_were(student: Student) -> None:
    """x and the mask belong to the caller: an operation that ends in _ changes them."""
    x, mask = normal(2, 5, 12, seed=1), some_mask(5, 5, seed=2)
    mask[1] = False
    kept_x, kept_mask = student.put(x), student.put(mask)
    layer = usual(student)
    looks_around(lambda value: output(layer(value)), x)
    tensor(output(layer(kept_x, kept_mask)), shape=x.shape, name="the output")
    assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(kept_mask.get(), mask, claim="after the call", name="the mask")
