"""Recurrent layers without a loop over their sequence, where only the types of their results are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table

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


@contextmanager
def any_length() -> Iterator[None]:
    """Let recurrent layers be captured without running their cells, which would fix the length of the sequence."""
    before = {op: dict(op.py_kernels) for op in _LAYERS}
    tables = {op: decomposition_table[op] for op in _LAYERS if op in decomposition_table}
    for op in _LAYERS:
        _replace(op, dict.fromkeys(_KEYS, _made))
    decomposition_table.update(dict.fromkeys(tables, _made))
    try:
        yield
    finally:
        decomposition_table.update(tables)
        for op, kernels in before.items():
            _replace(op, {key: kernels.get(key) for key in _KEYS})


def _replace(op: torch._ops.OpOverload[..., Any], kernels: Mapping[torch._C.DispatchKey, Any]) -> None:
    for key, kernel in kernels.items():
        if kernel is None:
            op.py_kernels.pop(key, None)
        else:
            op.py_kernels[key] = kernel
    op._dispatch_cache.clear()


def _made(x: torch.Tensor, hx: Any, *others: Any) -> tuple[torch.Tensor, ...]:
    """Return results of a recurrent layer that are not computed: outputs of all steps, and the last states."""
    states, (*_, bidirectional, batch_first) = hx if isinstance(hx, list | tuple) else [hx], others
    torch._check(states[0].shape[1] == x.shape[0 if batch_first else 1])  # type: ignore[no-untyped-call]
    outputs = x.new_empty([*x.shape[:2], states[0].shape[2] * (2 if bidirectional else 1)])
    return outputs, *(state.new_empty(state.shape) for state in states)


_LAYERS = tuple(getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
_KEYS = (torch._C.DispatchKey.Autograd, torch._C.DispatchKey.CompositeImplicitAutograd)


def _axis(values: Mapping[str, Any]) -> int:
    return 1 if values.get("batch_first") else 0
