"""The small language model that experiments train: a decoder in which one part at a time can be another one.

    from experiments.decoder import Decoder
    model = Decoder(1024, feed_forward=lambda: reference.SwiGLU(64))

Where nothing is said it is GPT-2's arrangement: norm before each sub-layer, GELU, tied embeddings, and no positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Causal self-attention. `rotate` changes queries and keys, `bias(n)` [n_heads, n, n] is added to the scores."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.rotate, self.bias = n_heads, rotate, bias
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        n = x.shape[1]
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.rotate:
            q, k = self.rotate(q), self.rotate(k)
        if self.bias:
            future = torch.full((n, n), -math.inf).triu(1)
            heads = scaled_dot_product_attention(q, k, v, attn_mask=self.bias(n) + future)
        else:
            heads = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention, then feed-forward: each with a residual around it and a norm before it, or after the sum."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module, norms: list[nn.Module], pre_norm: bool) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList([attention, feed_forward])
        self.norms, self.pre_norm = nn.ModuleList(norms), pre_norm

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        for sublayer, norm in zip(self.sublayers, self.norms, strict=True):
            x = x + sublayer(norm(x)) if self.pre_norm else norm(x + sublayer(x))
        return x


class Decoder(nn.Module):
    """Token ids [batch, n] to logits [batch, n, vocabulary].

    `positions` maps embeddings [batch, n, d_model] to the same with positions in them. Matrices begin at a standard
    deviation of 0.02, those that write into the residual stream at 0.02/√(2·n_layers), as GPT-2's do.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        feed_forward: Callable[[], nn.Module] | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        pre_norm: bool = True,
        positions: nn.Module | None = None,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        make = feed_forward or (
            lambda: nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        )
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = positions or nn.Identity()
        blocks = [
            Block(Attention(d_model, n_heads, rotate, bias), make(), [norm(d_model), norm(d_model)], pre_norm)
            for _ in range(n_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(d_model) if pre_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in blocks:
            for sublayer in block.sublayers:
                for last in [module for module in sublayer.modules() if isinstance(module, nn.Linear)][-1:]:
                    nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * n_layers))

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
        x = self.positions(self.tokens(ids))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T
