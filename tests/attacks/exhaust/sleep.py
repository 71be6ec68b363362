# story: Sleeps: no computing time is used, and everybody waits. One cell sleeps, then a call, in a way that no signal ends.
# says: had not answered after
# %% causal_mask
import time

def causal_mask(n):
    while True:
        time.sleep(1000)
