# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% save_state: clones, by hand
def cloned(value):
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cloned(item) for item in value)
    return value


def save_state(model, optimiser, schedule, generators, step):
    state = {
        name: cloned(part.state_dict())
        for name, part in zip(("model", "optimiser", "schedule"), (model, optimiser, schedule))
    }
    state["generators"] = {}
    for name in generators:
        state["generators"][name] = generators[name].get_state()
    state["torch"] = torch.random.get_rng_state()
    state["step"] = int(step)
    return state


# %% save_state: through a file in memory
def save_state(model, optimiser, schedule, generators, step):
    import io

    file = io.BytesIO()
    torch.save(
        dict(
            model=model.state_dict(),
            optimiser=optimiser.state_dict(),
            schedule=schedule.state_dict(),
            generators={name: g.get_state() for name, g in generators.items()},
            torch=torch.default_generator.get_state(),
            step=step,
        ),
        file,
    )
    file.seek(0)
    return torch.load(file, weights_only=True)


# %% save_state: each part by itself
def save_state(model, optimiser, schedule, generators, step):
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    memory = copy.deepcopy(optimiser.state_dict())
    rate = copy.deepcopy(schedule.state_dict())
    return {
        "step": step,
        "torch": torch.get_rng_state().clone(),
        "generators": {k: g.get_state().clone() for k, g in generators.items()},
        "schedule": rate,
        "optimiser": memory,
        "model": weights,
    }


# %% load_state: sets of names and shapes
def load_state(state, model, optimiser, schedule, generators):
    def shapes(weights):
        return {(name, tuple(value.shape)) for name, value in weights.items()}

    wrong = sorted(shapes(model.state_dict()) ^ shapes(state["model"]))
    if wrong:
        raise ValueError(f"The checkpoint is of another model: {wrong[0][0]} does not fit.")
    strange = set(generators).symmetric_difference(state["generators"])
    if strange:
        raise ValueError(f"Unknown generators: {', '.join(strange)}")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
    schedule.load_state_dict(copy.deepcopy(state["schedule"]))
    for name in generators:
        generators[name].set_state(state["generators"][name].clone())
    torch.random.set_rng_state(state["torch"].clone())
    return int(state["step"])


# %% load_state: a loop that looks at each name
def load_state(state, model, optimiser, schedule, generators):
    own, given = model.state_dict(), state["model"]
    for name, value in own.items():
        if name not in given:
            raise ValueError(f"the checkpoint has no {name}")
        if given[name].shape != value.shape:
            raise ValueError(f"{name}: {tuple(given[name].shape)} in the checkpoint, {tuple(value.shape)} here")
    for name in given:
        if name not in own:
            raise ValueError(f"the model has no {name}")
    for name in list(generators) + list(state["generators"]):
        if (name in generators) != (name in state["generators"]):
            raise ValueError(f"generator {name} is on one side only")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
    memory = copy.deepcopy(dict(state["optimiser"]))
    optimiser.load_state_dict(memory)
    schedule.load_state_dict(copy.deepcopy(dict(state["schedule"])))
    [generator.set_state(state["generators"][name]) for name, generator in generators.items()]
    torch.default_generator.set_state(state["torch"])
    return state["step"]


# %% load_state: undone if it fails
def load_state(state, model, optimiser, schedule, generators):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = copy.deepcopy(dict(state))
    if generators.keys() != state["generators"].keys():
        names = [
            n for n in {**generators, **state["generators"]} if n not in generators or n not in state["generators"]
        ]
        raise ValueError(f"generators: {names}")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        model.load_state_dict(before)
        raise ValueError(f"the checkpoint does not fit: {error}") from None
    for part, name in ((optimiser, "optimiser"), (schedule, "schedule")):
        part.load_state_dict(state[name])
    for name, generator in generators.items():
        generator.set_state(state["generators"].get(name))
    torch.set_rng_state(state["torch"])
    return state["step"]


# %% mutual_information: three entropies
def mutual_information(x, y):
    if x.shape != y.shape:
        raise ValueError(f"x has {x.numel()} labels, y has {y.numel()}")

    def entropy(labels):
        counts = torch.unique(labels, dim=0, return_counts=True)[1]
        share = counts.to(torch.float64) / counts.sum()
        return torch.special.entr(share).sum().item()

    return entropy(x) + entropy(y) - entropy(torch.stack((x, y), dim=1))


# %% mutual_information: counted in a dict
def mutual_information(x, y):
    from collections import Counter

    if len(x) != len(y):
        raise ValueError(f"{len(x)} labels against {len(y)}")
    pairs = list(zip(x.tolist(), y.tolist()))
    a, b, ab, n = Counter(p[0] for p in pairs), Counter(p[1] for p in pairs), Counter(pairs), len(pairs)
    return float(math.fsum(c / n * math.log(c * n / (a[i] * b[j])) for (i, j), c in ab.items()))


# %% mutual_information: a whole table
def mutual_information(x, y):
    if len(x) != len(y):
        raise ValueError(f"lengths {len(x)} and {len(y)}")
    rows, i = torch.unique(x, return_inverse=True)
    columns, j = torch.unique(y, return_inverse=True)
    table = torch.zeros(len(rows) * len(columns), dtype=torch.float64)
    table.scatter_add_(0, i * len(columns) + j, torch.ones(len(x), dtype=torch.float64))
    p = table.view(len(rows), len(columns)) / len(x)
    expected = p.sum(1, keepdim=True) @ p.sum(0, keepdim=True)
    return float((torch.xlogy(p, p) - torch.xlogy(p, expected)).sum())


# %% mutual_information: NumPy
def mutual_information(x, y):
    import numpy as np

    if len(x) != len(y):
        raise ValueError(f"x: {len(x)}, y: {len(y)}")
    _, i = np.unique(x.numpy(), return_inverse=True)
    _, j = np.unique(y.numpy(), return_inverse=True)
    table = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(table, (i, j), 1 / len(i))
    at = table > 0
    return (table[at] * np.log(table[at] / np.outer(table.sum(1), table.sum(0))[at])).sum().item()


# %% shuffled_null: the other row, and a comprehension
def shuffled_null(x, y, n_shuffles, seed):
    dice = torch.Generator()
    dice.manual_seed(seed)
    return torch.tensor(
        [mutual_information(x[torch.randperm(x.numel(), generator=dice)], y) for _ in range(n_shuffles)]
    ).to(torch.float64)


# %% shuffled_null: filled step by step, with Python's generator
def shuffled_null(x, y, n_shuffles, seed):
    import random

    rng, values = random.Random(seed), torch.zeros(n_shuffles, dtype=torch.float64)
    for k in range(n_shuffles):
        shuffled = y.tolist()
        rng.shuffle(shuffled)
        values[k] = mutual_information(x, torch.tensor(shuffled))
    return values


# %% shuffled_null: the noise sorted
def shuffled_null(x, y, n_shuffles, seed):
    noise = torch.rand(n_shuffles, len(y), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.as_tensor([mutual_information(x, row) for row in y[noise.argsort(1)]], dtype=torch.float64)


# %% speedup_factor: a loop over the points
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    def cost(flops, loss):
        last = None
        for f, value in zip(flops.tolist(), loss.tolist()):
            if value <= target:
                if last is None:
                    return f
                t = (last[1] - target) / (last[1] - value)
                return math.exp((1 - t) * math.log(last[0]) + t * math.log(f))
            last = (f, value)
        return float("inf")

    first, second = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if math.isinf(first) and math.isinf(second):
        raise ValueError(f"no run gets down to {target}")
    return first / second


# %% speedup_factor: argmax, and lerp of the logarithms
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    logs = []
    for flops, loss in ((flops_a, loss_a), (flops_b, loss_b)):
        there = loss <= target
        if not there.any():
            logs.append(math.inf)
            continue
        i = int(there.int().argmax())
        j = max(i - 1, 0)
        t = torch.tensor(1.0, dtype=torch.float64) if i == j else (loss[j] - target) / (loss[j] - loss[i])
        logs.append(torch.lerp(flops[j].log(), flops[i].log(), t).item())
    if min(logs) == math.inf:
        raise ValueError(f"target {target}: not reached by either")
    return math.inf if logs[0] == math.inf else math.exp(logs[0] - logs[1]) if logs[1] < math.inf else 0.0


# %% speedup_factor: the running minimum, and numpy.interp
def speedup_factor(flops_a, loss_a, flops_b, loss_b, target):
    import numpy as np

    def cost(flops, loss):
        flops, loss = flops.numpy(), loss.numpy()
        if not (np.minimum.accumulate(loss) <= target).any():
            return np.inf
        i = np.flatnonzero(loss <= target)[0]
        if i == 0:
            return flops[0]
        return np.exp(np.interp(-target, -loss[i - 1 : i + 1], np.log(flops[i - 1 : i + 1])))

    a, b = cost(flops_a, loss_a), cost(flops_b, loss_b)
    if a == b == np.inf:
        raise ValueError(f"{target} is out of reach for both")
    return float(a / b)


# %% fit_scaling_law: L-BFGS on the two exponents
def fit_scaling_law(n, d, loss):
    def solved(exponents):
        alpha, beta = exponents
        columns = torch.stack((torch.ones_like(n), n**-alpha, d**-beta), -1) / loss.unsqueeze(-1)
        q, r = torch.linalg.qr(columns)
        linear = torch.linalg.solve_triangular(r, q.mT.sum(-1, keepdim=True), upper=True)
        return (columns @ linear - 1).square().sum(), linear[:, 0]

    best = (math.inf, None)
    for start in ((0.2, 0.2), (0.2, 0.9), (0.9, 0.2), (0.9, 0.9)):
        exponents = torch.tensor(start, dtype=torch.float64).logit().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [exponents], max_iter=80, tolerance_grad=1e-15, tolerance_change=1e-18, line_search_fn="strong_wolfe"
        )

        def closure():
            optimiser.zero_grad()
            value = (solved(1.5 * exponents.sigmoid())[0] + 1e-12).log()  # runs may follow a law exactly
            value.backward()
            return value

        optimiser.step(closure)
        with torch.no_grad():
            found = 1.5 * exponents.sigmoid()
            error, linear = solved(found)
        if error < best[0]:
            best = (error.item(), (*linear.tolist(), *found.tolist()))
    return best[1]


# %% fit_scaling_law: Levenberg and Marquardt
def fit_scaling_law(n, d, loss):
    import numpy as np

    n, d, loss = n.numpy(), d.numpy(), loss.numpy()

    def linear(alpha, beta):
        columns = np.stack([np.ones_like(n), n**-alpha, d**-beta], 1) / loss[:, None]
        c = np.linalg.lstsq(columns, np.ones(len(n)), rcond=None)[0]
        return c, columns @ c - 1

    def error(p):
        return float(np.square(linear(*p)[1]).sum())

    starts = [(a, b) for a in np.linspace(0.1, 1.4, 9) for b in np.linspace(0.1, 1.4, 9)]
    p, damping = np.array(min(starts, key=error)), 1e-3
    for _ in range(120):
        here, step = linear(*p)[1], 1e-6
        slope = np.stack([(linear(*(p + step * e))[1] - linear(*(p - step * e))[1]) / (2 * step) for e in np.eye(2)], 1)
        hessian = slope.T @ slope
        move = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), slope.T @ here)
        new = np.clip(p - move, 0.05, 1.5)
        p, damping = (new, damping / 4) if error(new) < error(p) else (p, min(damping * 4, 1e9))
    return tuple(float(v) for v in (*linear(*p)[0], *p))


# %% fit_scaling_law: one golden section in another
def fit_scaling_law(n, d, loss):
    one = torch.ones(len(n), 1, dtype=torch.float64)

    def solved(alpha, beta):
        columns = torch.stack([one[:, 0], n**-alpha, d**-beta], -1) / loss[:, None]
        c = torch.linalg.lstsq(columns, one).solution
        return (columns @ c - 1).square().sum().item(), c

    def smallest(f, low, high):
        marks = [low + (high - low) * i / 12 for i in range(13)]
        best = min(range(13), key=lambda i: f(marks[i]))
        low, high = marks[max(best - 1, 0)], marks[min(best + 1, 12)]
        golden = (math.sqrt(5) - 1) / 2
        for _ in range(30):
            a, b = high - golden * (high - low), low + golden * (high - low)
            low, high = (low, b) if f(a) < f(b) else (a, high)
        return (low + high) / 2

    def beta_of(alpha):
        return smallest(lambda beta: solved(alpha, beta)[0], 0.05, 1.5)

    alpha = smallest(lambda a: solved(a, beta_of(a))[0], 0.05, 1.5)
    beta = beta_of(alpha)
    return (*solved(alpha, beta)[1][:, 0].tolist(), alpha, beta)
