"""The axes of every tensor value of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from archir.axes.terms import Term, resolve
from archir.ir.node import Value


class Axes(Mapping[Value, tuple[Term, ...]]):
    """The axes of every tensor value; a number that is the result of a call has none, and is not here.

    They are resolved when looked up.
    """

    __slots__ = ("_of_node",)

    def __init__(self, of_node: Mapping[int, Sequence[tuple[Term, ...] | None]]) -> None:
        """Take over the axes of the results of each node, None for a number."""
        self._of_node = of_node

    def __getitem__(self, value: Value) -> tuple[Term, ...]:
        found = self.find(value)
        if found is None:
            raise KeyError(value)
        return found

    def __iter__(self) -> Iterator[Value]:
        for node, results in self._of_node.items():
            yield from (Value(node, i) for i, axes in enumerate(results) if axes is not None)

    def __len__(self) -> int:
        return sum(axes is not None for results in self._of_node.values() for axes in results)

    def find(self, value: Value) -> tuple[Term, ...] | None:
        """Return the axes of a value, None if it is a number."""
        results = self._of_node.get(value.node, ())
        axes = results[value.index] if value.index < len(results) else None
        return axes and tuple(map(resolve, axes))
