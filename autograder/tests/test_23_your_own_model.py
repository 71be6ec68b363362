"""Hidden tests of chapter 23. Expected values come from PyTorch, from counting, and from laws; none from the reference.

`oracle` is a decoder of plain functions; tests/test_capstone.py shows that it is transformers' Llama and Mixtral. What
is built, called, drawn and read is counted here, on the trusted side.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import normal

Sizes = dict[str, Any]
Weights = dict[str, Tensor]

DENSE: Sizes = {
    "vocabulary": 13,
    "d_model": 10,
    "n_layers": 2,
    "n_heads": 6,
    "n_kv_heads": 2,
    "d_head": 4,
    "d_hidden": 14,
    "rope_theta": 500.0,
}
MOE: Sizes = {**DENSE, "n_layers": 3, "n_heads": 4, "n_kv_heads": 1, "d_head": 6, "n_experts": 5, "top_k": 2}


def ids_of(*shape: int, vocabulary: int = 13, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def refusal(call: Callable[[], object]) -> StudentError | None:
    """The error that a call raises, if it raises one."""
    try:
        call()
    except Unfinished:
        raise
    except StudentError as error:
        return error
    return None


# -- Model ----------------------------------------------------------------------------------------------------------


def shapes(c: Sizes) -> dict[str, tuple[int, ...]]:
    """The state dict of a model with standard parts, as the prompt gives it."""
    d, hidden, experts = c["d_model"], c["d_hidden"], c.get("n_experts", 0)
    q, kv = c["n_heads"] * c["d_head"], c["n_kv_heads"] * c["d_head"]
    layer: dict[str, tuple[int, ...]] = {
        "norm1.weight": (d,),
        "attention.q_proj.weight": (q, d),
        "attention.k_proj.weight": (kv, d),
        "attention.v_proj.weight": (kv, d),
        "attention.o_proj.weight": (d, q),
        "norm2.weight": (d,),
    }
    if experts:
        layer |= {"mlp.router.weight": (experts, d), "mlp.gate_up": (experts, 2 * hidden, d)}
        layer |= {"mlp.down": (experts, d, hidden)}
    else:
        layer |= {"mlp.gate.weight": (hidden, d), "mlp.up.weight": (hidden, d), "mlp.down.weight": (d, hidden)}
    blocks = {f"blocks.{i}.{name}": shape for i in range(c["n_layers"]) for name, shape in layer.items()}
    return {"tokens.weight": (c["vocabulary"], d), **blocks, "norm.weight": (d,)}


def drawn(found: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """Random weights of these shapes: none is what it was at first, and no gain is 1."""
    return {
        name: (1 if len(shape) == 1 else 0) + (0.3 if len(shape) == 1 else 1.4 * shape[-1] ** -0.5) * draw
        for i, (name, shape) in enumerate(sorted(found.items()))
        for draw in [normal(*shape, seed=1000 * seed + i)]
    }


def rms(x: Tensor, w: Weights, name: str) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-6)


def turned(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = positions[:, None].double() * theta ** (-torch.arange(half).double() / half)
    cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angles.cos(), angles.sin()))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


def gated(x: Tensor, w: Weights, name: str, c: Sizes) -> Tensor:
    if not c.get("n_experts"):
        gate, up, down = (w[f"{name}.{part}.weight"] for part in ("gate", "up", "down"))
        return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    scores, chosen = (x @ w[f"{name}.router.weight"].T).topk(c["top_k"])
    rows = x[..., None, :, None]  # a token once for each of its experts
    gate, up = (w[f"{name}.gate_up"][chosen] @ rows).chunk(2, -2)
    out = w[f"{name}.down"][chosen] @ (functional.silu(gate) * up)
    return (scores.softmax(-1)[..., None] * out[..., 0]).sum(-2)


def oracle(c: Sizes, w: Weights, ids: Tensor, **odd: Callable[..., Tensor]) -> Tensor:
    """The logits of a pre-norm decoder with grouped queries, RoPE and a tied read-out, with other parts where told."""
    norm, rope, attend = odd.get("norm", rms), odd.get("rope", turned), odd.get("attention", softmax_attention)
    mlp, repeat = odd.get("mlp", gated), odd.get("repeat_kv", lambda part, n: part.repeat_interleave(n, 1))
    n = ids.shape[1]
    positions, mask = torch.arange(n), odd.get("chunk_mask", lambda m: torch.ones(m, m, dtype=torch.bool).tril())(n)
    x = w["tokens.weight"][ids]
    for i in range(c["n_layers"]):
        y = norm(x, w, f"blocks.{i}.norm1")
        at = f"blocks.{i}.attention"
        q, k, v = (
            (y @ w[f"{at}.{letter}_proj.weight"].T).view(*ids.shape, -1, c["d_head"]).transpose(1, 2)
            for letter in "qkv"
        )
        q, k = (rope(part, positions, c["rope_theta"]) for part in (q, k))
        k, v = (repeat(part, c["n_heads"] // c["n_kv_heads"]) for part in (k, v))
        x = x + attend(q, k, v, mask).transpose(1, 2).flatten(2) @ w[f"{at}.o_proj.weight"].T
        x = x + mlp(norm(x, w, f"blocks.{i}.norm2"), w, f"blocks.{i}.mlp", c)
    return norm(x, w, "norm") @ w["tokens.weight"].T


def built(student: Student, c: Sizes, parts: Any = None) -> tuple[Remote, dict[str, tuple[int, ...]]]:
    """A new model, and the shapes of its state dict."""
    model = student.Model(student.Config(**c), student.Parts() if parts is None else parts)
    assert isinstance(model, Remote), "Model(config, parts) should give a model."
    state = model.state_dict()
    assert isinstance(state, dict), "The model's state_dict() should be a dict: is Model an nn.Module?"
    return model, {str(name): tuple(tensor(value, name=str(name)).shape) for name, value in state.items()}


def loaded(student: Student, c: Sizes, parts: Any = None, seed: int = 0) -> tuple[Remote, Weights]:
    """A model with random weights, and these."""
    model, found = built(student, c, parts)
    if parts is None:
        assert found == shapes(c), "The state dict is not that of the prompt: the first test of Model says more."
    weights = drawn(found, seed)
    model.load_state_dict(weights)
    return model, weights


@pytest.mark.exercise("Model")
def test_the_state_dict_has_the_names_and_shapes_of_the_prompt(student: Student) -> None:
    """Every tensor of the table is there, with its shape, and nothing else; the read-out has no matrix of its own."""
    for c in (DENSE, MOE):
        _, found = built(student, c)
        right = shapes(c)
        assert set(found) == set(right), f"These names are missing or too many: {sorted(set(found) ^ set(right))}."
        wrong = sorted(name for name in right if found[name] != right[name])
        assert not wrong, f"{wrong[0]} has the shape {found[wrong[0]]}, which is not that of the prompt."


@pytest.mark.exercise("Model", weight=2)
def test_with_standard_parts_it_is_a_llama(student: Student) -> None:
    """With random weights the logits are those of another implementation: batch 3, an odd length, 3 heads a group."""
    for n_layers, n in ((1, 1), (2, 7), (1, 40)):
        c = {**DENSE, "n_layers": n_layers}
        model, weights = loaded(student, c, seed=n)
        ids = ids_of(3, n, seed=n)
        assert_close(model(ids), oracle(c, weights, ids), claim=f"{n_layers} layers, {n} tokens", name="the logits")


@pytest.mark.exercise("Model")
def test_with_experts_it_is_a_mixtral(student: Student) -> None:
    """Where the config has experts, each layer has parts.experts in the place of the feed-forward part."""
    for n, k in ((5, 2), (5, 1), (1, 1)):
        c = {**MOE, "n_experts": n, "top_k": k}
        model, weights = loaded(student, c)
        ids = ids_of(2, 9)
        assert_close(model(ids), oracle(c, weights, ids), claim=f"{k} of {n} experts", name="the logits")


@pytest.mark.exercise("Model")
def test_every_parameter_gets_its_gradient(student: Student) -> None:
    """The gradient of each parameter is that of the oracle; the embedding is used twice, and gets both."""
    model, weights = loaded(student, DENSE)
    ids = ids_of(2, 6)
    logits = tensor(model(ids), shape=(2, 6, 13), name="the logits")
    assert logits.requires_grad, "No gradient flows through the logits: something on the way was detached or rebuilt."
    upstream = normal(2, 6, 13, seed=5)
    logits.backward(upstream)
    for weight in weights.values():
        weight.requires_grad_()
    oracle(DENSE, weights, ids).backward(upstream)
    grads = student.grads(model)
    for name, weight in weights.items():
        assert grads.get(name) is not None, f"No gradient reaches {name}."
        right = torch.zeros(()) if weight.grad is None else weight.grad
        assert_close(grads[name], right, atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("Model")
def test_no_position_sees_the_future(student: Student) -> None:
    """A later token changes, and the logits before it stay, also where there are experts; those from it on change."""
    for c in (DENSE, MOE):
        model, _ = loaded(student, c)
        ids = ids_of(2, 8)
        changed = ids.clone()
        changed[:, 5] = (changed[:, 5] + 1) % 13
        one, other = (tensor(model(x), shape=(2, 8, 13), name="the logits") for x in (ids, changed))
        assert_close(one[:, :5], other[:, :5], atol=1e-6, rtol=0, name="what comes before the change")
        for t in (5, 6, 7):
            assert not torch.allclose(one[:, t], other[:, t], atol=1e-5), f"Position {t} does not notice position 5."


@pytest.mark.exercise("Model", weight=0.5)
def test_texts_of_a_batch_do_not_meet(student: Student) -> None:
    """Each text of a batch gets what it would get alone."""
    model, _ = loaded(student, DENSE)
    ids = ids_of(4, 4)  # as many texts as positions
    together = tensor(model(ids), shape=(4, 4, 13), name="the logits")
    for row in (0, 3):
        assert_close(model(ids[row : row + 1]), together[row : row + 1], claim=f"text {row} alone", name="the logits")


def odd_mlp(x: Tensor, w: Weights, name: str, c: Sizes) -> Tensor:
    return torch.tanh(x @ w[f"{name}.only"].mT) @ w[f"{name}.only"]


def odd_experts(x: Tensor, w: Weights, name: str, c: Sizes) -> Tensor:
    return c["d_hidden"] / c["top_k"] * torch.sin(x * w[f"{name}.only"].sum(0))


ODD: dict[str, tuple[str, Callable[..., Tensor]]] = {  # as the stand-ins compute them
    "norm": ("norm", lambda x, w, name: x * w[f"{name}.weight"] + x.mean(-1, keepdim=True)),
    "feed_forward": ("mlp", odd_mlp),
    "experts": ("mlp", odd_experts),
    "rope": ("rope", lambda x, at, theta: x + torch.cos(at[:, None] * theta**-0.25) * x.flip(-1)),
    "attention": ("attention", lambda q, k, v, mask: mask.to(v.dtype) / (1 + (q @ k.mT).abs()) @ v),
    "repeat_kv": ("repeat_kv", lambda x, n: torch.cat([(1 + i) * x for i in range(n)], 1)),
    "chunk_mask": ("chunk_mask", lambda n: torch.ones(n, n, dtype=torch.bool).tril().triu(-2)),
}


def follows(student: Student, name: str, c: Sizes = DENSE) -> None:
    model, weights = loaded(student, c, student.odd_parts(name))
    where, function = ODD[name]
    needed = {tensor_name for tensor_name in shapes(c) if where != "mlp" or ".mlp." not in tensor_name}
    needed |= {f"blocks.{i}.mlp.only" for i in range(c["n_layers"])} if where == "mlp" else set()
    assert needed == set(weights), f"With another {name} in the box, the state dict has other names than it should."
    ids = ids_of(2, 7)
    right = oracle(c, weights, ids, **{where: function})
    assert_close(model(ids), right, atol=1e-3, rtol=1e-3, claim=f"with another {name} in the box", name="the logits")


def follows_with_a_cache(student: Student, name: str) -> None:
    """Assert that two texts, in chunks and each with a cache of its own, get the oracle's logits with this odd part."""
    model, weights = loaded(student, DENSE, student.odd_parts(name))
    where, function = ODD[name]
    for seed in (1, 2):
        ids, cache = ids_of(2, 7, seed=seed), student.Parts().cache()
        found = torch.cat([tensor(model(x, cache), shape=(2, x.shape[1], 13)) for x in ids.split([4, 1, 2], 1)], 1)
        claim = f"with another {name} in the box, text {seed} in chunks of 4, 1 and 2"
        right = oracle(DENSE, weights, ids, **{where: function})
        assert_close(found, right, atol=1e-3, rtol=1e-3, claim=claim, name="the logits")


@pytest.mark.exercise("Model", weight=0.5)
def test_another_norm_makes_another_model(student: Student) -> None:
    """All three kinds of norm, before attention, before the feed-forward part and at the end, come from parts.norm."""
    follows(student, "norm")


@pytest.mark.exercise("Model", weight=0.5)
def test_another_feed_forward_part_makes_another_model(student: Student) -> None:
    """Without experts, mlp is what parts.feed_forward(d_model, d_hidden) makes."""
    follows(student, "feed_forward")


@pytest.mark.exercise("Model", weight=0.5)
def test_other_experts_make_another_model(student: Student) -> None:
    """With experts, mlp is what parts.experts(d_model, d_hidden, n_experts, top_k) makes."""
    follows(student, "experts", MOE)


@pytest.mark.exercise("Model", weight=0.5)
def test_another_rope_makes_another_model(student: Student) -> None:
    """Queries and keys, and nothing else, go through parts.rope, with the config's rope_theta."""
    follows(student, "rope")


@pytest.mark.exercise("Model", weight=0.5)
def test_another_attention_makes_another_model(student: Student) -> None:
    """The heads come from parts.attention(q, k, v, mask)."""
    follows(student, "attention")


@pytest.mark.exercise("Model", weight=0.5)
def test_another_way_to_share_makes_another_model(student: Student) -> None:
    """Keys and values reach attention through parts.repeat_kv."""
    follows(student, "repeat_kv")


@pytest.mark.exercise("Model", weight=0.5)
def test_another_mask_makes_another_model(student: Student) -> None:
    """Who may see whom is what parts.chunk_mask says."""
    follows(student, "chunk_mask")


@pytest.mark.exercise("Model", weight=0.5)
def test_each_part_is_used_in_each_layer_and_no_more(student: Student) -> None:
    """In one pass attention and mlp are called once a layer, the norm twice a layer and at the end."""
    told: list[str] = []
    for c, kind in ((DENSE, "feed_forward"), (MOE, "experts")):
        model, _ = loaded(student, c, student.telling_parts(told.append))
        told.clear()
        tensor(model(ids_of(1, 4)), shape=(1, 4, 13), name="the logits")
        layers = c["n_layers"]
        for name, right in (("attention", layers), (kind, layers), ("norm", 2 * layers + 1)):
            assert told.count(name) == right, f"{name} is called {told.count(name)} times in {layers} layers."
        for name in ("rope", "repeat_kv"):
            assert layers <= told.count(name) <= 2 * layers, f"{name} is called {told.count(name)} times."
        assert "chunk_mask" in told, "chunk_mask is never called."


@pytest.mark.exercise("Model", weight=2)
def test_in_chunks_with_a_cache_it_says_the_same(student: Student) -> None:
    """Cut a text as you like: with a cache the chunks together give the logits of the whole, whatever the parts are."""
    for c, sizes in ((DENSE, (5, 1, 1, 2)), (MOE, (1, 4, 3)), ({**DENSE, "n_layers": 3}, (2, 2))):
        model, weights = loaded(student, c)
        ids, cache = ids_of(3, sum(sizes), seed=sizes[0]), student.Parts().cache()
        found = torch.cat([tensor(model(x, cache), shape=(3, x.shape[1], 13)) for x in ids.split(list(sizes), 1)], 1)
        assert_close(found, oracle(c, weights, ids), claim=f"chunks of {sizes}", name="the logits")
    for name in ("rope", "chunk_mask"):  # this rope is not relative: it tells where a chunk begins
        follows_with_a_cache(student, name)


@pytest.mark.exercise("Model")
def test_the_cache_gets_few_heads_and_only_what_is_new(student: Student) -> None:
    """cache.update(layer, k, v) is called once a layer, with n_kv_heads heads, and with the chunk's positions alone."""
    told: list[tuple[int, list[int], list[int]]] = []
    cache = student.TellingCache(lambda layer, k, v: told.append((layer, list(k), list(v))))
    model, _ = loaded(student, DENSE)
    for n in (4, 1):
        told.clear()
        tensor(model(ids_of(2, n), cache), shape=(2, n, 13), name="the logits")
        assert [layer for layer, _, _ in told] == [0, 1], f"update is called for the layers {[row[0] for row in told]}."
        for _, k, v in told:
            assert k == v == [2, 2, n, 4], f"For a chunk of {n}, update gets keys {k} and values {v} (6 heads share 2)."
    model, weights = loaded(student, {**DENSE, "rope_theta": 10_000.0})
    ids, cache, nothing = ids_of(2, 5), student.Parts().cache(), torch.zeros(2, 2, 0, 4)
    model(ids, cache)
    kept, _ = cache.update(0, nothing, nothing)
    x = rms(weights["tokens.weight"][ids], weights, "blocks.0.norm1") @ weights["blocks.0.attention.k_proj.weight"].T
    right = turned(x.view(2, 5, 2, 4).transpose(1, 2), torch.arange(5), 10_000.0)
    assert_close(kept, right, claim="in layer 0", name="the keys that the cache got, which should be turned already")


@pytest.mark.exercise("Model", weight=0.5)
def test_it_remembers_nothing_without_a_cache(student: Student) -> None:
    """The same text gives the same logits again, whatever was read in between, with a cache or without."""
    model, weights = loaded(student, DENSE)
    ids, cache = ids_of(2, 5), student.Parts().cache()
    for other in (ids_of(2, 9, seed=1), ids_of(2, 5, seed=2)):
        model(other, cache)
        assert_close(model(ids), oracle(DENSE, weights, ids), claim="after another text", name="the logits")


@pytest.mark.exercise("Model", weight=0.5)
def test_heads_that_cannot_be_shared_are_an_error(student: Student) -> None:
    """Where n_heads is not divisible by n_kv_heads, a ValueError names both numbers; where it is, there is none."""
    assert refusal(lambda: built(student, {**DENSE, "n_heads": 6, "n_kv_heads": 6})) is None, "6 and 6 heads are fine."
    for heads, kv in ((7, 3), (5, 2), (2, 6)):
        c = {**DENSE, "n_heads": heads, "n_kv_heads": kv}
        raised = refusal(functools.partial(built, student, c))
        assert isinstance(raised, ValueError), f"{heads} heads that share {kv} raise no ValueError."
        named = {int(number) for number in re.findall(r"\d+", str(raised))}
        assert {heads, kv} <= named, f"The sentence does not name both numbers: {raised}"


@pytest.mark.exercise("Model", weight=0.5)
def test_the_embedding_begins_small(student: Student) -> None:
    """tokens.weight begins normal with a standard deviation of 0.02, so that an untrained model is unsure."""
    model, _ = built(student, {**DENSE, "vocabulary": 300, "d_model": 40})
    weight = tensor(model.state_dict().get("tokens.weight"), shape=(300, 40), name="tokens.weight")
    assert abs(weight.std().item() / 0.02 - 1) < 0.05, f"The standard deviation is {weight.std().item():.3g}."
    assert abs(weight.mean().item()) < 0.001, "The mean is not 0."
    assert 2.5 < (weight.abs().max() / weight.std()).item() < 7, "These are not normal numbers."
    logits = tensor(model(ids_of(2, 5)), shape=(2, 5, 300), name="the logits")
    assert logits.std() > 0, "All logits are the same."


@pytest.mark.exercise("Model", weight=0.5)
def test_the_dtype_is_kept(student: Student) -> None:
    """In float64 the logits are float64 and exact, in bfloat16 they are bfloat16."""
    model, weights = loaded(student, DENSE)
    ids = ids_of(2, 6)
    model.double()
    right = oracle(DENSE, {name: value.double() for name, value in weights.items()}, ids)
    assert_close(model(ids), right, atol=1e-8, rtol=1e-8, claim="in float64", name="the logits")
    model.bfloat16()
    assert_close(model(ids), right.bfloat16(), atol=0.5, rtol=0.2, claim="in bfloat16", name="the logits")


@pytest.mark.exercise("Model", weight=0.5)
def test_the_parts_of_your_own_fit_together(student: Student) -> None:
    """A model of what is in PARTS says what one of standard parts says. Parts that you did not gather are PyTorch's."""
    names = ("norm", "feed_forward", "experts", "rope", "attention", "repeat_kv", "chunk_mask")

    def trouble(*own: str) -> str:
        for c in (DENSE, MOE):
            try:
                model, found = built(student, c, student.own_parts(*own))
                if found != shapes(c):
                    return "gives the state dict other names or shapes"
                weights = drawn(found)
                model.load_state_dict(weights)
                cache = student.own_parts("cache").cache() if "cache" in own else student.Parts().cache()
                ids = ids_of(2, 6)
                logits = torch.cat([tensor(model(x, cache)) for x in ids.split([4, 1, 1], 1)], 1)
                right = oracle(c, weights, ids)
            except Unfinished:
                raise
            except StudentError as error:
                return f"raises {error.sentence}"
            if logits.shape != right.shape or not torch.allclose(logits, right, 1e-3, 1e-3):
                return "makes the logits wrong"
        return ""

    assert not trouble(), "With standard parts the logits are wrong: the other tests say more."
    if wrong := trouble(*names, "cache"):
        alone = {name: said for name in (*names, "cache") if (said := trouble(name))}
        name, said = next(iter(alone.items()), ("", wrong))
        raise AssertionError(
            f"Of your own parts, {name} {said}." if name else f"All of your own parts together: {said}."
        )


# -- train ----------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """What the stand-ins call Small, here."""

    def __init__(self, vocabulary: int = 7, d_model: int = 6) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.gain = nn.Parameter(torch.ones(d_model))
        self.read = nn.Linear(d_model, vocabulary)
        self.stack = nn.Parameter(torch.ones(2, 1, d_model))
        self.frozen = nn.Parameter(torch.ones(vocabulary, 1), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.tokens(ids) * self.gain + self.stack.sum((0, 1)))
        found: Tensor = self.read(x) + self.frozen[:, 0]
        return found


@functools.cache
def small_weights() -> Weights:
    return {name: 0.7 * normal(*value.shape, seed=i) for i, (name, value) in enumerate(Small().state_dict().items())}


def small(student: Student) -> Remote:
    model = student.Small(7, 6)
    model.load_state_dict(small_weights())
    return model


def batch(i: int) -> Tensor:
    """Batch i: the later, the more the same tokens come again, so that gradients are of very different size."""
    return ids_of(3, 6, vocabulary=7 if i % 2 else 2, seed=i)


def trained(
    steps: int,
    *,
    lr: float = 1e-3,
    warmup: int = 0,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    accumulate: int = 1,
    rate: Callable[[int], float] | None = None,
) -> tuple[Weights, list[float]]:
    """The oracle: the weights after training, and the losses. Decay, moments and limit are written out."""
    weights = {name: value.double() for name, value in small_weights().items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in weights.items()}
    losses = []
    for step in range(steps):
        leaves = {name: value.clone().requires_grad_(name != "frozen") for name, value in weights.items()}
        ids = torch.cat([batch(step * accumulate + i) for i in range(accumulate)])
        logits = torch.func.functional_call(Small().double(), leaves, ids[:, :-1])
        loss = functional.cross_entropy(logits.mT, ids[:, 1:])
        loss.backward()
        losses.append(loss.item())
        grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
        limit = min(1.0, clip / (norm + 1e-6))
        progress = (step - warmup) / max(1, steps - warmup)
        usual = (
            lr * (step + 1) / (warmup + 1)
            if step < warmup
            else 0.1 * lr + 0.45 * lr * (1 + math.cos(math.pi * progress))
        )
        now = usual if rate is None else rate(step)
        for name, grad in grads.items():
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * limit * grad)
            second.mul_(0.95).add_(0.05 * (limit * grad).square())
            if weights[name].dim() > 1:
                weights[name] = weights[name] * (1 - now * weight_decay)
            root = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            weights[name] = weights[name] - now * first / (1 - 0.9 ** (step + 1)) / root
    return {name: value.float() for name, value in weights.items()}, losses


def same_training(student: Student, steps: int, claim: str, **how: Any) -> None:
    model, (right, losses) = small(student), trained(steps, **how)
    found = student.train(model, batch, steps, student.Parts(), **how)
    same_losses(found, losses, claim)
    state = model.state_dict()
    for name, value in right.items():
        assert_close(state[name], value, atol=3e-5, rtol=0, claim=claim, name=name)


def same_losses(found: Any, losses: Sequence[float], claim: str) -> None:
    assert isinstance(found, list), "train should return a list of losses."
    assert all(type(loss) is float for loss in found), "A loss in the list should be a plain float."
    assert len(found) == len(losses), f"{claim}: there are {len(found)} losses after {len(losses)} steps."
    assert_close(torch.tensor(found), torch.tensor(losses), atol=2e-4, rtol=1e-3, claim=claim, name="the losses")


@pytest.mark.exercise("train", weight=2)
def test_it_takes_the_steps_of_adamw(student: Student) -> None:
    """AdamW with betas 0.9 and 0.95: after several steps every weight is where another implementation has it."""
    same_training(student, 6, "6 steps", lr=0.02, weight_decay=0.0, clip=1e6)


@pytest.mark.exercise("train")
def test_matrices_decay_and_vectors_do_not(student: Student) -> None:
    """weight_decay is applied to parameters with two dimensions or more; gains and biases have none."""
    same_training(student, 4, "with a decay of 2", lr=0.05, weight_decay=2.0, clip=1e6)
    same_training(student, 3, "with the decay of the signature", lr=0.5, clip=1e6)


@pytest.mark.exercise("train")
def test_the_gradient_of_a_step_is_limited(student: Student) -> None:
    """The norm of all gradients together is at most clip; one that is smaller stays as it is."""
    same_training(student, 5, "with a limit of 0.2", lr=0.05, weight_decay=0.0, clip=0.2)
    same_training(student, 5, "with a limit of 3", lr=0.05, weight_decay=0.0, clip=3.0)
    same_training(student, 5, "with the limit of the signature", lr=0.05, weight_decay=0.0)


@pytest.mark.exercise("train", weight=1.5)
def test_a_step_of_several_batches_is_a_step_of_their_mean(student: Student) -> None:
    """With accumulate, the loss and the gradient of a step are those of all its batches as one."""
    same_training(student, 4, "3 batches a step", lr=0.03, weight_decay=0.0, clip=1e6, accumulate=3)
    same_training(student, 4, "2 batches a step, with a limit", lr=0.03, weight_decay=0.0, clip=0.3, accumulate=2)
    same_training(
        student, 4, "2 batches a step, seldom at the limit", lr=0.03, weight_decay=0.0, clip=0.9, accumulate=2
    )


@pytest.mark.exercise("train")
def test_each_batch_is_taken_once_and_in_order(student: Student) -> None:
    """Step s takes the batches s · accumulate and on: 0, 1, 2, … in all, none left out and none twice."""
    for steps, accumulate in ((4, 1), (3, 4)):
        asked: list[int] = []

        def counted(i: int, asked: list[int] = asked) -> Tensor:
            asked.append(i)
            return batch(i)

        student.train(small(student), counted, steps, student.Parts(), accumulate=accumulate)
        assert asked == list(range(steps * accumulate)), (
            f"{steps} steps of {accumulate} batches ask for the batches {asked}."
        )


@pytest.mark.exercise("train")
def test_the_rate_of_each_step_is_what_the_part_says(student: Student) -> None:
    """parts.learning_rate is asked for each step, with peak, warmup, steps and final; what it says is the rate."""
    asked: list[tuple[Any, ...]] = []
    rates = [0.0, 0.03, 0.0, 0.01]

    def rate(step: int, peak: float, warmup: int, steps: int, final: float) -> float:
        asked.append((step, peak, warmup, steps, final))
        told = peak / 0.5 * (warmup / 2) * (steps / 4) * (final / 0.05)  # 1: who tells it otherwise learns otherwise
        return told * rates[step] if step in range(4) else 0.0

    model = small(student)
    found = student.train(model, batch, 4, student.parts_with_rates(rate), lr=0.5, warmup=2, weight_decay=0.3, clip=1e6)
    steps = {call[0] for call in asked}
    assert steps - {4} == {0, 1, 2, 3}, (  # one of PyTorch's schedulers asks for the rate behind the last step, too
        f"learning_rate is asked for the steps {sorted(steps)} of 4."
    )
    for _, peak, warmup, n, final in asked:
        assert (peak, warmup, n) == (0.5, 2, 4), f"learning_rate is told peak {peak}, warmup {warmup}, steps {n}."
        assert math.isclose(final, 0.05), f"learning_rate is told to end at {final:g} of a peak of 0.5."
    right, losses = trained(4, weight_decay=0.3, clip=1e6, rate=lambda step: rates[step])
    same_losses(found, losses, "with rates of the test's")
    for name, value in right.items():
        assert_close(model.state_dict()[name], value, atol=3e-5, rtol=0, claim="with rates of the test's", name=name)


@pytest.mark.exercise("train", weight=0.5)
def test_warm_up_and_cosine_are_as_the_part_has_them(student: Student) -> None:
    """With the standard part the rate climbs for warmup steps and then follows half a cosine down to a tenth."""
    same_training(student, 7, "3 of 7 steps of warm-up", lr=0.05, warmup=3, weight_decay=0.0, clip=1e6)


@pytest.mark.exercise("train")
def test_what_is_frozen_stays(student: Student) -> None:
    """A parameter that does not require a gradient is as it was, to the last bit, and still does not require one."""
    model = small(student)
    model.tokens.requires_grad_(False)
    losses = student.train(model, batch, 3, student.Parts(), lr=0.1, weight_decay=1.0)
    assert isinstance(losses, list), "train should return a list of losses."
    state = model.state_dict()
    for name in ("frozen", "tokens.weight"):
        assert_close(state[name], small_weights()[name], atol=0, rtol=0, name=name)
    assert not torch.allclose(state["read.weight"], small_weights()["read.weight"], atol=1e-3), "Nothing was learnt."
    grads = student.grads(model)
    assert grads["tokens.weight"] is None, "A frozen embedding has a gradient now."


@pytest.mark.exercise("train", weight=0.5)
def test_gradients_from_before_count_for_nothing(student: Student) -> None:
    """A model that brings gradients along is trained as one that has none."""
    for clip, claim in ((1e6, "without a limit"), (2.0, "with a limit, and a frozen parameter among them")):
        right, _ = trained(4, lr=0.05, weight_decay=0.0, clip=clip)
        model = small(student)
        student.give_gradients(model)
        student.train(model, batch, 4, student.Parts(), lr=0.05, weight_decay=0.0, clip=clip)
        found = model.state_dict()["read.weight"]
        assert_close(found, right["read.weight"], atol=3e-5, rtol=0, claim=claim, name="read.weight")


@pytest.mark.exercise("train", weight=0.5)
def test_no_steps_change_nothing(student: Student) -> None:
    """With 0 steps the list is empty and the model is as it was; with 1 there is one loss."""
    model = small(student)
    assert student.train(model, batch, 0, student.Parts()) == [], "0 steps should give an empty list."
    for name, value in small_weights().items():
        assert_close(model.state_dict()[name], value, atol=0, rtol=0, name=name)
    same_losses(student.train(model, batch, 1, student.Parts()), trained(1)[1], "1 step")


@pytest.mark.exercise("train", weight=0.5)
def test_it_learns(student: Student) -> None:
    """On a stream in which each token says what comes next, the loss falls close to 0."""

    def counting(i: int) -> Tensor:
        return (torch.arange(8) + ids_of(4, 1, vocabulary=7, seed=i)) % 7

    losses = student.train(small(student), counting, 60, student.Parts(), lr=0.1, warmup=5, weight_decay=0.0)
    assert isinstance(losses, list), "train should return a list of losses."
    assert all(type(loss) is float for loss in losses), "A loss in the list should be a plain float."
    assert len(losses) == 60, f"60 steps give {len(losses)} losses."
    assert losses[0] > 1, f"It begins at a loss of {losses[0]:.2f}, before anything was learnt."
    assert losses[-1] < 0.3, f"It ends at a loss of {losses[-1]:.2f}."


# -- adapt ----------------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """What the stand-ins call Nested, here, with `lora` added where it is given."""

    def __init__(self, vocabulary: int = 7, d_model: int = 6) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        inner = {"q_proj": nn.Linear(d_model, d_model, bias=False), "v_proj": nn.Linear(d_model, d_model)}
        seq = nn.Linear(d_model, d_model)
        self.blocks = nn.ModuleList([nn.ModuleDict({"attention": nn.ModuleDict(inner), "seq_proj": seq})])
        self.q_proj = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.k_proj = nn.Linear(d_model, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        block: Any = self.blocks[0]
        x = self.tokens(ids)
        x = x + block["attention"]["v_proj"](torch.tanh(block["attention"]["q_proj"](x)))
        found: Tensor = self.k_proj(self.norm(x + self.q_proj(block["seq_proj"](x))))
        return found


@functools.cache
def nested_weights() -> Weights:
    return {name: 0.7 * normal(*value.shape, seed=i) for i, (name, value) in enumerate(Nested().state_dict().items())}


def nested(student: Student) -> Remote:
    model = student.Nested(7, 6)
    model.load_state_dict(nested_weights())
    return model


def said_by_nested(ids: Tensor) -> Tensor:
    model = Nested()
    model.load_state_dict(nested_weights())
    with torch.no_grad():
        found: Tensor = model(ids)
    return found


def adapted(
    student: Student, steps: int, parts: Any = None, model: Any = None, **how: Any
) -> tuple[Remote, list[float]]:
    """The adapted copy and its losses. how: of adapt, but for batches=."""
    how = {"rank": 2, "alpha": 4.0, "batches": batch, **how}
    batches = how.pop("batches")
    parts = student.Parts() if parts is None else parts
    found = student.adapt(nested(student) if model is None else model, batches, steps, parts, **how)
    assert isinstance(found, tuple | list), "adapt should return the adapted copy and its losses."
    assert len(found) == 2, f"adapt should return two things, the copy and its losses, not {len(found)}."
    copied, losses = found
    assert isinstance(copied, Remote), "The first thing that adapt returns should be a model."
    assert isinstance(losses, list), "The second thing that adapt returns should be a list of losses."
    assert all(type(loss) is float for loss in losses), "A loss in the list should be a plain float."
    return copied, losses


def state_of(module: Remote) -> Weights:
    """What a model holds, by name."""
    state = module.state_dict()
    assert isinstance(state, dict), "The copy's state_dict() should be a dict: is it an nn.Module?"
    return {str(name): tensor(value, name=str(name)) for name, value in state.items()}


def adapters(*layers: str) -> set[str]:
    return {f"{layer}.lora_{letter}" for layer in layers for letter in "AB"}


@pytest.mark.exercise("adapt", weight=2)
def test_every_target_gets_an_adapter_and_nothing_else_does(student: Student) -> None:
    """An nn.Linear is a target where the last part of its dotted name is one, in whichever module it stands."""
    for how, layers in (
        ({}, ("q_proj", "blocks.0.attention.q_proj", "blocks.0.attention.v_proj")),
        ({"targets": ["k_proj"]}, ("k_proj",)),
        ({"targets": ("seq_proj", "norm", "tokens")}, ("blocks.0.seq_proj",)),
        ({"targets": ("k_proj", "attention", "v_pro")}, ("k_proj",)),
    ):
        copied, _ = adapted(student, 0, **how)
        state = state_of(copied)
        found = {name for name in state if ".lora_" in name}
        assert found == adapters(*layers), f"The adapters are {sorted(found)} with {how or 'the default targets'}."
        for layer in layers:
            for part in ("weight", "bias"):
                if f"{layer}.{part}" in nested_weights():
                    name = f"{layer}.linear.{part}"
                    assert_close(state.get(name), nested_weights()[f"{layer}.{part}"], atol=0, rtol=0, name=name)


@pytest.mark.exercise("adapt")
def test_the_adapters_are_the_part_of_the_box(student: Student) -> None:
    """parts.lora is called once for each target, with its layer, the rank and alpha."""
    told: list[tuple[Any, ...]] = []
    copied, _ = adapted(student, 0, student.telling_lora(lambda *what: told.append(what)), rank=3, alpha=5.0)
    found = sum(name.endswith(".lora_A") for name in state_of(copied))
    assert len(told) == 3, f"parts.lora is called {len(told)} times for 3 targets, and the copy has {found} adapters."
    assert all(call == (6, 6, 3, 5.0) for call in told), f"parts.lora is told (in, out, rank, alpha) {told}."
    told.clear()
    adapted(student, 0, student.telling_lora(lambda *what: told.append(what)), rank=1, alpha=2.0, targets=("k_proj",))
    assert told == [(6, 7, 1, 2.0)], f"parts.lora is told (in, out, rank, alpha) {told} for a layer of 6 to 7."


@pytest.mark.exercise("adapt")
def test_before_training_it_says_what_the_model_says(student: Student) -> None:
    """An adapter begins at 0: without a step the copy gives the logits of the model."""
    ids = ids_of(2, 5, vocabulary=7)
    copied, losses = adapted(student, 0)
    assert losses == [], "Without a step there should be no loss."
    assert ".lora_" in " ".join(state_of(copied)), "The copy has no adapter."
    assert_close(copied(ids), said_by_nested(ids), name="the logits")


@pytest.mark.exercise("adapt", weight=2)
def test_only_the_adapters_learn(student: Student) -> None:
    """In the copy nothing but lora_A and lora_B requires a gradient, and after training nothing else has changed."""
    layers = ("q_proj", "blocks.0.attention.q_proj", "blocks.0.attention.v_proj")
    copied, _ = adapted(student, 3, lr=0.05)
    learning = set(student.learning(copied))
    assert learning == adapters(*layers), f"These require a gradient: {sorted(learning)}."
    for name, value in state_of(copied).items():
        if ".lora_" in name:
            assert tensor(value, name=name).abs().max() > 0, f"{name} is still 0 after 3 steps."
        else:
            right = nested_weights().get(name.replace(".linear.", "."))
            assert right is not None, f"{name} is in the copy, and neither in the model nor in an adapter."
            assert_close(value, right, atol=0, rtol=0, name=name)


@pytest.mark.exercise("adapt", weight=2)
def test_the_model_that_was_given_stays(student: Student) -> None:
    """Its layers, its numbers and what requires a gradient are as they were, and it can be adapted again."""
    model = nested(student)
    model.norm.requires_grad_(False)
    before = student.learning(model)
    for _ in range(2):
        copied, _ = adapted(student, 2, model=model, lr=0.05)
        assert any(".lora_" in name for name in state_of(copied)), "The copy has no adapter."
        state = model.state_dict()
        assert set(state) == set(nested_weights()), "The model that was given has other layers now."
        for name, value in nested_weights().items():
            assert_close(state[name], value, atol=0, rtol=0, name=name)
        assert student.learning(model) == before, "In the model that was given, something else requires a gradient now."


@pytest.mark.exercise("adapt")
def test_it_is_trained_with_this_rate_and_without_decay(student: Student) -> None:
    """train gets the copy, the steps and the rate, and a weight decay of 0; everything else is as train has it."""
    for how, rate in (({"lr": 0.25}, 0.25), ({}, 1e-3)):
        _, told = adapted(student, 40, model=student.only_called(nested(student)), **how)
        assert len(told) == 6, "The losses that adapt returns are not those that train gave it."
        names = ("lr", "warmup", "weight_decay", "clip", "accumulate", "steps")
        for name, found, right in zip(names, told, (rate, 0.0, 0.0, 1.0, 1.0, 40.0), strict=True):
            assert found == right, f"train is called with {name} {found:g}."


@pytest.mark.exercise("adapt")
def test_its_losses_are_those_of_the_new_text(student: Student) -> None:
    """The first loss is the model's own on the first batch, the batches come in order, and the loss falls."""
    asked: list[int] = []

    def one(i: int) -> Tensor:
        asked.append(i)
        return batch(1)

    _, losses = adapted(student, 25, batches=one, rank=4, alpha=8.0, lr=0.05)
    assert asked == list(range(25)), f"It asks for the batches {asked}."
    assert len(losses) == 25, f"25 steps give {len(losses)} losses."
    right = functional.cross_entropy(said_by_nested(batch(1)[:, :-1]).mT, batch(1)[:, 1:]).item()
    assert math.isclose(losses[0], right, rel_tol=1e-3), "The first loss is not that of the model as it was given."
    assert losses[-1] < 0.8 * losses[0], f"The loss goes from {losses[0]:.2f} to {losses[-1]:.2f}."


@pytest.mark.exercise("adapt", weight=0.5)
def test_targets_that_are_not_there_are_an_error(student: Student) -> None:
    """Where no nn.Linear has such a name, a ValueError names the targets, also where something else is called so."""
    assert refusal(lambda: adapted(student, 0)) is None, "adapt raises an error although there are targets."
    for targets in (("c_attn", "c_proj"), ("norm",)):
        raised = refusal(functools.partial(adapted, student, 0, targets=targets))
        assert isinstance(raised, ValueError), f"With the targets {targets} no ValueError is raised."
        assert all(name in str(raised) for name in targets), f"The sentence does not name the targets: {raised}"


# -- quantise -------------------------------------------------------------------------------------------------------

SHRUNK = (
    "blocks.0.attention.q_proj.weight",
    "blocks.0.attention.o_proj.weight",
    "blocks.0.attention.v_proj.linear.weight",
    "blocks.0.mlp.router_up",
    "blocks.0.mlp.gate_up",
)
# Dettmers et al. 2023, appendix E
NEGATIVE = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
MIDDLE = [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
POSITIVE = [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
TABLE = torch.tensor([*NEGATIVE, *MIDDLE, *POSITIVE])


def various(student: Student, dtype: torch.dtype = torch.float32) -> tuple[Remote, Weights]:
    """A model with every kind of parameter, with random numbers, and these."""
    model = student.Various()
    state = model.state_dict()
    weights = {name: normal(*value.shape, seed=i).to(dtype) for i, (name, value) in enumerate(state.items())}
    if dtype != torch.float32:
        model.to(dtype)
    model.load_state_dict(weights)
    return model, weights


def quantised(student: Student, model: Remote, parts: Any = None, **how: Any) -> tuple[Remote, int]:
    found = student.quantise(model, student.Parts() if parts is None else parts, **how)
    assert isinstance(found, tuple | list), "quantise should return the copy and its bytes."
    assert len(found) == 2, f"quantise should return two things, the copy and its bytes, not {len(found)}."
    copied, size = found
    assert isinstance(copied, Remote), "The first thing that quantise returns should be a model."
    assert type(size) is int, "The second thing that quantise returns should be an int, the bytes."
    return copied, size


def nearest(x: Tensor, block: int) -> Tensor:
    """Each number as the nearest of the table's, times the largest of its block."""
    rows = torch.cat([part / part.abs().max() for part in x.flatten().split(block)])
    largest = torch.cat([part.abs().max().expand(len(part)) for part in x.flatten().split(block)])
    return (TABLE[(rows[:, None] - TABLE).abs().argmin(1)] * largest).view(x.shape)


@pytest.mark.exercise("quantise", weight=2)
def test_what_is_in_the_blocks_is_shrunk(student: Student) -> None:
    """Every matrix of a block, and a tensor of experts as one, goes through four bits: the rest is as it was."""
    model, weights = various(student)
    copied, _ = quantised(student, model)
    state = state_of(copied)
    assert set(state) == set(weights), "The copy has other names than the model."
    for name, value in weights.items():
        right = nearest(value, 64) if name in SHRUNK else value
        assert_close(state.get(name), right, atol=1e-6 if name in SHRUNK else 0, rtol=0, name=name)


@pytest.mark.exercise("quantise")
def test_router_and_adapters_are_left_alone(student: Student) -> None:
    """What decides between experts, and what was learnt last, keeps all its bits: names with router, lora_A, lora_B."""
    model, weights = various(student)
    copied, _ = quantised(student, model)
    state = state_of(copied)
    assert not torch.equal(tensor(state.get(SHRUNK[0])), weights[SHRUNK[0]]), "Nothing was shrunk."
    at = "blocks.0.attention.v_proj"
    for name in ("blocks.0.mlp.router.weight", f"{at}.lora_A", f"{at}.lora_B"):
        assert_close(state.get(name), weights[name], atol=0, rtol=0, name=name)


@pytest.mark.exercise("quantise")
def test_the_quantiser_is_the_part_of_the_box(student: Student) -> None:
    """Each tensor goes to parts.nf4_quantize once and as a whole, and comes back through parts.nf4_dequantize."""
    told: list[tuple[str, tuple[int, ...], int]] = []
    parts = student.telling_nf4(lambda what, shape, block: told.append((what, tuple(shape), block)))
    model, weights = various(student)
    copied, _ = quantised(student, model, parts, block=16)
    right = sorted(tuple(weights[name].shape) for name in SHRUNK)
    for what in ("quantize", "dequantize"):
        shapes_told = sorted(shape for kind, shape, _ in told if kind == what)
        assert shapes_told == right, f"nf4_{what} is called for tensors of the shapes {shapes_told}."
    assert {block for _, _, block in told} == {16}, f"The blocks are {sorted({block for _, _, block in told})}, not 16."
    state = state_of(copied)
    for name in SHRUNK:
        expected = weights[name].abs().mean() * torch.where(weights[name] > 0, 1.0, -1.0)
        assert_close(state.get(name), expected, atol=1e-6, rtol=0, claim="with one bit a number", name=name)


@pytest.mark.exercise("quantise")
def test_the_block_is_the_one_that_was_asked_for(student: Student) -> None:
    """A smaller block keeps more of a tensor; without being told, a block has 64 numbers."""
    model, weights = various(student)
    for how, block in (({"block": 8}, 8), ({"block": 32}, 32), ({}, 64)):
        state = state_of(quantised(student, model, **how)[0])
        for name in SHRUNK[:2]:
            assert_close(
                state[name], nearest(weights[name], block), atol=1e-6, rtol=0, claim=f"blocks of {block}", name=name
            )


@pytest.mark.exercise("quantise", weight=1.5)
def test_the_bytes_are_those_of_a_file(student: Student) -> None:
    """Half a byte a number and four a block, each tensor rounded up by itself; what stays counts as it is."""
    for dtype, block in ((torch.float32, 64), (torch.bfloat16, 16), (torch.float32, 8)):
        model, weights = various(student, dtype)
        small_ones = sum(
            (weights[name].numel() + 1) // 2 + 4 * math.ceil(weights[name].numel() / block) for name in SHRUNK
        )
        rest = sum(value.nbytes for name, value in weights.items() if name not in SHRUNK)
        _, size = quantised(student, model, block=block)
        assert size == small_ones + rest, (
            f"In {str(dtype)[6:]} with blocks of {block} the bytes are off by {size - small_ones - rest}."
        )


@pytest.mark.exercise("quantise")
def test_the_bytes_are_those_of_what_the_part_returns(student: Student) -> None:
    """Another quantiser returns other tensors, and other bytes."""
    model, weights = various(student)
    _, size = quantised(student, model, student.telling_nf4(lambda *what: None))
    right = sum(weights[name].numel() + 4 if name in SHRUNK else weights[name].nbytes for name in weights)
    assert size == right, f"With a quantiser of a byte a number the bytes are off by {size - right}."


@pytest.mark.exercise("quantise")
def test_the_given_model_keeps_all_its_bits(student: Student) -> None:
    """quantise works on a copy: the model that it is given computes as before."""
    model, weights = various(student)
    copied, _ = quantised(student, model)
    assert not torch.equal(tensor(state_of(copied).get(SHRUNK[0])), weights[SHRUNK[0]]), "Nothing was shrunk."
    for name, value in model.state_dict().items():
        assert_close(value, weights[name], atol=0, rtol=0, name=name)


@pytest.mark.exercise("quantise")
def test_the_copy_is_like_the_model(student: Student) -> None:
    """Each parameter of the copy has the dtype that it had, and requires a gradient where it did."""
    for dtype in (torch.bfloat16, torch.float32):
        model, weights = various(student, dtype)
        copied, _ = quantised(student, model)
        state = state_of(copied)
        for name, value in weights.items():
            right = nearest(value.float(), 64).to(dtype) if name in SHRUNK else value
            assert_close(state.get(name), right, atol=0.05, rtol=0, claim=f"in {str(dtype)[6:]}", name=name)
        assert student.learning(copied) == student.learning(model), "Other parameters require a gradient in the copy."
        assert not torch.equal(tensor(state.get(SHRUNK[0])), weights[SHRUNK[0]]), "Nothing was shrunk."


@pytest.mark.exercise("quantise", weight=0.5)
def test_twice_loses_no_more_than_once(student: Student) -> None:
    """What has been through four bits goes through them again unchanged, and takes the same bytes."""
    model, weights = various(student)
    once, size = quantised(student, model)
    twice, again = quantised(student, once)
    first, second = state_of(once), state_of(twice)
    assert not torch.equal(tensor(first.get(SHRUNK[0])), weights[SHRUNK[0]]), "Nothing was shrunk."
    for name in weights:
        assert_close(second.get(name), tensor(first.get(name)), atol=1e-6, rtol=0, claim="the second time", name=name)
    assert size == again, "The bytes are others the second time."


# -- serve ----------------------------------------------------------------------------------------------------------


class Reader:
    """A model that counts on, modulo 11, and notes what it reads, on the trusted side."""

    def __init__(self) -> None:
        self.read: list[Tensor] = []

    def __call__(self, ids: Tensor, cache: Any) -> Tensor:
        self.read.append(tensor(ids, name="the ids that model is given"))
        assert isinstance(cache, Remote), "model(ids, cache) should be given a cache."
        return 3 * functional.one_hot((ids + 1) % 11, 11).float() + 0.01 * torch.arange(11) * ids[..., None]


def served(student: Student, prompts: Sequence[Sequence[int]], n_new: int, **how: Any) -> list[list[int]]:
    """The answers as lists. how: of serve, but for model= and parts=."""
    model = how.pop("model") if "model" in how else Reader()
    parts = how.pop("parts") if "parts" in how else student.serving_parts()
    found = student.serve(model, [torch.tensor(prompt) for prompt in prompts], n_new, parts, **how)
    assert isinstance(found, list), "serve should return a list of answers."
    assert len(found) == len(prompts), f"{len(prompts)} prompts get {len(found)} answers."
    for answer in found:
        tensor(answer, dtype=torch.int64, name="an answer")
        assert answer.dim() == 1, f"An answer should be a row of ids, not of shape {tuple(answer.shape)}."
    return [answer.tolist() for answer in found]


def walked(prompt: Sequence[int], n_new: int) -> list[int]:
    """What the model of the stand-ins writes: each token is the one before it plus how many there are."""
    ids = list(prompt)
    for _ in range(n_new):
        ids.append((ids[-1] + len(ids)) % 11)
    return ids[len(prompt) :]


PROMPTS = ([4, 2, 9], [7], [1, 1, 1, 1, 5, 0])


@pytest.mark.exercise("serve", weight=2)
def test_it_writes_what_the_model_says(student: Student) -> None:
    """Each answer goes on where its prompt ends, and depends on how much has been read; the prompt is not in it."""
    for n_new in (1, 4, 9):
        found = served(student, PROMPTS, n_new, model=student.Walking())
        for prompt, answer in zip(PROMPTS, found, strict=True):
            assert len(answer) == n_new, f"An answer of {n_new} tokens has {len(answer)}."
            assert answer == walked(prompt, n_new), (
                f"The answer to a prompt of {len(prompt)} tokens is wrong: {answer}."
            )


@pytest.mark.exercise("serve", weight=2)
def test_each_token_is_read_once(student: Student) -> None:
    """The first call reads the prompt, each later one the token just written; the last token is never read."""
    model = Reader()
    served(student, PROMPTS, 5, model=model)
    sizes = [tuple(ids.shape) for ids in model.read]
    right = [size for prompt in PROMPTS for size in ((1, len(prompt)), (1, 1), (1, 1), (1, 1), (1, 1))]
    assert sizes == right, f"For prompts of 3, 1 and 6 tokens and 5 new ones, the model reads {sizes}."
    for ids in model.read:
        assert ids.dtype == torch.int64, f"The model is given ids of {ids.dtype}."
    assert model.read[0].tolist() == [PROMPTS[0]], "The first call should read the first prompt."


@pytest.mark.exercise("serve")
def test_each_prompt_has_a_cache_of_its_own(student: Student) -> None:
    """A new parts.cache() for each prompt, and the same one for all tokens of its answer."""
    numbers: list[int] = []
    served(student, PROMPTS, 3, model=student.Walking(numbers.append))
    assert all(type(number) is int for number in numbers), "The model is given something else than the cache."
    assert len(numbers) == 9, f"3 answers of 3 tokens take {len(numbers)} calls of the model."
    groups = [set(numbers[i : i + 3]) for i in (0, 3, 6)]
    assert all(len(group) == 1 for group in groups), "Within one answer, the model is given different caches."
    assert len(set.union(*groups)) == 3, "Different prompts share a cache."


@pytest.mark.exercise("serve", weight=2)
def test_the_tokens_are_drawn_as_the_prompt_says(student: Student) -> None:
    """parts.sample gets the last position's logits, a number of the prompt's own generator, and the temperature."""
    for temperature, seed in ((0.7, 3), (0.0, 0)):
        told: list[tuple[Tensor, Tensor, float]] = []

        def sample(logits: Tensor, u: Tensor, heat: float, told: list[Any] = told) -> Tensor:
            told.append((logits, u, heat))
            return torch.tensor([(len(told) * 2) % 11])

        how = {"temperature": temperature, "seed": seed, "parts": student.serving_parts(sample)}
        found = served(student, [[3, 4], [8]], 4, **how)
        assert found == [[2, 4, 6, 8], [10, 1, 3, 5]], (
            f"The tokens that parts.sample chose are not the answers: {found}."
        )
        draw = torch.Generator()
        for i, (logits, u, heat) in enumerate(told):
            if i % 4 == 0:
                draw.manual_seed(seed)
            tensor(logits, shape=(1, 11), name="the logits that sample is given")
            assert heat == temperature, f"sample is given a temperature of {heat:g}."
            tensor(u, shape=(1,), name="u")
            assert_close(u.float(), torch.rand(1, generator=draw), atol=1e-6, rtol=0, name=f"u at token {i % 4}")
        right = functional.one_hot(torch.tensor([5]), 11) * 3 + 0.01 * torch.arange(11) * 4
        assert_close(told[0][0], right, name="the first logits that sample is given")
    numbers: list[float] = []

    def note(logits: Tensor, u: Tensor, heat: float) -> Tensor:
        numbers.append(float(u.flatten()[0]))
        return torch.tensor([1])

    served(student, [[3, 4], [8]], 3, model=student.Watching(), parts=student.serving_parts(note), seed=9)
    own = torch.rand(3, generator=torch.Generator().manual_seed(9)).repeat(2)
    assert_close(torch.tensor(numbers), own, claim="with a model that draws numbers too", name="u")


@pytest.mark.exercise("serve")
def test_nobody_notices_the_others(student: Student) -> None:
    """With a seed, a prompt gets the same answer alone, in company, and last in the row."""
    how: dict[str, Any] = {"temperature": 5.0, "seed": 12}
    together = served(student, PROMPTS, 12, **how)
    assert len({tuple(answer) for answer in together}) > 1, "All prompts get the same answer."
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert served(student, [prompt], 12, **how) == [answer], "A prompt gets another answer when it is asked alone."
    assert served(student, PROMPTS[::-1], 12, **how) == together[::-1], "The order of the prompts changes the answers."


@pytest.mark.exercise("serve", weight=0.5)
def test_another_seed_is_another_answer(student: Student) -> None:
    """The seed decides, whatever was drawn before; at temperature 0 it does not matter."""
    first = served(student, PROMPTS[:1], 20, temperature=5.0, seed=1)
    assert served(student, PROMPTS[:1], 20, temperature=5.0, seed=1) == first, "The same seed gives another answer."
    assert served(student, PROMPTS[:1], 20, temperature=5.0, seed=2) != first, "Another seed gives the same answer."
    greedy = [served(student, PROMPTS[:1], 6, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1] == [[10, 0, 1, 2, 3, 4]], "Without a temperature, the likeliest tokens should come."


@pytest.mark.exercise("serve")
def test_the_end_token_ends_an_answer(student: Student) -> None:
    """end is the last token of the answer in which it comes, also where it is token 0 and where it comes at once."""
    for end, right in ((0, [[10, 0], [8, 9, 10, 0]]), (10, [[10], [8, 9, 10]]), (5, [[10, 0, 1, 2], [8, 9, 10, 0]])):
        found = served(student, [[3, 9], [7]], 4, end=end)
        assert found == right, f"With the end token {end} the answers have {[len(answer) for answer in found]} tokens."
    model = Reader()
    served(student, [[3, 9], [7]], 9, end=0, model=model)
    assert len(model.read) == 6, f"After the end token the model is called on: {len(model.read)} times in all."


@pytest.mark.exercise("serve", weight=0.5)
def test_an_end_token_in_the_prompt_ends_nothing(student: Student) -> None:
    """Only what is written can end an answer: the end token may stand in the prompt, also last."""
    found = served(student, [[9, 2], [2, 9]], 3, end=9)
    assert found == [[3, 4, 5], [10, 0, 1]], f"With the end token 9 in the prompts the answers are {found}."


@pytest.mark.exercise("serve", weight=0.5)
def test_no_gradient_is_recorded(student: Student) -> None:
    """Nobody learns while it writes: where the model is called, gradients are not recorded."""
    model = student.Watching()
    assert served(student, PROMPTS[:2], 3, model=model) == [[10, 0, 1], [8, 9, 10]], "The answers are wrong."
    recorded = model.recorded
    assert isinstance(recorded, list) and recorded, "The model was never called."  # noqa: PT018 (one sentence)
    assert not any(recorded), "Gradients are recorded while serve writes."


@pytest.mark.exercise("serve", weight=0.5)
def test_the_prompts_stay_as_they_were(student: Student) -> None:
    """The prompts belong to the caller."""
    lent = student.put(torch.tensor([4, 2, 9]))
    found = student.serve(Reader(), [lent], 3, student.serving_parts())
    assert isinstance(found, list), "serve should return a list of answers."
    assert [tensor(answer, shape=(3,)).tolist() for answer in found] == [[10, 0, 1]], "The answer is wrong."
    assert_close(lent.get(), torch.tensor([4, 2, 9]), name="the prompt")


# -- bill -----------------------------------------------------------------------------------------------------------

EXACT = ("parameters", "active", "bytes_fp32", "bytes_bf16", "bytes_nf4", "kv_bytes_per_token", "flops_per_token")
ENTRIES = (*EXACT, "training_flops", "watt_hours")
LARGE: Sizes = {  # of the size of published models
    "vocabulary": 128_256,
    "d_model": 8192,
    "n_layers": 80,
    "n_heads": 64,
    "n_kv_heads": 8,
    "d_head": 128,
    "d_hidden": 28_672,
}
LARGE_MOE: Sizes = {**LARGE, "d_model": 7001, "d_hidden": 2047, "n_experts": 255, "top_k": 7}


def billed(student: Student, c: Sizes, **what: Any) -> dict[str, Any]:
    what = {"context": 5, "tokens": 1000, "seconds": 60.0, "watts": 30.0, **what}
    found = student.bill(student.Config(**c), **what)
    assert isinstance(found, dict), "bill should return a dict."
    assert set(found) == set(ENTRIES), f"These names are missing or too many: {sorted(set(found) ^ set(ENTRIES))}."
    for name in ENTRIES[:-1]:
        assert type(found[name]) is int, f"{name} should be an int."
    return found


def entry(student: Student, name: str, c: Sizes, right: float, claim: str, **what: Any) -> None:
    found = billed(student, c, **what)[name]
    assert found == right, f"{claim}: {name} is too {'large' if found > right else 'small'}."


def count(c: Sizes, *, active: bool = False) -> int:
    """Numbers of the model, or those that one token uses."""
    total = 0
    for name, shape in shapes(c).items():
        if active and name.endswith(("gate_up", "mlp.down")):
            shape = (c["top_k"], *shape[1:])
        total += math.prod(shape)
    return total


def is_shrunk(name: str, shape: Sequence[int]) -> bool:
    return name.startswith("blocks.") and len(shape) > 1 and "router" not in name


class Products(TorchFunctionMode):
    """Counts the FLOPs of every product of matrices; tests/test_capstone.py asks PyTorch's own counter."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (Tensor.matmul, Tensor.__matmul__, torch.matmul):
            self.flops += 2 * out.numel() * args[0].shape[-1]
        return out


@functools.cache
def counted_flops(kind: str, n: int) -> int:
    """What a machine counts: the FLOPs of the oracle on a text of n tokens."""
    c = DENSE if kind == "dense" else MOE
    with Products() as counter, torch.no_grad():
        oracle(c, drawn(shapes(c)), ids_of(1, n))
    return counter.flops


@pytest.mark.exercise("bill")
def test_the_bill_counts_every_number_once(student: Student) -> None:
    """parameters are the numbers of the model: the read-out is the embedding, and every norm counts."""
    for c, claim in (
        (DENSE, "a small model"),
        ({**DENSE, "n_layers": 5, "n_kv_heads": 6}, "no sharing"),
        (LARGE, "a large one"),
    ):
        entry(student, "parameters", c, count(c), claim)


@pytest.mark.exercise("bill")
def test_experts_and_their_router_are_on_the_bill(student: Student) -> None:
    """With experts, each layer holds all of them and a router, and no other feed-forward part."""
    for c, claim in (
        (MOE, "a small mixture"),
        ({**MOE, "n_experts": 1, "top_k": 1}, "one expert"),
        (LARGE_MOE, "a large one"),
    ):
        entry(student, "parameters", c, count(c), claim)


@pytest.mark.exercise("bill")
def test_active_are_the_numbers_that_a_token_uses(student: Student) -> None:
    """Of the experts top_k in each layer, of everything else all; without experts active is parameters."""
    for c, claim in ((MOE, "2 of 5 experts"), ({**MOE, "top_k": 5}, "all experts"), (LARGE_MOE, "a large one")):
        entry(student, "active", c, count(c, active=True), claim)
    entry(student, "active", DENSE, count(DENSE), "without experts")


@pytest.mark.exercise("bill", weight=0.5)
def test_bytes_are_four_or_two_a_number(student: Student) -> None:
    """bytes_fp32 and bytes_bf16 are of all numbers, active or not."""
    for c in (DENSE, MOE, LARGE_MOE):
        entry(student, "bytes_fp32", c, 4 * count(c), "at four bytes")
        entry(student, "bytes_bf16", c, 2 * count(c), "at two bytes")


@pytest.mark.exercise("bill", weight=1.5)
def test_four_bits_are_billed_tensor_by_tensor(student: Student) -> None:
    """In the blocks half a byte a number and four bytes a block of 64, rounded up a tensor; the rest at two bytes."""
    odd = {**DENSE, "d_model": 9, "n_heads": 3, "n_kv_heads": 1, "d_head": 3, "d_hidden": 7}
    for c, claim in (
        (DENSE, "a small model"),
        (odd, "odd sizes"),
        ({**odd, "n_experts": 3, "top_k": 1}, "odd experts"),
        (MOE, "a mixture"),
        ({**DENSE, "d_model": 13, "n_heads": 1, "n_kv_heads": 1, "d_head": 5, "d_hidden": 5}, "tensors of 65 numbers"),
        (LARGE_MOE, "a large one"),
    ):
        right = sum(
            (math.prod(shape) + 1) // 2 + 4 * -(-math.prod(shape) // 64)
            if is_shrunk(name, shape)
            else 2 * math.prod(shape)
            for name, shape in shapes(c).items()
        )
        entry(student, "bytes_nf4", c, right, claim)


@pytest.mark.exercise("bill")
def test_what_is_kept_for_a_token(student: Student) -> None:
    """Keys and values of the heads that are shared, in every layer, at two bytes a number."""
    for c, claim in ((DENSE, "6 heads share 2"), (MOE, "4 heads share 1"), (LARGE, "64 heads share 8")):
        kept = [shape[0] for name, shape in shapes(c).items() if ".k_proj." in name or ".v_proj." in name]
        entry(student, "kv_bytes_per_token", c, 2 * sum(kept), claim)


@pytest.mark.exercise("bill", weight=1.5)
def test_flops_are_what_a_machine_counts(student: Student) -> None:
    """Two for each number of a matrix that a token meets, and attention's products over the context."""
    for n in (1, 7, 12):
        right = counted_flops("dense", n)
        entry(student, "flops_per_token", DENSE, right // n, f"over a context of {n}", context=n)


@pytest.mark.exercise("bill")
def test_flops_of_a_mixture_are_those_of_its_active_experts(student: Student) -> None:
    """A token meets the router and top_k experts in each layer: the others compute nothing for it."""
    for n in (1, 6):
        entry(student, "flops_per_token", MOE, counted_flops("moe", n) // n, f"over a context of {n}", context=n)
    few, many = (billed(student, {**MOE, "n_experts": n})["flops_per_token"] for n in (4, 5))
    assert many - few == 2 * MOE["d_model"] * MOE["n_layers"], (
        "One more idle expert costs more than a row of the router."
    )


@pytest.mark.exercise("bill")
def test_longer_contexts_cost_more_by_the_same_step(student: Student) -> None:
    """Each position more costs the same: two products in each query head of each layer, shared keys or not."""
    for c in (DENSE, LARGE):
        one, two, three = (billed(student, c, context=n)["flops_per_token"] for n in (1, 2, 1001))
        step = 4 * c["n_layers"] * c["n_heads"] * c["d_head"]
        assert two - one == step, "One position more costs something else than two products in each head."
        assert three - one == 1000 * step, "A thousand positions more do not cost a thousand times one more."


@pytest.mark.exercise("bill")
def test_learning_costs_three_times_reading(student: Student) -> None:
    """training_flops: for each token once forth and twice back, over the context that was given; exact at any size."""
    for c, tokens, context in ((DENSE, 1000, 5), (MOE, 1, 64), (LARGE, 15_000_000_000_001, 8191)):
        found = billed(student, c, tokens=tokens, context=context)
        right = 3 * tokens * found["flops_per_token"]
        assert found["flops_per_token"] > 2 * c["vocabulary"] * c["d_model"], (
            "flops_per_token is less than a read-out's."
        )
        assert found["training_flops"] == right, (
            f"training_flops of {tokens:,} tokens are not three times the way forth."
        )


@pytest.mark.exercise("bill", weight=0.5)
def test_watt_hours_are_watts_times_hours(student: Student) -> None:
    """An hour has 3600 seconds; sizes and tokens do not matter here."""
    for seconds, watts in ((3600.0, 40.0), (90.0, 700.0), (0.5, 15.0)):
        found = billed(student, DENSE, seconds=seconds, watts=watts)["watt_hours"]
        assert isinstance(found, float | int), "watt_hours should be a number."
        assert math.isclose(found, watts * seconds / 3600, rel_tol=1e-9), (
            f"{seconds:g} s at {watts:g} W are billed wrongly."
        )
