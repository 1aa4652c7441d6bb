"""Every overload of every operator said to be pointwise, run on whole tensors and on each element alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from archir.ir import ops, registry
from archir.ir.operators.table import TABLE
from archir.ir.registry import operator_of
from tests.operators.calls import EVERY
from tests.operators.made import Made, make

SHAPES = ((4, 6), (6,), (4, 1))
KINDS = ("float", "above one", "integer", "truth", "complex", "certain")
NUMBERS: Mapping[str, Any] = MappingProxyType(
    {"decimals": 1, "n": 1, "rounding_mode": "floor", "p": 1, "training": False}
)
"""What arguments are given that cannot be any number."""


def _overloads() -> Iterator[str]:
    """Yield the overloads that are said to be pointwise."""
    for name in sorted({key.partition(".")[0] for key, row in TABLE.items() if row.pointwise}):
        for form in registry._forms("aten", name):
            op = f"aten.{name}.{form}"
            found = registry._overload(op)
            if found is not None and registry.is_function(found) and operator_of(op).pointwise:
                yield op


def _operand(kind: str, shape: Sequence[int]) -> Tensor:
    values = torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1
    match kind:
        case "above one":
            return values + 1
        case "integer":
            return (values * 9).long() + 1
        case "truth":
            return values > 0.5
        case "certain":
            return values.round()
        case "complex":
            return torch.complex(values, values.flip(0))
    return values


def _candidates(op: str) -> Iterator[Made]:
    """Yield calls of an operator: those known, and those made from its schema, of which some are not valid."""
    chance = torch.Tag.nondeterministic_seeded in ops.function(op).tags  # type: ignore[attr-defined]
    yield from (c for c in map(make, EVERY) if c.op == op and c.operands and not chance)
    schema = ops.function(op)._schema  # type: ignore[attr-defined]
    for kind, shapes in itertools.product(KINDS[-1:] if chance else KINDS, (SHAPES, ((4, 6), ()), ((4, 6),))):
        tensors, arguments = itertools.cycle(shapes), dict[str, Any]()
        for argument in schema.arguments:
            type_ = str(argument.type)
            if argument.name in ("condition", "mask"):
                arguments[argument.name] = _operand("truth", next(tensors))
            elif type_ in ("Tensor", "Optional[Tensor]"):
                arguments[argument.name] = _operand(kind, next(tensors))
            elif argument.name in NUMBERS:
                arguments[argument.name] = NUMBERS[argument.name]
            elif type_ in ("number", "Optional[number]", "float"):
                arguments[argument.name] = 2 if kind == "integer" else 0.5
        yield Made(op, arguments)


def _tensors(call: Made) -> dict[str, Tensor]:
    return {n: a for n, a in call.arguments.items() if isinstance(a, Tensor)}


def _valid(call: Made) -> bool:
    """Say whether a call has results, some of them numbers, on more than one element."""
    try:
        results = call()
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return all(isinstance(r, Tensor) and not bool(r.isnan().all()) for r in results) and results[0].numel() > 1


@pytest.mark.parametrize("op", sorted(_overloads()))
def test_each_element_depends_on_those_it_is_aligned_with(op: str) -> None:
    call = next(filter(_valid, _candidates(op)))
    tensors, results = _tensors(call), call()
    shape = np.broadcast_shapes(*(t.shape for t in tensors.values()))
    whole = {name: t.expand(shape) for name, t in tensors.items()}
    for result in results:
        assert result.shape == shape
    for place in itertools.product(*map(range, shape)):
        alone = Made(op, {**call.arguments, **{name: t[place].reshape(1) for name, t in whole.items()}})
        for result, one in zip(results, _of_one(alone, tensors), strict=True):
            assert torch.allclose(result[place], one.reshape(()), rtol=1e-12, atol=1e-12, equal_nan=True)


def _of_one(call: Made, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Return the results for one element, where an operand that has to be a single number stays one."""
    single = {name: call.arguments[name].reshape(()) for name, t in tensors.items() if not t.dim()}
    return Made(call.op, {**call.arguments, **single})()


def test_every_row_is_run() -> None:
    claimed = {name for name, row in TABLE.items() if row.pointwise}
    run = {op.removeprefix("aten.") for op in _overloads()}
    assert claimed == {rest if rest in TABLE else rest.partition(".")[0] for rest in run}
    assert len(run) > 300


def test_what_pytorch_tags_as_pointwise_is_in_the_table() -> None:
    tagged = {
        op
        for name in TABLE
        for form in registry._forms("aten", name)
        if (found := registry._overload(op := f"aten.{name}.{form}")) is not None
        and registry.is_function(found)
        and torch.Tag.pointwise in found.tags
    }
    assert {op for op in tagged if not operator_of(op).pointwise} == {"aten.equal.default"}
    assert not torch.equal(torch.zeros(2), torch.tensor([0.0, 1.0])), "it is one truth value for all elements"
