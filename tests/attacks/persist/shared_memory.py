# story: Leaves a message in memory that outlives a process: POSIX and System V segments, named semaphores, queues, a file
#   in memory. Each looks for the others' first.
# says: no memory outlives me
# neighbours: 3
# %%
import ctypes
import mmap
import os
from multiprocessing import shared_memory

found, libc = [], ctypes.CDLL(None, use_errno=True)
found += [f"/dev/shm/{name}" for name in os.listdir("/dev/shm")]
try:
    found.append(bytes(shared_memory.SharedMemory("left", create=False).buf[:9]))
except (OSError, FileNotFoundError):
    pass
for key in range(1, 30):
    for call, arguments in (("shmget", (key, 4096, 0o1666)), ("semget", (key, 1, 0o1666)), ("msgget", (key, 0o1666))):
        if getattr(libc, call)(*arguments) != -1:
            found.append((call, key))
for table in ("shm", "sem", "msg"):
    found += open(f"/proc/sysvipc/{table}").read().splitlines()[1:]
libc.sem_open.restype = ctypes.c_void_p
libc.sem_open(b"/left", os.O_CREAT, 0o666, 1)
with open("/dev/shm/left", "wb+") as file:
    file.truncate(4096)
    mmap.mmap(file.fileno(), 4096)[:4] = b"here"
print("no memory outlives me" if not found else f"GOT THROUGH: {found}")
