"""Is a gated feed-forward layer better than a plain one of the same cost?

Shazeer 2020 (arXiv:2002.05202) found lower perplexity for gated layers in T5. Here a decoder of two blocks is trained
on real prose with each of three layers: GELU and ReLU with 4·d_model hidden units, SwiGLU with 8/3·d_model. None has a
bias and d_model is a multiple of 3, so parameters and FLOPs are exactly equal. A seed decides the initialisation and
the text, which both models of a pair read in the same order.

The learning rate is chosen for each layer on validation text and a seed of its own; what is reported is the loss on
test text. Embeddings begin five times as large as the decoder's own, because the runs are short: so all models learn
faster. The claim was written after pilot runs of one seed that had settled what to train and for how long.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load


class Plain(nn.Module):
    """A feed-forward layer without biases: up, activation, down."""

    def __init__(self, d_model: int, d_hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d_model, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/04-feed-forward.py")
    d_model, length = config["d_model"], config["length"]
    layers: dict[str, Callable[[], nn.Module]] = {
        "gelu": lambda: Plain(d_model, 4 * d_model, reference.gelu),
        "relu": lambda: Plain(d_model, 4 * d_model, torch.relu),
        "swiglu": lambda: reference.SwiGLU(d_model, reference.swiglu_hidden(d_model, 1)),
    }
    texts = {split: corpus.tokens(corpus.PROSE, split) for split in ("train", "validation", "test")}

    def loss(name: str, seed: int, lr: float, split: str) -> float:
        torch.manual_seed(seed)
        model = Decoder(corpus.VOCABULARY, d_model=d_model, feed_forward=layers[name])
        with torch.no_grad():
            model.tokens.weight.mul_(config["embedding_scale"])
        settings = train.Settings(steps=config["steps"], lr=lr, warmup=config["warmup"], seed=seed, device="cpu")
        batches = train.windows(texts["train"], batch=config["batch"], length=length, seed=seed)
        train.fit(model, batches, settings, quiet=True)
        return train.evaluate(model, train.windows(texts[split], batch=32, length=length), config["evaluate_batches"])

    trials, best = [], {}
    for name in layers:
        tried = [
            {"layer": name, "learning_rate": lr, "loss": loss(name, config["tuning_seed"], lr, "validation")}
            for lr in config["learning_rates"]
        ]
        best[name] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        trials += tried
    losses = {name: [loss(name, seed, best[name], "test") for seed in seeds] for name in layers}
    return {
        "loss": {name: estimate(values) for name, values in losses.items()},
        "swiglu_minus_gelu": paired(losses["swiglu"], losses["gelu"]),
        "swiglu_minus_relu": paired(losses["swiglu"], losses["relu"]),
        "relu_minus_gelu": paired(losses["relu"], losses["gelu"]),
        "parameters": {name: sum(p.numel() for p in layer().parameters()) for name, layer in layers.items()},
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    over_gelu, over_relu = found["swiglu_minus_gelu"], found["swiglu_minus_relu"]
    if over_gelu["high"] < 0 and over_relu["high"] < 0:
        return "strong"
    return "weak" if over_gelu["mean"] < 0 and over_relu["mean"] < 0 else "null"


EXPERIMENT = Experiment(
    name="c04_gated",
    claim=(
        "At exactly equal parameters and FLOPs, a small decoder with SwiGLU reaches a lower test loss than one with "
        "GELU and than one with ReLU: the 95 % interval of each paired difference lies below zero."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 48,
        "length": 64,
        "batch": 16,
        "steps": 250,
        "warmup": 30,
        "embedding_scale": 5,
        "learning_rates": [0.006, 0.012, 0.024],
        "tuning_seed": 100,
        "evaluate_batches": 24,
    },
    reduced={"steps": 20, "warmup": 5, "batch": 8, "learning_rates": [0.012], "evaluate_batches": 2},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
