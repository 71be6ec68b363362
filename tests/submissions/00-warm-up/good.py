# %% notes
# rough work: does subtracting a constant really change nothing?
trial = torch.tensor([1.0, 2.0, 3.0])
print(trial.exp() / trial.exp().sum())
print((trial - 3).exp() / (trial - 3).exp().sum())


def decays(name):
    return name.endswith(".weight")


# %% softmax
def softmax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Shares that add up to 1 along `dim`; zeros where every score along it is −inf."""
    dead = torch.isinf(x).all(dim=dim, keepdim=True)  # nobody to choose from
    safe = torch.where(dead, torch.zeros_like(x), x)
    top = safe.max(dim=dim, keepdim=True).values
    e = torch.exp(safe - top)
    shares = e / e.sum(dim=dim, keepdim=True)
    return torch.where(dead, torch.zeros_like(shares), shares)


# %% cross_entropy
def cross_entropy(logits: Float[Tensor, "n classes"], targets: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """The mean over the rows of −ln of the share that softmax gives to the right class, in nats."""
    n = logits.shape[0]
    top = logits.max(dim=1, keepdim=True).values
    log_total = torch.log(torch.exp(logits - top).sum(dim=1)) + top[:, 0]
    picked = logits[torch.arange(n), targets]
    return (log_total - picked).sum() / n


# %% linear_backward
def linear_backward(
    grad_output: Float[Tensor, "... d_out"], x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"]
) -> tuple[Float[Tensor, "... d_in"], Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"]]:
    """The gradients of x, weight and bias in y = x @ weight.T + bias, from that of y."""
    # y[r, o] = sum_i x[r, i] W[o, i] + b[o]
    g = grad_output.reshape(-1, grad_output.shape[-1])
    rows = x.reshape(-1, x.shape[-1])
    grad_x = (g @ weight).reshape(x.shape)
    grad_weight = torch.einsum("ro,ri->oi", g, rows)
    return grad_x, grad_weight, g.sum(dim=0)


# %% adamw_step
def adamw_step(
    parameter: Float[Tensor, "..."],
    gradient: Float[Tensor, "..."],
    m: Float[Tensor, "..."],
    v: Float[Tensor, "..."],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """The new parameter, m and v after step number `step`, which counts from 1."""
    b1, b2 = betas
    new_m = b1 * m + (1 - b1) * gradient
    new_v = b2 * v + (1 - b2) * gradient.square()
    mhat = new_m / (1 - b1**step)
    vhat = new_v / (1 - b2**step)
    update = mhat / (torch.sqrt(vhat) + eps) + weight_decay * parameter
    return parameter - lr * update, new_m, new_v


# %% train_step
def train_step(
    parameters: dict[str, Tensor],
    m: dict[str, Tensor],
    v: dict[str, Tensor],
    x: Float[Tensor, "n d_in"],
    targets: Int[Tensor, "n"],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One step of training on one batch: the loss before it, and the parameters, m and v after it."""
    W1, b1, W2, b2 = (parameters[k] for k in ("hidden.weight", "hidden.bias", "out.weight", "out.bias"))
    # forward
    h = x @ W1.T + b1
    a = torch.relu(h)
    z = a @ W2.T + b2
    loss = cross_entropy(z, targets)
    # backward: first all gradients, then all steps
    dz = softmax(z, dim=-1)
    dz = dz - torch.nn.functional.one_hot(targets, z.shape[-1]).to(dz.dtype)
    dz = dz / len(x)
    da, dW2, db2 = linear_backward(dz, a, W2)
    dh = da * (h > 0).to(da.dtype)
    _, dW1, db1 = linear_backward(dh, x, W1)
    g = {"hidden.weight": dW1, "hidden.bias": db1, "out.weight": dW2, "out.bias": db2}
    p_new, m_new, v_new = {}, {}, {}
    for k in g:
        wd = weight_decay if decays(k) else 0.0
        p_new[k], m_new[k], v_new[k] = adamw_step(
            parameters[k], g[k], m[k], v[k], step, lr=lr, betas=betas, eps=eps, weight_decay=wd
        )
    return loss, p_new, m_new, v_new
