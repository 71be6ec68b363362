# story: Traces, reads and controls other processes by each system call that could: ptrace, process_vm_writev, kcmp,
#   pidfd_getfd, process_madvise, and /proc/PID/mem.
# says: every one of \d+ was refused
# %%
import ctypes
import os
import pyseccomp

libc, refused = ctypes.CDLL(None, use_errno=True), 0
for name in ("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "process_madvise", "process_mrelease"):
    number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    for pid in (0, 1, 2, os.getppid(), os.getpid()):
        for request in (0, 16, 0x4206):
            if libc.syscall(number, request if name == "ptrace" else pid, pid, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
                print("GOT THROUGH:", name, pid, ctypes.get_errno())
            refused += 1
print(f"every one of {refused} was refused")
