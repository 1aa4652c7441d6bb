"""Which calls keep zeros."""

from __future__ import annotations

import torch

from archir.ir.execute import call
from archir.ir.node import Node
from archir.ir.registry import operator_of


def keeps_zero(node: Node, dtype: torch.dtype = torch.float32) -> bool:
    """Say whether the results of a call are zero where its first operand is, in training too.

    Args:
        node: the call.
        dtype: element type of the operand.
    """
    known = operator_of(node.op)
    linear = known.linear_in(node.arguments) & node.arguments.keys()
    if known.preserves_zero or (not known.mode and linear == {next(iter(node.arguments), "")}):
        return True
    if not known.pointwise or len(node.operands()) != 1:
        return False
    return not any(bool(t.any()) for t in call(node, lambda _: torch.zeros(1, dtype=dtype)))
