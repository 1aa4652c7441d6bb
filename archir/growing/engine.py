"""The engine: train, recalibrate, learn, score, select, verify, apply, carry the optimiser over, train on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydantic
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from archir.cost import cost
from archir.errors import ArchirError, DivergenceError, FileError, GrowError
from archir.growing.batches import Batches, stream
from archir.growing.budget import Budget
from archir.growing.checks import check_examples, labelled
from archir.growing.divergence import Recovery, largest_loss
from archir.growing.examples import Examples
from archir.growing.fingerprint import differences, fingerprint
from archir.growing.growth import Growth, grow_once
from archir.growing.latency import measure_latency
from archir.growing.lock import lock_run
from archir.growing.optimisers import AUTO
from archir.growing.options import GrowOptions
from archir.growing.range_test import find_rate
from archir.growing.run import Checkpoint, Event, RunDirectory, create_run, open_run
from archir.growing.trainer import Trainer
from archir.growing.training import evaluate, recalibrate
from archir.ir.graph import Graph
from archir.ir.seeds import derived_seed
from archir.rewrite.morphism import Morphism
from archir.scoring.losses import Loss, find_loss
from archir.scoring.ranges import CLOSED, Real, Whole, problems_of

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        graph: the grown program with its trained weights.
        model: the live module made of it, in evaluation mode.
        history: all events, in order.
        directory: where the run was kept, None if nowhere.
    """

    graph: Graph
    model: nn.Module
    history: tuple[Event, ...]
    directory: Path | None


def grow_graph(
    graph: Graph,
    *,
    train: Examples,
    validation: Examples,
    budget: Budget,
    morphisms: Sequence[Morphism],
    loss: str | Callable[..., torch.Tensor] | Loss = "cross_entropy",
    options: GrowOptions | None = None,
    directory: Path | None = None,
    config: str = "",
    resume: bool = False,
    replace: bool = False,
    on_event: Listener | None = None,
) -> Run:
    """Train a network and let it grow under a budget.

    Everything is chosen on the validation split: one part of it selects the candidates, another checks the set they
    make. A run that was interrupted goes on from its last whole checkpoint and ends as it would have, bit for bit, if
    it is the same: its seed, examples, loss, budget, options and kinds of rewrite are those that it was started with.
    One process at a time can do so.

    Args:
        graph: the seed.
        train: examples the weights and θ are learned on.
        validation: examples everything is chosen on.
        budget: hard limits on the cost of the grown network.
        morphisms: the kinds of rewrite it may grow by.
        loss: name of a loss, or a callable of outputs and targets.
        options: how it is trained and grown.
        directory: where to keep the run; nothing is kept if not given.
        config: text that tells what the run is, kept in the directory.
        resume: go on with the run in the directory.
        replace: remove the run that is in the directory, if any.
        on_event: is told every event as it happens.

    Raises:
        DivergenceError: the loss diverged twice, the second time at half the rate.
        GrowError: the budget is below the seed, the loss is not finite or does not depend on the weights, nothing is
            labelled, the options make no sense, or the run in the directory is another one, whose differences are
            listed.
        ScoreError: the network cannot be scored, or its outputs and the targets do not fit the loss.
        FileError: examples are not finite or have labels the network does not know; or the directory cannot be
            written, holds another run, is in use, or all its checkpoints are damaged.
    """
    options = GrowOptions() if options is None else options
    for value, kind in ((options, GrowOptions), (budget, Budget)):
        if not isinstance(value, kind):
            raise GrowError(f"a {type(value).__name__} is no {kind.__name__}")
    found, kinds = find_loss(loss), tuple(morphisms)
    budget.check(cost(graph))
    options.training_loss(found)
    check_examples(graph.module(), found, options.batch_size, {"training": train, "validation": validation})
    if directory is None:
        if resume:
            raise GrowError("a run that was kept nowhere cannot go on", hint="give its directory")
        log = _Log(None, on_event)
        final = _Engine(graph, train, validation, budget, kinds, found, options, None, log).run(None)
        return Run(final, final.module().eval(), tuple(log.events), None)
    decided = fingerprint(
        graph, train=train, validation=validation, budget=budget, options=options, loss=found, morphisms=kinds
    )
    with _opened(directory, config, decided, resume, replace) as run:
        log = _Log(run, on_event)
        engine = _Engine(graph, train, validation, budget, kinds, found, options, run, log)
        final = engine.run(run.latest(accept=engine.check, on_damage=log.damaged) if resume else None)
        return Run(final, final.module().eval(), tuple(log.events), directory)


@contextmanager
def _opened(
    directory: Path, config: str, decided: Mapping[str, Any], resume: bool, replace: bool
) -> Iterator[RunDirectory]:
    """Hold the directory of a new run, or of one that goes on and is the same.

    Raises:
        FileError: it cannot be written, is in use, or holds a run or none.
        GrowError: the run in it was started with something else.
    """
    if resume:
        run = open_run(directory)
        with lock_run(directory):
            different = differences(run.fingerprint, decided)
            if different:
                raise GrowError(
                    f"the run in {directory} was started with another configuration",
                    why="\n         ".join(different),
                    hint="go on with what it was started with, or choose another directory for a new run",
                )
            run.clear()
            yield run
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot write into {directory}", why=str(error)) from error
    with lock_run(directory):
        yield create_run(directory, config, fingerprint=decided, replace=replace)


class _Log:
    """Collects events, writes them to the run directory, and tells the listener."""

    def __init__(self, run: RunDirectory | None, on_event: Listener | None) -> None:
        self._run = run
        self._on_event = on_event
        self.events: list[Event] = run.history() if run is not None else []

    def __call__(self, event: str, **fields: Any) -> None:
        line: Event = {"event": event, "time": round(time.time(), 3), **fields}
        if self._run is not None:
            line = self._run.append(event, **fields)
        self.events.append(line)
        if self._on_event is not None:
            self._on_event(line)

    def damaged(self, step: int, error: ArchirError) -> None:
        """Record that the checkpoint of a step was passed over."""
        self("damaged", checkpoint=step, why=error.why or error.what)


@pydantic.dataclasses.dataclass(frozen=True, config=CLOSED)
class _State:
    """What a run goes on from besides its network; `rate` and `diverged` are those of `Recovery`."""

    step: Whole
    growth_steps: Whole
    seconds: Real
    rate: Real
    diverged: Whole


@dataclass(frozen=True)
class _Engine:
    """One run: the seed, the data and the options."""

    seed: Graph
    train: Examples
    validation: Examples
    budget: Budget
    morphisms: tuple[Morphism, ...]
    loss: Loss
    options: GrowOptions
    directory: RunDirectory | None
    log: _Log
    recovery: Recovery = field(default_factory=Recovery)

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
        Trainer(checkpoint.graph, self.options.with_rate(state.rate), checkpoint.tensors)

    def run(self, checkpoint: Checkpoint | None) -> Graph:
        """Train and grow to the end, from the beginning or from a checkpoint, to which a diverging loss leads back."""
        self.recovery.most = largest_loss(self.seed.module(), self.train, self.loss, self.options.batch_size)
        while True:
            try:
                return self._run(checkpoint)
            except DivergenceError as error:
                checkpoint = self.recovery.after(error)
                self.log("diverged", step=error.step, why=error.what, rate=checkpoint.state["rate"])

    def _run(self, checkpoint: Checkpoint | None) -> Graph:
        options, started, recovery = self.options, time.monotonic(), self.recovery
        if checkpoint is None:
            step, grown, spent = 0, 0, 0.0
            price = cost(self.seed)
            prices = options.prices.given
            timed = "latency" in self.budget.limits | prices
            self.log(
                "started",
                parameters=price.parameters,
                flops=price.flops,
                peak_bytes=price.peak_bytes,
                latency=measure_latency(self.seed.module(), self.validation) if timed else None,
                budget=self.budget.limits,
                prices=prices,
                steps=options.steps,
                growth_at=options.growth_at(),
            )
            found = find_rate(self.seed, self.train, self.loss, options)
            if options.optimiser.rate == AUTO:
                self.log("rate", rate=found.rate, steps=found.steps)
            recovery.rate = found.rate
            trainer = Trainer(self.seed, options.with_rate(recovery.rate))
            checkpoint = self._checkpoint(trainer, 0, 0, 0.0)
        else:
            state = _State(**checkpoint.state)
            step, grown, spent = state.step, state.growth_steps, state.seconds
            recovery.rate, recovery.diverged = state.rate, state.diverged
            trainer = Trainer(checkpoint.graph, options.with_rate(state.rate), checkpoint.tensors)
            self.log("resumed", step=step, growth=grown)
        recovery.keep(checkpoint)
        growth_at = options.growth_at()
        while True:
            while grown < len(growth_at) and growth_at[grown] <= step:
                trainer = self._grow(trainer, step, grown)
                grown += 1
                self._save(trainer, step, grown, spent + time.monotonic() - started)
            if step >= options.steps:
                break
            step = self._train(trainer, step, self._next_stop(step, growth_at[grown:]))
            if step % options.checkpoint_every == 0 and step < options.steps:
                self._save(trainer, step, grown, spent + time.monotonic() - started)
        seconds = spent + time.monotonic() - started
        trainer = trainer.averaged(self.train)
        metrics = evaluate(trainer.module, self.validation, self.loss, batch_size=self.options.batch_size)
        graph = trainer.graph()
        self._save(trainer, step, grown, seconds)
        price = cost(graph)
        self.log(
            "finished",
            step=step,
            loss=metrics.loss,
            accuracy=metrics.accuracy,
            parameters=price.parameters,
            flops=price.flops,
            seconds=seconds,
        )
        return graph

    def _next_stop(self, step: int, growth_at: Sequence[int]) -> int:
        """Return the step up to which to train before something else is due."""
        options = self.options
        every = [n for n in (options.evaluate_every, options.checkpoint_every) if n]
        return min([options.steps, *growth_at[:1], *((step // n + 1) * n for n in every)])

    def _train(self, trainer: Trainer, step: int, stop: int) -> int:
        options = self.options
        batches = Batches(self.train, options.batch_size, options.seed, options.augmentation)
        # Dropout draws from the global generator: seeded by the step, a resumed run draws the same.
        torch.manual_seed(derived_seed(options.seed, step))
        done = trainer.train(itertools.islice(stream(batches, step), stop - step), self.loss, first_step=step)
        self.recovery.check(done, stop)
        skipped = {"skipped": done.skipped} if done.skipped else {}
        self.log("train", step=stop, loss=done.loss, rate=trainer.rate(stop - 1), examples=done.examples, **skipped)
        if options.evaluate_every and (stop % options.evaluate_every == 0 or stop == options.steps):
            self._evaluate(trainer, stop, "train")
        return stop

    def _evaluate(self, trainer: Trainer, step: int, phase: str) -> None:
        judged = trainer.averaged(self.train).module
        metrics = evaluate(judged, self.validation, self.loss, batch_size=self.options.batch_size)
        parameters = sum(p.numel() for p in trainer.module.parameters() if p.requires_grad)
        self.log(
            "evaluated", step=step, phase=phase, loss=metrics.loss, accuracy=metrics.accuracy, parameters=parameters
        )

    def _grow(self, trainer: Trainer, step: int, number: int) -> Trainer:
        options = self.options
        seed = derived_seed(options.seed, number + 1)
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
            budget=self.budget.stage(cost(self.seed), number + 1, options.growth_steps),
            options=options,
            morphisms=self.morphisms,
            seed=seed,
        )
        self.log(
            "scored",
            step=step,
            growth=number + 1,
            rule=growth.rule,
            candidates=growth.candidates,
            ranked=growth.ranked,
            seconds=growth.seconds,
        )
        if growth.rewriting is None:
            self.log("rejected", step=step, growth=number + 1, chosen=growth.chosen)
            return trainer
        self._log_growth(growth, step, number + 1, cost(graph).parameters)
        grown = trainer.become(growth.rewriting)
        if options.batch_statistics:
            self._recalibrate(grown, seed)
        self._evaluate(grown, step, "after growth")
        return grown

    def _recalibrate(self, trainer: Trainer, seed: int) -> None:
        batches = stream(Batches(self.train, self.options.batch_size, seed))
        recalibrate(trainer.module, itertools.islice(batches, self.options.recalibrate_batches))

    def _log_growth(self, growth: Growth, step: int, number: int, before: int) -> None:
        self.log(
            "grown",
            growth=number,
            step=step,
            specs=list(growth.specs),
            predicted=growth.predicted,
            expected=growth.expected,
            realised=growth.realised,
            scale=growth.scale,
            parameters_before=before,
            parameters=growth.cost.parameters,
            flops=growth.cost.flops,
            peak_bytes=growth.cost.peak_bytes,
            latency=growth.latency,
            backed_off=growth.chosen - len(growth.specs),
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

    def _save(self, trainer: Trainer, step: int, grown: int, seconds: float) -> None:
        checkpoint = self._checkpoint(trainer, step, grown, seconds)
        self.recovery.keep(checkpoint)
        if self.directory is not None:
            self.directory.save(checkpoint)

    def _checkpoint(self, trainer: Trainer, step: int, grown: int, seconds: float) -> Checkpoint:
        rate, diverged = self.recovery.rate, self.recovery.diverged
        state = _State(step=step, growth_steps=grown, seconds=seconds, rate=rate, diverged=diverged)
        return Checkpoint(step, trainer.graph(), trainer.state(), asdict(state))
