"""The strategy that scores all candidates together in reverse mode."""

from __future__ import annotations

from dataclasses import dataclass

from archir.scoring.joint import screen_jointly
from archir.scoring.refine import Refinement
from archir.scoring.set_models import Joint
from archir.scoring.strategies.context import ScoringContext
from archir.scoring.strategies.result import JointResult, StrategyResult, screened


@dataclass(frozen=True)
class SampledJoint:
    """Predict for a set `Σ a + ½ Σ G` over all pairs of its candidates, G sampled in reverse mode for all at once.

    It takes one forward pass and two backward passes however many candidates there are. Where `settled` is asked for
    `a` is zero for candidates that have nothing to learn, and where all are such one backward pass is enough. Where
    `adapted` is asked for, G has of these what is left once the weights that stay have adapted.

    Source: ours; LeCun, Denker, Solla 1990 (optimal brain damage) for pruning at a minimum.
    """

    name: str = "sampled"
    summary: str = "Gauss-Newton sampled in reverse mode, each candidate given those chosen before"
    running_statistics: bool = False

    def __call__(self, context: ScoringContext) -> StrategyResult:
        """Score the candidates of a graph."""
        context = context.in_sizes
        options, thetas = context.options, context.thetas
        joint = screen_jointly(
            context.streamed,
            context.perturbations,
            thetas,
            context.batches,
            curvature=options.curvature,
            settled=[options.settled and not theta for theta in thetas],
            adapted=[options.adapted and not theta for theta in thetas],
            seed=options.seed + 1,
        )
        places = tuple((f, (m,)) for f, e in enumerate(joint.families) for m in range(len(e.first_order)))
        families = tuple(screened(e, theta) for e, theta in zip(joint.families, thetas, strict=True))
        if not places:
            return StrategyResult(families, JointResult((), None, None), context.learned.estimates, context)
        found = Refinement(context.objective, joint.groups.first_order, joint.gram, joint.groups.stderr, (), {})
        return StrategyResult(families, JointResult(places, found, Joint(found)), context.learned.estimates, context)
