"""A whole term, played with the real commands: two assignments, forty students, and everything that goes wrong.

    python examples/term.py [FOLDER] [--students 40]

It copies the course into FOLDER (by default a temporary one), hands in what students hand in, runs each command of
docs/term.md, and compares every mark at every step with what was decided before. The first that differs ends it. What
the commands said stays in FOLDER/logs.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import make_class
from make_class import Notebook, find, insert, write
from nbgrader.api import Gradebook
from nbgrader.utils import parse_utc

ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND = "02-self-attention", "06-gpt"
BASE = 20  # students who have a part of their own; the others fill the channels
STOCK = ROOT / "examples" / "class"
POINTS = {
    FIRST: {"causal_mask": 3.0, "attention": 7.0, "split_heads": 2.0, "merge_heads": 2.0, "MultiHeadAttention": 6.0},
    SECOND: {"Block": 5.0, "GPT": 5.0, "from_gpt2": 4.0, "learning_rate": 2.0, "accumulate": 4.0, "Mended": 3.0},
}
WORDS = 2.0  # points for the answer in words in the second assignment

Marks = dict[str, float]

# a test of merge_heads as it should be, and as somebody wrote it at first: heads and channels the wrong way round
RIGHT = "(10 * torch.arange(3.0)[:, None] + torch.arange(4.0)).flatten()"
WRONG = "(10 * torch.arange(3.0)[:, None] + torch.arange(4.0)).T.flatten()"
AT_FIRST = 1.67  # points of 2 for a merge_heads that is right: 5 of 6 tests
BY_HAND = 1.9  # what a person gives the second student for it

COURSE_TOML = """\
leave_out = {leave_out}

[late]
per_day = 10
at_most = 50
grace = "10 minutes"
zone = "Europe/Berlin"

[late.due]
"{first}" = 2026-10-12T23:59:00
"{second}" = 2026-10-26T23:59:00

[late.extra_time]
student-19 = "3 days"
student-07 = {{ "{second}" = "1 week" }}
"""
IN_TIME = "2026-10-12 18:00:00 UTC"
CAME = {  # Berlin is two hours ahead of UTC until 25 October, and one after it
    (FIRST, 18): ("2026-10-13 22:00:00 UTC", 20),  # a day and a minute late: two days have begun
    (FIRST, 19): ("2026-10-15 20:00:00 UTC", 0),  # three days of extra time
    (FIRST, 20): ("2026-10-12 22:08:00 UTC", 0),  # nine minutes, of ten that cost nothing
    (SECOND, 5): ("2026-10-29 23:00:00 UTC", 40),  # three days and a minute
    (SECOND, 6): ("2026-11-20 10:00:00 UTC", 50),  # no more than half
    (SECOND, 7): ("2026-11-02 12:00:00 UTC", 0),  # a week of extra time, for this one
    (SECOND, 8): ("2026-10-26 23:10:00 UTC", 10),  # eleven minutes
    (SECOND, 10): ("2026-10-27 01:00:00 UTC", 10),  # late with next to nothing: no mark is below 0
}


def name(number: int) -> str:
    return f"student-{number:02d}"


def stop(sentence: str) -> NoReturn:
    sys.exit(f"The term went wrong: {sentence}")


def expect(found: object, wanted: object, what: str) -> None:
    """Both are the same, or the term ends with what differs."""
    if found == wanted:
        return
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        differs = "; ".join(f"{key}: {found.get(key)} for {wanted.get(key)}" for key in keys[:8])
        stop(f"{what}: {len(keys)} differ: {differs}")
    stop(f"{what}: {found!r} for {wanted!r}")


# -- what students hand in ------------------------------------------------------------------------------------------


@dataclass
class Work:
    """A notebook, and the marks that it deserves."""

    text: str
    marks: Marks


def recorded() -> dict[str, Marks]:
    """What the sample class deserves, decided when it was written."""
    students = json.loads((STOCK / "marks.json").read_text(encoding="utf-8"))["students"]
    return {student: deserved["marks"] for student, deserved in students.items()}


def blocks(path: Path) -> dict[str, str]:
    """The cells of a percent file: title -> source."""
    parts = re.split(r"^# %% ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {title: source.strip("\n") for title, _, source in (part.partition("\n") for part in parts)}


def first_work(number: int) -> Work:
    """A notebook of the sample class, or one whose cells are those of several of its students."""
    deserved = recorded()
    sample = {**{n: n for n in range(1, 9)}, 9: 10, 10: 11, 11: 12, 12: 14, 13: 13}.get(number)
    if sample:
        text = (STOCK / name(sample) / FIRST / f"{FIRST}.ipynb").read_text(encoding="utf-8")
        return Work(text, deserved[name(sample)])
    authors = {
        "causal_mask": (1, 1, 2, 3),
        "attention": (1, 1, 4, 7),
        "split_heads": (1, 2, 5),
        "merge_heads": (1, 2, 5),
        "MultiHeadAttention": (1, 2, 6),
    }
    chosen = {exercise: random.Random(f"{number} {exercise}").choice(some) for exercise, some in authors.items()}
    notebook = released(FIRST)
    for exercise, author in chosen.items():
        write(find(notebook, exercise), make_class.answers(name(author))[exercise])
    insert(notebook, make_class.code(make_class.answers(name(2))["helper"], "helper"), after="set-up")
    marks = {exercise: float(deserved[name(author)][exercise]) for exercise, author in chosen.items()}
    return Work(saved(notebook, number), marks)


def second_work(number: int) -> Work:
    """Each exercise good, middling or not begun; the marks stand in tests/submissions/06-gpt/marks.json."""
    folder = ROOT / "tests" / "submissions" / SECOND
    deserved = json.loads((folder / "marks.json").read_text(encoding="utf-8"))
    good, middling = blocks(folder / "good.py"), blocks(folder / "middling.py")
    notebook, marks = released(SECOND), {}
    kinds = random.Random(f"second {number % 10}")  # ten different notebooks; what students add differs
    for exercise in POINTS[SECOND]:
        kind = "" if number == 10 and exercise != "learning_rate" else kinds.choice(("good", "good", "middling", ""))
        source = {"good": good, "middling": middling, "": {}}[kind].get(exercise)
        if source:
            write(find(notebook, exercise), source)
        marks[exercise] = float(deserved[kind][exercise]) if source else 0.0
    insert(notebook, make_class.code(good["helper"], "helper"), after="set-up")
    if number != 4:  # who writes nothing gets nothing, and needs no person
        write(find(notebook, "explain"), f"The last position predicts. Attention brings the rest. ({number})")
    return Work(saved(notebook, number), marks)


def released(assignment: str) -> Notebook:
    notebook: Notebook = json.loads((ROOT / "notebooks" / assignment / f"{assignment}.ipynb").read_text("utf-8"))
    return notebook


def saved(notebook: Notebook, number: int) -> str:
    """By one of three editors, with a word of the student's own, so that no two files are the same."""
    insert(notebook, make_class.code(f"mine = {number}", f"mine {number}"), after="set-up")
    editors: tuple[Callable[[Notebook], str], ...] = (make_class.jupyterlab, make_class.vscode, make_class.colab)
    return editors[number % 3](notebook)


# -- the term -------------------------------------------------------------------------------------------------------


@dataclass
class Term:
    """The course in a folder, and what everybody deserves so far."""

    folder: Path
    students: list[int]
    works: dict[tuple[str, int], Work] = field(default_factory=dict)
    words: dict[int, float] = field(default_factory=dict)
    steps: int = 0
    commands: int = 0
    started: float = field(default_factory=time.monotonic)

    def say(self, what: str, proved: str) -> None:
        self.steps += 1
        print(
            f"{self.steps:2d}  {time.monotonic() - self.started:5.1f} s {what}: {proved}",
            flush=True,
        )

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A command as an instructor types it. What it says is kept, and is no traceback."""
        program, *arguments = map(str, command)
        module = {"autograder": "autograder", "nbgrader": "nbgrader", "build": "autograder.authoring.build"}[program]
        environment = os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        self.commands += 1
        shown = " ".join([program, *arguments])
        log = self.folder / "logs" / f"{self.commands:02d}-{program}-{arguments[0] if arguments else ''}.log"
        log.write_text(f"$ {shown}\n{done.stdout}{done.stderr}", encoding="utf-8")
        if done.returncode != code or "Traceback" in done.stderr + done.stdout:
            stop(f"`{shown}` ended with {done.returncode}, not {code}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done

    def gradebook(self) -> Gradebook:
        return Gradebook(f"sqlite:///{self.folder / 'gradebook.db'}", "term")

    def deserved(self, assignment: str, merge_heads: float = 2.0) -> dict[str, Marks]:
        """student -> exercise -> points, with that many for a merge_heads that is right."""
        wanted = {name(number): dict(work.marks) for (its, number), work in self.works.items() if its == assignment}
        for marks in wanted.values():
            if marks.get("merge_heads") == POINTS[FIRST]["merge_heads"]:
                marks["merge_heads"] = merge_heads
        return wanted

    def held(self, assignment: str) -> dict[str, Marks]:
        """The tests' marks in nbgrader's gradebook."""
        with self.gradebook() as gradebook:
            return {
                submission.student_id: {
                    grade.name.removeprefix("check-"): grade.auto_score
                    for grade in submission.notebooks[0].grades
                    if grade.name.startswith("check-")
                }
                for submission in gradebook.assignment_submissions(assignment)
            }

    def own(self, assignment: str) -> dict[str, float]:
        """What everybody's work is worth so far: the tests' marks, and a person's."""
        worth: dict[str, float] = {}
        for (its, number), work in self.works.items():
            marks = work.marks | ({"merge_heads": BY_HAND} if (its, number) == (FIRST, 2) else {})
            words = self.words.get(number, 0.0) if assignment == SECOND else 0.0
            worth |= {name(number): round(sum(marks.values()) + words, 2)} if its == assignment else {}
        return worth

    def lost(self, assignment: str) -> dict[str, float]:
        """What lateness costs: a share of all points of the assignment, and never more than the work is worth."""
        possible = sum(POINTS[assignment].values()) + (WORDS if assignment == SECOND else 0)
        percent = {name(number): lost for (its, number), (_, lost) in CAME.items() if its == assignment}
        return {
            student: min(worth, percent.get(student, 0) / 100 * possible)
            for student, worth in self.own(assignment).items()
        }

    def finals(self, assignment: str) -> dict[str, float]:
        lost = self.lost(assignment)
        return {student: round(worth - lost[student], 2) for student, worth in self.own(assignment).items()}

    def charged(self, assignment: str) -> dict[str, float]:
        """The late penalties in nbgrader's gradebook."""
        with self.gradebook() as gradebook:
            found = gradebook.assignment_submissions(assignment)
            return {submission.student_id: round(submission.late_submission_penalty, 2) for submission in found}

    def everybody(self, assignment: str, where: str) -> None:
        """Each student's own notebook is there, byte by byte, and nobody else's."""
        there = {
            path.parent.parent.name: path.read_text(encoding="utf-8")
            for path in (self.folder / "submitted").glob(f"*/{assignment}/*.ipynb")
        }
        wanted = {name(number): work.text for (its, number), work in self.works.items() if its == assignment}
        expect({k: hash(v) for k, v in there.items()}, {k: hash(v) for k, v in wanted.items()}, where)


def prepare(term: Term) -> None:
    """A clone of the course, as an instructor has one, with a wrong test that nobody has noticed yet."""
    for part in ("autograder", "ichimon", "solutions"):
        shutil.copytree(ROOT / part, term.folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("nbgrader_config.py", "requirements.txt"):
        shutil.copy(ROOT / part, term.folder)
    for part in ("submitted", "exchange", "logs"):
        (term.folder / part).mkdir()
    (term.folder / "exchange").chmod(0o777)
    with (term.folder / "nbgrader_config.py").open("a", encoding="utf-8") as config:
        config.write('\nc.CourseDirectory.course_id = "term"\n')
        config.write(f'c.Exchange.root = "{term.folder / "exchange"}"\n')
        config.write("c.ExchangeCollect.check_owner = False  # here one user plays all students\n")
        config.write("c.Collect.tolerance = 0  # and weeks pass in a minute\n")
        config.write('c.Application.log_format = "%(pathname)s: %(message)s"  # so that a line tells whose it is\n')
    leave_out = sorted(path.stem for path in (ROOT / "solutions").glob("*.py") if path.stem not in POINTS)
    settings = COURSE_TOML.format(leave_out=json.dumps(leave_out), first=FIRST, second=SECOND)
    (term.folder / "course.toml").write_text(settings, encoding="utf-8")
    change_test(term, RIGHT, WRONG)
    (term.folder / "roster.csv").write_text(
        "student,name,email\n" + "".join(f"{name(n)},,{name(n)}@example.org\n" for n in term.students)
    )
    sheet = ["Student,ID,SIS User ID,SIS Login ID,Section", "    Points Possible,,,,"]
    sheet += [f'"{n:02d}, Student",{100 + n},,{name(n)},One' for n in term.students]
    (term.folder / "canvas.csv").write_text("\n".join(sheet) + "\n", encoding="utf-8")
    sheet = ["Identifier,Full name,Email address,ID number,Status,Grade,Maximum Grade"]
    possible = f"{sum(POINTS[SECOND].values()) + WORDS:g}"
    sheet += [
        f"Participant {200 + n},Student {n:02d},{name(n)}@example.org,{name(n)},-,,{possible}" for n in term.students
    ]
    (term.folder / "moodle.csv").write_text("\n".join(sheet) + "\n", encoding="utf-8")


def change_test(term: Term, old: str, new: str) -> None:
    path = term.folder / "autograder" / "tests" / "test_02_self_attention.py"
    text = path.read_text(encoding="utf-8")
    expect(text.count(old), 1, "the line of the hidden test that was wrong at first")
    path.write_text(text.replace(old, new), encoding="utf-8")


def release(term: Term) -> None:
    term.run("build")
    there = sorted(path.name for path in (term.folder / "notebooks").iterdir())
    expect(there, [FIRST, SECOND], "the notebooks of a course that leaves the others out")
    same = [(term.folder / "notebooks" / a / f"{a}.ipynb").read_bytes() for a in POINTS]
    expect(same, [(ROOT / "notebooks" / a / f"{a}.ipynb").read_bytes() for a in POINTS], "the notebooks")
    term.run("nbgrader", "release_assignment", FIRST)
    out = term.folder / "exchange" / "term" / "outbound" / FIRST
    expect([path.name for path in out.iterdir()], [f"{FIRST}.ipynb"], "what students can fetch")
    term.say(
        "release", f"{FIRST} and {SECOND} are built, {len(there)} of 24 chapters are taught, one is in the exchange"
    )


def channel(n: int) -> str:
    if n <= BASE:
        return ("canvas", "canvas", "moodle", "e-mail", "exchange")[(n - 1) // 4]
    return ("canvas", "canvas", "moodle", "e-mail", "exchange")[n % 5]


def arrive(term: Term) -> None:
    """The first assignment comes in four ways, and in each there is somebody who tries something."""
    for n in term.students:
        term.works[FIRST, n] = first_work(n)
    texts = {n: work.text for (_, n), work in term.works.items()}
    by = {each: [n for n in term.students if channel(n) == each] for each in ("canvas", "moodle", "e-mail", "exchange")}
    arrived = term.folder / "arrived"
    arrived.mkdir()

    with zipfile.ZipFile(arrived / "submissions.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in by["canvas"]:
            late = "_LATE" if n == 8 else ""
            title = f"my homework ({n})" if n % 2 else FIRST
            archive.writestr(f"{n:02d}student{late}_{100 + n}_{9000 + n}_{title}.ipynb", texts[n])
        archive.writestr("../../submitted/student-01/02-self-attention/02-self-attention.ipynb", "{}")
        archive.writestr("/tmp/02student_102_9999_x.ipynb", "{}")
        link = zipfile.ZipInfo("09student_109_9999_x.ipynb")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(ROOT / "solutions"))
        archive.writestr("10student_110_9999_01student_101_9001_x.ipynb", b"0" * (64 << 20))  # a bomb, and a loan
        archive.writestr("nobody_999_9999_student-01.ipynb", texts[2])  # borrows a name; its number is unknown

    with zipfile.ZipFile(arrived / "moodle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in by["moodle"]:
            archive.writestr(f"Student {n:02d}_{200 + n}_assignsubmission_file_/{FIRST}.ipynb", texts[n])
        name_of_two = "Student 09_209_assignsubmission_file_201_assignsubmission_file_x.ipynb"
        archive.writestr(name_of_two, texts[2])

    mail = term.folder / "downloaded" / FIRST / "archive"
    mail.mkdir(parents=True)
    for n in by["e-mail"]:
        if n == 15:  # somebody else's names inside
            with zipfile.ZipFile(mail / f"{name(n)}@example.org.zip", "w") as archive:
                archive.writestr(f"{name(1)}/{FIRST}/{FIRST}.ipynb", texts[n])
                archive.writestr(f"../{name(2)}.ipynb", "{}")
        elif n == 16:
            with tarfile.open(mail / f"{name(n)}@example.org.tar.gz", "w:gz") as tape:
                member = tarfile.TarInfo("homework/final version.ipynb")
                member.size = len(texts[n].encode())
                tape.addfile(member, io.BytesIO(texts[n].encode()))
                for kind, to in (
                    (tarfile.SYMTYPE, str(ROOT / "solutions")),
                    (tarfile.LNKTYPE, "../../../gradebook.db"),
                ):
                    link_member = tarfile.TarInfo(f"homework/{name(1)}.ipynb")
                    link_member.type, link_member.linkname = kind, to
                    tape.addfile(link_member)
        else:
            (mail / f"{name(n)}@example.org.ipynb").write_text(texts[n], encoding="utf-8")
    (mail / "final.ipynb").write_text(texts[3], encoding="utf-8")  # from whom?

    inbound = term.folder / "exchange" / "term" / "inbound"
    for n in by["exchange"]:
        came = CAME.get((FIRST, n), (IN_TIME, 0))[0]
        hand_in(inbound, n, came, texts[n])
        if n == 17:
            hand_in(inbound, n, "2026-10-11 09:00:00 UTC", texts[1])  # an earlier attempt
    some = ", ".join(f"{len(numbers)} by {each}" for each, numbers in by.items())
    term.say("students", f"{len(term.students)} handed in {FIRST}: {some}")


def hand_in(inbound: Path, n: int, came: str, text: str) -> None:
    """What `nbgrader submit` leaves in the exchange."""
    folder = inbound / f"{name(n)}+{FIRST}+{came}+x{n}"
    folder.mkdir()
    (folder / f"{FIRST}.ipynb").write_text(text, encoding="utf-8")
    (folder / "timestamp.txt").write_text(came, encoding="utf-8")
    (folder / "submission_secret.txt").write_text("0" * 128, encoding="utf-8")


def collect(term: Term) -> None:
    done = term.run("autograder", "collect", "arrived/submissions.zip", "--roster", "canvas.csv", code=1)
    for part in ("leads out of the archive", "is a symbolic link", "as in a zip bomb", "is not in the roster"):
        expect(part in done.stderr, True, f"a sentence about what {part}")
    table = term.folder / "who-is-it.csv"
    asked = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    expect([row["found"] for row in asked], ["nobody_999_9999_student-01"], "whom a person is asked about")
    table.write_text(f"found,student\n{asked[0]['found']},-\n", encoding="utf-8")
    done = term.run("autograder", "collect", "arrived/submissions.zip", "--roster", "canvas.csv", code=1)
    expect("as before" in done.stdout and "new" not in done.stdout, True, "a second run that changes nothing")
    table.unlink()
    term.say("autograder collect", "Canvas's download is in, five attacks in it cost themselves a sentence")

    done = term.run(
        *("autograder", "collect", "arrived/moodle.zip", "--roster", "moodle.csv", "--column", "ID number"), code=1
    )
    expect("can be read in two ways" in done.stderr, True, "a sentence about two numbers in one name")
    table.unlink()
    term.say("autograder collect", "so is Moodle's")

    term.run("nbgrader", "zip_collect", FIRST, "--RosterExtractor.roster=roster.csv")
    step = term.folder / "downloaded" / FIRST
    expect("“final” is not in the roster" in (step / "who-is-it.csv").read_text("utf-8"), True, "the table that asks")
    told = (step / "not-collected.csv").read_text("utf-8")
    for part in ("leads out of the archive", "is a symbolic link", "is a hard link"):
        expect(part in told, True, f"a sentence about what {part}")
    term.say(
        "nbgrader zip_collect", "what came by e-mail is in; links, .. and borrowed names took nothing from anybody"
    )

    term.run("nbgrader", "collect", FIRST)
    stamps = (term.folder / "submitted").rglob("timestamp.txt")
    came = {path.parent.parent.name: parse_utc(path.read_text("utf-8").strip()) for path in stamps}
    by_exchange = [n for n in term.students if channel(n) == "exchange"]
    wanted = {name(n): parse_utc(CAME.get((FIRST, n), (IN_TIME, 0))[0]) for n in by_exchange}
    expect(came, wanted, "the times of arrival")
    term.everybody(FIRST, "what was collected")
    term.say("nbgrader collect", "of two attempts the later one; every notebook is its own student's, byte by byte")


def grade(term: Term) -> None:
    term.run("autograder", "grade", "submitted", "--gradebook", "auto", "--workers", "1")
    expect(term.held(FIRST), term.deserved(FIRST, AT_FIRST), "marks with a wrong test")
    expect(term.charged(FIRST), term.lost(FIRST), "late penalties by autograder grade")
    with term.gradebook() as gradebook:
        extra = gradebook.find_submission(FIRST, name(19)).extension
        expect(extra is not None and extra.days, 3, "the extension that nbgrader shows")
        grade_cell = gradebook.find_grade("check-merge_heads", FIRST, FIRST, name(2))
        grade_cell.manual_score, grade_cell.needs_manual_grade = BY_HAND, False  # as formgrader does
        gradebook.db.commit()
    count = len(term.students)
    term.say(
        "autograder grade",
        f"{count} marks as decided, with a wrong test; 20 % for two days, 0 for extra time and grace",
    )


def mend(term: Term) -> None:
    change_test(term, WRONG, RIGHT)
    options = ("submitted", "--gradebook", "auto", "--workers", "1", "--json")
    lines = [json.loads(line) for line in term.run("autograder", "grade", *options).stdout.splitlines()]
    expect(list(lines[-1]["summary"]["verdicts"]), ["merge_heads"], "what was graded again")
    moves = {line["moved"]["student"]: line["moved"] for line in lines if "moved" in line}
    right = [student for student, marks in term.deserved(FIRST).items() if marks["merge_heads"] == 2.0]
    expect(sorted(moves), sorted(right), "whose marks move")
    expect([student for student, move in moves.items() if move["by_hand"]], [name(2)], "whose mark a person set")
    expect({move["exercise"] for move in moves.values()}, {"merge_heads"}, "which marks move")
    expect({(m["before"], m["after"]) for m in moves.values() if not m["by_hand"]}, {(AT_FIRST, 2.0)}, "how they move")
    expect(term.held(FIRST), term.deserved(FIRST), "marks by the test that was mended")
    with term.gradebook() as gradebook:
        theirs = gradebook.find_grade("check-merge_heads", FIRST, FIRST, name(2))
        expect((theirs.score, theirs.needs_manual_grade), (BY_HAND, True), "a person's mark, and that it needs a look")
        theirs.needs_manual_grade = False  # the person looked, and leaves it
        gradebook.db.commit()
    term.say(
        "the test is mended", f"only merge_heads is graded again, {len(right) - 1} marks move, a person's one stands"
    )


def second(term: Term) -> None:
    """The second assignment comes in one archive in nbgrader's layout, with the times at which it arrived."""
    for n in term.students[: len(term.students) * 3 // 5]:  # the others have left
        if n != 9:  # hands in nothing
            term.works[SECOND, n] = second_work(n)
    handed = {n: work.text for (its, n), work in term.works.items() if its == SECOND}
    with tarfile.open(term.folder / "arrived" / "class.tar.gz", "w:gz") as tape:
        for n, text in handed.items():
            stamp = CAME.get((SECOND, n), ("2026-10-26 12:00:00 UTC", 0))[0]
            for file, data in ((f"{SECOND}.ipynb", text.encode()), ("timestamp.txt", stamp.encode())):
                member = tarfile.TarInfo(f"{name(n)}/{SECOND}/{file}")
                member.size = len(data)
                tape.addfile(member, io.BytesIO(data))
    term.run("autograder", "collect", "arrived/class.tar.gz", "--roster", "roster.csv", "--timestamps")
    term.everybody(SECOND, "what was collected")
    term.run("nbgrader", "autograde", SECOND)
    expect(term.held(SECOND), term.deserved(SECOND), "marks of the second assignment")
    expect(term.charged(SECOND), term.lost(SECOND), "late penalties by nbgrader autograde")
    term.say("nbgrader autograde", f"{len(handed)} marks of {SECOND} as decided")


def by_hand(term: Term) -> None:
    """What a person gives in formgrader, through what its server does with it."""
    with term.gradebook() as gradebook:
        waiting = {each.student_id for each in gradebook.assignment_submissions(SECOND) if each.needs_manual_grade}
        wanted = {name(n) for its, n in term.works if its == SECOND and n != 4}
        expect(waiting, wanted, "who waits for a person")
        for its, n in term.works:
            if its == SECOND and n != 4:
                term.words[n] = (2.0, 1.0, 0.0)[n % 3]
                cell = gradebook.find_grade("explain", SECOND, SECOND, name(n))
                cell.manual_score, cell.needs_manual_grade = term.words[n], False
                said = gradebook.find_comment("explain", SECOND, SECOND, name(n))
                said.manual_comment = f"{term.words[n]:g} of 2: which vector predicts?"
        gradebook.db.commit()
    term.run("autograder", "grade", "submitted", "--gradebook", "auto", "--workers", "1")
    expect(term.held(SECOND), term.deserved(SECOND), "marks of the tests after a person's")
    with term.gradebook() as gradebook:
        waiting = {each.student_id for each in gradebook.assignment_submissions(SECOND) if each.needs_manual_grade}
        expect(waiting, set(), "who still waits")
        for assignment in POINTS:
            found = {
                each.student_id: round(each.score - each.late_submission_penalty, 2)
                for each in gradebook.assignment_submissions(assignment)
            }
            expect(found, term.finals(assignment), f"final marks of {assignment}")
    term.say(
        "formgrader", f"{len(wanted)} answers in words are marked; with them and the penalties, all marks are final"
    )


def give_back(term: Term) -> None:
    late = name(5)
    term.run("nbgrader", "generate_feedback", SECOND, f"--student={late}")
    page = (term.folder / "feedback" / late / SECOND / f"{SECOND}.html").read_text(encoding="utf-8")
    total = re.search(rf"{SECOND} \(Score: ([\d.]+) / ([\d.]+)\)", page)
    expect(total and float(total[1]), term.finals(SECOND)[late], f"the mark on nbgrader's page of {late}")
    expect("which vector predicts?" in page, True, "what the person wrote")
    term.run("autograder", "feedback")
    pages = {
        (path.parts[-3], path.parts[-2]): path.read_text(encoding="utf-8")
        for path in (term.folder / "_build" / "feedback").rglob("*.html")
    }
    expect(set(pages), {(name(n), its) for its, n in term.works}, "the pages of autograder feedback")
    for (student, assignment), page in pages.items():
        points, possible = sum(term.deserved(assignment)[student].values()), sum(POINTS[assignment].values())
        expect(f"{round(points, 2):g} of {possible:g} points" in page, True, f"the mark on the page of {student}")
    with (term.folder / "_build" / "report" / SECOND / "marks.csv").open(encoding="utf-8", newline="") as file:
        totals = {row["student"]: float(row["total"]) for row in csv.DictReader(file)}
    totals.pop("points possible")
    wanted = {student: round(sum(marks.values()), 2) for student, marks in term.deserved(SECOND).items()}
    expect({student: round(total, 2) for student, total in totals.items()}, wanted, "the class report's marks")
    term.say("feedback", f"{len(pages)} pages of our own, each with its mark, and nbgrader's with a person's comment")


def export(term: Term) -> None:
    def rows(file: str) -> list[dict[str, str]]:
        with (term.folder / file).open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))

    def marks(found: Mapping[str, str]) -> dict[str, float]:
        return {student: round(float(mark), 2) for student, mark in found.items() if mark}

    term.run("nbgrader", "export", "--to=grades.csv")
    for assignment in POINTS:
        found = {row["student_id"]: row["score"] for row in rows("grades.csv") if row["assignment"] == assignment}
        if assignment == SECOND:
            nothing = {found.pop(name(n)) for n in term.students if (SECOND, n) not in term.works}
            expect(nothing, {"0.0"}, "nbgrader's mark for nothing")
        expect(marks(found), term.finals(assignment), f"nbgrader's own export of {assignment}")
    short = term.folder / "canvas-short.csv"  # one student is missing in it
    lines = (term.folder / "canvas.csv").read_text(encoding="utf-8").splitlines()
    short.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    exporter = ("nbgrader", "export", "--exporter=autograder.exports.CanvasExport")
    term.run(*exporter, "--CanvasExport.roster=canvas-short.csv", "--to=canvas-marks.csv")
    missing = name(term.students[-1])
    for assignment in POINTS:
        found = {row["SIS Login ID"]: row[assignment] for row in rows("canvas-marks.csv") if row["SIS Login ID"]}
        wanted = {student: mark for student, mark in term.finals(assignment).items() if student != missing}
        expect(marks(found), wanted, f"Canvas's marks of {assignment}")
    expect([row["student"] for row in rows("canvas-marks-look-at.csv")], [missing], "who is not in the roster")
    term.run(
        *("nbgrader", "export", "--exporter=autograder.exports.MoodleExport", "--MoodleExport.roster=moodle.csv"),
        *("--MoodleExport.column=ID number", f"--MoodleExport.assignment={SECOND}", "--to=moodle-marks.csv"),
    )
    found = {row["ID number"]: row["Grade"] for row in rows("moodle-marks.csv")}
    expect(marks(found), term.finals(SECOND), "Moodle's grades")
    term.say("export", "nbgrader's CSV, Canvas's file and Moodle's worksheet hold the same final marks")


ASKED = re.compile(r"autograder-(grade|collect)\.log|build")  # the answer itself is about students
PLACES = ("submitted", "autograded", "feedback", "_build/feedback", "_build/replaced", "exchange/term/inbound")


def names(term: Term) -> None:
    """Whose work it is stands where nbgrader puts it, and nowhere else."""
    known = re.compile("|".join(name(n) for n in term.students))
    logs = sorted((term.folder / "logs").iterdir())
    checked = 0
    for log in logs:
        if ASKED.search(log.name):
            continue
        for line in log.read_text(encoding="utf-8").splitlines()[1:]:
            theirs = line.startswith("/") and not line.startswith(str(term.folder))  # of a library
            checked += not theirs
            if known.search(line) and not theirs:
                stop(f"{log.name} names a student: {line}")
    expect(checked > 5, True, "that there are lines of ours in the logs")
    allowed = tuple(str(term.folder / place) for place in (*PLACES, f"downloaded/{FIRST}"))
    for path in term.folder.rglob("*"):
        if known.search(path.name) and not str(path).startswith(allowed):
            stop(f"{path.relative_to(term.folder)} is called after a student.")
    term.say(
        "names",
        f"{checked} lines of ours in {len(logs)} logs and all names of files: students are where nbgrader puts them",
    )


def play(folder: Path, students: int = 40) -> Term:
    """The whole term. Whatever is not as it should be ends it with a sentence."""
    if students < BASE:
        stop(f"{BASE} students have a part of their own; with {students} nobody would play some of them.")
    term = Term(folder.resolve(), list(range(1, students + 1)))
    prepare(term)
    for act in (release, arrive, collect, grade, mend, second, by_hand, give_back, export, names):
        act(term)
    return term


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole term, played with the real commands.")
    parser.add_argument("folder", nargs="?", type=Path, help="an empty folder; by default a temporary one")
    parser.add_argument("--students", type=int, default=40)
    options: Any = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="term-"))
    if folder.is_dir() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: a term begins with nothing.")
    folder.mkdir(parents=True, exist_ok=True)
    term = play(folder, options.students)
    print(f"The term is over: {term.commands} commands, every mark as decided. All of it is in {folder}.")


if __name__ == "__main__":
    main()
