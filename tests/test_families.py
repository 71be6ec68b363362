"""The oracle of chapters 11, 12 and 16 is transformers: every family, several configurations, every parameter drawn
anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autograder import families

CASES = [
    pytest.param(config, id=f"{name} {i}")
    for name, configs in families.TINY.items()
    for i, config in enumerate(configs)
]


def model_of(config: dict[str, Any]) -> Any:
    """A model of transformers with this config.json; every implementation is the plain one."""
    import transformers

    found = transformers.AutoConfig.for_model(**config)
    found.pad_token_id = None
    model = transformers.AutoModelForCausalLM.from_config(
        found, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def loaded(config: dict[str, Any], seed: int) -> tuple[Any, dict[str, Tensor]]:
    model, state = model_of(config), families.random_state(config, seed)
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = families.form(config).tied
    if tied:
        theirs.pop("lm_head.weight", None)
    assert theirs == families.shapes(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if not (tied and name == "lm_head.weight")]
    return model, state


@pytest.mark.parametrize("config", CASES)
@torch.no_grad()
def test_the_oracle_gives_the_logits_of_transformers(config: dict[str, Any]) -> None:
    model, state = loaded(config, 1)
    ids = torch.randint(0, config["vocab_size"], (2, 19), generator=torch.Generator().manual_seed(2))
    expected = model(ids).logits
    found = families.logits(config, state, ids)
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [case for case in CASES if "llama4" not in str(case.id)])
@torch.no_grad()
def test_left_padding_is_that_of_transformers(config: dict[str, Any]) -> None:
    model, state = loaded(config, 3)
    ids = torch.randint(0, config["vocab_size"], (3, 11), generator=torch.Generator().manual_seed(4))
    mask = torch.arange(11) >= torch.tensor([[0], [2], [5]])
    more = {} if config["model_type"] == "bloom" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    expected = model(ids, attention_mask=mask.long(), **more).logits
    found = families.logits(config, state, ids, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=1e-4)
    alone = families.logits(config, state, ids[2:, 5:])
    torch.testing.assert_close(found[2:, 5:], alone, atol=1e-4, rtol=1e-4)
