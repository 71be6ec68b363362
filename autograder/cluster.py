"""The same work on a Dask cluster that is there already: graded(tasks, "tcp://scheduler:8786").

    here                            a Dask worker                       its grader, a process beside it
    a few tasks at a time  ──────►  Owner: one task at a time  ──────►  serve: jail, hidden tests
    each reply once        ◄──────                             ◄──────

What crosses is JSON: a Task, then a Reply. The grader is a process of its own, so that it reads the tests as they are
now, shares random numbers and threads with nobody else's work, and can die without taking a Dask worker along. Dask
decides who grades what: a worker whose grader is ready offers one unit of a resource named after the run, and every
task asks for one. So nothing goes to a worker that has not been checked, and never two things at once.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import logging
import os
import platform
import queue
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from distributed import Client, Future, KilledWorker, Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from autograder import assignment as assignments
from autograder import variants
from autograder.report import Report, clean

if TYPE_CHECKING:  # torch, which neither a scheduler nor a Dask worker needs
    from autograder.grading import Task
    from autograder.sandbox.jail import Limits

T = TypeVar("T")

CONNECT = 10.0  # seconds to find the scheduler
START = 180.0  # seconds in which every grader must have started
ANSWER = 30.0  # seconds in which a scheduler that is there answers
LOOK = 2.0  # seconds between two looks at who is there
PATIENCE = 60.0  # seconds without any worker that can grade: one may be restarting
IDLE = 900.0  # seconds without work after which a grader ends: the run may have been killed
GRACE = 10.0  # seconds in which a grader that is told to end does so by itself
SLOW = 10.0  # seconds after which a task is sent to a second worker, if one has nothing else to do
STUCK = 3600.0  # seconds after which a task has failed: no submission may take a third of that
WINDOW = 2  # tasks in flight for each worker: one that it grades, one that waits there
CHANGED = "The checkout that the workers use was changed in the middle of the run."
LOADED = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # a Dask worker may have been started long ago


class ClusterError(Exception):
    """The cluster cannot grade: a sentence that says why and what to do. What has been graded is kept."""


class Description(msgspec.Struct, frozen=True):
    """All that marks depend on. A worker that differs could give other marks, so it gives none."""

    python: str
    torch: str
    code: str  # the grader's own
    tests: dict[str, str]  # for each assignment, with the reference and the mistakes that are told


class Begin(msgspec.Struct, frozen=True):
    """What a grader is told first."""

    expected: Description
    limits: dict[str, Any] | None  # of jail.Limits


class Hello(msgspec.Struct, frozen=True):
    """How a grader answers."""

    description: Description | None = None
    problem: str = ""  # why it cannot grade: a sentence


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a task ended: one of these."""

    report: Report | None = None
    sentence: str = ""  # why there is no report
    refused: str = ""  # why this worker will grade nothing more: a sentence
    failed: str = ""  # what went wrong this time, in Dask or around it


def describe(names: Sequence[str]) -> Description:
    tests = {}
    for name in names:
        with contextlib.suppress(assignments.UnknownAssignment):
            assignment = assignments.load(name)
            parts = [assignment.tests_sha, assignment.reference, [repr(known) for known in variants.mistakes(name)]]
            tests[name] = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
    return Description(platform.python_version(), version("torch"), assignments.environment_sha(), tests)


# -- the grader of one Dask worker ----------------------------------------------------------------------------------


def serve() -> None:
    """A line of JSON in, a line of JSON out, until the input ends: `python -m autograder.cluster`."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get between the replies
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        lines.put(b"")  # the Dask worker is done with us, or dead
        time.sleep(GRACE)
        os._exit(1)  # in the middle of a submission that nobody waits for; the jail ends with us

    threading.Thread(target=read, daemon=True).start()
    begin = msgspec.json.decode(lines.get(), type=Begin)
    answer: Hello | Reply = _hello(begin)
    with contextlib.suppress(queue.Empty, BrokenPipeError):
        while True:
            replies.write(msgspec.json.encode(answer) + b"\n")
            replies.flush()
            line = lines.get(timeout=IDLE)
            if not line:
                return
            answer = _reply(line, begin)


def _hello(begin: Begin) -> Hello:
    ours = describe(list(begin.expected.tests))
    problem = ""
    if ours == begin.expected:
        from autograder.grading import Task
        from autograder.submission import Submission

        for name in begin.expected.tests:  # a submission without cells: starts and tests the jail, collects the tests
            empty = Task(Submission("", name, "", ()), ())
            reply = _reply(msgspec.json.encode(empty), begin)
            problem = problem or reply.refused or reply.sentence
    return Hello(ours, problem)


def _reply(line: bytes, begin: Begin) -> Reply:
    from autograder.grading import Task, attempt
    from autograder.sandbox.jail import JailError, Limits

    task = msgspec.json.decode(line, type=Task)
    limits = None if begin.limits is None else msgspec.convert(begin.limits, Limits)
    try:
        outcome = attempt(task, limits)
    except JailError as error:
        return Reply(refused=str(error))
    return Reply(sentence=outcome) if isinstance(outcome, str) else Reply(report=outcome)


class Owner(WorkerPlugin):
    """On a Dask worker: owns its grader for one run, and offers it once it is ready."""

    def __init__(self, name: str, begin: bytes) -> None:
        self.name, self.begin = name, begin
        self._one_at_a_time = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    async def setup(self, worker: Worker) -> None:
        self.worker, self._loop = worker, asyncio.get_running_loop()
        self.hello = asyncio.ensure_future(self._offer())

    async def _offer(self) -> bytes:
        await self.worker.set_resources(**{self.name: 0})  # so that whoever looks knows that it was asked
        hello = await asyncio.to_thread(self._start)
        if self._ended:
            await asyncio.to_thread(self._stop)
        elif self._fits(hello):
            await self.worker.set_resources(**{self.name: 1})
        return msgspec.json.encode(hello)

    def grade(self, task: bytes) -> bytes:
        """Called in a thread of the Dask worker. A grader that has ended is started again, once."""
        with self._one_at_a_time:
            try:
                reply = self._attempt(task) or self._attempt(task)
            finally:
                if self._ended:  # meanwhile, perhaps while it was started
                    self._stop()
        died = "The grader's own process ended while this file was graded"
        return reply or msgspec.json.encode(Reply(sentence=f"{died}: grade it again, and report it if that recurs."))

    def _attempt(self, task: bytes) -> bytes:
        """The reply, or nothing if the grader ended."""
        if self._process is None or self._process.poll() is not None:
            hello = self._start()
            if not self._fits(hello):
                self._withdraw()
                return msgspec.json.encode(Reply(refused=hello.problem or CHANGED))
        try:
            reply = self._exchange(task)
        except (OSError, EOFError):
            if self._ended:
                raise RuntimeError("This Dask worker is closing.") from None
            return b""
        if msgspec.json.decode(reply, type=Reply).refused:
            self._withdraw()
        return reply

    async def teardown(self, worker: Worker) -> None:
        self._ended = True
        await asyncio.to_thread(self._stop)

    def _start(self) -> Hello:
        self._stop()
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "autograder.cluster"],
            cwd=assignments.COURSE,
            env=os.environ | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Control-C is for the Dask worker, which tells us to end
        )
        try:
            return msgspec.json.decode(self._exchange(self.begin), type=Hello)
        except (OSError, EOFError):
            return Hello(problem="it did not start, and the worker's log says why")

    def _exchange(self, line: bytes) -> bytes:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EOFError
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        reply = process.stdout.readline()
        if not reply.endswith(b"\n"):
            process.kill()
            process.wait()
            raise EOFError
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _fits(self, hello: Hello) -> bool:
        return hello.description == msgspec.json.decode(self.begin, type=Begin).expected and not hello.problem

    def _withdraw(self) -> None:
        """No more tasks for this worker. What waits here already is refused in its turn."""
        told = self.worker.scheduler.set_resources(resources={self.name: 0}, worker=self.worker.contact_address)
        asyncio.run_coroutine_threadsafe(told, self._loop).result(ANSWER)


async def _begin(name: str, begin: bytes, dask_worker: Worker) -> bytes:
    """Start this worker's grader, unless that is done, and wait for what it says."""
    if name not in dask_worker.plugins:
        await dask_worker.plugin_add(Owner(name, begin), name=name)
    return await _owner(dask_worker, name).hello


async def _end(name: str, dask_worker: Worker) -> None:
    if name in dask_worker.plugins:
        await dask_worker.set_resources(**{name: 0})
        await dask_worker.plugin_remove(name)


def _grade(name: str, task: bytes) -> bytes:
    try:
        return _owner(get_worker(), name).grade(task)
    except Exception as error:  # pickled, it might not be readable over there
        return msgspec.json.encode(Reply(failed=f"{type(error).__name__}: {error}"))


def _owner(worker: Worker, name: str) -> Owner:
    owner = worker.plugins[name]
    assert isinstance(owner, Owner)
    return owner


def _version() -> str:
    return LOADED


# -- here -----------------------------------------------------------------------------------------------------------


def graded(tasks: Sequence[Task], scheduler: str, limits: Limits | None = None) -> Iterator[tuple[Task, Report | str]]:
    """Each task once, as soon as it is graded, with its report or with a sentence that says why there is none.

    Raises ClusterError if there is no scheduler, no worker, or one that would grade otherwise than this machine.
    """
    if not tasks:
        return
    with _quiet(), _connected(scheduler) as client:
        run = _Run(client, scheduler, tasks, limits)
        try:
            run.begin()
            yield from run.outcomes()
        finally:
            run.end()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Whatever happens is told in our sentences; Dask's log would only hide them."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado", "asyncio")]
    loggers += [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("distributed.")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator[Client]:
    """With the certificates of Dask's configuration, if the address begins with tls://."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions: ours say more
            client = Client(scheduler, timeout=CONNECT, set_as_default=False)
    except Exception as error:  # no such host, nobody there, no certificate, not an address, another protocol, ...
        said = clean(str(error) or type(error).__name__, 300).rstrip(".")
        raise ClusterError(
            f"No Dask scheduler answers at {scheduler} ({said}). Start one with `dask scheduler`, or mend the address."
        ) from None
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=5)


Key = tuple[str, int, int]  # the run, which of its tasks, and a number of its own: Dask never gives an old reply


class _Sent(NamedTuple):
    number: int
    future: Future
    at: float


class _Run:
    """One call of `graded`: what waits, what is in flight, what has come back."""

    def __init__(self, client: Client, scheduler: str, tasks: Sequence[Task], limits: Limits | None) -> None:
        self.client, self.scheduler, self.tasks = client, scheduler, tasks
        self.name = f"ichimon-{uuid.uuid4().hex[:12]}"
        names = sorted({task.submission.assignment for task in tasks})
        plain = None if limits is None else msgspec.to_builtins(limits)
        self.expected = describe(names)
        self._orders = msgspec.json.encode(Begin(self.expected, plain))
        self._waiting = collections.deque(range(len(tasks)))
        self._alone: collections.deque[int] = collections.deque()  # what was in flight when workers died
        self._left = set(range(len(tasks)))
        self._flying: dict[Key, _Sent] = {}
        self._arrived: queue.SimpleQueue[tuple[Key, bytes | BaseException]] = queue.SimpleQueue()
        self._attempts = itertools.count()
        self._graders: set[str] = set()  # the addresses of workers that offer a grader
        self._refusal = "All are gone."  # the last worker's that could not go on
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop  # type: ignore[union-attr]
        self._last_look = self._last_grader = time.monotonic()

    def begin(self) -> None:
        """Start a grader on every worker, and make sure that each is what we have here."""
        try:
            self._call(lambda: self.client.run_on_scheduler(_version))
        except ClusterError:
            raise
        except Exception as error:
            raise ClusterError(
                f"The Dask scheduler at {self.scheduler} cannot load the grader ({clean(str(error), 200)}): "
                "it needs the same checkout and environment as its workers."
            ) from None
        if not self._workers():
            raise ClusterError(
                f"The Dask scheduler at {self.scheduler} has no workers: start some, then run the same command again."
            )
        loaded = self._call(lambda: self.client.run(_version, on_error="return"))
        self._refuse({address: self._not_loaded(answer) for address, answer in loaded.items()})
        answers = self._call(lambda: self.client.run(_begin, self.name, self._orders, on_error="return"), START)
        hellos = {
            address: msgspec.json.decode(answer, type=Hello)
            for address, answer in answers.items()
            if isinstance(answer, bytes)  # else it has gone
        }
        self._refuse({address: self._differs(hello) for address, hello in hellos.items()})
        problems = [hello.problem for hello in hellos.values()]
        if all(problems):
            raise ClusterError(f"No worker of {self.scheduler} can lock submissions in. {next(iter(problems), '')}")
        self._look()

    def _refuse(self, wrong: dict[str, str]) -> None:
        """Raise ClusterError, naming the first worker with which something is wrong, if there is one."""
        named = [f"{address} {reason}" for address, reason in sorted(wrong.items()) if reason]
        if named:
            more = f" ({len(named) - 1} more differ, too)" if len(named) > 1 else ""
            raise ClusterError(
                f"The Dask worker {named[0]}{more}: give it this machine's checkout and environment, restart it, "
                "and run the same command again."
            )

    def _not_loaded(self, answer: str | Exception) -> str:
        if isinstance(answer, OSError | TimeoutError):
            return ""  # it has gone meanwhile, which Dask knows
        if isinstance(answer, Exception):
            return f"cannot load the grader ({clean(str(answer), 200)})"
        return "" if answer == LOADED else "runs another version of the grader"

    def _differs(self, hello: Hello) -> str:
        theirs, ours = hello.description, self.expected
        if theirs is None:
            return f"has no grader: {hello.problem}"
        if theirs.python != ours.python:
            return f"runs Python {theirs.python}, and this machine {ours.python}"
        if theirs.torch != ours.torch:
            return f"runs torch {theirs.torch}, and this machine {ours.torch}"
        if theirs.code != ours.code:
            return "runs another version of the grader"
        others = [name for name in ours.tests if theirs.tests.get(name) != ours.tests[name]]
        return f"has other hidden tests of {', '.join(others)} than this machine" if others else ""

    def outcomes(self) -> Iterator[tuple[Task, Report | str]]:
        suspects: set[int] = set()
        while self._left:
            if self.client.status != "running":
                raise self._gone()
            if time.monotonic() - self._last_look > LOOK:
                self._look()
            self._send()
            try:
                key, reply = self._arrived.get(timeout=LOOK)
            except queue.Empty:
                continue
            sent = self._flying.pop(key, None)
            if sent is None:
                continue  # another copy came first
            sent.future.release()
            number = sent.number
            if isinstance(reply, asyncio.CancelledError | concurrent.futures.CancelledError):
                raise self._gone()
            said = msgspec.json.decode(reply, type=Reply) if isinstance(reply, bytes) else Reply(failed=repr(reply))
            if said.refused:
                self._refusal = said.refused
                self._again(number, self._waiting)
                self._look()
                continue
            if said.failed and (number not in suspects or self._copies(number)):
                suspects.add(number)  # no more than that: it may have been its neighbour in the queue
                self._again(number, self._alone)
                continue
            outcome = said.report or said.sentence
            if isinstance(reply, KilledWorker):
                outcome = "Each Dask worker that was to grade this file died: look at its memory, and grade it again."
            elif said.failed:
                outcome = f"The cluster failed on this file ({clean(said.failed, 200)}): grade it again."
            self._left.remove(number)
            self._recall(number)
            yield self.tasks[number], outcome

    def end(self) -> None:
        """Leave nothing behind on the cluster, if it still is there."""
        with contextlib.suppress(Exception):
            for number in self._left:
                self._recall(number)
            self._call(lambda: self.client.run(_end, self.name, wait=False, on_error="ignore"), 5)

    def _send(self) -> None:
        room = WINDOW * len(self._graders)
        while self._waiting and len(self._flying) < room:
            self._submit(self._waiting.popleft())
        if self._alone and self._graders and not self._waiting and not self._flying:
            self._submit(self._alone.popleft())
        if self._waiting or self._alone or len(self._flying) >= room:
            return
        late = time.monotonic() - SLOW  # some graders have nothing to do: perhaps they are faster, or better connected
        for sent in list(self._flying.values()):
            if sent.at < late and self._copies(sent.number) == 1 and len(self._flying) < room:
                self._submit(sent.number)

    def _submit(self, number: int) -> None:
        key = self.name, number, next(self._attempts)
        task = msgspec.json.encode(self.tasks[number])
        future = self.client.submit(_grade, self.name, task, key=key, pure=False, resources={self.name: 1})
        self._flying[key] = _Sent(number, future, time.monotonic())

        async def fetch() -> None:
            try:
                self._arrived.put((key, await future))
            except BaseException as error:
                self._arrived.put((key, error))

        asyncio.run_coroutine_threadsafe(fetch(), self._loop)

    def _again(self, number: int, into: collections.deque[int]) -> None:
        if not self._copies(number):
            into.append(number)

    def _copies(self, number: int) -> int:
        return sum(sent.number == number for sent in self._flying.values())

    def _recall(self, number: int) -> None:
        """What is still in flight of a task, wherever it is, is wanted no more."""
        for key, sent in list(self._flying.items()):
            if sent.number == number:
                del self._flying[key]
                sent.future.cancel()

    def _look(self) -> None:
        """Ask workers that have joined to start a grader, and note who offers one."""
        workers = self._workers()
        self._last_look = now = time.monotonic()
        for key, sent in self._flying.items():
            if now - sent.at > STUCK:
                self._arrived.put((key, TimeoutError("there was no answer for an hour")))
        new = [address for address, worker in workers.items() if self.name not in worker["resources"]]
        if new:
            run, begin = self.client.run, (_begin, self.name, self._orders)
            self._call(lambda: run(*begin, workers=new, wait=False, on_error="ignore"))
        graders = {address for address, worker in workers.items() if worker["resources"].get(self.name)}
        if graders and not self._graders:  # what was sent before finds no worker by itself
            lost = {sent.number for sent in self._flying.values()}
            for number in lost:
                self._recall(number)
            self._waiting.extendleft(lost)
        self._graders = graders
        if graders:
            self._last_grader = now
        elif now - self._last_grader > PATIENCE:
            raise ClusterError(
                f"The cluster at {self.scheduler} has no worker left that can grade. {self._refusal} "
                "What was graded is kept; run the same command again for the rest."
            )

    def _workers(self) -> dict[str, dict[str, Any]]:
        scheduler: Any = self.client.scheduler
        return self._call(lambda: scheduler.identity(n_workers=-1))["workers"]

    def _call(self, call: Callable[[], Awaitable[T]], seconds: float = ANSWER) -> T:
        """The result of a call to the cluster, which is given up after that many seconds."""

        async def bounded() -> T:
            return await asyncio.wait_for(call(), seconds)

        try:
            return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result(seconds + 5)
        except (OSError, TimeoutError, concurrent.futures.CancelledError):
            raise self._gone() from None

    def _gone(self) -> ClusterError:
        return ClusterError(
            f"The Dask scheduler at {self.scheduler} is gone, or does not answer. "
            "What was graded is kept; run the same command again for the rest."
        )


if __name__ == "__main__":
    serve()
