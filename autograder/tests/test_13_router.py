"""Hidden tests of chapter 13. The arithmetic expected here is proven to be that of transformers' Mixtral block, and of
OLMoE's and Qwen's for weights as they are, in tests/test_moe_oracle.py; the counts are those of its models.

Every expert runs on every token on this side, so nothing here sorts, loops over chosen tokens or skips anything.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, assert_close, tensor
from autograder.testing import gradients, normal

# -- what is expected -------------------------------------------------------------------------------------------------


def routing(logits: Tensor, top_k: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Weights in float32 and numbers of the chosen experts."""
    weights, experts = torch.topk(functional.softmax(logits.float(), dim=-1), top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True) if renormalise else weights, experts


def mixture(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The weighted sum of experts for x [tokens, d_model]: all of them run on all tokens, most with a weight of 0."""
    gate, up = torch.einsum("td,ehd->eth", x, gate_up).chunk(2, -1)
    each = torch.einsum("eth,edh->ted", functional.silu(gate) * up, down)
    share = torch.zeros(len(x), len(down), dtype=weights.dtype).scatter(1, experts, weights)
    return torch.einsum("te,ted->td", share.to(x.dtype), each)


def block(x: Tensor, weights: dict[str, Tensor], top_k: int, renormalise: bool = True) -> Tensor:
    """A whole layer for x [batch, n, d_model]."""
    tokens = x.flatten(0, 1)
    chosen = routing(functional.linear(tokens, weights["router.weight"]), top_k, renormalise)
    return mixture(tokens, *chosen, weights["gate_up"], weights["down"]).view_as(x)


def mixtral_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of Mixtral 8x7B."""
    d_model, d_hidden, vocabulary = 4096, 14336, 32000
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, d_model),
        "model.norm.weight": (d_model,),
        "lm_head.weight": (vocabulary, d_model),
    }
    for layer in range(32):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (d_model,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (d_model, d_model) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (1024, d_model) for name in "kv"}
        shapes |= {
            f"{at}.mlp.gate.weight": (8, d_model),
            f"{at}.mlp.experts.gate_up_proj": (8, 2 * d_hidden, d_model),
            f"{at}.mlp.experts.down_proj": (8, d_model, d_hidden),
        }
    return shapes


def gpt_oss_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of gpt-oss-20b: its experts have biases."""
    d_model, vocabulary = 2880, 201088
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, d_model),
        "model.norm.weight": (d_model,),
        "lm_head.weight": (vocabulary, d_model),
    }
    for layer in range(24):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{norm}.weight": (d_model,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, n_out, n_in in (("q", 4096, d_model), ("k", 512, d_model), ("v", 512, d_model), ("o", d_model, 4096)):
            shapes |= {
                f"{at}.self_attn.{name}_proj.weight": (n_out, n_in),
                f"{at}.self_attn.{name}_proj.bias": (n_out,),
            }
        shapes |= {
            f"{at}.self_attn.sinks": (64,),
            f"{at}.mlp.router.weight": (32, d_model),
            f"{at}.mlp.router.bias": (32,),
            f"{at}.mlp.experts.gate_up_proj": (32, d_model, 2 * d_model),
            f"{at}.mlp.experts.gate_up_proj_bias": (32, 2 * d_model),
            f"{at}.mlp.experts.down_proj": (32, d_model, d_model),
            f"{at}.mlp.experts.down_proj_bias": (32, d_model),
        }
    return shapes


MIXTRAL = (46_702_792_704, 12_879_925_248)
GPT_OSS = (20_914_757_184, 3_608_307_264)  # without the input embedding


# -- route ------------------------------------------------------------------------------------------------------------

SIZES = ((5, 8, 2), (1, 4, 1), (7, 5, 3), (33, 64, 8), (6, 7, 4), (3, 4, 4), (4, 1, 1))


def routed(student: Student, logits: Tensor, top_k: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The student's weights and experts, of the right shapes, each token's experts different and existing ones."""
    out = student.route(logits, top_k, *args, **kwargs)
    assert isinstance(out, tuple | list), f"route gives a {type(out).__name__}, and it should give weights and experts."
    assert len(out) == 2, f"route gives {len(out)} things, and it should give weights and experts."
    shape = (len(logits), top_k)
    weights = tensor(out[0], shape=shape, name="weights")
    experts = tensor(out[1], shape=shape, name="experts").long()
    assert weights.is_floating_point(), f"The weights are {weights.dtype}: are the two results swapped?"
    assert ((experts >= 0) & (experts < logits.shape[1])).all(), "Some number in experts is that of no expert."
    assert experts.sort(-1).values.diff(dim=-1).ne(0).all(), "A token gets the same expert twice."
    return weights, experts


@pytest.mark.exercise("route", weight=2)
def test_a_token_uses_the_experts_with_the_largest_logits(student: Student) -> None:
    """experts holds the numbers of the top_k largest logits of each token, the largest first."""
    for seed, (tokens, n_experts, top_k) in enumerate(SIZES):
        logits = 2 * normal(tokens, n_experts, seed=seed)
        for renormalise in (True, False):
            _, experts = routed(student, logits, top_k, renormalise)
            claim = f"{tokens} tokens, {n_experts} experts, top_k {top_k}"
            assert_close(experts, logits.topk(top_k).indices, claim=claim, name="experts")


@pytest.mark.exercise("route", weight=2)
def test_renormalised_weights_share_one_among_the_chosen(student: Student) -> None:
    """Renormalised, a weight is the expert's probability divided by the sum over the chosen ones."""
    for seed, (tokens, n_experts, top_k) in enumerate(SIZES):
        logits = 2 * normal(tokens, n_experts, seed=seed)
        weights, _ = routed(student, logits, top_k, renormalise=True)
        claim = f"{tokens} tokens, {n_experts} experts, top_k {top_k}"
        assert_close(weights, routing(logits, top_k, True)[0], claim=claim, name="weights")


@pytest.mark.exercise("route", weight=2)
def test_weights_as_they_are_are_probabilities_among_all(student: Student) -> None:
    """Not renormalised, a weight is the expert's probability in the softmax over all experts."""
    for seed, (tokens, n_experts, top_k) in enumerate(SIZES):
        logits = 2 * normal(tokens, n_experts, seed=seed)
        weights, _ = routed(student, logits, top_k, renormalise=False)
        claim = f"{tokens} tokens, {n_experts} experts, top_k {top_k}"
        assert_close(weights, routing(logits, top_k, False)[0], claim=claim, name="weights")


@pytest.mark.exercise("route", weight=0.5)
def test_weights_are_renormalised_unless_told_otherwise(student: Student) -> None:
    """route(logits, top_k) without a third argument renormalises."""
    logits = 2 * normal(5, 8, seed=1)
    (weights, _), (other, _) = routed(student, logits, 2), routed(student, logits, 2, False)
    assert_close(weights, routing(logits, 2, True)[0], name="weights")
    assert (other < weights).all(), "renormalise=False makes no difference."


@pytest.mark.exercise("route")
def test_an_expert_that_was_not_chosen_counts_only_without_renormalising(student: Student) -> None:
    """A lower logit of an expert that loses anyway leaves renormalised weights alone and raises the others."""
    logits = normal(6, 5, seed=2)
    losers = logits.topk(3).indices[:, -1:]
    lower = logits.scatter_add(1, losers, torch.full((6, 1), -3.0))
    assert_close(routed(student, lower, 2, True)[0], routed(student, logits, 2, True)[0], name="weights")
    before, after = (routed(student, each, 2, False)[0] for each in (logits, lower))
    assert (after > before * 1.001).all(), (
        "As they are, weights are a share of all experts: if a loser's probability falls, theirs must rise."
    )


@pytest.mark.exercise("route")
def test_each_token_is_routed_by_itself(student: Student) -> None:
    """A token gets the same experts and weights alone and in company."""
    logits = 2 * normal(7, 6, seed=3)
    for renormalise in (True, False):
        weights, experts = routed(student, logits, 2, renormalise)
        for t in (0, 3, 6):
            alone, chosen = routed(student, logits[t : t + 1], 2, renormalise)
            assert_close(chosen, experts[t : t + 1], claim=f"token {t} alone", name="experts")
            assert_close(alone, weights[t : t + 1], claim=f"token {t} alone", name="weights")
            assert_close(alone, routing(logits[t : t + 1], 2, renormalise)[0], claim="one token", name="weights")


@pytest.mark.exercise("route")
def test_ties_give_different_experts_and_equal_weights(student: Student) -> None:
    """Between equal logits any choice is right, as long as the experts of a token differ."""
    for n_experts, top_k in ((8, 2), (4, 4), (5, 1)):
        logits = torch.full((3, n_experts), 0.7)
        for renormalise in (True, False):
            weights, _ = routed(student, logits, top_k, renormalise)
            share = 1 / (top_k if renormalise else n_experts)
            assert_close(weights, torch.full((3, top_k), share), claim="where all logits are equal", name="weights")
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0], [2.0, 0.0, 2.0, 1.0]])  # two of the three ones; both twos
    weights, experts = routed(student, logits, 2, False)
    assert_close(logits.gather(1, experts), logits.topk(2).values, name="the chosen logits")
    assert_close(weights, routing(logits, 2, False)[0], claim="with ties", name="weights")


@pytest.mark.exercise("route")
def test_large_logits_give_finite_weights(student: Student) -> None:
    """Logits of ±10⁴ give weights between 0 and 1, never NaN or infinity."""
    logits = torch.tensor([[1e4, -1e4, 0.0, 9999.0], [-1e4, -1e4 + 1, -1e4 - 2, -1e4 - 1], [300.0, 200.0, 100.0, 0.0]])
    for top_k in (1, 2, 3):
        for renormalise in (True, False):
            weights, experts = routed(student, logits, top_k, renormalise)
            expected = routing(logits, top_k, renormalise)[0]
            assert_close(weights, expected, claim=f"logits up to 10⁴, top_k {top_k}", name="weights")
            best = logits.argmax(-1)
            assert_close(experts[:, 0], best, claim="logits up to 10⁴", name="the first of experts")


@pytest.mark.exercise("route")
def test_the_softmax_runs_in_float32(student: Student) -> None:
    """bfloat16 logits are turned to float32 for the softmax and the division; the weights come back as bfloat16."""
    logits = (torch.stack([torch.randperm(16) for _ in range(64)]) / 4 - 2 + normal(64, 1, seed=4)).bfloat16()
    for renormalise in (True, False):
        weights, experts = routed(student, logits, 4, renormalise)
        expected = routing(logits, 4, renormalise)[0].bfloat16()
        assert_close(logits.gather(1, experts), logits.topk(4).values, name="the chosen bfloat16 logits")
        assert_close(weights, expected, atol=0, rtol=1e-6, claim="with bfloat16 logits", name="weights")


@pytest.mark.exercise("route", weight=0.5)
def test_the_results_have_the_dtypes_that_are_promised(student: Student) -> None:
    """weights has the dtype of the logits, experts is int64, and they come in this order."""
    for dtype in (torch.float32, torch.bfloat16):
        logits = normal(3, 8, seed=5, dtype=dtype)
        for renormalise in (True, False):
            weights, experts = routed(student, logits, 2, renormalise)
            assert_close(weights, routing(logits, 2, renormalise)[0].to(dtype), atol=0.01, rtol=0.01, name="weights")
            out = student.route(logits, 2, renormalise)
            tensor(out[1], dtype=torch.int64, name="experts")
            assert_close(logits.gather(1, experts), logits.topk(2).values, name="the chosen logits")


def same_gradients(student: Student, top_k: int, renormalise: bool) -> None:
    logits, upstream = normal(5, 6, seed=6).requires_grad_(), normal(5, top_k, seed=7)
    expected = gradients(routing(logits, top_k, renormalise)[0], upstream, logits=logits)["logits"]
    weights, _ = routed(student, logits, top_k, renormalise)
    found = gradients(weights, upstream, logits=logits)["logits"]
    assert_close(found, expected, claim=f"top_k {top_k}", name="the gradient of the logits")


@pytest.mark.exercise("route")
def test_the_router_learns_through_renormalised_weights(student: Student) -> None:
    """The gradient of the logits goes through the softmax and the division."""
    for top_k in (2, 4, 6, 1):
        same_gradients(student, top_k, renormalise=True)


@pytest.mark.exercise("route")
def test_the_router_learns_through_weights_as_they_are(student: Student) -> None:
    """The gradient of the logits goes through the softmax over all experts, also with a single expert a token."""
    for top_k in (1, 2, 3):
        same_gradients(student, top_k, renormalise=False)


@pytest.mark.exercise("route", weight=0.5)
def test_the_logits_are_left_as_they_were(student: Student) -> None:
    """The logits belong to the caller: an operation that ends in _, or /=, changes them."""
    logits = normal(5, 8, seed=8)
    kept = student.put(logits)
    weights, experts = student.route(kept, 2)
    tensor(experts, shape=(5, 2), name="experts")
    assert_close(weights, routing(logits, 2, True)[0], name="weights")
    assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="the logits")


# -- MoELayer ---------------------------------------------------------------------------------------------------------

NAMES = ("router.weight", "gate_up", "down")


def random_weights(d_model: int, d_hidden: int, n_experts: int, *, seed: int) -> dict[str, Tensor]:
    """All of a layer's weights. Logits come out about 1.5 apart, so that a token's experts are never nearly tied."""
    return {
        "router.weight": 1.5 * normal(n_experts, d_model, seed=seed) / d_model**0.5,
        "gate_up": 1.5 * normal(n_experts, 2 * d_hidden, d_model, seed=seed + 1) / d_model**0.5,
        "down": 1.5 * normal(n_experts, d_model, d_hidden, seed=seed + 2) / d_hidden**0.5,
    }


def loaded(student: Student, weights: dict[str, Tensor], top_k: int, *args: Any, **kwargs: Any) -> Remote:
    """A layer with these weights, in evaluation."""
    n_experts, d_model, d_hidden = weights["down"].shape
    layer = student.MoELayer(d_model, d_hidden, n_experts, top_k, *args, **kwargs)
    assert isinstance(layer, Remote), "MoELayer(d_model, d_hidden, n_experts, top_k) should give a layer."
    layer.load_state_dict(weights)
    layer.eval()
    return layer


def with_idle(weights: dict[str, Tensor], idle: int) -> dict[str, Tensor]:
    """The same weights, but no token whose numbers are all positive chooses expert `idle`."""
    router = weights["router.weight"].clone()
    router[idle] = -20
    return weights | {"router.weight": router}


@pytest.mark.exercise("MoELayer")
def test_the_layer_has_three_weights_and_nothing_else(student: Student) -> None:
    """The state dict holds router.weight, gate_up and down in the shapes that are stated, and all are trained."""
    for d_model, d_hidden, n_experts, top_k in ((8, 6, 3, 2), (4, 5, 1, 1), (6, 16, 5, 5)):
        layer = student.MoELayer(d_model, d_hidden, n_experts, top_k)
        assert isinstance(layer, Remote), "MoELayer(d_model, d_hidden, n_experts, top_k) should give a layer."
        state, trained = layer.state_dict(), student.grads(layer)
        assert isinstance(state, dict), "The layer's state_dict() should be a dict: is MoELayer an nn.Module?"
        assert set(state) == set(NAMES), f"The state dict holds {sorted(map(str, state))}."
        assert set(trained) == set(NAMES), f"The parameters that are trained are {sorted(trained)}."
        shapes = ((n_experts, d_model), (n_experts, 2 * d_hidden, d_model), (n_experts, d_model, d_hidden))
        for name, shape in zip(NAMES, shapes, strict=True):
            value = tensor(state[name], shape=shape, dtype=torch.float32, name=name)
            assert value.isfinite().all(), f"{name} is not finite in a new layer: was it never initialised?"


@pytest.mark.exercise("MoELayer", weight=3)
def test_the_layer_matches_mixtrals_block(student: Student) -> None:
    """With the same weights the layer gives what transformers' Mixtral block gives, for 1 to 4 experts a token."""
    sizes = ((2, 5, 8, 6, 4, 2), (1, 9, 6, 10, 5, 1), (3, 7, 8, 4, 8, 3), (2, 3, 4, 8, 6, 4), (2, 65, 4, 2, 16, 2))
    for seed, (batch, n, d_model, d_hidden, n_experts, top_k) in enumerate(sizes):
        weights = random_weights(d_model, d_hidden, n_experts, seed=10 * seed)
        x = normal(batch, n, d_model, seed=100 + seed)
        claim = f"x {tuple(x.shape)}, {n_experts} experts, top_k {top_k}"
        assert_close(loaded(student, weights, top_k)(x), block(x, weights, top_k), claim=claim)


@pytest.mark.exercise("MoELayer", weight=1.5)
def test_the_layer_keeps_weights_as_they_are_if_told_so(student: Student) -> None:
    """With renormalise=False each expert counts with its probability among all, as in OLMoE and Switch."""
    for seed, (n_experts, top_k) in enumerate(((4, 1), (5, 2), (8, 3), (6, 4))):
        weights, x = random_weights(8, 6, n_experts, seed=10 * seed), normal(2, 5, 8, seed=200 + seed)
        claim = f"{n_experts} experts, top_k {top_k}"
        expected = block(x, weights, top_k, renormalise=False)
        assert_close(loaded(student, weights, top_k, renormalise=False)(x), expected, claim=claim)


@pytest.mark.exercise("MoELayer", weight=2.5)
def test_gradients_reach_x_the_experts_and_the_router(student: Student) -> None:
    """Everything learns: the gradients of x and of the three weights are those of transformers' block."""
    for seed, (n_experts, top_k, renormalise) in enumerate(((4, 2, True), (4, 2, False), (5, 1, False), (6, 4, True))):
        weights, upstream = random_weights(8, 6, n_experts, seed=10 * seed), normal(2, 5, 8, seed=3)
        x, leaves = normal(2, 5, 8, seed=2).requires_grad_(), {}
        for name, value in weights.items():
            leaves[name] = value.clone().requires_grad_()
        expected = gradients(block(x, leaves, top_k, renormalise), upstream, x=x, **leaves)
        layer = loaded(student, weights, top_k, renormalise)
        found = {"x": gradients(layer(x), upstream, x=x)["x"], **student.grads(layer)}
        for name, value in expected.items():
            assert found.get(name) is not None, f"No gradient reaches {name}."
            claim = f"top_k {top_k}, renormalise={renormalise}"
            assert_close(found[name], value, atol=1e-3, rtol=1e-3, claim=claim, name=f"the gradient of {name}")


def its_own_only(out: Tensor, expected: Tensor, x: Tensor, theirs: Tensor, claim: str) -> None:
    """That NaN reaches the rows `theirs` of the result and no other row, nor another row of the gradient of x."""
    others = "what did not choose it"
    assert_close(out.detach()[~theirs], expected.detach()[~theirs], claim=claim, name=others)
    assert out[theirs].isnan().all(), f"{claim}, and a token that chose it does not notice."
    upstream = torch.where(theirs[..., None], 0.0, normal(*x.shape, seed=1))
    found, wanted = (gradients(result, upstream, x=x)["x"][~theirs] for result in (out, expected))
    assert_close(found, wanted, atol=1e-3, rtol=1e-3, claim=claim, name=f"the gradient of {others}")


@pytest.mark.exercise("MoELayer", weight=1.5)
def test_an_expert_runs_for_its_own_tokens_only(student: Student) -> None:
    """An expert whose weights are NaN spoils the tokens that chose it, and no other token."""
    for seed, (n_experts, top_k, bad) in enumerate(((4, 2, 1), (5, 1, 4), (8, 3, 0))):
        weights, x = random_weights(8, 6, n_experts, seed=10 * seed), normal(2, 9, 8, seed=seed)
        _, experts = routing(functional.linear(x.flatten(0, 1), weights["router.weight"]), top_k, True)
        theirs = (experts == bad).any(-1).view(2, 9)
        broken = {name: value.clone() for name, value in weights.items()}
        broken["gate_up"][bad], broken["down"][bad] = torch.nan, torch.nan
        out = tensor(loaded(student, broken, top_k)(x.requires_grad_()), shape=x.shape)
        its_own_only(out, block(x, weights, top_k), x, theirs, f"expert {bad} is NaN")


@pytest.mark.exercise("MoELayer")
def test_an_expert_that_nobody_chose_changes_nothing(student: Student) -> None:
    """Without a token an expert gives nothing, and its weights get a gradient of zero or none."""
    x, upstream = normal(2, 5, 8, seed=1).abs(), normal(2, 5, 8, seed=2)
    for idle in (0, 2, 3):
        weights = with_idle(random_weights(8, 6, 4, seed=30), idle)
        layer = loaded(student, weights, 2)
        out = tensor(layer(x.requires_grad_()), shape=x.shape)
        assert_close(out, block(x, weights, 2).detach(), claim=f"nobody chose expert {idle}")
        gradients(out, upstream, x=x)
        for name, grad in student.grads(layer).items():
            if name != "router.weight" and grad is not None:
                grad = tensor(grad, shape=weights[name].shape, name=f"the gradient of {name}")
                assert not grad[idle].any(), f"Nobody chose expert {idle}, and {name} gets a gradient there."
                assert grad[1].any(), f"Expert 1 was chosen, and {name} gets no gradient there."


@pytest.mark.exercise("MoELayer")
def test_a_single_expert_is_a_feed_forward_layer(student: Student) -> None:
    """With one expert there is nothing to choose: the layer is that expert, with a weight of 1."""
    for seed, renormalise in enumerate((True, False)):
        weights, x = random_weights(8, 6, 1, seed=40 + seed), normal(3, 5, 8, seed=seed)
        gate, up = functional.linear(x, weights["gate_up"][0]).chunk(2, -1)
        expected = functional.linear(functional.silu(gate) * up, weights["down"][0])
        layer = loaded(student, weights, 1, renormalise)
        assert_close(layer(x), expected, claim=f"one expert, renormalise={renormalise}")


@pytest.mark.exercise("MoELayer")
def test_ties_take_some_experts_and_each_of_them_once(student: Student) -> None:
    """If the router has no preference, a token gets the mean of some top_k different experts."""
    for n_experts, top_k in ((4, 2), (3, 3), (4, 1)):
        weights, x = random_weights(8, 6, n_experts, seed=50), normal(2, 3, 8, seed=3)
        weights["router.weight"] = torch.zeros(n_experts, 8)
        out = tensor(loaded(student, weights, top_k)(x), shape=x.shape, dtype=torch.float32).detach()
        tokens, equal = x.flatten(0, 1), torch.full((6, top_k), 1 / top_k)
        possible = torch.stack(
            [
                mixture(tokens, equal, torch.tensor(chosen).expand(6, -1), weights["gate_up"], weights["down"])
                for chosen in itertools.combinations(range(n_experts), top_k)
            ]
        )
        fits = (out.flatten(0, 1) - possible).abs().amax(-1).lt(1e-4).any(0)
        assert fits.all(), f"{int((~fits).sum())} of 6 tokens are the mean of no {top_k} different experts."


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_one_text_and_one_token_work(student: Student) -> None:
    """A batch of one, a text of one token, and both at once."""
    weights = random_weights(8, 6, 4, seed=60)
    layer = loaded(student, weights, 2)
    for batch, n in ((1, 7), (5, 1), (1, 1)):
        x = normal(batch, n, 8, seed=batch)
        assert_close(layer(x), block(x, weights, 2), claim=f"x {tuple(x.shape)}")


@pytest.mark.exercise("MoELayer")
def test_tokens_do_not_meet(student: Student) -> None:
    """A token gives the same output alone and in company: no other token changes its experts or its result."""
    weights, x = random_weights(8, 6, 5, seed=70), normal(3, 4, 8, seed=4)
    layer = loaded(student, weights, 2)
    together = tensor(layer(x), shape=x.shape).detach()
    assert together.flatten(0, 1).std(0).gt(1e-3).all(), "All tokens give the same output."
    assert not torch.allclose(together, x, atol=1e-3), "The layer gives x back as it came."
    for b, t in ((0, 0), (2, 3), (1, 2)):
        alone = layer(x[b : b + 1, t : t + 1])
        assert_close(alone, together[b : b + 1, t : t + 1], claim=f"token {t} of text {b} alone")
    order = torch.tensor([2, 0, 3, 1])
    assert_close(layer(x[:, order]), together[:, order], claim="with the tokens shuffled")


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_the_router_is_asked_once_for_all_tokens(student: Student) -> None:
    """forward calls self.router a single time, and gets the logits of every token."""
    heard: list[Any] = []
    weights, x = random_weights(8, 6, 4, seed=80), normal(2, 5, 8, seed=5)
    layer = loaded(student, weights, 2)
    layer.router.register_forward_hook(lambda module, inputs, logits: heard.append(logits))
    assert_close(layer(x), block(x, weights, 2))
    assert len(heard) == 1, f"self.router is called {len(heard)} times in one forward."
    logits = tensor(heard[0], name="what self.router gives")
    assert logits.numel() == 40, f"For 10 tokens and 4 experts self.router gives the shape {tuple(logits.shape)}."
    expected = functional.linear(x, weights["router.weight"]).flatten(0, 1)
    assert_close(logits.detach().reshape(10, 4), expected, name="what self.router gives")


@pytest.mark.exercise("MoELayer")
def test_a_bfloat16_layer_gives_bfloat16(student: Student) -> None:
    """A layer turned to bfloat16 takes and gives bfloat16."""
    weights = {name: value.bfloat16().float() for name, value in random_weights(8, 6, 4, seed=90).items()}
    x = normal(2, 5, 8, seed=6).bfloat16()
    for renormalise in (True, False):
        layer = loaded(student, weights, 2, renormalise)
        layer.bfloat16()
        expected = block(x.float(), weights, 2, renormalise).bfloat16()
        assert_close(layer(x), expected, atol=0.1, rtol=0.05, claim=f"in bfloat16, renormalise={renormalise}")


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_training_and_evaluation_agree(student: Student) -> None:
    """No dropout and no noise: the same x gives the same output every time, in training and in evaluation."""
    weights, x = random_weights(8, 6, 4, seed=95), normal(2, 5, 8, seed=7)
    layer, expected = loaded(student, weights, 2), block(x, weights, 2)
    layer.train()
    assert_close(layer(x), expected, claim="in training")
    assert_close(layer(x), expected, claim="called twice")
    tensor(layer(normal(3, 7, 8, seed=8)), shape=(3, 7, 8))
    layer.eval()
    assert_close(layer(x), expected, claim="in evaluation, after a call with other sizes")


@pytest.mark.exercise("MoELayer", weight=0.5)
def test_x_is_left_as_it_was(student: Student) -> None:
    """x belongs to the caller: an operation that ends in _ changes it, and the residual stream with it."""
    weights, x = random_weights(8, 6, 4, seed=97), normal(2, 5, 8, seed=9)
    kept = student.put(x)
    assert_close(loaded(student, weights, 2)(kept), block(x, weights, 2))
    assert_close(kept.get(), x, atol=0, rtol=0, claim="after the call", name="x")


# -- grouped_experts --------------------------------------------------------------------------------------------------


def some_routing(tokens: int, n_experts: int, top_k: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Weights of any size and sign, and different experts for each token, in no order."""
    draw = torch.Generator().manual_seed(seed)
    experts = torch.stack([torch.randperm(n_experts, generator=draw)[:top_k] for _ in range(tokens)])
    return torch.randn(tokens, top_k, generator=draw), experts


def matrices(d_model: int, d_hidden: int, n_experts: int, *, seed: int) -> tuple[Tensor, Tensor]:
    weights = random_weights(d_model, d_hidden, n_experts, seed=seed)
    return weights["gate_up"], weights["down"]


@pytest.mark.exercise("grouped_experts", weight=3)
def test_each_token_gets_the_weighted_sum_of_its_experts(student: Student) -> None:
    """Row t of the result is what token t's own experts make of token t, each with its own weight."""
    sizes = ((5, 8, 16, 4, 2), (7, 16, 8, 3, 1), (9, 8, 8, 5, 3), (6, 8, 24, 4, 4), (130, 8, 8, 16, 2))
    for seed, (tokens, d_model, d_hidden, n_experts, top_k) in enumerate(sizes):
        x, routing_ = normal(tokens, d_model, seed=seed), some_routing(tokens, n_experts, top_k, seed=seed)
        layer = matrices(d_model, d_hidden, n_experts, seed=10 * seed)
        claim = f"x {tuple(x.shape)}, {n_experts} experts, top_k {top_k}"
        assert_close(student.grouped_experts(x, *routing_, *layer), mixture(x, *routing_, *layer), claim=claim)


@pytest.mark.exercise("grouped_experts")
def test_weights_count_as_they_are(student: Student) -> None:
    """Twice the weights give twice the result, zero gives zero: nothing is renormalised here."""
    x, (weights, experts), layer = normal(6, 8, seed=1), some_routing(6, 4, 2, seed=1), matrices(8, 8, 4, seed=1)
    for factor in (2.0, -0.5):
        scaled = student.grouped_experts(x, factor * weights, experts, *layer)
        assert_close(scaled, factor * mixture(x, weights, experts, *layer), claim=f"weights times {factor:g}")
    weights[:, 1] = 0
    weights[3] = 0
    out = student.grouped_experts(x, weights, experts, *layer)
    assert_close(out, mixture(x, weights, experts, *layer), claim="with some weights of zero")


@pytest.mark.exercise("grouped_experts", weight=1.5)
def test_experts_without_a_token_work(student: Student) -> None:
    """The first, the last or any other expert may be idle, and one expert may get every token."""
    x, layer = normal(5, 8, seed=2), matrices(8, 16, 6, seed=2)
    weights = normal(5, 2, seed=3)
    for name, pairs in (
        ("the first ones idle", [[4, 5], [5, 3], [3, 4], [5, 4], [4, 3]]),
        ("the last ones idle", [[0, 1], [2, 0], [1, 2], [0, 2], [1, 0]]),
        ("one in the middle idle", [[0, 5], [1, 4], [5, 3], [4, 0], [3, 1]]),
        ("all to the same two", [[3, 1]] * 5),
    ):
        experts = torch.tensor(pairs)
        expected = mixture(x, weights, experts, *layer)
        assert_close(student.grouped_experts(x, weights, experts, *layer), expected, claim=name)
    for only in (0, 5):
        experts = torch.full((5, 1), only)
        expected = mixture(x, weights[:, :1], experts, *layer)
        out = student.grouped_experts(x, weights[:, :1], experts, *layer)
        assert_close(out, expected, claim=f"all to expert {only}")


@pytest.mark.exercise("grouped_experts", weight=1.5)
def test_sorted_experts_run_for_their_own_tokens_only(student: Student) -> None:
    """An expert whose weights are NaN spoils the tokens that chose it, and no other token."""
    x, layer = normal(9, 8, seed=4), matrices(8, 8, 5, seed=4)
    for bad, top_k in ((0, 2), (4, 1), (2, 3)):
        weights, experts = some_routing(9, 5, top_k, seed=5)
        theirs = (experts == bad).any(-1)
        broken = tuple(each.clone() for each in layer)
        for each in broken:
            each[bad] = torch.nan
        out = tensor(student.grouped_experts(x.requires_grad_(), weights, experts, *broken), shape=x.shape)
        its_own_only(out, mixture(x, weights, experts, *layer), x, theirs, f"expert {bad} is NaN")


@pytest.mark.exercise("grouped_experts", weight=2)
def test_gradients_reach_all_four(student: Student) -> None:
    """The gradients of x, weights, gate_up and down are those of the plain weighted sum; an idle expert's are zero."""
    for seed, (tokens, n_experts, top_k) in enumerate(((6, 4, 2), (3, 8, 1), (7, 5, 3))):
        weights, experts = some_routing(tokens, n_experts, top_k, seed=seed)
        weights[1] = 0  # may become another number, so it has a gradient
        gate_up, down = matrices(8, 16, n_experts, seed=seed)
        upstream = normal(tokens, 8, seed=20 + seed)
        leaves = {"x": normal(tokens, 8, seed=seed), "weights": weights, "gate_up": gate_up, "down": down}
        leaves = {name: value.requires_grad_() for name, value in leaves.items()}
        x, weights, gate_up, down = leaves.values()
        expected = gradients(mixture(x, weights, experts, gate_up, down), upstream, **leaves)
        found = gradients(student.grouped_experts(x, weights, experts, gate_up, down), upstream, **leaves)
        for name, value in expected.items():
            claim = f"{tokens} tokens, {n_experts} experts, top_k {top_k}"
            assert_close(found[name], value, atol=1e-3, rtol=1e-3, claim=claim, name=f"the gradient of {name}")


@pytest.mark.exercise("grouped_experts")
def test_the_order_of_tokens_and_choices_does_not_matter(student: Student) -> None:
    """Shuffled tokens give shuffled rows, and a token's experts may be named in any order."""
    x, (weights, experts), layer = normal(8, 8, seed=6), some_routing(8, 5, 3, seed=6), matrices(8, 8, 5, seed=6)
    expected = mixture(x, weights, experts, *layer)
    assert_close(student.grouped_experts(x, weights, experts, *layer), expected, claim="as they come")
    turned = torch.tensor([2, 0, 1])
    out = student.grouped_experts(x, weights[:, turned], experts[:, turned], *layer)
    assert_close(out, expected, claim="with the choices of each token in another order")
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    out = student.grouped_experts(x[order], weights[order], experts[order], *layer)
    assert_close(out, expected[order], claim="with the tokens in another order")


@pytest.mark.exercise("grouped_experts")
def test_one_token_and_one_expert_work(student: Student) -> None:
    """A single token, a single expert, all experts at once."""
    for seed, (tokens, n_experts, top_k) in enumerate(((1, 4, 2), (5, 1, 1), (1, 1, 1), (1, 3, 3))):
        x, routing_ = normal(tokens, 8, seed=seed), some_routing(tokens, n_experts, top_k, seed=seed)
        layer = matrices(8, 8, n_experts, seed=seed)
        claim = f"{tokens} tokens, {n_experts} experts, top_k {top_k}"
        assert_close(student.grouped_experts(x, *routing_, *layer), mixture(x, *routing_, *layer), claim=claim)


@pytest.mark.exercise("grouped_experts")
def test_bfloat16_stays_bfloat16(student: Student) -> None:
    """With everything in bfloat16 the result is bfloat16."""
    x, (weights, experts), layer = normal(6, 8, seed=7), some_routing(6, 4, 2, seed=7), matrices(8, 16, 4, seed=7)
    x, weights, gate_up, down = (value.bfloat16() for value in (x, weights, *layer))
    expected = mixture(x.float(), weights.float(), experts, gate_up.float(), down.float()).bfloat16()
    out = student.grouped_experts(x, weights, experts, gate_up, down)
    assert_close(out, expected, atol=0.15, rtol=0.05, claim="in bfloat16")


@pytest.mark.exercise("grouped_experts", weight=0.5)
def test_no_input_is_changed(student: Student) -> None:
    """x, weights, experts and the matrices belong to the caller, all five."""
    x, (weights, experts), layer = normal(6, 8, seed=8), some_routing(6, 4, 2, seed=8), matrices(8, 8, 4, seed=8)
    given = {"x": x, "weights": weights, "experts": experts, "gate_up": layer[0], "down": layer[1]}
    kept = {name: student.put(value) for name, value in given.items()}
    assert_close(student.grouped_experts(*kept.values()), mixture(x, weights, experts, *layer))
    for name, value in kept.items():
        assert_close(value.get(), given[name], atol=0, rtol=0, claim="after the call", name=name)


# -- count_parameters -------------------------------------------------------------------------------------------------


def counted(student: Student, shapes: dict[str, tuple[int, ...]], *args: Any, **kwargs: Any) -> tuple[int, int]:
    out = student.count_parameters(shapes, *args, **kwargs)
    assert isinstance(out, tuple | list), f"count_parameters gives a {type(out).__name__}: total and active are wanted."
    assert len(out) == 2, f"count_parameters gives {len(out)} numbers: total and active are wanted."
    assert all(type(number) is int for number in out), (
        f"Both numbers should be int, and they are {', '.join(type(number).__name__ for number in out)}."
    )
    return int(out[0]), int(out[1])


def same_counts(found: tuple[int, int], expected: tuple[int, int], of: str) -> None:
    for name, number, wanted in zip(("total", "active"), found, expected, strict=True):
        assert number == wanted, f"{of}: {number:,} is not the number of {name} parameters."


@pytest.mark.exercise("count_parameters")
def test_the_router_counts_in_full_and_the_experts_by_share(student: Student) -> None:
    """top_k of the experts are active, and all of the router: what decides runs for every token."""
    for n_experts, size, router, top_k in ((4, 1_000_000, 10_000, 1), (4, 1_000_000, 10_000, 3), (7, 30, 11, 2)):
        shapes = {"router.weight": (router,), "experts.weight": (n_experts, size)}
        expected = (n_experts * size + router, top_k * size + router)
        same_counts(counted(student, shapes, top_k), expected, f"{n_experts} experts, top_k {top_k}")


@pytest.mark.exercise("count_parameters", weight=2)
def test_mixtral_is_counted_to_the_last_parameter(student: Student) -> None:
    """The shapes of Mixtral 8x7B give its published 47 and 13 billion, exactly as transformers counts them."""
    shapes, one_of_all_layers = mixtral_shapes(), 32 * 3 * 14336 * 4096
    for top_k in (2, 1, 5):
        expected = (MIXTRAL[0], MIXTRAL[1] + (top_k - 2) * one_of_all_layers)
        same_counts(counted(student, shapes, top_k), expected, f"Mixtral 8x7B, top_k {top_k}")


@pytest.mark.exercise("count_parameters", weight=1.5)
def test_without_the_embedding_it_is_not_active_but_stored(student: Student) -> None:
    """embedding=False takes the input embedding out of the active ones, not the output matrix, and not the total."""
    total, active = counted(student, gpt_oss_shapes(), 4, embedding=False)
    same_counts((total, active), GPT_OSS, "gpt-oss-20b without its embedding")
    with_it = counted(student, gpt_oss_shapes(), 4)
    same_counts(with_it, (GPT_OSS[0], GPT_OSS[1] + 201088 * 2880), "gpt-oss-20b with its embedding")


@pytest.mark.exercise("count_parameters", weight=1.5)
def test_names_that_look_alike_are_told_apart(student: Student) -> None:
    """Only a part of a name that is exactly `experts`, or exactly `embed_tokens`, counts as such."""
    always = {
        "layers.0.mlp.shared_experts.down": (3, 5),
        "layers.0.mlp.shared_expert.up": (2, 7),
        "layers.0.experts_norm.weight": (4,),
        "expert.weight": (6, 2),
        "unembed_tokens.weight": (10, 3),
        "embed_tokens_norm.weight": (3,),
        "embed.positions": (9, 3),
    }
    common = 15 + 14 + 4 + 12 + 30 + 3 + 27
    routed = {"layers.0.mlp.experts.down": (4, 3, 5), "experts": (6, 10), "1.experts.down.scale.low": (4, 2)}
    shapes = always | routed | {"model.embed_tokens.weight": (10, 3), "text.embed_tokens": (5, 3)}
    total, active = common + 60 + 60 + 8 + 45, common + 30 + 20 + 4
    same_counts(counted(student, shapes, 2), (total, active + 45), "names that look alike")
    same_counts(counted(student, shapes, 2, False), (total, active), "names that look alike, no embedding")


@pytest.mark.exercise("count_parameters")
def test_layers_may_differ_in_their_experts(student: Student) -> None:
    """Each tensor says how many experts it has: 16 in one layer, 64 in another, none in a third."""
    shapes = {
        "0.experts.down": (16, 8, 4),
        "0.experts.bias": (16, 4),
        "1.experts.down": (64, 8, 4),
        "1.experts.scale": (64,),
        "2.mlp.down": (8, 40),
        "2.scale": (),
    }
    total = 16 * 36 + 64 * 33 + 320 + 1
    for top_k in (1, 6, 16):
        expected = (total, top_k * (36 + 33) + 321)
        same_counts(counted(student, shapes, top_k), expected, f"layers of 16, 64 and no experts, top_k {top_k}")


@pytest.mark.exercise("count_parameters", weight=0.5)
def test_a_model_without_experts_uses_all_it_has(student: Student) -> None:
    """A dense model has as many active parameters as it stores."""
    dense = {name: shape for name, shape in mixtral_shapes().items() if "experts" not in name}
    total, active = counted(student, dense, 2)
    same_counts((total, active), (1_605_636_096, 1_605_636_096), "Mixtral without its experts")


@pytest.mark.exercise("count_parameters", weight=0.5)
def test_counts_are_exact_at_any_size(student: Student) -> None:
    """Whole numbers all the way: a float, or an integer of 64 bits, loses the last digits of a large one."""
    shapes = {"experts.weight": (4, 2**40 + 1, 2**40 + 3), "norm": (1,)}
    one = (2**40 + 1) * (2**40 + 3)
    same_counts(counted(student, shapes, 3), (4 * one + 1, 3 * one + 1), "a very large model")
