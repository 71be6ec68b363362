"""Chapter 18's reference is LoRA as peft has it, and its four bits are those that the golden bytes hold.

Layers, whole models, merging, and files that go both ways; experts whose weights are fused into one tensor; and that a
model of four-bit layers learns.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autograder.testing import normal, randomise
from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "base_model.model."
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/18-lora.py")


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    """The hidden tests, as a module."""
    spec = importlib.util.spec_from_file_location(
        "hidden_tests_of_chapter_18", ROOT / "autograder/tests/test_18_lora.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def llama(seed: int = 0) -> nn.Module:
    """transformers' own model at a small size, every number drawn anew."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        attention_bias=True,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    randomise(model, seed=seed, std=0.3)
    return model


def pefts(model: nn.Module, **config: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=3, lora_alpha=5, **config))


def draw_adapters(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def in_pefts_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{PREFIX}{name}.weight": value for name, value in state.items()}


@torch.no_grad()
def test_a_model_with_adapters_is_pefts(reference: ModuleType) -> None:
    """The same layers are chosen and nothing differs at first; with one's adapter loaded into the other, neither do
    outputs, gradients and merged weights. The files go both ways."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    targets, before = ["q_proj", "v_proj", "down_proj"], llama()(IDS).logits
    ours, theirs = llama(), pefts(llama(), target_modules=targets)
    names = reference.inject(ours, targets, 3, 5)
    chosen = {name for name, _ in theirs.base_model.model.named_modules() if name.endswith(tuple(targets))}
    assert set(names) == chosen
    assert torch.equal(ours(IDS).logits, before)
    assert {name.removesuffix(".default.weight") for name, p in theirs.named_parameters() if p.requires_grad} == {
        PREFIX + name for name, p in ours.named_parameters() if p.requires_grad
    }
    draw_adapters(ours, seed=1)
    set_peft_model_state_dict(theirs, in_pefts_names(reference.adapter_state(ours)))  # our file, in peft
    expected = theirs(IDS).logits
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(ours(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    with torch.enable_grad():
        for model in (ours, theirs):
            model.zero_grad()
            model(IDS).logits.square().sum().backward()
    grads = {name.replace(".default.weight", ""): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, grads[PREFIX + name], atol=1e-3, rtol=1e-3)

    file = get_peft_model_state_dict(theirs)
    again = llama()
    reference.inject(again, targets, 3, 5)
    back = {name.removeprefix(PREFIX).removesuffix(".weight"): value for name, value in file.items()}
    told = again.load_state_dict(back, strict=False)  # peft's file, in ours
    assert not told.unexpected_keys
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-5, rtol=1e-5)

    layers = [module for module in ours.modules() if isinstance(module, reference.LoRALinear)]
    for layer in layers:
        layer.merge()
    merged = theirs.merge_and_unload()
    for name, weight in merged.state_dict().items():
        inside = name if name in ours.state_dict() else f"{name.rpartition('.')[0]}.linear.{name.rpartition('.')[2]}"
        torch.testing.assert_close(ours.state_dict()[inside], weight, atol=1e-6, rtol=1e-5)
    for layer in layers:
        layer.unmerge()
    torch.testing.assert_close(ours(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fused_experts_are_one_lora_layer_each(reference: ModuleType) -> None:
    """peft's target_parameters puts an adapter on all experts of one tensor; expert by expert it is our layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    torch.manual_seed(0)
    plain = MixtralForCausalLM(config).eval()
    randomise(plain, seed=2, std=0.3)
    theirs = pefts(copy.deepcopy(plain), target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    draw_adapters(theirs, seed=3)
    expected = theirs(IDS).logits
    adapters = {name: p for name, p in theirs.named_parameters() if "lora_" in name}
    a, b = (next(p for name, p in adapters.items() if f"lora_{letter}" in name) for letter in "AB")
    experts = plain.model.layers[0].mlp.experts.gate_up_proj
    n, n_out, n_in = experts.shape
    assert a.shape == (3 * n, n_in)
    assert b.shape == (n_out, 3 * n)
    before = plain(IDS).logits
    for e in range(n):
        linear = nn.Linear(n_in, n_out, bias=False)
        linear.weight.copy_(experts[e])
        layer = reference.LoRALinear(linear, 3, 5)
        layer.lora_A.copy_(a.view(n, 3, n_in)[e])
        layer.lora_B.copy_(b.view(n_out, 3, n)[:, :, e])
        layer.merge()
        experts[e] = linear.weight
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_golden_bytes_are_the_references(reference: ModuleType, hidden: ModuleType) -> None:
    """Every case, to the last bit; only a short block of zeros has another absmax, as the prompt says."""
    for name, case in hidden.golden("quantize").items():
        packed, absmax = reference.nf4_quantize(case["x"], case["block"])
        assert torch.equal(packed, case["packed"]), name
        assert torch.equal(absmax, case["absmax"]), name
        if "back" in case:
            back = reference.nf4_dequantize(packed, absmax, case["x"].shape, case["block"])
            assert torch.equal(back, case["back"]), name
    for name, case in hidden.golden("double").items():
        codes, scales, mean = reference.double_quantize(case["absmax"])
        assert torch.equal(codes, case["codes"]), name
        assert torch.equal(scales, case["scales"]), name
        assert torch.equal(mean, case["mean"]), name
        assert torch.equal(reference.double_dequantize(codes, scales, mean), case["back"]), name


def test_the_two_tables_of_values_are_the_same(reference: ModuleType, hidden: ModuleType) -> None:
    assert torch.equal(reference.NF4, hidden.VALUES)
    torch.testing.assert_close(reference.DYNAMIC.double(), hidden.dynamic(), atol=1e-7, rtol=1e-6)


def test_a_four_bit_model_learns(reference: ModuleType) -> None:
    """QLoRA on a CPU: the loss of a few texts falls while every byte of the frozen layers stays."""
    model = llama(seed=4)
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "proj" in name]
    model.requires_grad_(False)
    torch.manual_seed(0)
    for name in names:
        model.set_submodule(name, reference.QLoRALinear(model.get_submodule(name), 4, 8))
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    prompts, lengths = torch.tensor([2, 1]), torch.tensor([5, 4])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = reference.sft_loss(model(IDS).logits, IDS, prompts, lengths)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in frozen.items())


def test_bfloat16_texts_go_through_a_four_bit_layer(reference: ModuleType) -> None:
    linear = nn.Linear(64, 48)
    layer = reference.QLoRALinear(linear, 4, 8)
    x = normal(5, 64, seed=1)
    torch.testing.assert_close(layer(x.bfloat16()).float(), layer(x), atol=0.1, rtol=0.05)


def test_nothing_here_needs_bitsandbytes() -> None:
    assert "bitsandbytes" not in sys.modules
