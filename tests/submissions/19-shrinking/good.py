# %% a helper
def largest_magnitude(x, axis=None):
    """Largest |x|, over everything or over all dimensions but one (those stay, with size 1)."""
    x = x.float().abs()
    if axis is None:
        return x.max()
    for dim in range(x.dim()):
        if dim != axis % x.dim():
            x = x.max(dim=dim, keepdim=True).values
    return x


# %% magnitude_mask
def magnitude_mask(weights, sparsity):
    weights = list(weights)
    every = torch.cat([w.detach().reshape(-1).abs() for w in weights])
    n_pruned = round(sparsity * every.numel())
    # sorting, not a threshold: equal weights would all go or all stay
    order = torch.argsort(every)
    keep = torch.zeros(every.numel(), dtype=torch.bool)
    keep[order[n_pruned:]] = True
    masks = []
    for w in weights:
        masks.append(keep[: w.numel()].reshape(w.shape))
        keep = keep[w.numel() :]
    return masks


# %% wanda_mask
def wanda_mask(weight, x, n, m):
    n_out, n_in = weight.shape
    if n_in % m:
        raise ValueError(f"The row has n_in = {n_in} weights, which cannot be cut into groups of m = {m}.")
    loudness = x.reshape(-1, n_in).float().pow(2).sum(0).sqrt()
    groups = (weight.detach().abs() * loudness).reshape(n_out * n_in // m, m)
    place = groups.sort(dim=1, descending=True).indices[:, :n]
    mask = torch.zeros_like(groups, dtype=torch.bool)
    for row in range(len(groups)):
        mask[row, place[row]] = True
    return mask.reshape(n_out, n_in)


# %% quantize_int8
def quantize_int8(x, axis=None):
    top = largest_magnitude(x, axis)
    scale = top / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(x.float() / scale).to(torch.int8), scale


# %% DynamicInt8Linear
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        with torch.no_grad():
            q, s = quantize_int8(linear.weight, axis=0)
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", s)
        if linear.bias is None:
            self.bias = None
        else:
            self.register_buffer("bias", linear.bias.detach().clone().float())

    @torch.no_grad()
    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        q, s = quantize_int8(tokens, axis=0)
        total = q.int() @ self.weight.int().t()
        y = total.float() * s * self.weight_scale.view(1, -1)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], -1).to(x.dtype)


# %% StaticInt8Linear
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        with torch.no_grad():
            q, s = quantize_int8(linear.weight, axis=0)
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", s)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        if linear.bias is None:
            self.bias = None
        else:
            self.register_buffer("bias", linear.bias.detach().clone().float())

    @torch.no_grad()
    def observe(self, x):
        x = x.float()
        if x.min() < self.low:
            self.low.fill_(x.min())
        if x.max() > self.high:
            self.high.fill_(x.max())

    @torch.no_grad()
    def forward(self, x):
        if self.low.item() == self.high.item():
            raise RuntimeError("Not calibrated yet. Run layer.observe(x) on a few typical inputs.")
        scale = (self.high - self.low) / 255
        zero = -128 - torch.round(self.low / scale)
        steps = torch.clamp(torch.round(x.float() / scale) + zero, -128, 127)
        # take the zero point out before the product: the same sum, in exact integers
        total = (steps - zero).int() @ self.weight.int().t()
        y = total.float() * scale * self.weight_scale.view(-1)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


# %% fake_quantize
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    scale = scale.detach()
    steps = torch.round(x.detach().float() / scale)
    rounded = (steps.clamp(-top, top) * scale).to(x.dtype)
    passes = (steps >= -top) & (steps <= top)
    straight = torch.where(passes, x, x.detach())
    return straight + (rounded - straight).detach()
