# story: A tensor that says yes to whatever torch asks it, through __torch_function__ and __torch_dispatch__, and lies about
#   its shape, dtype and entries. Another claims to be an ordinary tensor by its class.
# says: should be a tensor, but it is a (Liar|Tensor)
# %%
class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return torch.ones(())

    shape = property(lambda self: (6, 6))
    dtype = property(lambda self: torch.bool)
    __eq__ = __bool__ = lambda *args: True
    __hash__ = object.__hash__
    __class__ = property(lambda self: torch.Tensor)

Tensor = type("Tensor", (Liar,), {})
# %% causal_mask
def causal_mask(n):
    return torch.zeros(n, n).as_subclass(Liar)
# %% split_heads
def split_heads(x, n_heads):
    return x.as_subclass(Tensor)
# %% merge_heads
class Dressed(torch.nn.Parameter, metaclass=type(torch.nn.Parameter)):
    pass

def merge_heads(x):
    y = x.as_subclass(Dressed) if x.is_floating_point() else x
    y._is_param = True
    return y
