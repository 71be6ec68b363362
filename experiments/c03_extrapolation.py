"""What happens past the length a model was trained for? Train on 48 characters, read 384.

Small decoders, alike but for how they know about positions, are trained on texts of 48 characters (bytes, so that order
matters from the first step on). Then all of them guess the same characters, the last 16 of each test text, with ever
more text before them: 48 characters, which is what training gave, up to 384.

- `none`: no positions at all. Only the causal mask tells a position from another (Haviv et al. 2022, arXiv:2203.16634);
- `sinusoidal`: waves, added to embeddings that are scaled by √d_model (Vaswani et al. 2017, sections 3.4 and 3.5);
- `learned`: a table with a row for each of 384 positions. A table of 48 rows could not be run at all past its end; here
  the rows from 48 on exist and are as they were initialised, because no training text reaches them;
- `rope`; and the same trained models read with their RoPE stretched, without any further training: `interpolated`
  (Chen et al. 2023) and `yarn` (Peng et al. 2023), each by the factor length / 48;
- `alibi`.

The learning rate of each is chosen by the validation loss at 48 characters, on a seed of its own and in a shorter run.
What is reported is the loss on test texts, in nats a character. `added` is the loss with more text less the loss with
48 characters, seed by seed.

A pilot of RoPE with a vocabulary of 1024 sub-words showed differences of hundredths: in the 300 steps that fit, the
model had hardly begun to use positions. The sizes and the numbers of the claim come from one pilot seed.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.decoder import Attention, Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

STRETCHED = ("interpolated", "yarn")  # other ways to read the models trained with RoPE
BYTES = 257  # the vocabulary: every byte, and what closes a text
D_MODEL, N_HEADS = 64, 4
D_HEAD = D_MODEL // N_HEADS


class Waves(nn.Module):
    """Sinusoidal positions added to scaled embeddings."""

    def __init__(self, table: Callable[[int, int], Tensor]) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: Tensor) -> Tensor:
        return x * D_MODEL**0.5 + self.table(x.shape[1], D_MODEL)


def turned(x: Tensor, frequencies: Tensor, attention_factor: float) -> Tensor:
    """RoPE, half-split, with frequencies of its own."""
    angles = torch.arange(x.shape[-2])[:, None] * frequencies
    a, b = x.chunk(2, -1)
    cos, sin = attention_factor * angles.cos(), attention_factor * angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/03-position.py")
    length, lengths, last, kinds = config["length"], config["lengths"], config["targets"], config["positions"]

    def new(kind: str, seed: int) -> Decoder:
        torch.manual_seed(seed)
        parts: dict[str, dict[str, Any]] = {
            "none": {},
            "sinusoidal": {"positions": Waves(reference.sinusoidal)},
            "learned": {"positions": reference.LearnedPositions(max(lengths), D_MODEL)},
            "rope": {"rotate": lambda x: reference.rope(x, torch.arange(x.shape[-2]))},
            "alibi": {"bias": lambda n: reference.alibi_bias(N_HEADS, n)},
        }
        return Decoder(BYTES, d_model=D_MODEL, n_layers=config["n_layers"], n_heads=N_HEADS, **parts[kind])

    def stretch(model: Decoder, kind: str) -> None:
        """Read a model that was trained with RoPE in another way: by as much as the text at hand needs."""
        method = "linear" if kind == "interpolated" else kind

        def rotate(x: Tensor) -> Tensor:
            factor = max(1.0, x.shape[-2] / length)
            return turned(x, *reference.stretch_rope(D_HEAD, factor, method, n_train=length))

        for block in model.blocks:
            cast(Attention, cast(Any, block).sublayers[0]).rotate = rotate

    def trained(kind: str, seed: int, lr: float, steps: int) -> Decoder:
        model = new(kind, seed)
        batches = train.windows(corpus.tokens(vocabulary=BYTES), batch=config["batch"], length=length, seed=seed)
        settings = train.Settings(steps=steps, lr=lr, warmup=20, seed=seed, device="cpu")
        train.fit(model, batches, settings, quiet=True)
        return model

    texts = {
        split: train.windows(
            corpus.tokens(split=split, vocabulary=BYTES), batch=config["n_texts"], length=max(lengths), seed=1
        )(0)
        for split in ("validation", "test")
    }

    @torch.no_grad()
    def loss(model: Decoder, n: int, split: str = "test") -> float:
        """On the last `last` characters of each text, with the n characters before the end to read."""
        found = texts[split]
        logits = model(found[:, -n - 1 : -1])[:, -last:]
        return cross_entropy(logits.flatten(0, 1), found[:, -last:].flatten()).item()

    trials: list[dict[str, Any]] = []
    best: dict[str, float] = {}
    for kind in kinds:
        tried = []
        for lr in config["learning_rates"]:
            model = trained(kind, config["tuning_seed"], lr, config["tuning_steps"])
            tried.append({"positions": kind, "learning_rate": lr, "loss": loss(model, length, "validation")})
        best[kind] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        trials += tried

    by_seed: dict[str, list[list[float]]] = {kind: [] for kind in (*kinds, *STRETCHED)}
    for seed in seeds:
        for kind in kinds:
            model = trained(kind, seed, best[kind], config["steps"])
            by_seed[kind].append([loss(model, n) for n in lengths])
            for way in STRETCHED if kind == "rope" else ():
                stretch(model, way)
                by_seed[way].append([loss(model, n) for n in lengths])
    columns = {kind: list(zip(*rows, strict=True)) for kind, rows in by_seed.items()}
    return {
        "length": length,
        "lengths": lengths,
        "loss": {kind: [estimate(values) for values in rows] for kind, rows in columns.items()},
        "added": {kind: [paired(values, rows[0]) for values in rows] for kind, rows in columns.items()},
        "rope_minus_other_at_trained_length": {
            kind: paired(columns["rope"][0], columns[kind][0]) for kind in kinds if kind != "rope"
        },
        "stretched_minus_rope": {
            kind: [paired(ours, rope) for ours, rope in zip(columns[kind], columns["rope"], strict=True)]
            for kind in STRETCHED
        },
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    added, twice = found["added"], found["lengths"].index(2 * found["length"])
    best = all(row["high"] < 0 for row in found["rope_minus_other_at_trained_length"].values())
    fails = all(added[kind][-1]["low"] > 0.2 for kind in ("rope", "sinusoidal", "learned") if kind in added)
    flat = all(row["low"] > -0.03 and row["high"] < 0.03 for row in added["alibi"][1:])
    helps = found["stretched_minus_rope"]["yarn"][twice]["high"] < 0
    if best and fails and flat and helps:
        return "strong"
    direction = added["rope"][-1]["mean"] > max(0, 2 * added["alibi"][-1]["mean"])
    return "weak" if direction else "null"


EXPERIMENT = Experiment(
    name="c03_extrapolation",
    claim=(
        "Of models trained on 48 characters, the one with RoPE is the best at 48. With 384 characters to read, RoPE, "
        "sinusoidal positions and a learned table with untrained rows all guess worse than with 48, by at least 0.2 "
        "nats a character each; ALiBi changes by less than 0.03 at every length, for the better or the worse. Read "
        "with YaRN, without further training, the RoPE models lose less at twice the trained length than unstretched."
    ),
    run=run,
    verdict=verdict,
    config={
        "positions": ["none", "sinusoidal", "learned", "rope", "alibi"],
        "length": 48,
        "lengths": [48, 72, 96, 192, 384],
        "targets": 16,
        "n_texts": 128,
        "n_layers": 2,
        "batch": 16,
        "steps": 400,
        "learning_rates": [2e-3, 4e-3, 8e-3],
        "tuning_steps": 250,
        "tuning_seed": 100,
    },
    reduced={
        "positions": ["rope", "alibi"],
        "lengths": [48, 96, 192],
        "n_texts": 32,
        "n_layers": 1,
        "batch": 8,
        "steps": 80,
        "learning_rates": [8e-3],
        "tuning_steps": 21,
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
