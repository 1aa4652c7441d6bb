"""Batches as they were given, whatever their shapes, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from archir.growing.device import CPU, sent
from archir.growing.reading import each_batch
from archir.ir.node import Value, build
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches
from archir.scoring.pairs import argument_names
from archir.scoring.processes import ALONE
from archir.scoring.program import Program, number_of_examples
from archir.scoring.targets import Targets, map_tensors


@dataclass(frozen=True, eq=False)
class GivenBatches:
    """Batches that are in memory as they were given, or pieces of them; each process has all of them whole.

    Attributes:
        pairs: what a model is called with, arguments by name, and the targets.
        seed: seed of the order; that in which they were given if not given.
        device: where they are moved.
    """

    pairs: tuple[tuple[dict[str, Any], Targets], ...] = field(repr=False)
    seed: int | None = None
    device: torch.device = CPU

    processes = ALONE

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def sizes(self) -> list[int]:
        """The numbers of examples of the batches, in order."""
        return [number_of_examples(targets) for _, targets in self._ordered]

    @property
    def examples(self) -> int:
        """How many examples they hold."""
        return sum(self.sizes)

    @property
    def source(self) -> str:
        """Where the examples come from, for errors."""
        return f"{len(self)} batches of {self.examples} examples"

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Targets]]:
        return self.since(0)

    def since(self, first: int, most: int | None = None) -> Iterator[tuple[dict[str, Any], Targets]]:
        """Yield the batches from a number on, and as many as are wanted."""
        for pair in self._ordered[first:][:most]:
            inputs, targets = map_tensors(lambda t: sent(t, self.device), pair)
            yield inputs, targets

    @property
    def _ordered(self) -> tuple[tuple[dict[str, Any], Targets], ...]:
        if self.seed is None:
            return self.pairs
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed))
        return tuple(self.pairs[i] for i in order.tolist())


def given_batches(program: Program, batches: Iterable[AnyBatch]) -> GivenBatches:
    """Return batches as they were given, with the arguments of the model by name.

    Raises:
        GrowError: code of the user's that makes them fails.
        ScoreError: there are none, they cannot be iterated, or one is neither a pair nor a mapping with targets,
            or does not fit the graph.
    """
    return unbound(program, bind_batches(program, each_batch(batches)))


def unbound(program: Program, batches: Iterable[BoundBatch]) -> GivenBatches:
    """Return batches that are bound to a graph as a module of it takes them, arguments by name."""
    graph, (positional, named) = program.graph, argument_names(program.graph)
    leaves = (*graph.signature.args.children, *graph.signature.kwargs.children)

    def call(batch: BoundBatch) -> dict[str, Any]:
        parts = [batch.inputs[Value(node.id)] for node in graph.inputs]
        return {name: build(leaf, parts) for name, leaf in zip((*positional, *named), leaves, strict=True)}

    return GivenBatches(tuple((call(batch), batch.targets) for batch in batches))
