"""Hidden tests of chapter 12. Expected values come from autograder/families.py, which tests/test_families.py proves
equal to transformers: GPT-2, GPT-J, GPT-NeoX, BLOOM, LLaMA, OLMo and gpt-oss with one dense layer for its experts.

Every weight is drawn anew, gains, biases and sinks too: at 1 and 0 they hide what was forgotten. A part of a student's
is given what the right model gives it at its place, so what differs is its own.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder import families
from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import first_difference, gradients, normal

Weights = dict[str, Tensor]
Config = dict[str, Any]

NAMED = {
    "GPT-2": "gpt2",
    "GPT-J": "gptj",
    "Pythia": "gpt_neox",
    "BLOOM": "bloom",
    "OpenLLaMA": "llama",
    "OLMo": "olmo",
    "gpt-oss": "gpt_oss_dense",
}


def configs(family: str) -> list[Config]:
    """Small models of a family that this chapter's decoder can be."""
    return [
        dict(config)
        for config in families.TINY[NAMED.get(family, family)]
        if "rope_scaling" not in config or "gpt_oss" in config["model_type"]
    ]


def some_ids(vocabulary: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def padded(n: int) -> Tensor:
    """Three texts of n, n − 2 and one tokens, padding on the left."""
    return torch.arange(n) >= torch.tensor([[0], [2], [n - 1]])


class Seen(NamedTuple):
    """A sub-layer at its place in the right model: what it is given, and what it gives."""

    layer: int
    x: Tensor
    positions: Tensor
    mask: Tensor
    right: Tensor


class Watched(families._Run):
    """The right model, and what its attentions and blocks are given."""

    def __init__(self, form: families.Form, state: Weights) -> None:
        super().__init__(form, state, {})
        self.attentions: list[Seen] = []
        self.given: list[Seen] = []

    def attention(self, i: int, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self.attentions.append(Seen(i, x, positions, mask, right := super().attention(i, x, mask, positions)))
        return right

    def block(self, i: int, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self.given.append(Seen(i, x, positions, mask, right := super().block(i, x, mask, positions)))
        return right


@cache
def watched(family: str, number: int, plain: bool = False) -> tuple[Watched, Weights]:
    """One model of a family on three texts with padding. `plain`: with the attention of Block's tests."""
    config = configs(family)[number]
    form, state = families.form(config), families.course_state(config, families.random_state(config, seed=number))
    if plain:
        form, state = plainly(form, state)
    run = Watched(form, state)
    run.logits(some_ids(form.vocabulary, 3, 9, seed=number), padded(9))
    return run, state


def plainly(form: families.Form, state: Weights) -> tuple[families.Form, Weights]:
    """The same without RoPE, ALiBi, windows, sinks, clipping and shared keys: what stands in for Attention has none."""
    form = replace(
        form, position="none", sinks=False, clip_qkv=None, windows=(None,) * form.n_layers, n_kv_heads=form.n_heads
    )
    rows = form.n_heads * form.d_head
    state = {name: value for name, value in state.items() if "sinks" not in name}
    for i, name in enumerate(name for name in list(state) if re.search(r"[kv]_proj", name)):
        state[name] = 0.4 * normal(rows, *state[name].shape[1:], seed=i)
    return form, state


def settings(config: Config, **more: object) -> dict[str, Any]:
    return families.course_settings(config) | more


SIZES = {"vocabulary": 11, "d_model": 12, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "d_head": 6, "d_hidden": 10}


# -- modules of students ----------------------------------------------------------------------------------------------


def created(student: Student, name: str, fields: Mapping[str, Any], *more: int) -> tuple[Remote, Weights]:
    """A new module and its state dict."""
    module = getattr(student, name)(student.DecoderConfig(**fields), *more)
    return module, state_of(module, name)


def state_of(module: object, name: str) -> Weights:
    assert isinstance(module, Remote), f"{name} should give a module."
    state = module.state_dict()
    assert isinstance(state, dict), f"The state_dict() should be a dict: is {name} an nn.Module?"
    return {str(key): tensor(value, name=str(key)) for key, value in state.items()}


def filled(module: Remote, state: Weights, weights: Weights) -> Remote:
    """The module with those of these weights that it has, in evaluation. What it has beside them is zeroed: for both
    there is another test.
    """
    weights = {key: value for key, value in weights.items() if key in state}
    module.load_state_dict({key: torch.zeros_like(value) for key, value in state.items()} | weights)
    if len(state) > len(weights):  # a weight that has two names was zeroed under the other one
        module.load_state_dict(weights, strict=False)
    module.eval()
    return module


def loaded(student: Student, name: str, fields: Mapping[str, Any], weights: Weights, *more: int) -> Remote:
    return filled(*created(student, name, fields, *more), weights)


def under(start: str, weights: Weights) -> Weights:
    """Those whose names begin so, without that beginning."""
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def check_state(student: Student, module: Remote, state: Weights, right: Weights, claim: str) -> None:
    """Assert that a new module has these parameters, finite and trained, and nothing beside them."""
    trained = set(student.grads(module))
    assert set(state) == set(right), (
        f"{claim}: too many in the state dict: {sorted(set(state) - set(right))}; "
        f"missing: {sorted(set(right) - set(state))}."
    )
    assert trained == set(right), f"{claim}: of the state dict these are not trained: {sorted(set(right) - trained)}."
    for name, value in right.items():
        tensor(state[name], shape=value.shape, dtype=torch.float32, name=f"{claim}: {name}")
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


# -- split_qkv --------------------------------------------------------------------------------------------------------

LAYOUTS = ("gpt2", "per_head")


def parts(student: Student, fused: Tensor, n_heads: int, layout: str) -> list[Tensor]:
    found = student.split_qkv(fused, n_heads, layout)
    assert isinstance(found, tuple), f"split_qkv should return a tuple, and it returns a {type(found).__name__}."
    assert len(found) == 3, f"split_qkv should return three tensors, and it returns {len(found)}."
    shape = (fused.shape[0] // 3,) if fused.dim() == 1 else (min(fused.shape),) * 2
    return [
        tensor(part, shape=shape, dtype=fused.dtype, name=f"the {p} of {layout}").detach()
        for p, part in zip("qkv", found, strict=True)
    ]


@pytest.mark.exercise("split_qkv", weight=2)
def test_gpt2s_parts_compute_what_conv1d_computes(student: Student) -> None:
    """Layout gpt2: x @ weight + bias gives q, k and v side by side, and the parts give them through nn.Linear."""
    for seed, (d, n_heads) in enumerate(((12, 3), (8, 2), (5, 1), (4, 4))):
        x, weight, bias = normal(7, d, seed=seed), normal(d, 3 * d, seed=seed + 10), normal(3 * d, seed=seed + 20)
        right = (x @ weight + bias).chunk(3, -1)
        weights, biases = parts(student, weight, n_heads, "gpt2"), parts(student, bias, n_heads, "gpt2")
        for p, w, b, value in zip("qkv", weights, biases, right, strict=True):
            assert_close(functional.linear(x, w, b), value, claim=f"d_model {d}", name=f"{p} of GPT-2")


@pytest.mark.exercise("split_qkv", weight=2)
def test_per_head_parts_compute_what_the_fused_layer_computes(student: Student) -> None:
    """Layout per_head: the fused nn.Linear gives q, k, v of head 0, then of head 1; so do the parts."""
    for seed, (d_head, n_heads) in enumerate(((4, 3), (3, 2), (6, 1), (1, 5), (2, 4))):
        d = d_head * n_heads
        x, weight, bias = normal(7, d, seed=seed), normal(3 * d, d, seed=seed + 10), normal(3 * d, seed=seed + 20)
        fused = functional.linear(x, weight, bias).reshape(7, n_heads, 3, d_head)
        weights, biases = parts(student, weight, n_heads, "per_head"), parts(student, bias, n_heads, "per_head")
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            claim = f"{n_heads} heads of {d_head} channels"
            assert_close(functional.linear(x, w, b), fused[:, :, i].flatten(1), claim=claim, name=f"{'qkv'[i]}")


@pytest.mark.exercise("split_qkv")
def test_biases_are_cut_like_the_outputs(student: Student) -> None:
    """A bias belongs to the outputs, so in both layouts it is cut as they are."""
    bias = torch.arange(24.0)
    for p, part in zip("qkv", parts(student, bias, 4, "gpt2"), strict=True):
        assert_close(part, bias[8 * "qkv".index(p) :][:8], name=f"{p} of a bias in layout gpt2")
    for p, part in zip("qkv", parts(student, bias, 4, "per_head"), strict=True):
        right = bias.reshape(4, 3, 2)[:, "qkv".index(p)].flatten()
        assert_close(part, right, name=f"{p} of a bias in layout per_head")


@pytest.mark.exercise("split_qkv")
def test_the_parts_of_real_checkpoints(student: Student) -> None:
    """A layer of a GPT-2, a GPT-NeoX and a BLOOM is cut as these models read it."""
    for family, place in {
        "GPT-2": "transformer.h.0.attn.c_attn",
        "Pythia": "gpt_neox.layers.0.attention.query_key_value",
        "BLOOM": "transformer.h.0.self_attention.query_key_value",
    }.items():
        for config in configs(family):
            state = families.random_state(config, seed=3)
            right, n_heads = families.course_state(config, state), families.form(config).n_heads
            for part in ("weight", "bias"):
                found = parts(student, state[f"{place}.{part}"], n_heads, "gpt2" if family == "GPT-2" else "per_head")
                for p, value in zip("qkv", found, strict=True):
                    wanted = right[f"blocks.0.attention.{p}_proj.{part}"]
                    assert_close(value, wanted, claim=family, name=f"the {part} of {p}")


@pytest.mark.exercise("split_qkv", weight=0.5)
def test_values_and_dtype_stay_and_fused_is_not_changed(student: Student) -> None:
    """Nothing is rounded, nothing is lost, and what came in belongs to the caller."""
    for dtype in (torch.float64, torch.bfloat16):
        for layout in LAYOUTS:
            fused = torch.randn(12, 4).to(dtype) if layout == "per_head" else torch.randn(4, 12).to(dtype)
            kept = student.put(fused)
            found = student.split_qkv(kept, 2, layout)
            assert isinstance(found, tuple), (
                f"split_qkv should return a tuple, and it returns a {type(found).__name__}."
            )
            together = torch.cat([tensor(part, shape=(4, 4), dtype=dtype).flatten() for part in found])
            assert_close(
                together.sort().values, fused.flatten().sort().values, atol=0, rtol=0, name="all values, sorted"
            )
            assert_close(kept.get(), fused, atol=0, rtol=0, claim="after the call", name="fused")


@pytest.mark.exercise("split_qkv", weight=0.5)
def test_another_layout_is_refused(student: Student) -> None:
    """A layout that is neither gpt2 nor per_head raises a ValueError whose sentence names it."""
    for layout in LAYOUTS:
        parts(student, torch.randn(12), 2, layout)
    for layout in ("falcon", "GPT2", ""):
        raised = raised_by(partial(student.split_qkv, torch.randn(12, 4), 2, layout))
        assert isinstance(raised, ValueError), (
            f"The layout {layout!r} raises {raised.types[0] if raised else 'nothing'}."
        )
        assert layout in str(raised), f"The sentence does not name the layout {layout!r}: {raised}"


# -- Attention --------------------------------------------------------------------------------------------------------

PLACES = [*NAMED, "qwen3", "mistral", "qwen2"]


def attention(student: Student, fields: Mapping[str, Any], weights: Weights, layer: int = 0) -> Remote:
    return loaded(student, "Attention", fields, weights, layer)


def form_of(fields: Mapping[str, Any]) -> families.Form:
    """The oracle's words for a DecoderConfig."""
    c: dict[str, Any] = SIZES | {"rope_theta": 10_000.0, "positions": "rope"} | dict(fields)
    d: int = c.get("d_rotary") or c["d_head"]
    scaling: dict[str, Any] = {}
    if c.get("yarn"):
        names = ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
        scaling = {"rope_type": "yarn", "truncate": False} | dict(zip(names, c["yarn"], strict=True))
    speeds, factor = families._frequencies(d, c["rope_theta"], scaling)
    biases = {"qkv": "qkv_bias", "o": "o_bias", "mlp": "mlp_bias", "head": "head_bias"}
    sizes: dict[str, Any] = {name: c[name] for name in SIZES}
    return families.Form(
        **sizes,
        norm=c.get("norm", "rms"),
        eps=c.get("norm_eps", 1e-6),
        position=c["positions"],
        frequencies=speeds,
        rope_scale=factor,
        interleaved=c.get("interleaved", False),
        windows=tuple(c.get("windows") or [None] * c["n_layers"]),
        qk_norm="head" if c.get("qk_norm") else "",
        clip_qkv=c.get("clip_qkv"),
        biases=frozenset(kind for kind, name in biases.items() if c.get(name)),
        sinks=c.get("sinks", False),
        residual={"parallel": "parallel", "shared": "parallel, one norm"}.get(c.get("residual", ""), "pre"),
        activation={"swiglu": "silu"}.get(kind := c.get("mlp", "swiglu"), kind),
        gated=kind in ("swiglu", "clamped"),
        tokens_norm=c.get("tokens_norm", False),
        tied=c.get("tied", False),
    )


def shapes_of_attention(form: families.Form) -> dict[str, tuple[int, ...]]:
    q, kv = form.n_heads * form.d_head, form.n_kv_heads * form.d_head
    found: dict[str, tuple[int, ...]] = {}
    for letter, (rows, columns) in {
        "q": (q, form.d_model),
        "k": (kv, form.d_model),
        "v": (kv, form.d_model),
        "o": (form.d_model, q),
    }.items():
        found[f"{letter}_proj.weight"] = (rows, columns)
        if ("o" if letter == "o" else "qkv") in form.biases:
            found[f"{letter}_proj.bias"] = (rows,)
    if form.qk_norm:
        found |= {f"{letter}_norm.weight": (form.d_head,) for letter in "qk"}
    return found | ({"sinks": (form.n_heads,)} if form.sinks else {})


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, std: float = 0.4) -> Weights:
    return {name: std * normal(*shape, seed=1000 * seed + i) for i, (name, shape) in enumerate(shapes.items())}


def right_attention(form: families.Form, weights: Weights, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    state = {f"blocks.0.attention.{name}": value for name, value in weights.items()}
    return families._Run(form, state, {}).attention(0, x, mask, positions)


def text(batch: int, n: int) -> tuple[Tensor, Tensor]:
    """Positions and mask of texts without padding."""
    return torch.arange(n).expand(batch, n), torch.ones(batch, n, dtype=torch.bool)


def check_attention(student: Student, fields: Mapping[str, Any], n: int = 7, seed: int = 1, claim: str = "") -> None:
    """With random weights, on texts without padding, the student's attention is right."""
    form, fields = form_of(fields), SIZES | dict(fields)
    weights, x = random_weights(shapes_of_attention(form), seed), normal(2, n, form.d_model, seed=seed)
    found = attention(student, fields, weights)(x, *text(2, n))
    assert_close(found, right_attention(form, weights, x, *text(2, n)), claim=claim)


@pytest.mark.exercise("Attention")
def test_attention_has_the_stated_parameters(student: Student) -> None:
    """The state dict holds what the configuration asks for, in the stated shapes, all trained, and nothing else."""
    for i, family in enumerate(PLACES):
        for config in configs(family)[i % 2 :][:1]:
            form = families.form(config)
            module, state = created(student, "Attention", settings(config), form.n_layers - 1)
            right = {name: torch.empty(shape) for name, shape in shapes_of_attention(form).items()}
            check_state(student, module, state, right, family)


@pytest.mark.exercise("Attention")
@pytest.mark.parametrize("family", PLACES)
def test_attention_is_right_in_every_layer_of(student: Student, family: str) -> None:
    """At its place in a whole model, with random weights and padding, each layer's attention gives what it should."""
    for number, config in enumerate(configs(family)):
        run, state = watched(family, number)
        for seen in run.attentions[:2]:
            weights = under(f"blocks.{seen.layer}.attention.", state)
            found = attention(student, settings(config), weights, seen.layer)(seen.x, seen.positions, seen.mask)
            found = tensor(found, shape=seen.right.shape, dtype=seen.right.dtype, name="the output of attention")
            claim = f"{family}, layer {seen.layer}: attention is the first that differs; its norm1 agrees"
            assert_close(
                found[seen.mask], seen.right[seen.mask], claim=claim, name="its output at the tokens of the texts"
            )


@pytest.mark.exercise("Attention")
def test_a_window_includes_the_token_itself(student: Student) -> None:
    """With a window W a change reaches the token itself and the W − 1 after it, in that layer and no other."""
    x, fields = normal(2, 9, 12, seed=1), SIZES | {"windows": (3, None, 1), "n_layers": 3}
    weights = random_weights(shapes_of_attention(form_of(fields)), seed=2)
    for layer, window in enumerate((3, 99, 1)):
        module = attention(student, fields, weights, layer)
        before = tensor(module(x, *text(2, 9)), shape=x.shape).detach()
        for j in (0, 4, 8):
            changed = x.clone()
            changed[:, j] += normal(12, seed=j)
            after = tensor(module(changed, *text(2, 9)), shape=x.shape).detach()
            moved = ((after - before).abs() > 1e-5).any(-1).any(0)
            reached = moved.nonzero().flatten().tolist()
            wanted = list(range(j, min(j + window, 9)))
            assert reached == wanted, (
                f"A window of {window}: a change at {j} is noticed at {len(reached)} tokens: {reached}."
            )


@pytest.mark.exercise("Attention")
def test_attention_never_looks_ahead(student: Student) -> None:
    """In every family a change at position j is noticed at j and after it, and by nobody before."""
    for extra in ({}, {"positions": "alibi"}, {"sinks": True}, {"positions": "learned"}):
        fields = SIZES | extra
        weights = random_weights(shapes_of_attention(form_of(fields)), seed=2)
        x, module = normal(2, 6, 12, seed=1), attention(student, fields, weights)
        before = tensor(module(x, *text(2, 6)), shape=x.shape).detach()
        changed = x.clone()
        changed[:, 3] += normal(12, seed=3)
        after = tensor(module(changed, *text(2, 6)), shape=x.shape).detach()
        assert_close(
            after[:, :3], before[:, :3], claim=f"{extra or 'LLaMA'}, a change at 3", name="what came before it"
        )
        assert ((after - before)[:, 3:].abs() > 1e-5).any(-1).all(), (
            "Who may see position 3 does not notice that it changed."
        )


@pytest.mark.exercise("Attention", weight=2)
def test_padding_changes_nothing_for_the_text(student: Student) -> None:
    """A text with padding on its left gives what it gives alone, in every family; at the padding all is finite."""
    for extra in ({}, {"positions": "alibi"}, {"sinks": True, "windows": (2, None)}, {"positions": "learned"}):
        fields = SIZES | extra
        weights = random_weights(shapes_of_attention(form_of(fields)), seed=2)
        module, x, mask = attention(student, fields, weights), normal(3, 7, 12, seed=1), padded(7)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = tensor(module(x, positions, mask), shape=x.shape).detach()
        assert found.isfinite().all(), f"{extra or 'LLaMA'}: what comes out at the padding is not finite."
        for row, start in enumerate((0, 2, 6)):
            alone = tensor(module(x[row : row + 1, start:], *text(1, 7 - start)), shape=(1, 7 - start, 12)).detach()
            right = right_attention(form_of(fields), weights, x[row : row + 1, start:], *text(1, 7 - start))
            assert_close(alone, right, claim=f"{extra or 'LLaMA'}, without padding")
            assert_close(found[row : row + 1, start:], alone, claim=f"{extra or 'LLaMA'}, {start} tokens of padding")


@pytest.mark.exercise("Attention")
def test_sinks_take_their_share_and_give_nothing(student: Student) -> None:
    """A sink of −∞, nearly, changes nothing; a huge one takes all attention, and only the output's bias is left."""
    fields = SIZES | {"sinks": True, "o_bias": True}
    form = form_of(fields)
    weights, x = random_weights(shapes_of_attention(form), seed=3), normal(2, 5, 12, seed=4)
    without = {name: value for name, value in weights.items() if name != "sinks"}
    right = right_attention(replace(form, sinks=False), without, x, *text(2, 5))
    small = attention(student, fields, weights | {"sinks": torch.full((4,), -1e4)})(x, *text(2, 5))
    assert_close(small, right, claim="with all sinks at −10,000")
    large = attention(student, fields, weights | {"sinks": torch.full((4,), 1e4)})(x, *text(2, 5))
    assert_close(large, weights["o_proj.bias"].expand(2, 5, 12), claim="with all sinks at 10,000")
    for head in range(4):
        sinks = torch.full((4,), -1e4)
        sinks[head] = 1e4
        silent = weights | {"v_proj.weight": weights["v_proj.weight"].clone()}
        silent["v_proj.weight"][6 * head : 6 * head + 6] = 0
        right = right_attention(
            replace(form, sinks=False), {k: v for k, v in silent.items() if k != "sinks"}, x, *text(2, 5)
        )
        found = attention(student, fields, weights | {"sinks": sinks})(x, *text(2, 5))
        assert_close(found, right, claim=f"with a huge sink at head {head} alone")


@pytest.mark.exercise("Attention")
def test_alibi_loses_one_slope_a_token(student: Student) -> None:
    """Each head loses its slope times the distance, also where the number of heads is no power of two."""
    for n_heads in (1, 3, 6, 8):
        fields = {"positions": "alibi", "n_heads": n_heads, "n_kv_heads": n_heads, "d_head": 2}
        check_attention(student, fields, n=11, seed=n_heads, claim=f"ALiBi with {n_heads} heads")


@pytest.mark.exercise("Attention")
@pytest.mark.parametrize("interleaved", [False, True])
def test_only_the_first_channels_turn(student: Student, interleaved: bool) -> None:
    """The first d_rotary channels of each head turn, in pairs as stated, and the others know of no position."""
    for seed, (d_head, d_rotary) in enumerate(((8, 2), (8, 4), (10, 6), (8, None), (6, 6))):
        fields = {"d_head": d_head, "d_rotary": d_rotary, "interleaved": interleaved, "rope_theta": 100.0}
        claim = f"{d_rotary or d_head} of {d_head} channels turn, {'neighbours' if interleaved else 'halves'} together"
        check_attention(student, fields, n=9, seed=seed, claim=claim)


@pytest.mark.exercise("Attention")
def test_rope_knows_only_distances(student: Student) -> None:
    """Where all positions are larger by the same number nothing changes; where distances change, something does."""
    for extra in ({"d_rotary": 2}, {"interleaved": True}, {"yarn": (8.0, 32.0, 1.0, 16)}):
        fields = SIZES | extra
        weights = random_weights(shapes_of_attention(form_of(fields)), seed=2)
        module, x, (positions, mask) = attention(student, fields, weights), normal(2, 6, 12, seed=1), text(2, 6)
        before = tensor(module(x, positions, mask), shape=x.shape).detach()
        assert_close(before, right_attention(form_of(fields), weights, x, positions, mask), claim=f"{extra}")
        assert_close(module(x, positions + 40, mask), before, atol=1e-3, claim=f"{extra}, all positions 40 larger")
        apart = tensor(module(x, 7 * positions, mask), shape=x.shape).detach()
        right = right_attention(form_of(fields), weights, x, 7 * positions, mask)
        assert_close(apart, right, claim=f"{extra}, all distances 7 times as large")


@pytest.mark.exercise("Attention")
def test_yarn_is_applied_far_away(student: Student) -> None:
    """YaRN: the frequencies that the configuration gives, and its factor on both cosine and sine."""
    fields = SIZES | {"d_head": 16, "yarn": (32.0, 32.0, 1.0, 4096), "rope_theta": 150_000.0}
    form = form_of(fields)
    weights, x = random_weights(shapes_of_attention(form), seed=5), normal(2, 6, 12, seed=6)
    for stride in (1, 40, 900):
        positions, mask = stride * torch.arange(6).expand(2, 6), text(2, 6)[1]
        found = attention(student, fields, weights)(x, positions, mask)
        right = right_attention(form, weights, x, positions, mask)
        assert_close(found, right, atol=2e-3, claim=f"with {stride} positions from token to token")


@pytest.mark.exercise("Attention")
def test_neighbouring_query_heads_share_a_key_head(student: Student) -> None:
    """Query head i reads key head i // (n_heads // n_kv_heads)."""
    for n_heads, n_kv_heads in ((6, 2), (6, 3), (4, 1)):
        fields = {"n_heads": n_heads, "n_kv_heads": n_kv_heads}
        check_attention(student, fields, claim=f"{n_heads} query heads, {n_kv_heads} key heads")


@pytest.mark.exercise("Attention", weight=0.5)
def test_qk_norm_comes_before_rope_with_its_own_gains(student: Student) -> None:
    """q_norm and k_norm are RMSNorm over each head's channels, with norm_eps inside the root, before RoPE."""
    for eps in (0.5, 1e-6):
        check_attention(student, {"qk_norm": True, "norm_eps": eps}, claim=f"QK norm, norm_eps = {eps:g}")


@pytest.mark.exercise("Attention", weight=0.5)
def test_clipping_cuts_q_k_and_v(student: Student) -> None:
    """clip_qkv = c cuts all three off at −c and c, before anything else is done with them."""
    for clip in (0.25, 1.0, 100.0):
        check_attention(student, {"clip_qkv": clip, "qk_norm": True, "qkv_bias": True}, claim=f"clip_qkv = {clip:g}")


@pytest.mark.exercise("Attention", weight=2)
def test_gradients_reach_x_and_every_parameter_of_attention(student: Student) -> None:
    """Everything learns, sinks and norms too; gradients are finite and right where a batch has padding."""
    fields = SIZES | {
        "qk_norm": True,
        "sinks": True,
        "qkv_bias": True,
        "o_bias": True,
        "n_kv_heads": 2,
        "windows": (3, None),
    }
    for extra in ({}, {"sinks": False, "qk_norm": False, "positions": "alibi"}):
        form = form_of(fields | extra)
        weights, mask = random_weights(shapes_of_attention(form), seed=1), padded(6)
        x, upstream = normal(3, 6, 12, seed=2), normal(3, 6, 12, seed=3) * mask[..., None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        module = attention(student, fields | extra, weights)
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        hidden = x.where(mask[..., None], 0).requires_grad_()
        expected = gradients(right_attention(form, leaves, hidden, positions, mask), upstream, x=hidden, **leaves)
        found = {"x": gradients(module(hidden, positions, mask), upstream, x=hidden)["x"], **student.grads(module)}
        for name, value in expected.items():
            grad = found.get(name)
            assert grad is not None, f"No gradient reaches {name}."
            assert grad.isfinite().all(), f"With padding in the batch the gradient of {name} is not finite."
            if value.isfinite().all():  # the oracle's are not, where padding sees nobody
                assert_close(grad, value, atol=2e-3, rtol=2e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("Attention", weight=0.5)
def test_attention_takes_other_dtypes_and_leaves_x_alone(student: Student) -> None:
    """In float64 and bfloat16 it gives that dtype, ALiBi, RoPE and sinks too; called twice it says the same."""
    for extra in (
        {"positions": "alibi", "clip_qkv": 0.5},
        {"sinks": True, "yarn": (8.0, 32.0, 1.0, 16)},
        {"interleaved": True},
    ):
        fields = SIZES | extra
        form = form_of(fields)
        weights, x = random_weights(shapes_of_attention(form), seed=1), normal(2, 5, 12, seed=2)
        kept, module, right = (
            student.put(x),
            attention(student, fields, weights),
            right_attention(form, weights, x, *text(2, 5)),
        )
        for _ in range(2):
            assert_close(module(kept, *text(2, 5)), right, claim=str(extra))
        assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
        module.train()
        assert_close(module(x, *text(2, 5)), right, claim=f"{extra}, in training")
        module.double()
        assert_close(
            module(x.double(), *text(2, 5)), right.double(), atol=1e-3, claim=str(extra), name="the float64 result"
        )
        module.bfloat16()
        found = module(x.bfloat16(), *text(2, 5))
        assert_close(found, right.bfloat16(), atol=0.3, rtol=0.1, claim=str(extra), name="the bfloat16 result")


# -- Block ------------------------------------------------------------------------------------------------------------

INGREDIENTS = {
    "norm": ("rms", "layer", "plain"),
    "residual": ("sequential", "parallel", "shared"),
    "mlp": ("swiglu", "gelu", "gelu_tanh", "clamped"),
}
PLAIN = {"positions": "learned"}  # the attention that stands in for the student's knows no position


def shapes_of_block(form: families.Form) -> dict[str, tuple[int, ...]]:
    norm = {"rms": ("weight",), "layer": ("weight", "bias"), "plain": ()}[form.norm]
    norms = ["norm1"] if form.residual == "parallel, one norm" else ["norm1", "norm2"]
    found: dict[str, tuple[int, ...]] = {f"{name}.{part}": (form.d_model,) for name in norms for part in norm}
    found |= {f"attention.{name}": shape for name, shape in shapes_of_attention(form).items()}
    for name in ["gate_proj"] * form.gated + ["up_proj", "down_proj"]:
        rows, columns = (form.d_model, form.d_hidden) if name == "down_proj" else (form.d_hidden, form.d_model)
        found[f"mlp.{name}.weight"] = (rows, columns)
        if "mlp" in form.biases:
            found[f"mlp.{name}.bias"] = (rows,)
    return found


def right_block(
    form: families.Form, weights: Weights, x: Tensor, mask: Tensor | None = None, trace: Weights | None = None
) -> Tensor:
    state = {f"blocks.0.{name}": value for name, value in weights.items()}
    positions, every = text(*x.shape[:2])
    found: Weights = {}
    run = families._Run(replace(form, position="none"), state, found)
    right = run.block(0, x, every if mask is None else mask, positions)
    if trace is not None:
        trace |= {**under("blocks.0.", found), "": right}
    return right


def check_block(
    student: Student, fields: Mapping[str, Any], x: Tensor, claim: str, seed: int = 1, **close: float
) -> None:
    """With random weights the student's block is right; where it is not, say which sub-layer is the first."""
    fields = SIZES | PLAIN | dict(fields)
    form = form_of(fields)
    weights = {name: value.to(x.dtype) for name, value in random_weights(shapes_of_block(form), seed).items()}
    module, state = created(student, "Block", fields, 0)
    if x.dtype != torch.float32:
        module.to(x.dtype)
    module = filled(module, {name: value.to(x.dtype) for name, value in state.items()}, weights)
    trace: Weights = {}
    right = right_block(form, weights, x, trace=trace)
    _same_block(module, (x, *text(*x.shape[:2])), right, trace, claim, **close)


def _same_block(
    module: Remote, given: tuple[Tensor, ...], right: Tensor, trace: Weights, claim: str, **close: float
) -> None:
    found = module(*given)
    try:
        assert_close(found, right, claim=claim, **close)  # type: ignore[arg-type]
    except AssertionError as error:
        where = first_difference(module, {name: value for name, value in trace.items() if name}, lambda: module(*given))
        raise AssertionError(f"{error} {where}".strip()) from None


@pytest.mark.exercise("Block")
def test_the_block_has_the_stated_parameters(student: Student) -> None:
    """The state dict holds norms, attention and feed-forward as the configuration asks for them, and nothing else."""
    for i, family in enumerate(NAMED):
        for number, config in list(enumerate(configs(family)))[i % 2 :][:1]:
            run, state = watched(family, number, plain=True)
            fields = settings(config, n_kv_heads=run.form.n_heads, sinks=False)
            module, held = created(student, "Block", fields, 0)
            check_state(student, module, held, under("blocks.0.", state), family)


@pytest.mark.exercise("Block")
@pytest.mark.parametrize("family", NAMED)
def test_every_block_is_right_in(student: Student, family: str) -> None:
    """At its place in a whole model, with random weights, each block gives what the family's block gives."""
    for number, config in enumerate(configs(family)):
        run, state = watched(family, number, plain=True)
        fields = settings(
            config, n_kv_heads=run.form.n_heads, sinks=False, clip_qkv=None, windows=(), positions="learned"
        )
        for seen in run.given[:2]:
            module = loaded(student, "Block", fields, under(f"blocks.{seen.layer}.", state), seen.layer)
            x, positions, mask = seen.x[:1], seen.positions[:1], seen.mask[:1]  # the text that has no padding
            trace: Weights = {}
            right = right_block(run.form, under(f"blocks.{seen.layer}.", state), x, trace=trace)
            claim = f"{family}, block {seen.layer} of {run.form.n_layers}"
            _same_block(module, (x, positions, mask), right, trace, claim, atol=2e-4)


@pytest.mark.exercise("Block", weight=2)
def test_every_ingredient_goes_with_every_other(student: Student) -> None:
    """Norm, residual and feed-forward are three choices of their own: all their combinations work."""
    x = normal(2, 5, 12, seed=3)
    for i, norm in enumerate(INGREDIENTS["norm"]):
        for j, residual in enumerate(INGREDIENTS["residual"]):
            mlp = INGREDIENTS["mlp"][(i + 2 * j) % 4]
            fields = {"norm": norm, "residual": residual, "mlp": mlp, "mlp_bias": i != 1, "o_bias": j != 1}
            check_block(student, fields, x, f"{residual} residual, norm {norm}, mlp {mlp}")


@pytest.mark.exercise("Block")
def test_parallel_parts_do_not_see_each_other(student: Student) -> None:
    """In a parallel block the feed-forward part reads x, so whatever attention adds comes out as it was added."""
    for residual in ("parallel", "shared", "sequential"):
        fields = SIZES | PLAIN | {"residual": residual, "norm": "layer", "o_bias": True, "mlp": "gelu"}
        weights, x = random_weights(shapes_of_block(form_of(fields)), seed=4), normal(2, 5, 12, seed=5)
        shift = 3 * normal(12, seed=6)
        before, after = (
            tensor(
                loaded(student, "Block", fields, weights | {"attention.o_proj.bias": bias}, 0)(x, *text(2, 5)),
                shape=x.shape,
            )
            for bias in (torch.zeros(12), shift)
        )
        assert_close(
            before,
            right_block(form_of(fields), weights | {"attention.o_proj.bias": torch.zeros(12)}, x),
            claim=residual,
        )
        moved = after.detach() - before.detach()
        if residual == "sequential":
            assert ((moved - shift).abs() > 1e-2).any(-1).all(), (
                "In sequence, the feed-forward part reads what attention added."
            )
        else:
            assert_close(
                moved, shift.expand(2, 5, 12), claim=f"{residual}: attention adds more", name="what comes out more"
            )


@pytest.mark.exercise("Block")
def test_the_clamped_gate_at_its_limits(student: Student) -> None:
    """gpt-oss: the gate is cut off above only, the up projection on both sides, and then it gets 1 more."""
    fields = SIZES | PLAIN | {"mlp": "clamped", "norm": "layer", "mlp_bias": True, "d_hidden": 12}
    form = form_of(fields)
    for seed, scale in enumerate((1.0, 20.0, 300.0)):
        weights = {name: value.double() for name, value in random_weights(shapes_of_block(form), seed).items()}
        weights |= {name: scale * weights[name] for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight")}
        x = normal(2, 5, 12, seed=seed).double()
        module, state = created(student, "Block", fields, 0)
        module.double()
        found = filled(module, {name: value.double() for name, value in state.items()}, weights)(x, *text(2, 5))
        claim = f"in float64, with gate and up projection of size {scale:g}"
        assert_close(found, right_block(form, weights, x), atol=1e-6, rtol=1e-6, claim=claim)


@pytest.mark.exercise("Block")
def test_the_two_gelus_are_told_apart(student: Student) -> None:
    """GELU and its tanh form differ from the fourth digit on, so float64 is compared."""
    for mlp in ("gelu", "gelu_tanh"):
        fields = {"mlp": mlp, "norm": "layer", "mlp_bias": True}
        check_block(student, fields, normal(2, 5, 12, seed=4).double(), f"{mlp}, in float64", atol=3e-5, rtol=0)


@pytest.mark.exercise("Block")
def test_both_norms_use_the_eps_of_the_configuration(student: Student) -> None:
    """norm_eps is added inside the root of every norm: inputs that are nearly alike, and a large eps, show it."""
    for norm in INGREDIENTS["norm"]:
        for eps, scale in ((0.3, 1.0), (1e-5, 3e-3), (1e-6, 1e-3)):
            for residual in ("sequential", "parallel"):
                fields = {"norm": norm, "norm_eps": eps, "residual": residual}
                x = scale * normal(2, 5, 12, seed=6)
                check_block(student, fields, x, f"norm {norm}, eps {eps:g}, x of size {scale:g}", atol=1e-4, rtol=1e-2)


@pytest.mark.exercise("Block")
def test_gradients_reach_every_parameter_of_the_block(student: Student) -> None:
    """Everything learns: the gradients of x and of all parameters are right, in all three shapes of the block."""
    for residual in INGREDIENTS["residual"]:
        fields = SIZES | PLAIN | {"residual": residual, "norm": "layer", "mlp": "clamped", "mlp_bias": True}
        form = form_of(fields)
        weights = random_weights(shapes_of_block(form), seed=1)
        x, upstream = normal(2, 5, 12, seed=2).requires_grad_(), normal(2, 5, 12, seed=3)
        module = loaded(student, "Block", fields, weights, 0)
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        expected = gradients(right_block(form, leaves, x), upstream, x=x, **leaves)
        found = {"x": gradients(module(x, *text(2, 5)), upstream, x=x)["x"], **student.grads(module)}
        for name, value in expected.items():
            assert found.get(name) is not None, f"{residual}: no gradient reaches {name}."
            assert_close(found[name], value, atol=2e-3, rtol=2e-3, claim=residual, name=f"the gradient of {name}")


@pytest.mark.exercise("Block", weight=0.5)
def test_a_block_hands_the_mask_on(student: Student) -> None:
    """Attention gets its layer, the positions and the mask: each layer has its window, and padding changes nothing."""
    fields = SIZES | PLAIN | {"norm": "layer", "residual": "parallel", "mlp": "gelu"}
    weights, x = random_weights(shapes_of_block(form_of(fields)), seed=1), normal(1, 6, 12, seed=2)
    module, mask = loaded(student, "Block", fields, weights, 0), torch.arange(6)[None] >= 2
    alone = right_block(form_of(fields), weights, x[:, 2:])
    found = tensor(module(x, (torch.arange(6) - 2).clamp(min=0)[None], mask), shape=x.shape)
    assert_close(found[:, 2:], alone, claim="with two tokens of padding")
    second = loaded(student, "Block", fields | {"windows": (None, 2)}, weights, 1)
    right = right_block(form_of(fields | {"windows": (2, None)}), weights, x)  # the oracle's layer 0
    assert_close(second(x, *text(1, 6)), right, claim="layer 1, which alone has a window")


@pytest.mark.exercise("Block", weight=0.5)
def test_a_block_takes_other_dtypes_and_leaves_x_alone(student: Student) -> None:
    """A block in bfloat16 takes and gives bfloat16; x belongs to the caller; training changes nothing."""
    for mlp in ("clamped", "swiglu"):
        fields = SIZES | PLAIN | {"mlp": mlp, "residual": "sequential"}
        form = form_of(fields)
        weights, x = random_weights(shapes_of_block(form), seed=1), normal(2, 5, 12, seed=2)
        kept, module, right = (
            student.put(x),
            loaded(student, "Block", fields, weights, 0),
            right_block(form, weights, x),
        )
        assert_close(module(kept, *text(2, 5)), right, claim=mlp)
        assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")
        module.train()
        assert_close(module(x, *text(2, 5)), right, claim=f"{mlp}, in training")
        module.bfloat16()
        found = module(x.bfloat16(), *text(2, 5))
        assert_close(found, right.bfloat16(), atol=0.4, rtol=0.1, claim=mlp, name="the bfloat16 result")


# -- Decoder ----------------------------------------------------------------------------------------------------------


@cache
def whole(family: str, number: int) -> tuple[Config, Weights, Weights]:
    """A configuration, its random state as transformers names it, and as the course does."""
    config = configs(family)[number]
    state = families.random_state(config, seed=20 + number)
    return config, state, families.course_state(config, state)


def decoder(student: Student, config: Config, weights: Weights) -> Remote:
    return loaded(student, "Decoder", settings(config), weights)


def one_of_each() -> Iterator[tuple[str, Config, Weights, Weights]]:
    for i, family in enumerate(NAMED):
        yield (family, *whole(family, i % 2))


@pytest.mark.exercise("Decoder")
def test_the_decoder_has_the_stated_parameters(student: Student) -> None:
    """The state dict holds tables, blocks, norms and the read-out that the configuration asks for, and nothing else."""
    for family, config, _, weights in one_of_each():
        module, state = created(student, "Decoder", settings(config))
        check_state(student, module, state, weights, family)


@pytest.mark.exercise("Decoder")
@pytest.mark.parametrize("family", NAMED)
def test_the_whole_model_gives_the_logits_of(student: Student, family: str) -> None:
    """With the same random weights the logits are the family's. If not, the first sub-layer that differs is named."""
    for number in range(len(configs(family))):
        config, state, weights = whole(family, number)
        module, ids = decoder(student, config, weights), some_ids(config["vocab_size"], 2, 8, seed=number)
        trace: Weights = {}
        right = families.logits(config, state, ids, trace=trace)
        found = module(ids)
        try:
            assert_close(found, right, atol=2e-4, rtol=2e-4, claim=f"{family}, {families.form(config).n_layers} layers")
        except AssertionError as error:
            where = first_difference(module, trace, partial(module, ids))
            raise AssertionError(f"{error} {where}".strip()) from None


@pytest.mark.exercise("Decoder", weight=2)
def test_left_padding_changes_no_logit_of_the_text(student: Student) -> None:
    """Positions count from the first token of the text, so padding on the left changes nothing for it."""
    for family, config, state, weights in one_of_each():
        module, ids, mask = decoder(student, config, weights), some_ids(config["vocab_size"], 3, 9, seed=4), padded(9)
        shape = (3, 9, config["vocab_size"])
        found = tensor(module(ids, mask), shape=shape, name=f"{family}: the logits")
        right = families.logits(config, state, ids, mask)
        assert_close(found[mask], right[mask], atol=2e-4, rtol=2e-4, claim=f"{family}, with padding")
        assert_close(module(ids, mask=mask), found.detach(), claim=f"{family}, with mask by its name")


@pytest.mark.exercise("Decoder")
def test_a_learned_position_is_that_of_the_text(student: Student) -> None:
    """GPT-2: token i of a text gets row i of the table, the first one row 0, whatever stands before it."""
    config, state, weights = whole("GPT-2", 0)
    ids, mask = some_ids(37, 2, 7, seed=1), torch.arange(7) >= torch.tensor([[0], [3]])
    for row in (0, 3, 6):
        table = weights["positions.weight"].clone()
        table[row] += normal(24, seed=row)
        changed = state | {"transformer.wpe.weight": table}
        found = tensor(decoder(student, config, weights | {"positions.weight": table})(ids, mask), shape=(2, 7, 37))
        right = families.logits(config, changed, ids, mask)
        assert_close(found[mask], right[mask], atol=2e-4, claim=f"with another row {row} in the table of positions")


@pytest.mark.exercise("Decoder")
def test_the_read_out_is_tied_or_its_own(student: Student) -> None:
    """Tied, logits are products with the table of tokens; else with head.weight, and head.bias is added."""
    for family in ("GPT-2", "GPT-J", "OLMo"):
        for number in range(len(configs(family))):
            config, state, weights = whole(family, number)
            ids = some_ids(config["vocab_size"] - 1, 2, 5, seed=3)  # the last token is never in the text
            right = families.logits(config, state, ids)
            before = decoder(student, config, weights)(ids)
            assert_close(before, right, atol=2e-4, rtol=2e-4, claim=family)
            name = "tokens.weight" if families.form(config).tied else "head.weight"
            table = weights[name].clone()
            table[-1] = 2 * table[3] - table[7]
            after = tensor(decoder(student, config, weights | {name: table})(ids), shape=right.shape).detach()
            bias = weights.get("head.bias", torch.zeros(config["vocab_size"]))
            wanted = 2 * right[..., 3] - right[..., 7] - 2 * bias[3] + bias[7] + bias[-1]
            assert_close(after[..., :-1], right[..., :-1], atol=2e-4, rtol=2e-4, claim=family, name="the other logits")
            assert_close(
                after[..., -1], wanted, atol=1e-3, rtol=1e-3, claim=family, name=f"the logit of a new row of {name}"
            )


@pytest.mark.exercise("Decoder")
def test_the_first_and_the_last_norm_stand_where_they_should(student: Student) -> None:
    """BLOOM: one norm right after the table of tokens, and one after the last block, with gains and biases."""
    config, state, _ = whole("BLOOM", 0)
    ids = some_ids(37, 2, 6, seed=5)
    for name in ("word_embeddings_layernorm", "ln_f"):
        flat = {key: torch.zeros_like(v) if key == f"transformer.{name}.weight" else v for key, v in state.items()}
        right = families.logits(config, flat, ids)
        found = decoder(student, config, families.course_state(config, flat))(ids)
        assert_close(found, right, atol=2e-4, rtol=2e-4, claim=f"with a gain of zero in BLOOM's {name}")


@pytest.mark.exercise("Decoder")
def test_gradients_reach_every_parameter_of_the_decoder(student: Student) -> None:
    """Everything learns, a tied table twice: as the way in and as the way out."""
    for family in ("BLOOM", "GPT-J", "gpt-oss"):
        config, _, weights = whole(family, 1)
        ids, mask, form = some_ids(config["vocab_size"], 2, 6, seed=2), padded(6)[:2], families.form(config)
        upstream = normal(2, 6, config["vocab_size"], seed=3) * mask[..., None]
        module = decoder(student, config, weights)
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        safe = torch.ones_like(mask)
        expected = gradients(families._Run(form, leaves, {}).logits(ids, safe), upstream, **leaves)
        out = tensor(module(ids), shape=upstream.shape, dtype=torch.float32)
        assert out.requires_grad, "No gradient flows through the logits: something on the way was detached or rebuilt."
        out.backward(upstream)
        found = student.grads(module)
        for name, value in expected.items():
            grad = found.get(name)
            assert grad is not None, f"{family}: no gradient reaches {name}."
            assert_close(grad, value, atol=2e-2, rtol=1e-2, claim=family, name=f"the gradient of {name}")


@pytest.mark.exercise("Decoder", weight=0.5)
def test_the_decoder_leaves_its_inputs_alone(student: Student) -> None:
    """Ids and mask belong to the caller; a mask of nothing but text is no mask; float64 gives float64."""
    config, state, weights = whole("GPT-2", 1)
    ids, mask = some_ids(29, 2, 6, seed=1), padded(6)[:2]
    kept_ids, kept_mask, module = student.put(ids), student.put(mask), decoder(student, config, weights)
    right = families.logits(config, state, ids, mask)
    assert_close(tensor(module(kept_ids, kept_mask), shape=right.shape)[mask], right[mask], atol=2e-4)
    assert_close(kept_ids.get(), ids, claim="after the call", name="ids")
    assert_close(kept_mask.get(), mask, claim="after the call", name="mask")
    module.train()
    plain = families.logits(config, state, ids)
    assert_close(module(ids, torch.ones_like(mask)), plain, atol=2e-4, claim="with a mask of nothing but text")
    assert_close(module(ids), plain, atol=2e-4, claim="without a mask")
    module.double()
    assert_close(module(ids), plain.double(), atol=1e-3, rtol=1e-3, name="the float64 logits")


# -- detective --------------------------------------------------------------------------------------------------------

ENTRIES = ("family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes")
FILES = {
    "gpt2": "gpt2",
    "gptj": "gptj",
    "gpt_neox": "gpt_neox",
    "bloom": "bloom",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "olmo": "olmo",
    "gpt_oss": "gpt_oss",
    "gpt_oss_dense": "gpt_oss",
}
Shapes = dict[str, tuple[int, ...]]


def file_of(name: str, number: int, **more: object) -> tuple[Shapes, families.Form]:
    """The names and shapes of a checkpoint as transformers writes it, in a random order, and its true form."""
    config = dict(families.TINY[name][number]) | more
    shapes = list(families.shapes(config).items())
    random.Random(number).shuffle(shapes)
    return dict(shapes), families.form(config)


@cache
def every_file() -> tuple[tuple[str, Shapes, families.Form], ...]:
    """Files of every family, with few layers and with many."""
    return tuple(_every_file())


def _every_file() -> Iterator[tuple[str, Shapes, families.Form]]:
    for name, family in FILES.items():
        depth = "n_layer" if name in ("gpt2", "gptj", "bloom") else "num_hidden_layers"
        for number, n_layers in enumerate((3, 11)):
            shapes, form = file_of(name, number, **{depth: n_layers})
            yield family, shapes, form


def asked(student: Student, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    found = student.detective(dict(shapes))
    assert isinstance(found, dict), f"detective should return a dict, and it returns a {type(found).__name__}."
    assert set(found) == set(ENTRIES), (
        f"The dict should hold {sorted(ENTRIES)}, and it holds {sorted(map(str, found))}."
    )
    return found


def is_count(found: object, right: int) -> bool:
    return type(found) is int and found == right


@pytest.mark.exercise("detective", weight=2)
def test_every_family_is_named(student: Student) -> None:
    """The names of the tensors tell the family: every one of the nine, at every depth, in any order of the file."""
    for family, shapes, _ in every_file():
        found = asked(student, shapes)["family"]
        clue = next(name for name in sorted(shapes) if "attn." in name or "attention." in name)
        assert found == family, f"A file with {clue!r} is taken for {found!r}."


@pytest.mark.exercise("detective")
def test_layers_and_width_are_counted(student: Student) -> None:
    """n_layers is the number of blocks, also of ten and more, and d_model the width of the table of tokens."""
    for family, shapes, form in every_file():
        found = asked(student, shapes)
        assert is_count(found["n_layers"], form.n_layers), f"{family}: n_layers is {found['n_layers']!r}."
        assert is_count(found["d_model"], form.d_model), f"{family}: d_model is {found['d_model']!r}."


@pytest.mark.exercise("detective", weight=2)
def test_what_no_shape_tells_is_none(student: Student) -> None:
    """Heads are cut when the model runs: only a norm or a sink that has a number for each tells how many there are."""
    for family, shapes, _ in every_file():
        if family not in ("qwen3", "gpt_oss"):
            found = asked(student, shapes)
            assert found["family"] == family, f"A file of {family} is taken for {found['family']!r}."
            for name in ("n_heads", "d_head"):
                assert found[name] is None, f"{family}: {name} is {found[name]!r}. Which tensor says so?"


@pytest.mark.exercise("detective")
def test_what_a_norm_or_a_sink_tells_is_used(student: Student) -> None:
    """Qwen3's norm has a number for each channel of a head, gpt-oss's sinks one for each head: the rest follows."""
    for family, shapes, form in every_file():
        if family in ("qwen3", "gpt_oss"):
            found = asked(student, shapes)
            for name in ("n_heads", "d_head"):
                assert is_count(found[name], getattr(form, name)), f"{family}: {name} is {found[name]!r}."


@pytest.mark.exercise("detective")
def test_shared_keys_show_in_the_shapes(student: Student) -> None:
    """The rows of q over the rows of k: how many query heads share a key head, also where no head can be counted."""
    for family, shapes, form in every_file():
        found, right = asked(student, shapes)["group"], form.n_heads // form.n_kv_heads
        assert is_count(found, right), f"{family}: group is {found!r}."


@pytest.mark.exercise("detective", weight=2)
def test_a_token_costs_its_keys_and_values(student: Student) -> None:
    """Two bytes for each number of k and of v, in every layer: queries are never kept."""
    for family, shapes, form in every_file():
        right = 2 * 2 * form.n_layers * form.n_kv_heads * form.d_head
        found = asked(student, shapes)["kv_bytes"]
        assert is_count(found, right), f"{family}: kv_bytes is {found!r}, {_times(found, right)}."


def _times(found: object, right: int) -> str:
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    return f"{found / right:.3g} times what it should be" if is_number else "which is no number"  # type: ignore[operator]


@pytest.mark.exercise("detective", weight=0.5)
def test_only_a_table_of_positions_ends(student: Student) -> None:
    """GPT-2 stores a row for each position it can read; of the others no file says how far they read."""
    for family, shapes, form in every_file():
        found = asked(student, shapes)
        assert found["family"] == family, f"A file of {family} is taken for {found['family']!r}."
        if family == "gpt2":
            assert is_count(found["n_context"], form.n_positions), f"gpt2: n_context is {found['n_context']!r}."
        else:
            assert found["n_context"] is None, f"{family}: n_context is {found['n_context']!r}. Which tensor says so?"


@pytest.mark.exercise("detective")
def test_files_without_the_first_word_are_the_same(student: Student) -> None:
    """Some files leave out transformer., gpt_neox. or model. before every name: nothing else changes."""
    for family, shapes, _ in every_file():
        whole_file = asked(student, shapes)
        assert whole_file["family"] == family, f"A file of {family} is taken for {whole_file['family']!r}."
        short = {re.sub(r"^(transformer|gpt_neox|model)\.", "", name): shape for name, shape in shapes.items()}
        found = asked(student, short)
        differing = [name for name in ENTRIES if found[name] != whole_file[name]]
        assert not differing, f"{family}, without the first word of its names: {differing} are different."


@pytest.mark.exercise("detective")
def test_buffers_and_heads_change_nothing(student: Student) -> None:
    """Masks of older files, tables of RoPE and a stored read-out are no clue, and must not be taken for one."""
    extra: dict[str, dict[str, tuple[int, ...]]] = {
        "gpt2": {"transformer.h.0.attn.bias": (1, 1, 1024, 1024), "transformer.h.0.attn.masked_bias": ()},
        "gptj": {"transformer.h.0.attn.bias": (1, 1, 2048, 2048), "lm_head.bias": (37,)},
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": (3,), "lm_head.weight": (37, 24)},
        "gpt_neox": {
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (2,),
            "gpt_neox.layers.0.attention.bias": (9, 9),
        },
        "bloom": {"lm_head.weight": (37, 24)},
    }
    for family, more in extra.items():
        shapes, _ = file_of(family, 0)
        before, after = asked(student, shapes), asked(student, more | shapes)
        assert before["family"] == family, f"A file of {family} is taken for {before['family']!r}."
        differing = [name for name in ENTRIES if before[name] != after[name]]
        assert not differing, f"{family}, with {sorted(more)} in the file: {differing} are different."


@pytest.mark.exercise("detective")
def test_an_unknown_model_is_unknown(student: Student) -> None:
    """A file of none of the families gets None eight times, also where some of its names look familiar."""
    known, _ = file_of("llama", 0)
    assert asked(student, known)["family"] == "llama", "A file of llama is not recognised."
    phi3: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (9, 8),
        "model.layers.0.self_attn.qkv_proj.weight": (24, 8),
    }
    phi3 |= {"model.layers.0.input_layernorm.weight": (8,)}
    bert: dict[str, tuple[int, ...]] = {
        "bert.encoder.layer.0.attention.self.query.weight": (8, 8),
        "bert.embeddings.word_embeddings.weight": (9, 8),
    }
    t5: dict[str, tuple[int, ...]] = {"shared.weight": (9, 8), "decoder.block.0.layer.0.SelfAttention.q.weight": (8, 8)}
    for name, shapes in {"Phi-3": phi3, "BERT": bert, "T5": t5, "an empty file": {}}.items():
        found = asked(student, shapes)
        told = [key for key in ENTRIES if found[key] is not None]
        assert not told, f"{name} is no family of these, and detective tells {told}."


# -- Mended -----------------------------------------------------------------------------------------------------------


def neox(d_model: int, n_layers: int, n_heads: int, rotary: float) -> Config:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 19,
        "num_hidden_layers": n_layers,
        "hidden_size": d_model,
        "num_attention_heads": n_heads,
        "intermediate_size": 4 * d_model,
        "rotary_pct": rotary,
        "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    }


def mended(student: Student, config: Config, weights: Weights) -> Remote:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rotary_pct")
    module = student.Mended(*(config[name] for name in sizes))
    return filled(module, state_of(module, "Mended"), weights)


def check_neox(student: Student, n: int, sizes: tuple[int, int, int, float], seed: int = 1) -> None:
    config = neox(*sizes)
    state, ids = families.random_state(config, seed), some_ids(19, 2, n, seed=seed)
    module = mended(student, config, state)
    claim = f"d_model {sizes[0]}, {sizes[1]} layers, {sizes[2]} heads, {sizes[3]:.0%} of the channels turn, {n} tokens"
    assert_close(module(ids), families.logits(config, state, ids), claim=claim)


@pytest.mark.exercise("Mended", weight=3)
def test_the_patient_is_in_health(student: Student) -> None:
    """Where a part of the channels turns, the logits are those of GPT-NeoX with the same weights."""
    for seed, sizes in enumerate(((16, 2, 2, 0.25), (24, 1, 2, 0.5), (32, 2, 2, 0.25), (24, 3, 1, 0.25))):
        check_neox(student, 9, sizes, seed)


@pytest.mark.exercise("Mended")
def test_what_was_healthy_still_is(student: Student) -> None:
    """Where all channels turn, or there is one token, it is as right as it was; so it is for a long text."""
    for n, sizes in ((9, (16, 2, 2, 1.0)), (1, (16, 2, 2, 0.5)), (40, (16, 1, 2, 0.5))):
        check_neox(student, n, sizes)


@pytest.mark.exercise("Mended")
def test_gradients_of_the_mended_model(student: Student) -> None:
    """Everything learns as it does in GPT-NeoX."""
    config = neox(16, 2, 2, 0.5)
    state, ids, upstream = (
        families.random_state(config, 1, std=0.3),
        some_ids(19, 2, 6, seed=2),
        normal(2, 6, 19, seed=3),
    )
    module = mended(student, config, state)
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    expected = gradients(families.logits(config, leaves, ids), upstream, **leaves)
    out = tensor(module(ids), shape=upstream.shape)
    assert out.requires_grad, "No gradient flows through the logits."
    out.backward(upstream)
    found = student.grads(module)
    for name, value in expected.items():
        grad = found.get(name)
        assert grad is not None, f"No gradient reaches {name}."
        assert_close(grad, value, atol=2e-2, rtol=1e-2, name=f"the gradient of {name}")


@pytest.mark.exercise("Mended", weight=0.5)
def test_the_mended_model_keeps_its_names_and_its_gelu(student: Student) -> None:
    """The state dict has the patient's names and shapes, so that transformers' weights fit; GELU is the exact one."""
    config = neox(16, 2, 2, 0.5)
    state, ids = families.random_state(config, 2), some_ids(19, 2, 6, seed=2)
    module = student.Mended(19, 16, 2, 2, 0.5)
    check_state(student, module, state_of(module, "Mended"), state, "Mended")
    found = mended(student, config, state)
    found.double()
    right = families.logits(config, {name: value.double() for name, value in state.items()}, ids)
    assert_close(found(ids), right, atol=5e-5, rtol=0, claim="in float64")
    found.bfloat16()
    rounded = tensor(found(ids), shape=right.shape, dtype=torch.bfloat16, name="the logits with weights in bfloat16")
    assert_close(rounded.double(), right, atol=0.05 * float(right.abs().max()), rtol=0, claim="in bfloat16")
