"""Chapter 22's calculators, and the sums that its hidden tests use, are transformers': every published model is made on
the meta device, where numbers take no memory, and counted."""

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autograder import families
from experiments import c16_table, gpt_line
from experiments.published_configs import CONFIGS, MIXTURES
from ichimon.measure import ROOT
from ichimon.notebook import load

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "olmo", "gpt2", "gptj", "gpt_neox", "bloom", *MIXTURES)
SMALL = [pytest.param(config, id=f"{kind} {i}") for kind in FAMILIES for i, config in enumerate(families.TINY[kind])]
# A large model of each family is enough for what takes a second; the counts are those of all.
SOME = ("GPT-2 XL", "GPT-J 6B", "GPT-NeoX 20B", "BLOOM 176B", "OLMo 7B", "Llama 3 8B", "Mistral 7B v0.1", "Qwen2.5 7B")


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hidden_22", ROOT / "autograder/tests/test_22_choosing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def c() -> ModuleType:
    return load(ROOT / "solutions/22-choosing.py")


def made(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return gpt_line.theirs(config)


def test_there_are_at_least_thirty_published_models() -> None:
    assert len(CONFIGS) >= 30
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_model_has_as_many_parameters_as_transformers_makes(
    name: str, c: ModuleType, hidden: ModuleType
) -> None:
    config = CONFIGS[name]
    theirs = {key: p.numel() for key, p in made(config).named_parameters()}
    total, active = c.parameters(config)
    assert total == sum(theirs.values())
    n, k = hidden.mixed(config)
    routed = sum(size for key, size in theirs.items() if ".experts." in key)
    assert active == total - routed // n * (n - k) if n > 1 else total
    assert hidden.counted(config) == (total, active)


@pytest.mark.parametrize("config", SMALL)
def test_a_small_model_has_as_many_parameters_as_transformers_makes(
    config: dict[str, Any], c: ModuleType, hidden: ModuleType
) -> None:
    total = sum(p.numel() for p in made(config).parameters())
    assert c.parameters(config)[0] == hidden.counted(config)[0] == total


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe"])
def test_attention_bias_is_what_transformers_makes_of_it(kind: str, c: ModuleType) -> None:
    config = {**families.TINY[kind][-1], "attention_bias": True}
    assert c.parameters(config)[0] == sum(p.numel() for p in made(config).parameters())


@pytest.mark.parametrize("name", SOME)
def test_flops_and_cache_of_reading_are_those_that_pytorch_counts(name: str, c: ModuleType) -> None:
    config, n = CONFIGS[name], 32
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        kept = made(config)(torch.zeros(1, n, dtype=torch.long, device="meta"), use_cache=True).past_key_values
    assert n * c.flops_per_token(config, n) == pytest.approx(counter.get_total_flops(), rel=2e-3)
    assert c.kv_bytes(config, n) == 2 * sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers)


def test_backward_takes_twice_as_many_flops(c: ModuleType) -> None:
    config = {**CONFIGS["Llama 3.2 1B"], "num_hidden_layers": 2}
    model = made(config)
    model.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 64, dtype=torch.long, device="meta")).logits.sum().backward()
    assert 64 * c.flops_per_token(config, 64, training=True) == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_windows_are_those_of_the_models_own_masks(c: ModuleType) -> None:
    for kind in ("mistral", "qwen2", "gpt_oss"):
        for config in families.TINY[kind]:
            assert c.read(config).windows == families.form(config).windows


def test_switch_c_is_counted_by_arithmetic_in_chapter_16() -> None:
    """transformers would take a minute; the published count is 1,571 billion."""
    counts = c16_table.switch_count(c16_table.EXPERIMENT.config["models"]["Switch-C"])
    assert counts[0] // 10**9 == 1571
