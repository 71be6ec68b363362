"""What the hidden tests of chapter 09 hold answers against is DeepSeek's attention, and our layer is the same.

The hidden tests write it in PyTorch's functions, because importing transformers would cost every grading seconds. Here
transformers itself has the word: DeepSeek-V3's layer, DeepSeek-V2's, its cache, and LLaMA's grouped attention.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from autograder.testing import normal, randomise
from ichimon.measure import ROOT
from ichimon.notebook import load

NAMES = {
    "q_a_proj": "q_down",
    "q_a_layernorm": "q_norm",
    "q_b_proj": "q_up",
    "kv_a_proj_with_mqa": "kv_down",
    "kv_a_layernorm": "kv_norm",
    "kv_b_proj": "kv_up",
    "o_proj": "o_proj",
}
# d_model, n_heads, q_rank, kv_rank, d_nope, d_rope, d_v: nothing equal, odd where it can be, batch and length too
SIZES = [(12, 3, 7, 5, 4, 2, 3), (10, 2, 6, 9, 3, 6, 7), (9, 5, 11, 4, 2, 4, 2), (33, 7, 13, 21, 9, 8, 11)]
EVEN = [(12, 3, 7, 6, 4, 2, 3), (10, 2, 6, 8, 4, 6, 7), (35, 7, 13, 22, 8, 8, 11)]  # what V2's complex views can take
BATCH, LENGTH = 3, 41


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hidden_09", ROOT / "autograder/tests/test_09_grouped_queries.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/09-grouped-queries.py")


def settings(size: tuple[int, ...], theta: float, **more: Any) -> dict[str, Any]:
    d_model, n_heads, q_rank, kv_rank, d_nope, d_rope, d_v = size
    return {
        "hidden_size": d_model,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "q_lora_rank": q_rank,
        "kv_lora_rank": kv_rank,
        "qk_nope_head_dim": d_nope,
        "qk_rope_head_dim": d_rope,
        "v_head_dim": d_v,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "attn_implementation": "eager",
        **more,
    }


def course_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{NAMES[name.removesuffix('.weight')]}.weight": value for name, value in state.items()}


def version_3(size: tuple[int, ...], theta: float) -> tuple[Any, Any]:
    """DeepSeek-V3's layer with every parameter drawn anew, and what it says to x under a mask."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(**settings(size, theta))
    layer = DeepseekV3Attention(config, 0).eval()
    turn = DeepseekV3RotaryEmbedding(config)

    def say(x: Tensor, mask: Tensor, past: Any = None, start: int = 0) -> Tensor:
        bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None]
        places = torch.arange(start, start + x.shape[1])[None]
        return layer(x, turn(x, places), bias, past_key_values=past)[0]

    return layer, say


def version_2(size: tuple[int, ...], theta: float) -> tuple[Any, Any]:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

    config = DeepseekV2Config(**settings(size, theta))
    layer = DeepseekV2Attention(config, 0).eval()
    turn = DeepseekV2RotaryEmbedding(config)

    def say(x: Tensor, mask: Tensor) -> Tensor:
        bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None]
        return layer(x, bias, position_embeddings=turn(x, torch.arange(x.shape[1])[None]))[0]

    return layer, say


@pytest.mark.parametrize("theta", [10_000.0, 50.0], ids=["theta 10000", "theta 50"])
@pytest.mark.parametrize(
    ("version", "size"), [(version_3, size) for size in SIZES] + [(version_2, size) for size in EVEN]
)
@torch.no_grad()
def test_latent_attention_is_deepseeks(
    reference: ModuleType, hidden: ModuleType, version: Any, size: tuple[int, ...], theta: float
) -> None:
    """The outcome that counts: DeepSeek's weights, loaded by name, give DeepSeek's outputs, ours and the oracle's."""
    theirs, say = version(size, theta)
    weights = course_state(randomise(theirs, seed=1, std=0.7))
    sizes = hidden.sizes_of(*size, rope_theta=theta)
    ours = reference.LatentAttention(**sizes)
    ours.load_state_dict(weights)
    x, mask = normal(BATCH, LENGTH, size[0], seed=2), hidden.causal(LENGTH)
    expected = say(x, mask)
    assert expected.std() > 0.3
    assert (ours(x, mask)[0] - expected).abs().max() < 1e-4
    assert (hidden.deepseek(weights, sizes, x, mask) - expected).abs().max() < 1e-4


@torch.no_grad()
def test_our_layer_and_deepseeks_keep_equally_much_and_go_on_alike(reference: ModuleType, hidden: ModuleType) -> None:
    """In chunks over a cache both say the same, and their caches hold the same number of bytes."""
    from transformers import DynamicCache

    size = SIZES[-1]
    theirs, say = version_3(size, 10_000.0)
    weights = course_state(randomise(theirs, seed=3, std=0.5))
    ours = reference.LatentAttention(**hidden.sizes_of(*size))
    ours.load_state_dict(weights)
    x, cache, kept, start = normal(BATCH, LENGTH, size[0], seed=4), DynamicCache(), None, 0
    for n in (20, 1, 7, 13):
        chunk, mask = x[:, start : start + n], hidden.causal(n, start)
        found, kept = ours(chunk, mask, kept)
        assert (found - say(chunk, mask, cache, start)).abs().max() < 1e-4
        start += n
    assert start == LENGTH
    in_theirs = cache.layers[0].keys.nbytes + cache.layers[0].values.nbytes
    config = {**settings(size, 10_000.0), "num_hidden_layers": 1}
    assert kept.nbytes == in_theirs == reference.kv_cache_bytes(config, LENGTH, BATCH, torch.float32)


@torch.no_grad()
def test_a_grouped_cache_of_transformers_holds_what_we_count(reference: ModuleType) -> None:
    """LLaMA's cache after reading a text takes the bytes of kv_cache_bytes, from the same config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for heads, more in ((1, {}), (2, {}), (4, {}), (2, {"head_dim": 6})):
        config = LlamaConfig(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=heads,
            **more,
        )
        cache = LlamaForCausalLM(config).eval()(torch.zeros(2, 9, dtype=torch.long), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == reference.kv_cache_bytes(config.to_dict(), 9, 2, torch.float32)


@torch.no_grad()
def test_grouped_attention_and_the_copies_are_those_of_llama(reference: ModuleType, hidden: ModuleType) -> None:
    """LLaMA's attention at unturned positions is our layer, and its repeat_kv is ours."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, repeat_kv

    for n_kv_heads in (1, 2, 3, 6):
        config = LlamaConfig(
            hidden_size=18,
            num_attention_heads=6,
            num_key_value_heads=n_kv_heads,
            head_dim=4,
            attn_implementation="eager",
        )
        theirs = LlamaAttention(config, 0).eval()
        weights = randomise(theirs, seed=n_kv_heads, std=0.5)
        ours = reference.GroupedQueryAttention(18, 6, n_kv_heads, 4)
        ours.load_state_dict(weights)
        x, mask = normal(BATCH, 13, 18, seed=1), hidden.causal(13)
        unturned = torch.ones(1, 13, 4), torch.zeros(1, 13, 4)
        expected = theirs(x, unturned, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[None, None])[0]
        assert (ours(x, mask) - expected).abs().max() < 1e-4
        assert (hidden.pytorchs(weights, x, (18, 6, n_kv_heads, 4), mask) - expected).abs().max() < 1e-4
        heads = normal(2, n_kv_heads, 5, 3, seed=2)
        assert torch.equal(reference.repeat_kv(heads, 6 // n_kv_heads), repeat_kv(heads, 6 // n_kv_heads))
