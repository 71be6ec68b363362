# story: Leaves marks on what all submissions see and none may write: times, modes, attributes and locks of shared files,
#   of devices, of terminals and of folders. Each reads the marks of the others first.
# says: the same marks as ever
# neighbours: 3
# %%
import fcntl
import os
import struct
import sys

places = ["/", "/dev", "/dev/null", "/dev/zero", "/dev/pts", "/dev/shm/..", "/proc", "/proc/1", "/usr", "/usr/bin", "/usr/share/fonts", "/etc", "/sandbox", "/sandbox/wire.py",
          "/sandbox/ichimon", os.path.realpath(sys.executable), sys.prefix, os.__file__, torch.__file__, "/student/.."]
marked = []
for place in places:
    if not os.path.lexists(place):
        continue
    before = os.stat(place)
    for change in (lambda: os.utime(place, (7, 7)), lambda: os.chmod(place, 0o777), lambda: os.chown(place, os.getuid(), os.getgid()), lambda: os.setxattr(place, "user.left", b"here"),
                   lambda: os.truncate(place, 0), lambda: os.rename(place, place + "-2"), lambda: open(f"{place}/left", "w").close()):
        try:
            change()
        except OSError:
            continue
        if place != "/proc/1":
            marked.append(place)
    if (os.stat(place).st_mtime, os.stat(place).st_mode) != (before.st_mtime, before.st_mode) or before.st_mtime == 7:
        marked.append(place)
with open("/sandbox/wire.py") as file:
    for lock in (lambda: fcntl.flock(file, fcntl.LOCK_SH), lambda: fcntl.lockf(file, fcntl.LOCK_SH), lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)):
        try:
            lock()
            marked.append("a lock")
        except OSError:
            pass
    held = struct.unpack("hhqqi", fcntl.fcntl(file, 36, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)))
    if held[0] != fcntl.F_UNLCK:
        marked.append("another's lock")
print("the same marks as ever" if not marked else f"GOT THROUGH: {marked}")
