"""Does LoRA learn as much as full fine-tuning, and forget less? And if not, is it the rank that is too small?

A small decoder learns the docstrings of a part of Python's library. Then it is taught a second kind of text: docstrings
of the other modules (a small shift), or the library's code (a large one). How large a shift is, is measured too: by how
much the loss on the new text exceeds that on the old, before anything is taught. Compared:

- full: every number is trained;
- layers: the linear layers of the blocks are trained, whole; embeddings and norms are frozen: what LoRA of full rank
  could reach at best;
- LoRA 1, 4 and 16: corrections of that rank in the same layers, α / r = 2;
- LoRA 16 + embeddings: the table of embeddings, which is also the read-out here, is trained beside the corrections;
- QLoRA 16: as LoRA 16, with the layers' weights in NF4.

The learning rate of each way and shift comes from validation text of the new kind, on a seed of its own and half of the
steps. What is reported is the loss on test text of the new kind, and what the loss on docstrings rose by: forgetting.
All ways of one seed start from the same model and read the same text.

What training holds in memory is counted, not measured: everything stored, and for each number that is trained a
gradient and Adam's two, all in float32; activations are left out.

A first run, with seeds 0 to 2, took code for the small shift and the reference of the language for the large one. On
test text the two turned out to be equally far, so it could not tell a small shift from a large one, and LoRA stayed
behind by 0.6 nats on both. What it said of rank, embeddings, NF4 and forgetting is what the claim below says again, and
it is judged on fresh seeds. Only the shifts were changed, and the tokens that the first model learns from.

A second run, with seeds 3 to 5, ended weak, for one interval was wider than the claim: LoRA 16 on the small shift. Then
all experiments of chapters 14 to 18 that trained models on three or four seeds were given five, whatever they had said.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from experiments import adapting
from ichimon import train
from ichimon.measure import Config, Experiment, Results, Verdict, estimate, main, paired

WAYS = ("full", "layers", "LoRA 1", "LoRA 4", "LoRA 16", "LoRA 16 + embeddings", "QLoRA 16")
SHIFTS: dict[str, adapting.Kind] = {"small": "other", "large": "code"}


def taught(
    model: nn.Module, way: str, kind: adapting.Kind, lr: float, seed: int, config: Config, steps: int
) -> nn.Module:
    """A copy of the model after it was taught one kind of text."""
    model = copy.deepcopy(model)
    adapting.adapt(model, way, seed)
    ids = adapting.text(kind, "train", config["tokens"])
    settings = train.Settings(
        steps=steps,
        lr=lr,
        warmup=steps // 10,
        weight_decay=0.0,
        evaluate_every=steps,
        seed=seed,
        device="cpu",
    )
    batches = train.windows(ids, batch=config["batch"], length=config["length"], seed=1000 + seed)
    train.fit(model, batches, settings, quiet=True)
    return model


def run(config: Config, seeds: Sequence[int]) -> Results:
    start = adapting.base(config, config["tuning_seed"])
    trials: list[dict[str, Any]] = []
    best: dict[str, dict[str, float]] = {shift: {} for shift in SHIFTS}
    for shift, kind in SHIFTS.items():
        for way in WAYS:
            rates = config["learning_rates"]["all" if way in ("full", "layers") else "adapters"]
            tried = []
            for lr in rates:
                model = taught(start, way, kind, lr, config["tuning_seed"], config, config["tuning_steps"])
                found = adapting.loss(model, kind, "validation", config)
                tried.append({"shift": shift, "way": way, "learning_rate": lr, "loss": found})
            best[shift][way] = min(tried, key=lambda trial: trial["loss"])["learning_rate"]
            trials += tried
    kinds: tuple[adapting.Kind, ...] = ("docstrings", *SHIFTS.values())
    before: dict[str, list[float]] = {kind: [] for kind in kinds}
    after: dict[str, dict[str, list[float]]] = {shift: {way: [] for way in WAYS} for shift in SHIFTS}
    old: dict[str, dict[str, list[float]]] = {shift: {way: [] for way in WAYS} for shift in SHIFTS}
    parameters, held = {}, {}
    for seed in seeds:
        start = adapting.base(config, seed)
        for kind in kinds:
            before[kind].append(adapting.loss(start, kind, "test", config))
        for shift, kind in SHIFTS.items():
            for way in WAYS:
                model = taught(start, way, kind, best[shift][way], seed, config, config["steps"])
                after[shift][way].append(adapting.loss(model, kind, "test", config))
                old[shift][way].append(adapting.loss(model, "docstrings", "test", config))
                parameters[way], held[way] = adapting.trained(model), adapting.bytes_held(model)
    return {
        "before": {kind: estimate(values) for kind, values in before.items()},
        "loss": {shift: {way: estimate(v) for way, v in ways.items()} for shift, ways in after.items()},
        "gain": {
            shift: {way: paired(before[SHIFTS[shift]], v) for way, v in ways.items()} for shift, ways in after.items()
        },
        "minus_full": {
            shift: {way: paired(v, ways["full"]) for way, v in ways.items() if way != "full"}
            for shift, ways in after.items()
        },
        "shift": {shift: paired(before[kind], before["docstrings"]) for shift, kind in SHIFTS.items()},
        "lora_minus_layers": {shift: paired(ways["LoRA 16"], ways["layers"]) for shift, ways in after.items()},
        "forgetting": {
            shift: {way: paired(v, before["docstrings"]) for way, v in ways.items()} for shift, ways in old.items()
        },
        "forgetting_minus_full": {
            shift: {way: paired(v, ways["full"]) for way, v in ways.items() if way != "full"}
            for shift, ways in old.items()
        },
        "four_bits_cost": {shift: paired(ways["QLoRA 16"], ways["LoRA 16"]) for shift, ways in after.items()},
        "parameters": parameters,
        "share": {way: n / parameters["full"] for way, n in parameters.items()},
        "bytes": held,
        "learning_rate": best,
        "trials": trials,
    }


def verdict(found: Results) -> Verdict:
    small, large = (found["minus_full"][shift] for shift in SHIFTS)
    forgets = found["forgetting_minus_full"]["large"]["LoRA 16"]
    rank, bits = list(found["lora_minus_layers"].values()), list(found["four_bits_cost"].values())
    with_embeddings = [behind["LoRA 16 + embeddings"] for behind in (small, large)]
    if (
        small["LoRA 16"]["high"] < 0.1
        and large["LoRA 16"]["low"] > 0.3
        and all(e["high"] < 0.1 for e in (*rank, *with_embeddings))
        and forgets["high"] < 0
        and all(e["high"] < 0.05 for e in bits)
    ):
        return "strong"
    right = small["LoRA 16"]["mean"] < large["LoRA 16"]["mean"] and forgets["mean"] < 0
    return "weak" if right and large["LoRA 16 + embeddings"]["mean"] < large["LoRA 16"]["mean"] else "null"


EXPERIMENT = Experiment(
    name="c18_adapters",
    claim=(
        "On a small shift LoRA of rank 16 comes within 0.1 nats of full fine-tuning; on a large one it stays behind by "
        "more than 0.3 nats, and forgets less (95 % intervals of paired differences). It is not the rank: on both "
        "shifts it comes within 0.1 nats of training the same layers whole, and with the embeddings trained as well it "
        "comes within 0.1 nats of full fine-tuning. To keep the layers in NF4 costs less than 0.05 nats."
    ),
    run=run,
    verdict=verdict,
    config={
        "d_model": 64,
        "n_layers": 2,
        "length": 64,
        "base_steps": 250,
        "base_lr": 4e-3,
        "base_tokens": 250_000,
        "tokens": 90_000,
        "steps": 150,
        "batch": 8,
        "tuning_steps": 75,
        "learning_rates": {"all": [2e-3, 4e-3, 8e-3], "adapters": [4e-3, 8e-3, 1.6e-2]},
        "tuning_seed": 100,
        "test_tokens": 20_000,
        "evaluate_batches": 6,
    },
    reduced={
        "base_steps": 40,
        "base_tokens": 60_000,
        "tokens": 40_000,
        "steps": 30,
        "tuning_steps": 2,
        "d_model": 32,
        "n_layers": 1,
        "length": 32,
        "learning_rates": {"all": [4e-3], "adapters": [1e-2]},
        "evaluate_batches": 2,
    },
    seeds=(3, 4, 5, 6, 7),
)

if __name__ == "__main__":
    main(EXPERIMENT)
