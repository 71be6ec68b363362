"""What chapter 16's hidden tests expect is what transformers computes: each family's layer, Switch's, whole models, and
the counts of published ones. And a whole model in which one ingredient is another family's is caught, and named."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autograder import families
from autograder.testing import gradients, normal
from ichimon.diff import diff
from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "solutions/16-moe-families.py"
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text")
CASES = [pytest.param(config, id=f"{name} {i}") for name in FAMILIES for i, config in enumerate(families.TINY[name])]


@pytest.fixture(scope="module")
def hidden() -> ModuleType:
    """The hidden tests, as a module."""
    spec = importlib.util.spec_from_file_location("hidden_16", ROOT / "autograder/tests/test_16_moe_families.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load(SOURCE)


def model_of(config: Mapping[str, Any]) -> Any:
    import transformers

    found = transformers.AutoConfig.for_model(**config)
    found.pad_token_id = None
    return transformers.AutoModelForCausalLM.from_config(
        found, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def their_layer(config: Mapping[str, Any]) -> tuple[Any, str]:
    """transformers' mixture of the last layer, and the name of that layer in the course."""
    model = model_of(config)
    model.load_state_dict(families.random_state(config, 3), strict=False)
    layer = model.model.layers[-1]
    return (
        layer.feed_forward if config["model_type"] == "llama4_text" else layer.mlp
    ), f"blocks.{len(model.model.layers) - 1}.mlp."


@pytest.mark.parametrize("config", CASES)
def test_the_expected_layer_is_that_of_transformers(
    hidden: ModuleType, reference: ModuleType, config: dict[str, Any]
) -> None:
    layer, name = their_layer(config)
    state = families.course_state(config, families.random_state(config, 3))
    weights = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
    moe = reference.read_config(config).experts[-1]
    fields = {key: getattr(moe, key) for key in moe.__dataclass_fields__}
    x, upstream = (normal(2, 5, moe.d_model, seed=seed) for seed in (1, 2))
    x.requires_grad_()
    theirs = layer(x)
    theirs = (theirs[0] if isinstance(theirs, tuple) else theirs).view_as(x)
    ours = reference.MoELayer(moe)
    ours.load_state_dict(weights)
    expected = gradients(theirs, upstream, x=x)["x"]
    for found in (hidden.mixture(x, weights, fields), ours(x)):
        torch.testing.assert_close(found, theirs, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(gradients(found, upstream, x=x)["x"], expected, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize(
    ("batch", "n", "n_experts", "capacity"), [(1, 9, 3, 2), (4, 7, 3, 2), (3, 5, 2, 64), (2, 8, 4, 1)]
)
def test_the_expected_switch_is_that_of_transformers(
    hidden: ModuleType, reference: ModuleType, batch: int, n: int, n_experts: int, capacity: int
) -> None:
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    weights = hidden.switch_weights(6, 5, n_experts, seed=1)
    config = SwitchTransformersConfig(
        d_model=6, d_ff=5, num_experts=n_experts, expert_capacity=capacity, dropout_rate=0.0
    )
    theirs = SwitchTransformersSparseMLP(config).eval()
    state = {"router.classifier.weight": weights["router.weight"]}
    for e in range(n_experts):
        state |= {
            f"experts.expert_{e}.wi.weight": weights["up"][e],
            f"experts.expert_{e}.wo.weight": weights["down"][e],
        }
    theirs.load_state_dict(state)
    ours = reference.Mended(6, 5, n_experts, capacity)
    ours.load_state_dict(weights)
    x = normal(batch, n, 6, seed=2)
    for found in (hidden.switch(x, weights, capacity), ours(x)):
        torch.testing.assert_close(found, theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("config", CASES)
@torch.no_grad()
def test_the_reference_gives_the_logits_of_transformers(
    reference: ModuleType, config: dict[str, Any], seed: int
) -> None:
    state, theirs, ours = families.random_state(config, seed), model_of(config), reference.Decoder(config)
    theirs.load_state_dict(state)
    ours.load_state_dict(families.course_state(config, state))
    ids = torch.randint(config["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(seed))
    expected = theirs(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", CASES)
def test_small_models_are_counted_as_transformers_builds_them(
    hidden: ModuleType, reference: ModuleType, config: dict[str, Any]
) -> None:
    for tied in (False, True):
        whole = {**config, "tie_word_embeddings": tied}
        total = sum(parameter.numel() for parameter in model_of(whole).parameters())
        assert reference.count_parameters(whole) == hidden.counted(whole)
        assert hidden.counted(whole)[0] == total


def test_published_models_are_counted_as_transformers_builds_them(hidden: ModuleType, reference: ModuleType) -> None:
    assert hidden.counted(hidden.PUBLISHED["Mixtral 8x7B"]) == (46_702_792_704, 12_879_925_248, 12_748_853_248)
    assert hidden.counted(hidden.PUBLISHED["gpt-oss-120b"]) == (116_829_156_672, 5_711_982_912, 5_132_849_472)
    assert hidden.counted(hidden.PUBLISHED["DeepSeek-V3"]) == (671_026_404_352, 37_552_282_624, 36_625_603_584)
    for name, config in hidden.PUBLISHED.items():
        with torch.device("meta"):
            total = sum(parameter.numel() for parameter in model_of(config).parameters())
        assert hidden.counted(config)[0] == total, name
        assert reference.count_parameters(config) == hidden.counted(config), name


# (what is wrong, family and number of its configuration, what stands in the source, what in its place, where it shows)
WRONG = [
    ("no sink", "gpt_oss", 0, "self.sinks[:, None, None]", "(self.sinks - math.inf)[:, None, None]", "attention"),
    ("no window", "gpt_oss", 0, "may &= back < c.windows[self.layer]", "pass", "attention"),
    ("a window of one more", "gpt_oss", 0,
     "back < c.windows[self.layer]", "back <= c.windows[self.layer]", "attention"),
    ("no YaRN", "gpt_oss", 0,
     "speed = speed * (kept + (1 - kept) / scaling", "speed = speed + 0 * (kept + kept / scaling", "attention"),
    ("no YaRN scale", "gpt_oss", 0,
     "torch.full_like(angles, rope_scales(self.scaling)[0])", "torch.ones_like(angles)", "attention"),
    ("no up + 1", "gpt_oss", 0, "(up + 1) * gate", "up * gate", "mlp"),
    ("no router bias", "gpt_oss", 0,
     "logits = self.router(tokens)", "logits = F.linear(tokens, self.router.weight)", "mlp"),
    ("half-split RoPE", "deepseek_v3", 0, '"interleaved": True', '"interleaved": False', "attention"),
    ("the correction weighs", "deepseek_v3", 0,
     "weights = scores.gather(-1", "weights = (scores + correction).gather(-1", "mlp"),
    ("no limit to groups", "deepseek_v3", 0, "grouped.masked_fill(out[..., None], -math.inf)", "grouped", "mlp"),
    ("no scale", "deepseek_v3", 0, "(scale * weights)", "weights", "mlp"),
    ("no scale of scores", "deepseek_v3", 1, "rope_scales(self.scaling)[1] ** 2", "1", "attention"),
    ("not renormalised", "mixtral", 0,
     "weights = chosen.softmax(-1)", "weights = logits.softmax(-1).gather(-1, experts)", "mlp"),
    ("halves exchanged", "mixtral", 0,
     "gate, up = F.linear(rows, self.gate_up[e]).chunk", "up, gate = F.linear(rows, self.gate_up[e]).chunk", "mlp"),
    ("always renormalised", "qwen3_moe", 1,
     '(family == "qwen3_moe" and renormalise)', 'family == "qwen3_moe"', "mlp"),
    ("no query and key norm", "qwen3_moe", 0, "q, k = self.q_norm(q), self.k_norm(k)", "pass", "attention"),
    ("on the output", "llama4_text", 0,
     'expert(e, weight * rows) if c.family == "llama4_text" else ', "", "mlp"),
    ("RoPE everywhere", "llama4_text", 0, "if not c.rotated or c.rotated[self.layer]:", "if True:", "attention"),
    ("no chunks", "llama4_text", 0,
     "may &= torch.arange(n)[:, None] // c.chunk", "may & torch.arange(n)[:, None] // c.chunk", "attention"),
    ("no temperature", "llama4_text", 0, "q = q * (1 + scale *", "q = q * (1 + 0 *", "attention"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "number", "right", "wrong", "where"), [pytest.param(*row[1:], id=row[0]) for row in WRONG]
)
@torch.no_grad()
def test_a_wrong_ingredient_is_caught_and_named(
    reference: ModuleType, tmp_path: Path, family: str, number: int, right: str, wrong: str, where: str
) -> None:
    """The logits are far off, and the first sub-layer that differs is the one in which the ingredient stands."""
    source = SOURCE.read_text(encoding="utf-8")
    assert source.count(right) >= 1, f"{right!r} is not in the source any more"
    (tmp_path / SOURCE.name).write_text(re.sub(re.escape(right), lambda _: wrong, source), encoding="utf-8")
    changed = load(tmp_path / SOURCE.name)
    config = families.TINY[family][number]
    state = families.course_state(config, families.random_state(config, 1))
    ids = torch.randint(config["vocab_size"], (2, 13), generator=torch.Generator().manual_seed(1))
    models: list[nn.Module] = []
    for module in (changed, reference):
        models.append(module.Decoder(config))
        models[-1].load_state_dict(state)
    outputs: list[Tensor] = [model(ids) for model in models]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2
    found = diff(models[0], models[1], ids, names={name: name for name in names_of(models[1])})
    assert found is not None
    assert re.fullmatch(rf"blocks\.\d+\.{where}", found.name), found


def names_of(model: nn.Module) -> list[str]:
    """The sub-layers that the report compares."""
    return [
        name
        for name, _ in model.named_modules()
        if re.fullmatch(r"tokens|norm|blocks\.\d+\.(norm1|attention|norm2|mlp)", name)
    ]
