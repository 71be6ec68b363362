# %% what both layers need
def heads_of(y, n_heads):
    """(batch, n, n_heads * d) -> (batch, n_heads, n, d)"""
    batch, n, width = y.shape
    return y.view(batch, n, n_heads, width // n_heads).permute(0, 2, 1, 3)


def attend(q, k, v, mask, width):
    s = torch.einsum("bhqd,bhkd->bhqk", q, k) / width**0.5
    if mask is None:
        return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(s, -1), v)
    s = s.masked_fill(~mask, torch.finfo(s.dtype).min)
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(s, -1) * mask, v)  # zeros where nothing may be seen


# %% repeat_kv
def repeat_kv(x, n_rep):
    # 0 0 0 1 1 1, not 0 1 0 1 0 1
    n_heads = x.shape[-3] * n_rep
    which = torch.div(torch.arange(n_heads), n_rep, rounding_mode="floor")
    return x.index_select(x.dim() - 3, which)


# %% GroupedQueryAttention
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads != 0:
            raise ValueError(f"cannot share {n_kv_heads} kv heads evenly among {n_heads} query heads")
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        kv_width = n_kv_heads * d_head
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        times = self.n_heads // self.n_kv_heads
        q = heads_of(self.q_proj(x), self.n_heads)
        k = repeat_kv(heads_of(self.k_proj(x), self.n_kv_heads), times)
        v = repeat_kv(heads_of(self.v_proj(x), self.n_kv_heads), times)
        out = attend(q, k, v, mask, self.d_head)
        return self.o_proj(out.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[1], -1))


# %% kv_cache_bytes
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    def entry(name, otherwise):
        value = config.get(name)
        return otherwise if value is None else value

    latent = entry("kv_lora_rank", 0)
    if latent:
        a_token = latent + config["qk_rope_head_dim"]
    else:
        q_heads = config["num_attention_heads"]
        a_token = 2 * entry("num_key_value_heads", q_heads) * entry("head_dim", config["hidden_size"] // q_heads)
    return a_token * config["num_hidden_layers"] * length * batch * dtype.itemsize


# %% pool_heads
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads do not make {n_kv_heads} equal groups")
    size = n_heads // n_kv_heads
    new = {}
    for name, value in state.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-2] in ("k_proj", "v_proj"):
            d_head = value.shape[0] // n_heads
            blocks = value.reshape(n_kv_heads, size, d_head, *value.shape[1:])
            value = blocks.double().mean(dim=1).reshape(n_kv_heads * d_head, *value.shape[1:]).to(value.dtype)
        new[name] = value
    return new


# %% LatentAttention
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.n_heads, self.kv_rank, self.rope_theta = n_heads, kv_rank, rope_theta
        self.d_nope, self.d_rope, self.d_v = d_nope, d_rope, d_v
        self.q_down = nn.Linear(d_model, q_rank, bias=False)
        self.q_norm = nn.RMSNorm(q_rank, eps=1e-6)
        self.q_up = nn.Linear(q_rank, n_heads * (d_nope + d_rope), bias=False)
        self.kv_down = nn.Linear(d_model, kv_rank + d_rope, bias=False)
        self.kv_norm = nn.RMSNorm(kv_rank, eps=1e-6)
        self.kv_up = nn.Linear(kv_rank, n_heads * (d_nope + d_v), bias=False)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        batch, n, _ = x.shape
        past = 0 if kept is None else kept.size(1)
        where = past + torch.arange(n)

        # what is kept: the normalised latent and the rotated key
        down = self.kv_down(x)
        latent = self.kv_norm(down[:, :, : self.kv_rank])
        rope_key = rotate(down[:, :, self.kv_rank :], where, self.rope_theta)
        row = torch.cat((latent, rope_key), dim=2)
        if kept is not None:
            row = torch.cat((kept, row), dim=1)

        q = heads_of(self.q_up(self.q_norm(self.q_down(x))), self.n_heads)
        q = torch.cat((q[..., : self.d_nope], rotate(q[..., self.d_nope :], where, self.rope_theta)), dim=-1)
        kv = heads_of(self.kv_up(row[:, :, : self.kv_rank]), self.n_heads)
        shared = row[:, None, :, self.kv_rank :].repeat(1, self.n_heads, 1, 1)
        k = torch.cat((kv[..., : self.d_nope], shared), dim=-1)
        out = attend(q, k, kv[..., self.d_nope :], mask, self.d_nope + self.d_rope)
        return self.o_proj(out.permute(0, 2, 1, 3).reshape(batch, n, -1)), row
