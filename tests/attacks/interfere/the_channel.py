# story: Breaks the channel to the grader in every way: closes it, shuts it, fills it with noise, with half a message, with
#   messages of 4 GB, and sets its options.
# says: ended without an answer|larger than|something else than a reply|had not answered
# %%
import os
import random
import socket
import stat

def channel():
    fd = next(fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
    return socket.socket(fileno=fd)
# %% causal_mask
def causal_mask(n):
    channel().close()
# %% attention
def attention(*args):
    channel().sendall(b"\xff\xff\xff\xff" + random.randbytes(1000))
    os._exit(0)
# %% split_heads
def split_heads(*args):
    ours = channel()
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF, socket.SO_KEEPALIVE, socket.SO_PASSCRED):
        try:
            ours.setsockopt(socket.SOL_SOCKET, option, 1)
        except OSError:
            pass
    ours.shutdown(socket.SHUT_RDWR)
