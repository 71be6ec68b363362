# %% A helper for both kinds of layer
def check_rank(rank):
    """LoRA without a rank is no LoRA."""
    if rank < 1:
        raise ValueError(f"The rank must be at least 1, but it is {rank}.")


# %% LoRALinear
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        check_rank(rank)
        for p in linear.parameters():
            p.requires_grad_(False)
        self.linear = linear
        d_out, d_in = linear.weight.shape
        self.lora_A = nn.Parameter(torch.randn(rank, d_in).to(linear.weight) / rank)
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank).to(linear.weight))
        self.alpha_over_r = alpha / rank
        self.merged = False

    def forward(self, x):
        y = self.linear(x)
        if not self.merged:
            small = F.linear(x, self.lora_A)  # (..., rank): never build the big matrix here
            y = y + self.alpha_over_r * F.linear(small, self.lora_B)
        return y

    def _add(self, sign):
        with torch.no_grad():
            self.linear.weight.add_(self.lora_B @ self.lora_A, alpha=sign * self.alpha_over_r)

    def merge(self):
        if not self.merged:
            self._add(+1)
        self.merged = True

    def unmerge(self):
        if self.merged:
            self._add(-1)
        self.merged = False


# %% inject
def last_part(name):
    return name.split(".")[-1]


def inject(model, targets, rank, alpha):
    # collect first, replace later: a LoRALinear has a module called "linear" inside
    hits = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and last_part(name) in targets:
            hits.append((name, module))
    if not hits:
        raise ValueError(f"No nn.Linear in this model has a name that ends in one of {list(targets)}.")
    for p in model.parameters():
        p.requires_grad_(False)
    for name, module in hits:
        parent = model
        *path, last = name.split(".")
        for step in path:
            parent = getattr(parent, step)
        setattr(parent, last, LoRALinear(module, rank, alpha))
    return [name for name, _ in hits]


def adapter_state(model):
    with torch.no_grad():
        return {
            name: value.detach().clone()
            for name, value in model.state_dict().items()
            if last_part(name) in {"lora_A", "lora_B"}
        }


# %% sft_loss
def sft_loss(logits, ids, prompt_lengths, lengths):
    # what position t says is about token t + 1, so shift first and then think about tokens only
    said, asked = logits[:, :-1].float(), ids[:, 1:]
    t = torch.arange(1, ids.shape[1])
    in_answer = (t >= prompt_lengths[:, None]) & (t < lengths[:, None])
    labels = asked.masked_fill(~in_answer, -100)
    total = F.cross_entropy(said.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / max(int(in_answer.sum()), 1)


# %% nf4_quantize
BORDERS = (NF4[1:] + NF4[:-1]) / 2


def nf4_quantize(x, block=64):
    with torch.no_grad():
        x = x.detach().flatten().to(torch.float32)
        codes, absmax = [], []
        for part in torch.split(x, block):
            biggest = part.abs().max()
            absmax.append(biggest)
            scaled = part / biggest if biggest > 0 else part
            codes.append(torch.bucketize(scaled, BORDERS))
        codes = torch.cat(codes)
        if len(codes) % 2 == 1:
            codes = torch.cat([codes, torch.tensor([7])])  # number 7 is 0.0
        packed = codes[0::2] * 16 + codes[1::2]
        return packed.to(torch.uint8), torch.stack(absmax)


def nf4_dequantize(packed, absmax, shape, block=64):
    high, low = packed // 16, packed % 16
    codes = torch.stack([high, low], dim=1).flatten().long()
    n = math.prod(shape)
    values = NF4[codes[:n]]
    which = torch.arange(n) // block
    return (values * absmax[which]).reshape(tuple(shape))


# %% double_quantize
DYNAMIC_BORDERS = (DYNAMIC[1:] + DYNAMIC[:-1]) / 2


def double_quantize(absmax, block=256):
    mean = absmax.mean()
    codes, scales = [], []
    for part in torch.split(absmax - mean, block):
        scale = part.abs().max()
        scales.append(scale)
        codes.append(torch.bucketize(part / scale.clamp(min=1e-30), DYNAMIC_BORDERS).to(torch.uint8))
    return torch.cat(codes), torch.stack(scales), mean


def double_dequantize(codes, scales, mean, block=256):
    which = torch.arange(len(codes)) // block
    return DYNAMIC[codes.long()] * scales[which] + mean


# %% QLoRALinear
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        check_rank(rank)
        self.size = tuple(linear.weight.shape)
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", linear.bias.detach().clone().float() if linear.bias is not None else None)
        self.lora_A = nn.Parameter(torch.randn(rank, self.size[1]) / rank)
        self.lora_B = nn.Parameter(torch.zeros(self.size[0], rank))
        self.alpha_over_r = alpha / rank

    def forward(self, x):
        def like_x(tensor):
            return None if tensor is None else tensor.to(x.dtype)

        weight = nf4_dequantize(self.packed, self.absmax, self.size)
        y = F.linear(x, like_x(weight), like_x(self.bias))
        return y + self.alpha_over_r * F.linear(F.linear(x, like_x(self.lora_A)), like_x(self.lora_B))
