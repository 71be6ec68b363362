"""Hidden tests of chapter 07. Expected values come from PyTorch, from counting, and from laws; none from the reference.

What `generate` reads is counted here, on the trusted side: the model that it is given is a function of these tests.
`gpt2` is shown to be transformers' GPT-2 by tests/test_oracle_07.py.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

# -- KVCache --------------------------------------------------------------------------------------------------------


def two(value: Any) -> tuple[Tensor, Tensor]:
    """What update returned: keys and values."""
    assert isinstance(value, tuple | list), "update should return a tuple (k, v)."
    assert len(value) == 2, f"update should return a tuple of two, k and v, not of {len(value)}."
    return tensor(value[0], name="k"), tensor(value[1], name="v")


def keys_and_values(
    n: int, *, batch: int = 2, heads: int = 3, d: int = 4, d_v: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    return normal(batch, heads, n, d, seed=seed), normal(batch, heads, n, d_v, seed=seed + 500)


def same(found: Any, k: Tensor, v: Tensor, claim: str = "") -> None:
    """Nothing is computed in a cache, so every entry is exactly what went in."""
    found_k, found_v = two(found)
    assert_close(found_k, k, atol=0, rtol=0, claim=claim, name="k")
    assert_close(found_v, v, atol=0, rtol=0, claim=claim, name="v")


def length(cache: Any) -> int:
    assert isinstance(cache, Remote), "KVCache() should give a cache."
    found = cache.length
    assert type(found) is int, "length should be an int: is it a property?"
    return found


@pytest.mark.exercise("KVCache", weight=0.5)
def test_the_first_chunk_comes_back_as_it_went_in(student: Student) -> None:
    """In an empty cache, update returns the keys and values of the chunk: first k, then v."""
    for n in (5, 1):
        k, v = keys_and_values(n, seed=n)
        same(student.KVCache().update(0, k, v), k, v, claim=f"a first chunk of {n}")


@pytest.mark.exercise("KVCache", weight=2)
def test_a_later_chunk_is_put_behind_the_earlier_ones(student: Student) -> None:
    """update returns all positions so far, in the order in which they came, however long the chunks are."""
    for sizes in ((4, 1, 1), (1, 3, 2), (2, 5)):
        k, v = keys_and_values(sum(sizes), seed=sizes[0])
        cache, end = student.KVCache(), 0
        for n in sizes:
            chunk = slice(end, end + n)
            end += n
            found = cache.update(0, k[:, :, chunk], v[:, :, chunk])
            same(found, k[:, :, :end], v[:, :, :end], claim=f"after chunks of {sizes}, at {end} positions")


@pytest.mark.exercise("KVCache")
def test_keys_and_values_may_differ_in_width(student: Student) -> None:
    """d_v is not always d_head: keys and values are kept apart."""
    k, v = keys_and_values(5, d=3, d_v=6)
    cache = student.KVCache()
    cache.update(0, k[:, :, :3], v[:, :, :3])
    same(cache.update(0, k[:, :, 3:], v[:, :, 3:]), k, v, claim="with d_head 3 and d_v 6")


@pytest.mark.exercise("KVCache", weight=2)
def test_each_layer_has_its_own_keys_and_values(student: Student) -> None:
    """What one layer adds, no other layer gets back; layers may come in any order."""
    cache = student.KVCache()
    layers = {layer: keys_and_values(5, seed=layer) for layer in (2, 0, 1)}
    for chunk in (slice(0, 3), slice(3, 4), slice(4, 5)):
        for layer, (k, v) in layers.items():
            found = cache.update(layer, k[:, :, chunk], v[:, :, chunk])
            same(found, k[:, :, : chunk.stop], v[:, :, : chunk.stop], claim=f"layer {layer}, {chunk.stop} positions")


@pytest.mark.exercise("KVCache")
def test_two_caches_know_nothing_of_each_other(student: Student) -> None:
    """A new cache is empty, whatever was put into another one before."""
    (k, v), (k2, v2) = keys_and_values(3, seed=1), keys_and_values(2, seed=2)
    one, other = student.KVCache(), student.KVCache()
    same(one.update(0, k, v), k, v)
    same(other.update(0, k2, v2), k2, v2, claim="a second cache")
    same(student.KVCache().update(0, k2, v2), k2, v2, claim="a cache made after that")
    same(one.update(0, k, v), torch.cat([k, k], 2), torch.cat([v, v], 2), claim="the first cache again")


@pytest.mark.exercise("KVCache", weight=2)
def test_length_counts_positions(student: Student) -> None:
    """length is how many positions there are: not calls, not layers, not the positions of the last chunk."""
    cache, total = student.KVCache(), 0
    for step, n in enumerate((4, 1, 1, 3)):
        k, v = keys_and_values(n, seed=step)
        for layer in range(3):
            cache.update(layer, k, v)
        total += n
        assert length(cache) == total, f"After {step + 1} chunks in 3 layers, length counts {length(cache)} positions."
    one, other = student.KVCache(), student.KVCache()
    one.update(1, *keys_and_values(2))
    one.update(0, *keys_and_values(2))
    assert length(one) == 2, f"Where layer 1 came before layer 0, length is {length(one)} after 2 positions."
    assert length(other) == 0, f"An empty cache has length {length(other)}."


@pytest.mark.exercise("KVCache")
def test_sequences_and_heads_stay_where_they_are(student: Student) -> None:
    """Only the dimension of the positions grows, also where batch, heads and positions are equally many."""
    k, v = keys_and_values(4, batch=2, heads=2, d=2, d_v=2, seed=3)
    cache = student.KVCache()
    cache.update(0, k[:, :, :2], v[:, :, :2])
    same(cache.update(0, k[:, :, 2:], v[:, :, 2:]), k, v, claim="with 2 sequences and 2 heads of width 2")


@pytest.mark.exercise("KVCache")
def test_nothing_is_lost_when_the_cache_grows(student: Student) -> None:
    """There is no largest length: thousands of positions stay as they came, first to last."""
    k, v = keys_and_values(5003, batch=1, heads=1, d=1, d_v=1)
    cache, end = student.KVCache(), 0
    for n in (10, 1, 1, 1, 990, 1, 3997, 1, 1):
        found = cache.update(0, k[:, :, end : end + n], v[:, :, end : end + n])
        end += n
        same(found, k[:, :, :end], v[:, :, :end], claim=f"at {end} positions")


@pytest.mark.exercise("KVCache")
def test_the_dtypes_are_kept(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64: nothing is rounded on the way."""
    for dtype in (torch.bfloat16, torch.float64):
        k, v = (part.to(dtype) for part in keys_and_values(4))
        cache = student.KVCache()
        cache.update(0, k[:, :, :1], v[:, :, :1])
        same(cache.update(0, k[:, :, 1:], v[:, :, 1:]), k, v, claim=f"in {str(dtype)[6:]}")
    k, v = keys_and_values(4)
    cache, k = student.KVCache(), k.bfloat16()
    cache.update(0, k[:, :, :1], v[:, :, :1])
    same(cache.update(0, k[:, :, 1:], v[:, :, 1:]), k, v, claim="with keys in bfloat16 and values in float32")


@pytest.mark.exercise("KVCache")
def test_the_caller_may_overwrite_its_tensors(student: Student) -> None:
    """The cache keeps what came in, also when the caller's tensors hold something else after the call."""
    k, v = keys_and_values(6)
    cache = student.KVCache()
    for chunk in (slice(0, 3), slice(3, 5)):
        lent_k, lent_v = student.put(k[:, :, chunk].clone()), student.put(v[:, :, chunk].clone())
        cache.update(0, lent_k, lent_v)
        lent_k.fill_(7)
        lent_v.fill_(8)
    same(cache.update(0, k[:, :, 5:], v[:, :, 5:]), k, v, claim="after the caller overwrote its tensors")


@pytest.mark.exercise("KVCache", weight=0.5)
def test_the_cache_leaves_its_inputs_as_they_were(student: Student) -> None:
    """k and v belong to the caller: an operation that ends in _ changes them."""
    cache = student.KVCache()
    for step in range(3):
        k, v = keys_and_values(2, seed=step)
        lent_k, lent_v = student.put(k), student.put(v)
        found, _ = two(cache.update(0, lent_k, lent_v))
        tensor(found, shape=(2, 3, 2 * step + 2, 4), name=f"k after chunk {step + 1} of 2 positions each")
        assert_close(lent_k.get(), k, atol=0, rtol=0, claim="after the call", name="k")
        assert_close(lent_v.get(), v, atol=0, rtol=0, claim="after the call", name="v")


# -- chunk_mask -----------------------------------------------------------------------------------------------------


def booleans(student: Student, n_q: int, n_k: int) -> Tensor:
    """The mask as booleans whatever its dtype is, which has a test of its own. A constant earns nothing."""
    mask = tensor(student.chunk_mask(n_q, n_k), shape=(n_q, n_k), name=f"chunk_mask({n_q}, {n_k})").bool()
    if n_q > 1:
        assert mask.any(), f"chunk_mask({n_q}, {n_k}) allows nothing."
        assert not mask.all(), f"chunk_mask({n_q}, {n_k}) allows everything."
    return mask


@pytest.mark.exercise("chunk_mask")
def test_the_mask_has_a_row_a_query_and_a_column_a_key(student: Student) -> None:
    """The result is a tensor of booleans of shape (n_q, n_k), not of numbers."""
    for n_q, n_k in ((3, 7), (2, 2), (1, 5)):
        mask = tensor(
            student.chunk_mask(n_q, n_k), shape=(n_q, n_k), dtype=torch.bool, name=f"chunk_mask({n_q}, {n_k})"
        )
        assert n_q == 1 or (mask.any() and not mask.all()), f"chunk_mask({n_q}, {n_k}) is the same everywhere."


@pytest.mark.exercise("chunk_mask")
def test_without_a_past_it_is_the_causal_mask(student: Student) -> None:
    """Where all keys are the chunk's own, row i sees the columns 0 to i."""
    for n in (6, 3, 2):
        expected = torch.ones(n, n, dtype=torch.bool).tril()
        assert_close(booleans(student, n, n), expected, name=f"chunk_mask({n}, {n})")


@pytest.mark.exercise("chunk_mask")
def test_every_query_sees_the_whole_past(student: Student) -> None:
    """The keys that were there before the chunk are seen by all of its queries."""
    for n_q, n_k in ((3, 8), (5, 6), (4, 13)):
        assert booleans(student, n_q, n_k)[:, : n_k - n_q].all(), (
            f"In chunk_mask({n_q}, {n_k}) a query may not see something of the past."
        )


@pytest.mark.exercise("chunk_mask")
def test_every_query_sees_itself(student: Student) -> None:
    """Query i of the chunk is the i-th of the last n_q keys, and sees that key."""
    for n_q, n_k in ((3, 8), (5, 6), (4, 4)):
        own = booleans(student, n_q, n_k)[:, n_k - n_q :].diagonal()
        assert own.all(), f"In chunk_mask({n_q}, {n_k}) a query may not see itself."


@pytest.mark.exercise("chunk_mask")
def test_no_query_sees_what_comes_after_it(student: Student) -> None:
    """Within the chunk the mask is causal: a later token of the same chunk is still the future."""
    for n_q, n_k in ((3, 8), (5, 6), (4, 4)):
        future = booleans(student, n_q, n_k)[:, n_k - n_q :].triu(1)
        assert not future.any(), f"In chunk_mask({n_q}, {n_k}) a query may see a later one of its chunk."


@pytest.mark.exercise("chunk_mask")
def test_a_single_query_sees_everything(student: Student) -> None:
    """One new token comes after all others, so there is nothing to hide from it."""
    booleans(student, 2, 5)  # a mask that is always True is no mask
    for n_k in (1, 2, 9):
        assert booleans(student, 1, n_k).all(), f"In chunk_mask(1, {n_k}) the one query may not see something."


@pytest.mark.exercise("chunk_mask", weight=2)
def test_the_masks_of_the_chunks_make_up_the_mask_of_the_whole(student: Student) -> None:
    """Cut a text as you like: the rows of its chunks, one after the other, are the causal mask of all of it."""
    for sizes in ((4, 3, 1, 1), (1, 6), (2, 2, 5), (7, 130)):
        n, end, rows = sum(sizes), 0, []
        for n_q in sizes:
            end += n_q
            rows.append(functional.pad(booleans(student, n_q, end), (0, n - end)))
        expected = torch.ones(n, n, dtype=torch.bool).tril()
        assert_close(torch.cat(rows), expected, claim=f"chunks of {sizes}", name="all rows together")


@pytest.mark.exercise("chunk_mask")
def test_fewer_keys_than_queries_are_an_error(student: Student) -> None:
    """Where n_k is less than n_q a ValueError names both numbers; where they are equal there is none."""

    def refusal(n_q: int, n_k: int) -> StudentError | None:
        try:
            student.chunk_mask(n_q, n_k)
        except Unfinished:
            raise
        except StudentError as error:
            return error
        return None

    assert refusal(4, 4) is None, "chunk_mask(4, 4) raises an error."
    for n_q, n_k in ((5, 3), (7, 6)):
        raised = refusal(n_q, n_k)
        what = f"chunk_mask({n_q}, {n_k}) raises {raised.types[0] if raised else 'nothing'}"
        assert isinstance(raised, ValueError), f"{what}, and it should raise a ValueError."
        named = {int(number) for number in re.findall(r"\d+", str(raised))}
        assert {n_q, n_k} <= named, f"The sentence does not name both numbers: {raised}"


# -- CachedAttention ------------------------------------------------------------------------------------------------

NAMES = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")


def random_weights(d_model: int, seed: int) -> dict[str, Tensor]:
    return {name: 1.5 * d_model**-0.5 * normal(d_model, d_model, seed=seed + i) for i, name in enumerate(NAMES)}


def created(student: Student, d_model: int, n_heads: int) -> tuple[Remote, dict[str, Tensor]]:
    """A new layer and its state dict."""
    layer = student.CachedAttention(d_model, n_heads)
    assert isinstance(layer, Remote), "CachedAttention(d_model, n_heads) should give a layer."
    state = layer.state_dict()
    assert isinstance(state, dict), "The layer's state_dict() should be a dict: is CachedAttention an nn.Module?"
    return layer, {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def loaded(student: Student, n_heads: int, weights: dict[str, Tensor]) -> Remote:
    """A layer with these weights, in evaluation. What it has beside them is zeroed: another test sees to that."""
    layer, state = created(student, len(weights[NAMES[0]]), n_heads)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()} | weights)
    layer.eval()
    return layer


def oracle(n_heads: int, weights: dict[str, Tensor]) -> nn.MultiheadAttention:
    q, k, v, o = (weights[name] for name in NAMES)
    layer = nn.MultiheadAttention(len(o), n_heads, bias=False, batch_first=True)
    layer.load_state_dict({"in_proj_weight": torch.cat([q, k, v]), "out_proj.weight": o})
    return layer


def whole(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """PyTorch's answer for the text as a whole. Its True means "may not attend"."""
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return layer(x, x, x, attn_mask=future, need_weights=False)[0]


def in_chunks(layer: Remote, x: Tensor, sizes: Sequence[int], *cache_and_layer: Any) -> Tensor:
    """What the layer says of a text that it gets in chunks of these sizes."""
    chunks = x.split(list(sizes), 1)
    return torch.cat([tensor(layer(chunk, *cache_and_layer), shape=chunk.shape) for chunk in chunks], 1)


@pytest.mark.exercise("CachedAttention")
def test_the_layer_has_four_square_weights_and_nothing_else(student: Student) -> None:
    """The state dict holds the four projections' weights, each (d_model, d_model), and all of them are trained."""
    for d_model, n_heads in ((12, 3), (10, 5)):
        layer, state = created(student, d_model, n_heads)
        parameters = student.grads(layer)
        assert set(state) == set(NAMES), f"The state dict holds {sorted(state)}."
        assert set(parameters) == set(NAMES), f"The parameters that are trained are {sorted(parameters)}."
        for name, value in state.items():
            tensor(value, shape=(d_model, d_model), dtype=torch.float32, name=name)


@pytest.mark.exercise("CachedAttention", weight=2)
def test_without_a_cache_it_is_causal_self_attention(student: Student) -> None:
    """With the same weights and no cache the layer gives what nn.MultiheadAttention gives with a causal mask."""
    for seed, (batch, n, d_model, n_heads) in enumerate(((2, 5, 12, 3), (3, 7, 10, 5), (1, 40, 6, 1), (2, 1, 4, 2))):
        weights, x = random_weights(d_model, seed=10 * seed), normal(batch, n, d_model, seed=seed)
        with torch.no_grad():
            expected = whole(oracle(n_heads, weights), x)
            found = loaded(student, n_heads, weights)(x)
        assert_close(found, expected, claim=f"d_model {d_model}, {n_heads} heads, x {tuple(x.shape)}")


@pytest.mark.exercise("CachedAttention", weight=2)
def test_a_prompt_and_then_single_tokens_give_what_the_whole_gives(student: Student) -> None:
    """A prompt in one chunk, then token by token, each output is that of the whole text."""
    weights, x = random_weights(12, seed=1), normal(2, 9, 12, seed=2)
    layer = loaded(student, 3, weights)
    with torch.no_grad():
        expected = whole(oracle(3, weights), x)
        for sizes in ((1,) * 9, (5, 1, 1, 1, 1)):
            assert_close(in_chunks(layer, x, sizes, student.KVCache()), expected, claim=f"in chunks of {sizes}")


@pytest.mark.exercise("CachedAttention", weight=2)
def test_chunks_of_any_size_give_what_the_whole_gives(student: Student) -> None:
    """A prompt may be read in chunks: causal within the chunk, and all of the past is seen."""
    weights, x = random_weights(12, seed=3), normal(2, 9, 12, seed=4)
    layer = loaded(student, 3, weights)
    with torch.no_grad():
        expected = whole(oracle(3, weights), x)
        for sizes in ((4, 5), (2, 3, 4), (1, 6, 2), (9,)):
            assert_close(in_chunks(layer, x, sizes, student.KVCache()), expected, claim=f"in chunks of {sizes}")


@pytest.mark.exercise("CachedAttention")
def test_a_change_is_noticed_by_what_comes_after_it_and_only_by_that(student: Student) -> None:
    """Perturb a position: nothing before it changes, in its chunk or in earlier ones, and all after it does."""
    x, sizes, weights = normal(2, 8, 12, seed=1), (3, 4, 1), random_weights(12, seed=2)
    large = {name: 1e3 * value for name, value in weights.items() if "q_proj" in name or "k_proj" in name}
    for scores, drawn in (("", weights), (", with huge scores", weights | large)):  # however well a later key fits
        layer = loaded(student, 3, drawn)
        with torch.no_grad():
            before = in_chunks(layer, x, sizes, student.KVCache())
            for j in (1, 4, 6):
                changed = x.clone()
                changed[:, j] += 2
                after = in_chunks(layer, changed, sizes, student.KVCache())
                claim = f"after a change at position {j}, in chunks of {sizes}{scores}"
                assert_close(after[:, :j], before[:, :j], claim=claim, name="what came before it")
                moved = (after[:, j:] - before[:, j:]).abs().amax(-1) > 1e-5
                assert scores or moved.all(), f"{claim}: some position after it does not notice."


@pytest.mark.exercise("CachedAttention", weight=2)
def test_two_layers_share_a_cache(student: Student) -> None:
    """Each layer uses the cache under its own number, so that two layers do not read each other's past."""
    weights, x = [random_weights(12, seed=seed) for seed in (1, 11)], normal(2, 6, 12, seed=2)
    layers, cache = [loaded(student, 3, one) for one in weights], student.KVCache()
    with torch.no_grad():
        expected = [whole(oracle(3, one), x) for one in weights]
        found: list[list[Tensor]] = [[], []]
        for chunk in x.split([3, 1, 2], 1):
            for number, layer in enumerate(layers):
                out, raised = None, ""
                try:
                    out = layer(chunk, cache, number)
                except Unfinished:
                    raise
                except StudentError as error:
                    raised = error.sentence
                assert not raised, f"With a chunk of {chunk.shape[1]}, layer {number} of two raises {raised}"
                found[number].append(tensor(out, shape=chunk.shape))
    for number in (0, 1):
        assert_close(torch.cat(found[number], 1), expected[number], claim=f"layer {number} of two that share a cache")


@pytest.mark.exercise("CachedAttention")
def test_the_layer_number_may_be_named(student: Student) -> None:
    """forward takes cache and layer by name too, and uses the number that it is given."""
    weights, x = random_weights(12, seed=5), normal(1, 4, 12, seed=6)
    layer, cache = loaded(student, 3, weights), student.KVCache()
    with torch.no_grad():
        expected = whole(oracle(3, weights), x)
        found = [tensor(layer(chunk, cache=cache, layer=4), shape=chunk.shape) for chunk in x.split(2, 1)]
    assert_close(torch.cat(found, 1), expected, claim="as layer 4 of a cache")


@pytest.mark.exercise("CachedAttention")
def test_keys_and_values_go_into_the_cache_head_by_head(student: Student) -> None:
    """What the cache keeps are the projected keys and values of the new positions, (batch, n_heads, n, d_head)."""
    weights, x = random_weights(12, seed=1), normal(2, 5, 12, seed=2)
    layer, cache = loaded(student, 3, weights), student.KVCache()
    with torch.no_grad():
        in_chunks(layer, x, (4, 1), cache, 1)
        calls = cache.calls
        assert calls, "The layer was given a cache and never updated it."
        given = calls[0][1:]
        assert given == ((2, 3, 4, 4),) * 2, f"Of 4 positions the cache was given keys and values of shapes {given}."
        last = normal(2, 3, 1, 4, seed=3)
        k, v = two(cache.update(1, last, last))
        for found, name in ((k, "k_proj.weight"), (v, "v_proj.weight")):
            projected = functional.linear(x, weights[name]).unflatten(-1, (3, 4)).transpose(1, 2)
            kind = "keys" if name[0] == "k" else "values"
            tensor(found, shape=(2, 3, 6, 4), name=f"after 5 positions and one of ours, what the cache holds as {kind}")
            assert_close(found[:, :, :5], projected, name=f"the {kind} in the cache")


@pytest.mark.exercise("CachedAttention")
def test_the_cache_is_updated_once_in_a_call(student: Student) -> None:
    """Every call gives the cache the new positions once; only keys and values go in."""
    layer, cache, x = loaded(student, 3, random_weights(12, seed=1)), student.KVCache(), normal(2, 6, 12, seed=2)
    with torch.no_grad():
        in_chunks(layer, x, (3, 2, 1), cache)
    calls = cache.calls
    assert len(calls) == 3, f"In 3 calls the layer updated the cache {len(calls)} times."
    for n, call in zip((3, 2, 1), calls, strict=True):
        assert call[1][2] == n, f"Of a chunk of {n} positions the cache was given {call[1][2]}."


@pytest.mark.exercise("CachedAttention")
def test_a_layer_keeps_nothing_itself(student: Student) -> None:
    """The past is in the cache and nowhere else: without it, or with another one, the text begins anew."""
    weights, x = random_weights(12, seed=1), normal(2, 5, 12, seed=2)
    layer, one, other = loaded(student, 3, weights), student.KVCache(), student.KVCache()
    with torch.no_grad():
        expected = whole(oracle(3, weights), x)
        first = tensor(layer(x[:, :3], one), shape=(2, 3, 12))
        for _ in range(2):
            assert_close(layer(x), expected, claim="without a cache, after other calls")
        assert_close(layer(x, other), expected, claim="with a second cache")
        rest = tensor(layer(x[:, 3:], one), shape=(2, 2, 12))
    assert_close(torch.cat([first, rest], 1), expected, claim="with the first cache, after the second")


@pytest.mark.exercise("CachedAttention", weight=0.5)
def test_sequences_of_a_batch_do_not_meet(student: Student) -> None:
    """A sequence gives the same outputs alone and in company, with a cache too."""
    x, weights = normal(3, 6, 12, seed=1), random_weights(12, seed=2)
    layer = loaded(student, 3, weights)
    with torch.no_grad():
        together = in_chunks(layer, x, (4, 1, 1), student.KVCache())
        assert_close(together[:, 0], whole(oracle(3, weights), x[:, :1])[:, 0], name="the outputs at position 0")
        for i in range(3):
            alone = in_chunks(layer, x[i : i + 1], (4, 1, 1), student.KVCache())
            assert_close(alone, together[i : i + 1], claim=f"sequence {i} alone")


@pytest.mark.exercise("CachedAttention")
def test_without_a_cache_the_layer_learns(student: Student) -> None:
    """The gradients of x and of the four weights are those of nn.MultiheadAttention: nothing is detached."""
    weights, upstream = random_weights(12, seed=1), normal(2, 5, 12, seed=3)
    x = normal(2, 5, 12, seed=2).requires_grad_()
    layer, theirs = loaded(student, 3, weights), oracle(3, weights)
    expected = gradients(whole(theirs, x), upstream, x=x, qkv=theirs.in_proj_weight, o=theirs.out_proj.weight)
    found = {"x": gradients(layer(x), upstream, x=x)["x"], **student.grads(layer)}
    for name, value in zip(("x", *NAMES), (expected["x"], *expected["qkv"].chunk(3), expected["o"]), strict=True):
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("CachedAttention", weight=0.5)
def test_a_bfloat16_layer_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16, with a cache and without."""
    weights, x = random_weights(12, seed=1), normal(2, 5, 12, seed=2).bfloat16()
    layer = loaded(student, 3, weights)
    layer.bfloat16()
    with torch.no_grad():
        expected = whole(oracle(3, weights), x.float()).bfloat16()
        assert_close(layer(x), expected, atol=0.15, rtol=0.05, claim="without a cache")
        found = in_chunks(layer, x, (3, 1, 1), student.KVCache())
        assert_close(found, expected, atol=0.15, rtol=0.05, claim="with a cache")


@pytest.mark.exercise("CachedAttention", weight=0.5)
def test_x_is_left_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it."""
    x, weights = normal(2, 4, 12, seed=1), random_weights(12, seed=3)
    layer, cache, kept = loaded(student, 3, weights), student.KVCache(), student.put(x)
    with torch.no_grad():
        first = tensor(layer(kept, cache), shape=x.shape)[:, :1]
        assert_close(first, whole(oracle(3, weights), x[:, :1]), name="the output at position 0")
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- kv_cache_bytes -------------------------------------------------------------------------------------------------


def size_of(student: Student, length: int, **shape: Any) -> float:
    """The bytes, whatever kind of number they are, which has a test of its own."""
    found = student.kv_cache_bytes(length, **shape)
    assert type(found) in (int, float), f"kv_cache_bytes should return an int, not a {type(found).__name__}."
    return found


def really(length: int, n_layers: int, heads: int, d_head: int, batch: int = 1, dtype: Any = torch.bfloat16) -> int:
    """The bytes of such tensors, counted by PyTorch. On the meta device they take no memory."""
    kept = [torch.empty(batch, heads, length, d_head, dtype=dtype, device="meta") for _ in range(2 * n_layers)]
    return sum(part.nbytes for part in kept)


@pytest.mark.exercise("kv_cache_bytes", weight=2)
def test_the_bytes_are_those_of_the_tensors(student: Student) -> None:
    """Keys and values of every layer, head and position are counted; queries are not kept."""
    for length, n_layers, n_heads, d_head in ((1, 12, 12, 64), (7, 3, 5, 9), (1000, 32, 32, 128)):
        found = size_of(student, length, n_layers=n_layers, n_heads=n_heads, d_head=d_head)
        right = really(length, n_layers, n_heads, d_head)
        assert found == right, f"{length} positions, {n_layers} layers, {n_heads} heads of {d_head}: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes")
def test_only_heads_of_keys_and_values_count(student: Student) -> None:
    """Where a layer has fewer heads of keys and values than of queries, those are what is kept."""
    for n_heads, n_kv_heads in ((32, 8), (12, 1), (6, 6)):
        found = size_of(student, 11, n_layers=4, n_heads=n_heads, d_head=16, n_kv_heads=n_kv_heads)
        right = really(11, 4, n_kv_heads, 16)
        assert found == right, f"With {n_kv_heads} heads of keys and values beside {n_heads} of queries: not {found}."


@pytest.mark.exercise("kv_cache_bytes")
def test_every_sequence_of_a_batch_has_its_own(student: Student) -> None:
    """Ten conversations are ten caches."""
    for batch in (10, 3):
        found = size_of(student, 5, n_layers=2, n_heads=3, d_head=4, batch=batch)
        assert found == really(5, 2, 3, 4, batch), f"With a batch of {batch}: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes")
def test_a_number_takes_what_its_dtype_takes(student: Student) -> None:
    """float32 takes four bytes, bfloat16 two, int8 one; bfloat16 is the default."""
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float64):
        found = size_of(student, 5, n_layers=2, n_heads=3, d_head=4, dtype=dtype)
        assert found == really(5, 2, 3, 4, dtype=dtype), f"In {str(dtype)[6:]}: not {found} bytes."


@pytest.mark.exercise("kv_cache_bytes", weight=0.5)
def test_the_result_is_an_int_and_an_empty_cache_takes_nothing(student: Student) -> None:
    """Bytes are counted in whole numbers; without a position there are none."""
    found = size_of(student, 9, n_layers=5, n_heads=8, d_head=7, n_kv_heads=2, batch=3, dtype=torch.float32)
    assert type(found) is int, f"kv_cache_bytes should return an int, not a {type(found).__name__}."
    assert found == really(9, 5, 2, 7, 3, torch.float32), f"With everything given: not {found} bytes."
    assert size_of(student, 0, n_layers=5, n_heads=8, d_head=7) == 0, "A cache of length 0 should take 0 bytes."


# -- sample ---------------------------------------------------------------------------------------------------------

GRID = (torch.arange(2048) + 0.5) / 2048  # no probability below ends on one of these but by chance


def drawn(student: Student, logits: Tensor, u: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """The ids that were drawn, as int64; each is one of the vocabulary."""
    ids = tensor(student.sample(logits, u, *arguments, **named), shape=(len(logits),), name="the ids").long()
    assert bool(((ids >= 0) & (ids < logits.shape[-1])).all()), "An id is none of the vocabulary's."
    return ids


def shares(student: Student, logits: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """How often each token is drawn when u takes every value of a fine grid."""
    ids = drawn(student, logits.expand(len(GRID), -1), GRID, *arguments, **named)
    return torch.bincount(ids, minlength=logits.shape[-1]).float() / len(GRID)


@pytest.mark.exercise("sample")
def test_the_result_is_one_id_a_row(student: Student) -> None:
    """The ids are int64 of shape (batch,), at temperature 0 too."""
    for batch, vocabulary in ((3, 7), (1, 5), (5, 2)):
        logits, u = normal(batch, vocabulary, seed=batch), GRID[:: len(GRID) // batch][:batch]
        for temperature in (1.0, 0):
            tensor(student.sample(logits, u, temperature), shape=(batch,), dtype=torch.int64, name="the ids")
    ids = drawn(student, torch.tensor([[0.0, 9, 0], [0, 0, 1], [0, 0, 1]]), torch.tensor([0.5, 0.01, 0.99])).tolist()
    assert ids[0] == 1, "A token that is nearly certain is not drawn."
    assert ids[1] != ids[2], "For u near 0 and near 1 the same token is drawn."


@pytest.mark.exercise("sample", weight=2)
def test_a_token_is_drawn_as_often_as_it_is_likely(student: Student) -> None:
    """Over all u, the share of a token is its probability: the softmax of its row of logits."""
    for seed in (1, 2):
        logits = 2 * normal(9, seed=seed)
        found = shares(student, logits)
        assert_close(found, logits.softmax(-1), atol=1e-3, rtol=0, name="the shares of the draws")


@pytest.mark.exercise("sample", weight=2)
def test_the_intervals_lie_in_the_order_of_the_ids(student: Student) -> None:
    """u = 0 is at the start of token 0; a larger u never gives a smaller id. The same u gives the same token."""
    logits = 2 * normal(9, seed=3)
    ends = logits.double().softmax(-1).cumsum(-1)
    u = GRID[(GRID[:, None] - ends).abs().amin(-1) > 1e-4]
    expected = torch.searchsorted(ends, u.double())
    assert_close(drawn(student, logits.expand(len(u), -1), u), expected, name="the ids")
    assert_close(drawn(student, logits.expand(len(u), -1), u), expected, claim="drawn again", name="the ids")


@pytest.mark.exercise("sample")
def test_an_interval_is_closed_on_the_left(student: Student) -> None:
    """Where one interval ends and the next begins, u belongs to the next."""
    quarters = torch.zeros(4, 4)  # four tokens of exactly one quarter
    ids = drawn(student, quarters, torch.tensor([0, 0.25, 0.5, 0.75]))
    assert_close(ids, torch.arange(4), claim="u of 0, ¼, ½ and ¾ for four equal tokens", name="the ids")


@pytest.mark.exercise("sample", weight=2)
def test_the_temperature_divides_the_logits(student: Student) -> None:
    """A low temperature makes the likely likelier, a high one evens out: softmax(logits / temperature)."""
    logits = normal(9, seed=4)
    for temperature in (0.5, 2.0, 5.0):
        found = shares(student, logits, temperature)
        expected = (logits / temperature).softmax(-1)
        assert_close(found, expected, atol=1e-3, rtol=0, claim=f"temperature {temperature}", name="the shares")
    found = shares(student, logits / 128, 1 / 128)
    claim = "logits divided by 128, at a temperature of 1/128"
    assert_close(found, logits.softmax(-1), atol=1e-3, rtol=0, claim=claim, name="the shares")
    cold = drawn(student, logits.expand(64, -1), GRID[::32], temperature=1e-3)
    assert bool((cold == logits.argmax()).all()), "At a temperature of 0.001 it is not always the likeliest."


@pytest.mark.exercise("sample")
def test_temperature_zero_takes_the_likeliest(student: Student) -> None:
    """At temperature 0 the largest logit wins, whatever u says; of equal ones the first."""
    logits = normal(6, 9, seed=5)
    logits[0, 3] = logits[0, 7] = 9
    logits[1, :5] = -math.inf
    logits[2] = 4
    logits[3] = -3
    u = torch.tensor([0.0, 0.999, 0.5, 0.7, 0.1, 0.9])
    for temperature in (0, 0.0):
        ids = drawn(student, logits, u, temperature)
        assert_close(ids, logits.argmax(-1), claim=f"at temperature {temperature}", name="the ids")


@pytest.mark.exercise("sample", weight=2)
def test_top_k_leaves_exactly_k(student: Student) -> None:
    """Only the k tokens of the largest logits can be drawn, and their probabilities sum to 1 again."""
    logits = normal(9, seed=6)
    for k in (1, 3, 8):
        kept = logits.topk(k).indices
        expected = torch.zeros(9).scatter(0, kept, logits[kept].softmax(-1))
        found = shares(student, logits, top_k=k)
        assert int((found > 0).sum()) == k, f"With top_k = {k}, {int((found > 0).sum())} different tokens are drawn."
        assert_close(found, expected, atol=1e-3, rtol=0, claim=f"top_k = {k}", name="the shares of the draws")
    found = shares(student, logits, 3.0, 4)
    kept = logits.topk(4).indices
    expected = torch.zeros(9).scatter(0, kept, (logits[kept] / 3).softmax(-1))
    assert_close(found, expected, atol=1e-3, rtol=0, claim="temperature 3 and top_k = 4", name="the shares")


@pytest.mark.exercise("sample", weight=0.5)
def test_a_top_k_beyond_the_vocabulary_leaves_all(student: Student) -> None:
    """Where top_k is as large as the vocabulary, or larger, nothing is left out."""
    logits = normal(5, seed=7)
    for k in (5, 6, 50):
        found = shares(student, logits, top_k=k)
        assert_close(found, logits.softmax(-1), atol=1e-3, rtol=0, claim=f"top_k = {k} of 5", name="the shares")


@pytest.mark.exercise("sample", weight=2)
def test_every_row_has_its_own_logits_and_its_own_u(student: Student) -> None:
    """A row is drawn from its own probabilities, with its own u, and its own k largest: as if it were alone."""
    logits = 2 * normal(7, 5, seed=8) + 8 * normal(7, 1, seed=9)  # the rows differ in height too
    u = torch.tensor([0.03, 0.95, 0.4, 0.61, 0.22, 0.8, 0.5])
    cases: list[dict[str, Any]] = [{}, {"top_k": 2}, {"temperature": 0.7}]
    for named in cases:
        kept = logits.topk(named.get("top_k", 5)).values[:, -1:]
        scores = logits.double().masked_fill(logits < kept, -math.inf) / named.get("temperature", 1)
        expected = (scores.softmax(-1).cumsum(-1) <= u[:, None]).sum(-1)
        assert_close(drawn(student, logits, u, **named), expected, claim=f"7 rows, {named or 'as is'}", name="the ids")


@pytest.mark.exercise("sample")
def test_a_token_of_probability_zero_is_never_drawn(student: Student) -> None:
    """A logit of −∞ is never drawn: not by u = 0, and not by the largest u below 1."""
    logits = torch.tensor([[-math.inf, 0.3, -math.inf, 1.2, -math.inf]]).expand(2, 5)
    u = torch.tensor([0.0, 1 - 2**-24])
    for named in ({}, {"temperature": 2.0}, {"top_k": 2}):
        ids = drawn(student, logits, u, **named)
        claim = f"{named or 'as is'}, with −∞ for the tokens 0, 2 and 4"
        assert_close(ids, torch.tensor([1, 3]), claim=f"u of 0 and just below 1, {claim}", name="the ids")


@pytest.mark.exercise("sample")
def test_a_large_vocabulary_leaves_no_gap_at_the_end(student: Student) -> None:
    """With 50,000 tokens the probabilities still add up: u just below 1 finds the last token that can be drawn."""
    n = 50_000
    logits = torch.zeros(3, n)
    logits[1, -10:] = -math.inf
    logits[2] = normal(n, seed=10)
    logits[2, 40_000:] = -math.inf
    ids = drawn(student, logits, torch.full((3,), 1 - 2**-24))
    expected = torch.tensor([n - 1, n - 11, 39_999])
    ends = logits[2].double().softmax(-1).cumsum(-1)
    expected[2] = int((ends <= 1 - 2**-24).sum())
    assert_close(ids, expected, claim="u just below 1, 50,000 tokens", name="the ids")
    middle = drawn(student, logits[:1], torch.tensor([0.70001]))
    assert abs(middle.item() - 0.70001 * n) <= 1, "With 50,000 equal tokens, the token of a u in the middle is wrong."


@pytest.mark.exercise("sample")
def test_large_logits_do_not_overflow(student: Student) -> None:
    """Logits of ±10,000 still give probabilities: only their differences count."""
    for shift in (1e4, -1e4):
        logits = torch.tensor([0.0, 1, 2, -1]) + shift
        expected = torch.tensor([0.0, 1, 2, -1]).softmax(-1)
        found = shares(student, logits)
        assert_close(found, expected, atol=2e-3, rtol=0, claim=f"logits around {shift:g}", name="the shares")
    ids = drawn(student, torch.tensor([[1e4, -1e4, 0]]).expand(3, 3), torch.tensor([0.0, 0.5, 0.99]))
    assert bool((ids == 0).all()), "Logits of 10,000, −10,000 and 0 do not always give the first token."


@pytest.mark.exercise("sample")
def test_bfloat16_logits_are_not_added_up_in_bfloat16(student: Student) -> None:
    """Logits may be bfloat16, and float64; the probabilities are computed in float64."""
    for dtype in (torch.bfloat16, torch.float64):
        logits = normal(100, seed=11).to(dtype)
        found = shares(student, logits)
        expected = logits.double().softmax(-1).float()
        assert_close(found, expected, atol=1e-3, rtol=0, claim=f"100 logits in {str(dtype)[6:]}", name="the shares")
        logits = torch.tensor([7, 6.5, 5]).to(dtype)
        expected, claim = (logits.double() / 0.7).softmax(-1).float(), f"temperature 0.7, in {str(dtype)[6:]}"
        assert_close(shares(student, logits, 0.7), expected, atol=1e-3, rtol=0, claim=claim, name="the shares")


@pytest.mark.exercise("sample", weight=0.5)
def test_the_logits_are_left_as_they_were(student: Student) -> None:
    """logits and u belong to the caller: an operation that ends in _ changes them."""
    logits, u = normal(3, 7, seed=12), torch.tensor([0.2, 0.6, 0.9])
    kept, kept_u = student.put(logits), student.put(u)
    expected = (logits.double().softmax(-1).cumsum(-1) <= u[:, None]).sum(-1)
    assert_close(tensor(student.sample(kept, kept_u), shape=(3,)).long(), expected, name="the ids")
    student.sample(kept, kept_u, temperature=0.5, top_k=2)
    assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="logits")
    assert_close(kept_u.get(), u, atol=0, rtol=0, claim="after the call", name="u")


# -- generate -------------------------------------------------------------------------------------------------------


class Model:
    """What `generate` calls. Its logits depend on all that it has read, in order; it notes what it was given."""

    def __init__(self, vocabulary: int = 11, seed: int = 0) -> None:
        self.embedding, self.read_out = 2 * normal(vocabulary, 8, seed=seed), 2 * normal(8, vocabulary, seed=seed + 1)
        self.mix = torch.linalg.qr(normal(8, 8, seed=seed + 2))[0]
        self.past: dict[object, Tensor] = {}  # by cache
        self.fed: list[Tensor] = []
        self.caches: list[object] = []

    def logits(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits for every position, and the state after the last."""
        state = torch.zeros(len(ids), 8) if state is None else state
        states = []
        for t in range(ids.shape[1]):
            state = (state @ self.mix + self.embedding[ids[:, t]]).tanh()
            states.append(state)
        return torch.stack(states, 1) @ self.read_out, state

    def __call__(self, *given: Any) -> Tensor:
        if len(given) != 2:
            raise TypeError(f"the model is called as model(ids, cache), with two arguments, not {len(given)}")
        ids, cache = given
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2 or not ids.numel():
            raise TypeError("the model takes ids, int64 of shape (batch, n), with n at least 1")
        if ids.min() < 0 or ids.max() >= len(self.embedding):
            raise ValueError("the model was given an id that is none of its vocabulary's")
        key = cache if isinstance(cache, int | str) else None
        state = self.past.get(key)
        if state is not None and len(state) != len(ids):
            raise ValueError(f"the model reads {len(state)} sequences, and was given {len(ids)}")
        self.fed.append(ids)
        self.caches.append(cache)
        logits, self.past[key] = self.logits(ids, state)
        return logits

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(ids.shape) for ids in self.fed]

    def greedy(self, prompt: Tensor, n_new: int) -> Tensor:
        """The likeliest tokens, found by reading everything again for each of them."""
        ids = prompt
        for _ in range(n_new):
            ids = torch.cat([ids, self.logits(ids)[0][:, -1:].argmax(-1)], 1)
        return ids


def prompts(batch: int, n: int, seed: int = 0, vocabulary: int = 11) -> Tensor:
    return torch.randint(vocabulary, (batch, n), generator=torch.Generator().manual_seed(seed))


def written(found: Any, prompt: Tensor, m: int | None = None, claim: str = "") -> Tensor:
    """What was written behind the prompt."""
    width = None if m is None else prompt.shape[1] + m
    ids = tensor(found, name="the result")
    assert ids.dim() == 2, f"The result should have shape (batch, n + m), not {tuple(ids.shape)}."
    tensor(ids, shape=(len(prompt), ids.shape[1] if width is None else width), name=f"{claim or 'the result'}")
    return ids[:, prompt.shape[1] :].long()


@pytest.mark.exercise("generate")
def test_the_prompt_stands_before_what_is_written(student: Student) -> None:
    """The result is int64 and begins with the prompt, unchanged; n_new columns follow."""
    for batch, n, n_new in ((2, 5, 4), (1, 1, 1), (3, 2, 7)):
        model, prompt = Model(), prompts(batch, n)
        ids = tensor(student.generate(model, prompt, n_new, "c"), shape=(batch, n + n_new), dtype=torch.int64)
        assert_close(ids[:, :n], prompt, name="the prompt in the result")
        expected = model.greedy(prompt, 1)[:, n]
        assert_close(ids[:, n], expected, name="the first new token")


@pytest.mark.exercise("generate", weight=2)
def test_the_tokens_are_those_of_reading_everything_again(student: Student) -> None:
    """With the cache, the likeliest tokens are those that the model gives when it reads the whole text each time."""
    for seed, (batch, n, n_new) in enumerate(((2, 4, 9), (1, 7, 5), (3, 1, 6))):
        model, prompt = Model(seed=seed), prompts(batch, n, seed)
        found = written(student.generate(model, prompt, n_new, "c"), prompt, n_new)
        assert_close(found, model.greedy(prompt, n_new)[:, n:], name="the new tokens")


@pytest.mark.exercise("generate", weight=3)
def test_the_prompt_is_read_once_and_then_one_token_a_step(student: Student) -> None:
    """The model reads the prompt in one call, then in each step only the token that was just written."""
    for batch, n, n_new in ((2, 6, 5), (3, 1, 4), (1, 9, 2)):
        model, prompt = Model(), prompts(batch, n, seed=n)
        ids = tensor(student.generate(model, prompt, n_new, "c"), shape=(batch, n + n_new)).long()
        assert model.shapes[:1] == [(batch, n)], f"The first call reads {model.shapes[:1]}, the prompt is {(batch, n)}."
        steps = model.shapes[1 : n_new or None]
        assert len(steps) >= n_new - 1, f"For {n_new} tokens the model is called {len(model.shapes)} times."
        assert set(steps) <= {(batch, 1)}, f"After the prompt the model reads chunks of {sorted(set(steps))}."
        read = torch.cat(model.fed, 1)[:, : n + n_new - 1]
        assert_close(read, ids[:, :-1], claim=f"{n} tokens of prompt, {n_new} new", name="what the model read")


@pytest.mark.exercise("generate")
def test_the_last_token_is_not_read(student: Student) -> None:
    """Nobody asks what comes after the last token: n + n_new − 1 tokens a row are read in all."""
    for n, n_new in ((5, 4), (3, 1)):
        model, prompt = Model(), prompts(2, n)
        written(student.generate(model, prompt, n_new, "c"), prompt, n_new)
        read = sum(ids.shape[1] for ids in model.fed)
        assert read == n + n_new - 1, f"For a prompt of {n} and {n_new} new tokens, {read} tokens a row were read."


@pytest.mark.exercise("generate", weight=2)
def test_the_prompt_may_be_read_in_chunks(student: Student) -> None:
    """With chunk=c the prompt is read c tokens at a time, the rest last; the tokens are the same."""
    prompt = prompts(2, 7)
    for chunk, sizes in ((3, [3, 3, 1]), (1, [1] * 7), (7, [7]), (5, [5, 2]), (100, [7])):
        model = Model()
        found = written(student.generate(model, prompt, 3, "c", chunk=chunk), prompt, 3)
        read = [shape[1] for shape in model.shapes[: len(sizes)]]
        assert read == sizes, f"With chunk={chunk} a prompt of 7 is read in chunks of {read}."
        assert_close(torch.cat(model.fed, 1)[:, :7], prompt, claim=f"chunk={chunk}", name="what the model read first")
        assert_close(found, model.greedy(prompt, 3)[:, 7:], claim=f"chunk={chunk}", name="the new tokens")


@pytest.mark.exercise("generate")
def test_the_model_gets_the_same_cache_each_time(student: Student) -> None:
    """The cache is handed on as it came, in every call, and nothing else takes its place."""
    for cache in ("mine", 7, 0, None):
        model, prompt = Model(), prompts(2, 4)
        written(student.generate(model, prompt, 3, cache, chunk=3), prompt, 3)
        assert len(model.caches) > 2, f"The model was called {len(model.caches)} times."
        assert all(got == cache for got in model.caches), "In some call the model got another cache than it was given."


@pytest.mark.exercise("generate")
def test_a_conversation_goes_on_where_the_cache_stopped(student: Student) -> None:
    """With a cache that holds a text already, generate reads only its prompt; another cache begins anew."""
    model, text = Model(), prompts(2, 9)
    before, prompt = text[:, :5], text[:, 5:]
    model(before, "long")
    found = written(student.generate(model, prompt, 4, "long"), prompt, 4)
    assert_close(found, model.greedy(text, 4)[:, 9:], claim="after a text in the cache", name="the new tokens")
    for cache in ("new", "newer"):
        found = written(student.generate(model, prompt, 4, cache), prompt, 4)
        assert_close(found, model.greedy(prompt, 4)[:, 4:], claim="with a new cache", name="the new tokens")


class Choose:
    """What `generate` may call to choose: writes what a script says, and notes the logits it was given."""

    def __init__(self, *script: Sequence[int]) -> None:
        self.script = torch.tensor(script)
        self.seen: list[Tensor] = []

    def __call__(self, *given: Any) -> Tensor:
        if len(given) != 1 or not isinstance(given[0], Tensor) or given[0].dim() != 2:
            raise TypeError("choose takes one argument, the logits of the last position, (batch, vocabulary)")
        self.seen.append(given[0].detach())
        return self.script[:, min(len(self.seen), self.script.shape[1]) - 1]


SCRIPT = ((3, 1, 4, 1, 5), (2, 7, 1, 8, 2))


@pytest.mark.exercise("generate")
def test_what_choose_says_is_written_and_read(student: Student) -> None:
    """choose decides what is written; that, and not the likeliest token, is what the model reads next."""
    model, choose, prompt = Model(), Choose(*SCRIPT), prompts(2, 4)
    found = written(student.generate(model, prompt, 5, "c", choose=choose), prompt, 5)
    assert_close(found, torch.tensor(SCRIPT), claim="where choose follows a script", name="the new tokens")
    read = torch.cat(model.fed, 1)[:, 4:8]
    assert_close(read, torch.tensor(SCRIPT)[:, :4], claim="where choose follows a script", name="what the model read")


@pytest.mark.exercise("generate", weight=2)
def test_choose_gets_the_logits_of_the_last_position(student: Student) -> None:
    """In each step choose sees what the model expects after the whole text so far, once for each new token."""
    for chunk in (None, 2):
        model, choose, prompt = Model(), Choose(*SCRIPT), prompts(2, 5)
        student.generate(model, prompt, 5, "c", choose=choose, chunk=chunk)
        assert len(choose.seen) == 5, f"For 5 new tokens choose is called {len(choose.seen)} times."
        text = torch.cat([prompt, torch.tensor(SCRIPT)], 1)
        for step, logits in enumerate(choose.seen):
            expected = model.logits(text[:, : 5 + step])[0][:, -1]
            assert_close(logits, expected, claim=f"step {step}", name="the logits that choose gets")


@pytest.mark.exercise("generate")
def test_a_row_is_written_as_if_it_were_alone(student: Student) -> None:
    """The rows of a batch do not meet: each gives the same text alone."""
    model, prompt = Model(seed=5), prompts(3, 4, seed=6)
    together = written(student.generate(model, prompt, 6, "c"), prompt, 6)
    assert (together != together[0]).any(), "All rows are alike."
    for row in range(3):
        alone = written(student.generate(Model(seed=5), prompt[row : row + 1], 6, "c"), prompt[row : row + 1], 6)
        assert_close(alone, together[row : row + 1], claim=f"row {row} alone", name="the new tokens")


@pytest.mark.exercise("generate", weight=2)
def test_a_row_that_has_ended_stays_ended(student: Student) -> None:
    """After the end token was written in a row, only that is written there, whatever choose says; others go on."""
    script = ((5, 9, 3, 4, 2, 6), (1, 2, 3, 9, 4, 5), (7, 8, 6, 5, 4, 3))
    model, choose, prompt = Model(), Choose(*script), prompts(3, 2)
    found = written(student.generate(model, prompt, 6, "c", choose=choose, end=9), prompt, 6)
    expected = torch.tensor(((5, 9, 9, 9, 9, 9), (1, 2, 3, 9, 9, 9), (7, 8, 6, 5, 4, 3)))
    assert_close(found, expected, claim="where rows 0 and 1 end", name="the new tokens")
    assert model.shapes[1:] == [(3, 1)] * 5, "While a row goes on, the model does not read one token of every row."
    zero = written(
        student.generate(Model(), prompt[:2], 3, "c", choose=Choose((0, 5, 5), (1, 2, 3)), end=0), prompt[:2]
    )
    assert_close(zero, torch.tensor(((0, 0, 0), (1, 2, 3))), claim="where the end token is 0", name="the new tokens")


@pytest.mark.exercise("generate", weight=2)
def test_generation_stops_when_all_rows_have_ended(student: Student) -> None:
    """As soon as every row has ended nothing more is written, read or chosen."""
    script = ((5, 9, 3, 4, 2, 6), (1, 2, 9, 8, 4, 5))
    model, choose, prompt = Model(), Choose(*script), prompts(2, 4)
    found = written(student.generate(model, prompt, 6, "c", choose=choose, end=9), prompt, 3, "where all end by step 3")
    assert_close(found, torch.tensor(((5, 9, 9), (1, 2, 9))), claim="where both rows end", name="the new tokens")
    assert len(choose.seen) == 3, f"Where all rows end with the third token, choose is called {len(choose.seen)} times."
    assert len(model.fed) == 3, f"Where all rows end with the third token, the model is called {len(model.fed)} times."


@pytest.mark.exercise("generate")
def test_the_end_token_counts_only_where_it_was_written(student: Student) -> None:
    """An end token in the prompt ends nothing; and without end= no token ends a text."""
    prompt = torch.tensor([[9, 3, 9], [4, 9, 9]])
    found = written(student.generate(Model(), prompt, 5, "c", choose=Choose(*SCRIPT), end=9), prompt, 5)
    assert_close(found, torch.tensor(SCRIPT), claim="with end tokens in the prompt", name="the new tokens")
    same_token = torch.tensor(((9, 9, 9), (0, 0, 0)))
    found = written(student.generate(Model(), prompt, 3, "c", choose=Choose(*same_token.tolist())), prompt, 3)
    assert_close(found, same_token, claim="without end=", name="the new tokens")


@pytest.mark.exercise("generate")
def test_no_graph_is_kept(student: Student) -> None:
    """While a text is written the model is called without recording gradients, in prefill and in every step."""
    prompt = prompts(2, 4)
    model = student.Watching()  # a stand-in: it counts on, and notes whether gradients are recorded where it is called
    found = written(student.generate(model, prompt, 4, "c"), prompt, 4)
    assert_close(found, (prompt[:, -1:] + torch.arange(1, 5)) % 11, claim="a model that counts on", name="the tokens")
    recorded = model.recorded
    assert len(recorded) >= 4, f"For 4 new tokens the model is called {len(recorded)} times."
    assert not any(recorded), f"In {sum(recorded)} of {len(recorded)} calls of the model, gradients are recorded."


@pytest.mark.exercise("generate", weight=0.5)
def test_the_prompt_is_left_as_it_was(student: Student) -> None:
    """The prompt belongs to the caller."""
    prompt = prompts(2, 4)
    kept = student.put(prompt)
    ids = tensor(student.generate(Model(), kept, 3, "c"), shape=(2, 7)).long()
    assert_close(ids, Model().greedy(prompt, 3), name="the result")
    assert_close(kept.get(), prompt, claim="after the call", name="the prompt")


# -- a real model ---------------------------------------------------------------------------------------------------

GPT2 = {"vocab_size": 23, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3}


def gpt2_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a tiny GPT-2 by their names in transformers; gains and biases too."""
    d = GPT2["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (GPT2["vocab_size"], d), "wpe.weight": (GPT2["n_positions"], d)}
    for layer in range(GPT2["n_layer"]):
        parts = {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d)}
        parts |= {"ln_2": (d,), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
        for part, shape in parts.items():
            shapes[f"h.{layer}.{part}.weight"], shapes[f"h.{layer}.{part}.bias"] = shape, shape[-1:]
    shapes["ln_f.weight"], shapes["ln_f.bias"] = (d,), (d,)
    return {name: 0.5 * normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def gpt2(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """GPT-2's logits for a whole text, without any cache."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:  # GPT-2 stores them transposed
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["wte.weight"][ids] + weights["wpe.weight"][: ids.shape[1]]
    for i in range(GPT2["n_layer"]):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (GPT2["n_head"], -1)).transpose(1, 2) for part in qkv)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        x = x + linear(heads, f"h.{i}.attn.c_proj")
        hidden = functional.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
        x = x + linear(hidden, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["wte.weight"].T


@pytest.mark.exercise("generate")
def test_it_writes_what_gpt2_writes(student: Student) -> None:
    """With a random GPT-2 behind it, generate writes the tokens that the model itself would."""
    weights = gpt2_weights()
    texts: dict[object, Tensor] = {}

    def model(ids: Tensor, cache: object) -> Tensor:
        text = texts[cache] = torch.cat([texts[cache], ids], 1) if cache in texts else ids
        return gpt2(weights, text)[:, -ids.shape[1] :]

    prompt = prompts(2, 5, vocabulary=GPT2["vocab_size"])
    expected = prompt
    for _ in range(8):
        expected = torch.cat([expected, gpt2(weights, expected)[:, -1:].argmax(-1)], 1)
    for chunk in (None, 2):
        found = written(student.generate(model, prompt, 8, f"{chunk}", chunk=chunk), prompt, 8)
        assert_close(found, expected[:, 5:], claim=f"chunk={chunk}", name="the new tokens")
