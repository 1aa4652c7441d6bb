"""Batches taken in parts, so that scoring needs about as much memory as training does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from archir.ir.node import Value
from archir.ir.types import TensorType
from archir.score.objective import Objective
from archir.score.program import Inputs, Program, number_of_examples
from archir.score.targets import Targets, map_tensors

LARGEST_ACTIVATIONS = 2**27
"""The bytes of activations that a part of a batch may have; where it has more, the batch is taken in parts."""

MOST_PARTS = 2
"""The most parts a batch is taken in: whole, scoring holds two to three times what a training step does."""


def in_parts(
    objective: Objective, program: Program, batches: Iterable[tuple[Inputs, Targets]]
) -> Iterator[tuple[Mapping[Value, Any], Targets]]:
    """Yield batches, or parts of them one after another, as bound inputs and targets.

    Where examples are not coupled, all that scoring sums up is a sum over them, and parts change no number: a batch is
    taken in `⌈bytes of activations / LARGEST_ACTIVATIONS⌉` parts, `MOST_PARTS` at most, all within one of as many
    examples. It stays whole where its examples are coupled, or where the first axis of an input does not run over the
    examples and yet depends on their number.

    Args:
        objective: the loss, which says whether examples are coupled.
        program: what binds the inputs.
        batches: pairs of inputs and targets.

    Raises:
        ScoreError: inputs do not fit the program, or the targets are no tensors or empty.
    """
    for inputs, targets in batches:
        examples, bound = number_of_examples(targets), program.bind(inputs)
        count = min(MOST_PARTS, examples, math.ceil(examples * program.bytes_per_example / LARGEST_ACTIVATIONS))
        cut = {v for v in bound if _depends_on_the_batch(program, v)}
        whole = any(not isinstance(t := bound[v], torch.Tensor) or t.shape[:1] != (examples,) for v in cut)
        if count <= 1 or objective.coupled or whole:
            yield bound, targets
            continue
        for i in range(count):
            part = slice(examples * i // count, examples * (i + 1) // count)
            yield {v: t[part] if v in cut else t for v, t in bound.items()}, _part(targets, part)


def _part(targets: Targets, part: slice) -> Any:
    return map_tensors(lambda t: t[part], targets)


def _depends_on_the_batch(program: Program, value: Value) -> bool:
    type_ = program.graph.type_of(value)
    return not isinstance(type_, TensorType) or any(not isinstance(size, int) for size in type_.shape)
