# story: Patches the worker's own encoder: every answer claims the shape and dtype of a right one, over bytes that are
#   something else, with handles where values should be.
# says: could not cross
# %%
import wire

real = wire.encode

def encode(obj, opaque, tensors=None, depth=0):
    if type(obj) is torch.Tensor:
        return wire.TensorData("bool", tuple(obj.shape), b"\x02" * 7)
    return real(obj, opaque, tensors, depth)

wire.encode = encode
# %% causal_mask
def causal_mask(n):
    return torch.zeros(n, n, dtype=torch.bool)
# %% attention
def attention(q, k, v, mask=None):
    return torch.zeros(*q.shape[:-1], v.shape[-1])
