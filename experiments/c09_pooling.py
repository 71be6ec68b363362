"""What is the best way to give a trained model fewer heads of keys and values?

A decoder with 8 heads of keys and values is trained on real prose. Then it gets 2 in the place of 8: the mean of each
group of four (the reference's pool_heads), the first head of each group, or random heads whose entries have the same
spread. The loss on test text is noted at once, and again as each is trained further, on text that none has read.
Beside them the model with 8 heads is trained further as well. Ainslie et al. 2023 (arXiv:2305.13245, section 2.1 and
figure 4) compared these three in T5 and found the mean best and random heads worst.

The learning rate of the further training is chosen for each way on validation text and a seed of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.grouped_decoder import N_HEADS, decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.notebook import load

State = dict[str, Tensor]
WAYS = ("mean", "first", "random")


def converted(parts: Any, state: State, way: str, n_kv_heads: int) -> State:
    """The state dict of a model with fewer heads of keys and values."""
    if way == "mean":
        return parts.pool_heads(state, N_HEADS, n_kv_heads)
    found = dict(state)
    for name, value in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            first = value.unflatten(0, (n_kv_heads, N_HEADS // n_kv_heads, -1))[:, 0].flatten(0, 1)
            found[name] = first if way == "first" else value.std() * torch.randn_like(first)
    return found


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/09-grouped-queries.py")
    few, length = config["n_kv_heads"], config["length"]
    texts = {split: corpus.tokens(corpus.PROSE, split) for split in ("train", "validation", "test")}

    def more(model: torch.nn.Module, steps: int, lr: float, seed: int, warmup: int, final: float) -> None:
        settings = train.Settings(steps=steps, lr=lr, warmup=warmup, final_lr=final, seed=seed, device="cpu")
        train.fit(
            model, train.windows(texts["train"], batch=config["batch"], length=length, seed=seed), settings, quiet=True
        )

    def score(model: torch.nn.Module, split: str) -> float:
        return train.evaluate(model, train.windows(texts[split], batch=32, length=length), config["evaluate_batches"])

    def trained(seed: int) -> State:
        torch.manual_seed(seed)
        model = decoder(parts, "grouped")
        more(model, config["steps"], config["learning_rate"], seed, config["steps"] // 10, 0.1)
        return model.state_dict()

    def curve(state: State, way: str, seed: int, lr: float, split: str) -> list[float]:
        """The loss at once and after each stretch of further training."""
        torch.manual_seed(seed)
        model = decoder(parts, "grouped", n_kv_heads=N_HEADS if way == "8 heads" else few)
        model.load_state_dict(state if way == "8 heads" else converted(parts, state, way, few))
        found = [score(model, split)]
        for i, steps in enumerate(config["stretches"]):
            more(model, steps, lr, 1000 * (i + 1) + seed, 0, 1.0)
            found.append(score(model, split))
        return found

    ways, trials, best = (*WAYS, "8 heads"), [], {}
    tuned = trained(config["tuning_seed"])
    for way in ways:
        tried = [
            {"way": way, "learning_rate": lr, "loss": curve(tuned, way, config["tuning_seed"], lr, "validation")[-1]}
            for lr in config["learning_rates"]
        ]
        best[way] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
        trials += tried
    curves: dict[str, list[list[float]]] = {way: [] for way in ways}
    for seed in seeds:
        state = trained(seed)
        for way in ways:
            curves[way].append(curve(state, way, seed, best[way], "test"))
    points = range(len(config["stretches"]) + 1)
    columns = {way: [[row[i] for row in rows] for i in points] for way, rows in curves.items()}
    return {
        "further_steps": [sum(config["stretches"][:i]) for i in points],
        "share_of_training": [sum(config["stretches"][:i]) / config["steps"] for i in points],
        "loss": {way: [estimate(column) for column in rows] for way, rows in columns.items()},
        "first_minus_mean": [paired(columns["first"][i], columns["mean"][i]) for i in points],
        "random_minus_mean": [paired(columns["random"][i], columns["mean"][i]) for i in points],
        "random_minus_first": [paired(columns["random"][i], columns["first"][i]) for i in points],
        "mean_minus_8_heads": [paired(columns["mean"][i], columns["8 heads"][i]) for i in points],
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    first, random = found["first_minus_mean"], found["random_minus_first"]
    soon = 1  # after the first stretch of further training
    if first[0]["low"] > 0 and random[0]["low"] > 0 and first[soon]["low"] > 0:
        return "strong"
    return "weak" if first[0]["mean"] > 0 and random[0]["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c09_pooling",
    claim=(
        "At once, the mean of each group loses less than its first head, and the first head less than random heads; "
        "after further training of 5 % of the steps the mean is still ahead of the first head. The 95 % intervals of "
        "the paired differences lie above zero."
    ),
    run=run,
    verdict=verdict,
    config={
        "n_kv_heads": 2,
        "length": 64,
        "batch": 16,
        "steps": 200,
        "learning_rate": 0.01,
        "stretches": [10, 10, 20, 40],
        "learning_rates": [0.001, 0.003],
        "tuning_seed": 100,
        "evaluate_batches": 6,
    },
    reduced={"steps": 40, "batch": 8, "stretches": [2], "learning_rates": [0.003], "evaluate_batches": 1},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
