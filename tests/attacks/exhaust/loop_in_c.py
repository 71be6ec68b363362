# story: A loop in C that looks at no signal and lets no other thread run.
# says: timed out
# %% causal_mask
def causal_mask(n):
    return sum(range(10**15))
