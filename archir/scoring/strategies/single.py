"""Strategies that say of each candidate what it would do to the loss alone: first order, Gauss-Newton, the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from archir.rewrite.pipeline import apply_together
from archir.scoring.batches import BoundBatch
from archir.scoring.learn import Learned, learn
from archir.scoring.objective import Curvature, Objective, make_objective
from archir.scoring.options import ScoreOptions
from archir.scoring.screen import screen
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.result import FamilyResult, StrategyResult, screened


@dataclass(frozen=True)
class FirstOrder:
    """Predict with the first order alone, `ΔL ≈ a = mean_n g·Δ(θ)`, and let θ lower it within the trust region.

    Source: Wu, Liu, Stone, Liu 2020 (Firefly), whose step is also the steepest descent of the first order in a
        bounded neighbourhood; here Δ is exact in θ.
    """

    name: str = "first-order"
    summary: str = "the first order alone, θ learned on it"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        first = replace(context.options, curvature=Curvature.NONE)
        return _screened(context, learn(context.streamed, context.perturbations, context.learn, first), first)


@dataclass(frozen=True)
class AdditiveGaussNewton:
    """Predict for each candidate `a + G/2`, and for a set the sum: what a scorer of single candidates does.

    Source: Lawton, Galstyan, Ver Steeg 2024.
    """

    name: str = "additive"
    summary: str = "Gauss-Newton, each candidate alone"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        return _screened(context, context.learned, context.options)


@dataclass(frozen=True)
class BruteForce:
    """Apply every candidate, alone, with the θ the scorer learns, and measure the loss.

    Source: the truth about single candidates.
    """

    name: str = "brute-force"
    summary: str = "apply each and measure the loss; slow"
    running_statistics: bool = True

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        before, loss = mean_loss(context.objective, context.batches), context.objective.loss
        group = context.objective.processes.group
        families: list[FamilyResult] = []
        for family, theta in zip(context.families, context.thetas, strict=True):
            grown = (apply_together(family.graph, [(m, theta or None)]) for m in family.site.members)
            losses = [mean_loss(make_objective(g, loss, group=group), context.batches) for g in grown]
            true = torch.tensor(losses, dtype=torch.float64) - before
            families.append(FamilyResult(true, true, theta=theta))
        return StrategyResult(tuple(families), learning=context.learned.estimates)


@torch.no_grad()
def mean_loss(objective: Objective, batches: Sequence[BoundBatch]) -> float:
    """Return the mean loss of a graph over all examples, in nats for likelihoods.

    Raises:
        ScoreError: an operator rejects a batch.
    """
    program, total = objective.program, 0.0
    for batch in batches:
        outputs = program.structure(program(batch.inputs).outputs)
        total += float(objective.loss.mean(outputs, batch.targets)) * batch.examples
    total, every = objective.processes.total(total, sum(b.examples for b in batches))
    return total / every


def _screened(context: ScoringContext, learned: Learned, options: ScoreOptions) -> StrategyResult:
    found = screen(
        context.streamed,
        context.perturbations,
        learned.thetas,
        context.batches,
        curvature=options.curvature,
        seed=options.seed + 1,
    )
    families = [screened(estimate, theta) for estimate, theta in zip(found, learned.thetas, strict=True)]
    return StrategyResult(tuple(families), learning=learned.estimates)
