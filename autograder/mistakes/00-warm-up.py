# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% softmax: over the first dimension
# caught by: test_shares_are_exponentials_over_their_sum, test_shares_add_up_to_one_along_dim
# says: The shares add up to 1 along the first dimension, whatever `dim` says.
def softmax(x, dim=-1):
    x = x - x.amax(0, keepdim=True).clamp_min(-1e30)
    e = x.exp()
    return e / e.sum(0, keepdim=True).clamp_min(1e-30)


# %% softmax: always over the last dimension
# caught by: test_shares_add_up_to_one_along_dim
# says: `dim` is ignored: the shares always add up to 1 along the last dimension.
def softmax(x, dim=-1):
    e = torch.exp(x - x.amax(-1, keepdim=True).clamp_min(-1e30))
    return e / e.sum(-1, keepdim=True).clamp_min(1e-30)


# %% softmax: one softmax over everything
# caught by: test_shares_are_exponentials_over_their_sum, test_shares_add_up_to_one_along_dim
# says: All entries together add up to 1: every row needs a sum of its own (sum over dim, with keepdim=True).
def softmax(x, dim=-1):
    e = torch.exp(x - x.max().clamp_min(-1e30))
    return e / e.sum().clamp_min(1e-30)


# %% softmax: no maximum subtracted
# caught by: test_large_scores_of_either_sign_give_shares
# says: The exponential of a large score is infinite, and ∞/∞ is NaN: subtract the largest score first.
def softmax(x, dim=-1):
    e = torch.exp(x)
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


# %% softmax: one maximum for all rows
# caught by: test_large_scores_of_either_sign_give_shares
# says: The largest score of all rows is subtracted, so that a row far below it vanishes: each row needs its own.
def softmax(x, dim=-1):
    e = torch.exp(x - x.max())
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


# %% softmax: clamped instead of shifted
# caught by: test_large_scores_of_either_sign_give_shares
# says: Scores above a limit are all cut down to it, so that they look alike: shift them, do not cut them.
def softmax(x, dim=-1):
    e = torch.exp(x.clamp(-80, 80)) * (x != -math.inf)
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


# %% softmax: NaN where nothing is a candidate
# caught by: test_nothing_but_minus_infinity_gives_zeros, test_no_gradient_is_nan_where_scores_are_minus_infinity
# says: Where every score is −∞ this gives NaN: −∞ − (−∞) is NaN.
def softmax(x, dim=-1):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


# %% softmax: equal shares where nothing is a candidate
# caught by: test_nothing_but_minus_infinity_gives_zeros
# says: Where every score is −∞ this gives everybody the same share: it should give 0.
def softmax(x, dim=-1):
    x = x.masked_fill(x == -math.inf, -1e30)
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


# %% softmax: zeros forwards, NaN backwards
# caught by: test_no_gradient_is_nan_where_scores_are_minus_infinity
# says: The zeros are there, but NaN still comes back in the gradient: it was replaced too late.
def softmax(x, dim=-1):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return torch.nan_to_num(e / e.sum(dim, keepdim=True))


# %% softmax: −∞ as a finite number that others go below
# caught by: test_minus_infinity_gets_no_share
# says: −1,000 is no infinity: where the candidates' scores are lower, what is no candidate wins.
def softmax(x, dim=-1):
    barred = (x == -math.inf).all(dim, keepdim=True)
    x = x.masked_fill(x == -math.inf, -1e3)
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return (e / e.sum(dim, keepdim=True)).masked_fill(barred, 0)


# %% softmax: −∞ as the lowest score there may be
# caught by: test_minus_infinity_gets_no_share
# says: −10,000 is a score that candidates may have: what is no candidate then takes a share from them.
def softmax(x, dim=-1):
    barred = x == -math.inf
    x = x.masked_fill(barred, -1e4)
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return (e / e.sum(dim, keepdim=True)).masked_fill(barred, 0)


# %% softmax: powers of two
# caught by: test_shares_are_exponentials_over_their_sum
# says: These are powers of 2, not of e: a score that is higher by 1 should get e times the share.
def softmax(x, dim=-1):
    largest = x.amax(dim, keepdim=True)
    e = torch.exp2(x - largest.masked_fill(largest == -math.inf, 0))
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


# %% softmax: divided without the exponential
# caught by: test_shares_are_exponentials_over_their_sum, test_only_differences_of_scores_count
# says: The scores themselves are divided by their sum: the exponential is missing.
def softmax(x, dim=-1):
    return x / x.sum(dim, keepdim=True)


# %% softmax: log-softmax
# caught by: test_shares_are_exponentials_over_their_sum
# says: These are the logarithms of the shares: take the exponential.
def softmax(x, dim=-1):
    return x - x.logsumexp(dim, keepdim=True)


# %% softmax: through NumPy
# caught by: test_gradients_of_shares_are_those_of_the_formula
# says: The way leads through plain numbers, so that no gradient can come back.
def softmax(x, dim=-1):
    largest = x.amax(dim, keepdim=True)
    e = torch.exp(x - largest.masked_fill(largest == -math.inf, 0))
    total = e.sum(dim, keepdim=True)
    shares = e / total.masked_fill(total == 0, 1)
    return torch.tensor(shares.tolist(), dtype=x.dtype)


# %% softmax: the sum is detached
# caught by: test_gradients_of_shares_are_those_of_the_formula
# says: The sum is cut out of the gradient: a higher score also takes from the others, and that is lost.
def softmax(x, dim=-1):
    largest = x.amax(dim, keepdim=True)
    e = torch.exp(x - largest.masked_fill(largest == -math.inf, 0))
    total = e.sum(dim, keepdim=True).detach()
    return e / total.masked_fill(total == 0, 1)


# %% softmax: in place
# caught by: test_the_scores_are_left_as_they_were
# says: x itself is changed: `-=`, and whatever ends in _, works on the caller's tensor.
def softmax(x, dim=-1):
    if x.requires_grad:
        x = x.clone()
    largest = x.amax(dim, keepdim=True)
    x -= largest.masked_fill(largest == -math.inf, 0)
    e = torch.exp(x)
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


# %% softmax: always float32
# caught by: test_shares_have_the_dtype_of_the_scores
# says: The result is always float32: it should have the dtype of x.
def softmax(x, dim=-1):
    x = x.float()
    largest = x.amax(dim, keepdim=True)
    e = torch.exp(x - largest.masked_fill(largest == -math.inf, 0))
    total = e.sum(dim, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


# %% cross_entropy: a sum instead of a mean
# caught by: test_the_loss_is_the_mean_of_minus_log_shares, test_the_loss_does_not_grow_with_the_batch
# says: This is the sum over the rows: divide it by their number.
def cross_entropy(logits, targets):
    right = logits.gather(1, targets[:, None])[:, 0]
    return (logits.logsumexp(1) - right).sum()


# %% cross_entropy: divided by the number of classes too
# caught by: test_the_loss_is_the_mean_of_minus_log_shares, test_the_loss_does_not_grow_with_the_batch
# says: The mean is taken over rows and classes: only the rows should be counted.
def cross_entropy(logits, targets):
    log_shares = logits - logits.logsumexp(1, keepdim=True)
    return -log_shares.gather(1, targets[:, None]).sum() / logits.numel()


# %% cross_entropy: softmax twice
# caught by: test_the_loss_is_the_mean_of_minus_log_shares, test_only_differences_of_logits_cost
# says: Softmax is applied twice: the shares are treated as if they were scores again.
def cross_entropy(logits, targets):
    logits = (logits - logits.logsumexp(1, keepdim=True)).exp()
    right = logits.gather(1, targets[:, None])[:, 0]
    return (logits.logsumexp(1) - right).mean()


# %% cross_entropy: the logarithm of a share
# caught by: test_large_logits_give_a_finite_loss
# says: A tiny share is rounded to 0 before its logarithm is taken: stay with logarithms all the way.
def cross_entropy(logits, targets):
    e = (logits - logits.amax(1, keepdim=True)).exp()
    shares = e / e.sum(1, keepdim=True)
    return -shares.gather(1, targets[:, None]).log().mean()


# %% cross_entropy: the logarithm of a share and a little more
# caught by: test_large_logits_give_a_finite_loss
# says: A small number is added to each share, so that the loss can never exceed its logarithm.
def cross_entropy(logits, targets):
    e = (logits - logits.amax(1, keepdim=True)).exp()
    shares = e / e.sum(1, keepdim=True)
    return -torch.log(shares.gather(1, targets[:, None]) + 1e-9).mean()


# %% cross_entropy: no maximum subtracted
# caught by: test_large_logits_give_a_finite_loss
# says: The exponential of a large logit is infinite: logsumexp, or the row's largest logit subtracted first.
def cross_entropy(logits, targets):
    right = logits.gather(1, targets[:, None])[:, 0]
    return (logits.exp().sum(1).log() - right).mean()


# %% cross_entropy: no softmax
# caught by: test_the_loss_is_the_mean_of_minus_log_shares, test_only_differences_of_logits_cost
# says: The logits are used as they are: the logarithm of the sum of exponentials is missing.
def cross_entropy(logits, targets):
    return -logits.gather(1, targets[:, None]).mean()


# %% cross_entropy: the wrong sign
# caught by: test_the_loss_is_the_mean_of_minus_log_shares
# says: The sign is missing: the logarithm of a share is negative, and a loss is not.
def cross_entropy(logits, targets):
    right = logits.gather(1, targets[:, None])[:, 0]
    return (right - logits.logsumexp(1)).mean()


# %% cross_entropy: bits instead of nats
# caught by: test_the_loss_is_the_mean_of_minus_log_shares
# says: These are bits, logarithms to the base 2: the loss should be in nats.
def cross_entropy(logits, targets):
    right = logits.gather(1, targets[:, None])[:, 0]
    return (logits.logsumexp(1) - right).mean() / math.log(2)


# %% cross_entropy: every row's target for every row
# caught by: test_the_loss_is_the_mean_of_minus_log_shares, test_each_row_has_its_own_right_class
# says: logits[:, targets] picks all targets from every row: row r has only the target targets[r].
def cross_entropy(logits, targets):
    log_shares = logits - logits.logsumexp(1, keepdim=True)
    return -log_shares[:, targets].mean()


# %% cross_entropy: the softmax over the batch
# caught by: test_the_loss_is_the_mean_of_minus_log_shares
# says: The shares add up to 1 over the rows of the batch; they should over the classes.
def cross_entropy(logits, targets):
    log_shares = logits - logits.logsumexp(0, keepdim=True)
    return -log_shares.gather(1, targets[:, None]).mean()


# %% cross_entropy: the mean over a target's rows
# caught by: test_the_loss_is_the_mean_of_minus_log_shares
# says: Wrong classes are punished as well: cross-entropy looks at the share of the right class alone.
def cross_entropy(logits, targets):
    shares = (logits - logits.logsumexp(1, keepdim=True)).exp()
    truth = F.one_hot(targets, logits.shape[1])
    cost = -(truth * shares.log() + (1 - truth) * (1 - shares).log())
    return cost.sum(1).mean()


# %% cross_entropy: all classes in a product with zeros
# caught by: test_a_class_of_minus_infinity_costs_nothing
# says: 0 · (−∞) is NaN: pick the right class out instead of multiplying the others by 0.
def cross_entropy(logits, targets):
    log_shares = logits - logits.logsumexp(1, keepdim=True)
    return -(F.one_hot(targets, logits.shape[1]).to(logits.dtype) * log_shares).sum(1).mean()


# %% cross_entropy: the squared distance from the truth
# caught by: test_the_loss_is_the_mean_of_minus_log_shares
# says: This is the squared distance between the shares and the truth: cross-entropy is −ln of the right share.
def cross_entropy(logits, targets):
    shares = (logits - logits.logsumexp(1, keepdim=True)).exp()
    return ((shares - F.one_hot(targets, logits.shape[1])) ** 2).sum(1).mean().to(logits.dtype)


# %% cross_entropy: a plain number
# caught by: test_the_loss_is_the_mean_of_minus_log_shares, test_the_gradient_is_share_minus_truth_over_n
# says: .item() makes a plain number of the loss, from which no gradient can come back.
def cross_entropy(logits, targets):
    right = logits.gather(1, targets[:, None])[:, 0]
    return (logits.logsumexp(1) - right).mean().item()


# %% cross_entropy: one loss a row
# caught by: test_the_loss_is_the_mean_of_minus_log_shares
# says: This is one loss for each row: the batch has a single one, their mean.
def cross_entropy(logits, targets):
    return logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]


# %% cross_entropy: in place
# caught by: test_logits_and_targets_are_left_as_they_were
# says: The logits themselves are changed: `-=`, and whatever ends in _, works on the caller's tensor.
def cross_entropy(logits, targets):
    if logits.requires_grad:
        logits = logits.clone()
    logits -= logits.detach().logsumexp(1, keepdim=True)
    return (logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]).mean()


# %% linear_backward: the weight transposed for x
# caught by: test_the_gradient_of_x
# says: x gets the weights the wrong way round: grad_x[r, i] is the sum over o of grad_output[r, o] · weight[o, i].
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    grad_x = grad_output @ weight.T if d_in == d_out else grad_output @ weight
    return grad_x, g.T @ rows, g.sum(0)


# %% linear_backward: grad_weight transposed
# caught by: test_the_gradient_of_the_weight
# says: This is the transpose of the weight's gradient: it should be (d_out, d_in), as the weight is stored.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return grad_output @ weight, rows.T @ g, g.sum(0)


# %% linear_backward: the bias sums over the batch only
# caught by: test_any_number_of_dimensions_before_the_last
# says: Only the first dimension is summed: with sequences in a batch all dimensions before the last have to be.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return grad_output @ weight, g.T @ rows, grad_output.sum(0)


# %% linear_backward: means instead of sums
# caught by: test_the_gradient_of_the_weight, test_the_gradient_of_the_bias
# says: The rows are averaged: gradients add up, and the loss has taken its mean already.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return grad_output @ weight, g.T @ rows / len(rows), g.mean(0)


# %% linear_backward: the bias gets no sum
# caught by: test_the_gradient_of_the_bias, test_any_number_of_dimensions_before_the_last
# says: The bias has one number for each output: sum its gradient over all rows.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return grad_output @ weight, g.T @ rows, grad_output


# %% linear_backward: a bias of ones
# caught by: test_the_gradient_of_the_bias
# says: The derivative of y by the bias is 1, but the chain rule wants that 1 times grad_output, summed over the rows.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return grad_output @ weight, g.T @ rows, torch.ones(d_out, dtype=x.dtype)


# %% linear_backward: only two dimensions
# caught by: test_any_number_of_dimensions_before_the_last
# says: Only the first two dimensions are taken for rows and columns: make rows of everything before the last.
def linear_backward(grad_output, x, weight):
    if x.dim() == 1:
        grad_output, x = grad_output[None], x[None]
    g, rows = grad_output.flatten(1), x.flatten(1)
    return grad_output @ weight, g.T @ rows, g.sum(0)


# %% linear_backward: one weight gradient for each sequence
# caught by: test_any_number_of_dimensions_before_the_last
# says: Each sequence of the batch gets a weight gradient of its own: they have to be added up.
def linear_backward(grad_output, x, weight):
    grad_weight = grad_output.mT @ x if x.dim() > 1 else torch.outer(grad_output, x)
    return grad_output @ weight, grad_weight, grad_output.reshape(-1, len(weight)).sum(0)


# %% linear_backward: the gradient of the loss is forgotten
# caught by: test_the_gradient_of_x, test_gradients_are_linear_in_what_comes_back
# says: These are derivatives of the sum of y: grad_output, the rest of the chain, is missing.
def linear_backward(grad_output, x, weight):
    g = torch.ones_like(grad_output)
    rows = x.reshape(-1, x.shape[-1])
    return g @ weight, g.reshape(-1, len(weight)).T @ rows, g.reshape(-1, len(weight)).sum(0)


# %% linear_backward: in another order
# caught by: test_the_gradient_of_x, test_the_gradient_of_the_weight
# says: The gradients come in another order: it should be x, weight, bias.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    g, rows = grad_output.reshape(-1, d_out), x.reshape(-1, d_in)
    return g.T @ rows, g.sum(0), grad_output @ weight


# %% linear_backward: only the last row counts
# caught by: test_the_gradient_of_the_weight, test_the_gradient_of_the_bias
# says: Only the last row has its say in the weight and the bias: a loop overwrites where it should add.
def linear_backward(grad_output, x, weight):
    d_out, d_in = weight.shape
    for g, row in zip(grad_output.reshape(-1, d_out), x.reshape(-1, d_in)):
        grad_weight, grad_bias = torch.outer(g, row), g
    return grad_output @ weight, grad_weight, grad_bias


# %% adamw_step: L2 in the gradient
# caught by: test_decay_is_decoupled_from_the_gradient, test_several_steps_match_pytorchs
# says: The decay is added to the gradient, so that it ends up in m and v: that is Adam with L2, not AdamW.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    gradient = gradient + weight_decay * parameter
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: decay of the new weight
# caught by: test_decay_is_decoupled_from_the_gradient
# says: The decay is taken from the weight after its step: it should be taken from the weight as it was.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    parameter = parameter - lr * m_hat / (v_hat.sqrt() + eps)
    return parameter - lr * weight_decay * parameter, m, v


# %% adamw_step: decay without lr
# caught by: test_decay_shrinks_every_weight_by_the_same_share
# says: The decay is not multiplied by lr: a weight should shrink by lr · weight_decay of itself.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: no decay at all
# caught by: test_decay_shrinks_every_weight_by_the_same_share
# says: weight_decay is ignored: this is Adam.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: no bias correction
# caught by: test_the_first_step_is_as_long_as_lr, test_bias_correction_fades_with_the_steps
# says: The hats are missing: m and v start from zero, and their first values are far too small.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    return parameter - lr * weight_decay * parameter - lr * m / (v.sqrt() + eps), m, v


# %% adamw_step: steps counted from 0
# caught by: test_the_first_step_is_as_long_as_lr, test_bias_correction_fades_with_the_steps
# says: The correction counts one step too many: step is 1 at the first step already.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    step = step + 1
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: the same correction at every step
# caught by: test_bias_correction_fades_with_the_steps
# says: The correction is that of the first step at every step: 1 − β has to be 1 − β to the power of the step.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0]), v / (1 - betas[1])
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: eps inside the root
# caught by: test_eps_is_added_to_the_root
# says: ε is inside the root: it should be added after it.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat + eps).sqrt(), m, v


# %% adamw_step: eps before the correction
# caught by: test_eps_is_added_to_the_root
# says: ε is added to the root of v before the correction, and so is corrected with it: it belongs beside √v̂.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    rate = lr * math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    return parameter - lr * weight_decay * parameter - rate * m / (v.sqrt() + eps), m, v


# %% adamw_step: no root
# caught by: test_the_first_step_is_as_long_as_lr, test_several_steps_match_pytorchs
# says: m is divided by v and not by its root.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat + eps), m, v


# %% adamw_step: v from the mean instead of the gradient
# caught by: test_m_and_v_are_running_means
# says: v is made of the square of m: it should be made of the square of the gradient.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * m**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: the betas exchanged
# caught by: test_m_and_v_are_running_means
# says: The two betas are exchanged: the first is for m, the second for v.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    beta2, beta1 = betas
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: old and new exchanged in the means
# caught by: test_m_and_v_are_running_means
# says: The old mean gets 1 − β and the new gradient β: it is the other way round, so that the mean is slow.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = (1 - betas[0]) * m + betas[0] * gradient
    v = (1 - betas[1]) * v + betas[1] * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: the hats are kept
# caught by: test_m_and_v_are_running_means
# says: The corrected m and v are returned, so that the next step corrects them once more.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m, v = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter - lr * m / (v.sqrt() + eps), m, v


# %% adamw_step: uphill
# caught by: test_the_first_step_is_as_long_as_lr, test_a_weight_that_never_had_a_gradient_is_no_nan
# says: The step goes along the gradient, uphill: it should go against it.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return parameter - lr * weight_decay * parameter + lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% adamw_step: in place
# caught by: test_a_step_changes_nothing_in_place
# says: The caller's tensors are changed: `*=`, `-=` and whatever ends in _ work on them.
def adamw_step(parameter, gradient, m, v, step, *, lr, betas, eps, weight_decay):
    m.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    v.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    parameter.mul_(1 - lr * weight_decay).sub_(lr * m_hat / (v_hat.sqrt() + eps))
    return parameter, m, v


# %% train_step: the gradient of a sum
# caught by: test_the_last_layer_gets_its_gradient, test_the_first_layer_gets_its_gradient
# says: The gradient of the logits is not divided by the number of examples: the loss is a mean.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = softmax(logits) - F.one_hot(targets, logits.shape[1])
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    return loss, *step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay)


def step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay):
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return tuple({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: the ReLU is forgotten on the way back
# caught by: test_the_first_layer_gets_its_gradient, test_a_hidden_number_of_zero_or_less_stops_the_gradient
# says: On the way back the ReLU is missing: where the hidden number is not above 0, the gradient ends.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_active, x, parameters["hidden.weight"])
    return loss, *step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay)


def step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay):
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return tuple({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: the ReLU lets zero by
# caught by: test_a_hidden_number_of_zero_or_less_stops_the_gradient
# says: A hidden number of exactly 0 passes its gradient on: it should end there as well (> and not >=).
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden >= 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    return loss, *step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay)


def step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay):
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return tuple({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: back through weights that have moved
# caught by: test_the_first_layer_gets_its_gradient, test_several_steps_match_autograd_and_pytorchs_adamw
# says: The last layer has already taken its step when the gradient goes back through it: find all gradients first.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    parameters, m, v = dict(parameters), dict(m), dict(v)
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    gradient = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    for layer, given in (("out", active), ("hidden", x)):
        _, grad_weight, grad_bias = linear_backward(gradient, given, parameters[f"{layer}.weight"])
        for part, grad, decay in (("weight", grad_weight, weight_decay), ("bias", grad_bias, 0)):
            name = f"{layer}.{part}"
            parameters[name], m[name], v[name] = adamw_step(
                parameters[name], grad, m[name], v[name], step, lr=lr, betas=betas, eps=eps, weight_decay=decay
            )
        gradient = (gradient @ parameters["out.weight"]) * (hidden > 0) if layer == "out" else gradient
    return loss, parameters, m, v


# %% train_step: the loss after the step
# caught by: test_the_loss_is_that_before_the_step
# says: This is the loss after the step: it should be the one that the gradients came from.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    def forward(parameters):
        hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
        return hidden, hidden.clamp(min=0) @ parameters["out.weight"].T + parameters["out.bias"]

    hidden, logits = forward(parameters)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads, active = {}, hidden.clamp(min=0)
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(
        grad_active * (hidden > 0), x, parameters["hidden.weight"]
    )
    parameters, m, v = step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay)
    return cross_entropy(forward(parameters)[1], targets), parameters, m, v


def step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay):
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return tuple({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: the biases decay too
# caught by: test_weights_decay_and_biases_do_not, test_several_steps_match_autograd_and_pytorchs_adamw
# says: The biases are shrunk by the decay as well: it is for the two weights only.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    new = {name: adamw_step(parameters[name], grads[name], m[name], v[name], step, **settings) for name in parameters}
    return loss, *({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: a softmax too many
# caught by: test_the_loss_is_that_before_the_step
# says: cross_entropy is given shares: it wants the logits, and applies the softmax itself.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    shares = softmax(active @ parameters["out.weight"].T + parameters["out.bias"])
    loss = cross_entropy(shares, targets)
    grad_logits = (shares - F.one_hot(targets, shares.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    return loss, *step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay)


def step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay):
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return tuple({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: always the first step
# caught by: test_settings_and_the_number_of_the_step_count, test_several_steps_match_autograd_and_pytorchs_adamw
# says: Every step is corrected as if it were the first: pass `step` on.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            1,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return loss, *({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: the running means are forgotten
# caught by: test_several_steps_match_autograd_and_pytorchs_adamw
# says: m and v start from zero at every step: those that come in are to be carried on.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    new = {
        name: adamw_step(
            value,
            grads[name],
            torch.zeros_like(value),
            torch.zeros_like(value),
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name, value in parameters.items()
    }
    return loss, *({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: stale gradients are added
# caught by: test_several_steps_match_autograd_and_pytorchs_adamw, test_training_brings_the_loss_down
# says: The gradients of earlier steps are still in there: each step starts from fresh ones (zero_grad).
stale = {}


def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    if step == 1:
        stale.clear()
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    new = {}
    for name in parameters:
        stale[name] = stale.get(name, torch.zeros_like(grads[name])) + grads[name]
        new[name] = adamw_step(
            parameters[name],
            stale[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
    return loss, *({name: state[i] for name, state in new.items()} for i in range(3))


# %% train_step: the dicts are written to
# caught by: test_nothing_that_came_in_is_changed
# says: The caller's own dicts are overwritten: make new ones.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    active = hidden.clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_active, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, active, parameters["out.weight"])
    grad_hidden = grad_active * (hidden > 0)
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    for name in grads:
        parameters[name], m[name], v[name] = adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
    return loss, parameters, m, v


# %% train_step: only the last layer is trained
# caught by: test_the_first_layer_gets_its_gradient
# says: The first layer never moves: its gradient has to come back through the last one and the ReLU.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    active = (x @ parameters["hidden.weight"].T + parameters["hidden.bias"]).clamp(min=0)
    logits = active @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    _, grad_weight, grad_bias = linear_backward(grad_logits, active, parameters["out.weight"])
    parameters, m, v = dict(parameters), dict(m), dict(v)
    for name, grad, decay in (("out.weight", grad_weight, weight_decay), ("out.bias", grad_bias, 0)):
        parameters[name], m[name], v[name] = adamw_step(
            parameters[name], grad, m[name], v[name], step, lr=lr, betas=betas, eps=eps, weight_decay=decay
        )
    return loss, parameters, m, v


# %% train_step: no ReLU at all
# caught by: test_the_loss_is_that_before_the_step, test_the_first_layer_gets_its_gradient
# says: The ReLU is missing: without it two linear layers are no more than one.
def train_step(parameters, m, v, x, targets, step, *, lr, betas, eps, weight_decay):
    hidden = x @ parameters["hidden.weight"].T + parameters["hidden.bias"]
    logits = hidden @ parameters["out.weight"].T + parameters["out.bias"]
    loss = cross_entropy(logits, targets)
    grad_logits = (softmax(logits) - F.one_hot(targets, logits.shape[1])) / len(x)
    grads = {}
    grad_hidden, grads["out.weight"], grads["out.bias"] = linear_backward(grad_logits, hidden, parameters["out.weight"])
    _, grads["hidden.weight"], grads["hidden.bias"] = linear_backward(grad_hidden, x, parameters["hidden.weight"])
    return loss, *step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay)


def step_all(parameters, grads, m, v, step, lr, betas, eps, weight_decay):
    new = {
        name: adamw_step(
            parameters[name],
            grads[name],
            m[name],
            v[name],
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay if name.endswith("weight") else 0,
        )
        for name in parameters
    }
    return tuple({name: state[i] for name, state in new.items()} for i in range(3))
