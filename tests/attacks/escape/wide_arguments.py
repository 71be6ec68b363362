# story: The filter compares 64 bits where the kernel reads 32: asks for what is refused with a bit set that only the filter
#   sees. A lock on a file that all can read would be seen by the next submission.
# says: every one of \d+ was refused
# %%
import ctypes
import os
import pyseccomp
import struct

libc, refused = ctypes.CDLL(None, use_errno=True), 0
number = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in ("fcntl", "ioctl", "clone", "unshare", "socket")}
fd = os.open("/sandbox/wire.py", os.O_RDONLY)
lock = ctypes.create_string_buffer(struct.pack("hhqqi", 0, 0, 0, 0, 0))
for high in (0, 1 << 32, 0xFFFFFFFF << 32):
    for command, argument in ((6, lock), (7, lock), (37, lock), (38, lock), (1024, 0), (1026, 1)):
        if libc.syscall(number["fcntl"], fd, ctypes.c_long(command | high), argument) != -1 or ctypes.get_errno() != 1:
            print("GOT THROUGH: fcntl", command, hex(high), ctypes.get_errno())
        refused += 1
    for name, arguments in (("ioctl", (0, 0x5412 | high, b"x")), ("clone", (17 | high, 0, 0, 0, 0)), ("unshare", (0x10000000 | high,)), ("socket", (1 | high, 1, 0))):
        if libc.syscall(number[name], *(ctypes.c_long(item) if type(item) is int else item for item in arguments)) != -1 or ctypes.get_errno() != 1:
            print("GOT THROUGH:", name, hex(high), ctypes.get_errno())
        refused += 1
print(f"every one of {refused} was refused")
