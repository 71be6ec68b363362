"""What does it cost a token to visit fewer machines?

A small decoder with experts, spread over groups as DeepSeek-V3's are over machines, is trained on real prose with
chapter 16's route_in_groups, balanced by chapter 14's bias_update. Once all groups stay, and then fewer and fewer.
Counted on test text: how many groups a token visits in a layer, which is how often its vector has to travel (once to
each machine, however many of its experts live there), how evenly the experts are used, and the loss.

The rival is thrift after the fact: the model that was trained with all groups, limited only when it is used.

The learning rate is chosen for each on validation text and a seed of its own. A token's share of all groups is also
computed for experts that are drawn at random.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.balanced import Balanced, balanced, effective, held_out_loss, learn, load_by_layer, text
from experiments.moe import reference
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired


def limit(layer: Balanced, n_groups: int, top_groups: int, rate: float) -> None:
    """Let chapter 16's router choose, and chapter 14's rule move the correction while training."""

    def gate(logits: Tensor) -> tuple[Tensor, Tensor]:
        routed = reference("16-moe-families").route_in_groups(
            logits, layer.bias, layer.top_k, n_groups, top_groups, 1.0
        )
        if layer.training:
            layer.bias = reference("14-balance").bias_update(layer.bias, routed[1], rate)
        layer.experts = routed[1]
        return routed

    layer.gate = gate


def trained(config: Config, top_groups: int, seed: int, lr: float) -> nn.Module:
    def layer() -> nn.Module:
        made = Balanced(config["d_model"], config["d_hidden"], n_experts=config["n_experts"], top_k=config["top_k"])
        limit(made, config["n_groups"], top_groups, config["bias_rate"])
        return made

    return learn(layer, config, seed, lr=lr)


@torch.no_grad()
def visited(model: nn.Module, config: Config) -> float:
    """How many groups a token of the test text visits in a layer, on average."""
    model.eval()
    size = config["n_experts"] // config["n_groups"]
    batches, found = text("test", config, batch=32), []
    for step in range(config["test_batches"]):
        model(batches(step)[:, :-1])
        for layer in balanced(model):
            assert layer.experts is not None, "every token has passed every layer"
            groups = torch.nn.functional.one_hot(layer.experts // size, config["n_groups"]).amax(1)
            found.append(groups.sum(-1).float().mean().item())
    return sum(found) / len(found)


def by_chance(config: Config) -> float:
    """The groups visited if a token's experts are drawn at random."""
    n, k, groups = config["n_experts"], config["top_k"], config["n_groups"]
    return groups * (1 - math.comb(n - n // groups, k) / math.comb(n, k))


def run(config: Config, seeds: Sequence[int]) -> Results:
    trials: list[dict[str, Any]] = []
    losses: dict[int, list[float]] = {}
    late: dict[int, list[float]] = {kept: [] for kept in config["kept"][1:]}
    groups: dict[int, list[float]] = {}
    even: dict[int, list[float]] = {}
    for kept in config["kept"]:
        rates = config["learning_rates"]
        tried = []
        for lr in rates if len(rates) > 1 else []:
            model = trained(config, kept, config["tuning_seed"], lr)
            loss = held_out_loss(model, config, "validation")
            tried.append({"kept": kept, "learning_rate": lr, "validation_loss": loss})
        trials += tried
        best = min(tried, key=lambda trial: trial["validation_loss"], default={"learning_rate": rates[0]})
        for seed in seeds:
            model = trained(config, kept, seed, best["learning_rate"])
            losses.setdefault(kept, []).append(held_out_loss(model, config))
            groups.setdefault(kept, []).append(visited(model, config))
            even.setdefault(kept, []).append(min(effective(shares) for shares in load_by_layer(model, config)))
            for fewer in late if kept == config["n_groups"] else []:
                for layer in balanced(model):
                    limit(layer, config["n_groups"], fewer, 0.0)
                late[fewer].append(held_out_loss(model, config))
    free = losses[config["n_groups"]]
    return {
        "test_loss": {str(kept): estimate(values) for kept, values in losses.items()},
        "groups_visited": {str(kept): estimate(values) for kept, values in groups.items()},
        "groups_by_chance": by_chance(config),
        "effective_experts": {str(kept): estimate(values) for kept, values in even.items()},
        "cost": {str(kept): paired(losses[kept], free) for kept in late},
        "cost_afterwards": {str(kept): paired(values, free) for kept, values in late.items()},
        "afterwards_over_trained": {str(kept): paired(values, losses[kept]) for kept, values in late.items()},
        "share_of_journeys": estimate(
            [few / many for few, many in zip(groups[2], groups[config["n_groups"]], strict=True)]
        ),
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    few = found["share_of_journeys"]["high"] < 0.7
    cheap, worse = found["cost"]["2"], found["afterwards_over_trained"]["2"]
    if few and cheap["high"] < 0.05 and worse["low"] > 0:
        return "strong"
    return "weak" if few and cheap["mean"] < 0.05 and worse["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c16_groups",
    claim=(
        "Limited to 2 of 8 groups, a token makes less than 70 % of the journeys that it makes if it may choose freely, "
        "and the test loss is less than 0.05 nats higher if the model was trained so. The same limit put on the freely "
        "trained model afterwards costs more than that."
    ),
    run=run,
    verdict=verdict,
    config={
        "kept": [8, 4, 2, 1],
        "n_groups": 8,
        "n_experts": 32,
        "top_k": 4,
        "bias_rate": 0.005,
        "d_model": 64,
        "d_hidden": 32,
        "n_layers": 2,
        "length": 64,
        "batch": 8,
        "steps": 200,
        "embedding_scale": 5,
        "learning_rates": [0.004, 0.01],
        "tuning_seed": 100,
        "test_batches": 6,
    },
    reduced={"kept": [8, 2], "learning_rates": [0.01], "steps": 25, "length": 32, "test_batches": 1, "n_layers": 1},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
