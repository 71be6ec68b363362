# story: Signals everybody: each process by number, groups, sessions, all at once; by kill, tgkill, queued signals, timers
#   and the owner of a file.
# says: nobody heard me
# %%
import ctypes
import fcntl
import os
import pyseccomp
import signal

libc, heard = ctypes.CDLL(None, use_errno=True), []
for pid in [*range(2, 3000), os.getppid(), -os.getpgrp() or -2, 4_000_000]:
    for attempt in (lambda: os.kill(pid, signal.SIGCONT), lambda: os.killpg(pid, signal.SIGCONT) if pid > 0 else 1 / 0):
        try:
            attempt()
            heard.append(pid)
        except (OSError, ZeroDivisionError, OverflowError):
            pass
heard = [pid for pid in heard if pid not in (0, os.getpid(), os.getppid(), os.getpgrp(), -os.getpgrp())]
for name in ("tgkill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    for pid in range(100, 400):
        if libc.syscall(number, pid, pid, 18, 0) == 0:
            heard.append((name, pid))
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
channel = os.open("/dev/null", os.O_RDONLY)
for pid in (2, 100, -2):
    try:
        fcntl.fcntl(channel, fcntl.F_SETOWN, pid)
        heard.append(("owner", pid)) if fcntl.fcntl(channel, fcntl.F_GETOWN) else None
    except OSError:
        pass
print("nobody heard me" if not heard else f"GOT THROUGH: {heard[:10]}")
