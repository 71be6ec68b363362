# %% split_qkv
def split_qkv(fused, n_heads, layout):
    # outputs first, whatever the layout
    if layout == "gpt2":
        w = fused.transpose(0, -1).contiguous() if fused.dim() == 2 else fused
        d = w.size(0) // 3
        q, k, v = w[:d], w[d : 2 * d], w[2 * d :]
    elif layout == "per_head":
        size = fused.size(0) // (3 * n_heads)
        heads = [fused[i * size : (i + 1) * size] for i in range(3 * n_heads)]
        q, k, v = (torch.cat([heads[3 * h + i] for h in range(n_heads)], 0) for i in range(3))
    else:
        raise ValueError(f"I know the layouts gpt2 and per_head, and not {layout!r}.")
    return q, k, v


# %% Attention
class Attention(nn.Module):
    """One attention for all of them; what is asked for is there, and nothing else."""

    def __init__(self, config, layer):
        super().__init__()
        self.c = config
        self.window = dict(enumerate(config.windows)).get(layer)
        for letter, heads in {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}.items():
            self.add_module(f"{letter}_proj", nn.Linear(config.d_model, heads * config.d_head, config.qkv_bias))
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, config.o_bias)
        if config.sinks:
            self.register_parameter("sinks", nn.Parameter(torch.randn(config.n_heads)))
        for letter in "qk" if config.qk_norm else "":
            self.add_module(f"{letter}_norm", nn.RMSNorm([config.d_head], config.norm_eps))

    def spin(self, x, positions):
        speed, factor = self.c.frequencies()
        d = 2 * len(speed)
        angle = positions.float()[:, None, :, None] * speed
        wheel = torch.polar(torch.tensor(float(factor)), angle)
        y = x[..., :d].float()
        if self.c.interleaved:
            z = torch.complex(y[..., 0::2].contiguous(), y[..., 1::2].contiguous()) * wheel
            y = torch.view_as_real(z).flatten(-2)
        else:
            z = torch.complex(*(half.contiguous() for half in y.chunk(2, -1))) * wheel
            y = torch.cat((z.real, z.imag), -1)
        return torch.cat((y.to(x.dtype), x[..., d:]), -1)

    def forward(self, x, positions, mask):
        c, n = self.c, x.size(1)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if c.clip_qkv is not None:
            q, k, v = [torch.clip(t, -c.clip_qkv, c.clip_qkv) for t in (q, k, v)]
        q, k, v = [torch.stack(t.split(c.d_head, -1), 1) for t in (q, k, v)]
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if c.positions == "rope":
            q, k = self.spin(q, positions), self.spin(k, positions)
        i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        hidden = (j > i) | ~mask[:, None, None]
        if self.window:
            hidden = hidden | (i - j >= self.window)
        bias = torch.zeros(x.size(0), c.n_heads, n, n)
        if c.positions == "alibi":
            bias = bias + c.slopes()[:, None, None] * j  # softmax takes off what is the same in a row
        bias = bias.masked_fill(hidden, -torch.inf).to(x.dtype)
        if c.sinks:
            sink = self.sinks[None, :, None, None].expand(x.size(0), -1, n, -1)
            bias = torch.cat((bias, sink), -1)
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


# %% Block
class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.eps, self.centred = c.norm_eps, c.norm != "rms"
        self.weight = nn.Parameter(torch.ones(c.d_model)) if c.norm != "plain" else None
        self.bias = nn.Parameter(torch.zeros(c.d_model)) if c.norm == "layer" else None

    def forward(self, x):
        y = x.float() if x.dtype == torch.bfloat16 else x
        if self.centred:
            y = y - y.mean(-1, keepdim=True)
        y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


def norm_of(config):
    return Norm(config)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.down_proj = nn.Linear(c.d_hidden, c.d_model, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.d_model, c.d_hidden, bias=c.mlp_bias)
        if "gelu" not in c.mlp:
            self.gate_proj = nn.Linear(c.d_model, c.d_hidden, bias=c.mlp_bias)

    def forward(self, x):
        u = self.up_proj(x)
        if self.c.mlp == "gelu":
            h = u * (1 + torch.erf(u / math.sqrt(2))) / 2
        elif self.c.mlp == "gelu_tanh":
            h = u * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))
        else:
            g = self.gate_proj(x)
            alpha = 1.0
            if self.c.mlp == "clamped":
                g, u, alpha = g.clamp(max=7.0), u.clamp(-7.0, 7.0) + 1, 1.702
            h = g * torch.sigmoid(alpha * g) * u
        return self.down_proj(h)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1, self.attention = norm_of(config), Attention(config, layer)
        self.shape = config.residual
        if self.shape != "shared":
            self.norm2 = norm_of(config)
        self.mlp = FeedForward(config)

    def forward(self, x, positions, mask):
        normed = self.norm1(x)
        a = self.attention(normed, positions, mask)
        if self.shape == "shared":
            return x + a + self.mlp(normed)
        return x + a + self.mlp(self.norm2(x if self.shape == "parallel" else x + a))


# %% Decoder
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tied = config.tied
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.positions = nn.Embedding(config.n_context, config.d_model) if config.positions == "learned" else None
        self.tokens_norm = norm_of(config) if config.tokens_norm else nn.Identity()
        self.norm = norm_of(config)
        self.blocks = nn.ModuleList()
        while len(self.blocks) < config.n_layers:
            self.blocks.append(Block(config, len(self.blocks)))
        if not self.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=bool(config.head_bias))

    def forward(self, ids, mask=None):
        if mask is None:
            mask = ids == ids
        start = mask.int().argmax(1, keepdim=True)
        positions = torch.relu(torch.arange(ids.size(1)) - start)
        x = self.tokens(ids)
        if self.positions:
            x = x + self.positions(positions)
        x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        read = self.tokens if self.tied else self.head
        return F.linear(self.norm(x), read.weight, getattr(read, "bias", None))


# %% detective
def detective(shapes):
    blocks, outside = {}, {}
    for name, shape in shapes.items():
        words = name.split(".")
        at = next((i for i, word in enumerate(words[:-1]) if word in ("h", "layers") and words[i + 1].isdigit()), None)
        if at is None:
            outside[".".join(words[-2:])] = shape
        else:
            blocks.setdefault(int(words[at + 1]), {})[".".join(words[at + 2 :])] = shape
    one = blocks[min(blocks)] if blocks else {}
    keys = "family n_layers d_model n_context n_heads d_head group kv_bytes".split()
    nothing = {key: None for key in keys}
    table = None
    for word in ("wte", "embed_in", "word_embeddings", "embed_tokens"):
        table = outside.get(f"{word}.weight", table)
    if "attn.c_attn.weight" in one:
        family = "gpt2"
    elif "attn.q_proj.weight" in one:
        family = "gptj"
    elif "attention.query_key_value.weight" in one:
        family = "gpt_neox"
    elif "self_attention.query_key_value.weight" in one:
        family = "bloom"
    elif "self_attn.q_proj.weight" not in one:
        return nothing
    elif "self_attn.sinks" in one:
        family = "gpt_oss"
    elif "self_attn.q_norm.weight" in one:
        family = "qwen3"
    elif "self_attn.q_proj.bias" in one:
        family = "qwen2"
    elif "input_layernorm.weight" in one:
        family = "llama"
    else:
        family = "olmo"
    d = table[1]
    rows = {p: one.get(f"self_attn.{p}_proj.weight", (d,))[0] for p in "qkv"}
    heads = one["self_attn.sinks"][0] if family == "gpt_oss" else None
    channels = one["self_attn.q_norm.weight"][0] if family == "qwen3" else None
    if heads:
        channels = rows["q"] // heads
    if channels and not heads:
        heads = rows["q"] // channels
    return {
        "family": family,
        "n_layers": len(blocks),
        "d_model": d,
        "n_context": outside["wpe.weight"][0] if family == "gpt2" else None,
        "n_heads": heads,
        "d_head": channels,
        "group": rows["q"] // rows["k"],
        "kv_bytes": len(blocks) * 2 * (rows["k"] + rows["v"]),
    }


# %% Mended
class Layer(nn.Module):
    def __init__(self, d_model, n_heads, rotary):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.d_rotary = int(self.d_head * rotary)
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(d_model, 3 * d_model), "dense": nn.Linear(d_model, d_model)}
        )
        self.mlp = nn.ModuleDict(
            {"dense_h_to_4h": nn.Linear(d_model, 4 * d_model), "dense_4h_to_h": nn.Linear(4 * d_model, d_model)}
        )

    def turn(self, x):
        frequency = 10_000 ** (-torch.arange(0, self.d_rotary, 2) / self.d_rotary)
        angle = (torch.arange(x.shape[2])[:, None] * frequency).to(x.dtype)
        a, b, rest = x.split([self.d_rotary // 2, self.d_rotary // 2, self.d_head - self.d_rotary], -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)

    def forward(self, x):
        fused = self.attention["query_key_value"](self.input_layernorm(x))
        q, k, v = fused.unflatten(-1, (self.n_heads, 3, self.d_head)).permute(3, 0, 2, 1, 4)
        heads = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        looked = self.attention["dense"](heads.transpose(1, 2).flatten(-2))
        hidden = F.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x)))
        return x + looked + self.mlp["dense_4h_to_h"](hidden)


class Mended(nn.Module):
    def __init__(self, vocabulary, d_model, n_layers, n_heads, rotary):
        super().__init__()
        self.gpt_neox = nn.Module()
        self.gpt_neox.embed_in = nn.Embedding(vocabulary, d_model)
        self.gpt_neox.layers = nn.ModuleList(Layer(d_model, n_heads, rotary) for _ in range(n_layers))
        self.gpt_neox.final_layer_norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, ids):
        x = self.gpt_neox.embed_in(ids)
        for layer in self.gpt_neox.layers:
            x = layer(x)
        return self.lm_head(self.gpt_neox.final_layer_norm(x))
