"""The oracles of chapter 03's hidden tests agree with transformers: Llama, GPT-J, BLOOM and gpt-oss."""

from types import SimpleNamespace

import pytest
import torch

from autograder.testing import normal
from autograder.tests import test_03_position as hidden


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_half_split_rotation_is_llamas(theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=4, head_dim=12)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    x, positions = normal(2, 4, 5, 12, seed=1), torch.tensor([[0, 1, 2, 3, 4], [9, 7, 300, 7, 2]])
    cos, sin = LlamaRotaryEmbedding(config)(x, positions)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(hidden.turned(x, positions, theta), expected, atol=1e-4, rtol=1e-4)


def test_interleaved_rotation_is_gpt_js() -> None:
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

    x = normal(2, 5, 4, 12, seed=1)  # GPT-J has the heads after the positions
    sin, cos = create_sinusoidal_positions(5, 12).expand(2, 5, 12).chunk(2, -1)
    expected = apply_rotary_pos_emb(x, sin, cos).transpose(1, 2)
    found = hidden.turned(x.transpose(1, 2), torch.arange(5), interleaved=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_heads", [1, 3, 6, 8, 12, 20, 112])
def test_slopes_are_blooms(n_heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 6), n_heads, torch.float32)  # [heads, 1, 6]: grows with the key's place
    ours = hidden.past(n_heads, 6)[:, -1:]  # of the last query; they differ by a constant a row, which softmax removes
    torch.testing.assert_close(ours - ours[..., :1], theirs - theirs[..., :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("d_head", "factor", "theta", "n_train", "betas", "truncate"),
    [
        (64, 32.0, 150000.0, 4096, (32.0, 1.0), False),
        (64, 32.0, 150000.0, 4096, (32.0, 1.0), True),
        (20, 3.5, 10000.0, 2048, (16.0, 2.0), False),
        (24, 8.0, 10000.0, 2000, (8.0, 8.0), False),
        (16, 4.0, 10.0, 1257, (32.0, 1.0), False),
        (16, 8.0, 10000.0, 48, (32.0, 1.0), False),
    ],
)
def test_yarn_is_that_of_gpt_oss(
    d_head: int, factor: float, theta: float, n_train: int, betas: tuple[float, float], truncate: bool
) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = SimpleNamespace(
        hidden_size=2 * d_head,
        num_attention_heads=2,
        head_dim=d_head,
        max_position_embeddings=131072,
        standardize_rope_params=lambda: None,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "beta_fast": betas[0],
            "beta_slow": betas[1],
            "truncate": truncate,
            "original_max_position_embeddings": n_train,
        },
    )
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config)
    found = hidden.yarn(d_head, factor, theta, n_train, *betas, truncate)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-4)
    assert scale == pytest.approx(1 + 0.1 * torch.tensor(factor).log().item())
    interpolated, one = ROPE_INIT_FUNCTIONS["linear"](config)
    torch.testing.assert_close(interpolated, (hidden.frequencies(d_head, theta) / factor).float(), atol=0, rtol=1e-4)
    assert one == 1


def test_gpt_oss_uses_the_constants_that_the_notebook_says() -> None:
    from transformers import GptOssConfig

    parameters = GptOssConfig().rope_parameters
    said = {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "rope_theta": 150000.0}
    assert {name: parameters[name] for name in said} == said
    assert parameters["original_max_position_embeddings"] == 4096
