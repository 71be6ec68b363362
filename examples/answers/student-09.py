# The mask is doubled until it has the right size, so it never ends unless n is a power of two. Everything else as student-01.
# %% causal_mask
def causal_mask(n: int) -> Bool[Tensor, "n n"]:
    """Entry [i, j] is True where position i may attend to position j: to itself and to the past.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.
    """
    # 1x1 -> 2x2 -> 4x4 ...: the old mask on the diagonal, ones below
    size = 1
    while size != n:
        size = size * 2
    return torch.ones(size, size).tril().bool()
