"""Why not a recurrent network? Recall of facts given 8 to 256 steps ago, by a GRU and by self-attention.

At every step the input holds a fact and a question: a key, its value, and another key, whose value was given some steps
before. The answer is that value, one of 16. So the task is associative recall (compare Arora et al. 2024,
arXiv:2312.04927), with key and value in one step, which lets a single layer solve it. Two loads: a new fact at every
step, so that recalling from distance d means holding more than d facts; and one fact only, after which nothing but
questions comes. The second separates distance from load.

Compared, with the same read-out behind them: one causal self-attention layer (1 head, 64 channels), a GRU with as
nearly the same number of parameters as possible, and a GRU with four times as many. Each trains on fresh batches, so
the training loss is a validation loss, until it is below `solved` or its steps are used up. The learning rate of each
model and load is the one with the lowest mean loss over a shorter run on a seed of its own. Accuracy is on new
sequences.

The sizes and the wording of the claim come from pilot runs. In a first full run the last part of the claim failed: the
test asked nothing at the steps that were not scored, which no model had met in training. The test now asks there as
training does; claim, seeds and training are unchanged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

D_KEY, D_VALUE = 24, 16
D_MODEL = 2 * D_KEY + D_VALUE
MODELS = {"every_step": ("attention", "gru", "gru_wide"), "one_fact": ("attention", "gru")}
IGNORE = -100  # what cross_entropy does not count


def sequences(facts: str, n: int, config: Config, distance: int | None = None) -> list[Tensor]:
    """Keys, values, questions and answers, each [n, length]; the largest id means "nothing".

    Where there is a fact at every step, questions look back by a random distance, log-uniform so that near and far are
    both practised. With `distance`, the last steps look back by that much: all distances are tested under one load.
    """
    length, n_values = config["length"], config["n_values"]
    keys = torch.rand(n, length).argsort(-1)
    values = torch.randint(n_values, (n, length))
    step = torch.arange(length)
    if facts == "one_fact":
        source = torch.zeros(n, length, dtype=torch.long)
    else:
        back = torch.exp(torch.rand(n, length) * torch.log(step.clamp(min=1) + 1.0)).long()
        if distance is not None:
            back[:, max(config["distances"]) :] = distance
        source = (step - back).clamp(min=0)
    questions, answers = keys.gather(1, source), values.gather(1, source)
    questions[:, 0], answers[:, 0] = length, IGNORE  # nothing can be asked yet
    if facts == "one_fact":
        keys, values = keys.masked_fill(step > 0, length), values.masked_fill(step > 0, n_values)
    return [keys, values, questions, answers]


class Recall(nn.Module):
    """One layer over what happens at each step, and a read-out that also sees the question."""

    def __init__(self, layer: nn.Module, width: int, mask: Tensor, n_values: int) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(len(mask) + 1, D_KEY), nn.Embedding(n_values + 1, D_VALUE)
        self.layer, self.mask = layer, mask
        self.read = nn.Sequential(nn.Linear(width + D_KEY, 128), nn.ReLU(), nn.Linear(128, n_values))

    def forward(self, keys: Tensor, values: Tensor, questions: Tensor) -> Tensor:
        question = self.keys(questions)
        x = torch.cat([self.keys(keys), self.values(values), question], -1)
        y = self.layer(x)[0] if isinstance(self.layer, nn.GRU) else self.layer(x, self.mask)
        return self.read(torch.cat([y, question], -1))


def train(model: Recall, facts: str, lr: float, steps: int, config: Config) -> list[float]:
    """Train and return the losses, one a step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    losses: list[float] = []
    while len(losses) < steps and (len(losses) < 10 or sum(losses[-10:]) / 10 > config["solved"]):
        *inputs, answers = sequences(facts, config["batch"], config)
        loss = cross_entropy(model(*inputs).flatten(0, 1), answers.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model: Recall, facts: str, distance: int, config: Config) -> float:
    *inputs, answers = sequences(facts, config["n_test"], config, distance)
    right = model(*inputs).argmax(-1) == answers
    scored = right[:, max(config["distances"]) :] if facts == "every_step" else right[:, distance]
    return scored.float().mean().item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference = load(ROOT / "solutions/02-self-attention.py")
    mask = reference.causal_mask(config["length"])

    def model(kind: str, seed: int) -> Recall:
        torch.manual_seed(seed)
        if kind == "attention":
            return Recall(reference.MultiHeadAttention(D_MODEL, 1), D_MODEL, mask, config["n_values"])
        hidden = config["hidden"][kind]
        return Recall(nn.GRU(D_MODEL, hidden, batch_first=True), hidden, mask, config["n_values"])

    found: Results = {
        "distances": config["distances"],
        "chance": 1 / config["n_values"],
        "parameters": {
            kind: sum(p.numel() for p in model(kind, 0).layer.parameters()) for kind in MODELS["every_step"]
        },
        "accuracy": {},
        "steps": {},
        "learning_rate": {},
    }
    trials: list[dict[str, Any]] = []
    for facts, kinds in MODELS.items():
        for part in ("accuracy", "steps", "learning_rate"):
            found[part][facts] = {}
        for kind in kinds:
            tried = []
            for lr in config["learning_rates"]:
                losses = train(model(kind, config["tuning_seed"]), facts, lr, config["tuning_steps"], config)
                mean = sum(losses) / config["tuning_steps"]  # steps that were not needed count as no loss
                tried.append({"facts": facts, "model": kind, "learning_rate": lr, "loss": mean, "steps": len(losses)})
            trials += tried
            lr = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
            by_seed, steps = [], []
            for seed in seeds:
                trained = model(kind, seed)
                steps.append(len(train(trained, facts, lr, config["steps"], config)))
                by_seed.append([accuracy(trained, facts, distance, config) for distance in config["distances"]])
            found["accuracy"][facts][kind] = [estimate(values) for values in zip(*by_seed, strict=True)]
            found["steps"][facts][kind] = estimate(steps)
            found["learning_rate"][facts][kind] = lr
    return {**found, "trials": trials}


def verdict(found: Results) -> Verdict:
    every, one = found["accuracy"]["every_step"], found["accuracy"]["one_fact"]
    attention_holds = min(row["mean"] for row in every["attention"]) > 0.95
    gru_forgets = max(every[kind][-1]["high"] for kind in ("gru", "gru_wide")) < 0.15
    load_not_distance = min(row["mean"] for row in one["gru"]) > 0.95
    if attention_holds and gru_forgets and load_not_distance:
        return "strong"
    return "weak" if every["attention"][-1]["mean"] > 2 * every["gru"][-1]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c02_recall_at_distance",
    claim=(
        "With a new fact at every step, one causal self-attention layer recalls more than 95 % at every distance from "
        "8 to 256. At 256 a GRU with as many parameters, and one with four times as many, stay below 15 %, where "
        "chance is 6 %. The cause is the load and not the distance: with one fact to keep, the GRU recalls more than "
        "95 % at every distance."
    ),
    run=run,
    verdict=verdict,
    config={
        "length": 264,
        "distances": [8, 16, 32, 64, 128, 256],
        "n_values": 16,
        "hidden": {"gru": 48, "gru_wide": 119},
        "batch": 16,
        "steps": 800,
        "solved": 0.005,
        "learning_rates": [0.003, 0.01, 0.03],
        "tuning_seed": 100,
        "tuning_steps": 250,
        "n_test": 256,
    },
    reduced={"length": 24, "distances": [4, 16], "steps": 80, "learning_rates": [0.01], "tuning_steps": 1},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
