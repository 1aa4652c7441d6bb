"""What a model is called with: an example, and others of other sizes made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from archir.ir.graph import Graph
from archir.ir.input_checks import sources
from archir.ir.node import leaves
from archir.ir.types import TensorType, Type, evaluate


@dataclass(frozen=True)
class Example:
    """What a model is called with once.

    Attributes:
        args: positional arguments.
        kwargs: arguments by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors in it, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    def distinct(self) -> Example:
        """Return the same with tensors of its own, so that none is given twice, or is one of the model's."""
        return self._with(lambda t: t.detach().clone().requires_grad_(t.requires_grad))

    def doubled(self) -> Example:
        """Return the same with every row twice."""
        return self._with(lambda t: torch.cat([t, t]) if t.dim() else t)

    def longer(self, axis: int, size: int) -> Example:
        """Return the same with one more on an axis of every tensor that has a given size on it."""

        def grown(tensor: torch.Tensor) -> torch.Tensor:
            fits = tensor.dim() > axis and tensor.shape[axis] == size
            return torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis) if fits else tensor

        return self._with(grown)

    def _with(self, change: Any) -> Example:
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs))
        return Example(args, kwargs)


def examples(example: Example) -> Iterator[tuple[Example, bool]]:
    """Yield the examples to try, and whether they are doubled: a batch of one is, as export may fix it."""
    rows = [t.shape[0] for t in example.tensors if t.dim()]
    if rows and all(size == 1 for size in rows):
        yield example.doubled(), True
    yield example, False


def sizes_of(graph: Graph, example: object) -> dict[str, int]:
    """Return the values that the symbols of a graph have in an example.

    Args:
        graph: the graph.
        example: what its model is called with: positional arguments, and those by name.
    """
    found = _inputs(graph, example)
    shapes = [leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in found]
    return {
        name: (int(shapes[source.input][source.axis or 0]) - source.offset) // source.factor
        for name, source in sources([node.results[0] for node in graph.inputs]).items()
    }


def resized(graph: Graph, program: ExportedProgram, sizes: Mapping[str, int]) -> Example:
    """Return the example of a program with other sizes: its rows are left out, or repeated.

    Args:
        graph: the graph made from the program.
        program: the program.
        sizes: a value for every symbol.
    """
    types = [node.results[0] for node in graph.inputs]
    ends = leaves(graph.signature.args) + leaves(graph.signature.kwargs)
    given, spec = pytree.tree_flatten(program.example_inputs)
    made = [
        _resized(part, types[end], sizes) if isinstance(end, int) else part
        for end, part in zip(ends, given, strict=True)
    ]
    args, kwargs = pytree.tree_unflatten(made, spec)
    return Example(tuple(args), dict(kwargs))


def _resized(leaf: object, type_: Type, sizes: Mapping[str, int]) -> object:
    if not isinstance(leaf, torch.Tensor) or not isinstance(type_, TensorType):
        value = None if isinstance(type_, TensorType) else type_.value
        return leaf if value is None else evaluate(value, sizes)
    for axis, size in enumerate(type_.shape):
        wanted, found = evaluate(size, sizes), leaf.shape[axis]
        if wanted != found:
            leaf = leaf.index_select(axis, torch.arange(wanted, device=leaf.device) % found)
    return leaf


def _inputs(graph: Graph, example: object) -> list[Any]:
    """Return what each input of a graph is in an example."""
    ends = leaves(graph.signature.args) + leaves(graph.signature.kwargs)
    given = pytree.tree_leaves(example)
    found = {end: part for end, part in zip(ends, given, strict=True) if isinstance(end, int)}
    return [found[i] for i in range(len(found))]
