"""Stored tensors as one vector for each unit of a width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from archir.axes.positions import occurrences, size_of, unit_index
from archir.axes.widths import Width, Widths
from archir.ir.node import Value


@dataclass(frozen=True)
class UnitVectors:
    """How the elements of some stored tensors are shared out among the units of a width; made by `unit_vectors`.

    Attributes:
        units: number of units.
        shapes: shape of each tensor, by parameter node.
        axes: the axis along which the units lie.
        positions: positions along it, unit by unit; `[units * positions of each]`.
    """

    units: int
    shapes: Mapping[int, tuple[int, ...]]
    axes: Mapping[int, int]
    positions: Mapping[int, torch.Tensor]

    @property
    def size(self) -> int:
        """Number of elements of each unit."""
        found = 0
        for node, shape in self.shapes.items():
            others = [s for d, s in enumerate(shape) if d != self.axes[node]]
            found += len(self.positions[node]) // self.units * int(torch.tensor(others).prod())
        return found

    def pack(self, tensors: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Return tensors as one vector for each unit; `[units, size]`."""
        parts = []
        for node, axis in self.axes.items():
            moved = tensors[node].movedim(axis, 0)
            parts.append(moved[self.positions[node].to(moved.device)].reshape(self.units, -1))
        return torch.cat(parts, 1)

    def unpack(self, vectors: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the tensors of some vectors `[units, size]`, zero where no unit lies."""
        found: dict[int, torch.Tensor] = {}
        start = 0
        for node, axis in self.axes.items():
            shape = list(self.shapes[node])
            moved = vectors.new_zeros([shape[axis], *shape[:axis], *shape[axis + 1 :]])
            where = self.positions[node].to(vectors.device)
            count = len(where) * moved[0].numel() // self.units
            part = vectors[:, start : start + count].reshape(len(where), *moved.shape[1:])
            found[node] = moved.index_copy(0, where, part).movedim(0, axis).contiguous()
            start += count
        return found


def unit_vectors(widths: Widths, width: Width, nodes: Iterable[int], units: int | None = None) -> UnitVectors:
    """Return how stored tensors are shared out among the units of a width.

    Args:
        widths: the widths of the graph.
        width: the width; it stands on some axis of every tensor.
        nodes: parameter nodes of the tensors.
        units: as if the width had this many units; its own if not given.
    """
    count = width.size if units is None else units
    sizes = {width.atom: count}
    shapes: dict[int, tuple[int, ...]] = {}
    axes: dict[int, int] = {}
    positions: dict[int, torch.Tensor] = {}
    for node in nodes:
        terms = widths.axes[Value(node)]
        axis = next(d for d, term in enumerate(terms) if occurrences(term, width.atom))
        owner = unit_index(terms[axis], width.atom, sizes=sizes)
        shapes[node] = tuple(size_of(t, sizes) for t in terms)
        axes[node] = axis
        positions[node] = owner.argsort(stable=True)[int((owner < 0).sum()) :]
    return UnitVectors(count, shapes, axes, positions)
