"""The mutator: which changes it makes, and what it leaves alone."""

from __future__ import annotations

import ast

import pytest

from autograder import assignment as assignments
from autograder.authoring.mutants import mutants

MASK = '''\
def attention(q: Float[Tensor, "n 1"], k: Float[Tensor, "n 1"], mask: Bool[Tensor, "n n"] | None = None) -> Tensor:
    """Scores -> weights, 1 by 1."""
    first = 1 + 1
    ### BEGIN SOLUTION
    if len(q) < 1:
        raise ValueError(f"{len(q)} is less than {1 + 0}")
    scores = q @ k.mT  # 1 + 1
    return scores.softmax(-1)
    ### END SOLUTION
'''

LINES = [
    ("a < b", {"a <= b", "a > b"}),
    ("a is None", {"a is not None"}),
    ("not a", {"a"}),
    ("~a", {"a"}),
    ("a and b", {"a or b", "a", "b"}),
    ("a + b", {"a - b", "a", "b"}),
    ("a / b", {"a * b", "a", "b", "b / a"}),
    ("a @ b", {"a * b", "a", "b", "b @ a"}),
    ("a ** 2", {"a * 2", "a", "2", "2 ** a", "a ** 3", "a ** 1"}),
    ("7", {"8", "6"}),
    ("-1", {"1", "-2", "-0"}),
    ("1e-05", {"0.0001", "0.0"}),
    ("True", {"False"}),
    ("None", set()),
    ("'a word'", set()),
    ("f'{a + b}'", set()),
    ("-math.inf", {"math.inf", "-1000000000.0"}),
    ("(a, b, c)", {"(b, a, c)", "(a, c, b)"}),
    ("a if b else c", {"a", "c"}),
    ("a[b]", {"a"}),
    ("a.shape[0]", {"a.shape[1]", "a.shape[-1]"}),
    ("a[b:c]", {"a", "a[:c]", "a[b:]"}),
    ("a.mT", {"a"}),
    ("a.contiguous()", {"a"}),
    ("a.transpose(b, c)", {"a", "a.transpose(b)"}),
    ("a.sum(b, keepdim=c)", {"a", "a.sum(keepdim=c)", "a.sum(b)", "a.mean(b, keepdim=c)"}),
    ("a.tril()", {"a", "a.tril(1)", "a.tril(-1)", "a.triu()"}),
    ("torch.tril(a)", {"a", "torch.tril(a, 1)", "torch.tril(a, -1)", "torch.triu(a)"}),
    ("range(a)", {"range(a + 1)", "range(a - 1)"}),
    ("torch.softmax(a, b)", {"a", "torch.softmax(a)", "torch.softmax(b, a)", "torch.log_softmax(a, b)"}),
    ("math.sqrt(a)", {"a"}),
    ("max(a, b)", {"a", "max(a)", "min(a, b)"}),
    ("self.norm(a)", {"a"}),
    ("nn.Linear(a, b)", {"nn.Linear(a)", "nn.Linear(b, a)"}),
    ("nn.Parameter(a)", {"a"}),
    ("torch.cat(a)", {"a", "torch.stack(a)"}),
    ("[a for a in b if a > c]", {"[a for a in b]", "[a for a in b if a >= c]", "[a for a in b if a < c]"}),
    (
        "einsum(a, 'q d, k d -> q k')",
        {"einsum('q d, k d -> q k', a)", "einsum(a)", "a", "einsum(a, 'q d, k d -> k q')"},
    ),
    (
        "f(a, 'b n (h d) -> b h')",
        {"f('b n (h d) -> b h', a)", "f(a)", "a"} | {"f(a, 'b n (h d) -> h b')", "f(a, 'b n (d h) -> b h')"},
    ),
    (
        "torch.einsum('bq,bk->bqk', a)",
        {
            "'bq,bk->bqk'",
            "torch.einsum('bq,bk->bqk')",
            "torch.einsum(a, 'bq,bk->bqk')",
            "torch.einsum('bq,bk->bkq', a)",
        },
    ),
]


@pytest.mark.parametrize(("expression", "expected"), LINES, ids=[line for line, _ in LINES])
def test_an_expression_changes_in_each_of_these_ways(expression: str, expected: set[str]) -> None:
    assert {mutant.after for mutant in mutants(f"return_ = {expression}")} == {f"return_ = {new}" for new in expected}


STATEMENTS = [
    ("if a == b:\n    c()", {"if a != b:", "if True:", "if False:", "pass"}),
    ("if a:\n    c()", {"if not a:", "if True:", "if False:", "pass"}),
    ("while a:\n    break", {"while False:", "continue"}),
    ("raise ValueError('1 + 1')", {"raise Exception('1 + 1')", "pass"}),
    ("a += b", {"a -= b", "a = b", "pass"}),
    ("self.a = b", {"pass"}),
    ("with torch.no_grad():\n    a = b", {"if True:"}),
    ("a.mul_(b)", {"pass", "a", "a.mul(b)", "a.mul_()"}),
    ("def f(a=1, *, b: int = 2) -> Float[Tensor, '3']:\n    '''4 -> 5'''\n    c: Float[Tensor, '6'] = None", set()),
]


@pytest.mark.parametrize(("statement", "expected"), STATEMENTS, ids=[line for line, _ in STATEMENTS])
def test_a_statement_changes_in_each_of_these_ways(statement: str, expected: set[str]) -> None:
    assert {mutant.after for mutant in mutants(statement)} == expected


def test_only_the_answer_changes() -> None:
    found = mutants(MASK)
    assert {mutant.line for mutant in found} == {5, 6, 7, 8}
    for mutant in found:
        head, _, _ = mutant.source.partition("    if ")
        assert head == ast.unparse(ast.parse(MASK)).partition("    if ")[0], mutant.after
        assert "raise" not in mutant.source or "(f'{len(q)} is less than {1 + 0}')" in mutant.source


def test_parameters_of_the_same_kind_are_exchanged_and_others_are_not() -> None:
    lines = {mutant.after for mutant in mutants(MASK) if mutant.before == "scores = q @ k.mT"}
    assert {"scores = k @ k.mT", "scores = q @ q.mT"} <= lines
    assert not any("mask" in line for line in lines)


def test_a_parameter_is_changed_in_place_and_a_value_of_ones_own_is_not() -> None:
    source = "def f(x):\n    x = x * 2\n    y = x.exp()\n    return y.masked_fill(x, 0)"
    lines = {mutant.after for mutant in mutants(source)}
    assert {"x *= 2", "y = x.exp_()"} <= lines
    assert "return y.masked_fill_(x, 0)" not in lines


def test_attributes_that_are_made_alike_are_exchanged() -> None:
    source = (
        "class A:\n    def __init__(self, n: int, m: int):\n        self.n = n\n        self.m = m\n"
        "        self.q = Linear(n)\n        self.k = Linear(m)\n        self.o = Norm(n)\n"
        "    def forward(self, x):\n        return self.q(x) + self.n"
    )
    lines = {mutant.after for mutant in mutants(source) if mutant.line == 9}
    assert {"return self.k(x) + self.n", "return self.q(x) + self.m"} <= lines
    assert not any("self.o" in line for line in lines)


def test_no_variable_is_used_before_it_is_assigned() -> None:
    source = "def f():\n    a = g(1)\n    b = g(2)\n    return a - b"
    assert not [m for m in mutants(source) if m.line == 2 and "b" in m.after]
    assert "return b - b" in {mutant.after for mutant in mutants(source)}


def test_variables_that_are_unpacked_together_are_exchanged_but_for_the_rest() -> None:
    lines = {mutant.after for mutant in mutants("def f(x):\n    a, b, *rest = x\n    return g(a, rest)")}
    assert "return g(b, rest)" in lines
    assert not {"return g(rest, rest)", "return g(a, a)", "return g(a, b)"} & lines


def test_the_same_change_in_two_places_is_told_apart() -> None:
    found = [m for m in mutants("if a:\n    x = b\nif a:\n    y = b") if m.after == "if True:"]
    assert [(m.line, m.occurrence) for m in found] == [(1, 1), (3, 2)]


@pytest.mark.parametrize("name", assignments.names())
def test_every_mutant_is_python_and_differs_from_the_answer_and_the_others(name: str) -> None:
    for exercise, source in assignments.load(name).reference.items():
        found = mutants(source)
        assert found == mutants(source), "not the same mutants every time"
        texts = [mutant.source for mutant in found]
        assert len(set(texts)) == len(texts) >= 5, exercise
        assert ast.unparse(ast.parse(source)) + "\n" not in texts
        for mutant in found:
            assert ast.unparse(ast.parse(mutant.source)) + "\n" == mutant.source, "not what it says"
            assert mutant.before != mutant.after
