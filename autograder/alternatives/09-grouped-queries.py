# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% repeat_kv: expand and reshape, as transformers does
def repeat_kv(x, n_rep):
    *lead, n_kv_heads, n, d_head = x.shape
    copies = x.unsqueeze(-3).expand(*lead, n_kv_heads, n_rep, n, d_head)
    return copies.reshape(*lead, n_kv_heads * n_rep, n, d_head)


# %% repeat_kv: einops
def repeat_kv(x, n_rep):
    from einops import repeat

    return repeat(x, "... h n d -> ... (h r) n d", r=n_rep)


# %% repeat_kv: an index for each head
def repeat_kv(x, n_rep):
    return x[..., torch.arange(x.shape[-3] * n_rep) // n_rep, :, :]


# %% repeat_kv: a loop over heads
def repeat_kv(heads, times):
    copies = []
    for head in heads.unbind(-3):
        copies.extend([head] * times)
    return torch.stack(copies, -3)


# %% GroupedQueryAttention: PyTorch's own sharing
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        groups, rest = divmod(n_heads, n_kv_heads)
        if rest or not groups:
            raise ValueError(f"{n_heads} heads cannot be shared out among {n_kv_heads}.")
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.n_heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.n_kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.n_kv_heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, -1))


# %% GroupedQueryAttention: the queries folded into groups, nothing copied
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads != 0:
            raise ValueError(f"n_kv_heads={n_kv_heads} must divide n_heads={n_heads}")
        self.j, self.d = n_kv_heads, d_head
        for letter, heads in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
            setattr(self, f"{letter}_proj", nn.Linear(d_model, heads * d_head, bias=False))
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q = self.q_proj(x).unflatten(-1, (self.j, -1, self.d))  # batch, n, group, within, d_head
        k, v = (p(x).unflatten(-1, (self.j, self.d)) for p in (self.k_proj, self.v_proj))
        scores = torch.einsum("bqjgd,bkjd->bjgqk", q, k) / math.sqrt(self.d)
        if mask is not None:
            mask = mask.expand(len(x), q.shape[2] * q.shape[3], *scores.shape[-2:]).unflatten(1, (self.j, -1))
            scores = scores.masked_fill(~mask, -1e30)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights * mask
        return self.o_proj(torch.einsum("bjgqk,bkjd->bqjgd", weights, v).flatten(2))


# %% GroupedQueryAttention: a loop over heads
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads // n_kv_heads * n_kv_heads != n_heads:
            raise ValueError(f"n_heads = {n_heads} and n_kv_heads = {n_kv_heads} give no equal groups")
        self.sizes = n_heads, n_heads // n_kv_heads, d_head
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        n_heads, group, d = self.sizes
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        outputs = []
        for i in range(n_heads):
            j = i // group
            own = mask
            if mask is not None and mask.dim() > 2:
                own = mask[..., min(i, mask.shape[-3] - 1), :, :]
            key, value = k[..., j * d : (j + 1) * d], v[..., j * d : (j + 1) * d]
            outputs.append(F.scaled_dot_product_attention(q[..., i * d : (i + 1) * d], key, value, attn_mask=own))
        return self.o_proj(torch.cat(outputs, -1))


# %% GroupedQueryAttention: weights copied instead of heads
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_kv_heads} does not divide {n_heads}")
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        d_head = self.o_proj.weight.shape[1] // self.n_heads
        share = torch.arange(self.n_heads) // (self.n_heads * d_head // len(self.k_proj.weight))
        weights = [self.q_proj.weight.unflatten(0, (-1, d_head))]
        weights += [proj.weight.unflatten(0, (-1, d_head))[share] for proj in (self.k_proj, self.v_proj)]
        q, k, v = (torch.einsum("bnc,hdc->bhnd", x, weight) for weight in weights)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return heads.permute(0, 2, 1, 3).flatten(2) @ self.o_proj.weight.mT


# %% kv_cache_bytes: numbers added up, layer by layer
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    rank = config.get("kv_lora_rank")
    if rank:
        per_token = rank + config["qk_rope_head_dim"]
    else:
        heads = config.get("num_key_value_heads")
        heads = config["num_attention_heads"] if heads is None else heads
        width = config.get("head_dim")
        width = config["hidden_size"] // config["num_attention_heads"] if width is None else width
        keys, values = heads * width, heads * width
        per_token = keys + values
    total = 0
    for _ in range(config["num_hidden_layers"]):
        total += per_token * length * batch * torch.empty((), dtype=dtype).element_size()
    return total


# %% kv_cache_bytes: the tensors themselves, without memory
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    entry = {name: value for name, value in config.items() if value is not None}
    n_heads = entry["num_attention_heads"]
    if "kv_lora_rank" in entry:
        shapes = [(batch, length, entry["kv_lora_rank"]), (batch, length, entry["qk_rope_head_dim"])]
    else:
        d_head = entry.get("head_dim", entry["hidden_size"] // n_heads)
        shapes = [(batch, entry.get("num_key_value_heads", n_heads), length, d_head)] * 2
    kept = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    return entry["num_hidden_layers"] * sum(part.numel() * part.element_size() for part in kept)


# %% pool_heads: einops
def pool_heads(state, n_heads, n_kv_heads):
    from einops import reduce

    if n_heads % n_kv_heads != 0:
        raise ValueError(f"n_heads={n_heads} is not divisible by n_kv_heads={n_kv_heads}")
    group = n_heads // n_kv_heads
    result = {}
    for name, value in state.items():
        parts = name.split(".")
        if len(parts) >= 2 and parts[-2] in ("k_proj", "v_proj"):
            pattern = "(j g d) c -> (j d) c" if value.ndim == 2 else "(j g d) -> (j d)"
            value = reduce(value, pattern, "mean", j=n_kv_heads, g=group)
        result[name] = value
    return result


# %% pool_heads: a loop over groups and heads
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads > 0:
        raise ValueError(f"There are {n_heads} heads, which make no {n_kv_heads} equal groups.")
    new = {name: value.clone() for name, value in state.items()}
    for name in new:
        if not any(
            name == f"{letter}_proj.{kind}" or name.endswith(f".{letter}_proj.{kind}")
            for letter in "kv"
            for kind in ("weight", "bias")
        ):
            continue
        heads = new[name].chunk(n_heads, dim=0)
        group = n_heads // n_kv_heads
        means = [sum(heads[j * group : (j + 1) * group]) / group for j in range(n_kv_heads)]
        new[name] = torch.cat(means, dim=0)
    return new


# %% pool_heads: a product with a matrix of averages
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"cannot pool {n_heads} heads to {n_kv_heads}")
    means = torch.eye(n_kv_heads, dtype=torch.float64).repeat_interleave(n_heads // n_kv_heads, 1)
    means = means / means.sum(1, keepdim=True)

    def pool(value):
        heads = value.double().reshape(n_heads, -1)
        return (means @ heads).reshape(-1, *value.shape[1:]).to(value.dtype)

    keys = ("k_proj", "v_proj")
    return {
        name: pool(value) if name.split(".")[-2:][0] in keys and "." in name else value for name, value in state.items()
    }


# %% LatentAttention: the up-projections absorbed, so that no key or value is ever made
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down = nn.Linear(d_model, q_rank, bias=False)
        self.q_norm = nn.RMSNorm(q_rank, eps=1e-6)
        self.q_up = nn.Linear(q_rank, n_heads * (d_nope + d_rope), bias=False)
        self.kv_down = nn.Linear(d_model, kv_rank + d_rope, bias=False)
        self.kv_norm = nn.RMSNorm(kv_rank, eps=1e-6)
        self.kv_up = nn.Linear(kv_rank, n_heads * (d_nope + d_v), bias=False)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(x.shape[1]) + start
        down = self.kv_down(x)
        new = torch.cat(
            [self.kv_norm(down[..., : self.rank]), rotate(down[..., self.rank :], positions, self.theta)], -1
        )
        kept = new if kept is None else torch.cat([kept, new], 1)
        w_k, w_v = self.kv_up.weight.view(self.h, self.nope + self.v, self.rank).split([self.nope, self.v], 1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q_rope = rotate(q[..., self.nope :], positions, self.theta)
        q = torch.cat([torch.einsum("bhnd,hdr->bhnr", q[..., : self.nope], w_k), q_rope], -1)
        scores = torch.einsum("bhnr,bmr->bhnm", q, kept) * (self.nope + self.rope) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights * mask
        mixed = torch.einsum("bhnm,bmr->bhnr", weights, kept[..., : self.rank])
        return self.o_proj(torch.einsum("bhnr,hdr->bnhd", mixed, w_v).flatten(2)), kept


# %% LatentAttention: kept as it comes from the projection, normalised and rotated in every call
class Root(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.n_heads, self.kv_rank, self.d_nope, self.d_rope, self.d_v = n_heads, kv_rank, d_nope, d_rope, d_v
        self.rope_theta = rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = Root(q_rank), Root(kv_rank)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, False)

    def forward(self, x, mask=None, kept=None):
        b, n, _ = x.shape
        raw = self.kv_down(x)
        if kept is not None:
            raw = torch.cat((kept, raw), dim=1)
        length = raw.shape[1]
        k_rope = rotate(raw[:, :, self.kv_rank :], torch.arange(length), self.rope_theta)
        up = self.kv_up(self.kv_norm(raw[:, :, : self.kv_rank])).view(b, length, self.n_heads, self.d_nope + self.d_v)
        q = self.q_up(self.q_norm(self.q_down(x))).view(b, n, self.n_heads, self.d_nope + self.d_rope).transpose(1, 2)
        q_rope = rotate(q[..., self.d_nope :], torch.arange(length - n, length), self.rope_theta)
        scores = torch.einsum("bhnd,bmhd->bhnm", q[..., : self.d_nope], up[..., : self.d_nope])
        scores = (scores + torch.einsum("bhnd,bmd->bhnm", q_rope, k_rope)) / math.sqrt(self.d_nope + self.d_rope)
        allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand_as(scores)
        weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).masked_fill(~allowed, 0)
        out = torch.einsum("bhnm,bmhd->bnhd", weights, up[..., self.d_nope :])
        return self.o_proj(out.reshape(b, n, self.n_heads * self.d_v)), raw


# %% LatentAttention: a head at a time, and a rotation of its own
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.sizes = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        shapes = {"q_up": (q_rank, n_heads * (d_nope + d_rope)), "kv_down": (d_model, kv_rank + d_rope)}
        shapes |= {
            "q_down": (d_model, q_rank),
            "kv_up": (kv_rank, n_heads * (d_nope + d_v)),
            "o_proj": (n_heads * d_v, d_model),
        }
        for name, (width, rows) in shapes.items():
            self.add_module(name, nn.Linear(width, rows, bias=False))
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, 1e-6), nn.RMSNorm(kv_rank, 1e-6)

    def turn(self, x, start):
        half, theta = x.shape[-1] // 2, self.sizes[-1]
        angles = torch.arange(start, start + x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
        cos, sin, even, odd = angles.cos().to(x.dtype), angles.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def forward(self, x, mask=None, kept=None):
        n_heads, rank, nope, rope, d_v, _ = self.sizes
        past = kept[:, :0] if kept is not None else None
        start = kept.size(1) if past is not None else 0
        latent, key = torch.split(self.kv_down(x), (rank, rope), -1)
        fresh = torch.cat((self.turn(key, start), self.kv_norm(latent)), -1)  # the rotary key first: our own affair
        kept = fresh if kept is None else torch.cat((kept, fresh), 1)
        queries = self.q_up(self.q_norm(self.q_down(x))).chunk(n_heads, -1)
        pairs = self.kv_up(kept[..., rope:]).chunk(n_heads, -1)
        if mask is not None:
            mask = mask.expand(len(x), n_heads, x.shape[1], kept.shape[1])
        heads = []
        for i, (query, pair) in enumerate(zip(queries, pairs, strict=True)):
            query = torch.cat((query[..., :nope], self.turn(query[..., nope:], start)), -1)
            key = torch.cat((pair[..., :nope], kept[..., :rope]), -1)
            own = None if mask is None else mask[:, i]
            heads.append(F.scaled_dot_product_attention(query, key, pair[..., nope:], attn_mask=own))
        return self.o_proj(torch.cat(heads, -1)), kept


# %% repeat_kv: the positions written several times, then cut into heads
def repeat_kv(x, n_rep):
    *lead, n_kv_heads, n, d_head = x.shape
    return torch.cat([x] * n_rep, -2).reshape(*lead, n_kv_heads * n_rep, n, d_head)
