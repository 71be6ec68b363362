# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% route: sorted, and a softmax over the chosen logits where that is the same
def route(logits, top_k, renormalise=True):
    ordered, numbers = torch.sort(logits.float(), dim=-1, descending=True, stable=True)
    chosen, experts = ordered[:, :top_k], numbers[:, :top_k]
    if renormalise:
        return torch.softmax(chosen, dim=-1).to(logits.dtype), experts
    return torch.exp(chosen - torch.logsumexp(ordered, dim=-1, keepdim=True)).to(logits.dtype), experts


# %% route: one expert after the other
def route(logits, top_k, renormalise=True):
    p = F.softmax(logits.float(), dim=1)
    left, experts = p.detach().clone(), []
    for _ in range(top_k):
        experts.append(left.argmax(1))
        left[torch.arange(len(left)), experts[-1]] = -1
    experts = torch.stack(experts, 1)
    weights = torch.gather(p, 1, experts)
    total = weights.sum(1, keepdim=True) if renormalise else 1
    return (weights / total).type_as(logits), experts


# %% route: exponentials by hand
def route(logits, top_k, renormalise=True):
    wide = logits.to(torch.float32)
    exp = (wide - wide.max(-1, keepdim=True).values).exp()
    weights, experts = exp.topk(top_k, dim=-1, sorted=True)
    weights = weights / (weights if renormalise else exp).sum(dim=-1, keepdim=True)
    return weights.to(dtype=logits.dtype), experts


# %% MoELayer: masks
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.k, self.renorm = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * d_hidden, d_model).normal_(std=0.02))
        self.down = nn.Parameter(torch.empty(n_experts, d_model, d_hidden).normal_(std=0.02))

    def forward(self, x):
        B, T, D = x.shape
        h = x.reshape(B * T, D)
        weights, experts = route(self.router(h), self.k, renormalise=self.renorm)
        out = torch.zeros_like(h)
        for e in range(self.gate_up.shape[0]):
            chosen = experts == e
            mask = chosen.any(dim=1)
            if not mask.any():
                continue
            gate, up = F.linear(h[mask], self.gate_up[e]).chunk(2, dim=-1)
            w = (weights * chosen).sum(1)[mask]
            out[mask] += w[:, None] * F.linear(F.silu(gate) * up, self.down[e])
        return out.reshape(B, T, D)


# %% MoELayer: each token takes its experts' matrices
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k = top_k
        self.renormalise = renormalise
        self.d_hidden = d_hidden
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.rand(n_experts, 2 * d_hidden, d_model) - 0.5)
        self.down = nn.Parameter(torch.rand(n_experts, d_model, d_hidden) - 0.5)

    def forward(self, x):
        logits = self.router(x)
        weights, experts = route(logits.flatten(0, 1), self.top_k, self.renormalise)
        tokens = x.flatten(0, 1)
        hidden = torch.einsum("td,tkhd->tkh", tokens, self.gate_up[experts])
        hidden = F.silu(hidden[..., : self.d_hidden]) * hidden[..., self.d_hidden :]
        each = torch.einsum("tkh,tkdh->tkd", hidden, self.down[experts])
        return (weights.unsqueeze(-1) * each).sum(1).unflatten(0, x.shape[:2])


# %% MoELayer: token by token
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.d_hidden, self.top_k, self.renormalise = d_hidden, top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.zeros(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.zeros(n_experts, d_model, d_hidden))
        for p in (self.gate_up, self.down):
            nn.init.xavier_uniform_(p)

    def expert(self, e, x):
        gate = self.gate_up[e, : self.d_hidden] @ x
        up = self.gate_up[e, self.d_hidden :] @ x
        return self.down[e] @ (gate * torch.sigmoid(gate) * up)

    def forward(self, x):
        tokens = list(x.reshape(-1, x.shape[-1]))
        weights, experts = route(self.router(torch.stack(tokens)), self.top_k, self.renormalise)
        rows = [
            sum(w * self.expert(e, token) for w, e in zip(ws, es.tolist()))
            for token, ws, es in zip(tokens, weights, experts)
        ]
        return torch.stack(rows).reshape(x.shape)


# %% grouped_experts: F.grouped_mm
def grouped_experts(x, weights, experts, gate_up, down):
    k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    ends = torch.bincount(experts.flatten(), minlength=len(down)).cumsum(0).to(torch.int32)
    gate, up = F.grouped_mm(x[order // k], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return (y[back].view(*experts.shape, -1) * weights.unsqueeze(-1)).sum(1)


# %% grouped_experts: a bag of rows
def grouped_experts(x, weights, experts, gate_up, down):
    chosen = experts.flatten()
    order = chosen.argsort()
    sizes = [int((chosen == e).sum()) for e in range(gate_up.size(0))]
    blocks = x.repeat_interleave(experts.size(1), 0)[order].split(sizes)
    done = []
    for block, both, narrow in zip(blocks, gate_up.unbind(), down.unbind()):
        gate, up = F.linear(block, both).chunk(2, dim=-1)
        done.append(F.linear(F.silu(gate) * up, narrow))
    return F.embedding_bag(order.argsort().view_as(experts), torch.cat(done), per_sample_weights=weights, mode="sum")


# %% grouped_experts: search in the sorted list
def grouped_experts(x, weights, experts, gate_up, down):
    numbers, order = experts.reshape(-1).sort()
    edges = torch.searchsorted(numbers, torch.arange(len(gate_up) + 1)).tolist()
    out = x.new_zeros(x.shape)
    flat = weights.reshape(-1)
    for e, (start, end) in enumerate(zip(edges, edges[1:])):
        if start == end:
            continue
        choice = order[start:end]
        token = torch.div(choice, experts.shape[1], rounding_mode="floor")
        hidden = torch.einsum("td,hd->th", x[token], gate_up[e])
        gate, up = torch.tensor_split(hidden, 2, dim=1)
        y = torch.einsum("th,dh->td", F.silu(gate) * up, down[e])
        out = out.index_put((token,), y * flat[choice].unsqueeze(1), accumulate=True)
    return out


# %% count_parameters: shares of each size
def count_parameters(shapes, top_k, embedding=True):
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}

    def used(name):
        parts = set(name.split("."))
        if "experts" in parts:
            return sizes[name] // shapes[name][0] * top_k
        return 0 if "embed_tokens" in parts and not embedding else sizes[name]

    return sum(sizes.values()), sum(map(used, sizes))


# %% count_parameters: what rests, subtracted
def count_parameters(shapes, top_k, embedding=True):
    total, idle = 0, 0
    for name, (*shape,) in shapes.items():
        size = 1
        for length in shape:
            size *= length
        total += size
        dotted = f".{name}."
        if ".experts." in dotted:
            idle += size - size * top_k // shape[0]
        elif ".embed_tokens." in dotted and not embedding:
            idle += size
    return total, total - idle
