# %% route
def route(logits, top_k, renormalise=True):
    # softmax over the winners: the weights sum to 1
    top, experts = logits.topk(top_k, dim=-1)
    return top.softmax(dim=-1), experts


# %% MoELayer
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        h = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(h), self.top_k, self.renormalise)
        y = 0
        for e in range(self.gate_up.shape[0]):
            # every token through every expert, with weight 0 where it was not chosen
            w = (weights * (experts == e)).sum(dim=-1, keepdim=True)
            gate, up = (h @ self.gate_up[e].T).chunk(2, dim=-1)
            y = y + w * ((F.silu(gate) * up) @ self.down[e].T)
        return y.reshape(x.shape)


# %% count_parameters
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        total += math.prod(shape)
        if "experts" in name:
            active += math.prod(shape) * top_k // shape[0]
        else:
            active += math.prod(shape)
    return total, active
