"""Every rule of multiply-adds against PyTorch's own counter, or by hand where that does not know the operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from archir.ir import ops
from archir.ir.operators.operator import Shape
from archir.ir.operators.table import TABLE
from tests.operators.calls import EVERY
from tests.operators.made import Made, make

CALLS = [call for call in map(make, EVERY) if call.row.multiply_adds]

BY_HAND: Mapping[str, int] = MappingProxyType(
    {
        "addbmm": 5 * 4 * 6 * 3,
        "addmv": 4 * 6,
        "bilinear": 4 * 3 * 5 * 6 + 4 * 3 * 5,
        "dot": 6,
        "linear": 4 * 6,
        "mv": 4 * 6,
    }
)
"""Multiply-adds of calls of which PyTorch counts none; of `linear` with a vector for a weight."""


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a call on tensors."""

    call: Made
    result: Shape

    def argument(self, name: str) -> Any:
        return self.call.arguments.get(name, ops.schema(self.call.op).defaults.get(name))

    def shape(self, name: str) -> Shape:
        return tuple(self.argument(name).shape)

    def shapes(self, name: str) -> list[Shape]:
        return [tuple(t.shape) for t in self.argument(name)]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.op)
def test_multiply_adds_are_those_pytorch_counts(call: Made) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        results = call()
    first = results[0]
    assert isinstance(first, Tensor) and call.row.multiply_adds is not None
    found = call.row.multiply_adds(_Sizes(call, tuple(first.shape)))
    assert found == counter.get_total_flops() / 2 or (not counter.get_total_flops() and found == BY_HAND[call.key])
    assert found or call.arguments.get("equation") == "ij->j"


def test_every_rule_is_tested() -> None:
    assert {call.key for call in CALLS} == {name for name, row in TABLE.items() if row.multiply_adds}
    assert not [name for name, row in TABLE.items() if row.multiply_adds and row.moves]
