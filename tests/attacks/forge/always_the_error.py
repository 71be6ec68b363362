# story: A test wants a ValueError that names both numbers, so this raises one whatever happens, for every exercise. It
#   never builds a layer.
# says: ValueError: 12 3
# points: 0
# %% MultiHeadAttention
class MultiHeadAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        raise ValueError(f"{d_model} {n_heads}")
# %% attention
def attention(*args, **kwargs):
    raise ValueError(*args)
