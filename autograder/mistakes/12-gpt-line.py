# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% split_qkv: Conv1D not turned round
# caught by: test_gpt2s_parts_compute_what_conv1d_computes, test_the_parts_of_real_checkpoints
# says: GPT-2's Conv1D stores (inputs, outputs), and nn.Linear (outputs, inputs): the parts are not turned round.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.chunk(3, -1))
    if layout == "per_head":
        heads = fused.reshape(n_heads, 3, -1, *fused.shape[1:])
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))
    raise ValueError(f"unknown layout {layout}")


# %% split_qkv: Conv1D read as if it were nn.Linear
# caught by: test_gpt2s_parts_compute_what_conv1d_computes, test_the_parts_of_real_checkpoints
# says: The weight of GPT-2 is brought into shape by reading its numbers in another order: it has to be transposed.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.reshape(-1, *fused.shape[:-1]).chunk(3))
    if layout == "per_head":
        heads = fused.reshape(n_heads, 3, -1, *fused.shape[1:])
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))
    raise ValueError(f"unknown layout {layout}")


# %% split_qkv: every head's q, k and v taken for three blocks
# caught by: test_per_head_parts_compute_what_the_fused_layer_computes, test_biases_are_cut_like_the_outputs, test_the_parts_of_real_checkpoints
# says: Layout per_head is cut into three blocks, as GPT-2's: the first third is not q, but q, k and v of the first heads.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.t().chunk(3))
    if layout == "per_head":
        return fused.chunk(3)
    raise ValueError(f"unknown layout {layout}")


# %% split_qkv: q, k and v taken in turn, channel by channel
# caught by: test_per_head_parts_compute_what_the_fused_layer_computes, test_biases_are_cut_like_the_outputs, test_the_parts_of_real_checkpoints
# says: In each head q, k and v are taken in turn, a channel of each: they stand one after the other, d_head channels each.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.t().chunk(3))
    if layout == "per_head":
        heads = fused.reshape(n_heads, -1, 3, *fused.shape[1:]).transpose(1, 2)
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))
    raise ValueError(f"unknown layout {layout}")


# %% split_qkv: GPT-2 read head by head
# caught by: test_gpt2s_parts_compute_what_conv1d_computes, test_biases_are_cut_like_the_outputs, test_the_parts_of_real_checkpoints
# says: GPT-2's layout is read head by head: its outputs are all of q, then all of k, then all of v.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return split_qkv(fused.t(), n_heads, "per_head")
    if layout == "per_head":
        heads = fused.reshape(n_heads, 3, -1, *fused.shape[1:])
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))
    raise ValueError(f"unknown layout {layout}")


# %% split_qkv: only the weight is cut head by head
# caught by: test_per_head_parts_compute_what_the_fused_layer_computes, test_biases_are_cut_like_the_outputs, test_the_parts_of_real_checkpoints
# says: The weight is cut head by head, and the bias into three blocks: a bias belongs to the outputs, so both are cut alike.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.t().chunk(3))
    if layout == "per_head":
        if fused.dim() == 1:
            return fused.chunk(3)
        heads = fused.reshape(n_heads, 3, -1, *fused.shape[1:])
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))
    raise ValueError(f"unknown layout {layout}")


# %% split_qkv: any other layout is per head
# caught by: test_another_layout_is_refused
# says: A layout that is not known is cut as if it were per_head: it should be refused with a ValueError.
def split_qkv(fused, n_heads, layout):
    if layout == "gpt2":
        return tuple(fused.t().chunk(3))
    if layout:
        heads = fused.reshape(n_heads, 3, -1, *fused.shape[1:])
        return tuple(heads[:, i].flatten(0, 1) for i in range(3))


# %% Attention: halves turn together in GPT-J too
# caught by: test_attention_is_right_in_every_layer_of, test_only_the_first_channels_turn
# says: Where the configuration says interleaved, as GPT-J's does, channels 2i and 2i + 1 turn together; here the halves do.
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
        if False:
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: neighbours turn together everywhere
# caught by: test_attention_is_right_in_every_layer_of, test_only_the_first_channels_turn
# says: Neighbouring channels turn together in every family: only GPT-J does that, and the others turn halves.
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
        if True:
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: all channels turn
# caught by: test_attention_is_right_in_every_layer_of, test_only_the_first_channels_turn
# says: All channels of a head turn, where only the first d_rotary should: GPT-J turns 64 of 256, and GPT-NeoX a quarter.
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
        import dataclasses

        speed, factor = dataclasses.replace(self.c, d_rotary=None).frequencies()
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: the last channels turn
# caught by: test_attention_is_right_in_every_layer_of, test_only_the_first_channels_turn
# says: The last d_rotary channels of each head turn: it should be the first.
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
        rest, y = x[..., : x.shape[-1] - d], x[..., x.shape[-1] - d :]
        if self.c.interleaved:
            a, b = y[..., 0::2], y[..., 1::2]
            y = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = y[..., : d // 2], y[..., d // 2 :]
            y = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return torch.cat((rest, y), -1)

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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: RoPE in every family
# caught by: test_attention_is_right_in_every_layer_of, test_alibi_loses_one_slope_a_token
# says: RoPE turns q and k in every family: GPT-2 and BLOOM have other positions, and no RoPE.
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
        if True:
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: v turns too
# caught by: test_attention_is_right_in_every_layer_of
# says: The values are turned as well: RoPE turns q and k, and leaves v alone.
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
            q, k, v = (self.rope(t, positions) for t in (q, k, v))
        k = k.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)
        v = v.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.d_head)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        if c.positions == "alibi":
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: positions counted here
# caught by: test_rope_knows_only_distances, test_yarn_is_applied_far_away
# says: The positions that are handed in are not used: the tokens are counted here, from 0.
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
        positions = torch.arange(x.shape[2])[None]
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no YaRN
# caught by: test_attention_is_right_in_every_layer_of, test_yarn_is_applied_far_away
# says: YaRN is left out: neither are the frequencies stretched nor cosine and sine scaled.
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
        d_rotary = self.c.d_rotary or self.c.d_head
        speed, factor = self.c.rope_theta ** (-torch.arange(0, d_rotary, 2) / d_rotary), 1
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: YaRN without its factor
# caught by: test_attention_is_right_in_every_layer_of, test_yarn_is_applied_far_away
# says: YaRN's frequencies are used, and its factor is not: cosine and sine are both multiplied by it.
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
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no sinks
# caught by: test_attention_is_right_in_every_layer_of, test_sinks_take_their_share_and_give_nothing
# says: The sinks are parameters, and take no part: their scores belong into the softmax.
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if False:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: the sink added to every score
# caught by: test_attention_is_right_in_every_layer_of, test_sinks_take_their_share_and_give_nothing
# says: The sink is added to the scores of all tokens, which softmax does not notice: it is one more score beside them.
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = scores + self.sinks.view(1, -1, 1, 1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: shares made whole again after the sink
# caught by: test_attention_is_right_in_every_layer_of, test_sinks_take_their_share_and_give_nothing
# says: After the sink's share was dropped the others are made to add up to one again, so the sink has done nothing.
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        weights = weights / weights.sum(-1, keepdim=True)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: one sink for all heads
# caught by: test_attention_is_right_in_every_layer_of, test_sinks_take_their_share_and_give_nothing
# says: All heads get the first head's sink: each has its own.
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks[0].expand(b, c.n_heads, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no window
# caught by: test_attention_is_right_in_every_layer_of, test_a_window_includes_the_token_itself
# says: Windows are left out: every layer sees the whole past.
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
        if False:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: a window of one more
# caught by: test_attention_is_right_in_every_layer_of, test_a_window_includes_the_token_itself
# says: The window holds W tokens before a token, and the token itself: it should hold W in all.
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


# %% Attention: every layer has the first one's window
# caught by: test_attention_is_right_in_every_layer_of, test_a_window_includes_the_token_itself
# says: Every layer has the window of layer 0: gpt-oss has one in every other layer.
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
        window = c.windows[0] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no causal mask
# caught by: test_attention_is_right_in_every_layer_of, test_attention_never_looks_ahead
# says: There is no causal mask: a token sees those after it, and so the answer.
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
        allowed = (distance > -n)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: padding is text
# caught by: test_attention_is_right_in_every_layer_of, test_padding_changes_nothing_for_the_text
# says: Padding is looked at as if it were text: the mask is not used.
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
        allowed = (distance >= 0)[None, None]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: rows of nothing
# caught by: test_padding_changes_nothing_for_the_text
# says: A padded token that may see nobody gives NaN: a softmax over nothing is 0 / 0.
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
            allowed = allowed & (distance < window)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: padding decides about queries
# caught by: test_attention_is_right_in_every_layer_of, test_padding_changes_nothing_for_the_text
# says: The mask is laid on the queries: it says which keys may be seen.
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
        allowed = (distance >= 0)[None, None] & mask[:, None, :, None]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: ALiBi with the wrong sign
# caught by: test_attention_is_right_in_every_layer_of, test_alibi_loses_one_slope_a_token
# says: ALiBi is added: the farther a token, the more attention it gets. It should lose some.
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
            scores = scores + (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: ALiBi before the scaling
# caught by: test_attention_is_right_in_every_layer_of, test_alibi_loses_one_slope_a_token
# says: ALiBi's bias is divided by √d_head with the product: it is added after the scaling.
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
            scores = scores - (c.slopes()[:, None, None] * distance / math.sqrt(c.d_head)).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: one ALiBi slope for all heads
# caught by: test_attention_is_right_in_every_layer_of, test_alibi_loses_one_slope_a_token
# says: All heads have the first head's slope: each has its own.
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
            scores = scores - (c.slopes()[0] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no ALiBi
# caught by: test_attention_is_right_in_every_layer_of, test_alibi_loses_one_slope_a_token
# says: ALiBi is left out, so nothing tells BLOOM where a token stands.
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
        if False:
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: keys tiled
# caught by: test_attention_is_right_in_every_layer_of, test_neighbouring_query_heads_share_a_key_head
# says: The key heads are repeated as a whole, 0 1 0 1: neighbouring query heads should share one, 0 0 1 1.
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
        k = k.repeat(1, c.n_heads // c.n_kv_heads, 1, 1)
        v = v.repeat(1, c.n_heads // c.n_kv_heads, 1, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.d_head)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        if c.positions == "alibi":
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no 1/√d
# caught by: test_attention_is_right_in_every_layer_of
# says: The scores are not divided by √d_head.
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
        scores = q @ k.transpose(-1, -2)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        if c.positions == "alibi":
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: divided by the root of d_model
# caught by: test_attention_is_right_in_every_layer_of
# says: The scores are divided by √d_model: it is √d_head.
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
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.d_model)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        if c.positions == "alibi":
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: QK norm after RoPE
# caught by: test_attention_is_right_in_every_layer_of, test_qk_norm_comes_before_rope_with_its_own_gains
# says: q and k are normalised after they were turned: a gain for each channel and a turn do not commute.
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
        if c.positions == "rope":
            q, k = self.rope(q, positions), self.rope(k, positions)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        k = k.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)
        v = v.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.d_head)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        if c.positions == "alibi":
            scores = scores - (c.slopes()[:, None, None] * distance).to(x.dtype)
        allowed = (distance >= 0)[None, None] & mask[:, None, None, :]
        window = c.windows[self.layer] if c.windows else None
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: no clipping
# caught by: test_attention_is_right_in_every_layer_of, test_clipping_cuts_q_k_and_v
# says: clip_qkv is left out: OLMo's larger models were trained with it.
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
        if False:
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Attention: values not clipped
# caught by: test_attention_is_right_in_every_layer_of, test_clipping_cuts_q_k_and_v
# says: q and k are clipped, and v is not.
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
            q, k = (t.clamp(-c.clip_qkv, c.clip_qkv) for t in (q, k))
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
            allowed = allowed & (distance < window)
        allowed = allowed | (distance == 0)
        scores = scores.masked_fill(~allowed, -math.inf)
        if c.sinks:
            scores = torch.cat((scores, self.sinks.view(1, -1, 1, 1).expand(b, -1, n, 1)), -1)
        weights = scores.softmax(-1)[..., :n]
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


# %% Block: the exact GELU in GPT-2
# caught by: test_every_block_is_right_in, test_the_two_gelus_are_told_apart
# says: GELU is the exact one everywhere: GPT-2, GPT-J and BLOOM have its tanh form, and with their weights that matters.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up))
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


# %% Block: the tanh GELU in GPT-NeoX
# caught by: test_every_block_is_right_in, test_the_two_gelus_are_told_apart
# says: GELU is in its tanh form everywhere: GPT-NeoX and Pythia have the exact one.
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


# %% Block: ReLU
# caught by: test_every_block_is_right_in, test_the_two_gelus_are_told_apart
# says: The activation is ReLU, as articles say of GPT-1 and GPT-2. Both have GELU.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.relu(up))
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


# %% Block: everything in sequence
# caught by: test_every_block_is_right_in, test_parallel_parts_do_not_see_each_other
# says: Attention and feed-forward stand in sequence in every family: GPT-J and GPT-NeoX have them side by side.
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
            return self.down_proj(F.gelu(up))
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
            return x + a + self.mlp(self.norm2(x + a))
        if self.residual == "shared":
            return x + a + self.mlp(self.norm1(x + a))
        x = x + a
        return x + self.mlp(self.norm2(x))


# %% Block: parallel with one norm in GPT-NeoX
# caught by: test_every_block_is_right_in, test_every_ingredient_goes_with_every_other
# says: A parallel block uses norm1 for both parts, as GPT-J does: GPT-NeoX's feed-forward part has a norm of its own.
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
            return self.down_proj(F.gelu(up))
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
            return x + a + self.mlp(y)
        if self.residual == "shared":
            return x + a + self.mlp(y)
        x = x + a
        return x + self.mlp(self.norm2(x))


# %% Block: GPT-J with a second norm
# caught by: test_the_block_has_the_stated_parameters
# says: A block of GPT-J has one norm for both parts; here there is a second one, which its checkpoints do not hold.
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
            return self.down_proj(F.gelu(up))
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
        if True:
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


# %% Block: one residual in the parallel block
# caught by: test_every_block_is_right_in, test_parallel_parts_do_not_see_each_other
# says: In a parallel block x is added twice, once with each part.
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
            return self.down_proj(F.gelu(up))
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
            return x + a + x + self.mlp(self.norm2(x))
        if self.residual == "shared":
            return x + a + self.mlp(y)
        x = x + a
        return x + self.mlp(self.norm2(x))


# %% Block: LayerNorm for RMSNorm
# caught by: test_every_block_is_right_in, test_the_block_has_the_stated_parameters
# says: The norm is LayerNorm in every family: LLaMA, OpenLLaMA and gpt-oss have RMSNorm, without a mean and without a bias.
def norm_of(config):
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
            return self.down_proj(F.gelu(up))
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


# %% Block: OLMo's norm with gain and bias
# caught by: test_the_block_has_the_stated_parameters
# says: OLMo's norm has a gain and a bias here: it has no parameters at all.
def norm_of(config):
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps)


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
            return self.down_proj(F.gelu(up))
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


# %% Block: OLMo's norm as RMSNorm
# caught by: test_every_block_is_right_in, test_every_ingredient_goes_with_every_other
# says: OLMo's norm is an RMSNorm without gain here: it is a LayerNorm, which takes off the mean, without parameters.
def norm_of(config):
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    if config.norm == "plain":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps, elementwise_affine=False)
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
            return self.down_proj(F.gelu(up))
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


# %% Block: another eps
# caught by: test_both_norms_use_the_eps_of_the_configuration
# says: The norms use an eps of their own: it is the configuration's norm_eps.
def norm_of(config):
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model)
    return nn.LayerNorm(config.d_model, elementwise_affine=config.norm != "plain")


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
            return self.down_proj(F.gelu(up))
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


# %% Block: no one added to up
# caught by: test_every_block_is_right_in, test_the_clamped_gate_at_its_limits
# says: gpt-oss multiplies the gate by (u + 1), and here it is multiplied by u.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(gate) * up)
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        return self.down_proj(gate * torch.sigmoid(1.702 * gate) * up)


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


# %% Block: no clamp
# caught by: test_the_clamped_gate_at_its_limits
# says: Nothing is cut off at 7 in gpt-oss's feed-forward part.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(gate) * up)
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


# %% Block: the gate clamped below too
# caught by: test_the_clamped_gate_at_its_limits
# says: The gate is cut off at −7 as well: it is cut off above only.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(gate) * up)
        gate, up = gate.clamp(-7, 7), up.clamp(-7, 7)
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


# %% Block: up clamped above only
# caught by: test_the_clamped_gate_at_its_limits
# says: The up projection is cut off above only: it is cut off at −7, too.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(gate) * up)
        gate, up = gate.clamp(max=7), up.clamp(max=7)
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


# %% Block: SiLU in gpt-oss
# caught by: test_every_block_is_right_in, test_the_clamped_gate_at_its_limits
# says: The gate of gpt-oss is SiLU here: it has a factor of 1.702 inside the sigmoid.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(gate) * up)
        gate, up = gate.clamp(max=7), up.clamp(-7, 7)
        return self.down_proj(gate * torch.sigmoid(gate) * (up + 1))


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


# %% Block: gate and up swapped
# caught by: test_every_block_is_right_in, test_every_ingredient_goes_with_every_other
# says: Gate and up projection are swapped: the activation goes on the gate.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.silu(up) * gate)
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


# %% Block: GEGLU for SwiGLU
# caught by: test_every_block_is_right_in, test_every_ingredient_goes_with_every_other
# says: The gate has GELU, which makes it GEGLU: SwiGLU has SiLU.
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
            return self.down_proj(F.gelu(up))
        if self.kind == "gelu_tanh":
            return self.down_proj(F.gelu(up, approximate="tanh"))
        gate = self.gate_proj(x)
        if self.kind == "swiglu":
            return self.down_proj(F.gelu(gate) * up)
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


# %% Block: positions of its own
# caught by: test_a_block_hands_the_mask_on
# says: The block does not hand on the mask that it was given, so padding is looked at.
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
            return self.down_proj(F.gelu(up))
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
        a = self.attention(y, positions, torch.ones_like(mask))
        if self.residual == "parallel":
            return x + a + self.mlp(self.norm2(x))
        if self.residual == "shared":
            return x + a + self.mlp(y)
        x = x + a
        return x + self.mlp(self.norm2(x))


# %% Block: every attention is that of layer 0
# caught by: test_a_block_hands_the_mask_on
# says: Every attention is told that it is layer 0, so that all layers have the window of the first.
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
            return self.down_proj(F.gelu(up))
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
        self.attention = Attention(config, 0)
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


# %% Decoder: BLOOM without the norm of its tokens
# caught by: test_the_whole_model_gives_the_logits_of, test_the_first_and_the_last_norm_stand_where_they_should
# says: The norm right after the table of tokens is there, and is not used: without it BLOOM's logits are far off.
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
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if False:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: no last norm
# caught by: test_the_whole_model_gives_the_logits_of, test_the_first_and_the_last_norm_stand_where_they_should
# says: The last norm is left out: the read-out expects a stream that was normalised.
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
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: padding has positions
# caught by: test_left_padding_changes_no_logit_of_the_text, test_a_learned_position_is_that_of_the_text
# says: Positions are counted from the left edge, padding included: the first token of a text stands at position 0.
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


# %% Decoder: positions from one
# caught by: test_the_whole_model_gives_the_logits_of, test_a_learned_position_is_that_of_the_text
# says: The first token stands at position 1: it should stand at 0.
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
        positions = mask.long().cumsum(1)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: the mask stays here
# caught by: test_left_padding_changes_no_logit_of_the_text
# says: The mask is used for positions, and is not handed to the blocks: they look at padding.
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
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, torch.ones_like(mask))
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: all blocks are layer 0
# caught by: test_the_whole_model_gives_the_logits_of
# says: Every block is told that it is layer 0: gpt-oss has a window in every other layer.
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c = config
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.n_context, config.d_model)
        if config.tokens_norm:
            self.tokens_norm = norm_of(config)
        self.blocks = nn.ModuleList([Block(config, 0) for i in range(config.n_layers)])
        self.norm = norm_of(config)
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=config.head_bias)

    def forward(self, ids, mask=None):
        if mask is None:
            mask = torch.ones(ids.shape, dtype=torch.bool)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: a read-out of its own everywhere
# caught by: test_the_decoder_has_the_stated_parameters
# says: There is a read-out matrix in every family: GPT-2 and BLOOM use the table of tokens.
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
        if True:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=config.head_bias)

    def forward(self, ids, mask=None):
        if mask is None:
            mask = torch.ones(ids.shape, dtype=torch.bool)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: tied everywhere
# caught by: test_the_decoder_has_the_stated_parameters, test_the_whole_model_gives_the_logits_of
# says: The read-out is the table of tokens in every family: only where tied is set.
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

    def forward(self, ids, mask=None):
        if mask is None:
            mask = torch.ones(ids.shape, dtype=torch.bool)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T


# %% Decoder: no bias in the read-out
# caught by: test_the_decoder_has_the_stated_parameters, test_the_read_out_is_tied_or_its_own
# says: GPT-J's read-out has a bias; here it has none.
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
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, mask=None):
        if mask is None:
            mask = torch.ones(ids.shape, dtype=torch.bool)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: tokens scaled
# caught by: test_the_whole_model_gives_the_logits_of
# says: The tokens are multiplied by √d_model: the Transformer of 2017 did that, and none of these models does.
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
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids) * self.c.d_model**0.5
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% Decoder: logits made into shares
# caught by: test_the_whole_model_gives_the_logits_of
# says: What comes out went through a softmax: it should be logits.
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
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            x = x + self.positions(positions)
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return (x @ self.tokens.weight.T if self.c.tied else self.head(x)).log_softmax(-1)


# %% Decoder: positions without learning
# caught by: test_the_whole_model_gives_the_logits_of
# says: GPT-2's table of positions is there, and is not added to the tokens.
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
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        x = self.tokens(ids)
        if self.c.positions == "learned":
            pass
        if self.c.tokens_norm:
            x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        x = self.norm(x)
        return x @ self.tokens.weight.T if self.c.tied else self.head(x)


# %% detective: heads of 64 channels
# caught by: test_what_no_shape_tells_is_none
# says: A head is said to have 64 channels because most do: no shape in this file says so.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads, d_head, n_context = q // 64, 64, None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: queries in the cache
# caught by: test_a_token_costs_its_keys_and_values
# says: The cache is said to hold as much as the queries need: it holds keys and values, which have fewer heads.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * q)
    return answer


# %% detective: keys alone
# caught by: test_a_token_costs_its_keys_and_values
# says: The cache holds keys and values, and only one of them was counted.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=2 * n_layers * k)
    return answer


# %% detective: the cache of one layer
# caught by: test_a_token_costs_its_keys_and_values
# says: The cache of one layer was counted: every layer has one.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * k)
    return answer


# %% detective: bytes of 32 bits
# caught by: test_a_token_costs_its_keys_and_values
# says: Four bytes a number were counted: in 16 bits it is two.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=8 * n_layers * k)
    return answer


# %% detective: without heads nothing is known
# caught by: test_a_token_costs_its_keys_and_values, test_shared_keys_show_in_the_shapes
# says: Because heads cannot be counted, group and bytes are given up: the rows of q and k are enough for both.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    if n_heads is None:
        answer.update(group=None, kv_bytes=None)
    return answer


# %% detective: the last layer's number
# caught by: test_layers_and_width_are_counted
# says: The number of the last layer is taken for the number of layers: they are counted from 0.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = max(int(n) for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name))
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: layers of one digit
# caught by: test_layers_and_width_are_counted
# says: Only layers 0 to 9 are counted: a name can have a number of two digits.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: OLMo taken for LLaMA
# caught by: test_every_family_is_named
# says: A file in which no norm has parameters is taken for LLaMA: it is OLMo.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: gpt-oss taken for Qwen2
# caught by: test_every_family_is_named, test_what_a_norm_or_a_sink_tells_is_used
# says: gpt-oss is taken for Qwen2, because it has biases too: look for the sinks first.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: GPT-NeoX and BLOOM confused
# caught by: test_every_family_is_named
# says: Any file with query_key_value is taken for GPT-NeoX: BLOOM has one too, under self_attention.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif any("query_key_value.weight" in name for name in shapes):
        family = "gpt_neox"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: names taken from their first word
# caught by: test_files_without_the_first_word_are_the_same
# says: The layers are counted by the first word of their names, which some files leave out.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"\.(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: unknown means LLaMA
# caught by: test_an_unknown_model_is_unknown
# says: A file of an unknown family is answered as if it were known.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer | {"family": "llama"}
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: zero for unknown
# caught by: test_what_no_shape_tells_is_none
# says: What cannot be known is said to be 0: it should be None.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = 0
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: the group as a fraction
# caught by: test_shared_keys_show_in_the_shapes
# says: group is a float: the number of heads that share a key head is an integer.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q / k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: keys over queries
# caught by: test_shared_keys_show_in_the_shapes
# says: group is the number of key heads to each query head: it is how many query heads share a key head.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=k // q, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: sinks taken for channels
# caught by: test_what_a_norm_or_a_sink_tells_is_used
# says: The number of sinks is taken for the channels of a head: there is one sink a head.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        d_head = find("self_attn.sinks")[0]
        n_heads = q // d_head
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=d_model, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% detective: the width of q
# caught by: test_layers_and_width_are_counted
# says: The rows of q are taken for d_model: in Qwen3 and gpt-oss the heads together are wider than the stream.
def detective(shapes):
    answer = dict.fromkeys(["family", "n_layers", "d_model", "n_context", "n_heads", "d_head", "group", "kv_bytes"])

    def find(end):
        for name, shape in shapes.items():
            if name == end or name.endswith("." + end):
                return shape

    if find("attn.c_attn.weight"):
        family = "gpt2"
    elif find("attn.q_proj.weight"):
        family = "gptj"
    elif find("attention.query_key_value.weight"):
        family = "gpt_neox"
    elif find("self_attention.query_key_value.weight"):
        family = "bloom"
    elif find("self_attn.sinks"):
        family = "gpt_oss"
    elif find("self_attn.q_norm.weight"):
        family = "qwen3"
    elif find("self_attn.q_proj.bias"):
        family = "qwen2"
    elif find("self_attn.q_proj.weight"):
        family = "llama" if find("input_layernorm.weight") else "olmo"
    else:
        return answer
    tables = ("wte.weight", "embed_in.weight", "word_embeddings.weight", "embed_tokens.weight")
    d_model = next(find(table)[1] for table in tables if find(table))
    n_layers = len({n for name in shapes for n in re.findall(r"(?:^|\.)(?:h|layers)\.(\d+)\.", name)})
    q = k = d_model
    if find("self_attn.q_proj.weight"):
        q, k = find("self_attn.q_proj.weight")[0], find("self_attn.k_proj.weight")[0]
    n_heads = d_head = n_context = None
    if family == "gpt2":
        n_context = find("wpe.weight")[0]
    if family == "gpt_oss":
        n_heads = find("self_attn.sinks")[0]
        d_head = q // n_heads
    if family == "qwen3":
        d_head = find("self_attn.q_norm.weight")[0]
        n_heads = q // d_head
    answer.update(family=family, n_layers=n_layers, d_model=q, n_context=n_context, n_heads=n_heads)
    answer.update(d_head=d_head, group=q // k, kv_bytes=4 * n_layers * k)
    return answer


# %% Mended: the patient as it was
# caught by: test_the_patient_is_in_health
# says: This is the patient as it was: the frequencies are spread over all channels of a head, not over those that turn.
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


# %% Mended: all channels turn now
# caught by: test_the_patient_is_in_health
# says: Now all channels of a head turn: the rotary share of them should.
class Layer(nn.Module):
    def __init__(self, d_model, n_heads, rotary):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.d_rotary = self.d_head
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


# %% Mended: spread over the pairs
# caught by: test_the_patient_is_in_health, test_what_was_healthy_still_is
# says: The frequencies are spread over the number of pairs: the exponent runs over the channels that turn, two a pair.
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
        frequency = 10_000 ** (-torch.arange(0, self.d_rotary, 2) / (self.d_rotary // 2))
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


# %% Mended: neighbours turn together
# caught by: test_the_patient_is_in_health, test_what_was_healthy_still_is
# says: Now neighbouring channels turn together: that was healthy, and GPT-NeoX turns halves.
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
        y, rest = x[..., : self.d_rotary], x[..., self.d_rotary :]
        a, b = y[..., ::2], y[..., 1::2]
        y = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(-2)
        return torch.cat([y, rest], -1)

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


# %% Mended: three blocks
# caught by: test_the_patient_is_in_health, test_what_was_healthy_still_is
# says: Now q, k and v are three blocks of the fused projection: in GPT-NeoX every head has its own three, and that was healthy.
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
        q, k, v = fused.unflatten(-1, (3, self.n_heads, self.d_head)).permute(2, 0, 3, 1, 4)
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


# %% Mended: in sequence
# caught by: test_the_patient_is_in_health, test_what_was_healthy_still_is
# says: Now the feed-forward part reads what attention added: GPT-NeoX has them side by side, and that was healthy.
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
        hidden = F.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x + looked)))
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


# %% Mended: the tanh GELU
# caught by: test_the_mended_model_keeps_its_names_and_its_gelu
# says: Now GELU is in its tanh form: GPT-NeoX has the exact one, and that was healthy.
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
        hidden = F.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x)), approximate="tanh")
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
