# %% KVCache
class KVCache:
    def __init__(self):
        self.k = {}
        self.v = {}

    @property
    def length(self):
        # number of updates so far
        if not self.k:
            return 0
        return len(self.k[0])

    def update(self, layer, k, v):
        if layer not in self.k:
            self.k[layer] = []
            self.v[layer] = []
        self.k[layer].append(k)
        self.v[layer].append(v)
        return torch.cat(self.k[layer], dim=2), torch.cat(self.v[layer], dim=2)


# %% chunk_mask
def chunk_mask(n_q, n_k):
    mask = torch.zeros(n_q, n_k, dtype=torch.bool)
    for i in range(n_q):
        for j in range(n_k):
            mask[i, j] = j <= i + n_k - n_q
    return mask


# %% CachedAttention
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q = self.q_proj(x).view(b, n, self.n_heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.n_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.n_heads, -1).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        # only the prompt needs a mask
        out = F.scaled_dot_product_attention(q, k, v, is_causal=(q.shape[2] == k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% kv_cache_bytes
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * length * n_layers * n_heads * d_head * batch * dtype.itemsize


# %% sample
def sample(logits, u, temperature=1.0, top_k=None):
    if top_k is not None:
        smallest = torch.topk(logits, top_k).values[:, -1:]
        logits = torch.where(logits < smallest, torch.tensor(float("-inf")), logits)
    probs = torch.softmax(logits / temperature, dim=-1)
    return (torch.cumsum(probs, dim=-1) <= u[:, None]).sum(dim=-1)
