# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% route: Mixtral is not renormalised
# caught by: test_mixtrals_weights_share_one_among_the_chosen
# says: Mixtral's weights are left as they are in the softmax over all experts: they should be divided by the sum of the chosen ones.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family == "gpt_oss" or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("mixtral", "qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: gpt-oss takes the softmax of all
# caught by: test_gpt_oss_takes_the_softmax_of_the_chosen_logits
# says: gpt-oss's softmax runs over all experts, and nothing is renormalised: it should run over the chosen logits.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family == "mixtral" or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("gpt_oss", "qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: Qwen always renormalises
# caught by: test_qwen_leaves_probabilities_as_they_are_if_it_is_told
# says: qwen3_moe is renormalised whatever renormalise says.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or family == "qwen3_moe":
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: Qwen never renormalises
# caught by: test_qwen_renormalises_if_it_is_told
# says: qwen3_moe is never renormalised, whatever renormalise says.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss"):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: everybody obeys renormalise
# caught by: test_renormalise_is_for_qwen_alone
# says: renormalise changes other families too: it is for qwen3_moe alone.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss", "qwen3_moe") and renormalise:
        weights = chosen.softmax(-1)
    elif family in ("mixtral", "gpt_oss", "qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: Switch is renormalised
# caught by: test_switch_weighs_by_the_probability_among_all, test_the_router_of_every_family_learns
# says: Switch's weights are divided by their sum: with one expert that is 1, whatever the router says, and the router would never learn.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss", "switch") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe",):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: Llama 4 takes a softmax
# caught by: test_llama_4_weighs_by_a_sigmoid
# says: Llama 4's weights come from a softmax over all experts: it takes the sigmoid of each logit by itself.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = logits.float().softmax(-1).gather(-1, experts)
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: Llama 4 is renormalised
# caught by: test_llama_4_weighs_by_a_sigmoid
# says: Llama 4's sigmoids are divided by their sum: they should stay as they are.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid() / chosen.sigmoid().sum(-1, keepdim=True)
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: arithmetic in bfloat16
# caught by: test_the_arithmetic_is_done_in_float32
# says: Softmax and division are done in the dtype of the logits: in bfloat16 that costs digits.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = logits.softmax(-1).gather(-1, experts)
        weights = weights / weights.sum(-1, keepdim=True)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: every other name is Llama 4
# caught by: test_an_unknown_family_is_a_value_error
# says: A family that is not in the table should be a ValueError, and here it is taken for Llama 4.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    else:
        weights = chosen.sigmoid()
    return weights.to(logits.dtype), experts


# %% route: the weights are detached
# caught by: test_the_router_of_every_family_learns
# says: The values are right, but no gradient reaches the logits, so the router would never learn.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.detach().to(logits.dtype), experts


# %% route: the weights stay in float32
# caught by: test_the_arithmetic_is_done_in_float32
# says: The weights should come back in the dtype of the logits.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights, experts


# %% route: the softmax runs over the tokens
# caught by: test_switch_weighs_by_the_probability_among_all, test_ties_and_neighbours_change_nothing
# says: The softmax over all experts runs over the tokens instead, so that a token's weights depend on its neighbours.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(0).gather(-1, experts)
    elif family == "llama4_text":
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: Llama 4 chooses by the sigmoid
# caught by: test_extreme_logits_give_finite_weights
# says: llama4_text: the experts are chosen by their sigmoids, of which several are 1 where logits are large: choose by the logits.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family in ("qwen3_moe", "switch"):
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family == "llama4_text":
        weights, experts = logits.float().sigmoid().topk(top_k)
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route: names that begin alike
# caught by: test_an_unknown_family_is_a_value_error
# says: Only the beginning of the family's name is looked at, so that another model of its makers is taken for it.
def route(logits, top_k, family, renormalise=True):
    chosen, experts = logits.float().topk(top_k)
    if family in ("mixtral", "gpt_oss") or (family == "qwen3_moe" and renormalise):
        weights = chosen.softmax(-1)
    elif family.startswith("qwen") or family == "switch":
        weights = logits.float().softmax(-1).gather(-1, experts)
    elif family.startswith("llama4"):
        weights = chosen.sigmoid()
    else:
        raise ValueError(f"{family!r} is no family that route knows")
    return weights.to(logits.dtype), experts


# %% route_in_groups: the correction weighs too
# caught by: test_the_correction_chooses_and_does_not_weigh
# says: The weights are corrected scores: the correction should decide who is chosen and not what they weigh.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = (scores + correction).gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: no group is left out
# caught by: test_experts_come_from_the_best_groups
# says: The experts are the best of all groups: only those of the best top_groups groups may be chosen.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: no scale
# caught by: test_the_scale_multiplies_every_weight
# says: The weights are not multiplied by scale.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights.to(logits.dtype), experts


# %% route_in_groups: a group is worth its best expert
# caught by: test_a_group_is_worth_its_two_best
# says: A group is worth its best expert here, as in DeepSeek-V2; V3 adds the two best.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.amax(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: a group is worth the sum of all
# caught by: test_a_group_is_worth_its_two_best
# says: A group is worth the sum of all its experts here: only its two best count.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: who is out scores zero
# caught by: test_negative_corrections_leave_the_choice_to_the_best_groups
# says: Experts of groups that are out get a score of 0, and where corrected scores are negative 0 wins: give them −infinity.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], 0.0).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: groups are chosen without the correction
# caught by: test_the_correction_chooses_and_does_not_weigh
# says: The groups are chosen by scores without the correction: it belongs to the choice of groups as well.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = scores.unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: experts are chosen without the correction
# caught by: test_the_correction_chooses_and_does_not_weigh
# says: The correction is used for the groups and forgotten for the experts.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    grouped = scores.unflatten(-1, (n_groups, -1))
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: a softmax instead of the sigmoid
# caught by: test_experts_come_from_the_best_groups
# says: The scores come from a softmax, as in DeepSeek-V2; V3 takes the sigmoid of each logit.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().softmax(-1)
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: always renormalised
# caught by: test_weights_are_renormalised_only_if_told
# says: The weights are renormalised whatever renormalise says.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if True:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: divided by the sum over all experts
# caught by: test_experts_come_from_the_best_groups
# says: The weights are divided by the scores of all experts: divide by the sum of the chosen ones.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (scores.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: zero divided by zero
# caught by: test_scores_of_zero_give_weights_of_zero
# says: A token whose scores are all 0 gets NaN: add 10⁻²⁰ to the sum before you divide.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True))
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: every n-th expert is a group
# caught by: test_experts_come_from_the_best_groups
# says: Expert e is put into group e modulo n_groups: groups are neighbours.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (-1, n_groups)).mT
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).mT.flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: scaled only if renormalised
# caught by: test_the_scale_multiplies_every_weight
# says: Weights that are not renormalised are not scaled either: the scale is for both.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = scale * weights
    return weights.to(logits.dtype), experts


# %% route_in_groups: the weights are detached
# caught by: test_the_gradient_goes_through_the_scores
# says: The values are right, but no gradient reaches the logits, so the router would never learn.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).detach().to(logits.dtype), experts


# %% route_in_groups: the sigmoid in bfloat16
# caught by: test_groups_are_chosen_in_float32
# says: The sigmoid is computed in the dtype of the logits: in bfloat16 that costs digits.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return (scale * weights).to(logits.dtype), experts


# %% route_in_groups: a larger epsilon
# caught by: test_scores_of_zero_give_weights_of_zero
# says: More than 10⁻²⁰ is added to the sum of the scores, which counts where all of them are small.
def route_in_groups(logits, correction, top_k, n_groups, top_groups, scale, renormalise=True):
    scores = logits.float().sigmoid()
    grouped = (scores + correction).unflatten(-1, (n_groups, -1))
    best = grouped.topk(2).values.sum(-1).topk(top_groups).indices
    out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
    experts = grouped.masked_fill(out[..., None], -math.inf).flatten(-2).topk(top_k).indices
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
    return (scale * weights).to(logits.dtype), experts


# %% unpack_experts: gpt-oss in two halves
# caught by: test_gpt_oss_takes_turns
# says: The columns of gpt-oss are taken for gate first, then up: they take turns.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": gate_up.mT, "down": down.mT}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": gate_up.mT,
        "gate_up_bias": bias,
        "down": down.mT,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: Llama 4 takes turns too
# caught by: test_llama_4_is_turned_round
# says: Llama 4 is unpacked as if its columns took turns: gate's come first.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT, "down": down.mT}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT,
        "gate_up_bias": torch.cat((bias[..., ::2], bias[..., 1::2]), -1),
        "down": down.mT,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: turned only where shapes tell
# caught by: test_square_matrices_are_turned_too
# says: Whether to transpose is guessed from shapes, and where d equals h or 2h they say nothing: it is the family that decides.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {
            "gate_up": gate_up.mT if gate_up.shape[1] == down.shape[2] else gate_up,
            "down": down.mT if down.shape[1] != down.shape[2] else down,
        }
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT,
        "gate_up_bias": torch.cat((bias[..., ::2], bias[..., 1::2]), -1),
        "down": down.mT if down.shape[1] != down.shape[2] else down,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: biases stay as they are
# caught by: test_biases_are_sorted_like_their_rows
# says: The rows of gate_up were sorted, and their biases were not.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": gate_up.mT, "down": down.mT}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT,
        "gate_up_bias": bias,
        "down": down.mT,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: up before gate
# caught by: test_gpt_oss_takes_turns
# says: For gpt-oss the rows of up come first: the gate's columns are those with even numbers, and they come first.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": gate_up.mT, "down": down.mT}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., 1::2], gate_up[..., ::2]), -1).mT,
        "gate_up_bias": torch.cat((bias[..., 1::2], bias[..., ::2]), -1),
        "down": down.mT,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: reshaped instead of transposed
# caught by: test_llama_4_is_turned_round
# says: The shapes are right, but view or reshape reads the numbers in another order: transpose.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {
            "gate_up": gate_up.reshape(len(down), -1, down.shape[2]),
            "down": down.reshape(len(down), down.shape[2], -1),
        }
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT,
        "gate_up_bias": torch.cat((bias[..., ::2], bias[..., 1::2]), -1),
        "down": down.mT,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: down is forgotten
# caught by: test_llama_4_is_turned_round, test_gpt_oss_takes_turns
# says: gate_up is turned round, and down is not.
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family in ("mixtral", "qwen3_moe", "deepseek_v3"):
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": gate_up.mT, "down": down}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": torch.cat((gate_up[..., ::2], gate_up[..., 1::2]), -1).mT,
        "gate_up_bias": torch.cat((bias[..., ::2], bias[..., 1::2]), -1),
        "down": down,
        "down_bias": tensors["down_proj_bias"],
    }


# %% unpack_experts: everything is as Mixtral's
# caught by: test_llama_4_is_turned_round, test_gpt_oss_takes_turns
# says: Every family is unpacked as Mixtral's: Llama 4 and gpt-oss store [expert, in, out].
def unpack_experts(tensors, family):
    gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
    if family != "gpt_oss":
        return {"gate_up": gate_up, "down": down}
    if family == "llama4_text":
        return {"gate_up": gate_up.mT, "down": down.mT}
    bias = tensors["gate_up_proj_bias"]
    return {
        "gate_up": gate_up,
        "gate_up_bias": torch.cat((bias[..., ::2], bias[..., 1::2]), -1),
        "down": down,
        "down_bias": tensors["down_proj_bias"],
    }


# %% MoELayer: gpt-oss without up + 1
# caught by: test_a_whole_gpt_oss_gives_its_logits
# says: gpt-oss multiplies by up + 1, and here it is up alone.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear(up * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: up before gate
# caught by: test_a_whole_mixtral_gives_its_logits, test_a_whole_gpt_oss_gives_its_logits
# says: Gate and up are exchanged: the first rows of gate_up are the gate.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            up, gate = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        up, gate = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: gate and up take turns
# caught by: test_a_whole_mixtral_gives_its_logits, test_a_whole_gpt_oss_gives_its_logits
# says: Gate and up are read as if their rows took turns: in this course's layout the gate's come first.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            both = F.linear(x, self.gate_up[e])
            gate, up = both[..., ::2], both[..., 1::2]
            return F.linear(F.silu(gate) * up, self.down[e])
        both = F.linear(x, self.gate_up[e], self.gate_up_bias[e])
        gate, up = both[..., ::2], both[..., 1::2]
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: nothing is clamped
# caught by: test_gpt_oss_clamps_at_the_limit
# says: Gate and up of gpt-oss are not clamped at the limit.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: the gate is clamped from both sides
# caught by: test_gpt_oss_clamps_at_the_limit
# says: The gate is clamped from below as well: it is clamped from above only.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(-limit, limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: silu without alpha
# caught by: test_a_whole_gpt_oss_gives_its_logits
# says: gpt-oss's gate is silu, with an alpha of 1: it is gate · sigmoid(alpha · gate).
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * F.silu(gate), self.down[e], self.down_bias[e])


# %% MoELayer: limit and alpha by heart
# caught by: test_gpt_oss_takes_limit_and_alpha_from_its_config
# says: limit and alpha are written as 7 and 1.702: they stand in the config.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = 7.0
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (1.702 * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: Llama 4 weighs what comes out
# caught by: test_a_whole_llama_4_gives_its_logits, test_llama_4_scales_what_goes_in
# says: Llama 4's weight multiplies the result of the expert: it should multiply what goes in.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: Llama 4 weighs twice
# caught by: test_a_whole_llama_4_gives_its_logits
# says: Llama 4's weight multiplies what goes in and what comes out: only what goes in.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = weight * self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: everybody weighs what goes in
# caught by: test_a_whole_mixtral_gives_its_logits
# says: In every family the weight multiplies the expert's input: that is Llama 4 alone.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: the shared expert is not added
# caught by: test_a_whole_deepseek_v3_gives_its_logits, test_a_whole_llama_4_gives_its_logits
# says: The shared expert is there, and its result is not added.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: the shared expert is scaled
# caught by: test_a_whole_deepseek_v3_gives_its_logits
# says: The shared expert is multiplied by the scale of the routed ones: it is added as it is.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else c.scale * self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: a shared expert for two families only
# caught by: test_a_shared_expert_is_there_if_it_has_a_width
# says: The shared expert is there for two families only: it is there exactly if d_shared is above 0, whatever the family.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = (
            SwiGLU(c.d_model, c.d_shared) if c.d_shared and c.family in ("deepseek_v3", "llama4_text") else None
        )

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: the correction is a parameter
# caught by: test_the_correction_is_a_buffer
# says: correction is a parameter, so an optimiser would change it: register it as a buffer.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.correction = nn.Parameter(torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: renormalise is not passed on
# caught by: test_a_whole_qwen3_moe_gives_its_logits
# says: config.renormalise does not reach route, which then renormalises.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: DeepSeek without groups
# caught by: test_a_whole_deepseek_v3_gives_its_logits
# says: DeepSeek's experts are chosen from all groups: top_groups of n_groups stay.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, 1, 1, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: DeepSeek without scale
# caught by: test_a_whole_deepseek_v3_gives_its_logits
# says: DeepSeek's weights are not multiplied by config.scale.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, 1.0, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: DeepSeek without correction
# caught by: test_a_whole_deepseek_v3_gives_its_logits
# says: The correction is stored and not used.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, torch.zeros_like(self.correction), *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: the router has no bias
# caught by: test_a_whole_gpt_oss_gives_its_logits
# says: gpt-oss's router should have a bias: its name is missing from the state dict.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=False)
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: the router's bias is not used
# caught by: test_a_whole_gpt_oss_gives_its_logits
# says: gpt-oss's router has a bias, and the logits are computed without it.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = F.linear(tokens, self.router.weight)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: down_bias is not weighed
# caught by: test_a_whole_gpt_oss_gives_its_logits
# says: down_bias is added after the weight was applied: it belongs to the expert's result, which is weighed as a whole.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            if c.family == "gpt_oss":
                y = y + self.down_bias[e]
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e])


# %% MoELayer: only the first expert of a token
# caught by: test_a_whole_mixtral_gives_its_logits
# says: Only the expert with the largest weight is used: a token has top_k of them.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        weights, experts = weights[:, :1], experts[:, :1]
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.silu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% MoELayer: a GELU gate
# caught by: test_a_whole_mixtral_gives_its_logits
# says: The gate is a GELU; these families take silu.
class MoELayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.router = nn.Linear(c.d_model, c.n_experts, bias=c.family == "gpt_oss")
        self.gate_up = nn.Parameter(0.02 * torch.randn(c.n_experts, 2 * c.d_hidden, c.d_model))
        self.down = nn.Parameter(0.02 * torch.randn(c.n_experts, c.d_model, c.d_hidden))
        if c.family == "gpt_oss":
            self.gate_up_bias = nn.Parameter(torch.zeros(c.n_experts, 2 * c.d_hidden))
            self.down_bias = nn.Parameter(torch.zeros(c.n_experts, c.d_model))
        if c.family == "deepseek_v3":
            self.register_buffer("correction", torch.zeros(c.n_experts))
        self.shared = SwiGLU(c.d_model, c.d_shared) if c.d_shared else None

    def forward(self, x):
        c, tokens = self.config, x.flatten(0, 1)
        logits = self.router(tokens)
        if c.family == "deepseek_v3":
            groups = c.top_k, c.n_groups, c.top_groups, c.scale, c.renormalise
            weights, experts = route_in_groups(logits, self.correction, *groups)
        else:
            weights, experts = route(logits, c.top_k, c.family, c.renormalise)
        out = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for e in experts.unique().tolist():
            token, place = (experts == e).nonzero(as_tuple=True)
            weight, rows = weights[token, place, None], tokens[token]
            y = self.expert(e, weight * rows) if c.family == "llama4_text" else weight * self.expert(e, rows)
            out = out.index_add(0, token, y)
        return out.view_as(x)

    def expert(self, e, x):
        if self.config.family != "gpt_oss":
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, -1)
            return F.linear(F.gelu(gate) * up, self.down[e])
        gate, up = F.linear(x, self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
        limit = self.config.limit
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return F.linear((up + 1) * gate * (self.config.alpha * gate).sigmoid(), self.down[e], self.down_bias[e])


# %% count_parameters: all experts are active
# caught by: test_the_published_models_have_their_active_counts
# says: All experts of a layer are counted as active: a token uses num_experts_per_tok of them.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + n_experts * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: every layer has experts
# caught by: test_qwen3_moe_is_counted, test_deepseek_v3_is_counted, test_llama_4_is_counted
# says: Every layer is counted as one with experts: some of these models have dense layers.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    some = next(moe for moe in c.experts if moe)
    for moe in [some] * c.n_layers:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: biases and sinks are forgotten
# caught by: test_gpt_oss_is_counted
# says: gpt-oss's biases and sinks are not counted.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, 0
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: a tied table is left out of active
# caught by: test_a_tied_table_counts_once_and_stays_active
# says: The tied table is taken out of without_embedding: it is the head too, and the head is used in full.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table


# %% count_parameters: a tied table counts twice
# caught by: test_a_tied_table_counts_once_and_stays_active
# says: A tied table is counted twice: embedding and head are one.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * 2 + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: head_dim is always computed
# caught by: test_the_published_models_have_their_totals
# says: head_dim is taken for hidden_size // num_attention_heads even where the config says otherwise.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = d, c.n_kv_heads * (d // c.n_heads)
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: shared experts are forgotten
# caught by: test_deepseek_v3_is_counted, test_llama_4_is_counted
# says: Shared experts are not counted.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss)
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: the correction counts
# caught by: test_deepseek_v3_is_counted
# says: DeepSeek's correction is counted: it is a buffer, not a parameter.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared + n_experts * (family == "deepseek_v3")
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: the norms of queries and keys are forgotten
# caught by: test_qwen3_moe_is_counted
# says: The two gains of Qwen3's queries and keys are not counted.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv)
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: the norms of latent attention are forgotten
# caught by: test_deepseek_v3_is_counted
# says: The two norms inside latent attention, q_norm and kv_norm, are not counted.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: only the chosen experts' part of the router is active
# caught by: test_mixtral_is_counted
# says: Of the router only top_k rows are counted as active: every token is multiplied with all of it.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always - (n_experts - top_k) * (d + oss) * (moe is not None) + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: experts without a gate
# caught by: test_mixtral_is_counted
# says: An expert has three matrices, gate, up and down; two are counted.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 2 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    return total, active, active - table * (not c.tied)


# %% count_parameters: eight times seven
# caught by: test_mixtral_is_counted
# says: The whole model is multiplied by the number of experts: only the feed-forward layers are there several times.
def count_parameters(config):
    c, family = read_config(config), config["model_type"]
    d, oss = c.d_model, family == "gpt_oss"
    if c.latent:
        q_rank, kv_rank, nope, rope, value = c.latent
        wide = c.n_heads * (nope + rope)
        attention = d * wide if q_rank is None else d * q_rank + q_rank + q_rank * wide
        attention += d * (kv_rank + rope) + kv_rank + c.n_heads * (kv_rank * (nope + value) + value * d)
    else:
        q, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        attention = 2 * d * (q + kv) + 2 * c.d_head * c.qk_norm
        attention += (q + 2 * kv + d + c.n_heads) * oss
    table = c.vocabulary * d
    total = active = table * (1 if c.tied else 2) + d + c.n_layers * (attention + 2 * d)
    for moe in c.experts:
        if moe is None:
            always, each, n_experts, top_k = 3 * d * c.d_hidden, 0, 0, 0
        else:
            n_experts, top_k = moe.n_experts, moe.top_k
            always = n_experts * (d + oss) + 3 * d * moe.d_shared
            each = 3 * d * moe.d_hidden + (2 * moe.d_hidden + d) * oss
        total += always + n_experts * each
        active += always + top_k * each
    total = (active - sum(3 * d * m.d_hidden * (m.top_k - 1) for m in c.experts if m)) * max(
        m.n_experts for m in c.experts if m
    )
    return total, active, active - table * (not c.tied)


# %% Mended: the patient as it was
# caught by: test_several_texts_give_what_switch_gives, test_a_text_does_not_depend_on_its_company
# says: This is the patient as it was: it is still ill. With one text it agrees, with two it does not.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.flatten(0, 1).cumsum(0).view_as(wanted) <= self.capacity)
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)


# %% Mended: as many places more as there are texts
# caught by: test_several_texts_give_what_switch_gives
# says: The places are multiplied by the number of texts and still shared by all: each text has its own.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.flatten(0, 1).cumsum(0).view_as(wanted) <= self.capacity * len(x))
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)


# %% Mended: nobody is turned away
# caught by: test_several_texts_give_what_switch_gives, test_what_was_healthy_still_is
# says: Capacity is gone: whoever comes after the first `capacity` tokens should get zeros.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)


# %% Mended: one place too few
# caught by: test_several_texts_give_what_switch_gives, test_what_was_healthy_still_is
# says: An expert takes one token less than it has places for.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.cumsum(1) < self.capacity)
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)


# %% Mended: counted along the batch
# caught by: test_several_texts_give_what_switch_gives
# says: The places are counted along the batch: count along the tokens of a text.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.cumsum(0) <= self.capacity)
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)


# %% Mended: the last ones are taken
# caught by: test_what_was_healthy_still_is
# says: The last `capacity` tokens have a place instead of the first.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.flip(1).cumsum(1).flip(1) <= self.capacity)
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return weight * torch.einsum("bne,bned->bnd", taken, each)


# %% Mended: the weight is lost
# caught by: test_several_texts_give_what_switch_gives
# says: The expert's result is not multiplied by its probability any more.
class Mended(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, capacity):
        super().__init__()
        self.capacity = capacity
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.up = nn.Parameter(0.02 * torch.randn(n_experts, d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        weight, expert = self.router(x).softmax(-1).max(-1, keepdim=True)
        wanted = torch.zeros_like(self.router(x)).scatter(-1, expert, 1.0)
        taken = wanted * (wanted.cumsum(1) <= self.capacity)
        hidden = torch.einsum("bnd,ehd->bneh", x, self.up).relu()
        each = torch.einsum("bneh,edh->bned", hidden, self.down)
        return torch.einsum("bne,bned->bnd", taken, each)
