"""Recurrent layers without a loop over their sequence, where only the types of their results are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from archir.ir.operators.operator import Kind
from archir.ir.registry import operator_of


def one_step(op: str, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], int | None]:
    """Return what a recurrent layer is called with, its sequence cut to one step, and how long that was.

    A recurrent layer runs its cell once for every step, which on meta tensors takes a second for a few hundred steps
    and tells nothing that one step does not.

    Args:
        op: name of an operator.
        values: its operands by name, on the meta device; `input` is `[time, batch, features]`, or with `batch_first`
            `[batch, time, features]`.

    Returns:
        The operands, and the length; None, and the operands as they are, where nothing is cut.
    """
    x, axis = values.get("input"), _axis(values)
    layer = operator_of(op).kind is Kind.RECURRENT
    if not layer or not isinstance(x, torch.Tensor) or x.dim() != 3 or x.shape[axis] < 2:
        return values, None
    return {**values, "input": x.narrow(axis, 0, 1)}, x.shape[axis]


def all_steps(results: Sequence[torch.Tensor], length: int, values: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the results of a recurrent layer on the whole sequence, from those on one step.

    Args:
        results: the sequence of outputs, of one step, and the last states.
        length: number of steps.
        values: the operands by name.
    """
    outputs, *states = results
    shape = list(outputs.shape)
    shape[_axis(values)] = length
    return [outputs.expand(shape), *states]


def _axis(values: Mapping[str, Any]) -> int:
    return 1 if values.get("batch_first") else 0
