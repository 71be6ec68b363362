# %% notes to myself
# Mixtral = gpt-oss for weights. Only Switch and Qwen (sometimes) keep the softmax over all, Llama 4 has a sigmoid.
KNOWN = ("mixtral", "qwen3_moe", "gpt_oss", "switch", "llama4_text")


# %% route
def route(logits, top_k, family, renormalise=True):
    if family not in ("mixtral", "qwen3_moe", "gpt_oss", "switch", "llama4_text"):
        raise ValueError(f"I do not know the family {family!r}.")
    x = logits.float()
    values, experts = x.topk(top_k, dim=-1)
    if family == "llama4_text":
        weights = torch.sigmoid(values)
    elif family == "switch" or (family == "qwen3_moe" and not renormalise):
        weights = x.softmax(dim=-1).gather(-1, experts)
    else:
        weights = values.softmax(dim=-1)
    return weights.to(logits.dtype), experts


# %% route_in_groups
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    score = logits.float().sigmoid()
    corrected = score.detach() + correction.detach()
    tokens, n_experts = logits.shape
    by_group = corrected.reshape(tokens, n_groups, n_experts // n_groups)
    worth = by_group.topk(2, dim=-1).values.sum(-1)
    stays = torch.zeros_like(worth, dtype=torch.bool)
    stays.scatter_(1, worth.topk(top_groups, dim=-1).indices, True)
    open_experts = stays.repeat_interleave(n_experts // n_groups, dim=1)
    corrected = torch.where(open_experts, corrected, torch.tensor(-torch.inf))
    experts = corrected.topk(top_k, dim=-1).indices
    weights = score.gather(1, experts)
    if renormalise:
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% unpack_experts
def unpack_experts(tensors, family):
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": tensors["gate_up_proj"], "down": tensors["down_proj"]}
    both = tensors["gate_up_proj"].transpose(-1, -2)
    out = {"gate_up": both, "down": tensors["down_proj"].transpose(-1, -2)}
    if family == "gpt_oss":
        bias = tensors["gate_up_proj_bias"]
        out["gate_up"] = torch.cat([both[:, 0::2], both[:, 1::2]], dim=1)
        out["gate_up_bias"] = torch.cat([bias[:, 0::2], bias[:, 1::2]], dim=1)
        out["down_bias"] = tensors["down_proj_bias"]
    return out


# %% MoELayer
class MoELayer(nn.Module):
    """A layer's mixture of experts, for each of the five families."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        n, d, h = config.n_experts, config.d_model, config.d_hidden
        self.oss = config.family == "gpt_oss"
        self.router = nn.Linear(d, n, bias=self.oss)
        self.gate_up = nn.Parameter(torch.randn(n, 2 * h, d) * d**-0.5)
        self.down = nn.Parameter(torch.randn(n, d, h) * h**-0.5)
        if self.oss:
            self.gate_up_bias = nn.Parameter(torch.zeros(n, 2 * h))
            self.down_bias = nn.Parameter(torch.zeros(n, d))
        if config.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(n))
        if config.d_shared > 0:
            self.shared = SwiGLU(d, config.d_shared)

    def one(self, e, rows):
        both = rows @ self.gate_up[e].T
        if self.oss:
            both = both + self.gate_up_bias[e]
        gate, up = both[:, : self.config.d_hidden], both[:, self.config.d_hidden :]
        if self.oss:
            gate = gate.clamp(max=self.config.limit)
            up = up.clamp(min=-self.config.limit, max=self.config.limit)
            return ((up + 1) * gate * torch.sigmoid(self.config.alpha * gate)) @ self.down[e].T + self.down_bias[e]
        return (F.silu(gate) * up) @ self.down[e].T

    def forward(self, x):
        c = self.config
        flat = x.reshape(-1, c.d_model)
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
            if len(token) == 0:
                continue
            w = weights[token, place].unsqueeze(-1)
            y = self.one(e, w * flat[token]) if c.family == "llama4_text" else w * self.one(e, flat[token])
            out = out.index_add(0, token, y)
        if c.d_shared > 0:
            out = out + self.shared(flat)
        return out.reshape(x.shape)


# %% count_parameters
def count_parameters(config):
    c = read_config(config)
    d = c.d_model
    if c.latent is None:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = d * q + 2 * d * kv + q * d
        if c.qk_norm:
            attention += 2 * c.d_head
        if c.qkv_bias:
            attention += q + 2 * kv + d
        if c.sinks:
            attention += c.n_heads
    else:
        q_rank, kv_rank, nope, rope, value = c.latent
        heads = c.n_heads * (nope + rope)
        attention = d * heads if q_rank is None else d * q_rank + q_rank + q_rank * heads
        attention += d * (kv_rank + rope) + kv_rank + kv_rank * c.n_heads * (nope + value) + c.n_heads * value * d
    total = active = d
    for moe in c.experts:
        layer = attention + 2 * d
        if moe is None:
            layer += 3 * d * c.d_hidden
            total, active = total + layer, active + layer
            continue
        layer += moe.n_experts * d + 3 * d * moe.d_shared
        expert = 3 * d * moe.d_hidden
        if moe.family == "gpt_oss":
            layer += moe.n_experts
            expert += 2 * moe.d_hidden + d
        total += layer + moe.n_experts * expert
        active += layer + moe.top_k * expert
    table = c.vocabulary * d
    both = table if c.tied else 2 * table
    return total + both, active + both, active + table


# %% Mended
class Mended(nn.Module):
    """A feed-forward layer of the Switch Transformer, in health."""

    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        probabilities = self.router(x).softmax(-1)
        wanted = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1])
        place = wanted.cumsum(dim=1)  # was counted over all the texts
        taken = wanted * (place <= self.capacity)
        weight = probabilities.max(-1, keepdim=True).values
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken.to(x.dtype), each)
