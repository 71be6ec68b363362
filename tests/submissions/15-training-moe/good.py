# %% helpers
def frozen_copy(thing):
    """A copy that shares no memory with what it was made from."""
    if torch.is_tensor(thing):
        return thing.detach().clone()
    if isinstance(thing, Mapping):
        return {key: frozen_copy(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing)(map(frozen_copy, thing))
    return thing


def entropy_of_counts(counts):
    share = counts.double() / counts.sum()
    return -(share * share.log()).sum().item()


# %% save_state
def save_state(model, optimiser, schedule, generators, step):
    """All that a run needs to go on."""
    random = {name: generator.get_state() for name, generator in generators.items()}
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    state = {name: frozen_copy(part.state_dict()) for name, part in parts.items()}
    return {**state, "generators": frozen_copy(random), "torch": torch.get_rng_state().clone(), "step": step}


# %% load_state
def load_state(state, model, optimiser, schedule, generators):
    """Refuse first, then load."""
    own, theirs = model.state_dict(), state["model"]
    for name in sorted(set(own) | set(theirs)):
        if name not in own:
            raise ValueError(f"The checkpoint has an entry {name}, and the model does not know it.")
        if name not in theirs:
            raise ValueError(f"The checkpoint lacks {name}.")
        if own[name].shape != theirs[name].shape:
            raise ValueError(f"{name}: {list(theirs[name].shape)} does not go into {list(own[name].shape)}.")
    for name in set(generators) | set(state["generators"]):
        if name not in generators or name not in state["generators"]:
            raise ValueError(f"The generator {name} is missing on one side.")

    copied = frozen_copy(state)
    model.load_state_dict(copied["model"])
    optimiser.load_state_dict(copied["optimiser"])
    schedule.load_state_dict(copied["schedule"])
    for name in generators:
        generators[name].set_state(copied["generators"][name])
    torch.set_rng_state(copied["torch"])
    return copied["step"]


# %% mutual_information
def mutual_information(x, y):
    """H(x) + H(y) − H(x, y)."""
    if len(x) != len(y):
        raise ValueError(f"I need pairs, and got {len(x)} and {len(y)} labels.")
    n_x = torch.unique(x, return_counts=True)[1]
    n_y = torch.unique(y, return_counts=True)[1]
    n_xy = torch.unique(torch.stack([x, y]), dim=1, return_counts=True)[1]
    return entropy_of_counts(n_x) + entropy_of_counts(n_y) - entropy_of_counts(n_xy)


# %% shuffled_null
def shuffled_null(x, y, n_shuffles, seed):
    rng = torch.Generator().manual_seed(seed)
    null = torch.empty(n_shuffles, dtype=torch.float64)
    for i in range(n_shuffles):
        null[i] = mutual_information(x, y[torch.randperm(len(y), generator=rng)])
    return null


# %% speedup_factor
def flops_until(flops, loss, target):
    points = list(zip(flops.tolist(), loss.tolist(), strict=True))
    for i, (cost, value) in enumerate(points):
        if value > target:
            continue
        if i == 0:
            return cost
        cost_before, value_before = points[i - 1]
        way = (value_before - target) / (value_before - value)
        return cost_before ** (1 - way) * cost**way
    return math.inf


def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    a, b = flops_until(flops_a, loss_a, target), flops_until(flops_b, loss_b, target)
    if math.isinf(a) and math.isinf(b):
        raise ValueError(f"No run gets to {target}.")
    return a / b


# %% fit_scaling_law
def best_line(alpha, beta, n, d, loss):
    """For given exponents: E, A, B and the sum of squares."""
    columns = torch.stack([loss**0, n**-alpha, d**-beta], 1) / loss[:, None]
    scale = columns.norm(dim=0)
    solution = torch.linalg.lstsq(columns / scale, torch.ones(len(n), 1, dtype=n.dtype)).solution[:, 0] / scale
    return solution, (columns @ solution - 1).pow(2).sum().item()


def fit_scaling_law(n, d, loss):
    """Walk down from the best point of a grid, in steps that become smaller where none of them helps."""
    grid = [(0.05 + 0.1 * i, 0.05 + 0.1 * j) for i in range(15) for j in range(15)]
    alpha, beta = min(grid, key=lambda point: best_line(*point, n, d, loss)[1])
    error, step = best_line(alpha, beta, n, d, loss)[1], 0.05
    while step > 1e-8:
        ways = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
        tried = [(alpha + step * a, beta + step * b) for a, b in ways]
        found = min(tried, key=lambda point: best_line(*point, n, d, loss)[1])
        value = best_line(*found, n, d, loss)[1]
        if value < error:
            (alpha, beta), error = found, value
        else:
            step /= 2
    solution, _ = best_line(alpha, beta, n, d, loss)
    return (*solution.tolist(), alpha, beta)
