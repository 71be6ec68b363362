# attention is there twice, because the cell was copied before the second attempt. Everything else as student-01.
# %% attention: first attempt
def attention(
    q: Float[Tensor, "... n_q d_head"],
    k: Float[Tensor, "... n_k d_head"],
    v: Float[Tensor, "... n_k d_v"],
    mask: Bool[Tensor, "... n_q n_k"] | None = None,
) -> Float[Tensor, "... n_q d_v"]:
    """Scaled dot-product attention. True in the mask means "may attend"; a row without any True gives zeros.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
    """
    weights = F.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    if mask is not None:
        weights = weights * mask
    return weights @ v

# %% attention
def attention(
    q: Float[Tensor, "... n_q d_head"],
    k: Float[Tensor, "... n_k d_head"],
    v: Float[Tensor, "... n_k d_v"],
    mask: Bool[Tensor, "... n_q n_k"] | None = None,
) -> Float[Tensor, "... n_q d_v"]:
    """Scaled dot-product attention. True in the mask means "may attend"; a row without any True gives zeros.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
    return F.softmax(scores, dim=-1).masked_fill(scores == float("-inf"), 0.0) @ v
