# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% magnitude_mask: each tensor by itself
# caught by: test_the_smallest_of_all_tensors_go
# says: Each tensor loses the same share; global pruning compares the weights of all tensors with each other.
def magnitude_mask(weights, sparsity):
    masks = []
    for weight in weights:
        keep = torch.ones(weight.numel(), dtype=torch.bool)
        keep[weight.abs().flatten().argsort()[: round(sparsity * weight.numel())]] = False
        masks.append(keep.view(weight.shape))
    return masks


# %% magnitude_mask: the sign counts
# caught by: test_the_smallest_of_all_tensors_go
# says: The most negative weights go first; it is the absolute value that counts.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.flatten() for weight in weights])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort()[: round(sparsity * len(flat))]] = False
    parts = keep.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights)]


# %% magnitude_mask: the largest go
# caught by: test_the_smallest_of_all_tensors_go
# says: The largest magnitudes go, and the smallest should.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort(descending=True)[: round(sparsity * len(flat))]] = False
    parts = keep.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights)]


# %% magnitude_mask: True for what goes
# caught by: test_the_smallest_of_all_tensors_go, test_no_sparsity_keeps_all_and_full_sparsity_none
# says: This mask is True for the weights that go; here True means that a weight stays.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    gone = torch.zeros_like(flat, dtype=torch.bool)
    gone[flat.argsort()[: round(sparsity * len(flat))]] = True
    parts = gone.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights)]


# %% magnitude_mask: sparsity read as the share that stays
# caught by: test_exactly_the_asked_number_goes, test_no_sparsity_keeps_all_and_full_sparsity_none
# says: The sparsity is taken for the share that stays; it is the share that goes.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    keep = torch.zeros_like(flat, dtype=torch.bool)
    keep[flat.argsort(descending=True)[: round(sparsity * len(flat))]] = True
    parts = keep.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights)]


# %% magnitude_mask: a threshold that ties fall over
# caught by: test_ties_do_not_change_the_number
# says: All weights at the threshold go, however many there are: with ties that is more than was asked.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    count = round(sparsity * len(flat))
    threshold = flat.sort().values[count - 1] if count else -1
    return [weight.abs() > threshold for weight in weights]


# %% magnitude_mask: a threshold that ties survive
# caught by: test_ties_do_not_change_the_number, test_no_sparsity_keeps_all_and_full_sparsity_none
# says: All weights at the threshold stay, however many there are: with ties too few go.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    count = round(sparsity * len(flat))
    threshold = flat.sort().values[min(count, len(flat) - 1)]
    return [weight.abs() >= threshold for weight in weights]


# %% magnitude_mask: a quantile
# caught by: test_exactly_the_asked_number_goes, test_ties_do_not_change_the_number
# says: A quantile interpolates between two weights, so the number that goes is not always round(sparsity * total).
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights]).float()
    threshold = flat.quantile(sparsity)
    return [weight.abs().float() >= threshold for weight in weights]


# %% magnitude_mask: rounded down
# caught by: test_exactly_the_asked_number_goes
# says: int() cuts the fraction off: 2.9 weights are then 2, and round() says 3.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort()[: int(sparsity * len(flat))]] = False
    parts = keep.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights)]


# %% magnitude_mask: the pruned weights instead of masks
# caught by: test_each_tensor_gets_a_boolean_mask_of_its_shape
# says: These are the pruned weights; a mask should hold booleans.
def magnitude_mask(weights, sparsity):
    flat = torch.cat([weight.abs().flatten() for weight in weights])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.argsort()[: round(sparsity * len(flat))]] = False
    parts = keep.split([weight.numel() for weight in weights])
    return [weight * part.view(weight.shape) for part, weight in zip(parts, weights)]


# %% wanda_mask: magnitude only
# caught by: test_the_highest_scores_of_each_group_stay, test_loudness_can_move_between_weight_and_input
# says: This is magnitude pruning: the inputs make no difference.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = weight.abs().unflatten(1, (-1, m))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(2, groups.topk(n, dim=2).indices, True).flatten(1)


# %% wanda_mask: signed scores
# caught by: test_the_highest_scores_of_each_group_stay
# says: The sign of the weight counts; the score takes its absolute value.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight * x.reshape(-1, x.shape[-1]).float().norm(dim=0)).unflatten(1, (-1, m))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(2, groups.topk(n, dim=2).indices, True).flatten(1)


# %% wanda_mask: the mean of the magnitudes
# caught by: test_the_norm_is_the_root_of_the_sum_of_squares
# says: The mean magnitude of an input is not its norm: squares make one loud token count for more.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight.abs() * x.reshape(-1, x.shape[-1]).float().abs().mean(0)).unflatten(1, (-1, m))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(2, groups.topk(n, dim=2).indices, True).flatten(1)


# %% wanda_mask: the square without its root
# caught by: test_the_highest_scores_of_each_group_stay, test_loudness_can_move_between_weight_and_input
# says: The norm is squared, so loud inputs count twice: take the root.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight.abs() * x.reshape(-1, x.shape[-1]).float().square().sum(0)).unflatten(1, (-1, m))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(2, groups.topk(n, dim=2).indices, True).flatten(1)


# %% wanda_mask: inputs added up with their signs
# caught by: test_the_norm_is_the_root_of_the_sum_of_squares
# says: Inputs of both signs cancel in a plain sum or mean; the norm squares them first.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight * x.reshape(-1, x.shape[-1]).float().mean(0)).abs().unflatten(1, (-1, m))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(2, groups.topk(n, dim=2).indices, True).flatten(1)


# %% wanda_mask: the whole matrix in one competition
# caught by: test_a_whole_row_can_be_one_group, test_each_group_keeps_exactly_n
# says: All weights of the matrix compete; here a weight competes with its own group only.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    scores = (weight.abs() * x.reshape(-1, x.shape[-1]).float().norm(dim=0)).flatten()
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.topk(len(scores) * n // m).indices] = True
    return keep.view(weight.shape)


# %% wanda_mask: groups with a stride
# caught by: test_the_highest_scores_of_each_group_stay, test_each_group_keeps_exactly_n
# says: A group takes every second, third or fourth column; it should be neighbours.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight.abs() * x.reshape(-1, x.shape[-1]).float().norm(dim=0)).unflatten(1, (m, -1))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(1, groups.topk(n, dim=1).indices, True).flatten(1)


# %% wanda_mask: the others stay
# caught by: test_the_highest_scores_of_each_group_stay
# says: This keeps the lowest scores: the mask is upside down.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight.abs() * x.reshape(-1, x.shape[-1]).float().norm(dim=0)).unflatten(1, (-1, m))
    keep = torch.zeros_like(groups, dtype=torch.bool)
    return keep.scatter(2, groups.topk(n, dim=2, largest=False).indices, True).flatten(1)


# %% wanda_mask: a threshold
# caught by: test_each_group_keeps_exactly_n
# says: Everything that reaches the n-th score stays; where scores are equal that is more than n.
def wanda_mask(weight, x, n, m):
    if weight.shape[1] % m:
        raise ValueError(f"n_in ({weight.shape[1]}) is not divisible by m ({m})")
    groups = (weight.abs() * x.reshape(-1, x.shape[-1]).float().norm(dim=0)).unflatten(1, (-1, m))
    if n == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    return (groups >= groups.topk(n, dim=2).values[..., -1:]).flatten(1)


# %% wanda_mask: no word about a row that does not divide
# caught by: test_groups_must_fill_the_row
# says: A row that m does not divide raises PyTorch's own error, or none, and not a ValueError that names both numbers.
def wanda_mask(weight, x, n, m):
    scores = weight.abs() * x.reshape(-1, x.shape[-1]).float().norm(dim=0)
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, weight.shape[1], m):
        best = scores[:, start : start + m].topk(n, dim=1).indices
        keep.scatter_(1, best + start, True)
    return keep


# %% quantize_int8: divided by 128
# caught by: test_one_scale_serves_the_whole_tensor, test_the_integers_are_symmetric
# says: The largest magnitude becomes 128, which int8 does not have: divide it by 127.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = torch.where(largest > 0, largest / 128, 1.0)
    return (x / scale).round().clamp(-128, 127).to(torch.int8), scale


# %% quantize_int8: fractions cut off
# caught by: test_halves_go_to_the_even_neighbour, test_no_number_is_off_by_more_than_half_a_step
# says: .to(torch.int8) cuts fractions off: 2.9 becomes 2. Round first.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scale).to(torch.int8), scale


# %% quantize_int8: halves away from zero
# caught by: test_halves_go_to_the_even_neighbour
# says: Halves are rounded up, or away from zero; here they go to the even neighbour, as torch.round does.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x.sign() * (x.abs() / scale + 0.5).floor()).to(torch.int8), scale


# %% quantize_int8: the largest number instead of the largest magnitude
# caught by: test_the_integers_are_symmetric
# says: The largest number sets the scale, so a more negative one leaves the range: take the largest magnitude.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.amax(others, keepdim=axis is not None).abs() if others else x.abs()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale


# %% quantize_int8: the other axis
# caught by: test_each_index_along_the_axis_has_its_own_scale, test_a_factor_on_one_row_changes_only_its_scale
# says: The largest magnitude is taken over the axis itself; it should be taken over all the others.
def quantize_int8(x, axis=None):
    x = x.float()
    largest = x.abs().amax() if axis is None else x.abs().amax(axis, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scale).round().to(torch.int8), scale


# %% quantize_int8: one scale whatever the axis
# caught by: test_each_index_along_the_axis_has_its_own_scale, test_a_factor_on_one_row_changes_only_its_scale
# says: The axis is ignored: all share one scale.
def quantize_int8(x, axis=None):
    x = x.float()
    largest = x.abs().amax()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    if axis is not None:
        shape = [1] * x.dim()
        shape[axis] = x.shape[axis]
        scale = scale.expand(shape).clone()
    return (x / scale).round().to(torch.int8), scale


# %% quantize_int8: NaN for zeros
# caught by: test_zeros_have_a_scale_of_one
# says: Where everything is zero the scale is zero, and 0/0 is NaN.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = largest / 127
    return (x / scale).round().to(torch.int8), scale


# %% quantize_int8: a smallest scale
# caught by: test_very_large_and_very_small_numbers_work, test_zeros_have_a_scale_of_one
# says: A floor such as 1e-8 under the scale makes zeros of very small numbers, and leaves zeros a scale that is not 1.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = (largest / 127).clamp_min(1e-8)
    return (x / scale).round().to(torch.int8), scale


# %% quantize_int8: multiplied before divided
# caught by: test_very_large_and_very_small_numbers_work
# says: 127 · x overflows where x is as large as 10³⁸: divide by the scale.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    largest = torch.where(largest > 0, largest, 127.0)
    return (x * 127 / largest).round().to(torch.int8), largest / 127


# %% quantize_int8: arithmetic in bfloat16
# caught by: test_no_number_is_off_by_more_than_half_a_step
# says: A quotient in bfloat16 has eight bits of its own: make float32 of x first.
def quantize_int8(x, axis=None):
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale.float()


# %% quantize_int8: a scale without its dimensions
# caught by: test_integers_are_int8_and_scales_float32
# says: The scale has lost its dimensions: keep them at size 1, so that q * scale works for every axis.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scale).round().to(torch.int8), scale.squeeze()


# %% quantize_int8: the inverse of the scale
# caught by: test_one_scale_serves_the_whole_tensor, test_each_index_along_the_axis_has_its_own_scale
# says: This is the inverse of the scale: q * scale should be about x.
def quantize_int8(x, axis=None):
    x = x.float()
    others = [i for i in range(x.dim()) if axis is None or i != axis % x.dim()]
    largest = x.abs().amax(others, keepdim=axis is not None) if others else x.abs()
    scale = torch.where(largest > 0, 127 / largest, 1.0)
    return (x * scale).round().to(torch.int8), scale


# %% DynamicInt8Linear: the inputs stay floats
# caught by: test_inputs_are_quantised_token_by_token
# says: The inputs are not quantised: this saves memory, but the product is one of floats and no faster.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        return F.linear(x.float(), self.weight * self.weight_scale, self.bias).to(x.dtype)


# %% DynamicInt8Linear: one scale for all tokens
# caught by: test_tokens_do_not_share_a_scale, test_inputs_are_quantised_token_by_token
# says: All tokens share one scale, so a loud one spoils the others: each token has its own.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x)
        y = (q.int() @ self.weight.int().T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


# %% DynamicInt8Linear: one scale for the whole weight
# caught by: test_the_dynamic_layer_holds_integers_scales_and_the_bias
# says: The weight has one scale for everything; each output should have its own, of shape (n_out, 1).
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q.int() @ self.weight.int().T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: scales for the inputs of the weight
# caught by: test_the_dynamic_layer_holds_integers_scales_and_the_bias
# says: The weight's scales belong to its inputs; they cannot be taken out of the sum. Each output needs its own.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=1)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8((x.float() * self.weight_scale).reshape(-1, x.shape[-1]), axis=0)
        y = (q.int() @ self.weight.int().T) * scale
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: added up in int8
# caught by: test_sums_do_not_overflow, test_inputs_are_quantised_token_by_token
# says: Products of int8 are added up in int8, and wrap around: add up in int32.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q @ self.weight.T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: added up in int16
# caught by: test_sums_do_not_overflow
# says: Two products of 127 by 127 already leave int16: add up in int32.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q.short() @ self.weight.short().T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: a product of floats
# caught by: test_sums_of_products_are_exact
# says: The product is one of float32, which rounds sums above 2²⁴ and saves no time: multiply int8 or int32.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q.float() @ self.weight.float().T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: the bias before the scales
# caught by: test_inputs_are_quantised_token_by_token, test_a_token_of_zeros_gives_the_bias
# says: The bias is added to the integers and then scaled with them: it belongs after the scales.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = q.int() @ self.weight.int().T
        if self.bias is not None:
            y = y + self.bias
        return (y * scale * self.weight_scale.T).view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: the weight's scale forgotten
# caught by: test_inputs_are_quantised_token_by_token
# says: The product is scaled for the inputs only: the weight's scale is missing.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q.int() @ self.weight.int().T) * scale
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% DynamicInt8Linear: float32 whatever comes in
# caught by: test_a_dynamic_layer_gives_bfloat16_for_bfloat16
# says: The result is float32 even for bfloat16 inputs: give it the dtype of x at the end.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q.int() @ self.weight.int().T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)


# %% DynamicInt8Linear: the bias is the given layer's own
# caught by: test_the_dynamic_layer_holds_integers_scales_and_the_bias
# says: The bias is a parameter, and still the given layer's own: keep a detached copy in a buffer.
class DynamicInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        q, scale = quantize_int8(x.reshape(-1, x.shape[-1]), axis=0)
        y = (q.int() @ self.weight.int().T) * scale * self.weight_scale.T
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1).to(x.dtype)


# %% StaticInt8Linear: the last call decides
# caught by: test_observing_widens_the_range
# says: Each call of observe replaces the range: widen the one that is there.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = x.float().min().clamp(max=0)
        self.high = x.float().max().clamp(min=0)

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127).int()
        y = ((q - zero.int()) @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: the range without zero
# caught by: test_observing_widens_the_range, test_inputs_are_quantised_on_the_observed_range
# says: The range has to contain 0 as well, or zero has no integer of its own and the zero point leaves the range.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        first = bool(self.low == self.high)
        self.low = x.float().min() if first else torch.minimum(self.low, x.float().min())
        self.high = x.float().max() if first else torch.maximum(self.high, x.float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127).int()
        y = ((q - zero.int()) @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: a product of floats
# caught by: test_a_static_layers_sums_are_exact
# says: The product is one of float32, which rounds sums above 2²⁴ and saves no time: multiply int8 or int32.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = torch.minimum(self.low, x.detach().float().min())
        self.high = torch.maximum(self.high, x.detach().float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127)
        y = F.linear((q - zero) * scale, self.weight * self.weight_scale, self.bias)
        return y.to(x.dtype)


# %% StaticInt8Linear: the zero point left in the sum
# caught by: test_inputs_are_quantised_on_the_observed_range
# says: The zero point is still in the sum: take z times the sum of each row of the weight out again.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = torch.minimum(self.low, x.float().min())
        self.high = torch.maximum(self.high, x.float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127).int()
        y = (q @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: dynamic after all
# caught by: test_the_range_is_that_of_the_calibration_and_not_of_x, test_what_lies_outside_of_the_range_is_cut_off
# says: A call widens the range too, so the layer is still calibrating: only observe may change it.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = torch.minimum(self.low, x.float().min())
        self.high = torch.maximum(self.high, x.float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        self.observe(x)
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127).int()
        y = ((q - zero.int()) @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: symmetric
# caught by: test_inputs_are_quantised_on_the_observed_range
# says: The inputs are quantised symmetrically: with the range's own low and high there is twice the precision.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = torch.minimum(self.low, x.float().min())
        self.high = torch.maximum(self.high, x.float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = torch.maximum(self.high, -self.low) / 127
        q = (x.float() / scale).round().clamp(-127, 127).int()
        y = (q @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: integers that wrap around
# caught by: test_what_lies_outside_of_the_range_is_cut_off
# says: What lies beyond the range wraps around to the other end: clamp before you make int8 of it.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = torch.minimum(self.low, x.float().min())
        self.high = torch.maximum(self.high, x.float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).int().to(torch.int8).int()
        y = ((q - zero.int()) @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: the range is no buffer
# caught by: test_the_static_layer_holds_integers_scales_and_a_range
# says: low and high are plain attributes, so that a saved layer forgets its calibration: make buffers of them.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.low, self.high = torch.tensor(0.0), torch.tensor(0.0)

    def observe(self, x):
        self.low = torch.minimum(self.low, x.float().min())
        self.high = torch.maximum(self.high, x.float().max())

    def forward(self, x):
        if self.low == self.high:
            raise RuntimeError("call observe(x) first")
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127).int()
        y = ((q - zero.int()) @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% StaticInt8Linear: silent without a range
# caught by: test_a_layer_without_a_range_says_so
# says: Without calibration the scale is zero and the result is NaN, and nobody is told: raise a RuntimeError.
class StaticInt8Linear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        weight, scale = quantize_int8(linear.weight.detach(), axis=0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def observe(self, x):
        self.low = torch.minimum(self.low, x.float().min())
        self.high = torch.maximum(self.high, x.float().max())

    def forward(self, x):
        scale = (self.high - self.low) / 255
        zero = -128 - (self.low / scale).round()
        q = ((x.float() / scale).round() + zero).clamp(-128, 127).int()
        y = ((q - zero.int()) @ self.weight.int().T) * scale * self.weight_scale.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


# %% fake_quantize: the gradient dies
# caught by: test_the_gradient_passes_where_nothing_was_cut_off
# says: The gradient is zero everywhere, because rounding is flat: take it for the identity backwards.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    return ((x.float() / scale.detach()).round().clamp(-top, top) * scale.detach()).to(x.dtype)


# %% fake_quantize: the gradient passes everywhere
# caught by: test_the_gradient_passes_where_nothing_was_cut_off, test_the_edge_is_where_rounding_leaves_the_range
# says: The gradient passes even where x was cut off: it should be zero there.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    y = ((x.detach().float() / scale.detach()).round().clamp(-top, top) * scale.detach()).to(x.dtype)
    return x + (y - x).detach()


# %% fake_quantize: −128 too
# caught by: test_values_are_rounded_and_cut_off, test_the_edge_is_where_rounding_leaves_the_range
# says: The range goes down to −2^(bits−1); here it is symmetric, from −Q to Q.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    rounded = (x.detach().float() / scale.detach()).round()
    inside = (rounded >= -top - 1) & (rounded <= top)
    value = (rounded.clamp(-top - 1, top) * scale.detach()).to(x.dtype)
    return value + (x - x.detach()) * inside


# %% fake_quantize: always eight bits
# caught by: test_values_are_rounded_and_cut_off
# says: The range is that of 8 bits whatever `bits` is.
def fake_quantize(x, scale, bits=8):
    rounded = (x.detach().float() / scale.detach()).round()
    value = (rounded.clamp(-127, 127) * scale.detach()).to(x.dtype)
    return value + (x - x.detach()) * (rounded.abs() <= 127)


# %% fake_quantize: one bit too many
# caught by: test_values_are_rounded_and_cut_off
# says: With one bit for the sign, `bits` bits reach to 2^(bits−1) − 1, half as far as here.
def fake_quantize(x, scale, bits=8):
    top = 2**bits - 1
    rounded = (x.detach().float() / scale.detach()).round()
    value = (rounded.clamp(-top, top) * scale.detach()).to(x.dtype)
    return value + (x - x.detach()) * (rounded.abs() <= top)


# %% fake_quantize: integers come back
# caught by: test_values_are_rounded_and_cut_off
# says: These are the integers: multiply them by the scale again.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    rounded = (x.detach().float() / scale.detach()).round()
    return rounded.clamp(-top, top).to(x.dtype) + (x - x.detach()) * (rounded.abs() <= top)


# %% fake_quantize: cut off before rounding
# caught by: test_the_edge_is_where_rounding_leaves_the_range
# says: What counts as cut off is decided before rounding: 127.3 steps round to 127 and are inside.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    steps = (x.float() / scale.detach()).clamp(-top, top)
    return ((steps + (steps.round() - steps).detach()) * scale.detach()).to(x.dtype)


# %% fake_quantize: the gradient in steps of the scale
# caught by: test_the_gradient_passes_where_nothing_was_cut_off
# says: The gradient is multiplied by the scale on its way, or divided by it: it should pass unchanged.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    rounded = (x.detach().float() / scale.detach()).round()
    inside = (rounded.abs() <= top) * scale.detach()
    return (rounded.clamp(-top, top) * scale.detach()).to(x.dtype) + (x - x.detach()) * inside


# %% fake_quantize: the scale learns too
# caught by: test_no_gradient_reaches_the_scale
# says: The scale gets a gradient: detach it, it is a given number here.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    rounded = (x.detach().float() / scale.detach()).round()
    return (rounded.clamp(-top, top) * scale).to(x.dtype) + (x - x.detach()) * (rounded.abs() <= top)


# %% fake_quantize: float32 whatever comes in
# caught by: test_the_result_has_the_dtype_of_x
# says: The result is float32 even for bfloat16: give it the dtype of x.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    rounded = (x.detach().float() / scale.detach()).round()
    return rounded.clamp(-top, top) * scale.detach() + (x - x.detach()) * (rounded.abs() <= top)


# %% fake_quantize: x is added and taken off again
# caught by: test_the_result_has_the_dtype_of_x
# says: value + x − x.detach() rounds the first sum, in bfloat16 by a whole step of that type: what is added should be 0 by itself.
def fake_quantize(x, scale, bits=8):
    top = 2 ** (bits - 1) - 1
    rounded = (x.detach().float() / scale.detach()).round()
    value = (rounded.clamp(-top, top) * scale.detach()).to(x.dtype)
    passed = x * (rounded.abs() <= top)
    return value + passed - passed.detach()
