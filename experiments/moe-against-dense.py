"""How much less does a Mixture of Experts need to compute to be as good as a dense model, and which kind of it?

Decoders of one size differ in their feed-forwards alone: dense; experts with a learned router; dense of as many
parameters in all; and the same experts with other routings, gates and balancing. Each is trained whole, warm-up and
decay included, at several lengths, because the middle of a long run is no short run. Then: the loss by step, by FLOP
and by second, and the factor of FLOPs by which the mixture is ahead where the dense model ends.

Judged by: nats a token over the whole test split, prose and code, cut into windows of the context's length. Learning
rates are chosen for each model on validation data, with a seed of its own; so is the recipe of the mixture, among those
under `search`: every trial is in the result. The winner is then trained on fresh seeds, once. The factor is the FLOPs
of the dense model's longest run, divided by those at which the line through the mixture's runs (loss against the
logarithm of FLOPs, straight between neighbours) reaches that run's loss: seed by seed.

Runs that are done are kept in `_build/cache/moe-against-dense`, so that an interrupted experiment goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments import moe
from experiments.decoder import Decoder
from ichimon import corpus, train
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main, paired

KEPT = ROOT / "_build/cache/moe-against-dense"
KINDS = corpus.PROSE + corpus.CODE
SPLITS: tuple[corpus.Split, ...] = ("train", "validation", "test")


def build(config: Config, recipe: Mapping[str, Any]) -> Decoder:
    """The decoder of a recipe: `d_hidden`, and where it has experts the arguments of `experiments.moe.MoE`."""
    own = {name: value for name, value in recipe.items() if name not in ("balance", "router_std")}
    d_model = config["d_model"]
    model = moe.decoder(
        config["vocabulary"],
        lambda: (
            moe.MoE(d_model, vocabulary=config["vocabulary"], **own)
            if "n_experts" in own
            else moe.SwiGLU(d_model, **own)
        ),
        length=config["length"],
        d_model=d_model,
        n_layers=config["n_layers"],
        n_heads=config["n_heads"],
    )
    for layer in moe.layers(model):
        nn.init.normal_(layer.router.weight, std=recipe.get("router_std", 0.02))
    return model


@cache
def ids(split: corpus.Split, vocabulary: int, limit: int | None) -> np.ndarray:
    """The ids of a split; of `limit` only so many, as many of each kind of text."""
    found = corpus.tokens(KINDS, split, vocabulary)
    if limit is None or limit >= len(found):
        return found
    pieces = np.array_split(found, 20)
    return np.concatenate([piece[: limit // 20] for piece in pieces])


@torch.no_grad()
def test_loss(model: nn.Module, found: np.ndarray, length: int) -> float:
    """The mean loss over windows that lie end to end."""
    n = (len(found) - 1) // length
    inputs, targets = (torch.tensor(found[i : i + n * length]).view(n, length) for i in (0, 1))
    total = 0.0
    for x, y in zip(inputs.split(32), targets.split(32), strict=True):
        moe.tell(model, x)
        total += cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / (n * length)


def trained(job: tuple[dict[str, Any], dict[str, Any], float, int, int, bool]) -> Results:
    """One whole run: what it ended at, and how it went. Kept on disk under what it was asked."""
    config, recipe, lr, steps, seed, final = job
    key = hashlib.sha256(json.dumps([*job, _sources()], sort_keys=True).encode()).hexdigest()[:20]
    kept = KEPT / f"{key}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build(config, recipe)
    parts: tuple[corpus.Split, ...] = ("train", "validation")
    draw = {
        split: train.windows(
            ids(split, config["vocabulary"], config["tokens"]),
            batch=config["batch"],
            length=config["length"],
            seed=seed if split == "train" else config["tuning_seed"],
        )
        for split in parts
    }
    settings = train.Settings(
        steps=steps,
        lr=lr,
        warmup=max(1, steps // 20),
        evaluate_every=max(1, steps // config["looks"]),
        evaluate_batches=config["evaluate_batches"],
        seed=seed,
        device="cpu",
    )
    start = time.process_time()
    try:
        history = train.fit(
            model,
            draw["train"],
            settings,
            loss=moe.loss(balance=recipe.get("balance", 0.0)),
            validation=draw["validation"],
            quiet=True,
        )
    except train.TrainingError:  # the loss became NaN: this learning rate is lost
        return {"validation": 99.0, "curve": [], "test": 99.0, "shares": [], "cpu_seconds": time.process_time() - start}
    found: Results = {
        "validation": history.validation[-1][1],
        "curve": history.validation,
        "cpu_seconds": time.process_time() - start,
        "test": None,
        "shares": [],
    }
    if final:
        found["test"] = test_loss(model, ids("test", config["vocabulary"], config["tokens"]), config["length"])
        draw_test = torch.tensor(ids("test", config["vocabulary"], config["tokens"]))
        rows = draw_test[: len(draw_test) // config["length"] * config["length"]].view(-1, config["length"])[::8]
        if moe.layers(model):
            moe.tell(model, rows)
            with torch.no_grad():
                model(rows)
            found["shares"] = [moe.shares(layer).sort(descending=True).values.tolist() for layer in moe.layers(model)]
    KEPT.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(found))
    draft.replace(kept)
    return found


@cache
def _sources() -> str:
    """What a kept run depends on besides its job."""
    names = ("experiments/moe.py", "experiments/decoder.py", "experiments/moe-against-dense.py", "ichimon/train.py")
    bodies = [Path(ROOT / name).read_text().split("\nEXPERIMENT = ")[0].split("\ndef run(")[0] for name in names]
    return hashlib.sha256("".join(bodies).encode()).hexdigest()


def run(config: Config, seeds: Sequence[int]) -> Results:
    plain = dict(config)
    base = {name: plain[name] for name in ("d_model", "n_layers", "n_heads", "length", "vocabulary", "batch")}
    base |= {name: plain[name] for name in ("tokens", "looks", "evaluate_batches", "tuning_seed")}
    recipes: dict[str, dict[str, Any]] = {**plain["search"], **plain["models"]}
    workers = ProcessPoolExecutor(plain["workers"]) if plain["workers"] > 1 else None
    for split in SPLITS:  # once, before several processes ask
        ids(split, plain["vocabulary"], plain["tokens"])

    def all_of(jobs: Sequence[tuple[dict[str, Any], dict[str, Any], float, int, int, bool]]) -> list[Results]:
        return list(workers.map(trained, jobs) if workers else map(trained, jobs))

    # 1. Learning rates, and which mixture: on validation, with a seed of its own.
    also = plain["learning_rates_also"]  # where the best one might have stood at the end of the row
    asked = [(name, lr) for name in recipes for lr in sorted({*plain["learning_rates"], *also.get(name, ())})]
    tried = all_of(
        [(base, recipes[name], lr, plain["tuning_steps"], plain["tuning_seed"], False) for name, lr in asked]
    )
    trials = [
        {"model": name, "learning_rate": lr, "validation": found["validation"]}
        for (name, lr), found in zip(asked, tried, strict=True)
    ]
    best = {name: _chosen([trial for trial in trials if trial["model"] == name], plain["as_good"]) for name in recipes}
    winner = min(plain["search"], key=lambda name: best[name]["validation"])

    # 2. The winner and the others, whole, on fresh seeds.
    names = {"moe": winner} | {name: name for name in plain["models"]}
    wanted = [
        (name, steps, seed)
        for name in names
        for steps in plain["lengths"]
        if name in plain["at_all_lengths"] or steps in plain["at_lengths"].get(name, plain["others_at"])
        for seed in seeds
    ]
    found = dict(
        zip(
            wanted,
            all_of(
                [
                    (base, recipes[names[name]], best[names[name]]["learning_rate"], steps, seed, True)
                    for name, steps, seed in wanted
                ]
            ),
            strict=True,
        )
    )
    if workers:
        workers.shutdown()

    models = {name: build(base, recipes[names[name]]) for name in names}
    flops = {name: moe.flops_per_token(model, base["length"]) for name, model in models.items()}
    tokens = base["batch"] * base["length"]
    told: Results = {}
    for name, model in models.items():
        lengths = sorted({steps for other, steps, _ in wanted if other == name})
        runs = {steps: [found[name, steps, seed] for seed in seeds] for steps in lengths}
        told[name] = {
            "recipe": names[name],
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "active_parameters": (flops[name] // 6) - base["n_layers"] * base["length"] * base["d_model"],
            "flops_per_token": flops[name],
            "learning_rate": best[names[name]]["learning_rate"],
            "steps": lengths,
            "flops": [float(flops[name] * tokens * steps) for steps in lengths],
            "test": [estimate([one["test"] for one in runs[steps]]) for steps in lengths],
            "curve": {
                "steps": [step for step, _ in runs[lengths[-1]][0]["curve"]],
                "validation": [
                    estimate([one["curve"][i][1] for one in runs[lengths[-1]]])
                    for i in range(len(runs[lengths[-1]][0]["curve"]))
                ],
            },
            "busiest": [
                estimate([one["shares"][layer][0] for one in runs[lengths[-1]]])
                for layer in range(base["n_layers"] if runs[lengths[-1]][0]["shares"] else 0)
            ],
        }
    seconds = _step_seconds(base, recipes, names, plain["timed_repeats"], len(seeds))
    for name in told:
        told[name]["seconds_of_dense"] = estimate(
            [own / dense for own, dense in zip(seconds[name], seconds["dense"], strict=True)]
        )

    longest = max(plain["lengths"])
    factors = {
        name: [
            _factor(
                [(f, one["values"][i]) for f, one in zip(told[name]["flops"], told[name]["test"], strict=True)],
                told["dense"]["flops"][-1],
                found["dense", longest, seed]["test"],
            )
            for i, seed in enumerate(seeds)
        ]
        for name in plain["at_all_lengths"]
        if name in told and name != "dense"
    }
    gaps: dict[str, dict[str, Any]] = {}
    for name in told:
        for steps in told[name]["steps"]:
            if name != "dense" and steps in told["dense"]["steps"]:
                gaps.setdefault(name, {})[str(steps)] = paired(
                    [found["dense", steps, seed]["test"] for seed in seeds],
                    [found[name, steps, seed]["test"] for seed in seeds],
                )
    speed = told["moe"]["seconds_of_dense"]["mean"] / (flops["moe"] / flops["dense"])
    return {
        "tokens": {
            split: len(ids(split, base["vocabulary"], base["tokens"])) for split in ("train", "validation", "test")
        },
        "tokens_per_step": tokens,
        "winner": winner,
        "models": told,
        "flop_speedup": estimate(factors["moe"]),
        "flop_speedups": {name: estimate(values) for name, values in factors.items()},
        "second_speedup": estimate([value / speed for value in factors["moe"]]),
        "ahead_of_dense": gaps,
        "learned_ahead_of_hash": {
            str(steps): paired(
                [found["hash", steps, seed]["test"] for seed in seeds],
                [found["moe", steps, seed]["test"] for seed in seeds],
            )
            for steps in told["hash"]["steps"]
            if steps in told["moe"]["steps"]
        },
        "trials": trials,
        "cpu_seconds_of_runs": sum(one["cpu_seconds"] for one in [*tried, *found.values()]),
    }


def _chosen(trials: Sequence[dict[str, Any]], as_good: float) -> dict[str, Any]:
    """The smallest learning rate that is as good as the best one: the largest may break with another seed."""
    bound = min(trial["validation"] for trial in trials) + as_good
    return min((t for t in trials if t["validation"] <= bound), key=lambda trial: trial["learning_rate"])


def _factor(runs: Sequence[tuple[float, float]], flops: float, target: float) -> float:
    """`flops` over the FLOPs at which the line through `runs` reaches `target`; beyond its ends it goes on straight."""
    points = [(math.log(f), loss) for f, loss in sorted(runs)]
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if pair[1][1] <= target), pairs[-1])
    return flops / math.exp(x0 + (y0 - target) * (x1 - x0) / (y0 - y1))


def _step_seconds(
    base: dict[str, Any], recipes: Mapping[str, Any], names: Mapping[str, str], repeats: int, groups: int
) -> dict[str, list[float]]:
    """CPU seconds of a training step of each model, taking turns: medians of `repeats`, as many as there are seeds."""
    batch = torch.randint(base["vocabulary"], (base["batch"], base["length"] + 1))

    def step(name: str) -> Any:
        model, value = build(base, recipes[names[name]]), moe.loss(balance=recipes[names[name]].get("balance", 0.0))
        optimiser = torch.optim.AdamW(model.parameters())

        def once() -> None:
            value(model, batch).backward()
            optimiser.step()
            optimiser.zero_grad()

        return once

    times = interleaved({name: step(name) for name in names}, repeats=repeats * groups)
    return {
        name: [statistics.median(own[i * repeats : (i + 1) * repeats]) for i in range(groups)]
        for name, own in times.items()
    }


def verdict(found: Results) -> Verdict:
    ahead = found["ahead_of_dense"]["moe"]
    if found["flop_speedup"]["low"] >= 2 and all(gap["low"] > 0 for gap in ahead.values()):
        return "strong"
    return "weak" if found["flop_speedup"]["low"] > 1 else "null"


EXPERT = {"d_hidden": 32, "n_experts": 64, "top_k": 4, "balance": 0.01}  # active: 4 · 32 channels, as the dense model's
LEARNED = EXPERT | {"router_std": 0.2}
LARGE = {"d_hidden": 128, "n_experts": 16, "top_k": 1, "balance": 0.01, "router_std": 0.2}  # as many weights, cut less
EXPERIMENT = Experiment(
    name="moe-against-dense",
    claim=(
        "A mixture of small experts with a learned router needs at most half of the FLOPs in which a dense model of as "
        "many FLOPs a token reaches its loss, after 3 million tokens of prose and code: the 95 % interval of the "
        "factor lies above 2, and the mixture's test loss is below the dense model's at every length."
    ),
    run=run,
    verdict=verdict,
    headline="flop_speedup",
    config={
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 2,
        "length": 128,
        "vocabulary": 1024,
        "batch": 8,
        "tokens": None,
        "search": {
            "router begins undecided": EXPERT | {"router_std": 0.02},
            "router begins decided": LEARNED,
            "router begins decided, a tenth of the balancing": LEARNED | {"balance": 0.001},
            "32 experts, router begins decided": LEARNED | {"n_experts": 32},
            "router knows the token": EXPERT | {"token_std": 1.0},
            "router knows the token, a tenth of the balancing": EXPERT | {"token_std": 1.0, "balance": 0.001},
        },
        "models": {
            "dense": {"d_hidden": 128},
            "dense_total": {"d_hidden": 2048},
            "learned": LEARNED,
            "hash": EXPERT | {"routing": "hash"},
            "random": EXPERT | {"routing": "random"},
            "frozen": EXPERT | {"routing": "frozen", "router_std": 0.2},
            "no_balance": LEARNED | {"balance": 0.0},
            "large_top1": LARGE | {"renormalise": False},
            "large_top1_scaled": LARGE | {"renormalise": False, "scale": 4.0},
            "large_hash": LARGE | {"routing": "hash"},
            "shared": LEARNED | {"top_k": 3, "shared": 32},
        },
        "learning_rates": [0.006, 0.009, 0.012],
        "learning_rates_also": {
            "dense": [0.003, 0.018],
            "dense_total": [0.018],
            "router knows the token": [0.018],
            "learned": [0.018],
            "hash": [0.003],
        },
        "as_good": 0.005,  # nats of validation loss
        "tuning_steps": 750,
        "tuning_seed": 100,
        "lengths": [750, 1500, 3000],
        "at_all_lengths": ["dense", "moe", "learned", "hash"],
        "others_at": [750],
        "at_lengths": {"dense_total": [1500]},
        "looks": 6,
        "evaluate_batches": 32,
        "timed_repeats": 7,
        "workers": 2,
    },
    reduced={
        "d_model": 16,
        "n_layers": 1,
        "length": 32,
        "batch": 8,
        "tokens": 60_000,
        "search": {"8 top-2": {"d_hidden": 16, "n_experts": 8, "top_k": 2, "balance": 0.01, "router_std": 0.2}},
        "models": {
            "dense": {"d_hidden": 32},
            "hash": {"d_hidden": 16, "n_experts": 8, "top_k": 2, "routing": "hash"},
        },
        "learning_rates": [0.02],
        "learning_rates_also": {},
        "tuning_steps": 2,
        "lengths": [60, 120],
        "others_at": [],
        "at_lengths": {},
        "looks": 1,
        "evaluate_batches": 1,
        "timed_repeats": 1,
        "workers": 1,
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
