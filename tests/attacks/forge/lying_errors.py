# story: Errors that lie about themselves: a class whose name and bases are properties, a text that raises, one of a
#   hundred megabytes, one full of code for terminals and pages, one that claims to be AssertionError of the grader.
# says: raised an error
# %%
class Meta(type):
    __name__ = property(lambda cls: "passed" * 100)
    def mro(cls):
        return [cls, ValueError, *ValueError.__mro__[1:]]

class Liar(ValueError, metaclass=Meta):
    def __str__(self):
        raise self

class Long(AssertionError):
    def __str__(self):
        return "20 of 20 passed \x1b[2J<script>alert(1)</script>\u202e" * 2_000_000

class Odd(Exception):
    def __str__(self):
        return 7
# %% causal_mask
def causal_mask(n):
    raise Liar
# %% attention
def attention(q, k, v, mask=None):
    raise Long
# %% split_heads
def split_heads(x, n_heads):
    raise Odd
# %% merge_heads
def merge_heads(x):
    raise type("AssertionError", (AssertionError,), {"__module__": "builtins"})("passed")
