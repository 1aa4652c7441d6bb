"""Parallel branch: beside a layer a second one, of another reach or of low rank, is added to its result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Node, Value
from archir.ir.types import TensorType
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import is_layer, short_name, usual_activation
from passes.kernels import along_axes, padding_of, spatial_sizes


@dataclass(frozen=True)
class Window:
    """What a convolution looks at, one number for each spatial axis.

    Attributes:
        kernel: elements of the kernel.
        stride: distance between its places.
        padding: zeros on each side.
        dilation: distance between its elements.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass(frozen=True)
class ParallelBranch(Morphism[Window | None]):
    """Add `f(x)` to the result of a layer that is called with `x`; f, or its last layer, is zero.

    Beside a convolution f is one of another kernel size or dilation, with the stride and groups of the first and the
    padding that keeps both centred on the same place; or, if a rank is given, a pair: a convolution of the same shape
    to that many channels, then a 1x1 one. Beside a linear layer it is always a pair of linear layers.

    A kernel whose elements are all elements of the first, and a pair without an activation between, compute nothing
    that the first layer could not: their predicted gain is that of training it further. By default a kernel reaches
    beyond the first, and a pair is linear.

    Attributes:
        layer: result of the layer.
        kernel: kernel size of the branch.
        dilation: its dilation; the smallest with which it reaches beyond the layer if zero.
        rank: features between the pair; if zero, there is one convolution, or, beside a linear layer, a quarter of
            its lesser side, and two at least, since a size of one is no width that can grow.
        activate: whether the usual activation of the graph stands between the pair.

    Source: Szegedy et al. 2015 for branches of several kernels; Hu et al. 2022 (LoRA) for the pair at zero; He et al.
    2022 (parallel adapters) for the activation between.
    """

    name: ClassVar[str] = "parallel-branch"
    summary: ClassVar[str] = "add a second layer, of another reach or of low rank, beside a layer, at zero"
    preserves: ClassVar[str] = "the function"

    layer: Reference = ""
    kernel: int = 3
    dilation: int = 0
    rank: int = 0
    activate: bool = False

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each layer."""
        return (replace(self, layer=refer(graph, Value(n.id))) for n in graph.calls if is_layer(graph, n))

    def match(self, graph: Graph) -> Window | Miss | None:
        """Return what a convolution in the branch looks at, None where there is none, or why there can be no branch."""
        if self.kernel < 1 or self.dilation < 0 or self.rank < 0:
            return Miss("the kernel has to be positive, dilation and rank not below zero")
        node = graph.node(find_value(graph, self.layer).node)
        if not is_layer(graph, node):
            return Miss("it is not the result of a linear layer or a convolution", (node.id,))
        if "transpose" in node.op:
            return Miss("the layer is a transposed convolution", (node.id,))
        return None if short_name(node) == "linear" else self._window(graph, node)

    def rewrite(self, graph: Graph, found: Window | None) -> Patch:
        """Add the branch."""
        node = graph.node(find_value(graph, self.layer).node)
        return splice(graph, Value(node.id), lambda e: self._build(graph, e, node, found), by=format_spec(self))

    def _build(self, graph: Graph, e: Edit, node: Node, window: Window | None) -> Value:
        source, made = node.operand("input"), Value(node.id)
        new = Insertion(e, made, "parallel", "ParallelBranch")
        outer, inner, *_ = _weight_shape(graph, node)
        if window is None:
            x = new.linear("down", source, self.rank or max(2, min(inner, outer) // 4), bias=self.activate)
            x = new.activate(usual_activation(graph), x) if self.activate else x
            x = new.linear("up", x, outer, start=Start.ZERO, bias=False)
            return new.call("aten.add.Tensor", made, x)
        groups = node.argument("groups")
        assert isinstance(groups, int)
        stride, padding, dilation = window.stride, window.padding, window.dilation
        if self.rank:
            x = new.conv(
                "down",
                source,
                self.rank,
                window.kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                bias=self.activate,
            )
            x = new.activate(usual_activation(graph), x) if self.activate else x
            x = new.conv("up", x, outer, (1,) * len(window.kernel), start=Start.ZERO, bias=False)
        else:
            x = new.conv(
                "conv",
                source,
                outer,
                window.kernel,
                start=Start.ZERO,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                bias=False,
            )
        return new.call("aten.add.Tensor", made, x)

    def _window(self, graph: Graph, node: Node) -> Window | Miss:
        """Return the window of the first, or only, convolution of the branch, or why there is none."""
        kernel = _weight_shape(graph, node)[2:]
        stride, dilation = along_axes(node, "stride"), along_axes(node, "dilation")
        reach = tuple((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        if node.argument("padding") == "same" and any(r % 2 for r in reach):
            return Miss("the layer is padded more on one side than on the other", (node.id,))
        around = padding_of(node, kernel)
        if self.rank:
            return Window(kernel, stride, around, dilation)
        last = self.kernel - 1
        own = tuple(self.dilation or (r // last + 1 if last else 1) for r in reach)
        if last and any(size <= d for size, d in zip(_image(graph, node, len(kernel)), own, strict=True)):
            return Miss("the image is so small that the outer elements of the kernel would see none of it", (node.id,))
        extra = tuple(last * d - r for d, r in zip(own, reach, strict=True))
        if any(x % 2 for x in extra):
            return Miss("the centres of the two kernels are half an element apart", (node.id,))
        if any(a + x // 2 < 0 for a, x in zip(around, extra, strict=True)):
            return Miss("the layer has too little padding for so small a kernel", (node.id,))
        around = tuple(a + x // 2 for a, x in zip(around, extra, strict=True))
        return Window((self.kernel,) * len(kernel), stride, around, own)


def _weight_shape(graph: Graph, node: Node) -> tuple[int, ...]:
    type_ = graph.type_of(node.operand("weight"))
    assert isinstance(type_, TensorType)
    return tuple(s for s in type_.shape if isinstance(s, int))


def _image(graph: Graph, node: Node, axes: int) -> tuple[float, ...]:
    """Return the spatial sizes of what a convolution is called with, infinite where known only at run time."""
    return tuple(s if isinstance(s, int) else math.inf for s in spatial_sizes(graph, node.operand("input"), axes))
