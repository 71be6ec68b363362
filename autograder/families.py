"""The open models of chapters 11, 12 and 16 as one function of a config.json and a state dict: the oracle of their
hidden tests.

    state = random_state(config, seed=1)          # under the names of transformers
    logits(config, state, ids)                    # what that model says
    course_state(config, state)                   # the same tensors under the names of this course, unfused

tests/test_families.py proves every family equal to transformers, whose import would cost each grading seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Config = Mapping[str, Any]
State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

# -- small models of each family, written as their config.json is published -------------------------------------------

_SMALL = {"vocab_size": 37, "num_hidden_layers": 3, "max_position_embeddings": 64, "hidden_act": "silu"}
_LLAMA = {**_SMALL, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
_DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 8,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
}


def _heads(d_model: int, heads: int, kv_heads: int, d_hidden: int, d_head: int | None = None) -> dict[str, int]:
    sizes = {"hidden_size": d_model, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return sizes | {"intermediate_size": d_hidden} | ({"head_dim": d_head} if d_head else {})


_GPT_OSS = {
    **_SMALL,
    "model_type": "gpt_oss",
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "rope_theta": 150000.0,
    "rope_scaling": _YARN,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
}
_DEEPSEEK = {
    **_LLAMA,
    "model_type": "deepseek_v3",
    "kv_lora_rank": 10,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "moe_intermediate_size": 9,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "rope_theta": 10000.0,
}
_LLAMA4 = {
    **_LLAMA,
    "model_type": "llama4_text",
    "num_hidden_layers": 4,
    "intermediate_size_mlp": 20,
    "num_experts_per_tok": 1,
    "num_local_experts": 4,
    "rope_theta": 500000.0,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 4,
    "attn_scale": 0.1,
    "attention_chunk_size": 5,
    "no_rope_layers": [1, 1, 1, 0],
    "interleave_moe_layer_step": 1,
}

TINY: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": (
        {"model_type": "llama", **_LLAMA, **_heads(24, 4, 4, 20)},
        {"model_type": "llama", **_LLAMA, **_heads(24, 6, 2, 33, 10), "rope_theta": 500000.0},
        {
            "model_type": "llama",
            **_LLAMA,
            **_heads(30, 3, 1, 18),
            "tie_word_embeddings": True,
            "rope_theta": 500000.0,
            "rope_scaling": _LLAMA3_SCALING,
        },
    ),
    "mistral": (
        {"model_type": "mistral", **_LLAMA, **_heads(24, 4, 2, 20), "sliding_window": 4},
        {"model_type": "mistral", **_LLAMA, **_heads(20, 5, 5, 14, 6), "sliding_window": None, "rope_theta": 1e6},
    ),
    "qwen2": (
        {"model_type": "qwen2", **_LLAMA, **_heads(24, 4, 2, 20), "rope_theta": 1e6, "use_sliding_window": False},
        {
            "model_type": "qwen2",
            **_LLAMA,
            **_heads(30, 5, 1, 17),
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
        },
    ),
    "qwen3": (
        {"model_type": "qwen3", **_LLAMA, **_heads(24, 4, 2, 20, 10), "rope_theta": 1e6, "attention_bias": False},
        {"model_type": "qwen3", **_LLAMA, **_heads(20, 6, 3, 14, 4), "tie_word_embeddings": True},
    ),
    "gpt2": (
        {
            "model_type": "gpt2",
            "vocab_size": 37,
            "n_positions": 64,
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 4,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
        },
        {
            "model_type": "gpt2",
            "vocab_size": 29,
            "n_positions": 40,
            "n_embd": 21,
            "n_layer": 2,
            "n_head": 3,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "gptj": (
        {
            "model_type": "gptj",
            "vocab_size": 37,
            "n_positions": 64,
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 3,
            "rotary_dim": 4,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
        },
        {
            "model_type": "gptj",
            "vocab_size": 29,
            "n_positions": 40,
            "n_embd": 35,
            "n_layer": 2,
            "n_head": 5,
            "rotary_dim": 6,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": False,
        },
    ),
    "gpt_neox": (
        {
            "model_type": "gpt_neox",
            **_SMALL,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 40,
            "hidden_act": "gelu",
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": True,
            "tie_word_embeddings": False,
        },
        {
            "model_type": "gpt_neox",
            **_SMALL,
            "hidden_size": 36,
            "num_attention_heads": 3,
            "intermediate_size": 25,
            "hidden_act": "gelu",
            "rotary_pct": 0.5,
            "rotary_emb_base": 10000,
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": False,
            "tie_word_embeddings": False,
        },
    ),
    "bloom": (
        {
            "model_type": "bloom",
            "vocab_size": 37,
            "hidden_size": 24,
            "n_layer": 3,
            "n_head": 4,
            "layer_norm_epsilon": 1e-5,
        },
        {
            "model_type": "bloom",
            "vocab_size": 29,
            "hidden_size": 35,
            "n_layer": 2,
            "n_head": 5,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    "olmo": (
        {"model_type": "olmo", **_SMALL, **_heads(24, 4, 4, 20), "clip_qkv": None, "tie_word_embeddings": False},
        {"model_type": "olmo", **_SMALL, **_heads(30, 5, 1, 17), "clip_qkv": 1.5, "tie_word_embeddings": True},
    ),
    "olmo2": (
        {"model_type": "olmo2", **_LLAMA, **_heads(24, 4, 4, 20), "rope_theta": 500000.0},
        {"model_type": "olmo2", **_LLAMA, **_heads(30, 5, 1, 17)},
    ),
    "gpt_oss_dense": (
        {**_GPT_OSS, **_heads(24, 4, 2, 20, 10), "sliding_window": 4, "num_local_experts": 1, "num_experts_per_tok": 1},
        {**_GPT_OSS, **_heads(20, 6, 1, 15, 8), "sliding_window": 3, "num_local_experts": 1, "num_experts_per_tok": 1},
    ),
    "mixtral": (
        {
            "model_type": "mixtral",
            **_LLAMA,
            **_heads(24, 4, 2, 12),
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "rope_theta": 1e6,
        },
        {
            "model_type": "mixtral",
            **_LLAMA,
            **_heads(20, 5, 1, 9, 6),
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 4,
            "rope_theta": 1e5,
        },
    ),
    "qwen3_moe": (
        {
            "model_type": "qwen3_moe",
            **_LLAMA,
            **_heads(24, 4, 2, 20, 10),
            "moe_intermediate_size": 11,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_theta": 1e6,
        },
        {
            "model_type": "qwen3_moe",
            **_LLAMA,
            **_heads(20, 6, 3, 14, 4),
            "moe_intermediate_size": 8,
            "num_experts": 5,
            "num_experts_per_tok": 4,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
        },
    ),
    "deepseek_v3": (
        {**_DEEPSEEK, **_heads(24, 4, 4, 20)},
        {
            **_DEEPSEEK,
            **_heads(20, 3, 3, 14),
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "rope_scaling": _DEEPSEEK_YARN,
        },
    ),
    "gpt_oss": (
        {**_GPT_OSS, **_heads(24, 4, 2, 10, 10), "sliding_window": 4, "num_local_experts": 5, "num_experts_per_tok": 2},
        {**_GPT_OSS, **_heads(20, 6, 1, 7, 8), "sliding_window": 3, "num_local_experts": 6, "num_experts_per_tok": 4},
    ),
    "llama4_text": (
        {**_LLAMA4, **_heads(24, 4, 2, 10, 6)},
        {
            **_LLAMA4,
            **_heads(20, 5, 1, 9, 8),
            "use_qk_norm": False,
            "interleave_moe_layer_step": 2,
            "rope_scaling": _LLAMA3_SCALING,
        },
    ),
}


# -- what a config.json says, in one vocabulary -----------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A decoder: one field for each thing in which the families differ. The defaults are LLaMA's."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_hidden: int  # of a dense feed-forward
    norm: str = "rms"  # or "layer", or "plain": LayerNorm without parameters
    eps: float = 1e-6
    position: str = "rope"  # or "learned", "alibi"
    n_positions: int = 0  # rows of the learned table
    frequencies: tuple[float, ...] = ()  # radians a position, one for each pair
    rope_scale: float = 1.0  # YaRN multiplies cosines and sines
    interleaved: bool = False
    without_rope: tuple[int, ...] = ()  # these layers
    windows: tuple[int | None, ...] = ()  # of each layer; a window includes the token itself
    chunks: tuple[int | None, ...] = ()  # Llama 4: attention within chunks
    temperature: tuple[float, float] | None = None  # Llama 4, in layers without RoPE: (attn_scale, floor_scale)
    qk_norm: str = ""  # "head", "whole" (before the split into heads), "l2" (after RoPE, without gain)
    clip_qkv: float | None = None
    biases: frozenset[str] = frozenset()  # of "qkv", "o", "mlp", "head"
    sinks: bool = False
    residual: str = "pre"  # "parallel", "parallel, one norm", "norm after" (OLMo 2: on each branch's result)
    activation: str = "silu"  # "gelu", "gelu_tanh", "clamped" (gpt-oss)
    gated: bool = True
    tokens_norm: bool = False
    tied: bool = False
    scale: float | None = None  # of the scores; 1/√d_head where None
    latent: Latent | None = None
    experts: Experts | None = None


@dataclass(frozen=True)
class Latent:
    """DeepSeek's attention."""

    q_rank: int | None
    kv_rank: int
    d_nope: int
    d_rope: int
    d_value: int


@dataclass(frozen=True)
class Experts:
    """The Mixture of Experts of `layers`; the others are dense."""

    layers: tuple[int, ...]
    n_experts: int
    top_k: int
    d_hidden: int
    routing: str  # "softmax", "softmax of the chosen", "sigmoid of the chosen, on the input", "groups"
    renormalise: bool = True
    groups: int = 1
    groups_kept: int = 1
    scale: float = 1.0
    d_shared: int = 0


def form(config: Config) -> Form:
    """Raises ValueError for a family that is none of TINY's."""
    kind = config["model_type"]
    if kind in ("gpt2", "gptj", "bloom"):
        return _gpt_form(config)
    if kind == "gpt_neox":
        return _neox_form(config)
    known = ("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3")
    if kind not in (*known, "llama4_text"):
        raise ValueError(f"{kind!r} is none of the families that are known here")
    n_layers, n_heads, d_model = (config[k] for k in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    d_head = config.get("head_dim") or d_model // n_heads
    layers = range(n_layers)
    window = config.get("sliding_window")
    windows: list[int | None] = [None] * n_layers
    if kind in ("mistral", "mixtral"):
        windows = [window] * n_layers
    elif kind in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        windows = [window if i >= config["max_window_layers"] else None for i in layers]
    elif kind == "gpt_oss":
        windows = [window if i % 2 == 0 else None for i in layers]
    more: dict[str, Any] = {}
    scaling = config.get("rope_scaling") or {}
    d_rotary = d_head
    if kind == "deepseek_v3":
        latent = Latent(
            config["q_lora_rank"],
            config["kv_lora_rank"],
            config["qk_nope_head_dim"],
            config["qk_rope_head_dim"],
            config["v_head_dim"],
        )
        d_rotary = latent.d_rope
        scale = (latent.d_nope + latent.d_rope) ** -0.5
        if scaling.get("mscale_all_dim"):
            scale *= _mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
        more |= {"latent": latent, "interleaved": True, "scale": scale}
    if kind == "llama4_text":
        nope = tuple(i for i in layers if not config["no_rope_layers"][i])
        more |= {
            "interleaved": True,
            "without_rope": nope,
            "chunks": tuple(None if i in nope else config["attention_chunk_size"] for i in layers),
            "temperature": (config["attn_scale"], config["floor_scale"]) if config["attn_temperature_tuning"] else None,
        }
    if kind == "gpt_oss":
        more |= {"sinks": True, "activation": "clamped", "biases": frozenset(("qkv", "o", "mlp"))}
    if kind == "qwen2":
        more |= {"biases": frozenset(("qkv",))}
    frequencies, rope_scale = _frequencies(d_rotary, config.get("rope_theta", 10_000.0), scaling)
    return Form(
        vocabulary=config["vocab_size"],
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        d_head=d_head,
        d_hidden=config["intermediate_size_mlp" if kind == "llama4_text" else "intermediate_size"],
        norm="plain" if kind == "olmo" else "rms",
        eps=1e-5 if kind == "olmo" else config["rms_norm_eps"],
        frequencies=frequencies,
        rope_scale=rope_scale,
        windows=tuple(windows),
        qk_norm={"qwen3": "head", "qwen3_moe": "head", "olmo2": "whole"}.get(kind)
        or ("l2" if config.get("use_qk_norm") else ""),
        clip_qkv=config.get("clip_qkv"),
        residual="norm after" if kind == "olmo2" else "pre",
        tied=config["tie_word_embeddings"],
        experts=_experts(config),
        **more,
    )


def _experts(config: Config) -> Experts | None:
    kind, layers = config["model_type"], range(config["num_hidden_layers"])
    top_k = config.get("num_experts_per_tok", 0)
    if kind == "mixtral":
        return Experts(tuple(layers), config["num_local_experts"], top_k, config["intermediate_size"], "softmax")
    if kind == "qwen3_moe":
        sparse = tuple(
            i
            for i in layers
            if i not in config["mlp_only_layers"] and (i + 1) % config.get("decoder_sparse_step", 1) == 0
        )
        hidden, renormalise = config["moe_intermediate_size"], config["norm_topk_prob"]
        return Experts(sparse, config["num_experts"], top_k, hidden, "softmax", renormalise)
    if kind == "gpt_oss" and config["num_local_experts"] > 1:
        hidden = config["intermediate_size"]
        return Experts(tuple(layers), config["num_local_experts"], top_k, hidden, "softmax of the chosen")
    if kind == "llama4_text":
        step, hidden = config["interleave_moe_layer_step"], config["intermediate_size"]
        sparse = tuple(range(step - 1, len(layers), step))
        routing = "sigmoid of the chosen, on the input"
        return Experts(sparse, config["num_local_experts"], top_k, hidden, routing, d_shared=hidden)
    if kind == "deepseek_v3":
        hidden = config["moe_intermediate_size"]
        return Experts(
            tuple(layers)[config["first_k_dense_replace"] :],
            config["n_routed_experts"],
            top_k,
            hidden,
            "groups",
            config["norm_topk_prob"],
            config["n_group"],
            config["topk_group"],
            config["routed_scaling_factor"],
            config["n_shared_experts"] * hidden,
        )
    return None


def _gpt_form(config: Config) -> Form:
    kind = config["model_type"]
    d_model = config["n_embd" if kind != "bloom" else "hidden_size"]
    n_layers, n_heads = config["n_layer"], config["n_head"]
    own: dict[str, dict[str, Any]] = {
        "gpt2": {
            "position": "learned",
            "n_positions": config.get("n_positions", 0),
            "biases": frozenset(("qkv", "o", "mlp")),
            "tied": True,
        },
        "gptj": {
            "frequencies": _frequencies(config.get("rotary_dim", 0), 10_000.0, {})[0],
            "interleaved": True,
            "residual": "parallel, one norm",
            "biases": frozenset(("mlp", "head")),
            "tied": config.get("tie_word_embeddings", False),
        },
        "bloom": {"position": "alibi", "tokens_norm": True, "biases": frozenset(("qkv", "o", "mlp")), "tied": True},
    }
    return Form(
        vocabulary=config["vocab_size"],
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_model // n_heads,
        d_hidden=config.get("n_inner") or 4 * d_model,
        norm="layer",
        eps=config["layer_norm_epsilon"],
        windows=(None,) * n_layers,
        activation="gelu_tanh",
        gated=False,
        **own[kind],
    )


def _neox_form(config: Config) -> Form:
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    d_head = d_model // n_heads
    return Form(
        vocabulary=config["vocab_size"],
        d_model=d_model,
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_hidden=config["intermediate_size"],
        norm="layer",
        eps=config["layer_norm_eps"],
        frequencies=_frequencies(int(d_head * config["rotary_pct"]), config["rotary_emb_base"], {})[0],
        windows=(None,) * config["num_hidden_layers"],
        biases=frozenset(("qkv", "o", "mlp")),
        residual="parallel" if config["use_parallel_residual"] else "pre",
        activation="gelu",
        gated=False,
        tied=config["tie_word_embeddings"],
    )


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _frequencies(d_rotary: int, theta: float, scaling: Config) -> tuple[tuple[float, ...], float]:
    """The angle a position of each pair, and the factor of cosines and sines."""
    plain = [theta ** (-2 * i / d_rotary) for i in range(d_rotary // 2)]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return tuple(plain), 1.0
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]

        def slowed(f: float) -> float:
            turns = old * f / (2 * math.pi)  # within the old context
            share = min(1.0, max(0.0, (turns - low) / (high - low)))  # 1: left as it was, 0: divided by the factor
            return share * f + (1 - share) * f / factor

        return tuple(slowed(f) for f in plain), 1.0
    if kind != "yarn":
        raise ValueError(f"{kind!r} is no scaling of RoPE that is known here")

    def pair_of(turns: float) -> float:
        return d_rotary * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling["beta_fast"]), pair_of(scaling["beta_slow"])
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, d_rotary - 1)
    last += 0.001 if first == last else 0

    def blended(i: int, f: float) -> float:
        share = 1 - min(1.0, max(0.0, (i - first) / (last - first)))
        return share * f + (1 - share) * f / factor

    scale = _mscale(factor)
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        scale = _mscale(factor, scaling["mscale"]) / _mscale(factor, scaling["mscale_all_dim"])
    return tuple(blended(i, f) for i, f in enumerate(plain)), scale


# -- names and shapes -------------------------------------------------------------------------------------------------

# (a tensor of transformers, its shape, those of the course and how each is cut from it)
_Cut = Callable[[Tensor], Tensor]
_Entry = tuple[str, tuple[int, ...], dict[str, _Cut]]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _turned(cut: _Cut) -> _Cut:
    return lambda tensor: cut(tensor).T


def shapes(config: Config) -> Shapes:
    """The state dict of transformers' model by name. A tied head is left out: it is the embedding again."""
    return {name: shape for name, shape, _ in _entries(config)}


def random_state(config: Config, seed: int, std: float = 0.4) -> State:
    """Every parameter and buffer of transformers' model drawn at random, gains, biases and sinks too."""
    generator = torch.Generator().manual_seed(seed)
    return {name: std * torch.randn(shape, generator=generator) for name, shape in shapes(config).items()}


def course_state(config: Config, state: Mapping[str, Tensor]) -> State:
    """The tensors under the names of this course: queries, keys and values apart, each as nn.Linear stores it."""
    return {
        ours: cut(state[name]).clone().contiguous() for name, _, cuts in _entries(config) for ours, cut in cuts.items()
    }


def _entries(config: Config) -> Iterator[_Entry]:
    f, kind = form(config), config["model_type"]
    names = _NAMES.get(kind, _NAMES["llama"])
    d = f.d_model

    def norm(theirs: str, ours: str, size: int = d) -> Iterator[_Entry]:
        for part in {"rms": ("weight",), "layer": ("weight", "bias"), "plain": ()}[f.norm]:
            yield f"{theirs}.{part}", (size,), {f"{ours}.{part}": _same}

    def linear(theirs: str, ours: str, n_out: int, n_in: int, bias: bool) -> Iterator[_Entry]:
        turned = kind == "gpt2"  # Conv1D stores [in, out]
        shape = (n_in, n_out) if turned else (n_out, n_in)
        yield f"{theirs}.weight", shape, {f"{ours}.weight": (lambda t: t.T) if turned else _same}
        if bias:
            yield f"{theirs}.bias", (n_out,), {f"{ours}.bias": _same}

    yield names["tokens"] + ".weight", (f.vocabulary, d), {"tokens.weight": _same}
    if f.position == "learned":
        yield "transformer.wpe.weight", (f.n_positions, d), {"positions.weight": _same}
    if f.tokens_norm:
        yield from norm("transformer.word_embeddings_layernorm", "tokens_norm")
    for i in range(f.n_layers):
        theirs, ours = names["layer"].format(i), f"blocks.{i}"
        yield from norm(f"{theirs}.{names['norm1']}", f"{ours}.norm1")
        if f.residual != "parallel, one norm":
            yield from norm(f"{theirs}.{names['norm2']}", f"{ours}.norm2")
        yield from _attention_entries(f, kind, f"{theirs}.{names['attention']}", f"{ours}.attention", linear)
        yield from _mlp_entries(f, kind, i, f"{theirs}.{names['mlp']}", f"{ours}.mlp", linear)
    yield from norm(names["norm"], "norm")
    if not f.tied:
        yield names["head"] + ".weight", (f.vocabulary, d), {"head.weight": _same}
    if "head" in f.biases:
        yield names["head"] + ".bias", (f.vocabulary,), {"head.bias": _same}


_NAMES: dict[str, dict[str, str]] = {
    "llama": {
        "tokens": "model.embed_tokens",
        "layer": "model.layers.{}",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attention": "self_attn",
        "mlp": "mlp",
        "norm": "model.norm",
        "head": "lm_head",
    },
    "gpt2": {
        "tokens": "transformer.wte",
        "layer": "transformer.h.{}",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attention": "attn",
        "mlp": "mlp",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    "gpt_neox": {
        "tokens": "gpt_neox.embed_in",
        "layer": "gpt_neox.layers.{}",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attention": "attention",
        "mlp": "mlp",
        "norm": "gpt_neox.final_layer_norm",
        "head": "lm_head",
    },
    "bloom": {
        "tokens": "transformer.word_embeddings",
        "layer": "transformer.h.{}",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attention": "self_attention",
        "mlp": "mlp",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
}
_NAMES["gptj"] = _NAMES["gpt2"]
_NAMES["llama4_text"] = _NAMES["llama"] | {"mlp": "feed_forward"}
_NAMES["olmo2"] = _NAMES["llama"] | {"norm1": "post_attention_layernorm", "norm2": "post_feedforward_layernorm"}

_Linear = Callable[[str, str, int, int, bool], Iterator[_Entry]]


def _attention_entries(f: Form, kind: str, theirs: str, ours: str, linear: _Linear) -> Iterator[_Entry]:
    d, wide, narrow = f.d_model, f.n_heads * f.d_head, f.n_kv_heads * f.d_head
    if f.latent is not None:
        m = f.latent
        q_width = f.n_heads * (m.d_nope + m.d_rope)
        if m.q_rank is None:
            yield from linear(f"{theirs}.q_proj", f"{ours}.q_proj", q_width, d, False)
        else:
            yield from linear(f"{theirs}.q_a_proj", f"{ours}.q_down", m.q_rank, d, False)
            yield f"{theirs}.q_a_layernorm.weight", (m.q_rank,), {f"{ours}.q_norm.weight": _same}
            yield from linear(f"{theirs}.q_b_proj", f"{ours}.q_up", q_width, m.q_rank, False)
        yield from linear(f"{theirs}.kv_a_proj_with_mqa", f"{ours}.kv_down", m.kv_rank + m.d_rope, d, False)
        yield f"{theirs}.kv_a_layernorm.weight", (m.kv_rank,), {f"{ours}.kv_norm.weight": _same}
        yield from linear(f"{theirs}.kv_b_proj", f"{ours}.kv_up", f.n_heads * (m.d_nope + m.d_value), m.kv_rank, False)
        yield from linear(f"{theirs}.o_proj", f"{ours}.o_proj", d, f.n_heads * m.d_value, False)
        return
    if kind in ("gpt2", "gpt_neox", "bloom"):  # queries, keys and values in one matrix

        def part(which: int, turned: bool) -> _Cut:
            if turned:  # three blocks side by side, stored [in, out]
                return lambda t: t.chunk(3, -1)[which].T
            if kind == "gpt2":
                return lambda t: t.chunk(3, -1)[which]
            return lambda t: rearrange(t, "(h three d) ... -> three (h d) ...", h=f.n_heads, three=3)[which]

        fused = f"{theirs}.{'c_attn' if kind == 'gpt2' else 'query_key_value'}"
        turned = kind == "gpt2"
        cuts = {f"{ours}.{letter}_proj.weight": part(at, turned) for at, letter in enumerate("qkv")}
        yield f"{fused}.weight", (d, 3 * d) if turned else (3 * d, d), cuts
        yield (
            f"{fused}.bias",
            (3 * d,),
            {f"{ours}.{letter}_proj.bias": part(at, False) for at, letter in enumerate("qkv")},
        )
    else:
        for letter, width in (("q", wide), ("k", narrow), ("v", narrow)):
            yield from linear(f"{theirs}.{letter}_proj", f"{ours}.{letter}_proj", width, d, "qkv" in f.biases)
    o_proj = {"gpt2": "c_proj", "gptj": "out_proj", "gpt_neox": "dense", "bloom": "dense"}.get(kind, "o_proj")
    yield from linear(f"{theirs}.{o_proj}", f"{ours}.o_proj", d, wide, "o" in f.biases)
    if f.qk_norm in ("head", "whole"):
        for letter, width in (("q", wide), ("k", narrow)):
            size = f.d_head if f.qk_norm == "head" else width
            yield f"{theirs}.{letter}_norm.weight", (size,), {f"{ours}.{letter}_norm.weight": _same}
    if f.sinks:
        yield f"{theirs}.sinks", (f.n_heads,), {f"{ours}.sinks": _same}


def _mlp_entries(f: Form, kind: str, layer: int, theirs: str, ours: str, linear: _Linear) -> Iterator[_Entry]:
    d, bias = f.d_model, "mlp" in f.biases
    if kind == "gpt_oss":
        yield from _gpt_oss_entries(f, theirs, ours)
        return
    if f.experts is not None and layer in f.experts.layers:
        e, n, hidden = f.experts, f.experts.n_experts, f.experts.d_hidden
        turned = kind == "llama4_text"  # stored [expert, in, out]
        cut: _Cut = (lambda t: t.transpose(1, 2)) if turned else _same
        router = "router" if turned else "gate"
        yield f"{theirs}.{router}.weight", (n, d), {f"{ours}.router.weight": _same}
        if e.routing == "groups":
            yield f"{theirs}.gate.e_score_correction_bias", (n,), {f"{ours}.correction": _same}
        up, down = ((n, d, 2 * hidden), (n, hidden, d)) if turned else ((n, 2 * hidden, d), (n, d, hidden))
        yield f"{theirs}.experts.gate_up_proj", up, {f"{ours}.gate_up": cut}
        yield f"{theirs}.experts.down_proj", down, {f"{ours}.down": cut}
        if e.d_shared:
            shared = f"{theirs}.{'shared_expert' if turned else 'shared_experts'}"
            for name, n_out, n_in in (("gate", e.d_shared, d), ("up", e.d_shared, d), ("down", d, e.d_shared)):
                yield from linear(f"{shared}.{name}_proj", f"{ours}.shared.{name}_proj", n_out, n_in, False)
        return
    plain = {
        "gpt2": ("c_fc", "c_proj"),
        "gptj": ("fc_in", "fc_out"),
        "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
        "bloom": ("dense_h_to_4h", "dense_4h_to_h"),
    }
    if f.gated:
        for name in ("gate_proj", "up_proj"):
            yield from linear(f"{theirs}.{name}", f"{ours}.{name}", f.d_hidden, d, bias)
    up_name, down_name = plain.get(kind, ("up_proj", "down_proj"))
    if not f.gated:
        yield from linear(f"{theirs}.{up_name}", f"{ours}.up_proj", f.d_hidden, d, bias)
    yield from linear(f"{theirs}.{down_name}", f"{ours}.down_proj", d, f.d_hidden, bias)


def _gpt_oss_entries(f: Form, theirs: str, ours: str) -> Iterator[_Entry]:
    """gpt-oss stores experts [expert, in, out], the columns of gate and up in turn. One expert is a dense layer."""
    d, e = f.d_model, f.experts
    n, hidden = (e.n_experts, e.d_hidden) if e else (1, f.d_hidden)
    first: dict[str, _Cut] = {f"{ours}.router.weight": _same} if e else {}
    yield f"{theirs}.router.weight", (n, d), first
    yield f"{theirs}.router.bias", (n,), {f"{ours}.router.bias": _same} if e else {}
    up, up_bias = f"{theirs}.experts.gate_up_proj", f"{theirs}.experts.gate_up_proj_bias"
    down, down_bias = f"{theirs}.experts.down_proj", f"{theirs}.experts.down_proj_bias"
    if e:

        def rows(t: Tensor) -> Tensor:  # gate's first, then up's
            return torch.cat((t[..., ::2], t[..., 1::2]), -1)

        yield up, (n, d, 2 * hidden), {f"{ours}.gate_up": lambda t: rows(t).transpose(1, 2)}
        yield up_bias, (n, 2 * hidden), {f"{ours}.gate_up_bias": rows}
        yield down, (n, hidden, d), {f"{ours}.down": lambda t: t.transpose(1, 2)}
        yield down_bias, (n, d), {f"{ours}.down_bias": _same}
        return
    cuts: dict[str, _Cut] = {
        f"{ours}.gate_proj": lambda t: t[0, ..., ::2],
        f"{ours}.up_proj": lambda t: t[0, ..., 1::2],
    }
    yield up, (1, d, 2 * hidden), {f"{name}.weight": _turned(cut) for name, cut in cuts.items()}
    yield up_bias, (1, 2 * hidden), {f"{name}.bias": cut for name, cut in cuts.items()}
    yield down, (1, hidden, d), {f"{ours}.down_proj.weight": lambda t: t[0].T}
    yield down_bias, (1, d), {f"{ours}.down_proj.bias": lambda t: t[0]}


# -- the model --------------------------------------------------------------------------------------------------------


def logits(
    config: Config,
    state: Mapping[str, Tensor],
    ids: Tensor,
    mask: Tensor | None = None,
    trace: MutableMapping[str, Tensor] | None = None,
) -> Tensor:
    """Logits [batch, n, vocabulary] of transformers' model with this state dict.

    ids: [batch, n]. mask: bool [batch, n], False for padding on the left; positions count from the first real token.
    trace: filled with the output of each sub-layer under its name in this course ("tokens", "blocks.0.norm1", …, ""),
    in the order of computing. Raises ValueError for Llama 4 with a mask: its chunks are counted otherwise then.
    """
    f = form(config)
    if mask is not None and f.chunks:
        raise ValueError("left padding of Llama 4 is not known here")
    run = _Run(f, course_state(config, state), {} if trace is None else trace)
    return run.logits(ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)


class _Run:
    def __init__(self, f: Form, state: State, trace: MutableMapping[str, Tensor]) -> None:
        self.form, self.state, self.trace = f, state, trace

    def noted(self, name: str, value: Tensor) -> Tensor:
        self.trace[name] = value
        return value

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        f, gain = self.form, self.state.get(f"{name}.weight")
        if f.norm == "rms":
            return self.noted(name, _rms(x, gain, f.eps))
        return self.noted(name, F.layer_norm(x, x.shape[-1:], gain, self.state.get(f"{name}.bias"), f.eps))

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        f = self.form
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        x = self.noted("tokens", F.embedding(ids, self.state["tokens.weight"]))
        if f.position == "learned":
            x = x + self.noted("positions", F.embedding(positions, self.state["positions.weight"]))
        if f.tokens_norm:
            x = self.norm("tokens_norm", x)
        for i in range(f.n_layers):
            x = self.noted(f"blocks.{i}", self.block(i, x, mask, positions))
        x = self.norm("norm", x)
        head = self.state["tokens.weight"] if f.tied else self.state["head.weight"]
        return self.noted("", F.linear(x, head, self.state.get("head.bias")))

    def block(self, i: int, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        name, residual = f"blocks.{i}", self.form.residual
        if residual == "norm after":
            x = x + self.norm(f"{name}.norm1", self.attention(i, x, mask, positions))
            return x + self.norm(f"{name}.norm2", self.mlp(i, x))
        y = self.norm(f"{name}.norm1", x)
        attended = self.attention(i, y, mask, positions)
        if residual == "parallel, one norm":
            return x + attended + self.mlp(i, y)
        if residual == "parallel":
            return x + attended + self.mlp(i, self.norm(f"{name}.norm2", x))
        x = x + attended
        return x + self.mlp(i, self.norm(f"{name}.norm2", x))

    def attention(self, i: int, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        f, name, n = self.form, f"blocks.{i}.attention", x.shape[1]
        q, k, v = self.latent(name, x, positions) if f.latent else self.heads(i, name, x, positions)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = q @ k.mT * (f.scale or f.d_head**-0.5)
        if f.position == "alibi":
            far = positions[:, None, None, :] - positions[:, None, :, None]
            scores = scores + _slopes(f.n_heads)[:, None, None] * far
        row, column = torch.arange(n)[:, None], torch.arange(n)
        may = (column <= row) & mask[:, None, None, :]
        if (window := f.windows[i]) is not None:
            may = may & (row - column < window)
        if f.chunks and (chunk := f.chunks[i]) is not None:
            may = may & (row // chunk == column // chunk)
        scores = scores.masked_fill(~may, -math.inf)
        if f.sinks:
            sink = self.state[f"{name}.sinks"].view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1).nan_to_num(0)  # a row of padding attends to nothing
        heads = rearrange(weights @ v, "b h n d -> b n (h d)")
        return self.noted(name, self.linear(f"{name}.o_proj", heads))

    def heads(self, i: int, name: str, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = self.form
        q, k, v = (self.linear(f"{name}.{letter}_proj", x) for letter in "qkv")
        if f.clip_qkv is not None:
            q, k, v = (t.clamp(-f.clip_qkv, f.clip_qkv) for t in (q, k, v))
        gains = [self.state.get(f"{name}.{letter}_norm.weight") for letter in "qk"]
        if f.qk_norm == "whole":
            q, k = (_rms(t, gain, f.eps) for t, gain in zip((q, k), gains, strict=True))
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", d=f.d_head) for t in (q, k, v))
        if f.qk_norm == "head":
            q, k = (_rms(t, gain, f.eps) for t, gain in zip((q, k), gains, strict=True))
        turns = f.position == "rope" and i not in f.without_rope
        if turns:
            q, k = (self.rope(t, positions) for t in (q, k))
        if turns and f.qk_norm == "l2":
            q, k = (_rms(t, None, f.eps) for t in (q, k))
        if f.temperature and not turns:
            scale, floor = f.temperature
            at = torch.arange(x.shape[1]).float()
            q = q * (torch.log1p(((at + 1) / floor).floor()) * scale + 1)[:, None]
        return q, k, v

    def latent(self, name: str, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = self.form
        assert f.latent is not None
        m = f.latent
        if m.q_rank is None:
            q = self.linear(f"{name}.q_proj", x)
        else:
            q = self.linear(f"{name}.q_up", self.gained(f"{name}.q_norm", self.linear(f"{name}.q_down", x)))
        q_nope, q_rope = rearrange(q, "b n (h d) -> b h n d", h=f.n_heads).split((m.d_nope, m.d_rope), -1)
        compressed, k_rope = self.linear(f"{name}.kv_down", x).split((m.kv_rank, m.d_rope), -1)
        kv = self.linear(f"{name}.kv_up", self.gained(f"{name}.kv_norm", compressed))
        k_nope, v = rearrange(kv, "b n (h d) -> b h n d", h=f.n_heads).split((m.d_nope, m.d_value), -1)
        shared = self.rope(k_rope[:, None], positions).expand(-1, f.n_heads, -1, -1)
        return torch.cat((q_nope, self.rope(q_rope, positions)), -1), torch.cat((k_nope, shared), -1), v

    def gained(self, name: str, x: Tensor) -> Tensor:
        return _rms(x, self.state[f"{name}.weight"], 1e-6)  # DeepSeek's own eps for latents

    def rope(self, x: Tensor, positions: Tensor) -> Tensor:
        f = self.form
        d = 2 * len(f.frequencies)
        angles = positions[:, None, :, None] * torch.tensor(f.frequencies)
        cos, sin = angles.cos() * f.rope_scale, angles.sin() * f.rope_scale
        turned, rest = x[..., :d], x[..., d:]
        if f.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((turned, rest), -1)

    def mlp(self, i: int, x: Tensor) -> Tensor:
        f, name = self.form, f"blocks.{i}.mlp"
        if f.experts is not None and i in f.experts.layers:
            return self.noted(name, self.moe(f.experts, name, x.flatten(0, 1)).view_as(x))
        return self.noted(name, self.dense(name, x))

    def dense(self, name: str, x: Tensor) -> Tensor:
        up = self.linear(f"{name}.up_proj", x)
        hidden = self.gate(self.linear(f"{name}.gate_proj", x), up) if self.form.gated else self.activate(up)
        return self.linear(f"{name}.down_proj", hidden)

    def activate(self, x: Tensor) -> Tensor:
        kind = self.form.activation
        return F.silu(x) if kind == "silu" else F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def gate(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.form.activation != "clamped":
            return self.activate(gate) * up
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)

    def moe(self, e: Experts, name: str, x: Tensor) -> Tensor:
        """x: [tokens, d_model]. Every expert works on every token: slow, and nothing to get wrong."""
        share = route(e, self.linear(f"{name}.router", x), self.state.get(f"{name}.correction"))
        on_input = e.routing == "sigmoid of the chosen, on the input"
        out = torch.zeros_like(x)
        for k in range(e.n_experts):
            weight = share[:, k, None]
            given = x * weight if on_input else x
            gate_up = F.linear(given, self.state[f"{name}.gate_up"][k], self._bias(f"{name}.gate_up_bias", k))
            hidden = self.gate(*gate_up.chunk(2, -1))
            answer = F.linear(hidden, self.state[f"{name}.down"][k], self._bias(f"{name}.down_bias", k))
            out = out + (answer if on_input else answer * weight)
        return out + self.dense(f"{name}.shared", x) if e.d_shared else out

    def _bias(self, name: str, expert: int) -> Tensor | None:
        return self.state[name][expert] if name in self.state else None


def route(e: Experts, scores: Tensor, correction: Tensor | None = None) -> Tensor:
    """The weight of every expert for every token, 0 for those that are not chosen: [tokens, n_experts].

    scores: the router's logits. correction: DeepSeek-V3's, for the choice alone.
    """
    if e.routing == "softmax":
        weights = scores.float().softmax(-1)
        chosen = weights.topk(e.top_k).indices
    elif e.routing == "softmax of the chosen":
        chosen = scores.topk(e.top_k).indices
        weights = torch.full_like(scores, -math.inf).scatter(1, chosen, scores.gather(1, chosen)).softmax(-1)
        return weights
    elif e.routing == "groups":
        weights = scores.float().sigmoid()
        choice = weights if correction is None else weights + correction
        grouped = choice.unflatten(-1, (e.groups, -1))
        kept = grouped.topk(2).values.sum(-1).topk(e.groups_kept).indices
        allowed = torch.zeros_like(grouped[..., 0]).scatter(1, kept, 1.0).bool()[..., None].expand_as(grouped)
        chosen = choice.masked_fill(~allowed.flatten(1), -math.inf).topk(e.top_k).indices
    else:
        weights = scores.float().sigmoid()
        chosen = scores.topk(e.top_k).indices
    weights = torch.zeros_like(weights).scatter(1, chosen, weights.gather(1, chosen))
    if e.renormalise and e.routing != "sigmoid of the chosen, on the input":
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * e.scale


def _rms(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain, eps)


def _slopes(n_heads: int) -> Tensor:
    """ALiBi's, for head counts that are no power of two as well."""
    below = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2 ** (-4 * (2 * i + 1) / below) for i in range(n_heads - below)]
    return torch.tensor(slopes)


def course_settings(config: Config) -> dict[str, Any]:
    """The fields of chapter 12's DecoderConfig that ask for this model. Raises ValueError where it has none for it."""
    f, scaling = form(config), config.get("rope_scaling") or {}
    residuals = {"pre": "sequential", "parallel": "parallel", "parallel, one norm": "shared"}
    known = f.residual in residuals and f.qk_norm in ("", "head") and scaling.get("rope_type") in (None, "yarn")
    if not known or f.experts or f.latent or f.chunks:
        raise ValueError(f"chapter 12's decoder is no {config['model_type']} with these settings")
    turns = ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
    return {
        "vocabulary": f.vocabulary,
        "d_model": f.d_model,
        "n_layers": f.n_layers,
        "n_heads": f.n_heads,
        "n_kv_heads": f.n_kv_heads,
        "d_head": f.d_head,
        "d_hidden": f.d_hidden,
        "norm_eps": f.eps,
        "rope_theta": float(config.get("rope_theta", config.get("rotary_emb_base", 10_000))),
        "qkv_bias": "qkv" in f.biases,
        "qk_norm": f.qk_norm == "head",
        "windows": f.windows if any(f.windows) else (),
        "tied": f.tied,
        "positions": f.position,
        "n_context": f.n_positions,
        "d_rotary": 2 * len(f.frequencies) if 0 < 2 * len(f.frequencies) < f.d_head else None,
        "interleaved": f.interleaved,
        "yarn": tuple(scaling[name] for name in turns) if scaling else None,
        "sinks": f.sinks,
        "clip_qkv": f.clip_qkv,
        "o_bias": "o" in f.biases,
        "norm": f.norm,
        "tokens_norm": f.tokens_norm,
        "residual": residuals[f.residual],
        "mlp": f.activation if f.activation != "silu" else "swiglu",
        "mlp_bias": "mlp" in f.biases,
        "head_bias": "head" in f.biases,
    }
