# Right answers, written differently. Each gets full marks.


# %% Model: everything in one class, with dicts of modules
class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        self.n_rep, remainder = divmod(config.n_heads, config.n_kv_heads)
        if remainder:
            raise ValueError(f"n_heads = {config.n_heads} is no multiple of n_kv_heads = {config.n_kv_heads}")
        self.c, self.parts = config, parts
        d, heads = config.d_model, {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        self.tokens = nn.Embedding.from_pretrained(0.02 * torch.randn(config.vocabulary, d), freeze=False)
        self.blocks = nn.ModuleList()
        for _ in range(config.n_layers):
            block = nn.ModuleDict({"norm1": parts.norm(d), "norm2": parts.norm(d)})
            projections = {f"{a}_proj": nn.Linear(d, h * config.d_head, bias=False) for a, h in heads.items()}
            projections["o_proj"] = nn.Linear(config.n_heads * config.d_head, d, bias=False)
            block["attention"] = nn.ModuleDict(projections)
            if config.n_experts > 0:
                block["mlp"] = parts.experts(d, config.d_hidden, config.n_experts, config.top_k)
            else:
                block["mlp"] = parts.feed_forward(d, config.d_hidden)
            self.blocks.append(block)
        self.norm = parts.norm(d)

    def forward(self, ids, cache=None):
        b, n = ids.shape
        past = cache.length if cache is not None else 0
        at = torch.arange(past, past + n)
        mask = self.parts.chunk_mask(n, past + n)
        x = F.embedding(ids, self.tokens.weight)
        for i, block in enumerate(self.blocks):
            p, y = block["attention"], block["norm1"](x)
            q, k, v = (p[f"{a}_proj"](y).view(b, n, -1, self.c.d_head).permute(0, 2, 1, 3) for a in "qkv")
            both = self.parts.rope(torch.cat([q, k], 1), at, self.c.rope_theta)
            q, k = both.split([self.c.n_heads, self.c.n_kv_heads], 1)
            if cache is not None:
                k, v = cache.update(i, k, v)
            k, v = self.parts.repeat_kv(k, self.n_rep), self.parts.repeat_kv(v, self.n_rep)
            heads = self.parts.attention(q, k, v, mask)
            x = x + p["o_proj"](heads.permute(0, 2, 1, 3).reshape(b, n, -1))
            x = x + block["mlp"](block["norm2"](x))
        return F.linear(self.norm(x), self.tokens.weight)


# %% Model: attention is told its positions and its mask
class Attention(nn.Module):
    def __init__(self, config, parts, number):
        super().__init__()
        self.n_heads, self.n_kv, self.theta = config.n_heads, config.n_kv_heads, config.rope_theta
        self.box, self.number = parts, number
        wide, narrow = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        for name, width in (("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)):
            self.add_module(name, nn.Linear(config.d_model, width, bias=False))
        self.o_proj = nn.Linear(wide, config.d_model, bias=False)

    def forward(self, x, positions, mask, cache):
        def heads(y, n):
            return torch.stack(y.chunk(n, -1), 1)

        q = self.box.rope(heads(self.q_proj(x), self.n_heads), positions, self.theta)
        k = self.box.rope(heads(self.k_proj(x), self.n_kv), positions, self.theta)
        v = heads(self.v_proj(x), self.n_kv)
        if cache is not None:
            k, v = cache.update(self.number, k, v)
        rep = self.n_heads // self.n_kv
        out = self.box.attention(q, self.box.repeat_kv(k, rep), self.box.repeat_kv(v, rep), mask)
        return self.o_proj(torch.cat(out.unbind(1), -1))


class Block(nn.Module):
    def __init__(self, config, parts, number):
        super().__init__()
        self.norm1, self.norm2 = parts.norm(config.d_model), parts.norm(config.d_model)
        self.attention = Attention(config, parts, number)
        if config.n_experts == 0:
            self.mlp = parts.feed_forward(config.d_model, config.d_hidden)
        else:
            self.mlp = parts.experts(config.d_model, config.d_hidden, config.n_experts, config.top_k)


class Model(nn.Module):
    def __init__(self, config, parts):
        super().__init__()
        if config.n_heads // config.n_kv_heads * config.n_kv_heads != config.n_heads:
            raise ValueError(f"{config.n_kv_heads} heads of keys do not divide {config.n_heads} heads of queries")
        self.chunk_mask = parts.chunk_mask
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.tokens.weight.data.mul_(0.02)
        self.blocks = nn.ModuleList([Block(config, parts, number) for number in range(config.n_layers)])
        self.norm = parts.norm(config.d_model)

    def forward(self, ids, cache=None):
        total = ids.shape[1] + (cache.length if cache is not None else 0)
        positions = torch.arange(total)[-ids.shape[1] :]
        stream = self.tokens(ids)
        for block in self.blocks:
            mask = self.chunk_mask(len(positions), total)
            stream = stream + block.attention(block.norm1(stream), positions, mask, cache)
            stream = stream + block.mlp(block.norm2(stream))
        return torch.einsum("bnd,vd->bnv", self.norm(stream), self.tokens.weight)


# %% train: the gradients of the small batches are added up by hand
def train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    learning = [p for p in model.parameters() if p.requires_grad]
    by = torch.optim.AdamW(
        [{"params": [p], "weight_decay": weight_decay if p.ndim >= 2 else 0} for p in learning], betas=(0.9, 0.95)
    )
    losses = []
    for s in range(steps):
        total = [torch.zeros_like(p) for p in learning]
        found = []
        for i in range(s * accumulate, (s + 1) * accumulate):
            ids = batches(i)
            loss = F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:])
            for to, grad in zip(total, torch.autograd.grad(loss, learning), strict=True):
                to += grad / accumulate
            found.append(loss.item())
        norm = torch.stack([grad.square().sum() for grad in total]).sum().sqrt()
        for p, grad in zip(learning, total, strict=True):
            p.grad = grad * min(1.0, clip / (norm.item() + 1e-6))
        for group in by.param_groups:
            group["lr"] = parts.learning_rate(s, peak=lr, warmup=warmup, steps=steps, final=0.1 * lr)
        by.step()
        losses.append(sum(found) / accumulate)
    return losses


# %% train: a LambdaLR asks the part, and asks for the rate behind the last step as well
def train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    if steps == 0:
        return []
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in learning if (p.dim() > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: parts.learning_rate(s, peak=lr, warmup=warmup, steps=steps, final=lr / 10)
    )
    losses = []
    for s in range(steps):
        optimiser.zero_grad()
        mean = 0.0
        for i in range(s * accumulate, (s + 1) * accumulate):
            ids = batches(i)
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()) / accumulate
            loss.backward()
            mean += loss.item()
        torch.nn.utils.clip_grad_norm_(learning, clip)
        optimiser.step()
        schedule.step()
        losses.append(mean)
    return losses


# %% train: a LambdaLR holds the schedule
def train(model, batches, steps, parts, *, lr=1e-3, warmup=0, weight_decay=0.1, clip=1.0, accumulate=1):
    if steps == 0:
        return []
    model.zero_grad(set_to_none=True)
    decayed = {id(p) for p in model.parameters() if p.dim() > 1}
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in learning if id(p) not in decayed], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=1.0, betas=(0.9, 0.95))
    rates = [parts.learning_rate(s, peak=lr, warmup=warmup, steps=steps, final=lr / 10) for s in range(steps)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rates[min(s, steps - 1)])
    losses = []
    numbers = iter(range(steps * accumulate))
    while len(losses) < steps:
        mean = 0.0
        for _ in range(accumulate):
            ids = batches(next(numbers))
            logits = model(ids[:, :-1])
            right = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
            loss = -right.mean() / accumulate
            mean += loss.item()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, clip)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        losses.append(mean)
    return losses


# %% adapt: the parent of each layer gets another child
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=1e-3):
    new = copy.deepcopy(model)
    for p in new.parameters():
        p.requires_grad = False
    count = 0
    for parent in list(new.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(parent, name, parts.lora(child, rank, alpha))
                count += 1
    if count == 0:
        raise ValueError("There is no layer to adapt: none is called " + ", ".join(targets))
    return new, train(new, batches, steps, parts, lr=lr, weight_decay=0)


# %% adapt: the adapters are told apart at the end
def adapt(model, batches, steps, parts, *, rank, alpha, targets=("q_proj", "v_proj"), lr=1e-3):
    adapted = copy.deepcopy(model)
    there = {name for name, module in adapted.named_modules() if isinstance(module, nn.Linear)}
    chosen = sorted(name for name in there if any(name == t or name.endswith("." + t) for t in targets))
    if not chosen:
        raise ValueError(f"None of {list(targets)} is an nn.Linear here")
    old = {id(p) for p in adapted.parameters()}
    for name in chosen:
        *path, last = name.split(".")
        owner = adapted.get_submodule(".".join(path))
        owner._modules[last] = parts.lora(owner._modules[last], rank, alpha)
    for p in adapted.parameters():
        p.requires_grad_(id(p) not in old)
    losses = train(adapted, batches, steps, parts, lr=lr, weight_decay=0.0)
    return adapted, losses


# %% quantise: by way of the state dict
def quantise(model, parts, block=64):
    state, size = {}, 0
    for name, value in model.named_parameters():
        first, *_, last = name.split(".")
        stays = first != "blocks" or value.ndim < 2 or last.startswith("lora_") or ".router." in name
        if stays:
            state[name] = value.detach()
            size += value.numel() * value.element_size()
        else:
            packed, absmax = parts.nf4_quantize(value.detach(), block)
            state[name] = parts.nf4_dequantize(packed, absmax, tuple(value.shape), block).to(value.dtype)
            size += packed.numel() * packed.element_size() + absmax.numel() * absmax.element_size()
    shrunk = copy.deepcopy(model)
    shrunk.load_state_dict(state, strict=False)
    return shrunk, size


# %% quantise: the bytes are counted first
def quantise(model, parts, block=64):
    shrunk = copy.deepcopy(model)
    kept = {"router", "lora_A", "lora_B"}
    chosen = [
        p
        for name, p in shrunk.named_parameters()
        if name.split(".")[0] == "blocks" and p.dim() >= 2 and kept.isdisjoint(name.split("."))
    ]
    ids = {id(p) for p in chosen}
    size = sum(p.nbytes for p in shrunk.parameters() if id(p) not in ids)
    with torch.no_grad():
        for p in chosen:
            pieces = parts.nf4_quantize(p, block)
            size += sum(piece.nbytes for piece in pieces)
            p.copy_(parts.nf4_dequantize(*pieces, p.shape, block))
    return shrunk, size


# %% serve: a function answers one prompt
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    @torch.no_grad()
    def answer(prompt):
        cache = parts.cache()
        numbers = torch.Generator()
        numbers.manual_seed(seed)
        said = []
        logits = model(prompt.view(1, -1), cache)
        for i in range(n_new):
            token = parts.sample(logits[:, -1, :], torch.rand(1, generator=numbers), temperature)
            said.append(token)
            if i + 1 == n_new or (end is not None and int(token) == end):
                break
            logits = model(token.view(1, 1), cache)
        return torch.cat(said)

    return [answer(prompt) for prompt in prompts]


# %% serve: all answers grow side by side
@torch.inference_mode()
def serve(model, prompts, n_new, parts, *, temperature=0.0, seed=0, end=None):
    waiting = [
        {"read": prompt.unsqueeze(0), "cache": parts.cache(), "draw": torch.Generator().manual_seed(seed), "said": []}
        for prompt in prompts
    ]
    for one in waiting:
        for _ in range(n_new):
            logits = model(one["read"], one["cache"])
            u = torch.rand(1, generator=one["draw"])
            one["read"] = parts.sample(logits[:, -1], u, temperature).reshape(1, 1)
            one["said"].append(one["read"].item())
            if one["said"][-1] == end:
                break
    return [torch.tensor(one["said"], dtype=torch.long) for one in waiting]


# %% bill: tensor by tensor
def bill(config, *, context, tokens, seconds, watts):
    d, hidden, e = config.d_model, config.d_hidden, config.n_experts
    wide, narrow = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
    shrunk = {"q": (d, wide), "k": (d, narrow), "v": (d, narrow), "o": (wide, d)}
    kept = {"norm1": (d,), "norm2": (d,)}
    if e:
        shrunk |= {"gate_up": (e, 2 * hidden, d), "down": (e, d, hidden)}
        kept["router"] = (e, d)
    else:
        shrunk |= {"gate": (hidden, d), "up": (hidden, d), "down": (d, hidden)}
    parameters = active = flops = nf4 = 0
    for _ in range(config.n_layers):
        for name, shape in (shrunk | kept).items():
            numbers = math.prod(shape)
            used = numbers // e * config.top_k if len(shape) == 3 else numbers
            parameters += numbers
            active += used
            flops += 2 * used * (len(shape) > 1)
            nf4 += 2 * numbers if name in kept else -(-numbers // 2) + 4 * -(-numbers // 64)
        flops += 2 * (2 * wide * context)
    table = config.vocabulary * d
    flops += 2 * table
    return {
        "parameters": parameters + table + d,
        "active": active + table + d,
        "bytes_fp32": 4 * (parameters + table + d),
        "bytes_bf16": 2 * (parameters + table + d),
        "bytes_nf4": nf4 + 2 * (table + d),
        "kv_bytes_per_token": config.n_layers * (narrow + narrow) * 2,
        "flops_per_token": flops,
        "training_flops": flops * tokens + 2 * flops * tokens,
        "watt_hours": watts * (seconds / 3600),
    }


# %% bill: with small functions, entry by entry
def bill(config, *, context, tokens, seconds, watts):
    def four_bits(*shape):
        numbers = math.prod(shape)
        return math.ceil(numbers / 2) + 4 * math.ceil(numbers / 64)

    def layer(experts):
        attention = 2 * config.d_model * config.d_head * (config.n_heads + config.n_kv_heads)
        return attention + experts * 3 * config.d_model * config.d_hidden + config.d_model * config.n_experts

    c, layers = config, config.n_layers
    norms, table = c.d_model * (1 + 2 * layers), c.d_model * c.vocabulary
    total = layers * layer(c.n_experts or 1) + norms + table
    active = layers * layer(c.top_k if c.n_experts else 1) + norms + table
    if c.n_experts:
        mlp = four_bits(c.n_experts, 2 * c.d_hidden, c.d_model) + four_bits(c.n_experts, c.d_hidden, c.d_model)
    else:
        mlp = 3 * four_bits(c.d_hidden, c.d_model)
    wide, narrow = four_bits(c.d_model, c.n_heads * c.d_head), four_bits(c.d_model, c.n_kv_heads * c.d_head)
    found = {"parameters": total, "active": active, "bytes_fp32": total * 4, "bytes_bf16": total * 2}
    found["bytes_nf4"] = 2 * (norms + table + layers * c.d_model * c.n_experts)
    found["bytes_nf4"] += layers * (2 * wide + 2 * narrow + mlp)
    found["kv_bytes_per_token"] = 4 * layers * c.n_kv_heads * c.d_head
    found["flops_per_token"] = 2 * (active - norms) + 4 * layers * c.n_heads * c.d_head * context
    found["training_flops"] = found["flops_per_token"] * tokens * 3
    found["watt_hours"] = seconds / 60 / 60 * watts
    return found
