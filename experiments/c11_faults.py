"""Which faults of a decoder does a comparison with a new model not see?

The reference solution's decoder is compared with itself, with one fault planted: a wrong RoPE, norms without their
gains, a window that is one too long, and so on. Once its parameters are those of a new model, as transformers draws
them (matrices normal with standard deviation 0.02, gains 1, biases 0); once all of them are normal with 0.4, gains and
biases too. Same ids, same parameters in both.

Judged by: the largest change of any logit, over random ids and five seeds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

Change = Callable[[Any], None]  # of a model, in place
INVISIBLE = ("gains_ignored", "bias_ignored", "rope_before_qk_norm")


def heads(weight: Tensor, d_head: int) -> Tensor:
    return weight.unflatten(0, (-1, d_head))


def interleaved(model: Any) -> None:
    """RoPE on neighbouring channels is RoPE on halves after this permutation of each head's channels."""
    for block in model.blocks:
        for proj in (block.attention.q_proj, block.attention.k_proj):
            split = heads(proj.weight.data, block.attention.config.d_head)
            proj.weight.data = torch.cat([split[:, ::2], split[:, 1::2]], 1).flatten(0, 1)


def tiled(model: Any) -> None:
    """Query head i reads key head i % n_kv_heads: the same as changing places among the query heads."""
    for block in model.blocks:
        c, attention = block.attention.config, block.attention
        order = [i for j in range(c.n_kv_heads) for i in range(c.n_heads) if i % c.n_kv_heads == j]
        attention.q_proj.weight.data = heads(attention.q_proj.weight.data, c.d_head)[order].flatten(0, 1)
        attention.o_proj.weight.data = heads(attention.o_proj.weight.data.T, c.d_head)[order].flatten(0, 1).T


def unscaled(model: Any) -> None:
    for block in model.blocks:
        block.attention.q_proj.weight.data *= math.sqrt(block.attention.config.d_head)


def no_gains(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.data.fill_(1)


def no_bias(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()


def swapped(model: Any) -> None:
    for block in model.blocks:
        block.mlp.gate_proj, block.mlp.up_proj = block.mlp.up_proj, block.mlp.gate_proj


def centred(model: Any) -> None:
    """LayerNorm without a bias for each RMSNorm."""
    for owner in list(model.modules()):
        for name, norm in list(owner.named_children()):
            if isinstance(norm, nn.RMSNorm):
                layer = nn.LayerNorm(norm.normalized_shape, norm.eps or 0.0, bias=False)
                layer.weight.data = norm.weight.data
                setattr(owner, name, layer)


def functions(**changed: Callable[..., Tensor]) -> SimpleNamespace:
    """PyTorch's functions that the reference uses, some of them changed."""
    given = {"silu": F.silu, "scaled_dot_product_attention": F.scaled_dot_product_attention}
    return SimpleNamespace(**given | changed)


def sees_all(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, enable_gqa: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa)


class LateNorms:
    """Norms of queries and keys that are applied after RoPE, just before attention."""

    def __init__(self, model: Any) -> None:
        self.norms, self.calls = [], 0
        for block in model.blocks:
            self.norms.append((block.attention.q_norm, block.attention.k_norm))
            block.attention.q_norm, block.attention.k_norm = nn.Identity(), nn.Identity()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        on_q, on_k = self.norms[self.calls % len(self.norms)]
        self.calls += 1
        return F.scaled_dot_product_attention(on_q(q), on_k(k), v, **more)


FAULTS: dict[str, dict[str, Any]] = {
    "no_rope": {"no_rope": True},
    "interleaved_rope": {"change": interleaved},
    "rope_base": {"config": {"rope_theta": 5e5}},
    "no_scale": {"change": unscaled},
    "geglu": {"functions": functions(silu=F.gelu)},
    "gains_ignored": {"change": no_gains},
    "gate_up_swapped": {"change": swapped},
    "layer_norm": {"change": centred},
    "tiled_keys": {"change": tiled},
    "no_causal_mask": {"functions": functions(scaled_dot_product_attention=sees_all)},
    "eps_times_ten": {"config": {"norm_eps": 1e-5}},
    "bias_ignored": {"family": {"qkv_bias": True}, "change": no_bias},
    "rope_before_qk_norm": {"family": {"qk_norm": True}, "late": True},
    "no_window": {"family": {"windows": (4, 4)}, "config": {"windows": (None, None)}},
    "window_one_longer": {"family": {"windows": (4, 4)}, "config": {"windows": (5, 5)}},
}


@contextmanager
def planted(reference: Any, fault: dict[str, Any], model: Any) -> Iterator[None]:
    """The reference with this fault in what it calls."""
    kept = reference.F, reference.rope_frequencies
    if "change" in fault:
        fault["change"](model)
    if "functions" in fault:
        reference.F = fault["functions"]
    if fault.get("late"):
        reference.F = functions(scaled_dot_product_attention=LateNorms(model))
    if fault.get("no_rope"):
        reference.rope_frequencies = lambda d_head, *_: torch.zeros(d_head // 2)
    try:
        yield
    finally:
        reference.F, reference.rope_frequencies = kept


def drawn(model: nn.Module, new: bool, seed: int, std: float) -> dict[str, Tensor]:
    """Parameters of a new model, or random ones."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if not new:
            found[name] = std * noise
        elif "norm" in name:
            found[name] = torch.ones_like(noise)
        else:
            found[name] = torch.zeros_like(noise) if name.endswith("bias") else 0.02 * noise
    return found


def change_of_logits(reference: ModuleType, fault: dict[str, Any], config: Config, new: bool, seed: int) -> float:
    right = replace(reference.DecoderConfig(**config["model"]), **fault.get("family", {}))
    wrong = replace(right, **fault.get("config", {}))
    ids = torch.randint(right.vocabulary, config["ids"], generator=torch.Generator().manual_seed(seed))
    healthy, ill = reference.Decoder(right), reference.Decoder(wrong)
    state = drawn(healthy, new, seed, config["std"])
    for model in (healthy, ill):
        model.load_state_dict(state)
    with torch.no_grad():
        expected = healthy(ids)
        with planted(reference, fault, ill):
            found = ill(ids)
    return (found - expected).abs().max().item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/11-llama-qwen-mistral.py")
    found: Results = {"new": {}, "random": {}}
    for kind in found:
        for name in config["faults"]:
            changes = [change_of_logits(reference, FAULTS[name], config, kind == "new", seed) for seed in seeds]
            found[kind][name] = estimate(changes) | {"most": max(changes), "least": min(changes)}
    passed = [name for name, row in found["new"].items() if row["most"] < config["tolerance"]]
    return found | {"passed_new": passed, "n_passed_new": len(passed), "n_faults": len(config["faults"])}


def verdict(found: Results) -> Verdict:
    new, random = found["new"], found["random"]
    hidden = all(new[name]["most"] < 1e-5 for name in INVISIBLE if name in new)
    shown = all(random[name]["least"] > 0.1 for name in random if name != "eps_times_ten")
    base = new["rope_base"]["most"] < 1e-3
    eps = new["eps_times_ten"]["least"] > random["eps_times_ten"]["most"]
    if hidden and shown and base and eps:
        return "strong"
    return (
        "weak"
        if hidden and all(random[name]["mean"] > new[name]["mean"] for name in INVISIBLE if name in new)
        else "null"
    )


EXPERIMENT = Experiment(
    name="c11_faults",
    claim=(
        "With the parameters of a new model, ignoring the gains of the norms, ignoring Qwen2's biases and turning "
        "before Qwen3's norm change no logit by more than 1e-5, and a wrong base of RoPE changes none by more than "
        "1e-3. With every parameter random, each fault but one changes some logit by more than 0.1. The one is an eps "
        "ten times too large, which changes a new model more than a random one. All in each of five seeds."
    ),
    run=run,
    verdict=verdict,
    config={
        "model": {
            "vocabulary": 97,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "d_head": 8,
            "d_hidden": 48,
        },
        "ids": [2, 24],
        "std": 0.4,
        "tolerance": 1e-3,
        "faults": list(FAULTS),
    },
    reduced={"faults": ["rope_base", "gains_ignored", "eps_times_ten", "rope_before_qk_norm", "no_window"]},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
