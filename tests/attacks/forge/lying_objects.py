# story: Answers with objects that equal everything, have every length and class, and call every other object wrong; with
#   a list, a string and a number that do so; and with the class Tensor itself.
# says: should be a tensor, but it is an? (Everything|list|str|int|type|Yes)
# %%
class Everything:
    __class__ = property(lambda self: torch.Tensor)
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __bool__ = __contains__ = lambda *args: True
    __ne__ = lambda *args: False
    __len__ = lambda self: 5
    __index__ = __int__ = lambda self: 1
    __float__ = lambda self: 1.0
    __hash__ = lambda self: 0
    __instancecheck__ = __subclasscheck__ = lambda *args: True
    __getattr__ = __getitem__ = __call__ = lambda self, *args, **kwargs: self
    __iter__ = lambda self: iter([self] * 5)
    __array__ = lambda self, *args: 1 / 0
    __reduce__ = lambda self: (exec, ("import os; os._exit(0)",))

class Yes(int):
    __eq__ = __bool__ = lambda *args: True
    __hash__ = int.__hash__

answers = iter([Everything(), [Everything()] * 3, "a tensor", 1, Yes(1), torch.Tensor] * 99)
# %% causal_mask
def causal_mask(n):
    return next(answers)
# %% attention
def attention(q, k, v, mask=None):
    return Everything()
# %% split_heads
split_heads = Everything()
# %% MultiHeadAttention
MultiHeadAttention = Everything()
