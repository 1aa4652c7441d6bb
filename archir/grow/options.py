"""How a network is trained and grown."""

from __future__ import annotations

from dataclasses import dataclass, field

from archir.errors import GrowError, suggest
from archir.grow.batches import Augmentation
from archir.grow.budget import Prices
from archir.grow.optimisers import SHAPES, OptimiserOptions, Schedule
from archir.score.options import DEFAULT, RANGES, Price, ScoreOptions
from archir.score.ranges import COUNT, PART, RATE, Range, Real, Whole, out_of_range
from archir.score.strategies.registry import STRATEGIES

_RANGES: dict[str, Range] = {
    **{name: RANGES[name] for name in ("radius", "batch_statistics", "seed")},
    **dict.fromkeys(("learn_steps", "refine"), COUNT),
    "learn_rate": RATE,
    **dict.fromkeys(("steps", "batch_size", "score_examples", "recalibrate_batches", "checkpoint_every"), COUNT),
    **dict.fromkeys(("growth_steps", "warmup", "composites", "evaluate_every"), Whole()),
    **dict.fromkeys(("first_growth", "last_growth", "agreement"), PART),
    "clip": Real(above=True, optional=True),
}


@dataclass(frozen=True)
class GrowOptions:
    """How a network is trained and grown.

    Attributes:
        steps: optimiser steps in all.
        growth_steps: how often it grows.
        first_growth: part of the steps done before the first growth.
        last_growth: part of the steps done before the last growth.
        batch_size: examples of a training batch.
        optimiser: the optimiser of the weights.
        warmup: steps in which the learning rate rises.
        schedule: shape of the learning rate after that: `constant`, `linear` or `cosine`.
        augmentation: random changes of training images.
        clip: largest norm of the gradient, above 0; None for no limit.
        learn_steps: steps of Adam on θ in each growth step.
        learn_rate: its step size, relative to the root mean square of the weight θ is added to.
        radius: trust region: largest norm of θ relative to that of the weights it changes.
        score_examples: validation examples that candidates are scored on; as many again check the chosen set.
        recalibrate_batches: training batches that batch statistics are averaged over before scoring.
        batch_statistics: score and check candidates with the batch statistics of training; they are averaged anew once
            the network has grown. Otherwise the running ones stand still.
        rule: the rule that ranks and chooses the candidates, one of `archir.score.strategies.registry.STRATEGIES`.
        refine: number of candidates, best first, whose joint effect is found in forward mode.
        agreement: part of its predicted decrease of the loss that a set has to realise on held-out examples, or its θ
            is made smaller, and it is shortened: below it, the set has left the range in which the network is linear.
        composites: pairs of the rewrites that scored best to score again as one candidate each; 0 for none.
        prices: what cost is worth in loss.
        evaluate_every: steps between evaluations on the validation split; 0 for phase ends only.
        checkpoint_every: steps between checkpoints.
        seed: seed of everything random.
    """

    steps: int = 2000
    growth_steps: int = 4
    first_growth: float = 0.1
    last_growth: float = 0.6
    batch_size: int = 128
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    warmup: int = 0
    schedule: str = "cosine"
    augmentation: Augmentation | None = None
    clip: float | None = None
    learn_steps: int = 100
    learn_rate: float = 0.05
    radius: float = 0.5
    score_examples: int = 1000
    recalibrate_batches: int = 20
    batch_statistics: bool = False
    rule: str = DEFAULT
    refine: int = 64
    agreement: float = 0.8
    composites: int = 0
    prices: Prices = field(default_factory=Prices)
    evaluate_every: int = 100
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        problems = out_of_range(self, _RANGES)
        if self.rule not in STRATEGIES:
            problems.append(f"there is no rule {self.rule!r}: {suggest(self.rule, STRATEGIES)}")
        elif self.batch_statistics and STRATEGIES[self.rule].running_statistics:
            problems.append(f"the rule {self.rule} takes running statistics, not those of the batch")
        if self.schedule not in SHAPES:
            problems.append(f"there is no schedule {self.schedule!r}: {suggest(self.schedule, SHAPES)}")
        if not problems:
            if self.first_growth > self.last_growth:
                problems.append(f"first_growth is {self.first_growth}, after last_growth, which is {self.last_growth}")
            if self.growth_steps > self.steps:
                problems.append(f"{self.growth_steps} growth steps do not fit into {self.steps} steps")
            if self.warmup >= self.steps:
                problems.append(f"a warm-up of {self.warmup} steps does not fit into {self.steps} steps")
        if problems:
            raise GrowError("these options do not make a run", where="; ".join(problems))

    @property
    def rate(self) -> Schedule:
        """The learning rate of each step."""
        return Schedule(self.optimiser.rate, self.steps, self.warmup, self.schedule)

    def scoring(self, price: Price, seed: int) -> ScoreOptions:
        """Return how the candidates of a growth step are scored.

        Args:
            price: what cost is worth, in nats.
            seed: seed of everything random in the step.
        """
        return ScoreOptions(
            steps=self.learn_steps,
            rate=self.learn_rate,
            radius=self.radius,
            refine=self.refine,
            price=price,
            batch_statistics=self.batch_statistics,
            strategy=self.rule,
            seed=seed,
        )

    def growth_at(self) -> list[int]:
        """Return the number of optimiser steps done before each growth step, in order."""
        first, last = self.first_growth * self.steps, self.last_growth * self.steps
        gaps = max(self.growth_steps - 1, 1)
        return [round(first + (last - first) * k / gaps) for k in range(self.growth_steps)]
