"""The arithmetic that chapter 13's hidden tests expect is that of transformers' MoE blocks, in outputs and in all
gradients; the shapes that they count are those of its models."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autograder.testing import gradients, normal
from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]
D_MODEL, D_HIDDEN = 16, 24  # in float32 F.grouped_mm takes multiples of 4


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    """The hidden tests, as a module."""
    spec = importlib.util.spec_from_file_location(
        "hidden_tests_of_chapter_13", ROOT / "autograder/tests/test_13_router.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/13-router.py")


def mixtral(n_experts: int, top_k: int) -> nn.Module:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=D_MODEL, intermediate_size=D_HIDDEN, num_local_experts=n_experts, num_experts_per_tok=top_k
    )
    return MixtralSparseMoeBlock(config)


def olmoe(n_experts: int, top_k: int) -> nn.Module:
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=D_MODEL,
        intermediate_size=D_HIDDEN,
        num_experts=n_experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
    )
    return OlmoeSparseMoeBlock(config)


def qwen(n_experts: int, top_k: int) -> nn.Module:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(
        hidden_size=D_MODEL,
        moe_intermediate_size=D_HIDDEN,
        num_experts=n_experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
    )
    return Qwen3MoeSparseMoeBlock(config)


BLOCKS = ((mixtral, True), (olmoe, False), (qwen, False))
SIZES = ((2, 5, 4, 1), (1, 9, 5, 2), (3, 4, 8, 3), (1, 1, 4, 4), (2, 3, 1, 1), (1, 2, 16, 2))


def loaded(make: Callable[[int, int], nn.Module], experts: str, weights: dict[str, Tensor], top_k: int) -> nn.Module:
    """transformers' block with these weights and this implementation of its experts."""
    layer = make(len(weights["down"]), top_k)
    assert isinstance(layer.experts, nn.Module)
    config: Any = layer.experts.config
    config._experts_implementation = experts
    names = {"router.weight": "gate.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    layer.load_state_dict({names[name]: value for name, value in weights.items()})
    return layer


def theirs(layer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    layer.zero_grad()
    found = gradients(out, upstream, x=x, **{name.replace(".", "_"): value for name, value in layer.named_parameters()})
    return {"out": out, **found}


def same(ours: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, their_name in (
        ("out", "out"), ("x", "x"), ("router.weight", "gate_weight"),
        ("gate_up", "experts_gate_up_proj"), ("down", "experts_down_proj"),
    ):  # fmt: skip
        torch.testing.assert_close(
            ours[name], other[their_name], atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize(("make", "renormalise"), BLOCKS)
@pytest.mark.parametrize(("batch", "n", "n_experts", "top_k"), SIZES)
def test_the_expected_layer_is_transformers_block(
    hidden: ModuleType,
    make: Callable[[int, int], nn.Module],
    renormalise: bool,
    experts: str,
    batch: int,
    n: int,
    n_experts: int,
    top_k: int,
) -> None:
    weights = hidden.random_weights(D_MODEL, D_HIDDEN, n_experts, seed=n_experts)
    x, upstream = normal(batch, n, D_MODEL, seed=1), normal(batch, n, D_MODEL, seed=2)
    other = theirs(loaded(make, experts, weights, top_k), x, upstream)
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    x.requires_grad_()
    out = hidden.block(x, leaves, top_k, renormalise)
    same({"out": out, **gradients(out, upstream, x=x, **leaves)}, other)


@pytest.mark.parametrize("way", ["loop", "sorted"])
@pytest.mark.parametrize(("make", "renormalise"), BLOCKS)
@pytest.mark.parametrize(("batch", "n", "n_experts", "top_k"), SIZES)
def test_the_reference_is_transformers_block(
    hidden: ModuleType,
    reference: ModuleType,
    make: Callable[[int, int], nn.Module],
    renormalise: bool,
    way: str,
    batch: int,
    n: int,
    n_experts: int,
    top_k: int,
) -> None:
    weights = hidden.random_weights(D_MODEL, D_HIDDEN, n_experts, seed=n_experts)
    x, upstream = normal(batch, n, D_MODEL, seed=1), normal(batch, n, D_MODEL, seed=2)
    other = theirs(loaded(make, "eager", weights, top_k), x, upstream)
    layer = reference.MoELayer(D_MODEL, D_HIDDEN, n_experts, top_k, renormalise)
    layer.load_state_dict(weights)
    x.requires_grad_()
    if way == "loop":
        out = layer(x)
    else:
        routing = reference.route(layer.router(x.flatten(0, 1)), top_k, renormalise)
        out = reference.grouped_experts(x.flatten(0, 1), *routing, layer.gate_up, layer.down).view_as(x)
    same({"out": out, **gradients(out, upstream, x=x, **dict(layer.named_parameters()))}, other)


def test_ties_and_an_idle_expert_are_as_in_transformers(hidden: ModuleType, reference: ModuleType) -> None:
    weights = hidden.random_weights(D_MODEL, D_HIDDEN, 4, seed=3)
    x, upstream = normal(2, 6, D_MODEL, seed=4).abs(), normal(2, 6, D_MODEL, seed=5)
    tied = weights | {"router.weight": torch.zeros(4, D_MODEL)}
    for given in (tied, hidden.with_idle(weights, 2)):
        layer = reference.MoELayer(D_MODEL, D_HIDDEN, 4, 2)
        layer.load_state_dict(given)
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        ours = {"out": out, **gradients(out, upstream, x=leaf, **dict(layer.named_parameters()))}
        same(ours, theirs(loaded(mixtral, "eager", given, 2), x, upstream))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("d_model", "d_hidden"), [(16, 24), (7, 5), (1, 3)])
def test_the_reference_takes_any_width_and_dtype(
    hidden: ModuleType, reference: ModuleType, d_model: int, d_hidden: int, dtype: torch.dtype
) -> None:
    weights = {name: value.to(dtype) for name, value in hidden.random_weights(d_model, d_hidden, 4, seed=6).items()}
    x = normal(2, 5, d_model, seed=7, dtype=dtype)
    layer = reference.MoELayer(d_model, d_hidden, 4, 2).to(dtype)
    layer.load_state_dict(weights)
    routing = reference.route(layer.router(x.flatten(0, 1)), 2)
    grouped = reference.grouped_experts(x.flatten(0, 1), *routing, layer.gate_up, layer.down).view_as(x)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(layer(x), grouped, atol=tolerance, rtol=tolerance)
    grouped.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_the_shapes_are_those_of_the_models(hidden: ModuleType) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

    smaller = GptOssConfig(num_hidden_layers=24, num_local_experts=32)
    for config, make, expected in (
        (MixtralConfig(), MixtralForCausalLM, hidden.mixtral_shapes()),
        (smaller, GptOssForCausalLM, hidden.gpt_oss_shapes()),
    ):
        with torch.device("meta"):
            model = make(config)
        assert {name: tuple(value.shape) for name, value in model.named_parameters()} == expected


def test_the_reference_counts_them_as_published(hidden: ModuleType, reference: ModuleType) -> None:
    assert reference.count_parameters(hidden.mixtral_shapes(), 2) == hidden.MIXTRAL
    assert reference.count_parameters(hidden.gpt_oss_shapes(), 4, embedding=False) == hidden.GPT_OSS
