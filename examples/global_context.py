"""A morphism of one's own: what a layer makes of the average over the image is added everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import archir


@dataclass(frozen=True)
class GlobalContext(archir.Morphism):
    """Add `W mean(v)` to a value of an image, W a 1x1 convolution that is zero at first."""

    name: ClassVar[str] = "global-context"
    summary: ClassVar[str] = "add what a layer, zero at first, makes of the average over the image"
    preserves: ClassVar[str] = "the function"
    after: archir.Reference = ""

    def candidates(self, graph: archir.Graph) -> Iterator["GlobalContext"]:
        """Yield one for each value at which a layer ends."""
        return (GlobalContext(archir.refer(graph, value)) for value, _ in archir.layer_ends(graph))

    def match(self, graph: archir.Graph) -> archir.Value | archir.Miss:
        """Return the value, or why nothing can be added to it."""
        value = archir.find_value(graph, self.after)
        around = archir.look_around(graph, value)
        image = not isinstance(around, archir.Miss) and around.spatial == 2
        return value if image else archir.Miss("it is no image", (value.node,))

    def rewrite(self, graph: archir.Graph, found: archir.Value) -> archir.Patch:
        """Add the context."""

        def with_context(edit: archir.Edit) -> archir.Value:
            new = archir.Insertion(edit, found, "context", "GlobalContext")
            mean = new.call("aten.mean.dim", found, (2, 3), True)
            context = new.conv("conv", mean, new.features(found, axis=1), (1, 1), start=archir.Start.ZERO)
            return new.call("aten.add.Tensor", found, context)

        return archir.splice(graph, found, with_context, by=archir.format_spec(self))
