"""Is the decoder of this chapter LLaMA, Qwen2, Qwen3 and Mistral, to the last logit and the last parameter?

transformers makes small random models of each family, draws every parameter anew, and saves them; the reference
solution's `load_hf` reads the folders. Both then read the same padded batch, and continue a prompt greedily. Second,
both build the published models at full size on PyTorch's device "meta", which holds shapes and no numbers, from
nothing but what their config.json says.

Judged by: the largest difference of any logit at a real token, the share of equal tokens, and the number of parameters.

A first run found a tenth of the tokens different, and the fault was ours: without a mask `generate` takes every
token 0 of the prompt for padding. This run gives both the same mask, and continues all texts of the padded batch.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ichimon.measure import ROOT, Config, Experiment, Results, Verdict, estimate, main
from ichimon.notebook import load

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SMALL: dict[str, list[dict[str, Any]]] = {
    "llama": [
        dict(zip(SIZES, (24, 3, 4, 4, 20), strict=True)),
        dict(zip(SIZES, (30, 3, 6, 2, 33), strict=True), head_dim=10, rope_theta=5e5, tie_word_embeddings=True),
        dict(
            zip(SIZES, (24, 3, 3, 1, 20), strict=True), rope_scaling=LLAMA3 | {"original_max_position_embeddings": 16}
        ),
    ],
    "mistral": [
        dict(zip(SIZES, (24, 3, 4, 2, 20), strict=True), sliding_window=4),
        dict(zip(SIZES, (20, 3, 5, 1, 14), strict=True), head_dim=6, sliding_window=None, rope_theta=1e6),
    ],
    "qwen2": [
        dict(zip(SIZES, (24, 3, 4, 2, 20), strict=True), use_sliding_window=False, rope_theta=1e6),
        dict(
            zip(SIZES, (30, 3, 5, 1, 17), strict=True),
            use_sliding_window=True,
            sliding_window=3,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
    ],
    "qwen3": [
        dict(zip(SIZES, (24, 3, 4, 2, 20), strict=True), head_dim=10, rope_theta=1e6),
        dict(zip(SIZES, (20, 3, 6, 3, 14), strict=True), head_dim=4, tie_word_embeddings=True),
    ],
}


def published(family: str, name: str, vocabulary: int, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model_type": family,
        "vocab_size": vocabulary,
        **dict(zip(SIZES, sizes, strict=True)),
        **more,
    }


PUBLISHED = [
    published("llama", "LLaMA 7B", 32000, (4096, 32, 32, 32, 11008)),
    published("llama", "LLaMA 13B", 32000, (5120, 40, 40, 40, 13824)),
    published("llama", "LLaMA 33B", 32000, (6656, 60, 52, 52, 17920)),
    published("llama", "LLaMA 65B", 32000, (8192, 80, 64, 64, 22016)),
    published("llama", "Llama 2 7B", 32000, (4096, 32, 32, 32, 11008)),
    published("llama", "Llama 2 13B", 32000, (5120, 40, 40, 40, 13824)),
    published("llama", "Llama 2 70B", 32000, (8192, 80, 64, 8, 28672)),
    published("llama", "Llama 3 8B", 128256, (4096, 32, 32, 8, 14336)),
    published("llama", "Llama 3 70B", 128256, (8192, 80, 64, 8, 28672)),
    published("llama", "Llama 3.1 405B", 128256, (16384, 126, 128, 8, 53248), rope_scaling=LLAMA3),
    published("llama", "Llama 3.2 1B", 128256, (2048, 16, 32, 8, 8192), head_dim=64, tie_word_embeddings=True),
    published("llama", "Llama 3.2 3B", 128256, (3072, 28, 24, 8, 8192), head_dim=128, tie_word_embeddings=True),
    published("mistral", "Mistral 7B v0.1", 32000, (4096, 32, 32, 8, 14336), sliding_window=4096),
    published("qwen2", "Qwen2 0.5B", 151936, (896, 24, 14, 2, 4864), tie_word_embeddings=True),
    published("qwen2", "Qwen2 7B", 152064, (3584, 28, 28, 4, 18944)),
    published("qwen2", "Qwen2.5 72B", 152064, (8192, 80, 64, 8, 29568)),
    published("qwen3", "Qwen3 0.6B", 151936, (1024, 28, 16, 8, 3072), head_dim=128, tie_word_embeddings=True),
    published("qwen3", "Qwen3 8B", 151936, (4096, 36, 32, 8, 12288), head_dim=128),
    published("qwen3", "Qwen3 32B", 151936, (5120, 64, 64, 8, 25600), head_dim=128),
]


def counted(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def run(config: Config, seeds: Sequence[int]) -> Results:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    reference = load(ROOT / "solutions/11-llama-qwen-mistral.py")

    def compared(family: str, sizes: dict[str, Any], seed: int) -> tuple[float, float, float]:
        """The largest difference of a logit, the size of the logits, and the share of equal tokens."""
        made = getattr(transformers, f"{CLASSES[family]}Config")
        theirs = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(made(vocab_size=37, **sizes)).eval()
        generator = torch.Generator().manual_seed(seed)
        for parameter in theirs.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = reference.load_hf(folder)
        ids = torch.randint(37, (3, 11), generator=generator)
        real = torch.arange(11) >= torch.tensor([[0], [3], [6]])
        with torch.no_grad():
            expected = theirs(ids, attention_mask=real.long()).logits[real]
            difference = (ours(ids, real)[real] - expected).abs().max().item()
            more = {"max_new_tokens": config["n_new"], "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            written = theirs.generate(ids, attention_mask=real.long(), **more)[:, 11:]
        same = (reference.generate(ours, ids, config["n_new"], real) == written).float().mean()
        return difference, expected.std().item(), same.item()

    found: Results = {"transformers": transformers.__version__, "families": {}, "models": []}
    for family in config["families"]:
        rows = [[compared(family, sizes, seed) for sizes in SMALL[family]] for seed in seeds]
        worst = [max(difference for difference, _, _ in row) for row in rows]
        found["families"][family] = {
            "difference": estimate(worst) | {"most": max(worst)},
            "logits": estimate([min(size for _, size, _ in row) for row in rows]),
            "same_tokens": estimate([sum(same for _, _, same in row) / len(row) for row in rows]),
            "configurations": len(SMALL[family]),
        }
    for row in PUBLISHED[: config["models"]]:
        told = {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, **row}
        name = told.pop("name")
        theirs_config = getattr(transformers, f"{CLASSES[row['model_type']]}Config")(
            **{key: value for key, value in told.items() if key != "model_type"}
        )
        with torch.device("meta"):
            ours = reference.Decoder(reference.read_config(told))
            theirs = getattr(transformers, f"{CLASSES[row['model_type']]}ForCausalLM")(theirs_config)
        found["models"].append({"name": name, "parameters": counted(ours), "transformers": counted(theirs)})
    found["largest_difference"] = max(row["difference"]["most"] for row in found["families"].values())
    found["n_models"] = len(found["models"])
    return found


def verdict(found: Results) -> Verdict:
    families = found["families"].values()
    logits = all(row["difference"]["most"] < 1e-4 and row["logits"]["low"] > 0.1 for row in families)
    tokens = all(row["same_tokens"]["mean"] == 1 for row in families)
    counts = all(row["parameters"] == row["transformers"] for row in found["models"])
    if logits and tokens and counts:
        return "strong"
    return "weak" if all(row["difference"]["most"] < 1e-2 for row in families) else "null"


EXPERIMENT = Experiment(
    name="c11_parity",
    claim=(
        "One decoder is all four families. With every parameter random, padded batches and windows shorter than the "
        "text, no logit differs from that of transformers by more than 1e-4 in any configuration and seed, and the "
        "tokens that it writes with its cache are the same. Built from a config.json, each published model has the "
        "same number of parameters to the last one."
    ),
    run=run,
    verdict=verdict,
    config={"families": list(SMALL), "models": len(PUBLISHED), "n_new": 8},
    reduced={"families": ["qwen3"], "models": 3},
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(EXPERIMENT)
