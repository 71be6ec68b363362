# %% sliding_window_mask
def sliding_window_mask(n_q, n_k, window):
    # i - W <= j <= i, as in the paper
    if n_k < n_q:
        raise ValueError(f"n_q = {n_q} but n_k = {n_k}")
    if window < 1:
        raise ValueError(f"window = {window}")
    i = torch.arange(n_k - n_q, n_k).unsqueeze(1)
    j = torch.arange(n_k).unsqueeze(0)
    return (j <= i) & (j >= i - window)


# %% RollingKVCache
class RollingKVCache:
    def __init__(self, window):
        self.window = window
        self.k = {}
        self.v = {}
        self.n = {}

    @property
    def length(self):
        return max(self.n.values(), default=0)

    def update(self, layer, k, v):
        # token by token this is right
        W = self.window
        if layer not in self.k:
            self.k[layer] = torch.zeros(k.shape[0], k.shape[1], W, k.shape[3], dtype=k.dtype)
            self.v[layer] = torch.zeros(v.shape[0], v.shape[1], W, v.shape[3], dtype=v.dtype)
            self.n[layer] = 0
        for i in range(k.shape[2]):
            slot = self.n[layer] % W
            self.k[layer][:, :, slot] = k[:, :, i]
            self.v[layer][:, :, slot] = v[:, :, i]
            self.n[layer] += 1
        n = self.n[layer]
        order = [p % W for p in range(max(0, n - W), n)]
        return self.k[layer][:, :, order], self.v[layer][:, :, order]


# %% block_sparse_mask
def block_sparse_mask(n, block, n_local, n_global, random):
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            a, b = i // block, j // block
            if abs(a - b) <= n_local or b < n_global or b in random[a]:
                mask[i, j] = True
    return mask


# %% topk_attention
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    best = torch.topk(scores, min(top_k, scores.shape[-1]), dim=-1)
    kept = torch.full_like(scores, float("-inf")).scatter(-1, best.indices, best.values)
    return torch.softmax(kept, dim=-1) @ v
