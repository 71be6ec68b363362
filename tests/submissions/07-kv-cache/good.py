# %% a room that grows
class Room:
    """Positions of one layer, with space made in advance; doubles when it is full."""

    def __init__(self, first):
        b, h, _, d = first.shape
        self.data = torch.empty(b, h, 32, d, dtype=first.dtype)
        self.n = 0

    def append(self, x):
        need = self.n + x.size(-2)
        while need > self.data.size(-2):
            self.data = torch.cat([self.data, torch.empty_like(self.data)], dim=-2)
        self.data[..., self.n : need, :] = x
        self.n = need
        return self.data[..., :need, :]


# %% KVCache
class KVCache:
    """Keys and values of all positions so far, for each layer of one model."""

    def __init__(self) -> None:
        self.rooms = {}

    @property
    def length(self) -> int:
        """How many positions it holds."""
        for k_room, _ in self.rooms.values():
            return k_room.n
        return 0

    def update(self, layer, k, v):
        """Add the keys and values of new positions to those of this layer, and return all of them."""
        if layer not in self.rooms:
            self.rooms[layer] = (Room(k), Room(v))
        k_room, v_room = self.rooms[layer]
        return k_room.append(k), v_room.append(v)


# %% chunk_mask
def chunk_mask(n_q: int, n_k: int) -> Bool[Tensor, "n_q n_k"]:
    n_past = n_k - n_q
    if n_past < 0:
        raise ValueError(f"a chunk has its own keys, so {n_q} queries cannot have only {n_k} keys")
    position_of_query = n_past + torch.arange(n_q).unsqueeze(1)
    position_of_key = torch.arange(n_k).unsqueeze(0)
    return position_of_key <= position_of_query


# %% CachedAttention
class CachedAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def heads(self, x):
        b, n, _ = x.shape
        return x.view(b, n, self.n_heads, self.d_head).transpose(1, 2)

    def forward(self, x, cache=None, layer=0):
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(self.d_head)
        mask = chunk_mask(q.size(2), k.size(2))
        weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
        together = (weights @ v).transpose(1, 2).reshape(x.shape)
        return self.o_proj(together)


# %% kv_cache_bytes
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    if n_kv_heads is None:
        n_kv_heads = n_heads
    one_vector = d_head * dtype.itemsize
    key_and_value = 2 * one_vector
    return key_and_value * n_kv_heads * n_layers * length * batch


# %% sample
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return torch.argmax(logits, dim=-1)
    vocabulary = logits.shape[-1]
    scaled = logits.double() / temperature
    if top_k is not None and top_k < vocabulary:
        best = torch.topk(scaled, top_k, dim=-1)
        scaled = torch.full_like(scaled, -math.inf).scatter(-1, best.indices, best.values)
    cdf = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    return torch.searchsorted(cdf, u.double()[:, None], right=True)[:, 0]


# %% generate
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    if choose is None:

        def choose(logits):
            return logits.argmax(-1)

    batch, n = prompt.shape
    step = n if chunk is None else chunk
    finished = torch.zeros(batch, dtype=torch.bool)
    out = prompt
    with torch.no_grad():
        for i in range(0, n, step):
            logits = model(prompt[:, i : i + step], cache)
        for i in range(n_new):
            token = choose(logits[:, -1, :])
            if end is not None:
                token = torch.where(finished, torch.tensor(end), token)
                finished = finished | (token == end)
            out = torch.cat([out, token[:, None]], dim=1)
            if i == n_new - 1 or bool(finished.all()):
                break
            logits = model(token[:, None], cache)
    return out
