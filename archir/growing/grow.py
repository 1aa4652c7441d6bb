"""Growing a network: a run from its seed to its end, in a directory or kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archir.cost import cost
from archir.errors import FileError, GrowError
from archir.growing.checks import check_examples, check_shares, checked_when_read
from archir.growing.compiled import check_backend
from archir.growing.conclusion import conclude
from archir.growing.device import CPU, find_device, moved
from archir.growing.engine import Engine
from archir.growing.examples import Split
from archir.growing.fingerprint import differences, fingerprint
from archir.growing.input_types import input_types
from archir.growing.iterated import of_any_size
from archir.growing.lock import lock_run
from archir.growing.log import Listener, Log
from archir.growing.options import GrowOptions
from archir.growing.precision import check_precision
from archir.growing.ranks import all_or_none, check_alike, check_devices, entered_by_first
from archir.growing.run import Event, RunDirectory, create_run, open_run
from archir.growing.sharding import check_sharding, shards
from archir.growing.start import expand
from archir.growing.trainer import live_module
from archir.ir.graph import Graph
from archir.ir.input_checks import any_sizes
from archir.rewrite.morphism import Morphism
from archir.scoring.budget import Budget
from archir.scoring.losses import Loss, find_loss
from archir.scoring.processes import ALONE, Processes


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        graph: the grown program with its trained weights, where the seed was.
        model: the live module made of it, there, in evaluation mode.
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
    train: Split,
    validation: Split,
    budget: Budget,
    morphisms: Sequence[Morphism],
    loss: str | Callable[..., torch.Tensor] | Loss = "cross_entropy",
    options: GrowOptions | None = None,
    directory: Path | None = None,
    config: str = "",
    resume: bool = False,
    replace: bool = False,
    on_event: Listener | None = None,
    processes: Processes = ALONE,
) -> Run:
    """Train a network and let it grow under a budget.

    Everything is chosen on the validation split: one part of it selects the candidates, another checks the set they
    make. If the options ask for it, what was found is also trained from scratch and the better network kept, and what
    growth began from is trained without it, see `archir.growing.conclusion`.

    A run that was interrupted goes on from its last whole checkpoint and ends as it would have, bit for bit, if it is
    the same: its seed, examples, loss, budget, options and kinds of rewrite are those that it was started with. One
    process at a time can do so, or one group of processes.

    Several processes may carry out a run together; all are given the same. Each takes its part of every batch, in
    training and in growth steps, and what comes of it is that of one process but for rounding, and for what dropout
    draws. The first alone has the directory, and tells of events. How many they are is no part of the run, which may go
    on with other numbers.

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
        on_event: is told every event as it happens; those of a network that is trained beside the run hold its name
            as `beside`, and are no part of the history.
        processes: those that carry it out together.

    Raises:
        GrowError: the budget is below the seed, the loss is not finite or does not depend on the weights, nothing is
            labelled, the options make no sense, there is no such device, or the run in the directory is another one,
            whose differences are listed.
        ScoreError: the network cannot be scored, or its outputs and the targets do not fit the loss.
        FileError: examples are not finite or have labels the network does not know; or the directory cannot be
            written, holds another run, is in use, or all its checkpoints are damaged.
        ProcessError: processes were given different runs, have come to different networks, or one has failed or ended.
    """
    options, found, kinds = checked_options(options, budget), find_loss(loss), tuple(morphisms)
    budget = budget.resolved(cost(graph))
    budget.check(cost(graph))
    kept = Kept(directory, config, resume, replace, on_event, processes)
    return carry_out(graph, train, validation, budget, options, found, kinds, kept)


def checked_options(options: GrowOptions | None, budget: object = Budget()) -> GrowOptions:
    """Return the options of a run, the default ones if none are given.

    Raises:
        GrowError: these are no options, or the budget is none.
    """
    found = GrowOptions() if options is None else options
    for value, kind in ((found, GrowOptions), (budget, Budget)):
        if not isinstance(value, kind):
            raise GrowError(f"a {type(value).__name__} is no {kind.__name__}")
    return found


@dataclass(frozen=True)
class Kept:
    """Where a run is kept, and who is told of it.

    Attributes:
        directory: where; None for nowhere.
        config: text that tells what the run is.
        resume: go on with the run that is there.
        replace: remove the run that is there, if any.
        on_event: is told every event as it happens.
        processes: those that carry it out together, the first of which keeps it.
    """

    directory: Path | None
    config: str = ""
    resume: bool = False
    replace: bool = False
    on_event: Listener | None = None
    processes: Processes = ALONE


def carry_out(
    graph: Graph,
    train: Split,
    validation: Split,
    budget: Budget,
    options: GrowOptions,
    found: Loss,
    kinds: tuple[Morphism, ...],
    kept: Kept,
) -> Run:
    """Carry out a run whose budget was checked; see `grow_graph` for the arguments and the errors."""
    options.training_loss(found)
    device, processes = find_device(options.device), replace(kept.processes, parts=True)
    check_devices(processes, device)
    given, graph = graph.device, moved(graph, device)
    types = input_types(graph)
    train, validation = train.changed(types), validation.changed(types)
    if any_sizes(graph):
        train, validation = of_any_size(train), of_any_size(validation)

    @cache
    def decided() -> Mapping[str, Any]:
        return fingerprint(
            graph, train=train, validation=validation, budget=budget, options=options, loss=found, morphisms=kinds
        )

    check_backend(options.compile, processes)
    check_alike(processes, lambda: {**decided(), "resume": kept.resume, "options.sharded": options.sharded})
    check_sharding(graph, options, processes, device)
    check_shares(train, validation, found, options, processes)
    live, splits = live_module(graph, options), {"training": train, "validation": validation}
    size, precision = options.batch_size, options.precision
    check_precision(live, precision)
    all_or_none(processes, lambda: check_examples(live, found, size, splits, precision=precision, processes=processes))
    learned_on, chosen_on = (checked_when_read(split, found) for split in (train, validation))
    if kept.resume and kept.directory is None:
        raise GrowError("a run that was kept nowhere cannot go on", hint="give its directory")
    expansion = all_or_none(
        processes,
        lambda: expand(
            graph,
            validation=chosen_on,
            examples=train.count,
            loss=found,
            budget=budget,
            morphisms=kinds,
            options=options,
            processes=processes,
        ),
    )
    if shards(options, processes) > 1:
        # What is whole on the device is so for as long as a growth step takes.
        del live
        graph = moved(graph, CPU)
        expansion = expansion and replace(expansion, graph=moved(expansion.graph, CPU))
    with entered_by_first(processes, lambda: _opened(kept, decided)) as run:
        log = Log(run, kept.on_event, processes)
        engine = Engine(graph, expansion, learned_on, chosen_on, budget, kinds, found, options, run, log, processes)
        final = moved(conclude(engine, engine.latest(engine.check) if kept.resume else None), given)
        return Run(final, final.module().eval(), tuple(log.events), kept.directory)


@contextmanager
def _opened(kept: Kept, decided: Callable[[], Mapping[str, Any]]) -> Iterator[RunDirectory | None]:
    """Hold the directory of a new run, or of one that goes on and is the same; None for a run that is kept nowhere.

    Raises:
        FileError: it cannot be written, is in use, or holds a run or none.
        GrowError: the run in it was started with something else.
    """
    directory = kept.directory
    if directory is None:
        yield None
        return
    if kept.resume:
        run = open_run(directory)
        with lock_run(directory):
            different = differences(run.fingerprint, decided())
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
        yield create_run(directory, kept.config, fingerprint=decided(), replace=kept.replace)
