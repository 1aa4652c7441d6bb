"""Counts the FLOPs of the parts of a growth step that run a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

_aten = torch.ops.aten


def _convolution_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *others: Any, out_val: object
) -> int:
    """Return as many FLOPs as the convolution takes, for the gradient of each of its operands that is asked for."""
    *_, transposed, _padding, _groups, wanted = others
    forward = conv_flop_count(list(x.shape), list(weight.shape), list(gradient.shape), transposed=transposed)
    return int(forward) * (int(wanted[0]) + int(wanted[1]))


FORMULAS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
    _aten.convolution_backward: _convolution_backward,
}
"""The FLOPs of operators: those of PyTorch's own counter; of attention on the CPU, which that leaves out; and of the
gradients of convolutions, where it counts each group as if it were the whole."""


class FlopCount:
    """A sum of FLOPs, added to by the blocks that are counted.

    Attributes:
        total: FLOPs so far; a multiply-add is two, and what is no product of matrices counts none.
    """

    def __init__(self) -> None:
        self.total = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is run within the block.

        That takes longer than an operation on a few hundred numbers does. So no more than what runs a network is to be
        within: a solver of sets would be slower several times over, and adds no FLOPs.
        """
        with _Counter(self):
            yield


class _Counter(TorchDispatchMode):
    """Adds the FLOPs of every operator; PyTorch's, which also tells modules apart, takes three times as long."""

    def __init__(self, count: FlopCount) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = count

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        given = kwargs or {}
        out = func(*args, **given)
        formula = FORMULAS.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self._count.total += formula(*args, **given, out_val=out)
        return out
