"""Hidden tests of chapter 15. Expected values come from PyTorch: a run of the same model that was never stopped, the
Kullback–Leibler divergence of torch.distributions, and laws whose numbers are known because the data were made of them.

The run that is stopped lives in the student's process (the stand-in `Run`); the one that is not is made here, from the
same seeds, so that no answer can change both.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import normal

State = dict[str, Any]
ENTRIES = ("model", "optimiser", "schedule", "generators", "torch", "step")


def refused(call: Callable[[], object], what: str) -> str:
    """The sentence of the ValueError that a call raises."""
    raised: StudentError | None = None
    try:
        call()
    except Unfinished:
        raise
    except StudentError as error:
        raised = error
    told = f"{what} raises {raised.types[0] if raised else 'nothing'}"
    assert isinstance(raised, ValueError), f"{told}, and it should raise a ValueError."
    return str(raised)


def number(found: object, name: str) -> float:
    assert type(found) is float, f"{name} should return a float, and it returns a {type(found).__name__}."
    return found


# -- a run, on the trusted side ---------------------------------------------------------------------------------------


class Trusted:
    """The same run as the stand-in's."""

    def __init__(self, seed: int, width: int = 5, momentum: bool = False) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 3)
        )
        self.optimiser: torch.optim.Optimizer
        self.schedule: torch.optim.lr_scheduler.LRScheduler
        if momentum:
            self.optimiser = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
            self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, 3, gamma=0.5)
        else:
            self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=0.1)
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, 12)
        self.generators = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("data", "noise"), 1)}

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x = torch.randn(8, 4, generator=self.generators["data"])
            noise = 0.1 * torch.randn(8, 4, generator=self.generators["noise"])
            self.optimiser.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x + noise), x[:, :3].argmax(-1))
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            losses.append(loss.item())
        return losses

    def state(self, step: int) -> State:
        return clone(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "generators": {name: generator.get_state() for name, generator in self.generators.items()},
                "torch": torch.get_rng_state(),
                "step": step,
            }
        )

    def receive(self, state: State) -> None:
        state = clone(state)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        torch.set_rng_state(state["torch"])


def clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: clone(item) for key, item in value.items()}
    return type(value)(clone(item) for item in value) if type(value) in (list, tuple) else value


def leaves(value: Any, name: str = "the state") -> Iterator[tuple[str, Any]]:
    """Every value in a state with the way to it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}[{i}]")
    else:
        yield name, value


def is_state(found: object) -> State:
    """A dict with the six entries, and what is in them plain."""
    assert isinstance(found, dict), f"save_state should return a dict, not {shown(found)}."
    assert set(found) == set(ENTRIES), f"The state has the entries {sorted(str(name) for name in found)}."
    for name in ENTRIES[:4]:
        assert isinstance(found[name], dict), f"state[{name!r}] should be a dict, and it is {shown(found[name])}."
    return found


def shown(value: object) -> str:
    return repr(value) if isinstance(value, Remote) else f"a {type(value).__name__}"


def same_state(found: Any, expected: Any, claim: str, only: tuple[str, ...] = ENTRIES) -> None:
    """Every leaf of two states is equal."""
    for entry in only:
        ours, theirs = dict(leaves(found[entry], entry)), dict(leaves(expected[entry], entry))
        assert set(ours) == set(theirs), f"{claim}: the {entry} state holds {sorted(ours)[:12]} …"
        for name, value in theirs.items():
            if isinstance(value, Tensor):
                assert_close(ours[name], value, atol=1e-6, rtol=1e-5, claim=claim, name=name)
            elif isinstance(value, float):
                close = isinstance(ours[name], float) and math.isclose(ours[name], value, rel_tol=1e-6, abs_tol=1e-9)
                assert close, f"{claim}: {name} is {ours[name]}, and should be another number."
            else:
                assert type(ours[name]) is type(value), f"{claim}: {name} is {shown(ours[name])}."
                assert ours[name] == value, f"{claim}: {name} has another value than it should."


def losses_of(found: object) -> Tensor:
    assert isinstance(found, list), "The run of the test should give a list of losses."
    return torch.tensor(found, dtype=torch.float64)


def same_losses(found: object, expected: list[float], claim: str) -> None:
    assert_close(losses_of(found), losses_of(expected), atol=1e-5, rtol=1e-5, claim=claim, name="the losses")


SEEDS = ((1, False), (2, True))  # with AdamW and a cosine; with momentum and steps


# -- save_state -------------------------------------------------------------------------------------------------------


def saved(student: Student, run: Remote, step: object) -> State:
    parts = (run.model, run.optimiser, run.schedule, run.generators)
    return has_weights(is_state(student.save_state(*parts, step)), run)


def has_weights(state: State, run: Remote) -> State:
    """At least the weights are there, whatever the claim: a state of nothing makes none of them true."""
    for name, value in run.model.state_dict().items():
        if str(name).endswith(("weight", "bias")):
            assert_close(state["model"].get(name), value, name=f"state['model'][{name!r}]")
    return state


@pytest.mark.exercise("save_state")
def test_the_state_has_six_entries(student: Student) -> None:
    """A dict with model, optimiser, schedule, generators, torch and step; the first four are dicts."""
    run = student.Run(3)
    for step in (0, 17, 250_000):
        state = saved(student, run, step)
        assert type(state["step"]) is int, f"state['step'] should be an int, and it is {shown(state['step'])}."
        assert state["step"] == step, "state['step'] is not the step that was given."
        tensor(state["torch"], dtype=torch.uint8, name="state['torch']")
        assert set(state["generators"]) == {"data", "noise"}, (
            f"state['generators'] has the names {sorted(state['generators'])}."
        )


@pytest.mark.exercise("save_state")
def test_everything_in_it_is_plain_data(student: Student) -> None:
    """Only dicts, lists, tuples, tensors, numbers, strings, booleans and None: no object that must be unpickled."""
    for seed, momentum in SEEDS:
        run = student.Run(seed, 5, momentum)
        run.train(2)
        for name, value in leaves(saved(student, run, 2)):
            plain = value is None or type(value) in (Tensor, int, float, bool, str)
            assert plain, f"{name} is {shown(value)}, which is no plain data."


@pytest.mark.exercise("save_state", weight=3)
def test_a_run_goes_on_from_it_with_the_same_losses(student: Student) -> None:
    """Loaded into a new run, the state gives the losses of a run that was never stopped, dropout included."""
    for seed, momentum in SEEDS:
        run = student.Run(seed, 5, momentum)
        run.train(4)
        state = saved(student, run, 4)
        whole = Trusted(seed, momentum=momentum)
        whole.train(4)
        same_state(state, whole.state(4), "after 4 steps")
        expected = whole.train(4)
        resumed = Trusted(seed + 50, momentum=momentum)
        resumed.train(1)
        resumed.receive(state)
        same_losses(resumed.train(4), expected, "resumed after 4 steps")


@pytest.mark.exercise("save_state")
def test_buffers_are_saved_too(student: Student) -> None:
    """What a model remembers without learning it, such as the mean of a batch norm, is part of its state."""
    run, whole = student.Run(4), Trusted(4)
    run.train(3)
    whole.train(3)
    model = saved(student, run, 3)["model"]
    expected = whole.model.state_dict()
    assert set(model) == set(expected), f"state['model'] holds {sorted(str(name) for name in model)}."
    for name, value in expected.items():
        assert_close(model[name], value, atol=1e-5, name=f"state['model'][{name!r}]")


@pytest.mark.exercise("save_state")
def test_the_optimisers_memory_is_saved(student: Student) -> None:
    """The moments of AdamW and the momentum of SGD, one for each weight, and the learning rate as it is now."""
    for seed, momentum in SEEDS:
        run, whole = student.Run(seed, 4, momentum), Trusted(seed, 4, momentum)
        run.train(3)
        whole.train(3)
        same_state(saved(student, run, 3), whole.state(3), "after 3 steps", only=("optimiser", "schedule"))


@pytest.mark.exercise("save_state", weight=1.5)
def test_the_state_of_each_generator_is_saved(student: Student) -> None:
    """Each generator's state as it is now, and that of PyTorch's own, not the seeds that they began with."""
    run, whole = student.Run(6), Trusted(6)
    run.train(3)
    whole.train(3)
    state, expected = saved(student, run, 3), whole.state(3)
    for name in ("data", "noise"):
        assert name in state["generators"], f"state['generators'] has no {name!r}."
        assert_close(
            state["generators"][name], expected["generators"][name], name=f"the state of the generator {name!r}"
        )
    assert_close(state["torch"], expected["torch"], name="the state of PyTorch's own generator")


@pytest.mark.exercise("save_state", weight=2)
def test_a_later_step_does_not_change_it(student: Student) -> None:
    """A state is a photograph: it stays as it was while the run goes on."""
    for seed, momentum in SEEDS:
        run = student.Run(seed, 5, momentum)
        run.train(3)
        run.keep(3)
        before = has_weights(is_state(run.kept), run)
        run.train(2)
        same_state(is_state(run.kept), before, "after two more steps")


@pytest.mark.exercise("save_state")
def test_saving_changes_nothing(student: Student) -> None:
    """A run that saves has the same losses as one that does not, and is still training."""
    run, whole = student.Run(8), Trusted(8)
    run.train(2)
    whole.train(2)
    saved(student, run, 2)
    assert run.model.training is True, "After the call the model is no longer in training."
    same_losses(run.train(3), whole.train(3), "after a call of save_state")


@pytest.mark.exercise("save_state", weight=0.5)
def test_a_run_without_generators_is_saved(student: Student) -> None:
    """generators may be empty, and may have any names."""
    run = student.Run(9)
    parts = (run.model, run.optimiser, run.schedule)
    state = has_weights(is_state(student.save_state(*parts, {}, 1)), run)
    assert state["generators"] == {}, "Without generators, state['generators'] should be empty."
    states = is_state(student.save_state(*parts, {"mask": run.generators["data"]}, 1))["generators"]
    assert list(states) == ["mask"], f"For a generator named 'mask', state['generators'] has {sorted(states)}."


# -- load_state -------------------------------------------------------------------------------------------------------


def parts_of(run: Remote) -> tuple[Any, ...]:
    return run.model, run.optimiser, run.schedule, run.generators


@pytest.mark.exercise("load_state", weight=3)
def test_a_loaded_run_has_the_same_losses(student: Student) -> None:
    """A new run, loaded, has exactly the losses of one that was never stopped."""
    for seed, momentum in SEEDS:
        whole = Trusted(seed, momentum=momentum)
        whole.train(4)
        state = whole.state(4)
        expected = whole.train(4)
        run = student.Run(seed + 30, 5, momentum)
        run.train(2)
        student.load_state(state, *parts_of(run))
        same_losses(run.train(4), expected, "loaded after 4 steps")


@pytest.mark.exercise("load_state")
def test_the_step_comes_back(student: Student) -> None:
    """load_state returns the step at which the run stood."""
    for step in (0, 12, 90_000):
        run = student.Run(2)
        found = student.load_state(Trusted(1).state(step), *parts_of(run))
        assert type(found) is int, f"load_state should return an int, and it returns {shown(found)}."
        assert found == step, f"The state was made at step {step}, and load_state returns {found}."
        expected = Trusted(1).model.state_dict()["0.weight"]
        assert_close(run.model.state_dict()["0.weight"], expected, name="0.weight")


@pytest.mark.exercise("load_state")
def test_weights_and_buffers_are_those_of_the_state(student: Student) -> None:
    """The model's whole state dict is the checkpoint's, in place."""
    whole, run = Trusted(3), student.Run(4)
    whole.train(3)
    model = run.model
    student.load_state(whole.state(3), *parts_of(run))
    for name, value in whole.model.state_dict().items():
        assert_close(model.state_dict()[name], value, atol=0, rtol=0, name=name)


@pytest.mark.exercise("load_state")
def test_the_optimiser_remembers_and_the_schedule_goes_on(student: Student) -> None:
    """Moments, momentum and learning rate are the checkpoint's, and the schedule is where it was."""
    for seed, momentum in SEEDS:
        whole, run = Trusted(seed, momentum=momentum), student.Run(seed + 9, 5, momentum)
        whole.train(5)
        student.load_state(whole.state(5), *parts_of(run))
        found = {"optimiser": run.optimiser.state_dict(), "schedule": run.schedule.state_dict()}
        same_state(found, whole.state(5), "after loading", only=("optimiser", "schedule"))


@pytest.mark.exercise("load_state", weight=1.5)
def test_every_generator_is_set(student: Student) -> None:
    """Each generator draws what it would have drawn, and so does PyTorch's own."""
    whole, run = Trusted(5), student.Run(6)
    whole.train(2)
    state = whole.state(2)
    state["generators"] = dict(reversed(state["generators"].items()))  # they have names, and no order
    run.train(1)
    student.load_state(state, *parts_of(run))
    for name, generator in run.generators.items():
        assert_close(generator.get_state(), state["generators"][name], name=f"the state of the generator {name!r}")
    run.optimiser.zero_grad()
    same_losses(run.train(1), whole.train(1), "the first loss after loading")


@pytest.mark.exercise("load_state", weight=2)
def test_the_same_state_can_be_loaded_twice(student: Student) -> None:
    """The state belongs to the caller: loading and training on leave it as it was."""
    for seed, momentum in SEEDS:
        whole, run = Trusted(seed, momentum=momentum), student.Run(seed + 4, 5, momentum)
        whole.train(3)
        state = whole.state(3)
        expected = whole.train(3)
        for claim in ("loaded once", "loaded again after 3 steps"):
            run.receive(state)
            same_losses(run.train(3), expected, claim)
        same_state(run.kept, state, "after loading it twice")


@pytest.mark.exercise("load_state", weight=1.5)
def test_another_shape_is_refused(student: Student) -> None:
    """A checkpoint of a model of another shape raises a ValueError that names an entry that does not fit."""
    wrong = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "4.weight"}
    for width in (6, 1):
        run = student.Run(1, width)
        message = refused(partial(student.load_state, Trusted(1).state(1), *parts_of(run)), "A wrong shape")
        assert any(name in message for name in wrong), f"The sentence names no entry that does not fit: {message}"
        assert not re.search(r"\b4\.bias", message), "The sentence names 4.bias, which does fit."
    state, run = Trusted(1).state(1), student.Run(2)
    state["model"]["0.weight"] = state["model"]["0.weight"].mT.clone()  # as many numbers
    message = refused(partial(student.load_state, state, *parts_of(run)), "A transposed weight")
    assert "0.weight" in message, f"The sentence does not name 0.weight: {message}"
    state, run = Trusted(1).state(1), student.Run(2)
    state["model"]["1.running_var"] = torch.ones(6)
    message = refused(partial(student.load_state, state, *parts_of(run)), "A wrong shape of a buffer")
    assert "1.running_var" in message, f"The sentence does not name 1.running_var: {message}"


@pytest.mark.exercise("load_state")
def test_missing_and_unknown_names_are_refused(student: Student) -> None:
    """A name that only the model or only the checkpoint has raises a ValueError with that name in it."""
    for change in ("missing", "unknown"):
        state, run = Trusted(1).state(1), student.Run(2)
        name = "4.bias" if change == "missing" else "7.scale"
        if change == "missing":
            del state["model"][name]
        else:
            state["model"][name] = torch.ones(2)
        message = refused(partial(student.load_state, state, *parts_of(run)), f"A checkpoint with a name {change}")
        assert name in message, f"The sentence does not name {name}: {message}"


@pytest.mark.exercise("load_state")
def test_generators_of_other_names_are_refused(student: Student) -> None:
    """A generator that only the run or only the checkpoint has raises a ValueError with its name in it."""
    run = student.Run(2)
    data, noise = run.generators["data"], run.generators["noise"]
    model, optimiser, schedule, _ = parts_of(run)
    for generators, name in (({"data": data}, "noise"), ({"data": data, "noise": noise, "masks": noise}, "masks")):
        message = refused(
            partial(student.load_state, Trusted(1).state(1), model, optimiser, schedule, generators),
            "A generator that is not on both sides",
        )
        assert name in message, f"The sentence does not name {name!r}: {message}"


@pytest.mark.exercise("load_state", weight=2)
def test_a_refused_state_changes_nothing(student: Student) -> None:
    """All or nothing: after a ValueError the run goes on as if load_state had never been called."""
    for entry in ("model", "generators"):
        whole = Trusted(7)
        expected = whole.train(4)
        other = Trusted(8)
        other.train(3)
        state = other.state(3)
        if entry == "model":
            state["model"]["4.weight"] = torch.ones(3, 6)  # nearly the last one: what comes before it fits
        else:
            state["generators"]["more"] = state["generators"].pop("noise")
        run = student.Run(7)
        first = run.train(2)
        refused(partial(student.load_state, state, *parts_of(run)), f"A wrong {entry} entry")
        same_losses(first + run.train(2), expected, f"after a refused state ({entry})")
        for name, value in whole.model.state_dict().items():
            assert_close(
                run.model.state_dict()[name], value, atol=1e-5, claim=f"after a refused state ({entry})", name=name
            )


# -- mutual_information -----------------------------------------------------------------------------------------------


def labels(n: int, kinds: int, seed: int) -> Tensor:
    return torch.randint(kinds, (n,), generator=torch.Generator().manual_seed(seed))


def joint(x: Tensor, y: Tensor) -> Tensor:
    """The table of counts of two rows of labels from 0 on."""
    rows, columns = int(x.max()) + 1, int(y.max()) + 1
    return torch.bincount(x * columns + y, minlength=rows * columns).view(rows, columns)


def information(x: Tensor, y: Tensor) -> float:
    """PyTorch's divergence of the joint distribution from the product of its margins."""
    p = joint(x, y).double()
    p = p / p.sum()
    product = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    seen = product > 0
    return kl_divergence(Categorical(p[seen]), Categorical(product[seen])).item()


def check(student: Student, x: Tensor, y: Tensor, expected: float, claim: str, atol: float = 1e-6) -> float:
    found = number(student.mutual_information(x, y), "mutual_information")
    assert math.isfinite(found), f"{claim}: the result is {found}."
    assert abs(found - expected) <= atol, f"{claim}: the result is off by {abs(found - expected):.3g} nats."
    return found


@pytest.mark.exercise("mutual_information", weight=3)
def test_it_is_the_divergence_from_independence(student: Student) -> None:
    """The sum over pairs of p(x, y) ln p(x, y)/(p(x) p(y)), with shares for probabilities, in nats."""
    for seed, (n, rows, columns) in enumerate(((50, 3, 4), (500, 8, 20), (333, 2, 2), (90, 7, 60))):
        x = labels(n, rows, seed)
        y = (labels(n, columns, seed + 10) + x * (labels(n, 3, seed + 20) > 0)) % columns
        check(student, x, y, information(x, y), f"{n} pairs of {rows} and {columns} labels")


@pytest.mark.exercise("mutual_information")
def test_independent_labels_share_nothing(student: Student) -> None:
    """Where every pair is as frequent as the product of the shares says, the result is 0."""
    for a, b in (((1, 2, 3), (1, 4)), ((5, 1), (2, 2, 1))):
        table = torch.outer(torch.tensor(a), torch.tensor(b))
        pairs = table.nonzero().repeat_interleave(table.flatten(), 0)
        check(student, pairs[:, 0], pairs[:, 1], 0.0, f"shares like {a} and {b}")
    x = labels(50, 3, 1)
    assert number(student.mutual_information(x, x), "mutual_information") > 0.5, "A row and its copy share nothing."


@pytest.mark.exercise("mutual_information")
def test_a_row_shares_its_whole_entropy_with_its_own_copy(student: Student) -> None:
    """I(X; X) is the entropy of X, and renaming the labels one to one changes nothing."""
    x = labels(200, 9, 1)
    names = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    entropy = Categorical(torch.bincount(x).double()).entropy().item()
    check(student, x, x, entropy, "a row and itself")
    check(student, x, names[x], entropy, "a row and itself under other names")


@pytest.mark.exercise("mutual_information", weight=1.5)
def test_labels_are_names(student: Student) -> None:
    """Negative labels, huge ones and ones with gaps are as good as 0, 1, 2, and cost no more."""
    x, y = labels(300, 5, 3), labels(300, 4, 4)
    y = torch.where(y == 0, x % 4, y)
    expected = information(x, y)
    check(student, x - 1, y - 1, expected, "with negative labels")
    check(student, x * 10**15 - 7, y, expected, "with labels of 10¹⁵")
    check(student, x, y * 10**9 + 2**60, expected, "with labels of 2⁶⁰")
    check(student, x + 2**60, y, expected, "with neighbours from 2⁶⁰ on")
    check(student, x * 2**61, y * -(2**61), expected, "with labels up to 2⁶³")
    check(student, 3 * x, 1000 - 7 * y, expected, "with gaps")


@pytest.mark.exercise("mutual_information")
def test_it_is_symmetric_and_never_more_than_either_entropy(student: Student) -> None:
    """I(X; Y) = I(Y; X), also with 1 kind on one side, and at most the smaller entropy."""
    x, y = labels(120, 4, 5), labels(120, 30, 6)
    one = check(student, x, y, information(x, y), "4 against 30 kinds")
    other = check(student, y, x, information(x, y), "30 against 4 kinds")
    assert abs(one - other) < 1e-6, "Exchanging x and y changes the result."
    check(student, x, torch.full((120,), 6), 0.0, "against one and the same label")
    check(student, torch.full((120,), -1), y, 0.0, "one and the same label against others")


@pytest.mark.exercise("mutual_information")
def test_knowing_more_never_tells_less(student: Student) -> None:
    """The chain rule: labels of pairs (y, z) share at least as much with x as y alone."""
    x, y, z = labels(200, 4, 7), labels(200, 5, 8), labels(200, 3, 9)
    pair = y * 3 + z
    less = check(student, x, y, information(x, y), "y alone")
    more = check(student, x, pair, information(x, pair), "y and z")
    assert more >= less, "x shares less with (y, z) than with y alone."


@pytest.mark.exercise("mutual_information")
def test_many_tokens_and_few(student: Student) -> None:
    """From one token to a hundred thousand: counted and summed in float64."""
    check(student, torch.tensor([4]), torch.tensor([-2]), 0.0, "one token")
    check(student, torch.tensor([1, 2]), torch.tensor([5, 5]), 0.0, "two tokens")
    check(student, torch.arange(3), torch.arange(3) + 8, math.log(3), "three tokens, all different")
    x = labels(100_000, 8, 10)
    y = (labels(100_000, 900, 11) + 100 * x) % 1000
    check(student, x, y, information(x, y), "100,000 tokens")
    x = labels(100_000, 3000, 12)
    entropy = Categorical(torch.bincount(x).double()).entropy().item()
    check(student, x, x - 5, entropy, "100,000 tokens of 3000 kinds", atol=1e-9)


@pytest.mark.exercise("mutual_information", weight=0.5)
def test_unequal_lengths_are_refused(student: Student) -> None:
    """Rows of different length raise a ValueError that names both lengths, also where one would broadcast."""
    number(student.mutual_information(labels(7, 3, 1), labels(7, 3, 2)), "mutual_information")  # these are equally long
    for a, b in ((7, 5), (9, 1), (1, 4)):
        message = refused(partial(student.mutual_information, labels(a, 3, 1), labels(b, 3, 2)), f"{a} and {b} labels")
        named = {int(found) for found in re.findall(r"\d+", message)}
        assert {a, b} <= named, f"The sentence does not name both lengths: {message}"


@pytest.mark.exercise("mutual_information", weight=0.5)
def test_the_labels_are_left_as_they_were(student: Student) -> None:
    """x and y belong to the caller."""
    x, y = labels(60, 4, 12), labels(60, 5, 13)
    kept_x, kept_y = student.put(x), student.put(y)
    found = number(student.mutual_information(kept_x, kept_y), "mutual_information")
    assert abs(found - information(x, y)) < 1e-6, "The result is wrong."
    for kept, value, name in ((kept_x, x, "x"), (kept_y, y, "y")):
        assert_close(kept.get(), value, claim="after the call", name=name)


# -- shuffled_null ----------------------------------------------------------------------------------------------------


def null(student: Student, x: Tensor, y: Tensor, n: int, seed: int) -> Tensor:
    """The null, of which the mean must be near that of shuffled labels, whatever the claim."""
    found = tensor(student.shuffled_null(x, y, n, seed), shape=(n,), dtype=torch.float64)
    orders = [torch.randperm(len(y), generator=torch.Generator().manual_seed(i)) for i in range(12)]
    ours = torch.tensor([information(x, y[order]) for order in orders], dtype=torch.float64)
    error = (found.mean() - ours.mean()).abs().item()
    assert error <= 1e-6 + 7 * ours.std().item() * (n**-0.5 + 12**-0.5), (
        f"The values are {found.mean() / ours.mean():.2g} times as large as those of shuffled labels, on average."
    )
    return found


def attainable(x: Tensor, y: Tensor) -> Tensor:
    """The information of x and every permutation of y."""
    orders = torch.tensor(list(permutations(range(len(y)))))
    found = {tuple(row): 0.0 for row in y[orders].tolist()}
    found = {row: information(x, torch.tensor(row)) for row in found}
    return torch.tensor([found[tuple(row)] for row in y[orders].tolist()], dtype=torch.float64)


SMALL = (torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([3, 3, 3, 1, 1, 1]))


@pytest.mark.exercise("shuffled_null")
def test_it_is_a_row_of_float64(student: Student) -> None:
    """One float64 for each shuffle, each finite and at least 0."""
    x, y = labels(50, 4, 1), labels(50, 6, 2)
    for n in (1, 7):
        found = null(student, x, y, n, 3)
        assert found.isfinite().all(), "A value is NaN or infinite."
        assert (found > -1e-9).all(), "Information is never negative."
        assert (found > 0).any(), "All values are 0: labels in a random order share a little by chance."


@pytest.mark.exercise("shuffled_null", weight=2)
def test_each_value_is_that_of_a_permutation(student: Student) -> None:
    """Every value is the information of x and some order of y: labels are shuffled, not drawn anew."""
    x, y = SMALL
    possible = attainable(x, y)
    found = null(student, x, y, 40, 1)
    off = (found[:, None] - possible).abs().amin(1)
    assert (off < 1e-6).all(), f"{int((off >= 1e-6).sum())} of 40 values belong to no order of the labels."
    distinct = torch.arange(12)
    same = null(student, distinct, distinct, 5, 2)
    assert_close(same, torch.full((5,), math.log(12), dtype=torch.float64), atol=1e-6, claim="where all labels differ")


@pytest.mark.exercise("shuffled_null", weight=2)
def test_all_orders_are_equally_likely(student: Student) -> None:
    """Over many shuffles the mean and the spread are those over all permutations."""
    x, y = SMALL
    possible = attainable(x, y)
    found = null(student, x, y, 400, 5)
    error = (found.mean() - possible.mean()).abs() / (possible.std() / 20)
    assert error < 4.5, f"The mean over 400 shuffles is {error:.0f} standard errors from where it should be."
    ratio = (found.std() / possible.std()).item()
    assert 0.8 < ratio < 1.25, f"The spread over 400 shuffles is {ratio:.2f} times what it should be."


@pytest.mark.exercise("shuffled_null")
def test_each_shuffle_is_a_new_one(student: Student) -> None:
    """The shuffles of one call differ from each other."""
    x, y = labels(200, 6, 3), labels(200, 30, 4)
    found = null(student, x, y, 20, 7)
    assert len(found.unique()) > 15, f"Of 20 shuffles only {len(found.unique())} differ."


@pytest.mark.exercise("shuffled_null")
def test_the_seed_decides(student: Student) -> None:
    """The same seed gives the same numbers, and another seed others."""
    x, y = labels(200, 6, 5), labels(200, 30, 6)
    first, again, other = (null(student, x, y, 6, seed) for seed in (11, 11, 12))
    assert_close(again, first, atol=0, rtol=0, claim="with the same seed")
    assert not torch.allclose(other, first), "Another seed gives the same numbers."


@pytest.mark.exercise("shuffled_null")
def test_pytorchs_own_generator_is_left_alone(student: Student) -> None:
    """Measuring does not change the random numbers of a run, neither by drawing from them nor by a new seed."""
    x, y = labels(100, 4, 7), labels(100, 5, 8)
    before = tensor(student.random_state(), dtype=torch.uint8)
    null(student, x, y, 3, 9)
    assert_close(student.random_state(), before, name="the state of PyTorch's own generator")


@pytest.mark.exercise("shuffled_null")
def test_a_strong_bond_is_broken(student: Student) -> None:
    """Where y is a copy of x, what is left after shuffling is a small part of the entropy."""
    x = labels(2000, 8, 9)
    kept_x, kept_y = student.put(x), student.put(x + 5)
    found = tensor(student.shuffled_null(kept_x, kept_y, 5, 1), shape=(5,), dtype=torch.float64)
    assert (found < 0.05).all(), f"After shuffling the copy still shares {found.max():.3g} nats with the row."
    assert (found > 0.001).all(), "After shuffling nothing at all is left: by chance there is a little."
    for kept, value, name in ((kept_x, x, "x"), (kept_y, x + 5, "y")):
        assert_close(kept.get(), value, claim="after the call", name=name)


# -- speedup_factor ---------------------------------------------------------------------------------------------------

Curve = tuple[Tensor, Tensor]


def curve(*points: tuple[float, float]) -> Curve:
    return torch.tensor([p[0] for p in points]).double(), torch.tensor([p[1] for p in points]).double()


def factor(student: Student, a: Curve, b: Curve, target: float) -> float:
    found = number(student.speedup_factor(*a, *b, target), "speedup_factor")
    assert not math.isnan(found), "The result is NaN."
    return found


def off(found: float, expected: float) -> float:
    """By what factor a positive number differs from what it should be."""
    return max(found / expected, expected / found) if found > 0 and math.isfinite(found) else math.inf


def check_factor(student: Student, a: Curve, b: Curve, target: float, expected: float, claim: str) -> None:
    found = factor(student, a, b, target)
    assert off(found, expected) < 1 + 1e-6, f"{claim}: the result is {found / expected:.4g} times what it should be."


@pytest.mark.exercise("speedup_factor")
def test_points_that_hit_the_target_need_no_interpolation(student: Student) -> None:
    """A loss that equals the target has reached it, also at the first point of a curve."""
    a = curve((1e6, 6), (3e6, 5), (9e6, 4), (27e6, 3), (81e6, 2))
    b = curve((2e6, 5), (5e6, 4), (6e6, 3), (7e6, 2.5), (8e6, 1.5))
    for target, expected in ((5, 1.5), (4, 1.8), (3, 4.5), (2, 81 / math.sqrt(56))):
        check_factor(student, a, b, target, expected, f"target {target}")


@pytest.mark.exercise("speedup_factor", weight=2)
def test_flops_are_interpolated_on_a_logarithmic_scale(student: Student) -> None:
    """Between two points the cost is where log FLOPs, as a straight line in the loss, meets the target."""
    b = curve((1e6, 1))
    for share in (0.1, 0.5, 0.75, 0.99):
        a = curve((2e6, 6), (3e8, 4))
        expected = math.exp((1 - share) * math.log(2) + share * math.log(300))
        check_factor(student, a, b, 6 - 2 * share, expected, f"{share:.0%} of the way down")
    flops, loss = torch.tensor([1e7, 3e7, 2e8, 5e9]).double(), torch.tensor([5.1, 4.3, 3.7, 3.2]).double()
    for target in (4.9, 4.0, 3.21):
        line = 5.0 - 0.2 * (flops / 1e6).log()  # a curve that is straight on this scale is met exactly
        expected = math.exp((5.0 - target) / 0.2)
        if line[-1] <= target <= line[0]:
            check_factor(student, (flops, line), curve((1e6, 0)), target, expected, f"target {target}")
    check_factor(student, (flops, loss), (flops, loss), 4.0, 1.0, "a curve against itself")


@pytest.mark.exercise("speedup_factor", weight=1.5)
def test_the_first_time_counts(student: Student) -> None:
    """A noisy curve may rise again: what counts is the first point at or below the target."""
    noisy = curve((1e6, 6), (2e6, 4), (4e6, 5), (8e6, 3), (16e6, 4.5), (32e6, 2), (64e6, 2.5))
    one = curve((1e6, 0))
    for target, expected in ((4.0, 2.0), (4.4, 2**0.8), (3.5, 4 * 2**0.75), (3.0, 8.0), (2.0, 32.0)):
        check_factor(student, noisy, one, target, expected, f"target {target}")
        check_factor(student, one, noisy, target, 1 / expected, f"target {target}, the other way round")
    rising = curve((1e6, 2), (2e6, 7), (4e6, 3))
    check_factor(student, rising, one, 2.5, 1.0, "a curve that begins below the target")


@pytest.mark.exercise("speedup_factor")
def test_it_is_the_cost_of_a_over_that_of_b(student: Student) -> None:
    """Above 1 where b needs less; exchanging the curves gives the inverse."""
    loss = torch.linspace(6, 2, 9).double()
    a, b = (torch.logspace(7, 11, 9).double(), loss), (torch.logspace(6.5, 10, 9).double(), loss)
    for target in (5.2, 3.3):
        forth, back = factor(student, a, b, target), factor(student, b, a, target)
        assert forth > 1, "b needs less than a, and the factor is not above 1."
        assert off(forth * back, 1.0) < 1 + 1e-6, "Exchanging the curves does not give the inverse."


@pytest.mark.exercise("speedup_factor")
def test_a_target_that_only_one_reaches(student: Student) -> None:
    """Only b reaches it: infinite. Only a: 0."""
    high, low = curve((1e6, 6), (1e8, 4)), curve((1e7, 5), (1e9, 3), (2e9, 3.2))
    assert factor(student, high, low, 3.5) == math.inf, "Only b reaches the target: the factor should be infinite."
    assert factor(student, low, high, 3.5) == 0, "Only a reaches the target: the factor should be 0."


@pytest.mark.exercise("speedup_factor", weight=0.5)
def test_a_target_that_nobody_reaches_is_refused(student: Student) -> None:
    """If neither curve reaches the target, a ValueError names it."""
    a, b = curve((1e6, 6), (1e8, 4)), curve((1e7, 5), (1e9, 3))
    check_factor(student, a, a, 5.0, 1.0, "a curve against itself")
    for target in (2.75, 2.5):
        message = refused(partial(student.speedup_factor, *a, *b, target), "A target that nobody reaches")
        assert str(target) in message, f"The sentence does not name the target: {message}"


@pytest.mark.exercise("speedup_factor")
def test_curves_have_points_of_their_own(student: Student) -> None:
    """The curves may have different lengths and costs, from 10⁶ to 10²⁵."""
    for seed in range(3):
        costs, drops = normal(2, 12, seed=seed).abs().double(), normal(2, 12, seed=seed + 9).abs().double() + 0.01
        a = (1e21 * (1 + costs[0]).cumprod(0), 9 - drops[0].cumsum(0) / 3)
        b = (1e6 * (1 + costs[1][:7]).cumprod(0), 9 - drops[1][:7].cumsum(0) / 3)
        target = max(a[1][-1].item(), b[1][-1].item()) + 0.05
        expected = reached(*a, target) / reached(*b, target)
        check_factor(student, a, b, target, expected, "12 points against 7")


def reached(flops: Tensor, loss: Tensor, target: float) -> float:
    """By bisection on a line through the points, which shares nothing with the usual answer. For falling curves."""
    if loss[0] <= target:
        return flops[0].item()
    low, high = flops[0].log().item(), flops[-1].log().item()
    for _ in range(80):
        middle = (low + high) / 2
        j = int((flops.log() < middle).sum().clamp(1, len(flops) - 1))
        x0, x1 = flops[j - 1].log().item(), flops[j].log().item()
        value = loss[j - 1].item() + (loss[j] - loss[j - 1]).item() * (middle - x0) / (x1 - x0)
        low, high = (middle, high) if value > target else (low, middle)
    return math.exp(high)


@pytest.mark.exercise("speedup_factor", weight=0.5)
def test_the_unit_of_cost_cancels(student: Student) -> None:
    """FLOPs or billions of them: the factor is the same. And the curves are left as they were."""
    a, b = curve((2.0, 6), (9.0, 4), (40.0, 3)), curve((3.0, 5), (7.0, 2))
    expected = reached(*a, 3.3) / reached(*b, 3.3)
    for unit in (1.0, 1e12):
        check_factor(student, (a[0] * unit, a[1]), (b[0] * unit, b[1]), 3.3, expected, f"in units of {unit:g}")
    kept = [student.put(row) for row in (*a, *b)]
    found = number(student.speedup_factor(*kept, 3.3), "speedup_factor")
    assert off(found, expected) < 1 + 1e-6, "The result is wrong."
    for row, value, name in zip(kept, (*a, *b), ("flops_a", "loss_a", "flops_b", "loss_b"), strict=True):
        assert_close(row.get(), value, claim="after the call", name=name)


# -- fit_scaling_law --------------------------------------------------------------------------------------------------

Law = tuple[float, float, float, float, float]


def said(law: Law, n: Tensor, d: Tensor) -> Tensor:
    """What a law says."""
    e, a, b, alpha, beta = law
    return e + a * n.pow(-alpha) + b * d.pow(-beta)


def runs(sizes: list[float], tokens: list[float]) -> tuple[Tensor, Tensor]:
    grid = torch.cartesian_prod(torch.tensor(sizes, dtype=torch.float64), torch.tensor(tokens, dtype=torch.float64))
    return grid[:, 0], grid[:, 1]


def fitted(student: Student, n: Tensor | Remote, d: Tensor | Remote, loss: Tensor | Remote) -> Law:
    found = student.fit_scaling_law(n, d, loss)
    assert isinstance(found, tuple | list), f"fit_scaling_law should return a tuple, not {shown(found)}."
    assert len(found) == 5, f"The law has five numbers, and there are {len(found)}."
    for name, value in zip(("E", "A", "B", "alpha", "beta"), found, strict=True):
        assert type(value) is float, f"{name} should be a float, and it is {shown(value)}."
        assert math.isfinite(value), f"{name} is {value}."
    return tuple(found)


def squares(law: Law, n: Tensor, d: Tensor, loss: Tensor) -> float:
    return (said(law, n, d) / loss - 1).square().sum().item()


def smallest(truth: Law, n: Tensor, d: Tensor, loss: Tensor) -> float:
    """The smallest sum of squares: Gauss–Newton with damping, begun at the law that the data were made of."""

    def errors(p: Tensor) -> tuple[Tensor, Tensor]:
        """The relative errors and their slopes in E, ln A, ln B, alpha and beta."""
        left, right = p[1].exp() * n ** -p[3], p[2].exp() * d ** -p[4]
        slopes = (torch.ones_like(n), left, right, -left * n.log(), -right * d.log())
        return (p[0] + left + right) / loss - 1, torch.stack(slopes, 1) / loss[:, None]

    e, a, b, alpha, beta = truth
    p = torch.tensor([e, math.log(a), math.log(b), alpha, beta], dtype=torch.float64)
    damping, best = 1e-3, errors(p)[0].square().sum()
    for _ in range(60):
        error, slope = errors(p)
        step = torch.linalg.solve(slope.mT @ slope + damping * torch.diag((slope**2).sum(0)), slope.mT @ error)
        value = errors(p - step)[0].square().sum()
        p, best, damping = (p - step, value, damping / 5) if value < best else (p, best, damping * 5)
    return best.item()


def check_law(law: Law, truth: Law, n: Tensor, d: Tensor, within: float, claim: str) -> None:
    wrong = (said(law, n, d) / said(truth, n, d) - 1).abs().max().item()
    assert wrong <= within, f"{claim}: the law is off by up to {wrong:.2%}."


CHINCHILLA: Law = (1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, equation 10
SMALL_LAW: Law = (2.1, 35.0, 120.0, 0.25, 0.42)
STEEP: Law = (0.8, 4000.0, 9.0, 0.85, 0.12)
SIZES, TOKENS = [3e4, 1e5, 4e5, 1e6], [3e6, 1e7, 5e7, 2e8]


@pytest.mark.exercise("fit_scaling_law")
def test_the_law_has_five_numbers_in_order(student: Student) -> None:
    """(E, A, B, alpha, beta): alpha belongs to the parameters, beta to the tokens."""
    n, d = runs(SIZES, TOKENS)
    e, a, b, alpha, beta = law = fitted(student, n, d, said(SMALL_LAW, n, d))
    assert alpha < beta, "The data were made with a larger exponent for the tokens, and the law has it the other way."
    assert a < b, "The data were made with a larger B than A, and the law has it the other way round."
    assert e < 3, "E is larger than any of the losses that were given."
    check_law(law, SMALL_LAW, n, d, 0.1, "for the runs that were given")


@pytest.mark.exercise("fit_scaling_law", weight=2)
def test_a_law_without_noise_is_found(student: Student) -> None:
    """Runs that follow a law exactly are met to one in a thousand."""
    small, large = runs(SIZES, TOKENS), runs([7e7, 4e8, 3e9, 1e10], [5e9, 3e10, 2e11])
    for truth, (n, d) in ((SMALL_LAW, small), (STEEP, small), (CHINCHILLA, large)):
        law = fitted(student, n, d, said(truth, n, d))
        check_law(law, truth, n, d, 1e-3, f"{len(n)} runs without noise")


@pytest.mark.exercise("fit_scaling_law", weight=2)
def test_a_larger_run_is_predicted(student: Student) -> None:
    """What was held out, ten times the parameters and ten times the tokens, is met to half a per cent."""
    n, d = runs(SIZES, TOKENS)
    for truth in (SMALL_LAW, STEEP):
        law = fitted(student, n, d, said(truth, n, d))
        check_law(law, truth, *runs([1e7], [2e9]), 0.005, "a run that was held out")


@pytest.mark.exercise("fit_scaling_law", weight=2)
def test_noise_is_fitted_by_least_squares(student: Student) -> None:
    """The sum of squared relative errors is the smallest possible, within one per cent."""
    n, d = runs(SIZES, TOKENS)
    for seed in (1, 2):
        loss = said(SMALL_LAW, n, d) * (1 + 0.004 * normal(len(n), seed=seed).double())
        found, best = squares(fitted(student, n, d, loss), n, d, loss), smallest(SMALL_LAW, n, d, loss)
        assert found <= 1.01 * best, f"The sum of squares is {found / best:.3g} times the smallest possible one."


@pytest.mark.exercise("fit_scaling_law", weight=1.5)
def test_errors_are_relative(student: Student) -> None:
    """A loss of 20 and a loss of 2 weigh alike: each error is divided by the loss that was measured."""
    truth: Law = (1.0, 3000.0, 800.0, 0.6, 0.5)
    n, d = runs([3e3, 1e4, 1e5, 1e6], [1e4, 1e5, 1e6, 1e7])
    loss = said(truth, n, d) * (1 + 0.02 * normal(len(n), seed=3).double())
    found, best = squares(fitted(student, n, d, loss), n, d, loss), smallest(truth, n, d, loss)
    assert found <= 1.01 * best, f"The sum of squared relative errors is {found / best:.3g} times the smallest one."


@pytest.mark.exercise("fit_scaling_law", weight=1.5)
def test_noisy_runs_still_predict(student: Student) -> None:
    """With a noise of one in five hundred, a run of three times the size and the text is met to two per cent."""
    n, d = runs([3e4, 1e5, 3e5, 1e6, 3e6], [3e6, 1e7, 3e7, 1e8, 3e8])
    loss = said(SMALL_LAW, n, d) * (1 + 0.002 * normal(len(n), seed=4).double())
    law = fitted(student, n, d, loss)
    check_law(law, SMALL_LAW, *runs([1e7], [1e9]), 0.02, "a run that was held out")


@pytest.mark.exercise("fit_scaling_law")
def test_the_two_exponents_are_independent(student: Student) -> None:
    """One exponent may be at the lower end while the other is at the upper one."""
    n, d = runs([1e4, 4e4, 3e5, 2e6], [1e4, 1e5, 1e6, 1e7])
    for truth in ((0.5, 6.0, 900.0, 0.1, 0.7), (1.5, 90000.0, 5.0, 1.2, 0.09)):
        law = fitted(student, n, d, said(truth, n, d))
        check_law(law, truth, n, d, 1e-3, "with very different exponents")


@pytest.mark.exercise("fit_scaling_law")
def test_units_and_order_do_not_matter(student: Student) -> None:
    """Parameters in millions, losses in bits, runs in another order: the law says the same."""
    n, d = runs(SIZES, TOKENS)
    loss = said(SMALL_LAW, n, d)
    order = torch.randperm(len(n), generator=torch.Generator().manual_seed(1))
    kept = [student.put(row) for row in (n[order] / 1e3, d[order] / 1e5, loss[order] / math.log(2))]
    found = fitted(student, *kept)
    ratio = said(found, n / 1e3, d / 1e5) * math.log(2) / loss
    assert ((ratio - 1).abs() < 1e-3).all(), f"In other units the law is off by up to {(ratio - 1).abs().max():.2%}."
    for row, value, name in zip(kept, (n[order] / 1e3, d[order] / 1e5, loss[order] / math.log(2)), "nd", strict=False):
        assert_close(row.get(), value, atol=0, rtol=0, claim="after the call", name=name)


@pytest.mark.exercise("fit_scaling_law", weight=0.5)
def test_runs_need_not_form_a_grid(student: Student) -> None:
    """Nine runs of unequal sizes, some along one line of tokens a parameter, are enough."""
    n = torch.tensor([2e4, 2e4, 7e4, 7e4, 7e4, 3e5, 3e5, 9e5, 2e6], dtype=torch.float64)
    d = torch.tensor([1e6, 2e7, 1e6, 5e6, 3e8, 2e6, 4e7, 8e6, 4e7], dtype=torch.float64)
    law = fitted(student, n, d, said(SMALL_LAW, n, d))
    check_law(law, SMALL_LAW, n, d, 1e-3, "nine runs")
    check_law(law, SMALL_LAW, *runs([4e6], [3e8]), 0.005, "a run that was held out")
