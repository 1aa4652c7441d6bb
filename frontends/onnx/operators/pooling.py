"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from frontends.onnx.call import Call, Function, Results, Table
from frontends.onnx.operands import Operand, Refusal
from frontends.onnx.operators.convolution import pads_of
from frontends.onnx.operators.movement import constant_pad


@dataclass(frozen=True)
class _Window:
    """How a pooling node goes over the axes of space, one number an axis.

    Attributes:
        kernel: how many elements a window has.
        strides: how far windows are apart.
        dilations: how far its elements are apart.
        before: padding in front.
        after: padding behind.
        ceil: whether a last window may begin inside and end outside.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    ceil: bool

    @property
    def rank(self) -> int:
        """The number of axes of space."""
        return len(self.kernel)

    @property
    def fits(self) -> bool:
        """Whether torch pads so: alike on both sides, and by no more than half of the kernel."""
        return self.before == self.after and all(2 * b <= k for b, k in zip(self.before, self.kernel, strict=True))

    def more(self, sizes: Sequence[int]) -> list[int]:
        """Return how much more padding behind makes a window of each that begins inside."""
        if not self.ceil:
            return [0] * self.rank
        found = []
        for i, size in enumerate(sizes):
            reach = (self.kernel[i] - 1) * self.dilations[i] + 1
            whole = size + self.before[i] + self.after[i]
            count = -(-(whole - reach) // self.strides[i]) + 1
            if (count - 1) * self.strides[i] >= size + self.before[i]:
                count -= 1
            found.append(max((count - 1) * self.strides[i] + reach - whole, 0))
        return found


def _window(c: Call) -> _Window:
    kernel = c.integers("kernel_shape")
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise Refusal(f"it has {rank} axes of space")
    strides, dilations = c.integers("strides", [1] * rank), c.integers("dilations", [1] * rank)
    before, after = pads_of(c, c[0], kernel, strides, dilations)
    ceil = bool(c.integer("ceil_mode", 0)) and c.text("auto_pad", "NOTSET") == "NOTSET"
    return _Window(kernel, strides, dilations, before, after, ceil)


def _padded(c: Call, x: Operand, w: _Window, value: float, beyond: float) -> Operand:
    """Return an operand with the padding of a node, and what makes its last windows whole behind it."""
    more = w.more(c.fixed(x, *range(2, 2 + w.rank))) if w.ceil else [0] * w.rank
    x = constant_pad(c, x, [0, 0, *w.before], [0, 0, *w.after], value)
    return constant_pad(c, x, [0] * (2 + w.rank), [0, 0, *more], beyond)


def _max_pool(c: Call) -> Results:
    w, x = _window(c), c[0]
    c.only("storage_order", 0, ir.Attr.as_int)
    kind = c.type(x).dtype
    if not kind.is_floating_point:
        x = c.same(x, torch.float32)
    before, ceil = w.before, w.ceil
    if not w.fits:
        if c.uses(1):
            raise Refusal("it tells places in a tensor that is padded unevenly")
        x = _padded(c, x, w, float("-inf"), float("-inf"))
        before, ceil = [0] * w.rank, False
    options = (w.kernel, w.strides, before, w.dilations, ceil)
    if not c.uses(1):
        return c.same(c.call(f"max_pool{w.rank}d", x, *options), kind)
    if w.rank == 1:
        raise Refusal("it tells places along one axis")
    values, places = c.calls(f"max_pool{w.rank}d_with_indices", x, *options)
    rows = c.fixed(x, 0, 1)
    start = c.call("reshape", c.call("arange", math.prod(rows)), [*rows, *[1] * w.rank])
    start = c.call("mul.Tensor", start, math.prod(c.fixed(x, *range(2, 2 + w.rank))))
    return [c.same(values, kind), c.call("add.Tensor", places, start)]


def _average_pool(c: Call) -> Operand:
    w, whole = _window(c), bool(c.integer("count_include_pad", 0))
    if set(w.dilations) == {1} and w.fits:
        return c.call(f"avg_pool{w.rank}d", c[0], w.kernel, w.strides, w.before, w.ceil, whole)
    shape = [1, 1, *c.fixed(c[0], *range(2, 2 + w.rank))]
    ones = c.call("ones", shape, dtype=c.type(c[0]).dtype)
    total = _sums(c, _padded(c, c[0], w, 0, 0), w)
    return c.call("div.Tensor", total, _sums(c, _padded(c, ones, w, float(whole), 0), w))


def _sums(c: Call, x: Operand, w: _Window) -> Operand:
    """Return the sum of every window, channel by channel."""
    (channels,) = c.fixed(x, 1)
    ones = c.call("ones", [channels, 1, *w.kernel], dtype=c.type(x).dtype)
    return c.call(f"conv{w.rank}d", x, ones, None, w.strides, [0] * w.rank, w.dilations, channels)


def _power_pool(c: Call) -> Operand:
    w, p = _window(c), c.integer("p", 2)
    powers = c.call("pow.Tensor_Scalar", c.call("abs", c[0]), p)
    return c.call("pow.Tensor_Scalar", _sums(c, _padded(c, powers, w, 0, 0), w), 1 / p)


def _global(kind: str) -> Function:
    def function(c: Call) -> Operand:
        axes = list(range(2, c.rank(c[0])))
        if kind == "max":
            return c.call("amax", c[0], axes, True)
        if len(axes) in (1, 2, 3):
            return c.call(f"adaptive_avg_pool{len(axes)}d", c[0], [1] * len(axes))
        return c.call("mean.dim", c[0], axes, True)

    return function


def _global_power(c: Call) -> Operand:
    p, axes = c.integer("p", 2), list(range(2, c.rank(c[0])))
    total = c.call("sum.dim_IntList", c.call("pow.Tensor_Scalar", c.call("abs", c[0]), p), axes, True)
    return c.call("pow.Tensor_Scalar", total, 1 / p)


OPERATORS: Table = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _power_pool,
    "GlobalAveragePool": _global("average"),
    "GlobalMaxPool": _global("max"),
    "GlobalLpPool": _global_power,
}
"""Pooling."""
