# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% dispatch_plan: lists
def dispatch_plan(experts, n_experts, world):
    if n_experts % world != 0:
        raise ValueError(f"Cannot share {n_experts} experts among {world} ranks.")
    flat = experts.reshape(-1).tolist()
    order = sorted(range(len(flat)), key=flat.__getitem__)
    size = n_experts // world
    counts = [[flat.count(rank * size + i) for i in range(size)] for rank in range(world)]
    return torch.tensor(order, dtype=torch.int64), torch.tensor(counts, dtype=torch.int64)


# %% dispatch_plan: sort and scatter_add
def dispatch_plan(experts, n_experts, world):
    size, rest = divmod(n_experts, world)
    if rest:
        raise ValueError(f"world ({world}) must divide n_experts ({n_experts})")
    flat = experts.contiguous().view(-1)
    _, order = torch.sort(flat, stable=True)
    counts = torch.zeros(n_experts, dtype=torch.int64).scatter_add(0, flat, torch.ones_like(flat))
    return order, counts.reshape(world, size)


# %% dispatch_plan: a key that holds expert and number
def dispatch_plan(experts, n_experts, world):
    if n_experts % world:
        raise ValueError(f"{n_experts} is not a multiple of {world}")
    flat = experts.flatten()
    order = (flat * (len(flat) + 1) + torch.arange(len(flat))).argsort()
    counts = (flat == torch.arange(n_experts)[:, None]).sum(1)
    return order, counts.view(world, n_experts // world)


# %% expert_parallel_forward: parcels as lists
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    n_local, top_k = gate_up.shape[0], experts.shape[1]
    order, counts = dispatch_plan(experts, n_local * world, world)
    arriving = all_to_all(counts, send=[1] * world, receive=[1] * world)
    outgoing = [int(n) for n in counts.sum(-1)]
    incoming = [int(n) for n in arriving.sum(-1)]
    rows = all_to_all(x.index_select(0, order.div(top_k, rounding_mode="floor")), outgoing, incoming)
    answers = []
    for number, part in enumerate(rows.split(arriving.flatten().tolist())):
        answers.append(one_expert(part, gate_up[number % n_local], down[number % n_local]))
    returned = all_to_all(torch.cat(answers), incoming, outgoing)
    per_assignment = torch.zeros(experts.numel(), x.shape[1], dtype=x.dtype)
    per_assignment = per_assignment.index_copy(0, order, returned)
    return (per_assignment.view(len(x), top_k, x.shape[1]) * weights[..., None]).sum(1)


# %% expert_parallel_forward: sorted by expert, and back
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    n_local = len(down)
    order, counts = dispatch_plan(experts, world * n_local, world)
    coming = all_to_all(counts, [1 for _ in range(world)], [1 for _ in range(world)])
    there, here = counts.sum(1).tolist(), coming.sum(1).tolist()
    rows = all_to_all(x.repeat_interleave(experts.shape[1], 0)[order], there, here)
    label = torch.cat([torch.full((int(n),), i % n_local) for i, n in enumerate(coming.flatten())])
    by_expert = label.argsort(stable=True)
    pieces = rows[by_expert].split(coming.sum(0).tolist())
    done = torch.cat([one_expert(piece, gate_up[i], down[i]) for i, piece in enumerate(pieces)])
    results = done[by_expert.argsort()]
    back = all_to_all(results, here, there)
    return torch.einsum("tk,tkd->td", weights, back[order.argsort()].unflatten(0, experts.shape))


# %% ExpertCache: a plain dict, put in again
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity <= 0:
            raise ValueError(f"The capacity must be at least 1, not {capacity}.")
        self._load, self._capacity, self._kept = load, capacity, {}
        self.hits, self.misses = 0, 0

    def fetch(self, expert):
        if expert in self._kept:
            weights = self._kept.pop(expert)
            self.hits += 1
        else:
            while len(self._kept) >= self._capacity:
                self._kept.pop(next(iter(self._kept)))
            weights = self._load(expert)
            self.misses += 1
        self._kept[expert] = weights
        return weights

    def held(self):
        return [*self._kept]


# %% ExpertCache: two lists
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity={capacity} holds nothing")
        self.source, self.room = load, capacity
        self.numbers, self.values = [], []
        self.hits = self.misses = 0

    def fetch(self, expert):
        if expert in self.numbers:
            place = self.numbers.index(expert)
            number, value = self.numbers.pop(place), self.values.pop(place)
            self.hits += 1
        else:
            if len(self.numbers) == self.room:
                del self.numbers[0], self.values[0]
            number, value = expert, self.source(expert)
            self.misses += 1
        self.numbers.append(number)
        self.values.append(value)
        return value

    def held(self):
        return self.numbers.copy()


# %% ExpertCache: the time of the last use
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"no room: {capacity}")
        self.load, self.capacity, self.weights, self.used, self.clock, self.hits = load, capacity, {}, {}, 0, 0

    @property
    def misses(self):
        return self.clock - self.hits

    def fetch(self, expert):
        self.clock += 1
        if expert in self.weights:
            self.hits += 1
        else:
            if len(self.weights) == self.capacity:
                oldest = min(self.weights, key=self.used.get)
                del self.weights[oldest]
            self.weights[expert] = self.load(expert)
        self.used[expert] = self.clock
        return self.weights[expert]

    def held(self):
        return sorted(self.weights, key=self.used.get)


# %% hierarchical_route: softmax over the kept logits
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    g, group = torch.topk(group_logits, top_groups)
    size = expert_logits.shape[-1]
    e, expert = torch.gather(expert_logits, 1, group[..., None].expand(-1, -1, size)).topk(top_k)
    joint = torch.softmax(g, -1, dtype=torch.float32)[..., None] * torch.softmax(e, -1, dtype=torch.float32)
    weights, order = joint.flatten(1).topk(top_groups * top_k)
    return weights.to(group_logits.dtype), (group[..., None] * size + expert).flatten(1).gather(1, order)


# %% hierarchical_route: a mask over all experts
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    def share(logits, k):
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(k).indices, True)
        return logits.float().masked_fill(~kept, -torch.inf).softmax(-1)

    weights = share(group_logits, top_groups)[..., None] * share(expert_logits, top_k)
    weights, experts = weights.flatten(1).topk(top_groups * top_k)
    return weights.to(expert_logits.dtype), experts


# %% hierarchical_route: in logarithms
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    _, n_groups, size = expert_logits.shape
    g, group = group_logits.float().topk(top_groups, dim=1)
    e, expert = expert_logits.float().topk(top_k, dim=2)
    e, expert = e.log_softmax(-1), expert + size * torch.arange(n_groups)[:, None]
    index = group[:, :, None].expand(-1, -1, top_k)
    total = (g.log_softmax(-1)[:, :, None] + e.gather(1, index)).flatten(1)
    order = total.argsort(-1, descending=True)
    return total.gather(1, order).exp().to(group_logits.dtype), expert.gather(1, index).flatten(1).gather(1, order)


# %% top_p_route: token by token
def top_p_route(logits, p):
    if p <= 0 or p > 1:
        raise ValueError(f"p = {p} is no share")
    rows = []
    for row in logits.float().softmax(-1):
        order = sorted(range(len(row)), key=lambda expert: (-row[expert].item(), expert))
        total, chosen = 0.0, []
        for expert in order:
            chosen.append(expert)
            total += row[expert].item()
            if total >= p - 1e-7:
                break
        mask = torch.zeros_like(row)
        mask[chosen] = 1
        rows.append(row * mask / (row * mask).sum())
    return torch.stack(rows).to(logits.dtype) if rows else torch.zeros_like(logits)


# %% top_p_route: how many, then a mask over ranks
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p has to be in (0, 1], it is {p}")
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    order = torch.sort(probabilities, dim=-1, descending=True, stable=True)[1]
    totals = probabilities.gather(-1, order).cumsum(-1)
    n = (totals < p).sum(-1, keepdim=True) + 1
    place = order.argsort(-1)
    weights = torch.where(place < n, probabilities, 0.0)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype)


# %% top_p_route: a softmax over what is left
def top_p_route(logits, p):
    if not (p > 0 and p <= 1):
        raise ValueError(f"{p} is not above 0 and at most 1")
    wide = logits.float()
    values, order = wide.sort(dim=-1, descending=True, stable=True)
    shares = values.softmax(-1)
    shifted = F.pad(shares.cumsum(-1)[..., :-1], (1, 0))
    keep = torch.zeros_like(wide, dtype=torch.bool).scatter(-1, order, shifted < p)
    return wide.masked_fill(~keep, -torch.inf).softmax(-1).to(logits.dtype)


# %% add_expert: one after the other
def add_expert(router, bias, gate_up, down, parent):
    with torch.no_grad():
        new_router = torch.cat((router, router[parent][None]), dim=0)
        new_bias = F.pad(bias, (0, 1), value=float("-inf"))
        new_gate_up = torch.vstack((gate_up, gate_up[parent].unsqueeze(0)))
        new_down = torch.vstack((down, down[parent].unsqueeze(0)))
    return new_router, new_bias, new_gate_up, new_down


# %% add_expert: by a list of numbers
def add_expert(router, bias, gate_up, down, parent):
    numbers = [*range(len(router)), parent]
    new = [part.detach()[numbers] for part in (router, bias, gate_up, down)]
    new[1] = new[1].index_fill(0, torch.tensor([len(router)]), -float("inf"))
    return tuple(new)


# %% add_expert: new parameters
def add_expert(router, bias, gate_up, down, parent):
    def grow(old, value):
        new = old.new_empty(len(old) + 1, *old.shape[1:])
        new[:-1] = old.detach()
        new[-1] = value
        return torch.nn.Parameter(new)

    return (
        grow(router, router[parent].detach()),
        grow(bias, -torch.inf),
        grow(gate_up, gate_up[parent].detach()),
        grow(down, down[parent].detach()),
    )
