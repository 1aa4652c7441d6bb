"""The sets of candidates to refine, in chunks that fit into memory, and the tangents they start with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from archir.ir.device_memory import attempt, free_on
from archir.ir.graph import Graph
from archir.rewrite.perturbation import Edge, Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.forward import Tangents, Values
from archir.scoring.program import Program
from archir.scoring.reduction import Reductions

R = TypeVar("R")

Place = tuple[int, int]
"""Number of a family, and of a member in it."""

Group = Sequence[Place]
"""Members of any families that are moved together, by one tangent."""

SHARE = 0.25
"""The share of the free memory that the tangents of a chunk may take; the rest is for what operators make."""

CPU_ROOM = 2**22
"""The most bytes that the tangents of a chunk may take on a CPU, where one large tangent alone keeps all cores busy.

`tools/bench.py cost` measures `vmapped_over_looped_tangent`, the time a tangent takes in a chunk over that alone: on
one core 1.2 for a ResNet-20 on 128 images, 0.8 on 4.
"""


def chunk_size(program: Program, examples: int) -> int:
    """Return how many tangents of a batch to push through what lies downstream at once.

    As many as there is room for, each taken to need as much as all activations of the network: in `SHARE` of the memory
    that is free where the network is, on a CPU in `CPU_ROOM` at most.

    Args:
        program: the network.
        examples: number of examples in the batch.
    """
    room = SHARE * free_on(program.device)
    if program.device.type == "cpu":
        room = min(room, CPU_ROOM)
    return max(1, int(room / max(1, examples * program.bytes_per_example)))


def singly(places: Iterable[Place]) -> list[Group]:
    """Return members as groups of one each."""
    return [(place,) for place in places]


class Groups:
    """The groups to refine, those first that start first, so that those in a chunk have most of the way in common.

    Attributes:
        families: the numbers of their families.
    """

    def __init__(
        self,
        graph: Graph,
        perturbations: Sequence[Perturbation],
        thetas: Sequence[Theta],
        groups: Sequence[Group],
    ) -> None:
        """Put groups in order.

        Args:
            graph: the graph.
            perturbations: the families.
            thetas: θ of each family.
            groups: the groups, none empty.
        """
        self._perturbations, self._thetas = perturbations, thetas
        self._groups = [sorted(group) for group in groups]
        self._reductions = Reductions()
        position = graph.structure.position
        self.families = sorted({family for group in groups for family, _ in group})
        start = {f: min(position[e.node] for e in perturbations[f].edges) for f in self.families}
        first = [min((start[f], f) for f, _ in group) for group in self._groups]
        self._order = sorted(range(len(groups)), key=lambda g: (first[g], self._groups[g]))

    def __len__(self) -> int:
        return len(self._groups)

    def pushed(
        self, values: Values, examples: int, size: int, push: Callable[[Mapping[Edge, Tangents]], R]
    ) -> Iterator[tuple[Sequence[int], R]]:
        """Yield the numbers of so many groups at a time, and what becomes of what they inject on edges, in that order.

        Where memory runs out, half as many are taken at a time from there on.

        Args:
            values: at least what the families need.
            examples: number of examples in the batch.
            size: the most groups of a chunk.
            push: takes what the groups inject.

        Raises:
            OutOfMemoryError: there is no memory for one group.
            ScoreError: the axis of the examples does not fit the batch.
        """
        at, known = 0, dict[int, Mapping[Edge, torch.Tensor]]()
        while at < len(self._order):
            numbers = self._order[at : at + size]

            def chunk(numbers: Sequence[int] = numbers) -> R:
                return push(self._start(numbers, values, examples, known))

            found = attempt(chunk)
            if found is None:
                known.clear()
                if len(numbers) == 1:
                    raise torch.OutOfMemoryError("there is no memory for one tangent")
                size = (len(numbers) + 1) // 2
                continue
            yield numbers, found[0]
            at += len(numbers)

    @torch.no_grad()
    def _start(
        self,
        numbers: Sequence[int],
        values: Values,
        examples: int,
        known: dict[int, Mapping[Edge, torch.Tensor]],
    ) -> Mapping[Edge, Tangents]:
        """Return what some groups inject on edges; what the last family does is kept for those that come next."""
        start: dict[Edge, Tangents] = {}
        for family, members in self._by_family(numbers).items():
            if family not in known:
                known.clear()
                known[family] = self._perturbations[family].delta(values, self._thetas[family])
            rows = range(min(members), max(members) + 1)
            for edge, delta in known[family].items():
                reduction = self._reductions.find(family, self._perturbations[family], edge, delta, examples)
                masks = torch.stack([reduction.mask(members.get(row, ()), delta) for row in rows])
                injected = Tangents(delta * masks, rows.start)
                start[edge] = start[edge] + injected if edge in start else injected
        return start

    def _by_family(self, numbers: Sequence[int]) -> Mapping[int, Mapping[int, Sequence[int]]]:
        """Return for each family of some groups the members that each holds, by the place of the group."""
        found: dict[int, dict[int, list[int]]] = {}
        for row, number in enumerate(numbers):
            for family, member in self._groups[number]:
                found.setdefault(family, {}).setdefault(row, []).append(member)
        return found
