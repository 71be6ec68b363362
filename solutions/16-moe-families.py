# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   ichimon:
#     assignment: 16-moe-families
# ---

# %% [markdown]
# # 16 · The MoE families
#
# **One question: Mixtral, Qwen, DeepSeek, gpt-oss and Llama 4 all have "experts". How much of one model's code runs
# another's weights?**
#
# Nearly all of it. And what is left over, a handful of lines, decides whether the model speaks or babbles: which
# experts are chosen, what they weigh, and what stands between gate and up. None of these lines raises an error when it
# is another family's.
#
# You will write those lines for five families, put them into one decoder, and hold the whole model against the real
# ones. Then you count what the published models hold, exactly, and cure a sixth. The page of the book that goes with
# this notebook is `book/16-moe-families`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `route` | ●●○ | 20 | 5 |
# | `route_in_groups` | ●●● | 25 | 4 |
# | `unpack_experts` | ●●○ | 15 | 3 |
# | `MoELayer` | ●●● | 35 | 6 |
# | `count_parameters` | ●●● | 30 | 4 |
# | `Mended` | ●●○ | 20 | 3 |
#
# ## Conventions
#
# - **A family** is named as in a model's `config.json` under `model_type`: `mixtral`, `qwen3_moe`, `gpt_oss`,
#   `deepseek_v3`, `llama4_text`.
# - **A routing** is two tensors of shape `(tokens, top_k)`: `weights`, and `experts` (int64, counted from 0).
# - **A layer's experts** are kept as in chapter 13: `gate_up` of shape `(n_experts, 2 * d_hidden, d_model)`, where the
#   first `d_hidden` rows of each expert are its gate and the others its up, and `down` of shape
#   `(n_experts, d_model, d_hidden)`.
# - **What comes in goes out**: the result has the dtype of the input, and an input is never changed in place.
#
# The set-up cell is long, for it holds all that is *not* this chapter: norms, and the attention of each family. You
# need not read it. You will use three things of it:
#
# | | |
# |---|---|
# | `MoEConfig` | what a layer's mixture is like; you get one |
# | `SwiGLU(d_model, d_hidden)` | a dense feed-forward without biases; weights `gate_proj`, `up_proj`, `down_proj` |
# | `Decoder(config)` | the whole model of a `config.json`; it takes your `MoELayer` for the layers with experts |

# %% role="set-up"
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class MoEConfig:
    """The mixture of one layer. The defaults are Mixtral's."""

    family: str  # "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3" or "llama4_text"
    d_model: int
    d_hidden: int  # of one expert
    n_experts: int
    top_k: int
    renormalise: bool = True  # qwen3_moe and deepseek_v3: norm_topk_prob
    n_groups: int = 1  # deepseek_v3
    top_groups: int = 1  # deepseek_v3
    scale: float = 1.0  # deepseek_v3: routed_scaling_factor
    d_shared: int = 0  # of the shared expert; 0 where there is none
    alpha: float = 1.702  # gpt_oss
    limit: float = 7.0  # gpt_oss


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder. The defaults are LLaMA's."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_hidden: int  # of a dense feed-forward
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()  # one a layer; a window includes the token itself
    tied: bool = False
    experts: tuple[MoEConfig | None, ...] = ()  # one a layer; None where the layer is dense
    rope_scaling: Mapping[str, Any] | None = None  # YaRN's or Llama 3's
    interleaved: bool = False  # RoPE turns neighbouring channels
    rotated: tuple[bool, ...] = ()  # one a layer: whether it has RoPE at all
    sinks: bool = False  # gpt-oss
    chunk: int | None = None  # Llama 4: attention within chunks, in layers with RoPE
    l2_norm: bool = False  # Llama 4: queries and keys, after RoPE
    temperature: tuple[float, float] | None = None  # Llama 4: (scale, floor) of queries in layers without RoPE
    latent: tuple[int | None, int, int, int, int] | None = None  # DeepSeek: (q_rank, kv_rank, d_nope, d_rope, d_value)


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """What a config.json says."""
    family, n_layers, d_model = config["model_type"], config["num_hidden_layers"], config["hidden_size"]
    n_heads, d_hidden = config["num_attention_heads"], config["intermediate_size"]
    layers, top_k = range(n_layers), config["num_experts_per_tok"]
    sparse, more, wide = list(layers), {}, d_hidden
    window = config.get("sliding_window") if family in ("mixtral", "gpt_oss") else None
    windows = [None if family == "gpt_oss" and i % 2 else window for i in layers]
    if family == "mixtral":
        experts = MoEConfig(family, d_model, d_hidden, config["num_local_experts"], top_k)
    elif family == "gpt_oss":
        limit = config.get("swiglu_limit", 7.0)
        experts = MoEConfig(family, d_model, d_hidden, config["num_local_experts"], top_k, limit=limit)
        more = {"qkv_bias": True, "sinks": True}
    elif family == "qwen3_moe":
        hidden, step = config["moe_intermediate_size"], config.get("decoder_sparse_step", 1)
        experts = MoEConfig(family, d_model, hidden, config["num_experts"], top_k, config["norm_topk_prob"])
        sparse = [i for i in layers if (i + 1) % step == 0 and i not in config.get("mlp_only_layers", [])]
        more = {"qk_norm": True}
    elif family == "deepseek_v3":
        hidden = config["moe_intermediate_size"]
        groups = config["n_group"], config["topk_group"], config["routed_scaling_factor"]
        sizes = (d_model, hidden, config["n_routed_experts"], top_k, config["norm_topk_prob"], *groups)
        experts = MoEConfig(family, *sizes, d_shared=config["n_shared_experts"] * hidden)
        sparse = sparse[config["first_k_dense_replace"] :]
        ranks = "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"
        more = {"latent": tuple(config[key] for key in ranks), "interleaved": True}
    elif family == "llama4_text":
        step, wide = config["interleave_moe_layer_step"], config["intermediate_size_mlp"]
        experts = MoEConfig(family, d_model, d_hidden, config["num_local_experts"], top_k, d_shared=d_hidden)
        sparse = sparse[step - 1 :: step]
        more = {
            "rotated": tuple(map(bool, config["no_rope_layers"])),
            "chunk": config["attention_chunk_size"],
            "l2_norm": config["use_qk_norm"],
            "temperature": (config["attn_scale"], config["floor_scale"]) if config["attn_temperature_tuning"] else None,
            "interleaved": True,
        }
    else:
        raise ValueError(f"{family!r} is none of the five families of this chapter.")
    return DecoderConfig(
        config["vocab_size"],
        d_model,
        n_layers,
        n_heads,
        config["num_key_value_heads"],
        config.get("head_dim") or d_model // n_heads,
        wide,
        config["rms_norm_eps"],
        config.get("rope_theta", 10_000.0),
        windows=tuple(windows),
        tied=config.get("tie_word_embeddings", False),
        experts=tuple(experts if i in sparse else None for i in layers),
        rope_scaling=config.get("rope_scaling"),
        **more,
    )


def rope_scales(scaling: Mapping[str, Any]) -> tuple[float, float]:
    """What YaRN multiplies the angles' cosines and sines with, and, twice, the scores in DeepSeek."""

    def scale(m: float) -> float:
        return 0.1 * m * math.log(scaling["factor"]) + 1

    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return 1.0, 1.0
    both = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return (scale(both[0]) / scale(both[1]), scale(both[1])) if all(both) else (scale(1), 1.0)


def rope_angles(d: int, n: int, theta: float, scaling: Mapping[str, Any]) -> Float[Tensor, "n half_d"]:
    """The angle of each position and pair of channels."""
    speed = theta ** (-torch.arange(0, d, 2) / d)
    if scaling:
        old, turn = scaling["original_max_position_embeddings"], 2 * math.pi
        if scaling.get("rope_type", scaling.get("type")) == "llama3":
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            kept = ((old * speed / turn - low) / (high - low)).clamp(0, 1)
        else:
            ends = [d * math.log(old / (turn * scaling[b])) / (2 * math.log(theta)) for b in ("beta_fast", "beta_slow")]
            if scaling.get("truncate", True):
                ends = [math.floor(ends[0]), math.ceil(ends[1])]
            first, last = max(ends[0], 0), min(ends[1], d - 1)
            kept = 1 - ((torch.arange(d // 2) - first) / (last - first or 0.001)).clamp(0, 1)
        speed = speed * (kept + (1 - kept) / scaling["factor"])
    return torch.arange(n)[:, None] * speed


class Attention(nn.Module):
    """The causal self-attention of one layer."""

    def __init__(self, c: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.c, self.layer, self.scaling = c, layer, c.rope_scaling or {}
        sizes = {"q": c.n_heads * c.d_head, "k": c.n_kv_heads * c.d_head, "v": c.n_kv_heads * c.d_head}
        if c.latent:
            q_rank, kv_rank, nope, rope, value = c.latent
            wide = c.n_heads * (nope + rope)
            if q_rank is None:
                self.q_proj = nn.Linear(c.d_model, wide, bias=False)
            else:
                self.q_down, self.q_norm = nn.Linear(c.d_model, q_rank, bias=False), nn.RMSNorm(q_rank, 1e-6)
                self.q_up = nn.Linear(q_rank, wide, bias=False)
            self.kv_down, self.kv_norm = nn.Linear(c.d_model, kv_rank + rope, bias=False), nn.RMSNorm(kv_rank, 1e-6)
            self.kv_up = nn.Linear(kv_rank, c.n_heads * (nope + value), bias=False)
            self.o_proj = nn.Linear(c.n_heads * value, c.d_model, bias=False)
            return
        for letter, width in sizes.items():
            setattr(self, f"{letter}_proj", nn.Linear(c.d_model, width, bias=c.qkv_bias))
        self.o_proj = nn.Linear(sizes["q"], c.d_model, bias=c.qkv_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = nn.RMSNorm(c.d_head, c.norm_eps), nn.RMSNorm(c.d_head, c.norm_eps)
        if c.sinks:
            self.sinks = nn.Parameter(torch.zeros(c.n_heads))

    def turn(self, x: Tensor) -> Tensor:
        """RoPE, each pair of channels as a complex number."""
        angles = rope_angles(x.shape[-1], x.shape[-2], self.c.rope_theta, self.scaling).to(x.device)
        pairs = x.unflatten(-1, (-1, 2)) if self.c.interleaved else x.unflatten(-1, (2, -1)).mT
        size = torch.full_like(angles, rope_scales(self.scaling)[0])
        turned = torch.view_as_real(torch.view_as_complex(pairs.float().contiguous()) * torch.polar(size, angles))
        return (turned if self.c.interleaved else turned.mT).flatten(-2).to(x.dtype)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.c
        if c.latent:
            q_rank, kv_rank, nope, rope, value = c.latent
            q = self.q_proj(x) if q_rank is None else self.q_up(self.q_norm(self.q_down(x)))
            q, q_rope = q.unflatten(-1, (c.n_heads, -1)).transpose(1, 2).split((nope, rope), -1)
            small, k_rope = self.kv_down(x).split((kv_rank, rope), -1)
            both = self.kv_up(self.kv_norm(small)).unflatten(-1, (c.n_heads, -1)).transpose(1, 2)
            k, v = both.split((nope, value), -1)
            k_rope = self.turn(k_rope[:, None]).expand(-1, c.n_heads, -1, -1)
            return torch.cat((q, self.turn(q_rope)), -1), torch.cat((k, k_rope), -1), v
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (-1, c.d_head)).transpose(1, 2) for part in parts)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if not c.rotated or c.rotated[self.layer]:
            q, k = self.turn(q), self.turn(k)
            if c.l2_norm:
                q, k = (F.rms_norm(part, part.shape[-1:], None, c.norm_eps) for part in (q, k))
        elif c.temperature:
            scale, floor = c.temperature
            q = q * (1 + scale * ((torch.arange(x.shape[1]) + 1) / floor).floor().log1p())[:, None].to(x.device)
        return q, k, v

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        c, n = self.c, x.shape[1]
        q, k, v = self.heads(x)
        back = torch.arange(n)[:, None] - torch.arange(n)
        may = back >= 0
        if c.windows and c.windows[self.layer] is not None:
            may &= back < c.windows[self.layer]
        if c.chunk and c.rotated[self.layer]:
            may &= torch.arange(n)[:, None] // c.chunk == torch.arange(n) // c.chunk
        mask = torch.zeros(n, n).masked_fill(~may, -math.inf).to(x)
        if c.sinks:  # one more key and value, both zero, whose score is the sink
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            mask = torch.cat((mask.expand(c.n_heads, n, n), self.sinks[:, None, None].expand(-1, n, 1)), -1)
        scale = rope_scales(self.scaling)[1] ** 2 / math.sqrt(q.shape[-1]) if c.latent else None
        out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, scale=scale)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """A dense feed-forward."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(d_model, d_hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, c: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(c.d_model, c.norm_eps), nn.RMSNorm(c.d_model, c.norm_eps)
        self.attention, experts = Attention(c, layer), c.experts[layer]
        self.mlp = SwiGLU(c.d_model, c.d_hidden) if experts is None else MoELayer(experts)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """The whole model of a config.json: token ids [batch, n] to logits [batch, n, vocabulary]."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        c = read_config(config)
        self.tokens = nn.Embedding(c.vocabulary, c.d_model)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layers))
        self.norm = nn.RMSNorm(c.d_model, c.norm_eps)
        self.head = None if c.tied else nn.Linear(c.d_model, c.vocabulary, bias=False)

    def forward(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n vocabulary"]:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.head is None else self.head(x)


# %% [markdown]
# ## 1 · `route` ●●○
#
# Five models, one sentence: "the router scores the experts, and the best few are used". It hides two questions. *Which
# numbers decide?* And *what does a chosen expert weigh?* The second one has four answers:
#
# | family | `top_k` | weight of a chosen expert | the weights of a token sum to |
# |---|---|---|---|
# | `mixtral` | 2 of 8 | its probability in the softmax over **all** experts, divided by the sum of the chosen | 1 |
# | `qwen3_moe` | 8 of 128 | the same if `renormalise`; the probability as it is if not | 1, or less |
# | `gpt_oss` | 4 of 32 or 128 | its probability in the softmax over the **chosen** logits | 1 |
# | `switch` | 1 of up to 2048 | its probability in the softmax over all experts, as it is | less than 1 |
# | `llama4_text` | 1 of 16 or 128 | the sigmoid of its own logit | anything from 0 to `top_k` |
#
# `route(logits, top_k, family, renormalise=True)` returns `weights` and `experts`, a tuple of two tensors.
#
# | argument | shape | |
# |---|---|---|
# | `logits` | `(tokens, n_experts)` | float32 or bfloat16 |
# | `top_k` | | from 1 to `n_experts`, for every family |
# | `family` | | one of the five above; any other name is a `ValueError` |
# | `renormalise` | | for `qwen3_moe` alone: the other families do what the table says whatever it is |
# | `weights` | `(tokens, top_k)` | dtype of `logits`; in the order of `experts` |
# | `experts` | `(tokens, top_k)` | int64; those with the largest logits, the largest first |
#
# - Softmax and sigmoid are computed in float32, whatever the dtype of the logits.
# - Between equal logits any choice is right. Logits may be as large as ±10⁴.
# - Gradients flow from the weights to the logits.
# - The trap: two rows of the table give the same numbers, always. Find out which before you write five branches.


# %% exercise="route" section="What decides, and what weighs"
def route(
    logits: Float[Tensor, "tokens n_experts"], top_k: int, family: str, renormalise: bool = True
) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
    """The weights and the numbers of each token's top_k experts, largest first.

    Source: the modelling code of transformers 5.23.0 for each family.
    """
    ### BEGIN SOLUTION
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts
    ### END SOLUTION


# %% check="route" points=5
logits = torch.tensor([[2.0, -1.0, 1.0, 0.0], [0.0, 0.0, 3.0, 1.0]])
for family, total in (("mixtral", 1), ("qwen3_moe", 1), ("gpt_oss", 1)):
    out = route(logits, 2, family)
    assert isinstance(out, tuple), f"route should return a tuple, weights and experts, not {type(out).__name__}."
    weights, experts = out
    assert weights.shape == experts.shape == (2, 2), (
        f"2 tokens with 2 experts each should give (2, 2) twice, not {tuple(weights.shape)} and {tuple(experts.shape)}."
    )
    assert experts.tolist() == [[0, 2], [2, 3]], (
        f"{family}: the two largest logits belong to the experts [[0, 2], [2, 3]], and yours are {experts.tolist()}."
    )
    assert torch.allclose(weights.sum(-1), torch.full((2,), float(total)), atol=1e-5), (
        f"{family}: a token's weights should sum to {total}, and yours sum to {weights.sum(-1).tolist()}."
    )
weights, _ = route(logits, 1, "llama4_text")
assert torch.allclose(weights[0], torch.tensor([0.8808]), atol=1e-3), (
    f"llama4_text: the sigmoid of 2 is 0.881, and yours is {weights[0].item():.3f}."
)
assert (route(logits, 2, "qwen3_moe", renormalise=False)[0].sum(-1) < 1).all(), (
    "qwen3_moe, not renormalised: the experts that were not chosen keep their part, so that less than 1 is left."
)
try:
    route(logits, 2, "gpt-5")
except ValueError:
    pass
else:
    raise AssertionError("A family that route does not know should be a ValueError.")
print("The visible checks of route pass.")

# %% see="route"
# One router, five readings: the same logits for every family. Which token gets the loudest answer from its experts?
try:
    import matplotlib.pyplot as plt

    logits = torch.tensor([[3.0, 1, 0, 0, -1, -1], [0.3, 0.2, 0.1, 0, 0, -0.1], [-2, -3, -3, -4, -4, -4]])
    readings = (("mixtral", True), ("qwen3_moe", False), ("gpt_oss", True), ("switch", True), ("llama4_text", True))
    fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), sharey=True, facecolor="white")
    titles = ("a sure router", "a router in doubt", "all logits low")
    for token, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for at, (family, renormalise) in enumerate(readings):
            top_k = 1 if family in ("switch", "llama4_text") else 2
            weights, _ = route(logits, top_k, family, renormalise)
            bottom = 0.0
            for place, weight in enumerate(weights[token].tolist()):
                ax.bar(at, weight, bottom=bottom, color=("#0072B2", "#56B4E9")[place])
                bottom += weight
        ax.set_xticks(range(5), [family for family, _ in readings], rotation=30, ha="right", fontsize=8)
        ax.set(title=title, ylim=(0, 1.05))
    axes[0].set(ylabel="weight of the chosen experts")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish route first, then run this cell again.")

# %% [markdown]
# ## 2 · `route_in_groups` ●●●
#
# DeepSeek-V3 has 256 experts in a layer, spread over several machines. A token uses 8 of them. To keep it from visiting
# 8 machines, its experts must come from few **groups**, each of which lives on one machine. And the experts are
# balanced without a loss, by a **correction** that a rule moves up where an expert has too little to do (chapter 14).
# In this order:
#
# 1. Each expert's **score** is the sigmoid of its logit. Its **corrected score** is the score plus its correction.
# 2. The experts stand in `n_groups` groups of neighbours: with 8 experts and 4 groups, experts 0 and 1 are the first.
#    A group is worth the **sum of its two best** corrected scores.
# 3. The `top_groups` groups of the highest worth stay; the others are out.
# 4. Of what stays, the `top_k` experts with the highest corrected scores are chosen.
# 5. The **weight** of a chosen expert is its score, *without* the correction. If `renormalise`, the weights of a token
#    are divided by (their sum + 10⁻²⁰). In any case they are multiplied by `scale`.
#
# `route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True)` returns `weights` and
# `experts`.
#
# | argument | shape | |
# |---|---|---|
# | `logits` | `(tokens, n_experts)` | float32 or bfloat16; all computing is done in float32 |
# | `correction` | `(n_experts,)` | float32; of any size and sign |
# | `n_groups` | | divides `n_experts`; a group has at least two experts |
# | `top_groups` | | from 1 to `n_groups`; the groups that stay have at least `top_k` experts |
# | `scale` | | 2.5 in DeepSeek-V3 |
# | `weights` | `(tokens, top_k)` | dtype of `logits`; in the order of `experts` |
# | `experts` | `(tokens, top_k)` | int64; **in any order** |
#
# - Gradients flow from the weights to the logits. The correction decides who is chosen and nothing else: no gradient
#   reaches it, and it need not ask for one.
# - A token whose chosen scores are all 0, because its logits lie far below zero, gets weights of 0 and no NaN.
# - The trap: corrections may be negative. Then a corrected score may be too.


# %% exercise="route_in_groups" section="Groups"
def route_in_groups(
    logits: Float[Tensor, "tokens n_experts"],
    correction: Float[Tensor, " n_experts"],
    top_k: int,
    n_groups: int,
    top_groups: int,
    scale: float,
    renormalise: bool = True,
) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
    """The weights and the numbers of each token's experts, all of which stand in its best groups.

    Source: DeepSeek-AI 2024 (arXiv 2412.19437), sections 2.1.2 and 2.1.3.
    """
    ### BEGIN SOLUTION
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts
    ### END SOLUTION


# %% check="route_in_groups" points=4
logits = torch.tensor([[3.0, -3.0, 1.0, 1.0, -1.0, 0.0, -2.0, 2.0]])  # four groups of two
out = route_in_groups(logits, torch.zeros(8), 2, 4, 1, 2.5)
assert isinstance(out, tuple), f"route_in_groups should return a tuple, not {type(out).__name__}."
weights, experts = out
assert weights.shape == experts.shape == (1, 2), (
    f"One token with two experts should give (1, 2) twice, not {tuple(weights.shape)} and {tuple(experts.shape)}."
)
assert sorted(experts[0].tolist()) == [2, 3], (
    f"One group stays: experts 2 and 3, whose scores add up to the most. Yours are {sorted(experts[0].tolist())}."
)
assert torch.allclose(weights.sum(), torch.tensor(2.5), atol=1e-4), (
    f"Renormalised weights should sum to the scale, 2.5, and yours sum to {weights.sum().item():.3g}."
)
correction = torch.tensor([0.0, 0.9, 0, 0, 0, 0, 0, 0])
_, experts = route_in_groups(logits, correction, 2, 4, 1, 2.5)
assert sorted(experts[0].tolist()) == [0, 1], (
    f"Expert 1 is corrected by +0.9, so that its group wins; yours are {sorted(experts[0].tolist())}."
)
print("The visible checks of route_in_groups pass.")

# %% see="route_in_groups"
# Eight machines with eight experts each; every token uses four experts. How many machines does it visit, if it may
# choose freely, and if two groups have to do? And how good are the experts that it gets, compared with the best four?
try:
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    logits = torch.randn(4096, 64)
    free, _ = logits.sigmoid().sort(-1, descending=True)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.9), facecolor="white")
    quality = []
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for at, (top_groups, colour) in enumerate(zip((8, 4, 2, 1), colours, strict=True)):
        _, experts = route_in_groups(logits, torch.zeros(64), 4, 8, top_groups, 1.0)
        visited = F.one_hot(experts // 8, 8).amax(1).sum(-1)
        share = visited.bincount(minlength=6)[1:6] / len(visited)
        left.bar(torch.arange(1, 6) + 0.2 * at - 0.3, share, width=0.2, color=colour, label=f"{top_groups} of 8 groups")
        quality.append((logits.sigmoid().gather(1, experts).sum(-1) / free[:, :4].sum(-1)).mean().item())
    left.set(xlabel="machines visited", ylabel="share of tokens", title="Fewer groups, fewer journeys")
    left.legend(fontsize=8)
    bars = right.bar(range(4), quality, color=colours)
    right.bar_label(bars, [f"{share:.2f}" for share in quality], fontsize=9)
    right.set_xticks(range(4), ("8", "4", "2", "1"))
    right.set(xlabel="groups that stay", ylabel="score", ylim=(0, 1.15), title="Scores, the best four being 1")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish route_in_groups first, then run this cell again.")

# %% [markdown]
# ## 3 · `unpack_experts` ●●○
#
# Weights come in a file, and each family has packed them in its own way. If you unpack them wrongly, nothing complains:
# where shapes agree by accident, the model just talks nonsense. Here is how transformers 5 keeps a layer's experts.
# `E` is the number of experts, `h` is `d_hidden`, `d` is `d_model`:
#
# | family | tensor | shape | what stands where |
# |---|---|---|---|
# | `mixtral`, `qwen3_moe`, `deepseek_v3` | `gate_up_proj` | `(E, 2h, d)` | the first `h` rows are the gate |
# | | `down_proj` | `(E, d, h)` | |
# | `llama4_text` | `gate_up_proj` | `(E, d, 2h)` | the first `h` columns are the gate |
# | | `down_proj` | `(E, h, d)` | |
# | `gpt_oss` | `gate_up_proj` | `(E, d, 2h)` | columns take turns: gate, up, gate, up, … |
# | | `gate_up_proj_bias` | `(E, 2h)` | entries take turns in the same way |
# | | `down_proj` | `(E, h, d)` | |
# | | `down_proj_bias` | `(E, d)` | |
#
# `unpack_experts(tensors, family)` takes a dict of these tensors by name and returns a dict with the same numbers under
# this course's names and in its layout (see Conventions): `gate_up` and `down`, for `gpt_oss` also `gate_up_bias` of
# shape `(E, 2h)`, the gate's first, and `down_bias` of shape `(E, d)`.
#
# - The dict that you get has these tensors and no others; yours holds these names and no others.
# - Dtypes stay as they are. Your tensors may share memory with theirs.
# - The trap: `d` may equal `h` or `2h`. gpt-oss has `d` = `h` = 2880. Shapes will not tell you what is what.


# %% exercise="unpack_experts" section="Where the numbers lie"
def unpack_experts(tensors: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The experts of one layer in this course's layout: gate rows first, each slice as nn.Linear stores its weight."""
    ### BEGIN SOLUTION
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": gate_up.mT, "down": down.mT}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT,
        "gate_up_bias": torch.cat((bias[..., ::2], bias[..., 1::2]), -1),
        "down": down.mT,
        "down_bias": tensors["down_proj_bias"],
    }
    ### END SOLUTION


# %% check="unpack_experts" points=3
packed = {
    "gate_up_proj": torch.tensor([[[1.0, -1.0, 2.0, -2.0], [10.0, -10.0, 20.0, -20.0]]]),  # one expert, d = 2, h = 2
    "gate_up_proj_bias": torch.tensor([[5.0, -5.0, 6.0, -6.0]]),
    "down_proj": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]),
    "down_proj_bias": torch.tensor([[7.0, 8.0]]),
}
found = unpack_experts(packed, "gpt_oss")
assert isinstance(found, dict), f"unpack_experts should return a dict, not {type(found).__name__}."
assert set(found) == {"gate_up", "gate_up_bias", "down", "down_bias"}, (
    f"gpt_oss has gate_up, gate_up_bias, down and down_bias; yours has {sorted(found)}."
)
assert found["gate_up"].shape == (1, 4, 2), f"gate_up should be (E, 2h, d) = (1, 4, 2), not {found['gate_up'].shape}."
assert (found["gate_up"][0, :2] > 0).all(), (
    f"In this example the gate's numbers are positive, and they should fill the first two rows of gate_up; yours is "
    f"{found['gate_up'][0].tolist()}."
)
assert set(unpack_experts({"gate_up_proj": torch.ones(2, 6, 4), "down_proj": torch.ones(2, 4, 3)}, "mixtral")) == {
    "gate_up",
    "down",
}, "Mixtral's experts have no biases."
print("The visible checks of unpack_experts pass.")

# %% [markdown]
# ## 4 · `MoELayer` ●●●
#
# Now the layer itself, for all five families at once. `MoELayer(config)` takes a `MoEConfig` and is an `nn.Module` that
# maps `x` of shape `(batch, n, d_model)` to the same shape. `route` and `route_in_groups` are there for you; when your
# work is marked, correct ones are.
#
# | family | router | an expert | and |
# |---|---|---|---|
# | `mixtral` | `route` | SwiGLU | |
# | `qwen3_moe` | `route`, with `config.renormalise` | SwiGLU | |
# | `gpt_oss` | `route`; the router has a bias | clamped, with biases (see below) | |
# | `deepseek_v3` | `route_in_groups` with `correction` and the fields of `config` | SwiGLU | + shared expert |
# | `llama4_text` | `route` | SwiGLU of **weight · x** | + shared expert |
#
# - SwiGLU: $W^\text{down}\left(\mathrm{silu}(W^\text{gate} x) \odot W^\text{up} x\right)$. Its result is multiplied by
#   the expert's weight, but for Llama 4: there the weight multiplies the expert's *input*, and the results are added as
#   they are.
# - gpt-oss: with $g = W^\text{gate} x + b^\text{gate}$ and $u = W^\text{up} x + b^\text{up}$, clamp $g$ from above at
#   `limit` and $u$ from both sides at ±`limit`; then the hidden units are
#   $(u + 1) \odot g \cdot \mathrm{sigmoid}(\alpha g)$ with $\alpha$ = `alpha`, and the result is
#   $W^\text{down} \cdot \text{hidden} + b^\text{down}$, times the weight.
# - A **shared expert** is a `SwiGLU(d_model, d_shared)` that every token uses; its result is added as it is, and no
#   router weighs it. The layer has one exactly if `config.d_shared` is above 0, and you find it in `self.shared`.
#
# The state dict has exactly these names, for this is how weights are loaded:
#
# | name | shape | |
# |---|---|---|
# | `router.weight` | `(n_experts, d_model)` | `gpt_oss` also `router.bias`, `(n_experts,)` |
# | `gate_up`, `down` | see Conventions | |
# | `gate_up_bias`, `down_bias` | `(n_experts, 2 * d_hidden)`, `(n_experts, d_model)` | `gpt_oss` only |
# | `correction` | `(n_experts,)` | `deepseek_v3` only; a **buffer**, not a parameter: no optimiser may touch it |
# | `shared.gate_proj.weight`, `shared.up_proj.weight`, `shared.down_proj.weight` | as `SwiGLU` has them | |
#
# - How you initialise is up to you; tests load their own weights. `correction` begins at zero.
# - Any way is right that gives the result: a loop over experts, or all experts on all tokens. Nothing here is timed.
# - The trap of whole models: each of these layers alone would train happily with another family's formula.


# %% exercise="MoELayer" section="In or out"
class MoELayer(nn.Module):
    """A layer's mixture of experts, for each of the five families."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each token's chosen experts, weighed and added up, and the shared expert where there is one."""
        ### BEGIN SOLUTION
        c, tokens = self.config, x.flatten(0, 1)

        def expert(e: int, rows: Tensor) -> Tensor:
            if c.family != "gpt_oss":
                gate, up = F.linear(rows, self.gate_up[e]).chunk(2, -1)
                return F.linear(F.silu(gate) * up, self.down[e])
            gate, up = F.linear(rows, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
            gate, up = gate.clamp(max=c.limit), up.clamp(-c.limit, c.limit)
            return F.linear((up + 1) * gate * (c.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])

        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = expert(e, weight * rows) if c.family == "llama4_text" else weight * expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)
        ### END SOLUTION


# %% check="MoELayer" points=6
moe = MoEConfig("gpt_oss", d_model=4, d_hidden=3, n_experts=5, top_k=2)
layer = MoELayer(moe)
names = {"router.weight", "router.bias", "gate_up", "gate_up_bias", "down", "down_bias"}
assert set(layer.state_dict()) == names, (
    f"gpt_oss: the state dict should hold {sorted(names)}, and it holds {sorted(layer.state_dict())}."
)
moe = MoEConfig("deepseek_v3", 4, 3, 6, 2, n_groups=3, top_groups=2, scale=2.5, d_shared=5)
layer = MoELayer(moe)
assert "correction" in dict(layer.named_buffers()), "deepseek_v3: correction should be a buffer."
x = torch.randn(2, 3, 4)
assert layer(x).shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {layer(x).shape}."
with torch.no_grad():
    for name, parameter in layer.named_parameters():
        if not name.startswith("shared"):
            parameter.zero_()
assert torch.allclose(layer(x), layer.shared(x), atol=1e-5), (
    "If all other weights are zero, what is left is the shared expert, added as it is."
)
layer, dense = MoELayer(MoEConfig("mixtral", d_model=4, d_hidden=3, n_experts=5, top_k=2)), SwiGLU(4, 3)
with torch.no_grad():  # five times the same expert, the gate's rows first
    layer.gate_up.copy_(torch.cat((dense.gate_proj.weight, dense.up_proj.weight)).expand(5, -1, -1))
    layer.down.copy_(dense.down_proj.weight.expand(5, -1, -1))
assert torch.allclose(layer(x), dense(x), atol=1e-5), (
    "mixtral: if all experts hold the weights of the same SwiGLU, the results of a token's two, whose weights sum to "
    "1, should together be that SwiGLU's result."
)
print("The visible checks of MoELayer pass.")

# %% stand_in="MoELayer"
import torch  # noqa: E402


def _shares(scores, experts):
    return torch.stack([scores[:, None, :].expand(-1, experts.shape[1], -1).gather(2, experts[..., None])[..., 0]])[0]


def route(logits, top_k, family, renormalise=True):
    wide = logits.float()
    experts = wide.detach().argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    if family == "llama4_text":
        return _shares(1 / (1 + (-wide).exp()), experts).to(logits.dtype), experts
    picked = _shares(wide, experts)
    alone = family == "switch" or (family == "qwen3_moe" and not renormalise)
    total = (wide if alone else picked).logsumexp(-1, keepdim=True)
    return (picked - total).exp().to(logits.dtype), experts


def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = 1 / (1 + (-logits.float()).exp())
    rows = []
    for row in (scores.detach() + correction).tolist():
        size = len(row) // n_groups
        groups = [row[at : at + size] for at in range(0, len(row), size)]
        worth = sorted(range(n_groups), key=lambda g: -sum(sorted(groups[g])[-2:]))[:top_groups]
        rows.append(sorted((e for e in range(len(row)) if e // size in worth), key=lambda e: -row[e])[:top_k])
    experts = torch.tensor(rows)
    weights = _shares(scores, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (weights * scale).to(logits.dtype), experts


# %% see="MoELayer"
# Whole models. For each family a small one with random weights, once made of your layer and once by transformers; the
# weights of its experts went through your unpack_experts. Do the two say the same?
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
}
SMALL["rope_theta"] = 1e4
FAMILIES = {
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {"num_experts": 6, "moe_intermediate_size": 12, "norm_topk_prob": False, "mlp_only_layers": [0]},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 3, "attention_bias": True},
    "deepseek_v3": {
        "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
        "num_key_value_heads": 4, "head_dim": 4, "moe_intermediate_size": 12, "n_routed_experts": 8,
        "n_shared_experts": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "first_k_dense_replace": 1,
    },
    "llama4_text": {
        "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 0], "attention_chunk_size": 4, "use_qk_norm": True, "attn_temperature_tuning": True,
        "attn_scale": 0.1, "floor_scale": 4,
    },
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
YARN["original_max_position_embeddings"] = 16
FAMILIES["gpt_oss"] |= {"rope_scaling": YARN, "max_position_embeddings": 128}
NAMES = (
    ("model.embed_tokens", "tokens"), ("model.norm", "norm"), ("lm_head", "head"), ("model.layers", "blocks"),
    ("self_attn", "attention"), ("feed_forward", "mlp"), ("input_layernorm", "norm1"), ("mlp.gate.", "mlp.router."),
    ("post_attention_layernorm", "norm2"), ("shared_experts", "shared"), ("shared_expert", "shared"),
    ("router.e_score_correction_bias", "correction"), ("q_a_proj", "q_down"), ("q_a_layernorm", "q_norm"),
    ("q_b_proj", "q_up"), ("kv_a_proj_with_mqa", "kv_down"), ("kv_a_layernorm", "kv_norm"), ("kv_b_proj", "kv_up"),
)  # fmt: skip


def course_names(state: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """A state dict of transformers under the names of this course; experts go through unpack_experts."""
    found: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        before, _, last = name.partition(".experts.")
        if last:
            layers.setdefault(before, {})[last] = value
        else:
            found[name] = value
    for before, tensors in layers.items():
        found |= {f"{before}.{name}": value for name, value in unpack_experts(tensors, family).items()}
    return found


try:
    from transformers import AutoConfig, AutoModelForCausalLM

    for family, own in FAMILIES.items():
        config = {**SMALL, **own, "model_type": family, "tie_word_embeddings": False}
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager").eval()
        torch.manual_seed(1)
        for value in theirs.state_dict().values():  # gains, biases, sinks and corrections too
            torch.nn.init.normal_(value, std=0.4)
        model = Decoder(config)
        model.load_state_dict(course_names(theirs.state_dict(), family))
        ids = torch.randint(50, (2, 11))
        with torch.no_grad():
            mine, wanted = model(ids), theirs(ids).logits
        off = (mine - wanted).abs().max()
        print(f"{family:>12}: logits of size {wanted.std():.1f}; yours are off by {off:.0e} at most")
except NotImplementedError:
    print("Finish the first four parts, then run this cell again.")
except ImportError:
    print("This cell compares with transformers, which is not installed here; nothing else needs it.")
except RuntimeError as error:
    print(f"The weights do not fit into your layer yet: {error}")

# %% [markdown]
# ## 5 · `count_parameters` ●●●
#
# "671 billion parameters, 37 billion active", "30B-A3B", "17B × 128E". You can check each of these names with the
# model's `config.json`, which is a page long, and without its weights, which are hundreds of gigabytes.
#
# `count_parameters(config)` returns three ints, `(total, active, without_embedding)`:
#
# - **total**: every parameter that the model stores. DeepSeek's `correction` is a buffer and does not count.
# - **active**: those that one token uses. Of each layer's experts it counts `num_experts_per_tok`; all else counts in
#   full: attention, norms, routers, dense layers, shared experts, the embedding and the head.
# - **without_embedding**: the active ones, but for the table of the input embedding, of which a token reads a single
#   row. If the embedding is tied, its table is the head as well, and the head multiplies every token with all of
#   it: then nothing may be left out.
#
# `config` is a dict as in a `config.json`. All families have `vocab_size`, `hidden_size`, `num_hidden_layers`,
# `num_attention_heads`, `num_key_value_heads`, `intermediate_size`, `num_experts_per_tok` and `tie_word_embeddings`;
# `head_dim` may be missing, and is then `hidden_size // num_attention_heads`. Further:
#
# | family | experts a layer | width of one | width of dense layers | width of the shared expert |
# |---|---|---|---|---|
# | `mixtral` | `num_local_experts` | `intermediate_size` | | |
# | `gpt_oss` | `num_local_experts` | `intermediate_size` | | |
# | `qwen3_moe` | `num_experts` | `moe_intermediate_size` | `intermediate_size` | |
# | `deepseek_v3` | `n_routed_experts` | `moe_intermediate_size` | `intermediate_size` | `n_shared_experts` such |
# | `llama4_text` | `num_local_experts` | `intermediate_size` | `intermediate_size_mlp` | `intermediate_size` |
#
# Which layers have experts, counted from 0?
#
# - `mixtral` and `gpt_oss`: all.
# - `qwen3_moe`: layer `i` if `decoder_sparse_step` divides `i + 1` and `i` is not in `mlp_only_layers`.
# - `deepseek_v3`: all but the first `first_k_dense_replace`.
# - `llama4_text`: numbers `s - 1`, `2s - 1`, `3s - 1`, … where `s` is `interleave_moe_layer_step`.
#
# What attention holds is in the set-up cell: `Attention` for the names, `read_config` for the keys. In short: $W_q$,
# $W_k$, $W_v$, $W_o$; two gains of `head_dim` in `qwen3_moe`; a bias for each of the four and one sink a head in
# `gpt_oss`; and DeepSeek's latent attention, where `q_lora_rank` may be None. Every layer has two norms, and there is
# one at the end.
#
# - Count by arithmetic, or by any other way that ends within a second: the configurations are those of the published
#   models, too large for any memory. If you use the set-up cell's `Decoder`, a `MoELayer` with the right parameters
#   is there when your work is marked.
# - The trap: with gpt-oss the router and the experts have biases. It is a small number, and "exact" means that one too.


# %% exercise="count_parameters" section="What it costs"
def count_parameters(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(total, active, active without the input embedding) of the model that a config.json describes."""
    ### BEGIN SOLUTION
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)
    ### END SOLUTION


# %% check="count_parameters" points=4
tiny = {"model_type": "mixtral", "vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
tiny |= {"num_key_value_heads": 1, "intermediate_size": 3, "num_local_experts": 5, "num_experts_per_tok": 2}
tiny |= {"tie_word_embeddings": False, "rms_norm_eps": 1e-5, "sliding_window": None}
counts = count_parameters(tiny)
assert isinstance(counts, tuple), f"count_parameters should return a tuple, not {type(counts).__name__}."
assert len(counts) == 3, f"count_parameters should return three numbers, not {len(counts)}."
assert all(type(count) is int for count in counts), f"All three should be ints, not {counts}."
experts, rest = 5 * 3 * 4 * 3, 2 * 10 * 4 + 2 * 4 * (4 + 2) + 5 * 4 + 3 * 4
assert counts[0] == experts + rest, (
    f"5 experts of 3·4·3, two tables of 10·4, attention of 2·4·(4+2), a router of 5·4 and three norms of 4 are "
    f"{experts + rest} numbers; yours says {counts[0]}."
)
assert counts[1] == experts * 2 // 5 + rest, f"Two of the five experts are active; yours says {counts[1]}."
assert counts[2] == counts[1] - 40, f"The input embedding has 40 numbers; yours says {counts[2]}."
dense = tiny | {"model_type": "qwen3_moe", "head_dim": 6, "num_experts": 5, "moe_intermediate_size": 2}
dense |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [0]}
counts = count_parameters(dense)
assert counts[:2] == (284, 284), (
    "A Qwen with heads of width 6, whose only layer is dense, has attention of 2·4·(12+6), two gains of 6, three "
    f"matrices of 4·3, two tables of 10·4 and three norms of 4: 284 numbers, all active; yours says {counts[:2]}."
)
print("The visible checks of count_parameters pass.")

# %% stand_in="count_parameters"
import torch  # noqa: E402
from torch import nn  # noqa: E402


class MoELayer(nn.Module):
    """The parameters of a layer; it computes nothing."""

    def __init__(self, config):
        super().__init__()
        d, h, n = config.d_model, config.d_hidden, config.n_experts
        self.config, biased = config, config.family == "gpt_oss"
        self.router = nn.Linear(d, n, bias=biased)
        shapes = {"gate_up": (n, 2 * h, d), "down": (n, d, h)}
        if biased:
            shapes |= {"gate_up_bias": (n, 2 * h), "down_bias": (n, d)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        if config.family == "deepseek_v3":
            self.register_buffer("correction", torch.empty(n))
        if config.d_shared:
            s = config.d_shared
            sizes = {"gate_proj": (d, s), "up_proj": (d, s), "down_proj": (s, d)}
            self.shared = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})


# %% see="count_parameters"
# Three published models, and what their makers say about them. Which of the two active counts do they mean?
try:
    common = {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    released = {
        "Mixtral 8x7B (47B, 13B active)": {
            "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        "gpt-oss-20b (20.9B, 3.6B active)": {
            "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "num_hidden_layers": 24, "head_dim": 64,
            "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 2880, "num_local_experts": 32,
            "num_experts_per_tok": 4, "sliding_window": 128,
        },
        "Qwen3-30B-A3B (30.5B, 3.3B active)": {
            "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
            "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 6144,
            "num_experts": 128, "moe_intermediate_size": 768, "num_experts_per_tok": 8, "norm_topk_prob": True,
            "mlp_only_layers": [], "decoder_sparse_step": 1,
        },
    }  # fmt: skip
    print(f"{'':38} {'total':>15} {'active':>15} {'without embedding':>18}")
    for name, config in released.items():
        total, active, without = count_parameters(config | common)
        print(f"{name:38} {total:>15,} {active:>15,} {without:>18,}")
except NotImplementedError:
    print("Finish count_parameters first, then run this cell again.")

# %% [markdown]
# ## 6 · `Mended` ●●○, a bug clinic
#
# The Switch Transformer, the oldest family here, gives each token one expert, and each expert a number of places: its
# **capacity**. Of each text, an expert takes the first `capacity` tokens that want it; whoever comes later gets nothing
# from this layer, a vector of zeros (chapter 14). Its experts are plain, with a ReLU and no gate.
#
# Somebody has rewritten that layer. It passes their test, it trains, and its results with real texts are off. It has
# one fault. Here is the patient.


# %% see="count_parameters"
class Choice(nn.Module):
    """Which expert takes each token, and what it weighs."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """taken [batch, n, n_experts]: 1 where the expert takes the token. weight [batch, n, 1]."""
        probabilities = logits.flatten(0, 1).softmax(-1)
        wanted = F.one_hot(probabilities.argmax(-1), logits.shape[-1])
        place = wanted.cumsum(0)  # the how-manieth to want this expert
        taken = wanted * (place <= self.capacity)
        return taken.view(logits.shape), probabilities.amax(-1).view(*logits.shape[:-1], 1)


class Patient(nn.Module):
    """A feed-forward layer of the Switch Transformer."""

    def __init__(self, d_model: int, d_hidden: int, n_experts: int, capacity: int) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.choice = Choice(capacity)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        taken, weight = self.choice(self.router(x))
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken.to(x.dtype), each)


# %% [markdown]
# Do not read it yet. Measure first. `ichimon.diff` runs two models on the same input and names the first sub-layer
# where they part; the healthy one comes from transformers. Change what you examine until you know on what the fault
# depends: one text or several, much room or little, few tokens or many.


# %% see="count_parameters"
def examine(batch: int, n: int, capacity: int) -> str:
    """Where the patient and transformers' layer part, with the same random weights."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    from ichimon.diff import diff

    torch.manual_seed(0)
    sizes = SwitchTransformersConfig(d_model=8, d_ff=6, num_experts=3, expert_capacity=capacity, dropout_rate=0.0)
    healthy, patient = SwitchTransformersSparseMLP(sizes).eval(), Patient(8, 6, 3, capacity)
    for parameter in healthy.parameters():
        nn.init.normal_(parameter, std=0.5)
    experts = list(healthy.experts.values())
    weights = {"router.weight": healthy.router.classifier.weight}
    weights["up"] = torch.stack([expert.wi.weight for expert in experts])
    weights["down"] = torch.stack([expert.wo.weight for expert in experts])
    patient.load_state_dict(weights)
    found = diff(patient, healthy, torch.randn(batch, n, 8), names={"router": "router.classifier", "choice": "router"})
    return "They agree everywhere." if found is None else str(found)


try:
    for batch, n, capacity in ((1, 12, 64), (1, 12, 3)):
        print(f"{batch} text(s) of {n} tokens, {capacity} places: {examine(batch, n, capacity)}")
    print("Agreed, as in the test of whoever wrote it. Now examine further.")
except ImportError as error:
    print(f"The examination needs transformers and the course's package ichimon: {error}.")

# %% [markdown]
# When you know where and when, read those lines and mend them.
#
# `Mended(d_model, d_hidden, n_experts, capacity)` is the patient in health: `x` of shape `(batch, n, d_model)` to the
# same shape. The state dict keeps the patient's names, `router.weight`, `up` and `down`, and their shapes.
#
# - Copy what you need from the patient into this cell: the cells above are not there when your work is marked.
# - What was healthy must stay so: capacity, order, weights, and the zeros of whoever found no place.


# %% exercise="Mended" section="Is it the same model?"
class Mended(nn.Module):
    """A feed-forward layer of the Switch Transformer, in health."""

    def __init__(self, d_model: int, d_hidden: int, n_experts: int, capacity: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each token's expert, if it has a place for it, times its probability."""
        ### BEGIN SOLUTION
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.cumsum(1, dtype=torch.int64) <= self.capacity)
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)
        ### END SOLUTION


# %% check="Mended" points=3
layer = Mended(8, 6, 3, 2)
assert set(layer.state_dict()) == {"router.weight", "up", "down"}, (
    f"The state dict should hold router.weight, up and down, and it holds {sorted(layer.state_dict())}."
)
x = torch.randn(1, 5, 8)
assert layer(x).shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {layer(x).shape}."
same = layer(x[:, :1].expand(-1, 5, -1))
assert (same[:, 2:] == 0).all(), "Five equal tokens want the same expert, which has two places: the others get zeros."
assert (same[:, :2] != 0).any(), "The first two of them have a place."
print("The visible checks of Mended pass. They would pass for the patient, too.")

# %% [markdown]
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they draw all weights anew, biases and corrections too,
# put your layer into whole models of each family, and compare the logits with those of transformers. If a model is
# wrong, you read which sub-layer is the first to differ. They look at both conventions, at negative corrections, at
# layers of all kinds, at gradients and dtypes; and they count models that you have never heard of. Each exercise is
# marked by itself, and every test that passes counts.
#
# Before you hand in, run `python -m ichimon check 16-moe-families.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
