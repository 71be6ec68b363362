# %% dispatch_plan
def dispatch_plan(experts, n_experts, world):
    flat = experts.flatten()
    return torch.argsort(flat, stable=True), torch.bincount(flat, minlength=n_experts).view(world, -1)


# %% expert_parallel_forward
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    if x.shape[0] == 0:
        return x  # nothing to do
    n_local = gate_up.shape[0]
    order, counts = dispatch_plan(experts, n_local * world, world)
    arriving = all_to_all(counts, [1] * world, [1] * world)
    send, receive = counts.sum(1).tolist(), arriving.sum(1).tolist()
    token = order // experts.shape[1]
    rows = all_to_all(x[token], send, receive)
    parts = rows.split(arriving.flatten().tolist())
    done = torch.cat([one_expert(part, gate_up[i % n_local], down[i % n_local]) for i, part in enumerate(parts)])
    back = all_to_all(done, receive, send)
    out = torch.zeros_like(x)
    return out.index_add(0, token, back * weights.flatten()[order].unsqueeze(1))


# %% ExpertCache
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"capacity {capacity}")
        self.load, self.capacity = load, capacity
        self.cache = {}
        self.hits, self.misses = 0, 0

    def fetch(self, expert):
        if expert in self.cache:
            self.hits += 1
            return self.cache[expert]
        self.misses += 1
        if len(self.cache) == self.capacity:
            self.cache.pop(next(iter(self.cache)))
        self.cache[expert] = self.load(expert)
        return self.cache[expert]

    def held(self):
        return list(self.cache)


# %% top_p_route
def top_p_route(logits, p):
    if p <= 0 or p > 1:
        raise ValueError(f"p is {p}")
    probs, index = torch.sort(torch.softmax(logits, -1), dim=-1, descending=True, stable=True)
    keep = probs.cumsum(-1) - probs < p
    probs = torch.where(keep, probs, torch.zeros_like(probs))
    probs = probs / probs.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, index, probs)


# %% add_expert
def add_expert(router, bias, gate_up, down, parent):
    new = [torch.cat([t, t[parent : parent + 1]]).detach() for t in (router, bias, gate_up, down)]
    new[1][-1] = 0
    return tuple(new)
