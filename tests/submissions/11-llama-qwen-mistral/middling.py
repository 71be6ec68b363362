# %% helpers
KNOWN = ("llama", "mistral", "qwen2", "qwen3")


def refuse(key, value, wanted):
    raise ValueError(f"config.json says {key} = {value!r}; this decoder can only do {wanted}")


# %% read_config
def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes."""
    family = config.get("model_type")
    if family not in KNOWN:
        refuse("model_type", family, " or ".join(KNOWN))
    if (config.get("hidden_act") or "silu") != "silu":
        refuse("hidden_act", config["hidden_act"], "silu")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            refuse(key, config[key], "false")

    rope = dict(config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta"))
    rope.update(config.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type")) or "default"
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_length=rope["original_max_position_embeddings"],
        )
    elif kind != "default":
        refuse("rope_type", kind, "default or llama3")

    n_layers, n_heads = config["num_hidden_layers"], config["num_attention_heads"]
    kinds = ["full_attention"] * n_layers
    if family == "mistral":
        kinds = ["sliding_attention"] * n_layers
    elif family in ("qwen2", "qwen3") and config.get("sliding_window"):
        kinds = config.get("layer_types")
        if kinds is None:
            first = config["max_window_layers"]
            kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(n_layers)]
    windows = tuple(config.get("sliding_window") if kind == "sliding_attention" else None for kind in kinds)

    return DecoderConfig(
        vocabulary=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        d_head=config.get("head_dim") or config["hidden_size"] // n_heads,
        d_hidden=config["intermediate_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=float(rope["rope_theta"] or 10_000),
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        windows=windows,
        tied=bool(config.get("tie_word_embeddings")),
    )


# %% rope_frequencies
def rope_frequencies(d_head: int, theta: float, scaling: RopeScaling | None = None) -> Float[Tensor, "half"]:
    """Radians a position."""
    omega = torch.tensor([theta ** (-2 * i / d_head) for i in range(d_head // 2)])
    if scaling is None:
        return omega
    wavelength = 2 * torch.pi / omega
    kept = (scaling.original_length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    kept = kept.clamp(min=0, max=1)
    return omega * (kept + (1 - kept) / scaling.factor)


# %% Attention
class Attention(nn.Module):
    """Self-attention of four families."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        d, h, g = config.d_head, config.n_heads, config.n_kv_heads
        self.q_proj = nn.Linear(config.d_model, h * d, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, g * d, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, g * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(h * d, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(d, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(d, eps=config.norm_eps)

    def rotate(self, x, positions):
        omega = rope_frequencies(self.config.d_head, self.config.rope_theta, self.config.rope_scaling)
        angle = positions.float().unsqueeze(-1) * omega
        cos, sin = angle.cos().unsqueeze(2).to(x.dtype), angle.sin().unsqueeze(2).to(x.dtype)
        half = self.config.d_head // 2
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def forward(self, x, mask=None, cache=None):
        batch, n, _ = x.shape
        past = cache.length(self.layer) if cache is not None else 0
        if mask is None:
            mask = torch.ones(batch, past + n, dtype=torch.bool)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]

        # [batch, n, heads, d_head] until RoPE is done
        q = self.q_proj(x).reshape(batch, n, self.config.n_heads, -1)
        k = self.k_proj(x).reshape(batch, n, self.config.n_kv_heads, -1)
        v = self.v_proj(x).reshape(batch, n, self.config.n_kv_heads, -1).transpose(1, 2)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self.rotate(q, positions).transpose(1, 2), self.rotate(k, positions).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)

        here = torch.arange(past, past + n).view(-1, 1)
        there = torch.arange(past + n).view(1, -1)
        allowed = there <= here
        window = self.config.windows[self.layer] if self.config.windows else None
        if window is not None:
            allowed = allowed & (here - there <= window)
        allowed = allowed.view(1, 1, n, -1) & mask.view(len(mask), 1, 1, -1)

        repeat = self.config.n_heads // self.config.n_kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.o_proj(heads.transpose(1, 2).reshape(batch, n, -1))


# %% Decoder
class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(self.up_proj(x) * F.silu(self.gate_proj(x)))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention, self.mlp = Attention(config, layer), SwiGLU(config.d_model, config.d_hidden)
        self.norm1, self.norm2 = (nn.RMSNorm(config.d_model, eps=config.norm_eps) for _ in range(2))

    def forward(self, x, mask=None, cache=None):
        h = x + self.attention(self.norm1(x), mask, cache)
        return h + self.mlp(self.norm2(h))


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList()
        for layer in range(config.n_layers):
            self.blocks.append(Block(config, layer))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if self.config.tied:
            return x @ self.tokens.weight.T
        return self.head(x)


# %% read_safetensors
def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, as the header says."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    data = content[start:]

    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name}: there is no dtype {entry['dtype']!r}")
        shape = entry["shape"]
        begin, end = entry["data_offsets"]
        if begin == end:
            tensors[name] = torch.zeros(shape, dtype=dtype)
        else:
            tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype).reshape(shape)
    return tensors
