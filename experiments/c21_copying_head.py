"""Is there a head that copies, and what breaks without it?

A model of two layers with four heads each, the chapter's LanguageModel, trains on random tokens that are written twice;
how long the text is before it is repeated changes from batch to batch, so that places tell nothing. Then:

- A score for every head, on texts that are not used again: how much of the attention of a position in the second half
  goes to the place right after the same token's first occurrence (Olsson et al. 2022, arXiv:2209.11895, call it prefix
  matching). For the first layer also: how much goes to the token just before.
- The head of the second layer with the highest score, and the head of the first layer that looks most at the token
  before, are each taken out: their output is replaced by its mean over random texts without a repetition
  (the chapter's mean_ablate). So is every other head, one at a time.

- Heads of the second layer with a score of at least 0.3 are called copiers; heads of the first layer that give at least
  0.3 to the token just before, lookers. All copiers are taken out together, all lookers together, and the rest of the
  first layer together. And heads of the second layer are taken out one after another, the best copier first.

Judged by: the loss in the second half of fresh texts, in nats a token, without the heads minus with them; and the same
in the first half, where there is nothing to copy. The learning rate is the one with the lowest validation loss in a
shorter run with a seed of its own.

A pilot, on which the claim rests, had all four heads of the second layer copy: one of them could be spared.

The dense model that ships with the course, which nobody trained to copy, goes through the same test: random tokens of
its vocabulary, written twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ichimon import train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, paired
from ichimon.moe import load_trained
from ichimon.notebook import load


def copies(batch: int, half: int, vocabulary: int, seed: Sequence[int]) -> Tensor:
    """Random tokens, written twice: [batch, 2 · half]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(vocabulary, size=(batch, half))).repeat(1, 2)


def batches(config: Config, seed: int) -> train.Batches:
    def draw(step: int) -> Tensor:
        low, high = config["halves"]
        half = int(np.random.default_rng((seed, step, 1)).integers(low, high + 1))
        return copies(config["batch"], half, config["vocabulary"], (seed, step))

    return draw


def halves(logits: Tensor, ids: Tensor) -> tuple[float, float]:
    """The loss of the first half, and of the second but for its first token."""
    half = ids.shape[1] // 2
    logits, right = logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    each = cross_entropy(logits, right, reduction="none").view(len(ids), -1)
    return each[:, : half - 1].mean().item(), each[:, half:].mean().item()


def own_attention(reference: Any, model: Any, ids: Tensor) -> Tensor:
    """The weights of all layers of a LanguageModel, [n_layers, batch, n_heads, n, n]."""
    kept: list[Tensor] = []
    layers = [layer.self_attn for layer in model.model.layers]
    hooks = [part.register_forward_pre_hook(lambda part, args: kept.append(args[0])) for part in layers]
    with torch.no_grad():
        model(ids)
        for hook in hooks:
            hook.remove()
        found = []
        for part, x in zip(layers, kept, strict=True):
            q, k = (
                reference.rotated(proj(x).unflatten(-1, (-1, part.head_dim)).transpose(1, 2))
                for proj in (part.q_proj, part.k_proj)
            )
            scores = q @ k.mT / part.head_dim**0.5
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            found.append(scores.masked_fill(future, -torch.inf).softmax(-1))
    return torch.stack(found)


def scores(weights: Tensor) -> tuple[Tensor, Tensor]:
    """For each layer and head the attention to what came after the same token, and to the token before."""
    half = weights.shape[-1] // 2
    copying = weights.diagonal(1 - half, -2, -1)[..., 1:].mean((1, 3))
    before = weights.diagonal(-1, -2, -1).mean((1, 3))
    return copying, before


def costs(
    reference: Any, model: nn.Module, ids: Tensor, other: Tensor, shape: tuple[int, ...]
) -> tuple[tuple[float, float], Tensor]:
    """The losses of both halves, and what each head's removal adds to them: [n_layers, n_heads, 2]."""
    with torch.no_grad():
        whole = halves(model(ids).logits, ids)
    found = torch.zeros(*shape, 2)
    for layer in range(shape[0]):
        for head in range(shape[1]):
            lost = halves(reference.mean_ablate(model, ids, [(layer, head)], other), ids)
            found[layer, head] = torch.tensor(lost) - torch.tensor(whole)
    return whole, found


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/21-looking-inside.py")
    vocabulary, n_heads, half, n_test = (config[name] for name in ("vocabulary", "n_heads", "half", "n_test"))

    def trained(lr: float, steps: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = reference.LanguageModel(vocabulary, config["d_model"], n_heads, 2)
        settings = train.Settings(
            steps=steps, lr=lr, warmup=steps // 10, evaluate_every=steps, weight_decay=0.01, seed=seed, device="cpu"
        )
        train.fit(model, batches(config, seed), settings, quiet=True)
        return model

    trials = []
    for lr in config["learning_rates"]:
        model = trained(lr, config["tuning_steps"], config["tuning_seed"])
        held_out = copies(n_test, half, vocabulary, (config["tuning_seed"], 1, 2, 3))
        with torch.no_grad():
            trials.append({"learning_rate": lr, "validation": halves(model(held_out).logits, held_out)[1]})
    lr = min(trials, key=lambda trial: trial["validation"])["learning_rate"]

    names = ("copying", "others_of_its_layer", "looks_back", "copiers", "lookers", "rest_of_first_layer")
    second: dict[str, list[float]] = {name: [] for name in names}
    first: dict[str, list[float]] = {name: [] for name in ("copiers", "lookers")}
    counted: dict[str, list[float]] = {"copiers": [], "lookers": []}
    falling: list[list[float]] = []
    whole: dict[str, list[float]] = {"first_half": [], "second_half": []}
    told: dict[str, list[float]] = {"copying": [], "others_of_its_layer": [], "looks_back": [], "before": []}
    example: dict[str, Any] = {}
    for seed in seeds:
        model = trained(lr, config["steps"], seed)
        look, ids = (copies(n_test, half, vocabulary, (seed, 7, 7, part)) for part in (0, 1))
        other = copies(n_test, 2 * half, vocabulary, (seed, 7, 7, 2))[:, : 2 * half]  # nothing in it is repeated
        weights = own_attention(reference, model, look)
        copying, before = scores(weights)
        losses, cost = costs(reference, model, ids, other, tuple(copying.shape))
        for name, value in zip(whole, losses, strict=True):
            whole[name].append(value)
        best, back = int(copying[1].argmax()), int(before[0].argmax())
        rest = [head for head in range(n_heads) if head != best]
        copiers = [(1, head) for head in range(n_heads) if copying[1, head] >= config["threshold"]]
        lookers = [(0, head) for head in range(n_heads) if before[0, head] >= config["threshold"]]
        others = [(0, head) for head in range(n_heads) if (0, head) not in lookers]
        for name, heads in (("copiers", copiers), ("lookers", lookers), ("rest_of_first_layer", others)):
            lost = halves(reference.mean_ablate(model, ids, heads, other), ids)
            second[name].append(lost[1] - losses[1])
            if name in first:
                first[name].append(lost[0] - losses[0])
                counted[name].append(float(len(heads)))
        order = [(1, head) for head in copying[1].argsort(descending=True).tolist()]
        one_after_another = [reference.mean_ablate(model, ids, order[:k], other) for k in range(n_heads + 1)]
        falling.append([halves(logits, ids)[1] for logits in one_after_another])
        second["copying"].append(cost[1, best, 1].item())
        second["others_of_its_layer"].append(cost[1, rest, 1].mean().item())
        second["looks_back"].append(cost[0, back, 1].item())
        told["copying"].append(copying[1, best].item())
        told["others_of_its_layer"].append(copying[1, rest].mean().item())
        told["looks_back"].append(copying[0, back].item())
        told["before"].append(before[0, back].item())
        example = example or {
            "score": copying.tolist(),
            "before": before.tolist(),
            "cost": cost[..., 1].tolist(),
            "half": 8,
            "map": own_attention(reference, model, look[:1, [*range(8), *range(8)]])[1, 0, best].tolist(),
        }

    return {
        "loss": {name: estimate(values) for name, values in whole.items()},
        "guessing": float(np.log(vocabulary)),
        "cost_second_half": {name: estimate(values) for name, values in second.items()},
        "cost_first_half": {name: estimate(values) for name, values in first.items()},
        "score": {name: estimate(values) for name, values in told.items()},
        "counted": {name: estimate(values) for name, values in counted.items()},
        "one_after_another": [estimate(values) for values in zip(*falling, strict=True)],
        "all_minus_one": paired(second["copiers"], second["copying"]),
        "example": example,
        "learning_rate": lr,
        "trials": trials,
        "shipped": shipped(reference, config, seeds),
    }


def shipped(reference: Any, config: Config, seeds: Sequence[int]) -> Results:
    """The same for the model that ships with the course: its best head by the score, and the rest."""
    model: Any = load_trained("dense")[0]
    model.set_attn_implementation("eager")
    vocabulary, n, half = model.config.vocab_size, config["n_test"], config["half"]
    found: dict[str, list[float]] = {
        name: [] for name in ("first_half", "second_half", "score", "cost", "others", "worst", "worst_score")
    }
    best: list[list[int]] = []
    for seed in seeds:
        look, ids = (copies(n, half, vocabulary, (seed, 8, part)) for part in (0, 1))
        other = copies(n, 2 * half, vocabulary, (seed, 8, 2))[:, : 2 * half]
        with torch.no_grad():
            copying, _ = scores(torch.stack(model(look, output_attentions=True).attentions))
        losses, cost = costs(reference, model, ids, other, tuple(copying.shape))
        at, worst = int(copying.argmax()), int(cost[..., 1].argmax())
        flat = cost[..., 1].flatten()
        best.append([at // copying.shape[1], at % copying.shape[1]])
        others = (flat.sum() - flat[at]) / (len(flat) - 1)
        told = torch.stack([copying.flatten()[at], flat[at], others, flat[worst], copying.flatten()[worst]])
        for name, value in zip(found, (*losses, *told.tolist()), strict=True):
            found[name].append(value)
    return {**{name: estimate(values) for name, values in found.items()}, "best": best}


def verdict(found: Results) -> Verdict:
    cost, score = found["cost_second_half"], found["score"]
    redundant = cost["copying"]["mean"] < 0.5 * cost["copiers"]["mean"] and found["all_minus_one"]["low"] > 0
    broken = found["loss"]["second_half"]["mean"] + cost["copiers"]["mean"] > found["guessing"] - 0.5
    hidden = cost["lookers"]["low"] > 0.5 and score["looks_back"]["high"] < 0.2
    specific = cost["rest_of_first_layer"]["mean"] < 0.25 * cost["copiers"]["mean"]
    if redundant and broken and hidden and specific:
        return "strong"
    return "weak" if found["all_minus_one"]["mean"] > 0 and cost["lookers"]["mean"] > 0 else "null"


EXPERIMENT = Experiment(
    name="c21_copying_head",
    claim=(
        "A model trained to copy has several heads that do it. Taking out the best of them costs less than half as "
        "much as taking out all: then the second half is guessed, within 0.5 nats. Heads of the first layer that look "
        "at the token before, whose own copying score is below 0.2, cost more than 0.5 nats together; the rest of the "
        "first layer costs less than a quarter of what the copiers do."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "n_heads": 4,
        "vocabulary": 64,
        "half": 16,
        "halves": [10, 20],
        "batch": 32,
        "steps": 600,
        "n_test": 64,
        "threshold": 0.3,
        "learning_rates": [0.005, 0.01],
        "tuning_seed": 100,
        "tuning_steps": 200,
    },
    reduced={
        "d_model": 32,
        "vocabulary": 16,
        "half": 6,
        "halves": [4, 8],
        "batch": 16,
        "steps": 320,
        "n_test": 16,
        "threshold": 0.2,
        "learning_rates": [0.01],
        "tuning_steps": 1,
    },
    seeds=(0, 1, 2, 3),
)

if __name__ == "__main__":
    main(EXPERIMENT)
