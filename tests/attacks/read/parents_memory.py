# story: Tries to read the memory of its parent and of every process it can name: /proc/PID/mem, process_vm_readv, ptrace.
# says: none of 300 processes could be read
# %%
import ctypes
import os
import pyseccomp

libc = ctypes.CDLL(None, use_errno=True)
number = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in ("process_vm_readv", "ptrace", "pidfd_open")}
parent, got = os.getppid(), 0
for pid in [parent, *range(2, 301)]:
    for file in ("mem", "maps", "environ", "root/etc/passwd", "cwd", "fd/0"):
        try:
            open(f"/proc/{pid}/{file}", "rb").read(1)
            got += 1
        except OSError:
            pass
    buffer, length = ctypes.create_string_buffer(16), ctypes.c_size_t(16)
    pair = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 16)
    got += libc.syscall(number["process_vm_readv"], pid, pair, 1, pair, 1, 0) >= 0
    got += libc.syscall(number["ptrace"], 16, pid, 0, 0) >= 0
    got += libc.syscall(number["pidfd_open"], pid, 0) >= 0
print("none of 300 processes could be read" if not got else f"GOT THROUGH {got} times")
