"""How candidates are scored: one set of options for the function, the command line, growth and the strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from archir.cost import Cost
from archir.errors import ScoreError
from archir.ir.seeds import MOST
from archir.score.objective import Curvature
from archir.score.ranges import RATE, Range, Truth, Whole, out_of_range

if TYPE_CHECKING:
    from archir.score.strategies.strategy import Strategy

Price = Callable[[Cost], float]
"""What a difference of cost is worth, in nats."""

DEFAULT = "linearised"
"""The strategy that is used unless another is asked for."""

RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "steps": Whole(),
        "rate": RATE,
        "radius": RATE,
        "refine": Whole(),
        "chunk": Whole(1, optional=True),
        "batch_statistics": Truth(),
        "shortlist": Whole(1),
        "seed": Whole(most=MOST),
    }
)
"""The numbers among the options, and which they may be."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How candidates are scored.

    Attributes:
        steps: steps of learning θ, one batch each; batches are used again when they run out, and 0 learns nothing.
        rate: step size of Adam, relative to the root mean square of the weight θ is added to; falls to zero.
        radius: trust region: bound of ‖θ‖ relative to ‖w‖, for each row of a weight (for a vector, of it all).
        refine: number of candidates to refine in forward mode, best first; only these may be part of joint predictions.
        chunk: most of them that are refined at once; as many as fit into memory if None (see `chunks.chunk_size`).
        price: what cost is worth, in nats; part of what decides which candidates are the best.
        curvature: how the second order is estimated in learning and screening.
        batch_statistics: normalise by the mean and the variance of the batch, as in training, instead of running ones;
            the examples of a batch are then coupled (see `Objective.united`). Layers a rewrite brings use what they
            come with.
        strategy: name of the strategy that scores and chooses them, see `strategies.registry`, or one of your own.
        shortlist: number of candidates that the linearised network judges in each step of a selection, those that are
            best by the joint model.
        seed: seed of everything random.

    Raises:
        ScoreError: some are out of range.
    """

    steps: int = 100
    rate: float = 0.05
    radius: float = 0.5
    refine: int = 64
    chunk: int | None = None
    price: Price | None = None
    curvature: Curvature = Curvature.SAMPLED
    batch_statistics: bool = False
    strategy: str | Strategy = DEFAULT
    shortlist: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        problems = out_of_range(self, RANGES)
        if not isinstance(self.curvature, Curvature):
            problems.append(f"curvature is {self.curvature!r:.60}, not one of {', '.join(map(str, Curvature))}")
        if problems:
            raise ScoreError("these options are out of range", where="; ".join(problems))
