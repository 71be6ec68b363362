# story: Mounts, unmounts, binds and changes its root, the old way and by the new calls, to see what lies below or beside.
# says: every one of \d+ was refused
# %%
import ctypes
import os
import pyseccomp

libc, refused = ctypes.CDLL(None, use_errno=True), 0
calls = {
    "mount": [(b"none", b"/student", b"tmpfs", 0, 0), (b"/", b"/student", 0, 4096, 0), (b"proc", b"/student", b"proc", 0, 0), (0, b"/", 0, 32 | 4096, 0)],
    "umount2": [(b"/student", 2), (b"/proc", 2), (b"/dev/shm", 2), (b"/", 2)],
    "pivot_root": [(b"/student", b"/student")],
    "chroot": [(b"/student",)],
    "open_tree": [(-100, b"/", 1)],
    "move_mount": [(-100, b"/", -100, b"/student", 0)],
    "fsopen": [(b"tmpfs", 0)],
    "fspick": [(-100, b"/", 0)],
    "mount_setattr": [(-100, b"/", 0, 0, 0)],
    "name_to_handle_at": [(-100, b"/", 0, 0, 0)],
    "open_by_handle_at": [(-100, 0, 0)],
}
for name, attempts in calls.items():
    for arguments in attempts:
        if libc.syscall(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name), *arguments) != -1 or ctypes.get_errno() != 1:
            print("GOT THROUGH:", name, arguments, ctypes.get_errno())
        refused += 1
print(f"every one of {refused} was refused")
