# %% helper
def std_of(n_layers):
    """What writes into the stream starts smaller."""
    return 0.02 / (2 * n_layers) ** 0.5


# %% Block
class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"Cannot split d_model = {d_model} into n_heads = {n_heads} equal heads.")
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.o_proj = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        batch, n, _ = x.shape
        return x.view(batch, n, self.n_heads, self.d_head).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, n, d_model = x.shape
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        att = (q @ k.transpose(-2, -1)) / math.sqrt(self.d_head)
        past = torch.tril(torch.ones(n, n, dtype=torch.bool, device=x.device))
        att = att.masked_fill(~past, float("-inf")).softmax(dim=-1)
        y = (att @ v).transpose(1, 2).contiguous().view(batch, n, d_model)
        return self.o_proj(y)


class MLP(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.norm1(x))
        return h + self.mlp(self.norm2(h))


# %% GPT
class GPT(nn.Module):
    def __init__(self, vocabulary: int, n_context: int, d_model: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.n_context = n_context
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.apply(self._init)
        for name, p in self.named_parameters():
            if name.endswith("o_proj.weight") or name.endswith("down_proj.weight"):
                nn.init.normal_(p, mean=0.0, std=std_of(n_layers))

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        if n > self.n_context:
            raise ValueError(f"The text has {n} tokens but the model has only {self.n_context} positions.")
        x = self.tokens(ids) + self.positions(torch.arange(n, device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


# %% from_gpt2
def from_gpt2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    n_layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer.h."))
    new = {
        "tokens.weight": state["transformer.wte.weight"],
        "positions.weight": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
        "norm.bias": state["transformer.ln_f.bias"],
    }
    for i in range(n_layers):
        old, b = f"transformer.h.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            new[f"{b}.norm1.{kind}"] = state[f"{old}.ln_1.{kind}"]
            new[f"{b}.norm2.{kind}"] = state[f"{old}.ln_2.{kind}"]
        q, k, v = state[f"{old}.attn.c_attn.weight"].T.chunk(3, dim=0)
        new[f"{b}.attention.q_proj.weight"] = q
        new[f"{b}.attention.k_proj.weight"] = k
        new[f"{b}.attention.v_proj.weight"] = v
        qb, kb, vb = state[f"{old}.attn.c_attn.bias"].chunk(3)
        new[f"{b}.attention.q_proj.bias"] = qb
        new[f"{b}.attention.k_proj.bias"] = kb
        new[f"{b}.attention.v_proj.bias"] = vb
        for theirs, mine in (
            ("attn.c_proj", "attention.o_proj"),
            ("mlp.c_fc", "mlp.up_proj"),
            ("mlp.c_proj", "mlp.down_proj"),
        ):
            new[f"{b}.{mine}.weight"] = state[f"{old}.{theirs}.weight"].T
            new[f"{b}.{mine}.bias"] = state[f"{old}.{theirs}.bias"]
    return new


# %% learning_rate
def learning_rate(step: int, *, peak: float, warmup: int, steps: int, final: float) -> float:
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return float(final)
    t = (step - warmup) / (steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * t))


# %% accumulate
def accumulate(model, batches):
    n_tokens = sum(int((targets != -100).sum()) for _, targets in batches)
    loss_sum = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100, reduction="sum"
        )
        (loss / n_tokens).backward()
        loss_sum += loss.item()
    return loss_sum / n_tokens


# %% Mended
class SelfAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # the channels of one head lie together: (n_heads, d_head), not (d_head, n_heads)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).transpose(1, 2) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))
