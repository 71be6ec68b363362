"""Which of the methods keep all experts at work?

A decoder with experts is trained on real prose with nothing to balance it, with the balancing loss, with the router
z-loss, with DeepSeek-V3's bias, and with a capacity. Everything else is the same for the five models of a seed: the
text, its order, the initial weights, the learning rate. Then the routings of test text are counted, layer by layer.

The measure is the effective number of experts: e to the power of the entropy of their shares. It is 8 where eight
experts share the work evenly, and 1 where one does it all. The test loss is reported, and it is no contest: each method
has one setting, and the learning rate was not tuned for it.
"""

from collections.abc import Sequence

from experiments.balanced import Balanced, balanced, effective, held_out_loss, learn, load_by_layer, objective
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main

METHODS: dict[str, dict[str, dict[str, float]]] = {
    "nothing": {},
    "loss": {"terms": {"balance": 0.01}},
    "z_loss": {"terms": {"z": 0.001}},
    "bias": {"layer": {"bias_rate": 0.01}},
    "capacity": {"layer": {"capacity_factor": 1.25}},
}


def log_z(layer: Balanced) -> float:
    """The size of what the z-loss is made of, for the last batch of test text."""
    assert layer.logits is not None
    return float(layer.logits.float().logsumexp(-1).abs().mean())


def dropped_share(layer: Balanced) -> float:
    """The share of that batch's routings that found no place."""
    assert layer.kept is not None
    return float((~layer.kept).float().mean())


def run(config: Config, seeds: Sequence[int]) -> Results:
    found: Results = {}
    for method in config["methods"]:
        how = METHODS[method]
        shares, losses, sizes, dropped = [], [], [], []
        for seed in seeds:
            model = learn(
                lambda how=how: Balanced(  # type: ignore[misc]  # mypy cannot infer a default's type
                    config["d_model"],
                    config["d_hidden"],
                    n_experts=config["n_experts"],
                    top_k=config["top_k"],
                    **how.get("layer", {}),
                ),
                config,
                seed,
                loss=objective(**how.get("terms", {})),
            )
            shares.append(load_by_layer(model, config))
            losses.append(held_out_loss(model, config))
            sizes.append([log_z(layer) for layer in balanced(model)])
            dropped.append([dropped_share(layer) for layer in balanced(model)])
        by_layer: list[list[list[float]]] = [list(layer) for layer in zip(*shares, strict=True)]
        found[method] = {
            "effective": [estimate([effective(share) for share in layer]) for layer in by_layer],
            "largest_share": [estimate([max(share) for share in layer]) for layer in by_layer],
            "shares": [[sorted(share, reverse=True) for share in layer] for layer in by_layer],
            "log_z": [estimate(layer) for layer in zip(*sizes, strict=True)],
            "dropped": [estimate(layer) for layer in zip(*dropped, strict=True)],
            "test_loss": estimate(losses),
        }
    return found


def verdict(found: Results) -> Verdict:
    def layers_of(bound: str, *methods: str) -> list[float]:
        return [layer[bound] for method in methods for layer in found[method]["effective"]]

    def last(bound: str) -> list[float]:
        return [found[method]["effective"][-1][bound] for method in ("nothing", "z_loss") if method in found]

    if min(layers_of("low", "loss", "bias")) > 7 and max(last("high")) < 6:
        return "strong"
    return "weak" if min(layers_of("mean", "loss", "bias")) > max(last("mean")) else "null"


EXPERIMENT = Experiment(
    name="c14_balance",
    claim=(
        "Left alone, the second of two layers leaves its work to fewer than 6 of 8 experts, counted by entropy, and "
        "the router z-loss does not change that; with the balancing loss, and with the bias, both layers use more "
        "than 7. All four hold for the 95 % intervals."
    ),
    run=run,
    verdict=verdict,
    config={
        "methods": list(METHODS),
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
        "test_batches": 6,
    },
    reduced={"methods": ["nothing", "loss", "bias"], "steps": 30, "batch": 4, "test_batches": 1},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
