"""Shrink kernel: the kernel of a convolution loses its outermost ring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from archir.ir.graph import Graph, Patch
from archir.ir.tensor_map import AxisMap, TensorMap
from archir.rewrite.derived import DerivedPerturbation
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism, Site
from archir.rewrite.perturbation import Perturbation
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from passes.kernels import Kernel, along_axes, find_kernel, kernel_layers, pad_more, padding_of


@dataclass(frozen=True)
class Ring:
    """A kernel, and how many elements it loses at each end of every spatial axis."""

    kernel: Kernel
    widths: tuple[int, ...]


@dataclass(frozen=True)
class ShrinkKernel(Morphism[Ring]):
    """Take the outermost ring of a kernel away, and as much padding from around its input.

    It does what zeros in the ring do. The result keeps its shape, whatever stride, dilation and groups are; axes along
    which nothing would be left of the kernel stay as they are. Convolutions that share the kernel all change. There is
    nothing to learn.

    Attributes:
        layer: the result of the convolution.
        by: elements taken away at each end of every spatial axis.

    Source: ours; the reverse of kernel size morphing (Wei, Wang, Rui, Chen 2016).
    """

    name: ClassVar[str] = "shrink-kernel"
    summary: ClassVar[str] = "take the outermost ring of the kernel of a convolution away"
    preserves: ClassVar[str] = "all but the ring"

    layer: Reference = ""
    by: int = 1

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each stored kernel."""
        return (replace(self, layer=refer(graph, value)) for value in kernel_layers(graph))

    def match(self, graph: Graph) -> Ring | Miss:
        """Return the kernel and its ring, or why it cannot shrink."""
        if self.by < 1:
            return Miss("the ring has to be at least one element wide")
        kernel = find_kernel(graph, find_value(graph, self.layer))
        if isinstance(kernel, Miss):
            return kernel
        widths = tuple(self.by if size > 2 * self.by else 0 for size in kernel.sizes)
        if not any(widths):
            return Miss("nothing would be left of its kernel", (kernel.weight.node,))
        for call in kernel.calls:
            rows = zip(widths, along_axes(call, "dilation"), padding_of(call, kernel.sizes), strict=True)
            if any(width * dilation > padding for width, dilation, padding in rows):
                return Miss("it has less padding than the ring reaches", (call.id,))
        return Ring(kernel, widths)

    def rewrite(self, graph: Graph, found: Ring) -> Patch:
        """Let the kernel shrink."""
        rows = zip(found.kernel.sizes, found.widths, strict=True)
        axes = (AxisMap(2 + i, torch.arange(width, size - width)) for i, (size, width) in enumerate(rows) if width)
        with graph.edit(by=format_spec(self)) as e:
            e.remap(found.kernel.weight.node, TensorMap(tuple(axes)))
            for call in found.kernel.calls:
                dilations = along_axes(call, "dilation")
                pad_more(e, call, tuple(-w * d for w, d in zip(found.widths, dilations, strict=True)))
        return e.patch

    def perturbation(self, graph: Graph, site: Site[Ring]) -> Perturbation | Miss:
        """Return what the missing ring does to the activations; what is left of the kernel is not learned anew."""
        found = super().perturbation(graph, site)
        return replace(found, theta={}) if isinstance(found, DerivedPerturbation) else found
