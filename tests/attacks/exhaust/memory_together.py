# story: Two students take almost as much as one may at the same time, each in a process and its threads, and each then
#   tries to have the rest held by others: children, pipes, the channel.
# says: 150 MB are mine, and \d MB lie in pipes
# neighbours: 2
# %%
import os
import time

kept = [bytearray(b"x" * (10 << 20)) for _ in range(15)]
held, pipes = 0, []
try:
    while True:
        pipes.append(os.pipe())
        os.set_blocking(pipes[-1][1], False)
        held += os.write(pipes[-1][1], bytes(1 << 20))
except OSError:
    pass
try:
    if os.fork() == 0:
        time.sleep(60)
    print("GOT THROUGH: a second process")
except PermissionError:
    pass
time.sleep(0.3)
print(f"{len(kept) * 10} MB are mine, and {held >> 20} MB lie in pipes")
