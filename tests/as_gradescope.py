"""Run as root: a container as Docker makes one by default, without Docker: as_gradescope.py AUTOGRADER VENV COMMAND...

Own mount, process, IPC and network namespaces; a root file system of its own, in which AUTOGRADER is /autograder and
VENV, read-only, /autograder/venv; Docker's default capabilities; and the calls refused that its seccomp profile refuses
to root without CAP_SYS_ADMIN. So no namespace, no mount and no bubblewrap can be made in it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyseccomp

from autograder.sandbox.drop_root import (
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    bind,
    check,
    libc,
    mount,
)
from autograder.sandbox.jail import SYSTEM_FOLDERS
from autograder.sandbox.zygote import CLONE_NEWIPC, CLONE_NEWPID, PR_CAPBSET_DROP

CLONE_NEWNET, CLONE_NEW = 0x40000000, 0x7E020000  # the second: any namespace
# https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
CAPABILITIES = {
    **{"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8},
    **{"NET_BIND_SERVICE": 10, "NET_RAW": 13, "SYS_CHROOT": 18, "MKNOD": 27, "AUDIT_WRITE": 29, "SETFCAP": 31},
}
# https://docs.docker.com/engine/security/seccomp/#significant-syscalls-blocked-by-the-default-profile
REFUSED = """
mount umount2 pivot_root move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr unshare setns
bpf perf_event_open userfaultfd keyctl add_key request_key kcmp ptrace process_vm_readv process_vm_writev
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl syslog
open_by_handle_at name_to_handle_at io_uring_setup io_uring_enter io_uring_register
settimeofday clock_settime clock_adjtime sethostname setdomainname iopl ioperm mbind move_pages migrate_pages
""".split()  # noqa: SIM905 (read as a text)
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
ROOT = "/sys"  # covered in this mount namespace alone


def main(autograder: str, venv: str, command: list[str]) -> None:
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNET), "the container's namespaces")
    child = os.fork()  # process 1 of the container
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    os.umask(0o022)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", ROOT, "tmpfs", MS_NOSUID, "mode=0755")
    for path in (*SYSTEM_FOLDERS, "/etc", os.path.realpath(sys.base_prefix)):
        if Path(path).is_symlink():
            os.symlink(os.readlink(path), ROOT + path)
        elif Path(path).exists() and not Path(ROOT + path).exists():
            bind(path, ROOT, MS_RDONLY | MS_NOSUID)
    for folder, mode in (("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/proc", 0o555), ("/dev", 0o755)):
        os.makedirs(ROOT + folder)
        os.chmod(ROOT + folder, mode)
    for device, numbers in DEVICES.items():  # of its own: the modes of the machine's must not change
        os.mknod(f"{ROOT}/dev/{device}", stat.S_IFCHR, os.makedev(*numbers))
        os.chmod(f"{ROOT}/dev/{device}", 0o666)
    for folder, kind, data in (
        ("shm", "tmpfs", "mode=1777,size=64m"),
        ("mqueue", "mqueue", ""),
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"),
    ):
        os.mkdir(f"{ROOT}/dev/{folder}")
        mount(kind, f"{ROOT}/dev/{folder}", kind, MS_NOSUID, data)
    os.symlink("pts/ptmx", f"{ROOT}/dev/ptmx")
    mount("proc", f"{ROOT}/proc", "proc", MS_NOSUID)
    os.mkdir(f"{ROOT}/autograder")
    mount(autograder, f"{ROOT}/autograder", "", MS_BIND)
    os.makedirs(f"{ROOT}/autograder/venv", exist_ok=True)
    mount(venv, f"{ROOT}/autograder/venv", "", MS_BIND)
    mount("none", f"{ROOT}/autograder/venv", "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)
    for package in ("transformers", "tokenizers", "peft"):  # the grader's own environment has none of these
        for found in Path(f"{ROOT}/autograder/venv").glob(f"lib/python3*/site-packages/{package}"):
            mount("tmpfs", str(found), "tmpfs", MS_RDONLY, "mode=0700,size=4k")
    os.mkdir(f"{ROOT}/.old")
    os.chdir(ROOT)
    check(libc.pivot_root(b".", b".old"), "pivot_root")
    check(libc.umount2(b"/.old", MNT_DETACH), "leaving the old root")
    os.chdir("/autograder")
    for capability in set(range(64)) - set(CAPABILITIES.values()):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    docker = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in REFUSED:
        docker.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    docker.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for bit in range(32):
        if CLONE_NEW >> bit & 1:
            a_namespace = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 1 << bit, 1 << bit)
            docker.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", a_namespace)
    docker.set_attr(pyseccomp.Attr.CTL_NNP, 0)  # Docker leaves it to a setuid program to give rights
    docker.load()
    os.execve(command[0], command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SECRET": os.environ.get("SECRET", "")})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
