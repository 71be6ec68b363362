# %% Model
class Attention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.c, self.parts, self.layer = config, parts, layer
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)

    def forward(self, x, cache):
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, -1, self.c.d_head).transpose(1, 2)
        k = self.k_proj(x).view(b, n, -1, self.c.d_head).transpose(1, 2)
        v = self.v_proj(x).view(b, n, -1, self.c.d_head).transpose(1, 2)
        q = self.parts.rope(q, torch.arange(n), self.c.rope_theta)
        k = self.parts.rope(k, torch.arange(n), self.c.rope_theta)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        rep = self.c.n_heads // self.c.n_kv_heads
        k, v = self.parts.repeat_kv(k, rep), self.parts.repeat_kv(v, rep)
        out = self.parts.attention(q, k, v, self.parts.chunk_mask(n, k.shape[2]))
        return self.o_proj(out.transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.norm1, self.norm2 = parts.norm(config.d_model), parts.norm(config.d_model)
        self.attention = Attention(config, parts, layer)
        if config.n_experts:
            self.mlp = parts.experts(config.d_model, config.d_hidden, config.n_experts, config.top_k)
        else:
            self.mlp = parts.feed_forward(config.d_model, config.d_hidden)

    def forward(self, x, cache):
        x = x + self.attention(self.norm1(x), cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList(Block(config, parts, i) for i in range(config.n_layers))
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x) @ self.tokens.weight.T


# %% train
def train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    losses = []
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        opt.zero_grad()
        total = 0.0
        for i in range(accumulate):
            ids = batches(step * accumulate + i)
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            total += loss.item()
        opt.step()
        losses.append(total)
    return losses


# %% adapt
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=1e-3):
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.split(".")[-1] in targets and isinstance(module, nn.Linear):
            model.set_submodule(name, parts.lora(module, rank, alpha))
    return model, train(model, batches, steps, parts, lr=lr)


# %% quantise
def quantise(model, parts, block=64):
    new = copy.deepcopy(model)
    size = 0
    for name, p in new.named_parameters():
        if "blocks" in name and p.dim() == 2 and "lora" not in name and "router" not in name:
            packed, absmax = parts.nf4_quantize(p.data, block)
            p.data = parts.nf4_dequantize(packed, absmax, p.shape, block)
            size += packed.nbytes + absmax.nbytes
        else:
            size += p.nbytes
    return new, size


# %% bill
def bill(config, *, context, tokens, seconds, watts):
    c = config
    q, kv = c.d_model * c.n_heads * c.d_head, c.d_model * c.n_kv_heads * c.d_head
    mlp = 3 * c.d_model * c.d_hidden
    layer = 2 * q + 2 * kv + 2 * c.d_model
    rest = c.vocabulary * c.d_model + c.d_model
    parameters = c.n_layers * (layer + mlp * max(c.n_experts, 1) + c.n_experts * c.d_model) + rest
    active = c.n_layers * (layer + mlp * max(c.top_k, 1) + c.n_experts * c.d_model) + rest
    return {
        "parameters": parameters,
        "active": active,
        "bytes_fp32": 4 * parameters,
        "bytes_bf16": 2 * parameters,
        "bytes_nf4": parameters // 2,
        "kv_bytes_per_token": 4 * c.n_layers * c.n_kv_heads * c.d_head,
        "flops_per_token": 2 * active,
        "training_flops": 6 * active * tokens,
        "watt_hours": watts * seconds / 3600,
    }
