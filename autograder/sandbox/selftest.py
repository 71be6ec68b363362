"""The jail tries to break out of itself. The grader refuses to grade when any attempt succeeds.

Each probe runs as a student's cell would and prints "ok" or what it could do. The same probes are what `autograder
doctor` shows.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from autograder.assignment import COURSE, SOLUTIONS, TESTS
from autograder.sandbox import wire
from autograder.sandbox.container import Container
from autograder.sandbox.jail import Jail, JailError, WorkerLost, _answers, _memory

TRY = """
def refused(attempt):
    try:
        got = attempt()
    except OSError:
        return "ok"
    return f"it worked: {got!r}"[:200]
"""

PROBES = {
    "hidden tests, solutions and the grader's files are out of sight": """
        import os
        print(next((f"{path} can be seen" for path in OUTSIDE if os.path.exists(path)), "ok"))""",
    "nothing outside its own folders can be written": """
        import os
        print(next((said for place in ("/", "/dev", "/usr", "/sandbox", "/etc")
                    if (said := refused(lambda: open(place + "/x", "w"))) != "ok"), "ok"))""",
    "what can be written is its own": """
        mounts = {line.split()[4]: line.split()[5].split(",") for line in open("/proc/self/mountinfo")}  # the topmost
        ours = ("/proc", "/student", "/dev/shm")
        devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
        print(next((place + " is writable" for place, flags in mounts.items()
                    if "rw" in flags and place not in ours + devices), "ok"))""",
    "no network": """
        import socket
        print(next((said for kind in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK)
                    if (said := refused(lambda: socket.socket(kind))) != "ok"), "ok"))""",
    "it sees no process but its own": """
        import os
        print("ok" if [name for name in os.listdir("/proc") if name.isdigit()] == ["1"] else "others are visible")""",
    "it cannot signal the grader": """
        import os
        print(refused(lambda: os.kill(GRADER, 0)))""",
    "no other program can be started": """
        import subprocess, sys
        print(refused(lambda: subprocess.run([sys.executable, "-c", "pass"])))""",
    "system calls that escape are refused": """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        attempts = {"unshare": lambda: libc.unshare(0x10000000), "ptrace": lambda: libc.ptrace(0, 0, 0, 0),
                    "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), "setuid": lambda:
                    libc.setresuid(0, 0, 0),
                    "io_uring": lambda: libc.syscall(425, 1, 0), "bpf": lambda: libc.syscall(321, 0, 0, 0)}
        print(next((name + " is allowed" for name, attempt in attempts.items() if attempt() != -1), "ok"))""",
    "no rights, and none to be had": """
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        wanted = {"CapEff": 0, "CapPrm": 0, "CapBnd": 0, "NoNewPrivs": 1, "Seccomp": 2}
        print(next((f"{name} is {status[name].strip()}" for name, value in wanted.items() if int(status[name], 16) !=
        value), "ok"))""",
    "no second process can be started": """
        import os
        print(refused(os.fork))""",
    "threads are limited": """
        import threading
        done, count = threading.Event(), 0
        try:
            while count < 4 * THREADS:
                threading.Thread(target=done.wait, daemon=True).start()
                count += 1
        except RuntimeError:
            pass
        done.set()
        print("ok" if count < THREADS else f"{count} threads could be started")""",
    "memory, files and computing time are limited": """
        import resource
        names = ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CPU")
        print(next((name + " is not set" for name in names if -1 in resource.getrlimit(getattr(resource, name))),
        "ok"))""",
}
# Where there are no namespaces, user ids have to do what these two ask for.
NAMESPACES = ("what can be written is its own", "it sees no process but its own")
CONTAINER_PROBES = {
    "a user without groups": """
        import os
        ids = {*os.getresuid(), *os.getresgid(), *os.getgroups()}
        print("ok" if len(ids) == 1 and 0 not in ids else f"it is {sorted(ids)}")""",
    "nothing but its own folder can be written": """
        import os
        def writable(top, depth):
            if top in ("/proc", os.getcwd()) or os.path.islink(top):
                return
            if os.path.isdir(top) and os.access(top, os.W_OK):
                yield top
            try:
                entries = list(os.scandir(top))
            except OSError:
                return
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if depth:
                        yield from writable(entry.path, depth - 1)
                elif entry.is_file(follow_symlinks=False) and os.access(entry.path, os.W_OK):
                    yield entry.path
        print(next((path + " is writable" for path in writable("/", 3)), "ok"))""",
    "its own folder is small, in memory, and empty": """
        import os
        size = os.statvfs(".").f_blocks * os.statvfs(".").f_frsize
        own = os.stat(".")
        print("ok" if size <= 1 << 30 and own.st_uid == os.getuid() and own.st_mode & 0o777 == 0o700 and not
        os.listdir(".") else f"{size >> 20} MiB, user {own.st_uid}, mode {own.st_mode:o}, {os.listdir('.')}")""",
    "what belongs to root alone is closed": """
        import os
        print(next((path + " can be read" for path in HIDDEN for look in (os.listdir, lambda path: open(path).read(1))
                    if refused(lambda: look(path)) != "ok"), "ok"))""",
    "no memory that counts for nobody": """
        print(refused(lambda: open("/dev/zero", "r+b")))""",
    "of other processes it sees no more than their names": """
        import os
        own = str(os.getpid())
        looks = [(os.readlink, name) for name in ("cwd", "root", "exe")]
        looks += [(os.listdir, name) for name in ("fd", "map_files")]
        looks += [(lambda path: open(path, "rb").read(1), name)
                  for name in ("environ", "mem", "maps", "smaps", "auxv", "syscall", "stack", "pagemap")]
        print(next((f"{path} can be read" for pid in os.listdir("/proc") if pid.isdigit() and pid != own
                    for look, name in looks if (path := f"/proc/{pid}/{name}") and os.path.isdir(f"/proc/{pid}")
                    and refused(lambda: look(path)) != "ok"), "ok"))""",
    "it can signal nobody": """
        import os
        print(next((f"process {pid} can be signalled" for pid in os.listdir("/proc")
                    if pid.isdigit() and int(pid) != os.getpid() and refused(lambda: os.kill(int(pid), 0)) != "ok"),
                   "ok"))""",
    "libraries that hold whole answers are closed": """
        import os
        print(next((path + " can be read" for path in ANSWERS
                    if refused(lambda: os.listdir(path)) != "ok" and os.listdir(path)), "ok"))""",
}
SURVIVES = "the worker survives the self-test"
WATCHDOG = "the grader can see how much memory a worker takes"


@dataclass(frozen=True)
class Check:
    """One layer of the jail: what should hold, whether it does, and what was seen if not."""

    claim: str
    holds: bool
    seen: str


def self_test(jail: Jail) -> list[Check]:
    """Try every way out once."""
    outside = [TESTS, SOLUTIONS, COURSE / "pyproject.toml", "/etc/passwd"]
    probes, constants = PROBES, dict[str, object]()
    if isinstance(jail, Container):
        outside = [TESTS, SOLUTIONS, COURSE / "autograder"]
        kept = {claim: source for claim, source in PROBES.items() if claim not in NAMESPACES}
        probes = kept | CONTAINER_PROBES
        constants = {"HIDDEN": [str(path) for path in jail.hidden], "ANSWERS": _answers()}
    constants |= {"OUTSIDE": [str(path) for path in outside], "GRADER": os.getpid(), "THREADS": jail.limits.threads}
    prelude = "\n".join(f"{name} = {value!r}" for name, value in constants.items()) + TRY
    return _probe(jail, prelude, probes)


def _probe(jail: Jail, prelude: str, probes: Mapping[str, str]) -> list[Check]:
    checks = []
    worker = jail.worker()
    try:
        worker.ask(wire.Run(worker.number(), "prelude", prelude))
        for claim, source in probes.items():
            ran = worker.ask(wire.Run(worker.number(), "probe", textwrap.dedent(source)))
            seen = ran.error or ran.output.strip()
            checks.append(Check(claim, seen == "ok", "" if seen == "ok" else seen))
        memory = _memory(worker.pid)
        worker.ask(wire.Run(worker.number(), "after", ""))  # of one that was killed, nothing would be seen either
        checks.append(Check(WATCHDOG, memory > 0, "" if memory else "its memory reads as 0"))
    except WorkerLost as lost:
        checks.append(Check(SURVIVES, False, str(lost)))
    finally:
        worker.kill()
    return checks


def require(jail: Jail) -> None:
    """Raise JailError, naming each layer that is missing, unless all hold."""
    for _ in range(3):  # a killed worker says nothing about the layers: try all of them again
        checks = self_test(jail)
        if checks[-1].claim != SURVIVES:
            break
    broken = [f"{check.claim}: {check.seen}" for check in checks if not check.holds]
    if broken:
        raise JailError("Nothing is graded, because the jail has a hole. " + "; ".join(broken) + ".")
