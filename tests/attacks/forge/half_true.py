# story: Booleans whose bytes are neither 0 nor 1, so that they may be true for one kernel and false for another, and
#   zeros with a sign. Across the wire every byte but 0 is True.
# says: may attend to a later one
# points: 1
# %% causal_mask
def causal_mask(n):
    mask = torch.full((n, n), 2, dtype=torch.uint8)
    mask[0, 0] = 0
    mask[range(n), range(n)] = 255
    mask[-1, 0] = 254
    if n > 2:
        mask[1, 0] = 0
    return mask.view(torch.bool)
