# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% softmax: by logsumexp
def softmax(x, dim=-1):
    nothing = (x == -math.inf).all(dim, keepdim=True)
    x = x.masked_fill(nothing, 0)
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True)).masked_fill(nothing, 0)


# %% softmax: the lowest number for −∞
def softmax(x, dim=-1):
    largest = torch.max(x, dim=dim, keepdim=True).values.detach().clamp(min=torch.finfo(x.dtype).min)
    weights = torch.exp(x - largest)
    return weights / torch.clamp(weights.sum(dim=dim, keepdim=True), min=1e-30)


# %% softmax: the last dimension, moved there and back
def softmax(scores, dim=-1):
    rows = torch.movedim(scores, dim, -1)
    candidates = rows != -math.inf
    safe = torch.where(candidates, rows, torch.zeros_like(rows))
    low = torch.where(candidates, rows, torch.full_like(rows, torch.finfo(rows.dtype).min))
    e = torch.where(candidates, (safe - low.max(-1, keepdim=True)[0]).exp(), torch.zeros_like(rows))
    total = e.sum(-1, keepdim=True)
    shares = e / torch.where(total > 0, total, torch.ones_like(total))
    return torch.movedim(shares, -1, dim)


# %% softmax: an autograd function of its own, in float64
class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        wide = x.double()
        e = torch.exp(wide - wide.amax(dim, keepdim=True).nan_to_num(neginf=0.0))
        total = e.sum(dim, keepdim=True)
        shares = e / total.where(total > 0, 1)
        ctx.save_for_backward(shares)
        ctx.dim = dim
        return shares.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (shares,) = ctx.saved_tensors
        wide = grad.double()
        return (shares * (wide - (wide * shares).sum(ctx.dim, keepdim=True))).to(grad.dtype), None


def softmax(x, dim=-1):
    return Softmax.apply(x, dim)


# %% cross_entropy: log-shares, indexed
def cross_entropy(logits, targets):
    log_shares = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -log_shares[torch.arange(len(targets)), targets].mean()


# %% cross_entropy: by hand, the largest subtracted
def cross_entropy(logits, targets):
    shifted = logits - logits.max(dim=1, keepdim=True).values.detach()
    right = torch.take_along_dim(shifted, targets.unsqueeze(1), dim=1).squeeze(1)
    return torch.mean(shifted.exp().sum(dim=1).log() - right)


# %% cross_entropy: one row at a time
def cross_entropy(logits, targets):
    total = 0
    for row, target in zip(logits, targets.tolist()):
        total = total + torch.logsumexp(row, 0) - row[target]
    return total / len(targets)


# %% cross_entropy: how far the others are ahead
def cross_entropy(logits, targets):
    lead = logits - logits.gather(1, targets.view(-1, 1))
    return lead.logsumexp(dim=-1).mean()


# %% cross_entropy: the negative log-likelihood of log-shares
def cross_entropy(logits, targets):
    return F.nll_loss(logits - logits.logsumexp(1, keepdim=True), targets)


# %% linear_backward: einsum
def linear_backward(grad_output, x, weight):
    grad_x = torch.einsum("...o,oi->...i", grad_output, weight)
    grad_weight = torch.einsum("...o,...i->oi", grad_output, x)
    return grad_x, grad_weight, torch.einsum("...o->o", grad_output)


# %% linear_backward: a sum over all dimensions but the last
def linear_backward(grad_output, x, weight):
    lead = tuple(range(grad_output.dim() - 1))
    outer = grad_output.unsqueeze(-1) * x.unsqueeze(-2)
    return (
        torch.matmul(grad_output, weight),
        outer.sum(lead) if lead else outer,
        grad_output.sum(lead) if lead else grad_output.clone(),
    )


# %% linear_backward: one row at a time
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    rows = []
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros(d_out, dtype=weight.dtype)
    for g, row in zip(grad_output.reshape(-1, d_out), x.reshape(-1, d_in)):
        rows.append((g[:, None] * weight).sum(0))
        grad_weight = grad_weight + torch.outer(g, row)
        grad_bias = grad_bias + g
    return torch.stack(rows).reshape(x.shape), grad_weight, grad_bias


# %% linear_backward: by F.linear, as a list
def linear_backward(grad_output, x, weight):
    flat = grad_output.reshape(-1, grad_output.size(-1))
    grad_weight = torch.mm(x.reshape(-1, x.size(-1)).t(), flat).t()
    return [F.linear(grad_output, weight.t()), grad_weight, flat.sum(dim=0)]


# %% adamw_step: the decay first, as PyTorch does it
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    beta1, beta2 = betas
    parameter = parameter * (1 - lr * weight_decay)
    m = torch.lerp(m, gradient, 1 - beta1)
    v = v * beta2 + (1 - beta2) * gradient * gradient
    denominator = v.sqrt() / math.sqrt(1 - beta2**step) + eps
    return parameter - lr / (1 - beta1**step) * (m / denominator), m, v


# %% adamw_step: copies, then in place
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    parameter, m, v = parameter.clone(), m.clone(), v.clone()
    m.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    v.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    parameter.mul_(1 - lr * weight_decay)
    parameter.addcdiv_(m_hat, v_hat.sqrt().add_(eps), value=-lr)
    return parameter, m, v


# %% adamw_step: in float64 and back, as a list
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    theta, g, mean, square = (t.double() for t in (parameter, gradient, m, v))
    mean = mean + (1 - betas[0]) * (g - mean)
    square = square + (1 - betas[1]) * (g**2 - square)
    update = (mean / (1 - math.pow(betas[0], step))) / (torch.sqrt(square / (1 - math.pow(betas[1], step))) + eps)
    theta = theta - lr * (update + weight_decay * theta)
    return [t.to(parameter.dtype) for t in (theta, mean, square)]


# %% train_step: written out
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    w1, b1 = parameters["hidden.weight"], parameters["hidden.bias"]
    w2, b2 = parameters["out.weight"], parameters["out.bias"]
    h = F.linear(x, w1, b1)
    a = torch.relu(h)
    z = F.linear(a, w2, b2)
    loss = cross_entropy(z, targets)
    dz = softmax(z, dim=1)
    dz[torch.arange(len(targets)), targets] -= 1
    dz = dz / x.shape[0]
    da, dw2, db2 = linear_backward(dz, a, w2)
    dh = torch.where(h > 0, da, torch.zeros_like(da))
    _, dw1, db1 = linear_backward(dh, x, w1)
    common = {"lr": lr, "betas": betas, "eps": eps}
    p, new_m, new_v = {}, {}, {}
    for key, grad, decay in (
        ("hidden.weight", dw1, weight_decay),
        ("hidden.bias", db1, 0.0),
        ("out.weight", dw2, weight_decay),
        ("out.bias", db2, 0.0),
    ):
        p[key], new_m[key], new_v[key] = adamw_step(
            parameters[key], grad, m[key], v[key], step, weight_decay=decay, **common
        )
    return loss, p, new_m, new_v


# %% train_step: nothing called, all by hand
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = torch.einsum("ni,hi->nh", x, parameters["hidden.weight"]) + parameters["hidden.bias"]
    alive = (hidden > 0).to(x.dtype)
    logits = torch.einsum("nh,ch->nc", hidden * alive, parameters["out.weight"]) + parameters["out.bias"]
    log_shares = logits - logits.logsumexp(1, keepdim=True)
    truth = torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)
    loss = -(log_shares * truth).sum() / len(x)
    back = (log_shares.exp() - truth) / len(x)
    back_hidden = torch.einsum("nc,ch->nh", back, parameters["out.weight"]) * alive
    grads = {
        "out.weight": torch.einsum("nc,nh->ch", back, hidden * alive),
        "out.bias": back.sum(0),
        "hidden.weight": torch.einsum("nh,ni->hi", back_hidden, x),
        "hidden.bias": back_hidden.sum(0),
    }
    new_m = {key: betas[0] * m[key] + (1 - betas[0]) * grads[key] for key in grads}
    new_v = {key: betas[1] * v[key] + (1 - betas[1]) * grads[key] ** 2 for key in grads}
    new = {}
    for key, value in parameters.items():
        decay = weight_decay if value.dim() == 2 else 0.0
        update = new_m[key] / (1 - betas[0] ** step) / ((new_v[key] / (1 - betas[1] ** step)).sqrt() + eps)
        new[key] = value - lr * (update + decay * value)
    return loss, new, new_m, new_v


# %% train_step: a list of layers, walked back
def forward(parameters, x):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    return hidden, torch.maximum(hidden, torch.zeros_like(hidden))


def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden, active = forward(parameters, x)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    grad = softmax(logits) / len(targets)
    grad = grad - F.one_hot(targets, num_classes=logits.size(1)).to(grad) / len(targets)
    grads = {}
    for layer, given in (("out", active), ("hidden", x)):
        if layer == "hidden":
            grad = grad * hidden.gt(0)
        grad, grads[layer + ".weight"], grads[layer + ".bias"] = linear_backward(
            grad, given, parameters[layer + ".weight"]
        )
    states = {
        key: adamw_step(
            parameters[key],
            grads[key],
            m[key],
            v[key],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=0.0 if "bias" in key else weight_decay,
        )
        for key in parameters
    }
    after = [{key: state[i] for key, state in states.items()} for i in (0, 1, 2)]
    return (cross_entropy(logits, targets), *after)
