# story: Recurses without end: as Python counts it, with the count lifted, and in C, where nobody counts.
# says: segmentation fault|ended without an answer
# %%
import sys

def down():
    return down()

try:
    down()
except RecursionError:
    print("Python counts")
# %% causal_mask
def causal_mask(n):
    sys.setrecursionlimit(2**31 - 1)
    return down()
# %% attention
def attention(*args):
    sys.setrecursionlimit(2**31 - 1)
    thing = None
    for _ in range(500_000):
        thing = (thing,)
    return hash(thing)
