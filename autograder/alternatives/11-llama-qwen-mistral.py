# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% read_config: a table of keys, and one function for each part
RENAMED = {
    "vocabulary": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_hidden": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}


def rope_of(config):
    merged = {"rope_theta": config.get("rope_theta", None)}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            merged.update(config[key])
    theta = 10000.0 if merged["rope_theta"] is None else float(merged["rope_theta"])
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"RoPE of the type {kind} cannot be done")
    numbers = {name: float(merged[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    return theta, RopeScaling(original_length=merged["original_max_position_embeddings"], **numbers)


def windows_of(config):
    layers = range(config["num_hidden_layers"])
    match config["model_type"]:
        case "mistral":
            return tuple(config.get("sliding_window") for _ in layers)
        case "qwen2" | "qwen3" if config.get("use_sliding_window", False):
            if config.get("layer_types") is not None:
                slides = [kind.startswith("sliding") for kind in config["layer_types"]]
            else:
                slides = [i >= config["max_window_layers"] for i in layers]
            return tuple(config["sliding_window"] if slide else None for slide in slides)
        case _:
            return tuple(None for _ in layers)


def read_config(config):
    known = ["llama", "mistral", "qwen2", "qwen3"]
    if config.get("model_type") not in known:
        raise ValueError(f"model_type {config.get('model_type')!r} is none of {known}")
    for key, allowed in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
        value = config.get(key)
        if value is not None and value != allowed:
            raise ValueError(f"{key} = {value!r} is not supported, only {allowed!r}")
    found = {ours: config[theirs] for ours, theirs in RENAMED.items()}
    found["norm_eps"] = float(found["norm_eps"])
    theta, scaling = rope_of(config)
    kv, head, tied = (config.get(key) for key in ("num_key_value_heads", "head_dim", "tie_word_embeddings"))
    return DecoderConfig(
        **found,
        n_kv_heads=found["n_heads"] if kv is None else kv,
        d_head=found["d_model"] // found["n_heads"] if head is None else head,
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=config["model_type"] == "qwen2",
        qk_norm=config["model_type"] == "qwen3",
        windows=windows_of(config),
        tied=False if tied is None else tied,
    )


# %% read_config: step by step, on a copy without nulls
def read_config(config):
    config = {key: value for key, value in dict(config).items() if value is not None}
    family = config.pop("model_type", "nothing")
    if family not in "llama mistral qwen2 qwen3".split():
        raise ValueError("the model_type of this file is " + family + ", which is not known")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError("hidden_act " + config["hidden_act"])
    if config.get("attention_bias", False) or config.get("mlp_bias", False):
        raise ValueError(f"attention_bias {config.get('attention_bias')}, mlp_bias {config.get('mlp_bias')}")
    rope = config.get("rope_parameters", config.get("rope_scaling", {}))
    base = rope.get("rope_theta", config.get("rope_theta", 10_000))
    if "rope_type" in rope:
        kind = rope["rope_type"]
    elif "type" in rope:
        kind = rope["type"]
    else:
        kind = "default"
    if kind == "llama3":
        scaling = RopeScaling(
            1.0 * rope["factor"],
            1.0 * rope["low_freq_factor"],
            1.0 * rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    elif kind == "default":
        scaling = None
    else:
        raise ValueError("the type of scaling is " + kind)
    windows = []
    for i in range(config["num_hidden_layers"]):
        if family == "mistral":
            windows.append(config.get("sliding_window"))
        elif family == "llama" or not config.get("use_sliding_window", False):
            windows.append(None)
        elif "layer_types" in config:
            windows.append(config["sliding_window"] if config["layer_types"][i] == "sliding_attention" else None)
        else:
            windows.append(None if i < config["max_window_layers"] else config["sliding_window"])
    heads = config["num_attention_heads"]
    return DecoderConfig(
        config["vocab_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads", heads),
        config.get("head_dim", config["hidden_size"] // heads),
        config["intermediate_size"],
        float(config["rms_norm_eps"]),
        float(base),
        scaling,
        family == "qwen2",
        family == "qwen3",
        tuple(windows),
        config.get("tie_word_embeddings", False),
    )


# %% rope_frequencies: pair by pair, with numbers
def rope_frequencies(d_head, theta, scaling=None):
    found = []
    for i in range(d_head // 2):
        omega = theta ** (-2 * i / d_head)
        if scaling is not None:
            wavelength = 2 * math.pi / omega
            longest = scaling.original_length / scaling.low_freq_factor
            shortest = scaling.original_length / scaling.high_freq_factor
            if wavelength > longest:
                omega = omega / scaling.factor
            elif wavelength >= shortest:
                m = scaling.original_length / wavelength - scaling.low_freq_factor
                m = m / (scaling.high_freq_factor - scaling.low_freq_factor)
                omega = (1 - m) * omega / scaling.factor + m * omega
        found.append(omega)
    return torch.tensor(found, dtype=torch.float32)


# %% rope_frequencies: in double precision, with logarithms
def rope_frequencies(d_head, theta, scaling=None):
    pairs = torch.linspace(0, 1, d_head // 2 + 1, dtype=torch.float64)[:-1]
    omega = torch.exp(-math.log(theta) * pairs)
    if scaling is None:
        return omega.float()
    keep = (scaling.original_length / (2 * math.pi) * omega - scaling.low_freq_factor).div(
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    keep = torch.minimum(torch.maximum(keep, torch.zeros(())), torch.ones(()))
    return (omega * (keep + (1 - keep) / scaling.factor)).float()


# %% Attention: by hand, groups as a dimension of their own
class Rms(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return self.weight * x / torch.sqrt(torch.mean(x**2, -1, keepdim=True) + self.eps)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.h, self.g, self.d, self.layer = config.n_heads, config.n_kv_heads, config.d_head, layer
        self.window = config.windows[layer] if len(config.windows) else None
        self.rope = (config.d_head, config.rope_theta, config.rope_scaling)
        for letter, count in {"q": self.h, "k": self.g, "v": self.g}.items():
            setattr(self, f"{letter}_proj", nn.Linear(config.d_model, count * self.d, bias=config.qkv_bias))
        self.o_proj = nn.Linear(self.h * self.d, config.d_model, bias=False)
        self.q_norm = Rms(self.d, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = Rms(self.d, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x, mask=None, cache=None):
        b, n, _ = x.shape
        start = cache.length(self.layer) if cache is not None else 0
        real = torch.ones((b, start + n), dtype=torch.bool) if mask is None else mask
        at = (torch.cumsum(real.long(), 1) - 1).clamp(min=0)[:, start:]
        turn = torch.polar(torch.ones(()), at[:, :, None, None] * rope_frequencies(*self.rope))

        def turned(t):
            half = self.d // 2
            pairs = torch.complex(t[..., :half].float(), t[..., half:].float()) * turn
            return torch.cat((pairs.real, pairs.imag), -1).to(t.dtype)

        q = turned(self.q_norm(self.q_proj(x).view(b, n, self.h, self.d)))
        k = turned(self.k_norm(self.k_proj(x).view(b, n, self.g, self.d))).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.g, self.d).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        q = q.view(b, n, self.g, self.h // self.g, self.d)
        scores = torch.einsum("bigrd,bgjd->bgrij", q, k) / self.d**0.5
        distance = torch.arange(start, start + n)[:, None] - torch.arange(start + n)[None]
        hidden = distance < 0
        if self.window is not None:
            hidden = hidden | (distance >= self.window)
        hidden = hidden[None] | ~real[:, None]
        scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
        weights = torch.nan_to_num(torch.softmax(scores, -1))
        return self.o_proj(torch.einsum("bgrij,bgjd->bigrd", weights, v).reshape(b, n, -1))


# %% Attention: a mask of numbers, and heads side by side
class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        wide, narrow = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.o_proj = nn.Linear(wide, config.d_model, False)
        self.v_proj = nn.Linear(config.d_model, narrow, config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, narrow, config.qkv_bias)
        self.q_proj = nn.Linear(config.d_model, wide, config.qkv_bias)
        if config.qk_norm:
            self.k_norm = nn.RMSNorm(config.d_head, eps=config.norm_eps)
            self.q_norm = nn.RMSNorm(config.d_head, eps=config.norm_eps)

    def heads(self, name, x):
        found = torch.stack(getattr(self, f"{name}_proj")(x).split(self.config.d_head, -1), 1)
        return getattr(self, f"{name}_norm")(found) if self.config.qk_norm and name != "v" else found

    def forward(self, x, mask=None, cache=None):
        past = 0
        if cache is not None:
            past = cache.length(self.layer)
        total = past + x.shape[1]
        if mask is None:
            mask = x.new_ones(x.shape[0], total).bool()
        padding = (~mask).sum(-1, keepdim=True)
        positions = (torch.arange(past, total) - padding).clamp_min(0)
        omega = rope_frequencies(self.config.d_head, self.config.rope_theta, self.config.rope_scaling)
        phi = torch.einsum("bn,c->bnc", positions.float(), omega).unsqueeze(1).repeat(1, 1, 1, 2)
        sign = torch.ones(self.config.d_head, dtype=x.dtype)
        sign[: self.config.d_head // 2] = -1
        q, k, v = (self.heads(name, x) for name in "qkv")
        q, k = (
            t * phi.cos().to(t.dtype) + t.roll(self.config.d_head // 2, -1) * sign * phi.sin().to(t.dtype)
            for t in (q, k)
        )
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        window = (self.config.windows or [None] * 99)[self.layer] or total
        allowed = torch.ones(total, total, dtype=torch.bool).tril().triu(1 - window)[past:] & mask[:, None]
        bias = torch.zeros(allowed.shape, dtype=x.dtype).masked_fill(~allowed, -math.inf)
        outputs = []
        for i in range(self.config.n_heads):
            j = i // (self.config.n_heads // self.config.n_kv_heads)
            weights = (q[:, i] @ k[:, j].mT * self.config.d_head**-0.5 + bias).softmax(-1)
            outputs.append(torch.where(allowed, weights, 0) @ v[:, j])
        return self.o_proj(torch.cat(outputs, -1))


# %% Decoder: one class, parts in dictionaries
class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, h, eps = config.d_model, config.d_hidden, config.norm_eps
        self.tied = config.tied
        self.tokens = nn.Embedding(config.vocabulary, d)
        self.blocks = nn.ModuleList()
        for i in range(config.n_layers):
            mlp = {"gate_proj": nn.Linear(d, h, False), "up_proj": nn.Linear(d, h, False)}
            mlp = nn.ModuleDict({**mlp, "down_proj": nn.Linear(h, d, False)})
            parts = {"norm1": nn.RMSNorm(d, eps), "norm2": nn.RMSNorm(d, eps), "mlp": mlp}
            self.blocks.append(nn.ModuleDict({**parts, "attention": Attention(config, i)}))
        self.norm = nn.RMSNorm(d, eps)
        if not self.tied:
            self.head = nn.Linear(d, config.vocabulary, False)

    def forward(self, ids, mask=None, cache=None):
        stream = self.tokens(ids)
        for block in self.blocks:
            stream = stream + block["attention"](block["norm1"](stream), mask=mask, cache=cache)
            y, mlp = block["norm2"](stream), block["mlp"]
            gate = mlp["gate_proj"](y)
            stream = stream + mlp["down_proj"](gate * torch.sigmoid(gate) * mlp["up_proj"](y))
        table = self.tokens.weight if self.tied else self.head.weight
        return torch.einsum("bnd,vd->bnv", self.norm(stream), table)


# %% Decoder: with classes and norms of its own, parameters without nn.Linear
class RMSNorm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).to(x.dtype) * self.weight


class Matrix(nn.Module):
    def __init__(self, rows, columns):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * columns**-0.5)

    def forward(self, x):
        return x @ self.weight.T


class FeedForward(nn.Module):
    def __init__(self, d, hidden):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = Matrix(hidden, d), Matrix(hidden, d), Matrix(d, hidden)

    def forward(self, x):
        return self.down_proj(self.up_proj(x) * F.silu(self.gate_proj(x)))


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(config.d_model, config.norm_eps) for _ in range(2))
        self.attention, self.mlp = Attention(config, number), FeedForward(config.d_model, config.d_hidden)

    def forward(self, x, **more):
        h = x + self.attention(self.norm1(x), **more)
        return h + self.mlp(self.norm2(h))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = Matrix(config.vocabulary, config.d_model)
        self.blocks = nn.Sequential(*(Layer(config, i) for i in range(config.n_layers)))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.register_module("head", None if config.tied else Matrix(config.vocabulary, config.d_model))

    def forward(self, ids, mask=None, cache=None):
        x = self.tokens.weight[ids]
        for layer in self.blocks:
            x = layer(x, mask=mask, cache=cache)
        return (self.head or self.tokens)(self.norm(x))


# %% read_safetensors: read piece by piece, with struct
import struct


def read_safetensors(path):
    with open(path, "rb") as file:
        size = Path(path).stat().st_size
        first = file.read(8)
        if len(first) != 8:
            raise ValueError("not even 8 bytes")
        (length,) = struct.unpack("<Q", first)
        available = size - 8 - length
        if available < 0:
            raise ValueError(f"the header should have {length} bytes, and the file has {size}")
        entries = json.loads(file.read(length).decode("utf-8"))
        tensors = {}
        for name in entries:
            if name == "__metadata__":
                continue
            kind, shape = entries[name]["dtype"], entries[name]["shape"]
            begin, end = entries[name]["data_offsets"]
            if kind not in DTYPES:
                raise ValueError(f"tensor {name}: dtype {kind}")
            if not (0 <= begin and begin <= end and end <= available):
                raise ValueError(f"tensor {name}: bytes {begin}:{end} of {available}")
            value = torch.empty(
                [max(size, 0) for size in shape] if min(shape, default=0) >= 0 else 0, dtype=DTYPES[kind]
            )
            if any(size < 0 for size in shape) or value.nbytes != end - begin:
                raise ValueError(f"tensor {name}: shape {shape} and {end - begin} bytes")
            file.seek(8 + length + begin)
            raw = file.read(end - begin)
            value.flatten().view(torch.uint8).copy_(torch.tensor(list(raw), dtype=torch.uint8))
            tensors[name] = value
    return tensors


# %% read_safetensors: one buffer, and views
def number_of(shape):
    n = 1
    for size in shape:
        if size < 0:
            return -1
        n *= size
    return n


def read_safetensors(path):
    raw = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(raw[:8], byteorder="little", signed=False)
    if start > len(raw) or len(raw) < 8:
        raise ValueError(f"{path} is shorter than its header")
    header = json.loads(bytes(raw[8:start]))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            found[name] = one(name, raw[start:], **entry)
    return found


def one(name, data, dtype, shape, data_offsets):
    begin, end = data_offsets
    if dtype not in DTYPES:
        raise ValueError(f"{name}: {dtype} is no dtype that we know")
    if begin < 0 or begin > end or end > len(data):
        raise ValueError(f"{name} lies outside the data")
    n = number_of(shape)
    if n < 0 or n * DTYPES[dtype].itemsize != end - begin:
        raise ValueError(f"{name} does not have the bytes that {shape} needs")
    if n == 0:
        return torch.zeros(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(data[begin:end], dtype=torch.uint8).clone().view(DTYPES[dtype]).reshape(tuple(shape))


# %% load_hf: from their names to ours, with a regular expression
import os
import re

WORDS = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2", "self_attn": "attention", "mlp": "mlp"}
SINGLE = {
    "model.embed_tokens.weight": "tokens.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}


def ours(name):
    if name in SINGLE:
        return SINGLE[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)\.(.+)", name)
    if match and match[2] in WORDS:
        return f"blocks.{match[1]}.{WORDS[match[2]]}.{match[3]}"
    return None


def theirs(name):
    back = {value: key for key, value in SINGLE.items()}
    if name in back:
        return back[name]
    _, number, part, rest = name.split(".", 3)
    return f"model.layers.{number}.{dict(map(reversed, WORDS.items()))[part]}.{rest}"


def load_hf(folder):
    folder = os.path.realpath(folder)
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    decoder = Decoder(read_config(config))
    names = os.listdir(folder)
    if "model.safetensors.index.json" in names:
        with open(os.path.join(folder, "model.safetensors.index.json")) as file:
            shards = set(json.load(file)["weight_map"].values())
    elif "model.safetensors" in names:
        shards = {"model.safetensors"}
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        bad = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        raise ValueError("Only pickles are here: " + ", ".join(bad) + ". They are programs, and are not run.")
    else:
        raise FileNotFoundError("model.safetensors is not here")
    checkpoint = {}
    for shard in shards:
        real = os.path.realpath(os.path.join(folder, shard))
        if os.path.commonpath([real, folder]) != folder:
            raise ValueError(shard + " is not in the folder")
        checkpoint.update(read_safetensors(real))
    state, wrong = decoder.state_dict(), {"extra": [], "misshapen": [], "missing": []}
    ready = {}
    for name, value in checkpoint.items():
        own = ours(name)
        if name.endswith(".self_attn.rotary_emb.inv_freq") or (name == "lm_head.weight" and own not in state):
            continue
        if own not in state:
            wrong["extra"].append(name)
        elif state[own].shape != value.shape:
            wrong["misshapen"].append(f"{name} {list(value.shape)} for {list(state[own].shape)}")
            ready[own] = None
        else:
            ready[own] = value.float()
    wrong["missing"] = [theirs(name) for name in state if name not in ready]
    if any(wrong.values()):
        raise ValueError(json.dumps(wrong))
    decoder.load_state_dict(ready)
    decoder.eval()
    return decoder


# %% load_hf: parameter by parameter, from a table that is written out
def table(n_layers):
    names = {"tokens": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    for i in range(n_layers):
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        names[f"{block}.norm1"] = f"{layer}.input_layernorm"
        names[f"{block}.norm2"] = f"{layer}.post_attention_layernorm"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            names[f"{block}.attention.{part}"] = f"{layer}.self_attn.{part}"
        for part in ("gate_proj", "up_proj", "down_proj"):
            names[f"{block}.mlp.{part}"] = f"{layer}.mlp.{part}"
    return names


def files_of(folder):
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        yield from dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values())
    elif (folder / "model.safetensors").is_file():
        yield "model.safetensors"
    else:
        for pattern in ("*.bin", "*.pt", "*.pth"):
            for file in folder.glob(pattern):
                raise ValueError(f"{file.name}: a pickle can run anything, so it is not opened")
        raise FileNotFoundError(f"no model.safetensors in {folder}")


@torch.no_grad()
def load_hf(folder):
    folder = Path(folder).resolve()
    config = read_config(json.loads((folder / "config.json").read_bytes()))
    names, found = table(config.n_layers), {}
    for file in files_of(folder):
        place = (folder / file).resolve()
        if not str(place).startswith(f"{folder}/"):
            raise ValueError(f"{file} is outside of {folder}")
        found |= read_safetensors(str(place))
    model, told = Decoder(config), []
    for name, parameter in model.named_parameters():
        layer, part = name.rsplit(".", 1)
        key = f"{names[layer]}.{part}"
        value = found.pop(key, None)
        if value is None:
            told.append(f"{key} is not there")
        elif value.shape != parameter.shape:
            told.append(f"{key} has the shape {tuple(value.shape)}, where {tuple(parameter.shape)} is needed")
        else:
            parameter.copy_(value)
    if config.tied:
        found.pop("lm_head.weight", None)
    told += [f"{key} is one too many" for key in found if not key.endswith(".rotary_emb.inv_freq")]
    if told:
        raise ValueError("\n".join(told))
    return model.train(False)
