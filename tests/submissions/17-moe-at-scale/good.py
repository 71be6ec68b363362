# %% a helper that two of my answers use
def share_of_kept(logits, k):
    """The k largest probabilities of each row, divided by their sum, and where they are."""
    kept, where = logits.to(torch.float32).softmax(dim=-1).topk(k, dim=-1)
    return kept / kept.sum(dim=-1, keepdim=True), where


# %% dispatch_plan
def dispatch_plan(experts, n_experts, world):
    """Which assignments go where."""
    per_rank, left_over = divmod(n_experts, world)
    if left_over != 0:
        raise ValueError(f"I cannot give {n_experts} experts to {world} ranks so that all have the same number.")
    chosen = experts.reshape(-1)
    counts = torch.zeros(n_experts, dtype=torch.int64)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    _, order = chosen.sort(stable=True)
    return order, counts.reshape(world, per_rank)


# %% expert_parallel_forward
def expert_parallel_forward(x, weights, experts, gate_up, down, world, all_to_all):
    top_k = experts.size(1)
    mine = down.size(0)

    # 1: how much will come?
    order, outgoing = dispatch_plan(experts, mine * world, world)
    incoming = all_to_all(outgoing, [1] * world, [1] * world)
    there = [row.sum().item() for row in outgoing]
    here = [row.sum().item() for row in incoming]

    # 2: the tokens
    source = torch.div(order, top_k, rounding_mode="floor")
    rows = all_to_all(x[source], there, here)

    # 3: parcel by parcel: rank 0's rows for my expert 0, for my expert 1, ..., then rank 1's
    results = []
    parcels = rows.split(incoming.flatten().tolist())
    for number, parcel in enumerate(parcels):
        expert = number % mine
        results.append(one_expert(parcel, gate_up[expert], down[expert]))
    returned = all_to_all(torch.cat(results), here, there)

    scaled = returned * weights.reshape(-1)[order].unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, source, scaled)


# %% ExpertCache
class ExpertCache:
    def __init__(self, load, capacity):
        if capacity < 1:
            raise ValueError(f"a cache with room for {capacity} experts is none")
        self.load = load
        self.capacity = capacity
        self.shelf = {}  # a dict remembers the order in which things were put in
        self.hits = 0
        self.misses = 0

    def fetch(self, expert):
        found = expert in self.shelf
        if found:
            weights = self.shelf.pop(expert)
            self.hits += 1
        else:
            if len(self.shelf) >= self.capacity:
                oldest = next(iter(self.shelf))
                del self.shelf[oldest]
            weights = self.load(expert)
            self.misses += 1
        self.shelf[expert] = weights
        return weights

    def held(self):
        return list(self.shelf.keys())


# %% hierarchical_route
def hierarchical_route(group_logits, expert_logits, top_groups, top_k):
    size = expert_logits.size(-1)
    groups_share, groups = share_of_kept(group_logits, top_groups)
    of_chosen = torch.take_along_dim(expert_logits, groups.unsqueeze(-1), dim=1)
    experts_share, inside = share_of_kept(of_chosen, top_k)
    weights = (groups_share.unsqueeze(-1) * experts_share).flatten(start_dim=1)
    numbers = (groups.unsqueeze(-1) * size + inside).flatten(start_dim=1)
    best_first = weights.argsort(dim=-1, descending=True)
    weights = torch.take_along_dim(weights, best_first, dim=-1)
    return weights.to(group_logits.dtype), torch.take_along_dim(numbers, best_first, dim=-1)


# %% top_p_route
def top_p_route(logits, p):
    if not 0 < p <= 1:
        raise ValueError(f"p should be above 0 and at most 1, it is {p}")
    probabilities = logits.float().softmax(-1)
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    reached_before = ranked.cumsum(-1) - ranked >= p
    drop = torch.zeros_like(reached_before).scatter(-1, order, reached_before)
    kept = probabilities.masked_fill(drop, 0.0)
    return (kept / kept.sum(-1, keepdim=True)).to(logits.dtype)


# %% add_expert
def add_expert(router, bias, gate_up, down, parent):
    with torch.no_grad():
        locked = torch.full_like(bias[:1], float("-inf"))
        return (
            torch.cat([router, router[parent].unsqueeze(0)]),
            torch.cat([bias, locked]),
            torch.cat([gate_up, gate_up[parent].unsqueeze(0)]),
            torch.cat([down, down[parent].unsqueeze(0)]),
        )
