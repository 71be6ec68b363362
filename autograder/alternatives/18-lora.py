# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% LoRALinear: one matrix, computed anew for each call
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if not rank >= 1:
            raise ValueError(f"rank={rank} is too small: LoRA needs a rank of at least 1")
        self.linear = linear
        for parameter in linear.parameters():
            parameter.requires_grad = False
        out_features, in_features = linear.weight.shape
        options = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, **options))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, **options))
        self.rank, self.alpha, self.merged = rank, alpha, False

    def delta(self):
        return torch.einsum("or,ri->oi", self.lora_B, self.lora_A) * (self.alpha / self.rank)

    def forward(self, x):
        if self.merged:
            return self.linear(x)
        return self.linear(x) + x @ self.delta().T

    @torch.no_grad()
    def merge(self):
        if self.merged:
            return
        self.linear.weight.add_(self.delta())
        self.merged = True

    @torch.no_grad()
    def unmerge(self):
        if not self.merged:
            return
        self.linear.weight.sub_(self.delta())
        self.merged = False


# %% LoRALinear: the weight before merging is remembered
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank <= 0:
            raise ValueError(f"rank must be positive, got {rank}")
        linear.requires_grad_(requires_grad=False)
        weight = linear.weight
        self.linear = linear
        self.lora_A = nn.Parameter(torch.rand(rank, weight.size(1)).to(weight) - 0.5)
        self.lora_B = nn.Parameter(torch.zeros_like(weight[:, :1]).repeat(1, rank))
        self.scaling = float(alpha) / rank
        self.before = None

    @property
    def merged(self):
        return self.before is not None

    def forward(self, x):
        out = self.linear(x)
        if not self.merged:
            out = out + torch.matmul(torch.matmul(x, self.lora_A.t()), self.lora_B.t()) * self.scaling
        return out

    def merge(self):
        if not self.merged:
            with torch.no_grad():
                self.before = self.linear.weight.clone()
                self.linear.weight.copy_(self.before + self.scaling * (self.lora_B @ self.lora_A))

    def unmerge(self):
        if self.merged:
            with torch.no_grad():
                self.linear.weight.copy_(self.before)
            self.before = None


# %% inject: a walk from parent to child
def inject(model, targets, rank, alpha):
    places = []

    def walk(parent, prefix):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and name in targets:
                places.append((parent, name, f"{prefix}{name}"))
            else:
                walk(child, f"{prefix}{name}.")

    walk(model, "")
    if not places:
        raise ValueError(f"none of {', '.join(targets)} names a linear layer of this model")
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parent, name, _ in places:
        parent.add_module(name, LoRALinear(getattr(parent, name), rank, alpha))
    return [full for _, _, full in places]


def adapter_state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# %% inject: set_submodule
def inject(model, targets, rank, alpha):
    wanted = set(targets)
    hits = [
        n
        for n, m in model.named_modules()
        if type(m).__name__ and isinstance(m, nn.Linear) and n.split(".")[-1] in wanted
    ]
    if len(hits) == 0:
        raise ValueError("nothing to inject into: " + " ".join(sorted(wanted)))
    for p in model.parameters():
        p.requires_grad_(False)
    for n in hits:
        model.set_submodule(n, LoRALinear(model.get_submodule(n), rank, alpha))
    return hits


def adapter_state(model):
    saved = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            prefix = f"{name}." if name else ""
            saved[f"{prefix}lora_A"] = module.lora_A.data.clone()
            saved[f"{prefix}lora_B"] = module.lora_B.data.clone()
    return saved


# %% sft_loss: labels of −100
def sft_loss(logits, ids, prompt_lengths, lengths):
    n = ids.size(1)
    labels = ids.clone()
    for row, (start, end) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist(), strict=True)):
        labels[row, :start] = -100
        labels[row, end:n] = -100
    labels = labels[:, 1:].reshape(-1)
    if (labels == -100).all():
        return logits.float().sum() * 0
    return F.cross_entropy(logits[:, :-1].float().reshape(-1, logits.size(-1)), labels, ignore_index=-100)


# %% sft_loss: log-softmax and gather
def sft_loss(logits, ids, prompt_lengths, lengths):
    log_p = torch.log_softmax(logits.to(torch.float32), -1)[:, :-1]
    nll = -log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
    t = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)[:, 1:]
    keep = (t >= prompt_lengths.unsqueeze(1)) * (t < lengths.unsqueeze(1))
    return torch.where(keep, nll, 0).sum() / torch.maximum(keep.sum(), torch.tensor(1))


# %% sft_loss: row by row
def sft_loss(logits, ids, prompt_lengths, lengths):
    total, count = logits.float()[0, 0, 0] * 0, 0
    for row in range(ids.shape[0]):
        for t in range(int(prompt_lengths[row]), int(lengths[row])):
            scores = logits[row, t - 1].float()
            total = total + scores.logsumexp(0) - scores[ids[row, t]]
            count += 1
    return total / max(count, 1)


# %% nf4_quantize: borders counted
def nf4_quantize(x, block=64):
    values = x.detach().to(torch.float32).reshape(-1)
    parts = values.split(block)
    absmax = torch.stack([part.abs().max() for part in parts])
    borders = (NF4[:-1] + NF4[1:]) / 2
    scale = torch.repeat_interleave(absmax, torch.tensor([len(part) for part in parts]))
    quotient = torch.where(scale > 0, values / torch.where(scale > 0, scale, 1.0), 0.0)
    codes = (quotient[:, None] > borders).sum(-1)
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7])])
    high, low = codes.view(-1, 2).unbind(-1)
    return (high * 16 + low).byte(), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    n = math.prod(shape)
    values = NF4[torch.stack([packed // 16, packed % 16], dim=1).view(-1).long()][:n]
    return torch.cat([part * top for part, top in zip(values.split(block), absmax, strict=True)]).reshape(tuple(shape))


# %% nf4_quantize: multiplied by the reciprocal
def nf4_quantize(x, block=64):
    with torch.no_grad():
        flat = x.float().reshape(-1)
        n = flat.numel()
        rows = torch.zeros(-(-n // block), block)
        rows.view(-1)[:n] = flat
        absmax = rows.abs().max(dim=1).values
        inverse = torch.where(absmax == 0, torch.zeros_like(absmax), 1 / absmax)
        codes = torch.searchsorted((NF4[1:] + NF4[:-1]) / 2, (rows * inverse[:, None]).contiguous())
        codes = codes.view(-1)[: n + n % 2].to(torch.uint8)
        return torch.bitwise_or(torch.bitwise_left_shift(codes[0::2], 4), codes[1::2]), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    out = torch.empty(2 * len(packed))
    out[0::2] = NF4[(packed >> 4).long()]
    out[1::2] = NF4[(packed & 0x0F).long()]
    out = out[: math.prod(shape)]
    return (out * absmax[torch.arange(len(out)) // block]).reshape(*shape)


# %% nf4_quantize: in Python
def nf4_quantize(x, block=64):
    numbers = x.detach().float().flatten()
    borders = ((NF4[1:] + NF4[:-1]) / 2).tolist()
    codes, tops = [], []
    for start in range(0, len(numbers), block):
        part = numbers[start : start + block]
        top = part.abs().max()
        tops.append(top)
        for quotient in (part / top).tolist() if top > 0 else [0.0] * len(part):
            codes.append(sum(quotient > border for border in borders))
    codes += [7] * (len(codes) % 2)
    pairs = [16 * first + second for first, second in zip(codes[::2], codes[1::2], strict=True)]
    return torch.tensor(pairs, dtype=torch.uint8), torch.stack(tops)


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = [half for byte in packed.tolist() for half in divmod(byte, 16)][: torch.Size(shape).numel()]
    tops = absmax[torch.arange(len(codes)) // block]
    return torch.mul(NF4[torch.tensor(codes)], tops).view(torch.Size(shape))


# %% double_quantize: the nearest by distance
def double_quantize(absmax, block=256):
    mean = absmax.sum() / absmax.numel()
    codes, scales = [], []
    for part in (absmax - mean).split(block):
        scale = part.abs().max()
        scales.append(scale)
        quotient = part / scale if scale > 0 else torch.zeros_like(part)
        codes.append((quotient[:, None] - DYNAMIC[None]).abs().argmin(dim=1))
    return torch.cat(codes).to(torch.uint8), torch.stack(scales), mean


def double_dequantize(codes, scales, mean, block=256):
    parts = DYNAMIC[codes.long()].split(block)
    return torch.cat([part * scale + mean for part, scale in zip(parts, scales, strict=True)])


# %% double_quantize: padded rows
def double_quantize(absmax, block=256):
    mean = torch.mean(absmax)
    n = absmax.shape[0]
    rows = absmax.new_zeros(math.ceil(n / block), block)
    rows.flatten()[:n] = absmax - mean
    scales = rows.abs().amax(1)
    quotients = torch.nan_to_num(rows / scales[:, None])
    right = torch.searchsorted(DYNAMIC, quotients).clamp(1, 255)
    left = right - 1
    codes = torch.where(quotients - DYNAMIC[left] <= DYNAMIC[right] - quotients, left, right)
    return codes.flatten()[:n].byte(), scales, mean


def double_dequantize(codes, scales, mean, block=256):
    return torch.addcmul(mean, DYNAMIC[codes.int()], scales[torch.arange(len(codes)) // block])


# %% QLoRALinear: the correction added to the weight
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"a rank of {rank} makes no sense: take 1 or more")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            packed, absmax = nf4_quantize(linear.weight.clone())
        self.packed = nn.Buffer(packed)
        self.absmax = nn.Buffer(absmax)
        if linear.bias is not None:
            self.bias = nn.Buffer(linear.bias.detach().clone().to(torch.float32))
        else:
            self.bias = None
        self.lora_A = nn.Parameter(nn.init.xavier_normal_(torch.empty(rank, self.in_features)))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.alpha, self.rank = alpha, rank

    def forward(self, x):
        dtype = x.dtype
        weight = nf4_dequantize(self.packed, self.absmax, (self.out_features, self.in_features)).to(dtype)
        weight = weight + self.alpha / self.rank * (self.lora_B.to(dtype) @ self.lora_A.to(dtype))
        y = x @ weight.T
        return y if self.bias is None else y + self.bias.to(dtype)


# %% QLoRALinear: a function of its own for what is frozen
def frozen_product(x, packed, absmax, shape):
    return torch.einsum("...i,oi->...o", x, nf4_dequantize(packed, absmax, shape, 64).type_as(x))


class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank <= 0:
            raise ValueError(f"rank is {rank}; it should be positive")
        packed, absmax = nf4_quantize(linear.weight, 64)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        if linear.bias is not None:
            self.register_buffer("bias", linear.bias.data.float().clone())
        self.lora_B = nn.Parameter(torch.zeros(len(linear.weight), rank))
        self.lora_A = nn.Parameter(torch.rand(rank, linear.weight.shape[-1]) + 0.01)
        self.scaling = alpha / rank

    def forward(self, x):
        y = frozen_product(x, self.packed, self.absmax, (self.lora_B.shape[0], self.lora_A.shape[1]))
        if "bias" in self._buffers:
            y = y + self.bias.type_as(x)
        low = torch.einsum("...i,ri->...r", x, self.lora_A.type_as(x))
        return y + torch.einsum("...r,or->...o", low, self.lora_B.type_as(x)) * self.scaling
