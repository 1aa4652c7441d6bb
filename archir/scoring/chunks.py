"""The candidates to refine, in chunks that fit into memory, and the tangents they start with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch

from archir.ir.graph import Graph
from archir.rewrite.perturbation import Edge, Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.forward import Tangents, Values
from archir.scoring.program import Program
from archir.scoring.screen import Reductions

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


class Candidates:
    """The candidates to refine, those first that start first, so that those in a chunk have most of the way in common.

    Attributes:
        families: the numbers of their families.
    """

    def __init__(
        self,
        graph: Graph,
        perturbations: Sequence[Perturbation],
        thetas: Sequence[Theta],
        chosen: Sequence[tuple[int, int]],
    ) -> None:
        """Put candidates in order.

        Args:
            graph: the graph.
            perturbations: the families.
            thetas: θ of each family.
            chosen: the candidates: number of the family, number of the member.
        """
        self._perturbations, self._thetas, self._chosen = perturbations, thetas, chosen
        self._reductions = Reductions()
        position = graph.structure.position
        self.families = sorted({family for family, _ in chosen})
        start = {f: min(position[e.node] for e in perturbations[f].edges) for f in self.families}
        self._order = sorted(range(len(chosen)), key=lambda c: (start[chosen[c][0]], chosen[c]))

    def __len__(self) -> int:
        return len(self._chosen)

    @torch.no_grad()
    def chunks(
        self, values: Values, examples: int, size: int
    ) -> Iterator[tuple[Sequence[int], Mapping[Edge, Tangents]]]:
        """Yield the numbers of so many candidates at a time, and what each of them injects on edges, in that order.

        Args:
            values: at least what the families need.
            examples: number of examples in the batch.
            size: the most candidates of a chunk.

        Raises:
            ScoreError: the axis of the examples does not fit the batch.
        """
        deltas: Mapping[Edge, torch.Tensor] = {}
        last: int | None = None
        for at in range(0, len(self._order), size):
            numbers, first = self._order[at : at + size], 0
            start: dict[Edge, Tangents] = {}
            for family, group in groupby((self._chosen[c] for c in numbers), key=lambda place: place[0]):
                members = [member for _, member in group]
                if family != last:
                    deltas, last = self._perturbations[family].delta(values, self._thetas[family]), family
                for edge, delta in deltas.items():
                    reduction = self._reductions.find(family, self._perturbations[family], edge, delta, examples)
                    masks = torch.stack([reduction.mask(member, delta) for member in members])
                    injected = Tangents(delta * masks, first)
                    start[edge] = start[edge] + injected if edge in start else injected
                first += len(members)
            yield numbers, start
