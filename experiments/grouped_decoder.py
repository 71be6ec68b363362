"""The decoder of chapter 09: grouped or latent attention from the reference, with rotary positions in both.

from experiments.grouped_decoder import decoder
model = decoder(parts, "grouped", n_kv_heads=2, d_hidden=256)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from experiments.decoder import Block, Decoder
from ichimon import corpus

D_MODEL, N_HEADS, D_HEAD, N_LAYERS = 64, 8, 8, 2
# The latent's sizes stand to a head's as DeepSeek-V2's do (arXiv:2405.04434, section 3.1.2): a latent four times as
# wide as a head, a rotary key half as wide.
LATENT = {"q_rank": 48, "kv_rank": 4 * D_HEAD, "d_nope": D_HEAD, "d_rope": D_HEAD // 2, "d_v": D_HEAD}


class Grouped(nn.Module):
    """The reference's grouped attention, causal, with queries and keys turned by their positions."""

    def __init__(self, parts: Any, n_kv_heads: int) -> None:
        super().__init__()
        self.parts = parts
        self.layer = parts.GroupedQueryAttention(D_MODEL, N_HEADS, n_kv_heads, D_HEAD)

    def forward(self, x: Tensor) -> Tensor:
        layer, places = self.layer, torch.arange(x.shape[1])
        projections = (layer.q_proj, layer.k_proj, layer.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, D_HEAD)).transpose(1, 2) for proj in projections)
        q, k = self.parts.rotate(q, places), self.parts.rotate(k, places)
        k, v = self.parts.repeat_kv(k, layer.n_rep), self.parts.repeat_kv(v, layer.n_rep)
        return layer.o_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Latent(nn.Module):
    """The reference's latent attention, causal."""

    def __init__(self, parts: Any) -> None:
        super().__init__()
        self.layer = parts.LatentAttention(D_MODEL, N_HEADS, **LATENT)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return self.layer(x, torch.ones(n, n, dtype=torch.bool).tril())[0]


def decoder(parts: Any, kind: str, *, n_kv_heads: int = N_HEADS, d_hidden: int = 4 * D_MODEL) -> Decoder:
    """A decoder with "grouped" or "latent" attention, initialised as GPT-2 is but for larger embeddings."""

    def feed_forward() -> nn.Module:
        return nn.Sequential(nn.Linear(D_MODEL, d_hidden), nn.GELU(), nn.Linear(d_hidden, D_MODEL))

    model = Decoder(corpus.VOCABULARY, d_model=D_MODEL, n_layers=N_LAYERS, n_heads=N_HEADS, feed_forward=feed_forward)
    for block in model.blocks:
        assert isinstance(block, Block)
        attention = Latent(parts) if kind == "latent" else Grouped(parts, n_kv_heads)
        for module in attention.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(attention.layer.o_proj.weight, std=0.02 / math.sqrt(2 * N_LAYERS))
        block.sublayers[0] = attention
    with torch.no_grad():
        model.tokens.weight.mul_(5)  # the runs are short: all models then learn faster
    return model


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
