"""Chapter 12's reference is GPT-2, GPT-J, GPT-NeoX, BLOOM, LLaMA, OLMo and gpt-oss: transformers has the word."""

from __future__ import annotations

from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from autograder import families
from experiments import gpt_line
from ichimon.measure import ROOT
from ichimon.notebook import load

FAMILIES = ("gpt2", "gptj", "gpt_neox", "bloom", "llama", "olmo", "gpt_oss_dense", "mistral", "qwen2", "qwen3")
CASES = [
    pytest.param(config, id=f"{name} {i}")
    for name in FAMILIES
    for i, config in enumerate(families.TINY[name])
    if config.get("rope_scaling", {}).get("rope_type") != "llama3"
]
NAMED = {
    "GPT-2": "gpt2",
    "GPT-J": "gptj",
    "Pythia": "gpt_neox",
    "BLOOM": "bloom",
    "OpenLLaMA": "llama",
    "OLMo": "olmo",
    "gpt-oss": "gpt_oss_dense",
}
SIZES = {"vocabulary", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_hidden", "n_context", "d_rotary"}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/12-gpt-line.py")


@pytest.mark.parametrize("config", CASES)
@torch.no_grad()
def test_the_reference_gives_the_logits_of_transformers(reference: ModuleType, config: dict[str, Any]) -> None:
    """Every parameter random, a text longer than any window, three texts of which two are padded on the left."""
    theirs, state = gpt_line.theirs(config), families.random_state(config, seed=5)
    theirs.load_state_dict(state, strict=False)
    ours = gpt_line.ours(reference, config, state)
    ids = torch.randint(config["vocab_size"], (3, 15), generator=torch.Generator().manual_seed(6))
    mask = torch.arange(15) >= torch.tensor([[0], [4], [13]])
    expected = theirs(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=1e-4)
    more = {} if config["model_type"] == "bloom" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    expected = theirs(ids, attention_mask=mask.long(), **more).logits
    torch.testing.assert_close(ours(ids, mask)[mask], expected[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", NAMED)
def test_the_notebooks_families_are_the_published_ones(reference: ModuleType, family: str) -> None:
    """What the set-up cell says of a family is what its config.json asks for, sizes and YaRN's aside."""
    config = families.TINY[NAMED[family]][0]
    said = reference.DecoderConfig(**dict.fromkeys(SIZES - {"n_context", "d_rotary"}, 1), **reference.FAMILIES[family])
    asked = reference.DecoderConfig(**families.course_settings(config))
    differing = {
        field.name
        for field in fields(said)
        if field.name not in SIZES | {"windows", "yarn", "norm_eps"}
        and getattr(said, field.name) != getattr(asked, field.name)
    }
    assert not differing


def test_the_notebooks_yarn_is_that_of_gpt_oss(reference: ModuleType) -> None:
    published = families.course_settings(gpt_line.PUBLISHED["gpt-oss-20b"] | {"num_local_experts": 1})
    assert published["yarn"] == reference.FAMILIES["gpt-oss"]["yarn"]
    config = reference.DecoderConfig(**published)
    speed, factor = config.frequencies()
    theirs = gpt_line.theirs(
        gpt_line.PUBLISHED["gpt-oss-20b"] | {"num_hidden_layers": 1, "num_local_experts": 1, "vocab_size": 8}
    )
    assert torch.allclose(speed, theirs.model.rotary_emb.inv_freq, rtol=1e-4)
    assert factor == pytest.approx(theirs.model.rotary_emb.attention_scaling)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neox", "bloom", "llama", "qwen2", "qwen3", "olmo", "gpt_oss"])
def test_the_detective_recognises_what_transformers_saves(reference: ModuleType, name: str) -> None:
    config = families.TINY[name][0]
    shapes = {key: tuple(value.shape) for key, value in gpt_line.theirs(config).state_dict().items()}
    found, form = reference.detective(shapes), families.form(config)
    assert found["family"] == name
    assert found["kv_bytes"] == 4 * form.n_layers * form.n_kv_heads * form.d_head
    assert found["n_heads"] in (None, form.n_heads)


def test_the_patient_is_ill_and_the_mended_is_not(reference: ModuleType) -> None:
    """The patient of the notebook, as a student sees it: right where all channels turn, wrong where some do."""
    from ichimon.notebook import cells

    source = next(cell.source for cell in cells(ROOT / "solutions/12-gpt-line.py") if "class Patient" in cell.source)
    namespace: dict[str, Any] = dict(vars(reference))
    exec(compile(source, "patient", "exec"), namespace)
    ids = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))
    for rotary, ill in ((1.0, False), (0.5, True), (0.25, True)):
        config = {**families.TINY["gpt_neox"][0], "vocab_size": 30, "num_hidden_layers": 2, "hidden_size": 32}
        config |= {"num_attention_heads": 2, "intermediate_size": 128, "rotary_pct": rotary}
        state: dict[str, Tensor] = families.random_state(config, seed=2)
        expected = families.logits(config, state, ids)
        for name, wrong in (("Patient", ill), ("Mended", False)):
            model = namespace[name](30, 32, 2, 2, rotary)
            model.load_state_dict(state)
            assert ((model(ids) - expected).abs().max() > 1e-3) == wrong, (name, rotary)
