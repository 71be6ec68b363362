# story: Takes memory in small pieces, each of which anybody might need.
# says: out of memory|timed out
# %%
pieces = []
while True:
    pieces.append(b"%d" % len(pieces) * 20_000)
