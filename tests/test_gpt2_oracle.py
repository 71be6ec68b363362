"""What the hidden tests of chapter 06 hold answers against is GPT-2, and our GPT is the same to the last parameter.

The hidden tests write GPT-2 in PyTorch's functions, because importing transformers would cost every grading seconds.
Here transformers itself has the word.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from autograder.testing import randomise
from ichimon.measure import ROOT
from ichimon.notebook import load

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("hidden_06", ROOT / "autograder/tests/test_06_gpt.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(ROOT / "solutions/06-gpt.py")


def transformers_gpt2(vocabulary: int, n_context: int, d_model: int, n_layers: int, n_heads: int) -> GPT2LMHeadModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=n_context,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    "sizes", [(23, 12, 12, 2, 3), (17, 10, 8, 3, 4), (31, 70, 16, 1, 2)], ids=["3 heads", "3 blocks", "70 tokens"]
)
def test_a_gpt2_of_transformers_gives_the_same_logits(
    reference: ModuleType, hidden: ModuleType, sizes: tuple[int, int, int, int, int]
) -> None:
    """The outcome that counts: a random GPT-2 saved by transformers, read into our GPT, says the same to 1e-4."""
    theirs = transformers_gpt2(*sizes)
    state = randomise(theirs, seed=1, std=0.6)
    ids = torch.randint(sizes[0], (2, sizes[1]))
    ours = reference.GPT(*sizes)
    weights = reference.from_gpt2(state)
    ours.load_state_dict(weights)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (ours(ids) - expected).abs().max() < 1e-4
        assert (hidden.gpt2(weights, ids, sizes[-1]) - expected).abs().max() < 1e-4
    assert expected.std() > 0.5


def test_the_state_dict_of_the_hidden_tests_is_that_of_transformers(hidden: ModuleType) -> None:
    sizes = (11, 7, 6, 3)
    made = hidden.theirs(hidden.random_weights(hidden.shapes_of_gpt(*sizes), seed=1))
    assert {name: value.shape for name, value in made.items()} == {
        name: value.shape for name, value in transformers_gpt2(*sizes, 2).state_dict().items()
    }


def test_gradients_agree_with_transformers(hidden: ModuleType, reference: ModuleType) -> None:
    sizes = (13, 8, 8, 2, 2)
    theirs = transformers_gpt2(*sizes)
    weights = reference.from_gpt2(randomise(theirs, seed=2, std=0.4))
    leaves: dict[str, Tensor] = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    ids, upstream = torch.randint(13, (2, 6)), torch.randn(2, 6, 13)
    hidden.gpt2(leaves, ids, 2).backward(upstream)
    theirs(ids).logits.backward(upstream)
    grads = {f"{name}": parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    for name, value in reference.from_gpt2(grads | {"lm_head.weight": torch.zeros(13, 8)}).items():
        grad = leaves[name].grad
        assert grad is not None
        assert torch.allclose(grad, value, rtol=1e-3, atol=1e-3), name


def test_gpt2_small_has_its_published_number_of_parameters(reference: ModuleType) -> None:
    """124,439,808: what transformers counts. The paper's table said 117M, which was corrected later."""
    with torch.device("meta"):
        model = reference.GPT(50_257, 1024, 768, 12, 12)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_the_curve_of_the_hidden_tests_is_pytorchs(hidden: ModuleType) -> None:
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    for peak, warmup, steps, final in ((1e-3, 10, 41, 1e-4), (0.5, 1, 9, 0.0), (0.3, 3, 20, 0.1)):
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
        up = LinearLR(optimiser, start_factor=1 / (warmup + 1), total_iters=warmup)
        down = CosineAnnealingLR(optimiser, steps - warmup, eta_min=final)
        schedule = SequentialLR(optimiser, [up, down], milestones=[warmup])
        for step in range(steps):
            expected = optimiser.param_groups[0]["lr"]
            assert hidden.curve(step, peak, warmup, steps, final) == pytest.approx(expected, abs=1e-9)
            optimiser.step()
            schedule.step()


def test_the_curve_is_that_of_the_training_loop(reference: ModuleType) -> None:
    """A student's learning_rate is what ichimon.train does, so that a plot of one is a plot of the other."""
    from ichimon import train

    settings = train.Settings(steps=40, lr=0.2, warmup=7, final_lr=0.25)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedule = train._schedule(optimiser, settings)
    for step in range(settings.steps):
        wanted = reference.learning_rate(step, peak=0.2, warmup=7, steps=40, final=0.05)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(wanted, abs=1e-9)
        optimiser.step()
        schedule.step()


def test_the_grader_does_not_import_transformers() -> None:
    source = (ROOT / "autograder/tests/test_06_gpt.py").read_text(encoding="utf-8")
    assert "import transformers" not in source
    assert "from transformers" not in source


def test_a_checkpoint_that_transformers_saved_is_loaded_by_name(reference: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    sizes = (29, 12, 12, 2, 3)
    theirs = transformers_gpt2(*sizes)
    randomise(theirs, seed=4)
    theirs.save_pretrained(tmp_path)
    ours = reference.GPT(*sizes)
    ours.load_state_dict(reference.from_gpt2(load_file(tmp_path / "model.safetensors")))
    ids = torch.randint(29, (3, 11), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)
