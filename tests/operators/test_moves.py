"""Every operator said to move data, run on numbered elements: each result element is one of them, or a constant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from archir.axes.rules.reshape import PERMUTATIONS
from archir.ir.operators.operator import Movement
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of
from archir.rewrite.relations.movement import MOVES
from tests.operators.calls import EVERY
from tests.operators.made import Made, make

FIRST = 1000
"""The number of the first element."""

CALLS = [call for call in map(make, EVERY) if call.row.moves]


@contextmanager
def _filled() -> Iterator[None]:
    """Let memory that is not written to hold the same in every run."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _problem(call: Made) -> str:
    """Return how a call does more than move the elements of its operands, empty if it does not."""
    whole = torch.cat([t.reshape(-1) for t in call.operands.values()] or [torch.zeros(0, dtype=torch.float64)])
    sizes = [t.numel() for t in call.operands.values()]

    def run(values: Tensor) -> list[Tensor]:
        parts = [v.reshape(t.shape) for v, t in zip(torch.split(values, sizes), call.operands.values(), strict=True)]
        with _filled():
            return [r for r in call.with_operands(dict(zip(call.operands, parts, strict=True)))()]

    numbers = run(torch.arange(len(whole), dtype=torch.float64) + FIRST)
    for _ in range(2):
        values = torch.randn_like(whole)
        for found, number in zip(run(values), numbers, strict=True):
            inside = (number >= FIRST) & (number < FIRST + len(whole))
            moved = inside & (number == number.round()) if number.is_floating_point() else number < 0
            source = torch.where(moved, number - FIRST, 0).long()
            expected = torch.where(moved, values[source] if len(values) else number, number)
            if found.shape != number.shape or not torch.equal(found.nan_to_num(99.0), expected.nan_to_num(99.0)):
                return "an element is no element of an operand, and no constant"
    return ""


def _how(call: Made, moves: Movement) -> str:
    """Return how a call moves data otherwise than it is said to, empty if it does not."""
    given, results = next(iter(call.operands.values()), torch.zeros(0)), call()
    alone = results[0] if len(results) == 1 else None
    match moves:
        case Movement.COPY:
            right = alone is not None and alone.dtype == given.dtype and torch.equal(alone, given)
        case Movement.CAST:
            right = alone is not None and torch.equal(alone, given.to(alone.dtype))
        case Movement.RESHAPE:
            right = alone is not None and torch.equal(alone.reshape(-1), given.reshape(-1))
        case Movement.PERMUTE:
            orders = itertools.permutations(range(given.dim()))
            right = alone is not None and any(torch.equal(alone, given.permute(order)) for order in orders)
        case Movement.REPEAT | Movement.JOIN | Movement.CUT:
            same = alone is not None and len(call.operands) == 1 and alone.shape == given.shape
            right = not same or (alone is not None and torch.equal(alone, given))
        case Movement.PAD:
            pad = call.arguments.get("pad", call.arguments.get("padding"))
            whole = call.with_operands({}, **{n: (0,) * len(pad) for n in ("pad", "padding") if n in call.arguments})
            right = torch.equal(whole()[0], given)
        case Movement.FILL:
            other = call.with_operands({("self", 0): given + 1})
            right = torch.equal(_constant(call), _constant(other))
        case Movement.PICK | Movement.WRITE:
            right = True
    return "" if right else f"is no {moves.value}"


def _constant(call: Made) -> Tensor:
    with _filled():
        return torch.nan_to_num(call()[0], 99.0)


def test_operators_that_move_data_do_no_more() -> None:
    adding = [c for c in CALLS if c.arguments.get("accumulate")]
    assert len(adding) == 1 and _problem(adding[0])
    assert [c.op for c in CALLS if c.row.moves is not Movement.CAST and c not in adding and _problem(c)] == []


def test_operators_move_data_as_they_are_said_to() -> None:
    assert [f"{c.op} {problem}" for c in CALLS if c.row.moves and (problem := _how(c, c.row.moves))] == []


def test_rules_and_relations_of_moves_are_of_operators_that_move() -> None:
    assert [op for op in PERMUTATIONS if operator_of(op).moves is not Movement.PERMUTE] == []
    rows = {name: TABLE[name] for name in MOVES}
    assert [name for name, row in rows.items() if not row.linear and not row.preserves_zero] == []


def test_every_operator_that_moves_data_is_run() -> None:
    claimed = {name for name, row in TABLE.items() if row.moves}
    assert {c.key for c in CALLS} == claimed and len(claimed) > 170


def test_returns_what_it_is_given_where_the_type_is_the_same() -> None:
    returning = (Movement.COPY, Movement.CAST, Movement.RESHAPE, Movement.REPEAT, Movement.JOIN, Movement.CUT)
    found: set[Movement] = set()
    for call in CALLS:
        results = call()
        given = next(iter(call.operands.values()), None)
        alone = results[0] if len(results) == 1 else None
        if call.row.moves not in returning or len(call.operands) != 1 or given is None or alone is None:
            continue
        if alone.shape == given.shape and alone.dtype == given.dtype:
            assert torch.equal(alone, given), call.op
            found.add(call.row.moves)
    assert found == set(returning)
