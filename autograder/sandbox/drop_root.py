"""Run as root, before bubblewrap: leave root's rights and root's files behind, then become the command that follows.

As real root, nested user namespaces fail and RLIMIT_NPROC does not bind; and an interpreter below a 0700 home could
not be reached by another user. So: a private mount namespace whose root is an empty tmpfs, mounted over FOLDER, that
holds, read-only, the listed paths alone; then an unprivileged user without groups or capabilities.

Usage: drop_root.py UID FOLDER PATH... -- COMMAND...
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_NO_NEW_PRIVS = 38
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")  # what bubblewrap's own /dev is made of

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), f"mounting {target}")


def bind(source: str, new_root: str, flags: int) -> None:
    target = Path(new_root + source)
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, str(target), "", MS_BIND | MS_REC)
    if flags:
        mount("none", str(target), "", MS_BIND | MS_REMOUNT | flags)


def main() -> None:
    uid, new_root, *rest = sys.argv[1:]
    split = rest.index("--")
    paths, command = rest[:split], rest[split + 1 :]
    os.umask(0o022)
    check(libc.unshare(CLONE_NEWNS), "a private mount namespace")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", new_root, "tmpfs", MS_NOSUID, "mode=0755")
    for path in paths:
        if Path(path).is_symlink() and path.count("/") == 1:  # /bin -> usr/bin and the like
            os.symlink(os.readlink(path), new_root + path)
        else:
            bind(path, new_root, MS_RDONLY | MS_NOSUID)
    for device in DEVICES:
        bind(f"/dev/{device}", new_root, 0)
    bind("/proc", new_root, 0)
    os.mkdir(f"{new_root}/.old")
    for folder in ("/tmp", "/dev/shm"):  # semaphores live in the second: without it no pool of processes
        os.makedirs(new_root + folder, exist_ok=True)
        os.chmod(new_root + folder, 0o1777)
    os.chdir(new_root)
    check(libc.pivot_root(b".", b".old"), "pivot_root")
    check(libc.umount2(b"/.old", MNT_DETACH), "leaving the old root")
    os.chdir("/")
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
