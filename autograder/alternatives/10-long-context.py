# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% sliding_window_mask: two triangles
def sliding_window_mask(n_q, n_k, window):
    if n_q > n_k:
        raise ValueError(f"n_k={n_k} keys are too few for n_q={n_q} queries")
    if window <= 0:
        raise ValueError(f"window={window} is too small")
    past = n_k - n_q
    return torch.ones((n_q, n_k), dtype=torch.bool).tril(diagonal=past).triu(diagonal=past - window + 1)


# %% sliding_window_mask: rows of a loop
def sliding_window_mask(n_q: int, n_k: int, window: int):
    if n_k < n_q:
        raise ValueError("%d keys, but %d queries" % (n_k, n_q))
    if window < 1:
        raise ValueError("the window is %d" % window)
    mask = torch.zeros(n_q, n_k, dtype=torch.bool)
    for row, position in enumerate(range(n_k - n_q, n_k)):
        mask[row, max(0, position - window + 1) : position + 1] = True
    return mask


# %% sliding_window_mask: lists of comparisons
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"cannot make a mask of {n_q} queries and {n_k} keys with a window of {window}")
    first = n_k - n_q
    return torch.tensor([[0 <= first + i - j <= window - 1 for j in range(n_k)] for i in range(n_q)])


# %% RollingKVCache: one position at a time
class RollingKVCache:
    def __init__(self, window):
        self.window = window
        self.k, self.v, self.count = {}, {}, {}

    @property
    def length(self):
        return 0 if not self.count else next(iter(self.count.values()))

    def update(self, layer, k, v):
        if layer not in self.count:
            self.count[layer] = 0
            self.k[layer] = torch.zeros(*k.shape[:2], self.window, k.shape[-1], dtype=k.dtype)
            self.v[layer] = torch.zeros(*v.shape[:2], self.window, v.shape[-1], dtype=v.dtype)
        seen = self.count[layer]
        slots = [p % self.window for p in range(max(0, seen - (self.window - 1)), seen)]
        out_k = [self.k[layer][..., s, :].clone() for s in slots] + list(k.unbind(2))
        out_v = [self.v[layer][..., s, :].clone() for s in slots] + list(v.unbind(2))
        for i in range(k.shape[2]):
            self.k[layer][..., (seen + i) % self.window, :] = k[..., i, :]
            self.v[layer][..., (seen + i) % self.window, :] = v[..., i, :]
        self.count[layer] = seen + k.shape[2]
        return torch.stack(out_k, 2), torch.stack(out_v, 2)


# %% RollingKVCache: rolled into order and back
class RollingKVCache:
    def __init__(self, window):
        self.w, self.k, self.v, self.n = window, {}, {}, {}

    @property
    def length(self):
        return max([0, *self.n.values()])

    def one(self, rings, layer, x, n):
        w, size = self.w, x.size(2)
        if layer not in rings:
            rings[layer] = torch.zeros(x.size(0), x.size(1), w, x.size(3), dtype=x.dtype)
        ordered = rings[layer].roll(-(n % w), dims=2)  # the oldest position first
        have = min(n, w)
        text = torch.cat([ordered[:, :, w - have :], x], dim=2)
        newest = text[:, :, -w:]
        if newest.size(2) < w:
            newest = F.pad(newest, (0, 0, w - newest.size(2), 0))
        rings[layer] = newest.roll((n + size) % w, dims=2).clone()
        return text[:, :, 1:] if have == w else text

    def update(self, layer, k, v):
        n = self.n.get(layer, 0)
        found = self.one(self.k, layer, k, n), self.one(self.v, layer, v, n)
        self.n[layer] = n + k.size(2)
        return found


# %% RollingKVCache: a list of states, index_copy
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v = window, {}, {}
        self.ends = {}

    @property
    def length(self):
        return max(self.ends.values()) if self.ends else 0

    def update(self, layer, k, v):
        end = self.ends.setdefault(layer, 0)
        n = k.shape[2]
        first = end - min(end, self.window - 1)
        read = torch.tensor([p % self.window for p in range(first, end)], dtype=torch.long)
        write = torch.tensor([p % self.window for p in range(end + max(0, n - self.window), end + n)])
        results = []
        for name, new in (("k", k), ("v", v)):
            store = getattr(self, name)
            if layer not in store:
                shape = list(new.shape)
                shape[2] = self.window
                store[layer] = torch.zeros(shape, dtype=new.dtype)
            results.append(torch.cat((store[layer].index_select(2, read), new), dim=2))
            store[layer] = store[layer].index_copy(2, write, new[:, :, n - len(write) :])
        self.ends[layer] += n
        return results[0], results[1]


# %% block_sparse_mask: loops over blocks
def block_sparse_mask(n, block, n_local, n_global, random):
    mask = torch.zeros(n, n, dtype=torch.bool)
    n_blocks = random.shape[0]
    for a in range(n_blocks):
        rows = slice(a * block, (a + 1) * block)
        seen = set(range(a - n_local, a + n_local + 1)) | set(range(n_global)) | set(random[a].tolist())
        if a < n_global:
            seen = set(range(n_blocks))
        for b in seen:
            if 0 <= b < n_blocks:
                mask[rows, b * block : (b + 1) * block] = True
    return mask


# %% block_sparse_mask: a Kronecker product, cut to size
def block_sparse_mask(n, block, n_local, n_global, random):
    blocks = random.size(0)
    tiles = torch.ones(blocks, blocks).tril(n_local).triu(-n_local)
    tiles[:n_global] = 1
    tiles[:, :n_global] = 1
    tiles.scatter_(1, random, 1.0)
    return torch.kron(tiles, torch.ones(block, block))[:n, :n] > 0


# %% block_sparse_mask: positions compared, one-hot links
def block_sparse_mask(n, block, n_local, n_global, random):
    of = torch.div(torch.arange(n), block, rounding_mode="floor")
    row, column = of.unsqueeze(1), of.unsqueeze(0)
    local = (row - column).abs().le(n_local)
    everywhere = torch.minimum(row, column).lt(n_global)
    links = F.one_hot(random, len(random)).sum(1).bool()
    return local.logical_or(everywhere).logical_or(links[row, column])


# %% topk_attention: gather the chosen keys and values
def topk_attention(q, k, v, top_k, mask=None):
    scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = torch.where(mask, scores, torch.tensor(-math.inf, dtype=scores.dtype))
    best, index = torch.sort(scores, dim=-1, descending=True, stable=True)
    best, index = best[..., :top_k], index[..., :top_k]
    weights = torch.softmax(best, dim=-1).masked_fill(best == -math.inf, 0)
    values = v.unsqueeze(-3).expand(*index.shape[:-1], *v.shape[-2:])
    index = index[..., None].expand(*index.shape, v.shape[-1])
    return (weights[..., None] * values.gather(-2, index)).sum(-2)


# %% topk_attention: ranks by counting
def topk_attention(q, k, v, top_k, mask=None):
    raw = torch.einsum("...id,...jd->...ij", q, k)
    allowed = torch.ones_like(raw, dtype=torch.bool) if mask is None else mask.expand(raw.shape)
    a, b = raw.detach()[..., :, None], raw.detach()[..., None, :]
    j = torch.arange(raw.shape[-1])
    earlier = j[None, :] < j[:, None]
    better = ((b > a) | ((b == a) & earlier)) & allowed[..., None, :]
    chosen = allowed & (better.sum(-1) < top_k)
    scaled = (raw / math.sqrt(q.shape[-1])).masked_fill(~chosen, -math.inf)
    return torch.softmax(scaled, -1).masked_fill(~chosen, 0) @ v


# %% topk_attention: one best key after the other
def topk_attention(q, k, v, top_k, mask=None):
    left = (q @ k.mT).detach()
    left = left.clone() if mask is None else left.masked_fill(~mask, -math.inf)
    chosen = torch.zeros_like(left, dtype=torch.bool)
    for _ in range(min(top_k, left.shape[-1])):
        best = left.max(-1, keepdim=True).values
        tied = (left == best) & (left > -math.inf)
        first = tied & (tied.cumsum(-1) == 1)
        chosen, left = chosen | first, left.masked_fill(first, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)


# %% LinformerAttention: einsum throughout
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.d_head, self.n_max = n_heads, d_model // n_heads, n_max
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        b, n, d = x.shape
        if n > self.n_max:
            raise ValueError(f"n={n} is more than n_max={self.n_max}")
        q = self.q_proj(x).view(b, n, self.n_heads, self.d_head)
        k = self.k_proj(x).view(b, n, self.n_heads, self.d_head)
        v = self.v_proj(x).view(b, n, self.n_heads, self.d_head)
        if mask is not None:
            k = torch.where(mask[:, :, None, None], k, 0.0)
            v = torch.where(mask[:, :, None, None], v, 0.0)
        k = torch.einsum("rp,bphd->brhd", self.e_proj.weight[:, :n], k)
        v = torch.einsum("rp,bphd->brhd", self.f_proj.weight[:, :n], v)
        weights = torch.softmax(torch.einsum("bihd,brhd->bhir", q, k) / math.sqrt(self.d_head), dim=-1)
        return self.o_proj(torch.einsum("bhir,brhd->bihd", weights, v).reshape(b, n, d))


# %% LinformerAttention: the text is padded to n_max
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for name, sizes in {**dict.fromkeys("qkvo", (d_model, d_model)), **dict.fromkeys("ef", (n_max, rank))}.items():
            self.add_module(f"{name}_proj", nn.Linear(*sizes, bias=False))

    def forward(self, x, mask=None):
        missing = self.n_max - x.size(1)
        if missing < 0:
            raise ValueError(f"{x.size(1)} > {self.n_max}: the text is too long for this layer")
        shown = x if mask is None else x * mask.unsqueeze(-1)
        shown = F.pad(shown, (0, 0, 0, missing))
        k = self.e_proj(self.k_proj(shown).transpose(1, 2)).transpose(1, 2)
        v = self.f_proj(self.v_proj(shown).transpose(1, 2)).transpose(1, 2)
        out = [
            F.scaled_dot_product_attention(*parts)
            for parts in zip(*(part.chunk(self.n_heads, -1) for part in (self.q_proj(x), k, v)), strict=True)
        ]
        return self.o_proj(torch.cat(out, -1))


# %% LinformerAttention: the mask on the columns of E and F
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.e_proj = nn.Linear(n_max, rank, bias=False)
        self.f_proj = nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n, n_max = x.shape[1], self.e_proj.in_features
        if n > n_max:
            raise ValueError(f"at most {n_max} positions, not {n}")
        e, f = self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        if mask is not None:
            e, f = e * mask[:, None], f * mask[:, None]
        k, v = torch.matmul(e, self.k_proj(x)), torch.matmul(f, self.v_proj(x))
        q, k, v = (t.reshape(len(t), t.shape[1], self.n_heads, -1).permute(0, 2, 1, 3) for t in (self.q_proj(x), k, v))
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        return self.o_proj((weights @ v).permute(0, 2, 1, 3).reshape(x.shape))
