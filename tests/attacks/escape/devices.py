# story: Opens every device for reading and writing, asks terminals to type for it, and looks for disks and memory.
# says: only what everybody may
# %%
import fcntl
import os

harmless = {"null", "zero", "full", "random", "urandom", "tty", "stdin", "stdout", "stderr", "fd", "shm", "pts", "ptmx", "core", "console"}
others = sorted(set(os.listdir("/dev")) - harmless)
wrong = [f"/dev/{name}" for name in others]
for name in ("/dev/tty", "/dev/ptmx", "/dev/pts/ptmx", "/dev/pts/0", "/dev/console", "/dev/core", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/vda", "/dev/sda", "/dev/loop-control"):
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOCTTY)
        wrong.append(name)
        fcntl.ioctl(fd, 0x5412, b"x")
    except OSError:
        pass
for name in ("new", "null/x", "shm/../new"):
    try:
        open(f"/dev/{name}", "w").close()
        wrong.append(name)
    except OSError:
        pass
for name in ("null", "zero", "urandom"):
    for change in (lambda path: os.chmod(path, 0), lambda path: os.utime(path, (1, 1)), os.remove, lambda path: os.setxattr(path, "user.x", b"x")):
        try:
            change(f"/dev/{name}")
            wrong.append(f"{name} was changed")
        except OSError:
            pass
print("only what everybody may" if not wrong else f"GOT THROUGH: {wrong}")
