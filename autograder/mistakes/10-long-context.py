# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% sliding_window_mask: the window does not count the token itself
# caught by: test_a_window_includes_the_query_itself, test_nothing_outside_the_window_is_seen
# says: This sees W positions of the past and itself, W + 1 in all: a window of W includes the token itself.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    back = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return (back >= 0) & (back <= window)


# %% sliding_window_mask: the query does not see itself
# caught by: test_a_query_sees_itself_and_what_is_just_before_it
# says: The query itself is left out: it belongs to its window.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    back = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return (back > 0) & (back < window)


# %% sliding_window_mask: the queries are the first positions
# caught by: test_the_masks_of_the_chunks_make_up_the_mask_of_the_whole
# says: The queries are taken for the first positions; they are the last n_q of the n_k.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    back = torch.arange(n_q)[:, None] - torch.arange(n_k)
    return (back >= 0) & (back < window)


# %% sliding_window_mask: both directions
# caught by: test_no_query_sees_what_comes_after_it
# says: The window reaches into the future as well: this is the window of an encoder such as Longformer's.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    back = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return back.abs() < window


# %% sliding_window_mask: blocks instead of a window that slides
# caught by: test_a_query_sees_itself_and_what_is_just_before_it
# says: The text is cut into blocks, so that the first token of a block sees nothing of the past; a window slides.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    q, k = torch.arange(n_k - n_q, n_k)[:, None], torch.arange(n_k)
    return (q >= k) & (q // window == k // window)


# %% sliding_window_mask: True means "blocked"
# caught by: test_no_query_sees_what_comes_after_it, test_a_query_sees_itself_and_what_is_just_before_it
# says: This mask is True where looking is forbidden; in this course True means "may attend".
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    back = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return (back < 0) | (back >= window)


# %% sliding_window_mask: only the far past is cut off
# caught by: test_no_query_sees_what_comes_after_it
# says: The far past is cut off, but the future is open: the window is the last part of the causal mask.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    return torch.ones(n_q, n_k, dtype=torch.bool).triu(n_k - n_q - window + 1)


# %% sliding_window_mask: numbers instead of booleans
# caught by: test_the_mask_has_a_row_a_query_and_a_column_a_key
# says: The band is right, but it holds numbers: the mask should be boolean.
def sliding_window_mask(n_q, n_k, window):
    if n_k < n_q or window < 1:
        raise ValueError(f"{n_q} queries, {n_k} keys, window {window}")
    past = n_k - n_q
    return torch.ones(n_q, n_k).tril(past).triu(past - window + 1)


# %% sliding_window_mask: no error for what is impossible
# caught by: test_impossible_sizes_are_an_error
# says: The mask is right, but impossible sizes give a mask that blocks too much, without a word.
def sliding_window_mask(n_q, n_k, window):
    back = torch.arange(n_k - n_q, n_k)[:, None] - torch.arange(n_k)
    return (back >= 0) & (back < window)


# %% RollingKVCache: the chunk is written before the past is read
# caught by: test_a_chunk_gets_the_end_of_the_past_and_itself, test_attention_in_chunks_equals_a_brute_force_mask
# says: The chunk is written first, over keys that its own first queries still needed: read the past before you write.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, out = self.seen.get(layer, 0), []
        end = self.seen[layer] = start + k.shape[2]
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            ring[:, :, new] = x[:, :, -len(new) :]
            out.append(torch.cat([ring[:, :, past], x], 2))
        return tuple(out)


# %% RollingKVCache: it returns the buffer as it lies
# caught by: test_a_token_gets_the_end_of_the_past_and_itself
# says: The past comes back in the order of the slots; after the first time round the ring that is not the text's order.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, out = self.seen.get(layer, 0), []
        end = self.seen[layer] = start + k.shape[2]
        past = sorted(p % self.window for p in range(max(0, start - self.window + 1), start))
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: only the last W positions come back
# caught by: test_a_chunk_may_be_longer_than_the_window, test_a_chunk_gets_the_end_of_the_past_and_itself
# says: Only the last W positions come back; that is enough for one token, but a chunk's first queries need their own past.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, out = self.seen.get(layer, 0), []
        end = self.seen[layer] = start + k.shape[2]
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2)[:, :, -self.window :])
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: a whole window of the past
# caught by: test_a_token_gets_the_end_of_the_past_and_itself, test_a_window_of_one_sees_no_past
# says: W positions of the past come back; a window includes the token itself, so it sees W − 1 of them.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, out = self.seen.get(layer, 0), []
        end = self.seen[layer] = start + k.shape[2]
        past = torch.arange(max(0, start - self.window), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: the length stops at the window
# caught by: test_length_counts_every_position_that_was_seen, test_attention_in_chunks_equals_a_brute_force_mask
# says: length says how many positions are held; it should go on counting, because it is the next token's position.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return min(max(self.seen.values(), default=0), self.window)

    def update(self, layer, k, v):
        start, out = self.seen.get(layer, 0), []
        end = self.seen[layer] = start + k.shape[2]
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: one counter for all layers
# caught by: test_each_layer_has_its_own_keys_and_values, test_length_counts_every_position_that_was_seen
# says: One counter serves all layers, so that each layer moves the others on: every layer has its own place in the ring.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.length = window, {}, {}, 0

    def update(self, layer, k, v):
        start, out = self.length, []
        end = self.length = start + k.shape[2]
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: a chunk is written from slot 0
# caught by: test_a_position_lies_in_its_slot, test_a_chunk_gets_the_end_of_the_past_and_itself
# says: Every chunk is written from slot 0 on; position p belongs in slot p % window, counted from the text's beginning.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, n, out = self.seen.get(layer, 0), k.shape[2], []
        self.seen[layer] = start + n
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(0, n - self.window), n) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: the end of a long chunk in the first slots
# caught by: test_a_chunk_may_be_longer_than_the_window, test_a_position_lies_in_its_slot
# says: After a chunk longer than the window its end lies from slot 0 on; position p belongs in slot p % window.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, n, out = self.seen.get(layer, 0), k.shape[2], []
        self.seen[layer] = start + n
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(start, start + n) % self.window if n < self.window else torch.arange(self.window)
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: everything is kept
# caught by: test_the_buffers_have_a_fixed_size, test_a_position_lies_in_its_slot
# says: What comes back is right, but the cache keeps the whole text: its buffers should have `window` slots and no more.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v = window, {}, {}

    @property
    def length(self):
        return next((k.shape[2] for k in self.k.values()), 0)

    def update(self, layer, k, v):
        start = self.k[layer].shape[2] if layer in self.k else 0
        for kept, x in ((self.k, k), (self.v, v)):
            kept[layer] = torch.cat([kept[layer], x], 2) if start else x.clone()
        first = max(0, start - self.window + 1)
        return self.k[layer][:, :, first:], self.v[layer][:, :, first:]


# %% RollingKVCache: the caller's tensor becomes the buffer
# caught by: test_the_caller_may_overwrite_its_tensors
# says: A first chunk as long as the window is kept without a copy, so that the cache changes when the caller reuses it.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        start, n, out = self.seen.get(layer, 0), k.shape[2], []
        end = self.seen[layer] = start + n
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept[layer].clone() if start else x.new_zeros(*x.shape[:2], self.window, x.shape[3])
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
            kept[layer] = x if start == 0 and n == self.window else ring
        return tuple(out)


# %% RollingKVCache: the last slots instead of a ring
# caught by: test_a_position_lies_in_its_slot
# says: What comes back is right, but the buffer is shifted along: position p should stay in slot p % window.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return max(self.seen.values(), default=0)

    def update(self, layer, k, v):
        seen, out = self.seen.get(layer, 0), []
        past = min(seen, self.window - 1)
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.get(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, self.window - past :], x], 2))
            kept[layer] = torch.cat([ring, x], 2)[:, :, -self.window :].clone()
        self.seen[layer] = seen + k.shape[2]
        return tuple(out)


# %% RollingKVCache: the length of layer 0
# caught by: test_length_counts_every_position_that_was_seen
# says: The length is that of layer 0, which may never come: any layer that has come can tell it.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.seen = window, {}, {}, {}

    @property
    def length(self):
        return self.seen.get(0, 0)

    def update(self, layer, k, v):
        start, out = self.seen.get(layer, 0), []
        end = self.seen[layer] = start + k.shape[2]
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% RollingKVCache: the layer that came first counts for all
# caught by: test_each_layer_has_its_own_keys_and_values
# says: Only the layer that came first moves the counter on; in the next chunk another layer may come before it.
class RollingKVCache:
    def __init__(self, window):
        self.window, self.k, self.v, self.length, self.first = window, {}, {}, 0, None

    def update(self, layer, k, v):
        if self.first is None:
            self.first = layer
        if layer == self.first:
            self.length += k.shape[2]
        end, out = self.length, []
        start = max(0, end - k.shape[2])
        past = torch.arange(max(0, start - self.window + 1), start) % self.window
        new = torch.arange(max(start, end - self.window), end) % self.window
        for kept, x in ((self.k, k), (self.v, v)):
            ring = kept.setdefault(layer, x.new_zeros(*x.shape[:2], self.window, x.shape[3]))
            out.append(torch.cat([ring[:, :, past], x], 2))
            ring[:, :, new] = x[:, :, -len(new) :]
        return tuple(out)


# %% block_sparse_mask: blocks, but no positions
# caught by: test_the_mask_is_a_square_of_booleans
# says: The mask has a row for each block; it should have one for each position.
def block_sparse_mask(n, block, n_local, n_global, random):
    a = torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global) | (a[:, None] < n_global)
    return allowed | (random[:, :, None] == a).any(1)


# %% block_sparse_mask: global blocks only look
# caught by: test_global_blocks_are_seen_by_all
# says: Global blocks see all, but not all see them: both directions are allowed.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a[:, None] < n_global)
    return (allowed | (random[:, :, None] == a).any(1))[of][:, of]


# %% block_sparse_mask: global blocks are only seen
# caught by: test_global_blocks_see_all
# says: All see the global blocks, but these do not see all: both directions are allowed.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global)
    return (allowed | (random[:, :, None] == a).any(1))[of][:, of]


# %% block_sparse_mask: a random link in both directions
# caught by: test_random_links_lead_from_the_row_to_what_it_names
# says: A random link is followed both ways; it lets block a see b, and not b see a.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global) | (a[:, None] < n_global)
    drawn = (random[:, :, None] == a).any(1)
    return (allowed | drawn | drawn.T)[of][:, of]


# %% block_sparse_mask: a random link the wrong way
# caught by: test_random_links_lead_from_the_row_to_what_it_names
# says: The random links are turned round: row a of `random` holds what block a may see.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global) | (a[:, None] < n_global)
    return (allowed | (random[:, :, None] == a).any(1).T)[of][:, of]


# %% block_sparse_mask: random links between positions
# caught by: test_random_links_lead_from_the_row_to_what_it_names
# says: The random numbers are taken for positions; they name blocks, which are seen whole.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global) | (a[:, None] < n_global)
    mask = allowed[of][:, of]
    return mask.scatter(1, random[of], True) if random.shape[1] else mask


# %% block_sparse_mask: a band of positions
# caught by: test_neighbouring_blocks_see_each_other
# says: The local part is a band of positions; it is made of whole blocks.
def block_sparse_mask(n, block, n_local, n_global, random):
    i, a = torch.arange(n), torch.arange(len(random))
    of = i // block
    allowed = (a < n_global) | (a[:, None] < n_global) | (random[:, :, None] == a).any(1)
    return allowed[of][:, of] | ((i[:, None] - i).abs() <= max(1, n_local * block))


# %% block_sparse_mask: n_local blocks, the own one counted
# caught by: test_neighbouring_blocks_see_each_other
# says: n_local counts the own block; it says how many blocks further it goes on each side, and 0 is the own block.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() < max(1, n_local)) | (a < n_global) | (a[:, None] < n_global)
    return (allowed | (random[:, :, None] == a).any(1))[of][:, of]


# %% block_sparse_mask: only the past
# caught by: test_neighbouring_blocks_see_each_other
# says: It looks back only; local blocks see each other in both directions, and nothing here is causal.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    back = a[:, None] - a
    allowed = ((back >= 0) & (back <= n_local)) | (a < n_global) | (a[:, None] < n_global)
    return (allowed | (random[:, :, None] == a).any(1))[of][:, of]


# %% block_sparse_mask: global positions instead of blocks
# caught by: test_global_blocks_see_all, test_global_blocks_are_seen_by_all
# says: n_global is taken as a number of positions; it counts blocks.
def block_sparse_mask(n, block, n_local, n_global, random):
    i, a = torch.arange(n), torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (random[:, :, None] == a).any(1)
    return allowed[i // block][:, i // block] | (i < n_global) | (i[:, None] < n_global)


# %% block_sparse_mask: whole blocks only
# caught by: test_the_last_block_may_be_shorter
# says: The mask is made of whole blocks, so that its shape is wrong where `block` does not divide n.
def block_sparse_mask(n, block, n_local, n_global, random):
    a = torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global) | (a[:, None] < n_global)
    allowed = allowed | (random[:, :, None] == a).any(1)
    return allowed.repeat_interleave(block, 0).repeat_interleave(block, 1)


# %% block_sparse_mask: its own draw
# caught by: test_random_links_lead_from_the_row_to_what_it_names, test_the_three_kinds_together
# says: The blocks are drawn here; chance comes from outside, in `random`.
def block_sparse_mask(n, block, n_local, n_global, random):
    of, a = torch.arange(n) // block, torch.arange(len(random))
    allowed = ((a[:, None] - a).abs() <= n_local) | (a < n_global) | (a[:, None] < n_global)
    random = torch.randint(len(random), random.shape)
    return (allowed | (random[:, :, None] == a).any(1))[of][:, of]


# %% topk_attention: all keys that tie
# caught by: test_the_lower_index_wins_a_tie
# says: Everything that is as good as the last chosen key is kept, so that ties give weight to more than top_k keys.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    smallest = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
    chosen = (scores >= smallest) & (scores > -math.inf)
    return torch.nan_to_num(scores.masked_fill(~chosen, -math.inf).softmax(-1)) @ v


# %% topk_attention: the later key wins a tie
# caught by: test_the_lower_index_wins_a_tie
# says: Of equal scores the later key is taken: the lower index should win a tie.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, stable=True).flip(-1)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen if mask is None else chosen & mask)


# %% topk_attention: chosen before the mask
# caught by: test_the_best_are_chosen_among_the_allowed
# says: The best keys are chosen before the mask is applied, so that blocked keys take the places of allowed ones.
def topk_attention(q, k, v, top_k, mask=None):
    best = (q @ k.mT).argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=torch.bool).scatter(-1, best, True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen if mask is None else chosen & mask)


# %% topk_attention: the softmax over all keys
# caught by: test_each_query_attends_to_its_best_keys, test_no_more_than_top_k_keys_have_weight
# says: The softmax runs over all keys and the rest is removed after it, so that the weights no longer sum to 1.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return (torch.nan_to_num(scores.softmax(-1)) * chosen) @ v


# %% topk_attention: what was not chosen has a score of zero
# caught by: test_no_more_than_top_k_keys_have_weight, test_each_query_attends_to_its_best_keys
# says: A score of 0 is not "left out": its exponential is 1. What was not chosen needs a score of −∞.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return torch.nan_to_num(scores.masked_fill(~chosen, 0).softmax(-1)) @ v


# %% topk_attention: one choice for all queries
# caught by: test_each_query_attends_to_its_best_keys
# says: One set of keys is chosen for all queries together; each query has its own.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.mean(-2, keepdim=True).argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.expand(*q.shape[:-1], -1), True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen if mask is None else chosen & mask)


# %% topk_attention: the worst keys
# caught by: test_each_query_attends_to_its_best_keys, test_one_key_is_taken_whole
# says: The keys with the lowest scores are taken: sort in descending order.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, math.inf)
    best = scores.argsort(dim=-1, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen if mask is None else chosen & mask)


# %% topk_attention: no 1/√d
# caught by: test_scores_are_divided_by_the_root_of_d_head, test_each_query_attends_to_its_best_keys
# says: The right keys are chosen, but their scores are not divided by √d_head.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return torch.nan_to_num(scores.masked_fill(~chosen, -math.inf).softmax(-1)) @ v


# %% topk_attention: the best by size
# caught by: test_each_query_attends_to_its_best_keys, test_one_key_is_taken_whole
# says: The scores with the largest absolute value are taken; a strongly negative score is a bad match, not a good one.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    rank = scores.abs() if mask is None else scores.abs().masked_fill(~mask, -math.inf)
    best = rank.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen if mask is None else chosen & mask)


# %% topk_attention: blocked keys fill the empty places
# caught by: test_fewer_allowed_keys_than_top_k_are_all_taken, test_a_row_that_may_attend_to_nothing_gives_zeros
# says: Where fewer than top_k keys are allowed, blocked ones are taken as well: the mask still holds.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)


# %% topk_attention: torch.topk asked for more than there are
# caught by: test_all_keys_are_plain_attention
# says: torch.topk raises an error where top_k is more than the number of keys.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.topk(top_k)
    weights = torch.full_like(scores, -math.inf).scatter(-1, best.indices, best.values).softmax(-1)
    return torch.nan_to_num(weights) @ v


# %% topk_attention: no care for empty rows
# caught by: test_a_row_that_may_attend_to_nothing_gives_zeros
# says: The softmax of a row of −∞ is NaN: a row that may attend to nothing should give zeros.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return scores.masked_fill(~chosen, -math.inf).softmax(-1) @ v


# %% topk_attention: detached scores
# caught by: test_gradients_flow_through_what_was_chosen
# says: The scores are detached, so that no gradient reaches queries and keys; only the choice has none.
def topk_attention(q, k, v, top_k, mask=None):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).detach()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return torch.nan_to_num(scores.masked_fill(~chosen, -math.inf).softmax(-1)) @ v


# %% topk_attention: a small number that decides ties
# caught by: test_the_lower_index_wins_a_tie
# says: Ties are broken by subtracting a small number, which is lost beside a large score.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = (scores - 1e-6 * torch.arange(scores.shape[-1])).argsort(dim=-1, descending=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    chosen = chosen if mask is None else chosen & mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)


# %% topk_attention: −10⁴ for −∞
# caught by: test_large_scores_do_not_overflow
# says: Blocked keys have a score of −10,000, which is better than some that are allowed.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    chosen = chosen if mask is None else chosen & mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=chosen)


# %% topk_attention: float32 inside
# caught by: test_the_result_has_the_dtype_and_leading_dimensions_of_the_input
# says: Everything passes through float32, so that float64 comes back with half of its digits.
def topk_attention(q, k, v, top_k, mask=None):
    scores = q @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    chosen = chosen if mask is None else chosen & mask
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=chosen).to(v.dtype)


# %% LinformerAttention: E for keys and values
# caught by: test_every_query_attends_to_the_mixtures, test_one_mixture_is_the_same_for_all
# says: E mixes the values too, and F is never used: the values are mixed by F.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e = self.q_proj(x), self.e_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real), e @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: E and F swapped
# caught by: test_every_query_attends_to_the_mixtures, test_one_mixture_is_the_same_for_all
# says: E and F are swapped: E mixes the keys, F the values.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = f @ (self.k_proj(x) * real), e @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: queries are mixed too
# caught by: test_every_query_attends_to_the_mixtures
# says: There are as many outputs as mixtures: the queries stay as they are, one a position.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        e, f = self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        q, k, v = e @ self.q_proj(x), e @ (self.k_proj(x) * real), f @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: channels are made fewer
# caught by: test_the_layer_has_six_weights_and_nothing_else
# says: E and F have d_model columns, so they mix channels; they should mix positions, n_max of them.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(d_model, rank, bias=False), nn.Linear(d_model, rank, bias=False)

    def forward(self, x, mask=None):
        q, k, v = self.q_proj(x), self.e_proj(self.k_proj(x)), self.f_proj(self.v_proj(x))
        q = q[..., : k.shape[-1]]
        return self.o_proj(F.pad(F.scaled_dot_product_attention(q, k, v), (0, x.shape[-1] - v.shape[-1])))


# %% LinformerAttention: a short text uses the last columns
# caught by: test_a_shorter_text_uses_the_first_columns
# says: A shorter text uses the last columns of E and F: position p belongs to column p.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, -n:], self.f_proj.weight[:, -n:]
        k, v = e @ (self.k_proj(x) * real), f @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: a long text is cut off
# caught by: test_a_longer_text_is_an_error
# says: The end of a text longer than n_max is silently left out of keys and values: that should be a ValueError.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = min(x.shape[1], self.n_max)
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real)[:, :n], f @ (self.v_proj(x) * real)[:, :n]
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: the mask is ignored
# caught by: test_padding_counts_in_no_mixture, test_what_stands_at_padding_makes_no_difference
# says: The mask is ignored, so that padding is mixed in with the text.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ self.k_proj(x), f @ self.v_proj(x)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: padding counts in the values
# caught by: test_padding_counts_in_no_mixture, test_what_stands_at_padding_makes_no_difference
# says: Padding is kept out of the keys, but the values still hold it.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real), f @ self.v_proj(x)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: the root of d_model
# caught by: test_every_query_attends_to_the_mixtures, test_mixtures_of_one_position_each_are_plain_attention
# says: The scores are divided by the root of d_model; each head works with d_head channels.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real), f @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5)
        return self.o_proj(out.transpose(1, 2).flatten(2))


# %% LinformerAttention: biases
# caught by: test_the_layer_has_six_weights_and_nothing_else
# says: The projections have biases; the state dict should hold six weights and nothing else.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank), nn.Linear(n_max, rank)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real), f @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


# %% LinformerAttention: a causal mask over mixtures
# caught by: test_every_query_attends_to_the_mixtures
# says: A causal mask is laid over the mixtures, which have no order in time: query i sees the first i + 1 of them.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real), f @ (self.v_proj(x) * real)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


# %% LinformerAttention: one head
# caught by: test_every_query_attends_to_the_mixtures, test_mixtures_of_one_position_each_are_plain_attention
# says: All channels are one head: n_heads heads attend by themselves, each with d_head channels.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_max = n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        real = 1 if mask is None else mask[..., None]
        e, f = self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x) * real), f @ (self.v_proj(x) * real)
        return self.o_proj(F.scaled_dot_product_attention(self.q_proj(x), k, v))


# %% LinformerAttention: dropout
# caught by: test_sequences_of_a_batch_do_not_meet
# says: In training the weights are dropped at random; this layer has no dropout.
class LinformerAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_max, rank):
        super().__init__()
        self.n_heads, self.n_max = n_heads, n_max
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
        self.e_proj, self.f_proj = nn.Linear(n_max, rank, bias=False), nn.Linear(n_max, rank, bias=False)

    def forward(self, x, mask=None):
        n = x.shape[1]
        if n > self.n_max:
            raise ValueError(f"{n} positions, at most {self.n_max}")
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        q, e, f = self.q_proj(x), self.e_proj.weight[:, :n], self.f_proj.weight[:, :n]
        k, v = e @ (self.k_proj(x)), f @ (self.v_proj(x))
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.o_proj(
            F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 * self.training).transpose(1, 2).flatten(2)
        )
