# %% load_balancing_loss
def load_balancing_loss(logits, top_k, per="routing"):
    num_tokens, num_experts = logits.shape
    router_probs = F.softmax(logits.float(), dim=-1)
    with torch.no_grad():  # a count has no gradient
        _, picked = router_probs.topk(top_k, dim=-1)
        load = torch.bincount(picked.flatten(), minlength=num_experts).float()
        if per == "routing":
            f = load / load.sum()
        else:
            f = load / num_tokens
    P = router_probs.mean(dim=0)
    return num_experts * torch.dot(f, P)


# %% router_z_loss
def router_z_loss(logits):
    log_z = torch.logsumexp(logits.float(), dim=-1)
    return (log_z**2).mean()


# %% with_capacity
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    tokens, top_k = experts.shape
    capacity = math.ceil(capacity_factor * tokens * top_k / n_experts)
    flat_experts = experts.reshape(-1)
    flat_weights = weights.detach().reshape(-1)
    kept = torch.zeros(tokens * top_k, dtype=torch.bool)
    for e in range(n_experts):
        queue = torch.nonzero(flat_experts == e).squeeze(-1)  # in the order of the text
        if priority == "weight":
            order = torch.sort(flat_weights[queue], descending=True, stable=True).indices
            queue = queue[order]
        kept[queue[:capacity]] = True
    kept = kept.reshape(tokens, top_k)
    return torch.where(kept, weights, torch.zeros_like(weights)), kept


# %% expert_choice
def expert_choice(logits, capacity):
    p = torch.softmax(logits.float(), dim=-1)
    n = p.shape[0]
    values, indices = torch.topk(p.transpose(0, 1), k=min(n, capacity), dim=1)
    return values.to(logits.dtype), indices


# %% bias_update
def route_with_bias(logits, bias, top_k):
    p = torch.softmax(logits.float(), dim=-1)
    _, experts = torch.topk(p + bias, top_k, dim=-1)
    chosen = torch.gather(p, -1, experts)
    weights = chosen / chosen.sum(dim=-1, keepdim=True)
    return weights.to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = torch.bincount(experts.flatten(), minlength=bias.shape[0]).float()
    error = load.mean() - load
    return bias + rate * torch.sign(error)


# %% hash_route
def hash_route(ids, counts, n_experts):
    table = [0] * len(counts)
    totals = [0] * n_experts
    for token_id in sorted(range(len(counts)), key=lambda t: (-int(counts[t]), t)):
        e = totals.index(min(totals))
        table[token_id] = e
        totals[e] += int(counts[token_id])
    experts = torch.tensor(table)[ids].unsqueeze(1)
    return torch.ones(experts.shape), experts
