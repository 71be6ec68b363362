"""How far back does a stack of layers with a small window reach?

With a window of W, which includes the token itself, one layer looks W − 1 positions back. The layer below has done the
same for each position that it sees. So L layers should reach exactly L(W − 1) positions back, and not one further. The
prose of the Mistral paper says "between i − W and i" (Jiang et al. 2023, arXiv:2310.06825, section 2), which would give
LW.

Measured in two ways, in float64, on models with random weights. In transformers' MistralModel, eager, the gradient of
the last output with respect to every input: the furthest input whose gradient is not exactly zero. In layers made of
the reference's sliding_window_mask and RollingKVCache, fed in chunks: one input changes, and the furthest later output
that is not exactly the same. A random model is one seed.

To reach is not to use. So in the Mistral models we also sum up the squared gradient by distance: which share of it
comes from beyond one window, and which from beyond half the reach?
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

WIDTH = 32


def gradient_by_distance(n_layers: int, window: int, length: int, seed: int) -> Tensor:
    """The squared gradient of the last output of a random Mistral, by distance: entry d is that of the input d back."""
    from transformers import MistralConfig, MistralModel

    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=window,
        initializer_range=0.2,
    )
    config._attn_implementation = "eager"
    model = MistralModel(config).double().eval()
    x = torch.randn(1, length, WIDTH, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(WIDTH, dtype=torch.float64)
    (model(inputs_embeds=x, use_cache=False).last_hidden_state[0, -1] @ upstream).backward()
    assert x.grad is not None
    return x.grad[0].pow(2).sum(-1).flip(0)


class Windowed(nn.Module):
    """Layers of windowed attention over a rolling cache, with residuals: the reference's parts and nothing else."""

    def __init__(self, parts: Any, n_layers: int, window: int) -> None:
        super().__init__()
        self.parts, self.window = parts, window
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(n_layers))

    def forward(self, x: Tensor, chunk: int) -> Tensor:
        """The outputs of a text that is read in chunks."""
        cache, out = self.parts.RollingKVCache(self.window), []
        for piece in x.split(chunk, 1):
            for layer, project in enumerate(self.qkv):
                qkv = project(layer_norm(piece, (WIDTH,))).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
                k, v = cache.update(layer, qkv[1], qkv[2])
                mask = self.parts.sliding_window_mask(piece.shape[1], k.shape[2], self.window)
                heads = scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask)
                piece = piece + heads.transpose(1, 2).flatten(2)
            out.append(piece)
        return torch.cat(out, 1)


@torch.no_grad()
def furthest_later(parts: Any, n_layers: int, window: int, length: int, seed: int, chunk: int) -> int:
    """One input changes: how many positions later is the last output that notices?"""
    torch.manual_seed(seed)
    model = Windowed(parts, n_layers, window).double()
    x = torch.randn(1, length, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[:, 2] = torch.randn(WIDTH, dtype=torch.float64)
    noticed = (model(changed, chunk) != model(x, chunk)).any(-1)[0].nonzero()
    return int(noticed.max()) - 2


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/10-long-context.py")
    rows = []
    for window in config["windows"]:
        for n_layers in config["layers"]:
            reach = n_layers * (window - 1)
            squares = [gradient_by_distance(n_layers, window, reach + window + 3, seed) for seed in seeds]
            later = [
                furthest_later(parts, n_layers, window, reach + window + 3, seed, config["chunk"]) for seed in seeds
            ]
            rows.append(
                {
                    "window": window,
                    "layers": n_layers,
                    "formula": reach,
                    "mistral": estimate([int(square.nonzero().max()) for square in squares]),
                    "reference": estimate(later),
                    "beyond_one_window": estimate([(s[window:].sum() / s[1:].sum()).item() for s in squares]),
                    "beyond_half": estimate([(s[reach // 2 + 1 :].sum() / s[1:].sum()).item() for s in squares]),
                }
            )
    window, n_layers = config["windows"][-1], config["layers"][-1]
    by_distance = [s / s[1:].sum() for s in squares]  # of the last row, the deepest with the widest window
    return {
        "rows": rows,
        "profile": {
            "window": window,
            "layers": n_layers,
            "share": [estimate([s[d].item() for s in by_distance]) for d in range(1, n_layers * (window - 1) + 1)],
        },
    }


def verdict(found: Results) -> Verdict:
    exact = all(
        set(row[kind]["values"]) == {row["formula"]} for row in found["rows"] for kind in ("mistral", "reference")
    )
    if exact:
        return "strong"
    return (
        "weak"
        if all(abs(row["mistral"]["mean"] - row["formula"]) <= row["layers"] for row in found["rows"])
        else "null"
    )


EXPERIMENT = Experiment(
    name="c10_receptive_field",
    claim=(
        "L layers with a window of W reach exactly L(W − 1) positions back: for every W, L and seed, by gradients in "
        "transformers' Mistral and by changing an input of layers built from the notebook's parts."
    ),
    run=run,
    verdict=verdict,
    config={"windows": [2, 4, 8, 16], "layers": [1, 2, 3, 4], "chunk": 5},
    reduced={"windows": [2, 4], "layers": [1, 3]},
)

if __name__ == "__main__":
    main(EXPERIMENT)
