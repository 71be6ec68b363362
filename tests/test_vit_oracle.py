"""The arithmetic that chapter 20's hidden tests expect is that of transformers' ViT, of its mel filters, of Whisper's
front end and stem, and of PyTorch's GRU."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from autograder.testing import normal, randomise
from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    """The hidden tests, as a module."""
    spec = importlib.util.spec_from_file_location(
        "hidden_tests_of_chapter_20", ROOT / "autograder/tests/test_20_beyond_text.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/20-beyond-text.py")


def renamed(state: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Transformers' entries under the names of the chapter."""
    own = {
        "class_token": state["vit.embeddings.cls_token"].flatten(),
        "positions": state["vit.embeddings.position_embeddings"][0],
        "embed.weight": state["vit.embeddings.patch_embeddings.projection.weight"].flatten(1),
        "embed.bias": state["vit.embeddings.patch_embeddings.projection.bias"],
    }
    for kind in ("weight", "bias"):
        own |= {f"norm.{kind}": state[f"vit.layernorm.{kind}"], f"head.{kind}": state[f"classifier.{kind}"]}
        for i in range(n_layers):
            theirs = f"vit.layers.{i}."
            own |= {
                f"layers.{i}.self_attn.in_proj_{kind}": torch.cat(
                    [state[f"{theirs}attention.{letter}_proj.{kind}"] for letter in "qkv"]
                ),
                f"layers.{i}.self_attn.out_proj.{kind}": state[f"{theirs}attention.o_proj.{kind}"],
                f"layers.{i}.linear1.{kind}": state[f"{theirs}mlp.fc1.{kind}"],
                f"layers.{i}.linear2.{kind}": state[f"{theirs}mlp.fc2.{kind}"],
                f"layers.{i}.norm1.{kind}": state[f"{theirs}layernorm_before.{kind}"],
                f"layers.{i}.norm2.{kind}": state[f"{theirs}layernorm_after.{kind}"],
            }
    return own


@pytest.mark.parametrize("size", [(8, 2, 1, 12, 3, 2, 10), (12, 4, 3, 16, 4, 3, 5)])
def test_the_logits_are_those_of_transformers_vit(
    size: tuple[int, int, int, int, int, int, int], hidden: ModuleType, reference: ModuleType
) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    image, patch, channels, d_model, n_heads, n_layers, n_classes = size
    config = ViTConfig(
        image_size=image,
        patch_size=patch,
        num_channels=channels,
        hidden_size=d_model,
        num_attention_heads=n_heads,
        num_hidden_layers=n_layers,
        intermediate_size=4 * d_model,
        num_labels=n_classes,
        layer_norm_eps=1e-5,
    )
    theirs = ViTForImageClassification(config).eval()
    weights = renamed(randomise(theirs, seed=1, std=0.3), n_layers)
    ours = reference.ViT(*size)
    ours.load_state_dict(weights)
    images = normal(3, channels, image, image, seed=2)
    with torch.no_grad():
        expected = theirs(images).logits
        assert torch.allclose(hidden.vit(images, weights, size), expected, atol=1e-4)
        assert torch.allclose(ours.eval()(images), expected, atol=1e-4)


@pytest.mark.parametrize("bank", [(5, 64, 8000), (80, 400, 16000), (40, 256, 8000)])
def test_the_filters_are_those_of_transformers(
    bank: tuple[int, int, int], hidden: ModuleType, reference: ModuleType
) -> None:
    from transformers.audio_utils import mel_filter_bank

    n_mels, n_fft, rate = bank
    theirs = mel_filter_bank(n_fft // 2 + 1, n_mels, 0, rate / 2, rate, norm=None, mel_scale="htk").T
    expected = torch.tensor(theirs, dtype=torch.float32)
    assert torch.allclose(hidden.triangles(*bank), expected, atol=1e-5)
    assert torch.allclose(reference.mel_filters(*bank), expected, atol=1e-5)


def test_with_whispers_filters_the_picture_is_whispers(hidden: ModuleType, reference: ModuleType) -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(chunk_length=1)
    wave = normal(2, 16000, seed=1) * torch.tensor([0.3, 1e-3])[:, None]
    features = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt").input_features
    filters = torch.tensor(extractor.mel_filters.T, dtype=torch.float32)
    sizes = (extractor.n_fft, extractor.hop_length)
    assert torch.allclose(hidden.whispers(wave, filters, *sizes), features, atol=1e-4)
    assert torch.allclose(reference.log_mel(wave, filters, *sizes), features, atol=1e-4)


def test_the_stem_is_that_of_whispers_encoder(hidden: ModuleType, reference: ModuleType) -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        num_mel_bins=8, d_model=16, encoder_layers=0, encoder_attention_heads=2, max_source_positions=10
    )
    encoder = WhisperEncoder(config).eval()
    state = randomise(encoder, seed=3, std=0.3)
    weights = {name: value for name, value in state.items() if name.startswith("conv")}
    ours = reference.ConvStem(8, 16)
    ours.load_state_dict(weights)
    mel = normal(2, 8, 20, seed=4)
    with torch.no_grad():
        theirs = encoder(mel).last_hidden_state
        for found in (hidden.stem(mel, weights), ours(mel)):
            whole = torch.nn.functional.layer_norm(
                found + state["embed_positions.weight"], (16,), state["layer_norm.weight"], state["layer_norm.bias"]
            )
            assert torch.allclose(whole, theirs, atol=1e-4)


def test_the_recurrent_unit_is_pytorchs(hidden: ModuleType) -> None:
    layer = nn.GRU(6, 6, batch_first=True)
    weights = {f"local.{name}": value for name, value in randomise(layer, seed=5).items()}
    x = normal(2, 5, 6, seed=6)
    assert torch.allclose(hidden.gru(x, weights), layer(x)[0], atol=1e-6)
