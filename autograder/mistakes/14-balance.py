# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% load_balancing_loss: f made of probabilities
# caught by: test_the_loss_is_the_published_formula, test_the_gradient_flows_through_the_probabilities_only
# says: f is the mean probability here, so this is E · Σ P²: f should count where the tokens go.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1).mean(0)
    loss = len(p) * (p * p).sum()
    return loss if per == "routing" else top_k * loss


# %% load_balancing_loss: f made of the chosen probabilities
# caught by: test_the_loss_is_the_published_formula, test_the_gradient_flows_through_the_probabilities_only
# says: f adds up the probabilities of the chosen experts here: it should count each routing as one.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    weights, experts = p.topk(top_k)
    f = torch.zeros_like(p).scatter(-1, experts, weights).mean(0)
    loss = p.shape[-1] * (f * p.mean(0)).sum()
    return loss / top_k if per == "routing" else loss


# %% load_balancing_loss: a gradient through f
# caught by: test_the_gradient_flows_through_the_probabilities_only
# says: The number is right, but a gradient flows through f as well (straight-through): f should be a constant count.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    hard = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float()
    f = (hard + p - p.detach()).mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: no gradient at all
# caught by: test_the_gradient_flows_through_the_probabilities_only
# says: The probabilities are detached, so the loss has no gradient and the router learns nothing from it.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0).detach()).sum()


# %% load_balancing_loss: P of the chosen experts only, divided by their sum
# caught by: test_the_loss_is_the_published_formula, test_even_probabilities_give_one_whatever_the_choices_are
# says: P is made of the weights of the chosen experts after they were divided by their sum: take all probabilities.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    top = p.topk(top_k)
    weights = top.values / top.values.sum(-1, keepdim=True)
    f = F.one_hot(top.indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * torch.zeros_like(p).scatter(-1, top.indices, weights).mean(0)).sum()


# %% load_balancing_loss: P of the chosen experts only
# caught by: test_the_loss_is_the_published_formula, test_even_choices_give_one_whatever_the_probabilities_are
# says: P leaves out the probability of experts that were not chosen: it is the mean over all tokens.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    chosen = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float()
    f = chosen.mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * (p * chosen).mean(0)).sum()


# %% load_balancing_loss: without the factor E
# caught by: test_the_loss_is_the_published_formula, test_per_routing_is_one_at_balance
# says: The factor E is missing: this is the bare dot product of f and P.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return (f * p.mean(0)).sum()


# %% load_balancing_loss: E twice
# caught by: test_the_loss_is_the_published_formula, test_per_routing_is_one_at_balance
# says: This is E² times the dot product: the factor E² belongs to a mean over the experts, not to a sum.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] ** 2 * (f * p.mean(0)).sum()


# %% load_balancing_loss: the mean over experts
# caught by: test_the_loss_is_the_published_formula, test_per_routing_is_one_at_balance
# says: This is the mean of f · P over the experts instead of E times the sum.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return (f * p.mean(0)).mean()


# %% load_balancing_loss: always per token
# caught by: test_per_routing_is_one_at_balance, test_the_loss_is_the_published_formula
# says: f is divided by the number of tokens where per="routing" asks for a share of all routings, top_k a token.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: always per routing
# caught by: test_per_token_is_top_k_at_balance
# says: per="token" gives the same as per="routing": there f should add up to top_k.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum((0, 1)) / p.topk(top_k).indices.numel()
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: the two conventions exchanged
# caught by: test_per_routing_is_one_at_balance, test_per_token_is_top_k_at_balance
# says: The two conventions are exchanged: per="routing" should give 1 at balance and per="token" top_k.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "token":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: only the first choice is counted
# caught by: test_the_loss_is_the_published_formula
# says: Only each token's first expert is counted: all top_k routings should be.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.argmax(-1), p.shape[-1]).float().mean(0)
    if per == "token":
        f = f * top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: softmax over the tokens
# caught by: test_the_loss_is_the_published_formula
# says: The softmax runs over the tokens; it should run over the experts, the last dimension.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(0)
    f = F.one_hot(logits.float().topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: f · P token by token
# caught by: test_the_loss_is_the_published_formula, test_even_probabilities_give_one_whatever_the_choices_are
# says: Choice and probability are multiplied token by token before the mean: take both means over tokens first.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    chosen = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float()
    loss = len(p) * p.shape[-1] * (chosen * p).mean(0).pow(2).sum()
    return loss / top_k if per == "routing" else loss


# %% load_balancing_loss: counts instead of shares
# caught by: test_the_loss_is_the_published_formula, test_neither_the_order_nor_the_number_of_tokens_matters
# says: f holds counts, so the loss grows with the number of tokens: divide by it.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum((0, 1)).float()
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: the exponential by hand
# caught by: test_large_logits_give_a_finite_loss
# says: exp overflows for large logits: use softmax, which takes out the largest first.
def load_balancing_loss(logits, top_k, per="routing"):
    e = logits.float().exp()
    p = e / e.sum(-1, keepdim=True)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: large logits are cut off
# caught by: test_large_logits_give_a_finite_loss
# says: Large logits are cut off before the softmax, so that those above the limit become equal: take out the largest instead.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().clamp(-80, 80).softmax(-1)
    f = F.one_hot(logits.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: f in the dtype of the logits
# caught by: test_the_balancing_loss_of_bfloat16_logits_is_float32
# says: f is rounded to the dtype of the logits; it is float32 whatever they are.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).float().mean(0).to(logits.dtype)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% load_balancing_loss: the number of experts taken from those chosen
# caught by: test_an_expert_that_nobody_chose_counts_as_zero
# says: E is the number of experts that somebody chose; it should be the number of all experts.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.float().softmax(-1)
    load = torch.bincount(p.topk(top_k).indices.flatten())
    f = load / len(p) / (top_k if per == "routing" else 1)
    return len(load) * (f * p.mean(0)[: len(load)]).sum()


# %% load_balancing_loss: in the dtype of the logits
# caught by: test_the_balancing_loss_of_bfloat16_logits_is_float32
# says: The loss of bfloat16 logits is bfloat16: turn the logits into float32 first.
def load_balancing_loss(logits, top_k, per="routing"):
    p = logits.softmax(-1)
    f = F.one_hot(p.topk(top_k).indices, p.shape[-1]).sum(1).to(p.dtype).mean(0)
    if per == "routing":
        f = f / top_k
    return p.shape[-1] * (f * p.mean(0)).sum()


# %% router_z_loss: without the square
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator
# says: The log of the denominator is not squared.
def router_z_loss(logits):
    return logits.float().logsumexp(-1).mean()


# %% router_z_loss: the square of the mean
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator, test_the_z_loss_is_a_mean_over_tokens
# says: This squares the mean over tokens; it should be the mean of the squares.
def router_z_loss(logits):
    return logits.float().logsumexp(-1).mean() ** 2


# %% router_z_loss: the log of the softmax
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator, test_the_z_loss_sees_a_number_added_to_all_logits
# says: This squares the log of the probabilities, which does not see how large the logits are.
def router_z_loss(logits):
    return logits.float().log_softmax(-1).square().mean()


# %% router_z_loss: the log-sum-exp of probabilities
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator, test_the_z_loss_sees_a_number_added_to_all_logits
# says: The log-sum-exp is taken of probabilities; it belongs to the logits.
def router_z_loss(logits):
    return logits.float().softmax(-1).logsumexp(-1).square().mean()


# %% router_z_loss: the largest logit
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator, test_the_gradient_of_the_z_loss
# says: This squares the largest logit of each token; the log of the whole sum of exponentials is asked for.
def router_z_loss(logits):
    return logits.float().max(-1).values.square().mean()


# %% router_z_loss: the logits themselves
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator, test_the_gradient_of_the_z_loss
# says: This is the mean square of the logits; the log of the sum of their exponentials is asked for.
def router_z_loss(logits):
    return logits.float().square().mean()


# %% router_z_loss: over the tokens
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator, test_the_z_loss_is_a_mean_over_tokens
# says: The log-sum-exp runs over the tokens; it should run over the experts, the last dimension.
def router_z_loss(logits):
    return logits.float().logsumexp(0).square().mean()


# %% router_z_loss: a sum over tokens
# caught by: test_the_z_loss_is_a_mean_over_tokens
# says: This is the sum over the tokens; it should be the mean.
def router_z_loss(logits):
    return logits.float().logsumexp(-1).square().sum()


# %% router_z_loss: divided by the experts too
# caught by: test_the_z_loss_is_the_mean_squared_log_of_the_denominator
# says: The sum is divided by tokens and experts; there is one term a token, so divide by the tokens only.
def router_z_loss(logits):
    return logits.float().logsumexp(-1).square().sum() / logits.numel()


# %% router_z_loss: exp, sum and log by hand
# caught by: test_the_z_loss_of_large_logits_is_finite
# says: exp overflows for large logits: use logsumexp, which takes out the largest first.
def router_z_loss(logits):
    return logits.float().exp().sum(-1).log().square().mean()


# %% router_z_loss: the largest logit of all is taken out
# caught by: test_the_z_loss_of_large_logits_is_finite
# says: The largest logit of all tokens is taken out, and a token far below it loses everything: each has its own largest.
def router_z_loss(logits):
    x = logits.float()
    return ((x - x.max()).exp().sum(-1).log() + x.max()).square().mean()


# %% router_z_loss: in bfloat16
# caught by: test_the_z_loss_of_bfloat16_logits_is_float32
# says: The loss of bfloat16 logits is computed in bfloat16: turn them into float32 first.
def router_z_loss(logits):
    return torch.logsumexp(logits, -1).square().mean()


# %% with_capacity: rounded down
# caught by: test_the_capacity_is_rounded_up
# says: The capacity is rounded down; it should be rounded up.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = int(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: top_k forgotten
# caught by: test_there_is_room_for_every_choice_and_not_only_the_first
# says: The capacity counts tokens and not routings: a token with top_k experts takes top_k places.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * len(experts) / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: one place too few
# caught by: test_there_is_room_for_every_choice_and_not_only_the_first, test_the_capacity_is_rounded_up
# says: The last place of each expert stays empty: the queue begins at 1, so compare with ≤.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) < capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: what is left is divided by its new sum
# caught by: test_a_dropped_weight_is_zero_and_the_others_are_unchanged
# says: The weights that are left were divided by their new sum: they should stay as they were.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    left = weights * kept
    return left / left.sum(-1, keepdim=True).clamp_min(1e-9), kept


# %% with_capacity: the weights go through
# caught by: test_a_dropped_weight_is_zero_and_the_others_are_unchanged, test_the_weights_and_kept_say_the_same
# says: kept is right, but the weights come back as they were: a dropped one should be 0.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    return weights, kept.view_as(experts)


# %% with_capacity: a token goes as a whole
# caught by: test_a_second_choice_is_served_although_the_first_was_dropped, test_places_go_to_the_earlier_tokens
# says: A token that loses one expert loses the others too: each routing stands for itself.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts).all(-1, keepdim=True).expand(experts.shape)
    return weights * kept, kept.clone()


# %% with_capacity: all first choices before all second ones
# caught by: test_by_position_a_later_token_never_matters, test_places_go_to_the_earlier_tokens
# says: All first choices are served before any second one, so a later token can take an earlier one's place.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel()).view_as(experts).T.flatten()
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: of equal weights the first choices come first
# caught by: test_equal_weights_are_served_in_the_order_of_the_tokens
# says: Of equal weights all first columns are served before any second one; the earlier token comes first, with all its columns.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = torch.arange(experts.numel()).view_as(experts).T.flatten()
        queue = queue[weights.flatten()[queue].argsort(descending=True, stable=True)]
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: a little less weight for later tokens instead of a stable sort
# caught by: test_places_go_to_the_larger_weights
# says: A little is taken off the weights of later tokens, which reorders weights that hardly differ: sort stably instead.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = (weights.flatten() - 1e-6 * queue).argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: kept is where a weight is left
# caught by: test_there_is_room_for_every_choice_and_not_only_the_first
# says: kept is False for a weight of 0 that has a place: kept is about places, not about weights.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, weights * kept != 0


# %% with_capacity: places counted in the dtype of the weights
# caught by: test_what_goes_in_keeps_its_dtype_and_its_values
# says: The places are counted in the dtype of the weights, and bfloat16 cannot count beyond 256: count in whole numbers.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts).to(weights.dtype)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: always by position
# caught by: test_places_go_to_the_larger_weights
# says: priority="weight" makes no difference: there the largest weights of an expert should be kept.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    arrivals = F.one_hot(experts.flatten(), n_experts)
    kept = ((arrivals.cumsum(0) * arrivals).sum(-1) <= capacity).view_as(experts)
    return weights * kept, kept


# %% with_capacity: always by weight
# caught by: test_places_go_to_the_earlier_tokens, test_by_position_a_later_token_never_matters
# says: The places always go to the largest weights; with priority="position" they go to the earlier tokens.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: the smallest weights are kept
# caught by: test_places_go_to_the_larger_weights
# says: With priority="weight" the smallest weights are kept; it should be the largest.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: the order of the queue is not undone
# caught by: test_places_go_to_the_larger_weights
# says: With priority="weight" kept stands in the order of the queue: put each answer back where its routing is.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = ((arrivals.cumsum(0) * arrivals).sum(-1) <= capacity).view_as(experts)
    return weights * kept, kept


# %% with_capacity: the latest are kept
# caught by: test_places_go_to_the_earlier_tokens, test_by_position_a_later_token_never_matters
# says: The later tokens push the earlier ones out: with priority="position" who comes first is served first.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel()).flip(0)
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue, dtype=torch.bool)
    kept[queue] = (arrivals.cumsum(0) * arrivals).sum(-1) <= capacity
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% with_capacity: the weights are detached
# caught by: test_gradients_reach_the_weights_that_are_kept
# says: No gradient reaches the weights that are kept: they were copied out of the graph.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = list(range(experts.numel()))
    if priority == "weight":
        queue.sort(key=lambda i: -weights.flatten()[i].item())
    left, places = torch.zeros_like(weights).flatten(), [capacity] * n_experts
    for i in queue:
        expert = int(experts.flatten()[i])
        if places[expert] > 0:
            places[expert] -= 1
            left[i] = weights.flatten()[i].detach()
    left = left.view_as(weights)
    return left, left > 0


# %% with_capacity: numbers instead of booleans
# caught by: test_the_weights_and_kept_say_the_same
# says: kept holds numbers: it should hold booleans.
def with_capacity(weights, experts, n_experts, capacity_factor, priority="position"):
    capacity = math.ceil(capacity_factor * experts.numel() / n_experts)
    queue = torch.arange(experts.numel())
    if priority == "weight":
        queue = weights.flatten().argsort(descending=True, stable=True)
    arrivals = F.one_hot(experts.flatten()[queue], n_experts)
    kept = torch.empty_like(queue)
    kept[queue] = ((arrivals.cumsum(0) * arrivals).sum(-1) <= capacity).long()
    kept = kept.view_as(experts)
    return weights * kept, kept


# %% expert_choice: softmax over the tokens
# caught by: test_the_weights_are_the_probabilities_of_the_tokens_taken
# says: The softmax runs over the tokens; it should run over the experts, and only the choice over the tokens.
def expert_choice(logits, capacity):
    weights, tokens = logits.float().softmax(0).T.topk(min(capacity, len(logits)))
    return weights.to(logits.dtype), tokens


# %% expert_choice: the largest logits instead of probabilities
# caught by: test_each_expert_takes_the_tokens_that_want_it_most
# says: The tokens are chosen by their logits, which cannot be compared between tokens: choose by probability.
def expert_choice(logits, capacity):
    tokens = logits.T.topk(min(capacity, len(logits))).indices
    return logits.float().softmax(-1).T.gather(-1, tokens).to(logits.dtype), tokens


# %% expert_choice: the weights of an expert divided by their sum
# caught by: test_the_weights_are_the_probabilities_of_the_tokens_taken
# says: The weights of each expert were divided by their sum: they should be the probabilities as they are.
def expert_choice(logits, capacity):
    weights, tokens = logits.float().softmax(-1).T.topk(min(capacity, len(logits)))
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), tokens


# %% expert_choice: the weights are logits
# caught by: test_the_weights_are_the_probabilities_of_the_tokens_taken
# says: The weights are logits: they should be probabilities.
def expert_choice(logits, capacity):
    p = logits.float().softmax(-1).T
    tokens = p.topk(min(capacity, len(logits))).indices
    return logits.T.gather(-1, tokens), tokens


# %% expert_choice: only tokens whose favourite it is
# caught by: test_each_expert_takes_the_tokens_that_want_it_most
# says: An expert prefers tokens whose first choice it is; it should only look at how much each token wants it.
def expert_choice(logits, capacity):
    p = logits.float().softmax(-1)
    first = F.one_hot(p.argmax(-1), p.shape[-1])
    tokens = (p + first).T.topk(min(capacity, len(p))).indices
    return p.T.gather(-1, tokens).to(logits.dtype), tokens


# %% expert_choice: whoever comes first
# caught by: test_a_later_token_takes_the_place_of_an_earlier_one, test_each_expert_takes_the_tokens_that_want_it_most
# says: Each expert takes the first tokens of the text instead of those with the highest probability.
def expert_choice(logits, capacity):
    p = logits.float().softmax(-1).T
    tokens = torch.arange(min(capacity, len(logits))).expand(len(p), -1)
    return p.gather(-1, tokens).to(logits.dtype), tokens.clone()


# %% expert_choice: a token only once
# caught by: test_each_expert_takes_the_tokens_that_want_it_most
# says: A token that one expert took is hidden from the next ones; several experts may take the same token.
def expert_choice(logits, capacity):
    p, free, rows = logits.float().softmax(-1), torch.zeros(len(logits)), []
    for column in p.T:
        rows.append((column + free).topk(min(capacity, len(p))).indices)
        free = free.index_fill(0, rows[-1], -1.0)
    tokens = torch.stack(rows)
    return p.T.gather(-1, tokens).to(logits.dtype), tokens


# %% expert_choice: tokens choose experts
# caught by: test_each_expert_takes_the_tokens_that_want_it_most
# says: Here the tokens choose their experts, and the result has a row for each token instead of each expert.
def expert_choice(logits, capacity):
    weights, experts = logits.float().softmax(-1).topk(min(capacity, logits.shape[-1]))
    return weights.to(logits.dtype), experts


# %% expert_choice: in the order of the text
# caught by: test_the_largest_probability_comes_first
# says: The tokens of an expert stand in the order of the text; the largest probability should come first.
def expert_choice(logits, capacity):
    p = logits.float().softmax(-1).T
    tokens = p.topk(min(capacity, len(logits))).indices.sort(-1).values
    return p.gather(-1, tokens).to(logits.dtype), tokens


# %% expert_choice: compared in bfloat16
# caught by: test_bfloat16_logits_are_compared_in_float32
# says: The probabilities are compared in bfloat16, where many become equal: take the softmax in float32.
def expert_choice(logits, capacity):
    weights, tokens = logits.softmax(-1).T.topk(min(capacity, len(logits)))
    return weights, tokens


# %% bias_update: the bias is in the weights
# caught by: test_the_bias_is_not_in_the_weights
# says: The bias is in the weights: it should choose and not weigh.
def route_with_bias(logits, bias, top_k):
    scores = logits.float().softmax(-1) + bias
    weights, experts = scores.topk(top_k)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: the bias is added to the logits
# caught by: test_probability_plus_bias_decides_who_is_chosen
# says: The bias is added to the logits; it should be added to the probabilities.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (logits.float() + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: the bias is forgotten in the choice
# caught by: test_probability_plus_bias_decides_who_is_chosen
# says: The bias has no effect on who is chosen.
def route_with_bias(logits, bias, top_k):
    weights, experts = logits.float().softmax(-1).topk(top_k)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: subtracted from the scores
# caught by: test_probability_plus_bias_decides_who_is_chosen
# says: The bias is taken away from the probabilities; it should be added.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p - bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: the weights are not divided by their sum
# caught by: test_the_bias_is_not_in_the_weights, test_without_a_bias_it_is_plain_top_k_routing
# says: The weights are bare probabilities: divide them by the sum over the chosen experts.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    return p.gather(-1, experts).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: sigmoid scores
# caught by: test_probability_plus_bias_decides_who_is_chosen, test_without_a_bias_it_is_plain_top_k_routing
# says: The scores are sigmoids, as in DeepSeek-V3; here they should be the softmax over all experts.
def route_with_bias(logits, bias, top_k):
    p = logits.float().sigmoid()
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: the wrong sign
# caught by: test_a_busy_expert_goes_down_and_an_idle_one_up, test_the_rule_brings_a_lopsided_router_into_balance
# says: The sign is wrong: this makes the busy experts busier.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load - load.mean()).sign()


# %% bias_update: a step as large as the difference
# caught by: test_a_busy_expert_goes_down_and_an_idle_one_up
# says: The step grows with the difference from the mean load; only its sign should count.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load)


# %% bias_update: an expert with the mean load moves too
# caught by: test_an_expert_with_exactly_the_mean_load_stays
# says: An expert with exactly the mean load is moved; it should keep its bias.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return torch.where(load < load.mean(), bias + rate, bias - rate)


# %% bias_update: only experts that were chosen move
# caught by: test_an_expert_that_was_never_chosen_goes_up
# says: An expert that was never chosen keeps its bias, so it stays idle for ever: its load of 0 is below the mean.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign() * (load > 0)


# %% bias_update: the mean over the chosen experts
# caught by: test_an_expert_that_was_never_chosen_goes_up
# says: The mean load is taken over the experts that were chosen; those with a load of 0 belong to it too.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load[load > 0].mean() - load).sign()


# %% bias_update: shares of the load
# caught by: test_an_expert_with_exactly_the_mean_load_stays
# says: The loads are divided by their sum before they are compared, and rounding moves experts with the mean load: compare counts.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    load = load / load.sum()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: a large epsilon in the denominator
# caught by: test_the_bias_is_not_in_the_weights
# says: Something is added to the sum of the chosen probabilities, which counts where all of them are small.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / (weights.sum(-1, keepdim=True) + 1e-6)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    return bias + rate * (load.mean() - load).sign()


# %% bias_update: the old bias is changed in place
# caught by: test_the_old_bias_stays_as_it_was
# says: The bias that came in was changed in place: return a new tensor.
def route_with_bias(logits, bias, top_k):
    p = logits.float().softmax(-1)
    experts = (p + bias).topk(top_k).indices
    weights = p.gather(-1, experts)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), experts


def bias_update(bias, experts, rate):
    load = F.one_hot(experts, len(bias)).sum((0, 1)).float()
    bias += rate * (load.mean() - load).sign()
    return bias


# %% hash_route: id modulo the number of experts
# caught by: test_ids_are_dealt_out_commonest_first, test_the_training_text_is_shared_out_evenly
# says: The expert is the id modulo n_experts, which ignores how frequent the ids are.
def hash_route(ids, counts, n_experts):
    return torch.ones(len(ids), 1), (ids % n_experts)[:, None]


# %% hash_route: by position
# caught by: test_the_expert_depends_on_the_id_alone, test_ids_are_dealt_out_commonest_first
# says: The expert depends on the place in the text: it should depend on the id alone.
def hash_route(ids, counts, n_experts):
    return torch.ones(len(ids), 1), (torch.arange(len(ids)) % n_experts)[:, None]


# %% hash_route: a new draw at every call
# caught by: test_the_expert_depends_on_the_id_alone, test_ids_are_dealt_out_commonest_first
# says: The table is drawn anew at every call, so that an id changes its expert: nothing should be left to chance.
def hash_route(ids, counts, n_experts):
    table = torch.randint(n_experts, (len(counts),))
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: dealt out in turn
# caught by: test_ids_are_dealt_out_commonest_first
# says: The ids are dealt out in turn like cards; each should go to the expert with the smallest total so far.
def hash_route(ids, counts, n_experts):
    table = torch.zeros_like(counts)
    for i, token in enumerate(counts.argsort(descending=True, stable=True).tolist()):
        table[token] = i % n_experts
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: rarest first
# caught by: test_ids_are_dealt_out_commonest_first
# says: The rarest ids are dealt out first; the commonest come first, while the rest can still even things out.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in counts.argsort(stable=True).tolist():
        table[token] = expert = total.index(min(total))
        total[expert] += int(counts[token])
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: in the order of the ids
# caught by: test_ids_are_dealt_out_commonest_first
# says: The ids are dealt out in the order of their numbers; the commonest should come first.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in range(len(counts)):
        table[token] = expert = total.index(min(total))
        total[expert] += int(counts[token])
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: counted in the text itself
# caught by: test_the_counts_are_those_of_the_training_text
# says: The ids are counted in the text that is routed; take the counts that are given, those of the training text.
def hash_route(ids, counts, n_experts):
    seen = torch.bincount(ids, minlength=len(counts))
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in seen.argsort(descending=True, stable=True).tolist():
        table[token] = expert = total.index(min(total))
        total[expert] += int(seen[token])
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: the last of equal ids first
# caught by: test_equal_counts_go_by_the_smaller_number
# says: Of ids with equal counts the larger goes first; it should be the smaller.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in counts.argsort(stable=True).flip(0).tolist():
        table[token] = expert = total.index(min(total))
        total[expert] += int(counts[token])
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: the last of equal experts
# caught by: test_equal_counts_go_by_the_smaller_number
# says: Of experts with the same total the one with the larger number gets the id; it should be the smaller.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in counts.argsort(descending=True, stable=True).tolist():
        table[token] = expert = max(range(n_experts), key=lambda i: (-total[i], i))
        total[expert] += int(counts[token])
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: totals in float32
# caught by: test_ids_are_dealt_out_commonest_first
# says: The totals are float32, which cannot tell large counts apart: add whole numbers.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), torch.zeros(n_experts)
    for token in counts.argsort(descending=True, stable=True).tolist():
        table[token] = expert = total.argmin()
        total[expert] += counts[token]
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: an id that never occurred gets no expert
# caught by: test_the_counts_are_those_of_the_training_text
# says: Ids with a count of 0 all stay with expert 0: each goes to the expert with the smallest total, like the others.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in counts.argsort(descending=True, stable=True).tolist():
        if counts[token] > 0:
            table[token] = expert = total.index(min(total))
            total[expert] += int(counts[token])
    return torch.ones(len(ids), 1), table[ids, None]


# %% hash_route: without the second dimension
# caught by: test_every_hash_weight_is_one
# says: The results should have the shape (tokens, 1), one column for the one expert of each token.
def hash_route(ids, counts, n_experts):
    table, total = torch.zeros_like(counts), [0] * n_experts
    for token in counts.argsort(descending=True, stable=True).tolist():
        table[token] = expert = total.index(min(total))
        total[expert] += int(counts[token])
    return torch.ones(len(ids)), table[ids]
