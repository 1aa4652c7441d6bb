"""The strategies that score candidates together: each given those already chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from archir.scoring.chunks import singly
from archir.scoring.refine import Refinement, refine
from archir.scoring.screen import screen
from archir.scoring.set_models import Joint, Linearised, SetModel
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.graded import graded
from archir.scoring.strategies.result import JointResult, StrategyResult, screened
from archir.scoring.strategies.worth import asked_for, worth_of

ENOUGH = 3
"""How many candidates are to be refined for each that a budget seems to ask for."""


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


def _refined(context: ScoringContext, model: Callable[[Refinement], SetModel]) -> StrategyResult:
    """Screen all candidates in reverse mode, and refine the best in forward mode, or all in grades.

    They are taken in grades where the budget asks for many, and where not all can be refined and some come in sizes,
    which differ by so much that the best alone would seldom fill a budget.
    """
    options, budget, asked = context.options, context.options.budget, 0
    if budget is not None:
        asked, given, context = ENOUGH * asked_for(context.families, budget), context, context.in_sizes
        asked = asked if context is given else max(asked, sum(len(f.site.members) for f in context.families))
    if 0 < options.refine < asked:
        return graded(context)
    objective = context.streamed
    perturbations, thetas = context.perturbations, context.thetas
    estimates = screen(
        objective, perturbations, thetas, context.batches, curvature=options.curvature, seed=options.seed + 1
    )
    worth = worth_of(context.families, estimates, options)
    places = [(f, m) for f, estimate in enumerate(estimates) for m in range(len(estimate.first_order))]
    count = options.refine
    if options.budget is not None and count:
        count = max(count, min(ENOUGH * int((worth < 0).sum()), options.refine_most))
    best = [places[i] for i in worth.argsort(stable=True)[:count].tolist()]
    joint = JointResult((), None, None)
    if best:
        found = refine(objective, perturbations, thetas, singly(best), context.batches, chunk=options.chunk)
        joint = JointResult(tuple((f, (m,)) for f, m in best), found, model(found))
        for number, (f, m) in enumerate(best):
            estimates[f].first_order[m] = found.first_order[number]
            estimates[f].curvature[m] = found.gram[number, number]
            estimates[f].stderr[m] = found.stderr[number]
    families = [screened(e, theta) for e, theta in zip(estimates, thetas, strict=True)]
    return StrategyResult(tuple(families), joint, context.learned.estimates, context)
