# story: Prints without end, also from within `except`, and past the limit by the back door: straight into the buffer.
# says: printed more than 20,000 characters
# %%
while True:
    try:
        print("x" * 1000)
    except Exception:
        pass
# %%
import sys
sys.stdout.text = "y" * 3_000_000
# %% causal_mask
import os

def causal_mask(n):
    for fd in (0, 1, 2):
        os.write(fd, b"z" * 10**6)
    raise ValueError("z" * 10**6)
