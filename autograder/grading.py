"""One submission × one assignment's hidden tests -> a Report; and a whole class of them, in parallel.

The tests are collected once, by pytest, and run again for each submission in the same process: about 100 times
cheaper than
starting pytest for each. The submission itself runs in a jailed worker; see student.py for what passes between them.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import inspect
import itertools
import multiprocessing
import multiprocessing.connection  # a submodule that is not there unless it is asked for
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, overload

import msgspec
import pytest
import torch
from _pytest.assertion.rewrite import AssertionRewritingHook
from _pytest.config import _prepareconfig
from _pytest.outcomes import Failed, Skipped

from autograder import assignment as assignments
from autograder import names, variants
from autograder import submission as submissions
from autograder.assignment import Assignment
from autograder.report import CellRun, ExerciseResult, Outcome, Report, TestResult, clean
from autograder.results import Results
from autograder.sandbox.jail import Jail, JailError, JailLost, Limits, WorkerLost
from autograder.sandbox.selftest import require
from autograder.student import Student, StudentError, Unfinished, same_transcript
from autograder.submission import Found, Submission
from ichimon.notebook import NotebookError

ATTEMPTS = 4  # at a submission, when somebody outside kills its worker, the jail or the grader's process


def student_of(submission: Submission, assignment: Assignment, jail: Jail, tests: ModuleType) -> Student:
    """The trusted view of a submission. `tests` is the module of hidden tests, for what it reserves."""
    reserved = [name for name in _reserved(tests) if "." in name]  # a whole library is withheld by the jail
    cells = [("set-up", "", assignment.set_up), *submission.cells]
    return Student(jail, cells, assignment.stand_ins, reserved)


def _reserved(tests: ModuleType) -> list[str]:
    return [name for names in getattr(tests, "RESERVED", {}).values() for name in names]


def _borrowed(submission: Submission, tests: ModuleType) -> list[str]:
    """Sentences about code that names what it should build. They are for a person: no mark depends on them.

    Reserved functions raise, but nothing in a student's own process can be hidden from the student for good.
    A name of the student's own is no borrowing, so only something's attribute, a string or an import count.
    """
    names = {name.rpartition(".")[2] for name in _reserved(tests)}
    return [
        f"The code of {cell} names {name}, which is what this chapter asks to build: a person should look."
        for cell, _, source in submission.cells
        for name in sorted(names & names_of_others(source))
    ]


def names_of_others(source: str) -> set[str]:
    """What code imports, from where, and the attributes and strings in it. Takes time in proportion to its length."""
    code = re.sub(r"#[^\n]*", "", source)
    found = set(re.findall(r"(?:[.'\"]\s*|\bfrom\s+)(\w+)", code))
    for imported in re.findall(r"\bimport\b\s*(\([^()]*|[^\n]*)", code):
        found.update(re.findall(r"\w+", imported))
    return found


class Grader:
    """The hidden tests of one assignment, collected once, ready to run on any number of submissions."""

    def __init__(self, assignment: Assignment, jail: Jail) -> None:
        torch.set_num_threads(1)
        self.assignment, self.jail = assignment, jail
        options = [
            "-o",
            "addopts=",
            "--assert=plain",
            "--import-mode=importlib",  # else the folder of hidden tests would be on sys.path from now on
            "--disable-plugin-autoload",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:terminal",
            "-p",
            "no:unraisableexception",  # it collects garbage at the end of each session: many seconds in a long run
            "-p",
            "no:threadexception",
        ]
        self._config = _prepareconfig([str(assignment.tests), "-s", *options])
        self._config._do_configure()
        self._session = pytest.Session.from_config(self._config)
        self._config.hook.pytest_sessionstart(session=self._session)
        with _plain_asserts():
            self._config.hook.pytest_collection(session=self._session)
        self.tests: list[pytest.Function] = [item for item in self._session.items if isinstance(item, pytest.Function)]
        if not self.tests:
            raise JailError(f"No hidden test of {assignment.name} could be collected from {assignment.tests.name}.")
        self._arguments = {test: self._known_arguments(test) for test in self.tests}
        functions = [self._function(test) for test in self.tests]
        self.weights = {
            test.name: float(self._marker(test).kwargs.get("weight", 1)) / functions.count(self._function(test))
            for test in self.tests
        }
        self._mistakes: dict[
            tuple[str, str], list[tuple[str, list[Any]]]
        ] = {}  # (exercise, test) -> (says, transcript)

    def grade(
        self, submission: Submission, exercises: Iterable[str] | None = None, *, first_failure: bool = False
    ) -> Report:
        """Run the hidden tests of `exercises` (all, by default). With first_failure, an exercise ends at its first
        failed test. Raises Disturbed when a worker was killed from outside."""
        chosen = list(self.assignment.points) if exercises is None else list(exercises)
        with contextlib.closing(self._in_turn([submission])) as students:
            return self._report(submission, next(students), chosen, first_failure)

    def grade_in_turn(self, answers: Sequence[Submission], exercise: str) -> list[Report]:
        """As `grade` does with first_failure, but all in one worker as long as it lives: only for answers of our own.
        What one leaves in torch, the next one meets."""
        with contextlib.closing(self._in_turn(answers)) as students:
            return [
                self._report(answer, student, [exercise], first_failure=True)
                for answer, student in zip(answers, students, strict=True)
            ]

    def _in_turn(self, answers: Sequence[Submission]) -> Generator[Student, None, None]:
        """The trusted view of each, in the worker of the one before: starting one takes longer than most tests do."""
        student: Student | None = None
        try:
            for answer in answers:
                before, student = student, student_of(answer, self.assignment, self.jail, self.tests[0].module)
                if before is not None:
                    student._adopt(before)
                yield student
        finally:
            if student is not None:
                student._close()

    def _report(self, submission: Submission, student: Student, chosen: Sequence[str], first_failure: bool) -> Report:
        results: dict[str, list[TestResult]] = {exercise: [] for exercise in chosen}
        runs: list[CellRun] = []
        seconds: dict[str, float] = {}
        if submission.cells:
            runs = self._run_cells(student)
            before = seconds[""] = student._taken()
            for test in self.tests:
                exercise = self.exercise(test)
                done = results.get(exercise)
                if done is None or (first_failure and done and not done[-1].passed):
                    continue
                done.append(self._result(test, student, name_mistake=not first_failure))
                seconds[exercise] = seconds.get(exercise, 0.0) + student._taken() - before
                before = student._taken()
        report = Report(
            submission.student,
            submission.assignment,
            submission.sha,
            tuple(
                ExerciseResult(exercise, self.assignment.points[exercise], tuple(results[exercise]))
                for exercise in chosen
            ),
            (*submission.notices, *_borrowed(submission, self.tests[0].module)),
            tuple(runs),
            {name: round(spent, 3) for name, spent in seconds.items()},
        )
        if student._disturbed:
            raise Disturbed(report)
        return report

    def exercise(self, test: pytest.Function) -> str:
        return self._marker(test).args[0]

    def close(self) -> None:
        self._config.hook.pytest_sessionfinish(session=self._session, exitstatus=0)
        self._config._ensure_unconfigure()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _function(test: pytest.Function) -> str:
        return test.originalname

    @staticmethod
    def _known_arguments(test: pytest.Function) -> dict[str, Any]:
        """A hidden test takes the student and its own parameters: fixtures cost more than most tests do."""
        known = {"student": None, **(test.callspec.params if hasattr(test, "callspec") else {})}
        wanted = list(inspect.signature(test.obj).parameters)
        if unknown := [name for name in wanted if name not in known]:
            raise JailError(f"{test.name} asks for {unknown[0]}: a hidden test takes `student` and its own parameters.")
        return {name: known[name] for name in wanted}

    @staticmethod
    def _marker(test: pytest.Function) -> pytest.Mark:
        marker = test.get_closest_marker("exercise")
        if marker is None:
            raise JailError(f"{test.name} has no @pytest.mark.exercise, so no exercise it could count for.")
        return marker

    def _run_cells(self, student: Student) -> list[CellRun]:
        try:
            runs = student._cell_runs()
        except WorkerLost:  # every single cell was lost; the tests will tell
            return [run for run in student._runs.values() if run.cell != "set-up"]
        if student._lost_cell(runs[0]) and not student._disturbed:
            raise RuntimeError(f"the set-up cell was {runs[0].error} Is the machine too busy?")
        if runs[0].error and not student._disturbed:
            raise JailError(f"The set-up cell of {self.assignment.name} fails in the jail: {runs[0].error}")
        return runs[1:]

    def _result(self, test: pytest.Function, student: Student, name_mistake: bool) -> TestResult:
        outcome, message = self._judge(test, student)
        mistake = ""
        if name_mistake and outcome in (Outcome.FAILED, Outcome.RAISED):
            mistake = self._mistake(test, student._transcript)
        function = self._function(test)
        return TestResult(
            name=test.name,
            claim=function.removeprefix("test_").replace("_", " "),
            hint=(test.function.__doc__ or "").strip(),
            weight=self.weights[test.name],
            outcome=outcome,
            message=message,
            mistake=mistake,
        )

    def _judge(self, test: pytest.Function, student: Student) -> tuple[Outcome, str]:
        """Run one test, and say how it ended."""
        try:
            student._begin(self.exercise(test))
            test.obj(**{name: student if name == "student" else value for name, value in self._arguments[test].items()})
            return Outcome.PASSED, ""
        except Unfinished as error:
            return Outcome.UNFINISHED, clean(error.sentence)
        except StudentError as error:
            return Outcome.RAISED, clean(error.sentence)
        except WorkerLost as lost:
            return lost.outcome, clean(str(lost))
        except AssertionError as error:
            return Outcome.FAILED, clean(str(error))
        except Failed as error:
            return Outcome.FAILED, clean(_expected_error(error))
        except JailError:
            raise
        except (Exception, Skipped) as error:
            return Outcome.CRASHED, type(error).__name__

    def _mistake(self, test: pytest.Function, transcript: list[Any]) -> str:
        """What to tell a student whose code answered this whole test exactly as a known mistake does, else ""."""
        exercise = self.exercise(test)
        if (exercise, test.name) not in self._mistakes:
            self._learn_mistakes(exercise)
        known = self._mistakes[exercise, test.name]
        return next((says for says, theirs in known if same_transcript(transcript, theirs)), "")

    def _learn_mistakes(self, exercise: str) -> None:
        """Run every known mistake of an exercise through its tests once, and keep what each answered."""
        tests = [test for test in self.tests if self.exercise(test) == exercise]
        learnt: dict[tuple[str, str], list[tuple[str, list[Any]]]] = {(exercise, test.name): [] for test in tests}
        mistakes = [mistake for mistake in variants.mistakes(self.assignment.name) if mistake.exercise == exercise]
        answers = [{**self.assignment.reference, exercise: mistake.source}.items() for mistake in mistakes]
        submitted = [submissions.from_sources("mistake", self.assignment, list(sources)) for sources in answers]
        with contextlib.closing(self._in_turn(submitted)) as students:
            for mistake, student in zip(mistakes, students, strict=True):
                for test in tests:
                    if self._function(test) in mistake.caught_by:
                        self._judge(test, student)
                        learnt[exercise, test.name].append((mistake.says, student._transcript))
                if student._disturbed:
                    raise Disturbed
        self._mistakes |= learnt


@contextlib.contextmanager
def _plain_asserts() -> Iterator[None]:
    """Inside another pytest, its import hook would write the values of each assert, expected or not, into messages."""
    hooks = [finder for finder in sys.meta_path if isinstance(finder, AssertionRewritingHook)]
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in hooks]
    try:
        yield
    finally:
        sys.meta_path[:0] = hooks


def _expected_error(error: Failed) -> str:
    """pytest's "DID NOT RAISE <class 'ValueError'>" as a sentence."""
    text = str(error)
    if "DID NOT RAISE" in text:
        name = text.rpartition("'")[0].rpartition("'")[2].rpartition(".")[2] or text.rpartition(" ")[2]
        return f"an error of type {name} should have been raised, but none was."
    return text


# -- a class --------------------------------------------------------------------------------------------------------


class Task(msgspec.Struct, frozen=True):
    """One submission and those of its exercises that are still to be graded: what crosses to another process or
    host."""

    submission: Submission
    exercises: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ungraded:
    """A file that got no report, and the sentence that says why."""

    found: Found
    reason: str
    unreadable: str = ""  # the assignment for which the file holds no notebook; "" if something else was wrong


class Disturbed(Exception):
    """A worker was killed from outside while this report was made: by whom, a person must find out."""

    def __init__(self, report: Report | None = None) -> None:
        super().__init__("A worker was killed from outside")
        self.report = report


class Graders:
    """One jail and the graders that use it, started when first needed. One process holds one of these."""

    def __init__(self, limits: Limits | None = None, jail: Callable[[Limits], Jail] = Jail) -> None:
        self._limits, self._make_jail = limits or Limits(), jail
        self._jail: Jail | None = None
        self._graders: dict[str, Grader] = {}

    def run(self, task: Task) -> Report:
        """Raises JailError when this machine cannot lock submissions in.

        What was disturbed from outside (a killed zygote or worker) is graded again, from the beginning. Should that
        happen each time, the submission itself may be the reason: then it is the verdict.
        """
        for last in (*[False] * (ATTEMPTS - 1), True):
            try:
                try:
                    return self._grade(task)
                except Disturbed as disturbed:
                    if self._jail:
                        self._jail.worker().kill()  # raises JailLost if not only the worker was killed
                    if last and disturbed.report:
                        return disturbed.report
            except JailLost:
                self.close()
                if last:
                    raise
        raise JailError("Workers are killed again and again before anything is graded. Is there enough memory?")

    def _grade(self, task: Task) -> Report:
        name = task.submission.assignment
        if self._jail is None or not self._jail.alive:
            self.close()
            self._jail = self._make_jail(self._limits)
            require(self._jail)
        if name not in self._graders:
            self._graders[name] = Grader(assignments.load(name), self._jail)
        return self._graders[name].grade(task.submission, task.exercises)

    def close(self) -> None:
        for grader in self._graders.values():
            grader.close()
        self._graders.clear()
        if self._jail:
            self._jail.close()
            self._jail = None


_here: dict[Limits, Graders] = {}


@atexit.register
def _close_all() -> None:
    for graders in _here.values():
        graders.close()


def here(limits: Limits | None = None) -> Graders:
    """This process's own graders, which stay until it ends."""
    limits = limits or Limits()
    return _here.setdefault(limits, Graders(limits))


def attempt(task: Task, limits: Limits | None = None) -> Report | str:
    """Grade in this process's own jail, which stays for the next. What goes wrong on our side becomes a sentence.

    Raises JailError when this machine cannot lock submissions in.
    """
    try:
        return here(limits).run(task)
    except JailError:
        raise
    except Exception as error:  # ours, not the student's: say so, and go on with the class
        return f"The grader failed on this file ({type(error).__name__}: {clean(str(error), 200)}). Please report it."


class Stored(Sequence[Report]):
    """Reports that are read from the results when they are asked for: a class of thousands need not be in memory."""

    def __init__(self, results: Results, keys: Iterable[tuple[str, str]]) -> None:
        self._results, self._keys = results, sorted(keys)  # (assignment, student)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Report: ...
    @overload
    def __getitem__(self, index: slice) -> Stored: ...
    def __getitem__(self, index: int | slice) -> Report | Stored:
        if isinstance(index, slice):
            return Stored(self._results, self._keys[index])
        assignment, student = self._keys[index]
        report = self._results.report(student, assignment)
        if report is None:
            raise RuntimeError(f"the results of {student} vanished while they were read")
        return report


def grade_class(
    found: Sequence[Found],
    results: Results,
    workers: int = 1,
    assignment: str = "",
    on_report: Callable[[Report, bool], None] = lambda report, fresh: None,
    *,
    scheduler: str = "",
    again: bool = False,
    limits: Limits | None = None,
) -> tuple[Sequence[Report], list[Ungraded]]:
    """Grade what `results` does not hold yet; return every submission's report, and the files that could not be graded.

    Results are stored one by one as they arrive, so that an interrupted run loses nothing. `on_report(report,
    fresh)` is called for each, fresh or not. `again` grades what has a verdict too, and keeps the old one. With
    a `scheduler`, the workers are those of that Dask cluster. Raises JailError when this machine cannot lock
    submissions in.
    """
    done: list[tuple[str, str]] = []
    ungraded: list[Ungraded] = []
    files: dict[tuple[str, str], list[Found]] = {}  # (assignment, student)
    for item in found:
        try:
            name = assignments.load(assignment or submissions.assignment_of(item)).name
            files.setdefault((name, item.student), []).append(item)
        except (ValueError, LookupError, OSError) as error:
            ungraded.append(Ungraded(item, clean(str(error))))

    alike = names.look_alikes(student for _, student in files if not names.trouble(student))

    def stored(name: str, student: str, fresh: bool) -> None:
        done.append((name, student))
        on_report(Stored(results, done[-1:])[0], fresh)

    def tasks() -> Iterator[Task]:
        """Files are read when their turn comes, for the same reason."""
        for (name, student), items in files.items():
            if student in alike:
                ungraded.extend(Ungraded(item, alike[student]) for item in items)
                continue
            if len(items) > 1:
                text = f"is one of {len(items)} files of {student} for {name}: keep one of them."
                ungraded.extend(Ungraded(item, clean(f"{item.path.name} {text}")) for item in items)
                continue
            loaded = assignments.load(name)
            file = submissions.read(items[0], loaded)
            if file.unreadable:
                ungraded.append(Ungraded(items[0], file.notices[0], name))
                continue
            results.saw(file, items[0].path)
            missing = list(loaded.points) if again else results.missing(file.sha, loaded)
            if missing:
                yield Task(file, tuple(missing))
            else:
                stored(name, student, False)

    for task, outcome in _graded(tasks(), workers, scheduler, limits):
        key = task.submission.assignment, task.submission.student
        if isinstance(outcome, Report):
            results.add(outcome, assignments.load(key[0]), again=again)
            stored(*key, True)
        else:
            ungraded.append(Ungraded(files[key][0], outcome))
    return Stored(results, done), ungraded


def _graded(
    tasks: Iterator[Task], workers: int, scheduler: str, limits: Limits | None
) -> Iterator[tuple[Task, Report | str]]:
    """Each task with its report, or with a sentence that says why there is none."""
    first = list(itertools.islice(tasks, 4))
    tasks = itertools.chain(first, tasks)
    if scheduler and first:
        from autograder import cluster  # imports dask

        yield from cluster.graded(list(tasks), scheduler, limits)
    elif workers <= 1 or len(first) < 4:  # a few are done before other processes have started
        yield from ((task, attempt(task, limits)) for task in tasks)
    else:
        yield from _in_processes(tasks, workers, limits)


class _Process:
    """A process that grades one task after the other. It ends with us, however we end."""

    def __init__(self, limits: Limits | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, limits), daemon=True)
        self._process.start()
        theirs.close()

    def end(self) -> None:
        self._process.kill()  # and its jail dies with it
        self._process.join()
        self.pipe.close()


def _serve(pipe: multiprocessing.connection.Connection, limits: Limits | None) -> None:
    """In the process: tasks in, reports out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # control-C is for the process that prints
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more
        while True:
            task = pipe.recv()
            try:
                answer: Report | str | JailError = attempt(task, limits)
            except JailError as error:
                answer = JailError(str(error))
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)  # whatever is being graded: nobody is there to tell


def _in_processes(tasks: Iterator[Task], workers: int, limits: Limits | None) -> Iterator[tuple[Task, Report | str]]:
    """A process that dies costs the task that it had in hand one of its attempts, and the other tasks nothing."""
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    again: collections.deque[tuple[Task, int]] = collections.deque()  # with the number of the attempt
    first = ((task, 1) for task in tasks)
    idle: list[_Process] = []
    busy: dict[Any, tuple[_Process, Task, int]] = {}  # by the pipe
    done: list[tuple[Task, Report | str]] = []
    try:
        while True:
            while len(busy) < workers and (given := again.popleft() if again else next(first, None)):
                process = idle.pop() if idle else _Process(limits)
                busy[process.pipe] = process, *given
                with contextlib.suppress(OSError):  # it is dead: its pipe will say so
                    process.pipe.send(given[0])
            yield from done  # while the next ones are graded
            if not busy:
                return
            done = []
            for pipe in multiprocessing.connection.wait(list(busy)):
                process, task, times = busy.pop(pipe)
                try:
                    answer = process.pipe.recv()
                except (EOFError, OSError):
                    process.end()
                    if times < ATTEMPTS:
                        again.append((task, times + 1))
                    else:
                        done.append((task, f"The grader's own process ended {times} times while this was graded."))
                    continue
                if isinstance(answer, JailError):
                    raise answer
                idle.append(process)
                done.append((task, answer))
    finally:
        for process in (*idle, *(process for process, _, _ in busy.values())):
            process.end()


def grade_one(path: Path, student: str, assignment: str, results: Path | None = None) -> Report:
    """The report of one file, from the results if this very file was graded before. Used by nbgrader's autograde.

    Raises NotebookError for an unreadable file and JailError when this machine cannot lock submissions in.
    """
    found = Found(student, assignment, path)
    with Results(results) as stored:
        reports, ungraded = grade_class([found], stored, assignment=assignment)
        if ungraded:
            kind = NotebookError if ungraded[0].unreadable else JailError
            raise kind(ungraded[0].reason)
        return reports[0]  # read here: reports are read when they are asked for
