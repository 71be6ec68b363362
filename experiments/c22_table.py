"""What do a config.json and arithmetic tell of published models, and does transformers agree?

Each row is one published model. Its parameters are counted by chapter 22's calculators and by transformers, which
makes the model in its full size without any number in it (on the meta device). The dense ones also read 64 tokens
there: PyTorch counts the FLOPs of every product, and the cache is measured. Models with a mixture cannot run without
numbers, because the router has to choose; small ones of Mixtral's make run with real numbers instead.

Random models of every family are counted too, with sizes drawn anew for each seed, so that no number of the table was
fitted to. Beside them: what two formulas from articles would say, and what the rule 6ND makes of the device-hours that
were published for Llama 2: the share of the peak that was reached.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from autograder import families
from experiments import gpt_line
from experiments.published_configs import CONFIGS, MIXTURES
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, published
from ichimon.notebook import load

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "olmo", "gpt2", "gptj", "gpt_neox", "bloom", *MIXTURES)
SERVED = ("LLaMA 7B", "Llama 3 8B", "Llama 2 70B", "Mixtral 8x7B", "gpt-oss-120b", "DeepSeek-V3")
LLAMA_2 = {"Llama 2 7B": "7b", "Llama 2 13B": "13b", "Llama 2 70B": "70b"}


def counted(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def read(model: Any, vocabulary: int, n: int, device: str) -> tuple[int, int]:
    """FLOPs of reading n tokens, and how many numbers the cache then holds."""
    ids = torch.zeros(1, n, dtype=torch.long, device=device)
    if device != "meta":
        ids = torch.randint(vocabulary, (1, n), generator=torch.Generator().manual_seed(n))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        kept = model(ids, use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers)
    return counter.get_total_flops(), numbers


def drawn(family: str, seed: int) -> dict[str, Any]:
    """A small model of that family with sizes of its own."""
    draw = random.Random(f"{family} {seed}")
    config = dict(draw.choice(families.TINY[family]))
    heads, group = draw.randint(2, 6), draw.randint(1, 3)
    d_head = 2 * draw.randint(2, 6)
    new = {
        "vocab_size": draw.randint(30, 90),
        "num_hidden_layers": (layers := draw.randint(2, 6)),
        "n_layer": layers,
        "num_key_value_heads": heads,
        "num_attention_heads": heads * group,
        "hidden_size": heads * group * d_head,
        "intermediate_size": draw.randint(5, 40),
        "head_dim": 2 * draw.randint(2, 8),
        "moe_intermediate_size": draw.randint(3, 20),
        "q_lora_rank": draw.choice((None, draw.randint(3, 14))),
        "kv_lora_rank": draw.randint(3, 14),
        "first_k_dense_replace": draw.randint(0, layers),
        "n_positions": draw.randint(20, 60),
    }
    if family in ("gpt2", "gptj", "bloom"):
        d_model = 4 * draw.randint(3, 9) * config["n_head"]
        new |= {"n_embd": d_model, "hidden_size": d_model, "n_inner": draw.choice((None, draw.randint(9, 70)))}
    if family == "deepseek_v3":
        new |= {"num_attention_heads": heads, "num_key_value_heads": heads}
        del new["head_dim"]
    if family == "gpt_neox":
        new |= {"hidden_size": 8 * heads * group}
    return config | {name: value for name, value in new.items() if name in config}


def made(config: Mapping[str, Any], device: str = "meta") -> Any:
    with torch.device(device):
        return gpt_line.theirs(config)


def run(config: Config, seeds: Sequence[int]) -> Results:
    c = load(ROOT / "solutions/22-choosing.py")
    n, models = config["n"], {}
    for name in list(CONFIGS)[:: config["every"]]:
        told = CONFIGS[name]
        total, active = c.parameters(told)
        theirs = made(told)
        shape = c.read(told)
        row: dict[str, Any] = {
            "family": told["model_type"],
            "total": total,
            "active": active,
            "transformers": counted(theirs),
            "kv_bytes": c.kv_bytes(told, 1),
            "kv_bytes_8k": c.kv_bytes(told, 8192),
            "query_heads_a_key": 0 if shape.latent else shape.n_heads // shape.n_kv_heads,
            "gflops": c.flops_per_token(told, config["context"]) / 1e9,
            "gib": c.fits(told, 0, config["context"])["total"] / 2**30,
            "gib_4_bit": c.fits(told, 0, config["context"], weight_bits=config["four_bits"])["total"] / 2**30,
            "config": told,
        }
        if told["model_type"] not in MIXTURES:
            flops, numbers = read(theirs, shape.vocabulary, n, "meta")
            row["flops_ratio"] = n * c.flops_per_token(told, n) / flops
            row["cache_ratio"] = c.kv_bytes(told, n) / (2 * numbers)
        models[name] = row
    off, gaps = [], []
    for seed in seeds:
        small = [drawn(family, seed) for family in config["families"]]
        off.append(float(sum(c.parameters(each)[0] != counted(made(each)) for each in small)))
        told = drawn("mixtral", seed) | {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
        told |= {"intermediate_size": 512, "vocab_size": 512, "sliding_window": None}
        theirs = made(told, "cpu")
        flops, _ = read(theirs, 512, n, "cpu")
        gaps.append(n * c.flops_per_token(told, n) / flops - 1)
    ratios = [row["flops_ratio"] for row in models.values() if "flops_ratio" in row]
    return {
        "models": models,
        "n_models": len(models),
        "totals_that_differ": sum(row["total"] != row["transformers"] for row in models.values()),
        "random_models": len(config["families"]),
        "random_totals_that_differ": estimate(off),
        "largest_gap_of_flops": max(abs(ratio - 1) for ratio in ratios),
        "dense_models": len(ratios),
        "gap_of_flops_of_mixtures": estimate(gaps),
        "caches_that_differ": sum(row["cache_ratio"] != 1 for row in models.values() if "cache_ratio" in row),
        "context": config["context"],
        **articles(c),
        "training": {name: training(c, name, key) for name, key in LLAMA_2.items()},
        "carbon": carbon(),
        "serving": {name: serving(c, CONFIGS[name], config) for name in SERVED},
    }


def articles(c: Any) -> dict[str, float]:
    """What two formulas would say that stand in articles."""
    llama, shape = CONFIGS["LLaMA 7B"], c.read(CONFIGS["LLaMA 7B"])
    without_down = c.parameters(llama)[0] - shape.n_layers * shape.d_model * shape.d_hidden
    seventy = c.read(CONFIGS["Llama 2 70B"])
    alone = {**CONFIGS["Llama 2 70B"], "num_key_value_heads": seventy.n_heads}
    return {
        "llama_7b_without_down_b": without_down / 1e9,
        "llama_7b_b": c.parameters(llama)[0] / 1e9,
        "llama2_70b_saves": c.kv_bytes(alone, 1) / c.kv_bytes(CONFIGS["Llama 2 70B"], 1),
        "llama2_70b_saves_if_queries_counted": 3 * seventy.n_heads / (seventy.n_heads + 2 * seventy.n_kv_heads),
        "expansion": {
            name: c.read(CONFIGS[name]).d_hidden / c.read(CONFIGS[name]).d_model
            for name in ("GPT-2 XL", "LLaMA 7B", "Llama 3 8B", "Qwen2.5 7B")
        },
    }


def training(c: Any, name: str, key: str) -> dict[str, float]:
    """The share of the peak that the published device-hours mean."""
    hours, tokens = (published(f"llama2_{which}")["value"] for which in (f"{key}_gpu_hours", "tokens"))
    peak, watts = (published(f"a100_{which}")["value"] for which in ("bf16_flops", "watts"))
    settings = {"peak": peak, "mfu": 1.0, "watts": watts, "pue": 1.0, "carbon": 0.0, "price": 0.0}
    at_peak = c.energy_and_cost(CONFIGS[name], int(tokens), **settings)["device_hours"]
    with_context = c.energy_and_cost(CONFIGS[name], int(tokens), **settings, context=2048)["device_hours"]
    return {
        "device_hours": hours,
        "device_hours_at_peak": at_peak,
        "mfu": at_peak / hours,
        "mfu_with_attention": with_context / hours,
        "mwh": hours * watts / 1e6,
        "kg_a_kwh": published(f"llama2_{key}_tonnes")["value"] / (hours * watts / 1e6),
    }


def serving(c: Any, told: Mapping[str, Any], config: Config) -> dict[str, float]:
    """Tokens a second at most, on one H100 with room enough: one text, and several."""
    machine = [published(f"h100_{which}")["value"] for which in ("bandwidth", "bf16_flops")]

    def speed(batch: int) -> float:
        return c.decode_roofline(told, batch, config["read"], *machine)["tokens_per_second"]

    one, several, many = (speed(batch) for batch in config["batches"])
    active = c.parameters(told)[1]
    return {
        "one": one,
        "several": several,
        "many": many,
        "gain": several / one,
        "active_b": active / 1e9,
        "active_share": active / c.parameters(told)[0],
        "bytes_active_gib": 2 * active / 2**30,
        "weights_gib": 2 * c.parameters(told)[0] / 2**30,
    }


def carbon() -> dict[str, float]:
    """The same arithmetic on two grids; `llama_formula_tonnes` is what the formula of LLaMA's section 6 gives."""
    bloom = published("bloom_tonnes")["value"] / published("bloom_kwh")["value"] * 1e3
    hours, watts = published("llama2_70b_gpu_hours")["value"], published("a100_watts")["value"]
    llama = published("llama2_70b_tonnes")["value"] / (hours * watts / 1e6)
    grid, pue = published("us_grid")["value"], published("llama_pue")["value"]
    return {
        "bloom_kg_a_kwh": bloom,
        "llama2_70b_kg_a_kwh": llama,
        "llama_formula_tonnes": hours * watts / 1e6 * pue * grid,
        "ratio_of_grids": grid / bloom,
        "bloom_watts": published("bloom_kwh")["value"] / published("bloom_gpu_hours")["value"] * 1e3,
    }


def verdict(found: Results) -> Verdict:
    exact = not found["totals_that_differ"] and not found["random_totals_that_differ"]["mean"]
    flops = max(found["largest_gap_of_flops"], max(map(abs, found["gap_of_flops_of_mixtures"]["values"])))
    if exact and not found["caches_that_differ"] and flops < 0.01:
        return "strong"
    return "weak" if found["totals_that_differ"] <= 1 and flops < 0.1 else "null"


EXPERIMENT = Experiment(
    name="c22_table",
    claim=(
        "From its config.json alone, arithmetic counts the parameters of each published model, and of random models of "
        "every family, as transformers does, to the last one. The FLOPs of reading are within 1 % of what PyTorch "
        "counts in transformers' model, and a token's cache is as large as transformers' cache, to the byte."
    ),
    run=run,
    verdict=verdict,
    config={
        "every": 1,
        "families": list(FAMILIES),
        "n": 64,
        "context": 4096,
        "four_bits": 4.127,
        "read": 2048,
        "batches": [1, 16, 256],
    },
    reduced={"every": 6, "families": ["qwen2", "gptj", "deepseek_v3"]},
)

if __name__ == "__main__":
    main(EXPERIMENT)
