"""What does a causal mask cost a reader?

Synthetic texts of four blocks. Each holds one word with two senses, one clue that settles which it is, and two fillers.
Either the clue stands one to three places to the right of its word, or the text is mirrored and it stands to the left.
Every ambiguous word is to be tagged where it stands, with its sense.

The same layers, the notebook's encoder layers in T5's style with relative positions, are trained under three
conditions: no mask, a causal mask, and a causal mask over the text written twice, tagged in its second copy. The second
copy has the whole text before it; that doubles the tokens, and so the cost.

The learning rate of each condition is the one with the lowest validation loss on a seed of its own. Accuracy is on new
texts. A coin is right half of the time.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load
from ichimon.train import Settings, evaluate, fit

WORDS, CLUES, FILLERS, BLOCK = 4, 8, 8, 4  # ids in this order; an even clue means one sense, an odd one the other
IGNORE = -100
CONDITIONS = ("no_mask", "causal", "causal_twice")


def texts(config: Config, side: str, batch: int, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Texts [batch, 4 · n_blocks] and, where a word is ambiguous, its sense, 0 or 1."""
    draw = torch.Generator().manual_seed(hash(tuple(seed)) % 2**62)
    blocks = config["n_blocks"]
    ids = WORDS + CLUES + torch.randint(FILLERS, (batch, blocks, BLOCK), generator=draw)
    ids[..., 0] = torch.randint(WORDS, (batch, blocks), generator=draw)
    clue = torch.randint(CLUES, (batch, blocks), generator=draw)
    place = torch.randint(1, BLOCK, (batch, blocks, 1), generator=draw)
    ids.scatter_(-1, place, WORDS + clue[..., None])
    senses = torch.full_like(ids, IGNORE)
    senses[..., 0] = clue % 2
    ids, senses = ids.flatten(1), senses.flatten(1)
    return (ids, senses) if side == "right" else (ids.flip(1), senses.flip(1))


@cache
def reference() -> ModuleType:
    return load(ROOT / "solutions/08-three-shapes.py")


class Tagger(nn.Module):
    """Encoder layers under one of three masks, and a tag for every position."""

    def __init__(self, condition: str, config: Config) -> None:
        super().__init__()
        d_model, n_heads = config["d_model"], config["n_heads"]
        self.condition = condition
        self.tokens, self.places = nn.Embedding(WORDS + CLUES + FILLERS, d_model), nn.Embedding(32, n_heads)
        self.layers = nn.ModuleList(
            reference().EncoderLayer(d_model, n_heads, 4 * d_model) for _ in range(config["n_layers"])
        )
        self.norm, self.read = nn.RMSNorm(d_model, eps=1e-6), nn.Linear(d_model, 2)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        if self.condition == "causal_twice":
            ids = torch.cat([ids, ids], 1)
        n = ids.shape[1]
        mask = None if self.condition == "no_mask" else torch.ones(n, n, dtype=torch.bool).tril()
        distance = torch.arange(n)[None] - torch.arange(n)[:, None]
        bias = self.places(reference().relative_position_bucket(distance, mask is None, 32, 64)).permute(2, 0, 1)
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x, mask, bias)
        return self.read(self.norm(x[:, -length:]))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, senses = batch
    return cross_entropy(model(ids).flatten(0, 1), senses.flatten(), ignore_index=IGNORE)


def train(condition: str, side: str, lr: float, seed: int, config: Config) -> nn.Module:
    torch.manual_seed(seed)
    model = Tagger(condition, config)
    settings = Settings(steps=config["steps"], lr=lr, warmup=config["warmup"], seed=seed, device="cpu")
    fit(model, lambda step: texts(config, side, config["batch"], (0, seed, step)), settings, loss=loss, quiet=True)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, side: str, config: Config, seed: int) -> float:
    ids, senses = texts(config, side, config["n_test"], (2, seed))
    asked = senses != IGNORE
    return (model(ids).argmax(-1)[asked] == senses[asked]).float().mean().item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    found: Results = {"accuracy": {}, "learning_rate": {}}
    trials: list[dict[str, Any]] = []
    for side in ("left", "right"):
        found["accuracy"][side], found["learning_rate"][side] = {}, {}
        for condition in CONDITIONS:
            tried = []
            for lr in config["learning_rates"]:
                model = train(condition, side, lr, config["tuning_seed"], config)
                held_out = texts(config, side, config["n_test"], (1, config["tuning_seed"]))
                validation = evaluate(model, lambda i, held_out=held_out: held_out, 1, loss)  # type: ignore[misc]
                tried.append({"side": side, "condition": condition, "learning_rate": lr, "validation": validation})
            trials += tried
            lr = min(tried, key=lambda trial: trial["validation"])["learning_rate"]
            values = [accuracy(train(condition, side, lr, seed, config), side, config, seed) for seed in seeds]
            found["accuracy"][side][condition] = estimate(values)
            found["learning_rate"][side][condition] = lr
    return {**found, "trials": trials}


def verdict(found: Results) -> Verdict:
    left, right = found["accuracy"]["left"], found["accuracy"]["right"]
    free = min(left["no_mask"]["low"], left["causal"]["low"], right["no_mask"]["low"]) > 0.95
    if free and right["causal"]["high"] < 0.55 and right["causal_twice"]["low"] > 0.95:
        return "strong"
    return "weak" if right["no_mask"]["mean"] > right["causal"]["mean"] + 0.1 else "null"


EXPERIMENT = Experiment(
    name="c08_bidirectional",
    claim=(
        "With the clue to the right of the word, a causal mask leaves a tagger at chance, below 55 %, where the same "
        "layers without a mask pass 95 %. With the clue to the left both pass 95 %. The causal model passes 95 % on "
        "the right as well if it reads the text twice."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "n_blocks": 4,
        "steps": 200,
        "batch": 32,
        "warmup": 20,
        "n_test": 500,
        "learning_rates": [0.003, 0.01],
        "tuning_seed": 100,
    },
    reduced={"steps": 60, "learning_rates": [0.01], "n_test": 200},
)

if __name__ == "__main__":
    main(EXPERIMENT)
