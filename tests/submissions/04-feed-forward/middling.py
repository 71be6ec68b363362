# %% gelu
def gelu(x, approximate="none"):
    # the exact one is right; the other one was copied from memory
    if approximate == "none":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    elif approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))
    else:
        print("unknown approximation")


# %% silu
def silu(x):
    return x / (1 + torch.exp(-x))


# %% MLP
class MLP(nn.Module):
    def __init__(self, d_model, d_hidden=None):
        super().__init__()
        if d_hidden is None:
            d_hidden = 4 * d_model
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x):
        return self.down(gelu(self.up(x)))


# %% swiglu_hidden
def swiglu_hidden(d_model, multiple_of=256):
    return round(8 * d_model / 3 / multiple_of) * multiple_of
