"""The trusted view of a submission: calls, gradients, objects, callbacks, errors, and what happens when a worker is
lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from autograder.grading import names_of_others
from autograder.report import Outcome, clean
from autograder.sandbox.jail import Jail, Limits, WorkerLost
from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, same_transcript, tensor
from autograder.testing import first_difference

Make = Callable[..., Student]


@pytest.fixture(scope="module")
def jail() -> Iterator[Jail]:
    with Jail(Limits(cpu_seconds=1, wall_seconds=5, lost_workers=3)) as started:
        yield started


@pytest.fixture
def make(jail: Jail) -> Iterator[Make]:
    made: list[Student] = []

    def student(*cells: str, stand_ins: dict[str, str] | None = None, reserved: tuple[str, ...] = ()) -> Student:
        sources = [
            ("set-up", "", "import torch\nfrom torch import nn"),
            *[(f"c{i}", f"e{i}", source) for i, source in enumerate(cells)],
        ]
        made.append(Student(jail, sources, stand_ins or {}, reserved))
        made[-1]._begin("e0")
        return made[-1]

    yield student
    for one in made:
        one._close()


def test_a_call_returns_a_copy_of_plain_data(make: Make) -> None:
    student = make("def f(x, *, times=2): return {'y': x * times, 'n': [len(x), None, 'é']}")
    x = torch.arange(3.0)
    answer = student.f(x, times=3)
    assert_close(answer["y"], 3 * x)
    assert answer["n"] == [3, None, "é"]


def test_gradients_cross_in_both_directions(make: Make) -> None:
    student = make("def f(x, y): return x.sin() * y, y.exp()")
    x, y = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(student.f, (x, y))
    first, second = student.f(x, y)
    (first.sum() + second.sum()).backward()
    assert_close(x.grad, (x.cos() * y).detach())


def test_without_grad_nothing_requires_it(make: Make) -> None:
    student = make("def f(x): return x * 2")
    with torch.no_grad():
        assert not student.f(torch.ones(2, requires_grad=True)).requires_grad
    assert not student.f(torch.ones(2)).requires_grad


def test_a_module_is_an_object_with_a_state_and_gradients(make: Make) -> None:
    student = make(
        "class Twice(nn.Module):\n  def __init__(self, d):\n    super().__init__(); self.w = nn.Linear(d, d)\n"
        "  def forward(self, x): return self.w(x) * 2"
    )
    module = student.Twice(3)
    weights = {"w.weight": torch.eye(3), "w.bias": torch.ones(3)}
    module.load_state_dict(weights)
    assert module.state_dict().keys() == weights.keys()
    assert isinstance(module.w, Remote)
    assert_close(module.w.weight, torch.eye(3).requires_grad_())
    x = torch.randn(2, 3)
    module(x).sum().backward()
    assert_close(student.grads(module)["w.bias"], torch.full((3,), 4.0))
    module.train()
    assert module.training is True


def test_a_value_kept_there_shows_whether_it_was_changed(make: Make) -> None:
    student = make("def f(x): x += 1")
    kept = student.put(torch.zeros(2))
    student.f(kept)
    assert_close(kept.get(), torch.ones(2))


def test_what_a_callback_returns_may_be_added_to_in_place_as_in_a_notebook(make: Make) -> None:
    linear = nn.Linear(3, 3)
    student = make("def f(x, sub):\n    out = sub(x)[0]\n    out += x\n    return out")
    x = torch.ones(2, 3, requires_grad=True)
    assert_close(student.f(x, lambda x: [linear(x)]), linear(x) + x)


def test_an_answer_that_overwrites_what_its_gradient_needs_is_told_so(make: Make) -> None:
    student = make("def f(x):\n    y = x.exp()\n    y += 1\n    return y")
    with pytest.raises(RuntimeError, match="a tensor that the gradient needs was overwritten in place"):
        student.f(torch.ones(2, requires_grad=True)).sum().backward()


def test_callbacks_run_on_the_trusted_side(make: Make) -> None:
    student = make("def f(g, n): return [g(torch.tensor(float(i))) for i in range(n)]")
    seen = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.item())
        return x * 2

    assert [y.item() for y in student.f(double, 3)] == [0.0, 2.0, 4.0]
    assert seen == [0.0, 1.0, 2.0]


def test_a_students_error_is_of_the_type_that_was_raised(make: Make) -> None:
    student = make(
        "class Odd(ValueError): pass\n"
        "def f(kind): raise {'v': ValueError, 'k': KeyError, 'o': Odd, 'u': UnicodeError}[kind]('said')\n"
    )
    for kind, expected in (("v", ValueError), ("k", KeyError), ("o", ValueError), ("u", ValueError)):
        with pytest.raises(expected, match="said") as raised:
            student.f(kind)
        assert isinstance(raised.value, StudentError)
        assert "line 2 of cell c0" in raised.value.sentence


def test_what_is_not_written_yet_is_told_apart_from_an_error(make: Make) -> None:
    student = make("def f(): raise NotImplementedError", "def g(: pass")
    for name, said in (("f", "NotImplementedError"), ("h", "`h` is not defined")):
        with pytest.raises(Unfinished) as raised:
            getattr(student, name)()
        assert said in raised.value.sentence
    student._begin("e1")
    with pytest.raises(StudentError, match="so `g` is not defined") as raised:
        student.g()
    assert not isinstance(raised.value, Unfinished), "its cell was written, and failed"
    assert raised.value.sentence.startswith("SyntaxError: invalid syntax (line 1)")


def test_a_hanging_call_costs_its_own_exercise_alone(make: Make) -> None:
    student = make("def f():\n  while True: pass", "def g(): return 1")
    with pytest.raises(WorkerLost) as lost:
        student.f()
    assert lost.value.outcome is Outcome.TIMED_OUT
    with pytest.raises(WorkerLost):
        student._begin("e0")  # its next test does not wait again
    student._begin("e1")
    assert student.g() == 1


def test_a_hanging_cell_is_left_out_and_the_others_run(make: Make) -> None:
    student = make("while True: pass", "def g(): return 1")
    assert [bool(run.error) for run in student._cell_runs()] == [False, True, False]
    assert "timed out" in student._cell_runs()[1].error
    student._begin("e1")
    assert student.g() == 1


def test_a_submission_that_keeps_losing_workers_ends(make: Make) -> None:
    student = make()
    student._cells += [(f"loop {i}", "", "while True: pass") for i in range(6)]
    student._close()
    with pytest.raises(WorkerLost, match="had to be stopped 4 times") as lost:
        student._cell_runs()
    assert lost.value.outcome is Outcome.TIMED_OUT


def test_endless_callbacks_end(make: Make) -> None:
    student = make("def f(g):\n  while True: g()")
    with pytest.raises(WorkerLost) as lost:
        student.f(lambda: None)
    assert lost.value.outcome is Outcome.TIMED_OUT


def test_stand_ins_replace_other_exercises_for_one_exercise_only(make: Make) -> None:
    student = make(
        "def f(): return 'theirs'", "def g(): return f()", stand_ins={"e1": "def f(): return 'ours'"}, reserved=()
    )
    assert student.g() == "theirs"
    student._begin("e1")
    assert student.g() == "ours"
    student._begin("e0")
    assert student.f() == "theirs"


def test_what_the_exercise_is_about_cannot_be_called_except_by_stand_ins(make: Make) -> None:
    stand_in = "import torch\ndef f(x, original=torch.nn.functional.silu): return original(x)"
    student = make(
        "def f(x): return nn.functional.silu(x)", stand_ins={"e1": stand_in}, reserved=("torch.nn.functional.silu",)
    )
    with pytest.raises(RuntimeError, match="silu cannot be called here"):
        student.f(torch.ones(1))
    student._begin("e1")
    assert_close(student.f(torch.ones(1)), torch.nn.functional.silu(torch.ones(1)))


def test_a_reserved_function_may_live_in_a_module_that_is_not_imported_yet(make: Make) -> None:
    student = make(
        "import torch.nn.utils.prune as prune\ndef f(): return prune.l1_unstructured(nn.Linear(2, 2), 'weight', 0.5)",
        reserved=("torch.nn.utils.prune.l1_unstructured",),
    )
    with pytest.raises(RuntimeError, match="l1_unstructured cannot be called here"):
        student.f()


def test_reserving_what_is_not_there_is_not_passed_over(make: Make) -> None:
    with pytest.raises(LookupError, match="RESERVED names something that is not there"):
        make("def f(): return 1", reserved=("torch.nn.functional.no_such_function",)).f()


def test_patching_the_library_changes_nothing_on_this_side(make: Make) -> None:
    student = make(
        "torch.allclose = torch.equal = lambda *a, **k: True\n"
        "torch.Tensor.__eq__ = lambda *a: True\ndef f(): return torch.zeros(2)"
    )
    with pytest.raises(AssertionError, match="2 of 2 entries"):
        assert_close(student.f(), torch.ones(2))
    assert not torch.allclose(torch.zeros(1), torch.ones(1))


def test_seeds_are_the_same_before_each_test(make: Make) -> None:
    student = make(
        "import random, numpy as np\ndef f(): return [torch.rand(1).item(), random.random(), float(np.random.rand())]"
    )
    first = student.f()
    student._begin("e0")
    assert student.f() == first


def test_what_one_exercise_sets_globally_costs_no_other(make: Make) -> None:
    student = make(
        "def f(): torch.set_default_dtype(torch.float64); torch.set_default_device('meta')",
        "def g(): return torch.ones(2)",
    )
    student.f()
    student._begin("e1")
    assert_close(student.g(), torch.ones(2))


MESSAGES: list[tuple[Any, torch.Tensor, str]] = [
    (None, torch.zeros(2), "is a `return` missing"),
    ([1.0], torch.zeros(1), "should be a tensor, but it is a list"),
    (torch.zeros(3), torch.zeros(2), "should have shape (2,), but it has shape (3,)"),
    (torch.zeros(2).double(), torch.zeros(2), "should be float32, but it is float64"),
    (torch.tensor([0.0, float("nan")]), torch.zeros(2), "1 of 2 entries of the result are NaN"),
    (torch.tensor([0.0, float("inf")]), torch.zeros(2), "are infinite"),
    (torch.tensor([[0.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 2), "off by up to 3, the largest at position (1, 1)"),
    (torch.tensor([True, False]), torch.tensor([False, False]), "1 of 2 entries of the result are wrong"),
]


@pytest.mark.parametrize(("actual", "expected", "said"), MESSAGES)
def test_a_failed_assertion_says_what_is_wrong(actual: Any, expected: torch.Tensor, said: str) -> None:
    with pytest.raises(AssertionError) as failed:
        assert_close(actual, expected)
    assert said in str(failed.value)


def test_a_failed_assertion_shows_no_expected_value() -> None:
    with pytest.raises(AssertionError) as failed:
        assert_close(torch.zeros(3), torch.tensor([0.0, 0.0, 0.123456]))
    assert "0.123456" not in str(failed.value).replace("0.123 ", "")


def test_infinities_that_are_meant_are_equal() -> None:
    assert_close(torch.tensor([-float("inf"), 1.0]), torch.tensor([-float("inf"), 1.0]))
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([0.0, 1.0]), torch.tensor([-float("inf"), 1.0]))


def test_tensor_checks_the_shape_and_returns_it() -> None:
    x = torch.zeros(2)
    assert tensor(x, shape=(2,), dtype=torch.float32) is x


def test_transcripts_are_equal_within_rounding_only() -> None:
    x = torch.tensor([1.0, float("nan")])
    assert same_transcript([x, {"a": [1.0]}], [x + 1e-8, {"a": [1.0 + 1e-9]}])
    assert not same_transcript([x], [x + 1])
    assert not same_transcript([x], [x, x])
    assert not same_transcript([], [])


def test_text_from_a_submission_loses_control_and_direction_characters() -> None:
    assert clean("a\x1b[31mb\u202ec\x00\nd") == "abc\nd"
    assert len(clean("x" * 50_000)) < 2100


@pytest.mark.parametrize(
    ("source", "borrows"),
    [
        ("def softmax(x): return x.exp()", False),
        ("y = softmax(x)  # not torch.softmax", False),
        ("y = x.softmax(-1)", True),
        ("y = getattr(torch, 'softmax')(x, -1)", True),
        ("from torch import exp, softmax as s", True),
        ("from torch.nn.functional import (\n    relu,\n    softmax,\n)", True),
        ("import torch\n\nsoftmax = 1", False),
    ],
)
def test_only_naming_the_librarys_function_is_a_borrowing(source: str, borrows: bool) -> None:
    assert ("softmax" in names_of_others(source)) is borrows


@pytest.mark.parametrize("part", ["import (", "import ", "from ", ". ", "' ", '"', "import (a, "])
def test_looking_for_borrowings_takes_time_in_proportion_to_the_text(part: str) -> None:
    def seconds(times: int) -> float:
        start = time.process_time()
        names_of_others(part * times)
        return time.process_time() - start

    assert seconds(200_000) < 40 * max(seconds(20_000), 0.005)


TWO_LAYERS = """
class Two(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
        self.factor = factor
    def forward(self, x):
        return self.blocks[1](self.factor * self.blocks[0](x))
"""


def test_the_first_sublayer_that_differs_is_named(make: Make) -> None:
    student = make(TWO_LAYERS)
    x, weights = torch.ones(1, 2), {f"blocks.{i}.weight": torch.eye(2) * (i + 2) for i in range(2)}
    trace = {"absent": x, "blocks.0": 2 * x, "blocks.1": 6 * x, "": 6 * x}
    sentences = []
    for factor in (1.0, 1.1):
        model = student.Two(factor)
        model.load_state_dict(weights)
        sentences.append(first_difference(model, trace, lambda model=model: model(x)))
    assert sentences == ["", "The first sub-layer whose output differs is blocks.1; blocks.0 before it agrees."]


# -- answers of our own, one after the other in one worker ------------------------------------------------------------


def after(first: Student, make: Make, *cells: str, **more: Any) -> Student:
    """A submission of these cells that goes on in the worker of the first."""
    second = make(*cells, **more)
    second._close()
    second._runs.clear()
    second._adopt(first)
    second._begin("e0")
    return second


def test_the_next_answer_replaces_the_one_before_it_in_the_same_worker(make: Make) -> None:
    first = make("def double(x):\n    return 3 * x", "def both(x):\n    return double(x), 1")
    assert first.both(2) == (6, 1)
    worker, taken = first._worker, first._taken()
    second = after(
        first, make, "def double(x):\n    raise ValueError(f'not {x}')", "def both(x):\n    return double(x)"
    )
    assert second._worker is worker is not None
    assert first._worker is None
    with pytest.raises(ValueError, match="not 4"):
        second.both(4)
    assert second._taken() == pytest.approx(worker.seconds - taken)
    assert [run.error for run in second._cell_runs()] == ["", "", ""]


def test_of_the_answer_before_it_nothing_is_defined_any_more(make: Make) -> None:
    first = make("torch.set_default_dtype(torch.float64)\ndef double(x):\n    return 2 * x\nkept = []")
    assert first.double(2) == 4
    second = after(
        first, make, "def other():\n    return kept", "dtype = str(torch.ones(1).dtype)\nlater = lambda: dtype"
    )
    with pytest.raises(Unfinished, match="`double` is not defined"):
        second.double(2)
    with pytest.raises(StudentError, match="'kept' is not defined"):
        second.other()
    assert second.later() == "torch.float32"


def test_what_is_reserved_and_the_stand_ins_are_those_of_the_answer_that_runs(make: Make) -> None:
    silu = {"reserved": ("torch.nn.functional.silu",), "stand_ins": {"e0": "def helper(x): return x + 1"}}
    code = "def helper(x): return x\ndef f(x): return nn.functional.silu(helper(x))"
    first = make(code, **silu)
    with pytest.raises(StudentError, match="silu cannot be called here"):
        first.f(torch.ones(1))
    second = after(first, make, code)
    assert_close(second.f(torch.ones(1)), torch.nn.functional.silu(torch.ones(1)))
    third = after(second, make, code, **silu)
    with pytest.raises(StudentError, match="silu cannot be called here"):
        third.f(torch.ones(1))
    assert third.helper(1) == 2


@pytest.mark.parametrize("breaks", ["import os; os._exit(3)", "raise KeyError", "while True: pass"])
def test_an_answer_that_breaks_costs_the_next_nothing(make: Make, breaks: str) -> None:
    first = make(f"def double(x):\n    {breaks}")
    with pytest.raises((WorkerLost, StudentError)):
        first.double(2)
    assert after(first, make, "def double(x):\n    return 2 * x").double(2) == 4


def test_an_answer_that_loses_the_worker_of_another_goes_on_in_a_new_one(make: Make) -> None:
    first = make("def double(x):\n    return 3 * x")
    worker = first._worker
    second = after(first, make, "def double(x):\n    return 2 * x", "while True:\n    pass")
    assert second._worker is not worker
    assert second.double(2) == 4
    assert "still computing" in second._cell_runs()[2].error
