"""Every published config.json of the course in one place: those of chapters 11, 12 and 16, and GPT-3's.

from experiments.published_configs import CONFIGS

A model that several chapters count stands here once. GPT-3 was never released; its sizes are those of table 2.1 of its
paper, its vocabulary and its blocks those of GPT-2, which it says it uses (Brown et al. 2020, section 2.1). To add a
model, add it to the chapter that explains its family.
"""

from __future__ import annotations

from typing import Any

from experiments import c11_parity, c16_table, gpt_line
from ichimon.measure import published

Config = dict[str, Any]

MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")


def _collected() -> dict[str, Config]:
    found: dict[str, Config] = dict(gpt_line.PUBLISHED)
    for row in c11_parity.PUBLISHED:
        config = {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, **row}
        found.setdefault(config.pop("name"), config)
    moe = c16_table.EXPERIMENT.config
    for name, config in moe["models"].items():
        if config.get("model_type") in MIXTURES:
            found.setdefault(name, {**moe["common"], **config})
    sizes = {key: published(f"gpt3_{name}")["value"] for key, name in _GPT3.items()}
    found["GPT-3 175B"] = {**found["GPT-2 XL"], **sizes, "n_positions": 2048}
    order = {family: i for i, family in enumerate((*_LINE, *MIXTURES))}
    return dict(sorted(found.items(), key=lambda item: order[item[1]["model_type"]]))


_GPT3 = {"n_embd": "d_model", "n_layer": "layers", "n_head": "n_heads"}
_LINE = ("gpt2", "gptj", "gpt_neox", "bloom", "olmo", "llama", "mistral", "qwen2", "qwen3")

CONFIGS: dict[str, Config] = _collected()
