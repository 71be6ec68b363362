# story: A fork bomb by every call that makes a process: fork, vfork, clone without threads, clone3, spawn, a pool.
# says: not one process more
# %%
import ctypes
import multiprocessing
import os
import pyseccomp

libc = ctypes.CDLL(None, use_errno=True)
number = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in ("clone", "clone3", "vfork", "fork")}
made = 0
for attempt in (os.fork, os.forkpty, multiprocessing.Process(target=print).start, lambda: multiprocessing.Pool(2),
                lambda: os.posix_spawn("/bin/sh", ["sh"], {}), lambda: os.system(":(){ :|:& };:") == 0 or 1 / 0):
    try:
        attempt()
        made += 1
    except (OSError, ZeroDivisionError):
        pass
for flags in (0, 17, 0x11 | 0x4000, 0x100, 0x900, 0x10000000):
    made += libc.syscall(number["clone"], flags, 0, 0, 0, 0) != -1
arguments = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
made += libc.syscall(number["clone3"], arguments, 88) != -1
print("not one process more" if not made else f"GOT THROUGH: {made} processes")
