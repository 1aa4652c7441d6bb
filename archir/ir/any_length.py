"""Operators that are captured for one length of their axis alone, unless they are told not to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table


@contextmanager
def any_length() -> Iterator[None]:
    """Let operators be captured for any length whose kernels would fix it.

    Recurrent layers run their cell once for every step, and pooling along one axis reads the size of that as a number.
    """
    before = {op: dict(op.py_kernels) for op in (*_LAYERS, _POOLING)}
    tables = {op: decomposition_table[op] for op in _LAYERS if op in decomposition_table}
    for op in _LAYERS:
        _replace(op, dict.fromkeys(_KEYS, _made))
    _replace(_POOLING, dict.fromkeys(_KEYS, _pooled))
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


def _pooled(
    x: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> torch.Tensor:
    """Return the largest elements along the last axis, as those of an image one position high."""
    wide = [[1, *size], [1, *(stride or size)], [0, *padding], [1, *dilation]]
    found: torch.Tensor = torch.ops.aten.max_pool2d(x.unsqueeze(-2), *wide, ceil_mode).squeeze(-2)
    return found


_LAYERS = tuple(getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
_POOLING = torch.ops.aten.max_pool1d.default
_KEYS = (torch._C.DispatchKey.Autograd, torch._C.DispatchKey.CompositeImplicitAutograd)
