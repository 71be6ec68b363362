# story: Makes new namespaces, in which it would be root, by unshare and by clone, and joins those of others by setns.
# says: every one of \d+ was refused
# %%
import ctypes
import os
import pyseccomp

libc, refused = ctypes.CDLL(None, use_errno=True), 0
number = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in ("unshare", "setns", "clone")}
kinds = (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x02000000, 0x80)
for kind in kinds:
    for attempt in ((number["unshare"], kind), (number["clone"], kind | 17, 0, 0, 0, 0), (number["clone"], (kind | 0x10900) if kind != 0x80 else 17, 0, 0, 0, 0)):
        if libc.syscall(*attempt) != -1:
            print("GOT THROUGH:", attempt)
        refused += 1
for name in os.listdir("/proc/self/ns"):
    fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    if libc.syscall(number["setns"], fd, 0) != -1:
        print("GOT THROUGH: setns", name)
    os.close(fd)
    refused += 1
for name in ("uid_map", "gid_map", "setgroups"):
    try:
        with open(f"/proc/self/{name}", "w") as file:
            file.write("0 0 1")
        print("GOT THROUGH:", name)
    except OSError:
        refused += 1
print(f"every one of {refused} was refused")
