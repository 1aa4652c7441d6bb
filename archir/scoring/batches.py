"""Batches bound to the inputs of a graph, on its device; whole, or in parts so that scoring needs less memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from archir.errors import ScoreError
from archir.ir.input_checks import example_symbols
from archir.ir.node import Value
from archir.ir.types import Size, TensorType, Type, symbols_of
from archir.scoring.objective import Objective
from archir.scoring.pairs import keywords, tensor_pair
from archir.scoring.processes import WHOLE, Around
from archir.scoring.program import Inputs, Program, number_of_examples
from archir.scoring.targets import Targets, map_tensors

SMALLEST_PART, PER_STORED = 2**24, 4
"""The bytes of activations that a part of a batch has at least, and for each byte of stored tensors: what is done once
a part, however few its examples, then costs little."""

MOST_PARTS = 4
"""The most parts a batch is taken in: whole, scoring holds up to four times what a training step does."""


@dataclass(frozen=True, eq=False)
class BoundBatch:
    """A batch as programs take it: on the device of the graph, inputs by the value they are in it.

    Attributes:
        inputs: the inputs.
        targets: what the outputs are compared with.
        examples: number of examples.
        around: how many examples of the batch other processes have, where this is a part of it.
    """

    inputs: Mapping[Value, Any]
    targets: Targets
    examples: int
    around: Around = WHOLE


Batch = tuple[Inputs, Targets]
"""What a model is called with, and what its outputs are compared with."""

AnyBatch = Batch | Mapping[str, Any] | BoundBatch
"""A batch as a pair or as a mapping, of tensors or of NumPy's arrays, see `tensor_pair`; or bound."""


def bind_batches(program: Program, batches: Iterable[AnyBatch], *, most: int | None = None) -> tuple[BoundBatch, ...]:
    """Return batches bound to the inputs of a graph; those that are bound stay as they are.

    They then fit every program made of the graph, whatever it taps, and every rewrite of it.

    Args:
        program: gives the graph.
        batches: pairs of inputs and targets, or mappings with an entry of targets.
        most: number of them that are taken at most; all if not given.

    Raises:
        ScoreError: there are none, one is neither a pair nor a mapping with targets, or does not fit the graph.
    """
    found = tuple(_bound(program, batch) for batch in islice(batches, most))
    if not found:
        raise no_batches()
    return found


def no_batches() -> ScoreError:
    """Return the error for an empty iterable of batches."""
    return ScoreError("there are no batches to score on")


def _bound(program: Program, batch: AnyBatch) -> BoundBatch:
    if isinstance(batch, BoundBatch):
        return batch
    graph = program.graph
    inputs, targets = tensor_pair(batch, graph.tensors.values(), keywords(graph))
    examples = number_of_examples(targets)
    return BoundBatch(program.bind(inputs), map_tensors(lambda t: t.to(program.device), targets), examples)


def in_parts(objective: Objective, batches: Iterable[BoundBatch]) -> Iterator[BoundBatch]:
    """Yield batches, or parts of them one after another.

    Where examples are not coupled, all that scoring sums up is a sum over them, and parts change no number: a batch is
    taken in as many parts as have `SMALLEST_PART` bytes of activations each, and `PER_STORED` for each byte of stored
    tensors, `MOST_PARTS` at most, all within one of as many examples. It stays whole where its examples are coupled, or
    where the first axis of an input does not run over the examples and yet depends on their number.

    Args:
        objective: says whether examples are coupled, and what one takes.
        batches: the batches.
    """
    program = objective.program
    least = max(SMALLEST_PART, PER_STORED * program.stored_bytes, 1)
    for batch in batches:
        count = max(1, min(MOST_PARTS, batch.examples, batch.examples * program.bytes_per_example // least))
        yield from cut_up(program, batch, 1 if objective.coupled else count)


def cut_up(program: Program, batch: BoundBatch, count: int) -> list[BoundBatch]:
    """Return a batch in so many parts, all within one of as many examples; whole where it cannot be taken apart."""
    cut = of_examples(program, batch) if count > 1 else None
    if cut is None:
        return [batch]
    parts = [slice(batch.examples * i // count, batch.examples * (i + 1) // count) for i in range(count)]
    return [
        BoundBatch(
            {v: t[part] if v in cut else t for v, t in batch.inputs.items()},
            map_tensors(operator.itemgetter(part), batch.targets),
            part.stop - part.start,
            Around(batch.around.before if part is parts[0] else 0, batch.around.after if part is parts[-1] else 0),
        )
        for part in parts
    ]


def of_examples(program: Program, batch: BoundBatch) -> frozenset[Value] | None:
    """Return the inputs whose first axis runs over the examples, None where a batch cannot be taken apart.

    Nor can one of a program that is for one batch size alone.
    """
    symbols = example_symbols(program.graph)
    if not symbols:
        return None
    shapes = {v: _sizes(program.graph.type_of(v)) for v in batch.inputs}
    cut = frozenset(v for v, shape in shapes.items() if any(symbols_of(size) & symbols for size in shape))
    for value in cut:
        tensor, axes = batch.inputs[value], [i for i, n in enumerate(shapes[value]) if symbols_of(n) & symbols]
        if not isinstance(tensor, torch.Tensor) or axes != [0] or tensor.shape[0] != batch.examples:
            return None
    return cut


def _sizes(type_: Type) -> tuple[Size, ...]:
    if isinstance(type_, TensorType):
        return type_.shape
    return () if type_.value is None else (type_.value,)
