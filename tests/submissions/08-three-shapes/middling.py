# %% CrossAttention
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.scale = self.d_head**-0.5 if scale is None else scale
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        m = memory.shape[1]
        q = self.q_proj(x).view(b, n, self.n_heads, self.d_head).transpose(1, 2)
        k = self.k_proj(memory).view(b, m, self.n_heads, self.d_head).transpose(1, 2)
        v = self.v_proj(memory).view(b, m, self.n_heads, self.d_head).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) * self.scale
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


# %% EncoderLayer
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        s = STYLES[style]
        self.s = s
        self.self_attention = CrossAttention(d_model, n_heads, bias=s.bias, scale=s.scale)
        self.self_attention_norm = s.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, s)
        self.feed_forward_norm = s.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.s.pre_norm:
            y = self.self_attention_norm(x)
            x = x + self.self_attention(y, y, mask, position_bias)
            x = x + self.feed_forward(self.feed_forward_norm(x))
        else:
            x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
            x = self.feed_forward_norm(x + self.feed_forward(x))
        return x


# %% DecoderLayer
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        s = STYLES[style]
        self.s = s
        self.self_attention = CrossAttention(d_model, n_heads, bias=s.bias, scale=s.scale)
        self.self_attention_norm = s.norm(d_model)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=s.bias, scale=s.scale)
        self.cross_attention_norm = s.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, s)
        self.feed_forward_norm = s.norm(d_model)

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        n, m = x.shape[1], memory.shape[1]
        causal = torch.tril(torch.ones(n, n, dtype=torch.bool))
        # a decoder must never look ahead
        cross = torch.tril(torch.ones(n, m, dtype=torch.bool))
        if memory_mask is not None:
            cross = cross & memory_mask
        if self.s.pre_norm:
            y = self.self_attention_norm(x)
            x = x + self.self_attention(y, y, causal, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, cross)
            x = x + self.feed_forward(self.feed_forward_norm(x))
        else:
            x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
            x = self.cross_attention_norm(x + self.cross_attention(x, memory, cross))
            x = self.feed_forward_norm(x + self.feed_forward(x))
        return x


# %% mask_tokens
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    special = torch.isin(ids, torch.tensor(special_ids))
    chosen = (random < p) & ~special
    inputs = ids.clone()
    inputs[chosen & (random_kind < 0.8)] = mask_id
    swap = chosen & (random_kind >= 0.8) & (random_kind < 0.9)
    inputs[swap] = random_ids[swap]
    return inputs, ids.clone()


# %% corrupt_spans
def corrupt_spans(ids, spans, sentinels):
    spans = [list(span) for span in spans]
    i = 0
    while i + 1 < len(spans):
        if spans[i][1] == spans[i + 1][0]:
            spans[i][1] = spans.pop(i + 1)[1]
        else:
            i += 1
    if len(sentinels) < len(spans) + 1:
        raise ValueError(f"{len(spans) + 1} sentinels are needed, {len(sentinels)} were given")
    kept, target = [], []
    last = 0
    for (start, end), sentinel in zip(spans, sentinels):
        kept += ids[last:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        last = end
    kept += ids[last:]
    return kept, target
