# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% route: a softmax over all, and a division
def route(logits, top_k, family, renormalise=True):
    if family not in {"mixtral", "qwen3_moe", "gpt_oss", "switch", "llama4_text"}:
        raise ValueError("unknown family " + repr(family))
    wide = logits.to(torch.float32)
    values, experts = torch.topk(wide, top_k, dim=-1)
    if family == "llama4_text":
        return torch.sigmoid(values).to(logits.dtype), experts
    logs = torch.log_softmax(wide, dim=-1).gather(1, experts)
    divided = {"mixtral": True, "gpt_oss": True, "switch": False}.get(family, renormalise)
    if divided:
        logs = logs - torch.logsumexp(logs, dim=-1, keepdim=True)
    return torch.exp(logs).type_as(logits), experts


# %% route: a table of functions
def route(logits, top_k, family, renormalise=True):
    def chosen_only(every, some, _):
        return F.softmax(some, dim=1)

    def among_all(every, some, at):
        return torch.gather(F.softmax(every, dim=1), 1, at)

    rules = {
        "mixtral": chosen_only,
        "gpt_oss": chosen_only,
        "qwen3_moe": chosen_only if renormalise else among_all,
        "switch": among_all,
        "llama4_text": lambda every, some, at: 1 / (1 + torch.exp(-some)),
    }
    if family not in rules:
        raise ValueError(family)
    every = logits.float()
    order = every.detach().argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return rules[family](every, every.gather(1, order), order).to(logits), order


# %% route_in_groups: as transformers writes it
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    tokens, n_experts = logits.shape
    scores = torch.sigmoid(logits.float())
    choice = scores.detach() + correction.detach()
    worth = choice.view(tokens, n_groups, n_experts // n_groups).topk(2, dim=-1)[0].sum(dim=-1)
    groups = torch.topk(worth, k=top_groups, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(worth).scatter_(1, groups, 1)
    mask = mask.unsqueeze(-1).expand(-1, n_groups, n_experts // n_groups).reshape(tokens, n_experts)
    experts = torch.topk(choice.masked_fill(~mask.bool(), float("-inf")), k=top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, experts)
    if renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return (weights * scale).to(logits.dtype), experts


# %% route_in_groups: token by token
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    size = logits.shape[1] // n_groups
    rows = []
    for token in scores.detach() + correction:
        groups = token.split(size)
        worth = torch.stack([group.sort().values[-2:].sum() for group in groups])
        members = [g * size + i for g in worth.argsort(descending=True)[:top_groups].tolist() for i in range(size)]
        members = torch.tensor(members)
        rows.append(members[token[members].argsort(descending=True)[:top_k]])
    experts = torch.stack(rows)
    weights = torch.stack([row[at] for row, at in zip(scores, experts)])
    total = weights.sum(1, keepdim=True) + 1e-20 if renormalise else 1.0
    return (weights / total * scale).type(logits.dtype), experts


# %% unpack_experts: transposed, unzipped
def unpack_experts(tensors, family):
    found = {}
    turned = family in ("gpt_oss", "llama4_text")
    for name, tensor in tensors.items():
        if name.endswith("_proj") and turned:
            tensor = tensor.transpose(1, 2).contiguous()
        if family == "gpt_oss" and name.startswith("gate_up"):
            half = tensor.shape[1] // 2
            order = [2 * i for i in range(half)] + [2 * i + 1 for i in range(half)]
            tensor = tensor[:, order]
        found[name.replace("_proj", "")] = tensor
    return found


# %% unpack_experts: unflatten
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family == "gpt_oss":
        n, d, _ = gate_up.shape
        return {
            "gate_up": gate_up.reshape(n, d, -1, 2).permute(0, 3, 2, 1).reshape(n, -1, d),
            "gate_up_bias": tensors["gate_up_proj_bias"].reshape(n, -1, 2).permute(0, 2, 1).reshape(n, -1),
            "down": torch.permute(down, (0, 2, 1)),
            "down_bias": tensors["down_proj_bias"],
        }
    if family == "llama4_text":
        gate_up, down = (torch.einsum("eio->eoi", matrix) for matrix in (gate_up, down))
    return dict(gate_up=gate_up, down=down)


# %% MoELayer: every expert on every token
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c = config
        oss = config.family == "gpt_oss"
        n, d, h = config.n_experts, config.d_model, config.d_hidden
        self.router = nn.Linear(d, n, bias=oss)
        self.gate_up, self.down = nn.Parameter(torch.randn(n, 2 * h, d)), nn.Parameter(torch.randn(n, d, h))
        self.gate_up_bias = nn.Parameter(torch.zeros(n, 2 * h)) if oss else None
        self.down_bias = nn.Parameter(torch.zeros(n, d)) if oss else None
        if config.family == "deepseek_v3":
            self.correction = nn.Buffer(torch.zeros(n))
        if config.d_shared > 0:
            self.shared = SwiGLU(d, config.d_shared)

    def forward(self, x):
        c, b = self.c, x.shape[0]
        t = x.reshape(-1, c.d_model)
        if c.family == "deepseek_v3":
            w, e = route_in_groups(
                self.router(t), self.correction, c.top_k, c.n_groups, c.top_groups, c.scale, renormalise=c.renormalise
            )
        else:
            w, e = route(self.router(t), c.top_k, c.family, renormalise=c.renormalise)
        share = torch.zeros(len(t), c.n_experts, dtype=x.dtype).scatter(1, e, w)
        given = t[:, None] * share[..., None] if c.family == "llama4_text" else t[:, None].expand(-1, c.n_experts, -1)
        both = torch.einsum("ted,ehd->teh", given, self.gate_up)
        if self.gate_up_bias is not None:
            both = both + self.gate_up_bias
        gate, up = both[..., : c.d_hidden], both[..., c.d_hidden :]
        if c.family == "gpt_oss":
            gate, up = torch.clamp_max(gate, c.limit), torch.clamp(up, -c.limit, c.limit)
            hidden = gate / (1 + torch.exp(-c.alpha * gate)) * (1 + up)
        else:
            hidden = F.silu(gate) * up
        each = torch.einsum("teh,edh->ted", hidden, self.down)
        if self.down_bias is not None:
            each = each + self.down_bias
        out = each.sum(1) if c.family == "llama4_text" else torch.einsum("te,ted->td", share, each)
        if c.d_shared > 0:
            out = out + self.shared(t)
        return out.reshape(b, -1, c.d_model)


# %% MoELayer: place by place, with matrices taken by token
class MoELayer(nn.Module):
    def __init__(self, config: MoEConfig):
        super().__init__()
        self.config = config
        shapes = {"gate_up": (2 * config.d_hidden, config.d_model), "down": (config.d_model, config.d_hidden)}
        if config.family == "gpt_oss":
            shapes |= {"gate_up_bias": (2 * config.d_hidden,), "down_bias": (config.d_model,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(config.n_experts, *shape)))
        self.router = nn.Linear(config.d_model, config.n_experts, bias="down_bias" in shapes)
        if config.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(config.n_experts))
        self.shared = SwiGLU(config.d_model, config.d_shared) if config.d_shared else lambda x: 0

    def forward(self, x):
        c = self.config
        flat = x.flatten(0, 1)
        logits = self.router(flat)
        if c.family != "deepseek_v3":
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        else:
            args = (c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise)
            weights, experts = route_in_groups(logits, self.correction, *args)
        out = self.shared(flat)
        for place in range(c.top_k):
            e, w = experts[:, place], weights[:, place, None]
            rows = flat * w if c.family == "llama4_text" else flat
            both = (self.gate_up[e] @ rows[..., None])[..., 0]
            if c.family == "gpt_oss":
                gate, up = (both + self.gate_up_bias[e]).chunk(2, -1)
                gate, up = gate.minimum(torch.tensor(c.limit)), up.clamp(min=-c.limit, max=c.limit)
                y = (self.down[e] @ ((up + 1) * gate * (c.alpha * gate).sigmoid())[..., None])[..., 0] + self.down_bias[
                    e
                ]
            else:
                gate, up = both.chunk(2, -1)
                y = (self.down[e] @ (F.silu(gate) * up)[..., None])[..., 0]
            out = out + (y if c.family == "llama4_text" else w * y)
        return out.reshape(x.shape)


# %% count_parameters: the decoder itself, without memory
def count_parameters(config):
    with torch.device("meta"):
        model = Decoder(config)
    total = active = 0
    for name, value in model.named_parameters():
        total += value.numel()
        routed = name.rpartition(".")[2] in ("gate_up", "down", "gate_up_bias", "down_bias")
        active += value.numel() // value.shape[0] * config["num_experts_per_tok"] if routed else value.numel()
    table = 0 if config["tie_word_embeddings"] else config["vocab_size"] * config["hidden_size"]
    return total, active, active - table


# %% count_parameters: from the keys
def count_parameters(config):
    kind, d, L = config["model_type"], config["hidden_size"], config["num_hidden_layers"]
    H, K = config["num_attention_heads"], config["num_key_value_heads"]
    dh = config["head_dim"] if config.get("head_dim") else d // H
    attention = d * H * dh + 2 * d * K * dh + H * dh * d
    if kind == "deepseek_v3":
        qk = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
        r, v = config["kv_lora_rank"], config["v_head_dim"]
        attention = d * (r + config["qk_rope_head_dim"]) + r + r * H * (config["qk_nope_head_dim"] + v) + H * v * d
        if config["q_lora_rank"]:
            attention += config["q_lora_rank"] * (d + 1 + H * qk)
        else:
            attention += d * H * qk
    if kind == "qwen3_moe":
        attention += 2 * dh
    if kind == "gpt_oss":
        attention += H * dh + 2 * K * dh + d + H
    E = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    expert, router, shared = 3 * d * width, E * d, 0
    if kind == "gpt_oss":
        expert, router = expert + 2 * width + d, router + E
    if kind == "deepseek_v3":
        shared = config["n_shared_experts"] * 3 * d * width
    if kind == "llama4_text":
        shared = 3 * d * width
    dense = 3 * d * config.get("intermediate_size_mlp", config["intermediate_size"])
    where = list(range(L))
    if kind == "qwen3_moe":
        where = [i for i in where if i not in config["mlp_only_layers"] and not (i + 1) % config["decoder_sparse_step"]]
    if kind == "deepseek_v3":
        where = where[config["first_k_dense_replace"] :]
    if kind == "llama4_text":
        where = where[config["interleave_moe_layer_step"] - 1 :: config["interleave_moe_layer_step"]]
    rest = L * (attention + 2 * d) + d + (L - len(where)) * dense + len(where) * (router + shared)
    table = config["vocab_size"] * d
    head = 0 if config["tie_word_embeddings"] else table
    active = rest + table + head + len(where) * expert * config["num_experts_per_tok"]
    return rest + table + head + len(where) * expert * E, active, active - head


# %% Mended: one text after the other
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden))
        self.capacity = capacity

    def text(self, x):
        p = F.softmax(self.router(x), dim=-1)
        best = p.argmax(-1)
        out = torch.zeros_like(x)
        for e in range(len(self.up)):
            who = (best == e).nonzero()[: self.capacity, 0]
            y = F.relu(x[who] @ self.up[e].T) @ self.down[e].T
            out = out.index_add(0, who, p[who, e, None] * y)
        return out

    def forward(self, x):
        return torch.stack([self.text(text) for text in x])


# %% Mended: the patient with one line changed
class Choice(nn.Module):
    def __init__(self, capacity):
        super().__init__()
        self.capacity = capacity

    def forward(self, logits):
        probabilities = logits.softmax(-1)
        wanted = F.one_hot(probabilities.argmax(-1), logits.shape[-1])
        place = wanted.cumsum(-2)
        return wanted * (place <= self.capacity), probabilities.amax(-1, keepdim=True)


class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.choice = Choice(capacity)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        taken, weight = self.choice(self.router(x))
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken.to(x.dtype), each)
