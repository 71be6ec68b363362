# story: The channel to the grader is a socket: connects it elsewhere, sends descriptors, credentials and urgent data
#   through it, and looks for the process at its other end.
# says: it carries bytes, and nothing else
# %%
import os
import socket
import stat

got = []
fd = next(fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
channel = socket.socket(fileno=os.dup(fd))
for attempt in (
    lambda: socket.send_fds(channel, [b"x"], [0]), lambda: channel.connect("/run/x"), lambda: channel.bind("\0name"), lambda: channel.listen(),
    lambda: channel.recvmsg(1, 100, socket.MSG_DONTWAIT), lambda: channel.sendmsg([b"x"]), lambda: channel.sendto(b"x", "/run/x"), lambda: channel.accept(),
    lambda: socket.fromfd(fd, socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
):
    try:
        got.append(attempt())
    except OSError:
        pass
pid = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4]
if int.from_bytes(pid, "little") > 1:
    got.append(pid)
channel.close()
print("it carries bytes, and nothing else" if not got else f"GOT THROUGH: {got}")
