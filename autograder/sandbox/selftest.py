"""The jail tries to break out of itself. The grader refuses to grade when any attempt succeeds.

Each probe runs as a student's cell would and prints "ok" or what it could do. The same probes are what `autograder
doctor` shows.
"""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass

from autograder.assignment import COURSE, SOLUTIONS, TESTS
from autograder.sandbox import wire
from autograder.sandbox.jail import Jail, JailError, WorkerLost, _memory

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
    outside = [str(path) for path in (TESTS, SOLUTIONS, COURSE / "pyproject.toml", "/etc/passwd")]
    constants = {"OUTSIDE": outside, "GRADER": os.getpid(), "THREADS": jail.limits.threads}
    prelude = "\n".join(f"{name} = {value!r}" for name, value in constants.items()) + TRY
    return _probe(jail, prelude)


def _probe(jail: Jail, prelude: str) -> list[Check]:
    checks = []
    worker = jail.worker()
    try:
        worker.ask(wire.Run(worker.number(), "prelude", prelude))
        for claim, source in PROBES.items():
            ran = worker.ask(wire.Run(worker.number(), "probe", textwrap.dedent(source)))
            seen = ran.error or ran.output.strip()
            checks.append(Check(claim, seen == "ok", "" if seen == "ok" else seen))
        memory = _memory(worker.pid)
        checks.append(Check(WATCHDOG, memory > 0, "" if memory else "its memory reads as 0"))
    except WorkerLost as lost:
        checks.append(Check(SURVIVES, False, str(lost)))
    finally:
        worker.kill()
    return checks


def require(jail: Jail) -> None:
    """Raise JailError, naming each layer that is missing, unless all hold."""
    checks = self_test(jail)
    if checks[-1].claim == SURVIVES:  # a killed worker says nothing about the layers: try all of them again
        checks = self_test(jail)
    broken = [f"{check.claim}: {check.seen}" for check in checks if not check.holds]
    if broken:
        raise JailError("Nothing is graded, because the jail has a hole. " + "; ".join(broken) + ".")
