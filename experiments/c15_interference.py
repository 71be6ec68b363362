"""Do prose and code pull the weights apart, and does a Mixture of Experts keep them from it?

A dense decoder and an MoE of the same FLOPs a token (8 experts, 2 of them used, each half as wide as the dense
feed-forward part) train on batches that are half prose and half code. At several moments, and at the end, we take the
gradient of the loss on much prose and that on much code, both from text that is not trained on, and the cosine of the
angle between them. It is what a small step for the one does to the other, to first order: above 0 it helps, below 0 it
harms. That is what articles call interference.

Judged by: the cosine over the feed-forward weights (all experts, or the dense ones), and over the weights that both
models share, attention and embeddings. Two things stand beside it. Gradients of two halves of the same domain: finite
text makes every cosine smaller, and this is how much. And the share of the gradients' length that lies in weights where
both domains are present: of an MoE's experts, some hardly see one domain, and where one gradient is zero there is
nothing to interfere with. Where training has converged on the mixture the two gradients must cancel, whatever the
model, so a cosine of −1 at the very end would say nothing: therefore the moments before it.

Learning rates are chosen for each model by validation loss, with a seed of its own. The loss without the balancing term
is what is differentiated; the balancing term acts in training.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.moe import MoE, SwiGLU, decoder, flops_per_token, loss
from ichimon import corpus, train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

MODELS = ("dense", "moe")
DOMAINS = {"prose": corpus.PROSE, "code": corpus.CODE}
KINDS = corpus.PROSE + corpus.CODE
GROUPS = {"feed_forward": ("gate_up", "down"), "shared": ("qkv", "out", "tokens")}


def encoded(kinds: Sequence[corpus.Kind], split: corpus.Split, limit: int) -> Tensor:
    bpe = corpus.tokenizer(corpus.VOCABULARY, KINDS)
    ids: list[int] = []
    for text in corpus.texts(kinds, split):
        if len(ids) >= limit:
            break
        ids += [*bpe.encode(text.text).ids, 0]
    return torch.tensor(ids[:limit])


def built(kind: str, config: Config, seed: int) -> Any:
    torch.manual_seed(seed)
    width, hidden = config["d_model"], config["d_hidden"]

    def feed_forward() -> nn.Module:
        if kind == "dense":
            return SwiGLU(width, 2 * hidden)
        return MoE(width, hidden, n_experts=config["n_experts"], top_k=2)

    return decoder(corpus.VOCABULARY, feed_forward, length=config["length"], d_model=width, n_layers=config["n_layers"])


def gradient(model: nn.Module, batch: Tensor) -> dict[str, list[Tensor]]:
    """The gradient of the next token's loss in the weights of each group, one tensor a weight, an expert by itself."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for _, p in named]
    for part in batch.split(16):
        value = train.next_token(model, part) * len(part) / len(batch)
        found = torch.autograd.grad(value, [p for _, p in named])
        total = [a + b for a, b in zip(total, found, strict=True)]
    groups: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for (name, _), grad in zip(named, total, strict=True):
        for group, parts in GROUPS.items():
            if set(parts) & set(name.split(".")):
                groups[group] += grad.unbind(0) if grad.dim() == 3 else [grad]
    return groups


def quarter(rows: Tensor, step: int) -> Tensor:
    return rows[step::4]


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    one, other = torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b])
    return (one @ other / (one.norm() * other.norm())).item()


def apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """1 − Σ |aᵢ||bᵢ| / (|a||b|) over weights i: 0 where both gradients live in the same weights, 1 where in none."""
    one, other = (torch.stack([x.norm() for x in grads]) for grads in (a, b))
    return 1 - (one @ other / (one.norm() * other.norm())).item()


def run(config: Config, seeds: Sequence[int]) -> Results:
    length, steps = config["length"], config["steps"]
    text = {name: encoded(kinds, "train", config["train_tokens"]) for name, kinds in DOMAINS.items()}
    draws = {name: train.windows(ids, batch=config["batch"] // 2, length=length, seed=3) for name, ids in text.items()}
    unseen = {name: encoded(kinds, "validation", config["probe_tokens"]) for name, kinds in DOMAINS.items()}
    tested = {name: encoded(kinds, "test", config["probe_tokens"]) for name, kinds in DOMAINS.items()}

    def mixed(seed: int) -> train.Batches:
        return lambda step: torch.cat([draw(1_000_000 * seed + step) for draw in draws.values()])

    def windows_of(ids: Tensor) -> Tensor:
        starts = torch.linspace(0, len(ids) - length - 1, config["probe_windows"]).long()
        return torch.stack([ids[start : start + length + 1] for start in starts])

    def looked(model: nn.Module) -> dict[str, dict[str, float]]:
        was = model.training
        model.eval()
        found = {}
        both = {
            name: [gradient(model, half) for half in (windows_of(ids)[::2], windows_of(ids)[1::2])]
            for name, ids in unseen.items()
        }
        for group in GROUPS:
            halves = {name: [half[group] for half in found_halves] for name, found_halves in both.items()}
            pairs = [(p, c) for p in halves["prose"] for c in halves["code"]]
            found[group] = {
                "across": sum(cosine(p, c) for p, c in pairs) / len(pairs),
                "within": sum(cosine(*half) for half in halves.values()) / len(halves),
                "apart": sum(apart(p, c) for p, c in pairs) / len(pairs),
            }
        model.train(was)
        return found

    def trained(kind: str, lr: float, steps: int, seed: int, moments: Sequence[int]) -> tuple[Any, dict[int, Any]]:
        model, seen = built(kind, config, seed), {}
        settings = train.Settings(steps=steps, lr=lr, warmup=steps // 10, evaluate_every=steps, seed=seed, device="cpu")
        base, count = loss(balance=0.01 if kind == "moe" else 0.0), 0

        def watched(module: nn.Module, batch: Tensor) -> Tensor:
            nonlocal count
            if count in moments:
                seen[count] = looked(module)
            count += 1
            return base(module, batch)

        train.fit(model, mixed(seed), settings, loss=watched, quiet=True)
        if steps in moments:
            seen[steps] = looked(model)
        return model, seen

    def mean_loss(model: nn.Module, texts: dict[str, Tensor]) -> dict[str, float]:
        model.eval()
        found = {}
        for name, ids in texts.items():
            found[name] = train.evaluate(model, partial(quarter, windows_of(ids)), 4)
        return found

    trials, chosen = [], {}
    for kind in MODELS:
        tried = []
        for lr in config["learning_rates"]:
            model, _ = trained(kind, lr, config["tuning_steps"], config["tuning_seed"], ())
            value = sum(mean_loss(model, unseen).values()) / 2
            tried.append({"model": kind, "learning_rate": lr, "validation": value})
        trials += tried
        chosen[kind] = min(tried, key=lambda trial: trial["validation"])["learning_rate"]

    moments = [round(steps * share) for share in config["moments"]]
    curves: dict[str, list[dict[int, Any]]] = {kind: [] for kind in MODELS}
    test: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in DOMAINS} for kind in MODELS}
    flops = {}
    for kind in MODELS:
        for seed in seeds:
            model, seen = trained(kind, chosen[kind], steps, seed, moments)
            curves[kind].append(seen)
            for name, value in mean_loss(model, tested).items():
                test[kind][name].append(value)
            flops[kind] = flops_per_token(model, length)

    def values(kind: str, group: str, measure: str, moment: int) -> list[float]:
        return [seen[moment][group][measure] for seen in curves[kind]]

    middle = moments[len(moments) // 2]
    return {
        "moments": moments,
        "middle": middle,
        "cosine": {
            group: {
                measure: {
                    kind: [estimate(values(kind, group, measure, moment)) for moment in moments] for kind in MODELS
                }
                for measure in ("across", "within", "apart")
            }
            for group in GROUPS
        },
        "moe_minus_dense": {
            group: [
                paired(values("moe", group, "across", moment), values("dense", group, "across", moment))
                for moment in moments
            ]
            for group in GROUPS
        },
        "loss": {kind: {name: estimate(found) for name, found in domains.items()} for kind, domains in test.items()},
        "flops_per_token": flops,
        "learning_rate": chosen,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    at = found["moments"].index(found["middle"])
    feed_forward = found["cosine"]["feed_forward"]
    harms = feed_forward["across"]["dense"][at]["high"] < 0
    spared = found["moe_minus_dense"]["feed_forward"][at]["low"] > 0
    apart = feed_forward["apart"]["moe"][at]["low"] > feed_forward["apart"]["dense"][at]["high"]
    if harms and spared and apart:
        return "strong"
    return "weak" if spared else "null"


EXPERIMENT = Experiment(
    name="c15_interference",
    claim=(
        "Half way through training, the gradients of prose and of code on the feed-forward weights point against each "
        "other in the dense model (their cosine is below 0), and less so in an MoE of the same FLOPs a token, whose "
        "experts keep more of the two gradients in different weights."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "d_hidden": 64,
        "n_layers": 3,
        "n_experts": 8,
        "length": 128,
        "batch": 8,
        "steps": 1200,
        "moments": [0.1, 0.5, 1.0],
        "learning_rates": [0.004, 0.008],
        "tuning_steps": 300,
        "tuning_seed": 101,
        "train_tokens": 500_000,
        "probe_tokens": 60_000,
        "probe_windows": 64,
    },
    reduced={
        "d_model": 32,
        "d_hidden": 32,
        "n_layers": 2,
        "n_experts": 4,
        "length": 32,
        "steps": 60,
        "moments": [0.5, 1.0],
        "learning_rates": [0.01],
        "tuning_steps": 1,
        "train_tokens": 30_000,
        "probe_tokens": 6000,
        "probe_windows": 32,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
