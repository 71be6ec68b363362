"""Does it matter who decides where a token goes, as long as it is decided before training?

The same decoder with four ways to route: a router that learns (with the balancing loss), one that is never trained, a
table drawn once that sends each entry of the vocabulary to two fixed experts, and a draw anew for each token at each
step. The learning rate is chosen for each on validation text and a seed of its own; what is reported is the loss on
test text. Chapter 15 asks the same question of a longer training.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from experiments.balanced import effective, held_out_loss, learn, load_by_layer, objective
from experiments.moe import MoE, Routing
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired


def run(config: Config, seeds: Sequence[int]) -> Results:
    def trained(routing: Routing, seed: int, lr: float) -> nn.Module:
        return learn(
            lambda: MoE(
                config["d_model"],
                config["d_hidden"],
                n_experts=config["n_experts"],
                top_k=config["top_k"],
                routing=routing,
            ),
            config,
            seed,
            lr=lr,
            loss=objective(balance=0.01 if routing == "learned" else 0.0),
        )

    trials: list[dict[str, Any]] = []
    losses: dict[str, list[float]] = {}
    experts: dict[str, list[float]] = {}
    for routing in config["routings"]:
        tried = []
        for lr in config["learning_rates"] if len(config["learning_rates"]) > 1 else []:
            model = trained(routing, config["tuning_seed"], lr)
            loss = held_out_loss(model, config, "validation")
            tried.append({"routing": routing, "learning_rate": lr, "validation_loss": loss})
        trials += tried
        best = min(
            tried, key=lambda trial: trial["validation_loss"], default={"learning_rate": config["learning_rates"][0]}
        )
        for seed in seeds:
            model = trained(routing, seed, best["learning_rate"])
            losses.setdefault(routing, []).append(held_out_loss(model, config))
            loads = load_by_layer(model, config)
            experts.setdefault(routing, []).append(min(effective(shares) for shares in loads))
    return {
        "test_loss": {routing: estimate(values) for routing, values in losses.items()},
        "over_learned": {name: paired(losses[name], losses["learned"]) for name in losses if name != "learned"},
        "effective": {routing: estimate(values) for routing, values in experts.items()},
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    over = found["over_learned"]
    if over["hash"]["high"] < 0.05 and over["random"]["low"] > 0.2:
        return "strong"
    return "weak" if over["hash"]["mean"] < 0.05 and over["random"]["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c14_routing",
    claim=(
        "In a short training, a table drawn once is no worse than a router that learns: its test loss is less than "
        "0.05 nats above. A draw anew for each token at each step is at least 0.2 nats worse. Both hold for the 95 % "
        "intervals of the differences, paired by seed."
    ),
    run=run,
    verdict=verdict,
    config={
        "routings": ["learned", "frozen", "hash", "random"],
        "d_model": 64,
        "d_hidden": 64,
        "n_layers": 2,
        "n_experts": 8,
        "top_k": 2,
        "length": 64,
        "batch": 8,
        "steps": 200,
        "embedding_scale": 5,
        "learning_rates": [0.004, 0.01],
        "tuning_seed": 100,
        "test_batches": 6,
    },
    reduced={
        "routings": ["learned", "hash", "random"],
        "steps": 60,
        "batch": 4,
        "learning_rates": [0.006],
        "test_batches": 1,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
