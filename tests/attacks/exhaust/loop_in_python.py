# story: Loops for ever and catches everything that could end the loop, signals included.
# says: timed out
# %% causal_mask
import signal

def causal_mask(n):
    for number in range(1, 65):
        try:
            signal.signal(number, lambda *args: None)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
