# %% my helpers
def to_heads(x, n_heads):
    """(batch, n, d_model) to (batch, n_heads, n, d_head)."""
    batch, n, d_model = x.shape
    return x.view(batch, n, n_heads, d_model // n_heads).transpose(1, 2)


def residual(x, sublayer, norm, pre_norm):
    if pre_norm:
        return x + sublayer(norm(x))
    return norm(x + sublayer(x))


# %% CrossAttention
class CrossAttention(nn.Module):
    """Queries from x, keys and values from memory. With memory = x it is self-attention."""

    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads = n_heads
        if scale is None:
            scale = 1 / math.sqrt(d_model / n_heads)
        self.scale = scale
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x, memory, mask=None, position_bias=None):
        q = to_heads(self.q_proj(x), self.n_heads)
        k = to_heads(self.k_proj(memory), self.n_heads)
        v = to_heads(self.v_proj(memory), self.n_heads)
        scores = self.scale * torch.matmul(q, k.transpose(-2, -1))
        if position_bias is not None:
            scores = scores + position_bias
        if mask is None:
            weights = F.softmax(scores, dim=-1)
        else:
            # a query with nothing to see would be 0/0, so let it see everything and throw the result away
            nothing = ~mask.any(dim=-1, keepdim=True)
            weights = F.softmax(scores.masked_fill(~(mask | nothing), float("-inf")), dim=-1)
            weights = weights.masked_fill(nothing, 0.0)
        heads = torch.matmul(weights, v).transpose(1, 2)
        return self.o_proj(heads.reshape(x.shape))


# %% EncoderLayer
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, chosen.bias, chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        def look(h):
            return self.self_attention(h, h, mask, position_bias)

        x = residual(x, look, self.self_attention_norm, self.pre_norm)
        return residual(x, self.feed_forward, self.feed_forward_norm, self.pre_norm)


# %% DecoderLayer
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, chosen.bias, chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.cross_attention = CrossAttention(d_model, n_heads, chosen.bias, chosen.scale)
        self.cross_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        i = torch.arange(x.size(1))
        past = i.unsqueeze(1) >= i.unsqueeze(0)

        def look_back(h):
            return self.self_attention(h, h, past, position_bias)

        def look_over(h):
            return self.cross_attention(h, memory, memory_mask)

        x = residual(x, look_back, self.self_attention_norm, self.pre_norm)
        x = residual(x, look_over, self.cross_attention_norm, self.pre_norm)
        return residual(x, self.feed_forward, self.feed_forward_norm, self.pre_norm)


# %% relative_position_bucket
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    if bidirectional:
        own = n_buckets // 2
        steps = torch.abs(distance)
        first = torch.where(distance > 0, own, 0)
    else:
        own = n_buckets
        steps = torch.maximum(-distance, torch.zeros_like(distance))
        first = torch.zeros_like(distance)
    m = own // 2
    # steps below m never use the logarithm; raising them to m keeps it from being −∞
    ratio = torch.log(torch.clamp(steps, min=m).double() / m) / math.log(max_distance / m)
    far = m + torch.floor(ratio * (own - m)).to(torch.int64)
    far = torch.clamp(far, max=own - 1)
    return first + torch.where(steps < m, steps, far)


# %% mask_tokens
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    special = torch.zeros(ids.shape, dtype=torch.bool)
    for special_id in special_ids:
        special = special | (ids == special_id)
    chosen = (random < p) & ~special

    labels = torch.where(chosen, ids, -100)
    inputs = ids.clone()
    to_mask = chosen & (random_kind < 0.8)
    to_random = chosen & ~to_mask & (random_kind < 0.9)
    inputs[to_mask] = mask_id
    inputs[to_random] = random_ids[to_random]
    return inputs, labels


# %% corrupt_spans
def corrupt_spans(ids, spans, sentinels):
    # first make one span of those that touch
    merged = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    needed = len(merged) + 1
    if needed > len(sentinels):
        raise ValueError(f"I need {needed} sentinels for {len(merged)} spans, but there are only {len(sentinels)}.")

    new_input, target = [], []
    position = 0
    for number, (start, end) in enumerate(merged):
        new_input.extend(ids[position:start])
        new_input.append(sentinels[number])
        target.append(sentinels[number])
        target.extend(ids[start:end])
        position = end
    new_input.extend(ids[position:])
    target.append(sentinels[len(merged)])
    return new_input, target
