# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% gelu: the distribution of PyTorch
def gelu(x, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu knows none and tanh, not {approximate}")
    if approximate == "none":
        return x * torch.special.ndtr(x.float() if x.dtype == torch.bfloat16 else x).to(x.dtype)
    inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
    return 0.5 * x * (1.0 + inner.tanh())


# %% gelu: erfc, and a sigmoid in the place of tanh
def gelu(x, approximate="none"):
    match approximate:
        case "none":
            return 0.5 * x * torch.erfc(-x * math.sqrt(0.5))
        case "tanh":
            return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))
        case other:
            raise ValueError("no such approximation: " + str(other))


# %% gelu: a table of functions, in float32
def _exact(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _tanh(x):
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x.pow(3))))


def gelu(x, approximate="none"):
    try:
        function = {"none": _exact, "tanh": _tanh}[approximate]
    except KeyError:
        raise ValueError(f"approximate={approximate!r} is neither 'none' nor 'tanh'.") from None
    wide = x if x.dtype == torch.float64 else x.float()
    return function(wide).to(x.dtype)


# %% gelu: a gradient of its own
class Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * (0.5 + 0.5 * torch.erf(x / math.sqrt(2)))

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return grad * (0.5 + 0.5 * torch.erf(x / math.sqrt(2)) + x * density)


def gelu(x, approximate="none"):
    if approximate == "none":
        return Gelu.apply(x)
    if approximate == "tanh":
        c = math.sqrt(2.0 / math.pi)
        return x / 2 + x / 2 * torch.tanh(c * x + c * 0.044715 * x**3)
    raise ValueError(f"Unknown approximation {approximate}.")


# %% silu: the method
def silu(x):
    return x.sigmoid().mul(x)


# %% silu: from tanh
def silu(x):
    return 0.5 * x * (1 + torch.tanh(x / 2))


# %% silu: the stable sigmoid by hand
def silu(x):
    e = torch.exp(-x.abs())
    return x * torch.where(x >= 0, 1 / (1 + e), e / (1 + e))


# %% silu: a gated linear unit of x with itself
def silu(x):
    return F.glu(torch.stack([x, x]), dim=0)[0]


# %% silu: the exponential of a log-sigmoid
def silu(x):
    return x * torch.exp(F.logsigmoid(x.float())).to(x.dtype)


# %% MLP: parameters and F.linear
class Affine(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) * 0.02)
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = 4 * d_model if d_hidden is None else d_hidden
        self.up, self.down = Affine(d_model, d_hidden), Affine(d_hidden, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x), "tanh"))


# %% MLP: the formula written out
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        self.up = nn.Linear(d_model, d_hidden or d_model * 4, bias=True)
        self.down = nn.Linear(self.up.out_features, d_model, bias=True)

    def forward(self, x):
        h = self.up(x)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return self.down(h)


# %% MLP: matrix products, and the layers in a dictionary
class MLP(nn.ModuleDict):
    def __init__(self, d_model, d_hidden=None):
        wide = d_hidden if d_hidden is not None else d_model * 4
        super().__init__({"down": nn.Linear(wide, d_model), "up": nn.Linear(d_model, wide)})

    def forward(self, x):
        hidden = x @ self["up"].weight.T + self["up"].bias
        return gelu(hidden, approximate="tanh") @ self["down"].weight.mT + self["down"].bias


# %% swiglu_hidden: LLaMA's own lines
def swiglu_hidden(d_model, multiple_of=256):
    hidden_dim = 4 * d_model
    hidden_dim = int(2 * hidden_dim / 3)
    hidden_dim = multiple_of * ((hidden_dim + multiple_of - 1) // multiple_of)
    return hidden_dim


# %% swiglu_hidden: the ceiling of a quotient
def swiglu_hidden(d_model, multiple_of=256):
    return math.ceil(math.floor(8 * d_model / 3) / multiple_of) * multiple_of


# %% swiglu_hidden: what is missing is added
def swiglu_hidden(d_model, multiple_of=256):
    width = d_model * 8 // 3
    return width + -width % multiple_of


# %% swiglu_hidden: a loop
def swiglu_hidden(d_model, multiple_of=256):
    width, rest = divmod(2 * (4 * d_model), 3)
    while width % multiple_of != 0:
        width += 1
    return width


# %% SwiGLU: parameters and F.linear
class Matrix(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(d_out, d_in)))

    def forward(self, x):
        return F.linear(x, self.weight)


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        if not d_hidden:
            d_hidden = swiglu_hidden(d_model)
        self.up = Matrix(d_model, d_hidden)
        self.gate = Matrix(d_model, d_hidden)
        self.down = Matrix(d_hidden, d_model)

    def forward(self, x):
        h = self.up(x) * silu(self.gate(x))
        return self.down(h)


# %% SwiGLU: one product for gate and up
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        d_hidden = swiglu_hidden(d_model, 256) if d_hidden is None else d_hidden
        self.gate, self.up = (nn.Linear(d_model, d_hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        both = x @ torch.cat([self.gate.weight, self.up.weight]).T
        gate, up = both.chunk(2, dim=-1)
        return silu(gate) * up @ self.down.weight.T


# %% SwiGLU: everything inside, by einsum
class SwiGLU(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        if d_hidden is None:
            d_hidden = -(-(8 * d_model // 3) // 256) * 256
        for name, d_in, d_out in (("gate", d_model, d_hidden), ("up", d_model, d_hidden), ("down", d_hidden, d_model)):
            self.add_module(name, nn.Linear(d_in, d_out, bias=False))
            nn.init.normal_(getattr(self, name).weight, std=0.02)

    def forward(self, x):
        gate = torch.einsum("...d,hd->...h", x, self.gate.weight)
        up = torch.einsum("...d,hd->...h", x, self.up.weight)
        return torch.einsum("...h,...h,...h,dh->...d", gate, torch.sigmoid(gate), up, self.down.weight)
