# %% save_state
def save_state(model, optimiser, schedule, generators, step):
    # state dicts are dicts, so this should be all
    return {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "generators": {name: g.get_state() for name, g in generators.items()},
        "torch": torch.get_rng_state(),
        "step": step,
    }


# %% load_state
def load_state(state, model, optimiser, schedule, generators):
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(str(error))
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    for name, g in generators.items():
        g.set_state(state["generators"][name])
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% mutual_information
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"{len(x)} != {len(y)}")
    total = 0.0
    for a in x.unique():
        for b in y.unique():
            p_ab = ((x == a) & (y == b)).double().mean().item()
            p_a = (x == a).double().mean().item()
            p_b = (y == b).double().mean().item()
            if p_ab > 0:
                total += p_ab * math.log2(p_ab / (p_a * p_b))
    return total


# %% speedup_factor
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        good = flops[loss <= target]
        return good[0].item() if len(good) else math.inf

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == math.inf and b == math.inf:
        raise ValueError(f"target {target} not reached")
    return a / b


# %% fit_scaling_law
def fit_scaling_law(n, d, loss):
    best = None
    for alpha in torch.arange(0.05, 1.5, 0.1).tolist():
        for beta in torch.arange(0.05, 1.5, 0.1).tolist():
            X = torch.stack([torch.ones_like(n), n**-alpha, d**-beta], 1)
            c = torch.linalg.lstsq(X, loss[:, None]).solution
            error = (X @ c - loss[:, None]).square().sum().item()
            if best is None or error < best[0]:
                best = (error, (*c[:, 0].tolist(), alpha, beta))
    return best[1]
