"""Residual branch: a branch of two layers is added to a value, the last of them zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from archir.ir.edit import Edit
from archir.ir.graph import Graph, Patch
from archir.ir.node import Value
from archir.rewrite.insertion import Insertion, Start, splice
from archir.rewrite.miss import Miss
from archir.rewrite.morphism import Morphism
from archir.rewrite.reference import Reference, find_value, refer
from archir.rewrite.spec import format_spec
from archir.rewrite.surroundings import Surroundings, layer_ends, look_around


@dataclass(frozen=True)
class ResidualBranch(Morphism[Surroundings]):
    """Add `f(v)` to a value `v`, where f is two layers with an activation between and the last layer is zero.

    The layers are convolutions where the value is an image, linear ones after a layer norm where it is tokens.

    Attributes:
        after: the value.
        hidden: features between the two layers; as many as the value has if zero.
        kernel: kernel size of the convolutions.

    Source: He et al. 2016 for the branch; Zhang, Dauphin, Ma 2019 (Fixup) for the last layer at zero.
    """

    name: ClassVar[str] = "residual-branch"
    summary: ClassVar[str] = "add a branch of two layers to a value, the last of them zero"
    preserves: ClassVar[str] = "the function"

    after: Reference = ""
    hidden: int = 0
    kernel: int = 3

    def candidates(self, graph: Graph) -> Iterator[Self]:
        """Yield one for each value at which a layer ends."""
        return (replace(self, after=refer(graph, value)) for value, _ in layer_ends(graph))

    def match(self, graph: Graph) -> Surroundings | Miss:
        """Return what is around the value, or why there can be no branch."""
        if self.kernel % 2 == 0 or self.kernel < 1 or self.hidden < 0:
            return Miss("the kernel has to be odd, the features between positive")
        return look_around(graph, find_value(graph, self.after))

    def rewrite(self, graph: Graph, found: Surroundings) -> Patch:
        """Add the branch."""
        value = find_value(graph, self.after)
        return splice(graph, value, lambda e: self._build(e, value, found), by=format_spec(self))

    def _build(self, e: Edit, value: Value, around: Surroundings) -> Value:
        new = Insertion(e, value, "residual", "ResidualBranch")
        hidden = self.hidden or around.features
        if around.spatial:
            kernel = (self.kernel,) * around.spatial
            x = new.conv("conv1", value, hidden, kernel)
            x = new.activate(around.activation, x)
            x = new.conv("conv2", x, around.features, kernel, start=Start.ZERO)
        else:
            x = new.layer_norm("norm", value) if around.norm == "layer_norm" else value
            x = new.linear("linear1", x, hidden)
            x = new.activate(around.activation, x)
            x = new.linear("linear2", x, around.features, start=Start.ZERO)
        return new.call("aten.add.Tensor", value, x)
