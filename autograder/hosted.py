"""Where a platform grades: one submission in its place there, told in the platform's own form.

    python -m autograder.hosted gradescope ASSIGNMENT VISIBILITY      in Gradescope's container, as root
    python -m autograder.hosted github ASSIGNMENT FOLDER SUMMARY      on GitHub's runner

`autograder package` writes what calls these. Whose submission it is nobody asks, and nothing here says.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autograder import assignment as assignments
from autograder import feedback, submission
from autograder.assignment import Assignment
from autograder.grading import Graders, Task
from autograder.report import ExerciseResult, Report, clean
from autograder.sandbox.container import Container
from autograder.sandbox.jail import Jail, Limits
from autograder.submission import Found

AUTOGRADER = Path("/autograder")  # as Gradescope lays it out
LIMITS = Limits(total_seconds=240)  # Gradescope ends a run after ten minutes and says nothing of it
NOT_GRADED = "This could not be graded, which is not your doing, and 0 is no mark. Please tell your instructor."
STOPPED = "Grading was stopped before its end, and 0 is no mark. Hand in once more, or tell your instructor."


def notebook_in(folder: Path, name: str) -> tuple[Path | None, str]:
    """The notebook that somebody handed in, or None and a sentence that says what to hand in.

    One that is called after the assignment goes before all others.
    """
    found, _ = submission.find([folder])
    named = [item.path for item in found if item.path.name == f"{name}.ipynb"]
    candidates = named or [item.path for item in found]
    if len(candidates) == 1:
        return candidates[0], ""
    if not candidates:
        return None, f"No notebook was handed in: hand in {name}.ipynb."
    listed = " and ".join(clean(str(path.relative_to(folder)), 60) for path in candidates[:2])
    more = f", and {len(candidates) - 2} more" if len(candidates) > 2 else ""
    return None, f"There are {len(candidates)} notebooks, {listed}{more}: hand in one of them, called {name}.ipynb."


def grade(folder: Path, assignment: Assignment, graders: Graders) -> Report:
    """The report of what was handed in; what cannot be read gets no points and a sentence.

    Raises JailError when submissions cannot be locked in here.
    """
    path, why = notebook_in(folder, assignment.name)
    if path:
        file = submission.read(Found("submission", assignment.name, path), assignment)
        if not file.unreadable:
            return graders.run(Task(file, tuple(assignment.points)))
        why = file.notices[0]
    nothing = tuple(ExerciseResult(name, points, ()) for name, points in assignment.points.items())
    return Report("submission", assignment.name, hashlib.sha256().hexdigest(), nothing, (clean(why),))


def troubles(report: Report) -> list[str]:
    """What there is to say that belongs to no exercise, a line each."""
    raised = [f"{run.cell}: {run.error}" for run in report.cells if run.error]
    return [" ".join(text.split()) for text in (*report.notices, *raised)]


def results(report: Report, visibility: str, seconds: float) -> dict[str, Any]:
    """A report as Gradescope's results.json. Every text is plain: Gradescope renders none of it."""
    tests = [
        {
            "name": result.exercise,
            "score": result.points,
            "max_score": result.max_points,
            "status": "passed" if result.points == result.max_points else "failed",
            "output": feedback.plain(result),
        }
        for result in report.exercises
    ]
    return {"score": report.points, "tests": tests} | _frame("\n".join(troubles(report)), visibility, seconds)


def _frame(output: str, visibility: str, seconds: float) -> dict[str, Any]:
    return {
        "execution_time": round(seconds),
        "output": output,
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": visibility,
        "stdout_visibility": "hidden",
    }


def gradescope(name: str, visibility: str, place: Path = AUTOGRADER) -> None:
    """Grade what lies in Gradescope's folder of submissions, and write results.json, whatever happens."""
    started = time.monotonic()
    _write(place, {"score": 0, "tests": []} | _frame(STOPPED, "visible", 0))
    hidden = [place / part for part in ("source", "submission", "results", "submission_metadata.json")]
    graders = Graders(LIMITS, lambda limits: Container(limits, hidden))
    try:
        report = grade(place / "submission", assignments.load(name), graders)
        _write(place, results(report, visibility, time.monotonic() - started))
        print(f"{report.points:g} of {report.max_points:g} points in {time.monotonic() - started:.0f} s")
    except Exception as error:  # Gradescope's page for instructors shows what is printed, and to nobody else
        print(f"Nothing was graded: {type(error).__name__}: {clean(str(error))}")
        _write(place, {"score": 0, "tests": []} | _frame(NOT_GRADED, "visible", time.monotonic() - started))
    finally:
        graders.close()


def _write(place: Path, told: dict[str, Any]) -> None:
    path = place / "results" / "results.json"
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(told), encoding="utf-8")
    partial.replace(path)


def github(name: str, folder: Path, summary: Path) -> int:
    """Grade a repository's notebook, write the job's summary, and return the exit code: 0 for full points.

    What a student's code had a say in goes into the summary alone: in the log, a line can be a command to the runner.
    """
    graders = Graders(LIMITS, Jail)
    try:
        report = grade(folder, assignments.load(name), graders)
    except Exception as error:
        _append(summary, [NOT_GRADED])
        print(f"Nothing was graded: {type(error).__name__}: {' '.join(clean(str(error)).split())}")
        return 2
    finally:
        graders.close()
    said = [f"- `{text.replace('`', chr(39))}`" for text in troubles(report)]
    parts = [f"### {result.exercise}\n\n{feedback.comment(result)}" for result in report.exercises]
    _append(summary, [f"## {report.points:g} of {report.max_points:g} points", "\n".join(said), *parts])
    print(f"::notice title=Autograding complete::Points {report.points:g}/{report.max_points:g}")
    return 0 if report.points == report.max_points else 1


def _append(path: Path, parts: Sequence[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n\n".join(filter(None, parts)) + "\n")


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["gradescope", name, visibility]:
            gradescope(name, visibility)
            return 0
        case ["github", name, folder, summary]:
            return github(name, Path(folder), Path(summary))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
