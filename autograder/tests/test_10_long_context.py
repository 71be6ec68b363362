"""Hidden tests of chapter 10. Expected values come from definitions written out as loops, from PyTorch's own attention
over a brute-force mask, and from laws; none from the reference.

`window_mask` is shown to be that of transformers' Mistral by tests/test_oracle_10.py.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal


def refusal(call: Callable[[], Any]) -> StudentError | None:
    """The error that a call raises, if it raises one."""
    try:
        call()
    except Unfinished:
        raise
    except StudentError as error:
        return error
    return None


def names(raised: StudentError | None, what: str, *numbers: int) -> None:
    """Assert that this is a ValueError whose sentence names the numbers."""
    assert isinstance(raised, ValueError), (
        f"{what} raises {raised.types[0] if raised else 'nothing'}, and it should raise a ValueError."
    )
    named = {int(number) for number in re.findall(r"-?\d+", str(raised))}
    assert set(numbers) <= named, f"The sentence that {what} raises does not name what was wrong: {raised}"


def window_mask(n: int, window: int) -> Tensor:
    """The definition, pair by pair."""
    return torch.tensor([[i - window < j <= i for j in range(n)] for i in range(n)])


# -- sliding_window_mask --------------------------------------------------------------------------------------------


def band(student: Student, n_q: int, n_k: int, window: int) -> Tensor:
    """The mask as booleans whatever its dtype is, which has a test of its own. A constant earns nothing."""
    name = f"sliding_window_mask({n_q}, {n_k}, {window})"
    mask = tensor(student.sliding_window_mask(n_q, n_k, window), shape=(n_q, n_k), name=name).bool()
    if n_q > 1:
        assert mask.any(), f"{name} allows nothing."
        assert not mask.all(), f"{name} allows everything."
    return mask


@pytest.mark.exercise("sliding_window_mask")
def test_the_mask_has_a_row_a_query_and_a_column_a_key(student: Student) -> None:
    """The result is a tensor of booleans of shape (n_q, n_k), not of numbers."""
    for n_q, n_k, window in ((5, 5, 3), (3, 7, 2), (1, 5, 9)):
        name = f"sliding_window_mask({n_q}, {n_k}, {window})"
        mask = tensor(student.sliding_window_mask(n_q, n_k, window), shape=(n_q, n_k), dtype=torch.bool, name=name)
        assert n_q == 1 or (mask.any() and not mask.all()), f"{name} is the same everywhere."


@pytest.mark.exercise("sliding_window_mask")
def test_no_query_sees_what_comes_after_it(student: Student) -> None:
    """Within the window the mask is causal: the keys after a query are False."""
    for n_q, n_k, window in ((6, 6, 3), (4, 9, 5), (3, 5, 20)):
        future = band(student, n_q, n_k, window)[:, n_k - n_q :].triu(1)
        assert not future.any(), f"In sliding_window_mask({n_q}, {n_k}, {window}) a query may see a later one."


@pytest.mark.exercise("sliding_window_mask")
def test_a_query_sees_itself_and_what_is_just_before_it(student: Student) -> None:
    """Every key from i − W + 1 to i is allowed: the query itself, and window − 1 keys of the past."""
    for n, window in ((9, 4), (8, 2), (7, 1)):
        mask = band(student, n, n, window)
        assert mask[window_mask(n, window)].all(), (
            f"In sliding_window_mask({n}, {n}, {window}) a query may not see something of its window."
        )


@pytest.mark.exercise("sliding_window_mask", weight=2)
def test_a_window_includes_the_query_itself(student: Student) -> None:
    """A query far from the start sees exactly `window` keys, itself included: with a window of 1, itself alone."""
    for n, window in ((9, 1), (12, 4), (10, 7)):
        seen = band(student, n, n, window)[-1].sum().item()
        assert seen == window, f"With a window of {window} the last of {n} queries sees {seen} keys."


@pytest.mark.exercise("sliding_window_mask")
def test_nothing_outside_the_window_is_seen(student: Student) -> None:
    """A key that is `window` or more positions before the query is False."""
    for n, window in ((9, 4), (8, 1), (30, 7)):
        far = torch.ones(n, n, dtype=torch.bool).tril(-window)
        assert not band(student, n, n, window)[far].any(), (
            f"In sliding_window_mask({n}, {n}, {window}) a query sees further back than its window."
        )


@pytest.mark.exercise("sliding_window_mask")
def test_a_window_longer_than_the_text_is_the_causal_mask(student: Student) -> None:
    """Where the window reaches past the beginning, what is left is the plain causal mask."""
    for n, window in ((6, 6), (5, 9), (7, 4096)):
        expected = torch.ones(n, n, dtype=torch.bool).tril()
        assert_close(band(student, n, n, window), expected, name=f"sliding_window_mask({n}, {n}, {window})")


@pytest.mark.exercise("sliding_window_mask", weight=2)
def test_the_masks_of_the_chunks_make_up_the_mask_of_the_whole(student: Student) -> None:
    """The queries are the last of the keys: rows of any chunks, one after the other, are the mask of the whole text."""
    for sizes, window in (((4, 3, 1, 1), 3), ((1, 6), 2), ((2, 2, 5), 5), ((7, 60), 20)):
        n, end, rows = sum(sizes), 0, []
        for n_q in sizes:
            end += n_q
            rows.append(functional.pad(band(student, n_q, end, window), (0, n - end)))
        assert_close(
            torch.cat(rows),
            window_mask(n, window),
            claim=f"chunks of {sizes}, window {window}",
            name="all rows together",
        )


@pytest.mark.exercise("sliding_window_mask")
def test_layers_reach_one_window_further_each(student: Student) -> None:
    """Going through the mask L times leads exactly L·(window − 1) positions back."""
    for window in (2, 4):
        mask = band(student, 20, 20, window).double()
        for layers in (1, 2, 3):
            reached = torch.linalg.matrix_power(mask, layers)[-1].nonzero()
            back = 19 - int(reached.min()) if len(reached) else None
            assert back == layers * (window - 1), f"With a window of {window}, {layers} layers lead {back} back."


@pytest.mark.exercise("sliding_window_mask")
def test_impossible_sizes_are_an_error(student: Student) -> None:
    """Fewer keys than queries, or a window below 1, is a ValueError that names what was wrong."""
    assert refusal(lambda: student.sliding_window_mask(4, 4, 1)) is None, (
        "sliding_window_mask(4, 4, 1) raises an error."
    )
    for n_q, n_k in ((5, 3), (7, 6)):
        what = f"sliding_window_mask({n_q}, {n_k}, 2)"
        names(refusal(partial(student.sliding_window_mask, n_q, n_k, 2)), what, n_q, n_k)
    for window in (0, -3):
        what = f"sliding_window_mask(4, 6, {window})"
        names(refusal(partial(student.sliding_window_mask, 4, 6, window)), what, window)


# -- RollingKVCache -------------------------------------------------------------------------------------------------


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


def read(cache: Any, window: int, sizes: Sequence[int], k: Tensor, v: Tensor, layer: int = 0) -> None:
    """Give the cache a text in chunks of these sizes; each must get the end of the past and itself."""
    start = 0
    for n in sizes:
        end, seen = start + n, slice(max(0, start - window + 1), start + n)
        found = cache.update(layer, k[:, :, start:end], v[:, :, start:end])
        same(found, k[:, :, seen], v[:, :, seen], f"window {window}, {n} new positions after {start}")
        start = end


def buffers(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """The buffers of one layer."""
    found = []
    for name in ("k", "v"):
        held = getattr(cache, name)
        assert isinstance(held, dict), f"cache.{name} should be a dict of buffers, one a layer."
        assert layer in held, f"cache.{name} holds nothing for layer {layer}, which was updated."
        found.append(tensor(held[layer], name=f"cache.{name}[{layer}]"))
    return found[0], found[1]


def length(cache: Any) -> int:
    found = cache.length
    assert type(found) is int, "length should be an int: is it a property?"
    return found


@pytest.mark.exercise("RollingKVCache", weight=0.5)
def test_the_first_chunk_comes_back_whole(student: Student) -> None:
    """In an empty cache update returns the chunk, first k, then v, also where it is longer than the window."""
    for n, window in ((3, 5), (1, 4), (9, 4)):
        k, v = keys_and_values(n, seed=n)
        same(student.RollingKVCache(window).update(0, k, v), k, v, f"a first chunk of {n}, window {window}")


@pytest.mark.exercise("RollingKVCache", weight=2)
def test_a_token_gets_the_end_of_the_past_and_itself(student: Student) -> None:
    """Token by token: the last window − 1 positions of the past, oldest first, then the new one."""
    for window in (4, 3):
        k, v = keys_and_values(14, seed=window)
        read(student.RollingKVCache(window), window, [1] * 14, k, v)


@pytest.mark.exercise("RollingKVCache", weight=3)
def test_a_chunk_gets_the_end_of_the_past_and_itself(student: Student) -> None:
    """However long the chunks are: the last window − 1 positions of the past, oldest first, then the whole chunk."""
    for window, sizes in ((4, (2, 3, 1, 4, 2)), (5, (1, 4, 4, 3)), (3, (2, 2, 2, 2, 2)), (6, (3, 1, 1, 1, 5, 2))):
        k, v = keys_and_values(sum(sizes), seed=window)
        read(student.RollingKVCache(window), window, sizes, k, v)


@pytest.mark.exercise("RollingKVCache", weight=2)
def test_a_chunk_may_be_longer_than_the_window(student: Student) -> None:
    """A chunk that is longer than the window, first or later, comes back whole behind the end of the past."""
    for window, sizes in ((4, (9, 1, 1)), (3, (2, 8, 1, 7, 1)), (5, (1, 11, 2, 6)), (4, (4, 5, 8, 1))):
        k, v = keys_and_values(sum(sizes), seed=window)
        read(student.RollingKVCache(window), window, sizes, k, v)


@pytest.mark.exercise("RollingKVCache")
def test_nothing_is_wrong_far_beyond_the_window(student: Student) -> None:
    """Hundreds of times round the buffer, every chunk still gets the right positions."""
    sizes = (700, 1, 1, 5, 293, 1, 3, 1)
    k, v = keys_and_values(sum(sizes), batch=1, heads=1, d=1, d_v=1)
    read(student.RollingKVCache(3), 3, sizes, k, v)


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Pairs of channels turned by angles that grow with the position."""
    angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@pytest.mark.exercise("RollingKVCache", weight=2)
def test_attention_in_chunks_equals_a_brute_force_mask(student: Student) -> None:
    """Keys turned by the positions that `length` says, read in chunks: the outputs are those of the whole text."""
    for window, sizes in ((4, (11, 1, 1, 6, 3, 1)), (6, (2, 3, 20, 1, 1))):
        n = sum(sizes)
        q, (k, v) = normal(2, 3, n, 4, seed=1), keys_and_values(n, seed=2)
        everywhere = torch.arange(float(n))
        whole = functional.scaled_dot_product_attention(
            rotated(q, everywhere), rotated(k, everywhere), v, attn_mask=window_mask(n, window)
        )
        cache, start, outputs = student.RollingKVCache(window), 0, []
        for size in sizes:
            part = slice(start, start + size)
            positions = length(cache) + torch.arange(float(size))
            seen_k, seen_v = two(cache.update(0, rotated(k[:, :, part], positions), v[:, :, part]))
            n_k = size + min(start, window - 1)
            tensor(seen_k, shape=(2, 3, n_k, 4), name="k")
            tensor(seen_v, shape=(2, 3, n_k, 4), name="v")
            mask = torch.tensor(
                [[n_k - size + i - window < j <= n_k - size + i for j in range(n_k)] for i in range(size)]
            )
            turned = rotated(q[:, :, part], positions)
            outputs.append(functional.scaled_dot_product_attention(turned, seen_k, seen_v, attn_mask=mask))
            start += size
        assert_close(torch.cat(outputs, 2), whole, claim=f"chunks of {sizes}, window {window}", name="the outputs")


@pytest.mark.exercise("RollingKVCache", weight=2)
def test_length_counts_every_position_that_was_seen(student: Student) -> None:
    """length goes on past the window, counts each position once whatever the number of layers, and begins at 0."""
    cache, total = student.RollingKVCache(3), 0
    assert length(student.RollingKVCache(3)) == 0, "An empty cache has not seen anything, and its length is not 0."
    upper = student.RollingKVCache(3)  # of a model whose layer 0 has no window, and another kind of cache
    for step, n in enumerate((2, 1, 1, 7, 1)):
        for layer in (2, 0, 1)[:: (-1) ** step]:
            cache.update(layer, *keys_and_values(n, seed=step))
        for layer in (3, 1):
            upper.update(layer, *keys_and_values(n, seed=step))
        total += n
        assert length(cache) == total, f"After {step + 1} chunks in 3 layers, length counts {length(cache)} positions."
        assert length(upper) == total, f"With layers 1 and 3 only, length counts {length(upper)} of {total} positions."


@pytest.mark.exercise("RollingKVCache", weight=2)
def test_each_layer_has_its_own_keys_and_values(student: Student) -> None:
    """What one layer adds, no other gets back; layers may come in any order, and each has its own place in the ring."""
    window, sizes = 4, (3, 1, 6, 1, 1)
    cache = student.RollingKVCache(window)
    layers = {layer: keys_and_values(sum(sizes), seed=layer) for layer in (2, 0, 1)}
    start = 0
    for n in sizes:
        end, seen = start + n, slice(max(0, start - window + 1), start + n)
        for layer in list(layers)[:: -1 if start % 2 else 1]:
            k, v = layers[layer]
            found = cache.update(layer, k[:, :, start:end], v[:, :, start:end])
            same(found, k[:, :, seen], v[:, :, seen], f"layer {layer}, {n} new positions after {start}")
        start = end


@pytest.mark.exercise("RollingKVCache")
def test_two_caches_know_nothing_of_each_other(student: Student) -> None:
    """A new cache is empty, whatever was put into another one before."""
    k, v = keys_and_values(6, seed=1)
    k2, v2 = keys_and_values(3, seed=2)
    one, other = student.RollingKVCache(4), student.RollingKVCache(4)
    read(one, 4, (3, 3), k, v)
    read(other, 4, (2, 1), k2, v2)
    assert length(other) == 3, f"A second cache that has seen 3 positions has length {length(other)}."
    same(student.RollingKVCache(4).update(0, k2, v2), k2, v2, "a cache made after that")


@pytest.mark.exercise("RollingKVCache", weight=2)
def test_a_position_lies_in_its_slot(student: Student) -> None:
    """Position p is in slot p % window of cache.k[layer] and cache.v[layer], after tokens and after long chunks."""
    for window, sizes in ((4, (2, 1, 1, 1, 1, 1)), (3, (8, 1, 2)), (5, (3, 14, 1, 1))):
        n = sum(sizes)
        k, v = keys_and_values(n, seed=window)
        cache, start = student.RollingKVCache(window), 0
        for size in sizes:
            cache.update(1, k[:, :, start : start + size], v[:, :, start : start + size])
            start += size
            held = range(max(0, start - window), start)
            slots = [p % window for p in held]
            for found, given, name in zip(buffers(cache, 1), (k, v), ("cache.k[1]", "cache.v[1]"), strict=True):
                tensor(found, shape=(2, 3, window, 4), name=name)
                expected = given[:, :, list(held)]
                claim = f"window {window}, after {start} positions"
                assert_close(found[:, :, slots], expected, atol=0, rtol=0, claim=claim, name=f"what {name} holds")


@pytest.mark.exercise("RollingKVCache")
def test_the_buffers_have_a_fixed_size(student: Student) -> None:
    """A buffer has `window` slots from its first update on, zeros where nothing was written, and never more."""
    cache = student.RollingKVCache(5)
    for name in ("k", "v"):
        assert getattr(cache, name) == {}, f"cache.{name} of an empty cache should be an empty dict."
    k, v = keys_and_values(2, d=3, d_v=6)
    cache.update(3, k, v)
    for found, given, name in zip(buffers(cache, 3), (k, v), ("cache.k[3]", "cache.v[3]"), strict=True):
        expected = functional.pad(given, (0, 0, 0, 3))
        assert_close(found, expected, atol=0, rtol=0, claim="after 2 of 5 positions", name=name)
    for n in (1, 40, 1, 7):
        cache.update(3, *keys_and_values(n, d=3, d_v=6))
        for found, d, name in zip(buffers(cache, 3), (3, 6), ("cache.k[3]", "cache.v[3]"), strict=True):
            tensor(found, shape=(2, 3, 5, d), name=name)
            assert found.any(-1).all() or length(cache) < 5, f"{name} has an empty slot after the ring is full."


@pytest.mark.exercise("RollingKVCache")
def test_a_window_of_one_sees_no_past(student: Student) -> None:
    """With a window of 1 only the chunk itself comes back, and one slot is kept."""
    k, v = keys_and_values(7, seed=1)
    cache = student.RollingKVCache(1)
    read(cache, 1, (1, 1, 3, 2), k, v)
    for found, given, name in zip(buffers(cache, 0), (k, v), ("cache.k[0]", "cache.v[0]"), strict=True):
        assert_close(found, given[:, :, -1:], atol=0, rtol=0, name=name)


@pytest.mark.exercise("RollingKVCache")
def test_sizes_that_are_equal_are_not_confused(student: Student) -> None:
    """Only the dimension of the positions rolls, also where batch, heads, window and width are the same number."""
    k, v = keys_and_values(9, batch=3, heads=3, d=3, d_v=3, seed=3)
    read(student.RollingKVCache(3), 3, (3, 1, 3, 2), k, v)


@pytest.mark.exercise("RollingKVCache")
def test_keys_and_values_may_differ_in_width_and_keep_their_dtype(student: Student) -> None:
    """d_v is not always d_head; bfloat16 and float64 come back, and are held, as they are."""
    for dtype in (torch.bfloat16, torch.float64):
        k, v = (part.to(dtype) for part in keys_and_values(8, d=3, d_v=6))
        cache = student.RollingKVCache(3)
        read(cache, 3, (2, 1, 4, 1), k, v)
        for found, name in zip(buffers(cache, 0), ("cache.k[0]", "cache.v[0]"), strict=True):
            tensor(found, dtype=dtype, name=name)


@pytest.mark.exercise("RollingKVCache")
def test_the_caller_may_overwrite_its_tensors(student: Student) -> None:
    """The cache keeps what came in, also when the caller's tensors hold something else after the call."""
    for window, sizes in ((4, (4, 1)), (4, (3, 1)), (3, (5, 2))):
        k, v = keys_and_values(sum(sizes) + 1)
        cache, start = student.RollingKVCache(window), 0
        for size in sizes:
            part = slice(start, start + size)
            lent_k, lent_v = student.put(k[:, :, part].clone()), student.put(v[:, :, part].clone())
            cache.update(0, lent_k, lent_v)
            lent_k.fill_(7)
            lent_v.fill_(8)
            start += size
        seen = slice(max(0, start - window + 1), start + 1)
        found = cache.update(0, k[:, :, start:], v[:, :, start:])
        same(found, k[:, :, seen], v[:, :, seen], f"window {window}, after the caller overwrote its tensors")


@pytest.mark.exercise("RollingKVCache", weight=0.5)
def test_the_cache_leaves_its_inputs_as_they_were(student: Student) -> None:
    """k and v belong to the caller: an operation that ends in _ changes them."""
    cache = student.RollingKVCache(3)
    for step, n in enumerate((2, 5, 1)):
        k, v = keys_and_values(n, seed=step)
        lent_k, lent_v = student.put(k), student.put(v)
        found, _ = two(cache.update(0, lent_k, lent_v))
        tensor(found, shape=(2, 3, n + (0, 2, 2)[step], 4), name=f"k after chunk {step + 1}")
        assert_close(lent_k.get(), k, atol=0, rtol=0, claim="after the call", name="k")
        assert_close(lent_v.get(), v, atol=0, rtol=0, claim="after the call", name="v")


# -- block_sparse_mask ----------------------------------------------------------------------------------------------


def draw(n: int, block: int, n_random: int, seed: int) -> Tensor:
    blocks = -(-n // block)
    return torch.randint(blocks, (blocks, n_random), generator=torch.Generator().manual_seed(seed))


def by_definition(n: int, block: int, n_local: int, n_global: int, random: Tensor) -> Tensor:
    """The definition, pair of blocks by pair of blocks, and position by position."""
    rows, blocks = random.tolist(), len(random)
    allowed = [
        [abs(a - b) <= n_local or min(a, b) < n_global or b in rows[a] for b in range(blocks)] for a in range(blocks)
    ]
    return torch.tensor([[allowed[i // block][j // block] for j in range(n)] for i in range(n)])


def tiles(student: Student, n: int, block: int, n_local: int, n_global: int, random: Tensor) -> Tensor:
    """The mask as booleans whatever its dtype is, which has a test of its own. A constant earns nothing."""
    expected = by_definition(n, block, n_local, n_global, random)
    mask = tensor(student.block_sparse_mask(n, block, n_local, n_global, random), shape=(n, n), name="the mask").bool()
    assert mask.any(), "The mask allows nothing."
    assert expected.all() or not mask.all(), "The mask allows everything."
    return mask


def told(n: int, block: int, n_local: int, n_global: int, random: Tensor) -> str:
    return f"{n} positions in blocks of {block}, n_local {n_local}, n_global {n_global}, {random.shape[1]} random"


@pytest.mark.exercise("block_sparse_mask", weight=0.5)
def test_the_mask_is_a_square_of_booleans(student: Student) -> None:
    """The result is a tensor of booleans of shape (n, n), with a row for each position and not for each block."""
    for n, block in ((8, 2), (9, 4)):
        mask = student.block_sparse_mask(n, block, 0, 0, draw(n, block, 1, 0))
        tensor(mask, shape=(n, n), dtype=torch.bool, name="the mask")
        assert mask.any() != mask.all(), "The mask is the same everywhere, so it decides nothing."


@pytest.mark.exercise("block_sparse_mask", weight=2)
def test_neighbouring_blocks_see_each_other(student: Student) -> None:
    """Blocks that are at most n_local apart see each other whole, in both directions; n_local = 0 is the own block."""
    for n, block, n_local in ((12, 3, 1), (12, 2, 0), (15, 3, 2)):
        arguments = (n, block, n_local, 0, draw(n, block, 0, 0))
        assert_close(tiles(student, *arguments), by_definition(*arguments), claim=told(*arguments), name="the mask")


@pytest.mark.exercise("block_sparse_mask")
def test_global_blocks_see_all(student: Student) -> None:
    """The first n_global blocks may attend to every position."""
    for n, block, n_global in ((12, 3, 1), (14, 2, 3)):
        mask = tiles(student, n, block, 0, n_global, draw(n, block, 0, 0))
        assert mask[: n_global * block].all(), "A position of a global block may not attend to some position."


@pytest.mark.exercise("block_sparse_mask")
def test_global_blocks_are_seen_by_all(student: Student) -> None:
    """Every position may attend to the first n_global blocks, and to no further one because of them."""
    for n, block, n_global in ((12, 3, 1), (14, 2, 3)):
        mask = tiles(student, n, block, 0, n_global, draw(n, block, 0, 0))
        assert mask[:, : n_global * block].all(), "Some position may not attend to a global block."
        rest = mask[n_global * block :, n_global * block :]
        assert_close(
            rest,
            by_definition(len(rest), block, 0, 0, draw(len(rest), block, 0, 0)),
            name="the mask without its global blocks",
        )


@pytest.mark.exercise("block_sparse_mask", weight=2)
def test_random_links_lead_from_the_row_to_what_it_names(student: Student) -> None:
    """Block a sees the blocks in row a of `random`; that does not let them see it."""
    random = torch.tensor([[4, 2], [0, 0], [5, 3], [3, 1], [0, 5], [2, 2]])
    for block in (1, 3):
        arguments = (6 * block, block, 0, 0, random)
        assert_close(tiles(student, *arguments), by_definition(*arguments), claim=told(*arguments), name="the mask")


@pytest.mark.exercise("block_sparse_mask", weight=2)
def test_the_three_kinds_together(student: Student) -> None:
    """Local, global and random blocks add up: a pair is allowed if at least one of them allows it."""
    for seed, (n, block, n_local, n_global, n_random) in enumerate(
        ((40, 4, 1, 1, 2), (36, 2, 0, 2, 1), (50, 5, 2, 1, 1), (33, 3, 1, 0, 3), (64, 8, 0, 1, 1))
    ):
        arguments = (n, block, n_local, n_global, draw(n, block, n_random, seed))
        assert_close(tiles(student, *arguments), by_definition(*arguments), claim=told(*arguments), name="the mask")


@pytest.mark.exercise("block_sparse_mask")
def test_the_last_block_may_be_shorter(student: Student) -> None:
    """Where `block` does not divide n, the last block has what is left."""
    for seed, (n, block) in enumerate(((11, 4), (13, 3), (7, 6))):
        arguments = (n, block, 0, 0, draw(n, block, 1, seed))
        assert_close(tiles(student, *arguments), by_definition(*arguments), claim=told(*arguments), name="the mask")
    arguments = (25, 4, 1, 1, draw(25, 4, 1, 7))
    assert_close(tiles(student, *arguments), by_definition(*arguments), claim=told(*arguments), name="the mask")


@pytest.mark.exercise("block_sparse_mask")
def test_numbers_larger_than_the_text_are_allowed(student: Student) -> None:
    """n_local and n_global may be more than there are blocks, and a block may be longer than the text."""
    tiles(student, 12, 3, 0, 0, draw(12, 3, 0, 0))  # this one does not allow everything
    for arguments in ((9, 3, 7, 0, draw(9, 3, 0, 0)), (9, 3, 0, 8, draw(9, 3, 0, 0)), (5, 8, 0, 0, draw(5, 8, 0, 0))):
        assert tiles(student, *arguments).all(), f"{told(*arguments)}: everything should be allowed."


@pytest.mark.exercise("block_sparse_mask")
def test_one_global_block_brings_all_within_two_steps(student: Student) -> None:
    """With a global block two steps lead from anywhere to anywhere; with a local band alone they do not."""
    for n_global, together in ((1, True), (0, False)):
        mask = tiles(student, 24, 2, 1, n_global, draw(24, 2, 0, 0)).double()
        assert bool((mask @ mask > 0).all()) == together, f"With {n_global} global blocks, two steps " + (
            "do not lead everywhere." if together else "lead everywhere, through a local band alone."
        )


@pytest.mark.exercise("block_sparse_mask", weight=0.5)
def test_the_draw_decides_and_is_left_as_it_was(student: Student) -> None:
    """The same draw gives the same mask, another one another mask, and `random` belongs to the caller."""
    one, other = draw(30, 3, 2, 1), draw(30, 3, 2, 2)
    kept = student.put(one)
    first = tensor(student.block_sparse_mask(30, 3, 0, 0, kept), shape=(30, 30), name="the mask")
    assert_close(kept.get(), one, claim="after the call", name="random")
    assert_close(student.block_sparse_mask(30, 3, 0, 0, one), first, claim="called twice", name="the mask")
    second = tensor(student.block_sparse_mask(30, 3, 0, 0, other), shape=(30, 30), name="the mask")
    assert (first != second).any(), "Another draw gives the same mask."


# -- topk_attention -------------------------------------------------------------------------------------------------


def best_keys(q: Tensor, k: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    """For each query, by sorting a list: True at its best keys. The lower index wins a tie."""
    scores = (q.double() @ k.double().mT).flatten(0, -3) if q.dim() > 2 else (q.double() @ k.double().mT)[None]
    shape = (*q.shape[:-1], k.shape[-2])
    allowed = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    rows = zip(scores.flatten(0, 1).tolist(), allowed.reshape(-1, shape[-1]).tolist(), strict=True)
    chosen = []
    for row, may in rows:
        order = sorted((j for j in range(len(row)) if may[j]), key=lambda j: (-row[j], j))[:top_k]
        chosen.append([j in order for j in range(len(row))])
    return torch.tensor(chosen).reshape(shape)


def by_sorting(q: Tensor, k: Tensor, v: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    chosen = best_keys(q.detach(), k.detach(), top_k, mask)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=chosen)
    return out.masked_fill(~chosen.any(-1, keepdim=True), 0)


def some_mask(*shape: int, seed: int, share: float = 0.6) -> Tensor:
    """A random mask in which every row may attend to something."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    mask[..., 0] |= ~mask.any(-1)
    return mask


def weights_of(student: Student, q: Tensor, k: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    """The weights: with the identity as values, they are the output."""
    values = torch.eye(k.shape[-2]).expand(*k.shape[:-1], k.shape[-2])
    return tensor(student.topk_attention(q, k, values, top_k, mask), shape=(*q.shape[:-1], k.shape[-2])).detach()


@pytest.mark.exercise("topk_attention", weight=3)
def test_each_query_attends_to_its_best_keys(student: Student) -> None:
    """The softmax of q·k/√d_head runs over the top_k keys with the highest scores, for each query by itself."""
    for seed, (lead, n_q, n_k, d, d_v, top_k) in enumerate(
        (((2,), 5, 7, 4, 4, 3), ((2, 3), 4, 9, 5, 2, 2), ((1,), 3, 20, 2, 3, 13), ((3, 1), 7, 7, 3, 6, 4))
    ):
        q, k, v = (
            normal(*lead, n_q, d, seed=seed),
            normal(*lead, n_k, d, seed=10 + seed),
            normal(*lead, n_k, d_v, seed=20 + seed),
        )
        claim = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, top_k {top_k}"
        assert_close(student.topk_attention(q, k, v, top_k), by_sorting(q, k, v, top_k), claim=claim)


@pytest.mark.exercise("topk_attention")
def test_no_more_than_top_k_keys_have_weight(student: Student) -> None:
    """Exactly top_k keys of each query have weight, and their weights sum to 1."""
    q, k = normal(2, 5, 4, seed=1), normal(2, 9, 4, seed=2)
    for top_k in (1, 3, 8):
        weights = weights_of(student, q, k, top_k)
        count = (weights != 0).sum(-1)
        assert bool((count == top_k).all()), f"With top_k = {top_k} a query gives weight to {int(count.max())} keys."
        assert_close(weights.sum(-1), torch.ones(2, 5), name="the sum of a query's weights")


@pytest.mark.exercise("topk_attention")
def test_one_key_is_taken_whole(student: Student) -> None:
    """With top_k = 1 the output is the value of the key with the highest score."""
    q, k, v = normal(2, 3, 6, 4, seed=1), normal(2, 3, 8, 4, seed=2), normal(2, 3, 8, 5, seed=3)
    best = (q @ k.mT).argmax(-1)
    assert_close(student.topk_attention(q, k, v, 1), v.take_along_dim(best[..., None], -2))


@pytest.mark.exercise("topk_attention")
def test_all_keys_are_plain_attention(student: Student) -> None:
    """Where top_k is at least the number of keys nothing is left out, with a mask and without."""
    q, k, v = normal(2, 5, 4, seed=1), normal(2, 6, 4, seed=2), normal(2, 6, 3, seed=3)
    few = tensor(student.topk_attention(q, k, v, 2), shape=(2, 5, 3)).detach()
    for top_k in (6, 7, 100):
        for mask in (None, some_mask(5, 6, seed=4)):
            expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            assert not torch.allclose(few, expected), "With top_k = 2 it attends to every key."
            raised = refusal(partial(student.topk_attention, q, k, v, top_k, mask))
            assert raised is None, f"With 6 keys, top_k = {top_k} raises {raised.types[0]}."
            claim = f"top_k {top_k} of 6 keys, {'without' if mask is None else 'with'} a mask"
            assert_close(student.topk_attention(q, k, v, top_k, mask), expected, claim=claim)


@pytest.mark.exercise("topk_attention", weight=2)
def test_the_best_are_chosen_among_the_allowed(student: Student) -> None:
    """A blocked key takes no place: the choice is made after the mask, of whatever shape that broadcasts."""
    b, h, n_q, n_k = 2, 3, 5, 8
    q, k, v = normal(b, h, n_q, 4, seed=1), normal(b, h, n_k, 4, seed=2), normal(b, h, n_k, 3, seed=3)
    for seed, shape in enumerate(((n_q, n_k), (b, 1, n_q, n_k), (b, h, n_q, n_k), (b, 1, 1, n_k))):
        mask = some_mask(*shape, seed=seed)
        expected = by_sorting(q, k, v, 3, mask)
        assert_close(student.topk_attention(q, k, v, 3, mask), expected, claim=f"with a mask of shape {shape}")
    best_blocked = torch.ones(n_q, n_k, dtype=torch.bool).expand(b, h, n_q, n_k) & ~best_keys(q, k, 3)
    expected = by_sorting(q, k, v, 3, best_blocked)
    assert_close(student.topk_attention(q, k, v, 3, best_blocked), expected, claim="where the 3 best keys are blocked")


@pytest.mark.exercise("topk_attention")
def test_fewer_allowed_keys_than_top_k_are_all_taken(student: Student) -> None:
    """Where the mask allows fewer than top_k keys, these share the weight; the rest stay blocked."""
    q, k, v = normal(2, 6, 4, seed=1), normal(2, 6, 4, seed=2), normal(2, 6, 3, seed=3)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    assert_close(student.topk_attention(q, k, v, 4, causal), by_sorting(q, k, v, 4, causal), claim="a causal mask")
    one = torch.eye(6, dtype=torch.bool)
    assert_close(student.topk_attention(q, k, v, 4, one), v, claim="where each query may see only itself")


@pytest.mark.exercise("topk_attention")
def test_a_row_that_may_attend_to_nothing_gives_zeros(student: Student) -> None:
    """A query whose row of the mask is all False gives zeros: no NaN, and no mean of what it may not see."""
    q, k, v = normal(2, 5, 4, seed=1), normal(2, 7, 4, seed=2), normal(2, 7, 3, seed=3)
    mask = some_mask(2, 5, 7, seed=4)
    mask[0, 2] = mask[1, 0] = False
    out = tensor(student.topk_attention(q, k, v, 3, mask), shape=(2, 5, 3)).detach()
    empty = ~mask.any(-1)
    assert_close(out[empty], torch.zeros(2, 3), name="the empty rows")
    assert_close(out[~empty], by_sorting(q, k, v, 3, mask)[~empty], name="the other rows")


@pytest.mark.exercise("topk_attention")
def test_the_lower_index_wins_a_tie(student: Student) -> None:
    """Of keys with exactly equal scores the earlier one is better, and never more than top_k keys have weight."""
    k = torch.tensor([1.0, 3, 2, 3, 2, 2, 3, 0, 2, 2] * 3)[None, :, None]
    q = torch.tensor([[[1.0], [2.0]]])
    for top_k in (1, 2, 4, 11, 14):
        found = weights_of(student, q, k, top_k) > 0
        assert_close(found, best_keys(q, k, top_k), claim=f"top_k {top_k}, many equal scores", name="what has weight")
    expected = (torch.arange(40) < 5).expand(1, 2, 40)
    for size in (0.0, 5000.0):
        found = weights_of(student, torch.ones(1, 2, 2), torch.full((1, 40, 2), size), 5) > 0
        assert_close(
            found, expected, claim=f"where all scores are equal, with keys of {size:g}", name="what has weight"
        )


@pytest.mark.exercise("topk_attention")
def test_scores_are_divided_by_the_root_of_d_head(student: Student) -> None:
    """The weights of two chosen keys are in the ratio of exp(q·k/√d_head)."""
    for d in (9, 36):
        q, k = normal(1, 1, d, seed=1), normal(1, 5, d, seed=2)
        weights = weights_of(student, q, k, 2)[0, 0].double()
        chosen = weights.nonzero()[:, 0]
        assert len(chosen) == 2, f"With top_k = 2, {len(chosen)} keys have weight."
        a, b = chosen.tolist()
        factor = ((weights[a] / weights[b]).log() / (q[0, 0] @ (k[0, a] - k[0, b]))).item()
        assert math.isclose(factor * d**0.5, 1, rel_tol=1e-3), (
            f"With d_head = {d} the weights come out as if q·k had been multiplied by {factor:.3g}."
        )


@pytest.mark.exercise("topk_attention")
def test_under_a_causal_mask_the_past_does_not_notice_the_future(student: Student) -> None:
    """A later key, however good, changes neither the choice nor the output of an earlier query."""
    n = 8
    q, k, v = normal(2, n, 4, seed=1), normal(2, n, 4, seed=2), normal(2, n, 3, seed=3)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    before = tensor(student.topk_attention(q, k, v, 2, causal), shape=(2, n, 3)).detach()
    assert before.isfinite().all(), "Some outputs are no numbers."
    assert before.any(-1).all(), "Some outputs are zeros."
    k2, v2 = k.clone(), v.clone()
    k2[:, 5] = 20 * q[:, 4]
    v2[:, 5] += 5
    after = tensor(student.topk_attention(q, k2, v2, 2, causal), shape=(2, n, 3)).detach()
    assert_close(after[:, :5], before[:, :5], claim="after a change at position 5", name="what came before it")
    assert (after[:, 5:] != before[:, 5:]).any(), "Nobody notices that position 5 changed."


@pytest.mark.exercise("topk_attention", weight=2)
def test_gradients_flow_through_what_was_chosen(student: Student) -> None:
    """The gradients of q, k and v are those of attention over the chosen keys; the others get zeros."""
    inputs = {
        "q": normal(2, 5, 4, seed=1).requires_grad_(),
        "k": normal(2, 7, 4, seed=2).requires_grad_(),
        "v": normal(2, 7, 3, seed=3).requires_grad_(),
    }
    q, k, v = inputs.values()
    upstream = normal(2, 5, 3, seed=5)
    for mask in (None, some_mask(5, 7, seed=4)):
        expected = gradients(by_sorting(q, k, v, 3, mask), upstream, **inputs)
        for name, grad in gradients(student.topk_attention(q, k, v, 3, mask), upstream, **inputs).items():
            claim = "without a mask" if mask is None else "with a mask"
            assert_close(grad, expected[name], claim=claim, name=f"the gradient of {name}")
    mask = some_mask(5, 7, seed=6)
    mask[2] = False
    for name, grad in gradients(student.topk_attention(q, k, v, 3, mask), upstream, **inputs).items():
        assert grad.isfinite().all(), f"Beside a row that may attend to nothing, the gradient of {name} is not finite."


@pytest.mark.exercise("topk_attention")
def test_large_scores_do_not_overflow(student: Student) -> None:
    """Scores of ±10,000 in neighbouring rows still give weights, and still choose the best."""
    q, k = torch.tensor([[[200.0], [199.96875], [1], [-200]]]), torch.tensor([[[49.0], [50], [48], [-50]]])
    expected = by_sorting(q, k, torch.eye(4)[None], 2)
    assert_close(student.topk_attention(q, k, torch.eye(4)[None], 2), expected, name="the weights")
    low = torch.tensor([[True, True, False, True]])
    expected = by_sorting(-q, k, torch.eye(4)[None], 3, low)
    assert_close(student.topk_attention(-q, k, torch.eye(4)[None], 3, low), expected, claim="scores of about −10⁴")
    q, k, last = torch.tensor([[[-200.0]]]), torch.tensor([[[49.0], [49.001], [48.999], [-50]]]), torch.arange(4) < 3
    expected = by_sorting(q, k, torch.eye(4)[None], 2, last)
    assert_close(student.topk_attention(q, k, torch.eye(4)[None], 2, last), expected, claim="all allowed scores low")
    q, k = q.expand(1, 1, 4) / 2, k.expand(1, 4, 4)  # the same scores, from products that are twice as large
    assert_close(student.topk_attention(q, k, torch.eye(4)[None], 2, last), expected, claim="d_head 4, low scores")


@pytest.mark.exercise("topk_attention")
def test_the_result_has_the_dtype_and_leading_dimensions_of_the_input(student: Student) -> None:
    """bfloat16 and float64 stay what they are; before the last two dimensions there may be none, or three."""
    for dtype, lead in ((torch.bfloat16, (2,)), (torch.float64, ()), (torch.float32, (2, 1, 3)), (torch.float32, ())):
        q = normal(*lead, 4, 1, seed=1).mul(4).round().add(0.5).to(dtype)
        k = normal(*lead, 6, 1, seed=2).argsort(-2).sub(2).to(dtype)  # no ties, and products that every dtype holds
        v = normal(*lead, 6, 3, seed=3).to(dtype)
        expected = by_sorting(q.double(), k.double(), v.double(), 3).to(dtype)
        atol = {torch.bfloat16: 5e-2, torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
        claim = f"{str(dtype)[6:]}, {tuple(q.shape)}"
        assert_close(student.topk_attention(q, k, v, 3), expected, atol=atol, rtol=min(atol, 1e-4), claim=claim)


@pytest.mark.exercise("topk_attention", weight=0.5)
def test_the_inputs_are_left_as_they_were(student: Student) -> None:
    """q, k, v and the mask belong to the caller: an operation that ends in _ changes them."""
    inputs = {
        "q": normal(2, 4, 3, seed=1),
        "k": normal(2, 5, 3, seed=2),
        "v": normal(2, 5, 3, seed=3),
        "mask": some_mask(4, 5, seed=4),
    }
    kept = {name: student.put(value) for name, value in inputs.items()}
    found = student.topk_attention(kept["q"], kept["k"], kept["v"], 2, kept["mask"])
    tensor(found, shape=(2, 4, 3))  # doing nothing at all is no merit
    for name, value in inputs.items():
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- LinformerAttention ---------------------------------------------------------------------------------------------

PROJECTIONS = tuple(f"{letter}_proj.weight" for letter in "qkvo")
MIXTURES = ("e_proj.weight", "f_proj.weight")


def random_weights(d_model: int, n_max: int, rank: int, seed: int) -> dict[str, Tensor]:
    found = {name: 1.5 * d_model**-0.5 * normal(d_model, d_model, seed=seed + i) for i, name in enumerate(PROJECTIONS)}
    return found | {name: 0.7 * normal(rank, n_max, seed=seed + 50 + i) for i, name in enumerate(MIXTURES)}


def created(student: Student, d_model: int, n_heads: int, n_max: int, rank: int) -> tuple[Remote, dict[str, Tensor]]:
    """A new layer and its state dict."""
    layer = student.LinformerAttention(d_model, n_heads, n_max, rank)
    assert isinstance(layer, Remote), "LinformerAttention(d_model, n_heads, n_max, rank) should give a layer."
    state = layer.state_dict()
    assert isinstance(state, dict), "The layer's state_dict() should be a dict: is LinformerAttention an nn.Module?"
    return layer, {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def loaded(student: Student, n_heads: int, weights: dict[str, Tensor]) -> Remote:
    """A layer with these weights, in evaluation. What it has beside them is zeroed: another test sees to that."""
    rank, n_max = weights["e_proj.weight"].shape
    layer, state = created(student, len(weights["q_proj.weight"]), n_heads, n_max, rank)
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()} | weights)
    layer.eval()
    return layer


def mixed(weights: dict[str, Tensor], n_heads: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The formula, head by head and with sums over positions written out."""
    q, k, v = (x @ weights[name].T for name in PROJECTIONS[:3])
    real = torch.ones(x.shape[:2], dtype=x.dtype) if mask is None else mask.to(x.dtype)
    n, d_head = x.shape[1], x.shape[2] // n_heads
    e, f = (weights[name][:, :n] for name in MIXTURES)
    heads = []
    for h in range(n_heads):
        part = slice(h * d_head, (h + 1) * d_head)
        keys = torch.einsum("rp,bp,bpd->brd", e, real, k[..., part])
        values = torch.einsum("rp,bp,bpd->brd", f, real, v[..., part])
        shares = torch.softmax(torch.einsum("bid,brd->bir", q[..., part], keys) / math.sqrt(d_head), -1)
        heads.append(torch.einsum("bir,brd->bid", shares, values))
    return torch.cat(heads, -1) @ weights["o_proj.weight"].T


@pytest.mark.exercise("LinformerAttention")
def test_the_layer_has_six_weights_and_nothing_else(student: Student) -> None:
    """The state dict holds four square projections and two mixtures of shape (rank, n_max), and all are trained."""
    for d_model, n_heads, n_max, rank in ((12, 3, 9, 4), (10, 5, 6, 7)):
        layer, state = created(student, d_model, n_heads, n_max, rank)
        parameters = student.grads(layer)
        assert set(state) == {*PROJECTIONS, *MIXTURES}, f"The state dict holds {sorted(state)}."
        assert set(parameters) == set(state), f"The parameters that are trained are {sorted(parameters)}."
        for name, value in state.items():
            shape = (rank, n_max) if name in MIXTURES else (d_model, d_model)
            tensor(value, shape=shape, dtype=torch.float32, name=name)
            assert value.isfinite().all(), f"{name} is not finite in a new layer: was it never initialised?"


@pytest.mark.exercise("LinformerAttention", weight=3)
def test_every_query_attends_to_the_mixtures(student: Student) -> None:
    """softmax(Q (E K)ᵀ / √d_head) (F V), head by head: E mixes the positions' keys, F their values."""
    for seed, (batch, n, d_model, n_heads, rank) in enumerate(
        ((2, 7, 12, 3, 4), (3, 6, 10, 5, 6), (1, 40, 6, 1, 3), (2, 4, 4, 2, 9))
    ):
        weights, x = random_weights(d_model, n, rank, seed=100 * seed), normal(batch, n, d_model, seed=seed)
        claim = f"d_model {d_model}, {n_heads} heads, rank {rank}, x {tuple(x.shape)}"
        assert_close(loaded(student, n_heads, weights)(x), mixed(weights, n_heads, x), atol=1e-3, claim=claim)


@pytest.mark.exercise("LinformerAttention")
def test_mixtures_of_one_position_each_are_plain_attention(student: Student) -> None:
    """Where E and F are the identity the layer is nn.MultiheadAttention, and where they shuffle alike, too."""
    n, shuffled = 6, torch.tensor([3, 5, 0, 1, 4, 2])
    theirs = nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    x, weights = normal(2, n, 12, seed=1), random_weights(12, n, n, seed=2)
    q, k, v, o = (weights[name] for name in PROJECTIONS)
    theirs.load_state_dict({"in_proj_weight": torch.cat([q, k, v]), "out_proj.weight": o})
    expected = theirs(x, x, x, need_weights=False)[0]
    for matrix, claim in ((torch.eye(n), "the identity"), (torch.eye(n)[shuffled], "shuffled")):
        found = loaded(student, 3, weights | dict.fromkeys(MIXTURES, matrix))(x)
        assert_close(found, expected, claim=f"E and F {claim}")


@pytest.mark.exercise("LinformerAttention", weight=2)
def test_a_shorter_text_uses_the_first_columns(student: Student) -> None:
    """A text of n < n_max positions uses the first n columns of E and F, and n may differ from call to call."""
    weights = random_weights(12, 9, 4, seed=1)
    layer = loaded(student, 3, weights)
    for n in (5, 9, 1, 8):
        x = normal(2, n, 12, seed=n)
        assert_close(layer(x), mixed(weights, 3, x), atol=1e-3, claim=f"{n} of at most 9 positions")


@pytest.mark.exercise("LinformerAttention")
def test_a_longer_text_is_an_error(student: Student) -> None:
    """More than n_max positions raise a ValueError that names both numbers; n_max positions do not."""
    layer = loaded(student, 3, random_weights(12, 7, 4, seed=1))
    assert refusal(lambda: layer(normal(1, 7, 12, seed=2))) is None, "A text of n_max positions raises an error."
    for n in (8, 20):
        names(refusal(partial(layer, normal(1, n, 12, seed=2))), f"a text of {n} positions, where n_max is 7,", n, 7)


@pytest.mark.exercise("LinformerAttention", weight=2)
def test_padding_counts_in_no_mixture(student: Student) -> None:
    """The mask keeps padding out of keys and values, wherever it stands; real positions keep their columns."""
    weights, x = random_weights(12, 9, 4, seed=1), normal(3, 8, 12, seed=2)
    layer = loaded(student, 3, weights)
    real = torch.arange(8) < torch.tensor([[5], [8], [2]])  # padding at the end
    for mask, claim in ((real, "at the end"), (real.flip(1), "at the start"), (some_mask(3, 8, seed=3), "anywhere")):
        found = tensor(layer(x, mask), shape=x.shape).detach()
        expected = mixed(weights, 3, x, mask)
        assert_close(
            found[mask], expected[mask], atol=1e-3, claim=f"padding {claim}", name="the real positions' outputs"
        )


@pytest.mark.exercise("LinformerAttention")
def test_what_stands_at_padding_makes_no_difference(student: Student) -> None:
    """Other numbers at padded positions change nothing at real ones, and a mask of True changes nothing at all."""
    x, mask = normal(2, 7, 12, seed=1), torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    layer = loaded(student, 3, random_weights(12, 7, 4, seed=2))
    before = tensor(layer(x, mask=mask), shape=x.shape).detach()
    other = x.clone()
    other[0, 4:] = 50
    after = tensor(layer(other, mask=mask), shape=x.shape).detach()
    assert_close(after[mask], before[mask], claim="after a change at padding", name="the real positions' outputs")
    plain = tensor(layer(x), shape=x.shape).detach()
    assert not torch.allclose(plain[0, :4], before[0, :4], atol=1e-4), "The mask makes no difference."
    assert_close(layer(x, torch.ones(2, 7, dtype=torch.bool)), plain, claim="with a mask of True")


@pytest.mark.exercise("LinformerAttention")
def test_every_position_notices_every_other(student: Student) -> None:
    """The layer is not causal: each mixture holds all positions, so that a change anywhere is noticed everywhere."""
    x = normal(1, 6, 12, seed=1)
    layer = loaded(student, 3, random_weights(12, 6, 4, seed=2))
    with torch.no_grad():
        before = tensor(layer(x), shape=x.shape)
        for j in (0, 3, 5):
            changed = x.clone()
            changed[:, j] += 2
            after = tensor(layer(changed), shape=x.shape)
            assert (after != before).any(-1).all(), f"Some position does not notice that position {j} changed."


@pytest.mark.exercise("LinformerAttention")
def test_one_mixture_is_the_same_for_all(student: Student) -> None:
    """With rank 1 there is nothing to choose: every position gets the one mixture of values, whatever it asks."""
    x = normal(2, 5, 12, seed=1)
    weights = random_weights(12, 5, 1, seed=2)
    values = torch.einsum("p,bpd->bd", weights["f_proj.weight"][0], x @ weights["v_proj.weight"].T)
    expected = (values @ weights["o_proj.weight"].T)[:, None].expand(2, 5, 12)
    assert_close(loaded(student, 3, weights)(x), expected, atol=1e-3)


@pytest.mark.exercise("LinformerAttention", weight=0.5)
def test_sequences_of_a_batch_do_not_meet(student: Student) -> None:
    """A sequence gives the same output alone and in company, in training and in evaluation."""
    x = normal(3, 5, 12, seed=1)
    layer = loaded(student, 3, random_weights(12, 5, 4, seed=2))
    together = tensor(layer(x), shape=x.shape).detach()
    assert not torch.allclose(together[0], together[1], atol=1e-3), "Two different sequences get the same output."
    for i in range(3):
        assert_close(layer(x[i : i + 1]), together[i : i + 1], claim=f"sequence {i} alone")
    layer.train()
    assert_close(layer(x), together, claim="in training")


@pytest.mark.exercise("LinformerAttention", weight=2)
def test_gradients_reach_x_and_all_six_weights(student: Student) -> None:
    """Everything learns, E and F too: the gradients are those of the formula."""
    weights = {name: value.requires_grad_() for name, value in random_weights(12, 7, 4, seed=1).items()}
    x, upstream = normal(2, 6, 12, seed=2).requires_grad_(), normal(2, 6, 12, seed=3)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    shown = upstream * mask[..., None]  # what comes out at padding does not matter
    expected = gradients(mixed(weights, 3, x, mask), shown, x=x, **weights)
    layer = loaded(student, 3, {name: value.detach() for name, value in weights.items()})
    found = {"x": gradients(layer(x, mask), shown, x=x)["x"], **student.grads(layer)}
    for name, value in expected.items():
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("LinformerAttention", weight=0.5)
def test_a_bfloat16_layer_gives_bfloat16_and_leaves_its_inputs(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16; x and the mask stay as they were."""
    weights, x = random_weights(12, 6, 4, seed=1), normal(2, 5, 12, seed=2).bfloat16()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    layer = loaded(student, 3, weights)
    layer.bfloat16()
    kept_x, kept_mask = student.put(x), student.put(mask)
    found = tensor(layer(kept_x, kept_mask), shape=x.shape, dtype=torch.bfloat16)
    expected = mixed(weights, 3, x.float(), mask).bfloat16()
    assert_close(found[mask], expected[mask], atol=0.3, rtol=0.1)
    assert_close(kept_x.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    assert_close(kept_mask.get(), mask, claim="after the call", name="the mask")
