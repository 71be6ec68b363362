"""What is a poor gate worth over good experts?

A decoder with experts is trained with the balancing loss. Then the experts are frozen and the gate is spoilt in every
layer, without any training: noise is added to its logits, its weights are made equal, or it is replaced by chance, by
its own third and fourth choices, or by its last. The unit of the noise is the standard deviation of the layer's logits.

At the end the spoilt gate is thrown away, a new one is drawn, and the router alone learns for a few steps: are the
experts still worth what they were?
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.balanced import Balanced, balanced, held_out_loss, learn, objective, refit
from experiments.moe import reference
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

Gate = Callable[[Tensor], tuple[Tensor, Tensor]]


def gates(config: Config, seed: int) -> dict[str, Gate | None]:
    """Ways to choose from the trained logits. The random numbers are those of the seed."""
    top_k, draws = config["top_k"], torch.Generator().manual_seed(seed)
    route = reference("13-router").route

    def noisy(size: float) -> Gate:
        return lambda x: route(x + size * x.std() * torch.randn(x.shape, generator=draws), top_k)

    def even(x: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = route(x, top_k)
        return torch.full_like(weights, 1 / top_k), experts

    def ranks(first: int) -> Gate:
        """The trained choice's weights, given to the experts that stand from `first` on in its order."""

        def gate(x: Tensor) -> tuple[Tensor, Tensor]:
            return route(x, top_k)[0], x.argsort(-1, descending=True)[:, first : first + top_k]

        return gate

    def chance(x: Tensor) -> tuple[Tensor, Tensor]:
        return route(x, top_k)[0], torch.rand(x.shape, generator=draws).argsort(-1)[:, :top_k]

    noise = {f"noise_{size:g}": noisy(size) for size in config["noise"]}
    others = {"equal_weights": even, "next_choices": ranks(top_k), "chance": chance}
    return {"trained": None, **noise, **others, "last_choices": ranks(config["n_experts"] - top_k)}


def run(config: Config, seeds: Sequence[int]) -> Results:
    losses: dict[str, list[float]] = {}
    for seed in seeds:
        model = learn(
            lambda: Balanced(
                config["d_model"], config["d_hidden"], n_experts=config["n_experts"], top_k=config["top_k"]
            ),
            config,
            seed,
            loss=objective(balance=0.01),
        )
        for name, gate in gates(config, seed).items():
            for layer in balanced(model):
                layer.gate = gate
            losses.setdefault(name, []).append(held_out_loss(model, config))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for layer in balanced(model):
            layer.gate = None
            torch.nn.init.normal_(layer.router.weight.requires_grad_(), std=0.02)
        losses.setdefault("new_gate", []).append(held_out_loss(model, config))
        refit(model, config, seed + 1000, steps=config["gate_steps"], lr=config["gate_rate"])
        losses.setdefault("new_gate_trained", []).append(held_out_loss(model, config))
    return {
        "noise": config["noise"],
        "test_loss": {name: estimate(values) for name, values in losses.items()},
        "cost": {name: paired(values, losses["trained"]) for name, values in losses.items() if name != "trained"},
    }


def verdict(found: Results) -> Verdict:
    cost = found["cost"]
    chance, noise, retrained = cost["chance"], cost["noise_0.5"], cost["new_gate_trained"]
    if chance["low"] > 0.4 and noise["high"] < chance["mean"] / 4 and retrained["high"] < chance["mean"] / 5:
        return "strong"
    return "weak" if chance["mean"] > max(2 * noise["mean"], retrained["mean"], 0) else "null"


EXPERIMENT = Experiment(
    name="c14_poor_gate",
    claim=(
        "Over trained and frozen experts, a gate that chooses at random costs at least 0.4 nats of test loss. Noise of "
        "half a standard deviation of its logits costs less than a quarter of that, and a new gate that learns alone "
        "for 50 steps comes back to within a fifth of it. All three hold for the 95 % intervals of the costs."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "d_hidden": 64,
        "n_layers": 2,
        "n_experts": 8,
        "top_k": 2,
        "length": 64,
        "batch": 8,
        "steps": 300,
        "embedding_scale": 5,
        "learning_rate": 0.005,
        "noise": [0.25, 0.5, 1, 2],
        "gate_steps": 50,
        "gate_rate": 0.02,
        "test_batches": 6,
    },
    reduced={"steps": 60, "batch": 4, "test_batches": 1, "noise": [0.5], "gate_steps": 10},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
