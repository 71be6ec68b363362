"""How well do `rank` mixtures of the positions stand in for all of them, in trained attention and in random attention?

Linformer (Wang et al. 2020, arXiv:2006.04768) rests on the observation that attention matrices are nearly of low rank.
Here are those of the dense model that ships with the course (`ichimon.moe.load_trained`: 3 layers, 4 heads), which
reads windows of 2n tokens. We take the queries of the last n positions and the keys and values of the first n: all of
these are in the past of all of those, so that no mask is needed. E and F of the reference's layer are fitted to plain
attention over this past by gradient descent on training texts, for each layer by itself, its heads sharing them. They
begin as means over stretches of the text. The error is taken on texts that neither the model nor the fit has seen.

An answer that ignores the queries, and gives every position the mean of all values, is the yardstick: the error is the
norm of the difference from plain attention, over all layers, divided by that of this answer. So 1 means that the
mixtures are worth nothing, and 0 that they are exact. *Random* attention has keys, queries and values that are normal
numbers, scaled so that the scores of each head spread as they do in the trained one.

Beside it stands a limit that needs no fit: what the best matrix of that rank, chosen anew for each attention matrix,
misses of it (by its singular values, relative to its norm). And one matrix by pencil and paper: attention of each
position to the one before it. All its singular values are 1, so a rank of k misses √(1 − k/n) of it, whoever chooses.

A draw of texts and of random numbers is one seed. A first run (verdict: null, seeds 0 to 2) trained a small encoder
of its own for each seed, to fill in hidden bytes. It learned hardly more than how frequent each byte is (a loss of
3.2 nats), so its attention was hardly trained attention, and an average of errors over layers was ruled by one that
added almost nothing to the mean. The claim is unchanged; the model is another one, layers are summed up, and the
seeds are fresh.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.moe import load_trained
from ichimon.notebook import load

Layer = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, [texts, heads, n, d_head]


class Inside:
    """The queries, keys and values of each layer of the trained model, as its attention gets them."""

    def __init__(self) -> None:
        from transformers import AttentionInterface

        self.model: Any
        self.model, self.bpe = load_trained("dense")
        self.kept: list[Layer] = []
        AttentionInterface.register("kept", self._attend)
        self.model.set_attn_implementation("kept")
        self.ids = {split: self._ids(split) for split in ("train", "test")}

    def _attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
        self.kept.append((q, k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2), None

    def _ids(self, split: corpus.Split) -> Tensor:
        texts = [text.text for text in corpus.texts(corpus.PROSE, split)][:150]
        return torch.tensor([token for text in texts for token in self.bpe.encode(text).ids])

    @torch.no_grad()
    def read(self, split: corpus.Split, config: Config, seed: int) -> list[Layer]:
        """What the last n positions ask of the first n, layer by layer."""
        n = config["n"]
        windows = train.windows(self.ids[split], batch=config["texts"], length=2 * n, seed=seed)(0)
        self.kept.clear()
        self.model(windows[:, :-1])
        return [(q[:, :, n:], k[:, :, :n], v[:, :, :n]) for q, k, v in self.kept]


def like(layer: Layer, generator: torch.Generator) -> Layer:
    """Normal numbers whose scores spread as those of this layer do, head by head."""
    q, k, v = (torch.randn(part.shape, generator=generator) for part in layer)
    spread = (layer[0] @ layer[1].mT).std((0, 2, 3), keepdim=True) / (q @ k.mT).std((0, 2, 3), keepdim=True)
    return q * spread, k, v


def pooled(parts: Any, rank: int, n: int) -> Any:
    """A layer of the reference whose E and F begin as means over stretches of the text; at rank n as nothing at all."""
    layer = parts.LinformerAttention(4, 1, n, rank)
    with torch.no_grad():
        for matrix in (layer.e_proj.weight, layer.f_proj.weight):
            matrix.copy_(torch.repeat_interleave(torch.eye(rank), n // rank, 1) * rank / n)
    return layer


def squares(e: Tensor, f: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """The squared error of the mixtures, and that of the mean of all values."""
    q, k, v = layer
    exact = scaled_dot_product_attention(q, k, v)
    found = scaled_dot_product_attention(q, e @ k, f @ v)
    return (found - exact).square().sum(), (v.mean(2, keepdim=True) - exact).square().sum()


def fitted(parts: Any, rank: int, fit: Layer, test: Layer, config: Config) -> tuple[float, float]:
    """The squared errors on test texts of E and F that were fitted to other texts, and of the mean of all values."""
    mixtures = pooled(parts, rank, config["n"])
    e, f = mixtures.e_proj.weight, mixtures.f_proj.weight
    optimiser = torch.optim.Adam([e, f], lr=config["fit_lr"])
    for step in range(config["fit_steps"]):
        part = slice(step % 4, None, 4)  # a quarter of the texts at a time
        ours, mean = squares(e, f, (fit[0][part], fit[1][part], fit[2][part]))
        optimiser.zero_grad()
        (ours / mean).backward()
        optimiser.step()
    with torch.no_grad():
        ours, mean = squares(e, f, test)
        return ours.item(), mean.item()


@torch.no_grad()
def best_possible(layers: Sequence[Layer], ranks: Sequence[int]) -> list[float]:
    """What the best matrix of each rank misses of the attention matrices, relative to their norm."""
    matrices = [(q[:8] @ k[:8].mT / q.shape[-1] ** 0.5).softmax(-1) for q, k, _ in layers]
    found = torch.stack([torch.linalg.svdvals(matrix) for matrix in matrices]).square()
    return [(found[..., rank:].sum() / found.sum()).sqrt().item() for rank in ranks]


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/10-long-context.py")
    inside, ranks, n = Inside(), config["ranks"], config["n"]
    errors: dict[str, list[list[float]]] = {"trained": [], "random": []}
    limits: dict[str, list[list[float]]] = {"trained": [], "random": []}
    for seed in seeds:
        fit, test = inside.read("train", config, seed), inside.read("test", config, seed)
        generator = torch.Generator().manual_seed(seed)
        kinds = {
            "trained": (fit, test),
            "random": ([like(layer, generator) for layer in fit], [like(layer, generator) for layer in test]),
        }
        for kind, (ours, theirs) in kinds.items():
            row = []
            for rank in ranks:
                pairs = [fitted(parts, rank, a, b, config) for a, b in zip(ours, theirs, strict=True)]
                row.append((sum(a for a, _ in pairs) / sum(b for _, b in pairs)) ** 0.5)
            errors[kind].append(row)
            limits[kind].append(best_possible(theirs, ranks))
    columns = {kind: list(zip(*rows, strict=True)) for kind, rows in errors.items()}
    return {
        "n": n,
        "ranks": ranks,
        "error": {kind: [estimate(values) for values in rows] for kind, rows in columns.items()},
        "limit": {kind: [estimate(v) for v in zip(*rows, strict=True)] for kind, rows in limits.items()},
        "previous": [(1 - rank / n) ** 0.5 for rank in ranks],
        "trained_minus_random": [paired(*pair) for pair in zip(columns["trained"], columns["random"], strict=True)],
    }


def verdict(found: Results) -> Verdict:
    means = [row["mean"] for row in found["error"]["trained"]]
    falling = all(later < earlier for earlier, later in pairwise(means))
    lower = [row["high"] < 0 for row in found["trained_minus_random"]]
    if falling and all(lower) and found["error"]["trained"][-1]["low"] > 0.25:
        return "strong"
    return "weak" if means[-1] < means[0] and found["trained_minus_random"][-1]["mean"] < 0 else "null"


EXPERIMENT = Experiment(
    name="c10_linformer_error",
    claim=(
        "More mixtures are better, and trained attention is easier to summarise than random attention whose scores "
        "spread as much, at every rank. But half as many mixtures as positions still miss more than a quarter of what "
        "attention adds to the mean of the values."
    ),
    run=run,
    verdict=verdict,
    config={"n": 64, "texts": 24, "ranks": [4, 8, 16, 32], "fit_steps": 60, "fit_lr": 0.004},
    reduced={"ranks": [4, 32], "texts": 12, "fit_steps": 40},
    seeds=(3, 4, 5),
)

if __name__ == "__main__":
    main(EXPERIMENT)
