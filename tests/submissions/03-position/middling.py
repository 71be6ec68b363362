# %% sinusoidal
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2:
        raise ValueError("d_model " + str(d_model) + " is odd")
    pos = torch.arange(n).unsqueeze(1)
    i = torch.arange(0, d_model, 2)
    angles = pos / torch.pow(torch.tensor(base), i / d_model)
    # all sines, then all cosines
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


# %% LearnedPositions
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_max, d_model))

    def forward(self, x, offset=0):
        n = x.shape[1]
        if offset + n > self.weight.shape[0]:
            raise ValueError(f"{offset + n} > {self.weight.shape[0]}")
        return x + self.weight[offset : offset + n]


# %% rope
def rope(x, positions, theta=10000.0, interleaved=False):
    d = x.shape[-1]
    freqs = theta ** (-torch.arange(0, d, 2) / d)
    angles = positions[..., None] * freqs
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
    else:
        a, b = x[..., : d // 2], x[..., d // 2 :]
    # TODO: interleaved should go back to where it was
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


# %% half_split_order
def half_split_order(d_head):
    return torch.arange(d_head).reshape(d_head // 2, 2).T.reshape(-1)


# %% alibi_bias
def alibi_bias(n_heads, n):
    slopes = torch.tensor([2 ** (-8 * (h + 1) / n_heads) for h in range(n_heads)])
    i = torch.arange(n)
    return -slopes[:, None, None] * (i[:, None] - i[None, :]).abs()
