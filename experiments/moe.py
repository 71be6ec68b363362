"""A decoder whose feed-forwards are Mixtures of Experts, with every routing that the experiments compare.

    from experiments.moe import MoE, SwiGLU, decoder, loss
    model = decoder(1024, lambda: MoE(64, 64, n_experts=32, top_k=4), length=128)
    train.fit(model, batches, settings, loss=loss(balance=0.01))

Everything that is not routing is the reference of chapters 03 and 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from experiments.decoder import Decoder
from ichimon import train
from ichimon.measure import ROOT
from ichimon.notebook import load

Routing = Literal["learned", "hash", "random", "frozen"]


@cache
def reference(chapter: str) -> ModuleType:
    return load(ROOT / f"solutions/{chapter}.py")


class SwiGLU(nn.Module):
    """The dense feed-forward, its weights laid out as those of one expert."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(d_model, d_hidden))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        gate, up = linear(x, self.gate_up).chunk(2, -1)
        return linear(silu(gate) * up, self.down)


class MoE(nn.Module):
    """`n_experts` of `d_hidden` channels, `top_k` of them a token, and `shared` channels that every token takes.

    routing: "learned" by a router; "hash": drawn once for each token of the vocabulary; "random": drawn anew for each
    token at each step; "frozen": a router that is never trained. Where nothing is learned all weights are 1/top_k, but
    for the frozen router's. `bias_rate` balances as DeepSeek-V3 does: a bias that chooses and does not weigh.
    `token_std`: the router also learns logits for each token of the vocabulary, which begin with this spread.
    After a forward pass `logits`, `probabilities` and `experts` are those of its tokens.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        *,
        n_experts: int,
        top_k: int,
        routing: Routing = "learned",
        renormalise: bool = True,
        scale: float = 1.0,
        shared: int = 0,
        bias_rate: float = 0.0,
        token_std: float = 0.0,
        vocabulary: int = 1024,
    ) -> None:
        super().__init__()
        self.n_experts, self.top_k, self.routing = n_experts, top_k, routing
        self.renormalise, self.scale, self.bias_rate = renormalise, scale, bias_rate
        self.router = nn.Linear(d_model, n_experts, bias=False).requires_grad_(routing == "learned")
        self.by_token = nn.Parameter(torch.randn(vocabulary, n_experts) * token_std) if token_std else None
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden))
        self.shared = SwiGLU(d_model, shared) if shared else None
        self.bias: Tensor
        self.register_buffer("bias", torch.zeros(n_experts))
        self.table: Tensor
        self.register_buffer("table", torch.rand(vocabulary, n_experts).topk(top_k, -1).indices)
        self.ids: Tensor | None = None  # of the tokens that come next: `loss` and `routes` say them
        self.logits: Tensor | None = None
        self.probabilities: Tensor | None = None
        self.experts: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        tokens = x.flatten(0, 1)
        weights, self.experts = self.choose(tokens)
        out = reference("13-router").grouped_experts(
            tokens, (self.scale * weights).to(x.dtype), self.experts, self.gate_up, self.down
        )
        if self.shared is not None:
            out = out + self.shared(tokens)
        return out.view_as(x)

    def choose(self, tokens: Float[Tensor, "tokens d_model"]) -> tuple[Tensor, Tensor]:
        if self.routing in ("hash", "random"):
            assert self.ids is not None, "tell the layer its tokens first: experiments.moe.tell(model, ids)"
            if self.routing == "hash":
                experts = self.table[self.ids.flatten()]
            else:
                experts = torch.rand(len(tokens), self.n_experts).topk(self.top_k, -1).indices
            return torch.full(experts.shape, 1 / self.top_k), experts
        self.logits = self.router(tokens)
        if self.by_token is not None:
            assert self.ids is not None, "tell the layer its tokens first: experiments.moe.tell(model, ids)"
            self.logits = self.logits + self.by_token[self.ids.flatten()]
        self.probabilities = self.logits.float().softmax(-1)
        if not self.bias_rate:
            return reference("13-router").route(self.logits, self.top_k, self.renormalise)
        experts = (self.probabilities + self.bias).topk(self.top_k, -1).indices
        if self.training:
            counts = torch.bincount(experts.flatten(), minlength=self.n_experts).float()
            self.bias += self.bias_rate * (counts.mean() - counts).sign()
        weights = self.probabilities.gather(-1, experts)
        return weights / weights.sum(-1, keepdim=True) if self.renormalise else weights, experts


def decoder(
    vocabulary: int,
    feed_forward: Callable[[], nn.Module],
    *,
    length: int,
    d_model: int = 64,
    n_layers: int = 3,
    n_heads: int = 4,
) -> Decoder:
    """A decoder as the open models have it: RMSNorm before each sub-layer, RoPE; feed-forwards begin as GPT-2's."""
    positions = torch.arange(length)
    model = Decoder(
        vocabulary,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        feed_forward=feed_forward,
        norm=nn.RMSNorm,
        rotate=lambda x: reference("03-position").rope(x, positions[: x.shape[-2]]),
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("gate_up", "router.weight")):
            nn.init.normal_(parameter, std=0.02)
        if name.endswith("down"):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers))
    return model


def layers(model: nn.Module) -> list[MoE]:
    return [module for module in model.modules() if isinstance(module, MoE)]


def tell(model: nn.Module, ids: Int[Tensor, "batch n"]) -> None:
    """Which tokens come next, for routings that go by the token itself."""
    for layer in layers(model):
        layer.ids = ids


def loss(balance: float = 0.0, z: float = 0.0) -> train.Loss:
    """The next token's loss and, while training, for each layer `balance` · n_experts · Σ f·P and `z` · mean(lse²).

    Source: Fedus et al. 2021 (arXiv 2101.03961), equations 4 to 6; Zoph et al. 2022 (arXiv 2202.08906), equation 5.
    """

    def of(model: nn.Module, batch: Tensor) -> Tensor:
        tell(model, batch[:, :-1])
        value = train.next_token(model, batch)
        for layer in layers(model) if model.training else []:
            if layer.logits is None:
                continue
            if balance:
                assert layer.probabilities is not None
                value = value + balance * layer.n_experts * (shares(layer) * layer.probabilities.mean(0)).sum()
            if z:
                value = value + z * layer.logits.float().logsumexp(-1).square().mean()
        return value

    return of


def shares(layer: MoE) -> Float[Tensor, " n_experts"]:
    """The part of the last tokens' routings that went to each expert; the parts add up to 1."""
    assert layer.experts is not None, "no token has passed this layer"
    return torch.bincount(layer.experts.flatten(), minlength=layer.n_experts) / layer.experts.numel()


@torch.no_grad()
def routes(model: nn.Module, ids: Int[Tensor, "batch n"]) -> Int[Tensor, "layers batch n top_k"]:
    """The experts that each token goes to, layer by layer."""
    tell(model, ids)
    model(ids)
    found = [layer.experts.view(*ids.shape, -1) for layer in layers(model) if layer.experts is not None]
    return torch.stack(found)


def flops_per_token(model: Decoder, length: int) -> int:
    """Floating-point operations of training on one token: 6 for each weight that it meets, and causal attention's own.

    The embedding is looked up and costs nothing; the read-out that it is tied to does.
    """
    idle = 0
    for layer in layers(model):
        experts = layer.gate_up.numel() + layer.down.numel()
        idle += experts - experts * layer.top_k // layer.n_experts
        idle += 0 if layer.by_token is None else layer.by_token.numel()
        idle += 0 if layer.routing in ("learned", "frozen") else layer.router.weight.numel()
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1) - idle
    attention = len(model.blocks) * length * model.tokens.embedding_dim  # scores and sums over n/2 keys each
    return 6 * (matrices + attention)
