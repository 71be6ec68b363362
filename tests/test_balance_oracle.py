"""Chapter 14's reference against the published implementations in transformers: the hidden tests rest on it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from autograder.testing import normal
from ichimon.measure import ROOT
from ichimon.notebook import load

REFERENCE = load(ROOT / "solutions/14-balance.py")


@pytest.mark.parametrize(("n_experts", "top_k"), [(4, 1), (8, 2), (6, 3)])
def test_per_token_is_mixtrals_loss(n_experts: int, top_k: int) -> None:
    """Value and gradient, for one layer: of several, transformers takes the shares and probabilities together."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    ours, theirs = (normal(33, n_experts, seed=top_k).requires_grad_() for _ in range(2))
    loss = REFERENCE.load_balancing_loss(ours, top_k, per="token")
    published = load_balancing_loss_func((theirs,), n_experts, top_k)
    assert_close(loss, published)
    loss.backward()
    published.backward()
    assert_close(ours.grad, theirs.grad)


def test_with_one_expert_both_conventions_are_switchs_loss() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import load_balancing_loss_func

    logits = normal(33, 8, seed=1)
    published = load_balancing_loss_func(logits.softmax(-1)[None], logits.argmax(-1)[None])
    for per in ("routing", "token"):
        assert_close(REFERENCE.load_balancing_loss(logits, 1, per=per), published)


def test_the_z_loss_is_switchs() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    logits = 3 * normal(33, 8, seed=2)
    assert_close(REFERENCE.router_z_loss(logits), router_z_loss_func(logits[None]))


def test_capacity_by_position_is_switchs() -> None:
    """Its top-1 router drops what comes after the capacity, and keeps the probability as it is."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    config = SwitchTransformersConfig(d_model=16, num_experts=4, expert_capacity=10, router_jitter_noise=0.0)
    router = SwitchTransformersTop1Router(config).eval()
    with torch.no_grad():
        router.classifier.weight.copy_(normal(4, 16, seed=3))
        dispatched, probabilities, logits = router(normal(1, 40, 16, seed=4))
    weights, experts = logits[0].softmax(-1).topk(1)
    left, kept = REFERENCE.with_capacity(weights, experts, 4, 1.0)
    assert not kept.all()
    assert_close(kept[:, 0], dispatched[0].any(-1))
    assert_close(left, probabilities[0] * kept)
