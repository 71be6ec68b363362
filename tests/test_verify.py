"""The gates hold for every chapter, and they notice what they should."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
from conftest import NIGHTLY

from autograder import assignment as assignments
from autograder.assignment import COURSE, Assignment
from autograder.authoring import verify
from autograder.authoring.mutants import Mutant
from autograder.authoring.verify import Case, Chapter, Equivalent, Verdict
from autograder.report import CellRun, ExerciseResult, Outcome, Report, TestResult
from autograder.variants import Variant
from ichimon import notebook
from ichimon.notebook import Cell

CHAPTERS = assignments.names()
MOST = 0 if NIGHTLY else verify.MUTANTS  # as `make verify` just judged them, so that they are in the cache


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_gates_hold(name: str) -> None:
    found = verify.verify(name, most=MOST)
    assert found.problems == ()
    assert [row.exercise for row in found.rows] == list(assignments.load(name).points)


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_was_judged_is_not_judged_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verify.verify(name, most=MOST)
    monkeypatch.setattr(verify, "ProcessPoolExecutor", None)
    assert verify.verify(name, most=MOST).problems == ()
    with pytest.raises(TypeError, match="NoneType"):
        verify.verify(name, afresh=True)


def test_every_chapter_is_whole() -> None:
    assert list(verify.strays()) == []


def test_a_chapter_that_is_not_whole_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "90-tiny.py").touch()
    monkeypatch.setattr(assignments, "SOLUTIONS", tmp_path / "solutions")
    said = list(verify.strays())
    assert "solutions/90-tiny.py has no hidden tests: write autograder/tests/test_90_tiny.py." in said
    for name in CHAPTERS:
        assert f"autograder/mistakes/{name}.py belongs to no file in solutions/." in said
        assert f"autograder/tests/test_{name.replace('-', '_')}.py belongs to no file in solutions/." in said


@pytest.mark.parametrize("error", [ValueError("a reason"), OSError(2, "a reason"), SyntaxError("a reason")])
def test_a_chapter_that_cannot_be_read_is_a_problem_and_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(verify, "load", fail)
    (problem,) = verify.verify("90-tiny").problems
    assert "a reason" in problem


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_starter_is_what_students_get(name: str) -> None:
    given = {cell.id: cell.source for cell in notebook.cells(COURSE / "notebooks" / name / f"{name}.ipynb")}
    for exercise, source in assignments.load(name).reference.items():
        assert verify.starter(source) == given[exercise]


def test_a_mutant_that_loops_is_given_up_soon_and_counts_as_caught() -> None:
    loop = ("causal_mask", "def causal_mask(n):\n    while True:\n        pass")
    case = Case("mutant", (loop,), "causal_mask", Mutant(1, "", "", 1, loop[1]))
    (report,) = verify._grade("02-self-attention", [case])
    (test,) = report.exercises[0].tests
    assert test.outcome is Outcome.TIMED_OUT
    assert f"{verify.MUTANT_CPU_SECONDS:g} seconds" in test.message


def test_mutants_in_one_worker_are_judged_as_each_in_its_own() -> None:
    """Also where one changes torch for those after it, which the reference at the end of the row would notice."""
    right = assignments.load("02-self-attention").reference["causal_mask"]
    sources = {"right": right, "wrong": right.replace("return ", "return ~"), "right again": right + "\n"}
    assert sources["wrong"] != right

    def passed(*answers: str) -> list[bool]:
        cases = [Case("mutant", (("causal_mask", source),), "causal_mask", whole=False) for source in answers]
        return [verify._caught(report) is None for report in verify._grade("02-self-attention", cases)]

    assert passed(*sources.values()) == [True, False, True]
    patch = "\ntorch.tril = torch.triu = torch.ones = lambda *size, **options: 'gone'\n"
    assert passed(right + patch, right, right) == [False, True, True]


# -- each gate, on a chapter of two exercises whose reports are made up ---------------------------------------------

TESTS = '''
@pytest.mark.exercise("double")
def test_twice(student):
    """Two times."""
    assert student.double(1) == 2, "no"


@pytest.mark.exercise("half", weight=2)
def test_half(student):
    """Half."""
    assert student.half(2) == 1, "no"
'''
SOURCE = "def {}(x):\n    ### BEGIN SOLUTION\n    return x {} 2\n    ### END SOLUTION"
REFERENCE = {"double": SOURCE.format("double", "*"), "half": SOURCE.format("half", "/")}
CELLS = tuple(Cell("code", source, name, "solution", name) for name, source in REFERENCE.items())
ASSIGNMENT = Assignment("90-tiny", CELLS, {"double": 1.0, "half": 2.0}, {})
NAMES = {"double": "test_twice", "half": "test_half"}
MISTAKES = tuple(
    Variant(name, f"mistake {i}", f"{name} = {i}", (NAMES[name],), f"You wrote {i}.")
    for name in NAMES
    for i in range(3)
)
ALTERNATIVES = tuple(Variant(name, "differently", f"{name} = None") for name in NAMES)
CHAPTER = Chapter(ASSIGNMENT, TESTS, MISTAKES, ALTERNATIVES, ())
KEPT = Equivalent("double", "return x * 2", "return x * 3", "a reason")


def report(case: Case, **changed: TestResult) -> Report:
    """What a grader would say of a case, if all is as it should be; `changed` replaces the result of an exercise."""
    outcomes = dict.fromkeys(NAMES, Outcome.PASSED)
    says = ""
    if case.kind == "starter":
        outcomes = dict.fromkeys(NAMES, Outcome.UNFINISHED)
    if case.kind in ("mistake", "mutant"):
        outcomes[case.exercise] = Outcome.FAILED
    if case.kind == "mistake" and isinstance(case.change, Variant):
        says = case.change.says
    results = {
        name: changed.get(name, result(name, outcomes[name], says if name == case.exercise else ""))
        for name in case.exercises
    }
    exercises = tuple(ExerciseResult(name, ASSIGNMENT.points[name], (test,)) for name, test in results.items())
    return Report("", "90-tiny", "", exercises)


def result(exercise: str, outcome: Outcome, mistake: str = "") -> TestResult:
    return TestResult(NAMES[exercise], "", "", 1.0, outcome, "", mistake)


def judged(chapter: Chapter = CHAPTER, kind: str = "", nth: int = 0, **changed: TestResult) -> Verdict:
    """The verdict when the nth case of a kind turns out as `changed`, and all others as they should."""
    cases = list(verify.cases(chapter))
    reports = [report(case) for case in cases]
    if kind:
        place = [i for i, case in enumerate(cases) if case.kind == kind][nth]
        reports[place] = report(cases[place], **changed)
    return verify.judge(chapter, list(zip(cases, reports, strict=True)))


def test_a_chapter_that_is_in_order_has_no_problems() -> None:
    found = judged()
    assert verify.form_problems(CHAPTER) == []
    assert found.problems == ()
    assert found.survivors == ()
    row = found.rows[0]
    assert (row.tests, row.alternatives, row.mistakes, row.by_assertion) == (1, 1, 3, row.mutants)


def test_the_starter_must_fail_for_want_of_an_answer() -> None:
    for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.RAISED):
        (problem,) = judged(kind="starter", double=result("double", outcome)).problems
        assert problem.startswith(f"The starter: test_twice ends as “{outcome}”")


def test_fewer_mutants_are_the_same_ones_each_time_and_the_rest_is_counted() -> None:
    every = [case.change for case in verify.cases(CHAPTER) if case.kind == "mutant"]
    few = [case for case in verify.cases(CHAPTER, most=2) if case.kind == "mutant"]
    assert few == [case for case in verify.cases(CHAPTER, most=2) if case.kind == "mutant"]
    assert [case.exercise for case in few] == ["double", "double", "half", "half"]
    assert all(case.change in every for case in few)
    whole = [case.whole for case in verify.cases(CHAPTER, most=2) if case.kind == "mistake"]
    assert whole == [True, False, False] * 2, "one mistake of each exercise meets the tests of the others"
    kept = [(case, report(case)) for case in verify.cases(CHAPTER, most=2)]
    found = verify.judge(CHAPTER, kept)
    assert found.problems == ()
    assert sum(row.mutants + row.left_out for row in found.rows) == len(every)


@pytest.mark.parametrize("kind", ["reference", "alternative"])
def test_a_right_answer_must_have_full_marks(kind: str) -> None:
    (problem,) = judged(kind=kind, half=result("half", Outcome.FAILED)).problems
    assert "should have full marks, and test_half ends as “failed”" in problem


@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.RAISED, Outcome.TIMED_OUT])
def test_a_mistake_must_fail_by_an_assertion(outcome: Outcome) -> None:
    (problem,) = judged(kind="mistake", double=result("double", outcome, "You wrote 0.")).problems
    assert "“double: mistake 0” should fail by an assertion, and test_twice ends as" in problem


def test_a_mistake_must_be_told_by_its_own_sentence() -> None:
    (problem,) = judged(kind="mistake", nth=1, double=result("double", Outcome.FAILED, "You wrote 0.")).problems
    assert "“double: mistake 1” is told “You wrote 0.” instead of its own sentence" in problem
    (problem,) = judged(kind="mistake", nth=1, double=result("double", Outcome.FAILED)).problems
    assert "is never told its sentence" in problem


def with_check(kind: str, error: str, *tests: TestResult) -> Verdict:
    """The verdict when the visible check of `double` ran with the first case of a kind, whose tests ended so."""
    kept = [(case, report(case)) for case in verify.cases(CHAPTER)]
    place = next(i for i, (case, _) in enumerate(kept) if case.kind == kind)
    case, found = kept[place]
    exercises = (ExerciseResult("double", 1.0, tests), *found.exercises[1:]) if tests else found.exercises
    check = CellRun(verify.CHECK + "double", "double", error)
    kept[place] = case, msgspec.structs.replace(found, exercises=exercises, cells=(check,))
    return verify.judge(CHAPTER, kept)


def test_a_mistake_that_the_visible_check_passes_must_leave_a_fifth_of_the_points() -> None:
    assert with_check("mistake", "AssertionError: no").problems == ()
    (problem,) = with_check("mistake", "").problems
    assert "“double: mistake 0” passes the visible check and gets 0.00 of 1 points" in problem
    failed, passed = (result("double", outcome, "You wrote 0.") for outcome in (Outcome.FAILED, Outcome.PASSED))
    assert with_check("mistake", "", failed, *[passed] * 3).problems == ()


@pytest.mark.parametrize("kind", ["reference", "alternative"])
def test_a_right_answer_must_pass_the_visible_check(kind: str) -> None:
    assert with_check(kind, "").problems == ()
    (problem,) = with_check(kind, "AssertionError: no").problems
    assert problem.endswith("should pass the visible check of double: AssertionError: no")


def test_visible_checks_run_with_nothing_reserved() -> None:
    """That of attention compares with PyTorch's, which hidden tests withhold."""
    right = assignments.load("02-self-attention").reference
    wrong = right | {"causal_mask": "def causal_mask(n):\n    return 1"}
    kinds = [("starter", ""), ("reference", ""), ("mistake", "causal_mask"), ("alternative", "attention")]
    cases = [Case(kind, tuple((wrong if kind == "mistake" else right).items()), exercise) for kind, exercise in kinds]
    reports = verify._grade("02-self-attention", cases)
    checks = [
        {run.exercise: run.error for run in report.cells if run.cell.startswith(verify.CHECK)} for report in reports
    ]
    assert checks[:2] == [{}, dict.fromkeys(right, "")]
    assert "causal_mask should return a tensor, not int" in checks[2]["causal_mask"]
    assert checks[3] == {"attention": ""}


def test_a_mistake_must_cost_one_exercise_only() -> None:
    (problem,) = judged(kind="mistake", half=result("half", Outcome.FAILED)).problems
    assert "“double: mistake 0” costs half points" in problem


@pytest.mark.parametrize("kind", ["mistake", "mutant"])
def test_a_test_must_not_crash(kind: str) -> None:
    problems = judged(kind=kind, double=result("double", Outcome.CRASHED, "You wrote 0.")).problems
    assert any("makes test_twice itself raise" in problem for problem in problems)


def test_a_mutant_that_passes_is_shown_and_too_many_of_them_are_a_problem() -> None:
    found = judged(kind="mutant", double=result("double", Outcome.PASSED))
    assert [case.kind for case in found.survivors] == ["mutant"]
    (problem,) = found.problems
    assert problem.startswith(f"double: 1 of {found.rows[0].mutants} mutants pass all tests.")


def test_a_mutant_that_is_known_to_be_equivalent_does_not_count() -> None:
    chapter = msgspec.structs.replace(CHAPTER, equivalents=(KEPT,))
    nth = [c.change.after for c in verify.cases(chapter) if isinstance(c.change, Mutant)].index(KEPT.after)
    found = judged(chapter, "mutant", nth, double=result("double", Outcome.PASSED))
    assert found.problems == ()
    assert found.rows[0].equivalent == 1
    assert found.rows[0].mutants == judged().rows[0].mutants - 1
    (problem,) = judged(chapter).problems
    assert "is listed as equivalent, and test_twice catches it" in problem


def test_a_mutant_that_is_gone_must_leave_the_list() -> None:
    gone = msgspec.structs.replace(KEPT, after="return x * 99")
    (problem,) = judged(msgspec.structs.replace(CHAPTER, equivalents=(gone,))).problems
    assert "“return x * 2” → “return x * 99” any more: remove the entry" in problem


FORMS = {
    "triple has no hidden test": {
        "assignment": dataclasses.replace(ASSIGNMENT, points={"triple": 1.0} | ASSIGNMENT.points)
    },
    "test_half is for the exercise 'halve'": {"tests": TESTS.replace('"half"', '"halve"')},
    "test_half is for the exercise ''": {"tests": TESTS.replace('@pytest.mark.exercise("half", weight=2)', "")},
    "test_half has the weight 0": {"tests": TESTS.replace("weight=2", "weight=0")},
    "test_half is defined 2 times": {"tests": TESTS.replace("test_twice", "test_half")},
    "test_half needs a docstring": {"tests": TESTS.replace('"""Half."""', "")},
    "test_twice needs a docstring": {"tests": TESTS.replace("Two", "Two\n    ")},
    "The assert in line 11 of the hidden tests has no message": {"tests": TESTS.replace('== 1, "no"', "== 1")},
    "double has 2 mistakes in mistakes/": {"mistakes": MISTAKES[1:]},
    "“halve: x” is for an exercise that is not there": {"mistakes": (*MISTAKES, Variant("halve", "x", ""))},
    "“half: x” has no line `# says: …`": {"mistakes": (*MISTAKES, Variant("half", "x", "", ("test_half",)))},
    "“half: x” has no line `# caught by: …`": {"mistakes": (*MISTAKES, Variant("half", "x", "", (), "You."))},
    "names test_twice, and half has no such test": {
        "mistakes": (*MISTAKES, Variant("half", "x", "", ("test_twice",), "You."))
    },
    "half has nothing in alternatives/": {"alternatives": ALTERNATIVES[:1]},
    "alternative “halve: x” is for an exercise": {"alternatives": (*ALTERNATIVES, Variant("halve", "x", ""))},
    "“return x * 3” has no reason": {"equivalents": (msgspec.structs.replace(KEPT, because=" "),)},
    "equivalents: there is no exercise 'halve'": {"equivalents": (Equivalent("halve", "", "", ""),)},
}


@pytest.mark.parametrize("said", FORMS)
def test_files_that_do_not_fit_together_are_noticed(said: str) -> None:
    problems = verify.form_problems(msgspec.structs.replace(CHAPTER, **FORMS[said]))
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize("text", ["not toml", "double = 3", "[[double]]\nbefore = '1'", "[[double]]\nwhy = 'so'"])
def test_a_list_of_equivalents_that_is_none_is_refused_in_a_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "90-tiny.toml").write_text(text)
    monkeypatch.setattr(verify, "EQUIVALENTS", tmp_path)
    with pytest.raises(ValueError, match=r"90-tiny\.toml: an entry is \[\[exercise\]\] with before, after and because"):
        verify.equivalents("90-tiny")


def test_a_broken_cache_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "90-tiny.json"
    assert verify._read(path) == {}
    verify._write(path, {"key": report(Case("reference", tuple(REFERENCE.items())))})
    assert list(verify._read(path)) == ["key"]
    path.write_bytes(path.read_bytes()[:-9])
    assert verify._read(path) == {}


def test_the_command_says_what_is_wrong_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = judged(kind="mutant", double=result("double", Outcome.PASSED))
    monkeypatch.setattr(verify, "verify", lambda name, afresh, most: weak if name == "weak" else judged())
    monkeypatch.setattr(verify, "WORKERS", 1)  # other processes would know nothing of this
    assert verify.main(["weak", "strong"]) == 1
    said = capsys.readouterr().out
    assert "this mutant passes all tests" in said
    assert "- return x * 2" in said
    assert "✗ double: 1 of" in said
    assert "✓ 90-tiny passes all gates." in said
    assert verify.main(["strong"]) == 0
