"""The window of chapter 10's hidden tests is that of transformers' Mistral."""

import runpy
from pathlib import Path

import pytest
import torch

ORACLE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "autograder/tests/test_10_long_context.py"))


@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_the_window_is_that_of_transformers(window: int) -> None:
    from transformers.masking_utils import sliding_window_causal_mask_function

    allowed = sliding_window_causal_mask_function(window)
    theirs = [[bool(allowed(0, 0, torch.tensor(i), torch.tensor(j))) for j in range(12)] for i in range(12)]
    assert ORACLE["window_mask"](12, window).tolist() == theirs


def test_a_stack_of_windows_is_transformers_mistral() -> None:
    """Perturb one input of a tiny Mistral: what notices is what the mask, raised to the number of layers, says."""
    from transformers import MistralConfig, MistralModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MistralConfig(vocab_size=8, num_hidden_layers=3, sliding_window=4, attn_implementation="eager", **sizes)
    model = MistralModel(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = torch.randn(1, 14, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 2] = torch.randn(16, dtype=torch.float64)
    with torch.no_grad():
        before, after = (model(inputs_embeds=each, use_cache=False).last_hidden_state for each in (x, changed))
    reached = torch.linalg.matrix_power(ORACLE["window_mask"](14, 4).double(), 3)[:, 2] > 0
    assert torch.equal((before != after).any(-1)[0], reached)
