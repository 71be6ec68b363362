"""Hidden tests of chapter 08. Expected values come from PyTorch's attention and norms, put together as T5 and BERT do.

That this arithmetic is theirs is proven against transformers in tests/test_three_shapes_oracle.py, so that the grader
need not import it: that alone takes seconds. Buckets come from whole numbers, without any logarithm.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

TRANSFORMERS = (
    "torch.nn.MultiheadAttention",
    "torch.nn.modules.MultiheadAttention",
    "torch.nn.modules.activation.MultiheadAttention",
    "torch.nn.functional.multi_head_attention_forward",
    "torch._native_multi_head_attention",
    "torch.nn.Transformer",
    "torch.nn.TransformerEncoderLayer",
    "torch.nn.TransformerDecoderLayer",
    "torch.nn.modules.transformer.TransformerEncoderLayer",
    "torch.nn.modules.transformer.TransformerDecoderLayer",
    "torch._transformer_encoder_layer_fwd",
)
RESERVED = {"CrossAttention": TRANSFORMERS, "EncoderLayer": TRANSFORMERS, "DecoderLayer": TRANSFORMERS}

STYLES = ("t5", "bert")
SUBLAYERS = {
    "EncoderLayer": ("self_attention", "feed_forward"),
    "DecoderLayer": ("self_attention", "cross_attention", "feed_forward"),
}

# -- the oracle -----------------------------------------------------------------------------------------------------

Weights = dict[str, Tensor]


def part(weights: Weights, name: str) -> Weights:
    """The weights of one part, without its name."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def attend(
    w: Weights,
    n_heads: int,
    x: Tensor,
    memory: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of x to memory by PyTorch. A row without any True gives zeros before the last projection."""
    pairs = ((x, "q"), (memory, "k"), (memory, "v"))
    made = (functional.linear(y, w[f"{name}_proj.weight"], w.get(f"{name}_proj.bias")) for y, name in pairs)
    q, k, v = (y.unflatten(-1, (n_heads, -1)).transpose(1, 2) for y in made)
    shape = (len(x), n_heads, x.shape[1], memory.shape[1])
    allowed = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    scores = torch.zeros(shape) if bias is None else bias.expand(shape)
    heads = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=scores.masked_fill(~allowed, -1e30).to(q.dtype), scale=scale
    )
    heads = heads * allowed.any(-1, keepdim=True)
    return functional.linear(heads.transpose(1, 2).flatten(-2), w["o_proj.weight"], w.get("o_proj.bias"))


def feed_forward(w: Weights, x: Tensor, style: str) -> Tensor:
    hidden = functional.linear(x, w["up.weight"], w.get("up.bias"))
    hidden = hidden.relu() if style == "t5" else functional.gelu(hidden)
    return functional.linear(hidden, w["down.weight"], w.get("down.bias"))


def norm(w: Weights, x: Tensor, style: str) -> Tensor:
    if style == "t5":
        return functional.rms_norm(x, x.shape[-1:], w["weight"], eps=1e-6)
    return functional.layer_norm(x, x.shape[-1:], w["weight"], w["bias"], eps=1e-12)


def layer_output(
    kind: str,
    style: str,
    weights: Weights,
    n_heads: int,
    x: Tensor,
    memory: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """What a layer of T5 or of BERT gives. In a decoder layer the mask is that of the memory."""
    scale = 1.0 if style == "t5" else None
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()

    def sublayer(name: str, h: Tensor) -> Tensor:
        w = part(weights, name)
        if name == "feed_forward":
            return feed_forward(w, h, style)
        if name == "cross_attention" and memory is not None:
            return attend(w, n_heads, h, memory, mask, scale=scale)
        return attend(w, n_heads, h, h, mask if kind == "EncoderLayer" else causal, bias, scale)

    for name in SUBLAYERS[kind]:
        w = part(weights, f"{name}_norm")
        x = x + sublayer(name, norm(w, x, style)) if style == "t5" else norm(w, x + sublayer(name, x), style)
    return x


def attention_weights(d_model: int, seed: int, bias: bool = False) -> Weights:
    size = 1.2 * d_model**-0.5
    found = {f"{letter}_proj.weight": size * normal(d_model, d_model, seed=seed + i) for i, letter in enumerate("qkvo")}
    if bias:
        found |= {f"{letter}_proj.bias": 0.5 * normal(d_model, seed=seed + 4 + i) for i, letter in enumerate("qkvo")}
    return found


def layer_weights(kind: str, style: str, d_model: int, d_hidden: int, seed: int) -> Weights:
    """Every weight of a layer drawn at random: gains are not 1 and biases not 0."""
    found: Weights = {}
    for nth, name in enumerate(SUBLAYERS[kind]):
        start = 1000 * seed + 50 * nth
        own = attention_weights(d_model, start, bias=style == "bert")
        if name == "feed_forward":
            own = {
                "up.weight": 1.2 * d_model**-0.5 * normal(d_hidden, d_model, seed=start),
                "down.weight": 1.2 * d_hidden**-0.5 * normal(d_model, d_hidden, seed=start + 1),
            }
            if style == "bert":
                own |= {"up.bias": normal(d_hidden, seed=start + 2), "down.bias": normal(d_model, seed=start + 3)}
        own_norm = {"weight": 1 + 0.5 * normal(d_model, seed=start + 20)}
        if style == "bert":
            own_norm["bias"] = 0.5 * normal(d_model, seed=start + 21)
        found |= {f"{name}.{key}": value for key, value in own.items()}
        found |= {f"{name}_norm.{key}": value for key, value in own_norm.items()}
    return found


def padding(*lengths: int) -> Tensor:
    """The mask of a padded batch, (batch, 1, 1, n): True where there is a token."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]


# -- the student's modules ------------------------------------------------------------------------------------------


def created(module: Any, what: str) -> tuple[Remote, Weights]:
    """A new module and its state dict."""
    assert isinstance(module, Remote), f"{what} should give a layer."
    state = module.state_dict()
    assert isinstance(state, dict), f"The layer's state_dict() should be a dict: is {what[:14]} an nn.Module?"
    return module, {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def loaded(module: Any, what: str, weights: Weights) -> Remote:
    """The module with these weights, in evaluation. What it has beside them is zeroed: a test of its own sees to that.

    A norm that is missing is then missed by the tests of values, and not by all.
    """
    layer, state = created(module, what)
    kept = {name: weights.get(name, torch.zeros_like(value)) for name, value in state.items()}
    layer.load_state_dict(kept)
    layer.eval()
    return layer


def cross(student: Student, n_heads: int, weights: Weights, **options: Any) -> Remote:
    d_model = len(weights["q_proj.weight"])
    module = student.CrossAttention(d_model, n_heads, **options)
    layer = loaded(module, f"CrossAttention({d_model}, {n_heads})", weights)
    return layer


def layer(student: Student, kind: str, style: str, n_heads: int, weights: Weights) -> Remote:
    d_hidden, d_model = weights["feed_forward.up.weight"].shape
    make = student.EncoderLayer if kind == "EncoderLayer" else student.DecoderLayer
    return loaded(make(d_model, n_heads, d_hidden, style), f"{kind}({d_model}, {n_heads}, {d_hidden})", weights)


# -- CrossAttention -------------------------------------------------------------------------------------------------


@pytest.mark.exercise("CrossAttention")
def test_the_state_dict_holds_four_projections(student: Student) -> None:
    """Four square weights and no biases; with bias=True also four biases; all of them are trained."""
    for bias in (False, True):
        expected = attention_weights(12, 0, bias)
        module, state = created(student.CrossAttention(12, 3, bias=bias), "CrossAttention(12, 3)")
        assert set(state) == set(expected), f"With bias={bias} the state dict holds {sorted(state)}."
        trained = set(student.grads(module))
        assert trained == set(expected), f"With bias={bias} the parameters that are trained are {sorted(trained)}."
        for name, value in expected.items():
            tensor(state[name], shape=value.shape, dtype=torch.float32, name=name)


@pytest.mark.exercise("CrossAttention", weight=3)
def test_it_is_attention_of_x_to_memory(student: Student) -> None:
    """With the same weights it gives what attention of x to memory gives, whatever the two lengths are."""
    sizes = ((2, 5, 7, 12, 3), (3, 7, 4, 10, 5), (1, 1, 70, 6, 1), (2, 9, 1, 4, 4), (2, 6, 6, 8, 2))
    for seed, (batch, n, n_memory, d_model, n_heads) in enumerate(sizes):
        weights = attention_weights(d_model, seed=10 * seed)
        x, memory = normal(batch, n, d_model, seed=seed), normal(batch, n_memory, d_model, seed=20 + seed)
        expected = attend(weights, n_heads, x, memory)
        claim = f"x {tuple(x.shape)}, memory {tuple(memory.shape)}, {n_heads} heads"
        assert_close(cross(student, n_heads, weights)(x, memory), expected, claim=claim)


@pytest.mark.exercise("CrossAttention")
def test_only_queries_come_from_x(student: Student) -> None:
    """Keys and values come from memory: positions of x never see each other, and memory may be shuffled."""
    layer = cross(student, 3, attention_weights(12, 1))
    x, memory, shuffled = normal(2, 5, 12, seed=2), normal(2, 6, 12, seed=3), torch.tensor([3, 5, 0, 1, 4, 2])
    before = tensor(layer(x, memory), shape=x.shape).detach()
    changed = x.clone()
    changed[:, 1] += 2
    after = tensor(layer(changed, memory), shape=x.shape).detach()
    others = [0, 2, 3, 4]
    assert_close(after[:, others], before[:, others], claim="after a change at position 1 of x", name="the others")
    assert (after[:, 1] != before[:, 1]).any(-1).all(), "A position of x changed and its own output did not."
    assert_close(layer(x, memory[:, shuffled]), before, claim="with the places of memory shuffled")
    other = tensor(layer(x, normal(2, 6, 12, seed=4)), shape=x.shape)
    assert (other != before).any(-1).all(), "Some position of x does not notice that memory is another one."


@pytest.mark.exercise("CrossAttention")
def test_nothing_is_causal_between_two_texts(student: Student) -> None:
    """Without a mask every position of x sees every place of memory, also those further on than itself."""
    layer = cross(student, 3, attention_weights(12, 1))
    for n, n_memory in ((5, 5), (3, 6)):
        x, memory = normal(2, n, 12, seed=2), normal(2, n_memory, 12, seed=3)
        before = tensor(layer(x, memory), shape=x.shape).detach()
        for j in (0, n_memory - 1):
            changed = memory.clone()
            changed[:, j] += 2
            after = tensor(layer(x, changed), shape=x.shape).detach()
            assert (after != before).any(-1).all(), f"Some position of x does not notice that memory changed at {j}."


@pytest.mark.exercise("CrossAttention", weight=2)
def test_the_mask_decides_which_places_are_seen(student: Student) -> None:
    """True means "may attend"; a mask may differ by sequence, by head and by query, or be one for all."""
    weights, x, memory = attention_weights(12, 1), normal(2, 4, 12, seed=2), normal(2, 7, 12, seed=3)
    layer = cross(student, 3, weights)
    for seed, shape in enumerate(((2, 1, 1, 7), (4, 7), (2, 3, 4, 7), (3, 4, 7))):
        mask = normal(*shape, seed=seed) > 0
        mask[..., 0] |= ~mask.any(-1)
        expected = attend(weights, 3, x, memory, mask)
        assert_close(layer(x, memory, mask=mask), expected, claim=f"with a mask of shape {shape}")


@pytest.mark.exercise("CrossAttention")
def test_padding_has_no_influence(student: Student) -> None:
    """What stands where the mask is False changes nothing, and a sequence gives the same alone without its padding."""
    layer = cross(student, 3, attention_weights(12, 1))
    x, memory, mask = normal(2, 4, 12, seed=2), normal(2, 7, 12, seed=3), padding(7, 3)
    before = tensor(layer(x, memory, mask), shape=x.shape).detach()
    filled = memory.clone()
    filled[1, 3:] = 1e5
    assert_close(layer(x, filled, mask), before, claim="with other padding")
    assert_close(layer(x[1:], memory[1:, :3]), before[1:], claim="the shorter source alone")
    assert (tensor(layer(x, filled), shape=x.shape)[1] != before[1]).any(), "A mask makes no difference."


@pytest.mark.exercise("CrossAttention")
def test_a_query_that_may_attend_to_nothing_gets_zeros(student: Student) -> None:
    """Where the mask allows nothing the output is zeros, never NaN, and gradients stay finite."""
    weights, memory = attention_weights(12, 1), normal(2, 6, 12, seed=3)
    x = normal(2, 4, 12, seed=2).requires_grad_()
    mask = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    mask[0, :, 1] = mask[1] = False
    out = cross(student, 3, weights)(x, memory, mask)
    values = tensor(out, shape=x.shape).detach()
    empty = ~mask[:, 0].any(-1)
    assert_close(values[empty], torch.zeros(5, 12), name="the output where nothing may be seen")
    assert values[~empty].isfinite().all(), "A query that may attend to nothing made its neighbours NaN or infinite."
    assert values[~empty].any(-1).all(), "A query that may attend to something gives zeros."
    grad = gradients(out, normal(2, 4, 12, seed=5), x=x)["x"]
    assert grad.isfinite().all(), "A query that may attend to nothing makes the gradient of x NaN or infinite."
    weights, one_head = attention_weights(12, 1, bias=True), torch.ones(2, 3, 4, 6, dtype=torch.bool)
    one_head[:, 1, 2] = False
    for claim, allowed in {"with biases": mask, "with biases, where one head may see nothing": one_head}.items():
        found = cross(student, 3, weights, bias=True)(x, memory, allowed)
        assert_close(found, attend(weights, 3, x, memory, allowed), claim=claim)


@pytest.mark.exercise("CrossAttention")
def test_the_scale_multiplies_the_scores(student: Student) -> None:
    """scale=1.0 leaves q·k as it is, as T5 does; other numbers multiply it; None stands for 1/√d_head."""
    weights, x, memory = attention_weights(12, 1), normal(2, 4, 12, seed=2), normal(2, 5, 12, seed=3)
    for scale in (1.0, 0.3, None):
        expected = attend(weights, 2, x, memory, scale=scale)
        assert_close(cross(student, 2, weights, scale=scale)(x, memory), expected, claim=f"with scale={scale}")


@pytest.mark.exercise("CrossAttention")
def test_the_position_bias_is_added_to_the_scores(student: Student) -> None:
    """The bias is added as it is, before the softmax, whatever the scale is; with a mask and without."""
    weights, x, memory = attention_weights(12, 1), normal(2, 4, 12, seed=2), normal(2, 5, 12, seed=3)
    for shape, scale in (((3, 4, 5), 1.0), ((3, 4, 5), 0.25), ((2, 3, 4, 5), None)):
        layer, bias = cross(student, 3, weights, scale=scale), 2 * normal(*shape, seed=4)
        for mask in (None, padding(5, 2)):
            claim = f"a bias of shape {shape}, scale={scale}, {'no mask' if mask is None else 'with a mask'}"
            expected = attend(weights, 3, x, memory, mask, bias, scale)
            assert_close(layer(x, memory, mask, bias), expected, claim=claim)


@pytest.mark.exercise("CrossAttention")
def test_with_biases_it_is_pytorchs(student: Student) -> None:
    """With bias=True all four projections add their bias: it gives what nn.MultiheadAttention gives."""
    w, x, memory = attention_weights(12, 1, bias=True), normal(2, 4, 12, seed=2), normal(2, 5, 12, seed=3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    packed = {
        f"in_proj_{what}": torch.cat([w[f"{letter}_proj.{what}"] for letter in "qkv"]) for what in ("weight", "bias")
    }
    theirs.load_state_dict(packed | {f"out_proj.{what}": w[f"o_proj.{what}"] for what in ("weight", "bias")})
    expected = theirs(x, memory, memory, need_weights=False)[0]
    assert_close(cross(student, 3, w, bias=True)(x, memory), expected)


@pytest.mark.exercise("CrossAttention", weight=2)
def test_gradients_reach_both_texts_and_all_weights(student: Student) -> None:
    """The gradients of x, of memory and of the four weights are those of the formula: nothing is detached."""
    weights, mask, upstream = attention_weights(12, 1), padding(5, 3), normal(2, 4, 12, seed=5)
    x, memory = normal(2, 4, 12, seed=2).requires_grad_(), normal(2, 5, 12, seed=3).requires_grad_()
    own = {name: value.clone().requires_grad_() for name, value in weights.items()}
    expected = gradients(attend(own, 3, x, memory, mask), upstream, x=x, memory=memory, **own)
    layer = cross(student, 3, weights)
    found: dict[str, Any] = gradients(layer(x, memory, mask), upstream, x=x, memory=memory)
    found |= student.grads(layer)
    for name, value in expected.items():
        assert found.get(name) is not None, f"No gradient reaches {name}."
        assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("CrossAttention")
def test_bfloat16_and_float64_stay_what_they_are(student: Student) -> None:
    """A layer turned to another dtype takes and gives that dtype, with a mask and without."""
    weights, x, memory = attention_weights(12, 1), normal(2, 4, 12, seed=2), normal(2, 5, 12, seed=3)
    layer = cross(student, 3, weights)
    for dtype, atol in ((torch.float64, 1e-4), (torch.bfloat16, 0.15)):
        getattr(layer, "double" if dtype == torch.float64 else "bfloat16")()
        for mask in (None, padding(5, 2)):
            expected = attend(weights, 3, x, memory, mask).to(dtype)
            found = layer(x.to(dtype), memory.to(dtype), mask)
            assert_close(found, expected, atol=atol, rtol=0.05, name=f"the {str(dtype)[6:]} result")


@pytest.mark.exercise("CrossAttention", weight=0.5)
def test_the_layer_leaves_its_inputs_alone(student: Student) -> None:
    """x, memory, the mask and the bias belong to the caller: an operation that ends in _ changes them."""
    mask = padding(5, 3)
    mask[0] = False
    inputs = {"x": normal(2, 4, 12, seed=2), "memory": normal(2, 5, 12, seed=3), "the mask": mask}
    inputs["the bias"] = normal(3, 4, 5, seed=4)
    kept = {name: student.put(value) for name, value in inputs.items()}
    module = cross(student, 3, attention_weights(12, 1))
    module.train()
    out = tensor(module(*kept.values()), shape=(2, 4, 12))
    again = tensor(module(*kept.values()), shape=(2, 4, 12))
    assert_close(again[1].detach(), out[1].detach(), claim="called twice, in training")
    assert out[1].any(-1).all(), "A position that may attend to something gives zeros."
    assert not torch.equal(out, inputs["x"]), "The output is x."
    for name, value in inputs.items():
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- EncoderLayer ---------------------------------------------------------------------------------------------------


def names_are_right(student: Student, kind: str) -> None:
    for style in STYLES:
        expected = layer_weights(kind, style, 12, 20, 0)
        make = student.EncoderLayer if kind == "EncoderLayer" else student.DecoderLayer
        module, state = created(make(12, 3, 20, style), f"{kind}(12, 3, 20)")
        missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
        assert not missing, f"In the style {style!r} the state dict has no {', '.join(missing)}."
        assert not extra, f"In the style {style!r} the state dict also holds {', '.join(extra)}."
        assert set(student.grads(module)) == set(expected), f"In the style {style!r} some weights are not trained."
        for name, value in expected.items():
            tensor(state[name], shape=value.shape, dtype=torch.float32, name=name)


def all_gradients_are_right(student: Student, kind: str) -> None:
    """Whether the gradients of all inputs and weights are those of the formula, in both styles."""
    for style in STYLES:
        weights, bias, upstream = (
            layer_weights(kind, style, 12, 20, 1),
            normal(3, 5, 5, seed=4),
            normal(2, 5, 12, seed=5),
        )
        inputs = {"x": normal(2, 5, 12, seed=2).requires_grad_()}
        if kind == "DecoderLayer":
            inputs["memory"] = normal(2, 7, 12, seed=3).requires_grad_()
        mask = padding(7, 3) if kind == "DecoderLayer" else padding(5, 2)
        own = {name: value.clone().requires_grad_() for name, value in weights.items()}
        formula = layer_output(kind, style, own, 3, inputs["x"], inputs.get("memory"), mask, bias)
        expected = gradients(formula, upstream, **inputs, **own)
        module = layer(student, kind, style, 3, weights)
        found: dict[str, Any] = gradients(module(*inputs.values(), mask, bias), upstream, **inputs)
        found |= student.grads(module)
        for name, value in expected.items():
            assert found.get(name) is not None, f"In the style {style!r} no gradient reaches {name}."
            scale = float(value.abs().max().clamp(min=1))
            claim = f"in the style {style!r}"
            assert_close(found[name], value, atol=1e-3 * scale, rtol=1e-3, claim=claim, name=f"the gradient of {name}")


@pytest.mark.exercise("EncoderLayer")
def test_the_encoder_layer_has_two_sublayers_with_a_norm_each(student: Student) -> None:
    """The state dict holds self_attention, feed_forward and their norms; biases in BERT's style only."""
    names_are_right(student, "EncoderLayer")


@pytest.mark.exercise("EncoderLayer", weight=3)
def test_in_t5s_style_it_is_t5s_encoder_layer(student: Student) -> None:
    """RMSNorm before each sub-layer, scores not divided by a root, ReLU, no biases: it gives what T5's layer gives."""
    for seed, (batch, n, d_model, n_heads, d_hidden) in enumerate(
        ((2, 5, 12, 3, 20), (3, 7, 8, 1, 6), (1, 33, 10, 5, 30))
    ):
        weights, x = (
            layer_weights("EncoderLayer", "t5", d_model, d_hidden, seed),
            2 * normal(batch, n, d_model, seed=seed),
        )
        expected = layer_output("EncoderLayer", "t5", weights, n_heads, x)
        claim = f"x {tuple(x.shape)}, {n_heads} heads"
        assert_close(layer(student, "EncoderLayer", "t5", n_heads, weights)(x), expected, claim=claim)


@pytest.mark.exercise("EncoderLayer", weight=3)
def test_in_berts_style_it_is_berts_layer(student: Student) -> None:
    """LayerNorm after each sum, scores divided by √d_head, GELU, biases: it gives what BERT's layer gives."""
    for seed, (batch, n, d_model, n_heads, d_hidden) in enumerate(
        ((2, 5, 12, 3, 20), (3, 7, 8, 1, 6), (1, 33, 10, 5, 30))
    ):
        weights, x = (
            layer_weights("EncoderLayer", "bert", d_model, d_hidden, seed),
            2 * normal(batch, n, d_model, seed=seed),
        )
        expected = layer_output("EncoderLayer", "bert", weights, n_heads, x)
        claim = f"x {tuple(x.shape)}, {n_heads} heads"
        assert_close(layer(student, "EncoderLayer", "bert", n_heads, weights)(x), expected, claim=claim)


@pytest.mark.exercise("EncoderLayer")
def test_the_encoder_obeys_its_padding_mask(student: Student) -> None:
    """Padded places are seen by nobody: a sentence gives the same in a padded batch and alone."""
    for style in STYLES:
        weights, x, mask = layer_weights("EncoderLayer", style, 12, 20, 1), normal(2, 6, 12, seed=2), padding(6, 4)
        module = layer(student, "EncoderLayer", style, 3, weights)
        expected = layer_output("EncoderLayer", style, weights, 3, x, mask=mask)
        found = tensor(module(x, mask), shape=x.shape).detach()
        assert_close(found, expected, claim=f"in the style {style!r}")
        assert_close(module(x[1:, :4]), expected[1:, :4], claim=f"in the style {style!r}, the shorter one alone")


@pytest.mark.exercise("EncoderLayer")
def test_an_encoder_looks_both_ways(student: Student) -> None:
    """Without a mask every position notices a change at any other, before it or after it."""
    for style in STYLES:
        x = normal(2, 5, 12, seed=2)
        module = layer(student, "EncoderLayer", style, 3, layer_weights("EncoderLayer", style, 12, 20, 1))
        before = tensor(module(x), shape=x.shape).detach()
        for j in (0, 4):
            changed = x.clone()
            changed[:, j] += normal(12, seed=3)  # the same number on all channels would vanish in a LayerNorm
            after = tensor(module(changed), shape=x.shape).detach()
            assert (after != before).any(-1).all(), f"Some position does not notice that position {j} changed."


@pytest.mark.exercise("EncoderLayer")
def test_the_encoder_adds_its_position_bias(student: Student) -> None:
    """The position bias goes to the scores of the self-attention, also beside a mask."""
    for style in STYLES:
        weights, x, bias = (
            layer_weights("EncoderLayer", style, 12, 20, 1),
            normal(2, 6, 12, seed=2),
            normal(3, 6, 6, seed=3),
        )
        module = layer(student, "EncoderLayer", style, 3, weights)
        for mask in (None, padding(6, 3)):
            expected = layer_output("EncoderLayer", style, weights, 3, x, mask=mask, bias=bias)
            assert_close(module(x, mask=mask, position_bias=bias), expected, claim=f"in the style {style!r}")


@pytest.mark.exercise("EncoderLayer")
def test_small_vectors_meet_the_eps_of_their_style(student: Student) -> None:
    """The norms are those that the style makes, eps and all: in vectors of a thousandth the eps decides."""
    for style in STYLES:
        weights = layer_weights("EncoderLayer", style, 12, 20, 1)
        weights |= {name: 1e-3 * value for name, value in weights.items() if "o_proj" in name or "down" in name}
        x = 1e-3 * normal(2, 5, 12, seed=2)
        expected = layer_output("EncoderLayer", style, weights, 3, x)
        size = float(expected.abs().max())
        found = layer(student, "EncoderLayer", style, 3, weights)(x)
        assert_close(found, expected, atol=2e-3 * size, rtol=1e-2, claim=f"in the style {style!r}")


@pytest.mark.exercise("EncoderLayer")
def test_three_layers_are_an_encoder(student: Student) -> None:
    """Three of your layers in a row give what three of T5's or of BERT's give, on a padded batch."""
    for style in STYLES:
        expected = found = normal(2, 6, 12, seed=2)
        bias = normal(3, 6, 6, seed=3) if style == "t5" else None
        for seed in range(3):
            weights = layer_weights("EncoderLayer", style, 12, 20, seed)
            expected = layer_output("EncoderLayer", style, weights, 3, expected, mask=padding(6, 4), bias=bias)
            module = layer(student, "EncoderLayer", style, 3, weights)
            found = tensor(module(found, padding(6, 4), bias), shape=(2, 6, 12)).detach()
        assert_close(found, expected, atol=5e-4, rtol=1e-3, claim=f"three layers in the style {style!r}")


@pytest.mark.exercise("EncoderLayer")
def test_everything_in_the_encoder_layer_learns(student: Student) -> None:
    """The gradients of x and of all weights are those of the formula, in both styles."""
    all_gradients_are_right(student, "EncoderLayer")


@pytest.mark.exercise("EncoderLayer", weight=0.5)
def test_the_encoder_leaves_its_inputs_alone(student: Student) -> None:
    """x, the mask and the bias belong to the caller, and a second call gives the same as the first."""
    for style in STYLES:
        inputs = {"x": normal(2, 5, 12, seed=2), "the mask": padding(5, 3), "the bias": normal(3, 5, 5, seed=4)}
        kept = {name: student.put(value) for name, value in inputs.items()}
        module = layer(student, "EncoderLayer", style, 3, layer_weights("EncoderLayer", style, 12, 20, 1))
        module.train()
        first = tensor(module(*kept.values()), shape=(2, 5, 12)).detach()
        assert_close(module(*kept.values()), first, claim="called twice, in training")
        assert first.any(-1).all(), "The output of some position is zeros."
        assert not torch.equal(first, inputs["x"]), "The output is x."
        for name, value in inputs.items():
            assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- DecoderLayer ---------------------------------------------------------------------------------------------------


@pytest.mark.exercise("DecoderLayer")
def test_the_decoder_layer_has_three_sublayers_with_a_norm_each(student: Student) -> None:
    """The state dict holds self_attention, cross_attention, feed_forward and their norms."""
    names_are_right(student, "DecoderLayer")


@pytest.mark.exercise("DecoderLayer", weight=3)
def test_in_t5s_style_it_is_t5s_decoder_layer(student: Student) -> None:
    """Causal self-attention, cross-attention, feed-forward, each behind an RMSNorm: it gives what T5's layer gives."""
    sizes = ((2, 5, 7, 12, 3, 20), (3, 7, 2, 8, 1, 6), (1, 1, 9, 10, 5, 30), (1, 70, 3, 8, 2, 6))
    for seed, (batch, n, n_memory, d_model, n_heads, d_hidden) in enumerate(sizes):
        weights = layer_weights("DecoderLayer", "t5", d_model, d_hidden, seed)
        x, memory = 2 * normal(batch, n, d_model, seed=seed), normal(batch, n_memory, d_model, seed=20 + seed)
        expected = layer_output("DecoderLayer", "t5", weights, n_heads, x, memory)
        claim = f"x {tuple(x.shape)}, memory {tuple(memory.shape)}, {n_heads} heads"
        assert_close(layer(student, "DecoderLayer", "t5", n_heads, weights)(x, memory), expected, claim=claim)


@pytest.mark.exercise("DecoderLayer", weight=2)
def test_in_berts_style_each_sum_is_normed(student: Student) -> None:
    """The same three sub-layers with a LayerNorm after each sum, √d_head, GELU and biases."""
    for seed, (n, n_memory, n_heads) in enumerate(((5, 7, 3), (6, 2, 2))):
        weights = layer_weights("DecoderLayer", "bert", 12, 20, seed)
        x, memory = 2 * normal(2, n, 12, seed=seed), normal(2, n_memory, 12, seed=20 + seed)
        expected = layer_output("DecoderLayer", "bert", weights, n_heads, x, memory)
        claim = f"x {tuple(x.shape)}, memory {tuple(memory.shape)}"
        assert_close(layer(student, "DecoderLayer", "bert", n_heads, weights)(x, memory), expected, claim=claim)


@pytest.mark.exercise("DecoderLayer", weight=2)
def test_a_decoder_sees_only_its_own_past(student: Student) -> None:
    """A change at position j of x is noticed from j on, and by nobody before it."""
    for style in STYLES:
        x, memory = normal(2, 6, 12, seed=2), normal(2, 4, 12, seed=3)
        module = layer(student, "DecoderLayer", style, 3, layer_weights("DecoderLayer", style, 12, 20, 1))
        start = tensor(module(x[:, :4], memory), shape=(2, 4, 12)).detach()
        before = tensor(module(x, memory), shape=x.shape).detach()
        assert_close(start, before[:, :4], claim="the first four positions alone")
        for j in (1, 3, 5):
            changed = x.clone()
            changed[:, j] += normal(12, seed=4)
            after = tensor(module(changed, memory), shape=x.shape).detach()
            assert_close(
                after[:, :j], before[:, :j], claim=f"after a change at position {j}", name="what came before it"
            )
            assert (after[:, j:] != before[:, j:]).any(-1).all(), f"Some later position does not notice position {j}."


@pytest.mark.exercise("DecoderLayer")
def test_every_position_sees_all_of_memory(student: Student) -> None:
    """The cross-attention is not causal: also the first position notices a change at the last place of memory."""
    for style, (n, n_memory) in (("t5", (5, 5)), ("bert", (3, 7))):
        x, memory = normal(2, n, 12, seed=2), normal(2, n_memory, 12, seed=3)
        module = layer(student, "DecoderLayer", style, 3, layer_weights("DecoderLayer", style, 12, 20, 1))
        before = tensor(module(x, memory), shape=x.shape).detach()
        for j in (0, n_memory - 1):
            changed = memory.clone()
            changed[:, j] += normal(12, seed=4)
            after = tensor(module(x, changed), shape=x.shape).detach()
            assert (after != before).any(-1).all(), f"Some position does not notice that memory changed at {j}."


@pytest.mark.exercise("DecoderLayer")
def test_the_memory_mask_hides_padding_of_the_source(student: Student) -> None:
    """Padded places of memory are seen by nobody: a source gives the same in a padded batch and alone."""
    for style in STYLES:
        weights, mask = layer_weights("DecoderLayer", style, 12, 20, 1), padding(7, 3)
        x, memory = normal(2, 7, 12, seed=2), normal(2, 7, 12, seed=3)  # of one length: a mask can be misused silently
        module = layer(student, "DecoderLayer", style, 3, weights)
        expected = layer_output("DecoderLayer", style, weights, 3, x, memory, mask)
        assert_close(module(x, memory, memory_mask=mask), expected, claim=f"in the style {style!r}")
        assert_close(
            module(x[1:], memory[1:, :3]), expected[1:], claim=f"in the style {style!r}, the shorter one alone"
        )


@pytest.mark.exercise("DecoderLayer")
def test_the_position_bias_is_for_the_self_attention(student: Student) -> None:
    """The position bias goes to the scores of the self-attention and not to those between the texts."""
    for style in STYLES:
        weights, bias = layer_weights("DecoderLayer", style, 12, 20, 1), 2 * normal(3, 5, 5, seed=4)
        x, memory = normal(2, 5, 12, seed=2), normal(2, 5, 12, seed=3)
        module = layer(student, "DecoderLayer", style, 3, weights)
        expected = layer_output("DecoderLayer", style, weights, 3, x, memory, bias=bias)
        assert_close(module(x, memory, position_bias=bias), expected, claim=f"in the style {style!r}")


@pytest.mark.exercise("DecoderLayer")
def test_three_decoder_layers_look_into_one_memory(student: Student) -> None:
    """Three of your layers in a row, all with the same memory, give what three of T5's or of BERT's give."""
    for style in STYLES:
        expected = found = normal(2, 6, 12, seed=2)
        memory, mask, bias = normal(2, 5, 12, seed=3), padding(5, 2), normal(3, 6, 6, seed=4) if style == "t5" else None
        for seed in range(3):
            weights = layer_weights("DecoderLayer", style, 12, 20, seed)
            expected = layer_output("DecoderLayer", style, weights, 3, expected, memory, mask, bias)
            module = layer(student, "DecoderLayer", style, 3, weights)
            found = tensor(module(found, memory, mask, bias), shape=(2, 6, 12)).detach()
        assert_close(found, expected, atol=5e-4, rtol=1e-3, claim=f"three layers in the style {style!r}")


@pytest.mark.exercise("DecoderLayer")
def test_everything_in_the_decoder_layer_learns(student: Student) -> None:
    """The gradients of x, of memory and of all weights are those of the formula, in both styles."""
    all_gradients_are_right(student, "DecoderLayer")


@pytest.mark.exercise("DecoderLayer", weight=0.5)
def test_the_decoder_leaves_its_inputs_alone(student: Student) -> None:
    """x, memory and its mask belong to the caller, and a second call gives the same as the first."""
    for style in STYLES:
        inputs = {"x": normal(2, 5, 12, seed=2), "memory": normal(2, 7, 12, seed=3), "the mask": padding(7, 4)}
        inputs["the bias"] = normal(3, 5, 5, seed=4)
        kept = {name: student.put(value) for name, value in inputs.items()}
        module = layer(student, "DecoderLayer", style, 3, layer_weights("DecoderLayer", style, 12, 20, 1))
        module.train()
        first = tensor(module(*kept.values()), shape=(2, 5, 12)).detach()
        assert_close(module(*kept.values()), first, claim="called twice, in training")
        assert first.any(-1).all(), "The output of some position is zeros."
        assert not torch.equal(first, inputs["x"]), "The output is x."
        for name, value in inputs.items():
            assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- relative_position_bucket ---------------------------------------------------------------------------------------

SIZES = ((32, 128), (32, 1000), (16, 50), (8, 20), (7, 30), (10, 33))  # n_buckets, max_distance
FAR = 3000


def one_way(steps: int, n_buckets: int, max_distance: int) -> int | None:
    """The bucket of so many steps back, by comparing powers of whole numbers; None exactly on a border."""
    exact = n_buckets // 2
    if steps < exact:
        return steps
    rest, k = n_buckets - exact, 0
    # ln(s/m) / ln(M/m) · rest ≥ k, without logarithms: s^rest · m^k ≥ M^k · m^rest
    while k < rest - 1 and steps**rest * exact ** (k + 1) >= max_distance ** (k + 1) * exact**rest:
        k += 1
    border = k > 0 and steps**rest * exact**k == max_distance**k * exact**rest
    return None if border else exact + k


def bucket(distance: int, bidirectional: bool, n_buckets: int, max_distance: int) -> int | None:
    if not bidirectional:
        return one_way(max(-distance, 0), n_buckets, max_distance)
    half = n_buckets // 2
    found = one_way(abs(distance), half, max_distance)
    return found if found is None or distance <= 0 else found + half


def compare_buckets(student: Student, distances: list[int], bidirectional: bool, sizes: tuple[int, int]) -> None:
    expected = {d: bucket(d, bidirectional, *sizes) for d in distances}
    asked = [d for d, number in expected.items() if number is not None]
    found = tensor(student.relative_position_bucket(torch.tensor(asked), bidirectional, *sizes), shape=(len(asked),))
    wrong = [d for d, number in zip(asked, found.long().tolist(), strict=True) if number != expected[d]]
    where = "bidirectional" if bidirectional else "not bidirectional"
    assert not wrong, (
        f"{sizes[0]} buckets up to a distance of {sizes[1]}, {where}: {len(wrong)} of {len(asked)} distances are in a "
        f"wrong bucket, among them {wrong[0]}."
    )


@pytest.mark.exercise("relative_position_bucket")
def test_buckets_have_the_shape_of_the_distances(student: Student) -> None:
    """The result is int64 and has the shape of the distances, whatever that is: (n, n_memory), one row, one number."""
    for shape, dtype in (((5, 7), torch.int64), ((9,), torch.int32), ((), torch.int64), ((2, 3, 4), torch.int64)):
        distance = (20 * normal(*shape, seed=1)).to(dtype)
        for bidirectional in (True, False):
            found = student.relative_position_bucket(distance, bidirectional, 32, 128)
            found = tensor(found, shape=shape, dtype=torch.int64)
            assert not found.numel() > 5 or found.unique().numel() > 1, "All distances are in one bucket."


@pytest.mark.exercise("relative_position_bucket")
def test_near_distances_have_a_bucket_each(student: Student) -> None:
    """In a decoder the first half of the buckets is exact: so many steps back is the bucket of that number."""
    for sizes in SIZES:
        compare_buckets(student, [3, *(-steps for steps in range(sizes[0] // 2))], False, sizes)


@pytest.mark.exercise("relative_position_bucket")
def test_in_a_decoder_the_future_is_in_bucket_0(student: Student) -> None:
    """Distances above zero are never attended to; they get bucket 0, as the present does, and the past does not."""
    compare_buckets(student, [0, 1, 2, 17, 500, -1, -5], False, (32, 128))
    compare_buckets(student, [0, 1, 2, 17, 500, -1, -2], False, (7, 30))


@pytest.mark.exercise("relative_position_bucket", weight=2)
def test_far_distances_share_buckets_by_their_logarithm(student: Student) -> None:
    """In a decoder the second half of the buckets grows with the logarithm, up to max_distance."""
    for sizes in SIZES:
        compare_buckets(student, [-steps for steps in range(sizes[0] // 2, sizes[1])], False, sizes)


@pytest.mark.exercise("relative_position_bucket", weight=2)
def test_in_an_encoder_the_future_has_the_second_half(student: Student) -> None:
    """Bidirectional: half of the buckets for the past and the present, then half for the future, each divided alike."""
    for sizes in SIZES:
        compare_buckets(student, list(range(-sizes[1] + 1, sizes[1])), True, sizes)


@pytest.mark.exercise("relative_position_bucket")
def test_what_is_beyond_the_maximum_is_in_the_last_bucket(student: Student) -> None:
    """From max_distance on everything is in the last bucket of its direction, however far it is."""
    for sizes in SIZES:
        beyond = [-sizes[1] - 1, -2 * sizes[1], -FAR, -(10**9)]
        compare_buckets(student, [*beyond, 0, -1], False, sizes)
        compare_buckets(student, [*beyond, *[-d for d in beyond], 0, -1, 1], True, sizes)


@pytest.mark.exercise("relative_position_bucket", weight=0.5)
def test_the_distances_are_left_as_they_were(student: Student) -> None:
    """The distances belong to the caller: an operation that ends in _ changes them."""
    distance = torch.arange(-40, 40).reshape(8, 10)
    for bidirectional in (True, False):
        kept = student.put(distance)
        found = tensor(student.relative_position_bucket(kept, bidirectional, 32, 128), shape=(8, 10))
        assert found.unique().numel() > 8, "Hardly any two distances are in different buckets."
        assert_close(kept.get(), distance, claim="after the call", name="the distances")


# -- mask_tokens ----------------------------------------------------------------------------------------------------

MASK, SPECIAL = 4, [3, 1]  # 0 and 2 are tokens like any other


def puzzle(batch: int, n: int, seed: int) -> list[Tensor]:
    """ids, random, random_kind, random_ids; about one in 13 ids is special, and no random id is an id."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (batch, n), generator=generator)
    special = torch.rand(batch, n, generator=generator) < 0.15
    ids[special] = torch.randint(0, 4, (int(special.sum()),), generator=generator)
    random, kind = torch.rand(2, batch, n, generator=generator)
    return [ids, random, kind, torch.randint(200, 300, (batch, n), generator=generator)]


def both(result: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    assert isinstance(result, tuple | list), "mask_tokens should return two tensors, the inputs and the labels."
    assert len(result) == 2, f"mask_tokens should return two tensors, the inputs and the labels, and not {len(result)}."
    return tensor(result[0], shape=shape, name="the inputs"), tensor(result[1], shape=shape, name="the labels")


def answered(draws: list[Tensor], p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are chosen, and inputs and labels, token by token."""
    ids, random, kind, random_ids = draws
    chosen, inputs, labels = torch.zeros_like(ids).bool(), ids.clone(), torch.full_like(ids, -100)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in ids.shape)).tolist():
        at = tuple(place)
        if int(ids[at]) in SPECIAL or random[at] >= p:
            continue
        chosen[at], labels[at] = True, ids[at]
        if kind[at] < 0.8:
            inputs[at] = MASK
        elif kind[at] < 0.9:
            inputs[at] = random_ids[at]
    return chosen, inputs, labels


@pytest.mark.exercise("mask_tokens", weight=2)
def test_labels_are_the_chosen_tokens_and_nothing_else(student: Student) -> None:
    """Where a token is chosen its label is the original, also if it is replaced or kept; elsewhere it is −100."""
    for seed, (shape, p) in enumerate((((3, 40), 0.15), ((2, 7), 0.5))):
        draws = puzzle(*shape, seed=seed)
        chosen, _, expected = answered(draws, p)
        _, labels = both(student.mask_tokens(*draws, MASK, SPECIAL, p), shape)
        assert_close(labels[chosen], expected[chosen], name="the labels of the chosen tokens")
        assert_close(labels[~chosen], expected[~chosen], name="the labels of the others")


@pytest.mark.exercise("mask_tokens", weight=2)
def test_chosen_tokens_are_masked_replaced_or_kept(student: Student) -> None:
    """Of the chosen tokens, a random_kind below 0.8 gives the mask, below 0.9 the random token; the others stay."""
    shape = (4, 60)
    draws = puzzle(*shape, seed=5)
    kind = draws[2]
    for p in (0.95, 0.5):
        chosen, expected, _ = answered(draws, p)
        inputs, _ = both(student.mask_tokens(*draws, MASK, SPECIAL, p), shape)
        for what, where in (
            ("masked", kind < 0.8),
            ("replaced by a random token", (kind >= 0.8) & (kind < 0.9)),
            ("kept", kind >= 0.9),
        ):
            found = inputs[chosen & where]
            assert_close(found, expected[chosen & where], name=f"the chosen tokens that should be {what}")


@pytest.mark.exercise("mask_tokens")
def test_what_is_not_chosen_stays(student: Student) -> None:
    """A token that is not chosen stays as it is, whatever its random_kind is: most of the text can still be read."""
    shape = (4, 60)
    draws = puzzle(*shape, seed=6)
    chosen, expected, _ = answered(draws, 0.15)
    inputs, _ = both(student.mask_tokens(*draws, MASK, SPECIAL, 0.15), shape)
    assert_close(inputs[~chosen], expected[~chosen], name="the inputs that were not chosen")
    assert (inputs[chosen] != draws[0][chosen]).any(), "No chosen token was changed."


@pytest.mark.exercise("mask_tokens")
def test_special_tokens_are_never_chosen(student: Student) -> None:
    """Tokens of special_ids stay and have no label, also if every other one is chosen."""
    shape = (3, 30)
    ids, _, kind, random_ids = puzzle(*shape, seed=7)
    special = torch.isin(ids, torch.tensor(SPECIAL))
    inputs, labels = both(student.mask_tokens(ids, torch.zeros(shape), kind, random_ids, MASK, SPECIAL), shape)
    assert_close(inputs[special], ids[special], name="the special tokens")
    assert (labels[special] == -100).all(), "A special token has a label."
    assert (labels[~special] == ids[~special]).all(), (
        "Where random is 0 everywhere, a token that is not special is not chosen."
    )
    inputs, labels = both(student.mask_tokens(ids, torch.zeros(shape), kind, random_ids, MASK, [99]), shape)
    asked = labels[special & (ids != 99)]
    assert (asked == ids[special & (ids != 99)]).all(), "A token is not chosen, though it is not in special_ids."


@pytest.mark.exercise("mask_tokens")
def test_p_is_the_share_of_chosen_tokens(student: Student) -> None:
    """A token is chosen where random is below p, not where it equals p; p is 0.15 if nothing is said, and may be 0."""
    shape = (2, 20)
    ids, _, kind, random_ids = puzzle(*shape, seed=8)
    ids = ids.clamp(min=5)
    random = torch.linspace(0, 1, 40, dtype=torch.float64).reshape(shape)
    random[0, :3] = torch.tensor([0.25, 0.2499, 0.2501], dtype=torch.float64)
    for p in (0.25, 0.6, 0.0, None):
        extra = () if p is None else (p,)
        _, labels = both(student.mask_tokens(ids, random, kind, random_ids, MASK, SPECIAL, *extra), shape)
        chosen = random < (0.15 if p is None else p)
        assert torch.equal(labels != -100, chosen), (
            f"With {'no p' if p is None else f'p = {p}'} a wrong set of {int((labels != -100).sum())} tokens is chosen."
        )


@pytest.mark.exercise("mask_tokens")
def test_the_borders_between_the_kinds(student: Student) -> None:
    """0.8 exactly is no longer a mask but a random token, and 0.9 exactly is kept."""
    ids, kind = torch.tensor([[10, 11, 12, 13]]), torch.tensor([[0.8, 0.9, 0.7999, 0.8999]], dtype=torch.float64)
    random, random_ids = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[20, 21, 22, 23]])
    inputs, _ = both(student.mask_tokens(ids, random, kind, random_ids, MASK, SPECIAL), (1, 4))
    assert_close(inputs, torch.tensor([[20, 11, MASK, 23]]), name="the inputs")


@pytest.mark.exercise("mask_tokens")
def test_the_shares_are_80_10_10(student: Student) -> None:
    """Of 20,000 tokens about 15 % are chosen; of these 80 % are masked, 10 % replaced, 10 % kept."""
    shape = (20, 1000)
    ids, random, kind, random_ids = puzzle(*shape, seed=9)
    ids = ids.clamp(min=5)
    inputs, labels = both(student.mask_tokens(ids, random, kind, random_ids, MASK, SPECIAL), shape)
    chosen = labels != -100
    for what, found, share in (
        ("chosen", chosen, 0.15),
        ("masked", inputs == MASK, 0.12),
        ("replaced", (inputs != ids) & (inputs != MASK), 0.015),
        ("chosen and kept", chosen & (inputs == ids), 0.015),
    ):
        got = found.float().mean().item()
        assert abs(got - share) < 0.15 * share + 0.002, f"{got:.1%} of all tokens are {what}."


@pytest.mark.exercise("mask_tokens", weight=0.5)
def test_the_tokens_are_left_as_they_were(student: Student) -> None:
    """The ids and the draws belong to the caller, and both results are int64."""
    draws = puzzle(3, 20, seed=10)
    kept = [student.put(value) for value in draws]
    for found, name in zip(
        both(student.mask_tokens(*kept, MASK, SPECIAL, 0.5), (3, 20)), ("inputs", "labels"), strict=True
    ):
        tensor(found, dtype=torch.int64, name=f"the {name}")
        assert (found != draws[0]).any(), f"The {name} are the ids."
    for remote, value, name in zip(kept, draws, ("ids", "random", "random_kind", "random_ids"), strict=True):
        assert_close(remote.get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- corrupt_spans --------------------------------------------------------------------------------------------------

SENTINELS = [981 + 7 * i % 19 for i in range(19)]  # the next one is not the one before less 1

Spans = list[tuple[int, int]]


def corrupted(student: Student, n: int, spans: Spans, sentinels: list[int]) -> tuple[list[int], list[int]]:
    """What the student makes of the ids 0, 1, … n − 1."""
    found = student.corrupt_spans(list(range(n)), spans, sentinels)
    assert isinstance(found, tuple | list), "corrupt_spans should return two lists, the input and the target."
    assert len(found) == 2, f"corrupt_spans should return two lists, the input and the target, and not {len(found)}."
    for name, value in zip(("input", "target"), found, strict=True):
        ints = isinstance(value, list) and all(isinstance(i, int) for i in value)
        assert ints, f"The {name} should be a list of ints."
    return found[0], found[1]


def by_mask(n: int, spans: Spans, sentinels: list[int]) -> tuple[list[int], list[int]]:
    """T5's own way: from a mask, each run of hidden tokens becomes a sentinel, and in the target each run of others."""
    hidden = [any(start <= i < end for start, end in spans) for i in range(n)]
    starts = [i for i in range(n) if hidden[i] and not (i and hidden[i - 1])]
    sentinel_at = dict(zip(starts, sentinels, strict=False))
    kept = [sentinel_at.get(i, i) for i in range(n) if not hidden[i] or i in sentinel_at]
    target = [token for i in range(n) if hidden[i] for token in ([sentinel_at[i], i] if i in sentinel_at else [i])]
    return kept, [*target, sentinels[len(starts)]]


def some_spans(n: int, seed: int) -> Spans:
    """Spans that do not touch, in order."""
    cuts = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: 2 * (n // 6)].sort().values.tolist()
    return list(zip(cuts[::2], cuts[1::2], strict=True))


def same(found: list[int], expected: list[int], name: str, claim: str) -> None:
    assert len(found) == len(expected), f"{claim}: the {name} has {len(found)} tokens, and should have another number."
    wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
    assert not wrong, (
        f"{claim}: {len(wrong)} of {len(expected)} tokens of the {name} are wrong, the first at {wrong[:1]}."
    )


CASES = [(30, some_spans(30, seed)) for seed in range(4)] + [(11, [(1, 2), (4, 8)]), (7, [(2, 5)])]


@pytest.mark.exercise("corrupt_spans", weight=2)
def test_each_span_of_the_input_is_one_sentinel(student: Student) -> None:
    """The input is the text in which each span is replaced by its sentinel: the first takes the first one."""
    for n, spans in CASES:
        kept, _ = corrupted(student, n, spans, SENTINELS)
        same(kept, by_mask(n, spans, SENTINELS)[0], "input", f"{n} tokens, spans {spans}")


@pytest.mark.exercise("corrupt_spans", weight=2)
def test_the_target_tells_what_each_sentinel_hid(student: Student) -> None:
    """In the target each sentinel is followed by the tokens that it hid, span by span."""
    for n, spans in CASES:
        _, target = corrupted(student, n, spans, SENTINELS)
        expected = by_mask(n, spans, SENTINELS)[1][:-1]  # the end has a test of its own
        same(target[: len(expected)], expected, "target", f"{n} tokens, spans {spans}")


@pytest.mark.exercise("corrupt_spans")
def test_the_target_ends_with_the_next_sentinel(student: Student) -> None:
    """One more sentinel, that hides nothing, ends the target, and nothing comes after it."""
    for n, spans in CASES:
        _, target = corrupted(student, n, spans, SENTINELS)
        assert target, "The target is empty."
        same(target[-1:], [SENTINELS[len(spans)]], "target", f"{n} tokens, spans {spans}, its end")
        hidden = sum(end - start for start, end in spans)
        assert len(target) == hidden + len(spans) + 1, f"With {len(spans)} spans the target has {len(target)} tokens."


@pytest.mark.exercise("corrupt_spans")
def test_spans_that_touch_are_one(student: Student) -> None:
    """Spans of which one begins where the other ends hide one run of tokens: it takes one sentinel."""
    for n, spans in ((10, [(2, 4), (4, 5)]), (12, [(0, 2), (2, 3), (3, 6), (8, 9)]), (9, [(1, 2), (3, 5), (5, 9)])):
        kept, target = corrupted(student, n, spans, SENTINELS)
        for name, found, expected in zip(
            ("input", "target"), (kept, target), by_mask(n, spans, SENTINELS), strict=True
        ):
            same(found, expected, name, f"{n} tokens, spans {spans}")
    joined = [(2, 4), (4, 6)]
    pair = corrupted(student, 8, joined, SENTINELS[:2])
    assert pair == by_mask(8, joined, SENTINELS), "Two spans that touch need no more than two sentinels in all."


@pytest.mark.exercise("corrupt_spans")
def test_spans_may_stand_at_either_end_or_hide_all(student: Student) -> None:
    """A span may begin with the first token, end with the last, or be the whole text."""
    for n, spans in ((8, [(0, 2), (5, 8)]), (5, [(0, 5)]), (1, [(0, 1)]), (6, [(5, 6)])):
        kept, target = corrupted(student, n, spans, SENTINELS)
        for name, found, expected in zip(
            ("input", "target"), (kept, target), by_mask(n, spans, SENTINELS), strict=True
        ):
            same(found, expected, name, f"{n} tokens, spans {spans}")


@pytest.mark.exercise("corrupt_spans")
def test_nothing_hidden_is_still_an_answer(student: Student) -> None:
    """Without spans the input is the text and the target is the first sentinel alone."""
    for n in (5, 1):
        kept, target = corrupted(student, n, [], SENTINELS)
        same(kept, list(range(n)), "input", f"{n} tokens, no spans")
        same(target, SENTINELS[:1], "target", f"{n} tokens, no spans")


@pytest.mark.exercise("corrupt_spans")
def test_too_few_sentinels_are_an_error(student: Student) -> None:
    """A ValueError names how many sentinels are needed and how many there are; exactly enough is fine."""
    spans = [(1, 2), (4, 6), (8, 9), (11, 12)]
    assert corrupted(student, 14, spans, SENTINELS[:5]) == by_mask(14, spans, SENTINELS), (
        "Five sentinels are enough for four spans, and the result is wrong."
    )
    for there in (4, 2):
        raised: StudentError | None = None
        try:
            student.corrupt_spans(list(range(14)), spans, SENTINELS[:there])
        except Unfinished:
            raise
        except StudentError as error:
            raised = error
        what = f"Four spans and {there} sentinels raise {raised.types[0] if raised else 'nothing'}"
        assert isinstance(raised, ValueError), f"{what}, and should raise a ValueError."
        named = {int(number) for number in re.findall(r"\d+", str(raised))}
        assert {5, there} <= named, f"The sentence does not name both numbers: {raised}"


@pytest.mark.exercise("corrupt_spans")
def test_the_text_can_be_put_together_again(student: Student) -> None:
    """Nothing is lost: with the target's spans in the place of the input's sentinels the text is as it was."""
    for n, spans in CASES:
        kept, target = corrupted(student, n, spans, SENTINELS)
        assert any(token in SENTINELS for token in kept), f"{n} tokens, spans {spans}: no sentinel stands in the input."
        said: dict[int, list[int]] = {}
        for token in target:
            if token in SENTINELS:
                current = said.setdefault(token, [])
            else:
                assert said, "The target does not begin with a sentinel."
                current.append(token)
        again = [token for i in kept for token in said.get(i, [i])]
        same(again, list(range(n)), "text put together again", f"{n} tokens, spans {spans}")


@pytest.mark.exercise("corrupt_spans", weight=0.5)
def test_the_lists_are_left_as_they_were(student: Student) -> None:
    """ids, spans and sentinels belong to the caller: append, pop and del change them."""
    ids, spans, sentinels = list(range(12)), [(1, 3), (3, 4), (6, 7)], SENTINELS[:5]
    kept = {"ids": student.put(ids), "spans": student.put(spans), "sentinels": student.put(sentinels)}
    found = student.corrupt_spans(*kept.values())
    assert isinstance(found, tuple | list), "corrupt_spans should return two lists."
    assert list(found[:1]) != [ids], "The input is the text."
    assert isinstance(found[0], list), "The input should be a list of ints."
    assert set(found[0]) & set(SENTINELS), "No sentinel stands in the input."
    for name, value in (("ids", ids), ("spans", spans), ("sentinels", sentinels)):
        assert kept[name].get() == value, f"After the call {name} is another list."
