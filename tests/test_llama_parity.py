"""The decoder of chapter 11 is LLaMA, Mistral, Qwen2 and Qwen3 as transformers has them, from the folder to the tokens.

The hidden tests compare with autograder.families, which is plain PyTorch. Here transformers itself has the word: it
makes the models, saves them, and generates.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

from autograder import families
from ichimon.measure import ROOT
from ichimon.notebook import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CASES = [(family, i) for family in ("llama", "mistral", "qwen2", "qwen3") for i in range(len(families.TINY[family]))]
EACH = pytest.mark.parametrize(("family", "number"), CASES)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/11-llama-qwen-mistral.py")


def transformers_model(family: str, number: int) -> PreTrainedModel:
    """A model of transformers with every parameter drawn anew."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**families.TINY[family][number])
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model


@EACH
def test_a_folder_that_transformers_saved_gives_its_logits_and_its_tokens(
    reference: ModuleType, tmp_path: Path, family: str, number: int
) -> None:
    """Padded on the left, to 1e-4; greedy generation with our cache is transformers' generate."""
    theirs = transformers_model(family, number)
    theirs.save_pretrained(tmp_path)
    ours = reference.load_hf(tmp_path)
    ids = torch.randint(37, (3, 12), generator=torch.Generator().manual_seed(number))
    mask = torch.arange(12) >= torch.tensor([[0], [3], [7]])
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long()).logits
        assert (ours(ids, mask) - expected)[mask].abs().max() < 1e-4
        more: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        written = theirs.generate(ids, attention_mask=mask.long(), **more)[:, 12:]
    assert torch.equal(reference.generate(ours, ids, 7, mask), written)
    assert expected[mask].std() > 0.3


@EACH
def test_a_config_that_transformers_saved_reads_as_the_published_one(
    reference: ModuleType, tmp_path: Path, family: str, number: int
) -> None:
    """The words of 2026 (rope_parameters, layer_types) and those of the published files mean the same."""
    from transformers import AutoConfig

    published = families.TINY[family][number]
    AutoConfig.for_model(**published).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert reference.read_config(saved) == reference.read_config(published)


def test_shards_that_transformers_saved_are_read(reference: ModuleType, tmp_path: Path) -> None:
    theirs = transformers_model("llama", 1)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.randint(37, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (reference.load_hf(tmp_path)(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_bfloat16_files_become_float32(reference: ModuleType, tmp_path: Path) -> None:
    theirs = transformers_model("qwen3", 0).bfloat16()
    theirs.save_pretrained(tmp_path)
    ours, ids = reference.load_hf(tmp_path), torch.arange(9)[None]
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    with torch.no_grad():
        assert (ours(ids) - theirs.float()(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("d_head", [6, 64, 128])
def test_stretched_frequencies_are_those_of_transformers(reference: ModuleType, d_head: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**numbers, "original_max_position_embeddings": 8192, "rope_type": "llama3", "rope_theta": 5e5}
    config = LlamaConfig(head_dim=d_head, rope_parameters=rope, max_position_embeddings=131072)
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    found = reference.rope_frequencies(d_head, 5e5, reference.RopeScaling(*numbers.values(), 8192))
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)
    assert scale == 1


def test_what_we_read_is_what_the_package_safetensors_reads(reference: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(
        {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.tensor(7)}, tmp_path / "x.safetensors"
    )
    expected, found = load_file(tmp_path / "x.safetensors"), reference.read_safetensors(tmp_path / "x.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_we_write_the_package_safetensors_reads(reference: ModuleType) -> None:
    """The set-up cell's as_safetensors makes files in the published format."""
    from safetensors.torch import load as parsed

    made = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.zeros(0, 2)}
    found = parsed(reference.as_safetensors(made))
    assert all(torch.equal(found[name], made[name]) for name in made)
