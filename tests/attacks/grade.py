"""Grade one folder of a copied course, as `autograder grade` would: `python grade.py COURSE FOLDER` writes FOLDER.json.

It runs in a process of its own, so that the copy's hidden tests and solutions, with their canaries, are the ones that
are used. Its grader processes import this file too, and note how long each submission took.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from autograder import grading, submission
from autograder.assignment import COURSE
from autograder.grading import Graders, Task
from autograder.report import Report
from autograder.results import Results
from autograder.sandbox.jail import Limits

LIMITS = Limits(
    cpu_seconds=1.2, wall_seconds=3, total_seconds=7, lost_workers=2, memory=300 << 20, disk=4 << 20, threads=16
)
WORKERS = 2 if os.access("/dev/shm", os.W_OK) else 1  # processes that share work need semaphores, and these live there
MEMORY = f"every grader remembers {os.environ['CANARY']}"

grade = Graders.run


def timed(self: Graders, task: Task) -> Report:
    started = time.monotonic()
    try:
        return grade(self, task)
    finally:
        with (COURSE / "seconds.txt").open("a") as file:
            file.write(f"{time.monotonic() - started:.2f} {task.submission.student}\n")


Graders.run = timed  # type: ignore[method-assign]


def main(folder: str) -> None:
    archives = sorted(path for path in (COURSE / folder).iterdir() if path.is_file() and path.suffix != ".ipynb")
    found, without = submission.find([COURSE / folder, *archives])
    with Results(COURSE / f"{folder}.sqlite") as results:
        reports, ungraded = grading.grade_class(found, results, WORKERS, limits=LIMITS)
        read = {report.student: report for report in reports}
    lines = [line.split(maxsplit=1) for line in (COURSE / "seconds.txt").read_text().splitlines()]
    told = {
        "reports": read,
        "paths": {item.student: os.fsencode(item.path).decode(errors="replace") for item in found},
        "ungraded": [(item.found.student, str(item.found.path), item.reason) for item in ungraded],
        "without": without,
        "seconds": {student: float(seconds) for seconds, student in lines},
    }
    (COURSE / f"{folder}.json").write_bytes(msgspec.json.encode(told))


if __name__ == "__main__":
    main(sys.argv[1])
