# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% magnitude_mask: what stays is picked with topk
def magnitude_mask(weights, sparsity):
    flat = torch.hstack([weight.abs().reshape(-1) for weight in weights])
    stays = flat.numel() - round(flat.numel() * sparsity)
    mask = torch.zeros(flat.numel(), dtype=torch.bool).scatter_(0, flat.topk(stays).indices, True)
    masks, start = [], 0
    for weight in weights:
        masks.append(mask[start : start + weight.numel()].reshape(weight.shape))
        start += weight.numel()
    return masks


# %% magnitude_mask: ranks, in plain Python
def magnitude_mask(weights, sparsity):
    entries = [(abs(value), i, j) for i, w in enumerate(weights) for j, value in enumerate(w.flatten().tolist())]
    entries.sort()
    masks = [torch.ones(w.numel(), dtype=torch.bool) for w in weights]
    for _, i, j in entries[: round(sparsity * len(entries))]:
        masks[i][j] = False
    return [mask.reshape(w.shape) for mask, w in zip(masks, weights, strict=True)]


# %% magnitude_mask: a threshold, and ties given out one by one
def magnitude_mask(weights, sparsity):
    every = torch.cat([w.abs().flatten() for w in weights])
    to_go = round(sparsity * every.numel())
    if to_go == 0:
        return [torch.ones(w.shape, dtype=torch.bool) for w in weights]
    threshold = every.kthvalue(to_go).values
    ties = to_go - int((every < threshold).sum())
    masks = []
    for w in weights:
        mask = (w.abs() > threshold).flatten()
        tied = (w.abs() == threshold).flatten().nonzero().flatten()
        mask[tied[ties:]] = True
        ties = max(0, ties - len(tied))
        masks.append(mask.view(w.shape))
    return masks


# %% wanda_mask: sorted twice for ranks
def wanda_mask(weight, x, n, m):
    n_out, n_in = weight.shape
    if n_in % m != 0:
        raise ValueError(f"cannot cut {n_in} columns into groups of {m}")
    loudness = x.to(torch.float32).pow(2).reshape(-1, n_in).sum(dim=0).sqrt()
    scores = (weight.abs() * loudness).reshape(n_out, n_in // m, m)
    ranks = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
    return (ranks < n).reshape(n_out, n_in)


# %% wanda_mask: rows and groups in loops
def wanda_mask(weight, x, n, m):
    n_in = weight.size(1)
    if n_in // m * m != n_in:
        raise ValueError(f"m = {m} does not divide n_in = {n_in}")
    tokens = x.reshape(-1, n_in).double()
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for i in range(weight.size(0)):
        for first in range(0, n_in, m):
            scores = [(abs(weight[i, j].item()) * tokens[:, j].norm().item(), j) for j in range(first, first + m)]
            for _, j in sorted(scores, reverse=True)[:n]:
                mask[i, j] = True
    return mask


# %% wanda_mask: the lowest are struck out
def wanda_mask(weight, x, n, m):
    if weight.shape[-1] % m:
        raise ValueError(f"{weight.shape[-1]} inputs are no whole number of groups of {m}")
    norms = torch.linalg.vector_norm(x.float(), dim=tuple(range(x.dim() - 1))) if x.dim() > 1 else x.float().abs()
    groups = torch.einsum("oi,i->oi", weight.abs(), norms).view(-1, m)
    keep = torch.full(groups.shape, True)
    keep.scatter_(1, groups.topk(m - n, largest=False).indices, False)
    return keep.view(weight.shape)


# %% quantize_int8: slices in front
def quantize_int8(x, axis=None):
    values = x.to(torch.float32)
    if axis is None:
        top = values.abs().max()
        scale = top / 127 if top > 0 else torch.tensor(1.0)
        return torch.round(values / scale).to(torch.int8), scale
    slices = values.transpose(0, axis)
    top = slices.reshape(slices.shape[0], -1).abs().max(dim=1).values
    scale = (top / 127).masked_fill(top == 0, 1.0).reshape([-1] + [1] * (x.dim() - 1)).transpose(0, axis)
    return torch.round(values / scale).to(torch.int8), scale


# %% quantize_int8: one reduction after another
def quantize_int8(x, axis=None):
    x = x.detach().float()
    top = x.abs()
    for dim in range(x.ndim):
        if axis is None or dim != axis and dim != axis + x.ndim:
            top = top.amax(dim=dim, keepdim=True)
    if axis is None:
        top = top.reshape(())
    scale = top.div(127.0)
    scale = scale + (scale == 0).float()
    q = torch.clamp(torch.round(x / scale), -127, 127)
    return q.type(torch.int8), scale


# %% DynamicInt8Linear: int32 products
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        with torch.no_grad():
            q, s = quantize_int8(linear.weight, 0)
            self.register_buffer("weight", q.clone())
            self.register_buffer("weight_scale", s.clone())
            if linear.bias is not None:
                self.register_buffer("bias", linear.bias.clone().float())

    @torch.no_grad()
    def forward(self, x):
        n_in = self.weight.shape[1]
        rows = x.reshape(-1, n_in)
        q, s = quantize_int8(rows, 0)
        total = torch.matmul(q.to(torch.int32), self.weight.to(torch.int32).t()).to(torch.float32)
        out = total * (s * self.weight_scale.squeeze(1))
        if hasattr(self, "bias"):
            out += self.bias
        return out.reshape(x.shape[:-1] + (self.weight.shape[0],)).to(x.dtype)


# %% DynamicInt8Linear: whole numbers in float64
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, weight_scale = quantize_int8(linear.weight.data, axis=-2)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", linear.bias.data.float().clone() if linear.bias is not None else None)

    def forward(self, x):
        scale = x.float().abs().amax(-1, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        q = torch.round(x.float() / scale).double()
        y = (q @ self.weight.double().T).float() * scale * self.weight_scale[:, 0]
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: the zero point taken off the inputs
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        q, s = quantize_int8(linear.weight.detach(), 0)
        buffers = {"weight": q, "weight_scale": s, "low": torch.zeros(()), "high": torch.zeros(())}
        if linear.bias is not None:
            buffers["bias"] = linear.bias.detach().clone().float()
        for name, value in buffers.items():
            self.register_buffer(name, value)

    @torch.no_grad()
    def observe(self, x):
        self.low.copy_(min(self.low.item(), x.min().item()))
        self.high.copy_(max(self.high.item(), x.max().item()))

    @torch.no_grad()
    def forward(self, x):
        low, high = self.low.item(), self.high.item()
        if high - low <= 0:
            raise RuntimeError("not calibrated: run observe on some inputs before using this layer")
        scale = torch.tensor((high - low) / 255)
        zero = -128 - round(low / scale.item())
        q = torch.clamp(torch.round(x.float() / scale) + zero, -128, 127)
        centred = (q - zero).to(torch.int32)
        out = torch.einsum("...j,ij->...i", centred, self.weight.to(torch.int32)).float()
        out = out * scale * self.weight_scale.flatten()
        if "bias" in dict(self.named_buffers()):
            out = out + self.bias
        return out.to(x.dtype)


# %% StaticInt8Linear: an integer kernel on unsigned steps
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, weight_scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        bias = linear.bias
        self.register_buffer("bias", bias if bias is None else bias.detach().float().clone())

    def observe(self, x):
        seen = torch.cat([x.detach().float().flatten(), self.low[None], self.high[None]])
        self.low, self.high = seen.aminmax()

    def forward(self, x):
        if not self.high > self.low:
            raise RuntimeError("No inputs were observed yet. Call observe(x) first.")
        scale = (self.high - self.low) / 255
        zero = int(-128 - torch.round(self.low / scale))
        q = (torch.round(x.detach().float() / scale) + zero).clamp(-128, 127).to(torch.int8)
        rows = q.reshape(-1, q.shape[-1])
        y = torch._int_mm(rows, self.weight.T).float() - zero * self.weight.sum(1, dtype=torch.int32).float()
        y = y * (scale * self.weight_scale.T)
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], len(self.weight)).to(x.dtype)


# %% fake_quantize: an autograd function of its own
class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, top):
        steps = torch.round(x.float() / scale)
        ctx.save_for_backward(steps.abs() <= top)
        return (steps.clamp(-top, top) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def fake_quantize(x, scale, bits=8):
    return _StraightThrough.apply(x, scale.detach(), 2 ** (bits - 1) - 1)


# %% fake_quantize: the difference without a gradient
def fake_quantize(x, scale, bits=8):
    top = (1 << (bits - 1)) - 1
    with torch.no_grad():
        steps = torch.round(x.to(torch.float32) / scale)
        inside = torch.logical_and(steps >= -top, steps <= top)
        target = torch.clamp(steps, min=-top, max=top).mul(scale).to(x.dtype)
    through = torch.where(inside, x, x.detach())
    return through + (target - through).detach()
