# %% split_qkv
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.t().chunk(3))
    if layout:
        heads = fused.reshape(n_heads, 3, -1, *fused.shape[1:])
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))


# %% Attention
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c, self.layer = config, layer
        q, kv = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q_proj = nn.Linear(config.d_model, q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q, config.d_model, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(config.d_head, eps=config.norm_eps) for _ in range(2))
        if config.sinks:
            self.sinks = nn.Parameter(torch.zeros(config.n_heads))

    def rope(self, x, positions):
        speed, factor = self.c.frequencies()
        angle = positions[:, None, :, None].float() * speed
        cos, sin = (angle.cos() * factor).to(x.dtype), (angle.sin() * factor).to(x.dtype)
        d = 2 * speed.numel()
        y, rest = x[..., :d], x[..., d:]
        if self.c.interleaved:
            a, b = y[..., 0::2], y[..., 1::2]
            y = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = y[..., : d // 2], y[..., d // 2 :]
            y = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((y, rest), -1)

    def forward(self, x, positions, mask):
        c, (b, n, _) = self.c, x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if c.clip_qkv is not None:
            q, k, v = (t.clamp(-c.clip_qkv, c.clip_qkv) for t in (q, k, v))
        q, k, v = (t.view(b, n, -1, c.d_head).transpose(1, 2) for t in (q, k, v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if c.positions == "rope":
            q, k = self.rope(q, positions), self.rope(k, positions)
        k = k.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)
        v = v.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.d_head)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        if c.positions == "alibi":
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance <= window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Block
def norm_of(config):
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, elementwise_affine=config.norm != "plain")


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.kind, bias = config.mlp, config.mlp_bias
        if self.kind in ("swiglu", "clamped"):
            self.gate_proj = nn.Linear(config.d_model, config.d_hidden, bias=bias)
        self.up_proj = nn.Linear(config.d_model, config.d_hidden, bias=bias)
        self.down_proj = nn.Linear(config.d_hidden, config.d_model, bias=bias)

    def forward(self, x):
        up = self.up_proj(x)
        if self.kind == "gelu":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(gate) * up)
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        return self.down_proj(gate * torch.sigmoid(1.702 * gate) * (up + 1))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.residual = config.residual
        self.norm1 = norm_of(config)
        self.attention = Attention(config, layer)
        if config.residual != "shared":
            self.norm2 = norm_of(config)
        self.mlp = MLP(config)

    def forward(self, x, positions, mask):
        y = self.norm1(x)
        a = self.attention(y, positions, mask)
        if self.residual == "parallel":
            return x + a + self.mlp(self.norm2(x))
        if self.residual == "shared":
            return x + a + self.mlp(y)
        x = x + a
        return x + self.mlp(self.norm2(x))


# %% Decoder
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c = config
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.n_context, config.d_model)
        if config.tokens_norm:
            self.tokens_norm = norm_of(config)
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layers)])
        self.norm = norm_of(config)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=config.head_bias)

    def forward(self, ids, mask=None):
        if mask is None:
            mask = torch.ones(ids.shape, dtype=torch.bool)
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


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
        frequency = 10_000 ** (-torch.arange(0, self.d_rotary, 2) / self.d_head)
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
