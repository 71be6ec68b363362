# story: Replaces len, isinstance, all, any, abs, sum, range, type, id, open and __import__ by its own, in builtins, where
#   every module in the process finds them. The worker itself stumbles over them; nobody else does.
# says: worker died|raised an error|should be|Error
# %% causal_mask
import builtins

class Always(type):
    def __instancecheck__(cls, thing):
        return True
    __subclasscheck__ = __instancecheck__
    def __eq__(cls, other):
        return True
    def __hash__(cls):
        return 0

class Anything(metaclass=Always):
    pass

def causal_mask(n):
    for name in ("len", "all", "any", "abs", "sum", "range", "id", "open", "isinstance", "issubclass", "hasattr"):
        setattr(builtins, name, lambda *args, **kwargs: True)
    builtins.type = lambda *args: torch.Tensor
    builtins.Exception = builtins.AssertionError = builtins.BaseException = Anything
    return None
