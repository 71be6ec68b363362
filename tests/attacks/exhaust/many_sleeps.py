# story: Never asks for more than a request may take, and asks for it every time: each cell and each call sleeps a little
#   less than the limit. What all of it may take is limited too.
# says: the whole notebook took more than|not written yet
# %%
import time
time.sleep(2)
# %%
time.sleep(2)
# %% causal_mask
def causal_mask(n):
    time.sleep(2)
    return True
# %% attention
def attention(*args):
    time.sleep(2)
# %% split_heads
def split_heads(*args):
    time.sleep(2)
