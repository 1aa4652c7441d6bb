"""Dilate: the kernel of a convolution is laid on a grid of another dilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from archir.ir.graph import Graph, Patch
from archir.ir.tensor_map import AxisMap, TensorMap
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from passes.kernels import Kernel, along_axes, find_kernel, kernel_layers, pad_more, padding_of


@dataclass(frozen=True)
class Grid:
    """Where the taps of a new kernel lie along one axis.

    Attributes:
        size: number of taps.
        margin: distance of the first from the first of the old kernel; so much less is padded.
        old: for each new tap the old one, -1 where there is none.
    """

    size: int
    margin: int
    old: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A kernel, and where the taps of the new one lie along each spatial axis."""

    kernel: Kernel
    grids: tuple[Grid, ...]


@dataclass(frozen=True)
class Dilate(Morphism[Layout]):
    """Give a convolution another dilation and the kernel with which it computes the same.

    The new grid of taps lies within the extent of the old kernel, about the same centre. A finer one is filled with
    zeros, which may be learned; a coarser one leaves out taps, which have to be zero. Convolutions that share the
    kernel all change.

    Attributes:
        layer: the result of the convolution.
        dilation: the new dilation, along every spatial axis.

    Source: ours.
    """

    name: ClassVar[str] = "dilate"
    summary: ClassVar[str] = "give a convolution another dilation, where that is exact"
    preserves: ClassVar[str] = "the function"

    layer: Reference = ""
    dilation: int = 1

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each stored kernel of more than one element."""
        for value in kernel_layers(graph):
            kernel = find_kernel(graph, value)
            if not isinstance(kernel, Miss) and any(size > 1 for size in kernel.sizes):
                yield replace(self, layer=refer(graph, value))

    def match(self, graph: Graph) -> Layout | Miss:
        """Return how the kernel is laid out, or why the convolution cannot have that dilation."""
        if self.dilation < 1:
            return Miss("a dilation is at least 1")
        kernel = find_kernel(graph, find_value(graph, self.layer))
        if isinstance(kernel, Miss):
            return kernel
        ids = tuple(call.id for call in kernel.calls)
        dilations = {along_axes(call, "dilation") for call in kernel.calls}
        if len(dilations) > 1:
            return Miss("convolutions that share the kernel have different dilations", ids)
        (old,) = dilations
        if all(d == self.dilation for d in old):
            return Miss("it has that dilation already", ids)
        paddings = [padding_of(call, kernel.sizes) for call in kernel.calls if call.argument("padding") != "same"]
        grids: list[Grid] = []
        for axis, dilation in enumerate(old):
            taps = _taps(graph.tensors[kernel.weight.node], axis + 2)
            padding = min((p[axis] for p in paddings), default=kernel.sizes[axis] * dilation)
            grid = _find_grid(taps, kernel.sizes[axis], dilation, self.dilation, padding)
            if isinstance(grid, str):
                return Miss(f"{grid} (spatial axis {axis})" if len(old) > 1 else grid, ids)
            grids.append(grid)
        return Layout(kernel, tuple(grids))

    def rewrite(self, graph: Graph, found: Layout) -> Patch:
        """Lay the kernel out anew."""
        kernel, dilation = found.kernel, (self.dilation,) * len(found.grids)
        axes = tuple(AxisMap(axis, torch.tensor(grid.old)) for axis, grid in enumerate(found.grids, start=2))
        with graph.edit(by=format_spec(self)) as e:
            if tuple(grid.size for grid in found.grids) != kernel.sizes:
                e.remap(kernel.weight.node, TensorMap(axes))
            for call in kernel.calls:
                pad_more(e, call, tuple(-grid.margin for grid in found.grids))
                e.update(call.id, arguments={"dilation": dilation})
        return e.patch


def _find_grid(taps: tuple[int, ...], size: int, dilation: int, new: int, padding: int) -> Grid | str:
    """Return the largest grid within the extent of a kernel that has its centre and all its taps, or why none has.

    Args:
        taps: the taps that are not zero.
        size: number of taps of the kernel.
        dilation: distance between them.
        new: the new distance.
        padding: most that the margin may be.
    """
    extent = dilation * (size - 1)
    reason = ""
    for count in range(extent // new + 1, 0, -1):
        margin, odd = divmod(extent - new * (count - 1), 2)
        if odd:
            continue
        places = [margin + new * i for i in range(count)]
        lost = [t for t in taps if t * dilation not in places]
        if lost:
            reason = reason or f"tap {lost[0]} of {size}, which is not zero, is not on the new grid"
        elif margin > padding:
            reason = reason or f"the padding would have to be {padding - margin}"
        else:
            return Grid(count, margin, tuple(p // dilation if p % dilation == 0 else -1 for p in places))
    return reason or "no kernel of that dilation has the same centre"


def _taps(weight: torch.Tensor, axis: int) -> tuple[int, ...]:
    """Return the positions along one axis of a kernel at which any element is not zero."""
    used = weight.movedim(axis, 0).flatten(1).any(dim=1)
    return tuple(used.nonzero()[:, 0].tolist())
