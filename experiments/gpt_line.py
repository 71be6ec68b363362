"""Published models by their config.json, small models of the same make, and both as chapter 12's decoder.

A row of the table on the page of chapter 12 is one entry of PUBLISHED. To add a model, add its config.json: what
autograder.families.course_settings can read, this can count and compare.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from autograder import families

Config = dict[str, Any]

_NEOX: Config = {
    "model_type": "gpt_neox",
    "vocab_size": 50_432,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10_000,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}
_LLAMA: Config = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_EIGHT = {"num_key_value_heads": 8, "intermediate_size": 14_336, "rms_norm_eps": 1e-5}
_GPT: Config = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}

PUBLISHED: dict[str, Config] = {
    "GPT-2 small": {
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        **_GPT,
    },
    "GPT-2 XL": {
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 1600,
        "n_layer": 48,
        "n_head": 25,
        **_GPT,
    },
    "GPT-J 6B": {
        "model_type": "gptj",
        "vocab_size": 50_400,
        "n_positions": 2048,
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
        **_GPT,
    },
    "GPT-NeoX 20B": {
        **_NEOX,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "hidden_act": "gelu_fast",
    },
    "Pythia 6.9B": {
        **_NEOX,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 16_384,
        "hidden_act": "gelu",
    },
    "BLOOM 176B": {
        "model_type": "bloom",
        "vocab_size": 250_880,
        "hidden_size": 14_336,
        "n_layer": 70,
        "n_head": 112,
        "layer_norm_epsilon": 1e-5,
    },
    "OLMo 7B": {**_LLAMA, "model_type": "olmo", "vocab_size": 50_304, "clip_qkv": None},
    "OLMo 7B 0424": {
        **_LLAMA,
        "model_type": "olmo",
        "vocab_size": 50_304,
        "clip_qkv": 8.0,
        "max_position_embeddings": 4096,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "vocab_size": 201_088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "rope_theta": 150_000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "tie_word_embeddings": False,
    },
    "LLaMA 7B": dict(_LLAMA),
    "OpenLLaMA 7B": dict(_LLAMA),
    "Llama 3 8B": {**_LLAMA, **_EIGHT, "vocab_size": 128_256, "rope_theta": 500_000.0, "max_position_embeddings": 8192},
    "Mistral 7B v0.1": {**_LLAMA, **_EIGHT, "model_type": "mistral", "sliding_window": 4096, "rope_theta": 10_000.0},
    "Qwen2.5 7B": {
        **_LLAMA,
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_theta": 1e6,
        "use_sliding_window": False,
    },
    "Qwen3 8B": {
        **_LLAMA,
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "attention_bias": False,
    },
}

SMALL = (  # layers, query heads, channels of a head, window: heads that are no power of two, d_model of its own
    (2, 4, 16, 4),
    (3, 6, 16, 3),
    (1, 5, 24, 2),
)


def small(config: Mapping[str, Any], layers: int, heads: int, d_head: int, window: int) -> Config:
    """The same make with small sizes: same norms, positions, activation and biases, the same share of channels that
    turn, keys shared where they were shared, gpt-oss with one expert and a stretch that its short text notices.
    """
    found, d_model = dict(config), heads * d_head
    shared = config.get("num_key_value_heads", heads) < config.get("num_attention_heads", heads)
    new = {
        "vocab_size": 61,
        "n_layer": layers,
        "num_hidden_layers": layers,
        "n_head": heads,
        "num_attention_heads": heads,
        "num_key_value_heads": (heads // 2 if heads % 2 == 0 else 1) if shared else heads,
        "n_embd": d_model,
        "hidden_size": d_model + 4 if "head_dim" in config else d_model,
        "head_dim": d_head,
        "intermediate_size": 2 * d_model + 3,
        "n_positions": 40,
        "max_position_embeddings": 40,
        "rotary_dim": d_head // 4,
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
    }
    found |= {name: value for name, value in new.items() if name in config}
    if config.get("sliding_window"):
        found["sliding_window"] = window
    if config.get("clip_qkv"):
        found["clip_qkv"] = 1.5
    if "rope_scaling" in config:
        found["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": 16, "factor": 8.0}
    return found


def theirs(config: Mapping[str, Any]) -> nn.Module:
    """The model of transformers with this config.json, in its plain implementation."""
    import transformers

    transformers.logging.set_verbosity_error()
    found = transformers.AutoConfig.for_model(**config)
    found.pad_token_id = None
    make = transformers.AutoModelForCausalLM.from_config
    return make(found, attn_implementation="eager", experts_implementation="eager").eval()


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of chapter 12's DecoderConfig; of gpt-oss, with one dense layer for its experts."""
    dense = {"num_local_experts": 1, "num_experts_per_tok": 1} if "num_local_experts" in config else {}
    found = families.course_settings({**config, **dense})
    if config.get("hidden_act") == "gelu_fast":  # what transformers calls so is the tanh form
        found["mlp"] = "gelu_tanh"
    return found


def ours(parts: ModuleType, config: Mapping[str, Any], state: Mapping[str, Tensor] | None = None, **wrong: Any) -> Any:
    """Chapter 12's decoder of this make, with this state of transformers' model; `wrong` overrides fields of it."""
    model = parts.Decoder(replace(parts.DecoderConfig(**settings(config)), **wrong))
    if state is not None:
        model.load_state_dict(families.course_state(config, state), strict=not wrong)
    return model.eval()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
