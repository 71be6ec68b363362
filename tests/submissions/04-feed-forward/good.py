# %% my helpers
def normal_cdf(z):
    """P(Z <= z) for a standard normal Z: substituting t -> t·√2 in erf gives the √2."""
    return 0.5 * (1.0 + torch.erf(z / 2.0**0.5))


def affine(inputs, outputs, bias):
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


# %% gelu
def gelu(x, approximate="none"):
    if approximate == "none":
        return x * normal_cdf(x)
    if approximate == "tanh":
        c = math.sqrt(2.0 / math.pi)
        return x * 0.5 * (1.0 + torch.tanh(c * x * (1.0 + 0.044715 * x.square())))
    raise ValueError(f"gelu: I know 'none' and 'tanh', and was given {approximate!r}")


# %% silu
def silu(x):
    return torch.mul(x, x.sigmoid())  # sigmoid itself never overflows


# %% MLP
class MLP(nn.Module):
    def __init__(self, d_model: int, d_hidden: int | None = None) -> None:
        super().__init__()
        width = 4 * d_model if d_hidden is None else d_hidden
        self.up = affine(d_model, width, bias=True)
        self.down = affine(width, d_model, bias=True)

    def forward(self, x):
        hidden = self.up(x)
        hidden = gelu(hidden, "tanh")
        return self.down(hidden)


# %% swiglu_hidden
def swiglu_hidden(d_model: int, multiple_of: int = 256) -> int:
    width = (8 * d_model) // 3  # two thirds of 4d, the fraction dropped
    missing = (-width) % multiple_of
    return width + missing


# %% SwiGLU
class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_hidden: int | None = None) -> None:
        super().__init__()
        width = swiglu_hidden(d_model) if d_hidden is None else d_hidden
        self.gate = affine(d_model, width, bias=False)
        self.up = affine(d_model, width, bias=False)
        self.down = affine(width, d_model, bias=False)

    def forward(self, x):
        return self.down(self.up(x) * silu(self.gate(x)))
