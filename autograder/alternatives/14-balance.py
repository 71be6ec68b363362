# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% load_balancing_loss: bincount and einsum
def load_balancing_loss(logits, top_k, per="routing"):
    n_tokens, n_experts = logits.shape
    prob = torch.softmax(logits, dim=-1, dtype=torch.float32)
    load = torch.bincount(torch.topk(logits, top_k, dim=-1).indices.flatten(), minlength=n_experts)
    divisor = n_tokens * (top_k if per == "routing" else 1)
    return n_experts * torch.einsum("e,te->", load / divisor, prob) / n_tokens


# %% load_balancing_loss: expert by expert
def load_balancing_loss(logits, top_k, per="routing"):
    probabilities = F.softmax(logits.to(torch.float32), -1)
    picks = probabilities.detach().argsort(-1, descending=True)[:, :top_k]
    loss = 0.0
    for expert in range(logits.size(-1)):
        f = (picks == expert).sum().item() / (picks.numel() if per == "routing" else len(picks))
        loss = loss + f * probabilities[:, expert].mean()
    return logits.size(-1) * loss


# %% load_balancing_loss: a mask by scatter, E² times a mean
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.double().softmax(-1)
    mask = torch.zeros_like(p).scatter(-1, logits.topk(top_k, -1).indices, 1.0)
    loss = (mask.mean(0) * p.mean(0)).mean() * p.size(1) ** 2
    return (loss / top_k if per == "routing" else loss).float()


# %% router_z_loss: functions of torch
def router_z_loss(logits):
    log_z = torch.logsumexp(logits.to(torch.float32), dim=1)
    return torch.mean(log_z**2)


# %% router_z_loss: the largest taken out by hand
def router_z_loss(logits):
    x = logits.float()
    largest = x.detach().amax(-1, keepdim=True)
    log_z = (x - largest).exp().sum(-1).log() + largest[:, 0]
    return (log_z * log_z).sum() / len(x)


# %% router_z_loss: a logit minus its log-probability
def router_z_loss(logits):
    x = logits.float()
    return (x - x.log_softmax(-1)).mean(-1).pow(2).mean()


# %% with_capacity: a queue in Python
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    n_tokens, top_k = experts.shape
    room = [math.ceil(capacity_factor * n_tokens * top_k / n_experts)] * n_experts
    queue = [(token, column) for token in range(n_tokens) for column in range(top_k)]
    if priority == "weight":
        queue = sorted(queue, key=lambda at: weights[at].item(), reverse=True)
    kept = torch.zeros(n_tokens, top_k, dtype=torch.bool)
    for at in queue:
        expert = experts[at].item()
        kept[at] = room[expert] > 0
        room[expert] -= 1
    return torch.where(kept, weights, torch.zeros_like(weights)), kept


# %% with_capacity: expert by expert
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = -int(-(capacity_factor * experts.numel()) // n_experts)
    kept = torch.zeros(experts.numel(), dtype=torch.bool)
    for expert in range(n_experts):
        waiting = (experts.flatten() == expert).nonzero().flatten()
        if priority == "weight":
            waiting = waiting[weights.detach().flatten()[waiting].sort(descending=True, stable=True).indices]
        kept[waiting[:capacity]] = True
    kept = kept.reshape(experts.shape)
    return weights * kept, kept


# %% with_capacity: ranks by comparing all pairs
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * weights.size(0) * weights.size(1) / n_experts)
    e, w, at = experts.reshape(-1), weights.detach().reshape(-1), torch.arange(experts.numel())
    before = at[None] < at[:, None]
    if priority == "weight":
        before = (w[None] > w[:, None]) | ((w[None] == w[:, None]) & before)
    ahead = (before & (e[None] == e[:, None])).sum(-1)
    kept = (ahead < capacity).reshape(experts.shape)
    return weights.masked_fill(kept.logical_not(), 0.0), kept


# %% expert_choice: sorted, then cut off
def expert_choice(logits, capacity):
    scores, order = torch.softmax(logits, -1, dtype=torch.float32).t().sort(dim=-1, descending=True)
    return scores[:, :capacity].type_as(logits), order[:, :capacity]


# %% expert_choice: column by column
def expert_choice(logits, capacity):
    p = F.softmax(logits.float(), dim=1)
    take = min(capacity, p.size(0))
    rows = [p[:, e].topk(take) for e in range(p.size(1))]
    return torch.stack([row.values for row in rows]).to(logits.dtype), torch.stack([row.indices for row in rows])


# %% expert_choice: topk over dimension 0
def expert_choice(logits, capacity):
    p = logits.float().softmax(dim=-1)
    top = torch.topk(p, k=min(capacity, logits.shape[0]), dim=0)
    return top.values.mT.to(logits.dtype), top.indices.mT


# %% bias_update: a mask, and bincount
def route_with_bias(logits, bias, top_k):
    p = torch.softmax(logits, -1, dtype=torch.float32)
    _, experts = torch.topk(p.detach() + bias[None, :], top_k, dim=-1)
    chosen = torch.gather(p, 1, experts)
    return chosen.div(chosen.sum(1, keepdim=True)).type_as(logits), experts


def bias_update(bias, experts, rate):
    load = torch.bincount(experts.reshape(-1), minlength=bias.numel())
    mean = experts.numel() / bias.numel()
    return bias - rate * torch.sign(load - mean)


# %% bias_update: a softmax over the chosen logits, in ascending order
def route_with_bias(logits, bias, top_k):
    x = logits.float()
    experts = (x.softmax(-1) + bias).argsort(-1)[:, -top_k:]
    return x.gather(-1, experts).softmax(-1).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    new = bias.clone()
    for expert in range(len(bias)):
        load = (experts == expert).sum().item() * len(bias)
        if load < experts.numel():
            new[expert] += rate
        elif load > experts.numel():
            new[expert] -= rate
    return new


# %% bias_update: where
def route_with_bias(logits, bias, top_k):
    p = F.softmax(logits.float(), dim=-1)
    experts = torch.topk(p + bias, top_k, sorted=False).indices
    weights = p.take_along_dim(experts, -1)
    return F.normalize(weights, p=1, dim=-1).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = torch.stack([(experts == i).sum() for i in range(bias.shape[0])]).float()
    step = torch.where(load > load.mean(), -1.0, torch.where(load < load.mean(), 1.0, 0.0))
    return bias + step * rate


# %% hash_route: a heap
import heapq


def hash_route(ids, counts, n_experts):
    heap = [(0, expert) for expert in range(n_experts)]
    table = {}
    for token in sorted(range(len(counts)), key=lambda t: (-counts[t].item(), t)):
        total, expert = heapq.heappop(heap)
        table[token] = expert
        heapq.heappush(heap, (total + counts[token].item(), expert))
    return torch.ones(len(ids), 1), torch.tensor([[table[t]] for t in ids.tolist()])


# %% hash_route: totals in a tensor
def hash_route(ids, counts, n_experts):
    total = torch.zeros(n_experts, dtype=torch.int64)
    table = torch.empty(len(counts), dtype=torch.int64)
    for token in torch.sort(counts, descending=True, stable=True).indices:
        expert = min(range(n_experts), key=lambda e: (int(total[e]), e))
        table[token] = expert
        total[expert] += counts[token]
    experts = table.index_select(0, ids).unsqueeze(-1)
    return torch.ones_like(experts, dtype=torch.float32), experts
