"""How a network is trained and grown."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from archir.errors import GrowError
from archir.growing.batches import Augmentation
from archir.growing.compiled import OFF
from archir.growing.device import AUTO, DeviceName
from archir.growing.optimisers import OptimiserOptions
from archir.growing.precision import PRECISIONS
from archir.growing.schedules import SHAPES, Schedule
from archir.growing.training_loss import training_loss
from archir.scoring.budget import Budget, Prices
from archir.scoring.losses import Loss, LossFunction
from archir.scoring.options import Price, ScoreOptions
from archir.scoring.ranges import (
    CLOSED,
    PLAIN,
    Count,
    Part,
    Positive,
    Seed,
    Text,
    Truth,
    Whole,
    among,
    checked,
    problem,
)
from archir.scoring.strategies.registry import DEFAULT, STRATEGIES

Reach = Annotated[float, Field(strict=True, ge=0, le=0.5), PLAIN]

BIRTHS = ("auto", "fresh", "split")

Multiple = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False), PLAIN]

EXPANSION = 2.5
"""The multiple of the final budget that a network is expanded to: between those that docs/growth.md says do best."""

_WHAT = "these options do not make a run"


@checked(GrowError, _WHAT)
@dataclass(frozen=True, config=CLOSED, kw_only=True)
class Training:
    """How a network is trained.

    Attributes:
        steps: optimiser steps in all.
        batch_size: examples of a training batch.
        warmup: steps in which the learning rate rises at the beginning; a twentieth of the steps if not given.
        schedule: shape of the learning rate after that: `constant`, `linear`, `cosine` or `held`.
        decay: part of the steps in which a held rate falls at the end.
        clip: largest norm of the gradient, above 0; None for no limit, or a very large one where a file says so.
        ema: part of the steps that the moving average of the weights reaches back, which is what is evaluated, and
            kept at the end; 0 for none. After a step it keeps `1 - 1 / (ema * steps)` of what it was.
        label_smoothing: part of every label that is spread over all classes in training, where the loss is
            `cross_entropy`.
        precision: `bfloat16` to compute the outputs of training steps in it where that is safe, weights and all else
            in float32; `float16` likewise, the loss scaled up, and steps left out in which that was too far;
            `float32`; or `auto`, bfloat16 on CUDA. Candidates are scored, and networks evaluated, in the type of the
            weights.
        device: where all of the run computes: `auto`, an accelerator if there is one, or `cpu`, `cuda`, `cuda:1` and
            the like. What is kept is on the CPU, and a run may go on on another device.
        channels_last: keep the kernels of images with their channels last in training, where GPUs are faster in half
            precision.
        compile: backend of `torch.compile` that compiles training steps, anew after every growth step: `inductor`, say;
            `off` for none.
        sharded: of what several processes train, each holds a shard of the weights, the gradients and the state of the
            optimiser, which are whole one part of the network at a time (FSDP2), and in growth steps; one process
            alone holds all of it. It is no part of what decides a run.
        evaluate_every: steps between evaluations on the validation split; 0 for phase ends only.
        checkpoint_every: steps between checkpoints.

    Raises:
        GrowError: a value is of another kind or out of range, or the warm-up does not end; all of them at once.
    """

    steps: Count = 2000
    batch_size: Count = 128
    warmup: Whole | None = None
    schedule: Annotated[str, among("schedule", SHAPES)] = "held"
    decay: Part = 0.4
    clip: Positive | None = 1.0
    ema: Reach = 0.0
    label_smoothing: Part = 0.0
    precision: Annotated[str, among("precision", PRECISIONS)] = "auto"
    device: DeviceName = AUTO
    channels_last: Truth = False
    compile: Text = OFF
    sharded: Truth = False
    evaluate_every: Whole = 100
    checkpoint_every: Count = 500

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.warmup is not None and self.warmup >= self.steps:
            raise problem(f"a warm-up of {self.warmup} steps does not fit into {self.steps} steps")
        return self

    @model_validator(mode="after")
    def _lays_out_once(self) -> Self:
        if self.sharded and self.channels_last:
            raise problem("shards are rows of tensors as they are: leave out one of sharded and channels_last")
        return self

    @property
    def average_decay(self) -> float:
        """The part of the moving average of the weights that stays in a step."""
        return 1 - 1 / max(1.0, self.ema * self.steps)


@checked(GrowError, _WHAT)
@dataclass(frozen=True, config=CLOSED, kw_only=True)
class Growing:
    """How a network is grown: on a trajectory of budgets, from where training begins to the final one.

    The budgets of the growth steps are spaced geometrically between what the network costs when training begins and
    the final budget: one that was expanded beyond it is contracted, any other grows.

    Attributes:
        expansion: before training the network is widened, all widths alike, to so many times the final budget; 1 to
            begin with the seed. None takes `EXPANSION` where the default rule has units to remove, else 1.
        birth: how the weights of the expanded network start, `fresh`, `split`, or `auto`: see `archir.growing.birth`.
        even: let batches of a network that is above the final budget hold as many fewer examples as it costs more, so
            that a training step costs about what one of the final network does.
        growth_steps: how many growth steps lead to the final budget.
        first_growth: part of the steps done before the first growth step.
        last_growth: part of the steps done before the last one of these.
        exchanges: growth steps after these, as far apart, in which units are exchanged for others.
        retrain: draw the network that was found anew once the run has grown, and train it from scratch as the run was;
            the better of the two on the validation split is what the run ends with.
        counterfactual: train the network that the first growth step begins from to the end without any growth step,
            too, to compare with.
        learn_steps: steps of Adam on θ in each growth step.
        learn_rate: its step size, relative to the root mean square of the weight θ is added to.
        radius: trust region: largest norm of θ relative to that of the weights it changes.
        score_examples: validation examples that candidates are scored on; as many again check the chosen set. All of
            them are in memory meanwhile.
        recalibrate_batches: training batches that batch statistics are averaged over before scoring.
        batch_statistics: score and check candidates with the batch statistics of training; they are averaged anew once
            the network has grown. Otherwise the running ones stand still.
        rule: the rule that ranks and chooses the candidates, one of `archir.scoring.strategies.registry.STRATEGIES`;
            None takes `linearised` for steps within their budget, and `sampled`, which judges all pairs of units, for
            those that have to come down to it.
        settled: see `archir.scoring.options.ScoreOptions`; of steps that have to come down to their budget.
        adapted: the same.
        refine: number of candidates, best first, whose joint effect is found in forward mode; where a step asks for
            more than a third of these they are taken in grades, see `archir.scoring.strategies.graded`.
        agreement: part of its predicted decrease of the loss that a set has to realise on held-out examples, or its θ
            is made smaller while that helps: below it, the set has left the range in which the network is linear.
        compensate: let the weights of the units that stay take over what those that a contraction removes gave; None
            does so in compression alone. It is done where that lowers the loss measured, as is averaging the batch
            statistics anew.
        composites: pairs of the rewrites that scored best to score again as one candidate each; 0 for none.

    Raises:
        GrowError: a value is of another kind or out of range, growth ends before it begins, or the rule takes no
            statistics of batches, or there is no growth step to be judged; all of them at once.
    """

    expansion: Multiple | None = None
    birth: Annotated[str, among("birth", BIRTHS)] = "auto"
    even: Truth = False
    growth_steps: Whole = 8
    first_growth: Part = 0.2
    last_growth: Part = 0.6
    exchanges: Whole = 0
    retrain: Truth = False
    counterfactual: Truth = False
    learn_steps: Count = 40
    learn_rate: Positive = 0.05
    radius: Positive = 0.5
    score_examples: Count = 500
    recalibrate_batches: Count = 20
    batch_statistics: Truth = False
    rule: Annotated[str, among("rule", STRATEGIES)] | None = None
    settled: Truth = True
    adapted: Truth = True
    refine: Count = 64
    agreement: Part = 0.8
    compensate: Truth | None = None
    composites: Whole = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.first_growth > self.last_growth:
            raise problem(f"first_growth is {self.first_growth}, after last_growth, which is {self.last_growth}")
        if self.batch_statistics and STRATEGIES[self.rule or DEFAULT].running_statistics:
            raise problem(f"the rule {self.rule} takes running statistics, not those of the batch")
        if (self.retrain or self.counterfactual) and not self.growth_steps + self.exchanges:
            raise problem("retrain and counterfactual judge what was grown, and there are no growth steps")
        return self


@checked(GrowError, _WHAT)
@dataclass(frozen=True, config=CLOSED, kw_only=True)
class GrowOptions(Training, Growing):
    """How a network is trained and grown: the fields of `Training` and `Growing`, and those below.

    Attributes:
        optimiser: the optimiser of the weights.
        augmentation: random changes of training images.
        prices: what cost is worth in loss.
        seed: seed of everything random.

    Raises:
        GrowError: a value is of another kind or out of range, or they do not fit together; all of them at once.
    """

    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    augmentation: Augmentation | None = None
    prices: Prices = field(default_factory=Prices)
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_time_to_grow(self) -> Self:
        if self.growth_steps > self.steps:
            raise problem(f"{self.growth_steps} growth steps do not fit into {self.steps} steps")
        if self.growth_at()[-1:] > [self.steps]:
            raise problem(f"the last of {self.exchanges} exchanges is due after {self.growth_at()[-1]} steps")
        return self

    @property
    def without_growth(self) -> GrowOptions:
        """The same training without any growth step."""
        return replace(self, growth_steps=0, exchanges=0, retrain=False, counterfactual=False)

    @property
    def rate(self) -> Schedule:
        """The learning rate of each step.

        Raises:
            GrowError: it is still to be found.
        """
        warmup = self.steps // 20 if self.warmup is None else self.warmup
        return Schedule(self.optimiser.known_rate, self.steps, warmup, self.schedule, decay=self.decay)

    def with_rate(self, rate: float) -> GrowOptions:
        """Return the options with another learning rate."""
        return replace(self, optimiser=replace(self.optimiser, rate=rate))

    def on(self, device: str | None, *, sharded: bool | None = None) -> GrowOptions:
        """Return the options with everything computed on another device, or in shards or not, where that is given.

        Raises:
            GrowError: this is no name of a device, or tensors are to be laid out otherwise.
        """
        there = self.device if device is None else device
        return replace(self, device=there, sharded=self.sharded if sharded is None else sharded)

    def training_loss(self, loss: Loss) -> LossFunction:
        """Return what training minimises where a loss is measured.

        Raises:
            GrowError: labels are to be smoothed or examples to be mixed, and the loss does not take that.
        """
        mixup = self.augmentation.mixup if self.augmentation else 0.0
        return training_loss(loss, smoothing=self.label_smoothing, mixup=mixup)

    def scoring(self, price: Price, budget: Budget, seed: int, *, settled: bool) -> ScoreOptions:
        """Return how the candidates of a growth step are scored.

        Args:
            price: what cost is worth, in nats.
            budget: what the network is to be within after the step.
            seed: seed of everything random in the step.
            settled: whether removals may be judged as if training had settled, where the options say so.
        """
        return ScoreOptions(
            steps=self.learn_steps,
            rate=self.learn_rate,
            radius=self.radius,
            refine=self.refine,
            price=price,
            budget=budget,
            settled=settled and self.settled,
            adapted=settled and self.adapted,
            batch_statistics=self.batch_statistics,
            seed=seed,
        )

    @property
    def kinds(self) -> str:
        """The kinds of rewrite unless others are asked for.

        A network that is only contracted is pruned; one that begins with the seed, or exchanges units, is split, too.
        By the default rule one that begins with the seed is also widened where no single unit can be split: streams
        under normalisations, sizes of heads.
        """
        if self.factor > 1:
            return "split; prune" if self.exchanges else "prune"
        return "split; prune; widen{rest=true}" if self.rule in (None, DEFAULT) else "split; prune"

    @property
    def factor(self) -> float:
        """How many times the final budget the network is expanded to, if there are units to remove."""
        if self.expansion is not None:
            return self.expansion
        return EXPANSION if self.rule in (None, DEFAULT) else 1.0

    def growth_at(self) -> list[int]:
        """Return the number of optimiser steps done before each growth step, exchanges included, in order."""
        first, last = self.first_growth * self.steps, self.last_growth * self.steps
        gap = (last - first) / max(self.growth_steps - 1, 1)
        return [round(first + gap * k) for k in range(self.growth_steps + self.exchanges)]
