# %% a ring for one tensor
class Ring:
    """The last `size` positions of keys or of values; position p is at index p % size."""

    def __init__(self, like, size):
        batch, heads, _, width = like.shape
        self.data = torch.zeros(batch, heads, size, width, dtype=like.dtype)
        self.size = size

    def last(self, count, end):
        index = [p % self.size for p in range(end - count, end)]
        return self.data[:, :, index]

    def write(self, x, start):
        for i in range(max(0, x.size(2) - self.size), x.size(2)):
            self.data[:, :, (start + i) % self.size] = x[:, :, i]


# %% sliding_window_mask
def sliding_window_mask(n_q: int, n_k: int, window: int) -> Bool[Tensor, "n_q n_k"]:
    if n_q > n_k:
        raise ValueError(f"every query has a key of its own, so {n_k} keys are not enough for {n_q} queries")
    if window < 1:
        raise ValueError(f"a token sees at least itself: a window of {window} is impossible")
    query = torch.arange(n_q)[:, None] + (n_k - n_q)
    key = torch.arange(n_k)[None, :]
    causal = key <= query
    near = query - key <= window - 1
    return causal & near


# %% RollingKVCache
class RollingKVCache:
    def __init__(self, window: int) -> None:
        self.window = window
        self.rings = {}
        self.ends = {}

    @property
    def k(self):
        return {layer: rings[0].data for layer, rings in self.rings.items()}

    @property
    def v(self):
        return {layer: rings[1].data for layer, rings in self.rings.items()}

    @property
    def length(self) -> int:
        return max(self.ends.values(), default=0)

    def update(self, layer, k, v):
        if layer not in self.rings:
            self.rings[layer] = (Ring(k, self.window), Ring(v, self.window))
            self.ends[layer] = 0
        end = self.ends[layer]
        past = min(end, self.window - 1)
        seen = []
        for ring, new in zip(self.rings[layer], (k, v), strict=True):
            seen.append(torch.cat([ring.last(past, end), new], dim=2))  # before it is overwritten
            ring.write(new, end)
        self.ends[layer] = end + k.size(2)
        return seen[0], seen[1]


# %% block_sparse_mask
def block_sparse_mask(n, block, n_local, n_global, random):
    n_blocks = random.shape[0]
    grid = torch.zeros(n_blocks, n_blocks, dtype=torch.bool)
    for a in range(n_blocks):
        for b in range(n_blocks):
            grid[a, b] = abs(a - b) <= n_local or a < n_global or b < n_global
        for b in random[a].tolist():
            grid[a, b] = True
    full = grid.repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)
    return full[:n, :n]


# %% topk_attention
def topk_attention(q, k, v, top_k, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.shape[-1])
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool)
    scores = scores.masked_fill(~mask, float("-inf"))
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # 0 for the best key
    keep = (rank < top_k) & mask
    weights = torch.softmax(scores.masked_fill(~keep, float("-inf")), dim=-1)
    return weights.masked_fill(~keep, 0.0) @ v


# %% LinformerAttention
class LinformerAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_max: int, rank: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.n_max = n_max
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.e_proj = nn.Linear(n_max, rank, bias=False)
        self.f_proj = nn.Linear(n_max, rank, bias=False)

    def split(self, x):
        batch, n, d_model = x.shape
        return x.reshape(batch, n, self.n_heads, d_model // self.n_heads).transpose(1, 2)

    def mix(self, proj, x, mask):
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        return torch.einsum("rn,bnd->brd", proj.weight[:, : x.shape[1]], x)

    def forward(self, x, mask=None):
        batch, n, d_model = x.shape
        if n > self.n_max:
            raise ValueError(f"the text has {n} positions, and E and F have columns for {self.n_max}")
        q = self.split(self.q_proj(x))
        k = self.split(self.mix(self.e_proj, self.k_proj(x), mask))
        v = self.split(self.mix(self.f_proj, self.v_proj(x), mask))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).reshape(batch, n, d_model))
