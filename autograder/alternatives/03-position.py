# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% sinusoidal: as in many tutorials
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2 != 0:
        raise ValueError(f"d_model must be even, but it is {d_model}")
    pe = torch.zeros(n, d_model)
    position = torch.arange(0, n, dtype=torch.float).unsqueeze(1)
    div_term = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(base) / d_model))
    pe[:, 0::2] = torch.sin(position * div_term)
    pe[:, 1::2] = torch.cos(position * div_term)
    return pe


# %% sinusoidal: in float64, cast at the end
def sinusoidal(n, d_model, base=10000.0):
    if d_model & 1:
        raise ValueError(f"an odd number of channels: {d_model}")
    pairs = torch.arange(d_model // 2, dtype=torch.float64)
    angles = torch.outer(torch.arange(n, dtype=torch.float64), torch.pow(base, -2 * pairs / d_model))
    return torch.stack((angles.sin(), angles.cos()), dim=2).reshape(n, d_model).float()


# %% sinusoidal: cosines as sines a quarter later
def sinusoidal(n, d_model, base=10000.0):
    if d_model % 2 == 1:
        raise ValueError(f"{d_model} channels cannot be paired")
    channel = torch.arange(d_model)
    angles = torch.arange(n).unsqueeze(-1) / base ** ((channel - channel % 2) / d_model)
    return torch.sin(angles.double() + (channel % 2) * math.pi / 2).float()


# %% sinusoidal: lists
def sinusoidal(length, width, base=10000.0):
    if width % 2:
        raise ValueError(f"width {width} is odd")

    def entry(p, c):
        angle = p * base ** (-(c // 2 * 2) / width)
        return math.cos(angle) if c % 2 else math.sin(angle)

    return torch.tensor([[entry(p, c) for c in range(width)] for p in range(length)])


# %% LearnedPositions: an embedding that is the module
class LearnedPositions(nn.Embedding):
    def __init__(self, n_max, d_model):
        super().__init__(n_max, d_model)

    def forward(self, x, offset=0):
        last = offset + x.size(1)
        if last > self.num_embeddings:
            raise ValueError(f"the table has {self.num_embeddings} positions, and this needs {last}")
        positions = torch.arange(offset, last, device=x.device)
        return x + super().forward(positions).to(dtype=x.dtype)


# %% LearnedPositions: the sum in float32
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.n_max = n_max
        self.weight = nn.Parameter(torch.empty(n_max, d_model))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x, offset=0):
        _, n, _ = x.shape
        if n + offset > self.n_max:
            raise ValueError(f"offset + n = {offset + n} is more than n_max = {self.n_max}.")
        rows = self.weight.narrow(0, offset, n).unsqueeze(0).expand(len(x), -1, -1)
        return torch.add(x, rows).type_as(x)


# %% LearnedPositions: zeros at first, rows by index_select
class LearnedPositions(nn.Module):
    def __init__(self, n_max, d_model):
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.zeros(n_max, d_model)))

    def forward(self, x, offset=0):
        need, have = offset + x.shape[-2], self.weight.shape[0]
        if need <= have:
            return x + self.weight.index_select(0, torch.arange(offset, need)).to(x)
        raise ValueError(f"{need} > {have}")


# %% rope: rotate_half, as Llama's code
def rotate_half(x):
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate_every_two(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rope(x, positions, theta=10000.0, interleaved=False):
    d = x.shape[-1]
    inv_freq = 1.0 / (theta ** (torch.arange(0, d, 2, dtype=torch.float) / d))
    freqs = positions.float().unsqueeze(-1) * inv_freq
    emb = freqs.repeat_interleave(2, -1) if interleaved else torch.cat((freqs, freqs), -1)
    if positions.dim() == 2:
        for _ in range(x.dim() - 3):
            emb = emb.unsqueeze(1)
    cos, sin = emb.cos().to(x.dtype), emb.sin().to(x.dtype)
    return x * cos + (rotate_every_two(x) if interleaved else rotate_half(x)) * sin


# %% rope: complex numbers, in float64
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.size(-1) // 2
    wide = x.double()
    points = wide.unflatten(-1, (half, 2)) if interleaved else wide.unflatten(-1, (2, half)).mT
    angles = positions.double().unsqueeze(-1) * torch.pow(theta, -torch.arange(half).double() / half)
    if positions.ndim == 2:
        angles = angles.view(len(positions), *(1,) * (x.ndim - 3), -1, half)
    turned = torch.view_as_complex(points.contiguous()) * torch.exp(1j * angles)
    out = torch.view_as_real(turned)
    return (out if interleaved else out.mT).flatten(-2).to(x.dtype)


# %% rope: rotation matrices
def rope(x, positions, theta=10000.0, interleaved=False):
    half = x.shape[-1] // 2
    phi = positions.float()[..., None] * theta ** (-2 * torch.arange(half) / x.shape[-1])
    matrix = torch.stack([phi.cos(), -phi.sin(), phi.sin(), phi.cos()], -1).unflatten(-1, (2, 2))
    while positions.dim() == 2 and matrix.dim() < x.dim() + 2:
        matrix = matrix.unsqueeze(1)
    order = torch.arange(2 * half).reshape((half, 2) if interleaved else (2, half))
    order = order if interleaved else order.T
    pairs = x.float()[..., order]
    turned = torch.einsum("...ab,...b->...a", matrix, pairs)
    return turned.flatten(-2)[..., order.flatten().argsort()].to(x.dtype)


# %% rope: each sequence by itself
def rope(x, positions, theta=10000.0, interleaved=False):
    if positions.dim() == 2:
        return torch.stack([rope(one, where, theta, interleaved) for one, where in zip(x, positions)])
    d = x.shape[-1]
    out = []
    for i in range(d // 2):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
        angle = positions.to(torch.float32) * theta ** (-2 * i / d)
        a, b = x[..., first].float(), x[..., second].float()
        out.append((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))
    if interleaved:
        channels = [channel for pair in out for channel in pair]
    else:
        channels = [a for a, _ in out] + [b for _, b in out]
    return torch.stack(channels, -1).type_as(x)


# %% half_split_order: a transposed table
def half_split_order(d_head):
    return torch.arange(d_head).view(d_head // 2, 2).t().reshape(-1)


# %% half_split_order: lists
def half_split_order(d_head):
    return torch.tensor(list(range(0, d_head, 2)) + list(range(1, d_head, 2)))


# %% half_split_order: sorted by who is first in a pair
def half_split_order(d_head):
    return torch.tensor(sorted(range(d_head), key=lambda channel: channel % 2))


# %% half_split_order: the inverse of the way back
def half_split_order(d_head):
    return torch.arange(d_head).reshape(2, -1).T.flatten().argsort()


# %% alibi_bias: as the authors' own code
def get_slopes(n):
    def get_slopes_power_of_2(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n).is_integer():
        return get_slopes_power_of_2(n)
    closest = 2 ** math.floor(math.log2(n))
    return get_slopes_power_of_2(closest) + get_slopes(2 * closest)[0::2][: n - closest]


def alibi_bias(n_heads, n):
    slopes = torch.tensor(get_slopes(n_heads), dtype=torch.float32)
    distance = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    return torch.einsum("h,ij->hij", slopes, distance.clamp(max=0).float())


# %% alibi_bias: a loop over queries
def alibi_bias(n_heads, n):
    power = 1
    while 2 * power <= n_heads:
        power *= 2
    exponents = [8 * (h + 1) / power for h in range(power)]
    exponents += [8 * (2 * h + 1) / (2 * power) for h in range(n_heads - power)]
    slopes = torch.tensor([2.0**-e for e in exponents])
    bias = torch.zeros(n_heads, n, n)
    for i in range(n):
        bias[:, i, : i + 1] = -slopes[:, None] * torch.arange(i, -1, -1)
    return bias


# %% alibi_bias: a triangle counted up
def alibi_bias(n_heads, n):
    power = 1 << (n_heads.bit_length() - 1)
    all_slopes = torch.exp2(-8 * torch.arange(1, 2 * power + 1) / (2 * power))  # of 2P heads
    slopes = torch.cat([all_slopes[1::2], all_slopes[0::2]])[:n_heads]
    below = torch.ones(n, n).tril(-1)
    distance = below.flip(-1).cumsum(-1).flip(-1)
    return -(slopes.view(-1, 1, 1) * distance)


# %% stretch_rope: as transformers has it
def find_correction_dim(num_rotations, dim, base, n):
    return (dim * math.log(n / (num_rotations * 2 * math.pi))) / (2 * math.log(base))


def linear_ramp_factor(low, high, dim):
    if low == high:
        high += 0.001
    return torch.clamp((torch.arange(dim, dtype=torch.float32) - low) / (high - low), 0, 1)


def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    pos_freqs = theta ** (torch.arange(0, d_head, 2).float() / d_head)
    extrapolation, interpolation = 1.0 / pos_freqs, 1.0 / (factor * pos_freqs)
    if method == "linear":
        return interpolation, 1.0
    elif method == "yarn":
        low = find_correction_dim(beta_fast, d_head, theta, n_train)
        high = find_correction_dim(beta_slow, d_head, theta, n_train)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d_head - 1)
        keep = 1 - linear_ramp_factor(low, high, d_head // 2)
        scale = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        return interpolation * (1 - keep) + extrapolation * keep, scale
    raise ValueError(f"unknown method: {method}")


# %% stretch_rope: pair by pair
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    if method not in {"linear", "yarn"}:
        raise ValueError(f'method should be "linear" or "yarn", not "{method}"')
    trained = [theta ** (-2 * i / d_head) for i in range(d_head // 2)]
    if method == "linear":
        return torch.tensor([f / factor for f in trained]), 1.0

    def number(beta):
        return d_head * (math.log(n_train) - math.log(2 * math.pi * beta)) / math.log(theta) / 2

    low, high = number(beta_fast), number(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(0, low), min(d_head - 1, high)
    high = high + 0.001 if abs(high - low) < 1e-12 else high
    found = []
    for i, f in enumerate(trained):
        r = min(1, max(0, (i - low) / (high - low)))
        found.append(f * (1 - r * (1 - 1 / factor)))
    return torch.tensor(found, dtype=torch.float32), 1 + math.log(factor) / 10


# %% stretch_rope: torch.lerp
def stretch_rope(
    d_head, factor, method="linear", theta=10000.0, n_train=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
):
    frequencies = torch.logspace(0, -1, d_head // 2 + 1, base=theta)[:-1]
    if method == "linear":
        return frequencies.div(factor), 1.0
    if method == "yarn":
        betas = torch.tensor([beta_fast, beta_slow], dtype=torch.float64)
        low, high = (d_head * torch.log(n_train / (2 * torch.pi * betas)) / (2 * math.log(theta))).tolist()
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d_head - 1)
        ramp = (torch.arange(d_head // 2) - low) / ((high - low) or 0.001)
        return torch.lerp(frequencies, frequencies / factor, ramp.clamp(0, 1)), math.log(factor) * 0.1 + 1.0
    raise ValueError(f"{method} is neither linear nor yarn")
