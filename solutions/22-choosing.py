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
#     assignment: 22-choosing
# ---

# %% [markdown]
# # 22 · Choosing an architecture
#
# **One question: which model should you choose, and can you afford it?**
#
# Before you download a model of hundreds of gigabytes you can know how much memory it takes, how fast it can write at
# best, and what training it would have cost. All of it follows from its `config.json`, a page of text, and from four
# numbers of the machine. No weight is needed.
#
# You will write these calculators, for the thirteen families of this course, to the last parameter. At the end they
# choose: for a task, a machine, a length, languages, a licence and a plan for adapting the model, your program says
# which models are left, and why each of the others is not. The page of the book that goes with this notebook is
# `book/22-choosing`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `parameters` | ●●● | 30 | 6 |
# | `flops_per_token` | ●●○ | 15 | 3 |
# | `fits`, and `kv_bytes` | ●●○ | 20 | 5 |
# | `decode_roofline` | ●●○ | 20 | 4 |
# | `energy_and_cost` | ●○○ | 10 | 2 |
# | `recommend` | ●●○ | 25 | 5 |
#
# ## Conventions
#
# - **Bytes are bytes.** Memory is given and returned in bytes. 1 GiB is 2³⁰ of them, 1 GB is 10⁹; makers of cards and
#   makers of disks mean different ones, and 7 % lies between the two.
# - **A FLOP is one addition or one multiplication.** A weight that is multiplied and added counts two.
# - **Active**, as chapter 16 defined it: the parameters that one token uses. Of each layer's experts it counts as many
#   as a token is sent to; all else counts in full, the embedding too.
# - **Seconds and speeds are bounds**, not forecasts: no program can be faster, and most are slower.
# - No function changes what it is given.
#
# ## What is given
#
# `read(config)` in the set-up cell turns a `config.json` into a `Shape`, with one name for each thing that the families
# call by different names. Read its comments now: everything that you will count is there.

# %% role="set-up"
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]  # a config.json

TASKS = {  # the task, and the shapes that can do it as they are
    "classify": ("encoder", "decoder", "encoder-decoder"),
    "embed": ("encoder",),
    "translate": ("encoder-decoder", "decoder"),
    "chat": ("decoder",),
}
ADAPTATION = {  # bytes for each parameter, while the model learns
    "none": 0.0,
    "qlora": 0.52,  # 4-bit weights with their scales, frozen; the adapters are small
    "lora": 2.0,  # 16-bit weights, frozen
    "full": 16.0,  # 16-bit weights and gradients, 32-bit weights, and AdamW's two averages in 32 bits
}
# Models so small that one can count by hand: the visible checks do.
tiny: dict[str, Any] = {"model_type": "llama", "vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1}
tiny |= {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 3, "tie_word_embeddings": False}
mixture = {**tiny, "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Latent:
    """DeepSeek's attention. A head's query and key have d_nope + d_rope channels, its value d_value."""

    q_rank: int | None  # None: queries are made in one step
    kv_rank: int
    d_nope: int
    d_rope: int
    d_value: int


@dataclass(frozen=True)
class Shape:
    """What a config.json says about sizes."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_hidden: int  # of a dense feed-forward
    gated: bool  # True: three matrices (gate, up, down). False: two (up, down)
    norm: int  # numbers a channel in a norm: 1 (a gain), 2 (gain and bias), 0 (neither)
    norms: int  # norms in a layer; one more stands at the end of the model
    tokens_norm: bool  # a norm right behind the embedding
    n_positions: int  # rows in the table of learned positions, 0 without one
    biases: frozenset[str]  # where there are any: "qkv", "o", "mlp", "head", "router"
    qk_norm: bool  # a gain for the d_head channels of queries, and another for those of keys
    sinks: bool  # one number a head
    tied: bool  # the embedding is the head as well
    windows: tuple[int | None, ...]  # one a layer: how many positions it sees and keeps; None: all
    latent: Latent | None
    n_experts: int  # in a layer that has experts; 0: none has
    top_k: int  # how many of them a token is sent to
    d_expert: int  # width of one
    d_shared: int  # width of the expert that works for every token, 0 without one
    n_sparse: int  # layers with experts; the others have a dense feed-forward


def read(config: Config) -> Shape:
    """The Shape of a config.json. Raises ValueError for a family that is none of ours."""

    def first(*names: str) -> int:
        return next(config[name] for name in names if config.get(name) is not None)

    kind = config["model_type"]
    llamas = ("llama", "mistral", "qwen2", "qwen3", "olmo", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
    if kind not in (*llamas, "gpt2", "gptj", "gpt_neox", "bloom"):
        raise ValueError(f"{kind!r} is none of the families of this chapter")
    n_layers = first("n_layer", "num_hidden_layers")
    d_model, n_heads = first("n_embd", "n_embed", "hidden_size"), first("n_head", "num_attention_heads")
    old, layers = kind in ("gpt2", "gptj", "bloom"), range(n_layers)
    d_hidden = config.get("n_inner") or 4 * d_model if old else config["intermediate_size"]

    biases: set[str] = set()
    if kind in ("gpt2", "gpt_neox", "bloom", "gpt_oss"):
        biases |= {"qkv", "o", "mlp"}
    if kind == "qwen2":
        biases |= {"qkv"}
    if kind in ("llama", "qwen3", "qwen3_moe") and config.get("attention_bias"):
        biases |= {"qkv", "o"}
    biases |= {"gptj": {"mlp", "head"}, "gpt_oss": {"router"}}.get(kind, set())

    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if kind in ("qwen2", "qwen3", "qwen3_moe") and not config.get("use_sliding_window"):
        window = None
    if kinds:
        slides = [each == "sliding_attention" for each in kinds]
    elif kind in ("qwen2", "qwen3"):
        slides = [i >= config.get("max_window_layers", 0) for i in layers]
    else:
        slides = [kind != "gpt_oss" or i % 2 == 0 for i in layers]

    latent = None
    if kind == "deepseek_v3":
        ranks = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        latent = Latent(*(config[name] for name in ranks))
    moe = kind in ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
    d_expert = config.get("moe_intermediate_size", d_hidden) if moe else 0
    n_sparse = n_layers if moe else 0
    if kind == "qwen3_moe":
        step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        n_sparse = sum((i + 1) % step == 0 and i not in dense for i in layers)
    if kind == "deepseek_v3":
        n_sparse = max(n_layers - config["first_k_dense_replace"], 0)

    return Shape(
        vocabulary=config["vocab_size"],
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        d_head=config.get("head_dim") or d_model // n_heads,
        d_hidden=d_hidden,
        gated=kind in llamas,
        norm=0 if kind == "olmo" else 1 if kind in llamas else 2,
        norms=1 if kind == "gptj" else 2,
        tokens_norm=kind == "bloom",
        n_positions=config["n_positions"] if kind == "gpt2" else 0,
        biases=frozenset(biases),
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        sinks=kind == "gpt_oss",
        tied=config.get("tie_word_embeddings", kind in ("gpt2", "bloom")),
        windows=tuple(window if each else None for each in slides),
        latent=latent,
        n_experts=first("num_local_experts", "num_experts", "n_routed_experts") if moe else 0,
        top_k=config["num_experts_per_tok"] if moe else 0,
        d_expert=d_expert,
        d_shared=config["n_shared_experts"] * d_expert if kind == "deepseek_v3" else 0,
        n_sparse=n_sparse,
    )


# %% [markdown]
# ## 1 · `parameters` ●●●
#
# How large is a model? `parameters(config)` returns two ints, `(total, active)`.
#
# - **total**: every parameter that the model stores.
# - **active**: those that one token uses. Of the `n_experts` experts in a layer it counts `top_k`. Everything else
#   counts in full: embedding, learned positions, attention, norms, routers, dense layers, shared experts, head.
#
# | part | what it holds |
# |---|---|
# | embedding | a row of `d_model` for each entry of the vocabulary. The head has as many, unless it is tied |
# | attention | $W_q$ makes `n_heads · d_head` channels, $W_k$ and $W_v$ `n_kv_heads · d_head` each; $W_o$ leads back |
# | attention with a latent | below |
# | feed-forward | as many matrices as `gated` says. `"mlp"` means a bias for each of them |
# | an expert | a feed-forward of the same kind, of width `d_expert`; the shared one of width `d_shared` |
# | router | one row of `d_model` for each expert |
#
# A bias is as wide as what its matrix makes. `"qkv"` means three of them, `"head"` one for each entry of the
# vocabulary, and `"router"` one for each expert. Gains of norms, sinks and gains of `qk_norm` are parameters like all
# others.
#
# With a `latent`, attention has these matrices and no biases. Two norms in it have a gain and nothing else.
#
# - queries: `d_model` → `q_rank`, a norm of `q_rank`, and `q_rank` → all heads' `d_nope + d_rope`. If `q_rank` is None,
#   one matrix leads straight from `d_model` to the heads, and there is no norm;
# - keys and values: `d_model` → `kv_rank + d_rope` in one matrix, a norm of `kv_rank`, and `kv_rank` → all heads'
#   `d_nope + d_value`;
# - out: all heads' `d_value` → `d_model`.
#
# The result must be exact, also for models of 671 billion parameters: count with ints.


# %% exercise="parameters" section="Three counts, three questions"
def parameters(config: Config) -> tuple[int, int]:
    """(total, active) parameters of the model that a config.json describes.

    Active: what one token uses, top_k of each layer's experts and all else in full, the embedding too.
    """
    ### BEGIN SOLUTION
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden: int) -> int:
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each
    ### END SOLUTION


# %% check="parameters" points=6
counts = parameters(tiny)
assert isinstance(counts, tuple), f"parameters should return a tuple, not {type(counts).__name__}."
assert len(counts) == 2, f"parameters should return two numbers, not {len(counts)}."
assert all(type(count) is int for count in counts), f"Both should be ints, not {counts}."
assert counts[0] == 80 + 48 + 36 + 12, (
    "Two tables of 10·4, attention of 2·4·(4 + 2), three matrices of 4·3 and three gains of 4 are 176 numbers; "
    f"yours says {counts[0]}."
)
assert counts[0] == counts[1], f"Without experts every parameter is active; yours says {counts}."
counts = parameters({**tiny, "model_type": "qwen2"})
assert counts[0] == 176 + 4 + 2 + 2, (
    f"Qwen 2 has biases for 4 channels of queries, 2 of keys and 2 of values: 184 numbers; yours says {counts[0]}."
)
counts = parameters(mixture)
assert counts[0] == 176 + 4 * 36 + 5 * 4, f"Four experts more and a router of 5·4 are 340; yours says {counts[0]}."
assert counts[0] - counts[1] == 3 * 36, f"Three of five experts rest, 108 numbers; yours says {counts[0] - counts[1]}."
print("The visible checks of parameters pass.")

# %% see="parameters"
# Names and numbers: what is in a name? Try another config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT-2 small": {
        "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    },
    "BLOOM 176B": {
        "model_type": "bloom", "vocab_size": 250880, "hidden_size": 14336, "n_layer": 70, "n_head": 112,
    },
    "LLaMA 7B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 11008, "tie_word_embeddings": False,
    },
    "Mistral 7B v0.1": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    "Qwen3 8B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
    "Mixtral 8x7B": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8,
        "num_experts_per_tok": 2, "tie_word_embeddings": False,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "num_hidden_layers": 24, "head_dim": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 2880, "num_local_experts": 32,
        "num_experts_per_tok": 4, "sliding_window": 128, "tie_word_embeddings": False,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip
try:
    counted = {name: parameters(config) for name, config in CONFIGS.items()}
    print(f"{'':16}{'total':>18}{'active':>18}   active share")
    for name, (total, active) in counted.items():
        print(f"{name:16}{total:>18,}{active:>18,}   {active / total:.0%}")
except NotImplementedError:
    print("Finish parameters first, then run this cell again.")

# %% [markdown]
# ## 2 · `flops_per_token` ●●○
#
# How much arithmetic is one token? `flops_per_token(config, context, training=False)` returns an int, the FLOPs with
# which the model reads or writes one token that attends to `context` positions, itself among them.
#
# - **Weights.** Every active parameter is used in one multiplication and one addition. Two tables are not: a token
#   reads a single row of the input embedding and of the table of learned positions, and computes nothing with the
#   others. So the input embedding does not count, and neither does the table of positions. But if the embedding is
#   tied, its table is the head as well, and the head computes with all of it: then it counts, once.
# - **Attention.** For each layer, each head of queries and each position that it sees, the score takes one
#   multiplication and one addition for each channel of the key, and the blend as many for each channel of the value. A
#   layer with a window of $W$ sees at most $W$ positions. With a latent, count the keys and values of the heads, of
#   `d_nope + d_rope` and `d_value` channels.
# - `training=True`: forward and backward. The backward pass takes twice the FLOPs of the forward pass, because it
#   computes two products for each one: a gradient for the input, and one for the weight.
# - `context` may be 0: then nothing is left but the weights.
# - Softmax, norms and activations are left out: together they are far below 1 % in a large model.
#
# You may use your `parameters`. While your work is marked a right one stands in for it, so that a mistake there costs
# nothing here; the same holds in the parts that follow.


# %% exercise="flops_per_token" section="The mathematics"
def flops_per_token(config: Config, context: int, training: bool = False) -> int:
    """FLOPs of one token that attends to `context` positions; with `training` forward and backward."""
    ### BEGIN SOLUTION
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward
    ### END SOLUTION


# %% check="flops_per_token" points=3
flops = flops_per_token(tiny, 0)
assert type(flops) is int, f"flops_per_token should return an int, not a {type(flops).__name__}."
assert flops == 2 * (176 - 40), f"176 parameters, of which 40 are only looked up, give 272 FLOPs, not {flops}."
flops = flops_per_token({**mixture, "tie_word_embeddings": True}, 0)
assert flops == 2 * (340 - 108 - 40), (
    f"Of 340 parameters three experts, 108, rest, and one of the two tables, 40, is not there if it is tied; the head "
    f"computes with the other: 384 FLOPs, not {flops}."
)
more = flops_per_token(tiny, 7) - flops_per_token(tiny, 0)
assert more == 2 * 2 * (2 + 2) * 7, f"2 heads, keys and values of 2 channels and 7 positions add 112 FLOPs, not {more}."
print("The visible checks of flops_per_token pass.")


# %% stand_in="flops_per_token, fits"
from __main__ import read as shape_of  # noqa: E402  # the set-up cell's


def parameters(config):
    s = shape_of(config)
    d, two = s.d_model, s.gated + 2

    def mlp(h):
        return two * d * h + ("mlp" in s.biases) * (h * (two - 1) + d)

    if s.latent:
        m = s.latent
        rest = d * (m.kv_rank + m.d_rope) + m.kv_rank + s.n_heads * m.kv_rank * (m.d_nope + m.d_value)
        rest += s.n_heads * m.d_value * d
        q = s.n_heads * (m.d_nope + m.d_rope)
        rest += q * d if m.q_rank is None else m.q_rank * d + m.q_rank + m.q_rank * q
    else:
        q, kv = s.d_head * s.n_heads, s.d_head * s.n_kv_heads
        rest = d * q + d * kv + d * kv + q * d + ("qkv" in s.biases) * (q + kv + kv) + ("o" in s.biases) * d
        rest += s.sinks * s.n_heads + s.qk_norm * 2 * s.d_head
    rest = rest * s.n_layers + mlp(s.d_hidden) * (s.n_layers - s.n_sparse)
    rest += s.norm * d * (s.norms * s.n_layers + 1 + s.tokens_norm) + s.n_positions * d
    rest += s.vocabulary * d * (1 if s.tied else 2) + s.vocabulary * ("head" in s.biases)
    if s.n_sparse:
        rest += s.n_sparse * (s.n_experts * d + s.n_experts * ("router" in s.biases))
        rest += s.n_sparse * mlp(s.d_shared) * (s.d_shared > 0)
    return tuple(rest + s.n_sparse * n * mlp(s.d_expert) for n in (s.n_experts, s.top_k))


# %% see="flops_per_token"
# Where does the arithmetic go as the text gets longer? GPT-2's tables, and DeepSeek's 61 layers.
try:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    lengths = [2**i for i in range(8, 18)]
    styles = {"LLaMA 7B": "-", "Mistral 7B v0.1": "--", "gpt-oss-20b": ":", "DeepSeek-V3": "-."}
    for (name, style), colour in zip(styles.items(), ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True):
        shares = [1 - flops_per_token(CONFIGS[name], 0) / flops_per_token(CONFIGS[name], n) for n in lengths]
        ax.plot(lengths, shares, style, color=colour, label=name)
    ax.set(xscale="log", xlabel="positions that a token attends to", ylabel="share of attention", ylim=(0, 1))
    ax.set_title("In a long text most of the arithmetic is attention")
    ax.legend(fontsize=8)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish parameters and flops_per_token first, then run this cell again.")

# %% [markdown]
# ## 3 · `kv_bytes` and `fits` ●●○
#
# Does it fit into the memory? Three things have to be there at once: the weights, the cache, and what is being
# computed. Write two functions in one cell.
#
# `kv_bytes(config, length, batch=1, bits=16)` returns an int: the bytes of the cache of `batch` texts of `length`
# positions, with each number in `bits` bits.
#
# - A layer keeps, for each position, a key and a value of `d_head` for each of its `n_kv_heads`. With a latent it keeps
#   `kv_rank + d_rope` numbers instead, and nothing else.
# - A layer with a window of $W$ keeps the last $W$ positions, and never more.
# - `bits` is 4, 8, 16 or 32, and the result is a whole number of bytes. `length` may be 0.
#
# `fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16)` returns a dict:
#
# | key | |
# |---|---|
# | `"weights"` | int: all parameters, in `weight_bits` bits each, rounded up to a whole byte |
# | `"cache"` | int: `kv_bytes` of these texts, in `kv_bits` bits |
# | `"activations"` | int: what is being computed, as below |
# | `"total"` | int: the sum of the three |
# | `"fits"` | bool: whether the total is at most `memory` |
# | `"batch"` | int: how many texts of this length fit at most, 0 if not even one does |
#
# `weight_bits` may be a float: 4-bit formats take a little more than 4, with their scales.
#
# What is being computed depends on the program. Let us agree on a simple bound: each text is read in pieces of 512
# tokens. The widest moment is in a feed-forward. For each token of a piece there are two vectors of `d_model` (what
# came in and its norm) and the hidden channels, once if the feed-forward is plain and twice if it is `gated`, each
# number in 2 bytes. The hidden channels of one token are `d_hidden` in a dense layer and `top_k · d_expert + d_shared`
# in a layer with experts: take the larger, of the kinds of layers that there are. Beside this there are the logits of
# each text's last token, in 4 bytes each.
#
# - A shorter text is read in one piece of its own length: `min(length, 512)` tokens.
# - `memory` is an int or a float, in bytes.
# - The trap: *all* experts have to be in memory, however few a token uses.


# %% exercise="fits" section="Three counts, three questions"
def kv_bytes(config: Config, length: int, batch: int = 1, bits: int = 16) -> int:
    """Bytes of the cache of `batch` texts of `length` positions, each number in `bits` bits."""
    ### BEGIN SOLUTION
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8
    ### END SOLUTION


def fits(
    config: Config, memory: float, length: int, batch: int = 1, weight_bits: float = 16, kv_bits: int = 16
) -> dict[str, int | bool]:
    """Weights, cache and activations in bytes, whether they fit into `memory`, and how many texts would."""
    ### BEGIN SOLUTION
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}
    ### END SOLUTION


# %% check="fits" points=5
size = kv_bytes(tiny, 1)
assert type(size) is int, f"kv_bytes should return an int, not a {type(size).__name__}."
assert size == 8, f"One layer with one head of a key and a value of 2 numbers, 2 bytes each: 8 bytes, not {size}."
size = kv_bytes({**tiny, "model_type": "mistral", "sliding_window": 3}, 10)
assert size == 24, f"Behind a window of 3 only 3 of 10 positions are kept, 24 bytes, not {size}."
answer = fits(tiny, 1000, 1)
assert isinstance(answer, dict), f"fits should return a dict, not {type(answer).__name__}."
keys = ["activations", "batch", "cache", "fits", "total", "weights"]
assert sorted(answer) == keys, f"The dict should have the keys {keys}, not {sorted(answer)}."
assert answer["weights"] == 352, f"176 parameters of 2 bytes are 352 bytes, not {answer['weights']}."
assert answer["activations"] == 2 * (2 * 4 + 2 * 3) + 4 * 10, (
    f"One token with two vectors of 4 and twice 3 hidden channels, and 10 logits, take 68, not {answer['activations']}."
)
assert answer["batch"] == 8, f"648 bytes are left, and a text takes 76: 8 texts, not {answer['batch']}."
print("The visible checks of fits pass.")

# %% see="fits"
# How many conversations of 8,192 tokens does one card of 80 GiB hold?
try:
    room = {
        name: [fits(config, 80 * 2**30, 8192, weight_bits=bits) for bits in (16, 4.127)]
        for name, config in CONFIGS.items()
        if name != "GPT-2 small"  # its table of positions ends at 1,024
    }
    print(f"{'':16}{'weights, GiB':>14}{'a text, GiB':>14}{'texts':>8}{'with 4-bit weights':>20}")
    for name, (wide, narrow) in room.items():
        text = (wide["cache"] + wide["activations"]) / 2**30
        print(f"{name:16}{wide['weights'] / 2**30:14,.1f}{text:14.2f}{wide['batch']:8}{narrow['batch']:20}")
except NotImplementedError:
    print("Finish parameters, kv_bytes and fits first, then run this cell again.")


# %% stand_in="decode_roofline, energy_and_cost"
from __main__ import read as sizes_of  # noqa: E402  # the set-up cell's


def parameters(config):
    s = sizes_of(config)
    d, two = s.d_model, s.gated + 2

    def mlp(h):
        return two * d * h + ("mlp" in s.biases) * (h * (two - 1) + d)

    if s.latent:
        m = s.latent
        rest = d * (m.kv_rank + m.d_rope) + m.kv_rank + s.n_heads * m.kv_rank * (m.d_nope + m.d_value)
        rest += s.n_heads * m.d_value * d
        q = s.n_heads * (m.d_nope + m.d_rope)
        rest += q * d if m.q_rank is None else m.q_rank * d + m.q_rank + m.q_rank * q
    else:
        q, kv = s.d_head * s.n_heads, s.d_head * s.n_kv_heads
        rest = d * q + d * kv + d * kv + q * d + ("qkv" in s.biases) * (q + kv + kv) + ("o" in s.biases) * d
        rest += s.sinks * s.n_heads + s.qk_norm * 2 * s.d_head
    rest = rest * s.n_layers + mlp(s.d_hidden) * (s.n_layers - s.n_sparse)
    rest += s.norm * d * (s.norms * s.n_layers + 1 + s.tokens_norm) + s.n_positions * d
    rest += s.vocabulary * d * (1 if s.tied else 2) + s.vocabulary * ("head" in s.biases)
    if s.n_sparse:
        rest += s.n_sparse * (s.n_experts * d + s.n_experts * ("router" in s.biases))
        rest += s.n_sparse * mlp(s.d_shared) * (s.d_shared > 0)
    return tuple(rest + s.n_sparse * n * mlp(s.d_expert) for n in (s.n_experts, s.top_k))


def flops_per_token(config, context, training=False):
    s, n = sizes_of(config), parameters(config)[1]
    n -= s.n_positions * s.d_model
    if not s.tied:
        n -= s.vocabulary * s.d_model
    wide = 2 * s.d_head if s.latent is None else s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    for w in s.windows:
        n += s.n_heads * wide * (context if w is None else min(w, context))
    return (6 if training else 2) * n


def kv_bytes(config, length, batch=1, bits=16):
    s = sizes_of(config)
    kept = sum(length if w is None else min(w, length) for w in s.windows)
    return (
        batch
        * kept
        * (2 * s.d_head * s.n_kv_heads if s.latent is None else s.latent.kv_rank + s.latent.d_rope)
        * bits
        // 8
    )


# %% [markdown]
# ## 4 · `decode_roofline` ●●○
#
# How fast can it write? In every step the machine has to *fetch* numbers and to *compute* with them. Both can happen at
# the same time, so the step takes at least as long as the slower of the two. This bound is called the roofline.
#
# `decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16)`: `batch` texts write one token
# each, which attends to `context` positions, itself among them. `bandwidth` is in bytes a second, `peak` in FLOPs a
# second. It returns a dict:
#
# | key | |
# |---|---|
# | `"bytes"` | float: what is fetched in one step |
# | `"flops"` | int: `batch` times `flops_per_token` |
# | `"seconds"` | float: the larger of bytes / bandwidth and FLOPs / peak |
# | `"tokens_per_second"` | float: of all texts together |
# | `"bound"` | `"memory"` if fetching takes at least as long as computing, else `"compute"` |
#
# What is fetched:
#
# - each weight that computes, **once a step** however many texts there are, in `weight_bits` bits. What is only looked
#   up (part 2) is not fetched, but for a row a token, which you leave out;
# - of the experts those that somebody needs. One text needs `top_k` of `n_experts`. With several, count what is to be
#   expected if each text chose at random: an expert is spared by one text with probability $1 - k/E$, and by $B$ texts
#   with probability $(1 - k/E)^B$. So $E\,(1 - (1 - k/E)^B)$ experts are fetched in a layer;
# - the caches of all texts, `kv_bytes` with `kv_bits` bits.
#
# A hint: `parameters` tells how much `n_experts - top_k` experts of all layers weigh together. `n_experts` may be equal
# to `top_k`.


# %% exercise="decode_roofline" section="Waiting for memory"
def decode_roofline(
    config: Config,
    batch: int,
    context: int,
    bandwidth: float,
    peak: float,
    weight_bits: float = 16,
    kv_bits: int = 16,
) -> dict[str, Any]:
    """What a step of `batch` texts has to fetch and to compute, and how long it takes at least.

    Source: Williams et al. 2009 (doi 10.1145/1498765.1498785).
    """
    ### BEGIN SOLUTION
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }
    ### END SOLUTION


# %% check="decode_roofline" points=4
answer = decode_roofline(tiny, 1, 1, bandwidth=280.0, peak=1e9)
assert isinstance(answer, dict), f"decode_roofline should return a dict, not {type(answer).__name__}."
keys = ["bound", "bytes", "flops", "seconds", "tokens_per_second"]
assert sorted(answer) == keys, f"The dict should have the keys {keys}, not {sorted(answer)}."
assert math.isclose(answer["bytes"], 280), (
    f"136 weights of 2 bytes and a cache of 8 bytes are fetched, 280 bytes, not {answer['bytes']}."
)
assert math.isclose(answer["seconds"], 1), f"At 280 bytes a second that takes a second, not {answer['seconds']}."
assert answer["bound"] == "memory", f"Fetching takes longer here than computing, so the bound is not {answer['bound']}."
two = decode_roofline(mixture, 2, 1, bandwidth=1.0, peak=1e9)["bytes"]
one = decode_roofline(mixture, 1, 1, bandwidth=1.0, peak=1e9)["bytes"]
assert math.isclose(two - one, 8 + 1.2 * 36 * 2), (
    f"A second text adds a cache of 8 bytes and 1.2 experts of 36 weights, 94.4 bytes in all, not {two - one:.1f}."
)
print("The visible checks of decode_roofline pass.")

# %% see="decode_roofline"
# A card with 3.35 TB/s and 989 TFLOP/s. A batch is nearly free as long as the weights are what is fetched.
try:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3.2), facecolor="white")
    batches = [2**i for i in range(11)]
    styles = {"LLaMA 7B": "-", "Mistral 7B v0.1": "--", "Mixtral 8x7B": "-.", "gpt-oss-20b": ":"}
    for (name, style), colour in zip(styles.items(), ("#0072B2", "#E69F00", "#CC79A7", "#009E73"), strict=True):
        speeds = [decode_roofline(CONFIGS[name], b, 2048, 3.35e12, 989e12)["tokens_per_second"] for b in batches]
        ax.plot(batches, speeds, style, color=colour, label=name)
    ax.set(xscale="log", yscale="log", xlabel="texts side by side", ylabel="tokens a second, at most")
    ax.set_title("Sharing keys lets a batch grow")
    ax.legend(fontsize=8)
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish parameters, flops_per_token, kv_bytes and decode_roofline first, then run this cell again.")

# %% [markdown]
# ## 5 · `energy_and_cost` ●○○
#
# What does training take? `energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0)` returns
# a dict:
#
# | key | |
# |---|---|
# | `"flops"` | of training on `tokens` tokens, each of which attends to `context` positions on average |
# | `"device_hours"` | a device does `peak` FLOPs a second at best, and reaches the share `mfu` of it |
# | `"kwh"` | each device takes `watts` watts, and the building `pue` times what its devices take |
# | `"kg_co2"` | at `carbon` kilograms of CO₂ a kilowatt-hour |
# | `"cost"` | at `price` for a device-hour, in whatever currency that is |
#
# `mfu` stands for *model FLOPs utilisation*, `pue` for *power usage effectiveness*.
#
# All values are numbers. With `context=0` the FLOPs are the well-known rule $6ND$: six for each parameter that computes
# and each token. How many devices there are does not matter: twice as many need half the hours.


# %% exercise="energy_and_cost" section="What did training take?"
def energy_and_cost(
    config: Config,
    tokens: int,
    *,
    peak: float,
    mfu: float,
    watts: float,
    pue: float,
    carbon: float,
    price: float,
    context: int = 0,
) -> dict[str, float]:
    """What training on `tokens` tokens takes: FLOPs, device-hours, kWh, kg of CO₂, money.

    Source of the rule 6ND: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1.
    """
    ### BEGIN SOLUTION
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}
    ### END SOLUTION


# %% check="energy_and_cost" points=2
bill = energy_and_cost(tiny, 1000, peak=816.0, mfu=0.5, watts=500.0, pue=1.2, carbon=0.4, price=3.0)
assert isinstance(bill, dict), f"energy_and_cost should return a dict, not {type(bill).__name__}."
keys = ["cost", "device_hours", "flops", "kg_co2", "kwh"]
assert sorted(bill) == keys, f"The dict should have the keys {keys}, not {sorted(bill)}."
assert bill["flops"] == 816_000, f"6 FLOPs for each of 136 weights and 1,000 tokens are 816,000, not {bill['flops']}."
assert math.isclose(bill["device_hours"], 2000 / 3600), (
    f"At half of 816 FLOPs a second that takes 2,000 seconds, 0.556 hours, not {bill['device_hours']:.3f}."
)
print("The visible checks of energy_and_cost pass.")

# %% see="energy_and_cost"
# 2 trillion tokens on cards of 312 TFLOP/s and 400 W that are used to 40 %. Where does the electricity come from?
try:
    settings = {"peak": 312e12, "mfu": 0.4, "watts": 400, "pue": 1.1, "price": 2.0}
    for name in ("Qwen3 8B", "LLaMA 7B", "Mixtral 8x7B", "DeepSeek-V3"):
        clean, coal = (energy_and_cost(CONFIGS[name], 2 * 10**12, carbon=carbon, **settings) for carbon in (0.06, 0.9))
        print(
            f"{name:12}{clean['device_hours']:>12,.0f} device-hours{clean['kwh'] / 1000:>10,.0f} MWh"
            f"{clean['kg_co2'] / 1000:>9,.0f} t of CO₂, or {coal['kg_co2'] / 1000:,.0f} t"
        )
except NotImplementedError:
    print("Finish parameters, flops_per_token and energy_and_cost first, then run this cell again.")

# %% [markdown]
# ## 6 · `recommend` ●●○
#
# Which one? No calculator knows how *good* a model is at your work; only a test on your own examples tells. But most
# models can be ruled out before any test, and for reasons that can be written down. `recommend(models, need)` does
# that.
#
# A model is a dict. A need is a dict as well:
#
# | a model's key | | | a need's key | |
# |---|---|---|---|---|
# | `"name"` | str | | `"task"` | a key of `TASKS` |
# | `"shape"` | `"encoder"`, `"decoder"` or `"encoder-decoder"` | | `"memory"` | bytes that there are |
# | `"parameters"` | int, total | | `"bandwidth"` | bytes a second |
# | `"active"` | int | | `"tokens_per_second"` | what one text must reach |
# | `"kv_bytes"` | int, bytes for one token | | `"context"` | tokens of the longest text |
# | `"context"` | int, the longest text that it can read | | `"languages"` | a set of codes such as `"ja"` |
# | `"languages"` | a set of codes | | `"use"` | `"commercial"` or `"research"` |
# | `"licence"` | str | | `"weight_bits"` | bits of a weight when it is used |
# | `"uses"` | a set of what the licence allows | | `"adaptation"` | a key of `ADAPTATION` |
#
# A model may fail for seven reasons, in this order. For each that fails there are two values: what was *asked*, and
# what is *there*.
#
# | reason | the model fails if | asked | there |
# |---|---|---|---|
# | `"task"` | its shape is not in `TASKS[task]` | `TASKS[task]` | its shape |
# | `"memory"` | parameters · weight_bits / 8 + context · kv_bytes is above the memory | those bytes | the memory |
# | `"speed"` | bandwidth / (active · weight_bits / 8 + context · kv_bytes) is too low | tokens a second | that bound |
# | `"context"` | the need's context is more than its own | the need's | its own |
# | `"languages"` | it lacks a language of the need | those that it lacks | its languages |
# | `"licence"` | the use is not in its `"uses"` | the use | its licence |
# | `"adaptation"` | parameters · `ADAPTATION[adaptation]` is more than the memory | those bytes | the memory |
#
# `context` in these formulas is the need's. Languages are given as sorted lists.
#
# `recommend` returns a list with one dict for each model:
#
# - `"name"`;
# - `"reasons"`: a dict from the reasons that fail, in the order above, to `(asked, there)`. Empty if nothing fails;
# - `"bytes"`: the bytes of the row `"memory"`, whether they fit or not.
#
# Models without a reason against them come first, in order of `"bytes"`: the first of them is the cheapest that does.
# Then come the others: those with fewer reasons first, and those with equally many in order of `"bytes"`. Models that
# are alike in all this stay in the order in which they were given.
#
# - `TASKS` and `ADAPTATION` are in the set-up cell.
# - The trap: stop at the first reason, and whoever asks learns only after the second attempt that buying memory was in
#   vain.


# %% exercise="recommend" section="Six questions, in this order"
def recommend(models: Sequence[Mapping[str, Any]], need: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every model with the reasons against it, (asked, there) each; the cheapest without any comes first."""

    ### BEGIN SOLUTION
    def judged(model: Mapping[str, Any]) -> dict[str, Any]:
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))
    ### END SOLUTION


# %% check="recommend" points=5
shelf = [
    {"name": "small", "shape": "decoder", "parameters": 1000, "active": 1000, "kv_bytes": 2, "context": 100}
    | {"languages": {"en"}, "licence": "Apache 2.0", "uses": {"commercial", "research"}},
    {"name": "large", "shape": "decoder", "parameters": 9000, "active": 2000, "kv_bytes": 4, "context": 900}
    | {"languages": {"en", "ja"}, "licence": "for research", "uses": {"research"}},
]
wish: dict[str, Any] = {"task": "chat", "memory": 20_000, "bandwidth": 44_000, "tokens_per_second": 8, "context": 100}
wish |= {"languages": {"en"}, "use": "commercial", "weight_bits": 16, "adaptation": "none"}
answer = recommend(shelf, wish)
assert isinstance(answer, list), f"recommend should return a list, not {type(answer).__name__}."
names = [row["name"] for row in answer]
assert names == ["small", "large"], f"The small model does all that is asked, so it comes first, not {names}."
assert answer[0]["reasons"] == {}, f"There is no reason against the small model; yours says {answer[0]['reasons']}."
assert answer[0]["bytes"] == 2200, f"1,000 weights of 2 bytes and 100 tokens of 2 are 2,200, not {answer[0]['bytes']}."
assert set(answer[1]["reasons"]) == {"licence"}, f"Only the licence is against the large one: {answer[1]['reasons']}."
found = answer[1]["reasons"]["licence"]
assert found == ("commercial", "for research"), f"A reason says what was asked and what is there, not {found}."
print("The visible checks of recommend pass.")

# %% see="recommend"
# Your calculators fill the shelf, and your program chooses. What changes with 24 GiB, with Japanese, with full tuning?
FACTS: dict[str, tuple[int, set[str], str]] = {  # longest text, the languages that its makers put first, licence
    "GPT-2 small": (1024, {"en"}, "modified MIT"),
    "LLaMA 7B": (2048, {"en"}, "for research"),
    "Mistral 7B v0.1": (8192, {"en"}, "Apache 2.0"),
    "Qwen3 8B": (32768, {"en", "ja", "zh", "fr", "de"}, "Apache 2.0"),
    "Mixtral 8x7B": (32768, {"en", "fr", "de", "es", "it"}, "Apache 2.0"),
    "gpt-oss-20b": (131072, {"en"}, "Apache 2.0"),
}
try:
    shelf = []
    for name, (longest, languages, licence) in FACTS.items():
        total, active = parameters(CONFIGS[name])
        row = {"name": name, "shape": "decoder", "parameters": total, "active": active, "context": longest}
        row |= {"kv_bytes": kv_bytes(CONFIGS[name], 1), "languages": languages, "licence": licence}
        shelf.append(row | {"uses": {"research"} | (set() if "research" in licence else {"commercial"})})
    wish = {"task": "chat", "memory": 24 * 2**30, "bandwidth": 1e12, "tokens_per_second": 20, "context": 8192}
    wish |= {"languages": {"en"}, "use": "commercial", "weight_bits": 16, "adaptation": "qlora"}
    for row in recommend(shelf, wish):
        print(
            f"{row['name']:16}{row['bytes'] / 2**30:8.1f} GiB  {'; '.join(row['reasons']) or 'does all that was asked'}"
        )
except NotImplementedError:
    print("Finish parameters, kv_bytes and recommend first, then run this cell again.")

# %% [markdown]
# You can read a model's bill off a page of JSON now. What no calculator can tell is whether the answers are good: take
# the first two or three of the list, and let them do a hundred examples of *your* work.
#
# In chapter 23 these functions write the bill of a model that is wholly yours.
