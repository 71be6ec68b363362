"""How many hidden units of a feed-forward layer are on at a time?

Li et al. 2023 (arXiv:2210.06313) found that in trained Transformers with ReLU only a few hidden units answer to each
token; Mirzadeh et al. 2024 (arXiv:2310.04564) use it to save work. Here a decoder of two blocks is trained on real
prose, with ReLU and with GELU, and the units are counted on test text before training and after more and more steps.

Counted for each layer: the share of units whose activation is positive (ReLU), for a mean token; the share whose
activation is above a tenth of the layer's root mean square in size, for both; units that are not positive for any token
of the test text (ReLU). At the beginning a unit's input is as often positive as negative, so half of them are on. The
learning rate is that of a pilot run and the same for both; the claim was written after it, and judged on other seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

N_LAYERS = 2


class Plain(nn.Module):
    """A feed-forward layer without biases that keeps its last activations, [..., d_hidden]."""

    def __init__(self, d_model: int, d_hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)
        self.activation = activation
        self.hidden = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.up(x))
        self.hidden = hidden.detach()
        return self.down(hidden)


@torch.no_grad()
def counted(layers: Sequence[Plain], model: nn.Module, text: Tensor) -> list[dict[str, float]]:
    """For each layer what a mean token switches on, and which units no token does."""
    model(text)
    found = []
    for layer in layers:
        hidden = layer.hidden.flatten(0, 1)
        size = 0.1 * hidden.square().mean().sqrt()
        found.append(
            {
                "positive": (hidden > 0).float().mean().item(),
                "above_a_tenth": (hidden.abs() > size).float().mean().item(),
                "never_positive": (~(hidden > 0).any(0)).float().mean().item(),
            }
        )
    return found


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/04-feed-forward.py")
    activations: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": reference.gelu}
    d_model, length = config["d_model"], config["length"]
    texts = {split: corpus.tokens(corpus.PROSE, split) for split in ("train", "test")}
    test = train.windows(texts["test"], batch=config["test_windows"], length=length)(0)[:, :-1]

    def trained(name: str, seed: int) -> tuple[list[list[dict[str, float]]], float]:
        """What was counted at each of the steps, and the loss on the test text at the end."""
        torch.manual_seed(seed)
        layers: list[Plain] = []

        def make() -> Plain:
            layers.append(Plain(d_model, 4 * d_model, activations[name]))
            return layers[-1]

        model = Decoder(corpus.VOCABULARY, d_model=d_model, n_layers=N_LAYERS, feed_forward=make)
        with torch.no_grad():
            model.tokens.weight.mul_(config["embedding_scale"])
        curve, done = [], 0

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            nonlocal done
            if done in config["count_at"]:
                curve.append(counted(layers, model, test))
            done += 1
            return train.next_token(model, batch)

        settings = train.Settings(
            steps=config["steps"], lr=config["learning_rate"], warmup=config["warmup"], seed=seed, device="cpu"
        )
        batches = train.windows(texts["train"], batch=config["batch"], length=length, seed=seed)
        train.fit(model, batches, settings, loss=loss, quiet=True)
        curve.append(counted(layers, model, test))
        return curve, train.evaluate(model, train.windows(texts["test"], batch=32, length=length), 8)

    found: dict[str, Any] = {"steps": [*config["count_at"], config["steps"]], "tokens": test.numel(), "loss": {}}
    for name in activations:
        curves, losses = zip(*(trained(name, seed) for seed in seeds), strict=True)
        found["loss"][name] = estimate(losses)
        found[name] = {
            measure: [
                [estimate([curve[at][layer][measure] for curve in curves]) for at in range(len(found["steps"]))]
                for layer in range(N_LAYERS)
            ]
            for measure in ("positive", "above_a_tenth", "never_positive")
        }
    return found


def verdict(found: Results) -> Verdict:
    on, gelu = found["relu"]["positive"], found["gelu"]["above_a_tenth"]
    begins = all(0.45 < layer[0]["mean"] < 0.55 for layer in on)
    sparse = on[0][-1]["high"] < 0.45 and on[-1][-1]["high"] < 0.1
    if begins and sparse and all(layer[-1]["low"] > 0.6 for layer in gelu):
        return "strong"
    return "weak" if all(layer[-1]["mean"] < layer[0]["mean"] for layer in on) else "null"


EXPERIMENT = Experiment(
    name="c04_how_many_on",
    claim=(
        "In a small decoder with ReLU half of the hidden units are on for a token before training (45 to 55 %). After "
        "it fewer than 45 % are in the first layer, and fewer than 10 % in the second. With GELU, which is never "
        "exactly zero, more than 60 % have an activation above a tenth of their layer's root mean square, in both."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 48,
        "length": 64,
        "batch": 16,
        "steps": 400,
        "warmup": 30,
        "learning_rate": 0.012,
        "embedding_scale": 5,
        "count_at": [0, 10, 30, 100, 200],
        "test_windows": 128,
    },
    reduced={"steps": 120, "batch": 8, "length": 32, "warmup": 10, "count_at": [0], "test_windows": 16},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
