"""Is RMSNorm as good as LayerNorm, and what does it save?

Zhang and Sennrich 2019 (arXiv:1910.07467) leave the mean where it is, find the quality comparable and the running time
shorter. Quality: the same small decoder with one norm or the other, same batches and otherwise the same initial
weights, the learning rate tuned for each on validation with a seed of its own; the difference in test loss is paired by
seed.

Cost: CPU time of forward and backward, the two taking turns, as a ratio. Written out means the notebook's own modules,
a handful of PyTorch operations each. PyTorch's own are F.layer_norm and F.rms_norm; on a CPU the first is one fused
kernel and the second is not, so their ratio says more about kernels than about norms. A training step is forward and
backward of the decoder with the notebook's norms.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main, paired
from ichimon.notebook import load


def backwards(model: nn.Module, batch: Tensor) -> None:
    train.next_token(model, batch).backward()


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/05-normalisation.py")
    norms: dict[str, Callable[[int], nn.Module]] = {"layer": reference.LayerNorm, "rms": reference.RMSNorm}
    ids = corpus.tokens(corpus.PROSE, "train")
    held_out = {
        name: train.windows(corpus.tokens(corpus.PROSE, name), batch=32, length=config["length"])
        for name in ("validation", "test")
    }

    def learn(norm: str, lr: float, seed: int, steps: int, split: str) -> float:
        torch.manual_seed(seed)
        model = Decoder(corpus.VOCABULARY, d_model=config["d_model"], norm=norms[norm])
        settings = train.Settings(steps=steps, lr=lr, warmup=steps // 10, evaluate_every=steps, seed=seed, device="cpu")
        batches = train.windows(ids, batch=config["batch"], length=config["length"], seed=seed)
        train.fit(model, batches, settings, quiet=True)
        return train.evaluate(model, held_out[split], config["test_batches"])

    trials: list[dict[str, Any]] = []
    losses: dict[str, list[float]] = {}
    for norm in norms:
        tried = []
        for lr in config["learning_rates"]:
            loss = learn(norm, lr, config["tuning_seed"], config["tuning_steps"], "validation")
            tried.append({"norm": norm, "learning_rate": lr, "validation_loss": loss})
        trials += tried
        lr = min(tried, key=lambda trial: trial["validation_loss"])["learning_rate"]
        losses[norm] = [learn(norm, lr, seed, config["steps"], "test") for seed in seeds]

    found: Results = {
        "test_loss": {norm: estimate(values) for norm, values in losses.items()},
        "rms_minus_layer": paired(losses["rms"], losses["layer"]),
        "widths": config["widths"],
        "rms_over_layer": {"written_out": [], "pytorch": []},
    }
    for width in config["widths"]:
        ratios: dict[str, list[float]] = {"written_out": [], "pytorch": []}
        for seed in seeds:
            torch.manual_seed(seed)
            x = torch.randn(config["positions"], width, requires_grad=True)
            upstream = torch.randn_like(x)
            weight, bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

            def both(forward: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Callable[[], None]:
                return lambda: forward(x).backward(upstream)

            competing: dict[str, Callable[[Tensor], Tensor]] = {norm: make(width) for norm, make in norms.items()}
            competing |= {
                "pytorch_layer": partial(functional.layer_norm, normalized_shape=(width,), weight=weight, bias=bias),
                "pytorch_rms": partial(functional.rms_norm, normalized_shape=(width,), weight=weight),
            }
            competitors = {name: both(forward, x, upstream) for name, forward in competing.items()}
            times = interleaved(competitors, repeats=config["repeats"])
            ratios["written_out"].append(sum(times["rms"]) / sum(times["layer"]))
            ratios["pytorch"].append(sum(times["pytorch_rms"]) / sum(times["pytorch_layer"]))
        for kind, values in ratios.items():
            found["rms_over_layer"][kind].append(estimate(values))

    steps_ratio = []
    for seed in seeds:
        batch = train.windows(ids, batch=config["batch"], length=config["length"], seed=seed)(0)
        models = {
            norm: Decoder(corpus.VOCABULARY, d_model=config["d_model"], norm=make) for norm, make in norms.items()
        }
        times = interleaved(
            {norm: partial(backwards, model, batch) for norm, model in models.items()}, repeats=config["repeats"]
        )
        steps_ratio.append(sum(times["rms"]) / sum(times["layer"]))
    return {**found, "step_ratio": estimate(steps_ratio), "trials": trials}


def verdict(found: Results) -> Verdict:
    difference, wide = found["rms_minus_layer"], found["rms_over_layer"]["written_out"][-1]
    if difference["low"] > -0.05 and difference["high"] < 0.05 and wide["high"] < 0.8:
        return "strong"
    return "weak" if abs(difference["mean"]) < 0.05 and wide["mean"] < 1 else "null"


EXPERIMENT = Experiment(
    name="c05_rms_against_layer",
    claim=(
        "RMSNorm is as good as LayerNorm and cheaper: the difference in test loss is within ±0.05 nats with 95 % "
        "confidence, and written out, forward and backward at width 1024 take less than 80 % of LayerNorm's CPU time."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "batch": 8,
        "length": 64,
        "steps": 250,
        "learning_rates": [0.002, 0.005, 0.0125],
        "tuning_seed": 100,
        "tuning_steps": 100,
        "test_batches": 8,
        "positions": 512,
        "widths": [64, 256, 1024],
        "repeats": 20,
    },
    reduced={
        "steps": 40,
        "learning_rates": [0.005],
        "tuning_steps": 2,
        "test_batches": 2,
        "widths": [1024],
        "repeats": 8,
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
