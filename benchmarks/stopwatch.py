"""What processes took: wall time, CPU time until they are gone, memory; and which part of our grading took it."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from autograder.grading import Grader
from autograder.sandbox import wire
from autograder.sandbox.jail import Jail, Worker
from autograder.student import Student
from ichimon import measure


@dataclass
class Cost:
    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def so_far() -> Cost:
    """Of this process, all its threads; not of children."""
    return Cost(time.perf_counter(), time.process_time())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (the clock that clock_getcpuclockid(3) names). OSError once it is
    gone."""
    return time.clock_gettime(~pid << 3 | 2)


def until_gone(pids: Sequence[int]) -> float:
    """CPU seconds of dying processes together, last read just before they are gone."""
    used = dict.fromkeys(pids, 0.0)
    left = list(pids)
    while left:
        for pid in list(left):
            try:
                used[pid] = cpu_seconds(pid)
            except OSError:
                left.remove(pid)
        time.sleep(0.0002)
    return sum(used.values())


def private_mb(pid: int) -> float:
    """Memory that only this process has."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024


def whole_process(command: Sequence[str], folder: Path) -> float:
    """Wall seconds of a process, from start to exit. RuntimeError if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-400:]}")
    return time.perf_counter() - started


def at_most(measured: float, limit: float) -> dict[str, Any]:
    return {"measured": measured, "at_most": limit, "met": measured <= limit}


def at_least(measured: float, limit: float) -> dict[str, Any]:
    return {"measured": measured, "at_least": limit, "met": measured >= limit}


def surroundings(load: Sequence[float]) -> dict[str, Any]:
    """What a benchmark depends on besides its notebooks. load: the load average before it began."""
    return {
        **measure.environment("autograder", "benchmarks/*.py", "ichimon", "solutions", "examples/class"),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": list(load),
        "load_average_after": list(os.getloadavg()),
        "root": os.geteuid() == 0,
        **{package: version(package) for package in ("nbgrader", "nbclient", "ipykernel", "pytest", "msgspec")},
    }


# -- where our time goes --------------------------------------------------------------------------------------------


@dataclass
class Part:
    calls: int = 0
    wall: float = 0.0
    grader_cpu: float = 0.0
    jail_cpu: float = 0.0


@dataclass
class Profile:
    """Stopwatches around the parts of grading. While an inner part runs, the outer one stands still."""

    parts: dict[str, Part] = field(default_factory=dict)
    _open: list[Cost] = field(default_factory=list)  # what inner parts took, for each part that is open

    def part(self, name: str) -> Part:
        return self.parts.setdefault(name, Part())

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        self._open.append(Cost())
        before = so_far()
        try:
            yield
        finally:
            spent = so_far() - before
            inner, part = self._open.pop(), self.part(name)
            part.calls += 1
            part.wall += spent.wall - inner.wall
            part.grader_cpu += spent.cpu - inner.cpu
            if self._open:
                self._open[-1] += spent

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return function(*args, **kwargs)

        return measured

    def watch_requests(self, ask: Callable[[Worker, Any], Any]) -> Callable[[Worker, Any], Any]:
        names: dict[type, str] = {wire.Prepare: "start a worker", wire.Run: "cells"}

        @functools.wraps(ask)
        def measured(worker: Worker, request: Any) -> Any:
            name = names.get(type(request), "calls")
            before = 0.0 if name == "start a worker" else cpu_seconds(worker.pid)
            with self.measure(name):
                reply = ask(worker, request)
            self.part(name).jail_cpu += cpu_seconds(worker.pid) - before
            return reply

        return measured

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, attribute, name in (
                (Jail, "worker", "start a worker"),
                (Student, "_encode", "encode and decode"),
                (Student, "_value", "encode and decode"),
                (Student, "_close", "end the worker"),
                (Grader, "_judge", "the tests themselves, oracles"),
                (Grader, "_mistake", "name mistakes"),
            ):
                watched = self.watch(name, getattr(owner, attribute))
                stack.enter_context(mock.patch.object(owner, attribute, watched))
            stack.enter_context(mock.patch.object(Worker, "ask", self.watch_requests(Worker.ask)))
            yield

    def table(self, submissions: int) -> list[dict[str, Any]]:
        """Each part's mean for one submission, the longest first."""
        rows = sorted(self.parts.items(), key=lambda item: -item[1].wall)
        return [
            {
                "part": name,
                "times": part.calls / submissions,
                "wall_ms": 1000 * part.wall / submissions,
                "grader_cpu_ms": 1000 * part.grader_cpu / submissions,
                "jail_cpu_ms": 1000 * part.jail_cpu / submissions,
            }
            for name, part in rows
        ]
