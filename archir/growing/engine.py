"""The engine: expand, train, recalibrate, learn, score, select, verify, apply, carry the optimiser over, train on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import pydantic
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from archir.cost import Cost, cost, training_flops
from archir.errors import DivergenceError, GrowError
from archir.growing.batches import Batches, stream
from archir.growing.checks import LEAST_BATCH, held_out
from archir.growing.device import CPU, find_device, moved
from archir.growing.divergence import Recovery, largest_loss
from archir.growing.examples import Split
from archir.growing.expansion import Expansion
from archir.growing.growth import Growth, grow_once
from archir.growing.iterated import go_to, position_of
from archir.growing.latency import measure_latency
from archir.growing.log import Log
from archir.growing.optimisers import AUTO
from archir.growing.options import GrowOptions
from archir.growing.range_test import find_rate
from archir.growing.ranks import first_alone, first_for_all
from archir.growing.recalibration import recalibrate
from archir.growing.run import Checkpoint, RunDirectory
from archir.growing.trainer import Trainer
from archir.growing.training import Metrics, evaluate
from archir.ir.graph import Graph
from archir.ir.seeds import derived_seed
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss
from archir.scoring.processes import ALONE, Processes
from archir.scoring.ranges import CLOSED, Real, Whole, problems_of


@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED, kw_only=True)
class _State:
    """What a run goes on from besides its network.

    Attributes:
        step: optimiser steps done.
        growth_steps: growth steps done.
        seconds: seconds spent.
        training_flops: FLOPs spent on training and on growth steps.
        begun: cost of the network that training began with.
        rate: the highest learning rate.
        diverged: how often the loss has diverged at higher rates.
        position: what is read next of training data that can only be iterated, see `archir.growing.iterated.Position`;
            None of others, where it follows from the step.
        kept: which network this is once the one that was found has been retrained, see `archir.growing.conclusion`.
    """

    step: Whole
    growth_steps: Whole
    seconds: Real
    training_flops: Whole
    begun: tuple[Whole, Whole, Whole, Whole]
    rate: Real
    diverged: Whole
    position: tuple[Whole, Whole, Whole] | None = None
    kept: Literal["grown", "retrained"] | None = None


@dataclass(frozen=True)
class Outcome:
    """A network that was trained to the end.

    Attributes:
        checkpoint: the network, and what its training has cost.
        metrics: how it does on the validation split.
    """

    checkpoint: Checkpoint
    metrics: Metrics


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
    """One run: the seed, what it is expanded to before training if that is to be, the data and the options.

    Several processes may carry it out together; the first of them alone has the directory. If there is a fork, it gets
    the checkpoint that the first growth step begins from.
    """

    seed: Graph
    expansion: Expansion | None
    train: Split
    validation: Split
    budget: Budget
    morphisms: tuple[Morphism, ...]
    loss: Loss
    options: GrowOptions
    directory: RunDirectory | None
    log: Log
    processes: Processes = ALONE
    recovery: Recovery = field(default_factory=Recovery)
    fork: Callable[[Checkpoint], object] | None = None

    @property
    def begun(self) -> Graph:
        """The network that training begins with."""
        return self.seed if self.expansion is None else self.expansion.graph

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
        is_over = self.options.retrain and state.step == steps and state.growth_steps == most
        wrong += [f"kept is {state.kept}"] if state.kept and not is_over else []
        if wrong:
            raise GrowError("this is not the state of the run", why=", ".join(wrong))
        # Where processes hold shards of it, none has room for all of it but on the CPU.
        options = self.options.on("cpu" if self.options.sharded else None)
        Trainer(checkpoint.graph, options.with_rate(state.rate), checkpoint.tensors)

    def run(self, checkpoint: Checkpoint | None) -> Outcome:
        """Train and grow to the end, from the beginning or from a checkpoint, to which a diverging loss leads back."""
        examples, size = self.train, self.options.batch_size
        # The network is made within, so that it is let go of, and on the first process alone.
        self.recovery.most = first_for_all(
            self.processes, lambda: largest_loss(self._seed_module(), examples, self.loss, size)
        )
        while True:
            try:
                return self._run(checkpoint)
            except DivergenceError as error:
                checkpoint = self.recovery.after(error, self._batch_size)
                self.log("diverged", step=error.step, why=error.what, rate=checkpoint.state["rate"])

    def _run(self, checkpoint: Checkpoint | None) -> Outcome:
        options = self.options
        go_to(self.train, None if checkpoint is None else checkpoint.state.get("position"), options.seed)
        if checkpoint is None:
            trainer, state = self._begin()
            checkpoint = self._checkpoint(trainer, state)
        else:
            state = _State(**checkpoint.state)
            trainer = self._trainer(checkpoint.graph, state.rate, checkpoint.tensors)
            self.log("resumed", step=state.step, growth=state.growth_steps, steps=options.steps)
        self.recovery.rate, self.recovery.diverged = state.rate, state.diverged
        self.recovery.keep(checkpoint)
        growth_at, clock = options.growth_at(), _Clock(state.seconds)
        while True:
            while state.growth_steps < len(growth_at) and growth_at[state.growth_steps] <= state.step:
                if self.fork is not None and not state.growth_steps:
                    self.fork(self._checkpoint(trainer, replace(state, seconds=clock.seconds)))
                trainer, state = self._grow(trainer, state)
                self._save(trainer, state, clock)
            if state.step >= options.steps:
                break
            stop = self._next_stop(state.step, growth_at[state.growth_steps :])
            state = self._train(trainer, state, stop)
            if stop % options.checkpoint_every == 0 and stop < options.steps:
                self._save(trainer, state, clock)
        position = position_of(self.train)
        trainer = trainer.averaged(self.train)
        metrics = self._metrics(trainer)
        # What was read for the averages is read again if the run is taken up once more, now that it is over.
        go_to(self.train, position, options.seed)
        return Outcome(self._save(trainer, state, clock), metrics)

    def _seed_module(self) -> nn.Module:
        return moved(self.seed, find_device(self.options.device)).module()

    def _trainer(self, graph: Graph, rate: float, state: Mapping[str, torch.Tensor] | None = None) -> Trainer:
        return Trainer(graph, self.options.with_rate(rate), state, processes=self.processes)

    def _metrics(self, trainer: Trainer) -> Metrics:
        size = self.options.batch_size
        return evaluate(trainer.module, self.validation, self.loss, batch_size=size, processes=self.processes)

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
            latency=first_for_all(self.processes, lambda: measure_latency(self._seed_module(), self.validation))
            if timed
            else None,
            budget=self.budget.limits,
            prices=prices,
            steps=options.steps,
            growth_at=options.growth_at(),
        )
        graph = self.begun
        if self.expansion is not None:
            price = self.expansion.cost
            self.log(
                "expanded",
                birth=self.expansion.birth,
                widths=len(self.expansion.sizes),
                factor=self.expansion.factor,
                parameters=price.parameters,
                flops=price.flops,
                peak_bytes=price.peak_bytes,
            )
        begun = price.parameters, price.flops, price.bytes, price.peak_bytes
        found = find_rate(graph, self.train, self.loss, options, processes=self.processes)
        if options.optimiser.rate == AUTO:
            self.log("rate", rate=found.rate, steps=found.steps)
        state = _State(
            step=0,
            growth_steps=0,
            seconds=0.0,
            training_flops=training_flops(graph, found.steps * options.batch_size),
            begun=begun,
            rate=found.rate,
            diverged=0,
        )
        return self._trainer(graph, found.rate), state

    def _next_stop(self, step: int, growth_at: Sequence[int]) -> int:
        """Return the step up to which to train before something else is due."""
        options = self.options
        every = [n for n in (options.evaluate_every, options.checkpoint_every) if n]
        return min([options.steps, *growth_at[:1], *((step // n + 1) * n for n in every)])

    def _train(self, trainer: Trainer, state: _State, stop: int) -> _State:
        options = self.options
        size = self._batch_size(trainer.program)
        batches = Batches(self.train, size, options.seed, options.augmentation, trainer.device, self.processes)
        # Dropout draws from the global generator: seeded by the step, a resumed run draws the same.
        torch.manual_seed(self.processes.own_seed(derived_seed(options.seed, state.step)))
        few = stream(batches, state.step, stop - state.step)
        done = trainer.train(few, self.loss, first_step=state.step)
        self.recovery.check(done, stop)
        left_out = {name: n for name in ("skipped", "overflowed") if (n := getattr(done, name))}
        self.log("train", step=stop, loss=done.loss, rate=trainer.rate(stop - 1), examples=done.examples, **left_out)
        if options.evaluate_every and (stop % options.evaluate_every == 0 or stop == options.steps):
            self._evaluate(trainer, stop, "train")
        spent = training_flops(trainer.program, done.examples)
        return replace(state, step=stop, training_flops=state.training_flops + spent)

    def _batch_size(self, graph: Graph) -> int:
        """Return the number of examples of a training batch: if steps are to be even, fewer above the budget."""
        options, budget = self.options, self.budget
        if not options.even:
            return options.batch_size
        price = cost(graph)
        share = price.flops / budget.flops if budget.flops else budget.share(price)
        return max(min(options.batch_size, LEAST_BATCH), round(options.batch_size / max(share, 1.0)))

    def _evaluate(self, trainer: Trainer, step: int, phase: str) -> None:
        metrics = self._metrics(trainer.averaged(self.train))
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
        selection, check = held_out(self.validation, self.loss, options.score_examples, seed)
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
            processes=self.processes,
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
        # The network is run on the batches its statistics are averaged over.
        spent = growth.flops + cost(graph).flops * options.recalibrate_batches * options.batch_size
        state = replace(state, growth_steps=number, training_flops=state.training_flops + spent)
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
        batches = Batches(self.train, self.options.batch_size, seed, None, trainer.device, self.processes)
        few = stream(batches, count=self.options.recalibrate_batches)
        recalibrate(trainer.module, few, processes=self.processes)

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

    def _save(self, trainer: Trainer, state: _State, clock: _Clock) -> Checkpoint:
        checkpoint = self._checkpoint(trainer, replace(state, seconds=clock.seconds))
        self.recovery.keep(checkpoint)
        self.write(checkpoint)
        return checkpoint

    def write(self, checkpoint: Checkpoint, folder: str | None = None) -> None:
        """Write a checkpoint into the directory, or into a folder of it, if there is one.

        Raises:
            FileError: it cannot be written.
        """

        def save() -> None:
            if self.directory is not None:
                (self.directory if folder is None else self.directory.beside(folder)).save(checkpoint)

        first_alone(self.processes, save)

    def latest(self, accept: Callable[[Checkpoint], object]) -> Checkpoint | None:
        """Return the newest whole checkpoint of the directory, for all processes; damaged ones are told of.

        Raises:
            FileError: all are damaged.
        """

        def read() -> tuple[Checkpoint | None, list[tuple[int, str]]]:
            damaged: list[tuple[int, str]] = []
            if self.directory is None:
                return None, damaged
            found = self.directory.latest(
                accept=accept, on_damage=lambda step, error: damaged.append((step, error.why or error.what))
            )
            return found, damaged

        found, damaged = first_for_all(self.processes, read)
        for step, why in damaged:
            self.log.damaged(step, why)
        return found

    def _checkpoint(self, trainer: Trainer, state: _State) -> Checkpoint:
        """Return the checkpoint of the run as it is, on the CPU."""
        tensors = {name: tensor.to(CPU) for name, tensor in trainer.state(CPU).items()}
        state = replace(state, position=position_of(self.train))
        return Checkpoint(state.step, trainer.graph(CPU), tensors, asdict(state))
