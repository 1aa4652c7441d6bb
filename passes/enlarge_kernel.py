"""Enlarge kernel: the kernel of a convolution grows by a ring of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.ir.tensor_map import AxisMap, TensorMap
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from passes.kernels import (
    Kernel,
    along_axes,
    find_kernel,
    is_transposed,
    kernel_layers,
    pad_more,
    padding_of,
    spatial_sizes,
)


@dataclass(frozen=True)
class EnlargeKernel(Morphism[Kernel]):
    """Put a ring of zeros around the kernel of a convolution, and as much padding around its input.

    The result keeps its shape, whatever stride, dilation and groups are; only the ring is learned. Convolutions that
    share the kernel all change.

    Attributes:
        layer: the result of the convolution.
        by: elements added at each end of every spatial axis.

    Source: Wei, Wang, Rui, Chen 2016 (Network Morphism), kernel size morphing.
    """

    name: ClassVar[str] = "enlarge-kernel"
    summary: ClassVar[str] = "put a ring of zeros around the kernel of a convolution"
    preserves: ClassVar[str] = "the function"

    layer: Reference = ""
    by: int = 1

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each stored kernel."""
        return (replace(self, layer=refer(graph, value)) for value in kernel_layers(graph))

    def match(self, graph: Graph) -> Kernel | Miss:
        """Return the kernel, or why it cannot grow."""
        if self.by < 1:
            return Miss("the ring has to be at least one element wide")
        kernel = find_kernel(graph, find_value(graph, self.layer))
        if isinstance(kernel, Miss):
            return kernel
        if not kernel.trainable:
            return Miss("its kernel is not learned", (kernel.weight.node,))
        if not any(_ring_meets_data(graph, call, kernel.sizes) for call in kernel.calls):
            return Miss("the ring would meet nothing but padding", tuple(call.id for call in kernel.calls))
        return kernel

    def rewrite(self, graph: Graph, found: Kernel) -> Patch:
        """Let the kernel grow."""
        ring = torch.full((self.by,), -1)
        axes = (AxisMap(2 + i, torch.cat([ring, torch.arange(size), ring])) for i, size in enumerate(found.sizes))
        with graph.edit(by=format_spec(self)) as e:
            e.remap(found.weight.node, TensorMap(tuple(axes)))
            for call in found.calls:
                pad_more(e, call, tuple(self.by * d for d in along_axes(call, "dilation")))
        return e.patch


def _ring_meets_data(graph: Graph, call: Node, sizes: tuple[int, ...]) -> bool:
    """Say whether the elements next to the kernel on some axis would ever meet an element of the data.

    A convolution adds up `weight[t] * input[stride * o + dilation * t - padding]`; in a transposed one input and result
    change places.
    """
    read, made = (spatial_sizes(graph, v, len(sizes)) for v in (call.operand("input"), Value(call.id)))
    if is_transposed(call):
        read, made = made, read
    strides, dilations = along_axes(call, "stride"), along_axes(call, "dilation")
    rows = zip(read, made, sizes, strides, dilations, padding_of(call, sizes), strict=True)
    for size, count, kernel, stride, dilation, padding in rows:
        if not isinstance(size, int) or not isinstance(count, int):
            return True
        if (count - 1) * stride - dilation - padding >= 0 or dilation * kernel - padding < size:
            return True
    return False
