# story: Asks for a socket of every family and kind, by Python and by the bare system call.
# says: every one of \d+ was refused
# %%
import ctypes
import socket

libc = ctypes.CDLL(None, use_errno=True)
tried = 0
for family in range(46):
    for kind in (1, 2, 3, 5, 10):
        tried += 1
        if libc.syscall(41, family, kind, 0) != -1 or ctypes.get_errno() != 1:
            print("GOT THROUGH: a socket of family", family, "and kind", kind)
for attempt in (socket.socketpair, lambda: socket.create_connection(("127.0.0.1", 80), 1), lambda: socket.socket(socket.AF_UNIX)):
    tried += 1
    try:
        print("GOT THROUGH:", attempt())
    except PermissionError:
        pass
print(f"every one of {tried} was refused")
