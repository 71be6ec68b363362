# %% my helpers
def inverse_frequencies(d, base):
    """1, then slower and slower: one for each pair of channels."""
    return 1.0 / base ** (torch.arange(0, d, 2, dtype=torch.float32) / d)


def first_second(x, interleaved):
    """The first and the second channels of all pairs."""
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    middle = x.shape[-1] // 2
    return x[..., :middle], x[..., middle:]


# %% sinusoidal
def sinusoidal(n: int, d_model: int, base: float = 10000.0) -> Float[Tensor, "n d_model"]:
    """Sines in the even channels, cosines in the odd ones, one row for each position from 0."""
    if d_model % 2 != 0:
        raise ValueError(f"sinusoidal needs an even d_model, and {d_model} is odd.")
    position = torch.arange(n, dtype=torch.float32)
    angle = position[:, None] * inverse_frequencies(d_model, base)[None, :]
    table = torch.empty(n, d_model)
    table[:, 0::2] = torch.sin(angle)
    table[:, 1::2] = torch.cos(angle)
    return table


# %% LearnedPositions
class LearnedPositions(nn.Module):
    """A learned vector for each position, added to x."""

    def __init__(self, n_max: int, d_model: int) -> None:
        super().__init__()
        self.n_max = n_max
        self.weight = nn.Parameter(torch.empty(n_max, d_model))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Float[Tensor, "batch n d_model"], offset: int = 0) -> Float[Tensor, "batch n d_model"]:
        stop = offset + x.size(1)
        if stop > self.n_max:
            raise ValueError(f"Position {stop - 1} was asked for (offset + n = {stop}), but n_max is {self.n_max}.")
        positions = torch.arange(offset, stop)
        return x + F.embedding(positions, self.weight).to(x.dtype)


# %% rope
def rope(x, positions, theta=10000.0, interleaved=False):
    # angles: [n, d/2] or [batch, n, d/2], always float32
    angles = positions.to(torch.float32).unsqueeze(-1) * inverse_frequencies(x.shape[-1], theta)
    if positions.ndim == 2:
        batch, n = positions.shape
        between = x.ndim - 3  # e.g. 1 if there are heads
        angles = angles.reshape([batch] + [1] * between + [n, -1])
    cos, sin = torch.cos(angles), torch.sin(angles)
    a, b = first_second(x.to(torch.promote_types(x.dtype, torch.float32)), interleaved)
    a_new = a * cos - b * sin
    b_new = b * cos + a * sin
    if interleaved:
        result = torch.stack((a_new, b_new), dim=-1).reshape(x.shape)
    else:
        result = torch.cat((a_new, b_new), dim=-1)
    return result.to(x.dtype)


# %% half_split_order
def half_split_order(d_head: int) -> Int[Tensor, " d_head"]:
    # whatever stands at the "first" places of an interleaved head goes to the first half
    a, b = first_second(torch.arange(d_head), interleaved=True)
    return torch.cat((a, b))


# %% alibi_bias
def alibi_bias(n_heads: int, n: int) -> Float[Tensor, "n_heads n n"]:
    def geometric(heads):
        return [2.0 ** (-8.0 * k / heads) for k in range(1, heads + 1)]

    biggest = 1
    while biggest * 2 <= n_heads:
        biggest *= 2
    slopes = geometric(biggest)
    if biggest < n_heads:
        slopes += geometric(2 * biggest)[::2][: n_heads - biggest]
    query = torch.arange(n).view(1, n, 1)
    key = torch.arange(n).view(1, 1, n)
    distance = torch.where(key <= query, query - key, 0)
    return -torch.tensor(slopes).view(n_heads, 1, 1) * distance


# %% stretch_rope
def stretch_rope(
    d_head: int,
    factor: float,
    method: str = "linear",
    theta: float = 10000.0,
    n_train: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = False,
) -> tuple[Float[Tensor, " pairs"], float]:
    as_trained = inverse_frequencies(d_head, theta)
    slowed = as_trained / factor
    if method == "linear":
        return slowed, 1.0
    if method == "yarn":
        low = d_head * math.log(n_train / (2 * math.pi * beta_fast)) / (2 * math.log(theta))
        high = d_head * math.log(n_train / (2 * math.pi * beta_slow)) / (2 * math.log(theta))
        if truncate:
            low = math.floor(low)
            high = math.ceil(high)
        low = max(low, 0)
        high = min(high, d_head - 1)
        if low == high:
            high = high + 0.001
        i = torch.arange(d_head // 2, dtype=torch.float32)
        r = torch.clamp((i - low) / (high - low), min=0.0, max=1.0)
        return (1 - r) * as_trained + r * slowed, 0.1 * math.log(factor) + 1.0
    raise ValueError(f"stretch_rope knows 'linear' and 'yarn', but not {method!r}.")
