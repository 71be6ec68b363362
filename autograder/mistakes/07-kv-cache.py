# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% KVCache: it returns only the new part
# caught by: test_a_later_chunk_is_put_behind_the_earlier_ones
# says: update returns only what just came in: attention needs the keys and values of all positions so far.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = (torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))
        else:
            self.kept[layer] = (k.clone(), v.clone())
        return k.clone(), v.clone()


# %% KVCache: it returns only the past
# caught by: test_the_first_chunk_comes_back_as_it_went_in, test_a_later_chunk_is_put_behind_the_earlier_ones
# says: update returns what was there before the call: the new positions are missing, so no token sees itself.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        old_k, old_v = self.kept.get(layer, (k[:, :, :0], v[:, :, :0]))
        self.kept[layer] = (torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))
        return old_k, old_v


# %% KVCache: the newest comes first
# caught by: test_a_later_chunk_is_put_behind_the_earlier_ones
# says: The new positions stand before the old ones: they belong behind them.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = (torch.cat([k, old_k], dim=2), torch.cat([v, old_v], dim=2))
        else:
            self.kept[layer] = (k.clone(), v.clone())
        return self.kept[layer]


# %% KVCache: one cache for all layers
# caught by: test_each_layer_has_its_own_keys_and_values
# says: All layers put their keys and values into one row, and read each other's: each layer needs its own.
class KVCache:
    def __init__(self):
        self.k = self.v = None

    @property
    def length(self):
        return 0 if self.k is None else self.k.shape[2]

    def update(self, layer, k, v):
        self.k = k.clone() if self.k is None else torch.cat([self.k, k], dim=2)
        self.v = v.clone() if self.v is None else torch.cat([self.v, v], dim=2)
        return self.k, self.v


# %% KVCache: one cache for all conversations
# caught by: test_the_first_chunk_comes_back_as_it_went_in, test_two_caches_know_nothing_of_each_other
# says: The keys and values belong to the class, so all caches share them: make them in __init__.
class KVCache:
    kept = {}

    def __init__(self):
        pass

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = (torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))
        else:
            self.kept[layer] = (k.clone(), v.clone())
        return self.kept[layer]


# %% KVCache: keys and values swapped
# caught by: test_the_first_chunk_comes_back_as_it_went_in, test_keys_and_values_may_differ_in_width
# says: Keys and values come back the other way round: first k, then v.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = (torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))
        else:
            self.kept[layer] = (k.clone(), v.clone())
        k, v = self.kept[layer]
        return v, k


# %% KVCache: grown along the heads
# caught by: test_sequences_and_heads_stay_where_they_are
# says: The chunks are put together along the heads: positions are the second dimension from the end.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = (torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1))
        else:
            self.kept[layer] = (k.clone(), v.clone())
        return self.kept[layer]


# %% KVCache: length counts calls
# caught by: test_length_counts_positions
# says: length counts chunks, not positions: after a prompt of 40 tokens the next one would be at position 1.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return max((len(chunks) for chunks in self.kept.values()), default=0)

    def update(self, layer, k, v):
        self.kept.setdefault(layer, []).append((k.clone(), v.clone()))
        return torch.cat([k for k, v in self.kept[layer]], 2), torch.cat([v for k, v in self.kept[layer]], 2)


# %% KVCache: length is that of the last chunk
# caught by: test_length_counts_positions
# says: length is that of the last chunk, so every new token would be at position 1: count all positions.
class KVCache:
    def __init__(self):
        self.kept = {}
        self.length = 0

    def update(self, layer, k, v):
        self.kept.setdefault(layer, []).append((k.clone(), v.clone()))
        self.length = k.shape[2]
        return torch.cat([k for k, v in self.kept[layer]], 2), torch.cat([v for k, v in self.kept[layer]], 2)


# %% KVCache: length grows with every layer
# caught by: test_length_counts_positions
# says: length is counted up in each layer, so it is too large by as many times as there are layers.
class KVCache:
    def __init__(self):
        self.kept = {}
        self.length = 0

    def update(self, layer, k, v):
        self.kept.setdefault(layer, []).append((k.clone(), v.clone()))
        self.length += k.shape[2]
        return torch.cat([k for k, v in self.kept[layer]], 2), torch.cat([v for k, v in self.kept[layer]], 2)


# %% KVCache: room for 1024 positions
# caught by: test_nothing_is_lost_when_the_cache_grows
# says: The room that was made in advance is too small for a longer text, and it does not grow.
class KVCache:
    def __init__(self):
        self.k, self.v, self.n = {}, {}, {}

    @property
    def length(self):
        return next(iter(self.n.values()), 0)

    def update(self, layer, k, v):
        if layer not in self.k:
            self.k[layer] = torch.zeros(*k.shape[:2], 1024, k.shape[3], dtype=k.dtype)
            self.v[layer] = torch.zeros(*v.shape[:2], 1024, v.shape[3], dtype=v.dtype)
            self.n[layer] = 0
        start = self.n[layer]
        room = max(0, min(k.shape[2], 1024 - start))
        self.k[layer][:, :, start : start + room] = k[:, :, :room]
        self.v[layer][:, :, start : start + room] = v[:, :, :room]
        self.n[layer] = start + room
        return self.k[layer][:, :, : self.n[layer]], self.v[layer][:, :, : self.n[layer]]


# %% KVCache: lost when it grows
# caught by: test_nothing_is_lost_when_the_cache_grows
# says: When the room is made larger, what was in the old one is not copied over.
class KVCache:
    def __init__(self):
        self.k, self.v, self.n = {}, {}, {}

    @property
    def length(self):
        return next(iter(self.n.values()), 0)

    def update(self, layer, k, v):
        start = self.n.get(layer, 0)
        end = start + k.shape[2]
        if layer not in self.k or end > self.k[layer].shape[2]:
            self.k[layer] = torch.zeros(*k.shape[:2], 2 * end + 64, k.shape[3], dtype=k.dtype)
            self.v[layer] = torch.zeros(*v.shape[:2], 2 * end + 64, v.shape[3], dtype=v.dtype)
        self.k[layer][:, :, start:end] = k
        self.v[layer][:, :, start:end] = v
        self.n[layer] = end
        return self.k[layer][:, :, :end], self.v[layer][:, :, :end]


# %% KVCache: always float32
# caught by: test_the_dtypes_are_kept
# says: The room is made without a dtype, so it is float32 whatever comes in.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        old_k, old_v = self.kept.get(layer, (k[:, :, :0], v[:, :, :0]))
        self.kept[layer] = (torch.cat([old_k.float(), k.float()], 2), torch.cat([old_v.float(), v.float()], 2))
        return self.kept[layer]


# %% KVCache: values in the dtype of the keys
# caught by: test_the_dtypes_are_kept
# says: The values are turned into the dtype of the keys; each keeps its own.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        v = v.to(k.dtype)
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            self.kept[layer] = (torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2))
        else:
            self.kept[layer] = (k.clone(), v.clone())
        return self.kept[layer]


# %% KVCache: the caller's own tensors are kept
# caught by: test_the_caller_may_overwrite_its_tensors
# says: The first chunk is kept as the caller's own tensor: when the caller uses that memory again, the past changes.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((k.shape[2] for k, v in self.kept.values()), 0)

    def update(self, layer, k, v):
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        self.kept[layer] = (k, v)
        return k, v


# %% KVCache: a list of the caller's tensors
# caught by: test_the_caller_may_overwrite_its_tensors
# says: The list holds the caller's own tensors: when the caller uses that memory again, the past changes.
class KVCache:
    def __init__(self):
        self.kept = {}

    @property
    def length(self):
        return next((sum(k.shape[2] for k, v in chunks) for chunks in self.kept.values()), 0)

    def update(self, layer, k, v):
        self.kept.setdefault(layer, []).append((k, v))
        return torch.cat([k for k, v in self.kept[layer]], 2), torch.cat([v for k, v in self.kept[layer]], 2)


# %% chunk_mask: the corner at the top left
# caught by: test_every_query_sees_itself, test_every_query_sees_the_whole_past
# says: This is aligned at the top left, as is_causal is in PyTorch: the first query sees only the very first key.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k, dtype=torch.bool).tril()


# %% chunk_mask: everything may be seen
# caught by: test_no_query_sees_what_comes_after_it
# says: Everything is allowed: within the chunk a query must not see what comes after it.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k, dtype=torch.bool)


# %% chunk_mask: a square
# caught by: test_the_mask_has_a_row_a_query_and_a_column_a_key
# says: The mask is a square of all positions: it should have one row for each query of the chunk only.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_k, n_k, dtype=torch.bool).tril()


# %% chunk_mask: only the past
# caught by: test_every_query_sees_itself
# says: A query sees what is before it, and not itself: its own key belongs to it too.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q - 1)


# %% chunk_mask: one step ahead
# caught by: test_no_query_sees_what_comes_after_it
# says: Each query sees one key too many: the one after its own.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q + 1)


# %% chunk_mask: True means "blocked"
# caught by: test_every_query_sees_the_whole_past, test_no_query_sees_what_comes_after_it
# says: This mask is True where looking is forbidden; in this course True means "may attend".
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k, dtype=torch.bool).triu(n_k - n_q + 1)


# %% chunk_mask: only the chunk
# caught by: test_every_query_sees_the_whole_past
# says: The chunk sees itself and nothing of the past.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    mask = torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q)
    mask[:, : n_k - n_q] = False
    return mask


# %% chunk_mask: the past on the wrong side
# caught by: test_the_masks_of_the_chunks_make_up_the_mask_of_the_whole
# says: The chunk's own columns stand first and the past behind them: the past comes first.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    own = torch.ones(n_q, n_q, dtype=torch.bool).tril()
    return torch.cat([own, torch.ones(n_q, n_k - n_q, dtype=torch.bool)], 1)


# %% chunk_mask: numbers instead of booleans
# caught by: test_the_mask_has_a_row_a_query_and_a_column_a_key
# says: The pattern is right, but it holds numbers: the mask should be boolean.
def chunk_mask(n_q, n_k):
    if n_k < n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k).tril(n_k - n_q)


# %% chunk_mask: fewer keys than queries let through
# caught by: test_fewer_keys_than_queries_are_an_error
# says: Fewer keys than queries give a mask all the same: the first queries would have no key of their own.
def chunk_mask(n_q, n_k):
    return torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q)


# %% chunk_mask: as many keys as queries refused
# caught by: test_fewer_keys_than_queries_are_an_error
# says: As many keys as queries is the first chunk of a text, and no error.
def chunk_mask(n_q, n_k):
    if n_k <= n_q:
        raise ValueError(f"{n_q} queries, {n_k} keys")
    return torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q)


# %% CachedAttention: is_causal for a chunk
# caught by: test_a_prompt_and_then_single_tokens_give_what_the_whole_gives, test_chunks_of_any_size_give_what_the_whole_gives
# says: PyTorch's is_causal is aligned at the top left: with a past, the first query of a chunk sees only the first key.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: no mask within a chunk
# caught by: test_chunks_of_any_size_give_what_the_whole_gives, test_a_change_is_noticed_by_what_comes_after_it_and_only_by_that
# says: With a cache there is no mask: right for one new token, but in a longer chunk it shows the future.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: masked only in the first chunk
# caught by: test_chunks_of_any_size_give_what_the_whole_gives
# says: A later chunk of several tokens is not masked: it is causal within itself too.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=k.shape[2] == n)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: the cache is filled and not used
# caught by: test_a_prompt_and_then_single_tokens_give_what_the_whole_gives, test_chunks_of_any_size_give_what_the_whole_gives
# says: What the cache returns is not used: the chunk attends to itself alone.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: always layer 0
# caught by: test_two_layers_share_a_cache
# says: The number of the layer is not passed on, so all layers of a model read and write the same keys and values.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(0, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: the past is counted in the middle of a chunk
# caught by: test_two_layers_share_a_cache
# says: length is asked in the middle of a chunk: a layer before this one has put its part of the chunk in already.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        past = 0 if cache is None else cache.length
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, past + n))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: not causal without a cache
# caught by: test_without_a_cache_it_is_causal_self_attention, test_without_a_cache_the_layer_learns
# says: Without a cache nothing is masked: the layer is always causal.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        mask = None
        if cache is not None:
            k, v = cache.update(layer, k, v)
            mask = chunk_mask(n, k.shape[2])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: a cache of its own
# caught by: test_a_layer_keeps_nothing_itself
# says: The layer has a cache of its own, made once: every later text goes on where the one before it ended.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.own = KVCache()

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (cache or self.own).update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: a mask of -100
# caught by: test_a_change_is_noticed_by_what_comes_after_it_and_only_by_that
# says: Hidden scores only get 100 taken away: a later key that fits well enough is seen all the same. Use −∞.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        scores = q @ k.mT / q.shape[-1] ** 0.5 - 100.0 * ~chunk_mask(n, k.shape[2])
        out = scores.softmax(-1) @ v
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: heads not split before the cache
# caught by: test_keys_and_values_go_into_the_cache_head_by_head
# says: The cache is given all heads as one; it keeps (batch, n_heads, n, d_head).
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if cache is not None:
            k, v = (part[:, 0] for part in cache.update(layer, k[:, None], v[:, None]))
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: keys and values are projected again
# caught by: test_keys_and_values_go_into_the_cache_head_by_head
# says: The cache holds what comes before the projections: everything is projected again at each step.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        text = x
        if cache is not None:
            split = x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            text = cache.update(layer, split, split)[0].transpose(1, 2).flatten(-2)
        q = self.q_proj(x).view(b, n, self.n_heads, -1).transpose(1, 2)
        k, v = (p(text).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: the cache is updated for keys and for values
# caught by: test_the_cache_is_updated_once_in_a_call
# says: update is called twice, once for the keys and once for the values: the chunk is then in the cache twice.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k_all = cache.update(layer, k, v)[0]
            v_all = cache.update(layer, k, v)[1]
            k, v = k_all, v_all[:, :, : k_all.shape[2]]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: the heads merged in a wrong order
# caught by: test_without_a_cache_it_is_causal_self_attention
# says: The heads are merged without putting the positions back before them: the shape fits, and the channels are mixed up.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.reshape(b, n, d))


# %% CachedAttention: the keys are detached
# caught by: test_without_a_cache_the_layer_learns
# says: Keys and values are detached for the cache's sake, so k_proj and v_proj never learn.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = k.detach(), v.detach()
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% CachedAttention: nn.Linear with its biases
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: nn.Linear has a bias unless you say bias=False: the state dict should hold four weights and nothing else.
class CachedAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x, cache=None, layer=0):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, d))


# %% kv_cache_bytes: keys or values, not both
# caught by: test_the_bytes_are_those_of_the_tensors
# says: This counts the keys or the values: both are kept.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return batch * n_layers * (n_kv_heads or n_heads) * length * d_head * dtype.itemsize


# %% kv_cache_bytes: queries are counted too
# caught by: test_the_bytes_are_those_of_the_tensors, test_only_heads_of_keys_and_values_count
# says: This counts the queries as if they were kept: a query is used once, in its own step, and never again.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return batch * n_layers * (n_heads + 2 * (n_kv_heads or n_heads)) * length * d_head * dtype.itemsize


# %% kv_cache_bytes: the heads of queries
# caught by: test_only_heads_of_keys_and_values_count
# says: The heads of queries are counted; what is kept are the heads of keys and values.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * batch * n_layers * n_heads * length * d_head * dtype.itemsize


# %% kv_cache_bytes: one layer
# caught by: test_the_bytes_are_those_of_the_tensors
# says: This is one layer's cache: every layer has its own.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * batch * (n_kv_heads or n_heads) * length * d_head * dtype.itemsize


# %% kv_cache_bytes: always two bytes
# caught by: test_a_number_takes_what_its_dtype_takes
# says: Two bytes a number are assumed whatever the dtype is.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * batch * n_layers * (n_kv_heads or n_heads) * length * d_head * 2


# %% kv_cache_bytes: bits for bytes
# caught by: test_the_bytes_are_those_of_the_tensors, test_a_number_takes_what_its_dtype_takes
# says: This counts bits: eight of them are a byte.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * batch * n_layers * (n_kv_heads or n_heads) * length * d_head * torch.finfo(torch.float32).bits // 2


# %% kv_cache_bytes: one sequence
# caught by: test_every_sequence_of_a_batch_has_its_own
# says: The batch is left out: every sequence has keys and values of its own.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * n_layers * (n_kv_heads or n_heads) * length * d_head * dtype.itemsize


# %% kv_cache_bytes: the square of the length
# caught by: test_the_bytes_are_those_of_the_tensors
# says: The attention weights grow with the square of the length, and they are not kept; keys and values grow with the length.
def kv_cache_bytes(length, *, n_layers, n_heads, d_head, n_kv_heads=None, batch=1, dtype=torch.bfloat16):
    return 2 * batch * n_layers * (n_kv_heads or n_heads) * length * length * d_head * dtype.itemsize


# %% sample: multiplied by the temperature
# caught by: test_the_temperature_divides_the_logits
# says: The logits are multiplied by the temperature; they should be divided by it.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() * temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: low temperatures taken for zero
# caught by: test_the_temperature_divides_the_logits
# says: Below a small temperature the likeliest is always taken; only at 0 is there nothing to draw.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature < 0.05:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: divided in bfloat16
# caught by: test_bfloat16_logits_are_not_added_up_in_bfloat16
# says: The temperature divides before the logits are float64: in bfloat16 that rounds to two or three digits.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax((logits / temperature).double(), -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: the probabilities are divided by the temperature
# caught by: test_the_temperature_divides_the_logits
# says: The temperature is applied after the softmax; it belongs to the logits, before it.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double(), -1) / temperature
    return (p.cumsum(-1) / p.sum(-1, keepdim=True) <= u[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


# %% sample: divided by a temperature of zero
# caught by: test_temperature_zero_takes_the_likeliest
# says: At temperature 0 the logits are divided by 0, which gives NaN or ±∞: take the likeliest instead.
def sample(logits, u, temperature=1.0, top_k=None):
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature if temperature else logits.double() / torch.zeros(()).double(), -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


# %% sample: temperature zero as no temperature
# caught by: test_temperature_zero_takes_the_likeliest
# says: A temperature of 0 is treated as if none had been given: it means the likeliest token.
def sample(logits, u, temperature=1.0, top_k=None):
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / (temperature or 1.0), -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: always the likeliest
# caught by: test_a_token_is_drawn_as_often_as_it_is_likely, test_the_intervals_lie_in_the_order_of_the_ids
# says: This always takes the likeliest token: u decides nothing.
def sample(logits, u, temperature=1.0, top_k=None):
    return logits.argmax(-1)


# %% sample: chance of its own
# caught by: test_the_intervals_lie_in_the_order_of_the_ids
# says: The token is drawn with chance of its own; u should decide, so that the same u gives the same token.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return torch.multinomial(p, 1)[:, 0]


# %% sample: softmax over the batch
# caught by: test_every_row_has_its_own_logits_and_its_own_u
# says: The softmax runs over the rows of the batch; it should run over the vocabulary.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, 0)
    return (p.cumsum(-1) <= u[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


# %% sample: sorted by probability
# caught by: test_the_intervals_lie_in_the_order_of_the_ids
# says: The intervals lie in the order of the probabilities, likeliest first; they should lie in the order of the ids.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    best, ids = logits.sort(-1, descending=True)
    if top_k is not None:
        best = best.masked_fill(torch.arange(best.shape[-1]) >= top_k, -math.inf)
    p = torch.softmax(best.double() / temperature, -1)
    place = (p.cumsum(-1) <= u[:, None]).sum(-1)
    return ids.gather(1, place[:, None])[:, 0]


# %% sample: one too many of top_k
# caught by: test_top_k_leaves_exactly_k
# says: One token too many is left: the (k+1)-th largest should be left out.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k + 1, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: the k-th left out
# caught by: test_top_k_leaves_exactly_k
# says: The k-th largest is left out too, so that one token too few is left.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k > 1:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits <= kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: the rest of top_k set to zero
# caught by: test_top_k_leaves_exactly_k
# says: A logit of 0 is no "left out": its exponential is 1. What must not be drawn needs a logit of −∞.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, 0)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: top_k without renormalising
# caught by: test_top_k_leaves_exactly_k
# says: After top_k the probabilities no longer sum to 1, and what is missing goes to the last token.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    p = torch.softmax(logits.double() / temperature, -1)
    if top_k is not None:
        kept = p.topk(min(top_k, p.shape[-1])).values[:, -1:]
        p = p.masked_fill(p < kept, 0)
    return (p.cumsum(-1) <= u[:, None]).sum(-1).clamp(max=p.shape[-1] - 1)


# %% sample: a position among the k for an id
# caught by: test_top_k_leaves_exactly_k
# says: The result is a place among the k largest, and not the id of the token that stands there.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.topk(top_k).values
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: a top_k beyond the vocabulary
# caught by: test_a_top_k_beyond_the_vocabulary_leaves_all
# says: A top_k larger than the vocabulary is taken modulo its size or leaves only one: it should leave all.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk((top_k - 1) % logits.shape[-1] + 1).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% sample: closed on the right
# caught by: test_an_interval_is_closed_on_the_left, test_a_token_of_probability_zero_is_never_drawn
# says: Where u is exactly an end, this takes the interval before it; so u = 0 draws token 0 even if that is impossible.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) < u[:, None]).sum(-1)


# %% sample: sums in float32
# caught by: test_a_large_vocabulary_leaves_no_gap_at_the_end
# says: The sums are float32: with 50,000 tokens they stop short of 1, and a u just below 1 finds the wrong token.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.float() / temperature, -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


# %% sample: an exponential that overflows
# caught by: test_large_logits_do_not_overflow
# says: The exponential of a large logit is infinite, and ∞/∞ is NaN: subtract the row's largest first, as softmax does.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.exp(logits.double() / temperature)
    p = p / p.sum(-1, keepdim=True)
    return (p.cumsum(-1) <= u[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


# %% sample: one u for all rows
# caught by: test_every_row_has_its_own_logits_and_its_own_u
# says: The first u decides for all rows: each row has its own.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return (p.cumsum(-1) <= u[0]).sum(-1)


# %% sample: a column of ids
# caught by: test_the_result_is_one_id_a_row
# says: The ids come as a column, (batch, 1); they should be (batch,).
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    p = torch.softmax(logits.double() / temperature, -1)
    return torch.searchsorted(p.cumsum(-1), u[:, None].double(), right=True)


# %% sample: the logits changed in place
# caught by: test_the_logits_are_left_as_they_were
# says: The caller's logits are changed in place: an operation that ends in _ does that, and so does /=.
def sample(logits, u, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1)
    logits /= temperature
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits[logits < kept] = -math.inf
    p = torch.softmax(logits.double(), -1)
    return (p.cumsum(-1) <= u[:, None]).sum(-1)


# %% generate: the whole text is read again at each step
# caught by: test_the_prompt_is_read_once_and_then_one_token_a_step
# says: The whole text goes to the model at each step, and into the cache again: feed only the token that was just written.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(text, cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            text = torch.cat([text, new[:, None]], dim=1)
            if ended.all():
                break
        return text


# %% generate: the last token of the prompt is read twice
# caught by: test_the_prompt_is_read_once_and_then_one_token_a_step, test_the_tokens_are_those_of_reading_everything_again
# says: The prompt is read, and then its last token once more: it is in the cache twice.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            model(ids, cache)
        text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
        for _ in range(n_new):
            new = choose(model(text[:, -1:], cache)[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            text = torch.cat([text, new[:, None]], dim=1)
            if ended.all():
                break
        return text


# %% generate: no cache
# caught by: test_the_model_gets_the_same_cache_each_time, test_the_prompt_is_read_once_and_then_one_token_a_step
# says: The whole text goes to the model at each step, without the cache.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
        for _ in range(n_new):
            new = choose(model(text, None)[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            text = torch.cat([text, new[:, None]], dim=1)
            if ended.all():
                break
        return text


# %% generate: the last token is read too
# caught by: test_the_last_token_is_not_read
# says: The model is called once more than needed: nobody asks what comes after the last token.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
        for _ in range(n_new):
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            text = torch.cat([text, new[:, None]], dim=1)
            if ended.all():
                break
            logits = model(new[:, None], cache)
        return text


# %% generate: one token too few
# caught by: test_the_prompt_stands_before_what_is_written
# says: One token too few is written: the prompt's logits give the first, so n_new tokens take n_new − 1 steps after it.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
        for _ in range(n_new - 1):
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            text = torch.cat([text, new[:, None]], dim=1)
            if ended.all():
                break
            logits = model(new[:, None], cache)
        return text


# %% generate: the logits of the first position
# caught by: test_choose_gets_the_logits_of_the_last_position, test_the_tokens_are_those_of_reading_everything_again
# says: choose gets the logits of the first position of the chunk; what comes next is in those of the last.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, 0])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: only what is new is returned
# caught by: test_the_prompt_stands_before_what_is_written
# says: The result holds only what was written: the prompt stands before it.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: chunk is ignored
# caught by: test_the_prompt_may_be_read_in_chunks
# says: The prompt is read in one, whatever chunk says.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        logits = model(prompt, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: the rest of the prompt is dropped
# caught by: test_the_prompt_may_be_read_in_chunks
# says: Where the prompt does not divide into whole chunks, its rest is never read.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        size = min(chunk or prompt.shape[1], prompt.shape[1])
        for i in range(prompt.shape[1] // size):
            logits = model(prompt[:, i * size : (i + 1) * size], cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: finished rows go on
# caught by: test_a_row_that_has_ended_stays_ended
# says: A row that has ended goes on being written until all have: after its end, only the end token is written in it.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            if end is not None:
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: all rows stop with the first
# caught by: test_a_row_that_has_ended_stays_ended
# says: Generation stops as soon as one row has ended; the others are not finished.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written = [prompt]
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            written.append(new[:, None])
            if end is not None and (new == end).any():
                break
        return torch.cat(written, dim=1)


# %% generate: it stops only when all rows end in the same step
# caught by: test_generation_stops_when_all_rows_have_ended, test_a_row_that_has_ended_stays_ended
# says: Whether a row has ended is forgotten after each step: generation stops only if all rows end at once.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written = [prompt]
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            written.append(new[:, None])
            if end is not None and (new == end).all():
                break
        return torch.cat(written, dim=1)


# %% generate: it never stops early
# caught by: test_generation_stops_when_all_rows_have_ended
# says: All rows have ended, and the model is still called: stop as soon as they have.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
        return torch.cat(written, dim=1)


# %% generate: an end in the prompt ends the text
# caught by: test_the_end_token_counts_only_where_it_was_written
# says: An end token in the prompt is taken for the end of the text: only one that was written ends it.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        text = prompt
        for step in range(n_new):
            if step:
                logits = model(text[:, -1:], cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where((text == end).any(1), end, new)
            text = torch.cat([text, new[:, None]], dim=1)
            if end is not None and (text == end).any(1).all():
                break
        return text


# %% generate: an end token of 0 is ignored
# caught by: test_a_row_that_has_ended_stays_ended
# says: `if end:` is False for the id 0: ask whether it is None.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = choose(logits[:, -1])
            if end:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: choose is ignored
# caught by: test_what_choose_says_is_written_and_read
# says: The likeliest token is written whatever choose says.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], cache)
            new = logits[:, -1].argmax(-1)
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: another cache in the place of None
# caught by: test_the_model_gets_the_same_cache_each_time
# says: Where the cache that was given is None, or counts as false, another one takes its place: hand on what was given.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    cache = cache or {}
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        text, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(new[:, None], cache)
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            text = torch.cat([text, new[:, None]], dim=1)
            if ended.all():
                break
        return text


# %% generate: a new cache for each step
# caught by: test_the_model_gets_the_same_cache_each_time, test_the_tokens_are_those_of_reading_everything_again
# says: Each step has another cache, so the model forgets all but the token that it is given.
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    with torch.no_grad():
        for ids in prompt.split(chunk or prompt.shape[1], dim=1):
            logits = model(ids, cache)
        written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
        for step in range(n_new):
            if step:
                logits = model(written[-1], f"step {step}")
            new = choose(logits[:, -1])
            if end is not None:
                new = torch.where(ended, end, new)
                ended = ended | (new == end)
            written.append(new[:, None])
            if ended.all():
                break
        return torch.cat(written, dim=1)


# %% generate: the graph is kept
# caught by: test_no_graph_is_kept
# says: Everything is recorded for a backward pass that never comes: use torch.no_grad().
def generate(model, prompt, n_new, cache, *, choose=None, chunk=None, end=None):
    choose = choose or (lambda logits: logits.argmax(-1))
    for ids in prompt.split(chunk or prompt.shape[1], dim=1):
        logits = model(ids, cache)
    written, ended = [prompt], torch.zeros(len(prompt), dtype=torch.bool)
    for step in range(n_new):
        if step:
            logits = model(written[-1], cache)
        new = choose(logits[:, -1])
        if end is not None:
            new = torch.where(ended, end, new)
            ended = ended | (new == end)
        written.append(new[:, None])
        if ended.all():
            break
    return torch.cat(written, dim=1)
