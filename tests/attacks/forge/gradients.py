# story: Marks constants as tensors that require gradients, and patches the worker so that it hands back the wrong number
#   of gradients, of the wrong shape, or things that are none.
# says: entries of|gradient
# points: 0.21
# %%
import sys

frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
worker = type(frame.f_locals["self"])
forged = iter([[], [None] * 9, [torch.ones(1)] * 3, "gradients", [1, 2, 3], [torch.ones(7, 7, dtype=torch.complex64)] * 3] * 9)
worker.backward = lambda self, graph, grads: self.encode(next(forged))
# %% attention
def attention(q, k, v, mask=None):
    return torch.full((*q.shape[:-1], v.shape[-1]), 0.3, dtype=v.dtype, requires_grad=True) * 1
# %% split_heads
def split_heads(x, n_heads):
    if not x.requires_grad:
        return None
    return torch.ones(*x.shape[:-2], n_heads, x.shape[-2], x.shape[-1] // n_heads, requires_grad=True) * 1
