"""Hidden tests of chapter 18. Expected values come from PyTorch's own layers and cross-entropy and from bytes that
bitsandbytes made (nf4_golden.json, by tests/make_nf4_golden.py); tests/test_lora_oracle.py holds the reference against
peft.

Where no golden bytes exist, the nearest of sixteen values is looked for in float64, by distance.
"""

import base64
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

GOLDEN = Path(__file__).with_name("nf4_golden.json")
State = dict[str, Tensor]


def refused(call: Any, what: str) -> str:
    """The sentence of the ValueError that a call raises."""
    raised: StudentError | None = None
    try:
        call()
    except Unfinished:
        raise
    except StudentError as error:
        raised = error
    told = f"{what} raises {raised.types[0] if raised else 'nothing'}"
    assert isinstance(raised, ValueError), f"{told}, and it should raise a ValueError."
    return str(raised)


def state_of(layer: object, what: str) -> State:
    assert isinstance(layer, Remote), f"{what} should be an nn.Module."
    state = layer.state_dict()
    assert isinstance(state, dict), f"The state_dict() should be a dict: is {what} an nn.Module?"
    return state


def named(trained: object) -> str:
    return ", ".join(sorted(str(name) for name in trained)) if isinstance(trained, list | dict | set) else repr(trained)


# -- LoRALinear -------------------------------------------------------------------------------------------------------

SIZES = ((5, 3, 2, 4.0, True), (3, 7, 1, 0.5, False), (8, 8, 8, 16, True), (6, 2, 5, 7.5, False), (1, 4, 3, 2, True))


def numbers(n_in: int, n_out: int, rank: int, bias: bool, *, seed: int) -> State:
    """Every parameter of a LoRALinear, none of them zero."""
    state = {
        "linear.weight": normal(n_out, n_in, seed=seed),
        "lora_A": normal(rank, n_in, seed=seed + 1),
        "lora_B": normal(n_out, rank, seed=seed + 2),
    }
    return state | ({"linear.bias": normal(n_out, seed=seed + 3)} if bias else {})


def corrected(x: Tensor, state: State, scale: float) -> Tensor:
    """W + α/r · BA as one matrix, and one product."""
    whole = state["linear.weight"] + scale * torch.einsum("or,ri->oi", state["lora_B"], state["lora_A"])
    return functional.linear(x, whole, state.get("linear.bias"))


def lora(
    student: Student,
    n_in: int,
    n_out: int,
    rank: int,
    alpha: float,
    bias: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Remote, Remote]:
    """A given linear layer, and the student's layer around it."""
    linear = student.GivenLinear(n_in, n_out, bias=bias, dtype=dtype or torch.float32)
    layer = student.LoRALinear(linear, rank, alpha)
    assert isinstance(layer, Remote), "LoRALinear(linear, rank, alpha) should be an nn.Module."
    return linear, layer


def loaded(student: Student, size: tuple[int, int, int, float, bool], *, seed: int) -> tuple[Remote, Remote, State]:
    n_in, n_out, rank, alpha, bias = size
    linear, layer = lora(student, n_in, n_out, rank, alpha, bias)
    state = numbers(n_in, n_out, rank, bias, seed=seed)
    layer.load_state_dict(state)
    return linear, layer, state


@pytest.mark.exercise("LoRALinear")
def test_the_state_dict_holds_the_layer_and_two_thin_matrices(student: Student) -> None:
    """It holds lora_A, lora_B, linear.weight and, where there is a bias, linear.bias; B is (out_features, rank)."""
    for n_in, n_out, rank, alpha, bias in SIZES:
        _, layer = lora(student, n_in, n_out, rank, alpha, bias)
        state = state_of(layer, "LoRALinear")
        shapes = {name: tuple(value.shape) for name, value in numbers(n_in, n_out, rank, bias, seed=0).items()}
        assert set(state) == set(shapes), f"The state dict holds {named(state)}."
        for name, shape in shapes.items():
            tensor(state[name], shape=shape, dtype=torch.float32, name=name)
        assert set(student.grads(layer)) == set(shapes), f"The parameters are {named(student.grads(layer))}."


@pytest.mark.exercise("LoRALinear", weight=1.5)
def test_the_given_layer_is_frozen_and_the_rest_is_trained(student: Student) -> None:
    """requires_grad is False for the given layer's weight and bias, and True for lora_A and lora_B."""
    linear, layer = lora(student, 5, 4, 2, 3)
    for letter in "AB":
        value = tensor(getattr(layer, f"lora_{letter}"), name=f"lora_{letter}")
        assert value.requires_grad, f"lora_{letter} is not trained."
    for name in ("weight", "bias"):
        assert not tensor(getattr(linear, name)).requires_grad, f"The given layer's {name} is still trained."
    out = tensor(layer(normal(3, 5, seed=1)), shape=(3, 4))
    assert out.requires_grad, "No gradient flows through the result."
    out.sum().backward()
    found = student.grads(layer)
    assert {name for name, grad in found.items() if grad is not None} == {"lora_A", "lora_B"}, (
        f"After a backward pass these have a gradient: {named([n for n, g in found.items() if g is not None])}."
    )


@pytest.mark.exercise("LoRALinear")
def test_a_new_layer_gives_what_the_given_one_gives(student: Student) -> None:
    """B is zero at first and A is not: the result is that of the given layer, to the last bit."""
    for n_in, n_out, rank, alpha, bias in SIZES:
        linear, layer = lora(student, n_in, n_out, rank, alpha, bias)
        a, b = (tensor(getattr(layer, f"lora_{letter}"), name=f"lora_{letter}").detach() for letter in "AB")
        assert not b.any(), "lora_B is not zero in a new layer."
        assert a.all(), "lora_A holds zeros in a new layer: where A and B both are, neither gets a gradient."
        assert a.isfinite().all(), "lora_A is not finite in a new layer: was it never initialised?"
        assert n_in * rank < 3 or a.unique().numel() > 1, "lora_A holds the same number everywhere."
        x = normal(4, n_in, seed=n_in)
        expected = tensor(linear(x), shape=(4, n_out)).detach()
        assert_close(layer(x), expected, atol=0, rtol=0, claim="a new layer")


@pytest.mark.exercise("LoRALinear", weight=3)
def test_the_correction_is_alpha_over_r_times_b_a_x(student: Student) -> None:
    """With every parameter drawn anew, the result is that of one linear layer with the weight W + α/r · BA."""
    for seed, size in enumerate(SIZES):
        _, layer, state = loaded(student, size, seed=10 * seed)
        mode = "training" if seed % 2 else "evaluation"
        layer.train(mode == "training")
        for lead in ((4,), (2, 3), ()):
            x = normal(*lead, size[0], seed=seed)
            claim = f"{size[0]} → {size[1]} features, rank {size[2]}, alpha {size[3]:g}, x {tuple(x.shape)}, in {mode}"
            assert_close(layer(x), corrected(x, state, size[3] / size[2]), claim=claim)


@pytest.mark.exercise("LoRALinear")
def test_alpha_is_divided_by_the_rank(student: Student) -> None:
    """The correction grows with alpha in proportion, and falls with the rank that it is divided by."""
    x = normal(6, 5, seed=1)
    for rank, alpha in ((1, 1), (1, 6), (4, 6), (5, 0.25)):
        _, layer, state = loaded(student, (5, 3, rank, alpha, True), seed=2)
        plain = functional.linear(x, state["linear.weight"], state["linear.bias"])
        one = functional.linear(functional.linear(x, state["lora_A"]), state["lora_B"])
        found = tensor(layer(x), shape=(6, 3)).detach() - plain
        factor = ((found * one).sum() / (one * one).sum()).item()
        assert math.isclose(factor, alpha / rank, rel_tol=1e-3), (
            f"With alpha {alpha:g} and rank {rank} the correction comes out as {factor:.3g} times B A x."
        )


@pytest.mark.exercise("LoRALinear", weight=1.5)
def test_gradients_reach_x_and_both_matrices(student: Student) -> None:
    """The gradients of x, A and B are those of the formula; x gets its share through W and through BA."""
    for seed, size in enumerate(SIZES):
        _, layer, state = loaded(student, size, seed=10 * seed)
        x, upstream = normal(2, 3, size[0], seed=seed).requires_grad_(), normal(2, 3, size[1], seed=seed + 1)
        leaves = {name: state[name].requires_grad_() for name in ("lora_A", "lora_B")}
        expected = gradients(corrected(x, state, size[3] / size[2]), upstream, x=x, **leaves)
        found = gradients(layer(x), upstream, x=x) | {
            name: grad for name, grad in student.grads(layer).items() if name in leaves and grad is not None
        }
        for name, value in expected.items():
            assert name in found, f"No gradient reaches {name}."
            assert_close(found[name], value, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("LoRALinear", weight=1.5)
def test_merging_adds_the_correction_to_the_weight_in_place(student: Student) -> None:
    """After merge() the given layer's own weight is W + α/r · BA, in the same tensor; bias, A and B stay."""
    for seed, size in enumerate(SIZES):
        linear, layer, state = loaded(student, size, seed=20 * seed)
        layer.merge()
        scale = size[3] / size[2]
        merged = state["linear.weight"] + scale * state["lora_B"] @ state["lora_A"]
        assert_close(linear.weight, merged, name="the given layer's weight after merge()")
        assert linear.same_weight() is True, (
            "After merge() linear.weight is another tensor: it was not changed in place."
        )
        assert linear.same_memory() is True, "After merge() linear.weight stands elsewhere in memory: not in place."
        after = state_of(layer, "LoRALinear")
        for name in set(state) - {"linear.weight"}:
            assert_close(after.get(name), state[name], atol=0, rtol=0, claim="after merge()", name=name)
        assert not tensor(linear.weight).requires_grad, "After merge() the weight is trained."


@pytest.mark.exercise("LoRALinear", weight=1.5)
def test_a_merged_layer_gives_the_same_result(student: Student) -> None:
    """merge() changes where the correction is, not what the layer gives; it must not be counted twice."""
    for seed, size in enumerate(SIZES):
        _, layer, state = loaded(student, size, seed=30 * seed)
        x = normal(2, 3, size[0], seed=seed)
        expected = corrected(x, state, size[3] / size[2])
        assert_close(layer(x), expected, claim="before merge()")
        layer.merge()
        assert_close(layer(x), expected, claim="after merge()")


@pytest.mark.exercise("LoRALinear")
def test_a_merged_layer_computes_with_the_weight_alone(student: Student) -> None:
    """After merge() the result is that of the given layer, and A and B play no part until unmerge()."""
    linear, layer, _ = loaded(student, (5, 4, 2, 3, True), seed=1)
    x = normal(3, 5, seed=2)
    before = tensor(layer(x), shape=(3, 4)).detach()
    layer.merge()
    merged = tensor(linear(x), shape=(3, 4)).detach()
    assert_close(merged, before, claim="after merge()", name="what the given layer gives by itself")
    assert_close(layer(x), merged, atol=0, rtol=0, claim="after merge()")


@pytest.mark.exercise("LoRALinear")
def test_unmerging_takes_the_correction_off_again(student: Student) -> None:
    """unmerge() gives the weight back, in place, and the layer corrects as before."""
    for seed, size in enumerate(SIZES):
        linear, layer, state = loaded(student, size, seed=40 * seed)
        x = normal(4, size[0], seed=seed)
        expected = corrected(x, state, size[3] / size[2])
        layer.merge()
        merged = tensor(linear.weight, shape=state["linear.weight"].shape).detach()
        assert (merged - state["linear.weight"]).abs().max() > 0.01, "merge() leaves the weight as it was."
        layer.unmerge()
        assert_close(linear.weight, state["linear.weight"], name="the weight after unmerge()")
        assert linear.same_weight() is True, "After unmerge() linear.weight is another tensor."
        assert linear.same_memory() is True, "After unmerge() linear.weight stands elsewhere in memory."
        assert_close(layer(x), expected, claim="after unmerge()")


@pytest.mark.exercise("LoRALinear")
def test_merging_twice_is_merging_once(student: Student) -> None:
    """merge() on a merged layer changes nothing, nor does unmerge() on one that is not merged."""
    linear, layer, state = loaded(student, (5, 4, 2, 3, True), seed=1)
    w, a, b = (state[name] for name in ("linear.weight", "lora_A", "lora_B"))
    layer.unmerge()
    assert_close(linear.weight, w, claim="unmerge() on a layer that is not merged", name="the weight")
    for times in (1, 2, 3):
        layer.merge()
        assert_close(linear.weight, w + 1.5 * b @ a, claim=f"after merge() number {times}", name="the weight")
    for times in (1, 2):
        layer.unmerge()
        assert_close(linear.weight, w, claim=f"after unmerge() number {times}", name="the weight")
    layer.merge()
    assert_close(linear.weight, w + 1.5 * b @ a, claim="merged once more", name="the weight")


@pytest.mark.exercise("LoRALinear", weight=0.5)
def test_merged_says_whether_it_is(student: Student) -> None:
    """`merged` is False at first, True after merge() and False after unmerge()."""
    _, layer, _ = loaded(student, (3, 4, 2, 3, True), seed=1)
    for call, expected in (("", False), ("merge", True), ("merge", True), ("unmerge", False), ("merge", True)):
        if call:
            getattr(layer, call)()
        found = layer.merged
        assert found is expected, f"After {call or 'creating the layer'} `merged` is {found!r}."


@pytest.mark.exercise("LoRALinear")
def test_a_bfloat16_layer_has_bfloat16_matrices(student: Student) -> None:
    """lora_A and lora_B have the dtype of the layer's weight, and the result has it, too, also after merge()."""
    linear, layer = lora(student, 8, 6, 2, 4, dtype=torch.bfloat16)
    state = {name: value.bfloat16() for name, value in numbers(8, 6, 2, True, seed=1).items()}
    for name, value in state_of(layer, "LoRALinear").items():
        tensor(value, dtype=torch.bfloat16, name=name)
    layer.load_state_dict(state)
    x = normal(5, 8, seed=2).bfloat16()
    expected = corrected(x.double(), {name: value.double() for name, value in state.items()}, 2.0).bfloat16()
    assert_close(layer(x), expected, atol=0.25, rtol=0.05, claim="in bfloat16")
    layer.merge()
    tensor(linear.weight, dtype=torch.bfloat16, name="the merged weight")
    assert_close(layer(x), expected, atol=0.4, rtol=0.05, claim="merged, in bfloat16")


@pytest.mark.exercise("LoRALinear", weight=0.5)
def test_a_rank_below_one_is_refused(student: Student) -> None:
    """A rank of 0 or below raises a ValueError whose sentence names the rank."""
    lora(student, 4, 3, 1, 2)  # this one is allowed
    for rank in (0, -3):
        linear = student.GivenLinear(4, 3)
        told = refused(lambda linear=linear, rank=rank: student.LoRALinear(linear, rank, 2), f"A rank of {rank}")
        assert str(rank) in re.findall(r"-?\d+", told), f"The sentence does not name the rank: {told}"


@pytest.mark.exercise("LoRALinear", weight=0.5)
def test_x_is_left_as_it_was_and_nothing_is_random(student: Student) -> None:
    """x belongs to the caller; there is no dropout: training and evaluation give the same."""
    _, layer, state = loaded(student, (6, 4, 3, 3, True), seed=1)
    x = normal(40, 6, seed=2)
    kept = student.put(x)
    expected = corrected(x, state, 1.0)
    layer.train()
    assert_close(layer(kept), expected, claim="in training")
    layer.eval()
    assert_close(layer(kept), expected, claim="in evaluation")
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- inject and adapter_state -----------------------------------------------------------------------------------------

IDS = torch.tensor([[1, 4, 0, 8], [2, 2, 7, 5]])


def given_model(student: Student, seed: int = 0) -> Remote:
    model = student.GivenModel()
    model.draw(seed)
    return model


def injected(student: Student, targets: Any, rank: int = 2, alpha: float = 3) -> tuple[Remote, list[str]]:
    model = given_model(student)
    names = student.inject(model, targets, rank, alpha)
    assert isinstance(names, list), f"inject should return a list of names, not {names!r}."
    return model, names


def blocks(*lasts: str) -> list[str]:
    return [f"blocks.{i}.{last}" for i in (0, 1) for last in lasts]


@pytest.mark.exercise("inject", weight=2)
def test_the_layers_of_these_names_become_lora_layers(student: Student) -> None:
    """Every nn.Linear whose last part is a target is a LoRALinear(linear, rank, alpha) around the old layer."""
    for targets, expected, rank, alpha in (
        (["q_proj"], blocks("q_proj"), 2, 3),
        (["k_proj", "q_proj"], blocks("q_proj", "k_proj"), 1, 0.5),
        (("out_proj", "linear"), ["out_proj", *blocks("linear")], 4, 8),
    ):
        model, _ = injected(student, targets, rank, alpha)
        kinds = model.kinds()
        assert sorted(kinds) == sorted(expected), (
            f"With the targets {targets} LoRA stands at {named(kinds) or 'no place'}."
        )
        for name, (its_rank, its_alpha, same) in kinds.items():
            assert (its_rank, its_alpha) == (rank, alpha), f"{name} has rank {its_rank} and alpha {its_alpha}."
            assert same, f"Inside {name} is another layer than the one that stood there."


@pytest.mark.exercise("inject")
def test_the_last_part_of_a_name_decides(student: Student) -> None:
    """proj is the last part of blocks.0.proj and not of q_proj or out_proj; a longer piece is no last part."""
    model, names = injected(student, ["proj"])
    assert sorted(names) == blocks("proj"), f"With the target proj these were replaced: {named(names)}."
    assert sorted(model.kinds()) == blocks("proj"), f"With the target proj LoRA stands at {named(model.kinds())}."
    told = refused(lambda: student.inject(given_model(student), ["0.q_proj"], 2, 3), "The target 0.q_proj")
    assert "0.q_proj" in told, f"The sentence does not name the target: {told}"


@pytest.mark.exercise("inject")
def test_only_linear_layers_are_replaced(student: Student) -> None:
    """An embedding called proj and a norm called gate stay what they are."""
    model, names = injected(student, ["proj", "gate"])
    assert "embed.proj" not in names, "An embedding was replaced."
    assert sorted(model.kinds()) == blocks("proj"), f"LoRA stands at {named(model.kinds())}."
    assert sorted(names) == blocks("proj"), f"These were replaced: {named(names)}."
    told = refused(lambda: student.inject(given_model(student), ["gate"], 2, 3), "A target that only a norm has")
    assert "gate" in told, f"The sentence does not name the target: {told}"


@pytest.mark.exercise("inject")
def test_layers_at_any_depth_are_found(student: Student) -> None:
    """A layer directly in the model is found, and one in a list or a Sequential, whose name is a number."""
    for targets, expected in ((["out_proj"], ["out_proj"]), (["0"], ["head.0"]), (["k_proj"], blocks("k_proj"))):
        model, names = injected(student, targets)
        assert names == expected, f"With the targets {targets} these were replaced: {named(names)}."
        assert sorted(model.kinds()) == sorted(expected), f"LoRA stands at {named(model.kinds()) or 'no place'}."


@pytest.mark.exercise("inject")
def test_the_names_come_in_the_models_order(student: Student) -> None:
    """The dotted names are those of the replaced layers, in the order of named_modules(), not that of the targets."""
    for targets, expected in (
        (["proj", "k_proj", "q_proj", "out_proj"], ["out_proj", *blocks("q_proj", "k_proj", "proj")]),
        (["linear", "0", "k_proj"], [*blocks("k_proj", "linear"), "head.0"]),
    ):
        _, names = injected(student, targets)
        assert sorted(names) == sorted(expected), f"With the targets {targets} these were replaced: {named(names)}."
        assert names == expected, f"The names come in another order: {names}."


@pytest.mark.exercise("inject", weight=2)
def test_everything_but_the_adapters_is_frozen(student: Student) -> None:
    """After inject the parameters that are trained are lora_A and lora_B of the replaced layers, and no other."""
    for targets, where in ((["q_proj", "proj"], blocks("q_proj", "proj")), (["out_proj"], ["out_proj"])):
        model, _ = injected(student, targets)
        trained = model.trained()
        expected = {f"{name}.lora_{letter}" for name in where for letter in "AB"}
        extra, missing = set(trained) - expected, expected - set(trained)
        assert not missing, f"These adapters are not trained: {named(missing)}."
        assert not extra, f"These are trained as well: {named(extra)}."


@pytest.mark.exercise("inject")
def test_the_model_gives_what_it_gave_before(student: Student) -> None:
    """Right after inject nothing has been learnt, so the model's output is the same; its weights are its own."""
    model = given_model(student, seed=3)
    before = tensor(model(IDS), shape=(2, 4, 5)).detach()
    student.inject(model, ["q_proj", "proj", "out_proj"], 2, 3)
    assert len(model.kinds()) == 5, f"LoRA stands at {named(model.kinds()) or 'no place'}."
    assert_close(model(IDS), before, claim="right after inject")
    model.add_to_adapters(0.5)
    after = tensor(model(IDS), shape=(2, 4, 5)).detach()
    assert (after - before).abs().max() > 1e-3, "The adapters make no difference to the model: are they in its places?"


@pytest.mark.exercise("inject")
def test_a_layer_is_replaced_once_also_if_it_is_called_linear(student: Student) -> None:
    """A target called linear means the model's own layers, not the linear inside of a LoRALinear."""
    model, names = injected(student, ["linear"])
    assert names == blocks("linear"), f"With the target linear these were replaced: {named(names)}."
    assert sorted(model.kinds()) == blocks("linear"), f"LoRA stands at {named(model.kinds())}."
    model, names = injected(student, ["q_proj", "linear"])
    assert sorted(model.kinds()) == sorted(blocks("q_proj", "linear")), f"LoRA stands at {named(model.kinds())}."
    assert names == blocks("q_proj", "linear"), f"With q_proj and linear these were replaced: {named(names)}."


@pytest.mark.exercise("inject")
def test_targets_that_no_layer_has_are_refused(student: Student) -> None:
    """If no layer is meant a ValueError names all the targets, and the model is as it was, trained parameters too."""
    model = given_model(student)
    before, output = model.trained(), tensor(model(IDS), shape=(2, 4, 5)).detach()
    told = refused(lambda: student.inject(model, ["w_gate", "up_down"], 2, 3), "inject with targets that nobody has")
    assert "w_gate" in told, f"The sentence does not name every target: {told}"
    assert "up_down" in told, f"The sentence does not name every target: {told}"
    assert model.trained() == before, "Although nothing was replaced, parameters were frozen."
    assert_close(model(IDS), output, claim="after a refused call")
    try:
        names = student.inject(model, ["w_gate", "q_proj"], 2, 3)
    except StudentError as error:
        raise AssertionError(f"One target that fits is enough, and with another that does not: {error}") from None
    assert names == blocks("q_proj"), f"With w_gate and q_proj these were replaced: {named(names)}."


def adapters(student: Student, model: Remote) -> State:
    state = student.adapter_state(model)
    assert isinstance(state, dict), f"adapter_state should return a dict, not a {type(state).__name__}."
    return state


@pytest.mark.exercise("inject", weight=1.5)
def test_the_adapters_state_is_all_of_it_and_nothing_else(student: Student) -> None:
    """Exactly the entries whose last part is lora_A or lora_B, by their full names; lora_A_scale is none of them."""
    model, _ = injected(student, ["q_proj", "out_proj"])
    model.draw(4)
    state, whole = adapters(student, model), model.state_dict()
    expected = {f"{name}.lora_{letter}" for name in ["out_proj", *blocks("q_proj")] for letter in "AB"}
    assert set(state) == expected, f"The adapter's state holds {named(state) or 'nothing'}."
    for name in expected:
        assert_close(state[name], whole[name], atol=0, rtol=0, name=name)


@pytest.mark.exercise("inject")
def test_the_adapters_state_is_a_copy(student: Student) -> None:
    """What was saved does not change when training goes on, and has no gradient."""
    model, _ = injected(student, ["q_proj"])
    model.draw(5)
    state = adapters(student, model)
    assert set(state) == {f"{name}.lora_{letter}" for name in blocks("q_proj") for letter in "AB"}, (
        f"The adapter's state holds {named(state) or 'nothing'}."
    )
    assert not any(value.requires_grad for value in state.values()), "What is saved still has a gradient."
    model.save_adapter()
    model.add_to_adapters(1.0)
    for name, value in model.saved_adapter().items():
        assert_close(value, state[name], atol=0, rtol=0, claim="after more training", name=f"the saved {name}")


@pytest.mark.exercise("inject")
def test_an_adapter_can_be_loaded_into_another_copy(student: Student) -> None:
    """Loaded with strict=False into the same model with fresh adapters, it gives the same outputs."""
    model, _ = injected(student, ["q_proj", "proj", "0"])
    model.draw(6)
    expected = tensor(model(IDS), shape=(2, 4, 5)).detach()
    state = adapters(student, model)
    model.add_to_adapters(0.7)
    changed = tensor(model(IDS), shape=(2, 4, 5)).detach()
    assert (changed - expected).abs().max() > 1e-3, "The adapters make no difference to the model."
    model.load_state_dict(state, strict=False)
    assert_close(model(IDS), expected, claim="with the adapter loaded")


# -- sft_loss ---------------------------------------------------------------------------------------------------------


def texts(batch: int, n: int, vocabulary: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, ids, prompt lengths and lengths: every row has an answer of at least one token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, n + 1, (batch,), generator=generator)
    lengths[0] = n
    prompts = 1 + (torch.rand(batch, generator=generator) * (lengths - 1)).long()
    ids = torch.randint(vocabulary, (batch, n), generator=generator)
    return 2 * normal(batch, n, vocabulary, seed=seed), ids, prompts, lengths


def loss_of(logits: Tensor, ids: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
    """PyTorch's cross-entropy over the tokens picked one by one."""
    picked = [(b, t) for b in range(len(ids)) for t in range(int(prompts[b]), int(lengths[b]))]
    rows = torch.stack([logits[b, t - 1] for b, t in picked])
    return functional.cross_entropy(rows.float(), torch.stack([ids[b, t] for b, t in picked]))


@pytest.mark.exercise("sft_loss", weight=3)
def test_the_loss_is_the_mean_over_the_answers_tokens(student: Student) -> None:
    """It is PyTorch's cross-entropy of exactly the tokens that count."""
    for seed, (batch, n, vocabulary) in enumerate(((3, 7, 5), (1, 2, 4), (5, 12, 3), (2, 9, 40))):
        given = texts(batch, n, vocabulary, seed=seed)
        claim = f"{batch} texts of {n} positions, {vocabulary} tokens"
        assert_close(student.sft_loss(*given), loss_of(*given), claim=claim, name="the loss")


@pytest.mark.exercise("sft_loss", weight=1.5)
def test_the_prompt_has_no_influence(student: Student) -> None:
    """What the model says about the prompt's own tokens does not count, and neither do they."""
    logits, ids, prompts, lengths = texts(3, 9, 6, seed=5)
    prompts, lengths = torch.tensor([4, 1, 6]), torch.tensor([9, 5, 8])
    inside = torch.arange(9) < prompts[:, None] - 1
    other = torch.where(inside[:, :, None], 7 * normal(3, 9, 6, seed=6), logits)
    asked = torch.where(torch.arange(9) < prompts[:, None], (ids + 1) % 6, ids)
    expected = loss_of(logits, ids, prompts, lengths)
    assert_close(student.sft_loss(other, ids, prompts, lengths), expected, claim="other logits in the prompt")
    assert_close(student.sft_loss(logits, asked, prompts, lengths), expected, claim="other tokens in the prompt")


@pytest.mark.exercise("sft_loss", weight=1.5)
def test_the_padding_has_no_influence(student: Student) -> None:
    """What stands at and after `lengths` does not count, neither the ids nor the logits."""
    logits, ids, _, _ = texts(3, 9, 6, seed=7)
    prompts, lengths = torch.tensor([2, 1, 3]), torch.tensor([5, 9, 4])
    after = torch.arange(9) >= lengths[:, None]
    expected = loss_of(logits, ids, prompts, lengths)
    padded = torch.where(after, 0, ids)
    assert_close(student.sft_loss(logits, padded, prompts, lengths), expected, claim="padded with token 0")
    last = torch.arange(9) >= lengths[:, None] - 1  # the logits at the last token predict the padding
    other = torch.where(last[:, :, None], 7 * normal(3, 9, 6, seed=8), logits)
    assert_close(student.sft_loss(other, padded, prompts, lengths), expected, claim="other logits at the padding")


@pytest.mark.exercise("sft_loss", weight=1.5)
def test_the_answers_first_and_last_token_count(student: Student) -> None:
    """The first one is predicted at the prompt's last position, the last one at the position before it."""
    ids, prompts, lengths = torch.tensor([[1, 2, 3, 4, 0, 0]]), torch.tensor([2]), torch.tensor([4])
    for position in range(5):
        logits = torch.zeros(1, 6, 6)
        logits[0, position, 5] = 3.0  # sure of a wrong token, at one position
        expected = loss_of(logits, ids, prompts, lengths)
        claim = f"a wrong guess at position {position}, prompt of 2, answer of 2"
        assert_close(student.sft_loss(logits, ids, prompts, lengths), expected, claim=claim, name="the loss")


@pytest.mark.exercise("sft_loss")
def test_a_long_answer_weighs_more_than_a_short_one(student: Student) -> None:
    """The mean is over all tokens that count, not over the means of the texts."""
    ids, prompts, lengths = torch.zeros(2, 9, dtype=torch.long), torch.tensor([1, 1]), torch.tensor([9, 2])
    logits = torch.zeros(2, 9, 4)
    logits[1, :, 1] = 5.0  # the short text is predicted badly
    expected = loss_of(logits, ids, prompts, lengths)
    assert_close(student.sft_loss(logits, ids, prompts, lengths), expected, name="the loss")


@pytest.mark.exercise("sft_loss")
def test_a_text_without_an_answer_counts_for_nothing(student: Student) -> None:
    """Where prompt_lengths is not below lengths, the row has no token that counts."""
    logits, ids, _, _ = texts(3, 6, 5, seed=9)
    prompts, lengths = torch.tensor([2, 4, 3]), torch.tensor([6, 4, 5])
    expected = loss_of(logits, ids, prompts, lengths)
    assert_close(student.sft_loss(logits, ids, prompts, lengths), expected, claim="one text has no answer")
    prompts[1] = 6  # cut off inside of the prompt
    assert_close(student.sft_loss(logits, ids, prompts, lengths), expected, claim="one prompt is longer than its text")


@pytest.mark.exercise("sft_loss")
def test_without_any_answer_the_loss_is_zero(student: Student) -> None:
    """If nothing counts in the whole batch, the loss and its gradient are 0, never NaN."""
    logits = normal(2, 5, 4, seed=10).requires_grad_()
    ids, prompts = torch.ones(2, 5, dtype=torch.long), torch.tensor([3, 2])
    found = tensor(student.sft_loss(logits, ids, prompts, prompts), shape=(), dtype=torch.float32, name="the loss")
    assert_close(found, torch.tensor(0.0), atol=0, name="the loss")
    grad = gradients(found, torch.tensor(1.0), logits=logits)["logits"]
    assert_close(grad, torch.zeros(2, 5, 4), atol=0, name="the gradient of the logits")
    one = student.sft_loss(logits.detach(), ids, prompts, prompts + 1)
    assert_close(one, loss_of(logits.detach(), ids, prompts, prompts + 1), claim="with one token each", name="the loss")


@pytest.mark.exercise("sft_loss")
def test_gradients_reach_the_logits_that_count(student: Student) -> None:
    """The gradient is that of PyTorch's cross-entropy, and zero at every position that does not count."""
    for seed in (11, 12):
        logits, ids, prompts, lengths = texts(3, 8, 5, seed=seed)
        logits.requires_grad_()
        expected = gradients(loss_of(logits, ids, prompts, lengths), torch.tensor(1.0), logits=logits)["logits"]
        found = gradients(student.sft_loss(logits, ids, prompts, lengths), torch.tensor(1.0), logits=logits)["logits"]
        assert_close(found, expected, atol=1e-5, name="the gradient of the logits")


@pytest.mark.exercise("sft_loss")
def test_bfloat16_logits_give_a_float32_loss(student: Student) -> None:
    """bfloat16 logits are turned to float32 before the softmax, and the loss is float32."""
    logits, ids, prompts, lengths = texts(4, 30, 17, seed=13)
    given = (logits.bfloat16(), ids, prompts, lengths)
    assert_close(student.sft_loss(*given), loss_of(*given), claim="bfloat16 logits", name="the loss")


@pytest.mark.exercise("sft_loss", weight=0.5)
def test_large_logits_give_a_finite_loss(student: Student) -> None:
    """Logits of ±10⁴ give a large loss, never infinity or NaN."""
    logits, ids, prompts, lengths = texts(3, 7, 5, seed=14)
    given = (5000 * logits, ids, prompts, lengths)
    assert_close(student.sft_loss(*given), loss_of(*given), claim="logits of 10⁴", name="the loss")


@pytest.mark.exercise("sft_loss", weight=0.5)
def test_logits_and_ids_are_left_as_they_were(student: Student) -> None:
    """Logits, ids and both lengths belong to the caller; marking ids with −100 in place changes them."""
    given = texts(3, 7, 5, seed=15)
    kept = [student.put(value) for value in given]
    assert_close(student.sft_loss(*kept), loss_of(*given), name="the loss")
    for name, value, before in zip(("logits", "ids", "prompt_lengths", "lengths"), kept, given, strict=True):
        assert_close(value.get(), before, atol=0, rtol=0, claim="after the call", name=name)


# -- nf4_quantize and nf4_dequantize ----------------------------------------------------------------------------------


def array(stored: Any) -> Tensor:
    dtype, shape, data = stored
    return torch.frombuffer(bytearray(base64.b64decode(data)), dtype=getattr(torch, dtype)).reshape(shape)


@cache
def golden(part: str) -> dict[str, dict[str, Any]]:
    """What bitsandbytes made, by the name of the case; every array is a tensor again."""
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))[part]
    return {
        case["name"]: {key: array(value) if isinstance(value, list) else value for key, value in case.items()}
        for case in cases
    }


VALUES = torch.tensor(
    [float.fromhex(f"{'-' if i < 7 else ''}0x1.{digits}p{exponent}") for i, (digits, exponent) in enumerate(
        [("0", 0), ("647362", -1), ("0cd66", -1), ("94654", -2), ("23449a", -2), ("7a6a7e", -3), ("74f0e2", -4)])]
    + [0.0]
    + [float.fromhex(f"0x1.{digits}p{exponent}") for digits, exponent in
        [("45f5fe", -4), ("4995c6", -3), ("f809ba", -3), ("5a0674", -2), ("c3497", -2), ("200f56", -1), ("722766", -1),
         ("0", 0)]]
)  # fmt: skip


def nearest(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The codes of all entries, by distance in float64, and absmax."""
    parts = x.double().flatten().split(block)
    absmax = torch.stack([part.abs().max() for part in parts])
    codes = [
        (part[:, None] / (top if top else 1.0) - VALUES.double()).abs().argmin(-1)
        for part, top in zip(parts, absmax, strict=True)
    ]
    return torch.cat(codes), absmax.float()


def packed_bytes(codes: Tensor) -> Tensor:
    pairs = torch.cat([codes, codes.new_full((len(codes) % 2,), 7)]).view(-1, 2)
    return (16 * pairs[:, 0] + pairs[:, 1]).to(torch.uint8)


def quantized(student: Student, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out = student.nf4_quantize(x, *args)
    assert isinstance(out, tuple | list), f"nf4_quantize gives a {type(out).__name__}: packed and absmax are wanted."
    assert len(out) == 2, f"nf4_quantize gives {len(out)} things: packed and absmax are wanted."
    block = args[0] if args else 64
    packed = tensor(out[0], shape=(-(-x.numel() // 2),), dtype=torch.uint8, name="packed")
    return packed, tensor(out[1], shape=(-(-x.numel() // block),), name="absmax")


def halves(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], -1).flatten()


@pytest.mark.exercise("nf4_quantize", weight=2)
def test_the_bytes_are_those_of_bitsandbytes(student: Student) -> None:
    """Every byte of packed is the one that bitsandbytes made: normal weights, outliers, tiny and huge ones."""
    for name in ("normal", "outliers", "very small and very large"):
        case = golden("quantize")[name]
        assert_close(quantized(student, case["x"])[0], case["packed"], claim=name, name="packed")


@pytest.mark.exercise("nf4_quantize", weight=1.5)
def test_each_entry_takes_the_nearest_value(student: Student) -> None:
    """For random shapes, each half-byte is the number of the value of NF4 nearest to the entry divided by absmax."""
    for seed, shape in enumerate(((2, 64), (3, 5, 7), (128,), (1, 200))):
        x = normal(*shape, seed=seed) * 3
        packed, _ = quantized(student, x)
        codes, _ = nearest(x, 64)
        wrong = int((halves(packed)[: x.numel()] != codes).sum())
        assert not wrong, f"x {shape}: {wrong} of {x.numel()} entries have another code than the nearest value's."


@pytest.mark.exercise("nf4_quantize")
def test_the_first_of_two_entries_has_the_high_half(student: Student) -> None:
    """Entry 0 is in the high four bits of byte 0, entry 1 in the low four bits."""
    for pair, codes in (((1.0, -1.0), (15, 0)), ((-0.5, 0.5), (0, 15)), ((0.0, 2.0), (7, 15))):
        packed, _ = quantized(student, torch.tensor(pair))
        found = divmod(int(packed[0]), 16)
        assert set(found) == set(codes), f"The two entries {pair} have the codes {found}."
        assert found == codes, f"Of the entries {pair} the second one is in the high half of the byte."


@pytest.mark.exercise("nf4_quantize")
def test_absmax_is_each_blocks_largest_magnitude(student: Student) -> None:
    """absmax is float32 and says for each block of entries, read row by row, the largest magnitude, never negative."""
    for name in ("normal", "outliers", "a short last block", "very small and very large"):
        case = golden("quantize")[name]
        absmax = tensor(quantized(student, case["x"])[1], dtype=torch.float32, name="absmax")
        assert_close(absmax, case["absmax"], atol=0, rtol=1e-6, claim=name, name="absmax")


@pytest.mark.exercise("nf4_quantize", weight=1.5)
def test_a_short_last_block_has_its_own_absmax(student: Student) -> None:
    """The last block holds what is left; with an odd number the last half-byte is that of the number 0."""
    for name in ("a short last block", "an odd number", "a single entry"):
        case = golden("quantize")[name]
        packed, absmax = quantized(student, case["x"])
        assert_close(absmax, case["absmax"], atol=0, rtol=1e-6, claim=name, name="absmax")
        assert_close(packed, case["packed"], claim=name, name="packed")


@pytest.mark.exercise("nf4_quantize")
def test_other_block_sizes_work(student: Student) -> None:
    """`block` decides how many entries share an absmax."""
    for name in ("blocks of 32", "blocks of 256"):
        case = golden("quantize")[name]
        packed, absmax = quantized(student, case["x"], case["block"])
        assert_close(absmax, case["absmax"], atol=0, rtol=1e-6, claim=name, name="absmax")
        assert_close(packed, case["packed"], claim=name, name="packed")
    x = normal(7, 5, seed=1)
    packed, absmax = quantized(student, x, 2)
    codes, tops = nearest(x, 2)
    assert_close(absmax, tops, claim="blocks of 2", name="absmax")
    assert_close(packed, packed_bytes(codes), claim="blocks of 2", name="packed")


@pytest.mark.exercise("nf4_quantize")
def test_a_block_of_zeros_is_all_zeros(student: Student) -> None:
    """A block of zeros gets the code of 0.0 and an absmax of 0, and leaves its neighbours alone."""
    case = golden("quantize")["a block of zeros"]
    packed, absmax = quantized(student, case["x"])
    assert_close(absmax, case["absmax"], claim="a block of zeros and one of weights", name="absmax")
    assert_close(packed, case["packed"], claim="a block of zeros and one of weights", name="packed")
    packed, absmax = quantized(student, torch.zeros(3, 3))
    assert_close(packed, torch.full((5,), 0x77, dtype=torch.uint8), claim="nothing but zeros", name="packed")
    assert_close(absmax, torch.zeros(1), atol=1e-30, claim="nothing but zeros", name="absmax")


@pytest.mark.exercise("nf4_quantize", weight=0.5)
def test_on_a_border_the_lower_value_is_taken(student: Student) -> None:
    """A quotient that is exactly the mean of two neighbouring values, in float32, takes the lower one."""
    case = golden("quantize")["exactly on the borders"]
    assert_close(quantized(student, case["x"])[0], case["packed"], claim="on the borders", name="packed")


@pytest.mark.exercise("nf4_quantize")
def test_bfloat16_weights_are_turned_to_float32_first(student: Student) -> None:
    """bfloat16 weights give the bytes of the same numbers in float32, and a float32 absmax."""
    case = golden("quantize")["bfloat16"]
    for x in (case["x"], 0.05 * normal(64, 32, seed=2, dtype=torch.bfloat16)):
        packed, absmax = quantized(student, x)
        codes, tops = nearest(x.float(), 64)
        tensor(absmax, dtype=torch.float32, name="absmax")
        assert_close(absmax, tops, claim="in bfloat16", name="absmax")
        assert_close(packed, packed_bytes(codes), claim="in bfloat16", name="packed")


@pytest.mark.exercise("nf4_quantize", weight=0.5)
def test_quantising_takes_no_gradient_and_changes_nothing(student: Student) -> None:
    """x may be a parameter: it is left as it was, and neither result has a gradient."""
    x = normal(4, 33, seed=3).requires_grad_()
    packed, absmax = quantized(student, x)
    assert not absmax.requires_grad, "absmax still has a gradient."
    assert_close(packed, packed_bytes(nearest(x.detach(), 64)[0]), name="packed")
    kept = student.put(x.detach())
    assert_close(student.nf4_quantize(kept)[0], packed, name="packed")
    assert_close(kept.get(), x.detach(), atol=0, rtol=0, claim="after the call", name="x")


def dequantized(packed: Tensor, absmax: Tensor, shape: Any, block: int) -> Tensor:
    """Byte by byte."""
    n = math.prod(shape)
    codes = [int(byte) // 16 if i == 0 else int(byte) % 16 for byte in packed for i in (0, 1)][:n]
    entries = [VALUES[code] * absmax[i // block] for i, code in enumerate(codes)]
    return torch.stack(entries).reshape(tuple(shape)) if n else torch.zeros(shape)


@pytest.mark.exercise("nf4_quantize", weight=2)
def test_the_way_back_is_bitsandbytes_to_the_last_bit(student: Student) -> None:
    """nf4_dequantize gives, for bitsandbytes' bytes, exactly the numbers that bitsandbytes gives."""
    for name in ("normal", "outliers", "very small and very large", "blocks of 32", "blocks of 256"):
        case = golden("quantize")[name]
        back = student.nf4_dequantize(case["packed"], case["absmax"], case["x"].shape, case["block"])
        assert_close(back, case["back"], atol=0, rtol=0, claim=name, name="the result")


@pytest.mark.exercise("nf4_quantize")
def test_every_byte_means_two_values(student: Student) -> None:
    """All 256 bytes, each turned back into its two values times the absmax of their block."""
    packed, absmax = torch.arange(256, dtype=torch.uint8), normal(8, seed=4).abs() + 0.1
    expected = dequantized(packed, absmax, (8, 64), 64)
    assert_close(student.nf4_dequantize(packed, absmax, (8, 64)), expected, claim="the bytes 0 to 255")


@pytest.mark.exercise("nf4_quantize")
def test_the_shape_that_is_asked_for_comes_back(student: Student) -> None:
    """Any shape, also with an odd number of entries, whose last half-byte means nothing."""
    for seed, shape in enumerate(((7, 9), (5, 30), (2, 3, 5), (1,), [3, 43])):
        n = math.prod(shape)
        packed = torch.randint(256, (-(-n // 2),), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        absmax = normal(-(-n // 64), seed=seed).abs() + 0.1
        back = student.nf4_dequantize(packed, absmax, shape)
        assert_close(back, dequantized(packed, absmax, shape, 64), claim=f"the shape {tuple(shape)}")


@pytest.mark.exercise("nf4_quantize", weight=0.5)
def test_bytes_and_absmax_are_left_as_they_were(student: Student) -> None:
    """The buffers of a layer are turned back again and again: they must not change."""
    packed, absmax = torch.arange(70, dtype=torch.uint8), normal(3, seed=5).abs()
    kept, tops = student.put(packed), student.put(absmax)
    assert_close(student.nf4_dequantize(kept, tops, (140,)), dequantized(packed, absmax, (140,), 64))
    assert_close(kept.get(), packed, claim="after the call", name="packed")
    assert_close(tops.get(), absmax, atol=0, rtol=0, claim="after the call", name="absmax")


# -- double_quantize and double_dequantize ----------------------------------------------------------------------------


@cache
def dynamic() -> Tensor:
    """The 256 values of the eight-bit type: the middles of 1 to 64 equal parts of a decade, 0 and 1."""
    middles = [10.0 ** (i - 6) * (0.1 + 0.9 * (j + 0.5) / 2**i) for i in range(7) for j in range(2**i)]
    return torch.tensor(sorted([0.0, 1.0, *middles, *(-m for m in middles)]), dtype=torch.float64)


def doubled(student: Student, absmax: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = student.double_quantize(absmax, *args)
    assert isinstance(out, tuple | list), f"double_quantize gives a {type(out).__name__}: three tensors are wanted."
    assert len(out) == 3, f"double_quantize gives {len(out)} things: codes, scales and mean are wanted."
    block = args[0] if args else 256
    return (
        tensor(out[0], shape=absmax.shape, dtype=torch.uint8, name="codes"),
        tensor(out[1], shape=(-(-len(absmax) // block),), dtype=torch.float32, name="scales"),
        tensor(out[2], shape=(), dtype=torch.float32, name="mean"),
    )


def far(codes: Tensor, absmax: Tensor, block: int) -> int:
    """How many codes are not those of the nearest value; as near, within rounding, is near enough."""
    rest = (absmax - absmax.mean()).double()
    tops = torch.stack([part.abs().max() for part in rest.split(block)]).repeat_interleave(block)[: len(rest)]
    quotient = rest / torch.where(tops == 0, 1, tops)
    distance = (dynamic()[codes.long()] - quotient).abs()
    return int((distance > (quotient[:, None] - dynamic()).abs().amin(-1) + 2e-6).sum())


@pytest.mark.exercise("double_quantize", weight=2)
def test_the_codes_are_those_of_bitsandbytes(student: Student) -> None:
    """Each code is the number of the value of DYNAMIC nearest to what is left, divided by its block's scale."""
    for name, case in golden("double").items():
        codes, _, _ = doubled(student, case["absmax"])
        wrong = far(codes, case["absmax"], 256)
        assert not wrong, f"{name}: {wrong} of the codes are not those of the nearest value."
        differ = int((codes != case["codes"]).sum())
        assert differ <= 1, f"{name}: {differ} of the codes differ from bitsandbytes'."  # one: a mean summed otherwise


@pytest.mark.exercise("double_quantize")
def test_the_mean_of_all_is_taken_off(student: Student) -> None:
    """mean is the mean of all numbers, whatever the blocks are."""
    for name, case in golden("double").items():
        _, _, mean = doubled(student, case["absmax"])
        assert_close(mean, case["mean"], atol=0, rtol=1e-5, claim=name, name="mean")


@pytest.mark.exercise("double_quantize")
def test_a_scale_is_the_largest_magnitude_of_what_is_left(student: Student) -> None:
    """scales holds for each block of 256 the largest magnitude after the mean was taken off."""
    for name, case in golden("double").items():
        _, scales, _ = doubled(student, case["absmax"])
        assert_close(scales, case["scales"], atol=1e-5, rtol=1e-5, claim=name, name="scales")


@pytest.mark.exercise("double_quantize", weight=1.5)
def test_other_blocks_and_short_ones_work(student: Student) -> None:
    """`block` may be any size, odd ones too, and the last block may be short."""
    for seed, (n, block) in enumerate(((10, 4), (33, 7), (5, 1), (256, 256), (257, 256), (1000, 300))):
        absmax = normal(n, seed=seed).abs() * 2 + 0.5
        codes, scales, mean = doubled(student, absmax, block)
        tops = torch.stack([part.abs().max() for part in (absmax - absmax.mean()).split(block)])
        assert_close(scales, tops, atol=1e-5, claim=f"{n} numbers in blocks of {block}", name="scales")
        assert_close(mean, absmax.mean(), claim=f"{n} numbers", name="mean")
        wrong = far(codes, absmax, block)
        assert not wrong, f"{n} numbers in blocks of {block}: {wrong} codes are not those of the nearest value."


@pytest.mark.exercise("double_quantize", weight=0.5)
def test_numbers_may_be_small(student: Student) -> None:
    """What is left is divided by its largest magnitude, however small that is: nothing is added to it."""
    absmax = 1e-6 * (normal(300, seed=7).abs() + 1)
    codes, _, _ = doubled(student, absmax)
    wrong = far(codes, absmax, 256)
    assert not wrong, f"300 numbers of about 10⁻⁶: {wrong} codes are not those of the nearest value."


@pytest.mark.exercise("double_quantize", weight=1.5)
def test_the_way_back_is_value_times_scale_plus_mean(student: Student) -> None:
    """double_dequantize gives for bitsandbytes' codes the numbers that bitsandbytes gives; the mean comes last."""
    for name, case in golden("double").items():
        back = student.double_dequantize(case["codes"], case["scales"], case["mean"])
        assert_close(back, case["back"], atol=1e-6, rtol=1e-6, claim=name)
    for seed, (n, block) in enumerate(((33, 7), (256, 100), (1, 256))):
        codes = torch.randint(256, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        scales, mean = normal(-(-n // block), seed=seed).abs() + 0.1, torch.tensor(1.7)
        expected = [dynamic()[int(code)] * scales[i // block] + mean for i, code in enumerate(codes)]
        back = student.double_dequantize(codes, scales, mean, block)
        assert_close(back, torch.stack(expected).float(), atol=1e-6, claim=f"{n} codes in blocks of {block}")


@pytest.mark.exercise("double_quantize")
def test_numbers_that_are_all_equal_come_back(student: Student) -> None:
    """Where nothing is left after the mean was taken off, the scale is 0 and no code makes NaN of it."""
    for absmax in (torch.full((5,), 2.5), torch.full((300,), 0.25), torch.tensor([3.0])):
        codes, scales, mean = doubled(student, absmax)
        assert_close(scales, torch.zeros(len(scales)), atol=1e-30, claim="all numbers equal", name="scales")
        assert_close(mean, absmax[0], claim="all numbers equal", name="mean")
        assert_close(student.double_dequantize(codes, scales, mean), absmax, claim="all numbers equal")


@pytest.mark.exercise("double_quantize", weight=0.5)
def test_the_numbers_are_left_as_they_were(student: Student) -> None:
    """absmax belongs to the caller: -= and operations that end in _ change it."""
    absmax = normal(300, seed=6).abs()
    kept = student.put(absmax)
    codes = student.double_quantize(kept)[0]
    assert not far(tensor(codes, shape=(300,), dtype=torch.uint8, name="codes"), absmax, 256), "The codes are wrong."
    assert_close(kept.get(), absmax, atol=0, rtol=0, claim="after the call", name="absmax")
    case = golden("double")["700 numbers"]
    given = {name: student.put(case[name]) for name in ("codes", "scales", "mean")}
    assert_close(student.double_dequantize(*given.values()), case["back"], atol=1e-6, rtol=1e-6)
    for name, value in given.items():
        assert_close(value.get(), case[name], atol=0, rtol=0, claim="after the call", name=name)


# -- QLoRALinear ------------------------------------------------------------------------------------------------------

QSIZES = ((16, 8, 2, 4.0, True), (9, 7, 3, 1.5, False), (64, 5, 1, 2, True), (5, 33, 6, 12, False))


def rounded(weight: Tensor) -> Tensor:
    """The weight after NF4, in blocks of 64."""
    codes, absmax = nearest(weight, 64)
    return (VALUES[codes] * absmax.repeat_interleave(64)[: weight.numel()]).view_as(weight)


def four_bit(student: Student, size: tuple[int, int, int, float, bool], *, seed: int) -> tuple[Remote, Remote, State]:
    """A given linear layer, the student's layer made of it, and all its numbers, the adapter drawn anew."""
    n_in, n_out, rank, alpha, bias = size
    state = numbers(n_in, n_out, rank, bias, seed=seed)
    linear = student.GivenLinear(n_in, n_out, bias=bias)
    linear.load_state_dict({name[7:]: value for name, value in state.items() if name.startswith("linear.")})
    layer = student.QLoRALinear(linear, rank, alpha)
    own = state_of(layer, "QLoRALinear")
    adapter = {name: state[name] for name in ("lora_A", "lora_B")}
    layer.load_state_dict(own | adapter)
    return linear, layer, state | {"linear.weight": rounded(state["linear.weight"])}


@pytest.mark.exercise("QLoRALinear", weight=2)
def test_the_weight_is_kept_in_four_bits_and_nothing_else(student: Student) -> None:
    """The state dict holds packed, absmax, lora_A, lora_B and, where there is one, bias: no float weight."""
    for n_in, n_out, rank, alpha, bias in QSIZES:
        layer = student.QLoRALinear(student.GivenLinear(n_in, n_out, bias=bias), rank, alpha)
        state = state_of(layer, "QLoRALinear")
        half, blocks_ = -(-n_in * n_out // 2), -(-n_in * n_out // 64)
        wanted = {
            "packed": ((half,), torch.uint8),
            "absmax": ((blocks_,), torch.float32),
            "lora_A": ((rank, n_in), torch.float32),
            "lora_B": ((n_out, rank), torch.float32),
        } | ({"bias": ((n_out,), torch.float32)} if bias else {})
        assert set(state) == set(wanted), f"The state dict holds {named(state)}."
        for name, (shape, dtype) in wanted.items():
            tensor(state[name], shape=shape, dtype=dtype, name=name)


@pytest.mark.exercise("QLoRALinear")
def test_only_the_adapter_is_a_parameter(student: Student) -> None:
    """packed, absmax and bias are buffers; lora_A and lora_B are parameters, and B is zero at first."""
    for size in QSIZES:
        layer = student.QLoRALinear(student.GivenLinear(*size[:2], bias=size[4]), *size[2:4])
        state_of(layer, "QLoRALinear")
        assert set(student.grads(layer)) == {"lora_A", "lora_B"}, f"The parameters are {named(student.grads(layer))}."
        for name in ("absmax", "bias") if size[4] else ("absmax",):
            assert not tensor(getattr(layer, name), name=name).requires_grad, f"{name} still has a gradient."
        a, b = (tensor(getattr(layer, f"lora_{letter}"), name=f"lora_{letter}") for letter in "AB")
        assert a.requires_grad, "lora_A is not trained."
        assert b.requires_grad, "lora_B is not trained."
        assert not b.detach().any(), "lora_B is not zero in a new layer."
        assert a.detach().all(), "lora_A holds zeros in a new layer."
        assert a.detach().unique().numel() > 1, "lora_A holds the same number everywhere."


@pytest.mark.exercise("QLoRALinear", weight=2)
def test_the_result_is_the_rounded_layers_plus_the_correction(student: Student) -> None:
    """The result is that of the weight as NF4 has it, plus the bias, plus α/r · B A x."""
    for seed, size in enumerate(QSIZES):
        _, layer, state = four_bit(student, size, seed=10 * seed)
        mode = "training" if seed % 2 else "evaluation"
        layer.train(mode == "training")
        for lead in ((4,), (2, 3), ()):
            x = normal(*lead, size[0], seed=seed)
            claim = f"{size[0]} → {size[1]} features, rank {size[2]}, alpha {size[3]:g}, x {tuple(x.shape)}, in {mode}"
            assert_close(layer(x), corrected(x, state, size[3] / size[2]), atol=1e-3, claim=claim)


@pytest.mark.exercise("QLoRALinear")
def test_a_new_four_bit_layer_gives_what_its_rounded_weight_gives(student: Student) -> None:
    """Before training there is no correction: what is lost is what four bits lose."""
    for size in QSIZES:
        linear = student.GivenLinear(*size[:2], bias=size[4])
        layer = student.QLoRALinear(linear, *size[2:4])
        state_of(layer, "QLoRALinear")
        weight = rounded(tensor(linear.weight).detach())
        bias = tensor(linear.bias).detach() if size[4] else None
        x = normal(3, size[0], seed=1)
        assert_close(layer(x), functional.linear(x, weight, bias), claim="a new layer")


@pytest.mark.exercise("QLoRALinear", weight=1.5)
def test_gradients_pass_through_the_four_bit_weight(student: Student) -> None:
    """The gradient reaches x through the rounded weight and the correction, and A and B as in LoRA."""
    for seed, size in enumerate(QSIZES):
        _, layer, state = four_bit(student, size, seed=10 * seed)
        x, upstream = normal(2, 3, size[0], seed=seed).requires_grad_(), normal(2, 3, size[1], seed=seed + 1)
        leaves = {name: state[name].requires_grad_() for name in ("lora_A", "lora_B")}
        expected = gradients(corrected(x, state, size[3] / size[2]), upstream, x=x, **leaves)
        found = gradients(layer(x), upstream, x=x) | {
            name: grad for name, grad in student.grads(layer).items() if grad is not None
        }
        for name, value in expected.items():
            assert name in found, f"No gradient reaches {name}."
            assert_close(found[name], value, atol=2e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("QLoRALinear", weight=1.5)
def test_everything_is_computed_in_the_dtype_of_x(student: Student) -> None:
    """bfloat16 in, bfloat16 out, with parameters that stay float32; gradients reach them."""
    for seed, size in enumerate(QSIZES):
        _, layer, state = four_bit(student, size, seed=10 * seed)
        x = normal(6, size[0], seed=seed).bfloat16()
        expected = corrected(x.double(), {name: value.double() for name, value in state.items()}, size[3] / size[2])
        out = tensor(layer(x), shape=(6, size[1]), dtype=torch.bfloat16)
        size_of = expected.abs().max().item()
        assert_close(out, expected.bfloat16(), atol=0.03 * size_of, rtol=0.05, claim="in bfloat16")
        out.float().sum().backward()
        for name, grad in student.grads(layer).items():
            assert grad is not None, f"With x in bfloat16 no gradient reaches {name}."
            tensor(grad, dtype=torch.float32, name=f"the gradient of {name}")


@pytest.mark.exercise("QLoRALinear", weight=1.5)
def test_the_buffers_are_what_counts(student: Student) -> None:
    """After load_state_dict the layer computes with what was loaded: no weight is turned back once and kept."""
    _, layer, _ = four_bit(student, QSIZES[0], seed=1)
    x = normal(4, QSIZES[0][0], seed=2)
    tensor(layer(x), shape=(4, QSIZES[0][1]))
    _, other, state = four_bit(student, QSIZES[0], seed=50)
    layer.load_state_dict(other.state_dict())
    assert_close(layer(x), corrected(x, state, 2.0), atol=1e-3, claim="after load_state_dict")


@pytest.mark.exercise("QLoRALinear")
def test_the_given_layer_is_left_as_it_was_and_let_go(student: Student) -> None:
    """Nothing of the given layer changes, and what happens to it later does not change yours."""
    for bias in (True, False):
        size = (16, 8, 2, 4.0, bias)
        state = numbers(16, 8, 2, bias, seed=3)
        linear, layer, own = four_bit(student, size, seed=3)
        for name in ("weight", "bias") if bias else ("weight",):
            value = tensor(getattr(linear, name))
            assert_close(value, state[f"linear.{name}"], atol=0, rtol=0, name=f"the given layer's {name}")
            assert value.requires_grad, f"The given layer's {name} was frozen: it should be left as it was."
        linear.load_state_dict({name[7:]: value + 1 for name, value in state.items() if name.startswith("linear.")})
        x = normal(3, 16, seed=4)
        assert_close(layer(x), corrected(x, own, 2.0), atol=1e-3, claim="after the given layer was changed")


@pytest.mark.exercise("QLoRALinear")
def test_nothing_as_large_as_the_weight_stays_in_memory(student: Student) -> None:
    """No attribute of the layer holds the weight in full, neither at first nor after a call."""
    for size in (QSIZES[0], (33, 40, 2, 4.0, True)):
        _, layer, state = four_bit(student, size, seed=8)
        x = normal(3, size[0], seed=9)
        assert_close(layer(x), corrected(x, state, 2.0), atol=1e-3)
        held = student.largest_floats(layer)
        assert held < size[0] * size[1], f"After a call some attribute of the layer holds {held} floats."


@pytest.mark.exercise("QLoRALinear", weight=0.5)
def test_a_bfloat16_layer_can_be_given(student: Student) -> None:
    """The given layer may be in bfloat16: absmax, bias and the adapter are float32 all the same."""
    linear = student.GivenLinear(16, 8, dtype=torch.bfloat16)
    layer = student.QLoRALinear(linear, 2, 4)
    for name, value in state_of(layer, "QLoRALinear").items():
        tensor(value, dtype=torch.uint8 if name == "packed" else torch.float32, name=name)
    x = normal(3, 16, seed=5)
    weight, bias = (tensor(getattr(linear, name)).detach().float() for name in ("weight", "bias"))
    assert_close(layer(x), functional.linear(x, rounded(weight), bias), claim="made of a bfloat16 layer")


@pytest.mark.exercise("QLoRALinear", weight=0.5)
def test_a_four_bit_layer_of_rank_zero_is_refused(student: Student) -> None:
    """A rank below 1 raises a ValueError whose sentence names it."""
    assert isinstance(student.QLoRALinear(student.GivenLinear(4, 3), 1, 2), Remote), "QLoRALinear is no nn.Module."
    for rank in (0, -2):
        linear = student.GivenLinear(4, 3)
        told = refused(lambda linear=linear, rank=rank: student.QLoRALinear(linear, rank, 2), f"A rank of {rank}")
        assert str(rank) in re.findall(r"-?\d+", told), f"The sentence does not name the rank: {told}"


@pytest.mark.exercise("QLoRALinear", weight=0.5)
def test_the_four_bit_layer_changes_no_input(student: Student) -> None:
    """x is left as it was, and so are the buffers, however often the layer is called."""
    _, layer, state = four_bit(student, QSIZES[1], seed=6)
    before = state_of(layer, "QLoRALinear")
    x = normal(5, QSIZES[1][0], seed=7)
    kept, expected = student.put(x), corrected(x, state, 0.5)
    for time in (1, 2):
        assert_close(layer(kept), expected, atol=1e-3, claim=f"call {time}")
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the calls", name="x")
    for name, value in state_of(layer, "QLoRALinear").items():
        assert_close(value, before[name], atol=0, rtol=0, claim="after the calls", name=name)
