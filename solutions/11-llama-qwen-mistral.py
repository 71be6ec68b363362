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
#     assignment: 11-llama-qwen-mistral
# ---

# %% [markdown]
# # 11 · One decoder: LLaMA, Qwen, Mistral
#
# **One question: what makes LLaMA LLaMA, and how far from it are Qwen and Mistral?**
#
# The three families have filled newspapers. Their code fits one class. You will write that class, and then the part
# that nobody talks about: what stands in the folder that you download, and how the numbers in it get into a model
# without a mistake and without running a stranger's program.
#
# At the end your own code reads what these families publish. The page of the book that goes with this notebook is
# `book/11-llama-qwen-mistral`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `read_config` | ●●○ | 20 | 4 |
# | `rope_frequencies` | ●●○ | 10 | 3 |
# | `Attention` | ●●● | 30 | 6 |
# | `Decoder` | ●●○ | 20 | 4 |
# | `read_safetensors` | ●●○ | 15 | 3 |
# | `load_hf` | ●●● | 25 | 5 |
#
# ## Conventions
#
# - **A mask is boolean, and `True` means "may attend"**, or "is a real token" where it belongs to a text. A position
#   that may attend to nothing gets zeros from attention.
# - **Shapes** are written as jaxtyping writes them. Token ids are integers of shape `(batch, n)`, and what runs through
#   the model has the shape `(batch, n, d_model)`.
# - **State dicts** have the names that a part states, and nothing else. Weights are stored as `nn.Linear` stores them.
# - **What comes in goes out**: the result has the dtype of the weights, and an input is never changed in place.
# - **There is no dropout** anywhere.
#
# You built attention, RoPE, SwiGLU, RMSNorm, the cache and grouped queries in earlier chapters. Here
# `F.scaled_dot_product_attention`, `F.silu` and `nn.RMSNorm` may do that work.
#
# The set-up cell gives you five things. `DecoderConfig` is what a model of these families is, in numbers. `Cache` keeps
# keys and values, `generate` writes with it. `as_safetensors` and `write_folder` make small checkpoints to try things
# on.

# %% role="set-up"
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class RopeScaling:
    """How LLaMA 3.1 stretches RoPE beyond the length of the texts that it was first trained on."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder. The defaults are LLaMA's; a window of None sees everything, and `()` means None everywhere."""

    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_hidden: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    tied: bool = False


class Cache:
    """Keys and values of all positions so far, for each layer. A layer asks with its own number how many there are."""

    def __init__(self) -> None:
        self.kept: dict[int, list[Tensor]] = {}

    def length(self, layer: int) -> int:
        return self.kept[layer][0].shape[2] if layer in self.kept else 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new positions, and return those of all."""
        old = self.kept.get(layer, [k[:, :, :0], v[:, :, :0]])
        self.kept[layer] = [torch.cat(pair, 2) for pair in zip(old, (k, v), strict=True)]
        return self.kept[layer][0], self.kept[layer][1]


@torch.no_grad()
def generate(model: nn.Module, ids: Tensor, n_new: int, mask: Tensor | None = None) -> Tensor:
    """The likeliest token, n_new times: the prompt goes in once, and then only what is new."""
    cache, found = Cache(), []
    for _ in range(n_new):
        ids = model(ids, mask, cache)[:, -1:].argmax(-1)
        found.append(ids)
        mask = mask if mask is None else F.pad(mask, (0, 1), value=True)
    return torch.cat(found, 1)


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """What a .safetensors file with these tensors holds."""
    header, data = {}, b""
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    for name, value in tensors.items():
        piece = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(piece)]
        header[name] = {"dtype": kinds[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        data += piece
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_folder(files: Mapping[str, bytes]) -> str:
    """A folder with these files, by name; the same files are always in the same folder."""
    folder = Path(tempfile.gettempdir()) / f"ichimon-{zlib.crc32(repr(sorted(files.items())).encode()):08x}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return str(folder)


# %% [markdown]
# ## 1 · `read_config` ●●○
#
# Beside the weights lies a `config.json`. It says what the model is, in the words of whoever saved it, and in the year
# in which they did. Your first task is to read four families' words into one `DecoderConfig`.
#
# `read_config(config)` takes the dict that stands in the file.
#
# | field | key | if it is absent or null |
# |---|---|---|
# | `vocabulary`, `d_model` | `vocab_size`, `hidden_size` | |
# | `n_layers`, `n_heads` | `num_hidden_layers`, `num_attention_heads` | |
# | `d_hidden` | `intermediate_size` | |
# | `norm_eps` | `rms_norm_eps` | |
# | `n_kv_heads` | `num_key_value_heads` | as many as heads (LLaMA 1 had no groups) |
# | `d_head` | `head_dim` | `d_model // n_heads` |
# | `tied` | `tie_word_embeddings` | false |
#
# **RoPE.** Newer files have one dict `rope_parameters` with `rope_theta`, `rope_type` and the numbers of that type.
# Older ones have `rope_theta` at the top, and beside it `rope_scaling`: null, or a dict with the type (under
# `rope_type`, or in the oldest under `type`) and its numbers. No `rope_theta` anywhere means 10 000. The type
# `default`, or none at all, means no scaling. The type `llama3` is a `RopeScaling`, from the keys `factor`,
# `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`. `norm_eps`, `rope_theta` and the three
# factors are floats, even where the file has an integer.
#
# **Bias and norm.** Qwen2 has a bias on queries, keys and values (`qkv_bias`), Qwen3 a norm on queries and keys
# (`qk_norm`), and no file says so: only `model_type` does.
#
# **Windows.** `windows` is a tuple with one entry a layer: an int, or `None`.
#
# - `mistral`: `sliding_window` holds for every layer; null, or absent, means none.
# - `qwen2` and `qwen3`: only if `use_sliding_window` is true. Then the layers from number `max_window_layers` on have
#   the window `sliding_window`, and those before it none. Newer files say it layer by layer, in `layer_types`, a list
#   of `"sliding_attention"` and `"full_attention"`; where that list is, it decides. Files that do not use windows often
#   have a number in `sliding_window` all the same. That is the trap.
# - `llama`: never.
#
# **What the decoder cannot do** must be refused, not passed over: a model that is nearly right still talks. Each of
# these is a `ValueError` whose sentence names the key and the value that it found there:
#
# - a `model_type` other than `llama`, `mistral`, `qwen2`, `qwen3`, or none;
# - another type of RoPE scaling (name the type; the key may be left out);
# - `hidden_act` other than `silu` (absent means `silu`);
# - `attention_bias` or `mlp_bias` that is true.
#
# Other keys say nothing about the architecture. The dict belongs to the caller.


# %% exercise="read_config" section="One block, and what was added to it"
def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json of the families llama, mistral, qwen2 and qwen3 describes.

    Raises ValueError for another family, and for what this decoder does not do.
    """
    ### BEGIN SOLUTION
    family = config.get("model_type")
    if family not in ("llama", "mistral", "qwen2", "qwen3"):
        raise ValueError(f"model_type is {family!r}, and this decoder knows llama, mistral, qwen2 and qwen3")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r}, and this decoder has silu")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is {config[key]!r}, and this decoder has no such biases")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise ValueError(f"the type of RoPE scaling is {kind!r}, and this decoder knows llama3 only")
    scaling = None
    if kind == "llama3":
        factors = [float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")]
        scaling = RopeScaling(*factors, original_length=rope["original_max_position_embeddings"])
    n_layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if family == "mistral":
        windows = (window,) * n_layers
    elif family != "llama" and config.get("use_sliding_window"):
        kinds = config.get("layer_types")
        if not kinds:
            full = config["max_window_layers"]
            kinds = ["sliding_attention" if i >= full else "full_attention" for i in range(n_layers)]
        windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    else:
        windows = (None,) * n_layers
    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n_layers,
        n_heads=config["num_attention_heads"],
        n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        d_head=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000),
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        windows=windows,
        tied=bool(config.get("tie_word_embeddings")),
    )
    ### END SOLUTION


# %% check="read_config" points=4
old = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
found = read_config(old)
assert isinstance(found, DecoderConfig), f"read_config should return a DecoderConfig, not a {type(found).__name__}."
assert (found.n_kv_heads, found.d_head) == (32, 128), (
    f"LLaMA 1 names neither groups nor a head size: n_kv_heads {found.n_kv_heads} and d_head {found.d_head} are not "
    "what follows from its 32 heads and 4096 channels."
)
assert found.rope_theta == 10_000, f"No rope_theta anywhere means 10 000, not {found.rope_theta}."
assert len(found.windows) == 32, f"windows should have one entry a layer, 32, and has {len(found.windows)}."
newer = old | {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
assert set(read_config(newer).windows) == {None}, "This Qwen2 does not use its window: every entry should be None."
assert read_config(newer).qkv_bias, "Qwen2 has a bias on queries, keys and values."
try:
    read_config(old | {"model_type": "bert"})
    told = "nothing was raised"
except ValueError as error:
    told = str(error)
assert "bert" in told, f"A config of the family bert should raise a ValueError that names it: {told}"
print("The visible checks of read_config pass.")

# %% see="read_config"
# Five published models in one class. What stands in their config.json is shortened to what is read.
try:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    published = {
        "Llama-2-7B": dict(
            zip(sizes, (32000, 4096, 32, 32, 11008), strict=True), model_type="llama", rms_norm_eps=1e-5
        ),
        "Llama-3.1-8B": dict(
            zip(sizes, (128256, 4096, 32, 32, 14336), strict=True),
            model_type="llama",
            rms_norm_eps=1e-5,
            num_key_value_heads=8,
            rope_theta=500000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        "Mistral-7B-v0.1": dict(
            zip(sizes, (32000, 4096, 32, 32, 14336), strict=True),
            model_type="mistral",
            rms_norm_eps=1e-5,
            num_key_value_heads=8,
            sliding_window=4096,
        ),
        "Qwen2-7B": dict(
            zip(sizes, (152064, 3584, 28, 28, 18944), strict=True),
            model_type="qwen2",
            rms_norm_eps=1e-6,
            num_key_value_heads=4,
            rope_theta=1000000.0,
            use_sliding_window=False,
            sliding_window=131072,
            max_window_layers=28,
        ),
        "Qwen3-8B": dict(
            zip(sizes, (151936, 4096, 36, 32, 12288), strict=True),
            model_type="qwen3",
            rms_norm_eps=1e-6,
            num_key_value_heads=8,
            head_dim=128,
            rope_theta=1000000,
            use_sliding_window=False,
            sliding_window=None,
            max_window_layers=36,
        ),
    }
    families = {name: read_config(config) for name, config in published.items()}
    for name, config in families.items():
        window = config.windows[0]
        parts = ["bias on q, k, v"] * config.qkv_bias + ["norm on q, k"] * config.qk_norm
        parts += [f"window {window}"] * (window is not None) + ["stretched RoPE"] * (config.rope_scaling is not None)
        groups = f"{config.n_heads} heads share {config.n_kv_heads} keys"
        print(f"{name:>16}: {groups}, θ = {config.rope_theta:,.0f}; {', '.join(parts) or 'nothing else'}")
except NotImplementedError:
    print("Finish read_config first, then run this cell again.")

# %% [markdown]
# ## 2 · `rope_frequencies` ●●○
#
# RoPE turns the pair of channels number $i$ of a head by an angle: position times frequency. The plain frequencies are
#
# $$\omega_i = \theta^{-2i/d_\mathrm{head}} \qquad i = 0 \ldots d_\mathrm{head}/2 - 1$$
#
# A pair comes round once in $\lambda_i = 2\pi/\omega_i$ positions, its wavelength. LLaMA 3 was trained on texts of 8192
# tokens. LLaMA 3.1 reads sixteen times as much, and so turns its slow pairs more slowly. With factor $s$, the
# factors $l$ (low) and $h$ (high), and the original length $T$:
#
# - A pair with a wavelength below $T/h$ came round often within the old length. It stays as it is.
# - A pair with a wavelength above $T/l$ never came round. It turns $s$ times more slowly: $\omega_i/s$.
# - Between the two it is a mixture, $(1-m)\,\omega_i/s + m\,\omega_i$ with $m = (T/\lambda_i - l)/(h - l)$.
#
# `rope_frequencies(d_head, theta, scaling=None)` returns the `d_head / 2` frequencies as a float32 tensor. `d_head` is
# even, and `d_head / 2` may well be odd. `scaling` is a `RopeScaling`, or `None` for the plain frequencies.


# %% exercise="rope_frequencies" section="Stretched RoPE"
def rope_frequencies(d_head: int, theta: float, scaling: RopeScaling | None = None) -> Float[Tensor, "half"]:
    """Radians a position for each pair of channels, stretched as in LLaMA 3.1 if there is a scaling.

    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2; Grattafiori et al. 2024 (arXiv 2407.21783).
    """
    ### BEGIN SOLUTION
    frequencies = theta ** (-torch.arange(0, d_head, 2).float() / d_head)
    if scaling is None:
        return frequencies
    turns = scaling.original_length * frequencies / (2 * math.pi)
    mixed = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    mixed = mixed.clamp(0, 1)
    return (1 - mixed) * frequencies / scaling.factor + mixed * frequencies
    ### END SOLUTION


# %% check="rope_frequencies" points=3
plain = rope_frequencies(8, 10_000.0)
assert plain.shape == (4,), f"Heads of 8 channels have 4 pairs: the shape should be (4,), not {tuple(plain.shape)}."
assert plain.dtype == torch.float32, f"The frequencies should be float32, not {plain.dtype}."
assert plain[0] == 1, f"Pair 0 turns by one radian a position, not by {plain[0]}."
assert torch.allclose(plain[1] / plain[2], torch.tensor(10.0)), (
    "With θ = 10 000 and 4 pairs, each pair should turn ten times more slowly than the one before it."
)
stretched = rope_frequencies(8, 10_000.0, RopeScaling(8.0, 1.0, 4.0, 8192))
assert torch.equal(stretched[:1], plain[:1]), "The fastest pair should stay as it is."
assert (stretched <= plain).all(), "Stretching should make no pair faster."
print("The visible checks of rope_frequencies pass.")

# %% see="rope_frequencies"
# The 64 pairs of a head of LLaMA 3.1: after how many positions does each come round?
try:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    for label, scaling, style in (
        ("LLaMA 3", None, {"color": "#0072B2"}),
        ("LLaMA 3.1", RopeScaling(8.0, 1.0, 4.0, 8192), {"color": "#D55E00", "linestyle": "--"}),
    ):
        ax.plot(2 * math.pi / rope_frequencies(128, 500_000.0, scaling), label=label, **style)
    ax.axhspan(8192 / 4, 8192, color="#999999", alpha=0.3, linewidth=0)
    ax.set(yscale="log", xlabel="pair of channels", ylabel="wavelength (positions)", title="Only the slow pairs change")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish rope_frequencies first, then run this cell again.")

# %% [markdown]
# ## 3 · `Attention` ●●●
#
# Here the families differ, and nowhere else: LLaMA has groups, Qwen2 adds a bias, Qwen3 two norms, Mistral a window.
# One class can do all of it.
#
# `Attention(config, layer)` is the self-attention of layer number `layer`. Its state dict has exactly these entries:
#
# | name | shape | |
# |---|---|---|
# | `q_proj.weight` | `(n_heads · d_head, d_model)` | |
# | `k_proj.weight`, `v_proj.weight` | `(n_kv_heads · d_head, d_model)` | |
# | `o_proj.weight` | `(d_model, n_heads · d_head)` | |
# | `q_proj.bias`, `k_proj.bias`, `v_proj.bias` | as many as rows | only with `qkv_bias` |
# | `q_norm.weight`, `k_norm.weight` | `(d_head,)` | only with `qk_norm` |
#
# `d_head` is what the config says, and need not be `d_model / n_heads`. There are no other biases.
#
# `forward(x, mask=None, cache=None)` takes `x` of shape `(batch, n, d_model)` and returns the same shape.
#
# - **Heads.** Head 0 has the first `d_head` channels of its projection, head 1 the next, and so on. Query head `i`
#   reads key head `i // (n_heads // n_kv_heads)`. Scores are divided by the root of `d_head`.
# - **QK-norm** is an RMSNorm over the `d_head` channels of each head, with eps `norm_eps`, *before* RoPE.
# - **RoPE** turns queries and keys in the half-split layout: channel `c` pairs with channel `c + d_head / 2`, and the
#   pair `(a, b)` becomes `(a cos φ − b sin φ, b cos φ + a sin φ)`, where φ is position times frequency. Frequencies,
#   angles, cosines and sines are float32, whatever the model was cast to; only then are cosines and sines cast.
# - **Causal.** A position sees itself and what is before it. With a window $W$ in `config.windows[layer]` it sees the
#   last $W$ positions, itself included.
# - **`mask`** of shape `(batch, length)` says which tokens of the text are real. Texts of different length are padded
#   *on the left*. Nobody attends to padding, and positions are counted from the first real token: it stands at 0. What
#   stands on padding gets zeros. Without a mask all are real.
# - **`cache`**: `x` is then a chunk, and comes behind the `cache.length(layer)` positions of this layer that the cache
#   holds. Call `cache.update(layer, k, v)` once, with the new keys after RoPE and the new values, each of shape
#   `(batch, n_kv_heads, n, d_head)`. The `length` of the mask is then past and chunk together. A layer keeps nothing
#   itself.
#
# Call `rope_frequencies` by its name. When this part is marked, a right one stands in for yours.


# %% exercise="Attention" section="The mathematics"
class Attention(nn.Module):
    """Causal self-attention of LLaMA, Qwen2, Qwen3 and Mistral: grouped queries, RoPE, and what a config adds."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.config, self.layer = config, layer
        d_q, d_kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, d_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(d_q, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.d_head, config.norm_eps)
            self.k_norm = nn.RMSNorm(config.d_head, config.norm_eps)
        ### END SOLUTION

    def forward(
        self,
        x: Float[Tensor, "batch n d_model"],
        mask: Bool[Tensor, "batch length"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position of the chunk attends to the real tokens before it and to itself, as far as its window."""
        ### BEGIN SOLUTION
        config, n = self.config, x.shape[1]
        past = cache.length(self.layer) if cache else 0
        if mask is None:
            mask = torch.ones(1, past + n, dtype=torch.bool, device=x.device)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, config.d_head)).transpose(1, 2) for proj in projections)
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, None, past:, None]
        frequencies = rope_frequencies(config.d_head, config.rope_theta, config.rope_scaling).to(x.device)
        angles = positions * torch.cat([frequencies, frequencies])
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k = (part * cos + self.turned(part) * sin for part in (q, k))
        if cache:
            k, v = cache.update(self.layer, k, v)
        i, j = torch.arange(past, past + n, device=x.device)[:, None], torch.arange(past + n, device=x.device)
        may = (j <= i) & mask[:, None, None]
        window = config.windows[self.layer] if config.windows else None
        if window is not None:
            may = may & (j > i - window)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=may, enable_gqa=True)
        return self.o_proj(heads.transpose(1, 2).flatten(2))

    @staticmethod
    def turned(part: Tensor) -> Tensor:
        """Each pair (a, b) by a quarter turn: (−b, a)."""
        a, b = part.chunk(2, -1)
        return torch.cat([-b, a], -1)
        ### END SOLUTION


# %% check="Attention" points=6
small = DecoderConfig(vocabulary=11, d_model=12, n_layers=1, n_heads=4, n_kv_heads=2, d_head=6, d_hidden=16)
layer = Attention(small, 0)
shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
wanted = {"q_proj.weight": (24, 12), "k_proj.weight": (12, 12), "v_proj.weight": (12, 12), "o_proj.weight": (12, 24)}
assert shapes == wanted, f"For this config the state dict should hold {wanted}, and it holds {shapes}."
x = torch.randn(2, 7, 12)
with torch.no_grad():
    whole = layer(x)
    assert whole.shape == x.shape, f"The output should have the shape of x, {tuple(x.shape)}, not {tuple(whole.shape)}."
    changed = x.clone()
    changed[:, 4] += 1
    assert torch.allclose(layer(changed)[:, :4], whole[:, :4], atol=1e-5), (
        "Position 4 changed, and a position before it noticed: attention should be causal."
    )
    cache = Cache()
    steps = torch.cat([layer(chunk, None, cache) for chunk in x.split((4, 1, 2), 1)], 1)
    assert torch.allclose(steps, whole, atol=1e-5), (
        f"In chunks with a cache the outputs should be those of the whole, and are off by up to "
        f"{(steps - whole).abs().max():.2g}."
    )
    padded = torch.cat([torch.randn(2, 3, 12), x], 1)
    real = torch.tensor([[False] * 3 + [True] * 7] * 2)
    assert torch.allclose(layer(padded, real)[:, 3:], whole, atol=1e-5), (
        "Three tokens of padding on the left should change nothing at the real tokens."
    )
    layer = Attention(DecoderConfig(11, 4, 1, n_heads=4, n_kv_heads=2, d_head=4, d_hidden=16, rope_theta=4.0), 0)
    x = torch.eye(4)  # head 0 of keys and values holds x, head 1 zeros
    parts = {"q": x.repeat(4, 1), "k": torch.eye(8, 4), "v": torch.eye(8, 4), "o": torch.eye(4, 16).roll(4, 1)}
    layer.load_state_dict({f"{name}_proj.weight": value for name, value in parts.items()})
    found = layer(x[None, [1, 3]])[0, 1, 1].item()
assert abs(found - 0.3231) < 1e-3, (
    "Token 0 is channel 1 and token 1 channel 3, a pair that turns by half a radian a position where θ is 4. In query "
    "head 1, which reads key head 0, token 1 should score −sin 0.5 / √4 with token 0 and 1 / √4 with itself: its share "
    f"of token 0 should be 0.3231, not {found:.4f}."
)
print("The visible checks of Attention pass.")

# %% stand_in="Attention"
import math  # noqa: E402

import torch  # noqa: E402


def rope_frequencies(d_head, theta, scaling=None):
    omega = torch.exp(torch.arange(d_head // 2) * (-2 * math.log(theta) / d_head))
    if scaling is None:
        return omega
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((scaling.original_length / (2 * math.pi / omega) - low) / (high - low)).clip(0, 1)
    return torch.lerp(omega / scaling.factor, omega, kept)


# %% see="Attention"
# One new layer each, and a text of twelve tokens. Yellow: if this token changed, would that position notice?
try:
    import matplotlib.pyplot as plt

    def notices(window: int | None, padding: int) -> Tensor:
        """Entry [i, j]: whether a change at j reaches the output at i."""
        torch.manual_seed(0)
        config = DecoderConfig(11, 16, 1, 4, 2, 4, 16, windows=(window,))
        layer, x = Attention(config, 0), torch.randn(1, 12, 16, requires_grad=True)
        y = layer(x, torch.arange(12)[None] >= padding)
        return torch.stack(
            [torch.autograd.grad(y[0, i].sum(), x, retain_graph=True)[0][0].norm(dim=-1) for i in range(12)]
        )

    fig, axes = plt.subplots(1, 3, figsize=(8, 3), facecolor="white")
    for ax, (title, window, padding) in zip(
        axes, (("LLaMA", None, 0), ("Mistral, a window of 4", 4, 0), ("LLaMA, 3 of padding", None, 3)), strict=True
    ):
        ax.imshow(notices(window, padding) > 0, cmap="cividis", vmin=0, vmax=1)
        ax.set(title=title, xlabel="token", xticks=[0, 5, 11], yticks=[0, 5, 11])
    axes[0].set(ylabel="position")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish Attention first, then run this cell again.")

# %% [markdown]
# ## 4 · `Decoder` ●●○
#
# The rest is the same in all of them. A block adds attention and then a SwiGLU to the stream, each behind an RMSNorm:
#
# $$h = x + \mathrm{attention}(\mathrm{norm}_1(x)) \qquad y = h + \mathrm{mlp}(\mathrm{norm}_2(h))
# \qquad \mathrm{mlp}(x) = W_\mathrm{down}\left(\mathrm{silu}(W_\mathrm{gate}\, x) \odot W_\mathrm{up}\, x\right)$$
#
# `Decoder(config)` looks tokens up, runs `n_layers` blocks, a last RMSNorm, and the head. There are no biases. The
# state dict has exactly:
#
# | name | shape |
# |---|---|
# | `tokens.weight` | `(vocabulary, d_model)` |
# | `blocks.i.norm1.weight`, `blocks.i.norm2.weight`, `norm.weight` | `(d_model,)`; eps is `norm_eps` |
# | `blocks.i.attention.…` | those of `Attention(config, i)` |
# | `blocks.i.mlp.gate_proj.weight`, `blocks.i.mlp.up_proj.weight` | `(d_hidden, d_model)` |
# | `blocks.i.mlp.down_proj.weight` | `(d_model, d_hidden)` |
# | `head.weight` | `(vocabulary, d_model)`; absent if the config is `tied`: then `tokens.weight` does its work |
#
# `forward(ids, mask=None, cache=None)` takes ids of shape `(batch, n)` and returns logits `(batch, n, vocabulary)`. It
# hands `mask` and `cache` to the attention of every block. Make `norm1`, `attention`, `norm2` and `mlp` modules of each
# block: if your model gives other numbers than ours, these are the places where we listen, to tell you where it began.
#
# Call `Attention(config, layer)` by its name. When this part is marked, a right one stands in for yours. The two
# helper classes are a proposal; only `Decoder` is marked.


# %% exercise="Decoder" section="One block, and what was added to it"
class SwiGLU(nn.Module):
    """gate_proj, up_proj and down_proj, without biases."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """Each position by itself."""
        ### BEGIN SOLUTION
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        ### END SOLUTION


class Block(nn.Module):
    """Attention and SwiGLU, each added to the stream, each with an RMSNorm before it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_hidden)
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Tensor | None, cache: Cache | None
    ) -> Float[Tensor, "batch n d_model"]:
        """What comes in, plus what the two sub-layers make of it."""
        ### BEGIN SOLUTION
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))
        ### END SOLUTION


class Decoder(nn.Module):
    """LLaMA, Qwen2, Qwen3 or Mistral, as the config says: token ids to the logits of the token that follows.

    Source: Touvron et al. 2023 (arXiv 2302.13971), section 2.2.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocabulary, bias=False)
        ### END SOLUTION

    def forward(
        self,
        ids: Int[Tensor, "batch n"],
        mask: Bool[Tensor, "batch length"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch n vocabulary"]:
        """The logits of the token that follows, at every position of the chunk."""
        ### BEGIN SOLUTION
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask, cache)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.head is None else self.head(x)
        ### END SOLUTION


# %% check="Decoder" points=4
small = DecoderConfig(vocabulary=11, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_hidden=10, tied=True)
model = Decoder(small)
parts = [f"mlp.{part}_proj" for part in ("gate", "up", "down")] + [f"attention.{letter}_proj" for letter in "qkvo"]
names = {f"blocks.{i}.{part}.weight" for i in range(2) for part in ("norm1", "norm2", *parts)}
names |= {"tokens.weight", "norm.weight"}
assert set(model.state_dict()) == names, (
    f"The state dict lacks {sorted(names - set(model.state_dict()))}, and has too many: "
    f"{sorted(set(model.state_dict()) - names)}."
)
assert "head.weight" in Decoder(DecoderConfig(**{**asdict(small), "tied": False})).state_dict(), (
    "A model that is not tied should have a head.weight."
)
ids = torch.randint(11, (2, 6))
with torch.no_grad():
    logits = model(ids)
    assert logits.shape == (2, 6, 11), f"The logits should have the shape (2, 6, 11), not {tuple(logits.shape)}."
    cache = Cache()
    steps = torch.cat([model(chunk, None, cache) for chunk in ids.split((3, 2, 1), 1)], 1)
assert torch.allclose(steps, logits, atol=1e-4), (
    f"In chunks with a cache the logits should be those of the whole, and are off by up to "
    f"{(steps - logits).abs().max():.2g}."
)
model = Decoder(DecoderConfig(1, 1, n_layers=1, n_heads=1, n_kv_heads=1, d_head=2, d_hidden=1, norm_eps=1.0))
for name, value in model.named_parameters():
    nn.init.constant_(value, 2.0 if "norm" in name else 1.0 if "gate" in name else 3.0 if "head" in name else 0.5)
found = model(torch.tensor([[0]])).item()
assert abs(found - 4.7888) < 1e-3, (
    "One token, one channel, norm_eps = 1, all gains 2, gate_proj 1, head 3 and every other weight 0.5: the formulas "
    f"give x = 0.5, h = 0.9472 and y = 1.3247, and the logit should be 4.7888, not {found:.4f}."
)
print("The visible checks of Decoder pass.")

# %% stand_in="Decoder"
import math  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.number = config, layer
        for letter, heads in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads)):
            linear = nn.Linear(config.d_model, heads * config.d_head, bias=config.qkv_bias)
            self.add_module(f"{letter}_proj", linear)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(config.d_head, config.norm_eps) for _ in range(2))

    def forward(self, x, mask=None, cache=None):
        c, batch, n = self.config, len(x), x.shape[1]
        before = 0 if cache is None else cache.length(self.number)
        real = torch.ones(batch, before + n, dtype=torch.bool) if mask is None else mask
        angles = ((real.cumsum(1) - 1).clip(0)[:, before:, None] * _omega(c)).unsqueeze(2)
        split = {name: getattr(self, f"{name}_proj")(x).view(batch, n, -1, c.d_head) for name in "qkv"}
        for name in "qk":
            if c.qk_norm:
                split[name] = getattr(self, f"{name}_norm")(split[name])
            a, b = split[name][..., : c.d_head // 2], split[name][..., c.d_head // 2 :]
            cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
            split[name] = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        q, k, v = (split[name].permute(0, 2, 1, 3) for name in "qkv")
        if cache is not None:
            k, v = cache.update(self.number, k, v)
        far = c.windows[self.number] if c.windows else None
        apart = torch.arange(before, before + n)[:, None] - torch.arange(before + n)
        seen = (apart >= 0) & (apart < (far or before + n)) & real[:, None, None]
        k, v = (part.repeat_interleave(c.n_heads // c.n_kv_heads, 1) for part in (k, v))
        scores = (q @ k.mT / math.sqrt(c.d_head)).masked_fill(~seen, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(2))


def _omega(c):
    plain = c.rope_theta ** (torch.arange(c.d_head // 2) * (-2 / c.d_head))
    if c.rope_scaling is None:
        return plain
    s = c.rope_scaling
    kept = (s.original_length * plain / (2 * math.pi) - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return torch.lerp(plain / s.factor, plain, kept.clip(0, 1))


# %% see="Decoder"
# Five published models at their full size, on the device "meta", which knows shapes and holds no numbers.
try:
    for name, config in families.items():
        with torch.device("meta"):
            counted = sum(parameter.numel() for parameter in Decoder(config).parameters())
        print(f"{name:>16}: {counted:>14,} parameters, {2 * counted / 2**30:5.1f} GiB in bfloat16")
except (NotImplementedError, NameError):
    print("Finish read_config, Attention and Decoder first, then run the cells from the first part on again.")

# %% [markdown]
# ## 5 · `read_safetensors` ●●○
#
# For years weights were shared as *pickles*. A pickle is a program: reading one runs it. Somebody else's weights could
# do to your machine what you can. So today they come as `.safetensors`, which is nothing but a table of contents and
# numbers:
#
# | bytes | what they are |
# |---|---|
# | the first 8 | how long the header is, an integer, the lowest byte first |
# | the header | JSON, in UTF-8; it may end in spaces |
# | the rest | the data: all tensors' bytes |
#
# The header is a dict. Each tensor has an entry, such as `"norm.weight": {"dtype": "F32", "shape": [4], "data_offsets":
# [0, 16]}`. The two offsets count bytes from the beginning of the *data*: where the tensor begins, and where it ends.
# An entry `"__metadata__"`, if there is one, is no tensor.
#
# `read_safetensors(path)` returns a dict from names to tensors, with the dtypes and shapes that the header says, in the
# byte order of ordinary machines. A shape may be `[]`, and a tensor may be empty. The path is a `str` or a `Path`.
#
# A file that came from elsewhere may be cut off, or made to do harm. It raises a `ValueError`, and where one tensor is
# at fault, the sentence names it:
#
# - a file that is shorter than its header claims, or has no 8 bytes;
# - a dtype that is not in `DTYPES`;
# - offsets that are not `0 ≤ begin ≤ end ≤` the length of the data;
# - offsets with more or fewer bytes between them than shape and dtype need;
# - a negative number in a shape.
#
# The packages that read this format raise an error while your work is marked.


# %% exercise="read_safetensors" section="What a checkpoint is"
def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name.

    Raises ValueError if the header and the data do not fit together.
    Source: https://github.com/huggingface/safetensors, "Format".
    """
    ### BEGIN SOLUTION
    raw = Path(path).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 + length:
        raise ValueError(f"{path} has {len(raw)} bytes, too few for its header: it is cut off, or no safetensors file")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise ValueError(f"{name} has the dtype {entry['dtype']!r}, which is none of {', '.join(DTYPES)}")
        if not 0 <= begin <= end <= len(data):
            raise ValueError(f"{name} lies at bytes {begin} to {end}, and the data has {len(data)}")
        if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has {end - begin} bytes, which do not fit the shape {shape} in {entry['dtype']}")
        piece = bytearray(data[begin:end])
        tensors[name] = (
            torch.frombuffer(piece, dtype=dtype).reshape(shape) if piece else torch.empty(shape, dtype=dtype)
        )
    return tensors
    ### END SOLUTION


# %% check="read_safetensors" points=3
made = {"a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.tensor(2.5, dtype=torch.bfloat16)}
file = Path(write_folder({"x.safetensors": as_safetensors(made)})) / "x.safetensors"
found = read_safetensors(file)
assert set(found) == {"a", "b", "c"}, f"The file holds the tensors a, b and c, not {sorted(found)}."
for name, value in made.items():
    assert found[name].dtype == value.dtype, f"{name} should have the dtype {value.dtype}, not {found[name].dtype}."
    assert found[name].shape == value.shape, (
        f"{name} should have the shape {tuple(value.shape)}, not {tuple(found[name].shape)}."
    )
    assert torch.equal(found[name], value), f"{name} came back with other numbers."
file.write_bytes(file.read_bytes()[:-1])
try:
    read_safetensors(file)
    told = "nothing was raised"
except ValueError as error:
    told = str(error)
assert "c" in told, f"The last byte was cut off: a ValueError should name the tensor at fault: {told}"
print("The visible checks of read_safetensors pass.")

# %% see="read_safetensors"
# What a file of two hundred bytes looks like, before anybody has interpreted it.
raw = as_safetensors({"norm.weight": torch.ones(4), "head.weight": torch.zeros(2, 3)})
length = int.from_bytes(raw[:8], "little")
print(f"the length:  {raw[:8].hex(' ')}  = {length}\nthe header:  {raw[8 : 8 + length].decode()}")
print(f"the data:    {raw[8 + length :].hex(' ', 4)}")

# %% [markdown]
# ## 6 · `load_hf` ●●●
#
# Now everything comes together: a folder as it is published, to a model that speaks.
#
# `load_hf(folder)` returns a `Decoder` with the weights of the folder, in evaluation, its parameters in float32
# whatever the file had. The folder is a `str` or a `Path`.
#
# **The files.** `config.json`, and the weights: one `model.safetensors`, or several files with an index
# `model.safetensors.index.json`. The index is a dict whose entry `weight_map` says for each tensor in which file it is.
#
# **The names.** Theirs are not ours:
#
# | theirs | ours |
# |---|---|
# | `model.embed_tokens.weight` | `tokens.weight` |
# | `model.layers.3.input_layernorm.weight` | `blocks.3.norm1.weight` |
# | `model.layers.3.self_attn.q_proj.weight` and so on | `blocks.3.attention.q_proj.weight` and so on |
# | `model.layers.3.post_attention_layernorm.weight` | `blocks.3.norm2.weight` |
# | `model.layers.3.mlp.gate_proj.weight` and so on | `blocks.3.mlp.gate_proj.weight` and so on |
# | `model.norm.weight` | `norm.weight` |
# | `lm_head.weight` | `head.weight` |
#
# **What does not fit.** If tensors are missing, or there are some that the model does not have, or some have another
# shape, one `ValueError` names *all* of them, each by its name in the checkpoint, and for another shape both shapes.
# There are two exceptions. Old LLaMA checkpoints hold `model.layers.3.self_attn.rotary_emb.inv_freq`, which is computed
# today: pass over it. And a tied model may bring its `lm_head.weight` all the same: pass over that.
#
# **What is refused.** The folder came from a stranger.
#
# - Nothing in it is ever run. If it holds no safetensors but pickles (names that end in `.bin`, `.pt` or `.pth`), a
#   `ValueError` names one of them, and says with the word *pickle* why it is refused. Without either, a
#   `FileNotFoundError` says that `model.safetensors` is missing.
# - Only files of the folder itself are read. An index may name a file elsewhere: `../other.safetensors`, `/etc/passwd`,
#   or a link that leads out. A `ValueError` names what the index says, and the file is not read.
#
# Call `read_config`, `Decoder` and `read_safetensors` by their names. When this part is marked, right ones stand in for
# yours.


# %% exercise="load_hf" section="When are two models the same?"
def load_hf(folder: str | Path) -> "Decoder":
    """The model that a checkpoint folder holds, in float32 and in evaluation. Nothing in the folder is ever run.

    Raises ValueError, with the names, for tensors that are missing, extra or misshapen, for pickles, and for files
    outside the folder.
    """
    ### BEGIN SOLUTION
    folder = Path(folder)
    model = Decoder(read_config(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    expected = {their_name(name): (name, value.shape) for name, value in model.state_dict().items()}
    found = {}
    for name in weight_files(folder):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"The index names {name}, which lies outside {folder}: it is not read")
        found |= read_safetensors(folder / name)
    known = set(expected) | {"lm_head.weight"}
    wrong = [f"missing: {name}" for name in expected if name not in found]
    wrong += [f"extra: {name}" for name in found if name not in known and not name.endswith(".rotary_emb.inv_freq")]
    for name, (_, shape) in expected.items():
        if name in found and found[name].shape != shape:
            wrong.append(f"misshapen: {name} is {tuple(found[name].shape)}, not {tuple(shape)}")
    if wrong:
        raise ValueError(f"The checkpoint does not fit its config. {'; '.join(wrong)}")
    model.load_state_dict({name: found[theirs] for theirs, (name, _) in expected.items()})
    return model.eval()


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    pickles = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth")]
    if pickles:
        raise ValueError(f"{pickles[0]} is a pickle: reading it would run the program in it. Ask for safetensors")
    raise FileNotFoundError(f"{folder} holds no model.safetensors")


def their_name(name: str) -> str:
    """What a published checkpoint calls our tensor."""
    if not name.startswith("blocks."):
        return {"tokens": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}[name.split(".")[0]] + ".weight"
    _, number, part, rest = name.split(".", 3)
    theirs = {"norm1": "input_layernorm", "attention": "self_attn", "norm2": "post_attention_layernorm", "mlp": "mlp"}
    return f"model.layers.{number}.{theirs[part]}.{rest}"
    ### END SOLUTION


# %% check="load_hf" points=5
config = {
    "model_type": "llama",
    "vocab_size": 7,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "rms_norm_eps": 1e-6,
}
block = {f"self_attn.{letter}_proj": (4, 4) for letter in "qkvo"}
block |= {"mlp.gate_proj": (6, 4), "mlp.up_proj": (6, 4), "mlp.down_proj": (4, 6)}
block |= {"input_layernorm": (4,), "post_attention_layernorm": (4,)}
shapes = {f"model.layers.0.{name}.weight": shape for name, shape in block.items()}
shapes |= {"model.embed_tokens.weight": (7, 4), "model.norm.weight": (4,), "lm_head.weight": (7, 4)}
weights = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
files = {"config.json": json.dumps(config).encode(), "model.safetensors": as_safetensors(weights)}
model = load_hf(write_folder(files))
assert model.tokens.weight.dtype == torch.float32, f"The weights should be float32, not {model.tokens.weight.dtype}."
assert torch.equal(model.tokens.weight, weights["model.embed_tokens.weight"].float()), (
    "model.embed_tokens.weight should be in tokens.weight."
)
name = "model.layers.0.post_attention_layernorm.weight"
assert torch.equal(model.state_dict()["blocks.0.norm2.weight"], weights[name].float()), (
    f"{name} should be in blocks.0.norm2.weight."
)
assert generate(model, torch.tensor([[1, 2, 3]]), 4).shape == (1, 4), "The model should write four tokens."
del weights["model.norm.weight"]
try:
    load_hf(write_folder(files | {"model.safetensors": as_safetensors(weights)}))
    told = "nothing was raised"
except ValueError as error:
    told = str(error)
assert "model.norm.weight" in told, f"model.norm.weight is missing: a ValueError should name it: {told}"
print("The visible checks of load_hf pass.")

# %% stand_in="load_hf"
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import nn  # noqa: E402


def read_config(config):
    given = sys.modules["__main__"]
    get, family = config.get, config.get("model_type")
    if family not in {"llama", "mistral", "qwen2", "qwen3"}:
        raise ValueError(f"the family {family} is unknown")
    rope = get("rope_parameters") or get("rope_scaling") or {}
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    slides = family == "mistral" or (family != "llama" and bool(get("use_sliding_window")))
    kinds = get("layer_types") or [
        "sliding_attention" if family == "mistral" or i >= get("max_window_layers", 0) else "full_attention"
        for i in range(layers)
    ]
    return given.DecoderConfig(
        config["vocab_size"],
        config["hidden_size"],
        layers,
        heads,
        get("num_key_value_heads") or heads,
        get("head_dim") or config["hidden_size"] // heads,
        config["intermediate_size"],
        config["rms_norm_eps"],
        rope.get("rope_theta") or get("rope_theta") or 1e4,
        given.RopeScaling(
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
        )
        if rope.get("rope_type", rope.get("type")) == "llama3"
        else None,
        family == "qwen2",
        family == "qwen3",
        tuple(get("sliding_window") if slides and kind.startswith("sliding") else None for kind in kinds),
        bool(get("tie_word_embeddings")),
    )


def read_safetensors(path):
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
        data = file.read()
    table.pop("__metadata__", None)
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    return {
        name: torch.frombuffer(bytearray(data), dtype=torch.uint8)[slice(*entry["data_offsets"])]
        .clone()
        .view(kinds[entry["dtype"]])
        .view(entry["shape"])
        for name, entry in table.items()
    }


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, dims = config.d_model, dict.fromkeys("kv", config.n_kv_heads * config.d_head)
        dims["q"] = config.n_heads * config.d_head
        self.config, self.tokens, self.blocks = config, nn.Embedding(config.vocabulary, d), nn.ModuleList()
        for _ in range(config.n_layers):
            attention = {f"{x}_proj": nn.Linear(d, n, bias=config.qkv_bias) for x, n in dims.items()}
            attention["o_proj"] = nn.Linear(dims["q"], d, bias=False)
            if config.qk_norm:
                attention |= {f"{x}_norm": nn.RMSNorm(config.d_head, config.norm_eps) for x in "qk"}
            mlp = {f"{x}_proj": nn.Linear(d, config.d_hidden, bias=False) for x in ("gate", "up")}
            mlp["down_proj"] = nn.Linear(config.d_hidden, d, bias=False)
            norms = {f"norm{i}": nn.RMSNorm(d, config.norm_eps) for i in (1, 2)}
            parts = {"attention": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)}
            self.blocks.append(nn.ModuleDict(parts | norms))
        self.norm = nn.RMSNorm(d, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(d, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for i, block in enumerate(self.blocks):
            x = x + self.attend(i, block["attention"], block["norm1"](x), mask, cache)
            y, mlp = block["norm2"](x), block["mlp"]
            x = x + mlp["down_proj"](nn.functional.silu(mlp["gate_proj"](y)) * mlp["up_proj"](y))
        head = self.head if hasattr(self, "head") else self.tokens
        return self.norm(x) @ head.weight.T

    def attend(self, i, part, x, mask, cache):
        c, n = self.config, x.shape[1]
        past = cache.length(i) if cache else 0
        real = torch.ones(len(x), past + n, dtype=torch.bool) if mask is None else mask
        q, k, v = (part[f"{x_}_proj"](x).view(len(x), n, -1, c.d_head) for x_ in "qkv")
        if c.qk_norm:
            q, k = part["q_norm"](q), part["k_norm"](k)
        turns = (real.cumsum(1) - 1).clip(0)[:, past:, None, None] * _frequencies(c)
        q, k = (_rotated(t, turns).transpose(1, 2) for t in (q, k))
        v = v.transpose(1, 2)
        k, v = cache.update(i, k, v) if cache else (k, v)
        apart = torch.arange(past, past + n)[:, None] - torch.arange(past + n)
        may = (apart >= 0) & (apart < (c.windows[i] or past + n)) & real[:, None, None]
        heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may, enable_gqa=True)
        return part["o_proj"](heads.transpose(1, 2).flatten(2))


def _rotated(x, angles):
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def _frequencies(c):
    plain = c.rope_theta ** (torch.arange(c.d_head // 2) * (-2 / c.d_head))
    if c.rope_scaling is None:
        return plain
    s = c.rope_scaling
    kept = (s.original_length * plain / 6.283185307179586 - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    return torch.lerp(plain / s.factor, plain, kept.clip(0, 1))


# %% see="load_hf"
# A small Qwen3 that transformers, the library of nearly all published checkpoints, made and saved: does yours agree?
try:
    import os

    from ichimon.diff import diff

    if os.environ.get("ICHIMON_FAST") == "1":
        raise ImportError("transformers takes seconds to import")
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=31,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
        )
    ).eval()
    for parameter in theirs.parameters():  # as they begin, half of what can be wrong does not show
        nn.init.normal_(parameter, std=0.4)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        print("the folder:", ", ".join(sorted(os.listdir(folder))))
        mine = load_hf(folder)
    names = {"tokens": "model.embed_tokens", "norm": "model.norm"}
    for i in range(2):
        names |= {f"blocks.{i}.attention": f"model.layers.{i}.self_attn", f"blocks.{i}.mlp": f"model.layers.{i}.mlp"}
    ids = torch.randint(31, (2, 9))
    found = diff(mine, theirs, ids, names=names)
    print("They agree in every sub-layer." if found is None else found)
    print("You write ", generate(mine, ids[:1], 8).tolist()[0])
    print("they write", theirs.generate(ids[:1], max_new_tokens=8, do_sample=False)[0, 9:].tolist())
except ImportError as error:
    print(f"This comparison needs transformers and the course's package ichimon: {error}.")
except NotImplementedError:
    print("Finish all six parts first, then run this cell again.")

# %% [markdown]
# ## A real one
#
# This is optional, and needs a network, about 300 MB and the packages `huggingface_hub` and `tokenizers`. SmolLM2 is a
# LLaMA with 135 million parameters; its licence, Apache 2.0, allows everything that we do here. Set `DOWNLOAD` to
# `True`, and talk to it through your own code. It is a small model: do not believe a word that it says.

# %% see="load_hf"
DOWNLOAD = False
MODEL, FILES = "HuggingFaceTB/SmolLM2-135M-Instruct", ["config.json", "model.safetensors", "tokenizer.json"]
try:
    if DOWNLOAD:
        from huggingface_hub import snapshot_download
        from tokenizers import Tokenizer

        # Into a folder of its own: what the library keeps in its cache are links, and they lead out of the folder.
        folder = snapshot_download(MODEL, allow_patterns=FILES, local_dir=Path(tempfile.gettempdir()) / "smollm2")
        tokenizer, model = Tokenizer.from_file(f"{folder}/tokenizer.json"), load_hf(folder)
        question = "What is the capital of Japan?"
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
        print(question, "→", tokenizer.decode(generate(model, ids, 24)[0].tolist()))
    else:
        print("Set DOWNLOAD to True, and run this cell again, to load 135 million real weights into your own code.")
except ImportError as error:
    print(f"The download needs a package that is not installed: {error}.")
except NotImplementedError:
    print("Finish all six parts first, then run this cell again.")
except Exception as error:  # without a network every library has an error of its own
    print(f"{MODEL} could not be loaded. Is there a network? {type(error).__name__}: {error}")

# %% [markdown]
# Four families, one class, and not a line of theirs was needed. What makes them different is not in this code: it is in
# the text that they read, in how much of it, and in what was done with the model afterwards.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they draw every weight anew, gains and biases too,
# compare with all four families over many configurations, with and without a cache, with windows shorter than the text
# and with padding; and they hand you checkpoints that are cut off, incomplete or out to do harm. If your model differs,
# they say at which layer, and in which of its parts, it first does.
#
# Before you hand in, run `python -m ichimon check 11-llama-qwen-mistral.ipynb` in a terminal. It runs your cells and
# the visible checks from top to bottom and says in words what it finds.
