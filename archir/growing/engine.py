"""The engine: expand, train, recalibrate, learn, score, select, verify, apply, carry the optimiser over, train on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pydantic
import torch
from pydantic import TypeAdapter, ValidationError

from archir.cost import Cost, cost, training_flops
from archir.errors import GrowError
from archir.growing.batches import Batches, stream
from archir.growing.birth import Birth
from archir.growing.checks import labelled
from archir.growing.examples import Examples
from archir.growing.expansion import Expansion, widen_uniformly
from archir.growing.growth import Growth, grow_once
from archir.growing.latency import measure_latency
from archir.growing.learned import compare_with_fresh
from archir.growing.log import Log
from archir.growing.options import EXPANSION, GrowOptions
from archir.growing.run import Checkpoint, RunDirectory
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate, recalibrate
from archir.ir.graph import Graph
from archir.ir.seeds import derived_seed
from archir.rewrite.morphism import Morphism, cost_of
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss
from archir.scoring.ranges import CLOSED, Real, Whole, problems_of
from archir.scoring.strategies.registry import DEFAULT


@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED, kw_only=True)
class _State:
    """What a run goes on from besides its network.

    Attributes:
        step: optimiser steps done.
        growth_steps: growth steps done.
        seconds: seconds spent.
        training_flops: FLOPs spent on training and on growth steps.
        begun: cost of the network that training began with.
    """

    step: Whole
    growth_steps: Whole
    seconds: Real
    training_flops: Whole
    begun: tuple[Whole, Whole, Whole, Whole]


class _Clock:
    """Tells how long a run has taken, what it took before it was interrupted included."""

    def __init__(self, before: float) -> None:
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._started


@dataclass(frozen=True)
class Engine:
    """One run: the seed, the data and the options."""

    seed: Graph
    train: Examples
    validation: Examples
    budget: Budget
    morphisms: tuple[Morphism, ...]
    loss: Loss
    options: GrowOptions
    directory: RunDirectory | None
    log: Log

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that the run can go on from a checkpoint.

        Raises:
            GrowError: its state is not that of this run.
        """
        try:
            state = TypeAdapter(_State).validate_python(dict(checkpoint.state))
        except ValidationError as error:
            raise GrowError("this is not the state of the run", why=", ".join(problems_of(error, _State))) from error
        most, steps = len(self.options.growth_at()), self.options.steps
        wrong = [f"step is {state.step}"] if not state.step == checkpoint.step <= steps else []
        wrong += [f"growth_steps is {state.growth_steps}"] if state.growth_steps > most else []
        if wrong:
            raise GrowError("this is not the state of the run", why=", ".join(wrong))
        Trainer(checkpoint.graph, self.options, checkpoint.tensors)

    def run(self, checkpoint: Checkpoint | None) -> Graph:
        """Train and grow to the end, from the beginning or from a checkpoint."""
        options = self.options
        if checkpoint is None:
            trainer, state = self._begin()
        else:
            state = _State(**checkpoint.state)
            trainer = Trainer(checkpoint.graph, options, checkpoint.tensors)
            self.log("resumed", step=state.step, growth=state.growth_steps)
        growth_at, clock = options.growth_at(), _Clock(state.seconds)
        while True:
            while state.growth_steps < len(growth_at) and growth_at[state.growth_steps] <= state.step:
                trainer, state = self._grow(trainer, state)
                self._save(trainer, state, clock)
            if state.step >= options.steps:
                break
            stop = self._next_stop(state.step, growth_at[state.growth_steps :])
            state = self._train(trainer, state, stop)
            if stop % options.checkpoint_every == 0 and stop < options.steps:
                self._save(trainer, state, clock)
        trainer = trainer.averaged(self.train)
        metrics = evaluate(trainer.module, self.validation, self.loss, batch_size=self.options.batch_size)
        graph = trainer.graph()
        self._save(trainer, state, clock)
        price = cost(graph)
        self.log(
            "finished",
            step=state.step,
            loss=metrics.loss,
            accuracy=metrics.accuracy,
            parameters=price.parameters,
            flops=price.flops,
            training_flops=state.training_flops,
            seconds=clock.seconds,
        )
        return graph

    def _begin(self) -> tuple[Trainer, _State]:
        """Return the network training begins with, and the state of a run that has done nothing."""
        options, price = self.options, cost(self.seed)
        prices = options.prices.given
        timed = "latency" in self.budget.limits | prices
        self.log(
            "started",
            kind="growth" if self.budget.allows(price) else "compression",
            parameters=price.parameters,
            flops=price.flops,
            peak_bytes=price.peak_bytes,
            latency=measure_latency(self.seed.module(), self.validation) if timed else None,
            budget=self.budget.limits,
            prices=prices,
            steps=options.steps,
            growth_at=options.growth_at(),
        )
        graph, factor = self.seed, self._factor()
        if factor > 1 and options.growth_steps:
            expansion = self._expand(factor)
            graph, price = expansion.graph, expansion.cost
        begun = price.parameters, price.flops, price.bytes, price.peak_bytes
        return Trainer(graph, options), _State(step=0, growth_steps=0, seconds=0.0, training_flops=0, begun=begun)

    def _factor(self) -> float:
        """Return by how much the network is expanded beyond the final budget before training."""
        if self.options.expansion is not None:
            return self.options.expansion
        sites = (site for morphism in self.morphisms for site in morphism.sites(self.seed))
        shrinks = self.options.rule == DEFAULT and any(cost_of(self.seed, site).frees for site in sites)
        return EXPANSION if shrinks else 1.0

    def _expand(self, factor: float) -> Expansion:
        """Return the seed widened beyond the final budget."""
        options = self.options
        birth: Birth = "split" if options.birth == "split" else "fresh"
        if options.birth == "auto":
            few = Batches(self._held_out(options.seed)[0], options.batch_size)
            birth = compare_with_fresh(self.seed, few, self.loss, options.seed).birth
        found = widen_uniformly(self.seed, self.budget.scaled(factor), birth=birth, seed=options.seed)
        self.log(
            "expanded",
            birth=birth,
            widths=len(found.sizes),
            factor=found.factor,
            parameters=found.cost.parameters,
            flops=found.cost.flops,
            peak_bytes=found.cost.peak_bytes,
        )
        return found

    def _next_stop(self, step: int, growth_at: Sequence[int]) -> int:
        """Return the step up to which to train before something else is due."""
        options = self.options
        every = [n for n in (options.evaluate_every, options.checkpoint_every) if n]
        return min([options.steps, *growth_at[:1], *((step // n + 1) * n for n in every)])

    def _train(self, trainer: Trainer, state: _State, stop: int) -> _State:
        options = self.options
        batches = Batches(self.train, options.batch_size, options.seed, options.augmentation)
        # Dropout draws from the global generator: seeded by the step, a resumed run draws the same.
        torch.manual_seed(derived_seed(options.seed, state.step))
        few = itertools.islice(stream(batches, state.step), stop - state.step)
        done = trainer.train(few, self.loss, first_step=state.step)
        skipped = {"skipped": done.skipped} if done.skipped else {}
        self.log("train", step=stop, loss=done.loss, rate=trainer.rate(stop - 1), examples=done.examples, **skipped)
        if options.evaluate_every and (stop % options.evaluate_every == 0 or stop == options.steps):
            self._evaluate(trainer, stop, "train")
        spent = training_flops(trainer.graph(), done.examples)
        return replace(state, step=stop, training_flops=state.training_flops + spent)

    def _evaluate(self, trainer: Trainer, step: int, phase: str) -> None:
        judged = trainer.averaged(self.train).module
        metrics = evaluate(judged, self.validation, self.loss, batch_size=self.options.batch_size)
        parameters = sum(p.numel() for p in trainer.module.parameters() if p.requires_grad)
        self.log(
            "evaluated", step=step, phase=phase, loss=metrics.loss, accuracy=metrics.accuracy, parameters=parameters
        )

    def _grow(self, trainer: Trainer, state: _State) -> tuple[Trainer, _State]:
        options, step, number = self.options, state.step, state.growth_steps + 1
        seed = derived_seed(options.seed, number)
        self._recalibrate(trainer, seed)
        # Evaluated after that, so that what growth did is not mixed with what fresh batch statistics did.
        self._evaluate(trainer, step, "before growth")
        graph = trainer.graph()
        selection, check = self._held_out(seed)
        growth = grow_once(
            graph,
            train=self.train,
            selection=selection,
            check=check,
            loss=self.loss,
            budget=self.budget.stage(Cost(*state.begun), min(number, options.growth_steps), options.growth_steps),
            options=options,
            morphisms=self.morphisms,
            seed=seed,
        )
        kind = "exchange" if number > options.growth_steps else "contraction" if growth.contracts else "growth"
        self.log(
            "scored",
            step=step,
            growth=number,
            kind=kind,
            rule=growth.rule,
            candidates=growth.candidates,
            ranked=growth.ranked,
            budget=growth.budget.limits,
            price=growth.price,
            seconds=growth.seconds,
        )
        state = replace(state, growth_steps=number, training_flops=state.training_flops + growth.flops)
        if growth.rewriting is None:
            self.log("rejected", step=step, growth=number, chosen=growth.chosen, note=growth.note)
            return trainer, state
        self._log_growth(growth, step, number)
        grown = trainer.become(growth.rewriting)
        if options.batch_statistics:
            self._recalibrate(grown, seed)
        self._evaluate(grown, step, "after growth")
        return grown, state

    def _recalibrate(self, trainer: Trainer, seed: int) -> None:
        batches = stream(Batches(self.train, self.options.batch_size, seed))
        recalibrate(trainer.module, itertools.islice(batches, self.options.recalibrate_batches))

    def _log_growth(self, growth: Growth, step: int, number: int) -> None:
        self.log(
            "grown",
            growth=number,
            step=step,
            specs=list(growth.specs),
            predicted=growth.predicted,
            expected=growth.expected,
            realised=growth.realised,
            scale=growth.scale,
            mended=list(growth.mended),
            parameters_before=growth.before.parameters,
            parameters=growth.cost.parameters,
            flops=growth.cost.flops,
            peak_bytes=growth.cost.peak_bytes,
            latency=growth.latency,
            backed_off=growth.chosen - len(growth.specs),
            note=growth.note,
        )

    def _held_out(self, seed: int) -> tuple[Examples, Examples]:
        """Return two disjoint parts of the validation split, of examples with labels: to select on, and to check on."""
        examples = labelled(self.validation, self.loss)
        count = len(examples)
        size = min(self.options.score_examples, count // 2)
        if size < 1:
            raise GrowError("the validation split is too small to select on one part and check on another")
        order = examples[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
        return self.validation.take(order[:size]), self.validation.take(order[size : 2 * size])

    def _save(self, trainer: Trainer, state: _State, clock: _Clock) -> None:
        if self.directory is not None:
            kept = asdict(replace(state, seconds=clock.seconds))
            self.directory.save(Checkpoint(state.step, trainer.graph(), trainer.state(), kept))
