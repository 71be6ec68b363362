# story: Tensors within the limit whose product takes minutes, and views of one number as large as the world.
# says: timed out
# %% causal_mask
def causal_mask(n):
    wide = torch.ones(4000, 4000)
    while True:
        wide = (wide @ wide).clamp(0, 1)
# %% attention
def attention(q, k, v, mask=None):
    return torch.ones(1).expand(2**30, 2**20).sum()
