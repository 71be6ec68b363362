# %% softmax
def softmax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Shares that add up to 1 along `dim`; zeros where every score along it is −inf."""
    x = x - x.max(dim=dim, keepdim=True).values
    e = torch.exp(x)
    out = e / e.sum(dim=dim, keepdim=True)
    return torch.nan_to_num(out)  # rows of -inf


# %% cross_entropy
def cross_entropy(logits: Float[Tensor, "n classes"], targets: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """The mean over the rows of −ln of the share that softmax gives to the right class, in nats."""
    shares = softmax(logits, dim=1)
    right = shares[torch.arange(len(targets)), targets]
    return -torch.log(right).mean()


# %% linear_backward
def linear_backward(
    grad_output: Float[Tensor, "... d_out"], x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"]
) -> tuple[Float[Tensor, "... d_in"], Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"]]:
    """The gradients of x, weight and bias in y = x @ weight.T + bias, from that of y."""
    grad_x = grad_output @ weight
    grad_weight = grad_output.T @ x
    grad_bias = grad_output.sum(0)
    return grad_x, grad_weight, grad_bias


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
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    parameter = parameter - lr * m_hat / torch.sqrt(v_hat + eps)
    parameter = parameter - lr * weight_decay * parameter
    return parameter, m, v
