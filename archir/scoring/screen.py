"""Screening in reverse mode: first and second order of every candidate of all families in one pass over the batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from archir.rewrite.perturbation import Edge, Perturbation
from archir.rewrite.theta import Theta
from archir.scoring.batches import AnyBatch, BoundBatch, bind_batches
from archir.scoring.objective import Curvature, Objective, Pair
from archir.scoring.parts import Parts
from archir.scoring.processes import Processes
from archir.scoring.reduction import Reductions
from archir.scoring.tapped import Gradient, TappedEvaluation, backward, tapped_program


@dataclass(frozen=True)
class Estimate:
    """The predicted effects of the members of one family, each alone; means over examples.

    Attributes:
        first_order: `a`, `[members]`, in nats for likelihoods.
        curvature: `G`, `[members]`.
        stderr: standard error of `a + G/2` over the units (see `Objective.united`), `[members]`; that of the sampling
            is part of it. Not a number where there is one unit.
    """

    first_order: torch.Tensor
    curvature: torch.Tensor
    stderr: torch.Tensor

    @property
    def predicted(self) -> torch.Tensor:
        """Predicted change of the loss, `a + G/2`; `[members]`."""
        return self.first_order + self.curvature / 2


class Moments:
    """Running sums of values of units, in float64: of examples, or of batches that count by their examples."""

    def __init__(self, size: int) -> None:
        self._first = torch.zeros(size, dtype=torch.float64)
        self._second = torch.zeros(size, dtype=torch.float64)
        self._square = torch.zeros(size, dtype=torch.float64)
        self._weighted = torch.zeros(size, dtype=torch.float64)
        self._examples, self._weights, self._units = 0, 0.0, 0

    def add(self, first: torch.Tensor, second: torch.Tensor, examples: int) -> None:
        """Add first-order and curvature terms of a batch of so many examples, sums over units; `[units, members]`."""
        first, second = first.to("cpu", torch.float64), second.to("cpu", torch.float64)
        change, weight = first + second / 2, examples / len(first)
        self._first += first.sum(0)
        self._second += second.sum(0)
        self._square += (change**2).sum(0)
        self._weighted += weight * change.sum(0)
        self._weights += weight**2 * len(first)
        self._examples += examples
        self._units += len(first)

    def estimate(self, processes: Processes) -> Estimate:
        """Return the means over all processes, and the standard error.

        With `y` the sum over a unit, `w` its number of examples and `x̄ = Σ y / Σ w`, the standard error squared is
        `B / (B − 1) · Σ (y − w x̄)² / (Σ w)²` over B units.
        """
        n, weights, units = processes.total(self._examples, self._weights, self._units)
        first, second, square, weighted = processes.sum(self._first, self._second, self._square, self._weighted)
        first, second = first / n, second / n
        mean = first + second / 2
        spread = (square - 2 * mean * weighted + mean**2 * weights).clamp(min=0)
        correction = units / (units - 1) if units > 1 else math.nan
        return Estimate(first, second, (correction * spread).sqrt() / n)


def in_turn(perturbations: Mapping[int, Perturbation]) -> Iterator[tuple[int, frozenset[Edge]]]:
    """Yield the numbers of families, those on fewest edges first, with the edges that none after it is on.

    So the gradients on most edges can be released before the families come that need most memory.
    """
    order = sorted(perturbations, key=lambda i: len(perturbations[i].edges))
    last = {edge: i for i in order for edge in perturbations[i].edges}
    for i in order:
        yield i, frozenset(edge for edge in perturbations[i].edges if last[edge] == i)


def release(edges: Iterable[Edge], first: Gradient, pairs: Iterable[tuple[Gradient, Gradient]]) -> None:
    """Remove the gradients on some edges."""
    for edge in edges:
        for gradient in (first, *(g for pair in pairs for g in pair)):
            gradient.pop(edge, None)


def screen(
    objective: Objective,
    perturbations: Sequence[Perturbation],
    thetas: Sequence[Theta],
    batches: Iterable[AnyBatch],
    *,
    curvature: Curvature = Curvature.SAMPLED,
    seed: int = 0,
) -> list[Estimate]:
    """Predict what every member of every family would do to the loss, each alone.

    `ΔL ≈ mean_n [a + q/2]` with `a = Σ g·Δ` and `q = (Σ g̃·Δ)²` for every example and member, summed over all
    positions and edges before squaring; under a coupled loss over all examples of the batch, too. One forward and two
    backwards a batch, and the children of every subgraph.

    Args:
        objective: the loss; its program gives the graph.
        perturbations: the families.
        thetas: θ of each family.
        batches: the batches, bound or as pairs of inputs and targets.
        curvature: how g̃ is chosen.
        seed: of the samples.

    Returns:
        One estimate a family.

    Raises:
        ScoreError: the loss is not finite or does not fit a batch, or there are no batches.

    Source: SCORING model after Lawton, Galstyan, Ver Steeg 2024; the per-example estimator is ours.
    """
    moments = [Moments(p.members) for p in perturbations]
    for screened in every_part(objective, perturbations, thetas, batches, curvature, seed):
        for moment, term in zip(moments, screened.terms, strict=True):
            moment.add(term.first, term.second, screened.part.examples)
    return [m.estimate(objective.processes) for m in moments]


@dataclass(frozen=True)
class Terms:
    """What the members of a family do in a batch; `[units, members]` each.

    Attributes:
        first: `a`.
        pairs: the products with both vectors of each pair whose sum over pairs is the curvature.
    """

    first: torch.Tensor
    pairs: tuple[Pair, ...]

    @property
    def second(self) -> torch.Tensor:
        """`q`, the curvature of each member alone."""
        return sum((left * right for left, right in self.pairs), torch.zeros_like(self.first))


@dataclass(frozen=True)
class Screened:
    """What was found on a part of a batch.

    Attributes:
        part: the part.
        vectors: the vectors of the curvature at its outputs.
        terms: what the members of each family do.
    """

    part: BoundBatch
    vectors: Sequence[Pair]
    terms: Sequence[Terms]


def every_part(
    objective: Objective,
    perturbations: Sequence[Perturbation],
    thetas: Sequence[Theta],
    batches: Iterable[AnyBatch],
    curvature: Curvature,
    seed: int,
    settled: Sequence[bool] | None = None,
) -> Iterator[Screened]:
    """Yield what the members of all families do in each batch, or in parts of it; see `screen` for the arguments.

    Args:
        objective: the loss.
        perturbations: the families.
        thetas: θ of each family.
        batches: the batches.
        curvature: how the vectors of the curvature are chosen.
        seed: of the samples.
        settled: for each family whether the loss counts as flat for it, `a = 0`; for none if not given. Where it does
            for all, no gradient of the loss is made.

    Raises:
        ScoreError: the loss is not finite or does not fit a batch, or there are no batches.
    """
    flat = [False] * len(perturbations) if settled is None else settled
    program = tapped_program(objective.program, perturbations)
    generator, reductions = torch.Generator().manual_seed(objective.processes.seed(seed)), Reductions()

    def screened(part: BoundBatch) -> Screened:
        evaluation = program(part.inputs)
        objective.check(evaluation.outputs, part.targets)
        vectors = list(objective.pairs(evaluation.outputs, part.targets, curvature, generator, part.around))
        found = backward(objective, evaluation, part.targets, vectors, settled=all(flat))
        terms = _terms(objective, evaluation, part, perturbations, thetas, reductions, found, flat)
        return Screened(part, vectors, terms)

    yield from Parts(objective, generator).each(bind_batches(objective.program, batches), screened)


def _terms(
    objective: Objective,
    evaluation: TappedEvaluation,
    part: BoundBatch,
    perturbations: Sequence[Perturbation],
    thetas: Sequence[Theta],
    reductions: Reductions,
    gradients: tuple[Gradient, Iterator[tuple[Gradient, Gradient]]],
    settled: Sequence[bool],
) -> list[Terms]:
    """Return what the members of one family after another do in a batch."""
    first, pairs, united = gradients[0], list(gradients[1]), objective.united
    terms: dict[int, Terms] = {}
    with torch.no_grad():
        for i, done in in_turn(dict(enumerate(perturbations))):
            p = perturbations[i]
            delta = p.delta(evaluation.values, thetas[i])
            linear = united(reductions.total(i, p, {} if settled[i] else first, delta, part.examples))
            products: list[Pair] = []
            for left, right in pairs:
                one = united(reductions.total(i, p, left, delta, part.examples))
                same = left is right
                products.append((one, one if same else united(reductions.total(i, p, right, delta, part.examples))))
            terms[i] = Terms(linear, tuple(products))
            del delta  # before that of the next family is made
            release(done, first, pairs)
    return [terms[i] for i in range(len(perturbations))]
