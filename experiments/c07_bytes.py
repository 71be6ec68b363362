"""How many bytes does a KV cache take, and is the formula what a cache really holds?

For the published models the reference's kv_cache_bytes is given their configurations (experiments/published.json), in
16 bits a number. That the formula is right is measured: decoders of random sizes read and write a text, and the bytes
of the tensors that their caches then hold are counted. One random decoder is one seed.
"""

from collections.abc import Sequence
from typing import Any

import torch

from experiments.cached_decoder import CachedDecoder
from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main, published
from ichimon.notebook import load

NAMES = ("gpt2_small", "llama_7b", "llama3_8b", "gpt3")


def shape_of(model: str) -> dict[str, int]:
    """The sizes that the cache depends on, as they were published."""
    figures = {name: published(f"{model}_{name}")["value"] for name in ("layers", "d_model", "n_heads")}
    shape = {"n_layers": figures["layers"], "n_heads": figures["n_heads"]}
    shape["d_head"] = figures["d_model"] // figures["n_heads"]
    if model == "llama3_8b":
        shape["n_kv_heads"] = published("llama3_8b_n_kv_heads")["value"]
    return shape


@torch.no_grad()
def held(parts: Any, config: Config, seed: int) -> tuple[int, int]:
    """The bytes that a random decoder's cache holds after writing a text, and what the formula says."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    n_layers, n_heads, d_head, batch = number(1, 4), number(1, 6), 2 * number(2, 8), number(1, 5)
    prompt, n_new = torch.randint(50, (batch, number(3, 40)), generator=draw), number(5, config["n_new"])
    torch.manual_seed(seed)
    model = CachedDecoder(50, parts, d_model=n_heads * d_head, n_layers=n_layers, n_heads=n_heads, longest=200)
    cache = parts.KVCache()
    text = parts.generate(model, prompt, n_new, cache)
    length = text.shape[1] - 1  # the last token is never read
    sizes = {"n_layers": n_layers, "n_heads": n_heads, "d_head": d_head, "batch": batch, "dtype": torch.float32}
    return sum(part.nbytes for pair in cache.kept.values() for part in pair), parts.kv_cache_bytes(length, **sizes)


def run(config: Config, seeds: Sequence[int]) -> Results:
    parts = load(ROOT / "solutions/07-kv-cache.py")
    pairs = [held(parts, config, seed) for seed in seeds]
    models = {}
    for name in NAMES:
        shape = shape_of(name)
        token = parts.kv_cache_bytes(1, **shape)
        with_queries = token + token // 2 * shape["n_heads"] // shape.get("n_kv_heads", shape["n_heads"])
        models[name] = {
            **shape,
            "bytes_per_token": token,
            "kib_per_token": token / 1024,
            "gib": parts.kv_cache_bytes(config["length"], **shape) / 2**30,
            "tokens_in_memory": config["memory_gib"] * 2**30 // token,
            "if_queries_were_kept": with_queries / token,
        }
    return {
        "models": models,
        "length": config["length"],
        "memory_gib": config["memory_gib"],
        "held_over_formula": estimate([held / formula for held, formula in pairs]),
        "llama_7b_over_llama3_8b": models["llama_7b"]["bytes_per_token"] / models["llama3_8b"]["bytes_per_token"],
    }


def verdict(found: Results) -> Verdict:
    models, exact = found["models"], set(found["held_over_formula"]["values"]) == {1.0}
    large = models["gpt3"]["bytes_per_token"] >= 100 * models["gpt2_small"]["bytes_per_token"]
    if exact and large and found["llama_7b_over_llama3_8b"] == 4:
        return "strong"
    return "weak" if abs(found["held_over_formula"]["mean"] - 1) < 0.05 else "null"


EXPERIMENT = Experiment(
    name="c07_bytes",
    claim=(
        "The formula counts what a cache really holds, to the byte. A token of GPT-3 takes more than a hundred times "
        "what a token of GPT-2 small takes, and a token of LLaMA 7B four times what one of Llama 3 8B takes."
    ),
    run=run,
    verdict=verdict,
    config={"n_new": 60, "length": 4096, "memory_gib": 24},
    reduced={"n_new": 20},
)

if __name__ == "__main__":
    main(EXPERIMENT)
