# story: Sends a byte out of band, which sockets between processes have known only for a few years, and whose handling was
#   once a way into the kernel.
# says: there is no urgent byte
# %%
import os
import socket
import stat

fd = next(fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
channel = socket.socket(fileno=os.dup(fd))
try:
    channel.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)
    print("GOT THROUGH: a byte was received")
except OSError:
    pass
try:
    channel.send(b"x", socket.MSG_OOB)
    print("GOT THROUGH: a byte was sent")
except OSError:
    print("there is no urgent byte")
channel.close()
