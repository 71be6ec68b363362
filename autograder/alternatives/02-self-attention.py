# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% causal_mask: positions compared
def causal_mask(n):
    position = torch.arange(n)
    return position[:, None] >= position


# %% causal_mask: the upper triangle, inverted
def causal_mask(n):
    return ~torch.triu(torch.ones(n, n), diagonal=1).bool()


# %% causal_mask: a loop over rows
def causal_mask(n):
    mask = torch.zeros((n, n), dtype=torch.bool)
    for row in range(n):
        mask[row, : row + 1] = True
    return mask


# %% causal_mask: lists
def causal_mask(length):
    return torch.tensor([[column <= row for column in range(length)] for row in range(length)])


# %% causal_mask: a running sum of the identity
def causal_mask(n):
    return torch.eye(n).cumsum(0) > 0


# %% attention: einsum, and a bias of −inf
def attention(q, k, v, mask=None):
    scores = torch.einsum("...qd,...kd->...qk", q, k) * q.size(-1) ** -0.5
    if mask is None:
        return torch.einsum("...qk,...kd->...qd", F.softmax(scores, dim=-1), v)
    scores = torch.where(mask, scores, torch.tensor(float("-inf"), dtype=scores.dtype, device=scores.device))
    weights = torch.where(mask, F.softmax(scores, dim=-1), torch.zeros((), dtype=scores.dtype))
    return torch.einsum("...qk,...kd->...qd", weights, v)


# %% attention: the softmax by hand
def attention(q, k, v, mask=None):
    scores = (q / q.shape[-1] ** 0.5) @ k.transpose(-1, -2)
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    largest = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
    weights = torch.exp((scores - largest.detach()).masked_fill(~allowed, 0)) * allowed
    total = weights.sum(-1, keepdim=True)
    return (weights / total.masked_fill(total == 0, 1)) @ v


# %% attention: NaN replaced by zeros
def attention(q, k, v, mask=None):
    d_head = k.size(-1)
    logits = torch.matmul(q, k.transpose(-2, -1)).div(math.sqrt(d_head))
    if mask is not None:
        logits = logits.masked_fill(mask.logical_not(), float("-inf"))
    return torch.matmul(torch.nan_to_num(torch.softmax(logits, -1)), v)


# %% attention: the lowest number, then empty rows set to zero
def attention(q, k, v, mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    out = torch.softmax(scores, -1) @ v
    if mask is not None:
        out = out * mask.any(-1, keepdim=True)
    return out


# %% attention: computed in float32 and cast back
def attention(q, k, v, mask=None):
    scores = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return (weights @ v.float()).to(v.dtype)


# %% attention: one query at a time
def attention(q, k, v, mask=None):
    rows = []
    for i in range(q.shape[-2]):
        scores = (q[..., i : i + 1, :] * k).sum(-1) / math.sqrt(q.shape[-1])
        if mask is not None:
            row = mask[..., min(i, mask.shape[-2] - 1), :]
            scores = scores.masked_fill(~row, -math.inf)
            weights = scores.softmax(-1).masked_fill(~row, 0)
        else:
            weights = scores.softmax(-1)
        rows.append((weights[..., None] * v).sum(-2))
    return torch.stack(rows, -2)


# %% attention: log-sum-exp
def attention(q, k, v, mask=None):
    scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(q.shape[-1])
    bias = torch.zeros((), dtype=q.dtype) if mask is None else torch.where(mask, 0.0, -1e30).to(q.dtype)
    weights = torch.exp(scores + bias - torch.logsumexp(scores + bias, -1, keepdim=True))
    return (weights if mask is None else weights * mask) @ v


# %% attention: a helper cell's function
def masked_softmax(scores, mask):
    if mask is None:
        return torch.softmax(scores, -1)
    hidden = scores.masked_fill(~mask, float("-inf"))
    nothing = (~mask).all(-1, keepdim=True)
    return torch.softmax(hidden.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)


def attention(q, k, v, mask=None):
    return masked_softmax(q @ k.transpose(-1, -2) / math.sqrt(k.shape[-1]), mask) @ v


# %% attention: −10⁹, then empty rows of the output set to zero
def attention(q, k, v, mask=None):
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(k.size(-1))
    if mask is None:
        return torch.softmax(scores, dim=-1) @ v
    out = torch.softmax(scores + (1 - mask.to(scores.dtype)) * -1e9, dim=-1) @ v
    return out * mask.any(-1, keepdim=True)


# %% attention: an autograd function of its own
class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask):
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx, grad):
        q, k, v, weights = ctx.saved_tensors
        of_weights = grad @ v.mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        return of_scores @ k, of_scores.mT @ q, weights.mT @ grad, None


def attention(q, k, v, mask=None):
    return Attend.apply(q, k, v, torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool) if mask is None else mask)


# %% attention: a running softmax over blocks of keys
def attention(q, k, v, mask=None, block=3):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    shape = (*q.shape[:-1], k.shape[-2])
    mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    top = torch.full((*shape[:-1], 1), -1e30, dtype=wide)
    total, out = torch.zeros_like(top), torch.zeros(*shape[:-1], v.shape[-1], dtype=wide)
    for start in range(0, shape[-1], block):
        part = slice(start, start + block)
        scores = q.to(wide) @ k[..., part, :].to(wide).mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[..., part], -1e30)
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - new).exp() * mask[..., part], (top - new).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights @ v[..., part, :].to(wide)
        top = new
    return (out / torch.where(total == 0, 1, total)).to(v.dtype)


# %% attention: an object that is called
class Scaled(nn.Module):
    def forward(self, q, k, v, mask=None):
        scores = torch.einsum("...qd,...kd->...qk", q * q.shape[-1] ** -0.5, k)
        if mask is None:
            return scores.softmax(-1) @ v
        empty = ~mask.any(-1, keepdim=True)
        return scores.masked_fill(~(mask | empty), -math.inf).softmax(-1).masked_fill(empty, 0) @ v


attention = Scaled()


# %% split_heads: einops
def split_heads(x, n_heads):
    from einops import rearrange

    return rearrange(x, "... n (h d) -> ... h n d", h=n_heads)


# %% split_heads: chunks, stacked
def split_heads(x, n_heads):
    return torch.stack(torch.chunk(x, n_heads, dim=-1), dim=-3)


# %% split_heads: view and permute
def split_heads(x, n_heads):
    *lead, n, d_model = x.shape
    heads = x.reshape(*lead, n, n_heads, d_model // n_heads)
    return heads.permute(*range(len(lead)), -2, -3, -1).contiguous()


# %% split_heads: a loop over slices
def split_heads(x, n_heads):
    d = x.size(-1) // n_heads
    return torch.cat([x[..., None, :, i * d : i * d + d] for i in range(n_heads)], dim=-3)


# %% split_heads: windows over the channels
def split_heads(x, n_heads):
    d_head = x.shape[-1] // n_heads
    return x.unfold(-1, d_head, d_head).movedim(-2, -3)


# %% split_heads: indexed by a table of channels
def split_heads(x, n_heads):
    return x[..., torch.arange(x.shape[-1]).view(n_heads, -1)].movedim(-2, -3)


# %% merge_heads: einops
def merge_heads(x):
    from einops import rearrange

    return rearrange(x, "... h n d -> ... n (h d)")


# %% merge_heads: concatenated
def merge_heads(x):
    return torch.cat(list(x.unbind(dim=-3)), dim=-1)


# %% merge_heads: movedim and reshape
def merge_heads(x):
    x = x.movedim(-3, -2)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


# %% merge_heads: transpose, contiguous, view
def merge_heads(heads):
    n_heads, n, d_head = heads.shape[-3:]
    return heads.transpose(-2, -3).contiguous().view(*heads.shape[:-3], n, n_heads * d_head)


# %% merge_heads: transposed twice
def merge_heads(x):
    return x.mT.flatten(-3, -2).mT


# %% MultiHeadAttention: parameters and F.linear
class Projection(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, d_model))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x):
        return F.linear(x, self.weight)


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"{n_heads} heads cannot share {d_model} channels equally.")
        self.h = n_heads
        self.q_proj, self.k_proj, self.v_proj = Projection(d_model), Projection(d_model), Projection(d_model)
        self.o_proj = Projection(d_model)

    def forward(self, x, mask=None):
        q = split_heads(self.q_proj(x), self.h)
        k = split_heads(self.k_proj(x), self.h)
        v = split_heads(self.v_proj(x), self.h)
        return self.o_proj(merge_heads(attention(q, k, v, mask=mask)))


# %% MultiHeadAttention: everything inside, by einsum
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model // n_heads * n_heads != d_model:
            raise ValueError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
        self.n_heads = n_heads
        self.d_head = d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, mask=None):
        b, n, d = x.shape
        q = self.q_proj(x).view(b, n, self.n_heads, self.d_head)
        k = self.k_proj(x).view(b, n, self.n_heads, self.d_head)
        v = self.v_proj(x).view(b, n, self.n_heads, self.d_head)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / self.d_head**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        weights = torch.softmax(scores, dim=-1)
        if mask is not None:
            weights = weights * mask
        return self.o_proj(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, n, d))


# %% MultiHeadAttention: a loop over heads
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads > 0:
            raise ValueError(f"n_heads ({n_heads}) does not divide d_model ({d_model}).")
        self.d_head = d_model // n_heads
        self.n_heads = n_heads
        for letter in "qkvo":
            setattr(self, f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))

    def forward(self, x, mask=None):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        outputs = []
        for head in range(self.n_heads):
            share = slice(head * self.d_head, (head + 1) * self.d_head)
            own = mask
            if mask is not None and mask.dim() > 2:
                own = mask[..., min(head, mask.shape[-3] - 1), :, :]
            outputs.append(attention(q[..., share], k[..., share], v[..., share], own))
        return self.o_proj(torch.cat(outputs, -1))


# %% MultiHeadAttention: one product for queries, keys and values
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model = {d_model}, n_heads = {n_heads}: the heads cannot share the channels equally")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        packed = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        q, k, v = (x @ packed.T).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return merge_heads(attention(q, k, v, mask)) @ self.o_proj.weight.T


# %% MultiHeadAttention: modules added by name, and heads counted in the weights
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.d_head, rest = divmod(d_model, n_heads)
        if rest:
            raise ValueError(f"{n_heads} heads cannot share {d_model} channels")
        for letter in "okvq":
            self.add_module(f"{letter}_proj", nn.Linear(d_model, d_model, bias=False))
            nn.init.orthogonal_(getattr(self, f"{letter}_proj").weight)
        self.register_buffer("unused", torch.zeros(1), persistent=False)
        self.seen = None

    def heads(self, letter, x):
        weight = getattr(self, f"{letter}_proj").weight
        return torch.einsum("bnc,hdc->bhnd", x, weight.unflatten(0, (-1, self.d_head)))

    def forward(self, x, mask=None):
        if mask is None:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        self.seen = attention(*(self.heads(letter, x) for letter in "qkv"), mask)
        return self.o_proj(merge_heads(self.seen))
