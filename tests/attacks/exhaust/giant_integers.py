# story: Integers that take all time there is to raise, to multiply, to print.
# says: timed out
# %% causal_mask
def causal_mask(n):
    return 7 ** (7 ** 9)
# %% attention
import sys

def attention(*args):
    sys.set_int_max_str_digits(0)
    return str(1 << 10**8)
