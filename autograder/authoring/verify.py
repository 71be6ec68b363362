"""The gates that make a mark mean something, for every exercise of a chapter:

1. the starter gets 0, each hidden test failing for want of an answer;
2. the reference gets full marks, and so does each right answer in alternatives/; both pass the visible checks;
3. each wrong answer in mistakes/ fails the tests that it names, by an assertion, is told so by its own sentence,
   and costs no other exercise a point; if the visible check passes it, a fifth of the points is left at least;
4. at least 95 % of the mutants of the reference are caught; those in equivalents/ change nothing that tests should see.

What was judged before and has not changed since is read from _build/cache/verify.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import os
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import msgspec

from autograder import assignment as assignments
from autograder import variants
from autograder.assignment import COURSE, Assignment
from autograder.authoring.build import STUB
from autograder.authoring.mutants import Mutant, mutants
from autograder.course import Course
from autograder.report import CellRun, Outcome, Report, TestResult
from autograder.variants import Variant

CACHE = COURSE / "_build" / "cache" / "verify"
EQUIVALENTS = variants.FOLDER / "equivalents"
MIN_MISTAKES, MIN_CAUGHT = 3, 0.95
MIN_LEFT = 0.2  # of the points, where the visible check passes a mistake: nobody who sees that may get next to nothing
LOOKS_AT_LITTLE = {"Mended"}  # to find the fault is the exercise, and its check says that it looks at shapes alone
CHECK = "visible check of "  # the cell of a report in which that of an exercise ran
# Where the whole course is judged: so many mutants of an exercise, and only its first mistake is held against the tests
# of the other exercises, too. More says little more, in minutes that add up.
MUTANTS = 16
MUTANT_CPU_SECONDS = 2.0  # less than a student has: many mutants may loop
CASES_WORTH_A_PROCESS = 25  # a grader takes some seconds to start
WORKERS = min(4, os.cpu_count() or 1)


class HiddenTest(msgspec.Struct, frozen=True):
    """A hidden test as its source shows it."""

    name: str
    exercise: str  # "" if it names none
    weight: float
    hint: str


class Equivalent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mutant that no test should catch, and why."""

    exercise: str
    before: str
    after: str
    because: str
    occurrence: int = 1


class Chapter(msgspec.Struct, frozen=True):
    """All that the gates look at."""

    assignment: Assignment
    tests: str  # the source of its hidden tests
    mistakes: tuple[Variant, ...]
    alternatives: tuple[Variant, ...]
    equivalents: tuple[Equivalent, ...]


class Case(msgspec.Struct, frozen=True):
    """One answer to the chapter that is to be judged."""

    kind: Literal["starter", "reference", "alternative", "mistake", "mutant"]
    answers: tuple[tuple[str, str], ...]  # (exercise, source)
    exercise: str = ""  # the one whose answer is not the reference's
    change: Variant | Mutant | None = None
    whole: bool = True  # whether the tests of the other exercises run too

    @property
    def exercises(self) -> list[str]:
        """Whose tests run."""
        return [exercise for exercise, _ in self.answers if self.whole or exercise == self.exercise]


class Row(msgspec.Struct):
    """The counts of one exercise."""

    exercise: str
    tests: int
    alternatives: int
    mistakes: int
    mutants: int = 0  # without those that are known to be equivalent
    caught: int = 0
    by_assertion: int = 0
    equivalent: int = 0
    left_out: int = 0  # mutants that were not judged


class Verdict(msgspec.Struct, frozen=True):
    """What the gates say of a chapter. Each problem is a sentence for its author; without any, the chapter passes."""

    chapter: str
    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    survivors: tuple[Case, ...] = ()


def main(names: Sequence[str] | None = None, *, afresh: bool = False) -> int:
    """Print what the gates say of these chapters (of all, by default); return 0 if all pass, else 1.

    `afresh` forgets what was judged before. Of all chapters only a part is judged, unless afresh: see MUTANTS.
    Raises UnknownAssignment with a sentence.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    passed = True
    if names is None:
        for problem in strays():
            console.print(f"[red]✗[/red] {escape(problem)}", soft_wrap=True)
            passed = False
    chapters = assignments.names() if names is None else list(names)
    most = MUTANTS if names is None and not afresh else 0
    for name, found in zip(chapters, _verdicts(chapters, afresh, most), strict=True):
        with console.status(f"judging the answers to {name}"):
            verdict = found()
        _print(verdict, console)
        passed = passed and not verdict.problems
    return 0 if passed else 1


def _verdicts(names: Sequence[str], afresh: bool, most: int) -> Iterator[Callable[[], Verdict]]:
    """What waits for each chapter's verdict. Several chapters are judged at the same time, each by one process."""
    if len(names) < 2 or WORKERS < 2:
        yield from (partial(verify, name, afresh=afresh, most=most) for name in names)
        return
    _one_thread_each()
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        yield from [pool.submit(verify, name, afresh=afresh, workers=1, most=most).result for name in names]


def verify(name: str, *, afresh: bool = False, workers: int = 0, most: int = 0) -> Verdict:
    """Judge one chapter by all gates, in `workers` processes (by default WORKERS) or, with 1, in this one.

    most: judge only so many mutants of an exercise, always the same ones, and most mistakes by the tests of their own
    exercise alone; 0 means everything.

    Nothing is judged while its files cannot be read or do not fit together. Raises UnknownAssignment with a sentence.
    """
    try:
        chapter = load(name)
        problems = form_problems(chapter)
    except ValueError as error:  # a sentence of ours
        return Verdict(name, (), (str(error),))
    except (SyntaxError, OSError) as error:
        return Verdict(name, (), (f"A file of this chapter cannot be read: {error}.",))
    if problems:
        return Verdict(name, (), tuple(problems))
    every = list(cases(chapter, most))
    reports = _reports(chapter, every, afresh, workers or WORKERS)
    return judge(chapter, list(zip(every, reports, strict=True)))


def load(name: str) -> Chapter:
    assignment = assignments.load(name)
    return Chapter(
        assignment,
        assignment.tests.read_text(),
        variants.mistakes(name),
        variants.alternatives(name),
        equivalents(name),
    )


def equivalents(name: str) -> tuple[Equivalent, ...]:
    """The mutants of a chapter that change nothing tests should see. Raises ValueError for another file."""
    path = EQUIVALENTS / f"{name}.toml"
    if not path.exists():
        return ()
    try:
        tables = tomllib.loads(path.read_text())
        return tuple(
            msgspec.convert({"exercise": exercise, **entry}, Equivalent)
            for exercise, entries in tables.items()
            for entry in entries
        )
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, TypeError) as error:
        raise ValueError(f"{path.name}: an entry is [[exercise]] with before, after and because ({error}).") from None


# -- do the files fit together? -------------------------------------------------------------------------------------


def strays() -> Iterator[str]:
    """Files of chapters that are not whole: a source without hidden tests, what belongs to no source, or a page that no
    reader finds."""
    root = assignments.SOLUTIONS.parent
    solutions = {path.stem for path in assignments.SOLUTIONS.glob("*.py")}
    taught = {source.stem for source in Course(root).sources}
    for name in sorted(taught - set(assignments.names())):
        yield f"solutions/{name}.py has no hidden tests: write autograder/tests/test_{name.replace('-', '_')}.py."
    expected = {f"test_{name.replace('-', '_')}" for name in solutions}
    beside = {folder: variants.FOLDER / folder for folder in ("mistakes", "alternatives", "equivalents")}
    found = [(f"tests/{path.name}", path.stem in expected) for path in assignments.TESTS.glob("test_*.py")]
    found += [(f"{name}/{path.name}", path.stem in solutions) for name, at in beside.items() for path in at.glob("*.*")]
    yield from (f"autograder/{name} belongs to no file in solutions/." for name, known in sorted(found) if not known)
    for path in sorted((root / "notebooks").glob("*/*.ipynb")):
        if path.stem not in solutions:
            yield f"notebooks/{path.parent.name}/{path.name} belongs to no file in solutions/: delete it."
    contents = root / "_toc.yml"
    listed = contents.read_text(encoding="utf-8") if contents.exists() else ""
    for page in sorted((root / "book").glob("[0-9][0-9]-*.md")):
        if not re.search(rf"^ *- file: book/{re.escape(page.stem)}$", listed, re.MULTILINE):
            yield f"book/{page.name} is not in _toc.yml, so no reader finds it."


def hidden_tests(source: str) -> list[HiddenTest]:
    """The tests in a file of hidden tests."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            exercise, weight = "", 1.0
            for decorator in node.decorator_list:
                match decorator:
                    case ast.Call(
                        func=ast.Attribute(attr="exercise"), args=[ast.Constant(value=str(exercise))], keywords=keywords
                    ):
                        weight = next(
                            (float(ast.literal_eval(keyword.value)) for keyword in keywords if keyword.arg == "weight"),
                            1.0,
                        )
            found.append(HiddenTest(node.name, exercise, weight, ast.get_docstring(node, clean=False) or ""))
    return found


def form_problems(chapter: Chapter) -> list[str]:
    """What can be seen without running anything."""
    exercises = list(chapter.assignment.points)
    tests = hidden_tests(chapter.tests)
    return [
        *_test_problems(tests, chapter.tests, exercises),
        *_mistake_problems(chapter.mistakes, tests, exercises),
        *_alternative_problems(chapter.alternatives, exercises),
        *_equivalent_problems(chapter.equivalents, exercises),
        *_table_problems(chapter.assignment),
    ]


def _table_problems(assignment: Assignment) -> Iterator[str]:
    """A prompt that has the table of exercises has each of them, with its points."""
    prompts = "\n".join(cell.source for cell in assignment.cells if cell.kind == "markdown")
    rows = dict(re.findall(r"^\| *`(\w+)`.*\| *([\d.]+) *\|$", prompts, re.MULTILINE))
    for exercise, points in assignment.points.items() if set(rows) & set(assignment.points) else ():
        if exercise not in rows:
            yield f"{exercise} is missing from the table at the beginning of {assignment.name}."
        elif float(rows[exercise]) != points:
            yield f"{exercise} counts {points:g} points, and the table of {assignment.name} says {rows[exercise]}."


def _test_problems(tests: Sequence[HiddenTest], source: str, exercises: Sequence[str]) -> Iterator[str]:
    for exercise in exercises:
        if not any(test.exercise == exercise for test in tests):
            yield f'{exercise} has no hidden test: write one and mark it @pytest.mark.exercise("{exercise}").'
    for name, count in Counter(test.name for test in tests).items():
        if count > 1:
            yield f"{name} is defined {count} times, so that only the last one runs: rename the others."
    for test in tests:
        if test.exercise not in exercises:
            yield f"{test.name} is for the exercise {test.exercise!r}, and the chapter has {', '.join(exercises)}."
        if test.weight <= 0:
            yield f"{test.name} has the weight {test.weight:g}: a test counts for something."
        if not test.hint.strip() or "\n" in test.hint:
            yield f"{test.name} needs a docstring of one line: the hint that a student reads when it fails."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and node.msg is None:
            yield f"The assert in line {node.lineno} of the hidden tests has no message: say what is wrong."


def _mistake_problems(
    mistakes: Sequence[Variant], tests: Sequence[HiddenTest], exercises: Sequence[str]
) -> Iterator[str]:
    for exercise in exercises:
        count = sum(mistake.exercise == exercise for mistake in mistakes)
        if count < MIN_MISTAKES:
            yield f"{exercise} has {count} mistakes in mistakes/, and at least {MIN_MISTAKES} are wanted."
    for mistake in mistakes:
        label = f"The mistake “{mistake.exercise}: {mistake.title}”"
        if mistake.exercise not in exercises:
            yield f"{label} is for an exercise that is not there."
            continue
        if not mistake.says:
            yield f"{label} has no line `# says: …` with what its author is told."
        if not mistake.caught_by:
            yield f"{label} has no line `# caught by: …` with the tests that must fail."
        own = {test.name for test in tests if test.exercise == mistake.exercise}
        for name in mistake.caught_by:
            if name not in own:
                yield f"{label} names {name}, and {mistake.exercise} has no such test."


def _alternative_problems(alternatives: Sequence[Variant], exercises: Sequence[str]) -> Iterator[str]:
    for exercise in exercises:
        if not any(alternative.exercise == exercise for alternative in alternatives):
            yield f"{exercise} has nothing in alternatives/: write a right answer that looks different."
    for alternative in alternatives:
        if alternative.exercise not in exercises:
            yield f"The alternative “{alternative.exercise}: {alternative.title}” is for an exercise that is not there."


def _equivalent_problems(equivalents: Sequence[Equivalent], exercises: Sequence[str]) -> Iterator[str]:
    for entry in equivalents:
        if entry.exercise not in exercises:
            yield f"equivalents: there is no exercise {entry.exercise!r}."
        if not entry.because.strip():
            yield f"equivalents: “{entry.after}” has no reason: say why no test should catch it."


# -- what is judged, and how ----------------------------------------------------------------------------------------


def starter(source: str) -> str:
    """A solution cell as students get it: the stub in the place of each answer."""
    return re.sub(
        r"^([ \t]*)### BEGIN SOLUTION.*?### END SOLUTION", rf"\1{STUB}", source, flags=re.MULTILINE | re.DOTALL
    )


def cases(chapter: Chapter, most: int = 0) -> Iterator[Case]:
    """Everything that the gates run. most: so many mutants of an exercise, and one mistake on all tests; 0: all."""
    reference = chapter.assignment.reference

    def answers(exercise: str, source: str) -> tuple[tuple[str, str], ...]:
        return tuple({**reference, exercise: source}.items())

    yield Case("starter", tuple((exercise, starter(source)) for exercise, source in reference.items()))
    yield Case("reference", tuple(reference.items()))
    for variant in chapter.alternatives:
        yield Case("alternative", answers(variant.exercise, variant.source), variant.exercise, variant)
    seen: set[str] = set()
    for variant in chapter.mistakes:
        whole = not most or variant.exercise not in seen
        seen.add(variant.exercise)
        yield Case("mistake", answers(variant.exercise, variant.source), variant.exercise, variant, whole)
    for exercise, source in reference.items():
        for mutant in _drawn(mutants(source), most):
            yield Case("mutant", answers(exercise, mutant.source), exercise, mutant, whole=False)


def _drawn(every: Sequence[Mutant], most: int) -> Sequence[Mutant]:
    """At most so many, drawn by their hashes: a new line in the answer leaves most of the draw as it was."""
    if not most or len(every) <= most:
        return every
    kept = sorted(every, key=lambda mutant: hashlib.sha256(f"{mutant.after}{mutant.line}".encode()).digest())[:most]
    return sorted(kept, key=lambda mutant: (mutant.line, mutant.after))


def _reports(chapter: Chapter, every: Sequence[Case], afresh: bool, workers: int) -> list[Report]:
    """A report for each case: from the cache, or from graders in processes of their own."""
    name = chapter.assignment.name
    path = CACHE / f"{name}.json"
    known = {} if afresh else _read(path)
    keys = [_key(case, chapter) for case in every]
    pending = {key: case for key, case in zip(keys, every, strict=True) if key not in known}
    count = max(1, min(workers, len(pending) // CASES_WORTH_A_PROCESS))
    shares = _shares(pending, count)
    if pending:
        _one_thread_each()
        work = [name] * count, [[case for _, case in share] for share in shares]
        if workers == 1:
            judged = list(map(_grade, *work))
        else:
            with ProcessPoolExecutor(count, get_context("spawn")) as pool:
                judged = list(pool.map(_grade, *work))
        for share, reports in zip(shares, judged, strict=True):
            known |= {key: report for (key, _), report in zip(share, reports, strict=True)}
        _write(path, {key: known[key] for key in keys})
    return [known[key] for key in keys]


def _one_thread_each() -> None:
    """Said before torch is imported, or forked workers could hang."""
    os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


def _shares(pending: Mapping[str, Case], count: int) -> list[list[tuple[str, Case]]]:
    """Fair shares of the work. To name a mistake a grader learns all of its exercise, so these stay together."""
    mistakes = [(key, case) for key, case in pending.items() if case.kind == "mistake"]
    others = [(key, case) for key, case in pending.items() if case.kind != "mistake"]
    size = -(-len(mistakes) // count)
    return [mistakes[i * size : (i + 1) * size] + others[i::count] for i in range(count)]


def _grade(name: str, share: Sequence[Case]) -> list[Report]:
    from autograder import submission as submissions  # these import torch, which the cached way does without
    from autograder.grading import Grader
    from autograder.sandbox.jail import Jail, Limits

    assignment = assignments.load(name)
    ordinary, short = Limits(), Limits(cpu_seconds=MUTANT_CPU_SECONDS)
    reference = submissions.from_sources("reference", assignment, list(assignment.reference.items()))
    reports: list[Report] = []
    with Jail(ordinary) as jail, Grader(assignment, jail) as grader:
        for mutated, group in itertools.groupby(share, lambda case: case.exercise if case.kind == "mutant" else ""):
            one_by_one = list(group)
            answers = [submissions.from_sources(case.kind, assignment, case.answers) for case in one_by_one]
            if mutated:
                jail.limits = short
                *found, last = grader.grade_in_turn([*answers, reference], mutated)
                if all(test.passed for result in last.exercises for test in result.tests):
                    reports += found
                    continue  # else one of them left something behind: each has a worker of its own
            else:
                jail.limits = ordinary
            found = [
                grader.grade(answer, case.exercises, first_failure=bool(mutated))
                for case, answer in zip(one_by_one, answers, strict=True)
            ]
            if not mutated:
                checked = _checked(jail, assignment, one_by_one)
                found = [
                    msgspec.structs.replace(report, cells=(*report.cells, *runs))
                    for report, runs in zip(found, checked, strict=True)
                ]
            reports += found
    return reports


def _checked(jail: Any, assignment: Assignment, every: Sequence[Case]) -> Iterator[list[CellRun]]:
    """For each answer, how the visible checks ran: of the exercise that was changed, or of all. Nothing is reserved."""
    from autograder.student import Student

    before: Student | None = None
    try:
        for case in every:
            chosen = [case.exercise] if case.exercise else list(assignment.points)
            cells = [("set-up", "", assignment.set_up), *((name, name, source) for name, source in case.answers)]
            cells += [(CHECK + name, name, assignment.checks[name]) for name in chosen if case.kind != "starter"]
            student = Student(jail, cells, {}, ())
            if before is not None:
                student._adopt(before)
            before = student
            runs = student._cell_runs()
            yield [CellRun(run.cell, run.exercise, run.error) for run in runs if run.cell.startswith(CHECK)]
    finally:
        if before is not None:
            before._close()


def _key(case: Case, chapter: Chapter) -> str:
    """A hash of all that a report depends on."""
    shas = [chapter.assignment.tests_sha[exercise] for exercise in case.exercises]
    known = [mistake.source for mistake in chapter.mistakes] if case.kind == "mistake" else []
    known += chapter.assignment.checks.values() if case.kind != "mutant" else []
    return hashlib.sha256(
        repr((case.kind, case.answers, shas, known, assignments.environment_sha())).encode()
    ).hexdigest()


def _read(path: Path) -> dict[str, Report]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Report])
    except (OSError, msgspec.MsgspecError):
        return {}


def _write(path: Path, reports: Mapping[str, Report]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_bytes(msgspec.json.encode(reports))
    new.replace(path)


# -- the gates ------------------------------------------------------------------------------------------------------


def judge(chapter: Chapter, judged: Sequence[tuple[Case, Report]]) -> Verdict:
    """What the reports mean."""
    tests = Counter(test.exercise for test in hidden_tests(chapter.tests))
    alternatives = Counter(variant.exercise for variant in chapter.alternatives)
    mistakes = Counter(variant.exercise for variant in chapter.mistakes)
    rows = {name: Row(name, tests[name], alternatives[name], mistakes[name]) for name in chapter.assignment.points}
    problems: list[str] = []
    survivors: list[Case] = []
    unmatched = {(e.exercise, e.before, e.after, e.occurrence): e for e in chapter.equivalents}
    judged_ones = {(case.exercise, case.change.source) for case, _ in judged if isinstance(case.change, Mutant)}
    for exercise, source in chapter.assignment.reference.items():
        for mutant in mutants(source):
            if (exercise, mutant.source) not in judged_ones:
                rows[exercise].left_out += 1
                unmatched.pop((exercise, mutant.before, mutant.after, mutant.occurrence), None)
    for case, report in judged:
        problems += _crashes(case, report)
        match case.kind, case.change:
            case "starter", _:
                problems += _starter_problems(report)
            case "reference" | "alternative", _:
                problems += _right_answer_problems(case, report)
            case "mistake", Variant() as mistake:
                problems += _wrong_answer_problems(mistake, report)
            case "mutant", Mutant() as mutant:
                row, caught = rows[case.exercise], _caught(report)
                if unmatched.pop((case.exercise, mutant.before, mutant.after, mutant.occurrence), None):
                    row.equivalent += 1
                    if caught:
                        problems.append(
                            f"{_named(case)} is listed as equivalent, and {caught.name} catches it: "
                            "take it off the list, or mend the test."
                        )
                    continue
                row.mutants += 1
                row.caught += bool(caught)
                row.by_assertion += bool(caught and caught.outcome is Outcome.FAILED)
                if not caught:
                    survivors.append(case)
    for row in rows.values():
        if row.caught < MIN_CAUGHT * row.mutants:
            problems.append(
                f"{row.exercise}: {row.mutants - row.caught} of {row.mutants} mutants pass all tests. Write tests that "
                f"catch them, or list each in equivalents/{chapter.assignment.name}.toml and say why none should."
            )
    for gone in unmatched.values():
        problems.append(
            f"equivalents: {gone.exercise} has no mutant “{gone.before}” → “{gone.after}” any more: remove the entry."
        )
    return Verdict(chapter.assignment.name, tuple(rows.values()), tuple(problems), tuple(survivors))


def _tests(report: Report) -> list[TestResult]:
    return [test for exercise in report.exercises for test in exercise.tests]


def _caught(report: Report) -> TestResult | None:
    return next((test for test in _tests(report) if not test.passed), None)


def _crashes(case: Case, report: Report) -> Iterator[str]:
    for test in _tests(report):
        if test.outcome is Outcome.CRASHED:
            yield (
                f"{_named(case)} makes {test.name} itself raise {test.message}: no answer should, "
                "so let it check type and shape first."
            )


def _starter_problems(report: Report) -> Iterator[str]:
    for test in _tests(report):
        if test.outcome is not Outcome.UNFINISHED:
            yield (
                f"The starter: {_ending(test)}, and should be “{Outcome.UNFINISHED}”: "
                "does the test call the student's code first?"
            )


def _right_answer_problems(case: Case, report: Report) -> Iterator[str]:
    for test in _tests(report):
        if not test.passed:
            yield f"{_named(case)} should have full marks, and {_ending(test)}."
    for run in report.cells:
        if run.cell.startswith(CHECK) and run.error:
            yield f"{_named(case)} should pass the {run.cell}: {run.error}"


def _wrong_answer_problems(mistake: Variant, report: Report) -> Iterator[str]:
    label = f"The mistake “{mistake.exercise}: {mistake.title}”"
    own = [test for result in report.exercises if result.exercise == mistake.exercise for test in result.tests]
    for name in mistake.caught_by:
        runs = [test for test in own if test.name.partition("[")[0] == name]
        if not any(test.outcome is Outcome.FAILED for test in runs):
            yield f"{label} should fail by an assertion, and {_ending(runs[0])}."
    told = {test.mistake for test in own if test.mistake}
    if mistake.says not in told:
        instead = f"is told “{min(told)}” instead of its own sentence" if told else "is never told its sentence"
        yield (
            f"{label} {instead}: in each test that catches it, it answers as another mistake does. "
            "Name a test that tells them apart, or merge the two."
        )
    passes = any(run.cell.startswith(CHECK) and not run.error for run in report.cells)
    for result in report.exercises:
        if result.exercise == mistake.exercise:
            if passes and result.points < MIN_LEFT * result.max_points and result.exercise not in LOOKS_AT_LITTLE:
                yield (
                    f"{label} passes the visible check and gets {result.points:.2f} of {result.max_points:g} points: "
                    "let the check notice it, or the tests take less."
                )
        else:
            for test in result.tests:
                if not test.passed:
                    yield f"{label} costs {result.exercise} points: {_ending(test)}."


def _ending(test: TestResult) -> str:
    return f"{test.name} ends as “{test.outcome}”" + (f" ({test.message})" if test.message else "")


def _named(case: Case) -> str:
    match case.change:
        case Variant(exercise=exercise, title=title):
            return f"The {case.kind} “{exercise}: {title}”"
        case Mutant(before=before, after=after):
            return f"The mutant of {case.exercise} “{before}” → “{after}”"
    return f"The {case.kind}"


# -- in words -------------------------------------------------------------------------------------------------------


def _print(verdict: Verdict, console: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=verdict.chapter, title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("exercise")
    for column in ("tests", "alternatives", "mistakes", "mutants caught", "by an assertion", "equivalent"):
        table.add_column(column, justify="right")
    for row in verdict.rows:
        share = f"{row.caught} of {row.mutants}, {row.caught / max(1, row.mutants):.0%}"
        share += f" ({row.left_out} left out)" if row.left_out else ""
        table.add_row(
            row.exercise,
            str(row.tests),
            str(row.alternatives),
            str(row.mistakes),
            share,
            str(row.by_assertion),
            str(row.equivalent),
        )
    if verdict.rows:
        console.print(table)
    for case in verdict.survivors:
        if isinstance(case.change, Mutant):
            again = f" (place {case.change.occurrence})" if case.change.occurrence > 1 else ""
            console.print(
                f"\n{case.exercise}, line {case.change.line}{again}: this mutant passes all tests", soft_wrap=True
            )
            for sign, colour, lines in (("-", "red", case.change.before), ("+", "green", case.change.after)):
                for line in lines.splitlines():
                    console.print(f"  [{colour}]{sign} {escape(line)}[/{colour}]", soft_wrap=True)
    for problem in verdict.problems:
        console.print(f"[red]✗[/red] {escape(problem)}", soft_wrap=True)
    if not verdict.problems:
        console.print(f"[green]✓[/green] {verdict.chapter} passes all gates.")
