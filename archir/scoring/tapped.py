"""Programs with taps on the edges that families change, and the gradients of every example there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from archir.ir.node import Value
from archir.rewrite.perturbation import Edge, Perturbation
from archir.scoring.objective import Objective, Pair
from archir.scoring.program import Evaluation, Program, number_of_examples
from archir.scoring.shared_values import Replayed, SharedValues
from archir.scoring.targets import Targets

Gradient = dict[Edge, torch.Tensor]
"""Gradients of every example on edges; an edge the loss does not depend on is left out.

In the shape of the value; where no axis of it tells examples apart, `[examples, *shape of the value]`.
"""


@dataclass(frozen=True)
class TappedEvaluation:
    """What one evaluation of a program with taps gave.

    Attributes:
        evaluation: of the program.
        edges: the edges that families change, and on which examples are told apart.
        shared: the way from the other edges to where they are, if there are any.
    """

    evaluation: Evaluation
    edges: frozenset[Edge]
    shared: SharedValues | None

    @property
    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The returned values, in order."""
        return self.evaluation.outputs

    @property
    def values(self) -> Mapping[Value, torch.Tensor]:
        """The values that the families need."""
        return self.evaluation.values

    @cached_property
    def _replayed(self) -> Replayed:
        assert self.shared is not None
        return self.shared.replay(self.values)

    def of_examples(self, pulled: Gradient, examples: int) -> Gradient:
        """Return the gradients of every example on all edges for those at the taps."""
        found = {e: g for e, g in pulled.items() if e in self.edges}
        return found if self.shared is None else found | self.shared.gradients(self._replayed, pulled, examples)


@dataclass(frozen=True)
class TappedProgram:
    """A program with taps on the edges that families change; on later ones where examples are not told apart there.

    Attributes:
        program: the program.
        edges: the edges on which examples are told apart.
        shared: the way from the other edges to where they are, if there are any.
    """

    program: Program
    edges: frozenset[Edge]
    shared: SharedValues | None

    def __call__(self, inputs: Mapping[Value, Any]) -> TappedEvaluation:
        """Evaluate the program on the inputs of one batch.

        Raises:
            ScoreError: an operator rejects its operands.
        """
        return TappedEvaluation(self.program(inputs), self.edges, self.shared)


def tapped_program(program: Program, perturbations: Sequence[Perturbation]) -> TappedProgram:
    """Return a program with taps for the edges of some families, which keeps the values they need."""
    members = [(e, m) for p in perturbations for e, m in p.edges.items()]
    edges = dict.fromkeys(e for e, m in members if m.example_axis is not None)
    common = dict.fromkeys(e for e, m in members if m.example_axis is None)
    needs = frozenset(v for p in perturbations for v in p.needs)
    shared = SharedValues(program.graph, common) if common else None
    if shared is None:
        return TappedProgram(program.tapped(list(edges), keep=needs), frozenset(edges), None)
    taps = [*edges, *(e for e in shared.ends if e not in edges)]
    return TappedProgram(program.tapped(taps, keep=needs | shared.needs), frozenset(edges), shared)


def backward(
    objective: Objective,
    evaluation: TappedEvaluation,
    targets: Targets,
    vectors: Sequence[Pair] = (),
    *,
    settled: bool = False,
) -> tuple[Gradient, Iterator[tuple[Gradient, Gradient]]]:
    """Return the gradients of every example's loss on all edges, then those of the curvature's vectors.

    Args:
        objective: the loss.
        evaluation: what a program with taps has made of a batch.
        targets: the targets of the batch.
        vectors: those of the curvature at the outputs, see `Objective.pairs`.
        settled: whether the loss counts as flat: its gradients are then none, and are not asked for.

    Raises:
        ScoreError: the loss is not finite, or does not fit.
    """
    examples = number_of_examples(targets)
    chosen = objective.real(evaluation.outputs, examples)
    wanted = [i for i in chosen if evaluation.outputs[i].requires_grad]
    edges, taps = list(evaluation.evaluation.taps), list(evaluation.evaluation.taps.values())

    def pull(vector: torch.Tensor, *, last: bool) -> Gradient:
        if not wanted:
            return {}
        parts = objective.split(vector, evaluation.outputs)
        found = torch.autograd.grad(
            [evaluation.outputs[i] for i in wanted],
            taps,
            [parts[i] for i in wanted],
            retain_graph=not last,
            allow_unused=True,
        )
        return evaluation.of_examples({e: g for e, g in zip(edges, found, strict=True) if g is not None}, examples)

    first = {} if settled else pull(objective.gradient(evaluation.outputs, targets)[1], last=False)

    def second() -> Iterator[tuple[Gradient, Gradient]]:
        for i, (left, right) in enumerate(vectors):
            last = i == len(vectors) - 1
            if left is right:
                found = pull(left, last=last)
                yield found, found
            else:
                yield pull(left, last=False), pull(right, last=last)

    return first, second()
