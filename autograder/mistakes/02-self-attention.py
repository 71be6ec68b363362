# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% causal_mask: the diagonal is left out
# caught by: test_a_position_sees_itself
# says: Row i leaves out column i: a position must see itself too.
def causal_mask(n):
    return torch.ones(n, n, dtype=torch.bool).tril(-1)


# %% causal_mask: it looks ahead instead of back
# caught by: test_a_position_never_sees_the_future, test_a_position_sees_all_of_the_past
# says: This is the upper triangle: it lets a position see the future and hides the past.
def causal_mask(n):
    return torch.ones(n, n, dtype=torch.bool).triu()


# %% causal_mask: True means "blocked"
# caught by: test_a_position_never_sees_the_future, test_a_position_sees_itself
# says: This mask is True where looking is forbidden; in this course True means "may attend".
def causal_mask(n):
    return torch.ones(n, n, dtype=torch.bool).triu(1)


# %% causal_mask: one step into the future
# caught by: test_a_position_never_sees_the_future
# says: Row i goes on to column i + 1, so that every position sees the very token that it should predict.
def causal_mask(n):
    return torch.ones(n, n, dtype=torch.bool).tril(1)


# %% causal_mask: numbers instead of booleans
# caught by: test_the_mask_is_a_square_of_booleans
# says: The triangle is right, but it holds numbers: the mask should be boolean.
def causal_mask(n):
    return torch.tril(torch.ones(n, n))


# %% causal_mask: a bias of 0 and −inf
# caught by: test_the_mask_is_a_square_of_booleans, test_a_position_never_sees_the_future
# says: This is a bias to add to the scores (0 and −inf); the mask should be boolean, True for "may attend".
def causal_mask(n):
    return torch.full((n, n), float("-inf")).triu(1)


# %% causal_mask: a table of fixed size
# caught by: test_every_length_works
# says: The mask is cut out of a table of fixed size, so it is too small for longer texts.
TABLE = torch.ones(1024, 1024, dtype=torch.bool).tril()


def causal_mask(n):
    return TABLE[:n, :n]


# %% causal_mask: dimensions for batch and heads
# caught by: test_the_mask_is_a_square_of_booleans
# says: The mask should have the shape (n, n); broadcasting adds the dimensions for batch and heads.
def causal_mask(n):
    return torch.tril(torch.ones(n, n, dtype=torch.bool)).view(1, 1, n, n)


# %% causal_mask: only one step back
# caught by: test_a_position_sees_all_of_the_past
# says: Each position sees only itself and the one before it: it should see the whole past.
def causal_mask(n):
    i = torch.arange(n)
    return (i[:, None] - i >= 0) & (i[:, None] - i <= 1)


# %% attention: no 1/√d
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_scores_are_divided_by_the_root_of_d_head
# says: This equals attention without 1/√d_head: the scores are not scaled.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: divided by d instead of √d
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_scores_are_divided_by_the_root_of_d_head
# says: The scores are divided by d_head; it should be its square root.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / q.shape[-1]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: multiplied by √d
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_scores_are_divided_by_the_root_of_d_head
# says: The scores are multiplied by √d_head; they should be divided by it.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) * math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the root of the number of keys
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_scores_are_divided_by_the_root_of_d_head
# says: The scores are divided by the root of the number of keys; d_head is the last dimension.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-2])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the root of the width of the values
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_scores_are_divided_by_the_root_of_d_head
# says: The scores are divided by the root of the values' width; d_head is that of queries and keys.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(v.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the scale after the softmax
# caught by: test_the_weights_of_a_row_sum_to_one, test_scores_are_divided_by_the_root_of_d_head
# says: The weights are divided by √d_head, not the scores: it belongs inside the softmax.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) / math.sqrt(q.shape[-1]) @ v


# %% attention: softmax over the queries
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_the_weights_of_a_row_sum_to_one
# says: The softmax runs over the queries; it should run over the keys, the last dimension of the scores.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-2)) @ v


# %% attention: softmax over dimension 1
# caught by: test_each_output_is_a_softmax_mixture_of_the_values, test_any_number_of_leading_dimensions
# says: The softmax runs over dimension 1, which is the queries or the heads; it should run over the last.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=1)) @ v


# %% attention: softmax over the whole map
# caught by: test_the_weights_of_a_row_sum_to_one, test_each_output_is_a_softmax_mixture_of_the_values
# says: One softmax runs over all queries and keys together; every query needs weights of its own.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores.flatten(-2), dim=-1)).view_as(scores) @ v


# %% attention: no softmax
# caught by: test_the_weights_of_a_row_sum_to_one, test_each_output_is_a_softmax_mixture_of_the_values
# says: The scores weigh the values directly: the softmax is missing.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, 0)
    return scores @ v


# %% attention: keys and queries swapped
# caught by: test_a_blocked_position_has_no_influence, test_without_a_mask_every_query_sees_every_key
# says: The keys ask and the queries answer: the scores are transposed.
def attention(q, k, v, mask=None):
    scores = k @ q.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the mask upside down
# caught by: test_the_mask_decides_who_takes_part, test_a_blocked_position_has_no_influence
# says: The mask is read the other way round: True means "may attend" (in nn.MultiheadAttention it is the opposite).
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the mask ignored
# caught by: test_the_mask_decides_who_takes_part, test_a_blocked_position_has_no_influence
# says: The mask is ignored.
def attention(q, k, v, mask=None):
    return F.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


# %% attention: the mask added as 0 and 1
# caught by: test_the_mask_decides_who_takes_part, test_a_blocked_position_has_no_influence
# says: True and False are added to the scores as 1 and 0: what is blocked loses a little weight and is still seen.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return F.softmax(scores, dim=-1) @ v


# %% attention: blocked scores set to zero
# caught by: test_the_mask_decides_who_takes_part, test_a_blocked_position_has_no_influence
# says: A score of 0 is not "blocked": its exponential is 1. What may not be seen needs a score of −∞.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores * mask
    return F.softmax(scores, dim=-1) @ v


# %% attention: masked after the softmax
# caught by: test_the_mask_decides_who_takes_part, test_the_weights_of_a_row_sum_to_one
# says: The mask comes after the softmax, so that the weights that are left no longer sum to 1.
def attention(q, k, v, mask=None):
    weights = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0)
    return weights @ v


# %% attention: masked after the softmax, then made to sum to 1 again
# caught by: test_the_weights_of_a_row_sum_to_one
# says: Where a blocked score is by far the highest, it takes all the weight before it is removed: mask the scores first.
def attention(q, k, v, mask=None):
    weights = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
    if mask is not None:
        weights = weights * mask
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
    return weights @ v


# %% attention: −10⁹ instead of −∞
# caught by: test_a_row_that_may_attend_to_nothing_gives_zeros
# says: With a finite number for −∞, a row that may attend to nothing gives the mean of what it may not see.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9)
    return F.softmax(scores, dim=-1) @ v


# %% attention: −10⁴ as if it were −∞
# caught by: test_a_blocked_position_has_no_influence
# says: −10,000 is no infinity: where the allowed scores are lower still, the blocked positions win.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = torch.where(mask, scores, torch.full_like(scores, -1e4))
        return F.softmax(scores, dim=-1) * mask.any(-1, keepdim=True) @ v
    return F.softmax(scores, dim=-1) @ v


# %% attention: NaN where nothing may be seen
# caught by: test_a_row_that_may_attend_to_nothing_gives_zeros
# says: A row that may attend to nothing gives NaN: the softmax of nothing but −∞ is 0/0.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return F.softmax(scores, dim=-1) @ v


# %% attention: zeros forwards, NaN backwards
# caught by: test_gradients_stay_finite_beside_an_empty_row
# says: The output of an empty row was mended, but its NaN still comes back in the gradients of q and k.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill(~mask, -math.inf)
        scores = scores + bias
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: NaN replaced in the output only
# caught by: test_gradients_stay_finite_beside_an_empty_row
# says: The output of an empty row was mended, but its weights are still NaN, and the gradient of v comes through them.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1) @ v)


# %% attention: the mask multiplied by −∞
# caught by: test_the_mask_decides_who_takes_part, test_the_weights_of_a_row_sum_to_one
# says: 0 · ∞ is NaN, so multiplying by −∞ spoils the allowed scores as well: use masked_fill or torch.where.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + (~mask).to(scores.dtype) * -math.inf
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: always causal
# caught by: test_without_a_mask_every_query_sees_every_key
# says: Without a mask this hides the future: mask=None should hide nothing.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return torch.nan_to_num(F.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)) @ v


# %% attention: an exponential that overflows
# caught by: test_large_scores_do_not_overflow
# says: The exponential of a large score is infinite, and ∞/∞ is NaN: subtract the row's largest score first.
def attention(q, k, v, mask=None):
    weights = torch.exp(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]))
    if mask is not None:
        weights = weights * mask
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-30) @ v


# %% attention: one maximum for all rows
# caught by: test_large_scores_do_not_overflow
# says: The largest score of all rows is subtracted; a row far below it vanishes. Each row needs its own.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.exp(scores - scores.max().clamp_min(-1e30))
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-30) @ v


# %% attention: computed in half precision
# caught by: test_each_output_is_a_softmax_mixture_of_the_values
# says: The result is rounded to half precision on the way: compute in the dtype of the input, or in a wider one.
def attention(q, k, v, mask=None):
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).bfloat16()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)).to(v.dtype) @ v


# %% attention: always float32
# caught by: test_the_result_has_the_dtype_of_the_input
# says: The result is always float32: it should have the dtype of the input.
def attention(q, k, v, mask=None):
    q, k, v = q.float(), k.float(), v.float()
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the weights are detached
# caught by: test_gradients_reach_queries_keys_and_values
# says: The values learn, queries and keys do not: the weights are cut off from the graph.
def attention(q, k, v, mask=None):
    with torch.no_grad():
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = torch.nan_to_num(F.softmax(scores, dim=-1))
    return weights @ v


# %% attention: the queries are scaled in place
# caught by: test_the_inputs_are_left_as_they_were
# says: The caller's queries are changed: q /= … works in place, q = q / … does not.
def attention(q, k, v, mask=None):
    q = q if q.requires_grad else q.div_(math.sqrt(q.shape[-1]))
    scores = q @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) if q.requires_grad else 1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: empty rows are opened in the caller's mask
# caught by: test_the_inputs_are_left_as_they_were
# says: The caller's mask is changed where a row is empty: mask |= … works in place, mask = mask | … does not.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is None:
        return F.softmax(scores, dim=-1) @ v
    empty = ~mask.any(-1, keepdim=True)
    mask |= empty
    return F.softmax(scores.masked_fill(~mask, -math.inf), dim=-1).masked_fill(empty, 0) @ v


# %% attention: the mask is inverted in place
# caught by: test_the_inputs_are_left_as_they_were
# says: The caller's mask is inverted: the name of an operation that works in place ends in _.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask.logical_not_(), -math.inf)
    return torch.nan_to_num(F.softmax(scores, dim=-1)) @ v


# %% attention: the weights are returned too
# caught by: test_each_output_is_a_softmax_mixture_of_the_values
# says: The result is a pair of output and weights: return the output only.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.nan_to_num(F.softmax(scores, dim=-1))
    return weights @ v, weights


# %% attention: dropout on the weights
# caught by: test_the_weights_of_a_row_sum_to_one
# says: Some weights are dropped at random: there is no dropout here.
def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return F.dropout(torch.nan_to_num(F.softmax(scores, dim=-1)), 0.1) @ v


# %% split_heads: reshaped without a transpose
# caught by: test_a_head_gets_neighbouring_channels, test_a_position_stays_where_it_was_when_split
# says: The shape is right and the layout is not: reshaping straight to (…, n_heads, n, d_head) mixes positions.
def split_heads(x, n_heads):
    return x.reshape(*x.shape[:-2], n_heads, x.shape[-2], x.shape[-1] // n_heads)


# %% split_heads: interleaved channels
# caught by: test_a_head_gets_neighbouring_channels
# says: The channels are dealt out in turn, so that head 0 gets every n_heads-th; each head should get neighbours.
def split_heads(x, n_heads):
    return x.unflatten(-1, (-1, n_heads)).movedim(-1, -3)


# %% split_heads: positions before heads
# caught by: test_each_head_has_its_share_of_the_channels
# says: The heads come after the positions: (…, n, n_heads, d_head) still needs its last step.
def split_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1))


# %% split_heads: n_heads taken for d_head
# caught by: test_each_head_has_its_share_of_the_channels
# says: n_heads was taken for the width of a head: there should be n_heads heads of d_model / n_heads channels.
def split_heads(x, n_heads):
    return x.unflatten(-1, (-1, n_heads)).transpose(-3, -2)


# %% split_heads: heads folded into the batch
# caught by: test_each_head_has_its_share_of_the_channels
# says: Batch and heads share one dimension; the heads need one of their own.
def split_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2).reshape(-1, x.shape[-2], x.shape[-1] // n_heads)


# %% split_heads: heads before the batch
# caught by: test_each_head_has_its_share_of_the_channels
# says: The heads became the first dimension; they belong just before the positions.
def split_heads(x, n_heads):
    return torch.stack(x.chunk(n_heads, -1))


# %% split_heads: batch and heads mixed up
# caught by: test_sequences_do_not_mix_when_split
# says: The shape is right, but a head holds pieces of several sequences: heads and batch were mixed up.
def split_heads(x, n_heads):
    heads = torch.stack(x.chunk(n_heads, -1))
    return heads.reshape(*x.shape[:-2], n_heads, x.shape[-2], -1)


# %% split_heads: only for a batch
# caught by: test_split_works_with_any_number_of_leading_dimensions
# says: Dimensions are counted from the front: with more or fewer of them before n the wrong ones are swapped.
def split_heads(x, n_heads):
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


# %% split_heads: whole width for every head
# caught by: test_each_head_has_its_share_of_the_channels
# says: Every head gets all channels; each should get its own share.
def split_heads(x, n_heads):
    return x.unsqueeze(-3).expand(*x.shape[:-2], n_heads, *x.shape[-2:])


# %% split_heads: copied into a new tensor of floats
# caught by: test_splitting_keeps_dtype_and_gradient
# says: The channels are copied into a new tensor, which loses dtype and gradient.
@torch.no_grad()
def split_heads(x, n_heads):
    heads = torch.zeros(*x.shape[:-2], n_heads, x.shape[-2], x.shape[-1] // n_heads)
    for head, channels in enumerate(x.chunk(n_heads, -1)):
        heads[..., head, :, :] = channels
    return heads


# %% merge_heads: reshaped without a transpose
# caught by: test_the_heads_follow_each_other_in_order, test_a_position_stays_where_it_was_when_merged
# says: The shape is right and the layout is not: positions and heads must change places before they are reshaped.
def merge_heads(x):
    return x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3] * x.shape[-1])


# %% merge_heads: interleaved channels
# caught by: test_the_heads_follow_each_other_in_order
# says: The heads' channels alternate; each head's channels should stay together.
def merge_heads(x):
    return x.movedim(-3, -1).flatten(-2)


# %% merge_heads: the mean of the heads
# caught by: test_the_heads_are_side_by_side_again
# says: The heads are averaged; their channels should be put side by side.
def merge_heads(x):
    return x.float().mean(-3)


# %% merge_heads: the sum of the heads
# caught by: test_the_heads_are_side_by_side_again
# says: The heads are added up; their channels should be put side by side.
def merge_heads(x):
    return x.sum(-3)


# %% merge_heads: one after the other in time
# caught by: test_the_heads_are_side_by_side_again
# says: The heads follow each other along the positions; they should lie side by side along the channels.
def merge_heads(x):
    return x.flatten(-3, -2)


# %% merge_heads: still a dimension for the heads
# caught by: test_the_heads_are_side_by_side_again
# says: Positions and heads changed places, but the heads still have a dimension of their own.
def merge_heads(x):
    return x.transpose(-3, -2)


# %% merge_heads: only for a batch
# caught by: test_merging_undoes_splitting
# says: Dimensions are counted from the front: with more or fewer of them before the heads the wrong ones are swapped.
def merge_heads(x):
    return x.transpose(1, 2).flatten(-2)


# %% merge_heads: batch and positions mixed up
# caught by: test_sequences_do_not_mix_when_merged
# says: The shape is right, but a row holds pieces of several sequences: batch and positions were mixed up.
def merge_heads(x):
    return x.movedim(-2, 0).reshape(*x.shape[:-3], x.shape[-2], -1)


# %% merge_heads: the heads in reverse
# caught by: test_the_heads_follow_each_other_in_order, test_merging_undoes_splitting
# says: The last head comes first: head 0 should.
def merge_heads(x):
    return x.flip(-3).transpose(-3, -2).flatten(-2)


# %% merge_heads: copied into a new tensor of floats
# caught by: test_merging_keeps_dtype_and_gradient
# says: The channels are copied into a new tensor, which loses dtype and gradient.
@torch.no_grad()
def merge_heads(x):
    d_head = x.shape[-1]
    merged = torch.zeros(*x.shape[:-3], x.shape[-2], x.shape[-3] * d_head)
    for head in range(x.shape[-3]):
        merged[..., head * d_head : (head + 1) * d_head] = x[..., head, :, :]
    return merged


# %% MultiHeadAttention: no output projection
# caught by: test_the_layer_matches_pytorchs, test_gradients_reach_x_and_all_four_weights
# says: The heads are put side by side and returned: o_proj, which mixes them, is not used.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return merge_heads(attention(q, k, v, mask))


# %% MultiHeadAttention: one projection for all three
# caught by: test_the_layer_matches_pytorchs, test_gradients_reach_x_and_all_four_weights
# says: Queries, keys and values all come from q_proj: each needs its own projection.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q = k = v = split_heads(self.q_proj(x), self.n_heads)
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: queries and keys swapped
# caught by: test_the_layer_matches_pytorchs, test_gradients_reach_x_and_all_four_weights
# says: k_proj makes the queries and q_proj the keys.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.k_proj, self.q_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: values not projected
# caught by: test_the_layer_matches_pytorchs, test_gradients_reach_x_and_all_four_weights
# says: The values are x itself: v_proj is not used.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(y, self.n_heads) for y in (self.q_proj(x), self.k_proj(x), x))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: the root of d_model
# caught by: test_the_layer_matches_pytorchs
# says: The scores are divided by √d_model; each head has d_head channels, so it should be √d_head.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(x.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj(merge_heads(torch.nan_to_num(scores.softmax(-1)) @ v))


# %% MultiHeadAttention: scaled twice
# caught by: test_the_layer_matches_pytorchs
# says: The queries are divided by √d_head before attention divides the scores by it again.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q / math.sqrt(q.shape[-1]), k, v, mask)))


# %% MultiHeadAttention: always causal
# caught by: test_the_layer_matches_pytorchs, test_without_a_mask_every_position_sees_every_other
# says: The future is hidden even without a mask: the layer is not causal by itself.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return self.o_proj(merge_heads(attention(q, k, v, causal if mask is None else mask & causal)))


# %% MultiHeadAttention: the mask ignored
# caught by: test_the_layer_obeys_its_mask, test_a_causal_mask_hides_the_future_and_only_that
# says: The mask is not handed on to attention.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v)))


# %% MultiHeadAttention: the mask upside down
# caught by: test_the_layer_obeys_its_mask, test_a_causal_mask_hides_the_future_and_only_that
# says: The mask is inverted, as nn.MultiheadAttention would want it; here True means "may attend".
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, None if mask is None else ~mask)))


# %% MultiHeadAttention: one mask for all sequences
# caught by: test_the_layer_obeys_its_mask
# says: Only the mask of the first sequence is used.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if mask is not None:
            mask = mask.reshape(-1, *mask.shape[-2:])[0]
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: biases
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: The projections have biases: nn.Linear adds one unless it is told not to.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: one small projection for every head
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: The projections are (d_head, d_head) and shared by the heads: project first, with (d_model, d_model).
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads, d_head = n_heads, d_model // n_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_head, d_head, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, mask=None):
        heads = split_heads(x, self.n_heads)
        return self.o_proj(merge_heads(attention(self.q_proj(heads), self.k_proj(heads), self.v_proj(heads), mask)))


# %% MultiHeadAttention: queries, keys and values in one matrix
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: Queries, keys and values share one qkv_proj: the state dict should have a weight for each.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (split_heads(y, self.n_heads) for y in self.qkv_proj(x).chunk(3, -1))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: weights that nobody trains
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: The module does not know its weights (they are in a plain list, say), so no optimiser will train them.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.projections = [nn.Linear(d_model, d_model, bias=False) for _ in range(4)]

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in self.projections[:3])
        return self.projections[3](merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: weights as buffers
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: The weights are buffers: they are saved but never trained. They should be parameters.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            projection = nn.Module()
            projection.register_buffer("weight", torch.randn(d_model, d_model) / math.sqrt(d_model))
            self.add_module(name, projection)

    def forward(self, x, mask=None):
        q, k, v = (split_heads(F.linear(x, p.weight), self.n_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return F.linear(merge_heads(attention(q, k, v, mask)), self.o_proj.weight)


# %% MultiHeadAttention: weights not transposed
# caught by: test_the_layer_matches_pytorchs, test_gradients_reach_x_and_all_four_weights
# says: The weights are used as x @ W; nn.Linear stores them so that it is x @ W.T.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(x @ proj.weight, self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return merge_heads(attention(q, k, v, mask)) @ self.o_proj.weight


# %% MultiHeadAttention: heads split without a transpose
# caught by: test_the_layer_matches_pytorchs, test_without_a_mask_every_position_sees_every_other
# says: The heads are cut by reshaping straight to (batch, n_heads, n, d_head), which mixes positions.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        b, n, d_model = x.shape
        q, k, v = (
            proj(x).reshape(b, self.n_heads, n, d_model // self.n_heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(attention(q, k, v, mask).reshape(b, n, d_model))


# %% MultiHeadAttention: heads merged without a transpose
# caught by: test_the_layer_matches_pytorchs, test_a_causal_mask_hides_the_future_and_only_that
# says: The heads are reshaped straight to (batch, n, d_model), which mixes positions.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attention(q, k, v, mask).reshape(x.shape))


# %% MultiHeadAttention: a single head
# caught by: test_the_layer_matches_pytorchs
# says: There is one head of d_model channels, whatever n_heads is.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if mask is not None and mask.dim() > 2:
            mask = mask.flatten(0, -3)[0]
        return self.o_proj(attention(q, k, v, mask))


# %% MultiHeadAttention: attention across the batch
# caught by: test_sequences_of_a_batch_do_not_meet, test_the_layer_matches_pytorchs
# says: The sequences of a batch attend to each other: batch and positions are mixed up.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (
            split_heads(proj(x.transpose(0, 1)), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if mask is not None and q.shape[-2] != mask.shape[-1]:
            mask = None
        return self.o_proj(merge_heads(attention(q, k, v, mask))).transpose(0, 1)


# %% MultiHeadAttention: dropout
# caught by: test_training_and_evaluation_agree
# says: Some of the result is dropped at random in training: this layer has no dropout.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.dropout(merge_heads(attention(q, k, v, mask)), 0.1, self.training))


# %% MultiHeadAttention: x added
# caught by: test_the_layer_matches_pytorchs, test_a_position_that_may_attend_to_nothing_gives_zeros
# says: x is added to the result: that is the residual connection, which belongs to the block around this layer.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return x + self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: NaN where nothing may be seen
# caught by: test_a_position_that_may_attend_to_nothing_gives_zeros
# says: A position that may attend to nothing gives NaN: the softmax of nothing but −∞ is 0/0.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj(merge_heads(scores.softmax(-1) @ v))


# %% MultiHeadAttention: an assert for an error
# caught by: test_heads_must_share_the_channels_equally
# says: An assert raises an AssertionError, and none at all under python -O: raise a ValueError with a sentence.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        assert d_model % n_heads == 0, f"d_model {d_model} is not divisible by n_heads {n_heads}"
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: no error for heads that do not fit
# caught by: test_heads_must_share_the_channels_equally
# says: Heads that do not fit are not noticed: raise a ValueError where the layer is created.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: an error without numbers
# caught by: test_heads_must_share_the_channels_equally
# says: The error does not name d_model and n_heads: say which numbers do not fit.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError("d_model must be divisible by n_heads")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: weights registered twice
# caught by: test_the_layer_has_four_square_weights_and_nothing_else
# says: The projections are in a ModuleList as well, so the state dict holds them twice: keep only the four names.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.projections = nn.ModuleList([self.q_proj, self.k_proj, self.v_proj])

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in self.projections)
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: the mask of an earlier call
# caught by: test_a_call_leaves_nothing_behind
# says: The mask of one call is kept and used in the next: mask=None means no mask.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.mask = None
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        if mask is not None:
            self.mask = mask
        if self.mask is not None and self.mask.shape[-1] != x.shape[1]:
            self.mask = None
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, self.mask)))


# %% MultiHeadAttention: the mask kept in the state dict
# caught by: test_a_call_leaves_nothing_behind
# says: The mask is registered as a buffer in forward, so it ends in the state dict: pass it on instead.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        self.register_buffer("mask", mask)
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(merge_heads(attention(q, k, v, mask)))


# %% MultiHeadAttention: the mask changed in place
# caught by: test_x_and_the_mask_are_left_as_they_were
# says: The caller's mask is changed: the name of an operation that works in place ends in _.
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x, mask=None):
        q, k, v = (split_heads(proj(x), self.n_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if mask is not None:
            mask.diagonal(dim1=-2, dim2=-1).fill_(True)
        return self.o_proj(merge_heads(attention(q, k, v, mask)))
