# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% split_qkv: rows by their numbers
def split_qkv(fused, n_heads, layout):
    if layout not in ("gpt2", "per_head"):
        raise ValueError(f"layout must be 'gpt2' or 'per_head', got {layout!r}")
    if layout == "gpt2":
        fused = torch.movedim(fused, -1, 0)
    d = fused.shape[0] // 3
    rows = torch.arange(3 * d)
    if layout == "per_head":
        d_head = d // n_heads
        owner = rows // d_head % 3
    else:
        owner = rows // d
    return tuple(fused[owner == i].clone() for i in range(3))


# %% split_qkv: einops-like loops
def split_qkv(fused, n_heads, layout):
    match layout:
        case "gpt2":
            d = fused.shape[-1] // 3
            pieces = [fused[..., i * d : (i + 1) * d] for i in range(3)]
            return tuple(p.transpose(0, 1) if p.ndim == 2 else p for p in pieces)
        case "per_head":
            pieces = fused.chunk(3 * n_heads)
            return torch.cat(pieces[0::3]), torch.cat(pieces[1::3]), torch.cat(pieces[2::3])
        case other:
            raise ValueError("no such layout: " + other)


# %% Attention: SDPA with a bias, the sink as a key without a value
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c = config
        self.window = dict(enumerate(config.windows)).get(layer)
        for letter, heads in {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}.items():
            self.add_module(f"{letter}_proj", nn.Linear(config.d_model, heads * config.d_head, config.qkv_bias))
        self.o_proj = nn.Linear(config.n_heads * config.d_head, config.d_model, config.o_bias)
        if config.sinks:
            self.register_parameter("sinks", nn.Parameter(torch.randn(config.n_heads)))
        for letter in "qk" if config.qk_norm else "":
            self.add_module(f"{letter}_norm", nn.RMSNorm([config.d_head], config.norm_eps))

    def spin(self, x, positions):
        speed, factor = self.c.frequencies()
        d = 2 * len(speed)
        angle = positions.float()[:, None, :, None] * speed
        wheel = torch.polar(torch.tensor(float(factor)), angle)
        y = x[..., :d].float()
        if self.c.interleaved:
            z = torch.complex(y[..., 0::2].contiguous(), y[..., 1::2].contiguous()) * wheel
            y = torch.view_as_real(z).flatten(-2)
        else:
            z = torch.complex(*(half.contiguous() for half in y.chunk(2, -1))) * wheel
            y = torch.cat((z.real, z.imag), -1)
        return torch.cat((y.to(x.dtype), x[..., d:]), -1)

    def forward(self, x, positions, mask):
        c, n = self.c, x.size(1)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if c.clip_qkv is not None:
            q, k, v = [torch.clip(t, -c.clip_qkv, c.clip_qkv) for t in (q, k, v)]
        q, k, v = [torch.stack(t.split(c.d_head, -1), 1) for t in (q, k, v)]
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if c.positions == "rope":
            q, k = self.spin(q, positions), self.spin(k, positions)
        i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        hidden = (j > i) | ~mask[:, None, None]
        if self.window:
            hidden = hidden | (i - j >= self.window)
        bias = torch.zeros(x.size(0), c.n_heads, n, n)
        if c.positions == "alibi":
            bias = bias + c.slopes()[:, None, None] * j  # softmax takes off what is the same in a row
        bias = bias.masked_fill(hidden, -torch.inf).to(x.dtype)
        if c.sinks:
            sink = self.sinks[None, :, None, None].expand(x.size(0), -1, n, -1)
            bias = torch.cat((bias, sink), -1)
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


# %% Attention: a loop over heads, softmax by hand
def turn(x, angle, factor, interleaved):
    d = 2 * angle.shape[-1]
    first = range(0, d, 2) if interleaved else range(d // 2)
    second = range(1, d, 2) if interleaved else range(d // 2, d)
    first, second = list(first), list(second)
    cos, sin = (factor * angle.cos()).to(x.dtype), (factor * angle.sin()).to(x.dtype)
    y = x.clone()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        h, g, d = config.n_heads, config.n_kv_heads, config.d_head
        self.q_proj = nn.Linear(config.d_model, h * d, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, g * d, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, g * d, bias=config.qkv_bias)
        self.o_proj = nn.Linear(h * d, config.d_model, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(d, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(d, eps=config.norm_eps)
        if config.sinks:
            self.sinks = nn.Parameter(torch.full((h,), -1.0))

    def forward(self, x, positions, mask):
        c, n, d = self.config, x.shape[1], self.config.d_head
        parts = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        if c.clip_qkv is not None:
            parts = [
                torch.minimum(torch.maximum(p, -torch.tensor(c.clip_qkv)), torch.tensor(c.clip_qkv)).to(x.dtype)
                for p in parts
            ]
        window = (c.windows[self.layer] if c.windows else None) or n
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        near = causal & ~torch.ones(n, n, dtype=torch.bool).tril(-window)
        far = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0)
        found = []
        for head in range(c.n_heads):
            shared = head // (c.n_heads // c.n_kv_heads)
            q = parts[0][..., head * d : (head + 1) * d]
            k, v = (p[..., shared * d : (shared + 1) * d] for p in parts[1:])
            if c.qk_norm:
                q, k = self.q_norm(q), self.k_norm(k)
            if c.positions == "rope":
                speed, factor = c.frequencies()
                angle = positions.unsqueeze(-1) * speed
                q, k = (turn(t, angle, factor, c.interleaved) for t in (q, k))
            scores = (q @ k.mT) * d**-0.5
            if c.positions == "alibi":
                scores = scores - (c.slopes()[head] * far).to(x.dtype)
            scores = scores.masked_fill(~(near & mask[:, None]), torch.finfo(x.dtype).min)
            top = scores.amax(-1, keepdim=True)
            if c.sinks:
                top = torch.maximum(top, self.sinks[head])
            shares = (scores - top).exp()
            total = shares.sum(-1, keepdim=True)
            if c.sinks:
                total = total + (self.sinks[head] - top).exp()
            found.append(shares / total @ v)
        return self.o_proj(torch.cat(found, -1))


# %% Attention: who sees whom by positions
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.cfg = config
        d, h, kv, dh = config.d_model, config.n_heads, config.n_kv_heads, config.d_head
        self.q_proj = nn.Linear(d, h * dh, bias=config.qkv_bias)
        self.k_proj = nn.Linear(d, kv * dh, bias=config.qkv_bias)
        self.v_proj = nn.Linear(d, kv * dh, bias=config.qkv_bias)
        self.o_proj = nn.Linear(h * dh, d, bias=config.o_bias)
        self.q_norm = nn.RMSNorm(dh, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(dh, eps=config.norm_eps) if config.qk_norm else None
        self.sinks = nn.Parameter(torch.empty(h)) if config.sinks else None
        self.window = (config.windows or (None,) * config.n_layers)[layer]

    def forward(self, x, positions, mask):
        c = self.cfg
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, c.n_heads, c.d_head)
        k = self.k_proj(x).view(b, n, c.n_kv_heads, c.d_head)
        v = self.v_proj(x).view(b, n, c.n_kv_heads, c.d_head)
        if c.clip_qkv is not None:
            q, k, v = (torch.clip(t, -c.clip_qkv, c.clip_qkv) for t in (q, k, v))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if c.positions == "rope":
            q, k = self.turned(q, positions), self.turned(k, positions)
        far = positions[:, :, None] - positions[:, None, :]
        see = (far >= 0) & mask[:, None, :]
        if self.window is not None:
            see &= far < self.window
        see |= torch.eye(n, dtype=torch.bool, device=x.device)
        bias = torch.zeros(b, c.n_heads, n, n, dtype=q.dtype, device=x.device)
        if c.positions == "alibi":
            bias = bias - (c.slopes().to(x.device)[None, :, None, None] * far[:, None]).to(q.dtype)
        bias = bias.masked_fill(~see[:, None], -torch.inf)
        if self.sinks is not None:
            k = torch.cat([k, k.new_zeros(b, c.n_kv_heads, 1, c.d_head)], 2)
            v = torch.cat([v, v.new_zeros(b, c.n_kv_heads, 1, c.d_head)], 2)
            bias = torch.cat([bias, self.sinks[None, :, None, None].expand(b, -1, n, 1)], -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1))

    def turned(self, x, positions):
        c = self.cfg
        f, s = c.frequencies()
        r = c.d_rotary or c.d_head
        ang = positions.float()[..., None] * f.to(positions.device)
        rot = torch.polar(torch.full_like(ang, s), ang)[:, None]
        t = x[..., :r].float()
        pairs = t.unflatten(-1, (-1, 2)) if c.interleaved else t.unflatten(-1, (2, -1)).mT
        z = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * rot)
        t = z.flatten(-2) if c.interleaved else z.mT.flatten(-2)
        return torch.cat([t.to(x.dtype), x[..., r:]], -1)


# %% Block: tables of functions, everything in Block
NORMS = {
    "rms": lambda c: nn.RMSNorm(c.d_model, eps=c.norm_eps),
    "layer": lambda c: nn.LayerNorm(c.d_model, eps=c.norm_eps),
    "plain": lambda c: nn.LayerNorm(c.d_model, eps=c.norm_eps, elementwise_affine=False),
}


def clamped(gate, up):
    gate = torch.minimum(gate, torch.full_like(gate, 7.0))
    up = torch.clamp(up, min=-7.0, max=7.0)
    return (up + 1) * gate / (1 + torch.exp(-1.702 * gate))


ONE = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh")}
TWO = {"swiglu": lambda gate, up: gate * gate.sigmoid() * up, "clamped": clamped}


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.c = config
        self.attention = Attention(config, layer)
        self.norm1 = NORMS[config.norm](config)
        if config.residual in ("sequential", "parallel"):
            self.norm2 = NORMS[config.norm](config)
        names = ["up_proj"] + ["gate_proj"] * (config.mlp in TWO)
        self.mlp = nn.ModuleDict({name: nn.Linear(config.d_model, config.d_hidden, config.mlp_bias) for name in names})
        self.mlp["down_proj"] = nn.Linear(config.d_hidden, config.d_model, config.mlp_bias)

    def think(self, x):
        up = self.mlp["up_proj"](x)
        hidden = ONE[self.c.mlp](up) if self.c.mlp in ONE else TWO[self.c.mlp](self.mlp["gate_proj"](x), up)
        return self.mlp["down_proj"](hidden)

    def forward(self, x, positions, mask):
        match self.c.residual:
            case "sequential":
                x = x + self.attention(self.norm1(x), positions, mask)
                return x + self.think(self.norm2(x))
            case "parallel":
                return x + self.attention(self.norm1(x), positions, mask) + self.think(self.norm2(x))
            case "shared":
                x1 = self.norm1(x)
                return x + (self.attention(x1, positions, mask) + self.think(x1))


# %% Block: norms by their formulas
class Norm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.eps, self.centred = c.norm_eps, c.norm != "rms"
        self.weight = nn.Parameter(torch.ones(c.d_model)) if c.norm != "plain" else None
        self.bias = nn.Parameter(torch.zeros(c.d_model)) if c.norm == "layer" else None

    def forward(self, x):
        y = x.float() if x.dtype == torch.bfloat16 else x
        if self.centred:
            y = y - y.mean(-1, keepdim=True)
        y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


def norm_of(config):
    return Norm(config)


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.down_proj = nn.Linear(c.d_hidden, c.d_model, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.d_model, c.d_hidden, bias=c.mlp_bias)
        if "gelu" not in c.mlp:
            self.gate_proj = nn.Linear(c.d_model, c.d_hidden, bias=c.mlp_bias)

    def forward(self, x):
        u = self.up_proj(x)
        if self.c.mlp == "gelu":
            h = u * (1 + torch.erf(u / math.sqrt(2))) / 2
        elif self.c.mlp == "gelu_tanh":
            h = u * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))
        else:
            g = self.gate_proj(x)
            alpha = 1.0
            if self.c.mlp == "clamped":
                g, u, alpha = g.clamp(max=7.0), u.clamp(-7.0, 7.0) + 1, 1.702
            h = g * torch.sigmoid(alpha * g) * u
        return self.down_proj(h)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm1, self.attention = norm_of(config), Attention(config, layer)
        self.shape = config.residual
        if self.shape != "shared":
            self.norm2 = norm_of(config)
        self.mlp = FeedForward(config)

    def forward(self, x, positions, mask):
        normed = self.norm1(x)
        a = self.attention(normed, positions, mask)
        if self.shape == "shared":
            return x + a + self.mlp(normed)
        return x + a + self.mlp(self.norm2(x if self.shape == "parallel" else x + a))


# %% Decoder: only what is there is there
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        parts = {"tokens": nn.Embedding(config.vocabulary, config.d_model)}
        if config.positions == "learned":
            parts["positions"] = nn.Embedding(config.n_context, config.d_model)
        if config.tokens_norm:
            parts["tokens_norm"] = norm_of(config)
        parts["blocks"] = nn.ModuleList([Block(config, layer=i) for i in range(config.n_layers)])
        parts["norm"] = norm_of(config)
        if not config.tied:
            parts["head"] = nn.Linear(config.d_model, config.vocabulary, bias=config.head_bias)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, ids, mask=None):
        real = torch.ones_like(ids).bool() if mask is None else mask
        place = torch.where(real, real.cumsum(-1) - 1, 0)
        x = F.embedding(ids, self.tokens.weight)
        if hasattr(self, "positions"):
            x = x + F.embedding(place, self.positions.weight)
        if hasattr(self, "tokens_norm"):
            x = self.tokens_norm(x)
        for i in range(len(self.blocks)):
            x = self.blocks[i](x, place, real)
        x = self.norm(x)
        if self.config.tied:
            return torch.einsum("bnd,vd->bnv", x, self.tokens.weight)
        return self.head(x)


# %% Decoder: identities where nothing is
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tied = config.tied
        self.tokens = nn.Embedding(config.vocabulary, config.d_model)
        self.positions = nn.Embedding(config.n_context, config.d_model) if config.positions == "learned" else None
        self.tokens_norm = norm_of(config) if config.tokens_norm else nn.Identity()
        self.norm = norm_of(config)
        self.blocks = nn.ModuleList()
        while len(self.blocks) < config.n_layers:
            self.blocks.append(Block(config, len(self.blocks)))
        if not self.tied:
            self.head = nn.Linear(config.d_model, config.vocabulary, bias=bool(config.head_bias))

    def forward(self, ids, mask=None):
        if mask is None:
            mask = ids == ids
        start = mask.int().argmax(1, keepdim=True)
        positions = torch.relu(torch.arange(ids.size(1)) - start)
        x = self.tokens(ids)
        if self.positions:
            x = x + self.positions(positions)
        x = self.tokens_norm(x)
        for block in self.blocks:
            x = block(x, positions, mask)
        read = self.tokens if self.tied else self.head
        return F.linear(self.norm(x), read.weight, getattr(read, "bias", None))


# %% detective: by the words of the names
def detective(shapes):
    blocks, outside = {}, {}
    for name, shape in shapes.items():
        words = name.split(".")
        at = next((i for i, word in enumerate(words[:-1]) if word in ("h", "layers") and words[i + 1].isdigit()), None)
        if at is None:
            outside[".".join(words[-2:])] = shape
        else:
            blocks.setdefault(int(words[at + 1]), {})[".".join(words[at + 2 :])] = shape
    one = blocks[min(blocks)] if blocks else {}
    keys = "family n_layers d_model n_context n_heads d_head group kv_bytes".split()
    nothing = {key: None for key in keys}
    table = None
    for word in ("wte", "embed_in", "word_embeddings", "embed_tokens"):
        table = outside.get(f"{word}.weight", table)
    if "attn.c_attn.weight" in one:
        family = "gpt2"
    elif "attn.q_proj.weight" in one:
        family = "gptj"
    elif "attention.query_key_value.weight" in one:
        family = "gpt_neox"
    elif "self_attention.query_key_value.weight" in one:
        family = "bloom"
    elif "self_attn.q_proj.weight" not in one:
        return nothing
    elif "self_attn.sinks" in one:
        family = "gpt_oss"
    elif "self_attn.q_norm.weight" in one:
        family = "qwen3"
    elif "self_attn.q_proj.bias" in one:
        family = "qwen2"
    elif "input_layernorm.weight" in one:
        family = "llama"
    else:
        family = "olmo"
    d = table[1]
    rows = {p: one.get(f"self_attn.{p}_proj.weight", (d,))[0] for p in "qkv"}
    heads = one["self_attn.sinks"][0] if family == "gpt_oss" else None
    channels = one["self_attn.q_norm.weight"][0] if family == "qwen3" else None
    if heads:
        channels = rows["q"] // heads
    if channels and not heads:
        heads = rows["q"] // channels
    return {
        "family": family,
        "n_layers": len(blocks),
        "d_model": d,
        "n_context": outside["wpe.weight"][0] if family == "gpt2" else None,
        "n_heads": heads,
        "d_head": channels,
        "group": rows["q"] // rows["k"],
        "kv_bytes": len(blocks) * 2 * (rows["k"] + rows["v"]),
    }


# %% detective: a list of patterns
PATTERNS = [
    (r"attn\.c_attn\.weight$", "gpt2"),
    (r"(?<!self_)attn\.q_proj\.weight$", "gptj"),
    (r"(?<!self_)attention\.query_key_value\.weight$", "gpt_neox"),
    (r"self_attention\.query_key_value\.weight$", "bloom"),
    (r"self_attn\.sinks$", "gpt_oss"),
    (r"self_attn\.q_norm\.weight$", "qwen3"),
    (r"self_attn\.q_proj\.bias$", "qwen2"),
]


def detective(shapes):
    def all_of(pattern):
        return [shape for name, shape in shapes.items() if re.search(r"(?:^|\.)" + pattern, name)]

    result = {"family": None, "n_layers": None, "d_model": None, "n_context": None}
    result |= {"n_heads": None, "d_head": None, "group": None, "kv_bytes": None}
    for pattern, family in PATTERNS:
        if all_of(pattern):
            result["family"] = family
            break
    q = all_of(r"self_attn\.q_proj\.weight$")
    if result["family"] is None and q:
        result["family"] = "llama" if all_of(r"input_layernorm\.weight$") else "olmo"
    if result["family"] is None:
        return result
    ((_, d),) = all_of(r"(?:wte|embed_in|word_embeddings|embed_tokens)\.weight$")
    k, v = (all_of(rf"self_attn\.{p}_proj\.weight$") for p in "kv")
    numbers = {int(m[1]) for m in (re.search(r"(?:^|\.)(?:h|layers)\.([0-9]+)\.", name) for name in shapes) if m}
    result["d_model"], result["n_layers"] = d, len(numbers)
    if q:
        result["kv_bytes"] = 2 * sum(shape[0] for shape in k + v)
        result["group"] = q[0][0] // k[0][0]
    else:
        result["kv_bytes"], result["group"] = len(numbers) * 2 * 2 * d, 1
    if family == "gpt2":
        result["n_context"] = all_of(r"wpe\.weight$")[0][0]
    elif result["family"] == "gpt_oss":
        result["n_heads"] = all_of(r"self_attn\.sinks$")[0][0]
        result["d_head"] = q[0][0] // result["n_heads"]
    elif result["family"] == "qwen3":
        result["d_head"] = all_of(r"self_attn\.q_norm\.weight$")[0][0]
        result["n_heads"] = q[0][0] // result["d_head"]
    return result


# %% Mended: the patient with one line changed
class Layer(nn.Module):
    def __init__(self, d_model, n_heads, rotary):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.d_rotary = int(self.d_head * rotary)
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = nn.ModuleDict(
            {"query_key_value": nn.Linear(d_model, 3 * d_model), "dense": nn.Linear(d_model, d_model)}
        )
        self.mlp = nn.ModuleDict(
            {"dense_h_to_4h": nn.Linear(d_model, 4 * d_model), "dense_4h_to_h": nn.Linear(4 * d_model, d_model)}
        )

    def turn(self, x):
        frequency = 10_000 ** (-torch.arange(0, self.d_rotary, 2) / self.d_rotary)
        angle = (torch.arange(x.shape[2])[:, None] * frequency).to(x.dtype)
        a, b, rest = x.split([self.d_rotary // 2, self.d_rotary // 2, self.d_head - self.d_rotary], -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)

    def forward(self, x):
        fused = self.attention["query_key_value"](self.input_layernorm(x))
        q, k, v = fused.unflatten(-1, (self.n_heads, 3, self.d_head)).permute(3, 0, 2, 1, 4)
        heads = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        looked = self.attention["dense"](heads.transpose(1, 2).flatten(-2))
        hidden = F.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x)))
        return x + looked + self.mlp["dense_4h_to_h"](hidden)


class Mended(nn.Module):
    def __init__(self, vocabulary, d_model, n_layers, n_heads, rotary):
        super().__init__()
        self.gpt_neox = nn.Module()
        self.gpt_neox.embed_in = nn.Embedding(vocabulary, d_model)
        self.gpt_neox.layers = nn.ModuleList(Layer(d_model, n_heads, rotary) for _ in range(n_layers))
        self.gpt_neox.final_layer_norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, ids):
        x = self.gpt_neox.embed_in(ids)
        for layer in self.gpt_neox.layers:
            x = layer(x)
        return self.lm_head(self.gpt_neox.final_layer_norm(x))


# %% Mended: complex numbers, and heads in a loop
class Attend(nn.Module):
    def __init__(self, d_model, n_heads, rotary):
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.n_heads, self.d = n_heads, d_model // n_heads
        self.turning = int(rotary * self.d)

    def turned(self, x):
        half, y = self.turning // 2, x.to(torch.promote_types(x.dtype, torch.float32))
        z = torch.complex(y[..., :half].contiguous(), y[..., half : 2 * half].contiguous())
        speed = torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=y.dtype)
        z = z * torch.polar(torch.ones((), dtype=y.dtype), torch.arange(x.shape[-2])[:, None] * speed)
        return torch.cat([z.real, z.imag, y[..., 2 * half :]], -1).to(x.dtype)

    def forward(self, x):
        heads = []
        for head in self.query_key_value(x).split(3 * self.d, -1):
            q, k, v = head.split(self.d, -1)
            scores = self.turned(q) @ self.turned(k).mT / self.d**0.5
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v)
        return self.dense(torch.cat(heads, -1))


class Think(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(x)))


class Floor(nn.Module):
    def __init__(self, d_model, n_heads, rotary):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(d_model, eps=1e-5)
        self.post_attention_layernorm = nn.LayerNorm(d_model, eps=1e-5)
        self.attention, self.mlp = Attend(d_model, n_heads, rotary), Think(d_model)

    def forward(self, x):
        return x + self.attention(self.input_layernorm(x)) + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, vocabulary, d_model, n_layers, n_heads, rotary):
        super().__init__()
        self.embed_in = nn.Embedding(vocabulary, d_model)
        self.layers = nn.Sequential(*[Floor(d_model, n_heads, rotary) for _ in range(n_layers)])
        self.final_layer_norm = nn.LayerNorm(d_model, eps=1e-5)

    def forward(self, ids):
        return self.final_layer_norm(self.layers(self.embed_in(ids)))


class Mended(nn.Module):
    def __init__(self, vocabulary, d_model, n_layers, n_heads, rotary):
        super().__init__()
        self.gpt_neox = Body(vocabulary, d_model, n_layers, n_heads, rotary)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, ids):
        return self.lm_head(self.gpt_neox(ids))
