"""How many bytes do published models keep for a token, and is that what a cache really holds?

The reference's kv_cache_bytes is given the sizes of published models (experiments/published.json), in 16 bits a number,
and beside them what each would keep if it shared nothing. Two other ways to count, met in articles, are computed too:
with the queries, and as n·d·(h_q + 2·h_kv) against n·d·3·h_q.

That the formula is right is measured: grouped layers and latent layers of random sizes read a random text, and the
bytes of the tensors that have to be kept are counted. One draw of sizes is one seed.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, published
from ichimon.notebook import load

MODELS = ("llama_7b", "llama2_70b", "llama3_8b", "qwen_7b", "qwen25_7b", "deepseek_v3")


def config_of(model: str) -> dict[str, Any]:
    """The entries of the model's config.json that decide, as they were published."""

    def figure(name: str) -> Any:
        return published(f"{model}_{name}")["value"]

    found = {
        "num_hidden_layers": figure("layers"),
        "num_attention_heads": figure("n_heads"),
        "hidden_size": figure("d_model"),
    }
    if model in ("llama2_70b", "llama3_8b", "qwen25_7b"):
        found["num_key_value_heads"] = figure("n_kv_heads")
    if model == "deepseek_v3":
        found |= {"kv_lora_rank": figure("kv_rank"), "qk_rope_head_dim": figure("d_rope"), "head_dim": figure("d_head")}
    return found


@torch.no_grad()
def held(parts: Any, seed: int) -> list[float]:
    """What a random grouped layer's and a random latent layer's cache hold, over what the formula says."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    torch.manual_seed(seed)
    kv_heads, group, d_head, batch, n = number(1, 4), number(1, 4), number(2, 9), number(1, 5), number(3, 50)
    heads, d_model = kv_heads * group, number(5, 20)
    layer = parts.GroupedQueryAttention(d_model, heads, kv_heads, d_head)
    x = torch.randn(batch, n, d_model)
    keys, values = (proj(x).unflatten(-1, (kv_heads, d_head)).transpose(1, 2) for proj in (layer.k_proj, layer.v_proj))
    config = {"num_hidden_layers": 1, "num_attention_heads": heads, "hidden_size": d_model}
    grouped = {**config, "num_key_value_heads": kv_heads, "head_dim": d_head}
    rank, rope = number(3, 12), 2 * number(1, 4)
    made = parts.LatentAttention(d_model, heads, q_rank=7, kv_rank=rank, d_nope=d_head, d_rope=rope, d_v=d_head)
    _, kept = made(x)
    latent = {**grouped, "kv_lora_rank": rank, "qk_rope_head_dim": rope}
    return [
        (keys.nbytes + values.nbytes) / parts.kv_cache_bytes(grouped, n, batch, torch.float32),
        kept.nbytes / parts.kv_cache_bytes(latent, n, batch, torch.float32),
    ]


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/09-grouped-queries.py")
    pairs = [held(parts, seed) for seed in seeds]
    models = {}
    for name in MODELS:
        sizes = config_of(name)
        heads, kv_heads = sizes["num_attention_heads"], sizes.get("num_key_value_heads", sizes["num_attention_heads"])
        unshared = {key: value for key, value in sizes.items() if key not in ("num_key_value_heads", "kv_lora_rank")}
        token, alone = parts.kv_cache_bytes(sizes, 1), parts.kv_cache_bytes(unshared, 1)
        models[name] = {
            "layers": sizes["num_hidden_layers"],
            "n_heads": heads,
            "n_kv_heads": kv_heads,
            "bytes_per_token": token,
            "kib_per_token": token / 1024,
            "kib_unshared": alone / 1024,
            "saves": alone / token,
            "saves_if_queries_counted": 3 * heads / (heads + 2 * kv_heads),
            "gib": parts.kv_cache_bytes(sizes, config["length"]) / 2**30,
            "tokens_in_memory": config["memory_gib"] * 2**30 // token,
        }
    return {
        "models": models,
        "length": config["length"],
        "memory_gib": config["memory_gib"],
        "grouped_held_over_formula": estimate([pair[0] for pair in pairs]),
        "latent_held_over_formula": estimate([pair[1] for pair in pairs]),
        "qwen_over_qwen25": models["qwen_7b"]["bytes_per_token"] / models["qwen25_7b"]["bytes_per_token"],
        "llama2_70b_over_deepseek_v3": models["llama2_70b"]["bytes_per_token"]
        / models["deepseek_v3"]["bytes_per_token"],
    }


def verdict(found: Results) -> Verdict:
    exact = all(set(found[f"{kind}_held_over_formula"]["values"]) == {1.0} for kind in ("grouped", "latent"))
    models = found["models"]
    if exact and models["llama2_70b"]["saves"] == 8 and models["deepseek_v3"]["saves"] > 50:
        return "strong"
    return "weak" if exact else "null"


EXPERIMENT = Experiment(
    name="c09_bytes",
    claim=(
        "The formula counts what has to be kept to the byte, for grouped and for latent layers. Sharing makes the "
        "cache of Llama 2 70B 8 times smaller, and the latent makes that of DeepSeek-V3 more than 50 times smaller "
        "than keys and values of all its heads."
    ),
    run=run,
    verdict=verdict,
    config={"length": 32768, "memory_gib": 24},
    reduced={"length": 1024},
)

if __name__ == "__main__":
    main(EXPERIMENT)
