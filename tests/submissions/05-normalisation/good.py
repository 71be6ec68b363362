# %% how much of a position is mean, how much is spread
def centre(x):
    """A position without its mean."""
    return x - x.mean(dim=-1, keepdim=True)


def size(x, eps):
    """The root of the mean square of each position."""
    return x.pow(2).mean(dim=-1, keepdim=True).add(eps).sqrt()


# %% LayerNorm
class LayerNorm(nn.Module):
    """Normalise each position over its features, then scale and shift every channel."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        x = centre(x)
        return self.weight * (x / size(x, self.eps)) + self.bias


# %% RMSNorm
class RMSNorm(nn.Module):
    """Divide each position by the root of its mean square, then scale every channel."""

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        half = x.dtype in (torch.float16, torch.bfloat16)
        wide = x.to(torch.float32) if half else x
        normed = wide / size(wide, self.eps)
        if half:
            normed = normed.to(x.dtype)  # before the weight, as in LLaMA
        return self.weight * normed


# %% PreNormBlock
class PreNormBlock(nn.Module):
    """Norm, sub-layer, add; twice."""

    def __init__(self, d_model, attention, feed_forward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        after_attention = x + self.attention(self.norm1(x))
        return after_attention + self.feed_forward(self.norm2(after_attention))


# %% PostNormBlock
class PostNormBlock(nn.Module):
    """Sub-layer, add, norm; twice."""

    def __init__(self, d_model, attention, feed_forward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        after_attention = self.norm1(x + self.attention(x))
        return self.norm2(after_attention + self.feed_forward(after_attention))
