"""How candidates are scored: one set of options for the function, the command line, growth and the strategies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import ConfigDict, WithJsonSchema
from pydantic.dataclasses import dataclass

from archir.cost import Cost
from archir.errors import ScoreError
from archir.scoring.budget import Budget
from archir.scoring.objective import Curvature
from archir.scoring.ranges import CLOSED, Count, Positive, Seed, Truth, Whole, checked

Price = Callable[[Cost], float]
"""What a difference of cost is worth, in nats."""

Limit = Callable[[Cost], bool]
"""Says whether a graph of some cost may be made."""


@checked(ScoreError, "these options are out of range")
@dataclass(frozen=True, kw_only=True, config=ConfigDict(**CLOSED, arbitrary_types_allowed=True))
class ScoreOptions:
    """How candidates are scored.

    Attributes:
        steps: steps of learning θ, one batch each; batches are used again when they run out, and 0 learns nothing.
        rate: step size of Adam, relative to the root mean square of the weight θ is added to; falls to zero.
        radius: trust region: bound of ‖θ‖ relative to ‖w‖, for each row of a weight (for a vector, of it all).
        refine: number of candidates to refine in forward mode, best first; only these may be part of joint predictions.
        refine_most: where `budget` asks for more than a third of these, all candidates are taken in grades instead
            (see `strategies.graded`), in so many sets at most, or two for each family if that is more. Where it asks
            for fewer, and more than a third of these are worth their price all the same, so many are refined at most.
        chunk: most of them that are refined at once; as many as fit into memory if None (see `chunks.chunk_size`).
        price: what cost is worth, in nats; part of what decides which candidates are the best.
        budget: what the sets to be chosen are to be within; what is scarce is priced so that the candidates which pay
            for it, were all of them additive, are within it, and that price is part of what decides, too.
        curvature: how the second order is estimated in learning and screening.
        batch_statistics: normalise by the mean and the variance of the batch, as in training, instead of running ones;
            the examples of a batch are then coupled (see `Objective.united`). Layers a rewrite brings use what they
            come with.
        shortlist: number of candidates that the linearised network judges in each step of a selection, those that are
            best by the joint model.
        settled: let the strategy `sampled` judge what has nothing to learn, such as a prune, by its curvature alone, as
            if the network were at a minimum. What removing a unit would gain in one that is not there yet, training is
            about to gain anyway; in one that fits its data closely all curvature is small, and gains are overrated.
        adapted: let it judge these by what is left of their effect once the weights that stay have adapted to it (see
            `archir.scoring.adaptation`), as they will where training goes on: what others can take over is cheap.
        seed: seed of everything random.

    Raises:
        ScoreError: some are out of range.
    """

    steps: Whole = 100
    rate: Positive = 0.05
    radius: Positive = 0.5
    refine: Whole = 64
    refine_most: Whole = 512
    chunk: Count | None = None
    price: Annotated[Price | None, WithJsonSchema({"type": "string", "description": "a function of costs"})] = None
    budget: Budget | None = None
    curvature: Curvature = Curvature.SAMPLED
    batch_statistics: Truth = False
    shortlist: Count = 32
    settled: Truth = False
    adapted: Truth = False
    seed: Seed = 0
