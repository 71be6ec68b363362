# %% notes to myself
# My parts are gathered in another copy of this notebook; here PyTorch's own do.
def count_of(module):
    return sum(p.numel() for p in module.parameters())


# %% Model
class SelfAttention(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.parts = parts
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.theta = config.rope_theta
        self.q_proj = nn.Linear(config.d_model, self.n_heads * self.d_head, bias=False)
        self.k_proj = nn.Linear(config.d_model, self.n_kv_heads * self.d_head, bias=False)
        self.v_proj = nn.Linear(config.d_model, self.n_kv_heads * self.d_head, bias=False)
        self.o_proj = nn.Linear(self.n_heads * self.d_head, config.d_model, bias=False)

    def split(self, x, heads):
        batch, n, _ = x.shape
        return x.reshape(batch, n, heads, self.d_head).transpose(1, 2)

    def forward(self, x, start, cache=None):
        batch, n, _ = x.shape
        q = self.split(self.q_proj(x), self.n_heads)
        k = self.split(self.k_proj(x), self.n_kv_heads)
        v = self.split(self.v_proj(x), self.n_kv_heads)

        # turn by absolute position, then keep
        positions = torch.arange(start, start + n)
        q = self.parts.rope(q, positions, self.theta)
        k = self.parts.rope(k, positions, self.theta)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)

        group = self.n_heads // self.n_kv_heads
        k = self.parts.repeat_kv(k, group)
        v = self.parts.repeat_kv(v, group)
        mask = self.parts.chunk_mask(n, start + n)
        out = self.parts.attention(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, n, -1))


class Layer(nn.Module):
    def __init__(self, config, parts, layer):
        super().__init__()
        self.norm1 = parts.norm(config.d_model)
        self.attention = SelfAttention(config, parts, layer)
        self.norm2 = parts.norm(config.d_model)
        if config.n_experts == 0:
            self.mlp = parts.feed_forward(config.d_model, config.d_hidden)
        else:
            self.mlp = parts.experts(config.d_model, config.d_hidden, config.n_experts, config.top_k)

    def forward(self, x, start, cache=None):
        h = x + self.attention(self.norm1(x), start, cache)
        return h + self.mlp(self.norm2(h))


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads % config.n_kv_heads != 0:
            raise ValueError(f"n_heads={config.n_heads} must be a multiple of n_kv_heads={config.n_kv_heads}")
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        nn.init.normal_(self.tokens.weight, mean=0.0, std=0.02)
        self.blocks = nn.ModuleList([Layer(config, parts, i) for i in range(config.n_layers)])
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        start = cache.length if cache is not None else 0  # once: the layers make it longer
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, start, cache)
        return F.linear(self.norm(x), self.tokens.weight)


# %% train
def train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    decay, no_decay = [], []
    for p in model.parameters():
        if p.requires_grad:
            (decay if p.dim() >= 2 else no_decay).append(p)
    opt = torch.optim.AdamW(
        [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.95),
    )
    losses = []
    for step in range(steps):
        rate = parts.learning_rate(step, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
        for group in opt.param_groups:
            group["lr"] = rate
        opt.zero_grad(set_to_none=True)
        step_loss = 0.0
        for micro in range(accumulate):
            ids = batches(step * accumulate + micro)
            inputs, targets = ids[:, :-1], ids[:, 1:]
            logits = model(inputs)
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
            (loss / accumulate).backward()
            step_loss += loss.item() / accumulate
        nn.utils.clip_grad_norm_(decay + no_decay, clip)
        opt.step()
        losses.append(step_loss)
    return losses


# %% adapt
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=1e-3):
    adapted = copy.deepcopy(model)
    for p in adapted.parameters():
        p.requires_grad_(False)
    names = [
        name
        for name, module in adapted.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets
    ]
    if len(names) == 0:
        raise ValueError(f"there is no linear layer called any of {tuple(targets)}")
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = adapted.get_submodule(parent_name)
        setattr(parent, child, parts.lora(getattr(parent, child), rank, alpha))
    losses = train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0)
    return adapted, losses


# %% quantise
def is_shrunk(name, p):
    pieces = name.split(".")
    return (
        pieces[0] == "blocks"
        and p.dim() >= 2
        and "router" not in pieces
        and "lora_A" not in pieces
        and "lora_B" not in pieces
    )


def quantise(model, parts, block=64):
    out = copy.deepcopy(model)
    total = 0
    with torch.no_grad():
        for name, p in out.named_parameters():
            if not is_shrunk(name, p):
                total += p.numel() * p.element_size()
                continue
            packed, absmax = parts.nf4_quantize(p, block)
            p.copy_(parts.nf4_dequantize(packed, absmax, p.shape, block))
            total += packed.numel() * packed.element_size() + absmax.numel() * absmax.element_size()
    return out, total


# %% serve
@torch.no_grad()
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    answers = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(seed)
        cache = parts.cache()
        chunk = prompt.unsqueeze(0)
        written = []
        for _ in range(n_new):
            logits = model(chunk, cache)[:, -1]
            token = parts.sample(logits, torch.rand(1, generator=generator), temperature)
            written.append(int(token))
            if end is not None and written[-1] == end:
                break
            chunk = token.unsqueeze(0)
        answers.append(torch.tensor(written, dtype=torch.int64))
    return answers


# %% bill
def bill(config, *, context, tokens, seconds, watts):
    c = config
    d, wide, narrow = c.d_model, c.n_heads * c.d_head, c.n_kv_heads * c.d_head

    def nf4(numbers):
        return (numbers + 1) // 2 + 4 * ((numbers + 63) // 64)

    attention = [d * wide, d * narrow, d * narrow, wide * d]
    if c.n_experts:
        mlp = [c.n_experts * 2 * c.d_hidden * d, c.n_experts * c.d_hidden * d]
        used = c.top_k * 3 * c.d_hidden * d
    else:
        mlp = [c.d_hidden * d] * 3
        used = 3 * c.d_hidden * d
    router = c.n_experts * d
    norms = (2 * c.n_layers + 1) * d
    table = c.vocabulary * d
    parameters = c.n_layers * (sum(attention) + sum(mlp) + router) + norms + table
    active = c.n_layers * (sum(attention) + used + router) + norms + table
    flops = 2 * (active - norms) + c.n_layers * 4 * wide * context
    return {
        "parameters": parameters,
        "active": active,
        "bytes_fp32": 4 * parameters,
        "bytes_bf16": 2 * parameters,
        "bytes_nf4": c.n_layers * sum(nf4(n) for n in attention + mlp) + 2 * (norms + table + c.n_layers * router),
        "kv_bytes_per_token": 2 * c.n_layers * 2 * narrow,
        "flops_per_token": flops,
        "training_flops": 3 * flops * tokens,
        "watt_hours": watts * seconds / 3600,
    }
