# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% KVCache: lists of chunks, put together when asked
class KVCache:
    def __init__(self):
        self.keys, self.values = {}, {}

    @property
    def length(self):
        for chunks in self.keys.values():
            return sum(chunk.size(2) for chunk in chunks)
        return 0

    def update(self, layer, k, v):
        self.keys.setdefault(layer, []).append(k.detach().clone())
        self.values.setdefault(layer, []).append(v.detach().clone())
        return torch.cat(self.keys[layer], dim=2), torch.cat(self.values[layer], dim=2)


# %% KVCache: room made in advance, doubled when it is full
class Row:
    def __init__(self, like):
        self.room, self.used = like.new_empty(*like.shape[:2], 16, like.shape[3]), 0

    def add(self, new):
        end = self.used + new.shape[2]
        if end > self.room.shape[2]:
            larger = self.room.new_empty(*self.room.shape[:2], max(end, 2 * self.room.shape[2]), self.room.shape[3])
            larger[:, :, : self.used] = self.room[:, :, : self.used]
            self.room = larger
        self.room[:, :, self.used : end] = new
        self.used = end
        return self.room[:, :, :end]


class KVCache:
    def __init__(self):
        self.rows = {}

    @property
    def length(self):
        return max((row.used for row in self.rows.values()), default=0)

    def update(self, layer, k, v):
        for kind, new in (("k", k), ("v", v)):
            if (layer, kind) not in self.rows:
                self.rows[layer, kind] = Row(new)
        return self.rows[layer, "k"].add(k), self.rows[layer, "v"].add(v)


# %% KVCache: a default dictionary of empty tensors, and a list for the result
from collections import defaultdict


class KVCache:
    def __init__(self):
        self.layers = defaultdict(lambda: [None, None])

    @property
    def length(self) -> int:
        lengths = {kept[0].shape[-2] for kept in self.layers.values()}
        return lengths.pop() if lengths else 0

    def update(self, layer, k, v):
        kept = self.layers[layer]
        for i, new in enumerate((k, v)):
            kept[i] = torch.concat([new[..., :0, :] if kept[i] is None else kept[i], new], dim=-2)
        return tuple(kept)


# %% KVCache: an nn.Module with an attribute that is counted
class KVCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.v = {}, {}
        self.length = 0

    def update(self, layer, k, v):
        past = self.k[layer].shape[2] if layer in self.k else 0
        self.length = past + k.shape[2]
        parts = []
        for kept, new in ((self.k, k), (self.v, v)):
            room = new.new_zeros(new.shape[0], new.shape[1], self.length, new.shape[3])
            if past:
                room[:, :, :past] = kept[layer]
            room[:, :, past:] = new
            kept[layer] = room
            parts.append(room)
        return parts[0], parts[1]


# %% chunk_mask: positions compared
def chunk_mask(n_q, n_k):
    if n_q > n_k:
        raise ValueError(f"a chunk of {n_q} does not fit into {n_k} positions")
    queries = torch.arange(n_k - n_q, n_k)
    return queries[:, None] >= torch.arange(n_k)[None, :]


# %% chunk_mask: the last rows of the whole mask
def chunk_mask(n_q, n_k):
    if n_k - n_q < 0:
        raise ValueError(f"n_q = {n_q} is more than n_k = {n_k}")
    return torch.tril(torch.ones(n_k, n_k)).bool()[n_k - n_q :]


# %% chunk_mask: the past and the chunk side by side
def chunk_mask(n_q, n_k):
    n_past = n_k - n_q
    if n_past < 0:
        raise ValueError(f"There are {n_k} keys for {n_q} queries.")
    past = torch.ones((n_q, n_past), dtype=torch.bool)
    own = torch.ones((n_q, n_q), dtype=torch.bool).tril()
    return torch.cat((past, own), dim=1)


# %% chunk_mask: lists
def chunk_mask(queries, keys):
    if keys < queries:
        raise ValueError(f"{keys} keys are too few for {queries} queries")
    return torch.tensor([[key <= keys - queries + query for key in range(keys)] for query in range(queries)])


# %% CachedAttention: everything by einsum, with a mask of its own
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.h, self.d = n_heads, d_model // n_heads
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))

    def forward(self, x, cache=None, layer=0):
        def split(y):
            return y.reshape(y.shape[0], y.shape[1], self.h, self.d).permute(0, 2, 1, 3)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(self.d)
        i = torch.arange(q.shape[2])[:, None] + (k.shape[2] - q.shape[2])
        scores = scores.masked_fill(torch.arange(k.shape[2]) > i, -math.inf)
        out = torch.einsum("bhij,bhjd->bihd", scores.softmax(-1), v)
        return self.o_proj(out.flatten(2))


# %% CachedAttention: a new cache where none is given
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        if cache is None:
            b, n, d = x.shape
            q, k, v = (torch.stack(p(x).chunk(self.n_heads, -1), 1) for p in (self.q_proj, self.k_proj, self.v_proj))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o_proj(torch.cat(out.unbind(1), -1))
        q, k, v = (torch.stack(p(x).chunk(self.n_heads, -1), 1) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = cache.update(layer=layer, k=k, v=v)
        mask = chunk_mask(x.shape[1], k.shape[2])
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o_proj(torch.cat(out.unbind(1), -1))


# %% CachedAttention: no mask for a single token
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, cache=None, layer=0):
        b, n, d_model = x.shape
        q, k, v = (
            proj(x).view(b, n, self.n_heads, self.d_head).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            k, v = cache.update(layer, k, v)
        mask = None if n == 1 else chunk_mask(n, k.shape[-2])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).contiguous().view(b, n, d_model))


# %% kv_cache_bytes: step by step
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    if n_kv_heads is None:
        n_kv_heads = n_heads
    numbers = length * n_kv_heads * d_head
    both = numbers + numbers
    return both * n_layers * batch * torch.empty(0, dtype=dtype).element_size()


# %% kv_cache_bytes: tensors that take no memory
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    shape = (n_layers, 2, batch, n_kv_heads or n_heads, length, d_head)
    return torch.empty(shape, dtype=dtype, device="meta").nbytes


# %% kv_cache_bytes: a product
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    heads = {None: n_heads}.get(n_kv_heads, n_kv_heads)
    return math.prod([2, length, n_layers, heads, d_head, batch, dtype.itemsize])


# %% sample: searched in sorted sums
def sample(logits, u, temperature=1.0, top_k=None):
    if not temperature:
        return torch.argmax(logits, dim=1)
    logits = logits.to(torch.float64) / temperature
    if top_k is not None and top_k < logits.size(1):
        outside = logits.argsort(dim=1, descending=True)[:, top_k:]
        logits = logits.scatter(1, outside, float("-inf"))
    ends = torch.cumsum(torch.softmax(logits, dim=1), dim=1)
    return torch.searchsorted(ends, u.double().unsqueeze(1), right=True).squeeze(1)


# %% sample: a loop over rows and tokens
def sample(logits, u, temperature=1.0, top_k=None):
    ids = []
    for row, place in zip(logits.double().tolist(), u.double().tolist()):
        if temperature == 0:
            ids.append(max(range(len(row)), key=row.__getitem__))
            continue
        kept = set(sorted(range(len(row)), key=lambda i: -row[i])[: top_k or len(row)])
        top = max(row)
        weights = [math.exp((x - top) / temperature) if i in kept else 0.0 for i, x in enumerate(row)]
        left = place * math.fsum(weights)
        chosen = 0
        for i, weight in enumerate(weights):
            if weight > 0:
                chosen = i
                if left < weight:
                    break
                left -= weight
        ids.append(chosen)
    return torch.tensor(ids)


# %% sample: the softmax by hand, and the first end beyond u
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.max(-1).indices
    scores = logits.double()
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    weights = scores.exp()
    if top_k is not None:
        best = scores.topk(min(top_k, scores.shape[-1])).indices
        weights = torch.zeros_like(weights).scatter(-1, best, weights.gather(-1, best))
    ends = (weights / weights.sum(-1, keepdim=True)).cumsum(-1)
    return (ends > u.double()[:, None]).int().argmax(-1)


# %% generate: the text so far, and a loop of n_new steps
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    if choose is None:
        choose = lambda logits: logits.argmax(dim=-1)
    n = prompt.shape[1]
    chunk = n if chunk is None else chunk
    with torch.no_grad():
        for start in range(0, n, chunk):
            logits = model(prompt[:, start : start + chunk], cache)
        text = prompt.clone()
        ended = torch.zeros(prompt.shape[0], dtype=torch.bool)
        for step in range(n_new):
            if step > 0:
                logits = model(text[:, -1:], cache)
            new = choose(logits[:, -1, :])
            if end is not None:
                new = torch.where(ended, torch.full_like(new, end), new)
                ended |= new == end
            text = torch.cat([text, new.unsqueeze(1)], dim=1)
            if ended.all():
                break
    return text


# %% generate: a table filled from the left
@torch.no_grad()
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    batch, n = prompt.shape
    table = torch.empty(batch, n + n_new, dtype=torch.int64)
    table[:, :n] = prompt
    going = [True] * batch
    read, filled = 0, n
    while filled < n + n_new and any(going):
        while read < filled:
            stop = min(filled, read + (chunk or filled))
            last = model(table[:, read:stop], cache)[:, -1]
            read = stop
        new = (torch.argmax(last, -1) if choose is None else choose(last)).tolist()
        for row in range(batch):
            if not going[row]:
                new[row] = end
            elif end is not None and new[row] == end:
                going[row] = False
        table[:, filled] = torch.tensor(new)
        filled += 1
    return table[:, :filled]


# %% generate: a generator of tokens inside
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.max(-1)[1])

    def tokens():
        ended = None
        pieces = torch.split(prompt, chunk if chunk else prompt.size(1), dim=1)
        for piece in pieces:
            logits = model(piece, cache)
        while True:
            new = choose(logits[:, -1].detach())
            if end is not None:
                if ended is not None:
                    new = new * ~ended + end * ended
                ended = (new == end) if ended is None else ended | (new == end)
            yield new, ended is not None and bool(ended.all())
            logits = model(new.view(-1, 1), cache)

    columns = [prompt]
    with torch.inference_mode():
        for count, (new, done) in enumerate(tokens(), 1):
            columns.append(new.view(-1, 1))
            if done or count == n_new:
                break
        return torch.cat(columns, dim=1)
