"""The sets of candidates to refine, in chunks that fit into memory, and the tangents they start with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from archir.ir.graph import Graph
from archir.rewrite.perturbation import Edge, Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.forward import Tangents, Values
from archir.scoring.program import Program
from archir.scoring.screen import Reductions

Place = tuple[int, int]
"""Number of a family, and of a member in it."""

Group = Sequence[Place]
"""Members of any families that are moved together, by one tangent."""

GPU_SHARE = 0.25
"""The share of a GPU's free memory that the tangents of a chunk may take; the rest is for what operators make."""

CPU_ROOM = 2**22
"""The bytes that the tangents of a chunk may take on a CPU, where one large tangent alone keeps all cores busy.

`tools/bench.py cost` measures `vmapped_over_looped_tangent`, the time a tangent takes in a chunk over that alone: on
one core 1.2 for a ResNet-20 on 128 images, 0.8 on 4.
"""


def chunk_size(program: Program, examples: int) -> int:
    """Return how many tangents of a batch to push through what lies downstream at once.

    As many as there is room for, each taken to need as much as all activations of the network: on a GPU in `GPU_SHARE`
    of the memory that is free, on a CPU in `CPU_ROOM`.

    Args:
        program: the network.
        examples: number of examples in the batch.
    """
    room: float = CPU_ROOM
    if program.device.type == "cuda":
        unused = torch.cuda.memory_reserved(program.device) - torch.cuda.memory_allocated(program.device)
        room = GPU_SHARE * (torch.cuda.mem_get_info(program.device)[0] + unused)
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

    @torch.no_grad()
    def chunks(
        self, values: Values, examples: int, size: int
    ) -> Iterator[tuple[Sequence[int], Mapping[Edge, Tangents]]]:
        """Yield the numbers of so many groups at a time, and what each of them injects on edges, in that order.

        Args:
            values: at least what the families need.
            examples: number of examples in the batch.
            size: the most groups of a chunk.

        Raises:
            ScoreError: the axis of the examples does not fit the batch.
        """
        deltas: Mapping[Edge, torch.Tensor] = {}
        last: int | None = None
        for at in range(0, len(self._order), size):
            numbers = self._order[at : at + size]
            start: dict[Edge, Tangents] = {}
            for family, members in self._by_family(numbers).items():
                if family != last:
                    deltas, last = self._perturbations[family].delta(values, self._thetas[family]), family
                rows = range(min(members), max(members) + 1)
                for edge, delta in deltas.items():
                    reduction = self._reductions.find(family, self._perturbations[family], edge, delta, examples)
                    masks = torch.stack([reduction.mask(members.get(row, ()), delta) for row in rows])
                    injected = Tangents(delta * masks, rows.start)
                    start[edge] = start[edge] + injected if edge in start else injected
            yield numbers, start

    def _by_family(self, numbers: Sequence[int]) -> Mapping[int, Mapping[int, Sequence[int]]]:
        """Return for each family of some groups the members that each holds, by the place of the group."""
        found: dict[int, dict[int, list[int]]] = {}
        for row, number in enumerate(numbers):
            for family, member in self._groups[number]:
                found.setdefault(family, {}).setdefault(row, []).append(member)
        return found
