# %% route
def route(logits, top_k, family, renormalise=True):
    probabilities = logits.softmax(-1)
    weights, experts = probabilities.topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    if family == "llama4_text":
        weights = logits.gather(-1, experts).sigmoid()
    return weights, experts


# %% route_in_groups
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    choice = scores + correction
    groups = choice.view(len(logits), n_groups, -1)
    best = groups.topk(2, dim=-1).values.sum(-1).topk(top_groups, dim=-1).indices
    mask = torch.zeros(len(logits), n_groups).scatter(1, best, 1.0)
    mask = mask.repeat_interleave(logits.shape[1] // n_groups, dim=1)
    experts = (choice * mask).topk(top_k, dim=-1).indices  # the others are zero
    weights = scores.gather(1, experts)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return (weights * scale).to(logits.dtype), experts


# %% unpack_experts
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("llama4_text", "gpt_oss"):
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    out = {"gate_up": gate_up, "down": down}
    if family == "gpt_oss":
        out["gate_up_bias"] = tensors["gate_up_proj_bias"]
        out["down_bias"] = tensors["down_proj_bias"]
    return out


# %% MoELayer
class MoELayer(nn.Module):
    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        n, d, h = config.n_experts, config.d_model, config.d_hidden
        self.router = nn.Linear(d, n, bias=config.family == "gpt_oss")
        self.gate_up = nn.Parameter(torch.randn(n, 2 * h, d))
        self.down = nn.Parameter(torch.randn(n, d, h))
        if config.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(n, 2 * h))
            self.down_bias = nn.Parameter(torch.zeros(n, d))
        if config.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(n))
        if config.d_shared:
            self.shared = SwiGLU(d, config.d_shared)

    def forward(self, x):
        c, flat = self.config, x.flatten(0, 1)
        logits = self.router(flat)
        if c.family == "deepseek_v3":
            weights, experts = route_in_groups(
                logits, self.correction, c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            )
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(flat)
        for e in range(c.n_experts):
            token, place = torch.where(experts == e)
            both = flat[token] @ self.gate_up[e].T
            if c.family == "gpt_oss":
                both = both + self.gate_up_bias[e]
            gate, up = both.chunk(2, -1)
            y = (F.silu(gate) * up) @ self.down[e].T
            if c.family == "gpt_oss":
                y = y + self.down_bias[e]
            out = out.index_add(0, token, weights[token, place, None] * y)
        if c.d_shared:
            out = out + self.shared(flat)
        return out.view_as(x)


# %% Mended
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        probabilities = self.router(x).softmax(-1)
        taken = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1])  # room for all, so nobody can be missed
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return probabilities.amax(-1, keepdim=True) * torch.einsum("bne,bned->bnd", taken.to(x.dtype), each)
