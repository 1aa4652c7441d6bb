"""The strategies that score candidates together: each given those already chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from archir.scoring.families import Family
from archir.scoring.options import Price
from archir.scoring.refine import Refinement, refine
from archir.scoring.screen import Estimate, screen, screen_jointly
from archir.scoring.set_models import Joint, Linearised, SetModel
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.result import JointResult, StrategyResult, screened


@dataclass(frozen=True)
class JointGaussNewton:
    """Predict for a set `Σ a + ½ Σ G` over all pairs of its candidates.

    Sets are made of refined candidates alone.

    Source: ours.
    """

    name: str = "joint"
    summary: str = "Gauss-Newton, each candidate given those chosen before"
    running_statistics: bool = False

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        return _refined(context, Joint)


@dataclass(frozen=True)
class LinearisedNetwork:
    """Predict for a set the change of the linearised network's exact loss.

    Sets are made of refined candidates alone.

    Source: ours.
    """

    name: str = "linearised"
    summary: str = "the linearised network's loss, each candidate given those chosen before"
    running_statistics: bool = False

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        return _refined(context, Linearised)


@dataclass(frozen=True)
class SampledJoint:
    """Predict for a set `Σ a + ½ Σ G` over all pairs of its candidates, G sampled in reverse mode for all at once.

    It takes one forward pass and two backward passes however many candidates there are, `MOST` at most; others are
    taken for what they do alone.

    Source: ours.
    """

    name: str = "sampled"
    summary: str = "Gauss-Newton sampled in reverse mode, each candidate given those chosen before"
    running_statistics: bool = False

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        options, thetas = context.options, context.thetas
        estimates, gram = screen_jointly(
            context.streamed,
            context.perturbations,
            thetas,
            context.batches,
            curvature=options.curvature,
            seed=options.seed + 1,
        )
        places = tuple((f, m) for f, e in enumerate(estimates) for m in range(len(e.first_order)))
        first, stderr = (torch.cat([getattr(e, name) for e in estimates]) for name in ("first_order", "stderr"))
        found = Refinement(context.objective, first, gram, stderr, (), {})
        families = [screened(e, theta) for e, theta in zip(estimates, thetas, strict=True)]
        return StrategyResult(tuple(families), JointResult(places, found, Joint(found)), context.learned.estimates)


def _refined(context: ScoringContext, model: Callable[[Refinement], SetModel]) -> StrategyResult:
    """Screen all candidates in reverse mode, and refine the best in forward mode."""
    options, objective = context.options, context.streamed
    perturbations, thetas = context.perturbations, context.thetas
    estimates = screen(
        objective, perturbations, thetas, context.batches, curvature=options.curvature, seed=options.seed + 1
    )
    best = best_of(context.families, estimates, options.price)[: options.refine]
    joint = JointResult((), None, None)
    if best:
        found = refine(objective, perturbations, thetas, best, context.batches, chunk=options.chunk)
        joint = JointResult(tuple(best), found, model(found))
        for number, (f, m) in enumerate(best):
            estimates[f].first_order[m] = found.first_order[number]
            estimates[f].curvature[m] = found.gram[number, number]
            estimates[f].stderr[m] = found.stderr[number]
    families = [screened(e, theta) for e, theta in zip(estimates, thetas, strict=True)]
    return StrategyResult(tuple(families), joint, context.learned.estimates)


def best_of(families: Sequence[Family], estimates: Sequence[Estimate], price: Price | None) -> list[tuple[int, int]]:
    """Return all candidates, as numbers of family and member, by predicted change of the loss plus price."""
    keyed: list[tuple[float, int, int]] = []
    for f, (family, estimate) in enumerate(zip(families, estimates, strict=True)):
        extra = 0.0 if price is None else price(family.cost)
        keyed += [(value + extra, f, m) for m, value in enumerate(estimate.predicted.tolist())]
    return [(f, m) for _, f, m in sorted(keyed)]
