# story: Three students hand this in together. Each marks what could be shared and looks for the marks of the others:
#   processes, System V and POSIX shared memory, message queues, sockets by name.
# says: I am alone here
# neighbours: 3
# %%
import ctypes
import os
import time
from multiprocessing import shared_memory

libc = ctypes.CDLL(None, use_errno=True)
others = []
for round in range(3):
    others += [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    others += ["files before mine"] if round == 0 and os.listdir("/dev/shm") else []
    for i in range(2, 200):
        try:
            os.kill(i, 0)
            others.append(i)
        except OSError:
            pass
    others += [name for name in os.listdir("/dev/shm") if name not in ("mine", "mark")]
    for call, arguments in (("shmget", (0x1C41, 4096, 0o1666)), ("msgget", (0x1C41, 0o1666)), ("semget", (0x1C41, 1, 0o1666)), ("mq_open", (b"/mark", 0o102, 0o666, None))):
        try:
            others += [call] if getattr(libc, call)(*arguments) != -1 else []
        except AttributeError:
            pass
    open("/dev/shm/mine", "w").write("here")
    try:
        shared_memory.SharedMemory("mark", create=True, size=4096)
    except OSError:
        pass  # it is there, from the round before, or its tracker could not be started
    time.sleep(0.1)
for table in ("unix", "tcp", "udp", "raw", "packet"):
    try:
        others += open(f"/proc/net/{table}").read().splitlines()[1:]
    except OSError:
        pass
print("I am alone here" if not others else f"GOT THROUGH: {others}")
