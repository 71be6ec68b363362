"""The whole story of one mark, for staff: what was handed in, what ran, what failed, and how the mark came about."""

from __future__ import annotations

import ast
import hashlib
import textwrap
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from autograder import assignment as assignments
from autograder.assignment import UnknownAssignment, environment_sha
from autograder.feedback import number
from autograder.report import CellRun, ExerciseResult, TestResult, clean
from autograder.results import File, Results, Verdict

if TYPE_CHECKING:  # nbgrader, which takes two seconds
    from autograder.gradebook import Held

WIDTH = 80
Section = tuple[str, list[str]]  # a heading, and lines that are indented as they are meant


def tell(
    results: Results, student: str, assignment: str, exercise: str, held: Held | None = None, tests: bool = False
) -> Iterator[Section]:
    """The sections of the story. `held` is what the gradebook holds; with `tests`, the hidden tests are part of it."""
    verdict = results.standing(student, assignment)[exercise]
    history = results.history(student, assignment, exercise)
    notices, cells = results.ran(verdict.run)
    yield "The file", list(_file(results, student, assignment))
    yield "How it was graded", list(_graded(results, verdict, assignment))
    yield "What ran", list(_ran(cells, exercise))
    told = [line for test in verdict.result.tests for line in _test(test)]
    yield "What the hidden tests say", told or ["Nothing: none of them ran."]
    yield "The points", _arithmetic(verdict.result)
    yield "What the grader noticed about the file", [f"- {notice}" for notice in notices] or ["Nothing."]
    yield "Every verdict on this exercise so far", list(_moves(history, verdict))
    if held:
        yield "The gradebook", _held(held, verdict.result)
    if tests:
        yield "The hidden tests", list(_source(verdict, assignment))


def wrapped(line: str) -> str:
    """A line within the width, its continuations below its text. What a terminal could act on is taken out."""
    text = clean(line.expandtabs(4), len(line) + 1).replace("\n", " ")
    inside = text.lstrip(" ")
    indent = len(text) - len(text.lstrip(" -✓✗·"))
    return textwrap.fill(
        inside,
        WIDTH,
        initial_indent=" " * (len(text) - len(inside)),
        subsequent_indent=" " * min(indent, WIDTH // 2),
        replace_whitespace=False,
        break_on_hyphens=False,
        break_long_words=False,  # a path that is too long for a line can still be copied
    )


def moment(seconds: float) -> str:
    return time.strftime("%a %d %b %Y, %H:%M:%S %Z", time.localtime(seconds))


def _file(results: Results, student: str, assignment: str) -> Iterator[str]:
    latest, *earlier = results.files(student, assignment)
    yield from _one_file(latest)
    others = [other for other in results.same_file(latest.sha, assignment) if other != student]
    if others:
        yield f"The very same file was handed in by {', '.join(others)}."
    for file in earlier:
        yield f"Earlier, {student} had handed in another one:"
        yield from _one_file(file)


def _one_file(file: File) -> Iterator[str]:
    yield f"{file.path}"
    yield f"  sha256 {file.sha}"
    yield f"  seen first {moment(file.first_seen_at)}, last {moment(file.seen_at)}"
    yield f"  {_there(file)}"


def _there(file: File) -> str:
    try:
        if file.path.is_symlink() or not file.path.is_file():
            return "It is not there any more."
        with file.path.open("rb") as opened:
            same = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha
    except OSError as error:
        return f"It cannot be read now ({error.strerror})."
    return "It is still there, unchanged." if same else "Another file is there now."


def _graded(results: Results, verdict: Verdict, assignment: str) -> Iterator[str]:
    today = verdict.tests_sha == _tests_sha(assignment, verdict.result.exercise)
    here = verdict.environment_sha == environment_sha()
    says = results.environment(verdict.environment_sha)
    yield f"{moment(verdict.graded_at)}" + (f", attempt {verdict.attempt}" if verdict.attempt > 1 else "")
    if (took := results.took(verdict.run)) and verdict.result.exercise in took:
        yield f"It took {took[verdict.result.exercise]:.2f} s, and all cells before it {took.get('', 0):.2f} s."
    yield f"Tests {verdict.tests_sha[:12]}: " + ("today's" if today else "they have changed since, or are gone")
    yield (
        f"Environment {verdict.environment_sha[:12]}{f' ({says})' if says else ''}: "
        + ("this one" if here else "the grader, Python or torch was another than here today")
    )


def _tests_sha(assignment: str, exercise: str) -> str:
    try:
        return assignments.load(assignment).tests_sha.get(exercise, "")
    except UnknownAssignment:
        return ""


def _ran(cells: tuple[CellRun, ...], exercise: str) -> Iterator[str]:
    """The cells of the exercise and those that the student added, whole; of the others what went wrong."""
    if not cells:
        yield "Nothing: the file has no cell that counts, or the verdict is from before the code was kept."
    elif not any(cell.exercise == exercise for cell in cells):
        yield f"No cell of the file answers {exercise}."
    for cell in cells:
        if cell.exercise not in ("", exercise):
            yield f"· {cell.cell}, for another exercise" + (f": {cell.error}" if cell.error else "")
            continue
        yield f"· {cell.cell}" + ("" if cell.exercise else ", which the student added")
        yield from (f"    {line}" for line in cell.source.splitlines() or ["(its code was not kept)"])
        if cell.output:
            yield "  It printed:"
            yield from (f"    {line}" for line in cell.output.splitlines())
        if cell.error:
            yield f"  It failed: {cell.error}"


def _test(test: TestResult) -> Iterator[str]:
    case = test.name.partition("[")[2].removesuffix("]")
    told = "" if test.passed else f": {test.outcome.value}"
    yield f"{'✓' if test.passed else '✗'} {test.claim}{f' [{case}]' if case else ''} (weight {_weight(test)}){told}"
    if not test.passed:
        yield from (f"    {line}" for line in test.message.splitlines())
        if test.hint:
            yield f"    The student reads: {test.hint}"
        if test.mistake:
            yield f"    It answers as a known mistake does: {test.mistake}"


def _weight(test: TestResult) -> str:
    return f"{test.weight:.3g}"


def _arithmetic(result: ExerciseResult) -> list[str]:
    total = sum(test.weight for test in result.tests)
    passed = sum(test.weight for test in result.tests if test.passed)
    if not total:
        return [f"Nothing was tested: {number(result.points)} of {number(result.max_points)}."]
    count = sum(test.passed for test in result.tests)
    return [
        f"{count} of {len(result.tests)} tests pass; they weigh {passed:.3g} of {total:.3g}.",
        f"{number(result.max_points)} points × {passed:.3g} / {total:.3g} = {number(result.points)}",
    ]


def _moves(history: list[Verdict], standing: Verdict) -> Iterator[str]:
    before: Verdict | None = None
    files = {verdict.sha for verdict in history}
    for verdict in history:
        points, why = verdict.result.points, "the first"
        if before:
            change = points - before.result.points
            why = verdict.why_not(before) + (f": {change:+.3g}" if change else ": the same mark")
        counts = ", which counts" if verdict.id == standing.id else ""
        file = f" for file {verdict.sha[:8]}" if len(files) > 1 else ""
        yield f"- {moment(verdict.graded_at)}: {number(points)} points{file} ({why}){counts}"
        before = verdict


def _held(held: Held, result: ExerciseResult) -> list[str]:
    tests = "none yet" if held.auto is None else number(held.auto)
    lines = [
        f"The tests' mark there: {tests}" + ("" if held.auto == result.points else f" (now {number(result.points)})")
    ]
    if held.manual is not None:
        lines.append(f"A person gave {number(held.manual)}, and that is what counts.")
    return lines


def _source(verdict: Verdict, assignment: str) -> Iterator[str]:
    if verdict.tests_sha != _tests_sha(assignment, verdict.result.exercise):
        yield "They have changed since this verdict, so today's would explain nothing. The repository has the old ones."
        return
    path = assignments.load(assignment).tests
    ran = {test.name.partition("[")[0] for test in verdict.result.tests}
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in ran:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield from text.splitlines()[first - 1 : node.end_lineno]
            yield ""
