"""What a strategy says of the candidates of a graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from archir.rewrite.miss import Miss
from archir.rewrite.theta import Theta
from archir.scoring.refine import Refinement
from archir.scoring.screen import Estimate
from archir.scoring.set_models import SetModel
from archir.scoring.strategies.context import ScoringContext


@dataclass(frozen=True)
class FamilyResult:
    """What a strategy says of the members of one family.

    Attributes:
        order: what they are ordered by, lower is better, infinite for those that are never taken; `[members]`. Its
            unit is the strategy's own.
        predicted: predicted change of the loss of each alone, in nats; None if the strategy predicts none.
        stderr: its standard error.
        first_order: `a` of each.
        curvature: `G` of each.
        theta: θ of the family; None or empty to leave the new units as they are born.
    """

    order: torch.Tensor
    predicted: torch.Tensor | None = None
    stderr: torch.Tensor | None = None
    first_order: torch.Tensor | None = None
    curvature: torch.Tensor | None = None
    theta: Theta | None = None


@dataclass(frozen=True)
class JointResult:
    """What a strategy says of candidates together.

    Attributes:
        places: these candidates, as the numbers of a family and of members of it that are taken together, in the
            order in which the others number them.
        refinement: their linearised effects; None if there are none of them, and so no sets.
        model: predicts what sets of them do.
    """

    places: tuple[tuple[int, tuple[int, ...]], ...]
    refinement: Refinement | None
    model: SetModel | None


@dataclass(frozen=True)
class StrategyResult:
    """What a strategy says of the candidates of a graph.

    Attributes:
        families: for each family what is said of it, or why nothing is.
        joint: what is said of candidates together, and of these alone can sets be made; None if the strategy scores
            each alone.
        learning: predicted change of the loss, summed over all members, at each step of learning θ; in sample.
        context: that of these families, where it is another one than the strategy was given, such as its `in_sizes`.
    """

    families: tuple[FamilyResult | Miss, ...]
    joint: JointResult | None = None
    learning: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64), repr=False)
    context: ScoringContext | None = field(default=None, repr=False)


def screened(estimate: Estimate, theta: Theta) -> FamilyResult:
    """Return what screening says of a family."""
    predicted = estimate.predicted
    return FamilyResult(predicted, predicted, estimate.stderr, estimate.first_order, estimate.curvature, theta)
