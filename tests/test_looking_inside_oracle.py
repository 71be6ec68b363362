"""What chapter 21 brings along is a LLaMA, and Student's quantiles; its answers work on the model that ships, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats

from autograder.testing import randomise
from ichimon.measure import ROOT
from ichimon.moe import load_trained
from ichimon.notebook import load


@pytest.fixture(scope="module")
def reference() -> Any:
    return load(ROOT / "solutions/21-looking-inside.py")


def test_the_patient_is_a_llama(reference: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=13,
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=3,
        num_attention_heads=2,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    theirs, ours = LlamaForCausalLM(config).eval(), reference.LanguageModel(13, 12, 2, 3, 10)
    theirs.load_state_dict(randomise(ours, seed=1))
    ids = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("p", [0.5001, 0.75, 0.975, 0.9995])
def test_quantiles_are_students(reference: Any, p: float) -> None:
    for df in (1, 2, 3, 4, 5, 10, 31, 200):
        assert reference.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-6, abs=1e-9)


def test_the_answers_work_on_the_model_that_ships_with_the_course(reference: Any) -> None:
    model, bpe = load_trained("dense")
    ids = torch.tensor([bpe.encode("Return True if the object is").ids])
    said = model(ids).logits.detach()
    torch.testing.assert_close(reference.logit_lens(model, ids)[-1], said)
    assert not torch.allclose(reference.mean_ablate(model, ids, [(2, 2)], ids.repeat(2, 2)), said, atol=1e-3)
    torch.testing.assert_close(model(ids).logits.detach(), said)
    assert reference.hooks_on(model) == 0
