# story: Asks the grader callbacks without end and never reads what it answers, until both ends of the channel are full and
#   each waits for the other.
# says: timed out|worker died
# %% causal_mask
import os
import stat
import wire

def causal_mask(n):
    channel = next(fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
    flood = wire.frame(wire.CallbackCall(1, [])) * 1000
    while True:
        os.write(channel, flood)
