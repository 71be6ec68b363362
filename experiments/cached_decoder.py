"""The small decoder with chapter 07's attention in it, so that it can read a text in chunks and keep the past.

from experiments.cached_decoder import CachedDecoder
model = CachedDecoder(1024, load(ROOT / "solutions/07-kv-cache.py"))
logits = model(ids, cache)
"""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from experiments.decoder import Block, Decoder


class CachedDecoder(Decoder):
    """Token ids [batch, n], which follow what the cache holds, to logits [batch, n, vocabulary].

    `parts` has CachedAttention. Positions are learnt, up to `longest`.
    """

    def __init__(
        self, vocabulary: int, parts: Any, *, d_model: int = 64, n_layers: int = 2, n_heads: int = 4, longest: int = 512
    ) -> None:
        super().__init__(vocabulary, d_model=d_model, n_layers=n_layers, n_heads=n_heads)
        self.places = nn.Embedding(longest, d_model)
        nn.init.normal_(self.places.weight, std=0.02)
        for block in self.blocks:
            cast(Block, block).sublayers[0] = parts.CachedAttention(d_model, n_heads)

    def forward(
        self, ids: Int[Tensor, "batch n"], cache: Any = None, *, only_last: bool = False
    ) -> Float[Tensor, "batch n vocabulary"]:
        """With `only_last`, the logits of the last position alone: what writing needs."""
        past = cache.length if cache is not None else 0
        x = self.tokens(ids) + self.places.weight[past : past + ids.shape[1]]
        for layer, block in enumerate(self.blocks):
            attention, feed_forward = cast(Block, block).sublayers
            before_attention, before_feed_forward = cast(Block, block).norms
            x = x + attention(before_attention(x), cache, layer)
            x = x + feed_forward(before_feed_forward(x))
        return self.norm(x[:, -1:] if only_last else x) @ self.tokens.weight.T
