# story: Computes only where nobody expects code to run: in the text of an error, the name of a class, the length of an
#   answer, an attribute that is asked for.
# says: timed out
# %%
class Slow(Exception):
    def __str__(self):
        while True:
            pass
    __repr__ = __len__ = __iter__ = __getattr__ = __str__
# %% causal_mask
def causal_mask(n):
    raise Slow
# %% MultiHeadAttention
class MultiHeadAttention:
    def __init__(self, *args):
        pass

    def __getattribute__(self, name):
        while True:
            pass
