"""How different are the families of experts, and how large are their published models, exactly?

Parity: five families, small models of each with several configurations, every parameter and buffer drawn anew at
random. The logits of chapter 16's decoder are compared with those of transformers.

Ingredients: what a family does is asked of transformers' own routers, by experiment. How much do a token's weights
add up to, and does a weight feel an expert that was not chosen? What the layers hold is read off their names.

Counts: chapter 16's count_parameters on the config.json of published models, against the model that transformers builds
from it without memory (on the meta device), and against what the makers say. Three models are counted by arithmetic.
Switch-C (Fedus et al. 2022) is a T5 in which every layer has experts: transformers could build it, and takes a minute.
GLaM (Du et al. 2022, table 4) was never released: 64 layers of attention with 128 heads of 128, every other one with
64 plain experts, the others with a gated dense layer (section 4), a vocabulary of 256,000, no word about biases. Its
numbers that we could not look up, vocabulary and gated layers, are those with which the published active count comes
out. Grok-1's numbers stand in its code (xai-org/grok-1, run.py and model.py): gated experts as wide as 2/3 of 8
d_model, four norms a layer, embedding and head in one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autograder import families
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, published
from ichimon.notebook import load

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4_text")


def transformers_model(config: Mapping[str, Any]) -> Any:
    import transformers

    found = transformers.AutoConfig.for_model(**config)
    found.pad_token_id = None
    return transformers.AutoModelForCausalLM.from_config(
        found, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def difference(chapter: Any, config: Mapping[str, Any], seed: int) -> tuple[float, float]:
    """The largest difference of the logits, and their standard deviation."""
    state = families.random_state(config, seed)
    theirs, ours = transformers_model(config), chapter.Decoder(config)
    theirs.load_state_dict(state)
    ours.load_state_dict(families.course_state(config, state))
    ids = torch.randint(config["vocab_size"], (2, 19), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = theirs(ids).logits
        return (ours(ids) - expected).abs().max().item(), expected.std().item()


def routing(family: str, logits: Tensor) -> Tensor:
    """What transformers' own router makes of these logits: the weight of each expert, [tokens, n_experts]."""
    config = dict(families.TINY[family][0]) | {
        "num_experts_per_tok": min(2, families.TINY[family][0]["num_experts_per_tok"])
    }
    n = logits.shape[1]
    config |= {
        "hidden_size": n,
        "num_local_experts": n,
        "num_experts": n,
        "n_routed_experts": n,
        "n_group": 4,
        "topk_group": 2,
    }
    if family != "deepseek_v3":
        config |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    mlp = transformers_model(config).model.layers[-1]
    mlp = mlp.feed_forward if family == "llama4_text" else mlp.mlp
    router = mlp.gate if hasattr(mlp, "gate") else mlp.router
    with torch.no_grad():
        for value in router.state_dict().values():
            value.zero_()
        router.weight.copy_(torch.eye(n))
        out = router(logits)
    if family == "llama4_text":
        return out[0]
    return torch.zeros_like(logits).scatter(1, out[2], out[1].to(logits.dtype))


def ingredients(family: str, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(512, 16, generator=generator)
    weights = routing(family, logits)
    chosen = weights > 0
    lower = logits.masked_fill(~chosen, -9.0)  # whoever lost, loses by more
    names = " ".join(families.course_state(config := families.TINY[family][0], families.random_state(config, 0)))
    totals = weights.sum(-1)
    return {
        "smallest_sum": totals.min().item(),
        "largest_sum": totals.max().item(),
        "feels_the_others": bool((routing(family, lower) - weights).abs().max() > 1e-4),
        "shared_expert": "mlp.shared" in names,
        "biases": "gate_up_bias" in names,
        "correction": "correction" in names,
        "latent_attention": "kv_down" in names,
        "sinks": "sinks" in names,
        "query_key_norm": "k_norm" in names,
    }


def meta_count(config: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        model = transformers_model(config)
    return sum(parameter.numel() for parameter in model.parameters())


def switch_count(c: Mapping[str, int]) -> tuple[int, int, int]:
    """An encoder-decoder: its token passes both halves' experts where it is read once and written once."""
    d, inner, layers = c["d_model"], c["heads"] * c["d_head"], c["layers"]
    attention, norms = 4 * d * inner, d
    table, bias = c["vocabulary"] * d, 2 * c["buckets"] * c["heads"]
    rest = table + bias + 2 * norms + layers * (3 * attention + (2 + 3) * norms)
    router, expert, sparse = c["experts"] * d, 2 * d * c["d_hidden"], 2 * layers
    total = rest + sparse * (router + c["experts"] * expert)
    active = rest + sparse * (router + expert)
    return total, active, active


def glam_count(c: Mapping[str, int]) -> tuple[int, int, int]:
    d, h, layers = c["d_model"], c["d_hidden"], c["layers"]
    rest = (
        c["vocabulary"] * d + layers * 4 * d * c["heads"] * c["d_head"] + layers // 2 * (3 * d * h + d * c["experts"])
    )
    each = layers // 2 * 2 * d * h
    active = rest + c["top_k"] * each
    return rest + c["experts"] * each, active, active


def grok_count(c: Mapping[str, int]) -> tuple[int, int, int]:
    d, layers = c["d_model"], c["layers"]
    attention = 2 * d * (c["heads"] + c["kv_heads"]) * c["d_head"]
    rest = c["vocabulary"] * d + d + layers * (attention + 4 * d + d * c["experts"])
    each = layers * 3 * d * (c["widening"] * d * 2 // 3)
    active = rest + c["top_k"] * each
    return rest + c["experts"] * each, active, active


ARITHMETIC = {"Switch-C": switch_count, "GLaM 64B/64E": glam_count, "Grok-1": grok_count}


def said(name: str, which: str) -> float | None:
    """Billions, as its makers say."""
    key = name.lower().replace(" ", "_").replace("-", "_").replace("/", "_").replace(".", "_")
    try:
        return float(published(f"c16_{key}_{which}")["value"])
    except KeyError:
        return None


def run(config: Config, seeds: Sequence[int]) -> Results:
    chapter = load(ROOT / "solutions/16-moe-families.py")
    found: Results = {"families": {}, "models": {}}
    for family in FAMILIES:
        small = families.TINY[family][: config["configurations"]]
        by_seed = [[difference(chapter, each, seed + 1) for each in small] for seed in seeds]
        pairs = [pair for one in by_seed for pair in one]
        found["families"][family] = {
            "largest_difference": max(pair[0] for pair in pairs),
            "difference": estimate([max(pair[0] for pair in one) for one in by_seed]),
            "smallest_spread": min(pair[1] for pair in pairs),
            "comparisons": len(pairs),
            **ingredients(family, seeds[0]),
        }
    for name, given in config["models"].items():
        if name in ARITHMETIC:
            counts, family, meta = ARITHMETIC[name](given), name.split()[0].split("-")[0].lower(), None
            shape = {"n_experts": given["experts"], "top_k": given["top_k"], "shared": False}
        else:
            whole = {**config["common"], **given}
            counts, family = chapter.count_parameters(whole), given["model_type"]
            meta = meta_count(whole) if config["meta"] else None
            moe = next(each for each in chapter.read_config(whole).experts if each)
            shape = {"n_experts": moe.n_experts, "top_k": moe.top_k, "shared": moe.d_shared > 0}
        found["models"][name] = {
            "family": family,
            **shape,
            "total": counts[0],
            "active": counts[1],
            "without_embedding": counts[2],
            "transformers": meta,
            "said_total_b": said(name, "total"),
            "said_active_b": said(name, "active"),
        }
    rows = found["models"].values()
    found["largest_difference"] = max(row["largest_difference"] for row in found["families"].values())
    found["counted_by_transformers"] = sum(row["transformers"] is not None for row in rows)
    found["counts_that_differ"] = sum(row["transformers"] not in (None, row["total"]) for row in rows)
    off = [abs(row["total"] / 1e9 / row["said_total_b"] - 1) for row in rows if row["said_total_b"]]
    found["largest_gap_of_totals"] = max(off)
    return found


def verdict(found: Results) -> Verdict:
    exact = found["largest_difference"] < 1e-4 and not found["counts_that_differ"]
    if exact and found["largest_gap_of_totals"] < 0.04:
        return "strong"
    return "weak" if exact else "null"


LLAMA4 = {
    "model_type": "llama4_text",
    "vocab_size": 202048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_experts_per_tok": 1,
    "no_rope_layers": [1, 1, 1, 0] * 12,
    "attention_chunk_size": 8192,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "attn_scale": 0.1,
    "floor_scale": 8192,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 2880,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "attention_bias": True,
}
QWEN3 = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 8}
EXPERIMENT = Experiment(
    name="c16_table",
    claim=(
        "In each of five families the logits of one decoder with the family's lines in it differ from those of "
        "transformers by less than 0.0001; every count equals transformers' to the last parameter; and each total is "
        "within 4 % of what its makers say, Switch-C, GLaM and Grok-1 by arithmetic included."
    ),
    run=run,
    verdict=verdict,
    config={
        "configurations": 2,
        "meta": True,
        "common": {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 10000.0},
        "models": {
            "Mixtral 8x7B": {
                **MIXTRAL,
                "vocab_size": 32000,
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "intermediate_size": 14336,
            },
            "Mixtral 8x22B": {
                **MIXTRAL,
                "vocab_size": 32768,
                "hidden_size": 6144,
                "num_hidden_layers": 56,
                "num_attention_heads": 48,
                "intermediate_size": 16384,
            },
            "Qwen3-30B-A3B": {
                **QWEN3,
                "hidden_size": 2048,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
            },
            "Qwen3-235B-A22B": {
                **QWEN3,
                "hidden_size": 4096,
                "num_hidden_layers": 94,
                "num_attention_heads": 64,
                "intermediate_size": 12288,
                "moe_intermediate_size": 1536,
            },
            "gpt-oss-20b": {**GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32},
            "gpt-oss-120b": {**GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128},
            "DeepSeek-V3": {
                "model_type": "deepseek_v3",
                "vocab_size": 129280,
                "hidden_size": 7168,
                "num_hidden_layers": 61,
                "num_attention_heads": 128,
                "num_key_value_heads": 128,
                "intermediate_size": 18432,
                "moe_intermediate_size": 2048,
                "n_routed_experts": 256,
                "n_shared_experts": 1,
                "num_experts_per_tok": 8,
                "n_group": 8,
                "topk_group": 4,
                "norm_topk_prob": True,
                "routed_scaling_factor": 2.5,
                "first_k_dense_replace": 3,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
            },
            "Llama 4 Scout": {**LLAMA4, "num_local_experts": 16, "interleave_moe_layer_step": 1},
            "Llama 4 Maverick": {**LLAMA4, "num_local_experts": 128, "interleave_moe_layer_step": 2},
            "Switch-C": {
                "vocabulary": 32128,
                "d_model": 2080,
                "d_hidden": 6144,
                "d_head": 64,
                "heads": 32,
                "layers": 15,
                "buckets": 32,
                "experts": 2048,
                "top_k": 1,
            },
            "GLaM 64B/64E": {
                "vocabulary": 256000,
                "d_model": 8192,
                "d_hidden": 32768,
                "d_head": 128,
                "heads": 128,
                "layers": 64,
                "experts": 64,
                "top_k": 2,
            },
            "Grok-1": {
                "vocabulary": 131072,
                "d_model": 6144,
                "widening": 8,
                "d_head": 128,
                "heads": 48,
                "kv_heads": 8,
                "layers": 64,
                "experts": 8,
                "top_k": 2,
            },
        },
    },
    reduced={"configurations": 1, "meta": False},
    seeds=(0, 1, 2),
)

if __name__ == "__main__":
    main(EXPERIMENT)
