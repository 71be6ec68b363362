# story: Kills its parent, and whatever else answers to the number of one: by kill, by the death signal, by its group and
#   session, and by asking the kernel who it is.
# says: there is nobody above me
# %%
import ctypes
import os
import signal

hit = []
for pid in {os.getppid(), os.getsid(0), os.getpgrp(), os.getpgid(0), int(open("/proc/self/stat").read().split()[3])} - {os.getpid()}:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
        if pid:
            try:
                os.kill(pid, number)
                hit.append(pid)
            except OSError:
                pass
for attempt in (lambda: os.kill(0, signal.SIGCONT), lambda: os.killpg(0, signal.SIGCONT), lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)):
    try:
        attempt()
    except OSError:
        pass
print("there is nobody above me" if not hit else f"GOT THROUGH: {hit}")
