"""Hidden tests of chapter 17. Expected values come from loops in plain PyTorch, from counting, and from laws.

The network is played here, on the trusted side: one rank is the student's, and what the others would have sent is
computed by `Ranks` in double precision, from all tokens and all experts. Whatever a rank sends, the answer is an honest
one, so that a test of the output is not also a test of the parcels.
"""

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autograder.student import Remote, Student, StudentError, Unfinished, assert_close, tensor
from autograder.testing import gradients, normal

# -- dispatch_plan --------------------------------------------------------------------------------------------------


def some_routing(tokens: int, top_k: int, n_experts: int, *, seed: int, skew: float = 0.7) -> Tensor:
    """Different experts for each token, some of them more liked than others."""
    popularity = torch.arange(1.0, n_experts + 1) ** -skew
    popularity = popularity[torch.randperm(n_experts, generator=torch.Generator().manual_seed(seed + 1))]
    if not tokens:
        return torch.zeros(0, top_k, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(popularity.expand(tokens, -1), top_k, generator=generator)


def packed(experts: Tensor, n_experts: int) -> list[list[int]]:
    """For each expert the numbers of its assignments, in order."""
    flat = experts.flatten().tolist()
    return [[number for number, chosen in enumerate(flat) if chosen == expert] for expert in range(n_experts)]


def plan(student: Student, experts: Tensor, n_experts: int, world: int) -> tuple[Tensor, Tensor]:
    found = student.dispatch_plan(experts, n_experts, world)
    assert isinstance(found, tuple | list), "dispatch_plan should return a tuple (order, counts)."
    assert len(found) == 2, f"dispatch_plan should return a tuple of two, order and counts, not of {len(found)}."
    return tensor(found[0], name="order"), tensor(found[1], name="counts")


ROUTINGS = ((7, 2, 6, 3), (40, 3, 8, 4), (5, 1, 4, 2), (30, 2, 5, 1), (9, 4, 4, 4))  # tokens, top_k, n_experts, world


@pytest.mark.exercise("dispatch_plan", weight=2)
def test_assignments_come_in_the_order_of_their_experts(student: Student) -> None:
    """order lists the assignments by expert: first all of expert 0, then all of expert 1, and so on."""
    for seed, (tokens, top_k, n_experts, world) in enumerate(ROUTINGS):
        experts = some_routing(tokens, top_k, n_experts, seed=seed)
        order, _ = plan(student, experts, n_experts, world)
        tensor(order, shape=(tokens * top_k,), dtype=torch.int64, name="order")
        assert order.sort()[0].equal(torch.arange(tokens * top_k)), "order should hold each assignment once."
        met = experts.flatten()[order]
        assert bool((met.diff() >= 0).all()), (
            "In order, an assignment of a later expert comes before one of an earlier."
        )


@pytest.mark.exercise("dispatch_plan")
def test_within_an_expert_the_lower_number_comes_first(student: Student) -> None:
    """Assignments of one expert keep the order of their numbers: the sort has to be a stable one."""
    for seed, (tokens, n_experts) in enumerate(((40, 4), (500, 2))):
        experts = some_routing(tokens, 2, n_experts, seed=seed)
        order, _ = plan(student, experts, n_experts, 2)
        expected = torch.tensor([number for numbers in packed(experts, n_experts) for number in numbers])
        assert_close(order, expected, claim=f"{tokens} tokens and {n_experts} experts", name="order")


@pytest.mark.exercise("dispatch_plan", weight=2)
def test_counts_say_how_many_each_expert_gets(student: Student) -> None:
    """Row r of counts belongs to rank r, column i to the i-th of its experts; ranks hold blocks of experts."""
    for seed, (tokens, top_k, n_experts, world) in enumerate(ROUTINGS):
        experts = some_routing(tokens, top_k, n_experts, seed=seed)
        _, counts = plan(student, experts, n_experts, world)
        expected = torch.tensor([len(numbers) for numbers in packed(experts, n_experts)]).reshape(world, -1)
        assert_close(counts, expected, claim=f"{n_experts} experts on {world} ranks", name="counts")


@pytest.mark.exercise("dispatch_plan")
def test_experts_that_nobody_chose_count_zero(student: Student) -> None:
    """There is a count for every expert, also where it is 0, and where the last expert is the one without tokens."""
    experts = torch.tensor([[1, 4], [4, 1], [1, 2]])
    order, counts = plan(student, experts, 12, 2)
    assert_close(counts, torch.tensor([[0, 3, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0]]), name="counts")
    assert_close(order, torch.tensor([0, 3, 4, 5, 1, 2]), name="order")


@pytest.mark.exercise("dispatch_plan")
def test_a_rank_without_tokens_has_an_empty_plan(student: Student) -> None:
    """No tokens: an empty order, and a count of 0 for every expert, both int64."""
    plan(student, torch.tensor([[1, 0]]), 4, 2)
    for top_k in (1, 3):
        order, counts = plan(student, torch.zeros(0, top_k, dtype=torch.int64), 6, 2)
        tensor(order, shape=(0,), dtype=torch.int64, name="order")
        assert_close(counts, torch.zeros(2, 3, dtype=torch.int64), name="counts")


@pytest.mark.exercise("dispatch_plan", weight=0.5)
def test_experts_must_be_shared_equally(student: Student) -> None:
    """If n_experts is not divisible by world, a ValueError names both numbers."""
    plan(student, torch.tensor([[1, 0]]), 6, 3)
    for n_experts, world in ((10, 4), (3, 7)):
        names_both(
            refused(student.dispatch_plan, torch.tensor([[1, 0]]), n_experts, world),
            {n_experts, world},
            f"With {n_experts} experts and {world} ranks",
        )


@pytest.mark.exercise("dispatch_plan", weight=0.5)
def test_the_routing_is_left_as_it_was(student: Student) -> None:
    """experts belongs to the caller."""
    experts = some_routing(9, 2, 6, seed=1)
    kept = student.put(experts)
    found = student.dispatch_plan(kept, 6, 3)
    assert isinstance(found, tuple | list), "dispatch_plan should return a tuple (order, counts)."
    assert found, "dispatch_plan returns nothing."
    order = tensor(found[0], shape=(18,), dtype=torch.int64, name="order")
    assert_close(order, experts.flatten().argsort(stable=True), name="order")
    assert_close(kept.get(), experts, claim="after the call", name="experts")


def refused(function: Any, *arguments: Any) -> StudentError | None:
    """What the call raised."""
    try:
        function(*arguments)
    except Unfinished:
        raise
    except StudentError as error:
        return error
    return None


def names_both(raised: StudentError | None, numbers: set[int], where: str) -> None:
    assert isinstance(raised, ValueError), (
        f"{where} it raises {raised.types[0] if raised else 'nothing'}, and it should raise a ValueError."
    )
    named = {int(number) for number in re.findall(r"-?\d+", str(raised))}
    assert numbers <= named, f"{where} the sentence does not name what is wrong: {raised}"


# -- expert_parallel_forward ----------------------------------------------------------------------------------------


class Ranks:
    """All tokens and all experts of a world, and what honest ranks send each other, forward and backward."""

    def __init__(
        self,
        tokens: Sequence[int],
        n_local: int,
        top_k: int,
        *,
        seed: int,
        d_model: int = 6,
        d_hidden: int = 5,
        skew: float = 0.7,
        experts: Sequence[Tensor] | None = None,
    ) -> None:
        self.world, self.n_local, self.d_model = len(tokens), n_local, d_model
        n_experts = n_local * self.world
        self.x = [normal(n, d_model, seed=100 * seed + r) for r, n in enumerate(tokens)]
        self.weights = [normal(n, top_k, seed=100 * seed + 20 + r).softmax(-1) for r, n in enumerate(tokens)]
        self.experts = list(
            experts or (some_routing(n, top_k, n_experts, seed=100 * seed + r, skew=skew) for r, n in enumerate(tokens))
        )
        self.gate_up = normal(n_experts, 2 * d_hidden, d_model, seed=100 * seed + 50) / 2
        self.down = normal(n_experts, d_model, d_hidden, seed=100 * seed + 51) / 2
        self.upstream = [normal(n, d_model, seed=100 * seed + 60 + r) for r, n in enumerate(tokens)]
        self._send()

    def mine(self, rank: int) -> slice:
        return slice(self.n_local * rank, self.n_local * (rank + 1))

    def _send(self) -> None:
        """Everything that crosses, in double precision, with its gradients: `[from][to]` the rows of that parcel."""
        x, weights = ([part.double().requires_grad_() for part in parts] for parts in (self.x, self.weights))
        gate_up, down = (part.double().requires_grad_() for part in (self.gate_up, self.down))
        self.counts = [
            torch.tensor([len(numbers) for numbers in packed(experts, len(down))]).reshape(self.world, self.n_local)
            for experts in self.experts
        ]
        tokens: list[list[Tensor]] = []
        results: list[list[Tensor]] = []
        self.outputs: list[Tensor] = []
        for r in range(self.world):
            numbers, top_k = packed(self.experts[r], len(down)), self.experts[r].shape[1]
            out = torch.zeros_like(x[r])
            tokens.append([])
            results.append([])
            for to in range(self.world):
                parcel = [(e, a) for e in range(len(down))[self.mine(to)] for a in numbers[e]]
                rows = x[r][[a // top_k for _, a in parcel]] if parcel else x[r].new_zeros(0, self.d_model)
                rows = rows.clone()
                answered = [self._expert(row, gate_up[e], down[e]) for row, (e, _) in zip(rows, parcel, strict=True)]
                answers = torch.stack(answered) if answered else rows.new_zeros(0, self.d_model)
                for part in (rows, answers):
                    if part.requires_grad:
                        part.retain_grad()
                for row, (_, a) in zip(answers, parcel, strict=True):
                    row = row * weights[r].flatten()[a]
                    out = out + functional.one_hot(torch.tensor(a // top_k), len(out))[:, None] * row
                tokens[r].append(rows)
                results[r].append(answers)
            self.outputs.append(out)
        torch.stack(
            [(out * up.double()).sum() for out, up in zip(self.outputs, self.upstream, strict=True)]
        ).sum().backward()
        self.tokens, self.results = ([[part.detach() for part in row] for row in rows] for rows in (tokens, results))
        self.token_grads, self.result_grads = (
            [[torch.zeros_like(part) if part.grad is None else part.grad for part in row] for row in rows]
            for rows in (tokens, results)
        )
        self.exact = [out.detach() for out in self.outputs]
        self.outputs = [out.float() for out in self.exact]
        self.grads: dict[str, Any] = {
            "x": [part.grad for part in x],
            "weights": [part.grad for part in weights],
            "gate_up": gate_up.grad,
            "down": down.grad,
        }

    @staticmethod
    def _expert(row: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = (gate_up @ row).chunk(2)
        return down @ (gate * torch.sigmoid(gate) * up)

    def scripts(self, rank: int, dtype: torch.dtype) -> list[tuple[Tensor, list[int], list[int], Tensor]]:
        """Of the three exchanges of one rank: what it sends, how much to and from whom, and what it gets."""
        everyone = range(self.world)
        ones = [1] * self.world
        send = [len(part) for part in self.tokens[rank]]
        receive = [len(self.tokens[source][rank]) for source in everyone]

        def parcels(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).to(dtype)

        return [
            (self.counts[rank], ones, ones, torch.stack([counts[rank] for counts in self.counts])),
            (parcels(self.tokens[rank]), send, receive, parcels([self.tokens[s][rank] for s in everyone])),
            (parcels([self.results[s][rank] for s in everyone]), receive, send, parcels(self.results[rank])),
        ]

    def scripts_back(self, rank: int) -> list[tuple[Tensor, Tensor]]:
        """The same for the gradients, which go the other way: first of the results, then of the tokens."""
        everyone = range(self.world)
        return [
            (torch.cat(self.result_grads[rank]), torch.cat([self.result_grads[s][rank] for s in everyone])),
            (torch.cat([self.token_grads[s][rank] for s in everyone]), torch.cat(self.token_grads[rank])),
        ]


class Network:
    """What one rank of the student's sees of the others."""

    def __init__(self, ranks: Ranks, rank: int, dtype: torch.dtype = torch.float32) -> None:
        self.ranks, self.rank, self.dtype = ranks, rank, dtype
        self.script = ranks.scripts(rank, dtype)
        self.sent: list[tuple[Any, Any, Any]] = []
        self.sent_back: list[Any] = []

    def there(self, rows: Any, send: Any, receive: Any) -> Tensor:
        self.sent.append((rows, send, receive))
        return self.script[min(len(self.sent), 3) - 1][3]

    def back(self, rows: Any, send: Any, receive: Any) -> Tensor:
        self.sent_back.append(rows)
        return self.ranks.scripts_back(self.rank)[min(len(self.sent_back), 2) - 1][1].to(self.dtype)

    def call(self, student: Student, **inputs: Any) -> Any:
        """What the student's function makes of this rank's part; inputs may be replaced by name."""
        ranks, rank, dtype = self.ranks, self.rank, self.dtype
        own = {
            "x": ranks.x[rank].to(dtype),
            "weights": ranks.weights[rank].to(dtype),
            "experts": ranks.experts[rank],
            "gate_up": ranks.gate_up[ranks.mine(rank)].to(dtype),
            "down": ranks.down[ranks.mine(rank)].to(dtype),
        } | inputs
        wire = student.Wire(self.there, self.back)
        found = student.expert_parallel_forward(*own.values(), ranks.world, wire)
        wire.said()  # so that what was sent is among the answers by which a mistake is known
        return found

    def took(self, exchange: int) -> tuple[Any, Any, Any]:
        """What was sent in an exchange; the sentence says so where there was none."""
        assert len(self.sent) > exchange, (
            f"Rank {self.rank} of {self.ranks.world} took part in {len(self.sent)} exchanges, and the others wait."
        )
        return self.sent[exchange]


@cache
def worlds() -> list[Ranks]:
    """Worlds of 2, 4, 1 and 3 ranks, with even and uneven loads. Nothing of them is ever changed."""
    return [
        Ranks((5, 5), 2, 2, seed=1),
        Ranks((6, 3, 9, 1), 2, 2, seed=2, skew=1.5),
        Ranks((7,), 4, 3, seed=3),
        Ranks((4, 6, 5), 1, 1, seed=4),
    ]


@cache
def uneven() -> Ranks:
    """Rank 1 has no tokens, nobody chose the experts of rank 2, and rank 3 sends all it has to rank 0."""
    experts = [
        torch.tensor([[0, 7], [1, 3], [2, 0], [7, 6]]),
        torch.zeros(0, 2, dtype=torch.int64),
        torch.tensor([[3, 6], [0, 1], [1, 7]]),
        torch.tensor([[1, 0], [0, 1]]),
    ]
    return Ranks((4, 0, 3, 2), 2, 2, seed=5, experts=experts)


@cache
def idle() -> Ranks:
    """Rank 1 has no tokens, and nobody chose its expert either: it has nothing to do but to take part."""
    return Ranks((3, 0), 1, 1, seed=6, experts=[torch.zeros(n, 1, dtype=torch.int64) for n in (3, 0)])


def each() -> list[Network]:
    """Every rank of every world, anew."""
    return [Network(ranks, rank) for ranks in worlds() for rank in range(ranks.world)]


def where(network: Network, exchange: str = "") -> str:
    return f"rank {network.rank} of {network.ranks.world}" + (f", {exchange}" if exchange else "")


@pytest.mark.exercise("expert_parallel_forward")
def test_the_counts_are_sent_first(student: Student) -> None:
    """In the first exchange each rank gets its row of counts, so that it knows how much will come."""
    for network in each():
        network.call(student)
        rows, send, receive = network.took(0)
        assert_close(rows, network.script[0][0], claim=where(network), name="what is sent in the first exchange")
        ones = [1] * network.ranks.world
        assert (send, receive) == (ones, ones), f"{where(network)}: every rank sends and gets one row of counts."


@pytest.mark.exercise("expert_parallel_forward", weight=2)
def test_the_tokens_travel_in_the_order_of_the_plan(student: Student) -> None:
    """In the second exchange goes one row of x for each assignment, as it is, by expert."""
    for network in each():
        network.call(student)
        rows, _, _ = network.took(1)
        assert_close(rows, network.script[1][0], claim=where(network), name="what is sent in the second exchange")


@pytest.mark.exercise("expert_parallel_forward")
def test_the_sizes_of_the_parcels_are_said(student: Student) -> None:
    """send and receive are lists of ints: what goes and what comes, and on the way back the other way round."""
    for network in each():
        network.call(student)
        for exchange, name in ((1, "second exchange"), (2, "third exchange")):
            _, send, receive = network.took(exchange)
            for found, expected, what in zip(
                (send, receive), network.script[exchange][1:3], ("send", "receive"), strict=True
            ):
                is_list = isinstance(found, list) and all(type(n) is int for n in found)
                assert is_list, f"{where(network, name)}: {what} should be a list of ints."
                assert len(found) == network.ranks.world, f"{where(network, name)}: {what} should name every rank."
                assert found == expected, f"{where(network, name)}: {what} does not say how many rows go or come."


@pytest.mark.exercise("expert_parallel_forward", weight=3)
def test_each_row_that_came_is_answered_by_its_expert(student: Student) -> None:
    """What came is sorted by sender, and within each by expert; results go back in the places of their rows."""
    for network in each():
        network.call(student)
        rows, _, _ = network.took(2)
        assert_close(rows, network.script[2][0], claim=where(network), name="what is sent in the third exchange")


@pytest.mark.exercise("expert_parallel_forward", weight=3)
def test_the_output_is_the_weighted_sum_of_what_came_back(student: Student) -> None:
    """Each token gets the sum of weight times result over its own experts, wherever they live."""
    for network in each():
        found = network.call(student)
        assert_close(found, network.ranks.outputs[network.rank], claim=where(network), name="the output")


@pytest.mark.exercise("expert_parallel_forward")
def test_there_are_three_exchanges(student: Student) -> None:
    """Counts, tokens, results: every rank takes part in all three, also one that sends nothing and gets nothing."""
    for network in (*each(), *(Network(uneven(), rank) for rank in range(4)), *(Network(idle(), r) for r in (0, 1))):
        network.call(student)
        assert len(network.sent) == 3, (
            f"{where(network)} took part in {len(network.sent)} exchanges: all ranks have to speak alike."
        )


@pytest.mark.exercise("expert_parallel_forward", weight=2)
def test_a_rank_without_tokens_still_works_for_the_others(student: Student) -> None:
    """With no tokens of its own a rank sends empty parcels, serves what comes, and returns no rows."""
    network = Network(uneven(), 1)
    found = network.call(student)
    tensor(found, shape=(0, 6), dtype=torch.float32, name="the output of a rank without tokens")
    assert_close(network.took(1)[0], torch.zeros(0, 6), name="what a rank without tokens sends")
    assert_close(network.took(2)[0], network.script[2][0], name="what it answers to the others")


@pytest.mark.exercise("expert_parallel_forward")
def test_a_rank_that_gets_nothing_still_gets_its_answers(student: Student) -> None:
    """Where nobody chose a rank's experts, it answers with no rows, and its own tokens get their sums."""
    for rank, tokens in ((2, 3), (3, 2)):
        network = Network(uneven(), rank)
        found = network.call(student)
        assert_close(found, uneven().outputs[rank], claim=f"{tokens} tokens", name="the output")
        assert_close(network.took(2)[0], network.script[2][0], name="what it answers to the others")


@pytest.mark.exercise("expert_parallel_forward")
def test_gradients_reach_the_tokens_and_their_weights(student: Student) -> None:
    """The gradients of x and of the weights are those of one process that has all experts."""
    for ranks, rank in ((worlds()[0], 1), (worlds()[1], 2)):
        network = Network(ranks, rank)
        x, weights = ranks.x[rank].clone().requires_grad_(), ranks.weights[rank].clone().requires_grad_()
        out = network.call(student, x=x, weights=weights)
        grads = gradients(out, ranks.upstream[rank], x=x, weights=weights)
        for name, grad in grads.items():
            expected = ranks.grads[name][rank].float()
            assert_close(grad, expected, atol=1e-3, rtol=1e-3, claim=where(network), name=f"the gradient of {name}")


@pytest.mark.exercise("expert_parallel_forward")
def test_experts_learn_from_the_tokens_of_all_ranks(student: Student) -> None:
    """The gradients of this rank's experts hold what the tokens of the other ranks have to say."""
    for ranks, rank in ((worlds()[0], 0), (worlds()[1], 3), (uneven(), 1)):
        network = Network(ranks, rank)
        own = ranks.mine(rank)
        leaves = {"x": ranks.x[rank].clone(), "gate_up": ranks.gate_up[own].clone(), "down": ranks.down[own].clone()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        out = network.call(student, **leaves)
        if not len(leaves["x"]):
            tensor(out, shape=(0, ranks.d_model), name="the output of a rank without tokens")
            assert out.requires_grad, (
                f"{where(network)} has no tokens, and its empty result does not come from what came back: no gradient "
                "sets out from this rank, and the others wait for it."
            )
        grads = gradients(out, ranks.upstream[rank], **leaves)
        for name in ("gate_up", "down"):
            expected = ranks.grads[name][own].float()
            assert_close(
                grads[name], expected, atol=1e-3, rtol=1e-3, claim=where(network), name=f"the gradient of {name}"
            )
        assert len(network.sent_back) == 2, (
            f"{where(network)}: gradients should pass back through both exchanges of rows."
        )
        for rows, (expected, _), name in zip(
            network.sent_back, ranks.scripts_back(rank), ("results", "tokens"), strict=True
        ):
            assert_close(
                rows, expected.float(), atol=1e-3, rtol=1e-3, claim=where(network), name=f"the gradient of the {name}"
            )


@pytest.mark.exercise("expert_parallel_forward")
def test_the_dtype_is_kept_on_every_way(student: Student) -> None:
    """bfloat16 and float64 come out as they went in, and travel so; float64 keeps all its digits on the way."""
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float64, 1e-10)):
        network = Network(worlds()[1], 0, dtype)
        found = network.call(student)
        expected = network.ranks.exact[0].to(dtype)
        assert_close(found, expected, atol=tolerance, rtol=tolerance, claim=str(dtype)[6:], name="the output")
        for exchange in (1, 2):
            rows = tensor(network.took(exchange)[0], dtype=dtype, name="what travels")
            expected = network.script[exchange][0]
            assert_close(rows, expected, atol=tolerance, rtol=tolerance, name="what travels")


@pytest.mark.exercise("expert_parallel_forward", weight=0.5)
def test_the_inputs_of_a_rank_are_left_as_they_were(student: Student) -> None:
    """x, weights, experts and the experts' weights belong to the caller."""
    ranks = worlds()[0]
    given = {"x": ranks.x[0], "weights": ranks.weights[0], "experts": ranks.experts[0]}
    given |= {"gate_up": ranks.gate_up[:2], "down": ranks.down[:2]}
    kept = {name: student.put(value) for name, value in given.items()}
    found = Network(ranks, 0).call(student, **kept)
    assert_close(found, ranks.outputs[0], name="the output")
    for name, value in given.items():
        assert_close(kept[name].get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- ExpertCache ----------------------------------------------------------------------------------------------------


class Shelf:
    """Where experts wait: gives out their weights and notes who was asked for."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def load(self, expert: Any) -> Any:
        self.loaded.append(expert)
        return self.weights(expert) if type(expert) is int else None

    @staticmethod
    def weights(expert: int) -> tuple[Tensor, Tensor]:
        return normal(4, 2, seed=expert), normal(2, 2, seed=100 + expert)


def lru(asked: Sequence[int], capacity: int) -> tuple[list[int], list[list[int]]]:
    """Which requests miss, and what is held after each of them."""
    held: list[int] = []
    missed, history = [], []
    for expert in asked:
        if expert not in held:
            missed.append(expert)
        held = [*(other for other in held if other != expert), expert][-capacity:]
        history.append(held)
    return missed, history


def requests(seed: int, n: int = 60, n_experts: int = 8) -> list[int]:
    """A stream with favourites and repetitions."""
    generator = random.Random(seed)
    asked = [min(int(generator.expovariate(0.5)), n_experts - 1) for _ in range(n)]
    return [*range(n_experts), *asked]


def new_cache(student: Student, load: Any, capacity: int) -> Remote:
    found = student.ExpertCache(load, capacity)
    assert isinstance(found, Remote), "ExpertCache(load, capacity) should give a cache."
    return found


def served(student: Student, capacity: int, asked: Sequence[int]) -> tuple[int, bool]:
    """How many weights were in memory at most while load ran, and whether each request got the very thing it gave."""
    lender = student.Lender()
    lender.serve(new_cache(student, lender, capacity), list(asked))
    found = lender.noted()
    assert isinstance(found, tuple), "The lender's notes are gone."
    assert [type(part) for part in found] == [int, bool], "The lender's notes are gone."
    return found


def held(cache: Remote) -> list[int]:
    found = cache.held()
    assert isinstance(found, list), "held() should return a list."
    return found


@pytest.mark.exercise("ExpertCache")
def test_fetch_gives_what_load_gave(student: Student) -> None:
    """fetch returns the weights of the expert that was asked for, from the cache as well as from load."""
    shelf = Shelf()
    cache = new_cache(student, shelf.load, 3)
    for turn, expert in enumerate((2, 5, 2, 0, 7, 5, 5, 2)):
        found = cache.fetch(expert)
        assert isinstance(found, tuple), "fetch should return exactly what load returned."
        assert len(found) == 2, "fetch should return exactly what load returned."
        for part, expected in zip(found, shelf.weights(expert), strict=True):
            assert_close(part, expected, atol=0, rtol=0, claim=f"request {turn + 1}", name="the weights")
    _, same = served(student, 3, (2, 5, 2, 0))
    assert same, "fetch returns a copy of what load returned: there are two of it in memory now."


@pytest.mark.exercise("ExpertCache", weight=2)
def test_only_what_is_missing_is_loaded(student: Student) -> None:
    """load is called once for each request that finds its expert missing, and for no other."""
    for seed, capacity in ((1, 2), (2, 3), (3, 1), (4, 8)):
        shelf, asked = Shelf(), requests(seed)
        cache = new_cache(student, shelf.load, capacity)
        for expert in asked:
            cache.fetch(expert)
        expected = lru(asked, capacity)[0]
        assert len(shelf.loaded) == len(set(asked)) or capacity < 8, (
            f"With room for all 8 experts each is loaded once; load was called {len(shelf.loaded)} times."
        )
        assert shelf.loaded == expected, (
            f"With room for {capacity} of 8 experts, load was called {len(shelf.loaded)} times in {len(asked)} "
            "requests, and not for those that were missing."
        )


@pytest.mark.exercise("ExpertCache", weight=2)
def test_the_least_recently_used_makes_room(student: Student) -> None:
    """held() lists what is in the cache, the least recently used first, and that one goes when room is needed."""
    for seed, capacity in ((5, 2), (6, 4)):
        asked = requests(seed, n=25)
        cache = new_cache(student, Shelf().load, capacity)
        assert held(cache) == [], "A new cache holds something."
        for turn, (expert, expected) in enumerate(zip(asked, lru(asked, capacity)[1], strict=True)):
            cache.fetch(expert)
            found = held(cache)
            assert sorted(found) == sorted(expected), (
                f"After request {turn + 1} of a cache with room for {capacity}, the wrong experts are held."
            )
            assert found == expected, f"After request {turn + 1}, held() is not in the order of the last use."


@pytest.mark.exercise("ExpertCache")
def test_asking_is_using(student: Student) -> None:
    """An expert that was found in the cache is the last to make room, however long ago it was loaded."""
    shelf = Shelf()
    cache = new_cache(student, shelf.load, 3)
    for expert in (0, 1, 2, 0, 3, 0, 4, 0, 5):
        cache.fetch(expert)
    assert shelf.loaded.count(0) == 1, (
        f"An expert that was asked for all the time was loaded {shelf.loaded.count(0)} times."
    )


@pytest.mark.exercise("ExpertCache")
def test_hits_and_misses_are_counted(student: Student) -> None:
    """hits counts the requests that found their expert, misses the others; both are 0 in a new cache."""
    for seed, capacity in ((1, 2), (7, 5)):
        cache, asked = new_cache(student, Shelf().load, capacity), requests(seed)
        counted = [(cache.hits, cache.misses)]
        for expert in asked:
            cache.fetch(expert)
        counted.append((cache.hits, cache.misses))
        missed = len(lru(asked, capacity)[0])
        assert all(type(n) is int for pair in counted for n in pair), "hits and misses should be ints."
        assert counted[0] == (0, 0), "In a new cache hits and misses should be 0."
        assert sum(counted[1]) == len(asked), (
            f"After {len(asked)} requests, hits and misses are {sum(counted[1])} in all."
        )
        assert counted[1] == (len(asked) - missed, missed), (
            "hits and misses do not say what was found and what was not."
        )


@pytest.mark.exercise("ExpertCache", weight=0.5)
def test_there_is_room_for_as_many_as_said(student: Student) -> None:
    """The cache fills up to its capacity and no further."""
    for capacity in (1, 3, 5):
        cache, asked = new_cache(student, Shelf().load, capacity), list(range(7))
        for turn, expert in enumerate(asked):
            cache.fetch(expert)
            n = len(held(cache))
            assert n == min(turn + 1, capacity), (
                f"After {turn + 1} different experts, a cache with room for {capacity} holds {n}."
            )


@pytest.mark.exercise("ExpertCache", weight=0.5)
def test_room_is_made_before_the_expert_is_loaded(student: Student) -> None:
    """While load runs, at most capacity − 1 others are held, under whatever name; and nobody leaves too early."""
    watcher = student.Watcher()
    cache = new_cache(student, watcher, 2)
    watcher.watch(cache)
    for expert in (0, 1, 1, 2, 3):
        cache.fetch(expert)
    seen = watcher.noted()
    assert isinstance(seen, list), "The watcher's notes are gone."
    assert len(seen) == 4, f"For four different experts load was called {len(seen)} times."
    others = [[other for other in during if other != now] for during, now in zip(seen, (0, 1, 2, 3), strict=True)]
    assert [len(during) for during in others] == [0, 1, 1, 1], (
        f"While load ran, the cache with room for 2 held {[len(during) for during in others]} other experts."
    )
    for capacity in (1, 3):
        held, _ = served(student, capacity, (0, 1, 2, 1, 3, 4, 0))
        assert held < capacity, (
            f"While load ran, the weights of {held} other experts were in memory, in a cache with room for "
            f"{capacity}: something still has a name for those that made room."
        )


@pytest.mark.exercise("ExpertCache", weight=0.5)
def test_weights_may_be_anything(student: Student) -> None:
    """load may return None or 0: whether an expert is held does not depend on what its weights are."""
    for value in (None, 0):
        loaded: list[int] = []

        def load(expert: int, value: Any = value, loaded: list[int] = loaded) -> Any:
            loaded.append(expert)
            return value

        cache = new_cache(student, load, 2)
        found = [cache.fetch(expert) for expert in (4, 6, 4, 6, 4)]
        assert loaded == [4, 6], f"Where load returns {value}, it was called {len(loaded)} times for two experts."
        assert all(type(part) is type(value) for part in found), (
            f"Where load returns {value}, fetch returns another thing."
        )


@pytest.mark.exercise("ExpertCache", weight=0.5)
def test_two_caches_share_nothing(student: Student) -> None:
    """Every layer has a cache of its own: expert 3 of one layer is not expert 3 of another."""
    one, other = Shelf(), Shelf()
    first, second = new_cache(student, one.load, 2), new_cache(student, other.load, 2)
    first.fetch(3)
    second.fetch(3)
    second.fetch(1)
    assert (one.loaded, other.loaded) == ([3], [3, 1]), "What one cache loaded, another one believes to have."
    assert (first.misses, second.misses) == (1, 2), "The misses of one cache are counted in another."


@pytest.mark.exercise("ExpertCache", weight=0.5)
def test_a_cache_needs_room_for_one(student: Student) -> None:
    """A capacity below 1 is refused by a ValueError that names it."""
    new_cache(student, Shelf().load, 1)
    for capacity in (0, -3):
        names_both(
            refused(student.ExpertCache, Shelf().load, capacity),
            {capacity},
            f"With a capacity of {capacity}",
        )


# -- hierarchical_route ---------------------------------------------------------------------------------------------


def softmax_of_the_largest(logits: Tensor, k: int) -> Tensor:
    """Probabilities over the k largest logits of each row, 0 elsewhere: as top-k of a softmax, renormalised."""
    least = logits.double().sort(-1, descending=True)[0][..., k - 1 : k]
    return logits.double().masked_fill(logits < least, -torch.inf).softmax(-1)


def by_hierarchy(group_logits: Tensor, expert_logits: Tensor, top_groups: int, top_k: int) -> Tensor:
    """[tokens, n_experts]: the weight of every expert, 0 for those that are not chosen."""
    groups = softmax_of_the_largest(group_logits, top_groups)
    return (groups[..., None] * softmax_of_the_largest(expert_logits, top_k)).flatten(1)


def routed(found: Any, tokens: int, chosen: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    assert isinstance(found, tuple | list), "hierarchical_route should return a tuple (weights, experts)."
    assert len(found) == 2, "hierarchical_route should return a tuple of two, weights and experts."
    weights = tensor(found[0], shape=(tokens, chosen), dtype=dtype, name="weights")
    return weights, tensor(found[1], shape=(tokens, chosen), dtype=torch.int64, name="experts")


def spread(weights: Tensor, experts: Tensor, n_experts: int) -> Tensor:
    """The weights as [tokens, n_experts]."""
    assert bool(((experts >= 0) & (experts < n_experts)).all()), "Some experts have numbers that do not exist."
    assert all(len(set(row)) == len(row) for row in experts.tolist()), "Some token goes to one expert twice."
    return torch.zeros(len(weights), n_experts, dtype=weights.dtype).scatter(1, experts, weights)


HIERARCHIES = ((9, 4, 3, 2, 1), (7, 3, 5, 2, 3), (5, 6, 2, 1, 2), (8, 2, 4, 2, 2))  # tokens, groups, size, top, top_k


def hierarchies() -> list[tuple[Tensor, Tensor, int, int]]:
    return [
        (1.5 * normal(tokens, groups, seed=seed), 1.5 * normal(tokens, groups, size, seed=50 + seed), top_groups, top_k)
        for seed, (tokens, groups, size, top_groups, top_k) in enumerate(HIERARCHIES)
    ]


@pytest.mark.exercise("hierarchical_route")
def test_groups_are_chosen_by_their_own_logits(student: Student) -> None:
    """The groups with the largest group_logits are chosen, however good the experts of the others are."""
    for group_logits, expert_logits, top_groups, top_k in hierarchies():
        expert_logits = expert_logits - 3 * group_logits[..., None]  # the best experts are in the worst groups
        found = student.hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        _, experts = routed(found, len(group_logits), top_groups * top_k)
        expected = group_logits.topk(top_groups).indices
        for token, (row, groups) in enumerate(zip(experts.tolist(), expected.tolist(), strict=True)):
            chosen = {expert // expert_logits.shape[-1] for expert in row}
            assert chosen == set(groups), f"Token {token} goes to groups that are not its best {top_groups}."


@pytest.mark.exercise("hierarchical_route", weight=2)
def test_in_each_group_its_best_experts_are_chosen(student: Student) -> None:
    """Each chosen group gives its top_k best experts; expert j of group g has the number g · group_size + j."""
    for group_logits, expert_logits, top_groups, top_k in hierarchies():
        found = student.hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        _, experts = routed(found, len(group_logits), top_groups * top_k)
        chosen = by_hierarchy(group_logits, expert_logits, top_groups, top_k) > 0
        met = spread(torch.ones(experts.shape), experts, chosen.shape[1]) > 0
        wrong = int((met != chosen).any(1).sum())
        assert not wrong, f"{wrong} of {len(chosen)} tokens go to other experts ({top_groups} groups, {top_k} in each)."


@pytest.mark.exercise("hierarchical_route", weight=2)
def test_a_weight_is_the_groups_share_times_the_experts(student: Student) -> None:
    """Both shares are softmax probabilities of those that were kept, divided by their sum; then they are multiplied."""
    for group_logits, expert_logits, top_groups, top_k in hierarchies():
        found = student.hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        weights, experts = routed(found, len(group_logits), top_groups * top_k)
        expected = by_hierarchy(group_logits, expert_logits, top_groups, top_k).float()
        claim = f"{top_groups} groups and {top_k} experts in each"
        assert_close(
            weights.sort(-1)[0], expected.sort(-1)[0][:, -top_groups * top_k :], claim=claim, name="the weights"
        )
        assert_close(
            spread(weights, experts, expected.shape[1]), expected, claim=claim, name="the weight of each expert"
        )


@pytest.mark.exercise("hierarchical_route", weight=0.5)
def test_the_weights_of_a_token_sum_to_one(student: Student) -> None:
    """What is kept shares the whole: no weight is lost with those that were left out."""
    for group_logits, expert_logits, top_groups, top_k in hierarchies():
        found = student.hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        weights, _ = routed(found, len(group_logits), top_groups * top_k)
        assert bool((weights > 0).all()), "Some weight is 0, negative or no number."
        assert bool((weights[1:] != weights[:-1]).any()), "All tokens get the same weights, whatever their logits are."
        assert_close(weights.sum(-1), torch.ones(len(weights)), name="the sum of the weights")


@pytest.mark.exercise("hierarchical_route")
def test_the_largest_weight_comes_first(student: Student) -> None:
    """Weights are sorted over all groups, and each expert stands beside its own weight."""
    for group_logits, expert_logits, top_groups, top_k in hierarchies():
        group_logits = group_logits / 5  # groups alike: the order of the experts runs across them
        found = student.hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        weights, experts = routed(found, len(group_logits), top_groups * top_k)
        assert bool((weights.diff() <= 0).all()), "A smaller weight stands before a larger one."
        expected = by_hierarchy(group_logits, expert_logits, top_groups, top_k).float()
        spread(weights, experts, expected.shape[1])
        assert_close(weights, expected.gather(1, experts), name="the weights beside their experts")


@pytest.mark.exercise("hierarchical_route")
def test_with_everything_chosen_it_is_the_product_of_two_softmaxes(student: Student) -> None:
    """All groups and all experts: p(group) · p(expert given group), the mixture of 1994."""
    group_logits, expert_logits = normal(6, 3, seed=1), normal(6, 3, 4, seed=2)
    weights, experts = routed(student.hierarchical_route(group_logits, expert_logits, 3, 4), 6, 12)
    expected = (group_logits.softmax(-1)[..., None] * expert_logits.softmax(-1)).flatten(1)
    assert_close(spread(weights, experts, 12), expected, name="the weight of each expert")


@pytest.mark.exercise("hierarchical_route", weight=0.5)
def test_large_logits_and_no_tokens(student: Student) -> None:
    """Logits of some hundreds give finite weights, and no tokens give empty results."""
    group_logits, expert_logits = 300 * normal(5, 4, seed=1), 300 * normal(5, 4, 3, seed=2)
    weights, _ = routed(student.hierarchical_route(group_logits, expert_logits, 2, 2), 5, 4)
    expected = by_hierarchy(group_logits, expert_logits, 2, 2).sort(-1, descending=True)[0][:, :4]
    assert_close(weights, expected.float(), claim="large logits", name="the weights")
    routed(student.hierarchical_route(torch.zeros(0, 4), torch.zeros(0, 4, 3), 2, 2), 0, 4)


@pytest.mark.exercise("hierarchical_route")
def test_bfloat16_logits_are_routed_in_float32(student: Student) -> None:
    """bfloat16 in, bfloat16 out, and rounded once at the end: the softmax is computed in float32."""
    group_logits, expert_logits = normal(200, 8, seed=1).bfloat16(), normal(200, 8, 16, seed=2).bfloat16()
    found = student.hierarchical_route(group_logits, expert_logits, 3, 2)
    weights, _ = routed(found, 200, 6, torch.bfloat16)
    expected = by_hierarchy(group_logits, expert_logits, 3, 2).sort(-1, descending=True)[0][:, :6]
    ties = (expert_logits.float().topk(3).values.diff() == 0).any(-1).any(-1)
    ties |= (group_logits.float().topk(4).values.diff() == 0).any(-1)
    expected = expected[~ties]
    assert_close(weights[~ties], expected.bfloat16(), atol=1e-3, rtol=5e-3, name="the bfloat16 weights")
    error = (weights[~ties].double() / expected - 1).abs().mean().item()
    assert error < 0.0016, "The bfloat16 weights were rounded more than once."


@pytest.mark.exercise("hierarchical_route")
def test_gradients_reach_both_kinds_of_logits(student: Student) -> None:
    """Both routers learn from the weights that they gave."""
    for group_logits, expert_logits, top_groups, top_k in hierarchies()[:2]:
        group_logits, expert_logits = group_logits.requires_grad_(), expert_logits.requires_grad_()
        found = student.hierarchical_route(group_logits, expert_logits, top_groups, top_k)
        weights, _ = routed(found, len(group_logits), top_groups * top_k)
        upstream = normal(*weights.shape, seed=9)
        grads = gradients(weights, upstream, group_logits=group_logits, expert_logits=expert_logits)
        theirs = by_hierarchy(group_logits, expert_logits, top_groups, top_k).sort(-1, descending=True)[0]
        expected = gradients(
            theirs[:, : weights.shape[1]].float(), upstream, group_logits=group_logits, expert_logits=expert_logits
        )
        for name, grad in grads.items():
            assert_close(grad, expected[name], atol=1e-3, rtol=1e-3, name=f"the gradient of {name}")


@pytest.mark.exercise("hierarchical_route", weight=0.5)
def test_the_logits_of_both_steps_are_left_as_they_were(student: Student) -> None:
    """Both logits belong to the caller."""
    group_logits, expert_logits, top_groups, top_k = hierarchies()[0]
    kept = student.put(group_logits), student.put(expert_logits)
    weights, experts = routed(
        student.hierarchical_route(*kept, top_groups, top_k), len(group_logits), top_groups * top_k
    )
    expected = by_hierarchy(group_logits, expert_logits, top_groups, top_k).float()
    assert_close(spread(weights, experts, expected.shape[1]), expected, name="the weight of each expert")
    for remote, value, name in zip(kept, (group_logits, expert_logits), ("group_logits", "expert_logits"), strict=True):
        assert_close(remote.get(), value, atol=0, rtol=0, claim="after the call", name=name)


# -- top_p_route ----------------------------------------------------------------------------------------------------


def smallest_sets(logits: Tensor, p: float) -> list[set[int]]:
    """For each token the smallest set that reaches p, by adding up one expert after the other."""
    sets = []
    for row in logits.double().softmax(-1).tolist():
        order = sorted(range(len(row)), key=lambda expert: (-row[expert], expert))
        total, chosen = 0.0, set()
        for expert in order:
            chosen.add(expert)
            total += row[expert]
            if total >= p - 1e-9:
                break
        sets.append(chosen)
    return sets


def clear(logits: Tensor, p: float) -> Tensor:
    """Those rows in which no sum comes so near to p that rounding decides."""
    sums = logits.double().softmax(-1).sort(-1, descending=True)[0].cumsum(-1)
    return logits[(sums - p).abs().amin(-1) > 1e-4]


def near(logits: Tensor, p: float) -> Tensor:
    """Those rows in which a sum stays less than p / 1000 below p: it does not reach it."""
    missing = p - logits.double().softmax(-1).sort(-1, descending=True)[0].cumsum(-1)
    return logits[((missing > 1e-4) & (missing < p / 1000)).any(-1)]


@cache
def top_p_cases() -> list[tuple[Tensor, float]]:
    sizes = ((30, 8, 0.6, 1.0), (30, 5, 0.3, 1.5), (20, 16, 0.9, 2.0), (40, 4, 0.75, 0.5), (20, 64, 0.5, 1.0))
    cases = [(clear(scale * normal(n, e, seed=i), p), p) for i, (n, e, p, scale) in enumerate(sizes)]
    return [*cases, (clear(near(normal(4000, 8, seed=9), 0.7), 0.7), 0.7)]


def chosen_by(student: Student, logits: Tensor, p: float) -> tuple[Tensor, list[set[int]]]:
    weights = tensor(student.top_p_route(logits, p), shape=logits.shape, dtype=logits.dtype, name="the weights")
    return weights, [set(row.nonzero().flatten().tolist()) for row in weights]


@pytest.mark.exercise("top_p_route", weight=3)
def test_the_smallest_set_that_reaches_p_is_chosen(student: Student) -> None:
    """The likeliest experts, until their probabilities sum to at least p: the one that crosses p belongs to them."""
    for logits, p in top_p_cases():
        _, found = chosen_by(student, logits, p)
        for token, (ours, theirs) in enumerate(zip(found, smallest_sets(logits, p), strict=True)):
            assert ours == theirs, (
                f"p = {p} and {logits.shape[1]} experts: for token {token} {len(ours)} experts are chosen, and they "
                "are not the smallest set that reaches p."
            )


@pytest.mark.exercise("top_p_route", weight=2)
def test_the_weights_are_probabilities_over_the_chosen(student: Student) -> None:
    """The chosen experts keep their softmax probabilities, divided by the sum over the chosen; others get 0."""
    for logits, p in top_p_cases():
        weights, _ = chosen_by(student, logits, p)
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        for row, chosen in zip(mask, smallest_sets(logits, p), strict=True):
            row[list(chosen)] = True
        expected = logits.double().masked_fill(~mask, -torch.inf).softmax(-1).float()
        assert_close(weights, expected, claim=f"p = {p} and {logits.shape[1]} experts", name="the weights")


@pytest.mark.exercise("top_p_route", weight=0.5)
def test_the_chosen_weights_sum_to_one(student: Student) -> None:
    """Whatever was left out, the weights of a token sum to 1, and none is negative."""
    for logits, p in top_p_cases():
        weights, _ = chosen_by(student, logits, p)
        assert bool((weights >= 0).all()), "Some weight is negative or no number."
        assert bool((weights[1:] != weights[:-1]).any()), "All tokens get the same weights, whatever their logits are."
        assert_close(weights.sum(-1), torch.ones(len(logits)), claim=f"p = {p}", name="the sum of the weights")


@pytest.mark.exercise("top_p_route")
def test_there_is_always_one_and_with_p_of_one_there_are_all(student: Student) -> None:
    """However small p is, the likeliest expert is chosen; with p = 1 every expert is."""
    logits = normal(20, 6, seed=1)
    _, found = chosen_by(student, logits, 1e-6)
    assert found == [{best} for best in logits.argmax(-1).tolist()], (
        "With a tiny p only the likeliest should be chosen."
    )
    _, found = chosen_by(student, logits, 1.0)
    assert all(len(chosen) == 6 for chosen in found), (
        f"With p = 1, {min(len(chosen) for chosen in found)} of 6 experts are chosen for some token."
    )


@pytest.mark.exercise("top_p_route")
def test_to_reach_p_exactly_is_enough(student: Student) -> None:
    """The sum has to be at least p, not more than p. Of equal experts the lower number is chosen."""
    for n_experts, p, expected in ((8, 0.25, 2), (2, 0.5, 1), (4, 0.5, 2), (4, 0.75, 3)):
        _, found = chosen_by(student, torch.zeros(3, n_experts), p)
        assert all(len(chosen) == expected for chosen in found), (
            f"{n_experts} experts with equal probabilities and p = {p}: {len(found[0])} are chosen."
        )
        assert all(chosen == set(range(expected)) for chosen in found), (
            "Of experts with equal probabilities the lower numbers should be chosen."
        )


@pytest.mark.exercise("top_p_route")
def test_a_token_in_doubt_gets_more_experts(student: Student) -> None:
    """How many experts a token gets depends on its own logits: rows of one batch differ."""
    sure, unsure = torch.tensor([9.0, 0, 0, 0, 0, 0]), torch.tensor([0.3, 0.2, 0.1, 0.0, -0.1, -0.2])
    logits = torch.stack([sure, unsure, sure.flip(0), unsure.flip(0)])
    weights, found = chosen_by(student, logits, 0.8)
    assert [len(chosen) for chosen in found] == [1, 5, 1, 5], (
        f"Two sure tokens and two in doubt get {[len(chosen) for chosen in found]} experts."
    )
    assert_close(weights[2:], weights[:2].flip(1), claim="with the experts in reverse order", name="the weights")


@pytest.mark.exercise("top_p_route", weight=0.5)
def test_very_large_logits_and_an_empty_batch(student: Student) -> None:
    """Logits of some hundreds give finite weights, and no tokens give no rows."""
    logits = 300 * normal(8, 5, seed=2)
    weights, found = chosen_by(student, logits, 0.9)
    assert bool(weights.isfinite().all()), "Large logits give weights that are NaN or infinite."
    assert found == [{best} for best in logits.argmax(-1).tolist()], "Where one expert has it all, only it is chosen."
    chosen_by(student, torch.zeros(0, 5), 0.5)


@pytest.mark.exercise("top_p_route")
def test_bfloat16_probabilities_are_added_up_in_float32(student: Student) -> None:
    """bfloat16 in, bfloat16 out; in bfloat16 a sum of many small probabilities goes wrong."""
    logits = (0.5 * normal(40, 128, seed=3)).bfloat16()
    ties = torch.tensor([len(set(row)) < 60 for row in logits.tolist()])
    logits = clear(logits[~ties], 0.8)
    weights, found = chosen_by(student, logits, 0.8)
    for ours, theirs in zip(found, smallest_sets(logits, 0.8), strict=True):
        assert len(ours) == len(theirs), f"Of 128 experts {len(ours)} are chosen: too many or too few reach p = 0.8."
    assert_close(weights.float().sum(-1), torch.ones(len(logits)), atol=0.02, name="the sum of the weights")


@pytest.mark.exercise("top_p_route")
def test_gradients_reach_the_logits_of_the_chosen(student: Student) -> None:
    """The router learns from the weights that it gave."""
    for logits, p in top_p_cases()[:3]:
        logits = logits.clone().requires_grad_()
        weights = tensor(student.top_p_route(logits, p), shape=logits.shape, name="the weights")
        upstream = normal(*logits.shape, seed=9)
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        for row, chosen in zip(mask, smallest_sets(logits.detach(), p), strict=True):
            row[list(chosen)] = True
        expected = gradients(logits.masked_fill(~mask, -torch.inf).softmax(-1), upstream, logits=logits)["logits"]
        grad = gradients(weights, upstream, logits=logits)["logits"]
        assert_close(grad, expected, atol=1e-3, rtol=1e-3, claim=f"p = {p}", name="the gradient of the logits")


@pytest.mark.exercise("top_p_route", weight=0.5)
def test_p_must_be_a_share(student: Student) -> None:
    """A p of 0 or less, or above 1, is refused by a ValueError that names it."""
    chosen_by(student, normal(2, 4, seed=1), 0.5)
    for p in (0, -1, 2):
        names_both(refused(student.top_p_route, torch.zeros(2, 4), p), {p}, f"With p = {p}")


@pytest.mark.exercise("top_p_route", weight=0.5)
def test_the_logits_of_top_p_are_left_as_they_were(student: Student) -> None:
    """The logits belong to the caller."""
    logits = normal(5, 6, seed=1)
    kept = student.put(logits)
    weights = tensor(student.top_p_route(kept, 0.7), shape=(5, 6), name="the weights")
    best = logits.argmax(-1)
    assert bool((weights.argmax(-1) == best).all()), "The likeliest expert does not get the largest weight."
    assert_close(kept.get(), logits, atol=0, rtol=0, claim="after the call", name="logits")


# -- add_expert -----------------------------------------------------------------------------------------------------

PARTS = ("router", "bias", "gate_up", "down")


def some_layer(n_experts: int, *, seed: int, d_model: int = 6, d_hidden: int = 5) -> dict[str, Tensor]:
    return {
        "router": normal(n_experts, d_model, seed=seed),
        "bias": normal(n_experts, seed=seed + 1) / 2,
        "gate_up": normal(n_experts, 2 * d_hidden, d_model, seed=seed + 2),
        "down": normal(n_experts, d_model, d_hidden, seed=seed + 3),
    }


def grown(found: Any) -> dict[str, Tensor]:
    assert isinstance(found, tuple | list), "add_expert should return a tuple of four tensors."
    assert len(found) == 4, f"add_expert should return four tensors, not {len(found)}."
    return {name: tensor(part, name=name) for name, part in zip(PARTS, found, strict=True)}


def computed(layer: dict[str, Tensor], x: Tensor, top_k: int) -> Tensor:
    """What the layer computes: chosen by logit + bias, weighted by the softmax of the logits alone."""
    logits = x @ layer["router"].T
    chosen = (logits + layer["bias"]).topk(top_k).indices
    weights = logits.gather(1, chosen).softmax(-1)
    gate, up = torch.einsum("td,ehd->teh", x, layer["gate_up"]).chunk(2, -1)
    every = torch.einsum("teh,edh->ted", functional.silu(gate) * up, layer["down"])
    return (weights[..., None] * every.gather(1, chosen[..., None].expand(-1, -1, x.shape[1]))).sum(1)


@pytest.mark.exercise("add_expert", weight=2)
def test_the_newcomer_is_a_copy_of_its_parent(student: Student) -> None:
    """At the end stands one expert more: the parent's row of the router, its gate_up and its down."""
    for n_experts, parent in ((4, 2), (3, 0), (5, 4)):
        layer = some_layer(n_experts, seed=10 * parent)
        new = grown(student.add_expert(*layer.values(), parent))
        for name in ("router", "gate_up", "down"):
            tensor(new[name], shape=(n_experts + 1, *layer[name].shape[1:]), name=name)
            assert_close(new[name][-1], layer[name][parent], atol=0, rtol=0, name=f"the newcomer's part of {name}")


@pytest.mark.exercise("add_expert")
def test_those_who_were_there_stay_as_they_were(student: Student) -> None:
    """Experts 0 to n − 1 keep their numbers and their parts, to the last bit."""
    layer = some_layer(4, seed=1)
    new = grown(student.add_expert(*layer.values(), 1))
    for name in PARTS:
        tensor(new[name], shape=(5, *layer[name].shape[1:]), name=name)
        assert_close(new[name][:-1], layer[name], atol=0, rtol=0, name=f"the old part of {name}")


@pytest.mark.exercise("add_expert")
def test_nobody_is_sent_to_the_newcomer(student: Student) -> None:
    """The newcomer's bias is −∞, so that no logit, however large, gets it chosen."""
    layer = some_layer(4, seed=2)
    bias = grown(student.add_expert(*layer.values(), 3))["bias"]
    tensor(bias, shape=(5,), dtype=torch.float32, name="bias")
    assert bool(bias[:-1].isfinite().all()), "The bias of somebody who was there is not finite any more."
    assert bias[-1].item() == -torch.inf, "The newcomer's bias is not −∞."


@pytest.mark.exercise("add_expert", weight=2)
def test_the_layer_computes_what_it_did_before(student: Student) -> None:
    """Until the bias is raised, nothing changes for any token; once it is the parent's, two stand in its place."""
    x = 3 * normal(40, 6, seed=3)
    for parent, top_k in ((0, 1), (2, 2), (1, 3)):
        layer = some_layer(4, seed=20 + parent)
        new = grown(student.add_expert(*layer.values(), parent))
        for name in PARTS:
            tensor(new[name], shape=(5, *layer[name].shape[1:]), dtype=torch.float32, name=name)
        before = computed(layer, x, top_k)
        assert_close(
            computed({n: v.detach() for n, v in new.items()}, x, top_k), before, claim=f"top {top_k}", name="the output"
        )
        let_in = {name: value.detach().clone() for name, value in new.items()}
        let_in["bias"][-1] = 100.0
        let_in["bias"][parent] = 100.0
        alone = functional.silu(x @ layer["gate_up"][parent].T[:, :5]) * (x @ layer["gate_up"][parent].T[:, 5:])
        alone = alone @ layer["down"][parent].T
        assert_close(
            computed(let_in, x, 2), alone, atol=1e-3, rtol=1e-3, claim="chosen with its parent", name="the output"
        )


@pytest.mark.exercise("add_expert")
def test_the_new_tensors_have_no_history(student: Student) -> None:
    """What comes back is a leaf: it does not hang on the old parameters, and has their dtypes."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer = {name: part.to(dtype).requires_grad_() for name, part in some_layer(4, seed=5).items()}
        new = grown(student.add_expert(*layer.values(), 2))
        for name in PARTS:
            tensor(new[name], shape=(5, *layer[name].shape[1:]), dtype=dtype, name=name)
            if new[name].requires_grad:
                (grad,) = torch.autograd.grad(
                    new[name].float()[:-1].sum(), [layer[name]], allow_unused=True, retain_graph=True
                )
                assert grad is None, f"The new {name} hangs on the old one: its gradient flows there."


@pytest.mark.exercise("add_expert")
def test_a_second_newcomer_may_come(student: Student) -> None:
    """The grown layer can grow again, also from the newcomer, and the old layer is left as it was."""
    layer = some_layer(3, seed=7)
    kept = {name: student.put(part) for name, part in layer.items()}
    once = {name: part.detach() for name, part in grown(student.add_expert(*kept.values(), 1)).items()}
    for name, part in layer.items():
        assert_close(kept[name].get(), part, atol=0, rtol=0, claim="after the call", name=name)
    twice = grown(student.add_expert(*once.values(), 3))
    for name in ("router", "gate_up", "down"):
        tensor(twice[name], shape=(5, *layer[name].shape[1:]), name=name)
        assert_close(twice[name][-1], layer[name][1], atol=0, rtol=0, name=f"the second newcomer's part of {name}")
    tensor(twice["bias"], shape=(5,), name="bias")
    assert bool((twice["bias"][-2:] == -torch.inf).all()), "Both newcomers should have a bias of −∞."
