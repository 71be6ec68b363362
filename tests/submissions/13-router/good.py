# %% my own helper
def swiglu(x, gate_up, down):
    """One expert, weights as nn.Linear stores them."""
    hidden = F.linear(x, gate_up)
    d_hidden = hidden.shape[-1] // 2
    return F.linear(F.silu(hidden[..., :d_hidden]) * hidden[..., d_hidden:], down)


# %% route
def route(logits, top_k, renormalise=True):
    p = torch.softmax(logits.float(), dim=-1)
    weights, experts = torch.topk(p, k=top_k, dim=-1, largest=True, sorted=True)
    if renormalise:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / total
    return weights.to(logits.dtype), experts


# %% MoELayer
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.n_experts = n_experts
        self.top_k = top_k
        self.renormalise = renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden))
        for weight in (self.gate_up, self.down):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x):
        batch, n, d_model = x.shape
        tokens = x.reshape(batch * n, d_model)
        weights, experts = route(self.router(tokens), self.top_k, self.renormalise)
        out = torch.zeros_like(tokens)
        for e in range(self.n_experts):
            rows, slots = torch.nonzero(experts == e, as_tuple=True)
            if len(rows) == 0:
                continue
            y = swiglu(tokens[rows], self.gate_up[e], self.down[e])
            out = out.index_add(0, rows, y * weights[rows, slots].unsqueeze(1))
        return out.reshape(batch, n, d_model)


# %% grouped_experts
def grouped_experts(x, weights, experts, gate_up, down):
    tokens, top_k = experts.shape
    flat = experts.reshape(-1)
    order = torch.argsort(flat, stable=True)
    token_of_row = torch.arange(tokens).repeat_interleave(top_k)[order]
    weight_of_row = weights.reshape(-1)[order]
    counts = torch.bincount(flat, minlength=gate_up.shape[0])
    ends = torch.cumsum(counts, 0).to(torch.int32)
    hidden = F.grouped_mm(x[token_of_row], gate_up.transpose(1, 2), offs=ends)
    gate, up = hidden.chunk(2, dim=-1)
    y = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return torch.zeros_like(x).index_add(0, token_of_row, y * weight_of_row[:, None])


# %% count_parameters
def count_parameters(shapes, top_k, embedding=True):
    total, active = 0, 0
    for name, shape in shapes.items():
        n = 1
        for size in shape:
            n *= size
        words = name.split(".")
        total += n
        if "experts" in words:
            active += n // shape[0] * top_k
        elif "embed_tokens" in words and not embedding:
            pass
        else:
            active += n
    return total, active
