"""Hidden tests of chapter 21. The model is computed once more here, in float64 and without hooks; intervals come from
SciPy, thresholds from trying all; laws from theory. None of it comes from the reference.
"""

import contextlib
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, assert_close, tensor
from autograder.testing import normal

VOCABULARY, D_MODEL, D_HIDDEN = 13, 12, 10


# -- a LLaMA, written without modules -------------------------------------------------------------------------------


def drawn(n_layers: int, seed: int) -> dict[str, Tensor]:
    """A state dict of LanguageModel in which every number is random, the gains of the norms too."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, D_MODEL)}
    for i in range(n_layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.{name}.weight": (D_MODEL,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{letter}_proj.weight": (D_MODEL, D_MODEL) for letter in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (D_HIDDEN, D_MODEL) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (D_MODEL, D_HIDDEN)
    shapes |= {"model.norm.weight": (D_MODEL,), "lm_head.weight": (VOCABULARY, D_MODEL)}
    return {name: 0.6 * normal(*shape, seed=1000 * seed + i) for i, (name, shape) in enumerate(shapes.items())}


class Llama:
    """What the model computes on ids: `streams` before each layer and after the last, `heads` of each layer."""

    def __init__(self, weights: Mapping[str, Tensor], n_heads: int, ids: Tensor, instead: Any = None) -> None:
        """instead: (layer, head) -> the vector that takes the place of that head's output."""
        self.weights = {name: weight.double() for name, weight in weights.items()}
        self.streams = [self.weights["model.embed_tokens.weight"][ids]]
        self.heads: list[Tensor] = []
        n, width = ids.shape[1], D_MODEL // n_heads
        angle = torch.outer(torch.arange(n).double(), 10_000.0 ** (-torch.arange(0, width, 2).double() / width))
        turn = torch.polar(torch.ones_like(angle), angle)
        while f"model.layers.{len(self.heads)}.input_layernorm.weight" in weights:
            at, x = f"model.layers.{len(self.heads)}", self.streams[-1]
            y = self.normed(x, f"{at}.input_layernorm")
            q, k, v = (
                (y @ self.weights[f"{at}.self_attn.{letter}_proj.weight"].T).unflatten(-1, (n_heads, width))
                for letter in "qkv"
            )
            q, k = (
                torch.view_as_complex(torch.stack(part.chunk(2, -1), -1).contiguous()) * turn[:, None]
                for part in (q, k)
            )
            scores = torch.einsum("bihd,bjhd->bhij", q, k.conj()).real / width**0.5
            shares = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf).softmax(-1)
            out = torch.einsum("bhij,bjhd->bihd", shares, v).clone()
            for (layer, head), vector in (instead or {}).items():
                if layer == len(self.heads):
                    out[:, :, head] = vector
            self.heads.append(out)
            x = x + out.flatten(2) @ self.weights[f"{at}.self_attn.o_proj.weight"].T
            y = self.normed(x, f"{at}.post_attention_layernorm")
            gate, up = (y @ self.weights[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            self.streams.append(x + (functional.silu(gate) * up) @ self.weights[f"{at}.mlp.down_proj.weight"].T)

    def normed(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weights[f"{name}.weight"]

    def read(self, stream: Tensor) -> Tensor:
        return (self.normed(stream, "model.norm") @ self.weights["lm_head.weight"].T).float()

    @property
    def logits(self) -> Tensor:
        return self.read(self.streams[-1])


def tokens(batch: int, n: int, seed: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(seed))


def patient(student: Student, weights: Mapping[str, Tensor], n_heads: int) -> Any:
    """The student's LanguageModel with these weights."""
    n_layers = sum(name.endswith("q_proj.weight") for name in weights)
    model = student.LanguageModel(VOCABULARY, D_MODEL, n_heads, n_layers, D_HIDDEN)
    model.load_state_dict(dict(weights))
    return model


def ablated(
    weights: Mapping[str, Tensor], n_heads: int, ids: Tensor, heads: Sequence[tuple[int, int]], reference: Tensor
) -> Tensor:
    """The logits with each head's output replaced by its mean over the reference in the intact model."""
    intact = Llama(weights, n_heads, reference)
    return Llama(weights, n_heads, ids, {at: intact.heads[at[0]][:, :, at[1]].mean((0, 1)) for at in heads}).logits


def lived_in(model: Any, told: Callable[..., None]) -> None:
    """A model as people leave it: one part of it in evaluation mode, and hooks that are none of the student's."""
    model.get_submodule("model.layers.0").eval()
    for name in ("model.embed_tokens", "model.layers.1", "model.layers.1.self_attn.o_proj", "model.norm"):
        model.get_submodule(name).register_forward_pre_hook(told)
        model.get_submodule(name).register_forward_hook(told)


def left_as_it_was(student: Student, model: Any, weights: Mapping[str, Tensor], hooks: int = 0) -> None:
    """Assert that a model has these weights and so many hooks, is in training mode, and learns."""
    found: Any = student.hooks_on(model)
    assert found <= hooks, f"{found - hooks} hooks stayed behind."
    assert found == hooks, f"{hooks - found} hooks are gone that others had put on the model."
    assert model.training, "The model was in training mode before, and is not any more."
    if hooks:
        assert not model.get_submodule("model.layers.0").training, (
            "The first layer was in evaluation mode before, and is not any more."
        )
    for name, weight in weights.items():
        assert_close(model.state_dict()[name], weight, atol=0, rtol=0, claim="after the call", name=name)
    said: Any = model(tokens(1, 3, seed=0))
    assert isinstance(said, Remote), "The model does not return what it returned before."
    assert tensor(said.logits).requires_grad, "The model recorded gradients before, and does not any more."


# -- logit_lens -----------------------------------------------------------------------------------------------------


def lens(student: Student, weights: Mapping[str, Tensor], n_heads: int, ids: Tensor, entries: int = 0) -> Tensor:
    """What the student's lens shows. How many entries it has is looked at only where `entries` says how many."""
    found = tensor(student.logit_lens(patient(student, weights, n_heads), ids), dtype=torch.float32)
    rows = entries or len(found) if found.dim() else 1
    return tensor(found, shape=(rows, *ids.shape, VOCABULARY)).detach()


@pytest.mark.exercise("logit_lens")
def test_there_is_an_entry_before_each_layer_and_one_after_the_last(student: Student) -> None:
    """A model of n layers gives n + 1 entries, each with logits for every token of every text, and no two are alike."""
    for n_layers, batch, n in ((1, 3, 4), (3, 2, 5), (2, 1, 1)):
        found = lens(student, drawn(n_layers, seed=n_layers), 2, tokens(batch, n, seed=n), n_layers + 1)
        for one, other in itertools.pairwise(found):
            assert not torch.allclose(one, other, 1e-3, 1e-3), "Two entries are the same, and no two layers are."


@pytest.mark.exercise("logit_lens")
def test_the_last_entry_is_what_the_model_says(student: Student) -> None:
    """After the last layer the lens shows the logits of the model itself: the norm is applied once, and not twice."""
    for seed, n_heads in enumerate((2, 3)):
        weights, ids = drawn(2, seed), tokens(2, 6, seed)
        assert_close(
            lens(student, weights, n_heads, ids)[-1], Llama(weights, n_heads, ids).logits, name="the last entry"
        )


@pytest.mark.exercise("logit_lens")
def test_the_first_entry_is_read_off_the_embeddings(student: Student) -> None:
    """Entry 0 is what the last norm and the read-out make of the embeddings, so it knows nothing of other tokens."""
    weights, ids = drawn(2, seed=3), tokens(2, 6, seed=3)
    first = lens(student, weights, 2, ids, 3)[0]
    assert_close(first, Llama(weights, 2, ids).read(weights["model.embed_tokens.weight"][ids].double()), name="entry 0")


@pytest.mark.exercise("logit_lens", weight=2)
def test_entry_i_is_read_off_the_stream_after_i_layers(student: Student) -> None:
    """Each entry takes the residual stream where it belongs, whole: not what a layer adds, nor what attention adds."""
    for seed, (n_layers, n_heads, batch, n) in enumerate([(3, 2, 2, 5), (4, 1, 1, 9), (1, 3, 3, 2)]):
        weights, ids = drawn(n_layers, seed=10 + seed), tokens(batch, n, seed)
        found, right = lens(student, weights, n_heads, ids, n_layers + 1), Llama(weights, n_heads, ids)
        for i in range(n_layers):
            assert_close(found[i], right.read(right.streams[i]), claim=f"of {n_layers} layers", name=f"entry {i}")


@pytest.mark.exercise("logit_lens")
def test_every_entry_goes_through_the_last_norm(student: Student) -> None:
    """A stream that is a hundred times as large gives the same logits, since the norm takes its size away."""
    weights, ids = drawn(2, seed=5), tokens(2, 4, seed=5)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * 0  # layers that add nothing: the stream stays the embeddings
    expected = Llama(weights, 2, ids).logits
    for factor in (1.0, 100.0, 0.1):
        larger = {**weights, "model.embed_tokens.weight": factor * weights["model.embed_tokens.weight"]}
        for i, row in enumerate(lens(student, larger, 2, ids)):
            assert_close(row, expected, atol=1e-3, claim=f"embeddings times {factor:g}", name=f"entry {i}")


@pytest.mark.exercise("logit_lens")
def test_a_later_token_changes_nothing_before_it(student: Student) -> None:
    """At every depth a position knows the tokens up to its own, and its entries say so."""
    weights, ids = drawn(3, seed=6), tokens(2, 6, seed=6)
    other = ids.clone()
    other[:, 3] = (other[:, 3] + 1) % VOCABULARY
    one, two = lens(student, weights, 2, ids), lens(student, weights, 2, other)
    assert_close(two[:, :, :3], one[:, :, :3], claim="with another token 3", name="what stands before it")
    assert (two[:, :, 3] != one[:, :, 3]).any(-1).all(), "Another token, and its own entries do not change."
    assert not torch.allclose(two[1:, :, 4:], one[1:, :, 4:], 1e-4, 1e-4), "No later position notices another token."


@pytest.mark.exercise("logit_lens")
def test_the_model_is_left_as_it_was(student: Student) -> None:
    """Its hooks are removed and no others, weights and the mode of each part stay, and the result keeps no gradient."""
    weights, ids = drawn(3, seed=7), tokens(2, 5, seed=7)
    for others in (False, True):
        model = patient(student, weights, 2)
        if others:
            lived_in(model, lambda *_: None)
        hooks: Any = student.hooks_on(model)
        found = tensor(student.logit_lens(model, ids))
        assert found.shape[1:] == (2, 5, VOCABULARY), f"The logits have the shape {tuple(found.shape)}."
        assert not torch.allclose(found[0], found[1], 1e-3, 1e-3), "Two entries are the same, and no two layers are."
        assert not found.requires_grad, "The result requires a gradient: looking is not training."
        left_as_it_was(student, model, weights, hooks)


# -- attention_rollout ----------------------------------------------------------------------------------------------


def maps(*shape: int, seed: int, causal: bool = False) -> Tensor:
    """Attention weights, rows that sum to 1."""
    scores = 2 * normal(*shape, shape[-1], seed=seed)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
    return scores.softmax(-1)


def rolled(weights: Tensor) -> Tensor:
    """Each text by itself, in float64, with numpy's product of a chain of matrices."""
    found = []
    for text in range(weights.shape[1]):
        chain = []
        for layer in weights[:, text].double().numpy():
            mixed = sum(layer) / len(layer) + np.identity(layer.shape[-1])
            chain.append(mixed / mixed.sum(1)[:, None])
        found.append(chain[0] if len(chain) == 1 else np.linalg.multi_dot(chain[::-1]))
    return torch.from_numpy(np.stack(found)).to(weights.dtype)


def rollout(student: Student, weights: Tensor) -> Tensor:
    _, batch, _, n, _ = weights.shape
    return tensor(student.attention_rollout(weights), shape=(batch, n, n), dtype=weights.dtype).detach()


@pytest.mark.exercise("attention_rollout")
def test_one_layer_is_half_attention_and_half_itself(student: Student) -> None:
    """With one layer the result is the map and the identity in equal parts: the residual connection counts as much."""
    for n in (4, 7):
        weights = maps(1, 2, 1, n, seed=n)
        assert_close(rollout(student, weights), (weights[0, :, 0] + torch.eye(n)) / 2, claim=f"{n} tokens")


@pytest.mark.exercise("attention_rollout", weight=2)
def test_maps_are_multiplied_from_the_last_layer_down_to_the_first(student: Student) -> None:
    """The first layer's map is nearest to the tokens: it stands at the right end of the product."""
    for seed, (n_layers, batch, n) in enumerate([(2, 2, 5), (3, 1, 4), (6, 3, 3)]):
        weights = maps(n_layers, batch, 1, n, seed=seed)
        assert_close(rollout(student, weights), rolled(weights), claim=f"{n_layers} layers")


@pytest.mark.exercise("attention_rollout")
def test_heads_are_averaged_within_their_layer(student: Student) -> None:
    """Head 0 of one layer has nothing to do with head 0 of the next: the mean of a layer's heads comes first."""
    weights = maps(3, 2, 5, 4, seed=11)
    found = rollout(student, weights)
    assert_close(found, rolled(weights), claim="with 5 heads")
    shuffled = weights.clone()
    shuffled[1] = shuffled[1][:, [2, 0, 4, 1, 3]]
    assert_close(rollout(student, shuffled), found, claim="with the heads of layer 1 in another order")


@pytest.mark.exercise("attention_rollout")
def test_every_row_sums_to_one(student: Student) -> None:
    """A row says where a position's content comes from: shares, also where rows of the weights sum to less than 1."""
    weights = maps(3, 2, 4, 5, seed=12)
    weights[1, 0, :, 2] *= 0.3
    weights[2, 1, 0, 4] = 0
    found = rollout(student, weights)
    assert bool((found >= 0).all()), "A share is negative."
    assert_close(found.sum(-1), torch.ones(2, 5), name="the sum of a row")
    assert_close(found, rolled(weights), claim="where rows sum to less than 1")


@pytest.mark.exercise("attention_rollout")
def test_a_position_that_attends_to_nothing_keeps_itself(student: Student) -> None:
    """Rows of zeros in all layers give a row of the identity: a token that is passed on and not mixed."""
    weights = maps(2, 1, 3, 4, seed=13)
    weights[:, :, :, 1] = 0
    found = rollout(student, weights)
    assert_close(found[0, 1], torch.eye(4)[1], name="the row of that position")
    assert (found[0, 0] > 0).all(), "A position that attends to all has nothing of some token."


@pytest.mark.exercise("attention_rollout")
def test_nothing_comes_from_the_future(student: Student) -> None:
    """If every map is causal, so is the result, and each earlier token has a share."""
    for n_layers, n in ((1, 6), (4, 5)):
        found = rollout(student, maps(n_layers, 2, 3, n, seed=n, causal=True))
        assert not found.triu(1).any(), "A position holds something of a later token."
        assert (found.tril()[:, *torch.tril_indices(n, n)] > 0).all(), "An earlier token has no share in a position."


@pytest.mark.exercise("attention_rollout")
def test_renaming_positions_renames_the_result(student: Student) -> None:
    """Rollout knows no places: shuffle the tokens, and rows and columns of the result are shuffled alike."""
    weights, order = maps(3, 2, 2, 5, seed=14), torch.tensor([3, 0, 4, 1, 2])
    found = rollout(student, weights)
    assert_close(rollout(student, weights[..., order, :][..., order]), found[:, order][..., order], claim="shuffled")
    assert not torch.allclose(found[0], found[1], 1e-3, 1e-3), "Two different texts give the same result."


@pytest.mark.exercise("attention_rollout", weight=0.5)
def test_the_rollout_has_the_dtype_of_the_weights(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and likewise float64, exactly enough to tell it from float32."""
    for dtype, atol in ((torch.bfloat16, 2e-2), (torch.float64, 1e-12)):
        weights = maps(2, 1, 2, 4, seed=15).to(dtype)
        if dtype == torch.float64:
            weights = weights / weights.sum(-1, keepdim=True)
        assert_close(rollout(student, weights), rolled(weights), atol=atol, rtol=atol, claim=str(dtype)[6:])


@pytest.mark.exercise("attention_rollout", weight=0.5)
def test_the_weights_that_are_rolled_out_stay_as_they_were(student: Student) -> None:
    """The attention weights belong to the caller: an operation that ends in _, or a +=, changes them."""
    weights = maps(3, 2, 1, 4, seed=16)
    kept = student.put(weights)
    found: Any = student.attention_rollout(kept)
    assert_close(found, rolled(weights))
    assert_close(kept.get(), weights, atol=0, rtol=0, claim="after the call", name="the tensor of weights")


# -- mean_ablate ----------------------------------------------------------------------------------------------------


def without(
    student: Student,
    weights: Mapping[str, Tensor],
    n_heads: int,
    ids: Tensor,
    heads: Sequence[tuple[int, int]],
    reference: Tensor,
) -> Tensor:
    found = student.mean_ablate(patient(student, weights, n_heads), ids, list(heads), reference)
    return tensor(found, shape=(*ids.shape, VOCABULARY), dtype=torch.float32).detach()


@pytest.mark.exercise("mean_ablate", weight=3)
def test_the_heads_output_is_replaced_by_its_mean(student: Student) -> None:
    """The columns of that one head in the input of o_proj become its mean over the reference, at every position."""
    for seed, (n_layers, n_heads, at) in enumerate([(2, 2, (0, 1)), (2, 3, (1, 2)), (3, 2, (1, 0)), (1, 3, (0, 1))]):
        weights, ids, reference = drawn(n_layers, 20 + seed), tokens(2, 5, seed), tokens(3, 5, 50 + seed)
        expected = ablated(weights, n_heads, ids, [at], reference)
        claim = f"layer {at[0]}, head {at[1]} of {n_heads}"
        assert_close(without(student, weights, n_heads, ids, [at], reference), expected, claim=claim)


@pytest.mark.exercise("mean_ablate", weight=1.5)
def test_the_mean_is_over_all_positions_of_all_texts(student: Student) -> None:
    """One vector a head: the texts of the reference may be one or many, shorter or longer than the text in question."""
    weights, ids = drawn(2, seed=24), tokens(2, 5, seed=24)
    for texts, m in ((1, 9), (4, 3), (3, 8)):
        reference = tokens(texts, m, seed=texts)
        expected = ablated(weights, 2, ids, [(1, 1)], reference)
        claim = f"a reference of {texts} texts of {m} tokens"
        assert_close(without(student, weights, 2, ids, [(1, 1)], reference), expected, claim=claim)


@pytest.mark.exercise("mean_ablate", weight=1.5)
def test_several_heads_are_ablated_together(student: Student) -> None:
    """All the heads that are named are out at once, also two of one layer, each with its mean in the intact model."""
    weights, ids, reference = drawn(3, seed=25), tokens(2, 4, seed=25), tokens(3, 6, seed=26)
    for heads in ([(0, 0), (0, 2)], [(0, 1), (2, 0)], [(2, 2), (1, 0), (0, 0)]):
        expected = ablated(weights, 3, ids, heads, reference)
        claim = f"heads {', '.join(map(str, heads))}"
        assert_close(without(student, weights, 3, ids, heads, reference), expected, claim=claim)


@pytest.mark.exercise("mean_ablate")
def test_without_any_head_positions_do_not_hear_of_each_other(student: Student) -> None:
    """With every head ablated what a position says depends on its own token alone; with one head left it does not."""
    weights, ids, reference = drawn(2, seed=27), tokens(2, 5, seed=27), tokens(2, 6, seed=28)
    other = ids.clone()
    other[:, 1] = (other[:, 1] + 1) % VOCABULARY
    every = [(layer, head) for layer in range(2) for head in range(2)]
    one, two = (without(student, weights, 2, text, every, reference) for text in (ids, other))
    assert_close(two[:, 2:], one[:, 2:], claim="all heads ablated, another token 1", name="what comes after it")
    assert (two[:, 1] != one[:, 1]).any(-1).all(), "The position whose token changed does not notice it."
    one, two = (without(student, weights, 2, text, every[1:], reference) for text in (ids, other))
    assert not torch.allclose(two[:, 2:], one[:, 2:], 1e-4, 1e-4), "One head is left, and it carries nothing."


@pytest.mark.exercise("mean_ablate")
def test_the_mean_knows_nothing_of_the_text_in_question(student: Student) -> None:
    """The mean comes from the reference alone: a text gets the same logits whatever stands beside it in the batch."""
    weights, ids, reference = drawn(2, seed=29), tokens(3, 5, seed=29), tokens(2, 5, seed=30)
    together = without(student, weights, 2, ids, [(0, 0)], reference)
    for i in range(3):
        alone = without(student, weights, 2, ids[i : i + 1], [(0, 0)], reference)
        assert_close(alone, together[i : i + 1], claim=f"text {i} alone")
    elsewhere = without(student, weights, 2, ids, [(0, 0)], tokens(2, 5, seed=31))
    assert not torch.allclose(together, elsewhere, 1e-4, 1e-4), "Another reference changes nothing."


@pytest.mark.exercise("mean_ablate", weight=0.5)
def test_with_no_head_nothing_is_ablated(student: Student) -> None:
    """An empty list of heads gives the logits of the model as it is, and a list with one does not."""
    weights, ids, reference = drawn(2, seed=32), tokens(2, 5, seed=32), tokens(2, 5, seed=33)
    intact = Llama(weights, 2, ids).logits
    assert_close(without(student, weights, 2, ids, [], reference), intact, claim="no head")
    one = without(student, weights, 2, ids, [(1, 1)], reference)
    assert not torch.allclose(one, intact, 1e-4, 1e-4), "With head 1 of layer 1 ablated the logits are the model's own."


@pytest.mark.exercise("mean_ablate")
def test_a_head_that_is_not_there_is_refused(student: Student) -> None:
    """A ValueError names the layer and the head, also where the slice or the list would accept them silently."""
    weights, ids, reference = drawn(3, seed=34), tokens(1, 4, seed=34), tokens(2, 4, seed=35)
    expected = ablated(weights, 2, ids, [(2, 1)], reference)
    assert_close(without(student, weights, 2, ids, [(2, 1)], reference), expected, claim="layer 2, head 1")
    for heads in ([(1, 2)], [(3, 0)], [(0, 0), (2, 5)], [(7, 1)], [(2, -1)], [(1, 1), (-1, 0)]):
        layer, head = heads[-1]
        message = ""
        try:
            without(student, weights, 2, ids, heads, reference)
        except ValueError as error:
            message = str(error)
        except IndexError:
            raise AssertionError(f"For {(layer, head)} an IndexError is raised, and not a ValueError.") from None
        assert message, f"3 layers of 2 heads have no head {(layer, head)}, and no ValueError says so."
        named = set(re.findall(r"\d+", message))
        assert {str(abs(layer)), str(abs(head))} <= named, (
            f"The ValueError for {(layer, head)} does not name layer and head."
        )


@pytest.mark.exercise("mean_ablate", weight=1.5)
def test_the_model_says_afterwards_what_it_said_before(student: Student) -> None:
    """Its hooks are removed and no others, also after a ValueError; weights and the mode of each part stay."""
    weights, ids, reference = drawn(2, seed=36), tokens(2, 5, seed=36), tokens(2, 6, seed=37)
    model = patient(student, weights, 2)
    for heads in ([(0, 1)], [(1, 0), (1, 1)], [(1, 0)]):
        found = tensor(student.mean_ablate(model, ids, heads, reference), shape=(2, 5, VOCABULARY))
        assert not found.requires_grad, "The result requires a gradient: an ablation is not training."
        assert_close(found, ablated(weights, 2, ids, heads, reference), claim="one call after another")
    with contextlib.suppress(ValueError):
        student.mean_ablate(model, ids, [(0, 0), (5, 0)], reference)
    left_as_it_was(student, model, weights)
    assert_close(
        model(ids).logits.detach(), Llama(weights, 2, ids).logits, claim="after the calls", name="what the model says"
    )
    lived_in(model, lambda *_: None)
    hooks: Any = student.hooks_on(model)
    tensor(student.mean_ablate(model, ids, [(1, 1)], reference), shape=(2, 5, VOCABULARY))
    left_as_it_was(student, model, weights, hooks)


# -- template_bias --------------------------------------------------------------------------------------------------

Numbers = tuple[float, float, float]
FRAMES = [
    "The {} said that",
    "A {} came, and",
    "Ask the {} whether",
    "If a {} is late,",
    "My {} thinks that",
    "No {} ever",
]
PAIRS = [("engineer", "nurse"), ("pilot", "dancer"), ("carpenter", "librarian")]


def numbers(found: Any, names: str) -> Numbers:
    """Assert that these are three floats."""
    assert isinstance(found, tuple | list), f"The result should be a tuple of three floats, ({names})."
    assert len(found) == 3, f"The result should be three floats, ({names}), and it has {len(found)} entries."
    for value, name in zip(found, names.split(", "), strict=True):
        kind = "thing of another class" if isinstance(value, Remote) else type(value).__name__
        assert isinstance(value, float | int), f"{name} should be a float, not a {kind}."
        assert not isinstance(value, bool), f"{name} should be a float, not a boolean."
        assert not math.isnan(value), f"{name} is NaN."
    return float(found[0]), float(found[1]), float(found[2])


def scorer(seed: int, spread: float = 1.0) -> Callable[[str], float]:
    """A number for each text, without order, the same each time."""

    def score(text: str) -> float:
        return float(spread * normal(1, seed=seed + sum((i + 7) * ord(c) for i, c in enumerate(text)))[0])

    return score


def differences(score: Callable[[str], float], frames: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[float]:
    return [
        statistics.fmean(
            score(first.join(frame.split("{}"))) - score(other.join(frame.split("{}"))) for first, other in pairs
        )
        for frame in frames
    ]


def interval(values: Sequence[float], confidence: float = 0.95) -> Numbers:
    from scipy import stats

    mean = statistics.fmean(values)
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=stats.sem(values))
    return mean, float(low), float(high)


def bias(student: Student, *arguments: Any, **named: Any) -> Numbers:
    return numbers(student.template_bias(*arguments, **named), "mean, low, high")


def near(found: Sequence[float], right: Sequence[float], claim: str, names: str = "mean, low, high") -> None:
    for value, expected, name in zip(found, right, names.split(", "), strict=True):
        same = value == expected or math.isclose(value, expected, rel_tol=1e-4, abs_tol=1e-6)
        assert same, f"{claim}: {name} is wrong."


@pytest.mark.exercise("template_bias")
def test_the_mean_is_of_the_first_word_minus_the_second(student: Student) -> None:
    """Each template filled with the first word, minus the same filled with the second, and the mean of it all."""
    for seed, (n, pairs) in enumerate([(6, PAIRS[:1]), (3, PAIRS), (2, PAIRS[1:])]):
        score = scorer(seed)
        right = statistics.fmean(differences(score, FRAMES[:n], pairs))
        near(bias(student, score, FRAMES[:n], pairs)[:1], [right], f"{n} templates, {len(pairs)} pairs", "mean")


@pytest.mark.exercise("template_bias", weight=2)
def test_the_interval_is_students_for_paired_differences(student: Student) -> None:
    """mean ± t·s/√n, with n − 1 in the standard deviation and n − 1 degrees of freedom, n being the templates."""
    for seed, n in enumerate((3, 2, 4, 6)):
        score = scorer(10 + seed)
        right = interval(differences(score, FRAMES[:n], PAIRS[:1]))
        near(bias(student, score, FRAMES[:n], PAIRS[:1]), right, f"{n} templates, one pair")


@pytest.mark.exercise("template_bias")
def test_the_confidence_that_is_asked_for_is_given(student: Student) -> None:
    """confidence is the probability of the whole interval, both sides together."""
    score = scorer(20)
    values = differences(score, FRAMES, PAIRS[:1])
    for confidence in (0.5, 0.9, 0.99):
        found = bias(student, score, FRAMES, PAIRS[:1], confidence)
        near(found, interval(values, confidence), f"confidence={confidence}")


@pytest.mark.exercise("template_bias", weight=1.5)
def test_several_pairs_in_a_template_are_one_witness(student: Student) -> None:
    """Pairs are averaged within their template first: the same pair thrice makes no interval narrower."""
    for seed, n in enumerate((4, 6)):
        score = scorer(30 + seed)
        right = interval(differences(score, FRAMES[:n], PAIRS))
        near(bias(student, score, FRAMES[:n], PAIRS), right, f"{n} templates, {len(PAIRS)} pairs")
        once = bias(student, score, FRAMES[:n], PAIRS[:1])
        near(bias(student, score, FRAMES[:n], PAIRS[:1] * 3), once, "the same pair three times")
    again, shared = [*FRAMES[:3], FRAMES[0]], [*PAIRS, ("engineer", "dancer")]
    near(
        bias(student, score, again, PAIRS), interval(differences(score, again, PAIRS)), "one of 4 templates is repeated"
    )
    right = interval(differences(score, FRAMES, shared))
    near(bias(student, score, FRAMES, shared), right, "a word that stands in two pairs")


@pytest.mark.exercise("template_bias")
def test_what_a_pair_shares_cancels(student: Student) -> None:
    """A template that makes every score higher, for both words alike, changes neither the mean nor the interval."""
    score = scorer(40)

    def shifted(text: str) -> float:
        return score(text) + (300.0 if text.startswith("A ") else -50.0 if text.startswith("No ") else 0.0)

    right = interval(differences(score, FRAMES, PAIRS[:1]))
    near(bias(student, shifted, FRAMES, PAIRS[:1]), right, "templates at different heights")


@pytest.mark.exercise("template_bias")
def test_swapping_the_words_turns_the_interval_round(student: Student) -> None:
    """Second minus first is the negative of first minus second, and low and high change places."""
    score = scorer(50)
    mean, low, high = bias(student, score, FRAMES, PAIRS)
    assert low < mean < high, "The mean should lie between low and high."
    swapped = bias(student, score, FRAMES, [(second, first) for first, second in PAIRS])
    near(swapped, (-mean, -high, -low), "the words swapped")


@pytest.mark.exercise("template_bias")
def test_every_gap_is_filled_and_other_braces_stay(student: Student) -> None:
    """All gaps of a template get the word; {0}, {x} and lone braces are part of the text."""
    frames = ["The {} and a {} met", "{}", "set {x} to {0} for {}", "}{ {} {{}}"]
    asked: list[str] = []

    def score(text: str) -> float:
        asked.append(text)
        return scorer(60)(text)

    try:
        found = bias(student, score, frames, PAIRS[:1])
    except (IndexError, KeyError, ValueError) as error:
        raise AssertionError(f"A template with several gaps or other braces raises an error: {error}") from None
    wanted = {word.join(frame.split("{}")) for frame in frames for word in PAIRS[0]}
    assert set(asked) == wanted, (
        f"{len(set(asked) - wanted)} of the texts that were scored are not the filled templates."
    )
    near(found, interval(differences(scorer(60), frames, PAIRS[:1])), "templates with several gaps and braces")


@pytest.mark.exercise("template_bias", weight=0.5)
def test_differences_that_agree_leave_no_doubt(student: Student) -> None:
    """If every template shows the same difference, the interval has no width."""
    found = bias(student, lambda text: 2.5 if "engineer" in text else 1.0, FRAMES, PAIRS[:1])
    near(found, (1.5, 1.5, 1.5), "the same difference in all templates")


@pytest.mark.exercise("template_bias", weight=0.5)
def test_one_template_has_no_interval(student: Student) -> None:
    """Fewer than two templates raise a ValueError that says how many there were, however many pairs there are."""
    score = scorer(70)
    near(bias(student, score, FRAMES[:2], PAIRS), interval(differences(score, FRAMES[:2], PAIRS)), "two templates")
    for n in (1, 0):
        message = ""
        try:
            student.template_bias(score, FRAMES[:n], PAIRS)
        except ValueError as error:
            message = str(error)
        assert str(n) in re.findall(r"\d+", message), f"No ValueError says that there were {n} templates."


# -- monitor --------------------------------------------------------------------------------------------------------

NAMES = "threshold, precision, recall"


def tried(scores: Tensor, bad: Tensor, wanted: float) -> Numbers:
    """The best of all thresholds."""
    best = (math.inf, 1.0, 0.0)
    pairs = list(zip(scores.tolist(), bad.tolist(), strict=True))
    for threshold in sorted({score for score, _ in pairs}, reverse=True):
        truth = [is_bad for score, is_bad in pairs if score >= threshold]
        precision, recall = sum(truth) / len(truth), sum(truth) / sum(is_bad for _, is_bad in pairs)
        if precision >= wanted and recall > best[2]:  # from the top: the first with this recall has the best precision
            best = (threshold, precision, recall)
    return best


def alarm(student: Student, scores: Tensor, bad: Tensor, wanted: float) -> Numbers:
    return numbers(student.monitor(scores, bad, wanted), NAMES)


def outputs(n: int, seed: int, levels: int = 0) -> tuple[Tensor, Tensor]:
    """Scores, and outputs that are the likelier bad the higher they are; `levels`: so many different scores."""
    scores = normal(n, seed=seed)
    bad = scores + normal(n, seed=seed + 100) > 0.3
    return ((scores * levels / 4).round() * 4 / levels if levels else scores), bad


@pytest.mark.exercise("monitor", weight=2)
def test_the_largest_recall_at_the_wanted_precision_is_found(student: Student) -> None:
    """Of the thresholds with enough precision it is the one that flags most of what is bad."""
    scores, bad = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, True, False, True])
    near(alarm(student, scores, bad, 0.65), tried(scores, bad, 0.65), "every threshold will do", NAMES)
    for seed in range(4):
        scores, bad = outputs(60, seed)
        for wanted in (0.55, 0.7, 0.85):
            near(alarm(student, scores, bad, wanted), tried(scores, bad, wanted), f"wanted {wanted}", NAMES)


@pytest.mark.exercise("monitor")
def test_precision_may_rise_again(student: Student) -> None:
    """Below a threshold that misses the wanted precision there may be one that reaches it, with more recall."""
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    bad = torch.tensor([False, True, True, True, True, False, False])
    near(alarm(student, scores, bad, 0.75), tried(scores, bad, 0.75), "a false alarm at the very top", NAMES)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    near(alarm(student, scores[order], bad[order], 0.7), tried(scores, bad, 0.7), "in another order", NAMES)


@pytest.mark.exercise("monitor")
def test_outputs_with_the_same_score_are_flagged_together(student: Student) -> None:
    """An output is flagged if its score is at least the threshold: no part of a tie can be left out."""
    for seed in range(3):
        scores, bad = outputs(50, 20 + seed, levels=6)
        for wanted in (0.6, 0.8):
            near(alarm(student, scores, bad, wanted), tried(scores, bad, wanted), f"many ties, wanted {wanted}", NAMES)


@pytest.mark.exercise("monitor")
def test_the_threshold_is_the_highest_with_that_recall(student: Student) -> None:
    """Once everything bad is flagged, a lower threshold only adds false alarms, even where a precision of 0 will do."""
    scores, bad = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0]), torch.tensor([True, False, True, False, False])
    for wanted in (0.0, 0.25, 0.5):
        near(alarm(student, scores, bad, wanted), tried(scores, bad, wanted), f"wanted {wanted}", NAMES)


@pytest.mark.exercise("monitor", weight=0.5)
def test_a_precision_that_is_just_reached_is_enough(student: Student) -> None:
    """ "At least" includes equality: exactly one half is enough where one half is wanted, and 1 where 1 is."""
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    for bad, wanted in (([True] * 4, 1.0), ([False, True, False, False], 0.5), ([True, True, False, True], 0.75)):
        truth = torch.tensor(bad)
        near(alarm(student, scores, truth, wanted), tried(scores, truth, wanted), f"wanted {wanted}", NAMES)


@pytest.mark.exercise("monitor", weight=0.5)
def test_a_precision_out_of_reach_flags_nothing(student: Student) -> None:
    """If no threshold is precise enough, it is infinite, the recall is 0, and of nothing nothing is wrong: 1."""
    scores, bad = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([False, True, True])
    near(alarm(student, scores, bad, 0.5), tried(scores, bad, 0.5), "within reach", NAMES)
    near(alarm(student, scores, bad, 0.95), (math.inf, 1.0, 0.0), "out of reach", NAMES)


@pytest.mark.exercise("monitor", weight=0.5)
def test_without_anything_bad_there_is_no_recall(student: Student) -> None:
    """Where nothing is bad, recall would be 0 divided by 0: a ValueError says so."""
    scores, bad = outputs(30, seed=40)
    near(alarm(student, scores, bad, 0.6), tried(scores, bad, 0.6), "with something bad", NAMES)
    message = ""
    try:
        student.monitor(scores, torch.zeros(30, dtype=torch.bool), 0.6)
    except ValueError as error:
        message = str(error)
    assert message, "Nothing is bad, and no ValueError says so."


@pytest.mark.exercise("monitor", weight=0.5)
def test_any_scale_of_scores_will_do(student: Student) -> None:
    """Scores may be negative, huge or tiny, and only their order decides who is flagged."""
    scores, bad = outputs(40, seed=41)
    _, precision, recall = alarm(student, scores, bad, 0.7)
    near((precision, recall), tried(scores, bad, 0.7)[1:], "as they are", "precision, recall")
    for name, other in (("all negative", scores - 50), ("tiny", scores * 1e-7), ("huge", scores * 1e7)):
        near(alarm(student, other, bad, 0.7), tried(other, bad, 0.7), name, NAMES)
