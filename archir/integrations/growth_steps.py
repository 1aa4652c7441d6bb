"""Growth steps as callbacks take them: when one is due, on which batches, and how it is put into what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import nn, optim
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from archir.captured import graph_on
from archir.errors import GrowError
from archir.growing.device import device_of
from archir.growing.grow import checked_options
from archir.growing.in_place import check_widths_only, kinds_in_place
from archir.growing.options import GrowOptions
from archir.growing.plan import Plan
from archir.growing.random_state import random_state_kept
from archir.growing.stages import Stage, next_stage, sizes_of
from archir.ir.seeds import derived_seed
from archir.kinds import Kinds
from archir.kinds import morphisms as find_morphisms
from archir.scoring.batches import AnyBatch
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, LossFunction, find_loss
from archir.scoring.ranges import CLOSED, Count, checked
from archir.steps import propose

AnyBudget = Budget | int | Callable[[int], Budget | int]
"""Limits, the largest number of parameters, or a function of the number of the step that returns one of these."""

AnyBatches = Iterable[AnyBatch] | Callable[[], Iterable[AnyBatch]]
"""Batches that can be gone through again and again, or a function that returns some."""


@checked(GrowError, "these are no steps to grow at")
@checked_dataclass(frozen=True, config=CLOSED)
class Times:
    """When growth steps are due, counted in steps of the optimiser.

    Attributes:
        at: the numbers of steps after which one is due.
        every: one is due after every so many steps, too; None for none.

    Raises:
        GrowError: one is no whole number from 1.
    """

    at: Sequence[Count] = ()
    every: Count | None = None

    def due(self, last: int, now: int) -> bool:
        """Say whether a growth step has become due after one step and until another."""
        often = self.every is not None and now // self.every > last // self.every
        return often or any(last < step <= now for step in self.at)


@dataclass(frozen=True)
class GrowthSteps:
    """The growth steps that a callback is to take.

    Attributes:
        times: when.
        budget: what the grown part may cost after each.
        loss: a loss by its name, or a callable of outputs and targets; None where the integration finds one.
        morphisms: the kinds of rewrite, which change widths; of those that the code of the model lets change.
        options: how they are taken, see `archir.propose`.
        module: path of the part that grows, which is called with the inputs of a batch; empty for the model itself.
        batches: what candidates are scored and checked on, and θ is learned on if `learn` is not given; None for those
            of the loop.
        learn: what θ is learned on.
    """

    times: Times
    budget: AnyBudget
    loss: str | LossFunction | Loss | None
    morphisms: Kinds | None
    options: GrowOptions = field(repr=False)
    module: str
    batches: AnyBatches | None = field(repr=False)
    learn: AnyBatches | None = field(repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked before there is a model.

        Raises:
            GrowError: growth is never due, there is no budget, batches can be gone through only once, or a kind of
                rewrite changes more than widths.
            ParseError: a kind of rewrite is unknown.
            PassError: one is no morphism.
            ScoreError: there is no such loss.
        """
        if not self.times.at and self.times.every is None:
            raise GrowError("growth is never due", hint="give at=[1000, 2000], or every=1000")
        if isinstance(self.budget, bool) or not (isinstance(self.budget, Budget | int) or callable(self.budget)):
            raise GrowError(
                f"a {type(self.budget).__name__} is no budget",
                hint="give an archir.Budget, the largest number of parameters, or a function of the step",
            )
        for name, given in (("batches", self.batches), ("learn", self.learn)):
            if isinstance(given, Iterator):
                raise GrowError(
                    f"{name} can be gone through only once",
                    hint="give a list, a DataLoader, or a function that returns some",
                )
        check_widths_only(find_morphisms(self.morphisms))
        if self.loss is not None:
            find_loss(self.loss)

    def part_of(self, model: nn.Module) -> nn.Module:
        """Return the part of a model that grows.

        Raises:
            GrowError: there is none at the path.
        """
        try:
            return model.get_submodule(self.module)
        except AttributeError as error:
            raise GrowError(f"the model has no module {self.module!r}", why=str(error)) from error

    def take(
        self,
        model: nn.Module,
        step: int,
        stages: Sequence[Stage],
        *,
        batches: Callable[[int], Iterable[AnyBatch]],
        learn: Callable[[int], Iterable[AnyBatch]] | None,
        optimizers: Sequence[optim.Optimizer],
        averages: Sequence[nn.Module] = (),
        loss: Loss | None = None,
    ) -> tuple[Plan, tuple[Stage, ...]]:
        """Decide on a growth step and put it into a model, its optimisers and its averages, in place.

        Global generators of random numbers are as they were afterwards.

        Args:
            model: the model, of which a part grows.
            step: number of the step of training after which it is taken.
            stages: what has become of the model in steps before.
            batches: batches of the loop, of a seed, where none were given.
            learn: batches of the loop to learn on, of a seed, where none were given at all; None for some of `batches`.
            optimizers: all that hold parameters of the model.
            averages: modules like the model, with averages of its weights.
            loss: the loss where none was given; cross-entropy if there is none.

        Returns:
            The plan, and the stages with this one.

        Raises:
            ArchirError: what `archir.propose` and `archir.Plan.apply` raise. Nothing has changed then.
        """
        part, seed = self.part_of(model), derived_seed(self.options.seed, step)
        if self.learn is not None or self.batches is not None or learn is None:
            learned = None if self.learn is None else _some(self.learn)
        else:
            learned = learn(seed)
        budget = self.budget(step) if callable(self.budget) else self.budget
        before = sizes_of(model)
        with random_state_kept(device_of(part), seed):
            given = _some(self.batches) if self.batches is not None else batches(seed)
            graph, given = graph_on(part, given)
            kinds = check_widths_only(find_morphisms(self.morphisms))
            plan = propose(
                graph,
                given,
                budget=budget,
                loss=self.loss or loss or "cross_entropy",
                morphisms=kinds_in_place(part, graph, kinds),
                options=self.options,
                learn=learned,
            )
            _check_kept(part, plan)
            plan.put_into(part, optimizers, [_Average(self.part_of(one)) for one in averages])
        if not plan.specs:
            return plan, tuple(stages)
        reached = Stage(
            step=step, shapes={}, attributes={}, specs=plan.specs, expected=plan.expected, realised=plan.realised
        )
        return plan, next_stage(stages, before, sizes_of(model), reached)


class GrowthCallback:
    """What the callbacks of all packages are asked for, and what they tell of."""

    def __init__(
        self,
        *,
        budget: AnyBudget,
        at: Sequence[int] = (),
        every: int | None = None,
        loss: str | LossFunction | Loss | None = None,
        morphisms: Kinds | None = None,
        options: GrowOptions | None = None,
        module: str = "",
        batches: AnyBatches | None = None,
        learn: AnyBatches | None = None,
    ) -> None:
        """Say when and how to grow.

        Args:
            budget: hard limits on the cost of the part that grows, or the largest number of its parameters, after a
                step; or a function of the number of the step that returns one of these.
            at: steps of the trainer (`global_step`) after which growth is due.
            every: it is due after every so many steps, too.
            loss: name of a loss, or a callable of the outputs of the part and the targets; that of the model if not
                given, or cross-entropy where a trainer does not know it.
            morphisms: the kinds of rewrite; split and prune if not given.
            options: how the steps are taken, see `archir.propose`.
            module: path of the part that grows, `net` for `self.net`, which is called with the inputs of a batch; the
                model itself if not given, which is traced through its `forward`.
            batches: batches to score and to check on, and to learn on if `learn` is not given: a list, a loader, or a
                function that returns some.
            learn: batches to learn θ on.

        Raises:
            GrowError: growth is never due, there is no budget, or batches can be gone through only once.
            ParseError: a kind of rewrite is unknown.
            PassError: one is no morphism.
            ScoreError: there is no such loss.
        """
        super().__init__()
        times = Times(at, every)
        self._steps = GrowthSteps(times, budget, loss, morphisms, checked_options(options), module, batches, learn)


def told(plan: Plan) -> dict[str, float]:
    """Return the figures of a growth step to log: what it costs, and both changes of the loss that compare.

    Where nothing is expected of it that is left out.
    """
    found = {"parameters": plan.cost.parameters, "expected": plan.expected, "realised": plan.realised}
    return {name: float(value) for name, value in found.items() if value is not None}


def _some(given: AnyBatches) -> Iterable[AnyBatch]:
    return given() if callable(given) else given


class _Average(nn.Module):
    """An average of weights as a plan takes it: a module that holds them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def _check_kept(part: nn.Module, plan: Plan) -> None:
    """Check that a plan changes no tensor that checkpoints do not hold.

    Raises:
        GrowError: it does.
    """
    kept = part.state_dict().keys()
    for name, _ in part.named_buffers(remove_duplicate=False):
        if name in kept or name not in plan.before.by_name or name not in plan.graph.by_name:
            continue
        if not torch.equal(plan.before.tensor(name), plan.graph.tensor(name)):
            raise GrowError(
                f"{name} would change, and checkpoints do not hold it",
                hint="register it with persistent=True",
            )


def anew(loader: Iterable[Any], seed: int) -> Iterable[Any]:
    """Return the batches of a loader in an order of their own, without touching where the loader is.

    Loaders that go through a map-style data set in its order, or shuffled, are gone through shuffled under a seed, in
    this process. Others, which choose their examples in a way of their own, are gone through as they are.

    Args:
        loader: the loader.
        seed: the seed.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    chosen = loader.batch_sampler
    if type(chosen) is not BatchSampler or not isinstance(chosen.sampler, SequentialSampler | RandomSampler):
        return loader
    order = torch.Generator().manual_seed(seed)
    return DataLoader(loader.dataset, chosen.batch_size, shuffle=True, collate_fn=loader.collate_fn, generator=order)
