# story: Stops itself with every signal that stops, so that the grader would wait for somebody who is neither dead nor alive;
#   then waits in the kernel for what never comes.
# says: had not answered after
# %%
import os
import signal

for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
    os.kill(os.getpid(), number)
    signal.raise_signal(number)
print("still going")
# %% causal_mask
def causal_mask(n):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    os.read(os.pipe()[0], 1)
    signal.sigwait({signal.SIGUSR1})
