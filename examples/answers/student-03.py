# The triangle leaves out the diagonal. Everything else as student-01.
# %% causal_mask
def causal_mask(n: int) -> Bool[Tensor, "n n"]:
    """Entry [i, j] is True where position i may attend to position j: to itself and to the past.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.
    """
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(i):  # everything before i
            mask[i, j] = True
    return mask
