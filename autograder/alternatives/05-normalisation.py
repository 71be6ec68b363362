# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% LayerNorm: torch.var, and a product with the inverse root
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model)), eps

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        return torch.addcmul(self.bias, (x - mean) * torch.rsqrt(variance + self.eps), self.weight)


# %% LayerNorm: computed in float32 and cast back
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.empty(d_model).fill_(1.0)))
        self.register_parameter("bias", nn.Parameter(torch.empty(d_model).fill_(0.0)))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide - wide.sum(dim=-1, keepdim=True) / wide.size(-1)
        scale = (wide.pow(2).sum(dim=-1, keepdim=True) / wide.size(-1) + self.eps) ** -0.5
        return (wide * scale * self.weight.float() + self.bias.float()).to(x.dtype)


# %% LayerNorm: one row at a time
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.d_model = d_model
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        rows = []
        for row in x.reshape(-1, self.d_model):
            distance = row - row.mean()
            rows.append(distance / (distance.dot(distance) / self.d_model + self.eps).sqrt())
        return torch.stack(rows).reshape(x.shape) * self.weight + self.bias


# %% LayerNorm: einops
class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        from einops import reduce

        x = x - reduce(x, "... d -> ... 1", "mean")
        return self.bias + self.weight * x / (reduce(x**2, "... d -> ... 1", "mean") + self.eps).sqrt()


# %% LayerNorm: an autograd function of its own
class Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
        normed = centred * scale
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    def backward(ctx, grad):
        normed, scale = ctx.saved_tensors
        along = normed * (grad * normed).mean(-1, keepdim=True)
        return scale * (grad - grad.mean(-1, keepdim=True) - along), None


class LayerNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        return Normalise.apply(x, self.eps) * self.weight + self.bias


# %% RMSNorm: as in LLaMA's code
class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


# %% RMSNorm: the length of the vector
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        wide = x.double() if x.dtype == torch.float64 else x.float()
        square = torch.einsum("...d,...d->...", wide, wide) / wide.shape[-1]
        return (wide / (square + self.eps).sqrt()[..., None]).type_as(x) * self.weight


# %% RMSNorm: everything in float64 up to the cast
class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones((d_model,)))

    def _norm(self, x):
        return x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + self.eps)

    def forward(self, x):
        return torch.mul(self._norm(x.double()).to(x.dtype), self.weight)


# %% RMSNorm: a helper cell's function
def rms(x, eps):
    return torch.linalg.vecdot(x, x).div(x.shape[-1]).add(eps).sqrt().unsqueeze(-1)


class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        kind = torch.promote_types(x.dtype, torch.float32)
        return self.weight * x.to(kind).div(rms(x.to(kind), self.eps)).to(x.dtype)


# %% PreNormBlock: in two steps, with a helper
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        for name in ("norm1", "norm2"):
            self.add_module(name, LayerNorm(d_model))

    @staticmethod
    def _residual(x, norm, sublayer):
        return torch.add(x, sublayer(norm(x)))

    def forward(self, x):
        for norm, sublayer in ((self.norm1, self.attention), (self.norm2, self.feed_forward)):
            x = self._residual(x, norm, sublayer)
        return x


# %% PreNormBlock: what is added, collected and summed
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm2 = LayerNorm(d_model)
        self.norm1 = LayerNorm(d_model)
        self.feed_forward = feed_forward
        self.attention = attention

    def forward(self, x):
        added = self.attention(self.norm1(x))
        more = self.feed_forward(self.norm2(x + added))
        return x + (added + more)


# %% PreNormBlock: a norm of its own
class Norm(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias


class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = Norm(d_model), Norm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        out = x.clone()
        out += self.attention(self.norm1(x))
        return self.feed_forward(self.norm2(out)) + out


# %% PreNormBlock: the stream added in place to what a sub-layer gave
class PreNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        h = self.attention(self.norm1(x))
        h += x
        out = self.feed_forward(self.norm2(h))
        out += h
        return out


# %% PostNormBlock: a loop over the halves
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.attention, self.norm1 = attention, LayerNorm(d_model)
        self.feed_forward, self.norm2 = feed_forward, LayerNorm(d_model)

    def forward(self, x):
        for half in (("attention", "norm1"), ("feed_forward", "norm2")):
            sublayer, norm = (getattr(self, name) for name in half)
            x = norm(sublayer(x) + x)
        return x


# %% PostNormBlock: a parent for both kinds
class Sandwich(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model, eps=1e-5), LayerNorm(d_model, eps=1e-5)
        self.attention, self.feed_forward = attention, feed_forward

    def half(self, x, norm, sublayer):
        raise NotImplementedError

    def forward(self, x):
        return self.half(self.half(x, self.norm1, self.attention), self.norm2, self.feed_forward)


class PostNormBlock(Sandwich):
    def half(self, x, norm, sublayer):
        return norm(x + sublayer(x))


# %% PostNormBlock: stacked and summed
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x):
        stream = torch.stack([x, self.attention(x)]).sum(0)
        stream = self.norm1(stream)
        return self.norm2(torch.stack([stream, self.feed_forward(stream)]).sum(0))


# %% PostNormBlock: the stream added in place to what a sub-layer gave
class PostNormBlock(nn.Module):
    def __init__(self, d_model, attention, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(d_model), LayerNorm(d_model)
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x):
        h = self.attention(x)
        h += x
        h = self.norm1(h)
        out = self.feed_forward(h)
        out += h
        return self.norm2(out)
