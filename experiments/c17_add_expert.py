"""A new field comes up: does it help to add an expert?

A small decoder with 8 experts a layer and top-2 learns English (the documentation that Python carries). Then Python
code comes up. In each layer `add_expert` of chapter 17 hires a ninth expert, a copy of the one that code uses most. We
measure the loss on both kinds of text, in nats a token of the one tokeniser that both share, on test text:

- hired: nobody is sent to the newcomer (its bias is −∞);
- open: the newcomer may be chosen like everybody else, and nothing is trained;
- stranger: the same, with random numbers instead of a copy;
- newcomer only: on code, the newcomer and its row of the router are trained, everything else is frozen;
- everything: on code, the whole model is trained, newcomer included;
- no newcomer: on code, the whole model is trained, and nobody was hired: the control.

Learning rates come from validation code, on a seed of its own.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments import moe
from ichimon import corpus, train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main


class Growing(moe.MoE):
    """An MoE layer that can hire: chosen by logit + bias, weighted by the softmax of the chosen; chapter 17's own."""

    def choose(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        self.logits = self.router(tokens)
        self.probabilities = self.logits.softmax(-1)
        experts = (self.logits + self.bias).topk(self.top_k, -1).indices
        weights = self.probabilities.gather(-1, experts)
        return weights / weights.sum(-1, keepdim=True), experts

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, self.experts = self.choose(tokens)
        out = moe.reference("17-moe-at-scale").expert_parallel_forward(
            tokens, weights, self.experts, self.gate_up, self.down, 1, lambda rows, send, receive: rows
        )
        return out.view_as(x)

    def hire(self, parent: int) -> None:
        parts = (self.router.weight, self.bias, self.gate_up, self.down)
        router, self.bias, gate_up, down = moe.reference("17-moe-at-scale").add_expert(*parts, parent)
        self.router.weight, self.gate_up, self.down = (nn.Parameter(part) for part in (router, gate_up, down))
        self.n_experts += 1


def growing(model: nn.Module) -> list[Growing]:
    return [module for module in model.modules() if isinstance(module, Growing)]


@cache
def text(kind: str, split: corpus.Split, tokens: int) -> np.ndarray:
    """Ids of English or code, in the tokeniser of English."""
    if kind == "english":
        return corpus.tokens(corpus.PROSE, split)[:tokens]
    bpe, ids = corpus.tokenizer(), []
    for part in corpus.texts(corpus.CODE, split):
        ids += [*bpe.encode(part.text[:20_000]).ids, 0]
        if len(ids) >= tokens:
            break
    return np.array(ids[:tokens], dtype=np.int64)


def build(config: Config, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    make: Callable[[], nn.Module] = lambda: Growing(  # noqa: E731
        config["d_model"], config["d_hidden"], n_experts=config["n_experts"], top_k=config["top_k"]
    )
    return moe.decoder(
        corpus.VOCABULARY, make, length=config["length"], d_model=config["d_model"], n_layers=config["n_layers"]
    )


def fit(
    model: nn.Module,
    config: Config,
    kind: str,
    *,
    steps: int,
    lr: float,
    seed: int,
    decay: float = 0.0,
    balance: float = 0.01,
) -> None:
    batches = train.windows(
        text(kind, "train", config["train_tokens"]), batch=config["batch"], length=config["length"], seed=seed
    )
    settings = train.Settings(
        steps=steps, lr=lr, warmup=steps // 10, weight_decay=decay, evaluate_every=steps, seed=seed, device="cpu"
    )
    train.fit(model, batches, settings, loss=moe.loss(balance=balance), quiet=True)


def losses(model: nn.Module, config: Config, split: corpus.Split = "test") -> dict[str, float]:
    found = {}
    for kind in ("english", "code"):
        batches = train.windows(text(kind, split, config["test_tokens"]), batch=16, length=config["length"], seed=99)
        found[kind] = train.evaluate(model, batches, config["evaluate_batches"], moe.loss())
    return found


def base(config: Config, seed: int) -> dict[str, Tensor]:
    """The weights of a model that has learnt English."""
    model = build(config, seed)
    fit(model, config, "english", steps=config["base_steps"], lr=config["base_lr"], seed=seed, decay=0.1)
    return {name: value.clone() for name, value in model.state_dict().items()}


def variant(name: str, weights: dict[str, Tensor], config: Config, seed: int, lr: float) -> nn.Module:
    """The model that has learnt English after what is done to it."""
    model = build(config, seed)
    model.load_state_dict(weights)
    if name not in ("before", "no newcomer"):
        code = torch.as_tensor(text("code", "train", config["train_tokens"])[: 8 * config["length"]])
        moe.routes(model, code.view(8, -1))
        for layer in growing(model):
            layer.hire(int(moe.shares(layer).argmax()))
            if name != "hired":
                layer.bias[-1] = 0
            if name == "stranger":
                for part in (layer.router.weight, layer.gate_up, layer.down):
                    nn.init.normal_(part.data[-1], std=float(part.data[:-1].std()))
    if name == "newcomer only":
        model.requires_grad_(False)
        for layer in growing(model):
            for part in (layer.router.weight, layer.gate_up, layer.down):
                part.requires_grad_(True).register_hook(last_only)
    if name in TRAINED:
        fit(model, config, "code", steps=config["steps"], lr=lr, seed=seed + 1000)
    return model


def last_only(grad: Tensor) -> Tensor:
    kept = torch.zeros_like(grad)
    kept[-1] = grad[-1]
    return kept


TRAINED = ("newcomer only", "everything", "no newcomer")
VARIANTS = ("before", "hired", "open", "stranger", *TRAINED)


def run(config: Config, seeds: Sequence[int]) -> Results:
    tuning: dict[str, Any] = {}
    weights = base(config, config["tuning_seed"])
    for name in TRAINED:
        trials = {}
        for lr in config["lrs"]:
            model = variant(name, weights, config, config["tuning_seed"], lr)
            trials[str(lr)] = losses(model, config, "validation")["code"]
        tuning[name] = {"trials": trials, "lr": float(min(trials, key=lambda lr: trials[lr]))}
    rows: dict[str, dict[str, list[float]]] = {name: {"english": [], "code": []} for name in VARIANTS}
    used: list[float] = []
    for seed in seeds:
        weights = base(config, seed)
        for name in VARIANTS:
            model = variant(name, weights, config, seed, tuning.get(name, {"lr": 1.0})["lr"])
            for kind, value in losses(model, config).items():
                rows[name][kind].append(value)
            if name == "everything":
                code = torch.as_tensor(text("code", "test", config["test_tokens"])[: 16 * config["length"]])
                moe.routes(model, code.view(16, -1))
                used.append(float(np.mean([moe.shares(layer)[-1].item() for layer in growing(model)])))
    before = rows["before"]
    gains = {name: [b - v for b, v in zip(before["code"], rows[name]["code"], strict=True)] for name in VARIANTS[1:]}
    return {
        "tuning": tuning,
        "loss": {name: {kind: estimate(values) for kind, values in kinds.items()} for name, kinds in rows.items()},
        "code_gain": {name: estimate(values) for name, values in gains.items()},
        "english_cost": {
            name: estimate([v - b for b, v in zip(before["english"], rows[name]["english"], strict=True)])
            for name in VARIANTS[1:]
        },
        "newcomer_share_of_gain": estimate(
            [a / b for a, b in zip(gains["newcomer only"], gains["everything"], strict=True)]
        ),
        "control_share_of_gain": estimate(
            [a / b for a, b in zip(gains["no newcomer"], gains["everything"], strict=True)]
        ),
        "routed_to_newcomer": estimate(used),
    }


def verdict(found: Results) -> Verdict:
    gain, cost = found["code_gain"], found["english_cost"]
    same = max(abs(gain["hired"]["mean"]), abs(cost["hired"]["mean"])) < 1e-3
    untrained = same and max(gain["open"]["mean"], gain["stranger"]["mean"]) < 0.02
    newcomer, control = found["newcomer_share_of_gain"], found["control_share_of_gain"]
    if untrained and newcomer["high"] < 0.5 and control["low"] > 0.9:
        return "strong"
    return "weak" if newcomer["mean"] < control["mean"] and gain["open"]["mean"] < 0.05 else "null"


EXPERIMENT = Experiment(
    name="c17_add_expert",
    claim=(
        "To hire is not to learn. Without training a newcomer brings code no gain (less than 0.02 nats), whether it is "
        "locked out, let in as a copy or let in as a stranger. Trained alone, it brings less than half of what "
        "training everything brings. And training everything without a newcomer brings more than 90 % of it: it is "
        "the training, not the head count."
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
        "base_steps": 300,
        "base_lr": 4e-3,
        "steps": 120,
        "lrs": [1e-3, 3e-3, 9e-3],
        "tuning_seed": 100,
        "train_tokens": 200_000,
        "test_tokens": 60_000,
        "evaluate_batches": 12,
    },
    reduced={
        "base_steps": 30,
        "steps": 15,
        "lrs": [3e-3],
        "d_model": 32,
        "d_hidden": 32,
        "n_layers": 1,
        "n_experts": 4,
        "train_tokens": 20_000,
        "test_tokens": 20_000,
        "evaluate_batches": 2,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
