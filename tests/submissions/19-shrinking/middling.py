# %% magnitude_mask
def magnitude_mask(weights, sparsity):
    # everything up to the threshold goes
    every = torch.cat([w.abs().flatten() for w in weights])
    k = int(sparsity * len(every))
    if k == 0:
        return [torch.ones_like(w, dtype=torch.bool) for w in weights]
    threshold = every.kthvalue(k).values
    return [w.abs() > threshold for w in weights]


# %% wanda_mask
def wanda_mask(weight, x, n, m):
    scores = weight.abs() * x.norm(dim=0)
    groups = scores.reshape(len(weight), -1, m)
    best = groups.topk(n, dim=-1).indices
    return torch.zeros_like(groups).scatter(-1, best, 1.0).bool().reshape(weight.shape)


# %% quantize_int8
def quantize_int8(x, axis=None):
    if axis is None:
        scale = x.abs().max() / 127
    else:
        dims = [d for d in range(x.dim()) if d != axis]
        scale = x.abs().amax(dims, keepdim=True) / 127
    return torch.round(x / scale).to(torch.int8), scale


# %% DynamicInt8Linear
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        q, scale = quantize_int8(linear.weight.data, axis=0)
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.data)

    def forward(self, x):
        q, scale = quantize_int8(x, axis=0)
        y = (q.float() @ self.weight.float().T) * scale * self.weight_scale.T
        return y if self.bias is None else y + self.bias


# %% fake_quantize
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    y = torch.clamp(torch.round(x / scale), -top, top) * scale
    return x + (y - x).detach()
