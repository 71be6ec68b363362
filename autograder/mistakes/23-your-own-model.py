# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% Model: the start is read from the cache in each layer
# caught by: test_in_chunks_with_a_cache_it_says_the_same
# says: Each layer asks the cache how long it is, and the first has just made it longer: ask once, before the blocks.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        start = 0 if cache is None else cache.length
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, k.shape[2]))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: a chunk begins at position 0
# caught by: test_in_chunks_with_a_cache_it_says_the_same
# says: Every chunk is turned as if it stood at the beginning: its positions go on where the cache ends.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: keys are repeated before they are kept
# caught by: test_the_cache_gets_few_heads_and_only_what_is_new
# says: The cache keeps each head of keys several times: keep the few, and repeat what comes back.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: keys are kept before they are turned
# caught by: test_the_cache_gets_few_heads_and_only_what_is_new
# says: The cache gets keys that are not turned yet, so all of them are turned anew for each chunk: turn them first, and keep them turned.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, torch.arange(start + n), c.rope_theta))
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: all layers share a row of the cache
# caught by: test_the_cache_gets_few_heads_and_only_what_is_new, test_in_chunks_with_a_cache_it_says_the_same
# says: All layers put their keys into layer 0 of the cache, and read each other's: hand it the layer's number.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(0, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, k.shape[2]))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: PyTorch's attention instead of the box's
# caught by: test_another_attention_makes_another_model, test_each_part_is_used_in_each_layer_and_no_more
# says: The heads do not come from parts.attention: another one in the box changes nothing.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = F.scaled_dot_product_attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: its own RMSNorm at the end
# caught by: test_another_norm_makes_another_model
# says: The last norm is not the one of the box: parts.norm makes all of them.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: the values are turned too
# caught by: test_with_standard_parts_it_is_a_llama
# says: Values are turned by RoPE: only queries and keys carry their position.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        v = parts.rope(v, positions, c.rope_theta)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: the theta of the signature
# caught by: test_with_standard_parts_it_is_a_llama, test_another_rope_makes_another_model
# says: RoPE turns by its own default theta: the config has a rope_theta.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions), parts.rope(k, positions))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: the stream itself is normalised
# caught by: test_with_standard_parts_it_is_a_llama
# says: Each block adds to the normalised stream: what is added to is the stream as it came.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = self.norm1(x)
        x = x + self.attention(x, start, cache)
        x = self.norm2(x)
        return x + self.mlp(x)


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: no norm before the read-out
# caught by: test_with_standard_parts_it_is_a_llama
# says: The last norm is made and not used: it stands before the read-out.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return x @ self.tokens.weight.T


# %% Model: a read-out of its own
# caught by: test_the_state_dict_has_the_names_and_shapes_of_the_prompt
# says: The read-out is a second matrix: it should be the embedding, transposed.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocabulary, bias=False)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.head(self.norm(x))


# %% Model: the embedding as PyTorch begins it
# caught by: test_the_embedding_begins_small
# says: The embedding begins with a standard deviation of 1: tied to the read-out, that gives scores of a dozen and more.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: experts are forgotten
# caught by: test_with_experts_it_is_a_mixtral
# says: A config with experts gives a model without: there mlp is what parts.experts makes.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, start + n))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = parts.feed_forward(*sizes)

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: no mask for a single token
# caught by: test_in_chunks_with_a_cache_it_says_the_same
# says: A single token is read without a mask: what it may see is still for parts.chunk_mask to say.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        mask = parts.chunk_mask(n, k.shape[2]) if n > 1 else None
        heads = parts.attention(q, k, v, mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: one expert is none
# caught by: test_with_experts_it_is_a_mixtral
# says: With n_experts 1 there are experts too: only 0 means that there are none.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, k.shape[2]))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k)
            if config.n_experts > 1
            else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = 0 if cache is None else cache.length
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% Model: it counts the positions itself
# caught by: test_in_chunks_with_a_cache_it_says_the_same
# says: The model counts positions itself, and goes on counting when another cache comes: ask the cache how long it is.
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.config, self.parts, self.layer = (config, parts, layer)
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, start, cache):
        c, parts, n = (self.config, self.parts, x.shape[1])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, c.d_head)).transpose(1, 2) for proj in projections)
        positions = torch.arange(start, start + n)
        q, k = (parts.rope(q, positions, c.rope_theta), parts.rope(k, positions, c.rope_theta))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        k, v = (parts.repeat_kv(part, c.n_heads // c.n_kv_heads) for part in (k, v))
        heads = parts.attention(q, k, v, parts.chunk_mask(n, k.shape[2]))
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        sizes = (config.d_model, config.d_hidden)
        self.norm1 = parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        self.mlp = (
            parts.experts(*sizes, config.n_experts, config.top_k) if config.n_experts else parts.feed_forward(*sizes)
        )

    def forward(self, x, start, cache):
        x = x + self.attention(self.norm1(x), start, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads:
            raise ValueError(f"{config.n_heads} query heads cannot share {config.n_kv_heads} heads of keys equally")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList((Block(config, parts, layer) for layer in range(config.n_layers)))
        self.norm = parts.norm(config.d_model)
        self.read = 0

    def forward(self, ids, cache=None):
        start = 0 if cache is None else self.read
        self.read = 0 if cache is None else start + ids.shape[1]
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% train: the gradients are never cleared
# caught by: test_it_takes_the_steps_of_adamw
# says: Gradients pile up from step to step: clear them before each.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: everything decays
# caught by: test_matrices_decay_and_vectors_do_not
# says: Gains and biases decay too: only what has two dimensions or more should.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": weight_decay}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: PyTorch's betas
# caught by: test_it_takes_the_steps_of_adamw
# says: The second beta is 0.999, PyTorch's own: here it is 0.95.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: the losses of a step are added up
# caught by: test_a_step_of_several_batches_is_a_step_of_their_mean
# says: A step of several batches has the sum of their gradients: it should be that of their mean.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean / accumulate)
    return losses


# %% train: each small batch is limited by itself
# caught by: test_a_step_of_several_batches_is_a_step_of_their_mean
# says: The gradient is limited after every small batch: limit that of the whole step, once.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
            nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: each number of the gradient is limited
# caught by: test_the_gradient_of_a_step_is_limited
# says: Each number of the gradient is limited by itself: limit the norm of all of them together.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_value_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: no limit
# caught by: test_the_gradient_of_a_step_is_limited
# says: clip changes nothing: the norm of the gradient is never limited.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: the rate never changes
# caught by: test_the_rate_of_each_step_is_what_the_part_says, test_warm_up_and_cosine_are_as_the_part_has_them
# says: Every step has the rate lr: ask parts.learning_rate for each.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: the cosine ends at 0
# caught by: test_the_rate_of_each_step_is_what_the_part_says
# says: The rate is told to end at 0: its end is a tenth of lr.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=0.0)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: the same batches in every step
# caught by: test_each_batch_is_taken_once_and_in_order
# says: Every step takes the batches from 0 on: they go on where the last step ended.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: inputs as targets
# caught by: test_it_takes_the_steps_of_adamw
# says: The targets are the inputs: each position should predict the token after it.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, :-1].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: what is frozen learns too
# caught by: test_what_is_frozen_stays
# says: It trains parameters that do not require a gradient: leave them as they are.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = list(model.requires_grad_(True).parameters())
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: only what has exactly two dimensions decays
# caught by: test_matrices_decay_and_vectors_do_not
# says: Only tensors of two dimensions decay: those with more, such as experts, should as well.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() == 2], [p for p in trained if p.dim() != 2])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% train: old gradients of what is frozen count in the norm
# caught by: test_gradients_from_before_count_for_nothing
# says: The norm is taken over all parameters, also over gradients that frozen ones brought along.
def train(model, batches, steps, parts, *, lr=0.001, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1])
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        optimiser.zero_grad()
        mean = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        losses.append(mean)
    return losses


# %% adapt: the given model gets the adapters
# caught by: test_the_model_that_was_given_stays
# says: The adapters are in the model that you were given: put them into a copy.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = model.requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: the adapters are frozen as well
# caught by: test_only_the_adapters_learn
# says: Freezing comes after the adapters are in, and freezes them too: freeze first, or leave them out.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    adapted.requires_grad_(False)
    if steps == 0:
        return adapted, []
    next(adapted.parameters()).requires_grad_(True)
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: nothing is frozen
# caught by: test_only_the_adapters_learn
# says: The whole copy learns: only the adapters should.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: the end of a name is enough
# caught by: test_every_target_gets_an_adapter_and_nothing_else_does
# says: A layer whose name only ends like a target gets an adapter: compare the whole last part of the dotted name.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.endswith(tuple(targets))]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: any part of a name is enough
# caught by: test_every_target_gets_an_adapter_and_nothing_else_does
# says: A layer gets an adapter because the module that it stands in is called so: only the last part of its name counts.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if set(name.split(".")) & set(targets)]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: a name that begins like a target
# caught by: test_every_target_gets_an_adapter_and_nothing_else_does
# says: A layer whose name only contains a target gets an adapter: compare the whole last part of the dotted name.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if any(name.split(".")[-1].startswith(t) for t in targets)]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: only layers at the top
# caught by: test_every_target_gets_an_adapter_and_nothing_else_does
# says: Only the layers of the model itself are looked at: those in its blocks are targets too.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_children() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: the weight decay of train
# caught by: test_it_is_trained_with_this_rate_and_without_decay
# says: The adapters decay, as train has it by default: here there is no weight decay.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr))


# %% adapt: the rate is not handed on
# caught by: test_it_is_trained_with_this_rate_and_without_decay
# says: train gets its own rate, whatever lr says: hand it on.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, weight_decay=0.0))


# %% adapt: a LoRA of its own
# caught by: test_the_adapters_are_the_part_of_the_box
# says: The adapters are PyTorch's own: they should be what parts.lora makes.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, StandardLoRA(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: a wish for what is not there is granted
# caught by: test_targets_that_are_not_there_are_an_error
# says: Without a target nothing is adapted, and nobody is told: raise a ValueError that names the targets.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model).requires_grad_(False)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% adapt: everything learns in the given model afterwards
# caught by: test_the_model_that_was_given_stays
# says: In the model that you were given everything requires a gradient now, also what was frozen: freeze the copy instead.
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=0.001):
    adapted = copy.deepcopy(model.requires_grad_(False))
    model.requires_grad_(True)
    found = [(name, layer) for name, layer in adapted.named_modules() if isinstance(layer, nn.Linear)]
    found = [(name, layer) for name, layer in found if name.split(".")[-1] in targets]
    if not found:
        raise ValueError(f"No nn.Linear of this model is called {' or '.join(targets)}")
    for name, layer in found:
        adapted.set_submodule(name, parts.lora(layer, rank, alpha))
    return (adapted, train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0))


# %% quantise: only nn.Linear
# caught by: test_what_is_in_the_blocks_is_shrunk
# says: Only the weights of nn.Linear are shrunk: experts are tensors of their own, and most of a mixture.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and name.endswith(".weight")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: the router is shrunk
# caught by: test_router_and_adapters_are_left_alone
# says: The router goes through four bits as well: leave alone what decides between experts.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if name.startswith("blocks.") and value.dim() > 1 and (not {"lora_A", "lora_B"} & set(name.split("."))):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: the adapters are shrunk
# caught by: test_router_and_adapters_are_left_alone
# says: lora_A and lora_B go through four bits as well: they are small, and were learnt last.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if name.startswith("blocks.") and value.dim() > 1 and (not {"router"} & set(name.split("."))):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: the embedding is shrunk
# caught by: test_what_is_in_the_blocks_is_shrunk
# says: What does not stand in the blocks is shrunk as well: the embedding stays as it is.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if value.dim() > 1 and (not {"router", "lora_A", "lora_B"} & set(name.split("."))):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: whatever has router in its name stays
# caught by: test_what_is_in_the_blocks_is_shrunk
# says: A name that only contains the word router counts as a router: compare whole parts of the dotted name.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and not any(word in name for word in ("router", "lora_A", "lora_B"))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: the given model is shrunk
# caught by: test_the_given_model_keeps_all_its_bits
# says: The model that you were given has lost its bits: shrink a copy.
def quantise(model, parts, block=64):
    shrunk, size = (model, 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: the scales are not counted
# caught by: test_the_bytes_are_those_of_a_file, test_the_bytes_are_those_of_what_the_part_returns
# says: The bytes leave out absmax: without it nobody can read the four bits.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: the rest is not counted
# caught by: test_the_bytes_are_those_of_a_file
# says: The bytes leave out what was not shrunk.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
    return (shrunk, size)


# %% quantise: the rest at four bytes a number
# caught by: test_the_bytes_are_those_of_a_file
# says: What was not shrunk is counted at four bytes a number, whatever its dtype is.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += 4 * value.numel()
    return (shrunk, size)


# %% quantise: the block is not handed on
# caught by: test_the_block_is_the_one_that_was_asked_for
# says: Blocks have 64 numbers whatever block says: hand it on.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, 64)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, 64))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: row by row
# caught by: test_the_quantiser_is_the_part_of_the_box
# says: Each row goes to the quantiser by itself: the tensor goes there as a whole.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            for row in value.data:
                packed, absmax = parts.nf4_quantize(row, block)
                row.copy_(parts.nf4_dequantize(packed, absmax, row.shape, block))
                size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: float32 comes back
# caught by: test_the_copy_is_like_the_model
# says: A shrunk parameter comes back in float32, whatever it was: keep its dtype.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            name.startswith("blocks.")
            and value.dim() > 1
            and (not {"router", "lora_A", "lora_B"} & set(name.split(".")))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data = parts.nf4_dequantize(packed, absmax, value.shape, block)
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% quantise: blocks anywhere in the name
# caught by: test_what_is_in_the_blocks_is_shrunk
# says: A name that has blocks in its middle is shrunk too: it should begin with it.
def quantise(model, parts, block=64):
    shrunk, size = (copy.deepcopy(model), 0)
    for name, value in shrunk.named_parameters():
        if (
            "blocks" in name.split(".")
            and value.dim() > 1
            and not {"router", "lora_A", "lora_B"} & set(name.split("."))
        ):
            packed, absmax = parts.nf4_quantize(value.data, block)
            value.data.copy_(parts.nf4_dequantize(packed, absmax, value.shape, block))
            size += packed.nbytes + absmax.nbytes
        else:
            size += value.nbytes
    return (shrunk, size)


# %% serve: the whole text is read again
# caught by: test_each_token_is_read_once
# says: The model reads more than it must: the prompt in the first call, then each new token once, and the last one never.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                new = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                ids = torch.cat([ids, new], 1)
                answer.append(new.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: one cache for all prompts
# caught by: test_each_prompt_has_a_cache_of_its_own
# says: All prompts share one cache, so each reads the others': every prompt needs its own.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    cache = parts.cache()
    with torch.no_grad():
        for prompt in prompts:
            draw = torch.Generator().manual_seed(seed)
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: one generator for all prompts
# caught by: test_nobody_notices_the_others, test_the_tokens_are_drawn_as_the_prompt_says
# says: The prompts draw from one generator, so an answer depends on who asked before: each prompt has its own.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for prompt in prompts:
            cache = parts.cache()
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: the generator of everybody
# caught by: test_another_seed_is_another_answer, test_the_tokens_are_drawn_as_the_prompt_says
# says: The numbers come from PyTorch's own generator: the seed decides nothing.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: the end token is left out
# caught by: test_the_end_token_ends_an_answer
# says: The end token is not in the answer: it is its last token.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer[:-1] if answer[-1] == end else answer, dtype=torch.int64))
    return answers


# %% serve: end counts only if it is true
# caught by: test_the_end_token_ends_an_answer
# says: An end token of 0 ends nothing: ask whether end is None, not whether it is true.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and not (end and answer and answer[-1] == end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: the end token in the prompt
# caught by: test_an_end_token_in_the_prompt_ends_nothing
# says: An end token at the end of the prompt ends the answer before it began.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (len(answer) == 0 and end is None or ids[0, -1].item() != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: the prompt comes back too
# caught by: test_it_writes_what_the_model_says
# says: The prompt is in the answer: return only what is new.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.cat([prompt, torch.tensor(answer)]))
    return answers


# %% serve: gradients are recorded
# caught by: test_no_gradient_is_recorded
# says: Gradients are recorded while it writes: memory fills for nobody.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.enable_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1, generator=draw), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: always the likeliest
# caught by: test_the_tokens_are_drawn_as_the_prompt_says, test_another_seed_is_another_answer
# says: The likeliest token is taken whatever the temperature is: parts.sample chooses.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.Generator().manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = logits.argmax(-1)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% serve: the generator of everybody, with the seed
# caught by: test_the_tokens_are_drawn_as_the_prompt_says
# says: The seed is given to PyTorch's own generator, from which others draw too: make one for each prompt.
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    with torch.no_grad():
        for prompt in prompts:
            cache, draw = (parts.cache(), torch.manual_seed(seed))
            ids, answer = (prompt[None], [])
            while len(answer) < n_new and (not answer or answer[-1] != end):
                logits = model(ids, cache)[:, -1]
                ids = parts.sample(logits, torch.rand(1), temperature)[:, None]
                answer.append(ids.item())
            answers.append(torch.tensor(answer))
    return answers


# %% bill: the read-out is counted twice
# caught by: test_the_bill_counts_every_number_once
# says: Embedding and read-out are counted as two tables: they are one.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, 2 * c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms - embedding // 2) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: the norms are forgotten
# caught by: test_the_bill_counts_every_number_once
# says: The norms are missing: two in each layer, and one at the end.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = (0, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: heads of keys as many as of queries
# caught by: test_the_bill_counts_every_number_once, test_what_is_kept_for_a_token
# says: Keys and values are billed for every query head: there are only n_kv_heads of them.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: the router is free
# caught by: test_experts_and_their_router_are_on_the_bill
# says: The router is missing: a row for each expert, in each layer.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = ([c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden], 0)
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: all experts are active
# caught by: test_active_are_the_numbers_that_a_token_uses, test_flops_of_a_mixture_are_those_of_its_active_experts
# says: Every expert counts as active: a token uses top_k of them.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * 0 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: one FLOP a number
# caught by: test_flops_are_what_a_machine_counts
# says: A number of a matrix is billed as one FLOP: a multiplication and an addition are two.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: attention costs nothing
# caught by: test_flops_are_what_a_machine_counts, test_longer_contexts_cost_more_by_the_same_step
# says: Attention's own products are missing: they grow with the context.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms)
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: attention as cheap as the cache
# caught by: test_longer_contexts_cost_more_by_the_same_step
# says: Attention is billed for the heads of keys: every query head computes, though it shares.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_kv_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: only keys are kept
# caught by: test_what_is_kept_for_a_token
# says: The cache is billed for keys alone: it keeps values too.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: four bits without scales
# caught by: test_four_bits_are_billed_tensor_by_tensor
# says: The four bytes a block are missing: without them nobody can read the four bits.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: everything in four bits
# caught by: test_four_bits_are_billed_tensor_by_tensor
# says: The embedding, the norms and the routers are billed at four bits too: they stay at two bytes.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": (total + 1) // 2 + 4 * ((total + 63) // 64),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: rounded once for all tensors
# caught by: test_four_bits_are_billed_tensor_by_tensor
# says: The blocks are billed as if all tensors were one: each begins a block of its own.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + (sum(matrices) + 1) // 2 + 4 * ((sum(matrices) + 63) // 64),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: learning as cheap as reading
# caught by: test_learning_costs_three_times_reading
# says: Training is billed as reading alone: the way back costs twice the way forth.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": tokens * flops,
        "watt_hours": watts * seconds / 3600,
    }


# %% bill: minutes for hours
# caught by: test_watt_hours_are_watts_times_hours
# says: The seconds are divided by 60: an hour has 3600.
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = (c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head)
    if c.n_experts:
        mlp, router = (
            [c.n_experts * 2 * c.d_hidden * c.d_model, c.n_experts * c.d_model * c.d_hidden],
            c.n_experts * c.d_model,
        )
        idle = c.n_layers * (c.n_experts - c.top_k) * 3 * c.d_hidden * c.d_model
    else:
        mlp, router, idle = ([c.d_hidden * c.d_model] * 3, 0, 0)
    matrices = c.n_layers * [q, kv, kv, q, *mlp]
    norms, embedding = ((2 * c.n_layers + 1) * c.d_model, c.vocabulary * c.d_model)
    rest = embedding + norms + c.n_layers * router
    total = sum(matrices) + rest
    flops = 2 * (total - idle - norms) + 4 * c.n_layers * c.n_heads * c.d_head * context
    return {
        "parameters": total,
        "active": total - idle,
        "bytes_fp32": 4 * total,
        "bytes_bf16": 2 * total,
        "bytes_nf4": 2 * rest + sum(((n + 1) // 2 + 4 * ((n + 63) // 64) for n in matrices)),
        "kv_bytes_per_token": 2 * 2 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": flops,
        "training_flops": 3 * tokens * flops,
        "watt_hours": watts * seconds / 60,
    }
