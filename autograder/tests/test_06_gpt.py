"""Hidden tests of chapter 06. Expected values come from PyTorch: its own Transformer layer, and GPT-2 written in its
functions. tests/test_gpt2_oracle.py shows that this GPT-2 is that of transformers, which takes seconds to import.

Every weight is drawn anew, gains and biases too: at 1 and 0 they hide what was forgotten.
"""

import math
import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

_LAYERS = (
    "torch.nn.MultiheadAttention",
    "torch.nn.modules.MultiheadAttention",
    "torch.nn.modules.activation.MultiheadAttention",
    "torch.nn.functional.multi_head_attention_forward",
    "torch._native_multi_head_attention",
    "torch.nn.TransformerEncoderLayer",
    "torch.nn.modules.TransformerEncoderLayer",
    "torch.nn.modules.transformer.TransformerEncoderLayer",
    "torch.nn.TransformerDecoderLayer",
    "torch.nn.modules.TransformerDecoderLayer",
    "torch.nn.modules.transformer.TransformerDecoderLayer",
    "torch._transformer_encoder_layer_fwd",
)
RESERVED = {"Block": _LAYERS, "Mended": _LAYERS}

PARTS = ("weight", "bias")
Weights = dict[str, Tensor]


# -- GPT-2 in PyTorch's functions, with the names of this course ------------------------------------------------------


def shapes_of_block(d: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a block's state dict."""
    sizes = {f"attention.{letter}_proj": (d, d) for letter in "qkvo"}
    sizes |= {"mlp.up_proj": (4 * d, d), "mlp.down_proj": (d, 4 * d)}
    found: dict[str, tuple[int, ...]] = {f"{norm}.{part}": (d,) for norm in ("norm1", "norm2") for part in PARTS}
    for name, shape in sizes.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def shapes_of_gpt(vocabulary: int, n_context: int, d: int, n_layers: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a GPT's state dict."""
    found: dict[str, tuple[int, ...]] = {"tokens.weight": (vocabulary, d), "positions.weight": (n_context, d)}
    for i in range(n_layers):
        found |= {f"blocks.{i}.{name}": shape for name, shape in shapes_of_block(d).items()}
    return found | {"norm.weight": (d,), "norm.bias": (d,)}


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, std: float = 0.4) -> Weights:
    return {name: std * normal(*shape, seed=1000 * seed + i) for i, (name, shape) in enumerate(shapes.items())}


def gpt2_block(weights: Mapping[str, Tensor], x: Tensor, n_heads: int, start: str = "") -> Tensor:
    """A block of GPT-2 whose weights begin with `start`."""

    def linear(name: str, value: Tensor) -> Tensor:
        return functional.linear(value, weights[f"{start}{name}.weight"], weights[f"{start}{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        gain, bias = (weights[f"{start}{name}.{part}"] for part in PARTS)
        return functional.layer_norm(value, gain.shape, gain, bias, 1e-5)

    y = norm("norm1", x)
    q, k, v = (torch.stack(linear(f"attention.{letter}_proj", y).chunk(n_heads, -1), 1) for letter in "qkv")
    heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + linear("attention.o_proj", torch.cat(heads.unbind(1), -1))
    hidden = functional.gelu(linear("mlp.up_proj", norm("norm2", x)), approximate="tanh")
    return x + linear("mlp.down_proj", hidden)


def gpt2(weights: Mapping[str, Tensor], ids: Tensor, n_heads: int) -> Tensor:
    """The logits of a GPT-2 with these weights."""
    tokens = weights["tokens.weight"]
    x = functional.embedding(ids, tokens) + weights["positions.weight"][: ids.shape[1]]
    for i in range(len({name.split(".")[1] for name in weights if name.startswith("blocks.")})):
        x = gpt2_block(weights, x, n_heads, f"blocks.{i}.")
    gain, bias = weights["norm.weight"], weights["norm.bias"]
    return functional.layer_norm(x, gain.shape, gain, bias, 1e-5) @ tokens.T


# -- modules of students ----------------------------------------------------------------------------------------------


def created(student: Student, name: str, *sizes: int) -> tuple[Remote, Weights]:
    """A new module and its state dict."""
    module = getattr(student, name)(*sizes)
    assert isinstance(module, Remote), f"{name}{sizes} should give a module."
    state = module.state_dict()
    assert isinstance(state, dict), f"The state_dict() should be a dict: is {name} an nn.Module?"
    return module, {str(key): tensor(value, name=str(key)) for key, value in state.items()}


def loaded(student: Student, weights: Weights, name: str, *sizes: int) -> Remote:
    """A module with those of these weights that it has, in evaluation. What it has beside them is zeroed: for both
    there is another test.
    """
    module, state = created(student, name, *sizes)
    weights = {key: value for key, value in weights.items() if key in state}
    module.load_state_dict({key: torch.zeros_like(value) for key, value in state.items()} | weights)
    if len(state) > len(weights):  # a weight that has two names was zeroed under the other one
        module.load_state_dict(weights, strict=False)
    module.eval()
    return module


def block(student: Student, weights: Weights, n_heads: int) -> Remote:
    return loaded(student, weights, "Block", len(weights["norm1.bias"]), n_heads)


def check_state(student: Student, module: Remote, state: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Assert that a new module has these parameters, finite and trained, and nothing beside them."""
    trained = set(student.grads(module))
    assert set(state) == set(shapes), (
        f"Too many in the state dict: {sorted(set(state) - set(shapes))}; missing: {sorted(set(shapes) - set(state))}."
    )
    assert trained == set(shapes), (
        f"Of the state dict these are not trained: {sorted(set(shapes) - trained)}; "
        f"trained beside it: {sorted(trained - set(shapes))}."
    )
    for name, shape in shapes.items():
        tensor(state[name], shape=shape, dtype=torch.float32, name=name)
        assert state[name].isfinite().all(), f"{name} is not finite in a new module: was it never initialised?"


def raised_by(make: object) -> StudentError | None:
    """What the student's code raises when this is called; an exercise without an answer stays one."""
    assert callable(make), "There is nothing to call."
    try:
        make()
    except Unfinished:
        raise
    except StudentError as error:
        return error
    return None


def check_sentence(raised: StudentError | None, numbers: set[int], what: str) -> None:
    kind = raised.types[0] if raised else "nothing"
    assert isinstance(raised, ValueError), f"{what} raises {kind}, and it should raise a ValueError."
    named = {int(number) for number in re.findall(r"\d+", str(raised))}
    assert numbers <= named, f"The sentence does not name both numbers: {raised}"


# -- Block ------------------------------------------------------------------------------------------------------------

SIZES = ((2, 5, 12, 3), (3, 9, 10, 5), (1, 70, 6, 1), (2, 3, 4, 4), (3, 1, 4, 2))  # batch, n, d_model, n_heads


@pytest.mark.exercise("Block")
def test_the_block_has_the_stated_parameters(student: Student) -> None:
    """The state dict holds a weight and a bias of each of the eight layers, in the stated shapes, all trained."""
    for d_model, n_heads in ((12, 3), (10, 5)):
        module, state = created(student, "Block", d_model, n_heads)
        check_state(student, module, state, shapes_of_block(d_model))


@pytest.mark.exercise("Block", weight=3)
def test_the_block_is_that_of_gpt2(student: Student) -> None:
    """With the same random weights, gains and biases too, it gives what the block of GPT-2 gives."""
    for seed, (batch, n, d_model, n_heads) in enumerate(SIZES):
        weights, x = random_weights(shapes_of_block(d_model), seed), normal(batch, n, d_model, seed=seed)
        expected = gpt2_block(weights, x, n_heads)
        claim = f"d_model {d_model}, {n_heads} heads, x {tuple(x.shape)}"
        assert_close(block(student, weights, n_heads)(x), expected, claim=claim)
    weights, x = random_weights(shapes_of_block(12), seed=9), normal(2, 5, 12, seed=9)
    weights |= {name: torch.zeros_like(value) for name, value in weights.items() if "q_proj" in name}
    expected = gpt2_block(weights, x, 3)
    assert_close(block(student, weights, 3)(x), expected, claim="with q_proj at zero, where all scores are 0")


@pytest.mark.exercise("Block")
def test_the_block_adds_to_what_came_in(student: Student) -> None:
    """With o_proj and down_proj at zero x comes out as it went in, and each of the two is a sum with x."""
    x, weights = normal(2, 5, 12, seed=1), random_weights(shapes_of_block(12), seed=2)
    silent = {name: torch.zeros_like(weights[name]) for name in weights if "o_proj" in name or "down" in name}
    assert_close(block(student, weights | silent, 3)(x), x, atol=1e-6, claim="with both sub-layers silent")
    for part in ("o_proj", "down_proj"):
        name = f"{'attention' if part == 'o_proj' else 'mlp'}.{part}.bias"
        shift = normal(12, seed=3)
        found = tensor(block(student, weights | silent | {name: shift}, 3)(x), shape=x.shape)
        assert_close(found.detach() - x, shift.expand(2, 5, 12), atol=1e-5, name=f"what a bias of {part} adds to x")


@pytest.mark.exercise("Block")
def test_a_block_never_looks_ahead(student: Student) -> None:
    """A change at position j is noticed at j and after it, and by nobody before, however well a later key fits."""
    x, weights = normal(2, 7, 12, seed=1), random_weights(shapes_of_block(12), seed=2)
    large = {name: 1e3 * value for name, value in weights.items() if "q_proj" in name or "k_proj" in name}
    for scores, module in (
        ("", block(student, weights, 3)),
        (", with huge scores", block(student, weights | large, 3)),
    ):
        before = tensor(module(x), shape=x.shape).detach()
        for j in (0, 3, 6):
            changed = x.clone()
            changed[:, j] += normal(12, seed=j)
            after = tensor(module(changed), shape=x.shape).detach()
            claim = f"after a change at position {j}{scores}"
            assert_close(after[:, :j], before[:, :j], claim=claim, name="what came before it")
            assert scores or (after[:, j:] != before[:, j:]).any(-1).all(), (
                f"Who may see position {j} does not notice that it changed."
            )


@pytest.mark.exercise("Block")
def test_the_stream_itself_is_not_normalised(student: Student) -> None:
    """The sub-layers read normalised copies, so a stream ten thousand times as large gets as much added to it."""
    x, weights = normal(2, 5, 12, seed=1).double(), random_weights(shapes_of_block(12), seed=2)
    silent = {name: torch.zeros_like(weights[name]) for name in weights if "down_proj" in name}
    module = block(student, weights | silent, 3)
    module.double()
    added = [tensor(module(scale * x), shape=x.shape).detach() - scale * x for scale in (1e2, 1e6)]
    assert added[0].abs().mean() > 1e-2, "With the feed-forward part silent, attention adds nothing."
    assert_close(added[1], added[0], atol=1e-3, rtol=1e-3, name="what attention adds to a larger stream")


@pytest.mark.exercise("Block")
def test_gelu_is_in_its_tanh_form(student: Student) -> None:
    """GPT-2's GELU is the tanh form: it and the exact one differ from the fourth digit on, so float64 is compared."""
    weights = {name: value.double() for name, value in random_weights(shapes_of_block(12), seed=3).items()}
    for name in weights:
        if "o_proj" in name:
            weights[name] = torch.zeros_like(weights[name])
        if "down_proj" in name:
            weights[name] = weights[name].abs()  # so that small differences do not cancel
    x = normal(2, 5, 12, seed=4).double()
    module, _ = created(student, "Block", 12, 3)
    module.double()
    module.load_state_dict(weights, strict=False)
    assert_close(module(x), gpt2_block(weights, x, 3), atol=5e-5, rtol=0, claim="in float64")


@pytest.mark.exercise("Block")
def test_eps_is_one_in_a_hundred_thousand(student: Student) -> None:
    """Both norms add eps = 1e-5 to the variance: inputs that are nearly alike show it."""
    for name in ("attention.o_proj", "mlp.down_proj"):
        weights = random_weights(shapes_of_block(12), seed=5)
        weights |= {f"{name}.{part}": torch.zeros_like(weights[f"{name}.{part}"]) for part in PARTS}
        for scale in (1e-2, 1e-3, 1e-4):
            x = scale * normal(2, 5, 12, seed=6)
            expected = gpt2_block(weights, x, 3)
            assert_close(block(student, weights, 3)(x), expected, atol=0.02, rtol=0, claim=f"with x of size {scale:g}")


@pytest.mark.exercise("Block", weight=2)
def test_gradients_reach_x_and_every_parameter_of_the_block(student: Student) -> None:
    """Everything learns: the gradients of x and of all sixteen parameters are those of GPT-2's block."""
    weights = random_weights(shapes_of_block(12), seed=1)
    x, upstream = normal(2, 5, 12, seed=2).requires_grad_(), normal(2, 5, 12, seed=3)
    module = block(student, weights, 3)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    expected = gradients(gpt2_block(leaves, x, 3), upstream, x=x, **leaves)
    found = {"x": gradients(module(x), upstream, x=x)["x"], **student.grads(module)}
    for name, value in expected.items():
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=2e-2, rtol=2e-2, name=f"the gradient of {name}")


@pytest.mark.exercise("Block", weight=0.5)
def test_heads_of_a_block_share_the_channels_equally(student: Student) -> None:
    """If d_model is not divisible by n_heads, creating the block raises a ValueError that names both numbers."""
    created(student, "Block", 12, 3)  # this one is divisible
    for sizes in ((10, 4), (6, 12)):
        check_sentence(raised_by(partial(student.Block, *sizes)), set(sizes), f"Block{sizes}")


@pytest.mark.exercise("Block")
def test_a_block_has_no_dropout_and_no_memory(student: Student) -> None:
    """The same x gives the same output, called twice, in training and in evaluation, and after other sizes."""
    x, module = normal(2, 5, 12, seed=1), block(student, random_weights(shapes_of_block(12), seed=2), 3)
    names = sorted(module.state_dict())
    first = tensor(module(x), shape=x.shape).detach()
    assert (first != x).any(-1).all(), "The block returns x as it came."
    module.train()
    assert_close(module(x), first, claim="in training")
    assert tuple(tensor(module(normal(1, 9, 12, seed=3))).shape) == (1, 9, 12), "A longer text changes the shape."
    assert_close(module(x), first, claim="after a text of another length")
    assert_close(module(x[:1]), first[:1], claim="one sequence of the batch alone")
    assert sorted(module.state_dict()) == names, "A call leaves something in the state dict."


@pytest.mark.exercise("Block", weight=0.5)
def test_a_block_takes_other_dtypes_and_leaves_x_alone(student: Student) -> None:
    """A block in float64 or bfloat16 takes and gives that dtype, and x belongs to the caller."""
    weights, x = random_weights(shapes_of_block(12), seed=1), normal(2, 5, 12, seed=2)
    kept, module = student.put(x), block(student, weights, 3)
    assert_close(module(kept), gpt2_block(weights, x, 3), atol=0.02)
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
    module.double()
    double = {name: value.double() for name, value in weights.items()}
    assert_close(module(x.double()), gpt2_block(double, x.double(), 3), atol=0.02, name="the float64 result")
    module.bfloat16()
    expected = gpt2_block(double, x.double(), 3).bfloat16()
    assert_close(module(x.bfloat16()), expected, atol=0.3, rtol=0.1, name="the bfloat16 result")


# -- GPT --------------------------------------------------------------------------------------------------------------


def gpt(student: Student, weights: Weights, n_layers: int, n_heads: int) -> Remote:
    vocabulary, d_model = weights["tokens.weight"].shape
    return loaded(student, weights, "GPT", vocabulary, len(weights["positions.weight"]), d_model, n_layers, n_heads)


def some_ids(vocabulary: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.exercise("GPT")
def test_the_model_has_the_stated_parameters(student: Student) -> None:
    """The state dict holds two tables, the blocks and the last norm: no read-out matrix, no mask."""
    for sizes in ((17, 9, 8, 1, 2), (11, 6, 12, 3, 4)):
        module, state = created(student, "GPT", *sizes)
        check_state(student, module, state, shapes_of_gpt(*sizes[:4]))


@pytest.mark.exercise("GPT", weight=3)
def test_the_model_is_gpt2(student: Student) -> None:
    """With the same random weights it gives the logits of GPT-2, for texts up to n_context."""
    for seed, (batch, n, vocabulary, n_context, d_model, n_layers, n_heads) in enumerate(
        [(2, 7, 23, 12, 12, 2, 3), (3, 10, 17, 10, 8, 3, 4), (1, 1, 9, 5, 6, 1, 1), (2, 65, 31, 70, 4, 2, 2)]
    ):
        weights = random_weights(shapes_of_gpt(vocabulary, n_context, d_model, n_layers), seed)
        ids = some_ids(vocabulary, batch, n, seed=seed)
        expected = gpt2(weights, ids, n_heads)
        claim = f"{n_layers} blocks, ids of shape {tuple(ids.shape)}"
        assert_close(gpt(student, weights, n_layers, n_heads)(ids), expected, claim=claim)


@pytest.mark.exercise("GPT")
def test_a_token_knows_its_position(student: Student) -> None:
    """Position i gets row i of the table, the first token row 0, and in every sequence of the batch alike."""
    weights = random_weights(shapes_of_gpt(9, 8, 8, 1), seed=1)
    weights |= {name: torch.zeros_like(v) for name, v in weights.items() if "o_proj" in name or "down" in name}
    module, ids = gpt(student, weights, 1, 2), torch.tensor([[3] * 6, [5] * 6])
    before = tensor(module(ids), shape=(2, 6, 9)).detach()
    assert (before[:, 1:] != before[:, :-1]).any(-1).all(), "The same token at two positions gives the same logits."
    for row in (0, 3, 5):
        table = weights["positions.weight"].clone()
        table[row] += normal(8, seed=row)
        after = tensor(gpt(student, weights | {"positions.weight": table}, 1, 2)(ids), shape=(2, 6, 9)).detach()
        moved = ((after - before).abs() > 1e-5).any(-1)
        assert moved[:, row].all(), f"Row {row} of the table of positions changed, and position {row} did not notice."
        assert int(moved.sum()) == 2, f"Row {row} of the table of positions changed, and another position noticed."


@pytest.mark.exercise("GPT")
def test_the_read_out_is_the_table_of_tokens(student: Student) -> None:
    """The logits are dot products of the normalised stream with the rows of tokens.weight: not scaled, no bias."""
    weights = random_weights(shapes_of_gpt(11, 6, 8, 2), seed=1)
    module, ids = gpt(student, weights, 2, 2), some_ids(10, 2, 5, seed=2)  # token 10 is never in the text
    before = tensor(module(ids), shape=(2, 5, 11)).detach()
    table = weights["tokens.weight"].clone()
    table[10] = 2 * table[3] - table[7]
    after = tensor(gpt(student, weights | {"tokens.weight": table}, 2, 2)(ids), shape=(2, 5, 11)).detach()
    assert_close(after[..., :10], before[..., :10], name="the logits of the other tokens, after one row changed")
    assert_close(
        after[..., 10], 2 * before[..., 3] - before[..., 7], atol=1e-3, name="the logits of the row that changed"
    )
    lengths = torch.linalg.lstsq(weights["tokens.weight"][:10], before[..., :10].flatten(0, 1).T).solution
    shifted = (lengths - weights["norm.bias"][:, None]) / weights["norm.weight"][:, None]
    assert_close(shifted.square().mean(0), torch.ones(10), atol=1e-2, name="the variance that is read out")


@pytest.mark.exercise("GPT")
def test_the_last_norm_stands_before_the_read_out(student: Student) -> None:
    """norm is applied after the last block, with its gain and bias: without it the logits follow the stream's size."""
    weights = random_weights(shapes_of_gpt(13, 6, 8, 2), seed=3)
    ids = some_ids(13, 2, 5, seed=4)
    flat = weights | {"norm.weight": torch.zeros(8)}
    expected = (weights["tokens.weight"] @ weights["norm.bias"]).expand(2, 5, 13)
    assert_close(gpt(student, flat, 2, 2)(ids), expected, claim="with a gain of zero in the last norm")
    tiny = weights | {name: 1e-3 * weights[name] for name in weights if "blocks" not in name and "norm" not in name}
    tiny |= {name: torch.zeros_like(v) for name, v in weights.items() if "o_proj" in name or "down" in name}
    found = tensor(gpt(student, tiny, 2, 2)(ids), shape=(2, 5, 13)).detach()
    assert_close(1e3 * found, 1e3 * gpt2(tiny, ids, 2), atol=1e-3, rtol=1e-3, claim="with a very small stream")


@pytest.mark.exercise("GPT")
def test_no_logit_depends_on_a_later_token(student: Student) -> None:
    """Other tokens from position j on change the logits there, and none before."""
    weights, ids = random_weights(shapes_of_gpt(23, 12, 12, 2), seed=1), some_ids(23, 2, 9, seed=2)
    module = gpt(student, weights, 2, 3)
    before = tensor(module(ids), shape=(2, 9, 23)).detach()
    for j in (1, 5, 8):
        other = ids.clone()
        other[:, j] = (other[:, j] + 1) % 23
        after = tensor(module(other), shape=(2, 9, 23)).detach()
        assert_close(after[:, :j], before[:, :j], claim=f"with another token at {j}", name="the logits before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), f"With another token at {j} the logits there stay."
        assert_close(module(ids[:, :j]), before[:, :j], claim=f"with a text of {j} tokens")


@pytest.mark.exercise("GPT", weight=2)
def test_a_new_model_is_initialised_as_stated(student: Student) -> None:
    """Matrices are normal with 0.02, those that write into the stream with 0.02/√(2·n_layers); biases 0, gains 1."""
    n_layers = 3
    _, state = created(student, "GPT", 97, 64, 48, n_layers, 4)
    missing = sorted(set(shapes_of_gpt(97, 64, 48, n_layers)) - set(state))
    assert not missing, f"The state dict lacks {missing}."
    for name in shapes_of_gpt(97, 64, 48, n_layers):
        value = state[name].double()
        if value.dim() == 1:
            wanted = 0.0 if name.endswith("bias") else 1.0
            assert bool((value == wanted).all()), f"{name} is not {wanted:g} everywhere in a new model."
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / math.sqrt(2 * n_layers) if writes else 0.02
        found = value.std().item()
        assert math.isclose(found, std, rel_tol=0.08), f"{name} has a standard deviation of {found:.4f} in a new model."
        assert abs(value.mean().item()) < 0.1 * std, f"{name} has a mean of {value.mean():.4f} in a new model."
        assert value.abs().max() > 2.5 * found, (
            f"{name} holds no large numbers: is it drawn from a normal distribution?"
        )
    first, second = (state[f"blocks.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert (first != second).any(), "Two blocks begin with the same numbers."
    _, other = created(student, "GPT", 97, 64, 48, n_layers, 4)
    assert (other["tokens.weight"] != state["tokens.weight"]).any(), "Two new models begin with the same numbers."


@pytest.mark.exercise("GPT")
def test_a_text_longer_than_the_context_is_refused(student: Student) -> None:
    """forward raises a ValueError that names both numbers where n is larger than n_context; n_context itself fits."""
    module, _ = created(student, "GPT", 11, 7, 8, 1, 2)
    assert raised_by(partial(module, some_ids(11, 2, 7, seed=1))) is None, "A text of n_context tokens is refused."
    tensor(module(some_ids(11, 2, 7, seed=1)), shape=(2, 7, 11))
    for n in (8, 19):
        check_sentence(raised_by(partial(module, some_ids(11, 2, n, seed=2))), {n, 7}, f"A text of {n} tokens")


@pytest.mark.exercise("GPT", weight=2)
def test_gradients_reach_every_parameter_of_the_model(student: Student) -> None:
    """Everything learns, and the table of tokens twice: as the way in and as the way out."""
    weights, ids = random_weights(shapes_of_gpt(13, 8, 8, 2), seed=1), some_ids(13, 2, 6, seed=2)
    ids[0, 2], ids[1, 4] = 0, 12  # the first and the last token of the table are tokens like any other
    upstream, module = normal(2, 6, 13, seed=3), gpt(student, weights, 2, 2)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    expected = gradients(gpt2(leaves, ids, 2), upstream, **leaves)
    out = tensor(module(ids), shape=(2, 6, 13), dtype=torch.float32)
    assert out.requires_grad, "No gradient flows through the logits: something on the way was detached or rebuilt."
    out.backward(upstream)
    found = student.grads(module)
    for name, value in expected.items():
        grad = found.get(name)
        assert grad is not None, f"No gradient reaches {name}."
        assert_close(grad, value, atol=3e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("GPT", weight=0.5)
def test_a_model_has_no_dropout_and_takes_other_dtypes(student: Student) -> None:
    """Training and evaluation agree, and a model in float64 gives float64. Ids are left as they were."""
    weights, ids = random_weights(shapes_of_gpt(13, 8, 8, 2), seed=1), some_ids(13, 2, 6, seed=2)
    module, kept = gpt(student, weights, 2, 2), student.put(ids)
    expected = gpt2(weights, ids, 2)
    module.train()
    assert_close(module(kept), expected, claim="in training")
    assert_close(kept.get(), ids, claim="after the call", name="ids")
    module.double()
    double = {name: value.double() for name, value in weights.items()}
    assert_close(module(ids), gpt2(double, ids, 2), atol=1e-6, rtol=1e-6, name="the float64 logits")


# -- from_gpt2 --------------------------------------------------------------------------------------------------------


def theirs(weights: Weights) -> Weights:
    """The same weights as transformers' GPT2LMHeadModel keeps them."""
    found = {"transformer.wte.weight": weights["tokens.weight"], "transformer.wpe.weight": weights["positions.weight"]}
    for i in range(len({name.split(".")[1] for name in weights if name.startswith("blocks.")})):
        ours, layer = f"blocks.{i}.", f"transformer.h.{i}."
        for part in PARTS:
            found[f"{layer}ln_1.{part}"] = weights[f"{ours}norm1.{part}"]
            fused = torch.cat([weights[f"{ours}attention.{letter}_proj.{part}"] for letter in "qkv"])
            found[f"{layer}attn.c_attn.{part}"] = fused.t() if part == "weight" else fused
            for name, own in (("attn.c_proj", "attention.o_proj"),):
                value = weights[f"{ours}{own}.{part}"]
                found[f"{layer}{name}.{part}"] = value.t() if part == "weight" else value
            found[f"{layer}ln_2.{part}"] = weights[f"{ours}norm2.{part}"]
            for name, own in (("mlp.c_fc", "mlp.up_proj"), ("mlp.c_proj", "mlp.down_proj")):
                value = weights[f"{ours}{own}.{part}"]
                found[f"{layer}{name}.{part}"] = value.t() if part == "weight" else value
    found |= {f"transformer.ln_f.{part}": weights[f"norm.{part}"] for part in PARTS}
    return {name: value.contiguous() for name, value in found.items()} | {"lm_head.weight": weights["tokens.weight"]}


def converted(student: Student, state: Weights) -> Weights:
    """What from_gpt2 gives, as tensors by name."""
    found = student.from_gpt2(state)
    assert isinstance(found, dict), "from_gpt2 should return a plain dict: dict(…) makes one of what you have."
    return {str(name): tensor(value, name=str(name)).detach() for name, value in found.items()}


def check_parts(student: Student, parts: tuple[str, ...], seed: int) -> None:
    """Assert that these parameters arrive as they should, in models of several shapes."""
    for n_layers, d_model in ((1, 4), (3, 6)):
        weights = random_weights(shapes_of_gpt(11, 5, d_model, n_layers), seed)
        found = converted(student, theirs(weights))
        for name, value in weights.items():
            if any(part in name for part in parts):
                assert name in found, f"{name} is missing."
                assert_close(found[name], value, atol=0, rtol=0, name=name)


@pytest.mark.exercise("from_gpt2")
def test_the_names_are_those_of_the_course(student: Student) -> None:
    """The result has the names of GPT and no other: no lm_head, which may be missing, and no fused matrix."""
    for n_layers in (1, 3):
        shapes = shapes_of_gpt(11, 5, 4, n_layers)
        state = theirs(random_weights(shapes, seed=1))
        for claim in ("with lm_head.weight", "without lm_head.weight"):
            raised = raised_by(partial(student.from_gpt2, state))
            assert raised is None, f"A state dict {claim} raises {raised.types[0] if raised else ''}: {raised}"
            found = set(converted(student, state))
            extra, missing = sorted(found - set(shapes)), sorted(set(shapes) - found)
            assert found == set(shapes), f"Too many: {extra}; missing: {missing}."
            state.pop("lm_head.weight", None)


@pytest.mark.exercise("from_gpt2")
def test_tables_and_norms_are_renamed(student: Student) -> None:
    """wte, wpe, ln_1, ln_2 and ln_f arrive with their values, each under its own name."""
    check_parts(student, ("tokens", "positions", "norm"), seed=1)


@pytest.mark.exercise("from_gpt2", weight=2)
def test_the_fused_projection_is_cut_into_q_k_and_v(student: Student) -> None:
    """c_attn holds q, then k, then v, weights and biases, as x @ weight has them; nn.Linear stores the transpose."""
    check_parts(student, ("q_proj", "k_proj", "v_proj"), seed=2)


@pytest.mark.exercise("from_gpt2")
def test_a_square_matrix_is_transposed_too(student: Student) -> None:
    """attn.c_proj is square, so it fits both ways round, and only one of them is right."""
    check_parts(student, ("o_proj",), seed=3)


@pytest.mark.exercise("from_gpt2")
def test_the_feed_forward_weights_are_transposed(student: Student) -> None:
    """c_fc is up_proj and mlp.c_proj is down_proj, each stored by nn.Linear as (out, in)."""
    check_parts(student, ("up_proj", "down_proj"), seed=4)


@pytest.mark.exercise("from_gpt2")
def test_twelve_blocks_keep_their_order(student: Student) -> None:
    """Block 11 is block 11: numbers may have two digits, and names may come in any order."""
    weights = random_weights(shapes_of_gpt(7, 5, 2, 12), seed=5)
    state = theirs(weights)
    found = converted(student, {name: state[name] for name in sorted(state, reverse=True)})
    assert set(found) == set(weights), f"The names are not those of 12 blocks: {len(found)} of {len(weights)}."
    for i in (11, 1, 10, 2):
        for name in ("norm1.bias", "mlp.down_proj.bias", "attention.v_proj.bias"):
            assert_close(found[f"blocks.{i}.{name}"], weights[f"blocks.{i}.{name}"], atol=0, name=f"blocks.{i}.{name}")


@pytest.mark.exercise("from_gpt2")
def test_the_converted_weights_give_the_same_logits(student: Student) -> None:
    """What GPT-2 says with its weights, GPT says with the converted ones, also if old masks came with them."""
    weights, ids = random_weights(shapes_of_gpt(19, 8, 12, 2), seed=6), some_ids(19, 2, 8, seed=7)
    state = theirs(weights)
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    found = converted(student, state)
    extra = sorted(set(found) - set(weights))
    assert not extra, f"With the masks of older versions in it, the result holds {extra} as well."
    assert not set(weights) - set(found), f"These are missing: {sorted(set(weights) - set(found))}."
    for name, value in weights.items():
        tensor(found[name], shape=value.shape, dtype=value.dtype, name=name)
    assert_close(gpt2(found, ids, 3), gpt2(weights, ids, 3), name="the logits with the converted weights")


@pytest.mark.exercise("from_gpt2", weight=0.5)
def test_the_state_dict_that_came_in_stays(student: Student) -> None:
    """The caller's dict keeps its names and values, and dtypes are kept: bfloat16 stays bfloat16."""
    weights = {name: value.bfloat16() for name, value in random_weights(shapes_of_gpt(7, 5, 4, 2), seed=8).items()}
    state = theirs(weights)
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 5, 5).tril()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    kept = student.put(state)
    found = student.from_gpt2(kept)
    assert isinstance(found, dict), "from_gpt2 should return a plain dict: dict(…) makes one of what you have."
    assert set(found) >= set(weights), f"These are missing: {sorted(set(weights) - set(found))}."
    for name in weights:
        tensor(found[name], dtype=torch.bfloat16, name=name)
    after = kept.get()
    assert isinstance(after, dict), "After the call the caller's state dict is no dict any more."
    assert set(after) == set(state), "After the call the caller's state dict has other names."
    for name, value in state.items():
        assert_close(after[name], value, atol=0, rtol=0, claim="after the call", name=name)


# -- learning_rate ----------------------------------------------------------------------------------------------------

CURVES = ((3.0, 10, 60, 0.5), (0.5, 1, 9, 0.0), (2e-3, 0, 25, 3e-4), (2.0, 29, 30, 0.5), (1.0, 7, 8, 1.0))


def rate(student: Student, step: int, shape: tuple[float, int, int, float]) -> float:
    """The student's rate of a step, as a number whatever its type is."""
    peak, warmup, steps, final = shape
    found = student.learning_rate(step, peak=peak, warmup=warmup, steps=steps, final=final)
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    assert isinstance(found, int | float), f"The rate of step {step} should be a number."
    return float(found)


def check_rate(found: float, wanted: float, peak: float, what: str) -> None:
    assert math.isfinite(found), f"{what} the rate is not a finite number."
    assert abs(found - wanted) <= 1e-6 * peak, f"{what} the rate is {found / peak:.4g} times the peak."


@pytest.mark.exercise("learning_rate")
def test_warm_up_climbs_in_equal_strides(student: Student) -> None:
    """The stride from 0 to step 0 is the one from each step to the next, up to the peak at step `warmup`."""
    for shape in CURVES:
        peak, warmup, _, _ = shape
        rates = [0.0, *(rate(student, step, shape) for step in range(warmup + 1))]
        check_rate(rates[-1], peak, peak, f"At step {warmup}, after {warmup} steps of warm-up,")
        for step, (before, after) in enumerate(pairwise(rates)):
            assert math.isclose((after - before) * (warmup + 1), peak, rel_tol=1e-4), (
                f"With warmup = {warmup}, the stride to step {step} is {(after - before) / peak:.4g} times the peak."
            )


@pytest.mark.exercise("learning_rate")
def test_the_first_step_is_not_wasted(student: Student) -> None:
    """Step 0 has a rate above 0, and below the peak where there is a warm-up."""
    for shape in CURVES:
        peak, warmup, _, _ = shape
        found = rate(student, 0, shape)
        assert found > 0, f"With warmup = {warmup}, step 0 has the rate {found:g}: it changes nothing."
        assert warmup == 0 or found < peak, f"With warmup = {warmup}, step 0 has the whole peak at once."


@pytest.mark.exercise("learning_rate")
def test_the_curve_falls_from_peak_to_final(student: Student) -> None:
    """It starts at the peak, is halfway between the two rates halfway, ends at `final`, and never rises."""
    for shape in ((3.0, 10, 60, 0.5), (0.5, 1, 9, 0.0), (2.0, 0, 26, 0.3)):
        peak, warmup, steps, final = shape
        middle = (warmup + steps) // 2
        check_rate(rate(student, warmup, shape), peak, peak, f"At step {warmup}, the peak,")
        check_rate(rate(student, middle, shape), (peak + final) / 2, peak, f"At step {middle}, halfway,")
        check_rate(rate(student, steps, shape), final, peak, f"At step {steps}, the end,")
        rates = [rate(student, step, shape) for step in range(warmup, steps + 1)]
        assert all(a > b for a, b in pairwise(rates)), "Between peak and end the rate rises."


def curve(step: int, peak: float, warmup: int, steps: int, final: float) -> float:
    """The curve of PyTorch's LinearLR and then CosineAnnealingLR; tests/test_gpt2_oracle.py compares them."""
    if step < warmup:
        return peak / (warmup + 1) + (peak - peak / (warmup + 1)) * step / warmup
    return final + (peak - final) * math.cos((step - warmup) / (steps - warmup) * math.pi / 2) ** 2


@pytest.mark.exercise("learning_rate", weight=2)
def test_every_step_has_its_rate(student: Student) -> None:
    """At every step it is what PyTorch's LinearLR and CosineAnnealingLR give, one after the other."""
    for peak, warmup, steps, final in ((1e-3, 10, 41, 1e-4), (0.5, 1, 9, 0.0), (0.3, 3, 20, 0.1), (1.0, 0, 13, 0.5)):
        for step in range(steps + 1):
            found = rate(student, step, (peak, warmup, steps, final))
            wanted = curve(step, peak, warmup, steps, final)
            check_rate(found, wanted, peak, f"At step {step} of {steps}, with warmup = {warmup},")


@pytest.mark.exercise("learning_rate")
def test_after_the_last_step_it_stays_final(student: Student) -> None:
    """From step `steps` on the rate is `final`: the cosine does not climb again."""
    for shape in CURVES:
        peak, warmup, steps, final = shape
        for step in (steps, steps + 1, steps + 17, 3 * steps):
            check_rate(rate(student, step, shape), final, peak, f"At step {step}, where the curve ends at {steps},")
        assert rate(student, warmup, shape) > final or peak == final, "The rate does not fall."


@pytest.mark.exercise("learning_rate", weight=0.5)
def test_the_rate_is_a_float(student: Student) -> None:
    """Every part of the curve gives a Python float, no tensor and no integer, and scales with its rates."""
    seen = set()
    for step in (1, 4, 5, 20, 40):
        found = student.learning_rate(step, peak=0.25, warmup=5, steps=30, final=0.125)
        assert isinstance(found, float), f"At step {step} the rate is a {type(found).__name__}."
        assert 0 < found <= 0.25, f"At step {step} the rate is {found:g}, where the peak is 0.25."
        twice = student.learning_rate(step, peak=0.5, warmup=5, steps=30, final=0.25)
        assert isinstance(twice, float), f"At step {step} the rate is a {type(twice).__name__}."
        assert math.isclose(twice, 2 * found, rel_tol=1e-6), (
            f"At step {step}, twice the rates do not give twice the rate."
        )
        seen.add(found)
    assert len(seen) > 2, "The rate hardly ever changes."


# -- accumulate -------------------------------------------------------------------------------------------------------

VOCABULARY, WIDTH = 11, 6
Batches = list[tuple[Tensor, Tensor]]


def watched(student: Student, *told: object) -> tuple[Remote, Weights]:
    """A small model in the student's process, with random weights."""
    shapes = {"tokens.weight": (VOCABULARY, WIDTH), "read.weight": (VOCABULARY, WIDTH), "read.bias": (VOCABULARY,)}
    weights = random_weights(shapes, seed=1, std=1.0)
    model = student.Watched(VOCABULARY, WIDTH, *told)
    model.load_state_dict(weights)
    return model, weights


def micro_batches(*shapes: tuple[int, int], seed: int, uncounted: float = 0.0) -> Batches:
    """Random ids and targets, of which some do not count."""
    found = []
    for i, shape in enumerate(shapes):
        ids, targets = some_ids(VOCABULARY, *shape, seed=seed + i), some_ids(VOCABULARY, *shape, seed=seed + 50 + i)
        drop = torch.rand(shape, generator=torch.Generator().manual_seed(seed + i)) < uncounted
        found.append((ids, targets.masked_fill(drop, -100)))
    return found


def whole(weights: Weights, batches: Batches) -> tuple[float, Weights]:
    """The loss and its gradients, all micro-batches at once."""
    leaves = {name: value.clone().double().requires_grad_() for name, value in weights.items()}
    ids = torch.cat([ids.flatten() for ids, _ in batches])
    targets = torch.cat([targets.flatten() for _, targets in batches])
    hidden = functional.embedding(ids, leaves["tokens.weight"]).tanh()
    logits = functional.linear(hidden, leaves["read.weight"], leaves["read.bias"])
    loss = functional.cross_entropy(logits, targets)
    loss.backward()
    return loss.item(), {name: leaf.grad.float() for name, leaf in leaves.items() if leaf.grad is not None}


def number(found: object) -> float:
    """A loss as a number whatever its type is, which has a test of its own."""
    value = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
    assert isinstance(value, int | float), f"accumulate should return a float, and it returns a {type(found).__name__}."
    return float(value)


def check_gradients(student: Student, model: Remote, expected: Weights, claim: str) -> None:
    found = student.grads(model)
    for name, value in expected.items():
        grad = found.get(name)
        assert grad is not None, f"{claim}: {name} has no gradient after the call."
        assert_close(grad, value, atol=1e-6, rtol=1e-3, claim=claim, name=f"the gradient of {name}")


@pytest.mark.exercise("accumulate")
def test_equal_micro_batches_give_the_whole_batch(student: Student) -> None:
    """Where all micro-batches are equally large, the gradient is that of all of them in one batch."""
    for count in (1, 3):
        batches = micro_batches(*[(2, 5)] * count, seed=1)
        model, weights = watched(student)
        student.accumulate(model, batches)
        check_gradients(student, model, whole(weights, batches)[1], f"{count} micro-batches of (2, 5)")


@pytest.mark.exercise("accumulate", weight=2)
def test_every_token_weighs_the_same(student: Student) -> None:
    """Micro-batches of different size: the gradient is that of the mean over all tokens, no mean of means."""
    batches = micro_batches((1, 2), (4, 9), (2, 1), (1, 30), seed=2)
    model, weights = watched(student)
    student.accumulate(model, batches)
    check_gradients(student, model, whole(weights, batches)[1], "micro-batches of 2, 36, 2 and 30 tokens")
    texts = [some_ids(VOCABULARY, 2, n, seed=n) for n in (9, 3)]
    model, weights = watched(student)
    raised = raised_by(partial(student.accumulate, model, student.Slices(texts)))
    assert raised is None, f"ids and targets that are slices of a tensor of texts raise an error: {raised}"
    expected = whole(weights, [(text[:, :-1], text[:, 1:]) for text in texts])[1]
    check_gradients(student, model, expected, "with slices of a tensor of texts")


@pytest.mark.exercise("accumulate", weight=2)
def test_targets_that_do_not_count_have_no_weight(student: Student) -> None:
    """A target of −100 counts neither in the sum nor in the number that divides it, also where no other is there."""
    batches = micro_batches((2, 6), (3, 4), (1, 9), seed=3, uncounted=0.5)
    empty = (some_ids(VOCABULARY, 2, 4, seed=9), torch.full((2, 4), -100))
    for claim, found in {
        "with half of the targets at −100": batches,
        "with a micro-batch in which no target counts": [batches[0], empty, *batches[1:]],
    }.items():
        model, weights = watched(student)
        loss, expected = whole(weights, found)
        told = number(student.accumulate(model, found))
        check_gradients(student, model, expected, claim)
        assert math.isclose(told, loss, rel_tol=1e-3), (
            f"{claim}: the loss is {told / loss:.3g} times what it should be."
        )


@pytest.mark.exercise("accumulate")
def test_the_loss_is_the_mean_over_all_tokens(student: Student) -> None:
    """The float that is returned is the mean cross-entropy of all targets that count, in nats."""
    for seed, shapes in enumerate((((2, 3), (1, 17)), ((3, 4),), ((1, 1), (1, 2), (5, 8)))):
        batches = micro_batches(*shapes, seed=10 + seed)
        model, weights = watched(student)
        found, wanted = student.accumulate(model, batches), whole(weights, batches)[0]
        assert any(grad is not None for grad in student.grads(model).values()), "After the call there is no gradient."
        assert isinstance(found, float), f"accumulate should return a float, and it returns a {type(found).__name__}."
        assert math.isclose(found, wanted, rel_tol=1e-4), (
            f"For micro-batches of {[a * b for a, b in shapes]} tokens the loss is {found / wanted:.3g} times "
            "what it should be."
        )


@pytest.mark.exercise("accumulate")
def test_gradients_are_added_to_those_that_are_there(student: Student) -> None:
    """Like backward(), it adds: called twice without zeroing, the gradients are the sum. The weights stay."""
    one, two = micro_batches((2, 4), (1, 8), seed=4), micro_batches((3, 3), seed=5)
    model, weights = watched(student)
    student.accumulate(model, one)
    student.accumulate(model, two)
    first, second = (whole(weights, batches)[1] for batches in (one, two))
    check_gradients(student, model, {name: first[name] + second[name] for name in first}, "after two calls")
    for name, value in model.state_dict().items():
        assert_close(value, weights[str(name)], atol=0, rtol=0, claim="after two calls", name=f"the weight {name}")


@pytest.mark.exercise("accumulate", weight=2)
def test_one_micro_batch_at_a_time_is_held(student: Student) -> None:
    """Forward, backward, forward, backward: each micro-batch once, and its graph is gone before the next comes."""
    seen: list[tuple[str, list[int]]] = []

    def told(what: str, shape: list[int]) -> None:
        seen.append((what, list(shape)))

    shapes = ((2, 5), (1, 3), (3, 4), (2, 2))
    model, _ = watched(student, told)
    student.accumulate(model, micro_batches(*shapes, seed=6))
    assert model.noted, "For four micro-batches the model was never called."
    forward = [shape for what, shape in seen if what == "forward"]
    assert len(forward) == len(shapes), f"For {len(shapes)} micro-batches the model was called {len(forward)} times."
    assert forward == [list(shape) for shape in shapes], f"The model was called with ids of the shapes {forward}."
    backward = sum(what == "backward" for what, _ in seen)
    assert backward == len(shapes), f"For {len(shapes)} micro-batches a gradient came back {backward} times."
    held, most = 0, 0
    for what, _ in seen:
        held += 1 if what == "forward" else -1
        most = max(most, held)
    assert most == 1, f"The graphs of {most} micro-batches were held at the same time."


@pytest.mark.exercise("accumulate", weight=0.5)
def test_the_micro_batches_are_left_as_they_were(student: Student) -> None:
    """Ids and targets belong to the caller."""
    batches = micro_batches((2, 5), (1, 10), seed=7)
    kept = student.put(batches)
    model, weights = watched(student)
    student.accumulate(model, kept)
    check_gradients(student, model, whole(weights, batches)[1], "as a list of pairs")
    after = kept.get()
    assert isinstance(after, list), "After the call the list of micro-batches is no list any more."
    assert len(after) == 2, f"After the call the list holds {len(after)} micro-batches, and it held 2."
    for i, pair in enumerate(after):
        for j, name in enumerate(("ids", "targets")):
            assert_close(pair[j], batches[i][j], claim="after the call", name=f"the {name} of micro-batch {i}")


# -- Mended -----------------------------------------------------------------------------------------------------------


def shapes_of_layer(d: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of PyTorch's layer."""
    layer = nn.TransformerEncoderLayer(d, 1, 4 * d)
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def pytorchs(weights: Weights, x: Tensor, n_heads: int) -> Tensor:
    """PyTorch's own layer, norm last, with these weights and a causal mask."""
    d = x.shape[-1]
    gelu = partial(functional.gelu, approximate="tanh")
    layer = nn.TransformerEncoderLayer(d, n_heads, 4 * d, dropout=0, activation=gelu, batch_first=True, dtype=x.dtype)
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    return torch.func.functional_call(layer, weights, (x,), {"src_mask": mask, "is_causal": True})


def mended(student: Student, weights: Weights, n_heads: int) -> Remote:
    return loaded(student, weights, "Mended", len(weights["norm1.bias"]), n_heads)


def check_parity(student: Student, sizes: tuple[tuple[int, int, int, int], ...]) -> None:
    for seed, (batch, n, d_model, n_heads) in enumerate(sizes):
        weights, x = random_weights(shapes_of_layer(d_model), seed), normal(batch, n, d_model, seed=seed)
        claim = f"d_model {d_model}, {n_heads} heads, x {tuple(x.shape)}"
        assert_close(mended(student, weights, n_heads)(x), pytorchs(weights, x, n_heads), claim=claim)


@pytest.mark.exercise("Mended", weight=3)
def test_the_patient_is_in_health(student: Student) -> None:
    """With several heads of several channels it gives what PyTorch's layer gives with the same weights."""
    check_parity(student, ((2, 5, 12, 3), (3, 9, 10, 5), (2, 33, 8, 4), (1, 6, 18, 2)))


@pytest.mark.exercise("Mended")
def test_what_was_healthy_still_is(student: Student) -> None:
    """Gradients of several heads are PyTorch's; with one head, or heads of one channel, it is as right as it was."""
    weights, x = random_weights(shapes_of_layer(12), seed=1), normal(2, 5, 12, seed=2).requires_grad_()
    module, upstream = mended(student, weights, 3), normal(2, 5, 12, seed=3)
    expected = gradients(pytorchs(weights, x, 3), upstream, x=x)["x"]
    assert_close(gradients(module(x), upstream, x=x)["x"], expected, atol=1e-3, rtol=1e-3, name="the gradient of x")
    check_parity(student, ((2, 5, 12, 1), (2, 4, 6, 6), (3, 1, 4, 2)))
    module.train()
    assert_close(module(x), pytorchs(weights, x, 3).detach(), claim="in training, where nothing is dropped either")


@pytest.mark.exercise("Mended", weight=0.5)
def test_the_mended_block_keeps_its_names(student: Student) -> None:
    """The state dict has the patient's names and shapes, so that PyTorch's weights still fit; and it is mended."""
    for d_model, n_heads in ((12, 3), (10, 5)):
        module, state = created(student, "Mended", d_model, n_heads)
        check_state(student, module, state, shapes_of_layer(d_model))
    check_parity(student, ((2, 5, 12, 3),))


@pytest.mark.exercise("Mended", weight=0.5)
def test_the_mended_block_never_looks_ahead(student: Student) -> None:
    """A change at a position is noticed there and after it, by every head, and by nobody before."""
    x, weights = normal(2, 7, 12, seed=1), random_weights(shapes_of_layer(12), seed=2)
    module = mended(student, weights, 3)
    before = tensor(module(x), shape=x.shape).detach()
    assert_close(before, pytorchs(weights, x, 3).detach(), claim="before any change")
    for j in (0, 3, 6):
        changed = x.clone()
        changed[:, j] += normal(12, seed=j)
        after = tensor(module(changed), shape=x.shape).detach()
        assert_close(after[:, :j], before[:, :j], claim=f"after a change at position {j}", name="what came before it")
        assert (after[:, j:] != before[:, j:]).any(-1).all(), (
            f"Who may see position {j} does not notice that it changed."
        )
