"""Every operand an operator is said to be linear in, and every operator said to keep zero, by running it."""

from __future__ import annotations

import torch
from torch import Tensor

from archir.ir.operators.table import TABLE
from tests.operators.calls import EVERY
from tests.operators.made import Made, make

CALLS = [make(call) for call in EVERY]


def _is_linear_in(call: Made, places: list[tuple[str, int]]) -> bool:
    """Say whether `f(2x - 3y) = 2 f(x) - 3 f(y)`, with x and y in place of some operands; numbers are operands, too."""
    x = {place: torch.randn_like(call.operands[place]) for place in places}
    y = {place: torch.randn_like(call.operands[place]) for place in places}
    numbers = [n for n in call.row.linear if isinstance(call.arguments.get(n), int | float)]

    def run(operands: dict[tuple[str, int], Tensor], number: float) -> list[Tensor]:
        return call.with_operands(operands, **dict.fromkeys(numbers, number)).real()

    mixed = run({place: 2 * x[place] - 3 * y[place] for place in places}, 2 * 0.5 - 3 * 0.25)
    pairs = zip(mixed, run(x, 0.5), run(y, 0.25), strict=True)
    return bool(mixed) and all(_close(m, 2 * a - 3 * b) for m, a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2}[a.dtype]
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_operators_are_linear_in_the_operands_named_for_it() -> None:
    checked: set[tuple[str, str]] = set()
    wrong: list[str] = []
    for call in CALLS:
        linear = call.row.linear_in(call.arguments)
        places = [place for place in call.operands if place[0] in linear]
        if places and call.real():
            wrong += [] if _is_linear_in(call, places) else [call.op]
            checked |= {(call.key, name) for name, _ in places}
    assert wrong == []
    claimed = {(name, operand) for name, row in TABLE.items() for operand in row.linear}
    assert checked == claimed and len(claimed) > 200


def test_operators_are_linear_in_each_of_several_operands() -> None:
    checked: set[tuple[str, str]] = set()
    wrong: list[str] = []
    for call in CALLS:
        unbiased = call.with_operands({("bias", 0): None} if "bias" in call.arguments else {})
        for place in call.operands:
            if place[0] in call.row.multilinear:
                wrong += [] if _is_linear_in(unbiased, [place]) else [f"{call.op} in {place}"]
                checked.add((call.key, place[0]))
    assert wrong == []
    assert checked == {(name, operand) for name, row in TABLE.items() for operand in row.multilinear}
    assert len(checked) > 40


def test_a_constant_that_is_not_zero_takes_linearity_away() -> None:
    voided: set[str] = set()
    for call in CALLS:
        if call.row.unless and not call.row.linear_in(call.arguments):
            assert not _is_linear_in(call, [("self", 0)]), call.op
            voided.add(call.key)
    assert voided == {"pad"}


def test_operators_said_to_keep_zero_do_in_both_modes() -> None:
    checked: set[str] = set()
    for call in CALLS:
        if not call.row.preserves_zero:
            continue
        first = next(iter(call.operands))
        for training in (False, True) if call.row.mode else (False,):
            modes = {call.row.mode: training} if call.row.mode else {}
            found = call.with_operands({first: torch.zeros_like(call.operands[first])}, **modes).real()
            assert found and not any(bool(r.any()) for r in found), call.op
        checked.add(call.key)
    assert checked == {name for name, row in TABLE.items() if row.preserves_zero}
    assert len(checked) > 5
