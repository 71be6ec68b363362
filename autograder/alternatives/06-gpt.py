# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% Block: everything in one class, attention by hand
class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"{n_heads} heads cannot share {d_model} channels equally.")
        self.h = n_heads
        self.norm1 = nn.LayerNorm(d_model, eps=1e-5)
        self.attention = nn.ModuleDict({f"{letter}_proj": nn.Linear(d_model, d_model) for letter in "qkvo"})
        self.norm2 = nn.LayerNorm(d_model, eps=1e-5)
        self.mlp = nn.ModuleDict(
            {"up_proj": nn.Linear(d_model, 4 * d_model), "down_proj": nn.Linear(4 * d_model, d_model)}
        )

    def attend(self, x):
        b, n, d = x.shape
        q, k, v = (self.attention[f"{letter}_proj"](x).view(b, n, self.h, d // self.h) for letter in "qkv")
        scores = torch.einsum("bihc,bjhc->bhij", q, k) * (d // self.h) ** -0.5
        bias = torch.full((n, n), float("-inf"), dtype=x.dtype).triu(1)
        weights = torch.softmax(scores + bias, dim=-1)
        return self.attention["o_proj"](torch.einsum("bhij,bjhc->bihc", weights, v).reshape(b, n, d))

    def forward(self, x):
        h = x + self.attend(self.norm1(x))
        return h + self.mlp["down_proj"](F.gelu(self.mlp["up_proj"](self.norm2(h)), approximate="tanh"))


# %% Block: norms and GELU by their formulas
class Norm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.down_proj = nn.Linear(4 * d_model, d_model)
        self.up_proj = nn.Linear(d_model, 4 * d_model)

    def forward(self, x):
        u = self.up_proj(x)
        return self.down_proj(0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))))


class Heads(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
        self.d_head = d_model // n_heads
        for letter in "qkvo":
            self.add_module(f"{letter}_proj", nn.Linear(d_model, d_model))
        self.register_buffer("mask", torch.ones(8, 8, dtype=torch.bool).tril(), persistent=False)

    def forward(self, x):
        n = x.shape[1]
        if n > len(self.mask):
            self.mask = torch.ones(n, n, dtype=torch.bool).tril()
        parts = [p(x).split(self.d_head, -1) for p in (self.q_proj, self.k_proj, self.v_proj)]
        found = []
        for q, k, v in zip(*parts):
            scores = q @ k.mT / self.d_head**0.5
            found.append(scores.masked_fill(~self.mask[:n, :n], -1e30).softmax(-1) @ v)
        return self.o_proj(torch.cat(found, -1))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1, self.norm2 = Norm(d_model), Norm(d_model)
        self.attention, self.mlp = Heads(d_model, n_heads), MLP(d_model)

    def forward(self, x):
        for norm, part in ((self.norm1, self.attention), (self.norm2, self.mlp)):
            x = x + part(norm(x))
        return x


# %% Block: one product for queries, keys and values
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads, rest = n_heads, d_model % n_heads
        if rest:
            raise ValueError(f"d_model ({d_model}) leaves a rest of {rest} when shared by {n_heads} heads")
        self.q_proj, self.k_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.v_proj, self.o_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def forward(self, x):
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        q, k, v = F.linear(x, weight, bias).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=causal).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.attention = Attention(d_model, n_heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("up_proj", nn.Linear(d_model, d_model * 4))
        self.mlp.add_module("gelu", nn.GELU(approximate="tanh"))
        self.mlp.add_module("down_proj", nn.Linear(d_model * 4, d_model))
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.attention(self.norm1(x)) + x
        return self.mlp(self.norm2(x)).add(x)


# %% GPT: parameters, apply, and a fold over the blocks
class Table(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * 0.02)


class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.n_context = n_context
        self.tokens, self.positions = Table(vocabulary, d_model), Table(n_context, d_model)
        self.blocks = nn.Sequential(*[Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.blocks.apply(self.begin)
        with torch.no_grad():
            for name, parameter in self.blocks.named_parameters():
                if "o_proj.weight" in name or "down_proj.weight" in name:
                    parameter.div_(math.sqrt(2 * n_layers))

    @staticmethod
    def begin(module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=0.02)
            module.bias.data.zero_()

    def forward(self, ids):
        if ids.size(1) > self.n_context:
            raise ValueError(f"At most {self.n_context} tokens fit, and these are {ids.size(1)}.")
        x = self.tokens.weight[ids] + self.positions.weight[None, : ids.size(1)]
        return torch.einsum("bnd,vd->bnv", self.norm(self.blocks(x)), self.tokens.weight)


# %% GPT: embeddings of positions looked up, blocks added by number
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=1e-5)
        self.blocks = nn.ModuleDict({str(i): Block(d_model, n_heads) for i in range(n_layers)})
        self.positions = nn.Embedding(n_context, d_model)
        self.tokens = nn.Embedding(vocabulary, d_model)
        small = 0.02 / math.sqrt(2 * n_layers)
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear)):
                torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if isinstance(module, nn.Linear):
                torch.nn.init.zeros_(module.bias)
        for block in self.blocks.values():
            for name, parameter in block.named_parameters():
                if name in ("attention.o_proj.weight", "mlp.down_proj.weight"):
                    torch.nn.init.normal_(parameter, mean=0.0, std=small)

    def forward(self, ids):
        batch, n = ids.shape
        if n > self.positions.num_embeddings:
            raise ValueError(f"n = {n} is larger than n_context = {self.positions.num_embeddings}")
        where = torch.arange(n, device=ids.device).expand(batch, n)
        x = F.embedding(ids, self.tokens.weight) + self.positions(where)
        for i in range(len(self.blocks)):
            x = self.blocks[str(i)](x)
        return torch.matmul(self.norm(x), self.tokens.weight.transpose(0, 1))


# %% GPT: one-hot vectors, and torch.func for the norm
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        make = {"tokens": nn.Embedding(vocabulary, d_model), "positions": nn.Embedding(n_context, d_model)}
        for name, table in make.items():
            self.add_module(name, table)
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        state = {}
        for name, value in self.state_dict().items():
            if value.dim() == 2:
                std = 0.02 * ((2 * n_layers) ** -0.5 if name.split(".")[-2] in ("o_proj", "down_proj") else 1)
                state[name] = std * torch.randn_like(value)
            else:
                state[name] = torch.full_like(value, float("norm" in name and name.endswith("weight")))
        self.load_state_dict(state)

    def forward(self, ids):
        table, places = self.tokens.weight, self.positions.weight
        if len(places) < ids.shape[-1]:
            raise ValueError(f"{ids.shape[-1]} tokens, {len(places)} positions")
        x = F.one_hot(ids, len(table)).to(table.dtype) @ table + places.narrow(0, 0, ids.shape[-1])
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias) @ table.mT


# %% from_gpt2: a walk over the names that are there
def from_gpt2(state):
    names = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.c_proj": "attention.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    ours = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "lm_head":
            continue
        if parts[1] in ("wte", "wpe"):
            ours[{"wte": "tokens", "wpe": "positions"}[parts[1]] + ".weight"] = value
        elif parts[1] == "ln_f":
            ours[f"norm.{parts[2]}"] = value
        else:
            number, middle, kind = parts[2], ".".join(parts[3:-1]), parts[-1]
            if kind == "weight" and "c_" in middle:
                value = value.transpose(0, 1).contiguous()
            if middle == "attn.c_attn":
                q, k, v = torch.tensor_split(value, 3, dim=0)
                for letter, third in (("q", q), ("k", k), ("v", v)):
                    ours[f"blocks.{number}.attention.{letter}_proj.{kind}"] = third
            elif middle in names:
                ours[f"blocks.{number}.{names[middle]}.{kind}"] = value
    return ours


# %% from_gpt2: regular expressions
def from_gpt2(state):
    import re
    from collections import OrderedDict

    rules = [
        (r"^transformer\.wte", "tokens"),
        (r"^transformer\.wpe", "positions"),
        (r"^transformer\.ln_f", "norm"),
        (r"^transformer\.h\.", "blocks."),
        (r"\.ln_([12])", r".norm\1"),
        (r"\.attn\.c_proj", ".attention.o_proj"),
        (r"\.c_fc", ".up_proj"),
        (r"\.mlp\.c_proj", ".mlp.down_proj"),
    ]
    found = OrderedDict()
    for name in list(state):
        if name.startswith("lm_head") or re.search(r"\.attn\.(masked_)?bias$", name):
            continue
        value = state[name].clone()
        if re.search(r"c_\w+\.weight$", name):
            value = value.t()
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        if "c_attn" in name:
            for i, letter in enumerate("qkv"):
                d = value.shape[0] // 3
                found[name.replace("attn.c_attn", f"attention.{letter}_proj")] = value[i * d : (i + 1) * d]
        else:
            found[name] = value
    return dict(found)


# %% learning_rate: cos² and one expression
def learning_rate(step, *, peak, warmup, steps, final):
    up = peak * (step + 1) / (warmup + 1)
    share = min(max(0.0, (step - warmup) / (steps - warmup)), 1.0)
    down = final + (peak - final) * math.cos(share * math.pi / 2) ** 2
    return float(up if step < warmup else down)


# %% learning_rate: interpolation, and sin
def learning_rate(step, *, peak, warmup, steps, final):
    if step <= warmup:
        return (step + 1) / (warmup + 1) * peak
    if step > steps:
        step = steps
    angle = math.pi * (step - warmup) / (steps - warmup)
    fallen = 0.5 + 0.5 * math.sin(angle - math.pi / 2)
    return float(peak * (1 - fallen) + final * fallen)


# %% accumulate: each mean weighted by its share of the tokens
def accumulate(model, batches):
    counts = [int(targets.ne(-100).sum()) for _, targets in batches]
    losses = []
    for (ids, targets), count in zip(batches, counts):
        logits = model(ids)
        logp = torch.log_softmax(logits, -1)
        keep = targets != -100
        picked = logp.gather(-1, targets.masked_fill(~keep, 0)[..., None])[..., 0]
        loss = -(picked * keep).sum() / sum(counts)
        loss.backward()
        losses.append(float(loss))
    return sum(losses)


# %% accumulate: a list comprehension over targets, cross_entropy over the second dimension
def accumulate(model, batches):
    n_tokens = torch.stack([(t >= 0).sum() for _, t in batches]).sum()
    running = torch.zeros(())
    for x, y in batches:
        nll = F.cross_entropy(model(x).mT, y, ignore_index=-100, reduction="none")
        part = nll.sum() / n_tokens
        part.backward()
        running += part.detach()
    return running.item()


# %% accumulate: gradients through autograd.grad
def accumulate(model, batches):
    n_tokens = sum((targets != -100).sum().item() for _, targets in batches)
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = nn.CrossEntropyLoss(reduction="sum")(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters)):
            share = grad / n_tokens
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        total += loss.item()
    return total / n_tokens


# %% Mended: the patient with two lines changed
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(-2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, -2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: the channels put into another order instead
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        d, n = x.shape[2], x.shape[1]
        d_head = d // self.n_heads
        order = torch.arange(d).view(self.n_heads, d_head).T.flatten()
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part[..., order].unflatten(-1, (d_head, self.n_heads)).movedim(-1, 1) for part in fused.chunk(3, -1))
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        weights = (q @ k.mT / math.sqrt(d_head)).masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, -1).flatten(-2)[..., order.argsort()])


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.self_attn = SelfAttention(d_model, n_heads)
        self.linear1, self.linear2 = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        h = self.norm1(self.self_attn(x) + x)
        return self.norm2(self.linear2(F.gelu(self.linear1(h), approximate="tanh")) + h)
