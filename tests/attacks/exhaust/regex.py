# story: A regular expression that tries every way to part sixty letters before it says no, and cannot be interrupted.
# says: timed out
# %% causal_mask
import re

def causal_mask(n):
    return bool(re.match("(a|aa)+$", "a" * 60 + "b"))
