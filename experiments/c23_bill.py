"""Is the bill right, and is it what one pays?

Models of random sizes, dense and with experts, are made of the reference's own parts (chapters 02 and 13, so that their
products can be counted). Against the bill stand: the bytes of the tensors in a file that safetensors writes, in float32
and in bfloat16, and of the four-bit tensors that `quantise` makes of the bfloat16 model; what a cache holds after a
text, in bfloat16; and the FLOPs that PyTorch's FlopCounterMode counts in a forward pass and in a step of training. One
random pair of models, a dense one and a mixture, is one seed.

And time, in ratios of CPU time on one thread: how many times longer does a step of training take in a model of four
times the width than in a narrow one, beside how many times more FLOPs it costs?
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, interleaved, main
from ichimon.notebook import load


def random_sizes(seed: int, experts: bool) -> dict[str, int]:
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    kv = number(1, 3)
    sizes = {"vocabulary": number(20, 300), "d_model": number(5, 60), "n_layers": number(1, 4)}
    sizes |= {"n_kv_heads": kv, "n_heads": kv * number(1, 3), "d_head": 2 * number(2, 10), "d_hidden": number(5, 90)}
    return sizes | ({"n_experts": number(3, 9), "top_k": number(1, 3)} if experts else {})


def on_disk(model: nn.Module) -> int:
    """The bytes of the tensors in the file that safetensors writes; its header tells how long it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert json.loads(data[8 : 8 + header])
    return len(data) - 8 - header


def counted(model: nn.Module, ids: torch.Tensor) -> tuple[int, int]:
    """FLOPs of a forward pass, and of one with its way back."""
    with FlopCounterMode(display=False) as forth, torch.no_grad():
        model(ids[:, :-1])
    with FlopCounterMode(display=False) as both:
        cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:]).backward()
    return int(forth.get_total_flops()), int(both.get_total_flops())


def ratios(reference: Any, parts: Any, seed: int, experts: bool, n: int) -> dict[str, float]:
    """What was found, divided by what the bill says, for one model of random sizes."""
    sizes = reference.Config(**random_sizes(seed, experts))
    torch.manual_seed(seed)
    model = reference.Model(sizes, parts)
    ids = torch.randint(sizes.vocabulary, (2, n + 1), generator=torch.Generator().manual_seed(seed))
    bill = reference.bill(sizes, context=n, tokens=2 * n, seconds=1.0, watts=1.0)
    forth, both = counted(model, ids)
    found = {"bytes_fp32": on_disk(model), "flops_per_token": forth / (2 * n), "training_flops": both}
    model.bfloat16()
    found |= {"bytes_bf16": on_disk(model), "bytes_nf4": reference.quantise(model, parts)[1]}
    cache = parts.cache()
    with torch.no_grad():
        model(ids, cache)
    held = [*cache.keys.values(), *cache.values.values()]
    found["kv_bytes_per_token"] = sum(part.nbytes for part in held) / (2 * (n + 1))
    return {name: value / bill[name] for name, value in found.items()}


def time_and_flops(reference: Any, parts: Any, seed: int, config: Config) -> tuple[float, float]:
    """How many times more CPU time, and how many times more FLOPs, a step takes in the wide model."""
    models, flops = {}, {}
    n, batch = config["length"], config["batch"]
    ids = torch.randint(config["vocabulary"], (batch, n + 1), generator=torch.Generator().manual_seed(seed))
    for name, width in (("narrow", config["width"]), ("wide", 4 * config["width"])):
        sizes = reference.Config(config["vocabulary"], width, 2, 4, 2, width // 4, 8 * width // 3)
        torch.manual_seed(seed)
        models[name] = reference.Model(sizes, parts)
        flops[name] = reference.bill(sizes, context=n, tokens=batch * n, seconds=1.0, watts=1.0)["training_flops"]

    def step(model: nn.Module) -> None:
        reference.train(model, lambda i: ids, 1, parts)

    times = interleaved({name: partial(step, model) for name, model in models.items()}, repeats=config["repeats"])
    return fmean(times["wide"]) / fmean(times["narrow"]), flops["wide"] / flops["narrow"]


def run(config: Config, seeds: Sequence[int]) -> Results:
    reference: Any = load(ROOT / "solutions/23-your-own-model.py")
    attention, experts = load(ROOT / "solutions/02-self-attention.py"), load(ROOT / "solutions/13-router.py")
    parts = replace(reference.Parts(), attention=attention.attention, experts=experts.MoELayer)
    pairs = [ratios(reference, parts, seed, kind, config["n"]) for seed in seeds for kind in (False, True)]
    timed = [time_and_flops(reference, parts, seed, config) for seed in seeds]
    return {
        "models": len(pairs),
        "over_bill": {
            name: estimate([(one[name] + other[name]) / 2 for one, other in zip(pairs[::2], pairs[1::2], strict=True)])
            for name in pairs[0]
        },
        "largest_error": {name: max(abs(pair[name] - 1) for pair in pairs) for name in pairs[0]},
        "time_of_wide": estimate([time for time, _ in timed]),
        "flops_of_wide": timed[0][1],
    }


def verdict(found: Results) -> Verdict:
    errors = found["largest_error"]
    exact = all(error == 0 for name, error in errors.items() if name != "training_flops")
    near = errors["training_flops"] < 0.01
    if exact and near and found["time_of_wide"]["high"] < found["flops_of_wide"]:
        return "strong"
    return "weak" if max(errors.values()) < 0.05 else "null"


EXPERIMENT = Experiment(
    name="c23_bill",
    claim=(
        "Bytes on disk, bytes after four bits, bytes that the cache holds, and FLOPs of reading are those of the bill, "
        "to the last one; FLOPs of training are within 1 %. But time is not FLOPs: a step of a model of four times the "
        "width takes fewer times longer than it costs more FLOPs."
    ),
    run=run,
    verdict=verdict,
    config={"n": 24, "vocabulary": 512, "width": 48, "length": 64, "batch": 8, "repeats": 12},
    reduced={"repeats": 3},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
