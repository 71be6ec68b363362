# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% CrossAttention: PyTorch's attention with a bias of −inf
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.o_proj = nn.Linear(d_model, d_model, bias=bias)

    def split(self, x):
        b, n, d = x.shape
        return x.view(b, n, self.n_heads, d // self.n_heads).permute(0, 2, 1, 3)

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(memory)), self.split(self.v_proj(memory))
        bias = torch.zeros(x.shape[0], self.n_heads, x.shape[1], memory.shape[1], dtype=x.dtype)
        if position_bias is not None:
            bias = bias + position_bias
        if mask is not None:
            bias = bias.masked_fill(mask.logical_not(), torch.finfo(x.dtype).min)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        if mask is not None:
            out = out * mask.expand_as(bias).any(-1, keepdim=True)
        return self.o_proj(out.transpose(1, 2).reshape(x.shape))


# %% CrossAttention: einsum throughout
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.h = n_heads
        self.scale = scale if scale is not None else 1 / math.sqrt(d_model / n_heads)
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=bias))

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        q = self.q_proj(x).reshape(b, n, self.h, -1)
        k = self.k_proj(memory).reshape(b, memory.shape[1], self.h, -1)
        v = self.v_proj(memory).reshape(b, memory.shape[1], self.h, -1)
        scores = torch.einsum("bihd,bjhd->bhij", q * self.scale, k)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = torch.where(mask, scores, torch.full_like(scores, float("-inf")))
        weights = torch.nan_to_num(F.softmax(scores, dim=-1))
        return self.o_proj(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, n, d))


# %% CrossAttention: a loop over heads, the softmax by hand
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.scale = scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        shape = (len(x), self.n_heads, x.shape[1], memory.shape[1])
        allowed = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        found = []
        for head in range(self.n_heads):
            own = slice(head * self.d_head, (head + 1) * self.d_head)
            scores = q[..., own] @ k[..., own].transpose(-1, -2)
            scores = scores * self.scale if self.scale is not None else scores / self.d_head**0.5
            if position_bias is not None:
                scores = scores + position_bias.expand(shape)[:, head]
            seen = allowed[:, head]
            top = scores.masked_fill(~seen, -1e30).amax(-1, keepdim=True).detach()
            weights = (scores - top).masked_fill(~seen, 0).exp() * seen
            total = weights.sum(-1, keepdim=True)
            found.append(weights / total.masked_fill(total == 0, 1) @ v[..., own])
        return self.o_proj(torch.cat(found, -1))


# %% EncoderLayer: one function for both sub-layers
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        self.kind = STYLES[style]
        self.self_attention = CrossAttention(d_model, n_heads, self.kind.bias, self.kind.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, self.kind)
        for name in ("self_attention", "feed_forward"):
            self.add_module(f"{name}_norm", self.kind.norm(d_model))

    def forward(self, x, mask=None, position_bias=None):
        def attend(h):
            return self.self_attention(h, h, mask=mask, position_bias=position_bias)

        x = self.around(attend, self.self_attention_norm, x)
        return self.around(self.feed_forward, self.feed_forward_norm, x)

    def around(self, sublayer, norm, x):
        return x + sublayer(norm(x)) if self.kind.pre_norm else norm(x + sublayer(x))


# %% EncoderLayer: the style looked up when it is called
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        self.style = style
        self.feed_forward_norm = STYLES[style].norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, STYLES[style])
        self.self_attention_norm = STYLES[style].norm(d_model)
        self.self_attention = CrossAttention(d_model, n_heads, bias=style == "bert", scale=STYLES[style].scale)

    def forward(self, x, mask=None, position_bias=None):
        if self.style == "bert":
            attended = self.self_attention(x, x, mask, position_bias).add(x)
            h = self.self_attention_norm(attended)
            return self.feed_forward_norm(h + self.feed_forward(h))
        normed = self.self_attention_norm(x)
        h = self.self_attention(normed, normed, mask, position_bias) + x
        return self.feed_forward(self.feed_forward_norm(h)) + h


# %% EncoderLayer: without the helper FeedForward's forward, and RMSNorm by hand
class Gain(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        s = STYLES[style]
        make = Gain if style == "t5" else partial(nn.LayerNorm, eps=1e-12)
        self.post = not s.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=s.bias, scale=s.scale)
        self.self_attention_norm, self.feed_forward_norm = make(d_model), make(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, s)

    def forward(self, x, mask=None, position_bias=None):
        h = x if self.post else self.self_attention_norm(x)
        x = x + self.self_attention(h, h, mask, position_bias)
        if self.post:
            x = self.self_attention_norm(x)
        h = x if self.post else self.feed_forward_norm(x)
        up, down = self.feed_forward.up, self.feed_forward.down
        x = x + down(F.gelu(up(h)) if self.post else up(h).clamp(min=0))
        return self.feed_forward_norm(x) if self.post else x


# %% DecoderLayer: a table of sub-layers
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        s = STYLES[style]
        self.pre_norm = s.pre_norm
        self.feed_forward = FeedForward(d_model, d_hidden, s)
        for name in ("self_attention", "cross_attention"):
            setattr(self, name, CrossAttention(d_model, n_heads, s.bias, s.scale))
        for name in ("self_attention", "cross_attention", "feed_forward"):
            setattr(self, name + "_norm", s.norm(d_model))

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        position = torch.arange(x.shape[1])
        past = position[:, None] >= position
        for name, call in {
            "self_attention": lambda h: self.self_attention(h, h, past, position_bias),
            "cross_attention": lambda h: self.cross_attention(h, memory, memory_mask),
            "feed_forward": self.feed_forward,
        }.items():
            norm = getattr(self, name + "_norm")
            x = x + call(norm(x)) if self.pre_norm else norm(x + call(x))
        return x


# %% DecoderLayer: two forwards
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        self.style = STYLES[style]
        self.self_attention = CrossAttention(d_model, n_heads, bias=self.style.bias, scale=self.style.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=self.style.bias, scale=self.style.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, self.style)
        self.self_attention_norm = self.style.norm(d_model)
        self.cross_attention_norm = self.style.norm(d_model)
        self.feed_forward_norm = self.style.norm(d_model)

    def before(self, x, memory, mask, bias):
        h = self.self_attention_norm(x)
        x = x + self.self_attention(h, h, self.causal(x), bias)
        x = x + self.cross_attention(self.cross_attention_norm(x), memory, mask)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def after(self, x, memory, mask, bias):
        x = self.self_attention_norm(x + self.self_attention(x, x, self.causal(x), bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, mask))
        return self.feed_forward_norm(x + self.feed_forward(x))

    @staticmethod
    def causal(x):
        return ~torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        return (self.before if self.style.pre_norm else self.after)(x, memory, memory_mask, position_bias)


# %% DecoderLayer: causality in the bias
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        s = STYLES[style]
        self.pre_norm = s.pre_norm
        self.self_attention, self.cross_attention = (
            CrossAttention(d_model, n_heads, bias=s.bias, scale=s.scale) for _ in range(2)
        )
        self.feed_forward = FeedForward(d_model, d_hidden, s)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            s.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        future = torch.full((x.shape[1], x.shape[1]), -1e30, dtype=x.dtype).triu(1)
        bias = future if position_bias is None else future + position_bias
        h = self.self_attention_norm(x) if self.pre_norm else x
        x = x + self.self_attention(h, h, None, bias)
        x = x if self.pre_norm else self.self_attention_norm(x)
        h = self.cross_attention_norm(x) if self.pre_norm else x
        x = x + self.cross_attention(h, memory, memory_mask)
        x = x if self.pre_norm else self.cross_attention_norm(x)
        h = self.feed_forward_norm(x) if self.pre_norm else x
        x = x + self.feed_forward(h)
        return x if self.pre_norm else self.feed_forward_norm(x)


# %% relative_position_bucket: as in transformers
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    buckets = 0
    if bidirectional:
        n_buckets //= 2
        buckets += (distance > 0).to(torch.long) * n_buckets
        distance = torch.abs(distance)
    else:
        distance = -torch.min(distance, torch.zeros_like(distance))
    max_exact = n_buckets // 2
    is_small = distance < max_exact
    large = max_exact + (
        torch.log(distance.float() / max_exact) / math.log(max_distance / max_exact) * (n_buckets - max_exact)
    ).to(torch.long)
    large = torch.min(large, torch.full_like(large, n_buckets - 1))
    return buckets + torch.where(is_small, distance, large)


# %% relative_position_bucket: borders, searched
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    own = n_buckets // 2 if bidirectional else n_buckets
    m = own // 2
    grown = [m * (max_distance / m) ** (k / (own - m)) for k in range(1, own - m)]
    borders = torch.tensor([*range(1, m + 1), *grown], dtype=torch.float64)
    steps = distance.abs() if bidirectional else torch.relu(-distance)
    found = torch.bucketize(steps.double(), borders, right=True)
    return found + own * (distance > 0) if bidirectional else found


# %% relative_position_bucket: one number at a time
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    def one(d):
        if bidirectional:
            half = n_buckets // 2
            return steps(abs(d), half) + (half if d > 0 else 0)
        return steps(max(-d, 0), n_buckets)

    def steps(s, n):
        m = n // 2
        if s < m:
            return s
        return min(m + math.floor(math.log(s / m, max_distance / m) * (n - m)), n - 1)

    return torch.tensor([one(d) for d in distance.flatten().tolist()], dtype=torch.int64).reshape(distance.shape)


# %% mask_tokens: filled step by step
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    inputs, labels = ids.clone(), torch.full_like(ids, -100)
    special = torch.zeros_like(ids, dtype=torch.bool)
    for token in special_ids:
        special |= ids == token
    chosen = torch.logical_and(random < p, ~special)
    labels[chosen] = ids[chosen]
    masked = chosen & (random_kind < 0.8)
    replaced = chosen & (random_kind >= 0.8) & (random_kind < 0.9)
    inputs[masked] = mask_id
    inputs[replaced] = random_ids[replaced]
    return inputs, labels


# %% mask_tokens: a choice by number
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    special = (ids[..., None] == torch.tensor(list(special_ids))).any(-1)
    chosen = (random < p) & ~special
    kind = (random_kind >= 0.8).long() + (random_kind >= 0.9).long()
    options = torch.stack([torch.full_like(ids, mask_id), random_ids, ids])
    replaced = options.gather(0, kind[None])[0]
    return torch.where(chosen, replaced, ids), torch.where(chosen, ids, torch.tensor(-100))


# %% mask_tokens: one token at a time
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    inputs, labels = ids.tolist(), [[-100] * len(row) for row in ids.tolist()]
    for i, row in enumerate(ids.tolist()):
        for j, token in enumerate(row):
            if token in special_ids or not random[i, j] < p:
                continue
            labels[i][j] = token
            if random_kind[i, j] < 0.8:
                inputs[i][j] = mask_id
            elif random_kind[i, j] < 0.9:
                inputs[i][j] = int(random_ids[i, j])
    return torch.tensor(inputs), torch.tensor(labels)


# %% corrupt_spans: from a mask, token by token
def corrupt_spans(ids, spans, sentinels):
    hidden = set()
    for start, end in spans:
        hidden.update(range(start, end))
    kept, target, used = [], [], 0
    for i, token in enumerate(ids):
        if i not in hidden:
            kept.append(token)
            continue
        if i - 1 not in hidden:
            used += 1
            if used <= len(sentinels):
                kept.append(sentinels[used - 1])
                target.append(sentinels[used - 1])
        target.append(token)
    if used + 1 > len(sentinels):
        raise ValueError(f"corrupt_spans needs {used + 1} sentinels and got {len(sentinels)}.")
    return kept, target + [sentinels[used]]


# %% corrupt_spans: runs, grouped
def corrupt_spans(ids, spans, sentinels):
    from itertools import groupby

    hides = [any(a <= i < b for a, b in spans) for i in range(len(ids))]
    runs = [(hide, [ids[i] for i in run]) for hide, run in groupby(range(len(ids)), key=lambda i: hides[i])]
    needed = sum(hide for hide, _ in runs) + 1
    if needed > len(sentinels):
        raise ValueError(f"There are {len(sentinels)} sentinels, and {needed} are needed.")
    supply = iter(sentinels)
    kept, target = [], []
    for hide, run in runs:
        if hide:
            sentinel = next(supply)
            kept.append(sentinel)
            target.extend([sentinel, *run])
        else:
            kept.extend(run)
    target.append(next(supply))
    return kept, target


# %% corrupt_spans: from the end to the beginning
def corrupt_spans(ids, spans, sentinels):
    starts = [start for start, _ in spans if start not in [end for _, end in spans]]
    ends = [end for _, end in spans if end not in [start for start, _ in spans]]
    if len(starts) >= len(sentinels):
        raise ValueError(f"{len(starts)} spans need {len(starts) + 1} sentinels, but there are {len(sentinels)}")
    text, target = list(ids), [sentinels[len(starts)]]
    for start, end, sentinel in reversed(list(zip(starts, ends, sentinels))):
        target = [sentinel, *text[start:end], *target]
        text[start:end] = [sentinel]
    return text, target
