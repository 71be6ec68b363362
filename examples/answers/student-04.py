# A large negative number in the place of minus infinity, as in many published versions. Everything else as student-01.
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
    d_k = q.size(-1)
    logits = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(d_k)
    if mask is not None:
        logits = logits.masked_fill(mask == 0, -1e9)  # -1e9 ~ -inf
    p_attn = F.softmax(logits, dim=-1)
    return torch.matmul(p_attn, v)
